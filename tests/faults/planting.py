"""A backend with a fault: NumPy, without recorded calls, whose methods are changed while it runs.

The reference and the other backend run outside of that, so they keep the right methods.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import agnostic_nn as nn

__all__ = ["Change", "clean", "faulty", "of"]

Change = tuple[Any, str, Callable]  # where, the name there, and (the old value) -> the new one
_NUMPY = nn.backend("numpy")


def clean() -> nn.Backend:
    """Return NumPy without recorded calls."""
    return faulty([])


def faulty(changes: list[Change], asarray: Callable | None = None) -> nn.Backend:
    """Return NumPy with changed methods, and perhaps another way to move arrays to it."""

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
    """Put the new values in place, and the old ones back."""
    old = []
    try:
        for place, name, make in changes:
            own = name in vars(place)
            before = getattr(place, name)
            old.append((place, name, before, own))
            setattr(place, name, make(before))
        yield
    finally:
        for place, name, before, own in reversed(old):
            setattr(place, name, before) if own else delattr(place, name)


def of(target: Any, method: str, make: Callable) -> Change:
    """Return a change of a method of one layer or optimizer, known by its hyper-parameters."""

    def only(old):
        new = make(old)

        def call(self, *args, **kwargs):
            return (new if _alike(self, target) else old)(self, *args, **kwargs)

        return call

    return type(target), method, only


def _alike(one: Any, other: Any) -> bool:
    """Return whether two things have equal settings; `compare` and `bisect` make twins of them."""
    if not isinstance(one, type(other)):
        return False
    if isinstance(other, nn.Block):  # its layers may be twins: blocks are the only one of a kind
        return True
    names = [field.name for field in fields(other)] if is_dataclass(other) else []
    return all(getattr(one, name) == getattr(other, name) for name in names)
