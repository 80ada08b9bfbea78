"""DynamicScale: gradients of a scaled loss, for computation in float16."""

from dataclasses import KW_ONLY, dataclass
from math import frexp
from typing import Any

from ..core.arrays import Array, Moments, Params, device, namespace
from ..core.errors import expect, expect_count, expect_number
from ..core.fields import set_fields
from ..core.trees import tree_map
from ..ops import narrowed, widened
from .base import (
    Optimizer,
    bind_divisor,
    expect_optimizer,
    expect_outermost,
    first_leaf,
    nested_moments,
    zero_step,
)

__all__ = ["DynamicScale"]

_LARGEST = 2.0**24  # above it, numbers of normal size would overflow in float16


@dataclass(frozen=True)
class DynamicScale:
    """g ← G / S, then a step of another optimizer, where G is the gradient of S · L.

        S ← S / 2    if G is not finite: the step is skipped
        S ← 2 S      after `every` steps that were taken since S changed

    Numbers of float16 below 2⁻²⁴ are lost, and gradients often are that small. The
    backward pass is linear in dy, so it is run with S · dy, and its results are divided
    by S in float32, exactly, because S is a power of two. S begins at `start`, is at
    least 1 and at most 2²⁴. If G overflows, S was too large: parameters, state and
    moments do not change, and the step of a schedule is not counted.

    `Trainer(precision="mixed_float16")` puts this around the optimizer by itself; pass
    it for other options. Around a model that computes in float16, use it with
    `nn.MixedPrecision(model, "float16", scale=1)`. It has to be the outermost
    optimizer, because the wrappers inside, such as `ClipByGlobalNorm`, need g.

    `Trainer` and `make_step` multiply dy by `scale(moments)`, and call `update` if G is
    finite and `lowered` if it is not. A loss that is not finite does not depend on S,
    so S does not change then.

    Parameters and moments of 16 bits are updated in float32, and rounded once.

    Moments are `loss_scale`, S as a 0-d integer; `taken`, the steps since S changed;
    and those of the other optimizer as `inner`.

    Micikevicius et al., "Mixed Precision Training", arXiv:1710.03740, section 3.2:
    gradients of a scaled loss, and updates that are skipped if they overflow. Halving
    and doubling S is the rule of PyTorch's `GradScaler`, which has no bounds.

    Raises
    ------
    ValueError
        If `start` is not a power of two from 1 to 2²⁴, or another `DynamicScale` is
        inside.
    """

    optimizer: Optimizer
    start: float = 2.0**15
    _: KW_ONLY
    every: int = 2000

    is_outermost = True

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_outermost(self)
        expect_number("start", self.start, 1.0, 2.0 * _LARGEST)
        is_power = frexp(self.start)[0] == 0.5
        expect(is_power, "expected start, a power of two, got {}", self.start)
        expect_count("every", self.every)
        set_fields(self, start=float(self.start))

    @property
    def terms(self) -> int:
        """The terms of `Accumulate` inside, or 1."""
        return getattr(self.optimizer, "terms", 1)

    def init(self, params: Params) -> Moments:
        inner = self.optimizer.init(params)
        taken = zero_step(params)
        like = first_leaf(params)
        xp = namespace(like)
        scale = xp.full((), int(self.start), dtype=xp.int32, device=device(like))
        return {"loss_scale": scale, "taken": taken, "inner": inner}

    def update(
        self, params: Params, grads: Any, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        """Return new `params` and `moments` after a step with G, which is finite."""
        inverse = 1.0 / self.scale(moments)

        def unscaled(g: Array) -> Array:
            g = widened(g)
            return g * namespace(g).astype(inverse, g.dtype)

        update = bind_divisor(self.optimizer, divisor)
        wide = tree_map(widened, (params, moments["inner"]))
        new_params, inner = update(wide[0], tree_map(unscaled, grads), wide[1])
        scale = moments["loss_scale"]
        xp = namespace(scale)
        taken = moments["taken"] + 1
        is_due = taken >= self.every
        can_rise = xp.logical_and(is_due, scale < int(_LARGEST))
        return tree_map(narrowed, new_params, params), {
            "loss_scale": xp.where(can_rise, 2 * scale, scale),
            "taken": xp.where(is_due, xp.zeros_like(taken), taken),
            "inner": tree_map(narrowed, inner, moments["inner"]),
        }

    def scale(self, moments: Moments) -> Array:
        """Return S, a 0-d array of float32."""
        scale = moments["loss_scale"]
        return namespace(scale).astype(scale, namespace(scale).float32)

    def scaled(self, dy: Any, moments: Moments) -> Any:
        """Return S · dy."""
        scale = self.scale(moments)

        def times_scale(leaf: Any) -> Any:
            if leaf is None or not _is_real(leaf):
                return leaf
            return leaf * namespace(leaf).astype(scale, leaf.dtype)

        return tree_map(times_scale, dy)

    def can_fall(self, moments: Moments) -> Array:
        """Return whether S is above its lower bound, as a 0-d boolean."""
        return moments["loss_scale"] > 1

    def lowered(self, moments: Moments, overflowed: Array) -> Moments:
        """Return the moments after a step that was skipped, if `overflowed` is true.

        overflowed: a 0-d boolean, whether G is not finite although the loss is.
        """
        scale = moments["loss_scale"]
        taken = moments["taken"]
        xp = namespace(scale)
        falls = xp.logical_and(overflowed, scale > 1)
        return {
            "loss_scale": xp.where(falls, scale // 2, scale),
            "taken": xp.where(overflowed, xp.zeros_like(taken), taken),
            "inner": moments["inner"],
        }

    @staticmethod
    def scale_in(moments: Moments) -> Array | None:
        """Return S in the moments of nested optimizers as an integer, or None."""
        scales = (
            each["loss_scale"]
            for each in nested_moments(moments)
            if isinstance(each, dict) and "loss_scale" in each
        )
        return next(scales, None)


def _is_real(leaf: Array) -> bool:
    xp = namespace(leaf)
    return bool(xp.isdtype(leaf.dtype, "real floating"))
