"""joblib, cloudpickle and Dask store trainers and send them to other processes."""

import io

import cloudpickle
import dask
import joblib
import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves

X = np.random.default_rng(0).standard_normal((24, 3), dtype=np.float32)
TARGET = X[:, :2]


def new(backend, loss=nn.mean_squared_error):
    model = nn.Sequential(nn.Dense(4), nn.Dropout(0.5), nn.Dense(2))
    return nn.Trainer(model, loss, nn.Adam(0.1), backend=backend, shape=(3,))


def fit(trainer):
    trainer.fit(X, TARGET, epochs=1, batch_size=8, verbose=0)
    return trainer


def bits(trainer):
    carry = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    return [leaf.tobytes() for leaf in leaves(carry)]


def by_joblib(trainer):
    buffer = io.BytesIO()
    joblib.dump(trainer, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


def by_cloudpickle(trainer):
    return cloudpickle.loads(cloudpickle.dumps(trainer))


@pytest.mark.parametrize("name", ["numpy", "torch:cpu", "jax"])
@pytest.mark.parametrize("copied", [by_joblib, by_cloudpickle])
def test_copies_have_the_same_bits(name, copied):
    trainer = new(nn.backend(name))
    if name == "numpy":
        fit(trainer)
    again = copied(trainer)
    assert bits(again) == bits(trainer)
    if name == "numpy":
        assert bits(fit(again)) == bits(fit(trainer))


def test_cloudpickle_takes_functions_without_a_name():
    trainer = new("numpy", lambda y, target: nn.mean_squared_error(y, target))
    again = cloudpickle.loads(cloudpickle.dumps({"trainers": [trainer]}))["trainers"]
    assert bits(fit(again[0])) == bits(fit(trainer))
    with pytest.raises(TypeError, match="its loss, <lambda>"):
        by_joblib(trainer)


def test_processes_of_joblib_train_copies():
    trainer = new("numpy", lambda y, target: nn.mean_squared_error(y, target))
    with joblib.parallel_config(backend="loky", n_jobs=1):
        outputs = joblib.Parallel(n_jobs=2)(
            joblib.delayed(lambda t: bits(fit(t)))(trainer) for _ in range(2)
        )
    assert outputs == [bits(fit(trainer))] * 2


def test_dask_runs_a_trainer_in_its_graph():
    trainer = new("numpy")
    expected = bits(trainer)
    task = dask.delayed(lambda copied: bits(copied))(trainer)
    assert task.compute(scheduler="synchronous") == expected
    changed = fit(by_cloudpickle(trainer))
    tokens = [dask.base.tokenize(each) for each in (trainer, trainer, changed)]
    assert tokens[0] == tokens[1]
    assert tokens[0] != tokens[2], "the same name for other parameters"
