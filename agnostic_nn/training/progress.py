"""Progress bars of a training run, one per epoch, drawn by rich.

On a terminal the bars are drawn on the error stream. In a notebook they are one output
of the cell, updated in place through IPython's display
protocol, which does not need ipywidgets.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

__all__ = ["Progress", "progress"]

# Seconds between two updates: drawing a bar takes longer than a small step.
_TERMINAL_PAUSE = 0.1
_NOTEBOOK_PAUSE = 0.5  # each update is a message to the browser
# bars shown during training; on a small terminal rich would cut off the newest
_ROWS = 20


class Progress:
    """Receives reports of a training loop; this base class ignores them."""

    def begin(self, title: str, count: int | None, done: int = 0) -> None:
        """Begin a bar for `count` steps (None: unknown), of which `done` are done."""

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


class _Bars(Progress):
    """Draws bars with a `rich.progress.Progress`."""

    pause = _TERMINAL_PAUSE

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task = None
        self._next_update = 0.0
        self._done = 0

    def begin(self, title: str, count: int | None, done: int = 0) -> None:
        self._task = self._bars.add_task(title, total=count, completed=done, text="")
        for old in self._bars.tasks[-_ROWS - 1 : -_ROWS]:
            self._bars.update(old.id, visible=False)

    def advance(
        self,
        done: int,
        loss: float,
        results: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self._done = done
        now = time.monotonic()
        if now >= self._next_update:
            self._next_update = now + self.pause
            numbers = {"loss": loss} if results is None else results()
            self._bars.update(self._task, completed=done, text=_listed(numbers))
            self.draw()

    def finish(self, row: dict[str, Any]) -> None:
        text = _listed(row)
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


@contextmanager
def progress(is_shown: bool) -> Iterator[Progress]:
    """Yield a `Progress` that draws bars if `is_shown`, and otherwise does nothing."""
    if not is_shown:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
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
        console.width = 120  # for a file rich would assume 80 columns
    with Bars(*columns, console=console) as bars:
        yield from _drawn(_Bars(bars))


def _drawn(bars: _Bars) -> Iterator[Progress]:
    try:
        yield bars
    finally:
        bars.close()
