"""Conversion of float16 and bfloat16 to float32 for a computation, and back."""

from ..core.arrays import Array, float_bits, namespace

__all__ = ["is_narrow", "narrowed", "sum_of_two", "widened"]


def is_narrow(x: Array) -> bool:
    """Return whether the dtype of x is real and narrower than float32."""
    return 0 < float_bits(x.dtype, namespace(x)) < 32


def widened(x: Array) -> Array:
    """Return x in float32 if its dtype is narrower, else x itself."""
    return namespace(x).astype(x, namespace(x).float32) if is_narrow(x) else x


def narrowed(x: Array, like: Array) -> Array:
    """Return x in the dtype of `like` if that is narrower than float32, else x."""
    return namespace(x).astype(x, like.dtype) if is_narrow(like) else x


def sum_of_two(a: Array, b: Array) -> Array:
    """Return a + b, in float32 if one is narrower than that and the other is not.

    The standard does not define sums of two dtypes of which one is float16 or bfloat16.
    """
    return a + b if a.dtype == b.dtype else widened(a) + widened(b)
