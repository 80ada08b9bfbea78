"""Sizes of sliding windows: effective window, padding and output length. Integers only.

A window of k elements with dilation d covers r = d (k - 1) + 1 elements of an axis (its
effective size). An axis of n elements, with `low` zeros before and `high` after it, has

    out = ⌊(n + low + high - r) / s⌋ + 1

windows with stride s.

"valid" adds no padding. "same" adds the least padding for which out = ⌈n / s⌉, which is
max((out - 1) s + r - n, 0) zeros: half of them before and half after, an odd one after
(the rule of TensorFlow and Keras). With s = 1 the length stays the same.
"""

from typing import Any

from .arrays import Shape
from .errors import expect

__all__ = [
    "Padding",
    "Pads",
    "PerAxis",
    "effective_window",
    "expect_sources",
    "out_lengths",
    "padding_per_axis",
    "per_axis",
    "resolve_padding",
]

PerAxis = Any  # an integer for all axes, or a tuple with an integer for each axis
# "same", "valid", an integer for all sides, or a tuple: see `padding_per_axis`
Padding = Any
Pads = tuple[tuple[int, int], ...]  # the numbers of zeros (before, after) for each axis


def per_axis(name: str, value: PerAxis, rank: int, least: int = 1) -> Shape:
    """Return `value`, one integer for all axes or one for each, as a tuple of `rank`.

    name: the name of the hyper-parameter, for errors.

    Raises
    ------
    TypeError
        If `value` holds anything but integers.
    ValueError
        If it does not hold `rank` integers, or one is below `least`.
    """
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if any(type(number) is not int for number in numbers):
        raise TypeError(
            f"expected {name} to be an integer or {rank} of them, got {value!r}"
        )
    expect(len(numbers) > 0, "expected {} for one axis or more, got {}", name, value)
    expect(len(numbers) == rank, "expected {} for {} axes, got {}", name, rank, value)
    is_valid = min(numbers) >= least
    expect(is_valid, "expected {} of at least {}, got {}", name, least, value)
    return numbers


def padding_per_axis(padding: Padding, rank: int) -> str | Pads:
    """Return `padding` as a pair (before, after) for each axis.

    "same" and "valid" are returned unchanged. A single integer applies to both sides of
    all axes. In a tuple, each entry applies to its axis and is an integer for both
    sides or a pair (before, after).

    Raises
    ------
    TypeError
        If `padding` holds anything but integers.
    ValueError
        If it is another string, does not have an entry for each axis, or holds a
        negative number.
    """
    if isinstance(padding, str):
        is_valid = padding in ("same", "valid")
        message = "expected padding 'same', 'valid' or numbers, got {}"
        expect(is_valid, message, repr(padding))
        return padding
    is_tuple = isinstance(padding, (tuple, list))
    entries = tuple(padding) if is_tuple else (padding,) * rank
    expect(len(entries) == rank, "expected padding for {} axes, got {}", rank, padding)
    for entry in entries:
        is_valid = not isinstance(entry, (tuple, list)) or len(entry) == 2
        expect(is_valid, "expected padding for 2 sides, got {}", entry)
    pairs = [per_axis("padding", entry, 2, least=0) for entry in entries]
    return tuple((low, high) for low, high in pairs)


def effective_window(window: Shape, dilation: Shape) -> Shape:
    """Return the number of elements that a dilated window covers along each axis."""
    return tuple(d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True))


def resolve_padding(
    padding: str | Pads, lengths: Shape, window: Shape, stride: Shape, dilation: Shape
) -> Pads:
    """Return the pair (before, after) for each axis, also for "same" and "valid"."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return ((0, 0),) * len(lengths)
    pads = []
    sizes = effective_window(window, dilation)
    for n, r, s in zip(lengths, sizes, stride, strict=True):
        total = max((-(-n // s) - 1) * s + r - n, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def out_lengths(
    lengths: Shape, window: Shape, stride: Shape, dilation: Shape, pads: Pads
) -> Shape:
    """Return the number of windows along each axis.

    Raises
    ------
    ValueError
        If a window does not fit into the padded input.
    """
    sizes = effective_window(window, dilation)
    out = tuple(
        (n + low + high - r) // s + 1
        for n, r, s, (low, high) in zip(lengths, sizes, stride, pads, strict=True)
    )
    message = "windows over {} do not fit {} padded by {}"
    expect(min(out) >= 1, message, sizes, lengths, pads)
    return out


def expect_sources(mode: str, lengths: Shape, pads: Pads) -> None:
    """Raise ValueError if `mode` cannot pad axes of `lengths` by `pads`.

    "replicate" copies the first or last element, so an axis needs one. "reflect" copies
    up to n - 1 elements, all but the one at the end that it pads, and "circular" up to
    n.
    """
    if mode not in ("replicate", "reflect", "circular"):
        return
    for n, (low, high) in zip(lengths, pads, strict=True):
        most = max(low, high)
        if mode == "replicate":
            fits = n >= 1 or most == 0
            message = "cannot replicate the ends of {}: a spatial axis is empty"
            expect(fits, message, lengths)
            continue
        limit = max(n - 1, 0) if mode == "reflect" else n
        message = (
            "expected padding of at most {} on an axis of length {} with mode '{}', "
            "got {}: pad less, or use 'replicate'"
        )
        expect(most <= limit, message, limit, n, mode, most)
