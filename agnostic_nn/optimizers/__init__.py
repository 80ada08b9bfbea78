"""Optimizers: frozen dataclasses with two pure methods, `init` and `update`.

Most inherit from `Rule` and update one leaf at a time. The others are wrappers around
another
optimizer: those in `gradients` change the gradients that it gets, those in `steps`
change the steps that it takes, and `parts` has a different
optimizer for each part of the parameters.

The learning rate is called `rate`: `lr` in PyTorch, `learning_rate` in Keras.
"""

from .adafactor import Adafactor
from .adam import LAMB, Adam, Adamax, AdamW, NAdam, RAdam
from .adaptive import Adadelta, Adagrad, RMSprop
from .base import Optimizer, Rule
from .gradients import L2, Accumulate, ClipByGlobalNorm, ClipByNorm, ClipByValue
from .momentum import SGD, Lion
from .muon import Muon
from .parts import Fixed, Parts
from .steps import Average, Scaled

__all__ = [
    "L2",
    "LAMB",
    "SGD",
    "Accumulate",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Average",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Fixed",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "Parts",
    "RAdam",
    "RMSprop",
    "Rule",
    "Scaled",
]
