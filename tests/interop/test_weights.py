"""Weights of whole models of PyTorch, Keras, Hugging Face and ONNX, in and out."""

import json
import os

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import interop
from agnostic_nn.core.trees import leaves, named_leaves
from agnostic_nn.interop.weight_files import wide
from agnostic_nn.training.safetensors_format import entry_of, header, plain

os.environ.setdefault("KERAS_BACKEND", "torch")
torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
T = torch.nn

# Keras on PyTorch, when it saves
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

IMAGES = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype("float32")


def trainer_of(model, shape, backend="numpy", **options):
    optimizer = nn.Adam(1e-2)
    return nn.Trainer(
        model, nn.mean_squared_error, optimizer, backend=backend, shape=shape, **options
    )


def snapshot(trainer):
    trees = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    return [np.array(leaf) for leaf in leaves(trees)]


def assert_unchanged(trainer, before):
    for old, new in zip(before, snapshot(trainer), strict=True):
        np.testing.assert_array_equal(old, new)


def cnn():
    return nn.Sequential(
        nn.Conv2D(4, 3),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Dense(5),
        nn.ReLU(),
        nn.Dense(2),
    )


class TorchCNN(T.Module):
    def __init__(self):
        super().__init__()
        self.conv = T.Conv2d(3, 4, 3)
        self.norm = T.BatchNorm2d(4)
        self.hidden = T.Linear(36, 5)
        self.out = T.Linear(5, 2)

    def forward(self, x):
        x = T.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.out(torch.relu(self.hidden(x.flatten(1))))


def randomized(module):
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            offset = 0.5 if "var" in name else -0.5
            tensor.copy_(torch.rand_like(tensor) + offset)
    return module.eval()


def of_torch(module, x=IMAGES):
    with torch.no_grad():
        return module(torch.as_tensor(x).permute(0, 3, 1, 2)).numpy()


def write_safetensors(path, arrays, metadata=None):
    entries = {name: entry_of(name, array) for name, array in arrays.items()}
    first, order = header(entries, metadata or {"format": "pt"})
    body = b"".join(plain(arrays[name], entries[name]).tobytes() for name in order)
    path.write_bytes(first + body)


# --- PyTorch --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch:cpu", "jax"])
def test_a_cnn_of_pytorch_predicts_the_same_on_each_backend(backend):
    module = randomized(TorchCNN())
    trainer = trainer_of(cnn(), (8, 8, 3), backend)
    loaded = interop.load_weights(trainer, module.state_dict())
    np.testing.assert_allclose(
        trainer.predict(IMAGES), of_torch(module), rtol=1e-4, atol=1e-5
    )
    assert loaded.permuted == ("6",)
    assert "conv" in str(loaded)
    assert "Linear" in str(loaded)


def test_a_file_of_pytorch_is_loaded_written_and_loaded_there(tmp_path):
    module = randomized(TorchCNN())
    torch.save(module.state_dict(), tmp_path / "cnn.pt")
    trainer = trainer_of(cnn(), (8, 8, 3))
    interop.load_weights(trainer, tmp_path / "cnn.pt")
    trainer.fit(IMAGES, np.ones((3, 2), "float32"), epochs=1, batch_size=3)
    interop.export_weights(trainer, tmp_path / "back.pth", like=tmp_path / "cnn.pt")
    back = TorchCNN().eval()
    back.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True))
    np.testing.assert_allclose(
        of_torch(back), trainer.predict(IMAGES), rtol=1e-4, atol=1e-5
    )
    # the same into a module, and under our own paths
    direct = TorchCNN().eval()
    interop.export_weights(trainer, direct)
    np.testing.assert_array_equal(of_torch(direct), of_torch(back))
    names = interop.export_weights(trainer, None)
    assert [*names][:2] == ["0.weight", "0.bias"]
    names = interop.export_weights(trainer, None, {"0": "first.conv"})
    assert [*names][:2] == ["first.conv.weight", "first.conv.bias"]


def test_identical_arrays_come_back_from_a_round_trip():
    module = randomized(TorchCNN())
    trainer = trainer_of(cnn(), (8, 8, 3))
    interop.load_weights(trainer, module.state_dict())
    back = interop.export_weights(trainer, None, like=module)
    assert back.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor.numpy(), err_msg=name)


def test_a_decoder_that_reshapes_to_an_image_is_permuted():
    module = randomized(
        T.Sequential(
            T.Linear(3, 18),
            T.ReLU(),
            T.Unflatten(1, (2, 3, 3)),
            T.ConvTranspose2d(2, 3, 2),
        )
    )
    model = nn.Sequential(
        nn.Dense(18), nn.ReLU(), nn.Reshape((3, 3, 2)), nn.ConvTranspose2D(3, 2)
    )
    trainer = trainer_of(model, (3,))
    interop.load_weights(trainer, module)
    x = IMAGES[:, 0, 0, :]
    with torch.no_grad():
        theirs = module(torch.as_tensor(x)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(trainer.predict(x), theirs, rtol=1e-4, atol=1e-5)
    back = interop.export_weights(trainer, None, like=module)
    np.testing.assert_array_equal(back["0.weight"], module[0].weight.detach().numpy())


def test_features_next_to_flattened_ones_keep_their_place():
    model = nn.Graph(
        image=(nn.Conv2D(2, 3), "photo"),
        flat=(nn.Flatten(), "image"),
        both=(nn.Concatenate(), "flat", "numbers"),
        y=(nn.Dense(2), "both"),
    )
    conv, linear = randomized(T.Conv2d(3, 2, 3)), randomized(T.Linear(74, 2))
    tensors = {f"conv.{k}": v for k, v in conv.state_dict().items()}
    tensors |= {f"linear.{k}": v for k, v in linear.state_dict().items()}
    trainer = trainer_of(model, {"photo": (8, 8, 3), "numbers": (2,)})
    interop.load_weights(trainer, tensors)
    numbers = np.ones((3, 2), "float32")
    with torch.no_grad():
        photo = torch.as_tensor(IMAGES).permute(0, 3, 1, 2)
        flat = torch.cat([conv(photo).flatten(1), torch.as_tensor(numbers)], 1)
        theirs = linear(flat).numpy()
    ours = trainer.predict({"photo": IMAGES, "numbers": numbers})
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_ambiguous_order_of_flattened_features_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Dense(2))
    tensors = T.Linear(12, 2).state_dict()
    trainer = trainer_of(model, (4, 3))
    before = snapshot(trainer)
    with pytest.raises(ValueError, match=r"flattens \(4, 3\), a signal or a sequence"):
        interop.load_weights(trainer, tensors)
    assert_unchanged(trainer, before)
    x = np.arange(12, dtype="float32").reshape(1, 4, 3)
    weight, bias = (t.numpy() for t in tensors.values())
    interop.load_weights(trainer, tensors, permute=False)
    same = x.reshape(1, -1) @ weight.T + bias
    np.testing.assert_allclose(trainer.predict(x), same, rtol=1e-5)
    interop.load_weights(trainer, tensors, permute=True)
    moved = x.swapaxes(1, 2).reshape(1, -1) @ weight.T + bias
    np.testing.assert_allclose(trainer.predict(x), moved, rtol=1e-5)


def test_weights_go_through_blocks_that_store_them_otherwise():
    model = nn.Sequential(
        nn.Freeze(nn.Dense(4)),
        nn.WeightNorm(nn.Dense(3)),
        nn.LoRA(nn.Dense(3), 2),
        nn.Residual(nn.Dense(3), nn.Tanh()),
    )
    module = randomized(
        T.Sequential(T.Linear(2, 4), T.Linear(4, 3), T.Linear(3, 3), T.Linear(3, 3))
    )
    trainer = trainer_of(model, (2,))
    interop.load_weights(trainer, module)
    x = IMAGES[:, 0, 0, :2]
    with torch.no_grad():
        h = module[:3](torch.as_tensor(x))
        theirs = (h + torch.tanh(module[3](h))).numpy()
    np.testing.assert_allclose(trainer.predict(x), theirs, rtol=1e-4, atol=1e-5)


def test_levels_of_a_recurrent_layer_may_be_one_module_or_several():
    x = IMAGES[:, 0]
    for module in (
        T.LSTM(3, 4, 2, batch_first=True),
        T.ModuleList([T.LSTM(3, 4, batch_first=True), T.LSTM(4, 4, batch_first=True)]),
    ):
        randomized(module)
        trainer = trainer_of(nn.LSTM(4, depth=2), (8, 3))
        interop.load_weights(trainer, module)
        with torch.no_grad():
            y = torch.as_tensor(x)
            for level in module if isinstance(module, T.ModuleList) else [module]:
                y, _ = level(y)
        np.testing.assert_allclose(trainer.predict(x), y.numpy(), rtol=1e-4, atol=1e-5)


# --- Hugging Face ---------------------------------------------------------------------


class BertLayer(T.Module):
    """A layer with the names of Hugging Face's BERT."""

    def __init__(self, width, hidden):
        super().__init__()
        norm = {"eps": 1e-12}
        self.attention = T.ModuleDict(
            {
                "self": T.ModuleDict(
                    {n: T.Linear(width, width) for n in ("query", "key", "value")}
                ),
                "output": T.ModuleDict(
                    {
                        "dense": T.Linear(width, width),
                        "LayerNorm": T.LayerNorm(width, **norm),
                    }
                ),
            }
        )
        self.intermediate = T.ModuleDict({"dense": T.Linear(width, hidden)})
        self.output = T.ModuleDict(
            {"dense": T.Linear(hidden, width), "LayerNorm": T.LayerNorm(width, **norm)}
        )

    def forward(self, x, mask):
        inner, out = self.attention["self"], self.attention["output"]
        heads = [inner[n](x).unflatten(-1, (2, -1)).transpose(1, 2) for n in inner]
        allowed = mask[:, None, None, :]
        y = T.functional.scaled_dot_product_attention(*heads, attn_mask=allowed)
        x = out["LayerNorm"](x + out["dense"](y.transpose(1, 2).flatten(2)))
        y = self.output["dense"](T.functional.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](x + y)


class Bert(T.Module):
    """A sentence encoder with the names of sentence-transformers' MiniLM."""

    def __init__(self, vocabulary=11, width=6, hidden=8, depth=3):
        super().__init__()
        names = {
            "word_embeddings": T.Embedding(vocabulary, width),
            "position_embeddings": T.Embedding(5, width),
            "token_type_embeddings": T.Embedding(2, width),
            "LayerNorm": T.LayerNorm(width, eps=1e-12),
        }
        self.embeddings = T.ModuleDict(names)
        self.embeddings.register_buffer("position_ids", torch.arange(5)[None])
        layers = T.ModuleList([BertLayer(width, hidden) for _ in range(depth)])
        self.encoder = T.ModuleDict({"layer": layers})
        self.pooler = T.ModuleDict({"dense": T.Linear(width, width)})

    def forward(self, ids, types, mask):
        tables = self.embeddings
        x = tables["word_embeddings"](ids) + tables["token_type_embeddings"](types)
        x = x + tables["position_embeddings"].weight[: ids.shape[1]]
        x = tables["LayerNorm"](x)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        shares = mask[..., None].float()
        y = (x * shares).sum(1) / shares.sum(1)
        return T.functional.normalize(y)


def sentence_encoder(vocabulary=11, width=6, hidden=8, depth=3):
    norm = nn.LayerNorm(epsilon=1e-12)
    attention = nn.MultiHeadAttention(2)
    block = nn.TransformerBlock(attention, hidden, norm=norm, pre_norm=False)
    return nn.Graph(
        words=(nn.Embedding(vocabulary, width), "ids"),
        types=(nn.Embedding(2, width), "token_types"),
        sum=(nn.Add(), "words", "types"),
        positions=(nn.PositionEmbedding(5), "sum"),
        norm=(norm, "positions"),
        encoder=(nn.Repeat(block, depth), {"x": "norm", "mask": "mask"}),
        mean=(nn.MaskedAveragePool(), {"x": "encoder", "mask": "mask"}),
        unit=(nn.UnitNorm(), "mean"),
    )


MINILM = {
    "words": "embeddings.word_embeddings",
    "types": "embeddings.token_type_embeddings",
    "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
    "encoder.*": "encoder.layer.*",
}
SENTENCES = {
    "ids": np.array([[1, 4, 7, 2, 0], [3, 9, 10, 5, 8]]),
    "token_types": np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]),
    "mask": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=bool),
}
LENGTHS = dict.fromkeys(SENTENCES, (5,))


@pytest.fixture
def bert():
    return randomized(Bert())


def arrays_of(module, dtype=None):
    arrays = {name: t.numpy().copy() for name, t in module.state_dict().items()}
    return {
        name: a.astype(dtype) if dtype and a.dtype.kind == "f" else a
        for name, a in arrays.items()
    }


def assert_same_sentences(trainer, bert, rtol=1e-4):
    arguments = (torch.as_tensor(a) for a in SENTENCES.values())
    with torch.no_grad():
        theirs = bert(*arguments).numpy()
    ours = trainer.predict(SENTENCES)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol / 10)


def test_a_bert_of_hugging_face_is_loaded_by_a_mapping_of_five_lines(bert, tmp_path):
    write_safetensors(tmp_path / "model.safetensors", arrays_of(bert))
    trainer = trainer_of(sentence_encoder(), LENGTHS)
    loaded = interop.load_weights(trainer, tmp_path, MINILM, ignore=["pooler.*"])
    assert_same_sentences(trainer, bert)
    assert loaded.rows[4][:4] == (
        "encoder.0",
        "TransformerBlock",
        "encoder.layer.0",
        "block of BERT",
    )
    out = tmp_path / "out.safetensors"
    interop.export_weights(trainer, out, MINILM, like=tmp_path, ignore=["pooler.*"])
    for name, array in arrays_of(bert).items():
        source = interop.weight_files.open_source(out)
        np.testing.assert_array_equal(source.array(name), array, err_msg=name)


def test_a_bert_is_matched_by_structure_if_only_one_assignment_is_possible(
    bert, tmp_path
):
    write_safetensors(tmp_path / "model.safetensors", arrays_of(bert))
    trainer = trainer_of(sentence_encoder(), LENGTHS)
    path = tmp_path / "model.safetensors"
    loaded = interop.load_weights(trainer, path, ignore=["pooler.*"])
    assert_same_sentences(trainer, bert)
    prefixes = {path: prefix for path, _, prefix, *_ in loaded.rows}
    assert prefixes["encoder.2"] == "encoder.layer.2"


def test_sublayers_functions_and_single_arrays_are_mapped_too(bert):
    trainer = trainer_of(sentence_encoder(), LENGTHS)
    parts = {
        "encoder.*.attention": "encoder.layer.*.attention",
        "encoder.*.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
        "encoder.*.feed.0": "encoder.layer.*.intermediate.dense",
        "encoder.*.feed.2": "encoder.layer.*.output.dense",
        "encoder.*.feed_norm": "encoder.layer.*.output.LayerNorm",
        "words.weight": "embeddings.word_embeddings.weight",
    }
    mapping = {k: v for k, v in MINILM.items() if k not in ("words", "encoder.*")}
    interop.load_weights(
        trainer, bert.state_dict(), mapping | parts, ignore=["pooler.*"]
    )
    assert_same_sentences(trainer, bert)

    def by_function(path):
        number = path.partition("encoder.")[2]
        return MINILM.get(path, f"encoder.layer.{number}" if number else None)

    other = trainer_of(sentence_encoder(), LENGTHS)
    interop.load_weights(other, bert.state_dict(), by_function, ignore=["pooler.*"])
    assert_same_sentences(other, bert)


def test_sharded_files_and_bfloat16_are_read(bert, tmp_path):
    arrays = arrays_of(bert)
    narrow = {
        name: array.view("uint32") >> 16 if array.dtype == "float32" else array
        for name, array in arrays.items()
    }
    files = {"a-1.safetensors": {}, "a-2.safetensors": {}}
    for i, (name, array) in enumerate(narrow.items()):
        is_bits = array.dtype == "uint32"
        [*files.values()][i % 2][name] = array.astype("uint16") if is_bits else array
    for file, part in files.items():
        write_safetensors(tmp_path / file, part)
        content = (tmp_path / file).read_bytes()
        content = content.replace(b'"U16","shape"', b'"BF16","shape"')
        # the longer dtype takes more bytes of the padded header
        length = int.from_bytes(content[:8], "little")
        grown = content.count(b'"BF16"')
        first = (length + grown).to_bytes(8, "little")
        (tmp_path / file).write_bytes(first + content[8:])
    weight_map = {name: file for file, part in files.items() for name in part}
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index)

    trainer = trainer_of(sentence_encoder(), LENGTHS)
    interop.load_weights(trainer, tmp_path, MINILM, ignore=["pooler.*"])
    words = trainer.params["words"]["weight"]
    bits = narrow["embeddings.word_embeddings.weight"].astype("uint16")
    np.testing.assert_array_equal(words, wide(bits))
    np.testing.assert_allclose(
        words, arrays["embeddings.word_embeddings.weight"], rtol=2**-7
    )


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes_are_converted(bert, dtype):
    trainer = trainer_of(sentence_encoder(), LENGTHS)
    arrays = arrays_of(bert, dtype)
    interop.load_weights(trainer, arrays, MINILM, ignore=["pooler.*"])
    assert trainer.params["words"]["weight"].dtype == np.float32
    assert_same_sentences(trainer, bert, rtol=1e-2 if dtype == "float16" else 1e-4)


def test_tensors_of_bfloat16_are_converted(bert):
    trainer = trainer_of(sentence_encoder(), LENGTHS)
    narrow = {
        name: t.bfloat16() if t.is_floating_point() else t
        for name, t in bert.state_dict().items()
    }
    interop.load_weights(trainer, narrow, MINILM, ignore=["pooler.*"])
    words = narrow["embeddings.word_embeddings.weight"].float().numpy()
    np.testing.assert_array_equal(trainer.params["words"]["weight"], words)


def test_weights_are_read_without_a_trainer(bert):
    model = sentence_encoder()
    params, state = interop.read_weights(
        model, LENGTHS, bert.state_dict(), MINILM, dtype="float64", ignore=["pooler.*"]
    )
    words = bert.embeddings["word_embeddings"].weight.detach().numpy()
    np.testing.assert_array_equal(params["words"]["weight"], words)
    assert params["words"]["weight"].dtype == np.float64
    assert model.predict(params, state, SENTENCES).shape == (2, 6)


# --- Keras ----------------------------------------------------------------------------


def keras_sequential():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(5, activation="relu"),
            layers.Dense(2),
        ]
    )


def keras_functional():
    layers = keras.layers
    x = keras.Input((8, 3))
    h = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(x)
    h = layers.LayerNormalization(name="norm")(h)
    h = h + layers.MultiHeadAttention(2, 4, dropout=0.1, name="attend")(h, h)
    h = layers.GRU(5, name="last")(h)
    return keras.Model(x, layers.Dense(2, name="a_head")(h))


def functional_here():
    return nn.Sequential(
        nn.LSTM(4, bidirectional=True),
        nn.LayerNorm(epsilon=1e-3),
        nn.Residual(nn.MultiHeadAttention(2, head_width=4)),
        nn.GRU(5, sequence=False),
        nn.Dense(2),
    )


def keras_cnn():
    model = cnn()
    return nn.Sequential(
        *(
            nn.BatchNorm(epsilon=1e-3) if isinstance(m, nn.BatchNorm) else m
            for m in model.layers
        )
    )


KERAS_MODELS = {
    "sequential": (keras_sequential, keras_cnn, IMAGES),
    "functional": (keras_functional, functional_here, IMAGES[:, 0]),
}


def random_keras(make):
    generator = np.random.default_rng(3)
    model = make()
    for variable in model.weights:
        if "seed" not in variable.path:
            variable.assign(generator.random(variable.shape) * 0.5 + 0.1)
    return model


@pytest.mark.parametrize("kind", KERAS_MODELS)
def test_models_of_keras_are_loaded_from_files_and_filled(kind, tmp_path):
    make, here, x = KERAS_MODELS[kind]
    theirs = random_keras(make)
    expected = theirs.predict(x, verbose=0)
    theirs.save(tmp_path / "model.keras")
    theirs.save_weights(tmp_path / "model.weights.h5")
    for source in (tmp_path / "model.keras", tmp_path / "model.weights.h5", theirs):
        trainer = trainer_of(here(), x.shape[1:])
        interop.load_weights(trainer, source)
        np.testing.assert_allclose(
            trainer.predict(x), expected, rtol=1e-4, atol=1e-5, err_msg=str(source)
        )
    other = make()
    interop.export_weights(trainer, other)
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, rtol=1e-5)
    other.save_weights(tmp_path / "back.weights.h5")
    interop.load_weights(trainer, tmp_path / "back.weights.h5")


def test_layers_of_equal_shapes_in_a_file_without_an_order_need_a_mapping(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(3, name="b"), layers.Dense(3, name="a")]
    )
    model.save_weights(tmp_path / "two.weights.h5")
    trainer = trainer_of(nn.Sequential(nn.Dense(3), nn.Dense(3)), (3,))
    with pytest.raises(ValueError, match="structures do not tell"):
        interop.load_weights(trainer, tmp_path / "two.weights.h5")
    mapping = {"0": "b", "1": "a"}
    interop.load_weights(trainer, tmp_path / "two.weights.h5", mapping)
    kernel = model.get_layer("b").kernel.value.detach().numpy()
    np.testing.assert_array_equal(trainer.params[0]["weight"], kernel)


# --- ONNX -----------------------------------------------------------------------------


def test_initializers_of_onnx_are_loaded_and_written(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    module = randomized(TorchCNN())
    path = tmp_path / "cnn.onnx"
    onnx.save(onnx_cnn(onnx, arrays_of(module)), path)

    def run(path):
        session = runtime.InferenceSession(str(path))
        (y,) = session.run(None, {"x": np.moveaxis(IMAGES, -1, 1).copy()})
        return y

    np.testing.assert_allclose(run(path), of_torch(module), rtol=1e-4, atol=1e-5)
    trainer = trainer_of(cnn(), (8, 8, 3))
    interop.load_weights(trainer, path)
    np.testing.assert_allclose(trainer.predict(IMAGES), run(path), rtol=1e-4, atol=1e-5)
    trainer.fit(IMAGES, np.ones((3, 2), "float32"), epochs=1, batch_size=3)
    interop.export_weights(trainer, tmp_path / "back.onnx", like=path)
    np.testing.assert_allclose(
        run(tmp_path / "back.onnx"), trainer.predict(IMAGES), rtol=1e-4, atol=1e-5
    )


def onnx_cnn(onnx, arrays):
    """Return the ONNX model of TorchCNN; its last layer is a MatMul and an Add."""
    make = onnx.helper.make_node
    arrays = {n: a for n, a in arrays.items() if a.ndim}
    arrays["out.weight"] = arrays["out.weight"].T.copy()
    norm = [f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
    nodes = [
        make("Conv", ["x", "conv.weight", "conv.bias"], ["1"]),
        make("BatchNormalization", ["1", *norm], ["2"]),
        make("Relu", ["2"], ["3"]),
        make("MaxPool", ["3"], ["4"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Flatten", ["4"], ["5"]),
        make("Gemm", ["5", "hidden.weight", "hidden.bias"], ["6"], transB=1),
        make("Relu", ["6"], ["7"]),
        make("MatMul", ["7", "out.weight"], ["8"]),
        make("Add", ["out.bias", "8"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "cnn",
        [info("x", 1, ["n", 3, 8, 8])],
        [info("y", 1, ["n", 2])],
        [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


# --- partial loading and moments ------------------------------------------------------


def test_another_head_is_left_as_it_is_with_strict_false():
    module = randomized(TorchCNN())
    model = nn.Sequential(*cnn().layers[:-1], nn.Dense(7))
    trainer = trainer_of(model, (8, 8, 3))
    head = np.array(trainer.params[8]["weight"])
    with pytest.raises(ValueError, match=r"after 6 = hidden(.|\n)*8: Dense"):
        interop.load_weights(trainer, module)
    loaded = interop.load_weights(trainer, module, strict=False)
    np.testing.assert_array_equal(trainer.params[8]["weight"], head)
    assert loaded.unfilled == ("8.bias (7,)", "8.weight (5, 7)")
    assert loaded.leftover == ("out.weight", "out.bias")
    assert "not loaded: 8.bias (7,)" in str(loaded)


def test_moments_begin_again_unless_they_are_kept():
    trainer = trainer_of(nn.Dense(2), (3,))
    x = IMAGES[:, 0, 0]
    trainer.fit(x, np.ones((3, 2), "float32"), epochs=2)
    moments = [np.array(leaf) for leaf in leaves(trainer.moments)]
    tensors = T.Linear(3, 2).state_dict()
    interop.load_weights(trainer, tensors, keep_moments=True)
    for old, new in zip(moments, leaves(trainer.moments), strict=True):
        np.testing.assert_array_equal(old, new)
    interop.load_weights(trainer, tensors)
    fresh = trainer_of(nn.Dense(2), (3,))
    for (name, old), new in zip(
        named_leaves(fresh.moments), leaves(trainer.moments), strict=True
    ):
        np.testing.assert_array_equal(old, new, err_msg=name)


# --- what is refused ------------------------------------------------------------------


def without(tensors, name):
    return {n: t for n, t in tensors.items() if n != name}


BASE = randomized(TorchCNN()).state_dict()
NAMES = {"0": "conv", "1": "norm", "6": "hidden", "8": "out"}
REFUSED = {
    "missing": (without(BASE, "out.bias"), NAMES, "weight and bias, but out"),
    "missing without a mapping": (without(BASE, "out.bias"), None, "8: Dense: bias"),
    "extra": (BASE | {"more.weight": torch.ones(2, 2)}, NAMES, r"takes more.weight"),
    "shape": (
        BASE | {"out.weight": torch.ones(3, 5)},
        NAMES,
        r"8.weight \(5, 2\) of Dense does not fit out.weight \(3, 5\)",
    ),
    "nested": ({"model": BASE, "epoch": 3}, NAMES, r"pass source\['model'\]"),
    "no such layer": (BASE, NAMES | {"9": "out"}, "'9', which is no layer"),
    "no such module": (BASE, NAMES | {"8": "outt"}, "'outt', .*do you mean out?"),
    "no such array": (BASE, NAMES | {"8.bias": "b"}, "'b' for the array 8.bias"),
    "twice": (BASE, NAMES | {"8.bias": "out.bias"}, "fills 8.bias twice"),
    "two patterns": (BASE, {"*": "conv"} | NAMES, "names '1' twice: as '\\*'"),
    "too many *": (BASE, NAMES | {"8": "out.*"}, r"more \* on the right"),
    "other type": (BASE, NAMES | {"1": "conv"}, "BatchNorm: PyTorch stores it as"),
    "integers": (
        BASE | {"out.weight": torch.ones(2, 5, dtype=torch.int8)},
        NAMES,
        "8: Dense, but out.weight of the state dict is int8",
    ),
    "empty": (BASE, {}, "gives nothing for 0.bias"),
    "mapping is a list": (BASE, ["conv"], "expected a dict of our paths"),
    "mapping of numbers": (BASE, {"0": 1}, "expected names in the mapping"),
    "function of numbers": (BASE, lambda path: 3, "expected a name or None"),
    "no tensors": ({"a": "b"}, None, "expected arrays by name"),
    "other object": (3, None, "expected a path, a state dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_source_or_mapping_is_refused_and_the_trainer_is_unchanged(name):
    source, mapping, message = REFUSED[name]
    trainer = trainer_of(cnn(), (8, 8, 3))
    before = snapshot(trainer)
    with pytest.raises((ValueError, TypeError), match=message):
        interop.load_weights(trainer, source, mapping)
    assert_unchanged(trainer, before)


def test_a_pattern_to_ignore_that_matches_nothing_is_refused():
    trainer = trainer_of(cnn(), (8, 8, 3))
    with pytest.raises(ValueError, match=r"'pool\*', which matches no array"):
        interop.load_weights(trainer, BASE, NAMES, ignore=["pool*"])
    with pytest.raises(TypeError, match="expected a list of patterns"):
        interop.load_weights(trainer, BASE, NAMES, ignore="pool*")


def test_a_trainer_without_weights_is_refused():
    trainer = nn.Trainer(
        nn.Dense(2), nn.mean_squared_error, nn.SGD(0.1), backend="numpy"
    )
    with pytest.raises(RuntimeError, match="no weights yet"):
        interop.load_weights(trainer, T.Linear(3, 2))


FORMATS = ["pt", "safetensors", "keras", "weights.h5", "onnx"]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("content", ["truncated", "another format", "empty"])
def test_damaged_files_are_named(ending, content, tmp_path):
    if ending == "onnx":
        pytest.importorskip("onnx")
    path = tmp_path / f"model.{ending}"
    whole = tmp_path / "whole.pt"
    torch.save(BASE, whole)
    data = whole.read_bytes()
    if ending == "safetensors":
        write_safetensors(path, {n: t.numpy() for n, t in BASE.items()})
        data = path.read_bytes()
    elif ending in ("keras", "weights.h5"):
        model = keras_sequential()
        save = model.save if ending == "keras" else model.save_weights
        save(path)
        data = path.read_bytes()
    wrong = {
        "truncated": data[: len(data) // 2],
        "another format": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "empty": b"",
    }
    path.write_bytes(wrong[content])
    trainer = trainer_of(cnn(), (8, 8, 3))
    before = snapshot(trainer)
    with pytest.raises(ValueError, match=rf"model.{ending}"):
        interop.load_weights(trainer, path)
    assert_unchanged(trainer, before)


def test_other_files_are_refused_by_name(tmp_path):
    trainer = trainer_of(nn.Dense(2), (3,))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        interop.load_weights(trainer, tmp_path / "nowhere.pt")
    (tmp_path / "weights.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"cannot tell the format of .*weights.csv"):
        interop.load_weights(trainer, tmp_path / "weights.csv")
    with pytest.raises(ValueError, match="expected one safetensors file"):
        interop.load_weights(trainer, tmp_path)
    trainer.save(tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match=r"read it by Trainer.load"):
        interop.load_weights(trainer, tmp_path / "ours.safetensors")
    index = {"weight_map": {"weight": "../ours.safetensors"}}
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a file next to it"):
        interop.load_weights(trainer, path)


class Dangerous:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_of_pytorch_cannot_run_code(tmp_path):
    torch.save({"weight": Dangerous(tmp_path / "made")}, tmp_path / "bad.pt")
    trainer = trainer_of(nn.Dense(2), (3,))
    with pytest.raises(ValueError, match="holds other objects than tensors"):
        interop.load_weights(trainer, tmp_path / "bad.pt")
    assert not (tmp_path / "made").exists()


def test_targets_that_cannot_be_written_are_refused(tmp_path):
    trainer = trainer_of(nn.Dense(2), (3,))
    for target, message in (
        (tmp_path / "model.weights.h5", "pass the model as target"),
        (tmp_path / "model.onnx", "pass like="),
        (3, "expected a path, a module"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            interop.export_weights(trainer, target)
    module = T.Linear(3, 4)
    before = module.weight.detach().clone()
    with pytest.raises(ValueError, match="cannot match the model"):
        interop.export_weights(trainer, module)
    assert torch.equal(module.weight, before)
    with pytest.raises(ValueError, match="'1', which is no layer"):
        interop.export_weights(trainer, None, {"1": "out"})
