"""Merge reports of several machines or settings into one, and describe how they differ."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .comparison import SCHEMA, overall
from .deviation import tolerance
from .page import Comparison
from .report import flat, names, product_formats
from .workloads import CannotCompare

__all__ = ["merge", "read"]

REQUIRED = (
    *("workload", "start_sha256", "reference", "tolerance", "layer_costs"),
    *("results", "left_out", "machines"),
)


def read(path: Path) -> dict[str, Any]:
    """Read the report in a file.

    Raises
    ------
    CannotCompare
        If the file cannot be read, or is not a report of this schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotCompare(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CannotCompare(f"{path} is not JSON: {error}") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema is None:
        raise CannotCompare(f"{path} is not a report.json of `agnostic-nn compare`")
    if schema != SCHEMA:
        raise CannotCompare(
            f"{path} has schema {schema}, and only reports of schema {SCHEMA} can be "
            "merged: create it again with this version"
        )
    missing = [
        part for part in REQUIRED if not isinstance(report.get(part), dict | list | str)
    ]
    if missing:
        raise CannotCompare(
            f"{path} is not a report.json of `agnostic-nn compare`, or is damaged: it "
            f"has no {', '.join(missing)}"
        )
    return report


def merge(paths: Sequence[Path], labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Merge the reports in these files into one, with a label for each machine.

    Without `labels` a machine is called by its processor, or by its file if several
    machines have the same processor. The machines of a merged report keep their labels.

    Raises
    ------
    CannotCompare
        If a file cannot be read or its training differs from the first one's (the
        message lists all differences); if there are not as many labels as files, or
        labels are repeated.
    """
    reports = [read(path) for path in paths]
    if len(reports) < 2:
        raise CannotCompare("expected two reports or more to merge")
    first = reports[0]
    for path, other in zip(paths[1:], reports[1:], strict=True):
        differences = list(_differences(first, other))
        if differences:
            listed = "; ".join(differences)
            raise CannotCompare(f"{path} cannot be compared with {paths[0]}: {listed}")
    new_labels = _new_labels(paths, reports, labels)
    merged = first | {"results": [], "left_out": [], "machines": []}
    for report, new in zip(reports, new_labels, strict=True):
        for part in ("results", "left_out"):
            merged[part] += [
                each | {"machine": new[each["machine"]]} for each in report[part]
            ]
        merged["machines"] += [
            m | {"label": new[m["label"]]} for m in report["machines"]
        ]
    tolerances = [report["tolerance"] for report in reports]
    epsilon = {
        dtype: value for each in tolerances for dtype, value in each["epsilon"].items()
    }
    zero_gradients = sorted(
        {name for each in tolerances for name in each["zero_gradients"]}
    )
    merged["tolerance"] = first["tolerance"] | {
        "epsilon": epsilon,
        "zero_gradients": zero_gradients,
    }
    merged["layer_costs"] = next(
        (r["layer_costs"] for r in reports if r["layer_costs"]), []
    )
    merged["verdict"] = overall(merged["results"])
    merged["differences"] = [*_settings(merged), *_runs(merged)]
    return Comparison(merged)


# --- whether reports can be merged ----------------------------------------------------


def _differences(report: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """Yield each difference that forbids merging two reports, with both values."""
    for key in dict.fromkeys([*report["workload"], *other["workload"]]):
        values = [each["workload"].get(key) for each in (report, other)]
        # the description may contain file names
        if values[0] != values[1] and key != "about":
            yield f"{key.replace('_', ' ')} ({' and '.join(map(_short, values))})"
    hashes = [each["start_sha256"] for each in (report, other)]
    if hashes[0] != hashes[1]:
        yield f"starting parameters (SHA-256 {' and '.join(h[:12] for h in hashes)})"
    counts = [
        [each["tolerance"][key] for key in ("step_roundings", "layers")]
        for each in (report, other)
    ]
    if counts[0] != counts[1]:
        yield f"counted roundings ({counts[0][0]:,} and {counts[1][0]:,} per step)"
    yield from _reference_differences(report, other)


def _reference_differences(
    report: dict[str, Any], other: dict[str, Any]
) -> Iterator[str]:
    """Yield the first step at which the losses of both references differ, if there is one."""
    losses = [np.asarray(r["reference"]["losses"], np.float64) for r in (report, other)]
    if losses[0].shape != losses[1].shape:
        return  # the difference of the workloads is reported already
    epsilon = float(np.finfo(report["reference"]["dtype"]).eps)
    chain = report["tolerance"]["step_roundings"]
    scale = float(np.max(np.abs(losses[0]), initial=0.0))
    for step, (a, b) in enumerate(
        zip(*(each.tolist() for each in losses), strict=True), 1
    ):
        # Twice the tolerance, because both values are rounded.
        near = abs(a - b) <= 2.0 * tolerance(epsilon, chain * step) * scale
        if not near and not (math.isnan(a) and math.isnan(b)):
            yield f"the reference's loss at step {step} ({a!r} and {b!r})"
            return


def _short(value: Any, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _new_labels(
    paths: Sequence[Path], reports: list[dict[str, Any]], labels: Sequence[str] | None
) -> list[dict[str, str]]:
    """Return, for each report, the new label of each of its machines."""
    if labels is not None and len(labels) != len(reports):
        raise CannotCompare(
            f"expected {len(reports)} labels, one per report, got {len(labels)}"
        )
    if labels is not None and len(set(labels)) != len(labels):
        raise CannotCompare(f"expected different labels, got {', '.join(labels)}")
    old = [[m["label"] for m in report["machines"]] for report in reports]
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


def _settings(report: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each setting that is not the same everywhere."""
    environments = {
        m["label"]: dict(flat(m["environment"])) for m in report["machines"]
    }
    for key in dict.fromkeys(key for each in environments.values() for key in each):
        if key != "date":
            values = {label: each.get(key) for label, each in environments.items()}
            yield from _setting(key, values)
    runs: dict[str, dict[str, Any]] = {}
    for r in report["results"]:
        for key in ("hardware", "version", "precision", "deterministic"):
            runs.setdefault(f"{key} of {_name(r)}", {})[r["machine"]] = r[key]
        measured = r["measured_precision"]
        if measured is not None:
            formats = [
                f"{product_formats(products)} {how}"
                for how, products in measured.items()
            ]
            runs.setdefault(f"products of {_name(r)}", {})[r["machine"]] = ", ".join(
                formats
            )
    for key, values in runs.items():
        yield from _setting(key, values)
    with_float64 = _runs_with_float64(report, True)
    without_float64 = _runs_with_float64(report, False)
    if with_float64 and without_float64:
        yield (
            f"float64 is available in {_and(with_float64)}, but not in "
            f"{_and(without_float64)}."
        )


def _runs_with_float64(report: dict[str, Any], available: bool) -> list[str]:
    return [
        f"{_name(r)} ({r['machine']})"
        for r in report["results"]
        if r["has_float64"] is available and r["dtype"] == "float32"
    ]


def _setting(key: str, values: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence on the values of a setting by machine, if they are not all the same."""
    machines: dict[str, list[str]] = {}
    for label, value in values.items():
        machines.setdefault("not set" if value is None else str(value), []).append(
            label
        )
    if len(machines) > 1:
        yield f"{key}: {', '.join(f'{value} ({_and(on)})' for value, on in machines.items())}."


_STATUS_SENTENCES = {
    "agrees": "All of them agree with the reference: their differences are rounding.",
    "differs": "There are differences beyond rounding in {}.",
    "not checked": "Not everything could be checked in {}.",
}


def _runs(report: dict[str, Any]) -> Iterator[str]:
    """Yield sentences that compare the runs: their times, deviations, verdicts and losses."""
    results = list(zip(names(report), report["results"], strict=True))
    timed = [(r["step_ms"], name) for name, r in results if r["step_ms"] is not None]
    timed.sort(key=lambda pair: pair[0])
    if len(timed) > 1:
        (least, fastest), *others = timed
        ratios = [(float(f"{ms / least:.2g}"), name) for ms, name in others]
        rest = _and([f"{ratio:,g} times as long in {name}" for ratio, name in ratios])
        yield f"A step takes {least:.3g} ms in {fastest}, the fastest, and {rest}."
    deviations = [
        (r["max_relative_deviation"], name)
        for name, r in results
        if r["deviations"] is not None and r["max_relative_deviation"] is not None
    ]
    deviations.sort(reverse=True)
    if len(deviations) > 1:
        listed = _and([f"{deviation:.2g} in {name}" for deviation, name in deviations])
        yield f"The largest relative deviation from the reference is {listed}."
    for status, text in _STATUS_SENTENCES.items():
        with_status = [name for name, r in results if r["status"] == status]
        if with_status and (status != "agrees" or len(with_status) == len(results)):
            yield text.format(_and(with_status))
    yield from _losses(results)


def _losses(results: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Say which runs have bit-identical losses, and where the losses of the others first differ."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, r in results:
        if r["losses"] is not None:
            groups.setdefault((r["dtype"], *r["losses"]), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            yield f"The losses of {_and(group)} are bit-identical at every step."
    if not groups:
        return
    (first_losses, (first_name, *_)), *others = groups.items()
    for losses, (name, *_) in others:
        if losses[0] != first_losses[0]:  # another dtype
            continue
        pairs = enumerate(zip(first_losses, losses, strict=True))
        step = next(t for t, (a, b) in pairs if a != b)
        yield f"The losses of {first_name} and {name} first differ at step {step}."


def _name(result: dict[str, Any]) -> str:
    return ":".join(filter(None, (result["backend"], result["device"])))


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
