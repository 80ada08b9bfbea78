"""Repeat the training of a backend, and see whether it repeats its own bits.

The loss of each step and everything that a training leaves behind (parameters, state
and the outputs for the test set) are compared bit by bit with those of the first
training. Each training compiles its step again, as a new process would.

If they differ, the parts of the step in which they begin to differ are repeated from
the same inputs (see `repeated_parts`), and the report names those that do not repeat.
A backend whose policy is deterministic differs then, however small the difference is.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...core.backend import Backend
from ...core.trees import named_leaves
from ...training.progress import Progress
from .choice import one_line
from .deviation import deviation
from .drift import Drift
from .probes import stored
from .repeated_parts import bits, changing_parts
from .running import Run, Task, run
from .schema import ChangingPart, Difference, RepeatDifference, Repeats, Result
from .verdicts import DIFFERS, Context

__all__ = ["with_repeats"]


def with_repeats(
    result: Result,
    task: Task,
    backend: Backend,
    first: Run,
    context: Context,
    bars: Progress,
    count: int,
) -> Result:
    """Train again until there are `count` runs, and add how they differ from the first.

    first: the run that `result` describes.
    """
    differences = [
        difference
        for number in range(2, count + 1)
        for difference in _differences(
            first,
            run(
                *(task, backend, stored(context.dtype)),
                f"repeat {number} of {count}",
                bars,
            ),
            context,
            number,
        )
    ]
    if not differences:
        return replace(result, repeats=Repeats(runs=count, same_bits=True))
    earliest = min(differences, key=lambda each: (each.step, each.run))
    parts, remark = _located(task, backend, stored(context.dtype), earliest)
    repeats = Repeats(
        runs=count,
        same_bits=False,
        first=earliest,
        largest=max(differences, key=_in_tolerances),
        parts=parts,
        remark=remark,
    )
    result = replace(result, repeats=repeats)
    return _judged(result, earliest) if backend.deterministic else result


def _judged(result: Result, earliest: RepeatDifference) -> Result:
    """Add a difference to a run that is deterministic by policy and does not repeat."""
    difference = Difference(
        step=earliest.step,
        description="the bits of repeated runs",
        quantity="repeats",
        name=earliest.name,
        layer=None,
        relative=earliest.relative,
        tolerance=0.0,
    )
    result = replace(result, differences=(*result.differences, difference))
    if result.status == DIFFERS:
        return result
    return replace(
        result,
        status=DIFFERS,
        first_difference=difference,
        verdict="is deterministic by policy, but does not repeat its own bits "
        f"from step {earliest.step:,}",
    )


def _in_tolerances(difference: RepeatDifference) -> float:
    """Return a difference in units of its tolerance; infinite if it is unknown."""
    if difference.relative is None or np.isnan(difference.relative):
        return float("inf")
    if not difference.tolerance:
        return float("inf") if difference.relative else 0.0
    return difference.relative / difference.tolerance


# --- two runs -------------------------------------------------------------------------


def _differences(
    first: Run, other: Run, context: Context, number: int
) -> Iterator[RepeatDifference]:
    """Yield the first loss whose bits differ, and each array at the end that differs.

    number: the number of the other run.
    """
    scaled = replace(first, scales=context.reference.scales)
    drift = replace(context, reference=scaled).drift(other)
    pairs = enumerate(zip(other.losses, first.losses, strict=True))
    for t in [t for t, (a, b) in pairs if bits(a) != bits(b)][:1]:
        yield RepeatDifference(
            run=number,
            step=t + 1,
            quantity="losses",
            name="",
            relative=drift.losses[t],
            ulps=_ulps(other.losses[t], first.losses[t], stored(context.dtype)),
            tolerance=drift.limits[t],
        )
    yield from _differences_at_end(first, other, drift, number)


def _ulps(loss: float, first: float, dtype: str) -> float:
    return deviation(np.asarray(loss), np.asarray(first), dtype).ulps


def _differences_at_end(
    first: Run, other: Run, drift: Drift, number: int
) -> Iterator[RepeatDifference]:
    theirs = _arrays_at_end(first)
    for (group, name), array in _arrays_at_end(other).items():
        if bits(array) == bits(theirs[group, name]):
            continue
        entry = drift.entries[group][name]
        yield RepeatDifference(
            run=number,
            step=entry.step,
            quantity=group,
            name=name,
            relative=entry.relative,
            ulps=entry.ulps,
            tolerance=entry.tolerance,
        )


def _arrays_at_end(trained: Run) -> dict[tuple[str, str], Any]:
    """Return the results of a training by their group and name, as in `Deviations`."""
    trees = {
        "parameters": named_leaves(trained.params),
        "trained_state": named_leaves(trained.state),
        "outputs": named_leaves(trained.outputs, "y"),
    }
    return {
        (group, name): leaf
        for group, named in trees.items()
        for name, leaf in named
        if leaf is not None
    }


# --- the part that does not repeat ----------------------------------------------------


def _located(
    task: Task, backend: Backend, dtype: str, earliest: RepeatDifference
) -> tuple[tuple[ChangingPart, ...], str | None]:
    """Return the parts that do not repeat; or none, and the reason."""
    step = earliest.step
    # A loss is computed with the parameters of the update before it.
    steps = (step - 1, step) if earliest.quantity == "losses" and step > 1 else (step,)
    try:
        with np.errstate(all="ignore"):
            parts = changing_parts(task, backend, dtype, steps)
    except Exception as error:  # the runs themselves remain valid
        reason = one_line(f"{type(error).__name__}: {error}")
        return (), f"the parts of the step could not be repeated: {reason}"
    listed = " and ".join(map(str, steps))
    which = f"step {listed}" if len(steps) == 1 else f"steps {listed}"
    remark = f"all parts of {which} repeat their bits, each from the same inputs"
    return parts, None if parts else remark
