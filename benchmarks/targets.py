"""Targets for the benchmarks, as data, and whether they were reached.

    ratio   the median of ours over the median of theirs, in one run
    noise   by how much, relatively, that ratio may be off: the half width of its 95 %
            interval by a bootstrap over rounds, or the ratio of the same contender to
            itself in two processes, whichever is larger

If the target is within the noise of the ratio, the verdict is a tie.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles

from .running import AGAIN, REFERENCE

__all__ = [
    "DRAWS",
    "TARGETS",
    "Ratio",
    "Target",
    "compared",
    "judged",
    "ratio",
    "twins",
]

DRAWS = 1000


@dataclass(frozen=True)
class Target:
    """An upper bound for the ratio of our time or memory to that of the best of `against`.

    measure: "step", "epoch" or "predict", of time; or "memory", the most of it: that of
    NumPy's arrays for contenders on NumPy, else that of the process.
    """

    workload: str
    measure: str
    ours: str
    against: tuple[str, ...]
    at_most: float


_NUMPY, _JAX, _TORCH = REFERENCE, "agnostic_nn jax", "agnostic_nn torch"
_ON_JAX, _ON_NUMPY = ("equinox", "flax-nnx"), ("by hand", "scikit-learn", "thinc")
_EACH = ("mlp", "tiny", "cnn", "lstm", "transformer", "wide")
_ASKED = (
    Target("mlp", "step", _NUMPY, ("pytorch",), 1.2),
    Target("mlp", "step", _NUMPY, ("scikit-learn",), 0.42),
    Target("mlp", "step", _NUMPY, ("thinc",), 0.42),
    Target("mlp", "step", _NUMPY, ("products",), 1.5),
    Target("mlp", "step", _JAX, _ON_JAX, 0.95),
    *(
        Target(w, "step", _JAX, _ON_JAX, 1.0)
        for w in ("cnn", "lstm", "transformer", "wide")
    ),
    *(
        Target(w, "step", _TORCH, ("pytorch",), 1.0)
        for w in ("mlp", "cnn", "lstm", "transformer")
    ),
    Target("tiny", "step", _NUMPY, ("by hand",), 1.3),
    Target("tiny", "step", _NUMPY, ("pytorch",), 0.5),
    Target("tiny", "epoch", f"{_JAX}, Trainer", ("keras-jax",), 0.1),
    Target("tiny", "epoch", f"{_JAX}, Trainer", (_JAX,), 0.3),
    Target("tiny", "predict", _NUMPY, ("by hand",), 1.4),
    Target("cnn", "step", _NUMPY, ("pytorch",), 1.4),
    Target("lstm", "step", _NUMPY, ("pytorch",), 1.3),
    Target("transformer", "step", _NUMPY, ("pytorch",), 1.3),
    *(Target(w, "memory", _NUMPY, _ON_NUMPY, 1.0) for w in ("mlp", "tiny", "wide")),
    *(Target(w, "memory", _JAX, _ON_JAX, 1.0) for w in _EACH),
    *(Target(w, "memory", _TORCH, ("pytorch",), 1.0) for w in _EACH),
)


def _with_kernels(target: Target) -> Iterator[Target]:
    """Return the targets of NumPy and PyTorch, without and with the extra `llvm`."""
    yield target
    if target.ours in (_NUMPY, _TORCH):
        yield replace(target, ours=f"{target.ours}, kernels")


TARGETS = tuple(one for target in _ASKED for one in _with_kernels(target))


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its relative uncertainty."""

    value: float
    noise: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.value * self.noise:.2f}"

    def against(self, bound: float) -> str:
        """Return whether the ratio is "below" the bound, a "tie", or "above" it."""
        if abs(math.log(self.value / bound)) <= self.noise:
            return "tie"
        return "below" if self.value < bound else "above"


def ratio(ours: Sequence[float], theirs: Sequence[float], floor: float = 0.0) -> Ratio:
    """Return the ratio of medians over rounds taken in turns; its noise is at least `floor`."""
    draw, count = random.Random(0), min(len(ours), len(theirs))
    result = []
    for _ in range(DRAWS if count > 1 else 0):
        rounds = draw.choices(range(count), k=count)
        result.append(
            math.log(
                median(ours[i] for i in rounds) / median(theirs[i] for i in rounds)
            )
        )
    # 2.5 % lie outside on each side
    cuts = quantiles(result, n=40) if result else [0.0, 0.0]
    return Ratio(median(ours) / median(theirs), max((cuts[-1] - cuts[0]) / 2, floor))


def twins(result: dict, measure: str) -> float:
    """Return the ratio of a contender to itself in another process: the noise of the harness."""
    one, other = (
        _seconds(result, label, measure) for label in (REFERENCE, REFERENCE + AGAIN)
    )
    if not one or not other:
        return 0.0
    results = ratio(one, other)
    return max(abs(math.log(results.value)), results.noise)


def compared(result: dict, measure: str, ours: str, theirs: str) -> Ratio | None:
    """Return the ratio of `ours` to `theirs` at one workload, or None if one was not measured."""
    if measure == "memory":
        return _memory(result["contenders"], ours, theirs)
    one, other = (_seconds(result, label, measure) for label in (ours, theirs))
    return ratio(one, other, twins(result, measure)) if one and other else None


def _seconds(result, label, measure):
    return result["contenders"].get(label, {}).get("seconds", {}).get(measure, [])


def _memory(contenders, ours, theirs):
    """Return memory of NumPy arrays if both contenders use them, else memory of the process."""
    if ours not in contenders or theirs not in contenders:
        return None
    one, other = contenders[ours], contenders[theirs]
    if one["array_bytes"] and other["array_bytes"]:
        return Ratio(one["array_bytes"] / other["array_bytes"], 0.0)
    one, other = one["resident_bytes"], other["resident_bytes"]
    same = [
        contenders[label]["resident_bytes"] for label in (REFERENCE, REFERENCE + AGAIN)
    ]
    return Ratio(one / other, abs(same[0] - same[1]) / min(one, other))


def judged(workloads: dict) -> Iterator[tuple[Target, str | None, Ratio | None, str]]:
    """Return for each target of these workloads its best opponent, the ratio and the verdict.

    "reached", "tie", "missed", or "not measured".
    """
    for target in TARGETS:
        if target.workload not in workloads:
            continue
        result = workloads[target.workload]
        results = {
            name: compared(result, target.measure, target.ours, name)
            for name in target.against
        }
        results = {name: ratio for name, ratio in results.items() if ratio}
        best = max(results, key=lambda name: results[name].value, default=None)
        text = {"below": "reached", "tie": "tie", "above": "missed"}
        verdict = (
            text[results[best].against(target.at_most)] if results else "not measured"
        )
        yield target, best, results.get(best), verdict
