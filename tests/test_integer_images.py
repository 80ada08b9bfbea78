"""Bytes of images stay bytes up to the layer, or the function, that scales them."""

import numpy as np
import pytest

import agnostic_nn as nn

SHAPE = (4, 4, 3)
MODEL = nn.Sequential(nn.Rescale(1 / 255), nn.Conv2D(2, 3), nn.GlobalAveragePool())
# with the same weights, as the place of a layer fixes how they are drawn
REAL_MODEL = nn.Sequential(nn.Identity(), *MODEL.layers[1:])


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (6, *SHAPE)).astype("uint8")
    return x, generator.integers(0, 2, 6).astype("int32")


def trainer(backend, model=MODEL):
    loss, optimizer = nn.softmax_cross_entropy, nn.SGD(0.1)
    return nn.Trainer(model, loss, optimizer, backend=backend, metrics={})


def weights_of(trainer):
    return nn.core.trees.leaves(trainer.backend.to_numpy(trainer.params))


def assert_same(one, other):
    for a, b in zip(weights_of(one), weights_of(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bytes_reach_the_device_as_bytes(backend, images, monkeypatch):
    x, labels = images
    learner = trainer(backend)
    learner.build(SHAPE)
    moved = []
    asarray = backend.adapter.asarray

    def watched(array, device):
        moved.append(np.asarray(array))
        return asarray(array, device)

    monkeypatch.setattr(backend.adapter, "asarray", watched)
    learner.fit(x, labels, batch_size=3, verbose=0)
    learner.predict(x)
    assert max(array.nbytes for array in moved) <= x.nbytes
    assert {array.dtype.name for array in moved if array.ndim >= 4} == {"uint8"}


def test_bytes_train_as_the_numbers_that_they_stand_for(backend, images):
    x, labels = images
    on_bytes, on_floats = trainer(backend), trainer(backend, REAL_MODEL)
    on_bytes.fit(x, labels, batch_size=4, verbose=0)
    on_floats.fit(x.astype("float32") / 255, labels, batch_size=4, verbose=0)
    assert_same(on_bytes, on_floats)
    there = trainer(backend)
    there.fit(*backend.asarray((x, labels)), batch_size=4, verbose=0)
    checked = there._validator.input(backend.asarray(x), there._current)
    assert backend.to_numpy(checked).dtype == np.uint8
    for a, b in zip(weights_of(on_bytes), weights_of(there), strict=True):
        assert a.tobytes() == b.tobytes()


def test_augment_gets_bytes_and_returns_the_numbers_of_the_model(backend, images):
    x, labels = images
    dtypes = []

    def cropped(x, target, generator):
        dtypes.append(x.dtype.name)
        return x[:, 1:, 1:].astype("float32") / 255, target

    learner = trainer(backend, REAL_MODEL)
    learner.fit(x, labels, augment=cropped, shuffle=False, batch_size=6, verbose=0)
    assert dtypes == ["uint8"]
    assert learner.shape == (3, 3, 3)
    same = trainer(backend, REAL_MODEL)
    same.step(x[:, 1:, 1:].astype("float32") / 255, labels)
    assert_same(learner, same)


def test_batches_of_bytes_are_augmented_too(images):
    x, labels = images
    learner = trainer("numpy", REAL_MODEL)

    def scaled(x, target, generator):
        return x.astype("float32") / 255, target

    learner.fit(batches=[(x, labels)], augment=scaled, verbose=0)
    assert learner.steps == 1
    with pytest.raises(TypeError, match="got uint8") as caught:
        learner.fit(x, labels, augment=lambda x, target, _: (x, target), verbose=0)
    assert "in the result of augment" in caught.value.__notes__
    with pytest.raises(ValueError, match=r"6 examples, but target of shape \(5,\)"):
        learner.fit(x, labels[1:], augment=scaled, verbose=0)


def test_mapped_bytes_stay_bytes(tmp_path, images):
    x, labels = images
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    learner = trainer("numpy")
    dtypes = []

    def noted(x, target, generator):
        dtypes.append((x.dtype.name, isinstance(x, np.memmap)))
        return x, target

    learner.fit(mapped, labels, batch_size=6, augment=noted, verbose=0)
    assert dtypes == [("uint8", False)]


def test_bytes_without_a_layer_that_scales_them_are_refused(backend, images):
    for data in (images, backend.asarray(images)):
        with pytest.raises(TypeError, match=r"got uint8: .*nn\.Rescale\(1 / 255\)"):
            trainer(backend, REAL_MODEL).step(*data)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float32"])
def test_rescaling_is_exact_to_rounding(backend, dtype):
    layer = nn.Rescale((0.5, 2.0), -1)
    x = np.asarray([[0, 1], [100, 127]], dtype)
    initial = layer.init(nn.random.key(0, xp=np), (2,), np.float32)
    params, state = backend.asarray(initial[:2])
    y, _, cache = layer.forward(params, state, backend.asarray(x))
    expected = np.asarray([[-1, 1], [49, 253]], "float32")
    assert np.array_equal(backend.to_numpy(y), expected)
    dx, _ = layer.backward(params, cache, y)
    if dtype == "float32":
        assert np.array_equal(backend.to_numpy(dx), expected * [0.5, 2.0])
    else:
        assert dx is None
    assert initial[2] == (2,)


def test_a_number_for_each_channel_has_to_fit():
    with pytest.raises(ValueError, match=r"Rescale has 2 numbers as scale, for x of"):
        nn.Rescale((1.0, 2.0)).init(nn.random.key(0, xp=np), SHAPE, np.float32)
    with pytest.raises(ValueError, match="finite"):
        nn.Rescale((1.0, np.nan))
    with pytest.raises(ValueError, match="nan"):
        nn.Rescale().check(np.asarray([[np.nan]], "float32"))
