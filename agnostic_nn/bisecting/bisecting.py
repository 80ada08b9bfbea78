"""Bisect: the first piece of a training step in which a backend leaves its tolerance.

A step is taken apart (see `pieces`), and every backend is given, for each piece, the same
numbers: those of the reference, rounded to the narrower dtype of both. So no error travels
from one piece to the next, nor a NaN, and what differs differs because of that piece. Both are
held to the same piece in float64 from the same numbers, so it is known which of them is wrong.

How far a result may lie from there follows from its dtype and from what is computed:

    tolerance = 4 · (spread + tiny) + ε · max |reference|

spread: how far the worst element of that result gets when the reference is run again with an
error added to each operation, as large as the dtype allows (see `noise`: within ε/2 for what is
rounded once, and growing with √n for a sum of n terms). It is a sample; libraries err by less
than what it allows, since they add in blocks, and 4 leaves room for those that do not. Where
numbers are only moved or chosen it is 0, and ε is room for the rounding of a constant. What is
below tiny, the smallest normal number, compilers may take for 0. A product in TensorFloat-32 has
an error of 2⁻¹¹ in each factor, thousands of times that of float32.

What may jump, such as the sign that Lion takes, can differ by rounding alone where it jumps;
the spread sees most of such jumps, not all.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from ..arrays import expect, expect_count
from ..layers import Layer
from ..losses import Loss
from ..optimizers import Optimizer
from ..policies import PRECISIONS
from ..registry import Backend, BackendUnavailable
from ..registry import backend as choose
from ..tables import folded, html_table, table
from ..training import Trainer, make_step
from ..training.data import batches, order
from ..trees import leaves, tree_map
from .noise import rounded
from .pieces import REFERENCE, Piece, PieceFails, cast, failing, pieces, read, write

__all__ = ["Bisection", "Finding", "PieceFails", "bisect", "replay"]

FACTOR = 4.0  # of the spread
AROUND = 3  # neighbours shown on either side


@dataclass(frozen=True)
class Finding:
    """One result of one piece, as each backend has it, against the reference.

    largest: of the reference, in size. errors and tolerances: of the worst element, in the
    order of the backends. `index` is that element on the backend that is furthest past its
    tolerance, or nearest to it; `columns` are the places along the last axis around it, and
    `numbers` what is there: of the reference, then of each backend.
    """

    path: str
    piece: str
    part: str
    largest: float
    errors: tuple[float, ...]
    tolerances: tuple[float, ...]
    index: tuple[int, ...]
    columns: tuple[int, ...]
    numbers: tuple[tuple[float, ...], ...]
    finite: bool = True  # the whole reference

    @property
    def ratios(self) -> tuple[float, ...]:
        """Error over tolerance, for each backend; infinite where there may be no error."""
        return tuple(map(_ratio, self.errors, self.tolerances))

    @property
    def holds(self) -> bool:
        """Whether all errors are within their tolerances."""
        return all(ratio <= 1.0 for ratio in self.ratios)

    @property
    def kind(self) -> str:
        """The piece without its hyper-parameters."""
        return self.piece.partition("(")[0]

    @property
    def name(self) -> str:
        """The piece and where it is, such as "2.0, Dense(width=4)"."""
        return ", ".join(filter(None, (self.path, self.piece)))


@dataclass(frozen=True)
class Bisection:
    """What `bisect` found: every result, in the order in which a step computes them.

    `str()` is a verdict and a table. remark: what else there is to say, such as why the steps
    before this one ended early.
    """

    title: str
    backends: tuple[str, ...]
    findings: tuple[Finding, ...]
    remark: str = ""
    _pieces: tuple[Piece, ...] = field(default=(), repr=False, compare=False)
    _names: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def first(self) -> Finding | None:
        """The first result that leaves its tolerance, or None."""
        return next((one for one in self.findings if not one.holds), None)

    @property
    def worst(self) -> float:
        """The largest error over tolerance of all."""
        return max(ratio for one in self.findings for ratio in one.ratios)

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
        first, count = self.first, sum(not one.holds for one in self.findings)
        if first is None:
            return (
                f"No difference beyond rounding: all {len(self.findings)} results of "
                f"{' and '.join(self.backends)} are within their tolerances, the worst at "
                f"{self.worst:.2g} of its own."
            )
        each = zip(self.backends, first.errors, first.tolerances, first.ratios, strict=True)
        told = [
            f"{name} by {error:.3g}, where {tolerance:.3g} is allowed"
            for name, error, tolerance, ratio in each
            if not ratio <= 1.0
        ]
        rest = f"; {count - 1} later results are wrong too" if count > 1 else ""
        return f"{first.name}: {first.part} is wrong on {' and on '.join(told)}{rest}."

    def __str__(self) -> str:
        told = [self.verdict, self.title]
        if self.first is not None:
            told += [self._place, table(*self._neighbours())]
        told += [table(*self._results()), self.remark]
        return "\n\n".join(filter(None, told))

    def _repr_html_(self) -> str:
        told = [f"<p><strong>{escape(self.verdict)}</strong></p><p>{escape(self.title)}</p>"]
        if self.first is not None:
            told.append(html_table(*self._neighbours(), title=self._place, inline=True))
        columns, rows = self._results()
        # the verdict where it is seen, however many columns follow
        columns, *rows = ([*row[:3], row[-1], *row[3:-1]] for row in (columns, *rows))
        found = html_table(columns, rows, inline=True)
        told.append(folded(f"all {len(self.findings)} results", found, len(rows)))
        return "".join([*told, f"<p>{escape(self.remark)}</p>" if self.remark else ""])

    def save(self, path: str | os.PathLike, number: int | None = None) -> bool:
        """Write the piece that `first` belongs to, with what it was given, for `replay`.

        number: of another finding, whose piece to write instead. Returns whether the file says
        all that `replay` needs: not so of what this library does not define.

        Raises
        ------
        ValueError
            If nothing differs and no number is given.
        OSError
            If the file cannot be written.
        """
        found = [i for i, one in enumerate(self.findings) if not one.holds]
        found = found if number is None else [number]
        expect(len(found) > 0, "nothing differs: there is no piece to write")
        return write(path, self._pieces[found[0]], self._names)

    @property
    def _place(self) -> str:
        first = self.first
        assert first is not None
        return f"the worst element of {first.part}, and its neighbours"

    def _neighbours(self) -> tuple[list[str], list[list[Any]]]:
        first = self.first
        assert first is not None
        *lead, last = first.index or (0,)
        marks = [
            f"[{', '.join(map(str, (*lead, i)))}]" if first.index else "" for i in first.columns
        ]
        marks = [f"{m} <-" if i == last else m for m, i in zip(marks, first.columns, strict=True)]
        rows = zip(marks, *first.numbers, strict=True)
        lines = [[mark, *(f"{number:.9g}" for number in numbers)] for mark, *numbers in rows]
        return ["element", "reference", *self.backends], lines

    def _results(self) -> tuple[list[str], list[list[Any]]]:
        columns = ["", "piece", "part", "largest"]
        for name in self.backends:
            columns += [f"error, {name}", "allowed"]
        rows = []
        for one, count in self._shown():
            told = [one.path, one.kind, one.part + (f", worst of {count}" if count > 1 else "")]
            pairs = zip(one.errors, one.tolerances, strict=True)
            numbers = [one.largest, *(number for pair in pairs for number in pair)]
            guilty = [n for n, r in zip(self.backends, one.ratios, strict=True) if not r <= 1.0]
            rows.append([*told, *numbers, f"WRONG on {', '.join(guilty)}" if guilty else "ok"])
        return [*columns, "verdict"], rows

    def _shown(self) -> Iterator[tuple[Finding, int]]:
        """All that is wrong, and of results that belong together the worst, with their number."""
        groups: dict[Any, list[Finding]] = {}
        for i, one in enumerate(self.findings):
            head = one.part.partition(":")[0]
            groups.setdefault((one.path, head) if head in _TOGETHER else i, []).append(one)
        for group in groups.values():
            worst = max(group, key=lambda one: max(one.ratios))
            for one in group:
                if one is worst or not one.holds:
                    yield one, len(group) if one.holds else 1


def bisect(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    x: Any,
    target: Any,
    one: Backend | str,
    other: Backend | str = "numpy@float64",
    *,
    steps: int = 0,
    batch_size: int = 32,
    seed: int = 0,
) -> Bisection:
    """Find the first piece of a training step that two backends compute differently.

    one, other: backends or their names; a name may end in a dtype, as in "jax:cpu:0@float64",
    and is float32 otherwise, and in a precision and "deterministic", as in "jax@fast" or
    "torch@float32@strict@deterministic" (see `agnostic_nn.policies`). x, target: all examples, as
    `Trainer.fit` takes them. `steps` are first taken by `one`, in batches in the order that `seed`
    fixes, and the step that follows is looked at; one that meets a loss or a gradient that is not
    finite is not taken, but looked at instead.

    Each piece runs as `Trainer` would run it, compiled where the backend compiles, though by
    itself: what a compiler makes of several pieces together is not seen.

    Raises
    ------
    TypeError, ValueError
        If the data do not fit the model, as `Trainer` says.
    PieceFails
        If a layer, the loss or the optimizer raises anything; the message says where.
    BackendUnavailable
        If a backend cannot run here, or has no float64 and was asked for it.
    """
    expect_count("batch_size", batch_size)
    fits = type(steps) is int and steps >= 0
    expect(fits, "expected steps to be an integer of at least 0, got {}", steps)
    sides = (_Side.of(one), _Side.of(other))
    narrow = "float64" if all(side.dtype == "float64" for side in sides) else "float32"
    trainer = Trainer(model, loss, optimizer, backend="numpy", seed=seed, dtype=narrow)
    examples = trainer.examples(*cast((x, target), narrow))[:]
    data, size = (examples.x, examples.target), min(batch_size, len(examples))
    start = trainer.params, trainer.state, trainer.moments
    with failing("a training step", str(sides[0])):
        carry, batch, taken = sides[0].train(trainer, start, data, size, steps)
    carry, batch = cast((carry, batch), narrow)
    events = pieces(model, loss, optimizer, carry, batch, narrow)
    title = f"{sides[0]} and {sides[1]} in lock step, step {taken + 1}, seed {seed}"
    remark = ""
    if taken < steps:
        what = "a loss or a gradient that is not finite"
        remark = f"Step {taken + 1} meets {what} on {sides[0]}: that one was looked at."
    return _judged(f"{title}, a batch of {len(leaves(batch)[0])}", sides, events, remark)


def replay(path: str | os.PathLike, *sides: Backend | str, thing: Any = None) -> Bisection:
    """Run the piece that `Bisection.save` wrote, alone, and say again what differs.

    sides: the backends to run it on, by default those that found it. thing: the layer, loss
    or optimizer, or a model that the layer is in, where it is not one of this library, which
    alone are stored.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, or it is about something that this library does not define and
        `thing` is not given.
    PieceFails
        If it raises anything.
    BackendUnavailable
        If a backend cannot run here.
    """
    piece, names = read(path, thing)
    found = tuple(map(_Side.of, sides or names))
    return _judged(f"{piece.name}, alone, from {path}", found, [(piece, None)])


_WORDS = {
    **dict.fromkeys(("float32", "float64"), "dtype"),
    **dict.fromkeys(PRECISIONS, "precision"),
    "deterministic": "deterministic",
}
_SAYS = "float32 or float64, strict or fast, and deterministic"


@dataclass(frozen=True)
class _Side:
    """A backend and the dtype in which it computes."""

    backend: Backend
    dtype: str

    @staticmethod
    def of(name: Backend | str) -> "_Side":
        if isinstance(name, Backend):
            return _Side(name, "float32")
        library, *words = name.split("@")
        said = {_WORDS.get(word): word for word in words}
        known = None not in said and len(said) == len(words)
        expect(known, "expected {} after @, each once at most, got {!r}", _SAYS, name)
        repeats = True if "deterministic" in said else None
        backend = choose(library, precision=said.get("precision"), deterministic=repeats)
        side = _Side(backend, said.get("dtype", "float32"))
        side.context().close()
        return side

    @property
    def name(self) -> str:
        """What chooses it again, whatever the environment says then."""
        words = [str(self.backend), self.dtype, self.backend.precision]
        return "@".join(words + ["deterministic"] * self.backend.deterministic)

    def __str__(self) -> str:
        return self.name.replace("@strict", "")

    @property
    def epsilon(self) -> float:
        return float(np.finfo(self.dtype).eps)

    def context(self) -> ExitStack:
        """Where its dtype is to be had; refused where it never is."""
        stack = ExitStack()
        stack.enter_context(np.errstate(all="ignore"))  # what is not finite is found anyway
        if self.dtype == "float64" and not self.backend.has_float64:
            stack.enter_context(self.backend.double())
            if not self.backend.has_float64:
                stack.close()
                raise BackendUnavailable(f"{self.backend} has no float64")
        return stack

    def run(self, compiled: Callable, given: Any) -> Any:
        """compiled(given), from and to the host."""
        with self.context():
            return self.backend.to_numpy(compiled(self.backend.asarray(cast(given, self.dtype))))

    def train(
        self, trainer: Trainer, start: tuple, data: tuple, size: int, steps: int
    ) -> tuple[Any, Any, int]:
        """Carry, the next batch and the steps taken, after `steps` or before one that fails."""
        step = make_step(trainer.model, trainer.loss, trainer.optimizer)
        count, taken, epoch = len(leaves(data[0])[0]), 0, 0
        with self.context():
            step = self.backend.jit(step)
            carry = self.backend.asarray(cast(start, self.dtype))
            while True:
                for rows, new in batches(order(trainer.seed, epoch, count), size):
                    batch = tree_map(lambda leaf: leaf[rows[:new]], data)  # noqa: B023
                    if taken == steps:
                        return self.backend.to_numpy(carry), batch, taken
                    moved = self.backend.asarray(cast(batch, self.dtype))
                    after, _, finite = step(carry, *moved)
                    if not bool(finite):
                        return self.backend.to_numpy(carry), batch, taken
                    carry, taken = after, taken + 1
                epoch += 1


# --- the judgement ----------------------------------------------------------------------

_AROUND, _BACK = "forward around its layers", "backward around its layers"
_SAID = {
    "layer": {"y": "forward", "state": "state", "dx": "backward: dx", "grads": "backward"},
    "around": {"enters": _AROUND, "y": _AROUND, "returns": _BACK, "dx": _BACK},
    "loss": {"value": "value", "dy": "slope"},
    "update": {"params": "update", "moments": "moments"},
}
_TOGETHER = {_AROUND, _BACK, "update", "moments"}


def _judged(
    title: str, sides: tuple[_Side, ...], events: list[tuple[Piece, Any]], remark: str = ""
) -> Bisection:
    """Findings for events: pieces with the heads of results, or None for all of them."""
    compiled: dict[Any, Callable] = {}
    done: dict[int, list[tuple[str, Finding]]] = {}
    findings, owners = [], []
    for piece, heads in events:
        if id(piece) not in done:
            done[id(piece)] = list(_held(piece, sides, compiled))
        for head, finding in done[id(piece)]:
            if heads is None or head in heads:
                findings.append(finding)
                owners.append(piece)
    endless = next((one for one in findings if not one.finite), None)
    if endless is not None:
        said = f"Not finite in the reference either, first: {endless.name}: {endless.part}."
        remark = " ".join(filter(None, (remark, said)))
    names = tuple(side.name for side in sides)
    return Bisection(title, tuple(map(str, sides)), tuple(findings), remark, tuple(owners), names)


def _held(
    piece: Piece, sides: tuple[_Side, ...], compiled: dict[Any, Callable]
) -> Iterator[tuple[str, Finding]]:
    """Each result of a piece, with the head of its path, held to the reference."""
    spreads, found = {}, []
    for number, side in enumerate(sides):
        if side.dtype not in spreads:
            # so small that float64 itself would round it away: taken larger, and scaled down
            epsilon = max(side.epsilon, 2.0**-40)
            with failing(piece.name, REFERENCE):
                reference, spread = rounded(piece.function, piece.given, epsilon=epsilon)
            scale = side.epsilon / epsilon
            spreads[side.dtype] = {name: far * scale for name, far in spread.items()}
        key = number, piece.key
        if key not in compiled:
            compiled[key] = side.backend.jit(piece.function)
        with failing(piece.name, str(side)):
            found.append(side.run(compiled[key], piece.given))
    heads = list(_SAID[piece.kind])
    for name in sorted(reference, key=lambda name: heads.index(name.partition(".")[0])):
        wanted, got = reference[name], [one[name] for one in found]
        real = wanted.dtype.kind == "f"
        sizes = np.abs(wanted[np.isfinite(wanted)]) if real else np.zeros(0)
        largest = float(np.max(sizes, initial=0.0))
        allowed = [
            FACTOR * (spreads[side.dtype][name] + float(np.finfo(side.dtype).tiny))
            + side.epsilon * largest
            if real
            else 0.0
            for side in sides
        ]
        head, _, path = name.partition(".")
        yield head, _finding(piece, _said(piece, head, path), wanted, got, largest, allowed)


def _said(piece: Piece, head: str, path: str) -> str:
    """What a result is called, such as "backward: gradient of weight"."""
    said = _SAID[piece.kind][head]
    if head in ("enters", "returns"):
        return f"{said}: {'x' if head == 'enters' else 'dy'} of {path}"
    if head == "grads":
        return f"{said}: gradient of {path}"
    if head == "dx" and piece.kind == "around":
        said = f"{said}: dx"
    return f"{said}: {path}" if path and ":" not in said else " ".join(filter(None, (said, path)))


def _finding(
    piece: Piece, part: str, wanted: Any, got: list, largest: float, allowed: list[float]
) -> Finding:
    errors = [_errors(wanted, one) for one in got]
    worst = [float(np.max(one, initial=0.0)) for one in errors]
    index: tuple[int, ...] = ()
    columns = range(0)
    numbers: list[tuple[float, ...]] = [()] * (1 + len(got))
    if wanted.size:
        guilty = int(np.argmax(list(map(_ratio, worst, allowed))))
        flat = int(np.argmax(errors[guilty]))
        index = tuple(int(i) for i in np.unravel_index(flat, wanted.shape))
        lead, last, length = index[:-1], (index or (0,))[-1], (wanted.shape or (1,))[-1]
        columns = range(max(0, last - AROUND), min(length, last + AROUND + 1))
        rows = [np.atleast_1d(one[lead]) for one in (wanted, *got)]
        numbers = [tuple(float(row[i]) for i in columns) for row in rows]
    place = index, tuple(columns), tuple(numbers)
    finite = wanted.dtype.kind != "f" or bool(np.all(np.isfinite(wanted)))
    held = largest, tuple(worst), tuple(allowed)
    return Finding(piece.path, piece.shown, part, *held, *place, finite)


def _errors(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """How far off each element is: infinitely, if it is no number and should be, or the reverse."""
    expect(wanted.shape == got.shape, "expected {}, got {}", wanted.shape, got.shape)
    wide = np.float64 if wanted.dtype.kind == "f" else np.int64
    one, other = wanted.astype(wide), got.astype(wide)
    same = (one == other) | ((one != one) & (other != other))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(other - one).astype(np.float64)
    return np.where(same, 0.0, np.where(np.isnan(gaps), math.inf, gaps))


def _ratio(error: float, tolerance: float) -> float:
    return error / tolerance if tolerance else math.inf if error else 0.0
