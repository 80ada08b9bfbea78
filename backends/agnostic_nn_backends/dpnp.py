"""dpnp: NumPy's interface on SYCL devices, Intel's CPUs among them, with real placement rules."""

import os
from contextlib import nullcontext

import dpctl
import dpnp as xp
import numpy as np

from agnostic_nn import ops

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
to_numpy = xp.asnumpy
vjp = None


def devices():
    """One entry per device, as arrays name theirs: with the queue in which its work waits."""
    return {d.filter_string: xp.empty(0, device=d).device for d in dpctl.get_devices()}


def describe(device):
    return device.sycl_device.name


def has_float64(device):
    return device.sycl_device.has_aspect_fp64


def asarray(data, device):
    return xp.asarray(np.array(data, order="C"), device=device)


def jit(function, device, donate=()):
    return function


def policy(device, precision, deterministic):
    """There is nothing to set but MKL_CBWR, before Python starts, for oneMKL to repeat itself."""
    if deterministic and not os.environ.get("MKL_CBWR", "").upper().endswith(",STRICT"):
        raise NotImplementedError(
            "oneMKL adds in the order in which its threads get there, unless MKL_CBWR is set to a "
            "branch and STRICT, such as AVX2,STRICT, before Python starts"
        )
    return nullcontext()


def synchronize(array):
    array.sycl_queue.wait()


ops.erf.register(xp.ndarray, xp.scipy.special.erf)
