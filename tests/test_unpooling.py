"""Indices of maxima are those of NumPy, and unpooling puts numbers back there."""

import itertools
import math

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.ops import largest_index


def run(backend, layer, x, dy, shape=None):
    """Return y and dx; `shape` is that of an example, for a block."""
    xp = nn.backend("numpy").xp
    params, state = {}, {}
    if shape is not None:
        key = nn.random.key(0, xp=xp)
        params, state, _ = layer.init(key, shape, xp.float32)

    def both(x, dy):
        y, _, cache = layer.forward(params, state, x)
        return y, layer.backward(params, cache, dy)[0]

    return backend.to_numpy(backend.jit(both)(*backend.asarray((x, dy))))


GEOMETRIES = [  # lengths, window, stride, padding, dilation
    ((7,), (3,), (2,), ((2, 1),), (1,)),
    ((5, 6), (2, 3), (1, 2), ((1, 0), (0, 2)), (2, 1)),
    ((3, 4, 2), (2, 2, 2), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (1, 2, 1)),
    ((3, 3), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
]


@pytest.mark.parametrize("values", ["ties", "infinite"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_index_is_that_of_the_first_maximum_in_row_major_order(
    backend, thorough, geometry, values
):
    lengths, window, stride, padding, dilation = geometry
    if not thorough and len(lengths) != 2:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    generator = np.random.default_rng(0)
    x = generator.integers(0, 3, (2, *lengths, 2)).astype("float32")
    if values == "infinite":  # padding is never chosen, not even for -∞
        x = np.where(x > 0, -np.inf, x).astype("float32")[:, ::-1]
    call = backend.jit(lambda x: largest_index(x, window, stride, padding, dilation))
    result = backend.to_numpy(call(backend.asarray(x)))
    for index in np.ndindex(result.shape):
        batch, *out, channel = index
        positions = itertools.product(
            *(
                [p for p in range(o * s - low, o * s - low + k * d, d) if 0 <= p < n]
                for o, n, k, s, (low, _), d in zip(
                    out, lengths, window, stride, padding, dilation, strict=True
                )
            )
        )
        flat = [int(np.ravel_multi_index(p, lengths)) for p in positions]
        numbers = x[batch, ..., channel].reshape(-1)
        assert result[index] == max(flat, key=lambda p: (numbers[p], -p))


@pytest.mark.parametrize("rows", [0, 3])
def test_the_indices_are_where_y_is_found_in_x(backend, rows):
    x = np.random.default_rng(0).standard_normal((rows, 5, 7, 2)).astype("float32")
    layer = nn.MaxPool2D(3, 2, padding=1, return_indices=True)
    dy = np.ones((rows, 3, 4, 2), "float32")
    result, dx = run(backend, layer, x, {"x": dy})
    assert result["indices"].dtype == "int32"
    plain, expected_dx = run(backend, nn.MaxPool2D(3, 2, padding=1), x, dy)
    np.testing.assert_array_equal(result["x"], plain)
    np.testing.assert_array_equal(dx, expected_dx)
    flat = result["indices"].reshape(rows, 12, 2)
    there = np.take_along_axis(x.reshape(rows, 35, 2), flat, axis=1)
    np.testing.assert_array_equal(there.reshape(rows, 3, 4, 2), result["x"])


def test_unpooling_after_pooling_keeps_the_maxima_and_clears_the_rest(backend):
    x = np.random.default_rng(0).permutation(48).reshape(1, 4, 6, 2)
    x = x.astype("float32") + 1.0
    model = nn.Sequential(nn.MaxPool2D(2, return_indices=True), nn.MaxUnpool(2))
    y, dx = run(backend, model, x, 2 * x, (4, 6, 2))
    blocks = x.reshape(1, 2, 2, 3, 2, 2)
    is_largest = blocks == blocks.max(axis=(2, 4), keepdims=True)
    is_largest = is_largest.reshape(x.shape)
    np.testing.assert_array_equal(y, np.where(is_largest, x, 0))
    np.testing.assert_array_equal(dx, np.where(is_largest, 2 * x, 0))


def test_a_graph_passes_indices_past_the_layers_between(backend):
    """As in SegNet: the indices of the first half are used in the second."""
    model = nn.Graph(
        pool=(nn.MaxPool1D(2, return_indices=True), "x"),
        double=(nn.Add(), "pool.x", "pool.x"),
        unpool=(nn.MaxUnpool(2), {"x": "double", "indices": "pool.indices"}),
    )
    x = np.asarray([1, 5, 7, 2, 4, 4], "float32").reshape(1, 6, 1)
    y, dx = run(backend, model, x, x, (6, 1))
    np.testing.assert_array_equal(y[0, :, 0], [0, 10, 14, 0, 8, 0])
    np.testing.assert_array_equal(dx[0, :, 0], [0, 10, 14, 0, 8, 0])


def test_training_with_indices_is_the_same_as_on_numpy(backend):
    model = nn.Sequential(
        nn.Conv1D(3, 3, padding="same"),
        nn.MaxPool1D(2, return_indices=True),
        nn.MaxUnpool(2),
        nn.Conv1D(1, 1),
    )
    x = np.random.default_rng(0).standard_normal((4, 8, 2)).astype("float32")
    losses = []
    for name in (backend, "numpy"):
        trainer = nn.Trainer(
            model, nn.mean_squared_error, nn.SGD(0.1), backend=name, seed=0
        )
        losses.append([float(trainer.step(x, x[:, :, :1])) for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_equal_indices_add_up_in_float32(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip("this library has no float16")
    x = np.asarray([2048, 1, 1], "float16").reshape(1, 3, 1)
    indices = np.asarray([3, 3, 3], "int32").reshape(1, 3, 1)
    y, dx = run(
        backend,
        nn.MaxUnpool(size=5),
        {"x": x, "indices": indices},
        np.arange(5, dtype="float16").reshape(1, 5, 1),
    )
    # in float16 it stays at 2048, as 2048 + 1 is rounded to 2048
    np.testing.assert_array_equal(y[0, :, 0], [0, 0, 0, 2050, 0])
    np.testing.assert_array_equal(dx["x"][0, :, 0], [3, 3, 3])
    assert dx["indices"] is None
    assert y.dtype == dx["x"].dtype == "float16"


def pair(shape, indices=None):
    x = np.zeros((2, *shape), "float32")
    return {"x": x, "indices": np.zeros(indices or x.shape, "int32")}


REFUSED = [  # layer, x, error, message
    (nn.MaxUnpool(), np.zeros((2, 3, 1)), ValueError, "x and indices, .* single array"),
    (nn.MaxUnpool(), pair((3,)), ValueError, r"got \(batch, \*\(3,\)\) and"),
    (nn.MaxUnpool(), pair((3, 1), (2, 2, 1)), ValueError, r"and \(batch, \*\(2, 1\)\)"),
    (nn.MaxUnpool((2, 2)), pair((3, 1)), ValueError, "expected window for 1 axes"),
    (nn.MaxUnpool(size=(2, 2)), pair((3, 1)), ValueError, "expected size for 1 axes"),
    (nn.MaxUnpool(padding=4), pair((3, 1)), ValueError, "padding 4 leaves nothing"),
    (
        nn.MaxUnpool(),
        {name: leaf.astype("float32") for name, leaf in pair((3, 1)).items()},
        TypeError,
        "MaxUnpool takes integer indices, got float32",
    ),
]


@pytest.mark.parametrize(("layer", "x", "error", "message"), REFUSED, ids=str)
def test_inputs_that_do_not_fit_are_refused(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer.forward({}, {}, x)


@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_outside_is_refused_on_the_host(index):
    x = pair((3, 1))
    x["indices"][1, 2, 0] = index
    message = rf"positions 0 to 5, but indices\[1, 2, 0\] is {index}"
    with pytest.raises(ValueError, match=message):
        nn.MaxUnpool().check(x)


INVALID = [  # call, error and message
    (lambda: nn.MaxUnpool(0), ValueError, "window of at least 1, got 0"),
    (lambda: nn.MaxUnpool(2.0), TypeError, "window to be an integer"),
    (lambda: nn.MaxUnpool(padding="same"), ValueError, "padding as numbers"),
    (lambda: nn.MaxUnpool(size=(3, 0)), ValueError, "size of at least 1"),
    (lambda: nn.MaxPool1D(return_indices=1), TypeError, "return_indices to be True"),
    (lambda: nn.LpPool2D(p=0.5), ValueError, "p of at least 1, got 0.5"),
    (lambda: nn.LpPool2D(p=math.inf), ValueError, "p of at least 1, got inf"),
    (lambda: nn.LpPool2D(absolute="yes"), TypeError, "absolute to be True or False"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), INVALID, ids=[row[2] for row in INVALID]
)
def test_invalid_options_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
