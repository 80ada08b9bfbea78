"""Dense: an affine map of the last axis."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import expect, expect_count, expect_flag
from ..initializers import Initializer, expect_initializer, glorot_uniform
from ..ops import sum_rows
from .base import Layer
from .shapes import as_matrix, matrix_as

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Layer):
    """y = x W + b, over the last axis of x.

    x: (..., fan_in) -> y: (..., width).

    `width`: the length of the last axis of y (units, out_features). `bias`: whether b
    is added.

    Parameters: weight (fan_in, width) and, unless `bias` is false, bias (width,), which
    starts at 0.

    Gradient
    --------
    With row vectors, L changes by dL = Σ dy · (dx W + x dW + db), so

        dx = dy Wᵀ        dW = xᵀ dy        db = Σ dy

    where xᵀ dy and Σ run over every axis but the last (Petersen & Pedersen,
    "The Matrix Cookbook", eq. 70 and 71).
    """

    one_array = True

    width: int
    _: KW_ONLY
    bias: bool = True
    initializer: Initializer = field(default=glorot_uniform, repr=False)

    per_position = True

    def __post_init__(self) -> None:
        expect_flag("bias", self.bias)
        expect_initializer("initializer", self.initializer)
        expect_count("width", self.width)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect(len(shape) >= 1, "Dense takes (batch, ..., fan_in), got (batch,)")
        xp = namespace(key)
        *leading, fan_in = shape
        params = {"weight": self.initializer(key, (fan_in, self.width), dtype)}
        if self.bias:
            params["bias"] = xp.zeros(self.width, dtype=dtype, device=device(key))
        return params, {}, (*leading, self.width)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map x (..., fan_in) to y (..., width). x must have the dtype of the weight.

        Raises
        ------
        ValueError
            If the last axis or the dtype of x differs from those of the weight.
        TypeError
            If x belongs to another array library.
        """
        weight = params["weight"]
        namespace(x, weight)  # raises if x belongs to another library
        fan_in = weight.shape[0]
        fits = x.shape[-1:] == (fan_in,)
        expect(fits, "Dense takes (..., {}), got {}", fan_in, x.shape)
        expect(x.dtype == weight.dtype, "Dense holds {}, got {}", weight.dtype, x.dtype)
        y = as_matrix(x) @ weight
        if self.bias:
            y += params["bias"]  # in place: the product is a new array
        return matrix_as(y, x), state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        dx = matrix_as(as_matrix(dy) @ params["weight"].T, dy)
        return dx, self.backward_params(params, cache, dy)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        rows = as_matrix(dy)
        grads = {"weight": as_matrix(cache).T @ rows}
        if self.bias:
            grads["bias"] = sum_rows(rows)
        return grads
