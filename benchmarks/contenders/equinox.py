"""Equinox, with Optax.

Layers take one example, and `vmap` maps them over the batch; weights are (out, in) and
images channels first. Between steps the trained arrays are a flat list, which is
donated to the next step, as its documentation advises under "Low-overhead training
loops".
"""

from importlib.metadata import version

from ..workloads import DECAY
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

NAMES = ("equinox",)


def make(name, workload):
    try:
        import equinox  # noqa: F401
        import optax  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"Equinox and Optax cannot be imported: {error}") from error
    models = {
        "mlp": _layers,
        "tiny": _layers,
        "cnn": _cnn,
        "lstm": _lstm,
        "transformer": _transformer,
        "wide": lambda workload: _linear(workload.parameters(), ""),
    }
    return _Equinox(models[workload.name](workload), workload)


def versions():
    return {library: version(library) for library in ("equinox", "optax", "jax")}


class _Equinox(Contender):
    def __init__(self, model, workload):
        import equinox as eqx
        import jax
        import optax

        params, static = eqx.partition(model, eqx.is_inexact_array)
        matrices = jax.tree.map(lambda p: p.ndim > 1, params)
        optimizer = {
            "adam": optax.adam(workload.rate),
            "adamw": optax.adamw(workload.rate, weight_decay=DECAY, mask=matrices),
            "sgd": optax.sgd(workload.rate),
        }[workload.rule]
        self.flat, structure = jax.tree.flatten((params, optimizer.init(params)))

        def forward(params, x):
            return jax.vmap(eqx.combine(params, static))(x)

        def loss_of(params, x, target):
            y = forward(params, x)
            if target.dtype == y.dtype:
                return jax.numpy.mean((y - target) ** 2)
            return optax.softmax_cross_entropy_with_integer_labels(y, target).mean()

        def train(flat, x, target):
            params, moments = jax.tree.unflatten(structure, flat)
            loss, grads = jax.value_and_grad(loss_of)(params, x, target)
            updates, moments = optimizer.update(grads, moments, params)
            return jax.tree.leaves((eqx.apply_updates(params, updates), moments)), loss

        def predict(flat, x):
            return forward(jax.tree.unflatten(structure, flat)[0], x)

        self.train, self.forward = jax.jit(train, donate_argnums=0), jax.jit(predict)
        batches = workload.batches()
        if workload.name == "cnn":
            batches = [(x.transpose(0, 3, 1, 2), target) for x, target in batches]
        self.batches = jax.device_put(batches)
        self.row = self.batches[0][0][:1]
        self.value = None

    def step(self, i):
        self.flat, self.value = self.train(
            self.flat, *self.batches[i % len(self.batches)]
        )

    def wait(self):
        self.value.block_until_ready()

    def loss(self):
        return float(self.value)

    def predict(self):
        self.forward(self.flat, self.row).block_until_ready()


def _filled(layer, **numbers):
    """Return `layer` with our weights."""
    import equinox as eqx
    import jax

    return eqx.tree_at(
        lambda layer: [getattr(layer, name) for name in numbers],
        layer,
        jax.tree.map(jax.numpy.asarray, list(numbers.values())),
    )


def _key():
    import jax

    return jax.random.key(0)


def _linear(numbers, path):
    import equinox as eqx

    weight, bias = numbers[f"{path}weight"], numbers[f"{path}bias"]
    return _filled(eqx.nn.Linear(*weight.shape, key=_key()), weight=weight.T, bias=bias)


def _layers(workload):
    import equinox as eqx
    import jax

    numbers = workload.parameters()
    relu = eqx.nn.Lambda(jax.nn.relu)
    first, second, last = (_linear(numbers, f"{i}.") for i in (0, 2, 4))
    return eqx.nn.Sequential([first, relu, second, relu, last])


def _cnn(workload):
    import equinox as eqx
    import jax

    numbers = workload.parameters()

    def convolution(path):
        weight, bias = numbers[f"{path}weight"], numbers[f"{path}bias"]
        layer = eqx.nn.Conv2d(*weight.shape[2:], 3, padding="SAME", key=_key())
        return _filled(
            layer, weight=weight.transpose(3, 2, 0, 1), bias=bias[:, None, None]
        )

    relu, pool = eqx.nn.Lambda(jax.nn.relu), eqx.nn.MaxPool2d(2, 2)
    dense = _linear(numbers, "7.")
    rows = dense.weight.reshape(10, 7, 7, 32).transpose(0, 3, 1, 2)
    dense = _filled(dense, weight=rows.reshape(10, -1))
    flatten = eqx.nn.Lambda(jax.numpy.ravel)
    first, second = convolution("0."), convolution("3.")
    return eqx.nn.Sequential([first, relu, pool, second, relu, pool, flatten, dense])


def _lstm(workload):
    import equinox as eqx
    import jax

    class Reader(eqx.Module):
        cell: eqx.nn.LSTMCell
        dense: eqx.nn.Linear

        def __call__(self, x):
            start = (jax.numpy.zeros(self.cell.hidden_size),) * 2
            (h, _), _ = jax.lax.scan(
                lambda state, now: (self.cell(now, state), None), start, x
            )
            return self.dense(h)

    numbers = workload.parameters()
    weight, recurrent, bias = (
        numbers[f"0.0.forward.{name}"] for name in ("weight", "recurrent", "bias")
    )
    cell = eqx.nn.LSTMCell(len(weight), len(recurrent), key=_key())
    cell = _filled(cell, weight_ih=weight.T, weight_hh=recurrent.T, bias=bias)
    return Reader(cell, _linear(numbers, "1."))


def _transformer(workload):
    import equinox as eqx
    import jax

    class Block(eqx.Module):
        attention_norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        feed_norm: eqx.nn.LayerNorm
        expand: eqx.nn.Linear
        shrink: eqx.nn.Linear

        def __call__(self, x):
            causal = jax.numpy.tri(len(x), dtype=bool)
            normal = jax.vmap(self.attention_norm)(x)
            x = x + self.attention(normal, normal, normal, causal)
            hidden = jax.vmap(self.expand)(jax.vmap(self.feed_norm)(x))
            return x + jax.vmap(self.shrink)(jax.nn.gelu(hidden, approximate=False))

    class Reader(eqx.Module):
        symbols: eqx.nn.Embedding
        positions: jax.Array
        blocks: list[Block]
        norm: eqx.nn.LayerNorm
        dense: eqx.nn.Linear

        def __call__(self, x):
            x = jax.vmap(self.symbols)(x) + self.positions[: len(x)]
            for block in self.blocks:
                x = block(x)
            return jax.vmap(self.dense)(jax.vmap(self.norm)(x))

    numbers = workload.parameters()
    heads = workload.model.layers[2].attention.heads

    def norm(path):
        scale, bias = numbers[f"{path}scale"], numbers[f"{path}bias"]
        return _filled(eqx.nn.LayerNorm(len(scale)), weight=scale, bias=bias)

    def block(path):
        parts = {
            f"{name}_proj": _linear(numbers, f"{path}attention.{name}.")
            for name in ("query", "key", "value", "output")
        }
        width = parts["query_proj"].in_features
        attention = eqx.nn.MultiheadAttention(heads, width, key=_key())
        attention = eqx.tree_at(
            lambda layer: [getattr(layer, name) for name in parts],
            attention,
            list(parts.values()),
        )
        feed = _linear(numbers, f"{path}feed.0."), _linear(numbers, f"{path}feed.2.")
        return Block(
            norm(f"{path}attention_norm."), attention, norm(f"{path}feed_norm."), *feed
        )

    return Reader(
        eqx.nn.Embedding(weight=jax.numpy.asarray(numbers["0.weight"])),
        jax.numpy.asarray(numbers["1.weight"]),
        [block("2."), block("3.")],
        norm("4."),
        _linear(numbers, "5."),
    )
