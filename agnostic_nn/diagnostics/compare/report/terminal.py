"""A report as text for a terminal of 80 columns."""

import math
import shlex
from textwrap import fill

from ....display.tables import table
from ..schema import Report, Result
from .headline import headline
from .names import joined, named_results, names
from .sentences import remarks, sentence, step_in_question, warnings
from .tables import Row, overview

__all__ = ["summary"]

WIDTH = 80  # columns of a terminal


def summary(report: Report, verbose: bool = False) -> str:
    """Return text for a terminal: the answer, a table, and commands to look closer.

    It fits 80 columns, except for long words such as file names.

    verbose: add all other tables, the verdict on each run with its numbers, and all
    remarks; these lines are longer.
    """
    finished = any(r.deviations is not None for r in report.results)
    left_out = dict.fromkeys(each.backend for each in report.left_out)
    parts = [
        _filled(f"{headline(report)}."),
        table(*_short_table(report), width=WIDTH),
        _filled(_about_short_table(report)) if finished else "",
        *(_filled(f"{each[0].upper()}{each[1:]}.") for each in warnings(report)),
        _filled(f"Left out: {', '.join(left_out)}; report.md says why.")
        if left_out
        else "",
        _commands(report),
    ]
    if verbose:
        parts += [
            table(columns, rows, title) for title, columns, rows in overview(report)
        ]
        verdicts = [f"{name}: {sentence(r)}" for name, r in named_results(report)]
        notes = [*report.differences, *remarks(report)]
        parts += ["\n".join(verdicts), "\n".join(notes)]
    return "\n\n".join(filter(None, parts))


def _filled(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _short_table(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows of the table that fits a terminal."""
    metric = report.workload.metric
    figure = metric or "final loss"
    columns = ["backend", "dtype", "verdict", "deviation /\ntolerance"]
    columns += [figure.replace(" ", "\n"), "ms per\nstep"]
    rows: list[Row] = []
    short_names = names(report, with_dtype=False)
    for name, r in zip(short_names, report.results, strict=True):
        value = r.test_metric if metric else r.final_loss
        step_ms = None if r.step_ms is None else float(f"{r.step_ms:.3g}")
        rows.append([name, r.dtype, _short_verdict(r), _ratio(r), value, step_ms])
    reference = report.reference
    value = reference.test_metric if metric else reference.final_loss
    rows.append(["reference", reference.dtype, None, None, value, None])
    return columns, rows


def _short_verdict(result: Result) -> str:
    if result.status == "differs":
        step = result.differences[0].step
        return f"differs, step {step:,}" if step else "differs at start"
    if result.status == "failed":
        return "could not run" if result.version is None else "failed"
    if result.status == "agrees":
        return "agrees"
    losses = [each for each in result.not_checked if each.quantity == "losses"]
    if losses and losses[0].step > 1:
        return f"agrees to step {losses[0].step - 1:,}"
    if losses:
        return "not checked"
    return "partly checked" if result.not_checked else f"not {result.precision}?"


def _ratio(result: Result) -> float | str | None:
    """Return the largest deviation in units of its tolerance, of all that was checked.

    It is a word if a deviation is unknown because of NaN or infinity.
    """
    if result.deviations is None:
        return None
    largest = 0.0
    for _, _, entry in result.deviations.arrays():
        if entry.tolerance is None:
            continue
        if entry.relative is None:
            return "NaN or inf"
        if entry.relative:
            allowed = entry.tolerance
            largest = max(largest, entry.relative / allowed if allowed else math.inf)
    return float(f"{largest:.2g}")


def _about_short_table(report: Report) -> str:
    """Say what was run, and explain the column that is not obvious."""
    task = report.workload
    dtype = report.reference.dtype
    return (
        f"Each run is {task.steps:,} steps of {task.name}, from the same weights and "
        f"on the same batches as the {dtype} reference. deviation / tolerance: the "
        "largest deviation from the reference, in units of what rounding explains; "
        "above 1 it is more than rounding."
    )


def _commands(report: Report) -> str:
    """Return the commands that look into the steps in question, as one can paste them.

    Long commands continue on the next line.
    """
    groups: dict[tuple[int, str], list[str]] = {}
    for name, r in named_results(report):
        if r.command:
            groups.setdefault((step_in_question(r), r.command), []).append(name)
    parts = []
    for (step, command), group in groups.items():
        parts.append(_filled(f"To look into step {step:,} of {joined(group)}:"))
        parts.append(_continued(command))
    return "\n".join(parts)


def _continued(command: str) -> str:
    """Break a shell command into lines of at most 80 columns, between its words."""
    words = [shlex.quote(word) for word in shlex.split(command)]
    lines = [f"    {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > WIDTH - 3:  # 3 for the space and " \\"
            lines.append(f"        {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)
