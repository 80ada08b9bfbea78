"""PyTorch: eager, on CPUs and GPUs. Its autograd is never asked for a gradient but in checks."""

from contextlib import nullcontext

import array_api_compat.torch as xp
import numpy as np
import torch

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


def _words(key, count, stream=0):
    # PyTorch has no uint32 arithmetic; in int64 the same words come out
    return random.words.dispatch(object)(key.to(torch.int64), count, stream)


special.erf.register(torch.Tensor, torch.special.erf)
special.scatter_add.register(torch.Tensor, _scatter_add)
random.words.register(torch.Tensor, _words)
