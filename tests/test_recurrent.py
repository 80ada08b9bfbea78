"""Recurrent layers: formulas, masks, states, accuracy and initial values."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.layers.recurrent import _Recurrent

BOTH = {"depth": 2, "bidirectional": True, "final": True}


def sigma(x):
    return 1 / (1 + np.exp(-x))


def lstm(z, p, h, c):
    i, f, g, o = np.split(z + h @ p["recurrent"], 4, axis=-1)
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return sigma(o) * np.tanh(c), c


def gru(after):
    def cell(z, p, h, c):
        z_r, z_u, z_n = np.split(z, 3, axis=-1)
        to_r, to_u, to_n = np.split(p["recurrent"], 3, axis=-1)
        r, u = sigma(z_r + h @ to_r), sigma(z_u + h @ to_u)
        from_h = r * (h @ to_n + p["recurrent_bias"]) if after else (r * h) @ to_n
        return (1 - u) * np.tanh(z_n + from_h) + u * h, c

    return cell


CELLS = [  # a layer, and its cell in plain NumPy
    (nn.RNN(3), lambda z, p, h, c: (np.tanh(z + h @ p["recurrent"]), c)),
    (
        nn.RNN(3, activation="relu"),
        lambda z, p, h, c: (np.maximum(z + h @ p["recurrent"], 0), c),
    ),
    (nn.GRU(3), gru(after=True)),
    (nn.GRU(3, reset="before"), gru(after=False)),
    (nn.LSTM(3), lstm),
]


@pytest.fixture
def random_params(backend, draw, widest):
    """Return a function from a layer and fan_in to random parameters, on the host."""

    def params(layer, fan_in=2):
        xp = nn.backend("numpy").xp
        result, _, _ = layer.init(
            nn.random.key(0, xp=xp), (1, fan_in), getattr(xp, widest)
        )
        return tree_map(lambda leaf: leaf + 0.3 * draw(*leaf.shape), result)

    return params


@pytest.fixture
def run(backend):
    """Return a function that computes y, dx and the gradients of Σ y² / 2."""

    def compute(layer, params, x, backend=backend):
        def both(params, x):
            y, _, cache = layer.forward(params, {}, x, train=True)
            dx, grads = layer.backward(params, cache, y)
            dx = dx if isinstance(dx, dict) else {"x": dx}
            return {
                "y": y,
                "grads": grads,
                "dx": {k: d for k, d in dx.items() if k != "mask"},
            }

        return backend.to_numpy(backend.jit(both)(*backend.asarray((params, x))))

    return compute


def assert_close(actual, expected, tolerance):
    """Compare leaves, relative to the largest number of each, or to 1 if larger."""
    for (name, ours), (_, theirs) in zip(
        named_leaves(actual), named_leaves(expected), strict=True
    ):
        assert ours.shape == theirs.shape, name
        scale = np.max(np.abs(theirs), initial=1.0)
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=tolerance * scale, err_msg=name
        )


def states(draw, layer, rows):
    """Return a random initial state for `layer`."""
    _, _, out = replace(layer, final=True).init(
        nn.random.key(0, xp=nn.backend("numpy").xp), (1, 1), np.float32
    )
    return nn.trees.shape_map(lambda shape: draw(rows, *shape), out["state"])


@pytest.mark.parametrize(
    ("layer", "cell"), CELLS, ids=[str(layer) for layer, _ in CELLS]
)
def test_each_step_equals_the_formula(draw, epsilon, random_params, run, layer, cell):
    """Four steps with sums of five terms; each step reduces earlier errors."""
    params, x = random_params(layer), draw(2, 4, 2)
    (p,) = [layer["forward"] for layer in params]
    h, c, ys = np.zeros((2, 3)), np.zeros((2, 3)), []
    for t in range(4):
        h, c = cell(x[:, t] @ p["weight"] + p["bias"], p, h, c)
        ys.append(h)
    assert_close(run(layer, params, x)["y"], np.stack(ys, axis=1), 32 * epsilon)


class StepByStep(nn.LSTM):
    """An LSTM that does not use the native version of a whole sequence."""

    _run, _run_back = _Recurrent._run, _Recurrent._run_back


NATIVE_OPTIONS = [
    {},
    {"bidirectional": True, "sequence": False},
    {"depth": 2, "bidirectional": True, "final": True},
]


@pytest.mark.parametrize("options", NATIVE_OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "widest"])
@pytest.mark.parametrize(("rows", "time"), [(3, 1), (1, 8), (2, 21), (0, 5)], ids=str)
def test_a_native_lstm_equals_its_formulas(
    backend, draw, widest, random_params, run, rows, time, dtype, options
):
    """From any state, for Fortran-ordered arrays, also in prediction."""
    dtype, layer = widest if dtype == "widest" else dtype, nn.LSTM(5, **options)
    native = nn.ops.lstm.dispatch(type(backend.asarray(np.ones(1, dtype))))
    if native is nn.ops.lstm.dispatch(object):
        pytest.skip(f"{backend.name} has no native version")
    params, x = random_params(layer, 3), draw(rows, time, 3)
    params, arguments = tree_map(
        lambda leaf: leaf.astype(dtype),
        (params, {"x": x, "state": states(draw, layer, rows)}),
    )
    expected = run(StepByStep(5, **options), params, arguments)

    def columns(leaf):
        transposed = backend.asarray(np.transpose(leaf))
        return backend.xp.permute_dims(transposed, tuple(reversed(range(leaf.ndim))))

    params, arguments = tree_map(columns, (params, arguments))
    y, _, cache = layer.forward(params, {}, arguments, train=True)
    dx, grads = layer.backward(params, cache, tree_map(columns, backend.to_numpy(y)))
    result = backend.to_numpy({"y": y, "grads": grads, "dx": dx})
    tolerance = 16 * float(np.finfo(dtype).eps)
    assert_close(result, expected, tolerance)
    predicted = backend.to_numpy(layer.predict(params, {}, arguments))
    assert_close({"y": predicted}, {"y": expected["y"]}, tolerance)


TWO_WAYS = {"bidirectional": True, "final": True}
MASKED = [
    nn.RNN(3, **TWO_WAYS),
    nn.GRU(3, **TWO_WAYS),
    nn.GRU(3, reset="before", **TWO_WAYS, sequence=False),
    nn.LSTM(3, **TWO_WAYS),
    nn.LSTM(3, **TWO_WAYS, sequence=False),
]
WITH_HOLES = [
    [0, 1, 1, 0, 1, 0],
    [1, 1, 1, 1, 1, 1],
    [0, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
]


@pytest.mark.parametrize("layer", MASKED, ids=str)
def test_masked_steps_have_no_effect(draw, epsilon, random_params, run, layer):
    """They may be NaN; their y and dx are 0. A fully masked row keeps its state."""
    params, x, state = random_params(layer), draw(4, 6, 2), states(draw, layer, 4)
    mask = np.asarray(WITH_HOLES, bool)
    with_nan = np.where(mask[..., None], x, np.nan).astype(x.dtype)
    result = run(layer, params, {"x": with_nan, "mask": mask, "state": state})

    y, dx = np.zeros_like(result["y"]["y"]), np.zeros_like(x)
    ends, dstates, grads = [], [], []
    for row, counts in enumerate(mask):
        row_state = tree_map(lambda leaf, row=row: leaf[row : row + 1], state)
        if not counts.any():
            ends.append(row_state)
            if not layer.sequence:
                top = row_state[-1]
                y[row] = np.concatenate(
                    [top[way]["h"][0] for way in ("forward", "reverse")]
                )
                doubled = {way: s | {"h": 2 * s["h"]} for way, s in top.items()}
                row_state = (*row_state[:-1], doubled)
            dstates.append(row_state)
            continue
        alone = run(
            layer,
            params,
            {"x": x[row, counts][None], "state": row_state},
            nn.backend("numpy"),
        )
        if layer.sequence:
            y[row, counts] = alone["y"]["y"][0]
        else:
            y[row] = alone["y"]["y"][0]
        dx[row, counts] = alone["dx"]["x"][0]
        ends.append(alone["y"]["state"])
        dstates.append(alone["dx"]["state"])
        grads.append(alone["grads"])
    expected = {
        "y": {"y": y, "state": tree_map(lambda *rows: np.concatenate(rows), *ends)},
        "grads": tree_map(lambda *rows: sum(rows), *grads),
        "dx": {
            "x": dx,
            "state": tree_map(lambda *rows: np.concatenate(rows), *dstates),
        },
    }
    assert_close(result, expected, 64 * epsilon)
    assert (result["dx"]["x"][~mask] == 0).all()


def test_the_last_step_is_that_of_each_direction(draw, epsilon, random_params, run):
    layer = nn.GRU(3, bidirectional=True)
    params, x = random_params(layer), draw(2, 5, 2)
    whole = run(layer, params, x, nn.backend("numpy"))["y"]
    last = run(replace(layer, sequence=False), params, x)["y"]
    expected = np.concatenate((whole[:, -1, :3], whole[:, 0, 3:]), axis=-1)
    np.testing.assert_allclose(last, expected, rtol=0, atol=4 * epsilon)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_two_halves_with_the_state_passed_on_equal_the_whole_sequence(
    draw, epsilon, random_params, run, kind
):
    layer = kind(3, depth=2, final=True)
    params, x = random_params(layer), draw(2, 5, 2)
    whole = run(layer, params, x, nn.backend("numpy"))["y"]
    first = run(layer, params, x[:, :2])["y"]
    second = run(layer, params, {"x": x[:, 2:], "state": first["state"]})["y"]
    joined = np.concatenate((first["y"], second["y"]), axis=1)
    assert_close({"y": joined, "state": second["state"]}, whole, 8 * epsilon)


@pytest.mark.parametrize("sequence", [True, False], ids=["sequence", "last"])
@pytest.mark.parametrize("final", [True, False], ids=["final", "only y"])
def test_advance_equals_forward_over_all_steps(
    backend, draw, epsilon, random_params, run, final, sequence
):
    layer = nn.LSTM(3, depth=2, final=final, sequence=sequence)
    params, x = random_params(layer), draw(2, 4, 2)
    device_params = backend.asarray(params)
    advance = backend.jit(lambda memory, x: layer.advance(device_params, {}, memory, x))
    memory = layer.begin(device_params, {}, backend.asarray(x[:, :1]), length=4)
    for t in range(4):
        y, memory = advance(memory, backend.asarray(x[:, t : t + 1]))
        whole = run(layer, params, x[:, : t + 1], nn.backend("numpy"))["y"]
        if sequence:
            part = whole["y"] if final else whole
            whole = whole | {"y": part[:, -1:]} if final else part[:, -1:]
        assert_close(backend.to_numpy(y), whole, 8 * epsilon)


def test_a_bidirectional_layer_cannot_advance(backend, draw):
    layer = nn.GRU(3, bidirectional=True)
    for one_way in (layer, nn.GRU(3, reverse=True)):
        with pytest.raises(
            TypeError, match="cannot go step by step: its reverse direction"
        ):
            one_way.begin((), {}, backend.asarray(draw(2, 1, 2)), 5)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_reverse_direction_reads_the_flipped_sequence(
    draw, epsilon, random_params, run, kind
):
    """y stays at the index of its x. The parameters are those of "reverse"."""
    layer, turned = kind(3, depth=2, final=True), kind(3, depth=2, final=True)
    turned = replace(turned, reverse=True)
    params, x = random_params(layer), draw(2, 5, 2)
    expected = run(layer, params, x[:, ::-1].copy(), nn.backend("numpy"))["y"]
    renamed = tuple({"reverse": p["forward"]} for p in params)
    result = run(turned, renamed, x)["y"]
    np.testing.assert_allclose(
        result["y"], expected["y"][:, ::-1], rtol=0, atol=8 * epsilon
    )
    ends = tuple({"forward": end["reverse"]} for end in result["state"])
    assert_close(ends, expected["state"], 8 * epsilon)


def test_dropout_multiplies_what_the_next_layer_reads(backend, draw):
    """The y of the last layer and the state are not dropped, nor is a prediction."""
    layer = nn.LSTM(64, depth=2, dropout=0.25, final=True)
    xp, rows = nn.backend("numpy").xp, 3
    params, state, _ = layer.init(nn.random.key(1, xp=xp), (7, 2), xp.float32)
    x = draw(rows, 7, 2).astype("float32")
    plain = nn.LSTM(64, final=True)
    first, _, _ = plain.forward(params[:1], {}, x)
    keys = nn.random.split(state["key"], 2)
    mask = nn.random.bernoulli(keys[1, :], 0.75, (rows, 7, 64))
    assert 0.7 < mask.mean() < 0.8
    dropped = (first["y"] * mask / 0.75).astype("float32")
    expected, _, _ = plain.forward(params[1:], {}, dropped)
    arrays = backend.asarray((params, state, x))
    y, after, _ = backend.to_numpy(
        backend.jit(lambda p, s, x: layer.forward(p, s, x, train=True))(*arrays)
    )
    expected_state = (*first["state"], *expected["state"])
    tolerance = 64 * float(np.finfo("float32").eps)
    assert_close(y, {"y": expected["y"], "state": expected_state}, tolerance)
    np.testing.assert_array_equal(after["key"], keys[0, :])
    predicted, unchanged, _ = layer.forward(params, state, x)
    without = replace(layer, dropout=0.0).forward(params, {}, x)[0]
    assert_close(predicted, without, 0.0)
    np.testing.assert_array_equal(unchanged["key"], state["key"])


def test_dropout_draws_another_mask_at_each_layer_and_step():
    layer = nn.RNN(32, depth=3, dropout=0.5)
    xp = nn.backend("numpy").xp
    params, state, _ = layer.init(nn.random.key(1, xp=xp), (2, 2), xp.float32)
    masks = set()
    for _ in range(3):
        _, state, cache = layer.forward(
            params, state, xp.ones((1, 2, 2), dtype=xp.float32), train=True
        )
        layers, *_ = cache
        masks |= {factors.tobytes() for _, factors, _ in layers[1:]}
    assert len(masks) == 6


def test_a_state_of_a_projected_lstm_has_its_two_widths(
    backend, draw, epsilon, random_params, run
):
    """Decoding step by step equals the whole sequence from that state."""
    layer = nn.LSTM(4, depth=2, projection=2, final=True)
    params, x = random_params(layer), draw(2, 4, 2)
    assert params[1]["forward"]["projection"].shape == (4, 2)
    assert params[1]["forward"]["recurrent"].shape == (2, 16)
    whole = run(layer, params, x, nn.backend("numpy"))["y"]
    memory = layer.begin(backend.asarray(params), {}, backend.asarray(x[:, :1]), 4)
    for t in range(4):
        step = backend.asarray(x[:, t : t + 1])
        y, memory = layer.advance(backend.asarray(params), {}, memory, step)
    y = backend.to_numpy(y)
    assert_close(y["state"], whole["state"], 16 * epsilon)
    np.testing.assert_allclose(y["y"], whole["y"][:, -1:], rtol=0, atol=16 * epsilon)
    assert y["state"][0]["forward"]["h"].shape == (2, 2)
    assert y["state"][0]["forward"]["c"].shape == (2, 4)


def dsigma(a):
    """σ'(a), for a > 0."""
    return math.exp(-a) / (1 + math.exp(-a)) ** 2


TANH, SIGMA = math.tanh(1.0), 1 / (1 + math.exp(-1.0))
# layer of width 1, its bias, an index of dL/dbias and its value for dy = 1
SATURATED = [
    (nn.RNN(1), (20.0,), 0, 4 * dsigma(40.0)),
    (nn.GRU(1), (0.0, 30.0, 1.0), 1, -TANH * dsigma(30.0)),
    (nn.GRU(1), (0.0, 30.0, 1.0), 2, (1 - TANH**2) / (1 + math.exp(30.0))),
    (
        nn.LSTM(1),
        (0.0, 0.0, 20.0, 1.0),
        2,
        SIGMA * (1 - math.tanh(0.5) ** 2) / 2 * 4 * dsigma(40.0),
    ),
    (nn.LSTM(1), (0.0, 0.0, 1.0, 30.0), 3, math.tanh(TANH / 2) * dsigma(30.0)),
]


@pytest.mark.parametrize("reset", ["after", "before"])
def test_the_initial_biases_of_a_gru_are_distributed_like_the_sum_of_pytorchs(reset):
    """Each is uniform on ±1/√width; for the gates r and u two are added."""
    width, bound = 256, 1 / 16
    layer = nn.GRU(width, reset=reset)
    params, _, _ = layer.init(
        nn.random.key(0, xp=nn.backend("numpy").xp), (5, 3), np.float64
    )
    drawn = params[0]["forward"]
    parts = dict(zip("run", np.split(drawn["bias"], 3), strict=True))
    if reset == "after":
        parts["b_n"] = drawn["recurrent_bias"]
    biases = np.concatenate(list(parts.values()))
    assert np.unique(biases).size == biases.size  # all draws are different
    for name, part in parts.items():
        count = 2 if name in "ru" else 1
        assert bound * (count - 0.2) < np.abs(part).max() <= count * bound
        np.testing.assert_allclose(part.std(), bound * np.sqrt(count / 3), rtol=0.1)
        np.testing.assert_allclose(part.mean(), 0, atol=bound / 8)


@pytest.mark.parametrize(
    ("layer", "bias", "index", "slope"), SATURATED, ids=lambda v: str(v)[:20]
)
def test_the_gradient_of_a_saturated_gate_is_accurate(
    backend, widest, epsilon, layer, bias, index, slope
):
    """Computed as 1 - y it would have no correct digit.

    exp multiplies a relative error of its argument by that argument.
    """
    xp = nn.backend("numpy").xp
    params, _, _ = layer.init(nn.random.key(0, xp=xp), (1, 1), getattr(xp, widest))
    (p,) = [layer_params["forward"] for layer_params in params]
    chosen = {"bias": np.asarray(bias, widest)}
    if "recurrent_bias" in p:
        chosen["recurrent_bias"] = np.zeros(1, widest)
    params = backend.asarray(({"forward": p | chosen},))
    y, _, cache = layer.forward(
        params, {}, backend.asarray(np.zeros((1, 1, 1), widest))
    )
    _, grads = layer.backward(params, cache, backend.xp.ones_like(y))
    result = backend.to_numpy(grads[0]["forward"]["bias"])[index]
    np.testing.assert_allclose(result, slope, rtol=4 * max(bias) * epsilon)


@pytest.mark.parametrize("kind", [nn.LSTM, StepByStep])
def test_the_gradient_of_a_large_memory_cell_is_accurate(
    backend, widest, epsilon, kind
):
    """dL/dc₀ has the factor tanh'(c), with c = σ(f) c₀ + σ(i) tanh(g) near 20."""
    layer = kind(1, forget_bias=40.0)
    xp = nn.backend("numpy").xp
    params, _, _ = layer.init(nn.random.key(0, xp=xp), (1, 1), getattr(xp, widest))
    zero, large = np.zeros((1, 1), widest), np.full((1, 1), 20.0, widest)
    arguments = {"x": zero[None], "state": ({"forward": {"h": zero, "c": large}},)}
    params, arguments = backend.asarray((params, arguments))
    y, _, cache = layer.forward(params, {}, arguments)
    dx, _ = layer.backward(params, cache, backend.xp.ones_like(y))
    result = backend.to_numpy(dx)["state"][0]["forward"]["c"]
    np.testing.assert_allclose(result, 0.5 * 4 * dsigma(40.0), rtol=160 * epsilon)


@pytest.mark.parametrize(
    "layer", [nn.RNN(2), nn.GRU(2), nn.GRU(2, reset="before"), nn.LSTM(2)], ids=str
)
def test_results_of_large_inputs_are_finite(random_params, run, layer):
    """2.4e38 is a float32, but twice as much is not, and NumPy would warn."""
    params = tree_map(lambda leaf: leaf.astype("float32"), random_params(layer))
    params[0]["forward"]["weight"][:] = 2.0
    x = np.asarray([[[6e37, 6e37], [1e30, -2e30]]], "float32")
    for name, leaf in named_leaves(run(layer, params, x)):
        assert np.isfinite(leaf).all(), name


def test_initial_parameters_are_as_documented():
    xp, width = nn.backend("numpy").xp, 8

    def start(layer):
        params, state, _ = layer.init(nn.random.key(3, xp=xp), (5, 4), xp.float64)
        assert state == {}
        return params

    (lstm,) = start(nn.LSTM(width, forget_bias=0.5))
    bias = np.split(lstm["forward"]["bias"], 4)
    assert [set(part.tolist()) for part in bias] == [{0.0}, {0.5}, {0.0}, {0.0}]
    assert (start(nn.LSTM(width))[0]["forward"]["bias"][width : 2 * width] == 1.0).all()
    gru = start(nn.GRU(width, **BOTH))
    assert {**gru[0]["forward"]}.keys() == {
        "weight",
        "recurrent",
        "bias",
        "recurrent_bias",
    }
    assert gru[0]["reverse"]["weight"].shape == (4, 3 * width)
    assert gru[1]["forward"]["weight"].shape == (2 * width, 3 * width)
    for block in np.split(gru[1]["reverse"]["recurrent"], 3, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(width), atol=1e-14)
    squares = [
        leaf.tobytes() for leaf in leaves(gru) if leaf.shape == (width, 3 * width)
    ]
    assert len(set(squares)) == len(squares) == 4
    assert (start(nn.GRU(width, reset="before"))[0]["forward"]).keys() == {
        "weight",
        "recurrent",
        "bias",
    }


def test_the_compiled_size_on_jax_does_not_depend_on_the_length():
    """Forward, backward and update have as many operations for 300 steps as for 3."""
    jax = pytest.importorskip("jax", reason="only JAX compiles a loop")
    backend, xp = nn.backend("jax"), nn.backend("numpy").xp
    model = nn.Sequential(nn.LSTM(3, **BOTH | {"final": False}), nn.GRU(2), nn.RNN(2))
    step = nn.make_step(model, nn.mean_squared_error, nn.Adam())
    counts = []
    for time in (3, 300):
        params, state, _ = model.init(nn.random.key(0, xp=xp), (time, 2), xp.float32)
        carry = backend.asarray((params, state, nn.Adam().init(params)))
        x = backend.asarray(np.zeros((2, time, 2), np.float32))
        counts.append(str(jax.make_jaxpr(step)(carry, x, x)).count(" = "))
    assert counts[0] == counts[1] > 100


STATE = ({"forward": {"h": (3,), "c": (3,)}},)
REFUSED_BY_INIT = [
    ((2,), r"LSTM takes \(batch, time, width\), got \(batch, \*\(2,\)\)"),
    ({"mask": (5,)}, r"LSTM takes a dict with x, got \['mask'\]"),
    ({"x": (5, 2), "mask": (4,)}, r"LSTM takes a mask of \(5,\), got \(4,\)"),
    (
        {"x": (5, 2), "state": STATE[:0]},
        r"LSTM takes a state of \(\{'forward'.*, got \(\)",
    ),
]


@pytest.mark.parametrize(
    ("shape", "message"), REFUSED_BY_INIT, ids=lambda v: str(v)[:24]
)
def test_init_refuses_wrong_shapes(shape, message):
    xp = nn.backend("numpy").xp
    with pytest.raises(ValueError, match=message):
        nn.LSTM(3).init(nn.random.key(0, xp=xp), shape, xp.float32)


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


X = ones(4, 5, 2)
FULL = ({"forward": {"h": ones(4, 3), "c": ones(4, 3)}},)
REFUSED = [
    (ones(4, 2), r"LSTM takes \(batch, time, 2\), got \(4, 2\)"),
    (ones(4, 5, 3), r"LSTM takes \(batch, time, 2\), got \(4, 5, 3\)"),
    (ones(4, 0, 2), r"LSTM takes \(batch, time, 2\), got \(4, 0, 2\)"),
    (ones(4, 5, 2, dtype="int32"), r"LSTM holds .*float32.*, got .*int32"),
    (
        {"x": X, "masks": X},
        r"LSTM takes x and perhaps mask and state, got \['masks', 'x'\]",
    ),
    (
        {"x": X, "mask": ones(5, 4, dtype=bool)},
        r"LSTM takes a mask \(4, 5\), got \(5, 4\)",
    ),
    ({"x": X, "mask": ones(4, 5)}, "LSTM takes a boolean mask, got .*float32"),
    ({"x": X, "state": FULL * 2}, r"LSTM takes a state of .*'h': \(4, 3\)"),
    (
        {"x": X, "state": tree_map(lambda leaf: leaf[:1], FULL)},
        r"takes a state of .*\(4, 3\).*, got .*\(1, 3\)",
    ),
    (
        {"x": X, "state": tree_map(lambda leaf: leaf.astype("int32"), FULL)},
        "x is .*float32, but state .*int32",
    ),
]


@pytest.mark.parametrize(
    ("x", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED]
)
def test_forward_refuses_wrong_shapes_dtypes_and_names(backend, x, message):
    xp, layer = nn.backend("numpy").xp, nn.LSTM(3)
    params, _, _ = layer.init(nn.random.key(0, xp=xp), (5, 2), xp.float32)
    with pytest.raises(ValueError, match=message):
        layer.forward(*backend.asarray((params, {}, x)))


BAD = [
    (lambda: nn.LSTM(0), ValueError, "expected width of at least 1, got 0"),
    (lambda: nn.GRU(3, depth=0), ValueError, "expected depth of at least 1, got 0"),
    (
        lambda: nn.GRU(3, depth=1.0),
        TypeError,
        r"expected depth to be an integer, got 1\.0",
    ),
    (
        lambda: nn.RNN(3, activation="sigmoid"),
        ValueError,
        "expected activation .tanh. or .relu., got 'sigmoid'",
    ),
    (
        lambda: nn.GRU(3, reset="never"),
        ValueError,
        "expected reset .after. or .before., got",
    ),
    (
        lambda: nn.RNN(3, dropout=0.2),
        ValueError,
        r"dropout=0\.2 is between layers, but depth is 1: use a depth of 2 or more",
    ),
    (
        lambda: nn.RNN(3, depth=2, dropout=1.0),
        ValueError,
        r"a finite dropout in \[0, 1\), got 1\.0",
    ),
    (
        lambda: nn.GRU(3, bidirectional=True, reverse=True),
        ValueError,
        "bidirectional=True has both directions: expected reverse=False, got True",
    ),
    (
        lambda: nn.LSTM(3, projection=0),
        ValueError,
        "expected projection of at least 1, got 0",
    ),
    (
        lambda: nn.LSTM(3, projection=2.0),
        TypeError,
        "expected projection to be an integer",
    ),
    (
        lambda: nn.LSTM(3, forget_bias=math.inf),
        ValueError,
        "expected a finite forget_bias",
    ),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), BAD, ids=[m[:40] for _, _, m in BAD]
)
def test_invalid_options_are_refused_by_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_gru_learns_parity_and_an_mlp_does_not(backend):
    """The example, trained on 120 of 256 strings of 8 bits, tested on 40 bits."""
    path = Path(__file__).parents[1] / "examples" / "parity.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = example.compute(backend, length=8, count=120, epochs=(30, 60), longer=40)
    assert result["GRU"]["training"] == result["GRU"]["new"] == 1.0
    assert result["GRU"]["longer"] > 0.9
    assert result["MLP"]["new"] < 0.6
    assert result["MLP"]["loss"] > 50 * result["GRU"]["loss"]
