"""A replayed function does what the function does, to the last bit, and no more."""

import math
from importlib import import_module
from threading import Thread

import numpy as np
import pytest
from cases import arrays_for, layer_cases, run

import agnostic_nn as nn
from agnostic_nn import special
from agnostic_nn.arrays import namespace
from agnostic_nn.trees import leaves, tree_map
from agnostic_nn_backends import plan
from agnostic_nn_backends.replay import Program, replayed

CASES = [case for case in layer_cases() if not case.thorough]


@pytest.fixture
def library(backend):
    """What is known of the backend's library, where functions are replayed."""
    if backend.name not in ("numpy", "torch") or "cpu" not in str(backend):
        pytest.skip(f"{backend} has its own way to run a function again")
    return import_module(f"agnostic_nn_backends.{backend.name}_calls").library


@pytest.fixture(params=["a few numbers", "as many as there are"])
def block(request, library, monkeypatch):
    """How much is gone through at a time: also so little that even small arrays are in parts."""
    if request.param == "a few numbers":
        monkeypatch.setattr(type(library), "block", lambda self: 4)
        monkeypatch.setattr(plan, "LEAST", 0)


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
        found = np.array(backend.to_numpy(a))
        if found.dtype.kind == "f":
            found.reshape(-1)[:3] = (math.nan, math.inf, -math.inf)[: found.size]
        return backend.asarray(found)

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
        for given in (*shuffled, {**shuffled[0], "x": spoiled(shuffled[0]["x"], backend)}):
            assert program.fits((given,))
            with np.errstate(all="ignore"):
                assert_same(program((given,)), everything(given))


OPTIMIZERS = [
    nn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    *(kind() for kind in (nn.Adam, nn.AdamW, nn.NAdam, nn.RAdam, nn.LAMB, nn.Lion, nn.Adagrad)),
    *(kind() for kind in (nn.RMSprop, nn.Adadelta, nn.Adafactor, nn.Muon, nn.Adamax)),
    nn.Scaled(nn.Average(nn.ClipByGlobalNorm(nn.Adam(nn.schedules.Cosine(0.1, 9))))),
    nn.Accumulate(nn.Adam(amsgrad=True), 2),
]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: repr(one)[:40])
def test_steps_that_take_the_memory_of_the_old_give_the_same_bits(optimizer, backend, library):
    model = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.GELU(), nn.Dropout(0.3), nn.Dense(3))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((7, 5, 4)).astype("float32")
    labels = generator.integers(0, 3, (7, 5)).astype("int32")
    x, labels = backend.asarray((x, labels))
    trainer = nn.Trainer(model, nn.softmax_cross_entropy, optimizer, backend=backend, shape=(5, 4))
    step = nn.make_step(model, nn.softmax_cross_entropy, optimizer)
    calls = []
    fast = replayed(lambda *given: calls.append(1) or step(*given), library, (0,))
    carry = (trainer.params, trainer.state, trainer.moments)
    ours = tree_map(library.copied, carry)
    for _ in range(6):
        carry, value, finite = step(carry, x, labels)
        ours, *told = fast(ours, x, labels)
        assert_same((carry, value, finite), (ours, *told))
    assert len(calls) == 3  # as it is, for the tape, and for the trial: then never again


def test_calls_with_numbers_that_only_look_alike_are_told_apart(backend, library):
    def function(whole, real):
        return whole * 1, whole * 1.0, real * 0.0, real * -0.0

    args = backend.asarray((np.arange(1, 4, dtype="int32"), np.ones(3, "float32")))
    program = Program(function, args, library, ())
    assert program.fits(args)
    found, expected = program(args), function(*args)
    assert_same(found, expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(*(np.signbit(backend.to_numpy(a)) for a in (one, other)))


def test_a_function_that_asks_for_values_is_called_as_it_is(backend, replay):
    def positive(x):
        return x if x[0] > 0 else -x

    for number in (1.0, -1.0):
        fast, x = replay(positive), backend.asarray([number])
        for given in (x, x, -x, x, -x):
            assert_same(fast(given), abs(given))


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
    fast, x = replay(lambda x: x + float(generator.standard_normal())), backend.asarray([0.0])
    assert len({float(fast(x)[0]) for _ in range(6)}) == 6


def test_results_are_not_overwritten_by_the_next_call(backend, replay):
    def function(x):
        xp = namespace(x)
        return xp.exp(x) + 1.0, xp.exp(x).T, x[0]

    fast = replay(function)
    given = [backend.asarray(np.random.default_rng(i).standard_normal((3, 2))) for i in range(5)]
    found = [fast(x) for x in given]
    for x, one in zip(given, found, strict=True):
        assert_same(one, function(x))


def test_arguments_that_are_not_given_up_are_left_alone(backend, replay):
    x, kept, old = backend.asarray((np.arange(6.0), np.arange(6.0), np.zeros(6)))
    fast = replay(lambda old, x: (old + x, x * 2.0), (0,))
    for _ in range(4):
        old, _ = fast(old, x)
    assert_same((old, x), (4 * kept, kept))


def test_what_is_given_up_holds_what_became_of_it(backend, replay):
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


def test_one_array_given_up_twice_is_no_memory_for_two(backend, replay):
    fast = replay(lambda pair: ((pair[0] + 1.0, pair[1] * 2.0),), (0,))
    for _ in range(4):
        one = backend.asarray(np.ones(3))
        assert_same(fast((one, one))[0], (np.full(3, 2.0), np.full(3, 2.0)))


def test_a_read_only_array_is_no_memory_to_take(backend, replay):
    if backend.name != "numpy":
        pytest.skip("only NumPy has arrays that are read only")
    fast = replay(lambda old: (old + 1.0,), (0,))
    for _ in range(4):
        old = np.ones(3)
        old.flags.writeable = False
        assert_same(fast(old), (np.full(3, 2.0),))
        assert old[0] == 1.0


def test_what_autograd_looks_at_is_left_to_it(backend, replay):
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
            assert_same(torch.autograd.grad(new.sum(), old), (np.full(3, 3.0, "float32"),))
            assert_same(old.detach(), np.ones(3, "float32"))
    with torch.inference_mode():
        old = torch.ones(3)
    assert_same(fast(old), (np.full(3, 3.0, "float32"),))
    assert_same(torch.func.vjp(fast, torch.ones(3))[1]((torch.ones(3),)), (np.full(3, 3.0, "f4"),))


def test_a_step_that_is_not_taken_changes_nothing(backend, replay):
    def step(carry, x):
        finite = special.all_finite(x)
        return special.select(finite, lambda: tree_map(lambda c: c + x, carry), carry), finite

    fast = replay(step, (0,))
    carry = backend.asarray((np.zeros(3), {"b": np.ones(3)}))
    for x in (1.0, 1.0, 1.0, np.nan, 1.0, np.inf, 1.0):
        carry, finite = fast(carry, backend.asarray(np.full(3, x)))
        assert bool(finite) == np.isfinite(x)
    assert_same(carry, (np.full(3, 5.0), {"b": np.full(3, 6.0)}))


def test_other_layouts_and_shapes_and_values_of_arguments_are_told_apart(backend, replay):
    fast = replay(lambda x, double: x.T * (2.0 if double else 1.0))
    x = backend.asarray(np.arange(12.0).reshape(3, 4))
    turned = x[:, ::-1] if backend.name == "numpy" else x[:, ::2]
    for given in (x, x.T, x[::2], turned, backend.xp.astype(x, backend.xp.float32), x[:0]):
        for double in (True, False):
            for _ in range(3):
                assert_same(fast(given, double), given.T * (2.0 if double else 1.0))


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
    given = [backend.asarray(np.random.default_rng(i).standard_normal(50_000)) for i in range(4)]
    wrong = []

    def work(x):
        for _ in range(20):
            if not np.array_equal(fast(x), function(x)):
                wrong.append(x)

    threads = [Thread(target=work, args=(x,)) for x in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_trainer_shows_is_left_alone_by_later_steps(backend, library):
    model = nn.Sequential(nn.Dense(3), nn.BatchNorm())
    trainer = nn.Trainer(model, nn.mean_squared_error, nn.Adam(0.1), backend=backend, shape=(2,))
    x, target = np.random.default_rng(0).standard_normal((2, 8, 3)).astype("float32")
    for _ in range(5):
        trainer.step(x[:, :2], target)
        shown = (trainer.params, trainer.state, trainer.moments)
        kept = tree_map(library.copied, shown)
        trainer.step(x[:, :2], target)
        assert_same(shown, kept)


def test_replay_can_be_turned_off(monkeypatch, backend, replay):
    monkeypatch.setenv("AGNOSTIC_NN_REPLAY", "0")
    calls = []
    fast = replay(lambda old: (calls.append(1), old + 1.0)[1:], (0,))
    old = backend.asarray(np.zeros(3))
    for _ in range(5):
        assert_same(fast(old), (np.ones(3),))
    assert len(calls) == 5
