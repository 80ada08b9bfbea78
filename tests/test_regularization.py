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
