"""Decoding: `prefill` of all layers, the cache of attention, `generate`, streaming."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import leaves, tree_map

HOST = nn.backend("numpy").xp
STEPS = 5


def start(layer, shape, seed=0):
    """Return float32 params and state on the host, away from their initial values."""
    params, state, _ = layer.init(nn.random.key(seed, xp=HOST), shape, HOST.float32)
    generator = np.random.default_rng(seed)

    def moved(leaf):
        return leaf + generator.uniform(-0.5, 0.5, leaf.shape).astype("float32")

    return tree_map(moved, params), state


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


# --- prefill --------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningSum(nn.Layer):
    """yₜ = x₁ + … + xₜ, a custom layer that defines `advance` but not `prefill`."""

    def begin(self, params, state, x, length):
        return 0.0 * x[:, 0, ...]

    def advance(self, params, state, memory, x):
        memory = memory + x[:, 0, ...]
        return memory[:, None, ...], memory


X = {"x": numbers(2, STEPS, 4)}
MASK = {"mask": np.asarray([[1, 1, 0, 1, 1], [1, 0, 1, 1, 0]], bool)}
FIXED = {"source", "source_mask"}  # inputs that are the same at every step


def attention(**options):
    return nn.MultiHeadAttention(2, causal=True, **options)


def block(**options):
    return nn.TransformerBlock(attention(), hidden=5, **options)


CASES = {  # name: (layer, inputs of all steps)
    "attention": (attention(), X),
    "attention with a mask": (attention(rotary=True), X | MASK),
    "attention with a window": (attention(window=2), X),
    "attention with all biases": (
        attention(alibi=True, relative=2, softcap=2.0, zero_key=True),
        X | {"score_bias": numbers(2, STEPS, STEPS)},
    ),
    "attention with rotation and weights": (
        attention(rotary=True, return_weights=True),
        X,
    ),
    "grouped attention": (
        nn.MultiHeadAttention(
            *(4,), key_heads=2, head_width=2, value_width=3, causal=True
        ),
        X,
    ),
    "attention with a learned key": (attention(learned_key=True), X),
    "attention with other values": (attention(), X | {"value": numbers(2, STEPS, 3)}),
    "attention to a source": (
        nn.MultiHeadAttention(2),
        X | {"source": numbers(2, 3, 4)},
    ),
    "RNN": (nn.RNN(3), X),
    "GRU": (nn.GRU(3, reset="before"), X | MASK),
    "LSTM": (nn.LSTM(3, depth=2), X),
    "PositionEmbedding": (nn.PositionEmbedding(STEPS + 1), X),
    "SinusoidalPositions": (nn.SinusoidalPositions(), X),
    "RotaryPositions": (nn.RotaryPositions(), X),
    "a custom layer": (RunningSum(), X),
    "Dense": (nn.Dense(3), X),
    "TransformerBlock": (block(), X | MASK),
    "TransformerBlock with a source": (
        block(cross=nn.MultiHeadAttention(2), pre_norm=False),
        X | {"source": numbers(2, 3, 4), "source_mask": np.ones((2, 3), bool)},
    ),
    "Repeat": (nn.Repeat(block(), 2), X | MASK),
    "Residual": (nn.Residual(attention(), shortcut=nn.GRU(4)), X),
    "Parallel": (nn.Parallel(attention(), nn.Freeze(nn.LSTM(4))), X),
    "Graph": (
        nn.Graph(
            a=(attention(), {"x": "x", "mask": "mask"}),
            y=(nn.Recompute(nn.GRU(3)), "a"),
        ),
        X | MASK,
    ),
    "LoRA": (nn.LoRA(block(), 2), X | MASK),
    "MixedPrecision": (
        nn.MixedPrecision(nn.Sequential(attention(), nn.Dense(3)), "float16"),
        X,
    ),
}
EVERYWHERE = ("attention with a mask", "a custom layer")


def part(inputs, steps):
    """Return the inputs of some steps, as an array if there is only x."""
    cut = {k: v if k in FIXED else v[:, steps] for k, v in inputs.items()}
    return cut if len(cut) > 1 else cut["x"]


@pytest.mark.parametrize("name", CASES)
def test_prefill_equals_advance_step_by_step(backend, thorough, name):
    if not thorough and name not in EVERYWHERE:
        pytest.skip("each operation is compiled")
    if name == "MixedPrecision" and not backend.has_dtype("float16"):
        pytest.skip("no float16")
    layer, inputs = CASES[name]
    shape = {k: v.shape[1:] for k, v in inputs.items()}
    weights = start(layer, shape if len(shape) > 1 else shape["x"])
    params, state = backend.asarray(weights)
    new = layer.begin(params, state, backend.asarray(part(inputs, slice(0, 1))), STEPS)

    def decode(method, *ends):
        memory = new
        outputs = []
        begin = 0
        for end in ends:
            x = backend.asarray(part(inputs, slice(begin, end)))
            y, memory = getattr(layer, method)(params, state, memory, x)
            outputs.append(backend.to_numpy(y))
            begin = end
        # P, the weights of attention, has an axis of heads before that of steps
        axes = {"y": 1, "weights": 2}
        if isinstance(outputs[0], dict):
            joined = {
                k: np.concatenate([y[k] for y in outputs], axis=axes[k]) for k in axes
            }
        else:
            joined = np.concatenate(outputs, axis=1)
        return joined, backend.to_numpy(memory)

    expected = decode("advance", *range(1, STEPS + 1))
    slack = 1e-2 if name == "MixedPrecision" else 1e-5
    # all steps at once, and after a first part
    for ends in ((STEPS,), (2, STEPS)):
        actual = decode("prefill", *ends)
        for a, b in zip(leaves(actual), leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=slack, err_msg=str(ends))
    if name not in ("attention with all biases", "a custom layer"):
        # `forward` has no row of biases for keys that are not there yet
        whole = backend.to_numpy(
            layer.predict(params, state, backend.asarray(part(inputs, slice(None))))
        )
        first = expected[0]["y"] if isinstance(whole, dict) else expected[0]
        whole = whole["y"] if isinstance(whole, dict) else whole
        np.testing.assert_allclose(first, whole, atol=slack)


def test_the_default_prefill_refuses_several_inputs():
    x = {"x": numbers(1, 2, 3), "y": numbers(1, 2, 3)}
    with pytest.raises(TypeError, match=r"RunningSum has several inputs.*`advance`"):
        RunningSum().prefill({}, {}, (), x)


# --- the cache ------------------------------------------------------------------------


def test_rows_are_stored_at_their_place_and_no_others_change(backend):
    memory = numbers(2, 1, 4, 3)
    rows = numbers(2, 1, 2, 3, seed=2)
    for first in (0, 1, 2):
        at = backend.asarray(np.asarray(first, np.int32))
        stored = ops.store(backend.asarray(memory), backend.asarray(rows), at)
        expected = memory.copy()
        expected[:, :, first : first + 2] = rows
        np.testing.assert_array_equal(backend.to_numpy(stored), expected)
        standard = ops.store.dispatch(object)
        stored = standard(backend.asarray(memory), backend.asarray(rows), at)
        np.testing.assert_array_equal(backend.to_numpy(stored), expected)
    # rows that do not fit are not lost silently
    at = backend.asarray(np.asarray(3, np.int32))
    stored = standard(backend.asarray(memory), backend.asarray(rows), at)
    assert np.isnan(backend.to_numpy(stored)[:, :, 2:]).all()


@pytest.mark.parametrize("time", [1, 2])
def test_attention_to_stored_rows_equals_the_standard_version(backend, time):
    """With few and with many rows, for queries that share a head, also replayed."""
    query = numbers(2, 3, 2, time, 4)
    key, value = (numbers(2, 3, 24, 4, seed=seed) for seed in (1, 2))
    arrays = backend.asarray((query, key, value))
    standard = ops.attend_stored.dispatch(object)
    replayed = ops.attend_stored if backend.compiles else backend.jit(ops.attend_stored)
    for first in (3, 19):
        at = backend.asarray(np.asarray(first, np.int32))
        expected = backend.to_numpy(standard(*arrays, at))
        for attend in (ops.attend_stored, *[replayed] * 3):
            actual = backend.to_numpy(attend(*arrays, at))
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_a_full_memory_refuses_a_step_or_makes_nan(backend):
    layer = attention()
    params, state = backend.asarray(start(layer, (3, 4)))
    x = backend.asarray(numbers(1, 2, 4))
    memory = layer.begin(params, state, x[:, :1, :], 3)
    _, memory = layer.prefill(params, state, memory, x)
    message = "holds 3 steps, of which 2 are taken, so 2 more do not fit: call `begin`"
    with pytest.raises(ValueError, match=message):
        layer.prefill(params, state, memory, x)
    prefill = backend.jit(layer.prefill)
    if backend.compiles:
        y, memory = prefill(params, state, memory, x)
        assert np.isnan(backend.to_numpy(y)[:, -1]).all()
        y, _ = prefill(params, state, memory, x)
        assert np.isnan(backend.to_numpy(y)).all()
        return
    for _ in range(4):  # the function itself, and the program that replays it
        with pytest.raises(ValueError, match=message):
            prefill(params, state, memory, x)


def test_steps_from_one_memory_do_not_affect_each_other(backend):
    layer = attention()
    params, state = backend.asarray(start(layer, (3, 4)))
    x, left, right = (backend.asarray(numbers(1, 1, 4, seed=i)) for i in range(3))

    def on_host(tree):
        return [np.array(leaf) for leaf in leaves(backend.to_numpy(tree))]

    def assert_equal(tree, expected):
        for a, b in zip(leaves(backend.to_numpy(tree)), expected, strict=True):
            np.testing.assert_array_equal(a, b)

    jitted = backend.jit(layer.advance)
    # the functions themselves, and the program that replays them
    for advance in (layer.advance, jitted, jitted, jitted):
        new = layer.begin(params, state, x, 2)
        _, memory = advance(params, state, new, x)
        before = on_host(memory)
        after_left = advance(params, state, memory, left)
        expected = on_host(after_left)
        advance(params, state, memory, right)
        assert_equal(after_left, expected)
        assert_equal(memory, before)
        assert_equal(advance(params, state, memory, left), expected)


@pytest.mark.parametrize("name", ["numpy", "torch:cpu"])
def test_a_replayed_step_writes_to_the_donated_memory(name):
    if name == "torch:cpu":
        pytest.importorskip("torch")
    backend = nn.backend(name)
    model = nn.Repeat(nn.Residual(attention(rotary=True)), 2)
    params, state = backend.asarray(start(model, (8, 4)))
    x = [backend.asarray(numbers(2, 1, 4, seed=t)) for t in range(8)]
    step = backend.jit(model.advance, donate=(2,))
    expected = model.begin(params, state, x[0], 8)
    memory = model.begin(params, state, x[0], 8)
    addresses = []
    for t in range(8):
        y, expected = model.advance(params, state, expected, x[t])
        donated_y, memory = step(params, state, memory, x[t])
        np.testing.assert_array_equal(backend.to_numpy(donated_y), backend.to_numpy(y))
        addresses.append([id(leaf) for leaf in leaves(memory)])
    for a, b in zip(leaves(memory), leaves(expected), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(a), backend.to_numpy(b))
    # the program runs from the third call on; its results are the donated arrays
    assert all(each == addresses[-1] for each in addresses[3:])


# --- generation -----------------------------------------------------------------------

VOCABULARY = 11
MODEL = nn.Sequential(
    nn.Embedding(VOCABULARY, 8),
    nn.PositionEmbedding(12),
    block(),
    nn.LayerNorm(),
    nn.Dense(VOCABULARY),
)
PROMPT = np.asarray([[1, 2, 3], [4, 5, 6]])


@pytest.fixture(scope="module")
def weights():
    params, state = start(MODEL, (4,))
    return tree_map(lambda leaf: 2 * leaf, params), state


@pytest.fixture
def task(backend, weights):
    return (MODEL, *backend.asarray(weights), backend)


def reference(weights, prompt, length, choose):
    """Return tokens chosen by choose(logits, row, i) from a whole `predict` each."""
    tokens = [list(row) for row in prompt]
    for i in range(length):
        y = MODEL.predict(*weights, np.asarray(tokens, np.int32))[:, -1]
        for row, logits in enumerate(y.astype("float64")):
            tokens[row].append(choose(logits, row, i))
    return np.asarray(tokens)[:, prompt.shape[1] :]


def draw(seed, temperature, top_k=None, top_p=None):
    """Return a `choose` that draws as `generate` says, written with other means."""

    def choose(logits, row, i):
        key = nn.random.key(seed, xp=HOST)
        word = nn.random.words(key, i + 1, stream=row)[i]
        u = float(word >> 8) / 2**24
        p = np.exp(logits / temperature)
        order = sorted(range(len(p)), key=lambda n: -p[n])[:top_k]
        if top_p is not None:
            total = sum(p[order])
            count = 1
            while sum(p[order[:count]]) < top_p * total:
                count += 1
            order = order[:count]
        p = [p[n] if n in order else 0.0 for n in range(len(p))]
        return int(np.searchsorted(np.cumsum(p), u * sum(p), side="right"))

    return choose


def test_the_most_likely_tokens_are_those_of_the_whole_sequence(task, weights):
    expected = reference(weights, PROMPT, 6, lambda y, *_: int(y.argmax()))
    for _ in range(2):
        tokens = nn.generate(task, PROMPT, 6, temperature=0.0)
        assert tokens.dtype == np.int32
        np.testing.assert_array_equal(tokens, expected)


def test_logits_that_are_not_finite_are_refused(backend, weights):
    params = tree_map(np.array, weights[0])
    params[-1]["bias"][2] = math.nan
    task = (MODEL, *backend.asarray((params, weights[1])), backend)
    message = "logits of token 0 of row 0 are not finite"
    with pytest.raises(ValueError, match=message):
        nn.generate(task, PROMPT, 6, temperature=0.0)
    if not backend.compiles:
        with pytest.raises(ValueError, match=message):
            list(nn.stream_tokens(task, PROMPT, 2))


def test_draws_follow_the_probabilities_and_the_stop_token(task, weights):
    choose = draw(3, 5.0, top_k=6, top_p=0.9)
    expected = reference(weights, PROMPT, 9, choose)
    stop = int(expected[1, 2])  # the other row does not have it, and goes on
    assert stop not in expected[0]
    for row in expected:
        ends = np.flatnonzero(row == stop)
        row[ends[0] if len(ends) else len(row) :] = stop
    options = {"temperature": 5.0, "top_k": 6, "top_p": 0.9, "stop": stop, "seed": 3}
    tokens = nn.generate(task, PROMPT, 9, **options)
    np.testing.assert_array_equal(tokens, expected)
    assert (tokens[1, 2:] == stop).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 2},
        {"top_k": 100},
        {"top_p": 0.3},
        {"top_p": 1.0},
        {"top_k": 4, "top_p": 0.5, "temperature": 2.0},
    ],
    ids=str,
)
def test_draws_with_each_option_are_those_of_a_plain_loop(weights, options):
    backend = nn.backend("numpy")
    choose = draw(7, options.get("temperature", 1.0), *map(options.get, TOPS))
    tokens = nn.generate((MODEL, *weights, backend), PROMPT, 8, seed=7, **options)
    np.testing.assert_array_equal(tokens, reference(weights, PROMPT, 8, choose))


TOPS = ("top_k", "top_p")


def test_a_row_depends_neither_on_other_rows_nor_on_the_length(weights):
    task = (MODEL, *weights, nn.backend("numpy"))
    tokens = nn.generate(task, PROMPT, 8)
    np.testing.assert_array_equal(nn.generate(task, PROMPT[:1], 5), tokens[:1, :5])
    assert (nn.generate(task, PROMPT, 8, seed=1) != tokens).any()


def test_a_stream_has_the_tokens_of_generate_and_ends_when_all_rows_have(weights):
    task = (MODEL, *weights, nn.backend("numpy"))
    tokens = nn.generate(task, PROMPT, 8)
    stream = list(nn.stream_tokens(task, PROMPT, 8))
    np.testing.assert_array_equal(np.stack(stream, axis=1), tokens)
    stop = int(tokens[0, 2])
    first = list(nn.stream_tokens(task, PROMPT[:1], 8, stop=stop))
    assert len(first) == list(tokens[0]).index(stop) + 1
    padded = nn.generate(task, PROMPT[:1], 8, stop=stop)
    assert (padded[0, len(first) - 1 :] == stop).all()


@pytest.mark.parametrize("name", ["numpy", "torch:cpu"])
def test_several_steps_in_one_call_have_the_tokens_of_single_steps(name):
    if name == "torch:cpu":
        pytest.importorskip("torch")
    backend = nn.backend(name)
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.Residual(attention(rotary=True)), nn.Dense(9)
    )
    weights = start(model, (4,))
    task = (model, *backend.asarray(weights), backend)
    for stop in (None, 5):
        stream = list(nn.stream_tokens(task, PROMPT, 26, seed=2, stop=stop))
        for _ in range(3):  # the function itself, and the program that replays it
            tokens = nn.generate(task, PROMPT, 26, seed=2, stop=stop)
            np.testing.assert_array_equal(tokens[:, : len(stream)].T, stream)
            assert stop is None or (tokens[:, len(stream) :] == stop).all()


def test_equal_options_use_the_same_compiled_functions(weights):
    calls = []

    @dataclass(frozen=True)
    class Counted(nn.Dense):
        def forward(self, *args, **options):
            calls.append(1)
            return super().forward(*args, **options)

    model = nn.Sequential(nn.Embedding(VOCABULARY, 8), Counted(VOCABULARY))
    params, state = start(model, (4,))
    task = (model, params, state, nn.backend("numpy"))
    expected = nn.generate(task, PROMPT, 8)
    nn.generate(task, PROMPT, 8)
    count = len(calls)
    np.testing.assert_array_equal(nn.generate(task, PROMPT, 8), expected)
    assert len(calls) == count


def test_a_trainer_generates_also_with_averaged_parameters():
    model = nn.Sequential(nn.Embedding(5, 4), nn.GRU(4), nn.Dense(5))
    optimizer = nn.Average(nn.SGD(1.0), decay=0.99)
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, optimizer, backend="numpy", shape=(4,)
    )
    x = np.asarray([[0, 1, 2, 3]])
    stream = nn.stream_tokens(trainer, x, 6, temperature=0.0)
    for _ in range(3):
        trainer.step(x, (x + 1) % 5)
    plain = trainer.params, trainer.state
    mean = trainer._prediction_weights(averaged=True)
    for averaged, (params, state) in ((False, plain), (True, mean)):
        task = (model, params, state, trainer.backend)
        np.testing.assert_array_equal(
            nn.generate(trainer, x, 6, averaged=averaged), nn.generate(task, x, 6)
        )
    assert len(list(stream)) == 6


def test_generation_between_steps_of_training_changes_no_step(backend):
    """PyTorch generates in inference mode, which must not reach the training."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.GRU(4), nn.Dense(5))
    x = np.asarray([[0, 1, 2, 3]])

    def trained(generates):
        trainer = nn.Trainer(
            model, nn.softmax_cross_entropy, nn.Adam(0.1), backend=backend, shape=(4,)
        )
        for _ in range(4):
            if generates:
                stream = nn.stream_tokens(trainer, x, 20)
                nn.generate(trainer, x, 20)
                next(stream)
                array = backend.asarray(np.ones(1, np.float32))
                assert not getattr(array, "is_inference", bool)()
            trainer.step(x, (x + 1) % 5)
            if generates:
                next(stream)
        return trainer.backend.to_numpy(trainer.params)

    for leaf, other in zip(leaves(trained(True)), leaves(trained(False)), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_the_prompt_and_the_options_are_checked(task):
    def refused(error, message, *arguments, **options):
        with pytest.raises(error, match=message):
            nn.generate(*arguments, **options)

    few = "a prompt of 3 steps and 20 more tokens need 22 steps: there are 12 positions"
    refused(ValueError, few, task, PROMPT, 20)
    refused(TypeError, "prompt of integers", task, PROMPT + 0.5, 3)
    refused(ValueError, r"got \(3,\): write prompt\[None\]", task, PROMPT[0], 3)
    refused(ValueError, "at least one token", task, PROMPT[:, :0], 3)
    refused(ValueError, "11", task, PROMPT + 8, 3)
    refused(ValueError, "length of at least 1", task, PROMPT, 0)
    refused(ValueError, "temperature", task, PROMPT, 3, temperature=-1.0)
    refused(ValueError, "top_k of at least 1", task, PROMPT, 3, top_k=0)
    refused(ValueError, r"top_p in \(0, 1\], got 0", task, PROMPT, 3, top_p=0)
    refused(TypeError, "stop to be an integer", task, PROMPT, 3, stop="a")
    refused(ValueError, r"seed in \[0", task, PROMPT, 3, seed=-1)
    refused(TypeError, "a Trainer or a tuple", MODEL, PROMPT, 3)
    refused(TypeError, "expected a layer", (3, *task[1:]), PROMPT, 3)
    refused(ValueError, "need a Trainer", task, PROMPT, 3, averaged=True)


def test_a_loop_ends_when_it_is_done_or_after_its_count(backend):
    def until(limit):
        def run(x):
            return ops.loop_until(
                lambda carry: namespace(carry[0]).all(carry[0] >= limit),
                lambda carry: (carry[0] + 1.0, 2.0 * carry[1]),
                (x, x),
                5,
            )

        return run

    x = backend.asarray(np.asarray([1.0, 2.0], "float32"))
    for limit, steps in ((3.0, 2), (0.0, 0), (100.0, 5)):
        added, doubled = backend.to_numpy(backend.jit(until(limit))(x))
        np.testing.assert_array_equal(added, np.asarray([1.0, 2.0]) + steps)
        np.testing.assert_array_equal(doubled, np.asarray([1.0, 2.0]) * 2.0**steps)
