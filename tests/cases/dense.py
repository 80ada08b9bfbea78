"""Dense layers and look-ups in tables."""

import agnostic_nn as nn
from agnostic_nn.diagnostics.draws import bags

from . import Case


def dense(t, g):
    return t.nn.functional.linear(g.x, g.params["weight"].T, g.params.get("bias"))


def embedding(t, g):
    """Without PyTorch's max_norm, which changes the weight in place."""
    weight, limit = g.params["weight"], g.layer.max_norm
    if limit is not None:
        weight = weight * (limit / weight.norm(dim=-1, keepdim=True)).clamp(max=1.0)
    y = t.nn.functional.embedding(g.x, weight, padding_idx=g.layer.padding_idx)
    if g.layer.padding_idx is not None:
        y = y * (g.x != g.layer.padding_idx).unsqueeze(-1)
    return y


def bag(t, g):
    """With a mask, hidden indices are replaced by padding, a further row of 0."""
    weight, mode, hidden = g.params["weight"], g.layer.mode, g.layer.padding_idx
    x = g.x
    weights = None
    if isinstance(x, dict):
        weights = x.get("weights")
        x = {"mask": t.ones_like(x["x"], dtype=t.bool), **x}
        hidden = weight.shape[0]
        weight = t.cat([weight, t.zeros_like(weight[:1])])
        x = t.where(x["mask"], x["x"], hidden)
    y = t.nn.functional.embedding_bag(
        x.reshape(-1, x.shape[-1]),
        weight,
        mode=mode,
        padding_idx=hidden,
        per_sample_weights=None if weights is None else weights.flatten(0, -2),
    )
    return y.reshape(*x.shape[:-1], -1)


def weighted_bags(generator, shape):
    x = {"x": generator.integers(0, 5, shape["x"])}
    if "mask" in shape:
        x = bags(generator, shape)
    return x | {"weights": generator.standard_normal(shape["weights"])}


def bilinear(t, g):
    weight = g.params["weight"].movedim(-1, 0)
    return t.nn.functional.bilinear(*g.x, weight, g.params.get("bias"))


TWINS = {
    nn.Bilinear: bilinear,
    nn.Dense: dense,
    nn.Embedding: embedding,
    nn.EmbeddingBag: bag,
    nn.Unembedding: lambda t, g: t.nn.functional.linear(g.x, g.params["weight"]),
}

CASES = [
    Case(nn.Dense(3, bias=False), (4,)),
    Case(nn.Dense(1), (1,)),
    Case(nn.Dense(3), (2, 4)),
    Case(nn.Dense(2), (2, 1, 2, 3), thorough=True),
    Case(nn.Dense(5, initializer=nn.Orthogonal()), (257,)),
    Case(nn.Bilinear(3, bias=False), ((4,), (4,))),
    Case(nn.Bilinear(1), ((2, 3, 1), (2, 3, 7)), thorough=True),
    Case(nn.Bilinear(5), ((17,), (3,))),
    Case(nn.Embedding(5, 3), ()),
    Case(nn.Embedding(5, 3, padding_idx=2), (7,)),
    Case(nn.Embedding(5, 3, max_norm=0.04), (7,)),
    Case(nn.Embedding(3, 5, max_norm=0.6, padding_idx=0), (4, 2), thorough=True),
    Case(nn.EmbeddingBag(5, 3, mode="sum"), {"x": (7,), "mask": (7,)}, draw=bags),
    Case(nn.EmbeddingBag(5, 3, mode="max"), {"x": (7,), "mask": (7,)}, draw=bags),
    Case(
        nn.EmbeddingBag(5, 3, mode="sum"),
        {"x": (7,), "mask": (7,), "weights": (7,)},
        draw=weighted_bags,
    ),
    Case(
        nn.EmbeddingBag(6, 3, mode="sum"),
        {"x": (2, 7), "weights": (2, 7)},
        draw=weighted_bags,
        thorough=True,
    ),
    Case(nn.EmbeddingBag(5, 3, padding_idx=1), (4,)),
    Case(nn.EmbeddingBag(5, 2, mode="max", padding_idx=0), (2, 9), thorough=True),
    Case(nn.Embedding(3, 2), (2, 3), thorough=True),
]
