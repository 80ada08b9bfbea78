"""Similarity: losses of the angles and distances between vectors, along the last axis.

Their derivatives rest on one: as ‖v‖² = Σ vᵢ², 2 ‖v‖ ∂‖v‖/∂vᵢ = 2 vᵢ, and so

    ∂‖v‖/∂v = v / ‖v‖ = v̂

the direction of v. A vector of length 0 has none: there v̂ is 0, and so is every slope.
"""

from typing import Any

from ..core.arrays import Array, expect_axis, namespace
from ..core.errors import expect, expect_number
from .base import (
    check_numbers,
    check_signs,
    expect_alike,
    loss_function,
    nested_like,
    reduced,
    split_outputs,
)

__all__ = ["cosine_distance", "cosine_embedding", "triplet_margin"]


def _polar(v):
    """‖v‖, with an axis of length 1, and v̂; squares neither overflow nor vanish."""
    xp = namespace(v)
    largest = xp.max(xp.abs(v), axis=-1, keepdims=True)
    scaled = v / xp.where(largest == 0, 1.0, largest)
    length = xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))
    return largest * length, scaled / xp.where(length == 0, 1.0, length)


def _turn(direction, length, other, cosine):
    """∂cos/∂v: v can only turn, and the shorter it is, the faster.

    cos = v · ŵ / ‖v‖, so by the quotient rule ∂cos/∂v = ŵ / ‖v‖ - (v · ŵ) v̂ / ‖v‖², which
    is (ŵ - cos v̂) / ‖v‖.
    """
    xp = namespace(direction)
    none = length == 0
    return xp.where(none, 0.0, other - cosine * direction) / xp.where(none, 1.0, length)


@loss_function(check=check_numbers)
def cosine_distance(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean over examples of 1 - cos(y, t), with cos(y, t) = Σ yᵢ tᵢ / (‖y‖ ‖t‖).

    y, target: (..., width), one shape and real dtype. With a vector of length 0 the cosine
    is 0.

    Gradient
    --------
    Of t only the direction counts. By the quotient rule, with ∂‖y‖/∂y = ŷ,

        ∂cos/∂y = (t̂ - cos(y, t) ŷ) / ‖y‖        ∂L/∂y = -∂cos/∂y

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
    """
    expect_alike(y, target)
    expect_axis(y, "width")
    xp = namespace(y)
    (length, ours), (_, theirs) = _polar(y), _polar(target)
    cosine = xp.sum(ours * theirs, axis=-1, keepdims=True)
    slopes = -_turn(ours, length, theirs, cosine)
    return reduced(1.0 - cosine[..., 0], slopes, weights, reduction)


_PAIR = ("first", "second")


def _check_sides(target: Array, shape: Any) -> None:
    """A target of -1 or 1 for each pair of vectors."""
    first = shape["first"] if isinstance(shape, dict) else shape[0]
    check_signs(target, first[:-1])


@loss_function(check=_check_sides)
def cosine_embedding(
    y: Any,
    target: Array,
    weights: Array | None = None,
    *,
    margin: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over pairs of 1 - cos where the target is 1, of max(0, cos - m) where it is -1.

    y: {"first": a, "second": b}, or a tuple of the two, each (..., width) real; target: (...)
    in the same dtype, 1 for vectors to bring together, -1 for vectors to keep apart, which is
    trusted; m the `margin`. With a vector of length 0 the cosine is 0.

    Gradient
    --------
    ∂cos/∂a = (b̂ - cos â) / ‖a‖ as in `cosine_distance`, and alike for b, times ∂L/∂cos, which
    is -1 where the target is 1, else [cos > m].

    Raises
    ------
    ValueError
        If the margin is not finite, or the vectors and target do not fit in shape or dtype,
        or hold nothing.
    """
    expect_number("margin", margin)
    a, b = split_outputs(y, _PAIR)
    expect_axis(a, "width")
    xp = namespace(a, target)
    expect(target.shape == a.shape[:-1], "pairs {}, but target is {}", a.shape, target.shape)
    expect(target.dtype == a.dtype, "y is {} but target is {}", a.dtype, target.dtype)
    (a_length, a), (b_length, b) = _polar(a), _polar(b)
    cosine = xp.sum(a * b, axis=-1, keepdims=True)
    together = xp.expand_dims(target, axis=-1) > 0
    over = xp.maximum(cosine - margin, 0.0)
    values = xp.where(together, 1.0 - cosine, over)[..., 0]
    outer = xp.where(together, -1.0, xp.sign(over))
    slopes = [outer * _turn(a, a_length, b, cosine), outer * _turn(b, b_length, a, cosine)]
    return reduced(values, nested_like(y, _PAIR, *slopes), weights, reduction)


_TRIPLET = ("anchor", "positive", "negative")


def _check_nothing(target: Any, shape: Any) -> None:
    """The three outputs are compared with each other."""


@loss_function(check=_check_nothing)
def triplet_margin(
    y: Any,
    target: Any = None,
    weights: Array | None = None,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of max(0, ‖a - p‖ - ‖a - n‖ + m): the positive is to be the nearer.

    y: {"anchor": a, "positive": p, "negative": n}, or a tuple of the three, each (..., width)
    real; m the `margin`. No target is looked at. The triplets of Schroff et al.,
    arXiv:1503.03832, sec. 3.1, with distances as in PyTorch, where they have squares of them.

    Gradient
    --------
    With û the direction of a - p, v̂ that of a - n, and [·] whether the maximum is positive,

        ∂L/∂a = [·] (û - v̂)        ∂L/∂p = -[·] û        ∂L/∂n = [·] v̂

    Raises
    ------
    ValueError
        If the margin is not finite, or the vectors differ in shape or dtype, or hold nothing.
    """
    expect_number("margin", margin)
    anchor, positive, negative = split_outputs(y, _TRIPLET)
    expect_axis(anchor, "width")
    xp = namespace(anchor)
    (near, u), (far, v) = _polar(anchor - positive), _polar(anchor - negative)
    short = xp.maximum(near - far + margin, 0.0)
    u, v = xp.sign(short) * u, xp.sign(short) * v
    return reduced(short[..., 0], nested_like(y, _TRIPLET, u - v, -u, v), weights, reduction)
