"""CuPy: NumPy's interface on NVIDIA GPUs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any

import array_api_compat.cupy as xp  # noqa: F401  (a member of Adapter)
import cupy
import numpy as np
from cupyx.scipy.special import erf as _erf
from cupyx.scipy.special import erfc as _erfc

from agnostic_nn import ops
from agnostic_nn.ops.indexing import add_sorted

version = cupy.__version__
compiles = False
inference = None
random_state = None
eager = None
double = nullcontext
float64_remedy = None
missing_dtypes = None
peak_memory = None
to_numpy = cupy.asnumpy
vjp = None


def devices() -> dict[str, Any]:
    """Return the GPUs by number. Without a GPU, CuPy raises an error that says why."""
    return {
        str(i): cupy.cuda.Device(i) for i in range(cupy.cuda.runtime.getDeviceCount())
    }


def describe(device: Any) -> str:
    name: str = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return name


def has_float64(device: Any) -> bool:
    return True


def asarray(data: Any, device: Any) -> Any:
    # with CUPY_ENABLE_UMP=1 the GPU would read the host's memory in place, so copy it
    # first
    with device:
        return cupy.array(np.array(data, order="C"))


def jit(
    function: Callable[..., Any], device: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    @wraps(function)
    def on_device(*args: Any) -> Any:
        # CuPy computes on the current device, even if the arrays are on another
        with device:
            return function(*args)

    return on_device


_linalg = cupy._core._routines_linalg
# whether `scatter_add` has to be deterministic
_DETERMINISTIC = ContextVar("deterministic", default=False)


@contextmanager
def policy(device: Any, precision: str, deterministic: bool) -> Iterator[None]:
    """It sets the compute type of float32 products to COMPUTE_TYPE_DEFAULT, or
    COMPUTE_TYPE_TF32 for "fast"; the environment variable
    NVIDIA_TF32_OVERRIDE takes precedence."""
    compute_type = _linalg.COMPUTE_TYPE_DEFAULT
    if precision == "fast" and int(device.compute_capability) >= 80:
        compute_type = _linalg.COMPUTE_TYPE_TF32
    with device:
        before = _linalg.get_compute_type(np.float32)
        token = _DETERMINISTIC.set(deterministic)
        try:
            if before != compute_type:
                _linalg.set_compute_type(np.float32, compute_type)
            yield
        finally:
            if before != compute_type:
                _linalg.set_compute_type(np.float32, before)
            _DETERMINISTIC.reset(token)


def synchronize(array: Any) -> None:
    array.device.synchronize()


def _scatter_add(updates: Any, index: Any, rows: int) -> Any:
    if _DETERMINISTIC.get():
        return add_sorted(updates, index, rows)
    out = cupy.zeros((rows, updates.shape[1]), updates.dtype)
    cupy.add.at(out, index, updates)
    return out


def _unslide(*parts: Any, axis: int, stride: int, dilation: int, length: int) -> Any:
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = cupy.zeros(shape, first.dtype)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        window = x[(*(slice(None),) * axis, slice(k * dilation, end, stride), ...)]
        window += part
    return x


ops.erf.register(cupy.ndarray, _erf)
ops.erfc.register(cupy.ndarray, _erfc)
ops.scatter_add.register(cupy.ndarray, _scatter_add)
ops.unslide.register(cupy.ndarray, _unslide)
