"""The current run of a trainer: the arrays of its steps, and the counters of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import RLock
from typing import Any, NamedTuple

import numpy as np

from ..core import random
from ..core.arrays import Shape, namespace
from ..core.atomic import StateLost, settle
from ..core.trees import tree_map
from ..layers import Layer
from ..optimizers import Optimizer
from .batches import EpochProgress
from .epoch_means import NO_MEANS, EpochMeans
from .precision_policy import CarryArrays
from .steps import Carry

__all__ = ["NO_OPEN_EPOCH", "Attempt", "CurrentRun", "Run", "copy_of"]

NO_OPEN_EPOCH = EpochProgress()


class Run(NamedTuple):
    """The carry of the training step, and the counters that belong to it.

    A trainer replaces its run as a whole, by one assignment. So at every moment it
    holds the arrays after a whole number of steps, and counters that agree with them.
    """

    carry: Carry | None = None
    shape: Shape | None = None
    out_shape: Shape | None = None
    limits: Any = None  # the lengths that the user chose, where None may be any
    steps: int = 0
    epoch: int = 0
    open: EpochProgress = NO_OPEN_EPOCH
    is_shared: bool = False  # whether the caller may hold the arrays of `carry`
    means: EpochMeans = NO_MEANS  # of the steps of the open epoch
    lost: str = ""  # why `carry` is None although there were weights
    # the names of the columns of the first table at each path, as in {"x": ["a", "b"]}
    columns: dict[str, list[str]] | None = None


class Attempt(NamedTuple):
    """A call of a step that has begun: the run before it, and the list for its result.

    after(before, result) returns the new run and the value to return. It is pure, so it
    can be called again if an exception interrupts the first call.
    """

    before: Run
    outcome: list[Any]
    after: Callable[[Run, Any], tuple[Run, Any]]

    def ended(self) -> tuple[Run, Any]:
        """Return the run that the step left behind, and the value to return."""
        try:
            is_done = settle(self.outcome)
        except StateLost as error:
            return self.before._replace(carry=None, lost=str(error)), None
        if not is_done:
            return self.before, None
        return self.after(self.before, self.outcome[1])


class CurrentRun:
    """Holds the run of a trainer, or an attempt at its next step, and replaces it.

    run: read it with `settled`, and replace fields of it with `change`. lock: held by
    every thread that reads or replaces `run`. optimizer: whose moments `draw` returns.
    arrays: moves them to the backend. dtype: that of the weights on the host.
    during_step: returns the context in which a step runs.
    """

    def __init__(
        self,
        model: Layer,
        optimizer: Optimizer,
        arrays: CarryArrays,
        seed: int,
        dtype: str,
    ) -> None:
        self.run: Run | Attempt = Run()
        self.lock: AbstractContextManager[Any] = RLock()
        self._model = model
        self.optimizer = optimizer
        self.during_step: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._arrays = arrays
        self._seed = seed
        self._dtype = dtype

    def settled(self) -> Run:
        """Return the run after the last completed step."""
        with self.lock:
            run = self.run
            if isinstance(run, Run):
                return run
            ended, _ = run.ended()
            if ended is not run.before:
                self.run = ended
            return ended

    def change(self, **changes: Any) -> Run:
        """Replace fields of the run and return the new one."""
        with self.lock:
            run = self.settled()
            if self.run is not run and run.carry is not None:
                # A signal handler called this during a step. That step may still write
                # to the memory that was donated to it, and its result will be dropped.
                changes = {"carry": copy_of(run.carry)} | changes
            self.run = run = run._replace(**changes)
            return run

    def carry(self) -> Carry:
        """Return the carry.

        Raises
        ------
        StateLost
            If an exception destroyed it during a step.
        RuntimeError
            If no weights have been drawn yet.
        """
        run = self.settled()
        if run.carry is None and run.lost:
            raise StateLost(
                f"the parameters are lost: {run.lost}. Load a checkpoint with "
                "Trainer.load, or call `restore` to return to weights that were kept"
            )
        if run.carry is None:
            raise RuntimeError(
                "no weights yet: give Trainer a shape, or fit it to data first"
            )
        return run.carry

    def shared_carry(self) -> Carry:
        """Return the carry to the user; the next step copies it before donating it."""
        with self.lock:
            carry = self.carry()
            run = self.settled()
            if self.run is not run:  # called by a signal handler during a step
                return copy_of(carry)
            self.run = run._replace(is_shared=True)
            return carry

    def host_copy(self) -> Carry:
        """Return a copy of the carry on the host.

        A view would keep its memory from being donated to the next step.
        """
        with self.lock:
            carry: Carry = tree_map(np.array, self._arrays.to_numpy(self.carry()))
            return carry

    def set_carry(self, carry: Carry) -> None:
        """Move a carry from the host to the backend and continue from it."""
        self.change(carry=self._arrays.asarray(carry), is_shared=False)

    def build(self, shape: Shape, limits: Any = None) -> None:
        """Draw initial weights for examples of `shape`, replacing those there are.

        limits: the shape that the user chose, if any, which may have None for lengths.
        """
        carry, out_shape = self.draw(shape)
        self.change(
            carry=self._arrays.asarray(carry),
            shape=shape,
            out_shape=out_shape,
            limits=limits,
            is_shared=False,
        )

    def draw(self, shape: Shape) -> tuple[Carry, Shape]:
        """Return the carry before the first step, on the host, and the shape of a y."""
        xp = namespace(np.zeros(()))
        key = random.key(self._seed, xp=xp)
        dtype = getattr(xp, self._dtype)
        params, state, out_shape = self._model.init(key, shape, dtype)
        return (params, state, self.optimizer.init(params)), out_shape


def copy_of(carry: Carry) -> Carry:
    """Return a copy of a carry on the backend."""
    copied: Carry = tree_map(
        lambda leaf: namespace(leaf).asarray(leaf, copy=True), carry
    )
    return copied
