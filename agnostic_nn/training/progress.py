"""Progress: a bar per epoch on the terminal, drawn by rich on the error stream."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "progress"]

_PAUSE = 0.1  # seconds: a bar that is drawn after every step would cost more than a small step


class Progress:
    """What a training loop tells; this one is silent."""

    def begin(self, title: str, count: int | None, done: int = 0) -> None:
        """A stretch of `count` steps starts, if that is known, `done` of them already behind."""

    def advance(self, done: int, loss: float) -> None:
        """`done` steps are behind."""

    def finish(self, row: dict[str, Any]) -> None:
        """The stretch is over and reported this."""


class _Bars(Progress):
    def __init__(self, bars: Any) -> None:
        self._bars, self._task, self._next, self._done = bars, None, 0.0, 0

    def begin(self, title, count, done=0):
        self._task = self._bars.add_task(title, total=count, completed=done, said="")

    def advance(self, done, loss):
        now, self._done = time.monotonic(), done
        if now >= self._next:
            self._next = now + _PAUSE
            self._bars.update(self._task, completed=done, said=f"loss {loss:.4g}")

    def finish(self, row):
        said = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
        total = self._bars.tasks[-1].total
        total = self._done if total is None else total
        self._bars.update(self._task, completed=total, total=total, said=said)


@contextmanager
def progress(shown: bool) -> Iterator[Progress]:
    """A `Progress` that draws bars if it is to be `shown`."""
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
        TextColumn("{task.fields[said]}"),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 120  # a file has no width to fit into
    with Bars(*columns, console=console) as bars:
        yield _Bars(bars)
