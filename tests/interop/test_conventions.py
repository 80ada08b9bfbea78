"""Each layer of PyTorch and Keras with random weights computes the same here."""

import os
from contextlib import suppress

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves, tree_map
from agnostic_nn.interop.conventions import KERAS, ONNX, PYTORCH, as_dtype
from agnostic_nn.interop.weight_files import keras_names

os.environ.setdefault("KERAS_BACKEND", "torch")
torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

GENERATOR = np.random.default_rng(0)


def randomized(module):
    """Return a module in float64 whose parameters and statistics are random."""
    torch.manual_seed(0)
    module = module.double().eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return module


def last_to_first(x):
    return torch.movedim(x, -1, 1)


def first_to_last(y):
    return torch.movedim(y, 1, -1)


def moved(module):
    """Call a module of channels first with channels last."""
    return lambda m, x: first_to_last(m(last_to_first(x)))


def plain(m, x):
    return m(x)


def first_of(m, x):
    return m(x)[0]


def attention(m, x):
    return m(x, x, x, need_weights=False)[0]


def cross(m, x):
    return m(x["x"], x["source"], x["value"], need_weights=False)[0]


def causal(m, x):
    mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
    return m(x, src_mask=mask)


def decoder(m, x):
    return m(x["x"], x["source"])


T = torch.nn
LAST = {"batch_first": True}
# ours, theirs, how theirs is called, the shape of one example
TORCH = [
    (nn.Dense(3), T.Linear(4, 3), plain, (4,)),
    (nn.Dense(3, bias=False), T.Linear(4, 3, bias=False), plain, (2, 4)),
    (nn.Dense(3), T.Conv1d(4, 3, 1), moved, (5, 4)),
    (nn.Bilinear(3), T.Bilinear(4, 5, 3), lambda m, x: m(*x), ((4,), (5,))),
    (nn.Conv1D(4, 3), T.Conv1d(2, 4, 3), moved, (7, 2)),
    (
        nn.Conv2D(4, (2, 3), groups=2),
        T.Conv2d(6, 4, (2, 3), groups=2),
        moved,
        (5, 5, 6),
    ),
    (nn.Conv3D(2, 2, bias=False), T.Conv3d(3, 2, 2, bias=False), moved, (3, 3, 3, 3)),
    (
        nn.ConvTranspose1D(4, 3, stride=2),
        T.ConvTranspose1d(2, 4, 3, stride=2),
        moved,
        (5, 2),
    ),
    (
        nn.ConvTranspose2D(6, (2, 3), stride=2, groups=3),
        T.ConvTranspose2d(9, 6, (2, 3), stride=2, groups=3),
        moved,
        (3, 4, 9),
    ),
    (nn.ConvTranspose3D(2, 2), T.ConvTranspose3d(3, 2, 2), moved, (2, 2, 2, 3)),
    (nn.BatchNorm(), T.BatchNorm2d(3), moved, (2, 2, 3)),
    (nn.BatchNorm(momentum=None), T.BatchNorm1d(3, momentum=None), plain, (3,)),
    (
        nn.BatchNorm(scale=False, bias=False),
        T.BatchNorm1d(3, affine=False),
        plain,
        (3,),
    ),
    (nn.LayerNorm(), T.LayerNorm(5), plain, (2, 5)),
    (nn.LayerNorm(axes=2, bias=False), T.LayerNorm((2, 5), bias=False), plain, (2, 5)),
    (nn.GroupNorm(2), T.GroupNorm(2, 6), moved, (3, 6)),
    (nn.InstanceNorm(), T.InstanceNorm2d(3, affine=True), moved, (3, 2, 3)),
    (
        nn.InstanceNorm(running=True),
        T.InstanceNorm1d(3, affine=True, track_running_stats=True),
        moved,
        (4, 3),
    ),
    (nn.RMSNorm(epsilon=1e-5), T.RMSNorm(5, eps=1e-5), plain, (2, 5)),
    (nn.Embedding(7, 3), T.Embedding(7, 3), plain, (4,)),
    (nn.EmbeddingBag(7, 3), T.EmbeddingBag(7, 3), plain, (4,)),
    (nn.PReLU(), T.PReLU(3), moved, (2, 3)),
    (nn.PReLU(shared=True), T.PReLU(), plain, (3,)),
    (nn.RNN(3), T.RNN(2, 3, **LAST), first_of, (4, 2)),
    (
        nn.RNN(3, depth=2, bidirectional=True),
        T.RNN(2, 3, 2, bidirectional=True, **LAST),
        first_of,
        (4, 2),
    ),
    (nn.LSTM(3, depth=2), T.LSTM(2, 3, 2, **LAST), first_of, (4, 2)),
    (
        nn.LSTM(3, bidirectional=True, projection=2),
        T.LSTM(2, 3, bidirectional=True, proj_size=2, **LAST),
        first_of,
        (4, 2),
    ),
    (nn.LSTM(3), T.LSTM(2, 3, bias=False, **LAST), first_of, (4, 2)),
    (
        nn.GRU(3, depth=2, bidirectional=True),
        T.GRU(2, 3, 2, bidirectional=True, **LAST),
        first_of,
        (4, 2),
    ),
    (nn.GRU(3), T.GRU(2, 3, bias=False, **LAST), first_of, (4, 2)),
    (nn.MultiHeadAttention(2), T.MultiheadAttention(6, 2, **LAST), attention, (4, 6)),
    (
        nn.MultiHeadAttention(2, bias=False),
        T.MultiheadAttention(6, 2, bias=False, **LAST),
        attention,
        (4, 6),
    ),
    (
        nn.MultiHeadAttention(3, learned_key=True),
        T.MultiheadAttention(6, 3, add_bias_kv=True, **LAST),
        attention,
        (4, 6),
    ),
    (
        nn.MultiHeadAttention(2),
        T.MultiheadAttention(6, 2, kdim=3, vdim=5, **LAST),
        cross,
        {"x": (4, 6), "source": (5, 3), "value": (5, 5)},
    ),
    (
        nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), 5),
        T.TransformerEncoderLayer(6, 2, 5, 0.0, "gelu", norm_first=True, **LAST),
        causal,
        (4, 6),
    ),
    (
        nn.TransformerBlock(
            nn.MultiHeadAttention(2),
            hidden=5,
            cross=nn.MultiHeadAttention(2),
            activation=nn.ReLU(),
            pre_norm=False,
        ),
        T.TransformerDecoderLayer(6, 2, 5, 0.0, **LAST),
        decoder,
        {"x": (4, 6), "source": (5, 6)},
    ),
]


def drawn(layer, shape):
    """Return x for a layer, with a batch of 3."""
    if isinstance(shape, dict):
        return {name: drawn(layer, inner) for name, inner in shape.items()}
    if isinstance(shape[0], tuple):
        return tuple(drawn(layer, inner) for inner in shape)
    if isinstance(layer, nn.Embedding):
        return GENERATOR.integers(0, layer.num_embeddings, (3, *shape))
    return GENERATOR.standard_normal((3, *shape))


def with_state(layer, shape, params, state):
    """Return both trees complete: nested as `init` returns them, in float64."""
    xp = nn.backend("numpy").xp
    key = nn.random.key(0, xp=xp)
    drawn_params, drawn_state, _ = layer.init(key, shape, xp.float64)
    names = [name for name, _ in named_leaves(drawn_params)]
    assert [name for name, _ in named_leaves(params)] == names
    new = dict(named_leaves(state))
    assert new.keys() <= dict(named_leaves(drawn_state)).keys()
    return params, drawn_state | state


def assert_same(ours, theirs, rtol=1e-9):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=rtol / 100)


def written(convention, layer, params, state, tensors):
    """Return our arrays in the form that has the names and shapes of `tensors`."""
    for form in convention.forms(layer):
        if {*form.names} == {*tensors}:
            with suppress(ValueError):
                back = convention.to_theirs(layer, params, state, form=form)
                if shapes(back) == shapes(tensors):
                    return back
    raise AssertionError(f"no form of {layer} has {shapes(tensors)}")


def shapes(tensors):
    return {name: array.shape for name, array in tensors.items()}


@pytest.mark.parametrize("case", TORCH, ids=lambda case: str(case[0]))
def test_a_module_of_pytorch_computes_the_same_here_and_comes_back(case):
    layer, module, call, shape = case
    call = call(module) if call is moved else call
    module = randomized(module)
    tensors = {name: t.numpy().copy() for name, t in module.state_dict().items()}
    params, state = PYTORCH.to_ours(layer, tensors)
    params, state = with_state(layer, shape, params, state)
    x = drawn(layer, shape)
    with torch.no_grad():
        theirs = call(module, tree_map(torch.as_tensor, x)).numpy()
    assert_same(layer.predict(params, state, x), theirs)

    back = written(PYTORCH, layer, params, state, tensors)
    assert back.keys() == tensors.keys()
    for name, array in back.items():
        if not name.startswith(("bias_ih", "bias_hh")):
            np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    module.load_state_dict({k: torch.as_tensor(a) for k, a in back.items()})
    with torch.no_grad():
        again = call(module, tree_map(torch.as_tensor, x)).numpy()
    assert_same(again, theirs)


def causal_heads(query, key, value):
    """Return causal attention of two heads."""
    heads = [torch.as_tensor(a).unflatten(-1, (2, -1)) for a in (query, key, value)]
    heads = [head.transpose(1, 2) for head in heads]
    y = T.functional.scaled_dot_product_attention(*heads, is_causal=True)
    return y.transpose(1, 2).flatten(2).numpy()


def of_torch(function, x, *arguments):
    """Call a function of torch.nn.functional with NumPy arrays."""
    return function(torch.as_tensor(x), *map(tensor_if_array, arguments)).numpy()


def tensor_if_array(value):
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def assert_block_computes(layer, tensors, x, y, name):
    params, state = PYTORCH.to_ours(layer, tensors)
    xp = nn.backend("numpy").xp
    _, drawn_state, _ = layer.init(nn.random.key(0, xp=xp), x.shape[1:], xp.float64)
    assert state == {}
    assert_same(layer.predict(params, drawn_state, x), y)
    form = next(form for form in PYTORCH.forms(layer) if form.name == name)
    back = PYTORCH.to_theirs(layer, params, drawn_state, form=form)
    assert back.keys() == tensors.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, tensors[key], err_msg=key)


@pytest.mark.parametrize("name", ["block of GPT-2", "block of nanoGPT"])
def test_a_block_of_gpt2_computes_the_same_here_and_comes_back(name):
    sizes = {"attn.c_attn": (6, 18), "attn.c_proj": (6, 6)}
    sizes |= {"mlp.c_fc": (6, 5), "mlp.c_proj": (5, 6)}
    weights = {n: GENERATOR.standard_normal(size) for n, size in sizes.items()}
    tensors = {
        f"{n}.weight": w if name == "block of GPT-2" else w.T.copy()
        for n, w in weights.items()
    }
    for n, width in [("ln_1", 6), ("ln_2", 6), *((n, w[1]) for n, w in sizes.items())]:
        tensors[f"{n}.bias"] = GENERATOR.standard_normal(width)
    tensors |= {f"ln_{i}.weight": GENERATOR.standard_normal(6) for i in (1, 2)}

    def norm(x, n):
        arrays = tensors[f"{n}.weight"], tensors[f"{n}.bias"]
        return of_torch(T.functional.layer_norm, x, (6,), *arrays)

    def dense(x, n):
        return x @ weights[n] + tensors[f"{n}.bias"]

    x = GENERATOR.standard_normal((2, 4, 6))
    parts = np.split(dense(norm(x, "ln_1"), "attn.c_attn"), 3, axis=-1)
    y = x + dense(causal_heads(*parts), "attn.c_proj")
    inner = of_torch(T.functional.gelu, dense(norm(y, "ln_2"), "mlp.c_fc"))
    y = y + dense(inner, "mlp.c_proj")
    layer = nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), 5)
    assert_block_computes(layer, tensors, x, y, name)


def test_a_block_of_llama_computes_the_same_here_and_comes_back():
    sizes = {f"self_attn.{n}_proj": (6, 6) for n in "qkvo"}
    sizes |= {"mlp.gate_proj": (5, 6), "mlp.up_proj": (5, 6), "mlp.down_proj": (6, 5)}
    sizes |= {"input_layernorm": (6,), "post_attention_layernorm": (6,)}
    tensors = {f"{n}.weight": GENERATOR.standard_normal(s) for n, s in sizes.items()}

    def norm(x, n):
        return of_torch(T.functional.rms_norm, x, (6,), tensors[f"{n}.weight"], 1e-5)

    def dense(x, n):
        return x @ tensors[f"{n}.weight"].T

    x = GENERATOR.standard_normal((2, 4, 6))
    normal = norm(x, "input_layernorm")
    parts = [dense(normal, f"self_attn.{n}_proj") for n in "qkv"]
    y = x + dense(causal_heads(*parts), "self_attn.o_proj")
    normal = norm(y, "post_attention_layernorm")
    gate = of_torch(T.functional.silu, dense(normal, "mlp.gate_proj"))
    y = y + dense(gate * dense(normal, "mlp.up_proj"), "mlp.down_proj")
    layer = nn.TransformerBlock(
        nn.MultiHeadAttention(2, causal=True, bias=False),
        hidden=10,
        activation=nn.SwiGLU(),
        norm=nn.RMSNorm(),
    )
    assert_block_computes(layer, tensors, x, y, "block of Llama")


K = keras.layers
SEQUENCES = {"return_sequences": True}
KERAS_LAYERS = [
    (nn.Dense(3), lambda: K.Dense(3), (4,)),
    (nn.Dense(3, bias=False), lambda: K.Dense(3, use_bias=False), (2, 4)),
    (
        nn.Dense(3),
        lambda: K.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d"),
        (2, 4),
    ),
    (nn.Conv1D(4, 3), lambda: K.Conv1D(4, 3), (7, 2)),
    (nn.Conv2D(4, (2, 3), groups=2), lambda: K.Conv2D(4, (2, 3), groups=2), (5, 5, 6)),
    (
        nn.Conv2D(6, 3, groups=3),
        lambda: K.DepthwiseConv2D(3, depth_multiplier=2),
        (5, 5, 3),
    ),
    (nn.ConvTranspose2D(4, (2, 3)), lambda: K.Conv2DTranspose(4, (2, 3)), (3, 4, 2)),
    (nn.BatchNorm(epsilon=1e-3), lambda: K.BatchNormalization(), (2, 3)),
    (
        nn.BatchNorm(epsilon=1e-3, scale=False),
        lambda: K.BatchNormalization(scale=False),
        (2, 3),
    ),
    (nn.LayerNorm(epsilon=1e-3), lambda: K.LayerNormalization(), (2, 5)),
    (nn.GroupNorm(2, epsilon=1e-3), lambda: K.GroupNormalization(2), (3, 6)),
    (nn.RMSNorm(epsilon=1e-6), lambda: K.RMSNormalization(), (2, 5)),
    (nn.Embedding(7, 3), lambda: K.Embedding(7, 3), (4,)),
    (nn.PReLU(), lambda: K.PReLU(shared_axes=[1, 2]), (2, 2, 3)),
    (nn.RNN(3), lambda: K.SimpleRNN(3, **SEQUENCES), (4, 2)),
    (nn.LSTM(3), lambda: K.LSTM(3, **SEQUENCES), (4, 2)),
    (nn.LSTM(3), lambda: K.LSTM(3, use_bias=False, **SEQUENCES), (4, 2)),
    (nn.GRU(3), lambda: K.GRU(3, **SEQUENCES), (4, 2)),
    (
        nn.GRU(3, reset="before"),
        lambda: K.GRU(3, reset_after=False, **SEQUENCES),
        (4, 2),
    ),
    (nn.GRU(3), lambda: K.GRU(3, use_bias=False, **SEQUENCES), (4, 2)),
    (
        nn.LSTM(3, bidirectional=True),
        lambda: K.Bidirectional(K.LSTM(3, **SEQUENCES)),
        (4, 2),
    ),
    (
        nn.GRU(3, bidirectional=True),
        lambda: K.Bidirectional(K.GRU(3, **SEQUENCES)),
        (4, 2),
    ),
    (
        nn.MultiHeadAttention(2, head_width=3, value_width=2),
        lambda: K.MultiHeadAttention(2, 3, value_dim=2),
        (4, 5),
    ),
    (
        nn.MultiHeadAttention(4, head_width=3, key_heads=2, bias=False),
        lambda: K.GroupQueryAttention(3, 4, 2, use_bias=False),
        (4, 5),
    ),
]


def keras_arrays(theirs):
    """Return the variables of a layer without the name of the layer."""
    return {
        keras_names(v.path).partition("/")[2]: np.asarray(v.value.detach())
        for v in theirs.weights
        if "seed" not in v.path
    }


def called(theirs, x):
    is_attention = isinstance(theirs, K.MultiHeadAttention | K.GroupQueryAttention)
    inputs = (x, x) if is_attention else (x,)
    return theirs(*inputs).detach().numpy()


@pytest.fixture
def in_float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("case", KERAS_LAYERS, ids=lambda case: str(case[0]))
@pytest.mark.usefixtures("in_float64")
def test_a_layer_of_keras_computes_the_same_here_and_comes_back(case):
    layer, make, shape = case
    theirs = make()
    x = drawn(layer, shape)
    called(theirs, torch.as_tensor(x))  # makes the variables
    for variable in theirs.weights:
        if "seed" not in variable.path:
            variable.assign(GENERATOR.random(variable.shape) + 0.1)
    expected = called(theirs, torch.as_tensor(x))

    tensors = keras_arrays(theirs)
    params, state = KERAS.to_ours(layer, tensors)
    params, state = with_state(layer, shape, params, state)
    # products of Keras on PyTorch are in float32, even with float64
    assert_same(layer.predict(params, state, x), expected, rtol=1e-5)
    back = written(KERAS, layer, params, state, tensors)
    for name, array in back.items():
        if not (isinstance(layer, nn.GRU) and name.endswith("bias")):
            np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    for variable in theirs.weights:
        if "seed" not in variable.path:
            variable.assign(back[keras_names(variable.path).partition("/")[2]])
    assert_same(called(theirs, torch.as_tensor(x)), expected, rtol=1e-5)


def onnx_model(op, x_shape, arrays, **attributes):
    """Return a model of one operator whose further inputs are `arrays`."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    names = [name if array is not None else "" for name, array in arrays.items()]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", 1, x_shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items() if a is not None],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def numbers(*shape):
    return (GENERATOR.random(shape) + 0.1).astype("float32")


def recurrent(gates, directions=1, fan_in=2, width=3):
    return {
        "W": numbers(directions, gates * width, fan_in),
        "R": numbers(directions, gates * width, width),
        "B": numbers(directions, 2 * gates * width),
    }


BOTH = {"direction": "bidirectional"}
# ours, operator, inputs, attributes, x there, from x here and from y there
OPERATORS = [
    (nn.Dense(3), "Gemm", {"B": numbers(3, 4), "C": numbers(3)}, {"transB": 1}, (4,)),
    (nn.Dense(3), "Gemm", {"B": numbers(4, 3), "C": numbers(3)}, {}, (4,)),
    (
        nn.Conv2D(4, 3),
        "Conv",
        {"W": numbers(4, 2, 3, 3), "B": numbers(4)},
        {},
        (5, 5, 2),
    ),
    (
        nn.ConvTranspose1D(4, 3, groups=2),
        "ConvTranspose",
        {"W": numbers(6, 2, 3), "B": numbers(4)},
        {"group": 2},
        (5, 6),
    ),
    (
        nn.BatchNorm(),
        "BatchNormalization",
        {n: numbers(3) for n in ("scale", "B", "input_mean", "input_var")},
        {},
        (2, 3),
    ),
    (
        nn.LayerNorm(),
        "LayerNormalization",
        {"Scale": numbers(3), "B": numbers(3)},
        {"axis": -1},
        (3,),
    ),
    (nn.PReLU(), "PRelu", {"slope": numbers(3, 1)}, {}, (2, 3)),
    (nn.RNN(3), "RNN", recurrent(1), {"hidden_size": 3}, (4, 2)),
    (nn.LSTM(3), "LSTM", recurrent(4), {"hidden_size": 3}, (4, 2)),
    (
        nn.LSTM(3, bidirectional=True),
        "LSTM",
        recurrent(4, 2),
        {"hidden_size": 3} | BOTH,
        (4, 2),
    ),
    (
        nn.GRU(3, bidirectional=True),
        "GRU",
        recurrent(3, 2),
        {"hidden_size": 3, "linear_before_reset": 1} | BOTH,
        (4, 2),
    ),
    (nn.GRU(3, reset="before"), "GRU", recurrent(3), {"hidden_size": 3}, (4, 2)),
]


@pytest.mark.parametrize("case", OPERATORS, ids=lambda case: str(case[0]))
def test_an_operator_of_onnx_computes_the_same_here_and_comes_back(case):
    runtime = pytest.importorskip("onnxruntime")
    layer, op, arrays, attributes, shape = case
    x = numbers(3, *shape)
    is_recurrent = op in ("RNN", "LSTM", "GRU")
    is_moved = op not in ("Gemm", "LayerNormalization") and not is_recurrent
    theirs = np.moveaxis(x, -1, 1) if is_moved else x
    theirs = np.swapaxes(x, 0, 1) if is_recurrent else theirs  # time comes first
    model = onnx_model(op, theirs.shape, arrays, **attributes)
    session = runtime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {"x": np.ascontiguousarray(theirs)})
    y = np.moveaxis(y, 1, -1) if is_moved else y
    if is_recurrent:  # (time, directions, batch, width)
        y = np.moveaxis(y, (2, 0, 1), (0, 1, 2)).reshape(3, shape[0], -1)

    is_turned = attributes.get("transB") == 1
    form = ONNX.forms(layer)[0 if is_turned or op != "Gemm" else 1]
    params, state = ONNX.to_ours(layer, arrays, form=form)
    np.testing.assert_allclose(layer.predict(params, state, x), y, rtol=2e-5, atol=1e-5)
    forms = ONNX.forms(layer) if op == "PRelu" else [form]
    backs = [ONNX.to_theirs(layer, params, state, form=form) for form in forms]
    back = next(b for b in backs if shapes(b) == shapes(arrays))
    for name in arrays.keys() - ({"B"} if is_recurrent else set()):
        np.testing.assert_array_equal(back[name], arrays[name])
    again, _ = ONNX.to_ours(layer, back, form=form)
    for (name, leaf), (_, other) in zip(
        named_leaves(params), named_leaves(again), strict=True
    ):
        np.testing.assert_array_equal(leaf, other, err_msg=name)


# --- what cannot be converted ---------------------------------------------------------


def test_a_layer_without_a_convention_is_named_with_those_that_have_one():
    with pytest.raises(TypeError, match="no convention of Keras for Bilinear"):
        KERAS.to_ours(nn.Bilinear(2), {})


def test_missing_arrays_are_named():
    with pytest.raises(ValueError, match=r"stores .* as weight and bias, .* bias miss"):
        PYTORCH.to_ours(nn.Dense(2), {"weight": np.zeros((2, 3))})


@pytest.mark.parametrize(
    ("convention", "layer", "message"),
    [
        (PYTORCH, nn.GRU(2, reset="before"), "no GRU that resets before"),
        (PYTORCH, nn.MultiHeadAttention(2, relative=3), "no attention with `relative`"),
        (KERAS, nn.LSTM(2, projection=1), "has no projection"),
        (KERAS, nn.LSTM(2, depth=2), "has 2 layers"),
        (KERAS, nn.ConvTranspose2D(2, 2, groups=2), "have no groups, got 2"),
        (ONNX, nn.LSTM(2, projection=1), "has no projection"),
    ],
)
def test_options_that_a_library_does_not_have_are_refused(convention, layer, message):
    with pytest.raises(ValueError, match=message):
        convention.to_ours(layer, {})


def test_a_bias_that_would_be_lost_is_refused():
    layer = nn.LSTM(2)
    xp = nn.backend("numpy").xp
    params, state, _ = layer.init(nn.random.key(0, xp=xp), (3, 2), xp.float64)
    without = PYTORCH.forms(layer)[1]
    with pytest.raises(ValueError, match="bias is not zero"):  # forget_bias is 1
        PYTORCH.to_theirs(layer, params, state, form=without)


def test_slopes_for_each_position_are_refused():
    with pytest.raises(ValueError, match="slopes for each position"):
        KERAS.to_ours(nn.PReLU(), {"alpha": np.zeros((2, 3))})


def test_integers_are_refused_as_weights():
    with pytest.raises(TypeError, match="got int8"):
        as_dtype(np.zeros(3, "int8"), np.float32)


def test_numbers_that_a_dtype_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"largest number is 1e\+06, .* float16"):
        as_dtype(np.array([1e6]), np.float16)
    assert as_dtype(np.array([np.inf, 1.5]), np.float16).tolist() == [np.inf, 1.5]


def test_bfloat16_is_converted_if_ml_dtypes_is_there():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    converted = as_dtype(array, np.float32)
    assert converted.dtype == np.float32
    assert converted.tolist() == [1.5, -2.0]
