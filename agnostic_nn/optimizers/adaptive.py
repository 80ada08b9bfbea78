"""Adagrad, Adadelta and RMSprop: a learning rate for each number of θ.

The gradient of each number is divided by a typical size of its past gradients. None of
these optimizers has weight decay; wrap them in `L2` for that.

g² is computed in the dtype of the parameters. It overflows in float32 where |g| is
above 1.8e19. The typical size is then infinite for good, and that number of θ does not
move any more, as in PyTorch. `ClipByGlobalNorm` or `ClipByValue` around the optimizer
keeps g in range.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import Array, namespace
from ..core.errors import expect_flag, expect_number, expect_positive
from .base import Rate, Rule, zeros

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


@dataclass(frozen=True)
class Adagrad(Rule):
    """Steps divided by the root of the sum of all squared gradients.

        s ← s + g²                          (s starts at `initial`)
        θ ← θ - rate · g / (√s + ε)         ε is `epsilon`

    Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization" (2011), the diagonal form. ε is outside the root as in
    PyTorch; Optax adds it inside. `initial` is PyTorch's `initial_accumulator_value`.
    """

    rate: Rate = 1e-2
    _: KW_ONLY
    initial: float = 0.0
    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("initial", self.initial, 0.0)
        expect_positive("epsilon", self.epsilon)

    def start(self, p: Array) -> dict[str, Any]:
        return {"s": namespace(p).full_like(p, float(self.initial))}

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, rate: Any
    ) -> tuple[Array, dict[str, Any]]:
        s = old["s"] + g * g
        return p - rate * g / (namespace(p).sqrt(s) + self.epsilon), {"s": s}


@dataclass(frozen=True)
class Adadelta(Rule):
    """Steps of the typical size of past steps, without a learning rate to choose.

        v ← ρ v + (1 - ρ) g²                (v and w start at 0)
        d = g · √(w + ε) / √(v + ε)
        w ← ρ w + (1 - ρ) d²
        θ ← θ - rate · d

    Zeiler, arXiv:1212.5701, Algorithm 1, in which rate = 1. ε, `epsilon`, is inside
    both roots.
    """

    rate: Rate = 1.0
    _: KW_ONLY
    rho: float = 0.9
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("rho", self.rho, 0.0, 1.0)
        expect_positive("epsilon", self.epsilon)

    def start(self, p: Array) -> dict[str, Any]:
        return {"v": zeros(p), "w": zeros(p)}

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, rate: Any
    ) -> tuple[Array, dict[str, Any]]:
        xp = namespace(p)
        v = self.rho * old["v"] + (1.0 - self.rho) * (g * g)
        d = g * (xp.sqrt(old["w"] + self.epsilon) / xp.sqrt(v + self.epsilon))
        w = self.rho * old["w"] + (1.0 - self.rho) * (d * d)
        return p - rate * d, {"v": v, "w": w}


@dataclass(frozen=True)
class RMSprop(Rule):
    """Steps divided by a moving root mean square of the gradient.

        v ← ρ v + (1 - ρ) g²                (v, m and b start at 0)
        m ← ρ m + (1 - ρ) g                 with `centered`, else m = 0
        b ← μ b + g / (√max(v - m², 0) + ε)
        θ ← θ - rate · b

    ρ is `rho`, PyTorch's `alpha`; μ is `momentum` and ε is `epsilon`.

    Tieleman & Hinton, "Lecture 6.5: rmsprop" (2012); the centered form is that of
    Graves, arXiv:1308.0850, eq. 38 to 41. ε is outside the root and the rate outside b,
    as in PyTorch; Graves has both inside. v - m² is a variance. It counts as 0 where
    rounding makes it negative, so a gradient that never changes takes steps of
    rate · g / ε.
    """

    rate: Rate = 1e-2
    _: KW_ONLY
    rho: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        expect_flag("centered", self.centered)
        super().__post_init__()
        expect_number("rho", self.rho, 0.0, 1.0)
        expect_positive("epsilon", self.epsilon)
        expect_number("momentum", self.momentum, 0.0, 1.0)

    def start(self, p: Array) -> dict[str, Any]:
        moments = {"v": zeros(p)}
        if self.centered:
            moments["m"] = zeros(p)
        if self.momentum > 0:
            moments["b"] = zeros(p)
        return moments

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, rate: Any
    ) -> tuple[Array, dict[str, Any]]:
        xp = namespace(p)
        v = self.rho * old["v"] + (1.0 - self.rho) * (g * g)
        new = {"v": v}
        variance = v
        if self.centered:
            m = new["m"] = self.rho * old["m"] + (1.0 - self.rho) * g
            variance = xp.maximum(v - m * m, 0.0)
        b = g / (xp.sqrt(variance) + self.epsilon)
        if self.momentum:
            b = new["b"] = self.momentum * old["b"] + b
        return p - rate * b, new
