"""Backends: an array library and one of its devices, chosen by a name like "jax:cpu:1".

An adapter is imported when its backend is first used. Any installed package can provide
another one, with an entry point in the group `agnostic_nn.backends` that names a
module. This module must define the names listed in `agnostic_nn_backends`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial, update_wrapper
from importlib import import_module
from typing import Any

from agnostic_nn_backends import REQUIRED_NAMES, SHIPPED, Adapter

from . import policies, precisions
from .arrays import Array, device, namespace
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
    "backend_of",
    "backends",
    "chosen_policy",
    "known_backends",
]

VARIABLE = "AGNOSTIC_NN_BACKEND"
PRECISION, DETERMINISTIC = "AGNOSTIC_NN_PRECISION", "AGNOSTIC_NN_DETERMINISTIC"
REPLAY = "AGNOSTIC_NN_REPLAY"


ADAPTER = REQUIRED_NAMES  # the members of `agnostic_nn_backends.Adapter`


class BackendUnavailable(RuntimeError):
    """Raised when a backend cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Backend:
    """An array library and one of its devices. Immutable; several can be used together.

    `str(backend)` is the name that selects it again, such as "jax:cpu:0". `precision`
    and `deterministic` are explained in `docs/precision.md`. They apply to functions
    compiled by `jit` and to library calls inside `with backend.applied():`. With
    `replay=False`, `jit` neither compiles nor replays, and the Python code of a
    function runs at each call.

    A pickle holds the name, the device and these settings. Where they are not available
    `pickle.loads` raises `BackendUnavailable`. A copy is the same object.
    """

    name: str
    device_name: str
    device: Any = field(compare=False, repr=False)
    adapter: Adapter = field(compare=False, repr=False)
    precision: str = policies.PRECISIONS[0]
    deterministic: bool = False
    replay: bool = True

    def __str__(self) -> str:
        return f"{self.name}:{self.device_name}"

    def __copy__(self) -> "Backend":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backend":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self.precision, self.deterministic, self.replay
        if not _is_adapter_of(self.name, self.adapter):
            raise TypeError(
                f"cannot pickle the Backend {self}: its adapter is not the one that "
                f"the name {self.name!r} stands for, so the name does not restore it"
            )
        return _unpickled, (str(self), *settings)

    @property
    def xp(self) -> Any:
        """Return the library's Array API namespace."""
        return self.adapter.xp

    @property
    def version(self) -> str:
        """Return the library's version."""
        return self.adapter.version

    @property
    def hardware(self) -> str:
        """Return the name of the device's hardware."""
        return self.adapter.describe(self.device)

    @property
    def has_float64(self) -> bool:
        """Return whether float64 is available here with the current settings."""
        return self.adapter.has_float64(self.device)

    @property
    def compiles(self) -> bool:
        """Return whether `jit` also compiles loops.

        If so, one call for many steps is faster than one call per step.
        """
        return self.adapter.compiles and self.replay

    @property
    def policy(self) -> dict[str, Any]:
        """Return `precision` and `deterministic` as a dict, for JSON."""
        return {"precision": self.precision, "deterministic": self.deterministic}

    @property
    def lacks_float64(self) -> str:
        """Return an error message for missing float64, with the remedy if known."""
        remedy = getattr(self.adapter, "float64_remedy", None)
        message = f"{self} has no float64 as it is set up now"
        return f"{message}: {remedy}" if remedy else message

    def has_dtype(self, name: str) -> bool:
        """Return whether this device computes in a dtype, such as "bfloat16".

        Raises
        ------
        ValueError
            If no real floating-point dtype has this name.
        """
        return not self.lacks_dtype(name)

    def lacks_dtype(self, name: str) -> str:
        """Return an error message if this device has no dtype `name`, or else "".

        The library has to define the dtype, and a product of matrices in it has to
        give the right numbers here. `has_float64` answers for float64, as the settings
        of the library may turn it off.

        Raises
        ------
        ValueError
            If no real floating-point dtype has this name.
        """
        precisions.digits_and_exponent(name)  # refuses other names
        if name == "float64":
            return "" if self.has_float64 else self.lacks_float64
        dtype = getattr(self.xp, name, None)
        if dtype is None:
            library = f"{self.name} {self.version}"
            reasons = getattr(self.adapter, "missing_dtypes", None) or {}
            reason = f"; {reasons[name]}" if name in reasons else ""
            return f"{self} has no {name}: {library} does not define it{reason}"
        x = [[1.0, 1.0], [0.0, 2.0]]
        try:
            y = self.to_numpy(self.jit(partial(_square, dtype=dtype))(self._float32(x)))
        except Exception as error:  # each library raises another one
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"{self} cannot compute in {name}: {reason}"
        if y.tolist() != [[1.0, 3.0], [0.0, 4.0]]:
            return f"{self} cannot compute in {name}: the square of {x} is {y.tolist()}"
        return ""

    def _float32(self, numbers: Any) -> Array:
        """Return nested lists as an array of float32 on this device."""
        import numpy as np

        return self._asarray(np.asarray(numbers, np.float32))

    def applied(self) -> AbstractContextManager[None]:
        """Return a context that applies precision and determinism to library calls."""
        if self._policy is None:
            return nullcontext()
        return self._policy(self.device, self.precision, self.deterministic)

    def inference(self) -> AbstractContextManager[Any]:
        """Return a context in which the library may save work for predictions.

        Arrays made in it may be used in it, or converted to NumPy, and nowhere else.
        """
        inference = getattr(self.adapter, "inference", None)
        return nullcontext() if inference is None else inference()

    @property
    def _policy(self) -> Callable[..., AbstractContextManager[None]] | None:
        """Return the adapter's `policy`, or None: a custom adapter may omit it."""
        return getattr(self.adapter, "policy", None)

    def probe(self) -> dict[str, dict[str, str]]:
        """Measure the formats in which float32 matrices are multiplied on this backend.

        The keys are the mode, "eager" or "compiled", and then the operation, such as
        "matmul". The values are "float32", "TensorFloat-32", "bfloat16" and others; see
        `docs/precision.md`.

        Raises
        ------
        BackendUnavailable
            If the precision is "strict" and any format is less than float32.
        """
        formats = policies.probe(self)
        reduced = policies.reduced_formats(formats)
        if reduced and self.precision == policies.PRECISIONS[0]:
            # the docstring of an adapter's policy names the settings that it changes
            doc = self._policy.__doc__ if self._policy else None
            settings = " ".join((doc or "").split())
            if not settings:
                settings = (
                    "There is nothing to set: look at what the library was built with."
                )
            raise BackendUnavailable(
                f"{self} should compute in float32, but computes in {reduced}. "
                f"{settings}"
            )
        return formats

    def double(self) -> AbstractContextManager[None]:
        """Return a context in which float64 is available.

        Raises
        ------
        BackendUnavailable
            If this device does not support float64.
        """
        if self.adapter.double is None:
            raise BackendUnavailable(f"{self} has no float64")
        return self.adapter.double()

    @property
    def can_double(self) -> bool:
        """Return whether float64 is available inside `with backend.double():`."""
        if self.adapter.double is None:
            return False
        with self.double():
            return self.has_float64

    def holds(self, data: Any) -> bool:
        """Return whether `data` is an array of this library on this device.

        False for NumPy's arrays, which are on the host, and for arrays that the
        library treats differently from those that it makes of NumPy's, such as tensors
        that record gradients.
        """
        import numpy as np

        if isinstance(data, np.ndarray) or type(data) is not _array_type(self):
            return False
        is_special = getattr(data, "requires_grad", False) is True
        is_special = is_special or getattr(data, "weak_type", False) is True
        return not is_special and bool(device(data) == self.device)

    def is_array(self, data: Any) -> bool:
        """Return whether `data` is an array of this library, on any device."""
        return isinstance(data, _array_type(self))

    def moved(self, tree: Any) -> Any:
        """Return a tree with NumPy's arrays moved here; others have to be here."""
        return tree_map(
            lambda leaf: leaf if self.holds(leaf) else self._asarray(leaf), tree
        )

    def without_policy(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` for this device, not compiled and without the policy.

        The policy may be a setting of the whole process, so a thread that only moves
        data must not change it.
        """
        if getattr(self.adapter, "eager", None) is not None:
            return function
        return self.adapter.jit(function, self.device, ())

    def dtype_name(self, array: Array) -> str:
        """Return the name of the dtype of an array of this library, or "" if unknown.

        Known are the dtypes of the Array API standard, but for complex numbers.
        """
        return _dtype_name(array.dtype, self.xp)

    def asarray(self, tree: Any) -> Any:
        """Return the NumPy arrays or nested lists of a tree as arrays on this device.

        The arrays are copied, and keep their dtype. None, which stands for a missing
        gradient, stays None.

        Raises
        ------
        TypeError
            If an array does not hold numbers, or the library does not support its
            dtype.
        ValueError
            If lists are nested unevenly.
        """
        return tree_map(self._asarray, tree)

    def _asarray(self, data: Any) -> Array:
        import numpy as np

        if data is None:
            return None
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ValueError(
                f"expected numbers, or lists of equal lengths: {error}"
            ) from None
        if data.dtype.kind in "OSUmM":
            raise TypeError(f"expected numbers, got dtype {data.dtype}")
        array = self.adapter.asarray(data, self.device)
        if not _is_same(array.dtype, data.dtype, self.xp):
            raise TypeError(
                f"{self} would turn {data.dtype.name} into {array.dtype}; cast it first"
            )
        return array

    def to_numpy(self, tree: Any) -> Any:
        """Return the arrays of a tree as NumPy arrays on the host. None stays None.

        Arrays of bfloat16, which NumPy does not have, become float32, which is exact.
        """
        to_numpy = self.adapter.to_numpy

        def converted(leaf: Any) -> Any:
            if leaf is None:
                return None
            if not isinstance(leaf, int | float):
                # raises for other objects, which NumPy would accept as dtype object
                leaf = _with_numpy_dtype(leaf)
            return to_numpy(leaf)

        return tree_map(converted, tree)

    def jit(
        self, function: Callable[..., Any], donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """Return `function` for this device, compiled if the library has a compiler.

        `donate` lists the positions of donated arguments, whose memory the result may
        reuse. To handle exceptions during such a call, make it with `atomic.into`.

        The results may depend on the arguments, and on Python values that user-defined
        functions and methods read: closure cells, globals, defaults, attributes and
        containers. Before each call these values are compared with those at the time of
        compilation. If one has changed, the function is compiled again; see
        `agnostic_nn.core.guards`.

        It is also compiled again for arguments of other shapes or dtypes. The programs
        of the 16 kinds that were used last are kept, or of as many as
        AGNOSTIC_NN_PROGRAMS says when `jit` is called.

        Raises
        ------
        TypeError
            When called, if the function itself changes a value that it reads at each
            call, such as the state of a random generator.
            With `replay=False` this is allowed.
        """
        if not callable(function):
            raise TypeError(f"expected a function to compile, got {function!r}")
        if not self.replay:
            return self._eager(function)
        compiled = partial(self._compiled, donate=donate)
        # where the Python code runs at each call, the current contents of arrays are
        # read anyway and need not be compared
        replays = self.compiles or getattr(self.adapter, "eager", None) is not None
        to_numpy = self.adapter.to_numpy if replays else None
        random_state = getattr(self.adapter, "random_state", None)
        return guarded(function, compiled, to_numpy, _packages(self.xp), random_state)

    def _eager(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with the policy applied, neither compiled nor replayed."""
        eager = getattr(self.adapter, "eager", None)
        if eager is None:
            function = self.adapter.jit(function, self.device, ())
        else:
            function = eager(function, self.device)
        return function if self._policy is None else _Applied(self, function)

    def _compiled(
        self, function: Callable[..., Any], donate: tuple[int, ...]
    ) -> Callable[..., Any]:
        """Return the pure `function`, compiled with the policy applied."""
        jit = self.adapter.jit
        if self._policy is None:
            return jit(function, self.device, donate)
        if self.compiles:  # a compiler records the policy while it traces the function
            return jit(_Applied(self, function), self.device, donate)
        return _Applied(self, jit(function, self.device, donate))

    def synchronize(self, tree: Any) -> Any:
        """Wait until the arrays in `tree` are computed, and return `tree`."""
        for leaf in leaves(tree):
            if leaf is not None:
                self.adapter.synchronize(leaf)
        return tree


def _square(x: Array, dtype: Any) -> Array:
    """Return the matrix x @ x, computed in `dtype`, in the dtype of x."""
    xp = namespace(x)
    narrow = xp.astype(x, dtype)
    return xp.astype(narrow @ narrow, x.dtype)


class _Applied:
    """Wrap a function so that it runs with the policy of a backend.

    Wrappers of the same function and backend compare equal, so a library compiles it
    only once.
    """

    def __init__(self, backend: Backend, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.backend = backend
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.backend.applied():
            return self.function(*args, **kwargs)

    def into(self, outcome: list[Any], *args: Any) -> None:
        with self.backend.applied():
            into(self.function, outcome, *args)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Applied):
            return False
        return (self.backend, self.function) == (other.backend, other.function)

    def __hash__(self) -> int:
        return hash((self.backend, self.function))


def _with_numpy_dtype(array: Array) -> Array:
    """Return an array of bfloat16 in float32, and any other unchanged."""
    xp = namespace(array)  # raises for other objects, which NumPy would accept
    if not str(array.dtype).endswith("bfloat16"):
        return array
    return xp.astype(array, xp.float32)


@cache
def _packages(xp: Any) -> frozenset[str]:
    """Return the names of array library packages, whose code is not guarded."""
    # a namespace may be another object than a module
    name = vars(xp).get("__name__", "")
    return frozenset([*SHIPPED, "array_api_compat", name.partition(".")[0]])


@cache
def _array_type(backend: Backend) -> type:
    """Return the class of the arrays of a backend."""
    import numpy as np

    return type(backend._asarray(np.float32(0)))


@cache
def _dtype_name(dtype: Any, xp: Any) -> str:
    """Return the name of a dtype of the library `xp`, or ""."""
    import numpy as np

    sizes = ("8", "16", "32", "64")
    integers = [kind + size for kind in ("int", "uint") for size in sizes]
    for name in ("float32", "float64", "bool", *integers):
        if _is_same(dtype, np.dtype(name), xp):
            return name
    return ""


@cache
def _is_same(dtype: Any, expected: Any, xp: Any) -> bool:
    """Return whether the dtype of an array of the library `xp` equals a NumPy dtype.

    To compare a dtype with another kind of object, such as `jax.numpy.float32`, NumPy
    runs Python code of that object and discards any exception, even one that a signal
    handler raised. So NumPy's dtypes are only compared with each other.
    """
    import numpy as np

    if isinstance(dtype, np.dtype):
        return bool(dtype == np.dtype(expected.type))
    return bool(dtype == getattr(xp, expected.name, None))


@dataclass(frozen=True)
class Status:
    """The status of one backend: its version and devices, or why it cannot run."""

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
    """Return the backend called `name`, such as "jax:cpu:1" or "numpy".

    A name is that of a library, optionally with a colon and a device. Without a name,
    the environment variable AGNOSTIC_NN_BACKEND is used, or else "numpy". Without a
    device, the first device of the library is used; without a number, the first of its
    kind.

    precision: "strict" multiplies float32 as float32; "fast" uses TensorFloat-32 if the
    hardware supports it. The default is AGNOSTIC_NN_PRECISION, or else "strict".

    deterministic: whether every run gives the same bits. The default is True if
    AGNOSTIC_NN_DETERMINISTIC is 1. See `docs/precision.md`.

    replay: with False, nothing is compiled or replayed, and the Python code of each
    step runs. Use this with a debugger, with `print`, or for a function that is not
    pure. It is slower, on JAX many times. The default is False if AGNOSTIC_NN_REPLAY is
    0.

    Raises
    ------
    BackendUnavailable
        If no backend has this name, its library is not installed or cannot run, the
        device does not exist, or the library cannot be deterministic with its current
        settings. No other backend is used instead.
    """
    policy = chosen_policy(precision, deterministic, replay)
    if not (name is None or isinstance(name, str)):
        raise TypeError(
            f"expected the name of a backend, such as 'numpy', got {name!r}"
        )
    name = name or os.environ.get(VARIABLE) or "numpy"
    library, colon, device_name = name.partition(":")
    adapter = _load(library)
    devices = _devices(library)
    if colon and not device_name:
        example = f"{library}:{next(iter(devices))}"
        raise BackendUnavailable(
            f"expected a device after the colon, such as {example!r}, or no colon, got "
            f"{name!r}"
        )
    if not device_name:
        device_name = next(iter(devices))
    elif device_name not in devices and f"{device_name}:0" in devices:
        device_name = f"{device_name}:0"
    if device_name not in devices:
        raise BackendUnavailable(
            f"{library} has no device {device_name!r}; it has {', '.join(devices)}"
        )
    selected = Backend(library, device_name, devices[device_name], adapter, *policy)
    try:
        selected.applied()
    except NotImplementedError as error:
        raise BackendUnavailable(f"{selected}: {error}") from error
    has_eager = getattr(adapter, "eager", None) is not None
    if adapter.compiles and not selected.replay and not has_eager:
        raise BackendUnavailable(
            f"{selected} always compiles: its adapter has no `eager`, so replay=False "
            "is not possible"
        )
    return selected


def _is_adapter_of(library: str, adapter: Adapter) -> bool:
    """Return whether `backend(library)` uses this adapter."""
    try:
        return _load(library) is adapter
    except BackendUnavailable:
        return False


def _unpickled(name: str, precision: str, deterministic: bool, replay: bool) -> Backend:
    """Return the backend of a pickle.

    Raises
    ------
    BackendUnavailable
        If it is not available here. No other backend is used instead.
    """
    try:
        return backend(
            name, precision=precision, deterministic=deterministic, replay=replay
        )
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"the pickle is of the backend {name!r}, which is not available here: "
            f"{error}. Where it is, move a trainer to another backend before pickling "
            "it, as by trainer.to('numpy')"
        ) from error


def chosen_policy(
    precision: Any, deterministic: Any, replay: Any = None
) -> tuple[str, bool, bool]:
    """Return precision, `deterministic` and `replay`.

    For None the value is that of the environment, or else the default.
    """
    source = "precision"
    if precision is None:
        source = PRECISION
        precision = os.environ.get(PRECISION) or policies.PRECISIONS[0]
    if precision not in policies.PRECISIONS:
        allowed = " or ".join(map(repr, policies.PRECISIONS))
        raise ValueError(f"expected {source} to be {allowed}, got {precision!r}")
    deterministic = _flag("deterministic", deterministic, DETERMINISTIC, "0")
    return precision, deterministic, _flag("replay", replay, REPLAY, "1")


def _flag(name: str, value: Any, variable: str, default: str) -> bool:
    """Return the flag `value`, or that of the environment variable if it is None."""
    if value is None:
        text = os.environ.get(variable) or default
        if text not in ("0", "1"):
            raise ValueError(f"expected {variable} to be 0 or 1, got {text!r}")
        return text == "1"
    if type(value) is not bool:
        raise TypeError(f"expected {name} to be True or False, got {value!r}")
    return value


class StatusTable(tuple[Status, ...]):
    """A tuple with the `Status` of each backend, displayed as a table."""

    COLUMNS = ("backend", "version", "hardware", "float64")

    def __repr__(self) -> str:
        from ..display.tables import table

        text = table(self.COLUMNS, self._rows())
        if not self._reasons():
            return text
        return "\n".join(
            [text, "", "cannot run here:", *(f"  {r}" for r in self._reasons())]
        )

    def _repr_html_(self) -> str:
        from html import escape

        from ..display.tables import html_table

        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in self._reasons())
        unavailable = f"<p>cannot run here:</p><ul>{reasons}</ul>" if reasons else ""
        return html_table(self.COLUMNS, self._rows(), inline=True) + unavailable

    def _rows(self) -> list[list[str | None]]:
        """Return one row for each usable device."""
        return [
            [
                str(device),
                status.version,
                device.hardware,
                "yes" if device.has_float64 else "no",
            ]
            for status in self
            for device in status.devices
        ]

    def _reasons(self) -> list[str]:
        """Return a line for each library that cannot run, with the reason."""
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
    """Return the status of each known backend: its devices, or why it cannot run.

    Shipped backends come first. The result is a tuple of `Status` that is displayed as
    a table. To find the devices, every installed library is imported.
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
            devices = tuple(
                Backend(library, name, device, adapter, *policy)
                for name, device in _devices(library).items()
            )
            yield Status(library, adapter.version, devices, None)
        except BackendUnavailable as error:
            yield Status(library, adapter.version, (), str(error))


def backend_of(array: Array) -> Backend:
    """Return the backend of the library and the device of an array.

    Raises
    ------
    TypeError
        If it is not an array.
    BackendUnavailable
        If no backend has arrays of this library on this device.
    """
    xp = namespace(array)
    policy = chosen_policy(None, None)
    for library, module in known_backends().items():
        # only what is imported can have made the array
        if library not in sys.modules and module not in sys.modules:
            continue
        with suppress(BackendUnavailable):
            adapter = _load(library)
            for name, place in _devices(library).items():
                if adapter.xp is xp and device(array) == place:
                    return Backend(library, name, place, adapter, *policy)
    raise BackendUnavailable(
        f"no backend has arrays of {xp.__name__} on the device {device(array)}: see "
        "nn.backends()"
    )


def known_backends() -> dict[str, str]:
    """Return a dict from the name of each known backend to the name of its module."""
    # the import takes half as long as that of NumPy
    from importlib.metadata import entry_points

    modules = {name: module for name, (module, _) in SHIPPED.items()}
    for point in entry_points(group="agnostic_nn.backends"):
        modules.setdefault(point.name, point.value)
    return modules


@cache
def _load(library: str) -> Adapter:
    """Import and return the adapter of a library.

    Raises
    ------
    BackendUnavailable
        If no backend has this name, or its module cannot be imported or is incomplete.
    """
    module, install = SHIPPED.get(library, (None, None))
    if module is None:
        module = known_backends().get(library)
    if module is None:
        raise BackendUnavailable(
            f"no backend is called {library!r}; there are "
            f"{', '.join(known_backends())}. An adapter of your own is found by its "
            "entry point of the group agnostic_nn.backends"
        )
    adapter: Any
    try:
        adapter = import_module(module)
    except ModuleNotFoundError as error:
        remedy = f": pip install '{install}'" if install else ""
        raise BackendUnavailable(
            f"{library} needs the package {error.name!r}, which is not "
            f"installed{remedy}"
        ) from error
    except Exception as error:  # a broken installation may raise any exception
        raise BackendUnavailable(f"{library} does not import: {error}") from error
    missing = [name for name in ADAPTER if not hasattr(adapter, name)]
    if missing:
        raise BackendUnavailable(
            f"{library} is incomplete: its adapter {module} lacks "
            f"{', '.join(missing)}; see the docstring of agnostic_nn_backends"
        )
    complete: Adapter = adapter
    return complete


def _devices(library: str) -> dict[str, Any]:
    """Return the devices of a library by name; raise BackendUnavailable without any."""
    try:
        devices = _load(library).devices()
    except BackendUnavailable:
        raise
    except Exception as error:
        # each library raises another exception if a driver is missing
        raise BackendUnavailable(f"{library} finds no device: {error}") from error
    if not devices:
        raise BackendUnavailable(f"{library} finds no device on this machine")
    return devices
