"""Config: hyper-parameters as plain data, and back again from a closed list of classes.

A file that may name any class to build is a program. Only what this library defines is
rebuilt, from numbers, strings and the like, through constructors that check them.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import isfunction, signature
from typing import Any

import numpy as np

from .. import blocks, initializers, layers, losses, optimizers, schedules
from ..core.errors import expect

__all__ = ["describe", "rebuild"]

_KNOWN: dict[str, Any] = {}
for _module in (layers, blocks, losses, optimizers, schedules, initializers):
    for _name in _module.__all__:
        _thing = getattr(_module, _name)  # a name that is taken is known by its module too
        _KNOWN[f"{_thing.__module__}.{_name}" if _name in _KNOWN else _name] = _thing

_BASES = (layers.Elementwise, layers.Lambda, layers.Layer, optimizers.Rule)
_CLASSES = {
    name: thing
    for name, thing in _KNOWN.items()
    if isinstance(thing, type) and is_dataclass(thing) and thing not in _BASES
}
_FUNCTIONS = {
    name: thing
    for name, thing in _KNOWN.items()
    if isfunction(thing) and getattr(losses, name, None) is thing
}
_MOST = 20_000  # entries of a description: more would take long
_LONGEST = 1000  # characters of a text
_LARGEST = 2**63


def describe(thing: Any) -> Any:
    """Hyper-parameters as nested dicts, lists, strings and numbers, for JSON.

    What this library does not define is described too, but `rebuild` will refuse it.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, tuple | list):
        return [describe(entry) for entry in thing]
    if isinstance(thing, dict):
        return {"dict": {name: describe(entry) for name, entry in thing.items()}}
    if isinstance(thing, partial) and not thing.args:
        return {
            "partial": describe(thing.func),
            **{k: describe(v) for k, v in thing.keywords.items()},
        }
    if is_dataclass(thing) and not isinstance(thing, type):
        given = [field.name for field in fields(thing) if field.init]
        found = {name: describe(getattr(thing, name)) for name in given}
        return {"type": _name_of(type(thing)), **found}
    return {"function": _name_of(thing)}


def rebuild(data: Any) -> Any:
    """Return what `describe` described; a list comes back as a tuple.

    Raises
    ------
    ValueError
        If data names something that this library does not define, or arguments that its
        constructor refuses, or is not a description at all.
    """
    return _Rebuilding().value(data)


class _Rebuilding:
    """One call of `rebuild`, which counts its entries."""

    def __init__(self) -> None:
        self.left = _MOST

    def value(self, data: Any) -> Any:
        self.left -= 1
        expect(self.left >= 0, "the checkpoint describes more than {} entries", _MOST)
        if isinstance(data, list):
            return tuple([self.value(entry) for entry in data])
        if isinstance(data, dict):
            return self.thing(dict(data))
        return _scalar(data)

    def thing(self, named: dict) -> Any:
        if "type" in named:
            return self.made(_known(named.pop("type"), _CLASSES), named)
        if "partial" in named:
            function = self.value(named.pop("partial"))
            return self.bound(function, self.values(named))
        if len(named) != 1:
            return _known(None, _CLASSES)
        ((kind, content),) = named.items()
        if kind == "function":
            return _known(content, _FUNCTIONS)
        if kind == "dict" and isinstance(content, dict):
            return self.values(content)
        return _known(None, _CLASSES)

    def values(self, named: dict) -> dict:
        return {name: self.value(entry) for name, entry in named.items()}

    def made(self, kind: Callable, named: dict) -> Any:
        arguments = self.values(named)
        functions = [name for name, one in arguments.items() if isfunction(one)]
        if functions and kind not in (losses.Losses, losses.Weighted):
            raise ValueError(f"the checkpoint has a loss for {functions[0]} of a {kind.__name__}")
        # as these classes are called: Sequential(*layers), Graph(**nodes)
        layers, nodes = arguments.pop("layers", ()), arguments.pop("nodes", ())
        try:
            return kind(*layers, **dict(nodes), **arguments)
        except (ValueError, RecursionError):
            raise
        except Exception as error:  # of a type that no version has written
            raise ValueError(f"the checkpoint does not fit this version: {error}") from error

    def bound(self, function: Any, named: dict) -> Any:
        if not isinstance(function, losses.Losses | losses.Weighted | partial) and not isfunction(
            function
        ):
            raise ValueError(f"the checkpoint has options for {ascii(function)[:200]}, not a loss")
        try:
            signature(function).bind_partial(**named)
        except TypeError as error:
            raise ValueError(f"the checkpoint does not fit this version: {error}") from error
        return partial(function, **named)


def _scalar(data: Any) -> Any:
    """`data`, a number, a text or None, as hyper-parameters have them."""
    kind, too = type(data).__name__, "is more than any setting"
    if isinstance(data, float):
        expect(data == data, "the checkpoint has NaN for a setting")
    elif isinstance(data, str):
        expect(len(data) <= _LONGEST, "a {} of {} characters {}", kind, len(data), too)
    elif isinstance(data, int):
        expect(-_LARGEST <= data < _LARGEST, "an {} of {} bits {}", kind, data.bit_length(), too)
    else:
        expect(data is None, "expected a setting, got a {}", kind)
    return data


def _name_of(thing: Any) -> str:
    """A name that leads back to `thing` or to nothing: one's own may be called like ours."""
    name = getattr(thing, "__name__", type(thing).__name__)
    return name if _KNOWN.get(name, thing) is thing else f"{thing.__module__}.{name}"


def _known(name: Any, known: dict[str, Any]) -> Any:
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"the checkpoint was saved with {ascii(name)[:200]}, which agnostic_nn does not "
            "define: pass the model, loss or optimizer it stands for to Trainer.load"
        )
    return known[name]
