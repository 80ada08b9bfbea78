"""Bisect: find the first stage of a training step or a prediction that two backends compute
differently.

A step, and a prediction after it, are taken apart (see `stages`), and each backend is given, for
each stage, the same numbers: those of the reference, rounded to the narrower dtype of both. So no
error, and no NaN, travels from one stage to the next, and what differs differs because of that
stage. Both are compared with the same stage in float64 from the same numbers, so it is known
which of them is wrong. Random words and keys have to be equal.

The last two stages are the whole step and the whole prediction. They are called three times, with
other numbers in between, so that a backend records and repeats them as it does in training. If
only they differ, all stages are judged once more, called three times too: a result that depends
on an earlier call is a difference.

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
the spread sees most of such jumps, not all. A whole step, which may meet many, is sampled again
with larger errors before it is called different.

If a number is finite in float64 but not on a backend, it is a difference only if it is finite on
another backend of the same dtype, or when the formula is computed in that dtype without native
functions. Results that overflow on both backends, or are NaN on the backends and in the
reference, cannot be compared. They are "not judged", which does not count as agreement.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from ...core.backend import Backend, BackendUnavailable
from ...core.backend import backend as choose
from ...core.errors import described, expect, expect_count
from ...core.policies import PRECISIONS
from ...core.trees import leaves, tree_map
from ...display.tables import folded, html_table, table
from ...layers import Layer
from ...losses import Loss
from ...losses.base import no_context, takes_keyword
from ...optimizers import Optimizer
from ...training import Trainer, make_step
from ...training.batches import batch_indices, epoch_order
from .noise import exactly, rounded
from .stages import REFERENCE, Stage, StageFailed, cast, failing, read, split_step, write

__all__ = ["Bisection", "Finding", "StageFailed", "bisect", "replay"]

FACTOR = 4.0  # of the spread
AROUND = 3  # neighbours shown on either side


@dataclass(frozen=True)
class Finding:
    """One result of one stage on each backend, compared with the reference.

    largest: of the reference, in size. errors and tolerances: of the worst element, in the
    order of the backends. `index` is that element on the backend that is furthest past its
    tolerance, or nearest to it; `columns` are the places along the last axis around it, and
    `numbers` the values there: of the reference, then of each backend. unjudged: why some
    elements could not be compared, or "".
    """

    path: str
    stage: str
    part: str
    largest: float
    errors: tuple[float, ...]
    tolerances: tuple[float, ...]
    index: tuple[int, ...]
    columns: tuple[int, ...]
    numbers: tuple[tuple[float, ...], ...]
    finite: bool = True  # the whole reference
    unjudged: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Error over tolerance, for each backend; infinite where there may be no error."""
        return tuple(map(_ratio, self.errors, self.tolerances))

    @property
    def holds(self) -> bool:
        """Return whether every error is within its tolerance."""
        return all(ratio <= 1.0 for ratio in self.ratios)

    @property
    def status(self) -> str:
        """Return "agree", "differ" or "not judged" for this result."""
        return "differ" if not self.holds else "not judged" if self.unjudged else "agree"

    @property
    def kind(self) -> str:
        """The stage without its hyper-parameters."""
        return self.stage.partition("(")[0]

    @property
    def name(self) -> str:
        """The stage and where it is, such as "2.0, Dense(width=4)"."""
        return ", ".join(filter(None, (self.path, self.stage)))


@dataclass(frozen=True)
class Bisection:
    """The result of `bisect`: every finding, in the order in which a step computes them.

    `str()` is a verdict and a table. remark: further information, such as why the steps
    before this one ended early.
    """

    title: str
    backends: tuple[str, ...]
    findings: tuple[Finding, ...]
    remark: str = ""
    _stages: tuple[Stage, ...] = field(default=(), repr=False, compare=False)
    _names: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def first(self) -> Finding | None:
        """The first result that leaves its tolerance, or None."""
        return next((one for one in self.findings if not one.holds), None)

    @property
    def unjudged(self) -> tuple[Finding, ...]:
        """The results of which some elements could not be compared."""
        return tuple(one for one in self.findings if one.unjudged)

    @property
    def status(self) -> str:
        """Return "agree", "differ", or "not judged" if some results could not be judged."""
        return "differ" if self.first else "not judged" if self.unjudged else "agree"

    @property
    def worst(self) -> float:
        """The largest error over tolerance of all."""
        return max(ratio for one in self.findings for ratio in one.ratios)

    @property
    def verdict(self) -> str:
        """The result in one or two sentences."""
        first, count = self.first, sum(not one.holds for one in self.findings)
        if first is not None:
            later = f"{count - 1} later result{'s are' if count > 2 else ' is'} wrong too"
            said = f"{first.name}: {self._differences(first)}"
            return f"{said}; {later}." if count > 1 else f"{said}."
        if self.unjudged:
            names = list(dict.fromkeys(f"{one.name}: {one.part}" for one in self.unjudged))
            one, others = self.unjudged[0], len(names) - 1
            more = f", and {others} more" if others else ""
            rest = len(self.findings) - len(self.unjudged)
            return (
                f"Not judged: {names[0]} ({one.unjudged}){more}. "
                f"The other {rest} results agree to rounding."
            )
        return (
            f"No difference beyond rounding: all {len(self.findings)} results of "
            f"{' and '.join(self.backends)} are within their tolerances, the worst at "
            f"{self.worst:.2g} of its own."
        )

    def __str__(self) -> str:
        parts = [self.verdict, self.title]
        if self.first is not None:
            parts += [self._place, table(*self._neighbours())]
        parts += [table(*self._results()), self.remark]
        return "\n\n".join(filter(None, parts))

    def _repr_html_(self) -> str:
        parts = [f"<p><strong>{escape(self.verdict)}</strong></p><p>{escape(self.title)}</p>"]
        if self.first is not None:
            parts.append(html_table(*self._neighbours(), title=self._place, inline=True))
        columns, rows = self._results()
        # the verdict first, however many columns follow
        columns, *rows = ([*row[:3], row[-1], *row[3:-1]] for row in (columns, *rows))
        results = html_table(columns, rows, inline=True)
        parts.append(folded(f"all {len(self.findings)} results", results, len(rows)))
        return "".join([*parts, f"<p>{escape(self.remark)}</p>" if self.remark else ""])

    def save(self, path: str | os.PathLike, number: int | None = None) -> bool:
        """Write the stage that `first` belongs to, with its inputs, for `replay`.

        number: of another finding, whose stage to write instead. Returns whether the file holds
        all that `replay` needs: it does not where this library does not define the stage.

        Raises
        ------
        ValueError
            If nothing differs and no number is given.
        OSError
            If the file cannot be written.
        """
        found = [i for i, one in enumerate(self.findings) if not one.holds]
        found = found if number is None else [number]
        expect(len(found) > 0, "nothing differs: there is no stage to write")
        return write(path, self._stages[found[0]], self._names)

    def _differences(self, first: Finding) -> str:
        """Describe the error of a result on each backend where it is wrong."""
        wrong: list[str] = []
        for i, (name, ratio) in enumerate(zip(self.backends, first.ratios, strict=True)):
            if ratio <= 1.0:
                continue
            error, tolerance = first.errors[i], first.tolerances[i]
            if math.isfinite(error):
                said = f"wrong on {name} by {error:.3g}, where {tolerance:.3g} is allowed"
            else:
                said = self._not_a_number(first, i, name)
            wrong.append(said)
        return f"{first.part} is {' and '.join(wrong)}"

    def _not_a_number(self, first: Finding, i: int, name: str) -> str:
        """Describe an element that is finite in the reference or on a backend, not in both."""
        at = first.columns.index((first.index or (0,))[-1])
        wanted, got = first.numbers[0][at], first.numbers[1 + i][at]
        place = f" at {list(first.index)}" if first.index else ""
        where = "the float64 reference"
        if math.isinf(got) and math.isfinite(wanted):
            return f"{got:g} (overflow) on {name}{place}, where {where} is {wanted:.6g}"
        return f"{got:.6g} on {name}{place}, where {where} is {wanted:.6g}"

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
        columns = ["", "stage", "part", "largest"]
        for name in self.backends:
            columns += [f"error, {name}", "allowed"]
        rows = []
        for one, count in self._shown():
            lead = [one.path, one.kind, one.part + (f", worst of {count}" if count > 1 else "")]
            pairs = zip(one.errors, one.tolerances, strict=True)
            numbers = [one.largest, *(number for pair in pairs for number in pair)]
            guilty = [n for n, r in zip(self.backends, one.ratios, strict=True) if not r <= 1.0]
            fine = f"not judged: {one.unjudged}" if one.unjudged else "ok"
            rows.append([*lead, *numbers, f"WRONG on {', '.join(guilty)}" if guilty else fine])
        return [*columns, "verdict"], rows

    def _shown(self) -> Iterator[tuple[Finding, int]]:
        """All that is wrong, and of results that belong together the worst, with their number."""
        groups: dict[Any, list[Finding]] = {}
        for i, one in enumerate(self.findings):
            head = one.part.partition(":")[0]
            together = head in _TOGETHER or one.kind in _TOGETHER
            groups.setdefault((one.path, one.kind, head) if together else i, []).append(one)
        for group in groups.values():
            worst = max(group, key=lambda one: max(one.ratios))
            for one in group:
                if one is worst or one.status != "agree":
                    yield one, len(group) if one.status == "agree" else 1


def bisect(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    x: Any,
    target: Any,
    one: Backend | str,
    other: Backend | str = "numpy@float64",
    *,
    steps: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> Bisection:
    """Find the first stage of a step of training, or a prediction, that two backends part at.

    one, other: backends or their names; a name may end in a dtype, as in "jax:cpu:0@float64",
    and is float32 otherwise, and in a precision and "deterministic", as in "jax@fast" or
    "torch@float32@strict@deterministic" (see `agnostic_nn.core.policies`). x, target: all examples,
    as `Trainer.fit` takes them. `steps` are first taken by `one`, in batches in the order that
    `seed` fixes, and the step that follows is judged; a step that meets a loss or a gradient that
    is not finite is judged instead of taken. With steps=0 biases, moments and running statistics
    are mostly 0, and so would be the error of a backend that leaves them out. The update of the
    very first step is judged too.

    Then a prediction is judged, with the parameters and the state after the step, the same on
    both sides. `Layer.predict` and `Layer.backward_params`, where a layer has its own, are compared
    with the reference's `forward` and `backward`.

    Each stage runs as `Trainer` would run it, compiled where the backend compiles, though by
    itself; the last two, the whole step up to the gradients and the whole prediction, run as one.

    Raises
    ------
    TypeError, ValueError
        If the data do not fit the model, as `Trainer` says, or the loss takes a context.
    StageFailed
        If a layer, the loss or the optimizer raises anything; the message says where.
    BackendUnavailable
        If a backend cannot run here, or has no float64 and was asked for it.
    """
    expect_count("batch_size", batch_size)
    fits = type(steps) is int and steps >= 0
    expect(fits, "expected steps to be an integer of at least 0, got {}", steps)
    if takes_keyword(loss, "context"):
        raise ValueError(no_context(loss, "bisect"))
    sides = (_Side.of(one), _Side.of(other))
    narrow = "float64" if all(side.dtype == "float64" for side in sides) else "float32"
    trainer = Trainer(model, loss, optimizer, backend="numpy", seed=seed, dtype=narrow)
    try:
        data = cast((x, target), narrow)
    except ValueError as error:
        wanted = "expected x and target as arrays, or lists of equal lengths"
        raise ValueError(f"{wanted}: {error}") from None
    examples = trainer.examples(*data)[:]
    data, size = (examples.x, examples.target), min(batch_size, len(examples))
    start = trainer.params, trainer.state, trainer.moments
    begun = cast(start, narrow)
    try:
        with failing("a training step", str(sides[0])):
            carry, batch, taken = sides[0].train(trainer, start, data, size, steps)
    except StageFailed:  # so does a stage of the first step, most likely, which has a name
        rows = epoch_order(seed, 0, len(examples))[:size]
        batch = cast(tree_map(lambda leaf: leaf[rows], data), narrow)
        _judged("", sides, split_step(model, loss, optimizer, begun, batch, narrow))
        raise
    carry, batch = cast((carry, batch), narrow)
    events = split_step(
        model, loss, optimizer, carry, batch, narrow, begun if taken else None, taken
    )
    title = f"{sides[0]} and {sides[1]} in lock step, step {taken + 1} and a prediction after it"
    title = f"{title}, seed {seed}"
    remark = ""
    if taken < steps:
        what = "a loss or a gradient that is not finite"
        remark = f"Step {taken + 1} meets {what} on {sides[0]}: this is the step that was judged."
    return _judged(f"{title}, a batch of {len(leaves(batch)[0])}", sides, events, remark)


def replay(path: str | os.PathLike, *sides: Backend | str, thing: Any = None) -> Bisection:
    """Run the stage that `Bisection.save` wrote, alone, and judge it again.

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
    StageFailed
        If it raises anything.
    BackendUnavailable
        If a backend cannot run here.
    """
    stage, names = read(path, thing)
    found = tuple(map(_Side.of, sides or names))
    return _judged(f"{stage.name}, alone, from {path}", found, [(stage, None)])


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
        if not isinstance(name, str):
            raise TypeError(f"expected a backend or its name, got {described(name)}")
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

    @property
    def limit(self) -> float:
        """The largest number of its dtype."""
        return float(np.finfo(self.dtype).max)

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

    def run(self, compiled: Callable, given: dict[str, Any], again: bool) -> list[Any]:
        """Return compiled(given), and also, if called `again`, after a call with other numbers."""

        def result(numbers):
            found = compiled(self.backend.asarray(cast(numbers, self.dtype)))
            return tree_map(np.array, self.backend.to_numpy(found))  # may be memory of later calls

        with self.context():
            found = [result(given)]
            if again:
                result(tree_map(_changed, given))
                found.append(result(given))
        return found

    def train(
        self, trainer: Trainer, start: tuple, data: tuple, size: int, steps: int
    ) -> tuple[Any, Any, int]:
        """Carry, the next batch and the steps taken, after `steps` or before one that fails."""
        whole = make_step(trainer.model, trainer.loss, trainer.optimizer)
        follows = takes_keyword(trainer.loss, "step")

        def step(carry, x, target, t=None):
            return whole(carry, x, target, t=t)

        count, taken, epoch = len(leaves(data[0])[0]), 0, 0
        with self.context():
            compiled = self.backend.jit(step)
            carry = self.backend.asarray(cast(start, self.dtype))
            while True:
                indices = epoch_order(trainer.seed, epoch, count)
                for rows, new in batch_indices(indices, size):
                    batch = tree_map(lambda leaf: leaf[rows[:new]], data)  # noqa: B023
                    if taken == steps:
                        # a short last batch, of one row perhaps, would be a poor test
                        full = np.concatenate([rows[:new], indices[: size - new]])
                        batch = tree_map(lambda leaf: leaf[full], data)  # noqa: B023
                        return self.backend.to_numpy(carry), batch, taken
                    arguments = (*batch, np.asarray(float(taken))) if follows else batch
                    moved = self.backend.asarray(cast(arguments, self.dtype))
                    after, _, finite = compiled(carry, *moved)
                    if not bool(finite):
                        return self.backend.to_numpy(carry), batch, taken
                    carry, taken = after, taken + 1
                epoch += 1


# --- the judgement ----------------------------------------------------------------------

_AROUND, _BACK = "forward around its layers", "backward around its layers"
_PARTS = {  # the results of each kind of stage in their order, and what each is called
    "data": {"x": "x", "target": "target"},
    "layer": {
        "words": "random words",
        "y": "forward",
        "shortcut_y": "predict",
        "state": "state",
        "dx": "backward: dx",
        "grads": "backward",
        "shortcut_grads": "backward_params",
    },
    "around": {
        "enters": _AROUND,
        "y": _AROUND,
        "shortcut_y": f"predict{_AROUND[7:]}",
        "state": f"state{_AROUND[7:]}",
        "returns": _BACK,
        "dx": _BACK,
        "grads": _BACK,
        "shortcut_grads": f"backward_params{_AROUND[7:]}",
    },
    "loss": {"value": "value", "dy": "slope"},
    "start": {"params": "first update", "moments": "moments of the first update"},
    "update": {"params": "update", "moments": "moments"},
    "whole": {
        "words": "random words",
        "y": "forward",
        "shortcut_y": "predict",
        "state": "state",
        "value": "value",
        "grads": "backward",
    },
}
_TOGETHER = {
    *(_AROUND, _BACK, "update", "moments", "first update", "moments of the first update"),
    *("the whole step", "the whole prediction"),
}
_IN_PREDICTION = {"forward": "prediction", "state": "state after prediction"}
_SHORTCUTS = {"shortcut_y": "y", "shortcut_grads": "grads"}  # and what they are to be equal to
_EXACT = {"words", "x", "target"}


def _judged(
    title: str, sides: tuple[_Side, ...], events: list[tuple[Stage, Any]], remark: str = ""
) -> Bisection:
    """Return the findings for events: stages with the heads of results, or None for all."""
    judge = _Judge(sides)
    owners, findings = judge.all(events)
    first = next((i for i, one in enumerate(findings) if not one.holds), None)
    if first is not None and owners[first].kind == "whole":
        judge.again = True
        more = judge.all(events)
        if any(not one.holds for one in more[1][:first]):
            owners, findings = more
    endless = next((one for one in findings if not one.finite), None)
    if endless is not None:
        said = f"Not finite in the reference either, first: {endless.name}: {endless.part}."
        remark = " ".join(filter(None, (remark, said)))
    names = tuple(side.name for side in sides)
    return Bisection(title, tuple(map(str, sides)), tuple(findings), remark, tuple(owners), names)


class _Judge:
    """Runs stages on each side and compares their results with the reference."""

    def __init__(self, sides: tuple[_Side, ...]) -> None:
        self.sides = sides
        self.again = False  # whether each stage, not only the whole, is called repeatedly
        self.compiled: dict[Any, Callable] = {}
        self.references: dict[Any, Any] = {}

    def all(self, events: list[tuple[Stage, Any]]) -> tuple[list[Stage], list[Finding]]:
        """Return all findings in order, and the stage of each."""
        done: dict[int, list[tuple[str, Finding]]] = {}
        findings: list[Finding] = []
        owners: list[Stage] = []
        for stage, heads in events:
            if id(stage) not in done:
                clean = all(one.holds for one in findings)
                done[id(stage)] = list(self.findings(stage, clean=clean))
            for head, finding in done[id(stage)]:
                if heads is None or head in heads:
                    findings.append(finding)
                    owners.append(stage)
        return owners, findings

    def findings(self, stage: Stage, *, clean: bool) -> Iterator[tuple[str, Finding]]:
        """Yield each result of a stage, with the head of its path.

        clean: whether nothing has differed so far. If so, a whole step is called several times, and
        sampled again with larger errors if it differs.
        """
        if id(stage) not in self.references:
            self.references[id(stage)] = self.reference(stage, 4 if stage.kind == "whole" else 8)
        reference, spreads = self.references[id(stage)]
        whole = stage.kind == "whole" and clean
        found = [self.results(stage, i, self.again or whole) for i in range(len(self.sides))]
        controls = _Controls(stage)
        results = list(self.held(stage, reference, spreads, found, controls))
        wrong = not all(one.holds for _, one in results)
        if whole and wrong:
            _, more = self.reference(stage, samples=32, factor=4.0)
            for dtype, spread in more.items():
                pairs = spread.items()
                spreads[dtype] = {k: max(far, spreads[dtype][k]) for k, far in pairs}
            results = list(self.held(stage, reference, spreads, found, controls))
        yield from results

    def reference(
        self, stage: Stage, samples: int, factor: float = 1.0
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Return the reference's results by path, and by dtype how far rounding takes them."""
        spreads = {}
        for side in self.sides:
            if side.dtype in spreads:
                continue
            # so small that float64 itself would round it away: made larger, and scaled down
            epsilon = max(factor * side.epsilon, 2.0**-40)
            with failing(stage.name, REFERENCE):
                reference, spread = rounded(
                    *(stage.formula, stage.given),
                    epsilon=epsilon,
                    limit=side.limit,
                    samples=samples,
                    seed=samples,
                )
            scale = factor * side.epsilon / epsilon
            spreads[side.dtype] = {name: far * scale for name, far in spread.items()}
        return reference, spreads

    def results(self, stage: Stage, number: int, again: bool) -> list[dict[str, Any]]:
        """Return what a side computes by path, called once or `again`."""
        side = self.sides[number]
        # compiled once for equal stages; where nothing compiles, a second call would be recorded
        shared = side.backend.compiles or self.again
        key = number, stage.key if shared else id(stage)
        if key not in self.compiled:
            function = stage.function  # the batch is only moved there and back
            self.compiled[key] = function if stage.kind == "data" else side.backend.jit(function)
        with failing(stage.name, str(side)):
            return side.run(self.compiled[key], stage.given, again)

    def held(
        self, stage: Stage, reference: dict, spreads: dict, found: list, controls: "_Controls"
    ) -> Iterator[tuple[str, Finding]]:
        """Yield a finding for each result of the reference and each shortcut."""
        order = list(_PARTS[stage.kind])
        names = {name for runs in found for name in runs[0]} | reference.keys()
        for name in sorted(names, key=lambda name: (order.index(name.partition(".")[0]), name)):
            head, _, path = name.partition(".")
            full = name.replace(head, _SHORTCUTS.get(head, head), 1)
            wanted = reference[full]
            # a side that has no such shortcut takes the long way
            got = [[run.get(name, run[full]) for run in runs] for runs in found]
            finding = _finding(
                *(stage, _part(stage, head, path), full, wanted, got),
                sides=self.sides,
                spreads=[spreads[side.dtype][full] for side in self.sides],
                controls=controls,
                exact=head in _EXACT,
            )
            yield head, finding


class _Controls:
    """The results of a stage by its formulas alone in the dtype of a side, made when needed."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.results: dict[str, dict[str, Any]] = {}

    def __call__(self, dtype: str, name: str) -> Any:
        if dtype not in self.results:
            given = cast(self.stage.given, dtype)
            with failing(self.stage.name, REFERENCE):
                self.results[dtype] = exactly(self.stage.formula, given, dtype=dtype)
        return self.results[dtype][name]


def _part(stage: Stage, head: str, path: str) -> str:
    """Return what a result is called, such as "backward: gradient of weight"."""
    said = _PARTS[stage.kind][head]
    if stage.predicts:
        first, *others = said.split(" ", 1)
        said = " ".join([_IN_PREDICTION.get(first, first), *others])
    if head in ("enters", "returns"):
        return f"{said}: {'x' if head == 'enters' else 'dy'} of {path}"
    if head in ("grads", "shortcut_grads"):
        return f"{said}: gradient of {path}" if path else f"{said}: gradient"
    if head == "dx" and stage.kind == "around":
        said = f"{said}: dx"
    return f"{said}: {path}" if path and ":" not in said else " ".join(filter(None, (said, path)))


def _finding(
    stage: Stage,
    part: str,
    name: str,
    wanted: np.ndarray,
    got: list[list[np.ndarray]],
    *,
    sides: tuple[_Side, ...],
    spreads: list[float],
    controls: _Controls,
    exact: bool,
) -> Finding:
    """Compare a result, `got` by each side in several runs, with the reference, `wanted`."""
    real = wanted.dtype.kind == "f"
    largest, allowed = 0.0, [0.0] * len(sides)
    if real:
        sizes = np.abs(wanted[np.isfinite(wanted)])
        largest = float(np.max(sizes, initial=0.0))
        for i, side in enumerate(sides):
            within = float(np.max(sizes, where=sizes <= side.limit, initial=0.0))
            tiny = float(np.finfo(side.dtype).tiny)
            tolerance = FACTOR * (spreads[i] + tiny) + side.epsilon * within
            allowed[i] = 0.0 if exact else tolerance
    one_run = [_worse(wanted, runs) for runs in got]
    errors, reasons = [], []
    blind = _blind(name, wanted, one_run, sides, controls) if real else [{} for _ in sides]
    for side, values, masks, limit in zip(sides, one_run, blind, allowed, strict=True):
        error = _errors(wanted, values)
        for reason, mask in masks.items():
            error = np.where(mask, 0.0, error)
            reasons.append(f"{reason} on {side} in {np.sum(mask)} of {mask.size} elements")
        if limit > side.limit / FACTOR:
            reasons.append(f"rounding alone takes it past the range of {side.dtype}")
        errors.append(error)
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
        rows = [np.atleast_1d(one[lead]) for one in (wanted, *one_run)]
        numbers = [tuple(float(row[i]) for i in columns) for row in rows]
    place = index, tuple(columns), tuple(numbers)
    finite = not real or bool(np.all(np.isfinite(wanted)))
    measured = largest, tuple(worst), tuple(allowed)
    reason = "; ".join(reasons)
    return Finding(stage.path, stage.shown, part, *measured, *place, finite, reason)


def _worse(wanted: np.ndarray, runs: list[np.ndarray]) -> np.ndarray:
    """Return of each element the value that is furthest from the reference."""
    worst = runs[0]
    for run in runs[1:]:
        worst = np.where(_errors(wanted, run) > _errors(wanted, worst), run, worst)
    return worst


def _blind(
    name: str,
    wanted: np.ndarray,
    got: list[np.ndarray],
    sides: tuple[_Side, ...],
    controls: _Controls,
) -> list[dict[str, np.ndarray]]:
    """Return for each side the masks of elements that cannot be compared, by the reason.

    That is where the reference and the side are NaN, where a number of the reference is out of
    the range of the side's dtype, and where all sides of that dtype overflow on the way, or the
    formula itself does and the other side has a wider dtype.
    """
    found: list[dict[str, np.ndarray]] = []
    for side, values in zip(sides, got, strict=True):
        masks: dict[str, np.ndarray] = {}
        lost = ~np.isfinite(values) & np.isfinite(wanted)
        beyond = lost & (np.abs(wanted) > side.limit) & (np.sign(values) == np.sign(wanted))
        if np.any(lost & ~beyond):
            alike = [v for s, v in zip(sides, got, strict=True) if s.dtype == side.dtype]
            together = np.all([~np.isfinite(v) for v in alike], axis=0)
            if len(alike) == 1:
                together = ~np.isfinite(controls(side.dtype, name))
            beyond = beyond | (lost & together)
        nothing = np.isnan(wanted) & np.isnan(values)
        if np.any(beyond):
            masks[f"finite in float64, overflows {side.dtype}"] = beyond
        if np.any(nothing):
            masks["NaN in the reference and"] = nothing
        found.append(masks)
    return found


def _errors(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Return the absolute error of each element; infinite where only one side is finite."""
    expect(wanted.shape == got.shape, "expected {}, got {}", wanted.shape, got.shape)
    wide = np.float64 if wanted.dtype.kind == "f" else np.int64
    one, other = wanted.astype(wide), got.astype(wide)
    same = (one == other) | ((one != one) & (other != other))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(other - one).astype(np.float64)
    return np.where(same, 0.0, np.where(np.isnan(gaps), math.inf, gaps))


def _ratio(error: float, tolerance: float) -> float:
    return error / tolerance if tolerance else math.inf if error else 0.0


def _changed(leaf: np.ndarray) -> np.ndarray:
    """Return other numbers of the same signs; integers, such as labels, in another order."""
    if leaf.dtype.kind == "f":
        return leaf * 0.75
    return np.roll(leaf, 1, axis=0) if leaf.ndim else leaf
