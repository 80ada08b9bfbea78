"""Arrays of the backend that a user passes are checked and indexed where they are."""

from typing import ClassVar

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.training.inputs import converted_there

MODEL = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(3))
ROWS, WIDTH = 22, 50
EXAMPLE_BYTES = 4 * WIDTH


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    x = generator.standard_normal((ROWS, WIDTH)).astype("float32")
    labels = generator.integers(0, 3, ROWS).astype("int32")
    return x, labels, generator.random(ROWS).astype("float32")


def trainer(backend, model=MODEL, **options):
    options = {"metrics": {}, "backend": backend} | options  # fewer to compile
    return nn.Trainer(model, nn.softmax_cross_entropy, nn.SGD(0.1), **options)


def leaves_of(trainer):
    return nn.core.trees.leaves(trainer.backend.to_numpy(trainer.params))


@pytest.fixture
def on_device(backend):
    if isinstance(backend.xp.zeros(1), np.ndarray):
        pytest.skip("the arrays of this backend are those of the host")
    return backend


@pytest.fixture
def moved(on_device, monkeypatch):
    """Return the bytes that the adapter moves, to the device and from it."""
    bytes_moved = {"to": 0, "from": 0}
    adapter = on_device.adapter
    asarray, to_numpy = adapter.asarray, adapter.to_numpy

    def counted_asarray(array, device):
        bytes_moved["to"] += np.asarray(array).nbytes
        return asarray(array, device)

    def counted_to_numpy(array):
        result = to_numpy(array)
        bytes_moved["from"] += result.nbytes
        return result

    monkeypatch.setattr(adapter, "asarray", counted_asarray)
    monkeypatch.setattr(adapter, "to_numpy", counted_to_numpy)
    return bytes_moved


def test_no_example_is_moved(on_device, moved, data):
    """Only indices of shuffled rows and sizes of batches go to the device, and losses
    come from it."""
    learner = trainer(on_device)
    learner.build((WIDTH,))
    x, labels, weights = on_device.asarray(data)
    limits = {
        "step": 0,
        "fit": 3 * ROWS * 4,  # an index and whether it counts, some for padding
        "evaluate": ROWS * 4,
        "predict": 0,
    }
    calls = {
        "step": lambda: learner.step(x, labels, weights),
        "fit": lambda: learner.fit(
            x, labels, weights=weights, batch_size=8, verbose=0, prefetch=1
        ),
        "evaluate": lambda: learner.evaluate(x, labels, batch_size=8),
        "predict": lambda: learner.predict(x, batch_size=8),
    }
    for name, call in calls.items():
        moved.update({"to": 0, "from": 0})
        call()
        assert moved["to"] <= limits[name] + 64, name
        assert moved["from"] <= 64, name
    learner.step(*data)
    assert moved["to"] >= ROWS * EXAMPLE_BYTES, "data of the host are counted"


def test_results_are_those_of_the_same_data_on_the_host(backend, data):
    on_host, there = trainer(backend), trainer(backend)
    x, labels, weights = backend.asarray(data)
    for learner, (inputs, targets, shares) in (
        (on_host, data),
        (there, (x, labels, weights)),
    ):
        learner.fit(inputs, targets, weights=shares, batch_size=8, epochs=2, verbose=0)
    for a, b in zip(leaves_of(on_host), leaves_of(there), strict=True):
        assert a.tobytes() == b.tobytes()
    assert on_host.evaluate(*data[:2]) == there.evaluate(x, labels)
    predicted = backend.to_numpy(there.predict(x, batch_size=8))
    assert predicted.tobytes() == on_host.predict(data[0], batch_size=8).tobytes()


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "int64"])
def test_integers_become_int32_on_the_backend(on_device, name):
    if getattr(on_device.xp, name, None) is None or (
        name == "int64" and not on_device.has_float64
    ):
        pytest.skip(f"{on_device} has no {name} as it is set up")
    labels = on_device.asarray(np.asarray([0, 5], name))
    result = converted_there("labels", labels, on_device, "float32")
    assert on_device.dtype_name(result) == "int32"
    assert on_device.to_numpy(result).tolist() == [0, 5]
    if name == "int64":
        large = on_device.asarray(np.asarray([0, 2**31]))
        with pytest.raises(ValueError, match="fit into int32"):
            converted_there("labels", large, on_device, "float32")


def spoiled(data, position, index, value):
    parts = [part.copy() for part in data]
    parts[position][index] = value
    return parts


@pytest.mark.parametrize(
    "change",
    [
        lambda data: spoiled(data, 0, (3, 2), np.nan),
        lambda data: spoiled(data, 1, 4, 3),
        lambda data: spoiled(data, 1, 4, -1),
        lambda data: spoiled(data, 2, 4, -1),
        lambda data: spoiled(data, 2, 4, np.inf),
        lambda data: (data[0][:, 1:], data[1], data[2]),
        lambda data: (data[0], data[1][1:], data[2]),
        lambda data: (data[0], data[1], data[2][1:]),
        lambda data: (data[0], data[0], data[2]),
        lambda data: (data[1], data[1], data[2]),
    ],
)
def test_the_backend_refuses_the_same_data_as_the_host(backend, data, change):
    learner = trainer(backend, shape=(WIDTH,))
    wrong = change(data)
    with pytest.raises((TypeError, ValueError)) as on_host:
        learner.step(*wrong)
    with pytest.raises(on_host.type) as there:
        learner.step(*backend.asarray(tuple(wrong)))
    assert str(there.value) == str(on_host.value)
    assert learner.steps == 0


class Watched(nn.Identity):
    """A layer whose check appends the type of each x, and may raise an error."""

    types: ClassVar[list] = []
    errors: ClassVar[list] = []

    def check(self, x):
        self.types.append(type(x))
        if not isinstance(x, np.ndarray) and self.errors:
            raise self.errors.pop()


@pytest.fixture
def watched():
    Watched.types.clear()
    Watched.errors.clear()
    return Watched()


def test_a_check_that_cannot_run_there_runs_on_the_host(on_device, data, watched):
    learner = trainer(on_device, nn.Sequential(watched, nn.Dense(3)))
    learner.build((WIDTH,))
    Watched.errors[:] = [AttributeError("no such function")] * 2
    learner.predict(on_device.asarray(data[0]))
    there = type(on_device.asarray(data[0]))
    assert Watched.types == [there, np.ndarray, there]


def test_an_error_of_a_signal_handler_during_a_check_is_not_lost(
    on_device, data, watched
):
    learner = trainer(on_device, nn.Sequential(watched, nn.Dense(3)))
    learner.build((WIDTH,))
    Watched.errors[:] = [ZeroDivisionError("from a handler")]
    with pytest.raises(ZeroDivisionError, match="from a handler"):
        learner.predict(on_device.asarray(data[0]))


def test_augment_gets_arrays_of_the_host(on_device, data):
    calls = []

    def augment(x, target, generator):
        calls.append((type(x), type(target), len(x)))
        return x, target

    x, labels, _ = on_device.asarray(data)
    trainer(on_device).fit(x, labels, augment=augment, batch_size=11, verbose=0)
    assert calls == [(np.ndarray, np.ndarray, 11)] * 2


def test_inputs_on_the_host_and_on_the_backend_may_be_mixed(backend, data):
    model = nn.Sequential(nn.Concatenate(), nn.Dense(3))
    learner = trainer(backend, model)
    x, labels, _ = data
    learner.step((x, backend.asarray(x)), backend.asarray(labels))
    alone = trainer(backend, model)
    alone.step((x, x), labels)
    for a, b in zip(leaves_of(learner), leaves_of(alone), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_tensor_that_records_gradients_is_copied(on_device, data):
    x, labels, _ = on_device.asarray(data)
    if not hasattr(x, "requires_grad_"):
        pytest.skip(f"{on_device} has no automatic differentiation by recording")
    learner = trainer(on_device)
    loss = learner.step(x.requires_grad_(), labels)
    assert not loss.requires_grad
    assert not learner.predict(x).requires_grad
