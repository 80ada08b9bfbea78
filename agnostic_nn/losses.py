"""Losses: each returns the value to report and the gradient to send back.

A loss is a function `(y, target, weights=None)` to `(value, dy)`: a 0-d array and an
array shaped and typed like y. It is a mean over examples; `weights`, shaped like the
leading axes of y, makes it Σ w·loss / Σ w (0 where all weights are 0). A loss of no
examples is refused.
"""

from collections.abc import Callable
from typing import Any

from .arrays import Array, Shape, device, expect, first_true, namespace, size
from .metrics import accuracy, binary_accuracy
from .special import sigmoid

__all__ = ["binary_cross_entropy", "mean_squared_error", "softmax_cross_entropy"]

Loss = Callable[..., tuple[Array, Array]]


def _with(check: Callable, **metrics: Callable) -> Callable[[Loss], Loss]:
    """Attach what a `Trainer` wants of a loss: a check of targets, and metrics to report.

    check(target, shape) refuses a target on the host for outputs of `shape`, batch left out.
    """

    def attach(loss: Any) -> Loss:
        loss.check, loss.metrics = check, metrics
        return loss

    return attach


def _mean(values: Array, weights: Array | None) -> tuple[Array, Any]:
    """Σ w v / Σ w, and the share w / Σ w that each value has in it."""
    xp = namespace(values)
    expect(size(values) > 0, "a mean needs examples, got losses of shape {}", values.shape)
    if weights is None:
        share = 1.0 / size(values)
        return xp.sum(values) * share, share
    lead = values.shape[: weights.ndim]
    expect(weights.shape == lead, "expected weights {}, got {}", lead, weights.shape)
    expect(weights.dtype == values.dtype, "y is {}, weights {}", values.dtype, weights.dtype)
    total = xp.sum(weights) * (size(values) / size(weights))
    weights = xp.reshape(weights, (*lead, *(1,) * (values.ndim - len(lead))))
    share = weights / xp.where(total > 0, total, xp.ones_like(total))
    return xp.sum(share * values), share


def _check_numbers(target: Array, shape: Shape) -> None:
    xp = namespace(target)
    if not xp.isdtype(target.dtype, "real floating"):
        raise TypeError(f"expected real floating targets, got {target.dtype}")
    _expect_target(target, shape)
    bad = first_true(~xp.isfinite(target))
    if bad is not None:
        raise ValueError(f"expected finite targets, but target{list(bad)} is {target[bad]}")


def _expect_target(target: Array, shape: Shape) -> None:
    fits = tuple(target.shape[1:]) == tuple(shape)
    wanted = ", ".join(["batch", *map(str, shape)])
    expect(fits, f"expected targets ({wanted}), got {tuple(target.shape)}")


@_with(_check_numbers)
def mean_squared_error(y: Array, target: Array, weights: Array | None = None):
    """Mean of (y - t)² over every element.

    y, target: any one shape and real dtype.

    Gradient
    --------
    ∂(yᵢ - tᵢ)²/∂yᵢ = 2 (yᵢ - tᵢ), times the share of the element in the mean, 1 / size.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
    """
    namespace(y, target)
    _expect_alike(y, target)
    error = y - target
    value, share = _mean(error * error, weights)
    return value, error * (2.0 * share)


def _expect_alike(y: Array, target: Array) -> None:
    expect(y.shape == target.shape, "y is {} but target is {}", y.shape, target.shape)
    expect(y.dtype == target.dtype, "y is {} but target is {}", y.dtype, target.dtype)


def _check_classes(target: Array, shape: Shape) -> None:
    xp = namespace(target)
    if xp.isdtype(target.dtype, "integral"):
        _expect_target(target, shape[:-1])
        bad = first_true((target < 0) | (target >= shape[-1]))
        if bad is not None:
            raise ValueError(
                f"expected labels from 0 to {shape[-1] - 1}, but label{list(bad)} is {target[bad]}"
            )
        return
    if target.ndim == len(shape):
        raise TypeError(f"expected integer labels, got {target.dtype}")
    _check_numbers(target, shape)
    bad = first_true(target < 0)
    if bad is not None:
        raise ValueError(f"expected probabilities, but target{list(bad)} is {target[bad]}")
    total = xp.sum(target, axis=-1)
    bad = first_true(xp.abs(total - 1.0) > 1e-3)
    if bad is not None:
        raise ValueError(
            f"expected probabilities that sum to 1, but target{list(bad)} sums to {total[bad]}"
        )


@_with(_check_classes, accuracy=accuracy)
def softmax_cross_entropy(
    logits: Array, target: Array, weights: Array | None = None, *, label_smoothing: float = 0.0
):
    """Mean over examples of -Σₖ pₖ log softmax(z)ₖ, with z the logits.

    logits: (..., classes) real. target: (...) integer labels in [0, classes), p being 1
    at the label; or p itself, (..., classes) in the dtype of the logits. Smoothing by ε
    moves p towards all classes alike: (1 - ε) p + ε / classes (Szegedy et al.,
    arXiv:1512.00567, sec. 7). Labels are trusted: `jit` hides their values.

    Gradient
    --------
    As Σ pₖ = 1, L = log Σ exp(zⱼ) - Σ pₖ zₖ for one example. Since ∂ log Σ exp(z)/∂zⱼ is
    softmax(z)ⱼ,

        ∂L/∂zⱼ = softmax(z)ⱼ - pⱼ        (cf. Bishop, PRML, eq. 4.109)

    times the share of the example in the mean.

    Raises
    ------
    TypeError
        If labels are neither integers nor of the dtype of the logits.
    ValueError
        If the shapes do not fit, or hold nothing.
    """
    xp = namespace(logits, target)
    classes = logits.shape[-1]
    expect(0.0 <= label_smoothing < 1.0, "expected smoothing in [0, 1), got {}", label_smoothing)
    if xp.isdtype(target.dtype, "integral"):
        fits = target.shape == logits.shape[:-1]
        expect(fits, "labels {} for logits {}", target.shape, logits.shape)
        numbers = xp.arange(classes, device=device(target))
        labels = xp.astype(xp.expand_dims(target, axis=-1), numbers.dtype)
        p = xp.astype(labels == numbers, logits.dtype)
    else:
        if target.dtype != logits.dtype:
            raise TypeError(f"expected integer labels or {logits.dtype}, got {target.dtype}")
        _expect_alike(logits, target)
        p = target
    if label_smoothing:
        p = (1.0 - label_smoothing) * p + label_smoothing / classes

    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    grown = xp.exp(shifted)
    total = xp.sum(grown, axis=-1, keepdims=True)
    # where p is 0 a logit of -inf must not turn 0 · inf into NaN
    expected = xp.sum(p * xp.where(p > 0, shifted, 0.0), axis=-1)
    value, share = _mean(xp.log(total[..., 0]) - expected, weights)
    if weights is not None:
        share = xp.expand_dims(share, axis=-1)
    return value, (grown / total - p) * share


def _check_probabilities(target: Array, shape: Shape) -> None:
    _check_numbers(target, shape)
    bad = first_true((target < 0) | (target > 1))
    if bad is not None:
        raise ValueError(f"expected targets in [0, 1], but target{list(bad)} is {target[bad]}")


@_with(_check_probabilities, accuracy=binary_accuracy)
def binary_cross_entropy(logits: Array, target: Array, weights: Array | None = None):
    """Mean of -t log σ(z) - (1 - t) log σ(-z) over every element, with z the logits.

    logits, target: any one shape and real dtype; targets in [0, 1], which is trusted.

    Written as max(z, 0) - t z + log(1 + exp(-|z|)), equal since log σ(z) is
    -log(1 + exp(-z)), which neither overflows nor cancels.

    Gradient
    --------
    L = softplus(z) - t z, so ∂L/∂z = σ(z) - t (Bishop, PRML, eq. 4.91), times the share
    of the element in the mean.

    Raises
    ------
    ValueError
        If logits and target differ in shape or dtype, or hold nothing.
    """
    xp = namespace(logits, target)
    _expect_alike(logits, target)
    tail = xp.log1p(xp.exp(-xp.abs(logits)))
    value, share = _mean(xp.maximum(logits, 0.0) - target * logits + tail, weights)
    return value, (sigmoid(logits) - target) * share
