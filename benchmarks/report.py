"""Write the measurements as tables, in Markdown, as JSON, and as plots."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from textwrap import fill

from agnostic_nn.core.files import replacing, write_text
from agnostic_nn.display.tables import table

from .running import AGAIN, BEFORE, REFERENCE
from .targets import DRAWS, compared, judged, twins
from .worker import LOSSES

__all__ = ["markdown", "text", "write"]

OURS = (REFERENCE, "agnostic_nn jax", "agnostic_nn torch")
LOWER_BOUND = "products"
MEASURES = {
    "step": "a step",
    "epoch": "an epoch of 100 steps",
    "predict": "prediction of one row",
}

_HEAD = """\
# Benchmarks

This page shows how long a training step takes with this library on NumPy, JAX and
PyTorch, next to the same step in other libraries and written by hand. Read it to see
what hand-derived gradients and portability cost in speed and memory, for your kind of
network.

## How to repeat it

```console
{command}
```

`nox -s bench -- OPTIONS` runs it with these options, in an environment with all
libraries. The page is generated entirely. `benchmarks.json` has each measurement of
each round.

{environment}

## How to read the tables

All programs ("contenders") train the same network in float32 from the same weights on
the same batches. Their first {losses} losses must equal ours; those that differ are
left out, with the reason. Each runs in a separate process.

- `ms`: the median of {rounds} rounds. In each round every contender runs for about
  {seconds} s, in a new order.
- `25-75 %`: the middle half of the rounds.
- `/ numpy`, `/ jax`, `/ torch`: the time divided by that of this library on that
  backend. 2 means that the contender takes twice as long. ≈ means that the ratio is 1
  within the noise.
- `/ products`: the time divided by that of the matrix products of the step alone, a
  lower bound.
- `first step, s`: the seconds of the first step, in which libraries compile.
- `process, MB`: the peak memory of the process, minus its memory before the library was
  imported. It includes the library, its compiler and the data.
- `arrays, MB`: the peak memory of NumPy arrays, with the data, measured by
  `tracemalloc`.
- `step, MB`: the part of that which is freed at the end of the step.

How it was measured:

- **Names.** `agnostic_nn numpy` and so on are `make_step` under `jit`; their epoch is a
  loop. With `Trainer` they are `step`, `fit` and `predict` of a `Trainer`, called with
  NumPy arrays, with all checks. With `kernels` they have the extra `llvm`; the others
  do not. `before` is an older version.
- **Threads.** For one thread, processes are bound to one core and libraries are set to
  one thread. For all cores, libraries choose.
- **Clock.** One thread is timed by the {clock} clock; the processor clock stops while
  other programs use the core. All cores are timed by the wall clock.
- **Noise** of a ratio is the larger of two numbers: the difference between two
  processes of the same contender (`again`), and the 95 % interval of the ratio over
  {draws} bootstrap samples of the rounds. A target within the noise of the ratio is a
  tie.
- **Lower bound.** A convolution counts as one product of its windows with its weight.
  The products use NumPy's BLAS and write into allocated memory. A library with a faster
  BLAS can be below it.

## What to conclude

{conclusion}
"""


def write(results: dict, folder: Path) -> list[Path]:
    """Write benchmarks.json, benchmarks.md, and plots if matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = list(_plots(results, folder))
    data, page = folder / "benchmarks.json", folder / "benchmarks.md"
    write_text(data, json.dumps(results, indent=1) + "\n")
    write_text(page, markdown(results, plots))
    return [data, page, *plots]


# the plot of the README: titles by workload, and labels by contender
OVERVIEW = {
    "mlp": "3 dense layers, 784-512-256-10, batch 128",
    "cnn": "2 convolutions and pooling, 28x28 pixels, batch 64",
    "lstm": "LSTM of 128 units, 64 steps, batch 32",
    "transformer": "2 transformer blocks, 128 wide, 128 symbols, batch 8",
}
SHOWN = {
    "agnostic_nn numpy, kernels": "agnostic_nn on NumPy",
    "agnostic_nn jax": "agnostic_nn on JAX",
    "agnostic_nn torch, kernels": "agnostic_nn on PyTorch",
    "pytorch": "PyTorch",
    "flax-nnx": "Flax (JAX)",
    "keras-jax": "Keras (JAX)",
    "scikit-learn": "scikit-learn",
}


@dataclass(frozen=True)
class Section:
    """A table with its title, and remarks below it."""

    title: str
    columns: list[str]
    rows: list[list]
    remarks: tuple[str, ...] = ()


def text(results: dict) -> str:
    """Return all tables as text for a terminal."""
    parts = []
    for section in _sections(results):
        lines = [table(section.columns, section.rows, section.title)]
        parts.append("\n".join([*lines, *section.remarks]))
    return "\n\n".join(parts)


def _sections(results: dict) -> Iterator[Section]:
    for run in results["runs"]:
        threads = "one thread" if run["threads"] == "1" else "all cores"
        if run["workloads"] and run["threads"] == "1":  # targets are for one thread
            yield Section("Targets, one thread", *_targets(run["workloads"]))
        for name, result in run["workloads"].items():
            for measure, title in MEASURES.items():
                if any(measure in c["seconds"] for c in result["contenders"].values()):
                    columns, rows = _timed(result, measure)
                    title = f"{name}: {title}, {threads}"
                    yield Section(title, columns, rows, _remarks(result, measure))
        if left_out := _left_out(run):
            columns = ["contenders", "workloads", "reason"]
            yield Section(f"Left out, {threads}", columns, left_out)
        for size, curve in run["scaling"].items():
            title = f"mlp by {size}: milliseconds a step, {threads}"
            yield Section(title, *_curve(size, curve))


def _targets(workloads):
    columns = [
        *("workload", "measure", "ours", "compared with"),
        *("target", "ratio", "verdict"),
    ]
    rows = []
    for target, best, result, verdict in judged(workloads):
        against = best or " or ".join(target.against)
        ratio = str(result) if result else None
        named = [target.workload, target.measure, target.ours, against]
        rows.append([*named, target.at_most, ratio, verdict])
    return columns, rows


def _timed(result, measure):
    """Return one row per contender, the fastest first."""
    timed = {k: c for k, c in result["contenders"].items() if measure in c["seconds"]}
    bases = [name for name in (*OURS, LOWER_BOUND) if name in timed]
    columns = ["contender", "ms", "25-75 %"]
    columns += [f"/ {name.removeprefix('agnostic_nn ')}" for name in bases]
    rows = []
    if measure == "step":
        columns += ["first step, s", "process, MB", "arrays, MB", "step, MB"]
    for label, measured in sorted(
        timed.items(), key=lambda item: median(item[1]["seconds"][measure])
    ):
        milliseconds = [1e3 * seconds for seconds in measured["seconds"][measure]]
        row = [label, _digits(median(milliseconds)), _middle_half(milliseconds)]
        row += [_ratio(result, measure, label, base) for base in bases]
        if measure == "step":
            row.append(_digits(measured["first_step_seconds"]))
            row += [
                _megabytes(measured[f"{kind}_bytes"])
                for kind in ("resident", "array", "step")
            ]
        rows.append(row)
    return columns, rows


def _ratio(result, measure, label, base):
    """Format the time of `label` divided by that of `base`, with ≈ for a tie."""
    if label == base:
        return "1"
    ratio = compared(result, measure, label, base)
    sign = "≈ " if ratio.against(1.0) == "tie" else ""
    return f"{sign}{_digits(ratio.value)}"


def _remarks(result, measure):
    noise = 100 * twins(result, measure)
    return (f"{result['about']}. Noise: {noise:.1f} %.",)


def _left_out(run):
    """Return a row per reason and workloads: which contenders are missing there."""
    workloads = {}
    for name, result in run["workloads"].items():
        for label, reason in result["left_out"].items():
            last_line = reason.strip().splitlines()[-1]
            workloads.setdefault((label, last_line), []).append(name)
    contenders = {}
    for (label, reason), names in workloads.items():
        contenders.setdefault((reason, ", ".join(names)), []).append(label)
    return [
        ["; ".join(labels), names, reason]
        for (reason, names), labels in contenders.items()
    ]


def _curve(size, curve):
    measured = dict.fromkeys(
        label for result in curve.values() for label in result["contenders"]
    )
    labels = [label for label in measured if not label.endswith(AGAIN)]
    rows = []
    for value, result in curve.items():
        row = [int(value)]
        for label in labels:
            contender = result["contenders"].get(label)
            step = contender and _digits(1e3 * median(contender["seconds"]["step"]))
            row.append(step)
        rows.append(row)
    return [size, *labels], rows


def _middle_half(values):
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{_digits(low)} to {_digits(high)}"


def _digits(value):
    """Format with three digits and without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _megabytes(count):
    return count and _digits(count / 1e6)


# --- Markdown -------------------------------------------------------------------------


def markdown(results: dict, plots: list[Path]) -> str:
    """Return the page of all measurements."""
    environment = _grid(["", ""], _facts(results["environment"]))
    head = _HEAD.format(
        **results["settings"],
        command=results["command"],
        environment=environment,
        conclusion=_conclusion(results["runs"]),
        losses=LOSSES,
        draws=DRAWS,
    )
    parts = [head]
    parts += [f"![{path.stem}]({path.name})" for path in plots]
    for section in _sections(results):
        parts += [f"## {section.title}", _grid(section.columns, section.rows)]
        parts += section.remarks
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _facts(environment):
    """Return the environment as rows of a name and a value."""
    rows = []
    for name, value in environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        if value:
            rows.append([name.replace("_", " "), value])
    return rows


def _conclusion(runs):
    """Return how many targets were reached, as a paragraph."""
    verdicts = Counter(
        verdict
        for run in runs
        if run["threads"] == "1"
        for *_, verdict in judged(run["workloads"])
        if verdict != "not measured"
    )
    text = (
        "Each target is an upper bound for our time or memory, relative to that of "
        f"another contender. Of {verdicts.total()} targets, {verdicts['reached']} are "
        f"reached, {verdicts['missed']} are missed, and {verdicts['tie']} are ties, "
        "because the noise is too large to tell. The first table lists them. The "
        "others show where the time of each network goes."
    )
    return fill(text, 88)


def _grid(columns, rows):
    numeric = [all(_is_figure(row[i]) for row in rows) for i in range(len(columns))]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [["" if cell is None else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_figure(cell):
    return cell is None or str(cell).lstrip("≈ ")[:1].isdigit()


# --- plots ----------------------------------------------------------------------------


def _plots(results, folder):
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    # equal figures give equal files
    matplotlib.rcParams["svg.hashsalt"] = "agnostic_nn"
    for run in results["runs"]:
        suffix = "one-thread" if run["threads"] == "1" else "all-cores"
        if run["workloads"]:
            yield _saved(_steps(run["workloads"]), folder / f"steps-{suffix}.svg")
        if run["threads"] == "1" and OVERVIEW.keys() <= run["workloads"].keys():
            yield _saved(_overview(run["workloads"]), folder / "speed.svg")
        if run["scaling"]:
            yield _saved(_scaling(run["scaling"]), folder / f"scaling-{suffix}.svg")


def _saved(figure, path):
    with replacing(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return path


def _colour(label):
    if label.startswith("agnostic_nn"):
        return "lightskyblue" if label.endswith(BEFORE) else "tab:blue"
    return "tab:orange" if label == LOWER_BOUND else "tab:gray"


def _steps(workloads):
    """Draw one panel per workload: median and 25-75 % range of each contender."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    rows = (len(workloads) + 1) // 2
    figure = Figure(figsize=(11, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for axes in grid[len(workloads) :]:
        axes.set_axis_off()
    for axes, (name, result) in zip(grid, workloads.items(), strict=False):
        timed = {k: c["seconds"]["step"] for k, c in result["contenders"].items()}
        order = sorted(timed, key=lambda label: -median(timed[label]))
        order = [label for label in order if not label.endswith(AGAIN)]
        for i, label in enumerate(order):
            milliseconds = [1e3 * seconds for seconds in timed[label]]
            middle = median(milliseconds)
            low = high = middle
            if len(milliseconds) > 1:
                low, _, high = quantiles(milliseconds, n=4, method="inclusive")
            axes.plot(
                [low, high], [i, i], color=_colour(label), linewidth=5, alpha=0.35
            )
            axes.plot(middle, i, "o", color=_colour(label))
            axes.annotate(
                _digits(middle),
                (high, i),
                (6, 0),
                textcoords="offset points",
                va="center",
                size=7,
            )
        axes.set_yticks(range(len(order)), order, size=8)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.12)
        axes.grid(axis="x", alpha=0.2)
        axes.set_title(f"{name}: ms a step", loc="left", size=10)
    return figure


def _overview(workloads):
    """Draw the plot of the README: a bar per library for four networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle("Milliseconds of a training step, on one thread", size=11)
    grid = figure.subplots(2, 2).flat
    for axes, (name, title) in zip(grid, OVERVIEW.items(), strict=True):
        contenders = workloads[name]["contenders"]
        milliseconds = {
            label: 1e3 * median(contenders[key]["seconds"]["step"])
            for key, label in SHOWN.items()
            if key in contenders
        }
        order = sorted(milliseconds, key=lambda label: -milliseconds[label])
        colours = [_colour(label) for label in order]
        bars = axes.barh(order, [milliseconds[label] for label in order], color=colours)
        axes.bar_label(
            bars, [_digits(milliseconds[k]) for k in order], padding=3, size=8
        )
        axes.set_title(title, loc="left", size=9)
        axes.tick_params(axis="y", labelsize=8, length=0)
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.margins(x=0.12)
    return figure


def _scaling(scaling):
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(scaling), squeeze=False)[0]
    for axes, (size, curve) in zip(panels, scaling.items(), strict=True):
        labels = _curve(size, curve)[0][1:]
        styles = ("o-", "s-", "^-", "o--", "s--", "^--", "v--", "D--")
        for i, label in enumerate(labels):
            points = [
                (
                    int(value),
                    1e3 * median(result["contenders"][label]["seconds"]["step"]),
                )
                for value, result in curve.items()
                if label in result["contenders"]
            ]
            colour = _colour(label)
            axes.plot(
                *zip(*points, strict=True),
                styles[i % len(styles)],
                color=colour,
                label=label,
                alpha=0.6 if colour == "tab:gray" else 1.0,
            )
        axes.set(xscale="log", yscale="log", xlabel=size)
        axes.set_xticks([int(value) for value in curve], list(curve))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.2)
        axes.set_title(f"mlp: ms a step by {size}", loc="left", size=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right center", fontsize=8)
    return figure
