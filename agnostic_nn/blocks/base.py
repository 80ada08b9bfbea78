"""Base classes and helpers of blocks, layers that are made of other layers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from ..core.arrays import Array, Key, Params, Shape, State
from ..core.errors import expect
from ..layers.base import Layer, not_a_layer

B = TypeVar("B", bound=Layer)

__all__ = ["Block", "Wrapper", "common_input_kind", "expect_layers", "with_fields"]


class Block(Layer):
    """A layer that is made of other layers.

    A custom block inherits from this class and defines `map_layers`. `explain`,
    `profile`, `bisect` and other tools use it to see the layers inside; to them, a
    layer that does not inherit from `Block` is a single layer.
    """

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        """Return this block with each inner layer replaced by function(path, layer).

        `path` is where the block stores the params of that layer, such as "0"; it is ""
        if params of the block are those of the layer. Only layers directly inside the
        block count, not those inside of another block.
        """
        raise NotImplementedError

    def _inner_layers(self) -> list[tuple[str, Layer]]:
        inner_layers: list[tuple[str, Layer]] = []

        def record(path: str, layer: Layer) -> Layer:
            inner_layers.append((path, layer))
            return layer

        self.map_layers(record)
        return inner_layers


@dataclass(frozen=True)
class Wrapper(Block):
    """A block around one layer, with the params, state and inputs of that layer."""

    layer: Layer

    def __post_init__(self) -> None:
        expect_layers(self.layer)

    @property
    def input_kinds(self) -> str | dict[str, str]:  # type: ignore[override]
        """The dtype kinds that the layer inside accepts."""
        return self.layer.input_kinds

    @property
    def per_position(self) -> bool:  # type: ignore[override]
        """True if the layer inside computes each position from that position alone."""
        return self.layer.per_position

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return self.layer.init(key, shape, dtype)

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        return with_fields(self, layer=function("", self.layer))

    def check(self, x: Array) -> None:
        self.layer.check(x)


def expect_layers(*layers: Any) -> None:
    """Raise TypeError unless each of a block's arguments is a layer."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(
                f"expected layers, but argument {i} is {not_a_layer(layer)}"
            )


def common_input_kind(name: str, input_kinds: Iterable[Any]) -> Any:
    """Return the dtype kind accepted by all layers that read input `name`.

    input_kinds: the attribute of that name of each layer.

    Raises
    ------
    ValueError
        If the layers accept different kinds.
    """
    kinds = list(input_kinds)
    # equal dicts stay a dict; otherwise the input is one array, which a dict calls "x"
    if any(kind != kinds[0] for kind in kinds):
        kinds = [kind.get("x") if isinstance(kind, dict) else kind for kind in kinds]
    # a layer that takes all numbers takes those that the others need
    specific = [kind for kind in kinds if kind != "numeric"]
    if all(kind in ("real floating", "integral") for kind in specific):
        kinds = specific or kinds
    is_common = all(kind == kinds[0] for kind in kinds)
    expect(
        is_common, "{} would have to be {} at once", name, " and ".join(map(str, kinds))
    )
    return kinds[0]


def with_fields(block: B, /, **fields: Any) -> B:
    """Return a copy of `block` with other values of some fields.

    The constructor is not called, because that of a subclass may take other arguments.
    """
    twin = object.__new__(type(block))
    vars(twin).update(vars(block) | fields)
    return twin
