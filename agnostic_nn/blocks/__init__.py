"""Blocks: layers made of layers. They chain gradients and derive none."""

from .residual import Residual
from .sequential import Sequential

__all__ = ["Residual", "Sequential"]
