"""Metrics of the training data: those of an epoch, computed in its steps."""

from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.training import feed
from agnostic_nn.training.checkpoint import read, write
from agnostic_nn.training.epoch_means import EpochMeans, StepResults

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((43, 4)).astype("float32")
LABELS = np.arange(43) % 3
NUMBERS = (X[:, :2] ** 2 + 100.0).astype("float32")
WEIGHTS = GENERATOR.uniform(0.5, 2.0, 43).astype("float32")
OPTIONS = {"batch_size": 4, "verbose": 0}


def squares(y, target):
    """A custom metric with a finish: the root of the mean square of y - target."""
    return namespace(y).mean((y - target) * (y - target), axis=-1)


squares.finish = lambda mean: float(np.sqrt(mean))
REGRESSION = {
    "error": nn.metrics.absolute_error,
    "r2": nn.metrics.r2,
    "root": squares,
}


def classifier(backend, optimizer=None, **options):
    return nn.Trainer(
        nn.Dense(3),
        nn.softmax_cross_entropy,
        optimizer or nn.Fixed(),
        backend=backend,
        seed=1,
        **options,
    )


def regression(backend, optimizer=None, metrics=REGRESSION):
    return nn.Trainer(
        nn.Dense(2),
        nn.mean_squared_error,
        optimizer or nn.Fixed(),
        backend=backend,
        seed=1,
        metrics=metrics,
    )


@pytest.fixture(params=["one call per step", "calls of four steps"])
def calls(request, monkeypatch):
    """Batches taken one by one, or in loops of four."""
    if request.param == "one call per step":
        monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 0)
        return
    monkeypatch.setattr(nn.Backend, "compiles", True)
    monkeypatch.setattr(feed.BatchFeeder, "steps_per_call", lambda *_: 4)


# --- values ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_they_are_those_of_evaluate_if_parameters_do_not_change(
    backend, calls, weights
):
    """Eleven batches, the last one short and padded."""
    metrics = {
        "accuracy": nn.accuracy,
        "perplexity": nn.metrics.perplexity,
        "top": partial(nn.metrics.top_k_accuracy, k=2, ignore_index=1),
    }
    for trainer, target in (
        (classifier(backend, metrics=metrics), LABELS),
        (regression(backend), NUMBERS),
    ):
        history = trainer.fit(X, target, weights=weights, **OPTIONS)
        expected = trainer.evaluate(X, target, weights=weights)
        for name, value in expected.items():
            assert history[name] == [pytest.approx(value, rel=2e-5)], name


def test_each_batch_is_measured_before_its_step(backend, calls):
    optimizer = nn.Accumulate(nn.Adam(0.1), 2)
    fitted = classifier(backend, optimizer)
    stepped = classifier(backend, optimizer, shape=(4,))
    history = fitted.fit(X, LABELS, shuffle=False, epochs=2, **OPTIONS)
    for number in range(2):
        correct = 0.0
        for start in range(0, 43, 4):
            rows = slice(start, start + 4)
            batch = X[rows], LABELS[rows]
            correct += stepped.evaluate(*batch)["accuracy"] * len(X[rows])
            stepped.step(*batch)
        assert history["accuracy"][number] == pytest.approx(correct / 43, abs=1e-6)


def test_they_are_computed_in_training_mode(backend):
    model = nn.Sequential(nn.Dense(64), nn.Dropout(0.9), nn.Dense(2))
    trainer = nn.Trainer(
        model,
        nn.mean_squared_error,
        nn.Fixed(),
        backend=backend,
        metrics={"y": lambda y, target: y * y},
    )
    history = trainer.fit(X, NUMBERS, validation=(X, NUMBERS), **OPTIONS)
    assert history["y"][0] > 2.0 * history["validation_y"][0]


def test_batches_of_a_user_count_by_their_examples(backend):
    trainer = classifier(backend)
    sizes = [(0, 8), (8, 13), (13, 43)]
    history = trainer.fit(batches=[(X[a:b], LABELS[a:b]) for a, b in sizes], verbose=0)
    expected = trainer.evaluate(X, LABELS)
    assert history["accuracy"] == [pytest.approx(expected["accuracy"], abs=1e-6)]


def test_metrics_of_trees_and_of_a_context(backend):
    def gap(y, target, context):
        return y["a"] - context

    model = nn.Graph(
        a=(nn.Dense(1), "x"), b=(nn.Dense(1), "z"), outputs={"a": "a", "b": "b"}
    )
    trainer = nn.Trainer(
        model,
        nn.Losses(a=nn.mean_squared_error, b=nn.mean_squared_error),
        nn.Fixed(),
        backend=backend,
        metrics={"gap": gap},
        context=np.float32(2.0),
    )
    target = {"a": NUMBERS[:, :1], "b": NUMBERS[:, 1:]}
    x = {"x": X, "z": X}
    history = trainer.fit(x, target, **OPTIONS)
    expected = trainer.predict(x)["a"].mean() - 2.0
    assert history["gap"] == [pytest.approx(expected, rel=1e-4)]


# --- rows -----------------------------------------------------------------------------


def test_they_stand_before_those_of_the_validation_data(backend):
    trainer = classifier(backend)
    history = trainer.fit(X, LABELS, validation=(X, LABELS), **OPTIONS)
    assert list(history.epochs[0]) == [
        *("epoch", "steps", "loss", "accuracy"),
        *("validation_loss", "validation_accuracy", "seconds"),
    ]
    stopping = nn.EarlyStopping(monitor="accuracy", mode="max")
    trainer.fit(X, LABELS, callbacks=[stopping], **OPTIONS)


def test_they_can_be_left_out(backend):
    trainer = classifier(backend)
    options = OPTIONS | {"training_metrics": False}
    history = trainer.fit(X, LABELS, validation=(X, LABELS), **options)
    assert "accuracy" not in history.epochs[0]
    assert "validation_accuracy" in history.epochs[0]
    with pytest.raises(ValueError, match="monitors 'accuracy', but an epoch reports"):
        trainer.fit(
            X, LABELS, callbacks=[nn.EarlyStopping(monitor="accuracy")], **options
        )
    with pytest.raises(TypeError, match="training_metrics"):
        trainer.fit(X, LABELS, training_metrics=1)


@pytest.mark.parametrize("name", ["loss", "seconds", "epoch", "validation_loss"])
def test_a_metric_does_not_replace_another_result(name):
    with pytest.raises(ValueError, match=f"another name for a metric than '{name}'"):
        nn.Trainer(nn.Dense(1), nn.huber, nn.SGD(0.1), metrics={name: squares})


def test_a_metric_that_fails_leaves_the_trainer_as_it_was(backend):
    def scalar(y, target):
        return namespace(y).mean(y)

    trainer = regression(backend, metrics={"scalar": scalar})
    trainer.build((4,))
    before = trainer.params["bias"]
    with pytest.raises(ValueError, match="'scalar' to return an array of one value"):
        trainer.fit(X, NUMBERS, **OPTIONS)
    assert trainer.steps == 0
    np.testing.assert_array_equal(
        *trainer.backend.to_numpy((trainer.params["bias"], before))
    )


# --- an epoch that is continued -------------------------------------------------------


def test_an_interrupted_epoch_is_reported_as_a_whole(backend, tmp_path):
    """Also if it is continued by a trainer that was moved, or saved and loaded."""
    whole, part = (regression(backend, nn.SGD(1e-5)) for _ in range(2))
    options = OPTIONS | {"weights": WEIGHTS}
    expected = whole.fit(X, NUMBERS, **options).epochs[0]
    for steps in (1, 2):
        part.fit(X, NUMBERS, steps=steps, **options)
    part = part.to(backend)
    part.fit(X, NUMBERS, steps=3, **options)
    part.save(tmp_path / "saved")
    part = nn.Trainer.load(tmp_path / "saved", backend, metrics=REGRESSION)
    row = part.fit(X, NUMBERS, **options).epochs[0]
    assert row["steps"] == 5
    for name in ("loss", *REGRESSION):
        assert row[name] == pytest.approx(expected[name], rel=1e-6), name
    following = part.fit(X, NUMBERS, **options).epochs[0]
    assert following["loss"] < row["loss"]


def test_an_error_in_the_middle_of_an_epoch_keeps_its_means(backend):
    def augment(x, target, generator):
        batches.append(1)
        if len(batches) == 6:
            raise OSError("no file")
        return x, target

    batches = []
    trainer = classifier(backend)
    with pytest.raises(OSError, match="no file"):
        trainer.fit(X, LABELS, augment=augment, **OPTIONS)
    history = trainer.fit(X, LABELS, augment=augment, **OPTIONS)
    expected = trainer.evaluate(X, LABELS)
    assert history["accuracy"] == [pytest.approx(expected["accuracy"], abs=1e-6)]
    assert history["loss"] == [pytest.approx(expected["loss"], rel=1e-5)]


def test_a_metric_that_was_not_saved_covers_the_rest_of_the_epoch(backend, tmp_path):
    """It has other shapes, or very many numbers."""
    trainer = regression(backend, metrics={"other": nn.metrics.r2})
    trainer.fit(X, NUMBERS, steps=5, shuffle=False, **OPTIONS)
    trainer.save(tmp_path / "saved")
    metrics = {"other": lambda y, target: target[:, 0]}
    loaded = nn.Trainer.load(tmp_path / "saved", backend, metrics=metrics)
    row = loaded.fit(X, NUMBERS, shuffle=False, **OPTIONS).epochs[0]
    assert row["other"] == pytest.approx(NUMBERS[20:, 0].mean())

    many = _results({"many": np.ones((5000,))})
    means = EpochMeans().with_steps(many)
    folded = means.folded({"many": squares}, np.asarray)
    assert folded.as_json()["metrics"] == {}
    plain = means.folded({"many": nn.metrics.absolute_error}, np.asarray)
    assert plain.as_json()["metrics"]["many"] == {"examples": 20000, "means": 1.0}


# --- the device -----------------------------------------------------------------------


def _results(metrics=None):
    return StepResults([0.5], (4,), ((), (4.0,)), metrics or {}, False)


def test_no_step_waits_for_a_transfer_of_its_metrics(backend, monkeypatch):
    """Results are moved to the host once for many steps."""
    monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 0)
    trainer = classifier(backend)
    taken = []
    original = EpochMeans.folded

    def folded(self, *arguments):
        taken.append(len(self.pending))
        return original(self, *arguments)

    monkeypatch.setattr(EpochMeans, "folded", folded)
    trainer.fit(X, LABELS, batch_size=1, verbose=0)
    assert [count for count in taken if count] == [32, 11]


# --- damaged files --------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda means: means.pop("loss"),
        lambda means: means["loss"].update(totals=[1.0, 2.0]),
        lambda means: means["loss"].update(totals=["1"], divisors=[1.0]),
        lambda means: means["loss"].update(batches=-1),
        lambda means: means["metrics"].update(accuracy=3),
        lambda means: means["metrics"]["accuracy"].update(examples=0),
        lambda means: means["metrics"]["accuracy"].update(means="one"),
        lambda means: means["metrics"]["accuracy"].update(means=[[1.0], 2.0]),
        lambda means: means["metrics"]["accuracy"].update(means={"list": [1.0]}),
    ],
)
def test_means_that_were_not_saved_by_this_library_are_refused(tmp_path, damage):
    path = tmp_path / "saved"
    trainer = classifier("numpy")
    trainer.fit(X, LABELS, steps=2, **OPTIONS)
    trainer.save(path)
    nn.Trainer.load(path, "numpy")
    arrays, description = read(path)
    damage(description["means"])
    write(path, arrays, description)
    with pytest.raises(nn.CheckpointError, match="cannot be loaded"):
        nn.Trainer.load(path, "numpy")


def test_a_file_without_means_begins_them_where_it_continues(tmp_path):
    trainer = classifier("numpy")
    trainer.fit(X, LABELS, steps=5, shuffle=False, **OPTIONS)
    trainer.save(tmp_path / "saved")
    arrays, description = read(tmp_path / "saved")
    del description["means"]
    write(tmp_path / "saved", arrays, description)
    loaded = nn.Trainer.load(tmp_path / "saved", "numpy")
    row = loaded.fit(X, LABELS, shuffle=False, **OPTIONS).epochs[0]
    expected = loaded.evaluate(X[20:], LABELS[20:])
    assert row["accuracy"] == pytest.approx(expected["accuracy"])
