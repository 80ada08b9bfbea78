"""Check: a layer against every oracle there is; and one specimen of each thing, to be checked.

`checking.py` holds a layer to central differences, to automatic differentiation and to NumPy;
`inputs.py` draws numbers to try it with, and `examples.py` has a line for each layer, loss and
optimizer of this library.
"""

from ..examples import LAYERS, LOSSES, OPTIMIZERS, drawn, loss_of
from .checks import CheckFailed, check

__all__ = ["LAYERS", "LOSSES", "OPTIMIZERS", "CheckFailed", "check", "drawn", "loss_of"]
