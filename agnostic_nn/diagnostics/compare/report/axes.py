"""Axes, lines and row names of the plots of a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....display.pages import INK, PAPER, colour

__all__ = [
    "DASHES",
    "MARKS",
    "SMALL",
    "LogAxis",
    "dashes",
    "legend",
    "line_style",
    "log_axis",
    "row_height",
    "row_names",
]

# matplotlib's names of the markers, and dash patterns in units of the line's width;
# there are not as many as colours, so that rarely all three are the same
MARKS = "osD^vPX"
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (2, 1.2), (6, 1.5, 1.5, 1.5))
SMALL = 9.6  # points, of text within a plot


@dataclass(frozen=True)
class LogAxis:
    """The two ends of a logarithmic axis; 0 is drawn at the low one."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Return where to draw a value."""
        return self.low if value <= 0.0 else value


def log_axis(
    axes: Any, side: str, values: Sequence[float], limits: Sequence[float] = ()
) -> LogAxis:
    """Make an axis logarithmic, with ticks for `values`, also for 0, and `limits`."""
    every = [value for value in (*values, *limits) if 0.0 < value < math.inf]
    low, high = (min(every), max(every)) if every else (1e-8, 1.0)
    first = math.floor(math.log10(low) + 1e-9)
    last = math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    if high / low < 30.0 and 0.0 not in values:
        steps = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        below = max([step for step in steps if step <= low * 1.001], default=steps[0])
        above = min([step for step in steps if step >= high * 0.999], default=steps[-1])
        ticks = [step for step in steps if below <= step <= above]
    else:
        stride = -(-(last - first + 1) // 6)
        ticks = [10.0**e for e in range(first, last + 1, stride)]
        below, above = 10.0**first, 10.0**last
    labels = [_power(tick) for tick in ticks]
    if 0.0 in values:
        below = 10.0 ** (first - max(1.0, (last - first) / 7.0))
        ticks, labels = [below, *ticks], ["0", *labels]
    getattr(axes, f"set_{side}scale")("log")
    margin = (above / below) ** 0.02
    getattr(axes, f"set_{side}lim")(below / margin, above * margin)
    axes.minorticks_off()
    getattr(axes, f"set_{side}ticks")(ticks, labels)
    return LogAxis(below, above)


def _power(number: float) -> str:
    """Return a number such as 1e-8 or 0.05 as short as possible."""
    text = f"{number:.6g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def line_style(i: int, points: int, above: int = 0) -> dict[str, Any]:
    """Return the style of the line of run number i, with a few markers on it.

    above: the number of lines that are drawn over it; it is wider by so much that a
    line that coincides with them shows.
    """
    every = max(1, points // 5)
    return {
        "color": colour(i),
        "dashes": dashes(i),
        "lw": 1.4 + 0.35 * above,
        "marker": MARKS[i % len(MARKS)],
        "ms": 4.5 + 0.5 * above,
        "mec": PAPER,
        "mew": 0.4,
        # Runs have their markers at different steps, so that lines that coincide show.
        "markevery": (i * every // len(MARKS) % every, every),
        "clip_on": False,
    }


def dashes(i: int) -> tuple[float, ...]:
    """Return the dash pattern of run number i, as matplotlib takes it."""
    return DASHES[i % len(DASHES)] or (1, 0)


def row_height(names: list[str]) -> float:
    """Return the inches of a row whose name is written above it."""
    return 0.29 + 0.13 * max(name.count("\n") + 1 for name in names)


def row_names(axes: Any, names: list[str]) -> None:
    """Write the name of each row above it: a phone has no space to the left of it."""
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(names) - 0.2)
    axes.grid(visible=False, axis="y")
    left = axes.get_yaxis_transform()  # x in units of the axis, y as in the data
    for height, name in enumerate(reversed(names)):
        style = {"color": INK, "va": "bottom", "fontsize": SMALL, "transform": left}
        axes.text(0.0, height + 0.22, name, **style)
    axes.spines["left"].set_visible(False)


def legend(axes: Any) -> None:
    """Draw the legend below the plot, where it hides nothing."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        place = {"loc": "outside lower left", "ncols": 2, "frameon": False}
        axes.figure.legend(handles=handles, fontsize=SMALL, labelcolor=INK, **place)
