"""Targets for the benchmarks, as data, and whether they were reached.

    ratio   the median of ours over the median of theirs, in one run
    noise   the relative uncertainty of that ratio: half the width of its 95 % interval
            by a bootstrap over rounds, or the ratio of the same contender to itself in
            two processes, whichever is larger

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
    """An upper bound for our time or memory, relative to the best of `against`.

    measure: "step", "epoch" or "predict" for time, or "memory" for peak memory: that of
    NumPy's arrays if both contenders use only those, else that of the process.
    """

    workload: str
    measure: str
    ours: str
    against: tuple[str, ...]
    at_most: float


_NUMPY, _JAX, _TORCH = REFERENCE, "agnostic_nn jax", "agnostic_nn torch"
_ON_JAX, _ON_NUMPY = ("equinox", "flax-nnx"), ("by hand", "scikit-learn", "thinc")
_EACH = ("mlp", "tiny", "cnn", "lstm", "transformer", "wide")
_WITHOUT_KERNELS = (
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


TARGETS = tuple(t for target in _WITHOUT_KERNELS for t in _with_kernels(target))


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
    """Return the ratio of medians over rounds; its noise is at least `floor`."""
    generator, count = random.Random(0), min(len(ours), len(theirs))
    logarithms = []
    for _ in range(DRAWS if count > 1 else 0):
        rounds = generator.choices(range(count), k=count)
        our_median = median(ours[i] for i in rounds)
        their_median = median(theirs[i] for i in rounds)
        logarithms.append(math.log(our_median / their_median))
    # the outer cuts leave 2.5 % on each side
    cuts = quantiles(logarithms, n=40) if logarithms else [0.0, 0.0]
    return Ratio(median(ours) / median(theirs), max((cuts[-1] - cuts[0]) / 2, floor))


def twins(result: dict, measure: str) -> float:
    """Return the noise of the harness, from two processes of the same contender."""
    first = _seconds(result, REFERENCE, measure)
    second = _seconds(result, REFERENCE + AGAIN, measure)
    if not first or not second:
        return 0.0
    same = ratio(first, second)
    return max(abs(math.log(same.value)), same.noise)


def compared(result: dict, measure: str, ours: str, theirs: str) -> Ratio | None:
    """Return the ratio of `ours` to `theirs`, or None if one was not measured."""
    if measure == "memory":
        return _memory(result["contenders"], ours, theirs)
    our_times = _seconds(result, ours, measure)
    their_times = _seconds(result, theirs, measure)
    if not our_times or not their_times:
        return None
    return ratio(our_times, their_times, twins(result, measure))


def _seconds(result, label, measure):
    return result["contenders"].get(label, {}).get("seconds", {}).get(measure, [])


def _memory(contenders, ours, theirs):
    """Compare memory: of NumPy arrays if both use only those, else of the process."""
    if ours not in contenders or theirs not in contenders:
        return None
    our_arrays = contenders[ours]["array_bytes"]
    their_arrays = contenders[theirs]["array_bytes"]
    if our_arrays and their_arrays:
        return Ratio(our_arrays / their_arrays, 0.0)
    our_memory, their_memory, first, second = (
        contenders[label]["resident_bytes"]
        for label in (ours, theirs, REFERENCE, REFERENCE + AGAIN)
    )
    noise = abs(first - second) / min(our_memory, their_memory)
    return Ratio(our_memory / their_memory, noise)


def judged(workloads: dict) -> Iterator[tuple[Target, str | None, Ratio | None, str]]:
    """Yield each target of these workloads, its best opponent, the ratio and a verdict.

    The verdict is "reached", "tie", "missed" or "not measured".
    """
    for target in TARGETS:
        if target.workload not in workloads:
            continue
        result = workloads[target.workload]
        ratios = {
            name: compared(result, target.measure, target.ours, name)
            for name in target.against
        }
        ratios = {name: ratio for name, ratio in ratios.items() if ratio}
        if not ratios:
            yield target, None, None, "not measured"
            continue
        best = max(ratios, key=lambda name: ratios[name].value)
        verdicts = {"below": "reached", "tie": "tie", "above": "missed"}
        verdict = verdicts[ratios[best].against(target.at_most)]
        yield target, best, ratios[best], verdict
