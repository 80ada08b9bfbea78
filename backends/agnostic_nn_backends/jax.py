"""JAX: immutable arrays, traced and compiled by XLA, on CPUs, GPUs and TPUs.

float64 is off unless the user sets JAX_ENABLE_X64.
"""

import operator
import os
import re
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, reduce, update_wrapper, wraps
from typing import Any, Never
from weakref import WeakKeyDictionary

import jax
import jax.numpy as xp
import numpy as np

from agnostic_nn import ops
from agnostic_nn.core.atomic import StateLost
from agnostic_nn.core.windows import Pads
from agnostic_nn.ops.convolution import flipped_weight
from agnostic_nn.ops.decoding import expect_room

from . import processor, program_limit

try:
    from jax.extend.core import take_current_trace
except ImportError:  # before JAX 0.8.2
    from jax.core import take_current_trace

version = jax.__version__
compiles = True
inference = None
random_state = None
float64_remedy = (
    "set JAX_ENABLE_X64=1 in the environment before jax is imported, or call "
    "jax.config.update('jax_enable_x64', True)"
)
missing_dtypes = None
synchronize = jax.block_until_ready
to_numpy = np.asarray
vjp = jax.vjp

_Shape = tuple[int, ...]


def devices() -> dict[str, Any]:
    # Under jax.distributed, jax.devices() lists those of every process; only the
    # devices of this process can hold its arrays.
    local = jax.local_devices()
    if local[0].platform != "cpu":
        local = [*local, *jax.local_devices(backend="cpu")]
    return {f"{device.platform}:{device.id}": device for device in local}


def describe(device: Any) -> str:
    kind: str = device.device_kind
    return processor() if device.platform == "cpu" else kind


def has_float64(device: Any) -> bool:
    return bool(jax.config.jax_enable_x64)


def double() -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = jax.enable_x64(True)
    return context


def _trace_restored(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that an exception does not leave this thread inside a trace.

    JAX stores for each thread what it is tracing, and resets that when a `with` block
    of its Python code ends. If a signal handler raises just before, the thread stays in
    a trace that has ended: from then on every operation returns a tracer instead of an
    array.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException:
            leaves = jax.tree.leaves((args, kwargs))
            if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                take_current_trace().__enter__()  # without exit: this resets the trace
            raise

    return call


@_trace_restored
def asarray(data: Any, device: Any) -> Any:
    # device_put may read the memory of the host after it has returned, so copy it first
    return jax.device_put(np.array(data, order="C"), device)


def jit(
    function: Callable[..., Any], device: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    return _Donating(function, donate) if donate else _Compiled(function)


class _Traced:
    """A function that JAX traces for arguments of one signature.

    JAX shares what it compiles between equal functions, and frees it with the last of
    them. `jax.jit` alone stores a program for each signature, without a bound.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        update_wrapper(self, function)
        self.function = function
        self.signature = signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Traced):
            return False
        return (self.function, self.signature) == (other.function, other.signature)

    def __hash__(self) -> int:
        return hash((self.function, self.signature))


class _Compiled:
    """A compiled function that has the attributes of JAX's own, such as `lower`.

    programs: the function compiled for each signature of the arguments, the one that
    was used last at the end; at most `program_limit()` of them.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.function = jax.jit(function, **options)
        self.programs: dict[Any, Any] = {}
        self._traced = function
        self._options = options
        self._limit = program_limit()

    @_trace_restored
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program(_signature((args, kwargs)))(*args, **kwargs)

    def _program(self, signature: Any) -> Any:
        """Return the function compiled for a signature, or to be compiled for it."""
        program = self.programs.pop(signature, None)
        if program is None:
            program = jax.jit(_Traced(self._traced, signature), **self._options)
        while len(self.programs) >= self._limit:
            self.programs.pop(next(iter(self.programs)), None)
        self.programs[signature] = program
        return program

    def _cache_size(self) -> int:
        """Return the number of programs, as the private method of JAX does."""
        return sum(program._cache_size() for program in self.programs.values())

    def __getattr__(self, name: str) -> Any:
        if name == "function":  # not assigned yet, while `copy` builds an object
            raise AttributeError(name)
        return getattr(self.function, name)


class _Donating(_Compiled):
    """A compiled function that donates some of its arguments.

    A call with arguments of a new signature runs Python code of JAX, which traces and
    compiles. An exception in it would lose the donated arrays, so it gets copies of
    them. Later calls run in C, together with the operation that puts their result into
    the outcome, as `agnostic_nn.core.atomic` requires.

    latest: the ids of the results of the last call, whose kind is known.
    entries: by program, the size of JAX's cache after it was compiled for arguments of
    that kind.
    compiling: whether a compilation has begun; still true after an exception during it.
    """

    def __init__(self, function: Callable[..., Any], donate: tuple[int, ...]) -> None:
        super().__init__(function, donate_argnums=donate)
        self.donate = donate
        self.latest: frozenset[int] = frozenset()
        self.entries: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self.compiling = False

    @_trace_restored
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program_for(args, kwargs)(*args, **kwargs)

    def _program_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the program for these arguments, whatever the donated ones are.

        The results of a step replace its donated arguments, so they are always alike.
        """
        others = [arg for i, arg in enumerate(args) if i not in self.donate]
        return self._program(_signature((others, kwargs)))

    @_trace_restored
    def into(self, outcome: list[Any], *args: Any) -> None:
        # the results of the last call have the signature of the arguments that they
        # replace
        is_latest = all(id(args[i]) in self.latest for i in self.donate)
        if self.compiling:
            # after an exception JAX would run Python code at each later call
            for program in self.programs.values():
                program.clear_cache()
            self.programs.clear()
            self.entries.clear()
            self.compiling = False
        program = self._program_for(args, {})
        is_cached = self.entries.get(program) == program._cache_size()
        if is_latest and is_cached and not jax.config.jax_debug_nans:
            self._call_in_place(program, outcome, args)
        else:
            copies = [
                jax.tree.map(xp.copy, arg) if i in self.donate else arg
                for i, arg in enumerate(args)
            ]
            self.compiling = True
            outcome.extend((None, program(*copies)))
            self.compiling = False
            if is_latest:
                self.entries[program] = program._cache_size()
        result = outcome[1]
        results = result if isinstance(result, tuple) else (result,)
        self.latest = frozenset(map(id, results))

    def _call_in_place(
        self, program: Any, outcome: list[Any], args: tuple[Any, ...]
    ) -> None:
        """Call a program and put its result into `outcome`, in one call of C code.

        `deque(iterator, 0)` runs an iterator, and `map` makes the calls; no exception
        can come between the call that overwrites the donated arrays and the one that
        publishes the result.
        """
        call = partial(program, *args)
        try:
            results = map(operator.call, (call,))
            deque(map(outcome.extend, zip((None,), results, strict=False)), 0)
        except BaseException as error:
            donated = [args[i] for i in self.donate]
            if not outcome and any(map(_is_deleted, donated)):
                outcome.append(partial(_raise_state_lost, error))
            raise


def _signature(args: Any) -> tuple[Any, ...]:
    """Return what a compiled version depends on.

    That is the structure of the arguments, the shapes and dtypes of their arrays, and
    the configuration of JAX.
    """
    arrays, nesting = jax.tree.flatten(args)
    config = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    try:
        return nesting, config, *[(leaf.shape, leaf.dtype) for leaf in arrays]
    except AttributeError:  # of a Python number, which JAX turns into an array
        arrays = [xp.asarray(leaf) for leaf in arrays]
    return nesting, config, *[(leaf.shape, leaf.dtype) for leaf in arrays]


def _is_deleted(tree: Any) -> bool:
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(tree))


def _raise_state_lost(error: BaseException) -> Never:
    raise StateLost(
        f"a step failed after it was given the memory of the parameters "
        f"({type(error).__name__}: {error})"
    ) from error


def eager(function: Callable[..., Any], device: Any) -> Callable[..., Any]:
    @wraps(function)
    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        with jax.disable_jit():  # also runs loops and branches in Python
            return function(*args, **kwargs)

    return uncompiled


_PRECISION = {"strict": "highest", "fast": "tensorfloat32"}


def policy(
    device: Any, precision: str, deterministic: bool
) -> AbstractContextManager[None]:
    """It sets jax.default_matmul_precision to "highest", or "tensorfloat32" for "fast";
    XLA_FLAGS and the precision argument of an operation take precedence."""
    has_flag = re.search(
        r"--xla_gpu_deterministic_ops(=true|=1|\s|$)", os.environ.get("XLA_FLAGS", "")
    )
    if deterministic and device.platform in ("cuda", "gpu", "rocm") and not has_flag:
        raise NotImplementedError(
            "the order in which threads of a GPU add is not fixed; put "
            "--xla_gpu_deterministic_ops=true into XLA_FLAGS before Python starts"
        )
    context: AbstractContextManager[None]
    context = jax.default_matmul_precision(_PRECISION[precision])
    return context


def peak_memory(device: Any) -> int | None:
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _scatter_add(updates: Any, index: Any, rows: int) -> Any:
    zeros = xp.zeros((rows, *updates.shape[1:]), updates.dtype)
    return zeros.at[index.astype(xp.int32)].add(updates)


def _most_look_ups(x: Any, shortens: bool) -> int:
    # XLA computes all of them in one loop
    return 8


def _scan_impl(
    leaf: Any,
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    reverse: bool,
    then: Callable[[Any], Any],
) -> tuple[Any, Any]:
    def step_with_output(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y = step(carry, x)
        return carry, then(y)

    carry, ys = jax.lax.scan(step_with_output, carry, xs, reverse=reverse)
    return carry, ys


def _loop_until_impl(
    leaf: Any,
    is_done: Callable[[Any], Any],
    step: Callable[[Any], Any],
    carry: Any,
    count: int,
) -> Any:
    def goes_on(loop_carry: Any) -> Any:
        carry, number = loop_carry
        return xp.logical_and(number < count, xp.logical_not(is_done(carry)))

    def next_carry(loop_carry: Any) -> Any:
        carry, number = loop_carry
        return step(carry), number + 1

    return jax.lax.while_loop(goes_on, next_carry, (carry, xp.int32(0)))[0]


def _store(memory: Any, rows: Any, start: Any) -> Any:
    length = memory.shape[-2]
    time = rows.shape[-2]
    if not isinstance(start, jax.core.Tracer):
        expect_room(length, time, int(start))
    # XLA would write at the last index that fits instead
    rows = xp.where(start + time <= length, rows, xp.nan)
    return jax.lax.dynamic_update_slice_in_dim(memory, rows, start, memory.ndim - 2)


def _all_finite(*arrays: Any) -> Any:
    elementwise = ops.all_finite.dispatch(object)

    def sum_first() -> Any:
        # a sum of squares is faster than a test of each element, and as good unless it
        # overflows
        squares = [xp.vdot(xp.ravel(x), xp.ravel(x)) for x in arrays]
        is_finite = reduce(xp.logical_and, map(xp.isfinite, squares))
        return jax.lax.cond(is_finite, lambda: is_finite, lambda: elementwise(*arrays))

    return jax.lax.platform_dependent(
        cpu=sum_first, default=lambda: elementwise(*arrays)
    )


def _select(holds: Any, make: Callable[[], Any], old: Any) -> Any:
    if not isinstance(holds, jax.core.Tracer):
        return make() if holds else old
    # On a CPU a branch lets XLA write the new values in place, which saves a fifth of a
    # step. On a GPU a branch would wait for the host to read the condition.
    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(holds, make, lambda: old),
        default=lambda: ops.select.dispatch(object)(holds, make, old),
    )


def _layouts(rank: int) -> tuple[str, str, str]:
    """Return the layouts of x, weight and y.

    N is the batch, C the channels, I fan_in and O the width.
    """
    space = "DHW"[-rank:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def _convolve(
    x: Any,
    weight: Any,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
    bias: Any = None,
) -> Any:
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


def _convolve_input(
    dy: Any,
    weight: Any,
    lengths: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
) -> Any:
    flipped, dy_padding = flipped_weight(
        weight, lengths, dy.shape[1:-1], stride, padding, dilation, groups
    )
    return jax.lax.conv_general_dilated(
        dy,
        flipped,
        (1,) * len(stride),
        dy_padding,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=_layouts(len(stride)),
        feature_group_count=groups,
    )


def _convolve_weight(
    x: Any,
    dy: Any,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
) -> Any:
    # dy is the window that slides over x; batch and channels, stride and dilation are
    # exchanged
    sizes = zip(
        x.shape[1:-1], dy.shape[1:-1], window, stride, padding, dilation, strict=True
    )
    x_padding = tuple(
        (low, d * (k - 1) + s * (o - 1) + 1 - low - n)
        for n, o, k, s, (low, _), d in sizes
    )
    space = "DHW"[-len(window) :]
    return jax.lax.conv_general_dilated(
        x,
        dy,
        dilation,
        x_padding,
        rhs_dilation=stride,
        dimension_numbers=(f"C{space}N", f"I{space}O", f"{space}NC"),
        batch_group_count=groups,
    )


def _sum_over(x: Any, axes: tuple[int, ...]) -> Any:
    return xp.sum(x, axis=axes, keepdims=True)


def _sum_rows(x: Any) -> Any:
    return xp.sum(x, axis=tuple(range(x.ndim - 1)))


def _tanh(x: Any) -> Any:
    # XLA's tanh has errors of up to 5 ulp. With c = exp(-2|x|) - 1,
    # tanh |x| = -c / (2 + c).
    change = ops.expm1_below(-2.0 * xp.minimum(xp.abs(x), 20.0))
    return xp.sign(x) * (-change / (2.0 + change))


def _barrier_impl(leaf: Any, tree: Any) -> Any:
    return jax.lax.optimization_barrier(tree)


def _unslide(*parts: Any, axis: int, stride: int, dilation: int, length: int) -> Any:
    def place(k: int, part: Any) -> Any:
        """Return part k at its positions in an array of zeros."""
        span = (part.shape[axis] - 1) * stride + 1
        ends = [(0, 0, 0)] * part.ndim
        ends[axis] = (k * dilation, length - k * dilation - span, stride - 1)
        return jax.lax.pad(part, xp.zeros((), part.dtype), ends)

    return sum(place(k, part) for k, part in enumerate(parts))


_compiled_all_finite = jax.jit(_all_finite)

# While `jit` traces, arrays are tracers, which are another type.
for _kind in (jax.Array, jax.core.Tracer):
    ops.convolve.register(_kind, _convolve)
    ops.convolve_input.register(_kind, _convolve_input)
    ops.convolve_weight.register(_kind, _convolve_weight)
    ops.erf.register(_kind, jax.lax.erf)
    ops.erfc.register(_kind, jax.lax.erfc)
    ops.tanh.register(_kind, _tanh)
    ops.scatter_add.register(_kind, _scatter_add)
    ops.select.register(_kind, _select)
    ops.most_look_ups.register(_kind, _most_look_ups)
    ops.loop_until_impl.register(_kind, _loop_until_impl)
    ops.scan_impl.register(_kind, _scan_impl)
    ops.store.register(_kind, _store)
    ops.sum_over.register(_kind, _sum_over)
    ops.sum_rows.register(_kind, _sum_rows)
    ops.unslide.register(_kind, _unslide)
    ops.all_finite.register(_kind, _compiled_all_finite)
    ops.barrier_impl.register(_kind, _barrier_impl)
