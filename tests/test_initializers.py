"""Initializers have the documented distributions, in every dtype, on every backend."""

import functools
import math
from statistics import NormalDist

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import random
from agnostic_nn.initializers import (
    Constant,
    Orthogonal,
    TruncatedNormal,
    VarianceScaling,
)

HOST = nn.backend("numpy")
NORMAL = NormalDist()
SCALED = [  # initializer, its variance as a function of the fans, its distribution
    (nn.glorot_normal, lambda fan_in, fan_out: 2 / (fan_in + fan_out), "normal"),
    (nn.glorot_uniform, lambda fan_in, fan_out: 2 / (fan_in + fan_out), "uniform"),
    (nn.he_normal, lambda fan_in, fan_out: 2 / fan_in, "normal"),
    (nn.he_uniform, lambda fan_in, fan_out: 2 / fan_in, "uniform"),
    (nn.lecun_normal, lambda fan_in, fan_out: 1 / fan_in, "normal"),
    (nn.lecun_uniform, lambda fan_in, fan_out: 1 / fan_in, "uniform"),
    (
        VarianceScaling(0.3, "out", distribution="uniform"),
        lambda fan_in, fan_out: 0.3 / fan_out,
        "uniform",
    ),
]
each_scaled = pytest.mark.parametrize(
    ("initializer", "variance", "distribution"),
    SCALED,
    ids=[str(case[0]) for case in SCALED],
)
KINDS = [
    nn.glorot_normal,
    nn.he_uniform,
    Constant(0.25),
    TruncatedNormal(),
    Orthogonal(),
]
each_kind = pytest.mark.parametrize("initializer", KINDS, ids=str)


@functools.cache
def start(backend, initializer, shape, dtype, seed=0):
    """Draw with `initializer` on `backend` and return the result on the host."""
    key = random.key(seed, xp=backend.xp, device=backend.device)
    dtype = getattr(backend.xp, dtype)
    return backend.to_numpy(
        backend.jit(lambda key: initializer(key, shape, dtype))(key)
    )


@pytest.mark.parametrize(
    ("shape", "fan_in", "fan_out"),
    [((60, 300), 60, 300), ((300, 60), 300, 60), ((3, 5, 20, 40), 300, 600)],
    ids=str,
)
@each_scaled
def test_the_variance_is_that_of_the_formula(
    initializer, variance, distribution, shape, fan_in, fan_out
):
    """For variance 1, the variance of the square is 2 (normal) or 0.8 (uniform)."""
    drawn = start(HOST, initializer, shape, "float64").ravel()
    expected = variance(fan_in, fan_out)
    spread = math.sqrt((2 if distribution == "normal" else 0.8) / drawn.size)
    assert np.mean(drawn**2) == pytest.approx(expected, rel=4 * spread)
    assert np.mean(drawn) == pytest.approx(0, abs=4 * math.sqrt(expected / drawn.size))
    bound = math.sqrt(3 * expected)
    if distribution == "uniform":
        assert 0.999 * bound < np.max(np.abs(drawn)) <= bound
        inner = np.mean(np.abs(drawn) < bound / 2)
        assert inner == pytest.approx(0.5, abs=2 / math.sqrt(drawn.size))
    else:
        within = [np.mean(np.abs(drawn) < k * math.sqrt(expected)) for k in (1, 2, 3)]
        np.testing.assert_allclose(
            within, [0.6827, 0.9545, 0.9973], atol=2 / math.sqrt(drawn.size)
        )


@each_kind
def test_every_backend_and_dtype_has_the_same_initial_values(
    backend, widest, epsilon, initializer
):
    shape = (4, 2)
    drawn = start(backend, initializer, shape, widest)
    assert drawn.shape == shape
    assert drawn.dtype == widest
    expected = start(HOST, initializer, shape, widest)
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=16 * epsilon)
    narrow = start(HOST, initializer, shape, "float32")
    assert narrow.dtype == np.float32


@each_kind
def test_equal_keys_give_equal_weights_and_different_keys_different_ones(initializer):
    first, other = (
        start(HOST, initializer, (5, 3), "float32", seed) for seed in (7, 8)
    )
    start.cache_clear()
    repeated = start(HOST, initializer, (5, 3), "float32", 7)
    np.testing.assert_array_equal(first, repeated)
    assert np.array_equal(first, other) == isinstance(initializer, Constant)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 4), (2, 3)], ids=str)
def test_a_constant_is_the_same_everywhere(backend, widest, value, shape):
    drawn = start(backend, Constant(value), shape, widest)
    assert drawn.dtype == widest
    np.testing.assert_array_equal(drawn, np.full(shape, value))


@pytest.mark.parametrize("deviation", [1.0, 0.02])
def test_a_truncated_normal_has_the_quantiles_and_the_deviation_of_its_formula(
    deviation,
):
    """Its deviation is √(1 - 4 φ(2) / (2 Φ(2) - 1)) = 0.8796 of the normal's."""
    drawn = (
        start(HOST, TruncatedNormal(deviation), (200, 200), "float64").ravel()
        / deviation
    )
    assert np.max(np.abs(drawn)) <= 2
    assert np.max(drawn) > 1.999
    assert np.min(drawn) < -1.999
    ratio = math.sqrt(1 - 4 * NORMAL.pdf(2) / (2 * NORMAL.cdf(2) - 1))
    assert ratio == pytest.approx(0.8796, abs=5e-5)
    assert np.std(drawn) == pytest.approx(ratio, rel=2 / math.sqrt(drawn.size))
    probabilities = np.linspace(0.05, 0.95, 19)
    low, high = NORMAL.cdf(-2), NORMAL.cdf(2)
    expected = [NORMAL.inv_cdf(low + p * (high - low)) for p in probabilities.tolist()]
    np.testing.assert_allclose(np.quantile(drawn, probabilities), expected, atol=0.03)


def test_a_truncated_normal_inverts_its_distribution_function_accurately(
    backend, widest, epsilon
):
    """dz = dp / φ(z) and 1 / φ(2) = 18.5; p and erf have errors of half an eps."""
    shape = (40, 50)
    p = start(backend, random.uniform, shape, widest).astype(np.float64)
    result = start(backend, TruncatedNormal(1.0), shape, widest)
    low, high = NORMAL.cdf(-2), NORMAL.cdf(2)
    expected = [NORMAL.inv_cdf(low + v * (high - low)) for v in p.ravel().tolist()]
    np.testing.assert_allclose(result.ravel(), expected, rtol=0, atol=18.5 * epsilon)


def test_a_truncated_normal_reaches_its_bounds(monkeypatch):
    for seed, (p, expected) in enumerate(
        ((0.0, -2.0), (1.0 - 2.0**-53, 2.0), (0.5, 0.0))
    ):
        monkeypatch.setattr(
            nn.initializers,
            "uniform",
            lambda key, shape, dtype, p=p: np.full(shape, p, dtype),
        )
        drawn = start(HOST, TruncatedNormal(1.0), (3,), "float64", seed)
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-14)


def assert_orthonormal(weight, epsilon):
    """Check that columns, or rows if fewer, are orthogonal and of length 1."""
    matrix = weight.reshape(-1, weight.shape[-1]).astype(np.float64)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    np.testing.assert_allclose(
        matrix.T @ matrix, np.eye(matrix.shape[1]), atol=4 * epsilon
    )


@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize(
    "shape",
    [(5, 5), (9, 4), (4, 9), (3, 2, 2, 4), (2, 1, 2, 9), (1, 6), (6, 1), (1, 1)],
    ids=str,
)
def test_orthogonal_weights_are_orthonormal_times_the_gain(shape, gain):
    weight = start(HOST, Orthogonal(gain), shape, "float64")
    assert weight.shape == shape
    assert_orthonormal(weight / gain, float(np.finfo(np.float64).eps))


@pytest.mark.parametrize("shape", [(4, 2), (2, 3)], ids=str)
def test_orthogonal_weights_are_orthonormal_on_every_backend(
    backend, widest, epsilon, shape
):
    assert_orthonormal(start(backend, Orthogonal(), shape, widest), epsilon)


def test_large_orthogonal_weights_are_orthonormal():
    weight = start(HOST, Orthogonal(), (120, 120), "float32")
    assert_orthonormal(weight, float(np.finfo(np.float32).eps))


def test_orthogonal_weights_are_uniformly_distributed():
    """Every element of a random rotation has mean 0 and mean square 1 / n."""
    drawn = np.asarray(
        [start(HOST, Orthogonal(), (3, 3), "float64", seed) for seed in range(600)]
    )
    np.testing.assert_allclose(
        np.mean(drawn, axis=0), 0, atol=4 * math.sqrt(1 / 3 / 600)
    )
    np.testing.assert_allclose(
        np.mean(drawn**2, axis=0), 1 / 3, atol=4 * 0.3 / math.sqrt(600)
    )
    assert 0.4 < np.mean(np.linalg.det(drawn) > 0) < 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: VarianceScaling(0.0, "in", distribution="normal"),
            "scale above 0, got 0",
        ),
        (
            lambda: VarianceScaling(math.nan, "in", distribution="normal"),
            "scale above 0, got nan",
        ),
        (
            lambda: VarianceScaling(1.0, "sideways", distribution="normal"),
            "fan 'in', 'out' or 'average', got 'sideways'",
        ),
        (
            lambda: VarianceScaling(1.0, "in", distribution="cauchy"),
            "distribution 'normal' or 'uniform', got 'cauchy'",
        ),
        (lambda: TruncatedNormal(0.0), "deviation above 0, got 0"),
        (lambda: TruncatedNormal(-1.0), "deviation above 0, got -1"),
        (
            lambda: start(HOST, nn.he_normal, (3,), "float32"),
            r"fan_in, fan_out\), got \(3,\)",
        ),
        (
            lambda: start(HOST, Orthogonal(), (3,), "float32"),
            r"fan_in, fan_out\), got \(3,\)",
        ),
    ],
)
def test_invalid_options_and_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
