"""SGD and Lion: steps along the gradient, or along its sign, with momentum."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import Array, namespace
from ..core.errors import expect, expect_flag, expect_number
from .base import NO_DECAY, Rate, Rule, zeros

__all__ = ["SGD", "Lion"]


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent, with momentum μ and weight decay λ.

        g ← g + λ θ
        v ← μ v + g                 (v starts at 0)
        θ ← θ - rate · v            or, with `nesterov`, θ - rate · (g + μ v)

    Momentum is due to Polyak, "Some methods of speeding up the convergence of iteration
    methods" (1964). Nesterov momentum has the form of Sutskever et al., "On the
    importance of initialization and momentum in deep learning" (2013), eq. 3 and 4, but
    the rate is not part of v, as in PyTorch.

    weight_decay: not applied to biases and scales, unlike PyTorch's (see `Rule`).
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
        is_valid = not self.nesterov or self.momentum > 0
        expect(is_valid, "nesterov needs a momentum above 0")

    def start(self, p: Array) -> dict[str, Any]:
        return {"velocity": zeros(p)} if self.momentum else {}

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, rate: Any
    ) -> tuple[Array, dict[str, Any]]:
        if decay:
            g = g + decay * p
        if not self.momentum:
            return p - rate * g, {}
        v = self.momentum * old["velocity"] + g
        direction = g + self.momentum * v if self.nesterov else v
        return p - rate * direction, {"velocity": v}


@dataclass(frozen=True)
class Lion(Rule):
    """Steps of the same size for every number, along the sign of a moving average.

        u = sign(β₁ m + (1 - β₁) g)         sign(0) = 0
        m ← β₂ m + (1 - β₂) g               (m starts at 0)
        θ ← θ - rate · (u + λ θ)            λ is `weight_decay`

    Chen et al., arXiv:2302.06675, Algorithm 2. The steps are larger than those of
    AdamW: the paper recommends a rate 3 to 10 times lower, and a weight decay higher by
    the same factor.
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

    def start(self, p: Array) -> dict[str, Any]:
        return {"m": zeros(p)}

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, rate: Any
    ) -> tuple[Array, dict[str, Any]]:
        u = namespace(p).sign(self.beta1 * old["m"] + (1.0 - self.beta1) * g)
        m = self.beta2 * old["m"] + (1.0 - self.beta2) * g
        if decay:
            u = u + decay * p
        return p - rate * u, {"m": m}
