"""Matrix products of two arrays, or of an array and a constant."""

from typing import Any

from ...core.arrays import Array, Cache, Key, Params, RowMask, Shape, State, namespace
from ...core.arrays import device as device_of
from ...core.errors import expect
from .broadcasting import Binary, broadcast_shape, sum_to_shape

__all__ = ["MatrixMultiply"]


class MatrixMultiply(Binary):
    """y = a b, the matrix product over the last two axes, for a tuple x = (a, b).

    a: (batch, ..., n, k), b: (batch, ..., k, m) -> y: (batch, ..., n, m). The other
    axes are broadcast. The options are those of `Binary`: a constant has at least two
    axes, and is the second factor unless it is `left`.

    Gradient
    --------
    dL = Σ dy · (da b + a db), so, with ᵀ exchanging the last two axes,

        da = dy bᵀ        db = aᵀ dy

    each summed over the axes along which a, or b, is broadcast.
    """

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        xp = namespace(key)
        if self.constant is None:
            fits = isinstance(shape, tuple) and len(shape) == 2
            fits = fits and all(isinstance(part, tuple) for part in shape)
            expect(fits, "MatrixMultiply takes a tuple of two arrays, got {}", shape)
            return {}, {}, _product_shape(*shape)
        message = "MatrixMultiply takes a constant of at least two axes, got {}"
        expect(len(self.constant) >= 2, message, self.constant)
        shapes = (self.constant, shape) if self.left else (shape, self.constant)
        ones = xp.ones(self.constant, dtype=dtype, device=device_of(key))
        params = {"constant": ones} if self.trainable else {}
        state = {} if self.trainable else {"constant": ones}
        return params, state, _product_shape(*shapes)

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        a, b = self._operands(params, state, x)
        _product_shape(a.shape, b.shape)
        return namespace(a).matmul(a, b), state, (a, b)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        a, b = cache
        xp = namespace(dy)

        def da() -> Array:
            return sum_to_shape(xp.matmul(dy, xp.matrix_transpose(b)), a.shape)

        def db() -> Array:
            return sum_to_shape(xp.matmul(xp.matrix_transpose(a), dy), b.shape)

        if self.constant is None:
            return (da(), db()), {}
        of_x, of_constant = (db, da) if self.left else (da, db)
        return of_x(), {"constant": of_constant()} if self.trainable else {}


def _product_shape(a: Shape, b: Shape) -> Shape:
    """Return the shape of a b; raise ValueError if they cannot be multiplied."""
    fits = len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2]
    message = "MatrixMultiply takes (..., n, k) and (..., k, m), got {} and {}"
    expect(fits, message, tuple(a), tuple(b))
    leading = broadcast_shape("MatrixMultiply", a[:-2], b[:-2])
    return (*leading, a[-2], b[-1])
