"""Models of ONNX: outputs, gradients, training, and errors."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves, tree_map
from agnostic_nn.diagnostics.loading import CannotLoad, load_layer
from agnostic_nn.interop import from_onnx, onnx_operators

CAMPAIGN = Path(__file__).parents[1] / "campaigns" / "onnx_models.py"


def start(model, shape, dtype=np.float64):
    key = nn.random.key(0, xp=nn.backend("numpy").xp)
    return model.init(key, shape, dtype)


def graph_of(nodes, inputs, outputs, arrays=(), opset=20):
    """Return a model of nodes; inputs and outputs are {name: shape}."""

    def infos(shapes):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    tensors = [numpy_helper.from_array(a, name) for name, a in dict(arrays).items()]
    graph = helper.make_graph(
        list(nodes), "test", infos(inputs), infos(outputs), tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def one_node(kind, inputs, arrays=(), opset=20, out=("n", None), **attributes):
    node = helper.make_node(
        kind, [*inputs, *dict(arrays)], ["y"], name="it", **attributes
    )
    return graph_of([node], inputs, {"y": out}, arrays, opset)


# --- models that the package onnx ships -----------------------------------------------


@pytest.fixture(scope="module")
def campaign():
    spec = importlib.util.spec_from_file_location("onnx_models", CAMPAIGN)
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnx_models"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["onnx_models"]


def test_layer_models_of_the_onnx_package_have_their_outputs_and_gradients(campaign):
    folders = Path(onnx.__file__).parent / "backend/test/data/pytorch-converted"
    verdicts = {}
    for folder in sorted(folders.iterdir())[::2]:
        for example in campaign._stored("pytorch-converted", folder):
            outcome = campaign.outcome(example)
            verdicts[example.name] = (outcome.verdict, outcome.reason)
    wrong = {name: v for name, v in verdicts.items() if v[0] == "wrong"}
    refused = sorted(name for name, v in verdicts.items() if v[0] == "refused")
    assert wrong == {}
    assert len(verdicts) > 35
    assert refused == REFUSED


# its second input has no batch
REFUSED = ["test_PoissonNLLLLoss_no_reduce"]


# --- models of PyTorch ----------------------------------------------------------------


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 5)
        self.norm.running_mean += torch.randn(4)
        self.norm.running_var += torch.rand(4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.conv(x))
        return self.head(x.mean((2, 3)))


class LanguageModel(torch.nn.Module):
    """One block of a GPT, whose output layer is tied to the embedding."""

    def __init__(self, vocabulary=11, time=4, width=8):
        super().__init__()
        self.tokens = torch.nn.Embedding(vocabulary, width)
        self.positions = torch.nn.Parameter(torch.randn(time, width))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(3))
        self.projection = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.feed = torch.nn.Sequential(
            torch.nn.Linear(width, 16), torch.nn.GELU(), torch.nn.Linear(16, width)
        )

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions
        batch, time, width = x.shape
        parts = self.projection(self.norms[0](x)).split(width, 2)
        heads = [p.view(batch, time, 2, width // 2).transpose(1, 2) for p in parts]
        y = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, time, width))
        x = x + self.feed(self.norms[1](x))
        return self.norms[2](x) @ self.tokens.weight.T


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 4, batch_first=True, bidirectional=True)
        self.gru = torch.nn.GRU(8, 5, batch_first=True)

    def forward(self, x):
        y, _ = self.gru(self.lstm(x)[0])
        return y[:, -1]


def exported(module, x, path, **options):
    """Export a module with a variable batch, by torch's newer exporter."""
    module.eval()
    batch = torch.export.Dim("batch", min=2)
    torch.onnx.export(
        module,
        (x,),
        str(path),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        optimize=options.pop("optimize", False),
        verbose=False,
        **options,
    )
    return str(path)


MODULES = {
    "residual": (Residual, torch.randn(3, 3, 8, 8)),
    "language model": (LanguageModel, torch.randint(0, 11, (3, 4))),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_outputs_are_those_of_onnxruntime_and_gradients_those_of_torch(name, tmp_path):
    torch.manual_seed(0)
    make, x = MODULES[name]
    module = make()
    # optimize=True merges batch norms into convolutions
    merge = name != "residual"
    path = exported(module, x, tmp_path / "model.onnx", optimize=merge)
    expect_like_torch(module, x, path)


@pytest.mark.filterwarnings("ignore")
def test_recurrent_models_of_the_older_exporter(tmp_path):
    torch.manual_seed(0)
    module = Recurrent().eval()
    x = torch.randn(3, 6, 3)
    path = str(tmp_path / "model.onnx")
    options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(module, (x,), path, dynamo=False, **options)
    expect_like_torch(module, x, path)


def expect_like_torch(module, x, path):
    model = from_onnx(path)
    host = x.numpy().astype(np.float32 if x.is_floating_point() else np.int32)
    params, state, _ = start(model, host.shape[1:], np.float32)
    session = onnxruntime.InferenceSession(path)
    feed = {session.get_inputs()[0].name: x.numpy()}
    (expected,) = session.run(None, feed)
    y = model.predict(params, state, host)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

    wide = tree_map(lambda a: a.astype(np.float64), params)
    double = host.astype(np.float64) if x.is_floating_point() else host
    wide_state = start(model, host.shape[1:])[1]
    y, _, cache = model.forward(wide, wide_state, double)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    dx, grads = model.backward(wide, cache, dy)
    module = module.double()
    t = x.double().requires_grad_() if x.is_floating_point() else x
    out = module(t)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-6, atol=1e-7)
    (out * torch.tensor(dy)).sum().backward()
    if x.is_floating_point():
        np.testing.assert_allclose(dx, t.grad.numpy(), rtol=1e-5, atol=1e-7)
    # the order of axes and gates differs, so the sorted numbers are compared
    ours = [np.sort(leaf, axis=None) for _, leaf in named_leaves(grads)]
    for name, parameter in module.named_parameters():
        if name == "gru.bias_hh_l0":
            continue  # two thirds of it are added to another bias
        expected = np.sort(parameter.grad.numpy(), axis=None)
        close = [
            leaf.size == expected.size and np.allclose(leaf, expected, 1e-5, 1e-7)
            for leaf in ours
        ]
        assert any(close), f"no gradient is that of {name}"


@pytest.mark.parametrize("name", ["numpy", "torch:cpu", "jax"])
def test_an_imported_model_trains_alike_on_every_backend(name, tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "conv.weight": generator.standard_normal((4, 2, 3)).astype(np.float32),
        "head.weight": generator.standard_normal((4, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], pads=[1, 1]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("ReduceMean", ["b"], ["c"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["c", "head.weight"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": ("n", 2, 5)}, {"y": ("n", 1)}, arrays, opset=13)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    model = from_onnx(path)
    x = generator.standard_normal((8, 2, 5)).astype(np.float32)
    target = x.sum((1, 2))[:, None]
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.05), backend=name, shape=(2, 5)
    )
    y = trainer.predict(x)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for _ in range(3):
        trainer.step(x, target)
    modules = [torch.nn.Conv1d(2, 4, 3, padding=1, bias=False)]
    modules.append(torch.nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        modules[0].weight.copy_(torch.tensor(arrays["conv.weight"]))
        modules[1].weight.copy_(torch.tensor(arrays["head.weight"].T))
    optimizer = torch.optim.SGD([m.weight for m in modules], lr=0.05)
    for _ in range(3):
        out = modules[1](torch.tanh(modules[0](torch.tensor(x))).mean(2))
        loss = torch.nn.functional.mse_loss(out, torch.tensor(target))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = modules[1](torch.tanh(modules[0](torch.tensor(x))).mean(2))
    after = out.detach().numpy()
    np.testing.assert_allclose(trainer.predict(x), after, rtol=1e-4, atol=1e-5)


def test_equal_arrays_that_an_exporter_merged_are_trained_separately():
    ones = np.ones(3, np.float32)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "one"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "one"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": ("n", 3)}, {"y": ("n", 3)}, {"one": ones})
    params, _, _ = start(from_onnx(proto), (3,))
    assert len(list(named_leaves(params))) == 2
    other = {"one": np.asarray([1.0, 2.0, 3.0], np.float32)}
    proto = graph_of(nodes, {"x": ("n", 3)}, {"y": ("n", 3)}, other)
    params, _, _ = start(from_onnx(proto), (3,))
    assert len(list(named_leaves(params))) == 1


def test_a_matrix_of_two_products_is_one_parameter():
    matrix = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "m"], ["a"], transB=1),
        helper.make_node("Gemm", ["a", "m"], ["y"], transB=1),
    ]
    proto = graph_of(nodes, {"x": ("n", 3)}, {"y": ("n", 3)}, {"m": matrix})
    model = from_onnx(proto)
    params, _, _ = start(model, (3,))
    assert [leaf.shape for _, leaf in named_leaves(params)] == [(3, 3)]
    nn.check(model, (3,), backends=["numpy"])


def test_a_batch_norm_moves_its_statistics_as_onnx_defines():
    """running = momentum · running + (1 - momentum) · current (BatchNormalization)"""
    arrays = {name: np.ones(2, np.float32) for name in ("s", "b", "v")}
    arrays["m"] = np.asarray([1.0, -1.0], np.float32)
    node = helper.make_node(
        "BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], momentum=0.75
    )
    shape = {"x": ("n", 2)}
    model = from_onnx(graph_of([node], shape, {"y": ("n", 2)}, arrays))
    params, state, _ = start(model, (2,))
    x = np.random.default_rng(0).standard_normal((5, 2))
    _, state, _ = model.forward(params, state, x, train=True)
    leaves = {name.rpartition(".")[2]: leaf for name, leaf in named_leaves(state)}
    expected = 0.75 * np.asarray([1.0, -1.0]) + 0.25 * x.mean(0)
    np.testing.assert_allclose(leaves["mean"], expected, rtol=1e-6)


def test_single_numbers_and_masks_are_constants_unless_named():
    arrays = {
        "scale": np.asarray([0.5], np.float32),
        "mask": np.asarray([0.0, -np.inf, 0.0], np.float32),
        "bias": np.asarray([1.0, 2.0, 3.0], np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["a"]),
        helper.make_node("Add", ["a", "mask"], ["b"]),
        helper.make_node("Add", ["b", "bias"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": ("n", 3)}, {"y": ("n", 3)}, arrays)

    def count(**options):
        return len(list(named_leaves(start(from_onnx(proto, **options), (3,))[0])))

    assert count() == 1
    assert count(parameters=["scale"]) == 2
    assert count(constants="bias") == 0
    with pytest.raises(ValueError, match=r"constants has \['biass'\], but"):
        from_onnx(proto, constants=["biass"])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_sequences_may_have_the_batch_second(direction):
    generator = np.random.default_rng(0)
    arrays = {
        "w": generator.standard_normal((1, 8, 3)).astype(np.float32)[:, :4],
        "r": generator.standard_normal((1, 4, 4)).astype(np.float32),
    }
    node = helper.make_node(
        "RNN", ["x", "w", "r"], ["y", "h"], hidden_size=4, direction=direction
    )
    shapes = {"x": (5, "n", 3)}, {"h": (1, "n", 4)}
    proto = graph_of([node], *shapes, arrays)
    with pytest.raises(ValueError, match="batch"):
        from_onnx(proto, shapes=(2, 3))
    model = from_onnx(proto, batch_axes=1)
    x = generator.standard_normal((2, 5, 3)).astype(np.float32)
    params, state, out = start(model, (5, 3), np.float32)
    assert out == (1, 4)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (expected,) = session.run(None, {"x": x.transpose(1, 0, 2)})
    y = model.predict(params, state, x)
    np.testing.assert_allclose(y, expected.transpose(1, 0, 2), atol=1e-5)


# --- operators that the package onnx has no test of -----------------------------------

WEIGHT = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
MATRIX = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
SINGLE = {
    "old softmax": one_node("Softmax", {"x": ("n", 3, 4)}, opset=11, axis=1),
    "constant left": one_node("MatMul", {"x": ("n", 4, 3)}, opset=13),
    "same lower": one_node(
        "Conv", {"x": ("n", 2, 6)}, {"w": WEIGHT}, auto_pad="SAME_LOWER", strides=[2]
    ),
    "nearest": one_node(
        "Resize",
        {"x": ("n", 2, 4)},
        {"roi": np.zeros(0, np.float32), "s": np.asarray([1, 1, 3], np.float32)},
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "group": one_node(
        "GroupNormalization",
        {"x": ("n", 4, 3)},
        {"s": MATRIX[0], "b": MATRIX[1]},
        opset=21,
        num_groups=2,
    ),
    "ceil": one_node(
        "AveragePool", {"x": ("n", 2, 7)}, kernel_shape=[3], strides=[2], ceil_mode=1
    ),
    "padding not counted": one_node(
        "AveragePool", {"x": ("n", 2, 7)}, kernel_shape=[3], pads=[1, 2]
    ),
    "padding counted": one_node(
        "AveragePool",
        {"x": ("n", 2, 7)},
        kernel_shape=[3],
        pads=[1, 2],
        count_include_pad=1,
    ),
    "scaled product": one_node(
        "Gemm", {"x": ("n", 4)}, {"m": MATRIX, "c": MATRIX[:, 0]}, transB=1, alpha=0.5
    ),
    "scaled bias": one_node(
        "Gemm", {"x": ("n", 4)}, {"m": MATRIX, "c": MATRIX[:, 0]}, transB=1, beta=0.5
    ),
    **{
        f"transposed, {mode}": one_node(
            "ConvTranspose",
            {"x": ("n", 4, 5)},
            {"w": WEIGHT},
            auto_pad=mode,
            strides=[2],
        )
        for mode in ("SAME_UPPER", "SAME_LOWER")
    },
    # the batch is the second axis of the factors
    "products by another axis": graph_of(
        [
            helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0, 2, 3]),
            helper.make_node("Transpose", ["x"], ["b"], perm=[1, 0, 3, 2]),
            helper.make_node("MatMul", ["a", "b"], ["c"]),
            helper.make_node("ReduceSum", ["c", "axes"], ["y"], keepdims=0),
        ],
        {"x": ("n", 2, 3, 4)},
        {"y": ("n", 3, 3)},
        {"axes": np.asarray([0])},
    ),
}
SINGLE["constant left"].graph.node[0].input[:] = ["m", "x"]
SINGLE["constant left"].graph.initializer.append(numpy_helper.from_array(MATRIX, "m"))


@pytest.mark.parametrize("name", SINGLE)
def test_outputs_are_those_of_onnxruntime(name):
    proto = SINGLE[name]
    proto.ir_version = 10
    model = from_onnx(proto)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(2).standard_normal((2, *shape[1:])).astype(np.float32)
    params, state, _ = start(model, x.shape[1:], np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    np.testing.assert_allclose(model.predict(params, state, x), expected, atol=1e-5)


def test_bfloat16_and_float16_weights_are_converted():
    for kind in (TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE):
        proto = one_node("MatMul", {"x": ("n", 2)}, out=("n", 2))
        proto.graph.node[0].input.append("w")
        numbers = [1.0, 0.5, -2.0, 4.0]
        tensor = helper.make_tensor("w", kind, (2, 2), numbers)
        proto.graph.initializer.append(tensor)
        params, state, _ = start(from_onnx(proto), (2,), np.float32)
        y = from_onnx(proto).predict(params, state, np.ones((1, 2), np.float32))
        np.testing.assert_array_equal(y, [[-1.0, 4.5]])


def test_external_data_are_read(tmp_path):
    proto = one_node("MatMul", {"x": ("n", 40)}, out=("n", 40))
    proto.graph.node[0].input.append("w")
    weight = np.eye(40, dtype=np.float32) * 3
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    path = tmp_path / "model.onnx"
    options = {"all_tensors_to_one_file": True, "location": "weights"}
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, **options)
    model = from_onnx(path)
    params, state, _ = start(model, (40,), np.float32)
    x = np.ones((1, 40), np.float32)
    np.testing.assert_array_equal(model.predict(params, state, x), 3 * x)
    (tmp_path / "weights").unlink()
    with pytest.raises(ValueError, match=r"model\.onnx cannot be read"):
        from_onnx(path)


# --- errors ---------------------------------------------------------------------------


def test_one_error_names_every_node_that_cannot_be_converted():
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"),
        helper.make_node("Cast", ["a"], ["b"], name="after", to=TensorProto.FLOAT),
        helper.make_node("Fancy", ["x"], ["c"], name="second", domain="my.own"),
        helper.make_node("ReduceSum", ["x"], ["d"], name="third"),
    ]
    proto = graph_of(nodes, {"x": ("n", 3)}, {"d": ()})
    with pytest.raises(ValueError, match="cannot convert 3 nodes") as caught:
        from_onnx(proto)
    text = str(caught.value)
    assert "first (NonZero): this operator has no counterpart here" in text
    assert "second (my.own.Fancy): this operator has no counterpart here" in text
    assert "third (ReduceSum): it reduces the batch" in text
    assert "after" not in text  # it only depends on one that is refused


def test_files_that_do_not_exist_or_are_not_onnx(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no ONNX file .*no\.onnx"):
        from_onnx(tmp_path / "no.onnx")
    path = tmp_path / "text.onnx"
    path.write_text("this is not a model")
    with pytest.raises(ValueError, match=r"text\.onnx is not an ONNX file"):
        from_onnx(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="or its graph has no nodes"):
        from_onnx(path)
    with pytest.raises(TypeError, match="takes the path of a file, a ModelProto"):
        from_onnx(3)


def test_lengths_that_the_file_leaves_open_have_to_be_passed():
    proto = one_node("Relu", {"x": ("n", "time", 3)}, out=("n", "time", 3))
    with pytest.raises(ValueError, match="where time may vary: pass the lengths"):
        from_onnx(proto)
    assert start(from_onnx(proto, shapes=(5, 3)), (5, 3))[2] == (5, 3)
    with pytest.raises(ValueError, match=r"which \(5, 4\) without the batch"):
        from_onnx(proto, shapes=(5, 4))
    with pytest.raises(ValueError, match=r"shapes has \['y'\], but the inputs"):
        from_onnx(proto, shapes={"y": (5, 3)})


def test_a_fixed_batch_is_any_batch():
    arrays = {"shape": np.asarray([2, 12], np.int64)}
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    proto = graph_of([node], {"x": (2, 3, 4)}, {"y": (2, 12)}, arrays)
    model = from_onnx(proto)
    params, state, _ = start(model, (3, 4))
    x = np.arange(60.0).reshape(5, 3, 4)
    y = model.predict(params, state, x)
    np.testing.assert_array_equal(y, x.reshape(5, 12))


def test_the_command_line_loads_a_file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(one_node("Relu", {"x": ("n", 3)}, out=("n", 3)), path)
    assert isinstance(load_layer(str(path)), nn.Layer)
    with pytest.raises(CannotLoad, match="there is no ONNX file"):
        load_layer(str(tmp_path / "other.onnx"))


def test_the_guide_lists_the_operators():
    page = Path(__file__).parents[2] / "docs" / "guides" / "bring_a_model.md"
    text = page.read_text(encoding="utf-8")
    section = text.partition("### Operators of ONNX")[2].partition("\n#")[0]
    listed = [word.strip(" `\n") for word in section.split("`")[1::2]]
    assert listed == onnx_operators()
