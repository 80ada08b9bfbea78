"""The page of what is left out names what exists, and its combinations are right."""

import re
from pathlib import Path

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "reference" / "left_out.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| ---")
]


def test_each_name_of_this_library_exists():
    names = re.findall(r"\bnn\.([\w.]+)", "".join(row[-1] for row in ROWS))
    assert len(names) > 60
    for name in names:
        value = nn
        for part in name.split("."):
            value = getattr(value, part)


def test_nothing_that_is_here_is_listed_as_left_out():
    """Tables with three columns list what is missing."""
    missing = [row[0] for row in ROWS if len(row) == 3]
    names = re.findall(r"`(\w+)`", "".join(missing))
    assert len(names) > 40
    here = [getattr(nn, name) for name in names if name in nn.__all__]
    # the optimizer `Average` is not Keras' layer
    assert here == [nn.Average]


def normal(name):
    """Return a name in small letters, without the number of axes."""
    name = re.sub(r"[1-3]d$", "", name.lower())
    return name.replace("avg", "average").replace("multihead", "multi_head")


def test_each_module_of_pytorch_is_here_or_on_a_page():
    torch = pytest.importorskip("torch", reason="PyTorch has the list")
    modules = [
        name
        for name, value in vars(torch.nn).items()
        if isinstance(value, type) and issubclass(value, torch.nn.Module)
    ]
    pages = PAGE + (DOCS / "migration" / "from_pytorch.md").read_text(encoding="utf-8")
    ours = {normal(name).replace("_", "") for name in nn.__all__}
    unknown = []
    for name in modules:
        short = normal(name).replace("_", "")
        is_loss = short.endswith("loss") and short.removesuffix("loss") in ours
        is_padding = "Pad" in name  # modes of nn.Pad
        is_named = re.search(rf"\b{name}\b|\b{name[:-2]}[1-3]d\b", pages)
        is_known = short in ours or is_loss or is_padding or name in OTHER_NAMES
        if not (is_known or is_named or name.startswith("Lazy")):
            unknown.append(name)
    assert unknown == []


# PyTorch's names of what the migration page lists under the name of a function
OTHER_NAMES = {
    "BCELoss": nn.binary_cross_entropy,
    "BCEWithLogitsLoss": nn.binary_cross_entropy,
    "CrossEntropyLoss": nn.softmax_cross_entropy,
    "GaussianNLLLoss": nn.gaussian_nll,
    "KLDivLoss": nn.kl_divergence,
    "L1Loss": nn.mean_absolute_error,
    "MSELoss": nn.mean_squared_error,
    "Module": nn.Layer,
    "MultiLabelMarginLoss": nn.multi_label_margin,
    "MultiLabelSoftMarginLoss": nn.multi_label_soft_margin,
    "MultiMarginLoss": nn.multi_class_margin,
    "NLLLoss": nn.negative_log_likelihood,
    "PoissonNLLLoss": nn.poisson_nll,
    "RNNBase": nn.RNN,
    "RNNCellBase": nn.RNN,
    "Dropout1d": nn.SpatialDropout,
    "Dropout3d": nn.SpatialDropout,
    "TransformerDecoderLayer": nn.TransformerBlock,
    "TransformerEncoderLayer": nn.TransformerBlock,
}


def shuffled(x):
    """Return x with the channels of 3 groups interleaved."""
    xp = namespace(x)
    groups = xp.reshape(x, (*x.shape[:-1], 3, x.shape[-1] // 3))
    return xp.reshape(xp.matrix_transpose(groups), x.shape)


def first(t, x):
    return t.movedim(x, -1, 1)


def last(t, y):
    return t.movedim(y, 1, -1)


COMBINED = [  # layer, shape of an example, the same with PyTorch
    (
        nn.Lambda(shuffled),
        (4, 5, 6),
        lambda t, x: last(t, t.nn.ChannelShuffle(3)(first(t, x))),
    ),
    (
        nn.Softmax(),
        (4, 5, 6),
        lambda t, x: last(t, t.nn.Softmax2d()(first(t, x))),
    ),
    (nn.Reshape((2, 3, 5)), (6, 5), lambda t, x: t.nn.Unflatten(1, (2, 3))(x)),
    (
        nn.Resize((7, 9), align_corners=True),
        (4, 5, 2),
        lambda t, x: last(t, t.nn.UpsamplingBilinear2d((7, 9))(first(t, x))),
    ),
    (
        nn.Resize((8, 15), mode="nearest"),
        (4, 5, 2),
        lambda t, x: last(t, t.nn.UpsamplingNearest2d((8, 15))(first(t, x))),
    ),
    (
        nn.Sequential(nn.Reshape((1, -1)), nn.Upsample(3)),
        (5,),
        lambda t, x: x[:, None].repeat(1, 3, 1),
    ),
    (
        nn.Threshold(0.5),
        (7,),
        lambda t, x: t.where(x > 0.5, x, 0.0),
    ),
    (
        nn.LpPool2D((4, 5)),
        (4, 5, 2),
        lambda t, x: x.flatten(1, 2).norm(dim=1)[:, None, None],
    ),
]


@pytest.mark.parametrize(
    ("layer", "shape", "theirs"), COMBINED, ids=[str(row[0]) for row in COMBINED]
)
def test_a_combination_computes_what_it_stands_for(layer, shape, theirs):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    xp = nn.backend("numpy").xp
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype("float32")
    params, state, _ = layer.init(nn.random.key(0, xp=xp), shape, xp.float32)
    y, _, _ = layer.forward(params, state, x)
    expected = theirs(torch, torch.tensor(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


def test_huber_divided_by_beta_is_the_smooth_l1_loss():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    y, target = np.random.default_rng(0).standard_normal((2, 50)).astype("float32")
    expected = torch.nn.SmoothL1Loss(beta=0.5)(*map(torch.tensor, (y, target)))
    ours = nn.huber(y, target, delta=0.5)[0] / 0.5
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)


def test_an_embedding_can_be_shared_with_the_unembedding():
    xp = nn.backend("numpy").xp
    model = nn.Graph(
        embedding=(nn.Embedding(7, 3), "x"),
        logits=(nn.Shared("embedding", nn.Unembedding(7)), "embedding"),
    )
    params, state, _ = model.init(nn.random.key(0, xp=xp), (5,), xp.float32)
    assert list(params) == ["embedding"]
    x = np.arange(5)[None]
    y, _, _ = model.forward(params, state, x)
    weight = params["embedding"]["weight"]
    np.testing.assert_allclose(y[0], weight[:5] @ weight.T, rtol=1e-5)
