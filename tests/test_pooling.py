"""Pooling, padding and upsampling: values, ties, edges and refused input."""

import itertools
import math

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.ops import largest, largest_input, pad, pad_impl, slide, unslide

versions = pytest.mark.parametrize("version", ["native", "standard"])


def run(backend, layer, x, dy=None):
    """Return y and dx of x, all on the host; dy is 1 if it is None."""
    xp = backend.xp

    def both(x, dy):
        y, _, cache = layer.forward({}, {}, x)
        return y, layer.backward({}, cache, xp.ones_like(y) if dy is None else dy)[0]

    dy = None if dy is None else backend.asarray(dy)
    y, dx = backend.jit(both)(backend.asarray(x), dy)
    return backend.to_numpy(y), backend.to_numpy(dx)


WINDOWS = [  # axis, length, window, stride, dilation
    (1, 6, 2, 2, 1),
    (2, 7, 3, 2, 1),
    (1, 7, 3, 1, 2),
    (2, 8, 2, 3, 1),
    (1, 9, 2, 3, 4),
    (2, 5, 1, 2, 1),
]
each_window = pytest.mark.parametrize("window_options", WINDOWS, ids=str)


@each_window
def test_slide_returns_each_position_of_each_window(backend, widest, window_options):
    axis, n, window, stride, dilation = window_options
    x = np.arange(2.0 * n * n * 3, dtype=widest).reshape(2, n, n, 3)
    result = backend.to_numpy(
        tuple(slide(backend.asarray(x), axis, window, stride, dilation))
    )
    starts = range(0, n - dilation * (window - 1), stride)
    for k, part in enumerate(result):
        positions = [o + k * dilation for o in starts]
        np.testing.assert_array_equal(part, np.take(x, positions, axis=axis))


@versions
@each_window
def test_unslide_is_the_adjoint_of_slide(backend, widest, version, window_options):
    """Sums of integers are exact; positions outside of all windows get 0."""
    axis, n, window, stride, dilation = window_options
    starts = range(0, n - dilation * (window - 1), stride)
    shape = [2, 5, 5, 3]
    shape[axis] = len(starts)
    generator = np.random.default_rng(0)
    parts = [generator.integers(-8, 9, shape).astype(widest) for _ in range(window)]
    shape[axis] = n
    expected = np.zeros(shape)
    for k, part in enumerate(parts):
        for o, start in enumerate(starts):
            before = (slice(None),) * axis
            expected[(*before, start + k * dilation)] += part[(*before, o)]

    function = unslide if version == "native" else unslide.dispatch(object)
    result = backend.jit(
        lambda *parts: function(
            *parts, axis=axis, stride=stride, dilation=dilation, length=n
        )
    )(*backend.asarray(tuple(parts)))
    np.testing.assert_array_equal(backend.to_numpy(result), expected)


def windows_of(lengths, window, stride, padding, dilation):
    """Yield the index of each window and its positions, or None for padding."""
    axes = []
    for n, k, s, (low, high), d in zip(
        lengths, window, stride, padding, dilation, strict=True
    ):
        starts = range(-low, n + high - d * (k - 1), s)
        axes.append(
            [
                [i if 0 <= i < n else None for i in range(a, a + k * d, d)]
                for a in starts
            ]
        )
    for index in itertools.product(*(range(len(axis)) for axis in axes)):
        per_axis = (axis[o] for axis, o in zip(axes, index, strict=True))
        positions = itertools.product(*per_axis)
        yield index, [None if None in position else position for position in positions]


GEOMETRIES = [  # lengths, window, stride, padding, dilation
    ((7,), (3,), (2,), ((1, 1),), (1,)),
    (
        (6, 4),
        (2, 2),
        (2, 2),
        ((0, 0), (0, 0)),
        (1, 1),
    ),  # each position is in one window
    ((7, 5), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)),  # in one or none
    ((4, 6), (2, 2), (2, 2), ((1, 0), (0, 0)), (1, 1)),
    ((4, 4), (2, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    ((6, 6), (2, 2), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((5, 6), (2, 3), (1, 2), ((1, 0), (2, 1)), (1, 1)),
    ((6, 5), (3, 2), (2, 1), ((2, 2), (0, 1)), (2, 1)),
    ((3, 4, 5), (2, 3, 1), (2, 1, 2), ((0, 1), (1, 1), (0, 0)), (1, 1, 1)),
    ((4, 4, 5), (2, 2, 2), (2, 1, 2), ((1, 1), (0, 0), (0, 0)), (1, 1, 3)),
]
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


@versions
@each_geometry
def test_the_first_maximum_of_a_window_is_the_output_and_has_the_gradient(
    backend, version, geometry
):
    """By hand, on integers of which many are equal."""
    lengths, *options = geometry
    generator = np.random.default_rng(0)
    x = generator.integers(-3, 0, (2, *lengths, 2)).astype("float32")
    windows = dict(windows_of(*geometry))
    out = tuple(np.max(list(windows), axis=0) + 1)
    dy = generator.integers(1, 9, (2, *out, 2)).astype("float32")
    expected, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for example, channel in itertools.product(range(2), range(2)):
        for index, positions in windows.items():
            inside = [(example, *p, channel) for p in positions if p is not None]
            # Python's max returns the first, too
            first = max(inside, key=lambda position: x[position])
            expected[(example, *index, channel)] = x[first]
            dx[first] += dy[(example, *index, channel)]
    pool, unpool = (
        f if version == "native" else f.dispatch(object)
        for f in (largest, largest_input)
    )

    def both(x, dy):
        y, which = pool(x, *options)
        return y, unpool(dy, which, lengths, *options)

    result = backend.to_numpy(backend.jit(both)(*backend.asarray((x, dy))))
    for actual, by_hand in zip(result, (expected, dx), strict=True):
        assert actual.dtype == "float32"
        np.testing.assert_array_equal(actual, by_hand)


@pytest.mark.parametrize("layer", [nn.MaxPool2D(2), nn.MaxPool2D(2, stride=1)], ids=str)
def test_elements_below_the_maximum_have_gradient_0_even_if_dy_is_not_finite(
    backend, layer
):
    """0 · ∞ would be NaN."""
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    y, _ = run(backend, layer, x)
    for bad in (math.inf, math.nan):
        _, dx = run(backend, layer, x, np.full_like(y, bad))
        np.testing.assert_array_equal(dx, np.where(np.isin(x, y), np.float32(bad), 0))


@versions
@pytest.mark.parametrize("value", [0.0, -math.inf])
@pytest.mark.parametrize(
    "pads", [((1, 2),), ((0, 3), (1, 0)), ((1, 0), (0, 0), (0, 2))], ids=str
)
def test_pad_surrounds_the_inner_axes_with_a_value(
    backend, widest, version, value, pads
):
    x = np.arange(2.0 * 3 ** len(pads) * 2, dtype=widest).reshape(
        2, *(3,) * len(pads), 2
    )
    function = pad_impl if version == "native" else pad_impl.dispatch(object)
    result = backend.to_numpy(
        backend.jit(lambda x: function(x, pads, value))(backend.asarray(x))
    )
    expected = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def test_negative_padding_crops_and_may_leave_only_padding(backend):
    x = backend.asarray(np.arange(1.0, 4.0, dtype="float32").reshape(1, 3, 1))
    for pads, expected in [
        ((-1, 2), [2, 3, 0, 0]),
        ((1, -2), [0, 1]),
        ((-4, 3), [0, 0]),
    ]:
        np.testing.assert_array_equal(
            backend.to_numpy(pad(x, (pads,)))[0, :, 0], expected
        )


@each_geometry
@pytest.mark.parametrize("count_padding", [True, False])
def test_average_pooling_divides_by_the_documented_count(
    backend, widest, epsilon, geometry, count_padding
):
    lengths, window, stride, padding, dilation = geometry
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, *lengths, 2)).astype(widest)
    kind = (nn.AveragePool1D, nn.AveragePool2D, nn.AveragePool3D)[len(lengths) - 1]
    options = {"padding": padding, "dilation": dilation, "count_padding": count_padding}
    layer = kind(window, stride, **options)
    windows = dict(windows_of(*geometry))
    out = tuple(np.max(list(windows), axis=0) + 1)
    expected, dx = np.zeros((2, *out, 2)), np.zeros(x.shape)
    for index, positions in windows.items():
        inside = [position for position in positions if position is not None]
        count = len(positions) if count_padding else len(inside)
        for position in inside:
            expected[(slice(None), *index)] += x[(slice(None), *position)] / count
            dx[(slice(None), *position)] += 1.0 / count
    result = run(backend, layer, x)
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=8 * epsilon)
    np.testing.assert_allclose(result[1], dx, rtol=0, atol=8 * epsilon)


CEILED = [  # layer, length, positions of each window, count of each mean
    (nn.AveragePool1D(2, 2, ceil_mode=True), 5, [(0, 1), (2, 3), (4,)], [2, 2, 1]),
    (nn.AveragePool1D(3, 2, ceil_mode=True), 5, [(0, 1, 2), (2, 3, 4)], [3, 3]),
    # a third window would begin in the padding after the end
    (nn.AveragePool1D(2, 4, padding=1, ceil_mode=True), 7, [(0,), (3, 4)], [2, 2]),
    # the padding after the end counts, but what is beyond it does not
    (
        nn.AveragePool1D(3, 3, padding=1, ceil_mode=True),
        6,
        [(0, 1), (2, 3, 4), (5,)],
        [3, 3, 2],
    ),
    (
        nn.AveragePool1D(3, 3, padding=1, ceil_mode=True, count_padding=False),
        6,
        [(0, 1), (2, 3, 4), (5,)],
        [2, 3, 1],
    ),
]


@pytest.mark.parametrize(("layer", "length", "windows", "counts"), CEILED, ids=str)
def test_ceil_mode_adds_a_last_window_that_begins_before_the_end(
    backend, layer, length, windows, counts
):
    x = (2.0 ** np.arange(length)).astype("float32").reshape(1, length, 1)
    y, dx = run(backend, layer, x)
    sums = np.asarray([sum(2.0**i for i in window) for window in windows])
    np.testing.assert_allclose(y[0, :, 0], sums / counts, rtol=2e-7)
    slopes = np.zeros(length)
    for window, count in zip(windows, counts, strict=True):
        slopes[list(window)] += 1.0 / count
    np.testing.assert_allclose(dx[0, :, 0], slopes, rtol=2e-7)
    largest = nn.MaxPool1D(3, 2, ceil_mode=True)
    y, dx = run(backend, largest, x[:, :4, :])
    np.testing.assert_array_equal(y[0, :, 0], [4.0, 8.0])
    np.testing.assert_array_equal(dx[0, :, 0], [0.0, 0.0, 1.0, 1.0])


def test_padding_same_gives_the_same_windows_with_ceil_mode():
    for n, k, s in itertools.product(range(1, 9), range(1, 5), range(1, 5)):
        host = nn.backend("numpy").xp
        key = nn.random.key(0, xp=host)
        plain = nn.AveragePool1D(k, s, padding="same")
        ceiled = nn.AveragePool1D(k, s, padding="same", ceil_mode=True)
        shapes = [layer.init(key, (n, 1), host.float32)[2] for layer in (plain, ceiled)]
        assert shapes[0] == shapes[1] == (-(-n // s), 1), (n, k, s)


NORMS = [  # layer, x, y, dx for a dy of 1
    (nn.LpPool1D(2), [3, 4, 0, 0], [5, 0], [0.6, 0.8, 0, 0]),
    (nn.LpPool1D(2, p=1), [3, -4, 0, 0], [-1, 0], [1, 1, 1, 1]),
    (nn.LpPool1D(2, p=1, absolute=True), [3, -4, 0, 0], [7, 0], [1, -1, 0, 0]),
    (nn.LpPool1D(2, p=3, absolute=True), [0, -2, 0, 0], [2, 0], [0, -1, 0, 0]),
    (nn.LpPool1D(2, p=3), [-2, 2, 0, 1], [0, 1], [0, 0, 0, 1]),
    # a window beyond the end has fewer elements; PyTorch would make 4√2 of 4
    (nn.LpPool1D(2, ceil_mode=True), [3, 4, 4], [5, 4], [0.6, 0.8, 1]),
    (nn.LpPool1D(2, padding=1), [3, 4, 0, 0], [3, 4, 0], [1, 1, 0, 0]),
]


@pytest.mark.parametrize(("layer", "x", "y", "dx"), NORMS, ids=str)
def test_norms_of_windows_and_their_gradients_where_they_are_0(
    backend, layer, x, y, dx
):
    result = run(backend, layer, np.asarray(x, "float32").reshape(1, -1, 1))
    np.testing.assert_allclose(result[0][0, :, 0], y, rtol=1e-6)
    np.testing.assert_allclose(result[1][0, :, 0], dx, rtol=1e-6)


def test_norms_of_float16_are_computed_in_float32(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip("this library has no float16")
    x = np.full((1, 4, 1), 1000.0, "float16")  # the square overflows
    y, dx = run(backend, nn.LpPool1D(4), x)
    np.testing.assert_array_equal(y, np.full((1, 1, 1), 2000.0))
    np.testing.assert_array_equal(dx, np.full((1, 4, 1), 0.5))
    assert y.dtype == dx.dtype == "float16"


@pytest.mark.parametrize("kind", [nn.MaskedAveragePool, nn.MaskedMaxPool])
def test_masked_pooling_ignores_other_positions_and_an_empty_mask_gives_0(
    backend, kind
):
    x = np.asarray([[[1, -2], [3, -4], [9, 9]], [[5, 6], [7, 8], [9, 9]]], "float32")
    x = np.concatenate([x, x[:1]])
    mask = np.asarray([[True, True, False], [False] * 3, [False, False, True]])
    dy = np.asarray([[2.0, 4.0], [8.0, 16.0], [32.0, 64.0]], "float32")
    y, dx = run(backend, kind(), {"x": x, "mask": mask}, dy)
    is_mean = kind is nn.MaskedAveragePool
    np.testing.assert_array_equal(y, [[2, -3] if is_mean else [3, -2], [0, 0], [9, 9]])
    first = [[1, 2], [1, 2], [0, 0]] if is_mean else [[0, 4], [2, 0], [0, 0]]
    last = [[0, 0], [0, 0], [32, 64]]
    np.testing.assert_array_equal(dx["x"], [first, np.zeros((3, 2)), last])
    assert dx["mask"] is None


def test_masked_pooling_accepts_any_number_of_axes(backend):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 3, 4, 5)).astype("float32")
    mask = generator.random((2, 3, 4)) < 0.5
    for layer, reduce in (
        (nn.MaskedAveragePool(), np.mean),
        (nn.MaskedMaxPool(), np.max),
    ):
        y, dx = run(backend, layer, {"x": x, "mask": mask})
        expected = [reduce(part[m], axis=0) for part, m in zip(x, mask, strict=True)]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        assert dx["x"].shape == x.shape


REFUSED_MASKS = [  # x, error and message
    (np.ones((2, 3, 4)), ValueError, "a single array; GlobalAveragePool takes an x"),
    ({"x": np.ones((2, 3, 4))}, ValueError, r"takes x and mask, got \['x'\]"),
    (
        {"x": np.ones((2, 3, 4)), "mask": np.ones((2, 4), bool)},
        ValueError,
        r"mask \(batch, \*space\), got \(batch, \*\(3, 4\)\) and \(batch, \*\(4,\)\)",
    ),
    (
        {"x": np.ones((2, 3, 4)), "mask": np.ones((2, 3))},
        TypeError,
        "expected a boolean mask",
    ),
]


@pytest.mark.parametrize(("x", "error", "message"), REFUSED_MASKS)
def test_masked_pooling_refuses_other_inputs(x, error, message):
    with pytest.raises(error, match=message):
        nn.MaskedAveragePool().forward({}, {}, x)


POOLS = [
    (nn.MaxPool2D(2), 2),
    (nn.MaxPool2D(3, stride=2, padding=1), 2),
    (nn.AveragePool2D(2), 2),
    (nn.AveragePool2D(3, 2, padding=1), 2),
    (nn.AdaptiveMaxPool(2), 2),
    (nn.AdaptiveAveragePool(2), 2),
    (nn.GlobalMaxPool(), 0),
    (nn.GlobalAveragePool(), 0),
]


@pytest.mark.parametrize(("layer", "axes"), POOLS, ids=str)
def test_only_windows_with_nan_give_nan(backend, layer, axes):
    x = np.ones((2, 4, 4, 2), "float32")
    x[0, 0, 0, 1] = np.nan
    y, _ = run(backend, layer, x)
    expected = np.zeros(y.shape, bool)
    expected[(0, *(0,) * axes, 1)] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


@pytest.mark.parametrize(
    "layer",
    [nn.MaxPool2D(3, stride=3), nn.GlobalMaxPool(), nn.AdaptiveMaxPool(1)],
    ids=str,
)
def test_at_a_tie_the_first_position_in_row_major_order_has_the_gradient(
    backend, layer
):
    x = np.asarray([[0, 0, 2], [0, 2, 0], [2, 0, 0]], "float32").reshape(1, 3, 3, 1)
    _, dx = run(backend, layer, x)
    np.testing.assert_array_equal(dx.reshape(3, 3), [[0, 0, 1], [0, 0, 0], [0, 0, 0]])


def test_padding_is_never_the_maximum(backend):
    lowest = np.asarray([-1.0, -3e38, -math.inf], "float32")
    x = np.broadcast_to(lowest, (1, 3, 3, 3))
    y, dx = run(backend, nn.MaxPool2D(3, stride=1, padding=((2, 1), (1, 2))), x)
    np.testing.assert_array_equal(y, np.broadcast_to(lowest, (1, 4, 4, 3)))
    np.testing.assert_array_equal(np.sum(dx, axis=(0, 1, 2)), [16.0, 16.0, 16.0])
    dilated = nn.MaxPool1D(3, stride=1, padding=((3, 3),), dilation=2)
    y, dx = run(backend, dilated, x[:, :, 0, :])
    np.testing.assert_array_equal(y, np.broadcast_to(lowest, (1, 5, 3)))
    np.testing.assert_array_equal(
        dx, np.broadcast_to([[[2.0], [3.0], [0.0]]], (1, 3, 3))
    )


def test_a_long_window_is_read_to_its_end(backend):
    """It has more positions than a narrow integer can count."""
    x = np.zeros((1, 300, 1), "float32")
    x[0, 299, 0] = 1.0
    y, dx = run(backend, nn.MaxPool1D(300), x)
    np.testing.assert_array_equal(y, [[[1.0]]])
    np.testing.assert_array_equal(dx, x)


@pytest.mark.parametrize(
    ("n", "m", "bins"),
    [
        (7, 3, [(0, 3), (2, 5), (4, 7)]),
        (6, 2, [(0, 3), (3, 6)]),
        (5, 5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (2, 3, [(0, 1), (0, 2), (1, 2)]),
        (10, 4, [(0, 3), (2, 5), (5, 8), (7, 10)]),
    ],
)
def test_bins_cover_space_evenly(backend, widest, epsilon, n, m, bins):
    x = np.random.default_rng(0).standard_normal((2, n, 3)).astype(widest)
    y, _ = run(backend, nn.AdaptiveMaxPool(m), x)
    np.testing.assert_array_equal(
        y, np.stack([x[:, a:b].max(axis=1) for a, b in bins], axis=1)
    )
    y, dx = run(backend, nn.AdaptiveAveragePool(m), x)
    expected = np.stack([x[:, a:b].mean(axis=1) for a, b in bins], axis=1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=8 * epsilon)
    slopes = [sum(1.0 / (b - a) for a, b in bins if a <= i < b) for i in range(n)]
    np.testing.assert_allclose(dx[0, :, 0], slopes, rtol=8 * epsilon)


def test_global_pooling_accepts_any_number_of_axes(backend, widest, epsilon):
    for lengths in [(6,), (2, 3), (1, 3, 2), (3, 1, 2, 1)]:
        x = np.arange(12, dtype=widest).reshape(1, 6, 2)[:, [3, 5, 0, 1, 4, 2], :]
        x = x.reshape(1, *lengths, 2)
        y, dx = run(backend, nn.GlobalMaxPool(), x)
        np.testing.assert_array_equal(y, [[10.0, 11.0]])
        np.testing.assert_array_equal(dx, x >= 10)
        y, dx = run(backend, nn.GlobalAveragePool(), x)
        np.testing.assert_allclose(y, [[5.0, 6.0]], rtol=4 * epsilon)
        np.testing.assert_allclose(dx, np.full(x.shape, 1.0 / 6.0), rtol=4 * epsilon)


LINEAR = [  # factor, x, y by hand
    (2, [0.0, 4.0], [0.0, 1.0, 3.0, 4.0]),
    (3, [0.0, 3.0, 9.0], [0.0, 0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 9.0]),
    (4, [8.0, 0.0], [8.0, 8.0, 7.0, 5.0, 3.0, 1.0, 0.0, 0.0]),
    (1, [1.0, 5.0, 2.0], [1.0, 5.0, 2.0]),
    (5, [7.0], [7.0] * 5),
]


@pytest.mark.parametrize(("factor", "x", "expected"), LINEAR)
def test_linear_upsampling_aligns_the_centres_of_elements(backend, factor, x, expected):
    x = np.asarray(x, "float32").reshape(1, -1, 1)
    y, dx = run(backend, nn.Upsample(factor, mode="linear"), x)
    np.testing.assert_allclose(y[0, :, 0], expected, rtol=0, atol=1e-6)
    assert np.sum(dx) == pytest.approx(len(expected), rel=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_linear_upsampling_of_a_long_axis_is_accurate(backend, factor):
    """Weights computed from sᵢ would have an error of the length of the axis in eps."""
    n = 500
    x = (np.arange(n, dtype="float32") % 2).reshape(1, n, 1)
    y, _ = run(backend, nn.Upsample(factor, mode="linear"), x)
    source = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
    expected = np.interp(source, np.arange(n), x[0, :, 0])
    np.testing.assert_allclose(
        y[0, :, 0], expected, rtol=0, atol=2 * np.finfo("float32").eps
    )


def test_nearest_upsampling_repeats_elements_and_adds_their_gradients(backend):
    x = np.arange(4.0, dtype="float32").reshape(1, 2, 2, 1)
    dy = np.arange(24.0, dtype="float32").reshape(1, 4, 6, 1)
    y, dx = run(backend, nn.Upsample((2, 3)), x, dy)
    np.testing.assert_array_equal(
        y[0, :, :, 0], np.kron(x[0, :, :, 0], np.ones((2, 3)))
    )
    np.testing.assert_array_equal(
        dx[0, :, :, 0], dy.reshape(2, 2, 2, 3).sum(axis=(1, 3))
    )


@pytest.mark.parametrize("padding", [0, 2, (1, 2), ((0, 2), (3, 0))], ids=str)
def test_cropping_undoes_padding(backend, padding):
    x = np.arange(12.0, dtype="float32").reshape(1, 2, 3, 2)
    y, dx = run(backend, nn.ZeroPad(padding), x)
    pairs = [
        (p, p) if isinstance(p, int) else p
        for p in ([padding] * 2, padding)[isinstance(padding, tuple)]
    ]
    np.testing.assert_array_equal(y, np.pad(x, ((0, 0), *pairs, (0, 0))))
    np.testing.assert_array_equal(dx, np.ones(x.shape))
    cropped, dx = run(backend, nn.Crop(padding), y)
    np.testing.assert_array_equal(cropped, x)
    np.testing.assert_array_equal(
        dx, np.pad(np.ones(x.shape), ((0, 0), *pairs, (0, 0)))
    )


WRONG_SHAPES = [  # layer, shape of one example, message
    (nn.MaxPool1D(), (4,), r"MaxPool1D takes 3 axes, .*, got .*\(4,\)"),
    (nn.MaxPool2D(), (4, 1), r"MaxPool2D takes 4 axes, .*, got .*\(4, 1\)"),
    (nn.AveragePool3D(), (4, 4, 1), r"AveragePool3D takes .*, got .*\(4, 4, 1\)"),
    (nn.MaxPool2D(3), (4, 2, 1), r"windows over \(3, 3\) do not fit \(4, 2\)"),
    (nn.AveragePool1D(3), (2, 1), r"windows over \(3,\) do not fit \(2,\)"),
    (
        nn.MaxPool1D(2, padding=2),
        (4, 1),
        r"window of \(2,\) would contain nothing but padding",
    ),
    (
        nn.AveragePool1D(2, padding=((0, 2),)),
        (4, 1),
        "would contain nothing but padding",
    ),
    (
        nn.MaxPool1D(2, 1, padding=((1, 2),), dilation=3),
        (1, 1),
        "would contain nothing but padding",
    ),
    (
        nn.GlobalMaxPool(),
        (3,),
        r"GlobalMaxPool takes \(batch, \*space, .*, got .*\(3,\)",
    ),
    (nn.GlobalAveragePool(), (0, 3), r"GlobalAveragePool takes .*, got .*\(0, 3\)"),
    (nn.AdaptiveMaxPool(2), (3,), r"AdaptiveMaxPool takes \(batch, \*space, .*\(3,\)"),
    (nn.AdaptiveAveragePool((2, 2)), (3, 1), r"expected size for 1 axes, got \(2, 2\)"),
    (nn.Upsample(), (3,), r"Upsample takes \(batch, \*space, channels\), got .*\(3,\)"),
    (nn.Upsample((2, 2)), (3, 1), r"expected factors for 1 axes, got \(2, 2\)"),
    (nn.ZeroPad(), (3,), r"ZeroPad takes \(batch, \*space, channels\), got .*\(3,\)"),
    (nn.ZeroPad((1, 2)), (3, 1), r"expected padding for 1 axes"),
    (nn.Crop(((1, 2),)), (3, 1), r"nothing of \(3,\) is left without \(\(1, 2\),\)"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), WRONG_SHAPES, ids=str)
def test_a_shape_that_a_layer_cannot_take_is_refused(backend, layer, shape, message):
    """By init, and by forward, except for windows that contain only padding."""
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    with pytest.raises(ValueError, match=message):
        layer.init(key, shape, backend.xp.float32)
    if "padding" not in message:
        with pytest.raises(ValueError, match=message):
            layer.forward({}, {}, backend.asarray(np.zeros((2, *shape), "float32")))


INVALID = [  # call, error and message
    (lambda: nn.MaxPool2D(0), ValueError, "window of at least 1, got 0"),
    (
        lambda: nn.MaxPool2D((2, 2, 2)),
        ValueError,
        r"window for 2 axes, got \(2, 2, 2\)",
    ),
    (lambda: nn.MaxPool1D(2, stride=0), ValueError, "stride of at least 1, got 0"),
    (lambda: nn.MaxPool1D(2.0), TypeError, "window to be an integer"),
    (
        lambda: nn.AveragePool1D(2, padding="half"),
        ValueError,
        "'same', 'valid' or numbers",
    ),
    (lambda: nn.MaxPool1D(ceil_mode=1), TypeError, "ceil_mode to be True or False"),
    (
        lambda: nn.AveragePool2D(divisor_override=0),
        ValueError,
        "divisor_override above 0, got 0",
    ),
    (lambda: nn.AveragePool1D(dilation=0), ValueError, "dilation of at least 1, got 0"),
    (lambda: nn.AdaptiveMaxPool(0), ValueError, "size of at least 1, got 0"),
    (lambda: nn.AdaptiveAveragePool((2, 1.5)), TypeError, "size to be an integer"),
    (lambda: nn.Upsample(0), ValueError, "factors of at least 1, got 0"),
    (
        lambda: nn.Upsample(2, mode="cubic"),
        ValueError,
        "mode 'nearest' or 'linear', got 'cubic'",
    ),
    (lambda: nn.ZeroPad("same"), TypeError, "padding to be numbers, got 'same'"),
    (lambda: nn.Crop(-1), ValueError, "padding of at least 0, got -1"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), INVALID, ids=[r[2] for r in INVALID]
)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_short_and_long_forms_of_options_are_equal():
    assert nn.MaxPool2D(2) == nn.MaxPool2D(
        [2, 2], stride=(2, 2), padding="valid", dilation=1
    )
    assert nn.AveragePool1D(3, padding=1) == nn.AveragePool1D((3,), 3, padding=[(1, 1)])
    assert nn.ZeroPad([1, [2, 0]]) == nn.ZeroPad(((1, 1), (2, 0)))
    assert hash(nn.AdaptiveMaxPool([2, 3])) == hash(nn.AdaptiveMaxPool((2, 3)))
    assert hash(nn.Upsample([2, 3])) == hash(nn.Upsample((2, 3)))
