"""Config: hyper-parameters as plain data, and back again from a closed list of classes.

A file that may name any class to build is a program. Only what this library defines is
rebuilt, from numbers, strings and the like, through constructors that check them.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import blocks, initializers, layers, losses, optimizers, schedules

__all__ = ["describe", "rebuild"]

_KNOWN: dict[str, Any] = {}
for _module in (layers, blocks, losses, optimizers, schedules, initializers):
    for _name in _module.__all__:
        _thing = getattr(_module, _name)  # a name that is taken is known by its module too
        _KNOWN[f"{_thing.__module__}.{_name}" if _name in _KNOWN else _name] = _thing


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
    """What `describe` described; a list comes back as a tuple.

    Raises
    ------
    ValueError
        If data names something that this library does not define, or arguments that its
        constructor refuses.
    """
    if isinstance(data, list):
        return tuple(rebuild(entry) for entry in data)
    if not isinstance(data, dict):
        return data
    named = dict(data)
    if "function" in named:
        return _known(named["function"])
    if "dict" in named:
        return {name: rebuild(entry) for name, entry in named["dict"].items()}
    if "partial" in named:
        function = rebuild(named.pop("partial"))
        return partial(function, **{k: rebuild(v) for k, v in named.items()})
    kind = _known(named.pop("type", None))
    arguments = {k: rebuild(v) for k, v in named.items()}
    # as these classes are called: Sequential(*layers), Graph(**nodes)
    layers, nodes = arguments.pop("layers", ()), arguments.pop("nodes", ())
    try:
        return kind(*layers, **dict(nodes), **arguments)
    except TypeError as error:
        raise ValueError(f"the checkpoint does not fit this version: {error}") from error


def _name_of(thing: Any) -> str:
    """A name that leads back to `thing` or to nothing: one's own may be called like ours."""
    name = getattr(thing, "__name__", type(thing).__name__)
    return name if _KNOWN.get(name, thing) is thing else f"{thing.__module__}.{name}"


def _known(name: Any) -> Callable:
    if not isinstance(name, str) or name not in _KNOWN:
        raise ValueError(
            f"the checkpoint was saved with {name!r}, which agnostic_nn does not define: "
            "pass the model, loss or optimizer it stands for to Trainer.load"
        )
    return _KNOWN[name]
