"""Resizing gives values known by hand, copies exactly, and refuses what it cannot."""

import numpy as np
import pytest

import agnostic_nn as nn

EPS = np.finfo("float32").eps


def run(backend, layer, x, dy=None):
    """Return y and dx in float32."""
    there = backend.asarray(np.asarray(x, "float32"))
    y, _, cache = layer.forward({}, {}, there)
    dy = np.ones(y.shape, "float32") if dy is None else np.asarray(dy, "float32")
    return backend.to_numpy((y, layer.backward({}, cache, backend.asarray(dy))[0]))


BY_HAND = [  # options, x, y
    ({"size": 3, "mode": "nearest"}, [1, 2, 3, 4, 5], [1, 2, 4]),
    ({"size": 3, "mode": "nearest-exact"}, [1, 2, 3, 4, 5], [1, 3, 5]),
    ({"size": 5, "mode": "nearest"}, [1, 2, 3], [1, 1, 2, 2, 3]),
    ({"size": 5, "mode": "nearest-exact"}, [1, 2, 3], [1, 1, 2, 3, 3]),
    ({"size": 4}, [0, 4], [0, 1, 3, 4]),
    ({"size": 5, "align_corners": True}, [0, 4, 0], [0, 2, 4, 2, 0]),
    ({"size": 1, "align_corners": True}, [3, 4], [3]),
    ({"size": 2}, [0, 1, 2, 3, 4, 5], [1, 4]),
    ({"size": 2, "antialias": True}, [0, 0, 7, 7], [1, 6]),
    ({"factors": 1.5}, [0, 3], [0, 1.5, 3]),
    ({"factors": 1.2}, [0, 3], [0, 3]),
    ({"size": 1, "mode": "cubic"}, [0, 1, 0, 0], [0.59375]),
]


@pytest.mark.parametrize(("options", "x", "expected"), BY_HAND, ids=str)
def test_values_are_those_computed_by_hand(backend, options, x, expected):
    y, dx = run(backend, nn.Resize(**options), np.reshape(x, (1, -1, 1)))
    np.testing.assert_allclose(y[0, :, 0], expected, rtol=0, atol=4 * EPS)
    # each row of A sums to 1, and so each y has a gradient of 1 to give
    assert np.sum(dx) == pytest.approx(len(expected), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(129, 200), (300, 77)])
def test_blocks_of_a_long_axis_join_without_a_gap(backend, n, m):
    x = np.linspace(0.0, 1.0, n, dtype="float64")
    expected = np.interp((np.arange(m) + 0.5) * n / m - 0.5, np.arange(n), x)
    for channels in (1, 16):  # few channels take another product
        wide = np.broadcast_to(x.reshape(1, n, 1), (2, n, channels))
        y, dx = run(backend, nn.Resize(m), wide)
        expected_wide = np.broadcast_to(expected.reshape(1, m, 1), y.shape)
        np.testing.assert_allclose(y, expected_wide, rtol=0, atol=4 * EPS)
        assert np.sum(dx[0, :, 0]) == pytest.approx(m, rel=1e-5)


LONG = [  # lengths of x and y, align_corners
    (1000, 2000, False),  # 1/2: PyTorch's own function is exact
    (1000, 3000, False),  # 1/3: in float32 it would be wrong in the fifth digit
    (2000, 1001, False),
    (513, 1025, True),
    (1024, 2048, True),
]


@pytest.mark.parametrize(("n", "m", "align_corners"), LONG)
def test_weights_of_long_axes_are_accurate(backend, thorough, n, m, align_corners):
    if not thorough and (n, m) != (1000, 3000):
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (1, n, 4)).astype("float32")
    centres = (np.arange(m) + 0.5) * n / m - 0.5
    if align_corners:
        centres = np.arange(m) * ((n - 1) / (m - 1))
    expected = [np.interp(centres, np.arange(n), x[0, :, c]) for c in range(4)]
    dy = generator.uniform(-1, 1, (1, m, 4)).astype("float32")
    y, dx = run(backend, nn.Resize(m, align_corners=align_corners), x, dy)
    np.testing.assert_allclose(y[0], np.transpose(expected), rtol=0, atol=4 * EPS)
    # Aᵀ from the columns of A, which are the y of one-hot x
    slopes = np.zeros((n, 4))
    for below, offset, row in zip(*np.divmod(centres, 1.0), dy[0], strict=True):
        for j, weight in ((below, 1.0 - offset), (below + 1, offset)):
            slopes[int(np.clip(j, 0, n - 1))] += weight * row
    np.testing.assert_allclose(dx[0], slopes, rtol=0, atol=16 * EPS)


def test_nearest_copies_infinite_numbers_without_spreading_them(backend):
    x = np.asarray([1.0, np.inf, -2.0]).reshape(1, 3, 1)
    y, _ = run(backend, nn.Resize(6, mode="nearest"), x)
    np.testing.assert_array_equal(y[0, :, 0], [1.0, 1.0, np.inf, np.inf, -2.0, -2.0])


def test_equal_lengths_are_copied(backend):
    x = np.asarray([0.1, 0.7, 0.3]).reshape(1, 3, 1).astype("float32")
    for mode in ("nearest", "nearest-exact", "linear", "cubic"):
        for options in ({"size": 3}, {"factors": 1.2}):
            y, dx = run(backend, nn.Resize(mode=mode, **options), x, x)
            np.testing.assert_array_equal(y, x)
            np.testing.assert_array_equal(dx, x)


def test_float16_is_computed_in_float32(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip("this library has no float16")
    x = np.random.default_rng(0).standard_normal((2, 40, 3)).astype("float16")
    layer = nn.Resize(7, antialias=True)
    y, _, cache = layer.forward({}, {}, backend.asarray(x))
    dx, _ = layer.backward({}, cache, y)
    wide = backend.asarray(x.astype("float32"))
    exact = backend.to_numpy(layer.forward({}, {}, wide)[0])
    assert backend.to_numpy(dx).dtype == "float16"
    np.testing.assert_array_equal(backend.to_numpy(y), exact.astype("float16"))


def test_batches_of_0_and_strided_inputs(backend):
    x = np.arange(96.0, dtype="float32").reshape(2, 3, 4, 4)
    layer = nn.Resize((5, 2))
    for strided in (x[:0], x[:, ::-1, ::2, ::2], np.transpose(x, (0, 2, 1, 3))):
        y, dx = run(backend, layer, strided)
        again, dagain = run(backend, layer, np.ascontiguousarray(strided))
        assert y.shape == (len(strided), 5, 2, strided.shape[-1])
        np.testing.assert_array_equal(y, again)
        np.testing.assert_array_equal(dx, dagain)


REFUSED = [  # layer, shape of one example, message
    (nn.Resize(2), (3,), r"Resize takes \(batch, \*space, channels\), got .*\(3,\)"),
    (nn.Resize((2, 2)), (3, 1), r"expected size for 1 axes, got \(2, 2\)"),
    (nn.Resize(factors=(2, 2)), (3, 1), r"expected factors for 1 axes, got \(2, 2\)"),
    (nn.Resize(factors=0.3), (3, 1), r"factors 0.3 leave nothing of \(3,\)"),
    (nn.Resize(2), (0, 1), r"axes of at least 1 element, got \(0,\)"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), REFUSED, ids=str)
def test_shapes_that_resize_cannot_take_are_refused(backend, layer, shape, message):
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    with pytest.raises(ValueError, match=message):
        layer.init(key, shape, backend.xp.float32)
    with pytest.raises(ValueError, match=message):
        layer.forward({}, {}, backend.asarray(np.zeros((2, *shape), "float32")))


INVALID = [  # options, error and message
    ({}, ValueError, "either size or factors, got size None and factors None"),
    ({"size": 2, "factors": 2.0}, ValueError, "either size or factors, got size 2"),
    ({"size": 0}, ValueError, "size of at least 1, got 0"),
    ({"size": 2.0}, TypeError, "size to be an integer"),
    ({"size": ()}, ValueError, "size for one axis or more"),
    ({"factors": 0.0}, ValueError, "a finite factors above 0, got 0.0"),
    ({"factors": (1.0, "2")}, TypeError, "each of factors to be a number"),
    ({"factors": ()}, ValueError, "factors for one axis or more"),
    ({"size": 2, "mode": "bilinear"}, ValueError, "'linear' or 'cubic', got 'bili"),
    ({"size": 2, "antialias": 1}, TypeError, "antialias to be True or False"),
    (
        {"size": 2, "mode": "nearest", "antialias": True},
        ValueError,
        "antialias is for mode 'linear' or 'cubic', got 'nearest'",
    ),
    (
        {"size": 2, "align_corners": True, "antialias": True},
        ValueError,
        "align_corners or antialias, not both",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), INVALID, ids=str)
def test_invalid_options_of_resize_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        nn.Resize(**options)


def test_short_and_long_forms_are_equal():
    assert nn.Resize([2, 3]) == nn.Resize((2, 3))
    assert hash(nn.Resize(factors=[2, 1.5])) == hash(nn.Resize(factors=(2, 1.5)))


@pytest.mark.parametrize("factor", [3.0, 5.0, 7.0, 1.1, 4.9])
def test_factors_without_an_exact_reciprocal_repeat_elements_evenly(backend, factor):
    n = 22
    x = np.arange(float(n), dtype=np.float32).reshape(1, n, 1)
    layer = nn.Resize(factors=factor, mode="nearest")
    y = backend.to_numpy(layer.forward({}, {}, backend.asarray(x))[0]).ravel()
    tenths = round(factor * 10)
    expected = [10 * i // tenths for i in range(n * tenths // 10)]
    np.testing.assert_array_equal(y, expected)
