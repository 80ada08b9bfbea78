"""Rounding errors of activations, of their slopes, and of layers in float16."""

import math

import numpy as np
import pytest
from accuracy import LIMIT, TRUTH, half, measure, single

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, tree_map

LAYERS = list(TRUTH)


def test_activations_of_float32_are_within_four_units_in_the_last_place(backend):
    grids = [single(TRUTH[layer][2], 2**14) for layer in LAYERS]
    for layer, errors in zip(LAYERS, measure(backend, LAYERS, grids), strict=True):
        for what, (error, place) in zip(("f", "f'"), errors, strict=True):
            assert error <= LIMIT, (
                f"{what} of {layer} is {error:.2f} units off at {place}"
            )


def test_activations_of_every_float16_number_are_correctly_rounded(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    for layer, errors in zip(
        LAYERS, measure(backend, LAYERS, [half()] * len(LAYERS)), strict=True
    ):
        for what, (error, place) in zip(("f", "f'"), errors, strict=True):
            assert error <= 0.51, (
                f"{what} of {layer} is {error:.2f} units off at {place}"
            )


def test_the_tail_of_gelu_is_accurate(backend, widest):
    """At -5.5, 1 + erf would have no correct digit in float32, and half in float64."""
    for dtype in {"float32", widest}:
        x = np.asarray([-5.5, -2.9, 0.5], dtype)
        layer = nn.GELU()
        y, _, cache = layer.forward({}, {}, backend.asarray(x))
        slope, _ = layer.backward({}, cache, backend.asarray(np.ones_like(x)))
        phi = [0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x]
        bell = [v * math.exp(-0.5 * v * v) / math.sqrt(2.0 * math.pi) for v in x]
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(backend.to_numpy(y), x * phi, rtol=40 * eps)
        np.testing.assert_allclose(
            backend.to_numpy(slope), np.add(phi, bell), rtol=40 * eps
        )


@pytest.mark.parametrize(
    "layer", [nn.GLU(), nn.SwiGLU(), nn.GEGLU(), nn.Softmax(), nn.LogSoftmax()]
)
def test_float16_stays_float16_and_is_computed_in_float32(backend, layer):
    """Results equal those of float32, rounded once; sums of exp do not overflow."""
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    x = np.random.default_rng(0).uniform(-4, 4, (2, 8)).astype(np.float16)
    result = []
    for array in (x, x.astype(np.float32)):
        y, _, cache = layer.forward({}, {}, backend.asarray(array))
        dy = np.ones(y.shape, array.dtype) * array.dtype.type(0.5)
        result.append(
            backend.to_numpy((y, layer.backward({}, cache, backend.asarray(dy))[0]))
        )
    for narrow, wide in zip(*result, strict=True):
        assert narrow.dtype == np.float16
        np.testing.assert_array_equal(narrow, wide.astype(np.float16))


def test_softmax_of_many_float16_numbers_does_not_overflow(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    x = backend.asarray(np.zeros((1, 2**17), np.float16))
    for layer, expected in (
        (nn.Softmax(), 2.0**-17),
        (nn.LogSoftmax(), -17 * math.log(2.0)),
    ):
        y = backend.to_numpy(layer.forward({}, {}, x)[0])
        np.testing.assert_allclose(y, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "layer", [nn.GRU(6), nn.LSTM(6), nn.MultiHeadAttention(2, rotary=True)], ids=str
)
def test_sequences_of_float16_are_close_to_those_of_float64(backend, layer):
    """The reference is float64 on NumPy. Sums of large numbers overflow."""
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    attends, rng = isinstance(layer, nn.MultiHeadAttention), np.random.default_rng(0)
    params, _, _ = layer.init(np.asarray([1, 2], np.uint32), (40, 8), np.float64)
    params = tree_map(lambda p: p.astype(np.float16), params)

    def run(params, x, dy):
        y, _, cache = layer.forward(params, {}, x, train=True)
        return (y, *layer.backward(params, cache, dy))

    compiled = backend.jit(run)
    for largest in (1.0, 3e3 if attends else 6e4):
        x = rng.uniform(-largest, largest, (1, 40, 8)).astype(np.float16)
        dy = rng.uniform(-1, 1, (1, 40, 8 if attends else 6)).astype(np.float16)
        wide = tree_map(lambda a: a.astype(np.float64), (params, x, dy))
        result = backend.to_numpy(compiled(*backend.asarray((params, x, dy))))
        for narrow, exact in zip(leaves(result), leaves(run(*wide)), strict=True):
            assert narrow.dtype == np.float16
            assert np.isfinite(narrow).all()
            rtol = 3e-3 if attends else 1e-3  # attention also rounds Q, K, V and O
            size = np.abs(exact).max()
            np.testing.assert_allclose(
                narrow, exact, rtol=rtol, atol=0.6 * rtol * size + 1e-7
            )


def test_positions_beyond_2048_are_exact_for_float16_inputs(backend):
    """float16 cannot represent 2049, and rounds 4097 to 4096."""
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    x, layer = np.zeros((1, 4100, 4)), nn.SinusoidalPositions()
    result = backend.to_numpy(
        layer.forward({}, {}, backend.asarray(x.astype(np.float16)))[0]
    )
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, layer.forward({}, {}, x)[0], atol=2e-3)
