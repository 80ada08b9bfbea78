"""The verdict on one run in words, and remarks on the whole report."""

from collections.abc import Iterator

from ....core.policies import reduced_formats
from ..conversion import to_json
from ..schema import PROBED, TRAINED, Report, Result
from .names import first_few, joined, named_results
from .repeats import only_bits_differ, repeat_sentence

__all__ = ["commands", "remarks", "sentence", "warnings"]


def sentence(result: Result, *, with_command: bool = True) -> str:
    """Return the verdict on a run with its numbers, in words.

    with_command: end with the command that looks into the step in question.
    """
    if result.error is not None:
        return f"failed: {result.error}."
    parts = [f"{result.verdict}{_agreement(result)}{_time(result)}."]
    if result.status == "differs" and not only_bits_differ(result):
        parts += _difference(result)
    if result.repeats is not None:
        parts.append(repeat_sentence(result.repeats))
    if result.not_checked:
        parts.append(_not_checked(result))
    if result.command and with_command:
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


def _distinct(one: float, other: float) -> tuple[str, str]:
    """Format two numbers with two digits, or with as many as show that they differ."""
    for digits in range(2, 18):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def _difference(result: Result) -> Iterator[str]:
    """Say how large the first difference is, and whether single steps differ too."""
    first, *others = result.differences
    if first.relative is not None:
        far, limit = _distinct(first.relative, first.tolerance or 0.0)
        allowed = f"rounding in {result.dtype} explains at most {limit}"
        yield f"The relative deviation is {far}; {allowed}."
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
        f"{first_few(descriptions)} ({reason})"
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
    if not exceed:
        return ""
    about = "Control runs, trainings in which nothing is changed but rounding,"
    return f" {about} exceed the tolerance too: {listed}."


def _step_in_question(result: Result) -> int:
    """Return the step that the command of a result looks into."""
    steps = [each.step for each in result.differences]
    steps += [each.step for each in result.not_checked if each.quantity == "losses"]
    return max(1, steps[0])


def commands(report: Report) -> list[tuple[str, str]]:
    """Return what each command of a report is for, and the command."""
    groups: dict[tuple[int, str], list[str]] = {}
    for name, r in named_results(report):
        if r.command:
            groups.setdefault((_step_in_question(r), r.command), []).append(name)
    return [
        (f"To look into step {step:,} of {joined(group)}:", command)
        for (step, command), group in groups.items()
    ]


def remarks(report: Report) -> Iterator[str]:
    """Yield remarks on the start, the reference, and what was left out."""
    start = report.start_sha256
    results = named_results(report)
    started = [(name, r) for name, r in results if r.start_sha256]
    others = ", ".join(name for name, r in started if r.start_sha256 != start)
    if others:
        yield f"starting parameters: SHA-256 {start}, but different on {others}"
    elif started:
        yield f"starting parameters: bit-identical on every backend, SHA-256 {start}"
    yield from warnings(report)
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
    for each in report.left_out:
        where = f" on {each.machine}" if len(report.machines) > 1 else ""
        yield f"left out{where}: {each.reason}"


def warnings(report: Report) -> Iterator[str]:
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
