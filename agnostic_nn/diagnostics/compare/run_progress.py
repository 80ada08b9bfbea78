"""Progress of a comparison: which run it is, and how long the run and the rest take."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from ...training.progress import Progress, duration, is_drawn, progress

__all__ = ["RunProgress", "run_progress"]


class RunProgress(Progress):
    """Names each run, and estimates the time left of all runs.

    A later run is taken to last as long as the mean of the runs that have finished, or
    as the reference as long as none has.

    bars: draws the progress of each training. write: receives a line when a run begins
    and when it has finished.
    """

    def __init__(
        self,
        bars: Progress | None = None,
        write: Callable[[str], object] = lambda line: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._bars = bars or Progress()
        self._write = write
        self._clock = clock
        self._label = ""
        self._runs_left = 0  # after the one that is running
        self._reference_seconds: float | None = None
        self._seconds: list[float] = []  # of the runs that have finished
        self._run_began = 0.0
        self._training_began = 0.0
        self._steps = 0
        self._done = 0
        self._bars.remark = self._all_left

    # --- called for each run

    def begin_reference(self, name: str, runs_left: int) -> None:
        """Report that the reference, called `name`, begins."""
        self._begin_run(f"reference ({name})", runs_left)

    def begin_run(self, number: int, total: int, name: str) -> None:
        """Report that run `number` of `total` begins."""
        self._begin_run(f"run {number} of {total}: {name}", total - number)

    def _begin_run(self, label: str, runs_left: int) -> None:
        self._label = label
        self._runs_left = runs_left
        self._run_began = self._clock()
        self._write(f"{label} begins")

    def end_reference(self) -> None:
        """Report that the reference is trained."""
        self._reference_seconds = self._clock() - self._run_began
        self._end_run("has finished", self._reference_seconds)

    def end_run(self, outcome: str) -> None:
        """Report that a run has finished, with its outcome in words."""
        self._seconds.append(self._clock() - self._run_began)
        self._end_run(outcome, self._seconds[-1])

    def _end_run(self, outcome: str, seconds: float) -> None:
        line = f"{self._label} {outcome}, after {duration(seconds)}"
        later = self._later()
        if self._runs_left and later is not None:
            runs = "run" if self._runs_left == 1 else f"{self._runs_left} runs"
            line += f"; about {duration(later)} for the other {runs}"
        self._write(line)

    # --- called by each training in a run, of which control runs are some

    def begin(
        self, title: str, count: int | None, done: int = 0, later: int = 0
    ) -> None:
        self._steps = count or 0
        self._done = done
        self._training_began = self._clock()
        title = f"{self._label}, {title}" if title else self._label
        self._bars.begin(title, count, done, later)

    def advance(
        self,
        done: int,
        loss: float,
        results: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self._done = done
        self._bars.advance(done, loss, results)

    def finish(self, row: dict[str, Any]) -> None:
        self._bars.finish(row)

    # --- estimates

    def _later(self, reference_seconds: float | None = None) -> float | None:
        """Return the estimated seconds of all later runs, if anything is known."""
        if self._seconds:
            return self._runs_left * sum(self._seconds) / len(self._seconds)
        seconds = self._reference_seconds or reference_seconds
        return None if seconds is None else self._runs_left * seconds

    def _all_left(self) -> str:
        """Describe the time left of all runs; "" if it is not known."""
        if not self._done or not self._steps:
            return ""
        elapsed = self._clock() - self._training_began
        whole = elapsed / self._done * self._steps
        later = self._later(whole)
        if not self._runs_left or later is None:
            return ""
        return f"all about {duration(whole - elapsed + later)}"


@contextmanager
def run_progress(is_shown: bool) -> Iterator[RunProgress]:
    """Yield a progress that is drawn, if `is_shown`, on the error stream.

    On a terminal and in a notebook there is a bar for each training. Elsewhere, such as
    in the log of a build, there is a line when a run begins and when it has finished.
    """
    bars_shown = is_shown and is_drawn()
    with progress(bars_shown, is_short=True) as bars:
        if is_shown and not bars_shown:
            yield RunProgress(bars, _write_line)
        else:
            yield RunProgress(bars)


def _write_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
