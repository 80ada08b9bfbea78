"""Run one training on every backend, and report how each differs from the reference."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from ...core.backend import Backend
from ...core.backend import backend as choose
from ...core.precisions import HALVES, epsilon
from ...core.trees import leaves, named_leaves
from ...training.batches import Examples
from ...training.checkpoint import digest
from .choice import title_of
from .controls import Controls
from .conversion import finite
from .drift import largest
from .plan import Plan, prepare
from .probes import Reference, functions, probe, stored
from .report import Comparison
from .results import layer_costs, result_of
from .rounding import Chains
from .run_progress import RunProgress, run_progress
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
    LayerCost,
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
from .workloads import Workload

__all__ = ["Execution", "overall", "run_comparison", "workload_info"]

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
    repeat: int = 1,
    skip_missing: bool = False,
    show_progress: bool = False,
) -> Comparison:
    """Train on each of the backends called `names`, and return a report.

    A named backend that cannot run here is refused before anything trains. A backend
    that fails during training becomes a result with its error; the others still finish.

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
        The dtypes to train in, in this order. A named backend without one of them is
        refused; without `names`, a device does not train in a dtype that it lacks. In
        "bfloat16" and "float16" the model is trained in a `MixedPrecision`, and in
        float32 first.
    epochs
        Passes over the data; by default the workload's.
    seed
        Determines weights, masks and the order of the data.
    sizes
        Further batch sizes whose steps are timed.
    repeat
        How often each backend trains from the same start. The bits of all runs are
        compared; the report says whether the backend repeats its own bits, and if not,
        which part of a step does not.
    skip_missing
        If True, a named backend that cannot run here, or does not have one of the
        dtypes, is left out and the others are compared.
    show_progress
        If True, show which run it is and how long it takes, on the error stream.

    Raises
    ------
    CannotCompare
        If the workload, a backend or a dtype is unknown, a named backend cannot run
        here or does not have a dtype (the message lists all of them), the data are not
        available, or the loss takes a context and the workload has none.
    """
    plan = prepare(
        workload,
        names,
        precision=precision,
        deterministic=deterministic,
        dtypes=dtypes,
        epochs=epochs,
        seed=seed,
        sizes=sizes,
        repeat=repeat,
        skip_missing=skip_missing,
    )
    execution = Execution(plan)
    with run_progress(show_progress) as progress:
        for _ in execution.steps(progress):
            pass
    return execution.report()


class Execution:
    """The execution of a plan: its reference and the results so far.

    reference: None until it is trained; results: of the first runs of the plan, in
    their order.
    """

    def __init__(
        self, plan: Plan, reference: Run | None = None, results: Iterable[Result] = ()
    ) -> None:
        self.plan = plan
        self.reference = reference
        self.results: list[Result] = list(results)
        self._host = choose("numpy")
        self._contexts: dict[str, Context] = {}

    def steps(self, progress: RunProgress) -> Iterator[None]:
        """Train the reference and make each run; yield after each of them."""
        task = self.plan.task
        host = self._host
        runs = self.plan.runs
        if self.reference is None:
            progress.begin_reference(f"{host} {REFERENCE_DTYPE}", len(runs))
            self.reference = run_reference(task, host, REFERENCE_DTYPE, "", progress)
            progress.end_reference()
            yield
        controls = Controls(task, progress, host)
        for number in range(len(self.results), len(runs)):
            backend, dtype = runs[number]
            progress.begin_run(number + 1, len(runs), title_of(runs[number]))
            result = result_of(
                *(task, backend, self._machine, self._context(dtype), controls),
                *(progress, self.plan.sizes, self.plan.repeat, self.results),
            )
            self.results.append(result)
            progress.end_run(result.status)
            yield

    @property
    def _machine(self) -> str:
        """The label of this machine."""
        return self.plan.environment.processor

    @cached_property
    def _chains(self) -> Chains:
        return self.plan.task.chains()

    @cached_property
    def _layer_costs(self) -> tuple[LayerCost, ...]:
        return layer_costs(self.plan.task, self.plan.dtypes[0])

    def _context(self, dtype: str) -> Context:
        """Return what all runs in `dtype` are judged by."""
        assert self.reference is not None
        if dtype not in self._contexts:
            self._contexts[dtype] = _context(
                self.plan.task, self.reference, self._chains, dtype
            )
        return self._contexts[dtype]

    def report(self) -> Comparison:
        """Return the report on the results so far, once the reference is trained."""
        task = self.plan.task
        reference = self.reference
        assert reference is not None
        contexts = {dtype: self._context(dtype) for dtype in self.plan.dtypes}
        zero_gradients = {
            name for each in contexts.values() for name in each.zero_gradients
        }
        chains = self._chains
        report = Comparison(
            verdict=overall(self.results),
            workload=workload_info(task),
            unfinished=tuple(map(title_of, self.plan.runs[len(self.results) :])),
            start_sha256=sha256(task.start[0]),
            reference=ReferenceRun(
                backend=str(self._host),
                dtype=REFERENCE_DTYPE,
                final_loss=reference.losses[-1],
                test_metric=reference.metric,
                losses=tuple(reference.losses),
                scales=tuple(reference.scales),
                agrees=_reference_agrees(
                    task, reference, contexts, self._host, self.results
                ),
                diverges=divergence(reference.losses, reference.scales) or None,
            ),
            tolerance=Tolerance(
                formula="4 ε √n",
                epsilon={
                    dtype: epsilon(dtype)
                    for dtype in self.plan.dtypes
                    if dtype not in HALVES
                },
                step_roundings=chains.step,
                prediction_roundings=chains.predictions,
                layers=tuple(_layer_roundings(chains)),
                zero_gradients=tuple(sorted(zero_gradients)),
            ),
            layer_costs=self._layer_costs,
            results=tuple(self.results),
            left_out=self.plan.left_out,
            machines=(Machine(label=self._machine, environment=self.plan.environment),),
            differences=(),
        )
        return finite(report)


def workload_info(task: Task) -> WorkloadInfo:
    """Return the description of a training in the report."""
    workload = task.workload
    return WorkloadInfo(
        name=workload.name,
        about=workload.about,
        model=_without_address(workload.model),
        loss=_loss_name(workload.loss),
        optimizer=_without_address(workload.optimizer),
        metric=workload.measured,
        parameters=sum(leaf.size for leaf in leaves(task.start[0])),
        training_examples=len(task.train),
        test_examples=len(task.test),
        data_sha256=digest(_arrays(workload, task.train, task.test)),
        batch_size=workload.batch_size,
        epochs=task.epochs,
        steps=task.steps,
        seed=task.seed,
        options=tuple(workload.options),
    )


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
    inputs = probe_inputs(task, reference, stored(dtype))
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
    """Return the worst status of all results, and the number of runs with each.

    Without any result the status is "not checked".
    """
    statuses: tuple[Status, ...] = (DIFFERS, FAILED, NOT_CHECKED, AGREES)
    counts = dict.fromkeys(statuses, 0)
    for result in results:
        counts[result.status] += 1
    worst = next((each for each in statuses if counts[each]), statuses[2])
    runs = {status.replace(" ", "_"): count for status, count in counts.items()}
    return Verdict(status=worst, runs=RunCounts(**runs))


def _loss_name(loss: Any) -> str:
    """Return the loss and its options as Python code."""
    if isinstance(loss, partial):
        options = ", ".join(
            f"{name}={value!r}" for name, value in loss.keywords.items()
        )
        return f"{_loss_name(loss.func)}({options})"
    return str(getattr(loss, "__name__", _without_address(loss)))


def _without_address(thing: Any) -> str:
    """Return the repr of an object, without addresses, which differ in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


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
