"""Spans: how far windows reach, what pads them, and how many there are. Integers only.

Along an axis of n numbers, a window of k numbers that lie d (`dilation`) apart reaches over
r = d (k - 1) + 1 of them. With `low` zeros before the n numbers and `high` behind them,
windows that begin s (`stride`) apart are

    out = ⌊(n + low + high - r) / s⌋ + 1

"valid" pads nothing. "same" pads as little as makes out = ⌈n / s⌉, which takes
max((out - 1) s + r - n, 0) zeros: half of them before, and the odd one behind (the rule of
TensorFlow and Keras; with s = 1 the length stays the same).
"""

from typing import Any

from .arrays import Shape
from .errors import expect

__all__ = [
    "Padding",
    "Pads",
    "PerAxis",
    "effective_window",
    "out_lengths",
    "padding_per_axis",
    "per_axis",
    "resolve_padding",
]

PerAxis = Any  # an integer for all axes, or a tuple with one for each
Padding = Any  # "same", "valid", an integer for all sides, or a tuple: see `padding_per_axis`
Pads = tuple[tuple[int, int], ...]  # zeros before and behind, for each axis


def per_axis(name: str, value: PerAxis, rank: int, least: int = 1) -> Shape:
    """The hyper-parameter called `name`, one integer for all axes or one for each, as a tuple.

    Raises
    ------
    TypeError
        If it holds anything but integers.
    ValueError
        If there are not `rank` of them, or one is below `least`.
    """
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if any(type(number) is not int for number in numbers):
        raise TypeError(f"expected {name} to be an integer or {rank} of them, got {value!r}")
    expect(len(numbers) > 0, "expected {} for one axis or more, got {}", name, value)
    expect(len(numbers) == rank, "expected {} for {} axes, got {}", name, rank, value)
    expect(min(numbers) >= least, "expected {} of at least {}, got {}", name, least, value)
    return numbers


def padding_per_axis(padding: Padding, rank: int) -> str | Pads:
    """The hyper-parameter `padding`: a word as it is, anything else as a pair for each axis.

    An integer stands for all axes and both sides, an entry of a tuple for its axis: an integer
    for both sides, or a pair (before, behind).

    Raises
    ------
    TypeError
        If it holds anything but integers.
    ValueError
        If it is another word, has not one entry an axis, or one is negative.
    """
    if isinstance(padding, str):
        known = padding in ("same", "valid")
        expect(known, "expected padding 'same', 'valid' or numbers, got {}", repr(padding))
        return padding
    entries = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * rank
    expect(len(entries) == rank, "expected padding for {} axes, got {}", rank, padding)
    for entry in entries:
        fits = not isinstance(entry, (tuple, list)) or len(entry) == 2
        expect(fits, "expected padding for 2 sides, got {}", entry)
    both = [per_axis("padding", entry, 2, least=0) for entry in entries]
    return tuple((low, high) for low, high in both)


def effective_window(window: Shape, dilation: Shape) -> Shape:
    """How many numbers a window spans along each axis."""
    return tuple(d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True))


def resolve_padding(
    padding: str | Pads, lengths: Shape, window: Shape, stride: Shape, dilation: Shape
) -> Pads:
    """What `padding`, a word or pairs, puts around axes of these lengths."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return ((0, 0),) * len(lengths)
    found = []
    for n, r, s in zip(lengths, effective_window(window, dilation), stride, strict=True):
        total = max((-(-n // s) - 1) * s + r - n, 0)
        found.append((total // 2, total - total // 2))
    return tuple(found)


def out_lengths(lengths: Shape, window: Shape, stride: Shape, dilation: Shape, pads: Pads) -> Shape:
    """How many windows there are along each axis.

    Raises
    ------
    ValueError
        If there is none.
    """
    spans = effective_window(window, dilation)
    found = tuple(
        (n + low + high - r) // s + 1
        for n, r, s, (low, high) in zip(lengths, spans, stride, pads, strict=True)
    )
    expect(min(found) >= 1, "windows over {} do not fit {} padded by {}", spans, lengths, pads)
    return found
