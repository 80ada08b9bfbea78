"""Loss functions. Each returns the value of the loss and its gradient by the outputs.

A loss is a function `(y, target, weights=None, *, …, reduction="mean")` that returns
`(value, dy)`; dy has the nesting, shapes and dtype of y. `weights`, called
`sample_weight` in Keras, has the shape of the leading axes of y. `reduction` is one of

- "mean": Σ w·loss / Σ w, or 0 if all weights are 0. A mean of no examples is an error;
- "sum": Σ w·loss;
- "none": one value per example or element. dy is then the gradient of their sum.

Weights may be negative with "sum" and "none", such as the advantages of a policy
gradient, Σ A · softmax_cross_entropy. A mean would divide by Σ w, which may be 0 or
close to it, so a `Trainer` refuses negative weights for a mean.

Over several batches, as in `Trainer.fit`, `Trainer.evaluate` and `Accumulate`, Σ w·loss
and Σ w are summed first and divided once. A custom loss returns only a mean, which is
assumed to be over its examples, weighted if there are weights. If it divides by
something else, set its attribute `divisor`, a function of the same arguments:

    def loss(y, target, weights=None): ...          the mean where target >= 0
    loss.divisor = lambda y, target, weights: ...   the number of such targets

The divisor is a 0-d array that depends on target, weights and shapes only, or None if
the loss is a sum.
"""

from . import (
    classification,
    combined,
    likelihood,
    margin,
    regression,
    segmentation,
    sequence,
    similarity,
)
from .base import Loss
from .classification import *
from .combined import *
from .likelihood import *
from .margin import *
from .regression import *
from .segmentation import *
from .sequence import *
from .similarity import *

# A new class is public once it is in `__all__` of its file.
__all__ = ["Loss"]
__all__ += classification.__all__
__all__ += combined.__all__
__all__ += likelihood.__all__
__all__ += margin.__all__
__all__ += regression.__all__
__all__ += segmentation.__all__
__all__ += sequence.__all__
__all__ += similarity.__all__
