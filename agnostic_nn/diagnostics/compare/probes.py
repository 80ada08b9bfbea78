"""Probes: parts of one step of training, and predictions, from the same numbers on every side.

A training that magnifies rounding says little about a backend by its end. One step says much: every
side is given the same parameters, state and moments, those of the reference at some steps, rounded
to the dtype of the backend. The parts are the outputs of layers in training, the loss, its
gradients and the new state, the update of the optimizer for the same gradients, and predictions.

The reference of a part is NumPy's in float64 by the formulas alone, without any native function:
so NumPy is judged like any other backend.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ...core.arrays import Params, RowMask
from ...core.backend import Backend
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import Layer
from ...losses import Loss
from ...training import make_step
from ..bisect.noise import exactly, rounded
from .rounding import twin
from .workloads import Workload

__all__ = [
    "PARTS",
    "STAGES",
    "Given",
    "Named",
    "Reference",
    "Unmoved",
    "cast",
    "chosen_rows",
    "exact",
    "flat",
    "functions",
    "inside_predictions",
    "numbered_step",
    "probe",
    "steps_to_probe",
]

PREDICTED = 512  # examples to predict at most, in a probe
PARTS = ("inside", "slope", "update", "predict")
_PART_OF = {"layers": "inside", "updates": "update", "predictions": "predict"}  # else "slope"
Named = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Sampling:
    """How to sample rounding.

    factor: how many times larger than rounding the errors are that each operation gets, by which
    the result is divided again; examples: how many to predict at most.
    """

    samples: int
    factor: float = 1.0
    examples: int = PREDICTED


# Each stage is reached only by results that are further off than the stages before explain. The
# first is cheap and nearly always enough. The last finds what jumps, such as a ReLU or a maximum
# near a tie: far larger errors reach jumps that a few runs with small ones do not.
STAGES = (_Sampling(1, examples=32), _Sampling(7), _Sampling(16, factor=4.0))


@dataclass(frozen=True)
class Given:
    """What every side starts from, on the host and in one dtype.

    step: the number of the step, from 1, that the reference takes from there; x: examples to
    predict.
    """

    step: int
    carry: tuple
    batch: tuple
    x: Any

    @property
    def finite(self) -> bool:
        """Whether the dtype can hold all numbers."""
        return all(
            bool(np.all(np.isfinite(leaf))) for leaf in leaves(self.carry) if leaf.dtype.kind == "f"
        )


@dataclass(frozen=True)
class Unmoved:
    """An "optimizer" whose step hands out the gradients instead of new parameters."""

    def init(self, params):
        return ()

    def update(self, params, grads, moments):
        return grads, moments


def numbered_step(model: Layer, loss: Loss, optimizer: Any, **options: Any) -> Callable:
    """Return step(carry, x, target, counts, t=None), a step as `make_step` makes it.

    t: how many steps were taken before, for a loss whose weight follows a schedule.
    """
    step = make_step(model, loss, optimizer, **options)

    def numbered(carry, x, target, counts, t=None):
        return step(carry, x, target, counts, t=t)

    return numbered


def functions(workload: Workload) -> dict[str, Callable]:
    """The parts, by name: each maps arrays to a tree of results."""
    model, optimizer = workload.model, workload.optimizer
    step = numbered_step(model, workload.loss, Unmoved(), keep_finite=False)

    def slope(carry, x, target, counts, t=None):
        (grads, state, _), value, _ = step(carry, x, target, counts, t)
        return {"loss": value} | _named(grads, "gradients") | _named(state, "states")

    def update(params, grads, moments):
        after, kept = optimizer.update(params, grads, moments)
        return _named(after, "updates") | _named(kept, "updates.moments")

    def predict(params, state, x):
        return {"predictions": {"y": model.predict(params, state, x)}}

    return dict(
        zip(PARTS, (partial(_inside, _signing(model)), slope, update, predict), strict=True)
    )


def _named(tree: Any, prefix: str) -> dict[str, Any]:
    return {name: leaf for name, leaf in named_leaves(tree, prefix) if leaf is not None}


def _arguments(part: str, given: Given, grads: Params) -> tuple:
    """What a part is called with."""
    params, state, moments = given.carry
    return {
        "inside": (given.carry, *given.batch),
        "slope": (given.carry, *given.batch),
        "update": (params, grads, moments),
        "predict": (params, state, given.x),
    }[part]


def probe(
    backend: Backend, compiled: dict[str, Callable], references: list["Reference"]
) -> list[Named]:
    """The results of all parts from what each reference was given, on the host."""
    found = []
    for reference in references:
        results: Named = {}
        for part, function in compiled.items():
            moved = backend.asarray(_arguments(part, reference.given, reference.grads))
            results |= flat(backend.to_numpy(function(*moved)))
        found.append(results)
    return found


@dataclass
class Reference:
    """The results of all parts in float64, and how far rounding alone takes them.

    scale: of the loss, as in `deviation.loss_deviations`.
    """

    workload: Workload
    given: Given
    scale: float
    results: Named = field(default_factory=dict)
    grads: Params = None
    _spreads: dict[tuple, dict[str, float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        parts = functions(self.workload)
        self.grads = self.given.carry[0]  # nested like them
        for part, function in parts.items():
            self.results |= exact(function, *_arguments(part, self.given, self.grads))
            if part == "slope":
                dtype = _dtype_of(self.given.carry[0])
                self.grads = cast(_like(self.grads, self.results, "gradients"), dtype)

    def spread(self, name: str, dtype: str, stage: int) -> float:
        """Return how far rounding in `dtype` takes the worst element of a result, as sampled.

        It is measured by adding to each operation an error as large as one rounding (see
        `bisecting.noise`), in all stages up to `stage`. It is infinite if it cannot be measured.
        """
        part = _PART_OF.get(name.partition(".")[0], "slope")
        every = [self._sampled(part, dtype, number) for number in range(stage + 1)]
        return max((spreads[name] for spreads in every if spreads), default=math.inf)

    def overflows(self, name: str, dtype: str) -> bool:
        """Whether NumPy, computing in `dtype`, gets no finite numbers either."""
        for part, function in functions(self.workload).items():
            with np.errstate(all="ignore"):
                results = flat(function(*_arguments(part, self.given, self.grads)))
            if name in results:
                return not np.all(np.isfinite(results[name]))
        return False

    def _sampled(self, part: str, dtype: str, stage: int) -> dict[str, float]:
        """Return the spreads of a part by name, from one stage; empty if they are unknown."""
        key = part, dtype, stage
        if key not in self._spreads:
            sampling = STAGES[stage]
            size = sampling.factor * float(np.finfo(dtype).eps)
            drawn = max(size, 2.0**-40)  # float64 itself would round less away
            batch = self.given
            if part == "predict":
                few = tree_map(lambda leaf: leaf[: sampling.examples], batch.x)
                batch = replace(batch, x=few)
            trees = _arguments(part, batch, self.grads)
            function = functions(self.workload)[part]
            options: dict[str, Any] = {"epsilon": drawn, "samples": sampling.samples, "seed": stage}
            try:
                _, spreads = rounded(function, *trees, **options)
            except Exception:  # a custom layer may take no arrays but NumPy's
                spreads = {}
            scale = size / (drawn * sampling.factor)
            self._spreads[key] = {name: far * scale for name, far in spreads.items()}
        return self._spreads[key]


def exact(function: Callable, *trees: Any) -> Named:
    """function(*trees) in float64 by the formulas alone, where custom layers can take that."""
    try:
        found = exactly(function, *trees)
    except Exception:  # a custom layer may take no arrays but NumPy's
        with np.errstate(all="ignore"):
            found = function(*cast(trees, "float64"))
    return flat(found)


def flat(tree: Any) -> Named:
    """Copies of the leaves of `tree`, by their paths."""
    return {name: np.array(leaf) for name, leaf in named_leaves(tree)}


def _dtype_of(params: Params) -> str:
    return next((str(leaf.dtype) for leaf in leaves(params) if leaf.dtype.kind == "f"), "float32")


def _like(tree: Any, named: Named, prefix: str) -> Any:
    """A tree nested like `tree`, of the leaves whose names begin with `prefix`."""
    if isinstance(tree, dict):
        return {name: _like(branch, named, f"{prefix}.{name}") for name, branch in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_like(branch, named, f"{prefix}.{i}") for i, branch in enumerate(tree))
    return named[prefix]


# --- inside a forward pass --------------------------------------------------------------


_SIGN = "\0"  # no name in a layer's cache begins so


def _signing(model: Layer) -> Layer:
    """The model, each of whose layers leaves its output in its cache, under its path."""

    def methods(layer: Layer, path: str) -> dict[str, Callable]:
        kind = type(layer)

        def forward(self: Any, params: Any, state: Any, x: Any, *, train: Any = False) -> Any:
            y, state, cache = kind.forward(self, params, state, x, train=train)
            return y, state, {_SIGN + path: (y, cache)}

        return {"forward": forward}

    return twin(model, methods)


def _inside(
    signing: Layer, carry: Any, x: Any, target: Any, counts: Any, t: Any = None
) -> dict[str, Any]:
    """The outputs of each layer in training, as "layers." and its path."""
    cache = signing.forward(carry[0], carry[1], x, train=RowMask(counts))[2]
    return {
        f"layers.{path}" + (f"[{i}]" if len(ys) > 1 else ""): y
        for path, ys in _noted(cache).items()
        for i, y in enumerate(ys)
    }


def _noted(cache: Any) -> dict[str, list]:
    """Outputs by path, from the caches of layers within layers: the outer one stands last."""
    found: dict[str, list] = {}
    if isinstance(cache, dict):
        for name, inner in cache.items():
            if not name.startswith(_SIGN):
                found |= _noted(inner)
                continue
            y, within = inner
            found |= _noted(within)
            found[name.removeprefix(_SIGN)] = [a for a in leaves(y) if a is not None]
    elif isinstance(cache, tuple):
        for branch in cache:
            found |= _noted(branch)
    return found


def inside_predictions(model: Layer, depth: int | None) -> Callable:
    """predict(params, state, x) -> the output of each layer in prediction, by its path.

    depth: how many layers deep to look; None for all. A loop that is compiled hides what is inside.
    """

    def predict(params, state, x):
        noted: dict[str, Any] = {}

        def methods(layer: Layer, path: str) -> dict[str, Callable]:
            kind = type(layer)
            if depth is not None and path and path.count(".") >= depth:
                return {}

            def note(y: Any) -> None:
                noted.pop(path, None)
                noted[path] = y

            def method(self: Any, params: Any, state: Any, x: Any) -> Any:
                y = kind.predict(self, params, state, x)
                note(y)
                return y

            def forward(self: Any, params: Any, state: Any, x: Any, *, train: Any = False) -> Any:
                y, *rest = kind.forward(self, params, state, x, train=train)
                note(y)  # a block without a `predict` calls the `forward` of its layers
                return y, *rest

            return {"predict": method, "forward": forward}

        twin(model, methods).predict(params, state, x)
        return {
            f"layers.{path}" + (f"[{i}]" if i else ""): leaf
            for path, y in noted.items()
            for i, leaf in enumerate(leaves(y))
        }

    return predict


# --- on the host ------------------------------------------------------------------------


def cast(tree: Any, dtype: str) -> Any:
    """Real numbers in `dtype`; labels, keys and counts stay integers."""
    with np.errstate(over="ignore"):
        return tree_map(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree)


def chosen_rows(count: int) -> np.ndarray:
    """The rows to predict in a probe: all, or so many of them evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, PREDICTED)).astype(np.int64))


def steps_to_probe(steps: int) -> Iterator[int]:
    """The first, the middle and the last, from 0."""
    yield from sorted({0, steps // 2, steps - 1})
