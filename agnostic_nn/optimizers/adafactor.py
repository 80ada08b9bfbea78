"""Adafactor: Adam's second moments, of a matrix only their row and column means."""

import math
from dataclasses import KW_ONLY, dataclass

from ..core.arrays import Array, namespace, size
from ..core.errors import expect_number, expect_positive
from ..ops import norm
from .base import NO_DECAY, Rate, Rule, zeros

__all__ = ["Adafactor"]


@dataclass(frozen=True)
class Adafactor(Rule):
    """Steps relative to the size of the parameters, with little to remember.

        β = 1 - t^-τ                        τ is `power`; β = 0 at the first step
        V ← β V + (1 - β) (g² + ε₁)
        u = g / √V                          u ← u / max(1, rms(u) / `limit`)
        α = max(ε₂, rms(θ)) · min(rate, 1 / √t)
        θ ← θ - rate · λ θ - α u

    Shazeer & Stern, arXiv:1804.04235, Algorithms 4 and 5 with the constants of sec. 9: V is
    kept whole for vectors; for a matrix only its means R along rows and C along columns
    are, and R C / mean(R) stands for it (sec. 3). With more axes, as in the kernel of a
    convolution, each matrix of the last two is one. No momentum. The weight decay is
    PyTorch's, which adds ε₁ elsewhere; at 1e-30 neither is seen beside a gradient.

    Where g² overflows, in float32 where |g| is above 1.8e19, θ becomes NaN, all of it if it is a
    matrix; `ClipByGlobalNorm` around the optimizer keeps g in range.
    """

    rate: Rate = 1e-2
    _: KW_ONLY
    power: float = 0.8
    limit: float = 1.0
    epsilon1: float = 1e-30
    epsilon2: float = 1e-3
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = NO_DECAY

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("power", self.power, 0.0)
        expect_positive("limit", self.limit)
        expect_positive("epsilon1", self.epsilon1)
        expect_positive("epsilon2", self.epsilon2)

    def start(self, p):
        if not _is_factored(p):
            return {"v": zeros(p)}
        row, column = p[..., :, :1], p[..., :1, :]
        return {"v": {"row": zeros(row), "column": zeros(column)}}

    def shared(self, rate, t):
        xp = namespace(t)
        largest = xp.minimum(1.0 / xp.sqrt(t), rate)
        return rate, largest, xp.exp(-self.power * xp.log(t))

    def move(self, p, g, old, decay, rate, largest, share):
        xp = namespace(p)
        square = g * g + self.epsilon1

        def mean(old, axis):
            now = square if axis is None else xp.mean(square, axis=axis, keepdims=True)
            return (1.0 - share) * old + share * now

        if not _is_factored(p):
            whole = new = mean(old["v"], None)
        else:
            row, column = mean(old["v"]["row"], -1), mean(old["v"]["column"], -2)
            new = {"row": row, "column": column}
            # in this order: the product of two tiny means is 0 in float32
            whole = row / xp.mean(row, axis=-2, keepdims=True) * column
        u = g / xp.sqrt(whole)
        scale = xp.maximum(_rms(p), self.epsilon2) * largest
        step = scale / xp.maximum(_rms(u) / self.limit, 1.0)
        if decay:
            p = p * (1.0 - rate * decay)
        return p - step * u, {"v": new}


def _is_factored(p: Array) -> bool:
    """Return whether row and column means stand for the second moments of p."""
    return p.ndim >= 2 and size(p) > 0


def _rms(x: Array) -> Array:
    """√(Σ x² / N), 0 without elements."""
    return norm(x) / math.sqrt(max(size(x), 1))
