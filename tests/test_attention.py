"""Attention: masks, rows without a key, and caches."""

import math
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.layers.positions import angles, rotate
from agnostic_nn.ops import attend, attend_backward

HOST = nn.backend("numpy").xp


def made(layer, shape, dtype, **zeroed):
    """Parameters and state on the host, away from where they start; some named weights are 0."""
    generator = np.random.default_rng(1)
    params, state, _ = layer.init(
        nn.random.key(0, xp=HOST), shape, getattr(HOST, dtype)
    )
    params = tree_map(
        lambda p: (p + generator.uniform(-0.5, 0.5, p.shape)).astype(dtype), params
    )
    for name, value in zeroed.items():
        params[name] = tree_map(
            lambda p, value=value: np.full_like(p, value), params[name]
        )
    return params, state


def forward(backend, layer, params, state, x):
    """y of the backend, compiled, as a NumPy array."""
    compiled = backend.jit(lambda *arrays: layer.forward(*arrays)[0])
    return backend.to_numpy(compiled(*backend.asarray((params, state, x))))


def run(backend, layer, params, state, x, dy):
    """y, dx by name and grads of the backend, compiled, as NumPy arrays."""

    def both(params, state, x, dy):
        y, _, cache = layer.forward(params, state, x)
        dx, grads = layer.backward(params, cache, dy)
        dx = dx if isinstance(dx, dict) else {"x": dx}
        return y, {name: d for name, d in dx.items() if d is not None}, grads

    return backend.to_numpy(backend.jit(both)(*backend.asarray((params, state, x, dy))))


def means(x, allowed):
    """The mean over the allowed keys of x for each query, zeros where there is none."""
    share = allowed / np.maximum(allowed.sum(-1, keepdims=True), 1)
    return share @ x


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, "keys", "pairs"])
def test_where_all_keys_score_alike_attention_is_the_mean_of_those_allowed(
    backend, draw, widest, epsilon, causal, mask
):
    """Queries of 0 make every score 0; what may be seen is all that is left to get wrong."""
    x, layer = draw(3, 5, 4), nn.MultiHeadAttention(2, causal=causal)
    params, state = made(layer, (5, 4), widest, query=0.0)
    allowed = np.ones((3, 5, 5), bool)
    arguments = {"x": x}
    if mask:
        seen = (
            np.random.default_rng(3).random((3, 5) if mask == "keys" else (3, 5, 5))
            < 0.6
        )
        arguments["mask"] = seen
        allowed &= seen[:, None, :] if mask == "keys" else seen
    if causal:
        allowed &= np.tri(5, dtype=bool)
    y = forward(backend, layer, params, state, arguments if mask else x)
    value, output = params["value"], params["output"]
    heads = means(x @ value["weight"] + value["bias"], allowed)
    expected = heads @ output["weight"] + output["bias"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * epsilon)


def test_a_query_that_may_see_no_key_gets_the_bias_and_sends_no_gradient_back(
    backend, draw, widest
):
    layer = nn.MultiHeadAttention(2, causal=True)
    x, source = draw(2, 3, 4), draw(2, 5, 6)
    mask = np.ones((2, 5), bool)
    mask[0, :] = False
    # of a causal layer the first two queries of the second see none either
    mask[1, :2] = False
    shape = {"x": (3, 4), "source": (5, 6), "mask": (5,)}
    params, state = made(layer, shape, widest)
    arguments = {"x": x, "source": source, "mask": mask}
    y, dx, grads = run(backend, layer, params, state, arguments, draw(2, 3, 4))
    bias = params["output"]["bias"]
    np.testing.assert_array_equal(y[0], np.broadcast_to(bias, (3, 4)))
    np.testing.assert_array_equal(y[1, :2], np.broadcast_to(bias, (2, 4)))
    assert not np.array_equal(y[1, 2], bias)
    assert not dx["x"][0].any()
    assert not dx["source"][0].any()
    assert not dx["x"][1, :2].any()
    assert all(np.isfinite(leaf).all() for leaf in leaves((dx, grads)))


def test_a_source_that_is_the_same_array_as_x_gets_a_gradient_of_its_own(
    backend, draw, widest
):
    layer = nn.MultiHeadAttention(2)
    params, state = made(layer, {"x": (3, 4), "source": (3, 4)}, widest)
    params, state, x, dy = backend.asarray(
        (params, state, draw(2, 3, 4), draw(2, 3, 4))
    )
    _, _, cache = layer.forward(params, state, {"x": x, "source": x})
    twice, _ = layer.backward(params, cache, dy)
    _, _, cache = layer.forward(params, state, x)
    once, _ = layer.backward(params, cache, dy)
    total = backend.to_numpy(twice["x"] + twice["source"])
    np.testing.assert_allclose(total, backend.to_numpy(once), rtol=0, atol=1e-5)


def test_what_a_mask_hides_changes_nothing_and_gets_no_gradient(backend, draw, widest):
    layer = nn.MultiHeadAttention(2, rotary=True)
    shape = {"x": (3, 4), "source": (5, 4), "mask": (5,)}
    params, state = made(layer, shape, widest)
    arguments = {
        "x": draw(2, 3, 4),
        "source": draw(2, 5, 4),
        "mask": np.ones((2, 5), bool),
    }
    arguments["mask"][:, 3:] = False
    dy = draw(2, 3, 4)
    loud = arguments | {"source": arguments["source"].copy()}
    loud["source"][:, 3:] = 1e15
    y, dx, grads = run(backend, layer, params, state, arguments, dy)
    again, dloud, gloud = run(backend, layer, params, state, loud, dy)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(dloud["source"], dx["source"])
    assert not dx["source"][:, 3:].any()
    for (name, one), other in zip(named_leaves(grads), leaves(gloud), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_a_sequence_filled_up_to_a_length_is_read_as_it_is_alone(
    backend, draw, widest, epsilon
):
    block = nn.TransformerBlock(nn.MultiHeadAttention(2, rotary=True), hidden=8)
    params, state = made(block, (6, 4), widest)
    x = draw(1, 6, 4)
    mask = np.arange(6)[None, :] < 4
    padded = forward(backend, block, params, state, {"x": x, "mask": mask})
    alone, _, _ = block.forward(params, state, x[:, :4])
    np.testing.assert_allclose(padded[:, :4], alone, rtol=0, atol=64 * epsilon)


@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_scores_beyond_what_exp_can_take_pick_one_key(backend, widest, dtype):
    """Q K / √d reaches 1e8; the largest score wins, and its gradient is finite."""
    dtype = widest if dtype == "widest" else dtype
    layer = nn.MultiHeadAttention(1, bias=False)
    identity = {"weight": np.eye(2, dtype=dtype)}
    params = dict.fromkeys(("query", "key", "value", "output"), identity)
    x = np.asarray([[[1e4, 0], [0, 1e4], [9e3, 9e3]]], dtype)
    y, dx, grads = run(backend, layer, params, {}, x, x)
    np.testing.assert_array_equal(y, [[[1e4, 0], [0, 1e4], [9e3, 9e3]]])
    assert all(np.isfinite(leaf).all() for leaf in leaves((dx, grads)))


def test_heads_that_share_keys_are_heads_with_equal_keys(
    backend, draw, widest, epsilon
):
    """Neighbours share: the third of six heads of queries belongs to the first of two of keys."""
    shared = nn.MultiHeadAttention(6, key_heads=2, head_width=3, causal=True)
    params, state = made(shared, (5, 4), widest)
    alone = nn.MultiHeadAttention(6, head_width=3, causal=True)

    def repeated(leaf):
        split = leaf.reshape(*leaf.shape[:-1], 2, 3)
        return np.repeat(split, 3, axis=-2).reshape(*leaf.shape[:-1], 18)

    spread = params | {
        name: tree_map(repeated, params[name]) for name in ("key", "value")
    }
    x, dy = draw(2, 5, 4), draw(2, 5, 4)
    y, dx, grads = run(backend, shared, params, state, x, dy)
    y6, dx6, grads6 = run(nn.backend("numpy"), alone, spread, state, x, dy)
    summed = grads6["key"]["weight"].reshape(4, 2, 3, 3).sum(2).reshape(4, 6)
    for one, other in ((y, y6), (dx["x"], dx6["x"]), (grads["key"]["weight"], summed)):
        scale = max(np.abs(other).max(), 1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=64 * epsilon * scale)


def test_turned_queries_and_keys_know_their_distance_and_nothing_else(
    backend, draw, widest, epsilon
):
    x, y = draw(1, 8), draw(1, 8)

    def product(x, y, places):
        def at(v, place):
            return rotate(v, angles(v, place, 8, 10_000.0))

        xp = backend.xp
        pairs = [(i, j) for i in range(4) for j in range(4)]
        result = [
            xp.sum(at(x, places[i : i + 1]) * at(y, places[j : j + 1]))
            for i, j in pairs
        ]
        return xp.reshape(xp.stack(result), (4, 4))

    def at(*places):
        places = np.asarray(places, np.int32)
        return backend.to_numpy(backend.jit(product)(*backend.asarray((x, y, places))))

    near = at(0, 1, 2, 5)
    atol = 64 * epsilon * np.abs(x).max() * np.abs(y).max() * 8
    np.testing.assert_allclose(at(40, 41, 42, 45), near, rtol=0, atol=atol)
    np.testing.assert_allclose(np.diag(near), np.sum(x * y), rtol=0, atol=atol)
    assert abs(near[0, 1] - near[1, 0]) > 0.01  # before is not after
    assert abs(near[0, 1] - near[0, 2]) > 0.01


def test_turning_the_other_way_is_the_inverse(backend, draw, epsilon):
    x = draw(2, 5, 6)

    def there_and_back(x):
        angle = angles(x, backend.xp.arange(5, device=backend.device), 6, 100.0)
        return rotate(rotate(x, angle), -angle)

    back = backend.to_numpy(backend.jit(there_and_back)(backend.asarray(x)))
    np.testing.assert_allclose(back, x, rtol=0, atol=16 * epsilon)


def test_dropout_of_weights_is_that_of_a_mean_and_the_same_on_every_backend(
    backend, widest
):
    """Keys score alike and every value is 1: O is the share of weights that were kept."""
    layer = nn.MultiHeadAttention(1, dropout=0.25)
    params, state = made(layer, (64, 1), widest, query=0.0, value=0.0, output=0.0)
    params["value"]["bias"] += 1.0
    params["output"]["weight"] += 1.0
    x = np.zeros((50, 64, 1), widest)
    train = partial(layer.forward, train=True)
    there, state_there, _ = train(params, state, x)
    step = backend.jit(lambda *arrays: train(*arrays)[:2])
    y, after = step(*backend.asarray((params, state, x)))
    other, _ = step(*backend.asarray((params, state_there, x)))
    y, after, other = backend.to_numpy((y, after, other))
    kept = np.round(y * 64 * 0.75)
    np.testing.assert_array_equal(kept, np.round(there * 64 * 0.75))
    np.testing.assert_array_equal(after["key"], state_there["key"])
    deviation = math.sqrt(0.25 * 0.75 / (50 * 64 * 64))
    assert abs(kept.mean() / 64 - 0.75) < 4 * deviation
    assert not np.array_equal(other, y)
    predicted, unchanged, _ = layer.forward(params, state, x)
    np.testing.assert_allclose(predicted, 1.0, rtol=1e-6)
    assert unchanged is state


OWN = [  # (batch, heads, group, queries, keys, width), causal, mask, dropout
    ((2, 3, 1, 5, 5, 4), True, None, False),
    ((1, 2, 1, 1, 1, 1), False, None, False),
    ((0, 2, 1, 3, 4, 2), True, None, False),
    ((2, 2, 3, 70, 40, 2), False, "keys", True),
    ((3, 2, 2, 65, 66, 3), True, "pairs", True),
    ((2, 3, 2, 40, 90, 1), True, None, False),
    ((5, 3, 1, 130, 130, 4), True, "keys", False),
    ((70, 3, 1, 20, 21, 2), False, None, False),
]


@pytest.mark.parametrize("dtype", ["float32", "widest"])
@pytest.mark.parametrize(("sizes", "causal", "mask", "dropout"), OWN, ids=str)
def test_a_version_of_ones_own_attends_as_the_standard_one_does(
    backend, widest, sizes, causal, mask, dropout, dtype
):
    """In pieces or not, wherever numbers lie in memory, and where a query sees no key at all."""
    standard = [f.dispatch(object) for f in (attend, attend_backward)]
    if attend.dispatch(type(backend.asarray(np.ones(1, "float32")))) is standard[0]:
        pytest.skip(f"{backend.name} has no version of its own")
    dtype = widest if dtype == "widest" else dtype
    generator, (*heads, time, keys, width) = np.random.default_rng(0), sizes
    few, all_heads = (*heads[:2], keys, width), (*heads, time, width)
    draws = [
        generator.standard_normal(s).astype(dtype)
        for s in (all_heads, few, few, all_heads)
    ]
    allowed = kept = ()
    if mask:
        allowed = (
            generator.random((heads[0], 1, 1, 1 if mask == "keys" else time, keys))
            < 0.5
        )
        allowed[-1:] = False
        allowed = backend.asarray(allowed)
    if dropout:
        kept = (generator.random((*heads, time, keys)) < 0.75).astype(
            dtype
        ) * np.asarray(4 / 3, dtype)
        kept = backend.asarray(kept)

    def run(forward, backward, query, key, value, dy):
        o, cache = forward(query, key, value, allowed, kept, causal=causal)
        slopes = backward(query, key, value, allowed, kept, o, cache, dy, causal=causal)
        return backend.to_numpy((o, *slopes))

    expected = run(*standard, *backend.asarray(tuple(draws)))
    for axis, place in [(0, 0), (0, 1), (-2, 1), (-1, 0)]:
        there = [backend.asarray(np.moveaxis(x, axis, place)) for x in draws]
        there = [backend.xp.moveaxis(x, place, axis) for x in there]
        for x, wanted in zip(
            run(attend, attend_backward, *there), expected, strict=True
        ):
            assert (x.dtype, x.shape) == (dtype, wanted.shape)
            # sums of up to 400 products of numbers of order
            # 1, in another order: measured 8 eps
            atol = 32 * np.finfo(dtype).eps * np.max(abs(wanted), initial=1.0)
            np.testing.assert_allclose(x, wanted, rtol=0, atol=atol)
        for x, before in zip(there, draws, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(x), before)


@pytest.mark.parametrize("more", [0, 17, 3000])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_may_be_as_large_as_they_come_and_nan_stays_nan(
    backend, widest, causal, more
):
    """Of scores far apart the largest takes all, those of a query of 0 are equal."""
    query = np.asarray([1.0, -1.0, 0.0, math.nan], widest).reshape(1, 1, 1, 4, 1)
    key = np.asarray([3e4, 1e4, -3e4, *[0.0] * more], widest).reshape(1, 1, -1, 1)
    value = np.asarray([1.0, 2.0, 3.0, *[2.0] * more], widest).reshape(1, 1, -1, 1)
    o, _ = attend(*backend.asarray((query, key, value)), causal=causal)
    expected = [1.0, 2.0 if causal else 3.0, 2.0, math.nan]
    np.testing.assert_allclose(backend.to_numpy(o).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "given", [{}, {"mask": (90,)}, {"source": (110, 6), "mask": (110,)}], ids=str
)
def test_nothing_is_kept_but_what_the_derivation_names(given):
    """x, Q, K, V, O, source and mask, each once; on NumPy two numbers a row stand for P."""
    layer = nn.MultiHeadAttention(4, key_heads=2, causal=True, rotary=True)
    shape = {"x": (90, 8), **given}
    params, state = made(layer, shape, "float32")
    draw = np.random.default_rng(0)
    x = {n: draw.standard_normal((3, *s)).astype("float32") for n, s in shape.items()}
    if "mask" in x:
        x["mask"] = x["mask"] > 0
    _, _, cache = layer.forward(params, state, x, train=True)
    keys = 110 if "source" in given else 90
    kept = {
        "x": 90 * 8,
        "Q": 90 * 8,
        "K": keys * 4,
        "V": keys * 4,
        "P": 2 * 4 * 90,
        "O": 90 * 8,
    }
    kept["source"] = 110 * 6 if "source" in given else 0
    kept["mask"] = keys / 4 if "mask" in given else 0  # a byte each, numbers have four
    assert sum(leaf.nbytes for leaf in leaves(cache)) == 4 * 3 * sum(kept.values())


def test_the_parameters_of_a_block_read_like_it():
    """And a bias that a layer has not is not there."""
    block = nn.TransformerBlock(
        nn.MultiHeadAttention(2, bias=False),
        hidden=6,
        cross=nn.MultiHeadAttention(1, bias=False),
        activation=nn.SwiGLU(),
        norm=nn.RMSNorm(),
        dropout=0.1,
    )
    params, state = made(block, {"x": (3, 4), "source": (5, 7)}, "float32")
    assert {name: leaf.shape for name, leaf in named_leaves(params)} == {
        "attention.query.weight": (4, 4),
        "attention.key.weight": (4, 4),
        "attention.value.weight": (4, 4),
        "attention.output.weight": (4, 4),
        "attention_norm.scale": (4,),
        "cross.query.weight": (4, 4),
        "cross.key.weight": (7, 4),
        "cross.value.weight": (7, 4),
        "cross.output.weight": (4, 4),
        "cross_norm.scale": (4,),
        "feed.0.weight": (4, 6),
        "feed.0.bias": (6,),
        "feed.2.weight": (3, 4),
        "feed.2.bias": (4,),
        "feed_norm.scale": (4,),
    }
    keys = dict(named_leaves(state))
    assert set(keys) == {
        f"{part}_dropout.key" for part in ("attention", "cross", "feed")
    }
    assert len({leaf.tobytes() for leaf in keys.values()}) == 3


def marked(layer):
    """A layer like this one whose `predict` asks for one more thing: to be told apart."""
    options = []

    class Marked(type(layer)):
        def predict(self, params, state, x):
            options.append(x)
            return super().predict(params, state, x)

    return Marked(**vars(layer)), options


@pytest.mark.parametrize("name", ["attention", "cross", "activation", "norm"])
def test_a_block_predicts_by_what_its_parts_predict(draw, widest, name):
    """So nothing is kept on the way that only `backward` would ask for."""
    parts = {
        "attention": nn.MultiHeadAttention(2, causal=True),
        "cross": nn.MultiHeadAttention(1),
        "activation": nn.GELU(),
        "norm": nn.LayerNorm(),
    }
    part, options = marked(parts[name])
    block = nn.TransformerBlock(hidden=6, **parts | {name: part})
    x = {"x": draw(2, 3, 4), "source": draw(2, 5, 7)}
    params, state = made(block, {"x": (3, 4), "source": (5, 7)}, widest)
    y = block.predict(params, state, x)
    np.testing.assert_array_equal(y, block.forward(params, state, x)[0])
    assert len(options) == (3 if name == "norm" else 1)


def test_sines_and_cosines_are_those_of_the_paper(backend, widest, epsilon):
    x = np.zeros((1, 50, 6), widest)
    y = forward(backend, nn.SinusoidalPositions(), {}, {}, x)
    place = np.arange(50.0)[:, None]
    pair = place / 10_000.0 ** (np.arange(0, 6, 2) / 6)
    expected = np.stack((np.sin(pair), np.cos(pair)), -1).reshape(50, 6)
    # angles of up to 50 are off by an eps of theirs
    # for each: the exponent, exp and the product
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=4 * 50 * epsilon)


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


ATTENTION, X = nn.MultiHeadAttention(2), zeros(2, 3, 4)
CROSS = nn.TransformerBlock(ATTENTION, hidden=3, cross=ATTENTION)
REFUSED = [  # layer, shapes it was made for, x, error and message
    (
        ATTENTION,
        (3, 4),
        zeros(2, 4),
        ValueError,
        r"\(batch, time, width\), got \(batch, \*\(4,\)\)",
    ),
    (ATTENTION, (3, 4), zeros(2, 3, 5), ValueError, r"\(\.\.\., 4\), got .*2, 3, 5"),
    (
        ATTENTION,
        (3, 4),
        {"x": X, "y": X},
        ValueError,
        r"takes .*'source', 'mask'.*got .*'y'",
    ),
    (ATTENTION, (3, 4), {"source": X}, ValueError, r"takes \['x', .*got \['source'\]"),
    (
        ATTENTION,
        (3, 4),
        {"x": X, "mask": zeros(2, 3)},
        TypeError,
        "boolean mask, got .*float32",
    ),
    (
        ATTENTION,
        (3, 4),
        {"x": X, "mask": zeros(2, 4, dtype="bool")},
        ValueError,
        r"a mask \(2, 3\) or \(2, 3, 3\), got \(2, 4\)",
    ),
    (
        ATTENTION,
        (3, 4),
        {"x": X, "source": zeros(2, 4)},
        ValueError,
        r"got \(batch, \*\(4,\)\)",
    ),
    (
        CROSS,
        {"x": (3, 4), "source": (3, 4)},
        X,
        ValueError,
        r"go together, got \['x'\]",
    ),
    (
        nn.TransformerBlock(ATTENTION, hidden=3),
        (3, 4),
        {"x": X, "source": X},
        ValueError,
        r"go together, got \['x', 'source'\]",
    ),
    (
        nn.PositionEmbedding(3),
        (3, 4),
        zeros(2, 4, 4),
        ValueError,
        "there are 3 positions, got 4",
    ),
    (
        nn.PositionEmbedding(3),
        (3, 4),
        zeros(2, 4),
        ValueError,
        r"time, width\), got \(batch, \*\(4,\)\)",
    ),
    (
        nn.Unembedding(3),
        (4,),
        zeros(2, 5),
        ValueError,
        r"Unembedding takes \(\.\.\., 4\), got",
    ),
    (
        nn.Unembedding(3),
        (4,),
        zeros(2, 4, dtype="int32"),
        ValueError,
        "holds .*float32, got",
    ),
]


@pytest.mark.parametrize(("layer", "shape", "x", "error", "message"), REFUSED)
def test_inputs_that_do_not_fit_are_refused_with_their_numbers(
    backend, layer, shape, x, error, message
):
    params, state = made(layer, shape, "float32")
    params, state, x = backend.asarray((params, state, x))
    with pytest.raises(error, match=message):
        layer.forward(params, state, x)


UNFIT = [  # layer, shape of one example, message
    (nn.MultiHeadAttention(3), (5, 4), "3 heads cannot share a width of 4"),
    (
        nn.MultiHeadAttention(2),
        (4,),
        r"\(batch, time, width\), got \(batch, \*\(4,\)\)",
    ),
    (nn.MultiHeadAttention(4, rotary=True), (5, 4), "an even head_width, got 1"),
    (nn.PositionEmbedding(4), (5, 3), "there are 4 positions, got 5"),
    (nn.SinusoidalPositions(), (5, 3), "an even width, got 3"),
    (
        nn.Unembedding(3),
        (),
        r"Unembedding takes \(batch, \.\.\., width\), got \(batch,\)",
    ),
]


@pytest.mark.parametrize(("layer", "shape", "message"), UNFIT)
def test_shapes_that_do_not_fit_are_refused_by_init(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.init(nn.random.key(0, xp=HOST), shape, HOST.float32)


SENSELESS = [  # call, error and message
    (lambda: nn.MultiHeadAttention(0), ValueError, "heads of at least 1, got 0"),
    (
        lambda: nn.MultiHeadAttention(4, key_heads=3),
        ValueError,
        "4 heads cannot share 3 key_heads",
    ),
    (
        lambda: nn.MultiHeadAttention(4, key_heads=0),
        ValueError,
        "key_heads of at least 1",
    ),
    (
        lambda: nn.MultiHeadAttention(4, head_width=1.5),
        TypeError,
        "head_width to be an integer",
    ),
    (
        lambda: nn.MultiHeadAttention(4, dropout=1.0),
        ValueError,
        r"dropout in \[0, 1\), got 1.0",
    ),
    (lambda: nn.MultiHeadAttention(4, base=0.0), ValueError, "base above 0"),
    (
        lambda: nn.TransformerBlock(4, hidden=3),
        TypeError,
        "expected a layer as attention, got 4",
    ),
    (
        lambda: nn.TransformerBlock(ATTENTION, hidden=0),
        ValueError,
        "hidden of at least 1",
    ),
    (lambda: nn.TransformerBlock(ATTENTION, 3, dropout=-1), ValueError, "dropout in"),
    (lambda: nn.PositionEmbedding(0), ValueError, "length of at least 1, got 0"),
    (lambda: nn.SinusoidalPositions(base=-1.0), ValueError, "base above 0"),
    (lambda: nn.Unembedding(0), ValueError, "num_embeddings of at least 1, got 0"),
]


@pytest.mark.parametrize(("make", "error", "message"), SENSELESS)
def test_hyper_parameters_that_make_no_sense_are_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()
