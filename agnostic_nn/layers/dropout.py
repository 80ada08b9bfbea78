"""Dropout: zero a random share of the inputs while training."""

from dataclasses import dataclass

from ..arrays import expect_number, namespace
from ..random import bernoulli, split
from .base import Layer

__all__ = ["Dropout"]


@dataclass(frozen=True)
class Dropout(Layer):
    """y = x · mask / (1 - rate) while training, y = x otherwise.

    Each element of the mask is 0 with probability `rate`, else 1 (Srivastava et al.,
    "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014);
    dividing by 1 - rate keeps the mean of y at x.

    State: a random key, replaced at every training step. Randomness is state
    like any other, so it is reproducible, savable and safe under `jit`.

    Gradient
    --------
    The mask does not depend on x, so dx = dy · mask / (1 - rate).
    """

    rate: float = 0.5

    def __post_init__(self):
        expect_number("rate", self.rate, 0.0, 1.0)

    def init(self, key, shape, dtype):
        return {}, {"key": key}, shape

    def forward(self, params, state, x, *, train=False):
        if not train:
            return x, state, ()
        keys = split(state["key"], 2)
        kept = bernoulli(keys[0, :], 1.0 - self.rate, x.shape)
        mask = namespace(x).astype(kept, x.dtype) * (1.0 / (1.0 - self.rate))
        return x * mask, {"key": keys[1, :]}, mask

    def backward(self, params, cache, dy):
        predicted = isinstance(cache, tuple)
        return (dy if predicted else dy * cache), {}
