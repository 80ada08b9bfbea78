"""Recurrent layers, against PyTorch's, with packed sequences for masks."""

from functools import partial

import agnostic_nn as nn

from . import Case


def module(t, layer, fan_in):
    """PyTorch's twin of a layer, its own weights still in it."""
    more = {"nonlinearity": layer.activation} if isinstance(layer, nn.RNN) else {}
    kind = getattr(t.nn, type(layer).__name__)
    shape = (fan_in, layer.width, layer.depth)
    options = {
        "bidirectional": layer.bidirectional,
        "batch_first": True,
        "dtype": t.float64,
    }
    return kind(*shape, **options, **more)


def weights(t, params):
    """Return our parameters by PyTorch's names; only a GRU needs its second bias."""
    result = {}
    for i, layer in enumerate(params):
        for way, p in layer.items():
            end = f"l{i}" + ("_reverse" if way == "reverse" else "")
            second = t.zeros_like(p["bias"])
            if "recurrent_bias" in p:
                width = p["recurrent_bias"].shape[0]
                second = t.cat([second[: 2 * width], p["recurrent_bias"]])
            result |= {
                f"weight_ih_{end}": p["weight"].T,
                f"weight_hh_{end}": p["recurrent"].T,
            }
            result |= {f"bias_ih_{end}": p["bias"], f"bias_hh_{end}": second}
    return result


def packed_sequences(t, g):
    """PyTorch packs what a mask lets through, one example a row."""
    layer = g.layer
    arguments = g.x if isinstance(g.x, dict) else {"x": g.x}
    x, names = arguments["x"], ("h", "c")[: 2 if isinstance(layer, nn.LSTM) else 1]
    ways = ("forward", "reverse")[: 1 + layer.bidirectional]
    places = [(i, way) for i in range(layer.depth) for way in ways]
    mask = arguments.get("mask", t.ones(x.shape[:2], dtype=t.bool))
    zeros = x.new_zeros(len(places), x.shape[0], layer.width)
    start = [
        t.stack([arguments["state"][i][way][name] for i, way in places])
        if "state" in arguments
        else zeros
        for name in names
    ]
    # a sequence of no steps cannot be packed
    there = [row for row in range(x.shape[0]) if bool(mask[row].any())]
    packed = t.nn.utils.rnn.pack_sequence(
        [x[row][mask[row]] for row in there], enforce_sorted=False
    )
    initial = [part[:, there].contiguous() for part in start]
    run = partial(
        t.func.functional_call, module(t, layer, x.shape[2]), weights(t, g.params)
    )
    packed, ends = run((packed, tuple(initial) if len(initial) == 2 else initial[0]))
    result, _ = t.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)

    y = x.new_zeros(*x.shape[:2], result.shape[2])
    final = [part.clone() for part in start]
    for place, row in enumerate(there):
        y[row, mask[row]] = result[place, : int(mask[row].sum())]
    for part, end in zip(final, ends if len(initial) == 2 else (ends,), strict=True):
        part[:, there] = end
    if not layer.sequence:
        y = t.cat(list(final[0][-len(ways) :]), dim=-1)
    if not layer.final:
        return y
    state = [dict(zip(names, parts, strict=True)) for parts in zip(*final, strict=True)]
    pairs = dict(zip(places, state, strict=True))
    return {
        "y": y,
        "state": tuple(
            {way: pairs[i, way] for way in ways} for i in range(layer.depth)
        ),
    }


def reset_before(t, g):
    """Cho et al., eq. 5 to 8: PyTorch has cells for the other convention alone."""
    (layer,) = g.params
    weight, recurrent, bias = (
        layer["forward"][name] for name in ("weight", "recurrent", "bias")
    )
    w_r, w_u, w_n = (weight @ t.eye(weight.shape[1], dtype=weight.dtype)).chunk(3, 1)
    u_r, u_u, u_n = recurrent.chunk(3, 1)
    b_r, b_u, b_n = bias.chunk(3)
    h, ys = g.x.new_zeros(g.x.shape[0], recurrent.shape[0]), []
    for x in g.x.unbind(1):
        r = t.sigmoid(x @ w_r + h @ u_r + b_r)
        z = t.sigmoid(x @ w_u + h @ u_u + b_u)
        h = z * h + (1 - z) * t.tanh(x @ w_n + (r * h) @ u_n + b_n)
        ys.append(h)
    return t.stack(ys, 1)


def gru(t, g):
    return (reset_before if g.layer.reset == "before" else packed_sequences)(t, g)


def case(layer, time=5, fan_in=3, mask=False, state=False, **more):
    """Return a case of sequences, with or without a mask and an initial state."""
    shape = {"x": (time, fan_in)}
    if mask:
        shape["mask"] = (time,)
    if state:
        names = ("h", "c") if isinstance(layer, nn.LSTM) else ("h",)
        ways = ("forward", "reverse")[: 1 + layer.bidirectional]
        state_shape = dict.fromkeys(names, (layer.width,))
        shape["state"] = (dict.fromkeys(ways, state_shape),) * layer.depth
    return Case(layer, shape if len(shape) > 1 else shape["x"], **more)


TWINS = {nn.GRU: gru, nn.LSTM: packed_sequences, nn.RNN: packed_sequences}

BOTH = {"depth": 2, "bidirectional": True, "final": True}
WITHOUT = "PyTorch resets after the product only"


def sweep():
    """Yield pairs of depth and directions, outputs, and inputs; one loop runs all."""
    for a in range(4):
        for b in range(4):
            options = {"depth": 1 + a // 2, "bidirectional": a % 2 == 1}
            options |= {"sequence": b // 2 == 0, "final": b % 2 == 1}
            c = (a + b) % 4
            layer = nn.RNN(2, **options)
            # all parameters moved at once bend a deep tanh more than differences follow
            yield case(
                layer,
                4,
                2,
                mask=c // 2 == 1,
                state=c % 2 == 1,
                thorough=True,
                slack=4.0,
            )


CASES = [
    case(nn.GRU(4, reset="before")),
    case(nn.RNN(2, activation="relu", **BOTH), mask=True, state=True),
    case(nn.GRU(2, **BOTH), 4, 2, mask=True, state=True),
    case(nn.LSTM(2, **BOTH), 4, 2, mask=True, state=True),
    case(nn.LSTM(3, bidirectional=True, sequence=False), 4, 2, mask=True),
    case(
        nn.GRU(2, reset="before", **BOTH),
        4,
        2,
        True,
        True,
        theirs=WITHOUT,
        thorough=True,
    ),
    case(nn.LSTM(4), 1, thorough=True),
    case(nn.GRU(1, depth=3), 2, 1, thorough=True),
    *sweep(),
]
