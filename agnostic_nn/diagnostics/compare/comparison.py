"""Comparing: one training on every backend, and how each differs from the reference."""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
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
from .drift import largest
from .environment import environment
from .page import Comparison
from .probes import Reference, functions, numbered_step, probe
from .report import TRAINED
from .rounding import Chains
from .running import SIZES, Run, Task, cast, given, run, run_reference, sha256
from .verdicts import (
    AGREES,
    DIFFERS,
    FAILED,
    NOT_JUDGED,
    Context,
    Judgement,
    divergence,
    judge,
    probes_agree,
)
from .workloads import CannotCompare, Workload, find

__all__ = ["LATER", "SCHEMA", "Missing", "amber", "compare", "overall"]

SCHEMA = 3
DTYPES, REFERENCE_DTYPE = ("float32", "float64"), "float64"
# of the largest gradient: what is below was 0 and is rounding in float64
NOTHING = 2.0**-42
_SETTINGS = ("has_float64", "precision", "deterministic")
LATER = ("probe", "shortfall")  # fields of a result that came to be within the schema
ONLY_BY_NAME = {
    "array_api_strict": "array_api_strict is a library for tests: name it to compare it too"
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
    shown: bool = False,
) -> dict[str, Any]:
    """Train on each of the backends called `names`; the report, as data for JSON.

    Without names: on every device of every backend that can run here, those left out
    that are for tests. A name without a device means the backend's first. A backend that
    cannot run, or fails on the way, is a result with its error; the others still finish.

    precision, deterministic: of all that are given by name, as `nn.backend` takes them. A
    `Backend` keeps its own, so that one that is strict and one that is fast can stand side by
    side. Each is probed after it has trained in float32: where that is less than what its
    precision promises, the report says so.

    dtypes: to train in, one after the other, "float64" where the device has it; sizes: of
    batches whose steps are timed besides; seed: of weights, masks and the order of the data;
    shown: whether to draw progress bars.

    Raises
    ------
    CannotCompare
        If there is no such workload, backend or dtype, the data are not available, or the loss
        takes a context.
    """
    if isinstance(workload, str):
        workload = find(workload)
    if not isinstance(workload, Workload):
        raise TypeError(f"expected a workload or its name, got {described(workload)}")
    expect_list("names", [] if names is None else names)
    expect_list("dtypes", dtypes)
    expect_list("sizes", sizes)
    asked = list(dict.fromkeys(dtypes))
    if not asked or set(asked) - set(DTYPES):
        given = ", ".join(map(str, asked))
        raise CannotCompare(f"dtypes are of {' and '.join(DTYPES)}, got {given}")
    sizes = [as_integer("each of sizes", size) for size in sizes]
    epochs = None if epochs is None else as_integer("epochs", epochs)
    seed = as_integer("seed", seed, 0)
    if takes_keyword(workload.loss, "context"):
        raise CannotCompare(no_context(workload.loss, "compare"))
    pairs, left_out = _pairs(names, asked, (precision, deterministic))
    train, test = workload.read()
    epochs = workload.epochs if epochs is None else epochs
    task = Task(workload, train, test, _start(workload, train, seed), epochs, seed)
    chains = task.chains()

    here = environment()
    with progress(shown) as told:
        host = choose("numpy")
        title = f"{REFERENCE_DTYPE} reference"
        reference = run_reference(task, host, REFERENCE_DTYPE, title, told)
        contexts = {dtype: _context(task, reference, chains, dtype) for _, dtype in pairs}
        controls = Controls(task, told, host)
        results = [
            _result(task, found, contexts[dtype], controls, told, tuple(sizes))
            for found, dtype in pairs
        ]
    machine = here["processor"]
    report = {
        "schema": SCHEMA,
        "verdict": overall(results),
        "workload": {
            "name": workload.name,
            "about": workload.about,
            "model": repr(workload.model),
            "loss": _loss_of(workload.loss),
            "optimizer": repr(workload.optimizer),
            "metric": workload.measured,
            "parameters": sum(leaf.size for leaf in leaves(task.start[0])),
            "training_examples": len(train),
            "test_examples": len(test),
            "data_sha256": digest(_arrays(train, test)),
            "batch_size": workload.batch_size,
            "epochs": epochs,
            "steps": task.steps,
            "seed": seed,
            "options": list(workload.options),
        },
        "start_sha256": sha256(task.start[0]),
        "reference": {
            "backend": str(host),
            "dtype": REFERENCE_DTYPE,
            "final_loss": reference.losses[-1],
            "test_metric": reference.metric,
            "losses": reference.losses,
            "scales": reference.scales,
            "agrees": _reference_agrees(task, reference, contexts, host, results),
            "diverges": divergence(reference.losses, reference.scales) or None,
        },
        "tolerance": {
            "formula": "4 ε √n",
            "epsilon": {dtype: float(np.finfo(dtype).eps) for dtype in asked},
            "step": chains.step,
            "layers": list(_layers(chains)),
            "predictions": chains.predictions,
            "nothing": sorted(set().union(*(each.nothing for each in contexts.values()))),
        },
        "ledger": _ledger(task, asked[0]),
        "results": [result | {"machine": machine} for result in results],
        "left_out": [each | {"machine": machine} for each in left_out],
        "machines": [{"label": machine, "environment": here}],
        "differences": [],
    }
    return Comparison(_finite(report))


# --- what to train on -------------------------------------------------------------------


def _pairs(
    names: Sequence[str | Backend] | None, dtypes: list[str], policy: Policy
) -> tuple[list[tuple[Backend | Missing, str]], list[dict[str, str]]]:
    """Each backend with each dtype that it has, and what is left out, with the reason."""
    chosen: Sequence[Backend | Missing]
    chosen, left_out = _everything(policy) if names is None else (_named(names, policy), [])
    pairs: list[tuple[Backend | Missing, str]] = []
    lacking: list[tuple[Backend | Missing, str]] = []
    for found in chosen:
        for dtype in dtypes:
            if dtype == REFERENCE_DTYPE and isinstance(found, Backend) and not found.has_float64:
                reason = found.lacks_float64
                left_out.append({"backend": found.name, "reason": reason})
                lacking.append((Missing(str(found), reason), dtype))
            else:
                pairs.append((found, dtype))
    if not pairs:
        reasons = "; ".join(each["reason"] for each in left_out)
        raise CannotCompare(f"nothing is left to compare: {reasons}")
    if names is not None and dtypes == [REFERENCE_DTYPE]:  # those were named, and do not run at all
        return pairs + lacking, []
    return pairs, left_out


def _everything(policy: Policy) -> tuple[list[Backend], list[dict[str, str]]]:
    """Every device that can run, and the backends left out, each with the reason."""
    chosen: list[Backend] = []
    left_out = []
    for status in backends():
        reason = status.reason or ONLY_BY_NAME.get(status.name)
        reasons = [reason] if reason else []
        for one in () if reason else status.devices:
            try:
                chosen.append(_chosen(str(one), policy))
            except BackendUnavailable as error:  # it can run, but not so
                reasons.append(str(error))
        left_out += [{"backend": status.name, "reason": _one_line(each)} for each in reasons]
    return chosen, left_out


def _chosen(name: str, policy: Policy) -> Backend:
    precision, deterministic = policy
    return choose(name, precision=precision, deterministic=deterministic)


def _named(names: Sequence[str | Backend], policy: Policy) -> list[Backend | Missing]:
    """The backends called `names`; or the reason why one cannot run, each once."""
    chosen: list[Backend | Missing] = []
    for name in names:
        if isinstance(name, Backend):
            chosen.append(name)
            continue
        try:
            chosen.append(_chosen(name, policy))
        except BackendUnavailable as error:
            known = {status.name: status for status in backends()}
            if name.partition(":")[0] not in known:
                here = [str(device) for status in known.values() for device in status.devices]
                raise CannotCompare(
                    f"{error}; those that can run here: {', '.join(here)}"
                ) from error
            chosen.append(Missing(name, _one_line(str(error))))
    return list(dict.fromkeys(chosen))


def _start(workload: Workload, train: Examples, seed: int) -> tuple[Params, State, Moments]:
    xp = namespace(np.zeros(()))
    shape = _shape(train)
    params, state, _ = workload.model.init(random.key(seed, xp=xp), shape, xp.float32)
    return params, state, workload.optimizer.init(params)


def _shape(examples: Examples) -> Any:
    """The shape of x without the axis of examples."""
    return tree_map(lambda leaf: leaf.shape[1:], examples.x)


def _arrays(train: Examples, test: Examples) -> dict[str, np.ndarray]:
    named = {"x": train.x, "target": train.target, "x_test": test.x, "target_test": test.target}
    return {path: leaf for name, tree in named.items() for path, leaf in named_leaves(tree, name)}


def _context(task: Task, reference: Run, chains: Chains, dtype: str) -> Context:
    """What runs in `dtype` are judged by."""
    every = given(task, reference, dtype)
    references = [
        Reference(task.workload, one, reference.scales[one.step - 1]) for one in every if one.finite
    ]
    unprobed = [one.step for one in every if not one.finite]
    nothing = _nothing(references[0]) if references else set()
    return Context(dtype, reference, references, unprobed, chains, nothing)


def _reference_agrees(
    task: Task,
    reference: Run,
    contexts: dict[str, Context],
    host: Backend,
    results: list[dict[str, Any]],
) -> bool | None:
    """Whether NumPy in float64 agrees with the formulas; None if it was not needed.

    It is where a training leaves its tolerance as a whole, since it is held to NumPy's.
    """
    left = [each for r in results for each in (*r["differences"], *r["not_judged"])]
    if all(each["quantity"] not in TRAINED for each in left):
        return None
    context = contexts.get(REFERENCE_DTYPE)
    context = context or _context(task, reference, task.chains(), REFERENCE_DTYPE)
    parts = {part: host.jit(function) for part, function in functions(task.workload).items()}
    with np.errstate(all="ignore"):
        return probes_agree(probe(host, parts, context.references), context)


def overall(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst verdict of all, and how many runs have which."""
    counts = dict.fromkeys((DIFFERS, FAILED, NOT_JUDGED, AGREES), 0)
    for result in results:
        counts[result["status"]] += 1
    worst = next(status for status, count in counts.items() if count)
    return {"status": worst, "runs": {s.replace(" ", "_"): n for s, n in counts.items()}}


def _loss_of(loss: Any) -> str:
    """The loss and its options, as one would write it."""
    if isinstance(loss, partial):
        options = ", ".join(f"{name}={value!r}" for name, value in loss.keywords.items())
        return f"{_loss_of(loss.func)}({options})"
    return getattr(loss, "__name__", repr(loss))


def _layers(chains: Chains) -> Iterator[dict[str, Any]]:
    """Each layer that was met, and the roundings before its outputs and its gradients."""
    for path, chain in chains.outputs.items():
        entry = {"layer": path, "about": chains.about[path], "outputs": chain}
        yield entry | {"gradients": chains.gradients.get(path)}


def _ledger(task: Task, dtype: str) -> list[dict[str, Any]]:
    """Each layer, and what a step of training holds and asks for in it."""
    told = _summary(task, dtype)
    return [asdict(row) | {"shape": str(row.shape)} for row in told.rows] if told else []


def _summary(task: Task, dtype: str) -> Summary | None:
    """Of the model with a batch; a stranger's layer may take no arrays but NumPy's."""
    (params, state, _), shape = cast(task.start, dtype), _shape(task.train)
    try:
        return summarize(task.workload.model, params, state, shape, dtype, task.workload.batch_size)
    except Exception:
        return None


# --- what came of it --------------------------------------------------------------------


def _result(
    task: Task,
    found: Backend | Missing,
    context: Context,
    controls: Controls,
    told: Progress,
    sizes: tuple[int, ...],
) -> dict[str, Any]:
    """An entry of the report's `results`."""
    dtype = context.dtype
    if isinstance(found, Missing):
        return _entry(found.name, dtype) | {"error": found.reason}
    entry = _entry(str(found), dtype)
    try:
        entry |= {"hardware": found.hardware, "version": found.version}
        entry |= {key: getattr(found, key, None) for key in _SETTINGS}
        title = str(found) if dtype == "float32" else f"{found} {dtype}"
        done = run(task, found, dtype, title, told, sizes, context.references)
        controls.keep(found, dtype, done)
        entry |= _speed(task, done) | {"memory": _memory(task, dtype, done)}
        entry |= _probed(found) if dtype == "float32" else {}  # last: it takes memory too
        return amber(entry | _judged(task, found, done, context, controls))
    except Exception as error:  # whatever stops one backend must not stop the others
        return entry | {"error": _one_line(f"{type(error).__name__}: {error}")}


def amber(result: dict[str, Any]) -> dict[str, Any]:
    """The result, not judged instead of in agreement if its precision is not as was asked for."""
    if result["status"] != AGREES or not result["shortfall"]:
        return result
    verdict = f"{result['verdict']}, but is not shown to be {result['precision']}"
    return result | {"status": NOT_JUDGED, "verdict": verdict}


def _entry(name: str, dtype: str) -> dict[str, Any]:
    """An entry before there is anything to say: it has the same keys whatever comes."""
    library, _, device = name.partition(":")
    return {
        "backend": library,
        "device": device or None,
        "machine": None,
        "hardware": None,
        "version": None,
        "dtype": dtype,
        **dict.fromkeys((*_SETTINGS, *LATER)),
        "status": FAILED,
        "verdict": "failed",
        "error": None,
        "first_difference": None,
        "differences": [],
        "not_judged": [],
        "control": None,
        "command": None,
        "test_metric": None,
        "final_loss": None,
        "steps": None,
        "first_step_ms": None,
        "step_ms": None,
        "step_ms_quartiles": None,
        "samples_per_second": None,
        "batches": None,
        "memory": None,
        "start_sha256": None,
        "max_relative_deviation": None,
        "tolerance": None,
        "deviations": None,
        "loss_deviations": None,
        "losses": None,
    }


def _probed(found: Backend) -> dict[str, Any]:
    """In which formats products are taken, and what is missing for the precision asked for."""
    try:
        probe = policies.probe(found)
    except Exception as error:  # what cannot be proven takes no result away
        reason = _one_line(f"{type(error).__name__}: {error}")
        return {"shortfall": f"{found.precision}, but no probe of it can be made: {reason}"}
    less = policies.reduced_formats(probe) if found.precision == "strict" else ""
    said = f"strict, but multiplies in {less}" if less else None
    return {"probe": probe, "shortfall": said}


def _speed(task: Task, done: Run) -> dict[str, Any]:
    """How long the steps took; the first, which compiles, apart."""
    first, *later = done.seconds
    found: dict[str, Any] = {"steps": task.steps, "first_step_ms": first * 1e3}
    sizes = dict(done.sizes)
    if later:
        low, middle, high = np.percentile(later, [25, 50, 75]) * 1e3
        seen = task.epochs * len(task.train) - min(task.workload.batch_size, len(task.train))
        found |= {
            "step_ms": float(middle),
            "step_ms_quartiles": [float(low), float(high)],
            "samples_per_second": seen / sum(later),
        }
        if sizes:
            sizes[task.workload.batch_size] = float(middle) / 1e3
    batches = [{"size": size, "step_ms": sizes[size] * 1e3} for size in sorted(sizes)]
    return found | {"batches": batches}


def _memory(task: Task, dtype: str, done: Run) -> dict[str, Any]:
    """Bytes: what the device says it had in use at most, and what a step has to hold."""
    start, work = cast(task.start, dtype), task.workload
    held: dict[str, int | None] = {
        name: sum(leaf.nbytes for leaf in leaves(tree))
        for name, tree in zip(("parameters", "state", "moments"), start, strict=True)
    }
    told, predicted = _summary(task, dtype), None
    held["kept_for_backward"] = told.bytes_kept if told else None
    if told:
        step = numbered_step(work.model, work.loss, work.optimizer)
        with suppress(Exception):  # as above, of a stranger's loss
            predicted = peak_of(step, start, *next(task.batches(dtype)))
    return {"peak": done.peak, "predicted": predicted, **held}


def _judged(
    task: Task, found: Backend, done: Run, context: Context, controls: Controls
) -> dict[str, Any]:
    """What the training came to, how far it is from the reference, and the verdict."""
    dtype, last = context.dtype, len(done.losses)
    expected = sha256(cast(task.start[0], dtype))
    exact = done.start == expected
    judgement = judge(done, context, exact, found, lambda: controls.of(context, found))
    first = next(iter(judgement.differences), None)
    deviations: dict[str, Any] = dict(judgement.deviations)
    deviations |= {part: deviations[part].get("") for part in ("losses", "loss")}
    groups = [each for group in judgement.deviations.values() for each in group.values()]
    every = [each["relative"] for each in groups if each["tolerance"] is not None]
    chains = context.chains
    return {
        "status": judgement.status,
        "verdict": _verdict(judgement, last),
        "first_difference": first,
        "differences": judgement.differences,
        "not_judged": judgement.not_judged,
        "control": judgement.control,
        "command": _command(task, found, judgement, dtype),
        "test_metric": done.metric,
        "final_loss": done.losses[-1],
        "start_sha256": sha256(task.start[0]) if exact else done.start,
        "max_relative_deviation": float(np.max(every)) if every else None,
        "tolerance": {
            "first_step": context.allowed(chains.step),
            "last_step": context.allowed(chains.step * last),
        },
        "deviations": deviations,
        "loss_deviations": judgement.loss_deviations,
        "losses": done.losses,
    }


def _verdict(judgement: Judgement, last: int) -> str:
    """The verdict in words."""
    if judgement.differences:
        first = judgement.differences[0]
        since = f"from step {first['step']}" if first["step"] else "from the start"
        return f"differs by more than rounding {since}, first in {first['what']}"
    if not judgement.not_judged:
        return f"agrees over {last:,} steps"
    unknown = [each["step"] for each in judgement.not_judged if each["quantity"] == "losses"]
    if not unknown:
        return "agrees in all that can be judged"
    if unknown[0] == 1:
        return "cannot be judged as a whole training"
    return f"agrees up to step {unknown[0] - 1:,}; cannot be judged beyond"


def _command(task: Task, found: Backend, judgement: Judgement, dtype: str) -> str | None:
    """The command line that looks into the step in question; None without one that can."""
    options = task.workload.options
    steps = [each["step"] for each in judgement.differences]
    steps = steps or [e["step"] for e in judgement.not_judged if e["quantity"] == "losses"]
    if not options or not steps:
        return None
    taken = max(1, steps[0]) - 1
    words = ["agnostic-nn", "bisect", _side(found, dtype), *options, "--steps", str(taken)]
    words += ["--seed", str(task.seed)] if task.seed else []
    return shlex.join(words)


def _side(found: Backend, dtype: str) -> str:
    """A backend with its dtype and policy, as `bisect` takes it."""
    words = [str(found)]
    words += [dtype] if dtype != "float32" else []
    words += [found.precision] if found.precision != "strict" else []
    words += ["deterministic"] if found.deterministic else []
    return "@".join(words)


def _nothing(reference: Reference) -> set[str]:
    """The parameters whose gradient is 0 but for rounding: there is nothing to compare."""
    size = {
        name.removeprefix("gradients."): largest(leaf)
        for name, leaf in reference.results.items()
        if name.startswith("gradients.")
    }
    top = max(size.values(), default=0.0)
    return {name for name, value in size.items() if value < NOTHING * top}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _finite(data: Any) -> Any:
    """`data` with None for what JSON has no number for: NaN and infinity."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
