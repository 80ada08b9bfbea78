"""Roundings: how many follow one another in a training step, layer by layer.

One step is taken on the host, on arrays that say what is done with them. A sum of k numbers,
as each element of a product of matrices is one, makes k roundings; any other arithmetic makes
one; what only moves, compares or chooses numbers makes none. A function of `ops` counts
as what it is by the Standard alone, since a native version may round less but not more often.

All of it counts as if in a row, in the order in which it is computed, also what stands side by
side: the number met when a layer's outputs are there is that of all roundings that they can
have inherited, and so it is, on the way back, with the layer's gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...blocks import Block
from ...core.backend import Backend
from ...core.backend import backend as choose
from ...core.trees import leaves, tree_map
from ...layers import Layer
from ..profile import _now, _value, _Watched

__all__ = ["Chains", "chains", "layer_of", "twin"]

SUMS = {"sum", "mean", "var", "std", "prod", "cumulative_sum", "cumulative_prod"}
PRODUCTS = {"matmul", "vecdot", "tensordot"}
EXACT = {  # what makes no new numbers
    "abs", "argmax", "argmin", "argsort", "asarray", "astype", "broadcast_arrays", "broadcast_to",
    "ceil", "clip", "concat", "copysign", "empty", "empty_like", "expand_dims", "eye", "flip",
    "floor", "full", "full_like", "getitem", "matrix_transpose", "max", "maximum", "min", "minimum",
    "moveaxis", "negative", "ones", "ones_like", "permute_dims", "positive", "repeat", "reshape",
    "roll", "round", "sign", "sort", "squeeze", "stack", "take", "take_along_axis", "tile", "tril",
    "triu", "trunc", "unstack", "where", "zeros", "zeros_like",
}  # fmt: skip


@dataclass(frozen=True)
class Chains:
    """Roundings in a row: until each layer's outputs and gradients are there, and in a step.

    outputs and gradients: by the layer's place in the model, in the order of computation;
    about: what the layer is; predictions: until those of the model are there.
    """

    outputs: dict[str, int]
    gradients: dict[str, int]
    step: int
    about: dict[str, str] = field(default_factory=dict)
    predictions: int = 0

    @property
    def loss(self) -> int:
        """Until the loss is there, at most: the first gradient comes after it."""
        return min(self.gradients.values(), default=self.step)

    @property
    def update(self) -> int:
        """From the gradients to the new parameters."""
        return self.step - max(self.gradients.values(), default=0)


def chains(
    step_of: Callable[[Layer], Callable], model: Layer, carry: Any, batch: tuple, x: Any = None
) -> Chains:
    """The roundings of step_of(model)(carry, *batch), a step as `make_step` makes it.

    x: examples to predict, whose roundings are counted too.

    Where a layer of somebody's own takes no arrays but NumPy's they cannot be watched. Then
    shapes must do: forward sums over the rows of each weight, backward over its columns, and
    a gradient over the batch; the lengths of all axes of all parameters, and once the batch.
    """
    count = _Count()
    outputs: dict[str, int] = {}
    gradients: dict[str, int] = {}
    about: dict[str, str] = {}

    def noting(kind: type, name: str, path: str, noted: dict[str, int]) -> Callable:
        def method(self: Any, *args: Any, **mode: Any) -> Any:
            found = getattr(kind, name)(self, *args, **mode)
            noted.pop(path, None)  # so that the last one to be reached stands last
            noted[path] = count.roundings
            return found

        return method

    def methods(layer: Layer, path: str) -> dict[str, Callable]:
        about[path] = type(layer).__name__ if isinstance(layer, Block) else repr(layer)
        names = {"forward": outputs, "backward": gradients, "backward_params": gradients}
        return {name: noting(type(layer), name, path, noted) for name, noted in names.items()}

    predicting = _Count()
    try:
        _counted(count, step_of(twin(model, methods)), (carry, *batch))
        if x is not None:
            _counted(predicting, model.predict, (carry[0], carry[1], x))
    except Exception:  # of whatever kind a custom layer raises
        guess = len(batch[2]) + sum(sum(leaf.shape) for leaf in leaves(carry[0]))
        return Chains({}, {}, guess, predictions=guess)
    return Chains(outputs, gradients, count.roundings, about, predicting.roundings)


def _counted(count: "_Count", function: Callable, trees: tuple) -> None:
    """Run function(*trees), counting."""
    before = _now.set(count)  # type: ignore[arg-type]
    try:
        function(*tree_map(_Watched, trees))
    finally:
        _now.reset(before)


def twin(
    layer: Layer, methods: Callable[[Layer, str], dict[str, Callable]], path: str = ""
) -> Layer:
    """A layer like `layer`, and so all layers in it, with other methods: methods(layer, path)."""

    def inner(name: str, layer: Layer) -> Layer:
        return twin(layer, methods, ".".join(filter(None, (path, name))))

    kind = type(layer)
    mapped = layer.map_layers(inner) if isinstance(layer, Block) else layer
    made: Any = object.__new__(type(kind.__name__, (kind,), methods(layer, path)))
    vars(made).update(vars(mapped))
    return made


def layer_of(name: str, paths: Any) -> str:
    """Of the layers at `paths` the innermost that holds the parameter called `name`."""
    holding = [path for path in paths if not path or f"{name}.".startswith(f"{path}.")]
    return max(holding, key=len, default="")


@dataclass
class _Count:
    """Told of every operation in the place of a clock, it counts roundings."""

    backend: Backend = field(default_factory=lambda: choose("numpy"))
    roundings: int = 0

    def time(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        home, _, inner = name.rpartition(".")
        if home == "ops" and hasattr(function, "dispatch"):
            plain = function.dispatch(object)
            return _each(_value, plain(*_each(_watched, args), **_each(_watched, kwargs)))
        found = function(*args, **kwargs)
        if home != "random" and inner not in EXACT:
            self.roundings += _made(inner, args, found)
        return found


def _made(name: str, args: tuple, found: Any) -> int:
    """How many roundings each element of what was `found` has gone through."""
    out = [leaf for leaf in _arrays(found) if leaf.dtype.kind == "f"]
    if not out or not out[0].size:
        return 0
    if name in PRODUCTS:
        return args[0].shape[-1]
    if name in SUMS:
        return max(1, args[0].size // out[0].size)
    return 1


def _arrays(tree: Any) -> list:
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in _arrays(branch)]
    return [tree] if isinstance(tree, np.ndarray | np.generic) else []


def _watched(leaf: Any) -> Any:
    return _Watched(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _each(function: Callable, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _each(function, v) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([_each(function, v) for v in tree])
    return function(tree)
