"""Checkpoints are written atomically, detect damage, and restore everything."""

import json
import os
import subprocess
import sys
import tracemalloc
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves
from agnostic_nn.training import checkpoint
from agnostic_nn.training.config import describe, rebuild

ARRAYS = {
    "params.0.weight": np.arange(6, dtype="float32").reshape(2, 3),
    "state.key": np.array([1, 2**32 - 1], dtype="uint32"),
    "moments.step": np.array(7, dtype="int32"),
    "empty": np.zeros((0, 3)),
}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == array.shape, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_arrays_and_description_are_read_as_they_were_written(tmp_path):
    checkpoint.write(tmp_path / "a", ARRAYS, {"note": "ü"})
    arrays, description = checkpoint.read(tmp_path / "a")
    assert_same(arrays, ARRAYS)
    assert description["note"] == "ü"
    assert os.listdir(tmp_path) == ["a"], "a temporary file is left"


def test_safetensors_reads_the_file_and_the_header_is_aligned(tmp_path):
    dtypes = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
    arrays = {f"ü.{dtype}": np.arange(5).astype(dtype) for dtype in dtypes} | ARRAYS
    arrays["big-endian"] = np.arange(4, dtype=">i4")
    checkpoint.write(tmp_path / "a", arrays, {})
    data = (tmp_path / "a").read_bytes()
    assert_same(
        load_tensors(data), arrays | {"big-endian": arrays["big-endian"].astype("<i4")}
    )
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert_same(checkpoint.read(tmp_path / "a")[0], load_tensors(data))


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"a": [1, {2: "two"}]}, r"notes\['a'\]\[1\]: expected text as the key, got 2"),
        ({"a": np.float32(1)}, r"notes\['a'\]: expected JSON data, got a float32"),
        ({"a": {1}}, r"notes\['a'\]: expected JSON data, got a set"),
    ],
)
def test_notes_that_json_would_refuse_or_change_are_refused(tmp_path, notes, message):
    with pytest.raises(TypeError, match=message):
        checkpoint.write(tmp_path / "a", {}, {"notes": notes})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "wrong", [np.zeros(2, "O"), np.zeros(2, "U3"), np.zeros(2, "c16")]
)
def test_dtypes_that_the_format_lacks_are_refused(tmp_path, wrong):
    with pytest.raises(
        TypeError, match=r"cannot save odd of dtype .*: expected one of float64"
    ):
        checkpoint.write(tmp_path / "a", {"odd": wrong}, {})
    assert os.listdir(tmp_path) == []


def test_saving_and_loading_need_little_memory_beyond_the_state(tmp_path):
    model = nn.Sequential(*[nn.Dense(500, bias=False) for _ in range(8)])
    options = {"backend": "numpy", "shape": (500,)}
    trainer = nn.Trainer(model, nn.mean_squared_error, nn.SGD(0.1), **options)
    # imports and caches of the first time are not counted
    trainer.save(tmp_path / "a")
    nn.Trainer.load(tmp_path / "a", "numpy")
    size = (tmp_path / "a").stat().st_size
    tracemalloc.start()
    trainer.save(tmp_path / "a")
    _, peak = tracemalloc.get_traced_memory()
    assert peak < 0.5 * size
    tracemalloc.reset_peak()
    loaded = nn.Trainer.load(tmp_path / "a", "numpy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * size
    assert_same_bits(loaded, trainer)


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a"
    checkpoint.write(path, {"a": np.ones(10_000)}, {})
    with checkpoint.opened(path) as file:
        with path.open("r+b") as other:
            other.truncate(5000)
        with pytest.raises(
            checkpoint.CheckpointError, match="became shorter while it was read"
        ):
            file.arrays()


def test_a_file_with_a_damaged_shape_is_reported_as_damaged(tmp_path):
    """Not as a file of another model."""
    trainer = nn.Trainer(
        nn.Dense(3), nn.mean_squared_error, nn.SGD(), backend="numpy", shape=(4,)
    )
    trainer.save(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole.replace(b'width\\": 3', b'width\\": 7'))
    assert (tmp_path / "a").read_bytes() != whole
    with pytest.raises(nn.CheckpointError, match="is damaged: its digest does not fit"):
        nn.Trainer.load(tmp_path / "a", "numpy")


@pytest.mark.parametrize(
    "layout",
    [
        lambda a: a.T,
        lambda a: a[::-1],
        lambda a: a[:, ::2],
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[:1], a.shape),
    ],
    ids=["transposed", "reversed", "sliced", "Fortran", "broadcast"],
)
def test_arrays_of_any_layout_are_saved_correctly(tmp_path, layout):
    array = layout(np.arange(12.0).reshape(4, 3))
    checkpoint.write(tmp_path / "a", {"a": array}, {})
    np.testing.assert_array_equal(checkpoint.read(tmp_path / "a")[0]["a"], array)


def test_every_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "a"
    checkpoint.write(path, ARRAYS, {"note": "x"})
    whole = path.read_bytes()
    harmless = []
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        try:
            arrays, description = checkpoint.read(path)
        except checkpoint.CheckpointError:
            continue
        assert_same(arrays, ARRAYS)  # only padding of the header may change
        assert description == {"format": 1, "note": "x"}
        harmless.append(i)
    assert len(harmless) < 16


def test_every_shortened_file_is_refused(tmp_path):
    path = tmp_path / "a"
    checkpoint.write(path, ARRAYS, {})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x80\x04pickle", "is a pickle"),
        (save_tensors({"a": np.zeros(2)}), "not a checkpoint of agnostic_nn"),
        (
            save_tensors({}, {"agnostic_nn": '{"format": 99}', "sha256": "0"}),
            "digest does not fit",
        ),
    ],
    ids=["empty", "pickle", "of another library", "of another format"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, data, message):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.read(tmp_path / "a")


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "a", ARRAYS, {})
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    with pytest.raises(
        checkpoint.CheckpointError, match="has format 1; this version reads format 99"
    ):
        checkpoint.read(tmp_path / "a")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    checkpoint.write(path, ARRAYS, {})

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write(path, {}, {})
    assert_same(checkpoint.read(path)[0], ARRAYS)
    assert os.listdir(tmp_path) == ["a"]


def test_the_file_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        spy = partial(
            lambda name, real, *a: (calls.append(name), real(*a))[1], name, real
        )
        monkeypatch.setattr(os, name, spy)
    checkpoint.write(tmp_path / "a", ARRAYS, {})
    assert calls == ["fsync", "replace", "fsync"]


KILLED = """
import sys, numpy as np
from agnostic_nn.training import checkpoint
n = 0
while True:
    n += 1
    checkpoint.write(sys.argv[1], {"a": np.full(200_000, n, "float32")}, {"n": n})
    if n == 1:
        print("started", flush=True)
"""


def test_the_file_is_complete_after_the_process_was_killed_while_saving(tmp_path):
    path = tmp_path / "a"
    for delay in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout.readline() == "started\n"
        try:
            writer.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            writer.kill()
        writer.wait()
        writer.stdout.close()
        arrays, description = checkpoint.read(path)
        assert (arrays["a"] == description["n"]).all()
    checkpoint.write(path, {}, {})
    assert os.listdir(tmp_path) == ["a"], "temporary files of killed processes are left"


MODEL = nn.Sequential(
    nn.Dense(7, bias=False, initializer=nn.Orthogonal(0.5)),  # BatchNorm has a bias
    nn.BatchNorm(momentum=0.8),
    nn.GELU(approximate=True),
    nn.Residual(nn.Dense(7), nn.Dropout(0.25)),
    nn.Reshape((7,)),
    nn.Dense(3, bias=False),
)
OPTIMIZER = nn.ClipByGlobalNorm(nn.AdamW(nn.schedules.Cosine(1e-2, 50, warmup=5)), 2.0)
LOSS = partial(nn.softmax_cross_entropy, label_smoothing=0.1)


@pytest.mark.parametrize(
    "value", [MODEL, OPTIMIZER, nn.SGD(0.1, momentum=0.9), nn.Flatten()]
)
def test_models_and_optimizers_survive_json(value):
    assert rebuild(json.loads(json.dumps(describe(value)))) == value


def test_a_loss_with_options_survives_json():
    result = rebuild(json.loads(json.dumps(describe(LOSS))))
    assert (result.func, result.keywords) == (LOSS.func, LOSS.keywords)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "system", "command": "ls"}, "agnostic_nn does not define"),
        ({"function": "eval"}, "agnostic_nn does not define"),
        ({"type": ["Dense"]}, "agnostic_nn does not define"),
        ({"type": "Dense", "width": -1}, "width of at least 1"),
        ({"type": "Dense", "height": 3}, "does not fit this version"),
    ],
)
def test_only_classes_and_functions_of_the_library_are_rebuilt(data, message):
    with pytest.raises(ValueError, match=message):
        rebuild(data)


def trained(backend, **options):
    generator = np.random.default_rng(1)
    x = generator.standard_normal((37, 5)).astype("float32")
    labels = generator.integers(0, 3, 37)
    trainer = nn.Trainer(MODEL, LOSS, OPTIMIZER, backend=backend, seed=3)
    trainer.fit(x, labels, batch_size=8, verbose=0, **options)
    return trainer, x, labels


def assert_same_bits(actual, expected):
    actual, expected = (
        leaves(trainer.backend.to_numpy(trainer._current.run.carry))
        for trainer in (actual, expected)
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("at", [3, 5, 7])
def test_a_training_resumed_on_the_same_backend_continues_bit_for_bit(
    backend, tmp_path, at
):
    """Also from the middle of an epoch, which has 5 steps."""
    whole, x, labels = trained(backend, epochs=3)
    part, _, _ = trained(backend, epochs=3, steps=at)
    part.save(tmp_path / "a")
    resumed = nn.Trainer.load(tmp_path / "a", backend=backend)
    assert (resumed.steps, resumed.model, resumed.optimizer) == (at, MODEL, OPTIMIZER)
    assert_same_bits(resumed, part)
    while resumed.epoch < 3:
        resumed.fit(x, labels, batch_size=8, verbose=0)
    assert resumed.steps == whole.steps == 15
    assert_same_bits(resumed, whole)


def test_a_training_resumed_on_another_backend_continues_with_the_same_data_and_masks(
    backend, tmp_path
):
    whole, x, labels = trained(backend, epochs=3)
    part, _, _ = trained(backend, epochs=3, steps=7)
    part.save(tmp_path / "a")
    for resumed in (nn.Trainer.load(tmp_path / "a", backend="numpy"), part.to("numpy")):
        while resumed.epoch < 3:
            resumed.fit(x, labels, batch_size=8, verbose=0)
        for (name, a), (_, b) in zip(
            nn.trees.named_leaves(whole.backend.to_numpy(whole._current.run.carry)),
            nn.trees.named_leaves(resumed._current.run.carry),
            strict=True,
        ):
            # 15 steps of Adam, each of which moves a weight by at most about the rate,
            # 1e-2
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)
            if a.dtype == np.uint32:
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_move_does_not_change_the_original_trainer(backend):
    trainer, x, labels = trained(backend, epochs=1)
    before = backend.to_numpy(trainer.params[0]["weight"]).copy()
    trainer.to("numpy").fit(x, labels, batch_size=8, verbose=0)
    np.testing.assert_array_equal(backend.to_numpy(trainer.params[0]["weight"]), before)


def test_a_checkpoint_of_another_model_is_refused(backend, tmp_path):
    trainer, _, _ = trained(backend, epochs=1)
    trainer.save(tmp_path / "a")
    with pytest.raises(nn.CheckpointError, match="saved with the model"):
        nn.Trainer.load(tmp_path / "a", backend=backend, model=nn.Dense(3))
    arrays, description = checkpoint.read(tmp_path / "a")
    arrays["params.0.weight"] = arrays["params.0.weight"].T
    checkpoint.write(tmp_path / "a", arrays, description)
    with pytest.raises(
        nn.CheckpointError, match=r"float32 \(7, 5\), expected float32 \(5, 7\)"
    ):
        nn.Trainer.load(tmp_path / "a", backend=backend)


def test_an_error_about_an_unwritable_file_has_its_name(tmp_path):
    path = tmp_path / "none" / "a.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        checkpoint.write(path, ARRAYS, {})
    assert caught.value.filename == str(path)


def test_keep_finite_is_saved_and_metrics_can_be_passed_to_load(backend, tmp_path):
    loss = nn.mean_squared_error
    metrics = {"first": lambda y, target: y[:, 0]}
    trainer = nn.Trainer(
        nn.Dense(2),
        loss,
        nn.SGD(),
        backend=backend,
        shape=(3,),
        metrics=metrics,
        keep_finite=False,
    )
    trainer.save(tmp_path / "a")
    loaded = nn.Trainer.load(tmp_path / "a", backend=backend, metrics=metrics)
    assert (loaded.keep_finite, loaded.metrics) == (False, metrics)

    arrays, description = checkpoint.read(tmp_path / "a")
    del description["keep_finite"], description["format"]
    checkpoint.write(tmp_path / "old", arrays, description)
    old = nn.Trainer.load(tmp_path / "old", backend=backend)
    assert (old.keep_finite, old.metrics) == (True, {})


def test_options_that_were_numpy_numbers_are_saved(backend, tmp_path):
    model = nn.Dense(2, bias=False)
    shape, seed = (np.int64(3),), np.int64(5)
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(), backend=backend, shape=shape, seed=seed
    )
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    trainer.fit(x, y, epochs=np.int64(2), batch_size=np.int32(4), verbose=0)
    trainer.save(tmp_path / "a")
    loaded = nn.Trainer.load(tmp_path / "a", backend=backend)
    assert (loaded.seed, loaded.shape, loaded.model) == (
        5,
        (3,),
        nn.Dense(2, bias=False),
    )
    assert_same_bits(loaded, trainer)


class Doubling(nn.Elementwise):
    """A custom layer: y = 2x."""

    def value(self, x):
        return 2.0 * x

    def slope(self, x):
        return 2.0 * nn.core.arrays.namespace(x).ones_like(x)


def test_a_custom_model_is_passed_to_load(backend, tmp_path):
    model = nn.Sequential(nn.Dense(2), Doubling())
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(), backend=backend, shape=(3,)
    )
    trainer.save(tmp_path / "a")
    with pytest.raises(
        ValueError, match="'Doubling', which agnostic_nn does not define"
    ):
        nn.Trainer.load(tmp_path / "a", backend=backend)
    loaded = nn.Trainer.load(tmp_path / "a", backend=backend, model=model)
    assert_same_bits(loaded, trainer)
