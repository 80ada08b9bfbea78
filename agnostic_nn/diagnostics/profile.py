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

import operator
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
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
from ..core import random
from ..core.backend import Backend
from ..core.errors import expect_count
from ..core.trees import leaves, tree_map
from ..display.tables import html_table, table
from ..layers import Layer
from ..losses import Loss
from ..losses.base import no_context, takes_keyword
from ..optimizers import Optimizer
from ..training import NonFiniteLoss, Trainer, make_step

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
    watch = _Watch(chosen)
    seconds = medians(watch.clock, watch.step(model, loss, optimizer))
    rows = watch.rows(seconds)
    parts = {
        "forward": sum(row.forward for row in rows),
        "loss": seconds["loss"],
        "backward": sum(row.backward for row in rows),
        "finite": seconds["finite"],
        "update": seconds["update"],
    }
    told = _operations(step, chosen, medians)
    return Profile(str(chosen), len(examples), steps, rows, parts, whole["step"], *told)


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
            self.backend.synchronize(tuple([leaf for leaf in leaves(result) if _is_array(leaf)]))
            took = perf_counter() - began
        finally:
            within = self._within.pop()
        self.seconds[name] += took - within
        self.calls[name] += 1
        self._within[-1] += perf_counter() - came
        return result


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
    """A layer, whether it is timed as a whole, and as which of all it was called first."""

    path: str
    layer: Layer
    whole: bool
    called: int = 0


class _Watch:
    """Twins of layers that time what is asked of them."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.clock = backend, _Stopwatch(backend)
        self.notes: list[_Note] = []
        self._turn = count(1)
        self.part = "forward"

    def step(self, model: Layer, loss: Loss, optimizer: Optimizer) -> Callable:
        """The step of `make_step`, piece by piece."""
        jit, time, twin = self.backend.jit, self.clock.time, self.twin(model)
        judge, look = jit(partial(_loss, loss)), jit(ops.all_finite)

        def moved(params, moments, state, after, grads, finite):
            def taken():
                new, kept = optimizer.update(params, grads, moments)
                return new, after, kept

            return ops.select(finite, taken, (params, state, moments))

        update = jit(moved, donate=(0, 1))

        def step(carry, x, target, *t):
            params, state, moments = carry
            self.part = "forward"
            y, after, *cache = twin.forward(params, state, x, train=True)
            value, dy = time("loss", judge, y, target, *t)
            self.part = "backward"
            grads = twin.backward_params(params, cache.pop(), dy)
            finite = time("finite", look, value, *leaves(grads))
            carry = time("update", update, params, moments, state, after, grads, finite)
            return carry, value, finite

        return step

    def twin(self, layer: Layer, path: str = "") -> Layer:
        """A layer like `layer` whose methods are timed, each compiled if it is no block's."""
        number, kind, block = len(self.notes), type(layer), isinstance(layer, Block)
        note = _Note(path, layer, not block)
        self.notes.append(note)
        compiled: dict[Any, Callable] = {}

        def timed(name: str) -> Callable:
            def method(self_, *args: Any, **mode: bool) -> Any:
                if not note.called:
                    self._expect_values(args)
                    note.called = next(self._turn)
                if not note.whole:
                    try:
                        inside = partial(getattr(kind, name), self_, *args, **mode)
                        return self.clock.time((number, self.part), inside)
                    except _Hidden:
                        note.whole = True
                key = (name, *mode.values())
                if key not in compiled:
                    compiled[key] = self.backend.jit(partial(getattr(layer, name), **mode))
                return self.clock.time((number, self.part), compiled[key], *args)

            return method

        def inner(name: str, layer: Layer) -> Layer:
            return self.twin(layer, ".".join(filter(None, (path, name))))

        mapped = layer.map_layers(inner) if isinstance(layer, Block) else layer
        methods = {name: timed(name) for name in ("forward", "backward", "backward_params")}
        twin: Any = object.__new__(type(kind.__name__, (kind,), methods))
        vars(twin).update(vars(mapped))
        return twin

    def _expect_values(self, args: tuple) -> None:
        """Raise _Hidden for arrays that have none."""
        try:
            self.backend.to_numpy(leaves(args)[-1])
        except Exception as error:  # each library has its own for arrays without
            raise _Hidden from error

    def rows(self, seconds: dict[Any, float]) -> tuple[Row, ...]:
        """A row for each layer that was called, from the medians of what was timed."""
        total, rows = sum(seconds.values()), []
        for number, note in sorted(enumerate(self.notes), key=lambda pair: pair[1].called):
            forward, backward = (seconds.get((number, p), 0.0) for p in ("forward", "backward"))
            shown = repr(note.layer) if note.whole else type(note.layer).__name__
            if forward + backward > 0.0:
                share = (forward + backward) / total
                rows.append(Row(note.path, shown, forward, backward, share))
        return tuple(rows)


# --- operation by operation -------------------------------------------------------------


def _operations(
    step: Callable, backend: Backend, medians: Callable
) -> tuple[tuple[Operation, ...], str]:
    """What each function of arrays takes that `step` calls; or none, and why."""
    if backend.compiles:
        return (), f"{backend.name} melts operations into one another: none is timed alone"
    clock = _Stopwatch(backend)

    def watched(carry, *batch):
        before = _now.set(clock)
        try:
            carry, *found = step(*tree_map(_Watched, (carry, *batch)))
        finally:
            _now.reset(before)
        return tree_map(_value, carry), *map(_value, found)

    try:
        found = medians(clock, watched)
    except Exception as error:  # the step itself has run: it is the watching that fails
        return (), f"operations cannot be told apart: {type(error).__name__}: {error}"
    rows = [Operation(name, clock.calls[name], seconds) for name, seconds in found.items()]
    return tuple(sorted(rows, key=lambda row: -row.seconds)), ""


_now: ContextVar[_Stopwatch] = ContextVar("_now")


def _asked(name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs) of the arrays that are watched, timed."""
    result = _now.get().time(name, function, *_mapped(_value, args), **_mapped(_value, kwargs))
    return _mapped(lambda leaf: _Watched(leaf) if _is_array(leaf) else leaf, result)


def _mapped(function: Callable, tree: Any) -> Any:
    """`tree_map`, of lists too."""
    if isinstance(tree, dict):
        return {k: _mapped(function, v) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([_mapped(function, v) for v in tree])
    return function(tree)


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, _Watched) else leaf


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, _Watched)


class _Watched:
    """An array that times what is done with it; otherwise like the one that it holds."""

    __slots__ = ("value",)
    __array_ufunc__ = None  # NumPy's own arrays leave operators to it

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array_namespace__(self, api_version: str | None = None) -> "_Namespace":
        return _namespace

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # other protocols would lead past the clock
            raise AttributeError(name)
        found = getattr(self.value, name)
        if callable(found):
            return partial(_asked, name, found)
        return _Watched(found) if _is_array(found) else found

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array that is watched cannot become one of NumPy")

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)


def _operator(name: str, function: Callable, turned: bool = False) -> Callable:
    if turned:
        return lambda self, other: _asked(name, function, other, self)
    return lambda self, *other: _asked(name, function, self, *other)


for _name, _said in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "pow", "matmul": "matmul",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}.items():  # fmt: skip
    _function = getattr(operator, f"__{_name}__")
    setattr(_Watched, f"__{_name}__", _operator(_said, _function))
    setattr(_Watched, f"__r{_name}__", _operator(_said, _function, turned=True))
    setattr(_Watched, f"__i{_name}__", _operator(_said, getattr(operator, f"__i{_name}__")))
for _name, _said in {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal", "neg": "negative", "pos": "positive", "abs": "abs",
    "invert": "bitwise_invert", "getitem": "getitem",
}.items():  # fmt: skip
    setattr(_Watched, f"__{_name}__", _operator(_said, getattr(operator, f"__{_name}__")))


class _Namespace:
    """The Standard's functions, timed, of whichever library is watched."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(_now.get().backend.xp, name)
        if not callable(found) or isinstance(found, type):
            return found
        if name in _ABOUT_DTYPES:
            return lambda *args: found(*map(_value, args))
        return partial(_asked, name, found)


_ABOUT_DTYPES = ("finfo", "iinfo", "isdtype", "can_cast", "result_type")
_namespace = _Namespace()

# a loop, a barrier and a choice are what is computed inside
ops.scan_impl.register(_Watched, ops.scan_impl.dispatch(object))
ops.barrier_impl.register(_Watched, ops.barrier_impl.dispatch(object))
ops.select.register(_Watched, lambda holds, make, old: make() if holds else old)
for _home, _module in {"ops": ops, "random": random}.items():
    for _name in _module.__all__:
        _function = getattr(_module, _name)
        if _Watched not in getattr(_function, "registry", (_Watched,)):
            _function.register(_Watched, partial(_asked, f"{_home}.{_name}", _function))
