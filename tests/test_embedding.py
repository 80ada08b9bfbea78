"""Embedding and EmbeddingBag: padding, limited norms, bags and refused arguments."""

import numpy as np
import pytest

import agnostic_nn as nn


def run(backend, layer, weight, x, dy):
    """Return y, dx and the gradient of the weight, on the host."""

    def both(weight, x, dy):
        params = {"weight": weight}
        y, _, cache = layer.forward(params, {}, x)
        dx, grads = layer.backward(params, cache, dy)
        return y, dx, grads["weight"]

    y, dx, grad = backend.jit(both)(*backend.asarray((weight, x, dy)))
    return backend.to_numpy(y), dx, backend.to_numpy(grad)


WEIGHT = np.asarray([[1, 2], [3, 4], [-5, 12], [0.5, 0]], "float32")


def test_the_row_of_padding_is_0_and_has_no_gradient(backend):
    layer = nn.Embedding(4, 2, padding_idx=1)
    x = np.asarray([[1, 0], [2, 1]], "int32")
    dy = np.asarray([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], "float32")
    y, _, grad = run(backend, layer, WEIGHT, x, dy)
    np.testing.assert_array_equal(y, [[[0, 0], [1, 2]], [[-5, 12], [0, 0]]])
    np.testing.assert_array_equal(grad, [[3, 4], [0, 0], [5, 6], [0, 0]])
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    params, _, _ = layer.init(key, (3,), backend.xp.float32)
    is_zero = (backend.to_numpy(params["weight"]) == 0).all(axis=1)
    np.testing.assert_array_equal(is_zero, [False, True, False, False])


def test_rows_above_the_limit_are_scaled_and_their_gradient_is_projected(backend):
    """By hand: (3, 4) has the norm 5, (-5, 12) has 13, and both are halved or more."""
    x = np.asarray([[1, 2, 0, 1]], "int32")
    dy = np.asarray([[[1, 0], [0, 1], [7, 8], [1, 0]]], "float32")
    y, _, grad = run(backend, nn.Embedding(4, 2, max_norm=2.5), WEIGHT, x, dy)
    twelfth = 2.5 / 13
    expected = [[1.5, 2], [-5 * twelfth, 12 * twelfth], [1, 2], [1.5, 2]]
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)
    # u = (0.6, 0.8) and g = (2, 0): g - u (u · g) = (1.28, -0.96)
    u = np.asarray([-5, 12]) / 13
    third = twelfth * (np.asarray([0, 1]) - u * u[1])
    np.testing.assert_allclose(grad, [[7, 8], [0.64, -0.48], third, [0, 0]], rtol=1e-5)


BAGS = [  # mode, y, gradient of the weight for x and the mask below
    ("sum", [[7, 10], [0, 0], [-5, 12]], [[0, 0], [2, 4], [32, 64], [0, 0]]),
    ("mean", [[7 / 3, 10 / 3], [0, 0], [-5, 12]], None),
    ("max", [[3, 4], [0, 0], [-5, 12]], [[0, 0], [1, 2], [32, 64], [0, 0]]),
]


@pytest.mark.parametrize(("mode", "expected", "slopes"), BAGS)
def test_a_bag_is_reduced_over_the_indices_that_the_mask_shows(
    backend, mode, expected, slopes
):
    x = np.asarray([[1, 0, 1], [2, 2, 2], [0, 2, 1]], "int32")
    mask = np.asarray([[True] * 3, [False] * 3, [False, True, False]])
    dy = np.asarray([[1, 2], [8, 16], [32, 64]], "float32")
    layer = nn.EmbeddingBag(4, 2, mode=mode)
    y, dx, grad = run(backend, layer, WEIGHT, {"x": x, "mask": mask}, dy)
    assert dx == {"x": None, "mask": None}
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    if mode == "sum":
        slopes = [[1, 2], *slopes[1:]]
    if mode == "mean":
        slopes = [[1 / 3, 2 / 3], [2 / 3, 4 / 3], [32, 64], [0, 0]]
    np.testing.assert_allclose(grad, slopes, rtol=1e-6)


def test_padding_does_not_count_in_a_bag(backend):
    x = np.asarray([[1, 0, 3], [3, 3, 3]], "int32")
    layer = nn.EmbeddingBag(4, 2, padding_idx=3)
    y, dx, grad = run(backend, layer, WEIGHT, x, np.ones((2, 2), "float32"))
    assert dx is None
    np.testing.assert_array_equal(y, [[2, 3], [0, 0]])
    np.testing.assert_array_equal(grad, [[0.5, 0.5], [0.5, 0.5], [0, 0], [0, 0]])


def test_a_weighted_sum_has_gradients_for_the_table_and_the_weights(backend):
    x = np.asarray([[1, 0, 1], [2, 3, 2]], "int32")
    mask = np.asarray([[True] * 3, [False, True, False]])
    weights = np.asarray([[2, 0, -1], [5, 3, 5]], "float32")
    dy = np.asarray([[1, 2], [8, 16]], "float32")
    layer = nn.EmbeddingBag(4, 2, mode="sum")
    arguments = {"x": x, "mask": mask, "weights": weights}
    y, dx, grad = run(backend, layer, WEIGHT, arguments, dy)
    assert dx["x"] is None
    assert dx["mask"] is None
    np.testing.assert_array_equal(y, [[3, 4], [1.5, 0]])
    # of (1, 2) with rows 1, 0 and 1, and of (8, 16) with row 3
    slopes = backend.to_numpy(dx["weights"])
    np.testing.assert_array_equal(slopes, [[11, 5, 11], [0, 4, 0]])
    np.testing.assert_array_equal(grad, [[0, 0], [1, 2], [0, 0], [24, 48]])


INVALID = [  # call, error and message
    (lambda: nn.Embedding(4, 2, padding_idx=4), ValueError, "num_embeddings, 4, got 4"),
    (lambda: nn.Embedding(4, 2, padding_idx=-1), ValueError, "at least 0, got -1"),
    (lambda: nn.Embedding(4, 2, max_norm=0.0), ValueError, "max_norm above 0, got 0.0"),
    (lambda: nn.EmbeddingBag(4, 2, mode="min"), ValueError, "'mean', 'sum' or 'max'"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), INVALID, ids=[r[2] for r in INVALID]
)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


X = np.zeros((2, 3), "int32")
REFUSED = [  # x, error and message
    (np.zeros(2, "int32"), ValueError, r"takes \(batch, \.\.\., bag\), got"),
    ({"mask": X == 0}, ValueError, r"takes x, mask and weights, got \['mask'\]"),
    (
        {"x": X, "mask": np.ones((2, 4), bool)},
        ValueError,
        r"mask \(batch, \*\(3,\)\) as of x, got \(batch, \*\(4,\)\)",
    ),
    ({"x": X, "weights": X[:, :2]}, ValueError, "weights are for mode 'sum'"),
    ({"x": X, "mask": X}, TypeError, "expected a boolean mask, got int32"),
    (X.astype("float32"), TypeError, "EmbeddingBag takes integers, got float32"),
]


@pytest.mark.parametrize(
    ("x", "error", "message"), REFUSED, ids=[r[2] for r in REFUSED]
)
def test_a_bag_of_another_shape_or_dtype_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        nn.EmbeddingBag(4, 2).forward({"weight": WEIGHT}, {}, x)


def test_weights_of_another_shape_or_dtype_are_refused():
    layer = nn.EmbeddingBag(4, 2, mode="sum")
    for weights, message in (
        (np.ones((2, 4), "float32"), r"weights \(batch, \*\(3,\)\) as of x, got"),
        (np.ones((2, 3)), "holds float32, got weights float64"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.forward({"weight": WEIGHT}, {}, {"x": X, "weights": weights})


def test_check_finds_an_index_outside_of_the_table_in_a_bag():
    x = {"x": np.asarray([[0, 4]]), "mask": np.ones((1, 2), bool)}
    with pytest.raises(
        ValueError, match=r"EmbeddingBag holds rows 0 to 3, but x\[0, 1\]"
    ):
        nn.EmbeddingBag(4, 2).check(x)
