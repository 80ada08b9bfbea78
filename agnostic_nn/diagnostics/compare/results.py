"""The result of one backend: train on it, judge the run, and describe the outcome."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ...core import policies
from ...core.backend import Backend
from ...core.precisions import HALVES
from ...core.trees import leaves
from ...training.progress import Progress
from ..cost import peak_of
from ..summary import Summary, summarize
from .choice import one_line
from .controls import Controls
from .drift import Entry
from .half import HalfStudy, study
from .probes import batch_step, stored
from .repeat import with_repeats
from .running import Run, Task, cast, run, sha256
from .schema import (
    TRAINED,
    ArrayDeviation,
    BatchTime,
    Deviations,
    Difference,
    LayerCost,
    MeasuredPrecision,
    Memory,
    NotChecked,
    Result,
    StepTolerance,
)
from .verdicts import AGREES, DIFFERS, NOT_CHECKED, Context, Judgement, judge

__all__ = ["layer_costs", "result_of"]


def layer_costs(task: Task, dtype: str) -> tuple[LayerCost, ...]:
    """Return the memory and the operations of each layer in a training step."""
    costs = _summary(task, dtype)
    rows = costs.rows if costs else ()
    return tuple([LayerCost(**asdict(row) | {"shape": str(row.shape)}) for row in rows])


def _summary(task: Task, dtype: str) -> Summary | None:
    """Return the summary of the model; None if a custom layer needs NumPy arrays."""
    params, state, _ = cast(task.start, dtype)
    shape = task.shape
    try:
        return summarize(
            task.workload.model, params, state, shape, dtype, task.workload.batch_size
        )
    except Exception:
        return None


# --- results --------------------------------------------------------------------------


def result_of(
    task: Task,
    backend: Backend,
    machine: str,
    context: Context,
    controls: Controls,
    bars: Progress,
    sizes: tuple[int, ...],
    repeat: int = 1,
    finished: Sequence[Result] = (),
) -> Result:
    """Train on one backend, and return its result.

    repeat: how often the backend trains; the bits of all its runs are compared;
    finished: results so far, because a training in half precision is described next to
    that in float32 on the same device.
    """
    dtype = context.dtype
    name = str(backend)
    library, _, device = name.partition(":")
    result = Result(
        backend=library, device=device or None, machine=machine, dtype=dtype
    )
    try:
        result = replace(
            result,
            hardware=backend.hardware,
            version=backend.version,
            has_float64=backend.has_float64,
            precision=backend.precision,
            deterministic=backend.deterministic,
        )
        trained = run(
            *(task.in_dtype(dtype), backend, stored(dtype), "", bars, sizes),
            context.references,
        )
        controls.keep(backend, dtype, trained)
        result = _with_times(result, task, trained)
        result = replace(result, memory=_memory(task, dtype, trained))
        if dtype == "float32":  # last, because it takes memory too
            measured, issue = _precision(backend)
            result = replace(result, measured_precision=measured, precision_issue=issue)
        judged = _judged(result, task, backend, trained, context, controls)
        if judged.differences and all(
            d.quantity in TRAINED for d in judged.differences
        ):
            judged = _judged_twice(judged, task, backend, context, controls, bars)
        if context.is_half:
            plain = _in_float32(judged, finished)
            differs = judged.status == DIFFERS
            studied = study(
                *(task, backend, context, trained, differs, plain, controls, bars)
            )
            judged = _with_study(judged, studied)
        judged = _with_precision_issue(judged)
        if repeat == 1:
            return judged
        return with_repeats(
            *(judged, task.in_dtype(dtype), backend, trained, context, bars, repeat)
        )
    except Exception as error:  # one backend that fails must not stop the others
        return replace(result, error=one_line(f"{type(error).__name__}: {error}"))


def _judged_twice(
    result: Result,
    task: Task,
    backend: Backend,
    context: Context,
    controls: Controls,
    bars: Progress,
) -> Result:
    """Train again, because all parts of single steps agree and the training differs.

    If the second training agrees, the difference is not a property of the backend: its
    trainings do not repeat. Then the difference is reported as not checked.
    """
    again = run(
        *(task.in_dtype(context.dtype), backend, stored(context.dtype)),
        title="second training",
        progress=bars,
        references=context.references,
    )
    second = _judged(result, task, backend, again, context, controls)
    if second.differences:
        return result
    reason = "a second training on this backend agrees; --repeat shows what changes"
    unclear = tuple(NotChecked(**vars(d), reason=reason) for d in result.differences)
    return replace(
        result,
        status=NOT_CHECKED,
        verdict="agrees in single steps; the training does not repeat itself",
        first_difference=None,
        differences=(),
        not_checked=(*unclear, *result.not_checked),
    )


def _in_float32(result: Result, finished: Sequence[Result]) -> Result | None:
    """Return the result in float32 on the same device with the same policy."""
    policy = result.name, result.precision, result.deterministic
    for each in finished:
        is_same = (each.name, each.precision, each.deterministic) == policy
        if is_same and each.dtype == "float32" and each.losses:
            return each
    return None


def _with_study(result: Result, studied: HalfStudy) -> Result:
    """Add what was found out about a training in half precision."""
    # A layer that is wrong by itself is named first: other results follow from it.
    differences = (*studied.differences, *result.differences)
    not_checked = (*result.not_checked, *studied.not_checked)
    result = replace(
        result,
        half_precision=studied.half,
        differences=differences,
        first_difference=next(iter(differences), None),
        not_checked=not_checked,
    )
    if studied.differences:
        return replace(
            result, status=DIFFERS, verdict=_difference_in_words(differences)
        )
    if studied.not_checked and result.status == AGREES:
        verdict = "agrees in single steps; the training ends worse than explained"
        return replace(result, status=NOT_CHECKED, verdict=verdict)
    return result


def _with_precision_issue(result: Result) -> Result:
    """Turn "agrees" into "not checked" if the result has a precision issue."""
    if result.status != AGREES or not result.precision_issue:
        return result
    verdict = f"{result.verdict}, but is not confirmed to be {result.precision}"
    return replace(result, status=NOT_CHECKED, verdict=verdict)


def _precision(backend: Backend) -> tuple[MeasuredPrecision | None, str | None]:
    """Return the format of products, and why it is below what the policy requires."""
    try:
        measured = policies.probe(backend)
    except Exception as error:  # the training's results remain valid
        reason = one_line(f"{type(error).__name__}: {error}")
        return None, f"{backend.precision}, but it cannot be measured: {reason}"
    less = policies.reduced_formats(measured) if backend.precision == "strict" else ""
    issue = f"strict, but multiplies in {less}" if less else None
    return MeasuredPrecision(**measured), issue


def _with_times(result: Result, task: Task, trained: Run) -> Result:
    """Add the times of steps; the first step, which may compile, is separate."""
    first, *later = trained.seconds
    sizes = dict(trained.sizes)
    if later:
        low, middle, high = np.percentile(later, [25, 50, 75]) * 1e3
        in_first_step = min(task.workload.batch_size, len(task.train))
        examples = task.epochs * len(task.train) - in_first_step
        result = replace(
            result,
            step_ms=float(middle),
            step_ms_quartiles=(float(low), float(high)),
            samples_per_second=examples / sum(later),
        )
        if sizes:
            sizes[task.workload.batch_size] = float(middle) / 1e3
    batches = [
        BatchTime(size=size, step_ms=sizes[size] * 1e3) for size in sorted(sizes)
    ]
    return replace(
        result,
        steps=task.steps,
        first_step_ms=first * 1e3,
        batches=tuple(batches),
    )


def _memory(task: Task, dtype: str, trained: Run) -> Memory | None:
    """Return bytes: the reported peak, the predicted peak, and its parts."""
    # both dtypes of 16 bits take the same memory, and NumPy has only float16
    task = task.in_dtype("float16" if dtype in HALVES else dtype)
    start = cast(task.start, stored(dtype))
    workload = task.workload
    params, state, moments = (
        sum(leaf.nbytes for leaf in leaves(tree)) for tree in start
    )
    costs = _summary(task, stored(dtype))
    predicted = None
    if costs:
        step = batch_step(workload.model, workload.loss, workload.optimizer)
        with suppress(Exception):  # a custom loss may accept only NumPy arrays
            predicted = peak_of(step, start, *next(task.batches(stored(dtype))))
    return Memory(
        peak=trained.peak,
        predicted=predicted,
        parameters=params,
        state=state,
        moments=moments,
        saved_for_backward=costs.bytes_kept if costs else None,
    )


def _judged(
    result: Result,
    task: Task,
    backend: Backend,
    trained: Run,
    context: Context,
    controls: Controls,
) -> Result:
    """Add the verdict on a run, its deviations from the reference and final values."""
    dtype = context.dtype
    last = len(trained.losses)
    exact_start = trained.start == sha256(cast(task.start[0], stored(dtype)))
    judgement = judge(
        trained, context, exact_start, backend, lambda: controls.of(context, backend)
    )
    relative = [
        entry.relative
        for group in judgement.deviations.values()
        for entry in group.values()
        if entry.tolerance is not None
    ]
    chains = context.chains
    return replace(
        result,
        status=judgement.status,
        verdict=_verdict(judgement, last, context),
        first_difference=next(iter(judgement.differences), None),
        differences=tuple(judgement.differences),
        not_checked=tuple(judgement.not_checked),
        control=judgement.control,
        command=_command(task, backend, judgement, dtype),
        test_metric=trained.metric,
        final_loss=trained.losses[-1],
        start_sha256=sha256(task.start[0]) if exact_start else trained.start,
        max_relative_deviation=float(np.max(relative)) if relative else None,
        tolerance=None
        if context.is_half
        else StepTolerance(
            first_step=context.allowed(chains.step),
            last_step=context.allowed(chains.step * last),
        ),
        deviations=_deviations(judgement.deviations),
        loss_deviations=tuple(judgement.loss_deviations),
        losses=tuple(trained.losses),
    )


def _deviations(groups: dict[str, dict[str, Entry]]) -> Deviations:
    """Return the deviations of a judgement as in the report."""
    converted: dict[str, Any] = {
        group: {
            name: ArrayDeviation(**asdict(entry)) for name, entry in entries.items()
        }
        for group, entries in groups.items()
    }
    # These two groups have a single entry, without a name.
    converted |= {group: converted[group].get("") for group in ("losses", "loss")}
    return Deviations(**converted)


def _verdict(judgement: Judgement, last: int, context: Context) -> str:
    """Return the verdict in words."""
    if judgement.differences:
        return _difference_in_words(judgement.differences)
    if not judgement.not_checked and context.is_half:
        return f"agrees in the {len(context.references)} steps that were compared"
    if not judgement.not_checked:
        return f"agrees over {last:,} steps"
    loss_steps = _unchecked_losses(judgement)
    if not loss_steps:
        return "agrees wherever it can be checked"
    if loss_steps[0] == 1:
        return "cannot be checked as a whole training"
    return f"agrees up to step {loss_steps[0] - 1:,}; cannot be checked beyond that"


def _difference_in_words(differences: Sequence[Difference]) -> str:
    first = differences[0]
    since = f"from step {first.step}" if first.step else "from the start"
    return f"differs by more than rounding {since}, first in {first.description}"


def _unchecked_losses(judgement: Judgement) -> list[int]:
    """Return the steps from which on the loss of a whole training is not checked."""
    return [each.step for each in judgement.not_checked if each.quantity == "losses"]


def _command(
    task: Task, backend: Backend, judgement: Judgement, dtype: str
) -> str | None:
    """Return the `bisect` command for the step in question; None if there is none."""
    options = task.workload.options
    steps = [each.step for each in judgement.differences]
    steps = steps or _unchecked_losses(judgement)
    if not options or not steps:
        return None
    steps_before = max(1, steps[0]) - 1
    words = ["agnostic-nn", "bisect", _side(backend, dtype)]
    words += [*options, "--steps", str(steps_before)]
    words += ["--seed", str(task.seed)] if task.seed else []
    return shlex.join(words)


def _side(backend: Backend, dtype: str) -> str:
    """Return a backend with its dtype and policy in the notation of `bisect`."""
    words = [str(backend)]
    words += [dtype] if dtype != "float32" else []
    words += [backend.precision] if backend.precision != "strict" else []
    words += ["deterministic"] if backend.deterministic else []
    return "@".join(words)
