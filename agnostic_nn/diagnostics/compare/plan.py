"""Validate a comparison before anything trains, and prepare what its runs share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...blocks import MixedPrecision
from ...core import random
from ...core.arrays import Moments, Params, State, namespace
from ...core.backend import Backend
from ...core.backend import backend as choose
from ...core.errors import described, expect_list
from ...core.precisions import HALVES
from ...core.trees import tree_map
from ...layers import Layer
from ...losses.base import describe_loss, expect_context, takes_weights
from ...training.batches import Examples
from ...training.inputs import as_integer
from .choice import RunToMake, runs_to_make
from .environment import environment
from .running import SIZES, Task
from .schema import Environment, LeftOut
from .workloads import CannotCompare, Workload, find

__all__ = ["Plan", "prepare", "start_of"]

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """A comparison that can run: its training, its runs, and where they run.

    sizes: further batch sizes to time. repeat: how often each run is made.
    """

    task: Task
    runs: tuple[RunToMake, ...]
    left_out: tuple[LeftOut, ...]
    environment: Environment
    sizes: tuple[int, ...]
    repeat: int = 1

    @property
    def dtypes(self) -> list[str]:
        """The dtypes of the runs, each once."""
        return list(dict.fromkeys(dtype for _, dtype in self.runs))


def prepare(
    workload: str | Workload,
    names: Sequence[str | Backend] | None = None,
    *,
    precision: str | None = None,
    deterministic: bool | None = None,
    dtypes: Sequence[str] = ("float32",),
    epochs: int | None = None,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
    repeat: int = 1,
    skip_missing: bool = False,
) -> Plan:
    """Return the plan of a comparison; `run_comparison` describes the parameters.

    Raises
    ------
    CannotCompare
        If the workload, a backend or a dtype is unknown or cannot run here, the data
        are not available, or the loss takes a context and the workload has none.
    """
    if isinstance(workload, str):
        workload = find(workload)
    if not isinstance(workload, Workload):
        raise TypeError(f"expected a workload or its name, got {described(workload)}")
    _expect_computable_by_numpy(workload.model)
    expect_list("names", [] if names is None else names)
    expect_list("dtypes", dtypes)
    expect_list("sizes", sizes)
    unique_dtypes = list(dict.fromkeys(dtypes))
    if set(unique_dtypes) & set(HALVES):
        # first, because a training in half precision is described next to that one
        unique_dtypes = list(dict.fromkeys(["float32", *unique_dtypes]))
    if not unique_dtypes or set(unique_dtypes) - set(DTYPES):
        got = ", ".join(map(str, unique_dtypes))
        raise CannotCompare(f"expected dtypes among {', '.join(DTYPES)}, got {got}")
    sizes = [as_integer("each of sizes", size) for size in sizes]
    epochs = None if epochs is None else as_integer("epochs", epochs)
    seed = as_integer("seed", seed, 0)
    repeat = as_integer("repeat", repeat)
    try:
        expect_context(workload.loss, workload.context)
    except (TypeError, ValueError) as error:
        raise CannotCompare(str(error)) from error
    here = environment()
    runs, left_out = runs_to_make(
        names,
        unique_dtypes,
        (precision, deterministic),
        here.processor,
        skip_missing=skip_missing,
    )
    train, test = workload.read()
    _expect_weights_if_needed(workload, len(train))
    start = start_of(workload, train, seed)
    epochs = workload.epochs if epochs is None else epochs
    task = Task(workload, train, test, start, epochs, seed)
    return Plan(task, tuple(runs), tuple(left_out), here, tuple(sizes), repeat)


def _expect_computable_by_numpy(layer: Layer) -> None:
    """Raise CannotCompare for a MixedPrecision in a dtype that NumPy lacks."""
    if isinstance(layer, MixedPrecision):
        lacking = choose("numpy").lacks_dtype(layer.dtype)
        if lacking:
            raise CannotCompare(
                f"the reference is computed by NumPy, and {lacking}: to compare "
                f"trainings in {layer.dtype}, pass the model without MixedPrecision, "
                f"and {layer.dtype} as one of the dtypes"
            )
    for _, inner in layer._inner_layers():
        _expect_computable_by_numpy(inner)


def _expect_weights_if_needed(workload: Workload, count: int) -> None:
    """Raise CannotCompare if a batch needs padding, and the loss takes no weights."""
    size = workload.batch_size
    if count % size and not takes_weights(workload.loss):
        raise CannotCompare(
            f"the last of the batches of {size} has {count % size} of {count} training "
            f"examples, and needs weights to be padded, which "
            f"{describe_loss(workload.loss)} does not take: give it a third parameter, "
            f"weights=None, or choose a batch size that divides {count}"
        )


def start_of(
    workload: Workload, train: Examples, seed: int
) -> tuple[Params, State, Moments]:
    """Return the parameters, state and moments that every run starts from."""
    xp = namespace(np.zeros(()))
    shape = tree_map(lambda leaf: leaf.shape[1:], train.x)
    params, state, _ = workload.model.init(random.key(seed, xp=xp), shape, xp.float32)
    return params, state, workload.optimizer.init(params)
