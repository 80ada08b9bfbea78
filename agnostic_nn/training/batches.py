"""Batches: checked examples in batches of one size, or batches that a user supplies."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from operator import length_hint
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..core import random
from ..core.arrays import Array, namespace
from ..core.backend import Backend
from ..core.errors import described, expect_function
from ..core.trees import leaves, tree_map
from .inputs import BYTES, type_and_length
from .sources import is_read_in_parts

__all__ = [
    "EpochProgress",
    "Examples",
    "StoredBatches",
    "StreamedBatches",
    "batch_indices",
    "checked_batch",
    "epoch_order",
    "expect_batches",
    "is_sequence",
    "iterator_of",
    "prefetched",
]

_END = object()


class EpochProgress(NamedTuple):
    """Progress of the open epoch: the number of batches done, and their layout.

    User-supplied batches have batch_size 0, examples 0 and shuffled False. Without an
    open epoch batches_done is 0.
    """

    batches_done: int = 0
    batch_size: int = 0
    examples: int = 0
    shuffled: bool = True


@dataclass(frozen=True)
class Examples:
    """Checked examples: x, their targets, and their weights, or None.

    Arrays are on the host, or on the `backend`. `examples[rows]` selects examples where
    they are. It reads those of a file into memory, and converts their integers
    to int32, except those of 8 bits in x if `x_keeps_bytes`.
    """

    x: Any
    target: Any
    weights: Any = None
    backend: Backend | None = field(default=None, compare=False, repr=False)
    x_keeps_bytes: bool = False

    def __len__(self) -> int:
        count: int = leaves(self.x)[0].shape[0]
        return count

    def __getitem__(self, rows: Any) -> "Examples":
        select_there = self._selection(rows)

        def select(leaf: Any, keeps_bytes: bool = False) -> Any:
            in_parts = is_read_in_parts(leaf)
            if not (in_parts or isinstance(leaf, np.ndarray)):
                return select_there(leaf)
            part: np.ndarray = leaf[rows]
            is_kept = keeps_bytes and leaf.dtype.name in BYTES
            if not in_parts or is_kept:
                return np.asarray(part)
            dtype = (
                np.int32 if leaf.dtype.kind in "iu" else leaf.dtype.newbyteorder("=")
            )
            return np.asarray(part).astype(dtype, copy=False)

        weights = None if self.weights is None else select(self.weights)
        return replace(
            self,
            x=tree_map(partial(select, keeps_bytes=self.x_keeps_bytes), self.x),
            target=tree_map(select, self.target),
            weights=weights,
        )

    def _selection(self, rows: Any) -> Callable[[Array], Array]:
        """Return the function that selects rows of an array on the backend, there.

        Only the indices are moved, and those once.
        """
        index: list[Array] = []

        def select(leaf: Array) -> Array:
            assert self.backend is not None
            part = _as_slice(rows)
            if part is not None:
                start, stop, step = part.indices(leaf.shape[0])
                if (start, stop, step) == (0, leaf.shape[0], 1):
                    return leaf
                part = slice(start, stop, step)
                return self.backend.without_policy(_sliced)(leaf, part)
            if not index:  # all libraries have int32
                index.append(self.backend.asarray(np.asarray(rows, np.int32)))
            return self.backend.without_policy(_taken)(leaf, index[0])

        return select

    def on_host(self) -> "Examples":
        """Return the same examples on the host."""

        def fetched(leaf: Any) -> Any:
            if isinstance(leaf, np.ndarray) or is_read_in_parts(leaf):
                return leaf
            assert self.backend is not None
            return self.backend.to_numpy(leaf)

        x, target = tree_map(fetched, (self.x, self.target))
        weights = None if self.weights is None else fetched(self.weights)
        return replace(self, x=x, target=target, weights=weights)

    @property
    def shape(self) -> Any:
        """The shape of one x."""
        return tree_map(lambda leaf: tuple(leaf.shape[1:]), self.x)

    def in_memory(self) -> "Examples":
        """Return the same examples, those of a file read into memory."""
        arrays = leaves((self.x, self.target))
        return self[:] if any(map(is_read_in_parts, arrays)) else self


def _as_slice(rows: Any) -> slice | None:
    """Return the slice with the same rows, or None if they are not consecutive."""
    if isinstance(rows, slice):
        return rows
    start = int(rows[0]) if len(rows) else 0
    is_range = np.array_equal(rows, np.arange(start, start + len(rows)))
    return slice(start, start + len(rows)) if is_range else None


def _sliced(array: Array, rows: slice) -> Array:
    return array[rows, ...]


def _taken(array: Array, index: Array) -> Array:
    return namespace(array).take(array, index, axis=0)


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the random order of `count` examples, the same on every machine."""
    root = random.key(seed, xp=namespace(np.zeros(())))
    order: np.ndarray = random.permutation(random.fold(root, epoch), count)
    return order


def batch_indices(
    indices: np.ndarray, batch_size: int, first: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `indices` in batches, from batch `first` on, each with its size.

    All batches have the same length, so that a step is compiled once. The last one is
    padded by repeating its last index, which its size leaves out: layers compute with
    padding rows, so they hold real data.
    """
    for start in range(first * batch_size, len(indices), batch_size):
        rows = indices[start : start + batch_size]
        size = len(rows)
        if size < batch_size:
            rows = np.concatenate([rows, np.repeat(rows[-1:], batch_size - size)])
        yield rows, size


@dataclass(frozen=True)
class StoredBatches:
    """Divides examples into batches of one size: each example once in an epoch."""

    examples: Examples
    batch_size: int
    shuffle: bool
    seed: int

    @property
    def count(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self.examples) / self.batch_size)

    @property
    def layout(self) -> tuple[int, int, bool]:
        """Batch size, number of examples and whether shuffled; see `EpochProgress`."""
        return self.batch_size, len(self.examples), self.shuffle

    @property
    def example_bytes(self) -> int:
        """Bytes of the x of one example."""
        return sum(
            math.prod(leaf.shape[1:]) * getattr(leaf.dtype, "itemsize", 4)
            for leaf in leaves(self.examples.x)
        )

    def __str__(self) -> str:
        size, count, shuffle = self.layout
        return f"{count} examples in batches of {size} and shuffle={shuffle}"

    def expect_continues(self, open_epoch: EpochProgress, number: int) -> None:
        """Raise ValueError if the open epoch `number` was begun with other data."""
        _expect_layout(self, open_epoch, number)

    def epoch(
        self, number: int, first: int, limit: int | None = None
    ) -> Iterator[Examples]:
        """Yield at most `limit` batches of epoch `number`, from batch `first` on.

        The last batch may be shorter than the others.
        """
        for rows, size in self._rows(number, first, limit):
            yield self.examples[rows[:size]]

    def groups(
        self, number: int, first: int, limit: int | None, together: int
    ) -> Iterator[tuple[list[int], Examples]]:
        """Yield the same batches in groups of `together`: the sizes, and the examples.

        Short batches are padded as in `batch_indices`, and the last group with its last
        batch.
        """
        batches = self._rows(number, first, limit)
        while group := list(islice(batches, together)):
            rows = [rows for rows, _ in group]
            rows += rows[-1:] * (together - len(rows))
            yield [size for _, size in group], self.examples[np.concatenate(rows)]

    def _rows(
        self, number: int, first: int, limit: int | None
    ) -> Iterator[tuple[np.ndarray, int]]:
        count = len(self.examples)
        indices = (
            epoch_order(self.seed, number, count) if self.shuffle else np.arange(count)
        )
        return islice(batch_indices(indices, self.batch_size, first), limit)


@dataclass
class StreamedBatches:
    """Batches that a user supplies, each `(x, target)` or `(x, target, weights)`.

    source: an iterable, which is iterated again in each epoch; a function from the
    number of the epoch to an iterable; or an iterator, which can only continue where it
    stopped. steps: batches in an epoch, by default all of them. check: turns a batch
    into `Examples`. is_over: whether the last call of `epoch` reached the end of the
    epoch.
    """

    source: Any
    steps: int | None
    check: Callable[..., Examples]
    is_over: bool = False

    layout: ClassVar[tuple[int, int, bool]] = (0, 0, False)

    @property
    def count(self) -> int | None:
        """Batches in an epoch, or None if unknown."""
        return self.steps

    def __str__(self) -> str:
        return "user-supplied batches"

    def expect_continues(self, open_epoch: EpochProgress, number: int) -> None:
        """Raise ValueError if the open epoch `number` was begun with other data."""
        _expect_layout(self, open_epoch, number)

    def epoch(
        self, number: int, first: int, limit: int | None = None
    ) -> Iterator[Examples]:
        """Yield at most `limit` batches of epoch `number`, from batch `first` on.

        After `limit` batches, the end of the epoch is detected by drawing one more
        batch. An iterator would lose that batch, so its length hint is used instead.

        Raises
        ------
        ValueError
            If there are fewer than `steps`, or none at all.
        """
        self.is_over = False
        is_iterator = isinstance(self.source, Iterator)
        batches = iterator_of(self.source, number)
        position = first if is_iterator else 0
        # `islice` draws no batch that is not used: an iterator would lose it
        for batch in islice(
            batches, None if self.steps is None else self.steps - position
        ):
            try:
                examples = checked_batch(batch, self.check)
            except (TypeError, ValueError) as error:
                error.add_note(f"in batch {position + 1} of epoch {number + 1}")
                raise
            position += 1
            if position > first:
                yield examples
            if limit is not None and position - first == limit:
                self.is_over = self._ends_at(position, batches, is_iterator)
                return
        self.is_over = True
        is_short = position == 0 if self.steps is None else position < self.steps
        if is_short:
            expected = "" if self.steps is None else f" of {self.steps}"
            raise ValueError(
                f"the batches ended after {position}{expected} in epoch {number + 1}: "
                "an iterator can be used once; pass a function of the epoch that "
                "returns a new one"
            )

    def _ends_at(
        self, position: int, batches: Iterator[Any], is_iterator: bool
    ) -> bool:
        """Return whether the epoch ends after `position` batches."""
        if self.steps is not None:
            return position >= self.steps
        if is_iterator:
            return length_hint(batches, 1) == 0
        return next(batches, _END) is _END


def expect_batches(batches: Any) -> None:
    """Raise TypeError unless `batches` can be read, or is a function of the epoch."""
    if not (isinstance(batches, Iterable) or is_sequence(batches)):
        if not callable(batches):
            raise TypeError(
                f"expected batches as an iterable or a function, got {batches!r}"
            )
        expect_function("batches", batches, "epoch")


def is_sequence(batches: Any) -> bool:
    """Return whether `batches` has a length and items by number, but no iterator."""
    kind = type(batches)
    return hasattr(kind, "__len__") and hasattr(kind, "__getitem__")


def iterator_of(source: Any, epoch: int) -> Iterator[Any]:
    """Return an iterator over the batches of an epoch, see `StreamedBatches`."""
    is_readable = isinstance(source, Iterable) or is_sequence(source)
    batches = source if is_readable else source(epoch)
    if isinstance(batches, Iterable):
        return iter(batches)
    if is_sequence(batches):  # its length counts: an index past its end may not raise
        return (batches[i] for i in range(len(batches)))
    raise TypeError(
        f"expected batches(epoch) to return an iterable, got {described(batches)}"
    )


def checked_batch(batch: Any, check: Callable[..., Examples]) -> Examples:
    """Return check(*batch) of (x, target) or (x, target, weights)."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        expected = "batches (x, target) or (x, target, weights)"
        raise TypeError(
            f"expected {expected}, got {type_and_length(batch)}{_names_of(batch)}"
        )
    return check(*batch)


def _names_of(batch: Any) -> str:
    """Return the names in a batch that is a dict, and how to choose among them."""
    if not isinstance(batch, Mapping) or not batch:
        return ""
    names = list(batch)
    return (
        f" of {', '.join(map(repr, names))}: choose x and target by name, as in "
        f"interop.batches(data, x={names[0]!r}, target={names[-1]!r})"
    )


def _expect_layout(
    source: StoredBatches | StreamedBatches, open_epoch: EpochProgress, number: int
) -> None:
    done, *layout = open_epoch
    if done and tuple(layout) != source.layout:
        size, count, shuffled = layout
        batches = f"{count} examples in batches of {size} and shuffle={shuffled}"
        raise ValueError(
            f"epoch {number} was begun with {batches if size else 'other batches'}, "
            f"got {source}"
        )


@contextmanager
def prefetched(items: Iterable[Any], count: int) -> Iterator[Iterable[Any]]:
    """Yield an iterable over `items`; a thread computes up to `count` in advance.

    The order does not change, and an exception is raised where its item would have
    come. When the context ends, for whatever reason, the thread ends too: at once, or
    once it has computed its current item.
    """
    if not count:
        yield items
        return
    # SimpleQueue is written in C, so an exception during a call leaves it intact.
    results: SimpleQueue[Any] = SimpleQueue()
    # an entry for each item that may be put into `results`
    slots: SimpleQueue[Any] = SimpleQueue()
    for _ in range(count):
        slots.put(None)
    stopped: list[bool] = []

    def produce() -> None:
        last: tuple[Any, ...] = (_END, None)
        try:
            for item in items:
                slots.get()
                if stopped:
                    return
                results.put((item, None))
        except BaseException as error:
            last = (_END, error)
        results.put(last)

    def consume() -> Iterator[Any]:
        while True:
            item, error = results.get()
            slots.put(None)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = Thread(target=produce, name="agnostic_nn-prefetch", daemon=True)
    try:
        thread.start()
        yield consume()
    finally:
        stopped.append(True)
        slots.put(None)
        if thread.ident is not None:
            thread.join()
