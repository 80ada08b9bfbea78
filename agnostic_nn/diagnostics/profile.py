"""Profile: where the time of a training step goes, by layer, by part and by operation.

Each piece of a step is a call of its own: a layer's forward and backward, the loss, the look
at whether all is finite, and the update. It is compiled by itself, if the backend compiles,
and timed from when its arguments are there until its values are. So a figure includes the
call from Python and the wait, which for a small layer is most of it; of a piece within
another, such as a layer of a block, each second counts once, with the inner one.

`Trainer` runs all of that as one function, where no piece waits, and what two of them do may
be melted into one. That whole step is timed beside them: what the pieces add up to beyond it
is the price of looking at them one by one.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from .. import ops
from ..blocks import Block
from ..core.backend import Backend
from ..core.errors import expect_count
from ..core.trees import leaves
from ..display.tables import html_table, table
from ..layers import Layer
from ..losses import Loss
from ..losses.base import no_context, takes_keyword
from ..optimizers import Optimizer
from ..training import NonFiniteLoss, Trainer, make_step
from .observe import Handler, Hook, branch, observed_model, run

__all__ = ["Operation", "Profile", "Row", "profile"]

WARM_UP = 3  # steps: a backend may look at what it is given, compile, and see that it holds


@dataclass(frozen=True)
class Row:
    """One layer: its place in the model, itself, its seconds and its share of all pieces.

    A block has a row for what it does beside calling its layers.
    """

    path: str
    layer: str
    forward: float
    backward: float
    share: float


@dataclass(frozen=True)
class Operation:
    """One function of arrays: how often a step calls it, and the seconds of all these calls."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Medians over steps, in seconds; `str()` is a table, in milliseconds.

    rows: the layers. parts: the pieces summed up as "forward", "loss", "backward", "finite"
    and "update"; what is computed a second time on the way back, as in `Recompute`, is
    "backward". step: the whole step as `Trainer` runs it. operations: the slowest first, or
    none, and then the remark says why.
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
        """The seconds of all pieces."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """All of it as data for JSON."""
        return asdict(self) | {"total": self.total}

    def __str__(self) -> str:
        tables = [table(*one) for one in self._tables()]
        return "\n\n".join([self._title(), *tables, *filter(None, [self.remark])])

    def _repr_html_(self) -> str:
        tables = "".join(html_table(*one, inline=True) for one in self._tables())
        return f"<p>{escape(self._title())}</p>{tables}<p>{escape(self.remark)}</p>"

    def _title(self) -> str:
        return f"{self.backend}, a batch of {self.batch_size}: medians of {self.steps} steps"

    def _tables(self) -> list[tuple[list[str], list[list]]]:
        def line(path, name, forward, backward, both):
            times = (None if t is None else 1e3 * t for t in (forward, backward, both))
            return [path, name, *times, 100 * both / self.total]

        parts, both = self.parts, [row.forward + row.backward for row in self.rows]
        layers = zip(self.rows, both, strict=True)
        lines = [line(r.path, r.layer, r.forward, r.backward, t) for r, t in layers]
        others = {"loss": "loss", "finite": "is all finite?", "update": "update"}
        lines += [line("", said, None, None, parts[part]) for part, said in others.items()]
        lines += [
            line("", "all pieces", parts["forward"], parts["backward"], self.total),
            line("", "the whole step in one", None, None, self.step),
        ]
        tables = [(["", "layer", "forward ms", "backward ms", "ms", "%"], lines)]
        if self.operations:
            spent = sum(one.seconds for one in self.operations)
            cells = [
                [one.name, one.calls, 1e3 * one.seconds, 100 * one.seconds / spent]
                for one in self.operations
            ]
            tables.append((["operation", "calls", "ms", "%"], cells))
        return tables


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
    """Train on the batch (x, target) for some steps, and tell where the time of one goes.

    x, target: as `Trainer` takes them. Three trainings from the same start are timed, one
    after the other: whole steps, steps piece by piece, and, where the backend calls one
    function after another, steps whose functions of the Standard and of `ops` are timed
    one by one, uncompiled. A native function is one operation, whatever it calls; a loop over
    time is the operations of its turns. To choose between taking a step and leaving it is none.

    Raises
    ------
    TypeError, ValueError
        If the data do not fit the model, as `Trainer` says, steps is not a positive integer, or
        the loss takes a context.
    NonFiniteLoss
        If a loss or a gradient is NaN or infinite: such steps are not taken.
    """
    expect_count("steps", steps)
    if takes_keyword(loss, "context"):
        raise ValueError(no_context(loss, "profile"))
    trainer = Trainer(model, loss, optimizer, backend=backend)
    examples = trainer.examples(x, target)[:]
    chosen = trainer.backend
    batch = chosen.asarray((examples.x, examples.target))
    host = chosen.to_numpy((trainer.params, trainer.state, trainer.moments))

    taken = make_step(model, loss, optimizer)

    def step(carry, x, target, t=None):
        return taken(carry, x, target, t=t)

    def batch_of(number):
        if not takes_keyword(loss, "step"):
            return batch
        return (*batch, chosen.asarray(np.asarray(number, trainer.dtype)))

    def medians(clock, step):
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
        str(chosen), len(examples), steps, rows, parts, whole["step"], operations, remark
    )


def _loss(loss: Loss, y: Any, target: Any, t: Any = None) -> tuple:
    """The loss, of which a weight may follow a schedule, after t steps."""
    return loss(y, target) if t is None else loss(y, target, step=t)


class _Stopwatch:
    """Seconds and calls of pieces, by name; what one takes within another is not the other's."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seconds: dict[Any, float] = defaultdict(float)
        self.calls: dict[Any, int] = defaultdict(int)
        self._within = [0.0]

    def time(self, name: Any, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """What function(*args, **kwargs) returns, once its values are there."""
        came = perf_counter()
        self._within.append(0.0)
        try:
            began = perf_counter()
            result = function(*args, **kwargs)
            self.backend.synchronize(tuple(filter(_is_array, leaves(result))))
            took = perf_counter() - began
        finally:
            within = self._within.pop()
        self.seconds[name] += took - within
        self.calls[name] += 1
        self._within[-1] += perf_counter() - came
        return result


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _timed(
    clock: _Stopwatch, step: Callable, carry: Any, batch_of: Callable, steps: int
) -> dict[Any, float]:
    """Train for some steps, and a few to warm up; of each piece the median of seconds.

    batch_of: the arguments of a step after the carry, by the number of steps before.
    """
    found = []
    for number in range(1, WARM_UP + steps + 1):
        clock.seconds.clear()
        clock.calls.clear()
        carry, value, finite = step(carry, *batch_of(number - 1))
        if not bool(finite):
            raise NonFiniteLoss(
                f"step {number} met a loss of {float(value)}, or a gradient that is not finite, "
                "and was not taken"
            )
        found.append(clock.seconds.copy())
    del found[:WARM_UP]
    names = set().union(*found)
    return {name: median(one[name] for one in found) for name in names}


# --- layer by layer ---------------------------------------------------------------------


class _Hidden(Exception):
    """A layer was called while a loop around it is compiled, and cannot be timed alone."""


@dataclass
class _Note:
    """A layer that is timed.

    whole: whether the layers inside are not timed by themselves; called: its place in the order
    of first calls, from 1, or 0 if it was not called.
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

    def step(self, model: Layer, loss: Loss, optimizer: Optimizer) -> Callable:
        """Return the step of `make_step`, timed piece by piece."""
        jit = self.backend.jit
        time = self.clock.time
        timed = observed_model(model, self._hooks)
        compute_loss = jit(partial(_loss, loss))
        check_finite = jit(ops.all_finite)

        def apply(params, moments, state, after, grads, finite):
            def updated():
                new_params, new_moments = optimizer.update(params, grads, moments)
                return new_params, after, new_moments

            return ops.select(finite, updated, (params, state, moments))

        update = jit(apply, donate=(0, 1))

        def step(carry, x, target, *t):
            params, state, moments = carry
            self.part = "forward"
            y, after, *cache = timed.forward(params, state, x, train=True)
            value, dy = time("loss", compute_loss, y, target, *t)
            self.part = "backward"
            # Popped, so that backward holds the only reference and can free the cache early.
            grads = timed.backward_params(params, cache.pop(), dy)
            finite = time("finite", check_finite, value, *leaves(grads))
            carry = time("update", update, params, moments, state, after, grads, finite)
            return carry, value, finite

        return step

    def _hooks(self, layer: Layer, path: str) -> dict[str, Hook]:
        number = len(self.notes)
        note = _Note(path, layer, whole=not isinstance(layer, Block))
        self.notes.append(note)
        compiled: dict[Any, Callable] = {}

        def timed(name: str) -> Hook:
            def hook(method: Callable, *args: Any, **mode: bool) -> Any:
                if not note.called:
                    self._expect_values(args)
                    note.called = next(self._turn)
                if not note.whole:
                    try:
                        return self.clock.time((number, self.part), method, *args, **mode)
                    except _Hidden:
                        note.whole = True
                key = (name, *mode.values())
                if key not in compiled:
                    compiled[key] = self.backend.jit(partial(getattr(layer, name), **mode))
                return self.clock.time((number, self.part), compiled[key], *args)

            return hook

        return {name: timed(name) for name in ("forward", "backward", "backward_params")}

    def _expect_values(self, args: tuple) -> None:
        """Raise _Hidden for arrays without values, as while a loop is compiled."""
        try:
            self.backend.to_numpy(leaves(args)[-1])
        except Exception as error:  # each library has its own exception for these
            raise _Hidden from error

    def rows(self, seconds: dict[Any, float]) -> tuple[Row, ...]:
        """Return a row for each layer that was called, from the medians of its timings."""
        total = sum(seconds.values())
        rows = []
        for number, note in sorted(enumerate(self.notes), key=lambda pair: pair[1].called):
            forward = seconds.get((number, "forward"), 0.0)
            backward = seconds.get((number, "backward"), 0.0)
            description = repr(note.layer) if note.whole else type(note.layer).__name__
            if forward + backward > 0.0:
                share = (forward + backward) / total
                rows.append(Row(note.path, description, forward, backward, share))
        return tuple(rows)


# --- operation by operation -------------------------------------------------------------


def _operations(
    step: Callable, backend: Backend, medians: Callable
) -> tuple[tuple[Operation, ...], str]:
    """Return the time of each array function that `step` calls; or none, and the reason."""
    if backend.compiles:
        return (), f"{backend.name} fuses operations: none can be timed alone"
    clock = _Stopwatch(backend)
    timed = partial(run, _OperationTimer(clock), step)
    try:
        seconds = medians(clock, timed)
    except Exception as error:  # the step itself has run: it is the observing that fails
        return (), f"operations cannot be timed one by one: {type(error).__name__}: {error}"
    rows = [Operation(name, clock.calls[name], seconds[name]) for name in seconds]
    return tuple(sorted(rows, key=lambda row: -row.seconds)), ""


_CONTROL_FLOW = (ops.barrier_impl, ops.scan_impl)


class _OperationTimer(Handler):
    """Times each operation; of a loop, a barrier or a choice those that are computed inside."""

    def __init__(self, clock: _Stopwatch) -> None:
        super().__init__(clock.backend.xp)
        self.clock = clock

    def compute(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        return self.clock.time(name, function, *args, **kwargs)

    def call_ops(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        if function is ops.select:
            return branch(*args)
        if function in _CONTROL_FLOW:
            return super().call_ops(name, function, args, kwargs)
        return self.call(name, function, args, kwargs)
