"""Keras on JAX.

A step follows its guide "Writing a training loop from scratch in JAX", with the old
state donated. An epoch is `fit`, also with all steps in one call, which its
documentation advises for small models. Weights have our layout, except that attention
has an axis of heads.
"""

import os
from importlib.metadata import version

from ..workloads import DECAY, EPOCH
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

_AT_ONCE = ", 100 steps at once"
NAMES = ("keras-jax", f"keras-jax{_AT_ONCE}")


def make(name, workload):
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import jax  # noqa: F401
        import keras  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"Keras on JAX cannot be imported: {error}") from error
    if name.endswith(_AT_ONCE) and workload.name != "tiny":
        raise Unavailable("differs in `fit` only, which is measured on `tiny`")
    models = {
        "mlp": _layers,
        "tiny": _layers,
        "cnn": _cnn,
        "lstm": _lstm,
        "transformer": _transformer,
        "wide": _layers,
    }
    at_once = EPOCH // workload.batch if name.endswith(_AT_ONCE) else 1
    return _Keras(models[workload.name](workload), workload, at_once)


def versions():
    return {library: version(library) for library in ("keras", "jax")}


class _Keras(Contender):
    def __init__(self, model, workload, at_once):
        import jax
        import keras

        optimizer = {
            "adam": lambda: keras.optimizers.Adam(workload.rate, epsilon=1e-8),
            "adamw": lambda: keras.optimizers.AdamW(workload.rate, DECAY, epsilon=1e-8),
            "sgd": lambda: keras.optimizers.SGD(workload.rate),
        }[workload.rule]()
        if workload.rule == "adamw":
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        optimizer.build(model.trainable_variables)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        loss = keras.losses.MeanSquaredError() if workload.name == "wide" else loss
        model.compile(optimizer, loss, steps_per_execution=at_once)

        def loss_of(params, others, x, target):
            y, others = model.stateless_call(params, others, x, training=True)
            return loss(target, y), others

        def train(state, x, target):
            params, others, moments = state
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (value, others), grads = gradient(params, others, x, target)
            params, moments = optimizer.stateless_apply(moments, grads, params)
            return (params, others, moments), value

        self.train = jax.jit(train, donate_argnums=0)
        # copies, because `fit` and `predict_on_batch` use the variables of the model,
        # which a donation would delete
        variables = (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
        self.state = tuple(
            [jax.numpy.copy(v.value) for v in some] for some in variables
        )
        self.batches = jax.device_put(workload.batches())
        self.examples = workload.examples(EPOCH) if workload.name == "tiny" else None
        self.model, self.workload = model, workload
        self.row = self.batches[0][0][:1]
        self.value = None

    def step(self, i):
        self.state, self.value = self.train(
            self.state, *self.batches[i % len(self.batches)]
        )

    def wait(self):
        self.value.block_until_ready()

    def loss(self):
        return float(self.value)

    def epoch(self):
        self.model.fit(*self.examples, batch_size=self.workload.batch, verbose=0)

    def predict(self):
        self.model.predict_on_batch(self.row)


def _layers(workload):
    import keras

    numbers = workload.parameters()
    paths = [name.removesuffix("weight") for name in numbers if name.endswith("weight")]
    widths = [len(numbers[f"{path}bias"]) for path in paths]
    hidden = [keras.layers.Dense(width, activation="relu") for width in widths[:-1]]
    model = keras.Sequential(
        [keras.Input(workload.shape), *hidden, keras.layers.Dense(widths[-1])]
    )
    model.set_weights(
        [numbers[f"{path}{kind}"] for path in paths for kind in ("weight", "bias")]
    )
    return model


def _cnn(workload):
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input(workload.shape),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    numbers = workload.parameters()
    model.set_weights(
        [numbers[f"{i}.{kind}"] for i in (0, 3, 7) for kind in ("weight", "bias")]
    )
    return model


def _lstm(workload):
    import keras

    numbers = workload.parameters()
    cell = [numbers[f"0.0.forward.{name}"] for name in ("weight", "recurrent", "bias")]
    lstm, dense = (
        keras.layers.LSTM(len(cell[1])),
        keras.layers.Dense(len(numbers["1.bias"])),
    )
    model = keras.Sequential([keras.Input(workload.shape), lstm, dense])
    model.set_weights([*cell, numbers["1.weight"], numbers["1.bias"]])
    return model


def _transformer(workload):
    import keras
    from keras import layers

    class Positions(layers.Layer):
        def build(self, shape):
            self.weight = self.add_weight(shape=shape[1:], name="weight")

        def call(self, x):
            return x + self.weight

    def norm(x):
        return layers.LayerNormalization(epsilon=1e-5)(x)

    numbers = workload.parameters()
    heads = workload.model.layers[2].attention.heads
    count, width = numbers["0.weight"].shape
    hidden = len(numbers["2.feed.0.bias"])
    arguments = keras.Input(workload.shape, dtype="int32")
    x = Positions()(layers.Embedding(count, width)(arguments))
    order = ["0.weight", "1.weight"]
    for i in (2, 3):
        normal = norm(x)
        attention = layers.MultiHeadAttention(heads, width // heads)
        x = x + attention(normal, normal, use_causal_mask=True)
        feed = layers.Dense(hidden, activation=_exact_gelu)(norm(x))
        x = x + layers.Dense(width)(feed)
        order += [f"{i}.attention_norm.scale", f"{i}.attention_norm.bias"]
        for part in (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.output",
        ):
            order += [f"{i}.{part}.weight", f"{i}.{part}.bias"]
        order += [f"{i}.feed_norm.scale", f"{i}.feed_norm.bias"]
        for part in ("feed.0", "feed.2"):
            order += [f"{i}.{part}.weight", f"{i}.{part}.bias"]
    model = keras.Model(arguments, layers.Dense(count)(norm(x)))
    order += ["4.scale", "4.bias", "5.weight", "5.bias"]
    shapes = [variable.shape for variable in model.weights]
    ours = [
        numbers[name].reshape(shape) for name, shape in zip(order, shapes, strict=True)
    ]
    model.set_weights(ours)
    return model


def _exact_gelu(x):
    import keras

    return keras.activations.gelu(x, approximate=False)
