"""MixedPrecision: layers that compute in float16 or bfloat16 with float32 parameters.

Half the bits halve the memory of activations, and accelerators multiply them several
times faster. The parameters stay in float32, because an update is often smaller than
half of the distance from a parameter to the next number of 16 bits, and would be lost
(Micikevicius et al., "Mixed Precision Training", arXiv:1710.03740, section 3.1).
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from math import frexp
from typing import Any, Self

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    RowMask,
    Shape,
    State,
    float_bits,
    namespace,
)
from ..core.errors import expect, expect_choice, expect_positive
from ..core.fields import set_fields
from ..core.precisions import HALVES
from ..core.trees import leaves, tree_map
from ..layers.base import Layer
from ..layers.shapes import empty_like
from ..ops.precision import narrowed, widened
from .base import Block, Wrapper, with_fields
from .repeat import Repeat

__all__ = ["MixedPrecision"]

_SCALES = {"float16": 1024.0, "bfloat16": 1.0}


@dataclass(frozen=True)
class MixedPrecision(Wrapper):
    """y = f(x), with each layer of f computed in `dtype`, "float16" or "bfloat16".

        model = MixedPrecision(Sequential(Dense(64), ReLU(), Dense(10)), "bfloat16")

    Each layer inside that is not a block converts its parameters and its input to
    `dtype` and returns its output in `dtype`. Parameters, state, gradients of
    parameters, and y keep the dtype of f's parameters, usually float32. Their trees and
    paths are those of f, so f can continue with them, and the reverse.

    keep
        The paths of layers that compute in float32, such as ("0", "3.feed"). The path
        of a block stands for all layers inside. A layer that is kept converts an input
        of 16 bits to float32 and returns float32.
    scale
        A power of two, 1024 for float16 and 1 for bfloat16 by default.

    Raises ValueError if a path in `keep` does not exist; inside a `TransformerBlock`
    only in `init`, since its layers depend on the shape of x. A dtype that the library
    of the arrays does not have raises ValueError in `forward`.

    Gradient
    --------
    That of f, in which a conversion has the derivative 1. dy is converted like x:
    `backward` of a layer computes in `dtype` too. Numbers of float16 below 2⁻²⁴ would
    be lost, and gradients often are that small. So `backward` runs with s · dy, where s
    is `scale`, and divides the results, which are linear in dy, by s in float32:

        dx = (1/s) ∂(s · dy · y)/∂x

    This is exact unless a number leaves the range of the dtype.
    """

    dtype: str
    _: KW_ONLY
    keep: tuple[str, ...] = ()
    scale: float | None = None
    _mixed: Layer = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_choice("dtype", self.dtype, HALVES)
        if not isinstance(self.keep, tuple | list) or not all(
            isinstance(path, str) for path in self.keep
        ):
            raise TypeError(f"expected keep to be a tuple of paths, got {self.keep!r}")
        scale = _SCALES[self.dtype] if self.scale is None else self.scale
        expect_positive("scale", scale)
        expect(frexp(scale)[0] == 0.5, "expected scale, a power of two, got {}", scale)
        set_fields(self, keep=tuple(self.keep), scale=float(scale))
        set_fields(self, _mixed=self._with_conversions())
        paths, is_complete = _paths(self.layer)
        if is_complete:
            self._expect_paths(paths)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        paths: list[str] = []
        results = _mapped(self.layer, _recorder(paths)).init(key, shape, dtype)
        self._expect_paths(paths)
        return results

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y, state, cache = self._mixed.forward(params, state, x, train=train)
        return _like_params(y, params, x), state, cache

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        dx, grads = self._mixed.backward(params, cache, self._scaled(dy))
        return self._unscaled(dx), self._unscaled(grads)

    def predict(self, params: Params, state: State, x: Array) -> Array:
        return _like_params(self._mixed.predict(params, state, x), params, x)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        scaled = self._scaled(dy)
        return self._unscaled(self._mixed.backward_params(params, cache, scaled))

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        return self._mixed.begin(params, state, x, length)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        y, memory = self._mixed.advance(params, state, memory, x)
        return _like_params(y, params, x), memory

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        y, memory = self._mixed.prefill(params, state, memory, x)
        return _like_params(y, params, x), memory

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        mapped = super().map_layers(function)
        return with_fields(mapped, _mixed=mapped._with_conversions())

    def _with_conversions(self) -> Layer:
        """Return f with each layer in a `_Converted`."""

        def converted(path: str, layer: Layer) -> Layer:
            if isinstance(layer, Repeat):
                return layer.map_layers(lambda _, inner: _SameDtype(inner))
            if isinstance(layer, Block):
                return layer
            is_kept = any(
                not each or f"{path}.".startswith(f"{each}.") for each in self.keep
            )
            return _Converted(layer, None if is_kept else self.dtype)

        return _mapped(self.layer, converted)

    def _expect_paths(self, paths: list[str]) -> None:
        """Raise unless each path in `keep` is one of `paths`."""
        unknown = [path for path in self.keep if path not in paths]
        message = "keep has the paths {}, which do not exist: the layers are {}"
        expect(not unknown, message, unknown, sorted({*paths} - {""}))

    def _scaled(self, dy: Any) -> Any:
        def scaled(leaf: Any) -> Any:
            return leaf * scale if _is_float(leaf) else leaf

        scale = self.scale
        return dy if scale == 1.0 else tree_map(scaled, dy)

    def _unscaled(self, tree: Any) -> Any:
        def unscaled(leaf: Any) -> Any:
            if not _is_float(leaf):
                return leaf
            return narrowed(widened(leaf) / scale, like=leaf)

        scale = self.scale
        return tree if scale == 1.0 else tree_map(unscaled, tree)


@dataclass(frozen=True)
class _Converted(Layer):
    """A layer that computes in `dtype`; None stands for float32 or wider.

    dx and the gradients have the dtypes of x and of the parameters, and the new state
    has those of the state.
    """

    layer: Layer
    dtype: str | None

    @property
    def input_kinds(self) -> str | dict[str, str]:  # type: ignore[override]
        return self.layer.input_kinds

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return self.layer.init(key, shape, dtype)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y, new_state, cache = self.layer.forward(
            self._converted(params), state, self._converted(x), train=train
        )
        new_state = tree_map(_as_dtype_of, new_state, state)
        return self._converted(y), new_state, (cache, tree_map(empty_like, x))

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        layer_cache, x = cache
        dx, grads = self.layer.backward(
            self._converted(params), layer_cache, self._converted(dy)
        )
        dx = None if dx is None else tree_map(_as_dtype_of, dx, x)
        return dx, tree_map(_as_dtype_of, grads, params)

    def predict(self, params: Params, state: State, x: Array) -> Array:
        y = self.layer.predict(self._converted(params), state, self._converted(x))
        return self._converted(y)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        grads = self.layer.backward_params(
            self._converted(params), cache[0], self._converted(dy)
        )
        return tree_map(_as_dtype_of, grads, params)

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        return self.layer.begin(
            self._converted(params), state, self._converted(x), length
        )

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        y, new_memory = self.layer.advance(
            self._converted(params), state, memory, self._converted(x)
        )
        return self._converted(y), tree_map(_as_dtype_of, new_memory, memory)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        y, new_memory = self.layer.prefill(
            self._converted(params), state, memory, self._converted(x)
        )
        return self._converted(y), tree_map(_as_dtype_of, new_memory, memory)

    def check(self, x: Array) -> None:
        self.layer.check(x)

    def _converted(self, tree: Any) -> Any:
        """Return a tree with all floats in `dtype`, or in at least float32."""
        if self.dtype is None:
            return tree_map(
                lambda leaf: widened(leaf) if _is_float(leaf) else leaf, tree
            )
        return tree_map(self._narrowed, tree)

    def _narrowed(self, leaf: Any) -> Any:
        if not _is_float(leaf):
            return leaf
        xp = namespace(leaf)
        dtype = getattr(xp, self.dtype or "", None)
        expect(dtype is not None, "the library of these arrays has no {}", self.dtype)
        return xp.astype(leaf, dtype)


@dataclass(frozen=True)
class _SameDtype(Wrapper):
    """The layer inside a `Repeat`, whose y has the dtype of x, as a loop requires."""

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y, state, cache = self.layer.forward(params, state, x, train=train)
        return _as_input(y, x), state, cache

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        dx, grads = self.layer.backward(params, cache, dy)
        return _as_input(dx, dy), grads

    def predict(self, params: Params, state: State, x: Array) -> Array:
        return _as_input(self.layer.predict(params, state, x), x)

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        return self.layer.begin(params, state, x, length)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        y, memory = self.layer.advance(params, state, memory, x)
        return _as_input(y, x), memory

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        y, memory = self.layer.prefill(params, state, memory, x)
        return _as_input(y, x), memory


def _mapped(
    layer: Layer, function: Callable[[str, Layer], Layer], path: str = ""
) -> Layer:
    """Return a layer with function(path, layer) for itself and each layer inside.

    Layers inside a block are replaced before the block.
    """
    if isinstance(layer, Block):
        layer = layer.map_layers(
            lambda name, inner: _mapped(inner, function, _joined(path, name))
        )
    return function(path, layer)


def _recorder(paths: list[str]) -> Callable[[str, Layer], Layer]:
    """Return a function for `_mapped` that appends the path of each layer."""

    def record(path: str, layer: Layer) -> Layer:
        paths.append(path)
        return layer

    return record


def _paths(layer: Layer) -> tuple[list[str], bool]:
    """Return the paths of all layers, and whether that is all of them.

    The layers inside some blocks exist only once the shape of x is known.
    """
    paths: list[str] = []
    is_complete = True

    def record(path: str, inner: Layer) -> Layer:
        nonlocal is_complete
        if isinstance(inner, Block) and not inner._inner_layers():
            is_complete = False
        paths.append(path)
        return inner

    _mapped(layer, record)
    return paths, is_complete


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _is_float(leaf: Any) -> bool:
    return leaf is not None and float_bits(leaf.dtype, namespace(leaf)) > 0


def _as_dtype_of(leaf: Any, like: Any) -> Any:
    """Return `leaf` in the dtype of `like` if both are floats, else `leaf`."""
    if not _is_float(leaf) or not _is_float(like) or leaf.dtype == like.dtype:
        return leaf
    return namespace(leaf).astype(leaf, like.dtype)


def _as_input(y: Any, x: Any) -> Any:
    """Return a tree with all floats in the dtype of those of `x`."""
    like = _first_float(x.get("x") if isinstance(x, dict) else x)
    return tree_map(lambda leaf: _as_dtype_of(leaf, like), y)


def _like_params(y: Any, params: Params, x: Any) -> Any:
    """Return y in the dtype of the parameters, or of x if there are none."""
    like = _first_float((params, x))
    if like is None:
        return tree_map(lambda leaf: widened(leaf) if _is_float(leaf) else leaf, y)
    return tree_map(lambda leaf: _as_dtype_of(leaf, like), y)


def _first_float(tree: Any) -> Any:
    return next((leaf for leaf in leaves(tree) if _is_float(leaf)), None)
