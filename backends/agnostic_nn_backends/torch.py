"""PyTorch: eager, on CPUs and GPUs. Its autograd is never asked for a gradient but in checks."""

from contextlib import nullcontext

import array_api_compat.torch as xp
import numpy as np
import torch
from torch.nn import functional, grad

from agnostic_nn import random, special

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

version = torch.__version__
double = nullcontext
vjp = torch.func.vjp


def devices():
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    mps = ["mps:0"] if torch.backends.mps.is_available() else []
    return {name: torch.device(name) for name in [*cuda, *mps, "cpu"]}


def describe(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def has_float64(device):
    return device.type != "mps"


def asarray(data, device):
    return torch.tensor(np.array(data, order="C"), device=device)


def to_numpy(array):
    return array.detach().cpu().numpy()


def jit(function, device, donate=()):
    return function


def synchronize(array):
    if array.is_cuda:
        torch.cuda.synchronize(array.device)
    elif array.is_mps:
        torch.mps.synchronize()


def _scatter_add(updates, index, rows):
    zeros = torch.zeros((rows, updates.shape[1]), dtype=updates.dtype, device=updates.device)
    return zeros.index_add(0, index.to(torch.int64), updates)


def _convolve(x, weight, stride, padding, dilation, groups):
    rank = len(stride)
    x, even = _evenly_padded(x, padding)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    y = function(x, _outward(weight), None, stride, even, dilation, groups)
    return y.movedim(1, -1)


def _convolve_input(dy, weight, lengths, stride, padding, dilation, groups):
    rank = len(stride)
    even = [min(sides) for sides in padding]
    sizes = [n + sum(sides) - 2 * e for n, sides, e in zip(lengths, padding, even, strict=True)]
    shape = (dy.shape[0], weight.shape[-2] * groups, *sizes)
    function = (grad.conv1d_input, grad.conv2d_input, grad.conv3d_input)[rank - 1]
    weight, dy = _outward(weight), dy.movedim(-1, 1)
    dx = function(shape, weight, dy, stride, even, dilation, groups).movedim(1, -1)
    inside = (
        slice(low - e, low - e + n) for n, (low, _), e in zip(lengths, padding, even, strict=True)
    )
    return dx[(slice(None), *inside)]


def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    rank = len(stride)
    x, even = _evenly_padded(x, padding)
    shape = (dy.shape[-1], x.shape[1] // groups, *window)
    function = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)[rank - 1]
    found = function(x, shape, dy.movedim(-1, 1), stride, even, dilation, groups)
    return found.permute(*range(2, rank + 2), 1, 0)


def _outward(weight):
    """(*window, fan_in, width), as PyTorch has it: (width, fan_in, *window)."""
    return weight.permute(-1, -2, *range(weight.ndim - 2))


def _evenly_padded(x, padding):
    """x with its channels first and zeros where one side has more; the rest is the same on both."""
    even = [min(sides) for sides in padding]
    x = x.movedim(-1, 1)
    more = [n - e for sides, e in zip(padding, even, strict=True) for n in reversed(sides)]
    return (functional.pad(x, more[::-1]) if any(more) else x), even


def _words(key, count, stream=0):
    # PyTorch has no uint32 arithmetic; in int64 the same words come out
    return random.words.dispatch(object)(key.to(torch.int64), count, stream)


def _unslide(*parts, axis, stride, dilation, length):
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = first.new_zeros(shape)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        x[(*(slice(None),) * axis, slice(k * dilation, end, stride), ...)] += part
    return x


special.convolve.register(torch.Tensor, _convolve)
special.convolve_input.register(torch.Tensor, _convolve_input)
special.convolve_weight.register(torch.Tensor, _convolve_weight)
special.erf.register(torch.Tensor, torch.special.erf)
special.scatter_add.register(torch.Tensor, _scatter_add)
special.unslide.register(torch.Tensor, _unslide)
random.words.register(torch.Tensor, _words)
