"""Losses of the angles and distances between vectors along the last axis.

All derivatives follow from that of the norm. Since ‖v‖² = Σ vᵢ²,
2 ‖v‖ ∂‖v‖/∂vᵢ = 2 vᵢ, so

    ∂‖v‖/∂v = v / ‖v‖ = v̂

the direction of v. For a vector of length 0, v̂ is defined as 0, and so are all slopes.
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


def _polar(v: Array) -> tuple[Array, Array]:
    """Return ‖v‖, with a last axis of length 1, and v̂, although v² may overflow."""
    xp = namespace(v)
    largest = xp.max(xp.abs(v), axis=-1, keepdims=True)
    scaled = v / xp.where(largest == 0, 1.0, largest)
    length = xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))
    return largest * length, scaled / xp.where(length == 0, 1.0, length)


def _cosine_slope(
    direction: Array, length: Array, other: Array, cosine: Array
) -> Array:
    """Return ∂cos/∂v from v̂ = direction, ‖v‖ = length, ŵ = other and cos = v̂ · ŵ.

    cos = v · ŵ / ‖v‖, so by the quotient rule

        ∂cos/∂v = ŵ / ‖v‖ - (v · ŵ) v̂ / ‖v‖² = (ŵ - cos v̂) / ‖v‖
    """
    xp = namespace(direction)
    is_zero = length == 0
    difference = xp.where(is_zero, 0.0, other - cosine * direction)
    return difference / xp.where(is_zero, 1.0, length)


@loss_function(check=check_numbers)
def cosine_distance(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean over examples of 1 - cos(y, t), with cos(y, t) = Σ yᵢ tᵢ / (‖y‖ ‖t‖).

    y and the target t: (..., width), with the same shape and real dtype. If one of the
    vectors has length 0, the cosine is 0.

    Gradient
    --------
    Only the direction of t matters. By the quotient rule, with ∂‖y‖/∂y = ŷ,

        ∂cos/∂y = (t̂ - cos(y, t) ŷ) / ‖y‖        ∂L/∂y = -∂cos/∂y

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    expect_alike(y, target)
    expect_axis(y, "width")
    xp = namespace(y)
    y_length, y_direction = _polar(y)
    _, target_direction = _polar(target)
    cosine = xp.sum(y_direction * target_direction, axis=-1, keepdims=True)
    slopes = -_cosine_slope(y_direction, y_length, target_direction, cosine)
    return reduced(1.0 - cosine[..., 0], slopes, weights, reduction)


_PAIR = ("first", "second")


def _check_sides(target: Array, shape: Any) -> None:
    """Raise unless there is a target of -1 or 1 for each pair of vectors."""
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
    """Mean over pairs of 1 - cos if the target is 1, and max(0, cos - m) if it is -1.

    y: {"first": a, "second": b}, or a tuple of the two, each (..., width) real. target:
    (...) in the same dtype, 1 for vectors that should be similar and -1 for vectors
    that should not, which is not checked here. m is the `margin`. If one of the vectors
    has length 0, the cosine is 0. PyTorch: `cosine_embedding_loss`.

    Gradient
    --------
    ∂cos/∂a = (b̂ - cos â) / ‖a‖ as in `cosine_distance`, and in the same way for b.
    ∂L/∂cos is -1 if the target is 1, and [cos > m] if it is -1.

    Raises
    ------
    ValueError
        If the margin is not finite, or if the vectors and the target do not match in
        shape or dtype or are empty.
    """
    expect_number("margin", margin)
    a, b = split_outputs(y, _PAIR)
    expect_axis(a, "width")
    xp = namespace(a, target)
    is_valid = target.shape == a.shape[:-1]
    expect(is_valid, "pairs {}, but target is {}", a.shape, target.shape)
    expect(target.dtype == a.dtype, "y is {} but target is {}", a.dtype, target.dtype)
    a_length, a_direction = _polar(a)
    b_length, b_direction = _polar(b)
    cosine = xp.sum(a_direction * b_direction, axis=-1, keepdims=True)
    is_similar = xp.expand_dims(target, axis=-1) > 0
    excess = xp.maximum(cosine - margin, 0.0)
    values = xp.where(is_similar, 1.0 - cosine, excess)[..., 0]
    dcosine = xp.where(is_similar, -1.0, xp.sign(excess))
    da = dcosine * _cosine_slope(a_direction, a_length, b_direction, cosine)
    db = dcosine * _cosine_slope(b_direction, b_length, a_direction, cosine)
    return reduced(values, nested_like(y, _PAIR, da, db), weights, reduction)


_TRIPLET = ("anchor", "positive", "negative")


def _check_nothing(target: Any, shape: Any) -> None:
    """Accept any target: the three outputs are compared with each other."""


@loss_function(check=_check_nothing)
def triplet_margin(
    y: Any,
    target: Any = None,
    weights: Array | None = None,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of max(0, ‖a - p‖ - ‖a - n‖ + m).

    Training makes p closer to a than n is.

    y: {"anchor": a, "positive": p, "negative": n}, or a tuple of the three, each
    (..., width) real. m is the `margin`. The target is not used. Schroff et al.,
    arXiv:1503.03832, sec. 3.1, with distances as in PyTorch's `triplet_margin_loss`;
    the paper has squared distances.

    Gradient
    --------
    With û the direction of a - p, v̂ that of a - n, and [·] = 1 if the maximum is
    positive, else 0,

        ∂L/∂a = [·] (û - v̂)        ∂L/∂p = -[·] û        ∂L/∂n = [·] v̂

    Raises
    ------
    ValueError
        If the margin is not finite, or the vectors differ in shape or dtype,
        or are empty.
    """
    expect_number("margin", margin)
    anchor, positive, negative = split_outputs(y, _TRIPLET)
    expect_axis(anchor, "width")
    xp = namespace(anchor)
    positive_distance, u = _polar(anchor - positive)
    negative_distance, v = _polar(anchor - negative)
    excess = xp.maximum(positive_distance - negative_distance + margin, 0.0)
    u = xp.sign(excess) * u
    v = xp.sign(excess) * v
    slopes = nested_like(y, _TRIPLET, u - v, -u, v)
    return reduced(excess[..., 0], slopes, weights, reduction)
