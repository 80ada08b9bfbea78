"""Gradients, before an optimizer gets them: clipped, with a penalty, or summed up."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..arrays import Array, expect_count, expect_number, expect_positive, namespace
from ..special import select
from ..trees import leaves, tree_map
from .base import SPARED, Optimizer, count, decays, expect_optimizer, expect_paths, zeros

__all__ = ["L2", "Accumulate", "ClipByGlobalNorm", "ClipByNorm", "ClipByValue"]


@dataclass(frozen=True)
class _Clip:
    """Another optimizer, with its own moments, given gradients held to a `limit`."""

    optimizer: Optimizer
    limit: float = 1.0

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_positive("limit", self.limit)

    def init(self, params):
        return self.optimizer.init(params)

    def update(self, params, grads, moments):
        return self.optimizer.update(params, self._held(grads), moments)

    def _held(self, grads: Any) -> Any:
        raise NotImplementedError

    def _shrink(self, square: Array) -> Array:
        """limit / max(n, limit), of a norm n whose square is given."""
        xp = namespace(square)
        return self.limit / xp.maximum(xp.sqrt(square), self.limit)


@dataclass(frozen=True)
class ClipByValue(_Clip):
    """Another optimizer, given gradients of which no number exceeds `limit`.

    g ← min(max(g, -limit), limit)
    """

    def _held(self, grads):
        return tree_map(lambda g: namespace(g).clip(g, -self.limit, self.limit), grads)


@dataclass(frozen=True)
class ClipByNorm(_Clip):
    """Another optimizer, given gradients whose norm is at most `limit`, leaf by leaf.

        g ← g · limit / max(‖g‖, limit)        ‖g‖² = Σ g² over one leaf

    Pascanu et al., arXiv:1211.5063, Algorithm 1, for each leaf alone. Where ‖g‖² overflows
    its dtype the step is taken with g = 0.
    """

    def _held(self, grads):
        return tree_map(lambda g: g * self._shrink(namespace(g).sum(g * g)), grads)


@dataclass(frozen=True)
class ClipByGlobalNorm(_Clip):
    """Another optimizer, given gradients whose common norm is at most `limit`.

        g ← g · limit / max(‖g‖, limit)        ‖g‖² = Σ g² over all parameters

    Pascanu et al., arXiv:1211.5063, Algorithm 1, with one norm for the whole tree. Where
    ‖g‖² overflows its dtype the step is taken with g = 0.
    """

    def _held(self, grads):
        shrink = self._shrink(sum(namespace(g).sum(g * g) for g in leaves(grads)))
        return tree_map(lambda g: g * shrink, grads)


@dataclass(frozen=True)
class L2:
    """Another optimizer, given the gradient of L + ½ λ ‖θ‖², λ being `penalty`.

        g ← g + λ θ

    What PyTorch calls `weight_decay` in most of its optimizers. It passes through moments
    and adaptive rates; AdamW, Lion, LAMB, Adafactor and Muon decay weights beside these. Leaves
    that `spares` names are left out (see `Rule`).
    """

    optimizer: Optimizer
    penalty: float = 1e-4
    _: KW_ONLY
    spares: tuple[str, ...] = SPARED

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_number("penalty", self.penalty, 0.0)
        object.__setattr__(self, "spares", expect_paths("spares", self.spares))

    def init(self, params):
        return self.optimizer.init(params)

    def update(self, params, grads, moments):
        numbers = decays(params, self.penalty, self.spares)

        def add(p, g):
            decay = next(numbers)
            return g + decay * p if decay else g

        return self.optimizer.update(params, tree_map(add, params, grads), moments)


@dataclass(frozen=True)
class Accumulate:
    """Another optimizer, given the mean gradient of `every` steps at the last of them.

        s ← s + g        at every k-th step: a step with g = s / k, and s ← 0

    θ stands still between. As the loss is a mean over examples, k batches of one size do
    what one batch of all their examples would (but for layers that look across a batch).
    A schedule counts the steps that are taken. Moments: `count` of gradients in s, a 0-d
    integer, s as `total`, and those of the other optimizer as `inner`.
    """

    optimizer: Optimizer
    every: int

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_count("every", self.every)

    def init(self, params):
        inner = self.optimizer.init(params)
        return {"count": count(params), "total": tree_map(zeros, params), "inner": inner}

    def update(self, params, grads, moments):
        seen = moments["count"] + 1
        total = tree_map(lambda s, g: s + g, moments["total"], grads)

        def step():
            mean = tree_map(lambda s: s / self.every, total)
            moved, inner = self.optimizer.update(params, mean, moments["inner"])
            return moved, {
                "count": seen - self.every,
                "total": tree_map(zeros, total),
                "inner": inner,
            }

        going = {"count": seen, "total": total, "inner": moments["inner"]}
        return select(seen == self.every, step, (params, going))
