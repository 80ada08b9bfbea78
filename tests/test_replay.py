"""A replayed function does what the function does, to the last bit, and no more."""

import math
from importlib import import_module
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from cases import arrays_for, layer_cases, run

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.diagnostics import examples
from agnostic_nn_backends import replay as replay_package
from agnostic_nn_backends.replay import emit, kernels, schedule
from agnostic_nn_backends.replay.program import Program, replayed

CASES = [case for case in layer_cases() if not case.thorough]


@pytest.fixture
def library(backend):
    """The `Library` of the backend, if it replays functions."""
    if backend.name not in ("numpy", "torch") or "cpu" not in str(backend):
        pytest.skip(f"{backend} has its own way to run a function again")
    return import_module(f"agnostic_nn_backends.{backend.name}.tracing").library


def looked_at(kernel):
    """`kernel`, which sees to it that nothing else lies where it writes."""

    def checked_kernel(arrays, scalars, calls):
        plain = kernel(arrays, scalars, calls)
        written = {call.out for call in calls} - {None}

        def run(rows, width, *arguments):
            counts = {"whole": rows * width, "row": width, "column": rows}
            spans = []
            for array, start in zip(arrays, arguments, strict=False):
                itemsize = np.dtype(array.dtype).itemsize
                spans.append((start, start + counts[array.broadcast] * itemsize))
            for k in written:
                first, last = spans[k]
                rest = [span for j, span in enumerate(spans) if j != k]
                assert all(end <= first or last <= start for start, end in rest)
            plain(rows, width, *arguments)

        return run

    return checked_kernel


@pytest.fixture(
    params=[
        "a few numbers",
        "as many as there are",
        "without kernels",
        "on three threads",
    ]
)
def block(request, library, monkeypatch, thorough):
    """Set block sizes so small that even small arrays are processed in parts."""
    if not thorough and request.param in ("without kernels", "on three threads"):
        pytest.skip("left to sessions that sweep over everything")
    monkeypatch.setattr(kernels, "kernel", looked_at(kernels.kernel))
    if request.param == "as many as there are":
        return
    monkeypatch.setattr(schedule, "MIN_KERNEL_SIZE", 0)
    if request.param == "on three threads":
        if not kernels.available():
            pytest.skip("only kernels are spread over threads")
        monkeypatch.setattr(kernels, "MIN_ELEMENTS_PER_THREAD", 1)
        monkeypatch.setattr(type(library), "num_threads", lambda self: 3)
    else:
        monkeypatch.setattr(type(library), "block_size", lambda self: 4)
    if request.param == "without kernels":
        monkeypatch.setattr(kernels, "available", lambda: False)
        monkeypatch.setattr(kernels, "kernel", None)


@pytest.fixture
def replay(library):
    """`replayed` for the library under test."""
    return lambda function, donated=(): replayed(function, library, donated)


def assert_same(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def others(arrays, seed, backend):
    """Other numbers of the same kind."""
    generator = np.random.default_rng(seed)

    def other(a):
        return backend.asarray(generator.permuted(np.asarray(a))) if a.ndim else a

    return tree_map(other, arrays)


def spoiled(x, backend):
    """NaN and infinity among the numbers."""

    def worse(a):
        result = np.array(backend.to_numpy(a))
        if result.dtype.kind == "f":
            result.reshape(-1)[:3] = (math.nan, math.inf, -math.inf)[: result.size]
        return backend.asarray(result)

    return tree_map(worse, x)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_can_be_replayed_and_gives_the_same_bits(case, backend, library):
    arrays = backend.asarray(arrays_for(case))
    for train in (True, False):

        def everything(arrays, train=train):
            return run(case.layer, arrays, train=train)

        program = Program(everything, (arrays,), library, ())
        shuffled = [others(arrays, seed, backend) for seed in (0, 1)]
        for arguments in (
            *shuffled,
            {**shuffled[0], "x": spoiled(shuffled[0]["x"], backend)},
        ):
            assert program.fits((arguments,))
            with np.errstate(all="ignore"):
                assert_same(program((arguments,)), everything(arguments))


OPTIMIZERS = [
    *examples.OPTIMIZERS,
    nn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    nn.Scaled(nn.Average(nn.ClipByGlobalNorm(nn.Adam(nn.schedules.Cosine(0.1, 9))))),
    nn.Accumulate(nn.Adam(amsgrad=True), 2),
]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda rule: repr(rule)[:40])
def test_steps_that_take_the_memory_of_the_old_give_the_same_bits(
    optimizer, backend, library
):
    model = nn.Sequential(
        nn.Dense(6), nn.BatchNorm(), nn.GELU(), nn.Dropout(0.3), nn.Dense(3)
    )
    generator = np.random.default_rng(0)
    x = generator.standard_normal((7, 5, 4)).astype("float32")
    labels = generator.integers(0, 3, (7, 5)).astype("int32")
    x, labels = backend.asarray((x, labels))
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, optimizer, backend=backend, shape=(5, 4)
    )
    step = nn.make_step(model, nn.softmax_cross_entropy, optimizer)
    calls = []
    fast = replayed(
        lambda *arguments: calls.append(1) or step(*arguments), library, (0,)
    )
    carry = (trainer.params, trainer.state, trainer.moments)
    ours = tree_map(library.copy, carry)
    for _ in range(6):
        carry, value, finite = step(carry, x, labels)
        ours, *report = fast(ours, x, labels)
        assert_same((carry, value, finite), (ours, *report))
    # once directly, once to record, once to verify the program; then never again
    assert len(calls) == 3


def test_calls_with_numbers_that_are_equal_but_of_another_type_are_distinguished(
    backend, library
):
    def function(whole, real):
        return whole * 1, whole * 1.0, real * 0.0, real * -0.0

    args = backend.asarray((np.arange(1, 4, dtype="int32"), np.ones(3, "float32")))
    program = Program(function, args, library, ())
    assert program.fits(args)
    result, expected = program(args), function(*args)
    assert_same(result, expected)
    for one, other in zip(result, expected, strict=True):
        assert np.array_equal(*(np.signbit(backend.to_numpy(a)) for a in (one, other)))


def test_a_function_that_asks_for_values_is_called_as_it_is(backend, replay):
    def positive(x):
        return x if x[0] > 0 else -x

    for number in (1.0, -1.0):
        fast, x = replay(positive), backend.asarray([number])
        for arguments in (x, x, -x, x, -x):
            assert_same(fast(arguments), abs(arguments))


@pytest.mark.parametrize(
    "function",
    [
        lambda xp, x: x[x > 0] * 2.0,
        lambda xp, x: xp.unique_values(x) + 1.0,
        lambda xp, x: xp.nonzero(x > 0)[0] * 3,
    ],
)
def test_a_result_may_be_as_long_as_values_say(function, backend, replay):
    fast = replay(lambda x: function(namespace(x), x))
    for x in ([1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [-1.0, -1.0, 3.0], [1.0, 2.0, 3.0]):
        x = backend.asarray(x)
        assert_same(fast(x), function(backend.xp, x))


def test_a_function_that_is_not_pure_is_called_as_it_is(backend, replay):
    generator = np.random.default_rng(0)
    fast, x = (
        replay(lambda x: x + float(generator.standard_normal())),
        backend.asarray([0.0]),
    )
    assert len({float(fast(x)[0]) for _ in range(6)}) == 6


def test_results_are_not_overwritten_by_the_next_call(backend, replay):
    def function(x):
        xp = namespace(x)
        return xp.exp(x) + 1.0, xp.exp(x).T, x[0]

    fast = replay(function)
    arguments = [
        backend.asarray(np.random.default_rng(i).standard_normal((3, 2)))
        for i in range(5)
    ]
    result = [fast(x) for x in arguments]
    for x, y in zip(arguments, result, strict=True):
        assert_same(y, function(x))


def test_arguments_that_are_not_given_up_are_left_alone(backend, replay):
    x, before, old = backend.asarray((np.arange(6.0), np.arange(6.0), np.zeros(6)))
    fast = replay(lambda old, x: (old + x, x * 2.0), (0,))
    for _ in range(4):
        old, _ = fast(old, x)
    assert_same((old, x), (4 * before, before))


def test_a_donated_array_holds_the_result_that_replaces_it(backend, replay):
    fast = replay(lambda carry, x: ({"a": carry["a"] * 2.0 + x}, x), (0,))
    carry, x = backend.asarray(({"a": np.ones(5)}, np.ones(5)))
    for _ in range(3):
        carry, _ = fast(carry, x)
    memory = carry["a"]
    carry, _ = fast(carry, x)
    assert carry["a"] is memory
    assert_same(memory, np.full(5, 2.0**5 - 1))


def test_arrays_that_change_places_are_not_lost(backend, replay):
    fast = replay(lambda pair: ((pair[1], pair[0] + 1.0),), (0,))
    pair = backend.asarray((np.zeros(3), np.full(3, 10.0)))
    for turn in range(1, 7):
        (pair,) = fast(pair)
        low, high = (turn + 1) // 2, 10.0 + turn // 2
        first, second = (high, low) if turn % 2 else (low, high)
        assert_same(pair, (np.full(3, float(first)), np.full(3, float(second))))


def test_an_array_donated_twice_is_not_used_as_memory(backend, replay):
    fast = replay(lambda pair: ((pair[0] + 1.0, pair[1] * 2.0),), (0,))
    for _ in range(4):
        array = backend.asarray(np.ones(3))
        assert_same(fast((array, array))[0], (np.full(3, 2.0), np.full(3, 2.0)))


def test_a_read_only_array_is_not_used_as_memory(backend, replay):
    if backend.name != "numpy":
        pytest.skip("only NumPy has arrays that are read only")
    fast = replay(lambda old: (old + 1.0,), (0,))
    for _ in range(4):
        old = np.ones(3)
        old.flags.writeable = False
        assert_same(fast(old), (np.full(3, 2.0),))
        assert old[0] == 1.0


def test_calls_that_autograd_tracks_are_left_to_it(backend, replay):
    if backend.name != "torch":
        pytest.skip("only PyTorch has arrays with gradients of their own")
    torch = pytest.importorskip("torch", reason="it is what is tested")
    fast = replay(lambda old: (old * 3.0,), (0,))
    for grows in (False, False, False, True, False, True):
        old = torch.ones(3, requires_grad=grows)
        (new,) = fast(old)
        assert new.requires_grad == grows
        assert not new.is_inference()
        if grows:
            assert_same(
                torch.autograd.grad(new.sum(), old), (np.full(3, 3.0, "float32"),)
            )
            assert_same(old.detach(), np.ones(3, "float32"))
    with torch.inference_mode():
        old = torch.ones(3)
    assert_same(fast(old), (np.full(3, 3.0, "float32"),))
    assert_same(
        torch.func.vjp(fast, torch.ones(3))[1]((torch.ones(3),)),
        (np.full(3, 3.0, "f4"),),
    )


def test_a_step_that_is_not_taken_changes_nothing(backend, replay):
    def step(carry, x):
        finite = ops.all_finite(x)
        return ops.select(
            finite, lambda: tree_map(lambda c: c + x, carry), carry
        ), finite

    fast = replay(step, (0,))
    carry = backend.asarray((np.zeros(3), {"b": np.ones(3)}))
    for x in (1.0, 1.0, 1.0, np.nan, 1.0, np.inf, 1.0):
        carry, finite = fast(carry, backend.asarray(np.full(3, x)))
        assert bool(finite) == np.isfinite(x)
    assert_same(carry, (np.full(3, 5.0), {"b": np.full(3, 6.0)}))


def test_reshapes_in_a_row_give_the_bits_of_each_of_them(backend, library):
    """Only the last one is recorded, and none if it restores the shape."""
    data = np.arange(24, dtype="float32").reshape(2, 3, 4)
    square = backend.asarray(np.arange(16, dtype="float32").reshape(4, 4) / 7.0)
    xp = backend.xp

    def function(x):
        xp = namespace(x)
        doubled = x * 2.0
        rows = xp.reshape(xp.reshape(doubled, (1, 6, 4)), (-1, 4))
        restored = xp.reshape(rows, (2, 3, 4))
        return rows @ square, xp.reshape(restored, (-1, 4)) @ square, restored

    contiguous = backend.asarray(data)
    permuted = xp.permute_dims(backend.asarray(data.transpose(2, 1, 0)), (2, 1, 0))
    for x in (contiguous, permuted):
        program = Program(function, (x,), library, ())
        assert program.fits((x,))
        assert_same(program((x,)), function(x))


def test_a_normalized_step_has_the_same_bits_and_gradient(backend, library):
    """A step of decoding is normalized as a matrix where a library is faster so."""
    layer = nn.LayerNorm()
    draws = np.random.default_rng(0).standard_normal((4, 3, 1, 5)).astype("float32")
    x, dy, scale, bias = backend.asarray(tuple(draws))
    params = {"scale": scale[0, 0, :], "bias": bias[0, 0, :]}

    def function(x, dy):
        y, _, cache = layer.forward(params, {}, x, train=True)
        return y, *layer.backward(params, cache, dy)

    program = Program(function, (x, dy), library, ())
    assert program.fits((x, dy))
    assert_same(program((x, dy)), function(x, dy))


def test_other_layouts_shapes_and_values_of_arguments_are_distinguished(
    backend, replay
):
    fast = replay(lambda x, double: x.T * (2.0 if double else 1.0))
    x = backend.asarray(np.arange(12.0).reshape(3, 4))
    turned = x[:, ::-1] if backend.name == "numpy" else x[:, ::2]
    for arguments in (
        x,
        x.T,
        x[::2],
        turned,
        backend.xp.astype(x, backend.xp.float32),
        x[:0],
    ):
        for double in (True, False):
            for _ in range(3):
                assert_same(
                    fast(arguments, double), arguments.T * (2.0 if double else 1.0)
                )


def test_another_array_in_the_same_place_of_a_tree_is_seen(backend, replay):
    fast = replay(lambda params, x: x @ params["weight"])
    params, x = {"weight": np.eye(2)}, backend.asarray(np.ones((1, 2)))
    for factor in (1.0, 1.0, 1.0, 2.0, 3.0):
        params["weight"] = backend.asarray(factor * np.eye(2))
        assert_same(fast(params, x), np.full((1, 2), factor))


def test_threads_do_not_meet_in_one_program(backend, replay):
    def function(x):
        xp = namespace(x)
        return xp.sqrt(xp.exp(x) + 1.0) * x

    fast = replay(function)
    arguments = [
        backend.asarray(np.random.default_rng(i).standard_normal(50_000))
        for i in range(4)
    ]
    wrong = []

    def work(x):
        for _ in range(20):
            if not np.array_equal(fast(x), function(x)):
                wrong.append(x)

    threads = [Thread(target=work, args=(x,)) for x in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_read_from_a_trainer_are_left_alone_by_later_steps(backend, library):
    model = nn.Sequential(nn.Dense(3), nn.BatchNorm())
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.Adam(0.1), backend=backend, shape=(2,)
    )
    x, target = np.random.default_rng(0).standard_normal((2, 8, 3)).astype("float32")
    for _ in range(5):
        trainer.step(x[:, :2], target)
        trees = (trainer.params, trainer.state, trainer.moments)
        copies = tree_map(library.copy, trees)
        trainer.step(x[:, :2], target)
        assert_same(trees, copies)


@pytest.mark.parametrize("by", ["field", "environment"])
def test_replay_can_be_turned_off(monkeypatch, backend, library, by):
    monkeypatch.setenv("AGNOSTIC_NN_REPLAY", "0" if by == "environment" else "1")
    eager = nn.backend(str(backend), replay=None if by == "environment" else False)
    calls = []
    run = eager.jit(lambda old: (calls.append(1), old + 1.0)[1:], (0,))
    old = backend.asarray(np.zeros(3))
    for _ in range(5):
        assert_same(run(old), (np.ones(3),))
    assert len(calls) == 5


# --- groups of elementwise calls ------------------------------------------------------


def all_at_once(xp, g):
    return (g.x * g.y - g.row) / (g.column + 3.0) - (1.0 - g.x) * xp.abs(-g.y)


def scalars_by_value(xp, g):
    mean = xp.mean(g.x)
    far = g.x - mean
    return far / (mean * mean + 1.0), far < mean, far * g.scalar, far - g.scalar


def exp_in_between(xp, g):
    low = g.x * 0.5 - g.row
    high = xp.exp(low) * g.column + low
    return xp.tanh(high) - low, high * g.x


def exp_on_both_sides(xp, g):
    low = xp.exp(g.x * 0.5)
    return xp.exp((low + g.row) * 0.1) + xp.exp(low - low * g.column)


def much_that_passes_on(xp, g):
    a = g.x * 0.25 + 1.0
    b = xp.exp(a) * a
    c = xp.exp(b * 0.1) - g.y
    d = xp.exp(c * 0.01 - 1.0) + c
    return xp.exp(d * 0.01) * d + g.x, a


def first_and_last_made_by_no_kernel(xp, g):
    return xp.exp(xp.exp(g.x * 0.1 + 0.5) * g.row - 9.0)


def integers(xp, g):
    result = ((g.i * 3 + g.irow) & 0xFF) ^ (g.i >> 2)
    return result * result - (g.icolumn << 3), result < g.icolumn, -result | 1


def masks(xp, g):
    left = (g.m & g.mrow) | ~g.n
    return (
        left ^ g.m,
        xp.where(left, g.x, g.row),
        xp.where(g.mcolumn & left, 0.0, g.x * g.y),
    )


def comparisons(xp, g):
    near = xp.astype(g.x < g.y, g.x.dtype) * g.x + xp.astype(g.x >= 0.0, g.x.dtype)
    return near, (near == g.x) | (g.i > 1), xp.astype(g.i, g.x.dtype) * near


def wide_and_narrow(xp, g):
    wide = xp.astype(g.x, xp.float64) / g.wide - g.wide * 0.1
    return wide, xp.astype(wide * wide, xp.float32) + g.x * 0.1


def no_kernel_between_dtypes(xp, g):
    return (g.x * 0.1 + g.x) * g.other, (g.x - 1.0) * g.x + g.i0


def operands_that_go_with_rows_in_another_way(xp, g):
    low = g.x * 2.0 - g.y
    return low * g.x[:1] + g.y, (low - g.column[:1]) * g.x, low * xp.flip(g.y) + low


def what_is_written_over_is_read_in_part(xp, g):
    low = g.x * 2.0 - g.y
    return low * g.row + g.x[:1]


def one_that_takes_anothers_scratch(xp, g):
    low = g.x * 2.0 + g.y
    high = xp.exp(low)
    chosen = xp.where(high - 1.0 > 0.0, high - 3.0, low * low)
    return chosen * 2.0 - xp.exp(g.y + low)


GROUPS = [
    all_at_once,
    scalars_by_value,
    exp_in_between,
    exp_on_both_sides,
    much_that_passes_on,
    first_and_last_made_by_no_kernel,
    integers,
    masks,
    comparisons,
    wide_and_narrow,
    no_kernel_between_dtypes,
    operands_that_go_with_rows_in_another_way,
    what_is_written_over_is_read_in_part,
    one_that_takes_anothers_scratch,
]


def operands(shape, backend, seed=0):
    """Return arrays of many dtypes that broadcast to a shape: whole, row or column."""
    generator = np.random.default_rng(seed)
    row, column = shape[-1:], (*shape[:-1], 1)

    def real(shape, dtype="float32"):
        return generator.standard_normal(shape).astype(dtype)

    def count(shape):
        return generator.integers(-99, 99, shape).astype("int32")

    def mask(shape):
        return generator.random(shape) < 0.5

    result = {
        "x": real(shape),
        "y": real(shape),
        "row": real(row),
        "column": real(column),
    }
    result |= {"i": count(shape), "irow": count(row), "icolumn": count(column)}
    result |= {
        "m": mask(shape),
        "n": mask(shape),
        "mrow": mask(row),
        "mcolumn": mask(column),
    }
    result |= {
        "wide": real(shape, "float64"),
        "other": real((), "float64"),
        "i0": count(()),
    }
    result |= {"scalar": real(())}
    for name in ("x", "y"):
        result[name].reshape(-1)[:4] = (0.0, -0.0, math.inf, math.nan)[
            : result[name].size
        ]
    return backend.asarray(result)


def results_of(group, arguments):
    """A tuple of what comes of a group."""
    with np.errstate(all="ignore"):
        result = group(namespace(arguments["x"]), SimpleNamespace(**arguments))
    return result if isinstance(result, tuple) else (result,)


def views_of(group, arguments):
    """Return views: all memory belongs to the program, and nothing is a result."""
    return tuple(a[None] for a in results_of(group, arguments))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    "shape", [(7, 2), (9, 1), (3, 5), (2, 3, 2), (11,), (1, 6)], ids=str
)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_groups_give_the_same_bits(group, shape, backend, library):
    for how, donated in ((views_of, ()), (results_of, (0,))):

        def function(x, rest, how=how):
            return how(group, {**rest, "x": x})

        args = operands(shape, backend)
        program = Program(function, (args.pop("x"), args), library, donated)
        for seed in (1, 2):
            rest = operands(shape, backend, seed)
            args = rest.pop("x"), rest
            expected = function(*args)
            copies = tree_map(library.copy, args)
            assert program.fits(copies)
            with np.errstate(all="ignore"):
                result = program(copies)
            assert_same(result, expected)
            for actual, right in zip(leaves(result), leaves(expected), strict=True):
                actual, right = (np.asarray(a) for a in (actual, right))
                if actual.dtype.kind == "f":
                    signs = (
                        np.signbit(np.where(np.isnan(a), 1.0, a))
                        for a in (actual, right)
                    )
                    np.testing.assert_array_equal(*signs)
            assert_same(copies[1], rest)


@pytest.mark.usefixtures("block")
def test_arrays_that_are_not_arguments_may_be_used(backend, library):
    row, tenth = backend.asarray(
        (np.arange(2, dtype="float32"), np.asarray(0.1, "float32"))
    )
    x = backend.asarray(np.arange(14, dtype="float32").reshape(7, 2))

    def function(x):
        return (((x * tenth + 1.0) * row - x) * 0.1,)

    program, expected = Program(function, (x,), library, (0,)), function(x)
    assert program.fits((x,))
    assert_same(program((x,)), expected)


@pytest.fixture
def small(library, monkeypatch):
    """Make kernels for arrays of any size, and blocks of a few numbers."""
    if not kernels.available():
        pytest.skip("there is nothing to make kernels here")
    monkeypatch.setattr(schedule, "MIN_KERNEL_SIZE", 0)
    monkeypatch.setattr(type(library), "block_size", lambda self: 4)
    monkeypatch.setattr(kernels, "kernel", looked_at(kernels.kernel))


def made_by(program):
    """Return the number of kernels of a program and the functions that it calls."""
    names = [name for name in program.env if name[1:].isdecimal()]
    of = [
        getattr(program.env[name], "__name__", "")
        for name in names
        if name.startswith("f")
    ]
    of = [_NUMPYS.get(name, name) for name in of if name != "getitem"]
    return sum(name.startswith("k") for name in names), of


_NUMPYS = {"mul": "multiply", "cast": "astype"}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (lambda xp, g: (g.x * g.y - g.row) / g.column, (1, [])),
        (lambda xp, g: (-g.x * g.scalar, (-g.x * g.scalar + 1.0) * 2.0), (1, [])),
        (lambda xp, g: ((g.i * 3 + g.irow) & 255) ^ (g.i - g.icolumn), (1, [])),
        (lambda xp, g: ((g.m & g.mrow) | ~g.n) ^ g.mcolumn, (1, [])),
        (lambda xp, g: xp.where(g.m & g.mcolumn, g.x, g.row) * g.x, (1, [])),
        (lambda xp, g: xp.astype(g.x < g.y, g.x.dtype) * g.x + g.row, (1, [])),
        (lambda xp, g: xp.astype(g.x, xp.float64) / g.wide - g.wide * 0.1, (1, [])),
        (lambda xp, g: xp.exp(g.x * 2.0 - g.row) * g.column + g.y, (2, ["exp"])),
        (
            lambda xp, g: xp.exp(xp.exp(g.x + g.row - 2.0) * g.x),
            (1, ["exp", "multiply", "exp"]),
        ),
        (lambda xp, g: (g.x * 2.0 - g.y) * g.other, (1, ["multiply"])),
        (lambda xp, g: g.x * 2.0, (0, ["multiply"])),
        (lambda xp, g: xp.astype(g.x * 2.0 - g.y, xp.int32), (1, ["astype"])),
        (lambda xp, g: (g.i + 1 - g.irow) // 3, (1, ["floor_divide"])),
    ],
)  # fmt: skip
def test_kernels_make_what_they_can_and_the_library_the_rest(
    group, expected, backend, library
):
    arguments = operands((7, 2), backend)
    program = Program(lambda tree: views_of(group, tree), (arguments,), library, ())
    assert made_by(program) == expected


@pytest.mark.usefixtures("small")
def test_memory_between_parts_is_used_again(backend, library):
    def chain(x):
        xp = namespace(x)
        for _ in range(5):
            x = xp.tanh(x)
        return x[None]

    program = Program(chain, (operands((7, 2), backend)["x"],), library, ())
    (part,) = [
        a for name, a in program.env.items() if name[0] == "x" and name[1:].isdecimal()
    ]
    assert part.shape == (2, 2)  # four numbers


def test_a_step_is_made_by_kernels(backend, library):
    if not kernels.available():
        pytest.skip("there is nothing to make kernels here")
    model = nn.Sequential(nn.Dense(40), nn.ReLU(), nn.Dense(30))
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.Adam(), backend=backend, shape=(30,)
    )
    x, y = np.random.default_rng(0).standard_normal((2, 32, 30)).astype("float32")
    step = nn.make_step(model, nn.mean_squared_error, nn.Adam())
    carry = (trainer.params, trainer.state, trainer.moments)
    count, _ = made_by(Program(step, (carry, *backend.asarray((x, y))), library, (0,)))
    assert count >= 4  # for each of two weights Adam's step, and what comes of products


def test_small_arrays_do_not_use_kernels(backend, library):
    x = backend.asarray(np.ones((2, schedule.MIN_KERNEL_SIZE // 2), "float32"))
    for arguments, count in (
        (x, 0),
        (backend.xp.concat((x, x)), int(kernels.available())),
    ):
        program = Program(lambda x: (x * 2.0 + 1.0,), (arguments,), library, (0,))
        assert made_by(program)[0] == count


def test_views_of_memory_that_is_written_do_not_use_kernels(
    backend, library, monkeypatch
):
    monkeypatch.setattr(schedule, "MIN_KERNEL_SIZE", 0)

    def step(old, x, finite):
        # old itself, if it is not finite
        selected = ops.select(finite, lambda: old + x, old)
        return (selected * 2.0 + 1.0,)

    old, x = backend.asarray((np.ones((3, 2)), np.ones((3, 2))))
    for holds in (False, True):
        program = Program(
            step, (old, x, backend.asarray(np.asarray(holds))), library, (0,)
        )
        assert made_by(program)[0] == (0 if not holds else int(kernels.available()))
        for now in (True, False, True):
            args = (library.copy(old), x, backend.asarray(np.asarray(now)))
            assert program.fits(args)
            assert_same(program(args), (np.full((3, 2), 5.0 if now else 3.0),))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("shape", "many", "expected"),
    [
        ((10, 4), 1, [4, 4, 2]),
        ((10, 4), 20, [5, 5]),
        ((10, 4), 21, None),
        ((2, 4), 1, [1, 1]),
        ((2, 5, 2), 1, [4, 4, 2]),
        ((40,), 1, None),
    ],
    ids=str,
)
def test_threads_share_rows_if_each_has_enough(
    shape, many, expected, backend, library, monkeypatch
):
    monkeypatch.setattr(kernels, "MIN_ELEMENTS_PER_THREAD", many)
    monkeypatch.setattr(type(library), "num_threads", lambda self: 3)
    result = []

    def run_parallel(kernel, *parts):
        result.extend(parts)
        for part in parts:
            kernel(*part)

    monkeypatch.setattr(kernels, "run_parallel", run_parallel)
    args = operands(shape, backend)["x"], operands(shape[-1:], backend)["y"]
    for function in (
        lambda x, row: (x * 2.0 + row)[None],
        lambda x, row: (x * x + 1.0)[None],
    ):
        result.clear()
        program = Program(function, args, library, ())
        assert program.fits(args)
        with np.errstate(all="ignore"):
            assert_same(program(args), function(*args))
        sizes = [rows * width for rows, width, *_ in result]
        assert sizes == ([] if expected is None else [n * shape[-1] for n in expected])


def test_the_docstring_shows_the_code_of_its_example(backend, library, monkeypatch):
    if backend.name != "numpy":
        pytest.skip("the example shows the code for NumPy")

    def step(w, x, y):
        error = x @ w - y
        return w - 0.1 * (x.T @ error), (error * error).mean()

    generated = {}
    define = emit.define_function

    def define_function(name, parameters, lines, env):
        generated[name] = lines
        return define(name, parameters, lines, env)

    monkeypatch.setattr(emit, "define_function", define_function)
    w, x, y = np.zeros((3, 3)), np.ones((5, 3)), np.ones((5, 3))
    program = Program(step, (w, x, y), library, (0,))
    code = "".join(f"        {line}\n" for line in generated["run"])
    assert f"    def run():\n{code}\n" in replay_package.__doc__
    assert program.env["f3"] is np.matmul
    assert program.fits((w, x, y))
    assert program.env["e0"] is program.env["e8"] is w
    assert np.shares_memory(program.env["e4"], program.env["e9"])
