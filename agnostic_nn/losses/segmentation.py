"""Losses of masks: which class the places of an image, a volume or a series have."""

from typing import Any

from ..core.arrays import Array, Shape, namespace
from ..core.errors import expect, expect_choice, expect_positive
from ..ops import log_softmax, sigmoid
from .base import (
    along_classes,
    check_labels,
    check_probabilities,
    expect_alike,
    loss_function,
    one_hot,
    reduced,
)

__all__ = ["dice"]


def _check_mask(target: Array, shape: Shape) -> None:
    """Raise unless targets are labels, or numbers in [0, 1] for each output."""
    is_array = hasattr(target, "dtype")
    if is_array and namespace(target).isdtype(target.dtype, "integral"):
        check_labels(target, shape)
    else:
        check_probabilities(target, shape)


def _probabilities(y: Array, *, activation: str | None = "sigmoid") -> Array:
    """Return p, the `activation` of y."""
    if activation == "sigmoid":
        return sigmoid(y)
    return y if activation is None else namespace(y).exp(log_softmax(y))


@loss_function(check=_check_mask, probabilities=_probabilities)
def dice(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    activation: str | None = "sigmoid",
    class_weights: tuple[float, ...] | None = None,
    epsilon: float = 1e-7,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples and classes of 1 - (2 Σ p t + ε) / (Σ p + Σ t + ε).

    The sums are over the places of an example, such as the pixels of an image. The
    fraction is the Dice coefficient, or F1 score: 1 where the mask p and the target t
    are equal, 0 where they have nothing in common. Places that belong to neither do not
    count, so rare classes count as much as frequent ones. Milletari et al., "V-Net",
    arXiv:1606.04797, sec. 3, without squares in the denominator. Keras: `Dice`, which
    takes one sum over the whole batch by default.

    y: (batch, ..., classes) real. target: the same shape and dtype, in [0, 1], or
    integer labels (batch, ...). Neither is checked here. A mask of one class has a last
    axis of length 1. There is one value per example, the mean over its classes.

    activation
        How p is computed from y: "sigmoid", for classes that may overlap; "softmax",
        for one class at each place; or None if y are probabilities.
    class_weights
        w: the mean over classes is Σₖ wₖ Lₖ / Σₖ wₖ. A background with the label 0 is
        left out by (0.0, 1.0, ...).
    epsilon
        ε, which makes the loss 0 if both masks are empty.

    Gradient
    --------
    With N = 2 Σ p t + ε and D = Σ p + Σ t + ε, ∂N/∂p = 2 t and ∂D/∂p = 1. By the
    quotient rule, and with v = w / Σ w,

        ∂L/∂p = -v (2 t D - N) / D² = v (N / D - 2 t) / D = g

    and with ∂p/∂y of the activation, over the classes k of a place,

        sigmoid: ∂L/∂y = g p (1 - p)        softmax: ∂L/∂yₖ = pₖ (gₖ - Σⱼ pⱼ gⱼ)

    Raises
    ------
    ValueError
        If y has no axis of classes after that of the batch, y and target do not match
        or are empty, or an option is out of its bounds.
    """
    expect_choice("activation", activation, ("sigmoid", "softmax", None))
    expect_positive("epsilon", epsilon)
    xp = namespace(y, target)
    is_valid = y.ndim > 1
    expect(is_valid, "expected y of shape (batch, ..., classes), got {}", y.shape)
    if xp.isdtype(target.dtype, "integral"):
        target = one_hot(target, y)
    expect_alike(y, target)
    classes = y.shape[-1]
    share: Any = 1.0 / classes
    if class_weights is not None:
        is_valid = isinstance(class_weights, tuple | list) and any(class_weights)
        expect(is_valid, "expected a class weight above 0, got {}", class_weights)
        share = along_classes("class_weights", class_weights, y) / sum(class_weights)
    p = _probabilities(y, activation=activation)
    places = tuple(range(1, y.ndim - 1))

    def over_places(x: Array) -> Array:
        return xp.sum(x, axis=places, keepdims=True) if places else x

    numerator = 2.0 * over_places(p * target) + epsilon
    denominator = over_places(p + target) + epsilon
    ratio = numerator / denominator
    values = xp.sum(share * (1.0 - ratio), axis=tuple(range(1, y.ndim)))
    slopes = share * (ratio - 2.0 * target) / denominator
    if activation == "sigmoid":
        slopes = slopes * p * sigmoid(-y)  # 1 - p, also accurate near p = 1
    elif activation == "softmax":
        slopes = p * (slopes - xp.sum(p * slopes, axis=-1, keepdims=True))
    return reduced(values, slopes, weights, reduction)
