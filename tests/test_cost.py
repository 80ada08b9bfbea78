"""Costs: what is counted is what is computed, and what is predicted is what is held."""

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cases import inputs

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics.cost import CostCounter, blanks_like, peak_of
from agnostic_nn.diagnostics.cost import arrays as counting
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES, OPTIMIZERS
from agnostic_nn.diagnostics.summary import _like_input

ROOT = Path(__file__).parents[1]
HOST = nn.backend("numpy").xp


def drawn(layer, shape, rows, dtype="float32"):
    params, state, _ = layer.init(
        nn.random.key(0, xp=HOST), shape, getattr(HOST, dtype)
    )
    return (
        params,
        state,
        tree_map(np.array, _like_input(layer.input_kinds, shape, dtype, rows)),
    )


def counted(layer, shape, rows):
    """The operations of forward and of backward, dx included."""
    with CostCounter() as counter:
        params, state, x = blanks_like(drawn(layer, shape, rows))
        y, _, cache = layer.forward(params, state, x, train=True)
        forward = counter.operations.total()
        layer.backward(params, cache, blanks_like(y))
    return forward, counter.operations.total() - forward


def dense(rows, fan_in, width):
    """y = x W + b, then dy Wᵀ, xᵀ dy and Σ dy"""
    product, bias = 2 * rows * fan_in * width, rows * width
    return product + bias, 2 * product + bias


def convolution(places, window, fan_in, width):
    return dense(places, window * fan_in, width)


def lstm(batch, time, fan_in, width):
    """Of a step: x W, h R and their sums, e = exp(-|a|), σ of four gates, c, h; then slopes."""
    steps, z = batch * time, 4 * width
    products = 2 * fan_in * z + 2 * width * z
    gates = 2 * z + 3 * z + 4 * z  # z + b + h R; |a|, -|a|, exp; a ≥ 0, max, 1 + e, /
    # tanh g, its product with i, that of c with f, their sum, tanh c, o tanh c
    state = 6 * width
    # σ'; those of z, tanh' for g; tanh' of c with o
    slopes = 3 * z + 9 * width + 9 * width
    back = 8 * width + z  # sums and products of dh and dc; and the sum to db
    return (
        steps * (products + gates + state + slopes),
        steps * (2 * products + back),
    )


def attention(batch, time, width, heads):
    """Four maps, Q scaled, S = Q Kᵀ, softmax, P V; back two products of each and one of all."""
    maps = [4 * n for n in dense(batch * time, width, width)]
    x, s, rows = batch * time * width, batch * heads * time * time, batch * heads * time
    product = 2 * batch * time * time * width
    softmax = 5 * s + 2 * rows  # max, -, exp, Σ, /; whether Σ is 0
    # Q scaled for dK, dQ; three dx that add up to one; g P, Σ, -, P
    return maps[0] + x + 2 * product + softmax, maps[1] + 4 * x + 4 * product + 4 * s


def layer_norm(rows, width):
    n = rows * width
    return 7 * n + 4 * rows, 11 * n + 2 * rows


BY_HAND = [  # layer, shape, rows, operations forward and backward
    (nn.Dense(5), (4,), 10, dense(10, 4, 5)),
    (nn.Dense(5), (3, 7, 4), 2, dense(42, 4, 5)),
    (nn.Conv2D(8, 3), (12, 9, 4), 5, convolution(5 * 10 * 7, 9, 4, 8)),
    (
        nn.Conv2D(8, (3, 2), stride=2, padding=1, groups=2),
        (11, 8, 4),
        5,
        convolution(5 * 6 * 5, 6, 2, 8),
    ),
    (nn.LSTM(6), (7, 5), 3, lstm(3, 7, 5, 6)),
    (nn.MultiHeadAttention(4), (7, 12), 3, attention(3, 7, 12, 4)),
    (nn.LayerNorm(), (6, 5), 3, layer_norm(18, 5)),
    (nn.Flatten(), (6, 5), 3, (0, 0)),
    (nn.Embedding(9, 4), (6,), 3, (0, 3 * 6 * 4)),
    (nn.ReLU(), (6,), 3, (18, 36)),
]


@pytest.mark.parametrize(
    ("layer", "shape", "rows", "expected"),
    BY_HAND,
    ids=[f"{r[0]} {r[1]}" for r in BY_HAND],
)
def test_operations_are_those_counted_by_hand(layer, shape, rows, expected):
    assert counted(layer, shape, rows) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("specimen", LAYERS + LOSSES, ids=lambda one: one.name)
def test_shapes_and_dtypes_are_those_of_numpy(specimen, dtype):
    layer = specimen.layer
    params, state, _ = layer.init(
        nn.random.key(0, xp=HOST), specimen.shape, getattr(HOST, dtype)
    )
    x = inputs(specimen, np.random.default_rng(0), 3, dtype)

    def run(params, state, x, dy):
        y, after, cache = layer.forward(params, state, x, train=True)
        dx, grads = layer.backward(params, cache, dy)
        return y, after, dx, grads

    dy = tree_map(np.asarray, layer.forward(params, state, x)[0])
    report = [
        (name, tuple(a.shape), a.dtype)
        for name, a in told_by(run, params, state, x, dy)
    ]
    result = named_leaves(run(params, state, x, dy))
    assert report == [
        (name, np.shape(a), a.dtype) for name, a in result if a is not None
    ]


def told_by(run, *trees):
    with CostCounter():
        return [
            pair
            for pair in named_leaves(run(*blanks_like(trees)))
            if pair[1] is not None
        ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__)
def test_optimizers_can_be_counted(optimizer):
    params = {"weight": np.ones((4, 3), "float32"), "bias": np.ones(3, "float32")}
    moments = optimizer.init(params)
    report = told_by(optimizer.update, params, params, moments)
    result = named_leaves(optimizer.update(params, params, moments))
    assert [(n, a.shape, a.dtype) for n, a in report] == [
        (n, a.shape, a.dtype) for n, a in result
    ]


def shifted(a):
    """A sum whose operands are still referenced, so nothing can be overwritten."""
    known = a * 2.0
    result = known + a
    return result + known


EXPRESSIONS = {  # of a, a million numbers
    "a result that nobody knows is written over": lambda a: a * a + a * a,
    "also from the right, if it makes no difference": lambda a: a + 2.0 * a,
    "but not if it does": lambda a: a - 2.0 * a,
    "nor if it is known": shifted,
    "nor by a result of another dtype": lambda a: (a * 2.0) < (a + 1.0),
    "a sum goes alone": lambda a: -(a + 1.0) * 2.0 / a,
    "a scalar from the left": lambda a: 1.0 - (1.0 - a) * 3.0,
    "a view takes nothing": lambda a: a.T[::2, :3],
    "a product takes its result": lambda a: a.T @ a[:, :7],
    "what is laid out anew is a copy": lambda a: namespace(a).reshape(a.T, (-1,)),
    "what is laid out like its argument is not": lambda a: namespace(a).reshape(
        (a.T * 2.0).T, (-1,)
    ),
    "in place takes nothing": lambda a: a.__iadd__(1.0),
    "what is let go is there for others": lambda a: [len(a * 2.0), len(a * 3.0)],
}


def held_by_numpy(function, *args):
    """Return the peak of memory besides the arguments; a first call imports modules."""
    function(*args)
    tracemalloc.start()
    try:
        function(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("told", ["by references", "by names"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_memory_is_that_of_numpy(name, told, monkeypatch):
    if told == "by names":  # as where the interpreter counts no references for them
        monkeypatch.setattr(counting, "_TEMPORARY", counting._NAMED)
    expression, a = EXPRESSIONS[name], np.ones((1000, 1000), "float32")
    result = held_by_numpy(expression, a)
    assert peak_of(expression, a) - a.nbytes == pytest.approx(result, abs=2e4)


LARGE = [  # layer, shape; each of megabytes, so that nothing else counts
    (nn.ReLU(), (64, 1024)),
    (nn.GELU(), (64, 1024)),
    (nn.LayerNorm(), (64, 1024)),
    (nn.Softmax(), (64, 1024)),
    (nn.BatchNorm(), (16, 16, 64)),
    (nn.Conv2D(64, 3, padding="same"), (16, 16, 32)),
    (nn.Conv2D(64, 3, stride=2), (31, 31, 32)),
    (nn.Conv1D(64, 5, groups=4, padding=2), (512, 32)),
    (nn.MaxPool2D(2), (32, 32, 32)),
    (nn.MultiHeadAttention(4), (256, 64)),
    (nn.LSTM(64), (64, 64)),
    (nn.GRU(64), (64, 64)),
    (nn.Dropout(), (64, 1024)),
]


@pytest.mark.parametrize(("layer", "shape"), LARGE, ids=[str(row[0]) for row in LARGE])
def test_a_layer_holds_what_is_predicted(layer, shape):
    params, state, x = drawn(layer, shape, 16)
    dy = layer.forward(params, state, x)[0] + 0.0

    def run(params, state, x, dy):
        y, _, *cache = layer.forward(params, state, x, train=True)
        del y
        layer.backward(params, cache.pop(), dy)

    arguments = params, state, x, dy
    held = sum(leaf.nbytes for leaf in leaves(arguments))
    assert peak_of(run, *arguments) - held == pytest.approx(
        held_by_numpy(run, *arguments), rel=0.1
    )


def test_what_is_given_back_is_no_longer_alive():
    with CostCounter() as counter:
        a = blanks_like(np.ones((10, 10), "float32"))
        assert (counter.alive, counter.peak) == (400, 400)
        b = a + 1.0
        view = b[2:, :]
        del b
        assert counter.alive == 800
        del view
        assert (counter.alive, counter.peak) == (400, 800)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a: bool(a[0, 0] > 0), "there is no value to ask for"),
        (lambda a: np.asarray(a), "there is no value to ask for"),
        (lambda a: a[a[:, 0] > 0], "got an array as an index"),
        (lambda a: namespace(a).searchsorted(a, a), "what searchsorted costs"),
    ],
)
def test_what_depends_on_values_is_refused(function, message):
    with pytest.raises(TypeError, match=message):
        peak_of(function, np.ones((3, 3)))


def test_matrices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=re.escape("got (3, 4) and (3, 4)")):
        peak_of(lambda a: a @ a, np.ones((3, 4)))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint32", "float32"])
def test_sums_are_as_wide_as_those_of_numpy(dtype):
    with CostCounter():
        (a,) = blanks_like((np.ones(3, dtype),))
        assert namespace(a).sum(a).dtype == HOST.sum(np.ones(3, dtype)).dtype


def test_functions_of_numpy_itself_are_counted_too():
    with CostCounter() as counter:
        a = blanks_like(np.ones((3, 4), "float32"))
        made = np.exp(np.ones(4, "float32") * a)
        assert (made.shape, made.dtype) == ((3, 4), np.float32)
    assert counter.operations.total() == 24


@pytest.fixture(scope="module")
def table():
    """Model: megabytes predicted and measured."""
    command = [sys.executable, "-m", "benchmarks.memory"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = re.findall(
        r"^ +(\S.*?) +([\d.]+) +([\d.]+) +[-+][\d.]+$", done.stdout, re.MULTILINE
    )
    return {name: (float(report), float(result)) for name, report, result in lines}


def test_a_step_of_training_holds_what_was_predicted(table):
    assert sorted(table) == ["CNN", "LSTM", "MLP", "transformer", "wide layer"]
    for name, (report, result) in table.items():
        assert report == pytest.approx(result, rel=0.1), name


def test_targets_are_class_numbers_or_like_y():
    seen = []

    def loss(y, target):
        seen.append((target.shape, str(target.dtype)))
        if target.shape != y.shape:
            raise ValueError("these are no class numbers")
        return nn.mean_squared_error(y, target)

    trainer = nn.Trainer(
        nn.Dense(2), loss, nn.SGD(0.1), backend="numpy", shape=(5, 3), metrics={}
    )
    assert trainer.summary(7).bytes_of_training > 7 * 5 * 3 * 4
    assert seen == [((7, 5), "int32"), ((7, 5, 2), "float32")]


def test_a_loss_of_an_unknown_kind_is_not_predicted():
    class Odd:
        def __call__(self, y, target):
            raise RuntimeError("no target will do")

    trainer = nn.Trainer(
        nn.Dense(2), Odd(), nn.SGD(0.1), backend="numpy", shape=(3,), metrics={}
    )
    summary = trainer.summary()
    assert summary.bytes_of_training is None
    assert "peak memory" not in str(summary)
