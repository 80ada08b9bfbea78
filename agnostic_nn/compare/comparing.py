"""Comparing: one training on every backend, and how each differs from the reference."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import random
from ..arrays import Moments, Params, State, namespace
from ..data import Examples
from ..progress import Progress, progress
from ..registry import Backend, BackendUnavailable, backends
from ..registry import backend as choose
from ..trees import leaves, named_leaves
from .deviation import Deviation, deviation, rounding_chain, tolerance
from .environment import environment
from .running import Run, Task, run, sha256
from .workloads import CannotCompare, Workload, find

__all__ = ["SCHEMA", "Missing", "compare"]

SCHEMA = 1
DTYPE, REFERENCE_DTYPE = "float32", "float64"
ONLY_BY_NAME = {
    "array_api_strict": "array_api_strict is a library for tests: name it to compare it too"
}


@dataclass(frozen=True)
class Missing:
    """A backend that was named and cannot run here."""

    name: str
    reason: str


def compare(
    workload: str | Workload,
    names: Sequence[str] | None = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    shown: bool = False,
) -> dict[str, Any]:
    """Train on each of the backends called `names`; the report, as data for JSON.

    Without names: on every device of every backend that can run here, those left out
    that are for tests. A name without a device means the backend's first. A backend that
    cannot run, or fails on the way, is a result with its error; the others still finish.

    seed: of weights, masks and the order of the data; shown: whether to draw progress bars.

    Raises
    ------
    CannotCompare
        If there is no such workload or backend, or the data are not to be had.
    """
    if isinstance(workload, str):
        workload = find(workload)
    chosen, left_out = _everything() if names is None else (_named(names), [])
    train, test = workload.read()
    epochs = workload.epochs if epochs is None else epochs
    task = Task(workload, train, test, _start(workload, train, seed), epochs, seed)
    chain = rounding_chain(task.start[0], workload.batch_size)
    epsilon = float(np.finfo(DTYPE).eps)
    allowed = partial(tolerance, epsilon, chain)

    with progress(shown) as told:
        host = choose("numpy")
        reference = run(task, host, REFERENCE_DTYPE, f"{REFERENCE_DTYPE} reference", told)
        results = [_result(task, found, reference, allowed, told) for found in chosen]
    report = {
        "schema": SCHEMA,
        "workload": {
            "name": workload.name,
            "about": workload.about,
            "model": repr(workload.model),
            "loss": getattr(workload.loss, "__name__", repr(workload.loss)),
            "optimizer": repr(workload.optimizer),
            "parameters": sum(leaf.size for leaf in leaves(task.start[0])),
            "training_examples": len(train),
            "test_examples": len(test),
            "batch_size": workload.batch_size,
            "epochs": epochs,
            "steps": task.steps,
            "seed": seed,
        },
        "start_sha256": sha256(task.start[0]),
        "reference": {
            "backend": str(host),
            "dtype": REFERENCE_DTYPE,
            "final_loss": reference.losses[-1],
            "test_accuracy": reference.accuracy,
            "losses": reference.losses,
        },
        "tolerance": {
            "formula": "4 ε √(n t)",
            "epsilon": epsilon,
            "chain": chain,
            "first_step": allowed(1),
            "last_step": allowed(task.steps),
        },
        "results": results,
        "left_out": left_out,
        "environment": environment(),
    }
    return _finite(report)


# --- what to train on -------------------------------------------------------------------


def _everything() -> tuple[list[Backend], list[dict[str, str]]]:
    """Every device that can run, and the backends left out, each with the reason."""
    chosen: list[Backend] = []
    left_out = []
    for status in backends():
        reason = status.reason or ONLY_BY_NAME.get(status.name)
        if reason:
            left_out.append({"backend": status.name, "reason": _one_line(reason)})
        else:
            chosen.extend(status.devices)
    return chosen, left_out


def _named(names: Sequence[str]) -> list[Backend | Missing]:
    """The backends called `names`; or the reason why one cannot run, each once."""
    chosen: list[Backend | Missing] = []
    for name in names:
        try:
            chosen.append(choose(name))
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
    shape = train.x.shape[1:]
    params, state, _ = workload.model.init(random.key(seed, xp=xp), shape, getattr(xp, DTYPE))
    return params, state, workload.optimizer.init(params)


# --- what came of it --------------------------------------------------------------------


def _result(
    task: Task,
    found: Backend | Missing,
    reference: Run,
    allowed: Callable[[int], float],
    told: Progress,
) -> dict[str, Any]:
    """An entry of the report's `results`."""
    if isinstance(found, Missing):
        return _entry(found.name) | {"error": found.reason}
    entry = _entry(str(found))
    try:
        entry |= {"hardware": found.hardware, "version": found.version}
        done = run(task, found, DTYPE, str(found), told)
        return entry | _speed(task, done) | _difference(task, done, reference, allowed)
    except Exception as error:  # whatever stops one backend must not stop the others
        return entry | {"error": _one_line(f"{type(error).__name__}: {error}")}


def _entry(name: str) -> dict[str, Any]:
    """An entry before there is anything to say: it has the same keys whatever comes."""
    library, _, device = name.partition(":")
    return {
        "backend": library,
        "device": device or None,
        "hardware": None,
        "version": None,
        "dtype": DTYPE,
        "verdict": "failed",
        "error": None,
        "left_tolerance": None,
        "test_accuracy": None,
        "final_loss": None,
        "steps": None,
        "first_step_ms": None,
        "step_ms": None,
        "step_ms_quartiles": None,
        "samples_per_second": None,
        "start_sha256": None,
        "max_relative_deviation": None,
        "deviations": None,
        "losses": None,
    }


def _speed(task: Task, done: Run) -> dict[str, Any]:
    """How long the steps took; the first, which compiles, apart."""
    first, *later = done.seconds
    found: dict[str, Any] = {"steps": task.steps, "first_step_ms": first * 1e3}
    if later:
        low, middle, high = np.percentile(later, [25, 50, 75]) * 1e3
        seen = task.epochs * len(task.train) - min(task.workload.batch_size, len(task.train))
        found |= {
            "step_ms": float(middle),
            "step_ms_quartiles": [float(low), float(high)],
            "samples_per_second": seen / sum(later),
        }
    return found


def _difference(
    task: Task, done: Run, reference: Run, allowed: Callable[[int], float]
) -> dict[str, Any]:
    """What the training came to, and how far from the reference."""
    outputs = deviation(done.outputs, reference.outputs, DTYPE)
    losses = deviation(np.asarray(done.losses), np.asarray(reference.losses), DTYPE)
    gradients = _deviations(done.gradients, reference.gradients)
    parameters = _deviations(done.params, reference.params)

    off = np.abs(np.subtract(done.losses, reference.losses)) / max(map(abs, reference.losses))
    last = len(done.losses)
    checked = [
        *((step, "loss", value) for step, value in enumerate(off.tolist(), 1)),
        *((1, f"gradient of {name}", found.relative) for name, found in gradients.items()),
        (last, "outputs", outputs.relative),
        *((last, f"parameter {name}", found.relative) for name, found in parameters.items()),
    ]
    # "not within" instead of "beyond": NaN is neither
    left = [(step, what) for step, what, value in checked if not value <= allowed(step)]
    if done.start != sha256(task.start[0]):
        left.append((0, "starting parameters"))
    verdict, departure = f"within tolerance over {last} steps", None
    if left:
        step, what = min(left, key=lambda found: found[0])
        verdict, departure = f"left tolerance at step {step} ({what})", {"step": step, "what": what}

    every = [outputs, *gradients.values(), *parameters.values()]
    return {
        "verdict": verdict,
        "left_tolerance": departure,
        "test_accuracy": done.accuracy,
        "final_loss": done.losses[-1],
        "start_sha256": done.start,
        "max_relative_deviation": float(np.max([found.relative for found in every])),
        "deviations": {
            "losses": asdict(losses),
            "outputs": asdict(outputs),
            "gradients": {name: asdict(found) for name, found in gradients.items()},
            "parameters": {name: asdict(found) for name, found in parameters.items()},
        },
        "losses": done.losses,
    }


def _deviations(found: Params, reference: Params) -> dict[str, Deviation]:
    pairs = zip(named_leaves(found), leaves(reference), strict=True)
    return {name: deviation(ours, theirs, DTYPE) for (name, ours), theirs in pairs}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _finite(data: Any) -> Any:
    """`data` with None for what JSON has no number for: NaN and infinity."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
