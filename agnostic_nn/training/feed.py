"""Feeding: batches on their way from the host to a step on the device."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.arrays import Array, Params, Shape, size
from ..core.trees import leaves, shape_map, tree_map
from ..layers import Layer
from ..layers.base import kinds
from .batches import Examples, StoredBatches, StreamedBatches, padded
from .validation import InputValidator

__all__ = ["BatchFeeder", "multiplications_per_row", "to_device"]

# steps taken together: at most so many multiplications, some milliseconds, and bytes of x
_MAX_MULTIPLICATIONS, _MAX_BYTES = 2**27, 2**22


@dataclass(frozen=True)
class BatchFeeder:
    """For each call of a step its function and its arguments, but for the carry.

    step takes one batch, and steps many, as `in_turn` says. augment: a user's own, fixed by
    `seed`. check(x, target, weights) makes examples of what that returns. rows_for: from the
    length of a user's own batch to that which it is filled up to. work() tells about how many
    multiplications a step takes for each row. together: whether `steps` may be used.
    """

    source: StoredBatches | StreamedBatches
    validator: InputValidator
    step: Callable
    steps: Callable
    augment: Callable | None
    check: Callable[..., Examples]
    rows_for: Callable[[int], int]
    work: Callable[[], int]
    seed: int
    together: bool

    def epoch(self, number: int, first: int, limit: int | None) -> Iterator[tuple]:
        """From batch `first` of epoch `number` on, at most `limit` batches.

        Each entry: how many batches it holds, the function, and its arguments.
        """
        source = self.source
        compiles = self.together and self.validator.backend.compiles
        if isinstance(source, StoredBatches) and self.augment is None and compiles:
            together = self._together(source, limit)
            if together > 1:
                return self._gathered(source, number, first, limit, together)
        return self._one_by_one(number, first, limit)

    def _one_by_one(self, epoch: int, first: int, limit: int | None) -> Iterator[tuple]:
        source, validator = self.source, self.validator
        for number, examples in enumerate(source.epoch(epoch, first, limit), first):
            if self.augment is not None:
                generator = np.random.default_rng((self.seed, epoch, number))
                examples = self._augmented(self.augment, examples, generator)
            if isinstance(source, StoredBatches):
                rows = source.batch_size
                ragged = validator.has_short_batch(len(source.examples), rows)
            else:
                rows = self.rows_for(len(examples))
                ragged = (
                    validator.takes_weights or len(examples) < rows
                )  # lest a short one is the first
                if ragged:
                    who = f"of {len(examples)} examples where others had {rows},"
                    validator.expect_weights(f"a short batch, {who}")
            yield 1, self.step, *to_device(validator, examples, rows, ragged)

    def _gathered(
        self, source: StoredBatches, epoch: int, first: int, limit: int | None, together: int
    ) -> Iterator[tuple]:
        """Many batches by one call.

        Where the backend compiles loops, that costs as much as one small step. How many it
        is depends on sizes alone, and so does the last bit.
        """
        backend, shape = self.validator.backend, (together, source.batch_size)
        ragged = self.validator.has_short_batch(len(source.examples), source.batch_size)
        for sizes, examples in source.stretches(epoch, first, limit, together):
            x, target, weights = tree_map(
                lambda leaf: () if leaf is None else leaf.reshape(*shape, *leaf.shape[1:]),
                (examples.x, examples.target, examples.weights),
            )
            new = len(sizes)
            due = np.arange(together) < new
            counts: Any = ()
            if ragged:
                sizes += sizes[-1:] * (together - len(sizes))
                counts = np.arange(shape[1]) < np.asarray(sizes)[:, None]
                counts = counts.astype(self.validator.dtype)
            if ragged and not isinstance(weights, tuple):
                weights = weights * counts.reshape(*shape, *(1,) * (weights.ndim - 2))
            there = backend.asarray((x, target, counts, weights))
            yield new, self.steps, backend.asarray(due), there

    def _together(self, source: StoredBatches, limit: int | None) -> int:
        """How many steps to take by one call: an even share of an epoch, or of `limit` steps."""
        count = source.count if limit is None else min(limit, source.count)
        size = sum(leaf[:1].nbytes for leaf in leaves((source.examples.x,)))
        costs = (
            (_MAX_MULTIPLICATIONS, self.work()),
            (_MAX_BYTES, size),
        )  # either is 0 where an axis has no length
        most = min(count, *(all_of // max(1, one * source.batch_size) for all_of, one in costs))
        return math.ceil(count / math.ceil(count / max(1, most)))

    def _augmented(self, augment: Callable, examples: Examples, generator: Any) -> Examples:
        found = augment(examples.x, examples.target, generator)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(f"expected augment to return (x, target), got {type(found).__name__}")
        try:
            changed = self.check(*found, examples.weights)
        except (TypeError, ValueError) as error:
            error.add_note("in what augment returned")
            raise
        if len(changed) != len(examples):
            raise ValueError(f"augment turned {len(examples)} examples into {len(changed)}")
        return changed


def multiplications_per_row(model: Layer, params: Params, shape: Shape) -> int:
    """About how many multiplications a step takes: three a parameter and position of x."""

    def positions(one, kind):
        return math.prod(one.shape if kind == "integral" else one.shape[:-1])

    parameters = sum(map(size, leaves(params)))
    one = shape_map(np.empty, shape)
    return 3 * parameters * max(leaves(tree_map(positions, one, kinds(model.input_kinds, one))))


def to_device(
    validator: InputValidator, examples: Examples, rows: int, counted: bool
) -> list[Array | None]:
    """Examples on the backend, filled up to `rows`: x, target, counts and weights."""
    size = len(examples)
    examples = examples if size == rows else padded(examples, rows)
    counts = (np.arange(rows) < size).astype(validator.dtype) if counted else None
    weights = examples.weights
    if weights is not None and counts is not None:
        weights = weights * counts.reshape(-1, *(1,) * (weights.ndim - 1))
    host = (examples.x, examples.target, counts, weights)
    return [None if part is None else validator.backend.asarray(part) for part in host]
