"""Blocks, graphs and layers that only move numbers."""

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace

from . import Case
from .regularization import OWN_MASK


def turned(x):
    return namespace(x).flip(x, axis=1)


def padded_and_doubled(x):
    xp = namespace(x)
    return xp.concat((x, xp.zeros_like(x[:, :1]), x), axis=1)


def dense(t, p, x):
    return t.nn.functional.linear(x, p["weight"].T, p.get("bias"))


def batch_norm(t, p, s, x, train):
    """y and the next state."""
    mean, variance = s["mean"].clone(), s["variance"].clone()
    y = t.nn.functional.batch_norm(x, mean, variance, p["scale"], p["bias"], train)
    return y, {"mean": mean, "variance": variance}


def nth(tree, i):
    """Return the parameters of the i-th layer of a Repeat."""
    return {name: leaf[i] for name, leaf in tree.items()}


def repeated(t, g):
    x, states = g.x, []
    for i in range(3):
        y, after = batch_norm(t, nth(g.params[0], i), nth(g.state[0], i), x, g.train)
        states.append(after)
        x = x + dense(t, nth(g.params[1], i), y)
    return x, ({k: t.stack([s[k] for s in states]) for k in states[0]}, {})


def gated(t, g):
    x = g.x["x"]
    for i in range(3):
        x = dense(t, nth(g.params["y"], i), x * g.x["gate"])
    return x


def recomputed(t, g):
    y, after = batch_norm(
        t, g.params[1], g.state[1], dense(t, g.params[0], g.x), g.train
    )
    return t.tanh(y), ({}, after, {})


def frozen(t, g):
    held = g.state[0]
    hidden = dense(t, held["params"][0], g.x)
    y, _ = batch_norm(t, held["params"][1], held["state"][1], hidden, False)
    return dense(t, g.params[1], t.tanh(y)), g.state


def diamond(t, g):
    a = dense(t, g.params["a"], g.x)
    c = a + t.tanh(a) + g.x
    return c * a * c


def shared(t, g):
    """BatchNorm used twice: the second use continues the statistics of the first."""
    first, p = g.state["norm"], g.params
    y, second = batch_norm(t, p["norm"], first, dense(t, p["a"], g.x), g.train)
    y, third = batch_norm(t, p["norm"], second, dense(t, p["a"], y), g.train)
    y = t.nn.functional.linear(y, p["a"]["weight"].T, p["a"]["bias"])
    return y, {"a": {}, "norm": third, "last": {}}


def tied(t, g):
    weight = g.params["embed"][0]["weight"]
    return t.tanh(weight[g.x.long()]) @ weight.T


def two_by_two(t, g):
    left = dense(t, g.params["left"], g.x["a"])
    right = t.tanh(g.x["b"])
    joined = t.cat((left, right, g.x["a"]), dim=-1)
    return {"both": joined, "sum": left + right}, g.state


def one_of_several(t, g):
    a = dense(t, g.params["several"][0], g.x)
    return (a * a, dense(t, g.params["last"], t.sigmoid(g.x))), g.state


def nested(t, g):
    x = g.x
    for i in range(2):
        h = dense(t, nth(g.params[0]["h"], i), x)
        x = t.tanh(h) * x + h
    return dense(t, g.params[1], x)


def norm_and_residual(t, g):
    first, norm, inner, last = g.params
    y, after = batch_norm(t, norm, g.state[1], dense(t, first, g.x), g.train)
    x = y + t.nn.functional.gelu(dense(t, inner[0], y))
    return dense(t, last, x), ({}, after, ({}, {}), {})


# --- twins of the examples ------------------------------------------------------------


def frozen_example(t, g):
    return t.tanh(dense(t, g.state["params"][0], g.x)), g.state


def graph_example(t, g):
    a = g.params["a"]
    return dense(t, a, t.tanh(dense(t, a, g.x)))


def repeat_example(t, g):
    x = g.x
    for i in range(2):
        x = x + t.tanh(dense(t, nth(g.params[0], i), x))
    return x


def residual_example(t, g):
    first, _, last = g.params
    return g.x + dense(t, last, t.tanh(dense(t, first, g.x)))


def sequential_example(t, g):
    first, (_, (second,)) = g.params
    return dense(t, second, t.tanh(dense(t, first, g.x)))


def adapted(t, g):
    """Dense with W + s A B, whose W and b are in the state."""
    held, weights = g.state["params"], g.params["weight"]
    weight = held["weight"] + g.layer.scale * weights["a"] @ weights["b"]
    return dense(t, {**held, "weight": weight}, g.x), g.state


def adapted_block(t, g):
    """Two adapted weights; the bias and the norm between them are constant."""
    held, (first, _, last) = g.state["params"], g.params
    weights = [
        layer["weight"] + 0.5 * adapter["weight"]["a"] @ adapter["weight"]["b"]
        for layer, adapter in ((held[0], first), (held[2], last))
    ]
    hidden = dense(t, {**held[0], "weight": weights[0]}, g.x)
    norm, state = held[1], g.state["state"]
    y, after = batch_norm(t, norm, state[1], hidden, g.train)
    y = dense(t, {**held[2], "weight": weights[1]}, y)
    return y, {"params": held, "state": (state[0], after, state[2])}


def weight_normed(t, g):
    weight = g.params["weight"]
    axes = tuple(range(weight["direction"].ndim - 1))
    norm = t.linalg.vector_norm(weight["direction"], dim=axes)
    w = weight["scale"] * weight["direction"] / norm
    return dense(t, {**g.params, "weight": w}, g.x)


def weight_normed_convolution(t, g):
    direction, scale = g.params["weight"]["direction"], g.params["weight"]["scale"]
    kernel = t._weight_norm(direction, scale.reshape(1, 1, -1), 2)
    kernel = kernel.permute(2, 1, 0)
    y = t.nn.functional.conv1d(g.x.permute(0, 2, 1), kernel, g.params["bias"])
    return y.permute(0, 2, 1)


TWINS = {
    nn.Add: lambda t, g: sum(g.x),
    nn.Concatenate: lambda t, g: t.cat(g.x, dim=g.layer.axis),
    nn.Flatten: lambda t, g: g.x.reshape(len(g.x), -1),
    nn.Freeze: frozen_example,
    nn.Graph: graph_example,
    nn.Identity: lambda t, g: g.x,
    nn.Lambda: lambda t, g: g.x[:, ::2],
    nn.LoRA: adapted,
    nn.MixedPrecision: lambda t, g: t.tanh(dense(t, g.params[0], g.x)),
    nn.Multiply: lambda t, g: t.stack(g.x).prod(0),
    nn.Parallel: lambda t, g: dense(t, g.params[0], g.x) + t.tanh(g.x),
    nn.Recompute: lambda t, g: t.tanh(dense(t, g.params[0], g.x)),
    nn.Repeat: repeat_example,
    nn.Reshape: lambda t, g: g.x.reshape(len(g.x), *g.layer.shape),
    nn.Residual: residual_example,
    nn.Sequential: sequential_example,
    nn.Transpose: lambda t, g: g.x.permute(0, *g.layer.axes),
    nn.WeightNorm: weight_normed,
}

# the cases below compile richer ones
COVERED = (nn.Concatenate, nn.Freeze, nn.Graph, nn.LoRA, nn.Parallel, nn.Recompute)
COVERED += (nn.Repeat, nn.WeightNorm)
LIMITS = {kind: {"thorough": True} for kind in (*COVERED, nn.Transpose)}

CHAIN = (nn.Dense(4), nn.BatchNorm(), nn.Tanh())

CASES = [
    Case(nn.Flatten(), ()),
    Case(nn.Reshape((2, 3)), (6,)),
    Case(nn.Transpose((2, 3, 1)), (5, 3, 2)),
    Case(nn.Multiply(), ((5,),), thorough=True),
    Case(nn.Concatenate(axis=1), ((5, 3), (2, 3), (1, 3))),
    Case(nn.Sequential(), (4,), lambda t, g: g.x),
    Case(
        nn.LoRA(nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Dense(2)), 1, scale=0.5),
        (3,),
        adapted_block,
        refuses=(0, 1),
    ),
    Case(nn.WeightNorm(nn.Conv1D(3, 2)), (5, 2), weight_normed_convolution),
    Case(
        nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Dense(2)),
        (3,),
        lambda t, g: dense(
            t, g.params[2], g.params[0]["weight"][g.x.long()].flatten(1)
        ),
    ),
    Case(
        nn.Sequential(
            nn.Dense(4),
            nn.BatchNorm(),
            nn.Residual(nn.Dense(4), nn.GELU()),
            nn.Dense(2),
        ),
        (3,),
        norm_and_residual,
        refuses=(0, 1),
    ),
    Case(
        nn.Sequential(
            nn.Dense(8),
            nn.BatchNorm(),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Residual(nn.LayerNorm(), nn.Dense(8), nn.GELU()),
            nn.Reshape((2, 4)),
            nn.Softmax(axis=1),
            nn.Flatten(),
            nn.Dense(2),
        ),
        (3,),
        OWN_MASK,
        refuses=(0, 1),
    ),
    Case(nn.Residual(), (3,), lambda t, g: g.x + g.x),
    Case(
        nn.Residual(nn.Dense(4), nn.Tanh(), shortcut=nn.Dense(4, bias=False)),
        (3,),
        lambda t, g: dense(t, g.params[2], g.x) + t.tanh(dense(t, g.params[0], g.x)),
    ),
    Case(
        nn.Residual(
            nn.Graph(a=(nn.Tanh(), "x.0"), b=(nn.Dense(2), "x.1"), outputs=("a", "b"))
        ),
        ((3,), (5, 2)),
        lambda t, g: (
            (g.x[0] + t.tanh(g.x[0]), g.x[1] + dense(t, g.params[0]["b"], g.x[1])),
            g.state,
        ),
        thorough=True,
    ),
    Case(
        nn.Parallel(nn.Dense(3), nn.Tanh(), nn.Sigmoid(), join="multiply"),
        (3,),
        lambda t, g: dense(t, g.params[0], g.x) * t.tanh(g.x) * t.sigmoid(g.x),
    ),
    Case(
        nn.Parallel(nn.Dense(2), nn.Tanh(), join="concatenate"),
        (5, 3),
        lambda t, g: t.cat((dense(t, g.params[0], g.x), t.tanh(g.x)), dim=-1),
    ),
    Case(
        nn.Parallel(nn.Dense(2), nn.Flatten(), join=None),
        (5, 3),
        lambda t, g: ((dense(t, g.params[0], g.x), g.x.flatten(1)), g.state),
        thorough=True,
    ),
    Case(
        nn.Repeat(nn.Residual(nn.BatchNorm(), nn.Dense(3)), 3),
        (3,),
        repeated,
        refuses=(0, 1),
    ),
    Case(nn.Repeat(nn.Sequential(nn.Dropout(0.3), nn.Dense(3)), 2), (3,), OWN_MASK),
    Case(
        nn.Repeat(nn.Graph(h=(nn.Multiply(), "x", "gate"), y=(nn.Dense(3), "h")), 3),
        {"x": (3,), "gate": (3,)},
        gated,
    ),
    Case(nn.Repeat(nn.Tanh(), 1), (3,), lambda t, g: t.tanh(g.x), thorough=True),
    Case(
        nn.Repeat(nn.Residual(nn.MultiHeadAttention(2)), 2),
        {"x": (3, 4), "mask": (3,)},
        "its parts have twins of their own",
        thorough=True,
        # two attentions in a row: sums in another order came to 16.3 ε on a GPU
        slack=2.0,
    ),
    Case(nn.Recompute(nn.Sequential(*CHAIN)), (3,), recomputed, refuses=(0, 1)),
    Case(
        nn.Repeat(
            nn.Recompute(nn.Sequential(nn.Dense(3), nn.Dropout(0.3), nn.Tanh())), 2
        ),
        (3,),
        OWN_MASK,
    ),
    Case(
        nn.Recompute(nn.Embedding(5, 2)),
        (3,),
        lambda t, g: g.params["weight"][g.x.long()],
        thorough=True,
    ),
    Case(
        nn.Sequential(nn.Freeze(nn.Sequential(*CHAIN, nn.Dropout(0.5))), nn.Dense(2)),
        (3,),
        frozen,
    ),
    Case(nn.Lambda(turned), (7,), lambda t, g: g.x.flip(1), thorough=True),
    Case(
        nn.Lambda(padded_and_doubled),
        (3,),
        lambda t, g: t.cat((g.x, t.zeros_like(g.x[:, :1]), g.x), dim=1),
    ),
    Case(
        nn.Graph(
            a=(nn.Dense(4), "x"),
            b=(nn.Tanh(), "a"),
            c=(nn.Add(), "a", "b", "x"),
            d=(nn.Multiply(), "c", "a", "c"),
        ),
        (4,),
        diamond,
    ),
    Case(
        nn.Graph(
            a=(nn.Dense(4), "x"),
            norm=(nn.BatchNorm(), "a"),
            again=(nn.Shared("a"), "norm"),
            norm_again=(nn.Shared("norm"), "again"),
            last=(nn.Shared("a", nn.Dense(4)), "norm_again"),
        ),
        (4,),
        shared,
        refuses=(0, 1),
        # three normalisations of three numbers bend more than differences follow
        slack=4.0,
    ),
    Case(
        nn.Graph(
            embed=(nn.Sequential(nn.Embedding(7, 3), nn.Tanh()), "x"),
            logits=(nn.Shared("embed.0", nn.Unembedding(7)), "embed"),
        ),
        (4,),
        tied,
    ),
    Case(
        nn.Graph(
            left=(nn.Dense(3), "a"),
            right=(nn.Tanh(), "b"),
            joined=(nn.Concatenate(), "left", "right", "a"),
            total=(nn.Add(), "left", "right"),
            outputs={"both": "joined", "sum": "total"},
        ),
        {"a": (2,), "b": (3,)},
        two_by_two,
    ),
    Case(
        nn.Graph(
            several=(nn.Parallel(nn.Dense(2), nn.Tanh(), nn.Sigmoid(), join=None), "x"),
            squared=(nn.Multiply(), "several.0", "several.0"),
            last=(nn.Dense(2), "several.2"),
            outputs=("squared", "last"),
        ),
        (3,),
        one_of_several,
    ),
    Case(
        nn.Graph(
            embedded=(nn.Embedding(5, 4), "x"),
            deep=(nn.MultiHeadAttention(2), {"x": "embedded", "mask": "mask"}),
        ),
        {"x": (3,), "mask": (3,)},
        "its parts have twins of their own",
        draw=lambda generator, shape: {
            "x": generator.integers(5, size=shape["x"]),
            "mask": generator.random(shape["mask"]) < 0.7,
        },
    ),
    Case(
        nn.Sequential(
            nn.Repeat(
                nn.Graph(
                    h=(nn.Dense(3), "x"),
                    gate=(nn.Tanh(), "h"),
                    gated=(nn.Multiply(), "gate", "x"),
                    y=(nn.Add(), "gated", "h"),
                ),
                2,
            ),
            nn.Dense(2),
        ),
        (3,),
        nested,
    ),
]
