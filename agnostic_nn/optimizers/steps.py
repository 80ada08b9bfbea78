"""Wrappers that change the steps of another optimizer: scaled, or averaged."""

from dataclasses import dataclass
from typing import Any

from ..core.arrays import Array, Moments, Params, device, namespace
from ..core.errors import expect_number
from ..core.trees import tree_map
from .base import (
    Optimizer,
    bias_correction,
    bind_divisor,
    expect_optimizer,
    first_leaf,
    nested_moments,
    zero_step,
    zeros,
)

__all__ = ["Average", "Scaled"]


@dataclass(frozen=True)
class Scaled:
    """θ ← θ + scale · (θ' - θ), where θ' is what another optimizer would move θ to.

    This scales the steps of that optimizer, and so its learning rate. The scale is an
    array among the moments, so it can change during training without compiling the step
    again; the callback `ReduceOnPlateau` lowers it.

    The step is computed as θ' - (1 - scale) (θ' - θ), which is exactly θ' if the scale
    is 1, and exactly θ where θ' = θ. Moments are `scale`, a 0-d array that starts at 1,
    and those of the other optimizer as `inner`.
    """

    optimizer: Optimizer

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)

    def init(self, params: Params) -> Moments:
        inner = self.optimizer.init(params)
        like = first_leaf(params)
        one = namespace(like).ones((), dtype=like.dtype, device=device(like))
        return {"scale": one, "inner": inner}

    def update(
        self, params: Params, grads: Params, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        update = bind_divisor(self.optimizer, divisor)
        moved, inner = update(params, grads, moments["inner"])
        undo = 1.0 - moments["scale"]
        params = tree_map(lambda p, q: q - undo * (q - p), params, moved)
        return params, {"scale": moments["scale"], "inner": inner}

    @staticmethod
    def scales(moments: Moments) -> list[Array]:
        """Return the scale of each `Scaled` in the moments of nested optimizers.

        The outermost scale comes first. The list is empty if there is no `Scaled`.
        """
        return [each["scale"] for each in nested_moments(moments) if "scale" in each]

    @staticmethod
    def with_scale(moments: Moments, scale: Array) -> Moments:
        """Return the moments with another `scale` in the outermost `Scaled`."""
        if "scale" in moments:
            return moments | {"scale": scale}
        return moments | {"inner": Scaled.with_scale(moments["inner"], scale)}


@dataclass(frozen=True)
class Average:
    """a ← d a + (1 - d) θ, an exponential moving average (EMA) of the parameters.

        averaged = a / (1 - dᵗ)             a starts at 0; d is `decay`

    θ is moved by another optimizer, which the average does not affect;
    `Trainer.predict` and `Trainer.evaluate` use the average with `averaged=True`.
    Dividing by 1 - dᵗ, the sum of the weights, makes it a mean of θ₁ … θₜ alone, as in
    Adam. Averaging is due to Polyak & Juditsky, "Acceleration of stochastic
    approximation by averaging" (1992), there with equal weights.

    Moments are `step`, a 0-d integer, a as `average`, and those of the other optimizer
    as `inner`.
    """

    optimizer: Optimizer
    decay: float = 0.999

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_number("decay", self.decay, 0.0, 1.0)

    def init(self, params: Params) -> Moments:
        inner = self.optimizer.init(params)
        return {
            "step": zero_step(params),
            "average": tree_map(zeros, params),
            "inner": inner,
        }

    def update(
        self, params: Params, grads: Params, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        update = bind_divisor(self.optimizer, divisor)
        params, inner = update(params, grads, moments["inner"])

        def updated(a: Array, p: Array) -> Array:
            return self.decay * a + (1.0 - self.decay) * p

        average = tree_map(updated, moments["average"], params)
        return params, {"step": moments["step"] + 1, "average": average, "inner": inner}

    def averaged(self, params: Params, moments: Moments) -> Params:
        """Return the average of the parameters, or `params` before the first step.

        moments: those of this optimizer, without those of optimizers around it.
        """
        like = first_leaf(params)
        xp = namespace(like)
        t = xp.astype(moments["step"], like.dtype)
        correction = bias_correction(self.decay, xp.maximum(t, 1.0))

        def mean(p: Array, a: Array) -> Array:
            return xp.where(t > 0, a / correction, p)

        return tree_map(mean, params, moments["average"])

    @staticmethod
    def own_moments(moments: Moments) -> Moments | None:
        """Return the moments of the outermost nested `Average`, or None."""
        for each in nested_moments(moments):
            if "average" in each:
                return each
        return None
