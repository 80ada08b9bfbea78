"""Normalization: shift and scale to mean 0 and variance 1, then to a learned mean and spread.

One derivation serves all of them. Over a group of N numbers with weights cᵢ ≥ 0
that sum to N (all 1, unless a batch is padded), let

    μ = Σ cᵢxᵢ / N      v = Σ cᵢ(xᵢ - μ)² / N      s = √(v + ε)      x̂ᵢ = (xᵢ - μ) / s

and let gᵢ = dL/dx̂ᵢ. A change dx moves μ by Σ cᵢdxᵢ / N and v by 2 Σ cᵢ(xᵢ - μ)dxᵢ / N (the
part of dv through μ is 0, for Σ cᵢ(xᵢ - μ) = 0), so s moves by Σ cᵢx̂ᵢdxᵢ / N, and

    dx̂ⱼ = (dxⱼ - Σ cᵢdxᵢ / N - x̂ⱼ Σ cᵢx̂ᵢdxᵢ / N) / s

Collecting the factor of dxᵢ in dL = Σ gⱼdx̂ⱼ (with N = 1 · Σ cᵢ this is Ioffe &
Szegedy, arXiv:1502.03167, sec. 3, in one line):

    dL/dxᵢ = (gᵢ - cᵢ Σ gⱼ / N - cᵢ x̂ᵢ Σ gⱼx̂ⱼ / N) / s
"""

import math
from dataclasses import dataclass

from ..arrays import Rows, device, expect, expect_number, namespace
from .base import Layer

__all__ = ["BatchNorm", "LayerNorm"]


def _normalize(x, axes, epsilon, counts=None):
    """x̂ with μ, v and s as above, over `axes`, which stay as axes of length 1."""
    xp = namespace(x)
    if counts is None:
        mean = xp.mean(x, axis=axes, keepdims=True)
        centred = x - mean
        variance = xp.mean(centred * centred, axis=axes, keepdims=True)
    else:
        total = xp.sum(counts, axis=axes, keepdims=True)
        mean = xp.sum(counts * x, axis=axes, keepdims=True) / total
        centred = x - mean
        variance = xp.sum(counts * centred * centred, axis=axes, keepdims=True) / total
    spread = xp.sqrt(variance + epsilon)
    return centred / spread, mean, variance, spread


def _normalize_backward(g, normal, spread, axes, counts=None):
    """dL/dx from g = dL/dx̂, as derived above."""
    xp = namespace(g)
    if counts is None:
        shift = xp.mean(g, axis=axes, keepdims=True)
        tilt = xp.mean(g * normal, axis=axes, keepdims=True)
        return (g - shift - normal * tilt) / spread
    share = counts / xp.sum(counts, axis=axes, keepdims=True)
    shift = xp.sum(g, axis=axes, keepdims=True)
    tilt = xp.sum(g * normal, axis=axes, keepdims=True)
    return (g - share * (shift + normal * tilt)) / spread


def _scale_and_bias(key, width, dtype):
    """Parameters that leave x̂ as it is."""
    xp, place = namespace(key), device(key)
    return {
        "scale": xp.ones(width, dtype=dtype, device=place),
        "bias": xp.zeros(width, dtype=dtype, device=place),
    }


def _expect_width(name, x, width):
    fits = x.ndim >= 2 and x.shape[-1] == width
    expect(fits, "{} takes (batch, ..., {}), got {}", name, width, x.shape)


@dataclass(frozen=True)
class LayerNorm(Layer):
    """y = x̂ · scale + bias, with x̂ normalized over the last axis of each example.

    Ba, Kiros & Hinton, arXiv:1607.06450, eq. 4. x: (..., width) -> y: (..., width).
    Parameters: scale (width,), from 1, and bias (width,), from 0.

    Gradient
    --------
    dscale = Σ dy · x̂ and dbias = Σ dy over all axes but the last; dx by the derivation
    at the head of this file, from g = dy · scale.
    """

    epsilon: float = 1e-5

    def __post_init__(self):
        expect_number("epsilon", self.epsilon, 0.0)

    def init(self, key, shape, dtype):
        expect(len(shape) >= 1, "LayerNorm takes (batch, ..., width), got (batch,)")
        return _scale_and_bias(key, shape[-1], dtype), {}, shape

    def forward(self, params, state, x, *, train=False):
        _expect_width("LayerNorm", x, params["scale"].shape[0])
        normal, _, _, spread = _normalize(x, -1, self.epsilon)
        return normal * params["scale"] + params["bias"], state, (normal, spread)

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        normal, spread = cache
        lead = tuple(range(dy.ndim - 1))
        grads = {"scale": xp.sum(dy * normal, axis=lead), "bias": xp.sum(dy, axis=lead)}
        return _normalize_backward(dy * params["scale"], normal, spread, -1), grads


@dataclass(frozen=True)
class BatchNorm(Layer):
    """y = x̂ · scale + bias, with x̂ normalized over all axes but the last.

    Ioffe & Szegedy, arXiv:1502.03167, algorithm 1. x: (batch, ..., width).
    Parameters: scale (width,), from 1, and bias (width,), from 0.

    State: the running mean and variance, (width,) each, which stand for μ and v when
    not training. They keep the share `momentum` of what they were at every step; the
    variance of the batch enters without bias, times N / (N - 1) (as in PyTorch,
    whose momentum is 1 minus this one).

    Rows that only fill up a batch (`Rows`) get the same treatment as the others but
    move no statistic.

    Gradient
    --------
    dscale = Σ dy · x̂ and dbias = Σ dy over all axes but the last. While training, dx is
    that of the derivation at the head of this file, from g = dy · scale; otherwise μ
    and s are constants, and dx = g / s.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    def __post_init__(self):
        expect_number("epsilon", self.epsilon, 0.0)
        expect_number("momentum", self.momentum)
        fits = 0.0 <= self.momentum <= 1.0
        expect(fits, "expected a momentum in [0, 1], got {}", self.momentum)

    def init(self, key, shape, dtype):
        expect(len(shape) >= 1, "BatchNorm takes (batch, ..., width), got (batch,)")
        xp, place = namespace(key), device(key)
        state = {
            "mean": xp.zeros(shape[-1], dtype=dtype, device=place),
            "variance": xp.ones(shape[-1], dtype=dtype, device=place),
        }
        return _scale_and_bias(key, shape[-1], dtype), state, shape

    def forward(self, params, state, x, *, train=False):
        """Map x to y of the same shape.

        Raises
        ------
        ValueError
            If x has another width, or if training finds a single number per channel,
            whose variance says nothing.
        """
        xp = namespace(x)
        scale, bias = params["scale"], params["bias"]
        _expect_width("BatchNorm", x, scale.shape[0])
        if not train:
            spread = xp.sqrt(state["variance"] + self.epsilon)
            normal = (x - state["mean"]) / spread
            return normal * scale + bias, state, (normal, spread)

        size = math.prod(x.shape[:-1])
        expect(size > 1, "BatchNorm trains on two or more numbers a channel, got {}", x.shape)
        axes = tuple(range(x.ndim - 1))
        counts = _counts(train, x)
        normal, mean, variance, spread = _normalize(x, axes, self.epsilon, counts)
        if counts is None:
            unbias = size / (size - 1)
        else:
            total = xp.sum(counts)
            unbias = total / xp.maximum(total - 1.0, 1.0)
        state = {
            "mean": self._carry(state["mean"], xp.reshape(mean, (-1,))),
            "variance": self._carry(state["variance"], xp.reshape(variance, (-1,)) * unbias),
        }
        cache = (normal, spread) if counts is None else (normal, spread, counts)
        return normal * scale + bias, state, cache

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        normal, spread, *counts = cache
        lead = tuple(range(dy.ndim - 1))
        grads = {"scale": xp.sum(dy * normal, axis=lead), "bias": xp.sum(dy, axis=lead)}
        g = dy * params["scale"]
        if spread.ndim == 1:  # the running variance: a constant
            return g / spread, grads
        return _normalize_backward(g, normal, spread, lead, *counts), grads

    def _carry(self, old, new):
        return self.momentum * old + (1.0 - self.momentum) * new


def _counts(train, x):
    """How much each number counts, shaped like x but for the width, or None if all count alike."""
    if not isinstance(train, Rows):
        return None
    xp = namespace(x)
    counts = xp.reshape(train.counts, (-1,) + (1,) * (x.ndim - 1))
    return xp.broadcast_to(counts, (*x.shape[:-1], 1))
