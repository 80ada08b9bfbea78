"""Hooks of `Resize` for faster versions of interpolation to another size."""

from collections.abc import Callable
from functools import singledispatch

from ..core.arrays import Array, Shape

__all__ = ["interpolate", "interpolate_input", "most_look_ups"]


@singledispatch
def most_look_ups(x: Array, shortens: bool) -> int:
    """Return up to how many weighted look-ups are faster than a matrix product.

    shortens: whether the result is shorter than x along the axis. A look-up reads and
    adds an array as large as the result. Both ways compute the same sums.
    """
    return 3 if shortens else 0


@singledispatch
def interpolate(
    x: Array, size: Shape, align_corners: bool, standard: Callable[[], Array]
) -> Array:
    """Return x (batch, *space, channels) with its spatial axes resized to `size`.

    The interpolation is linear, as `Resize` defines it. `standard()` returns the same
    with functions of the standard.
    """
    return standard()


@singledispatch
def interpolate_input(
    dy: Array, lengths: Shape, align_corners: bool, standard: Callable[[], Array]
) -> Array:
    """Return dx, with spatial axes of `lengths`: the adjoint of `interpolate`."""
    return standard()
