"""Gradients, before an optimizer gets them: clipped, with a penalty, or summed up."""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from ..core.arrays import Array, device, namespace
from ..core.errors import expect_count, expect_number, expect_positive
from ..core.trees import tree_map
from ..ops import scaled_norm, select
from .base import (
    NO_DECAY,
    Optimizer,
    bind_divisor,
    decays,
    expect_optimizer,
    expect_paths,
    first_leaf,
    uses_divisor,
    zero_step,
    zeros,
)

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

    def update(self, params, grads, moments, divisor=1.0):
        return bind_divisor(self.optimizer, divisor)(params, self._held(grads), moments)

    def _held(self, grads: Any) -> Any:
        raise NotImplementedError

    def _shrink(self, *grads: Array) -> list[Array]:
        """Scale arrays so that their common norm n is at most the limit.

        With n = m l as in `scaled_norm`, g limit / n is (g / m) (limit / l), of which no part
        overflows; nor does limit / l, with which m is compared, as l is at least 1 unless all
        of g is 0.
        """
        largest, length = scaled_norm(*grads)
        xp = namespace(largest)
        length = xp.maximum(length, 1.0)
        fits = largest <= self.limit / length
        one = xp.ones_like(largest)
        divisor = xp.where(fits, one, largest)
        factor = self.limit / xp.where(fits, self.limit * one, length)
        return [g / divisor * factor for g in grads]


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

    Pascanu et al., arXiv:1211.5063, Algorithm 1, for each leaf alone. ‖g‖² may overflow or
    underflow its dtype; a gradient that is not finite gives NaN or 0.
    """

    def _held(self, grads):
        return tree_map(lambda g: self._shrink(g)[0], grads)


@dataclass(frozen=True)
class ClipByGlobalNorm(_Clip):
    """Another optimizer, given gradients whose common norm is at most `limit`.

        g ← g · limit / max(‖g‖, limit)        ‖g‖² = Σ g² over all parameters

    Pascanu et al., arXiv:1211.5063, Algorithm 1, with one norm for the whole tree. ‖g‖² may
    overflow or underflow its dtype; a gradient that is not finite gives NaN or 0.
    """

    def _held(self, grads):
        found: list[Array] = []
        tree_map(found.append, grads)
        held = iter(self._shrink(*found)) if found else iter(())
        return tree_map(lambda g: next(held), grads)


@dataclass(frozen=True)
class L2:
    """Another optimizer, given the gradient of L + ½ λ ‖θ‖², λ being `penalty`.

        g ← g + λ θ

    What PyTorch calls `weight_decay` in most of its optimizers. It passes through moments
    and adaptive rates; AdamW, Lion, LAMB, Adafactor and Muon decay weights beside these. Leaves
    that `no_decay` names are left out (see `Rule`).
    """

    optimizer: Optimizer
    penalty: float = 1e-4
    _: KW_ONLY
    no_decay: tuple[str, ...] = NO_DECAY

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_number("penalty", self.penalty, 0.0)
        object.__setattr__(self, "no_decay", expect_paths("no_decay", self.no_decay))

    def init(self, params):
        return self.optimizer.init(params)

    def update(self, params, grads, moments, divisor=1.0):
        numbers = decays(params, self.penalty, self.no_decay)

        def add(p, g):
            decay = next(numbers)
            return g + decay * p if decay else g

        return bind_divisor(self.optimizer, divisor)(params, tree_map(add, params, grads), moments)


@dataclass(frozen=True)
class Accumulate:
    """Another optimizer, given the gradient of `every` batches together at the last of them.

        s ← s + d g        D ← D + d        every k-th step: a step with g = s / D, s ← 0, D ← 0

    θ stands still between. d is what the loss of the batch was divided by: the examples that
    count, with their weights, which `make_step` and `Trainer` hand on. So k batches do what
    one batch of all their examples would, to rounding, also with ignored labels, weights of
    classes or examples, and batches of different sizes (but for layers that look across a
    batch, as BatchNorm does). Of a loss with reduction="sum", s ← s + g and the step is with s.
    Where d or D is 0, nothing counted, and 1 stands for it. `update` called without d takes
    all batches to count alike.

    Several outputs may divide by what does not stay in one ratio from batch to batch, as where
    one loss ignores labels and another does not. Then with `terms`, the number of losses in
    `Losses`, each loss Lₙ has a sum and a divisor: g = Σₙ sₙ / Dₙ. A step then runs the backward
    pass once for each loss, and moments hold a tree like the parameters for each.

    Optimizers inside see the joined gradient; `ClipByNorm` or `L2` around `Accumulate` see
    that of each batch. A schedule counts the steps that are taken. Batches left over at the
    end of training stay in the moments: they are saved, and the next `fit` goes on with them.

    Moments: `count` of batches in s, a 0-d integer, s as `total`, D as `divisor`, and those
    of the other optimizer as `inner`. With several terms `total` and `divisor` are tuples.

    Raises
    ------
    ValueError
        In a training step, if losses divide by what need not stay in one ratio from batch to
        batch, so that no one d is right, and `terms` is not their number or another optimizer
        is around this one; if `terms` is above 1 and an `Accumulate` is inside this one.
    """

    optimizer: Optimizer
    every: int
    _: KW_ONLY
    terms: int = 1

    uses_divisor = True

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_count("every", self.every)
        expect_count("terms", self.terms)
        if self.terms > 1 and uses_divisor(self.optimizer):
            raise ValueError(
                f"expected an optimizer that does not join batches inside Accumulate(..., "
                f"terms={self.terms}), got {self.optimizer!r}: set `every` of one Accumulate to "
                "the product of both"
            )

    def init(self, params):
        inner = self.optimizer.init(params)
        steps, like = zero_step(params), first_leaf(params)
        zero = partial(namespace(like).zeros, (), dtype=like.dtype, device=device(like))
        sums = [(tree_map(zeros, params), zero()) for _ in range(self.terms)]
        return {"count": steps, "inner": inner} | self._named(sums)

    def _sums(self, moments):
        """Return a list of (s, D), one for each term."""
        total, divisor = moments["total"], moments["divisor"]
        several = self.terms > 1
        return list(zip(total, divisor, strict=True)) if several else [(total, divisor)]

    def _named(self, sums):
        """Return moments that `_sums` takes apart."""
        if self.terms > 1:
            total, divisor = zip(*sums, strict=True)
        else:
            total, divisor = sums[0]
        return {"total": total, "divisor": divisor}

    def update(self, params, grads, moments, divisor=1.0):
        """One step; with a tuple of divisors, one a term, `grads` is a tuple of trees."""
        seen = moments["count"] + 1
        # gradients of a loss as a whole are all counted in the first sum
        trees = grads if isinstance(divisor, tuple) else (grads,)
        divisors = divisor if isinstance(divisor, tuple) else (divisor,) * self.terms
        sums = [
            (_added(s, trees[i], divisors[i]) if i < len(trees) else s, _joined(d, divisors[i]))
            for i, (s, d) in enumerate(self._sums(moments))
        ]

        def step():
            means = [_divided(*pair, by) for pair, by in zip(sums, divisors, strict=True)]
            mean = tree_map(lambda *parts: sum(parts[1:], parts[0]), *means)
            has_divisor = self.terms == 1 and divisor is not None
            update = bind_divisor(self.optimizer, sums[0][1] if has_divisor else None)
            moved, inner = update(params, mean, moments["inner"])
            started = [tree_map(zeros, pair) for pair in sums]
            return moved, {"count": seen - self.every, "inner": inner} | self._named(started)

        going = {"count": seen, "inner": moments["inner"]} | self._named(sums)
        return select(seen == self.every, step, (params, going))


def _added(total, grads, divisor):
    """Return s + d g, or s + g for a sum, which has no divisor."""
    factor = 1 if divisor is None else _or_one(divisor)
    return tree_map(lambda s, g: s + _times(g, factor), total, grads)


def _joined(joined, divisor):
    return joined if divisor is None else joined + _like(divisor, joined)


def _divided(total, joined, divisor):
    """Return s / D, or s for a sum."""
    if divisor is None:
        return total
    by = _or_one(joined)
    return tree_map(lambda s: s / _like(by, s), total)


def _or_one(divisor):
    """What a mean was divided by: its divisor, or 1 where nothing counts."""
    if type(divisor) in (int, float):
        return divisor or 1.0
    return namespace(divisor).where(divisor > 0, divisor, 1.0)


def _times(g, factor):
    if type(factor) in (int, float):
        return g if factor == 1 else factor * g
    return _like(factor, g) * g


def _like(number, array):
    """A number, or a 0-d array, in the dtype of `array`."""
    if type(number) in (int, float) or number.dtype == array.dtype:
        return number
    return namespace(number).astype(number, array.dtype)
