"""Merging: reports of several machines or settings as one, and what their differences meant."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .comparison import LATER, SCHEMA, amber, overall
from .deviation import tolerance
from .page import Comparison
from .report import flat, multiplied, names
from .workloads import CannotCompare

__all__ = ["merge", "read"]

PARTS = (  # of a report, without which there is nothing to merge
    *("workload", "start_sha256", "reference", "tolerance", "results", "left_out", "machines"),
)


def read(path: Path) -> dict[str, Any]:
    """The report in a file.

    Raises
    ------
    CannotCompare
        If there is no file, or it holds no report of this schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotCompare(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CannotCompare(f"{path} is no JSON: {error}") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema is None:
        raise CannotCompare(f"{path} is no report.json of this command")
    if schema != SCHEMA:
        raise CannotCompare(
            f"{path} is of schema {schema}, and only reports of schema {SCHEMA} can be merged: "
            "make it again with this version"
        )
    missing = [part for part in PARTS if not isinstance(report.get(part), dict | list | str)]
    if missing:
        lacks = ", ".join(missing)
        raise CannotCompare(f"{path} is no report.json of this command, or damaged: no {lacks}")
    results = [amber(dict.fromkeys(LATER) | result) for result in report["results"]]
    return {"ledger": []} | report | {"results": results}


def merge(paths: Sequence[Path], labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The reports in these files as one, of several machines, each called by a label.

    Without labels a machine is called after its processor, or after its file where several
    have the same; a report that was merged before keeps what it calls its machines.

    Raises
    ------
    CannotCompare
        If one cannot be read or compared with the first, which says all that differs; or the
        labels are not as many as the files, or not different.
    """
    reports = [read(path) for path in paths]
    if len(reports) < 2:
        raise CannotCompare("to merge takes two reports or more")
    first = reports[0]
    for path, other in zip(paths[1:], reports[1:], strict=True):
        differences = list(_differences(first, other))
        if differences:
            said = "; ".join(differences)
            raise CannotCompare(f"{path} is not comparable with {paths[0]}: {said}")
    called = _called(paths, reports, labels)
    merged = first | {"results": [], "left_out": [], "machines": []}
    for report, new in zip(reports, called, strict=True):
        for part in ("results", "left_out"):
            merged[part] += [each | {"machine": new[each["machine"]]} for each in report[part]]
        merged["machines"] += [m | {"label": new[m["label"]]} for m in report["machines"]]
    told = [report["tolerance"] for report in reports]
    epsilon = {dtype: value for one in told for dtype, value in one["epsilon"].items()}
    nothing = sorted({name for one in told for name in one["nothing"]})
    merged["tolerance"] = first["tolerance"] | {"epsilon": epsilon, "nothing": nothing}
    merged["ledger"] = next((r["ledger"] for r in reports if r["ledger"]), [])
    merged["verdict"] = overall(merged["results"])
    merged["differences"] = [*_settings(merged), *_runs(merged)]
    return Comparison(merged)


# --- what can be compared ---------------------------------------------------------------


def _differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """What two reports must have in common and have not, each with both values."""
    for key in dict.fromkeys([*one["workload"], *other["workload"]]):
        values = [report["workload"].get(key) for report in (one, other)]
        if values[0] != values[1] and key != "about":  # which may tell of files
            yield f"{key.replace('_', ' ')} ({' and '.join(map(_short, values))})"
    hashes = [report["start_sha256"] for report in (one, other)]
    if hashes[0] != hashes[1]:
        yield f"starting parameters (SHA-256 {' and '.join(h[:12] for h in hashes)})"
    counted = [[report["tolerance"][k] for k in ("step", "layers")] for report in (one, other)]
    if counted[0] != counted[1]:
        yield f"roundings that tolerances count ({counted[0][0]:,} and {counted[1][0]:,} a step)"
    yield from _of_references(one, other)


def _of_references(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    losses = [np.asarray(r["reference"]["losses"], np.float64) for r in (one, other)]
    if losses[0].shape != losses[1].shape:
        return  # the workloads say so
    epsilon, chain = float(np.finfo(one["reference"]["dtype"]).eps), one["tolerance"]["step"]
    scale = float(np.max(np.abs(losses[0]), initial=0.0))
    for step, (a, b) in enumerate(zip(*(each.tolist() for each in losses), strict=True), 1):
        near = abs(a - b) <= 2.0 * tolerance(epsilon, chain * step) * scale  # both are rounded
        if not near and not (math.isnan(a) and math.isnan(b)):
            yield f"the reference's loss at step {step} ({a!r} and {b!r})"
            return


def _short(value: Any, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _called(
    paths: Sequence[Path], reports: list[dict[str, Any]], labels: Sequence[str] | None
) -> list[dict[str, str]]:
    """For each report what its machines are called from now on."""
    if labels is not None and len(labels) != len(reports):
        raise CannotCompare(f"{len(reports)} reports take as many labels, got {len(labels)}")
    if labels is not None and len(set(labels)) != len(labels):
        raise CannotCompare(f"labels must be different, got {', '.join(labels)}")
    old = [[m["label"] for m in report["machines"]] for report in reports]
    every = [label for each in old for label in each]
    if labels is None and len(set(every)) == len(every):
        return [{label: label for label in each} for each in old]
    own = _files(paths) if labels is None else labels
    return [
        {label: new if len(each) == 1 else f"{new}, {label}" for label in each}
        for new, each in zip(own, old, strict=True)
    ]


def _files(paths: Sequence[Path]) -> list[str]:
    """What tells files apart: their names, else those of their folders, else all of it."""
    for told in (lambda p: p.stem, lambda p: p.absolute().parent.name, lambda p: str(p)):
        found = [told(path) for path in paths]
        if len(set(found)) == len(found):
            return found
    return [f"{path} ({i})" for i, path in enumerate(paths, 1)]


# --- what differs, and what it meant ----------------------------------------------------


def _settings(report: dict[str, Any]) -> Iterator[str]:
    """A sentence for each setting of the environment that is not the same everywhere."""
    found = {m["label"]: dict(flat(m["environment"])) for m in report["machines"]}
    for key in dict.fromkeys(key for each in found.values() for key in each):
        if key != "date":
            yield from _told(key, {label: each.get(key) for label, each in found.items()})
    runs: dict[str, dict[str, Any]] = {}
    for r in report["results"]:
        for key in ("hardware", "version", "precision", "deterministic"):
            runs.setdefault(f"{key} of {_name(r)}", {})[r["machine"]] = r[key]
        if r["probe"] is not None:
            said = ", ".join(f"{multiplied(names)} {how}" for how, names in r["probe"].items())
            runs.setdefault(f"products of {_name(r)}", {})[r["machine"]] = said
    for key, values in runs.items():
        yield from _told(key, values)
    have = {
        truth: [
            f"{_name(r)} ({r['machine']})"
            for r in report["results"]
            if r["has_float64"] is truth and r["dtype"] == "float32"
        ]
        for truth in (True, False)
    }
    if have[True] and have[False]:
        yield f"float64 is to be had in {_and(have[True])}, but not in {_and(have[False])}."


def _told(key: str, values: dict[str, Any]) -> Iterator[str]:
    """A sentence that says which value is where, if there are several."""
    where: dict[str, list[str]] = {}
    for label, value in values.items():
        where.setdefault("not set" if value is None else str(value), []).append(label)
    if len(where) > 1:
        yield f"{key}: {', '.join(f'{value} ({_and(on)})' for value, on in where.items())}."


def _runs(report: dict[str, Any]) -> Iterator[str]:
    """What the runs came to beside each other: in time, in deviation, in losses."""
    pairs = list(zip(names(report), report["results"], strict=True))
    timed = sorted(
        ((r["step_ms"], name) for name, r in pairs if r["step_ms"] is not None),
        key=lambda one: one[0],
    )
    if len(timed) > 1:
        (least, quickest), *others = timed
        ratios = [(float(f"{ms / least:.2g}"), name) for ms, name in others]
        rest = _and([f"{ratio:,g} times as long in {name}" for ratio, name in ratios])
        yield f"A step takes {least:.3g} ms in {quickest}, which is the quickest, and {rest}."
    far = [(r["max_relative_deviation"], n, r) for n, r in pairs if r["deviations"] is not None]
    known = sorted(((d, n) for d, n, _ in far if d is not None), reverse=True)
    if len(known) > 1:
        each = _and([f"{d:.2g} in {name}" for d, name in known])
        yield f"Numbers lie off the reference by at most {each}."
    by = {status: [n for n, r in pairs if r["status"] == status] for status in _TOLD}
    for status, names_of in by.items():
        if names_of and (status != "agrees" or len(names_of) == len(pairs)):
            yield _TOLD[status].format(_and(names_of))
    yield from _losses(pairs)


_TOLD = {
    "agrees": "All of them agree with the reference: their differences are rounding.",
    "differs": "More than rounding is different in {}.",
    "not judged": "Not all could be judged in {}.",
}


def _losses(pairs: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Which runs have the same losses to the last bit, and where the others part."""
    groups: dict[tuple, list[str]] = {}
    for name, r in pairs:
        if r["losses"] is not None:
            groups.setdefault((r["dtype"], *r["losses"]), []).append(name)
    for same in groups.values():
        if len(same) > 1:
            yield f"The losses of {_and(same)} are the same to the last bit at every step."
    one, *others = groups.items() if groups else [((), [])]
    for losses, (name, *_) in others:
        if losses[0] != one[0][0]:
            continue
        step = next(t for t, (a, b) in enumerate(zip(one[0], losses, strict=True)) if a != b)
        yield f"The losses of {one[1][0]} and {name} first differ at step {step}."


def _name(result: dict[str, Any]) -> str:
    return ":".join(filter(None, (result["backend"], result["device"])))


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
