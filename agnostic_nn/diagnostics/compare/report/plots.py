"""Plots of a report, drawn by matplotlib.

Each run has one colour, marker and dash pattern in all plots. The key is on the page,
next to the plots, so that long names do not take space from the data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from textwrap import fill
from typing import Any

from ....display.pages import INK, PAPER, colour, figure
from ..schema import ArrayDeviation, Memory, Report, Result
from .axes import (
    MARKS,
    SMALL,
    LogAxis,
    dashes,
    legend,
    line_style,
    log_axis,
    row_height,
    row_names,
)
from .names import joined, layer_order, named_results, with_class

__all__ = [
    "HEIGHT",
    "MAX_POINTS",
    "WIDTH",
    "Plot",
    "drawn",
    "height_of_labels",
    "row_labels",
]

Runs = list[tuple[int, str, Result]]  # number, name and result of each

# of a line; longer ones are averaged, because single steps are noisy
MAX_POINTS = 150
MAX_ROWS = 40  # of a plot with a row for each array
WIDTH = 4.2  # inches: several plots fit next to each other on a desktop, one on a phone
HEIGHT = 2.7
ROW_WIDTH = 54  # characters of such text that fit in a line


@dataclass(frozen=True)
class Plot:
    """A plot, its title, and what it shows in one or two sentences."""

    figure: Any
    title: str
    about: str


def drawn(report: Report) -> list[Plot]:
    """Draw all plots of a report; none if all runs failed."""
    runs = [(i, name, r) for i, (name, r) in enumerate(named_results(report))]
    finished = [run for run in runs if run[2].deviations is not None]
    if not finished:
        return []
    plots = [draw(report, finished) for draw in _PLOTS]
    return [plot for plot in plots if plot is not None]


# --- the loss by step -----------------------------------------------------------------


def _plot_losses(report: Report, runs: Runs) -> Plot | None:
    """Draw the loss of the reference, and of each run that can be told from it."""
    reference = report.reference
    steps = range(1, len(reference.losses) + 1)
    size = -(-len(steps) // MAX_POINTS)
    x = steps[::size]
    expected = _means(_numbers(reference.losses), size)
    positive = [value for value in expected if value > 0.0]
    if not positive:
        return None
    plot, axes = figure(WIDTH, HEIGHT)
    is_log = max(positive) > 30.0 * min(positive)
    distance = _log_distance if is_log else _distance
    height = distance(max(expected), min(positive))
    epsilon = max((epsilon for _, epsilon in _epsilons(report, runs)), default=0.0)
    chain = report.tolerance.step_roundings
    allowed = _means(
        [
            4.0 * epsilon * (chain * t) ** 0.5 * scale
            for t, scale in zip(steps, _numbers(reference.scales), strict=True)
        ],
        size,
    )
    low = [a - b for a, b in zip(expected, allowed, strict=True)]
    high = [a + b for a, b in zip(expected, allowed, strict=True)]
    axes.fill_between(x, low, high, color=INK, alpha=0.16, lw=0.0)
    axes.plot(x, expected, color=INK, lw=1.1)
    coinciding = []
    for i, name, r in runs:
        values = _means(_numbers(r.losses or ()), size)
        pairs = zip(values, expected, strict=False)
        if all(distance(a, b) <= 0.01 * height for a, b in pairs):
            coinciding.append(name)
        else:
            axes.plot(x[: len(values)], values, **line_style(i, len(values)))
    axes.set(xlabel="step", ylabel="loss")
    if is_log:
        log_axis(axes, "y", positive)
    what = f"The thin line without marks is the {reference.dtype} reference"
    about = f"{what}; the band around it is what rounding explains."
    if coinciding:
        those = "All runs" if len(coinciding) == len(runs) > 1 else joined(coinciding)
        verb = "coincide" if len(coinciding) > 1 else "coincides"
        about += f" {those} {verb} with it to within the width of a line."
    averaged = f", averaged over {size} steps" if size > 1 else ""
    return Plot(plot, f"Loss by step{averaged}", about)


def _distance(a: float, b: float) -> float:
    return abs(a - b) if math.isfinite(a) else math.inf


def _log_distance(a: float, b: float) -> float:
    return abs(math.log(a / b)) if math.isfinite(a) and a > 0.0 < b else math.inf


def _plot_loss_deviations(report: Report, runs: Runs) -> Plot | None:
    """Draw the largest deviation of the loss up to each step, and the tolerance."""
    plot, axes = figure(WIDTH, HEIGHT)
    lines = [_so_far(r.loss_deviations or ()) for _, _, r in runs]
    steps = range(1, len(report.reference.losses) + 1)
    chain = report.tolerance.step_roundings
    limits = {
        dtype: [4.0 * epsilon * (chain * t) ** 0.5 for t in steps]
        for dtype, epsilon in _epsilons(report, runs)
    }
    axis = log_axis(
        axes,
        "y",
        [value for line in lines for value in line],
        [limit for allowed in limits.values() for limit in (allowed[0], allowed[-1])],
    )
    for dtype, allowed in limits.items():
        axes.fill_between(steps, axis.low, allowed, color=INK, alpha=0.07, lw=0.0)
        axes.plot(steps, allowed, color=INK, lw=1.0)
        style = {"ha": "right", "va": "bottom", "fontsize": SMALL, "color": INK}
        # lines may cross the text
        behind = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
        text = f"tolerance, {dtype}"
        axes.text(steps[-1], allowed[-1], text, **style, bbox=behind, zorder=3)
    for k, ((i, _, r), line) in enumerate(zip(runs, lines, strict=True), 1):
        values = [axis.place(value) for value in line]
        style = line_style(i, len(values), len(runs) - k)
        axes.plot(steps[: len(values)], values, **style)
        if len(line) < len(r.loss_deviations or ()):
            step = len(line) + 1
            style = {"color": colour(i), "ms": 7, "clip_on": False}
            axes.plot(step, axis.high, MARKS[i % len(MARKS)], **style)
            side = "right" if step > len(steps) / 2 else "left"
            text = f" NaN or inf from step {step:,} "
            place = {"ha": side, "va": "top", "fontsize": SMALL}
            axes.text(step, axis.high, text, color=INK, **place)
    axes.set(xlabel="step", ylabel="relative deviation")
    about = "The distance from the reference's loss, relative to it. Within the shaded "
    about += "band it is rounding."
    others = dict.fromkeys(r.dtype for _, _, r in runs if r.dtype not in limits)
    if others:
        about += f" In {joined(list(others))} only single steps have a tolerance."
    return Plot(plot, "Largest deviation of the loss so far", about)


def _so_far(deviations: Sequence[float | None]) -> list[float]:
    """Return the largest deviation up to each step; it ends where one is unknown."""
    known: list[float] = []
    for value in deviations:
        if value is None:
            break
        known.append(value)
    return list(accumulate(known, max))


# --- deviations by array --------------------------------------------------------------


def _plot_deviations(group: str, title: str, about: str) -> Callable[..., Plot | None]:
    """Return a function that plots the deviations in a group, a row for each array."""

    def draw(report: Report, runs: Runs) -> Plot | None:
        by_run = [r.deviations.group(group) if r.deviations else {} for _, _, r in runs]
        all_names = list(by_run[0])
        places = [name for name in all_names if name] or all_names
        places.sort(key=lambda name: layer_order(report, name))
        if not places:
            return None
        rows = _worst_rows(places, by_run)
        plot = _deviation_rows(report, runs, by_run, rows)
        rest = ""
        if len(rows) < len(places):
            rest = (
                f" Shown are {len(rows)} of {len(places)} rows: those with the "
                "largest deviations in units of their tolerance."
            )
        return Plot(plot, title, f"{about}{rest}")

    return draw


def _deviation_rows(
    report: Report, runs: Runs, by_run: list[dict[str, Any]], places: list[str]
) -> Any:
    """Draw a row for each array, and in it a lane for each run."""
    labels = row_labels(report, places)
    row_height = max(height_of_labels(labels), 0.1 + 0.075 * len(runs))
    plot, axes = figure(WIDTH, 0.85 + row_height * len(places))
    entries = [each[place] for each in by_run for place in places]
    axis = log_axis(
        axes,
        "x",
        [each.relative for each in entries if each.relative is not None],
        [each.tolerance or 0.0 for each in entries],
    )
    lane = 0.8 / len(runs)
    for k, ((i, _, _), by_place) in enumerate(zip(runs, by_run, strict=True)):
        for row, place in enumerate(places):
            height = len(places) - row + lane * ((len(runs) - 1) / 2 - k)
            _draw_deviation(axes, axis, by_place[place], i, height, lane)
    with_tolerance = (each[places[0]].tolerance for each in by_run)
    limit = max(filter(None, with_tolerance), default=None)
    if limit is not None:
        style = {"ha": "right", "va": "bottom", "fontsize": SMALL, "color": INK}
        axes.text(limit, len(places) + 0.45, "tolerance", **style)
    top = len(places) + 0.6 + 0.24 / row_height
    axes.set(ylim=(0.4, top), xlabel="relative deviation")
    axes.set_yticks(range(len(places), 0, -1), labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return plot


def _draw_deviation(
    axes: Any, axis: LogAxis, entry: ArrayDeviation, i: int, height: float, lane: float
) -> None:
    """Draw the deviation of one array in run number i, and its tolerance."""
    if entry.tolerance:
        width = entry.tolerance - axis.low
        axes.barh(height, width, lane, axis.low, color=INK, alpha=0.1, lw=0.0)
        ends = [height - lane / 2, height + lane / 2]
        limits = [entry.tolerance, entry.tolerance]
        axes.plot(limits, ends, color=INK, lw=1.3, solid_capstyle="butt")
    x = axis.high if entry.relative is None else axis.place(entry.relative)
    style = {"color": colour(i), "ms": 5.4, "mec": PAPER, "mew": 0.4, "clip_on": False}
    axes.plot(x, height, MARKS[i % len(MARKS)], **style)
    if entry.relative is None:
        style = {"ha": "right", "va": "center", "fontsize": SMALL, "color": INK}
        axes.text(x, height, "NaN or inf  ", **style)


def _worst_rows(places: list[str], by_run: list[dict[str, Any]]) -> list[str]:
    """Return the names to show, in order: all, or those that deviate furthest."""
    if len(places) <= MAX_ROWS:
        return places

    def ratio(place: str) -> float:
        entries = [entries[place] for entries in by_run]
        return max(
            math.inf
            if each.relative is None
            else each.relative / (each.tolerance or math.inf)
            for each in entries
        )

    worst = set(sorted(places, key=ratio, reverse=True)[:MAX_ROWS])
    return [place for place in places if place in worst]


def row_labels(report: Report, names: list[str]) -> list[str]:
    """Return the labels of rows: layers or arrays with the class of the layer."""
    return [_wrapped(with_class(report, name) or "the model") for name in names]


def height_of_labels(labels: list[str]) -> float:
    """Return the inches that a row needs for its label of one or two lines."""
    return 0.4 if any("\n" in label for label in labels) else 0.24


def _wrapped(label: str, width: int = 22) -> str:
    """Break a label such as "0.weight (Dense)" before its class if it is long."""
    path, space, kind = label.partition(" (")
    if len(path) > width:
        path = f"{path[: width // 3]}…{path[-2 * width // 3 :]}"
    separator = "\n(" if len(path) + len(kind) > width else space
    return f"{path}{separator}{kind}" if kind else path


# --- time and memory ------------------------------------------------------------------


def _plot_times(report: Report, runs: Runs) -> Plot | None:
    timed = [
        (i, name, r.step_ms, r.step_ms_quartiles)
        for i, name, r in runs
        if r.step_ms and r.step_ms_quartiles is not None
    ]
    if not timed:
        return None
    names = [fill(name, ROW_WIDTH) for _, name, _, _ in timed]
    plot, axes = figure(WIDTH, 0.7 + row_height(names) * len(timed))
    medians = [median for _, _, median, _ in timed]
    is_log = max(medians) > 30.0 * min(medians)
    # A run that was disturbed by other programs may have a very long tail: cut it off.
    most = (4.0 if is_log else 1.6) * max(medians)
    for height, (i, _, median, (low, high)) in enumerate(reversed(timed)):
        ends = [max(low, median / 10.0), min(high, most)]
        axes.plot(ends, [height, height], color=colour(i), lw=4.0, alpha=0.45)
        style = {"color": colour(i), "ms": 7, "mec": PAPER, "mew": 0.5}
        axes.plot(median, height, MARKS[i % len(MARKS)], **style)
        place = {"va": "center", "fontsize": SMALL, "color": INK}
        tail = f", 75 %: {high:.3g}" if high > most else ""
        axes.annotate(
            f"{median:.3g} ms{tail}",
            (min(max(high, median), most), height),
            xytext=(7, 0),
            textcoords="offset points",
            **place,
        )
    if is_log:
        log_axis(axes, "x", [*medians, most])
    else:
        axes.set_xlim(0.0, most)
    axes.set(xlabel="ms per step")
    row_names(axes, names)
    about = "The mark is the median of all steps but the first, which may compile; the "
    return Plot(plot, "Time per step", f"{about}bar reaches from 25 % to 75 % of them.")


def _plot_batch_timings(report: Report, runs: Runs) -> Plot | None:
    plot, axes = figure(WIDTH, HEIGHT)
    sizes: set[int] = set()
    times: list[float] = []
    for i, _, r in runs:
        x = [batch.size for batch in r.batches or ()]
        y = [batch.step_ms for batch in r.batches or ()]
        if len(x) > 1:
            sizes.update(x)
            times += y
            style = {"marker": MARKS[i % len(MARKS)], "ms": 5, "mec": PAPER, "mew": 0.4}
            axes.plot(x, y, color=colour(i), dashes=dashes(i), **style)
    if not sizes:
        return None
    axes.set(xlabel="examples in a batch", ylabel="ms per step", xscale="log")
    log_axis(axes, "y", times)
    axes.set_xticks(sorted(sizes), [f"{size:,}" for size in sorted(sizes)])
    axes.minorticks_off()
    about = "The median of a few steps with each batch size, on logarithmic axes."
    return Plot(plot, "Time per step by batch size", about)


_PARTS = {  # of the memory of a step, and how dark they are drawn
    "parameters": 0.95,
    "state": 0.7,
    "moments": 0.5,
    "saved_for_backward": 0.25,
}


def _plot_memory(report: Report, runs: Runs) -> Plot | None:
    """Draw the memory of a step; runs with the same numbers share a bar."""
    groups: dict[Memory, list[str]] = {}
    for _, name, r in runs:
        if r.memory is not None:
            groups.setdefault(r.memory, []).append(name)
    if not groups:
        return None
    names = [fill(_all_names(group, len(runs)), ROW_WIDTH) for group in groups.values()]
    plot, axes = figure(WIDTH, 1.3 + (row_height(names) + 0.08) * len(groups))
    unit, size_of_unit = _unit(max(map(_total, groups)))
    labelled: set[str] = set()
    for height, memory in enumerate(reversed(groups)):
        left = 0.0
        for part, alpha in _PARTS.items():
            size = (getattr(memory, part) or 0) / size_of_unit
            if size:
                label = None if part in labelled else part.replace("_", " ")
                labelled.add(part)
                style = {"color": INK, "alpha": alpha, "lw": 0.0, "label": label}
                axes.barh(height, size, 0.34, left, **style)
            left += size
        label = None if "total" in labelled else "peak of a step"
        labelled.add("total")
        style = {"fill": False, "edgecolor": INK, "lw": 1.0, "label": label}
        axes.barh(height, _total(memory) / size_of_unit, 0.34, **style)
    axes.set(xlabel=unit, xlim=(0.0, None))
    row_names(axes, names)
    legend(axes)
    about = "The outline is the peak that the device reports, or else the predicted one"
    return Plot(plot, "Memory of a step", f"{about}; the parts are computed.")


def _total(memory: Memory) -> int:
    parts = sum(getattr(memory, part) or 0 for part in _PARTS)
    return memory.peak or memory.predicted or parts


def _unit(size: int) -> tuple[str, float]:
    for unit, of_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= of_unit:
            return unit, of_unit
    return "bytes", 1.0


def _all_names(names: list[str], total: int) -> str:
    if len(names) == total > 1:
        return "all runs"
    text = joined(names)
    short = len(text) <= 44 or len(names) == 1
    return text if short else f"{names[0]} and {len(names) - 1} more"


_PLOTS = (
    _plot_losses,
    _plot_loss_deviations,
    _plot_deviations(
        "layers",
        "Outputs of layers, from the same inputs",
        "The deviation of each layer's output from the reference. A mark to the left "
        "of its vertical line, the tolerance, is rounding.",
    ),
    _plot_deviations(
        "gradients",
        "Gradients, from the same inputs",
        "The deviation of each parameter's gradient from the reference. A mark to the "
        "left of its vertical line, the tolerance, is rounding.",
    ),
    _plot_deviations(
        "parameters",
        "Parameters after the last step",
        "The deviation that the whole training has led to. A mark to the left of its "
        "vertical line, the tolerance, is rounding. Without a line it was not checked.",
    ),
    _plot_times,
    _plot_batch_timings,
    _plot_memory,
)


# --- numbers --------------------------------------------------------------------------


def _epsilons(report: Report, runs: Runs) -> list[tuple[str, float]]:
    """Return name and epsilon of each dtype in which a run computed."""
    dtypes = {r.dtype for _, _, r in runs}
    return [each for each in report.tolerance.epsilon.items() if each[0] in dtypes]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _means(numbers: list[float], size: int) -> list[float]:
    """Return the means of `size` consecutive numbers each."""
    parts = (numbers[i : i + size] for i in range(0, len(numbers), size))
    return [sum(part) / len(part) for part in parts]
