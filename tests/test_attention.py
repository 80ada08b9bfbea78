"""Attention: masks, shared heads, rotary positions, caches and refused inputs."""

import math
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.layers.positions import angles, rotate
from agnostic_nn.ops import attend, attend_backward

HOST = nn.backend("numpy").xp


def initial(layer, shape, dtype, **constants):
    """Return random parameters and state on the host; `constants` are constant."""
    generator = np.random.default_rng(1)
    params, state, _ = layer.init(
        nn.random.key(0, xp=HOST), shape, getattr(HOST, dtype)
    )
    params = tree_map(
        lambda p: (p + generator.uniform(-0.5, 0.5, p.shape)).astype(dtype), params
    )
    for name, value in constants.items():
        params[name] = tree_map(
            lambda p, value=value: np.full_like(p, value), params[name]
        )
    return params, state


def forward(backend, layer, params, state, x):
    """Return y, compiled, as a NumPy array."""
    compiled = backend.jit(lambda *arrays: layer.forward(*arrays)[0])
    return backend.to_numpy(compiled(*backend.asarray((params, state, x))))


def run(backend, layer, params, state, x, dy):
    """Return y, dx by name and grads, compiled, as NumPy arrays."""

    def both(params, state, x, dy):
        y, _, cache = layer.forward(params, state, x)
        dx, grads = layer.backward(params, cache, dy)
        dx = dx if isinstance(dx, dict) else {"x": dx}
        return y, {name: d for name, d in dx.items() if d is not None}, grads

    return backend.to_numpy(backend.jit(both)(*backend.asarray((params, state, x, dy))))


def means(x, allowed):
    """Return for each query the mean of x over its allowed keys, or 0 without any."""
    weights = allowed / np.maximum(allowed.sum(-1, keepdims=True), 1)
    return weights @ x


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, "keys", "pairs"])
def test_attention_with_equal_scores_is_the_mean_over_the_allowed_keys(
    backend, draw, widest, epsilon, causal, mask
):
    """Queries of 0 make every score 0, so y depends on the mask and the values only."""
    x, layer = draw(3, 5, 4), nn.MultiHeadAttention(2, causal=causal)
    params, state = initial(layer, (5, 4), widest, query=0.0)
    allowed = np.ones((3, 5, 5), bool)
    arguments = {"x": x}
    if mask:
        mask_shape = (3, 5) if mask == "keys" else (3, 5, 5)
        visible = np.random.default_rng(3).random(mask_shape) < 0.6
        arguments["mask"] = visible
        allowed &= visible[:, None, :] if mask == "keys" else visible
    if causal:
        allowed &= np.tri(5, dtype=bool)
    y = forward(backend, layer, params, state, arguments if mask else x)
    value, output = params["value"], params["output"]
    heads = means(x @ value["weight"] + value["bias"], allowed)
    expected = heads @ output["weight"] + output["bias"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * epsilon)


def test_a_query_without_an_allowed_key_has_the_bias_as_y_and_no_gradient(
    backend, draw, widest
):
    layer = nn.MultiHeadAttention(2, causal=True)
    x, source = draw(2, 3, 4), draw(2, 5, 6)
    mask = np.ones((2, 5), bool)
    mask[0, :] = False
    # with the causal mask the first two queries of the second example have none, too
    mask[1, :2] = False
    shape = {"x": (3, 4), "source": (5, 6), "mask": (5,)}
    params, state = initial(layer, shape, widest)
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


def test_a_source_that_is_the_same_array_as_x_has_a_separate_gradient(
    backend, draw, widest
):
    layer = nn.MultiHeadAttention(2)
    params, state = initial(layer, {"x": (3, 4), "source": (3, 4)}, widest)
    params, state, x, dy = backend.asarray(
        (params, state, draw(2, 3, 4), draw(2, 3, 4))
    )
    _, _, cache = layer.forward(params, state, {"x": x, "source": x})
    twice, _ = layer.backward(params, cache, dy)
    _, _, cache = layer.forward(params, state, x)
    once, _ = layer.backward(params, cache, dy)
    total = backend.to_numpy(twice["x"] + twice["source"])
    np.testing.assert_allclose(total, backend.to_numpy(once), rtol=0, atol=1e-5)


def test_masked_keys_have_no_effect_and_no_gradient(backend, draw, widest):
    layer = nn.MultiHeadAttention(2, rotary=True)
    shape = {"x": (3, 4), "source": (5, 4), "mask": (5,)}
    params, state = initial(layer, shape, widest)
    arguments = {
        "x": draw(2, 3, 4),
        "source": draw(2, 5, 4),
        "mask": np.ones((2, 5), bool),
    }
    arguments["mask"][:, 3:] = False
    dy = draw(2, 3, 4)
    changed = arguments | {"source": arguments["source"].copy()}
    changed["source"][:, 3:] = 1e15
    y, dx, grads = run(backend, layer, params, state, arguments, dy)
    again, changed_dx, changed_grads = run(backend, layer, params, state, changed, dy)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(changed_dx["source"], dx["source"])
    assert not dx["source"][:, 3:].any()
    pairs = zip(named_leaves(grads), leaves(changed_grads), strict=True)
    for (name, grad), changed_grad in pairs:
        np.testing.assert_array_equal(grad, changed_grad, err_msg=name)


def test_a_padded_sequence_gives_the_results_of_the_sequence_alone(
    backend, draw, widest, epsilon
):
    block = nn.TransformerBlock(nn.MultiHeadAttention(2, rotary=True), hidden=8)
    params, state = initial(block, (6, 4), widest)
    x = draw(1, 6, 4)
    mask = np.arange(6)[None, :] < 4
    padded = forward(backend, block, params, state, {"x": x, "mask": mask})
    alone, _, _ = block.forward(params, state, x[:, :4])
    np.testing.assert_allclose(padded[:, :4], alone, rtol=0, atol=64 * epsilon)


@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_scores_that_overflow_exp_select_one_key(backend, widest, dtype):
    """Q K / √d reaches 1e8. The largest score has weight 1."""
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
    """Of six query heads, the first three use the first of two key heads."""
    shared = nn.MultiHeadAttention(6, key_heads=2, head_width=3, causal=True)
    params, state = initial(shared, (5, 4), widest)
    alone = nn.MultiHeadAttention(6, head_width=3, causal=True)

    def repeated(leaf):
        split = leaf.reshape(*leaf.shape[:-1], 2, 3)
        return np.repeat(split, 3, axis=-2).reshape(*leaf.shape[:-1], 18)

    repeated_params = params | {
        name: tree_map(repeated, params[name]) for name in ("key", "value")
    }
    x, dy = draw(2, 5, 4), draw(2, 5, 4)
    y, dx, grads = run(backend, shared, params, state, x, dy)
    y6, dx6, grads6 = run(nn.backend("numpy"), alone, repeated_params, state, x, dy)
    summed = grads6["key"]["weight"].reshape(4, 2, 3, 3).sum(2).reshape(4, 6)
    dkey = grads["key"]["weight"]
    for actual, expected in ((y, y6), (dx["x"], dx6["x"]), (dkey, summed)):
        scale = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=64 * epsilon * scale)


def test_products_of_rotated_queries_and_keys_depend_on_their_distance_only(
    backend, draw, widest, epsilon
):
    x, y = draw(1, 8), draw(1, 8)

    def products(x, y, positions):
        def rotated(v, position):
            return rotate(v, angles(v, position, 8, 10_000.0))

        xp = backend.xp
        pairs = [(i, j) for i in range(4) for j in range(4)]
        result = [
            xp.sum(rotated(x, positions[i : i + 1]) * rotated(y, positions[j : j + 1]))
            for i, j in pairs
        ]
        return xp.reshape(xp.stack(result), (4, 4))

    def products_at(*positions):
        arrays = backend.asarray((x, y, np.asarray(positions, np.int32)))
        return backend.to_numpy(backend.jit(products)(*arrays))

    near = products_at(0, 1, 2, 5)
    atol = 64 * epsilon * np.abs(x).max() * np.abs(y).max() * 8
    np.testing.assert_allclose(products_at(40, 41, 42, 45), near, rtol=0, atol=atol)
    np.testing.assert_allclose(np.diag(near), np.sum(x * y), rtol=0, atol=atol)
    assert abs(near[0, 1] - near[1, 0]) > 0.01  # the sign of the distance matters
    assert abs(near[0, 1] - near[0, 2]) > 0.01


def test_rotation_by_the_negative_angle_is_the_inverse(backend, draw, epsilon):
    x = draw(2, 5, 6)

    def there_and_back(x):
        angle = angles(x, backend.xp.arange(5, device=backend.device), 6, 100.0)
        return rotate(rotate(x, angle), -angle)

    back = backend.to_numpy(backend.jit(there_and_back)(backend.asarray(x)))
    np.testing.assert_allclose(back, x, rtol=0, atol=16 * epsilon)


def test_dropout_of_weights_has_the_given_rate_and_is_the_same_on_every_backend(
    backend, widest
):
    """Scores are equal and values are 1, so O is the share of weights not dropped."""
    layer = nn.MultiHeadAttention(1, dropout=0.25)
    params, state = initial(layer, (64, 1), widest, query=0.0, value=0.0, output=0.0)
    params["value"]["bias"] += 1.0
    params["output"]["weight"] += 1.0
    x = np.zeros((50, 64, 1), widest)
    train = partial(layer.forward, train=True)
    expected, expected_state, _ = train(params, state, x)
    step = backend.jit(lambda *arrays: train(*arrays)[:2])
    y, after = step(*backend.asarray((params, state, x)))
    other, _ = step(*backend.asarray((params, expected_state, x)))
    y, after, other = backend.to_numpy((y, after, other))
    count = np.round(y * 64 * 0.75)
    np.testing.assert_array_equal(count, np.round(expected * 64 * 0.75))
    np.testing.assert_array_equal(after["key"], expected_state["key"])
    deviation = math.sqrt(0.25 * 0.75 / (50 * 64 * 64))
    assert abs(count.mean() / 64 - 0.75) < 4 * deviation
    assert not np.array_equal(other, y)
    predicted, unchanged, _ = layer.forward(params, state, x)
    np.testing.assert_allclose(predicted, 1.0, rtol=1e-6)
    assert unchanged is state


GENERAL = [  # options and inputs that native versions lack, in sizes that they take
    {"alibi": True},
    {"relative": 4},
    {"softcap": 0.1},
    {"zero_key": True},
    {"learned_key": True},
    {"return_weights": True},
    {"window": 5},
    {"value_width": 5},
    {"score_bias": ()},
    {"score_bias": (4,)},
    {"mask": (4,)},
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("option", GENERAL, ids=str)
def test_an_option_has_the_same_effect_in_sizes_of_native_versions(
    backend, widest, epsilon, option, causal
):
    """Part of a long sequence equals the short one, which NumPy computes directly."""
    option = dict(option)
    pairs = {n: option.pop(n) for n in ("score_bias", "mask") if n in option}
    layer = nn.MultiHeadAttention(4, key_heads=2, causal=causal, **option)
    generator = np.random.default_rng(0)

    def inputs(time):
        x = {"x": generator.standard_normal((2, time, 8)).astype(widest)}
        for name, heads in pairs.items():
            x[name] = generator.standard_normal((2, *heads, time, time))
            x[name] = x[name] > 0 if name == "mask" else x[name].astype(widest)
        return x

    long = inputs(80)
    short = {n: a[:, :5] if n == "x" else a[..., :5, :5] for n, a in long.items()}
    hidden = np.arange(80)[None, :] < 5
    hidden = np.broadcast_to(hidden, (2, 80))
    if "mask" in long:
        long["mask"] = long["mask"] & hidden[:, None, None, :]
    else:
        long["mask"] = hidden
    params, state = initial(layer, {"x": (80, 8)}, widest)
    dy = generator.standard_normal((2, 80, 8)).astype(widest)
    dy[:, 5:] = 0.0
    short_dy = dy[:, :5]
    if layer.return_weights:
        dweights = generator.standard_normal((2, 4, 80, 80)).astype(widest)
        dweights[:, :, 5:] = 0.0
        dy = {"y": dy, "weights": dweights}
        short_dy = {"y": short_dy, "weights": dweights[..., :5, :5]}
    y, dx, grads = run(backend, layer, params, state, long, dy)
    numpy = nn.backend("numpy")
    arguments = (params, state, short, short_dy)
    expected_y, expected_dx, expected = run(numpy, layer, *arguments)
    if layer.return_weights:
        weights = y["weights"][..., :5, :5]
        expected_weights = expected_y["weights"]
        atol = 32 * epsilon
        np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=atol)
        y = y["y"]
        expected_y = expected_y["y"]
    results = {"y": y[:, :5], "dx": dx["x"][:, :5], "grads": grads}
    references = {"y": expected_y, "dx": expected_dx["x"], "grads": expected}
    if "score_bias" in pairs:
        results["bias"] = dx["score_bias"][..., :5, :5]
        references["bias"] = expected_dx["score_bias"]
    for (name, a), b in zip(named_leaves(results), leaves(references), strict=True):
        atol = 64 * epsilon * max(np.abs(b).max(), 1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def test_an_infinite_bias_hides_keys_as_a_mask_does(backend, draw, widest):
    """Also all keys of a query. NaN is not hidden."""
    layer = nn.MultiHeadAttention(2)
    params, state = initial(layer, {"x": (5, 4)}, widest)
    x = draw(2, 5, 4)
    mask = np.random.default_rng(0).random((2, 5, 5)) < 0.5
    mask[1, 2] = False
    zero = np.zeros((2, 5, 5), widest)
    hidden = {"x": x, "score_bias": np.where(mask, zero, -math.inf).astype(widest)}
    dy = draw(2, 5, 4)
    y, dx, grads = run(backend, layer, params, state, hidden, dy)
    masked = {"x": x, "mask": mask, "score_bias": zero}
    expected = run(backend, layer, params, state, masked, dy)
    for a, b in zip(leaves((y, dx, grads)), leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(y[1, 2], params["output"]["bias"])
    layer.check(hidden)
    for wrong in (math.nan, math.inf):
        zero[0, 1, 2] = wrong
        with pytest.raises(ValueError, match=r"score_bias\[0, 1, 2\]"):
            layer.check({"x": x, "score_bias": zero})
    zero[0, 1, 2] = math.nan
    y = forward(backend, layer, params, state, {"x": x, "score_bias": zero})
    assert np.isnan(y[0, 1]).all()


def test_options_in_float16_are_close_to_float64(backend):
    """Products of queries and keys reach 9e4 and overflow float16; they are capped."""
    if not backend.has_dtype("float16"):
        pytest.skip(f"{backend.name} has no float16")
    layer = nn.MultiHeadAttention(
        2, alibi=True, relative=3, softcap=5.0, zero_key=True, return_weights=True
    )
    params, state = initial(layer, (20, 4), "float64")
    x = np.round(np.random.default_rng(0).standard_normal((2, 20, 4)))
    # integers, so that large scores have no error before the cap
    for name in ("query", "key"):
        params[name] = tree_map(lambda p: np.round(p * 4) * 32, params[name])
    dy = {"y": x, "weights": np.ones((2, 2, 20, 20))}

    def narrow(tree):
        return tree_map(lambda leaf: leaf.astype("float16"), tree)

    arrays = narrow((params, x, dy))
    wide = tree_map(lambda leaf: leaf.astype("float64"), arrays)
    result = run(backend, layer, arrays[0], state, *arrays[1:])
    expected = run(nn.backend("numpy"), layer, wide[0], state, *wide[1:])
    for (name, a), b in zip(named_leaves(result), leaves(expected), strict=True):
        assert a.dtype == "float16", name
        atol = 4e-3 * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


NATIVE = [  # (batch, heads, group, queries, keys, width), causal, mask, dropout
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
@pytest.mark.parametrize(("sizes", "causal", "mask", "dropout"), NATIVE, ids=str)
def test_a_native_version_equals_the_standard_version(
    backend, widest, sizes, causal, mask, dropout, dtype
):
    """In blocks or not, for any memory layout, and for queries without any key."""
    standard = [f.dispatch(object) for f in (attend, attend_backward)]
    if attend.dispatch(type(backend.asarray(np.ones(1, "float32")))) is standard[0]:
        pytest.skip(f"{backend.name} has no native version")
    dtype = widest if dtype == "widest" else dtype
    generator, (*heads, time, keys, width) = np.random.default_rng(0), sizes
    key_shape, query_shape = (*heads[:2], keys, width), (*heads, time, width)
    draws = [
        generator.standard_normal(s).astype(dtype)
        for s in (query_shape, key_shape, key_shape, query_shape)
    ]
    allowed = dropout_mask = ()
    if mask:
        allowed = (
            generator.random((heads[0], 1, 1, 1 if mask == "keys" else time, keys))
            < 0.5
        )
        allowed[-1:] = False
        allowed = backend.asarray(allowed)
    if dropout:
        is_kept = generator.random((*heads, time, keys)) < 0.75
        dropout_mask = is_kept.astype(dtype) * np.asarray(4 / 3, dtype)
        dropout_mask = backend.asarray(dropout_mask)

    def run(forward, backward, query, key, value, dy):
        inputs = query, key, value, allowed, dropout_mask
        o, cache = forward(*inputs, causal=causal)
        slopes = backward(*inputs, o, cache, dy, causal=causal)
        return backend.to_numpy((o, *slopes))

    expected = run(*standard, *backend.asarray(tuple(draws)))
    for axis, place in [(0, 0), (0, 1), (-2, 1), (-1, 0)]:
        inputs = [backend.asarray(np.moveaxis(x, axis, place)) for x in draws]
        inputs = [backend.xp.moveaxis(x, place, axis) for x in inputs]
        results = run(attend, attend_backward, *inputs)
        for result, standard_result in zip(results, expected, strict=True):
            assert (result.dtype, result.shape) == (dtype, standard_result.shape)
            # sums of up to 400 products of numbers near 1, in another order: at most 8
            # eps were measured
            atol = 32 * np.finfo(dtype).eps * np.max(abs(standard_result), initial=1.0)
            np.testing.assert_allclose(result, standard_result, rtol=0, atol=atol)
        for x, before in zip(inputs, draws, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(x), before)


@pytest.mark.parametrize("more", [0, 17, 3000])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_may_be_large_and_nan_stays_nan(backend, widest, causal, more):
    """The largest of distant scores has weight 1; those of a query of 0 are equal."""
    query = np.asarray([1.0, -1.0, 0.0, math.nan], widest).reshape(1, 1, 1, 4, 1)
    key = np.asarray([3e4, 1e4, -3e4, *[0.0] * more], widest).reshape(1, 1, -1, 1)
    value = np.asarray([1.0, 2.0, 3.0, *[2.0] * more], widest).reshape(1, 1, -1, 1)
    o, _ = attend(*backend.asarray((query, key, value)), causal=causal)
    expected = [1.0, 2.0 if causal else 3.0, 2.0, math.nan]
    np.testing.assert_allclose(backend.to_numpy(o).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "more_inputs", [{}, {"mask": (90,)}, {"source": (110, 6), "mask": (110,)}], ids=str
)
def test_the_cache_holds_what_the_derivation_names_and_no_more(more_inputs):
    """x, Q, K, V, O, source and mask once each; on NumPy two numbers per row for P."""
    layer = nn.MultiHeadAttention(4, key_heads=2, causal=True, rotary=True)
    shape = {"x": (90, 8), **more_inputs}
    params, state = initial(layer, shape, "float32")
    draw = np.random.default_rng(0)
    x = {n: draw.standard_normal((3, *s)).astype("float32") for n, s in shape.items()}
    if "mask" in x:
        x["mask"] = x["mask"] > 0
    _, _, cache = layer.forward(params, state, x, train=True)
    keys = 110 if "source" in more_inputs else 90
    sizes = {
        "x": 90 * 8,
        "Q": 90 * 8,
        "K": keys * 4,
        "V": keys * 4,
        "P": 2 * 4 * 90,
        "O": 90 * 8,
    }
    sizes["source"] = 110 * 6 if "source" in more_inputs else 0
    sizes["mask"] = keys / 4 if "mask" in more_inputs else 0  # 1 byte, not 4
    assert sum(leaf.nbytes for leaf in leaves(cache)) == 4 * 3 * sum(sizes.values())


def test_the_parameters_of_a_block_are_named_after_its_parts():
    block = nn.TransformerBlock(
        nn.MultiHeadAttention(2, bias=False),
        hidden=6,
        cross=nn.MultiHeadAttention(1, bias=False),
        activation=nn.SwiGLU(),
        norm=nn.RMSNorm(),
        dropout=0.1,
    )
    params, state = initial(block, {"x": (3, 4), "source": (5, 7)}, "float32")
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


def recording(layer):
    """Return a copy of the layer and a list that records calls of its `predict`."""
    calls = []

    class Recording(type(layer)):
        def predict(self, params, state, x):
            calls.append(x)
            return super().predict(params, state, x)

    return Recording(**vars(layer)), calls


@pytest.mark.parametrize("name", ["attention", "cross", "activation", "norm"])
def test_a_block_predicts_with_predict_of_its_parts(draw, widest, name):
    """So no part saves a cache for `backward`."""
    parts = {
        "attention": nn.MultiHeadAttention(2, causal=True),
        "cross": nn.MultiHeadAttention(1),
        "activation": nn.GELU(),
        "norm": nn.LayerNorm(),
    }
    part, calls = recording(parts[name])
    block = nn.TransformerBlock(hidden=6, **parts | {name: part})
    x = {"x": draw(2, 3, 4), "source": draw(2, 5, 7)}
    params, state = initial(block, {"x": (3, 4), "source": (5, 7)}, widest)
    y = block.predict(params, state, x)
    np.testing.assert_array_equal(y, block.forward(params, state, x)[0])
    assert len(calls) == (3 if name == "norm" else 1)


def test_sinusoidal_positions_are_those_of_the_paper(backend, widest, epsilon):
    x = np.zeros((1, 50, 6), widest)
    y = forward(backend, nn.SinusoidalPositions(), {}, {}, x)
    place = np.arange(50.0)[:, None]
    pair = place / 10_000.0 ** (np.arange(0, 6, 2) / 6)
    expected = np.stack((np.sin(pair), np.cos(pair)), -1).reshape(50, 6)
    # angles of up to 50 have an error of an eps from each of the exponent, exp and the
    # product
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=4 * 50 * epsilon)


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


ATTENTION, X = nn.MultiHeadAttention(2), zeros(2, 3, 4)
CROSS = nn.TransformerBlock(ATTENTION, hidden=3, cross=ATTENTION)
REFUSED = [  # layer, shapes of an example for init, x, error and message
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
        r"a mask \(2, 3\), \(2, 3, 3\) or \(2, 2, 3, 3\), got \(2, 4\)",
    ),
    (
        ATTENTION,
        (3, 4),
        {"x": X, "score_bias": zeros(2, 3)},
        ValueError,
        r"a score_bias \(2, 3, 3\) or \(2, 2, 3, 3\), got \(2, 3\)",
    ),
    (
        ATTENTION,
        (3, 4),
        {"x": X, "score_bias": zeros(2, 3, 3, dtype="int32")},
        ValueError,
        "x is .*float32, but score_bias is .*int32",
    ),
    (
        ATTENTION,
        (3, 4),
        {"x": X, "value": zeros(2, 4, 4)},
        ValueError,
        r"a value \(2, 3, width\) like the keys, got \(2, 4, 4\)",
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
def test_inputs_of_the_wrong_shape_are_errors_that_give_the_shape(
    backend, layer, shape, x, error, message
):
    params, state = initial(layer, shape, "float32")
    params, state, x = backend.asarray((params, state, x))
    with pytest.raises(error, match=message):
        layer.forward(params, state, x)


WRONG_SHAPES = [  # layer, shape of one example, message
    (nn.MultiHeadAttention(3), (5, 4), "3 heads cannot share a width of 4"),
    (
        nn.MultiHeadAttention(2),
        (4,),
        r"\(batch, time, width\), got \(batch, \*\(4,\)\)",
    ),
    (nn.MultiHeadAttention(4, rotary=True), (5, 4), "an even head_width, got 1"),
    (nn.PositionEmbedding(4), (5, 3), "there are 4 positions, got 5"),
    (nn.SinusoidalPositions(), (5, 3), "an even width, got 3"),
    (nn.RotaryPositions(), (5, 3), r"an even width\), got \(batch, \*\(5, 3\)\)"),
    (nn.RotaryPositions(), (4,), r"an even width\), got \(batch, \*\(4,\)\)"),
    (
        nn.Unembedding(3),
        (),
        r"Unembedding takes \(batch, \.\.\., width\), got \(batch,\)",
    ),
]


@pytest.mark.parametrize(("layer", "shape", "message"), WRONG_SHAPES)
def test_init_refuses_shapes_that_the_layer_cannot_take(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.init(nn.random.key(0, xp=HOST), shape, HOST.float32)


INVALID = [  # call, error and message
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
    (
        lambda: nn.MultiHeadAttention(4, window=0),
        ValueError,
        "window of at least 1, got 0",
    ),
    (lambda: nn.MultiHeadAttention(4, softcap=0.0), ValueError, "softcap above 0"),
    (lambda: nn.MultiHeadAttention(4, relative=True), TypeError, "relative to be"),
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
    (lambda: nn.RotaryPositions(base=0.0), ValueError, "base above 0"),
    (lambda: nn.Unembedding(0), ValueError, "num_embeddings of at least 1, got 0"),
]


@pytest.mark.parametrize(("make", "error", "message"), INVALID)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()
