"""Parameters and constants as nodes of a `Graph`, for models of other libraries.

A value without a batch axis, such as a table of positions or a mask, has a first axis
of length 1 in a graph. Layers that broadcast then combine it with every example, and
their gradient with respect to it is a sum over the batch.
"""

from dataclasses import dataclass
from typing import Any

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import expect_choice, expect_integers
from ..core.fields import set_fields
from ..layers.base import Layer
from ..ops.precision import narrowed, widened

__all__ = ["ConstantValue", "ExpandBatch", "ParameterValue"]

_KINDS = ("real floating", "integral", "bool", "numeric")


@dataclass(frozen=True)
class ParameterValue(Layer):
    """y[0] = W, a parameter of the given shape, whatever x is.

    x: an input of the graph, whose dtype is of the kind `reads`; y: (1, *shape). W
    starts as zeros.

    Gradient
    --------
    dW = dy[0]. x has none.
    """

    shape: tuple[int, ...]
    reads: str = "real floating"

    def __post_init__(self) -> None:
        set_fields(self, shape=expect_integers("shape", self.shape, 0))
        expect_choice("reads", self.reads, _KINDS)

    @property
    def input_kinds(self) -> str:  # type: ignore[override]
        """The kind of dtype of x."""
        return self.reads

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        xp = namespace(key)
        value = xp.zeros(self.shape, dtype=dtype, device=device(key))
        return {"value": value}, {}, self.shape

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return params["value"][None, ...], state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        return None, {"value": dy[0, ...]}


@dataclass(frozen=True)
class ConstantValue(Layer):
    """y[0] = c, a constant of the given shape, whatever x is.

    x: an input of the graph, whose dtype is of the kind `reads`; y: (1, *shape). c is
    in the state, where no optimizer changes it, and starts as zeros. Its dtype is that
    of the parameters for the `kind` "real floating", int32 for "integral", and bool.

    Gradient
    --------
    Neither c nor x has one.
    """

    shape: tuple[int, ...]
    kind: str = "real floating"
    reads: str = "real floating"

    def __post_init__(self) -> None:
        set_fields(self, shape=expect_integers("shape", self.shape, 0))
        expect_choice("kind", self.kind, _KINDS[:3])
        expect_choice("reads", self.reads, _KINDS)

    @property
    def input_kinds(self) -> str:  # type: ignore[override]
        """The kind of dtype of x."""
        return self.reads

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        xp = namespace(key)
        dtypes = {"real floating": dtype, "integral": xp.int32, "bool": xp.bool}
        options = {"dtype": dtypes[self.kind], "device": device(key)}
        return {}, {"value": xp.zeros(self.shape, **options)}, self.shape

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return state["value"][None, ...], state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        return None, {}


@dataclass(frozen=True)
class ExpandBatch(Layer):
    """y[b] = x[0] for each example b of `like`.

    x: a dict of "x" (1, ...) and "like" (batch, ...), an input of the graph, whose
    dtype is of the kind `reads`; y: (batch, ...), with the other axes of "x".

    Gradient
    --------
    dx[0] = Σ dy[b] over the batch. `like` has none.
    """

    reads: str = "real floating"

    def __post_init__(self) -> None:
        expect_choice("reads", self.reads, _KINDS)

    @property
    def input_kinds(self) -> dict[str, str]:  # type: ignore[override]
        """The kinds of dtype of both inputs."""
        return {"x": "real floating", "like": self.reads}

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {}, shape["x"]

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        value, like = x["x"], x["like"]
        shape = (like.shape[0], *value.shape[1:])
        return namespace(value).broadcast_to(value, shape), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        total = namespace(dy).sum(widened(dy), axis=0, keepdims=True)
        return {"x": narrowed(total, like=dy), "like": None}, {}
