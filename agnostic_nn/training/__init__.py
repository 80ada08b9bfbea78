"""Training: from a user's data to better parameters.

`steps.py` ties a model, a loss and an optimizer into one pure step. `intake.py` and `data.py` check
what a user hands over and cut it into batches, `feeding.py` brings these to the device, and
`trainer.py` remembers what steps returned; `checkpoint.py` and `config.py` bring that to a file and
back. `history.py` and `progress.py` tell of a run, `callbacks.py` and `interrupts.py` listen.
"""

from .callbacks import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    RateLog,
    ReduceOnPlateau,
    TensorBoardLog,
)
from .checkpoint import CheckpointError
from .data import class_weights, stratified_split
from .history import History
from .steps import make_step
from .trainer import NonFiniteLoss, Trainer

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "History",
    "NonFiniteLoss",
    "RateLog",
    "ReduceOnPlateau",
    "TensorBoardLog",
    "Trainer",
    "class_weights",
    "make_step",
    "stratified_split",
]
