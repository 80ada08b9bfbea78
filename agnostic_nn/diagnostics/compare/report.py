"""Report: what `compare` found, as text for a terminal, Markdown, HTML, and JSON."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...core.files import replacing
from ...core.policies import reduced_formats
from ...display.tables import markdown_table, table
from ..summary import Row as Entry
from ..summary import Summary

__all__ = [
    "PROBED",
    "READING",
    "TRAINED",
    "by_size",
    "environments",
    "flat",
    "ledger",
    "multiplied",
    "names",
    "overview",
    "remarks",
    "sentence",
    "summary",
    "tolerances",
    "write",
]

Row = list[Any]
# groups of deviations: from the same numbers, and of whole trainings
PROBED = ("layers", "loss", "gradients", "states", "updates", "predictions")
TRAINED = ("losses", "parameters", "trained_state", "outputs")


def summary(report: dict[str, Any]) -> str:
    """Text for a terminal: the tables, a verdict for each run, and what else is to be said."""
    parts = [table(columns, rows, title) for title, columns, rows in overview(report)]
    told = [
        f"{name}: {sentence(r)}" for name, r in zip(names(report), report["results"], strict=True)
    ]
    said = "\n".join([*report["differences"], *remarks(report)])
    return "\n\n".join([*parts, "\n".join(told), said])


def write(report: dict[str, Any], folder: str | os.PathLike, page: str | None = None) -> list[Path]:
    """Put report.json and report.md into `folder`, made if need be; each is whole or not there.

    page: what goes into report.html. Without it an older one is taken away: it would tell of
    another report.

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
    if page is not None:
        texts["report.html"] = page
    with ExitStack() as files:  # all are complete before the first is renamed
        for name, text in texts.items():
            file = files.enter_context(replacing(folder / name))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    if page is None:
        (folder / "report.html").unlink(missing_ok=True)
    return [folder / name for name in texts]


def names(report: dict[str, Any]) -> list[str]:
    """What tells the results apart: the backend, and what else there are several of."""
    results = report["results"]
    dtypes, machines = ({r[key] for r in results} for key in ("dtype", "machine"))
    precisions, repeats = (
        {r[key] for r in results} - {None} for key in ("precision", "deterministic")
    )
    return [
        ":".join(filter(None, (r["backend"], r["device"])))
        + f" {r['dtype']}" * (len(dtypes) > 1)
        + f" {r['precision']}" * (len(precisions) > 1 and r["precision"] is not None)
        + " deterministic" * (len(repeats) > 1 and r["deterministic"] is True)
        + f" ({r['machine']})" * (len(machines) > 1)
        for r in results
    ]


def sentence(result: dict[str, Any]) -> str:
    """The verdict on a run, and its figures."""
    if result["error"] is not None:
        return f"failed: {result['error']}."
    parts = [f"{result['verdict']}{_figures(result)}{_time(result)}."]
    if result["status"] == "differs":
        parts += _difference(result)
    if result["not_judged"]:
        parts.append(_not_judged(result))
    if result["command"]:
        step = int(_step_of(result))
        parts.append(f"To look into step {step:,}: `{result['command']}`")
    if result["shortfall"]:
        parts.append(f"It is {result['shortfall']}.")
    return " ".join(parts)


def _figures(result: dict[str, Any]) -> str:
    """How far off what was judged is: the worst of all that the table shows."""
    if result["status"] == "differs":
        return ""
    far = result["max_relative_deviation"]
    if far is None:
        return ". How far off it is is not known"
    judged = [each for _, each in _entries(result) if each["tolerance"] is not None]
    worst = max(judged, key=lambda each: each["relative"] or 0.0)
    allowed = f"(rounding alone could explain {worst['tolerance']:.2g})"
    if result["status"] == "agrees":
        return f", to {far:.2g} of float64 {allowed}"
    return f". What was judged agrees with float64 to {far:.2g} {allowed}"


def _time(result: dict[str, Any]) -> str:
    return "" if result["step_ms"] is None else f", at {result['step_ms']:.3g} ms a step"


def _difference(result: dict[str, Any]) -> Iterator[str]:
    """What differs, by how much, and what that depends on."""
    first, *others = result["differences"]
    if first["relative"] is not None:
        allowed = f"rounding in {result['dtype']} explains {first['tolerance']:.2g} at most"
        yield f"It is off by {first['relative']:.2g}, and {allowed}."
    elif first["quantity"] != "start":
        yield "It holds what is not a finite number."
    if others:
        differ = "results differ" if len(others) > 1 else "result differs"
        yield f"{len(others):,} other {differ} too."
    if first["quantity"] in TRAINED:
        at = next((each for each in result["differences"] if each["quantity"] in PROBED), None)
        if at is not None:
            yield f"From the same numbers, {at['what']} differs at step {at['step']:,}."
        else:
            yield (
                "From the same numbers, the parts of the first, the middle and the last step "
                "agree, and so do predictions."
            )


def _not_judged(result: dict[str, Any]) -> str:
    """What is not judged, each with the reason, those with one reason together."""
    by: dict[str, list[str]] = {}
    for each in result["not_judged"]:
        since = f" from step {each['step']:,} on" if each["quantity"] == "losses" else ""
        since = f" at step {each['step']:,}" if each["quantity"] == "probe" else since
        by.setdefault(each["why"], []).append(each["what"] + since)
    said = "; ".join(f"{_some(names)} ({why})" for why, names in by.items())
    return f"NOT JUDGED: {said}.{_controlled(result)}"


def _controlled(result: dict[str, Any]) -> str:
    """At which step control runs leave the tolerance too, where it was a loss that did."""
    runs = result["control"]["runs"] if result["control"] else ()
    if all(each["quantity"] != "losses" for each in result["not_judged"]):
        return ""
    left = [
        f"{run['name']} at step {run['left_tolerance']:,}"
        for run in runs
        if run["left_tolerance"] is not None
    ]
    return f" Control runs leave the tolerance too: {' and '.join(left)}." if left else ""


def _some(names: list[str], most: int = 4) -> str:
    names = list(dict.fromkeys(names))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _step_of(result: dict[str, Any]) -> int:
    """The step that the command of a result looks into."""
    steps = [each["step"] for each in result["differences"]]
    steps += [each["step"] for each in result["not_judged"] if each["quantity"] == "losses"]
    return max(1, steps[0])


def _entries(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Group and entry of each deviation."""
    for group, found in result["deviations"].items():
        for each in [found] if group in ("loss", "losses") else found.values():
            if each is not None:
                yield group, each


def overview(report: dict[str, Any]) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Title, columns and rows of each table: a run a row."""
    results, reference, task = report["results"], report["reference"], report["workload"]
    called = names(report)
    columns = ["backend", "hardware", "version", "dtype", task["metric"] or "test", "final loss"]
    columns += ["ms per step", "middle half", "first step, ms", "samples/s", "memory, MB"]
    rows = [
        [
            name,
            *(r[key] for key in ("hardware", "version", "dtype", "test_metric", "final_loss")),
            r["step_ms"],
            r["step_ms_quartiles"] and "{:.3g} to {:.3g}".format(*r["step_ms_quartiles"]),
            r["first_step_ms"],
            r["samples_per_second"] and round(r["samples_per_second"]),
            _megabytes(r["memory"]),
        ]
        for name, r in zip(called, results, strict=True)
    ]
    same = ["reference", None, None, reference["dtype"]]
    rows.append([*same, reference["test_metric"], reference["final_loss"], *[None] * 5])
    title = f"after {task['steps']:,} steps of {task['name']} ({task['epochs']} epochs)"
    yield title, columns, rows

    columns = ["backend", *_COLUMNS]
    rows = []
    for name, r in zip(called, results, strict=True):
        figures: list[Any] = [None] * len(_COLUMNS)
        if r["deviations"] is not None:
            entries = list(_entries(r))
            figures = [
                _worst([each for group, each in entries if group in groups])
                for groups in _COLUMNS.values()
            ]
        rows.append([name, *figures, r["verdict"]])
    title = f"largest relative deviation from the {reference['dtype']} reference"
    yield title, [*columns, "verdict"], rows

    columns = ["backend", "precision", "deterministic", "products, eager", "products, compiled"]
    rows = [
        [
            name,
            r["precision"],
            "yes" if r["deterministic"] else "no",
            *(r["probe"] and multiplied(r["probe"][how]) for how in ("eager", "compiled")),
        ]
        for name, r in zip(called, results, strict=True)
        if r["precision"] is not None
    ]
    if rows:
        yield "precision, as asked for and as found by a probe", columns, rows


def multiplied(products: dict[str, str]) -> str:
    """The format of products of matrices, by what takes them; with their names if not of all."""
    named: dict[str, list[str]] = {}
    for what, name in products.items():
        named.setdefault(name, []).append(what)
    if len(named) == 1:
        return next(iter(named))
    return "; ".join(f"{name}: {', '.join(which)}" for name, which in named.items())


def _megabytes(memory: dict[str, int | None] | None) -> float | None:
    found = memory and (memory["peak"] or memory["predicted"])
    return found / 1e6 if found else None


_COLUMNS = {  # of a table of deviations, and the groups in each
    "layers": ("layers", "loss"),
    "gradients": ("gradients",),
    "updates": ("updates",),
    "state": ("states", "trained_state"),
    "predictions": ("predictions",),
    "training: loss": ("losses",),
    "parameters": ("parameters",),
    "outputs": ("outputs",),
}


def _worst(entries: Sequence[dict[str, Any]]) -> float | str | None:
    """The largest relative deviation of what was judged; words where there is none."""
    judged = [each["relative"] for each in entries if each["tolerance"] is not None]
    if None in judged:
        return "not known"
    if judged:
        return max(judged)
    return "not judged" if entries else None


def remarks(report: dict[str, Any]) -> Iterator[str]:
    """Sentences: how it started, what is held to nothing, what failed or was left out."""
    sha256, called = report["start_sha256"], names(report)
    started = [(n, r) for n, r in zip(called, report["results"], strict=True) if r["start_sha256"]]
    others = [name for name, r in started if r["start_sha256"] != sha256]
    if others:
        yield f"starting parameters: {sha256}, but not on {', '.join(others)}"
    elif started:
        yield f"starting parameters: bit-identical on every backend, SHA-256 {sha256}"
    if report["reference"]["agrees"] is False:
        yield (
            f"THE REFERENCE IS WRONG: {report['reference']['backend']} in "
            f"{report['reference']['dtype']} differs from the formulas themselves, so no training "
            "can be held to it as a whole; what is computed from the same numbers is judged rightly"
        )
    diverges = report["reference"]["diverges"]
    if diverges:
        yield f"the training diverges: {diverges}"
    nothing = report["tolerance"]["nothing"]
    if nothing:
        are = "gradients that are" if len(nothing) > 1 else "a gradient that is"
        yield (
            f"{are} 0 but for rounding: {', '.join(nothing)}, as of a bias before BatchNorm; "
            "judged by the size of the largest gradient"
        )
    pairs = list(zip(called, report["results"], strict=True))
    fast = [name for name, r in pairs if r["precision"] == "fast" and _in_float32(r)]
    if fast:
        yield f"fast changes nothing on {', '.join(fast)}: products are float32 all the same"
    for name, r in pairs:
        if r["error"] is not None:
            yield f"failed: {name}: {r['error']}"
    several = len(report["machines"]) > 1
    for r in report["left_out"]:
        where = f" on {r['machine']}" if several else ""
        yield f"left out{where}: {r['reason']}"


def _in_float32(result: dict[str, Any]) -> bool:
    """Whether that was found."""
    return result["probe"] is not None and not reduced_formats(result["probe"])


# --- Markdown ---------------------------------------------------------------------------


READING = (
    "A deviation is the largest difference in an array: absolute, relative to the largest "
    "magnitude in the reference's array, and in ULPs, the spacing of the dtype at that "
    "magnitude. Outputs of layers, gradients, new states, updates and predictions are computed "
    "from the same numbers on both sides: those of the reference at the first, the middle and the "
    "last step. Losses, parameters and outputs after training are those of whole trainings.",
    "For results from the same numbers, rounding is measured. The reference is computed again with "
    "a random error added to each operation, as large as one rounding in the dtype of the backend. "
    "The tolerance is 4 times how far that takes the worst element of a result, plus ε times its "
    "largest element, with ε the spacing of the dtype at 1. What lies further off differs: look "
    "for a lower precision inside multiplications (TF32) or an error.",
    "For the training as a whole, roundings are counted. The tolerance is {formula}, with n the "
    "roundings that follow one another until a number is there: of a sum as many as it has terms, "
    "of any other operation one, {step:,} in one step. The loss is held to it at every step t, "
    "with n that of t steps, relative to the size of that step's loss and of what errors of its "
    "outputs do to it; parameters, state and outputs at the last, with n that of all steps; and "
    "the starting parameters must be the same bits. Roundings have random signs, so their sum "
    "exceeds this with a probability below 3e-14 (Higham & Mary, 2019). Results from the same "
    "numbers are held to it only if rounding cannot be measured, as in a custom layer that takes "
    "no arrays but NumPy's; then n is counted layer by layer, and is {predictions:,} in "
    "predictions.",
    "Where the training as a whole lies further off, it is compared with control runs, in which "
    "nothing but rounding is changed: what rounding alone takes as far is not judged, and said to "
    "be.",
    "A step is timed from a batch that lies on the device until the new parameters have their "
    "values. The first one, which compiles where a library compiles, stands apart; the middle "
    "half lies between the quartiles of the others. Memory is what the device had in use at "
    "most, where it tells; else what is foretold of a step: parameters, state, moments, what is "
    "kept for the way back, and whatever else is there at the worst moment.",
    "A strict backend has to multiply float32 numbers as float32, a fast one may take them as "
    "TensorFloat-32. Settings have been seen to do nothing, so in what format it does so was "
    "measured, by products that come out as another number in each, eagerly and compiled: those "
    "of matrices, alone and in stacks, and the convolutions.",
)


def _markdown(report: dict[str, Any]) -> str:
    task, reference = report["workload"], report["reference"]
    called = names(report)
    pairs = list(zip(called, report["results"], strict=True))
    parts = [
        f"# The same training on every backend: {task['name']}",
        f"{task['about']}.",
        f"    {task['model']}",
        f"{task['parameters']:,} parameters, {task['loss']}, {task['optimizer']}; "
        f"{task['training_examples']:,} examples to train on in batches of {task['batch_size']}, "
        f"{task['test_examples']:,} to test; seed {task['seed']}.",
        "Every run starts from the same weights, draws the same masks and meets the data in the "
        f"same order; so does the reference, on {reference['backend']} in {reference['dtype']}.",
        "\n".join(f"- **{_escape(name)}** {_escape(sentence(r))}" for name, r in pairs),
    ]
    if report["differences"]:
        listed = "\n".join(f"- {_escape(line)}" for line in report["differences"])
        parts += ["## What differs, and what it meant", listed]
    for title, columns, rows in overview(report):
        parts += [f"## {title[0].upper()}{title[1:]}", markdown_table(columns, rows)]
    parts.append("\n".join(f"- {_escape(line)}" for line in remarks(report)))
    parts += ["## How to read this", *(each.format(**report["tolerance"]) for each in READING)]
    columns, rows = tolerances(report)
    parts += [
        "## Roundings counted in one step, and what they allow",
        markdown_table(columns, rows),
    ]
    if report["ledger"]:
        title, columns, rows, said = ledger(report)
        parts += [f"## {title}", markdown_table(columns, rows), *said]
    columns, rows = by_size(report)
    if rows:
        parts += ["## Milliseconds a step, by the size of the batch", markdown_table(columns, rows)]
    for name, r in pairs:
        if r["deviations"] is not None:
            columns = ["array", "absolute", "relative", "ULPs", "tolerance"]
            parts += [
                f"## Deviations of {name}",
                markdown_table(columns, _details(r["deviations"])),
            ]
    parts += ["## Environment", markdown_table(*environments(report))]
    return "\n\n".join(parts) + "\n"


def tolerances(report: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Columns and rows: the roundings of each layer, and what they allow in each dtype."""
    told = report["tolerance"]
    columns = ["layer", "", "n, outputs", "n, gradients"]
    for dtype in told["epsilon"]:
        columns += [f"outputs, {dtype}", f"gradients, {dtype}"]
    rows = []
    for each in told["layers"]:
        chains = [each["outputs"], each["gradients"]]
        row = [each["layer"] or "the model", _short(each["about"]), *chains]
        for epsilon in told["epsilon"].values():
            row += [n and 4.0 * epsilon * n**0.5 for n in chains]
        rows.append(row)
    return columns, rows


def ledger(report: dict[str, Any]) -> tuple[str, list[str], list[Row], list[str]]:
    """Title, columns and rows: what each layer holds and asks for; and what is said of it."""
    told = Summary(
        tuple(Entry(**each) for each in report["ledger"]), report["workload"]["batch_size"]
    )
    dtype = next(iter(report["tolerance"]["epsilon"]))
    return f"What each layer holds and asks for, in {dtype}", *told.cells(), told.remarks()


def by_size(report: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Columns and rows: milliseconds a step, by the size of the batch."""
    found = {
        name: {each["size"]: each["step_ms"] for each in r["batches"] or ()}
        for name, r in zip(names(report), report["results"], strict=True)
    }
    sizes = sorted(set().union(*found.values()))
    rows = [[name, *(by.get(size) for size in sizes)] for name, by in found.items()]
    return ["backend", *map(str, sizes)], rows if sizes else []


def environments(report: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Columns and rows: a setting a row, a machine a column."""
    found = {m["label"]: dict(flat(m["environment"])) for m in report["machines"]}
    settings = list(dict.fromkeys(key for each in found.values() for key in each))
    rows = [[key, *(each.get(key) for each in found.values())] for key in settings]
    return ["setting", *(found if len(found) > 1 else ["value"])], rows


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _details(deviations: dict[str, Any]) -> list[Row]:
    named = {}
    for group, words in _DETAILS.items():
        found = deviations[group]
        entries = {"": found} if group in ("loss", "losses") else found
        for name, entry in entries.items():
            if entry is not None:
                named[words.format(name or "the model")] = entry
    units = ("absolute", "relative", "ulps")
    return [
        [name, *(_known(found[unit]) for unit in units), _known(found["tolerance"], "not judged")]
        for name, found in named.items()
    ]


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


def _known(number: float | None, otherwise: str = "not known") -> float | str:
    return otherwise if number is None else number


def flat(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of each setting, whatever it is nested in."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from flat(value)
        else:
            yield name, value


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
