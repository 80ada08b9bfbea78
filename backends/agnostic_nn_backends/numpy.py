"""NumPy: the reference on the CPU, and the host from which every other backend is fed."""

import math
from contextlib import nullcontext

import array_api_compat.numpy as xp
import numpy as np

from agnostic_nn import special

from . import processor

__all__ = [
    "asarray",
    "describe",
    "devices",
    "double",
    "has_float64",
    "jit",
    "synchronize",
    "to_numpy",
    "version",
    "vjp",
    "xp",
]

version = np.__version__
double = nullcontext
to_numpy = np.asarray
vjp = None


def devices():
    return {"cpu": "cpu"}


def describe(device):
    return processor()


def has_float64(device):
    return True


def asarray(data, device):
    return np.array(data, order="C")


def jit(function, device, donate=()):
    return function


def synchronize(array):
    pass


try:
    from scipy.special import erf as _erf
except ImportError:  # the C library's, one number at a time: still ten times our series
    _one_erf = np.frompyfunc(math.erf, 1, 1)

    def _erf(x):
        return np.asarray(_one_erf(x)).astype(x.dtype)


def _scatter_add(updates, index, rows):
    out = np.zeros((rows, updates.shape[1]), updates.dtype)
    np.add.at(out, index, updates)
    return out


def _all_finite(*arrays):
    # 0 · x is NaN just where x is not finite, and BLAS sums faster than NumPy looks twice
    return all(math.isfinite(np.vdot(np.zeros(a.size, a.dtype), a)) for a in arrays)


special.erf.register(np.ndarray, _erf)
special.scatter_add.register(np.ndarray, _scatter_add)
for kind in (np.ndarray, np.generic):  # reductions return scalars
    special.all_finite.register(kind, _all_finite)
for kind in (np.ndarray, np.bool_, bool):
    special.select.register(kind, lambda holds, new, old: new if holds else old)
