"""Adam and its variants: steps scaled by averages of the gradient and of its square.

    m ← β₁ m + (1 - β₁) g          m̂ = m / (1 - β₁ᵗ)
    v ← β₂ v + (1 - β₂) g²         v̂ = v / (1 - β₂ᵗ)

m and v start at zero, which biases them towards zero. Dividing by 1 - βᵗ, the sum of
the weights in the average, corrects that (Kingma & Ba, arXiv:1412.6980, sec. 3).
(β₁, β₂) are `beta1` and `beta2`, PyTorch's `betas`; ε is `epsilon`, PyTorch's `eps`; λ
is `weight_decay`.

g² is computed in the dtype of the parameters. In float32 it overflows where |g| is
above 1.8e19. v is then infinite for good, and that number of θ does not move any more,
as in PyTorch. RAdam does not divide its first steps by √v, so it takes a step of the
size of g before that. Adamax computes no g². `ClipByGlobalNorm` or `ClipByValue` around
the optimizer keeps g in range. Where |g| is below 1e-23 in float32, g² is 0, and ε is
the whole divisor.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import Array, device, namespace
from ..core.errors import expect_flag, expect_number, expect_positive
from ..ops import norm
from .base import NO_DECAY, Rate, Rule, bias_correction, zeros

__all__ = ["LAMB", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"]


@dataclass(frozen=True)
class _Moments(Rule):
    """Base class of optimizers with the averages m and v, as defined in this module."""

    rate: Rate = 1e-3
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("beta1", self.beta1, 0.0, 1.0)
        expect_number("beta2", self.beta2, 0.0, 1.0)
        expect_positive("epsilon", self.epsilon)

    def start(self, p: Array) -> dict[str, Any]:
        return {"m": zeros(p), "v": zeros(p)}

    def shared(self, rate: Any, t: Array) -> tuple[Array | float, ...]:
        return rate, bias_correction(self.beta1, t), bias_correction(self.beta2, t)

    def _moments(self, g: Array, old: dict[str, Any]) -> tuple[Array, Array]:
        """Return m and v after the gradient `g`."""
        m = self.beta1 * old["m"] + (1.0 - self.beta1) * g
        v = self.beta2 * old["v"] + (1.0 - self.beta2) * (g * g)
        return m, v


@dataclass(frozen=True)
class Adam(_Moments):
    """θ ← θ - rate · m̂ / (√v̂ + ε), with moving averages m of g and v of g².

        m ← β₁ m + (1 - β₁) g          m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) g²         v̂ = v / (1 - β₂ᵗ)

    Kingma & Ba, arXiv:1412.6980, Algorithm 1, with `epsilon` outside the root. The code
    computes the factors that are the same for all of θ only once: with r = √(1 - β₂ᵗ),
    the step is (rate · r / (1 - β₁ᵗ)) · m / (√v + r ε).

    amsgrad: use the largest v so far instead of v, so that the step size never grows
    (Reddi et al., arXiv:1904.09237, Algorithm 2, divided by 1 - β₂ᵗ as in PyTorch).
    """

    _: KW_ONLY
    amsgrad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_flag("amsgrad", self.amsgrad)

    def start(self, p: Array) -> dict[str, Any]:
        v_max = {"v_max": zeros(p)} if self.amsgrad else {}
        return super().start(p) | v_max

    def shared(self, rate: Any, t: Array) -> tuple[Array | float, ...]:
        root = namespace(t).sqrt(bias_correction(self.beta2, t))
        return rate, rate * root / bias_correction(self.beta1, t), self.epsilon * root

    def move(
        self,
        p: Array,
        g: Array,
        old: dict[str, Any],
        decay: float,
        rate: Any,
        scale: Array,
        epsilon: Array,
    ) -> tuple[Array, dict[str, Any]]:
        xp = namespace(p)
        m, v = self._moments(g, old)
        new = {"m": m, "v": v}
        if self.amsgrad:
            v = new["v_max"] = xp.maximum(old["v_max"], v)
        if decay:
            p = p * (1.0 - rate * decay)
        return p - scale * m / (xp.sqrt(v) + epsilon), new


@dataclass(frozen=True)
class AdamW(Adam):
    """θ ← θ - rate · λ θ, then a step of `Adam`: weight decay does not enter m and v.

    Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2, line 12, where the schedule
    multiplier is part of the rate, as in PyTorch. Biases and scales do not decay,
    unlike in PyTorch (see `Rule`).
    """

    _: KW_ONLY
    weight_decay: float = 1e-2
    no_decay: tuple[str, ...] = NO_DECAY


@dataclass(frozen=True)
class Adamax(_Moments):
    """Adam with a decaying maximum of |g| instead of a root mean square.

        u ← max(β₂ u, |g| + ε)              (u starts at 0)
        θ ← θ - rate · m̂ / u

    m̂ is that of `Adam`. Kingma & Ba, arXiv:1412.6980, Algorithm 2, with ε added
    as in PyTorch.
    """

    rate: Rate = 2e-3

    def start(self, p: Array) -> dict[str, Any]:
        return {"m": zeros(p), "u": zeros(p)}

    def shared(self, rate: Any, t: Array) -> tuple[Array | float, ...]:
        return (rate / bias_correction(self.beta1, t),)

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, rate: Any
    ) -> tuple[Array, dict[str, Any]]:
        xp = namespace(p)
        m = self.beta1 * old["m"] + (1.0 - self.beta1) * g
        u = xp.maximum(self.beta2 * old["u"], xp.abs(g) + self.epsilon)
        return p - rate * m / u, {"m": m, "u": u}


@dataclass(frozen=True)
class NAdam(_Moments):
    """Adam with Nesterov momentum: the step anticipates the momentum of the next step.

        μₜ = β₁ (1 - ½ · 0.96^(tψ))         ψ is `momentum_decay`
        n = (1 - μₜ) / (1 - Π μᵢ) · g + μₜ₊₁ / (1 - Π μᵢ · μₜ₊₁) · m
        θ ← θ - rate · n / (√v̂ + ε)

    Products Π run from 1 to t. v̂ is that of `Adam`. Dozat, "Incorporating Nesterov
    momentum into Adam" (2016), in the form that PyTorch computes.
    """

    rate: Rate = 2e-3
    _: KW_ONLY
    momentum_decay: float = 4e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("momentum_decay", self.momentum_decay, 0.0)

    def start(self, p: Array) -> dict[str, Any]:
        one = namespace(p).ones((), dtype=p.dtype, device=device(p))
        return super().start(p) | {"product": one}

    def shared(self, rate: Any, t: Array) -> tuple[Array | float, ...]:
        def mu(t: Array) -> Array:
            shrink = namespace(t).exp(t * (self.momentum_decay * math.log(0.96)))
            return self.beta1 * (1.0 - 0.5 * shrink)

        return rate, mu(t), mu(t + 1.0), bias_correction(self.beta2, t)

    def move(
        self,
        p: Array,
        g: Array,
        old: dict[str, Any],
        decay: float,
        rate: Any,
        mu: Array,
        mu_next: Array,
        correction2: Array,
    ) -> tuple[Array, dict[str, Any]]:
        m, v = self._moments(g, old)
        product = old["product"] * mu
        g_factor = (1.0 - mu) / (1.0 - product)
        m_factor = mu_next / (1.0 - product * mu_next)
        root = namespace(p).sqrt(v / correction2) + self.epsilon
        new = {"m": m, "v": v, "product": product}
        return p - rate * (g_factor * g + m_factor * m) / root, new


@dataclass(frozen=True)
class RAdam(_Moments):
    """Adam with smaller steps while v̂ is an average of only few gradients.

        ρ∞ = 2 / (1 - β₂) - 1               ρ = ρ∞ - 2t β₂ᵗ / (1 - β₂ᵗ)
        r = √((ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ))
        θ ← θ - rate · r · m̂ · √(1 - β₂ᵗ) / (√v + ε)        where ρ > 5
        θ ← θ - rate · m̂                                     before

    Liu et al., arXiv:1908.03265, Algorithm 2. The bound on ρ, which is 4 in the paper,
    and ε are those of PyTorch.

    In the first steps ρ is a small difference of large numbers, and float32 would lose
    up to four digits. With a = -log β₂ and B(x) = (x/2) coth(x/2) - 1, they are

        ρ∞ = (2/a) (1 + B(a))               2t β₂ᵗ / (1 - β₂ᵗ) = (2/a) (1 + B(ta)) - t

    so ρ = t - (2/a) (B(ta) - B(a)), where B(x) = x²/12 - x⁴/720 + … for small x.
    """

    def shared(self, rate: Any, t: Array) -> tuple[Array | float, ...]:
        rate = rate / bias_correction(self.beta1, t)
        rho_limit = self._rho_limit()
        if rho_limit <= 5.0:  # then ρ never exceeds 5
            return rate, None, None
        xp = namespace(t)
        rho = self._rho(t)
        # r is used only where ρ > 5; elsewhere 5 keeps the root real
        safe_rho = xp.where(rho > 5.0, rho, 5.0 * xp.ones_like(rho))
        share = rho_limit / ((rho_limit - 4.0) * (rho_limit - 2.0))
        r = xp.sqrt((safe_rho - 4.0) * (safe_rho - 2.0) * share / safe_rho)
        return rate, rho > 5.0, r * xp.sqrt(bias_correction(self.beta2, t))

    def _rho_limit(self) -> float:
        """Return ρ∞."""
        return 2.0 / (1.0 - self.beta2) - 1.0

    def _rho(self, t: Array) -> Array:
        """Return ρ at step t."""
        xp = namespace(t)
        a = -math.log(self.beta2)
        x = t * a
        by_series = t - (2.0 / a) * (_bernoulli(xp.minimum(x, 0.25)) - _bernoulli(a))
        direct = self._rho_limit() + 2.0 * t * xp.exp(-x) / xp.expm1(-x)
        return xp.where(x < 0.25, by_series, direct)

    def move(
        self,
        p: Array,
        g: Array,
        old: dict[str, Any],
        decay: float,
        rate: Any,
        is_rectified: Any,
        factor: Any,
    ) -> tuple[Array, dict[str, Any]]:
        # is_rectified: whether ρ > 5; factor: r √(1 - β₂ᵗ)
        xp = namespace(p)
        m, v = self._moments(g, old)
        new = {"m": m, "v": v}
        if factor is None:
            return p - rate * m, new
        scale = factor / (xp.sqrt(v) + self.epsilon)
        scale = xp.where(is_rectified, scale, xp.ones_like(v))
        return p - rate * m * scale, new


def _bernoulli(x: Any) -> Any:
    """Return (x/2) coth(x/2) - 1 = Σ B₂ₖ x²ᵏ / (2k)!, to float64 for |x| < 1/4."""
    y = x * x
    rest = 1 / 30240 - y * (1 / 1209600 - y / 47900160)
    return y * (1 / 12 - y * (1 / 720 - y * rest))


@dataclass(frozen=True)
class LAMB(_Moments):
    """Steps of Adam, scaled in each leaf to the norm of the leaf times the rate.

        u = m̂ / (√v̂ + ε) + λ θ
        θ ← θ - rate · (‖θ‖ / ‖u‖) · u      the ratio is 1 where a norm is 0

    m̂ and v̂ are those of `Adam`. You et al., arXiv:1904.00962, Algorithm 2, with
    φ(z) = z. The norms are over one leaf each. Biases and scales have no weight decay
    (see `Rule`), but their steps are scaled too.
    """

    _: KW_ONLY
    epsilon: float = 1e-6
    weight_decay: float = 1e-2
    no_decay: tuple[str, ...] = NO_DECAY

    def move(
        self,
        p: Array,
        g: Array,
        old: dict[str, Any],
        decay: float,
        rate: Any,
        correction1: Array,
        correction2: Array,
    ) -> tuple[Array, dict[str, Any]]:
        xp = namespace(p)
        m, v = self._moments(g, old)
        u = (m / correction1) / (xp.sqrt(v / correction2) + self.epsilon)
        if decay:
            u = u + decay * p
        p_norm = norm(p)
        u_norm = norm(u)
        ones = xp.ones_like(p_norm)
        safe_norm = xp.where(u_norm > 0, u_norm, ones)
        ratio = xp.where((p_norm > 0) & (u_norm > 0), p_norm / safe_norm, ones)
        return p - rate * ratio * u, {"m": m, "v": v}
