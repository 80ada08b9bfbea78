"""array-api-strict: the Standard and nothing more, which no careless line gets past.

For tests: `device1` refuses to be mixed or converted as a GPU does, and flags read from
ARRAY_API_STRICT_* forbid what `jit` could not trace. It is also the shortest adapter
there can be: copy it, without `_bounded_exp`, to add a backend.
"""

from contextlib import nullcontext

import array_api_strict as xp
import numpy as np

from agnostic_nn import ops

from .exponential import HALFWAY, bounded_exp

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

version = xp.__version__
compiles = False
random_state = None
eager = None
double = nullcontext
float64_remedy = None
peak_memory = None
policy = None
vjp = None


def devices():
    return {name: xp.Device(name) for name in ("CPU_DEVICE", "device1", "device2", "no_float64")}


def describe(device):
    return "a NumPy array that pretends to be elsewhere"


def has_float64(device):
    return device != xp.Device("no_float64")


def asarray(data, device):
    return xp.asarray(np.array(data, order="C"), device=device)


def to_numpy(array):
    return np.asarray(array.to_device(xp.Device("CPU_DEVICE")))


def jit(function, device, donate=()):
    return function


def synchronize(array):
    pass


def _bounded_exp(x):
    # NumPy's own is up to 2.5 units in the last place off; its powers of two are exact
    if x.dtype != xp.float32:
        return xp.exp(x)
    return bounded_exp(x, lambda shifted: xp.pow(2.0, shifted - HALFWAY))


ops.bounded_exp.register(type(xp.zeros(())), _bounded_exp)
