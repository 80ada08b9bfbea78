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
    pooling           maxima, means and norms of windows
    unpooling         numbers back at the positions of maxima
    resampling        upsampling, padding, cropping
    resizing          interpolation to any size
    sampling          interpolation at points that are inputs
    patches           pixel shuffles, and windows as channels
    reshaping         reshape, transpose, user-defined rearrangements
    merging           sum, product and concatenation of several arrays
    recurrent         RNN, GRU, LSTM
    positions         positional encodings
    attention         multi-head attention
"""

from . import (
    activations,
    convolution,
    dense,
    embedding,
    merging,
    normalization,
    patches,
    pooling,
    recurrent,
    regularization,
    resampling,
    reshaping,
    resizing,
    sampling,
    unpooling,
)
from .activations import *
from .attention import MultiHeadAttention
from .base import Layer
from .convolution import *
from .dense import *
from .embedding import *
from .merging import *
from .normalization import *
from .patches import *
from .pooling import *
from .positions import PositionEmbedding, RotaryPositions, SinusoidalPositions
from .recurrent import *
from .regularization import *
from .resampling import *
from .reshaping import *
from .resizing import *
from .sampling import *
from .unpooling import *

# A new class is public once it is in `__all__` of its file.
__all__ = [
    "Layer",
    "MultiHeadAttention",
    "PositionEmbedding",
    "RotaryPositions",
    "SinusoidalPositions",
]
__all__ += activations.__all__
__all__ += convolution.__all__
__all__ += dense.__all__
__all__ += embedding.__all__
__all__ += merging.__all__
__all__ += normalization.__all__
__all__ += patches.__all__
__all__ += pooling.__all__
__all__ += recurrent.__all__
__all__ += regularization.__all__
__all__ += resampling.__all__
__all__ += reshaping.__all__
__all__ += resizing.__all__
__all__ += sampling.__all__
__all__ += unpooling.__all__
