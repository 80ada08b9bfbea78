"""Schedules: learning rates as functions of the number of steps taken, t = 0, 1, 2, …

A schedule is called with t, an array of a real floating dtype, and returns the rate, of
the same shape and dtype. An optimizer accepts any such function as its rate. A schedule
that takes another schedule also accepts a number.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

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
from .core.fields import set_fields

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
    """Raise unless `rate` is a function of t or a number of at least 0."""
    if callable(rate):
        expect_function(name, rate, "t")
    else:
        expect_number(name, rate, 0.0)


def _at(rate: Rate, t: Array) -> Array:
    """Return the rate at step t of a number or a schedule."""
    return rate(t) if callable(rate) else namespace(t).full_like(t, float(rate))


def _half_cosine(xp: Any, u: Array) -> Array:
    """Return (1 + cos πu) / 2, which falls from 1 to 0 as u goes from 0 to 1."""
    return 0.5 * (1.0 + xp.cos(math.pi * u))


@dataclass(frozen=True)
class Constant:
    """rate at every step, like a plain number."""

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
        # with + 0.5, t = every gives 1 even if a compiler replaces the division by a
        # product with the rounded reciprocal
        decays = xp.floor((t + 0.5) / self.every)
        return self.rate * xp.exp(math.log(self.factor) * decays)


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
    """Linear increase over `warmup` steps, then half a cosine until step `steps`.

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
        is_valid = 0 <= self.warmup < self.steps
        message = "expected 0 <= warmup < steps, got {} and {}"
        expect(is_valid, message, self.warmup, self.steps)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        u = xp.clip((t - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        down = self.final + (self.rate - self.final) * _half_cosine(xp, u)
        up = self.rate * (t + 1.0) / max(self.warmup, 1)
        return xp.where(t < self.warmup, up, down)


@dataclass(frozen=True)
class CosineRestarts:
    """Half a cosine from `rate` to `final` in each of several periods.

        final + (rate - final) · (1 + cos πu) / 2        u = (t - start) / length

    where start and length are those of the period that t is in; `lengths` are those of
    all periods, in steps. After the last period the rate is `final`. Loshchilov &
    Hutter, arXiv:1608.03983, eq. 5. Lengths that double, such as (10, 20, 40), are
    their T₀ = 10 and T_mult = 2.
    """

    rate: float
    lengths: tuple[int, ...]
    _: KW_ONLY
    final: float = 0.0

    def __post_init__(self) -> None:
        expect_positive("rate", self.rate)
        expect_number("final", self.final, 0.0)
        set_fields(self, lengths=expect_integers("lengths", self.lengths, 1))
        expect(len(self.lengths) > 0, "expected one length or more, got none")

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        u = t / self.lengths[0]
        start = self.lengths[0]
        for length in self.lengths[1:]:
            u = xp.where(t >= start, (t - start) / length, u)
            start += length
        u = xp.clip(u, 0.0, 1.0)
        return self.final + (self.rate - self.final) * _half_cosine(xp, u)


@dataclass(frozen=True)
class Linear:
    """Linear change from `start` to `stop` over `steps` steps, then `stop`.

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
        progress = namespace(t).clip(t / self.steps, 0.0, 1.0)
        return self.start * (1.0 - progress) + self.stop * progress


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
        remaining = 1.0 - namespace(t).clip(t / self.steps, 0.0, 1.0)
        return self.final + (self.rate - self.final) * remaining**self.power


@dataclass(frozen=True)
class InverseSquareRoot:
    """Linear increase over `warmup` steps, then decay as 1 / √t.

        rate · min((t + 1) / warmup, √(warmup / (t + 1)))

    Vaswani et al., arXiv:1706.03762, eq. 3, with rate = 1 / √(d · warmup); they count
    steps from 1.
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
    """Half a cosine from `start` up to `rate`, then half a cosine down to `final`.

        start + (rate - start) · (1 - cos πu) / 2      u = t / e         while t <= e
        final + (rate - final) · (1 + cos πu) / 2      u = (t - e) / (steps - 1 - e)

    where e = rise · steps - 1. From the last step, t = steps - 1, the rate is `final`.
    `start` and `final` are rates, as in the other schedules. Their defaults, as in
    PyTorch, are rate / 25 and rate / 250,000. Smith & Topin, arXiv:1708.07120, in
    PyTorch's version, which uses cosines and omits the third phase.
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
                is_valid = rate <= self.rate
                message = "expected {}, a rate, of at most {}, got {}"
                expect(is_valid, message, name, self.rate, rate)
        has_rise = self.rise * self.steps > 1
        expect(has_rise, "no step to rise in: {} of {} steps", self.rise, self.steps)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        peak = self.rise * self.steps - 1.0  # e
        up = _half_cosine(xp, xp.clip(1.0 - t / peak, 0.0, 1.0))
        u = (t - peak) / (self.steps - 1.0 - peak)
        down = _half_cosine(xp, xp.clip(u, 0.0, 1.0))
        start = self.rate / 25.0 if self.start is None else self.start
        final = self.rate / 250_000.0 if self.final is None else self.final
        rising = start + (self.rate - start) * up
        falling = final + (self.rate - final) * down
        return xp.where(t <= peak, rising, falling)


@dataclass(frozen=True)
class Piecewise:
    """Several rates in sequence: `parts[0]`, then `parts[i + 1]` from step `starts[i]`.

    A part is a number or a schedule. A schedule counts its steps from its own start.
    """

    parts: tuple[Rate, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple | list):
            raise TypeError(
                f"expected parts to be a tuple of rates, got {described(self.parts)}"
            )
        set_fields(self, parts=tuple(self.parts))
        set_fields(self, starts=expect_integers("starts", self.starts, 1))
        is_valid = len(self.parts) == len(self.starts) + 1
        message = "expected a start for each part but the first, got {}"
        expect(is_valid, message, self.starts)
        for part in self.parts:
            _expect_rate("each part", part)
        pairs = zip(self.starts, self.starts[1:], strict=False)
        is_rising = all(before < after for before, after in pairs)
        expect(is_rising, "expected starts that rise, got {}", self.starts)

    def __call__(self, t: Array) -> Array:
        xp = namespace(t)
        rate = _at(self.parts[0], t)
        for start, part in zip(self.starts, self.parts[1:], strict=True):
            # the maximum, because a part may be NaN before its start
            rate = xp.where(t >= start, _at(part, xp.maximum(t - start, 0.0)), rate)
        return rate


@dataclass(frozen=True)
class Warmup:
    """Linear increase over `steps` steps, then another schedule from its first rate.

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
    """schedule(t) · factor, or schedule(t) · factor(t) if the factor is a schedule."""

    schedule: Rate
    factor: Rate

    def __post_init__(self) -> None:
        _expect_rate("schedule", self.schedule)
        _expect_rate("factor", self.factor)

    def __call__(self, t: Array) -> Array:
        return _at(self.schedule, t) * _at(self.factor, t)
