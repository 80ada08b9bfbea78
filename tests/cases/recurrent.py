"""Recurrent layers, against PyTorch's, with packed sequences for masks."""

from dataclasses import replace
from functools import partial

import agnostic_nn as nn

from . import Case, Given


def module(t, layer, fan_in):
    """PyTorch's twin of a layer, its own weights still in it."""
    more = {"nonlinearity": layer.activation} if isinstance(layer, nn.RNN) else {}
    if isinstance(layer, nn.LSTM) and layer.projection is not None:
        more["proj_size"] = layer.projection
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
        for n, p in enumerate(layer.values()):
            end = f"l{i}" + "_reverse" * n
            second = t.zeros_like(p["bias"])
            if "recurrent_bias" in p:
                width = p["recurrent_bias"].shape[0]
                second = t.cat([second[: 2 * width], p["recurrent_bias"]])
            result |= {
                f"weight_ih_{end}": p["weight"].T,
                f"weight_hh_{end}": p["recurrent"].T,
            }
            result |= {f"bias_ih_{end}": p["bias"], f"bias_hh_{end}": second}
            if "projection" in p:
                result[f"weight_hr_{end}"] = p["projection"].T
    return result


def directions(layer):
    if layer.bidirectional:
        return ("forward", "reverse")
    return ("reverse",) if layer.reverse else ("forward",)


def state_widths(layer):
    """Return the lengths of the arrays of a state, by name."""
    if isinstance(layer, nn.LSTM):
        return {"h": layer.projection or layer.width, "c": layer.width}
    return {"h": layer.width}


def with_dropout(t, g):
    """One layer after the other, with our masks between: PyTorch draws others."""
    layer = g.layer
    keys = nn.random.split(g.state["key"].numpy(), layer.depth)
    inputs = dict(g.x) if isinstance(g.x, dict) else {"x": g.x}
    starts = inputs.pop("state", None)
    ends = []
    for i in range(layer.depth):
        last = i == layer.depth - 1
        one = replace(
            layer, depth=1, dropout=0.0, final=True, sequence=layer.sequence or not last
        )
        if i > 0:
            shape = tuple(inputs["x"].shape)
            keep_mask = t.tensor(nn.random.bernoulli(keys[i], 1 - layer.dropout, shape))
            inputs["x"] = inputs["x"] * keep_mask / (1 - layer.dropout)
        start = {} if starts is None else {"state": (starts[i],)}
        arguments = Given(one, (g.params[i],), {}, inputs | start, g.train)
        result = packed_sequences(t, arguments)
        inputs["x"] = result["y"]
        ends += result["state"]
    y = inputs["x"]
    return ({"y": y, "state": tuple(ends)} if layer.final else y), g.state


def packed_sequences(t, g):
    """PyTorch packs what a mask lets through, one example a row."""
    if g.layer.dropout > 0.0 and g.train:
        return with_dropout(t, g)
    layer = g.layer
    arguments = g.x if isinstance(g.x, dict) else {"x": g.x}
    x, widths = arguments["x"], state_widths(layer)
    names, ways = tuple(widths), directions(layer)
    places = [(i, way) for i in range(layer.depth) for way in ways]
    mask = arguments.get("mask", t.ones(x.shape[:2], dtype=t.bool))
    start = [
        t.stack([arguments["state"][i][way][name] for i, way in places])
        if "state" in arguments
        else x.new_zeros(len(places), x.shape[0], width)
        for name, width in widths.items()
    ]
    # a sequence of no steps cannot be packed
    there = [row for row in range(x.shape[0]) if bool(mask[row].any())]

    def in_order(steps):
        # PyTorch has no layer of the reverse direction alone
        return steps.flip(0) if layer.reverse else steps

    packed = t.nn.utils.rnn.pack_sequence(
        [in_order(x[row][mask[row]]) for row in there], enforce_sorted=False
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
        y[row, mask[row]] = in_order(result[place, : int(mask[row].sum())])
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
        state_shape = {name: (width,) for name, width in state_widths(layer).items()}
        shape["state"] = (dict.fromkeys(directions(layer), state_shape),) * layer.depth
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
    case(nn.RNN(3, reverse=True)),
    case(nn.GRU(2, reverse=True, depth=2, final=True), 4, 2, mask=True, state=True),
    case(nn.LSTM(3, reverse=True, sequence=False)),
    case(nn.LSTM(4, projection=2)),
    case(nn.LSTM(3, projection=2, **BOTH), 4, 2, mask=True, state=True),
    case(nn.LSTM(5, projection=1, reverse=True, sequence=False), 4, 2, thorough=True),
    case(nn.RNN(3, depth=2, dropout=0.3)),
    case(nn.GRU(3, depth=3, dropout=0.5, sequence=False), 4, 2, thorough=True),
    case(nn.LSTM(3, dropout=0.4, projection=2, **BOTH), 4, 2, mask=True, state=True),
    *sweep(),
]
