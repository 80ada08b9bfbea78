"""BatchFeeder: pads batches, moves them to the device, and chooses the step to call."""

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

__all__ = ["Augment", "BatchFeeder", "multiplications_per_row", "to_device"]

# (x, target, generator) -> changed (x, target)
Augment = Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]
# number of batches, step function and its arguments except the carry
_Call = tuple[Any, ...]

# Limits of the steps that are taken by one call: the number of multiplications, which
# amount to some milliseconds, and the bytes of x.
_MAX_MULTIPLICATIONS = 2**27
_MAX_BYTES = 2**22


@dataclass(frozen=True)
class BatchFeeder:
    """Yields, for each call of a step, the step function and its arguments except the carry.

    step takes one batch, and steps takes several, see `make_loop`. augment: the user's
    function, or None; its generator is fixed by `seed`. check(x, target, weights):
    turns the result of augment into examples. rows_for: from the length of a
    user-supplied batch to that which it is padded to. multiplications(): about how many
    a step takes for each row. together: whether `steps` may be used.
    """

    source: StoredBatches | StreamedBatches
    validator: InputValidator
    step: Callable[..., Any]
    steps: Callable[..., Any]
    augment: Augment | None
    check: Callable[..., Examples]
    rows_for: Callable[[int], int]
    multiplications: Callable[[], int]
    seed: int
    together: bool

    def epoch(self, number: int, first: int, limit: int | None) -> Iterator[_Call]:
        """Yield (number of batches, step function, *arguments) for each call.

        These are the batches of epoch `number` from
        batch `first` on, at most `limit` of them.
        """
        source = self.source
        can_loop = self.together and self.validator.backend.compiles
        if isinstance(source, StoredBatches) and self.augment is None and can_loop:
            together = self._steps_per_call(source, limit)
            if together > 1:
                return self._in_groups(source, number, first, limit, together)
        return self._one_by_one(number, first, limit)

    def _one_by_one(self, epoch: int, first: int, limit: int | None) -> Iterator[_Call]:
        source = self.source
        validator = self.validator
        for number, examples in enumerate(source.epoch(epoch, first, limit), first):
            if self.augment is not None:
                generator = np.random.default_rng((self.seed, epoch, number))
                examples = self._augmented(self.augment, examples, generator)
            if isinstance(source, StoredBatches):
                rows = source.batch_size
                needs_counts = validator.has_short_batch(len(source.examples), rows)
            else:
                rows = self.rows_for(len(examples))
                # Any batch may be short, so all of them have counts where the loss
                # allows it: the step is then compiled once.
                needs_counts = validator.takes_weights or len(examples) < rows
                if needs_counts:
                    sizes = f"of {len(examples)} examples where others had {rows},"
                    validator.expect_weights(f"a short batch, {sizes}")
            yield 1, self.step, *to_device(validator, examples, rows, needs_counts)

    def _in_groups(
        self,
        source: StoredBatches,
        epoch: int,
        first: int,
        limit: int | None,
        together: int,
    ) -> Iterator[_Call]:
        """Yield the arguments of `steps`, which takes `together` batches by one call.

        On a backend that compiles loops, such a call has the overhead of one step. The
        size of a group depends only on the sizes of the data, so results are
        reproducible to the last bit.
        """
        backend = self.validator.backend
        shape = (together, source.batch_size)
        needs_counts = self.validator.has_short_batch(
            len(source.examples), source.batch_size
        )
        for sizes, examples in source.groups(epoch, first, limit, together):
            # () stands for None: see `make_loop`
            x, target, weights = tree_map(
                lambda leaf: (
                    () if leaf is None else leaf.reshape(*shape, *leaf.shape[1:])
                ),
                (examples.x, examples.target, examples.weights),
            )
            new = len(sizes)
            due = np.arange(together) < new
            counts: Any = ()
            if needs_counts:
                sizes += sizes[-1:] * (together - new)
                counts = np.arange(source.batch_size) < np.asarray(sizes)[:, None]
                counts = counts.astype(self.validator.dtype)
            if needs_counts and not isinstance(weights, tuple):
                weights = weights * counts.reshape(*shape, *(1,) * (weights.ndim - 2))
            batches = backend.asarray((x, target, counts, weights))
            yield new, self.steps, backend.asarray(due), batches

    def _steps_per_call(self, source: StoredBatches, limit: int | None) -> int:
        """Return how many steps to take by one call.

        It divides the epoch, or the `limit` steps
        of it, into calls of nearly equal length.
        """
        count = source.count if limit is None else min(limit, source.count)
        nbytes: int = sum(leaf[:1].nbytes for leaf in leaves((source.examples.x,)))
        # per row, either may be 0 if an axis has length 0
        by_work = _MAX_MULTIPLICATIONS // max(
            1, self.multiplications() * source.batch_size
        )
        by_memory = _MAX_BYTES // max(1, nbytes * source.batch_size)
        most = max(1, min(count, by_work, by_memory))
        calls = math.ceil(count / most)
        return math.ceil(count / calls)

    def _augmented(
        self, augment: Augment, examples: Examples, generator: np.random.Generator
    ) -> Examples:
        result = augment(examples.x, examples.target, generator)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"expected augment to return (x, target), got {type(result).__name__}"
            )
        try:
            changed = self.check(*result, examples.weights)
        except (TypeError, ValueError) as error:
            error.add_note("in the result of augment")
            raise
        if len(changed) != len(examples):
            raise ValueError(
                f"augment turned {len(examples)} examples into {len(changed)}"
            )
        return changed


def multiplications_per_row(model: Layer, params: Params, shape: Shape) -> int:
    """Estimate the multiplications of a step per example: 3 per parameter and position of x."""

    def positions(leaf: np.ndarray, kind: str) -> int:
        return math.prod(leaf.shape if kind == "integral" else leaf.shape[:-1])

    parameters: int = sum(map(size, leaves(params)))
    example = shape_map(np.empty, shape)
    counts: list[int] = leaves(
        tree_map(positions, example, kinds(model.input_kinds, example))
    )
    return 3 * parameters * max(counts)


def to_device(
    validator: InputValidator, examples: Examples, rows: int, needs_counts: bool
) -> list[Array | None]:
    """Return x, target, counts and weights on the backend, padded to `rows`.

    counts: 1 for each example and 0 for each padding row, or None.
    """
    size = len(examples)
    examples = examples if size == rows else padded(examples, rows)
    counts = (np.arange(rows) < size).astype(validator.dtype) if needs_counts else None
    weights = examples.weights
    if weights is not None and counts is not None:
        weights = weights * counts.reshape(-1, *(1,) * (weights.ndim - 1))
    host = (examples.x, examples.target, counts, weights)
    return [None if part is None else validator.backend.asarray(part) for part in host]
