"""Profile a training step: its time by layer, by part and by operation.

Each part of a step is called separately: the forward and backward of each layer, the
loss, the check for finite values, and the update. Each is compiled by itself, if the
backend compiles, and timed until its results are available. So a figure includes the
call from Python and the synchronization, which dominate for a small layer. The time of
a layer inside a block counts for that layer only, not for the block.

`Trainer` runs all parts as one function, without synchronization between them, and a
compiler may fuse them. That whole step is timed as well. The parts add up to more: the
difference is the cost of timing them one by one.
"""

from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from itertools import count
from statistics import median
from textwrap import fill
from time import perf_counter
from typing import Any

import numpy as np

from .. import ops
from ..blocks import Block
from ..core.backend import Backend
from ..core.errors import expect_count
from ..core.trees import leaves
from ..display.tables import TERMINAL_WIDTH, html_table, table
from ..layers import Layer
from ..losses import Loss
from ..losses.base import no_context, takes_keyword
from ..optimizers import Optimizer
from ..training import NonFiniteLoss, Trainer, make_step
from .observe import (
    Args,
    Function,
    Handler,
    Hook,
    Kwargs,
    branch,
    is_array,
    observed_model,
    run,
)

__all__ = ["Operation", "Profile", "Row", "profile"]

# untimed steps, in which a backend may trace, compile and verify the result
WARM_UP = 3
# operations that take a smaller share of all operations share one row of the text
MIN_SHARE = 0.01


@dataclass(frozen=True)
class Row:
    """The path and the description of a layer, its seconds, and its share of all parts.

    The row of a block excludes the layers inside it.
    """

    path: str
    layer: str
    forward: float
    backward: float
    share: float


@dataclass(frozen=True)
class Operation:
    """An array function: its calls in a step, and the seconds of all of them."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Medians over steps, in seconds; `str()` is a table, in milliseconds.

    rows: the layers.
    parts: the totals of "forward", "loss", "backward", "finite" and "update". What is
    computed again in the backward pass, as by `Recompute`, counts as "backward".
    step: the whole step as `Trainer` runs it, without timers inside.
    operations: the slowest first. If it is empty, `remark` says why.
    """

    backend: str
    batch_size: int
    steps: int
    rows: tuple[Row, ...]
    parts: dict[str, float]
    step: float
    operations: tuple[Operation, ...] = ()
    remark: str = ""

    @property
    def total(self) -> float:
        """The seconds of all parts together."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """Return the profile as data for JSON."""
        return asdict(self) | {"total": self.total}

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, verbose: bool = False) -> str:
        """Return the profile as text, in lines of at most 80 columns.

        verbose: whether lines may be longer, with the options of each layer and all
        operations, instead of one row for those that take less than 1 % each.
        """
        width = None if verbose else TERMINAL_WIDTH
        parts = [self._title()]
        for cells, remark in self._tables(verbose):
            text = table(*cells, width=width)
            parts += [f"{text}\n\n{fill(remark, TERMINAL_WIDTH)}"]
        return "\n\n".join([*parts, *filter(None, [self.remark])])

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(self._title())}</p>"]
        for cells, remark in self._tables():
            parts += [html_table(*cells, inline=True), f"<p>{escape(remark)}</p>"]
        return "".join([*parts, f"<p>{escape(self.remark)}</p>"])

    def _title(self) -> str:
        batch = f"{self.backend}, a batch of {self.batch_size}"
        return f"{batch}: medians of {self.steps} steps"

    def _tables(
        self, verbose: bool = False
    ) -> list[tuple[tuple[list[str], list[list[Any]]], str]]:
        """Return the columns and rows of each table, and a remark on its shares."""
        tables = [(self._layer_table(verbose), self._parts_remark())]
        if self.operations:
            remark = (
                "%: of the time of all operations, measured in another training with a "
                "timer around each call; a native function counts as one operation."
            )
            tables.append((self._operation_table(verbose), remark))
        return tables

    def _parts_remark(self) -> str:
        together = f"{1e3 * self.total:.4g} ms"
        return (
            f"%: of the time of all parts, {together}. Each part is timed alone, from "
            "the call until its result is available, so the parts do not add up to "
            f"the real step of {1e3 * self.step:.4g} ms, which has no timers and may "
            "fuse or replay calls."
        )

    def _layer_table(self, verbose: bool) -> tuple[list[str], list[list[Any]]]:
        lines: list[list[Any]] = []

        def add(
            path: str,
            label: str,
            seconds: float,
            forward: float | None = None,
            backward: float | None = None,
        ) -> None:
            times = (forward, backward, seconds)
            milliseconds = [None if t is None else 1e3 * t for t in times]
            lines.append([path, label, *milliseconds, 100 * seconds / self.total])

        parts = self.parts
        for row in self.rows:
            label = row.layer if verbose else row.layer.partition("(")[0]
            both = row.forward + row.backward
            add(row.path, label, both, row.forward, row.backward)
        add("", "loss", parts["loss"])
        add("", "check for finite values", parts["finite"])
        add("", "update", parts["update"])
        add("", "all parts", self.total, parts["forward"], parts["backward"])
        lines.append(["", "the real step", None, None, 1e3 * self.step, None])
        return ["", "layer", "forward ms", "backward ms", "ms", "%"], lines

    def _operation_table(self, verbose: bool) -> tuple[list[str], list[list[Any]]]:
        total = sum(operation.seconds for operation in self.operations)
        lines: list[list[Any]] = []
        small = [op for op in self.operations if op.seconds < MIN_SHARE * total]
        if verbose or len(small) < 2:
            small = []
        for operation in self.operations[: len(self.operations) - len(small)]:
            seconds = operation.seconds
            share = 100 * seconds / total
            lines.append([operation.name, operation.calls, 1e3 * seconds, share])
        if small:
            calls = sum(operation.calls for operation in small)
            seconds = sum(operation.seconds for operation in small)
            label = f"{len(small)} others"
            lines.append([label, calls, 1e3 * seconds, 100 * seconds / total])
        return ["operation", "calls", "ms", "%"], lines


def profile(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    x: Any,
    target: Any,
    *,
    backend: Backend | str | None = None,
    steps: int = 20,
) -> Profile:
    """Train on the batch (x, target), and return where the time of a step goes.

    x, target: as `Trainer` accepts them. steps: the number of timed steps. Three
    trainings are timed, all from the same start: one of whole steps, one of steps part
    by part, and, if the backend does not compile, one in which each function of the
    Standard and of `ops` is timed. A native function is one operation, whatever it
    calls. A loop over time counts as the operations inside it. Choosing between the old
    and the new parameters is not an operation.

    Raises
    ------
    TypeError, ValueError
        If `Trainer` refuses the data, `steps` is not a positive integer, or the loss
        takes a context.
    NonFiniteLoss
        If a loss or a gradient is NaN or infinite.
    """
    expect_count("steps", steps)
    if takes_keyword(loss, "context"):
        raise ValueError(no_context(loss, "profile"))
    trainer = Trainer(model, loss, optimizer, backend=backend)
    examples = trainer.examples(x, target)[:]
    chosen = trainer.backend
    batch: tuple[Any, ...] = chosen.asarray((examples.x, examples.target))
    host = chosen.to_numpy((trainer.params, trainer.state, trainer.moments))

    training_step = make_step(model, loss, optimizer)

    def step(carry: Any, x: Any, target: Any, t: Any = None) -> Any:
        return training_step(carry, x, target, t=t)

    def batch_of(number: int) -> tuple[Any, ...]:
        if not takes_keyword(loss, "step"):
            return batch
        return *batch, chosen.asarray(np.asarray(number, trainer.dtype))

    def medians(clock: _Stopwatch, step: Function) -> dict[Any, float]:
        with chosen.applied():
            return _timed(clock, step, chosen.asarray(host), batch_of, steps)

    clock = _Stopwatch(chosen)
    whole = medians(clock, partial(clock.time, "step", chosen.jit(step, donate=(0,))))
    layer_timer = _LayerTimer(chosen)
    seconds = medians(layer_timer.clock, layer_timer.step(model, loss, optimizer))
    rows = layer_timer.rows(seconds)
    parts = {
        "forward": sum(row.forward for row in rows),
        "loss": seconds["loss"],
        "backward": sum(row.backward for row in rows),
        "finite": seconds["finite"],
        "update": seconds["update"],
    }
    operations, remark = _operations(step, chosen, medians)
    return Profile(
        backend=str(chosen),
        batch_size=len(examples),
        steps=steps,
        rows=rows,
        parts=parts,
        step=whole["step"],
        operations=operations,
        remark=remark,
    )


def _loss(loss: Loss, y: Any, target: Any, t: Any = None) -> tuple[Any, ...]:
    """Compute the loss; t: the number of steps before, for a weight on a schedule."""
    return loss(y, target) if t is None else loss(y, target, step=t)


class _Stopwatch:
    """Seconds and calls by name; the time of a nested call counts for its name only."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seconds: dict[Any, float] = defaultdict(float)
        self.calls: dict[Any, int] = defaultdict(int)
        self._nested = [0.0]  # seconds of nested calls, for each open call

    def time(self, name: Any, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Return function(*args, **kwargs), timed until its values are available."""
        entered = perf_counter()
        self._nested.append(0.0)
        try:
            began = perf_counter()
            result = function(*args, **kwargs)
            self.backend.synchronize(tuple(filter(is_array, leaves(result))))
            took = perf_counter() - began
        finally:
            nested = self._nested.pop()
        self.seconds[name] += took - nested
        self.calls[name] += 1
        self._nested[-1] += perf_counter() - entered
        return result


def _timed(
    clock: _Stopwatch, step: Function, carry: Any, batch_of: Function, steps: int
) -> dict[Any, float]:
    """Train for some steps after a warm-up, and return the median seconds of each name.

    batch_of: returns the arguments of a step after the carry, given the number of steps
    before.
    """
    timings = []
    for number in range(1, WARM_UP + steps + 1):
        clock.seconds.clear()
        clock.calls.clear()
        carry, value, finite = step(carry, *batch_of(number - 1))
        if not bool(finite):
            raise NonFiniteLoss(
                f"step {number} was skipped: "
                f"its loss is {float(value)}, or a gradient is not finite; nn.explain "
                "and agnostic-nn explain say where the first such value appears"
            )
        timings.append(clock.seconds.copy())
    del timings[:WARM_UP]
    names = set().union(*timings)
    return {name: median(seconds[name] for seconds in timings) for name in names}


# --- layer by layer -------------------------------------------------------------------


class _Hidden(Exception):
    """A layer cannot be timed alone, because a loop around it is being compiled."""


@dataclass
class _Note:
    """A layer that is timed.

    whole: whether it is timed together with the layers inside. called: its place in the
    order of first calls, from 1, or 0 if it was not called.
    """

    path: str
    layer: Layer
    whole: bool
    called: int = 0


class _LayerTimer:
    """Times the methods of each layer of a model."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.clock = _Stopwatch(backend)
        self.notes: list[_Note] = []
        self.part = "forward"
        self._turn = count(1)

    def step(self, model: Layer, loss: Loss, optimizer: Optimizer) -> Function:
        """Return the step of `make_step`, timed part by part."""
        jit = self.backend.jit
        time = self.clock.time
        timed = observed_model(model, self._hooks)
        compute_loss = jit(partial(_loss, loss))
        check_finite = jit(ops.all_finite)

        def apply(
            params: Any, moments: Any, state: Any, after: Any, grads: Any, finite: Any
        ) -> Any:
            def updated() -> tuple[Any, ...]:
                new_params, new_moments = optimizer.update(params, grads, moments)
                return new_params, after, new_moments

            return ops.select(finite, updated, (params, state, moments))

        update = jit(apply, donate=(0, 1))

        def step(carry: Any, x: Any, target: Any, *t: Any) -> tuple[Any, ...]:
            params, state, moments = carry
            self.part = "forward"
            y, after, *cache = timed.forward(params, state, x, train=True)
            value, dy = time("loss", compute_loss, y, target, *t)
            self.part = "backward"
            # Popped, so that backward holds the only reference and can free the cache
            # early.
            grads = timed.backward_params(params, cache.pop(), dy)
            finite = time("finite", check_finite, value, *leaves(grads))
            carry = time("update", update, params, moments, state, after, grads, finite)
            return carry, value, finite

        return step

    def _hooks(self, layer: Layer, path: str) -> dict[str, Hook]:
        number = len(self.notes)
        note = _Note(path, layer, whole=not isinstance(layer, Block))
        self.notes.append(note)
        compiled: dict[Any, Function] = {}

        def timed(name: str) -> Hook:
            def hook(method: Function, *args: Any, **mode: bool) -> Any:
                if not note.called:
                    self._expect_values(args)
                    note.called = next(self._turn)
                row = (number, self.part)
                if not note.whole:
                    try:
                        return self.clock.time(row, method, *args, **mode)
                    except _Hidden:
                        note.whole = True
                key = (name, *mode.values())
                if key not in compiled:
                    function = partial(getattr(layer, name), **mode)
                    compiled[key] = self.backend.jit(function)
                return self.clock.time(row, compiled[key], *args)

            return hook

        methods = ("forward", "backward", "backward_params")
        return {name: timed(name) for name in methods}

    def _expect_values(self, args: tuple[Any, ...]) -> None:
        """Raise _Hidden for arrays without values, as while a loop is compiled."""
        try:
            self.backend.to_numpy(leaves(args)[-1])
        except Exception as error:  # each library has its own exception for these
            raise _Hidden from error

    def rows(self, seconds: dict[Any, float]) -> tuple[Row, ...]:
        """Return a row for each layer that was called, given the medians."""
        total = sum(seconds.values())
        rows = []
        by_call = sorted(enumerate(self.notes), key=lambda pair: pair[1].called)
        for number, note in by_call:
            forward = seconds.get((number, "forward"), 0.0)
            backward = seconds.get((number, "backward"), 0.0)
            description = repr(note.layer) if note.whole else type(note.layer).__name__
            if forward + backward > 0.0:
                share = (forward + backward) / total
                rows.append(Row(note.path, description, forward, backward, share))
        return tuple(rows)


# --- operation by operation -----------------------------------------------------------


def _operations(
    step: Function, backend: Backend, medians: Function
) -> tuple[tuple[Operation, ...], str]:
    """Return the times of the array functions in `step`; or none, and the reason."""
    if backend.compiles:
        return (), f"{backend.name} fuses operations: none can be timed alone"
    clock = _Stopwatch(backend)
    timed = partial(run, _OperationTimer(clock), step)
    try:
        seconds = medians(clock, timed)
    except Exception as error:  # not of the step, which has run, but of observing it
        reason = f"{type(error).__name__}: {error}"
        return (), f"operations cannot be timed one by one: {reason}"
    rows = [Operation(name, clock.calls[name], seconds[name]) for name in seconds]
    return tuple(sorted(rows, key=lambda row: -row.seconds)), ""


_CONTROL_FLOW = (ops.barrier_impl, ops.scan_impl)


class _OperationTimer(Handler):
    """Times each operation, also those inside a loop, a barrier or a choice."""

    def __init__(self, clock: _Stopwatch) -> None:
        super().__init__(clock.backend.xp)
        self.clock = clock

    def compute(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        return self.clock.time(name, function, *args, **kwargs)

    def call_ops(
        self, name: str, function: Function, args: Args, kwargs: Kwargs
    ) -> Any:
        if function is ops.select:
            return branch(*args)
        if function in _CONTROL_FLOW:
            return super().call_ops(name, function, args, kwargs)
        return self.call(name, function, args, kwargs)
