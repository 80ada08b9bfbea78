"""A replayed function does what the function does, to the last bit, and no more."""

from threading import Thread

import numpy as np
import pytest
from cases import arrays_for, layer_cases, run

import agnostic_nn as nn
from agnostic_nn import special
from agnostic_nn.trees import leaves, tree_map
from agnostic_nn_backends import plan
from agnostic_nn_backends.replay import Program, replayed

CASES = [case for case in layer_cases() if not case.thorough]


@pytest.fixture(autouse=True)
def _only_numpy_replays(backend):
    if backend.name != "numpy":
        pytest.skip(f"{backend.name} has its own way to run a function again")


def assert_same(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def program_of(function, *args, donated=()):
    program = Program(function, args, donated)
    assert program.fits(args)
    return program


def others(arrays, seed):
    """Other numbers of the same kind."""
    generator = np.random.default_rng(seed)
    return tree_map(lambda a: generator.permuted(a) if a.ndim else a, arrays)


@pytest.mark.parametrize("block", [4, plan.BLOCK])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_can_be_replayed_and_gives_the_same_bits(case, block, monkeypatch):
    """Also where even these small arrays are gone through block by block."""
    monkeypatch.setattr(plan, "BLOCK", block)
    arrays = arrays_for(case)
    for train in (True, False):

        def everything(arrays, train=train):
            return run(case.layer, arrays, train=train)

        program = program_of(everything, arrays)
        for seed in (0, 1):
            given = others(arrays, seed)
            assert program.fits((given,))
            assert_same(program((given,)), everything(given))


OPTIMIZERS = [
    nn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    *(kind() for kind in (nn.Adam, nn.AdamW, nn.NAdam, nn.RAdam, nn.LAMB, nn.Lion, nn.Adagrad)),
    *(kind() for kind in (nn.RMSprop, nn.Adadelta, nn.Adafactor, nn.Muon, nn.Adamax)),
    nn.Scaled(nn.Average(nn.ClipByGlobalNorm(nn.Adam(nn.schedules.Cosine(0.1, 9))))),
    nn.Accumulate(nn.Adam(amsgrad=True), 2),
]


@pytest.mark.parametrize("block", [4, plan.BLOCK])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: repr(one)[:40])
def test_steps_that_take_the_memory_of_the_old_give_the_same_bits(optimizer, block, monkeypatch):
    monkeypatch.setattr(plan, "BLOCK", block)
    model = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.GELU(), nn.Dropout(0.3), nn.Dense(3))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((7, 5, 4)).astype("float32")
    labels = generator.integers(0, 3, (7, 5)).astype("int32")
    trainer = nn.Trainer(model, nn.softmax_cross_entropy, optimizer, shape=(5, 4))
    step = nn.make_step(model, nn.softmax_cross_entropy, optimizer)
    fast = replayed(step, donated=(0,))
    carry = (trainer.params, trainer.state, trainer.moments)
    ours = tree_map(np.array, carry)
    for _ in range(6):
        carry, value, finite = step(carry, x, labels)
        ours, *told = fast(ours, x, labels)
        assert_same((carry, value, finite), (ours, *told))


def three(function, *args):
    """What comes of three calls: as it is, written down, and replayed."""
    fast = replayed(function)
    return [fast(*args) for _ in range(3)]


def test_a_function_that_asks_for_values_is_called_as_it_is():
    def positive(x):
        return x if x[0] > 0 else -x

    for x in (np.asarray([1.0]), np.asarray([-1.0])):
        fast = replayed(positive)
        for given in (x, x, -x, x, -x):
            assert_same(fast(given), np.abs(given))


@pytest.mark.parametrize(
    "function",
    [lambda x: x[x > 0] * 2.0, lambda x: np.unique(x) + 1.0, lambda x: np.flatnonzero(x > 0) * 3],
)
def test_a_result_may_be_as_long_as_values_say(function):
    fast = replayed(function)
    for x in ([1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [-1.0, -1.0, 3.0], [1.0, 2.0, 3.0]):
        assert_same(fast(np.asarray(x)), function(np.asarray(x)))


def test_a_function_that_is_not_pure_is_called_as_it_is():
    generator = np.random.default_rng(0)
    drawn = three(lambda x: x + generator.standard_normal(3), np.zeros(3))
    assert len({float(found[0]) for found in drawn}) == 3


def test_results_are_not_overwritten_by_the_next_call():
    fast = replayed(lambda x: (np.exp(x) + 1.0, np.exp(x).T, x[0]))
    given = [np.random.default_rng(i).standard_normal((3, 2)) for i in range(5)]
    found = [fast(x) for x in given]
    for x, (y, turned, first) in zip(given, found, strict=True):
        assert_same((y, turned, first), (np.exp(x) + 1.0, np.exp(x).T, x[0]))


def test_arguments_that_are_not_given_up_are_left_alone():
    x, kept = np.arange(6.0), np.arange(6.0)
    fast = replayed(lambda old, x: (old + x, x * 2.0), donated=(0,))
    old = np.zeros(6)
    for _ in range(4):
        old, _ = fast(old, x)
    assert_same((old, x), (4 * kept, kept))


def test_what_is_given_up_holds_what_became_of_it():
    fast = replayed(lambda carry, x: ({"a": carry["a"] * 2.0 + x}, x), donated=(0,))
    carry, x = {"a": np.ones(5)}, np.ones(5)
    for _ in range(3):
        carry, _ = fast(carry, x)
    memory = carry["a"]
    carry, _ = fast(carry, x)
    assert carry["a"] is memory
    assert_same(memory, np.full(5, 2.0**5 - 1))


def test_arrays_that_change_places_are_not_lost():
    fast = replayed(lambda pair: ((pair[1], pair[0] + 1.0),), donated=(0,))
    pair = (np.zeros(3), np.full(3, 10.0))
    for turn in range(1, 7):
        (pair,) = fast(pair)
        low, high = (turn + 1) // 2, 10.0 + turn // 2
        first, second = (high, low) if turn % 2 else (low, high)
        assert_same(pair, (np.full(3, float(first)), np.full(3, float(second))))


def test_one_array_given_up_twice_is_no_memory_for_two():
    fast = replayed(lambda pair: ((pair[0] + 1.0, pair[1] * 2.0),), donated=(0,))
    for _ in range(4):
        one = np.ones(3)
        assert_same(fast((one, one))[0], (np.full(3, 2.0), np.full(3, 2.0)))


def test_a_read_only_array_is_no_memory_to_take():
    fast = replayed(lambda old: (old + 1.0,), donated=(0,))
    for _ in range(4):
        old = np.ones(3)
        old.flags.writeable = False
        assert_same(fast(old), (np.full(3, 2.0),))
        assert old[0] == 1.0


def test_a_step_that_is_not_taken_changes_nothing():
    def step(carry, x):
        finite = special.all_finite(x)
        return special.select(finite, lambda: tree_map(lambda c: c + x, carry), carry), finite

    fast = replayed(step, donated=(0,))
    carry = (np.zeros(3), {"b": np.ones(3)})
    for x in (1.0, 1.0, 1.0, np.nan, 1.0, np.inf, 1.0):
        carry, finite = fast(carry, np.full(3, x))
        assert bool(finite) == np.isfinite(x)
    assert_same(carry, (np.full(3, 5.0), {"b": np.full(3, 6.0)}))


def test_other_layouts_and_shapes_and_values_of_arguments_are_told_apart():
    fast = replayed(lambda x, double: x.T * (2.0 if double else 1.0))
    x = np.arange(12.0).reshape(3, 4)
    for given in (x, x.T, x[::2], x[:, ::-1], x.astype("float32"), x[:0]):
        for double in (True, False):
            for _ in range(3):
                assert_same(fast(given, double), given.T * (2.0 if double else 1.0))


def test_another_array_in_the_same_place_of_a_tree_is_seen():
    fast = replayed(lambda params, x: x @ params["weight"])
    params, x = {"weight": np.eye(2)}, np.ones((1, 2))
    for factor in (1.0, 1.0, 1.0, 2.0, 3.0):
        params["weight"] = factor * np.eye(2)
        assert_same(fast(params, x), np.full((1, 2), factor))


def test_threads_do_not_meet_in_one_program():
    fast = replayed(lambda x: np.sqrt(np.exp(x) + 1.0) * x)
    given = [np.random.default_rng(i).standard_normal(50_000) for i in range(4)]
    wrong = []

    def work(x):
        for _ in range(20):
            if not np.array_equal(fast(x), np.sqrt(np.exp(x) + 1.0) * x):
                wrong.append(x)

    threads = [Thread(target=work, args=(x,)) for x in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_trainer_shows_is_left_alone_by_later_steps(backend):
    model = nn.Sequential(nn.Dense(3), nn.BatchNorm())
    trainer = nn.Trainer(model, nn.mean_squared_error, nn.Adam(0.1), backend=backend, shape=(2,))
    x, target = np.random.default_rng(0).standard_normal((2, 8, 3)).astype("float32")
    for _ in range(5):
        trainer.step(x[:, :2], target)
        shown = (trainer.params, trainer.state, trainer.moments)
        kept = tree_map(np.array, shown)
        trainer.step(x[:, :2], target)
        assert_same(shown, kept)


def test_replay_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("AGNOSTIC_NN_REPLAY", "0")
    calls = []
    fast = replayed(lambda old: (calls.append(1), old + 1.0)[1:], donated=(0,))
    old = np.zeros(3)
    for _ in range(5):
        assert_same(fast(old), (np.ones(3),))
    assert len(calls) == 5
