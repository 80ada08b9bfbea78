"""Attention, positions and transformers."""

from itertools import product

import agnostic_nn as nn
from agnostic_nn.diagnostics.draws import masked

from . import Case


def linear(t, params, x):
    return t.nn.functional.linear(x, params["weight"].T, params.get("bias"))


def turned(t, x):
    """Pairs as complex numbers, times e^(i angle): (batch, heads, time, width)."""
    half = x.shape[-1] // 2
    speed = 10_000.0 ** (-2.0 * t.arange(half, dtype=x.dtype) / x.shape[-1])
    angle = t.arange(x.shape[-2], dtype=x.dtype)[:, None] * speed
    pairs = t.complex(x[..., :half], x[..., half:]) * t.polar(t.ones_like(angle), angle)
    return t.cat((pairs.real, pairs.imag), -1)


def attention(t, g):
    """By the function that does it all, which wants heads as an axis."""
    layer = g.layer
    arguments = g.x if isinstance(g.x, dict) else {"x": g.x}
    x = arguments["x"]
    source = arguments.get("source", x)
    allowed = arguments.get("mask")

    def split(name, x, heads):
        y = linear(t, g.params[name], x).unflatten(-1, (heads, -1)).transpose(1, 2)
        return turned(t, y) if layer.rotary and name != "value" else y

    if allowed is not None:
        allowed = allowed[:, None] if allowed.ndim == 3 else allowed[:, None, None]
    if layer.causal:
        before = t.ones(x.shape[1], source.shape[1], dtype=t.bool).tril()
        allowed = before if allowed is None else allowed & before
    key_heads = layer.key_heads or layer.heads
    y = t.nn.functional.scaled_dot_product_attention(
        split("query", x, layer.heads),
        split("key", source, key_heads),
        split("value", source, key_heads),
        allowed,
        enable_gqa=layer.key_heads is not None,
    )
    return linear(t, g.params["output"], y.transpose(1, 2).flatten(2))


def module(heads, causal=False):
    """By their module, with one weight for query, key and value of one fan_in."""

    def theirs(t, g):
        arguments = g.x if isinstance(g.x, dict) else {"x": g.x}
        x, source = arguments["x"], arguments.get("source", arguments["x"])
        width, other = x.shape[-1], source.shape[-1]
        bias = "bias" in g.params["query"]
        torch_layer = t.nn.MultiheadAttention(
            width,
            heads,
            bias=bias,
            batch_first=True,
            kdim=other,
            vdim=other,
            dtype=x.dtype,
        )
        padded = ~arguments["mask"] if "mask" in arguments else None
        later = (
            t.ones(x.shape[1], source.shape[1], dtype=t.bool).triu(1)
            if causal
            else None
        )
        return t.func.functional_call(
            torch_layer,
            as_theirs(t, g.params, width == other),
            (x, source, source),
            {"key_padding_mask": padded, "attn_mask": later, "need_weights": False},
        )[0]

    return theirs


def as_theirs(t, params, fused, prefix=""):
    names = ("query", "key", "value")
    weights = [params[name]["weight"].T for name in names]
    result = {"out_proj.weight": params["output"]["weight"].T}
    if fused:
        result["in_proj_weight"] = t.cat(weights)
    else:
        result |= {
            f"{n[0]}_proj_weight": w for n, w in zip(names, weights, strict=True)
        }
    if "bias" in params["query"]:
        result["in_proj_bias"] = t.cat([params[name]["bias"] for name in names])
        result["out_proj.bias"] = params["output"]["bias"]
    return {prefix + name: leaf for name, leaf in result.items()}


def encoder_layer(heads, hidden):
    def theirs(t, g):
        torch_layer = t.nn.TransformerEncoderLayer(
            *(g.x.shape[-1], heads, hidden, 0.0, "gelu"),
            batch_first=True,
            norm_first=True,
            dtype=g.x.dtype,
        )
        later = t.ones(g.x.shape[1], g.x.shape[1], dtype=t.bool).triu(1)
        parts = layer_as_theirs(t, g.params, {"attention": "self_attn"})
        return t.func.functional_call(torch_layer, parts, (g.x,), {"src_mask": later})

    return theirs


def decoder_layer(heads, hidden):
    def theirs(t, g):
        x = g.x["x"]
        torch_layer = t.nn.TransformerDecoderLayer(
            *(x.shape[-1], heads, hidden, 0.0, "relu"), batch_first=True, dtype=x.dtype
        )
        masks = {
            "tgt_mask": t.ones(x.shape[1], x.shape[1], dtype=t.bool).triu(1),
            "tgt_key_padding_mask": ~g.x["mask"],
            "memory_key_padding_mask": ~g.x["source_mask"],
        }
        names = {"attention": "self_attn", "cross": "multihead_attn"}
        parts = layer_as_theirs(t, g.params, names)
        return t.func.functional_call(torch_layer, parts, (x, g.x["source"]), masks)

    return theirs


def layer_as_theirs(t, params, names):
    result = {}
    for i, part in enumerate([*names, "feed"], 1):
        norm = params[f"{part}_norm"]
        result |= {f"norm{i}.weight": norm["scale"], f"norm{i}.bias": norm["bias"]}
        if part in names:
            result |= as_theirs(t, params[part], True, f"{names[part]}.")
    for i, dense in ((1, params["feed"][0]), (2, params["feed"][2])):
        result |= {
            f"linear{i}.weight": dense["weight"].T,
            f"linear{i}.bias": dense["bias"],
        }
    return result


def position_embedding(t, g):
    return g.x + g.params["weight"][: g.x.shape[1]]


def sinusoids(t, g):
    """From the definition, one number at a time."""
    _, time, width = g.x.shape
    angles = [
        [p / 10_000.0 ** ((j - j % 2) / width) for j in range(width)]
        for p in range(time)
    ]
    angles = t.tensor(angles, dtype=g.x.dtype)
    even = t.arange(width) % 2 == 0
    return g.x + t.where(even, angles.sin(), angles.cos())


def sweep():
    shapes = {"x": (4, 5), "source": (6, 3)}
    pairs = {
        None: None,
        "keys": {False: (4,), True: (6,)},
        "pairs": {False: (4, 4), True: (4, 6)},
    }
    for causal, mask, cross, grouped in product(
        (False, True), pairs, (False, True), (False, True)
    ):
        # half of all: any three options still meet in every way
        rotary = causal ^ cross ^ grouped
        key_heads = 2 if grouped else None
        layer = nn.MultiHeadAttention(
            4, key_heads=key_heads, head_width=2, causal=causal, rotary=rotary
        )
        shape = dict(shapes) if cross else {"x": shapes["x"]}
        if mask:
            shape["mask"] = pairs[mask][cross]
        yield Case(layer, shape, draw=masked, thorough=True)


TWINS = {
    nn.MultiHeadAttention: attention,
    nn.PositionEmbedding: position_embedding,
    nn.SinusoidalPositions: sinusoids,
    nn.TransformerBlock: encoder_layer(2, 5),
}

LIMITS = {
    # a bias of keys has a slope of 0, where differences leave their rounding
    nn.TransformerBlock: {"slack": 4.0},
}

OWN_NUMBERS = "other random numbers"
NO_SUCH_LAYER = "no such layer"
CROSSED = {"x": (4, 6), "source": (5, 3), "mask": (5,)}
TRANSLATED = {"x": (4, 6), "mask": (4,), "source": (5, 6), "source_mask": (5,)}

CASES = [
    Case(
        nn.MultiHeadAttention(2, causal=True, bias=False),
        (5, 6),
        module(2, causal=True),
    ),
    Case(nn.MultiHeadAttention(3), CROSSED, draw=masked),
    Case(
        nn.MultiHeadAttention(2, dropout=0.3),
        {"x": (4, 6), "mask": (4, 4)},
        OWN_NUMBERS,
    ),
    Case(nn.MultiHeadAttention(1), (1, 1), module(1), thorough=True),
    Case(
        nn.MultiHeadAttention(3),
        {"x": (4, 6), "source": (5, 4)},
        module(3),
        thorough=True,
    ),
    Case(
        nn.MultiHeadAttention(2, causal=True),
        (4, 6),
        module(2, causal=True),
        thorough=True,
    ),
    *sweep(),
    Case(nn.PositionEmbedding(5), (5, 1), thorough=True),
    Case(
        nn.TransformerBlock(
            nn.MultiHeadAttention(3, causal=True),
            hidden=5,
            cross=nn.MultiHeadAttention(3),
            activation=nn.ReLU(),
            pre_norm=False,
        ),
        TRANSLATED,
        decoder_layer(3, 5),
        masked,
    ),
    Case(
        nn.TransformerBlock(
            nn.MultiHeadAttention(3, key_heads=1, rotary=True, dropout=0.1),
            hidden=10,
            cross=nn.MultiHeadAttention(1, dropout=0.1),
            activation=nn.SwiGLU(),
            norm=nn.RMSNorm(),
            dropout=0.2,
        ),
        TRANSLATED,
        OWN_NUMBERS,
        masked,
        slack=4.0,  # as above
    ),
    Case(
        nn.TransformerBlock(nn.MultiHeadAttention(2), hidden=5),
        {"x": (4, 6), "mask": (4, 4)},
        NO_SUCH_LAYER,
        thorough=True,
        slack=4.0,  # as above
    ),
]
