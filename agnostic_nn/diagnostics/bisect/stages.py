"""Split a training step, and a prediction after it, into stages that can run alone.

A stage is one layer (also inside a block), the loss, or the update of the optimizer.
The code of a block outside its layers, such as the sum of a Residual, is a stage too:
in it, each layer returns a fixed result, and the results of the stage include the input
that the block passes to each layer. A Sequential, and a block that holds one layer,
compute nothing themselves. Two last stages cover them: the whole step from the inputs
to the gradients, and the whole prediction.

The inputs of each stage come from one step computed by NumPy in float64 with the plain
formulas, and from a prediction with the parameters and the state after that step.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from ...blocks import Block, Graph, Parallel, Residual, TransformerBlock
from ...core.arrays import Cache, Params, RowMask, State
from ...core.backend import BackendUnavailable
from ...core.errors import expect
from ...core.files import kind_of, replacing
from ...core.random import words
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import Layer
from ...layers.base import outline
from ...losses import Loss
from ...optimizers import Optimizer
from ...training.config import describe, rebuild
from ..observe import Hook, observed_layer, path_of, value_of
from .noise import exactly, noting_words

__all__ = [
    "REFERENCE",
    "Stage",
    "StageFailed",
    "cast",
    "failing",
    "name_of",
    "read",
    "split_step",
    "write",
]

Method = Callable[..., Any]  # a method of the layer that is observed

FORMAT = 1
REFERENCE = "the reference, whose arrays support only the Array API Standard"

# The first parts of the paths of results: computed by the forward and by the backward
# pass.
FORWARD = ("y", "state", "words", "enters", "shortcut_y")
BACKWARD = ("dx", "grads", "returns", "shortcut_grads")


class StageFailed(RuntimeError):
    """A layer, a loss or an optimizer raised an error: the `__cause__` of this one."""


@contextmanager
def failing(name: str, where: str) -> Iterator[None]:
    """Re-raise exceptions as `StageFailed`, with the innermost stage and backend."""
    try:
        yield
    except (StageFailed, BackendUnavailable):
        raise
    except Exception as error:  # a custom layer may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise StageFailed(f"{name} failed on {where}: {reason}") from error


# --- how each kind of stage is run ----------------------------------------------------
#
# Each function takes (thing, train, inputs, shortcuts) and returns the results by name.
# shortcuts: also compute `predict` and `backward_params`, where the layer overrides
# them.


def _layer(
    layer: Layer, train: bool, inputs: dict[str, Any], shortcuts: bool
) -> dict[str, Any]:
    params = inputs["params"]
    x = inputs["x"]
    y, state, cache = layer.forward(params, inputs["state"], x, train=train)
    results = {"y": y, "state": state}
    if "dy" in inputs:
        dx, grads = layer.backward(params, cache, inputs["dy"])
        results |= {"dx": dx, "grads": grads}
        if shortcuts and _overrides(layer, "backward_params"):
            results["shortcut_grads"] = layer.backward_params(
                params, cache, inputs["dy"]
            )
    if shortcuts and not train and _overrides(layer, "predict"):
        results["shortcut_y"] = layer.predict(params, inputs["state"], x)
    return results


def _around(
    block: Any, train: bool, inputs: dict[str, Any], shortcuts: bool
) -> dict[str, Any]:
    params = inputs["params"]
    x = inputs["x"]
    twin, fixed_layers = _with_fixed_layers(block, inputs)
    y, state, cache = twin.forward(params, inputs["state"], x, train=train)
    enters = {name: layer.by_call(layer.xs) for name, layer in fixed_layers.items()}
    results = {"y": y, "state": state, "enters": enters}
    if "dy" in inputs:
        dx, grads = twin.backward(params, cache, inputs["dy"])
        returns = {
            name: layer.by_call(layer.dys) for name, layer in fixed_layers.items()
        }
        results |= {"dx": dx, "grads": grads, "returns": returns}
        if shortcuts and _overrides(block, "backward_params"):
            # Fixed layers return each result once, so another pass needs another twin.
            twin, _ = _with_fixed_layers(block, inputs)
            _, _, cache = twin.forward(params, inputs["state"], x, train=train)
            results["shortcut_grads"] = twin.backward_params(
                params, cache, inputs["dy"]
            )
    if shortcuts and not train and _overrides(block, "predict"):
        twin, _ = _with_fixed_layers(block, inputs)
        results["shortcut_y"] = twin.predict(params, inputs["state"], x)
    return results


def _with_fixed_layers(
    block: Any, inputs: dict[str, Any]
) -> "tuple[Any, dict[str, _FixedLayer]]":
    """Return a copy of a block with layers that return fixed results, and these."""
    fixed_layers: dict[str, _FixedLayer] = {}

    def fixed(name: str, layer: Layer) -> Layer:
        fixed_layers[name] = _FixedLayer(inputs["inside"].get(name, ()))
        return fixed_layers[name]

    return block.map_layers(fixed), fixed_layers


def _overrides(layer: Layer, method: str) -> bool:
    """Return whether a layer has its own version of a method of `Layer`."""
    return getattr(type(layer), method) is not getattr(Layer, method)


def _loss(
    loss: Loss, train: bool, inputs: dict[str, Any], shortcuts: bool
) -> dict[str, Any]:
    value, dy = _called(loss, inputs["y"], inputs)
    return {"value": value, "dy": dy}


def _called(loss: Loss, y: Any, inputs: dict[str, Any]) -> Any:
    """Call a loss with the arguments that `inputs` have."""
    weights = [inputs["weights"]] if "weights" in inputs else []
    keywords = {name: inputs[name] for name in ("step", "context") if name in inputs}
    return loss(y, inputs["target"], *weights, **keywords)


def _update(
    optimizer: Optimizer, train: bool, inputs: dict[str, Any], shortcuts: bool
) -> dict[str, Any]:
    params, moments = optimizer.update(
        inputs["params"], inputs["grads"], inputs["moments"]
    )
    return {"params": params, "moments": moments}


def _data(
    thing: Any, train: bool, inputs: dict[str, Any], shortcuts: bool
) -> dict[str, Any]:
    return dict(inputs)


def _whole(
    thing: tuple[Any, ...], train: bool, inputs: dict[str, Any], shortcuts: bool
) -> dict[str, Any]:
    model, loss = thing
    params = inputs["params"]
    state = inputs["state"]
    x = inputs["x"]
    y, new_state, cache = model.forward(params, state, x, train=train)
    results = {"y": y, "state": new_state}
    if train:
        value, dy = _called(loss, y, inputs)
        return results | {
            "value": value,
            "grads": model.backward_params(params, cache, dy),
        }
    if shortcuts and _overrides(model, "predict"):
        results["shortcut_y"] = model.predict(params, state, x)
    return results


_KINDS: dict[str, Callable[..., Any]] = {
    "layer": _layer,
    "around": _around,
    "loss": _loss,
    "update": _update,
    "start": _update,
    "data": _data,
    "whole": _whole,
}


class _FixedLayer(Layer):
    """Stands for a layer of a block: returns given results and records its inputs."""

    def __init__(self, calls: tuple[Any, ...]) -> None:
        self.calls = iter(calls)
        self.pending: list[tuple[int, Any]] = []  # calls whose backward has not run yet
        self.xs: dict[int, Any] = {}  # by the number of the call
        self.dys: dict[int, Any] = {}

    def forward(
        self, params: Any, state: Any, x: Any, *, train: Any = False
    ) -> tuple[Any, Any, tuple[Any, ...]]:
        number = len(self.xs)
        result = next(self.calls)
        self.xs[number] = x
        self.pending.append((number, result))
        return result["y"], result["state"], ()

    def backward(self, params: Any, cache: Any, dy: Any) -> tuple[Any, Any]:
        number, result = self.pending.pop()
        self.dys[number] = dy
        return _with_none(result["dx"]), result["grads"]

    @staticmethod
    def by_call(recorded: dict[int, Any]) -> Any:
        """Return what was recorded; of several calls, a tuple in their order."""
        values = tuple(recorded[number] for number in sorted(recorded))
        return values[0] if len(values) == 1 else values


def _with_none(dx: Any) -> Any:
    """Return dx with None, as layers return it, in place of each ().

    A backend cannot move None between host and device, so `_host` stores () instead.
    """
    if isinstance(dx, dict):
        return {name: _with_none(branch) for name, branch in dx.items()}
    if isinstance(dx, tuple):
        return tuple(map(_with_none, dx)) if dx else None
    return dx


@dataclass(eq=False)
class Stage:
    """One computation of a step, its place in the model, and its inputs, on the host.

    kind: "data" (the batch, moved to the backend and back), "layer", "around" (a block
    without its layers), "loss", "update", "start" (the first update of a training) or
    "whole".
    thing: the layer, block, loss or optimizer, or (model, loss). predicts: whether the
    stage belongs to the prediction after the step. draws: (count, stream) of each draw
    of random words, made with the keys `inputs["keys"]`. result: what the reference
    computed, for the stage of the block around it. inside: the stages of a block's
    layers by name, one a call.
    """

    kind: str
    path: str
    thing: Any
    inputs: dict[str, Any]
    train: bool = True
    predicts: bool = False
    draws: tuple[tuple[int, int], ...] = ()
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    inside: dict[str, list["Stage"]] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """The layer, loss or optimizer in one line."""
        if self.kind == "data":
            return "the batch"
        if self.kind == "whole":
            return "the whole prediction" if self.predicts else "the whole step"
        if isinstance(self.thing, Layer):
            return outline(self.thing)
        function = self.thing.func if isinstance(self.thing, partial) else self.thing
        return getattr(function, "__name__", None) or repr(function)

    @property
    def name(self) -> str:
        """The label and its place in the model, as in "layer 2.0 (Dense(width=4))"."""
        return name_of(self.path, self.label)

    @property
    def formula(self) -> Callable[..., Any]:
        """The function from `inputs` to all results, a dict by path."""
        return partial(_results, self.kind, self.thing, self.train, self.draws, False)

    @property
    def function(self) -> Callable[..., Any]:
        """Like `formula`, with the results of `predict` and `backward_params` too."""
        return self.function_of(self.thing)

    def function_of(self, thing: Any) -> Callable[..., Any]:
        """Return `function` with another layer, or pair of model and loss."""
        return partial(_results, self.kind, thing, self.train, self.draws, True)

    @property
    def key(self) -> Any:
        """A hashable value that is equal for stages with the same function."""
        key = self.kind, self.thing, self.train, self.draws
        try:
            hash(key)
        except TypeError:
            return self.kind, id(self.thing), self.train, self.draws
        return key


def name_of(path: str, label: str) -> str:
    """Return how messages name a stage: its label, and its place in a model if any."""
    return f"layer {path} ({label})" if path else label


def _results(
    kind: str,
    thing: Any,
    train: bool,
    draws: tuple[Any, ...],
    shortcuts: bool,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    results = _KINDS[kind](thing, train, inputs, shortcuts)
    if draws:
        pairs = zip(inputs["keys"], draws, strict=True)
        results["words"] = tuple(words(key, *draw) for key, draw in pairs)
    return {path: leaf for path, leaf in named_leaves(results) if leaf is not None}


def cast(tree: Any, dtype: str) -> Any:
    """Return `tree` on the host, with real numbers in `dtype`, others unchanged."""

    def cast_leaf(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(dtype) if array.dtype.kind == "f" else array

    with np.errstate(over="ignore"):
        return tree_map(cast_leaf, tree)


# --- splitting a step -----------------------------------------------------------------


def split_step(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    carry: tuple[Any, ...],
    batch: dict[str, Any],
    dtype: str,
    start: tuple[Any, ...] | None = None,
    extra: dict[str, Any] | None = None,
) -> list[tuple[Stage, tuple[str, ...]]]:
    """Return the stages of the step from `carry` on a batch, in their order.

    Each entry is a stage and the heads (first parts of the paths) of those of its
    results that are computed at that moment: a layer appears twice, in the forward and
    in the backward pass. The stages of a prediction of x with the new parameters and
    state follow, or with those of `carry` if the new ones are not finite. Parameters
    and state of the prediction are rounded to `dtype`, which is float32 or float64. If
    a layer is called several times, its path ends in the number of the call, such as
    "#2".

    batch: x, target and, if examples have them, weights.
    start: the carry before the first step, if its update is to be a stage too.
    extra: further arguments of the loss by name, "step" or "context".
    """
    recorder = _Recorder()
    observed = recorder.observed(model, "", "")
    recorder.record(Stage("data", "", "the batch", dict(batch)), *batch)

    def step(carry: tuple[Any, ...], x: Any, others: dict[str, Any]) -> Any:
        params, state, moments = carry
        y, new_state, cache = observed.forward(params, state, x, train=True)
        inputs = _host({"y": y, **others})
        recorder.record(Stage("loss", "", loss, inputs), "value", "dy")
        with failing(recorder.events[-1][0].name, REFERENCE):
            _, dy = _called(loss, y, others)
        recorder.in_backward = True
        grads = observed.backward_params(params, cache, dy)
        inputs = _host({"params": params, "grads": grads, "moments": moments})
        recorder.record(Stage("update", "", optimizer, inputs), "params", "moments")
        with failing(recorder.events[-1][0].name, REFERENCE):
            params, _ = optimizer.update(params, grads, moments)
        if start is not None:
            first = {"params": start[0], "grads": _host(grads), "moments": start[2]}
            recorder.record(Stage("start", "", optimizer, first), "params", "moments")
        return _host((params, new_state))

    others = batch | (extra or {})
    x = others.pop("x")
    params, state = exactly(step, carry, x, others)
    inputs = {"params": carry[0], "state": carry[1], "x": x, **others}
    whole = Stage("whole", "", (model, loss), inputs)
    recorder.record(whole, "y", "state", "value", "grads")
    after = cast((params, state), dtype)
    floats = [leaf for leaf in leaves(after) if leaf.dtype.kind == "f"]
    if not all(np.all(np.isfinite(leaf)) for leaf in floats):
        after = carry[:2]
    events = recorder.events + _prediction(model, loss, after[0], after[1], x)
    unique = list({id(stage): stage for stage, _ in events}.values())
    _number_calls(unique)
    for stage in unique:
        if stage.kind == "around":
            stage.inputs["inside"] = {
                name: tuple(call.result for call in calls)
                for name, calls in stage.inside.items()
            }
    return events


def _number_calls(stages: list[Stage]) -> None:
    """Append "#1", "#2", ... to the paths of layers that are called several times."""
    totals = Counter((stage.kind, stage.path, stage.predicts) for stage in stages)
    numbers: Counter[tuple[str, str, bool]] = Counter()
    for stage in stages:
        place = stage.kind, stage.path, stage.predicts
        numbers[place] += 1
        if totals[place] > 1:
            stage.path += f"#{numbers[place]}"


def _prediction(
    model: Layer, loss: Loss, params: Any, state: Any, x: Any
) -> list[tuple[Stage, tuple[str, ...]]]:
    """Return the stages of a prediction of x, in the form of `split_step`."""
    recorder = _Recorder(predicts=True)
    observed = recorder.observed(model, "", "")
    exactly(
        lambda *args: _host(observed.forward(*args, train=False)[0]), params, state, x
    )
    inputs = {"params": params, "state": state, "x": x}
    whole = Stage("whole", "", (model, loss), inputs, train=False, predicts=True)
    recorder.record(whole, "y", "state", "shortcut_y")
    return recorder.events


class _Recorder:
    """Records the stages of a model in the order in which they are computed.

    Each layer is replaced by a copy that computes the same and records its inputs and
    results. predicts: whether a prediction is recorded instead of a training step.
    """

    def __init__(self, *, predicts: bool = False) -> None:
        self.predicts = predicts
        self.events: list[tuple[Stage, tuple[str, ...]]] = []
        self.in_backward = False
        # stages whose forward is running, the innermost last
        self.open: list[Stage] = []

    def record(self, stage: Stage, *heads: str) -> None:
        """Record that the results of `stage` with these heads are computed now."""
        self.events.append((stage, heads))

    def observed(self, layer: Layer, path: str, name: str) -> Layer:
        """Return a copy of `layer` that records its calls and those of inner layers."""

        def inner(name: str, layer: Layer) -> Layer:
            return self.observed(layer, path_of(path, name), name)

        return observed_layer(layer, self._hooks(layer, path, name), inner)

    def _hooks(self, layer: Layer, path: str, name: str) -> dict[str, Hook]:
        is_block = isinstance(layer, Block)
        stage_kind = "around" if is_block else "layer"
        # Other blocks, such as Sequential, compute nothing themselves.
        is_stage = not is_block or isinstance(
            layer, Graph | Parallel | Residual | TransformerBlock
        )
        # Stages whose backward has not run yet; backward runs in reverse order.
        pending: list[Stage] = []
        # Stages whose forward ran again in the backward pass, as within Recompute.
        # Their backward runs before that of any pending stage.
        recomputed: list[Stage] = []

        def forward(
            method: Method,
            params: Params,
            state: State,
            x: Any,
            *,
            train: bool | RowMask = False,
        ) -> tuple[Any, State, Cache]:
            # A block has to call its observed layers. Another layer may call its own
            # methods, and those calls must not be recorded.
            own_forward = method if is_block else layer.forward
            inputs = _host({"params": params, "state": state, "x": x})
            stage = Stage(stage_kind, path, layer, inputs, bool(train), self.predicts)
            if self.in_backward:
                recomputed.append(
                    next((old for old in pending if _same_call(old, stage)), stage)
                )
                return own_forward(params, state, x, train=train)
            pending.append(stage)
            if self.open:
                self.open[-1].inside.setdefault(name, []).append(stage)
            self.open.append(stage)
            with failing(stage.name, REFERENCE), noting_words() as drawn:
                y, state, cache = own_forward(params, state, x, train=train)
            self.open.pop()
            if drawn and not is_block:
                stage.inputs["keys"] = tuple(np.array(key) for key, _, _ in drawn)
                stage.draws = tuple((count, stream) for _, count, stream in drawn)
            stage.result |= _host({"y": y, "state": state})
            if is_stage:
                self.record(stage, *FORWARD)
            return y, state, cache

        def backward(
            method: Method, params: Params, cache: Cache, dy: Any
        ) -> tuple[Any, Params]:
            own_backward = method if is_block else layer.backward
            stage = recomputed.pop() if recomputed else pending.pop()
            with failing(stage.name, REFERENCE):
                dx, grads = own_backward(params, cache, dy)
            stage.inputs |= _host({"dy": dy})
            stage.result |= _host({"dx": dx, "grads": grads})
            if is_stage:
                self.record(stage, *BACKWARD)
            return dx, grads

        def backward_params(
            method: Method, params: Params, cache: Cache, dy: Any
        ) -> Params:
            return backward(layer.backward, params, cache, dy)[1]

        hooks: dict[str, Hook] = {"forward": forward, "backward": backward}
        return hooks if is_block else hooks | {"backward_params": backward_params}


def _host(tree: Any) -> Any:
    """Return copies of the values of arrays inside `exactly`; () stands for None."""
    return tree_map(lambda leaf: () if leaf is None else np.array(value_of(leaf)), tree)


def _same_call(stage: Stage, other: Stage) -> bool:
    """Return whether `other` repeats a forward whose backward has not run yet."""
    pairs = zip(leaves(stage.inputs["x"]), leaves(other.inputs["x"]), strict=False)
    return "dy" not in stage.inputs and all(np.array_equal(a, b) for a, b in pairs)


# --- files ----------------------------------------------------------------------------


def write(path: str | os.PathLike[str], stage: Stage, names: tuple[str, ...]) -> bool:
    """Write a stage to an npz file, with the `names` of the backends that differ there.

    Return whether the file describes the layer, loss or optimizer too. It does not if
    this library does not define it.
    """
    thing = describe(stage.thing)
    try:
        rebuild(thing)
    except ValueError:
        thing = None
    description = {
        "format": FORMAT,
        "kind": stage.kind,
        "path": stage.path,
        "shown": stage.label,
        "thing": thing,
        "loss": describe(stage.thing[1]) if stage.kind == "whole" else None,
        "train": stage.train,
        "predicts": stage.predicts,
        "draws": stage.draws,
        "backends": list(names),
        "nesting": _nesting(stage.inputs),
    }
    text = np.asarray(json.dumps(description))
    # an open file: NumPy would append .npz to a path without it
    with replacing(path) as file:
        np.savez(file, agnostic_nn_bisect=text, **dict(named_leaves(stage.inputs)))
    return thing is not None


def read(path: str | os.PathLike[str], thing: Any = None) -> tuple[Stage, list[str]]:
    """Return the stage in a file that `write` wrote, and the names of the backends.

    The file need not be trusted: no object in it is unpickled, and reading it takes no
    more memory than the file is long.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If `write` did not write the file, or it is damaged, or its layer, loss or
        optimizer is not one of this library and no `thing` is given.
    """
    try:
        arrays = _arrays(path)
        description = _description(arrays.pop("agnostic_nn_bisect", None))
        is_readable = description["format"] == FORMAT
        inputs = _unnested(description["nesting"], arrays, "") if is_readable else {}
        is_rebuilt = thing is None and description["thing"] is not None
        stored = rebuild(description["thing"]) if is_rebuilt else None
        kind = description["kind"]
        is_valid = stored is None or _THINGS[kind](stored)
        expect(is_valid, "it has {!r:.200} for a stage of the kind {!r}", stored, kind)
    except OSError:
        raise
    except Exception as error:  # a hostile file may cause any
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise ValueError(
            f"{path} was not written by bisect, or is damaged: {reason}"
        ) from error
    written_format = description["format"]
    expect(
        is_readable,
        "{} has format {}, this version reads {}",
        path,
        written_format,
        FORMAT,
    )
    if thing is None and stored is None:
        raise ValueError(
            f"{path} is about {description['shown']}, which agnostic_nn does not "
            "define: pass it to agnostic_nn.diagnostics.bisect.replay as `thing`, or "
            "name it after --model"
        )
    stage = Stage(
        kind,
        description["path"],
        stored if thing is None else _thing_of(description, thing),
        inputs,
        description["train"],
        predicts=description["predicts"],
        draws=tuple(map(tuple, description["draws"])),
    )
    return stage, description["backends"]


def _arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name; raise if any of them is compressed."""
    status = os.stat(path)
    expect(
        stat.S_ISREG(status.st_mode), "expected a file, got {}", kind_of(status.st_mode)
    )
    arrays: dict[str, np.ndarray] = {}
    with ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        is_stored = all(member.compress_type == ZIP_STORED for member in members)
        is_valid = is_stored and size <= status.st_size
        expect(is_valid, "its arrays, of {} bytes, are compressed or overlap", size)
        for member in members:
            name = member.filename.removesuffix(".npy")
            expect(name not in arrays, "it has two arrays {!r}", name)
            arrays[name] = _array(name, archive.read(member))
    return arrays


def _array(name: str, raw: bytes) -> np.ndarray:
    """Return the array in a file of NumPy's format.

    NumPy would allocate memory for the shape in the header before it reads the data. A
    hostile header could claim any amount, so the shape is compared with the length of
    the data first.
    """
    file = BytesIO(raw)
    version = np.lib.format.read_magic(file)
    expect(version in _HEADERS, "{!r} has the unknown version {}", name, version)
    shape, fortran, dtype = _HEADERS[version](file)
    expect(
        dtype.kind in "biufU" and dtype.itemsize > 0,
        "{!r} has the dtype {}",
        name,
        dtype,
    )
    expected_size = math.prod(shape) * dtype.itemsize
    size = len(raw) - file.tell()
    expect(
        size == expected_size,
        "{!r} has {} bytes, expected {}",
        name,
        size,
        expected_size,
    )
    order = "F" if fortran else "C"
    data = raw[file.tell() :]
    return np.ndarray(shape, dtype, data, order=order).copy(order)  # type: ignore


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _description(text: np.ndarray | None) -> dict[str, Any]:
    """Return the description of a stage from its JSON, with checked types."""
    text = np.zeros(0) if text is None else text
    expect(
        text.shape == () and text.dtype.kind == "U", "it has no description of a stage"
    )
    description: Any = json.loads(str(text))
    expect(isinstance(description, dict), "its description is {!r:.200}", description)
    entries: dict[str, Any] = {"draws": [], "predicts": False, "loss": None}
    entries |= description
    for name, is_valid in _ENTRIES.items():
        expect(
            name in entries and is_valid(entries[name]),
            "its {} is {!r:.200}",
            name,
            entries.get(name),
        )
    return entries


def _is_pairs(data: Any) -> bool:
    """Return whether `data` is a list of pairs of non-negative integers."""
    return isinstance(data, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(n) is int and n >= 0 for n in pair)
        for pair in data
    )


def _is_layer(thing: Any) -> bool:
    return isinstance(thing, Layer)


def _is_optimizer(thing: Any) -> bool:
    return callable(getattr(thing, "update", None))


# By the kind of a stage, whether `thing` is valid for it.
_THINGS: dict[str, Callable[[Any], bool]] = {
    "layer": _is_layer,
    "around": lambda thing: isinstance(thing, Block),
    "loss": callable,
    "update": _is_optimizer,
    "start": _is_optimizer,
    "data": lambda thing: isinstance(thing, str),
    "whole": lambda thing: (
        isinstance(thing, tuple)
        and len(thing) == 2
        and _is_layer(thing[0])
        and callable(thing[1])
    ),
}
# By the name of an entry of the description, whether its value is valid.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "format": lambda data: type(data) is int,
    "kind": lambda data: isinstance(data, str) and data in _KINDS,
    "path": lambda data: isinstance(data, str),
    "shown": lambda data: isinstance(data, str),
    "thing": lambda data: True,
    "loss": lambda data: True,
    "train": lambda data: isinstance(data, bool),
    "predicts": lambda data: isinstance(data, bool),
    "draws": _is_pairs,
    "backends": lambda data: (
        isinstance(data, list)
        and len(data) in (1, 2)
        and all(isinstance(name, str) for name in data)
    ),
    "nesting": lambda data: isinstance(data, dict),
}


def _thing_of(description: dict[str, Any], thing: Any) -> Any:
    """Return what the stage runs: the layer at its path in `thing`, or `thing`."""
    kind = description["kind"]
    label = description["shown"]
    if kind == "data":
        return description["thing"]
    if kind == "whole":
        return (
            thing if isinstance(thing, tuple) else (thing, rebuild(description["loss"]))
        )
    path = description["path"].partition("#")[0]
    matches: list[Layer] = []

    def search(name: str, layer: Layer, above: str = "") -> Layer:
        place = ".".join(filter(None, (above, name)))
        if place == path and outline(layer) == label:
            matches.append(layer)
        if isinstance(layer, Block):
            layer.map_layers(lambda name, inner: search(name, inner, place))
        return layer

    if kind in ("layer", "around") and isinstance(thing, Layer):
        search("", thing)
        # `thing` may also be the layer itself, without the model around it
        is_itself = not isinstance(thing, Block) or outline(thing) == label
        expect(bool(matches) or is_itself, "the model has no {} at {}", label, path)
    return matches[0] if matches else thing


def _nesting(tree: Any) -> Any:
    """Return the structure of a tree for JSON, with None for each leaf."""
    if isinstance(tree, dict):
        return {name: _nesting(branch) for name, branch in tree.items()}
    return [_nesting(branch) for branch in tree] if isinstance(tree, tuple) else None


def _unnested(nesting: Any, arrays: dict[str, np.ndarray], path: str) -> Any:
    """Return the tree of `arrays` with the structure `nesting`."""

    def below(name: Any) -> str:
        return f"{path}.{name}" if path else str(name)

    if isinstance(nesting, dict):
        return {name: _unnested(v, arrays, below(name)) for name, v in nesting.items()}
    if isinstance(nesting, list):
        return tuple(_unnested(v, arrays, below(i)) for i, v in enumerate(nesting))
    expect(path in arrays, "it has no array {!r}", path)
    return arrays[path]
