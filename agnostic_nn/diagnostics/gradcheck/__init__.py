"""Check the hand-derived gradients of a layer.

`checks.py` has `check`, and `report.py` its result. `inputs.py` draws inputs, and
`cases.py` checks the contract of a layer. `oracles.py` compares it with central
differences, with automatic differentiation and with NumPy. `dtypes.py` compares its
arithmetic in narrow dtypes with float64. `inside.py` finds the layer
that is wrong inside a block.
"""

from ..draws import drawn
from ..examples import LAYERS, LOSSES, OPTIMIZERS, loss_of
from .checks import check
from .report import CheckFailed

__all__ = ["LAYERS", "LOSSES", "OPTIMIZERS", "CheckFailed", "check", "drawn", "loss_of"]
