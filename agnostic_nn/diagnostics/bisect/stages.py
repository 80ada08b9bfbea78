"""Split a training step, and a prediction after it, into stages that can run alone.

Layers, also those inside blocks, the loss and the update of the optimizer are stages. So is what
a block does around its layers, such as the sum of a Residual: there the layers return fixed
results, and the block's results include what it hands to each layer. A Sequential and blocks
that hold one layer compute nothing themselves; they are covered by two last stages, the whole
step from the inputs to the gradients, and the whole prediction.

The inputs of each stage come from one step that NumPy takes in float64, by the formulas alone,
and from a prediction with the parameters and the state after that step.
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
from ...core.backend import BackendUnavailable
from ...core.errors import expect
from ...core.files import kind_of, replacing
from ...core.random import words
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import Layer
from ...losses import Loss
from ...losses.base import takes_keyword
from ...optimizers import Optimizer
from ...training.config import describe, rebuild
from ..summary import outline
from .noise import exactly, noting_words, plain

__all__ = ["REFERENCE", "Stage", "StageFailed", "cast", "failing", "read", "split_step", "write"]

FORMAT = 1
REFERENCE = "the reference, whose arrays have the Standard's functions alone"
FORWARD = ("y", "state", "words", "enters", "shortcut_y")
BACKWARD = ("dx", "grads", "returns", "shortcut_grads")


class StageFailed(RuntimeError):
    """A layer, a loss or an optimizer raised what is the cause of this."""


@contextmanager
def failing(name: str, where: str) -> Iterator[None]:
    """What is raised in here is said to be the failure of `name` on `where`, the innermost."""
    try:
        yield
    except (StageFailed, BackendUnavailable):
        raise
    except Exception as error:  # a stranger's layer may raise any
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise StageFailed(f"{name} fails on {where}: {said}") from error


def _layer(layer: Layer, train: bool, given: dict, shortcuts: bool) -> dict:
    params, x = given["params"], given["x"]
    y, state, cache = layer.forward(params, given["state"], x, train=train)
    found = {"y": y, "state": state}
    if "dy" in given:
        dx, grads = layer.backward(params, cache, given["dy"])
        found |= {"dx": dx, "grads": grads}
        if shortcuts and _overrides(layer, "backward_params"):
            found["shortcut_grads"] = layer.backward_params(params, cache, given["dy"])
    if shortcuts and not train and _overrides(layer, "predict"):
        found["shortcut_y"] = layer.predict(params, given["state"], x)
    return found


def _around(block: Any, train: bool, given: dict, shortcuts: bool) -> dict:
    params, x = given["params"], given["x"]
    twin, inside = _with_fixed_layers(block, given)
    y, state, cache = twin.forward(params, given["state"], x, train=train)
    enters = {name: one.handed(one.xs) for name, one in inside.items()}
    found = {"y": y, "state": state, "enters": enters}
    if "dy" in given:
        dx, grads = twin.backward(params, cache, given["dy"])
        returns = {name: one.handed(one.dys) for name, one in inside.items()}
        found |= {"dx": dx, "grads": grads, "returns": returns}
        if shortcuts and _overrides(block, "backward_params"):
            twin, _ = _with_fixed_layers(block, given)
            _, _, cache = twin.forward(params, given["state"], x, train=train)
            found["shortcut_grads"] = twin.backward_params(params, cache, given["dy"])
    if shortcuts and not train and _overrides(block, "predict"):
        twin, _ = _with_fixed_layers(block, given)
        found["shortcut_y"] = twin.predict(params, given["state"], x)
    return found


def _with_fixed_layers(block: Any, given: dict) -> "tuple[Any, dict[str, _Told]]":
    """Return a twin of a block whose layers return fixed results, and those layers by name."""
    inside: dict[str, _Told] = {}

    def fixed(name: str, layer: Layer) -> Layer:
        inside[name] = _Told(given["inside"].get(name, ()))
        return inside[name]

    return block.map_layers(fixed), inside


def _overrides(layer: Layer, name: str) -> bool:
    """Return whether a layer computes `name` otherwise than by `forward` and `backward`."""
    return getattr(type(layer), name) is not getattr(Layer, name)


def _loss(loss: Loss, train: bool, given: dict, shortcuts: bool) -> dict:
    value, dy = loss(given["y"], given["target"], **_number(given))
    return {"value": value, "dy": dy}


def _number(given: dict) -> dict:
    """The number of the step as a keyword, for a loss whose weight follows a schedule."""
    return {"step": given["step"]} if "step" in given else {}


def _update(optimizer: Optimizer, train: bool, given: dict, shortcuts: bool) -> dict:
    params, moments = optimizer.update(given["params"], given["grads"], given["moments"])
    return {"params": params, "moments": moments}


def _data(thing: Any, train: bool, given: dict, shortcuts: bool) -> dict:
    return dict(given)


def _whole(thing: tuple, train: bool, given: dict, shortcuts: bool) -> dict:
    model, loss = thing
    params, state, x = given["params"], given["state"], given["x"]
    y, after, cache = model.forward(params, state, x, train=train)
    found = {"y": y, "state": after}
    if train:
        value, dy = loss(y, given["target"], **_number(given))
        return found | {"value": value, "grads": model.backward_params(params, cache, dy)}
    if shortcuts and _overrides(model, "predict"):
        found["shortcut_y"] = model.predict(params, state, x)
    return found


_KINDS: dict[str, Callable] = {
    "layer": _layer,
    "around": _around,
    "loss": _loss,
    "update": _update,
    "start": _update,
    "data": _data,
    "whole": _whole,
}


class _Told(Layer):
    """In place of a layer: returns what it is told to, and notes what it is given."""

    def __init__(self, calls: tuple) -> None:
        self.calls = iter(calls)
        self.waiting: list[tuple[int, Any]] = []
        self.xs: dict[int, Any] = {}  # by the number of the call
        self.dys: dict[int, Any] = {}

    def forward(self, params, state, x, *, train=False):
        number, result = len(self.xs), next(self.calls)
        self.xs[number] = x
        self.waiting.append((number, result))
        return result["y"], result["state"], ()

    def backward(self, params, cache, dy):
        number, result = self.waiting.pop()
        self.dys[number] = dy
        return _opened(result["dx"]), result["grads"]

    @staticmethod
    def handed(noted: dict[int, Any]) -> Any:
        """What was noted, in a tuple if there were several calls."""
        found = tuple(noted[number] for number in sorted(noted))
        return found[0] if len(found) == 1 else found


def _opened(dx: Any) -> Any:
    """dx as a layer returns it: None, which is no tree to hand to a backend, is () before."""
    if isinstance(dx, dict):
        return {name: _opened(branch) for name, branch in dx.items()}
    if isinstance(dx, tuple):
        return tuple(map(_opened, dx)) if dx else None
    return dx


@dataclass(eq=False)
class Stage:
    """Something that a step computes, where it is, and its inputs, on the host.

    kind: "data" (the batch, moved to the backend and back), "layer", "around" (a block without
    its layers), "loss", "update", "start" (the first update of a training) or "whole"; `thing` is
    the layer, block, loss or optimizer, or (model, loss). predicts: whether it belongs to the
    prediction after the step. draws: (count, stream) of the random words that it draws, with
    the keys `given["keys"]`.
    """

    kind: str
    path: str
    thing: Any
    given: dict[str, Any]
    train: bool = True
    predicts: bool = False
    draws: tuple[tuple[int, int], ...] = ()
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    inside: dict[str, list["Stage"]] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        """The thing in one line."""
        if self.kind in ("data", "whole"):
            whole = "the whole prediction" if self.predicts else "the whole step"
            return "the batch" if self.kind == "data" else whole
        if isinstance(self.thing, Layer):
            return outline(self.thing)
        function = self.thing.func if isinstance(self.thing, partial) else self.thing
        return getattr(function, "__name__", None) or repr(function)

    @property
    def name(self) -> str:
        """Where it is and the thing, such as "2.0, Dense(width=4)"."""
        return ", ".join(filter(None, (self.path, self.shown)))

    @property
    def formula(self) -> Callable:
        """The function from `given` to all results, a dict by path."""
        return partial(_results, self.kind, self.thing, self.train, self.draws, False)

    @property
    def function(self) -> Callable:
        """The same function, and the results of `predict` and `backward_params` too."""
        return partial(_results, self.kind, self.thing, self.train, self.draws, True)

    @property
    def key(self) -> Any:
        """Equal for stages with one function."""
        key = self.kind, self.thing, self.train, self.draws
        try:
            hash(key)
        except TypeError:
            return self.kind, id(self.thing), self.train, self.draws
        return key


def _results(
    kind: str, thing: Any, train: bool, draws: tuple, shortcuts: bool, given: dict
) -> dict[str, Any]:
    found = _KINDS[kind](thing, train, given, shortcuts)
    if draws:
        pairs = zip(given["keys"], draws, strict=True)
        found["words"] = tuple(words(key, *draw) for key, draw in pairs)
    return {name: leaf for name, leaf in named_leaves(found) if leaf is not None}


def cast(tree: Any, dtype: str) -> Any:
    """Real numbers in `dtype`, all else as it is, on the host."""

    def one(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    with np.errstate(over="ignore"):
        return tree_map(one, tree)


# --- taking a step apart ----------------------------------------------------------------


def split_step(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    carry: tuple,
    batch: tuple,
    dtype: str,
    start: tuple | None = None,
    taken: int = 0,
) -> list[tuple[Stage, tuple[str, ...]]]:
    """Return what the step from `carry` on a batch (x, target) computes, in that order.

    Each entry is a stage and the heads of those of its results that are computed at that moment:
    a layer comes twice, on the way forward and on the way back. The stages of a prediction of x
    with the new parameters and state follow, with those of `carry` if the new ones are not
    finite. `given` is in `dtype`. A layer that is called several times has the number of the call
    in its path. start: the carry before the first step, if its update is to be a stage too. taken:
    how many steps were taken before, for a loss whose weight follows a schedule.
    """
    recorder = _Recorder()
    twin = recorder.twin(model, "", "")
    batch_on_host = dict(zip(("x", "target"), batch, strict=True))
    recorder.note(Stage("data", "", "the batch", batch_on_host), "x", "target")
    numbered = {"step": np.asarray(float(taken))} if takes_keyword(loss, "step") else {}

    def step(carry, x, target, number):
        params, state, moments = carry
        y, after, cache = twin.forward(params, state, x, train=True)
        inputs = _host({"y": y, "target": target, **number})
        recorder.note(Stage("loss", "", loss, inputs), "value", "dy")
        with failing(recorder.events[-1][0].name, REFERENCE):
            _, dy = loss(y, target, **number)
        recorder.on_the_way_back = True
        grads = twin.backward_params(params, cache, dy)
        inputs = _host({"params": params, "grads": grads, "moments": moments})
        recorder.note(Stage("update", "", optimizer, inputs), "params", "moments")
        with failing(recorder.events[-1][0].name, REFERENCE):
            params, _ = optimizer.update(params, grads, moments)
        if start is not None:
            first = {"params": start[0], "grads": _host(grads), "moments": start[2]}
            recorder.note(Stage("start", "", optimizer, first), "params", "moments")
        return _host((params, after))

    params, state = exactly(step, carry, *batch, numbered)
    whole = {"params": carry[0], "state": carry[1], **batch_on_host, **numbered}
    recorder.note(Stage("whole", "", (model, loss), whole), "y", "state", "value", "grads")
    after = cast((params, state), dtype)
    if not all(np.all(np.isfinite(leaf)) for leaf in leaves(after) if leaf.dtype.kind == "f"):
        after = carry[:2]
    events = recorder.events + _prediction(model, loss, after[0], after[1], batch[0])
    found = list({id(stage): stage for stage, _ in events}.values())
    often = Counter((stage.kind, stage.path, stage.predicts) for stage in found)
    numbers: Counter = Counter()
    for stage in found:
        place = stage.kind, stage.path, stage.predicts
        numbers[place] += 1
        if often[place] > 1:
            stage.path += f"#{numbers[place]}"
        if stage.kind == "around":
            inside = {name: tuple(p.result for p in calls) for name, calls in stage.inside.items()}
            stage.given["inside"] = inside
        stage.given = cast(stage.given, dtype)
    return events


def _prediction(
    model: Layer, loss: Loss, params: Any, state: Any, x: Any
) -> list[tuple[Stage, tuple[str, ...]]]:
    """Return the stages of a prediction of x, as `stages` does those of a step."""
    recorder = _Recorder(predicts=True)
    twin = recorder.twin(model, "", "")
    exactly(lambda *given: _host(twin.forward(*given, train=False)[0]), params, state, x)
    given = {"params": params, "state": state, "x": x}
    whole = Stage("whole", "", (model, loss), given, train=False, predicts=True)
    recorder.note(whole, "y", "state", "shortcut_y")
    return recorder.events


class _Recorder:
    """Twins of layers that record the inputs of each, in the order in which they are called.

    predicts: whether a prediction is recorded, instead of a step of training.
    """

    def __init__(self, *, predicts: bool = False) -> None:
        self.predicts = predicts
        self.events: list[tuple[Stage, tuple[str, ...]]] = []
        self.on_the_way_back = False
        self.open: list[Stage] = []  # whose forward is being computed

    def note(self, stage: Stage, *heads: str) -> None:
        """That results with these heads are computed now."""
        self.events.append((stage, heads))

    def twin(self, layer: Layer, path: str, name: str) -> Layer:
        """A layer like `layer`; of a block, with twins in place of its layers."""
        kind = type(layer)

        def inner(name: str, layer: Layer) -> Layer:
            return self.twin(layer, ".".join(filter(None, (path, name))), name)

        mapped = layer.map_layers(inner) if isinstance(layer, Block) else layer
        methods = self._methods(layer, path, name)
        twin: Any = object.__new__(type(kind.__name__, (kind,), methods))
        vars(twin).update(vars(mapped))
        return twin

    def _methods(self, layer: Layer, path: str, name: str) -> dict[str, Callable]:
        kind: Any = type(layer)
        block = isinstance(layer, Block)
        called = "around" if block else "layer"
        noted = not block or isinstance(layer, Graph | Parallel | Residual | TransformerBlock)
        waiting: list[Stage] = []  # for their dy: the last first, as the chain rule has it
        again: list[Stage] = []  # whose forward is asked for once more on the way back

        def forward(twin, params, state, x, *, train=False):
            own = twin if block else layer  # a layer's methods must not meet those noted here
            given = _host({"params": params, "state": state, "x": x})
            stage = Stage(called, path, layer, given, bool(train), self.predicts)
            if self.on_the_way_back:
                again.append(next((old for old in waiting if _alike(old, stage)), stage))
                return kind.forward(own, params, state, x, train=train)
            waiting.append(stage)
            if self.open:
                self.open[-1].inside.setdefault(name, []).append(stage)
            self.open.append(stage)
            with failing(stage.name, REFERENCE), noting_words() as drawn:
                y, state, cache = kind.forward(own, params, state, x, train=train)
            self.open.pop()
            if drawn and not block:
                stage.given["keys"] = tuple(np.array(key) for key, _, _ in drawn)
                stage.draws = tuple((count, stream) for _, count, stream in drawn)
            stage.result |= _host({"y": y, "state": state})
            if noted:
                self.note(stage, *FORWARD)
            return y, state, cache

        def backward(twin, params, cache, dy):
            stage = again.pop() if again else waiting.pop()
            with failing(stage.name, REFERENCE):
                dx, grads = kind.backward(twin if block else layer, params, cache, dy)
            stage.given |= _host({"dy": dy})
            stage.result |= _host({"dx": dx, "grads": grads})
            if noted:
                self.note(stage, *BACKWARD)
            return dx, grads

        def backward_params(twin, params, cache, dy):
            return backward(twin, params, cache, dy)[1]

        methods = {"forward": forward, "backward": backward}
        return methods if block else methods | {"backward_params": backward_params}


def _host(tree: Any) -> Any:
    """The numbers of arrays that `exactly` handed out; () for None."""
    return tree_map(lambda leaf: () if leaf is None else np.array(plain(leaf)), tree)


def _alike(one: Stage, other: Stage) -> bool:
    pairs = zip(leaves(one.given["x"]), leaves(other.given["x"]), strict=False)
    return "dy" not in one.given and all(np.array_equal(a, b) for a, b in pairs)


# --- files ------------------------------------------------------------------------------


def write(path: str | os.PathLike, stage: Stage, names: tuple[str, ...]) -> bool:
    """Put a stage into an npz file, with the `names` of the backends that differ there.

    Returns whether the thing could be put there too.
    """
    said = describe(stage.thing)
    try:
        rebuild(said)
    except ValueError:
        said = None
    description = {
        "format": FORMAT,
        "kind": stage.kind,
        "path": stage.path,
        "shown": stage.shown,
        "thing": said,
        "loss": describe(stage.thing[1]) if stage.kind == "whole" else None,
        "train": stage.train,
        "predicts": stage.predicts,
        "draws": stage.draws,
        "backends": list(names),
        "nesting": _nesting(stage.given),
    }
    text = np.asarray(json.dumps(description))
    # a handle: NumPy would add .npz to a name without
    with replacing(path) as file:
        np.savez(file, agnostic_nn_bisect=text, **dict(named_leaves(stage.given)))
    return said is not None


def read(path: str | os.PathLike, thing: Any = None) -> tuple[Stage, list[str]]:
    """Return the stage in a file that `write` wrote, and the names of backends.

    The file may be of any origin: no object in it is unpickled, and no more memory is taken than
    the file is long.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is not such a file or is damaged, or its layer, loss or optimizer is not one of this
        library and no `thing` is given.
    """
    try:
        arrays = _arrays(path)
        description = _description(arrays.pop("agnostic_nn_bisect", None))
        is_known = description["format"] == FORMAT
        inputs = _unnested(description["nesting"], arrays, "") if is_known else {}
        is_rebuilt = thing is None and description["thing"] is not None
        stored = rebuild(description["thing"]) if is_rebuilt else None
        kind = description["kind"]
        fits = stored is None or _THINGS[kind](stored)
        expect(fits, "it has {!r:.200} for a stage of the kind {!r}", stored, kind)
    except OSError:
        raise
    except Exception as error:  # whatever a hostile file leads to
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise ValueError(f"{path} was not written by bisect, or is damaged: {reason}") from error
    expect(is_known, "{} has format {}, this version reads {}", path, description["format"], FORMAT)
    if thing is None and stored is None:
        raise ValueError(
            f"{path} is about {description['shown']}, which agnostic_nn does not define: "
            "pass it to agnostic_nn.diagnostics.bisect.replay as `thing`, or name it after --model"
        )
    thing = stored if thing is None else _found(thing, description)
    draws = tuple(map(tuple, description["draws"]))
    stage = Stage(
        *(description["kind"], description["path"], thing, inputs, description["train"]),
        predicts=description["predicts"],
        draws=draws,
    )
    return stage, description["backends"]


def _arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name: numbers and one text, none of them compressed."""
    status = os.stat(path)
    expect(stat.S_ISREG(status.st_mode), "expected a file, got {}", kind_of(status.st_mode))
    arrays: dict[str, np.ndarray] = {}
    with ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        plain = all(member.compress_type == ZIP_STORED for member in members)
        fits = plain and size <= status.st_size
        expect(fits, "its arrays, of {} bytes, are compressed or overlap", size)
        for member in members:
            name = member.filename.removesuffix(".npy")
            expect(name not in arrays, "it has two arrays {!r}", name)
            arrays[name] = _array(name, archive.read(member))
    return arrays


def _array(name: str, raw: bytes) -> np.ndarray:
    """Return the array in a file of NumPy's format; the shape it states has to be that of its data.

    NumPy would take memory for the stated shape first.
    """
    file = BytesIO(raw)
    version = np.lib.format.read_magic(file)
    expect(version in _HEADERS, "{!r} has the unknown version {}", name, version)
    shape, fortran, dtype = _HEADERS[version](file)
    expect(dtype.kind in "biufU" and dtype.itemsize > 0, "{!r} has the dtype {}", name, dtype)
    size, there = math.prod(shape) * dtype.itemsize, len(raw) - file.tell()
    expect(size == there, "{!r} has {} bytes instead of {}", name, there, size)
    order = "F" if fortran else "C"
    return np.ndarray(shape, dtype, raw[file.tell() :], order=order).copy(order)  # type: ignore


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _description(text: np.ndarray | None) -> dict[str, Any]:
    """Return the description of a stage, each entry of the type that it has to have."""
    text = np.zeros(0) if text is None else text
    expect(text.shape == () and text.dtype.kind == "U", "it has no description of a stage")
    description = json.loads(str(text))
    expect(isinstance(description, dict), "its description is {!r:.200}", description)
    description = {"draws": [], "predicts": False, "loss": None} | description
    for name, fits in _ENTRIES.items():
        expect(
            name in description and fits(description[name]),
            "its {} is {!r:.200}",
            name,
            description.get(name),
        )
    return description


def _pairs(data: Any) -> bool:
    return isinstance(data, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)
        for pair in data
    )


def _is_layer(thing: Any) -> bool:
    return isinstance(thing, Layer)


def _is_optimizer(thing: Any) -> bool:
    return callable(getattr(thing, "update", None))


_THINGS: dict[str, Callable[[Any], bool]] = {
    "layer": _is_layer,
    "around": lambda thing: isinstance(thing, Block),
    "loss": callable,
    "update": _is_optimizer,
    "start": _is_optimizer,
    "data": lambda thing: isinstance(thing, str),
    "whole": lambda thing: (
        isinstance(thing, tuple) and len(thing) == 2 and _is_layer(thing[0]) and callable(thing[1])
    ),
}
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "format": lambda data: type(data) is int,
    "kind": lambda data: isinstance(data, str) and data in _KINDS,
    "path": lambda data: isinstance(data, str),
    "shown": lambda data: isinstance(data, str),
    "thing": lambda data: True,
    "loss": lambda data: True,
    "train": lambda data: isinstance(data, bool),
    "predicts": lambda data: isinstance(data, bool),
    "draws": _pairs,
    "backends": lambda data: (
        isinstance(data, list)
        and len(data) in (1, 2)
        and all(isinstance(name, str) for name in data)
    ),
    "nesting": lambda data: isinstance(data, dict),
}


def _found(thing: Any, said: dict) -> Any:
    """What a file is about: `thing`, or the layer in it that is at its path and looks alike."""
    if said["kind"] == "data":
        return said["thing"]
    if said["kind"] == "whole":
        return thing if isinstance(thing, tuple) else (thing, rebuild(said["loss"]))
    path, inside = said["path"].partition("#")[0], []

    def look(name: str, layer: Layer, above: str = "") -> Layer:
        place = ".".join(filter(None, (above, name)))
        if place == path and outline(layer) == said["shown"]:
            inside.append(layer)
        if isinstance(layer, Block):
            layer.map_layers(lambda name, one: look(name, one, place))
        return layer

    if said["kind"] in ("layer", "around") and isinstance(thing, Layer):
        look("", thing)
        alone = not isinstance(thing, Block) or outline(thing) == said["shown"]
        expect(bool(inside) or alone, "the model has no {} at {}", said["shown"], path)
    return inside[0] if inside else thing


def _nesting(tree: Any) -> Any:
    """The nesting of a tree, for JSON; None stands for a leaf."""
    if isinstance(tree, dict):
        return {name: _nesting(branch) for name, branch in tree.items()}
    return [_nesting(branch) for branch in tree] if isinstance(tree, tuple) else None


def _unnested(nesting: Any, arrays: dict[str, np.ndarray], path: str) -> Any:
    def below(name):
        return f"{path}.{name}" if path else str(name)

    if isinstance(nesting, dict):
        return {k: _unnested(v, arrays, below(k)) for k, v in nesting.items()}
    if isinstance(nesting, list):
        return tuple(_unnested(v, arrays, below(i)) for i, v in enumerate(nesting))
    expect(path in arrays, "it has no array {!r}", path)
    return arrays[path]
