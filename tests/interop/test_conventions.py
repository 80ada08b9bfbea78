"""Each layer of PyTorch and Keras with random weights computes the same here."""

import os

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves, tree_map
from agnostic_nn.interop.conventions import PYTORCH

os.environ.setdefault("KERAS_BACKEND", "torch")
torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

GENERATOR = np.random.default_rng(0)


def randomized(module):
    """Return a module in float64 whose parameters and statistics are random."""
    torch.manual_seed(0)
    module = module.double().eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return module


def last_to_first(x):
    return torch.movedim(x, -1, 1)


def first_to_last(y):
    return torch.movedim(y, 1, -1)


def moved(module):
    """Call a module of channels first with channels last."""
    return lambda m, x: first_to_last(m(last_to_first(x)))


def plain(m, x):
    return m(x)


def first_of(m, x):
    return m(x)[0]


def attention(m, x):
    return m(x, x, x, need_weights=False)[0]


def cross(m, x):
    return m(x["x"], x["source"], x["value"], need_weights=False)[0]


def causal(m, x):
    mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
    return m(x, src_mask=mask)


def decoder(m, x):
    return m(x["x"], x["source"])


T = torch.nn
LAST = {"batch_first": True}
# ours, theirs, how theirs is called, the shape of one example
TORCH = [
    (nn.Dense(3), T.Linear(4, 3), plain, (4,)),
    (nn.Dense(3, bias=False), T.Linear(4, 3, bias=False), plain, (2, 4)),
    (nn.Dense(3), T.Conv1d(4, 3, 1), moved, (5, 4)),
    (nn.Bilinear(3), T.Bilinear(4, 5, 3), lambda m, x: m(*x), ((4,), (5,))),
    (nn.Conv1D(4, 3), T.Conv1d(2, 4, 3), moved, (7, 2)),
    (
        nn.Conv2D(4, (2, 3), groups=2),
        T.Conv2d(6, 4, (2, 3), groups=2),
        moved,
        (5, 5, 6),
    ),
    (nn.Conv3D(2, 2, bias=False), T.Conv3d(3, 2, 2, bias=False), moved, (3, 3, 3, 3)),
    (
        nn.ConvTranspose1D(4, 3, stride=2),
        T.ConvTranspose1d(2, 4, 3, stride=2),
        moved,
        (5, 2),
    ),
    (
        nn.ConvTranspose2D(6, (2, 3), stride=2, groups=3),
        T.ConvTranspose2d(9, 6, (2, 3), stride=2, groups=3),
        moved,
        (3, 4, 9),
    ),
    (nn.ConvTranspose3D(2, 2), T.ConvTranspose3d(3, 2, 2), moved, (2, 2, 2, 3)),
    (nn.BatchNorm(), T.BatchNorm2d(3), moved, (2, 2, 3)),
    (nn.BatchNorm(momentum=None), T.BatchNorm1d(3, momentum=None), plain, (3,)),
    (
        nn.BatchNorm(scale=False, bias=False),
        T.BatchNorm1d(3, affine=False),
        plain,
        (3,),
    ),
    (nn.LayerNorm(), T.LayerNorm(5), plain, (2, 5)),
    (nn.LayerNorm(axes=2, bias=False), T.LayerNorm((2, 5), bias=False), plain, (2, 5)),
    (nn.GroupNorm(2), T.GroupNorm(2, 6), moved, (3, 6)),
    (nn.InstanceNorm(), T.InstanceNorm2d(3, affine=True), moved, (3, 2, 3)),
    (
        nn.InstanceNorm(running=True),
        T.InstanceNorm1d(3, affine=True, track_running_stats=True),
        moved,
        (4, 3),
    ),
    (nn.RMSNorm(epsilon=1e-5), T.RMSNorm(5, eps=1e-5), plain, (2, 5)),
    (nn.Embedding(7, 3), T.Embedding(7, 3), plain, (4,)),
    (nn.EmbeddingBag(7, 3), T.EmbeddingBag(7, 3), plain, (4,)),
    (nn.PReLU(), T.PReLU(3), moved, (2, 3)),
    (nn.PReLU(shared=True), T.PReLU(), plain, (3,)),
    (nn.RNN(3), T.RNN(2, 3, **LAST), first_of, (4, 2)),
    (
        nn.RNN(3, depth=2, bidirectional=True),
        T.RNN(2, 3, 2, bidirectional=True, **LAST),
        first_of,
        (4, 2),
    ),
    (nn.LSTM(3, depth=2), T.LSTM(2, 3, 2, **LAST), first_of, (4, 2)),
    (
        nn.LSTM(3, bidirectional=True, projection=2),
        T.LSTM(2, 3, bidirectional=True, proj_size=2, **LAST),
        first_of,
        (4, 2),
    ),
    (nn.LSTM(3), T.LSTM(2, 3, bias=False, **LAST), first_of, (4, 2)),
    (
        nn.GRU(3, depth=2, bidirectional=True),
        T.GRU(2, 3, 2, bidirectional=True, **LAST),
        first_of,
        (4, 2),
    ),
    (nn.GRU(3), T.GRU(2, 3, bias=False, **LAST), first_of, (4, 2)),
    (nn.MultiHeadAttention(2), T.MultiheadAttention(6, 2, **LAST), attention, (4, 6)),
    (
        nn.MultiHeadAttention(2, bias=False),
        T.MultiheadAttention(6, 2, bias=False, **LAST),
        attention,
        (4, 6),
    ),
    (
        nn.MultiHeadAttention(3, learned_key=True),
        T.MultiheadAttention(6, 3, add_bias_kv=True, **LAST),
        attention,
        (4, 6),
    ),
    (
        nn.MultiHeadAttention(2),
        T.MultiheadAttention(6, 2, kdim=3, vdim=5, **LAST),
        cross,
        {"x": (4, 6), "source": (5, 3), "value": (5, 5)},
    ),
    (
        nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), 5),
        T.TransformerEncoderLayer(6, 2, 5, 0.0, "gelu", norm_first=True, **LAST),
        causal,
        (4, 6),
    ),
    (
        nn.TransformerBlock(
            nn.MultiHeadAttention(2),
            hidden=5,
            cross=nn.MultiHeadAttention(2),
            activation=nn.ReLU(),
            pre_norm=False,
        ),
        T.TransformerDecoderLayer(6, 2, 5, 0.0, **LAST),
        decoder,
        {"x": (4, 6), "source": (5, 6)},
    ),
]


def drawn(layer, shape):
    """Return x for a layer, with a batch of 3."""
    if isinstance(shape, dict):
        return {name: drawn(layer, inner) for name, inner in shape.items()}
    if isinstance(shape[0], tuple):
        return tuple(drawn(layer, inner) for inner in shape)
    if isinstance(layer, nn.Embedding):
        return GENERATOR.integers(0, layer.num_embeddings, (3, *shape))
    return GENERATOR.standard_normal((3, *shape))


def with_state(layer, shape, params, state):
    """Return both trees complete: nested as `init` returns them, in float64."""
    xp = nn.backend("numpy").xp
    key = nn.random.key(0, xp=xp)
    drawn_params, drawn_state, _ = layer.init(key, shape, xp.float64)
    names = [name for name, _ in named_leaves(drawn_params)]
    assert [name for name, _ in named_leaves(params)] == names
    new = dict(named_leaves(state))
    assert new.keys() <= dict(named_leaves(drawn_state)).keys()
    return params, drawn_state | state


def assert_same(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-9, atol=1e-11)


def shapes(tensors):
    return {name: array.shape for name, array in tensors.items()}


@pytest.mark.parametrize("case", TORCH, ids=lambda case: str(case[0]))
def test_a_module_of_pytorch_computes_the_same_here_and_comes_back(case):
    layer, module, call, shape = case
    call = call(module) if call is moved else call
    module = randomized(module)
    tensors = {name: t.numpy().copy() for name, t in module.state_dict().items()}
    params, state = PYTORCH.to_ours(layer, tensors)
    params, state = with_state(layer, shape, params, state)
    x = drawn(layer, shape)
    with torch.no_grad():
        theirs = call(module, tree_map(torch.as_tensor, x)).numpy()
    assert_same(layer.predict(params, state, x), theirs)

    forms = [f for f in PYTORCH.forms(layer) if {*f.names} == {*tensors}]
    backs = [PYTORCH.to_theirs(layer, params, state, form=form) for form in forms]
    back = next(b for b in backs if shapes(b) == shapes(tensors))
    assert back.keys() == tensors.keys()
    for name, array in back.items():
        if not name.startswith(("bias_ih", "bias_hh")):
            np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    module.load_state_dict({k: torch.as_tensor(a) for k, a in back.items()})
    with torch.no_grad():
        again = call(module, tree_map(torch.as_tensor, x)).numpy()
    assert_same(again, theirs)
