"""dpnp: all arrays are created in the queue of the arguments.

Arrays of two queues do not mix, so creating an array without a device is an error. This
finds on a CPU what a second GPU would find: all arrays here are in a queue other
than the default one, in which arrays are created if no `device` is passed.
"""

from dataclasses import replace

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ops, random
from agnostic_nn.core import arrays
from agnostic_nn.core.trees import leaves
from agnostic_nn.training import Trainer, make_step

dpctl = pytest.importorskip("dpctl", reason="dpnp is not installed")
dpnp = pytest.importorskip("dpnp", reason="dpnp is not installed")
if not dpctl.get_devices():
    pytest.skip(
        "dpnp finds no device; OCL_ICD_FILENAMES names a driver",
        allow_module_level=True,
    )

DTYPE = dpnp.float32
STEPS = [  # model, loss, optimizer; one example is four numbers
    (
        nn.Sequential(
            nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.5), nn.Dense(3)
        ),
        nn.softmax_cross_entropy,
        nn.ClipByGlobalNorm(nn.AdamW(nn.schedules.Cosine(1e-2, steps=9, warmup=2))),
    ),
    (
        nn.Sequential(
            nn.Embedding(5, 2), nn.Residual(nn.LayerNorm(), nn.GELU()), nn.Flatten()
        ),
        nn.softmax_cross_entropy,
        nn.SGD(
            nn.schedules.StepDecay(0.1, every=2),
            momentum=0.9,
            nesterov=True,
            weight_decay=0.1,
        ),
    ),
    (
        nn.Sequential(
            nn.Dense(4), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.LeakyReLU()
        ),
        nn.binary_cross_entropy,
        nn.Adam(nn.schedules.ExponentialDecay(0.1, 0.5)),
    ),
    (
        nn.Sequential(
            nn.Reshape((2, 2)), nn.Softmax(), nn.ELU(), nn.LogSoftmax(), nn.Dense(2)
        ),
        nn.mean_squared_error,
        nn.Adam(nn.schedules.Constant(0.1), beta1=0.0),
    ),
    (
        nn.Sequential(
            nn.Dense(4, initializer=nn.Orthogonal()),
            nn.SiLU(),
            nn.GELU(approximate=True),
        ),
        nn.mean_squared_error,
        nn.SGD(),
    ),
]
each_step = pytest.mark.parametrize(("model", "loss", "optimizer"), STEPS)

# name: function of a key, of two rows of three numbers, and of two row indices
CALLS = {
    "words": lambda key, y, index: random.words(key, 7),
    "split": lambda key, y, index: random.split(key, 3),
    "fold": lambda key, y, index: random.fold(key, 3),
    "uniform": lambda key, y, index: random.uniform(key, (3,), DTYPE),
    "normal": lambda key, y, index: random.normal(key, (3,), DTYPE),
    "bernoulli": lambda key, y, index: random.bernoulli(key, 0.3, (3,)),
    "bernoulli at 1": lambda key, y, index: random.bernoulli(key, 1.0, (3,)),
    "permutation": lambda key, y, index: random.permutation(key, 9),
    "Constant": lambda key, y, index: nn.Constant(1.0)(key, (3, 4), DTYPE),
    "Orthogonal": lambda key, y, index: nn.Orthogonal()(key, (3, 4), DTYPE),
    "TruncatedNormal": lambda key, y, index: nn.TruncatedNormal()(key, (3, 4), DTYPE),
    "he_uniform": lambda key, y, index: nn.he_uniform(key, (3, 4), DTYPE),
    "lecun_normal": lambda key, y, index: nn.lecun_normal(key, (3, 4), DTYPE),
    "erf": lambda key, y, index: ops.erf(y),
    "standard-only erf": lambda key, y, index: ops.erf.dispatch(object)(y),
    "scatter_add": lambda key, y, index: ops.scatter_add(y, index, 4),
    "all_finite": lambda key, y, index: ops.all_finite(y, y),
    "smoothing": lambda key, y, index: nn.softmax_cross_entropy(
        y, y / 3, label_smoothing=0.1
    ),
    "weights": lambda key, y, index: nn.softmax_cross_entropy(y, index, y[:, 0]),
    "accuracy": lambda key, y, index: nn.accuracy(y, index),
    "binary_accuracy": lambda key, y, index: nn.binary_accuracy(y, y),
}


@pytest.fixture(scope="module")
def elsewhere():
    """Return a backend on the first device, with another queue than the default."""
    backend = nn.backend("dpnp")
    queue = dpctl.SyclQueue(backend.device.sycl_device)
    return replace(backend, device=dpnp.empty(0, device=queue).device)


def assert_stays(tree, backend):
    devices = [arrays.device(leaf) for leaf in leaves(tree)]
    assert devices == [backend.device] * len(devices)


def batch(model, loss, out):
    """Return six examples and targets on the host, the last of which is a filler."""
    integers = np.arange(24, dtype=np.int32).reshape(6, 4) % 5
    x = (
        integers
        if model.input_kinds == "integral"
        else np.sin(integers).astype(np.float32)
    )
    if loss is nn.softmax_cross_entropy:
        target = np.array([0, 1, 2, 0, 1, 2], np.int32)
    else:
        target = np.full((6, *out), 0.5, np.float32)
    return x, target, np.array([1, 1, 1, 1, 1, 0], np.float32)


def test_an_array_created_without_a_device_is_an_error(elsewhere):
    """So the tests below can fail."""
    x = elsewhere.asarray(np.ones(3, np.float32))
    with pytest.raises(dpnp.exceptions.ExecutionPlacementError):
        x + dpnp.ones(3, dtype=DTYPE)


@each_step
def test_a_whole_step_stays_in_its_queue(elsewhere, model, loss, optimizer):
    key = random.key(0, xp=dpnp, device=elsewhere.device)
    params, state, out = model.init(key, (4,), DTYPE)
    carry = (params, state, optimizer.init(params))
    assert_stays(carry, elsewhere)
    examples = elsewhere.asarray(batch(model, loss, out))
    assert_stays(model.forward(params, state, examples[0], train=True), elsewhere)
    step = make_step(model, loss, optimizer)
    for _ in range(2):
        carry, value, finite = step(carry, *examples)
    assert_stays((carry, value, finite), elsewhere)
    assert bool(finite)


@pytest.mark.parametrize("name", CALLS)
def test_results_are_in_the_queue_of_the_arguments(elsewhere, name):
    key = random.key(0, xp=dpnp, device=elsewhere.device)
    y = elsewhere.asarray(np.ones((2, 3), np.float32))
    index = elsewhere.asarray(np.array([1, 1], np.int32))
    assert_stays(CALLS[name](key, y, index), elsewhere)


@each_step
def test_a_trainer_stays_in_its_queue(elsewhere, model, loss, optimizer):
    trainer = Trainer(model, loss, optimizer, backend=elsewhere, shape=(4,))
    x, target, _ = batch(model, loss, trainer.out_shape)
    trainer.fit(
        elsewhere.asarray(x), elsewhere.asarray(target), batch_size=4, verbose=0
    )
    trainer.evaluate(x, target, batch_size=4)
    y = trainer.predict(elsewhere.asarray(x), batch_size=4)
    assert_stays((trainer.params, trainer.state, trainer.moments, y), elsewhere)
    elsewhere.synchronize(y)


def test_an_array_of_another_queue_is_copied():
    backend = nn.backend("dpnp")
    other = dpnp.ones(
        (2, 4), dtype=DTYPE, device=dpctl.SyclQueue(backend.device.sycl_device)
    )
    trainer = Trainer(
        nn.Dense(1), nn.mean_squared_error, nn.SGD(), backend=backend, shape=(4,)
    )
    y = trainer.predict(backend.asarray(np.ones((2, 4), np.float32)))
    there = trainer.predict(other)
    assert backend.to_numpy(there).tolist() == backend.to_numpy(y).tolist()
