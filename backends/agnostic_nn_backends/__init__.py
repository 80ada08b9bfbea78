"""Backends: one module per array library, each of which implements `Adapter`.

An adapter imports its own array library. Of `agnostic_nn` it imports `ops`,
`core.random`, `core.windows` and `core.atomic`, for which it may register native
versions, and of this package the modules that are not adapters, such as `replay`. It
sets no global option. All its names that are not members of `Adapter` or `FullAdapter`
begin with an underscore.

This package itself imports no array library.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = [
    "REQUIRED_NAMES",
    "SHIPPED",
    "Adapter",
    "FullAdapter",
    "processor",
    "program_limit",
]

PROGRAMS = "AGNOSTIC_NN_PROGRAMS"

SHIPPED = {  # name: (module, what to install)
    "numpy": ("agnostic_nn_backends.numpy", "numpy"),
    "jax": ("agnostic_nn_backends.jax", "agnostic-nn[jax]"),
    "torch": ("agnostic_nn_backends.torch", "agnostic-nn[torch]"),
    "cupy": ("agnostic_nn_backends.cupy", "agnostic-nn[cupy-cuda13x]"),
    "dpnp": ("agnostic_nn_backends.dpnp", "agnostic-nn[dpnp]"),
    "array_api_strict": (
        "agnostic_nn_backends.array_api_strict",
        "agnostic-nn[strict]",
    ),
}


class Adapter(Protocol):
    """The names that the module of each backend defines.

    A `device` below is a value of `devices()`, whatever the library uses to name a
    device.
    """

    @property
    def xp(self) -> Any:
        """The library's Array API namespace."""
        ...

    @property
    def version(self) -> str:
        """The library's version."""
        ...

    @property
    def compiles(self) -> bool:
        """True if `jit` compiles loops too: one call of many steps beats many calls."""
        ...

    def devices(self) -> dict[str, Any]:
        """Return the available devices by name, the preferred one first."""
        ...

    def describe(self, device: Any, /) -> str:
        """Return the name of the hardware."""
        ...

    def has_float64(self, device: Any, /) -> bool:
        """Return whether float64 is available, as the library is configured now."""
        ...

    @property
    def double(self) -> Callable[[], AbstractContextManager[None]] | None:
        """A function that returns a context with float64, or None if there is none."""
        ...

    def asarray(self, data: Any, device: Any, /) -> Any:
        """Return a copy of a NumPy array as an array on the device."""
        ...

    def to_numpy(self, array: Any, /) -> Any:
        """Return an array as a NumPy array on the host."""
        ...

    def jit(
        self, function: Callable[..., Any], device: Any, donate: tuple[int, ...] = (), /
    ) -> Callable[..., Any]:
        """Return a pure function, compiled if the library can.

        donate: the positions of arguments that the caller gives up. A function that
        reuses their memory has an attribute `into`, as described in
        `agnostic_nn.core.atomic`.

        If the result stores a program for each kind of arguments, that is for each
        nesting, shapes and dtypes, it stores `program_limit()` of them at most and
        drops the one that was not used for longest. They are in its attribute
        `programs`, a dict.
        """
        ...

    def synchronize(self, array: Any, /) -> Any:
        """Wait until the values of an array have been computed; for timing."""
        ...

    @property
    def vjp(self) -> Callable[..., Any] | None:
        """The library's automatic differentiation, for checks of gradients, or None.

        vjp(function, *primals) returns (outputs, pullback).
        """
        ...


class FullAdapter(Adapter, Protocol):
    """An adapter with the optional names, which the shipped adapters all define.

    For a name that is None or missing, the library goes without that feature.
    """

    @property
    def eager(self) -> Callable[[Callable[..., Any], Any], Callable[..., Any]] | None:
        """eager(function, device): a function whose Python code runs at each call.

        It serves `replay=False`. None or missing if the result of `jit` does that too.
        """
        ...

    @property
    def float64_remedy(self) -> str | None:
        """For error messages: how to enable float64 where `has_float64` is false."""
        ...

    @property
    def missing_dtypes(self) -> Mapping[str, str] | None:
        """For error messages: why the library lacks a dtype, by the dtype's name."""
        ...

    @property
    def peak_memory(self) -> Callable[[Any], int | None] | None:
        """peak_memory(device): the peak bytes in use there, or None if unknown."""
        ...

    @property
    def policy(self) -> Callable[[Any, str, bool], AbstractContextManager[None]] | None:
        """policy(device, precision, deterministic): a context with that policy.

        With precision "strict", products of float32 are computed in float32; with
        "fast", in TensorFloat-32 if the hardware can. If `deterministic`, each run
        gives the same bits. The function raises NotImplementedError with a remedy if
        the policy is not possible; its docstring, which error messages quote, names the
        settings it changes. None or missing if there is nothing to set.
        """
        ...

    @property
    def inference(self) -> Callable[[], AbstractContextManager[Any]] | None:
        """inference(): a context in which the library may save work for predictions.

        Arrays made in it are used in it, or converted to NumPy, and nowhere else. None
        or missing if there is nothing to save.
        """
        ...

    @property
    def random_state(self) -> Callable[[], Any] | None:
        """random_state() returns the state of the library's hidden random generator.

        Guards compare it to notice functions that draw from it. None or missing without
        one.
        """
        ...


REQUIRED_NAMES = tuple(
    sorted(name for name in vars(Adapter) if not name.startswith("_"))
)


def program_limit() -> int:
    """Return how many programs a compiled function may store.

    It is AGNOSTIC_NN_PROGRAMS, by default 16.

    Raises
    ------
    ValueError
        If the variable is not a positive integer.
    """
    text = os.environ.get(PROGRAMS) or "16"
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"expected {PROGRAMS} to be a positive integer, got {text!r}")
    return int(text)


def processor() -> str:
    """Return the name of the processor.

    On Linux the standard library knows only the architecture, so the name comes from
    /proc/cpuinfo.
    """
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.readlines()
    except OSError:
        lines = []
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()
