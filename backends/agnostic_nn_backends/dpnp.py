"""dpnp: NumPy's interface on SYCL devices, including CPUs.

It refuses to mix arrays of different devices.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dpctl
import dpnp as xp
import numpy as np

from agnostic_nn import ops

version = xp.__version__
compiles = False
inference = None
random_state = None
eager = None
double = nullcontext
float64_remedy = None
missing_dtypes = None
peak_memory = None
to_numpy = xp.asnumpy
vjp = None


def devices() -> dict[str, Any]:
    """Return the devices by name, each as an array's `device`, with its queue."""
    return {d.filter_string: xp.empty(0, device=d).device for d in dpctl.get_devices()}


def describe(device: Any) -> str:
    name: str = device.sycl_device.name
    return name


def has_float64(device: Any) -> bool:
    return bool(device.sycl_device.has_aspect_fp64)


def asarray(data: Any, device: Any) -> Any:
    return xp.asarray(np.array(data, order="C"), device=device)


def jit(
    function: Callable[..., Any], device: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    return function


def policy(
    device: Any, precision: str, deterministic: bool
) -> AbstractContextManager[None]:
    """There is no setting but the environment variable MKL_CBWR, for results that
    repeat."""
    if deterministic and not os.environ.get("MKL_CBWR", "").upper().endswith(",STRICT"):
        raise NotImplementedError(
            "the order in which oneMKL's threads add is not fixed; set MKL_CBWR to an "
            "instruction set and STRICT, such as AVX2,STRICT, before Python starts"
        )
    return nullcontext()


def synchronize(array: Any) -> None:
    array.sycl_queue.wait()


ops.erf.register(xp.ndarray, xp.scipy.special.erf)
