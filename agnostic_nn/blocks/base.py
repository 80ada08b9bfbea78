"""What blocks share: a look at what they are made of, and one layer inside another."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..core.errors import expect
from ..layers.base import Layer, not_a_layer

__all__ = ["Wrapper", "changed", "common", "expect_layers"]


def expect_layers(*layers: Any) -> None:
    """Raise TypeError unless each of a block's arguments is a layer."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"expected layers, but argument {i} is {not_a_layer(layer)}")


def common(name: str, takes: Iterable[Any]) -> Any:
    """What several layers that read one thing, called `name`, all take for it.

    Raises
    ------
    ValueError
        If they take different things.
    """
    found = list(takes)
    if any(one != found[0] for one in found):  # then none may be a dict of inputs
        found = [one.get("x") if isinstance(one, dict) else one for one in found]
    same = all(one == found[0] for one in found)
    expect(same, "{} would have to be {} at once", name, " and ".join(map(str, found)))
    return found[0]


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
        object.__setattr__(self, "input_kinds", self.layer.input_kinds)
        object.__setattr__(self, "per_position", self.layer.per_position)

    def init(self, key, shape, dtype):
        return self.layer.init(key, shape, dtype)

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> "Wrapper":
        """The same block, with function(path, layer) in place of its layer."""
        return changed(self, layer=function("", self.layer))

    def check(self, x):
        self.layer.check(x)
