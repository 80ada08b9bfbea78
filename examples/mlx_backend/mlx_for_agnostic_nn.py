"""An adapter for MLX, Apple's array library, in a package outside agnostic_nn.

The entry point in pyproject.toml registers it: `pip install examples/mlx_backend`, then
`agnostic-nn conformance mlx`. `_Namespace` adds what MLX lacks of the Standard: `bool`,
and the argument `device` and some keywords of functions. `register` assigns this
namespace and a device to MLX's arrays. Its float64 functions (exp, sin, cos) have only
the accuracy of float32, so `has_float64` is false.
"""

from importlib.metadata import version as version_of

import mlx.core as mx
import numpy as np

from agnostic_nn.core.arrays import register

__all__ = [
    "asarray",
    "compiles",
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

version = version_of("mlx")
compiles = False
double = None
vjp = None
HERE = mx.default_device().type.name  # "cpu" or "gpu": MLX moves arrays by itself


class _Namespace:
    """MLX's functions, with the Standard's arguments."""

    bool = mx.bool_

    def __getattr__(self, name):
        return getattr(mx, name)

    def arange(self, start, stop=None, step=1, *, dtype=None, device=None):
        start, stop = (0, start) if stop is None else (start, stop)
        return mx.arange(start, stop, step, dtype=dtype)

    def argsort(self, x, /, *, axis=-1, descending=False, stable=True):
        return mx.argsort(-x if descending else x, axis=axis)

    def asarray(self, data, /, *, dtype=None, device=None, copy=None):
        return mx.array(data, dtype=dtype)

    def astype(self, x, dtype, /, *, copy=True, device=None):
        return x.astype(dtype)

    def full(self, shape, value, *, dtype=None, device=None):
        return mx.full(shape, value, dtype=dtype)

    def full_like(self, x, /, value, *, dtype=None, device=None):
        return mx.full(x.shape, value, dtype=dtype or x.dtype)

    def ones(self, shape, *, dtype=None, device=None):
        return mx.ones(shape, dtype=dtype)

    def ones_like(self, x, /, *, dtype=None, device=None):
        return mx.ones(x.shape, dtype=dtype or x.dtype)

    def sum(self, x, /, *, axis=None, dtype=None, keepdims=False):
        # the sum of MLX 0.32 may read uninitialized memory of an empty array and hang
        if x.size == 0:
            shape = np.empty(x.shape).sum(axis=axis, keepdims=keepdims).shape
            return mx.zeros(shape, dtype=dtype or x.dtype)
        return mx.sum(
            x if dtype is None else x.astype(dtype), axis=axis, keepdims=keepdims
        )

    def zeros(self, shape, *, dtype=None, device=None):
        return mx.zeros(shape, dtype=dtype)

    def zeros_like(self, x, /, *, dtype=None, device=None):
        return mx.zeros(x.shape, dtype=dtype or x.dtype)


xp = _Namespace()
register(mx.array, xp, lambda x: HERE)


def devices():
    return {HERE: HERE}


def describe(device):
    return str(mx.default_device())


def has_float64(device):
    return False


def asarray(data, device):
    return mx.array(np.array(data, order="C"), dtype=getattr(xp, data.dtype.name))


def to_numpy(array):
    return np.array(array)


def jit(function, device, donate=()):
    return function


def synchronize(array):
    mx.eval(array)
