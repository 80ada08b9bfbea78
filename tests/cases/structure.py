"""Blocks, graphs and layers that only move numbers; their twins are the formulas in PyTorch."""

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace

from . import Case

OWN_MASK = "PyTorch draws other masks"


def every_other(x):
    return x[:, ::2, :]


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
    """BatchNorm met twice: the second use goes on from the statistics that the first one left."""
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


CHAIN = (nn.Dense(4), nn.BatchNorm(), nn.Tanh())

CASES = [
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
        nn.Parallel(nn.Dense(3), nn.Tanh()),
        (2, 3),
        lambda t, g: dense(t, g.params[0], g.x) + t.tanh(g.x),
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
    Case(
        nn.Transpose((2, 1)), (5, 3), lambda t, g: g.x.permute(0, 2, 1), thorough=True
    ),
    Case(nn.Transpose((2, 3, 1)), (5, 3, 2), lambda t, g: g.x.permute(0, 2, 3, 1)),
    Case(nn.Identity(), (5, 3), lambda t, g: g.x),
    Case(nn.Lambda(every_other), (5, 3), lambda t, g: g.x[:, ::2, :]),
    Case(nn.Lambda(turned), (7,), lambda t, g: g.x.flip(1), thorough=True),
    Case(
        nn.Lambda(padded_and_doubled),
        (3,),
        lambda t, g: t.cat((g.x, t.zeros_like(g.x[:, :1]), g.x), dim=1),
    ),
    Case(nn.Add(), ((5, 3),) * 3, lambda t, g: g.x[0] + g.x[1] + g.x[2]),
    Case(nn.Multiply(), ((5,),) * 4, lambda t, g: g.x[0] * g.x[1] * g.x[2] * g.x[3]),
    Case(nn.Multiply(), ((5,),), lambda t, g: g.x[0], thorough=True),
    Case(
        nn.Concatenate(),
        ((5, 3), (5, 2)),
        lambda t, g: t.cat(g.x, dim=-1),
        thorough=True,
    ),
    Case(
        nn.Concatenate(axis=1), ((5, 3), (2, 3), (1, 3)), lambda t, g: t.cat(g.x, dim=1)
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
