"""Dense: an affine map of the last axis."""

from dataclasses import KW_ONLY, dataclass, field

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_count, expect_flag
from ..initializers import Initializer, expect_initializer, glorot_uniform
from ..ops import sum_rows
from .base import Layer

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Layer):
    """y = x W + b, over the last axis of x.

    Parameters: weight (fan_in, width) and, unless `bias` is false, bias (width,),
    which starts at 0.

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

    def __post_init__(self):
        expect_flag("bias", self.bias)
        expect_initializer("initializer", self.initializer)
        expect_count("width", self.width)

    def init(self, key, shape, dtype):
        expect(len(shape) >= 1, "Dense takes (batch, ..., fan_in), got (batch,)")
        xp = namespace(key)
        *lead, fan_in = shape
        params = {"weight": self.initializer(key, (fan_in, self.width), dtype)}
        if self.bias:
            params["bias"] = xp.zeros(self.width, dtype=dtype, device=device(key))
        return params, {}, (*lead, self.width)

    def forward(self, params, state, x, *, train=False):
        """x: (..., fan_in) -> y: (..., width), in the one dtype of x and the weight.

        Raises
        ------
        ValueError
            If x has another width or dtype than the weight was made for.
        TypeError
            If x belongs to another array library.
        """
        weight = params["weight"]
        namespace(x, weight)
        fan_in = weight.shape[0]
        expect(x.shape[-1:] == (fan_in,), "Dense takes (..., {}), got {}", fan_in, x.shape)
        expect(x.dtype == weight.dtype, "Dense holds {}, got {}", weight.dtype, x.dtype)
        y = _rows(x) @ weight
        if self.bias:
            y += params["bias"]
        return _like(y, x), state, x

    def backward(self, params, cache, dy):
        dx = _like(_rows(dy) @ params["weight"].T, dy)
        return dx, self.backward_params(params, cache, dy)

    def backward_params(self, params, cache, dy):
        rows = _rows(dy)
        grads = {"weight": _rows(cache).T @ rows}
        if self.bias:
            grads["bias"] = sum_rows(rows)
        return grads


def _rows(x):
    """x (..., n) as one matrix: NumPy takes a product of more axes for many small ones."""
    return x if x.ndim == 2 else namespace(x).reshape(x, (-1, x.shape[-1]))


def _like(rows, x):
    """Rows (count, n) in the places of those of x (..., m)."""
    return rows if x.ndim == 2 else namespace(rows).reshape(rows, (*x.shape[:-1], rows.shape[-1]))
