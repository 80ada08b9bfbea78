"""Backends: an array library and one of its devices, chosen by a name such as "jax:cpu:1".

Adapters are loaded when they are first asked for. Besides those shipped, any installed
package can bring one, as an entry point of the group `agnostic_nn.backends` that names
a module with the names listed in `agnostic_nn_backends`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial, update_wrapper
from importlib import import_module
from types import ModuleType
from typing import Any

from agnostic_nn_backends import SHIPPED

from . import policies
from .arrays import Array, namespace
from .atomic import into
from .guards import guarded
from .trees import leaves, tree_map

__all__ = [
    "ADAPTER",
    "Backend",
    "BackendUnavailable",
    "Status",
    "StatusTable",
    "backend",
    "backends",
    "chosen_policy",
    "known_backends",
]

VARIABLE = "AGNOSTIC_NN_BACKEND"
PRECISION, DETERMINISTIC = "AGNOSTIC_NN_PRECISION", "AGNOSTIC_NN_DETERMINISTIC"
REPLAY = "AGNOSTIC_NN_REPLAY"

ADAPTER = (  # what each must have, as `agnostic_nn_backends` says
    *("asarray", "compiles", "describe", "devices", "double", "has_float64", "jit"),
    *("synchronize", "to_numpy", "version", "vjp", "xp"),
)


class BackendUnavailable(RuntimeError):
    """A backend was asked for that cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Backend:
    """An array library and one of its devices; immutable, so several live side by side.

    `str(backend)` is the name that chooses it again, such as "jax:cpu:0". What precision and
    `deterministic` mean is said in `agnostic_nn.core.policies`; they hold for what `jit` makes of
    functions and for what is called in `with backend.applied():`. Unless `replay`, `jit` neither
    compiles nor replays: the Python of a function runs at each call.
    """

    name: str
    device_name: str
    device: Any = field(compare=False, repr=False)
    adapter: ModuleType = field(compare=False, repr=False)
    precision: str = policies.PRECISIONS[0]
    deterministic: bool = False
    replay: bool = True

    def __str__(self) -> str:
        return f"{self.name}:{self.device_name}"

    @property
    def xp(self) -> Any:
        """The library's Array API namespace."""
        return self.adapter.xp

    @property
    def version(self) -> str:
        """The library's version."""
        return self.adapter.version

    @property
    def hardware(self) -> str:
        """What the device calls itself."""
        return self.adapter.describe(self.device)

    @property
    def has_float64(self) -> bool:
        """Whether float64 is to be had on this device, as the library is set up now."""
        return self.adapter.has_float64(self.device)

    @property
    def compiles(self) -> bool:
        """Whether `jit` compiles loops too, so that one call of many steps beats many calls."""
        return self.adapter.compiles and self.replay

    @property
    def policy(self) -> dict[str, Any]:
        """Precision and determinism, as data for JSON."""
        return {"precision": self.precision, "deterministic": self.deterministic}

    @property
    def lacks_float64(self) -> str:
        """A sentence that says that there is no float64, and what to do where something helps."""
        remedy = getattr(self.adapter, "float64_remedy", None)
        said = f"{self} has no float64 as it is set up now"
        return f"{said}: {remedy}" if remedy else said

    def applied(self) -> AbstractContextManager:
        """A context in which what is called of the library keeps to the policy."""
        if self._policy is None:
            return nullcontext()
        return self._policy(self.device, self.precision, self.deterministic)

    @property
    def _policy(self) -> Callable | None:
        """The adapter's; one of a user's own need not have any."""
        return getattr(self.adapter, "policy", None)

    def probe(self) -> dict[str, dict[str, str]]:
        """In which formats float32 matrices are multiplied here: a measurement, not a setting.

        By how, "eager" or "compiled", and by what, such as "matmul": "float32",
        "TensorFloat-32", "bfloat16" and others; see `agnostic_nn.core.policies`.

        Raises
        ------
        BackendUnavailable
            If the precision is "strict" and any of them is less than float32.
        """
        found = policies.probe(self)
        reduced = policies.reduced_formats(found)
        if reduced and self.precision == policies.PRECISIONS[0]:
            sets = " ".join((self._policy.__doc__ or "").split()) if self._policy else ""
            sets = sets or "There is nothing to set: look at what the library was built with."
            raise BackendUnavailable(
                f"{self} is to compute in float32, but computes in {reduced}. {sets}"
            )
        return found

    def double(self) -> AbstractContextManager:
        """A context in which float64 is to be had.

        Raises
        ------
        BackendUnavailable
            If this device has none.
        """
        if self.adapter.double is None:
            raise BackendUnavailable(f"{self} has no float64")
        return self.adapter.double()

    @property
    def can_double(self) -> bool:
        """Whether float64 is to be had within `double`."""
        if self.adapter.double is None:
            return False
        with self.double():
            return self.has_float64

    def asarray(self, tree: Any) -> Any:
        """NumPy arrays or nested lists, in a tree or alone, as arrays on this device.

        Nothing is shared with the host. The dtype is kept; asking for one that the
        library lacks is an error. None, the gradient of what has none, stays None.
        """
        return tree_map(self._asarray, tree)

    def _asarray(self, data: Any) -> Array:
        import numpy as np

        if data is None:
            return None
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"expected numbers, or lists of equal lengths: {error}") from None
        if data.dtype.kind in "OSUmM":
            raise TypeError(f"expected numbers, got dtype {data.dtype}")
        array = self.adapter.asarray(data, self.device)
        if not _is_same(array.dtype, data.dtype, self.xp):
            raise TypeError(
                f"{self} would turn {data.dtype.name} into {array.dtype}; cast it first"
            )
        return array

    def to_numpy(self, tree: Any) -> Any:
        """Arrays of this backend, in a tree or alone, as NumPy arrays on the host; None stays."""
        to_numpy = self.adapter.to_numpy

        def converted(leaf: Any) -> Any:
            if leaf is None:
                return None
            if not isinstance(leaf, int | float):
                namespace(leaf)  # NumPy would make an array of objects of anything
            return to_numpy(leaf)

        return tree_map(converted, tree)

    def jit(self, function: Callable, donate: tuple[int, ...] = ()) -> Callable:
        """Return `function` for this device, compiled where the library compiles.

        `donate` names the positions of arguments that the caller gives up; their
        memory may be used again. Where an exception may come at any moment, such a function
        is called by `atomic.into`.

        The function's results depend on its arguments, and on Python values that a user's own
        functions and methods in it read: closure cells, globals, defaults, attributes and
        containers. Before each call these are compared with what they were, and if one has
        changed the function is compiled again; see `agnostic_nn.core.guards`.

        Raises
        ------
        TypeError
            When called, if the function changes what it reads each time that it is called,
            such as a random generator. With `replay=False` there is nothing to guard.
        """
        if not callable(function):
            raise TypeError(f"expected a function to compile, got {function!r}")
        if not self.replay:
            return self._eager(function)
        compiled = partial(self._compiled, donate=donate)
        # where each call runs the Python, arrays that changed are met as they are
        to_numpy = self.adapter.to_numpy if hasattr(self.adapter, "eager") else None
        hidden = getattr(self.adapter, "random_state", None)
        return guarded(function, compiled, to_numpy, _packages(self.xp), hidden)

    def _eager(self, function: Callable) -> Callable:
        """`function` under the policy, as Python runs it."""
        eager = getattr(self.adapter, "eager", None)
        if eager is None:
            function = self.adapter.jit(function, self.device, ())
        else:
            function = eager(function, self.device)
        return function if self._policy is None else _Applied(self, function)

    def _compiled(self, function: Callable, donate: tuple[int, ...]) -> Callable:
        """The pure `function`, compiled under the policy."""
        if self._policy is None:
            return self.adapter.jit(function, self.device, donate)
        if self.compiles:  # what is traced under the policy keeps it
            return self.adapter.jit(_Applied(self, function), self.device, donate)
        return _Applied(self, self.adapter.jit(function, self.device, donate))

    def synchronize(self, tree: Any) -> Any:
        """Wait until the values of `tree` are there; returns it."""
        for leaf in leaves(tree):
            if leaf is not None:
                self.adapter.synchronize(leaf)
        return tree


class _Applied:
    """`function` under the policy of a backend; equal ones need be compiled only once."""

    def __init__(self, backend: Backend, function: Callable) -> None:
        update_wrapper(self, function)
        self.backend, self.function = backend, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.backend.applied():
            return self.function(*args, **kwargs)

    def into(self, outcome: list, *args: Any) -> None:
        with self.backend.applied():
            into(self.function, outcome, *args)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Applied):
            return False
        return (self.backend, self.function) == (other.backend, other.function)

    def __hash__(self) -> int:
        return hash((self.backend, self.function))


@cache
def _packages(xp: Any) -> frozenset[str]:
    """The packages of array libraries: their code reads no values of a user's."""
    name = vars(xp).get("__name__", "")  # a namespace need not be a module
    return frozenset([*SHIPPED, "array_api_compat", name.partition(".")[0]])


@cache
def _is_same(dtype: Any, wanted: Any, xp: Any) -> bool:
    """Compare the dtype of an array of the library `xp` with a dtype of NumPy.

    NumPy compares its dtypes with objects that are none, such as `jax.numpy.float32`, by running
    their Python code, and drops what that raises: an exception of a signal handler would be lost.
    """
    import numpy as np

    if isinstance(dtype, np.dtype):
        return dtype == np.dtype(wanted.type)
    return dtype == getattr(xp, wanted.name, None)


@dataclass(frozen=True)
class Status:
    """What `backends` says of one: its version and devices, or why it cannot run."""

    name: str
    version: str | None
    devices: tuple[Backend, ...]
    reason: str | None


def backend(
    name: str | None = None,
    *,
    precision: str | None = None,
    deterministic: bool | None = None,
    replay: bool | None = None,
) -> Backend:
    """The backend called `name`: a library, alone or with a device, as in "jax:cpu:1".

    Without a name, the one in the environment variable AGNOSTIC_NN_BACKEND, else "numpy".
    Without a device, the one that the library lists first; without a number, the first
    of its kind.

    With precision "strict" float32 is multiplied as float32, with "fast" as TensorFloat-32
    where there is that; by default as AGNOSTIC_NN_PRECISION says, else "strict". A
    `deterministic` one gives the same bits in every run; by default one if
    AGNOSTIC_NN_DETERMINISTIC is 1. See `agnostic_nn.core.policies`.

    With `replay=False` nothing is compiled or replayed: the Python of each step runs, for a
    debugger, for `print`, or for a function that is not pure. That is slower, on JAX many times.
    By default AGNOSTIC_NN_REPLAY decides: 0 turns it off.

    Raises
    ------
    BackendUnavailable
        If no backend has that name, its library is not installed or cannot run, the
        device does not exist, or it cannot be deterministic as things are set up. Nothing
        falls back to another.
    """
    policy = chosen_policy(precision, deterministic, replay)
    if not (name is None or isinstance(name, str)):
        raise TypeError(f"expected the name of a backend, such as 'numpy', got {name!r}")
    name = name or os.environ.get(VARIABLE) or "numpy"
    library, colon, device_name = name.partition(":")
    adapter = _load(library)
    devices = _devices(library)
    if colon and not device_name:
        example = f"{library}:{next(iter(devices))}"
        raise BackendUnavailable(
            f"expected a device after the colon, such as {example!r}, or no colon, got {name!r}"
        )
    if not device_name:
        device_name = next(iter(devices))
    elif device_name not in devices and f"{device_name}:0" in devices:
        device_name = f"{device_name}:0"
    if device_name not in devices:
        raise BackendUnavailable(
            f"{library} has no device {device_name!r}; it has {', '.join(devices)}"
        )
    found = Backend(library, device_name, devices[device_name], adapter, *policy)
    try:
        found.applied()
    except NotImplementedError as error:
        raise BackendUnavailable(f"{found}: {error}") from error
    if adapter.compiles and not found.replay and getattr(adapter, "eager", None) is None:
        raise BackendUnavailable(
            f"{found} always compiles: its adapter has no `eager`, so replay=False is not possible"
        )
    return found


def chosen_policy(precision: Any, deterministic: Any, replay: Any = None) -> tuple[str, bool, bool]:
    """Return precision, `deterministic` and `replay` as given, else as the environment has them."""
    where = "precision"
    if precision is None:
        where, precision = PRECISION, os.environ.get(PRECISION) or policies.PRECISIONS[0]
    if precision not in policies.PRECISIONS:
        allowed = " or ".join(map(repr, policies.PRECISIONS))
        raise ValueError(f"expected {where} to be {allowed}, got {precision!r}")
    deterministic = _flag("deterministic", deterministic, DETERMINISTIC, "0")
    return precision, deterministic, _flag("replay", replay, REPLAY, "1")


def _flag(name: str, value: Any, variable: str, default: str) -> bool:
    """A flag as given, else as the environment variable has it."""
    if value is None:
        text = os.environ.get(variable) or default
        if text not in ("0", "1"):
            raise ValueError(f"expected {variable} to be 0 or 1, got {text!r}")
        return text == "1"
    if type(value) is not bool:
        raise TypeError(f"expected {name} to be True or False, got {value!r}")
    return value


class StatusTable(tuple[Status, ...]):
    """The `Status` of each backend, which displays as a table, in a notebook as HTML."""

    COLUMNS = ("backend", "version", "hardware", "float64")

    def __repr__(self) -> str:
        from ..display.tables import table

        text = table(self.COLUMNS, self._rows())
        if not self._reasons():
            return text
        return "\n".join([text, "", "cannot run here:", *(f"  {r}" for r in self._reasons())])

    def _repr_html_(self) -> str:
        from html import escape

        from ..display.tables import html_table

        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in self._reasons())
        listed = f"<p>cannot run here:</p><ul>{reasons}</ul>" if reasons else ""
        return html_table(self.COLUMNS, self._rows(), inline=True) + listed

    def _rows(self) -> list[list[str | None]]:
        """One row a device that can be used."""
        return [
            [str(device), status.version, device.hardware, "yes" if device.has_float64 else "no"]
            for status in self
            for device in status.devices
        ]

    def _reasons(self) -> list[str]:
        """Why each of the other libraries cannot run, in one line."""
        reasons = []
        for status in self:
            if status.reason is None:
                continue
            reason = " ".join(status.reason.split())
            if status.version:
                reason += f" ({status.name} {status.version} is installed)"
            reasons.append(reason)
        return reasons


def backends() -> StatusTable:
    """Return the status of each known backend: its version and devices, or why it cannot run.

    The shipped ones come first. The result is a tuple of `Status` that displays as a table.
    Every library that is installed is imported to find its devices.
    """
    return StatusTable(_statuses())


def _statuses() -> Iterator[Status]:
    policy = chosen_policy(None, None)
    for library in known_backends():
        try:
            adapter = _load(library)
        except BackendUnavailable as error:
            yield Status(library, None, (), str(error))
            continue
        try:
            devices = _devices(library).items()
            found = tuple(Backend(library, n, d, adapter, *policy) for n, d in devices)
            yield Status(library, adapter.version, found, None)
        except BackendUnavailable as error:
            yield Status(library, adapter.version, (), str(error))


def known_backends() -> dict[str, str]:
    """Name to module of each known backend."""
    from importlib.metadata import entry_points  # as slow to import as half of NumPy

    found = {name: module for name, (module, _) in SHIPPED.items()}
    for point in entry_points(group="agnostic_nn.backends"):
        found.setdefault(point.name, point.value)
    return found


@cache
def _load(library: str) -> ModuleType:
    module, install = SHIPPED.get(library, (None, None))
    if module is None:
        module = known_backends().get(library)
    if module is None:
        raise BackendUnavailable(
            f"no backend is called {library!r}; there are {', '.join(known_backends())}"
        )
    try:
        adapter = import_module(module)
    except ModuleNotFoundError as error:
        remedy = f": pip install '{install}'" if install else ""
        raise BackendUnavailable(
            f"{library} needs the package {error.name!r}, which is not installed{remedy}"
        ) from error
    except Exception as error:  # a library that is there but broken may fail with anything
        raise BackendUnavailable(f"{library} does not import: {error}") from error
    missing = [name for name in ADAPTER if not hasattr(adapter, name)]
    if missing:
        raise BackendUnavailable(
            f"{library} is incomplete: its adapter {module} lacks {', '.join(missing)}; "
            "agnostic_nn_backends says what they are"
        )
    return adapter


def _devices(library: str) -> dict[str, Any]:
    try:
        devices = _load(library).devices()
    except BackendUnavailable:
        raise
    except Exception as error:  # each library has its own way to say that a driver is missing
        raise BackendUnavailable(f"{library} finds no device: {error}") from error
    if not devices:
        raise BackendUnavailable(f"{library} finds no device on this machine")
    return devices
