"""Load objects named as module:object, from the current folder or a package."""

import os
import sys
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

from ..layers.base import Layer

__all__ = ["CannotLoad", "load", "load_layer"]


class CannotLoad(ValueError):
    """A named object does not exist or cannot be loaded; the message says why."""


def load(name: str) -> Any:
    """Return the object that "module:object" names, or the module that "module" names.

    The current folder becomes the first entry of `sys.path` and stays there, as with
    `python -m`: a custom module may import another one later, inside a function.

    Raises
    ------
    CannotLoad
        If there is no such module or object, or importing it fails.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, _, attributes = name.partition(":")
    loaded = _module(module_name)
    for attribute in attributes.split(".") if attributes else ():
        loaded = _attribute(loaded, attribute, module_name, attributes)
    return loaded


def load_layer(name: str) -> Layer:
    """Return the layer that "module:object" names, or that the object returns.

    Raises
    ------
    CannotLoad
        As for `load`, or if the object is neither a layer nor returns one when called.
    """
    module_name, _, attributes = name.partition(":")
    if not (module_name and attributes):
        raise CannotLoad(f"expected a custom layer as module:object, got {name!r}")
    layer = load(name)
    if callable(layer) and not isinstance(layer, Layer):
        try:
            layer = layer()
        except (Exception, SystemExit) as error:  # a custom function may raise anything
            fault = f"{name} cannot be called without arguments"
            raise CannotLoad(f"{fault}: {_one_line(error)}") from error
    if not isinstance(layer, Layer):
        kind = type(layer).__qualname__
        raise CannotLoad(f"{name} is not a layer and does not return one: got {kind}")
    return layer


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name.endswith(".py"):
            raise CannotLoad(f"expected a module without .py: {name[:-3]}") from error
        if f"{name}.".startswith(f"{missing}."):
            where = f"it is not in {os.getcwd()} and not installed"
            raise CannotLoad(f"there is no module {missing!r}: {where}") from error
        fault = f"{name} needs the module {missing!r}, which is not installed"
        raise CannotLoad(fault) from error
    except (Exception, SystemExit) as error:  # importing runs code, which may exit
        place = extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        fault = f"{name} cannot be imported"
        raise CannotLoad(f"{fault}: {_one_line(error)} ({where})") from error


def _attribute(owner: Any, attribute: str, module_name: str, attributes: str) -> Any:
    try:
        return getattr(owner, attribute)
    except AttributeError as error:
        variables = vars(sys.modules[module_name])
        layers = [name for name, value in variables.items() if isinstance(value, Layer)]
        remedy = f"; its layers are {', '.join(layers)}" if layers else ""
        raise CannotLoad(f"{module_name} has no {attributes!r}{remedy}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
