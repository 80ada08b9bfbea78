"""Page: a report as HTML that stands alone, with plots of what its JSON holds."""

import math
from collections.abc import Callable
from html import escape
from typing import Any

from ...display.pages import INK, colour, figure, framed, render
from .report import (
    READING,
    by_size,
    environments,
    ledger,
    names,
    overview,
    remarks,
    sentence,
    summary,
    tolerances,
)

__all__ = ["Comparison", "page"]

MARKS = "osD^vPX*"
Runs = list[tuple[int, str, dict[str, Any]]]  # number, name and result of each

POINTS = 150  # of a line whose single steps are noise
REACH = 5.0, 3.0  # inches of a plot: several make a row at a desk, and each fits a phone


class Comparison(dict):
    """A report, as data for JSON; `str()` is text for a terminal, and a notebook shows the page."""

    def __str__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        try:
            return framed(page(self))
        except ImportError:
            return f"<pre>{escape(str(self))}</pre>"


def page(report: dict[str, Any]) -> str:
    """The text of report.html.

    Raises
    ------
    ImportError
        If what draws pages is not installed.
    """
    called = names(report)
    ran = [(i, n, r) for i, (n, r) in enumerate(zip(called, report["results"], strict=True))]
    done = [each for each in ran if each[2]["deviations"] is not None]
    verdicts = [(n, sentence(r), _class(r)) for _, n, r in ran]
    drawn = [(draw(report, done), about) for draw, about in _PLOTS.items()] if done else []
    return render(
        "compare.html",
        title=f"{report['workload']['name']}: the same training on every backend",
        about=f"{report['workload']['about']}.",
        report=report,
        verdicts=verdicts,
        remarks=list(remarks(report)),
        tables=[_trimmed(len(ran), *each) for each in overview(report)],
        plots=[(made, about) for made, about in drawn if made is not None],
        reading=[each.format(**report["tolerance"]) for each in READING],
        tolerances=tolerances(report),
        ledger=ledger(report) if report["ledger"] else None,
        by_size=by_size(report),
        environments=environments(report),
    )


def _trimmed(runs: int, title: str, columns: list[str], rows: list) -> tuple[str, list[str], list]:
    """A table, a run in each of its first rows, without what is the same or stands elsewhere.

    Verdicts stand at the head, and where there are several dtypes each run is called by its own.
    """
    same = {"verdict", "dtype"}
    if "dtype" in columns:
        several = {row[columns.index("dtype")] for row in rows[:runs]} - {None}
        title += f", in {several.pop()}" if len(several) == 1 else ""
    if "hardware" in columns:
        several = {row[columns.index("hardware")] for row in rows[:runs]} - {None}
        same |= {"hardware"} if len(several) < 2 else set()
    kept = [i for i, column in enumerate(columns) if column not in same]
    return title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _class(result: dict[str, Any]) -> str:
    if result["status"] in ("failed", "differs"):
        return "bad"
    return "doubt" if result["status"] == "not judged" or result["shortfall"] else "good"


def _losses(report: dict[str, Any], runs: Runs) -> Any:
    made, axes = figure(*REACH)
    reference = report["reference"]
    steps = range(1, len(reference["losses"]) + 1)
    some = -(-len(steps) // POINTS)
    for k, (i, name, r) in enumerate(runs):
        # the ones beneath are broader, so that all are seen where they are the same
        width = 1.2 + 1.1 * (len(runs) - k)
        numbers = _means(_numbers(r["losses"]), some)
        axes.plot(steps[::some], numbers, color=colour(i), lw=width, label=name)
    numbers = _means(_numbers(reference["losses"]), some)
    axes.plot(steps[::some], numbers, color=INK, lw=0.8, label=f"{reference['dtype']} reference")
    _title(axes, "Loss" if some == 1 else f"Loss, the mean of {some} steps each")
    axes.set(xlabel="step")
    _scale(axes, [n for n in numbers if n > 0])
    _key(axes)
    return made


def _by_step(report: dict[str, Any], runs: Runs) -> Any:
    made, axes = figure(*REACH)
    steps = range(1, len(report["reference"]["losses"]) + 1)
    for i, name, r in runs:
        off = r["loss_deviations"]
        shown = [value or float("nan") for value in _numbers(off)]
        axes.plot(steps, shown, color=colour(i), lw=1.0, alpha=0.8, label=_called(name, off))
    for k, (dtype, epsilon) in enumerate(_used(report, runs)):
        chain = report["tolerance"]["step"]
        allowed = [4.0 * epsilon * (chain * t) ** 0.5 for t in steps]
        style = ("--", ":")[k % 2]
        axes.plot(steps, allowed, color=INK, lw=1.2, ls=style, label=f"tolerance, {dtype}")
    _title(axes, "Deviation of the loss from the reference")
    axes.set(xlabel="step", yscale="log")
    _key(axes)
    return made


def _within(part: str, title: str) -> Callable:
    def draw(report: dict[str, Any], runs: Runs) -> Any:
        whole = list(runs[0][2]["deviations"][part])
        places = [name for name in whole if name] or whole
        if not places:
            return None
        made, axes = figure(REACH[0], max(REACH[1], 1.2 + 0.2 * len(places)))
        heights = range(len(places), 0, -1)
        limits: dict[str, list[float]] = {}
        for i, name, r in runs:
            found = r["deviations"][part]
            off = [found[place]["relative"] for place in places]
            shown = [value or float("nan") for value in off]
            mark = MARKS[i % len(MARKS)]
            axes.plot(shown, heights, mark, color=colour(i), alpha=0.8, label=_called(name, off))
            allowed = [found[place]["tolerance"] or float("nan") for place in places]
            limits.setdefault(r["dtype"], allowed)
        for k, (dtype, allowed) in enumerate(limits.items()):
            style = {"ms": 9, "mew": (1.5, 3.0)[k % 2], "label": f"tolerance, {dtype}"}
            axes.plot(allowed, heights, "|", color=INK, **style)
        _title(axes, title)
        axes.set(xscale="log", ylim=(0.4, len(places) + 0.6))
        low, high = axes.get_xlim()
        axes.set_xlim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
        axes.minorticks_off()
        axes.set_yticks(heights, places)
        _key(axes)
        return made

    return draw


def _times(report: dict[str, Any], runs: Runs) -> Any:
    timed = [(i, n, r) for i, n, r in runs if r["step_ms"] is not None]
    if not timed:
        return None
    made, axes = figure(REACH[0], max(2.0, 1.0 + 0.5 * len(timed)))
    most = 2.5 * max(r["step_ms"] for _, _, r in timed)  # a disturbed run may have any tail
    for height, (i, _, r) in enumerate(reversed(timed)):
        low, high = r["step_ms_quartiles"]
        axes.barh(height, r["step_ms"], color=colour(i), height=0.4, alpha=0.85)
        axes.plot([low, min(high, most)], [height, height], color=INK, lw=1.4)
        if high > most:
            axes.plot(most, height, ">", color=INK, ms=5, clip_on=False)
            said = {"ha": "right", "va": "bottom", "fontsize": 8.5}
            axes.text(most, height + 0.2, f"to {high:.3g}", color=INK, **said)
    _title(axes, "Time of a step and its middle half, ms")
    axes.set_xlim(0.0, min(axes.get_xlim()[1], most))
    _bars(axes, [n for _, n, _ in timed])
    return made


def _by_size(report: dict[str, Any], runs: Runs) -> Any:
    made, axes = figure(*REACH)
    sizes: set[int] = set()
    for i, name, r in runs:
        x = [each["size"] for each in r["batches"] or ()]
        y = [each["step_ms"] for each in r["batches"] or ()]
        if len(x) > 1:
            sizes.update(x)
            axes.plot(x, y, f"-{MARKS[i % len(MARKS)]}", color=colour(i), ms=5, label=name)
    if not sizes:
        return None
    _title(axes, "Time of a step by the size of its batch, ms")
    axes.set(xlabel="examples in a batch")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sorted(sizes), map(str, sorted(sizes)))
    axes.minorticks_off()
    _key(axes)
    return made


def _memory(report: dict[str, Any], runs: Runs) -> Any:
    held = [(n, r["memory"]) for _, n, r in runs]
    parts = ("parameters", "state", "moments", "kept_for_backward")
    made, axes = figure(REACH[0], max(2.2, 1.2 + 0.5 * len(held)))
    told = {"peak": "in use at most, as the device tells", "predicted": "foretold of a step"}
    for height, (_, found) in enumerate(reversed(held)):
        for key, width in (("peak", 0.5), ("predicted", 0.4)):
            if found[key] is not None:
                shade = {"height": width, "alpha": 0.25, "label": told.pop(key, None)}
                axes.barh(height, found[key] / 1e6, color=INK, **shade)
        left = 0.0
        for k, part in enumerate(parts):
            size = (found[part] or 0) / 1e6
            label = part.replace("_", " ") if height == 0 and size else None
            axes.barh(height, size, left=left, color=colour(k + 3), height=0.25, label=label)
            left += size
    _title(axes, "Memory of a step, MB")
    _bars(axes, [n for n, _ in held])
    _key(axes)
    return made


_PLOTS = {
    _losses: "The loss of each run by step, and of the reference",
    _by_step: "How far the loss of each run is from the reference's, by step, and the tolerance",
    _within("layers", "Outputs of layers, from the same numbers"): (
        "How far the output of each layer is from the reference, in a step from the same numbers"
    ),
    _within("gradients", "Gradients, from the same numbers"): (
        "How far the gradient of each parameter is from the reference, from the same numbers"
    ),
    _within("parameters", "Parameters after the last step"): (
        "How far each parameter is from the reference, after the last step"
    ),
    _times: "Milliseconds that a step takes in each run",
    _by_size: "Milliseconds that a step takes in each run, by the size of the batch",
    _memory: "Megabytes that a step holds in each run, in all and by what they are for",
}


def _used(report: dict[str, Any], runs: Runs) -> list[tuple[str, float]]:
    dtypes = {r["dtype"] for _, _, r in runs}
    return [(d, epsilon) for d, epsilon in report["tolerance"]["epsilon"].items() if d in dtypes]


def _numbers(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _means(numbers: list[float], some: int) -> list[float]:
    parts = (numbers[i : i + some] for i in range(0, len(numbers), some))
    return [sum(part) / len(part) for part in parts]


def _called(name: str, off: list[float | None]) -> str:
    """A run in a key, which says why it has no mark: 0 is not drawn where decades are."""
    if any(off):
        return name
    return f"{name}: not known" if None in off else f"{name}: 0"


def _title(axes: Any, text: str) -> None:
    """A title that begins where the plot does with all its labels, and not where its lines do."""
    axes.figure.suptitle(text, x=0.0, ha="left", fontsize=11, color=INK)


def _bars(axes: Any, names: list[str]) -> None:
    """The name of each bar above it, from the top down: beside it there is no room on a phone."""
    axes.set_yticks([])
    axes.set_ylim(-0.4, len(names) - 0.4)
    for height, name in enumerate(reversed(names)):
        axes.text(0.0, height + 0.25, name, color=INK, va="bottom", fontsize=9)
    axes.spines["left"].set_visible(False)


def _scale(axes: Any, numbers: list[float]) -> None:
    if numbers and max(numbers) > 30.0 * min(numbers):
        axes.set_yscale("log")


def _key(axes: Any) -> None:
    """The key beneath the plot: it hides nothing there, however many runs there are."""
    found, _ = axes.get_legend_handles_labels()
    if found:
        wide = 1 if max(len(h.get_label()) for h in found) > 28 else 2
        beneath = {"loc": "outside lower left", "ncols": wide, "frameon": False}
        axes.figure.legend(handles=found, fontsize=9.2, labelcolor=INK, **beneath)
