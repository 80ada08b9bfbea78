"""LoRA and WeightNorm: weights that are computed from other parameters."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics.summary import summarize

HOST = nn.backend("numpy")


def drawn(layer, shape, seed=0, dtype="float64"):
    """Return params and state on the host."""
    key = nn.random.key(seed, xp=HOST.xp)
    params, state, _ = layer.init(key, shape, getattr(HOST.xp, dtype))
    return params, state


def numbers(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


BLOCK = nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), hidden=5)
ATTENTION = ("query.weight", "value.weight")


# --- LoRA -----------------------------------------------------------------------------


def test_an_adapted_layer_starts_as_the_layer_that_it_adapts():
    x = numbers(3, 4, 6)
    params, state = drawn(BLOCK, (4, 6))
    lora = nn.LoRA(BLOCK, 2, leaves=ATTENTION)
    adapters, lora_state = drawn(lora, (4, 6))
    for name, leaf in named_leaves(lora_state["params"]):
        np.testing.assert_array_equal(leaf, dict(named_leaves(params))[name])
    y = BLOCK.predict(params, state, x)
    np.testing.assert_array_equal(lora.predict(adapters, lora_state, x), y)
    shapes = {name: leaf.shape for name, leaf in named_leaves(adapters) if len(leaf)}
    assert shapes == {
        "attention.query.weight.a": (6, 2),
        "attention.query.weight.b": (2, 6),
        "attention.value.weight.a": (6, 2),
        "attention.value.weight.b": (2, 6),
    }
    a = adapters["attention"]["query"]["weight"]["a"]
    assert (a != adapters["attention"]["value"]["weight"]["a"]).all()


def test_only_the_adapters_learn_and_merging_keeps_the_outputs(backend):
    x, target = numbers(8, 4, 6, dtype="float32"), numbers(8, 4, 6, dtype="float32")
    lora = nn.LoRA(BLOCK, 2, scale=0.5, leaves=ATTENTION)
    optimizer = nn.AdamW(0.05, weight_decay=0.1)
    trainer = nn.Trainer(
        lora, nn.mean_squared_error, optimizer, backend=backend, shape=(4, 6)
    )
    before = backend.to_numpy(trainer.state)
    losses = [float(trainer.step(x, target)) for _ in range(4)]
    assert losses[-1] < losses[0]
    after = backend.to_numpy((trainer.params, trainer.state))
    for old, new in zip(leaves(before), leaves(after[1]), strict=True):
        np.testing.assert_array_equal(old, new)
    merged = lora.merged(*after)
    y = BLOCK.predict(*merged, x)
    np.testing.assert_allclose(lora.predict(*after, x), y, rtol=1e-4, atol=1e-5)
    changed = [
        name
        for (name, old), new in zip(
            named_leaves(before["params"]), leaves(merged[0]), strict=True
        )
        if (old != new).any()
    ]
    assert changed == [f"attention.{name}" for name in ATTENTION]


def test_a_kernel_of_a_convolution_is_adapted_as_a_matrix():
    lora = nn.LoRA(nn.Conv2D(5, (3, 2)), 4)
    params, state = drawn(lora, (6, 6, 3))
    adapter = params["weight"]
    assert (adapter["a"].shape, adapter["b"].shape) == ((18, 4), (4, 5))
    adapter = {**adapter, "b": numbers(4, 5)}
    merged, _ = lora.merged({**params, "weight": adapter}, state)
    change = merged["weight"] - state["params"]["weight"]
    expected = (adapter["a"] @ adapter["b"]).reshape(3, 2, 3, 5)
    np.testing.assert_allclose(change, expected, atol=1e-14)
    assert merged["bias"] is state["params"]["bias"]


@pytest.mark.parametrize(
    "layer",
    [nn.LoRA(BLOCK, 2, leaves=ATTENTION), nn.WeightNorm(BLOCK)],
    ids=lambda layer: type(layer).__name__,
)
def test_decoding_step_by_step_uses_the_computed_weights(layer):
    params, state = drawn(layer, (4, 6))
    noise = iter(numbers(len(leaves(params)), 1))
    params = tree_map(lambda p: p + next(noise), params)
    x = numbers(2, 4, 6)
    expected = layer.predict(params, state, x)
    assert np.abs(expected - layer.predict(*drawn(layer, (4, 6)), x)).max() > 0.01
    memory = layer.begin(params, state, x[:, :1], 4)
    for time in range(4):
        step = x[:, time : time + 1]
        y, memory = layer.advance(params, state, memory, step)
        np.testing.assert_allclose(y[:, 0], expected[:, time], rtol=1e-10)


def test_a_trained_layer_is_adapted_by_the_state_around_it(backend):
    x = numbers(4, 3, dtype="float32")
    params, state = drawn(nn.Dense(2), (3,), seed=7, dtype="float32")
    lora = nn.LoRA(nn.Dense(2), 1)
    trainer = nn.Trainer(lora, nn.huber, nn.SGD(0.1), backend=backend, shape=(3,))
    trainer.state = lora.around(params, state)
    y = nn.Dense(2).predict(params, state, x)
    np.testing.assert_allclose(trainer.predict(x), y, rtol=1e-5, atol=1e-6)


def test_adapters_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="matches 'kernel' of leaves; there are"):
        drawn(nn.LoRA(nn.Dense(2), 1, leaves=("kernel",)), (3,))
    with pytest.raises(ValueError, match=r"two axes, but bias is \(2,\): leave it"):
        drawn(nn.LoRA(nn.Dense(2), 1, leaves=("bias",)), (3,))
    with pytest.raises(ValueError, match="WeightNorm matches 'weight'"):
        drawn(nn.WeightNorm(nn.Tanh()), (3,))
    for wrong in ({"rank": 0}, {"rank": 2, "scale": 0.0}):
        with pytest.raises(ValueError, match=r"rank|scale"):
            nn.LoRA(nn.Dense(2), **wrong)
    with pytest.raises(TypeError, match="leaves to be a tuple of paths"):
        nn.LoRA(nn.Dense(2), 1, leaves="weight")


def test_a_summary_counts_adapted_weights_as_frozen_and_normed_ones_once():
    model = nn.Sequential(nn.LoRA(nn.Dense(5), 2), nn.WeightNorm(nn.Dense(3)))
    table = summarize(model, *drawn(model, (4,)), (4,), "float64", 2)
    counts = {row.path: [0, 0] for row in table.rows}
    for row in table.rows:
        counts[row.path][0] += row.parameters
        counts[row.path][1] += row.frozen
    # A and B; W and b. v, g and b
    assert counts == {"0": [4 * 2 + 2 * 5, 4 * 5 + 5], "1": [5 * 3 + 3 + 3, 0]}


# --- WeightNorm -----------------------------------------------------------------------


def test_a_normed_weight_has_the_length_of_its_scale():
    layer = nn.WeightNorm(nn.Conv1D(4, 3))
    params, state = drawn(layer, (6, 2))
    x = numbers(3, 6, 2)
    inner, _ = drawn(nn.Conv1D(4, 3), (6, 2))
    plain = nn.Conv1D(4, 3).predict(inner, {}, x)
    np.testing.assert_allclose(layer.predict(params, state, x), plain, rtol=1e-12)
    parts = params["weight"]
    longer = {"direction": 3.0 * parts["direction"], "scale": numbers(4)}
    merged = layer.merged({**params, "weight": longer})
    lengths = np.sqrt((merged["weight"] ** 2).sum(axis=(0, 1)))
    np.testing.assert_allclose(lengths, np.abs(longer["scale"]), rtol=1e-12)
    again = layer.split(merged)["weight"]["scale"]
    np.testing.assert_allclose(again, np.abs(longer["scale"]), rtol=1e-12)


def test_the_gradient_of_a_direction_is_orthogonal_to_it(backend):
    layer = nn.WeightNorm(nn.Dense(4))
    params, state = backend.asarray(drawn(layer, (3,), dtype="float32"))
    drawn_dy = numbers(5, 4, dtype="float32", seed=1)
    x, dy = backend.asarray((numbers(5, 3, dtype="float32"), drawn_dy))

    def grads_of(params, state, x, dy):
        _, _, cache = layer.forward(params, state, x, train=True)
        return layer.backward(params, cache, dy)[1]

    grads = backend.to_numpy(backend.jit(grads_of)(params, state, x, dy))
    direction = backend.to_numpy(params)["weight"]["direction"]
    along = (grads["weight"]["direction"] * direction).sum(axis=0)
    assert np.abs(grads["weight"]["direction"]).min() > 1e-3
    np.testing.assert_allclose(along, np.zeros(4), atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_the_norm_of_a_direction_neither_overflows_nor_divides_by_zero(size):
    layer = nn.WeightNorm(nn.Dense(2, bias=False))
    direction = np.asarray([[size, 1.0], [size, 2.0]], "float32")
    params = {"weight": {"direction": direction, "scale": np.ones(2, "float32")}}
    weight = layer.merged(params)["weight"]
    expected = 0.0 if size == 0.0 else np.sqrt(0.5)
    np.testing.assert_allclose(weight[:, 0], [expected] * 2, rtol=1e-6)
    x = np.asarray([[1.0, 1.0]], "float32")
    _, _, cache = layer.forward(params, {}, x, train=True)
    _, grads = layer.backward(params, cache, np.ones((1, 2), "float32"))
    assert all(np.isfinite(leaf).all() for leaf in leaves(grads))
    expected = 0.0 if size == 0.0 else np.sqrt(2.0)
    assert grads["weight"]["scale"][0] == pytest.approx(expected, rel=1e-6)


def test_a_scale_is_not_decayed_and_a_custom_pair_is_not_normalized():
    layer = nn.WeightNorm(nn.Dense(2))
    params, _ = drawn(layer, (3,))
    zero = tree_map(np.zeros_like, params)
    rule = nn.AdamW(0.1, weight_decay=0.5)
    moved, _ = rule.update(params, zero, rule.init(params))
    weight, after = params["weight"], moved["weight"]
    np.testing.assert_array_equal(after["scale"], weight["scale"])
    assert (after["direction"] != weight["direction"]).all()
    pair = {"direction": numbers(2), "scale": numbers(2)}
    assert layer.merged((pair, params))[0] is not pair
    assert layer.merged((pair, params))[0]["scale"] is pair["scale"]
