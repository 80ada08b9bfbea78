"""Sampling at points: values known by hand, ends, kinks and refused input."""

import numpy as np
import pytest

import agnostic_nn as nn


def run(backend, layer, x, dy):
    def both(x, dy):
        y, _, cache = layer.forward({}, {}, x)
        return y, layer.backward({}, cache, dy)[0]

    return backend.to_numpy(backend.jit(both)(*backend.asarray((x, dy))))


# x is 10, 20, 40 along one axis, whose ends are at -1 and 1
LINE = [  # options, points, y, slope of y at each point
    ({}, [-2 / 3, 0, 1 / 3, 1 / 2], [10, 20, 30, 35], [None, None, 30, 30]),
    ({}, [-1, 0.9, -1.8, 9], [5, 26, 0, 0], [15, -60, 0, 0]),
    (
        {"align_corners": True},
        [-1, -0.5, 0.5, 1],
        [10, 15, 30, 40],
        [None, 10, 20, None],
    ),
    ({"padding": "border"}, [-9, -0.9, 0.9, 9], [10, 10, 40, 40], [0, 0, 0, 0]),
    (
        {"padding": "reflection"},
        [1 / 3, 5 / 3, 13 / 3, 1.2],
        [30, 30, 30, 40],
        [30, -30, 30, 0],
    ),
    (
        {"padding": "reflection", "align_corners": True},
        [0.5, 1.5, -2.5, 4.5],
        [30, 30, 30, 30],
        [20, -20, -20, 20],
    ),
    ({"mode": "nearest"}, [-0.9, -0.3, 0.3, 1.1], [10, 20, 20, 0], [0, 0, 0, 0]),
    (
        {"mode": "nearest", "padding": "border"},
        [-7, 0, 0.7, 7],
        [10, 20, 40, 40],
        [0] * 4,
    ),
    # c = 1/2 and 3/2 are rounded to even numbers
    (
        {"mode": "nearest", "align_corners": True},
        [-0.5, 0.5, 0, 1],
        [10, 40, 20, 40],
        [0] * 4,
    ),
]


@pytest.mark.parametrize(("options", "points", "y", "slopes"), LINE, ids=str)
def test_values_and_slopes_on_a_line_are_those_computed_by_hand(
    backend, options, points, y, slopes
):
    x = np.asarray([10, 20, 40], "float32").reshape(1, 3, 1)
    grid = np.asarray(points, "float32").reshape(1, 4, 1)
    dy = np.ones((1, 4, 1), "float32")
    result, dx = run(backend, nn.GridSample(**options), {"x": x, "grid": grid}, dy)
    np.testing.assert_allclose(result[0, :, 0], y, rtol=1e-5, atol=1e-4)
    for slope, expected in zip(dx["grid"][0, :, 0], slopes, strict=True):
        assert expected is None or slope == pytest.approx(expected, rel=1e-5)
    # y is linear in x
    assert np.sum(dx["x"] * x) == pytest.approx(np.sum(result), rel=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_identity_map_gives_x(backend, thorough, axes, align_corners):
    if axes != 2 and not thorough:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    size = (3, 4, 2)[:axes]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, *reversed(size), 3)).astype("float32")
    x = np.moveaxis(x, range(1, axes + 1), range(axes, 0, -1))  # not contiguous
    identity = np.eye(axes, axes + 1, dtype="float32")
    theta = np.repeat(identity[None], 2, axis=0)
    map_points = nn.AffineGrid(size, align_corners=align_corners)
    sample = nn.GridSample(align_corners=align_corners, padding="border")
    grid, dtheta = run(backend, map_points, theta, np.ones((2, *size, axes), "float32"))
    y, dx = run(backend, sample, {"x": x, "grid": grid}, x)
    np.testing.assert_allclose(y, x, rtol=0, atol=4e-6)
    np.testing.assert_allclose(dx["x"], x, rtol=0, atol=4e-6)
    count = np.prod(size)
    # the points are symmetric about 0
    expected = np.broadcast_to([0.0] * axes + [count], (2, axes, axes + 1))
    np.testing.assert_allclose(dtheta, expected, rtol=0, atol=1e-5)


def test_a_shift_by_one_pixel_moves_an_image(backend):
    """The coordinate of the columns is first."""
    x = np.arange(12, dtype="float32").reshape(1, 3, 4, 1)
    theta = np.asarray([[[1, 0, 2 / 4], [0, 1, 0]]], "float32")
    dy = np.zeros((1, 3, 4, 2), "float32")
    grid, _ = run(backend, nn.AffineGrid((3, 4)), theta, dy)
    y, _ = run(backend, nn.GridSample(), {"x": x, "grid": grid}, x)
    expected = np.concatenate([x[:, :, 1:], np.zeros((1, 3, 1, 1))], axis=2)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_points_far_outside_do_not_overflow(backend):
    x = np.ones((1, 2, 2, 1), "float32")
    grid = np.asarray([[[1e30, 0], [0, -1e30], [3e9, 3e9]]], "float32")
    dy = np.ones((1, 3, 1), "float32")
    for padding, expected in (("zeros", 0.0), ("border", 1.0)):
        layer = nn.GridSample(padding=padding)
        y, dx = run(backend, layer, {"x": x, "grid": grid}, dy)
        np.testing.assert_array_equal(y, np.full_like(y, expected))
        assert np.all(np.isfinite(dx["grid"]))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_a_point_that_is_nan_makes_its_own_y_nan(backend, mode):
    """Libraries differ in the integer that NaN becomes, and some raise an error.

    Where the sum of dx is a matrix product, the NaN reaches all of dx.
    """
    x = np.ones((2, 3, 2), "float32")
    grid = np.asarray([[[0], [np.nan]], [[0.1], [0]]], "float32")
    dy = np.ones((2, 2, 2), "float32")
    layer = nn.GridSample(mode=mode, padding="border")
    y, dx = run(backend, layer, {"x": x, "grid": grid}, dy)
    is_nan = np.isnan(grid[:, :, 0])
    np.testing.assert_array_equal(np.isnan(y), np.repeat(is_nan[:, :, None], 2, axis=2))
    if mode == "linear":
        np.testing.assert_array_equal(np.isnan(dx["grid"][:, :, 0]), is_nan)


def both(x, grid, dtype="float32"):
    return {"x": np.zeros((2, *x), "float32"), "grid": np.zeros((2, *grid), dtype)}


REFUSED = [  # x, message
    (np.zeros((2, 3, 1)), "takes x and grid, got a single array"),
    (both((3, 1), (5, 2)), r"got \(batch, \*\(3, 1\)\) and \(batch, \*\(5, 2\)\)"),
    (both((3, 4, 1), (5, 1)), r"and \(batch, \*\(5, 1\)\)"),
    (both((1,), (5, 0)), r"got \(batch, \*\(1,\)\)"),
    (both((0, 1), (5, 1)), r"got \(batch, \*\(0, 1\)\)"),
    (both((3, 1), (5, 1), "float64"), "x is float32, but grid is float64"),
]


@pytest.mark.parametrize(("x", "message"), REFUSED, ids=[row[1] for row in REFUSED])
def test_inputs_that_do_not_fit_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        nn.GridSample().forward({}, {}, x)


def test_matrices_that_do_not_fit_the_size_are_refused():
    message = r"size \(3, 4\) takes \(batch, 2, 3\), got \(batch, \*\(3, 4\)\)"
    with pytest.raises(ValueError, match=message):
        nn.AffineGrid((3, 4)).forward({}, {}, np.zeros((2, 3, 4)))


INVALID = [  # call, error and message
    (lambda: nn.GridSample(mode="cubic"), ValueError, "mode 'linear' or 'nearest'"),
    (lambda: nn.GridSample(padding="reflect"), ValueError, "or 'reflection', got"),
    (lambda: nn.GridSample(align_corners=1), TypeError, "align_corners to be True"),
    (lambda: nn.AffineGrid(3), ValueError, "size as a tuple .*, got 3"),
    (lambda: nn.AffineGrid(()), ValueError, r"size as a tuple .*, got \(\)"),
    (lambda: nn.AffineGrid((3, 0)), ValueError, "size of at least 1"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), INVALID, ids=[row[2] for row in INVALID]
)
def test_invalid_options_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
