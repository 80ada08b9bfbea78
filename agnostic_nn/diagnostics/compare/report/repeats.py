"""Say in words and in a table whether each backend repeats its own bits."""

from typing import Any

from ..schema import ChangingPart, RepeatDifference, Repeats, Report, Result
from .names import joined, named_results

__all__ = ["only_bits_differ", "repeat_sentence", "repeats_table", "repeats_text"]

_AT_END = {
    "parameters": "{} after the last step",
    "trained_state": "the state {} after the last step",
    "outputs": "the outputs for the test set",
}


def only_bits_differ(result: Result) -> bool:
    """Return whether a run differs only in not repeating its bits, as it should."""
    return bool(result.differences) and result.differences[0].quantity == "repeats"


def repeat_sentence(repeats: Repeats) -> str:
    """Say whether a backend repeats its own bits; if not, where and by how much."""
    if repeats.first is None:
        return f"It repeats its own bits in {repeats.runs} runs."
    parts = [
        f"It does not repeat its own bits in {repeats.runs} runs: the first difference "
        f"is in {_what(repeats.first)}, {_size(repeats.first)}."
    ]
    if repeats.largest is not None and repeats.largest != repeats.first:
        largest = repeats.largest
        parts.append(
            f"The largest difference is in {_what(largest)}, {_size(largest)}."
        )
    if repeats.parts:
        parts.append(f"{_part(repeats.parts[0])}.")
    others = [part.description for part in repeats.parts[1:]]
    if others:
        do = "do" if len(others) > 1 else "does"
        named = others[:3] + ([f"{len(others) - 3} more"] if len(others) > 3 else [])
        parts.append(f"So {do} {joined(named)}.")
    if repeats.remark:
        parts.append(f"{repeats.remark[0].upper()}{repeats.remark[1:]}.")
    return " ".join(parts)


def repeats_text(report: Report) -> str:
    """Return one line on the runs that repeat their bits, and one for each other."""
    named = [(name, r.repeats) for name, r in named_results(report) if r.repeats]
    by_runs: dict[int, list[str]] = {}
    for name, repeats in named:
        if repeats.same_bits:
            by_runs.setdefault(repeats.runs, []).append(name)
    lines = []
    for runs, same in by_runs.items():
        repeat = "repeat their" if len(same) > 1 else "repeats its"
        lines.append(f"{joined(same)} {repeat} own bits in {runs} runs.")
    for name, repeats in named:
        if not repeats.same_bits:
            lines.append(f"{name}{repeat_sentence(repeats).removeprefix('It')}")
    return "\n".join(lines)


def repeats_table(report: Report) -> tuple[str, list[str], list[list[Any]]]:
    """Return title, columns and rows; a row for each run that was repeated."""
    columns = ["backend", "runs", "same bits", "first difference", "relative"]
    columns += ["ULPs", "tolerance", "part of a step", "operation", "calls that differ"]
    rows: list[list[Any]] = []
    for name, r in named_results(report):
        if r.repeats is None:
            continue
        same = "yes" if r.repeats.same_bits else "no"
        row: list[Any] = [name, r.repeats.runs, same]
        first = r.repeats.first
        cells: list[Any] = [None] * 4
        if first is not None:
            cells = [_what(first), first.relative, first.ulps, first.tolerance]
        # Each part has a row; the first one shares that of the run.
        parts = [_cells(part) for part in r.repeats.parts] or [[None] * 3]
        rows.append([*row, *cells, *parts[0]])
        rows += [[None] * 7 + part for part in parts[1:]]
    return "does each backend repeat its own bits?", columns, rows


def _cells(part: ChangingPart) -> list[Any]:
    calls = f"{part.changed} of {part.calls}"
    return [part.description, part.operation, calls]


def _what(difference: RepeatDifference) -> str:
    """Name what differs between two runs."""
    if difference.quantity == "losses":
        return f"the loss of step {difference.step:,}"
    return _AT_END[difference.quantity].format(difference.name)


def _size(difference: RepeatDifference) -> str:
    """Say how large a difference is, and how large it is in units of its tolerance."""
    if difference.relative is None or difference.ulps is None:
        return "in NaN or infinity"
    size = f"by {difference.relative:.2g} ({_ulps(difference.ulps)})"
    if not difference.tolerance:
        return size
    ratio = difference.relative / difference.tolerance
    return f"{size}, {ratio:.2g} of what rounding explains"


def _part(part: ChangingPart) -> str:
    """Say that a part of a step does not repeat, and what inside it."""
    of_calls = f"{part.changed} of {part.calls} calls"
    text = f"From the same inputs, {part.description} of step {part.step:,} changes"
    if part.only_when_compiled_again:
        text += " when it is compiled again"
    else:
        text += f" in {of_calls}"
    if part.ulps is not None:
        text += f", by up to {_ulps(part.ulps)}"
    return text + (f", first in {part.operation}" if part.operation else "")


def _ulps(ulps: float) -> str:
    number = f"{ulps:.2g}"
    return f"{number} ULP" if number == "1" else f"{number} ULPs"
