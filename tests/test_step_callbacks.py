"""Callbacks after each step: what they get, when, and what it costs."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves
from agnostic_nn.training import feed
from agnostic_nn.training.epoch_means import StepResults

X = np.random.default_rng(0).standard_normal((22, 4)).astype("float32")
LABELS = np.arange(22) % 3
OPTIONS = {"batch_size": 4, "verbose": 0, "shuffle": False}
BATCHES = [slice(start, start + 4) for start in range(0, 22, 4)]


def make(backend, optimizer=None, **options):
    optimizer = optimizer or nn.Adam(0.1)
    return nn.Trainer(
        nn.Dense(3), nn.softmax_cross_entropy, optimizer, backend=backend, **options
    )


def carry(trainer):
    arrays = trainer.params, trainer.moments
    return [leaf.copy() for leaf in leaves(trainer.backend.to_numpy(arrays))]


class Reports(nn.Callback):
    """Keeps the numbers of each report, and the parameters after each step."""

    def __init__(self):
        self.rows = []
        self.after = []

    def step(self, trainer, report):
        numbers = {name: getattr(report, name) for name in ("number", "epoch", "batch")}
        numbers |= {"examples": report.examples, "loss": report.loss}
        numbers |= {"rate": report.rate} | report.metrics
        self.rows.append(numbers)
        self.after.append((trainer.steps, carry(trainer)))


class Together(Reports):
    one_step_per_call = False


def compile_loops(monkeypatch):
    monkeypatch.setattr(nn.Backend, "compiles", True)
    monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 10**9)


@pytest.mark.parametrize("kind", [Reports, Together])
def test_each_step_is_reported_as_it_was_taken(backend, monkeypatch, kind):
    compile_loops(monkeypatch)
    optimizer = nn.Accumulate(nn.Adam(nn.schedules.Linear(0.1, 0.0, steps=5)), 2)
    reports = kind()
    fitted = make(backend, optimizer)
    fitted.fit(X, LABELS, epochs=2, callbacks=[reports], **OPTIONS)
    stepped = make(backend, optimizer, shape=(4,))
    for i, row in enumerate(reports.rows):
        rows = BATCHES[i % 6]
        accuracy = stepped.evaluate(X[rows], LABELS[rows])["accuracy"]
        rate = stepped.rate
        loss = float(stepped.step(X[rows], LABELS[rows]))
        assert row == {
            "number": i + 1,
            "epoch": i // 6 + 1,
            "batch": i % 6 + 1,
            "examples": len(X[rows]),
            "loss": pytest.approx(loss, rel=1e-4),
            "accuracy": pytest.approx(accuracy),
            "rate": pytest.approx(rate),
        }
        if kind is Reports:
            assert reports.after[i][0] == i + 1
            for a, b in zip(reports.after[i][1], carry(stepped), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert len(reports.rows) == 12
    if kind is Together:
        assert [steps for steps, _ in reports.after] == [6] * 6 + [12] * 6


def test_other_rates_than_one_are_none(backend):
    optimizer = nn.Parts((("bias", nn.SGD(0.1)),), rest=nn.Adam(0.1))
    reports = Reports()
    make(backend, optimizer).fit(X, LABELS, callbacks=[reports], **OPTIONS)
    assert {row["rate"] for row in reports.rows} == {None}


def test_numbers_and_memory_continue_after_an_interruption(backend, tmp_path):
    class Counting(nn.Callback):
        def step(self, trainer, report):
            memory = trainer.memory(self)
            memory["count"] = memory.get("count", 0) + 1
            counts.append((report.number, report.batch, memory["count"]))

    counts = []
    trainer = make(backend)
    trainer.fit(X, LABELS, steps=2, callbacks=[Counting()], **OPTIONS)
    trainer.save(tmp_path / "saved")
    loaded = nn.Trainer.load(tmp_path / "saved", backend)
    loaded.fit(X, LABELS, callbacks=[Counting()], **OPTIONS)
    assert counts == [(i, i, i) for i in range(1, 7)]


@pytest.mark.parametrize("kind", [Reports, Together])
def test_an_exception_leaves_the_state_after_whole_steps(backend, monkeypatch, kind):
    compile_loops(monkeypatch)

    class Failing(kind):
        def step(self, trainer, report):
            if report.number == 3:
                raise OSError("the disk is full")

    trainer, whole = make(backend), make(backend)
    with pytest.raises(OSError, match="full"):
        trainer.fit(X, LABELS, callbacks=[Failing()], **OPTIONS)
    assert trainer.steps == (3 if kind is Reports else 6)
    row = {}
    if kind is Reports:
        row = trainer.fit(X, LABELS, **OPTIONS).epochs[0]
    expected = whole.fit(X, LABELS, **OPTIONS).epochs[0]
    assert (trainer.epoch, trainer.steps) in ((1, 6), (0, 6))
    for a, b in zip(carry(trainer), carry(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    if row:
        assert row["accuracy"] == pytest.approx(expected["accuracy"])


# --- LogTo ----------------------------------------------------------------------------


def test_log_to_passes_every_nth_step_and_each_epoch(backend):
    calls = []
    trainer = make(backend, nn.Adam(nn.schedules.Linear(0.1, 0.0, steps=100)))
    log = nn.LogTo(lambda values, step: calls.append((step, values)), every=4)

    def note(trainer, row):
        row["text"] = "not a number"
        row["flag"] = True

    history = trainer.fit(
        X, LABELS, validation=(X, LABELS), epochs=2, callbacks=[note, log], **OPTIONS
    )
    assert [step for step, _ in calls] == [4, 6, 8, 12, 12]
    values = calls[0][1]
    assert list(values) == ["batch_loss", "batch_accuracy", "rate", "seconds_per_step"]
    assert values["rate"] == pytest.approx(0.1 * 0.97)
    assert 0.0 < values["seconds_per_step"] < 60.0
    assert all(type(value) in (int, float) for value in values.values())
    row = {k: v for k, v in history.epochs[1].items() if k not in ("text", "flag")}
    assert calls[-1] == (12, row)


def test_log_to_without_every_passes_epochs_only(backend):
    calls = []
    log = nn.LogTo(lambda values, step: calls.append(step))
    make(backend).fit(X, LABELS, callbacks=[log], **OPTIONS)
    assert calls == [6]


def test_nothing_is_fetched_for_steps_that_are_not_logged(backend, monkeypatch):
    """And the steps of one call stay together."""
    compile_loops(monkeypatch)
    fetched = []
    original = StepResults.metrics_of_step

    def metrics_of_step(self, index, *arguments):
        fetched.append((index, len(self.losses)))
        return original(self, index, *arguments)

    monkeypatch.setattr(StepResults, "metrics_of_step", metrics_of_step)
    rates = []
    original_rate = nn.Trainer._rate_before
    monkeypatch.setattr(
        nn.Trainer,
        "_rate_before",
        lambda *arguments: rates.append(1) or original_rate(*arguments),
    )
    log = nn.LogTo(lambda values, step: None, every=5)
    make(backend).fit(X, LABELS, callbacks=[log], **OPTIONS)
    assert (fetched, rates) == ([(4, 6)], [1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((print, 3), TypeError, "positional"),
        ((3,), TypeError, r"function to be a function of \(values, step\), got 3"),
        ((lambda values: None,), TypeError, "cannot take these"),
    ],
)
def test_log_to_refuses_what_it_cannot_call(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.LogTo(*arguments)


def test_log_to_refuses_wrong_intervals():
    with pytest.raises(ValueError, match="every of at least 1, got 0"):
        nn.LogTo(print, every=0)
