"""Optimizers: frozen dataclasses with two pure methods, `init` and `update`.

In the formulas θ are the parameters, g the gradient, and t = 1, 2, … the step. Moments
hold t, a 0-d integer, as `step`, and trees nested like the parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .arrays import (
    Array,
    Moments,
    Params,
    device,
    expect,
    expect_number,
    expect_positive,
    namespace,
)
from .trees import leaves, tree_map

__all__ = ["SGD", "Adam", "AdamW", "ClipByGlobalNorm", "Optimizer"]

Rate = float | Callable[[Array], Array]


class Optimizer(Protocol):
    """What an optimizer is: how `moments` start, and how a step changes `params`."""

    def init(self, params: Params) -> Moments:
        """The moments before the first step."""
        ...

    def update(self, params: Params, grads: Params, moments: Moments) -> tuple[Params, Moments]:
        """One step; returns new `params` and `moments`, changing no argument."""
        ...


def _expect_rate(rate: Rate) -> None:
    if not callable(rate):
        expect_positive("rate", rate)


def _count(params: Params) -> Array:
    """No steps yet, as a 0-d integer beside the parameters."""
    found = leaves(params)
    expect(len(found) > 0, "the model has no parameters to train")
    xp = namespace(found[0])
    return xp.zeros((), dtype=xp.int32, device=device(found[0]))


def _rate_now(rate: Rate, params: Params, moments: Moments) -> Any:
    """The rate of the coming step, in the dtype of the parameters."""
    if not callable(rate):
        return rate
    leaf = leaves(params)[0]
    return rate(namespace(leaf).astype(moments["step"], leaf.dtype))


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with momentum μ and weight decay λ.

        g ← g + λ θ
        v ← μ v + g                 (v starts at 0)
        θ ← θ - rate · v            or, with `nesterov`, θ - rate · (g + μ v)

    Polyak, "Some methods of speeding up the convergence of iteration methods" (1964);
    Nesterov's in the form of Sutskever et al., "On the importance of initialization and
    momentum in deep learning" (2013), eq. 3 and 4, with the rate taken out of v, as
    PyTorch has it.
    """

    rate: Rate = 1e-2
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _expect_rate(self.rate)
        expect_number("momentum", self.momentum, 0.0, 1.0)
        expect(not self.nesterov or self.momentum > 0, "nesterov needs a momentum above 0")
        expect_number("weight_decay", self.weight_decay, 0.0)

    def init(self, params):
        moments = {"step": _count(params)}
        if self.momentum:
            moments["velocity"] = tree_map(lambda p: namespace(p).zeros_like(p), params)
        return moments

    def update(self, params, grads, moments):
        rate = _rate_now(self.rate, params, moments)
        new = {"step": moments["step"] + 1}
        if self.weight_decay:
            grads = tree_map(lambda g, p: g + self.weight_decay * p, grads, params)
        if self.momentum:
            new["velocity"] = tree_map(
                lambda v, g: self.momentum * v + g, moments["velocity"], grads
            )
            if self.nesterov:
                grads = tree_map(lambda g, v: g + self.momentum * v, grads, new["velocity"])
            else:
                grads = new["velocity"]
        return tree_map(lambda p, g: p - rate * g, params, grads), new


@dataclass(frozen=True)
class Adam:
    """Steps scaled by running moments of the gradient (Kingma & Ba, arXiv:1412.6980).

    Follows Algorithm 1 of the paper, `epsilon` outside the root:

        m ← β₁ m + (1 - β₁) g          m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) g²         v̂ = v / (1 - β₂ᵗ)
        θ ← θ - rate · m̂ / (√v̂ + ε)

    `m` and `v` start at zero, which biases them towards zero; dividing by
    1 - βᵗ, the sum of the weights given so far, undoes that (sec. 3).
    """

    rate: Rate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _expect_rate(self.rate)
        expect_number("beta1", self.beta1, 0.0, 1.0)
        expect_number("beta2", self.beta2, 0.0, 1.0)
        expect_positive("epsilon", self.epsilon)

    def init(self, params):
        def zeros(p):
            return namespace(p).zeros_like(p)

        return {"step": _count(params), "m": tree_map(zeros, params), "v": tree_map(zeros, params)}

    def update(self, params, grads, moments):
        xp = namespace(moments["step"])
        rate = _rate_now(self.rate, params, moments)
        step = moments["step"] + 1
        t = xp.astype(step, leaves(params)[0].dtype)
        unbias1, unbias2 = _weights_given(self.beta1, t), _weights_given(self.beta2, t)
        m = tree_map(lambda m, g: self.beta1 * m + (1.0 - self.beta1) * g, moments["m"], grads)
        v = tree_map(
            lambda v, g: self.beta2 * v + (1.0 - self.beta2) * (g * g), moments["v"], grads
        )

        def move(p, m, v):
            return p - (rate / unbias1) * m / (xp.sqrt(v / unbias2) + self.epsilon)

        return tree_map(move, params, m, v), {"step": step, "m": m, "v": v}


def _weights_given(beta: float, t: Array) -> Any:
    """1 - βᵗ, as -(exp(t log β) - 1): float32 cannot hold 0.999 well enough to subtract it."""
    return -namespace(t).expm1(t * math.log(beta)) if beta else 1.0


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay kept out of its moments (Loshchilov & Hutter, arXiv:1711.05101).

    Before each step of Adam θ ← θ - rate · λ θ (Algorithm 2, line 12, with the schedule
    multiplier in the rate, as PyTorch has it).
    """

    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("weight_decay", self.weight_decay, 0.0)

    def update(self, params, grads, moments):
        kept = 1.0 - _rate_now(self.rate, params, moments) * self.weight_decay
        return super().update(tree_map(lambda p: p * kept, params), grads, moments)


@dataclass(frozen=True)
class ClipByGlobalNorm:
    """Another optimizer, given gradients whose common norm is at most `limit`.

        g ← g · limit / max(‖g‖, limit)        ‖g‖² = Σ g² over all parameters

    Pascanu et al., arXiv:1211.5063, Algorithm 1, with one norm for the whole tree. Where
    ‖g‖² overflows its dtype the step is taken with g = 0.
    """

    optimizer: Optimizer
    limit: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("limit", self.limit)

    def init(self, params):
        return self.optimizer.init(params)

    def update(self, params, grads, moments):
        xp = namespace(moments["step"])
        norm = xp.sqrt(sum(xp.sum(g * g) for g in leaves(grads)))
        shrink = self.limit / xp.maximum(norm, self.limit)
        return self.optimizer.update(params, tree_map(lambda g: g * shrink, grads), moments)
