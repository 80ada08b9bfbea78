"""Run one training on every backend, and report how each differs from the reference."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...core import policies, random
from ...core.arrays import Moments, Params, State, namespace
from ...core.backend import Backend, BackendUnavailable, backends
from ...core.backend import backend as choose
from ...core.errors import described, expect_list
from ...core.trees import leaves, named_leaves, tree_map
from ...losses.base import no_context, takes_keyword
from ...training.batches import Examples
from ...training.checkpoint import digest
from ...training.inputs import as_integer
from ...training.progress import Progress, progress
from ..cost import peak_of
from ..summary import Summary, summarize
from .controls import Controls
from .conversion import finite
from .drift import Entry, largest
from .environment import environment
from .page import Comparison
from .probes import Reference, functions, numbered_step, probe
from .rounding import Chains
from .running import SIZES, Run, Task, cast, probe_inputs, run, run_reference, sha256
from .schema import (
    TRAINED,
    ArrayDeviation,
    BatchTime,
    Deviations,
    LayerCost,
    LayerRoundings,
    LeftOut,
    Machine,
    MeasuredPrecision,
    Memory,
    ReferenceRun,
    Result,
    RunCounts,
    Status,
    StepTolerance,
    Tolerance,
    Verdict,
    WorkloadInfo,
)
from .verdicts import (
    AGREES,
    DIFFERS,
    FAILED,
    NOT_CHECKED,
    Context,
    Judgement,
    divergence,
    judge,
    probes_agree,
)
from .workloads import CannotCompare, Workload, find

__all__ = ["Missing", "compare", "overall"]

DTYPES = ("float32", "float64")
REFERENCE_DTYPE = "float64"
# A gradient below this share of the largest one is taken for zero: float64 leaves such
# values where the exact gradient is 0.
ZERO_GRADIENT = 2.0**-42
ONLY_BY_NAME = {
    "array_api_strict": "array_api_strict is for tests only: name it to include it",
}


Policy = tuple[str | None, bool | None]


@dataclass(frozen=True)
class Missing:
    """A backend that was named and cannot run here."""

    name: str
    reason: str


def compare(
    workload: str | Workload,
    names: Sequence[str | Backend] | None = None,
    *,
    precision: str | None = None,
    deterministic: bool | None = None,
    dtypes: Sequence[str] = ("float32",),
    epochs: int | None = None,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
    show_progress: bool = False,
) -> Comparison:
    """Train on each of the backends called `names`, and return a report.

    A backend that cannot run, or fails during training, becomes a result with its
    error; the others still finish.

    Parameters
    ----------
    workload
        The training to run: a `Workload` or the name of a built-in one.
    names
        Backends; a name without a device means the backend's first device. By default,
        every device of every backend that can run here, except backends for tests.
    precision, deterministic
        The policy of all backends that are given by name, as in `nn.backend`. A
        `Backend` keeps its own policy, so a strict and a fast one can be compared with
        each other. After training in float32, the precision of each backend's products
        is measured; the report says if it is lower than its policy requires.
    dtypes
        The dtypes to train in, in this order; "float64" is skipped on devices without
        it.
    epochs
        Passes over the data; by default the workload's.
    seed
        Determines weights, masks and the order of the data.
    sizes
        Further batch sizes whose steps are timed.
    show_progress
        If True, draw progress bars.

    Raises
    ------
    CannotCompare
        If the workload, a backend or a dtype is unknown, the data are not available, or
        the loss takes a context.
    """
    if isinstance(workload, str):
        workload = find(workload)
    if not isinstance(workload, Workload):
        raise TypeError(f"expected a workload or its name, got {described(workload)}")
    expect_list("names", [] if names is None else names)
    expect_list("dtypes", dtypes)
    expect_list("sizes", sizes)
    unique_dtypes = list(dict.fromkeys(dtypes))
    if not unique_dtypes or set(unique_dtypes) - set(DTYPES):
        got = ", ".join(map(str, unique_dtypes))
        raise CannotCompare(f"expected dtypes from {' and '.join(DTYPES)}, got {got}")
    sizes = [as_integer("each of sizes", size) for size in sizes]
    epochs = None if epochs is None else as_integer("epochs", epochs)
    seed = as_integer("seed", seed, 0)
    if takes_keyword(workload.loss, "context"):
        raise CannotCompare(no_context(workload.loss, "compare"))
    here = environment()
    machine = here.processor
    policy = precision, deterministic
    pairs, left_out = _pairs(names, unique_dtypes, policy, machine)
    train, test = workload.read()
    epochs = workload.epochs if epochs is None else epochs
    task = Task(workload, train, test, _start(workload, train, seed), epochs, seed)
    chains = task.chains()

    with progress(show_progress) as bars:
        host = choose("numpy")
        title = f"{REFERENCE_DTYPE} reference"
        reference = run_reference(task, host, REFERENCE_DTYPE, title, bars)
        contexts = {
            dtype: _context(task, reference, chains, dtype) for _, dtype in pairs
        }
        controls = Controls(task, bars, host)
        results = [
            _result(
                task, backend, machine, contexts[dtype], controls, bars, tuple(sizes)
            )
            for backend, dtype in pairs
        ]
    zero_gradients = {
        name for each in contexts.values() for name in each.zero_gradients
    }
    report = Comparison(
        verdict=overall(results),
        workload=WorkloadInfo(
            name=workload.name,
            about=workload.about,
            model=repr(workload.model),
            loss=_loss_name(workload.loss),
            optimizer=repr(workload.optimizer),
            metric=workload.measured,
            parameters=sum(leaf.size for leaf in leaves(task.start[0])),
            training_examples=len(train),
            test_examples=len(test),
            data_sha256=digest(_arrays(train, test)),
            batch_size=workload.batch_size,
            epochs=epochs,
            steps=task.steps,
            seed=seed,
            options=tuple(workload.options),
        ),
        start_sha256=sha256(task.start[0]),
        reference=ReferenceRun(
            backend=str(host),
            dtype=REFERENCE_DTYPE,
            final_loss=reference.losses[-1],
            test_metric=reference.metric,
            losses=tuple(reference.losses),
            scales=tuple(reference.scales),
            agrees=_reference_agrees(task, reference, contexts, host, results),
            diverges=divergence(reference.losses, reference.scales) or None,
        ),
        tolerance=Tolerance(
            formula="4 ε √n",
            epsilon={dtype: float(np.finfo(dtype).eps) for dtype in unique_dtypes},
            step_roundings=chains.step,
            prediction_roundings=chains.predictions,
            layers=tuple(_layer_roundings(chains)),
            zero_gradients=tuple(sorted(zero_gradients)),
        ),
        layer_costs=_layer_costs(task, unique_dtypes[0]),
        results=tuple(results),
        left_out=tuple(left_out),
        machines=(Machine(label=machine, environment=here),),
        differences=(),
    )
    return finite(report)


# --- what to train on -----------------------------------------------------------------


def _pairs(
    names: Sequence[str | Backend] | None,
    dtypes: list[str],
    policy: Policy,
    machine: str,
) -> tuple[list[tuple[Backend | Missing, str]], list[LeftOut]]:
    """Return each backend with each of its dtypes, and what does not run."""
    chosen: Sequence[Backend | Missing]
    if names is None:
        chosen, left_out = _all_backends(policy, machine)
    else:
        chosen = _named(names, policy)
        left_out = []
    pairs: list[tuple[Backend | Missing, str]] = []
    lacking: list[tuple[Backend | Missing, str]] = []
    for backend in chosen:
        for dtype in dtypes:
            if (
                dtype == REFERENCE_DTYPE
                and isinstance(backend, Backend)
                and not backend.has_float64
            ):
                reason = backend.lacks_float64
                left_out.append(
                    LeftOut(backend=backend.name, reason=reason, machine=machine)
                )
                lacking.append((Missing(str(backend), reason), dtype))
            else:
                pairs.append((backend, dtype))
    if not pairs:
        reasons = "; ".join(each.reason for each in left_out)
        raise CannotCompare(f"there is nothing to compare: {reasons}")
    if names is not None and dtypes == [REFERENCE_DTYPE]:
        # A backend that was named but has no run at all is a failure, not left out.
        return pairs + lacking, []
    return pairs, left_out


def _all_backends(policy: Policy, machine: str) -> tuple[list[Backend], list[LeftOut]]:
    """Return every device that can run, and the backends left out."""
    chosen: list[Backend] = []
    left_out: list[LeftOut] = []

    def leave_out(name: str, reason: str) -> None:
        text = _one_line(reason)
        left_out.append(LeftOut(backend=name, reason=text, machine=machine))

    for status in backends():
        reason = status.reason or ONLY_BY_NAME.get(status.name)
        if reason:
            leave_out(status.name, reason)
            continue
        for device in status.devices:
            try:
                chosen.append(_choose(str(device), policy))
            except BackendUnavailable as error:  # available, but not with this policy
                leave_out(status.name, str(error))
    return chosen, left_out


def _choose(name: str, policy: Policy) -> Backend:
    precision, deterministic = policy
    return choose(name, precision=precision, deterministic=deterministic)


def _named(names: Sequence[str | Backend], policy: Policy) -> list[Backend | Missing]:
    """Return the backends called `names`, each once; `Missing` if one cannot run."""
    chosen: list[Backend | Missing] = []
    for name in names:
        if isinstance(name, Backend):
            chosen.append(name)
            continue
        try:
            chosen.append(_choose(name, policy))
        except BackendUnavailable as error:
            statuses = {status.name: status for status in backends()}
            if name.partition(":")[0] not in statuses:
                devices = (
                    each for status in statuses.values() for each in status.devices
                )
                here = ", ".join(map(str, devices))
                raise CannotCompare(f"{error}; these can run here: {here}") from error
            chosen.append(Missing(name, _one_line(str(error))))
    return list(dict.fromkeys(chosen))


def _start(
    workload: Workload, train: Examples, seed: int
) -> tuple[Params, State, Moments]:
    xp = namespace(np.zeros(()))
    shape = _shape(train)
    params, state, _ = workload.model.init(random.key(seed, xp=xp), shape, xp.float32)
    return params, state, workload.optimizer.init(params)


def _shape(examples: Examples) -> Any:
    """Return the shape of x without the batch axis."""
    return tree_map(lambda leaf: leaf.shape[1:], examples.x)


def _arrays(train: Examples, test: Examples) -> dict[str, np.ndarray]:
    named = {
        "x": train.x,
        "target": train.target,
        "x_test": test.x,
        "target_test": test.target,
    }
    return {
        path: leaf
        for name, tree in named.items()
        for path, leaf in named_leaves(tree, name)
    }


def _context(task: Task, reference: Run, chains: Chains, dtype: str) -> Context:
    """Return what all runs in `dtype` are judged by."""
    inputs = probe_inputs(task, reference, dtype)
    references = [
        Reference(task.workload, each, reference.scales[each.step - 1])
        for each in inputs
        if each.finite
    ]
    unprobed = [each.step for each in inputs if not each.finite]
    zero_gradients = _zero_gradients(references[0]) if references else set()
    return Context(dtype, reference, references, unprobed, chains, zero_gradients)


def _reference_agrees(
    task: Task,
    reference: Run,
    contexts: dict[str, Context],
    host: Backend,
    results: list[Result],
) -> bool | None:
    """Return whether NumPy in float64 agrees with the formulas; None if unimportant.

    It matters if a training leaves its tolerance as a whole, because trainings are
    compared with NumPy's. Probes are compared with the formulas.
    """
    findings = [each for r in results for each in (*r.differences, *r.not_checked)]
    if all(each.quantity not in TRAINED for each in findings):
        return None
    context = contexts.get(REFERENCE_DTYPE)
    context = context or _context(task, reference, task.chains(), REFERENCE_DTYPE)
    parts = {
        part: host.jit(function) for part, function in functions(task.workload).items()
    }
    with np.errstate(all="ignore"):
        return probes_agree(probe(host, parts, context.references), context)


def overall(results: Sequence[Result]) -> Verdict:
    """Return the worst status of all results, and the number of runs with each."""
    statuses: tuple[Status, ...] = (DIFFERS, FAILED, NOT_CHECKED, AGREES)
    counts = dict.fromkeys(statuses, 0)
    for result in results:
        counts[result.status] += 1
    worst = next(status for status, count in counts.items() if count)
    runs = {status.replace(" ", "_"): count for status, count in counts.items()}
    return Verdict(status=worst, runs=RunCounts(**runs))


def _loss_name(loss: Any) -> str:
    """Return the loss and its options as Python code."""
    if isinstance(loss, partial):
        options = ", ".join(
            f"{name}={value!r}" for name, value in loss.keywords.items()
        )
        return f"{_loss_name(loss.func)}({options})"
    return str(getattr(loss, "__name__", repr(loss)))


def _layer_roundings(chains: Chains) -> Iterator[LayerRoundings]:
    """Yield each layer with the roundings up to its outputs and up to its gradients."""
    for path, chain in chains.outputs.items():
        yield LayerRoundings(
            layer=path,
            about=chains.about[path],
            output_roundings=chain,
            gradient_roundings=chains.gradients.get(path),
        )


def _layer_costs(task: Task, dtype: str) -> tuple[LayerCost, ...]:
    """Return the memory and the operations of each layer in a training step."""
    costs = _summary(task, dtype)
    rows = costs.rows if costs else ()
    return tuple([LayerCost(**asdict(row) | {"shape": str(row.shape)}) for row in rows])


def _summary(task: Task, dtype: str) -> Summary | None:
    """Return the summary of the model; None if a custom layer needs NumPy arrays."""
    params, state, _ = cast(task.start, dtype)
    shape = _shape(task.train)
    try:
        return summarize(
            task.workload.model, params, state, shape, dtype, task.workload.batch_size
        )
    except Exception:
        return None


# --- results --------------------------------------------------------------------------


def _result(
    task: Task,
    backend: Backend | Missing,
    machine: str,
    context: Context,
    controls: Controls,
    bars: Progress,
    sizes: tuple[int, ...],
) -> Result:
    """Train on one backend, and return its result."""
    dtype = context.dtype
    name = backend.name if isinstance(backend, Missing) else str(backend)
    library, _, device = name.partition(":")
    result = Result(
        backend=library, device=device or None, machine=machine, dtype=dtype
    )
    if isinstance(backend, Missing):
        return replace(result, error=backend.reason)
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
        return _with_precision_issue(judged)
    except Exception as error:  # one backend that fails must not stop the others
        return replace(result, error=_one_line(f"{type(error).__name__}: {error}"))


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
        reason = _one_line(f"{type(error).__name__}: {error}")
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
        step = numbered_step(workload.model, workload.loss, workload.optimizer)
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


def _zero_gradients(reference: Reference) -> set[str]:
    """Return the parameters whose gradient is zero up to rounding."""
    sizes = {
        name.removeprefix("gradients."): largest(leaf)
        for name, leaf in reference.results.items()
        if name.startswith("gradients.")
    }
    top = max(sizes.values(), default=0.0)
    return {name for name, size in sizes.items() if size < ZERO_GRADIENT * top}


def _one_line(text: str) -> str:
    return " ".join(text.split())
