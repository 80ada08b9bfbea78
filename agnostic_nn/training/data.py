"""Data: from what a user hands over to checked batches of one shape.

All of it happens on the host: `jit` hides values, and array libraries differ in what
they do with bad ones (JAX clamps an index, CuPy wraps it round). Data are an array or a
tree of arrays, with the examples along axis 0 of each. A file mapped into memory
(`np.load(path, mmap_mode="r")`) is looked at piece by piece and never held as a whole.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import index, length_hint
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from ..core import random
from ..core.arrays import device, first_true, namespace
from ..core.backend import Backend
from ..core.errors import described, expect, expect_choice, expect_number
from ..core.trees import leaves, named_leaves, shape_map, tree_map

__all__ = [
    "Examples",
    "Stored",
    "Streamed",
    "ahead",
    "batches",
    "class_weights",
    "expect_lengths",
    "expect_shapes",
    "fetch",
    "filled",
    "integer",
    "is_mapped",
    "order",
    "outlined",
    "pieces",
    "shape_from",
    "stratified_split",
    "typed",
]

_END = object()
PIECE = 2**24  # bytes of a mapped file that are looked at together


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


def is_mapped(data: Any) -> bool:
    """Whether an array, or one in a tree, lies in a file: reading all of it may be too much."""
    if isinstance(data, dict | tuple):
        return any(map(is_mapped, leaves(data)))
    return isinstance(data, np.memmap)


def filled(examples: Examples, count: int) -> Examples:
    """`examples` with the last one again and again until there are `count`.

    A layer should meet no numbers that are not data, not even in rows that count nothing.
    """
    return examples[np.minimum(np.arange(count), len(examples) - 1)]


# --- from a user ------------------------------------------------------------------------


def fetch(name: str, data: Any, backend: Backend) -> tuple[Any, Any]:
    """`data` as NumPy arrays, and whether they have a dtype that their owner chose.

    NumPy arrays, nested lists of numbers, arrays of the backend, and dicts and tuples of
    those are taken; a tuple of numbers is one array. Both answers nest like the data.

    Raises
    ------
    TypeError
        If data is an array of another library, holds no numbers, or lies on another device.
    """
    if isinstance(data, dict):
        branches = {key: fetch(f"{name}.{key}", branch, backend) for key, branch in data.items()}
        return {k: found for k, (found, _) in branches.items()}, {
            k: chosen for k, (_, chosen) in branches.items()
        }
    if isinstance(data, tuple) and not _is_numbers(data):
        pairs = [fetch(f"{name}.{i}", branch, backend) for i, branch in enumerate(data)]
        return tuple(found for found, _ in pairs), tuple(chosen for _, chosen in pairs)
    return _fetch(name, data, backend)


def _is_numbers(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return all(_is_numbers(entry) for entry in data)
    return isinstance(data, int | float | np.generic)


def _fetch(name: str, data: Any, backend: Backend) -> tuple[np.ndarray, bool]:
    if isinstance(data, np.ndarray | np.generic):
        if hasattr(data, "mask"):
            raise TypeError(f"expected {name} without a mask, which would be lost: fill it first")
        found, chosen = data if isinstance(data, np.memmap) else np.asarray(data), True
    elif isinstance(data, list | tuple | int | float):
        try:
            found, chosen = np.asarray(data), False
        except ValueError as error:
            raise ValueError(f"expected {name} as lists of equal lengths: {error}") from error
    else:
        try:
            ours = namespace(data) is namespace(backend.asarray(np.float32(0)))
        except TypeError:
            ours = False
        if not ours:
            kind = type(data)
            hosts = isinstance(backend.asarray(np.float32(0)), np.ndarray)
            taken = "or a list" if hosts else f"a list or an array of {backend.name}"
            taken = f"a NumPy array {taken}" if hosts else f"a NumPy array, {taken}"
            raise TypeError(
                f"expected {name} as {taken}, got {kind.__module__}.{kind.__qualname__}"
            )
        if device(data) != backend.device and device(data) is not None:
            raise TypeError(f"{name} lies on {device(data)}, but the model is on {backend}")
        try:
            found, chosen = backend.to_numpy(data), True
        except TypeError as error:
            raise TypeError(f"expected {name} of a dtype that NumPy has: {error}") from error
    if found.dtype.kind not in "fiub":
        raise TypeError(f"expected {name} to hold numbers, got dtype {found.dtype}")
    return found, chosen


def typed(name: str, data: Any, chosen: Any, dtype: str) -> Any:
    """`data` in the dtype that the model computes in; integers in int32, which all backends have.

    Only numbers that came without a dtype are converted; booleans stay what they are, and
    so does what is mapped from a file.

    Raises
    ------
    TypeError
        If data is of another real dtype.
    ValueError
        If an integer does not fit.
    """
    if isinstance(data, dict):
        return {k: typed(f"{name}.{k}", leaf, chosen[k], dtype) for k, leaf in data.items()}
    if isinstance(data, tuple):
        pairs = zip(data, chosen, strict=True)
        return tuple(typed(f"{name}.{i}", *pair, dtype) for i, pair in enumerate(pairs))
    if data.dtype.kind == "f":
        if data.dtype.name != dtype and chosen:
            found = data.dtype.name
            other = f", or Trainer(dtype={found!r})" if found in ("float32", "float64") else ""
            raise TypeError(
                f"{name} is {found}, but the model computes in {dtype}: pass "
                f"{name}.astype({dtype!r}){other}"
            )
        return data if is_mapped(data) else data.astype(dtype, copy=False)
    if data.dtype.kind == "b" or is_mapped(data):
        return data
    if not np.can_cast(data.dtype, np.int32):
        bounds = np.iinfo(np.int32)
        bad = first_true((data < bounds.min) | (data > bounds.max))
        if bad is not None:
            raise ValueError(f"{name}{list(bad)} is {data[bad]}, which does not fit into int32")
    return data.astype(np.int32, copy=False)


def pieces(data: Any) -> Iterator[tuple[int, Any]]:
    """Data that lie in a file in parts that fit into memory, each with where it begins."""
    found = leaves(data)
    count = len(found[0])
    step = max(1, PIECE * count // max(1, sum(leaf.nbytes for leaf in found)))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        yield start, tree_map(lambda leaf: np.asarray(leaf[rows]), data)  # noqa: B023


def shape_from(data: Any) -> Any:
    """A shape, or a tree of shapes, from lists and tuples of integers, as JSON has them."""
    if isinstance(data, dict):
        return {name: shape_from(shape) for name, shape in data.items()}
    if isinstance(data, list | tuple):
        return tuple(shape_from(entry) for entry in data)
    return integer("each length of a shape", data, 0)


def integer(name: str, value: Any, least: int = 1) -> int:
    """`value`, an integer of any library called `name`, as Python's own.

    Raises
    ------
    ValueError
        If it is none, or less than `least`.
    """
    try:
        found = index(value)
    except TypeError:
        found = least - 1
    wanted = "expected {} to be an integer of at least {}, got {!r}"
    expect(found >= least and not isinstance(value, bool), wanted, name, least, value)
    return found


def outlined(thing: Any) -> str:
    """What kind of thing it is, and how long a tuple or a list."""
    kind = type(thing).__qualname__
    return f"a {kind} of {len(thing)}" if isinstance(thing, tuple | list) else f"a {kind}"


def expect_shapes(name: str, data: Any, shapes: Any) -> None:
    """Raise ValueError unless data hold examples of `shapes`, nested alike."""
    if tree_map(lambda leaf: leaf.shape[1:], data) == shapes:
        return
    found = dict(named_leaves(data, name))
    # a shape is a tuple itself, so a list keeps it from being taken for a branch
    wanted = dict(named_leaves(shape_map(list, shapes), name))
    if found.keys() != wanted.keys():
        raise ValueError(f"the model takes {' and '.join(wanted)}, got {' and '.join(found)}")
    for path, leaf in found.items():
        if list(leaf.shape[1:]) != wanted[path]:
            shape = ", ".join(["examples", *map(str, wanted[path])])
            raise ValueError(f"the model takes {path} of shape ({shape}), got {leaf.shape}")


def expect_lengths(name: str, data: Any) -> None:
    """Raise ValueError unless all leaves of data hold equally many examples."""
    lengths = {leaf.shape[:1] for leaf in leaves(data)}
    if len(lengths) == 1 and () not in lengths:
        return
    expect(len(lengths) > 0, "expected arrays in {}, got none", name)
    (first, one), *others = named_leaves(data, name)
    for path, leaf in ((first, one), *others):
        if leaf.ndim < 1:
            raise ValueError(f"expected {path} of shape (examples, ...), got {leaf.shape}")
        if len(leaf) != len(one):
            raise ValueError(
                f"{first} holds {len(one)} examples, but {path} has shape {leaf.shape}"
            )


# --- in batches -------------------------------------------------------------------------


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` examples in an epoch: another one each epoch, the same everywhere."""
    root = random.key(seed, xp=namespace(np.zeros(())))
    return random.permutation(random.fold(root, epoch), count)


def batches(
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
class Stored:
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
        for rows, size in islice(batches(self._indices(number), self.batch_size, first), limit):
            yield self.examples[rows[:size]]

    def stretches(
        self, number: int, first: int, limit: int | None, together: int
    ) -> Iterator[tuple[list[int], Examples]]:
        """The same batches, at most `limit` of them, so many `together`: their sizes, and all rows.

        Short batches are filled up as in `batches`, and the last stretch with its last batch.
        """
        drawn = islice(batches(self._indices(number), self.batch_size, first), limit)
        while stretch := list(islice(drawn, together)):
            rows = [rows for rows, _ in stretch]
            rows += rows[-1:] * (together - len(rows))
            yield [size for _, size in stretch], self.examples[np.concatenate(rows)]

    def _indices(self, number: int) -> np.ndarray:
        count = len(self.examples)
        return order(self.seed, number, count) if self.shuffle else np.arange(count)


@dataclass
class Streamed:
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
            raise TypeError(f"expected {wanted}, got {outlined(batch)}")
        return self.check(*batch)


@contextmanager
def ahead(items: Iterable, count: int) -> Iterator[Iterable]:
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


# --- before training --------------------------------------------------------------------


def stratified_split(target: Any, share: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples in two parts, the second with a `share` of each class.

    target: (examples,) labels on the host, of any kind that sorts. Of a class of n, ⌊n · share⌋
    or one more go into the second part; those with the largest fractions left get the one
    more, so that the part has round(examples · share) in all. Both are in random order,
    fixed by `seed` and the same on every machine.

    Raises
    ------
    ValueError
        If target has another shape, or a part would be empty.
    """
    labels = np.asarray(target)
    expect(labels.ndim == 1, "expected labels (examples,), got {}", labels.shape)
    expect_number("share", share)
    expect(0.0 < share < 1.0, "expected a share in (0, 1), got {}", share)
    total = round(len(labels) * share)
    some = 0 < total < len(labels)
    expect(some, "a share of {} of {} examples leaves a part empty", share, len(labels))
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * share
    taken = np.floor(exact).astype(np.int64)
    taken[np.argsort(taken - exact, kind="stable")[: total - taken.sum()]] += 1

    root = random.key(seed, xp=namespace(np.zeros(())))
    shuffled = random.permutation(root, len(labels))
    grouped = shuffled[np.argsort(classes[shuffled], kind="stable")]
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    second = np.zeros(len(labels), bool)
    second[grouped] = place < np.repeat(taken, counts)
    return shuffled[~second[shuffled]], shuffled[second[shuffled]]


def class_weights(target: Any, *, dtype: str = "float32") -> np.ndarray:
    """A weight for each class, such that all classes count alike: N / (K nₖ).

    target: labels 0, 1, 2, … on the host, any shape, N of them; nₖ are of class k, K
    classes occur. Returns (largest label + 1,), 0 for a class that does not occur.
    `weights=class_weights(labels)[labels]` gives each example its own. King & Zeng,
    "Logistic Regression in Rare Events Data" (2001), as scikit-learn's "balanced".

    Raises
    ------
    TypeError, ValueError
        If the labels are no integers, are below 0, or there are none.
    """
    labels = np.asarray(target)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"expected integer labels, got {labels.dtype}")
    expect(labels.size > 0, "expected labels, got none")
    bad = first_true(labels < 0)
    if bad is not None:
        raise ValueError(f"expected labels from 0, but label{list(bad)} is {labels[bad]}")
    expect_choice("dtype", dtype, ("float16", "float32", "float64"))
    counts = np.bincount(labels.reshape(-1))
    present = counts > 0
    weights = labels.size / (np.sum(present) * np.maximum(counts, 1))
    return np.where(present, weights, 0.0).astype(dtype)
