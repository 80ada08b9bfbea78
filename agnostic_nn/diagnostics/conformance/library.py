"""Load the library to be tested, with its adapter if it has one."""

from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

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

__all__ = ["error_line", "library"]


def library(name: str, *, bare: bool = False) -> Backend:
    """Return the library called `name` as a backend.

    name: a backend, optionally with a device; or a module that is an adapter or an
    Array API namespace; or a namespace given as module:object. bare: do not use the
    adapter.

    Raises
    ------
    BackendUnavailable
        If there is no such library, or it cannot run.
    """
    if not bare and name.partition(":")[0] in known_backends():
        return backend(name)
    try:
        loaded = load(name)
    except CannotLoad as error:
        names = ", ".join(known_backends())
        raise BackendUnavailable(
            f"{name} is not a backend ({names}): {error}"
        ) from error
    missing = [attribute for attribute in ADAPTER if not hasattr(loaded, attribute)]
    is_adapter = hasattr(loaded, "to_numpy")  # no namespace has it
    if missing and not bare and is_adapter:
        raise BackendUnavailable(
            f"{name} is an adapter, but lacks {', '.join(missing)}"
        )
    adapter = _generic_adapter(name, loaded) if bare or missing else loaded
    try:
        device_name, device = next(iter(adapter.devices().items()))
    except Exception as error:
        raise BackendUnavailable(
            f"{name} finds no device: {error_line(error)}"
        ) from error
    return Backend(name, device_name, device, adapter, *chosen_policy(None, None))


def _generic_adapter(name: str, library: Any) -> Any:
    """Return an adapter for a namespace that uses only functions of the standard."""
    try:
        xp = namespace(library.asarray([0.0]))
    except Exception as error:
        fault = f"arrays of {name} do not follow the Array API Standard"
        raise BackendUnavailable(f"{fault}: {error_line(error)}") from error

    def asarray(data: np.ndarray, device: Any) -> Any:
        # Some libraries would convert float64 to float32 if no dtype were given. A
        # dtype that the library lacks raises AttributeError here.
        return xp.asarray(np.array(data, order="C"), dtype=getattr(xp, data.dtype.name))

    def to_numpy(array: Any) -> np.ndarray:
        try:
            converted = np.asarray(array)
        except (TypeError, ValueError, RuntimeError):
            return np.from_dlpack(array)
        if converted.dtype == object:
            remedy = (
                "they need __array__ or __dlpack__, or the library needs an adapter"
            )
            raise TypeError(f"NumPy cannot read arrays of {name}: {remedy}")
        return converted

    def has_float64(device: Any) -> bool:
        try:
            return bool(xp.asarray([0.0], dtype=xp.float64).dtype == xp.float64)
        except Exception:  # libraries raise different errors
            return False

    version = getattr(library, "__version__", "")
    if not version:
        package = import_module(name.partition(":")[0].partition(".")[0])
        version = getattr(package, "__version__", "?")
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


def error_line(error: BaseException) -> str:
    """Return an error as one line."""
    message = " ".join(str(error).split())
    if len(message) > 160:
        message = f"{message[:157]}..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
