"""Noise while training: its share, its shape, the same on every backend; none when predicting."""

import math

import numpy as np
import pytest

import agnostic_nn as nn


def start(seed=1):
    return {"key": nn.random.key(seed, xp=nn.backend("numpy").xp)}


def step(backend, layer, state, x, train=True):
    """y, the next state, and dx where dy is 1."""

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
def test_what_is_dropped_is_dropped_whole_and_the_mean_is_kept(backend, layer, shape):
    """One draw for each channel of an example, or for each example; 40 000 of them."""
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
    # neither all examples nor all channels are alike
    for axis in (0, 3) if by_channel else ():
        assert np.min(np.mean(first == 0, axis=axis)) > 0.0


def test_noise_is_normal_with_its_deviation(backend):
    """Mean, variance and fourth moment of 200 000 draws, within 4 of their own deviations."""
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
    """The words are equal; √, log and cos bring a few eps of a number of order 1."""
    x = np.ones((7, 9, 4), "float32")
    state = there = start(3)
    result = []
    for _ in range(3):
        y, state, _ = step(nn.backend("numpy"), layer, state, x)
        again, there, _ = step(backend, layer, there, x)
        np.testing.assert_allclose(again, y, rtol=0, atol=16 * np.finfo("float32").eps)
        np.testing.assert_array_equal(there["key"], state["key"])
        result.append(y)
    assert np.mean(result[0] != result[1]) > 0.1
    assert np.mean(result[1] != result[2]) > 0.1


def test_noise_is_the_same_in_every_dtype_but_for_rounding(backend, widest):
    state, x = start(5), np.zeros((50, 40))
    narrow, _, _ = step(backend, nn.GaussianNoise(1.0), state, x.astype("float32"))
    wide, _, _ = step(backend, nn.GaussianNoise(1.0), state, x.astype(widest))
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=16 * np.finfo("float32").eps)


@each_layer
def test_predicting_is_without_noise_and_draws_nothing(backend, layer):
    x, state = (
        np.random.default_rng(0).standard_normal((3, 5, 2)).astype("float32"),
        start(),
    )
    y, after, dx = step(backend, layer, state, x, train=False)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, np.ones_like(x))
    np.testing.assert_array_equal(after["key"], state["key"])


SENSELESS = [  # call and message
    (lambda: nn.SpatialDropout(1.0), r"rate in \[0, 1\), got 1.0"),
    (lambda: nn.DropPath(-0.1), r"rate in \[0, 1\), got -0.1"),
    (lambda: nn.GaussianNoise(-1.0), "deviation of at least 0, got -1.0"),
    (
        lambda: nn.SpatialDropout().init(start()["key"], (), np.float32),
        r"SpatialDropout takes \(batch, \*space, channels\), got \(batch,\)",
    ),
]


@pytest.mark.parametrize(("make", "message"), SENSELESS, ids=[r[1] for r in SENSELESS])
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
