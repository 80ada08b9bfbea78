"""Write the measurements as tables for a terminal and in Markdown, as JSON, and as plots."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

from agnostic_nn.core.files import replacing, write_text
from agnostic_nn.display.tables import table

from .running import AGAIN, BEFORE, REFERENCE
from .targets import DRAWS, compared, judged, twins
from .worker import LOSSES

__all__ = ["text", "write"]

OURS = (REFERENCE, "agnostic_nn jax", "agnostic_nn torch")
FLOOR = "products"
WHAT = {
    "step": "a step",
    "epoch": "an epoch of 100 steps",
    "predict": "prediction of one row",
}

_HEAD = """\
# How fast

What a step of training takes: this library on NumPy, JAX and PyTorch, against what one would pick
instead on the same machine, and against the floor, the matrix products of the step alone. Made by

    {command}

which `nox -s bench -- …` runs in an environment with all that it needs. Nothing here is typed by
hand; `benchmarks.json` beside it has each figure of each round.

{environment}
"""

_READING = """\
## How to read this

- All contenders train the same model in float32 from the same weights on the same batches. Their
  first {losses} losses must be ours, or they are left out.
- Each is a process of its own. On one thread all are bound to one core, and libraries told to use
  one thread; on all cores they choose. In each round everybody is asked once, in a new order, to
  train for {seconds} s or so, and waited for. Figures are medians over {rounds} rounds, with the
  middle half of them. A ratio is one of medians: how many times as long this takes as ours.
- One thread is timed by the {clock} clock: that of the wall, or that of the processor, which stands
  still while other programs have the core. All cores are timed by the wall's.
- One contender runs twice. What its two processes differ by, or what comes of drawing the rounds
  again (95 % of {draws} draws), whichever is larger, is the noise of a ratio. ≈ precedes a ratio
  that is 1 within it, and a target that lies within it is a tie.
- `Trainer` is what `step`, `fit` and `predict` of a Trainer take from NumPy arrays, with all its
  checks. The other lines of ours are `make_step` under `jit`, and an epoch of theirs is a loop.
- first step: seconds that the very first took, in which libraries compile.
- process: the most memory that the process held, less what it held before the library was there:
  so with the library, its compiler and the data. arrays: the most that NumPy's arrays held, data
  included, by `tracemalloc`; of a step: how much of that goes as soon as the step is done.
- kernels: with the extra `llvm`; the other lines of ours are without it.
- The floor has no convolution but the product of its windows with its weight, and multiplies into
  memory that is there, with the BLAS of NumPy; a library that brings a quicker one may lie below.
"""


def write(results: dict, folder: Path) -> list[Path]:
    """Write benchmarks.json, benchmarks.md, and plots if matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = list(_plots(results, folder))
    data, page = folder / "benchmarks.json", folder / "benchmarks.md"
    write_text(data, json.dumps(results, indent=1) + "\n")
    write_text(page, _markdown(results, plots))
    return [data, page, *plots]


def text(results: dict) -> str:
    """Return all tables as text for a terminal."""
    parts = []
    for title, columns, rows, remarks in _sections(results):
        parts.append("\n".join([table(columns, rows, title), *remarks]))
    return "\n\n".join(parts)


def _sections(results: dict) -> Iterator[tuple[str, list[str], list[list], list[str]]]:
    """Yield title, columns, rows and remarks of each table."""
    for run in results["runs"]:
        threads = "one thread" if run["threads"] == "1" else "all cores"
        if run["workloads"] and run["threads"] == "1":  # with targets
            yield "Targets, one thread", *_targets(run["workloads"]), []
        for name, result in run["workloads"].items():
            for measure, message in WHAT.items():
                if any(measure in c["seconds"] for c in result["contenders"].values()):
                    columns, rows = _timed(result, measure)
                    yield (
                        f"{name}: {message}, {threads}",
                        columns,
                        rows,
                        _remarks(result, measure),
                    )
        if left_out := _left_out(run):
            yield f"Left out, {threads}", ["contenders", "of", "because"], left_out, []
        for size, curve in run["scaling"].items():
            yield (
                f"mlp by {size}: milliseconds a step, {threads}",
                *_curve(size, curve),
                [],
            )


def _targets(workloads):
    columns = ["workload", "what", "ours", "against", "at most", "ratio", "verdict"]
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
    bases = [name for name in (*OURS, FLOOR) if name in timed]
    columns = ["contender", "ms", "middle half"]
    columns += [f"to {name.removeprefix('agnostic_nn ')}" for name in bases]
    rows = []
    if measure == "step":
        columns += ["first step, s", "process, MB", "arrays, MB", "of a step, MB"]
    for label, results in sorted(
        timed.items(), key=lambda item: median(item[1]["seconds"][measure])
    ):
        milliseconds = [1e3 * seconds for seconds in results["seconds"][measure]]
        row = [label, _digits(median(milliseconds)), _half(milliseconds)]
        row += [_share(result, measure, label, base) for base in bases]
        if measure == "step":
            row.append(_digits(results["first_step_seconds"]))
            row += [
                _mega(results[f"{what}_bytes"])
                for what in ("resident", "array", "step")
            ]
        rows.append(row)
    return columns, rows


def _share(result, measure, label, base):
    if label == base:
        return "1"
    results = compared(result, measure, label, base)
    near = "≈ " if results.against(1.0) == "tie" else ""
    return f"{near}{_digits(results.value)}"


def _remarks(result, measure):
    return [f"{result['about']}. Noise: {100 * twins(result, measure):.1f} %."]


def _left_out(run):
    """Return which contenders are missing and why, one line per reason."""
    places = {}
    for name, result in run["workloads"].items():
        for label, reason in result["left_out"].items():
            places.setdefault((label, reason.strip().splitlines()[-1]), []).append(name)
    results = {}
    for (label, reason), names in places.items():
        results.setdefault((reason, ", ".join(names)), []).append(label)
    return [
        ["; ".join(labels), names, reason]
        for (reason, names), labels in results.items()
    ]


def _curve(size, curve):
    there = dict.fromkeys(
        label for result in curve.values() for label in result["contenders"]
    )
    labels = [label for label in there if not label.endswith(AGAIN)]
    rows = []
    for value, result in curve.items():
        results = [result["contenders"].get(label) for label in labels]
        rows.append(
            [
                int(value),
                *(c and _digits(1e3 * median(c["seconds"]["step"])) for c in results),
            ]
        )
    return [size, *labels], rows


def _half(values):
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{_digits(low)} to {_digits(high)}"


def _digits(value):
    """Format with three digits and without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _mega(count):
    return count and _digits(count / 1e6)


# --- Markdown -------------------------------------------------------------------------


def _markdown(results, plots):
    result = results["environment"]
    environment = _grid(["", ""], [[k, v] for k, v in _said(result)])
    parts = [_HEAD.format(command=results["command"], environment=environment)]
    parts += [f"![{path.stem}]({path.name})" for path in plots]
    for title, columns, rows, remarks in _sections(results):
        parts += [f"## {title}", _grid(columns, rows), *remarks]
    parts.append(_READING.format(**results["settings"], losses=LOSSES, draws=DRAWS))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _said(environment):
    """Return the environment, one fact per line."""
    for name, value in environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value:
            yield name, value


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
        if run["scaling"]:
            yield _saved(_scaling(run["scaling"]), folder / f"scaling-{suffix}.svg")


def _saved(figure, path):
    with replacing(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return path


def _colour(label):
    if label.startswith("agnostic_nn"):
        return "lightskyblue" if label.endswith(BEFORE) else "tab:blue"
    return "tab:orange" if label == FLOOR else "tab:gray"


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
            low, high = middle, middle
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


def _scaling(scaling):
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(scaling), squeeze=False)[0]
    for axes, (size, curve) in zip(panels, scaling.items(), strict=True):
        labels = _curve(size, curve)[0][1:]
        styles = ("o-", "s-", "^-", "o--", "s--", "^--", "v--", "D--")
        for i, label in enumerate(labels):
            results = [
                (
                    int(value),
                    1e3 * median(result["contenders"][label]["seconds"]["step"]),
                )
                for value, result in curve.items()
                if label in result["contenders"]
            ]
            style, alpha = (
                styles[i % len(styles)],
                1.0 if _colour(label) != "tab:gray" else 0.6,
            )
            axes.plot(
                *zip(*results, strict=True),
                style,
                color=_colour(label),
                label=label,
                alpha=alpha,
            )
        axes.set(xscale="log", yscale="log", xlabel=size)
        axes.set_xticks([int(value) for value in curve], list(curve))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.2)
        axes.set_title(f"mlp: ms a step by {size}", loc="left", size=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right center", fontsize=8)
    return figure
