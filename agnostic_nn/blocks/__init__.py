"""Blocks: layers made of other layers, whose gradients they chain."""

from .base import Block
from .freeze import Freeze
from .graph import Graph, Shared
from .mixed_precision import MixedPrecision
from .parallel import Parallel
from .recompute import Recompute
from .reparametrized import LoRA, WeightNorm
from .repeat import Repeat
from .residual import Residual
from .sequential import Sequential
from .transformer import TransformerBlock

__all__ = [
    "Block",
    "Freeze",
    "Graph",
    "LoRA",
    "MixedPrecision",
    "Parallel",
    "Recompute",
    "Repeat",
    "Residual",
    "Sequential",
    "Shared",
    "TransformerBlock",
    "WeightNorm",
]
