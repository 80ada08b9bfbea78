"""Attention, positions and transformers."""

from itertools import product

import agnostic_nn as nn
from agnostic_nn.diagnostics.draws import masked

from . import Case


def linear(t, params, x):
    return t.nn.functional.linear(x, params["weight"].T, params.get("bias"))


def turned(t, x, base=10_000.0):
    """Pairs as complex numbers, times e^(i angle): (batch, heads, time, width)."""
    half = x.shape[-1] // 2
    speed = base ** (-2.0 * t.arange(half, dtype=x.dtype) / x.shape[-1])
    angle = t.arange(x.shape[-2], dtype=x.dtype)[:, None] * speed
    pairs = t.complex(x[..., :half], x[..., half:]) * t.polar(t.ones_like(angle), angle)
    return t.cat((pairs.real, pairs.imag), -1)


def attention(t, g):
    """By the function that does it all, which wants heads as an axis.

    It has no cap, no key of zeros and no weights as a result: `written_out` has.
    """
    layer = g.layer
    arguments = g.x if isinstance(g.x, dict) else {"x": g.x}
    x = arguments["x"]
    source = arguments.get("source", x)
    sizes = x.shape[1], source.shape[1]
    distance = t.arange(sizes[1]) - t.arange(sizes[0])[:, None]
    allowed = arguments.get("mask", t.ones(len(x), sizes[1], dtype=t.bool))

    def split(name, x, heads):
        y = linear(t, g.params[name], x).unflatten(-1, (heads, -1)).transpose(1, 2)
        return turned(t, y) if layer.rotary and name != "value" else y

    if allowed.ndim < 4:
        allowed = allowed[:, None] if allowed.ndim == 3 else allowed[:, None, None]
    if layer.causal:
        allowed = allowed & (distance <= 0)
    if layer.window:
        allowed = allowed & (distance.abs() < layer.window)
    added = t.zeros(len(x), layer.heads, *sizes, dtype=x.dtype)
    if "score_bias" in arguments:
        bias = arguments["score_bias"]
        added = added + (bias if bias.ndim == 4 else bias[:, None])
    if layer.alibi:
        rate = t.tensor(ALIBI[layer.heads], dtype=x.dtype)
        added = added - rate[:, None, None] * distance.abs()
    if layer.relative:
        table = g.params["relative"]["bias"]
        added = added + table[
            distance.clamp(-layer.relative, layer.relative) + layer.relative
        ].permute(2, 0, 1)
    key_heads = layer.key_heads or layer.heads
    query = split("query", x, layer.heads)
    key = split("key", source, key_heads)
    value = split("value", arguments.get("value", source), key_heads)
    if layer.learned_key:
        learned = g.params["learned"]
        key, value = (
            t.cat(
                (each, row.reshape(1, key_heads, 1, -1).expand(len(x), -1, -1, -1)), 2
            )
            for each, row in ((key, learned["k"]), (value, learned["v"]))
        )
        allowed = t.nn.functional.pad(allowed, (0, 1), value=True)
        added = t.nn.functional.pad(added, (0, 1))
    if layer.softcap or layer.zero_key or layer.return_weights:
        y, weights = written_out(t, layer, query, key, value, allowed, added)
    else:
        y = t.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            added.masked_fill(~allowed, -t.inf),
            enable_gqa=layer.key_heads is not None,
        )
    y = linear(t, g.params["output"], y.transpose(1, 2).flatten(2))
    if layer.learned_key and layer.return_weights:
        weights = weights[..., :-1]
    return {"y": y, "weights": weights} if layer.return_weights else y


# the paper's list for 8 heads, and what its code gives for 3: two, and one between
ALIBI = {
    2: [1 / 16, 1 / 256],
    3: [1 / 16, 1 / 256, 1 / 4],
    4: [1 / 4, 1 / 16, 1 / 64, 1 / 256],
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
}


def written_out(t, layer, query, key, value, allowed, added):
    """O and P, line by line; a query that may see nothing has weights of 0."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(repeats, 1) for each in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if layer.softcap:
        scores = layer.softcap * t.tanh(scores / layer.softcap)
    scores = scores + added
    allowed = allowed.expand(scores.shape)
    if layer.zero_key:
        scores = t.nn.functional.pad(scores, (0, 1))
        allowed = t.nn.functional.pad(allowed, (0, 1), value=True)
        value = t.nn.functional.pad(value, (0, 0, 0, 1))
    sees = allowed.any(-1, keepdim=True)
    weights = scores.masked_fill(~allowed & sees, -t.inf).softmax(-1) * sees
    y = weights @ value
    return y, weights[..., :-1] if layer.zero_key else weights


def module(heads, causal=False, zero_key=False, weights=False, learned=False):
    """By their module, with one weight for query, key and value of one fan_in."""

    def theirs(t, g):
        arguments = g.x if isinstance(g.x, dict) else {"x": g.x}
        x, source = arguments["x"], arguments.get("source", arguments["x"])
        value = arguments.get("value", source)
        width, other, third = x.shape[-1], source.shape[-1], value.shape[-1]
        bias = "bias" in g.params["query"]
        torch_layer = t.nn.MultiheadAttention(
            width,
            heads,
            bias=bias,
            batch_first=True,
            kdim=other,
            vdim=third,
            add_zero_attn=zero_key,
            add_bias_kv=learned,
            dtype=x.dtype,
        )
        padded = ~arguments["mask"] if "mask" in arguments else None
        later = (
            t.ones(x.shape[1], source.shape[1], dtype=t.bool).triu(1)
            if causal
            else None
        )
        if "score_bias" in arguments:  # (batch · heads, time, keys), added to `later`
            later = arguments["score_bias"].flatten(0, 1)
            if padded is not None:
                padded = t.zeros_like(padded, dtype=x.dtype).masked_fill(padded, -t.inf)
        options = {"need_weights": weights, "average_attn_weights": False}
        y, probabilities = t.func.functional_call(
            torch_layer,
            as_theirs(t, g.params, width == other == third),
            (x, source, value),
            {"key_padding_mask": padded, "attn_mask": later, **options},
        )
        if not weights:
            return y
        probabilities = probabilities[..., : source.shape[1]]
        return {"y": y, "weights": probabilities}

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
    for name, row in params.get("learned", {}).items():
        result[f"bias_{name}"] = row[None]
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


def seen(generator, shape):
    """Masks that leave each query a key, without which their module gives NaN."""
    x = masked(generator, shape)
    x["mask"][:, 0] = True
    return x


def rotary(t, g):
    """(batch, time, ..., width), with complex numbers."""
    x = g.x.movedim(1, -2)
    return turned(t, x, g.layer.base).movedim(-2, 1)


TWINS = {
    nn.RotaryPositions: rotary,
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

BIASED = {"x": (4, 6), "score_bias": (4, 4)}
PER_HEAD = {"x": (4, 6), "source": (5, 3), "score_bias": (6, 4, 5), "mask": (6, 4, 5)}
SEPARATE = {"x": (4, 6), "source": (5, 3), "value": (5, 4)}

CASES = [
    Case(nn.MultiHeadAttention(2, causal=True), BIASED),
    Case(nn.MultiHeadAttention(6, key_heads=3, head_width=2), PER_HEAD, draw=masked),
    Case(
        nn.MultiHeadAttention(2),
        {**SEPARATE, "mask": (5,), "score_bias": (2, 4, 5)},
        module(2),
        seen,
    ),
    Case(nn.MultiHeadAttention(2, value_width=5, output_width=3), (4, 6)),
    Case(
        nn.MultiHeadAttention(4, key_heads=2, value_width=1, rotary=True),
        {**SEPARATE, "x": (4, 8), "mask": (4, 4, 5)},
        draw=masked,
    ),
    Case(nn.MultiHeadAttention(1), {"x": (4, 6), "value": (4, 2)}, thorough=True),
    Case(nn.MultiHeadAttention(2, window=2), (7, 6)),
    Case(
        nn.MultiHeadAttention(2, window=3, causal=True),
        {"x": (7, 6), "mask": (7,)},
        draw=masked,
    ),
    # the last queries see no key at all
    Case(nn.MultiHeadAttention(2, window=1), {"x": (7, 6), "source": (4, 3)}),
    Case(nn.MultiHeadAttention(3, alibi=True, causal=True), (5, 6)),
    Case(nn.MultiHeadAttention(8, alibi=True, key_heads=2), (5, 8), thorough=True),
    Case(nn.MultiHeadAttention(3, relative=2), (5, 6)),
    Case(
        nn.MultiHeadAttention(4, relative=9, alibi=False, key_heads=2, causal=True),
        {"x": (5, 4), "score_bias": (4, 5, 5), "mask": (5,)},
        draw=masked,
    ),
    Case(
        nn.MultiHeadAttention(2, relative=1, alibi=True, softcap=0.5, window=3),
        {"x": (4, 6), "source": (6, 3), "score_bias": (4, 6), "mask": (6,)},
        draw=masked,
    ),
    Case(nn.MultiHeadAttention(2, softcap=1.5, causal=True), (5, 6)),
    Case(
        nn.MultiHeadAttention(2, zero_key=True),
        {"x": (4, 6), "mask": (4,)},
        module(2, zero_key=True),
        masked,
    ),
    Case(nn.MultiHeadAttention(2, zero_key=True, causal=True), BIASED),
    Case(
        nn.MultiHeadAttention(2, learned_key=True),
        {"x": (4, 6), "mask": (4,)},
        module(2, learned=True),
        masked,
        thorough=True,
    ),
    Case(
        nn.MultiHeadAttention(3, learned_key=True, causal=True, return_weights=True),
        (5, 6),
        module(3, causal=True, weights=True, learned=True),
    ),
    Case(
        nn.MultiHeadAttention(2, learned_key=True, zero_key=True),
        {**SEPARATE, "score_bias": (2, 4, 5)},
        module(2, zero_key=True, learned=True),
        thorough=True,
    ),
    Case(
        nn.MultiHeadAttention(
            4,
            key_heads=2,
            value_width=3,
            learned_key=True,
            rotary=True,
            causal=True,
            relative=2,
            softcap=5.0,
            window=3,
            zero_key=True,
            return_weights=True,
        ),
        {"x": (5, 8), "mask": (5, 5)},
        draw=masked,
    ),
    Case(
        nn.MultiHeadAttention(2, learned_key=True, dropout=0.3, causal=True),
        (4, 6),
        OWN_NUMBERS,
        thorough=True,
    ),
    Case(
        nn.MultiHeadAttention(3, return_weights=True, causal=True),
        (5, 6),
        module(3, causal=True, weights=True),
    ),
    Case(
        nn.MultiHeadAttention(
            4,
            key_heads=2,
            softcap=2.0,
            zero_key=True,
            return_weights=True,
            value_width=3,
        ),
        {"x": (4, 8), "source": (5, 3), "mask": (4, 4, 5)},
        draw=masked,
    ),
    Case(
        nn.MultiHeadAttention(2, return_weights=True, dropout=0.3),
        BIASED,
        OWN_NUMBERS,
    ),
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
    Case(nn.RotaryPositions(), (7, 2)),
    Case(nn.RotaryPositions(), (1, 2, 3, 4), thorough=True),
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
