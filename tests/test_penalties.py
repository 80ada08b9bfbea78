"""Penalties of the parameters, which are part of the reported loss."""

from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.training.config import describe, rebuild

penalties = nn.penalties
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((10, 3)).astype("float32")
TARGET = GENERATOR.standard_normal((10, 2)).astype("float32")
MODEL = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2))
ALL = (
    penalties.L1(0.1),
    penalties.L2(0.2, leaves=("0",), exclude=()),
    penalties.Orthogonality(0.3, leaves=("weight",)),
)


def make(backend, loss, optimizer=None, **options):
    optimizer = optimizer or nn.SGD(0.05)
    return nn.Trainer(
        MODEL, loss, optimizer, backend=backend, seed=1, shape=(3,), **options
    )


def on_host(trainer):
    """Return the parameters in float64."""
    return tree_map(np.float64, trainer.backend.to_numpy(trainer.params))


def value_of(penalty, params):
    return float(penalty(params)[0])


# --- values and gradients -------------------------------------------------------------


def test_a_penalty_is_its_formula():
    first, last = np.asarray([[3.0, -4.0]]), np.asarray([[1.0], [-2.0], [0.5]])
    params = ({"weight": first, "bias": np.ones(2)}, {"weight": last})
    assert value_of(penalties.L1(2.0), params) == 2.0 * (7.0 + 3.5)
    assert value_of(penalties.L1(1.0, exclude=()), params) == 12.5
    assert value_of(penalties.L2(2.0, leaves=("1",)), params) == 5.25
    # more columns than rows, and fewer: 1 x 1 matrices
    for leaf, square in (("0.weight", 25.0), ("1.weight", 5.25)):
        orthogonality = penalties.Orthogonality(1.0, leaves=(leaf,))
        assert value_of(orthogonality, params) == (square - 1.0) ** 2
    square, _ = np.linalg.qr(GENERATOR.standard_normal((5, 3)))
    kernel = {"weight": square.reshape(5, 1, 3)}
    assert value_of(penalties.Orthogonality(1.0), kernel) == pytest.approx(0.0)


@pytest.mark.parametrize("penalty", ALL, ids=lambda penalty: type(penalty).__name__)
def test_the_gradient_of_a_penalty_is_that_of_central_differences(penalty):
    trainer = make("numpy", nn.huber)
    params = on_host(trainer)
    params[0]["bias"][:] = GENERATOR.standard_normal(4)
    direction = tree_map(lambda p: GENERATOR.standard_normal(p.shape), params)
    step = 1e-6

    def moved(sign):
        return tree_map(lambda p, d: p + sign * step * d, params, direction)

    value, grads = penalty(params)
    slope = (value_of(penalty, moved(1)) - value_of(penalty, moved(-1))) / (2 * step)
    pairs = zip(leaves(grads), leaves(direction), strict=True)
    assert slope == pytest.approx(sum((g * d).sum() for g, d in pairs), rel=1e-7)
    assert value > 0
    counted = {name for name, g in named_leaves(grads) if g.any()}
    excluded = set() if penalty.exclude == () else {"0.bias"}
    assert "0.weight" in counted
    assert not counted & excluded


# --- in training ----------------------------------------------------------------------


def test_a_step_follows_the_loss_and_its_penalties_and_reports_both(backend):
    trainer = make(backend, nn.Penalized(nn.mean_squared_error, ALL))
    params = on_host(trainer)
    plain = make("numpy", nn.mean_squared_error, dtype="float64")
    plain.start_from(params)
    before = float(plain.step(X.astype("float64"), TARGET.astype("float64")))
    moved = on_host(plain)
    total, grads = penalties.sum_of(ALL, params)
    expected = tree_map(lambda p, g: p - 0.05 * g, moved, grads)
    assert float(trainer.step(X, TARGET)) == pytest.approx(before + total, rel=1e-5)
    for ours, theirs in zip(leaves(on_host(trainer)), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_penalty_counts_once_however_examples_are_batched(backend):
    loss = nn.Penalized(nn.mean_squared_error, penalties.L1(0.1))
    trainer = make(backend, loss, nn.Fixed())
    penalty = value_of(loss.penalties[0], on_host(trainer))
    y = trainer.predict(X)
    expected = float(((y - TARGET) ** 2).mean()) + penalty
    evaluated = trainer.evaluate(X, TARGET, batch_size=4)["loss"]
    assert evaluated == pytest.approx(expected, rel=1e-5)
    history = trainer.fit(X, TARGET, batch_size=4, epochs=1, verbose=0)
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_a_sum_of_examples_has_one_penalty_too():
    total = partial(nn.mean_squared_error, reduction="sum")
    trainer = make("numpy", nn.Penalized(total, ALL), nn.Fixed())
    penalty = float(penalties.sum_of(ALL, on_host(trainer))[0])
    expected = ((trainer.predict(X) - TARGET) ** 2).sum() + penalty
    for size in (4, 10):
        evaluated = trainer.evaluate(X, TARGET, batch_size=size)["loss"]
        assert evaluated == pytest.approx(float(expected), rel=1e-5)
    assert trainer.loss.is_sum
    weights = np.linspace(-1.0, 1.0, 10, dtype="float32")
    assert np.isfinite(float(trainer.step(X, TARGET, weights)))


@pytest.mark.parametrize("terms", [1, 2])
def test_accumulated_batches_have_the_penalty_of_one_large_batch(terms):
    model = nn.Graph(
        a=(nn.Dense(2), "x"), b=(nn.Dense(3), "x"), outputs={"a": "a", "b": "b"}
    )
    ignoring = partial(nn.softmax_cross_entropy, ignore_index=-1)
    labels = np.asarray([0, 1, -1, -1, 2, 1, 1, 0])
    losses = {1: nn.softmax_cross_entropy, 2: ignoring}
    loss = nn.Penalized(
        nn.Losses(a=nn.mean_squared_error, b=losses[terms]), penalties.L1(0.3)
    )
    results = []
    for every, optimizer in ((1, nn.SGD(0.1)), (2, None)):
        if optimizer is None:
            optimizer = nn.Accumulate(nn.SGD(0.1), 2, terms=terms)
        trainer = nn.Trainer(model, loss, optimizer, backend="numpy", shape=(3,))
        size = 8 // every
        known = labels if terms == 2 else np.abs(labels)
        for start in range(0, 8, size):
            rows = slice(start, start + size)
            trainer.step(X[:8][rows], {"a": TARGET[:8][rows], "b": known[rows]})
        results.append(leaves(trainer.params))
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_custom_penalty_is_a_function_of_the_parameters(tmp_path):
    def gap(params):
        """The squared difference of two biases, of the layers 0 and 2."""
        zero = tree_map(np.zeros_like, params)
        difference = params[0]["bias"][0] - params[2]["bias"][0]
        zero[0]["bias"][0] = 2.0 * difference
        zero[2]["bias"][0] = -2.0 * difference
        return difference * difference, zero

    loss = nn.Penalized(nn.huber, (gap, penalties.L2(1e-3)))
    trainer = make("numpy", loss)
    first = float(trainer.step(X, TARGET))
    assert float(trainer.step(X, TARGET)) < first
    loss = nn.Penalized(nn.huber, penalties.L2(1e-3))
    assert rebuild(describe(loss)) == loss
    saved = make("numpy", loss)
    saved.save(tmp_path / "penalized.safetensors")
    again = nn.Trainer.load(tmp_path / "penalized.safetensors", "numpy")
    assert again.loss == loss
    assert again.evaluate(X, TARGET) == saved.evaluate(X, TARGET)


def test_penalties_that_do_not_fit_are_refused():
    for call, error, message in (
        (lambda: nn.Penalized(nn.huber, 0.1), TypeError, "a penalty to be a function"),
        (lambda: nn.Penalized(nn.huber, ()), ValueError, "at least one penalty"),
        (lambda: penalties.L1(-1.0), ValueError, "weight"),
        (lambda: penalties.L1(1.0, leaves="weight"), TypeError, "tuple of paths"),
    ):
        with pytest.raises(error, match=message):
            call()
    loss = nn.Penalized(nn.huber, penalties.L1(0.1))
    for wrong in (
        lambda: nn.Weighted(loss, 2.0),
        lambda: nn.Losses(a=loss),
        lambda: nn.Penalized(loss, penalties.L1(0.1)),
    ):
        with pytest.raises(ValueError, match="put Penalized around all of it"):
            wrong()
    with pytest.raises(TypeError, match=r"pass params=\.\.\., or use its `loss`"):
        nn.explain(MODEL, loss, X, TARGET)
    for wrong, message in (
        (penalties.L1(0.1, leaves=("kernel",)), "L1 matches 'kernel' of leaves with"),
        (penalties.L1(0.1, leaves=("bias",)), "no leaf is left for L1 among"),
        (penalties.Orthogonality(0.1, exclude=()), "at least two axes, got one of"),
        (lambda params: (params[0]["bias"], params), "one number, got one of shape"),
        (lambda params: (params[0]["bias"][0], params[:2]), "trees differ"),
    ):
        with pytest.raises(ValueError, match=message):
            make("numpy", nn.Penalized(nn.huber, wrong)).step(X, TARGET)
