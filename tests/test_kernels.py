"""A kernel gives the bits of the calls that it is made of, or says that it cannot."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from agnostic_nn_backends.exponential import HALFWAY
from agnostic_nn_backends.numpy.tracing import two_to
from agnostic_nn_backends.replay import kernels
from agnostic_nn_backends.replay.kernels import (
    Array,
    Call,
    Operand,
    dtype_name,
    is_exact,
    kernel,
    run_parallel,
)

pytest.importorskip("llvmlite", reason="it is what compiles kernels")

ONE = {
    "negative": np.negative,
    "square": np.square,
    "reciprocal": np.reciprocal,
    "sqrt": np.sqrt,
    "absolute": np.absolute,
    "floor": np.floor,
    "invert": np.invert,
}
TWO = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
ORDER = {
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
}
SHIFTS = {"left shift": np.left_shift, "right shift": np.right_shift}
AS_NUMBERS = [f"{name} as numbers" for name in ORDER]

FLOATS = ["float32", "float64"]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = ["bool", *INTEGERS, *FLOATS]
MADE = {  # operations with exactly one right result in each dtype
    "bool": {"and", "or", "xor", "invert"},
    "float": {"reciprocal", "sqrt", "absolute", "floor", "divide"},
    "int": {"and", "or", "xor", "invert"},
}
FOR_NUMBERS = {
    "negative",
    "square",
    "add",
    "subtract",
    "multiply",
    "maximum",
    "minimum",
}
SHAPES = [(1, 1), (1, 3), (7, 1), (7, 3), (5, 513), (600, 4)]


@pytest.fixture(autouse=True)
def _once(backend):
    if backend.name != "numpy":
        pytest.skip(
            "they are no part of the backend: NumPy's session holds them to NumPy's "
            "calls"
        )


@pytest.fixture(autouse=True)
def _edges():
    with np.errstate(all="ignore"):
        yield


def a(place, dtype):
    """Return array number `place`; the letters a, s and r are those of the assembly."""
    return Operand("array", place, dtype)


def s(place, dtype):
    return Operand("scalar", place, dtype)


def r(place, dtype):
    return Operand("call", place, dtype)


def number(value):
    return Operand("number", value)


def values(dtype, seed=0):
    """Those at the ends of a dtype, those that rules are made for, and some others."""
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return np.array([True, False, False])
    if dtype in INTEGERS:
        ends = np.iinfo(dtype)
        some = generator.integers(ends.min, ends.max, 40, dtype=dtype, endpoint=True)
        return np.concatenate(
            [np.array([ends.min, ends.max, 0, 1, ends.max - 1, 2], dtype), some]
        )
    about = np.finfo(dtype)
    small, tiny, large = about.smallest_normal, about.smallest_subnormal, about.max
    edges = [
        0.0,
        np.inf,
        1.0,
        2.5,
        small,
        small / 2,
        tiny,
        3 * tiny,
        large,
        large / 2,
        1 / 3,
    ]
    edges = np.array([np.nan, *edges, *(-x for x in edges)])
    return np.concatenate([edges, generator.standard_normal(40)]).astype(dtype)


def pairs(dtype, seed=0):
    """Each of them with each."""
    return [
        np.ascontiguousarray(x.ravel()) for x in np.meshgrid(*[values(dtype, seed)] * 2)
    ]


def run(calls, arrays, shape, scalars=()):
    """The kernel of these calls, on arrays that are met as their shapes say."""
    rows, width = shape
    met = {(rows, 1): "column", (width,): "row", (rows, width): "whole"}
    described = tuple(Array(str(x.dtype), met[x.shape]) for x in arrays)
    compute = kernel(described, tuple(str(x.dtype) for x in scalars), tuple(calls))
    compute(
        rows,
        width,
        *(x.ctypes.data for x in arrays),
        *(x.item() for x in scalars),
    )


def outcomes(calls, arrays, shape=None, scalars=()):
    """Return the result of each call as a separate array."""
    shape = (1, arrays[0].size) if shape is None else shape
    arrays = [x.reshape(shape) if x.size == shape[0] * shape[1] else x for x in arrays]
    outs = [np.empty(shape, call.dtype) for call in calls]
    placed = [
        Call(call.operation, call.operands, call.dtype, len(arrays) + k)
        for k, call in enumerate(calls)
    ]
    run(placed, [*arrays, *outs], shape, scalars)
    return outs


def assert_bits(actual, expected, message=""):
    """Expect the same bits; every NaN counts as equal."""
    assert (actual.dtype, actual.size) == (expected.dtype, expected.size), message
    actual, expected = actual.ravel(), expected.ravel()
    is_number = expected == expected
    np.testing.assert_array_equal(actual == actual, is_number, message)
    bits = f"u{actual.itemsize}"
    np.testing.assert_array_equal(
        actual[is_number].view(bits), expected[is_number].view(bits), message
    )


def made_of(dtype):
    """The operations of numbers of one dtype that give numbers of it."""
    operations = MADE[dtype.rstrip("0123456789").lstrip("u")]
    return operations if dtype == "bool" else operations | FOR_NUMBERS


# --- each operation -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_operation_gives_the_bits_of_numpy(dtype):
    x, y = pairs(dtype)
    names = [*sorted(made_of(dtype)), *ORDER]
    calls = [
        Call(
            name,
            (a(0, dtype),) if name in ONE else (a(0, dtype), a(1, dtype)),
            "bool" if name in ORDER else dtype,
        )
        for name in names
    ]
    for shape in ((1, x.size), (x.size, 1), (x.size // 3, 3)):
        size = shape[0] * shape[1]
        one, other = x[:size], y[:size]
        results = outcomes(calls, [one, other], shape)
        for name, result in zip(names, results, strict=True):
            by_numpy = (ONE | TWO | ORDER)[name]
            expected = by_numpy(one) if name in ONE else by_numpy(one, other)
            # no library says which of 0 and -0 is larger
            if name in ("maximum", "minimum"):
                result, expected = result + 0, expected + 0
            assert_bits(result, expected, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_have_only_operations_with_one_correct_result(dtype):
    def exact(name, operands, result):
        return is_exact(Call(name, operands, result, 1))

    unary, binary = (a(0, dtype),), (a(0, dtype), a(1, dtype))
    results = {
        name
        for name in (*ONE, *TWO)
        if exact(name, unary if name in ONE else binary, dtype)
    }
    assert results == made_of(dtype)
    assert all(exact(name, binary, "bool") for name in ORDER)
    for name in (
        "exp",
        "tanh",
        "log",
        "pow",
        "floor_divide",
        "remainder",
        "rint",
        *SHIFTS,
    ):
        assert not exact(name, unary, dtype)
        assert not exact(name, binary, dtype)
    for other in set(DTYPES) - {dtype}:
        assert not any(exact(name, (a(0, dtype), a(1, other)), dtype) for name in TWO)
        assert not any(exact(name, (a(0, dtype), s(0, other)), dtype) for name in TWO)
        assert not any(
            exact(name, (a(0, dtype), a(1, other)), "bool") for name in ORDER
        )
        assert not any(
            exact(name, unary if name in ONE else binary, other)
            for name in (*ONE, *TWO)
        )
    for other in set(DTYPES) - {"bool"}:
        assert not any(exact(name, binary, other) for name in ORDER)


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons_are_had_as_numbers_too(dtype):
    x, y = pairs(dtype)
    two = (a(0, dtype), a(1, dtype))
    results = outcomes([Call(name, two, dtype) for name in AS_NUMBERS], [x, y])
    for by_numpy, result in zip(ORDER.values(), results, strict=True):
        assert_bits(result, by_numpy(x, y).astype(dtype), by_numpy.__name__)
    for other in set(DTYPES) - {dtype, "bool"}:
        assert not any(is_exact(Call(name, two, other)) for name in AS_NUMBERS)


@pytest.mark.parametrize("source", DTYPES)
def test_a_cast_is_made_where_each_number_has_its_like(source):
    x = pairs(source)[0]
    into = [dtype for dtype in DTYPES if source in FLOATS and dtype in INTEGERS]
    assert not any(is_exact(Call("cast", (a(0, source),), dtype)) for dtype in into)
    into = [dtype for dtype in DTYPES if dtype not in into]
    calls = [Call("cast", (a(0, source),), dtype) for dtype in into]
    assert all(map(is_exact, calls))
    for dtype, result in zip(into, outcomes(calls, [x]), strict=True):
        assert_bits(result, x.astype(dtype), f"{source} to {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_choice_takes_numbers_as_they_are(dtype):
    x, y = pairs(dtype)
    mask = np.random.default_rng(1).random(x.size) < 0.5
    high = True if dtype == "bool" else np.float32(3.5).item() if dtype in FLOATS else 3
    scalar = values(dtype)[1]
    arguments = [
        (a(1, dtype), a(2, dtype)),
        (number(high), a(2, dtype)),
        (a(1, dtype), number(high)),
        (a(1, dtype), s(0, dtype)),
    ]
    expected = [(x, y), (high, y), (x, high), (x, scalar)]
    calls = [Call("choose", (a(0, "bool"), *two), dtype) for two in arguments]
    assert all(map(is_exact, calls))
    results = outcomes(calls, [mask, x, y], scalars=(scalar,))
    for result, (one, other) in zip(results, expected, strict=True):
        assert_bits(result, np.where(mask, one, other).astype(dtype))
    for other in set(DTYPES) - {dtype}:
        assert not is_exact(
            Call("choose", (a(0, "bool"), a(1, dtype), a(2, other)), dtype)
        )
        assert not is_exact(
            Call("choose", (a(0, "bool"), a(1, dtype), a(2, dtype)), other)
        )
        if other != "bool":
            assert not is_exact(
                Call("choose", (a(0, other), a(1, dtype), a(2, dtype)), dtype)
            )


@pytest.mark.parametrize("dtype", INTEGERS)
def test_shifts_are_made_by_numbers_within_the_width(dtype):
    x, bits = pairs(dtype)[0], 8 * np.dtype(dtype).itemsize
    options = [(name, by) for name in SHIFTS for by in (0, 1, bits // 2, bits - 1)]
    calls = [Call(name, (a(0, dtype), number(by)), dtype) for name, by in options]
    assert all(map(is_exact, calls))
    for (name, by), result in zip(options, outcomes(calls, [x]), strict=True):
        assert_bits(result, SHIFTS[name](x, np.asarray(by, dtype)), f"{name} by {by}")
    for name in SHIFTS:
        for arguments in (
            (a(0, dtype), number(bits)),
            (a(0, dtype), number(-1)),
            (a(0, dtype), a(1, dtype)),
            (a(0, dtype), s(0, dtype)),
            (number(1), a(0, dtype)),
        ):
            assert not is_exact(Call(name, arguments, dtype)), (name, arguments)


def test_powers_of_two_are_made_of_bits_and_of_float32_alone():
    n = np.arange(-126, 128, dtype="float32")
    call = Call("two to", (a(0, "float32"),), "float32")
    (result,) = outcomes([call], [n + np.float32(HALFWAY)])
    assert_bits(result, np.ldexp(np.float32(1), n.astype(int)))
    assert_bits(two_to(n + np.float32(HALFWAY)), result)
    assert not is_exact(Call("two to", (a(0, "float64"),), "float64"))
    assert not is_exact(Call("two to", (a(0, "int32"),), "int32"))


def test_a_mask_is_whatever_is_not_zero():
    x = np.arange(256, dtype="uint8")
    calls = [
        Call("choose", (a(0, "bool"), number(2.0), number(1.0)), "float32"),
        Call("and", (a(0, "bool"), number(True)), "bool"),
        Call("cast", (a(0, "bool"),), "int16"),
    ]
    result = outcomes(calls, [x.view("bool")])
    assert_bits(result[0], np.where(x, np.float32(2), np.float32(1)))
    assert_bits(result[1].view("uint8"), (x > 0).astype("uint8"))
    assert_bits(result[2], (x > 0).astype("int16"))


# --- numbers, scalars, NaN and infinity -----------------------------------------------

REAL = [0.1, 1 / 3, -0.0, 0.0, 1e39, -1e39, 1e-46, 3e-45, float("nan"), float("inf")]
REAL += [3, 2**24 + 1, 2**60 + 2**36 + 1, -(2**70)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", REAL, ids=repr)
def test_a_number_among_floats_is_rounded_as_numpy_rounds_it(value, dtype):
    x = values(dtype)
    calls = [
        Call("add", (a(0, dtype), number(value)), dtype),
        Call("subtract", (number(value), a(0, dtype)), dtype),
        Call("multiply", (a(0, dtype), number(value)), dtype),
        Call("divide", (a(0, dtype), number(value)), dtype),
        Call("divide", (number(value), a(0, dtype)), dtype),
        Call("less", (a(0, dtype), number(value)), "bool"),
    ]
    assert all(map(is_exact, calls))
    expected = [x + value, value - x, x * value, x / value, value / x, x < value]
    for call, result, right in zip(calls, outcomes(calls, [x]), expected, strict=True):
        assert_bits(result, right, call.operation)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_number_among_integers_is_one_of_them(dtype):
    x, ends = values(dtype), np.iinfo(dtype)
    for value in (ends.min, ends.max, 0, 1, 7):
        calls = [
            Call("add", (a(0, dtype), number(value)), dtype),
            Call("subtract", (number(value), a(0, dtype)), dtype),
            Call("multiply", (number(value), a(0, dtype)), dtype),
            Call("less", (a(0, dtype), number(value)), "bool"),
        ]
        assert all(map(is_exact, calls))
        expected = [x + value, value - x, value * x, x < value]
        for result, right in zip(outcomes(calls, [x]), expected, strict=True):
            assert_bits(result, right)
    for value in (ends.min - 1, ends.max + 1, 1.0, 0.5, True, np.float64(1.0)):
        assert not is_exact(Call("add", (a(0, dtype), number(value)), dtype)), value
        assert not is_exact(Call("less", (number(value), a(0, dtype)), "bool")), value


def test_numbers_of_another_kind_are_refused():
    for dtype in FLOATS:
        for value in (True, np.float64(1.0), 1j):
            assert not is_exact(Call("add", (a(0, dtype), number(value)), dtype)), value
    for value in (0, 1, 1.0):
        assert not is_exact(Call("and", (a(0, "bool"), number(value)), "bool")), value
    assert is_exact(Call("and", (a(0, "bool"), number(True)), "bool"))
    assert not is_exact(Call("add", (number(1.0), number(2.0)), "float32"))


def test_zeros_of_two_signs_make_two_kernels():
    x = np.array([1.0, -1.0, 0.0], "float32")
    for value in (0.0, -0.0):
        (result,) = outcomes(
            [Call("multiply", (a(0, "float32"), number(value)), "float32")], [x]
        )
        assert_bits(result, x * np.float32(value))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scalar_is_passed_as_it_is(dtype):
    x = values(dtype)
    name = "xor" if dtype == "bool" else "multiply"
    calls = [
        Call(name, (a(0, dtype), s(0, dtype)), dtype),
        Call("less", (a(0, dtype), s(0, dtype)), "bool"),
    ]
    for scalar in values(dtype):
        result = outcomes(calls, [x], scalars=(scalar,))
        assert_bits(result[0], TWO[name](x, scalar), repr(scalar))
        assert_bits(result[1], np.less(x, scalar), repr(scalar))


def test_scalars_may_be_more_than_fit_into_registers():
    dtypes = DTYPES * 2 + ["float32"] * 6
    scalars = [values(dtype, seed)[-1] for seed, dtype in enumerate(dtypes)]
    calls = []
    for dtype in DTYPES:
        places = [k for k, each in enumerate(dtypes) if each == dtype]
        name = "xor" if dtype == "bool" else "multiply"
        calls += [
            Call(name, (a(DTYPES.index(dtype), dtype), s(k, dtype)), dtype)
            for k in places
        ]
    arrays = [np.resize(values(dtype), 20) for dtype in DTYPES]
    results = outcomes(calls, arrays, scalars=scalars)
    for call, result in zip(calls, results, strict=True):
        array, scalar = (operand.place for operand in call.operands)
        assert_bits(result, TWO[call.operation](arrays[array], scalars[scalar]))


@pytest.mark.parametrize(
    "dtype", ["float16", "complex64", "complex128", ">f4", ">i8", "M8[s]", "S4"]
)
def test_other_dtypes_are_left_to_the_library(dtype):
    assert dtype_name(np.dtype(dtype)) == ""
    assert not is_exact(
        Call("add", (a(0, dtype_name(np.dtype(dtype))), a(1, "float32")), "float32")
    )
    assert not is_exact(Call("cast", (a(0, "float32"),), dtype_name(np.dtype(dtype))))


def test_dtypes_are_known_by_name_in_every_library():
    assert [dtype_name(np.dtype(dtype)) for dtype in DTYPES] == DTYPES
    assert dtype_name("torch.float32") == "float32"
    assert dtype_name("torch.bfloat16") == ""


# --- rows, columns, and where results lie ---------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arrays_are_met_whole_or_as_a_row_or_as_a_column(shape, dtype):
    rows, width = shape
    generator = np.random.default_rng(0)
    forms = {"whole": shape, "row": (width,), "column": (rows, 1)}
    whole, row, column, mask, hidden = (
        generator.integers(0, 100, forms[met]).astype(dtype)
        for met in ("whole", "row", "column", "whole", "column")
    )
    mask, hidden, scalar = mask < 50, hidden < 50, np.asarray(3, dtype)[()]
    result, smaller = np.empty(shape, dtype), np.empty(shape, bool)
    calls = [
        Call("multiply", (a(0, dtype), a(1, dtype)), dtype),
        Call("subtract", (r(0, dtype), a(2, dtype)), dtype),
        Call("add", (s(0, dtype), r(1, dtype)), dtype),
        Call("choose", (a(3, "bool"), r(2, dtype), a(0, dtype)), dtype),
        Call("choose", (a(4, "bool"), r(3, dtype), number(1)), dtype, 5),
        Call("less", (r(2, dtype), a(2, dtype)), "bool", 6),
    ]
    # a column is one also where it is as wide as the rows
    met = ("whole", "row", "column", "whole", "column", "whole", "whole")
    arrays = (whole, row, column, mask, hidden, result, smaller)
    described = tuple(
        Array(str(array.dtype), how) for array, how in zip(arrays, met, strict=True)
    )
    compute = kernel(described, (dtype,), tuple(calls))
    compute(rows, width, *(array.ctypes.data for array in arrays), scalar.item())
    moved = scalar + (whole * row - column)
    chosen = np.where(hidden, np.where(mask, moved, whole), np.asarray(1, dtype))
    assert_bits(result, chosen)
    assert_bits(smaller, moved < column)


def test_memory_around_the_results_is_left_alone():
    for rows, width in SHAPES:
        memory = np.full((rows + 2, width), 7, "float32")
        inside, x = memory[1:-1], np.ones((rows, width), "float32")
        run(
            [Call("negative", (a(0, "float32"),), "float32", 1)],
            [x, inside],
            (rows, width),
        )
        assert (inside == -1).all()
        assert (memory[[0, -1]] == 7).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_result_may_lie_where_something_is_read(shape):
    generator = np.random.default_rng(0)
    p, m, v, g = (generator.standard_normal(shape).astype("float32") for _ in range(4))
    v **= 2
    mean = np.float32(0.9) * m + np.float32(0.1) * g
    square = np.float32(0.99) * v + g * g
    new, old = p - mean / (np.sqrt(square) + np.float32(1e-8)), p + m
    p, before = p.copy(), np.empty(shape, "float32")
    f = "float32"
    calls = [
        Call("multiply", (a(1, f), number(0.9)), f),
        Call("multiply", (a(3, f), number(0.1)), f),
        Call("add", (r(0, f), r(1, f)), f, 1),
        Call("multiply", (number(0.99), a(2, f)), f),
        Call("multiply", (a(3, f), a(3, f)), f),
        Call("add", (r(3, f), r(4, f)), f, 2),
        Call("sqrt", (r(5, f),), f),
        Call("add", (r(6, f), number(1e-8)), f),
        Call("divide", (r(2, f), r(7, f)), f),
        Call("subtract", (a(0, f), r(8, f)), f, 0),
        Call("add", (a(0, f), a(1, f)), f, 4),  # of what lay there before
    ]
    run(calls, [p, m, v, g, before], shape)
    for result, expected in ((p, new), (m, mean), (v, square), (before, old)):
        assert_bits(result, expected)


# --- rounding -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_product_and_a_sum_are_rounded_one_by_one(dtype):
    little = np.finfo(dtype).eps
    x = np.full(100, 1 + little, dtype)
    y = np.full(100, 1 - little, dtype)
    one = np.ones(100, dtype)
    assert (x * y - one == 0).all()  # and not -little²
    product = Call("multiply", (a(0, dtype), a(1, dtype)), dtype)
    calls = [
        product,
        Call("subtract", (r(0, dtype), a(2, dtype)), dtype),
        Call("subtract", (a(2, dtype), r(0, dtype)), dtype),
        Call("negative", (a(2, dtype),), dtype),
        Call("add", (r(0, dtype), r(3, dtype)), dtype),
    ]
    for shape in ((1, 100), (100, 1)):
        result = outcomes(calls, [x, y, one], shape)
        for k in (1, 2, 4):
            assert_bits(result[k], np.zeros(100, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_is_left_out_that_only_looks_as_if_it_changed_nothing(dtype):
    x, y = pairs(dtype)
    third = np.asarray(3, dtype)
    of = {
        "x - x": (Call("subtract", (a(0, dtype), a(0, dtype)), dtype), x - x),
        "x / x": (Call("divide", (a(0, dtype), a(0, dtype)), dtype), x / x),
        "x * 0": (Call("multiply", (a(0, dtype), number(0.0)), dtype), x * 0.0),
        "x + 0": (Call("add", (a(0, dtype), number(0.0)), dtype), x + 0.0),
        "x + -0": (Call("add", (a(0, dtype), number(-0.0)), dtype), x + -0.0),
        "0 - x": (Call("subtract", (number(0.0), a(0, dtype)), dtype), 0.0 - x),
        "x / 3": (Call("divide", (a(0, dtype), number(3.0)), dtype), x / third),
        "x == x": (Call("equal", (a(0, dtype), a(0, dtype)), "bool"), x == x),
        "x < x": (
            Call("less", (a(0, dtype), a(0, dtype)), "bool"),
            np.zeros(x.size, bool),
        ),
    }
    results = outcomes([call for call, _ in of.values()], [x, y])
    for (report, (_, expected)), result in zip(of.items(), results, strict=True):
        assert_bits(result, expected, report)
    sums = [
        Call("add", (a(0, dtype), a(1, dtype)), dtype),
        Call("subtract", (r(0, dtype), a(0, dtype)), dtype),
        Call("divide", (a(0, dtype), a(1, dtype)), dtype),
        Call("multiply", (r(2, dtype), a(1, dtype)), dtype),
        Call("sqrt", (a(0, dtype),), dtype),
        Call("square", (r(4, dtype),), dtype),
    ]
    results = outcomes(sums, [x, y])
    assert_bits(results[1], (x + y) - x)
    assert_bits(results[3], (x / y) * y)
    assert_bits(results[5], np.square(np.sqrt(x)))


# --- threads --------------------------------------------------------------------------


def test_each_part_is_made_once_whichever_thread_makes_it():
    x = np.arange(70.0, dtype="float32").reshape(10, 7)
    add = kernel(
        (Array("float32", "whole"),),
        ("float32",),
        (Call("add", (a(0, "float32"), s(0, "float32")), "float32", 0),),
    )
    starts = ((0, 3, 1.0), (3, 4, 2.0), (7, 3, 3.0))
    run_parallel(
        add, *((rows, 7, x[start:].ctypes.data, by) for start, rows, by in starts)
    )
    added = np.repeat([1.0, 2.0, 3.0], (3, 4, 3))[:, None]
    assert_bits(x, (np.arange(70.0).reshape(10, 7) + added).astype("float32"))


def test_all_threads_are_awaited_and_their_errors_are_raised():
    def slow(part):
        if part == "wrong":
            raise ArithmeticError(part)
        done.append(part)

    done = []
    run_parallel(slow, ("one",), ("two",), ("three",))
    assert sorted(done) == ["one", "three", "two"]
    with pytest.raises(ArithmeticError):
        run_parallel(slow, ("one",), ("wrong",))


FORKED = """
import os, signal, warnings
from agnostic_nn_backends.replay.kernels import run_parallel
warnings.simplefilter("ignore")
done = []
run_parallel(done.append, (1,), (2,), (3,))
if os.fork() == 0:
    signal.alarm(20)
    run_parallel(done.append, (4,), (5,))
    os._exit(len(done))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 5
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_fork_has_threads_of_its_own():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


# --- where there are none -------------------------------------------------------------


class _Unloadable(ModuleType):
    def __getattr__(self, name):
        raise OSError("no such library")


@pytest.fixture
def available():
    """Return `kernels.available` without its cached result."""
    kernels.available.cache_clear()
    yield kernels.available
    kernels.available.cache_clear()


def test_kernels_are_compiled_if_llvmlite_is_installed(available, monkeypatch):
    monkeypatch.delenv("AGNOSTIC_NN_KERNELS", raising=False)
    assert available()


def test_kernels_can_be_turned_off(available, monkeypatch):
    monkeypatch.setenv("AGNOSTIC_NN_KERNELS", "0")
    assert not available()


@pytest.mark.parametrize(
    "llvmlite",
    [
        None,
        _Unloadable("llvmlite"),
        SimpleNamespace(binding=SimpleNamespace(llvm_version_info=(16, 0, 6))),
    ],
    ids=["absent", "unloadable", "old"],
)
def test_there_are_none_without_an_llvmlite_that_can_make_them(
    llvmlite, available, monkeypatch
):
    monkeypatch.delenv("AGNOSTIC_NN_KERNELS", raising=False)
    monkeypatch.setitem(sys.modules, "llvmlite", llvmlite)
    assert not available()
