"""Loading: what module:object names, in the current folder or among what is installed."""

import os
import sys
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

from ..layers.base import Layer

__all__ = ["CannotLoad", "load", "load_layer"]


class CannotLoad(ValueError):
    """What was named is not there or fails; the message says in one line what, and why."""


def load(named: str) -> Any:
    """The object that "module:object" names, or the module that "module" does.

    The current folder becomes the first place where modules are looked for and stays it, as with
    `python -m`: a module of one's own may import another only when it is called.

    Raises
    ------
    CannotLoad
        If there is no such module or object, or importing it fails.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    home, _, names = named.partition(":")
    found = _module(home)
    for name in names.split(".") if names else ():
        found = _attribute(found, name, home, names)
    return found


def load_layer(named: str) -> Layer:
    """The layer that "module:object" names, or the one that the object makes when it is called.

    Raises
    ------
    CannotLoad
        As above, or if that is no layer.
    """
    home, _, name = named.partition(":")
    if not (home and name):
        raise CannotLoad(f"a layer of one's own is named as module:object, got {named!r}")
    found = load(named)
    if callable(found) and not isinstance(found, Layer):
        try:
            found = found()
        except (Exception, SystemExit) as error:  # a stranger's function may raise anything
            fault = f"{named} cannot be called without arguments"
            raise CannotLoad(f"{fault}: {_said(error)}") from error
    if not isinstance(found, Layer):
        kind = type(found).__qualname__
        raise CannotLoad(f"{named} is no layer, and gives none when called: it is a {kind}")
    return found


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name.endswith(".py"):
            raise CannotLoad(f"a module is named without .py: {name[:-3]}") from error
        if f"{name}.".startswith(f"{missing}."):
            where = f"there is none in {os.getcwd()}, and none is installed"
            raise CannotLoad(f"no module is called {missing!r}: {where}") from error
        raise CannotLoad(f"{name} needs the module {missing!r}, which is not there") from error
    except (Exception, SystemExit) as error:  # whatever a stranger's file does, exit() too
        place = extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise CannotLoad(f"{name} does not import: {_said(error)} ({where})") from error


def _attribute(found: Any, name: str, home: str, names: str) -> Any:
    try:
        return getattr(found, name)
    except AttributeError as error:
        known = [n for n, one in vars(sys.modules[home]).items() if isinstance(one, Layer)]
        remedy = f"; its layers are {', '.join(known)}" if known else ""
        raise CannotLoad(f"{home} has no {names!r}{remedy}") from error


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
