"""Neural networks with hand-derived gradients, on any array library.

Layers, losses and optimizers are imported at once; they need no array library. What
trains, checks and compares networks is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import blocks, layers, losses, ops, optimizers, penalties, schedules
from .blocks import *
from .core import arrays, random, trees
from .core.arrays import RowMask
from .core.backend import Backend, BackendUnavailable, Status, backend, backends
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
from .layers import *
from .losses import *
from .metrics import (
    OverAll,
    absolute_error,
    accuracy,
    binary_accuracy,
    perplexity,
    r2,
    top_k_accuracy,
)
from .optimizers import *

if TYPE_CHECKING:
    from .diagnostics.bisect import bisect
    from .diagnostics.compare import compare
    from .diagnostics.explain import explain
    from .diagnostics.gradcheck import CheckFailed, check
    from .diagnostics.profile import profile
    from .training import *

if TYPE_CHECKING:  # mypy does not follow lists that a package joins to its `__all__`
    from .layers.activations import *
    from .layers.convolution import *
    from .layers.dense import *
    from .layers.embedding import *
    from .layers.merging import *
    from .layers.normalization import *
    from .layers.patches import *
    from .layers.pooling import *
    from .layers.recurrent import *
    from .layers.regularization import *
    from .layers.resampling import *
    from .layers.reshaping import *
    from .layers.resizing import *
    from .layers.sampling import *
    from .layers.unpooling import *
    from .losses.classification import *
    from .losses.combined import *
    from .losses.likelihood import *
    from .losses.margin import *
    from .losses.regression import *
    from .losses.segmentation import *
    from .losses.sequence import *
    from .losses.similarity import *
    from .optimizers.adafactor import *
    from .optimizers.adam import *
    from .optimizers.adaptive import *
    from .optimizers.gradients import *
    from .optimizers.loss_scale import *
    from .optimizers.momentum import *
    from .optimizers.muon import *
    from .optimizers.parts import *
    from .optimizers.steps import *

__all__ = ["Backend", "BackendUnavailable", "RowMask", "Status", "backend", "backends"]
__all__ += ["arrays", "ops", "penalties", "random", "schedules", "trees"]
__all__ += blocks.__all__
__all__ += layers.__all__
__all__ += losses.__all__
__all__ += optimizers.__all__
__all__ += ["Constant", "Orthogonal", "TruncatedNormal", "VarianceScaling"]
__all__ += ["glorot_normal", "glorot_uniform", "he_normal", "he_uniform"]
__all__ += ["lecun_normal", "lecun_uniform"]
__all__ += [
    "OverAll",
    "absolute_error",
    "accuracy",
    "binary_accuracy",
    "perplexity",
    "r2",
    "top_k_accuracy",
]
# imported when first used: `import agnostic_nn` takes a third of the time without them
__all__ += [
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "CSVLog",
    "EarlyStopping",
    "History",
    "LogTo",
]
__all__ += ["NonFiniteLoss", "RateLog", "ReduceOnPlateau", "TensorBoardLog", "Trainer"]
__all__ += [
    "bucketed",
    "class_weights",
    "generate",
    "make_step",
    "stratified_split",
    "stream_tokens",
]
__all__ += ["CheckFailed", "bisect", "check", "compare", "explain", "profile"]

__version__ = "0.1.0"

_TOOLS = {
    "CheckFailed": "diagnostics.gradcheck",
    "bisect": "diagnostics.bisect",
    "check": "diagnostics.gradcheck",
    "compare": "diagnostics.compare",
    "explain": "diagnostics.explain",
    "profile": "diagnostics.profile",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_TOOLS.get(name, 'training')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
