"""The layers of a model with their arrays on the host, and arrays put back into them.

A `Unit` is a layer with its path, as "encoder.0.attention", and its leaves. A block, an
attention and a recurrent layer of several levels also have parts, which are units with
the same leaves under longer paths: another library may store them as one module or as
several. Each copy inside `Repeat` is a unit, with its number in the path.
Blocks that only change how a layer computes, such as `Freeze`, `LoRA`, `WeightNorm` and
`MixedPrecision`, are not in the paths.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..blocks import (
    Block,
    Freeze,
    Graph,
    LoRA,
    Repeat,
    TransformerBlock,
    WeightNorm,
)
from ..core.trees import named_leaves, tree_map
from ..layers import GRU, LSTM, RNN, Dense, Layer, MultiHeadAttention
from .conventions import leaves_of

__all__ = ["Unit", "mapped_arrays", "name_in", "units_of"]

# state that a layer draws or derives from its options, not from data
_DRAWN = ("key", "scale", "offset")


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer at a path, its leaves {path inside the layer: array}, and its parts.

    names: {path inside the layer: name in the whole model}, as
    {"params.weight": "params.0.weight"}. is_array: whether it is one array of a layer,
    and `path` the path of that array.
    """

    path: str
    layer: Layer
    leaves: dict[str, Any]
    names: dict[str, str]
    parts: tuple["Unit", ...] = ()
    is_array: bool = False

    def walk(self) -> Iterator["Unit"]:
        """Yield this unit and all parts inside it."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def __str__(self) -> str:
        return f"{self.path or 'the model'}: {type(self.layer).__name__}"


def name_in(path: str, leaf: str) -> str:
    """Return the name in the whole model of a leaf of the layer at a path."""
    root, _, rest = leaf.partition(".")
    return ".".join(part for part in (root, path, rest) if part)


def units_of(model: Layer, params: Any, state: Any) -> list[Unit]:
    """Return the outermost units of a model that have leaves, in its order."""
    pending: list[Unit] = []
    blocks: dict[str, Layer] = {}

    def record(path: str, layer: Layer, params: Any, state: Any) -> tuple[Any, Any]:
        unit = _layer_unit(path, layer, params, state)
        if unit.leaves:
            pending.append(unit)
        return params, state

    _mapped(model, "", params, state, record, blocks)
    units: list[Unit] = []
    while pending:
        block = next((b for b in blocks if pending[0].path.startswith(f"{b}.")), None)
        if block is None and "" in blocks:
            block = ""
        if block is None:
            units.append(pending.pop(0))
            continue
        prefix = f"{block}." if block else ""
        inside = [unit for unit in pending if unit.path.startswith(prefix)]
        pending = pending[len(inside) :]
        units.append(_block_unit(block, blocks[block], inside))
    return units


def _layer_unit(path: str, layer: Layer, params: Any, state: Any) -> Unit:
    leaves = {
        name: leaf
        for name, leaf in leaves_of(params, state).items()
        if not (name.startswith("state.") and name.split(".")[-1] in _DRAWN)
    }
    names = {leaf: name_in(path, leaf) for leaf in leaves}
    unit = Unit(path, layer, leaves, names)
    if isinstance(layer, MultiHeadAttention):
        return replace(unit, parts=tuple(_projections(unit, layer)))
    if isinstance(layer, RNN | GRU | LSTM) and layer.depth > 1:
        return replace(unit, parts=tuple(_levels(unit, layer)))
    return unit


def _part(unit: Unit, name: str, layer: Layer, inner: str) -> Unit:
    """Return the part of a unit under `name`, whose leaves begin with `inner`."""
    leaves = {}
    names = {}
    for leaf, array in unit.leaves.items():
        root, _, rest = leaf.partition(".")
        if rest.startswith(f"{name}."):
            local = ".".join(filter(None, (root, inner, rest[len(name) + 1 :])))
            leaves[local] = array
            names[local] = unit.names[leaf]
    return Unit(_joined(unit.path, name), layer, leaves, names)


def _projections(unit: Unit, layer: MultiHeadAttention) -> Iterator[Unit]:
    """Yield the four Dense layers of an attention."""
    for name in ("query", "key", "value", "output"):
        width = unit.leaves[f"params.{name}.weight"].shape[1]
        yield _part(unit, name, Dense(width, bias=layer.bias), "")


def _levels(unit: Unit, layer: Any) -> Iterator[Unit]:
    """Yield the levels of a recurrent layer, each as a layer of depth 1."""
    for i in range(layer.depth):
        yield _part(unit, str(i), replace(layer, depth=1, dropout=0.0), "0")


def _block_unit(path: str, block: Layer, inside: list[Unit]) -> Unit:
    """Return the unit of a block that has the leaves of the units inside."""
    leaves = {}
    names = {}
    for unit in inside:
        inner = unit.path[len(path) + 1 :] if path else unit.path
        for leaf, array in unit.leaves.items():
            local = name_in(inner, leaf)
            leaves[local] = array
            names[local] = unit.names[leaf]
    return Unit(path, block, leaves, names, tuple(inside))


def mapped_arrays(
    model: Layer,
    params: Any,
    state: Any,
    function: Callable[[str, Any], Any],
) -> tuple[Any, Any]:
    """Return both trees with function(name in the model, array) for each array."""

    def convert(path: str, layer: Layer, params: Any, state: Any) -> tuple[Any, Any]:
        trees = []
        for root, tree in (("params", params), ("state", state)):
            named = {
                name: function(name_in(path, f"{root}.{name}" if name else root), leaf)
                for name, leaf in named_leaves(tree)
            }
            trees.append(_rebuilt(tree, named))
        return trees[0], trees[1]

    return _mapped(model, "", params, state, convert)


def _rebuilt(tree: Any, named: dict[str, Any], prefix: str = "") -> Any:
    if isinstance(tree, dict):
        return {k: _rebuilt(v, named, _joined(prefix, k)) for k, v in tree.items()}
    if isinstance(tree, tuple):
        branches = enumerate(tree)
        return tuple(_rebuilt(v, named, _joined(prefix, str(i))) for i, v in branches)
    return named[prefix]


# function(path, layer, params, state) -> (params, state)
_Convert = Callable[[str, Layer, Any, Any], tuple[Any, Any]]


def _mapped(
    layer: Layer,
    path: str,
    params: Any,
    state: Any,
    convert: _Convert,
    blocks: dict[str, Layer] | None = None,
) -> tuple[Any, Any]:
    """Return the trees of a layer with those of each layer inside converted.

    blocks: gets the path of each block that other libraries may have as a module.
    """

    def inside(inner: Layer, name: str, params: Any, state: Any) -> tuple[Any, Any]:
        return _mapped(inner, _joined(path, name), params, state, convert, blocks)

    if isinstance(layer, Freeze):
        trees = inside(layer.layer, "", *layer.release(params, state))
        return layer.freeze(*trees)
    if isinstance(layer, LoRA):
        trees = inside(layer.layer, "", state["params"], state["state"])
        return params, layer.around(*trees)
    if isinstance(layer, WeightNorm):
        whole, state = inside(layer.layer, "", layer.merged(params), state)
        return layer.split(whole), state
    if isinstance(layer, Repeat):
        copies = []
        for i in range(layer.count):
            entry = tree_map(lambda leaf, i=i: leaf[i, ...], (params, state))
            copies.append(inside(layer.layer, str(i), *entry))
        stacked: tuple[Any, Any] = tree_map(lambda *each: np.stack(each), *copies)
        return stacked
    if not isinstance(layer, Block):
        return convert(path, layer, params, state)
    if isinstance(layer, TransformerBlock) and blocks is not None:
        blocks[path] = layer
    for name, inner, state_at in _inside(layer, params):
        trees = inside(inner, name, _at(params, name), _at(state, state_at))
        params = _replaced(params, name, trees[0])
        state = _replaced(state, state_at, trees[1])
    return params, state


def _inside(layer: Layer, params: Any) -> list[tuple[str, Layer, str]]:
    """Return (path of params, layer, path of state) of the layers inside a block."""
    if isinstance(layer, TransformerBlock):
        width = params["feed"][-1]["weight"].shape[1]
        return [(name, each, name) for name, each in layer._layers(width).items()]
    if isinstance(layer, Graph):
        # a node that shares the params of another is not counted twice
        owners = [call for call in layer._calls if call.params_at == call.name]
        return [(call.name, call.layer, call.state_at) for call in owners]
    return [(name, each, name) for name, each in layer._inner_layers()]


def _at(tree: Any, path: str) -> Any:
    """Return the subtree at a path such as "0" or "shortcut.weight"."""
    for name in filter(None, path.split(".")):
        tree = tree[int(name)] if isinstance(tree, tuple) else tree[name]
    return tree


def _replaced(tree: Any, path: str, new: Any) -> Any:
    """Return a tree with another subtree at a path."""
    if not path:
        return new
    name, _, rest = path.partition(".")
    if isinstance(tree, tuple):
        i = int(name)
        return (*tree[:i], _replaced(tree[i], rest, new), *tree[i + 1 :])
    return {**tree, name: _replaced(tree[name], rest, new)}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
