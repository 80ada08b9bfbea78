"""Dense layers and look-ups in tables."""

import agnostic_nn as nn

from . import Case


def dense(t, g):
    return t.nn.functional.linear(g.x, g.params["weight"].T, g.params.get("bias"))


TWINS = {
    nn.Dense: dense,
    nn.Embedding: lambda t, g: t.nn.functional.embedding(g.x, g.params["weight"]),
    nn.Unembedding: lambda t, g: t.nn.functional.linear(g.x, g.params["weight"]),
}

CASES = [
    Case(nn.Dense(3, bias=False), (4,)),
    Case(nn.Dense(1), (1,)),
    Case(nn.Dense(3), (2, 4)),
    Case(nn.Dense(2), (2, 1, 2, 3), thorough=True),
    Case(nn.Dense(5, initializer=nn.Orthogonal()), (257,)),
    Case(nn.Embedding(5, 3), ()),
    Case(nn.Embedding(3, 2), (2, 3), thorough=True),
]
