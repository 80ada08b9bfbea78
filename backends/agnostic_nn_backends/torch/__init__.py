"""PyTorch: eager, on CPUs and GPUs. Its autograd is used only to check gradients."""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch.nn import functional, grad

from agnostic_nn import ops
from agnostic_nn.core import random

from .. import processor
from ..exponential import bounded_exp
from ..replay import kernels, trace
from ..replay.program import direct, replayed
from . import tracing

version = torch.__version__
compiles = False
double = nullcontext
float64_remedy = None
vjp = torch.func.vjp


def devices() -> dict[str, Any]:
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    mps = ["mps:0"] if torch.backends.mps.is_available() else []
    return {name: torch.device(name) for name in [*cuda, *mps, "cpu"]}


def describe(device: Any) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def has_float64(device: Any) -> bool:
    return device.type != "mps"


def asarray(data: Any, device: Any) -> Any:
    return torch.tensor(np.array(data, order="C"), device=device)


def to_numpy(array: Any) -> Any:
    return array.detach().cpu().numpy()


def jit(function: Callable, device: Any, donate: tuple[int, ...] = ()) -> Callable:
    return (
        replayed(function, tracing.library, donate)
        if device.type == "cpu"
        else function
    )


def eager(function: Callable, device: Any) -> Callable:
    return direct(function, tracing.library) if device.type == "cpu" else function


def random_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


_LINES = ":4096:8", ":16:8"  # what CUBLAS_WORKSPACE_CONFIG must be


def policy(device: Any, precision: str, deterministic: bool) -> AbstractContextManager:
    """It sets fp32_precision, of matmul in torch.backends.cuda, of conv and rnn in .cudnn and of
    all three in .mkldnn, to "ieee", or to "tf32" if fast; NVIDIA_TF32_OVERRIDE,
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE and ONEDNN_DEFAULT_FPMATH_MODE are stronger."""
    cuda = device.type == "cuda"
    if (
        deterministic
        and cuda
        and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _LINES
    ):
        raise NotImplementedError(
            "cuBLAS does not give the same bits in every run, unless "
            f"CUBLAS_WORKSPACE_CONFIG is {' or '.join(_LINES)} before Python starts"
        )
    if deterministic and device.type == "mps":
        raise NotImplementedError("PyTorch has no deterministic mode on Apple's GPUs")
    settings = [
        (get(), put, value)
        for get, put, value in _settings(cuda, precision, deterministic)
    ]
    wrong = [
        (value, put, required)
        for value, put, required in settings
        if value != required and (value, required) != ("none", "ieee")
    ]
    return _set_up(wrong) if wrong else _AS_IT_IS


_AS_IT_IS = nullcontext()


@contextmanager
def _set_up(settings):
    done = []
    try:
        for old, put, value in settings:
            done.append((put, old))
            put(value)
        yield
    finally:
        for put, old in reversed(done):
            put(old)


@cache
def _settings(cuda, precision, deterministic):
    """Return (getter, setter, required value) for each setting."""
    cudnn = torch.backends.cudnn
    strict = precision == "strict"
    settings = []
    if deterministic:
        get = torch.get_deterministic_debug_mode
        put = torch.set_deterministic_debug_mode
        settings.append((get, put, 2))  # raise an error for nondeterministic operations
    if deterministic and cuda:
        settings += [
            _attribute(cudnn, "deterministic", True),
            _attribute(cudnn, "benchmark", False),
        ]
    if not hasattr(torch._C, "_get_fp32_precision_getter"):  # before PyTorch 2.9
        get = torch.get_float32_matmul_precision
        put = torch.set_float32_matmul_precision
        settings.append((get, put, "highest" if strict else "high"))
        return [*settings, _attribute(cudnn, "allow_tf32", not strict)]
    # the functions behind torch.backends, which is ten times as slow
    get = torch._C._get_fp32_precision_getter
    put = torch._C._set_fp32_precision_setter
    for place in _PRODUCTS["cuda" if cuda else "cpu"]:
        settings.append(
            (partial(get, *place), partial(put, *place), "ieee" if strict else "tf32")
        )
    return settings


_PRODUCTS = {
    "cuda": (("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")),
    "cpu": (("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")),
}


def _attribute(place, name, value):
    return partial(getattr, place, name), partial(setattr, place, name), value


def peak_memory(device: Any) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def synchronize(array: Any) -> None:
    if array.is_cuda:
        torch.cuda.synchronize(array.device)
    elif array.is_mps:
        torch.mps.synchronize()


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _in_one(query, key, allowed, kept):
    """Return whether PyTorch's fused attention, which does not store P, supports this case."""
    plain = isinstance(allowed, tuple) and isinstance(kept, tuple)
    # with fewer keys than a register holds it loses NaN
    return plain and query.is_cpu and query.numel() > 0 and key.shape[2] >= 16


def _lined(x):
    """Return x with a contiguous last axis, which the fused function needs but does not check."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _for_each(x, group):
    """Repeat (batch, heads, s, d) for each head of a group: (batch, heads · group, s, d)."""
    return _lined(x).unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2)


def _attend(query, key, value, allowed=(), kept=(), *, causal=False):
    if not _in_one(query, key, allowed, kept):
        standard = ops.attend.dispatch(object)
        return standard(query, key, value, allowed, kept, causal=causal)
    group = query.shape[2]
    answers = _for_each(key, group), _for_each(value, group)
    heads, logs = _FLASH(_lined(query).flatten(1, 2), *answers, 0.0, causal)
    return heads.unflatten(1, query.shape[1:3]), (logs,)


def _attend_backward(
    query, key, value, allowed, kept, heads, cache, dy, *, causal=False
):
    if not _in_one(query, key, allowed, kept):
        standard = ops.attend_backward.dispatch(object)
        return standard(
            query, key, value, allowed, kept, heads, cache, dy, causal=causal
        )
    group = query.shape[2]
    dy, query, heads = (_lined(x).flatten(1, 2) for x in (dy, query, heads))
    answers = _for_each(key, group), _for_each(value, group)
    dquery, *rest = _FLASH_BACKWARD(dy, query, *answers, heads, *cache, 0.0, causal)
    if group > 1:
        rest = [dx.unflatten(1, (-1, group)).sum(2) for dx in rest]
    return dquery.unflatten(1, (-1, group)), *rest


def _empty(one, length):
    return one.new_empty((length, *one.shape))


def _scatter_add(updates, index, rows):
    zeros = torch.zeros(
        (rows, updates.shape[1]), dtype=updates.dtype, device=updates.device
    )
    return zeros.index_add_(0, index.to(torch.int64), updates)


def _normalize_rows(x, scale, bias, epsilon):
    y, *statistics = torch.native_layer_norm(x, x.shape[-1:], scale, bias, epsilon)
    return y, (x, *statistics)


def _normalize_rows_backward(dy, scale, bias, cache):
    x, *statistics = cache
    needed = (True, scale is not None, bias is not None)
    back = torch.ops.aten.native_layer_norm_backward
    return back(dy, x, x.shape[-1:], *statistics, scale, bias, needed)


def _convolve(x, weight, stride, padding, dilation, groups, bias=None):
    rank = len(stride)
    even, more = _evenly(padding)
    x = ops.pad(x, more).movedim(-1, 1)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    # not by oneDNN: it crashes if windows of size one contain only padding
    y = function(x, _outward(weight), None, stride, even, dilation, groups).movedim(
        1, -1
    )
    if bias is not None:
        y += bias
    return y


def _convolve_input(dy, weight, lengths, stride, padding, dilation, groups):
    even, more = _evenly(padding)
    sizes = (
        n + before + behind for n, (before, behind) in zip(lengths, more, strict=True)
    )
    like = dy.new_empty((len(dy), *sizes, weight.shape[-2] * groups)).movedim(-1, 1)
    spans = stride, even, dilation, False, [0] * len(stride), groups
    arrays = dy.movedim(-1, 1), like, _outward(weight), None
    dx, _, _ = torch.ops.aten.convolution_backward(
        *arrays, *spans, (True, False, False)
    )
    return ops.crop(dx.movedim(1, -1), more)


def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    rank = len(stride)
    even, more = _evenly(padding)
    x = ops.pad(x, more).movedim(-1, 1)
    shape = (dy.shape[-1], x.shape[1] // groups, *window)
    function = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)[rank - 1]
    dweight = function(x, shape, dy.movedim(-1, 1), stride, even, dilation, groups)
    return dweight.permute(*range(2, rank + 2), 1, 0)


def _outward(weight):
    """Permute (*window, fan_in, width) to PyTorch's (width, fan_in, *window)."""
    return weight.permute(-1, -2, *range(weight.ndim - 2))


def _evenly(padding):
    """Return the padding that both sides of each axis share, and the rest on either side."""
    even = [min(sides) for sides in padding]
    more = ((low - e, high - e) for (low, high), e in zip(padding, even, strict=True))
    return even, tuple(more)


def _pad_impl(x, pads, value):
    sides = [n for pair in reversed(pads) for n in pair]
    return functional.pad(x, (0, 0, *sides), value=value)


_POOLS = functional.max_pool2d, functional.max_pool3d
_UNPOOLS = (
    torch.ops.aten.max_pool2d_with_indices_backward,
    torch.ops.aten.max_pool3d_with_indices_backward,
)


def _has_pool(window, padding):
    """Return whether PyTorch supports the padding: symmetric, and at most half a window."""
    return all(
        a == b and a <= k // 2 for k, (a, b) in zip(window, padding, strict=True)
    )


def _image(*spans):
    """Return options for a time axis as those for an image of height one."""
    return ((one, *span) for one, span in zip((1, 1, (0, 0), 1), spans, strict=True))


def _largest(x, window, stride, padding, dilation):
    if len(window) == 1:
        y, which = _largest(x[:, None], *_image(window, stride, padding, dilation))
        return y[:, 0], which
    if not _has_pool(window, padding):
        return ops.largest.dispatch(object)(x, window, stride, padding, dilation)
    lows = [low for low, _ in padding]
    y, which = _POOLS[len(window) - 2](
        x.movedim(-1, 1), window, stride, lows, dilation, return_indices=True
    )
    return y.movedim(1, -1), (which,)


def _largest_input(dy, which, lengths, window, stride, padding, dilation):
    spans = window, stride, padding, dilation
    if len(window) == 1:
        return _largest_input(dy[:, None], which, (1, *lengths), *_image(*spans))[:, 0]
    if not _has_pool(window, padding):
        return ops.largest_input.dispatch(object)(dy, which, lengths, *spans)
    like = dy.new_empty((len(dy), *lengths, dy.shape[-1])).movedim(-1, 1)
    lows = [low for low, _ in padding]
    spans = window, stride, lows, dilation, False
    return _UNPOOLS[len(window) - 2](dy.movedim(-1, 1), like, *spans, *which).movedim(
        1, -1
    )


_MODE = 2  # PyTorch's number for an LSTM


def _has_lstm(xs):
    """Return whether oneDNN has an LSTM for this input.

    It computes the slopes of gates from their outputs, so slopes below 1e-7 become 0.
    """
    here = torch.backends.mkldnn.is_available() and xs.is_cpu
    return here and xs.dtype == torch.float32 and 0 not in xs.shape


def _lstm(xs, params, start, reverse, keep, by_steps):
    if not _has_lstm(xs):
        return by_steps()
    bias = params["bias"]
    width = len(params["recurrent"])
    weights = params["weight"].T, params["recurrent"].T, bias, torch.zeros_like(bias)
    arguments = _packed(xs, *weights, start["h"], start["c"])
    how = reverse, [], _MODE, width, 1, True, False, False, keep
    ys, h, c, space = torch.ops.aten.mkldnn_rnn_layer(*arguments, *how)
    return {"h": h, "c": c}, (ys, (*arguments, ys, h, c, space))


def _lstm_backward(xs, params, kept, dys, dend, reverse, wanted, by_steps):
    if not _has_lstm(xs):
        return by_steps()
    *arrays, space = kept
    arguments = *arrays, *(dys or (None,)), dend["h"], dend["c"]
    how = reverse, _MODE, len(params["recurrent"]), 1, True, True, False, [], False
    gradients = torch.ops.aten.mkldnn_rnn_layer_backward(*arguments, *how, space)
    dxs, dweight, drecurrent, dbias, _, dh, dc = gradients
    dweight, drecurrent = _packed(dweight.T, drecurrent.T)
    grads = {"weight": dweight, "recurrent": drecurrent, "bias": dbias}
    return dxs if wanted else (), grads, {"h": dh, "c": dc}


def _packed(*arrays):
    # oneDNN assumes contiguous memory and does not check
    return [one.contiguous() for one in arrays]


def _all_finite(*arrays):
    if not all(one.is_cpu for one in arrays):
        return ops.all_finite.dispatch(object)(*arrays)
    # BLAS sums squares faster than PyTorch tests each
    # number, which is needed only on overflow
    return torch.tensor(all(map(_is_finite, arrays)))


def _is_finite(x):
    flat = x.reshape(-1)
    return math.isfinite(torch.dot(flat, flat)) or bool(torch.isfinite(x).all())


def _select(holds, make, old):
    # on a GPU a branch would wait for the host to read the condition
    return (make() if holds else old) if holds.is_cpu else _chosen(holds, make(), old)


def _chosen(holds, new, old):
    if isinstance(new, dict):
        return {name: _chosen(holds, new[name], old[name]) for name in new}
    if isinstance(new, tuple):
        return tuple(_chosen(holds, *pair) for pair in zip(new, old, strict=True))
    # random keys; torch.where does not support uint32 on GPUs
    if new.dtype == torch.uint32:
        return _chosen(holds, new.view(torch.int32), old.view(torch.int32)).view(
            torch.uint32
        )
    return torch.where(holds, new, old)


def _sum_over(x, axes, xp=xp):
    return xp.sum(x, axis=axes, keepdims=True)


def _sum_rows(x, xp=xp):
    return xp.sum(x, axis=tuple(range(x.ndim - 1)))


def _above_zero(x, dy):
    return torch.ops.aten.threshold_backward(dy, x, 0)


def _words(key, count, stream=0):
    # PyTorch has no uint32 arithmetic; int64 gives the same words
    return random.words.dispatch(object)(key.to(torch.int64), count, stream)


def _bounded_exp(x, two_to=tracing.two_to):
    # these operations are faster than PyTorch's exp only within a kernel
    if x.is_cpu and x.dtype == torch.float32 and kernels.available():
        return bounded_exp(x, two_to)
    return ops.bounded_exp.dispatch(object)(x)


def _unslide(*parts, axis, stride, dilation, length):
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = first.new_zeros(shape)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        x[(*(slice(None),) * axis, slice(k * dilation, end, stride), ...)] += part
    return x


ops.above_zero.register(torch.Tensor, _above_zero)
ops.all_finite.register(torch.Tensor, _all_finite)
ops.attend.register(torch.Tensor, _attend)
ops.attend_backward.register(torch.Tensor, _attend_backward)
ops.bounded_exp.register(torch.Tensor, _bounded_exp)
ops.convolve.register(torch.Tensor, _convolve)
ops.convolve_input.register(torch.Tensor, _convolve_input)
ops.convolve_weight.register(torch.Tensor, _convolve_weight)
ops.erf.register(torch.Tensor, torch.special.erf)
ops.erfc.register(torch.Tensor, torch.special.erfc)
ops.lstm.register(torch.Tensor, _lstm)
ops.lstm_backward.register(torch.Tensor, _lstm_backward)
ops.normalize_rows.register(torch.Tensor, _normalize_rows)
ops.normalize_rows_backward.register(torch.Tensor, _normalize_rows_backward)
ops.largest.register(torch.Tensor, _largest)
ops.largest_input.register(torch.Tensor, _largest_input)
ops.scan_impl.register(torch.Tensor, ops.scan_into(_empty))
ops.scatter_add.register(torch.Tensor, _scatter_add)
ops.select.register(torch.Tensor, _select)
ops.sum_over.register(torch.Tensor, _sum_over)
ops.sum_rows.register(torch.Tensor, _sum_rows)
ops.pad_impl.register(torch.Tensor, _pad_impl)
ops.unslide.register(torch.Tensor, _unslide)
random.words.register(torch.Tensor, _words)

# For traced tensors: each version for PyTorch is recorded as one call, or, if it
# consists of operations that can be fused, as these.
for _function in (*vars(ops).values(), random.words):
    if torch.Tensor in getattr(_function, "registry", ()):
        _native = _function.registry[torch.Tensor]
        _function.register(tracing.TracedTensor, trace.opaque(_native))
for _function, _native in ((ops.lstm, _lstm), (ops.lstm_backward, _lstm_backward)):
    _function.register(tracing.TracedTensor, trace.opaque_if(_native, _has_lstm))
ops.barrier_impl.register(tracing.TracedTensor, trace.barrier)
for _function, _native in ((ops.sum_over, _sum_over), (ops.sum_rows, _sum_rows)):
    _traced = partial(_native, xp=tracing.TracedTensor.namespace)
    _function.register(tracing.TracedTensor, _traced)
ops.bounded_exp.register(
    tracing.TracedTensor,
    partial(_bounded_exp, two_to=partial(trace.record, tracing.two_to)),
)
ops.scan_impl.register(tracing.TracedTensor, trace.unrolled_scan)
ops.select.register(tracing.TracedTensor, trace.select)
