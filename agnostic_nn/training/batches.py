"""Batches: checked examples, cut into batches of one size."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from ..core import random
from ..core.arrays import namespace
from ..core.errors import described
from ..core.trees import leaves, tree_map
from .inputs import is_mapped, type_and_length

__all__ = [
    "Examples",
    "StoredBatches",
    "StreamedBatches",
    "batch_indices",
    "epoch_order",
    "padded",
    "prefetched",
]

_END = object()


@dataclass(frozen=True)
class Examples:
    """Checked examples on the host: x, their targets, and weights where they count unequally.

    `examples[rows]` are some of them, in memory, where integers are int32.
    """

    x: Any
    target: Any
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return leaves(self.x)[0].shape[0]

    def __getitem__(self, rows: Any) -> "Examples":
        def taken(leaf: np.ndarray) -> np.ndarray:
            part = leaf[rows]
            if not is_mapped(leaf):
                return part
            kept = np.int32 if leaf.dtype.kind in "iu" else leaf.dtype.newbyteorder("=")
            return np.asarray(part).astype(kept, copy=False)

        weights = None if self.weights is None else self.weights[rows]
        return Examples(tree_map(taken, self.x), tree_map(taken, self.target), weights)


def padded(examples: Examples, count: int) -> Examples:
    """`examples` with the last one again and again until there are `count`.

    A layer should meet no numbers that are not data, not even in rows that count nothing.
    """
    return examples[np.minimum(np.arange(count), len(examples) - 1)]


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` examples in an epoch: another one each epoch, the same everywhere."""
    root = random.key(seed, xp=namespace(np.zeros(())))
    return random.permutation(random.fold(root, epoch), count)


def batch_indices(
    indices: np.ndarray, batch_size: int, first: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """The `indices` in turn, `batch_size` at a time from batch `first` on, and how many are new.

    Every batch has the same length, lest a compiler starts anew: the last one is filled
    up with its last index, since a layer should meet no numbers that are not data. Each
    index is among the new ones of one batch, once.
    """
    for start in range(first * batch_size, len(indices), batch_size):
        rows = indices[start : start + batch_size]
        size = len(rows)
        if size < batch_size:
            rows = np.concatenate([rows, np.repeat(rows[-1:], batch_size - size)])
        yield rows, size


@dataclass(frozen=True)
class StoredBatches:
    """Epochs over examples at hand: each example once, in batches of one size but the last."""

    examples: Examples
    batch_size: int
    shuffle: bool
    seed: int

    @property
    def count(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self.examples) / self.batch_size)

    @property
    def mark(self) -> tuple[int, int, bool]:
        """What an epoch begun with these can be known by."""
        return self.batch_size, len(self.examples), self.shuffle

    def __str__(self) -> str:
        count, size = len(self.examples), self.batch_size
        return f"{count} examples in batches of {size} and shuffle={self.shuffle}"

    def epoch(self, number: int, first: int, limit: int | None = None) -> Iterator[Examples]:
        """Yield the batches of epoch `number`, from batch `first` on, at most `limit` of them."""
        for rows, size in islice(
            batch_indices(self._indices(number), self.batch_size, first), limit
        ):
            yield self.examples[rows[:size]]

    def stretches(
        self, number: int, first: int, limit: int | None, together: int
    ) -> Iterator[tuple[list[int], Examples]]:
        """The same batches, at most `limit` of them, so many `together`: their sizes, and all rows.

        Short batches are filled up as in `batches`, and the last stretch with its last batch.
        """
        drawn = islice(batch_indices(self._indices(number), self.batch_size, first), limit)
        while stretch := list(islice(drawn, together)):
            rows = [rows for rows, _ in stretch]
            rows += rows[-1:] * (together - len(rows))
            yield [size for _, size in stretch], self.examples[np.concatenate(rows)]

    def _indices(self, number: int) -> np.ndarray:
        count = len(self.examples)
        return epoch_order(self.seed, number, count) if self.shuffle else np.arange(count)


@dataclass
class StreamedBatches:
    """Epochs over batches that come from elsewhere, each `(x, target)` or with weights.

    source: an iterable, begun again each epoch; a function from the number of the epoch to
    one; or an iterator, which can only continue where it stands. steps: batches an epoch,
    by default as many as come. check turns a batch into `Examples`. is_over: whether the last
    call of `epoch` has come to the end of the epoch.
    """

    source: Any
    steps: int | None
    check: Callable[..., Examples]
    is_over: bool = False

    mark = (0, 0, False)

    @property
    def count(self) -> int | None:
        """Batches an epoch, if that is known."""
        return self.steps

    def __str__(self) -> str:
        return "batches of one's own"

    def epoch(self, number: int, first: int, limit: int | None = None) -> Iterator[Examples]:
        """Yield the batches of epoch `number`, from batch `first` on, at most `limit` of them.

        Whether the epoch is over after so many is found out by looking for one more; of an
        iterator, which might lose it, only where the iterator knows how many are left.

        Raises
        ------
        ValueError
            If there are fewer than `steps`, or none at all.
        """
        self.is_over = False
        once = isinstance(self.source, Iterator)
        repeats = once or isinstance(self.source, Iterable)
        found = self.source if repeats else self.source(number)
        if not isinstance(found, Iterable):
            raise TypeError(
                f"expected batches(epoch) to return an iterable, got {described(found)}"
            )
        drawn = iter(found)
        place = first if once else 0
        # not one more than is used: what an iterator gave is gone
        for batch in islice(drawn, None if self.steps is None else self.steps - place):
            try:
                examples = self._checked(batch)
            except (TypeError, ValueError) as error:
                error.add_note(f"in batch {place + 1} of epoch {number + 1}")
                raise
            place += 1
            if place > first:
                yield examples
            if limit is not None and place - first == limit:
                self.is_over = self._is_over(drawn, place, once)
                return
        self.is_over = True
        short = place == 0 if self.steps is None else place < self.steps
        if short:
            wanted = "" if self.steps is None else f" of {self.steps}"
            raise ValueError(
                f"the batches ran dry after {place}{wanted} in epoch {number + 1}: an iterator "
                "can be used once; a function of the epoch that makes a new one can be called "
                "again"
            )

    def _is_over(self, drawn: Iterator, place: int, once: bool) -> bool:
        if self.steps is not None:
            return place >= self.steps
        if once:
            return length_hint(drawn, 1) == 0
        return next(drawn, _END) is _END

    def _checked(self, batch: Any) -> Examples:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            wanted = "batches (x, target) or (x, target, weights)"
            raise TypeError(f"expected {wanted}, got {type_and_length(batch)}")
        return self.check(*batch)


@contextmanager
def prefetched(items: Iterable, count: int) -> Iterator[Iterable]:
    """`items`, up to `count` of them made by a thread before they are asked for.

    Their order stays, an error is raised where its item would have come, and when the
    context ends, however it does, so does the thread: at once, or once the item that it
    is making is made.
    """
    if not count:
        yield items
        return
    # queues that are written in C: an exception in the middle of a call leaves them whole
    made: SimpleQueue = SimpleQueue()
    room: SimpleQueue = SimpleQueue()  # an entry for each item that may be put into `made`
    for _ in range(count):
        room.put(None)
    left: list[bool] = []

    def produce() -> None:
        last: tuple = (_END, None)
        try:
            for item in items:
                room.get()
                if left:
                    return
                made.put((item, None))
        except BaseException as error:
            last = (_END, error)
        made.put(last)

    def consume() -> Iterator:
        while True:
            item, error = made.get()
            room.put(None)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = Thread(target=produce, name="agnostic_nn-ahead", daemon=True)
    try:
        thread.start()
        yield consume()
    finally:
        left.append(True)
        room.put(None)
        if thread.ident is not None:
            thread.join()
