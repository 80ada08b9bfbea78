"""Momentum: a step along a running sum of gradients, or along its signs."""

from dataclasses import KW_ONLY, dataclass

from ..core.arrays import namespace
from ..core.errors import expect, expect_flag, expect_number
from .base import NO_DECAY, Rate, Rule, zeros

__all__ = ["SGD", "Lion"]


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent, with momentum μ and weight decay λ.

        g ← g + λ θ
        v ← μ v + g                 (v starts at 0)
        θ ← θ - rate · v            or, with `nesterov`, θ - rate · (g + μ v)

    Polyak, "Some methods of speeding up the convergence of iteration methods" (1964);
    Nesterov's in the form of Sutskever et al., "On the importance of initialization and
    momentum in deep learning" (2013), eq. 3 and 4, with the rate taken out of v, as
    PyTorch has it. Biases and scales are spared the decay (see `Rule`).
    """

    rate: Rate = 1e-2
    _: KW_ONLY
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = NO_DECAY

    def __post_init__(self) -> None:
        expect_flag("nesterov", self.nesterov)
        super().__post_init__()
        expect_number("momentum", self.momentum, 0.0, 1.0)
        expect(not self.nesterov or self.momentum > 0, "nesterov needs a momentum above 0")

    def start(self, p):
        return {"velocity": zeros(p)} if self.momentum else {}

    def move(self, p, g, old, decay, rate):
        if decay:
            g = g + decay * p
        if not self.momentum:
            return p - rate * g, {}
        v = self.momentum * old["velocity"] + g
        along = g + self.momentum * v if self.nesterov else v
        return p - rate * along, {"velocity": v}


@dataclass(frozen=True)
class Lion(Rule):
    """A step of one size in every coordinate, along the sign of a running mean.

        u = sign(β₁ m + (1 - β₁) g)         sign(0) = 0
        m ← β₂ m + (1 - β₂) g               (m starts at 0)
        θ ← θ - rate · (u + λ θ)

    Chen et al., arXiv:2302.06675, Algorithm 2. Its steps are larger than those of AdamW:
    the paper takes a rate 3 to 10 times lower, and a decay as many times higher.
    """

    rate: Rate = 1e-4
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = NO_DECAY

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("beta1", self.beta1, 0.0, 1.0)
        expect_number("beta2", self.beta2, 0.0, 1.0)

    def start(self, p):
        return {"m": zeros(p)}

    def move(self, p, g, old, decay, rate):
        u = namespace(p).sign(self.beta1 * old["m"] + (1.0 - self.beta1) * g)
        m = self.beta2 * old["m"] + (1.0 - self.beta2) * g
        if decay:
            u = u + decay * p
        return p - rate * u, {"m": m}
