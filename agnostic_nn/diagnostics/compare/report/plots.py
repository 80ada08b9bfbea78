"""Plots of a report, drawn by matplotlib."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ....display.pages import INK, colour, figure
from ..schema import Report, Result
from .names import named_results

__all__ = ["drawn"]

MARKS = "osD^vPX*"


Runs = list[tuple[int, str, Result]]  # number, name and result of each


# of the line of a loss; longer ones are averaged, because single steps are noisy
MAX_POINTS = 150


WIDTH = 5.0  # inches: several plots fit next to each other on a desktop, one on a phone


HEIGHT = 3.0


def drawn(report: Report) -> list[tuple[Any, str]]:
    """Draw all plots of a report, each with a description; none if all runs failed."""
    runs = [(i, name, r) for i, (name, r) in enumerate(named_results(report))]
    finished = [run for run in runs if run[2].deviations is not None]
    if not finished:
        return []
    plots = [(draw(report, finished), about) for draw, about in _PLOTS.items()]
    return [(plot, about) for plot, about in plots if plot is not None]


def _plot_losses(report: Report, runs: Runs) -> Any:
    plot, axes = figure(WIDTH, HEIGHT)
    reference = report.reference
    steps = range(1, len(reference.losses) + 1)
    size = -(-len(steps) // MAX_POINTS)
    for k, (i, name, r) in enumerate(runs):
        # Lines drawn earlier are wider, so that identical lines remain visible.
        width = 1.2 + 1.1 * (len(runs) - k)
        values = _means(_numbers(r.losses or ()), size)
        axes.plot(steps[::size], values, color=colour(i), lw=width, label=name)
    values = _means(_numbers(reference.losses), size)
    label = f"{reference.dtype} reference"
    axes.plot(steps[::size], values, color=INK, lw=0.8, label=label)
    _title(axes, "Loss" if size == 1 else f"Loss, averaged over {size} steps")
    axes.set(xlabel="step")
    _log_scale_if_wide(axes, [value for value in values if value > 0])
    _legend(axes)
    return plot


def _plot_loss_deviations(report: Report, runs: Runs) -> Any:
    plot, axes = figure(WIDTH, HEIGHT)
    steps = range(1, len(report.reference.losses) + 1)
    for i, name, r in runs:
        deviations = r.loss_deviations or ()
        values = [value or float("nan") for value in _numbers(deviations)]
        label = _label(name, deviations)
        axes.plot(steps, values, color=colour(i), lw=1.0, alpha=0.8, label=label)
    for k, (dtype, epsilon) in enumerate(_epsilons(report, runs)):
        chain = report.tolerance.step_roundings
        allowed = [4.0 * epsilon * (chain * t) ** 0.5 for t in steps]
        style = ("--", ":")[k % 2]
        label = f"tolerance, {dtype}"
        axes.plot(steps, allowed, color=INK, lw=1.2, ls=style, label=label)
    _title(axes, "Deviation of the loss from the reference")
    axes.set(xlabel="step", yscale="log")
    _legend(axes)
    return plot


def _plot_deviations(group: str, title: str) -> Callable[..., Any]:
    """Return a function that plots the deviations in a group, a row for each array."""

    def draw(report: Report, runs: Runs) -> Any:
        by_run = [r.deviations.group(group) if r.deviations else {} for _, _, r in runs]
        all_names = list(by_run[0])
        places = [name for name in all_names if name] or all_names
        if not places:
            return None
        plot, axes = figure(WIDTH, max(HEIGHT, 1.2 + 0.2 * len(places)))
        heights = range(len(places), 0, -1)
        limits: dict[str, list[float]] = {}
        for (i, name, r), entries in zip(runs, by_run, strict=True):
            deviations = [entries[place].relative for place in places]
            values = [value or float("nan") for value in deviations]
            mark = MARKS[i % len(MARKS)]
            label = _label(name, deviations)
            axes.plot(values, heights, mark, color=colour(i), alpha=0.8, label=label)
            allowed = [entries[place].tolerance or float("nan") for place in places]
            limits.setdefault(r.dtype, allowed)
        for k, (dtype, allowed) in enumerate(limits.items()):
            style = {"ms": 9, "mew": (1.5, 3.0)[k % 2], "label": f"tolerance, {dtype}"}
            axes.plot(allowed, heights, "|", color=INK, **style)
        _title(axes, title)
        axes.set(xscale="log", ylim=(0.4, len(places) + 0.6))
        low, high = map(math.log10, axes.get_xlim())
        axes.set_xlim(10.0 ** math.floor(low), 10.0 ** math.ceil(high))
        axes.minorticks_off()
        axes.set_yticks(heights, places)
        _legend(axes)
        return plot

    return draw


def _plot_times(report: Report, runs: Runs) -> Any:
    timed = [
        (i, name, r.step_ms, r.step_ms_quartiles)
        for i, name, r in runs
        if r.step_ms is not None and r.step_ms_quartiles is not None
    ]
    if not timed:
        return None
    plot, axes = figure(WIDTH, max(2.0, 1.0 + 0.5 * len(timed)))
    # A run that was disturbed by other programs may have a very long tail: cut it off.
    most = 2.5 * max(median for _, _, median, _ in timed)
    for height, (i, _, median, (low, high)) in enumerate(reversed(timed)):
        axes.barh(height, median, color=colour(i), height=0.4, alpha=0.85)
        axes.plot([low, min(high, most)], [height, height], color=INK, lw=1.4)
        if high > most:
            axes.plot(most, height, ">", color=INK, ms=5, clip_on=False)
            style = {"ha": "right", "va": "bottom", "fontsize": 8.5}
            axes.text(most, height + 0.2, f"to {high:.3g}", color=INK, **style)
    _title(axes, "Time per step, median and 25-75 %, ms")
    axes.set_xlim(0.0, min(axes.get_xlim()[1], most))
    _bar_names(axes, [name for _, name, _, _ in timed])
    return plot


def _plot_batch_timings(report: Report, runs: Runs) -> Any:
    plot, axes = figure(WIDTH, HEIGHT)
    sizes: set[int] = set()
    for i, name, r in runs:
        x = [batch.size for batch in r.batches or ()]
        y = [batch.step_ms for batch in r.batches or ()]
        if len(x) > 1:
            sizes.update(x)
            style = f"-{MARKS[i % len(MARKS)]}"
            axes.plot(x, y, style, color=colour(i), ms=5, label=name)
    if not sizes:
        return None
    _title(axes, "Time per step by batch size, ms")
    axes.set(xlabel="examples in a batch")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sorted(sizes), map(str, sorted(sizes)))
    axes.minorticks_off()
    _legend(axes)
    return plot


def _plot_memory(report: Report, runs: Runs) -> Any:
    parts = ("parameters", "state", "moments", "saved_for_backward")
    runs = [run for run in runs if run[2].memory is not None]
    plot, axes = figure(WIDTH, max(2.2, 1.2 + 0.5 * len(runs)))
    # Each label is used once, for the first bar of its kind.
    labels = {
        "peak": "peak, as the device reports it",
        "predicted": "predicted peak of a step",
    }
    for height, (_, _, r) in enumerate(reversed(runs)):
        for key, width in (("peak", 0.5), ("predicted", 0.4)):
            total = getattr(r.memory, key)
            if total is not None:
                style = {"height": width, "alpha": 0.25, "label": labels.pop(key, None)}
                axes.barh(height, total / 1e6, color=INK, **style)
        left = 0.0
        for k, part in enumerate(parts):
            size = (getattr(r.memory, part) or 0) / 1e6
            label = part.replace("_", " ") if height == 0 and size else None
            style = {"height": 0.25, "color": colour(k + 3), "label": label}
            axes.barh(height, size, left=left, **style)
            left += size
    _title(axes, "Memory of a step, MB")
    _bar_names(axes, [name for _, name, _ in runs])
    _legend(axes)
    return plot


_PLOTS = {
    _plot_losses: "The loss of each run and of the reference, by step",
    _plot_loss_deviations: (
        "The deviation of each run's loss from the reference, and the tolerance, by "
        "step"
    ),
    _plot_deviations("layers", "Outputs of layers, from the same inputs"): (
        "The deviation of each layer's output from the reference, from the same inputs"
    ),
    _plot_deviations("gradients", "Gradients, from the same inputs"): (
        "The deviation of each parameter's gradient from the reference, from the same "
        "inputs"
    ),
    _plot_deviations("parameters", "Parameters after the last step"): (
        "The deviation of each parameter from the reference, after the last step"
    ),
    _plot_times: "Milliseconds per step in each run",
    _plot_batch_timings: "Milliseconds per step in each run, by batch size",
    _plot_memory: "Memory of a step in each run in megabytes: the total and its parts",
}


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


def _label(name: str, deviations: Sequence[float | None]) -> str:
    """Return the legend's label of a run; it explains why the run has no marks.

    A logarithmic axis shows neither 0 nor unknown values.
    """
    if any(deviations):
        return name
    return f"{name}: unknown" if None in deviations else f"{name}: 0"


def _title(axes: Any, text: str) -> None:
    """Set a title that is aligned with the left edge of the figure, not of the axes."""
    axes.figure.suptitle(text, x=0.0, ha="left", fontsize=11, color=INK)


def _bar_names(axes: Any, names: list[str]) -> None:
    """Write the name of each bar above it: a phone has no space to the left of it."""
    axes.set_yticks([])
    axes.set_ylim(-0.4, len(names) - 0.4)
    for height, name in enumerate(reversed(names)):
        axes.text(0.0, height + 0.25, name, color=INK, va="bottom", fontsize=9)
    axes.spines["left"].set_visible(False)


def _log_scale_if_wide(axes: Any, numbers: list[float]) -> None:
    if numbers and max(numbers) > 30.0 * min(numbers):
        axes.set_yscale("log")


def _legend(axes: Any) -> None:
    """Draw the legend below the plot, where it hides nothing."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(len(handle.get_label()) for handle in handles) > 28 else 2
        place = {"loc": "outside lower left", "ncols": columns, "frameon": False}
        axes.figure.legend(handles=handles, fontsize=9.2, labelcolor=INK, **place)
