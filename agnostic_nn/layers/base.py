"""The layer contract: every layer, and every block of layers, has these three methods."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..arrays import Array, Cache, Key, Params, Rows, Shape, State, first_true, namespace
from ..special import all_finite

__all__ = ["Layer"]


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

    def check(self, x: Array) -> None:
        """Refuse data on the host whose values this layer cannot take; shapes are not its concern.

        Called before data go to a backend, since `jit` hides values and libraries
        differ in what they do with bad ones.

        Raises
        ------
        TypeError
            If the dtype of x is not of the kind that this layer takes.
        ValueError
            If x holds a value that this layer cannot take.
        """
        xp = namespace(x)
        if not xp.isdtype(x.dtype, self.takes):
            raise TypeError(f"{type(self).__name__} takes {self.takes} numbers, got {x.dtype}")
        if self.takes != "real floating" or all_finite(x):
            return
        bad = first_true(~xp.isfinite(x)) or ()
        raise ValueError(f"expected finite numbers, but x{list(bad)} is {x[bad]}")
