"""The library that is tried: with its adapter if it has one, or with none."""

from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace

import numpy as np

from ...core.arrays import namespace
from ...core.backend import (
    ADAPTER,
    Backend,
    BackendUnavailable,
    backend,
    chosen_policy,
    known_backends,
)
from ..loading import CannotLoad, load

__all__ = ["library", "line"]


def library(name: str, *, bare: bool = False) -> Backend:
    """The library called `name`, with its adapter if it has one.

    A backend, with a device if need be; or a module that is an adapter, or a namespace; or
    module:object, a namespace. bare: do without the adapter.

    Raises
    ------
    BackendUnavailable
        If there is no such thing, or it cannot run.
    """
    if not bare and name.partition(":")[0] in known_backends():
        return backend(name)
    try:
        found = load(name)
    except CannotLoad as error:
        names = ", ".join(known_backends())
        raise BackendUnavailable(f"{name} is not a backend ({names}): {error}") from error
    missing = [each for each in ADAPTER if not hasattr(found, each)]
    if missing and not bare and hasattr(found, "to_numpy"):  # which no namespace has
        raise BackendUnavailable(f"{name} is an adapter, but lacks {', '.join(missing)}")
    adapter = _adapted(name, found) if bare or missing else found
    try:
        device_name, device = next(iter(adapter.devices().items()))
    except Exception as error:
        raise BackendUnavailable(f"{name} finds no device: {line(error)}") from error
    return Backend(name, device_name, device, adapter, *chosen_policy(None, None))


def _adapted(name, given):
    """An adapter for a namespace that has none: the Standard's own words, and nothing native."""
    try:
        xp = namespace(given.asarray([0.0]))
    except Exception as error:
        reason = f"arrays of {name} do not speak the Array API Standard: {line(error)}"
        raise BackendUnavailable(reason) from error

    def asarray(data, device):
        # without a dtype some would make float32 of float64; one that is missing is the error
        return xp.asarray(np.array(data, order="C"), dtype=getattr(xp, data.dtype.name))

    def to_numpy(array):
        try:
            found = np.asarray(array)
        except (TypeError, ValueError, RuntimeError):
            return np.from_dlpack(array)
        if found.dtype == object:
            remedy = "they need __array__ or __dlpack__, or the library an adapter"
            raise TypeError(f"NumPy finds no numbers in arrays of {name}: {remedy}")
        return found

    def has_float64(device):
        try:
            return xp.asarray([0.0], dtype=xp.float64).dtype == xp.float64
        except Exception:  # each library has its own way to refuse
            return False

    version = getattr(given, "__version__", "") or getattr(
        import_module(name.partition(":")[0].partition(".")[0]), "__version__", "?"
    )
    return SimpleNamespace(
        xp=xp,
        version=version,
        devices=lambda: {"default": None},
        describe=lambda device: "its default device",
        has_float64=has_float64,
        double=nullcontext,
        asarray=asarray,
        to_numpy=to_numpy,
        jit=lambda function, device, donate=(): function,
        compiles=False,
        synchronize=to_numpy,
        vjp=None,
    )


def line(error: BaseException) -> str:
    """An error in one line."""
    said = " ".join(str(error).split())
    said = said if len(said) <= 160 else f"{said[:157]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
