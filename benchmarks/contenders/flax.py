"""Flax NNX, with Optax.

As advised in its "Performance considerations", the training loop is functional: model
and optimizer are split into structure and arrays, merged inside `jax.jit`, and the
arrays are donated to the next step. Weights have our layout, except that an LSTM cell
is a pair of layers and attention has an axis of heads.
"""

from functools import partial
from importlib.metadata import version

from ..workloads import DECAY
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

NAMES = ("flax-nnx",)


def make(name, workload):
    try:
        import optax  # noqa: F401
        from flax import nnx  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"Flax and Optax cannot be imported: {error}") from error
    models = {
        "mlp": _layers,
        "tiny": _layers,
        "cnn": _cnn,
        "lstm": _lstm,
        "transformer": _transformer,
        "wide": lambda workload: _linear(workload.parameters(), ""),
    }
    return _Flax(models[workload.name](workload), workload)


def versions():
    return {library: version(library) for library in ("flax", "optax", "jax")}


class _Flax(Contender):
    def __init__(self, model, workload):
        import jax
        import optax
        from flax import nnx

        rule = {
            "adam": optax.adam(workload.rate),
            "adamw": optax.adamw(workload.rate, weight_decay=DECAY, mask=_matrices),
            "sgd": optax.sgd(workload.rate),
        }[workload.rule]
        definition, state = nnx.split(
            (model, nnx.Optimizer(model, rule, wrt=nnx.Param))
        )
        self.state = nnx.as_pure(state)

        def loss_of(model, x, target):
            y = model(x)
            if target.dtype == y.dtype:
                return jax.numpy.mean((y - target) ** 2)
            return optax.softmax_cross_entropy_with_integer_labels(y, target).mean()

        def train(state, x, target):
            model, optimizer = nnx.merge(definition, state)
            loss, grads = nnx.value_and_grad(loss_of)(model, x, target)
            optimizer.update(model, grads)
            return nnx.as_pure(nnx.state((model, optimizer))), loss

        def forward(state, x):
            model, _ = nnx.merge(definition, state)
            return model(x)

        self.train, self.forward = jax.jit(train, donate_argnums=0), jax.jit(forward)
        self.batches = jax.device_put(workload.batches())
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

    def predict(self):
        self.forward(self.state, self.row).block_until_ready()


def _matrices(params):
    """Return which parameters decay; by name, since biases of attention have 2 axes."""
    import jax

    def decays(path, _):
        return not any(name in jax.tree_util.keystr(path) for name in ("bias", "scale"))

    return jax.tree_util.tree_map_with_path(decays, params)


def _filled(layer, **numbers):
    """Return `layer` with our weights."""
    for name, value in numbers.items():
        variable = getattr(layer, name)
        variable[...] = value.reshape(variable.shape)
    return layer


def _rngs():
    from flax import nnx

    return nnx.Rngs(0)


def _linear(numbers, path):
    from flax import nnx

    weight, bias = numbers[f"{path}weight"], numbers[f"{path}bias"]
    return _filled(nnx.Linear(*weight.shape, rngs=_rngs()), kernel=weight, bias=bias)


def _layers(workload):
    from flax import nnx

    numbers = workload.parameters()
    first, second, last = (_linear(numbers, f"{i}.") for i in (0, 2, 4))
    return nnx.Sequential(first, nnx.relu, second, nnx.relu, last)


def _cnn(workload):
    from flax import nnx

    numbers = workload.parameters()

    def convolution(path):
        weight, bias = numbers[f"{path}weight"], numbers[f"{path}bias"]
        layer = nnx.Conv(*weight.shape[2:], (3, 3), padding="SAME", rngs=_rngs())
        return _filled(layer, kernel=weight, bias=bias)

    def flatten(x):
        return x.reshape(len(x), -1)

    pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
    first, second, dense = convolution("0."), convolution("3."), _linear(numbers, "7.")
    return nnx.Sequential(first, nnx.relu, pool, second, nnx.relu, pool, flatten, dense)


def _lstm(workload):
    from flax import nnx

    class Reader(nnx.Module):
        def __init__(self, cell, dense):
            self.lstm, self.dense = nnx.RNN(cell, return_carry=True), dense

        def __call__(self, x):
            (_, h), _ = self.lstm(x)
            return self.dense(h)

    numbers = workload.parameters()
    weight, recurrent, bias = (
        numbers[f"0.0.forward.{name}"] for name in ("weight", "recurrent", "bias")
    )
    cell = nnx.OptimizedLSTMCell(len(weight), len(recurrent), rngs=_rngs())
    _filled(cell.dense_i, kernel=weight)
    _filled(cell.dense_h, kernel=recurrent, bias=bias)
    return Reader(cell, _linear(numbers, "1."))


def _transformer(workload):
    import jax
    from flax import nnx

    numbers = workload.parameters()
    heads = workload.model.layers[2].attention.heads
    count, width = numbers["0.weight"].shape

    def norm(path):
        scale, bias = numbers[f"{path}scale"], numbers[f"{path}bias"]
        layer = nnx.LayerNorm(len(scale), epsilon=1e-5, rngs=_rngs())
        return _filled(layer, scale=scale, bias=bias)

    class Block(nnx.Module):
        def __init__(self, path):
            self.attention_norm = norm(f"{path}attention_norm.")
            self.feed_norm = norm(f"{path}feed_norm.")
            self.attention = nnx.MultiHeadAttention(
                heads, width, decode=False, rngs=_rngs()
            )
            parts = {"query": "query", "key": "key", "value": "value", "out": "output"}
            for own, ours in parts.items():
                weight, bias = (
                    numbers[f"{path}attention.{ours}.{n}"] for n in ("weight", "bias")
                )
                _filled(getattr(self.attention, own), kernel=weight, bias=bias)
            self.expand = _linear(numbers, f"{path}feed.0.")
            self.shrink = _linear(numbers, f"{path}feed.2.")

        def __call__(self, x):
            x = x + self.attention(self.attention_norm(x), is_causal=True)
            hidden = self.expand(self.feed_norm(x))
            return x + self.shrink(nnx.gelu(hidden, approximate=False))

    class Reader(nnx.Module):
        def __init__(self):
            table = nnx.Embed(count, width, rngs=_rngs())
            self.symbols = _filled(table, embedding=numbers["0.weight"])
            self.positions = nnx.Param(jax.numpy.asarray(numbers["1.weight"]))
            self.blocks = nnx.List([Block("2."), Block("3.")])
            self.norm, self.dense = norm("4."), _linear(numbers, "5.")

        def __call__(self, x):
            x = self.symbols(x) + self.positions[: x.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.dense(self.norm(x))

    return Reader()
