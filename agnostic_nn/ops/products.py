"""Products of matrices, with what a library computes in the same pass."""

from functools import singledispatch

from ..core.arrays import Array

__all__ = ["affine"]


@singledispatch
def affine(x: Array, weight: Array, bias: Array) -> Array:
    """Return x W + b, (rows, width), in a new array.

    x: (rows, fan_in). weight: W, (fan_in, width). bias: b, (width,). All have one real
    floating dtype.
    """
    y = x @ weight
    y += bias  # in place: the product is a new array
    return y
