"""Progress of a training run: a bar per epoch, drawn by rich.

On a terminal the bars are drawn on the error stream. In a notebook they are one output of the
cell, updated in place through IPython's display protocol; ipywidgets is not needed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

__all__ = ["Progress", "progress"]

# Seconds between two updates: drawing after every step would cost more than a small step.
_TERMINAL_PAUSE = 0.1
_NOTEBOOK_PAUSE = 0.5  # each update is a message to the browser
_ROWS = 20  # bars shown while training goes on; rich would cut off the newest on a small terminal


class Progress:
    """Receives what a training loop reports; this base class ignores all of it."""

    def begin(self, title: str, count: int | None, done: int = 0) -> None:
        """Start a stretch of `count` steps (None: unknown), `done` of which are complete."""

    def advance(self, done: int, loss: float) -> None:
        """Report that `done` steps of the stretch are complete, and the mean loss so far."""

    def finish(self, row: dict[str, Any]) -> None:
        """End the stretch and report its results, name by name."""


class _Bars(Progress):
    """Draws each stretch as one bar of a `rich.progress.Progress`."""

    pause = _TERMINAL_PAUSE

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task = None
        self._next_update = 0.0
        self._done = 0

    def begin(self, title, count, done=0):
        self._task = self._bars.add_task(title, total=count, completed=done, text="")
        for old in self._bars.tasks[-_ROWS - 1 : -_ROWS]:
            self._bars.update(old.id, visible=False)

    def advance(self, done, loss):
        self._done = done
        now = time.monotonic()
        if now >= self._next_update:
            self._next_update = now + self.pause
            self._bars.update(self._task, completed=done, text=f"loss {loss:.4g}")
            self.draw()

    def finish(self, row):
        text = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
        total = self._bars.tasks[-1].total
        if total is None:
            total = self._done
        self._bars.update(self._task, completed=total, total=total, text=text)

    def close(self) -> None:
        """Show all bars, those of early epochs too, as the final output."""
        for task in self._bars.tasks:
            self._bars.update(task.id, visible=True)
        self.draw()

    def draw(self) -> None:
        """Show the bars as they are now. On a terminal a thread of rich does that."""


class _NotebookBars(_Bars):
    """The same bars as the output of a notebook cell, updated in place."""

    pause = _NOTEBOOK_PAUSE

    def __init__(self, bars: Any) -> None:
        from IPython.display import display

        super().__init__(bars)
        self._output = display({"text/plain": ""}, raw=True, display_id=True)

    def draw(self):
        console = self._bars.console
        with console.capture() as captured:
            console.print(self._bars.get_renderable())
        self._output.update({"text/plain": captured.get().rstrip()}, raw=True)


@contextmanager
def progress(shown: bool) -> Iterator[Progress]:
    """Yield a `Progress` that draws bars if `shown` is true, and ignores everything otherwise."""
    if not shown:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    if Console().is_jupyter:
        # Never started: rich would look for ipywidgets and warn where there is none.
        console = Console(file=StringIO(), width=120, force_jupyter=False, color_system=None)
        yield from _drawn(_NotebookBars(Bars(*columns, console=console)))
        return
    console = Console(stderr=True, force_jupyter=False)
    if not console.is_terminal:
        console.width = 120  # a file has no width to fit into
    with Bars(*columns, console=console) as bars:
        yield from _drawn(_Bars(bars))


def _drawn(bars: _Bars) -> Iterator[Progress]:
    try:
        yield bars
    finally:
        bars.close()
