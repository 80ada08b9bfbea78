"""The result of one backend: train on it, judge the run, and describe the outcome."""

import shlex
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ...core import policies
from ...core.backend import Backend
from ...core.trees import leaves
from ...training.progress import Progress
from ..cost import peak_of
from ..summary import Summary, summarize
from .choice import one_line
from .controls import Controls
from .drift import Entry
from .probes import batch_step
from .repeat import with_repeats
from .running import Run, Task, cast, run, sha256
from .schema import (
    ArrayDeviation,
    BatchTime,
    Deviations,
    LayerCost,
    MeasuredPrecision,
    Memory,
    Result,
    StepTolerance,
)
from .verdicts import AGREES, NOT_CHECKED, Context, Judgement, judge

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
) -> Result:
    """Train on one backend, and return its result.

    repeat: how often the backend trains; the bits of all its runs are compared.
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
        title = name if dtype == "float32" else f"{name} {dtype}"
        trained = run(task, backend, dtype, title, bars, sizes, context.references)
        controls.keep(backend, dtype, trained)
        result = _with_times(result, task, trained)
        result = replace(result, memory=_memory(task, dtype, trained))
        if dtype == "float32":  # last, because it takes memory too
            measured, issue = _precision(backend)
            result = replace(result, measured_precision=measured, precision_issue=issue)
        judged = _judged(result, task, backend, trained, context, controls)
        judged = _with_precision_issue(judged)
        if repeat == 1:
            return judged
        return with_repeats(judged, task, backend, trained, context, bars, repeat)
    except Exception as error:  # one backend that fails must not stop the others
        return replace(result, error=one_line(f"{type(error).__name__}: {error}"))


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
    start = cast(task.start, dtype)
    workload = task.workload
    params, state, moments = (
        sum(leaf.nbytes for leaf in leaves(tree)) for tree in start
    )
    costs = _summary(task, dtype)
    predicted = None
    if costs:
        step = batch_step(workload.model, workload.loss, workload.optimizer)
        with suppress(Exception):  # a custom loss may accept only NumPy arrays
            predicted = peak_of(step, start, *next(task.batches(dtype)))
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
    exact_start = trained.start == sha256(cast(task.start[0], dtype))
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
        verdict=_verdict(judgement, last),
        first_difference=next(iter(judgement.differences), None),
        differences=tuple(judgement.differences),
        not_checked=tuple(judgement.not_checked),
        control=judgement.control,
        command=_command(task, backend, judgement, dtype),
        test_metric=trained.metric,
        final_loss=trained.losses[-1],
        start_sha256=sha256(task.start[0]) if exact_start else trained.start,
        max_relative_deviation=float(np.max(relative)) if relative else None,
        tolerance=StepTolerance(
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


def _verdict(judgement: Judgement, last: int) -> str:
    """Return the verdict in words."""
    if judgement.differences:
        first = judgement.differences[0]
        since = f"from step {first.step}" if first.step else "from the start"
        return f"differs by more than rounding {since}, first in {first.description}"
    if not judgement.not_checked:
        return f"agrees over {last:,} steps"
    loss_steps = _unchecked_losses(judgement)
    if not loss_steps:
        return "agrees wherever it can be checked"
    if loss_steps[0] == 1:
        return "cannot be checked as a whole training"
    return f"agrees up to step {loss_steps[0] - 1:,}; cannot be checked beyond that"


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
