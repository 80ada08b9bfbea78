"""The tables of a report, as columns and rows for text, Markdown and HTML."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ...summary import Row as LayerRow
from ...summary import Summary
from ..schema import (
    ArrayDeviation,
    Deviations,
    Environment,
    MeasuredPrecision,
    Memory,
    Report,
    Result,
)
from .how_to_read import ABOUT_TABLES
from .names import layer_order, named_results, names, with_class
from .repeats import only_bits_differ, repeats_table

__all__ = [
    "Row",
    "about_short_table",
    "about_table",
    "batch_timings",
    "details",
    "environments",
    "first_differences",
    "largest_ratio",
    "layer_costs",
    "overview",
    "product_formats",
    "roundings",
    "settings_of",
    "short_table",
    "short_verdict",
]

Row = list[Any]


def short_table(report: Report) -> tuple[list[str], list[Row]]:
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
        rows.append([name, r.dtype, short_verdict(r), largest_ratio(r), value, step_ms])
    reference = report.reference
    value = reference.test_metric if metric else reference.final_loss
    rows.append(["reference", reference.dtype, None, None, value, None])
    return columns, rows


def about_short_table(report: Report) -> str:
    """Say what was run, and explain the column that is not obvious."""
    task = report.workload
    dtype = report.reference.dtype
    return (
        f"Each run is {task.steps:,} steps of {task.name}, from the same weights and "
        f"on the same batches as the reference, which is NumPy in {dtype}. deviation / "
        "tolerance: the largest deviation from the reference, in units of what "
        "rounding explains; above 1 it is more than rounding."
    )


def first_differences(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: where each run that differs first does so."""
    columns = ["run", "first differs in", "from", "relative deviation"]
    columns += ["tolerance", "deviation / tolerance"]
    rows: list[Row] = []
    for name, r in named_results(report):
        if not r.differences or only_bits_differ(r):
            continue
        first = r.differences[0]
        since = f"step {first.step:,}" if first.step else "the start"
        far, limit = first.relative, first.tolerance
        times = _rounded(far / limit) if far and limit else None
        row: Row = [name, first.description, since, far]
        if far is None and first.quantity != "start":
            row[3] = "NaN or inf"
        rows.append([*row, limit, times])
    return columns, rows


def short_verdict(result: Result) -> str:
    """Return the verdict on a run in up to three words."""
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


def largest_ratio(result: Result) -> float | str | None:
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
    return _rounded(largest)


def _rounded(ratio: float) -> float:
    """Round to two digits, or to more if a ratio above 1 would become 1."""
    for digits in range(2, 18):
        rounded = float(f"{ratio:.{digits}g}")
        if (rounded > 1.0) == (ratio > 1.0):
            break
    return rounded


def overview(report: Report) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Yield title, columns and rows of each table; each row is a run."""
    yield _results_table(report)
    yield _deviations_table(report)
    for title, columns, rows in (_precision_table(report), repeats_table(report)):
        if rows:
            yield title, columns, rows


def about_table(columns: list[str]) -> str:
    """Return what the columns of a table mean; "" if they need no explanation."""
    return next((text for key, text in ABOUT_TABLES.items() if key in columns), "")


def _results_table(report: Report) -> tuple[str, list[str], list[Row]]:
    task = report.workload
    reference = report.reference
    metric = task.metric or "test"
    columns = ["backend", "hardware", "version", "dtype", metric, "final loss"]
    columns += ["ms per step", "25-75 %", "first step, ms", "samples/s", "memory, MB"]
    rows: list[Row] = []
    for name, r in named_results(report):
        quartiles = r.step_ms_quartiles
        speed = r.samples_per_second
        row: Row = [name, r.hardware, r.version, r.dtype, r.test_metric, r.final_loss]
        row += [r.step_ms, quartiles and "{:.3g} to {:.3g}".format(*quartiles)]
        row += [r.first_step_ms, speed and round(speed), _megabytes(r.memory)]
        rows.append(row)
    reference_row: Row = ["reference", None, None, reference.dtype]
    reference_row += [reference.test_metric, reference.final_loss, *[None] * 5]
    epochs = "1 epoch" if task.epochs == 1 else f"{task.epochs:,} epochs"
    title = f"after {task.steps:,} steps of {task.name} ({epochs})"
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
    for name, r in named_results(report):
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
    for name, r in named_results(report):
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
        for name, r in named_results(report)
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


def details(report: Report, deviations: Deviations) -> tuple[list[str], list[Row]]:
    """Return columns and rows: a row for each array that was compared."""
    columns = ["array", "absolute", "relative", "ULPs", "tolerance"]
    rows: list[Row] = []
    for group, about in _DETAILS.items():
        entries = deviations.group(group)
        for name in sorted(entries, key=lambda name: layer_order(report, name)):
            entry = entries[name]
            figures = entry.absolute, entry.relative, entry.ulps
            cells = [_or(each, "unknown") for each in figures]
            label = about.format(_described(report, group, name))
            rows.append([label, *cells, _or(entry.tolerance, "not checked")])
    return columns, rows


def _described(report: Report, group: str, name: str) -> str:
    """Return the name of an array with its layer; it is "" for the model."""
    described = with_class(report, name) or "the model"
    return f"layer {described}" if name and group == "layers" else described


def _or(number: float | None, otherwise: str) -> float | str:
    return otherwise if number is None else number


def settings_of(environment: Environment) -> dict[str, Any]:
    """Return all settings by name, with versions and variables among them."""
    settings = vars(environment) | environment.versions | environment.variables
    return {
        name: value for name, value in settings.items() if not isinstance(value, dict)
    }
