"""Normalization: shift and scale to mean 0 and variance 1, then to a learned mean and spread.

All end in y = x̂ · scale + bias, with one number of each for each channel, the last axis of
x. x̂ and the gradient are derived in `ops.normalization`; with μ held at 0 (RMSNorm) the
term Σ gⱼ in dL/dx, which came through μ, is not there.
"""

import math
from dataclasses import KW_ONLY, dataclass

from ..core.arrays import RowMask, device, namespace
from ..core.errors import expect, expect_count, expect_flag, expect_number
from ..core.trees import tree_map
from ..ops import (
    narrowed,
    normalize,
    normalize_backward,
    normalize_rows,
    normalize_rows_backward,
    sum_rows,
    widened,
)
from .base import Layer

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


class _Scaled(Layer):
    """What ends in y = x̂ · scale + bias; `scale` and `bias` say which of both there are."""

    one_array = True

    epsilon: float
    scale: bool
    bias: bool

    def __post_init__(self):
        expect_flag("scale", self.scale)
        expect_flag("bias", self.bias)
        expect_number("epsilon", self.epsilon, 0.0)

    def init(self, key, shape, dtype):
        name, xp, place = type(self).__name__, namespace(key), device(key)
        expect(len(shape) >= 1, "{} takes (batch, ..., width), got (batch,)", name)
        params = {}
        if self.scale:
            params["scale"] = xp.ones(shape[-1], dtype=dtype, device=place)
        if self.bias:
            params["bias"] = xp.zeros(shape[-1], dtype=dtype, device=place)
        return params, {}, shape

    def _expect_width(self, x, params):
        for leaf in params.values():
            name, width = type(self).__name__, leaf.shape[0]
            fits = x.ndim >= 2 and x.shape[-1] == width
            expect(fits, "{} takes (batch, ..., {}), got {}", name, width, x.shape)

    def _scaled(self, params, normal, x):
        """y, in the dtype of x."""
        y = normal * widened(params["scale"]) if self.scale else normal
        return narrowed(y + widened(params["bias"]) if self.bias else y, x)

    def _scaled_backward(self, params, normal, dy):
        """g and the gradients of scale and bias."""
        dy, grads = widened(dy), {}
        if self.scale:
            grads["scale"] = narrowed(sum_rows(dy * normal), params["scale"])
        if self.bias:
            grads["bias"] = narrowed(sum_rows(dy), params["bias"])
        return dy * widened(params["scale"]) if self.scale else dy, grads


@dataclass(frozen=True)
class LayerNorm(_Scaled):
    """y = x̂ · scale + bias, with x̂ normalized over the last axis of each example.

    Ba, Kiros & Hinton, arXiv:1607.06450, eq. 4. x: (..., width) -> y: (..., width).
    Parameters: scale (width,), from 1, and bias (width,), from 0, each unless it is
    switched off. The gradient is derived in `ops.normalization`.
    """

    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True

    per_position = True

    def forward(self, params, state, x, *, train=False):
        self._expect_width(x, params)
        wide = tree_map(widened, params)
        scale, bias = wide.get("scale"), wide.get("bias")
        y, spent = normalize_rows(widened(x), scale, bias, self.epsilon)
        return narrowed(y, x), state, spent

    def backward(self, params, cache, dy):
        wide = tree_map(widened, params)
        scale, bias = wide.get("scale"), wide.get("bias")
        dx, dscale, dbias = normalize_rows_backward(widened(dy), scale, bias, cache)
        grads = {"scale": dscale, "bias": dbias}
        return narrowed(dx, dy), {name: narrowed(grads[name], p) for name, p in params.items()}


class _OfEachExample(_Scaled):
    """What normalizes each example by itself; `_groups` says over which axes of which shape."""

    def _groups(self, shape):
        raise NotImplementedError

    def init(self, key, shape, dtype):
        made = super().init(key, shape, dtype)
        self._groups((0, *shape))
        return made

    def forward(self, params, state, x, *, train=False):
        self._expect_width(x, params)
        xp = namespace(x)
        shape, axes = self._groups(x.shape)
        normal, _, _, spread = normalize(xp.reshape(widened(x), shape), axes, self.epsilon)
        normal = xp.reshape(normal, x.shape)
        return self._scaled(params, normal, x), state, (normal, spread)

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        normal, spread = cache
        g, grads = self._scaled_backward(params, normal, dy)
        shape, axes = self._groups(dy.shape)
        g, normal = xp.reshape(g, shape), xp.reshape(normal, shape)
        dx = xp.reshape(normalize_backward(g, normal, spread, axes), dy.shape)
        return narrowed(dx, dy), grads


@dataclass(frozen=True)
class InstanceNorm(_OfEachExample):
    """y = x̂ · scale + bias, with each channel of each example normalized over its places.

    Ulyanov, Vedaldi & Lempitsky, arXiv:1607.08022. x: (batch, *space, width) -> y of the same
    shape. Parameters as in LayerNorm, and the gradient is derived in `ops.normalization`.
    """

    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True

    def _groups(self, shape):
        fits = math.prod(shape[1:-1]) > 1
        expect(fits, "InstanceNorm takes two or more places, got (batch, *{})", shape[1:])
        return shape, tuple(range(1, len(shape) - 1))


@dataclass(frozen=True)
class GroupNorm(_OfEachExample):
    """y = x̂ · scale + bias, with x̂ normalized over all places and a group of channels.

    The last axis is cut into `groups` of neighbours, each with a mean and variance of its
    own in each example (Wu & He, arXiv:1803.08494, eq. 7). x: (batch, ..., width) -> y of the same
    shape. Parameters as in LayerNorm, and the gradient is derived in `ops.normalization`.
    """

    groups: int
    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True

    def __post_init__(self):
        super().__post_init__()
        expect_count("groups", self.groups)

    def _groups(self, shape):
        batch, *space, width = shape
        whole = width % self.groups == 0
        expect(whole, "{} channels do not fall into {} groups", width, self.groups)
        places, channels = math.prod(space), width // self.groups
        fits = places * channels > 1
        expect(fits, "GroupNorm takes two or more numbers a group, got (batch, *{})", shape[1:])
        return (batch, places, self.groups, channels), (1, 3)


@dataclass(frozen=True)
class RMSNorm(_Scaled):
    """y = x / s · scale, with s = √(Σ x² / N + ε) over the N numbers of the last axis.

    LayerNorm without the mean (Zhang & Sennrich, arXiv:1910.07467, eq. 4).
    x: (..., width) -> y: (..., width). Parameters: scale (width,), from 1, unless it is
    switched off.

    Gradient
    --------
    That of `ops.normalization` without the term of μ: dx = (g - x̂ Σ g x̂ / N) / s.
    """

    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True

    bias = False
    per_position = True

    def forward(self, params, state, x, *, train=False):
        self._expect_width(x, params)
        xp = namespace(x)
        wide = widened(x)
        spread = xp.sqrt(xp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        normal = wide / spread
        return self._scaled(params, normal, x), state, (normal, spread)

    def backward(self, params, cache, dy):
        normal, spread = cache
        g, grads = self._scaled_backward(params, normal, dy)
        tilt = namespace(g).mean(g * normal, axis=-1, keepdims=True)
        return narrowed((g - normal * tilt) / spread, dy), grads


@dataclass(frozen=True)
class BatchNorm(_Scaled):
    """y = x̂ · scale + bias, with x̂ normalized over all axes but the last.

    Ioffe & Szegedy, arXiv:1502.03167, algorithm 1. x: (batch, ..., width).
    Parameters: scale (width,), from 1, and bias (width,), from 0, each unless it is
    switched off.

    State: the running mean and variance, (width,) each, which stand for μ and v when
    not training. They keep the share `momentum` of what they were at every step; the
    variance of the batch enters without bias, times N / (N - 1) (as in PyTorch,
    whose momentum is 1 minus this one). `frozen` holds them as they are, and uses them
    while training too: for fine-tuning on batches that are too small to say anything.

    Rows that only fill up a batch (`RowMask`) get the same treatment as the others but move no
    statistic. Where a single number per channel is left, as in a last batch of one example,
    it has no variance, and the running statistics stay as they are.

    Gradient
    --------
    While training, dx is derived in `ops.normalization`; otherwise, and when frozen, μ and
    s are constants, and dx = g / s.
    """

    _: KW_ONLY
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    frozen: bool = False

    per_position = True  # when predicting

    def __post_init__(self):
        expect_flag("frozen", self.frozen)
        super().__post_init__()
        expect_number("momentum", self.momentum)
        fits = 0.0 <= self.momentum <= 1.0
        expect(fits, "expected a momentum in [0, 1], got {}", self.momentum)

    def init(self, key, shape, dtype):
        params, _, shape = super().init(key, shape, dtype)
        xp, place = namespace(key), device(key)
        state = {
            "mean": xp.zeros(shape[-1], dtype=dtype, device=place),
            "variance": xp.ones(shape[-1], dtype=dtype, device=place),
        }
        return params, state, shape

    def forward(self, params, state, x, *, train=False):
        """Map x to y of the same shape.

        Raises
        ------
        ValueError
            If x has another width, or if training finds a single number per channel,
            whose variance says nothing.
        """
        xp = namespace(x)
        self._expect_width(x, state)
        if self.frozen or not train:
            spread = xp.sqrt(widened(state["variance"]) + self.epsilon)
            normal = (widened(x) - widened(state["mean"])) / spread
            return self._scaled(params, normal, x), state, (normal, spread)

        size = math.prod(x.shape[:-1])
        expect(size > 1, "BatchNorm trains on two or more numbers a channel, got {}", x.shape)
        axes = tuple(range(x.ndim - 1))
        counts = _counts(train, x)
        normal, mean, variance, spread = normalize(widened(x), axes, self.epsilon, counts)
        batch = {"mean": xp.reshape(mean, (-1,)), "variance": xp.reshape(variance, (-1,))}
        if counts is None:
            batch["variance"] = batch["variance"] * (size / (size - 1))
            state = {name: self._carry(old, batch[name]) for name, old in state.items()}
        else:
            total = xp.sum(counts)
            several = total > 1.0
            batch["variance"] = batch["variance"] * (total / xp.maximum(total - 1.0, 1.0))
            state = {
                name: xp.where(several, self._carry(old, batch[name]), old)
                for name, old in state.items()
            }
        cache = (normal, spread) if counts is None else (normal, spread, counts)
        return self._scaled(params, normal, x), state, cache

    def backward(self, params, cache, dy):
        normal, spread, *counts = cache
        g, grads = self._scaled_backward(params, normal, dy)
        if spread.ndim == 1:  # the running variance: a constant
            return narrowed(g / spread, dy), grads
        axes = tuple(range(dy.ndim - 1))
        return narrowed(normalize_backward(g, normal, spread, axes, *counts), dy), grads

    def _carry(self, old, new):
        return narrowed(self.momentum * widened(old) + (1.0 - self.momentum) * new, old)


def _counts(train, x):
    """How much each number counts, shaped like x but for the width, or None if all count alike."""
    if not isinstance(train, RowMask):
        return None
    xp = namespace(x)
    counts = xp.reshape(widened(train.counts), (-1,) + (1,) * (x.ndim - 1))
    return xp.broadcast_to(counts, (*x.shape[:-1], 1))
