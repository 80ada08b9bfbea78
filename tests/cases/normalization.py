"""Layers that shift and scale, each over other axes."""

import agnostic_nn as nn

from . import Case


def affine(g, y):
    """PyTorch has both or neither of scale and bias; the missing one is left out here."""
    return y * g.params.get("scale", 1.0) + g.params.get("bias", 0.0)


def layer_norm(t, g):
    return affine(g, t.nn.functional.layer_norm(g.x, g.x.shape[-1:]))


def rms_norm(epsilon):
    def theirs(t, g):
        scale = g.params.get("scale")
        return t.nn.functional.rms_norm(g.x, g.x.shape[-1:], scale, epsilon)

    return theirs


def group_norm(groups, epsilon=1e-5):
    def theirs(t, g):
        scale, bias = g.params.get("scale"), g.params.get("bias")
        x = g.x.movedim(-1, 1)
        return t.nn.functional.group_norm(x, groups, scale, bias, epsilon).movedim(
            1, -1
        )

    return theirs


def instance_norm(t, g):
    x = g.x.movedim(-1, 1)
    return affine(g, t.nn.functional.instance_norm(x).movedim(1, -1))


def batch_norm(t, g):
    """Of a frozen layer: as in prediction."""
    mean, variance = g.state["mean"], g.state["variance"]
    y = t.nn.functional.batch_norm(g.x.reshape(-1, g.x.shape[-1]), mean, variance)
    return affine(g, y.reshape(g.x.shape)), g.state


def batch_norm_without_scale(t, g):
    mean, variance = g.state["mean"].clone(), g.state["variance"].clone()
    y = t.nn.functional.batch_norm(g.x, mean, variance, training=g.train)
    return affine(g, y), {"mean": mean, "variance": variance}


CASES = [
    Case(nn.LayerNorm(scale=False), (2, 3), layer_norm),
    Case(nn.LayerNorm(bias=False), (5,), layer_norm, thorough=True),
    Case(nn.LayerNorm(scale=False, bias=False), (5,), layer_norm, thorough=True),
    Case(nn.RMSNorm(), (2, 5), rms_norm(1e-5)),
    Case(nn.RMSNorm(epsilon=0.1, scale=False), (3,), rms_norm(0.1)),
    Case(nn.GroupNorm(2), (3, 5, 6), group_norm(2)),
    Case(
        nn.GroupNorm(3, epsilon=0.01, scale=False, bias=False),
        (6,),
        group_norm(3, 0.01),
    ),
    Case(nn.GroupNorm(1), (3, 2), group_norm(1), thorough=True),
    Case(nn.GroupNorm(6), (2, 2, 2, 6), group_norm(6), thorough=True),
    Case(nn.InstanceNorm(), (3, 5, 2), instance_norm),
    Case(
        nn.InstanceNorm(scale=False, bias=False), (5, 3), instance_norm, thorough=True
    ),
    Case(nn.BatchNorm(frozen=True), (2, 3), batch_norm),
    Case(nn.BatchNorm(scale=False), (4,), batch_norm_without_scale, refuses=(0, 1)),
]
