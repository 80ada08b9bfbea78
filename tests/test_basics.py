"""Properties of single layers, in addition to those that all layers have."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from cases.activations import POINTS

import agnostic_nn as nn
from agnostic_nn import check
from agnostic_nn.core.arrays import RowMask, device, namespace
from agnostic_nn.core.trees import leaves, named_leaves, tree_map


def assert_close(actual, expected, tolerance):
    """Compare leaves, relative to the largest number of each, or to 1 if larger."""
    for (name, a), b in zip(named_leaves(actual), leaves(expected), strict=True):
        scale = np.max(np.abs(b), initial=1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


def run_layer(
    backend, layer, x, *, params=None, state=None, dy=None, train=False, dtype="float32"
):
    """Return y, the new state, dx and grads of a layer; all arrays are on the host."""
    asarray = backend.asarray
    x = np.asarray(x)
    x = asarray(x.astype(dtype) if x.dtype.kind == "f" else x)
    params, state = asarray(params or {}), asarray(state or {})

    def run(params, state, x, dy):
        y, after, cache = layer.forward(params, state, x, train=train)
        dy = namespace(y).ones_like(y) if dy is None else dy
        dx, grads = layer.backward(params, cache, dy)
        return (y, after, grads) if dx is None else (y, after, grads, dx)

    dy = None if dy is None else asarray(np.asarray(dy, dtype))
    y, after, grads, *dx = backend.to_numpy(backend.jit(run)(params, state, x, dy))
    return y, after, dx[0] if dx else None, grads


def value_and_slope(backend, layer, x, dtype="float32"):
    """Return f(x) and f'(x) of an activation."""
    y, _, dx, _ = run_layer(backend, layer, x, dtype=dtype)
    return y, dx


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x))


def u(x):
    return math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)


def du(x):
    return math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * x * x)


FORMULAS = [  # layer, f and f'
    (nn.ReLU(), lambda x: x if x > 0 else 0.0, lambda x: 1.0 if x > 0 else 0.0),
    (
        nn.LeakyReLU(0.2),
        lambda x: x if x > 0 else 0.2 * x,
        lambda x: 1.0 if x > 0 else 0.2,
    ),
    (
        nn.ELU(1.5),
        lambda x: x if x > 0 else 1.5 * math.expm1(x),
        lambda x: 1.0 if x > 0 else 1.5 * math.exp(x),
    ),
    (nn.Sigmoid(), sigma, lambda x: sigma(x) * sigma(-x)),
    (nn.Tanh(), math.tanh, lambda x: 1.0 / math.cosh(x) ** 2),
    (nn.SiLU(), lambda x: x * sigma(x), lambda x: sigma(x) + x * sigma(x) * sigma(-x)),
    (nn.Softplus(), lambda x: math.log1p(math.exp(x)), sigma),
    (
        nn.GELU(),
        lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2.0)),
        lambda x: (
            0.5 * math.erfc(-x / math.sqrt(2.0))
            + x * math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
        ),
    ),
    (
        nn.GELU(approximate=True),
        lambda x: 0.5 * x * (1.0 + math.tanh(u(x))),
        lambda x: (
            0.5 * (1.0 + math.tanh(u(x))) + 0.5 * x / math.cosh(u(x)) ** 2 * du(x)
        ),
    ),
]


@pytest.mark.parametrize(
    ("layer", "f", "slope"), FORMULAS, ids=[str(row[0]) for row in FORMULAS]
)
def test_an_activation_and_its_slope_equal_their_formulas(
    backend, widest, epsilon, layer, f, slope
):
    y, dx = value_and_slope(backend, layer, POINTS, widest)
    largest = np.maximum(1.0, np.abs(POINTS))
    np.testing.assert_array_less(
        np.abs(y - [f(x) for x in POINTS]), 4 * epsilon * largest
    )
    np.testing.assert_array_less(
        np.abs(dx - [slope(x) for x in POINTS]), 4 * epsilon * largest
    )


@pytest.mark.parametrize(
    ("layer", "f", "slope"), FORMULAS, ids=[str(row[0]) for row in FORMULAS]
)
def test_nan_affects_only_its_own_element(backend, layer, f, slope):
    y, dx = value_and_slope(backend, layer, [np.nan, 1.0])
    assert list(np.isnan(y)) == [True, False]
    assert not np.isnan(dx[1])


FAR = [  # layer, y and slope far below 0, y and slope far above 0; "x" means y = x
    (nn.ReLU(), 0.0, 0.0, "x", 1.0),
    (nn.LeakyReLU(0.25), "x/4", 0.25, "x", 1.0),
    (nn.ELU(1.5), -1.5, 0.0, "x", 1.0),
    (nn.Sigmoid(), 0.0, 0.0, 1.0, 0.0),
    (nn.Tanh(), -1.0, 0.0, 1.0, 0.0),
    (nn.SiLU(), 0.0, 0.0, "x", 1.0),
    (nn.Softplus(), 0.0, 0.0, "x", 1.0),
    (nn.GELU(), 0.0, 0.0, "x", 1.0),
    (nn.GELU(approximate=True), 0.0, 0.0, "x", 1.0),
]


@pytest.mark.parametrize(("layer", *"abcd"), FAR, ids=[str(row[0]) for row in FAR])
def test_an_activation_of_a_large_number_is_its_limit(backend, layer, a, b, c, d):
    """No NaN and no overflow for the largest numbers of float32."""
    far = np.asarray([1e4, 1e10, 1e20, 3e38], dtype="float32")
    for x, y, slope in ((-far, a, b), (far, c, d)):
        expected = {"x": x, "x/4": x / 4}.get(y, y)
        actual, dx = value_and_slope(backend, layer, x)
        np.testing.assert_array_equal(actual, np.broadcast_to(expected, x.shape))
        np.testing.assert_array_equal(dx, np.full(x.shape, slope))


@pytest.mark.parametrize(
    ("layer", "slope"),
    [(nn.ReLU(), 0.0), (nn.LeakyReLU(0.25), 0.25), (nn.ELU(1.5), 1.5)],
    ids=str,
)
def test_the_slope_at_a_kink_is_the_documented_one(backend, layer, slope):
    y, dx = value_and_slope(backend, layer, [0.0, -0.0])
    np.testing.assert_array_equal(y, [0.0, 0.0])
    np.testing.assert_array_equal(dx, [slope, slope])


@pytest.mark.parametrize(
    ("layer", "truth", "from_y", "limit"),
    [
        (nn.Tanh(), lambda x: 1.0 / np.cosh(x) ** 2, lambda y: 1 - y * y, 40.0),
        (
            nn.Sigmoid(),
            lambda x: 0.25 / np.cosh(x / 2) ** 2,
            lambda y: y * (1 - y),
            80.0,
        ),
    ],
    ids=["Tanh()", "Sigmoid()"],
)
def test_slopes_are_accurate_where_the_function_saturates(
    backend, layer, truth, from_y, limit
):
    """Within 4 ulp; a slope computed from the rounded y has no correct digit."""
    x = np.linspace(-limit, limit, 20_001).astype("float32")
    y, dx = value_and_slope(backend, layer, x)
    expected = truth(x.astype("float64"))
    unit = np.spacing(expected.astype("float32"))
    assert np.max(np.abs(dx - expected) / unit) <= 4
    assert np.max(np.abs(from_y(y) - expected) / unit) > 1000


def test_softmax_is_finite_and_exact_for_huge_inputs(backend):
    x = [[1e4, -1e4, 0.0], [1.5e38, -1.5e38, 1.5e38], [-1e4, -1e4, -1e4]]
    y, _, dx, _ = run_layer(backend, nn.Softmax(), x)
    np.testing.assert_allclose(y, [[1, 0, 0], [0.5, 0, 0.5], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(dx, np.zeros((3, 3)), atol=1e-7)
    y, _, dx, _ = run_layer(backend, nn.LogSoftmax(), x[:1], dy=[[0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(y, [[0.0, -2e4, -1e4]])
    np.testing.assert_array_equal(dx, [[-1.0, 0.0, 1.0]])


def test_softmax_of_a_row_does_not_depend_on_other_rows(backend):
    y, _, _, _ = run_layer(backend, nn.Softmax(), [[np.nan, 1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(y, [[np.nan, np.nan], [0.5, 0.5]])


def test_reshaping_is_row_major(backend):
    x = np.arange(12.0).reshape(2, 2, 3)
    y, _, dx, _ = run_layer(backend, nn.Flatten(), x, dy=np.arange(12.0).reshape(2, 6))
    np.testing.assert_array_equal(y, x.reshape(2, 6))
    np.testing.assert_array_equal(dx, x)
    y, _, _, _ = run_layer(backend, nn.Reshape((-1, 2)), x)
    np.testing.assert_array_equal(y, x.reshape(2, 3, 2))


def test_layer_norm_gives_each_example_mean_0_and_variance_1(
    backend, widest, epsilon, draw
):
    x = 3.0 + 2.0 * draw(4, 5, 33)
    params = {"scale": np.ones(33, widest), "bias": np.zeros(33, widest)}
    y, _, _, _ = run_layer(
        backend, nn.LayerNorm(epsilon=0.0), x, params=params, dtype=widest
    )
    np.testing.assert_allclose(y.mean(axis=-1), 0.0, atol=8 * epsilon)
    np.testing.assert_allclose(y.var(axis=-1), 1.0, rtol=8 * epsilon)


def batch_norm(widest, width=3):
    params = {
        "scale": np.linspace(0.5, 2.0, width),
        "bias": np.linspace(-1.0, 1.0, width),
    }
    state = {
        "mean": np.linspace(-1.0, 3.0, width),
        "variance": np.linspace(0.5, 2.0, width),
    }
    return tree_map(lambda a: a.astype(widest), params), tree_map(
        lambda a: a.astype(widest), state
    )


def test_batch_norm_carries_running_statistics_and_predicts_with_them(
    backend, widest, epsilon, draw
):
    layer = nn.BatchNorm(momentum=0.8)
    params, state = batch_norm(widest)
    mean, variance = (
        state["mean"].astype("float64"),
        state["variance"].astype("float64"),
    )
    for _ in range(3):
        x = draw(6, 2, 3)
        y, state, _, _ = run_layer(
            backend, layer, x, params=params, state=state, train=True, dtype=widest
        )
        batch_mean, batch_variance = np.mean(x, axis=(0, 1)), np.var(x, axis=(0, 1))
        normalized = (x - batch_mean) / np.sqrt(batch_variance + 1e-5)
        expected = normalized * params["scale"] + params["bias"]
        np.testing.assert_allclose(y, expected, rtol=0, atol=32 * epsilon)
        mean = 0.8 * mean + 0.2 * batch_mean
        variance = 0.8 * variance + 0.2 * np.var(x, axis=(0, 1), ddof=1)
    np.testing.assert_allclose(state["mean"], mean, rtol=0, atol=8 * epsilon)
    np.testing.assert_allclose(state["variance"], variance, rtol=8 * epsilon)

    y, after, _, _ = run_layer(
        backend, layer, x, params=params, state=state, dtype=widest
    )
    expected = (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * epsilon)
    np.testing.assert_array_equal(after["mean"], state["mean"])


@pytest.mark.parametrize("real", [1, 2, 5, 8])
def test_filler_rows_have_no_effect(backend, widest, epsilon, draw, real):
    """A filled batch of 8 gives the results of a short batch of its real rows."""
    layer = nn.Sequential(nn.BatchNorm(), nn.Tanh())
    params, state = ((tree, {}) for tree in batch_norm(widest))
    x, dy = draw(8, 2, 3), draw(8, 2, 3)
    counts = (np.arange(8) < real).astype(widest)
    dy[real:] = 0.0  # a loss gives fillers the weight 0

    def run(params, state, x, dy, counts):
        train = True if counts is None else RowMask(counts)
        y, after, cache = layer.forward(params, state, x, train=train)
        return y, after, *layer.backward(params, cache, dy)

    def on_host(*args):
        arrays = (a if a is None else backend.asarray(a) for a in args)
        return backend.to_numpy(backend.jit(run)(*arrays))

    y, after, dx, grads = on_host(params, state, x, dy, counts)
    short = on_host(params, state, x[:real], dy[:real], None)
    assert_close((y[:real], after, dx[:real], grads), short, 16 * epsilon)
    np.testing.assert_array_equal(dx[real:], 0.0)


@dataclass(frozen=True)
class LastIsFiller(nn.BatchNorm):
    """BatchNorm whose last row is always a filler, so that `check` can test it."""

    def forward(self, params, state, x, *, train=False):
        if train and x.shape[0] < 3:
            raise ValueError("too few rows")
        xp = namespace(x)
        index = xp.arange(x.shape[0], dtype=x.dtype, device=device(x))
        rows = xp.sum(train.counts) if isinstance(train, RowMask) else float(x.shape[0])
        counts = xp.astype(index < rows - 1.0, x.dtype)
        return super().forward(
            params, state, x, train=RowMask(counts) if train else False
        )


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_batch_norm_with_fillers_passes_every_oracle(backend, shape):
    """The y of a filler depends on x, so it has a gradient, which is also right."""
    assert check(LastIsFiller(), shape, batch=5, backends=[backend]).worst.error < 1e-8


def test_embedding_adds_the_gradients_of_repeated_indices(backend):
    weight = np.arange(8.0, dtype="float32").reshape(4, 2)
    x = np.asarray([[2, 0], [2, 2]], dtype="int32")
    dy = [[[1.0, 10.0], [2.0, 20.0]], [[4.0, 40.0], [8.0, 80.0]]]
    y, _, dx, grads = run_layer(
        backend, nn.Embedding(4, 2), x, params={"weight": weight}, dy=dy
    )
    np.testing.assert_array_equal(y, weight[x])
    np.testing.assert_array_equal(grads["weight"], [[2, 20], [0, 0], [13, 130], [0, 0]])
    assert dx is None


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64"])
def test_embedding_accepts_integers_of_any_width(backend, kind):
    if kind == "int64" and not backend.has_float64:
        pytest.skip("no 64-bit numbers as the backend is set up")
    weight = np.arange(6.0, dtype="float32").reshape(3, 2)
    y, _, _, grads = run_layer(
        backend,
        nn.Embedding(3, 2),
        np.asarray([2, 2, 1], kind),
        params={"weight": weight},
    )
    np.testing.assert_array_equal(y, weight[[2, 2, 1]])
    np.testing.assert_array_equal(grads["weight"], [[0, 0], [1, 1], [2, 2]])


def dropped(backend, layer, state, shape):
    y, after, dx, _ = run_layer(backend, layer, np.ones(shape), state=state, train=True)
    np.testing.assert_array_equal(y, dx)
    return y, after


def test_dropout_has_the_given_rate_and_keeps_the_mean(backend):
    layer, count = nn.Dropout(0.3), 200_000
    key = nn.random.key(1, xp=nn.backend("numpy").xp)
    y, _ = dropped(backend, layer, {"key": key}, (count,))
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.7)}
    deviation = math.sqrt(0.3 * 0.7 / count)
    assert abs(np.mean(y == 0) - 0.3) < 4 * deviation
    assert abs(np.mean(y, dtype="float64") - 1.0) < 4 * deviation / 0.7


def test_dropout_masks_differ_from_step_to_step_and_are_the_same_on_every_backend(
    backend,
):
    layer, shape = nn.Dropout(0.5), (7, 9)
    expected_state = state = {"key": nn.random.key(3, xp=nn.backend("numpy").xp)}
    masks = []
    for _ in range(3):
        expected, expected_state = dropped(
            nn.backend("numpy"), layer, expected_state, shape
        )
        mask, state = dropped(backend, layer, state, shape)
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(state["key"], expected_state["key"])
        masks.append(mask)
    assert 0.2 < np.mean(masks[0] != masks[1]) < 0.8
    assert 0.2 < np.mean(masks[1] != masks[2]) < 0.8


def test_the_dropout_layers_of_a_model_have_different_masks():
    host = nn.backend("numpy").xp
    key = nn.random.key(0, xp=host)
    _, state, _ = nn.Sequential(nn.Dropout(), nn.Dropout()).init(
        key, (4,), host.float32
    )
    assert not np.array_equal(state[0]["key"], state[1]["key"])


@dataclass(frozen=True)
class Foreign:
    """An array of an unknown library."""

    shape: tuple = (2, 4)
    ndim: int = 2
    dtype: str = "float32"

    def __array_namespace__(self, api_version=None):
        return math


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


REFUSED = [  # layer, shape of an example for init, x, error and message
    (
        nn.Dense(2),
        (4,),
        zeros(3, 5),
        ValueError,
        r"Dense takes \(\.\.\., 4\), got .*3, 5",
    ),
    (
        nn.Dense(2),
        (4,),
        zeros(4, 2, 1),
        ValueError,
        r"Dense takes \(\.\.\., 4\), got .*4, 2, 1",
    ),
    (
        nn.Dense(2),
        (4,),
        zeros(3, 4, dtype="int32"),
        ValueError,
        "Dense holds .*float32, got .*int32",
    ),
    (
        nn.Dense(2),
        (4,),
        Foreign(),
        TypeError,
        "expected arrays of one library, got .*Foreign",
    ),
    (
        nn.LayerNorm(),
        (4,),
        zeros(3, 5),
        ValueError,
        r"LayerNorm takes \(.*, 4\), got .*3, 5",
    ),
    (nn.LayerNorm(), (4,), zeros(4), ValueError, r"LayerNorm takes \(.*, 4\), got .*4"),
    (
        nn.BatchNorm(),
        (4,),
        zeros(3, 5),
        ValueError,
        r"BatchNorm takes \(.*, 4\), got .*3, 5",
    ),
    (
        nn.BatchNorm(),
        (4,),
        zeros(1, 4),
        ValueError,
        r"two or more numbers.*, got .*1, 4",
    ),
    (
        nn.BatchNorm(),
        (1, 4),
        zeros(1, 1, 4),
        ValueError,
        r"two or more numbers.*, got .*1, 1, 4",
    ),
    (
        nn.Embedding(5, 2),
        (4,),
        zeros(3, 4),
        TypeError,
        "Embedding takes integers, got .*float32",
    ),
    (
        nn.Embedding(5, 2),
        (4,),
        Foreign(),
        TypeError,
        "expected arrays of one library, got .*Foreign",
    ),
    (
        nn.Reshape((2, 2)),
        (4,),
        zeros(3, 5),
        ValueError,
        r"\(5,\), 5 numbers.*, to \(2, 2\)",
    ),
]


@pytest.mark.parametrize(
    ("layer", "shape", "x", "error", "message"),
    REFUSED,
    ids=[f"{r[0]} {r[2].shape}" for r in REFUSED],
)
def test_an_x_of_the_wrong_shape_or_dtype_is_an_error_that_gives_it(
    backend, layer, shape, x, error, message
):
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    params, state, _ = layer.init(key, shape, backend.xp.float32)
    x = x if isinstance(x, Foreign) else backend.asarray(x)
    with pytest.raises(error, match=message):
        layer.forward(params, state, x, train=True)


WRONG_SHAPES = [  # layer, shape of one example, message
    (nn.Dense(2), (), r"Dense takes \(batch, \.\.\., fan_in\), got \(batch,\)"),
    (nn.LayerNorm(), (), r"LayerNorm takes \(batch, \.\.\., width\), got \(batch,\)"),
    (nn.BatchNorm(), (), r"BatchNorm takes \(batch, \.\.\., width\), got \(batch,\)"),
    (nn.Softmax(axis=0), (4,), "axis 0 is the batch"),
    (nn.Softmax(axis=-2), (4,), "axis 0 is the batch"),
    (nn.LogSoftmax(axis=2), (4,), r"axis 2 does not exist in \(batch, \*\(4,\)\)"),
    (nn.Reshape((3, -1)), (4,), r"\(4,\), 4 numbers per example, to \(3, -1\)"),
    (nn.Reshape((5,)), (2, 2), r"\(2, 2\), 4 numbers per example, to \(5,\)"),
    (nn.Residual(nn.Dense(3)), (4,), r"their shapes are \(4,\) and \(3,\)"),
    (nn.Sequential(nn.Flatten(), nn.Softmax(axis=2)), (2, 2), "axis 2 does not exist"),
]


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    WRONG_SHAPES,
    ids=[f"{a} {b}" for a, b, _ in WRONG_SHAPES],
)
def test_init_refuses_a_shape_that_the_layer_cannot_take(layer, shape, message):
    host = nn.backend("numpy").xp
    with pytest.raises(ValueError, match=message):
        layer.init(nn.random.key(0, xp=host), shape, host.float32)


INVALID = [  # call, error and message
    (lambda: nn.Dense(0), ValueError, "width of at least 1, got 0"),
    (lambda: nn.Dropout(1.0), ValueError, r"rate in \[0, 1\), got 1.0"),
    (lambda: nn.Dropout(-0.1), ValueError, r"rate in \[0, 1\), got -0.1"),
    (lambda: nn.Dropout(math.nan), ValueError, r"rate in \[0, 1\), got nan"),
    (
        lambda: nn.BatchNorm(momentum=1.5),
        ValueError,
        r"a momentum in \[0, 1\], got 1.5",
    ),
    (lambda: nn.Embedding(0, 3), ValueError, "num_embeddings of at least 1, got 0"),
    (lambda: nn.Embedding(3, 0), ValueError, "width of at least 1, got 0"),
    (
        lambda: nn.Reshape((-1, -1)),
        ValueError,
        r"one of them may be -1, got \(-1, -1\)",
    ),
    (lambda: nn.Reshape((0, 2)), ValueError, r"at least 1, .* got \(0, 2\)"),
    (
        lambda: nn.Sequential(nn.ReLU(), "ReLU"),
        TypeError,
        "expected layers, but argument 1 is 'ReLU'",
    ),
    (lambda: nn.Sequential([nn.ReLU()]), TypeError, r"argument 0 is \[ReLU\(\)\]"),
    (
        lambda: nn.Residual(nn.ReLU),
        TypeError,
        "argument 0 is the class ReLU: write ReLU",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), INVALID)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


BAD_DATA = [  # layer, x, error and message
    (nn.Dense(2), np.asarray([[1.0, np.nan]]), ValueError, r"x\[0, 1\] is nan"),
    (nn.ReLU(), np.asarray([0.0, 1.0, -np.inf]), ValueError, r"x\[2\] is -inf"),
    (
        nn.Dense(2),
        np.asarray([[1, 2]]),
        TypeError,
        "Dense takes real floating numbers, got int64",
    ),
    (
        nn.Dense(2),
        np.asarray([[True]]),
        TypeError,
        "Dense takes real floating numbers, got bool",
    ),
    (
        nn.Dense(2),
        np.asarray([[1j]]),
        TypeError,
        "Dense takes real floating numbers, got complex128",
    ),
    (
        nn.Embedding(5, 2),
        np.asarray([[0, 4], [5, 1]]),
        ValueError,
        r"rows 0 to 4, but x\[1, 0\] is 5",
    ),
    (
        nn.Embedding(5, 2),
        np.asarray([3, -1]),
        ValueError,
        r"rows 0 to 4, but x\[1\] is -1",
    ),
    (
        nn.Embedding(5, 2),
        np.asarray([1.0]),
        TypeError,
        "Embedding takes integral numbers, got float64",
    ),
    (
        nn.Sequential(nn.Embedding(5, 2), nn.Dense(2)),
        np.asarray([7]),
        ValueError,
        "but x.0. is 7",
    ),
    (
        nn.Sequential(nn.Sequential(nn.Tanh())),
        np.asarray([np.nan]),
        ValueError,
        r"x\[0\] is nan",
    ),
    (nn.Residual(nn.Dense(2)), np.asarray([[np.inf]]), ValueError, r"x\[0, 0\] is inf"),
    (nn.Sequential(), np.asarray([np.nan]), ValueError, r"x\[0\] is nan"),
]


@pytest.mark.parametrize(("layer", "x", "error", "message"), BAD_DATA)
def test_check_refuses_bad_data_with_position_and_value(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer.check(x)


def test_check_accepts_good_data():
    nn.Dense(2).check(np.zeros((0, 3)))
    nn.Dense(2).check(np.asarray([[3e38, -0.0]], dtype="float32"))
    nn.Embedding(5, 2).check(np.asarray([[0, 4]], dtype="uint8"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_init_accepts_the_dtype_of_an_array(dtype):
    xp = namespace(np.zeros(()))
    x = np.zeros((2, 4), dtype)
    params, _, _ = nn.Dense(3).init(nn.random.key(0, xp=xp), (4,), x.dtype)
    assert params["weight"].dtype == x.dtype
