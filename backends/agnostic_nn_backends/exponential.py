"""exp of float32, made of operations that a kernel can fuse.

NumPy's exp has errors of up to 2.5 ulp, depending on the processor. This one is within
1 ulp. It consists of operations with one correct result, so a kernel can compute it
together with the calls before and after it.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["FACTOR", "HALFWAY", "bounded_exp"]

# the lowest bits of the float n + HALFWAY are those of the whole number n
HALFWAY = 1.5 * 2.0**23
FACTOR = 127 << 23  # the bits of 1.0

_LOG2_E = 1.4426950408889634
# ln 2 = high + low; n · 355/512 is exact
_LN2_HIGH = 355.0 / 512.0
_LN2_LOW = -2.12194440054690583e-4
# coefficients of (exp(r) - 1 - r) / r² for |r| ≤ ln 2 / 2, fitted to within 3.1e-9 of
# exp(r)
_COEFFICIENTS = (0.499999934, 0.166665203, 0.0416683919, 0.008368756, 0.0013814517)


def bounded_exp(x: Any, two_to: Callable[[Any], Any]) -> Any:
    """exp(x) = exp(r) 2ⁿ for float32 x with -87 ≤ x ≤ 88.

    n = round(x / ln 2) and r = x - n ln 2. two_to(n + HALFWAY) returns 2ⁿ for whole n.
    """
    shifted = x * _LOG2_E + HALFWAY  # rounded to a whole number
    n = shifted - HALFWAY
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    total = r * _COEFFICIENTS[-1] + _COEFFICIENTS[-2]
    for coefficient in _COEFFICIENTS[-3::-1]:
        total = total * r + coefficient
    return (total * (r * r) + r + 1.0) * two_to(shifted)
