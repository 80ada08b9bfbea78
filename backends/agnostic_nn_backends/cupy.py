"""CuPy: NumPy's interface on NVIDIA GPUs."""

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps

import array_api_compat.cupy as xp
import cupy
import numpy as np
from cupyx.scipy.special import erf as _erf
from cupyx.scipy.special import erfc as _erfc

from agnostic_nn import ops
from agnostic_nn.ops.indexing import add_sorted

__all__ = [
    "asarray",
    "compiles",
    "describe",
    "devices",
    "double",
    "eager",
    "float64_remedy",
    "has_float64",
    "jit",
    "peak_memory",
    "policy",
    "random_state",
    "synchronize",
    "to_numpy",
    "version",
    "vjp",
    "xp",
]

version = cupy.__version__
compiles = False
random_state = None
eager = None
double = nullcontext
float64_remedy = None
peak_memory = None
to_numpy = cupy.asnumpy
vjp = None


def devices():
    """One entry per GPU, named by its number; without any, CuPy's own error says why."""
    return {str(i): cupy.cuda.Device(i) for i in range(cupy.cuda.runtime.getDeviceCount())}


def describe(device):
    return cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()


def has_float64(device):
    return True


def asarray(data, device):
    # under CUPY_ENABLE_UMP=1 the GPU reads host memory where it lies, so it gets its own
    with device:
        return cupy.array(np.array(data, order="C"))


def jit(function, device, donate=()):
    @wraps(function)
    def on_device(*args):
        with device:  # CuPy computes on the current device, wherever its arrays are
            return function(*args)

    return on_device


_products = cupy._core._routines_linalg
_SORTS = ContextVar("whether repeated indices are sorted before they are added up", default=False)


@contextmanager
def policy(device, precision, deterministic):
    """It sets the compute type of float32 products to COMPUTE_TYPE_DEFAULT, or to
    COMPUTE_TYPE_TF32 if fast; NVIDIA_TF32_OVERRIDE is stronger."""
    wanted = _products.COMPUTE_TYPE_DEFAULT
    if precision == "fast" and int(device.compute_capability) >= 80:
        wanted = _products.COMPUTE_TYPE_TF32
    with device:
        before, sorts = _products.get_compute_type(np.float32), _SORTS.set(deterministic)
        try:
            if before != wanted:
                _products.set_compute_type(np.float32, wanted)
            yield
        finally:
            if before != wanted:
                _products.set_compute_type(np.float32, before)
            _SORTS.reset(sorts)


def synchronize(array):
    array.device.synchronize()


def _scatter_add(updates, index, rows):
    if _SORTS.get():
        return add_sorted(updates, index, rows)
    out = cupy.zeros((rows, updates.shape[1]), updates.dtype)
    cupy.add.at(out, index, updates)
    return out


def _unslide(*parts, axis, stride, dilation, length):
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = cupy.zeros(shape, first.dtype)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        seen = x[(*(slice(None),) * axis, slice(k * dilation, end, stride), ...)]
        seen += part
    return x


ops.erf.register(cupy.ndarray, _erf)
ops.erfc.register(cupy.ndarray, _erfc)
ops.scatter_add.register(cupy.ndarray, _scatter_add)
ops.unslide.register(cupy.ndarray, _unslide)
