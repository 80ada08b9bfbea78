"""Shuffles move elements by hand-checked rules, and windows make a convolution."""

import numpy as np
import pytest

import agnostic_nn as nn


def run(backend, layer, x, dy=None):
    """Return y, and dx if dy is passed."""
    y, _, cache = layer.forward({}, {}, backend.asarray(x))
    if dy is None:
        return backend.to_numpy(y)
    dx, _ = layer.backward({}, cache, backend.asarray(dy))
    return backend.to_numpy((y, dx))


def test_a_pixel_shuffle_fills_blocks_from_neighbouring_channels(backend):
    x = np.arange(12, dtype="float32").reshape(1, 1, 1, 12)
    y = run(backend, nn.PixelShuffle((2, 3)), x)
    assert y.shape == (1, 2, 3, 2)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(y[0, :, :, 1], [[6, 7, 8], [9, 10, 11]])


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("factors", [2, (2, 1, 3), (1, 1, 1)], ids=str)
def test_each_shuffle_is_the_inverse_and_the_gradient_of_the_other(
    backend, factors, rows
):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 4, 2, 6, 5)).astype("float32")
    x = x[:, ::-1]  # not contiguous
    y = run(backend, nn.PixelUnshuffle(factors), x)
    again, dx = run(backend, nn.PixelShuffle(factors), y, x)
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(dx, y)
    _, dx = run(backend, nn.PixelUnshuffle(factors), x, y)
    np.testing.assert_array_equal(dx, x)


def test_the_windows_of_x_times_a_matrix_are_a_convolution(backend):
    """Sums of small integers are exact in float32 in any order."""
    generator = np.random.default_rng(0)
    options = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)}
    x = generator.integers(-4, 5, (2, 5, 6, 3)).astype("float32")
    weight = generator.integers(-4, 5, (3, 2, 3, 4)).astype("float32")
    conv = nn.Conv2D(4, (3, 2), bias=False, **options)
    there = backend.asarray(x)
    y, _, _ = conv.forward({"weight": backend.asarray(weight)}, {}, there)
    windows = run(backend, nn.Unfold((3, 2), **options), x)
    np.testing.assert_array_equal(windows @ weight.reshape(18, 4), backend.to_numpy(y))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_folding_windows_counts_how_many_contain_each_element(backend, rows):
    x = np.ones((rows, 5, 4, 2), "float32")
    y = run(backend, nn.Unfold((3, 2), (2, 1)), x)
    counted, dx = run(backend, nn.Fold((5, 4), (3, 2), stride=(2, 1)), y, x)
    counts = np.outer([1, 1, 2, 1, 1], [1, 2, 2, 1])[:, :, None]
    np.testing.assert_array_equal(counted, np.broadcast_to(counts, x.shape))
    np.testing.assert_array_equal(dx, y)


def test_elements_that_no_window_contains_have_no_gradient(backend):
    x = np.ones((1, 5, 1), "float32")
    _, dx = run(backend, nn.Unfold(1, 3), x, np.ones((1, 2, 1), "float32"))
    np.testing.assert_array_equal(dx[0, :, 0], [1, 0, 0, 1, 0])


def test_a_sum_of_float16_windows_is_rounded_once(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip("this library has no float16")
    x = np.asarray([[0, 0, 1], [0, 2048, 0], [1, 0, 0]], "float16").reshape(1, 3, 3)
    y = run(backend, nn.Fold(5, 3), x)
    # in float16 it stays at 2048, as 2048 + 1 is rounded to 2048
    assert y.dtype == "float16"
    assert y[0, 2, 0] == 2050.0


REFUSED = [  # layer, shape of one example, message
    (nn.PixelShuffle(), (3,), r"PixelShuffle takes \(batch, \*space, .*\(3,\)"),
    (nn.PixelShuffle((2, 2)), (3, 4), r"expected factors for 1 axes, got \(2, 2\)"),
    (nn.PixelShuffle(2), (3, 3, 6), r"factors \(2, 2\) divide, a multiple of 4, got 6"),
    (nn.PixelUnshuffle(2), (4, 3, 1), r"factors \(2, 2\) divide, got \(4, 3\)"),
    (nn.Unfold(3), (3,), r"Unfold takes \(batch, \*space, channels\), got .*\(3,\)"),
    (nn.Unfold((3, 3)), (5, 1), r"expected window for 1 axes, got \(3, 3\)"),
    (nn.Unfold(3), (5, 2, 1), r"windows over \(3, 3\) do not fit \(5, 2\)"),
    (nn.Unfold(2, padding=(1, 1)), (5, 1), "expected padding for 1 axes"),
    (nn.Fold(5, 3), (2, 6), r"size \(5,\) has \(3,\) windows, but x has \(2,\)"),
    (nn.Fold(5, 3), (3, 4), r"a multiple of the window \(3,\), got 4"),
    (nn.Fold((5, 5), 3), (3, 6), r"expected size for 1 axes, got \(5, 5\)"),
    (nn.Fold(2, 3), (1, 3), r"windows over \(3,\) do not fit \(2,\)"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), REFUSED, ids=str)
def test_a_shape_that_does_not_fit_is_refused(backend, layer, shape, message):
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    with pytest.raises(ValueError, match=message):
        layer.init(key, shape, backend.xp.float32)
    with pytest.raises(ValueError, match=message):
        layer.forward({}, {}, backend.asarray(np.zeros((2, *shape), "float32")))


INVALID = [  # call, error and message
    (lambda: nn.PixelShuffle(0), ValueError, "factors of at least 1, got 0"),
    (lambda: nn.PixelUnshuffle(1.5), TypeError, "factors to be an integer"),
    (lambda: nn.Unfold(0), ValueError, "window of at least 1, got 0"),
    (lambda: nn.Unfold(2, stride=0), ValueError, "stride of at least 1, got 0"),
    (lambda: nn.Unfold(2, padding=-1), ValueError, "padding of at least 0, got -1"),
    (lambda: nn.Unfold(2, padding="full"), ValueError, "'same', 'valid' or numbers"),
    (lambda: nn.Fold(0, 2), ValueError, "size of at least 1, got 0"),
    (lambda: nn.Fold(4, 2, dilation="1"), TypeError, "dilation to be an integer"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), INVALID, ids=[row[2] for row in INVALID]
)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_short_and_long_forms_of_options_are_equal():
    assert nn.Unfold([2, 3], padding=[1, [2, 0]]) == nn.Unfold(
        (2, 3), padding=((1, 1), (2, 0))
    )
    assert hash(nn.PixelShuffle([2, 3])) == hash(nn.PixelShuffle((2, 3)))
    assert hash(nn.Fold([4, 5], [2, 2])) == hash(nn.Fold((4, 5), (2, 2)))
