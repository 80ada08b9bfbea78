"""Losses of the angles and distances between vectors along the last axis.

All derivatives follow from that of the norm. Since ‖v‖² = Σ vᵢ²,
2 ‖v‖ ∂‖v‖/∂vᵢ = 2 vᵢ, so

    ∂‖v‖/∂v = v / ‖v‖ = v̂

the direction of v. For a vector of length 0, v̂ is defined as 0, and so are all slopes.
"""

import math
from typing import Any

from ..core.arrays import Array, device, expect_axis, namespace
from ..core.errors import expect, expect_flag, expect_number, expect_positive
from ..ops import log_softmax
from .base import (
    check_numbers,
    check_signs,
    expect_alike,
    loss_function,
    nested_like,
    reduced,
    reduced_jointly,
    split_outputs,
)

__all__ = ["cosine_distance", "cosine_embedding", "info_nce", "triplet_margin"]


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


def _with_roles_exchanged(y: Array, target: Array, slopes: Array) -> Array:
    """Return ∂L/∂t of `cosine_distance`, whose value is the same for (t, y)."""
    return cosine_distance(target, y, reduction="none")[1]


@loss_function(check=check_numbers, target_slopes=_with_roles_exchanged)
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
    swap: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of max(0, ‖a - p‖ - ‖a - n‖ + m).

    Training makes p closer to a than n is.

    y: {"anchor": a, "positive": p, "negative": n}, or a tuple of the three, each
    (..., width) real. m is the `margin`. The target is not used. Schroff et al.,
    arXiv:1503.03832, sec. 3.1, with distances as in PyTorch's `triplet_margin_loss`;
    the paper has squared distances.

    swap: replace ‖a - n‖ by ‖p - n‖ where that is smaller, so that n has to keep away
    from p, too (Balntas et al., "Learning Local Feature Descriptors with Triplets and
    Shallow Convolutional Neural Networks", 2016, sec. 2.2).

    Gradient
    --------
    With û the direction of a - p, v̂ that of a - n, and [·] = 1 if the maximum is
    positive, else 0,

        ∂L/∂a = [·] (û - v̂)        ∂L/∂p = -[·] û        ∂L/∂n = [·] v̂

    Where p replaces a, v̂ is the direction of p - n, and p receives -v̂ instead of a.

    Raises
    ------
    ValueError
        If the margin is not finite, or the vectors differ in shape or dtype,
        or are empty.
    """
    expect_number("margin", margin)
    expect_flag("swap", swap)
    anchor, positive, negative = split_outputs(y, _TRIPLET)
    expect_axis(anchor, "width")
    xp = namespace(anchor)
    positive_distance, u = _polar(anchor - positive)
    negative_distance, v = _polar(anchor - negative)
    is_swapped = None
    if swap:
        swapped_distance, w = _polar(positive - negative)
        is_swapped = swapped_distance < negative_distance
        negative_distance = xp.where(is_swapped, swapped_distance, negative_distance)
        v = xp.where(is_swapped, w, v)
    excess = xp.maximum(positive_distance - negative_distance + margin, 0.0)
    u = xp.sign(excess) * u
    v = xp.sign(excess) * v
    da = u - v
    dp = -u
    if is_swapped is not None:
        da = xp.where(is_swapped, u, da)
        dp = xp.where(is_swapped, -u - v, dp)
    slopes = nested_like(y, _TRIPLET, da, dp, v)
    return reduced(excess[..., 0], slopes, weights, reduction)


@loss_function(check=_check_nothing, is_joint=True)
def info_nce(
    y: Any,
    target: Any = None,
    weights: Array | None = None,
    *,
    temperature: float = 0.07,
    normalize: bool = True,
    symmetric: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over pairs i of -log softmax(sᵢ) at i, with sᵢⱼ = cos(aᵢ, bⱼ) / τ.

    A contrastive loss: aᵢ should be closer to its partner bᵢ than to the partners of
    the other pairs in the batch. It is `softmax_cross_entropy` with similarities as
    logits, and the number of the pair as its label. Van den Oord et al.,
    arXiv:1807.03748, eq. 4.

    y: {"first": a, "second": b}, or a tuple of the two, each (batch, width) real. The
    target is not used. A pair of weight 0, such as a padding row of the last batch of
    an epoch, is not compared with other pairs. The loss depends on the batch size: with
    n pairs it is about log n for vectors that are not alike. So several small batches
    with `Accumulate` are not one large batch.

    temperature
        τ. Small values count mainly the most similar of the wrong partners.
    normalize
        If it is false, sᵢⱼ = aᵢ · bⱼ / τ. For a temperature that is learned, let the
        model divide the vectors by their lengths and multiply them by a parameter.
    symmetric
        Whether bᵢ should also be closer to aᵢ than to other aⱼ: the mean of both
        losses, with s and with its transpose, as in CLIP (Radford et al.,
        arXiv:2103.00020, fig. 3).

    Gradient
    --------
    With qᵢ = softmax(sᵢ), the gradient of -log qᵢᵢ by sᵢⱼ is qᵢⱼ - [i = j], as in
    `softmax_cross_entropy`. With c the derivative of the loss by the value of each pair
    (1 / batch in a mean), and â and b̂ the directions of the vectors,

        dsᵢⱼ = cᵢ (qᵢⱼ - [i = j]) / τ        dâ = ds b̂        db̂ = dsᵀ â

    and by ∂â/∂a = (I - â âᵀ) / ‖a‖

        ∂L/∂a = (dâ - (dâ · â) â) / ‖a‖

    in the same way for b, and 0 for a vector of length 0. If symmetric, ds is the mean
    of this and of the transpose of that of sᵀ.

    Raises
    ------
    ValueError
        If the temperature is not positive, or if the vectors differ in shape or dtype,
        are not of shape (batch, width), or are empty.
    """
    expect_positive("temperature", temperature)
    expect_flag("normalize", normalize)
    expect_flag("symmetric", symmetric)
    first, second = split_outputs(y, _PAIR)
    expect(first.ndim == 2, "expected vectors (batch, width), got {}", first.shape)
    xp = namespace(first)
    count = first.shape[0]
    if count == 0:  # no similarity is the largest
        slopes = nested_like(y, _PAIR, first, second)
        return reduced(first[:, 0], slopes, weights, reduction)
    numbers = xp.arange(count, device=device(first))
    is_partner = xp.expand_dims(numbers, axis=1) == numbers
    is_compared = None
    if weights is not None:
        is_valid = weights.shape == (count,)
        expect(is_valid, "expected weights {}, got {}", (count,), weights.shape)
        is_counted = weights != 0
        is_compared = xp.logical_or(is_partner, is_counted)
        # 0 times an infinite or NaN element would be NaN
        is_row = xp.expand_dims(is_counted, axis=1)
        first = xp.where(is_row, first, 0.0)
        second = xp.where(is_row, second, 0.0)
    a_length, a = _polar(first) if normalize else (None, first)
    b_length, b = _polar(second) if normalize else (None, second)
    similarity = (a @ xp.matrix_transpose(b)) / temperature

    def compare(similarity: Array) -> tuple[Array, Array]:
        """Return -log q at the partners, and its slope q - [i = j]."""
        if is_compared is not None:
            similarity = xp.where(is_compared, similarity, -math.inf)
        log_q = log_softmax(similarity)
        values = -xp.sum(xp.where(is_partner, log_q, 0.0), axis=1)
        return values, xp.exp(log_q) - xp.astype(is_partner, similarity.dtype)

    values, slopes = compare(similarity)
    other_slopes = None
    if symmetric:
        other_values, other_slopes = compare(xp.matrix_transpose(similarity))
        values = 0.5 * (values + other_values)

    def backward(dvalues: Array) -> Any:
        share = xp.expand_dims(dvalues, axis=1)
        ds = share * slopes
        if other_slopes is not None:
            ds = 0.5 * (ds + xp.matrix_transpose(share * other_slopes))
        ds = ds / temperature
        da = _without_length(ds @ b, a, a_length)
        db = _without_length(xp.matrix_transpose(ds) @ a, b, b_length)
        return nested_like(y, _PAIR, da, db)

    return reduced_jointly(values, backward, weights, reduction)


def _without_length(slope: Array, direction: Array, length: Array | None) -> Array:
    """Return ∂L/∂v = (dv̂ - (dv̂ · v̂) v̂) / ‖v‖ from dv̂ = slope; length None: v̂ is v."""
    if length is None:
        return slope
    xp = namespace(slope)
    along = xp.sum(slope * direction, axis=-1, keepdims=True)
    is_zero = length == 0
    difference = xp.where(is_zero, 0.0, slope - along * direction)
    return difference / xp.where(is_zero, 1.0, length)
