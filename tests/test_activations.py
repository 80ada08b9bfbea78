"""Activations: values, limits and kinks."""

import math

import numpy as np
import pytest
from cases import named
from cases.activations import POINTS

import agnostic_nn as nn


def run(backend, layer, x, dy=None, params=None):
    """Return y, dx and grads of x, all on the host; dy is 1 if it is None."""

    def both(params, x, dy):
        y, _, cache = layer.forward(params, {}, x)
        return y, *layer.backward(params, cache, dy)

    dy = np.ones_like(x) if dy is None else dy
    return backend.to_numpy(backend.jit(both)(*backend.asarray((params or {}, x, dy))))


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x))


def softplus(x):
    return math.log1p(math.exp(x))


LAMBDA, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
FORMULAS = [  # layer, f and f'
    (
        nn.SELU(),
        lambda x: LAMBDA * (x if x > 0 else ALPHA * math.expm1(x)),
        lambda x: LAMBDA * (1.0 if x > 0 else ALPHA * math.exp(x)),
    ),
    (
        nn.CELU(0.5),
        lambda x: x if x > 0 else 0.5 * math.expm1(2.0 * x),
        lambda x: 1.0 if x > 0 else math.exp(2.0 * x),
    ),
    (
        nn.Mish(),
        lambda x: x * math.tanh(softplus(x)),
        lambda x: math.tanh(softplus(x)) + x * sigma(x) / math.cosh(softplus(x)) ** 2,
    ),
    (nn.Softsign(), lambda x: x / (1.0 + abs(x)), lambda x: (1.0 + abs(x)) ** -2),
    (
        nn.HardSigmoid(),
        lambda x: min(max(x / 6.0 + 0.5, 0.0), 1.0),
        lambda x: 1.0 / 6.0 if abs(x) < 3 else 0.0,
    ),
    (
        nn.HardSigmoid(0.2, 0.25),
        lambda x: min(max(0.2 * x + 0.25, 0.0), 1.0),
        lambda x: 0.2 if -1.25 < x < 3.75 else 0.0,
    ),
    (
        nn.HardShrink(0.75),
        lambda x: x if abs(x) > 0.75 else 0.0,
        lambda x: float(abs(x) > 0.75),
    ),
    (
        nn.SoftShrink(0.75),
        lambda x: math.copysign(max(abs(x) - 0.75, 0.0), x),
        lambda x: float(abs(x) > 0.75),
    ),
    (
        nn.TanhShrink(),
        lambda x: x - math.tanh(x) if abs(x) > 0.01 else x**3 / 3 - 2 * x**5 / 15,
        lambda x: math.tanh(x) ** 2,
    ),
    (nn.LogSigmoid(), lambda x: -softplus(-x), lambda x: sigma(-x)),
    (
        nn.SELU(0.5, 2.0),
        lambda x: 2.0 * x if x > 0 else math.expm1(x),
        lambda x: 2.0 if x > 0 else math.exp(x),
    ),
    (
        nn.SiLU(2.5),
        lambda x: x * sigma(2.5 * x),
        lambda x: sigma(2.5 * x) + 2.5 * x * sigma(2.5 * x) * sigma(-2.5 * x),
    ),
    (
        nn.Softplus(2.5),
        lambda x: softplus(2.5 * x) / 2.5,
        lambda x: sigma(2.5 * x),
    ),
    (
        nn.Softplus(2.0, threshold=0.3),
        lambda x: x if x > 0.15 else softplus(2.0 * x) / 2.0,
        lambda x: 1.0 if x > 0.15 else sigma(2.0 * x),
    ),
    (
        nn.HardSwish(),
        lambda x: x * min(max(x / 6.0 + 0.5, 0.0), 1.0),
        lambda x: x / 3.0 + 0.5 if abs(x) < 3 else float(x > 0),
    ),
    (
        nn.HardTanh(-2.0, 0.75),
        lambda x: min(max(x, -2.0), 0.75),
        lambda x: float(-2.0 < x < 0.75),
    ),
    (nn.ReLU6(), lambda x: min(max(x, 0.0), 6.0), lambda x: float(0.0 < x < 6.0)),
    (
        nn.Threshold(0.5, -4.0),
        lambda x: x if x > 0.5 else -4.0,
        lambda x: float(x > 0.5),
    ),
]
each_formula = pytest.mark.parametrize(
    ("layer", "f", "slope"), FORMULAS, ids=[str(row[0]) for row in FORMULAS]
)


@each_formula
def test_an_activation_and_its_slope_equal_their_formulas(
    backend, widest, epsilon, layer, f, slope
):
    y, dx, _ = run(backend, layer, np.asarray(POINTS, widest))
    largest = 4 * epsilon * np.maximum(1.0, np.abs(POINTS))
    np.testing.assert_array_less(np.abs(y - [f(x) for x in POINTS]), largest)
    np.testing.assert_array_less(np.abs(dx - [slope(x) for x in POINTS]), largest)


@each_formula
def test_nan_affects_only_its_own_element(backend, layer, f, slope):
    y, dx, _ = run(backend, layer, np.asarray([np.nan, 1.0], "float32"))
    assert list(np.isnan(y)) == [True, False]
    assert not np.isnan(dx[1])


# layer, y and slope far below 0, y and slope far above 0; y may be a function of x
FAR = [
    (nn.SELU(), -LAMBDA * ALPHA, 0.0, lambda x: LAMBDA * x, LAMBDA),
    (nn.CELU(0.5), -0.5, 0.0, lambda x: x, 1.0),
    (nn.CELU(2.0), -2.0, 0.0, lambda x: x, 1.0),
    (nn.Mish(), 0.0, 0.0, lambda x: x, 1.0),
    (nn.Softsign(), -1.0, 0.0, 1.0, 0.0),
    (nn.HardSigmoid(), 0.0, 0.0, 1.0, 0.0),
    (nn.HardSigmoid(0.2, 0.25), 0.0, 0.0, 1.0, 0.0),
    (nn.HardShrink(), lambda x: x, 1.0, lambda x: x, 1.0),
    (nn.SoftShrink(), lambda x: x + 0.5, 1.0, lambda x: x - 0.5, 1.0),
    (nn.TanhShrink(), lambda x: x + 1.0, 1.0, lambda x: x - 1.0, 1.0),
    (nn.LogSigmoid(), lambda x: x, 1.0, 0.0, 0.0),
    (nn.SiLU(0.25), 0.0, 0.0, lambda x: x, 1.0),
    (nn.SiLU(4.0), 0.0, 0.0, lambda x: x, 1.0),
    (nn.Softplus(0.25), 0.0, 0.0, lambda x: x, 1.0),
    (nn.Softplus(4.0), 0.0, 0.0, lambda x: x, 1.0),
    (nn.HardSwish(), 0.0, 0.0, lambda x: x, 1.0),
    (nn.HardTanh(), -1.0, 0.0, 1.0, 0.0),
    (nn.ReLU6(), 0.0, 0.0, 6.0, 0.0),
    (nn.Threshold(0.5, -4.0), -4.0, 0.0, lambda x: x, 1.0),
]


@pytest.mark.parametrize(("layer", *"abcd"), FAR, ids=[str(row[0]) for row in FAR])
def test_an_activation_of_a_large_number_is_its_limit(backend, layer, a, b, c, d):
    """No NaN and no overflow occur. At 1e10 the slope of softsign is 1e-20."""
    x = np.asarray([-1e10, -1e20, -3e38, 1e10, 1e20, 3e38], "float32")
    y, dx, _ = run(backend, layer, x)
    ends = [f(x.astype("float64")) if callable(f) else np.full(6, f) for f in (a, c)]
    expected = np.concatenate([ends[0][:3], ends[1][3:]])
    np.testing.assert_allclose(y, expected, rtol=2e-7, atol=0)
    np.testing.assert_allclose(dx, np.repeat([b, d], 3), rtol=2e-7, atol=1.1e-20)


KINKS = [  # layer, x, y and slope there
    (nn.SELU(), [0.0], [0.0], [LAMBDA * ALPHA]),
    (nn.CELU(0.5), [0.0], [0.0], [1.0]),
    (nn.HardSigmoid(), [-3.0, 3.0], [0.0, 1.0], [0.0, 0.0]),
    (nn.HardSigmoid(0.25, 0.0), [0.0, 4.0], [0.0, 1.0], [0.0, 0.0]),
    (nn.HardShrink(), [-0.5, 0.5], [0.0, 0.0], [0.0, 0.0]),
    (nn.HardShrink(0.0), [0.0], [0.0], [0.0]),
    (nn.SoftShrink(), [-0.5, 0.5], [0.0, 0.0], [0.0, 0.0]),
    (nn.HardSwish(), [-3.0, 3.0], [0.0, 3.0], [0.0, 1.0]),
    (nn.HardTanh(-2.0, 0.75), [-2.0, 0.75], [-2.0, 0.75], [0.0, 0.0]),
    (nn.ReLU6(), [0.0, 6.0], [0.0, 6.0], [0.0, 0.0]),
    (nn.Threshold(0.5, -4.0), [0.5], [-4.0], [0.0]),
]


@pytest.mark.parametrize(
    ("layer", "x", "y", "slope"), KINKS, ids=[str(r[0]) for r in KINKS]
)
def test_the_slope_at_a_kink_is_the_documented_one(backend, layer, x, y, slope):
    actual, dx, _ = run(backend, layer, np.asarray(x, "float32"))
    np.testing.assert_allclose([actual, dx], [y, slope], rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("layer", "truth", "points"),
    [
        (nn.Mish(), lambda x: (1.0 + x) * math.exp(x), -np.linspace(20.0, 80.0, 201)),
        (nn.Softsign(), lambda x: (1.0 + x) ** -2, np.logspace(3.0, 18.0, 201)),
        (nn.LogSigmoid(), lambda x: math.exp(-x), np.linspace(20.0, 80.0, 201)),
        (nn.SiLU(2.0), lambda x: (1 + 2 * x) * math.exp(2 * x), -np.linspace(10, 40)),
    ],
    ids=["Mish", "Softsign", "LogSigmoid", "SiLU"],
)
def test_slopes_are_accurate_where_the_function_saturates(
    backend, layer, truth, points
):
    """Within 16 eps: exp, tanh and the products have errors of a few each."""
    x = points.astype("float32")
    _, dx, _ = run(backend, layer, x)
    expected = np.asarray([truth(v) for v in x.astype("float64")])
    np.testing.assert_allclose(dx, expected, rtol=16 * np.finfo("float32").eps)


def test_prelu_learns_one_slope_for_each_channel(backend, widest):
    """By hand: only numbers below 0 contribute to a slope; 0 is on the learned side."""
    x = np.asarray([[[-2.0, 3.0], [0.0, -1.0]], [[4.0, -5.0], [-6.0, 0.0]]], widest)
    dy = np.asarray([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]], widest)
    params = {"slope": np.asarray([0.5, -0.25], widest)}
    y, dx, grads = run(backend, nn.PReLU(), x, dy, params)
    np.testing.assert_array_equal(
        y, [[[-1.0, 3.0], [0.0, 0.25]], [[4.0, 1.25], [-3.0, 0.0]]]
    )
    np.testing.assert_array_equal(
        dx, [[[0.5, 10.0], [1.0, -5.0]], [[3.0, -7.5], [2.0, -10.0]]]
    )
    np.testing.assert_array_equal(grads["slope"], [-26.0, -170.0])


def test_prelu_with_a_shared_slope_sums_over_all_elements(backend, widest):
    x = np.asarray([[[-2.0, 3.0], [0.0, -1.0]], [[4.0, -5.0], [-6.0, 0.0]]], widest)
    dy = np.asarray([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]], widest)
    params = {"slope": np.asarray([0.5], widest)}
    y, dx, grads = run(backend, nn.PReLU(shared=True), x, dy, params)
    np.testing.assert_array_equal(
        y, [[[-1.0, 3.0], [0.0, -0.5]], [[4.0, -2.5], [-3.0, 0.0]]]
    )
    np.testing.assert_array_equal(
        dx, [[[0.5, 10.0], [1.0, 10.0]], [[3.0, 15.0], [2.0, 20.0]]]
    )
    np.testing.assert_array_equal(grads["slope"], [-196.0])


def test_tanh_shrink_keeps_its_digits_near_0(backend):
    """The difference x - tanh x has no correct digit left at 1e-4 in float32."""
    x = np.concatenate([np.logspace(-10, 1, 300), -np.linspace(0.9, 1.1, 41)])
    x = x.astype("float32")
    y, dx, _ = run(backend, nn.TanhShrink(), x)
    wide = x.astype("float64")
    series = wide**3 / 3 - 2 * wide**5 / 15
    exact = np.where(np.abs(wide) < 0.01, series, wide - np.tanh(wide))
    slopes = np.tanh(wide) ** 2
    eps = np.finfo("float32").eps
    np.testing.assert_allclose(y, exact, rtol=6 * eps, atol=0)
    np.testing.assert_allclose(dx, slopes, rtol=6 * eps, atol=0)


@pytest.mark.parametrize(
    ("layer", "gate"),
    [
        (nn.GLU(), sigma),
        (nn.SwiGLU(), lambda b: b * sigma(b)),
        (nn.GEGLU(), lambda b: 0.5 * b * math.erfc(-b / math.sqrt(2.0))),
    ],
    ids=named,
)
def test_the_second_half_is_the_gate_of_the_first(
    backend, widest, epsilon, layer, gate
):
    a, b = [3.0, -2.0, 0.5], [-1.0, 0.25, 2.0]
    x = np.asarray([a + b], widest)
    y, dx, _ = run(backend, layer, x, np.ones((1, 3), widest))
    f = np.asarray([gate(v) for v in b])
    np.testing.assert_allclose(y, [f * a], rtol=8 * epsilon)
    np.testing.assert_allclose(dx[:, :3], [f], rtol=8 * epsilon)


REFUSED = [  # layer, shape of an example for init, shape of x, message
    (nn.PReLU(), (4,), (3, 5), r"PReLU takes \(batch, \.\.\., 4\), got \(3, 5\)"),
    (nn.PReLU(), (4,), (4,), r"PReLU takes \(batch, \.\.\., 4\), got \(4,\)"),
    (
        nn.GLU(),
        (4,),
        (3, 5),
        r"GLU takes \(batch, \.\.\., 2 width\), got \(batch, \*\(5,\)\)",
    ),
    (nn.SwiGLU(), (4,), (4,), r"SwiGLU takes .*, got \(batch, \*\(\)\)"),
]


@pytest.mark.parametrize(("layer", "shape", "x_shape", "message"), REFUSED, ids=str)
def test_an_x_of_the_wrong_shape_is_an_error_that_gives_the_shape(
    backend, layer, shape, x_shape, message
):
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    params, state, _ = layer.init(key, shape, backend.xp.float32)
    with pytest.raises(ValueError, match=message):
        layer.forward(params, state, backend.asarray(np.zeros(x_shape, "float32")))


WRONG_SHAPES = [  # layer, shape of one example, message
    (nn.PReLU(), (), r"PReLU takes \(batch, \.\.\., width\), got \(batch,\)"),
    (nn.GLU(), (), r"GLU takes .*, got \(batch, \*\(\)\)"),
    (nn.GEGLU(), (2, 7), r"GEGLU takes .*, got \(batch, \*\(2, 7\)\)"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), WRONG_SHAPES, ids=str)
def test_init_refuses_a_shape_that_the_layer_cannot_take(layer, shape, message):
    host = nn.backend("numpy").xp
    with pytest.raises(ValueError, match=message):
        layer.init(nn.random.key(0, xp=host), shape, host.float32)


INVALID = [  # call, error and message
    (lambda: nn.CELU(0.0), ValueError, "alpha above 0, got 0.0"),
    (lambda: nn.HardTanh(1.0, 1.0), ValueError, "low < high, got 1.0 and 1.0"),
    (lambda: nn.ReLU6(low=7.0), TypeError, "unexpected keyword argument 'low'"),
    (lambda: nn.Threshold(math.nan), ValueError, "finite threshold, got nan"),
    (
        lambda: nn.Threshold(0.0, np.float64(1.0)),
        TypeError,
        "replacement to be a number",
    ),
    (lambda: nn.HardShrink(-0.5), ValueError, "threshold of at least 0, got -0.5"),
    (lambda: nn.SoftShrink(math.inf), ValueError, "threshold of at least 0, got inf"),
    (lambda: nn.HardSigmoid(0.0), ValueError, "finite alpha above 0, got 0.0"),
    (lambda: nn.SELU(scale=-1.0), ValueError, "finite scale above 0, got -1.0"),
    (lambda: nn.SiLU(0.0), ValueError, "finite beta above 0, got 0.0"),
    (lambda: nn.Softplus(-2.0), ValueError, "finite beta above 0, got -2.0"),
    (lambda: nn.Softplus(threshold="20"), TypeError, "threshold to be a number"),
    (lambda: nn.PReLU(shared=1), TypeError, "shared to be True or False, got 1"),
    (lambda: nn.PReLU(initial="0.25"), TypeError, "initial to be a number, got '0.25'"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), INVALID, ids=[r[2] for r in INVALID]
)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()
