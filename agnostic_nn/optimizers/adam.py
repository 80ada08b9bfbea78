"""Adam and its kin: steps scaled by running moments of the gradient.

    m ← β₁ m + (1 - β₁) g          m̂ = m / (1 - β₁ᵗ)
    v ← β₂ v + (1 - β₂) g²         v̂ = v / (1 - β₂ᵗ)

m and v start at zero, which biases them towards zero; dividing by 1 - βᵗ, the sum of the
weights given so far, undoes that (Kingma & Ba, arXiv:1412.6980, sec. 3).

g² is computed in the dtype of the parameters. Where it overflows, in float32 where |g| is above
1.8e19, v becomes infinite and stays so, and that number of θ takes no more steps, as in PyTorch;
RAdam, whose first steps are not divided by √v, takes a step of the size of g before. Adamax has
no g². `ClipByGlobalNorm` or `ClipByValue` around the optimizer keeps g in range. Where g² is 0, in
float32 where |g| is below 1e-23, ε alone divides.
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
    """m and v of the head of this file."""

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

    def start(self, p):
        return {"m": zeros(p), "v": zeros(p)}

    def shared(self, rate, t):
        return rate, bias_correction(self.beta1, t), bias_correction(self.beta2, t)

    def _moments(self, g: Array, old: dict[str, Any]) -> tuple[Array, Array]:
        m = self.beta1 * old["m"] + (1.0 - self.beta1) * g
        return m, self.beta2 * old["v"] + (1.0 - self.beta2) * (g * g)


@dataclass(frozen=True)
class Adam(_Moments):
    """Steps scaled by running moments of the gradient (Kingma & Ba, arXiv:1412.6980).

    Follows Algorithm 1 of the paper, `epsilon` outside the root, with m̂ and v̂ as at the
    head of this file:

        θ ← θ - rate · m̂ / (√v̂ + ε)

    which is computed with numbers for all of θ taken out: with r = √(1 - β₂ᵗ) the step is
    (rate · r / (1 - β₁ᵗ)) · m / (√v + r ε).

    With `amsgrad` the largest v so far stands for v, so that no rate ever grows (Reddi et
    al., arXiv:1904.09237, Algorithm 2, divided by 1 - β₂ᵗ as PyTorch has it).
    """

    _: KW_ONLY
    amsgrad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_flag("amsgrad", self.amsgrad)

    def start(self, p):
        most = {"v_max": zeros(p)} if self.amsgrad else {}
        return super().start(p) | most

    def shared(self, rate, t):
        root = namespace(t).sqrt(bias_correction(self.beta2, t))
        return rate, rate * root / bias_correction(self.beta1, t), self.epsilon * root

    def move(self, p, g, old, decay, rate, scale, epsilon):
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
    """Adam with weight decay kept out of its moments (Loshchilov & Hutter, arXiv:1711.05101).

    Before each step of Adam θ ← θ - rate · λ θ (Algorithm 2, line 12, with the schedule
    multiplier in the rate, as PyTorch has it), but for biases and scales (see `Rule`).
    """

    _: KW_ONLY
    weight_decay: float = 1e-2
    no_decay: tuple[str, ...] = NO_DECAY


@dataclass(frozen=True)
class Adamax(_Moments):
    """Adam with the largest |g| of late in place of a root mean square.

        u ← max(β₂ u, |g| + ε)              (u starts at 0)
        θ ← θ - rate · m̂ / u

    Kingma & Ba, arXiv:1412.6980, Algorithm 2, with ε where PyTorch has it.
    """

    rate: Rate = 2e-3

    def start(self, p):
        return {"m": zeros(p), "u": zeros(p)}

    def shared(self, rate, t):
        return (rate / bias_correction(self.beta1, t),)

    def move(self, p, g, old, decay, rate):
        xp = namespace(p)
        m = self.beta1 * old["m"] + (1.0 - self.beta1) * g
        u = xp.maximum(self.beta2 * old["u"], xp.abs(g) + self.epsilon)
        return p - rate * m / u, {"m": m, "u": u}


@dataclass(frozen=True)
class NAdam(_Moments):
    """Adam that looks ahead along its momentum, as Nesterov does.

        μₜ = β₁ (1 - ½ · 0.96^(tψ))         ψ is `momentum_decay`
        n = (1 - μₜ) / (1 - Π μᵢ) · g + μₜ₊₁ / (1 - Π μᵢ · μₜ₊₁) · m        Π from 1 to t
        θ ← θ - rate · n / (√v̂ + ε)

    Dozat, "Incorporating Nesterov momentum into Adam" (2016), as PyTorch has it.
    """

    rate: Rate = 2e-3
    _: KW_ONLY
    momentum_decay: float = 4e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("momentum_decay", self.momentum_decay, 0.0)

    def start(self, p):
        one = namespace(p).ones((), dtype=p.dtype, device=device(p))
        return super().start(p) | {"product": one}

    def shared(self, rate, t):
        def mu(t):
            shrink = namespace(t).exp(t * (self.momentum_decay * math.log(0.96)))
            return self.beta1 * (1.0 - 0.5 * shrink)

        return rate, mu(t), mu(t + 1.0), bias_correction(self.beta2, t)

    def move(self, p, g, old, decay, rate, mu, mu_next, unbias2):
        m, v = self._moments(g, old)
        product = old["product"] * mu
        now, ahead = (1.0 - mu) / (1.0 - product), mu_next / (1.0 - product * mu_next)
        root = namespace(p).sqrt(v / unbias2) + self.epsilon
        return p - rate * (now * g + ahead * m) / root, {"m": m, "v": v, "product": product}


@dataclass(frozen=True)
class RAdam(_Moments):
    """Adam whose steps are held back while v̂ is a mean of too few gradients.

        ρ∞ = 2 / (1 - β₂) - 1               ρ = ρ∞ - 2t β₂ᵗ / (1 - β₂ᵗ)
        r = √((ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ))
        θ ← θ - rate · r · m̂ · √(1 - β₂ᵗ) / (√v + ε)        where ρ > 5
        θ ← θ - rate · m̂                                     before

    Liu et al., arXiv:1908.03265, Algorithm 2, with the bound on ρ (4 in the paper) and ε as
    PyTorch has them.

    At the first steps ρ is a small difference of large numbers, of which float32 would lose
    up to four digits. With a = -log β₂ and B(x) = (x/2) coth(x/2) - 1 both are

        ρ∞ = (2/a) (1 + B(a))               2t β₂ᵗ / (1 - β₂ᵗ) = (2/a) (1 + B(ta)) - t

    and so ρ = t - (2/a) (B(ta) - B(a)), where B(x) = x²/12 - x⁴/720 + … serves for small x.
    """

    def shared(self, rate, t):
        rate = rate / bias_correction(self.beta1, t)
        longest = self._longest()
        if longest <= 5.0:
            return rate, None, None
        xp = namespace(t)
        length = self._length(t)
        far = xp.where(length > 5.0, length, 5.0 * xp.ones_like(length))
        share = longest / ((longest - 4.0) * (longest - 2.0))
        r = xp.sqrt((far - 4.0) * (far - 2.0) * share / far)
        return rate, length > 5.0, r * xp.sqrt(bias_correction(self.beta2, t))

    def _longest(self) -> float:
        """ρ∞."""
        return 2.0 / (1.0 - self.beta2) - 1.0

    def _length(self, t: Array) -> Array:
        """ρ at step t."""
        xp = namespace(t)
        a = -math.log(self.beta2)
        x = t * a
        near = t - (2.0 / a) * (_bernoulli(xp.minimum(x, 0.25)) - _bernoulli(a))
        far = self._longest() + 2.0 * t * xp.exp(-x) / xp.expm1(-x)
        return xp.where(x < 0.25, near, far)

    def move(self, p, g, old, decay, rate, enough, factor):
        xp = namespace(p)
        m, v = self._moments(g, old)
        if factor is None:
            return p - rate * m, {"m": m, "v": v}
        scale = factor / (xp.sqrt(v) + self.epsilon)
        return p - rate * m * xp.where(enough, scale, xp.ones_like(v)), {"m": m, "v": v}


def _bernoulli(x: Any) -> Any:
    """(x/2) coth(x/2) - 1 for |x| < 1/4, to the last digits of a float64: Σ B₂ₖ x²ᵏ / (2k)!."""
    y = x * x
    return y * (1 / 12 - y * (1 / 720 - y * (1 / 30240 - y * (1 / 1209600 - y / 47900160))))


@dataclass(frozen=True)
class LAMB(_Moments):
    """Steps of Adam, for each leaf as long as the leaf itself times the rate.

        u = m̂ / (√v̂ + ε) + λ θ
        θ ← θ - rate · (‖θ‖ / ‖u‖) · u      with 1 for the ratio where a norm is 0

    You et al., arXiv:1904.00962, Algorithm 2, with φ(z) = z. The norms are taken leaf by
    leaf; biases and scales are spared the decay (see `Rule`), not the ratio.
    """

    _: KW_ONLY
    epsilon: float = 1e-6
    weight_decay: float = 1e-2
    no_decay: tuple[str, ...] = NO_DECAY

    def move(self, p, g, old, decay, rate, unbias1, unbias2):
        xp = namespace(p)
        m, v = self._moments(g, old)
        u = (m / unbias1) / (xp.sqrt(v / unbias2) + self.epsilon)
        if decay:
            u = u + decay * p
        long, step = norm(p), norm(u)
        one = xp.ones_like(long)
        ratio = xp.where((long > 0) & (step > 0), long / xp.where(step > 0, step, one), one)
        return p - rate * ratio * u, {"m": m, "v": v}
