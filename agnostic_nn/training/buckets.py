"""Buckets: batches of sequences of similar lengths, padded to a few lengths."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..core.errors import described, expect, expect_flag, expect_number
from .batches import epoch_order
from .inputs import as_integer

__all__ = ["bucketed"]


def bucketed(
    sequences: Sequence[Any],
    target: Any,
    *,
    batch_size: int = 32,
    lengths: Sequence[int] | None = None,
    mask: bool = True,
    padding: float = 0,
    target_padding: float = 0,
    shuffle: bool = True,
    seed: int = 0,
) -> Callable[[int], Iterator[Any]]:
    """Return a function of the epoch to batches of sequences of similar lengths.

    Pass it as `trainer.fit(batches=bucketed(sequences, target))`. Each sequence is
    padded to the shortest of `lengths` that holds it, so that a step is compiled once
    for each of these lengths. Each sequence comes once in an epoch. The last batch of a
    length may be short. The order is fixed by `seed` and the epoch.

    Parameters
    ----------
    sequences
        Arrays on the host, (steps, ...), that differ in the number of steps only.
    target
        One array with an entry for each sequence; or a list of arrays, one (steps, ...)
        for each sequence, with as many steps. A batch then has the mask as `weights`,
        so padding does not count in a loss that takes weights.
    batch_size
        The number of sequences in a batch.
    lengths
        The lengths to pad to, by default powers of two and that of the longest
        sequence.
    mask
        If true, x is {"x": (batch, length, ...), "mask": (batch, length)}, where the
        mask is True for each step that is not padding; else x is only the array.
    padding, target_padding
        The numbers that sequences and their targets are padded with.
    shuffle
        If true, the order is random.

    Raises
    ------
    TypeError, ValueError
        If sequences differ in more than the number of steps, one is longer than the
        longest of `lengths`, or the targets do not fit them.
    """
    batch_size = as_integer("batch_size", batch_size)
    seed = as_integer("seed", seed, 0)
    expect_flag("mask", mask)
    expect_flag("shuffle", shuffle)
    expect_number("padding", padding)
    expect_number("target_padding", target_padding)
    arrays = _sequences("sequences", sequences)
    steps = [len(array) for array in arrays]
    sizes = _lengths(lengths, steps)
    by_step = isinstance(target, list | tuple) and np.ndim(next(iter(target), 0)) > 0
    targets: Any = _sequences("target", target) if by_step else np.asarray(target)
    expect(
        len(targets) == len(arrays),
        "{} sequences, but {} targets",
        len(arrays),
        len(targets),
    )
    if by_step:
        for i, (array, labels) in enumerate(zip(arrays, targets, strict=True)):
            expect(
                len(labels) == len(array),
                "sequence {} has {} steps, but its target {}",
                i,
                len(array),
                len(labels),
            )
    bucket_of = np.searchsorted(sizes, steps).tolist()

    def batch(rows: list[int], length: int) -> tuple[Any, ...]:
        is_step = np.arange(length) < np.asarray([steps[row] for row in rows])[:, None]
        x: Any = _padded([arrays[row] for row in rows], length, padding)
        if mask:
            x = {"x": x, "mask": is_step}
        if not by_step:
            return x, targets[rows]
        labels = _padded([targets[row] for row in rows], length, target_padding)
        return x, labels, is_step.astype("float32")

    def batches(epoch: int) -> Iterator[Any]:
        count = len(arrays)
        order = epoch_order(seed, epoch, count) if shuffle else np.arange(count)
        waiting: list[list[int]] = [[] for _ in sizes]
        for row in order.tolist():
            rows = waiting[bucket_of[row]]
            rows.append(row)
            if len(rows) == batch_size:
                yield batch(rows, sizes[bucket_of[row]])
                rows.clear()
        for rows, length in zip(waiting, sizes, strict=True):
            if rows:
                yield batch(rows, length)

    return batches


def _sequences(name: str, sequences: Any) -> list[np.ndarray]:
    """Return arrays that differ in the length of the first axis only."""
    if not isinstance(sequences, list | tuple):
        raise TypeError(
            f"expected {name} as a list of arrays, got {described(sequences)}"
        )
    expect(len(sequences) > 0, "expected at least one array in {}", name)
    arrays = [np.asarray(sequence) for sequence in sequences]
    first = arrays[0]
    for i, array in enumerate(arrays):
        fits = array.ndim > 0 and array.dtype.kind in "fiub"
        message = "expected {}[{}] to hold numbers of (steps, ...), got {} {}"
        expect(fits, message, name, i, array.dtype, array.shape)
        fits = array.shape[1:] == first.shape[1:] and array.dtype == first.dtype
        message = "{}[0] is {} {}, but {}[{}] is {} {}: only steps may differ"
        details = (name, first.dtype, first.shape, name, i, array.dtype, array.shape)
        expect(fits, message, *details)
    return arrays


def _lengths(lengths: Any, steps: list[int]) -> list[int]:
    """Return the lengths to pad to, in ascending order."""
    longest = max(steps)
    if lengths is None:
        powers = [2**n for n in range(longest.bit_length())]
        return [n for n in powers if min(steps) <= n < longest] + [longest]
    if not isinstance(lengths, list | tuple):
        raise TypeError(
            f"expected lengths as a list of integers, got {described(lengths)}"
        )
    sizes = sorted(as_integer("each of lengths", length, 0) for length in lengths)
    expect(
        len(sizes) > 0 and sizes[-1] >= longest,
        "sequence {} has {} steps, more than the longest of the lengths {}: cut it, or "
        "add a length",
        steps.index(longest),
        longest,
        sizes,
    )
    return sizes


def _padded(arrays: list[np.ndarray], length: int, padding: float) -> np.ndarray:
    """Return arrays as one, each padded at its end to `length`."""
    first = arrays[0]
    result = np.full((len(arrays), length, *first.shape[1:]), padding, first.dtype)
    for row, array in enumerate(arrays):
        result[row, : len(array)] = array
    return result
