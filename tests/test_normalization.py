"""Normalization layers: what they normalize, and what they leave unchanged."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import RowMask
from agnostic_nn.core.trees import tree_map
from agnostic_nn.ops import normalize_rows, normalize_rows_backward


def run(backend, layer, params, state, x, dy=None, train=True):
    """y, the next state, dx and grads on the host; dy is 1 unless given. `train` may be counts."""

    def both(params, state, x, dy, counts):
        mode = train if counts is None else RowMask(counts)
        y, after, cache = layer.forward(params, state, x, train=mode)
        return y, after, *layer.backward(params, cache, dy)

    counts = backend.asarray(train) if isinstance(train, np.ndarray) else None
    dy = np.ones_like(x) if dy is None else dy
    there = backend.asarray((params, state, x, dy))
    return backend.to_numpy(backend.jit(both)(*there, counts))


# layer without scale and bias, axes that are normalized after the second reshaping
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
    "given", [(), ("scale",), ("bias",), ("scale", "bias")], ids=str
)
@pytest.mark.parametrize("shape", [(2, 5, 7), (33, 40), (0, 3), (1, 1)], ids=str)
def test_a_version_of_ones_own_normalizes_rows_as_the_standard_one_does(
    backend, widest, draw, shape, given, dtype
):
    """Of numbers whose mean is far larger than their spread, and wherever they lie in memory."""
    ways = [normalize_rows, normalize_rows_backward]
    standard = [f.dispatch(object) for f in ways]
    if ways[0].dispatch(type(backend.asarray(np.ones(1, "float32")))) is standard[0]:
        pytest.skip(f"{backend.name} has no version of its own")
    dtype = widest if dtype == "widest" else dtype
    x, dy = ((draw(*shape) + mean).astype(dtype) for mean in (30.0, 0.0))
    scale, bias = (
        draw(shape[-1]).astype(dtype) if n in given else None for n in ("scale", "bias")
    )

    def run(forward, backward, x, dy):
        there = [None if a is None else backend.asarray(a) for a in (scale, bias)]
        y, cache = forward(x, *there, 0.1)
        result = [y, *backward(dy, *there, cache)]
        return [None if a is None else backend.to_numpy(a) for a in result]

    expected = run(*standard, *backend.asarray((x, dy)))
    turned = [
        backend.xp.moveaxis(backend.asarray(np.moveaxis(a, -1, 0)), 0, -1)
        for a in (x, dy)
    ]
    for arrays in (backend.asarray((x, dy)), turned):
        for result, wanted in zip(run(*ways, *arrays), expected, strict=True):
            assert (result is None) == (wanted is None)
            if wanted is not None:
                assert (result.dtype, result.shape) == (dtype, wanted.shape)
                # μ = 30 over s ≥ √0.1 brings 100 eps, sums
                # of up to 40 numbers of order 1 less
                atol = 400 * np.finfo(dtype).eps * np.max(abs(wanted), initial=1.0)
                np.testing.assert_allclose(result, wanted, rtol=0, atol=atol)


EVERY = [
    nn.LayerNorm,
    nn.RMSNorm,
    nn.InstanceNorm,
    lambda **k: nn.GroupNorm(2, **k),
    nn.BatchNorm,
]


@pytest.mark.parametrize("make", EVERY)
def test_scale_and_bias_are_there_unless_they_are_switched_off(make):
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
def test_a_frozen_batch_norm_trains_as_it_predicts(
    backend, widest, epsilon, draw, train
):
    """Its statistics stay, whatever the batch says, and are constants to the gradient."""
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


def test_a_frozen_batch_norm_takes_a_batch_of_one(backend):
    state = {"mean": np.zeros(2, "float32"), "variance": np.ones(2, "float32")}
    layer = nn.BatchNorm(epsilon=0.0, scale=False, bias=False, frozen=True)
    x = np.asarray([[3.0, -1.0]], "float32")
    y, _, dx, _ = run(backend, layer, {}, state, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, np.ones_like(x))


UNFIT = [  # layer, shape of one example, message
    (nn.GroupNorm(3), (5, 4), "4 channels cannot be split into 3 groups"),
    (nn.GroupNorm(4), (4,), r"two or more numbers a group, got \(batch, \*\(4,\)\)"),
    (nn.GroupNorm(2), (), r"GroupNorm takes \(batch, \.\.\., width\), got \(batch,\)"),
    (nn.InstanceNorm(), (1, 4), r"two or more positions, got \(batch, \*\(1, 4\)\)"),
    (nn.InstanceNorm(), (4,), r"two or more positions, got \(batch, \*\(4,\)\)"),
    (nn.RMSNorm(), (), r"RMSNorm takes \(batch, \.\.\., width\), got \(batch,\)"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), UNFIT, ids=str)
def test_a_shape_that_a_layer_cannot_take_is_refused_by_init(layer, shape, message):
    host = nn.backend("numpy").xp
    with pytest.raises(ValueError, match=message):
        layer.init(nn.random.key(0, xp=host), shape, host.float32)


REFUSED = [  # layer, shape it was made for, shape of x, message
    (nn.RMSNorm(), (4,), (3, 5), r"RMSNorm takes \(batch, \.\.\., 4\), got \(3, 5\)"),
    (
        nn.LayerNorm(scale=False),
        (4,),
        (3, 5),
        r"LayerNorm takes \(batch, .*, 4\), got \(3, 5\)",
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


@pytest.mark.parametrize(("layer", "shape", "given", "message"), REFUSED, ids=str)
def test_an_x_that_does_not_fit_is_refused_with_its_numbers(
    backend, layer, shape, given, message
):
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    params, state, _ = layer.init(key, shape, backend.xp.float32)
    with pytest.raises(ValueError, match=message):
        layer.forward(params, state, backend.asarray(np.zeros(given, "float32")))


SENSELESS = [  # call, error and message
    (lambda: nn.GroupNorm(0), ValueError, "groups of at least 1, got 0"),
    (lambda: nn.GroupNorm(2.0), TypeError, "groups to be an integer"),
    (lambda: nn.RMSNorm(epsilon=-1.0), ValueError, "epsilon of at least 0, got -1.0"),
    (
        lambda: nn.InstanceNorm(epsilon=float("nan")),
        ValueError,
        "epsilon of at least 0, got nan",
    ),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), SENSELESS, ids=[r[2] for r in SENSELESS]
)
def test_a_layer_that_makes_no_sense_is_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_one_row_that_counts_moves_no_statistic_of_batch_norm(backend):
    """It has no variance. Two rows move it, and so do the places of a single image."""
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
        exact = 0.0 if sum(counts) == 1 else 1e-6
        np.testing.assert_allclose(after["mean"], np.float32(mean), rtol=exact)
        np.testing.assert_allclose(after["variance"], np.float32(variance), rtol=exact)
        assert np.isfinite(y).all()
        assert np.isfinite(dx).all()
    image = np.asarray([[[1.0], [3.0]], [[9.0], [9.0]]], "float32")
    _, after, *_ = run(
        backend, layer, {}, state, image, train=np.asarray([1, 0], "float32")
    )
    np.testing.assert_allclose(after["variance"], [0.3 * 1.3 + 0.7 * 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(), nn.RMSNorm(), nn.GroupNorm(2), nn.InstanceNorm(), nn.BatchNorm()],
    ids=str,
)
def test_float16_numbers_whose_squares_overflow_are_normalized(backend, layer):
    """Squares of 300 are above 65504; what is computed in float32 is rounded once."""
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    generator = np.random.default_rng(0)
    x = generator.uniform(-400, 400, (3, 5, 4)).astype("float16")
    dy = generator.uniform(-1, 1, x.shape).astype("float16")
    host = nn.backend("numpy").xp
    params, state, _ = layer.init(nn.random.key(0, xp=host), (5, 4), host.float32)
    result = []
    for dtype in ("float16", "float32"):
        trees = nn.trees.tree_map(lambda a: a.astype(dtype), (params, state, x, dy))  # noqa: B023
        result.append(run(backend, layer, *trees))
    for narrow, wide in zip(*map(list, map(nn.trees.leaves, result)), strict=True):
        assert narrow.dtype == np.float16
        assert np.isfinite(wide).all()
        np.testing.assert_allclose(narrow, wide.astype("float16"), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm(scale=False, bias=False), nn.GroupNorm(1)], ids=str
)
def test_statistics_of_many_float32_rows_keep_their_digits(backend, layer):
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


def test_layer_norm_of_long_rows_keeps_its_digits(backend):
    """Added one after the other, 2^20 numbers of float32 lose some 250 eps."""
    generator, layer = np.random.default_rng(0), nn.LayerNorm()
    x, dy = (generator.normal(size=(2, 2**20)).astype(np.float32) for _ in range(2))
    params = {"scale": np.ones(2**20, np.float32), "bias": np.zeros(2**20, np.float32)}
    result = []
    for arguments in (
        backend.asarray((params, x, dy)),
        tree_map(np.float64, (params, x, dy)),
    ):
        params_now, x_now, dy_now = arguments
        y, _, cache = layer.forward(params_now, {}, x_now, train=True)
        result.append((y, layer.backward(params_now, cache, dy_now)[0]))
    for single, double in zip(backend.to_numpy(result[0]), result[1], strict=True):
        error = np.abs(single - double).max() / np.abs(double).max()
        assert error < 8 * np.finfo(np.float32).eps
