"""Adaptive rates: each number of θ is moved by its gradient over a size that g has had.

None of these decays weights; put `L2` around one that should. g² is computed in the dtype of the
parameters. Where it overflows, in float32 where |g| is above 1.8e19, the size becomes infinite
and stays so, and that number of θ takes no more steps, as in PyTorch; `ClipByGlobalNorm` or
`ClipByValue` around the optimizer keeps g in range.
"""

from dataclasses import KW_ONLY, dataclass

from ..core.arrays import namespace
from ..core.errors import expect_flag, expect_number, expect_positive
from .base import Rate, Rule, zeros

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


@dataclass(frozen=True)
class Adagrad(Rule):
    """Steps that shrink where gradients have been.

        s ← s + g²                          (s starts at `initial`)
        θ ← θ - rate · g / (√s + ε)

    Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization" (2011), the diagonal form, with ε outside the root as PyTorch
    has it (Optax adds it inside).
    """

    rate: Rate = 1e-2
    _: KW_ONLY
    initial: float = 0.0
    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("initial", self.initial, 0.0)
        expect_positive("epsilon", self.epsilon)

    def start(self, p):
        return {"s": namespace(p).full_like(p, float(self.initial))}

    def move(self, p, g, old, decay, rate):
        s = old["s"] + g * g
        return p - rate * g / (namespace(p).sqrt(s) + self.epsilon), {"s": s}


@dataclass(frozen=True)
class Adadelta(Rule):
    """Steps of the size that steps have had, so that no rate need be chosen.

        v ← ρ v + (1 - ρ) g²                (v and w start at 0)
        d = g · √(w + ε) / √(v + ε)
        w ← ρ w + (1 - ρ) d²
        θ ← θ - rate · d

    Zeiler, arXiv:1212.5701, Algorithm 1, which has rate = 1; ε inside both roots.
    """

    rate: Rate = 1.0
    _: KW_ONLY
    rho: float = 0.9
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("rho", self.rho, 0.0, 1.0)
        expect_positive("epsilon", self.epsilon)

    def start(self, p):
        return {"v": zeros(p), "w": zeros(p)}

    def move(self, p, g, old, decay, rate):
        xp = namespace(p)
        v = self.rho * old["v"] + (1.0 - self.rho) * (g * g)
        d = g * (xp.sqrt(old["w"] + self.epsilon) / xp.sqrt(v + self.epsilon))
        w = self.rho * old["w"] + (1.0 - self.rho) * (d * d)
        return p - rate * d, {"v": v, "w": w}


@dataclass(frozen=True)
class RMSprop(Rule):
    """Steps scaled by a running root mean square of the gradient.

        v ← ρ v + (1 - ρ) g²                (v, m and b start at 0)
        m ← ρ m + (1 - ρ) g                 with `centered`, else m = 0
        b ← μ b + g / (√max(v - m², 0) + ε)
        θ ← θ - rate · b

    Tieleman & Hinton, "Lecture 6.5: rmsprop" (2012); centered as in Graves,
    arXiv:1308.0850, eq. 38 to 41. ε stands outside the root and the rate outside b, as
    PyTorch has it (Graves has both inside). v - m² is a variance: where rounding makes it
    negative it counts as 0, and a gradient that never changes takes steps of g / ε.
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

    def start(self, p):
        names = ("v", *("m",) * self.centered, *("b",) * (self.momentum > 0))
        return {name: zeros(p) for name in names}

    def move(self, p, g, old, decay, rate):
        xp = namespace(p)
        v = spread = self.rho * old["v"] + (1.0 - self.rho) * (g * g)
        new = {"v": v}
        if self.centered:
            m = new["m"] = self.rho * old["m"] + (1.0 - self.rho) * g
            spread = xp.maximum(v - m * m, 0.0)
        b = g / (xp.sqrt(spread) + self.epsilon)
        if self.momentum:
            b = new["b"] = self.momentum * old["b"] + b
        return p - rate * b, new
