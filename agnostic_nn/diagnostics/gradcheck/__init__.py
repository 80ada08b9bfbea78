"""Check the hand-derived gradients of a layer.

`checks.py` compares a layer with central differences, with automatic differentiation
and with NumPy; `inputs.py` draws inputs for it.
"""

from ..draws import drawn
from ..examples import LAYERS, LOSSES, OPTIMIZERS, loss_of
from .checks import CheckFailed, check

__all__ = ["LAYERS", "LOSSES", "OPTIMIZERS", "CheckFailed", "check", "drawn", "loss_of"]
