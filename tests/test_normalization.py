"""Normalization layers: statistics, options, frozen layers and accuracy."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import RowMask
from agnostic_nn.core.trees import tree_map
from agnostic_nn.ops import normalize_rows, normalize_rows_backward


def run(backend, layer, params, state, x, dy=None, train=True):
    """Return y, the new state, dx and grads on the host; `train` may be counts."""

    def both(params, state, x, dy, counts):
        mode = train if counts is None else RowMask(counts)
        y, after, cache = layer.forward(params, state, x, train=mode)
        return y, after, *layer.backward(params, cache, dy)

    counts = backend.asarray(train) if isinstance(train, np.ndarray) else None
    dy = np.ones_like(x) if dy is None else dy
    arrays = backend.asarray((params, state, x, dy))
    return backend.to_numpy(backend.jit(both)(*arrays, counts))


# layer without scale and bias, shape that splits groups, normalized axes of it
PER_EXAMPLE = [
    (nn.LayerNorm(epsilon=0.0, scale=False, bias=False), (4, 5, 6), -1),
    (nn.InstanceNorm(epsilon=0.0, scale=False, bias=False), (4, 5, 6), 1),
    (nn.InstanceNorm(epsilon=0.0, scale=False, bias=False), (4, 30, 6), 1),
    (nn.GroupNorm(2, epsilon=0.0, scale=False, bias=False), (4, 5, 2, 3), (1, 3)),
    (nn.GroupNorm(1, epsilon=0.0, scale=False, bias=False), (4, 5, 1, 6), (1, 3)),
    (nn.GroupNorm(6, epsilon=0.0, scale=False, bias=False), (4, 5, 6, 1), (1, 3)),
]


@pytest.mark.parametrize(("layer", "shape", "axes"), PER_EXAMPLE, ids=str)
def test_each_group_has_mean_0_and_variance_1(
    backend, widest, epsilon, draw, layer, shape, axes
):
    x = 3.0 + 2.0 * draw(*shape).reshape(shape[0], shape[1], -1)
    x = x.astype(widest)
    y, *_ = run(backend, layer, {}, {}, x)
    groups = y.reshape(shape)
    np.testing.assert_allclose(np.mean(groups, axis=axes), 0.0, atol=16 * epsilon)
    np.testing.assert_allclose(np.var(groups, axis=axes), 1.0, rtol=16 * epsilon)


def test_rms_norm_keeps_the_mean_and_divides_by_the_root_of_the_mean_square(
    backend, widest, epsilon
):
    x = np.asarray(
        [[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [-2.0, 2.0, 2.0, 2.0]], widest
    )
    params = {"scale": np.asarray([1.0, 2.0, 1.0, -1.0], widest)}
    y, *_ = run(backend, nn.RMSNorm(epsilon=0.0), params, {}, x)
    expected = [[1.2, 3.2, 0.0, -0.0], [1.0, 2.0, 1.0, -1.0], [-1.0, 2.0, 1.0, -1.0]]
    np.testing.assert_allclose(y, expected, rtol=0, atol=4 * epsilon)


@pytest.mark.parametrize("dtype", ["float32", "widest"])
@pytest.mark.parametrize(
    "options", [(), ("scale",), ("bias",), ("scale", "bias")], ids=str
)
@pytest.mark.parametrize("shape", [(2, 5, 7), (33, 40), (0, 3), (1, 1)], ids=str)
def test_native_versions_normalize_rows_like_the_standard_version(
    backend, widest, draw, shape, options, dtype
):
    """Also with a mean far larger than the deviation, and in any memory layout."""
    native = [normalize_rows, normalize_rows_backward]
    standard = [f.dispatch(object) for f in native]
    if native[0].dispatch(type(backend.asarray(np.ones(1, "float32")))) is standard[0]:
        pytest.skip(f"{backend.name} has no native version")
    dtype = widest if dtype == "widest" else dtype
    x, dy = ((draw(*shape) + mean).astype(dtype) for mean in (30.0, 0.0))
    scale, bias = (
        draw(shape[-1]).astype(dtype) if n in options else None
        for n in ("scale", "bias")
    )

    def run(forward, backward, x, dy):
        params = [None if a is None else backend.asarray(a) for a in (scale, bias)]
        y, cache = forward(x, *params, 0.1)
        result = [y, *backward(dy, *params, cache)]
        return [None if a is None else backend.to_numpy(a) for a in result]

    expected = run(*standard, *backend.asarray((x, dy)))
    transposed = [
        backend.xp.moveaxis(backend.asarray(np.moveaxis(a, -1, 0)), 0, -1)
        for a in (x, dy)
    ]
    for arrays in (backend.asarray((x, dy)), transposed):
        for actual, reference in zip(run(*native, *arrays), expected, strict=True):
            assert (actual is None) == (reference is None)
            if reference is not None:
                assert (actual.dtype, actual.shape) == (dtype, reference.shape)
                # μ = 30 over s ≥ √0.1 has an error of 100 eps, and sums of up to 40
                # numbers near 1 have less
                atol = 400 * np.finfo(dtype).eps * np.max(abs(reference), initial=1.0)
                np.testing.assert_allclose(actual, reference, rtol=0, atol=atol)


NORMS = [
    nn.LayerNorm,
    nn.RMSNorm,
    nn.InstanceNorm,
    lambda **k: nn.GroupNorm(2, **k),
    nn.BatchNorm,
]


@pytest.mark.parametrize("make", NORMS)
def test_scale_and_bias_exist_unless_they_are_switched_off(make):
    xp = nn.backend("numpy").xp
    key = nn.random.key(0, xp=xp)
    switches = ("scale",) if make is nn.RMSNorm else ("scale", "bias")
    for off in [(), *((name,) for name in switches), switches]:
        layer = make(**dict.fromkeys(off, False))
        params, _, shape = layer.init(key, (3, 4), xp.float32)
        assert set(params) == set(switches) - set(off)
        assert shape == (3, 4)
        for name, leaf in params.items():
            np.testing.assert_array_equal(
                leaf, np.full(4, float(name == "scale"), "float32")
            )


@pytest.mark.parametrize(
    "train", [True, np.asarray([1.0, 1.0, 0.0], "float32")], ids=str
)
def test_a_frozen_batch_norm_computes_the_same_in_training_and_prediction(
    backend, widest, epsilon, draw, train
):
    """Its statistics do not depend on the batch, and are constants of the gradient."""
    layer = nn.BatchNorm(frozen=True)
    params = {
        "scale": np.asarray([2.0, -1.0], widest),
        "bias": np.asarray([0.5, 1.0], widest),
    }
    state = {
        "mean": np.asarray([1.0, -2.0], widest),
        "variance": np.asarray([4.0, 0.25], widest),
    }
    x, dy = draw(3, 5, 2), draw(3, 5, 2)
    train = train if train is True else train.astype(widest)
    y, after, dx, grads = run(backend, layer, params, state, x, dy, train)
    normal = (x - state["mean"]) / np.sqrt(state["variance"] + 1e-5)
    np.testing.assert_allclose(
        y, normal * params["scale"] + params["bias"], atol=16 * epsilon
    )
    expected = dy * params["scale"] / np.sqrt(state["variance"] + 1e-5)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=16 * epsilon)
    expected = np.sum(dy * normal, axis=(0, 1))
    np.testing.assert_allclose(grads["scale"], expected, rtol=0, atol=64 * epsilon)
    for name in state:
        np.testing.assert_array_equal(after[name], state[name])


def test_a_frozen_batch_norm_accepts_a_batch_of_one(backend):
    state = {"mean": np.zeros(2, "float32"), "variance": np.ones(2, "float32")}
    layer = nn.BatchNorm(epsilon=0.0, scale=False, bias=False, frozen=True)
    x = np.asarray([[3.0, -1.0]], "float32")
    y, _, dx, _ = run(backend, layer, {}, state, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, np.ones_like(x))


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_a_local_response_sums_the_neighbours_that_exist(backend, size):
    """With beta=1, k=1 and alpha=size, y is x / (1 + Σ x²)."""
    layer = nn.LocalResponseNorm(size, alpha=size, beta=1)
    x = np.asarray([[1, 2, 0, -3, 1]], "float32")
    y, _, dx, _ = run(backend, layer, {}, {}, x)
    before = size // 2
    squares = [float(number) ** 2 for number in x[0]]
    sums = [
        sum(squares[max(c - before, 0) : c + size - before]) for c in range(x.shape[1])
    ]
    np.testing.assert_allclose(y[0], x[0] / (1.0 + np.asarray(sums)), rtol=1e-6)
    assert dx.shape == x.shape


def test_a_local_response_of_float16_is_computed_in_float32(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip("this library has no float16")
    x = np.full((1, 3), 1000.0, "float16")  # the square overflows
    layer = nn.LocalResponseNorm(1, alpha=1, beta=0.5)
    y, _, dx, _ = run(backend, layer, {}, {}, x)
    np.testing.assert_array_equal(y, np.ones_like(x))
    assert dx.dtype == "float16"
    assert np.all(np.isfinite(dx))


WRONG_SHAPES = [  # layer, shape of one example, message
    (nn.GroupNorm(3), (5, 4), "4 channels cannot be split into 3 groups"),
    (nn.GroupNorm(4), (4,), r"two or more numbers a group, got \(batch, \*\(4,\)\)"),
    (nn.GroupNorm(2), (), r"GroupNorm takes \(batch, \.\.\., width\), got \(batch,\)"),
    (nn.InstanceNorm(), (1, 4), r"two or more positions, got \(batch, \*\(1, 4\)\)"),
    (nn.InstanceNorm(), (4,), r"two or more positions, got \(batch, \*\(4,\)\)"),
    (nn.LocalResponseNorm(3), (), r"LocalResponseNorm takes .*, got \(batch,\)"),
    (nn.RMSNorm(), (), r"RMSNorm takes \(batch, \.\.\., width\), got \(batch,\)"),
    (
        nn.LayerNorm(axes=3),
        (2, 4),
        r"LayerNorm\(axes=3\) takes \(batch, \.\.\.\) with 3 or more axes after the "
        r"batch, got \(batch, \*\(2, 4\)\)",
    ),
]


@pytest.mark.parametrize(("layer", "shape", "message"), WRONG_SHAPES, ids=str)
def test_init_refuses_a_shape_that_the_layer_cannot_take(layer, shape, message):
    host = nn.backend("numpy").xp
    with pytest.raises(ValueError, match=message):
        layer.init(nn.random.key(0, xp=host), shape, host.float32)


REFUSED = [  # layer, shape of an example for init, shape of x, message
    (nn.RMSNorm(), (4,), (3, 5), r"RMSNorm takes \(batch, \.\.\., 4\), got \(3, 5\)"),
    (
        nn.LayerNorm(scale=False),
        (4,),
        (3, 5),
        r"LayerNorm takes \(batch, .*, 4\), got \(3, 5\)",
    ),
    (
        nn.LayerNorm(axes=2),
        (5, 4),
        (3, 4, 5),
        r"LayerNorm\(axes=2\) takes \(batch, \.\.\., 5, 4\), got \(3, 4, 5\)",
    ),
    (
        nn.RMSNorm(axes=2, scale=False),
        (5, 4),
        (5, 4),
        r"RMSNorm\(axes=2\) takes .* with 2 or more axes after the batch, got \(5, 4\)",
    ),
    (
        nn.GroupNorm(2),
        (4,),
        (3, 6),
        r"GroupNorm takes \(batch, \.\.\., 4\), got \(3, 6\)",
    ),
    (
        nn.InstanceNorm(),
        (2, 4),
        (3, 1, 4),
        r"two or more positions, got \(batch, \*\(1, 4\)\)",
    ),
    (
        nn.BatchNorm(scale=False, bias=False),
        (4,),
        (3, 5),
        r"BatchNorm takes .*, got \(3, 5\)",
    ),
]


@pytest.mark.parametrize(("layer", "shape", "x_shape", "message"), REFUSED, ids=str)
def test_an_x_of_the_wrong_shape_is_an_error_that_gives_the_shape(
    backend, layer, shape, x_shape, message
):
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    params, state, _ = layer.init(key, shape, backend.xp.float32)
    with pytest.raises(ValueError, match=message):
        layer.forward(params, state, backend.asarray(np.zeros(x_shape, "float32")))


INVALID = [  # call, error and message
    (lambda: nn.LocalResponseNorm(0), ValueError, "size of at least 1, got 0"),
    (lambda: nn.LocalResponseNorm(2, k=0), ValueError, "k above 0, got 0"),
    (lambda: nn.LocalResponseNorm(2, beta=-1), ValueError, "beta of at least 0"),
    (lambda: nn.GroupNorm(0), ValueError, "groups of at least 1, got 0"),
    (lambda: nn.GroupNorm(2.0), TypeError, "groups to be an integer"),
    (lambda: nn.LayerNorm(axes=0), ValueError, "axes of at least 1, got 0"),
    (lambda: nn.LayerNorm(axes=(1, 2)), TypeError, "axes to be an integer"),
    (lambda: nn.InstanceNorm(momentum=1.5), ValueError, "momentum in .0, 1., got 1.5"),
    (lambda: nn.InstanceNorm(running=1), TypeError, "running to be True or False"),
    (lambda: nn.RMSNorm(epsilon=-1.0), ValueError, "epsilon of at least 0, got -1.0"),
    (
        lambda: nn.InstanceNorm(epsilon=float("nan")),
        ValueError,
        "epsilon of at least 0, got nan",
    ),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), INVALID, ids=[r[2] for r in INVALID]
)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_single_real_row_does_not_change_the_statistics_of_batch_norm(backend):
    """It has no variance. Two rows and the pixels of one image do change them."""
    layer = nn.BatchNorm(momentum=0.3, scale=False, bias=False)
    state = {
        "mean": np.asarray([0.7], "float32"),
        "variance": np.asarray([1.3], "float32"),
    }
    x = np.asarray([[1.0], [3.0], [3.0]], "float32")
    for counts, mean, variance in [
        ([1, 0, 0], 0.7, 1.3),
        ([1, 1, 0], 0.3 * 0.7 + 0.7 * 2.0, 0.3 * 1.3 + 0.7 * 2.0),
    ]:
        y, after, dx, _ = run(
            backend, layer, {}, state, x, train=np.asarray(counts, "float32")
        )
        rtol = 0.0 if sum(counts) == 1 else 1e-6
        np.testing.assert_allclose(after["mean"], np.float32(mean), rtol=rtol)
        np.testing.assert_allclose(after["variance"], np.float32(variance), rtol=rtol)
        assert np.isfinite(y).all()
        assert np.isfinite(dx).all()
    image = np.asarray([[[1.0], [3.0]], [[9.0], [9.0]]], "float32")
    _, after, *_ = run(
        backend, layer, {}, state, image, train=np.asarray([1, 0], "float32")
    )
    np.testing.assert_allclose(after["variance"], [0.3 * 1.3 + 0.7 * 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm(momentum=None), nn.InstanceNorm(running=True, momentum=None)],
    ids=str,
)
def test_without_momentum_the_statistics_are_means_over_all_batches(
    backend, draw, epsilon, layer
):
    """Prediction then uses them, and changes nothing."""
    host = nn.backend("numpy").xp
    params, state, _ = layer.init(nn.random.key(0, xp=host), (5, 2), host.float32)
    means, variances = [], []
    for rows in (3, 1, 4):
        x = 2.0 + draw(rows, 5, 2).astype("float32")
        groups = [x] if isinstance(layer, nn.BatchNorm) else list(x[:, None])
        means.append(np.mean([g.mean(axis=(0, 1)) for g in groups], axis=0))
        variances.append(np.mean([g.var(axis=(0, 1), ddof=1) for g in groups], axis=0))
        _, state, *_ = run(backend, layer, params, state, x)
    assert state["count"] == 3.0
    np.testing.assert_allclose(state["mean"], np.mean(means, axis=0), rtol=2e-6)
    np.testing.assert_allclose(state["variance"], np.mean(variances, axis=0), rtol=2e-6)
    y, after, dx, _ = run(backend, layer, params, state, x, train=False)
    spread = np.sqrt(state["variance"] + 1e-5)
    np.testing.assert_allclose(y, (x - state["mean"]) / spread, rtol=0, atol=1e-5)
    np.testing.assert_allclose(dx, np.broadcast_to(1 / spread, x.shape), rtol=1e-6)
    for name in state:
        np.testing.assert_array_equal(after[name], state[name])


def test_rows_that_pad_a_batch_do_not_count_in_the_statistics_of_instance_norm(
    backend, draw
):
    layer = nn.InstanceNorm(running=True, momentum=0.3, scale=False, bias=False)
    host = nn.backend("numpy").xp
    _, state, _ = layer.init(nn.random.key(0, xp=host), (5, 2), host.float32)
    x = draw(4, 5, 2).astype("float32")
    _, expected, *_ = run(backend, layer, {}, state, x[:3])
    counts = np.asarray([1, 1, 1, 0], "float32")
    _, after, *_ = run(backend, layer, {}, state, x, train=counts)
    for name in state:
        np.testing.assert_allclose(after[name], expected[name], rtol=1e-6)
        assert (expected[name] != state[name]).all()
    for rows, train in ((4, 0.0 * counts), (0, True)):
        _, after, *_ = run(backend, layer, {}, state, x[:rows], train=train)
        for name in state:
            np.testing.assert_array_equal(after[name], state[name])


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(),
        nn.LayerNorm(axes=2),
        nn.RMSNorm(),
        nn.RMSNorm(axes=2),
        nn.GroupNorm(2),
        nn.InstanceNorm(),
        nn.InstanceNorm(running=True),
        nn.BatchNorm(),
    ],
    ids=str,
)
def test_float16_numbers_whose_squares_overflow_are_normalized(backend, layer):
    """300² is above 65504, so they are computed in float32 and rounded once."""
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    generator = np.random.default_rng(0)
    x = generator.uniform(-400, 400, (3, 5, 4)).astype("float16")
    dy = generator.uniform(-1, 1, x.shape).astype("float16")
    host = nn.backend("numpy").xp
    params, state, _ = layer.init(nn.random.key(0, xp=host), (5, 4), host.float32)
    result = []
    for dtype in ("float16", "float32"):
        arrays = (params, state, x, dy)
        trees = nn.trees.tree_map(lambda a, dtype=dtype: a.astype(dtype), arrays)
        result.append(run(backend, layer, *trees))
    for narrow, wide in zip(*map(list, map(nn.trees.leaves, result)), strict=True):
        assert narrow.dtype == np.float16
        assert np.isfinite(wide).all()
        np.testing.assert_allclose(narrow, wide.astype("float16"), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm(scale=False, bias=False), nn.GroupNorm(1)], ids=str
)
def test_statistics_of_many_float32_rows_are_accurate(backend, layer):
    generator = np.random.default_rng(0)
    x = (generator.random((1, 2**19, 2)) + 3.0).astype("float32")
    host = nn.backend("numpy").xp
    params, state, _ = layer.init(nn.random.key(0, xp=host), x.shape[1:], host.float32)
    y, *_ = layer.forward(*backend.asarray((params, state, x)), train=True)
    axes = (0, 1) if isinstance(layer, nn.BatchNorm) else (0, 1, 2)
    wide = x.astype("float64")
    expected = (wide - wide.mean(axis=axes)) / np.sqrt(
        wide.var(axis=axes) + layer.epsilon
    )
    np.testing.assert_allclose(backend.to_numpy(y), expected, atol=8e-6)


def test_layer_norm_of_long_rows_is_accurate(backend):
    """Summed one by one, 2²⁰ float32 numbers have an error of about 250 eps."""
    generator, layer = np.random.default_rng(0), nn.LayerNorm()
    x, dy = (generator.normal(size=(2, 2**20)).astype(np.float32) for _ in range(2))
    params = {"scale": np.ones(2**20, np.float32), "bias": np.zeros(2**20, np.float32)}
    result = []
    arrays = params, x, dy
    for params, x, dy in (backend.asarray(arrays), tree_map(np.float64, arrays)):
        y, _, cache = layer.forward(params, {}, x, train=True)
        result.append((y, layer.backward(params, cache, dy)[0]))
    for single, double in zip(backend.to_numpy(result[0]), result[1], strict=True):
        error = np.abs(single - double).max() / np.abs(double).max()
        assert error < 8 * np.finfo(np.float32).eps


def test_unit_norm_neither_overflows_nor_divides_by_0(backend):
    x = np.asarray([[3e30, 4e30], [3e-8, 4e-8], [0.0, 0.0], [3e-14, 4e-14]], "float32")
    dy = np.asarray([[1.0, 2.0]] * 4, "float32")

    def both(x, dy):
        layer = nn.UnitNorm()
        y, _, cache = layer.forward({}, {}, x)
        return y, layer.backward({}, cache, dy)[0]

    y, dx = backend.to_numpy(backend.jit(both)(*backend.asarray((x, dy))))
    np.testing.assert_allclose(
        y, [[0.6, 0.8], [0.6, 0.8], [0.0, 0.0], [0.03, 0.04]], rtol=1e-6
    )
    across = np.asarray([1.0 - 0.6 * 2.2, 2.0 - 0.8 * 2.2])
    expected = [across / 5e30, across / 5e-8, [1e12, 2e12], [1e12, 2e12]]
    np.testing.assert_allclose(dx, expected, rtol=2e-6)
