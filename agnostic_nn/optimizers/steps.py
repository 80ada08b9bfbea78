"""Steps, after an optimizer took them: shortened, or averaged."""

from dataclasses import dataclass

from ..core.arrays import Moments, Params, device, namespace
from ..core.errors import expect_number
from ..core.trees import tree_map
from .base import (
    Optimizer,
    bias_correction,
    bind_divisor,
    expect_optimizer,
    first_leaf,
    zero_step,
    zeros,
)

__all__ = ["Average", "Scaled"]


@dataclass(frozen=True)
class Scaled:
    """Another optimizer, each step shortened by a number that stands among the moments.

        θ ← θ + scale · (θ' - θ)            where the optimizer would go to θ'

    So a rate can be lowered while training, without another step to compile: moments hold
    `scale`, a 0-d array that starts at 1, and those of the optimizer as `inner`. Computed as
    θ' - (1 - scale)(θ' - θ), which is exactly θ' at scale 1, and θ where nothing moves.
    """

    optimizer: Optimizer

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)

    def init(self, params):
        inner = self.optimizer.init(params)
        like = first_leaf(params)
        one = namespace(like).ones((), dtype=like.dtype, device=device(like))
        return {"scale": one, "inner": inner}

    def update(self, params, grads, moments, divisor=1.0):
        moved, inner = bind_divisor(self.optimizer, divisor)(params, grads, moments["inner"])
        back = 1.0 - moments["scale"]
        params = tree_map(lambda p, q: q - back * (q - p), params, moved)
        return params, {"scale": moments["scale"], "inner": inner}


@dataclass(frozen=True)
class Average:
    """Another optimizer, and a running mean of the parameters that it reaches.

        a ← d a + (1 - d) θ                 (a starts at 0; d is `decay`)
        averaged = a / (1 - dᵗ)

    Polyak & Juditsky, "Acceleration of stochastic approximation by averaging" (1992), with
    weights that fade; dividing by 1 - dᵗ, the sum of the weights given so far, makes it a
    mean of θ₁ … θₜ alone, as in Adam. Training goes on from θ, not from the mean. Moments:
    `step`, a 0-d integer, a as `average`, and those of the other optimizer as `inner`.
    """

    optimizer: Optimizer
    decay: float = 0.999

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_number("decay", self.decay, 0.0, 1.0)

    def init(self, params):
        inner = self.optimizer.init(params)
        return {"step": zero_step(params), "average": tree_map(zeros, params), "inner": inner}

    def update(self, params, grads, moments, divisor=1.0):
        params, inner = bind_divisor(self.optimizer, divisor)(params, grads, moments["inner"])
        average = tree_map(
            lambda a, p: self.decay * a + (1.0 - self.decay) * p, moments["average"], params
        )
        return params, {"step": moments["step"] + 1, "average": average, "inner": inner}

    def averaged(self, params: Params, moments: Moments) -> Params:
        """The mean of the parameters so far; `params` themselves before the first step."""
        like = first_leaf(params)
        xp = namespace(like)
        t = xp.astype(moments["step"], like.dtype)
        given = bias_correction(self.decay, xp.maximum(t, 1.0))
        return tree_map(lambda p, a: xp.where(t > 0, a / given, p), params, moments["average"])
