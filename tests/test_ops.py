"""Functions of `ops` are right, in the standard version and in native versions."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ops, random
from agnostic_nn.core.trees import tree_map
from agnostic_nn.ops import (
    all_finite,
    erf,
    log_softmax,
    scan_impl,
    scatter_add,
    select,
    sigmoid,
    softplus,
)

DISPATCHED = [
    ops.affine,
    ops.above_zero,
    all_finite,
    ops.attend,
    ops.attend_backward,
    ops.attend_stored,
    ops.barrier_impl,
    ops.bounded_exp,
    ops.convolve,
    ops.convolve_input,
    ops.convolve_weight,
    ops.interpolate,
    ops.interpolate_input,
    ops.largest,
    ops.largest_input,
    ops.loop_until_impl,
    ops.most_look_ups,
    erf,
    ops.erfc,
    ops.tanh,
    ops.normalize_rows,
    ops.normalize_rows_backward,
    ops.lstm,
    ops.lstm_backward,
    scan_impl,
    scatter_add,
    select,
    ops.store,
    ops.sum_over,
    ops.sum_rows,
    ops.pad_impl,
    ops.unslide,
    random.words,
]
versions = pytest.mark.parametrize("version", ["native", "standard"])


def take(version, function):
    """Return the native version of `function`, or its standard version."""
    return function if version == "native" else function.dispatch(object)


def exactly(formula, x):
    """Return `formula` of x, computed with 60 decimal digits and rounded to float64."""
    with localcontext(prec=60):
        return np.asarray(
            [float(formula(Decimal(float(v)))) for v in x.ravel()]
        ).reshape(x.shape)


def call(backend, function, *arrays):
    return backend.to_numpy(backend.jit(function)(*backend.asarray(arrays)))


@versions
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_erf_is_that_of_the_c_library(backend, widest, version, dtype):
    """Measured: native versions are within 1.6 eps, the series within 7."""
    x = np.concatenate(
        [np.linspace(-8, 8, 801), np.logspace(-30, 0, 61), -np.logspace(-30, 0, 61)]
    )
    x = x.astype(widest if dtype == "widest" else dtype)
    y = call(backend, take(version, erf), x)
    assert y.dtype == x.dtype
    expected = [math.erf(v) for v in x.tolist()]
    np.testing.assert_allclose(
        y, expected, rtol=8 * float(np.finfo(x.dtype).eps), atol=0
    )


@versions
def test_erf_accepts_every_shape_and_every_number(backend, widest, epsilon, version):
    function = take(version, erf)
    for shape in [(), (2, 0, 3), (2, 3, 4)]:
        assert call(backend, function, np.ones(shape, widest)).shape == shape
    largest = float(np.finfo(widest).max)
    x = np.asarray(
        [0.0, -0.0, 1e4, -1e4, largest, -largest, math.inf, -math.inf, math.nan], widest
    )
    y = call(backend, function, x)
    expected = [0.0, -0.0, 1, -1, 1, -1, 1, -1, math.nan]
    np.testing.assert_allclose(y, expected, rtol=2 * epsilon, atol=0)
    assert math.copysign(1.0, y[1]) == -1.0


@versions
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_erf_of_large_numbers_is_exactly_1(backend, widest, version, dtype):
    """GELU multiplies it by a large number, so it has to be correctly rounded."""
    large = np.asarray([6.0, 10.0, 1e4, 3e38], widest if dtype == "widest" else dtype)
    np.testing.assert_array_equal(call(backend, take(version, erf), large), np.ones(4))
    np.testing.assert_array_equal(
        call(backend, take(version, erf), -large), -np.ones(4)
    )


@versions
@pytest.mark.parametrize(
    ("count", "width", "rows"),
    [(0, 3, 5), (1, 1, 1), (257, 5, 129), (1001, 3, 1), (64, 33, 1000), (5000, 7, 50)],
    ids=str,
)
def test_scatter_add_sums_the_updates_of_each_row(
    backend, widest, version, count, width, rows
):
    """The sums of small integers are exact in every dtype and order."""
    generator = np.random.default_rng(0)
    updates = generator.integers(-8, 9, (count, width)).astype(widest)
    index = generator.integers(0, rows, count, dtype=np.int32)
    expected = np.zeros((rows, width))
    for row, update in zip(index, updates, strict=True):
        expected[row] += update
    function = take(version, scatter_add)
    total = call(
        backend, lambda updates, index: function(updates, index, rows), updates, index
    )
    assert total.dtype == updates.dtype
    np.testing.assert_array_equal(total, expected)


@versions
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_scatter_add_accepts_an_index_dtype_narrower_than_the_number_of_rows(
    backend, widest, version, dtype
):
    updates, index = np.ones((3, 2), widest), np.asarray([5, 0, 5], dtype)
    function = take(version, scatter_add)
    total = call(
        backend, lambda updates, index: function(updates, index, 600), updates, index
    )
    np.testing.assert_array_equal(total[:6, 0], [1, 0, 0, 0, 0, 2])
    np.testing.assert_array_equal(total[6:], 0)


@pytest.mark.parametrize("count", [3, 5000])
def test_scatter_add_refuses_a_row_out_of_bounds_on_numpy(count):
    """Also for many rows, for which a SciPy matrix is used, which does not check."""
    nn.backend("numpy")
    index = np.zeros(count, np.int32)
    index[-1] = 7
    with pytest.raises(IndexError, match="index 7 is out of bounds"):
        scatter_add(np.ones((count, 2), np.float32), index, 7)


@versions
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 2), (257, 33, 65), (0, 3, 2), (4, 0, 2)], ids=str
)
def test_affine_is_the_product_plus_the_bias(backend, widest, version, shape):
    """With small integers every sum is exact. There may be no rows or no inputs."""
    rows, fan_in, width = shape
    generator = np.random.default_rng(0)
    x = generator.integers(-8, 9, (rows, fan_in)).astype(widest)
    weight = generator.integers(-8, 9, (fan_in, width)).astype(widest)
    bias = generator.integers(-8, 9, width).astype(widest)
    y = call(backend, take(version, ops.affine), x, weight, bias)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x @ weight + bias)


@versions
@pytest.mark.parametrize(
    "shape", [(3,), (0, 3), (1, 1), (2, 5, 7), (257, 3, 1), (4, 0)], ids=str
)
def test_sum_rows_sums_over_all_axes_except_the_last(backend, widest, version, shape):
    x = np.random.default_rng(0).integers(-8, 9, shape).astype(widest)
    total = call(backend, take(version, ops.sum_rows), x)
    assert total.dtype == x.dtype
    np.testing.assert_array_equal(
        total, x.reshape(-1, 1, shape[-1]).sum((0, 1)) if x.size else 0
    )
    assert total.shape == shape[-1:]


def test_a_native_sum_rows_is_accurate_for_a_long_column(backend):
    """Measured for 50,000 numbers near 0.1: 300 ulp, and 4,200 if added in order."""
    native = ops.sum_rows.dispatch(type(backend.asarray(np.ones(1, np.float32))))
    if native is ops.sum_rows.dispatch(object):
        pytest.skip(f"{backend.name} has no native version")
    x = np.full((50_000, 3), 0.1, np.float32)
    total, exact = call(backend, native, x), 50_000 * float(np.float32(0.1))
    np.testing.assert_allclose(total, exact, rtol=1000 * np.finfo("float32").eps)


@versions
def test_above_zero_is_dy_where_x_is_above_0_and_otherwise_0(backend, draw, version):
    """Also for infinite dy; NaN does not count as below 0."""
    numbers = np.asarray(
        [-2.0, -0.0, 0.0, 3.0, math.inf, -math.inf, math.nan], "float32"
    )
    x, dy = (a.ravel().copy() for a in np.meshgrid(numbers, numbers))
    result = call(backend, take(version, ops.above_zero), x, dy)
    np.testing.assert_array_equal(
        result, [0.0 if a <= 0 else b for a, b in zip(x, dy, strict=True)]
    )
    x, dy = draw(4, 6).T, draw(6, 8)[:, ::2]
    result = call(backend, take(version, ops.above_zero), x, dy)
    np.testing.assert_array_equal(result, np.where(x > 0, dy, 0.0))


def chooses_between_keys(backend):
    condition, key = backend.asarray((np.asarray(True), np.zeros(2, np.uint32)))
    try:
        backend.xp.where(condition, key, key)
    except NotImplementedError:
        return False
    return True


@versions
@pytest.mark.parametrize("holds", [True, False])
def test_select_returns_one_tree_or_the_other(backend, draw, version, holds):
    """A NaN in the other tree has no effect, and uint32 keys are not changed."""
    key = np.asarray([2**32 - 1, 7], np.uint32)
    expected = ({"weight": draw(2, 3), "bias": draw(3)}, {}, (key, draw()))
    other = tree_map(
        lambda leaf: np.full_like(leaf, np.nan if leaf.dtype.kind == "f" else 9),
        expected,
    )
    new, old = (expected, other) if holds else (other, expected)
    function = take(version, select)
    if version == "standard" and not chooses_between_keys(backend):
        pytest.skip(
            "`where` does not accept uint32 here, so a native version is needed"
        )
    for jit in (backend.jit, lambda function: function):
        chosen = jit(
            lambda x, new, old: function(backend.xp.sum(x) > 0, lambda: new, old)
        )(
            *backend.asarray(
                (np.asarray([1.0 if holds else -1.0], np.float32), new, old)
            )
        )
        tree_map(np.testing.assert_array_equal, backend.to_numpy(chosen), expected)


@pytest.mark.parametrize("holds", [True, False])
def test_pytorch_selects_keys_as_signed_integers(monkeypatch, holds):
    """CUDA has no `where` for uint32, the dtype of the keys of random layers."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from agnostic_nn_backends.torch import _select_leaves

    def where(condition, new, old):
        assert new.dtype != torch.uint32
        return original(condition, new, old)

    original = torch.where
    monkeypatch.setattr(torch, "where", where)
    new, old = (
        {
            "key": torch.tensor([word, 7], dtype=torch.uint32),
            "w": (torch.tensor(real), {}),
        }
        for word, real in ((2**32 - 1, 1.0), (2**31, float("nan")))
    )
    result = _select_leaves(torch.tensor(holds), new, old)
    tree_map(
        lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True),
        result,
        new if holds else old,
    )


@versions
@pytest.mark.parametrize("shape", [(), (3,), (30, 40)], ids=str)
def test_all_finite_detects_a_single_bad_number(backend, widest, version, shape):
    function = backend.jit(take(version, all_finite))
    largest = np.full(shape, np.finfo(widest).max, widest)
    others = [np.ones((2, 0), widest), -largest]
    assert bool(function(*backend.asarray((largest, *others))))
    for bad in (math.nan, math.inf, -math.inf):
        with_bad = largest.copy()
        with_bad[tuple(length - 1 for length in shape)] = bad
        assert not bool(function(*backend.asarray((with_bad, *others))))
        assert not bool(function(*backend.asarray((largest, *others[:-1], with_bad))))


@versions
def test_all_finite_accepts_results_of_reductions(backend, draw, version):
    function, xp = take(version, all_finite), backend.xp
    x = backend.asarray(draw(3))
    assert bool(function(xp.sum(x), xp.max(x), x))
    assert not bool(function(xp.sum(x), xp.sum(x) * math.nan))


@versions
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_the_tail_of_erfc_is_accurate(backend, widest, version, dtype):
    """The error of x² is up to x² eps; subnormal results may be 0."""
    dtype = widest if dtype == "widest" else dtype
    x = np.linspace(-6.0, 8.0 if dtype == "float32" else 25.0, 501).astype(dtype)
    y = call(backend, take(version, ops.erfc), x)
    assert y.dtype == x.dtype
    expected = np.asarray([math.erfc(v) for v in x.tolist()])
    eps = float(np.finfo(x.dtype).eps)
    np.testing.assert_array_less(
        np.abs(y / expected - 1), (80 + 2 * x.astype(float) ** 2) * eps
    )


def test_bounded_exp_of_float32_is_within_a_unit_in_the_last_place(backend):
    """NumPy's exp has an error of up to 2.5 ulp, too much for the slope of GELU."""
    x = np.linspace(-87.0, 32.0, 2**16).astype(np.float32)
    y = call(backend, ops.bounded_exp, x)
    assert y.dtype == np.float32
    expected = np.exp(x.astype(np.longdouble))
    units = np.abs(y - expected) / np.spacing(expected.astype(np.float32))
    assert units.max() < 1.0, f"{units.max()} units off at {x[units.argmax()]}"
    assert math.isnan(
        call(backend, ops.bounded_exp, np.asarray([math.nan], np.float32))[0]
    )


@versions
def test_tanh_is_that_of_the_c_library(backend, widest, epsilon, version):
    x = np.concatenate(
        [np.linspace(-30, 30, 401), np.logspace(-30, 0, 61), [math.inf, -math.inf]]
    )
    y = call(backend, take(version, ops.tanh), x.astype(widest))
    expected = [math.tanh(v) for v in x.astype(widest).tolist()]
    np.testing.assert_allclose(y, expected, rtol=8 * epsilon, atol=0)
    assert math.isnan(
        call(backend, take(version, ops.tanh), np.asarray([math.nan], widest))[0]
    )


SMALL = np.logspace(-6, 0, 25)
GRID = np.concatenate([np.linspace(-80.0, 80.0, 641), SMALL, -SMALL])
ELEMENTWISE = [  # function, its formula in decimals
    (sigmoid, lambda x: 1 / (1 + (-x).exp())),
    (softplus, lambda x: (1 + x.exp()).ln()),
]
each_elementwise = pytest.mark.parametrize(
    ("function", "formula"), ELEMENTWISE, ids=[f.__name__ for f, _ in ELEMENTWISE]
)


@each_elementwise
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_sigmoid_and_softplus_are_accurate_in_both_tails(
    backend, widest, function, formula, dtype
):
    """Measured: within 1.6 eps. exp, the sum and the quotient have up to one each."""
    x = GRID.astype(widest if dtype == "widest" else dtype)
    y = call(backend, function, x)
    assert y.dtype == x.dtype
    eps = float(np.finfo(x.dtype).eps)
    np.testing.assert_allclose(y, exactly(formula, x), rtol=4 * eps, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_sigmoid_and_softplus_do_not_overflow(backend, widest, dtype):
    dtype = widest if dtype == "widest" else dtype
    limits = np.finfo(dtype)
    largest, smallest = float(limits.max), float(limits.tiny)
    x = np.asarray(
        [1e4, -1e4, largest, -largest, math.inf, -math.inf, math.nan, smallest], dtype
    )
    ends = call(backend, sigmoid, x), call(backend, softplus, x)
    half, log2 = 0.5, math.log(2.0)
    np.testing.assert_array_equal(ends[0][:-1], [1, 0, 1, 0, 1, 0, math.nan])
    np.testing.assert_array_equal(
        ends[1][:-1], [1e4, 0, x[2], 0, math.inf, 0, math.nan]
    )
    np.testing.assert_allclose(
        [ends[0][-1], ends[1][-1]], [half, log2], rtol=float(limits.eps)
    )


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_log_softmax_is_its_formula_along_the_axis(backend, draw, widest, axis, dtype):
    """x, its maximum and the logarithm each have an error of eps times their size."""
    x = (10.0 * draw(4, 5, 3)).astype(widest if dtype == "widest" else dtype)
    y = call(backend, lambda x: log_softmax(x, axis=axis), x)
    assert y.dtype == x.dtype
    with localcontext(prec=60):
        exact = np.vectorize(lambda v: Decimal(float(v)), otypes=[object])(x)
        total = np.sum(
            np.vectorize(Decimal.exp, otypes=[object])(exact), axis=axis, keepdims=True
        )
        exact = (exact - np.vectorize(Decimal.ln, otypes=[object])(total)).astype(float)
    eps = float(np.finfo(x.dtype).eps)
    np.testing.assert_allclose(y, exact, rtol=2 * eps, atol=4 * eps)


def test_log_softmax_of_extreme_numbers_is_right(backend):
    x = [[1e4, -1e4, 0], [0, -math.inf, 0], [5, math.nan, 5], [1e38, -1e38, 0]]
    y = call(backend, log_softmax, np.asarray(x, np.float32))
    log2 = math.log(2.0)
    expected = [
        [0, -2e4, -1e4],
        [-log2, -math.inf, -log2],
        [math.nan] * 3,
        [0, -2e38, -1e38],
    ]
    np.testing.assert_allclose(y, expected, rtol=2e-7)


@pytest.mark.parametrize("function", DISPATCHED, ids=lambda f: f.__name__)
def test_native_versions_are_used_inside_jit(backend, draw, function):
    """While `jit` traces, arrays may have another type, which needs registration."""
    x = backend.asarray(draw(2))
    traced = []
    backend.jit(lambda x: traced.append(type(x)) or x)(x)
    assert function.dispatch(traced[0]) is function.dispatch(type(x))


def test_every_dispatched_function_is_in_the_list_above():
    modules = (ops, random)
    result = [f for m in modules for f in vars(m).values() if hasattr(f, "dispatch")]
    assert set(result) == set(DISPATCHED)


@pytest.mark.parametrize("width", [1, 3, 64])
def test_sums_of_many_float32_rows_are_accurate(backend, width):
    """Added in order, 2²⁰ rows would have an error of some hundred eps."""
    x = np.random.default_rng(0).random(
        (2**20 // (1 if width < 64 else 8), width), np.float32
    )
    exact = np.sum(x, axis=0, dtype=np.float64)
    array = backend.asarray(x)
    eps = float(np.finfo(np.float32).eps)
    rows = backend.to_numpy(ops.sum_rows(array))
    np.testing.assert_allclose(rows, exact, rtol=16 * eps)
    over = backend.to_numpy(ops.sum_over(array, (0,)))
    np.testing.assert_allclose(over[0], exact, rtol=16 * eps)


@versions
@pytest.mark.parametrize(
    "shape", [(3, 5), (1500, 3), (2, 1025, 3), (2, 600, 3, 2), (0, 3)], ids=str
)
def test_sums_over_axes_are_those_of_float64(backend, widest, epsilon, version, shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(widest)
    for axes in {tuple(range(len(shape) - 1)), (len(shape) - 2,), (len(shape) - 1,)}:
        result = call(backend, lambda x, a=axes: take(version, ops.sum_over)(x, a), x)
        expected = np.sum(x.astype("float64"), axis=axes, keepdims=True)
        np.testing.assert_allclose(result, expected, atol=500 * epsilon)


@pytest.mark.parametrize("index", range(3))
def test_a_norm_of_several_arrays_is_scaled_by_the_largest_number_of_all(
    backend, index
):
    arrays = [np.ones(2, "f") for _ in range(3)]
    arrays[index] = np.asarray([3e30, 4e30], "f")
    largest, length = backend.to_numpy(ops.scaled_norm(*backend.asarray(tuple(arrays))))
    np.testing.assert_allclose([largest, length], [4e30, 1.25], rtol=1e-6)
