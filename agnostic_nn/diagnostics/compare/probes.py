"""Probes: the parts of one training step, and predictions, from the same inputs.

If a training magnifies rounding, its end says little about the backend. A single step
says much. For a probe, every backend is given the same parameters, state and optimizer
moments: those of the reference before some of its steps, rounded to the dtype of the
backend. The parts are the outputs of all layers in training mode, the loss with its
gradients and the new state, the optimizer's update for the same gradients, and
predictions.

The reference of a part is computed by NumPy in float64 from the formulas alone, without
any native function. NumPy as a backend is therefore judged like any other.

In half precision a backend runs the model in a `MixedPrecision`, from inputs of
float32. Its reference is the same: the plain model in float64.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ...blocks import MixedPrecision
from ...core.arrays import Moments, Params, RowMask, State
from ...core.backend import Backend
from ...core.precisions import HALVES, epsilon
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import Layer
from ...losses import Loss
from ...ops.precision import widened
from ...training import make_step
from ..bisect.noise import exactly, rounded
from ..observe import Hook, observed_model
from .emulation import deviations
from .workloads import Workload

__all__ = [
    "PARTS",
    "STAGES",
    "Named",
    "ProbeInput",
    "Reference",
    "ReturnGradients",
    "batch_step",
    "cast",
    "chosen_rows",
    "exact",
    "flat",
    "functions",
    "in_dtype",
    "inside_predictions",
    "probe",
    "spreads_of",
    "steps_to_probe",
    "stored",
]

MAX_PREDICTED = 512  # examples to predict in a probe
PARTS = ("layers", "gradients", "update", "predict")
# The part that computes a group of results; "gradients" computes all others.
_PART_OF = {"layers": "layers", "updates": "update", "predictions": "predict"}
Named = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Sampling:
    """Settings for sampling the effect of rounding.

    factor: each operation gets an error this many times larger than rounding, and the
    resulting spread is divided by it again; examples: the number of examples to
    predict, at most.
    """

    samples: int
    factor: float = 1.0
    examples: int = MAX_PREDICTED


# A stage runs only for results that deviate more than the earlier stages explain. The
# first stage is cheap and nearly always enough. The last one finds discontinuities,
# such as a ReLU or a maximum near a tie: errors far larger than rounding reach jumps
# that a few runs with small errors miss.
STAGES = (_Sampling(1, examples=32), _Sampling(7), _Sampling(16, factor=4.0))


def stored(dtype: str) -> str:
    """Return the dtype of the arrays of a run: float32 in half precision."""
    return "float32" if dtype in HALVES else dtype


def in_dtype(workload: Workload, dtype: str) -> Workload:
    """Return the workload that a run in `dtype` trains."""
    if dtype not in HALVES:
        return workload
    return replace(workload, model=MixedPrecision(workload.model, dtype))


@dataclass(frozen=True)
class ProbeInput:
    """The inputs of a probe, the same for every backend, on the host and in one dtype.

    step: the number of the step, from 1, that the reference takes from there; x:
    examples to predict.
    """

    step: int
    carry: tuple[Any, ...]
    batch: tuple[Any, ...]
    x: Any

    @property
    def finite(self) -> bool:
        """True if the dtype can represent all numbers of the carry."""
        floats = (leaf for leaf in leaves(self.carry) if leaf.dtype.kind == "f")
        return all(bool(np.all(np.isfinite(leaf))) for leaf in floats)


@dataclass(frozen=True)
class ReturnGradients:
    """An "optimizer" whose update returns the gradients in place of new parameters."""

    def init(self, params: Params) -> Moments:
        return ()

    def update(
        self, params: Params, grads: Params, moments: Moments
    ) -> tuple[Params, Moments]:
        return grads, moments


def batch_step(
    model: Layer, loss: Loss, optimizer: Any, **options: Any
) -> Callable[..., Any]:
    """Return step(carry, x, target, keywords), the step that `make_step` makes.

    keywords: a dict of its other arguments, such as `counts`. A dict of arrays can be
    moved to a backend together with x and target.
    """
    step = make_step(model, loss, optimizer, **options)

    def step_on_batch(
        carry: Any, x: Any, target: Any, keywords: dict[str, Any]
    ) -> tuple[Any, ...]:
        return step(carry, x, target, **keywords)

    return step_on_batch


def functions(workload: Workload) -> dict[str, Callable[..., Any]]:
    """Return the parts by name: functions of arrays that return a tree of results."""
    model = workload.model
    optimizer = workload.optimizer
    step = batch_step(model, workload.loss, ReturnGradients(), keep_finite=False)

    def gradients(
        carry: Any, x: Any, target: Any, keywords: dict[str, Any]
    ) -> dict[str, Any]:
        (grads, state, _), value, _ = step(carry, x, target, keywords)
        return {"loss": value} | _named(grads, "gradients") | _named(state, "states")

    def update(params: Params, grads: Params, moments: Moments) -> dict[str, Any]:
        new_params, new_moments = optimizer.update(params, grads, moments)
        return _named(new_params, "updates") | _named(new_moments, "updates.moments")

    def predict(params: Params, state: State, x: Any) -> dict[str, Any]:
        return {"predictions": {"y": model.predict(params, state, x)}}

    return {
        "layers": partial(_layer_outputs, _recording(model)),
        "gradients": gradients,
        "update": update,
        "predict": predict,
    }


def _named(tree: Any, prefix: str) -> dict[str, Any]:
    return {name: leaf for name, leaf in named_leaves(tree, prefix) if leaf is not None}


def _arguments(part: str, inputs: ProbeInput, grads: Params) -> tuple[Any, ...]:
    """Return the arguments of a part."""
    params, state, moments = inputs.carry
    return {
        "layers": (inputs.carry, *inputs.batch),
        "gradients": (inputs.carry, *inputs.batch),
        "update": (params, grads, moments),
        "predict": (params, state, inputs.x),
    }[part]


def probe(
    backend: Backend,
    compiled: dict[str, Callable[..., Any]],
    references: list["Reference"],
) -> list[Named]:
    """Run all parts on a backend, from the inputs of each reference.

    The results are on the host.
    """
    probes = []
    for reference in references:
        results: Named = {}
        for part, function in compiled.items():
            moved = backend.asarray(_arguments(part, reference.inputs, reference.grads))
            results |= flat(backend.to_numpy(function(*moved)))
        probes.append(results)
    return probes


@dataclass
class Reference:
    """The results of all parts in float64, and how far rounding alone moves them.

    scale: the scale of the loss, as in `deviation.loss_deviations`.
    """

    workload: Workload
    inputs: ProbeInput
    scale: float
    results: Named = field(default_factory=dict)
    grads: Params = None
    _overflowing: dict[str, set[str]] = field(default_factory=dict, repr=False)
    _spreads: dict[tuple[Any, ...], dict[str, float]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        # Until the gradients are computed, the parameters replace them: a tree of the
        # same structure.
        self.grads = self.inputs.carry[0]
        for part, function in functions(self.workload).items():
            self.results |= exact(function, *_arguments(part, self.inputs, self.grads))
            if part == "gradients":
                dtype = _dtype_of(self.inputs.carry[0])
                self.grads = cast(_like(self.grads, self.results, "gradients"), dtype)

    def spread(self, name: str, dtype: str, stage: int) -> float:
        """Return how far rounding in `dtype` moves the worst element of a result.

        It is measured by adding an error as large as one rounding to each operation
        (see `bisect.noise`), in all stages up to `stage`. It is infinite if it cannot
        be measured.
        """
        part = _PART_OF.get(name.partition(".")[0], "gradients")
        stages = [self._sampled(part, dtype, number) for number in range(stage + 1)]
        return max((spreads[name] for spreads in stages if spreads), default=math.inf)

    def overflows(self, name: str, dtype: str) -> bool:
        """Return whether NumPy's result in `dtype` is not finite either."""
        if dtype not in self._overflowing:
            # bfloat16, which NumPy lacks, has the range of float32
            runs_in = "float32" if dtype == "bfloat16" else dtype
            parts = functions(in_dtype(self.workload, runs_in))
            results: Named = {}
            with np.errstate(all="ignore"):
                for part, function in parts.items():
                    arguments = _arguments(part, self.inputs, self.grads)
                    results |= flat(function(*arguments))
            self._overflowing[dtype] = {
                each for each, leaf in results.items() if not np.all(np.isfinite(leaf))
            }
        return name in self._overflowing[dtype]

    def overflows_inside(self, dtype: str) -> bool:
        """Return whether any layer of NumPy's step in `dtype` overflows.

        In half precision a later layer may turn infinity into a wrong finite number.
        """
        names = [name for name in self.results if not name.startswith("updates.")]
        return any(self.overflows(name, dtype) for name in names)

    def _sampled(self, part: str, dtype: str, stage: int) -> dict[str, float]:
        """Return the spreads of a part by name, from one stage; empty if unknown."""
        key = part, dtype, stage
        if key not in self._spreads:
            sampling = STAGES[stage]
            inputs = self.inputs
            if part == "predict":
                few = tree_map(lambda leaf: leaf[: sampling.examples], inputs.x)
                inputs = replace(inputs, x=few)
            trees = _arguments(part, inputs, self.grads)
            self._spreads[key] = spreads_of(
                lambda workload: functions(workload)[part],
                self.workload,
                trees,
                # the optimizer computes in the dtype of the parameters
                stored(dtype) if part == "update" else dtype,
                samples=sampling.samples,
                factor=sampling.factor,
                seed=stage,
            )
        return self._spreads[key]


def spreads_of(
    make: Callable[[Workload], Callable[..., Any]],
    workload: Workload,
    trees: tuple[Any, ...],
    dtype: str,
    *,
    samples: int = 8,
    factor: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """Return how far rounding moves each result of make(workload)(*trees), by path.

    factor: see `_Sampling`. The result is empty if it cannot be measured.
    """
    try:
        options: dict[str, Any] = {"samples": samples, "seed": seed}
        if dtype in HALVES:
            return _largest_of(
                deviations(make, workload, trees, dtype, factor=factor, **options)
            )
        size = factor * epsilon(dtype)
        # Smaller errors would be lost in the rounding of float64 itself.
        drawn = max(size, 2.0**-40)
        _, spreads = rounded(make(workload), *trees, epsilon=drawn, **options)
    except Exception:  # a custom layer may accept only NumPy arrays
        return {}
    scale = size / (drawn * factor)
    return {name: spread * scale for name, spread in spreads.items()}


def _largest_of(samples: Iterator[Named]) -> dict[str, float]:
    """Return the largest element of each array in any sample, of those finite."""
    furthest: dict[str, float] = {}
    for sample in samples:
        for name, leaf in sample.items():
            size = float(np.max(np.abs(leaf), where=np.isfinite(leaf), initial=0.0))
            furthest[name] = max(furthest.get(name, 0.0), size)
    return furthest


def exact(function: Callable[..., Any], *trees: Any) -> Named:
    """Return function(*trees) in float64, by the formulas alone where possible."""
    try:
        result = exactly(function, *trees)
    except Exception:  # a custom layer may accept only NumPy arrays
        with np.errstate(all="ignore"):
            result = function(*cast(trees, "float64"))
    return flat(result)


def flat(tree: Any) -> Named:
    """Return copies of the leaves of `tree`, by their paths."""
    return {name: np.array(leaf) for name, leaf in named_leaves(tree)}


def _dtype_of(params: Params) -> str:
    return next(
        (str(leaf.dtype) for leaf in leaves(params) if leaf.dtype.kind == "f"),
        "float32",
    )


def _like(tree: Any, named: Named, prefix: str) -> Any:
    """Return a tree like `tree`, of the leaves whose names begin with `prefix`."""
    if isinstance(tree, dict):
        return {
            name: _like(branch, named, f"{prefix}.{name}")
            for name, branch in tree.items()
        }
    if isinstance(tree, tuple):
        return tuple(
            _like(branch, named, f"{prefix}.{i}") for i, branch in enumerate(tree)
        )
    return named[prefix]


# --- inside a forward pass ------------------------------------------------------------


# The prefix of a recorded output in a cache. No layer's cache has a key that begins so.
_RECORDED = "\0"


def _recording(model: Layer) -> Layer:
    """Return the model with layers that put their output into their cache, by path."""

    def hooks(layer: Layer, path: str) -> dict[str, Hook]:
        def forward(method: Callable[..., Any], *args: Any, **mode: Any) -> Any:
            y, state, cache = method(*args, **mode)
            return y, state, {_RECORDED + path: (y, cache)}

        return {"forward": forward}

    return observed_model(model, hooks)


def _layer_outputs(
    recording: Layer, carry: Any, x: Any, target: Any, keywords: dict[str, Any]
) -> dict[str, Any]:
    """Return the outputs of each layer in training mode, by "layers." and its path."""
    train = RowMask(keywords["counts"]) if "counts" in keywords else True
    cache = recording.forward(carry[0], carry[1], x, train=train)[2]
    outputs = {}
    for path, ys in _recorded_outputs(cache).items():
        for i, y in enumerate(ys):
            suffix = f"[{i}]" if len(ys) > 1 else ""
            # the host has no array of bfloat16
            outputs[f"layers.{path}{suffix}"] = widened(y)
    return outputs


def _recorded_outputs(cache: Any) -> dict[str, list[Any]]:
    """Return outputs by path, from nested caches; a block follows the layers in it."""
    outputs: dict[str, list[Any]] = {}
    if isinstance(cache, dict):
        for name, value in cache.items():
            if not name.startswith(_RECORDED):
                outputs |= _recorded_outputs(value)
                continue
            y, inner_cache = value
            outputs |= _recorded_outputs(inner_cache)
            path = name.removeprefix(_RECORDED)
            outputs[path] = [leaf for leaf in leaves(y) if leaf is not None]
    elif isinstance(cache, tuple):
        for branch in cache:
            outputs |= _recorded_outputs(branch)
    return outputs


def inside_predictions(model: Layer, depth: int | None) -> Callable[..., Any]:
    """Return predict(params, state, x) -> the output of each layer, by its path.

    depth: how many levels of nested layers to look into; None for all. Outputs inside a
    compiled loop cannot be returned, so such a model needs a limit.
    """

    def predict(params: Params, state: State, x: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = {}

        def hooks(layer: Layer, path: str) -> dict[str, Hook]:
            if depth is not None and path and path.count(".") >= depth:
                return {}

            def record(y: Any) -> None:
                outputs.pop(path, None)  # a layer that is called again moves to the end
                outputs[path] = y

            def predict(method: Callable[..., Any], *args: Any) -> Any:
                y = method(*args)
                record(y)
                return y

            def forward(method: Callable[..., Any], *args: Any, **mode: Any) -> Any:
                y, *rest = method(*args, **mode)
                # a block without a `predict` calls the `forward` of its layers
                record(y)
                return y, *rest

            return {"predict": predict, "forward": forward}

        observed_model(model, hooks).predict(params, state, x)
        return {
            f"layers.{path}" + (f"[{i}]" if i else ""): widened(leaf)
            for path, y in outputs.items()
            for i, leaf in enumerate(leaves(y))
        }

    return predict


# --- on the host ----------------------------------------------------------------------


def cast(tree: Any, dtype: str) -> Any:
    """Convert floats to `dtype`; labels, keys and counts stay integers."""
    with np.errstate(over="ignore"):
        return tree_map(
            lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree
        )


def chosen_rows(count: int) -> np.ndarray:
    """Return the rows to predict in a probe: all, or `MAX_PREDICTED` evenly spaced."""
    rows = np.linspace(0, count - 1, min(count, MAX_PREDICTED))
    return np.unique(rows.astype(np.int64))


def steps_to_probe(steps: int) -> Iterator[int]:
    """Yield the first, the middle and the last step, counted from 0."""
    yield from sorted({0, steps // 2, steps - 1})
