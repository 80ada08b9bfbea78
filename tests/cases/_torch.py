"""Ours and PyTorch's numbers side by side, in float64."""

import numpy as np
import torch

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, shape_map, tree_map

from . import Given, inputs

__all__ = ["against_torch"]


def against_torch(backend, case, train):
    """Yield name, our number and PyTorch's for each leaf of y, dx, grads and state."""
    generator = np.random.default_rng(0)
    xp = nn.backend("numpy").xp
    params, state, out = case.layer.init(
        nn.random.key(0, xp=xp), case.shape, xp.float64
    )
    params, state = tree_map(
        lambda leaf: (
            leaf + generator.uniform(0.1, 0.5, leaf.shape) if is_real(leaf) else leaf
        ),
        (params, state),
    )
    x = inputs(case, generator, 6, "float64")
    dy = shape_map(
        lambda shape: np.asarray(generator.standard_normal((6, *shape))), out
    )

    trees = map(to_torch, (params, state, x), (True, False, True))
    arguments = Given(case.layer, *trees, train)
    result = case.theirs(torch, arguments)
    y, after = result if isinstance(result, tuple) else (result, arguments.state)
    pairs = zip(leaves(y), leaves(dy), strict=True)
    real = [(leaf, torch.tensor(d)) for leaf, d in pairs if leaf.is_floating_point()]
    torch.autograd.backward(*zip(*real, strict=True))

    def run(params, state, x, dy):
        y, after, cache = case.layer.forward(params, state, x, train=train)
        dx, grads = case.layer.backward(params, cache, dy)
        dx = {name: leaf for name, leaf in named_leaves(dx) if leaf is not None}
        return {"y": y, "state": after, "grads": grads, "dx": dx}

    with backend.double():
        ours = backend.to_numpy(
            backend.jit(run)(*backend.asarray((params, state, x, dy)))
        )
    known = {
        name: leaf for name, leaf in named_leaves(arguments.x) if name in ours["dx"]
    }
    theirs = {
        "y": y,
        "state": after,
        "grads": tree_map(slope, arguments.params),
        "dx": tree_map(slope, known),
    }
    for (name, mine), other in zip(named_leaves(ours), leaves(theirs), strict=True):
        if is_real(mine) or name.endswith("indices"):
            yield name, mine, other.detach().numpy()


def is_real(leaf):
    return leaf.dtype == "float64"


def to_torch(tree, learned):
    return tree_map(
        lambda leaf: torch.tensor(leaf, requires_grad=learned and is_real(leaf)), tree
    )


def slope(tensor):
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
