"""Decoding: `begin` and `advance` compute one position at a time."""

import numpy as np
import pytest
from cases import layer_cases

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map

HOST = nn.backend("numpy").xp
CAUSAL = nn.MultiHeadAttention(2, causal=True)
ROTARY = nn.MultiHeadAttention(4, key_heads=2, causal=True, rotary=True, dropout=0.1)
LANGUAGE = nn.Sequential(
    nn.Embedding(9, 8),
    nn.PositionEmbedding(10),
    nn.TransformerBlock(CAUSAL, hidden=6, dropout=0.1),
    nn.TransformerBlock(
        ROTARY, hidden=6, activation=nn.SwiGLU(), norm=nn.RMSNorm(), pre_norm=False
    ),
    nn.LayerNorm(),
    nn.Unembedding(9),
)
TRANSLATOR = nn.TransformerBlock(CAUSAL, hidden=6, cross=nn.MultiHeadAttention(2))
WITH_SOURCE = {"x": (6, 4), "source": (5, 4)}
MODELS = {  # layer, shape of one example
    "attention": (CAUSAL, (6, 4)),
    "rotary with shared heads": (ROTARY, (6, 8)),
    "with a mask": (CAUSAL, {"x": (6, 4), "mask": (6,)}),
    "cross-attention": (nn.MultiHeadAttention(2), WITH_SOURCE),
    "rotary cross-attention": (
        nn.MultiHeadAttention(2, rotary=True, causal=True),
        {**WITH_SOURCE, "mask": (5,)},
    ),
    "a window": (nn.MultiHeadAttention(2, causal=True, window=2), (6, 4)),
    "a window of a source": (nn.MultiHeadAttention(2, window=2), WITH_SOURCE),
    "biases and a cap": (
        nn.MultiHeadAttention(
            2, causal=True, alibi=True, relative=2, softcap=1.0, zero_key=True
        ),
        {"x": (6, 4), "mask": (6,)},
    ),
    "a learned key": (
        nn.MultiHeadAttention(2, causal=True, learned_key=True, window=3, relative=2),
        {"x": (6, 4), "mask": (6,)},
    ),
    "a learned key and a source": (
        nn.MultiHeadAttention(2, learned_key=True, rotary=True),
        {**WITH_SOURCE, "mask": (5,)},
    ),
    "biases with a source": (
        nn.MultiHeadAttention(2, alibi=True, relative=2, causal=True, window=4),
        WITH_SOURCE,
    ),
    "other widths": (
        nn.MultiHeadAttention(4, key_heads=2, causal=True, value_width=3),
        (6, 4),
    ),
    "values from x": (CAUSAL, {"x": (6, 4), "value": (6, 3)}),
    "values from a source": (
        nn.MultiHeadAttention(2, value_width=3, output_width=5),
        {**WITH_SOURCE, "value": (5, 3)},
    ),
    "learned positions": (nn.PositionEmbedding(7), (6, 3)),
    "sinusoidal positions": (nn.SinusoidalPositions(), (6, 4)),
    "rotary positions": (nn.RotaryPositions(), (6, 2, 4)),
    "a block with cross-attention": (
        TRANSLATOR,
        {**WITH_SOURCE, "mask": (6,), "source_mask": (5,)},
    ),
    "frozen": (nn.Freeze(nn.TransformerBlock(CAUSAL, hidden=6)), (6, 4)),
    "after an embedding": (nn.Sequential(nn.Embedding(9, 4), nn.GRU(3)), (6,)),
    "in a residual block": (nn.Residual(nn.LayerNorm(), CAUSAL, nn.Dense(4)), (6, 4)),
    "repeated": (nn.Repeat(nn.TransformerBlock(CAUSAL, hidden=6), 2), (6, 4)),
    "a language model": (LANGUAGE, (6,)),
    "layers per position": (
        nn.Sequential(nn.Dense(3), nn.GELU(), nn.Softmax()),
        (6, 4),
    ),
}
each_model = pytest.mark.parametrize(("layer", "shape"), MODELS.values(), ids=MODELS)


def numbers(layer, shape, dtype):
    """Return parameters, state and x of 3 examples on the host, with random masks."""
    generator = np.random.default_rng(0)
    params, state, _ = layer.init(
        nn.random.key(0, xp=HOST), shape, getattr(HOST, dtype)
    )
    params = tree_map(
        lambda p: (p + generator.uniform(-0.5, 0.5, p.shape)).astype(dtype), params
    )
    if layer.input_kinds == "integral":
        return params, state, generator.integers(9, size=(3, *shape), dtype="int32")
    named = shape if isinstance(shape, dict) else {"x": shape}
    x = {
        name: generator.standard_normal((3, *s)).astype(dtype)
        for name, s in named.items()
    }
    x |= {name: x[name] > -0.3 for name in x if "mask" in name}
    return params, state, x if isinstance(shape, dict) else x["x"]


def at(x, t):
    """Return x at time t; inputs of another length than x are not sliced."""
    if not isinstance(x, dict):
        return slice_at(x, t)
    time = x["x"].shape[1]
    return {n: a[:, t : t + 1, ...] if a.shape[1] == time else a for n, a in x.items()}


def slice_at(x, t):
    return tree_map(lambda leaf: leaf[:, t : t + 1, ...], x)


def shapes_and_dtypes(tree):
    return {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in named_leaves(tree)}


@each_model
def test_advance_equals_forward_over_all_steps(backend, widest, epsilon, layer, shape):
    """Within 64 eps of the largest number; the memory is longer than necessary."""
    params, state, x = numbers(layer, shape, widest)
    # NumPy is the reference
    expected_y, _, _ = layer.forward(params, state, x)
    params, state, x = backend.asarray((params, state, x))
    memory = layer.begin(params, state, at(x, 0), 7)
    first = shapes_and_dtypes(memory)  # constant, so that the step is compiled once
    step = backend.jit(layer.advance)
    for t in range(6):
        y, memory = step(params, state, memory, at(x, t))
        y = backend.to_numpy(y)
        assert y.shape[1] == 1
        assert shapes_and_dtypes(memory) == first
        expected = expected_y[:, t : t + 1]
        atol = 64 * epsilon * max(np.abs(expected_y).max(), 1.0)
        np.testing.assert_allclose(y, expected, rtol=0, atol=atol, err_msg=f"step {t}")


@each_model
def test_later_inputs_do_not_change_earlier_outputs(layer, shape):
    """Otherwise `advance` could not equal `forward`. On NumPy only."""
    params, state, x = numbers(layer, shape, "float32")
    other = tree_map(lambda leaf: leaf.copy(), x)
    late = other["x"] if isinstance(other, dict) else other
    late[:, 4:] = late[:, 4:] * 3 % 9 if late.dtype == "int32" else late[:, 4:] * 3 + 1
    before, after = (layer.forward(params, state, each)[0] for each in (x, other))
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert not np.array_equal(after, before)


@each_model
def test_the_dtypes_of_the_memory_are_constant_in_float32(layer, shape):
    params, state, x = numbers(layer, shape, "float32")
    memory = layer.begin(params, state, at(x, 0), 7)
    y, after = layer.advance(params, state, memory, at(x, 0))
    assert y.dtype == "float32"
    assert shapes_and_dtypes(after) == shapes_and_dtypes(memory)


def test_queries_keys_and_values_of_a_step_are_one_product(monkeypatch):
    """Of x itself; values of another sequence have their own. On NumPy only."""
    layer = nn.MultiHeadAttention(2, causal=True, value_width=3)
    params, state, x = numbers(layer, {"x": (6, 4), "value": (6, 3)}, "float32")
    products = []
    forward = nn.Dense.forward

    def counted(dense, params, state, x, **options):
        products.append(params["weight"].shape)
        return forward(dense, params, state, x, **options)

    monkeypatch.setattr(nn.Dense, "forward", counted)
    memory = layer.begin(params, state, at(x, 0), 7)
    layer.advance(params, state, memory, at(x, 0))
    assert products == [(4, 4), (3, 6), (4, 4), (6, 4)]
    products.clear()
    params, state, x = numbers(layer, (6, 4), "float32")
    memory = layer.begin(params, state, at(x, 0), 7)
    expected, _ = layer.advance(params, state, memory, at(x, 0))
    assert products == [(4, 14), (6, 4)]
    # values that are passed only now, here x again, are still used
    same = {"x": at(x, 0), "value": at(x, 0)}
    y, _ = layer.advance(params, state, memory, same)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    same["value"] = -same["value"]
    y, _ = layer.advance(params, state, memory, same)
    assert not np.allclose(y, expected, rtol=0, atol=1e-3)


def test_a_mask_excludes_steps_one_by_one(backend, widest, epsilon):
    """Masked steps have no effect, except on rotary positions."""
    params, state, x = numbers(CAUSAL, (6, 4), widest)
    counts = np.asarray([1, 0, 1, 1, 0, 1], bool)
    expected, _, _ = CAUSAL.forward(params, state, x[:, counts])
    arguments = {"x": x, "mask": np.broadcast_to(counts, (3, 6))}
    params, state, arguments = backend.asarray((params, state, arguments))
    memory = CAUSAL.begin(params, state, at(arguments, 0), 6)
    step = backend.jit(CAUSAL.advance)
    result = []
    for t in range(6):
        y, memory = step(params, state, memory, at(arguments, t))
        result.append(backend.to_numpy(y)[:, 0])
    result = np.stack(result, 1)[:, counts]
    atol = 64 * epsilon * np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("heads", [(), (2,)], ids=["of all heads", "of each head"])
def test_scores_have_a_bias_at_each_step_and_weights_are_returned(
    backend, widest, epsilon, heads, source
):
    layer = nn.MultiHeadAttention(2, causal=not source, return_weights=True)
    keys = 5 if source else 6
    shape = {"x": (6, 4), "score_bias": (*heads, 6, keys)}
    shape |= {"source": (5, 4)} if source else {}
    params, state, x = numbers(layer, shape, widest)
    x["score_bias"][0, ..., 1:, 0] = -np.inf
    expected, _, _ = layer.forward(params, state, x)
    params, state, x = backend.asarray((params, state, x))
    step = backend.jit(layer.advance)

    def inputs(t):
        bias = x["score_bias"][..., t : t + 1, :]
        return x | {"x": x["x"][:, t : t + 1, :], "score_bias": bias}

    memory = layer.begin(params, state, inputs(0), 6)
    for t in range(6):
        y, memory = step(params, state, memory, inputs(t))
        y = backend.to_numpy(y)
        atol = 64 * epsilon * max(np.abs(expected["y"]).max(), 1.0)
        now = slice(t, t + 1)
        np.testing.assert_allclose(y["y"], expected["y"][:, now], rtol=0, atol=atol)
        weights = expected["weights"][:, :, now]
        np.testing.assert_allclose(y["weights"], weights, rtol=0, atol=atol)


PER_POSITION = [
    case
    for case in layer_cases()
    if case.layer.per_position and not case.thorough and isinstance(case.shape, tuple)
]


@pytest.mark.parametrize("case", PER_POSITION, ids=str)
def test_a_layer_per_position_maps_each_position_independently(widest, epsilon, case):
    """Three positions at once give the results of each alone, also for tuples."""
    layer, generator = case.layer, np.random.default_rng(0)
    pair = isinstance(case.shape[0], tuple) if case.shape else False
    width = case.shape[-1] if case.shape and not pair else 6
    shape = ((3, width), (3, width)) if pair else (3, width)
    if layer.input_kinds == "integral":
        x = generator.integers(3, size=(2, 3), dtype="int32")
        shape = (3,)
    else:
        x = generator.standard_normal((2, 3, width)).astype(widest)
        x = (x, x * x + 1) if pair else x
    params, state, _ = layer.init(
        nn.random.key(0, xp=HOST), shape, getattr(HOST, widest)
    )
    expected, _, _ = layer.forward(params, state, x)
    memory = layer.begin(params, state, slice_at(x, 0), 3)
    assert not leaves(memory)
    for t in range(3):
        y, memory = layer.advance(params, state, memory, slice_at(x, t))
        np.testing.assert_allclose(
            y[:, 0], expected[:, t], rtol=16 * epsilon, atol=16 * epsilon
        )


REFUSED = [  # layer, shape, message
    (nn.MultiHeadAttention(2), (6, 4), "MultiHeadAttention.* not causal"),
    (nn.TransformerBlock(nn.MultiHeadAttention(2), hidden=3), (6, 4), "not causal"),
    (nn.Flatten(), (6, 4), "Flatten.* depends on x at others"),
    (nn.Softmax(axis=1), (6, 4), "Softmax.* depends on x at others"),
    (
        nn.Sequential(nn.Dense(4), nn.LogSoftmax(axis=-2)),
        (6, 4),
        "LogSoftmax.* on x at others",
    ),
    (nn.Conv1D(4, 3), (6, 4), "Conv1D.* depends on x at others"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), REFUSED)
def test_a_layer_that_is_not_causal_refuses_to_begin(layer, shape, message):
    params, state, x = numbers(layer, shape, "float32")
    with pytest.raises(TypeError, match=message):
        layer.begin(params, state, at(x, 0), 6)


def test_several_steps_at_once_are_refused(backend):
    params, state, x = backend.asarray(numbers(CAUSAL, (6, 4), "float32"))
    memory = CAUSAL.begin(params, state, at(x, 0), 6)
    with pytest.raises(
        ValueError, match=r"a step takes \(batch, 1, width\), got \(3, 2, 4\)"
    ):
        CAUSAL.advance(params, state, memory, x[:, :2, :])


def test_begin_refuses_more_steps_than_positions(backend):
    layer = nn.PositionEmbedding(7)
    params, state, x = backend.asarray(numbers(layer, (6, 4), "float32"))
    with pytest.raises(ValueError, match="there are 7 positions, got 8"):
        layer.begin(params, state, at(x, 0), 8)
