"""The answer: the verdict on all runs in one sentence."""

from collections.abc import Callable, Sequence
from typing import Any

from ..schema import Report, Result, Status
from .names import first_few, joined, named_results
from .repeats import only_bits_differ

__all__ = ["headline"]


def headline(report: Report) -> str:
    """Return the verdict on all runs in one sentence, without a full stop."""
    named = named_results(report)
    by_status: dict[Status, list[tuple[str, Result]]] = {}
    for name, r in named:
        by_status.setdefault(r.status, []).append((name, r))
    devices = {r.name for r in report.results}
    kind = "backends" if len(devices) == len(named) else "runs"
    clauses = [_missing(report)] if report.unfinished else []
    if report.reference.agrees is False:
        clauses.append(
            "The reference is wrong, so whole trainings cannot be compared with it"
        )
    differs = [
        (name, r) for name, r in by_status.get("differs", []) if not only_bits_differ(r)
    ]
    unrepeated = [each for each in by_status.get("differs", []) if each not in differs]
    if len(differs) == 1:
        ((name, r),) = differs
        clauses.append(f"{name} differs by more than rounding {_place(r)}")
    elif differs:
        listed = "; ".join(_grouped(differs, _place))
        count = _all_of(differs, kind)
        if len(differs) < len(named):
            count = f"{len(differs)} of {len(named)} {kind}"
        clauses.append(f"{count} differ by more than rounding: {listed}")
    if len(differs) == len(named) and _have_one_cause([r for _, r in differs]):
        clauses.append(
            "the place is the same on all of them, so check this layer's code"
        )
    clauses += [f"{name} {r.verdict}" for name, r in unrepeated]
    clauses += _grouped(by_status.get("failed", []), _failure, kind, len(named))
    clauses += _grouped(by_status.get("not checked", []), _because, kind, len(named))
    agree = by_status.get("agrees", [])
    if agree:
        clauses.append(_agreeing(report, [name for name, _ in agree], kind))
    return "; ".join([*clauses[:1], *map(_inside_a_sentence, clauses[1:])])


def _have_one_cause(results: list[Result]) -> bool:
    """Return whether several libraries differ first in the same result of a layer.

    Then the cause is probably in the code that they share.
    """
    places = {(r.differences[0].step, r.differences[0].description) for r in results}
    is_in_layer = all(r.differences[0].layer for r in results)
    libraries = {r.backend for r in results}
    return len(libraries) > 1 and len(places) == 1 and is_in_layer


def _inside_a_sentence(clause: str) -> str:
    """Return a clause without the capital with which a sentence begins."""
    begins = clause.startswith(("Both ", "All "))
    return clause[0].lower() + clause[1:] if begins else clause


def _missing(report: Report) -> str:
    """Say how many runs are missing, and which."""
    missing = report.unfinished
    total = len(report.results) + len(missing)
    are = "is" if len(missing) == 1 else "are"
    text = f"NOT COMPLETE: {len(missing)} of {total} runs {are} missing"
    return f"{text} ({first_few(list(missing), 3)})"


def _agreeing(report: Report, agree: list[str], kind: str) -> str:
    """Name or count the runs that agree with the reference."""
    if len(agree) < len(report.results):
        if len(agree) == 1:
            return f"{agree[0]} agrees"
        return f"the other {len(agree)} {kind} agree"
    over = f"with the {report.reference.dtype} reference"
    over += f" over {report.workload.steps:,} steps"
    if any(r.half_precision for r in report.results):
        over += ", those in half precision in single steps"
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
    place = f"{since}, first in {first.description}"
    strict, but, formats = (result.precision_issue or "").partition(", but multiplies ")
    return (
        f"{place}; it multiplies {formats}, although it is {strict}" if but else place
    )


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
        what = f"agrees, but {first_few(same, 2)} cannot be checked"
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
