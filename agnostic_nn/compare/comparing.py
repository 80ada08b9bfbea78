"""Comparing: one training on every backend, and how each differs from the reference."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from .. import random
from ..arrays import Moments, Params, State, namespace
from ..backends import Backend, BackendUnavailable, backends
from ..backends import backend as choose
from ..checkpoint import digest
from ..data import Examples
from ..progress import Progress, progress
from ..trees import leaves, named_leaves
from .deviation import deviation, rounding_chain, tolerance
from .environment import environment
from .running import Run, Task, run
from .workloads import CannotCompare, Workload, find

__all__ = ["SCHEMA", "compare"]

SCHEMA = 1
DTYPE, REFERENCE_DTYPE = "float32", "float64"
ONLY_BY_NAME = {"array_api_strict": "a library for tests, left out unless it is named"}


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
        "start_sha256": _sha256(task.start[0]),
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


def _named(names: Sequence[str]) -> list[Backend | tuple[str, str]]:
    """The backends called `names`; one that cannot run as its name and the reason."""
    chosen: dict[Any, None] = {}  # a set that keeps its order
    for name in names:
        try:
            chosen[choose(name)] = None
        except BackendUnavailable as error:
            known = {status.name: status for status in backends()}
            if name.partition(":")[0] not in known:
                here = [str(device) for status in known.values() for device in status.devices]
                raise CannotCompare(
                    f"{error}; those that can run here: {', '.join(here)}"
                ) from error
            chosen[name, _one_line(str(error))] = None
    return list(chosen)


def _start(workload: Workload, train: Examples, seed: int) -> tuple[Params, State, Moments]:
    xp = namespace(np.zeros(()))
    shape = train.x.shape[1:]
    params, state, _ = workload.model.init(random.key(seed, xp=xp), shape, getattr(xp, DTYPE))
    return params, state, workload.optimizer.init(params)


# --- what came of it --------------------------------------------------------------------


def _result(
    task: Task,
    found: Backend | tuple[str, str],
    reference: Run,
    allowed: Callable[[int], float],
    told: Progress,
) -> dict[str, Any]:
    """An entry of the report's `results`: the same keys whether or not it went well."""
    if isinstance(found, Backend):
        name, device, reason = found.name, found.device_name, None
    else:
        name, _, device = found[0].partition(":")
        reason = found[1]
    entry: dict[str, Any] = {
        "backend": name,
        "device": device or None,
        "hardware": None,
        "version": None,
        "dtype": DTYPE,
        "steps": None,
        "first_step_ms": None,
        "step_ms": None,
        "step_ms_quartiles": None,
        "samples_per_second": None,
        "final_loss": None,
        "test_accuracy": None,
        "start_sha256": None,
        "max_relative_deviation": None,
        "deviations": None,
        "losses": None,
        "left_tolerance": None,
        "verdict": "failed",
        "error": reason,
    }
    if not isinstance(found, Backend):
        return entry
    try:
        entry |= {"hardware": found.hardware, "version": found.version}
        done = run(task, found, DTYPE, str(found), told)
    except Exception as error:  # whatever stops one backend must not stop the others
        return entry | {"error": _one_line(f"{type(error).__name__}: {error}")}
    return entry | _speed(task, done) | _difference(task, done, reference, allowed)


def _speed(task: Task, run: Run) -> dict[str, Any]:
    """How long the steps took; the first, which compiles, apart."""
    first, *later = run.seconds
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
    task: Task, run: Run, reference: Run, allowed: Callable[[int], float]
) -> dict[str, Any]:
    """What the training came to, and how far from the reference."""
    outputs = deviation(run.outputs, reference.outputs, DTYPE)
    losses = deviation(np.asarray(run.losses), np.asarray(reference.losses), DTYPE)
    gradients, parameters = (
        {
            name: deviation(ours, theirs, DTYPE)
            for (name, ours), theirs in zip(named_leaves(found), leaves(expected), strict=True)
        }
        for found, expected in (
            (run.gradients, reference.gradients),
            (run.params, reference.params),
        )
    )

    scale = max(map(abs, reference.losses))
    off = np.abs(np.asarray(run.losses) - np.asarray(reference.losses)) / scale
    last = len(off)
    checked = [
        *((step, "loss", value) for step, value in enumerate(off.tolist(), 1)),
        *((1, f"gradient of {name}", found.relative) for name, found in gradients.items()),
        (last, "outputs", outputs.relative),
        *((last, f"parameter {name}", found.relative) for name, found in parameters.items()),
    ]
    left = [
        (step, what)
        for step, what, value in checked
        if not value <= allowed(step)  # NaN is beyond every tolerance
    ]
    sha256 = _sha256(run.start)
    if sha256 != _sha256(task.start[0]):
        left.append((0, "starting parameters"))
    verdict = f"within tolerance over {last} steps"
    step, what = min(left, key=lambda found: found[0], default=(None, None))
    if left:
        verdict = f"left tolerance at step {step} ({what})"

    relative = [outputs.relative] + [
        d.relative for d in (*gradients.values(), *parameters.values())
    ]
    return {
        "final_loss": run.losses[-1],
        "test_accuracy": run.accuracy,
        "start_sha256": sha256,
        "max_relative_deviation": float(np.max(relative)),
        "deviations": {
            "outputs": asdict(outputs),
            "losses": asdict(losses),
            "gradients": {name: asdict(found) for name, found in gradients.items()},
            "parameters": {name: asdict(found) for name, found in parameters.items()},
        },
        "losses": run.losses,
        "left_tolerance": {"step": step, "what": what} if left else None,
        "verdict": verdict,
    }


def _sha256(params: Params) -> str:
    return digest(dict(named_leaves(params)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _finite(data: Any) -> Any:
    """`data` with None for what JSON has no number for: NaN and infinity."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
