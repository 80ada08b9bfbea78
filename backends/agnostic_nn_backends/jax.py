"""JAX: immutable arrays, traced and compiled by XLA, on CPUs, GPUs and TPUs.

float64 stays off unless the caller sets JAX_ENABLE_X64.
"""

import operator
import os
import re
from collections import deque
from functools import partial, reduce, wraps

import jax
import jax.numpy as xp
import numpy as np

from agnostic_nn import ops
from agnostic_nn.core.atomic import StateLost
from agnostic_nn.ops.convolution import flipped_weight

from . import processor

try:
    from jax.extend.core import take_current_trace
except ImportError:  # before JAX 0.8.2
    from jax.core import take_current_trace

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

version = jax.__version__
compiles = True
random_state = None
float64_remedy = (
    "set JAX_ENABLE_X64=1 in the environment before jax is imported, or call "
    "jax.config.update('jax_enable_x64', True)"
)
synchronize = jax.block_until_ready
to_numpy = np.asarray
vjp = jax.vjp


def devices():
    # Under jax.distributed, jax.devices() lists those of every process; only the devices of
    # this process can hold its arrays.
    local = jax.local_devices()
    if local[0].platform != "cpu":
        local = [*local, *jax.local_devices(backend="cpu")]
    return {f"{device.platform}:{device.id}": device for device in local}


def describe(device):
    return processor() if device.platform == "cpu" else device.device_kind


def has_float64(device):
    return bool(jax.config.jax_enable_x64)


def double():
    return jax.enable_x64(True)


def _trace_restored(function):
    """`function`, after which this thread computes with arrays again, whatever was raised.

    JAX remembers for each thread what it traces now, and a `with` of its Python code sets that
    back. An exception of a signal handler may come in the moment before. Then the thread stays in
    a trace that has ended: from then on every operation returns a tracer instead of an array.
    """

    @wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except BaseException:
            leaves = jax.tree.leaves((args, kwargs))
            if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                take_current_trace().__enter__()  # and no exit: the trace of no function
            raise

    return call


@_trace_restored
def asarray(data, device):
    # a device_put of host memory may go on reading it later, so it gets its own
    return jax.device_put(np.array(data, order="C"), device)


def jit(function, device, donate=()):
    return _Donating(function, donate) if donate else _Compiled(function)


class _Compiled:
    """A compiled function, with the attributes of JAX's, such as `lower`."""

    def __init__(self, function, **options):
        self.function = jax.jit(function, **options)

    @_trace_restored
    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __getattr__(self, name):
        if name == "function":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.function, name)


class _Donating(_Compiled):
    """A compiled function that donates the memory of some arguments: see `agnostic_nn.core.atomic`.

    A call with arguments of a new kind goes through Python code of JAX, which traces and
    compiles, and where an exception would lose the donated arrays: it gets copies of them.
    Later calls run in C, together with what puts their result into the outcome.
    """

    def __init__(self, function, donate):
        super().__init__(function, donate_argnums=donate)
        self.donate = donate
        self.known, self.latest, self.entries = set(), frozenset(), 0
        self.compiling = False  # still so after an exception on the way

    @_trace_restored
    def into(self, outcome, *args):
        # what the last call returned is of the same kind as what that took
        is_latest = all(id(args[i]) in self.latest for i in self.donate)
        kind = _kind([arg for i, arg in enumerate(args) if i not in self.donate])
        cached = kind in self.known and self.function._cache_size() == self.entries
        cached = cached and not self.compiling
        if is_latest and cached and not jax.config.jax_debug_nans:
            call = partial(self.function, *args)
            try:
                results = map(operator.call, (call,))
                deque(map(outcome.extend, zip((None,), results, strict=False)), 0)
            except BaseException as error:
                if not outcome and any(map(_is_gone, (args[i] for i in self.donate))):
                    outcome.append(partial(_lost, error))
                raise
        else:
            whole = [
                jax.tree.map(xp.copy, arg) if i in self.donate else arg
                for i, arg in enumerate(args)
            ]
            if self.compiling:  # JAX would go through Python code at each later call
                self.function.clear_cache()
                self.known.clear()
            self.compiling = True
            outcome.extend((None, self.function(*whole)))
            self.compiling = False
            self.entries = self.function._cache_size()
            if is_latest:
                self.known.add(kind)
        result = outcome[1]
        self.latest = frozenset(map(id, result if isinstance(result, tuple) else (result,)))


def _kind(args):
    """What JAX compiles for: nesting, shapes and dtypes, and how JAX is set up."""
    found, nesting = jax.tree.flatten(args)
    config = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    return nesting, config, *[(leaf.shape, leaf.dtype) for leaf in found]


def _is_gone(tree):
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(tree))


def _lost(error):
    raise StateLost(
        f"a step failed after it was given the memory of the parameters "
        f"({type(error).__name__}: {error})"
    ) from error


def eager(function, device):
    @wraps(function)
    def uncompiled(*args, **kwargs):
        with jax.disable_jit():  # loops and branches run in Python too
            return function(*args, **kwargs)

    return uncompiled


_PRECISION = {"strict": "highest", "fast": "tensorfloat32"}


def policy(device, precision, deterministic):
    """It sets jax.default_matmul_precision to "highest", or to "tensorfloat32" if fast; what XLA
    is told by XLA_FLAGS, and an operation by a precision of its own, is stronger."""
    told = re.search(r"--xla_gpu_deterministic_ops(=true|=1|\s|$)", os.environ.get("XLA_FLAGS", ""))
    if deterministic and device.platform in ("cuda", "gpu", "rocm") and not told:
        raise NotImplementedError(
            "XLA adds in the order in which a GPU's threads get there, unless XLA_FLAGS has "
            "--xla_gpu_deterministic_ops=true before Python starts"
        )
    return jax.default_matmul_precision(_PRECISION[precision])


def peak_memory(device):
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _scatter_add(updates, index, rows):
    zeros = xp.zeros((rows, *updates.shape[1:]), updates.dtype)
    return zeros.at[index.astype(xp.int32)].add(updates)


def _scan_impl(leaf, step, carry, xs, reverse, then):
    def both(carry, x):
        carry, y = step(carry, x)
        return carry, then(y)

    return jax.lax.scan(both, carry, xs, reverse=reverse)


@jax.jit
def _all_finite(*arrays):
    look = ops.all_finite.dispatch(object)

    def sum_first():
        # a sum of squares is quicker to take than a look, and says the same unless it overflows
        squares = [xp.vdot(xp.ravel(one), xp.ravel(one)) for one in arrays]
        fine = reduce(xp.logical_and, map(xp.isfinite, squares))
        return jax.lax.cond(fine, lambda: fine, lambda: look(*arrays))

    return jax.lax.platform_dependent(cpu=sum_first, default=lambda: look(*arrays))


def _select(holds, make, old):
    if not isinstance(holds, jax.core.Tracer):
        return make() if holds else old
    # choosing number by number would keep XLA from putting the new where the old lies, a fifth
    # of a step; but a GPU would have to tell the host which way to go
    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(holds, make, lambda: old),
        default=lambda: ops.select.dispatch(object)(holds, make, old),
    )


def _layouts(rank):
    """Where batch N and channels C stand in x and y, and fan_in I and width O in a weight."""
    space = "DHW"[-rank:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def _convolve(x, weight, stride, padding, dilation, groups, bias=None):
    y = jax.lax.conv_general_dilated(
        x,
        weight,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=_layouts(len(stride)),
        feature_group_count=groups,
    )
    return y if bias is None else y + bias


def _convolve_input(dy, weight, lengths, stride, padding, dilation, groups):
    turned, around = flipped_weight(
        weight, lengths, dy.shape[1:-1], stride, padding, dilation, groups
    )
    return jax.lax.conv_general_dilated(
        dy,
        turned,
        (1,) * len(stride),
        around,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=_layouts(len(stride)),
        feature_group_count=groups,
    )


def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    # dy is the window that slides over x: batch and channels, stride and dilation change places
    space = "DHW"[-len(window) :]
    cut = tuple(
        (low, d * (k - 1) + s * (o - 1) + 1 - low - n)
        for n, o, k, s, (low, _), d in zip(
            x.shape[1:-1], dy.shape[1:-1], window, stride, padding, dilation, strict=True
        )
    )
    return jax.lax.conv_general_dilated(
        x,
        dy,
        dilation,
        cut,
        rhs_dilation=stride,
        dimension_numbers=(f"C{space}N", f"I{space}O", f"{space}NC"),
        batch_group_count=groups,
    )


def _sum_over(x, axes):
    return xp.sum(x, axis=axes, keepdims=True)


def _sum_rows(x):
    return xp.sum(x, axis=tuple(range(x.ndim - 1)))


def _tanh(x):
    # XLA's own is up to five units in the last place off
    change = ops.expm1_below(-2.0 * xp.minimum(xp.abs(x), 20.0))
    return xp.sign(x) * (-change / (2.0 + change))


def _barrier_impl(leaf, tree):
    return jax.lax.optimization_barrier(tree)


def _unslide(*parts, axis, stride, dilation, length):
    def placed(k, part):
        span = (part.shape[axis] - 1) * stride + 1
        ends = [(0, 0, 0)] * part.ndim
        ends[axis] = (k * dilation, length - k * dilation - span, stride - 1)
        return jax.lax.pad(part, xp.zeros((), part.dtype), ends)

    return sum(placed(k, part) for k, part in enumerate(parts))


# While `jit` traces, arrays are tracers: a type of their own to dispatch on.
for kind in (jax.Array, jax.core.Tracer):
    ops.convolve.register(kind, _convolve)
    ops.convolve_input.register(kind, _convolve_input)
    ops.convolve_weight.register(kind, _convolve_weight)
    ops.erf.register(kind, jax.lax.erf)
    ops.erfc.register(kind, jax.lax.erfc)
    ops.tanh.register(kind, _tanh)
    ops.scatter_add.register(kind, _scatter_add)
    ops.select.register(kind, _select)
    ops.scan_impl.register(kind, _scan_impl)
    ops.sum_over.register(kind, _sum_over)
    ops.sum_rows.register(kind, _sum_rows)
    ops.unslide.register(kind, _unslide)
    ops.all_finite.register(kind, _all_finite)
    ops.barrier_impl.register(kind, _barrier_impl)
