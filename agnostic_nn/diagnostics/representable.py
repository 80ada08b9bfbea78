"""Numbers that a dtype can hold, also for dtypes that NumPy lacks."""

from typing import Any

import numpy as np

from ..core.precisions import digits_and_exponent, largest

__all__ = ["nearest"]


def nearest(x: Any, dtype: str) -> Any:
    """Return x with each real number rounded to the nearest one of a dtype.

    dtype: a name such as "bfloat16". The result is in float64, and infinite where a
    number is too large. Integers and booleans are not changed.

    A compiler may leave out the rounding in a cast to bfloat16 and back, and XLA does.
    Arguments that are rounded here are exact in every such cast.
    """
    x = np.asarray(x)
    if x.dtype.kind != "f" or dtype == "float64":
        return x
    digits, top = digits_and_exponent(dtype)
    wide = x.astype(np.float64)
    # |x| = m 2ᵉ with m from [0.5, 1), and the numbers next to it are 2ᵉ⁻¹⁻ᵖ apart
    _, exponents = np.frexp(wide)
    spacing = np.ldexp(1.0, np.maximum(exponents - 1, 1 - top) - digits)
    rounded = np.round(wide / spacing) * spacing
    is_beyond = np.abs(rounded) > largest(dtype)
    return np.where(is_beyond, np.copysign(np.inf, wide), rounded)
