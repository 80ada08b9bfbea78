"""Noise in training has the documented distribution; there is none in prediction."""

import math

import numpy as np
import pytest

import agnostic_nn as nn


def start(seed=1):
    return {"key": nn.random.key(seed, xp=nn.backend("numpy").xp)}


def step(backend, layer, state, x, train=True):
    """Return y, the new state, and dx for dy = 1."""

    def both(state, x):
        y, after, cache = layer.forward({}, state, x, train=train)
        return y, after, layer.backward({}, cache, backend.xp.ones_like(y))[0]

    return backend.to_numpy(backend.jit(both)(*backend.asarray((state, x))))


LAYERS = [nn.SpatialDropout(0.5), nn.DropPath(0.5), nn.GaussianNoise(0.5)]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.SpatialDropout(0.3), (1000, 2, 3, 40)), (nn.DropPath(0.3), (40_000, 1, 2, 2))],
    ids=str,
)
def test_channels_or_examples_are_dropped_as_a_whole_and_the_mean_is_kept(
    backend, layer, shape
):
    """One draw per channel of an example, or per example: 40,000 in total."""
    y, _, dx = step(backend, layer, start(), np.ones(shape, "float32"))
    np.testing.assert_array_equal(y, dx)
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.7)}
    by_channel = isinstance(layer, nn.SpatialDropout)
    first = y[:, :1, :1, :] if by_channel else y[:, :1, :1, :1]
    np.testing.assert_array_equal(y, np.broadcast_to(first, shape))
    assert first.size == 40_000
    deviation = math.sqrt(0.3 * 0.7 / 40_000)
    assert abs(np.mean(first == 0) - 0.3) < 4 * deviation
    assert abs(np.mean(y, dtype="float64") - 1.0) < 4 * deviation / 0.7
    # masks differ between examples and between channels
    for axis in (0, 3) if by_channel else ():
        assert np.min(np.mean(first == 0, axis=axis)) > 0.0


def test_noise_is_normal_with_the_given_deviation(backend):
    """Four moments of 200,000 draws are within 4 of their standard deviations."""
    x, count = np.full(200_000, 3.0, "float32"), 200_000
    y, _, dx = step(backend, nn.GaussianNoise(0.25), start(), x)
    np.testing.assert_array_equal(dx, np.ones_like(x))
    drawn = (y.astype("float64") - 3.0) / 0.25
    for power, moment, variance in (
        (1, 0.0, 1.0),
        (2, 1.0, 2.0),
        (3, 0.0, 15.0),
        (4, 3.0, 96.0),
    ):
        assert abs(np.mean(drawn**power) - moment) < 4 * math.sqrt(variance / count), (
            power
        )
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / math.sqrt(count)


@each_layer
def test_noise_differs_from_step_to_step_and_is_the_same_on_every_backend(
    backend, layer
):
    """Words are equal; √, log and cos have errors of a few eps."""
    x = np.ones((7, 9, 4), "float32")
    expected_state = state = start(3)
    result = []
    for _ in range(3):
        expected, expected_state, _ = step(
            nn.backend("numpy"), layer, expected_state, x
        )
        y, state, _ = step(backend, layer, state, x)
        atol = 16 * np.finfo("float32").eps
        np.testing.assert_allclose(y, expected, rtol=0, atol=atol)
        np.testing.assert_array_equal(state["key"], expected_state["key"])
        result.append(y)
    assert np.mean(result[0] != result[1]) > 0.1
    assert np.mean(result[1] != result[2]) > 0.1


def test_noise_is_the_same_in_every_dtype_up_to_rounding(backend, widest):
    state, x = start(5), np.zeros((50, 40))
    narrow, _, _ = step(backend, nn.GaussianNoise(1.0), state, x.astype("float32"))
    wide, _, _ = step(backend, nn.GaussianNoise(1.0), state, x.astype(widest))
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=16 * np.finfo("float32").eps)


@each_layer
def test_prediction_has_no_noise_and_keeps_the_key(backend, layer):
    x, state = (
        np.random.default_rng(0).standard_normal((3, 5, 2)).astype("float32"),
        start(),
    )
    y, after, dx = step(backend, layer, state, x, train=False)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, np.ones_like(x))
    np.testing.assert_array_equal(after["key"], state["key"])


INVALID = [  # call and message
    (lambda: nn.SpatialDropout(1.0), r"rate in \[0, 1\), got 1.0"),
    (
        lambda: nn.FeatureAlphaDropout().init(start()["key"], (), np.float32),
        r"FeatureAlphaDropout takes \(batch, \*space, channels\), got \(batch,\)",
    ),
    (lambda: nn.DropPath(-0.1), r"rate in \[0, 1\), got -0.1"),
    (lambda: nn.GaussianNoise(-1.0), "deviation of at least 0, got -1.0"),
    (
        lambda: nn.SpatialDropout().init(start()["key"], (), np.float32),
        r"SpatialDropout takes \(batch, \*space, channels\), got \(batch,\)",
    ),
]


@pytest.mark.parametrize(("make", "message"), INVALID, ids=[r[1] for r in INVALID])
def test_invalid_options_and_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_alpha_dropout_is_its_formula_and_keeps_mean_and_variance(backend):
    """If x has mean 0 and variance 1. The mask is that of the first of two keys."""
    generator, rate, alpha = np.random.default_rng(0), 0.3, -1.7580993408473766
    x = generator.standard_normal((50, 400)).astype("float32")
    key = nn.random.key(3, xp=nn.backend("numpy").xp)
    layer = nn.AlphaDropout(rate)

    def both(key, x):
        y, after, cache = layer.forward({}, {"key": key}, x, train=True)
        return y, after, layer.backward({}, cache, x)[0]

    y, after, dx = backend.to_numpy(backend.jit(both)(*backend.asarray((key, x))))
    keys = nn.random.split(key, 2)
    mask = nn.random.bernoulli(keys[0, :], 1 - rate, x.shape)
    a = ((1 - rate) * (1 + rate * alpha**2)) ** -0.5  # Klambauer et al.
    expected = a * (np.where(mask, x, alpha) - rate * alpha)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(dx, a * x * mask, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(after["key"], keys[1, :])
    # 20000 elements: a standard error of 0.007 of the mean, and 0.01 of the variance
    np.testing.assert_allclose([y.mean(), y.var()], [0.0, 1.0], atol=0.04)


def test_feature_alpha_dropout_drops_whole_channels_of_an_example(backend):
    """With one channel of one position it is AlphaDropout of x."""
    rate, x = 0.4, np.random.default_rng(0).standard_normal((6, 3, 4, 5))
    x = x.astype("float32")
    key = nn.random.key(3, xp=nn.backend("numpy").xp)

    def both(key, x):
        y, _, cache = nn.FeatureAlphaDropout(rate).forward(
            {}, {"key": key}, x, train=True
        )
        flat, *_ = nn.AlphaDropout(rate).forward(
            {}, {"key": key}, x[:, :1, :1, :], train=True
        )
        return y, flat, nn.FeatureAlphaDropout(rate).backward({}, cache, x)[0]

    y, flat, dx = backend.to_numpy(backend.jit(both)(*backend.asarray((key, x))))
    np.testing.assert_array_equal(y[:, :1, :1, :], flat)
    mask = nn.random.bernoulli(nn.random.split(key, 2)[0, :], 1 - rate, (6, 1, 1, 5))
    assert 0 < np.sum(mask) < mask.size
    slope = np.max(dx / x)
    np.testing.assert_allclose(dx, slope * x * mask, rtol=1e-5)
    dropped = y[np.broadcast_to(~mask, y.shape)]
    np.testing.assert_allclose(dropped, dropped[0], rtol=1e-6)


BILINEAR = [  # shapes for init, message
    ((3,), "Bilinear takes a tuple of two arrays"),
    (((3,), (2,), (2,)), "Bilinear takes a tuple of two arrays"),
    (((5, 3), (4, 3)), "two arrays that differ in the last axis only, got"),
]


@pytest.mark.parametrize(("shape", "message"), BILINEAR, ids=str)
def test_bilinear_refuses_what_is_not_a_pair(shape, message):
    xp = nn.backend("numpy").xp
    with pytest.raises(ValueError, match=message):
        nn.Bilinear(3).init(nn.random.key(0, xp=xp), shape, xp.float32)


def test_bilinear_refuses_arrays_of_other_shapes_and_dtypes(backend):
    xp = nn.backend("numpy").xp
    layer = nn.Bilinear(3)
    params, _, _ = layer.init(nn.random.key(0, xp=xp), ((5, 3), (5, 2)), xp.float32)
    params = backend.asarray(params)
    u, v, narrow = (np.ones((4, 5, n), "float32") for n in (3, 2, 1))
    message = r"Bilinear takes \(\.\.\., 3\) and \(\.\.\., 2\), got"
    for pair in ((v, u), (u, narrow), (u, v[:, :1])):
        with pytest.raises(ValueError, match=message):
            layer.forward(params, {}, backend.asarray(pair))
    with pytest.raises(ValueError, match=r"Bilinear holds .*float32, got .*int32"):
        layer.forward(params, {}, backend.asarray((u, v.astype("int32"))))
