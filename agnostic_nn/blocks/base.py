"""What blocks share: a look at what they are made of, and one layer inside another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..layers.base import Layer

__all__ = ["Wrapper", "changed", "expect_layers"]


def expect_layers(*layers: Any) -> None:
    """Raise TypeError unless each of a block's arguments is a layer."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"expected layers, but argument {i} is {layer!r}")


def changed(block: Any, /, **fields: Any) -> Any:
    """`block` with other fields, past its constructor: a subclass may have one of its own."""
    twin = object.__new__(type(block))
    vars(twin).update(vars(block) | fields)
    return twin


@dataclass(frozen=True)
class Wrapper(Layer):
    """Another layer with something changed about it; it takes what that layer takes."""

    layer: Layer

    def __post_init__(self):
        expect_layers(self.layer)
        object.__setattr__(self, "takes", self.layer.takes)
        object.__setattr__(self, "pointwise", self.layer.pointwise)

    def init(self, key, shape, dtype):
        return self.layer.init(key, shape, dtype)

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> "Wrapper":
        """The same block, with function(path, layer) in place of its layer."""
        return changed(self, layer=function("", self.layer))

    def check(self, x):
        self.layer.check(x)
