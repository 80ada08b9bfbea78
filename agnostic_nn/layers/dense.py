"""Dense: an affine map of the last axis. Bilinear: a bilinear map of two arrays."""

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
from ..ops import affine, sum_rows
from .base import Layer
from .shapes import as_matrix, matrix_as

__all__ = ["Bilinear", "Dense"]


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
        rows = as_matrix(x)
        y = affine(rows, weight, params["bias"]) if self.bias else rows @ weight
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


@dataclass(frozen=True)
class Bilinear(Layer):
    """y_k = Σ_ij u_i W[i, j, k] v_j + b_k, for a tuple x = (u, v).

    u: (..., n), v: (..., m) -> y: (..., width). The leading axes of u and v are equal.

    `width`: the length of the last axis of y (out_features). `bias`: whether b is
    added.

    Parameters: weight (n, m, width), W above, which is drawn as a matrix with n · m
    inputs, and, unless `bias` is false, bias (width,), which starts at 0. PyTorch
    stores W as (width, n, m).

    Gradient
    --------
    y is linear in u, in v, in W and in b. With T_jk = Σ_i u_i W[i, j, k],

        du_i = Σ_jk W[i, j, k] v_j dy_k    dv_j = Σ_k T_jk dy_k
        dW[i, j, k] = Σ u_i v_j dy_k       db = Σ dy

    where Σ without an index runs over every axis but the last.
    """

    width: int
    _: KW_ONLY
    bias: bool = True
    initializer: Initializer = field(default=glorot_uniform, repr=False)

    per_position = True

    def __post_init__(self) -> None:
        expect_flag("bias", self.bias)
        expect_initializer("initializer", self.initializer)
        expect_count("width", self.width)

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        fits = isinstance(shape, tuple) and len(shape) == 2
        fits = fits and all(isinstance(part, tuple) and part for part in shape)
        message = "Bilinear takes a tuple of two arrays (batch, ..., length), got {}"
        expect(fits, message, shape)
        (*leading, n), (*others, m) = shape
        fits = leading == others
        message = "Bilinear takes two arrays that differ in the last axis only, got {}"
        expect(fits, message, shape)
        xp = namespace(key)
        weight = self.initializer(key, (n * m, self.width), dtype)
        params = {"weight": xp.reshape(weight, (n, m, self.width))}
        if self.bias:
            params["bias"] = xp.zeros(self.width, dtype=dtype, device=device(key))
        return params, {}, (*leading, self.width)

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        weight = params["weight"]
        u, v = x
        xp = namespace(u, v, weight)
        n, m, width = weight.shape
        fits = u.shape[-1:] == (n,) and v.shape[-1:] == (m,)
        fits = fits and u.shape[:-1] == v.shape[:-1]
        message = "Bilinear takes (..., {}) and (..., {}), got {} and {}"
        expect(fits, message, n, m, u.shape, v.shape)
        for part in x:
            fits = part.dtype == weight.dtype
            expect(fits, "Bilinear holds {}, got {}", weight.dtype, part.dtype)
        products = as_matrix(v)[:, None, :] @ self._products(weight, u)
        y = xp.reshape(products, (*u.shape[:-1], width))
        if self.bias:
            y = y + params["bias"]
        return y, state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        weight = params["weight"]
        xp = namespace(dy)
        u, v = cache
        weight_rows = xp.reshape(weight, (weight.shape[0], -1))
        du = _outer(v, dy) @ weight_rows.T
        columns = as_matrix(dy)[:, :, None]
        dv = self._products(weight, u) @ columns
        dx = xp.reshape(du, u.shape), xp.reshape(dv, v.shape)
        return dx, self.backward_params(params, cache, dy)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        u, v = cache
        dweight = as_matrix(u).T @ _outer(v, dy)
        shape = params["weight"].shape
        grads = {"weight": namespace(dy).reshape(dweight, shape)}
        if self.bias:
            grads["bias"] = sum_rows(as_matrix(dy))
        return grads

    def _products(self, weight: Array, u: Array) -> Array:
        """Return T above for each row of u, (rows, m, width)."""
        xp = namespace(u)
        n, m, width = weight.shape
        rows = as_matrix(u) @ xp.reshape(weight, (n, m * width))
        return xp.reshape(rows, (rows.shape[0], m, width))


def _outer(v: Array, dy: Array) -> Array:
    """Return v_j dy_k for each row, (rows, m · width)."""
    products = as_matrix(v)[:, :, None] * as_matrix(dy)[:, None, :]
    rows, m, width = products.shape
    return namespace(dy).reshape(products, (rows, m * width))
