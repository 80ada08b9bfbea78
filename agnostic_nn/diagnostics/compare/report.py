"""Format a report of `compare` as text for a terminal and as Markdown, and write its files."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...core.files import replacing
from ...core.policies import reduced_formats
from ...display.tables import markdown_table, table
from ..summary import Row as LayerRow
from ..summary import Summary

__all__ = [
    "HOW_TO_READ",
    "PROBED",
    "TRAINED",
    "batch_timings",
    "environments",
    "flat",
    "layer_costs",
    "names",
    "overview",
    "product_formats",
    "remarks",
    "roundings",
    "sentence",
    "summary",
    "write",
]

Row = list[Any]
# The groups of deviations: of results computed
# from the same inputs, and of whole trainings.
PROBED = ("layers", "loss", "gradients", "states", "updates", "predictions")
TRAINED = ("losses", "parameters", "trained_state", "outputs")


def summary(report: dict[str, Any]) -> str:
    """Return text for a terminal: tables, a verdict for each run, and remarks."""
    tables = [table(columns, rows, title) for title, columns, rows in overview(report)]
    verdicts = [
        f"{name}: {sentence(result)}" for name, result in _named_results(report)
    ]
    notes = [*report["differences"], *remarks(report)]
    return "\n\n".join([*tables, "\n".join(verdicts), "\n".join(notes)])


def write(
    report: dict[str, Any], folder: str | os.PathLike[str], page: str | None = None
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
    texts = {
        "report.json": json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
        + "\n",
        "report.md": _markdown(report),
    }
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


def names(report: dict[str, Any]) -> list[str]:
    """Return a unique name for each result.

    It is the backend, followed by the dtype, policy
    and machine where the results differ in them.
    """
    results = report["results"]
    dtypes = {r["dtype"] for r in results}
    machines = {r["machine"] for r in results}
    precisions = {r["precision"] for r in results} - {None}
    deterministic = {r["deterministic"] for r in results} - {None}
    unique = []
    for r in results:
        name = ":".join(filter(None, (r["backend"], r["device"])))
        if len(dtypes) > 1:
            name += f" {r['dtype']}"
        if len(precisions) > 1 and r["precision"] is not None:
            name += f" {r['precision']}"
        if len(deterministic) > 1 and r["deterministic"] is True:
            name += " deterministic"
        if len(machines) > 1:
            name += f" ({r['machine']})"
        unique.append(name)
    return unique


def _named_results(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(zip(names(report), report["results"], strict=True))


def sentence(result: dict[str, Any]) -> str:
    """Return the verdict on a run with its numbers, in words."""
    if result["error"] is not None:
        return f"failed: {result['error']}."
    parts = [f"{result['verdict']}{_agreement(result)}{_time(result)}."]
    if result["status"] == "differs":
        parts += _difference(result)
    if result["not_checked"]:
        parts.append(_not_checked(result))
    if result["command"]:
        step = _step_in_question(result)
        parts.append(f"To look into step {step:,}: `{result['command']}`")
    if result["precision_issue"]:
        parts.append(f"It is {result['precision_issue']}.")
    return " ".join(parts)


def _agreement(result: dict[str, Any]) -> str:
    """Say how closely a run agrees: the largest deviation of all that was checked."""
    if result["status"] == "differs":
        return ""
    far = result["max_relative_deviation"]
    if far is None:
        return ". Its deviation from float64 is unknown"
    checked = [entry for _, entry in _entries(result) if entry["tolerance"] is not None]
    worst = max(checked, key=lambda entry: entry["relative"] or 0.0)
    allowed = f"(rounding alone could explain {worst['tolerance']:.2g})"
    if result["status"] == "agrees":
        return f", to within {far:.2g} of float64 {allowed}"
    return f". The largest deviation from float64 in what was checked is {far:.2g} {allowed}"


def _time(result: dict[str, Any]) -> str:
    return "" if result["step_ms"] is None else f"; {result['step_ms']:.3g} ms per step"


def _difference(result: dict[str, Any]) -> Iterator[str]:
    """Say how large the first difference is, and whether single steps differ too."""
    first, *others = result["differences"]
    if first["relative"] is not None:
        allowed = (
            f"rounding in {result['dtype']} explains at most {first['tolerance']:.2g}"
        )
        yield f"The relative deviation is {first['relative']:.2g}; {allowed}."
    elif first["quantity"] != "start":
        yield "It contains NaN or infinity."
    if others:
        differ = "results differ" if len(others) > 1 else "result differs"
        yield f"{len(others):,} other {differ} too."
    if first["quantity"] in TRAINED:
        probed = next(
            (each for each in result["differences"] if each["quantity"] in PROBED), None
        )
        if probed is not None:
            yield (
                f"Computed from the same inputs, {probed['description']} differs at "
                f"step {probed['step']:,}."
            )
        else:
            yield (
                "Computed from the same inputs, all parts of the first, the middle and "
                "the last step agree, and so do predictions."
            )


def _not_checked(result: dict[str, Any]) -> str:
    """Name what could not be checked, grouped by the reason."""
    by_reason: dict[str, list[str]] = {}
    for finding in result["not_checked"]:
        when = ""
        if finding["quantity"] == "losses":
            when = f" from step {finding['step']:,} on"
        elif finding["quantity"] == "probe":
            when = f" at step {finding['step']:,}"
        by_reason.setdefault(finding["reason"], []).append(
            finding["description"] + when
        )
    listed = "; ".join(
        f"{_first_few(each)} ({reason})" for reason, each in by_reason.items()
    )
    return f"NOT CHECKED: {listed}.{_control_runs(result)}"


def _control_runs(result: dict[str, Any]) -> str:
    """Say at which step control runs exceed the tolerance, if the loss could not be checked."""
    if all(finding["quantity"] != "losses" for finding in result["not_checked"]):
        return ""
    runs = result["control"]["runs"] if result["control"] else ()
    exceed = [
        f"{run['name']} from step {run['exceeds_tolerance_at']:,}"
        for run in runs
        if run["exceeds_tolerance_at"] is not None
    ]
    return (
        f" Control runs exceed the tolerance too: {' and '.join(exceed)}."
        if exceed
        else ""
    )


def _first_few(descriptions: list[str], most: int = 4) -> str:
    unique = list(dict.fromkeys(descriptions))
    rest = f" and {len(unique) - most} more" if len(unique) > most else ""
    return ", ".join(unique[:most]) + rest


def _step_in_question(result: dict[str, Any]) -> int:
    """Return the step that the command of a result looks into."""
    steps = [each["step"] for each in result["differences"]]
    steps += [
        each["step"] for each in result["not_checked"] if each["quantity"] == "losses"
    ]
    return int(max(1, steps[0]))


def _entries(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield group and entry of each deviation."""
    for group, deviations in result["deviations"].items():
        entries = [deviations] if group in ("loss", "losses") else deviations.values()
        for entry in entries:
            if entry is not None:
                yield group, entry


# --- tables ---------------------------------------------------------------------------


def overview(report: dict[str, Any]) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Yield title, columns and rows of each table; each row is a run."""
    yield _results_table(report)
    yield _deviations_table(report)
    title, columns, rows = _precision_table(report)
    if rows:
        yield title, columns, rows


def _results_table(report: dict[str, Any]) -> tuple[str, list[str], list[Row]]:
    task = report["workload"]
    reference = report["reference"]
    columns = [
        "backend",
        "hardware",
        "version",
        "dtype",
        task["metric"] or "test",
        "final loss",
    ]
    columns += ["ms per step", "25-75 %", "first step, ms", "samples/s", "memory, MB"]
    rows = [
        [
            name,
            *(
                r[key]
                for key in ("hardware", "version", "dtype", "test_metric", "final_loss")
            ),
            r["step_ms"],
            r["step_ms_quartiles"]
            and "{:.3g} to {:.3g}".format(*r["step_ms_quartiles"]),
            r["first_step_ms"],
            r["samples_per_second"] and round(r["samples_per_second"]),
            _megabytes(r["memory"]),
        ]
        for name, r in _named_results(report)
    ]
    reference_row = ["reference", None, None, reference["dtype"]]
    reference_row += [reference["test_metric"], reference["final_loss"], *[None] * 5]
    title = f"after {task['steps']:,} steps of {task['name']} ({task['epochs']} epochs)"
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


def _deviations_table(report: dict[str, Any]) -> tuple[str, list[str], list[Row]]:
    rows = []
    for name, r in _named_results(report):
        cells: list[Any] = [None] * len(_COLUMNS)
        if r["deviations"] is not None:
            entries = list(_entries(r))
            cells = [
                _worst([entry for group, entry in entries if group in groups])
                for groups in _COLUMNS.values()
            ]
        rows.append([name, *cells, r["verdict"]])
    title = (
        f"largest relative deviation from the {report['reference']['dtype']} reference"
    )
    return title, ["backend", *_COLUMNS, "verdict"], rows


def _precision_table(report: dict[str, Any]) -> tuple[str, list[str], list[Row]]:
    columns = [
        "backend",
        "precision",
        "deterministic",
        "products, eager",
        "products, compiled",
    ]
    rows = []
    for name, r in _named_results(report):
        if r["precision"] is None:
            continue
        measured = r["measured_precision"]
        formats = [
            measured and product_formats(measured[how]) for how in ("eager", "compiled")
        ]
        rows.append(
            [name, r["precision"], "yes" if r["deterministic"] else "no", *formats]
        )
    return "precision: requested, and as measured", columns, rows


def product_formats(products: dict[str, str]) -> str:
    """Return the format of products, or each format with the products that use it."""
    by_format: dict[str, list[str]] = {}
    for product, name in products.items():
        by_format.setdefault(name, []).append(product)
    if len(by_format) == 1:
        return next(iter(by_format))
    return "; ".join(f"{name}: {', '.join(which)}" for name, which in by_format.items())


def _megabytes(memory: dict[str, int | None] | None) -> float | None:
    size = memory and (memory["peak"] or memory["predicted"])
    return size / 1e6 if size else None


def _worst(entries: Sequence[dict[str, Any]]) -> float | str | None:
    """Return the largest relative deviation of what was checked; words if there is none."""
    checked = [entry["relative"] for entry in entries if entry["tolerance"] is not None]
    if None in checked:
        return "unknown"
    if checked:
        return max(checked)
    return "not checked" if entries else None


def remarks(report: dict[str, Any]) -> Iterator[str]:
    """Yield remarks: on the starting point and the reference, failures, and what was left out."""
    start = report["start_sha256"]
    results = _named_results(report)
    started = [(name, r) for name, r in results if r["start_sha256"]]
    others = [name for name, r in started if r["start_sha256"] != start]
    if others:
        yield f"starting parameters: SHA-256 {start}, but different on {', '.join(others)}"
    elif started:
        yield f"starting parameters: bit-identical on every backend, SHA-256 {start}"
    if report["reference"]["agrees"] is False:
        yield (
            f"THE REFERENCE IS WRONG: {report['reference']['backend']} in "
            f"{report['reference']['dtype']} differs from the formulas themselves, so "
            "whole trainings cannot be compared with it; results computed from the "
            "same inputs are still checked correctly"
        )
    diverges = report["reference"]["diverges"]
    if diverges:
        yield f"the training diverges: {diverges}"
    zero_gradients = report["tolerance"]["zero_gradients"]
    if zero_gradients:
        yield (
            f"zero gradients up to rounding: {', '.join(zero_gradients)} (as for a "
            "bias before BatchNorm); they are checked relative to the largest of all "
            "gradients"
        )
    fast = [
        name
        for name, r in results
        if r["precision"] == "fast" and _multiplies_in_float32(r)
    ]
    if fast:
        yield f"fast has no effect on {', '.join(fast)}: products are float32 anyway"
    for name, r in results:
        if r["error"] is not None:
            yield f"failed: {name}: {r['error']}"
    for each in report["left_out"]:
        where = f" on {each['machine']}" if len(report["machines"]) > 1 else ""
        yield f"left out{where}: {each['reason']}"


def _multiplies_in_float32(result: dict[str, Any]) -> bool:
    """Return whether all measured products are in full float32."""
    return result["measured_precision"] is not None and not reduced_formats(
        result["measured_precision"]
    )


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


def _markdown(report: dict[str, Any]) -> str:
    task = report["workload"]
    reference = report["reference"]
    results = _named_results(report)
    parts = [
        f"# The same training on every backend: {task['name']}",
        f"{task['about']}.",
        f"    {task['model']}",
        f"{task['parameters']:,} parameters, {task['loss']}, {task['optimizer']}; "
        f"{task['training_examples']:,} training examples in batches of "
        f"{task['batch_size']}, {task['test_examples']:,} test examples; seed "
        f"{task['seed']}.",
        "Every run starts from the same weights, draws the same masks and sees the "
        f"data in the same order; so does the reference, on {reference['backend']} in "
        f"{reference['dtype']}.",
        "\n".join(
            f"- **{_escape(name)}** {_escape(sentence(r))}" for name, r in results
        ),
    ]
    if report["differences"]:
        listed = "\n".join(f"- {_escape(line)}" for line in report["differences"])
        parts += ["## Differences between machines and settings", listed]
    for title, columns, rows in overview(report):
        parts += [f"## {title[0].upper()}{title[1:]}", markdown_table(columns, rows)]
    parts.append("\n".join(f"- {_escape(line)}" for line in remarks(report)))
    tolerance = report["tolerance"]
    parts += [
        "## How to read this",
        *(each.format(**tolerance) for each in HOW_TO_READ),
    ]
    parts += [
        "## Roundings in one step, and their tolerance",
        markdown_table(*roundings(report)),
    ]
    if report["layer_costs"]:
        title, columns, rows, notes = layer_costs(report)
        parts += [f"## {title}", markdown_table(columns, rows), *notes]
    columns, rows = batch_timings(report)
    if rows:
        parts += [
            "## Milliseconds per step, by batch size",
            markdown_table(columns, rows),
        ]
    for name, r in results:
        if r["deviations"] is not None:
            columns = ["array", "absolute", "relative", "ULPs", "tolerance"]
            parts += [
                f"## Deviations of {name}",
                markdown_table(columns, _details(r["deviations"])),
            ]
    parts += ["## Environment", markdown_table(*environments(report))]
    return "\n\n".join(parts) + "\n"


def roundings(report: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Return columns and rows: the roundings of each layer, and their tolerance in each dtype."""
    tolerance = report["tolerance"]
    columns = ["layer", "", "n, outputs", "n, gradients"]
    for dtype in tolerance["epsilon"]:
        columns += [f"outputs, {dtype}", f"gradients, {dtype}"]
    rows = []
    for each in tolerance["layers"]:
        chains = [each["output_roundings"], each["gradient_roundings"]]
        row = [each["layer"] or "the model", _short(each["about"]), *chains]
        for epsilon in tolerance["epsilon"].values():
            row += [n and 4.0 * epsilon * n**0.5 for n in chains]
        rows.append(row)
    return columns, rows


def layer_costs(report: dict[str, Any]) -> tuple[str, list[str], list[Row], list[str]]:
    """Return title, columns, rows and notes: memory and operations of each layer."""
    rows = tuple(LayerRow(**each) for each in report["layer_costs"])
    costs = Summary(rows, report["workload"]["batch_size"])
    dtype = next(iter(report["tolerance"]["epsilon"]))
    return (
        f"Memory and operations by layer, in {dtype}",
        *costs.cells(),
        costs.remarks(),
    )


def batch_timings(report: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Return columns and rows: milliseconds per step, by batch size."""
    times = {
        name: {batch["size"]: batch["step_ms"] for batch in r["batches"] or ()}
        for name, r in _named_results(report)
    }
    sizes = sorted(set().union(*times.values()))
    rows = [
        [name, *(by_size.get(size) for size in sizes)]
        for name, by_size in times.items()
    ]
    return ["backend", *map(str, sizes)], rows if sizes else []


def environments(report: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Return columns and rows: a row for each setting, a column for each machine."""
    machines = {m["label"]: dict(flat(m["environment"])) for m in report["machines"]}
    settings = list(
        dict.fromkeys(key for values in machines.values() for key in values)
    )
    rows = [
        [key, *(values.get(key) for values in machines.values())] for key in settings
    ]
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


def _details(deviations: dict[str, Any]) -> list[Row]:
    """Return a row for each array that was compared."""
    rows = {}
    for group, words in _DETAILS.items():
        entries = deviations[group]
        if group in ("loss", "losses"):
            entries = {"": entries}
        for name, entry in entries.items():
            if entry is not None:
                cells = [
                    _or(entry[unit], "unknown")
                    for unit in ("absolute", "relative", "ulps")
                ]
                label = words.format(name or "the model")
                rows[label] = [label, *cells, _or(entry["tolerance"], "not checked")]
    return list(rows.values())


def _or(number: float | None, otherwise: str) -> float | str:
    return otherwise if number is None else number


def flat(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each setting in nested dicts."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from flat(value)
        else:
            yield name, value


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
