"""Drift: how far a training is from the reference, at each step and at the end."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.precisions import epsilon
from ...core.trees import leaves, named_leaves
from .deviation import Deviation, deviation, loss_deviations, tolerance
from .probes import Named, flat
from .rounding import Chains, layer_of
from .running import Run

__all__ = ["Drift", "Entry", "drift", "entry_of", "is_far", "largest", "state_scale"]


@dataclass(frozen=True)
class Entry(Deviation):
    """The deviation of an array, with what it is judged by.

    tolerance: the limit for `relative`, or None if it is not checked; step: where it
    was computed; scale: what `relative` is relative to. The report has it as an
    `ArrayDeviation`, in which None stands for NaN and infinity.
    """

    tolerance: float | None
    step: int
    scale: float


@dataclass(frozen=True)
class Drift:
    """Deviations of a whole training from the reference.

    losses: the deviation of the loss at each step; limits: its tolerance at each step;
    entries: the deviations of the results after the last step, by group and name.
    """

    losses: list[float]
    limits: list[float]
    entries: dict[str, dict[str, Entry]]


def drift(
    run: Run, reference: Run, dtype: str, chains: Chains, zero_gradients: set[str]
) -> Drift:
    """Return the deviations of `run`, which computed in `dtype`, from the reference."""
    size = epsilon(dtype)
    last = len(reference.losses)
    limits = [tolerance(size, chains.step * t) for t in range(1, last + 1)]
    end = limits[-1]
    losses = loss_deviations(run.losses, reference.losses, reference.scales)

    largest_parameter = max(map(largest, leaves(reference.params)), default=0.0)
    parameters = {}
    for path, ours, theirs in _pairs(run.params, reference.params):
        # A parameter whose gradient is zero has no natural scale: use the others'.
        scale = largest_parameter if path in zero_gradients else 0.0
        parameters[path] = entry_of(ours, theirs, dtype, end, last, scale)

    reference_state = flat(reference.state)
    state = {}
    for path, ours, theirs in _pairs(run.state, reference.state):
        scale = state_scale(reference_state, layer_of(path, chains.outputs))
        state[path] = entry_of(ours, theirs, dtype, end, last, scale)

    outputs = {
        path: entry_of(ours, theirs, dtype, end, last)
        for path, ours, theirs in _pairs(run.outputs, reference.outputs, "y")
    }
    entries = {
        "losses": {"": _worst_loss(run, reference, losses, limits, dtype)},
        "parameters": parameters,
        "trained_state": state,
        "outputs": outputs,
    }
    return Drift(losses, limits, entries)


def _pairs(ours: Any, theirs: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return the path and both leaves of two trees, without leaves that are None."""
    pairs = zip(named_leaves(ours, prefix), leaves(theirs), strict=True)
    return [(path, leaf, other) for (path, leaf), other in pairs if leaf is not None]


def _worst_loss(
    run: Run, reference: Run, losses: list[float], limits: list[float], dtype: str
) -> Entry:
    """Return the entry of the step whose loss deviates most, in units of its limit."""
    ratios = np.asarray(losses) / np.asarray(limits)
    worst = int(np.argmax(np.where(np.isnan(ratios), np.inf, ratios)))
    ours = np.asarray([run.losses[worst]])
    theirs = np.asarray([reference.losses[worst]])
    far = deviation(ours, theirs, dtype)
    return Entry(
        absolute=far.absolute,
        relative=losses[worst],
        ulps=far.ulps,
        tolerance=limits[worst],
        step=worst + 1,
        scale=reference.scales[worst],
    )


def entry_of(
    ours: Any,
    theirs: Any,
    dtype: str,
    limit: float | None,
    step: int,
    scale: float = 0.0,
) -> Entry:
    """Return deviation, tolerance and step of an array; integers have to be equal.

    scale: what the deviation is relative to, if that is more than the largest of
    `theirs`.
    """
    is_float = np.asarray(theirs).dtype.kind == "f"
    far = deviation(ours, theirs, dtype, scale if is_float else 0.0)
    return Entry(
        absolute=far.absolute,
        relative=far.relative,
        ulps=far.ulps,
        tolerance=limit if is_float else 0.0,
        step=step,
        scale=max(scale, largest(theirs)),
    )


def is_far(entry: Entry) -> bool:
    """Return whether an entry exceeds its tolerance; NaN does."""
    # "not within" instead of "beyond", because comparisons with NaN are false
    return entry.tolerance is not None and not entry.relative <= entry.tolerance


def largest(array: Any) -> float:
    """Return the largest magnitude in an array of floats; 0 for any other array."""
    array = np.asarray(array)
    if array.dtype.kind != "f" or not array.size:
        return 0.0
    return float(np.max(np.abs(array)))


def state_scale(named: Named, path: str, prefix: str = "") -> float:
    """Return the largest number in the state of a layer.

    All arrays of a layer's state share it, because a running mean may be close to 0.
    """
    start = f"{prefix}{path}." if path else prefix
    sizes = (largest(leaf) for name, leaf in named.items() if name.startswith(start))
    return max(sizes, default=0.0)
