"""Training: from a user's data to better parameters.

`trainer.py` is what a user calls. `validation.py` checks a user's data against a model
and a loss, and visits each array once by `inputs.py`. `batches.py` divides the examples
into batches, `feed.py` moves these to the device, and `advance.py` takes a step with
them: one of the pure functions of `steps.py`, which tie a model, a loss and an
optimizer together. `run.py` holds what the steps return. `epochs.py` is the loop of
`fit`, and `evaluation.py` computes losses and metrics over many examples.

`saving.py`, `checkpoint.py`, `checkpoint_fields.py` and `config.py` write a trainer to
a file and read it back, in the format of `safetensors_format.py`; `abstract_init.py`
finds the shapes that a file must hold. `context.py` holds the arrays that steps read
without training them, `mean_loss.py` averages losses over batches, `epoch_means.py`
losses and metrics over the steps of an epoch, and `callback_memory.py` holds what
callbacks remember during a run. `callbacks.py`, `step_report.py`, `interrupts.py`,
`progress.py` and `history.py` watch, stop and report a run. `input_shapes.py` tells
which lengths a model does not fix, and `buckets.py` pads sequences to a few lengths.
`splits.py` splits examples and balances classes. `generation.py` continues sequences
with a trained model.
"""

from .buckets import bucketed
from .callbacks import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    LogTo,
    RateLog,
    ReduceOnPlateau,
    TensorBoardLog,
)
from .checkpoint import CheckpointError
from .epochs import NonFiniteLoss
from .generation import generate, stream_tokens
from .history import History
from .splits import class_weights, stratified_split
from .steps import make_step
from .trainer import Trainer

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "History",
    "LogTo",
    "NonFiniteLoss",
    "RateLog",
    "ReduceOnPlateau",
    "TensorBoardLog",
    "Trainer",
    "bucketed",
    "class_weights",
    "generate",
    "make_step",
    "stratified_split",
    "stream_tokens",
]
