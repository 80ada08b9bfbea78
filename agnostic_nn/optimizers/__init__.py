"""Optimizers: frozen dataclasses with two pure methods, `init` and `update`.

Most inherit from `Rule` and update one leaf at a time. The others are wrappers around
another optimizer: those in `gradients` change the gradients that it gets, those in
`steps` change the steps that it takes, and `parts` has a different optimizer for each
part of the parameters.

The learning rate is called `rate`: `lr` in PyTorch, `learning_rate` in Keras.
"""

from . import (
    adafactor,
    adam,
    adaptive,
    gradients,
    loss_scale,
    momentum,
    muon,
    parts,
    steps,
)
from .adafactor import *
from .adam import *
from .adaptive import *
from .base import Optimizer, Rule
from .gradients import *
from .loss_scale import *
from .momentum import *
from .muon import *
from .parts import *
from .steps import *

# A new class is public once it is in `__all__` of its file.
__all__ = ["Optimizer", "Rule"]
__all__ += adafactor.__all__
__all__ += adam.__all__
__all__ += adaptive.__all__
__all__ += gradients.__all__
__all__ += loss_scale.__all__
__all__ += momentum.__all__
__all__ += muon.__all__
__all__ += parts.__all__
__all__ += steps.__all__
