"""A backend with a fault: NumPy without recorded calls, whose methods are changed while it runs.

The reference and the other backend run outside
that context and use the original methods.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import agnostic_nn as nn

__all__ = ["Change", "clean", "faulty", "of"]

# An object, the name of its attribute, and a
# function from the old value to the new one.
Change = tuple[Any, str, Callable]
_NUMPY = nn.backend("numpy")


def clean() -> nn.Backend:
    """Return NumPy without recorded calls."""
    return faulty([])


def faulty(changes: list[Change], asarray: Callable | None = None) -> nn.Backend:
    """Return NumPy with changed methods, and with another `asarray` if one is given."""

    def jit(function, device, donate=()):
        def run(*args):
            with _changed(changes):
                return function(*args)

        return run

    parts = {"jit": jit} | ({} if asarray is None else {"asarray": asarray})
    adapter = SimpleNamespace(**(vars(_NUMPY.adapter) | parts))
    return replace(_NUMPY, adapter=adapter)


@contextmanager
def _changed(changes: list[Change]) -> Iterator[None]:
    """Set the new values in this context, and restore the old ones."""
    old = []
    try:
        for place, name, make in changes:
            is_own = name in vars(place)  # not inherited
            before = getattr(place, name)
            old.append((place, name, before, is_own))
            setattr(place, name, make(before))
        yield
    finally:
        for place, name, before, is_own in reversed(old):
            if is_own:
                setattr(place, name, before)
            else:
                delattr(place, name)


def of(target: Any, method: str, make: Callable) -> Change:
    """Return a change of a method of one layer or optimizer, identified by its hyper-parameters."""

    def only(old):
        new = make(old)

        def call(self, *args, **kwargs):
            return (new if _alike(self, target) else old)(self, *args, **kwargs)

        return call

    return type(target), method, only


def _alike(thing: Any, target: Any) -> bool:
    """Return whether two layers or optimizers have equal settings.

    `compare` and `bisect` run copies of them, which are other objects.
    """
    if not isinstance(thing, type(target)):
        return False
    # A copy of a block may hold copies of its layers.
    # No model has two blocks of one class.
    if isinstance(target, nn.Block):
        return True
    names = [field.name for field in fields(target)] if is_dataclass(target) else []
    return all(getattr(thing, name) == getattr(target, name) for name in names)
