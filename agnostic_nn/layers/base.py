"""The layer contract: every layer, and every block of layers, has these three methods."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    Rows,
    Shape,
    State,
    expect,
    first_true,
    namespace,
)
from ..special import all_finite
from ..trees import leaves, named_leaves

__all__ = ["Layer", "kinds"]


def kinds(takes: Any, x: Any) -> Any:
    """What `takes` says of each leaf of `x`, nested like x.

    Raises
    ------
    ValueError
        If x is a dict with a name that is not taken.
    """
    if isinstance(x, dict) and isinstance(takes, dict):
        unknown = sorted(x.keys() - takes.keys())
        expect(not unknown, "expected inputs among {}, got {}", sorted(takes), unknown)
        return {name: kinds(takes[name], leaf) for name, leaf in x.items()}
    if isinstance(x, dict):
        return {name: kinds(takes, leaf) for name, leaf in x.items()}
    takes = takes["x"] if isinstance(takes, dict) else takes
    return tuple(kinds(takes, leaf) for leaf in x) if isinstance(x, tuple) else takes


@dataclass(frozen=True)
class Layer:
    """A frozen dataclass of hyper-parameters with three pure methods.

    A layer owns no arrays. Whatever it needs comes in through the arguments and
    whatever it makes goes out through the return value. So it prints, compares, hashes
    and pickles; a subclass with hyper-parameters of its own is decorated like this one.

    Where one array is not enough, x is a tree: a dict of arrays by name (an array alone is
    then the one called "x"), or a tuple. Its shape is nested alike, a shape being a tuple of
    integers, and so are y and dy. dx is nested like x, with None for what has no gradient.
    """

    # the Standard's word for the kind of dtype of x; by name where x may be a dict
    takes: ClassVar[str | dict[str, str]] = "real floating"
    # whether y at a position depends on x there alone, the batch and the last axis left aside
    pointwise: ClassVar[bool] = False

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        """Make `params` and `state` for inputs of `shape` (batch axis left out).

        Returns them with the shape of the outputs. Both are made by the library of
        `key`. Raises ValueError if the layer cannot take inputs of that shape.
        """
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | Rows = False
    ) -> tuple[Array, State, Cache]:
        """Map `x` to `y`; also return the next state and what `backward` will need."""
        raise NotImplementedError

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        """Map dL/dy to dL/dx; also return dL/dparams, nested like `params`."""
        raise NotImplementedError

    def predict(self, params: Params, state: State, x: Array) -> Array:
        """The y of `forward` in the mode for prediction; a block keeps nothing on the way."""
        return self.forward(params, state, x)[0]

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        """The dL/dparams of `backward` alone, for a model's first layer: nobody asks for its dx."""
        return self.backward(params, cache, dy)[1]

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        """What a layer remembers before the first of at most `length` steps in time.

        x: one step's input, (batch, 1, ...), of which only the batch and the device count,
        and in a dict of inputs those that are there at every step.

        Raises
        ------
        TypeError
            If y at one time depends on x at a later time, or this layer keeps no memory.
        """
        if not self.pointwise:
            raise TypeError(f"{self} cannot go step by step: it looks at more than one position")
        return ()

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        """One step in time, as in prediction: y for x (batch, 1, ...), given all steps before it.

        What `forward` puts out there for all steps so far at once. Shapes and dtypes of
        memory stay, so `jit` compiles one step and no more; steps past the length that
        `begin` was given are undefined, since `jit` hides their number.
        """
        return self.forward(params, state, x)[0], memory

    def check(self, x: Array) -> None:
        """Refuse data on the host whose values this layer cannot take; shapes are not its concern.

        Called before data go to a backend, since `jit` hides values and libraries
        differ in what they do with bad ones.

        Raises
        ------
        TypeError
            If the dtype of a leaf of x is not of the kind that this layer takes.
        ValueError
            If x holds a value or a name that this layer cannot take.
        """
        wanted = leaves(kinds(self.takes, x))
        for (name, leaf), kind in zip(named_leaves(x, "x"), wanted, strict=True):
            xp = namespace(leaf)
            if not xp.isdtype(leaf.dtype, kind):
                said = "" if name == "x" else f" as {name}"
                wrong = f"{type(self).__name__} takes {kind} numbers{said}, got {leaf.dtype}"
                raise TypeError(wrong)
            if kind == "real floating" and not all_finite(leaf):
                bad = first_true(~xp.isfinite(leaf)) or ()
                raise ValueError(f"expected finite numbers, but {name}{list(bad)} is {leaf[bad]}")
