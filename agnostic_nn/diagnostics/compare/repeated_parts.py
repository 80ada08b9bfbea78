"""Find the part of a training step that does not repeat its bits.

One step of the training is split into stages, as `bisect` splits it: layers, the loss,
the update, and a prediction. Each stage is called several times with the same numbers.
Half of the calls are made by a function that is compiled again, because a library may
choose another algorithm when it compiles. A stage whose results change is then run
operation by operation. The first operation whose result changes had the same operands
in all calls, so it is the cause.

If no stage changes, the whole training step is called as one function: a compiler may
fuse operations of several stages into one that does not repeat.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ... import ops
from ...core.backend import Backend
from ...core.trees import leaves, tree_map
from ...losses.base import takes_weights
from ..bisect.stages import Stage, split_step
from ..observe import Args, Function, Handler, Kwargs, branch, is_array, run
from .deviation import deviation
from .probes import Named, batch_step, flat
from .running import Task, cast
from .schema import ChangingPart

__all__ = ["CALLS", "bits", "changing_parts"]

COMPILATIONS = 2
CALLS = 16  # of each part, over all compilations

# What a result of a stage is, by the first part of its path, in the order of
# computation: its quantity in the report, and its description before that of its layer.
_QUANTITIES = {
    "x": ("data", "the inputs on the device"),
    "target": ("data", "the targets on the device"),
    "weights": ("data", "the weights on the device"),
    "words": ("random words", "the random words"),
    "enters": ("output", "the input that is passed to an inner layer"),
    "y": ("output", "the output"),
    "shortcut_y": ("prediction", "the prediction"),
    "state": ("state", "the new state"),
    "value": ("loss", "the loss"),
    "dy": ("gradient", "the gradient of the loss"),
    "returns": ("gradient", "the gradient that is passed to an inner layer"),
    "dx": ("gradient", "the gradient of the input"),
    "grads": ("gradient", "the gradient"),
    "shortcut_grads": ("gradient", "the gradient"),
    "params": ("update", "the update"),
    "moments": ("update", "the moments"),
}


def changing_parts(
    task: Task, backend: Backend, dtype: str, steps: tuple[int, ...]
) -> tuple[ChangingPart, ...]:
    """Return the parts of the first of `steps` in which one does not repeat its bits.

    The parts are in the order of computation. The inputs are those of a training on the
    backend itself.
    """
    for number, carry, arguments in _inputs(task, backend, dtype, steps):
        stages = _stages(task, carry, arguments, dtype)
        parts = tuple(_changing_stages(backend, stages, number))
        parts = parts or _whole_step(task, backend, number, carry, arguments)
        if parts:
            return parts
    return ()


def _inputs(
    task: Task, backend: Backend, dtype: str, steps: tuple[int, ...]
) -> Iterator[tuple[int, Any, Any]]:
    """Train on the backend; yield number, carry and arguments before each of `steps`.

    The carry is on the host.
    """
    workload = task.workload
    step = backend.jit(
        batch_step(workload.model, workload.loss, workload.optimizer), donate=(0,)
    )
    carry = backend.asarray(cast(task.start, dtype))
    for number, arguments in enumerate(task.batches(dtype), 1):
        if number in steps:
            yield number, tree_map(np.array, backend.to_numpy(carry)), arguments
        if number >= max(steps):
            return
        carry, _, _ = step(carry, *backend.asarray(arguments))


def _stages(task: Task, carry: Any, arguments: Any, dtype: str) -> list[Stage]:
    """Return the stages of a step, each once, in the order of computation."""
    workload = task.workload
    x, target, keywords = arguments
    batch = {"x": x, "target": target}
    # Padding rows have the weight 0.
    weights = keywords.get("weights", keywords.get("counts"))
    if weights is not None and takes_weights(workload.loss):
        batch["weights"] = weights
    extra = {
        name: keywords[keyword]
        for name, keyword in {"step": "t", "context": "context"}.items()
        if keyword in keywords
    }
    events = split_step(
        *(workload.model, workload.loss, workload.optimizer, carry, batch, dtype),
        extra=extra,
    )
    stages = {id(stage): stage for stage, _ in events}
    return [each for each in stages.values() if each.kind != "whole" or each.predicts]


def _changing_stages(
    backend: Backend, stages: list[Stage], number: int
) -> Iterator[ChangingPart]:
    """Yield a part for each stage that does not repeat its bits.

    In the prediction, a layer is left out that does not repeat in the step, and so is
    the whole if any layer does not.
    """
    changing: set[str] = set()
    for stage in stages:
        is_known = bool(changing) if stage.kind == "whole" else stage.path in changing
        if stage.predicts and is_known:
            continue
        changes = _changes(backend, stage.function, (stage.inputs,))
        if not changes:
            continue
        changing.add(stage.path)
        name, change = next(iter(changes.items()))
        head, _, inner = name.partition(".")
        quantity, description = _QUANTITIES[head]
        if stage.predicts and quantity == "output":
            quantity, description = _QUANTITIES["shortcut_y"]
        yield ChangingPart(
            step=number,
            description=f"{description}{_place(stage, quantity, inner)}",
            quantity=quantity,
            name=inner,
            layer=None if stage.kind in ("data", "loss", "update") else stage.path,
            operation=_operation(backend, stage),
            **change,
        )


def _place(stage: Stage, quantity: str, name: str) -> str:
    """Return the name of the array and its layer, to follow the description."""
    kind = stage.label.partition("(")[0]
    if stage.kind == "whole":
        return " of the model"
    if stage.kind in ("data", "loss"):
        return f" ({kind})" if stage.kind == "loss" else ""
    if stage.kind == "update":
        return f" of {name} ({kind})"
    is_owned = quantity in ("gradient", "state") and name
    if is_owned:
        path = f"{stage.path}.{name}" if stage.path else name
        return f" of {path} ({kind})"
    return f" of layer {stage.path} ({kind})" if stage.path else f" of the {kind}"


def _whole_step(
    task: Task, backend: Backend, number: int, carry: Any, arguments: Any
) -> tuple[ChangingPart, ...]:
    """Return the whole training step as a part if it does not repeat its bits."""
    workload = task.workload
    step = batch_step(workload.model, workload.loss, workload.optimizer)

    def whole(carry: Any, *arguments: Any) -> dict[str, Any]:
        (params, state, moments), value, _ = step(carry, *arguments)
        return {"value": value, "params": params, "state": state, "moments": moments}

    changes = _changes(backend, whole, (carry, *arguments), donate=(0,))
    if not changes:
        return ()
    name, change = next(iter(changes.items()))
    head, _, inner = name.partition(".")
    description = _QUANTITIES[head][1] + (f" of {inner}" if inner else "")
    return (
        ChangingPart(
            step=number,
            description=f"the whole step as one function: {description}",
            quantity=_QUANTITIES[head][0],
            name=inner,
            layer=None,
            operation=None,
            **change,
        ),
    )


def _changes(
    backend: Backend,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    donate: tuple[int, ...] = (),
) -> dict[str, dict[str, Any]]:
    """Call a function of host arrays several times; describe each result that changes.

    The results are in the order in which a step computes them. Each has the number of
    calls that differ from the first one, and the largest difference.
    """
    first: Named = {}
    changes: dict[str, dict[str, Any]] = {}
    for compilation in range(COMPILATIONS):
        # another object, so that the library compiles it again
        compiled = backend.jit(partial(function), donate)
        for _ in range(CALLS // COMPILATIONS):
            results = flat(backend.to_numpy(compiled(*backend.asarray(arguments))))
            first = first or results
            for name, array in results.items():
                if bits(array) == bits(first[name]):
                    continue
                change = changes.setdefault(name, _no_change())
                change["changed"] += 1
                change["only_when_compiled_again"] &= compilation > 0
                _enlarge(change, array, first[name])
    # A library may return a dict in another order.
    heads = list(_QUANTITIES)
    order = sorted(changes, key=lambda name: heads.index(name.partition(".")[0]))
    changes = {name: changes[name] for name in order}
    for change in changes.values():
        # Every call of another compilation differs in the same way.
        all_differ = change["changed"] == CALLS - CALLS // COMPILATIONS
        change["only_when_compiled_again"] &= all_differ
    return changes


def _no_change() -> dict[str, Any]:
    return {
        "calls": CALLS,
        "changed": 0,
        "relative": 0.0,
        "ulps": 0.0,
        "only_when_compiled_again": True,
    }


def _enlarge(change: dict[str, Any], array: np.ndarray, first: np.ndarray) -> None:
    """Record the difference of two arrays if it is the largest so far."""
    dtype = str(array.dtype) if array.dtype.kind == "f" else "float64"
    far = deviation(array, first, dtype)
    # A NaN is larger than any number.
    if not (far.relative <= change["relative"] or np.isnan(change["relative"])):
        change["relative"] = far.relative
        change["ulps"] = far.ulps if array.dtype.kind == "f" else None


def bits(array: Any) -> bytes:
    """Return the bytes of an array. All NaN are the same: their bits mean nothing."""
    array = np.asarray(array)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.asarray(np.nan, array.dtype), array)
    return bytes(array.tobytes())


# --- operation by operation -----------------------------------------------------------


def _operation(backend: Backend, stage: Stage) -> str | None:
    """Return the first operation of a stage whose result changes from call to call.

    None if no operation changes, as when only a compiler makes it, or if operations
    cannot be run one by one.
    """
    try:
        calls = [_results(backend, stage) for _ in range(CALLS)]
    except Exception:  # a custom layer may accept only arrays of its library
        return None
    first, *others = calls
    changed = [
        number
        for call in others
        for number, (one, other) in enumerate(zip(first, call, strict=False))
        if one != other
    ]
    return first[min(changed)][0] if changed else None


def _results(backend: Backend, stage: Stage) -> list[tuple[str, bytes]]:
    """Run a stage without compiling it; return the name and the bits of each result."""
    recorder = _Recorder(backend)
    with np.errstate(all="ignore"), backend.applied():
        run(recorder, stage.function, backend.asarray(stage.inputs))
    return recorder.results


# Their standard versions are Python code, whose operations are recorded.
_CONTROL_FLOW = (ops.barrier_impl, ops.scan_impl)


class _Recorder(Handler):
    """Records the name and the bits of the result of each operation."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.xp)
        self.backend = backend
        self.results: list[tuple[str, bytes]] = []

    def compute(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        result = function(*args, **kwargs)
        # An assignment to elements returns None, and changes its first argument.
        written = args[0] if result is None else result
        trees = tuple(written) if isinstance(written, list) else written
        arrays = [leaf for leaf in leaves(trees) if is_array(leaf)]
        host = self.backend.to_numpy(tuple(arrays))
        self.results.append((name, b"".join(map(bits, host))))
        return result

    def call_ops(
        self, name: str, function: Function, args: Args, kwargs: Kwargs
    ) -> Any:
        if function is ops.select:
            return branch(*args)
        if function in _CONTROL_FLOW:
            return super().call_ops(name, function, args, kwargs)
        return self.call(name, function, args, kwargs)
