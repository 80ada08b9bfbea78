"""`Pretrained`: layers that start from given weights, and the builder of graphs."""

import pickle

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core import random
from agnostic_nn.core.arrays import namespace
from agnostic_nn.interop import Pretrained
from agnostic_nn.interop.building import BATCH, GraphBuilder
from agnostic_nn.interop.pretrained import Weights

HOST = namespace(np.zeros(()))
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 4))
BIAS = RNG.normal(size=4)


def dense():
    return Pretrained(nn.Dense(4), {"weight": WEIGHT, "bias": BIAS})


def start(model, shape, dtype="float64"):
    """Return params and state on NumPy."""
    key = random.key(0, xp=HOST)
    return model.init(key, shape, np.dtype(dtype))[:2]


def run(model, x):
    """Return y, and the gradient of its sum with respect to x, on NumPy."""
    shape = (
        {k: v.shape[1:] for k, v in x.items()} if isinstance(x, dict) else x.shape[1:]
    )
    params, state = start(model, shape)
    y, _, cache = model.forward(params, state, x, train=True)
    return y, model.backward(params, cache, np.ones_like(y))


def test_training_starts_from_the_given_weights(backend):
    model = nn.Sequential(dense(), nn.Dense(2))
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.1), backend=backend, seed=0
    )
    trainer.build((3,))
    weights = backend.to_numpy(trainer.params[0])
    np.testing.assert_array_equal(weights["weight"], WEIGHT.astype("float32"))
    np.testing.assert_array_equal(weights["bias"], BIAS.astype("float32"))


def test_a_step_does_not_change_the_given_weights(backend):
    model = dense()
    before = model.params.digest
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.1), backend=backend, seed=0
    )
    trainer.step(np.ones((2, 3), "float32"), np.ones((2, 4), "float32"))
    now = {name: leaf.copy() for name, leaf in model.params.tree.items()}
    assert Weights(now).digest == before


def test_state_that_is_not_given_starts_as_that_of_the_layer():
    layer = nn.Sequential(nn.BatchNorm(), nn.Dropout(0.5))
    params = ({"scale": np.ones(3), "bias": np.zeros(3)}, {})
    mean = np.arange(3.0)
    model = Pretrained(layer, params, ({"mean": mean}, {}))
    state = start(model, (3,))[1]
    np.testing.assert_array_equal(state[0]["mean"], mean)
    np.testing.assert_array_equal(state[0]["variance"], np.ones(3))
    expected = start(layer, (3,))[1]
    np.testing.assert_array_equal(state[1]["key"], expected[1]["key"])


def test_models_with_equal_weights_are_equal_and_others_are_not():
    other = Pretrained(nn.Dense(4), {"weight": WEIGHT + 1e-12, "bias": BIAS})
    assert dense() == dense() == pickle.loads(pickle.dumps(dense()))
    assert hash(dense()) == hash(dense())
    assert dense() != other
    assert len(repr(dense())) < 80


def test_weights_are_copied():
    weight = WEIGHT.copy()
    model = Pretrained(nn.Dense(4), {"weight": weight, "bias": BIAS})
    weight[:] = 0.0
    assert model == dense()


def test_a_checkpoint_is_loaded_without_the_given_weights(tmp_path):
    model = dense()
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.1), backend="numpy", seed=0
    )
    x = np.ones((2, 3), "float32")
    trainer.step(x, np.ones((2, 4), "float32"))
    path = tmp_path / "dense.safetensors"
    trainer.save(path)
    loaded = nn.Trainer.load(path, backend="numpy")
    assert loaded.model == nn.Dense(4)
    np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))
    again = nn.Trainer.load(path, model=model, backend="numpy")
    np.testing.assert_array_equal(again.predict(x), trainer.predict(x))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weight": WEIGHT}, "the weights lack bias"),
        (
            {"weight": WEIGHT.T, "bias": BIAS},
            r"have params weight of shape \(4, 3\), but the layer needs \(3, 4\)",
        ),
        (
            {"weight": WEIGHT, "bias": BIAS, "gain": BIAS},
            r"have the params \['gain'\], but the layer has \['bias', 'weight'\]",
        ),
        (
            {"weight": WEIGHT, "bias": np.arange(4)},
            "params bias of int64, but the layer needs float64",
        ),
    ],
    ids=["missing", "shape", "unknown", "dtype"],
)
def test_weights_that_do_not_fit_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        start(Pretrained(nn.Dense(4), params), (3,))


def test_weights_that_are_not_numbers_are_refused():
    with pytest.raises(TypeError, match="expected an array of numbers, got one of <U1"):
        Pretrained(nn.Dense(1), {"weight": np.asarray(["a"])})


# --- the builder ----------------------------------------------------------------------


def convolution(builder, name, x, width):
    weight = RNG.normal(size=(3, 3, x.shape[1], width))
    layer = nn.Conv2D(width, 3, padding=1, bias=False)
    return builder.channels_last(name, layer, x, params={"weight": weight})


def test_a_network_of_convolutions_is_transposed_once():
    builder = GraphBuilder()
    x = builder.input("image", (BATCH, 3, 6, 6))
    y = builder.same_layout("relu", nn.ReLU(), convolution(builder, "a.conv", x, 4))
    z = builder.same_layout("sum", nn.Add(), convolution(builder, "b.conv", y, 4), y)
    z = builder.channels_last("pool", nn.AdaptiveAveragePool(1), z)
    z = builder.reshape(z, (BATCH, -1))
    assert z.shape == (BATCH, 4)
    model = builder.build(z)
    kinds = [type(layer).__name__ for _, (layer, _, *_) in model.layer.nodes]
    assert kinds.count("Transpose") == 1
    assert [name for name, _ in model.layer.nodes if "conv" in name] == [
        "a_conv",
        "b_conv",
    ]


def test_axes_may_be_permuted_merged_and_split_around_the_batch():
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 6, 8))
    q = builder.permute(x, (1, 0, 2))
    q = builder.reshape(q, (6, BATCH * 2, 4))  # time, batch · heads, width
    q = builder.permute(q, (1, 0, 2))
    q = builder.same_layout("tanh", nn.Tanh(), q)
    q = builder.permute(builder.reshape(q, (BATCH, 2, 6, 4)), (2, 0, 1, 3))
    q = builder.reshape(q, (BATCH * 6, 8))
    q = builder.last_axis("norm", nn.LayerNorm(scale=False, bias=False), q)
    y = builder.permute(builder.reshape(q, (6, BATCH, 8)), (1, 0, 2))
    data = RNG.normal(size=(3, 6, 8))
    expected = np.tanh(data)
    expected = expected - expected.mean(axis=-1, keepdims=True)
    expected /= np.sqrt((expected**2).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(run(builder.build(y), data)[0], expected)


def test_lengths_that_do_not_divide_are_flattened():
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 4, 6))
    y = builder.reshape(builder.permute(x, (0, 2, 1)), (BATCH, 8, 3))
    data = RNG.normal(size=(2, 4, 6))
    expected = data.transpose(0, 2, 1).reshape(2, 8, 3)
    np.testing.assert_array_equal(run(builder.build(y), data)[0], expected)
    with pytest.raises(ValueError, match=r"cannot reshape \(batch, 4, 6\) to \(7, 4\)"):
        builder.reshape(x, (7, 4))


def test_a_parameter_is_repeated_for_each_example():
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2, 3))
    token = builder.parameter("cls.token", WEIGHT[:2, :3])
    token = builder.expand_batch("expand", token)
    y = builder.same_layout("cat", nn.Concatenate(1), token, x)
    assert y.shape == (BATCH, 4, 3)
    model = builder.build(y)
    assert model.names == (("cls_token.value", "cls.token"),)
    data = RNG.normal(size=(5, 2, 3))
    y, (dx, grads) = run(model, data)
    np.testing.assert_array_equal(y[1], np.concatenate([WEIGHT[:2, :3], data[1]]))
    np.testing.assert_array_equal(dx, np.ones((5, 2, 3)))
    np.testing.assert_array_equal(grads["cls_token"]["value"], np.full((2, 3), 5.0))


def test_layers_with_the_same_source_share_its_parameter():
    builder = GraphBuilder()
    ids = builder.input("ids", (BATCH, 5), "integral")
    table = {"weight": RNG.normal(size=(7, 3))}
    source = {"weight": "wte.weight"}
    embedding = nn.Embedding(7, 3)
    h = builder.add("wte", embedding, ids, params=table, sources=source)
    out = nn.Unembedding(7)
    y = builder.last_axis("head", out, h, params=table, sources=source)
    model = builder.build(y)
    params = start(model, (5,))[0]
    assert list(params) == ["wte"]
    other = {"weight": np.zeros((3, 7))}
    with pytest.raises(ValueError, match=r"both use the parameter wte\.weight"):
        builder.last_axis(
            "proj", nn.Dense(7, bias=False), h, params=other, sources=source
        )


def test_a_weight_that_does_not_fit_is_refused_with_the_name_of_its_node():
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 3))
    with pytest.raises(ValueError, match=r"fc, Dense.*needs the params"):
        builder.last_axis("fc", nn.Dense(4), x, params={"weight": WEIGHT.T})


def test_an_output_needs_the_batch_first():
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 3, 4))
    with pytest.raises(ValueError, match=r"its batch at axis 1 of \(3, batch, 4\)"):
        builder.build(builder.permute(x, (1, 0, 2)))
    with pytest.raises(ValueError, match="input y needs the batch as its first axis"):
        builder.input("y", (3, BATCH))
