"""Tests of `MixedPrecision`: layers in 16 bits with parameters of float32.

Its structure is also tested by its example, which keeps all layers in float32.
"""

import numpy as np
import pytest
from cases import arrays_for, layer_cases, run

import agnostic_nn as nn
from agnostic_nn.core import random
from agnostic_nn.core.precisions import HALVES, epsilon
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics.examples import LAYERS

DENSE = nn.Dense(3)
CHAIN = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Tanh(), nn.Dense(2))


@pytest.fixture(params=HALVES)
def half(request, backend):
    if not backend.has_dtype(request.param):
        pytest.skip(backend.lacks_dtype(request.param))
    return request.param


def examples(thorough):
    """Return a case for each layer that has an example, once; fewer if compiled."""
    layers = [each.layer for each in LAYERS]
    cases = {repr(case.layer): case for case in layer_cases() if case.layer in layers}
    few = (nn.BatchNorm, nn.Dense, nn.LSTM, nn.Repeat, nn.Conv2D)
    return [case for case in cases.values() if thorough or isinstance(case.layer, few)]


def relative_error(actual, expected):
    size = np.linalg.norm(expected)
    return np.linalg.norm(actual - expected) / size if size else 0.0


def test_every_layer_computes_in_half_precision_and_returns_float32(
    backend, half, thorough
):
    """Outputs, state and gradients are those of float64 up to a few roundings."""
    for case in examples(thorough or backend.name == "numpy"):
        arrays = arrays_for(case)
        wide = tree_map(
            lambda a: a.astype("float64") if a.dtype == "float32" else a, arrays
        )
        mixed = nn.MixedPrecision(case.layer, half, scale=1)  # dy is large here
        expected = run(case.layer, wide, train=True)
        actual = run(mixed, backend.asarray(arrays), train=True)
        pairs = zip(
            named_leaves(backend.to_numpy(actual)), leaves(expected), strict=True
        )
        for (path, leaf), exact in pairs:
            where = f"{case.layer}: {path}"
            if exact is None or exact.dtype.kind != "f":
                continue
            assert leaf.dtype == "float32", where
            if np.linalg.norm(exact) > 1e-12:  # else it is 0 up to rounding
                # rounded positions change the slopes between pixels
                roundings = 24 if isinstance(case.layer, nn.GridSample) else 12
                assert relative_error(leaf, exact) < roundings * epsilon(half), where


def test_a_layer_computes_with_numbers_of_the_dtype(backend, half):
    """A product of rounded numbers, rounded: not that of the float32 numbers."""
    x = np.asarray([[1.0 + 2.0**-12]], "float32")
    params = {"weight": np.asarray([[1.0 + 2.0**-12]], "float32")}
    layer = nn.MixedPrecision(nn.Dense(1, bias=False), half)
    y, _, cache = layer.forward(backend.asarray(params), {}, backend.asarray(x))
    dx, grads = layer.backward(
        backend.asarray(params), cache, backend.asarray(np.ones((1, 1), "float32"))
    )
    outputs = [backend.to_numpy(leaf) for leaf in (y, dx, grads["weight"])]
    for leaf in outputs:
        assert leaf.dtype == "float32"
        assert leaf.item() == 1.0


def test_a_layer_that_is_kept_computes_in_float32(backend, half):
    x = np.asarray([[1.0 + 2.0**-12]], "float32")
    params = tuple({"weight": np.asarray([[1.0]], "float32")} for _ in range(2))
    dense = nn.Dense(1, bias=False)

    def output(*keep):
        model = nn.MixedPrecision(nn.Sequential(dense, dense), half, keep=keep)
        arrays = backend.asarray((params, x))
        return backend.to_numpy(model.predict(arrays[0], ({}, {}), arrays[1])).item()

    assert output() == output("0") == output("1") == 1.0
    assert output("0", "1") == 1.0 + 2.0**-12


def test_a_block_that_is_kept_keeps_the_layers_inside():
    inner = nn.Sequential(nn.Dense(4), nn.Tanh())
    model = nn.Sequential(nn.Dense(4), inner, nn.Dense(4))
    key = random.key(0, xp=nn.backend("numpy").xp)
    params, state, _ = model.init(key, (4,), np.dtype("float32"))
    x = np.random.default_rng(0).standard_normal((5, 4)).astype("float32")

    def output(*keep):
        return nn.MixedPrecision(model, "float16", keep=keep).predict(params, state, x)

    np.testing.assert_array_equal(output("1"), output("1.0", "1.1"))
    assert np.any(output("1") != output())
    np.testing.assert_array_equal(
        output("0", "1", "2"), model.predict(params, state, x)
    )


def test_the_scale_saves_gradients_too_small_for_float16():
    """2⁻²⁶ is less than half of the smallest number of float16."""
    x = np.ones((1, 1), "float32")
    params = {"weight": np.ones((1, 1), "float32")}
    dy = np.full((1, 1), 2.0**-26, "float32")

    def gradients(**options):
        layer = nn.MixedPrecision(nn.Dense(1, bias=False), "float16", **options)
        _, _, cache = layer.forward(params, {}, x)
        dx, grads = layer.backward(params, cache, dy)
        assert layer.backward_params(params, cache, dy) == grads
        return dx.item(), grads["weight"].item()

    assert gradients() == (2.0**-26, 2.0**-26)
    assert gradients(scale=1) == (0.0, 0.0)


def test_the_scale_depends_on_the_dtype():
    assert nn.MixedPrecision(DENSE, "float16").scale == 1024
    assert nn.MixedPrecision(DENSE, "bfloat16").scale == 1


def test_trees_and_paths_are_those_of_the_model(backend, half):
    key = random.key(0, xp=backend.xp)
    params, state, _ = CHAIN.init(key, (3,), backend.xp.float32)
    mixed = nn.MixedPrecision(CHAIN, half, keep=("1",))
    ours, ours_state, out = mixed.init(key, (3,), backend.xp.float32)
    assert out == (2,)
    for (path, leaf), (other, expected) in zip(
        named_leaves((ours, ours_state)), named_leaves((params, state)), strict=True
    ):
        assert path == other
        np.testing.assert_array_equal(
            backend.to_numpy(leaf), backend.to_numpy(expected)
        )


@pytest.mark.parametrize(
    ("keep", "loop"),
    [((), nn.Residual(nn.Dense(4), nn.Tanh())), (("1.0",), nn.Residual(nn.Dense(4)))],
    ids=["all in half", "one kept"],
)
def test_a_loop_keeps_the_dtype_of_its_input(backend, half, keep, loop):
    """A compiled loop refuses a step that returns another dtype than it takes."""
    model = nn.Sequential(nn.Dense(4), nn.Repeat(loop, 2))
    mixed = nn.MixedPrecision(model, half, keep=keep)
    key = random.key(0, xp=backend.xp)
    params, state, _ = mixed.init(key, (3,), backend.xp.float32)
    x = backend.asarray(np.ones((2, 3), "float32"))

    def step(params, state, x):
        y, _, cache = mixed.forward(params, state, x, train=True)
        return mixed.backward(params, cache, y)[1]

    grads = backend.to_numpy(backend.jit(step)(params, state, x))
    assert all(leaf.dtype == "float32" for leaf in leaves(grads))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.MixedPrecision(DENSE, "float32"),
            ValueError,
            "expected dtype .*'float16' or 'bfloat16', got 'float32'",
        ),
        (lambda: nn.MixedPrecision("x", "float16"), TypeError, "expected layers"),
        (
            lambda: nn.MixedPrecision(CHAIN, "float16", keep="0"),
            TypeError,
            "keep to be a tuple of paths, got '0'",
        ),
        (
            lambda: nn.MixedPrecision(CHAIN, "float16", keep=("0", "9")),
            ValueError,
            r"paths \['9'\], which do not exist: the layers are \['0', '1', '2', '3'\]",
        ),
        (
            lambda: nn.MixedPrecision(DENSE, "float16", scale=3.0),
            ValueError,
            "scale, a power of two, got 3.0",
        ),
        (
            lambda: nn.MixedPrecision(DENSE, "float16", scale=-2.0),
            ValueError,
            "a finite scale above 0, got -2.0",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_paths_inside_a_transformer_block_are_known_in_init():
    block = nn.TransformerBlock(nn.MultiHeadAttention(2), 8)
    key = random.key(0, xp=nn.backend("numpy").xp)
    good = nn.MixedPrecision(block, "float16", keep=("feed.0", "attention_norm"))
    good.init(key, (3, 4), np.dtype("float32"))
    bad = nn.MixedPrecision(block, "float16", keep=("feed.7",))
    with pytest.raises(ValueError, match=r"paths \['feed.7'\].*'attention_norm'"):
        bad.init(key, (3, 4), np.dtype("float32"))


def test_a_library_without_the_dtype_is_named():
    layer = nn.MixedPrecision(nn.Dense(1), "bfloat16")
    params, _, _ = layer.init(
        random.key(0, xp=nn.backend("numpy").xp), (1,), np.dtype("float32")
    )
    with pytest.raises(ValueError, match="library of these arrays has no bfloat16"):
        layer.forward(params, {}, np.ones((1, 1), "float32"))


def test_it_trains_and_its_parameters_are_those_of_the_model(backend, half, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((64, 4)).astype("float32")
    labels = (x[:, 0] > 0).astype("int64")
    model = nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(2))
    mixed = nn.MixedPrecision(model, half)
    arguments = nn.softmax_cross_entropy, nn.Adam(0.05)
    trainer = nn.Trainer(mixed, *arguments, backend=backend, seed=0)
    trainer.fit(x, labels, epochs=8, batch_size=16, verbose=0)
    assert trainer.evaluate(x, labels)["loss"] < 0.3
    trainer.save(tmp_path / "half")
    loaded = nn.Trainer.load(tmp_path / "half", backend)
    np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))
    y = model.predict(trainer.params, trainer.state, backend.asarray(x))
    difference = relative_error(trainer.predict(x), backend.to_numpy(y))
    assert 0.0 < difference < 4 * epsilon(half)


class Remembers(nn.Layer):
    """y = x, with the sum of x as its state."""

    def forward(self, params, state, x, *, train=False):
        return x, {"sum": x[0, ...] + x[1, ...]}, ()


def test_a_state_that_is_computed_in_half_precision_becomes_float32_again():
    state = {"sum": np.zeros((3,), "float32")}
    x = np.ones((2, 3), "float32")
    layer = nn.MixedPrecision(Remembers(), "float16")
    _, new_state, _ = layer.forward({}, state, x, train=True)
    assert new_state["sum"].dtype == "float32"
