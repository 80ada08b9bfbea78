"""Page: a report as HTML that stands alone, with plots of what its JSON holds."""

import math
from collections.abc import Callable
from typing import Any

from ..pages import INK, colour, figure, render
from .report import (
    READING,
    by_size,
    environments,
    names,
    overview,
    remarks,
    sentence,
    tolerances,
)

__all__ = ["page"]

MARKS = "osD^vPX*"
Runs = list[tuple[int, str, dict[str, Any]]]  # number, name and result of each

REACH = 5.0, 3.0  # inches of a plot: several make a row at a desk, and each fits a phone


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
        tables=[_trimmed(*each) for each in overview(report)],
        plots=[(made, about) for made, about in drawn if made is not None],
        reading=[each.format(**report["tolerance"]) for each in READING],
        tolerances=tolerances(report),
        by_size=by_size(report),
        environments=environments(report),
    )


def _trimmed(title: str, columns: list[str], rows: list) -> tuple[str, list[str], list]:
    """A table without verdicts, which stand at the head, and without hardware that is the same."""
    same = {"verdict"}
    if "hardware" in columns:
        place = columns.index("hardware")
        several = {row[place] for row in rows if row[place] is not None}
        same |= {"hardware"} if len(several) < 2 else set()
    kept = [i for i, column in enumerate(columns) if column not in same]
    return title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _class(result: dict[str, Any]) -> str:
    if result["error"] is not None:
        return "bad"
    return "good" if result["left_tolerance"] is None else "doubt"


def _losses(report: dict[str, Any], runs: Runs) -> Any:
    made, axes = figure(*REACH)
    reference = report["reference"]
    steps = range(1, len(reference["losses"]) + 1)
    for i, name, r in runs:
        # the ones beneath are broader, so that all are seen where they are the same
        width = 0.8 + 1.2 * (len(runs) - i)
        axes.plot(steps, _numbers(r["losses"]), color=colour(i), lw=width, alpha=0.75, label=name)
    numbers = _numbers(reference["losses"])
    axes.plot(steps, numbers, color=INK, lw=0.8, label=f"{reference['dtype']} reference")
    axes.set_title("Loss", loc="left")
    axes.set(xlabel="step")
    _scale(axes, [n for n in numbers if n > 0])
    _key(axes)
    return made


def _by_step(report: dict[str, Any], runs: Runs) -> Any:
    made, axes = figure(*REACH)
    steps = range(1, len(report["reference"]["losses"]) + 1)
    for i, name, r in runs:
        off = [value or float("nan") for value in _numbers(r["loss_deviations"])]
        axes.plot(steps, off, color=colour(i), lw=1.0, alpha=0.8, label=name)
    for dtype, epsilon in _used(report, runs):
        chain = report["tolerance"]["step"]
        allowed = [4.0 * epsilon * (chain * t) ** 0.5 for t in steps]
        axes.plot(steps, allowed, color=INK, lw=1.0, ls="--", label=f"tolerance, {dtype}")
    axes.set_title("Deviation of the loss from the reference", loc="left")
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
        allowed: dict[str, None] = {}
        for i, name, r in runs:
            found = r["deviations"][part]
            off = [found[place]["relative"] or float("nan") for place in places]
            axes.plot(off, heights, MARKS[i % len(MARKS)], color=colour(i), alpha=0.8, label=name)
            if r["dtype"] not in allowed:
                allowed[r["dtype"]] = None
                limits = [found[place]["tolerance"] or float("nan") for place in places]
                label = f"tolerance, {r['dtype']}"
                axes.plot(limits, heights, "|", color=INK, ms=9, mew=1.5, label=label)
        axes.set_title(title, loc="left")
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
    made, axes = figure(REACH[0], max(2.0, 1.0 + 0.4 * len(timed)))
    for height, (i, _, r) in enumerate(reversed(timed)):
        low, high = r["step_ms_quartiles"]
        axes.barh(height, r["step_ms"], color=colour(i), height=0.55, alpha=0.85)
        axes.plot([low, high], [height, height], color=INK, lw=1.4)
    axes.set_title("Time of a step and its middle half, ms", loc="left")
    axes.set_yticks(range(len(timed)), [n for _, n, _ in reversed(timed)])
    most = max(r["step_ms"] for _, _, r in timed)
    axes.set_xlim(0.0, min(axes.get_xlim()[1], 2.5 * most))  # a disturbed run may have any tail
    axes.grid(False, axis="y")
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
    axes.set_title("Time of a step by the size of its batch, ms", loc="left")
    axes.set(xlabel="examples in a batch")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sorted(sizes), map(str, sorted(sizes)))
    axes.minorticks_off()
    _key(axes)
    return made


def _memory(report: dict[str, Any], runs: Runs) -> Any:
    held = [(n, r["memory"]) for _, n, r in runs]
    parts = ("parameters", "state", "moments", "kept_for_backward")
    made, axes = figure(REACH[0], max(2.2, 1.2 + 0.4 * len(held)))
    told = {"peak": "in use at most, as the device tells", "predicted": "foretold of a step"}
    for height, (_, found) in enumerate(reversed(held)):
        for key, width in (("peak", 0.8), ("predicted", 0.6)):
            if found[key] is not None:
                shade = {"height": width, "alpha": 0.25, "label": told.pop(key, None)}
                axes.barh(height, found[key] / 1e6, color=INK, **shade)
        left = 0.0
        for k, part in enumerate(parts):
            size = (found[part] or 0) / 1e6
            label = part.replace("_", " ") if height == 0 and size else None
            axes.barh(height, size, left=left, color=colour(k + 3), height=0.35, label=label)
            left += size
    axes.set_title("Memory of a step, MB", loc="left")
    axes.set_yticks(range(len(held)), [n for n, _ in reversed(held)])
    axes.grid(False, axis="y")
    _key(axes)
    return made


_PLOTS = {
    _losses: "The loss of each run by step, and of the reference",
    _by_step: "How far the loss of each run is from the reference's, by step, and the tolerance",
    _within("layers", "Outputs of layers at the first step"): (
        "How far what each layer puts out is from the reference, at the first step"
    ),
    _within("gradients", "Gradients at the first step"): (
        "How far the gradient of each parameter is from the reference, at the first step"
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


def _scale(axes: Any, numbers: list[float]) -> None:
    if numbers and max(numbers) > 30.0 * min(numbers):
        axes.set_yscale("log")


def _key(axes: Any) -> None:
    """The key beneath the plot: it hides nothing there, however many runs there are."""
    found, _ = axes.get_legend_handles_labels()
    if found:
        wide = 1 if max(len(h.get_label()) for h in found) > 28 else 2
        beneath = {"loc": "outside lower left", "ncols": wide, "frameon": False}
        axes.figure.legend(handles=found, fontsize=8.5, labelcolor=INK, **beneath)
