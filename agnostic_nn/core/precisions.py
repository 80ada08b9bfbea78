"""Constants of the real floating-point dtypes by name, also of those NumPy lacks.

A dtype of the IEEE form has p binary digits after the point and exponents up to E:

                p     E
    float16     10    15
    bfloat16     7   127
    float32     23   127
    float64     52  1023

Every number of float16 and of bfloat16 is also one of float32, so arrays of these
dtypes move between a host and a device as float32, and no constant needs NumPy.
"""

from .errors import expect

__all__ = [
    "HALVES",
    "PRECISION_NAMES",
    "digits_and_exponent",
    "epsilon",
    "largest",
    "tiny",
]

_FORMATS = {  # name: (p, E)
    "float16": (10, 15),
    "bfloat16": (7, 127),
    "float32": (23, 127),
    "float64": (52, 1023),
}
PRECISION_NAMES = tuple(_FORMATS)
HALVES = ("float16", "bfloat16")  # those of 16 bits


def digits_and_exponent(name: str) -> tuple[int, int]:
    """Return p and E of a dtype.

    Raises
    ------
    ValueError
        If no real floating-point dtype has this name.
    """
    expect(name in _FORMATS, "expected one of {}, got {!r}", ", ".join(_FORMATS), name)
    return _FORMATS[name]


def epsilon(name: str) -> float:
    """Return ε = 2⁻ᵖ, the distance from 1 to the next number."""
    digits, _ = digits_and_exponent(name)
    return 2.0**-digits


def largest(name: str) -> float:
    """Return (2 − ε) 2ᴱ, the largest finite number."""
    digits, exponent = digits_and_exponent(name)
    return (2.0 - 2.0**-digits) * 2.0**exponent


def tiny(name: str) -> float:
    """Return 2¹⁻ᴱ, the smallest normal number."""
    _, exponent = digits_and_exponent(name)
    return 2.0 ** (1 - exponent)
