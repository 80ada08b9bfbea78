"""A backend with a fault: NumPy without replay, with methods changed during its calls.

The reference and the other backend use the original methods.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import agnostic_nn as nn

__all__ = ["Change", "clean", "faulty", "of"]

# An object, the name of its attribute, and a function from its old to its new value.
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
        for owner, name, make in changes:
            is_own = name in vars(owner)  # not inherited
            before = getattr(owner, name)
            old.append((owner, name, before, is_own))
            setattr(owner, name, make(before))
        yield
    finally:
        for owner, name, before, is_own in reversed(old):
            if is_own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)


def of(target: Any, method: str, make: Callable) -> Change:
    """Return a change of a method of one layer or optimizer, found by its fields."""

    def only(old):
        new = make(old)

        def call(self, *args, **kwargs):
            return (new if _is_copy(self, target) else old)(self, *args, **kwargs)

        return call

    return type(target), method, only


def _is_copy(value: Any, target: Any) -> bool:
    """Return whether two layers or optimizers have equal settings.

    `compare` and `bisect` run copies of them, which are other objects.
    """
    if not isinstance(value, type(target)):
        return False
    # A copy of a block may have copies of its layers, so the class has to be enough. No
    # model has two blocks of one class.
    if isinstance(target, nn.Block):
        return True
    names = [field.name for field in fields(target)] if is_dataclass(target) else []
    return all(getattr(value, name) == getattr(target, name) for name in names)
