"""Merge reports of several machines or settings, and describe how they differ."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core import precisions
from .comparison import overall
from .deviation import tolerance
from .folders import report_file
from .report import Comparison
from .report.merged import differing_settings, losses_compared
from .report.names import joined, names
from .schema import SCHEMA, Report
from .workloads import CannotCompare

__all__ = ["merge", "read"]


def read(path: Path) -> Comparison:
    """Read the report in a file.

    Raises
    ------
    CannotCompare
        If the file cannot be read, or is not a report of this schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotCompare(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CannotCompare(f"{path} is not JSON: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema is None:
        raise CannotCompare(f"{path} is not a report.json of `agnostic-nn compare`")
    if schema != SCHEMA:
        raise CannotCompare(
            f"{path} has schema {schema}, and only reports of schema {SCHEMA} can be "
            "merged: create it again with this version"
        )
    try:
        return Comparison.from_json(data)
    except ValueError as error:
        raise CannotCompare(
            f"{path} is not a report.json of `agnostic-nn compare`, or is damaged: "
            f"{error}"
        ) from error


def merge(
    files: Sequence[str | os.PathLike[str]], labels: Sequence[str] | None = None
) -> Comparison:
    """Merge the reports in these files into one, with a label for each machine.

    A folder stands for its report.json, or for that of the latest run in it.

    Without `labels` a machine is called by its processor, or by its file if several
    machines have the same processor. The machines of a merged report keep their labels.

    Raises
    ------
    CannotCompare
        If a file cannot be read or its training differs from the first one's (the
        message lists all differences); if there are not as many labels as files, or
        labels are repeated.
    """
    paths = [Path(file) for file in files]
    reports = [read(report_file(path)) for path in paths]
    if len(reports) < 2:
        raise CannotCompare("expected two reports or more to merge")
    first = reports[0]
    for path, other in zip(paths[1:], reports[1:], strict=True):
        differences = list(_differences(first, other))
        if differences:
            listed = "; ".join(differences)
            raise CannotCompare(f"{path} cannot be compared with {paths[0]}: {listed}")
    renamed = [
        _with_labels(report, new)
        for report, new in zip(
            reports, _new_labels(paths, reports, labels), strict=True
        )
    ]
    results = tuple([each for report in renamed for each in report.results])
    tolerances = [report.tolerance for report in reports]
    epsilon = {
        dtype: value for each in tolerances for dtype, value in each.epsilon.items()
    }
    zero_gradients = {name for each in tolerances for name in each.zero_gradients}
    merged = replace(
        first,
        verdict=overall(results),
        tolerance=replace(
            first.tolerance,
            epsilon=epsilon,
            zero_gradients=tuple(sorted(zero_gradients)),
        ),
        layer_costs=next((r.layer_costs for r in reports if r.layer_costs), ()),
        unfinished=tuple([each for report in reports for each in report.unfinished]),
        results=results,
        left_out=tuple([each for report in renamed for each in report.left_out]),
        machines=tuple([each for report in renamed for each in report.machines]),
    )
    return replace(merged, differences=(*_settings(merged), *_runs(merged)))


def _with_labels(report: Comparison, new: dict[str, str]) -> Comparison:
    """Return a report whose machines have new labels, by the old ones."""
    return replace(
        report,
        results=tuple([replace(r, machine=new[r.machine]) for r in report.results]),
        left_out=tuple([replace(b, machine=new[b.machine]) for b in report.left_out]),
        machines=tuple([replace(m, label=new[m.label]) for m in report.machines]),
    )


# --- whether reports can be merged ----------------------------------------------------


def _differences(report: Report, other: Report) -> Iterator[str]:
    """Yield each difference that forbids merging two reports, with both values."""
    for name, value in vars(report.workload).items():
        other_value = getattr(other.workload, name)
        # the description may contain file names
        if value != other_value and name != "about":
            values = " and ".join(map(_short, (value, other_value)))
            yield f"{name.replace('_', ' ')} ({values})"
    if report.start_sha256 != other.start_sha256:
        hashes = f"{report.start_sha256[:12]} and {other.start_sha256[:12]}"
        yield f"starting parameters (SHA-256 {hashes})"
    ours = report.tolerance
    theirs = other.tolerance
    if (ours.step_roundings, ours.layers) != (theirs.step_roundings, theirs.layers):
        counts = f"{ours.step_roundings:,} and {theirs.step_roundings:,}"
        yield f"counted roundings ({counts} per step)"
    yield from _reference_differences(report, other)


def _reference_differences(report: Report, other: Report) -> Iterator[str]:
    """Yield the first step at which the losses of both references differ, if any."""
    losses = [np.asarray(r.reference.losses, np.float64) for r in (report, other)]
    if losses[0].shape != losses[1].shape:
        return  # the difference of the workloads is reported already
    epsilon = precisions.epsilon(report.reference.dtype)
    chain = report.tolerance.step_roundings
    scale = float(np.max(np.abs(losses[0]), initial=0.0))
    pairs = zip(*(each.tolist() for each in losses), strict=True)
    for step, (a, b) in enumerate(pairs, 1):
        # Twice the tolerance, because both values are rounded.
        near = abs(a - b) <= 2.0 * tolerance(epsilon, chain * step) * scale
        if not near and not (math.isnan(a) and math.isnan(b)):
            yield f"the reference's loss at step {step} ({a!r} and {b!r})"
            return


def _short(value: Any, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _new_labels(
    paths: Sequence[Path], reports: Sequence[Report], labels: Sequence[str] | None
) -> list[dict[str, str]]:
    """Return, for each report, the new label of each of its machines."""
    if labels is not None and len(labels) != len(reports):
        raise CannotCompare(
            f"expected {len(reports)} labels, one per report, got {len(labels)}"
        )
    if labels is not None and len(set(labels)) != len(labels):
        raise CannotCompare(f"expected different labels, got {', '.join(labels)}")
    old = [[machine.label for machine in report.machines] for report in reports]
    all_labels = [label for each in old for label in each]
    if labels is None and len(set(all_labels)) == len(all_labels):
        return [{label: label for label in each} for each in old]
    names_of_reports = _file_names(paths) if labels is None else labels
    return [
        {label: new if len(each) == 1 else f"{new}, {label}" for label in each}
        for new, each in zip(names_of_reports, old, strict=True)
    ]


def _file_names(paths: Sequence[Path]) -> list[str]:
    """Return a distinct name for each file: its stem, its folder, or its whole path."""
    for candidates in (
        [path.stem for path in paths],
        [path.absolute().parent.name for path in paths],
        [str(path) for path in paths],
    ):
        if len(set(candidates)) == len(candidates):
            return candidates
    return [f"{path} ({i})" for i, path in enumerate(paths, 1)]


# --- differences between machines and settings ----------------------------------------


def _settings(report: Report) -> Iterator[str]:
    """Yield a sentence for each setting that is not the same everywhere."""
    for setting, values in differing_settings(report):
        machines: dict[str, list[str]] = {}
        for label, value in values.items():
            machines.setdefault(value, []).append(label)
        listed = ", ".join(f"{value} ({joined(on)})" for value, on in machines.items())
        yield f"{setting}: {listed}."


_STATUS_SENTENCES = {
    "agrees": "All of them agree with the reference: their differences are rounding.",
    "differs": "There are differences beyond rounding in {}.",
    "not checked": "Not everything could be checked in {}.",
}


def _runs(report: Report) -> Iterator[str]:
    """Yield sentences that compare the times, deviations, verdicts and losses."""
    results = list(zip(names(report), report.results, strict=True))
    timed = [(r.step_ms, name) for name, r in results if r.step_ms is not None]
    timed.sort(key=lambda pair: pair[0])
    if len(timed) > 1:
        (least, fastest), *others = timed
        ratios = [(float(f"{ms / least:.2g}"), name) for ms, name in others]
        rest = joined([f"{ratio:,g} times as long in {name}" for ratio, name in ratios])
        yield f"A step takes {least:.3g} ms in {fastest}, the fastest, and {rest}."
    deviations = [
        (r.max_relative_deviation, name)
        for name, r in results
        if r.max_relative_deviation is not None
    ]
    deviations.sort(reverse=True)
    if len(deviations) > 1:
        listed = joined(
            [f"{deviation:.2g} in {name}" for deviation, name in deviations]
        )
        yield f"The largest relative deviation from the reference is {listed}."
    for status, text in _STATUS_SENTENCES.items():
        with_status = [name for name, r in results if r.status == status]
        if with_status and (status != "agrees" or len(with_status) == len(results)):
            yield text.format(joined(with_status))
    yield from losses_compared(report)
