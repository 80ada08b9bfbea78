"""Plots of trainings in half precision next to those in float32."""

from ....display.pages import INK, PAPER, colour, figure
from ..schema import Report, Result
from .axes import MARKS, line_style, log_axis
from .half import half_runs
from .names import layer_order
from .plots import HEIGHT, MAX_POINTS, WIDTH, Plot, height_of_labels, row_labels

__all__ = ["half_plots"]


def half_plots(report: Report) -> list[Plot]:
    """Draw all plots about half precision; none if no run was in half precision."""
    runs = half_runs(report)
    if not runs:
        return []
    plots = [_plot_losses(report), _plot_layers(report)]
    return [plot for plot in plots if plot is not None]


def _plot_losses(report: Report) -> Plot | None:
    """Draw how much higher each loss in half precision is than that in float32."""
    plot, axes = figure(WIDTH, HEIGHT)
    drawn = False
    for i, r in enumerate(report.results):
        plain = _in_float32(report, r)
        if r.half_precision is None or plain is None:
            continue
        pairs = zip(r.losses or (), plain.losses or (), strict=True)
        gaps = [float("nan") if a is None or b is None else a - b for a, b in pairs]
        size = -(-len(gaps) // MAX_POINTS)
        parts = [gaps[k : k + size] for k in range(0, len(gaps), size)]
        means = [sum(part) / len(part) for part in parts]
        steps = range(1, len(gaps) + 1, size)
        axes.plot(steps, means, **line_style(i, len(means)))
        drawn = True
    if not drawn:
        return None
    axes.axhline(0.0, color=INK, lw=0.8)
    axes.set(xlabel="step", ylabel="difference of the losses")
    return Plot(
        plot,
        "Loss in half precision minus loss in float32",
        "Each run in half precision next to the run in float32 on the same device. "
        "Above 0 the loss in half precision is higher.",
    )


def _in_float32(report: Report, result: Result) -> Result | None:
    """Return the run in float32 with the device, machine and policy of `result`."""

    def key(r: Result) -> tuple[object, ...]:
        return r.name, r.machine, r.precision, r.deterministic

    same = (r for r in report.results if key(r) == key(result) and r.losses)
    return next((r for r in same if r.dtype == "float32"), None)


def _plot_layers(report: Report) -> Plot | None:
    """Draw the error of gradients if one layer computes in half precision."""
    runs = [
        (i, {each.path: each.gradient_error for each in r.half_precision.layers})
        for i, r in enumerate(report.results)
        if r.half_precision is not None
    ]
    places = sorted(
        {path for _, errors in runs for path in errors},
        key=lambda path: layer_order(report, path),
    )
    known = [error for _, errors in runs for error in errors.values() if error]
    if not known:
        return None
    labels = row_labels(report, places)
    row_height = height_of_labels(labels)
    plot, axes = figure(WIDTH, max(HEIGHT, 0.85 + row_height * len(places)))
    axis = log_axis(axes, "x", known)
    for i, errors in runs:
        for height, place in zip(range(len(places), 0, -1), places, strict=True):
            error = errors.get(place, 0.0)
            x = axis.high if error is None else axis.place(error)
            style = {"color": colour(i), "ms": 5.4, "mec": PAPER, "mew": 0.4}
            axes.plot(x, height, MARKS[i % len(MARKS)], **style, clip_on=False)
    axes.set_yticks(range(len(places), 0, -1), labels)
    axes.set_ylim(0.4, len(places) + 0.6)
    axes.set(xlabel="relative error of all gradients")
    return Plot(
        plot,
        "Error of gradients if one layer is in half precision",
        "Each layer in turn computes in half precision and the others in float32. The "
        "error is relative to the norm of all gradients in float64.",
    )
