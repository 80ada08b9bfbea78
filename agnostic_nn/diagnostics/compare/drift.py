"""Drift: how far a whole training lies from the reference's, in each step and at the end."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...core.trees import leaves, named_leaves
from .deviation import deviation, loss_deviations, tolerance
from .probes import Named, flat
from .rounding import Chains, layer_of
from .running import Run

__all__ = ["Drift", "Entry", "drift", "entry_of", "is_far", "largest", "state_scale"]

Entry = dict[str, Any]


@dataclass(frozen=True)
class Drift:
    """Deviations of a training: of the loss in each step, and of what it ended with.

    limits: the tolerance of the loss in each step; entries: by group and name.
    """

    losses: list[float]
    limits: list[float]
    entries: dict[str, dict[str, Entry]]


def drift(
    done: Run, reference: Run, dtype: str, chains: Chains, nothing: set[str], name: str = ""
) -> Drift:
    """How far `done`, computed in `dtype`, lies from the reference."""
    epsilon, last = float(np.finfo(dtype).eps), len(reference.losses)
    limits = [tolerance(epsilon, chains.step * t) for t in range(1, last + 1)]
    end = limits[-1]
    off = loss_deviations(done.losses, reference.losses, reference.scales)

    size = max(map(largest, leaves(reference.params)), default=0.0)
    parameters = {
        # what never had a gradient has no size: that of all others is its scale
        path: entry_of(ours, theirs, dtype, end, last, size if path in nothing else 0.0)
        for path, ours, theirs in _pairs(done.params, reference.params)
    }
    named = flat(reference.state)
    state = {
        path: entry_of(
            *(ours, theirs, dtype, end, last),
            state_scale(named, layer_of(path, chains.outputs)),
        )
        for path, ours, theirs in _pairs(done.state, reference.state)
    }
    outputs = {
        path: entry_of(ours, theirs, dtype, end, last)
        for path, ours, theirs in _pairs(done.outputs, reference.outputs, "y")
    }
    losses = _of_losses(done, reference, off, limits, dtype)
    entries = {
        "losses": {"": losses},
        "parameters": parameters,
        "trained_state": state,
        "outputs": outputs,
    }
    return Drift(off, limits, entries)


def _pairs(ours: Any, theirs: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    pairs = zip(named_leaves(ours, prefix), leaves(theirs), strict=True)
    return [(name, one, other) for (name, one), other in pairs if one is not None]


def _of_losses(
    done: Run, reference: Run, off: list[float], limits: list[float], dtype: str
) -> Entry:
    """The entry of the step whose loss is furthest off, measured by its own tolerance."""
    ratios = np.asarray(off) / np.asarray(limits)
    worst = int(np.argmax(np.where(np.isnan(ratios), np.inf, ratios)))
    ours, theirs = (np.asarray([run.losses[worst]]) for run in (done, reference))
    found = asdict(deviation(ours, theirs, dtype)) | {"relative": off[worst]}
    place = {"tolerance": limits[worst], "step": worst + 1}
    return found | place | {"scale": reference.scales[worst]}


def entry_of(
    ours: Any, theirs: Any, dtype: str, limit: float | None, step: int, scale: float = 0.0
) -> Entry:
    """Deviation, tolerance and step; whole numbers have to be the same.

    scale: what the deviation is relative to, if larger than the largest of `theirs`.
    """
    real = np.asarray(theirs).dtype.kind == "f"
    found = asdict(deviation(ours, theirs, dtype, scale if real else 0.0))
    place = {"tolerance": limit if real else 0.0, "step": step}
    return found | place | {"scale": max(scale, largest(theirs))}


def is_far(entry: Entry) -> bool:
    """Whether an entry is beyond its tolerance; NaN is."""
    # "not within" instead of "beyond": NaN is neither
    return entry["tolerance"] is not None and not entry["relative"] <= entry["tolerance"]


def largest(array: Any) -> float:
    """The largest magnitude of real numbers; 0 of all else."""
    array = np.asarray(array)
    if array.dtype.kind != "f" or not array.size:
        return 0.0
    return float(np.max(np.abs(array)))


def state_scale(named: Named, path: str, prefix: str = "") -> float:
    """The largest number of the state of a layer: its running mean may happen to be near 0."""
    start = f"{prefix}{path}." if path else prefix
    return max((largest(leaf) for name, leaf in named.items() if name.startswith(start)), default=0)
