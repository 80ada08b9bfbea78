"""Counted operations are those computed; predicted bytes are those allocated."""

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
    key = nn.random.key(0, xp=HOST)
    params, state, _ = layer.init(key, shape, getattr(HOST, dtype))
    x = _like_input(layer.input_kinds, shape, dtype, rows)
    return params, state, tree_map(np.array, x)


def counted(layer, shape, rows):
    """Return the operations of forward and of backward, dx included."""
    with CostCounter() as counter:
        params, state, x = blanks_like(drawn(layer, shape, rows))
        y, _, cache = layer.forward(params, state, x, train=True)
        forward = counter.operations.total()
        layer.backward(params, cache, blanks_like(y))
    return forward, counter.operations.total() - forward


def dense(rows, fan_in, width):
    """Return the operations of y = x W + b, and of dy Wᵀ, xᵀ dy and Σ dy."""
    product, bias = 2 * rows * fan_in * width, rows * width
    return product + bias, 2 * product + bias


def convolution(places, window, fan_in, width):
    return dense(places, window * fan_in, width)


def lstm(batch, time, fan_in, width):
    """Return those of each step: x W, h R, the sums, the gates, c, h, and the slopes.

    A gate is σ(a), computed from e = exp(-|a|).
    """
    steps, z = batch * time, 4 * width
    products = 2 * fan_in * z + 2 * width * z
    gates = 2 * z + 3 * z + 4 * z  # z + b + h R; |a|, -|a|, exp; a ≥ 0, max, 1 + e, /
    # tanh g, its product with i, that of c with f, their sum, tanh c, o tanh c
    state = 6 * width
    # σ'; those of z, tanh' for g; tanh' of c with o
    slopes = 3 * z + 9 * width + 9 * width
    back = 8 * width + z  # sums and products of dh and dc; and the sum to db
    forward = products + gates + state + slopes
    return steps * forward, steps * (2 * products + back)


def attention(batch, time, width, heads):
    """Return those of four maps, Q scaled, S = Q Kᵀ, P = softmax S and P V.

    The backward pass has two products for each of these.
    """
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
@pytest.mark.parametrize("example", LAYERS + LOSSES, ids=lambda example: example.name)
def test_shapes_and_dtypes_are_those_of_numpy(example, dtype):
    layer = example.layer
    key = nn.random.key(0, xp=HOST)
    params, state, _ = layer.init(key, example.shape, getattr(HOST, dtype))
    x = inputs(example, np.random.default_rng(0), 3, dtype)

    def run(params, state, x, dy):
        y, after, cache = layer.forward(params, state, x, train=True)
        dx, grads = layer.backward(params, cache, dy)
        return y, after, dx, grads

    dy = tree_map(np.asarray, layer.forward(params, state, x)[0])
    expected = named_leaves(run(params, state, x, dy))
    assert shapes_of(counted_leaves(run, params, state, x, dy)) == shapes_of(expected)


def counted_leaves(function, *trees):
    """Return the named leaves of function(*trees), called on arrays without values."""
    with CostCounter():
        return list(named_leaves(function(*blanks_like(trees))))


def shapes_of(named):
    """Return the names, shapes and dtypes of the leaves that are arrays."""
    return [(name, np.shape(a), a.dtype) for name, a in named if a is not None]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda rule: type(rule).__name__)
def test_optimizers_can_be_counted(optimizer):
    params = {"weight": np.ones((4, 3), "float32"), "bias": np.ones(3, "float32")}
    arguments = params, params, optimizer.init(params)
    expected = named_leaves(optimizer.update(*arguments))
    counted = counted_leaves(optimizer.update, *arguments)
    assert shapes_of(counted) == shapes_of(expected)


def shifted(a):
    """A sum whose operands are still referenced, so nothing can be overwritten."""
    known = a * 2.0
    result = known + a
    return result + known


def reshaped(a):
    return namespace(a).reshape(a, (-1,))


EXPRESSIONS = {  # of a, a million numbers
    "a temporary result is overwritten": lambda a: a * a + a * a,
    "also on the right, if the operation commutes": lambda a: a + 2.0 * a,
    "but not if it does not": lambda a: a - 2.0 * a,
    "nor if it has a name": shifted,
    "nor by a result of another dtype": lambda a: (a * 2.0) < (a + 1.0),
    "a chain of temporaries": lambda a: -(a + 1.0) * 2.0 / a,
    "a scalar from the left": lambda a: 1.0 - (1.0 - a) * 3.0,
    "a view takes nothing": lambda a: a.T[::2, :3],
    "a product takes its result": lambda a: a.T @ a[:, :7],
    "reshaping is a copy if strides do not allow a view": lambda a: reshaped(a.T),
    "and a view if they do": lambda a: reshaped((a.T * 2.0).T),
    "in place takes nothing": lambda a: a.__iadd__(1.0),
    "freed memory is available again": lambda a: [len(a * 2.0), len(a * 3.0)],
}


def peak_of_numpy(function, *args):
    """Return the peak memory without the arguments; a first call imports modules."""
    function(*args)
    tracemalloc.start()
    try:
        function(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("way", ["by references", "by names"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_memory_is_that_of_numpy(name, way, monkeypatch):
    if way == "by names":  # for interpreters that do not count those references
        monkeypatch.setattr(counting, "_TEMPORARY", counting._NAMED)
    expression, a = EXPRESSIONS[name], np.ones((1000, 1000), "float32")
    result = peak_of_numpy(expression, a)
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
def test_a_layer_takes_the_predicted_memory(layer, shape):
    params, state, x = drawn(layer, shape, 16)
    dy = layer.forward(params, state, x)[0] + 0.0

    def run(params, state, x, dy):
        y, _, *cache = layer.forward(params, state, x, train=True)
        del y
        layer.backward(params, cache.pop(), dy)

    arguments = params, state, x, dy
    predicted = peak_of(run, *arguments)
    predicted -= sum(leaf.nbytes for leaf in leaves(arguments))
    assert predicted == pytest.approx(peak_of_numpy(run, *arguments), rel=0.1)


def test_freed_arrays_are_no_longer_alive():
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
def test_a_function_that_depends_on_values_is_refused(function, message):
    with pytest.raises(TypeError, match=message):
        peak_of(function, np.ones((3, 3)))


def test_matrices_of_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=re.escape("got (3, 4) and (3, 4)")):
        peak_of(lambda a: a @ a, np.ones((3, 4)))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint32", "float32"])
def test_sums_are_as_wide_as_those_of_numpy(dtype):
    with CostCounter():
        (a,) = blanks_like((np.ones(3, dtype),))
        assert namespace(a).sum(a).dtype == HOST.sum(np.ones(3, dtype)).dtype


OPTIONS = {
    "argsort": lambda xp, a: xp.argsort(a, axis=0, descending=True),
    "cumulative_sum": lambda xp, a: xp.cumulative_sum(a, axis=1, dtype=xp.float64),
    "max": lambda xp, a: xp.max(a, axis=(0, -1), keepdims=True),
    "roll": lambda xp, a: xp.roll(a, 2, axis=1),
    "tril": lambda xp, a: xp.tril(a, k=1),
    "zeros_like": lambda xp, a: xp.zeros_like(a, dtype=xp.int32),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_functions_with_options_have_the_shapes_and_dtypes_of_numpy(name):
    def function(a):
        return OPTIONS[name](namespace(a), a)

    a = np.ones((3, 4), "float32")
    counted = counted_leaves(function, a)
    assert shapes_of(counted) == shapes_of(named_leaves(function(a)))


def test_functions_of_numpy_itself_are_counted_too():
    with CostCounter() as counter:
        a = blanks_like(np.ones((3, 4), "float32"))
        result = np.exp(np.ones(4, "float32") * a)
        assert (result.shape, result.dtype) == ((3, 4), np.float32)
    assert counter.operations.total() == 24


@pytest.fixture(scope="module")
def table():
    """Return by model the megabytes predicted and measured."""
    command = [sys.executable, "-m", "benchmarks.memory"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = r"^ +(\S.*?) +([\d.]+) +([\d.]+) +[-+][\d.]+$"
    rows = re.findall(row, done.stdout, re.MULTILINE)
    return {name: (float(before), float(after)) for name, before, after in rows}


def test_a_training_step_takes_the_predicted_memory(table):
    assert sorted(table) == ["CNN", "LSTM", "MLP", "transformer", "wide layer"]
    for name, (predicted, measured) in table.items():
        assert predicted == pytest.approx(measured, rel=0.1), name


def test_targets_are_class_numbers_or_like_y():
    targets = []

    def loss(y, target):
        targets.append((target.shape, str(target.dtype)))
        if target.shape != y.shape:
            raise ValueError("these are not class numbers")
        return nn.mean_squared_error(y, target)

    trainer = nn.Trainer(
        nn.Dense(2), loss, nn.SGD(0.1), backend="numpy", shape=(5, 3), metrics={}
    )
    assert trainer.summary(7).bytes_of_training > 7 * 5 * 3 * 4
    assert targets == [((7, 5), "int32"), ((7, 5, 2), "float32")]


def test_without_a_target_that_the_loss_accepts_nothing_is_predicted():
    class Odd:
        def __call__(self, y, target):
            raise RuntimeError("no target is accepted")

    trainer = nn.Trainer(
        nn.Dense(2), Odd(), nn.SGD(0.1), backend="numpy", shape=(3,), metrics={}
    )
    summary = trainer.summary()
    assert summary.bytes_of_training is None
    assert "peak memory" not in str(summary)
