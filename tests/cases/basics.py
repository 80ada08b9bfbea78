"""The layers and blocks that a plain network is made of."""

import agnostic_nn as nn

from . import Case

OWN_MASK = "PyTorch draws other masks"


def linear(t, x, params):
    bias = params.get("bias")
    return t.nn.functional.linear(x, params["weight"].T, bias)


def dense(t, g):
    return linear(t, g.x, g.params)


def embedding(t, g):
    return t.nn.functional.embedding(g.x, g.params["weight"])


def layer_norm(epsilon):
    def theirs(t, g):
        scale, bias = g.params["scale"], g.params["bias"]
        return t.nn.functional.layer_norm(g.x, scale.shape, scale, bias, epsilon)

    return theirs


def batch_norm(momentum=0.9, epsilon=1e-5):
    def theirs(t, g):
        mean, variance = g.state["mean"].clone(), g.state["variance"].clone()
        # its channels are axis 1 where ours are the last
        x = g.x.reshape(-1, g.x.shape[-1])
        scale, bias = g.params["scale"], g.params["bias"]
        y = t.nn.functional.batch_norm(
            x, mean, variance, scale, bias, g.train, 1.0 - momentum, epsilon
        )
        return y.reshape(g.x.shape), {"mean": mean, "variance": variance}

    return theirs


def small_network(t, g):
    first, _, inner, last = g.params
    x = linear(t, g.x, first)
    y, state = batch_norm()(t, type(g)(g.params[1], g.state[1], x, g.train))
    x = y + t.nn.functional.gelu(linear(t, y, inner[0]))
    return linear(t, x, last), ({}, state, ({}, {}), {})


CASES = [
    Case(nn.Dense(3), (4,), dense),
    Case(nn.Dense(3, bias=False), (4,), dense),
    Case(nn.Dense(1), (1,), dense),
    Case(nn.Dense(3), (2, 4), dense),
    Case(nn.Dense(2), (2, 1, 2, 3), dense, thorough=True),
    Case(nn.Dense(5, initializer=nn.Orthogonal()), (257,), dense),
    Case(nn.ReLU(), (5,), lambda t, g: t.relu(g.x)),
    Case(nn.LeakyReLU(), (5,), lambda t, g: t.nn.functional.leaky_relu(g.x)),
    Case(nn.LeakyReLU(0.3), (2, 3), lambda t, g: t.nn.functional.leaky_relu(g.x, 0.3)),
    Case(nn.ELU(), (5,), lambda t, g: t.nn.functional.elu(g.x)),
    Case(nn.ELU(1.5), (2, 3), lambda t, g: t.nn.functional.elu(g.x, 1.5)),
    Case(nn.GELU(), (5,), lambda t, g: t.nn.functional.gelu(g.x)),
    Case(
        nn.GELU(approximate=True),
        (5,),
        lambda t, g: t.nn.functional.gelu(g.x, approximate="tanh"),
    ),
    Case(nn.SiLU(), (5,), lambda t, g: t.nn.functional.silu(g.x)),
    Case(nn.Sigmoid(), (2, 3), lambda t, g: t.sigmoid(g.x)),
    Case(nn.Tanh(), (), lambda t, g: t.tanh(g.x)),
    Case(nn.Softplus(), (5,), lambda t, g: t.nn.functional.softplus(g.x, threshold=50)),
    Case(nn.Softmax(), (4,), lambda t, g: t.softmax(g.x, -1)),
    Case(nn.Softmax(axis=1), (3, 2), lambda t, g: t.softmax(g.x, 1)),
    Case(nn.LogSoftmax(), (2, 4), lambda t, g: t.log_softmax(g.x, -1)),
    Case(nn.LogSoftmax(axis=-2), (3, 2), lambda t, g: t.log_softmax(g.x, -2)),
    Case(nn.Dropout(0.0), (5,), lambda t, g: g.x),
    Case(nn.Dropout(0.3), (5,), OWN_MASK),
    Case(nn.Dropout(0.3), (3, 3), OWN_MASK, thorough=True),
    Case(nn.BatchNorm(), (4,), batch_norm(), refuses=(0, 1)),
    Case(
        nn.BatchNorm(momentum=0.5, epsilon=1e-3),
        (2, 3),
        batch_norm(0.5, 1e-3),
        refuses=(0,),
    ),
    Case(nn.BatchNorm(), (2, 2, 1), batch_norm(), thorough=True, refuses=(0,)),
    Case(nn.BatchNorm(epsilon=0.1), (257,), batch_norm(epsilon=0.1), refuses=(0, 1)),
    Case(nn.LayerNorm(), (5,), layer_norm(1e-5)),
    Case(nn.LayerNorm(epsilon=1e-3), (2, 3), layer_norm(1e-3)),
    Case(nn.LayerNorm(), (2, 1, 7), layer_norm(1e-5), thorough=True),
    Case(nn.LayerNorm(), (257,), layer_norm(1e-5)),
    Case(nn.Embedding(5, 3), (), embedding),
    Case(nn.Embedding(5, 3), (4,), embedding),
    Case(nn.Embedding(3, 2), (2, 3), embedding, thorough=True),
    Case(nn.Flatten(), (2, 3), lambda t, g: t.flatten(g.x, 1)),
    Case(nn.Flatten(), (), lambda t, g: g.x[:, None]),
    Case(nn.Reshape((3, -1)), (2, 6), lambda t, g: t.reshape(g.x, (len(g.x), 3, 4))),
    Case(nn.Reshape((2, 3)), (6,), lambda t, g: t.unflatten(g.x, 1, (2, 3))),
    Case(nn.Sequential(), (4,), lambda t, g: g.x),
    Case(
        nn.Sequential(
            nn.Dense(3), nn.Sequential(nn.Tanh(), nn.Sequential(nn.Dense(2)))
        ),
        (4,),
        lambda t, g: linear(t, t.tanh(linear(t, g.x, g.params[0])), g.params[1][1][0]),
    ),
    Case(
        nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Dense(2)),
        (3,),
        lambda t, g: linear(
            t, g.params[0]["weight"][g.x.long()].flatten(1), g.params[2]
        ),
    ),
    Case(nn.Residual(), (3,), lambda t, g: g.x + g.x),
    Case(
        nn.Residual(nn.Dense(4), nn.Tanh(), nn.Dense(3)),
        (2, 3),
        lambda t, g: g.x + linear(t, t.tanh(linear(t, g.x, g.params[0])), g.params[2]),
    ),
    Case(
        nn.Sequential(
            nn.Dense(4),
            nn.BatchNorm(),
            nn.Residual(nn.Dense(4), nn.GELU()),
            nn.Dense(2),
        ),
        (3,),
        small_network,
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
]
