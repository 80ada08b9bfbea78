"""Schedules: learning rates that follow the number of steps taken, t = 0, 1, 2, …

Each is called with t as an array of a real floating dtype and returns the rate, of the
same shape and dtype. Any such function serves where an optimizer takes a rate.
"""

import math
from dataclasses import dataclass

from .arrays import Array, expect, expect_count, expect_number, expect_positive, namespace

__all__ = ["Constant", "Cosine", "ExponentialDecay", "StepDecay"]


@dataclass(frozen=True)
class Constant:
    """rate, at every step; what a plain number says too."""

    rate: float

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)

    def __call__(self, t: Array) -> Array:
        return namespace(t).full_like(t, self.rate)


@dataclass(frozen=True)
class StepDecay:
    """rate · factor^⌊t / every⌋."""

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_positive("factor", self.factor)
        expect_count("every", self.every)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        # the half keeps t = every past the edge where a compiler turns / into · (1 / every)
        done = xp.floor((t + 0.5) / self.every)
        return self.rate * xp.exp(math.log(self.factor) * done)


@dataclass(frozen=True)
class ExponentialDecay:
    """rate · factor^(t / every)."""

    rate: float
    factor: float
    every: int = 1

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_positive("factor", self.factor)
        expect_count("every", self.every)

    def __call__(self, t: Array) -> Array:
        return self.rate * namespace(t).exp(t * (math.log(self.factor) / self.every))


@dataclass(frozen=True)
class Cosine:
    """Up in a straight line over `warmup` steps, then down half a cosine until `steps`.

        t < warmup:  rate · (t + 1) / warmup
        after:       final + (rate - final) · (1 + cos πu) / 2
                     u = min((t - warmup) / (steps - warmup), 1)

    Loshchilov & Hutter, arXiv:1608.03983, eq. 5, without restarts.
    """

    rate: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_number("final", self.final, 0.0)
        fits = 0 <= self.warmup < self.steps
        expect(fits, "expected 0 <= warmup < steps, got {} and {}", self.warmup, self.steps)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        u = xp.clip((t - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        down = self.final + (self.rate - self.final) * 0.5 * (1.0 + xp.cos(math.pi * u))
        up = self.rate * (t + 1.0) / max(self.warmup, 1)
        return xp.where(t < self.warmup, up, down)
