"""Adafactor: Adam's second moments in little memory, as row and column means."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import Array, namespace, size
from ..core.errors import expect_number, expect_positive
from ..ops import norm
from .base import NO_DECAY, Rate, Rule, zeros

__all__ = ["Adafactor"]


@dataclass(frozen=True)
class Adafactor(Rule):
    """Steps relative to the size of the parameters, with little memory.

        β = 1 - t^-τ                        τ is `power`; β = 0 at the first step
        V ← β V + (1 - β) (g² + ε₁)
        u = g / √V                          u ← u / max(1, rms(u) / `limit`)
        α = max(ε₂, rms(θ)) · min(rate, 1 / √t)
        θ ← θ - rate · λ θ - α u            λ is `weight_decay`

    Shazeer & Stern, arXiv:1804.04235, Algorithms 4 and 5 with the constants of sec. 9,
    without momentum. A vector has a V of its own shape. For a matrix only the means R
    along rows and C along columns are stored, and V is R C / mean(R) (sec. 3). An array
    with more axes, such as the kernel of a convolution, is a stack of matrices over the
    last two axes.

    In PyTorch's Adafactor τ is `beta2_decay` with the opposite sign, `limit` is `d` and
    (ε₁, ε₂) is `eps`. The weight decay is that of PyTorch, which adds ε₁ in another
    place; at the default of 1e-30, ε₁ is too small to matter next to a gradient.

    g² overflows in float32 where |g| is above 1.8e19. θ becomes NaN, all of it if it is
    a matrix. `ClipByGlobalNorm` around the optimizer keeps g in range.
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

    def start(self, p: Array) -> dict[str, Any]:
        if not _is_factored(p):
            return {"v": zeros(p)}
        row = p[..., :, :1]
        column = p[..., :1, :]
        return {"v": {"row": zeros(row), "column": zeros(column)}}

    def shared(self, rate: Any, t: Array) -> tuple[Array | float, ...]:
        xp = namespace(t)
        largest = xp.minimum(1.0 / xp.sqrt(t), rate)
        return rate, largest, xp.exp(-self.power * xp.log(t))

    def move(
        self,
        p: Array,
        g: Array,
        old: dict[str, Any],
        decay: float,
        rate: Any,
        largest: Array,
        share: Array,
    ) -> tuple[Array, dict[str, Any]]:
        # largest: min(rate, 1 / √t); share: 1 - β
        xp = namespace(p)
        square = g * g + self.epsilon1

        def average(old: Array, axis: int | None) -> Array:
            new = square if axis is None else xp.mean(square, axis=axis, keepdims=True)
            return (1.0 - share) * old + share * new

        if _is_factored(p):
            row = average(old["v"]["row"], -1)
            column = average(old["v"]["column"], -2)
            new: Any = {"row": row, "column": column}
            # divided first: in float32 the product of two tiny means would be 0
            v = row / xp.mean(row, axis=-2, keepdims=True) * column
        else:
            v = new = average(old["v"], None)
        u = g / xp.sqrt(v)
        scale = xp.maximum(_rms(p), self.epsilon2) * largest
        step = scale / xp.maximum(_rms(u) / self.limit, 1.0)
        if decay:
            p = p * (1.0 - rate * decay)
        return p - step * u, {"v": new}


def _is_factored(p: Array) -> bool:
    """Return whether row and column means replace the second moments of p."""
    return p.ndim >= 2 and size(p) > 0


def _rms(x: Array) -> Array:
    """Return √(Σ x² / N), or 0 for an empty x."""
    return norm(x) / math.sqrt(max(size(x), 1))
