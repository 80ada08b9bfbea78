"""Comparing: one training on every backend, and how each differs from the reference."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import policies, random
from ..arrays import Moments, Params, State, namespace
from ..ledger import peak_of
from ..registry import Backend, BackendUnavailable, backends
from ..registry import backend as choose
from ..summary import Summary, summarize
from ..training import make_step
from ..training.checkpoint import digest
from ..training.data import Examples
from ..training.progress import Progress, progress
from ..trees import leaves, named_leaves
from .deviation import Deviation, deviation, tolerance
from .environment import environment
from .page import Comparison
from .roundings import Chains, layer_of
from .running import SIZES, Run, Task, cast, run, sha256
from .workloads import CannotCompare, Workload, find

__all__ = ["LATER", "SCHEMA", "Missing", "compare"]

SCHEMA = 2
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
        If there is no such workload, backend or dtype, or the data are not to be had.
    """
    if isinstance(workload, str):
        workload = find(workload)
    asked = list(dict.fromkeys(dtypes))
    if not asked or set(asked) - set(DTYPES):
        raise CannotCompare(f"dtypes are of {' and '.join(DTYPES)}, got {', '.join(asked)}")
    pairs, left_out = _pairs(names, asked, (precision, deterministic))
    train, test = workload.read()
    epochs = workload.epochs if epochs is None else epochs
    task = Task(workload, train, test, _start(workload, train, seed), epochs, seed)
    chains = task.chains()

    here = environment()
    with progress(shown) as told:
        host = choose("numpy")
        reference = run(task, host, REFERENCE_DTYPE, f"{REFERENCE_DTYPE} reference", told)
        results = [
            _result(task, found, dtype, reference, chains, told, tuple(sizes))
            for found, dtype in pairs
        ]
    machine = here["processor"]
    report = {
        "schema": SCHEMA,
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
        },
        "start_sha256": sha256(task.start[0]),
        "reference": {
            "backend": str(host),
            "dtype": REFERENCE_DTYPE,
            "final_loss": reference.losses[-1],
            "test_metric": reference.metric,
            "losses": reference.losses,
        },
        "tolerance": {
            "formula": "4 ε √n",
            "epsilon": {dtype: float(np.finfo(dtype).eps) for dtype in asked},
            "step": chains.step,
            "layers": list(_layers(chains)),
            "nothing": sorted(_nothing(reference)),
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
    pairs = []
    for found in chosen:
        for dtype in dtypes:
            if dtype == REFERENCE_DTYPE and isinstance(found, Backend) and not found.has_float64:
                reason = f"{found} has no float64 as it is set up now"
                left_out.append({"backend": found.name, "reason": reason})
            else:
                pairs.append((found, dtype))
    if not pairs:
        reasons = "; ".join(each["reason"] for each in left_out)
        raise CannotCompare(f"nothing is left to compare: {reasons}")
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
    shape = train.x.shape[1:]
    params, state, _ = workload.model.init(random.key(seed, xp=xp), shape, xp.float32)
    return params, state, workload.optimizer.init(params)


def _arrays(train: Examples, test: Examples) -> dict[str, np.ndarray]:
    return {"x": train.x, "target": train.target, "x_test": test.x, "target_test": test.target}


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
    (params, state, _), shape = cast(task.start, dtype), task.train.x.shape[1:]
    try:
        return summarize(task.workload.model, params, state, shape, dtype, task.workload.batch_size)
    except Exception:
        return None


# --- what came of it --------------------------------------------------------------------


def _result(
    task: Task,
    found: Backend | Missing,
    dtype: str,
    reference: Run,
    chains: Chains,
    told: Progress,
    sizes: tuple[int, ...],
) -> dict[str, Any]:
    """An entry of the report's `results`."""
    if isinstance(found, Missing):
        return _entry(found.name, dtype) | {"error": found.reason}
    entry = _entry(str(found), dtype)
    try:
        entry |= {"hardware": found.hardware, "version": found.version}
        entry |= {key: getattr(found, key, None) for key in _SETTINGS}
        title = str(found) if dtype == "float32" else f"{found} {dtype}"
        done = run(task, found, dtype, title, told, sizes)
        entry |= _speed(task, done) | {"memory": _memory(task, dtype, done)}
        entry |= _probed(found) if dtype == "float32" else {}  # last: it takes memory too
        return entry | _difference(task, dtype, done, reference, chains)
    except Exception as error:  # whatever stops one backend must not stop the others
        return entry | {"error": _one_line(f"{type(error).__name__}: {error}")}


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
        "verdict": "failed",
        "error": None,
        "left_tolerance": None,
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
    less = policies.less(probe) if found.precision == "strict" else ""
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
        step = make_step(work.model, work.loss, work.optimizer)
        with suppress(Exception):  # as above, of a stranger's loss
            predicted = peak_of(step, start, *next(task.batches(dtype)))
    return {"peak": done.peak, "predicted": predicted, **held}


def _difference(
    task: Task, dtype: str, done: Run, reference: Run, chains: Chains
) -> dict[str, Any]:
    """What the training came to, and how far from the reference."""
    epsilon, last = float(np.finfo(dtype).eps), len(done.losses)

    def allowed(chain: int) -> float:
        return tolerance(epsilon, chain)

    end = allowed(chains.step * last)
    nothing = _nothing(reference)

    def entry(found: Deviation, limit: float | None) -> dict[str, Any]:
        return asdict(found) | {"tolerance": limit}

    def named(tree: Params, like: Params) -> Iterator[tuple[str, Deviation]]:
        for (name, ours), theirs in zip(named_leaves(tree), leaves(like), strict=True):
            yield name, deviation(ours, theirs, dtype)

    scale = max(map(abs, reference.losses))
    off = (np.abs(np.subtract(done.losses, reference.losses)) / scale).tolist()
    losses = deviation(np.asarray(done.losses), np.asarray(reference.losses), dtype)
    layers = {
        path: entry(
            _of_layer(ours, reference.layers[path], dtype),
            allowed(chains.outputs.get(path, chains.step)),
        )
        for path, ours in done.layers.items()
        if ours
    }
    gradients = {}
    for name, found in named(done.gradients, reference.gradients):
        chain = chains.gradients.get(layer_of(name, chains.gradients), chains.step)
        gradients[name] = entry(found, None if name in nothing else allowed(chain))
    apart = dict(named(done.params, reference.params))
    parameters = {
        name: entry(found, None if name in nothing else end) for name, found in apart.items()
    }
    found = deviation(done.outputs, reference.outputs, dtype)
    size = max((float(np.max(np.abs(p), initial=0.0)) for p in leaves(reference.params)), default=0)
    # Where an optimizer has made steps of rounding, predictions follow, as no rounding does.
    free = any(apart[name].absolute > end * size for name in nothing) and found.absolute < math.inf
    outputs = entry(found, None if free else end)

    def far(found: dict[str, Any]) -> bool:
        # "not within" instead of "beyond": NaN is neither
        return found["tolerance"] is not None and not found["relative"] <= found["tolerance"]

    left: list[tuple[int, str]] = [(0, "starting parameters")] * (
        done.start != sha256(cast(task.start[0], dtype))
    )
    left += [(1, _outputs_of(path)) for path, found in layers.items() if far(found)]
    left += [(t, "loss") for t, d in enumerate(off, 1) if not d <= allowed(chains.step * t)]
    backwards = sorted(gradients, key=lambda name: gradients[name]["tolerance"] or 0.0)
    left += [(1, f"gradient of {name}") for name in backwards if far(gradients[name])]
    left += [(last, "outputs")] * far(outputs)
    left += [(last, f"parameter {name}") for name, found in parameters.items() if far(found)]
    verdict, departure = f"within tolerance over {last} steps", None
    if left:
        step, what = min(left, key=lambda found: found[0])
        verdict, departure = f"left tolerance at step {step} ({what})", {"step": step, "what": what}

    held = [outputs, *layers.values(), *gradients.values(), *parameters.values()]
    every = [found["relative"] for found in held if found["tolerance"] is not None]
    exact = left[:1] != [(0, "starting parameters")]
    return {
        "verdict": verdict,
        "left_tolerance": departure,
        "test_metric": done.metric,
        "final_loss": done.losses[-1],
        "start_sha256": sha256(task.start[0]) if exact else done.start,
        "max_relative_deviation": float(np.max(every)),
        "tolerance": {"first_step": allowed(chains.step), "last_step": end},
        "deviations": {
            "losses": entry(losses, end),
            "outputs": outputs,
            "layers": layers,
            "gradients": gradients,
            "parameters": parameters,
        },
        "loss_deviations": off,
        "losses": done.losses,
    }


def _outputs_of(path: str) -> str:
    return f"outputs of layer {path}" if path else "outputs of the model"


def _of_layer(found: list, reference: list, dtype: str) -> Deviation:
    """The largest deviation, in each unit, of the arrays that a layer put out."""
    each = [deviation(ours, theirs, dtype) for ours, theirs in zip(found, reference, strict=True)]
    units = ("absolute", "relative", "ulps")
    return Deviation(*(float(np.max([getattr(one, unit) for one in each])) for unit in units))


def _nothing(reference: Run) -> set[str]:
    """The parameters whose gradient is 0 but for rounding: there is nothing to compare."""
    largest = {
        name: float(np.max(np.abs(leaf), initial=0.0))
        for name, leaf in named_leaves(reference.gradients)
    }
    top = max(largest.values(), default=0.0)
    return {name for name, value in largest.items() if value < NOTHING * top}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _finite(data: Any) -> Any:
    """`data` with None for what JSON has no number for: NaN and infinity."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
