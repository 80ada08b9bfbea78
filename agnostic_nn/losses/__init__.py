"""Losses: each returns the value to report and the gradient to send back.

A loss is a function `(y, target, weights=None, *, …, reduction="mean")` to `(value, dy)`,
dy nested, shaped and typed like y. It is a mean over examples; `weights`, shaped like the
leading axes of y, makes it Σ w·loss / Σ w (0 where all weights are 0). With "sum" it is
Σ w·loss, and with "none" there is one value per example or element, and dy belongs to their
sum. A mean of no examples is refused.

Over several batches, as in `Trainer.fit`, `Trainer.evaluate` and `Accumulate`, Σ w·loss and
Σ w are added up and divided once. A custom loss, which returns a mean alone, is taken to be a
mean over its examples, by their weights if it gets any. If it divides by something else, say
so by an attribute, a function of the same arguments:

    def loss(y, target, weights=None): ...          the mean where target >= 0
    loss.divisor = lambda y, target, weights: ...   how many such targets there are

The divisor is a 0-d array, which depends on target, weights and shapes only, or None of a
loss that is a sum.
"""

from .base import Loss
from .classification import (
    binary_cross_entropy,
    kl_divergence,
    negative_log_likelihood,
    softmax_cross_entropy,
)
from .combined import Losses, Weighted
from .likelihood import gaussian_nll, poisson_nll
from .margin import hinge, multi_class_margin, squared_hinge
from .regression import huber, log_cosh, mean_absolute_error, mean_squared_error
from .sequence import ctc
from .similarity import cosine_distance, cosine_embedding, triplet_margin

__all__ = [
    "Loss",
    "Losses",
    "Weighted",
    "binary_cross_entropy",
    "cosine_distance",
    "cosine_embedding",
    "ctc",
    "gaussian_nll",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_squared_error",
    "multi_class_margin",
    "negative_log_likelihood",
    "poisson_nll",
    "softmax_cross_entropy",
    "squared_hinge",
    "triplet_margin",
]
