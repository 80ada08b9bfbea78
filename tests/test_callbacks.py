"""Callbacks: when they run, what they remember, and how failures are handled."""

import csv
import math
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.training.callbacks import as_callback

X = np.random.default_rng(0).standard_normal((20, 4)).astype("float32")
LABELS = np.arange(20) % 3
OPTIONS = {"batch_size": 8, "verbose": 0}


def make_trainer(backend, optimizer=None):
    optimizer = optimizer or nn.Adam(1e-2)
    return nn.Trainer(nn.Dense(3), nn.softmax_cross_entropy, optimizer, backend=backend)


def carry_of(trainer):
    return [
        trainer.backend.to_numpy(leaf).copy()
        for leaf in leaves(trainer._current.carry())
    ]


def assert_same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class Recorder(nn.Callback):
    """Records its calls."""

    def __init__(self):
        self.calls = []

    def begin(self, trainer):
        self.calls.append("begin")

    def epoch(self, trainer, row):
        self.calls.append(row["epoch"])

    def end(self, trainer, complete):
        self.calls.append(complete)


def reporting(values, name="validation_loss"):
    """Return a callback that writes the next of `values` into the row."""
    values = iter(values)

    def report(trainer, row):
        row[name] = next(values)

    return report


# --- calls ----------------------------------------------------------------------------


def test_a_function_is_called_after_each_epoch_and_may_add_to_the_row(backend):
    steps = []

    def look(trainer, row):
        steps.append(trainer.steps)
        row["twice"] = trainer.steps * 2
        return 1  # not True

    trainer, recorder = make_trainer(backend), Recorder()
    history = trainer.fit(X, LABELS, epochs=3, callbacks=[look, recorder], **OPTIONS)
    assert steps == [3, 6, 9]
    assert history["twice"] == [6, 12, 18]
    assert recorder.calls == ["begin", 1, 2, 3, True]


def test_true_ends_fit_after_all_callbacks_of_the_epoch(backend):
    recorder = Recorder()
    callbacks = [lambda trainer, row: row["epoch"] == 2, recorder]
    history = make_trainer(backend).fit(
        X, LABELS, epochs=9, callbacks=callbacks, **OPTIONS
    )
    assert (len(history), recorder.calls) == (2, ["begin", 1, 2, True])


def test_callbacks_are_not_called_for_an_unfinished_epoch(backend):
    trainer, recorder = make_trainer(backend), Recorder()
    trainer.fit(X, LABELS, epochs=2, steps=4, callbacks=[recorder], **OPTIONS)
    trainer.fit(X, LABELS, callbacks=[recorder], **OPTIONS)
    assert recorder.calls == ["begin", 1, False, "begin", 2, True]


def test_a_failing_callback_does_not_change_the_training_and_the_others_end(
    backend,
):
    def fail(trainer, row):
        if row["epoch"] == 2:
            raise OSError("the disk is full")

    trainer, whole, recorder = make_trainer(backend), make_trainer(backend), Recorder()
    with pytest.raises(OSError, match="full"):
        trainer.fit(X, LABELS, epochs=4, callbacks=[recorder, fail], **OPTIONS)
    assert recorder.calls == ["begin", 1, 2, False]
    assert (trainer.epoch, trainer.steps) == (2, 6)
    trainer.fit(X, LABELS, epochs=2, **OPTIONS)
    whole.fit(X, LABELS, epochs=4, **OPTIONS)
    assert_same_bits(carry_of(trainer), carry_of(whole))


def test_no_step_is_taken_if_a_callback_fails_to_begin(backend):
    class Failing(nn.Callback):
        def begin(self, trainer):
            raise OSError("no")

    trainer, recorder = make_trainer(backend), Recorder()
    with pytest.raises(OSError, match="no"):
        trainer.fit(X, LABELS, callbacks=[recorder, Failing()], **OPTIONS)
    assert (trainer.steps, recorder.calls) == (0, ["begin", False])


@pytest.mark.parametrize("epochs", [1, 3])
def test_ctrl_c_in_a_callback_waits_for_its_end_and_nothing_is_restored(
    backend, epochs
):
    recorder = Recorder()

    def press(trainer, row):
        signal.raise_signal(signal.SIGINT)
        row["pressed"] = 1

    trainer, whole = make_trainer(backend), make_trainer(backend)
    stopping = nn.EarlyStopping(monitor="loss", mode="max", patience=9)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(
            X, LABELS, epochs=epochs, callbacks=[recorder, stopping, press], **OPTIONS
        )
    assert recorder.calls[-1] is False
    while trainer.epoch < 2:
        trainer.fit(X, LABELS, **OPTIONS)
    whole.fit(X, LABELS, epochs=2, **OPTIONS)
    assert_same_bits(carry_of(trainer), carry_of(whole))


@pytest.mark.parametrize("value", [3, nn.EarlyStopping, "stop"])
def test_a_value_that_is_not_a_callback_is_refused(value):
    with pytest.raises(TypeError, match="a Callback or a function"):
        as_callback(value)


# --- watching a value -----------------------------------------------------------------


class Stub:
    """A replacement for a trainer that saves the number of the epoch."""

    def __init__(self):
        self.notes = {}
        self.now = 0
        self.kept = {}
        self.restored = None

    def memory(self, callback):
        return self.notes

    def keep(self, callback):
        self.kept[id(callback)] = self.now

    def restore(self, callback):
        self.restored = self.kept[id(callback)]


NAN = math.nan


@pytest.mark.parametrize(
    ("options", "values", "stopped", "best"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.5, 2.1, 9.0], 4, 2),
        ({"patience": 2}, [3.0, 2.0, 2.5, 1.9, 2.0, 1.9], 6, 4),
        ({"patience": 1}, [3.0, 3.0], 2, 1),
        ({"patience": 2, "mode": "max"}, [0.1, 0.5, 0.4, 0.6, 0.6, 0.6], 6, 4),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.6, 2.4, 2.0, 1.9], 5, 3),
        (
            {"patience": 2, "mode": "max", "min_delta": 0.5},
            [1.0, 1.4, 1.6, 2.0, 2.1],
            5,
            3,
        ),
        ({"patience": 2}, [NAN, 3.0, NAN, NAN], 4, 2),
        ({"patience": 2}, [NAN, NAN], 2, None),
        ({"patience": 2}, [math.inf, 3.0, 2.0], None, 3),
        ({"patience": 2, "restore": False}, [1.0, 2.0, 3.0], 3, None),
    ],
)
def test_early_stopping_waits_and_restores_the_best(options, values, stopped, best):
    trainer, stopping = Stub(), nn.EarlyStopping(**options)
    answers = []
    for trainer.now, value in enumerate(values, 1):
        answers.append(stopping.epoch(trainer, {"validation_loss": value}))
    epochs = [i for i, answer in enumerate(answers, 1) if answer]
    assert epochs == ([stopped] if stopped else [])
    stopping.end(trainer, False)
    assert trainer.restored is None
    stopping.end(trainer, True)
    assert trainer.restored == best


def test_early_stopping_restores_parameters_state_and_moments(backend):
    result = []
    callbacks = [
        reporting([3.0, 1.0, 2.0, 2.0, 0.0]),
        lambda trainer, row: result.append(carry_of(trainer)),
        nn.EarlyStopping(patience=2),
    ]
    trainer = make_trainer(backend)
    history = trainer.fit(X, LABELS, epochs=5, callbacks=callbacks, **OPTIONS)
    assert (len(history), trainer.epoch) == (4, 4)
    assert_same_bits(carry_of(trainer), result[1])
    assert not np.array_equal(result[1][0], result[3][0])


@pytest.mark.parametrize(
    "callback", [nn.EarlyStopping(), nn.Checkpoint("x", best=True)]
)
def test_a_monitored_value_that_is_not_reported_is_an_error(callback):
    text = "monitors 'validation_loss', but an epoch reports epoch, loss"
    with pytest.raises(ValueError, match=text):
        callback.epoch(Stub(), {"epoch": 1, "loss": 1.0})


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (
            nn.EarlyStopping,
            {"mode": "least"},
            ValueError,
            "mode 'min' or 'max', got 'least'",
        ),
        (
            nn.EarlyStopping,
            {"patience": 0},
            ValueError,
            "patience of at least 1, got 0",
        ),
        (
            nn.EarlyStopping,
            {"min_delta": -1.0},
            ValueError,
            "min_delta of at least 0, got -1",
        ),
        (
            nn.ReduceOnPlateau,
            {"factor": 1.0},
            ValueError,
            r"factor in \(0, 1\), got 1.0",
        ),
        (
            nn.ReduceOnPlateau,
            {"patience": 2.5},
            TypeError,
            "patience to be an integer, got 2.5",
        ),
        (
            nn.ReduceOnPlateau,
            {"min_scale": 1.5},
            ValueError,
            r"min_scale in \[0, 1\), got 1.5",
        ),
        (
            nn.Checkpoint,
            {"path": "x", "every": 0},
            ValueError,
            "every of at least 1, got 0",
        ),
        (
            nn.Checkpoint,
            {"path": "x", "mode": "x"},
            ValueError,
            "mode 'min' or 'max', got 'x'",
        ),
    ],
)
def test_wrong_options_are_refused(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**options)


def test_reduce_on_plateau_lowers_the_scale_of_the_steps(backend):
    """At the end the scale is 1/4, and steps have a quarter of their length."""
    optimizer = nn.Average(nn.ClipByGlobalNorm(nn.Scaled(nn.SGD(1e-3)), 1e6))
    rates = []
    callbacks = [
        reporting([2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        nn.ReduceOnPlateau(patience=2, factor=0.5, min_scale=0.2),
        nn.RateLog(),
        lambda trainer, row: rates.append(row["rate"]),
    ]
    trainer, other = make_trainer(backend, optimizer), make_trainer(backend, optimizer)
    trainer.fit(X, LABELS, epochs=8, callbacks=callbacks, **OPTIONS)
    np.testing.assert_allclose(
        rates, 1e-3 * np.array([1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2])
    )
    moments = trainer.moments
    moments = moments | {
        "inner": moments["inner"] | {"scale": backend.asarray(np.float32(0.25))}
    }
    trainer.moments = moments
    trainer.keep("before")
    other.build((4,))
    other._kept = dict(trainer._kept)
    other.restore("before")
    one = backend.asarray(np.ones((), "float32"))
    other.moments = other.moments | {"inner": other.moments["inner"] | {"scale": one}}
    before = carry_of(trainer)[1].astype("float64")
    trainer.step(X, LABELS)
    other.step(X, LABELS)
    scaled, full = (carry_of(t)[1].astype("float64") - before for t in (trainer, other))
    # a difference of float32 numbers near 1 has an error of an eps or two
    np.testing.assert_allclose(scaled, 0.25 * full, atol=3e-7)
    assert np.max(np.abs(full)) > 1e-5


def test_reduce_on_plateau_needs_steps_that_can_be_scaled(backend):
    trainer = make_trainer(backend)
    with pytest.raises(TypeError, match=r"such as nn.Scaled\(nn.Adam\(\)\), got Adam"):
        trainer.fit(
            X, LABELS, callbacks=[nn.ReduceOnPlateau(monitor="loss")], **OPTIONS
        )
    assert trainer.steps == 0


def test_moments_of_another_structure_shape_or_dtype_are_refused(backend):
    trainer = make_trainer(backend, nn.Scaled(nn.SGD()))
    trainer.build((4,))
    moments = trainer.moments
    for wrong, text in (
        (
            {"scale": backend.asarray(np.ones(1, "float32"))},
            r"scale is .*float32 \(1,\), expected",
        ),
        (
            {"scale": backend.asarray(np.ones((), "int32"))},
            r"scale is .*int32 \(\), expected",
        ),
        ({"other": moments["inner"]}, r"moments\.other\..* is .*, expected nothing"),
    ):
        with pytest.raises(ValueError, match=text):
            trainer.moments = moments | wrong
    with pytest.raises(ValueError, match=r"moments\.inner\.step is nothing, expected"):
        trainer.moments = {}


def test_a_trainer_does_not_change_moments_that_were_assigned_to_it(backend):
    trainer, other = make_trainer(backend), make_trainer(backend)
    trainer.fit(X, LABELS, **OPTIONS)
    other.fit(X, LABELS, **OPTIONS)
    moments = trainer.moments
    before = [np.array(leaf) for leaf in leaves(backend.to_numpy(moments))]
    trainer.step(X, LABELS)
    trainer.moments = other.moments = moments
    for each in (trainer, other):
        each.fit(X, LABELS, **OPTIONS)
    for a, b in zip(leaves(backend.to_numpy(moments)), before, strict=True):
        np.testing.assert_array_equal(a, b)


# --- checkpoints and moves ------------------------------------------------------------

SCRIPT = [5.0, 4.0, 4.5, 4.5, 3.0, 3.5, 3.5, 3.5, 3.5, 3.5]


def all_callbacks(script):
    return [
        reporting(script),
        nn.ReduceOnPlateau(patience=2, factor=0.5),
        nn.EarlyStopping(patience=4),
        nn.RateLog(),
        nn.CSVLog("log.csv"),
        nn.Checkpoint("best", best=True),
        nn.Checkpoint("last"),
        nn.Checkpoint("epoch{epoch}", every=3),
    ]


@pytest.mark.parametrize("at", [3, 6])
def test_callbacks_resumed_from_a_checkpoint_continue_as_without_interruption(
    backend, tmp_path, monkeypatch, at
):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    whole = make_trainer(backend, nn.Scaled(nn.Adam(1e-2)))
    whole.fit(X, LABELS, epochs=10, callbacks=all_callbacks(SCRIPT), **OPTIONS)
    assert whole.epoch == 9, "the best of 3.0 in epoch 5, and 4 more"

    monkeypatch.chdir(tmp_path / "b")
    part = make_trainer(backend, nn.Scaled(nn.Adam(1e-2)))
    callbacks = all_callbacks(SCRIPT)
    last = callbacks.pop(-2)
    cut = at + 1  # the checkpoint of `at` is the last; one more epoch is lost
    callbacks.append(lambda trainer, row: row["epoch"] == cut)
    callbacks.append(
        lambda trainer, row: last.epoch(trainer, row) if row["epoch"] <= at else None
    )
    part.fit(X, LABELS, epochs=10, callbacks=callbacks, **OPTIONS)

    resumed = nn.Trainer.load("last", backend)
    assert resumed.epoch == at
    resumed = resumed.to(backend)
    callbacks = all_callbacks(SCRIPT[at:])
    resumed.fit(X, LABELS, epochs=10 - at, callbacks=callbacks, **OPTIONS)
    assert resumed.epoch == 9
    assert resumed.notes == whole.notes == {}
    assert_same_bits(carry_of(resumed), carry_of(whole))
    for name in ("best", "last", "epoch3", "epoch6", "epoch9"):
        paths = (tmp_path / folder / name for folder in "ab")
        expected, actual = (nn.Trainer.load(path, backend) for path in paths)
        assert actual.epoch == expected.epoch
        assert_same_bits(carry_of(actual), carry_of(expected))
    texts = ((tmp_path / folder / "log.csv").read_text() for folder in "ab")
    expected, actual = (
        [row[:4] + row[5:] for row in csv.reader(text.splitlines())] for text in texts
    )
    assert actual == expected  # except the seconds
    assert [row[0] for row in actual] == ["epoch", *map(str, range(1, 10))]
    assert nn.Trainer.load(tmp_path / "a" / "best", "numpy").epoch == 5
    assert not (tmp_path / "a" / "epoch1").exists()


def test_kept_parameters_move_to_another_backend(backend):
    trainer = make_trainer(backend)
    trainer.build((4,))
    trainer.keep("first")
    first = carry_of(trainer)
    trainer.step(X, LABELS)
    moved = trainer.to("numpy")
    trainer.step(X, LABELS)
    moved.notes["own"] = 1
    assert trainer.notes == {}
    moved.restore("first")
    assert_same_bits(carry_of(moved), first)
    with pytest.raises(KeyError):
        trainer.restore("second")


# --- memory of one run ----------------------------------------------------------------

NUMPY = "numpy"  # these tests do not depend on the backend


def watching(trainer, values, *callbacks, **options):
    """Fit with these validation losses; return the number of epochs."""
    callbacks = [reporting(values), *callbacks]
    options = {"epochs": len(values)} | OPTIONS | options
    return len(trainer.fit(X, LABELS, callbacks=callbacks, **options))


def failing_at(epoch):
    def fail(trainer, row):
        if row["epoch"] == epoch:
            raise OSError("the disk is full")

    return fail


def test_callbacks_forget_the_previous_fit():
    """Also the best value of the same callback, which this fit cannot reach."""
    trainer, stopping = make_trainer(NUMPY), nn.EarlyStopping(patience=2)
    assert watching(trainer, [1.0, 2.0, 3.0, 4.0], stopping) == 3
    best = []
    look = [stopping, lambda trainer, row: best.append(carry_of(trainer))]
    assert watching(trainer, [9.0, 8.0, 7.0, 7.5, 7.1, 7.0], *look) == 5
    assert_same_bits(carry_of(trainer), best[2])


def test_the_best_checkpoint_is_the_best_of_the_current_run(tmp_path):
    trainer = make_trainer(NUMPY)
    for values, best in (([1.0, 2.0], 1), ([9.0, 8.0, 8.5], 4)):
        watching(trainer, values, nn.Checkpoint(tmp_path / "a", best=True))
        assert nn.Trainer.load(tmp_path / "a", NUMPY).epoch == best


def test_equal_callbacks_do_not_share_memory():
    """Otherwise each would count the epochs of the other, and stop too early."""
    stopping = nn.EarlyStopping(patience=4), nn.EarlyStopping(patience=4)
    assert stopping[0] == stopping[1]
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert watching(make_trainer(NUMPY), values, *stopping) == 5
    assert watching(make_trainer(NUMPY), values, stopping[0], stopping[0]) <= 5


@pytest.mark.parametrize("how", ["an error", "steps", "saved", "moved"])
def test_an_interrupted_run_is_continued(tmp_path, how):
    """The best was in epoch 1. 3 more end the run; 2 were before the interruption."""
    trainer, result, stopping = make_trainer(NUMPY), [], nn.EarlyStopping(patience=3)
    keep = [lambda trainer, row: result.append(carry_of(trainer)), stopping]
    if how == "steps":
        watching(trainer, [1.0, 2.0, 3.0, 0.0], *keep, steps=10)
        assert trainer._current.run.open.batches_done == 1
    else:
        with pytest.raises(OSError, match="full"):
            watching(trainer, [1.0, 2.0, 3.0], *keep, failing_at(3))
    if how == "saved":
        trainer.save(tmp_path / "a")
        trainer = nn.Trainer.load(tmp_path / "a", NUMPY)
    elif how == "moved":
        trainer = trainer.to(NUMPY)
    # another list, with a callback without memory before this one
    assert watching(trainer, [4.0, 5.0, 6.0], lambda trainer, row: None, stopping) == 1
    assert_same_bits(carry_of(trainer), result[0])
    assert watching(trainer, [7.0, 6.0, 5.0], stopping) == 3


def test_parameters_kept_for_callbacks_are_dropped_at_the_end_of_the_run(tmp_path):
    trainer, stopping = make_trainer(NUMPY), nn.EarlyStopping()
    sizes = []

    def measure(trainer, row):
        trainer.save(tmp_path / "a")
        sizes.append((tmp_path / "a").stat().st_size)

    watching(trainer, [3.0, 2.0], stopping, measure)
    trainer.save(tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 0.8 * sizes[-1]
    assert trainer._memory is None
    assert nn.Trainer.load(tmp_path / "a", NUMPY)._memory is None


@pytest.mark.parametrize("end", ["build", "start_from"])
def test_new_weights_end_an_interrupted_run(end):
    trainer, stopping = make_trainer(NUMPY), nn.EarlyStopping(patience=1)
    with pytest.raises(OSError, match="full"):
        watching(trainer, [1.0], stopping, failing_at(1))
    if end == "build":
        trainer.build((4,))
    else:
        trainer.start_from(trainer.params, trainer.state)
    assert watching(trainer, [5.0, 4.0, 4.5], stopping) == 3


def test_the_best_of_an_interrupted_run_is_not_used_for_another_metric():
    trainer = make_trainer(NUMPY)
    with pytest.raises(OSError, match="full"):
        watching(trainer, [1e-9], nn.EarlyStopping(patience=1), failing_at(1))
    stopping = nn.EarlyStopping(monitor="loss", patience=1)
    assert watching(trainer, [1.0, 1.0], stopping) == 2


def test_a_reduced_scale_remains_in_the_next_fit_and_the_patience_restarts():
    trainer, rates = make_trainer(NUMPY, nn.Scaled(nn.SGD(1e-3))), []
    look = [nn.RateLog(), lambda trainer, row: rates.append(row["rate"])]
    for _ in range(2):
        plateau = nn.ReduceOnPlateau(patience=2, factor=0.5)
        watching(trainer, [1.0, 1.0, 1.0, 1.0], plateau, *look)
    expected = [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(rates, 1e-3 * np.array(expected), rtol=1e-6)


class Counting(nn.Callback):
    """Count the epochs of a run; at its end restore the weights of the first."""

    def __init__(self, inner=None):
        self.inner, self.counts = inner, []

    def epoch(self, trainer, row):
        memory = trainer.memory(self)
        memory["epochs"] = memory.get("epochs", 0) + 1
        if memory["epochs"] == 1:
            trainer.keep(self)
        self.counts.append(memory["epochs"])
        return None if self.inner is None else self.inner.epoch(trainer, row)

    def end(self, trainer, complete):
        if complete:
            trainer.restore(self)


def test_custom_callbacks_and_callbacks_that_they_call_have_memory(backend, tmp_path):
    trainer, first = make_trainer(backend), []
    first_counter = Counting(nn.EarlyStopping(patience=3))
    second_counter = Counting(Counting())
    save = nn.Checkpoint(tmp_path / "a")
    keep_first = [lambda trainer, row: first.append(carry_of(trainer))]
    look = [*keep_first, first_counter, second_counter, save]
    with pytest.raises(OSError, match="full"):
        watching(trainer, [1.0, 2.0], *look, failing_at(2))
    loaded = nn.Trainer.load(tmp_path / "a", backend)
    for resumed in (trainer, loaded):
        stopping = Counting(nn.EarlyStopping(patience=3))
        nested = Counting(Counting())
        # the patience of the inner callback was 1 epoch shorter
        assert watching(resumed, [3.0, 4.0, 5.0], stopping, nested) == 2
        assert stopping.counts == nested.counts == nested.inner.counts == [3, 4]
        assert_same_bits(carry_of(resumed), first[0])
        watching(resumed, [1.0], stopping, nested)
        assert stopping.counts == [3, 4, 1]


def test_the_memory_of_callbacks_is_available_only_during_fit():
    trainer, counting = make_trainer(NUMPY, None), Counting()
    trainer.build((4,))
    for call in (trainer.memory, trainer.keep, trainer.restore):
        with pytest.raises(RuntimeError, match="only while `fit` is running"):
            call(counting)
    trainer.keep("mine")
    watching(trainer, [1.0], counting)
    trainer.restore("mine")


def test_a_fit_inside_a_callback_is_a_separate_run():
    trainer, outer, inner = make_trainer(NUMPY), Counting(), Counting()

    def train_more(trainer, row):
        if row["epoch"] == 2:
            watching(trainer, [1.0, 1.0], inner)

    watching(trainer, [1.0, 1.0, 1.0], outer, train_more, outer)
    assert inner.counts == [1, 2]
    assert outer.counts == [1, 1, 2, 2, 3, 3], "listed twice, it has two memories"
    assert trainer._memory is None


# --- logs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        (nn.SGD(0.25), [0.25, 0.25]),
        (nn.SGD(nn.schedules.ExponentialDecay(1.0, 0.5)), [0.25, 2.0**-5]),
        (nn.Accumulate(nn.SGD(nn.schedules.ExponentialDecay(1.0, 0.5)), 3), [1.0, 0.5]),
        (nn.ClipByGlobalNorm(nn.Scaled(nn.Adam(0.5))), [0.5, 0.5]),
        (nn.Muon(nn.schedules.ExponentialDecay(1.0, 0.5)), [0.25, 2.0**-5]),
    ],
)
def test_the_rate_is_that_of_the_epochs_last_step(backend, optimizer, rates):
    trainer = make_trainer(backend, optimizer)
    history = trainer.fit(X, LABELS, epochs=2, callbacks=[nn.RateLog()], **OPTIONS)
    np.testing.assert_allclose(history["rate"], rates, rtol=1e-6)


def test_an_optimizer_with_several_rates_has_no_rate_log(backend):
    trainer = make_trainer(backend, nn.Parts((("bias", nn.SGD(0.1)),), rest=nn.Adam()))
    with pytest.raises(
        TypeError, match="RateLog needs an optimizer with one rate, got Parts"
    ):
        trainer.fit(X, LABELS, callbacks=[nn.RateLog()], **OPTIONS)


def at(epoch):
    return SimpleNamespace(epoch=epoch, notes={})


def test_a_csv_log_has_one_row_per_epoch_even_after_a_crash(tmp_path):
    path = tmp_path / "log.csv"
    log = nn.CSVLog(path)
    log.begin(at(0))
    for epoch in (1, 2, 3):
        log.epoch(at(epoch), {"epoch": epoch, "loss": 1 / epoch, "note": "a, b"})
        assert len(path.read_text().splitlines()) == 1 + epoch, "written at once"
    with path.open("a") as file:
        file.write("4,0.25")  # cut off
    log.begin(at(2))
    log.epoch(at(3), {"epoch": 3, "loss": 0.5, "note": ""})
    with path.open(newline="") as file:
        assert [*csv.reader(file)] == [
            ["epoch", "loss", "note"],
            ["1", "1.0", "a, b"],
            ["2", "0.5", "a, b"],
            ["3", "0.5", ""],
        ]
    with path.open("a") as file:
        file.write("4,0.25\r\n")
    log.begin(at(4))
    assert path.read_text().splitlines()[-1] == "3,0.5,", (
        "rows after the last epoch are dropped"
    )
    log.begin(at(0))
    log.epoch(at(1), {"epoch": 1, "other": 7})
    assert path.read_text().split() == ["epoch,other", "1,7"]
    assert os.listdir(tmp_path) == ["log.csv"]


def test_a_csv_log_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n1,0.5\n")
    log = nn.CSVLog(path)
    log.begin(at(1))
    with pytest.raises(
        ValueError, match="has the columns epoch, loss, but an epoch reports epoc"
    ):
        log.epoch(at(2), {"epoch": 2, "accuracy": 1.0})
    path.write_text("name,price\nx,1\n")
    with pytest.raises(
        ValueError, match="is not a log of epochs: its columns are name, price"
    ):
        log.begin(at(1))
    assert path.read_text() == "name,price\nx,1\n"


def events(folder):
    """Yield the (step, name, value) that TensorBoard would read."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events*")):
        raw = path.read_bytes()
        while raw:  # length, its checksum, the record, its checksum
            length = int.from_bytes(raw[:8], "little")
            event = Event.FromString(raw[12 : 12 + length])
            yield from (
                (event.step, v.tag, v.simple_value) for v in event.summary.value
            )
            raw = raw[16 + length :]


def test_a_tensorboard_log_holds_the_numbers_of_each_epoch(backend, tmp_path):
    pytest.importorskip(
        "tensorboardX", reason="the extra `tensorboard` is not installed"
    )
    before = threading.active_count()
    trainer = make_trainer(backend)
    log = nn.TensorBoardLog(tmp_path)
    history = trainer.fit(X, LABELS, epochs=2, callbacks=[log], **OPTIONS)
    result = {(step, name): value for step, name, value in events(tmp_path)}
    assert {step for step, _ in result} == {1, 2}
    assert {name for _, name in result} == {"steps", "loss", "accuracy", "seconds"}
    losses = [result[1, "loss"], result[2, "loss"]]
    np.testing.assert_allclose(losses, history["loss"], rtol=1e-6)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(X, LABELS, callbacks=[log, lambda *_: 1 / 0], **OPTIONS)
    # the thread of its queue ends a little later
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_tensorboard_log_is_closed_however_fit_ends(backend, tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, step))

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    monkeypatch.setitem(
        sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer)
    )
    trainer = make_trainer(backend)
    log = nn.TensorBoardLog(tmp_path)
    trainer.fit(X, LABELS, callbacks=[log], **OPTIONS)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(X, LABELS, callbacks=[log, lambda *_: 1 / 0], **OPTIONS)
    names = ("steps", "loss", "accuracy", "seconds")
    expected = [[*((name, i) for name in names), "flush", "close"] for i in (1, 2)]
    assert calls == [(str(tmp_path), 1), *expected[0], (str(tmp_path), 2), *expected[1]]


def test_the_error_without_tensorboardx_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'agnostic-nn\[tensorboard\]'"):
        nn.TensorBoardLog("anywhere").begin(at(0))


# --- averaged weights -----------------------------------------------------------------


def test_predict_and_evaluate_can_use_the_average_of_the_weights(backend):
    trainer = make_trainer(
        backend, nn.ClipByGlobalNorm(nn.Average(nn.SGD(0.5), decay=0.9), 1e6)
    )
    trainer.build((4,))
    np.testing.assert_array_equal(trainer.predict(X, averaged=True), trainer.predict(X))
    history = []
    for _ in range(5):
        trainer.step(X, LABELS)
        history.append(backend.to_numpy(trainer.params))
    shares = 0.9 ** np.arange(4, -1, -1)
    mean = tree_map(lambda *steps: np.average(steps, axis=0, weights=shares), *history)
    expected = X @ mean["weight"] + mean["bias"]
    np.testing.assert_allclose(
        trainer.predict(X, averaged=True), expected, rtol=1e-5, atol=1e-6
    )
    assert np.max(np.abs(trainer.predict(X) - expected)) > 1e-3
    loss, _ = nn.softmax_cross_entropy(expected.astype("float32"), LABELS)
    result = trainer.evaluate(X, LABELS, averaged=True)
    assert result["loss"] == pytest.approx(float(loss), rel=1e-5)
    plain = make_trainer(backend)
    plain.build((4,))
    with pytest.raises(TypeError, match=r"an optimizer such as nn\.Average"):
        plain.predict(X, averaged=True)
