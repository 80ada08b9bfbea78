"""`export_onnx`: graphs run by ONNX Runtime compute what the trainer computes."""

import json

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import named_leaves
from agnostic_nn.interop import export_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
onnx_graph = pytest.importorskip("agnostic_nn.interop.onnx_graph")
onnx_recorder = pytest.importorskip("agnostic_nn.interop.onnx_recorder")

IMAGES = (6, 6, 2)


def convolutional(backend="numpy", **options):
    model = nn.Sequential(
        nn.Conv2D(3, 3, padding=((2, 0), (0, 2)), bias=False),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Dense(4),
    )
    options = {"shape": IMAGES} | options
    return nn.Trainer(
        model, nn.softmax_cross_entropy, nn.Adam(0.01), backend=backend, **options
    )


def dense(model=None, loss=nn.mean_squared_error, shape=(3,), **options):
    model = (
        nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2)) if model is None else model
    )
    return nn.Trainer(model, loss, nn.SGD(0.1), backend="numpy", shape=shape, **options)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def session_of(path):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(path), options)


def run(path, **feed):
    session = session_of(path)
    feed = {name.replace("__", "."): array for name, array in feed.items()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("backend", ["numpy", "torch:cpu", "jax"])
def test_a_model_of_each_backend_runs_for_any_batch(backend, tmp_path):
    trainer = convolutional(backend)
    path = tmp_path / "model.onnx"
    file = export_onnx(trainer, path)
    assert file.inputs == {"x": ("float32", ("batch", *IMAGES))}
    assert file.outputs == {"y": ("float32", ("batch", 4))}
    assert list(file.checked) == ["batch 1", "batch 2", "batch 5"]
    for count in (1, 7, 40):  # one is below and one above what was recorded
        x = numbers(count, *IMAGES)
        expected = np.asarray(trainer.predict(x))
        np.testing.assert_allclose(run(path, x=x)["y"], expected, atol=1e-5)


def test_names_tell_layers_and_weights(tmp_path):
    trainer = convolutional()
    path = tmp_path / "model.onnx"
    export_onnx(trainer, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    carry = {"params": trainer.params, "state": trainer.state}
    known = {k: v for k, v in named_leaves(carry) if k != "state.5.key"}
    names = {name for name in weights if not name.startswith("constant_")}
    assert names == {name for name in known if not name.startswith("state.5")}
    for name in names:
        np.testing.assert_array_equal(weights[name], known[name])
    nodes = {node.name: node.op_type for node in model.graph.node}
    assert nodes["0/Conv_0"] == "Conv"
    assert nodes["3/MaxPool_0"] == "MaxPool"
    assert nodes["6/MatMul_0"] == "MatMul"
    assert [o.version for o in model.opset_import if o.domain == ""] == [21]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["agnostic_nn.version"] == nn.__version__
    assert json.loads(metadata["agnostic_nn.model"])["type"] == "Sequential"


def test_trees_have_named_inputs_and_outputs(tmp_path):
    model = nn.Graph(
        embedded=(nn.Embedding(7, 4), "tokens"),
        mean=(nn.MaskedAveragePool(), {"x": "embedded", "mask": "mask"}),
        score=(nn.Dense(2), "mean"),
        outputs={"scores": "score", "features": "mean"},
    )
    shape = {"tokens": (5,), "mask": (5,)}

    def loss(y, target):
        value, dy = nn.mean_squared_error(y["scores"], target)
        return value, {"scores": dy, "features": None}

    trainer = dense(model, loss, shape)
    path = tmp_path / "model.onnx"
    file = export_onnx(trainer, path)
    assert file.inputs["x.tokens"] == ("int32", ("batch", 5))
    assert file.inputs["x.mask"] == ("bool", ("batch", 5))
    assert sorted(file.outputs) == ["y.features", "y.scores"]
    tokens = np.random.default_rng(0).integers(0, 7, (3, 5)).astype("int32")
    mask = np.arange(5)[None, :] < np.array([[2], [5], [1]])
    result = run(path, x__tokens=tokens, x__mask=mask)
    expected = trainer.predict({"tokens": tokens, "mask": mask})
    for name in ("scores", "features"):
        np.testing.assert_allclose(result[f"y.{name}"], expected[name], atol=1e-6)


SEQUENCE_MODELS = {
    "attention": nn.Sequential(
        nn.TransformerBlock(
            nn.MultiHeadAttention(2, causal=True, head_width=4, rotary=True), hidden=5
        ),
        nn.GlobalAveragePool(),
    ),
    "lstm": nn.Sequential(nn.LSTM(3), nn.Dense(2)),
    "gru": nn.GRU(3),
}


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_sequences_of_a_fixed_length(name, tmp_path):
    trainer = dense(SEQUENCE_MODELS[name], shape=(4, 6))
    path = tmp_path / "model.onnx"
    export_onnx(trainer, path)
    x = numbers(9, 4, 6)
    np.testing.assert_allclose(run(path, x=x)["y"], trainer.predict(x), atol=1e-5)


def test_a_length_with_a_name_is_free(tmp_path):
    model = nn.Sequential(
        nn.Conv1D(6, 3, padding="same"),
        nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), hidden=5),
        nn.GlobalAveragePool(),
        nn.Dense(2),
    )
    trainer = dense(model, shape=(None, 3))
    path = tmp_path / "model.onnx"
    file = export_onnx(trainer, path, shape=("time", 3))
    assert file.inputs["x"] == ("float32", ("batch", "time", 3))
    for count, length in ((1, 1), (3, 30), (20, 7)):
        x = numbers(count, length, 3)
        np.testing.assert_allclose(run(path, x=x)["y"], trainer.predict(x), atol=1e-5)


def test_the_gradient_with_respect_to_the_input(tmp_path):
    trainer = convolutional(dtype="float32")
    path = tmp_path / "model.onnx"
    file = export_onnx(trainer, path, gradient=2)
    assert file.outputs["dx"] == ("float32", ("batch", *IMAGES))
    x = numbers(3, *IMAGES)
    result = run(path, x=x)
    np.testing.assert_allclose(result["y"], trainer.predict(x), atol=1e-5)
    # a derivative along one direction, by a difference of predictions
    direction = numbers(3, *IMAGES, seed=1)
    size = 1e-3
    ahead, behind = (run(path, x=x + s * direction)["y"][:, 2] for s in (size, -size))
    slopes = np.sum(result["dx"] * direction, axis=(1, 2, 3))
    np.testing.assert_allclose(slopes, (ahead - behind) / (2 * size), atol=0.02)


def test_the_gradients_of_a_sum_and_of_a_product(tmp_path):
    trainer = dense()
    x = numbers(6, 3)
    file = export_onnx(trainer, tmp_path / "vjp.onnx", gradient="vjp")
    assert list(file.inputs) == ["x", "dy"]
    export_onnx(trainer, tmp_path / "sum.onnx", gradient="sum")
    ones = np.ones((6, 2), "float32")
    product = run(tmp_path / "vjp.onnx", x=x, dy=ones)["dx"]
    np.testing.assert_allclose(
        run(tmp_path / "sum.onnx", x=x)["dx"], product, atol=1e-6
    )
    doubled = run(tmp_path / "vjp.onnx", x=x, dy=2 * ones)["dx"]
    np.testing.assert_allclose(doubled, 2 * product, rtol=1e-5)


def loop(path, batches):
    """Train with ONNX Runtime: pass the outputs of a step to the next."""
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    carry = {}
    losses = []
    for batch in batches:
        result = dict(zip(names, session.run(names, batch | carry), strict=True))
        losses.append(result["loss"])
        carry = {
            name.removeprefix("next."): array
            for name, array in result.items()
            if name.startswith("next.")
        }
    return losses, carry


def test_a_loop_of_steps_follows_the_trainer(tmp_path):
    """Also the masks of Dropout, whose key is in the state."""
    trainer = convolutional()
    path = tmp_path / "step.onnx"
    generator = np.random.default_rng(3)
    batches = [
        (numbers(8, *IMAGES, seed=seed), generator.integers(0, 4, 8).astype("int32"))
        for seed in range(10)
    ]
    trainer.step(*batches[0])  # the file continues from here
    export_onnx(trainer, path, training=True, example=batches[0])
    feeds = [{"x": x, "target": target} for x, target in batches[1:]]
    losses, carry = loop(path, feeds)
    expected = [float(trainer.step(x, target)) for x, target in batches[1:]]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[0] != losses[-1]
    for name, leaf in named_leaves({"params": trainer.params, "state": trainer.state}):
        np.testing.assert_allclose(carry[name], leaf, atol=1e-4, err_msg=name)
    assert carry["moments.step"] == 10


def test_a_step_with_weights_and_a_context(tmp_path):
    def loss(y, target, weights=None, *, context=None):
        value, dy = nn.mean_squared_error(y, target, weights)
        return value * context["factor"], dy * context["factor"]

    context = {"factor": np.asarray(0.25, "float32")}
    optimizer = nn.SGD(nn.schedules.Cosine(0.1, 20), momentum=0.9)
    model = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2))
    trainer = nn.Trainer(
        model, loss, optimizer, backend="numpy", shape=(3,), context=context
    )
    x, target, weights = (
        numbers(5, 3),
        numbers(5, 2, seed=1),
        np.arange(5.0, dtype="float32"),
    )
    path = tmp_path / "step.onnx"
    example = (x, target, weights)
    file = export_onnx(trainer, path, training=True, example=example)
    assert {"weights", "context.factor"} < set(file.inputs)
    feed = {"x": x, "target": target, "weights": weights}
    losses, carry = loop(path, 4 * [feed | {"context.factor": context["factor"]}])
    expected = [float(trainer.step(x, target, weights)) for _ in range(4)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    weight = trainer.params[2]["weight"]
    np.testing.assert_allclose(carry["params.2.weight"], weight, atol=1e-6)


def test_the_number_of_a_step_is_an_input_of_a_loss_with_a_schedule(tmp_path):
    loss = nn.Weighted(nn.mean_squared_error, nn.schedules.Linear(1.0, 0.0, steps=4))
    trainer = dense(loss=loss)
    x, target = numbers(5, 3), numbers(5, 2, seed=1)
    path = tmp_path / "step.onnx"
    export_onnx(trainer, path, training=True, example=(x, target))
    feeds = [
        {"x": x, "target": target, "step": np.asarray(t, "float32")} for t in range(3)
    ]
    losses, _ = loop(path, feeds)
    expected = [float(trainer.step(x, target)) for _ in range(3)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[2] < 0.6 * losses[0]


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    trainer = dense()
    batch = (numbers(5, 3), numbers(5, 2, seed=1))
    path = tmp_path / "step.onnx"
    export_onnx(trainer, path, training=True, example=batch)
    target = batch[1].copy()
    target[0, 0] = np.inf
    result = run(path, x=batch[0], target=target)
    assert not result["finite"]
    for name, leaf in named_leaves(trainer.params, "next.params"):
        np.testing.assert_array_equal(result[name], leaf)


def test_an_update_that_depends_on_rounding_is_listed(tmp_path):
    """The gradient of a bias before BatchNorm is 0, and Adam divides by its size."""
    model = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Tanh(), nn.Dense(2))
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.Adam(0.01), backend="numpy", shape=(3,)
    )
    batch = (numbers(16, 3), numbers(16, 2, seed=1))
    file = export_onnx(trainer, tmp_path / "step.onnx", training=True, example=batch)
    assert file.undetermined == ("next.params.0.bias",)
    assert "not compared: next.params.0.bias" in str(file)


def test_mixed_precision(tmp_path):
    trainer = dense(precision="mixed_float16")
    path = tmp_path / "model.onnx"
    export_onnx(trainer, path)
    assert "Cast" in {node.op_type for node in onnx.load(path).graph.node}
    x = numbers(3, 3)
    np.testing.assert_allclose(run(path, x=x)["y"], trainer.predict(x), atol=2e-2)


def test_bfloat16_is_refused(tmp_path):
    options = {"backend": "torch:cpu", "shape": (3,), "precision": "mixed_bfloat16"}
    trainer = nn.Trainer(nn.Dense(2), nn.mean_squared_error, nn.SGD(0.1), **options)
    with pytest.raises(ValueError, match=r"got bfloat16: ndonnx, which records"):
        export_onnx(trainer, tmp_path / "model.onnx")


def test_float64(tmp_path):
    model = nn.Sequential(nn.Conv1D(3, 3), nn.Flatten(), nn.Dense(2))
    trainer = dense(model, shape=(5, 2), dtype="float64")
    path = tmp_path / "model.onnx"
    assert max(export_onnx(trainer, path).checked.values()) < 1e-14
    x = np.random.default_rng(0).standard_normal((3, 5, 2))
    np.testing.assert_allclose(run(path, x=x)["y"], trainer.predict(x), atol=1e-13)


def test_weights_of_a_large_model_are_in_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr("agnostic_nn.interop.onnx_export._EXTERNAL", 1000)
    trainer = dense(nn.Dense(500))
    path = tmp_path / "model.onnx"
    export_onnx(trainer, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    assert path.stat().st_size < 3000
    x = numbers(2, 3)
    np.testing.assert_allclose(run(path, x=x)["y"], trainer.predict(x), atol=1e-5)


# --- refusals -------------------------------------------------------------------------


def halves_of_the_batch(x):
    half = x.shape[0] // 2
    xp = namespace(x)
    return xp.concat([x[half:, ...], x[:half, ...]], axis=0)


def test_a_batch_that_has_no_formula_is_refused_with_the_remedy(tmp_path):
    trainer = dense(nn.Sequential(nn.Dense(2), nn.Lambda(halves_of_the_batch)))
    path = tmp_path / "model.onnx"
    message = r"free lengths \(batch\): a constant of 1/Slice_\d+ has 5 and 6 .*batch=N"
    with pytest.raises(ValueError, match=message):
        export_onnx(trainer, path)
    assert not list(tmp_path.iterdir())
    export_onnx(trainer, path, batch=4)
    x = numbers(4, 3)
    np.testing.assert_allclose(run(path, x=x)["y"], trainer.predict(x), atol=1e-6)


def twice_if_short(x):
    return x * 2.0 if x.shape[0] < 4 else x


def test_another_path_for_a_small_batch_is_caught_by_the_check(tmp_path):
    trainer = dense(nn.Sequential(nn.Dense(2), nn.Lambda(twice_if_short), nn.Tanh()))
    message = r"another y than the model for batch 1.*differs is layer 1 \(Lambda"
    with pytest.raises(ValueError, match=message):
        export_onnx(trainer, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    export_onnx(trainer, tmp_path / "model.onnx", batch=2)


def depends_on_values(x):
    return x if float(x[0, 0]) > 0 else -x


def test_a_python_if_on_values_is_refused_with_the_layer(tmp_path):
    trainer = dense(nn.Sequential(nn.Dense(2), nn.Lambda(depends_on_values)))
    with pytest.raises(ValueError, match=r"cannot export layer 1 \(Lambda"):
        export_onnx(trainer, tmp_path / "model.onnx", batch=2)


def test_a_recurrent_layer_has_a_fixed_length(tmp_path):
    trainer = dense(nn.GRU(2), shape=(None, 3))
    with pytest.raises(ValueError, match=r"x_1\).*pass a shape with numbers"):
        export_onnx(trainer, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "mean"}, "expected gradient to be 'sum', 'vjp'"),
        ({"gradient": 2}, "the number of an output below 2"),
        ({"batch": 0}, "expected batch to be an integer of at least 1"),
        ({"training": True}, r"expected example=\(x, target\)"),
        ({"training": 1}, "expected training to be True or False"),
        (
            {"training": True, "example": (numbers(4, 3), numbers(3, 2))},
            "one batch size, got {'x': 4, 'target': 3}",
        ),
        (
            {"training": True, "example": (numbers(4, 3), numbers(4, 2)), "batch": 3},
            "batch=None or 4",
        ),
    ],
)
def test_bad_arguments(options, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        export_onnx(dense(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_without_weights_is_refused(tmp_path):
    trainer = nn.Trainer(
        nn.Dense(2), nn.mean_squared_error, nn.SGD(0.1), backend="numpy"
    )
    with pytest.raises(ValueError, match="no weights yet"):
        export_onnx(trainer, tmp_path / "model.onnx")


def test_a_model_that_is_not_a_trainer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="expected a Trainer, got Dense"):
        export_onnx(nn.Dense(2), tmp_path / "model.onnx")


def test_no_gradient_of_integers(tmp_path):
    trainer = dense(nn.Sequential(nn.Embedding(5, 2), nn.Flatten()), shape=(3,))
    with pytest.raises(ValueError, match="no gradient with respect to its input"):
        export_onnx(trainer, tmp_path / "model.onnx", gradient="sum")


# --- parts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3, 3, 3), 3),
        ((11, 13, 11), (0, 1, ("n",), False)),
        ((33, 39, 33), (0, 3, ("n",), False)),
        ((10, 12, 10), (-1, 1, ("n",), False)),
        ((11 * 11 * 2, 13 * 11 * 2, 11 * 13 * 2), (0, 2, ("n", "t"), False)),
        ((5, 6, 5), None),
        ((1 / 11, 1 / 13, 1 / 11), (0, 1, ("n",), True)),
        ((5.5, 6.5, 5.5), (0, 0.5, ("n",), False)),
        ((1000001, 1000002, 1000001), None),
    ],
)
def test_formulas_of_lengths(values, expected):
    lengths = [{"n": 11, "t": 11}, {"n": 13, "t": 11}, {"n": 11, "t": 13}]
    result = onnx_graph.expression_of(values, lengths)
    if isinstance(expected, tuple):
        assert result[2:] == expected[2:]
        np.testing.assert_allclose(result[:2], expected[:2], atol=1e-12)
    else:
        assert result == expected


def indexed(x):
    """Return results of all kinds of basic indices as one row per example."""
    xp = namespace(x)
    parts = [
        x[:, 1, ...],
        x[:, -1, :],
        x[:, ::2, 1],
        x[:, ::-1, None, 0][:, :, 0],
        x[..., -2:][:, 0, :],
        x[:, 3:0:-2, 0],
        x[:, 1:-1, 1],
    ]
    return xp.concat(parts, axis=-1)


def extremes(x):
    xp = namespace(x)
    flags = xp.any(x > 1.0, axis=1) & ~xp.all(x > 0.0, axis=1)
    parts = [
        xp.max(x, axis=(1, 2)),
        xp.min(x, axis=2)[:, 0],
        xp.mean(x, axis=(1, 2)),
        xp.sum(x * x, axis=-1)[:, 0],
        xp.astype(flags, x.dtype)[:, 0],
        ops.erf(x)[:, 0, 0],
        ops.erfc(x)[:, 0, 0],
    ]
    return xp.stack(parts, axis=-1)


@pytest.mark.parametrize("function", [indexed, extremes])
def test_native_operations(function, tmp_path):
    model = nn.Sequential(nn.Dense(3), nn.Lambda(function))
    trainer = dense(model, shape=(5, 3))
    path = tmp_path / "model.onnx"
    export_onnx(trainer, path)
    x = 2 * numbers(6, 5, 3)
    np.testing.assert_allclose(run(path, x=x)["y"], trainer.predict(x), atol=1e-6)
