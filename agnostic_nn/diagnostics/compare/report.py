"""Format a report of `compare` as text and as Markdown, and write its files."""

import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from textwrap import fill
from typing import Any

from ...core.files import replacing
from ...core.policies import reduced_formats
from ...display.tables import markdown_table, table
from ..summary import Row as LayerRow
from ..summary import Summary
from .conversion import to_json
from .schema import (
    PROBED,
    TRAINED,
    ArrayDeviation,
    Deviations,
    Environment,
    MeasuredPrecision,
    Memory,
    Report,
    Result,
    Status,
)

__all__ = [
    "HOW_TO_READ",
    "batch_timings",
    "environments",
    "headline",
    "joined",
    "layer_costs",
    "names",
    "overview",
    "product_formats",
    "remarks",
    "roundings",
    "sentence",
    "settings_of",
    "summary",
    "write",
]

Row = list[Any]

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
        *(_filled(f"{each[0].upper()}{each[1:]}.") for each in _warnings(report)),
        _filled(f"Left out: {', '.join(left_out)}; report.md says why.")
        if left_out
        else "",
        _commands(report),
    ]
    if verbose:
        parts += [
            table(columns, rows, title) for title, columns, rows in overview(report)
        ]
        verdicts = [f"{name}: {sentence(r)}" for name, r in _named_results(report)]
        notes = [*report.differences, *remarks(report)]
        parts += ["\n".join(verdicts), "\n".join(notes)]
    return "\n\n".join(filter(None, parts))


def _filled(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def write(
    report: Report, folder: str | os.PathLike[str], page: str | None = None
) -> list[Path]:
    """Write report.json and report.md to `folder`, and return the paths of all files.

    The folder is created if needed. Each file is replaced atomically.

    page: the text of report.html. Without it an existing report.html is deleted,
    because it belongs to another report.

    Raises
    ------
    OSError
        If the files cannot be written; existing files then remain unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = report.to_json()
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)
    texts = {"report.json": f"{text}\n", "report.md": _markdown(report)}
    if page is not None:
        texts["report.html"] = page
    with ExitStack() as files:  # all files are complete before the first is renamed
        for name, text in texts.items():
            file = files.enter_context(replacing(folder / name))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    if page is None:
        (folder / "report.html").unlink(missing_ok=True)
    return [folder / name for name in texts]


def names(report: Report, *, with_dtype: bool = True) -> list[str]:
    """Return a unique name for each result.

    It is the backend, followed by the dtype, the policy and the machine where the
    results differ in them.

    with_dtype: if false, the dtype is not part of the name.
    """
    results = report.results
    dtypes = {r.dtype for r in results}
    machines = {r.machine for r in results}
    precisions = {r.precision for r in results} - {None}
    deterministic = {r.deterministic for r in results} - {None}
    unique = []
    for r in results:
        name = r.name
        if with_dtype and len(dtypes) > 1:
            name += f" {r.dtype}"
        if len(precisions) > 1 and r.precision is not None:
            name += f" {r.precision}"
        if len(deterministic) > 1 and r.deterministic is True:
            name += " deterministic"
        if len(machines) > 1:
            name += f" ({r.machine})"
        unique.append(name)
    return unique


def _named_results(report: Report) -> list[tuple[str, Result]]:
    return list(zip(names(report), report.results, strict=True))


# --- the answer -----------------------------------------------------------------------


def headline(report: Report) -> str:
    """Return the verdict on all runs in one sentence, without a full stop."""
    named = _named_results(report)
    by_status: dict[Status, list[tuple[str, Result]]] = {}
    for name, r in named:
        by_status.setdefault(r.status, []).append((name, r))
    devices = {r.name for r in report.results}
    kind = "backends" if len(devices) == len(named) else "runs"
    clauses = []
    if report.reference.agrees is False:
        clauses.append(
            "The reference is wrong, so whole trainings cannot be compared with it"
        )
    differs = by_status.get("differs", [])
    if len(differs) == 1:
        ((name, r),) = differs
        clauses.append(f"{name} differs by more than rounding {_place(r)}")
    elif differs:
        listed = "; ".join(_grouped(differs, _place))
        count = _all_of(differs, kind)
        if len(differs) < len(named):
            count = f"{len(differs)} of {len(named)} {kind}"
        clauses.append(f"{count} differ by more than rounding: {listed}")
    clauses += _grouped(by_status.get("failed", []), _failure, kind, len(named))
    clauses += _grouped(by_status.get("not checked", []), _because, kind, len(named))
    agree = by_status.get("agrees", [])
    if agree:
        clauses.append(_agreeing(report, [name for name, _ in agree], kind))
    return "; ".join(clauses)


def _agreeing(report: Report, agree: list[str], kind: str) -> str:
    """Name or count the runs that agree with the reference."""
    if len(agree) < len(report.results):
        if len(agree) == 1:
            return f"{agree[0]} agrees"
        return f"the other {len(agree)} {kind} agree"
    over = f"with the {report.reference.dtype} reference"
    over += f" over {report.workload.steps:,} steps"
    if len(agree) == 1:
        return f"{agree[0]} agrees {over}: all deviations are rounding"
    return f"{_all_of(agree, kind)} agree {over}: all deviations are rounding"


def _all_of(runs: Sequence[Any], kind: str) -> str:
    return f"Both {kind}" if len(runs) == 2 else f"All {len(runs)} {kind}"


def _grouped(
    named: Sequence[tuple[str, Result]],
    describe: Callable[[Result], str],
    kind: str | None = None,
    total: int = 0,
) -> list[str]:
    """Describe runs; those with the same description are named together.

    If all `total` runs have it, they are counted instead, as "all 3 backends".
    """
    groups: dict[str, list[str]] = {}
    for name, r in named:
        groups.setdefault(describe(r), []).append(name)
    described = []
    for description, group in groups.items():
        text = description
        who = joined(group)
        if len(group) > 1:
            text = description.replace("agrees", "agree", 1)
            who = _all_of(group, kind) if kind and len(group) == total else who
        described.append(f"{who} {text}")
    return described


def _place(result: Result) -> str:
    """Say where a run differs first."""
    first = result.differences[0]
    since = f"from step {first.step:,}" if first.step else "from the start"
    return f"{since}, first in {first.description}"


def _failure(result: Result) -> str:
    """Say why a run failed. A backend that could not run has no version."""
    how = "could not run" if result.version is None else "failed"
    return f"{how} ({(result.error or 'no reason is known').rstrip('.')})"


def _because(result: Result) -> str:
    """Say what cannot be checked, and why."""
    if not result.not_checked:
        _, _, issue = (result.precision_issue or "").partition(", but ")
        why = f"because it {issue.removeprefix('it ')}"
        return f"agrees, but cannot be confirmed to be {result.precision}, {why}"
    losses = [each for each in result.not_checked if each.quantity == "losses"]
    first = (losses or result.not_checked)[0]
    if not losses:
        same = [
            r.description + (f" at step {r.step:,}" if r.quantity == "probe" else "")
            for r in result.not_checked
            if r.reason == first.reason
        ]
        what = f"agrees, but {_first_few(same, 2)} cannot be checked"
    elif first.step > 1:
        what = f"agrees up to step {first.step - 1:,} and cannot be checked after it"
    else:
        what = "cannot be checked as a whole training"
    reason = f"because {first.reason}"
    others = {r.description for r in result.not_checked if r.reason != first.reason}
    if others:
        results = "other results" if len(others) > 1 else "other result"
        reason += f" ({len(others)} {results} for other reasons)"
    return f"{what}, {reason}"


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
    for name, r in _named_results(report):
        if r.command:
            groups.setdefault((_step_in_question(r), r.command), []).append(name)
    parts = []
    for (step, command), group in groups.items():
        parts.append(_filled(f"To look into step {step:,} of {joined(group)}:"))
        parts.append(_continued(command))
    return "\n".join(parts)


def joined(parts: Sequence[str]) -> str:
    """Return parts, of which there is at least one, as "a, b and c"."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


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


# --- one run --------------------------------------------------------------------------


def sentence(result: Result) -> str:
    """Return the verdict on a run with its numbers, in words."""
    if result.error is not None:
        return f"failed: {result.error}."
    parts = [f"{result.verdict}{_agreement(result)}{_time(result)}."]
    if result.status == "differs":
        parts += _difference(result)
    if result.not_checked:
        parts.append(_not_checked(result))
    if result.command:
        step = _step_in_question(result)
        parts.append(f"To look into step {step:,}: `{result.command}`")
    if result.precision_issue:
        parts.append(f"It is {result.precision_issue}.")
    return " ".join(parts)


def _agreement(result: Result) -> str:
    """Say how closely a run agrees: the largest deviation of all that was checked."""
    if result.status == "differs":
        return ""
    far = result.max_relative_deviation
    if far is None or result.deviations is None:
        return ". Its deviation from float64 is unknown"
    checked = [
        (entry.relative or 0.0, entry.tolerance)
        for _, _, entry in result.deviations.arrays()
        if entry.tolerance is not None
    ]
    _, limit = max(checked, key=lambda pair: pair[0])
    allowed = f"(rounding alone could explain {limit:.2g})"
    if result.status == "agrees":
        return f", to within {far:.2g} of float64 {allowed}"
    largest = "The largest deviation from float64 in what was checked"
    return f". {largest} is {far:.2g} {allowed}"


def _time(result: Result) -> str:
    return "" if result.step_ms is None else f"; {result.step_ms:.3g} ms per step"


def _difference(result: Result) -> Iterator[str]:
    """Say how large the first difference is, and whether single steps differ too."""
    first, *others = result.differences
    if first.relative is not None:
        allowed = f"rounding in {result.dtype} explains at most {first.tolerance:.2g}"
        yield f"The relative deviation is {first.relative:.2g}; {allowed}."
    elif first.quantity != "start":
        yield "It contains NaN or infinity."
    if others:
        differ = "results differ" if len(others) > 1 else "result differs"
        yield f"{len(others):,} other {differ} too."
    if first.quantity in TRAINED:
        probed = [each for each in result.differences if each.quantity in PROBED]
        if probed:
            yield (
                f"Computed from the same inputs, {probed[0].description} differs at "
                f"step {probed[0].step:,}."
            )
        else:
            yield (
                "Computed from the same inputs, all parts of the first, the middle and "
                "the last step agree, and so do predictions."
            )


def _not_checked(result: Result) -> str:
    """Name what could not be checked, grouped by the reason."""
    by_reason: dict[str, list[str]] = {}
    for each in result.not_checked:
        when = ""
        if each.quantity == "losses":
            when = f" from step {each.step:,} on"
        elif each.quantity == "probe":
            when = f" at step {each.step:,}"
        by_reason.setdefault(each.reason, []).append(each.description + when)
    listed = "; ".join(
        f"{_first_few(descriptions)} ({reason})"
        for reason, descriptions in by_reason.items()
    )
    return f"NOT CHECKED: {listed}.{_control_runs(result)}"


def _control_runs(result: Result) -> str:
    """Say where control runs exceed the tolerance, if the loss could not be checked."""
    if all(each.quantity != "losses" for each in result.not_checked):
        return ""
    exceed = [
        f"{run.name} from step {run.exceeds_tolerance_at:,}"
        for run in (result.control.runs if result.control else ())
        if run.exceeds_tolerance_at is not None
    ]
    listed = " and ".join(exceed)
    return f" Control runs exceed the tolerance too: {listed}." if exceed else ""


def _first_few(descriptions: list[str], most: int = 4) -> str:
    unique = list(dict.fromkeys(descriptions))
    rest = f" and {len(unique) - most} more" if len(unique) > most else ""
    return ", ".join(unique[:most]) + rest


def _step_in_question(result: Result) -> int:
    """Return the step that the command of a result looks into."""
    steps = [each.step for each in result.differences]
    steps += [each.step for each in result.not_checked if each.quantity == "losses"]
    return max(1, steps[0])


# --- tables ---------------------------------------------------------------------------


def overview(report: Report) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Yield title, columns and rows of each table; each row is a run."""
    yield _results_table(report)
    yield _deviations_table(report)
    title, columns, rows = _precision_table(report)
    if rows:
        yield title, columns, rows


def _results_table(report: Report) -> tuple[str, list[str], list[Row]]:
    task = report.workload
    reference = report.reference
    metric = task.metric or "test"
    columns = ["backend", "hardware", "version", "dtype", metric, "final loss"]
    columns += ["ms per step", "25-75 %", "first step, ms", "samples/s", "memory, MB"]
    rows: list[Row] = []
    for name, r in _named_results(report):
        quartiles = r.step_ms_quartiles
        speed = r.samples_per_second
        row: Row = [name, r.hardware, r.version, r.dtype, r.test_metric, r.final_loss]
        row += [r.step_ms, quartiles and "{:.3g} to {:.3g}".format(*quartiles)]
        row += [r.first_step_ms, speed and round(speed), _megabytes(r.memory)]
        rows.append(row)
    reference_row: Row = ["reference", None, None, reference.dtype]
    reference_row += [reference.test_metric, reference.final_loss, *[None] * 5]
    title = f"after {task.steps:,} steps of {task.name} ({task.epochs} epochs)"
    return title, columns, [*rows, reference_row]


_COLUMNS = {  # of the table of deviations, and the groups in each
    "layers": ("layers", "loss"),
    "gradients": ("gradients",),
    "updates": ("updates",),
    "state": ("states", "trained_state"),
    "predictions": ("predictions",),
    "training: loss": ("losses",),
    "parameters": ("parameters",),
    "outputs": ("outputs",),
}


def _deviations_table(report: Report) -> tuple[str, list[str], list[Row]]:
    rows: list[Row] = []
    for name, r in _named_results(report):
        cells: Row = [None] * len(_COLUMNS)
        if r.deviations is not None:
            arrays = list(r.deviations.arrays())
            cells = [
                _worst([entry for group, _, entry in arrays if group in groups])
                for groups in _COLUMNS.values()
            ]
        rows.append([name, *cells, r.verdict])
    title = f"largest relative deviation from the {report.reference.dtype} reference"
    return title, ["backend", *_COLUMNS, "verdict"], rows


def _precision_table(report: Report) -> tuple[str, list[str], list[Row]]:
    columns = ["backend", "precision", "deterministic"]
    columns += ["products, eager", "products, compiled"]
    rows: list[Row] = []
    for name, r in _named_results(report):
        if r.precision is None:
            continue
        measured = r.measured_precision
        formats = [None, None] if measured is None else _formats(measured)
        rows.append([name, r.precision, "yes" if r.deterministic else "no", *formats])
    return "precision: requested, and as measured", columns, rows


def _formats(measured: MeasuredPrecision) -> list[str]:
    return [product_formats(measured.eager), product_formats(measured.compiled)]


def product_formats(products: dict[str, str]) -> str:
    """Return the format of products, or each format with the products that use it."""
    by_format: dict[str, list[str]] = {}
    for product, name in products.items():
        by_format.setdefault(name, []).append(product)
    if len(by_format) == 1:
        return next(iter(by_format))
    return "; ".join(f"{name}: {', '.join(which)}" for name, which in by_format.items())


def _megabytes(memory: Memory | None) -> float | None:
    size = memory and (memory.peak or memory.predicted)
    return size / 1e6 if size else None


def _worst(entries: Sequence[ArrayDeviation]) -> float | str | None:
    """Return the largest relative deviation of what was checked, or a word."""
    checked = [entry.relative for entry in entries if entry.tolerance is not None]
    finite = [relative for relative in checked if relative is not None]
    if len(finite) < len(checked):
        return "unknown"
    if finite:
        return max(finite)
    return "not checked" if entries else None


def remarks(report: Report) -> Iterator[str]:
    """Yield remarks on the start, the reference, failures, and what was left out."""
    start = report.start_sha256
    results = _named_results(report)
    started = [(name, r) for name, r in results if r.start_sha256]
    others = ", ".join(name for name, r in started if r.start_sha256 != start)
    if others:
        yield f"starting parameters: SHA-256 {start}, but different on {others}"
    elif started:
        yield f"starting parameters: bit-identical on every backend, SHA-256 {start}"
    yield from _warnings(report)
    zero_gradients = report.tolerance.zero_gradients
    if zero_gradients:
        yield (
            f"zero gradients up to rounding: {', '.join(zero_gradients)} (as for a "
            "bias before BatchNorm); they are checked relative to the largest of all "
            "gradients"
        )
    fast = [
        name
        for name, r in results
        if r.precision == "fast" and _multiplies_in_float32(r)
    ]
    if fast:
        yield f"fast has no effect on {', '.join(fast)}: products are float32 anyway"
    for name, r in results:
        if r.error is not None:
            yield f"failed: {name}: {r.error}"
    for each in report.left_out:
        where = f" on {each.machine}" if len(report.machines) > 1 else ""
        yield f"left out{where}: {each.reason}"


def _warnings(report: Report) -> Iterator[str]:
    """Yield remarks without which the verdicts are misunderstood."""
    reference = report.reference
    if reference.agrees is False:
        yield (
            f"THE REFERENCE IS WRONG: {reference.backend} in {reference.dtype} differs "
            "from the formulas themselves, so whole trainings cannot be compared with "
            "it; results computed from the same inputs are still checked correctly"
        )
    if reference.diverges:
        yield f"the training diverges: {reference.diverges}"


def _multiplies_in_float32(result: Result) -> bool:
    """Return whether all measured products are in full float32."""
    measured = result.measured_precision
    return measured is not None and not reduced_formats(to_json(measured))


# --- Markdown -------------------------------------------------------------------------


HOW_TO_READ = (
    "A deviation is the largest difference between two arrays: absolute, relative to "
    "the largest magnitude in the reference's array, and in ULPs, the spacing of the "
    "dtype at that magnitude. Outputs of layers, gradients, new states, updates and "
    "predictions are computed from the same inputs on both sides: those of the "
    "reference at the first, the middle and the last step. Losses, parameters and "
    "outputs after training belong to whole trainings.",
    "For results from the same inputs, rounding is measured. The reference is computed "
    "again with a random error added to each operation, as large as one rounding in "
    "the dtype of the backend. The tolerance is 4 times the resulting change of the "
    "worst element, plus ε times the largest element, where ε is the spacing of the "
    "dtype at 1. A result that deviates further differs. The usual causes are a lower "
    "precision inside multiplications (TF32) and errors in the code.",
    "For the training as a whole, roundings are counted. The tolerance is {formula}, "
    "where n is the number of roundings in a row that lead to a result. A sum counts "
    "as many as it has terms, any other operation counts one, and one step has "
    "{step_roundings:,}. The loss is checked at every step t, with n of t steps, "
    "relative to that step's loss and to what errors of the outputs do to it. "
    "Parameters, state and outputs are checked at the end, with n of all steps. The "
    "starting parameters must have the same bits. Roundings have random signs, so "
    "their sum exceeds the tolerance with a probability below 3e-14 (Higham "
    "& Mary, 2019). If rounding cannot be measured, as in a custom layer that accepts "
    "only NumPy arrays, results from the same inputs are checked by counting too: n is "
    "counted layer by layer, and predictions have {prediction_roundings:,}.",
    "If the training as a whole exceeds its tolerance, it is compared with control "
    "runs, in which nothing is changed but rounding. A deviation that rounding alone "
    "can cause is reported as not checked.",
    "The time of a step begins when its batch is on the device, and ends when the new "
    "parameters have their values. The first step, which may compile, is listed "
    "separately. The column 25-75 % is the range between the quartiles of the other "
    "steps. Memory is the peak that the device reports. If it reports none, it is the "
    "predicted peak of a step: parameters, state, moments, what is saved for backward, "
    "and temporary arrays.",
    "A strict backend has to multiply float32 numbers as float32; a fast one may "
    "convert them to TensorFloat-32. Such settings do not always take effect, so the "
    "format is measured, with products whose result depends on it. They are run "
    "eagerly and compiled: products of matrices, of stacks of matrices, and "
    "convolutions.",
)


def _markdown(report: Report) -> str:
    task = report.workload
    reference = report.reference
    results = _named_results(report)
    verdicts = (f"- **{_escape(name)}** {_escape(sentence(r))}" for name, r in results)
    parts = [
        f"# The same training on every backend: {task.name}",
        f"**{_escape(headline(report))}.**",
        f"{task.about}.",
        f"    {task.model}",
        f"{task.parameters:,} parameters, {task.loss}, {task.optimizer}; "
        f"{task.training_examples:,} training examples in batches of "
        f"{task.batch_size}, {task.test_examples:,} test examples; seed {task.seed}.",
        "Every run starts from the same weights, draws the same masks and sees the "
        f"data in the same order; so does the reference, on {reference.backend} in "
        f"{reference.dtype}.",
        "\n".join(verdicts),
    ]
    if report.differences:
        listed = "\n".join(f"- {_escape(line)}" for line in report.differences)
        parts += ["## Differences between machines and settings", listed]
    for title, columns, rows in overview(report):
        parts += [f"## {title[0].upper()}{title[1:]}", markdown_table(columns, rows)]
    parts.append("\n".join(f"- {_escape(line)}" for line in remarks(report)))
    tolerance = vars(report.tolerance)
    parts += ["## How to read this"]
    parts += [each.format(**tolerance) for each in HOW_TO_READ]
    parts += ["## Roundings in one step, and their tolerance"]
    parts += [markdown_table(*roundings(report))]
    if report.layer_costs:
        title, columns, rows, notes = layer_costs(report)
        parts += [f"## {title}", markdown_table(columns, rows), *notes]
    columns, rows = batch_timings(report)
    if rows:
        parts += ["## Milliseconds per step, by batch size"]
        parts += [markdown_table(columns, rows)]
    columns = ["array", "absolute", "relative", "ULPs", "tolerance"]
    for name, r in results:
        if r.deviations is not None:
            parts += [f"## Deviations of {name}"]
            parts += [markdown_table(columns, _details(r.deviations))]
    parts += ["## Environment", markdown_table(*environments(report))]
    return "\n\n".join(parts) + "\n"


def roundings(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: the roundings of each layer, and their tolerance."""
    tolerance = report.tolerance
    columns = ["layer", "", "n, outputs", "n, gradients"]
    for dtype in tolerance.epsilon:
        columns += [f"outputs, {dtype}", f"gradients, {dtype}"]
    rows = []
    for each in tolerance.layers:
        chains = [each.output_roundings, each.gradient_roundings]
        row: Row = [each.layer or "the model", _short(each.about), *chains]
        for epsilon in tolerance.epsilon.values():
            row += [n and 4.0 * epsilon * n**0.5 for n in chains]
        rows.append(row)
    return columns, rows


def layer_costs(report: Report) -> tuple[str, list[str], list[Row], list[str]]:
    """Return title, columns, rows and notes: memory and operations of each layer."""
    layers = tuple([LayerRow(**vars(each)) for each in report.layer_costs])
    costs = Summary(layers, report.workload.batch_size)
    columns, rows = costs.cells()
    dtype = next(iter(report.tolerance.epsilon))
    return f"Memory and operations by layer, in {dtype}", columns, rows, costs.remarks()


def batch_timings(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: milliseconds per step, by batch size."""
    times = {
        name: {batch.size: batch.step_ms for batch in r.batches or ()}
        for name, r in _named_results(report)
    }
    sizes = sorted(set().union(*times.values()))
    rows = [
        [name, *(by_size.get(size) for size in sizes)]
        for name, by_size in times.items()
    ]
    return ["backend", *map(str, sizes)], rows if sizes else []


def environments(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: a row for each setting, a column for each machine."""
    machines = {m.label: settings_of(m.environment) for m in report.machines}
    names = dict.fromkeys(name for settings in machines.values() for name in settings)
    rows = [[name, *(each.get(name) for each in machines.values())] for name in names]
    return ["setting", *(machines if len(machines) > 1 else ["value"])], rows


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


_DETAILS = {
    "layers": "output of {}",
    "loss": "loss of one step",
    "gradients": "gradient of {}",
    "states": "new state {}",
    "updates": "update of {}",
    "predictions": "prediction {}",
    "losses": "loss, in training",
    "parameters": "{} after training",
    "trained_state": "state {} after training",
    "outputs": "outputs {} after training",
}


def _details(deviations: Deviations) -> list[Row]:
    """Return a row for each array that was compared."""
    rows = {}
    for group, name, entry in deviations.arrays():
        label = _DETAILS[group].format(name or "the model")
        figures = entry.absolute, entry.relative, entry.ulps
        cells = [_or(each, "unknown") for each in figures]
        rows[label] = [label, *cells, _or(entry.tolerance, "not checked")]
    return list(rows.values())


def _or(number: float | None, otherwise: str) -> float | str:
    return otherwise if number is None else number


def settings_of(environment: Environment) -> dict[str, Any]:
    """Return all settings by name, with versions and variables among them."""
    settings = vars(environment) | environment.versions | environment.variables
    return {
        name: value for name, value in settings.items() if not isinstance(value, dict)
    }


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
