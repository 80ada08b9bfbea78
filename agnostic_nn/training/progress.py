"""Progress of a training run: bars drawn by rich, one per epoch, or plain lines.

On a terminal the bars are drawn on the error stream. In a notebook they are one output
of the cell, updated in place through IPython's display protocol, which does not need
ipywidgets. If the error stream is a file or a pipe, or rich cannot be imported, each
epoch is a line.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

__all__ = ["Progress", "duration", "is_drawn", "progress"]

# Seconds between two updates: drawing a bar takes longer than a small step.
_TERMINAL_PAUSE = 0.1
_NOTEBOOK_PAUSE = 0.5  # each update is a message to the browser
_LINE_PAUSE = 30.0  # in an epoch that takes long
# bars shown during training; on a small terminal rich would cut off the newest
_ROWS = 20


class Progress:
    """Receives reports of a training loop; this base class ignores them.

    remark: called when a bar is drawn; its text follows the time left, in place of the
    speed and the loss.
    """

    remark: Callable[[], str] | None = None

    def begin(
        self, title: str, count: int | None, done: int = 0, later: int = 0
    ) -> None:
        """Begin a bar for `count` steps (None: unknown), of which `done` are done.

        later: steps of the bars after this one, which count in the time left.
        """

    def advance(
        self,
        done: int,
        loss: float,
        results: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Report that `done` steps are complete, the last of them with this `loss`.

        results: returns the numbers to show instead, by name.
        """

    def finish(self, row: dict[str, Any]) -> None:
        """End the bar and report the results, by name."""


class _Timed(Progress):
    """Measures the steps per second of a bar, and estimates the time left."""

    def __init__(self) -> None:
        self._title = ""
        self._count: int | None = None
        self._later = 0
        self._first = 0
        self._done = 0
        self._started = 0.0
        self._seconds = 0.0

    def begin(
        self, title: str, count: int | None, done: int = 0, later: int = 0
    ) -> None:
        self._title = title
        self._count = count
        self._later = later
        self._first = self._done = done
        self._started = time.monotonic()
        self._seconds = 0.0

    def _note(self, done: int) -> float:
        """Store that `done` steps are complete now; return the time."""
        now = time.monotonic()
        self._done = done
        self._seconds = now - self._started
        return now

    def _speed(self) -> list[str]:
        """Return the steps per second as text, or nothing before the first step."""
        if not self._seconds:
            return []
        speed = (self._done - self._first) / self._seconds
        return [f"{speed:,.0f} steps/s" if speed >= 100 else f"{speed:.3g} steps/s"]

    def _time_left(self) -> list[str]:
        """Return the estimated time left as text, if the number of steps is known."""
        steps = self._done - self._first
        if self._count is None or not steps:
            return []
        remaining = self._count - self._done + self._later
        return [f"{duration(remaining * self._seconds / steps)} left"]


def duration(seconds: float) -> str:
    """Return a time as text, such as "12 s", "3:05 min" or "2:10 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02} h"


class _Lines(_Timed):
    """Prints a line for each bar when it ends, and one now and then before."""

    def __init__(self) -> None:
        super().__init__()
        self._next_line = 0.0

    def begin(
        self, title: str, count: int | None, done: int = 0, later: int = 0
    ) -> None:
        super().begin(title, count, done, later)
        self._next_line = self._started + _LINE_PAUSE

    def advance(
        self,
        done: int,
        loss: float,
        results: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        now = self._note(done)
        if now >= self._next_line:
            self._next_line = now + _LINE_PAUSE
            numbers = {"loss": loss} if results is None else results()
            self._print(self._count, [*self._time_left(), *self._speed()], numbers)

    def finish(self, row: dict[str, Any]) -> None:
        self._print(self._count or self._done, self._speed(), row)

    def _print(
        self, count: int | None, texts: list[str], numbers: dict[str, Any]
    ) -> None:
        of_all = "" if count is None else f"/{count}"
        parts = [self._title, f"{self._done}{of_all} steps", *texts, _listed(numbers)]
        print("  ".join(parts), file=sys.stderr, flush=True)


class _Bars(_Timed):
    """Draws bars with a `rich.progress.Progress`."""

    pause = _TERMINAL_PAUSE

    def __init__(self, bars: Any) -> None:
        super().__init__()
        self._bars = bars
        self._task = None
        self._next_update = 0.0

    def begin(
        self, title: str, count: int | None, done: int = 0, later: int = 0
    ) -> None:
        super().begin(title, count, done, later)
        self._task = self._bars.add_task(title, total=count, completed=done, text="")
        for old in self._bars.tasks[-_ROWS - 1 : -_ROWS]:
            self._bars.update(old.id, visible=False)

    def advance(
        self,
        done: int,
        loss: float,
        results: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        now = self._note(done)
        if now >= self._next_update:
            self._next_update = now + self.pause
            if self.remark is None:
                numbers = {"loss": loss} if results is None else results()
                texts = [*self._time_left(), *self._speed(), _listed(numbers)]
            else:
                texts = [*self._time_left(), self.remark()]
            self._bars.update(self._task, completed=done, text="  ".join(texts))
            self.draw()

    def finish(self, row: dict[str, Any]) -> None:
        speed = self._speed() if self.remark is None else []
        text = "  ".join([*speed, _listed(row)])
        total = self._bars.tasks[-1].total
        if total is None:
            total = self._done
        self._bars.update(self._task, completed=total, total=total, text=text)

    def close(self) -> None:
        """Show all bars as the final output, including those of early epochs."""
        for task in self._bars.tasks:
            self._bars.update(task.id, visible=True)
        self.draw()

    def draw(self) -> None:
        """Draw the bars; on a terminal a thread of rich does that instead."""


class _NotebookBars(_Bars):
    """The same bars as the output of a notebook cell, updated in place."""

    pause = _NOTEBOOK_PAUSE

    def __init__(self, bars: Any) -> None:
        from IPython.display import display

        super().__init__(bars)
        show: Callable[..., Any] = display  # IPython has no type hints
        self._output = show({"text/plain": ""}, raw=True, display_id=True)

    def draw(self) -> None:
        console = self._bars.console
        with console.capture() as captured:
            console.print(self._bars.get_renderable())
        self._output.update({"text/plain": captured.get().rstrip()}, raw=True)


def _listed(numbers: dict[str, Any]) -> str:
    """Return the floats among `numbers` with their names, on one line."""
    return "  ".join(f"{k} {v:.4g}" for k, v in numbers.items() if isinstance(v, float))


def is_drawn() -> bool:
    """Return whether bars can be drawn: with rich, on a terminal or in a notebook."""
    try:
        from rich.console import Console
    except ImportError:
        return False
    console = Console(stderr=True)
    return console.is_jupyter or console.is_terminal


@contextmanager
def progress(is_shown: bool, *, is_short: bool = False) -> Iterator[Progress]:
    """Yield a `Progress` that shows bars or lines if `is_shown`, otherwise nothing.

    is_short: draw short bars, which leave more of a line to their titles.
    """
    if not is_shown:
        yield Progress()
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as Bars
    except ImportError:
        yield _Lines()
        return

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=4 if is_short else 24),
        MofNCompleteColumn(),
        *([] if is_short else [TimeElapsedColumn()]),
        TextColumn("{task.fields[text]}"),
    ]
    if Console().is_jupyter:
        # The bars are not started: rich would look
        # for ipywidgets and warn if it is missing.
        console = Console(
            file=StringIO(), width=120, force_jupyter=False, color_system=None
        )
        yield from _drawn(_NotebookBars(Bars(*columns, console=console)))
        return
    console = Console(stderr=True, force_jupyter=False)
    if not console.is_terminal:
        yield _Lines()
        return
    with Bars(*columns, console=console) as bars:
        yield from _drawn(_Bars(bars))


def _drawn(bars: _Bars) -> Iterator[Progress]:
    try:
        yield bars
    finally:
        bars.close()
