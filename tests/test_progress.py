"""Progress of a training: time left, speed and results, as bars or as lines."""

import sys
from contextlib import contextmanager
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress as RichBars
from rich.progress import TextColumn

import agnostic_nn as nn
from agnostic_nn.training import feed, progress, trainer

X = np.random.default_rng(0).standard_normal((20, 4)).astype("float32")
LABELS = np.arange(20) % 3


@pytest.fixture
def clock(monkeypatch):
    """A clock of the progress module that a test sets."""
    times = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[0])

    def set_time(seconds):
        times[0] = seconds

    return set_time


def make(backend):
    return nn.Trainer(
        nn.Dense(3), nn.softmax_cross_entropy, nn.SGD(0.1), backend=backend
    )


def test_lines_have_epoch_steps_time_left_speed_and_results(clock, capsys):
    lines = progress._Lines()
    lines.begin("epoch 1/3", 100, done=20, later=200)
    clock(29.0)
    lines.advance(60, 0.5)
    assert capsys.readouterr().err == ""
    clock(40.0)
    lines.advance(100, 0.5, lambda: {"loss": 0.75, "accuracy": 0.5})
    assert capsys.readouterr().err == (
        "epoch 1/3  100/100 steps  1:40 min left  2 steps/s  loss 0.75  accuracy 0.5\n"
    )
    clock(50.0)
    lines.finish({"epoch": 1, "loss": 0.7, "seconds": 50.0})
    assert capsys.readouterr().err == (
        "epoch 1/3  100/100 steps  2 steps/s  loss 0.7  seconds 50\n"
    )


def test_an_epoch_of_unknown_length_has_no_time_left(clock, capsys):
    lines = progress._Lines()
    lines.begin("epoch 1/1", None)
    clock(40.0)
    lines.advance(8000, 0.5)
    assert capsys.readouterr().err == ("epoch 1/1  8000 steps  200 steps/s  loss 0.5\n")
    lines.finish({"loss": 0.5})
    assert "8000/8000 steps" in capsys.readouterr().err


def test_bars_show_time_left_speed_and_results(clock):
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=200, color_system=None)
    with RichBars(TextColumn("{task.fields[text]}"), console=console) as rich_bars:
        bars = progress._Bars(rich_bars)
        bars.begin("epoch 1/1", 10)
        clock(2.0)
        bars.advance(4, 0.5, lambda: {"loss": 0.25})
    assert "3 s left  2 steps/s  loss 0.25" in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "expected"), [(59, "59 s"), (185.4, "3:05 min"), (7800, "2:10 h")]
)
def test_times_are_readable(seconds, expected):
    assert progress.duration(seconds) == expected


def test_without_rich_or_a_terminal_each_epoch_is_a_line(backend, capsys, monkeypatch):
    make(backend).fit(X, LABELS, epochs=2)
    first = capsys.readouterr()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    make(backend).fit(X, LABELS, epochs=2)
    second = capsys.readouterr()
    for output in (first, second):
        assert output.out == ""
        lines = output.err.splitlines()
        assert len(lines) == 2
        assert lines[1].startswith("epoch 2/2  1/1 steps  ")
        assert "  accuracy 0." in lines[1]


def test_steps_of_later_epochs_count_in_the_time_left(backend, monkeypatch):
    class Recorder(progress.Progress):
        def begin(self, title, count, done=0, later=0):
            bars.append((title, count, done, later))

        def advance(self, done, loss, results=None):
            numbers.append(results())

    @contextmanager
    def recorded(is_shown):
        yield Recorder()

    bars, numbers = [], []
    monkeypatch.setattr(trainer, "progress", recorded)
    monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 0)
    fitted = make(backend)
    fitted.fit(X, LABELS, batch_size=5, steps=1)
    fitted.fit(X, LABELS, batch_size=5, epochs=3)
    assert bars == [
        ("epoch 1/1", 4, 0, -3),
        *(("epoch 1/3", 4, 1, 8), ("epoch 2/3", 4, 0, 4), ("epoch 3/3", 4, 0, 0)),
    ]
    assert [list(results) for results in numbers] == [["loss", "accuracy"]] * 12
