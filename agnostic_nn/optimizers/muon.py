"""Muon: momentum whose every matrix is made nearly orthogonal before the step."""

import math
from dataclasses import KW_ONLY, dataclass, field

from ..core.arrays import Array, Moments, namespace, size
from ..core.errors import expect, expect_count, expect_flag, expect_number, expect_positive
from ..core.trees import leaves, named_leaves, unname
from ..ops import norm
from .adam import AdamW
from .base import (
    NO_DECAY,
    Optimizer,
    Rate,
    Rule,
    bind_divisor,
    expect_optimizer,
    matches,
    split_by_owner,
    update_parts,
    zeros,
)

__all__ = ["Muon"]


@dataclass(frozen=True)
class Muon(Rule):
    """Steps that turn a matrix by the same amount in all directions.

        v ← μ v + g                         (v starts at 0)
        X = g + μ v                         or v, without `nesterov`
        X ← X / max(‖X‖, ε)
        X ← a X + (b A + c A²) X            A = X Xᵀ; `iterations` times
        θ ← θ - rate · (√max(1, out / in) · X + λ θ)

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). The
    iteration of Newton and Schulz keeps the singular vectors of X and moves each singular
    value z to a z + b z³ + c z⁵; with the authors' `coefficients` five rounds bring all
    that are not tiny to between 0.7 and 1.2. Computed in the dtype of θ, where the authors
    and PyTorch take bfloat16. With `match_adam` the factor is 0.2 √max(in, out), which
    takes rates and decays made for AdamW (Liu et al., arXiv:2502.16982, eq. 4).

    A weight is (in, out); axes before these two, as a convolution has, count into `in`.
    Leaves with fewer than two axes, those without elements, and those that `no_decay` names (see
    `matches`) go to `others`, which has its own rate. The authors leave the embedding and the last
    layer to AdamW too, as `Parts` can. A stack of weights, as `Repeat` holds, would be turned
    as one tall matrix.
    """

    rate: Rate = 2e-2
    _: KW_ONLY
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = NO_DECAY
    others: Optimizer = field(default=AdamW())
    match_adam: bool = False
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    iterations: int = 5
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        expect_flag("nesterov", self.nesterov)
        expect_flag("match_adam", self.match_adam)
        super().__post_init__()
        expect_number("momentum", self.momentum, 0.0, 1.0)
        expect_optimizer(self.others)
        several = isinstance(self.coefficients, tuple | list)
        object.__setattr__(self, "coefficients", tuple(self.coefficients) if several else ())
        three = len(self.coefficients) == 3
        expect(three, "expected three coefficients, got {}", self.coefficients)
        for name, value in zip("abc", self.coefficients, strict=True):
            expect_number(f"coefficient {name}", value)
        expect_count("iterations", self.iterations)
        expect_positive("epsilon", self.epsilon)

    def _owners(self, params):
        """0 for a matrix, 1 for what goes to `others`."""

        owners = {
            path: int(
                p.ndim < 2
                or not size(p)
                or any(matches(pattern, path) for pattern in self.no_decay)
            )
            for path, p in named_leaves(params)
        }
        return unname(owners, params)

    def init(self, params):
        matrices, rest = split_by_owner(self._owners(params), params, 2)
        return {
            "matrices": super().init(matrices) if leaves(matrices) else {},
            "others": self.others.init(rest) if leaves(rest) else {},
        }

    def update(self, params, grads, moments, divisor=1.0):
        updates = [super().update, bind_divisor(self.others, divisor)]
        parts = [moments["matrices"], moments["others"]]
        params, new = update_parts(updates, self._owners(params), params, grads, parts)
        return params, {"matrices": new[0], "others": new[1]}

    def steps_taken(self, moments: Moments) -> Array:
        """Return the number of steps that led to these moments, a 0-d integer."""
        return super().steps_taken(moments["matrices"] or moments["others"])

    def start(self, p):
        return {"velocity": zeros(p)}

    def move(self, p, g, old, decay, rate):
        xp = namespace(p)
        v = self.momentum * old["velocity"] + g
        along = g + self.momentum * v if self.nesterov else v
        fan_in, fan_out = math.prod(p.shape[:-1]), p.shape[-1]
        turned = self._orthogonal(xp.reshape(along, (fan_in, fan_out)))
        if self.match_adam:
            factor = 0.2 * math.sqrt(max(fan_in, fan_out))
        else:
            factor = math.sqrt(max(1.0, fan_out / fan_in))
        if decay:
            p = p * (1.0 - rate * decay)
        return p - (rate * factor) * xp.reshape(turned, p.shape), {"velocity": v}

    def _orthogonal(self, x: Array) -> Array:
        """x with its singular values brought near 1; the wide way round, where A is small."""
        xp = namespace(x)
        if x.shape[0] > x.shape[1]:
            return xp.matrix_transpose(self._orthogonal(xp.matrix_transpose(x)))
        a, b, c = self.coefficients
        x = x / xp.maximum(norm(x), self.epsilon)
        for _ in range(self.iterations):
            square = x @ xp.matrix_transpose(x)
            x = a * x + (b * square + c * (square @ square)) @ x
        return x
