"""Optimizers: frozen dataclasses with two pure methods, `init` and `update`.

Most are a `Rule` for one leaf. The others stand around another optimizer: what it is given
(`gradients`), what becomes of its steps (`steps`), and which part of the tree it moves (`parts`).
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
