"""Schedules: learning rates that follow the number of steps taken, t = 0, 1, 2, …

Each is called with t as an array of a real floating dtype and returns the rate, of the
same shape and dtype. Any such function serves where an optimizer takes a rate, and where
a schedule takes another, so does a plain number.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from .core.arrays import Array, namespace
from .core.errors import (
    described,
    expect,
    expect_count,
    expect_function,
    expect_integer,
    expect_integers,
    expect_number,
    expect_positive,
)

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "ExponentialDecay",
    "InverseSquareRoot",
    "Linear",
    "OneCycle",
    "Piecewise",
    "Polynomial",
    "StepDecay",
    "Times",
    "Warmup",
]

Rate = float | Callable[[Array], Array]


def _expect_rate(name: str, rate: Rate) -> None:
    if callable(rate):
        expect_function(name, rate, "t")
    else:
        expect_number(name, rate, 0.0)


def _at(rate: Rate, t: Array) -> Array:
    """The rate at step t, of a number or a schedule."""
    return rate(t) if callable(rate) else namespace(t).full_like(t, float(rate))


def _down(xp, u: Array) -> Array:
    """Half a cosine from 1 to 0, as u goes from 0 to 1."""
    return 0.5 * (1.0 + xp.cos(math.pi * u))


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
    _: KW_ONLY
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
    _: KW_ONLY
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
    _: KW_ONLY
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_number("final", self.final, 0.0)
        expect_integer("warmup", self.warmup)
        expect_integer("steps", self.steps)
        fits = 0 <= self.warmup < self.steps
        expect(fits, "expected 0 <= warmup < steps, got {} and {}", self.warmup, self.steps)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        u = xp.clip((t - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        down = self.final + (self.rate - self.final) * _down(xp, u)
        up = self.rate * (t + 1.0) / max(self.warmup, 1)
        return xp.where(t < self.warmup, up, down)


@dataclass(frozen=True)
class CosineRestarts:
    """Down half a cosine over each of `lengths` steps in turn, from `rate` every time.

        final + (rate - final) · (1 + cos πu) / 2        u = (t - start) / length

    where start and length are those of the stretch that t is in; after the last, `final`.
    Loshchilov & Hutter, arXiv:1608.03983, eq. 5; lengths that double, such as (10, 20, 40),
    are theirs with T₀ = 10 and T_mult = 2.
    """

    rate: float
    lengths: tuple[int, ...]
    _: KW_ONLY
    final: float = 0.0

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_number("final", self.final, 0.0)
        object.__setattr__(self, "lengths", expect_integers("lengths", self.lengths, 1))
        expect(len(self.lengths) > 0, "expected one length or more, got none")

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        u, start = t / self.lengths[0], self.lengths[0]
        for length in self.lengths[1:]:
            u = xp.where(t >= start, (t - start) / length, u)
            start += length
        return self.final + (self.rate - self.final) * _down(xp, xp.clip(u, 0.0, 1.0))


@dataclass(frozen=True)
class Linear:
    """In a straight line from `start` to `stop` over `steps` steps, and `stop` from there on.

    start + (stop - start) · min(t / steps, 1)
    """

    start: float
    stop: float
    _: KW_ONLY
    steps: int

    def __post_init__(self) -> None:
        expect_number("start", self.start, 0.0)
        expect_number("stop", self.stop, 0.0)
        expect_count("steps", self.steps)

    def __call__(self, t: Array) -> Array:
        done = namespace(t).clip(t / self.steps, 0.0, 1.0)
        return self.start * (1.0 - done) + self.stop * done


@dataclass(frozen=True)
class Polynomial:
    """final + (rate - final) · (1 - min(t / steps, 1))^power."""

    rate: float
    steps: int
    _: KW_ONLY
    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_count("steps", self.steps)
        expect_positive("power", self.power)
        expect_number("final", self.final, 0.0)

    def __call__(self, t: Array) -> Array:
        left = 1.0 - namespace(t).clip(t / self.steps, 0.0, 1.0)
        return self.final + (self.rate - self.final) * left**self.power


@dataclass(frozen=True)
class InverseSquareRoot:
    """Up in a straight line over `warmup` steps, then down as 1 / √t.

        rate · min((t + 1) / warmup, √(warmup / (t + 1)))

    Vaswani et al., arXiv:1706.03762, eq. 3, with rate = 1 / √(d · warmup) and their steps from 1.
    """

    rate: float
    _: KW_ONLY
    warmup: int = 1

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_count("warmup", self.warmup)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        z = (t + 1.0) / self.warmup
        return self.rate * xp.minimum(z, 1.0 / xp.sqrt(z))


@dataclass(frozen=True)
class OneCycle:
    """Up half a cosine, then down half a cosine, and `final` from the last step on.

        start + (rate - start) · (1 - cos πu) / 2      u = t / e         while t <= e
        final + (rate - final) · (1 + cos πu) / 2      u = (t - e) / (steps - 1 - e)

    with e = rise · steps - 1, and the last step at t = steps - 1. `start` and `final` are
    rates, as in the other schedules; by default rate / 25 and rate / 250,000, as in PyTorch.
    Smith & Topin, arXiv:1708.07120, as PyTorch has it: with cosines, and without their third
    phase.
    """

    rate: float
    steps: int
    _: KW_ONLY
    rise: float = 0.3
    start: float | None = None
    final: float | None = None

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_count("steps", self.steps)
        expect_number("rise", self.rise, 0.0, 1.0)
        for name, rate in (("start", self.start), ("final", self.final)):
            if rate is not None:
                expect_number(name, rate, 0.0)
                fits = rate <= self.rate
                expect(fits, "expected {}, a rate, of at most {}, got {}", name, self.rate, rate)
        fits = self.rise * self.steps > 1
        expect(fits, "no step to rise in: {} of {} steps", self.rise, self.steps)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        top = self.rise * self.steps - 1.0
        up = _down(xp, xp.clip(1.0 - t / top, 0.0, 1.0))
        down = _down(xp, xp.clip((t - top) / (self.steps - 1.0 - top), 0.0, 1.0))
        start = self.rate / 25.0 if self.start is None else self.start
        final = self.rate / 250_000.0 if self.final is None else self.final
        rising = start + (self.rate - start) * up
        falling = final + (self.rate - final) * down
        return xp.where(t <= top, rising, falling)


@dataclass(frozen=True)
class Piecewise:
    """One rate after another: `parts[0]`, and from step `starts[i]` on `parts[i + 1]`.

    A part is a number, or a schedule, which counts from the step where it begins.
    """

    parts: tuple[Rate, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple | list):
            raise TypeError(f"expected parts to be a tuple of rates, got {described(self.parts)}")
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "starts", expect_integers("starts", self.starts, 1))
        fits = len(self.parts) == len(self.starts) + 1
        expect(fits, "expected a start for each part but the first, got {}", self.starts)
        for part in self.parts:
            _expect_rate("each part", part)
        rising = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        expect(rising, "expected starts that rise, got {}", self.starts)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        rate = _at(self.parts[0], t)
        for start, part in zip(self.starts, self.parts[1:], strict=True):
            # a part may be no number before its start
            rate = xp.where(t >= start, _at(part, xp.maximum(t - start, 0.0)), rate)
        return rate


@dataclass(frozen=True)
class Warmup:
    """Up in a straight line over `steps` steps to where another schedule begins, then that one.

    t < steps:  schedule(0) · (t + 1) / steps
    after:      schedule(t - steps)
    """

    schedule: Rate
    steps: int

    def __post_init__(self) -> None:
        _expect_rate("schedule", self.schedule)
        expect_count("steps", self.steps)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        first = _at(self.schedule, xp.zeros_like(t))
        after = _at(self.schedule, xp.maximum(t - self.steps, 0.0))
        return xp.where(t < self.steps, first * ((t + 1.0) / self.steps), after)


@dataclass(frozen=True)
class Times:
    """schedule(t) · factor, or schedule(t) · factor(t) where the factor is a schedule too."""

    schedule: Rate
    factor: Rate

    def __post_init__(self) -> None:
        _expect_rate("schedule", self.schedule)
        _expect_rate("factor", self.factor)

    def __call__(self, t: Array) -> Array:
        return _at(self.schedule, t) * _at(self.factor, t)
