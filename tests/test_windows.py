"""The arithmetic of windows agrees with counting them."""

from itertools import product

import pytest

from agnostic_nn.core.windows import (
    effective_window,
    out_lengths,
    padding_per_axis,
    resolve_padding,
)

GEOMETRIES = list(product((1, 2, 3, 8), (1, 2, 4), (1, 2, 3), (1, 2)))  # n, k, s, d


def counted(n, k, s, d, low, high):
    """Count the windows that lie within n numbers and their padding."""
    starts = range(-low, n + high, s)
    return sum(start + d * (k - 1) < n + high for start in starts)


@pytest.mark.parametrize("sides", [(0, 0), (1, 0), (0, 1), (2, 3)], ids=str)
def test_the_number_of_windows_is_right(sides):
    for n, k, s, d in GEOMETRIES:
        count = counted(n, k, s, d, *sides)
        if count:
            assert out_lengths((n,), (k,), (s,), (d,), (sides,)) == (count,)
        else:
            with pytest.raises(ValueError, match=r"do not fit \(\d,\) padded by"):
                out_lengths((n,), (k,), (s,), (d,), (sides,))


def test_same_padding_is_the_least_that_begins_a_window_at_every_stride():
    for n, k, s, d in GEOMETRIES:
        ((low, high),) = resolve_padding("same", (n,), (k,), (s,), (d,))
        assert high - low in (0, 1)
        assert counted(n, k, s, d, low, high) == -(-n // s)
        if high:
            assert counted(n, k, s, d, low, high - 1) < -(-n // s)


def test_each_axis_has_separate_numbers():
    assert effective_window((3, 1, 2), (1, 5, 4)) == (3, 1, 5)
    assert resolve_padding("valid", (5, 6), (3, 2), (1, 1), (1, 1)) == ((0, 0), (0, 0))
    assert resolve_padding("same", (5, 6), (3, 2), (1, 4), (1, 1)) == ((1, 1), (0, 0))
    assert resolve_padding(((1, 2), (3, 4)), (5, 6), (3, 2), (1, 4), (1, 1)) == (
        (1, 2),
        (3, 4),
    )
    assert out_lengths((5, 6), (3, 2), (1, 4), (1, 1), ((1, 1), (0, 0))) == (5, 2)


def test_short_forms_of_padding_equal_the_long_form():
    for short in (1, (1, 1), [[1, 1], 1], ((1, 1), (1, 1))):
        assert padding_per_axis(short, 2) == ((1, 1), (1, 1))
    assert padding_per_axis((1, 2), 2) == ((1, 1), (2, 2))
    assert padding_per_axis(((1, 2),), 1) == ((1, 2),)
