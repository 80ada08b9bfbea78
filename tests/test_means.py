"""Means over batches: sums and what they are divided by are added up, and divided once.

The loss of several batches is the loss of one
batch of all their examples, whatever counts.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from cases import inputs, loss_cases

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import leaves, shape_map, tree_map
from agnostic_nn.diagnostics.compare.controls import _return_gradients, _update
from agnostic_nn.losses.base import batch_loss
from agnostic_nn.training import Trainer
from agnostic_nn.training.mean_loss import MeanLoss

# where each case is compiled these are enough; `nox -s sweep` runs all
FEW = ("ignore_index=-100, label_smoothing",)
ROWS = 7
# one batch that is ignored as a whole when two are taken at a time, and others unequal
WEIGHTS = np.asarray([0.5, 2.0, 0.0, 0.0, 1.0, 3.0, 0.25])


@dataclass(frozen=True)
class Shift(nn.Layer):
    """y = x + b, for x of any nesting: a loss as it is, and its slopes as gradients."""

    def init(self, key, shape, dtype):
        xp = namespace(key)
        bias = shape_map(lambda leaf: xp.zeros(leaf, dtype=dtype), shape)
        return {"b": bias}, {}, shape

    def forward(self, params, state, x, *, train=False):
        return tree_map(lambda leaf, b: leaf + b, x, params["b"]), state, ()

    def backward(self, params, cache, dy):
        return dy, {
            "b": tree_map(lambda slope: namespace(slope).sum(slope, axis=0), dy)
        }


def trainer(backend, loss, optimizer, dtype, **options):
    return Trainer(
        Shift(), loss, optimizer, backend=backend, dtype=dtype, metrics={}, **options
    )


def wide(tree):
    return tree_map(
        lambda leaf: leaf.astype(float) if leaf.dtype.kind == "f" else leaf, tree
    )


def close(actual, expected, epsilon, what=""):
    for leaf, right in zip(leaves(actual), leaves(expected), strict=True):
        atol = 64 * epsilon * max(1.0, np.max(np.abs(right), initial=0.0))
        np.testing.assert_allclose(leaf, right, rtol=0, atol=atol, err_msg=str(what))


def drawn(case, dtype, seed=0):
    """x and target of 7 examples; of labels that may be ignored, unequally many are."""
    data = inputs(case, np.random.default_rng(seed), ROWS, dtype)
    x, target = data["y"], data["target"]
    ignored = dict(case.layer.options).get("ignore_index")
    if ignored is not None:
        target[2:4] = ignored
        target[0, 1:] = ignored
    return x, target


def learned(backend, loss, dtype, shape, data, weights, batch_size, optimizer=None):
    """Return the loss of an epoch, and the parameters after a step on all examples."""
    if optimizer is None:
        optimizer = nn.Average(
            nn.Accumulate(nn.SGD(0.125), math.ceil(ROWS / batch_size))
        )
    training = trainer(backend, loss, optimizer, dtype, shape=shape)
    options = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    history = training.fit(*data, weights=weights, **options)
    return history["loss"][0], backend.to_numpy(training.params)


# the loss of an example that depends on its batch depends on the batch size
SEPARATE = [case for case in loss_cases() if not case.layer.is_joint]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", SEPARATE, ids=str)
def test_a_loss_and_a_step_are_the_same_in_batches_of_any_size(
    backend, widest, epsilon, thorough, case, reduction
):
    few = reduction == "mean" and any(name in str(case.layer) for name in FEW)
    if not few and not thorough:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    loss = partial(case.layer.loss, **dict(case.layer.options), reduction=reduction)
    data, shape = drawn(case, widest), case.shape["y"]
    value, _ = loss(*wide(data))
    still = trainer(backend, loss, nn.Fixed(), widest, shape=shape)
    for size in (3,) if backend.compiles else (1, 2, 3, 100):
        close(still.evaluate(*data, batch_size=size)["loss"], value, epsilon, size)
    value, _ = loss(*wide(data), WEIGHTS)
    arguments = (backend, loss, widest, shape, data, WEIGHTS.astype(widest))
    _, at_once = learned(*arguments, 100, nn.SGD(0.125))
    for size in (3,) if backend.compiles else (1, 2, 3):
        close(
            still.evaluate(*data, weights=arguments[-1], batch_size=size)["loss"],
            value,
            epsilon,
        )
        result, moved = learned(*arguments, size)
        close(result, value, epsilon, size)
        close(moved, at_once, epsilon, size)


# --- several outputs, custom losses ---------------------------------------------------

CE, MSE = nn.softmax_cross_entropy, nn.mean_squared_error
IGNORING = partial(CE, ignore_index=-1)
GENERATOR = np.random.default_rng(5)
X = {
    "a": GENERATOR.standard_normal((ROWS, 3, 4)),
    "b": GENERATOR.standard_normal((ROWS, 2)),
}
TARGET = {
    "a": GENERATOR.integers(0, 4, (ROWS, 3)).astype(np.int32),
    "b": GENERATOR.standard_normal((ROWS, 2)),
}
SOME = {
    **TARGET,
    "a": np.where(np.arange(ROWS)[:, None] % 3, -1, TARGET["a"]).astype(np.int32),
}
NUMPY = nn.backend("numpy")
SHAPE = {"a": (3, 4), "b": (2,)}


def cast(tree, dtype):
    return tree_map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree
    )


def mean_of_squares(y, target, weights=None):
    """A custom loss, which tells nothing but its mean."""
    return nn.mean_squared_error(y, target, weights)


def mean_where_positive(y, target, weights=None):
    xp = namespace(y)
    counts = xp.astype(target > 0, y.dtype)
    if weights is not None:
        counts = counts * xp.expand_dims(weights, axis=-1)
    total = xp.sum(counts)
    by = xp.where(total > 0, total, 1.0)
    return xp.sum(counts * (y - target) ** 2) / by, 2.0 * counts * (y - target) / by


def how_many_positive(y, target, weights=None):
    xp = namespace(y)
    counts = xp.astype(target > 0, y.dtype)
    return xp.sum(
        counts if weights is None else counts * xp.expand_dims(weights, axis=-1)
    )


mean_where_positive.divisor = how_many_positive


def half_the_sum(y, target, weights=None):
    error = y - target if weights is None else weights[:, None] * (y - target)
    return 0.5 * namespace(y).sum(error * (y - target)), error


half_the_sum.divisor = lambda y, target, weights: None

# a loss, the terms that Accumulate needs for it, and targets
SEVERAL = {
    "plain": (nn.Losses(a=CE, b=MSE, weights={"a": 0.5}), 1, TARGET),
    "sums": (nn.Losses(a=partial(IGNORING, reduction="sum"), b=half_the_sum), 1, SOME),
    "custom": (nn.Losses(a=CE, b=mean_of_squares), 1, TARGET),
    "labels ignored": (nn.Losses(a=IGNORING, b=MSE, weights={"b": 2.0}), 2, SOME),
    "both divide by what counts": (
        nn.Losses(a=IGNORING, b=mean_where_positive),
        2,
        SOME,
    ),
    "a custom divisor": (nn.Losses(a=CE, b=mean_where_positive), 2, TARGET),
    "a sum and a mean": (nn.Losses(a=CE, b=partial(MSE, reduction="sum")), 2, TARGET),
    "weighted": (
        nn.Weighted(nn.Losses(a=IGNORING, b=nn.Weighted(MSE, 3.0)), 0.5),
        2,
        SOME,
    ),
}


def accumulated(batch_size, terms):
    return nn.Accumulate(nn.SGD(0.125), math.ceil(ROWS / batch_size), terms=terms)


@pytest.mark.parametrize(("loss", "terms", "target"), SEVERAL.values(), ids=SEVERAL)
def test_each_output_is_divided_by_its_own(
    backend, widest, epsilon, thorough, loss, terms, target
):
    if not thorough and loss not in (SEVERAL["plain"][0], SEVERAL["labels ignored"][0]):
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    data = cast((X, target), widest)
    value, _ = loss(*wide(data))
    still = trainer(backend, loss, nn.Fixed(), widest, shape=SHAPE)
    for size in (3,) if backend.compiles else (1, 2, 3, 100):
        close(still.evaluate(*data, batch_size=size)["loss"], value, epsilon, size)
    value, _ = loss(*wide(data), WEIGHTS)
    arguments = (backend, loss, widest, SHAPE, data, WEIGHTS.astype(widest))
    result, at_once = learned(*arguments, 100, nn.SGD(0.125))
    close(result, value, epsilon)
    history = still.fit(*data, weights=arguments[-1], batch_size=3, verbose=0)
    close(history["loss"][0], value, epsilon)
    if terms > 1:
        with pytest.raises(
            ValueError, match=rf"losses of a and b .* terms={terms}\) around all"
        ):
            learned(*arguments, 3)
    for size in (3,) if backend.compiles else (1, 2, 3):
        result, moved = learned(*arguments, size, accumulated(size, terms))
        close(result, value, epsilon)
        close(moved, at_once, epsilon)


def test_terms_of_nested_losses_are_joined_one_by_one():
    """Three losses in two levels, of which each divides by something else."""
    inner = nn.Losses(a=IGNORING, b=mean_where_positive, weights={"a": 3.0})
    loss = nn.Losses(
        first=nn.Weighted(inner, 0.5), second=partial(MSE, reduction="sum")
    )
    data = {"first": X, "second": X["b"]}, {"first": SOME, "second": TARGET["b"]}
    shape = {"first": SHAPE, "second": (2,)}
    arguments = (NUMPY, loss, "float64", shape, data, WEIGHTS)
    _, at_once = learned(*arguments, 100, nn.SGD(0.125))
    for size in (1, 2, 3, 5):
        _, moved = learned(*arguments, size, accumulated(size, 3))
        close(moved, at_once, 1e-15)
    with pytest.raises(ValueError, match="for each of 3 losses"):
        learned(*arguments, 3, accumulated(3, 2))
    with pytest.raises(ValueError, match="around all other optimizers"):
        learned(*arguments, 3, nn.Average(accumulated(3, 3)))


def test_several_terms_take_one_gradient_where_that_is_enough():
    loss, _, target = SEVERAL["plain"]
    arguments = (NUMPY, loss, "float64", SHAPE, (X, target), None)
    _, at_once = learned(*arguments, 100, nn.SGD(0.125))
    _, moved = learned(*arguments, 3, nn.ClipByValue(accumulated(3, 2), 1e3))
    close(moved, at_once, 1e-15)


def test_several_terms_hold_no_accumulate():
    with pytest.raises(
        ValueError, match="set `every` of one Accumulate to the product of both"
    ):
        nn.Accumulate(nn.Average(accumulated(3, 1)), 2, terms=2)


def test_an_output_is_reached_through_a_whole_model_for_each_term(
    backend, widest, epsilon
):
    """Two losses need two backward passes of one cache; a shared layer adds both."""
    shared = nn.Sequential(nn.Dense(3), nn.Tanh())
    nodes = {"h": (shared, "x"), "a": (nn.Dense(4), "h"), "b": (nn.Dense(2), "h")}
    model = nn.Graph(outputs={"a": "a", "b": "b"}, **nodes)
    loss, x = nn.Losses(a=IGNORING, b=MSE), cast(X["b"], widest)
    target = cast({"a": SOME["a"][:, 0], "b": TARGET["b"]}, widest)
    options = {"backend": backend, "dtype": widest, "metrics": {}, "shape": (2,)}
    moved = []
    for optimizer, size in ((nn.SGD(0.125), ROWS), (accumulated(3, 2), 3)):
        training = Trainer(model, loss, optimizer, **options)
        training.fit(x, target, epochs=2, batch_size=size, shuffle=False, verbose=0)
        moved.append(backend.to_numpy(training.params))
    close(moved[1], moved[0], epsilon)


def test_outputs_of_different_sizes_are_joined_by_examples():
    """Weights divide instead of examples, whatever the lengths of the sequences are."""
    loss = SEVERAL["plain"][0]
    assert batch_loss(loss, X, TARGET).divisor == ROWS
    assert batch_loss(loss, X, TARGET, WEIGHTS).divisor == np.sum(WEIGHTS)
    alike = nn.Losses(a=MSE, b=nn.huber)
    pair = {"a": X["b"], "b": X["b"]}
    assert batch_loss(alike, pair, pair).divisor == X["b"].size


CUSTOM = {
    "mean": mean_of_squares,
    "with a divisor": mean_where_positive,
    "sum": half_the_sum,
}


@pytest.mark.parametrize("loss", CUSTOM.values(), ids=CUSTOM)
def test_a_custom_loss_is_averaged_by_what_it_divides_by(
    backend, widest, epsilon, thorough, loss
):
    if not thorough and loss is not mean_where_positive:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    data = cast(
        (X["b"], np.where(np.arange(ROWS)[:, None] % 3, -1.0, TARGET["b"])), widest
    )
    for weights in (WEIGHTS,) if backend.compiles else (None, WEIGHTS):
        value, _ = loss(*wide(data), weights)
        weights = None if weights is None else weights.astype(widest)
        arguments = (backend, loss, widest, (2,), data, weights)
        _, at_once = learned(*arguments, 100, nn.SGD(0.125))
        result, moved = learned(*arguments, 3)
        close(result, value, epsilon)
        close(moved, at_once, epsilon)


def test_a_custom_loss_without_weights_is_averaged_by_examples():
    def loss(y, target):
        return nn.mean_squared_error(y, target)

    result = batch_loss(loss, X["b"], TARGET["b"])
    assert (result.divisor, result.ratio) == (ROWS, 1.0)
    still = trainer("numpy", loss, nn.Fixed(), "float64", shape=(2,))
    data = X["b"][:6], TARGET["b"][:6]
    for size in (1, 2, 3, 6):
        close(still.evaluate(*data, batch_size=size)["loss"], loss(*data)[0], 1e-15)


def test_divisors_that_are_python_numbers_may_differ_between_batches():
    mean = MeanLoss(np.asarray)
    mean.add([1.0], ((), (3.0,)))
    mean.add([2.0, 4.0], ((), (5.0,)))
    assert mean.value == (3 * 1.0 + 5 * 2.0 + 5 * 4.0) / 13


# --- where little counts, or nothing --------------------------------------------------


def test_weights_count_in_the_loss_and_not_in_metrics():
    data, w = (X["a"], SOME["a"]), np.asarray([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0])
    still = Trainer(
        Shift(), IGNORING, nn.Fixed(), backend="numpy", dtype="float64", shape=(3, 4)
    )
    result = still.evaluate(*data, weights=w, batch_size=2)
    close(result["loss"], IGNORING(*data, w)[0], 1e-15)
    close(result["accuracy"], still.evaluate(*data)["accuracy"], 1e-15)
    with pytest.raises(ValueError, match=r"weights of shape \(7,\), got \(3,\)"):
        still.evaluate(*data, weights=w[:3])


def test_the_mean_of_nothing_is_0(backend, widest):
    x, target = cast((X["a"], np.full((ROWS, 3), -1, np.int32)), widest)
    still = trainer(
        backend, IGNORING, nn.Accumulate(nn.SGD(1.0), 2), widest, shape=(3, 4)
    )
    assert still.evaluate(x, target, batch_size=3) == {"loss": 0.0}
    history = still.fit(x, target, batch_size=3, validation=(x, target), verbose=0)
    assert history["loss"] == history["validation_loss"] == [0.0]
    nothing = np.zeros(ROWS, widest)
    assert still.fit(x, TARGET["a"], weights=nothing, batch_size=3, verbose=0)[
        "loss"
    ] == [0.0]
    assert all(not np.any(leaf) for leaf in leaves(backend.to_numpy(still.params)))


def test_batches_in_which_nothing_counts_change_nothing(
    backend, widest, epsilon, thorough
):
    """One row left over, which is ignored, and a batch of ignored rows before it."""
    if not thorough:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    target = TARGET["a"].copy()
    target[3:] = -1
    data = cast((X["a"], target), widest)
    some = tree_map(lambda leaf: leaf[:3], data)
    arguments = (backend, IGNORING, widest, (3, 4))
    expected = learned(*arguments, some, None, 3, nn.SGD(0.125))
    result = learned(*arguments, data, None, 3)
    close(result, expected, epsilon)


class Spike(nn.Layer):
    """y = x, but infinite where x is 9."""

    def init(self, key, shape, dtype):
        return {"b": namespace(key).zeros((), dtype=dtype)}, {}, shape

    def forward(self, params, state, x, *, train=False):
        return namespace(x).where(x == 9, math.inf, x + params["b"]), state, ()


def absolute(y, target):
    return namespace(y).abs(y - target)


def test_rows_that_only_fill_a_batch_up_leave_metrics_as_they_are(backend):
    """0 · inf is NaN, and filler rows copy the last, whose metric may be infinite."""
    x, target = np.asarray([[1], [2], [9]], "f"), np.zeros((3, 1), "f")
    options = {"backend": backend, "shape": (1,), "metrics": {"error": absolute}}
    still = Trainer(Spike(), nn.mean_absolute_error, nn.Fixed(), **options)
    assert still.evaluate(x, target, batch_size=2)["error"] == math.inf


def test_metrics_are_the_same_in_batches_of_any_size(backend, widest, epsilon):
    """Ratios of sums, where labels are ignored."""
    metrics = {
        "accuracy": partial(nn.metrics.accuracy, ignore_index=-1),
        "top_2": partial(nn.metrics.top_k_accuracy, k=2, ignore_index=-1),
        "perplexity": partial(nn.metrics.perplexity, ignore_index=-1),
    }
    data = cast((X["a"], SOME["a"]), widest)
    options = {"backend": backend, "shape": (3, 4), "dtype": widest, "metrics": metrics}
    still = Trainer(Shift(), IGNORING, nn.Fixed(), **options)
    whole = still.evaluate(*data)
    keep = SOME["a"] >= 0
    right = np.argmax(X["a"], axis=-1) == SOME["a"]
    close(whole["accuracy"], np.mean(right[keep]), epsilon)
    close(whole["perplexity"], math.exp(whole["loss"]), 4 * epsilon)
    for size in (3,) if backend.compiles else (1, 2, 3):
        result = still.evaluate(*data, batch_size=size)
        for name, value in whole.items():
            close(result[name], value, epsilon, name)


# --- the divisor on its way to Accumulate ---------------------------------------------


@dataclass(frozen=True)
class Deaf:
    """A custom optimizer around another, from before there was a divisor."""

    optimizer: object

    def init(self, params):
        return {"inner": self.optimizer.init(params)}

    def update(self, params, grads, moments):
        params, inner = self.optimizer.update(params, grads, moments["inner"])
        return params, {"inner": inner}


def test_a_custom_optimizer_that_hides_accumulate_is_refused():
    hidden = nn.Average(Deaf(nn.Accumulate(nn.SGD(0.1), 2)))
    with pytest.raises(
        TypeError, match=r"Deaf holds Accumulate, .* fourth parameter, divisor=1.0"
    ):
        trainer("numpy", MSE, hidden, "float32")
    with pytest.raises(TypeError, match="Deaf holds Accumulate"):
        nn.make_step(Shift(), MSE, hidden)


EVERYWHERE = [
    lambda inner: nn.ClipByValue(inner, 1e3),
    lambda inner: nn.L2(inner, 0.0),
    nn.Scaled,
    nn.Average,
    lambda inner: nn.Parts((("b", inner),), rest=nn.Fixed()),
    lambda inner: nn.Muon(others=inner),
    lambda inner: nn.Accumulate(inner, 1),
]


@pytest.mark.parametrize("around", EVERYWHERE)
def test_the_divisor_reaches_accumulate_through_every_optimizer(around):
    inner = nn.SGD(0.125)
    arguments = (NUMPY, IGNORING, "float64", (4,))
    # 3, 1 and 0 of them count
    data = X["a"][:, 0], np.asarray([2, 1, 3, 0, -1, -1, -1])
    _, at_once = learned(*arguments, data, None, 100, inner)
    _, moved = learned(*arguments, data, None, 3, around(nn.Accumulate(Deaf(inner), 3)))
    close(moved, at_once, 1e-15)


def test_accumulate_of_accumulate_is_one_large_batch():
    data = X["a"][:, 0], SOME["a"][:, 0]
    arguments = (NUMPY, IGNORING, "float64", (4,))
    _, at_once = learned(*arguments, data, None, 100, nn.SGD(0.125))
    _, moved = learned(
        *arguments, data, None, 2, nn.Accumulate(nn.Accumulate(nn.SGD(0.125), 2), 2)
    )
    close(moved, at_once, 1e-15)


def test_batches_left_over_are_saved_and_gone_on_with(
    backend, widest, epsilon, tmp_path
):
    """7 rows by 3 at a time are 3 batches: stopped after 2 of them."""
    data = cast((X["a"], SOME["a"]), widest)
    options = {"batch_size": 3, "shuffle": False, "verbose": 0}
    _, at_once = learned(
        backend, IGNORING, widest, (3, 4), data, None, 100, nn.SGD(0.125)
    )
    interrupted = trainer(
        backend, IGNORING, nn.Accumulate(nn.SGD(0.125), 3), widest, shape=(3, 4)
    )
    interrupted.fit(*data, steps=2, **options)
    assert not any(
        np.any(leaf) for leaf in leaves(backend.to_numpy(interrupted.params))
    )
    assert float(backend.to_numpy(interrupted.moments["divisor"])) == np.sum(
        SOME["a"][:6] >= 0
    )
    interrupted.save(tmp_path / "half.safetensors")
    loaded = Trainer.load(
        tmp_path / "half.safetensors", backend, model=Shift(), metrics={}
    )
    loaded.fit(*data, **options)
    close(backend.to_numpy(loaded.params), at_once, epsilon)


CONTROLLED = {
    "mean": (IGNORING, 1),
    "sum": (partial(IGNORING, reduction="sum"), 1),
    "sum and mean": (
        nn.Losses(a=partial(IGNORING, reduction="sum"), b=mean_where_positive),
        2,
    ),
}


@pytest.mark.parametrize(("loss", "terms"), CONTROLLED.values(), ids=CONTROLLED)
def test_a_control_run_of_compare_takes_the_steps_of_accumulate(loss, terms):
    """It takes gradients and update apart, to put rounding in between."""
    optimizer = nn.Accumulate(nn.SGD(0.125), 2, terms=terms)
    several = terms > 1
    params = {
        "b": {"a": np.zeros((3, 4)), "b": np.zeros(2)} if several else np.zeros((3, 4))
    }
    moments, apart = optimizer.init(params), params
    step, unmoved = nn.make_step(Shift(), loss, optimizer), _return_gradients(optimizer)
    slope = NUMPY.jit(nn.make_step(Shift(), loss, unmoved, keep_finite=False))
    update = NUMPY.jit(partial(_update, optimizer))
    carry = params, {}, moments
    for rows in (
        slice(0, 4),
        slice(4, 7),
        slice(0, 3),
        slice(3, 7),
        slice(1, 4),
        slice(3, 6),
    ):
        batch = tree_map(lambda leaf, rows=rows: leaf[rows], (X, SOME))
        batch = batch if several else (batch[0]["a"], batch[1]["a"])
        carry, _, _ = step(carry, *batch)
        (grads, _, divisor), _, _ = slope((apart, {}, np.ones(())), *batch)
        apart, moments = update(apart, grads, moments, divisor)
    close(apart, carry[0], 1e-15)
    assert all(np.any(leaf != 0) for leaf in leaves(apart))
