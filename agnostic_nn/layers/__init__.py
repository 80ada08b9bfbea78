"""Layers, one family per file. Each file derives the gradients that it computes.

In reading order:

base              the contract: `init`, `forward`, `backward`
shapes            helpers for reshaping
dense             y = x W + b
activations       scalar functions, gated units, softmax
embedding         look-up in a table, and its transpose
normalization     batch, layer, group, instance and RMS norm
regularization    dropout and noise
convolution       convolutions and transposed convolutions
pooling           maxima and means of windows
resampling        upsampling, padding, cropping
reshaping         reshape, transpose, user-defined rearrangements
merging           sum, product and concatenation of several arrays
recurrent         RNN, GRU, LSTM
positions         positional encodings
attention         multi-head attention
"""

from .activations import (
    CELU,
    ELU,
    GEGLU,
    GELU,
    GLU,
    SELU,
    Elementwise,
    HardSigmoid,
    HardSwish,
    HardTanh,
    LeakyReLU,
    LogSoftmax,
    Mish,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Softsign,
    SwiGLU,
    Tanh,
    Threshold,
)
from .attention import MultiHeadAttention
from .base import Layer
from .convolution import (
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
)
from .dense import Dense
from .embedding import Embedding, Unembedding
from .merging import Add, Concatenate, Multiply
from .normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .pooling import (
    AdaptiveAveragePool,
    AdaptiveMaxPool,
    AveragePool1D,
    AveragePool2D,
    AveragePool3D,
    GlobalAveragePool,
    GlobalMaxPool,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
)
from .positions import PositionEmbedding, SinusoidalPositions
from .recurrent import GRU, LSTM, RNN
from .regularization import Dropout, DropPath, GaussianNoise, SpatialDropout
from .resampling import Crop, Upsample, ZeroPad
from .reshaping import Flatten, Identity, Lambda, Reshape, Transpose

__all__ = [
    "CELU",
    "ELU",
    "GEGLU",
    "GELU",
    "GLU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "AdaptiveAveragePool",
    "AdaptiveMaxPool",
    "Add",
    "AveragePool1D",
    "AveragePool2D",
    "AveragePool3D",
    "BatchNorm",
    "Concatenate",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose1D",
    "ConvTranspose2D",
    "ConvTranspose3D",
    "Crop",
    "Dense",
    "DropPath",
    "Dropout",
    "Elementwise",
    "Embedding",
    "Flatten",
    "GaussianNoise",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNorm",
    "HardSigmoid",
    "HardSwish",
    "HardTanh",
    "Identity",
    "InstanceNorm",
    "Lambda",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
    "Mish",
    "MultiHeadAttention",
    "Multiply",
    "PReLU",
    "PositionEmbedding",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Reshape",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositions",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpatialDropout",
    "SwiGLU",
    "Tanh",
    "Threshold",
    "Transpose",
    "Unembedding",
    "Upsample",
    "ZeroPad",
]
