"""The precision policy of a trainer: dtypes of parameters, and of the computation.

    dtype       precision           parameters, moments   model      loss, update
    float32     None                float32               float32    float32
    float64     None                float64               float64    float64
    float32     "mixed_float16"     float32               float16    float32
    float32     "mixed_bfloat16"    float32               bfloat16   float32
    float16     None                float16               float16    float32
    bfloat16    None                bfloat16              bfloat16   float32

Data, outputs of the model and the loss are never in 16 bits: the model converts its
input, and its outputs are converted back. So the host, and files, need no such dtype,
which NumPy may lack: parameters and moments of 16 bits are float32 there, exactly.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ..blocks import MixedPrecision
from ..blocks.base import Wrapper
from ..core.arrays import (
    Array,
    Cache,
    Moments,
    Params,
    RowMask,
    State,
    namespace,
)
from ..core.backend import Backend
from ..core.errors import expect, expect_choice
from ..core.precisions import HALVES, PRECISION_NAMES
from ..core.trees import tree_map
from ..layers import Layer
from ..ops import narrowed, widened
from ..optimizers import DynamicScale, Optimizer
from ..optimizers.base import bind_divisor

__all__ = ["CarryArrays", "PrecisionPolicy"]

_MIXED = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


@dataclass(frozen=True)
class PrecisionPolicy:
    """The dtypes that a trainer uses, see the table of this module.

    Raises
    ------
    ValueError
        If one of them is unknown, or both are not possible together.
    """

    dtype: str
    precision: str | None = None

    def __post_init__(self) -> None:
        expect_choice("dtype", self.dtype, PRECISION_NAMES)
        if self.precision is None:
            return
        expect_choice("precision", self.precision, tuple(_MIXED))
        expect(
            self.dtype == "float32",
            "expected dtype 'float32', that of the parameters, with precision={!r}, "
            "got {!r}: the model alone computes in {}",
            *(self.precision, self.dtype, _MIXED[self.precision]),
        )

    @property
    def half(self) -> str | None:
        """The dtype of 16 bits that the model computes in, or None."""
        if self.precision is not None:
            return _MIXED[self.precision]
        return self.dtype if self._is_pure else None

    @property
    def host_dtype(self) -> str:
        """The dtype of real numbers on the host: data, and copies of parameters."""
        return "float32" if self._is_pure else self.dtype

    @property
    def _is_pure(self) -> bool:
        return self.dtype in HALVES

    def __str__(self) -> str:
        return self.precision or self.dtype

    def expect_available(self, backend: Backend) -> None:
        """Raise ValueError unless a backend has the dtypes; say how to get them."""
        lacking = ""
        if self.half is not None:
            lacking = _lacking(backend, self.half)
        elif self.dtype == "float64" and not backend.has_float64:
            lacking = backend.lacks_float64
        if lacking:
            raise ValueError(lacking)

    def model(self, model: Layer) -> Layer:
        """Return the model that computes in the dtype of this policy.

        Raises
        ------
        ValueError
            If layers of the model are in a `MixedPrecision` already, unless it is
            around all of the model and has the same dtype: then its `keep` applies.
        """
        half = self.half
        if half is None:
            return model
        inner = model
        keep: tuple[str, ...] = ()
        if isinstance(model, MixedPrecision) and self.precision and model.dtype == half:
            inner, keep = model.layer, model.keep
        _expect_no_mixed_precision(inner, self)
        if self._is_pure:
            return _InHalf(inner, half)
        # DynamicScale replaces the constant scale
        return MixedPrecision(inner, half, keep=keep, scale=1.0)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return an optimizer as this policy needs it: with `DynamicScale`, if so."""
        if self.half == "float16" and not isinstance(optimizer, DynamicScale):
            return DynamicScale(optimizer)
        if self._is_pure and not isinstance(optimizer, DynamicScale):
            return _UpdatesInFloat32(optimizer)
        return optimizer

    def during_step(self) -> AbstractContextManager[Any]:
        """Return the context of a step: without warnings if its scale may overflow."""
        if self.half == "float16":
            return np.errstate(over="ignore", invalid="ignore")
        return nullcontext()

    def arrays(self, backend: Backend) -> "CarryArrays":
        """Return the functions that move parameters and moments."""
        return CarryArrays(backend, self.dtype if self._is_pure else None)

    @property
    def dtype_on_numpy(self) -> str:
        """The dtype of the model; float16 for bfloat16, which NumPy does not have."""
        return self.dtype if self.half is None else "float16"

    def on_numpy(self, carry: Any) -> tuple["PrecisionPolicy", Any, Any]:
        """Return a policy and arrays like those of a step, to count bytes on NumPy.

        float16 stands for bfloat16, and new arrays have no values. The third result is
        the carry in the dtype of the model.
        """

        def in_float16(leaf: Any) -> Any:
            xp = namespace(leaf)
            if not xp.isdtype(leaf.dtype, "real floating"):
                return leaf
            return np.broadcast_to(np.zeros((), "float16"), tuple(leaf.shape))

        policy = replace(
            self,
            dtype="float16" if self._is_pure else self.dtype,
            precision=self.precision and "mixed_float16",
        )
        in_model = carry if self.half is None else tree_map(in_float16, carry)
        return policy, in_model if self._is_pure else carry, in_model

    def data(self) -> Callable[[Any], Any] | None:
        """Return a function that converts data of 16 bits to float32, or None."""
        return None if self.half is None else _in_float32


@cache
def _lacking(backend: Backend, dtype: str) -> str:
    return backend.lacks_dtype(dtype)


def _expect_no_mixed_precision(model: Layer, policy: PrecisionPolicy) -> None:
    """Raise ValueError if a layer of the model is a `MixedPrecision`."""
    if isinstance(model, MixedPrecision):
        raise ValueError(
            f"expected a model without MixedPrecision for {policy}, got one in "
            f"{model.dtype}: pass the layers inside it. For layers that stay in "
            "float32, MixedPrecision may be around the whole model, with the dtype of "
            "a mixed precision, such as precision='mixed_float16'"
        )
    inner_layers = getattr(model, "_inner_layers", None)
    for _, layer in inner_layers() if inner_layers else ():
        _expect_no_mixed_precision(layer, policy)


@dataclass(frozen=True)
class CarryArrays:
    """Moves parameters, state and moments between the host and a backend.

    half: their dtype on the backend, if that has 16 bits. They are float32 on the host.
    """

    backend: Backend
    half: str | None

    def asarray(self, tree: Any) -> Any:
        """Return a tree of arrays of the host on the backend."""
        tree = self.backend.asarray(tree)
        if self.half is None:
            return tree
        half = self.half
        return tree_map(lambda leaf: _in_half(leaf, half), tree)

    def to_numpy(self, tree: Any) -> Any:
        """Return a tree of arrays of the backend on the host."""
        return self.widened(self.backend.to_numpy(tree))

    def widened(self, tree: Any) -> Any:
        """Return a tree of arrays of the host, with those of 16 bits in float32."""
        return tree if self.half is None else _in_float32(tree)


@dataclass(frozen=True)
class _InHalf(Wrapper):
    """y = f(x), computed in a dtype of 16 bits, with x and y in float32.

    Parameters and state have the dtype already. The gradient is that of f, in which a
    conversion has the derivative 1.
    """

    dtype: str

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y, state, cache = self.layer.forward(
            params, state, self._narrowed(x), train=train
        )
        return tree_map(widened, y), state, cache

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        dx, grads = self.layer.backward(params, cache, self._narrowed(dy))
        return tree_map(lambda leaf: leaf if leaf is None else widened(leaf), dx), grads

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        return self.layer.backward_params(params, cache, self._narrowed(dy))

    def predict(self, params: Params, state: State, x: Array) -> Array:
        return tree_map(widened, self.layer.predict(params, state, self._narrowed(x)))

    def _narrowed(self, tree: Any) -> Any:
        return tree_map(lambda leaf: _in_half(leaf, self.dtype), tree)


@dataclass(frozen=True)
class _UpdatesInFloat32:
    """A step of another optimizer in float32; the result is rounded once.

    Otherwise its numbers, such as ε = 10⁻⁸ of Adam and the step t, would be rounded.
    """

    optimizer: Optimizer

    @property
    def terms(self) -> int:
        return getattr(self.optimizer, "terms", 1)

    def init(self, params: Params) -> Moments:
        return self.optimizer.init(params)

    def update(
        self, params: Params, grads: Any, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        update = bind_divisor(self.optimizer, divisor)
        wide = tree_map(widened, (params, grads, moments))
        new: tuple[Params, Moments]
        new = tree_map(narrowed, update(*wide), (params, moments))
        return new


def _in_half(leaf: Any, dtype: str) -> Any:
    """Return an array in a dtype of 16 bits if it holds real numbers."""
    if leaf is None:
        return leaf
    xp = namespace(leaf)
    if not xp.isdtype(leaf.dtype, "real floating"):
        return leaf
    return xp.astype(leaf, getattr(xp, dtype))


def _in_float32(tree: Any) -> Any:
    """Return a tree with all arrays of 16 bits in float32."""

    def converted(leaf: Any) -> Any:
        # Data may be lists, numbers, or arrays of other libraries, refused elsewhere. A
        # mapped file is not read here.
        if isinstance(leaf, np.memmap) or not hasattr(leaf, "dtype"):
            return leaf
        try:
            return widened(leaf)
        except TypeError:
            return leaf

    return tree_map(converted, tree)
