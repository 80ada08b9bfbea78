"""Layers that shift and scale, each over other axes."""

import agnostic_nn as nn

from . import Case


def unit_norm(t, g):
    return t.nn.functional.normalize(g.x, dim=g.layer.axis, eps=g.layer.epsilon)


def affine(g, normalize):
    """Return normalize(scale, bias); where one is missing, apply the other here."""
    scale, bias = g.params.get("scale"), g.params.get("bias")
    if (scale is None) == (bias is None):
        return normalize(scale, bias)
    y = normalize(None, None)
    return y * scale if bias is None else y + bias


def layer_norm(t, g):
    def normalize(scale, bias):
        shape, epsilon = g.x.shape[-g.layer.axes :], g.layer.epsilon
        return t.nn.functional.layer_norm(g.x, shape, scale, bias, epsilon)

    return affine(g, normalize)


def rms_norm(t, g):
    shape, epsilon = g.x.shape[-g.layer.axes :], g.layer.epsilon
    return t.nn.functional.rms_norm(g.x, shape, g.params.get("scale"), epsilon)


def group_norm(t, g):
    x = g.x.movedim(-1, 1)

    def normalize(scale, bias):
        groups, epsilon = g.layer.groups, g.layer.epsilon
        y = t.nn.functional.group_norm(x, groups, scale, bias, epsilon)
        return y.movedim(1, -1)

    return affine(g, normalize)


def instance_norm(t, g):
    x = g.x.movedim(-1, 1)

    after = {name: leaf.clone() for name, leaf in g.state.items()}

    def normalize(scale, bias):
        options = {"weight": scale, "bias": bias, "eps": g.layer.epsilon}
        if g.layer.running:
            options |= {
                "running_mean": after["mean"],
                "running_var": after["variance"],
                "use_input_stats": g.train,
                "momentum": share(g),
            }
        return t.nn.functional.instance_norm(x, **options).movedim(1, -1)

    return affine(g, normalize), counted(g, after)


def share(g):
    """Return PyTorch's momentum, the share of the new batch."""
    if g.layer.momentum is None:
        return 1.0 / (float(g.state["count"]) + 1.0)
    return 1.0 - g.layer.momentum


def counted(g, after):
    """Return the state `after` a step, with the number of batches."""
    if g.train and "count" in after:
        after["count"] = after["count"] + 1.0
    return after


def batch_norm(t, g):
    after = {name: leaf.clone() for name, leaf in g.state.items()}
    # its channels are axis 1 where ours are the last
    x = g.x.reshape(-1, g.x.shape[-1])

    def normalize(scale, bias):
        is_training = g.train and not g.layer.frozen
        options = is_training, share(g), g.layer.epsilon
        statistics = after["mean"], after["variance"]
        return t.nn.functional.batch_norm(x, *statistics, scale, bias, *options)

    y = affine(g, normalize).reshape(g.x.shape)
    return y, after if g.layer.frozen else counted(g, after)


def response_norm(t, g):
    layer = g.layer
    x = g.x.movedim(-1, 1)
    x = x[:, :, None] if x.ndim == 2 else x  # PyTorch wants an axis of space
    options = layer.size, layer.alpha, layer.beta, layer.k
    y = t.nn.functional.local_response_norm(x, *options)
    return y.movedim(1, -1).reshape(g.x.shape)


TWINS = {
    nn.LocalResponseNorm: response_norm,
    nn.BatchNorm: batch_norm,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm: instance_norm,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.Rescale: lambda t, g: (g.x * g.state["scale"] + g.state["offset"], g.state),
    nn.UnitNorm: unit_norm,
}

LIMITS = {nn.BatchNorm: {"refuses": (0, 1)}}

CASES = [
    Case(nn.LocalResponseNorm(3, alpha=2.0, beta=0.5, k=0.3), (3, 2, 7), thorough=True),
    Case(nn.LocalResponseNorm(9), (3, 2), thorough=True),
    Case(nn.LocalResponseNorm(1, alpha=1.0), (3,), thorough=True),
    Case(nn.UnitNorm(axis=1, epsilon=2.0), (3, 5)),
    Case(nn.UnitNorm(-2), (2, 7, 4), thorough=True),
    Case(nn.BatchNorm(momentum=0.5, epsilon=1e-3), (2, 3), refuses=(0,)),
    Case(nn.BatchNorm(), (2, 2, 1), thorough=True, refuses=(0,)),
    Case(nn.BatchNorm(epsilon=0.1), (257,), refuses=(0, 1)),
    Case(nn.BatchNorm(frozen=True), (2, 3)),
    Case(nn.BatchNorm(scale=False), (4,), refuses=(0, 1)),
    Case(nn.BatchNorm(momentum=None), (2, 3), refuses=(0,)),
    Case(nn.BatchNorm(momentum=None, frozen=True), (3,), thorough=True),
    Case(nn.LayerNorm(axes=2), (2, 3, 5)),
    Case(nn.LayerNorm(axes=3, bias=False), (3, 1, 7), thorough=True),
    Case(nn.LayerNorm(axes=2, scale=False, bias=False), (2, 3), thorough=True),
    Case(nn.RMSNorm(axes=2), (4, 3, 2)),
    Case(nn.Rescale(1 / 255), (2, 3)),
    Case(nn.Rescale(2, (1.0, -0.5)), (2,), thorough=True),
    Case(nn.InstanceNorm(running=True), (5, 3)),
    Case(nn.InstanceNorm(running=True, momentum=None, bias=False), (3, 2, 3)),
    Case(nn.LayerNorm(epsilon=1e-3), (2, 3)),
    Case(nn.LayerNorm(), (2, 1, 7), thorough=True),
    Case(nn.LayerNorm(), (257,)),
    Case(nn.LayerNorm(scale=False), (2, 3)),
    Case(nn.LayerNorm(bias=False), (5,), thorough=True),
    Case(nn.LayerNorm(scale=False, bias=False), (5,), thorough=True),
    Case(nn.RMSNorm(epsilon=0.1, scale=False), (3,)),
    Case(nn.GroupNorm(3, epsilon=0.01, scale=False, bias=False), (6,)),
    Case(nn.GroupNorm(1), (3, 2), thorough=True),
    Case(nn.GroupNorm(6), (2, 2, 2, 6), thorough=True),
    Case(nn.InstanceNorm(scale=False, bias=False), (5, 3), thorough=True),
]
