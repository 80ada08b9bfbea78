"""Report: what `compare` found, as text for a terminal, Markdown, and JSON."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..tables import table

__all__ = ["summary", "write"]

Row = list[Any]


def summary(report: dict[str, Any]) -> str:
    """Text for a terminal: two tables, and a line for whatever went wrong or was left out."""
    parts = [table(columns, rows, title) for title, columns, rows in _overview(report)]
    return "\n\n".join([*parts, "\n".join(_remarks(report))])


def write(report: dict[str, Any], folder: str | os.PathLike) -> list[Path]:
    """Put report.json and report.md into `folder`, made if need be; each is whole or not there.

    Raises
    ------
    OSError
        If they cannot be written; older ones stay as they were.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "report.md": _markdown(report),
    }
    beside: list[tuple[Path, Path]] = []
    try:
        for name, text in texts.items():
            beside.append((folder / f".{name}.{os.getpid()}", folder / name))
            with beside[-1][0].open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for new, path in beside:
            os.replace(new, path)
    finally:
        for new, _ in beside:
            new.unlink(missing_ok=True)
    return [path for _, path in beside]


def _overview(report: dict[str, Any]) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Title, columns and rows of each table: a backend and device a row."""
    results, reference = report["results"], report["reference"]
    columns = ["backend", "hardware", "version", "dtype", "test accuracy", "final loss"]
    columns += ["ms per step", "middle half", "first step, ms", "samples/s"]
    rows = [
        [
            _name(r),
            *(r[key] for key in ("hardware", "version", "dtype", "test_accuracy", "final_loss")),
            r["step_ms"],
            r["step_ms_quartiles"] and "{:.4g} to {:.4g}".format(*r["step_ms_quartiles"]),
            r["first_step_ms"],
            r["samples_per_second"] and round(r["samples_per_second"]),
        ]
        for r in results
    ]
    same = ["reference", None, None, reference["dtype"]]
    rows.append([*same, reference["test_accuracy"], reference["final_loss"], *[None] * 4])
    task = report["workload"]
    title = f"after {task['steps']:,} steps of {task['name']} ({task['epochs']} epochs)"
    yield title, columns, rows

    columns = ["backend", "loss", "outputs", "gradients", "parameters", "worst in ULPs", "verdict"]
    rows = []
    for r in results:
        found = r["deviations"]
        figures: list[Any] = [None] * 5
        if found is not None:
            groups = [[found["losses"]], [found["outputs"]]]
            groups += [list(found[key].values()) for key in ("gradients", "parameters")]
            worst = [_worst(group, "relative") for group in groups]
            figures = [*worst, _worst([d for group in groups for d in group], "ulps")]
        rows.append([_name(r), *figures, r["verdict"]])
    title = f"largest relative deviation from the {reference['dtype']} reference"
    yield title, columns, rows


def _worst(deviations: Sequence[dict[str, float | None]], unit: str) -> float | None:
    """The largest; None, which stands for no number at all, is worse than any."""
    found = [value for deviation in deviations if (value := deviation[unit]) is not None]
    return max(found) if len(found) == len(deviations) else None


def _name(result: dict[str, Any]) -> str:
    return ":".join(filter(None, (result["backend"], result["device"])))


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    sha256 = report["start_sha256"]
    started = [r for r in report["results"] if r["start_sha256"]]
    others = [_name(r) for r in started if r["start_sha256"] != sha256]
    if others:
        yield f"starting parameters: {sha256}, but not on {', '.join(others)}"
    elif started:
        yield f"starting parameters: bit-identical on every backend, SHA-256 {sha256}"
    for r in report["results"]:
        if r["error"] is not None:
            yield f"failed: {_name(r)}: {r['error']}"
    for r in report["left_out"]:
        yield f"left out: {r['reason']}"


# --- Markdown ---------------------------------------------------------------------------


_READING = """\
A deviation is the largest difference in an array: absolute, relative to the largest magnitude in
the reference's array, and in ULPs, the spacing of the dtype at that magnitude. Outputs are those
for the test set after the last step, gradients those of the first step, parameters those after
the last.

The tolerance at step t is {formula} with ε = {epsilon:.4g} and n = {chain}, the roundings that
follow one another in a step: {first_step:.4g} at the first step, {last_step:.4g} at the last.
The loss is held to it at every step, relative to its largest value; gradients at the first step;
outputs and parameters at the last; and the starting parameters must be the same bits. Leaving it
means that rounding in this dtype does not explain the difference: look for a lower precision
inside multiplications (TF32), an error, or a network that magnifies rounding, as kinks do.

A step is timed from a batch that lies on the device until the new parameters have their values.
The first one, which compiles where a library compiles, stands apart; the middle half lies
between the quartiles of the others."""


def _markdown(report: dict[str, Any]) -> str:
    task, reference = report["workload"], report["reference"]
    parts = [
        f"# The same training on every backend: {task['name']}",
        f"{task['about']}.",
        f"    {task['model']}",
        f"{task['parameters']:,} parameters, {task['loss']}, {task['optimizer']}; "
        f"{task['training_examples']:,} examples to train on in batches of {task['batch_size']}, "
        f"{task['test_examples']:,} to test; seed {task['seed']}.",
        "Every run starts from the same weights, draws the same masks and meets the data in the "
        f"same order; so does the reference, on {reference['backend']} in {reference['dtype']}.",
    ]
    for title, columns, rows in _overview(report):
        parts += [f"## {title[0].upper()}{title[1:]}", _grid(columns, rows)]
    parts.append("\n".join(f"- {_escape(line)}" for line in _remarks(report)))
    parts += ["## How to read this", _READING.format(**report["tolerance"])]
    for r in report["results"]:
        if r["deviations"] is not None:
            columns = ["array", "absolute", "relative", "ULPs"]
            parts += [f"## Deviations of {_name(r)}", _grid(columns, _details(r["deviations"]))]
    parts += ["## Environment", _grid(["setting", "value"], list(_flat(report["environment"])))]
    return "\n\n".join(parts) + "\n"


def _details(deviations: dict[str, Any]) -> list[Row]:
    named = {"losses": deviations["losses"], "outputs": deviations["outputs"]}
    named |= {f"gradient of {name}": found for name, found in deviations["gradients"].items()}
    named |= {f"parameter {name}": found for name, found in deviations["parameters"].items()}
    units = ("absolute", "relative", "ulps")
    return [[name, *(found[unit] for unit in units)] for name, found in named.items()]


def _flat(data: dict[str, Any]) -> Iterator[Row]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield [name, value]


def _grid(columns: list[str], rows: list[Row]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
