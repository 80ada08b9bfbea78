"""Emulate a training step in half precision, to measure how far its rounding may go.

`MixedPrecision` converts what enters and leaves a layer to a dtype of 16 bits. Here,
NumPy computes the plain model in float64, and at the same places rounds numbers to the
nearest one of that dtype. Each operation inside a layer gets a random error as large as
a library may make (see `bisect.noise`): that of the 16 bits, with sums added up in
float32. Operations between layers, such as the loss, get errors of float32.

The rounding of a weight is the same in all rows of a batch, so it does not average out
in a gradient. Random errors alone would not show that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ...blocks import Block, MixedPrecision
from ...core.precisions import epsilon
from ...core.trees import named_leaves, tree_map
from ...layers import Layer
from ..bisect.noise import Noise, exactly, run_on_host
from ..observe import Hook, observed_model
from ..representable import nearest
from .workloads import Workload

__all__ = ["deviations", "leaf_layers"]

ACCUMULATED_IN = "float32"


def deviations(
    make: Callable[[Workload], Callable[..., Any]],
    workload: Workload,
    trees: tuple[Any, ...],
    dtype: str,
    *,
    samples: int,
    factor: float = 1.0,
    seed: int = 0,
    alone: str | None = None,
    exact: dict[str, np.ndarray] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield samples of the deviations of make(workload)(*trees) from exact results.

    Each sample has the deviation of every result by its path.

    factor: errors are this many times larger than rounding, and the deviations are
    divided by it; alone: the path of the only layer that computes in `dtype`. By
    default, all do; exact: the exact results, if they are known.
    """
    if exact is None:
        exact = dict(named_leaves(exactly(make(workload), *trees)))
    emulation = _Emulation(dtype, factor, alone, np.random.default_rng(seed))
    model = observed_model(workload.model, emulation.hooks)
    function = make(replace(workload, model=model))
    for _ in range(samples):
        result = run_on_host(emulation.noise, function, trees)
        yield {
            name: (np.asarray(leaf) - exact[name]) / factor
            for name, leaf in named_leaves(result)
            if np.asarray(leaf).dtype.kind == "f"
        }


def leaf_layers(model: Layer, run: Callable[[Layer], Any]) -> dict[str, str]:
    """Return the class name of each layer that is not a block, by its path.

    run: computes something with a copy of the model; the order is that of its calls.
    Layers that it does not reach are missing.
    """
    names: dict[str, str] = {}

    def hooks(layer: Layer, path: str) -> dict[str, Hook]:
        def forward(method: Callable[..., Any], *args: Any, **mode: Any) -> Any:
            names[path] = type(layer).__name__
            return method(*args, **mode)

        return {} if isinstance(layer, Block) else {"forward": forward}

    run(observed_model(model, hooks))
    return names


@dataclass
class _Emulation:
    """The rounding of a dtype in some layers of a model, and of float32 elsewhere."""

    dtype: str
    factor: float
    alone: str | None
    generator: np.random.Generator
    noise: Noise = field(init=False)
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        size = self.factor * epsilon(ACCUMULATED_IN)
        self.noise = Noise(self.generator, size, None)
        any_layer = Layer()
        self.scale = MixedPrecision(any_layer, self.dtype).scale or 1.0

    def hooks(self, layer: Layer, path: str) -> dict[str, Hook]:
        """Return hooks that round what enters and leaves a layer."""
        is_chosen = self.alone is None or path == self.alone
        if isinstance(layer, Block) or not is_chosen:
            return {}

        def forward(
            method: Callable[..., Any], params: Any, state: Any, x: Any, **mode: Any
        ) -> Any:
            with self._inside():
                y, *rest = method(
                    self._rounded(params), state, self._rounded(x), **mode
                )
            return self._rounded(y), *rest

        def predict(method: Callable[..., Any], params: Any, state: Any, x: Any) -> Any:
            with self._inside():
                y = method(self._rounded(params), state, self._rounded(x))
            return self._rounded(y)

        def backward(
            method: Callable[..., Any], params: Any, cache: Any, dy: Any
        ) -> Any:
            with self._inside():
                results = method(self._rounded(params), cache, self._scaled(dy))
            return tree_map(self._scaled, results)

        return {
            "forward": forward,
            "predict": predict,
            "backward": backward,
            "backward_params": backward,
        }

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Give operations errors of the dtype, but sums those of float32."""
        noise = self.noise
        before = noise.epsilon, noise.sums
        noise.epsilon = self.factor * epsilon(self.dtype)
        noise.sums = epsilon(ACCUMULATED_IN) / epsilon(self.dtype)
        try:
            yield
        finally:
            noise.epsilon, noise.sums = before

    def _rounded(self, tree: Any) -> Any:
        return tree_map(partial(_observed, self._nearest), tree)

    def _scaled(self, tree: Any) -> Any:
        return tree_map(partial(_observed, self._nearest_when_scaled), tree)

    def _nearest(self, value: np.ndarray) -> np.ndarray:
        rounded = nearest(value, self.dtype)
        with np.errstate(invalid="ignore"):
            error: np.ndarray = rounded - value
        return np.where(np.isfinite(error), value + self.factor * error, rounded)

    def _nearest_when_scaled(self, value: np.ndarray) -> np.ndarray:
        return self._nearest(value * self.scale) / self.scale


def _observed(function: Callable[..., Any], leaf: Any) -> Any:
    """Return function(leaf) for an observed array of floats, and other leaves as is."""
    if leaf is None or leaf.dtype.kind != "f":
        return leaf
    return leaf.handler.call("nearest", function, (leaf,), {})
