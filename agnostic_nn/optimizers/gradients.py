"""Wrappers that clip, penalize or accumulate the gradients of another optimizer."""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from ..core.arrays import Array, Moments, Params, device, namespace
from ..core.errors import expect_count, expect_number, expect_positive
from ..core.fields import set_fields
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
    """Base class of wrappers that clip gradients at a `limit`, without moments."""

    optimizer: Optimizer
    limit: float = 1.0

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_positive("limit", self.limit)

    def init(self, params: Params) -> Moments:
        return self.optimizer.init(params)

    def update(
        self, params: Params, grads: Params, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        update = bind_divisor(self.optimizer, divisor)
        return update(params, self._clipped(grads), moments)

    def _clipped(self, grads: Params) -> Params:
        raise NotImplementedError

    def _rescaled(self, *grads: Array) -> list[Array]:
        """Return the arrays, scaled down together if their norm exceeds the limit.

        `scaled_norm` returns the norm as a product m l, with l ≥ 1 unless all of g
        is 0. The norm itself may overflow, but neither limit / l, with which m is
        compared, nor a factor of g limit / (m l) = (g / m) (limit / l) does.
        """
        m, length = scaled_norm(*grads)
        xp = namespace(m)
        length = xp.maximum(length, 1.0)
        is_short = m <= self.limit / length
        ones = xp.ones_like(m)
        # short gradients are divided by 1 and multiplied by limit / limit = 1
        divisor = xp.where(is_short, ones, m)
        factor = self.limit / xp.where(is_short, self.limit * ones, length)
        return [g / divisor * factor for g in grads]


@dataclass(frozen=True)
class ClipByValue(_Clip):
    """g ← min(max(g, -limit), limit), then a step of another optimizer.

    PyTorch: `clip_grad_value_`. Keras: `clipvalue`.
    """

    def _clipped(self, grads: Params) -> Params:
        return tree_map(lambda g: namespace(g).clip(g, -self.limit, self.limit), grads)


@dataclass(frozen=True)
class ClipByNorm(_Clip):
    """g ← g · limit / max(‖g‖, limit) leaf by leaf, then a step of another optimizer.

    ‖g‖² = Σ g² over one leaf. Pascanu et al., arXiv:1211.5063, Algorithm 1, applied to
    each leaf separately (Keras: `clipnorm`). ‖g‖² may overflow or underflow its dtype.
    A gradient that is not finite becomes NaN or 0.
    """

    def _clipped(self, grads: Params) -> Params:
        return tree_map(lambda g: self._rescaled(g)[0], grads)


@dataclass(frozen=True)
class ClipByGlobalNorm(_Clip):
    """g ← g · limit / max(‖g‖, limit), then a step of another optimizer.

    ‖g‖² = Σ g² over all parameters: one norm for all leaves. Pascanu et al.,
    arXiv:1211.5063, Algorithm 1 (PyTorch: `clip_grad_norm_`; Keras: `global_clipnorm`).
    ‖g‖² may overflow or underflow its dtype. A gradient that is not finite becomes NaN
    or 0.
    """

    def _clipped(self, grads: Params) -> Params:
        arrays: list[Array] = []
        tree_map(arrays.append, grads)
        rescaled = iter(self._rescaled(*arrays)) if arrays else iter(())
        return tree_map(lambda g: next(rescaled), grads)


@dataclass(frozen=True)
class L2:
    """g ← g + λ θ, the gradient of L + ½ λ ‖θ‖², then a step of another optimizer.

    λ is `penalty`. Most of PyTorch's optimizers call it `weight_decay`. The penalty
    enters the moments and adaptive rates of the other optimizer, while the weight decay
    of AdamW, Lion, LAMB, Adafactor and Muon does not. Leaves that `no_decay` names get
    no penalty (see `Rule`).
    """

    optimizer: Optimizer
    penalty: float = 1e-4
    _: KW_ONLY
    no_decay: tuple[str, ...] = NO_DECAY

    def __post_init__(self) -> None:
        expect_optimizer(self.optimizer)
        expect_number("penalty", self.penalty, 0.0)
        set_fields(self, no_decay=expect_paths("no_decay", self.no_decay))

    def init(self, params: Params) -> Moments:
        return self.optimizer.init(params)

    def update(
        self, params: Params, grads: Params, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        penalties = decays(params, self.penalty, self.no_decay)

        def add(p: Array, g: Array) -> Array:
            decay = next(penalties)
            return g + decay * p if decay else g

        update = bind_divisor(self.optimizer, divisor)
        return update(params, tree_map(add, params, grads), moments)


@dataclass(frozen=True)
class Accumulate:
    """Gradient accumulation: a step of another optimizer for every `every` batches.

        s ← s + d g        D ← D + d

    and at every k-th batch a step with s / D, then s, D ← 0. k is `every`. The
    parameters do not change in between. d is the divisor of the loss: the sum of the
    weights of the examples that count, by which the mean over the batch was divided.
    `Trainer` and `make_step` pass it on. So k batches have the effect of one batch with
    all their examples, up to rounding, also with ignored labels, class or example
    weights, and batches of different sizes. Layers that mix the examples of a batch,
    such as BatchNorm, are an exception. For a loss with reduction="sum", s ← s + g, and
    the step uses s. If d or D is 0, because no example counts, it is replaced by 1 as a
    factor or divisor. If `update` is called without d, all batches count the same.

    The losses of several outputs may have divisors whose ratio changes from batch to
    batch, such as if only one of them ignores labels. Then pass `terms`, the number of
    losses in `Losses`: each loss Lₙ gets its own sum and divisor, and g = Σₙ sₙ / Dₙ.
    Each step then runs the backward pass once per loss, and the moments hold one tree
    like the parameters per loss.

    Optimizers inside get the accumulated gradient; wrappers around `Accumulate`, such
    as `ClipByNorm` or `L2`, get that of each batch. A schedule inside counts steps, not
    batches. If training ends between two steps, the sums stay in the moments: they are
    saved, and the next `fit` continues with them.

    Moments are the `count` of batches in s, a 0-d integer; s as `total`, D as
    `divisor`; and those of the other optimizer as `inner`. With several terms, `total`
    and `divisor` are tuples.

    Raises
    ------
    ValueError
        If `terms` is above 1 and there is another `Accumulate` inside. In a training
        step, if the ratio of the divisors of several losses may change from batch to
        batch, and `terms` is not the number of losses or there is a wrapper around
        this optimizer.
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
                "expected an optimizer that does not join batches inside "
                f"Accumulate(..., terms={self.terms}), got {self.optimizer!r}: set "
                "`every` of one Accumulate to the product of both"
            )

    def init(self, params: Params) -> Moments:
        inner = self.optimizer.init(params)
        count = zero_step(params)
        like = first_leaf(params)
        zero = partial(namespace(like).zeros, (), dtype=like.dtype, device=device(like))
        sums = [(tree_map(zeros, params), zero()) for _ in range(self.terms)]
        return {"count": count, "inner": inner} | self._named(sums)

    def _sums(self, moments: Moments) -> list[tuple[Params, Array]]:
        """Return a list of (s, D), one for each term."""
        total = moments["total"]
        divisor = moments["divisor"]
        if self.terms > 1:
            return list(zip(total, divisor, strict=True))
        return [(total, divisor)]

    def _named(self, sums: list[tuple[Params, Array]]) -> Moments:
        """Return the moments from which `_sums` makes this list."""
        total: Any
        divisor: Any
        if self.terms > 1:
            total, divisor = zip(*sums, strict=True)
        else:
            total, divisor = sums[0]
        return {"total": total, "divisor": divisor}

    def update(
        self, params: Params, grads: Any, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        """Return new `params` and `moments` after one batch.

        If `divisor` is a tuple with one divisor per term, `grads` is a tuple of trees.
        """
        count = moments["count"] + 1
        if isinstance(divisor, tuple):
            trees = grads
            divisors = divisor
        else:
            # the gradient of the whole loss is added to the first sum
            trees = (grads,)
            divisors = (divisor,) * self.terms
        sums = []
        for i, (s, d) in enumerate(self._sums(moments)):
            if i < len(trees):
                s = _add_gradient(s, trees[i], divisors[i])
            sums.append((s, _add_divisor(d, divisors[i])))

        def step() -> tuple[Params, Moments]:
            terms = zip(sums, divisors, strict=True)
            means = [_mean(s, d, of_batch) for (s, d), of_batch in terms]
            mean = tree_map(lambda *grads: sum(grads[1:], grads[0]), *means)
            has_divisor = self.terms == 1 and divisor is not None
            update = bind_divisor(self.optimizer, sums[0][1] if has_divisor else None)
            moved, inner = update(params, mean, moments["inner"])
            zero_sums = [tree_map(zeros, pair) for pair in sums]
            new = {"count": count - self.every, "inner": inner}
            return moved, new | self._named(zero_sums)

        accumulated = {"count": count, "inner": moments["inner"]} | self._named(sums)
        is_due = count == self.every
        updated: tuple[Params, Moments] = select(is_due, step, (params, accumulated))
        return updated


def _add_gradient(total: Params, grads: Params, divisor: Any) -> Params:
    """Return s + d g, or s + g for a loss that is a sum, which has no divisor."""
    factor = 1 if divisor is None else _or_one(divisor)
    return tree_map(lambda s, g: s + _times(g, factor), total, grads)


def _add_divisor(total: Array, divisor: Any) -> Array:
    """Return D + d, or D for a loss that is a sum."""
    return total if divisor is None else total + _in_dtype_of(total, divisor)


def _mean(total: Params, total_divisor: Array, divisor: Any) -> Params:
    """Return s / D, or s for a loss that is a sum."""
    if divisor is None:
        return total
    nonzero = _or_one(total_divisor)
    return tree_map(lambda s: s / _in_dtype_of(s, nonzero), total)


def _or_one(divisor: Any) -> Any:
    """Return the divisor, or 1 if it is 0 because no example counts."""
    if type(divisor) in (int, float):
        return divisor or 1.0
    return namespace(divisor).where(divisor != 0, divisor, 1.0)


def _times(g: Array, factor: Any) -> Array:
    if type(factor) in (int, float):
        return g if factor == 1 else factor * g
    return _in_dtype_of(g, factor) * g


def _in_dtype_of(array: Array, number: Any) -> Any:
    """Return a number or 0-d array in the dtype of `array`."""
    if type(number) in (int, float) or number.dtype == array.dtype:
        return number
    return namespace(number).astype(number, array.dtype)
