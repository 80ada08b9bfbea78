"""Precision: compute float16 and bfloat16 in float32, and round once at the end."""

from ..core.arrays import Array, float_bits, namespace

__all__ = ["is_narrow", "narrowed", "widened"]


def is_narrow(x: Array) -> bool:
    """Return whether the dtype of x is real and narrower than float32."""
    return 0 < float_bits(x.dtype, namespace(x)) < 32


def widened(x: Array) -> Array:
    """x in float32 where its dtype is narrower, else x itself."""
    return namespace(x).astype(x, namespace(x).float32) if is_narrow(x) else x


def narrowed(x: Array, like: Array) -> Array:
    """x in the dtype of `like`, if that is narrow, else x itself."""
    return namespace(x).astype(x, like.dtype) if is_narrow(like) else x
