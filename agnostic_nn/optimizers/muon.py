"""Muon: momentum, made nearly orthogonal in each matrix before the step."""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from ..core.arrays import Array, Moments, Params, namespace, size
from ..core.errors import (
    expect,
    expect_count,
    expect_flag,
    expect_number,
    expect_positive,
)
from ..core.fields import set_fields
from ..core.trees import leaves, named_leaves, tree_from_leaves
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
    """Steps along momentum whose singular values are all near 1.

        v ← μ v + g                         (v starts at 0)
        X = g + μ v                         or v, without `nesterov`
        X ← X / max(‖X‖, ε)
        X ← a X + (b A + c A²) X            A = X Xᵀ; `iterations` times
        θ ← θ - rate · (√max(1, out / in) · X + λ θ)

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). μ
    is `momentum`, λ is `weight_decay` and (a, b, c) are the `coefficients`. The
    Newton-Schulz iteration keeps the singular vectors of X and maps each singular value
    z to a z + b z³ + c z⁵. With the authors' coefficients, five iterations bring all
    but tiny singular values into [0.7, 1.2]. It is computed in the dtype of θ, while
    the authors and PyTorch use bfloat16 (`iterations` is `ns_steps` there).

    match_adam: use the factor 0.2 √max(in, out), with which rates and weight decays
    chosen for AdamW apply (Liu et al., arXiv:2502.16982, eq. 4;
    `adjust_lr_fn="match_rms_adamw"` in PyTorch).

    A weight is (in, out). If there are more axes, as in the kernel of a convolution,
    all but the last count as `in`. Leaves with fewer than two axes, without elements,
    or named in `no_decay` (see `matches`) are updated by `others`, which has its own
    rate. The authors use AdamW for the embedding and the last layer too; `Parts` can do
    that. Do not use Muon for the weights in a `Repeat`: they are stacked, and the stack
    counts as one tall matrix.
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
        is_tuple = isinstance(self.coefficients, tuple | list)
        coefficients = tuple(self.coefficients) if is_tuple else ()
        set_fields(self, coefficients=coefficients)
        is_valid = len(coefficients) == 3
        expect(is_valid, "expected three coefficients, got {}", coefficients)
        for name, value in zip("abc", self.coefficients, strict=True):
            expect_number(f"coefficient {name}", value)
        expect_count("iterations", self.iterations)
        expect_positive("epsilon", self.epsilon)

    def _owners(self, params: Params) -> Any:
        """Return a tree with 0 for each leaf that is a matrix and 1 for the others."""
        owners = {}
        for path, p in named_leaves(params):
            is_excluded = any(matches(pattern, path) for pattern in self.no_decay)
            is_matrix = p.ndim >= 2 and size(p) > 0 and not is_excluded
            owners[path] = 0 if is_matrix else 1
        return tree_from_leaves(owners, params)

    def init(self, params: Params) -> Moments:
        matrices, rest = split_by_owner(self._owners(params), params, 2)
        return {
            "matrices": super().init(matrices) if leaves(matrices) else {},
            "others": self.others.init(rest) if leaves(rest) else {},
        }

    def update(
        self, params: Params, grads: Params, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        updates = [super().update, bind_divisor(self.others, divisor)]
        parts = [moments["matrices"], moments["others"]]
        params, new = update_parts(updates, self._owners(params), params, grads, parts)
        return params, {"matrices": new[0], "others": new[1]}

    def steps_taken(self, moments: Moments) -> Array:
        """Return the number of steps that led to these moments, a 0-d integer."""
        return super().steps_taken(moments["matrices"] or moments["others"])

    def start(self, p: Array) -> dict[str, Any]:
        return {"velocity": zeros(p)}

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, rate: Any
    ) -> tuple[Array, dict[str, Any]]:
        xp = namespace(p)
        v = self.momentum * old["velocity"] + g
        direction = g + self.momentum * v if self.nesterov else v
        fan_in = math.prod(p.shape[:-1])
        fan_out = p.shape[-1]
        orthogonal = self._orthogonalized(xp.reshape(direction, (fan_in, fan_out)))
        if self.match_adam:
            factor = 0.2 * math.sqrt(max(fan_in, fan_out))
        else:
            factor = math.sqrt(max(1.0, fan_out / fan_in))
        if decay:
            p = p * (1.0 - rate * decay)
        return p - (rate * factor) * xp.reshape(orthogonal, p.shape), {"velocity": v}

    def _orthogonalized(self, x: Array) -> Array:
        """Return x with its singular values moved to near 1."""
        xp = namespace(x)
        if x.shape[0] > x.shape[1]:  # A = X Xᵀ is smaller for a wide matrix
            return xp.matrix_transpose(self._orthogonalized(xp.matrix_transpose(x)))
        a, b, c = self.coefficients
        x = x / xp.maximum(norm(x), self.epsilon)
        for _ in range(self.iterations):
            square = x @ xp.matrix_transpose(x)
            x = a * x + (b * square + c * (square @ square)) @ x
        return x
