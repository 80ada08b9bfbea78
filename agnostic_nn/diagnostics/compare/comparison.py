"""Run one training on every backend, and report how each differs from the reference."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...core import random
from ...core.arrays import Moments, Params, State, namespace
from ...core.backend import Backend
from ...core.backend import backend as choose
from ...core.errors import described, expect_list
from ...core.trees import leaves, named_leaves, tree_map
from ...losses.base import describe_loss, expect_context, takes_weights
from ...training.batches import Examples
from ...training.checkpoint import digest
from ...training.inputs import as_integer
from ...training.progress import progress
from .choice import runs_to_make
from .controls import Controls
from .conversion import finite
from .drift import largest
from .environment import environment
from .probes import Reference, functions, probe
from .report import Comparison
from .results import layer_costs, result_of
from .rounding import Chains
from .running import (
    REFERENCE_DTYPE,
    SIZES,
    Run,
    Task,
    probe_inputs,
    run_reference,
    sha256,
)
from .schema import (
    TRAINED,
    LayerRoundings,
    Machine,
    ReferenceRun,
    Result,
    RunCounts,
    Status,
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
    divergence,
    probes_agree,
)
from .workloads import CannotCompare, Workload, find

__all__ = ["overall", "run_comparison"]

DTYPES = ("float32", "float64")
# A gradient below this share of the largest one is taken for zero: float64 leaves such
# values where the exact gradient is 0.
ZERO_GRADIENT = 2.0**-42


def run_comparison(
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
        the loss takes a context and the workload has none.
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
    try:
        expect_context(workload.loss, workload.context)
    except (TypeError, ValueError) as error:
        raise CannotCompare(str(error)) from error
    here = environment()
    machine = here.processor
    policy = precision, deterministic
    pairs, left_out = runs_to_make(names, unique_dtypes, policy, machine)
    train, test = workload.read()
    _expect_weights_if_needed(workload, len(train))
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
            result_of(
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
            data_sha256=digest(_arrays(workload, train, test)),
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
        layer_costs=layer_costs(task, unique_dtypes[0]),
        results=tuple(results),
        left_out=tuple(left_out),
        machines=(Machine(label=machine, environment=here),),
        differences=(),
    )
    return finite(report)


def _expect_weights_if_needed(workload: Workload, count: int) -> None:
    """Raise CannotCompare if a batch needs padding, and the loss takes no weights."""
    size = workload.batch_size
    if count % size and not takes_weights(workload.loss):
        raise CannotCompare(
            f"the last of the batches of {size} has {count % size} of {count} training "
            f"examples, and needs weights to be padded, which "
            f"{describe_loss(workload.loss)} does not take: give it a third parameter, "
            f"weights=None, or choose a batch size that divides {count}"
        )


def _start(
    workload: Workload, train: Examples, seed: int
) -> tuple[Params, State, Moments]:
    xp = namespace(np.zeros(()))
    shape = tree_map(lambda leaf: leaf.shape[1:], train.x)
    params, state, _ = workload.model.init(random.key(seed, xp=xp), shape, xp.float32)
    return params, state, workload.optimizer.init(params)


def _arrays(
    workload: Workload, train: Examples, test: Examples
) -> dict[str, np.ndarray]:
    named = {
        "x": train.x,
        "target": train.target,
        "x_test": test.x,
        "target_test": test.target,
    }
    if workload.context is not None:
        named["context"] = workload.context
    if train.weights is not None:
        named["weights"] = train.weights
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


def _zero_gradients(reference: Reference) -> set[str]:
    """Return the parameters whose gradient is zero up to rounding."""
    sizes = {
        name.removeprefix("gradients."): largest(leaf)
        for name, leaf in reference.results.items()
        if name.startswith("gradients.")
    }
    top = max(sizes.values(), default=0.0)
    return {name for name, size in sizes.items() if size < ZERO_GRADIENT * top}
