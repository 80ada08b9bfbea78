"""`bisect`: the first stage of a step that two backends compute differently.

A step, and a prediction after it, are split into stages (see `stages`). For each stage,
both backends get the same numbers: those of the reference, rounded to the narrower
dtype of the two. No deviation and no NaN travels from one stage to the next, so a
difference in the results of a stage is caused by that stage. Both backends are compared
with the same stage in float64 from the same numbers, which shows which of them is
wrong. Random words and keys have to be equal.

The last two stages are the whole step and the whole prediction. They are called three
times, with other numbers in between, so that a backend records and replays them as it
does in training. If only they differ, all stages are judged again and called three
times too: a result that depends on an earlier call is a difference.

The tolerance of a result follows from its dtype and from what is computed:

    tolerance = 4 · (spread + tiny) + ε · max |reference|

spread: the deviation of the worst element of that result when the reference is run
again with an error added to each operation, as large as the dtype allows (see `noise`:
within ε/2 for what is rounded once, and growing with √n for a sum of n terms). It is a
sample.
Libraries add in blocks and have smaller errors than that; the factor 4 leaves room for
those that do not. Where numbers are only moved or chosen, the spread is 0, and ε leaves
room for the rounding of a constant. Compilers may replace numbers below tiny, the
smallest normal number, by 0. A product in TensorFloat-32 has an error of 2⁻¹¹ in each
factor, thousands of times that of float32.

A side may be in float16 or bfloat16, as in "jax@bfloat16". It computes as the model in
`MixedPrecision` does: see `halves`.

A function that jumps, such as the sign in Lion, can differ by rounding alone at the
jump. The spread captures most of such jumps, not all. A whole step may contain many, so
it is sampled again with larger errors before it is called different.

If a number is finite in float64 but not on a backend, it is a difference only if it is
finite on another backend of the same dtype, or when the formula is computed in that
dtype without native functions. Results that overflow on both backends, or are NaN on
the backends and in the reference, cannot be checked. They are "not checked", which
does not count as agreement.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from textwrap import fill
from typing import Any

import numpy as np

from ...blocks import MixedPrecision
from ...core import precisions
from ...core.backend import Backend, BackendUnavailable
from ...core.backend import backend as choose
from ...core.errors import described, expect, expect_count
from ...core.policies import PRECISIONS
from ...core.trees import leaves, tree_map
from ...display.tables import TERMINAL_WIDTH, folded, html_table, table
from ...layers import Layer
from ...losses import Loss
from ...losses.base import expect_context, takes_keyword
from ...optimizers import Optimizer
from ...training import Trainer, make_step
from ...training.batches import batch_indices, epoch_order
from .halves import (
    dtype_of_stage,
    function_in,
    round_inputs,
    scale_of,
    with_rounding,
)
from .noise import exactly, rounded
from .stages import (
    BACKWARD,
    REFERENCE,
    Stage,
    StageFailed,
    cast,
    failing,
    name_of,
    read,
    split_step,
    write,
)

__all__ = ["Bisection", "Finding", "StageFailed", "bisect", "replay"]

FACTOR = 4.0  # of the spread, in the tolerance
NEIGHBOURS = 3  # shown on either side of the worst element
MAX_ROWS = 20  # of the narrow table of results


@dataclass(frozen=True)
class Finding:
    """One result of one stage on each backend, compared with the reference.

    largest: the largest absolute value of the reference. deviations and tolerances: of
    the worst element, in the order of the backends. index: the element whose deviation
    is largest relative to its tolerance, on the worse backend. columns: the positions
    along the last axis around it. numbers: the values there, of the reference and then
    of each backend. unchecked: why some elements could not be compared, or "".
    """

    path: str
    stage: str
    part: str
    largest: float
    deviations: tuple[float, ...]
    tolerances: tuple[float, ...]
    index: tuple[int, ...]
    columns: tuple[int, ...]
    numbers: tuple[tuple[float, ...], ...]
    finite: bool = True  # the whole reference
    unchecked: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Deviation over tolerance by backend; infinite if only the tolerance is 0."""
        return tuple(map(_ratio, self.deviations, self.tolerances))

    @property
    def holds(self) -> bool:
        """Return whether every deviation is within its tolerance."""
        return all(ratio <= 1.0 for ratio in self.ratios)

    @property
    def status(self) -> str:
        """Return "agree", "differ" or "not checked" for this result."""
        if not self.holds:
            return "differ"
        return "not checked" if self.unchecked else "agree"

    @property
    def kind(self) -> str:
        """The stage without its hyper-parameters."""
        return self.stage.partition("(")[0]

    @property
    def name(self) -> str:
        """The stage and its place in the model, as in "layer 2.0 (Dense(width=4))"."""
        return name_of(self.path, self.stage)


@dataclass(frozen=True)
class Bisection:
    """The result of `bisect`: all findings, in the order in which a step computes them.

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
        """The first result whose deviation exceeds its tolerance, or None."""
        return next((finding for finding in self.findings if not finding.holds), None)

    @property
    def unchecked(self) -> tuple[Finding, ...]:
        """The results of which some elements could not be compared."""
        return tuple(finding for finding in self.findings if finding.unchecked)

    @property
    def status(self) -> str:
        """Return "agree", "differ", or "not checked" if that holds for some results."""
        if self.first:
            return "differ"
        return "not checked" if self.unchecked else "agree"

    @property
    def worst(self) -> float:
        """The largest deviation over tolerance of all."""
        return max(ratio for finding in self.findings for ratio in finding.ratios)

    @property
    def verdict(self) -> str:
        """The result in one or two sentences."""
        first = self.first
        if first is not None:
            difference = f"Differs first in {first.name}: {self._describe(first)}"
            later = sum(not finding.holds for finding in self.findings) - 1
            if later == 0:
                return f"{difference}."
            are = "results are" if later > 1 else "result is"
            return f"{difference}; {later} later {are} wrong too."
        if self.unchecked:
            example = self.unchecked[0]
            names = {f"{finding.name}: {finding.part}" for finding in self.unchecked}
            others = len(names) - 1
            more = f", and {others} more" if others else ""
            rest = len(self.findings) - len(self.unchecked)
            return (
                f"Not checked: {example.name}: {example.part} "
                f"({example.unchecked}){more}. The other {rest} results agree within "
                "rounding."
            )
        return (
            f"Agrees within rounding: all {len(self.findings)} results of "
            f"{' and '.join(self.backends)} are within tolerance of float64, the worst "
            f"at {self.worst:.2g} of its tolerance."
        )

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, verbose: bool = False) -> str:
        """Return the verdict and the tables, which have at most 80 columns of text.

        They have the deviation of each result divided by its tolerance, and if there
        are many results, only those that differ or come closest to it. verbose: whether
        the tables may be wider and have all results, with deviations and tolerances.
        """
        width = None if verbose else TERMINAL_WIDTH
        parts = [self.verdict, self.title]
        if self.first is not None:
            parts += [self._neighbours_title, table(*self._neighbours(), width=width)]
        if verbose:
            parts.append(table(*self._result_table()))
        else:
            columns, rows, remark = self._short_table()
            parts += [table(columns, rows, width=width), fill(remark, TERMINAL_WIDTH)]
        return "\n\n".join(filter(None, [*parts, self.remark]))

    def _repr_html_(self) -> str:
        parts = [
            f"<p><strong>{escape(self.verdict)}</strong></p><p>{escape(self.title)}</p>"
        ]
        if self.first is not None:
            title = self._neighbours_title
            parts.append(html_table(*self._neighbours(), title=title, inline=True))

        def verdict_first(row: list[Any]) -> list[Any]:
            """Move the verdict left, where it is visible however wide the table is."""
            return [*row[:3], row[-1], *row[3:-1]]

        columns, rows = self._result_table()
        rows = list(map(verdict_first, rows))
        results = html_table(verdict_first(columns), rows, inline=True)
        parts.append(folded(f"all {len(self.findings)} results", results, len(rows)))
        if self.remark:
            parts.append(f"<p>{escape(self.remark)}</p>")
        return "".join(parts)

    def save(self, path: str | os.PathLike[str], number: int | None = None) -> bool:
        """Write the stage of the finding `first`, with its inputs, for `replay`.

        number: index of another finding, whose stage to write instead. Return whether
        the file holds all that `replay` needs. It does not if this library does not
        define the layer, loss or optimizer of the stage.

        Raises
        ------
        ValueError
            If nothing differs and no number is given.
        OSError
            If the file cannot be written.
        """
        if number is None:
            different = [
                i for i, finding in enumerate(self.findings) if not finding.holds
            ]
            expect(len(different) > 0, "nothing differs: there is no stage to write")
            number = different[0]
        return write(path, self._stages[number], self._names)

    def _describe(self, first: Finding) -> str:
        """Describe the deviation of a result on each backend where it is wrong."""
        parts: list[str] = []
        for i, (name, ratio) in enumerate(
            zip(self.backends, first.ratios, strict=True)
        ):
            if ratio <= 1.0:
                continue
            deviation = first.deviations[i]
            if math.isfinite(deviation):
                tolerance = first.tolerances[i]
                parts.append(
                    f"wrong on {name} by {deviation:.3g} (tolerance {tolerance:.3g})"
                )
            else:
                parts.append(self._describe_not_finite(first, i, name))
        return f"{first.part} is {' and '.join(parts)}"

    def _describe_not_finite(self, first: Finding, i: int, name: str) -> str:
        """Describe an element that is finite only in the reference or on a backend."""
        at = first.columns.index((first.index or (0,))[-1])
        expected = first.numbers[0][at]
        got = first.numbers[1 + i][at]
        place = f" at {list(first.index)}" if first.index else ""
        reference = f"where the float64 reference is {expected:.6g}"
        if math.isinf(got) and math.isfinite(expected):
            return f"{got:g} (overflow) on {name}{place}, {reference}"
        return f"{got:.6g} on {name}{place}, {reference}"

    @property
    def _neighbours_title(self) -> str:
        first = self.first
        assert first is not None
        return f"the worst element of {first.part}, and its neighbours"

    def _neighbours(self) -> tuple[list[str], list[list[Any]]]:
        """Return columns and rows about the worst element and its neighbours."""
        first = self.first
        assert first is not None
        *lead, last = first.index or (0,)
        rows: list[list[Any]] = []
        for column, *numbers in zip(first.columns, *first.numbers, strict=True):
            label = f"[{', '.join(map(str, (*lead, column)))}]" if first.index else ""
            if column == last:
                label += " <-"
            rows.append([label, *(f"{number:.9g}" for number in numbers)])
        return ["element", "reference", *self.backends], rows

    def _short_table(self) -> tuple[list[str], list[list[Any]], str]:
        """Return the columns and rows of a narrow table, and a remark about it."""
        rows = list(self._rows())
        indices = _most_important([finding for finding, _ in rows])
        lines: list[list[Any]] = []
        for finding, count in (rows[i] for i in indices):
            part = finding.part + (f", worst of {count}" if count > 1 else "")
            verdict = {"differ": "WRONG", "agree": "ok"}.get(
                finding.status, finding.status
            )
            lines.append([finding.path, finding.kind, part, *finding.ratios, verdict])
        remark = "A number is a deviation over its tolerance: rounding is at most 1."
        hidden = len(rows) - len(indices)
        if hidden:
            remark += f" {hidden} more row{'s' * (hidden > 1)}, and deviations"
        else:
            remark += " Deviations"
        remark += " and tolerances: --verbose, or to_text(verbose=True) in Python."
        return ["", "stage", "result", *self.backends, "verdict"], lines, remark

    def _result_table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the columns and rows of the table of results."""
        columns = ["", "stage", "result", "largest"]
        for name in self.backends:
            columns += [f"deviation, {name}", "tolerance"]
        rows = []
        for finding, count in self._rows():
            part = finding.part + (f", worst of {count}" if count > 1 else "")
            numbers: list[float] = [finding.largest]
            for deviation, tolerance in zip(
                finding.deviations, finding.tolerances, strict=True
            ):
                numbers += [deviation, tolerance]
            ratios = zip(self.backends, finding.ratios, strict=True)
            wrong = [name for name, ratio in ratios if not ratio <= 1.0]
            if wrong:
                verdict = f"WRONG on {', '.join(wrong)}"
            else:
                verdict = (
                    f"not checked: {finding.unchecked}" if finding.unchecked else "ok"
                )
            rows.append([finding.path, finding.kind, part, *numbers, verdict])
        return [*columns, "verdict"], rows

    def _rows(self) -> Iterator[tuple[Finding, int]]:
        """Yield the findings to show, each with the number of those that it stands for.

        Findings of one group, such as the updates of all parameters, share a row: that
        of the worst. Each finding that does not agree has a row.
        """
        groups: dict[Any, list[Finding]] = {}
        for i, finding in enumerate(self.findings):
            head = finding.part.partition(":")[0]
            is_grouped = head in _GROUPED or finding.kind in _GROUPED
            key = (finding.path, finding.kind, head) if is_grouped else i
            groups.setdefault(key, []).append(finding)
        for group in groups.values():
            worst = max(group, key=lambda finding: max(finding.ratios))
            for finding in group:
                if finding is worst or finding.status != "agree":
                    yield finding, len(group) if finding.status == "agree" else 1


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
    weights: Any = None,
    context: Any = None,
) -> Bisection:
    """Find the first stage of a training step that two backends compute differently.

    one, other: backends or their names. A name may end in a dtype, as in
    "jax:cpu:0@float64", and means float32 otherwise; it may also end in a precision and
    "deterministic", as in "jax@fast" or "torch@float32@strict@deterministic" (see
    `docs/precision.md`). "jax@bfloat16" and "torch@float16" stand for the model in
    `MixedPrecision`: its layers compute in this dtype, all others in float32.
    x, target, weights: all examples, as `Trainer.fit` takes them.
    context: arrays for a loss that takes them, as `Trainer` takes them; not a function.

    The backend `one` first takes `steps` steps, with batches in the order that `seed`
    fixes, and the next step is judged. A step whose loss or gradient is not finite is
    judged instead of taken. With steps=0, biases, moments and running statistics are
    mostly 0, and a backend that omits them would not be noticed. The update of the very
    first step is judged too.

    Then a prediction is judged, with the parameters and the state after the step, the
    same on both sides. `Layer.predict` and `Layer.backward_params`, where a layer
    overrides them, are compared with the reference's `forward` and `backward`.

    Each stage runs by itself, compiled where the backend compiles, as `Trainer` would
    compile it. The last two stages, the whole step up to the gradients and the whole
    prediction, run as one function each.

    Raises
    ------
    TypeError, ValueError
        If the data do not fit the model, as for `Trainer`, or the loss takes a context
        and there is none.
    StageFailed
        If a layer, the loss or the optimizer raises an error; the message names it.
    BackendUnavailable
        If a backend cannot run here, or lacks the dtype that was requested.
    """
    expect_count("batch_size", batch_size)
    is_count = type(steps) is int and steps >= 0
    expect(is_count, "expected steps to be an integer of at least 0, got {}", steps)
    expect_context(loss, context)
    sides = (_Side.of(one), _Side.of(other))
    narrow = "float64" if all(side.dtype == "float64" for side in sides) else "float32"
    trainer = Trainer(model, loss, optimizer, backend="numpy", seed=seed, dtype=narrow)
    try:
        x, target = cast((x, target), narrow)
        weights = None if weights is None else cast(weights, narrow)
        context = None if context is None else cast(context, narrow)
    except ValueError as error:
        expected = "expected x and target as arrays, or lists of equal lengths"
        raise ValueError(f"{expected}: {error}") from None
    examples = trainer.examples(x, target, weights)[:]
    data = {"x": examples.x, "target": examples.target}
    if examples.weights is not None:
        data["weights"] = examples.weights
    size = min(batch_size, len(examples))
    start = trainer.params, trainer.state, trainer.moments
    first_carry = cast(start, narrow)
    try:
        with failing("a training step", str(sides[0])):
            carry, batch, taken = sides[0].train(
                trainer, start, data, context, size, steps
            )
    except StageFailed:
        # A stage of the first step most likely fails too. If so, its error replaces
        # this one, because it names the layer.
        rows = epoch_order(seed, 0, len(examples))[:size]
        batch = cast(tree_map(lambda leaf: leaf[rows], data), narrow)
        extra = _extra(loss, context, 0)
        _judged(
            "",
            sides,
            split_step(model, loss, optimizer, first_carry, batch, narrow, extra=extra),
        )
        raise
    carry, batch = cast((carry, batch), narrow)
    first_update = first_carry if taken else None
    events = split_step(
        model,
        loss,
        optimizer,
        carry,
        batch,
        narrow,
        first_update,
        _extra(loss, context, taken),
    )
    title = (
        f"{sides[0]} and {sides[1]}, step {taken + 1} and a prediction after it, seed "
        f"{seed}, a batch of {len(leaves(batch['x'])[0])}"
    )
    remark = ""
    if taken < steps:
        remark = (
            f"Step {taken + 1} was judged, not step {steps + 1}: its loss or one of "
            f"its gradients is not finite on {sides[0]}."
        )
    return _judged(title, sides, events, remark)


def replay(
    path: str | os.PathLike[str], *sides: Backend | str, thing: Any = None
) -> Bisection:
    """Run the stage that `Bisection.save` wrote, alone, and judge it again.

    sides: the backends to run it on, by default those of the bisection. thing: the
    layer, loss or optimizer, or a model that contains the layer. It is needed if this
    library does not define it, because then the file does not hold it.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If `Bisection.save` did not write the file, or it needs a `thing` and none is
        given.
    StageFailed
        If the stage raises an error.
    BackendUnavailable
        If a backend cannot run here.
    """
    stage, names = read(path, thing)
    chosen = tuple(map(_Side.of, sides or names))
    return _judged(f"{stage.name}, alone, from {path}", chosen, [(stage, None)])


# The setting that each word after an @ in the name of a side stands for.
_SETTINGS = {
    **dict.fromkeys(precisions.PRECISION_NAMES, "dtype"),
    **dict.fromkeys(PRECISIONS, "precision"),
    "deterministic": "deterministic",
}
_ALLOWED = (
    "one of float16, bfloat16, float32 and float64, strict or fast, and deterministic"
)


def _extra(loss: Loss, context: Any, taken: int) -> dict[str, Any]:
    """Return the further arguments of a loss after `taken` steps, by name."""
    extra: dict[str, Any] = {} if context is None else {"context": context}
    if takes_keyword(loss, "step"):
        extra["step"] = np.asarray(float(taken))
    return extra


@dataclass(frozen=True)
class _Side:
    """A backend and the dtype in which it computes.

    In float16 and bfloat16 only the layers do: see `halves`.
    """

    backend: Backend
    dtype: str

    @staticmethod
    def of(name: Backend | str) -> "_Side":
        if isinstance(name, Backend):
            return _Side(name, "float32")
        if not isinstance(name, str):
            raise TypeError(f"expected a backend or its name, got {described(name)}")
        library, *words = name.split("@")
        settings = {_SETTINGS.get(word): word for word in words}
        is_valid = None not in settings and len(settings) == len(words)
        expect(
            is_valid, "expected {} after @, each once at most, got {!r}", _ALLOWED, name
        )
        deterministic = True if "deterministic" in settings else None
        backend = choose(
            library, precision=settings.get("precision"), deterministic=deterministic
        )
        side = _Side(backend, settings.get("dtype", "float32"))
        side.context().close()  # raises if the backend has no float64
        lacking = backend.lacks_dtype(side.dtype) if side.is_half else ""
        if lacking:
            raise BackendUnavailable(lacking)
        return side

    @property
    def is_half(self) -> bool:
        """Return whether the layers compute in float16 or bfloat16."""
        return self.dtype in precisions.HALVES

    @property
    def name(self) -> str:
        """A name that selects the same side under any environment variables."""
        words = [str(self.backend), self.dtype, self.backend.precision]
        return "@".join(words + ["deterministic"] * self.backend.deterministic)

    def __str__(self) -> str:
        return self.name.replace("@strict", "")

    @property
    def dtype_of_arrays(self) -> str:
        """The dtype of the real arrays that move between the host and the backend."""
        return "float32" if self.is_half else self.dtype

    def context(self) -> ExitStack:
        """Return a context in which the backend has the dtype; raise if it never has.

        NumPy's floating-point warnings are off in it: results that are not finite are
        reported as findings.
        """
        stack = ExitStack()
        stack.enter_context(np.errstate(all="ignore"))
        if self.dtype == "float64" and not self.backend.has_float64:
            stack.enter_context(self.backend.double())
            if not self.backend.has_float64:
                stack.close()
                raise BackendUnavailable(f"{self.backend} has no float64")
        return stack

    def run(
        self, compiled: Callable[..., Any], inputs: dict[str, Any], again: bool
    ) -> list[Any]:
        """Return [compiled(inputs)].

        again: also call it with other inputs, and then append compiled(inputs) again.
        """

        def result(numbers: dict[str, Any]) -> Any:
            arguments = cast(numbers, self.dtype_of_arrays)
            outputs = compiled(self.backend.asarray(arguments))
            # copied, because a later call may reuse the memory
            return tree_map(np.array, self.backend.to_numpy(outputs))

        with self.context():
            results = [result(inputs)]
            if again:
                result(tree_map(_changed, inputs))
                results.append(result(inputs))
        return results

    def train(
        self,
        trainer: Trainer,
        start: tuple[Any, ...],
        data: dict[str, Any],
        context: Any,
        size: int,
        steps: int,
    ) -> tuple[Any, Any, int]:
        """Take `steps` steps; return the carry, the next batch and the steps taken.

        Stop before a step whose loss or gradients are not finite, and return its batch.
        """
        model = trainer.model
        if self.is_half:
            model = MixedPrecision(model, self.dtype)
        train_step = make_step(model, trainer.loss, trainer.optimizer)

        def step(carry: Any, batch: dict[str, Any], extra: dict[str, Any]) -> Any:
            return train_step(
                carry, **batch, t=extra.get("step"), context=extra.get("context")
            )

        count = len(leaves(data["x"])[0])
        taken = 0
        epoch = 0
        with self.context():
            compiled = self.backend.jit(step)
            carry = self.backend.asarray(cast(start, self.dtype_of_arrays))
            while True:
                indices = epoch_order(trainer.seed, epoch, count)
                for rows, new in batch_indices(indices, size):
                    batch = tree_map(lambda leaf: leaf[rows[:new]], data)  # noqa: B023
                    if taken == steps:
                        # A short last batch, perhaps of one row, would be a poor
                        # test: fill it.
                        full = np.concatenate([rows[:new], indices[: size - new]])
                        batch = tree_map(lambda leaf: leaf[full], data)  # noqa: B023
                        return self.backend.to_numpy(carry), batch, taken
                    arguments = batch, _extra(trainer.loss, context, taken)
                    moved = self.backend.asarray(cast(arguments, self.dtype_of_arrays))
                    after, _, finite = compiled(carry, *moved)
                    if not bool(finite):
                        return self.backend.to_numpy(carry), batch, taken
                    carry = after
                    taken += 1
                epoch += 1


# --- the judgement --------------------------------------------------------------------

_AROUND = "forward around its layers"
_BACK = "backward around its layers"
# The results of each kind of stage in their order, and the name of each.
_PARTS = {
    "data": {"x": "x", "target": "target", "weights": "weights"},
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
        "shortcut_y": "predict around its layers",
        "state": "state around its layers",
        "returns": _BACK,
        "dx": _BACK,
        "grads": _BACK,
        "shortcut_grads": "backward_params around its layers",
    },
    "loss": {"value": "value", "dy": "gradient of y"},
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


def _most_important(findings: list[Finding]) -> list[int]:
    """Return the indices of the findings that a narrow table shows, in their order.

    All if they are few. Else those that do not agree, with the two before the first of
    them, or if all agree, those that come closest to their tolerance.
    """
    if len(findings) <= MAX_ROWS:
        return [*range(len(findings))]
    failing = [i for i, finding in enumerate(findings) if finding.status != "agree"]
    if failing:
        before = range(max(failing[0] - 2, 0), failing[0])
        return [*before, *failing][:MAX_ROWS]
    closest = sorted(range(len(findings)), key=lambda i: -max(findings[i].ratios))
    return sorted(closest[: MAX_ROWS // 2])


# Parts and stages of which the table shows only the worst result and those that do not
# agree.
_GROUPED = {
    *(_AROUND, _BACK, "the whole step", "the whole prediction"),
    *("update", "moments", "first update", "moments of the first update"),
}
_IN_PREDICTION = {"forward": "prediction", "state": "state after prediction"}
# Results of `predict` and `backward_params`, and the results that they have to equal.
_SHORTCUTS = {"shortcut_y": "y", "shortcut_grads": "grads"}
_EXACT = {"words", "x", "target"}


def _judged(
    title: str,
    sides: tuple[_Side, ...],
    events: list[tuple[Stage, Any]],
    remark: str = "",
) -> Bisection:
    """Return the findings for stages and the heads of their results (None for all)."""
    for stage in {id(stage): stage for stage, _ in events}.values():
        for dtype in _narrowest(sides):
            round_inputs(stage, dtype)
    judge = _Judge(sides)
    owners, findings = judge.judge(events)
    first = next((i for i, finding in enumerate(findings) if not finding.holds), None)
    if first is not None and owners[first].kind == "whole":
        # No single stage differs. Its result may depend on an earlier call: call each
        # repeatedly.
        judge.again = True
        owners_again, findings_again = judge.judge(events)
        if any(not finding.holds for finding in findings_again[:first]):
            owners = owners_again
            findings = findings_again
    not_finite = next((finding for finding in findings if not finding.finite), None)
    if not_finite is not None:
        place = f"{not_finite.name}: {not_finite.part}"
        sentence = f"The reference is not finite either, first in {place}."
        remark = f"{remark} {sentence}" if remark else sentence
    names = tuple(side.name for side in sides)
    return Bisection(
        title, tuple(map(str, sides)), tuple(findings), remark, tuple(owners), names
    )


def _narrowest(sides: tuple[_Side, ...]) -> list[str]:
    """Return the dtypes whose numbers every side can hold."""
    dtypes = {side.dtype for side in sides}
    halves = [dtype for dtype in precisions.HALVES if dtype in dtypes]
    wide = "float64" if dtypes == {"float64"} else "float32"
    return [wide, *halves]


class _Judge:
    """Runs stages on each side and compares their results with the reference."""

    def __init__(self, sides: tuple[_Side, ...]) -> None:
        self.sides = sides
        # whether each stage, not only the whole, is called repeatedly
        self.again = False
        self.compiled: dict[Any, Callable[..., Any]] = {}
        self.references: dict[Any, Any] = {}

    def judge(
        self, events: list[tuple[Stage, Any]]
    ) -> tuple[list[Stage], list[Finding]]:
        """Return the stage of each finding, and the findings, in order of `events`."""
        done: dict[int, list[tuple[str, Finding]]] = {}
        findings: list[Finding] = []
        owners: list[Stage] = []
        for stage, heads in events:
            if id(stage) not in done:
                clean = all(finding.holds for finding in findings)
                done[id(stage)] = list(self.findings(stage, clean=clean))
            for head, finding in done[id(stage)]:
                if heads is None or head in heads:
                    findings.append(finding)
                    owners.append(stage)
        return owners, findings

    def findings(self, stage: Stage, *, clean: bool) -> Iterator[tuple[str, Finding]]:
        """Yield a finding for each result of a stage, with the head of its path.

        clean: whether nothing has differed so far. If so, a whole step is called
        several times, and sampled again with larger errors if it differs.
        """
        if id(stage) not in self.references:
            samples = 4 if stage.kind == "whole" else 8
            self.references[id(stage)] = self.reference(stage, samples)
        reference, spreads = self.references[id(stage)]
        whole = stage.kind == "whole" and clean
        results = [
            self.results(stage, i, self.again or whole) for i in range(len(self.sides))
        ]
        controls = _Controls(stage)
        findings = list(self.compare(stage, reference, spreads, results, controls))
        if whole and not all(finding.holds for _, finding in findings):
            _, larger = self.reference(stage, samples=32, factor=4.0)
            for dtype, spread in larger.items():
                spreads[dtype] = {
                    name: max(size, spreads[dtype][name])
                    for name, size in spread.items()
                }
            findings = list(self.compare(stage, reference, spreads, results, controls))
        yield from findings

    def reference(
        self, stage: Stage, samples: int, factor: float = 1.0
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Return the reference's results by path, and by dtype the spread of each.

        factor: enlarges the error that is added to each operation.
        """
        spreads = {}
        for side in self.sides:
            dtype = dtype_of_stage(stage, side.dtype)
            if dtype in spreads:
                continue
            # The reference, in float64, would round away errors as small as float64's
            # own. They are enlarged to 2⁻⁴⁰, and the spread is scaled down by as much.
            own_epsilon = precisions.epsilon(dtype)
            epsilon = max(factor * own_epsilon, 2.0**-40)
            is_converted = stage.kind == "whole" and dtype in precisions.HALVES
            formula = with_rounding(stage) if is_converted else stage.formula
            is_half = dtype in precisions.HALVES
            sums = precisions.epsilon("float32") if is_half else None
            with failing(stage.name, REFERENCE):
                reference, spread = rounded(
                    *(formula, stage.inputs),
                    epsilon=epsilon,
                    sums=sums,
                    limit=precisions.largest(dtype),
                    samples=samples,
                    seed=samples,
                )
            scale = factor * own_epsilon / epsilon
            spreads[dtype] = {name: size * scale for name, size in spread.items()}
        return reference, spreads

    def results(self, stage: Stage, number: int, again: bool) -> list[dict[str, Any]]:
        """Return the results of side `number` by path, one dict per call."""
        side = self.sides[number]
        # Equal stages share a compiled function. A backend that does not compile may
        # record the second call of a function instead; there each stage has its own
        # function, so that its first call runs as written, unless stages are called
        # repeatedly anyway.
        is_shared = side.backend.compiles or self.again
        key = number, stage.key if is_shared else id(stage)
        if key not in self.compiled:
            if stage.kind == "data":  # only moved to the backend and back
                self.compiled[key] = stage.function
            else:
                function = function_in(stage, side.dtype)
                self.compiled[key] = side.backend.jit(function)
        with failing(stage.name, str(side)):
            return side.run(self.compiled[key], stage.inputs, again)

    def compare(
        self,
        stage: Stage,
        reference: dict[str, Any],
        spreads: dict[str, dict[str, float]],
        results: list[list[dict[str, Any]]],
        controls: "_Controls",
    ) -> Iterator[tuple[str, Finding]]:
        """Yield a finding for each result of the reference and each shortcut."""
        heads = list(_PARTS[stage.kind])
        names = {name for runs in results for name in runs[0]} | reference.keys()

        def order(name: str) -> tuple[int, str]:
            return heads.index(name.partition(".")[0]), name

        for name in sorted(names, key=order):
            head, _, path = name.partition(".")
            full = name.replace(head, _SHORTCUTS.get(head, head), 1)
            # a side without such a shortcut has the result of the full computation
            got = [[run.get(name, run[full]) for run in runs] for runs in results]
            finding = _finding(
                *(stage, _part(stage, head, path), full, reference[full], got),
                sides=self.sides,
                spreads=[
                    spreads[dtype_of_stage(stage, side.dtype)][full]
                    for side in self.sides
                ],
                controls=controls,
                exact=head in _EXACT,
            )
            yield head, finding


class _Controls:
    """Results of a stage by the plain formulas in the dtype of a side, once needed."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.results: dict[str, dict[str, Any]] = {}

    def __call__(self, dtype: str, name: str) -> Any:
        if dtype == "bfloat16":  # NumPy lacks it; its range is that of float32
            dtype = "float32"
        if dtype not in self.results:
            inputs = cast(self.stage.inputs, dtype)
            with failing(self.stage.name, REFERENCE):
                self.results[dtype] = exactly(self.stage.formula, inputs, dtype=dtype)
        return self.results[dtype][name]


def _part(stage: Stage, head: str, path: str) -> str:
    """Return the name of a result, such as "backward: gradient of weight"."""
    part = _PARTS[stage.kind][head]
    if stage.predicts:
        first, *others = part.split(" ", 1)
        part = " ".join([_IN_PREDICTION.get(first, first), *others])
    if head == "enters":
        return f"{part}: x of {path}"
    if head == "returns":
        return f"{part}: dy of {path}"
    if head in ("grads", "shortcut_grads"):
        return f"{part}: gradient of {path}" if path else f"{part}: gradient"
    if head == "dx" and stage.kind == "around":
        part = f"{part}: dx"
    if not path:
        return part
    return f"{part} {path}" if ":" in part else f"{part}: {path}"


def _finding(
    stage: Stage,
    part: str,
    name: str,
    reference: np.ndarray,
    got: list[list[np.ndarray]],
    *,
    sides: tuple[_Side, ...],
    spreads: list[float],
    controls: _Controls,
    exact: bool,
) -> Finding:
    """Compare a result with the reference.

    got: for each side, the result of each of its calls. spreads: for each side. exact:
    whether the tolerance is 0.
    """
    is_real = reference.dtype.kind == "f"
    dtypes = [dtype_of_stage(stage, side.dtype) for side in sides]
    largest = 0.0
    tolerances = [0.0] * len(sides)
    if is_real:
        sizes = np.abs(reference[np.isfinite(reference)])
        largest = float(np.max(sizes, initial=0.0))
        for i, dtype in enumerate(dtypes):
            limit = precisions.largest(dtype)
            within = float(np.max(sizes, where=sizes <= limit, initial=0.0))
            tiny = precisions.tiny(dtype)
            if name.partition(".")[0] in BACKWARD:
                tiny /= scale_of(dtype)
            tolerance = (
                FACTOR * (spreads[i] + tiny) + precisions.epsilon(dtype) * within
            )
            tolerances[i] = 0.0 if exact else tolerance
    one_run = [_worst_of(reference, runs) for runs in got]
    deviations = []
    reasons = []
    masks: list[dict[str, np.ndarray]] = [{}] * len(got)
    if is_real:
        masks = _incomparable(name, reference, one_run, dtypes, controls)
    for i, side in enumerate(sides):
        deviation = _deviations(reference, one_run[i])
        for reason, mask in masks[i].items():
            deviation = np.where(mask, 0.0, deviation)
            reasons.append(
                f"{reason} on {side} in {np.sum(mask)} of {mask.size} elements"
            )
        if tolerances[i] > precisions.largest(dtypes[i]) / FACTOR:
            reasons.append(f"rounding alone takes it past the range of {dtypes[i]}")
        deviations.append(deviation)
    worst = [float(np.max(deviation, initial=0.0)) for deviation in deviations]
    index: tuple[int, ...] = ()
    columns = range(0)
    numbers: list[tuple[float, ...]] = [()] * (1 + len(got))
    if reference.size:
        worse_side = int(np.argmax(list(map(_ratio, worst, tolerances))))
        flat = int(np.argmax(deviations[worse_side]))
        index = tuple(int(i) for i in np.unravel_index(flat, reference.shape))
        lead = index[:-1]
        last = (index or (0,))[-1]
        length = (reference.shape or (1,))[-1]
        columns = range(max(0, last - NEIGHBOURS), min(length, last + NEIGHBOURS + 1))
        rows = [np.atleast_1d(values[lead]) for values in (reference, *one_run)]
        numbers = [tuple(float(row[i]) for i in columns) for row in rows]
    return Finding(
        stage.path,
        stage.label,
        part,
        largest,
        tuple(worst),
        tuple(tolerances),
        index,
        tuple(columns),
        tuple(numbers),
        finite=not is_real or bool(np.all(np.isfinite(reference))),
        unchecked="; ".join(reasons),
    )


def _worst_of(reference: np.ndarray, runs: list[np.ndarray]) -> np.ndarray:
    """Return for each element the value that is furthest from the reference."""
    worst = runs[0]
    for run in runs[1:]:
        worst = np.where(
            _deviations(reference, run) > _deviations(reference, worst), run, worst
        )
    return worst


def _incomparable(
    name: str,
    reference: np.ndarray,
    got: list[np.ndarray],
    dtypes: list[str],
    controls: _Controls,
) -> list[dict[str, np.ndarray]]:
    """Return for each side masks of elements that cannot be compared, by the reason.

    These are the elements where the reference and the side are NaN, where a number of
    the reference is outside the range of the side's dtype, and where an intermediate
    result overflows on all sides of that dtype. If there is only one such side, the
    formula computed in that dtype has to overflow too. dtypes: those of the sides.
    """
    masks_by_side: list[dict[str, np.ndarray]] = []
    for dtype, values in zip(dtypes, got, strict=True):
        masks: dict[str, np.ndarray] = {}
        lost = ~np.isfinite(values) & np.isfinite(reference)
        same_sign = np.sign(values) == np.sign(reference)
        is_beyond = np.abs(reference) > precisions.largest(dtype)
        overflows = lost & is_beyond & same_sign
        if np.any(lost & ~overflows):
            same_dtype = [
                v for each, v in zip(dtypes, got, strict=True) if each == dtype
            ]
            on_all = np.all([~np.isfinite(v) for v in same_dtype], axis=0)
            if len(same_dtype) == 1:
                on_all = ~np.isfinite(controls(dtype, name))
            overflows = overflows | (lost & on_all)
        both_nan = np.isnan(reference) & np.isnan(values)
        if np.any(overflows):
            masks[f"finite in float64, overflows {dtype}"] = overflows
        if np.any(both_nan):
            masks["NaN in the reference and"] = both_nan
        masks_by_side.append(masks)
    return masks_by_side


def _deviations(reference: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Return the absolute deviations; infinite where only one of both is finite."""
    expect(
        reference.shape == got.shape, "expected {}, got {}", reference.shape, got.shape
    )
    wide = np.float64 if reference.dtype.kind == "f" else np.int64
    a = reference.astype(wide)
    b = got.astype(wide)
    same = (a == b) | ((a != a) & (b != b))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(b - a).astype(np.float64)
    return np.where(same, 0.0, np.where(np.isnan(gaps), math.inf, gaps))


def _ratio(deviation: float, tolerance: float) -> float:
    if tolerance:
        return deviation / tolerance
    return math.inf if deviation else 0.0


def _changed(leaf: np.ndarray) -> np.ndarray:
    """Return other numbers of the same signs; integers (labels) in another order."""
    if leaf.dtype.kind == "f":
        return leaf * 0.75
    return np.roll(leaf, 1, axis=0) if leaf.ndim else leaf
