"""Loss functions. Each returns the value of the loss and its gradient by the outputs.

A loss is a function `(y, target, weights=None, *, …, reduction="mean")` that returns
`(value, dy)`; dy has the nesting, shapes and dtype of y. `weights`, called
`sample_weight` in Keras, has the shape of the leading axes of y. `reduction` is one of

- "mean": Σ w·loss / Σ w, or 0 if all weights are 0. A mean of no examples is an error;
- "sum": Σ w·loss;
- "none": one value per example or element. dy is then the gradient of their sum.

Over several batches, as in `Trainer.fit`, `Trainer.evaluate` and `Accumulate`, Σ w·loss
and Σ w are summed first and divided once. A custom loss returns only a mean, which is
assumed to be over its examples, weighted if there are weights. If it divides by
something else, set its attribute `divisor`, a function of the same arguments:

    def loss(y, target, weights=None): ...          the mean where target >= 0
    loss.divisor = lambda y, target, weights: ...   the number of such targets

The divisor is a 0-d array that depends on target, weights and shapes only, or None if
the loss is a sum.
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
