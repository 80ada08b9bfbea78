"""Neural networks with hand-derived gradients, on any array library.

Layers, losses and optimizers are here at once and need no array library to import.
What trains and checks them is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import random, schedules, special, trees
from .arrays import Rows
from .blocks import Residual, Sequential
from .initializers import (
    Constant,
    Orthogonal,
    TruncatedNormal,
    VarianceScaling,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
)
from .layers import (
    ELU,
    GELU,
    BatchNorm,
    Dense,
    Dropout,
    Elementwise,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Reshape,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from .losses import binary_cross_entropy, mean_squared_error, softmax_cross_entropy
from .metrics import accuracy, binary_accuracy
from .optimizers import SGD, Adam, AdamW, ClipByGlobalNorm
from .registry import Backend, BackendUnavailable, Status, backend, backends

if TYPE_CHECKING:
    from .checking import CheckFailed, check
    from .checkpoint import CheckpointError
    from .history import History
    from .training import NonFiniteLoss, Trainer, make_step

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "Adam",
    "AdamW",
    "Backend",
    "BackendUnavailable",
    "BatchNorm",
    "CheckFailed",
    "CheckpointError",
    "ClipByGlobalNorm",
    "Constant",
    "Dense",
    "Dropout",
    "Elementwise",
    "Embedding",
    "Flatten",
    "History",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "NonFiniteLoss",
    "Orthogonal",
    "ReLU",
    "Reshape",
    "Residual",
    "Rows",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Status",
    "Tanh",
    "Trainer",
    "TruncatedNormal",
    "VarianceScaling",
    "accuracy",
    "backend",
    "backends",
    "binary_accuracy",
    "binary_cross_entropy",
    "check",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "make_step",
    "mean_squared_error",
    "random",
    "schedules",
    "softmax_cross_entropy",
    "special",
    "trees",
]

_UPSTAIRS = {
    "CheckFailed": "checking",
    "CheckpointError": "checkpoint",
    "History": "history",
    "NonFiniteLoss": "training",
    "Trainer": "training",
    "check": "checking",
    "make_step": "training",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _UPSTAIRS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_UPSTAIRS[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_UPSTAIRS})
