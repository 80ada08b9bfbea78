"""BatchFeeder: pads batches, moves them to the device, and chooses the step to call."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Array, Params, Shape, namespace, size
from ..core.backend import Backend
from ..core.trees import leaves, shape_map, tree_map
from ..layers import Layer
from ..layers.base import kinds
from .batches import Examples
from .input_shapes import shape_text
from .validation import InputValidator

__all__ = [
    "Augment",
    "BatchFeeder",
    "Call",
    "longest_so_far",
    "multiplications_per_row",
    "padded",
    "to_device",
]

# (x, target, generator) -> changed (x, target)
Augment = Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]

# Limits of the steps that are taken by one call: the number of multiplications, which
# amount to some milliseconds, and the bytes of x.
_MAX_MULTIPLICATIONS = 2**27
_MAX_BYTES = 2**22
# the number of shapes for which the longest batch is remembered
_MAX_SHAPES = 1024


class Call(NamedTuple):
    """A call of a step that is to be made.

    sizes: the number of examples in each batch that it takes. is_loop: whether it is a
    call of the loop over several batches, see `make_loop`. args: the arguments except
    the carry.
    """

    sizes: tuple[int, ...]
    is_loop: bool
    args: tuple[Any, ...]


@dataclass(frozen=True)
class BatchFeeder:
    """Turns batches of examples into the arguments of the steps.

    batch_size, count: the number of examples in each batch and of all of them, or 0 for
    batches that a user supplies. rows_for: from such a batch to the length which it is
    padded to. augment: the user's function, or None; its generator is fixed
    by `seed`. check(x, target, weights): turns its result into examples.
    multiplications(): about how many a step takes for each row. together: whether one
    call may take several steps.
    """

    validator: InputValidator
    batch_size: int
    count: int
    rows_for: Callable[[Examples], int]
    augment: Augment | None
    check: Callable[..., Examples]
    multiplications: Callable[[], int]
    seed: int
    together: bool

    def steps_per_call(self, count: int, example_bytes: int) -> int:
        """Return how many of `count` steps to take by one call.

        It divides them into calls of nearly equal length. On a backend that compiles
        loops, such a call has the overhead of one step.
        """
        if not self.batch_size or self.augment is not None:
            return 1
        if not (self.together and self.validator.backend.compiles):
            return 1
        # per row, either may be 0 if an axis has length 0
        row_work = max(1, self.multiplications() * self.batch_size)
        row_bytes = max(1, example_bytes * self.batch_size)
        by_work = _MAX_MULTIPLICATIONS // row_work
        by_memory = _MAX_BYTES // row_bytes
        most = max(1, min(count, by_work, by_memory))
        calls = math.ceil(count / most)
        return math.ceil(count / calls)

    def single(self, epoch: int, number: int, examples: Examples) -> Call:
        """Return the call that takes batch `number` of an epoch."""
        if self.augment is not None:
            generator = np.random.default_rng((self.seed, epoch, number))
            examples = self._augmented(self.augment, examples, generator)
        validator = self.validator
        if self.batch_size:
            rows = self.batch_size
            needs_counts = self._has_short_batch(rows)
        else:
            rows = self.rows_for(examples)
            # Any batch may be short, so all of them have counts where the loss allows
            # it: the step is then compiled once.
            needs_counts = validator.takes_weights or len(examples) < rows
            if needs_counts:
                sizes = f"of {len(examples)} examples where others had {rows},"
                validator.expect_weights(f"a short batch, {sizes}")
        args = to_device(validator, examples, rows, needs_counts)
        return Call((len(examples),), False, tuple(args))

    def group(self, sizes: list[int], examples: Examples, together: int) -> Call:
        """Return the call that takes a group of `together` batches: see `groups`.

        The size of a group depends only on the sizes of the data, so results are
        reproducible to the last bit.
        """
        backend = self.validator.backend
        rows = self.batch_size
        shape = (together, rows)

        def divided(leaf: Any) -> Any:
            if leaf is None:
                return ()  # stands for None: see `make_loop`
            return _reshaped(backend, leaf, (*shape, *leaf.shape[1:]))

        x = tree_map(divided, examples.x)
        target = tree_map(divided, examples.target)
        weights = divided(examples.weights)
        count = len(sizes)
        due = np.arange(together) < count
        counts: Any = ()
        if self._has_short_batch(rows):
            padded_sizes = sizes + sizes[-1:] * (together - count)
            is_example = np.arange(rows) < np.asarray(padded_sizes)[:, None]
            counts = is_example.astype(self.validator.dtype)
            if examples.weights is not None:
                weights = _times_counts(backend, weights, counts)
        batches = backend.moved((x, target, counts, weights))
        return Call(tuple(sizes), True, (backend.asarray(due), batches))

    def _has_short_batch(self, rows: int) -> bool:
        return self.validator.has_short_batch(self.count, rows)

    def _augmented(
        self, augment: Augment, examples: Examples, generator: np.random.Generator
    ) -> Examples:
        examples = examples.on_host()
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


def longest_so_far(lengths: dict[str, int], examples: Examples) -> int:
    """Return the length of the longest batch so far with examples of these shapes.

    lengths: those so far, by the shapes; this updates it. Batches of each shape are
    padded to one length, so that a step is compiled once for each shape.
    """
    targets = tree_map(lambda leaf: tuple(leaf.shape[1:]), examples.target)
    shapes = f"{shape_text(examples.shape)} -> {shape_text(targets)}"
    longest = max(lengths.pop(shapes, 0), len(examples))
    while len(lengths) >= _MAX_SHAPES:
        del lengths[next(iter(lengths))]
    lengths[shapes] = longest
    return longest


def multiplications_per_row(model: Layer, params: Params, shape: Shape) -> int:
    """Estimate the multiplications of a step for one example.

    They are 3 for each parameter and each position of x.
    """

    def positions(leaf: np.ndarray, kind: str) -> int:
        return math.prod(leaf.shape if kind == "integral" else leaf.shape[:-1])

    parameters: int = sum(map(size, leaves(params)))
    example = shape_map(np.empty, shape)
    counts: list[int] = leaves(
        tree_map(positions, example, kinds(model.input_kinds, example))
    )
    return 3 * parameters * max(counts)


def padded(examples: Examples, count: int) -> Examples:
    """Return `examples` padded to `count` by repeating the last one.

    Padding rows do not count in the loss, but layers compute with them, so they hold
    real data.
    """
    return examples[np.minimum(np.arange(count), len(examples) - 1)]


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
    backend = validator.backend
    if weights is not None and counts is not None:
        weights = _times_counts(backend, weights, counts)
    parts = (examples.x, examples.target, counts, weights)
    return [None if part is None else backend.moved(part) for part in parts]


def _reshaped(backend: Backend, array: Any, shape: Shape) -> Any:
    """Return an array of the host or the backend in another shape, where it is."""
    return backend.without_policy(namespace(array).reshape)(array, shape)


def _times_counts(backend: Backend, weights: Any, counts: np.ndarray) -> Any:
    """Return weights · counts, where the weights are; they may have more axes."""
    shape = (*counts.shape, *(1,) * (weights.ndim - counts.ndim))
    factors: Any = counts.reshape(shape)
    if not isinstance(weights, np.ndarray):
        factors = backend.asarray(factors)
    return backend.without_policy(operator.mul)(weights, factors)
