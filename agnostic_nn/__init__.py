"""Neural networks with hand-derived gradients, on any array library."""

from . import initializers, random, schedules, special, trees
from .backends import Backend, BackendUnavailable, Status, backend, backends
from .blocks import Residual, Sequential
from .checkpoint import CheckpointError
from .history import History
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
from .training import NonFiniteLoss, Trainer, make_step
