"""exp of float32 from calls that a kernel can make, each of which has one right result.

NumPy's own exp is up to 2.5 units in the last place off, depending on the processor; this one is
within 1, and a kernel computes it together with what comes before and after it.
"""

__all__ = ["FACTOR", "HALFWAY", "bounded_exp"]

# n + HALFWAY has the bits of a whole number n in its last places
HALFWAY = 1.5 * 2.0**23
FACTOR = 127 << 23  # the bits of 1.0

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 355.0 / 512.0, -2.12194440054690583e-4  # ln 2 as a sum; n · 355/512 is exact
# (exp(r) - 1 - r) / r² within ±ln 2 / 2, fitted to within 3.1e-9 of exp(r)
_POWERS = (0.499999934, 0.166665203, 0.0416683919, 0.008368756, 0.0013814517)


def bounded_exp(x, two_to):
    """exp(x) of float32 for -87 ≤ x ≤ 88; two_to(n + HALFWAY) is 2ⁿ of whole n.

    With n the whole number next to x / ln 2 and r = x - n ln 2, it is exp(r) 2ⁿ.
    """
    shifted = x * _LOG2_E + HALFWAY  # rounded to a whole number
    n = shifted - HALFWAY
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    total = r * _POWERS[-1] + _POWERS[-2]
    for power in _POWERS[-3::-1]:
        total = total * r + power
    return (total * (r * r) + r + 1.0) * two_to(shifted)
