"""Pretrained: a layer that starts from given weights instead of random ones.

The bridges from other libraries return one. The weights are part of the model, so that
`Trainer`, `compare`, `check` and the other tools start from them without another step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from ..blocks.base import Block, Wrapper, with_fields
from ..core.arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import expect
from ..core.fields import set_fields
from ..core.trees import leaves, named_leaves, tree_from_leaves
from ..initializers import Constant
from ..layers.base import Layer

__all__ = ["Pretrained", "Weights", "without_draws"]


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """A tree of NumPy arrays, compared and hashed by its contents.

    tree: nested dicts and tuples of arrays. The arrays are copied unless they are
    read-only already, and the copies are read-only.

    Raises TypeError if a leaf is not an array of numbers.
    """

    tree: Any

    def __post_init__(self) -> None:
        set_fields(self, tree=_read_only(self.tree))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 digest of the paths, dtypes, shapes and bytes of all arrays."""
        digest = sha256()
        for path, leaf in named_leaves(self.tree):
            digest.update(f"{path} {leaf.dtype.str} {leaf.shape};".encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """The number of numbers in all arrays."""
        return sum(leaf.size for leaf in leaves(self.tree))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weights):
            return NotImplemented
        return self is other or self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<{self.size:,} numbers in {len(leaves(self.tree))} arrays>"


@dataclass(frozen=True, repr=False)
class Pretrained(Wrapper):
    """y = f(x), with the layer f, whose params and state start from given weights.

        model = Pretrained(nn.Dense(2), {"weight": weight, "bias": bias})

    `params` has an array for each parameter of the layer, nested like its params.
    `state` may omit entries, which then start as those of the layer do. Arrays are of
    NumPy or can be converted to it; `init` converts them to the dtype, library and
    device of its key. `names` says which parameter of the source model each array is,
    as pairs such as ("conv1.weight", "layer1.0.conv1.weight").

    A checkpoint describes the layer inside, as it has the weights itself, so
    `Trainer.load` returns a model without this block.

    Raises TypeError if `params` or `state` is not a tree of numbers. `init` raises
    ValueError if the names or shapes are not those of the layer.

    Gradient
    --------
    That of f.
    """

    params: Any
    state: Any = field(default_factory=lambda: Weights({}))
    names: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("params", "state"):
            tree = getattr(self, name)
            if not isinstance(tree, Weights):
                set_fields(self, **{name: Weights(tree)})

    def __repr__(self) -> str:
        return f"Pretrained({type(self.layer).__name__}(...), {self.params})"

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        params, state, out = without_draws(self.layer).init(key, shape, dtype)
        missing = _paths(params) - _paths(self.params.tree)
        expect(not missing, "the weights lack {}", ", ".join(sorted(missing)))
        params = _replaced("params", params, self.params.tree, key)
        return params, _replaced("state", state, self.state.tree, key), out

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return self.layer.forward(params, state, x, train=train)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return self.layer.backward(params, cache, dy)

    def predict(self, params: Params, state: State, x: Array) -> Array:
        return self.layer.predict(params, state, x)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        return self.layer.backward_params(params, cache, dy)

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        return self.layer.begin(params, state, x, length)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.layer.advance(params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.layer.prefill(params, state, memory, x)

    def _described(self) -> Layer:
        return self.layer._described()


def _read_only(tree: Any) -> Any:
    """Return a tree of read-only NumPy arrays that nothing else can change."""
    if isinstance(tree, Mapping):
        return {str(name): _read_only(branch) for name, branch in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(_read_only(branch) for branch in tree)
    array = np.asarray(tree)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"expected an array of numbers, got one of {array.dtype}")
    if array.flags.writeable or array.base is not None:
        array = np.array(array, order="C")
        array.flags.writeable = False
    return array


def without_draws(layer: Layer) -> Layer:
    """Return a layer that draws no random weights, since they would be replaced."""
    if isinstance(layer, Block):
        layer = layer.map_layers(lambda _, inner: without_draws(inner))
    names = ("initializer", "recurrent_initializer")
    zeros = {name: Constant(0.0) for name in names if name in vars(layer)}
    return with_fields(layer, **zeros) if zeros else layer


def _paths(tree: Any) -> set[str]:
    """Return the paths of all arrays in a tree."""
    return {path for path, leaf in named_leaves(tree) if hasattr(leaf, "dtype")}


def _replaced(name: str, template: Any, weights: Any, key: Key) -> Any:
    """Return the arrays of `weights`, and those of `template` where it has none.

    They get the dtypes of those in `template`, and the library and device of `key`.
    """
    unknown = _paths(weights) - _paths(template)
    message = "the weights have the {} {}, but the layer has {}"
    expect(not unknown, message, name, sorted(unknown), sorted(_paths(template)))
    named = dict(named_leaves(template))
    for path, array in named_leaves(weights):
        if path in named:
            named[path] = _converted(f"{name} {path}", array, named[path], key)
    return tree_from_leaves(named, template)


def _converted(name: str, array: np.ndarray, like: Array, key: Key) -> Array:
    """Return `array` with the dtype of `like` and the library and device of `key`."""
    fits = tuple(array.shape) == tuple(like.shape)
    message = "the weights have {} of shape {}, but the layer needs {} for this x"
    expect(fits, message, name, array.shape, like.shape)
    xp = namespace(key)
    is_real = xp.isdtype(like.dtype, "real floating")
    fits = is_real == (array.dtype.kind not in "biu")
    message = "the weights have {} of {}, but the layer needs {}"
    expect(fits, message, name, array.dtype, like.dtype)
    if array.dtype.name == "bfloat16":  # not every library converts it
        array = array.astype(np.float32)
    return xp.asarray(array, dtype=like.dtype, device=device(key), copy=True)
