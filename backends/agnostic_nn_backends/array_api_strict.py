"""array-api-strict: the Array API standard and nothing else, for tests.

Arrays of `device1` cannot be mixed with others or read by NumPy, as on a GPU. Flags in
the environment variables ARRAY_API_STRICT_* forbid what `jit` could not trace. This is
the shortest adapter here: copy it, without `_bounded_exp`, to add a backend. Names that
are None below are optional.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import array_api_strict as xp
import numpy as np

from agnostic_nn import ops
from agnostic_nn.ops.decoding import expect_room

from .exponential import HALFWAY, bounded_exp

version = xp.__version__
compiles = False
inference = None
random_state = None
eager = None
double = nullcontext
float64_remedy = None
missing_dtypes = dict.fromkeys(
    ("float16", "bfloat16"), "the Array API standard has no dtypes of 16 bits"
)
peak_memory = None
policy = None
vjp = None


def devices() -> dict[str, Any]:
    return {
        name: xp.Device(name)
        for name in ("CPU_DEVICE", "device1", "device2", "no_float64")
    }


def describe(device: Any) -> str:
    return "simulated by NumPy"


def has_float64(device: Any) -> bool:
    return bool(device != xp.Device("no_float64"))


def asarray(data: Any, device: Any) -> Any:
    return xp.asarray(np.array(data, order="C"), device=device)


def to_numpy(array: Any) -> Any:
    return np.asarray(array.to_device(xp.Device("CPU_DEVICE")))


def jit(
    function: Callable[..., Any], device: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    return function


def synchronize(array: Any) -> None:
    pass


def _bounded_exp(x: Any) -> Any:
    # NumPy's exp has errors of up to 2.5 ulp; its powers of two are exact
    if x.dtype != xp.float32:
        return xp.exp(x)
    return bounded_exp(x, lambda shifted: xp.pow(2.0, shifted - HALFWAY))


def _store(memory: Any, rows: Any, start: Any) -> Any:
    expect_room(memory.shape[-2], rows.shape[-2], int(start))
    return ops.store.dispatch(object)(memory, rows, start)


ops.store.register(type(xp.zeros(())), _store)
ops.bounded_exp.register(type(xp.zeros(())), _bounded_exp)
