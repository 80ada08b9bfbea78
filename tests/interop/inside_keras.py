"""Checks of `interop.keras_layer` on one backend of Keras: see test_keras_layer.py."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import interop

X = np.random.default_rng(0).standard_normal((96, 6, 6, 1), dtype=np.float32)
LABELS = (X.mean(axis=(1, 2, 3)) > 0).astype(int)
INNER = nn.Sequential(
    nn.Conv2D(4, 3), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.GlobalAveragePool()
)


def values(layer):
    """Return the weights of a Keras layer as NumPy arrays, by name."""
    return {w.name: keras.ops.convert_to_numpy(w) for w in layer.weights}


def model(layer, shape=(6, 6, 1)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(2)(layer(inputs)))


def check_gradients():
    """A step of SGD equals that of our Trainer, so the gradients do."""
    layer = nn.Sequential(nn.Dense(5), nn.BatchNorm(), nn.Tanh(), nn.Dense(2))
    x = X.reshape(96, 36)
    target = x[:, :2]
    trainer = nn.Trainer(
        layer, nn.mean_squared_error, nn.SGD(0.1), backend="numpy", seed=3, shape=(36,)
    )
    inside = interop.keras_layer(layer, seed=3)
    outer = keras.Sequential([keras.Input((36,)), inside])
    outer.compile(keras.optimizers.SGD(0.1), "mse")
    for _ in range(3):
        trainer.step(x, target)
        outer.train_on_batch(x, target)
    ours = dict(
        nn.trees.named_leaves({"params": trainer.params, "state": trainer.state})
    )
    theirs = values(inside)
    ours = {name.replace(".", "_"): leaf for name, leaf in ours.items()}
    assert ours.keys() == theirs.keys(), (sorted(ours), sorted(theirs))
    for name, leaf in ours.items():
        np.testing.assert_allclose(
            theirs[name], leaf, rtol=2e-4, atol=1e-5, err_msg=name
        )
    predicted = outer.predict(x, verbose=0)
    np.testing.assert_allclose(predicted, trainer.predict(x), rtol=1e-3, atol=1e-4)
    print("gradients")


def check_training_and_files(folder):
    layer = interop.keras_layer(INNER, name="ours")
    fitted = model(layer)
    assert len(layer.trainable_weights) == 4
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fitted.compile(keras.optimizers.Adam(0.05), loss)
    before = values(layer)
    losses = fitted.fit(X, LABELS, epochs=8, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0], losses
    after = values(layer)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    unchanged = set(before) - changed
    assert not unchanged, f"weights, running statistics and the key change: {unchanged}"
    print("trained")

    path = folder / "model.keras"
    fitted.save(path)
    loaded = keras.saving.load_model(path)
    inside = loaded.get_layer("ours")
    assert inside.get_config() == layer.get_config()
    for name, value in values(inside).items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    expected = fitted.predict(X, verbose=0)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), expected, rtol=1e-6)
    loaded.fit(X, LABELS, epochs=1, verbose=0)
    print("loaded")

    first = np.asarray(keras.ops.convert_to_numpy(layer(X, training=True)))
    second = np.asarray(keras.ops.convert_to_numpy(layer(X, training=True)))
    assert not np.array_equal(first, second), "the same masks twice"
    before_prediction = values(layer)
    layer(X, training=False)
    layer(X)
    for name, value in values(layer).items():
        np.testing.assert_array_equal(value, before_prediction[name])
    print("state")


def check_shapes():
    layer = interop.keras_layer(nn.Sequential(nn.LSTM(3), nn.Dense(2)))
    inputs = keras.Input((None, 4))
    outputs = layer(inputs)
    assert outputs.shape == (None, None, 2)
    assert layer.compute_output_shape((7, None, 4)) == (7, None, 2)
    assert layer.compute_output_shape((None, 5, 4)) == (None, 5, 2)
    recurrent = keras.Model(inputs, outputs)
    for steps in (3, 5):
        x = np.ones((2, steps, 4), "f4")
        assert recurrent.predict(x, verbose=0).shape == (2, steps, 2)
    both = interop.keras_layer(
        nn.Graph(sum=(nn.Add(), ("a", "b")), y=(nn.Dense(2), "sum"), outputs="y")
    )
    parts = {name: keras.Input((3,), name=name) for name in ("a", "b")}
    added = keras.Model(parts, both(parts))
    x = {name: np.ones((5, 3), "f4") for name in parts}
    assert added.predict(x, verbose=0).shape == (5, 2)
    print("shapes")


def check_refusals():
    for options, words in (
        ({"layer": keras.layers.Dense(2)}, "keras_layer takes a layer"),
        ({"layer": nn.Dense(2), "dtype": "mixed_bfloat16"}, "nn.MixedPrecision"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            interop.keras_layer(**options)(np.ones((2, 3), "f4"))
    print("refused")


if __name__ == "__main__":
    check_gradients()
    check_training_and_files(Path(sys.argv[1]))
    check_shapes()
    check_refusals()
