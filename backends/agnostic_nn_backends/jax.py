"""JAX: immutable arrays, traced and compiled by XLA, on CPUs, GPUs and TPUs.

float64 stays off unless the caller sets JAX_ENABLE_X64.
"""

import jax
import jax.numpy as xp
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

version = jax.__version__
synchronize = jax.block_until_ready
to_numpy = np.asarray
vjp = jax.vjp


def devices():
    found = jax.devices()
    if found[0].platform != "cpu":
        found = [*found, *jax.devices("cpu")]
    return {f"{device.platform}:{device.id}": device for device in found}


def describe(device):
    return processor() if device.platform == "cpu" else device.device_kind


def has_float64(device):
    return bool(jax.config.jax_enable_x64)


def double():
    return jax.enable_x64(True)


def asarray(data, device):
    # a device_put of host memory may go on reading it later, so it gets its own
    return jax.device_put(np.array(data, order="C"), device)


def jit(function, device, donate=()):
    return jax.jit(function, donate_argnums=donate)


def _scatter_add(updates, index, rows):
    zeros = xp.zeros((rows, *updates.shape[1:]), updates.dtype)
    return zeros.at[index.astype(xp.int32)].add(updates)


def _scan_as(leaf, step, carry, xs, reverse):
    return jax.lax.scan(step, carry, xs, reverse=reverse)


# While `jit` traces, arrays are tracers: a type of their own to dispatch on.
for kind in (jax.Array, jax.core.Tracer):
    special.erf.register(kind, jax.lax.erf)
    special.scatter_add.register(kind, _scatter_add)
    special.scan_as.register(kind, _scan_as)
