"""Our layers against PyTorch's with the same weights: forward, state and autograd in float64.

An oracle that shares no line with us. Where the two differ in layout or in the meaning
of a number, the table says how one is turned into the other.
"""

import copy

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.trees import named_leaves, tree_map

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")


class ChannelsLast(torch.nn.BatchNorm1d):
    """Its channels are axis 1 where ours are the last."""

    def forward(self, x):
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class Around(torch.nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


TWINS = [  # ours, PyTorch's, shape of one example
    (nn.Dense(3), torch.nn.Linear(4, 3), (4,)),
    (nn.Dense(3, bias=False), torch.nn.Linear(4, 3, bias=False), (2, 4)),
    (nn.ReLU(), torch.nn.ReLU(), (5,)),
    (nn.LeakyReLU(0.2), torch.nn.LeakyReLU(0.2), (5,)),
    (nn.ELU(1.5), torch.nn.ELU(1.5), (5,)),
    (nn.GELU(), torch.nn.GELU(), (5,)),
    (nn.GELU(approximate=True), torch.nn.GELU(approximate="tanh"), (5,)),
    (nn.SiLU(), torch.nn.SiLU(), (5,)),
    (nn.Sigmoid(), torch.nn.Sigmoid(), (5,)),
    (nn.Tanh(), torch.nn.Tanh(), (5,)),
    (nn.Softplus(), torch.nn.Softplus(), (5,)),
    (nn.Softmax(), torch.nn.Softmax(-1), (2, 5)),
    (nn.Softmax(axis=1), torch.nn.Softmax(1), (2, 5)),
    (nn.LogSoftmax(), torch.nn.LogSoftmax(-1), (2, 5)),
    (nn.BatchNorm(momentum=0.9), ChannelsLast(4, momentum=0.1), (4,)),
    (nn.BatchNorm(momentum=0.7, epsilon=1e-3), ChannelsLast(4, eps=1e-3, momentum=0.3), (2, 3, 4)),
    (nn.LayerNorm(), torch.nn.LayerNorm(4), (4,)),
    (nn.LayerNorm(epsilon=1e-3), torch.nn.LayerNorm(4, eps=1e-3), (2, 4)),
    (nn.Embedding(5, 3), torch.nn.Embedding(5, 3), (4,)),
    (nn.Flatten(), torch.nn.Flatten(), (2, 3)),
    (nn.Reshape((3, 2)), torch.nn.Unflatten(1, (3, 2)), (6,)),
    (nn.Dropout(0.0), torch.nn.Dropout(0.0), (5,)),
    (
        nn.Sequential(
            nn.Dense(4), nn.BatchNorm(), nn.Residual(nn.Dense(4), nn.GELU()), nn.Dense(2)
        ),
        torch.nn.Sequential(
            torch.nn.Linear(3, 4),
            ChannelsLast(4),
            Around(torch.nn.Linear(4, 4), torch.nn.GELU()),
            torch.nn.Linear(4, 2),
        ),
        (3,),
    ),
]
THEIR_NAMES = {"scale": "weight", "mean": "running_mean", "variance": "running_var"}


def theirs(module, path):
    """PyTorch's tensor for our leaf at `path`, and how to lay it out as ours."""
    *owners, name = path.split(".")
    owner = module.get_submodule(".".join(owners))
    transposed = isinstance(owner, torch.nn.Linear)  # its weight is (out, in)
    return getattr(owner, THEIR_NAMES.get(name, name)), np.transpose if transposed else np.asarray


@pytest.mark.parametrize("train", [True, False], ids=["train", "predict"])
@pytest.mark.parametrize(("ours", "module", "shape"), TWINS, ids=[f"{a} {c}" for a, _, c in TWINS])
def test_pytorch_computes_the_same(backend, ours, module, shape, train):
    draw = np.random.default_rng(0)
    xp = nn.backend("numpy").xp
    params, state, out = ours.init(nn.random.key(0, xp=xp), shape, xp.float64)
    params, state = tree_map(
        lambda leaf: leaf + draw.uniform(0.1, 0.5, leaf.shape) if leaf.dtype == "float64" else leaf,
        (params, state),
    )
    x, dy = draw.standard_normal((6, *shape)), draw.standard_normal((6, *out))
    if ours.takes == "integral":
        x = draw.integers(5, size=x.shape)

    module = copy.deepcopy(module).double().train(train)
    weights = dict(named_leaves(params))
    statistics = {name: a for name, a in named_leaves(state) if a.dtype == "float64"}
    with torch.no_grad():
        for name, leaf in (weights | statistics).items():
            tensor, layout = theirs(module, name)
            tensor.copy_(torch.tensor(layout(leaf)))
    their_x = torch.tensor(x, requires_grad=x.dtype == "float64")
    their_y = module(their_x)
    their_y.backward(torch.tensor(dy))

    def run(params, state, x, dy):
        y, after, cache = ours.forward(params, state, x, train=train)
        return y, after, *ours.backward(params, cache, dy)

    with backend.double():
        found = backend.jit(run)(*map(backend.asarray, (params, state, x, dy)))
        y, after, dx, grads = (None if f is None else backend.to_numpy(f) for f in found)

    assert_close("y", y, their_y.detach().numpy())
    if dx is not None:
        assert_close("dx", dx, their_x.grad.numpy())
    for name, leaf in named_leaves(grads):
        tensor, layout = theirs(module, name)
        assert_close(name, leaf, layout(tensor.grad.numpy()))
    for name, leaf in named_leaves(after):
        if name in statistics:
            assert_close(name, leaf, theirs(module, name)[0].numpy())


def assert_close(name, actual, expected):
    """To 64 units in the last place of the largest number, or of 1: such went in."""
    scale = np.max(np.abs(expected), initial=1.0)
    atol = 64 * np.finfo("float64").eps * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)
