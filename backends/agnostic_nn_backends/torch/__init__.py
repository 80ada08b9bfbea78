"""PyTorch: eager, on CPUs and GPUs. Its autograd is used only to check gradients.

This module is the adapter, with native versions of functions of `ops`. `tracing` has
the facts about PyTorch that replay needs; it is used on CPUs.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional, grad

from agnostic_nn import ops
from agnostic_nn.core import random
from agnostic_nn.core.windows import Pads
from agnostic_nn.ops.decoding import expect_room, past_keys

from .. import processor
from ..exponential import bounded_exp
from ..replay import kernels, trace
from ..replay.program import direct, replayed
from . import tracing

version = torch.__version__
compiles = False
double = nullcontext
float64_remedy = None
missing_dtypes = None
vjp = torch.func.vjp

_Shape = tuple[int, ...]
_traced_xp = tracing.TracedTensor.namespace


def devices() -> dict[str, Any]:
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    mps = ["mps:0"] if torch.backends.mps.is_available() else []
    return {name: torch.device(name) for name in [*cuda, *mps, "cpu"]}


def describe(device: Any) -> str:
    if device.type == "cuda":
        name: str = torch.cuda.get_device_name(device)
        return name
    return processor()


def has_float64(device: Any) -> bool:
    return bool(device.type != "mps")


def asarray(data: Any, device: Any) -> Any:
    return torch.tensor(np.array(data, order="C"), device=device)


def to_numpy(array: Any) -> Any:
    return array.detach().cpu().numpy()


def jit(
    function: Callable[..., Any], device: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    if device.type != "cpu":
        return function
    return replayed(function, tracing.library, donate)


def eager(function: Callable[..., Any], device: Any) -> Callable[..., Any]:
    return direct(function, tracing.library) if device.type == "cpu" else function


# no counters of versions, which autograd compares
inference = torch.inference_mode


def random_state() -> bytes:
    state: bytes = torch.get_rng_state().numpy().tobytes()
    return state


# --- precision and determinism


_WORKSPACES = ":4096:8", ":16:8"  # what CUBLAS_WORKSPACE_CONFIG must be
# a setting of PyTorch: (its getter, its setter, the value that a policy requires)
_Setting = tuple[Callable[[], Any], Callable[[Any], Any], Any]


def policy(
    device: Any, precision: str, deterministic: bool
) -> AbstractContextManager[None]:
    """It sets fp32_precision, of matmul in torch.backends.cuda, of conv and rnn in
    .cudnn and of all three in .mkldnn, to "ieee", or to "tf32" if fast;
    NVIDIA_TF32_OVERRIDE, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE and
    ONEDNN_DEFAULT_FPMATH_MODE are stronger."""
    is_cuda = device.type == "cuda"
    if deterministic and is_cuda:
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        if workspace not in _WORKSPACES:
            raise NotImplementedError(
                "cuBLAS does not give the same bits in every run, unless "
                f"CUBLAS_WORKSPACE_CONFIG is {' or '.join(_WORKSPACES)} before Python "
                "starts"
            )
    if deterministic and device.type == "mps":
        raise NotImplementedError("PyTorch has no deterministic mode on Apple's GPUs")
    changes = []
    for getter, setter, required in _settings(is_cuda, precision, deterministic):
        value = getter()
        if value != required and (value, required) != ("none", "ieee"):
            changes.append((setter, value, required))
    return _changed(changes) if changes else _NO_CHANGE


_NO_CHANGE = nullcontext()


@contextmanager
def _changed(changes: list[tuple[Callable[[Any], Any], Any, Any]]) -> Iterator[None]:
    """Change settings in this context; each is (setter, old value, required value)."""
    done = []
    try:
        for setter, old, required in changes:
            done.append((setter, old))
            setter(required)
        yield
    finally:
        for setter, old in reversed(done):
            setter(old)


@cache
def _settings(is_cuda: bool, precision: str, deterministic: bool) -> list[_Setting]:
    """Return the settings that a policy requires."""
    cudnn = torch.backends.cudnn
    strict = precision == "strict"
    settings: list[_Setting] = []
    getter: Callable[..., Any]
    setter: Callable[..., Any]
    if deterministic:
        getter = torch.get_deterministic_debug_mode
        setter = torch.set_deterministic_debug_mode
        # raise an error for nondeterministic operations
        settings.append((getter, setter, 2))
    if deterministic and is_cuda:
        settings.append(_attribute(cudnn, "deterministic", True))
        settings.append(_attribute(cudnn, "benchmark", False))
    if not hasattr(torch._C, "_get_fp32_precision_getter"):  # before PyTorch 2.9
        getter = torch.get_float32_matmul_precision
        setter = torch.set_float32_matmul_precision
        settings.append((getter, setter, "highest" if strict else "high"))
        settings.append(_attribute(cudnn, "allow_tf32", not strict))
        return settings
    # the functions behind torch.backends, which is ten times as slow
    getter = torch._C._get_fp32_precision_getter
    setter = torch._C._set_fp32_precision_setter
    required = "ieee" if strict else "tf32"
    library = "cuda" if is_cuda else "mkldnn"
    for operation in ("matmul", "conv", "rnn"):
        place = (library, operation)
        settings.append((partial(getter, *place), partial(setter, *place), required))
    return settings


def _attribute(owner: Any, name: str, required: Any) -> _Setting:
    return partial(getattr, owner, name), partial(setattr, owner, name), required


def peak_memory(device: Any) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def synchronize(array: Any) -> None:
    if array.is_cuda:
        torch.cuda.synchronize(array.device)
    elif array.is_mps:
        torch.mps.synchronize()


# --- attention


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_FLASH_KEYS = 16  # with fewer keys than a register holds it loses NaN

_Optional = Any  # a tensor, or () for none


def _has_flash(
    query: Tensor, key: Tensor, value: Tensor, allowed: _Optional, dropout: _Optional
) -> bool:
    """Return whether PyTorch's fused attention, which does not store P, can be used."""
    if not (isinstance(allowed, tuple) and isinstance(dropout, tuple)):
        return False
    if value.shape[3] != query.shape[4]:
        return False
    has_queries = query.is_cpu and query.numel() > 0
    return bool(has_queries and key.shape[2] >= _FLASH_KEYS)


def _with_contiguous_rows(x: Tensor) -> Tensor:
    """Return x with a contiguous last axis.

    The fused function needs that, but does not check it.
    """
    return x if x.stride(-1) == 1 else x.contiguous()


def _repeat_heads(x: Tensor, group: int) -> Tensor:
    """Repeat (batch, heads, s, d) for each query head of a group.

    Returns the shape (batch, heads · group, s, d).
    """
    x = _with_contiguous_rows(x).unsqueeze(2)
    return x.expand(-1, -1, group, -1, -1).flatten(1, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: _Optional = (),
    dropout: _Optional = (),
    *,
    causal: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    if not _has_flash(query, key, value, allowed, dropout):
        standard = ops.attend.dispatch(object)
        return standard(query, key, value, allowed, dropout, causal=causal)
    group = query.shape[2]
    flat_query = _with_contiguous_rows(query).flatten(1, 2)
    keys = _repeat_heads(key, group)
    values = _repeat_heads(value, group)
    heads, logs = _FLASH(flat_query, keys, values, 0.0, causal)
    return heads.unflatten(1, query.shape[1:3]), (logs,)


def _attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: _Optional,
    dropout: _Optional,
    heads: Tensor,
    cache: tuple[Tensor, ...],
    dy: Tensor,
    *,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    if not _has_flash(query, key, value, allowed, dropout):
        standard = ops.attend_backward.dispatch(object)
        arguments = (query, key, value, allowed, dropout, heads, cache, dy)
        return standard(*arguments, causal=causal)
    group = query.shape[2]
    dy = _with_contiguous_rows(dy).flatten(1, 2)
    query = _with_contiguous_rows(query).flatten(1, 2)
    heads = _with_contiguous_rows(heads).flatten(1, 2)
    keys = _repeat_heads(key, group)
    values = _repeat_heads(value, group)
    dquery, dkey, dvalue = _FLASH_BACKWARD(
        dy, query, keys, values, heads, *cache, 0.0, causal
    )
    if group > 1:
        dkey = dkey.unflatten(1, (-1, group)).sum(2)
        dvalue = dvalue.unflatten(1, (-1, group)).sum(2)
    return dquery.unflatten(1, (-1, group)), dkey, dvalue


def _store(memory: Tensor, rows: Tensor, start: Tensor) -> Tensor:
    if not memory.is_cpu:  # a GPU would wait for the host to read `start`
        return ops.store.dispatch(object)(memory, rows, start)
    return _store_in_place(memory.clone(), rows, start)


def _store_in_place(memory: Tensor, rows: Tensor, start: Tensor) -> Tensor:
    first = start.item()
    time = rows.size(-2)
    if first + time > memory.size(-2):
        expect_room(memory.size(-2), time, first)
    memory[..., first : first + time, :] = rows
    return memory


def _attend_stored(query: Tensor, key: Tensor, value: Tensor, start: Tensor) -> Tensor:
    if not query.is_cpu:
        return ops.attend_stored.dispatch(object)(query, key, value, start)
    first = start.item()
    time = query.size(3)
    if time == 1:
        return _attend_step(query.squeeze(3), key, value, start).unsqueeze(3)
    count = first + time
    key = key.narrow(2, 0, count)
    value = value.narrow(2, 0, count)
    if first == 0:
        return _attend(query, key, value, causal=True)[0]
    return _attend(query, key, value, past_keys(start, time, count))[0]


def _attend_step(query: Tensor, key: Tensor, value: Tensor, start: Tensor) -> Tensor:
    """Return O for one step, (batch, heads, group, e).

    query: (batch, heads, group, d). All queries of a group may use the same keys, so
    they count as further queries.
    """
    count = start.item() + 1
    key = key.narrow(2, 0, count)
    value = value.narrow(2, 0, count)
    if count < _FLASH_KEYS or key.size(3) != value.size(3):
        return _attend(query.unsqueeze(3), key, value)[0].squeeze(3)
    return functional.scaled_dot_product_attention(query, key, value)


def _traced_attend_stored(query: Any, key: Any, value: Any, start: Any) -> Any:
    batch, heads, group, time, d = query.shape
    if time > 1:
        return trace.record(_attend_stored, query, key, value, start)
    # a reshape is recorded with those before and after it, or costs nothing
    rows = _traced_xp.reshape(query, (batch, heads, group, d))
    rows = trace.record(_attend_step, rows, key, value, start)
    return _traced_xp.reshape(rows, (batch, heads, group, 1, rows.shape[-1]))


# --- products, indexing and normalization


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight)


def _traced_affine(x: Any, weight: Any, bias: Any) -> Any:
    return trace.record(torch.addmm, bias, x, weight)


def _empty(like: Tensor, length: int) -> Tensor:
    """Return an empty tensor for `length` tensors like `like`, stacked."""
    return like.new_empty((length, *like.shape))


def _scatter_add(updates: Tensor, index: Tensor, rows: int) -> Tensor:
    shape = (rows, updates.shape[1])
    zeros = torch.zeros(shape, dtype=updates.dtype, device=updates.device)
    return zeros.index_add_(0, index.to(torch.int64), updates)


def _normalize_rows(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    y, *statistics = torch.native_layer_norm(x, x.shape[-1:], scale, bias, epsilon)
    return y, (x, *statistics)


def _traced_normalize_rows(x: Any, scale: Any, bias: Any, epsilon: float) -> Any:
    if x.shape[-2] != 1:
        return trace.record(_normalize_rows, x, scale, bias, epsilon)
    # A step of decoding: rows of a matrix are what a product with weights takes next.
    width = x.shape[-1]
    rows = _traced_xp.reshape(x, (math.prod(x.shape[:-1]), width))
    function = torch.native_layer_norm
    y, *statistics = trace.record(function, rows, (width,), scale, bias, epsilon)
    shape = (*x.shape[:-1], 1)
    statistics = [_traced_xp.reshape(part, shape) for part in statistics]
    return _traced_xp.reshape(y, x.shape), (x, *statistics)


def _normalize_rows_backward(
    dy: Tensor, scale: Tensor | None, bias: Tensor | None, cache: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, *statistics = cache
    is_needed = (True, scale is not None, bias is not None)
    backward = torch.ops.aten.native_layer_norm_backward
    dx, dscale, dbias = backward(
        dy, x, x.shape[-1:], *statistics, scale, bias, is_needed
    )
    return dx, dscale, dbias


# --- convolution: PyTorch's channels follow the batch, and its padding is symmetric


def _convolve(
    x: Tensor,
    weight: Tensor,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
    bias: Tensor | None = None,
) -> Tensor:
    rank = len(stride)
    symmetric, rest = _split_padding(padding)
    x = ops.pad(x, rest).movedim(-1, 1)
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    # without bias: oneDNN, which adds it, crashes if windows of size one contain only
    # padding
    y = conv(x, _torch_weight(weight), None, stride, symmetric, dilation, groups)
    y = y.movedim(1, -1)
    if bias is not None:
        y += bias
    return y


def _convolve_input(
    dy: Tensor,
    weight: Tensor,
    lengths: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
) -> Tensor:
    symmetric, rest = _split_padding(padding)
    sizes = (n + low + high for n, (low, high) in zip(lengths, rest, strict=True))
    like = dy.new_empty((len(dy), *sizes, weight.shape[-2] * groups)).movedim(-1, 1)
    dx, _, _ = torch.ops.aten.convolution_backward(
        dy.movedim(-1, 1),
        like,
        _torch_weight(weight),
        None,  # no bias
        stride,
        symmetric,
        dilation,
        False,  # not transposed
        [0] * len(stride),
        groups,
        (True, False, False),  # the gradient of the input only
    )
    return ops.crop(dx.movedim(1, -1), rest)


def _convolve_weight(
    x: Tensor,
    dy: Tensor,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
) -> Tensor:
    rank = len(stride)
    symmetric, rest = _split_padding(padding)
    x = ops.pad(x, rest).movedim(-1, 1)
    dy = dy.movedim(-1, 1)
    shape = (dy.shape[1], x.shape[1] // groups, *window)
    gradient = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)[rank - 1]
    dweight = gradient(x, shape, dy, stride, symmetric, dilation, groups)
    return dweight.permute(*range(2, rank + 2), 1, 0)


def _torch_weight(weight: Tensor) -> Tensor:
    """Permute (*window, fan_in, width) to PyTorch's (width, fan_in, *window)."""
    return weight.permute(-1, -2, *range(weight.ndim - 2))


def _split_padding(padding: Pads) -> tuple[list[int], Pads]:
    """Return the padding that both sides of an axis share, and the rest, for each."""
    symmetric = [min(sides) for sides in padding]
    rest = [
        (low - n, high - n) for (low, high), n in zip(padding, symmetric, strict=True)
    ]
    return symmetric, tuple(rest)


def _pad_impl(x: Tensor, pads: Pads, value: float) -> Tensor:
    sides = [n for pair in reversed(pads) for n in pair]
    return functional.pad(x, (0, 0, *sides), value=value)


# --- maximum pooling


_POOLS = functional.max_pool2d, functional.max_pool3d
_UNPOOLS = (
    torch.ops.aten.max_pool2d_with_indices_backward,
    torch.ops.aten.max_pool3d_with_indices_backward,
)


def _has_pool(window: _Shape, padding: Pads) -> bool:
    """Return whether PyTorch supports the padding: symmetric, at most half a window."""
    sizes = zip(window, padding, strict=True)
    return all(low == high and low <= k // 2 for k, (low, high) in sizes)


def _largest(
    x: Tensor, window: _Shape, stride: _Shape, padding: Pads, dilation: _Shape
) -> tuple[Tensor, tuple[Tensor, ...]]:
    if len(window) == 1:  # a time axis is pooled like an image of height one
        spans = (1, *window), (1, *stride), ((0, 0), *padding), (1, *dilation)
        y, which = _largest(x[:, None], *spans)
        return y[:, 0], which
    if not _has_pool(window, padding):
        return ops.largest.dispatch(object)(x, window, stride, padding, dilation)
    lows = [low for low, _ in padding]
    pool = _POOLS[len(window) - 2]
    y, index = pool(
        x.movedim(-1, 1), window, stride, lows, dilation, return_indices=True
    )
    return y.movedim(1, -1), (index,)


def _largest_input(
    dy: Tensor,
    which: tuple[Tensor, ...],
    lengths: _Shape,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
) -> Tensor:
    if len(window) == 1:
        spans = (1, *window), (1, *stride), ((0, 0), *padding), (1, *dilation)
        return _largest_input(dy[:, None], which, (1, *lengths), *spans)[:, 0]
    if not _has_pool(window, padding):
        standard = ops.largest_input.dispatch(object)
        return standard(dy, which, lengths, window, stride, padding, dilation)
    like = dy.new_empty((len(dy), *lengths, dy.shape[-1])).movedim(-1, 1)
    lows = [low for low, _ in padding]
    unpool = _UNPOOLS[len(window) - 2]
    dx = unpool(dy.movedim(-1, 1), like, window, stride, lows, dilation, False, *which)
    return dx.movedim(1, -1)


# --- interpolation


_RESIZES = (torch.ops.aten.upsample_bilinear2d, torch.ops.aten.upsample_trilinear3d)
_RESIZES_BACK = (
    torch.ops.aten.upsample_bilinear2d_backward,
    torch.ops.aten.upsample_trilinear3d_backward,
)


def _has_resize(x: Tensor, lengths: _Shape, size: _Shape, align_corners: bool) -> bool:
    """Return whether PyTorch interpolates as exactly as the standard version.

    It computes positions and weights in the precision of x, which is exact if they are
    multiples of a power of 1/2 and not too many. On a GPU its backward adds in any
    order.
    """
    fits = x.is_cpu and x.dtype in (torch.float32, torch.float64)
    if not fits or 0 in x.shape or not 1 <= len(size) <= 3:
        return False
    for n, m in zip(lengths, size, strict=True):
        above, below = (n - 1, m - 1) if align_corners else (n, m)
        below //= math.gcd(above, below) or 1
        if below & (below - 1) or n * m >= 2**22:
            return False
    return True


def _interpolate(
    x: Tensor, size: _Shape, align_corners: bool, standard: Callable[[], Tensor] | None
) -> Tensor:
    if standard and not _has_resize(x, x.shape[1:-1], size, align_corners):
        return standard()
    if len(size) == 1:  # a time axis is resized like an image of height one
        return _interpolate(x[:, None], (1, *size), align_corners, None)[:, 0]
    resize = _RESIZES[len(size) - 2]
    return resize(x.movedim(-1, 1), size, align_corners).movedim(1, -1)


def _interpolate_input(
    dy: Tensor,
    lengths: _Shape,
    align_corners: bool,
    standard: Callable[[], Tensor] | None,
) -> Tensor:
    if standard and not _has_resize(dy, lengths, dy.shape[1:-1], align_corners):
        return standard()
    if len(lengths) == 1:
        image = dy[:, None]
        return _interpolate_input(image, (1, *lengths), align_corners, None)[:, 0]
    back = _RESIZES_BACK[len(lengths) - 2]
    x_shape = (dy.shape[0], dy.shape[-1], *lengths)
    dx = back(dy.movedim(-1, 1), dy.shape[1:-1], x_shape, align_corners)
    return dx.movedim(1, -1)


def _traced_interpolate(
    x: Any, size: _Shape, align_corners: bool, standard: Callable[[], Any]
) -> Any:
    if not _has_resize(x, x.shape[1:-1], size, align_corners):
        return standard()
    return trace.record(_interpolate, x, size, align_corners, None)


def _traced_interpolate_input(
    dy: Any, lengths: _Shape, align_corners: bool, standard: Callable[[], Any]
) -> Any:
    if not _has_resize(dy, lengths, dy.shape[1:-1], align_corners):
        return standard()
    return trace.record(_interpolate_input, dy, lengths, align_corners, None)


# --- LSTM


_MODE = 2  # PyTorch's number for an LSTM
_Tensors = dict[str, Tensor]
_Forward = tuple[_Tensors, tuple[Tensor, Any]]  # what `ops.lstm` returns
_Backward = tuple[Any, _Tensors, _Tensors]  # what `ops.lstm_backward` returns


def _has_lstm(xs: Tensor) -> bool:
    """Return whether oneDNN has an LSTM for this input.

    It computes the slopes of gates from their outputs, so slopes below 1e-7 become 0.
    """
    has_onednn = torch.backends.mkldnn.is_available() and xs.is_cpu
    return has_onednn and xs.dtype == torch.float32 and 0 not in xs.shape


def _lstm(
    xs: Tensor,
    params: _Tensors,
    start: _Tensors,
    reverse: bool,
    keep: bool,
    fallback: Callable[[], _Forward],
) -> _Forward:
    if not _has_lstm(xs):
        return fallback()
    bias = params["bias"]
    width = len(params["recurrent"])
    weights = params["weight"].T, params["recurrent"].T, bias, torch.zeros_like(bias)
    arrays = _contiguous(xs, *weights, start["h"], start["c"])
    # batch sizes, mode, width, layers, has biases, bidirectional, batch first, train
    options: tuple[Any, ...] = ([], _MODE, width, 1, True, False, False, keep)
    ys, h, c, workspace = torch.ops.aten.mkldnn_rnn_layer(*arrays, reverse, *options)
    return {"h": h, "c": c}, (ys, (*arrays, ys, h, c, workspace))


def _lstm_backward(
    xs: Tensor,
    params: _Tensors,
    cache: tuple[Tensor, ...],
    dys: tuple[Tensor, ...],
    dend: _Tensors,
    reverse: bool,
    need_dx: bool,
    fallback: Callable[[], _Backward],
) -> _Backward:
    if not _has_lstm(xs):
        return fallback()
    *arrays, workspace = cache
    width = len(params["recurrent"])
    dys_or_none = dys or (None,)
    # mode, width, layers, has biases, train, bidirectional, batch sizes, batch first
    options: tuple[Any, ...] = (_MODE, width, 1, True, True, False, [], False)
    gradients = torch.ops.aten.mkldnn_rnn_layer_backward(
        *arrays, *dys_or_none, dend["h"], dend["c"], reverse, *options, workspace
    )
    dxs, dweight, drecurrent, dbias, _, dh, dc = gradients
    dweight, drecurrent = _contiguous(dweight.T, drecurrent.T)
    grads = {"weight": dweight, "recurrent": drecurrent, "bias": dbias}
    return dxs if need_dx else (), grads, {"h": dh, "c": dc}


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    # oneDNN assumes contiguous memory and does not check
    return [tensor.contiguous() for tensor in tensors]


# --- reductions and elementwise functions


def _all_finite(*tensors: Tensor) -> Tensor:
    if not all(tensor.is_cpu for tensor in tensors):
        return ops.all_finite.dispatch(object)(*tensors)
    return torch.tensor(all(map(_is_finite, tensors)))


def _is_finite(x: Tensor) -> bool:
    # BLAS sums squares faster than PyTorch tests each element, which is needed only if
    # the sum overflows
    flat = x.reshape(-1)
    return math.isfinite(torch.dot(flat, flat)) or bool(torch.isfinite(x).all())


def _select(holds: Tensor, make: Callable[[], Any], old: Any) -> Any:
    if holds.is_cpu:
        return make() if holds else old
    # on a GPU a branch would wait for the host to read the condition
    return _select_leaves(holds, make(), old)


def _select_leaves(holds: Tensor, new: Any, old: Any) -> Any:
    """Return the tree `new` if `holds`, else `old`, without reading the condition."""
    if isinstance(new, dict):
        return {name: _select_leaves(holds, new[name], old[name]) for name in new}
    if isinstance(new, tuple):
        pairs = zip(new, old, strict=True)
        return tuple([_select_leaves(holds, *pair) for pair in pairs])
    # random keys; torch.where does not support uint32 on GPUs
    if new.dtype == torch.uint32:
        bits = torch.where(holds, new.view(torch.int32), old.view(torch.int32))
        return bits.view(torch.uint32)
    return torch.where(holds, new, old)


def _sum_over(x: Any, axes: tuple[int, ...], xp: Any = xp) -> Any:
    return xp.sum(x, axis=axes, keepdims=True)


def _sum_rows(x: Any, xp: Any = xp) -> Any:
    return xp.sum(x, axis=tuple(range(x.ndim - 1)))


def _above_zero(x: Tensor, dy: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(dy, x, 0)


def _words(key: Tensor, count: int, stream: int = 0) -> Tensor:
    # PyTorch has no uint32 arithmetic; int64 gives the same words
    return random.words.dispatch(object)(key.to(torch.int64), count, stream)


def _bounded_exp(x: Any, two_to: Callable[[Any], Any] = tracing.two_to) -> Any:
    # these operations are faster than PyTorch's exp only within a kernel
    if x.is_cpu and x.dtype == torch.float32 and kernels.available():
        return bounded_exp(x, two_to)
    return ops.bounded_exp.dispatch(object)(x)


def _unslide(
    *parts: Tensor, axis: int, stride: int, dilation: int, length: int
) -> Tensor:
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = first.new_zeros(shape)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        x[(*(slice(None),) * axis, slice(k * dilation, end, stride), ...)] += part
    return x


# --- registration


ops.above_zero.register(Tensor, _above_zero)
ops.all_finite.register(Tensor, _all_finite)
ops.affine.register(Tensor, _affine)
ops.attend.register(Tensor, _attend)
ops.attend_backward.register(Tensor, _attend_backward)
ops.attend_stored.register(Tensor, _attend_stored)
ops.bounded_exp.register(Tensor, _bounded_exp)
ops.convolve.register(Tensor, _convolve)
ops.convolve_input.register(Tensor, _convolve_input)
ops.convolve_weight.register(Tensor, _convolve_weight)
ops.erf.register(Tensor, torch.special.erf)
ops.erfc.register(Tensor, torch.special.erfc)
ops.interpolate.register(Tensor, _interpolate)
ops.interpolate_input.register(Tensor, _interpolate_input)
ops.lstm.register(Tensor, _lstm)
ops.lstm_backward.register(Tensor, _lstm_backward)
ops.normalize_rows.register(Tensor, _normalize_rows)
ops.normalize_rows_backward.register(Tensor, _normalize_rows_backward)
ops.largest.register(Tensor, _largest)
ops.largest_input.register(Tensor, _largest_input)
ops.scan_impl.register(Tensor, ops.scan_into(_empty))
ops.scatter_add.register(Tensor, _scatter_add)
ops.select.register(Tensor, _select)
ops.store.register(Tensor, _store)
ops.sum_over.register(Tensor, _sum_over)
ops.sum_rows.register(Tensor, _sum_rows)
ops.pad_impl.register(Tensor, _pad_impl)
ops.unslide.register(Tensor, _unslide)
random.words.register(Tensor, _words)

# For traced tensors each of these is recorded as one call, except those that consist of
# operations which replay can fuse, or record in a better way.
for _function in (*vars(ops).values(), random.words):
    if Tensor in getattr(_function, "registry", ()):
        _native = _function.registry[Tensor]
        _function.register(tracing.TracedTensor, trace.opaque(_native))
_traced_two_to = partial(trace.record, tracing.two_to)
for _function, _recorded in (
    (ops.lstm, trace.opaque_if(_lstm, _has_lstm)),
    (ops.lstm_backward, trace.opaque_if(_lstm_backward, _has_lstm)),
    (ops.interpolate, _traced_interpolate),
    (ops.interpolate_input, _traced_interpolate_input),
    (ops.affine, _traced_affine),
    (ops.attend_stored, _traced_attend_stored),
    (ops.barrier_impl, trace.barrier),
    (ops.normalize_rows, _traced_normalize_rows),
    (ops.sum_over, partial(_sum_over, xp=_traced_xp)),
    (ops.sum_rows, partial(_sum_rows, xp=_traced_xp)),
    (ops.bounded_exp, partial(_bounded_exp, two_to=_traced_two_to)),
    (ops.scan_impl, trace.unrolled_scan),
    (ops.select, trace.select),
    (ops.store, trace.opaque_store(_store, _store_in_place)),
):
    _function.register(tracing.TracedTensor, _recorded)
