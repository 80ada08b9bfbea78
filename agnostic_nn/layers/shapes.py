"""Shapes: flatten an array to a matrix and back, and keep a shape in a cache."""

from ..core.arrays import Array, Shape, device, namespace
from ..core.errors import expect

__all__ = ["as_matrix", "empty_like", "expect_inner_axis", "matrix_as"]


def as_matrix(x: Array) -> Array:
    """Reshape x (..., n) to (rows, n), so that a product with it is one matrix product.

    NumPy computes `x @ weight` with more than two axes as many small products.
    """
    return x if x.ndim == 2 else namespace(x).reshape(x, (-1, x.shape[-1]))


def matrix_as(rows: Array, x: Array) -> Array:
    """Reshape `rows` (rows, n) to (..., n) with the leading axes of x (..., m)."""
    if x.ndim == 2:
        return rows
    return namespace(rows).reshape(rows, (*x.shape[:-1], rows.shape[-1]))


def empty_like(x: Array) -> Array:
    """Return an array without elements, (0, *x.shape[1:]), for the shape of x.

    A cache holds arrays only, and the batch size is that of dy: `backward` reads the
    other lengths from this array, and x itself can be freed.
    """
    return namespace(x).zeros((0, *x.shape[1:]), dtype=x.dtype, device=device(x))


def expect_inner_axis(axis: int, shape: Shape) -> None:
    """Raise ValueError unless (batch, *shape) has `axis` and it is not the batch."""
    rank = len(shape) + 1
    fits = axis != 0 and axis != -rank
    expect(fits, "axis 0 is the batch: its rows must stay independent")
    expect(-rank < axis < rank, "axis {} does not exist in (batch, *{})", axis, shape)
