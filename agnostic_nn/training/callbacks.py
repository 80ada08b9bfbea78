"""Callbacks: what happens between the epochs of a `fit`, at the user's wish.

A callback is a value like a layer: its fields say what it does, and what it has to
remember it keeps in the trainer, which saves it. So training resumed from a checkpoint
goes on as if it had never stopped. They are called in the order of the list: one that
adds to the row of an epoch comes before one that writes it down, and `Checkpoint` comes
last, or it saves what others remembered an epoch ago. See `Callback` for how long they
remember.
"""

import csv
import math
import os
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from io import StringIO
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from ..core.errors import (
    expect,
    expect_choice,
    expect_count,
    expect_flag,
    expect_function,
    expect_list,
    expect_number,
    expect_text,
)
from ..core.files import expect_path, expect_place, write_text
from ..optimizers import Rule, Scaled
from ..optimizers.base import nested_moments, nested_optimizers

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "RateLog",
    "ReduceOnPlateau",
    "TensorBoardLog",
    "as_callback",
    "as_callbacks",
    "expect_fields",
]


class Callback:
    """Base class with three hooks that do nothing; override the ones you need.

    What a hook raises ends `fit` with the trainer as it was.

    `trainer.memory(self)` is a dict of data for JSON in which a callback remembers something from
    epoch to epoch, `trainer.keep(self)` remembers the weights of now, and `trainer.restore(self)`
    goes back to them. All of it is saved with the trainer and belongs to one run of `fit`:

    - A run is over when `fit` returns after a whole epoch, which is when `end` gets `complete`
      true: then all of it is dropped, and the next `fit` starts afresh.
    - After an error, Ctrl-C, or `steps` that end within an epoch, the run is interrupted, and the
      next `fit` continues it. So does the first `fit` of a trainer that was saved during a run,
      such as by `Checkpoint`, or during an interruption, and is loaded or moved.
    - New weights from `Trainer.build` or `start_from` end an interrupted run.

    A callback gets what was remembered by the one of the same class and the same number among
    those of this class in the list: two `EarlyStopping` never share, and other classes may come
    and go. What should outlive a run belongs into `trainer.notes`, a dict of data for JSON, and
    under a name: `trainer.keep("name")`.
    """

    def begin(self, trainer: Any) -> None:
        """`fit` begins; of the data nothing has been seen yet."""

    def epoch(self, trainer: Any, row: dict[str, Any]) -> bool | None:
        """An epoch is complete and `row` is what it reports; may add to it. True ends `fit`.

        Of an epoch in which Ctrl-C came nothing is reported, not even if it was in its last step.
        """

    def end(self, trainer: Any, complete: bool) -> None:
        """`fit` ends; complete: whether after a whole epoch, and not by an error or Ctrl-C."""


@dataclass(frozen=True)
class _Plain(Callback):
    function: Callable

    def epoch(self, trainer, row):
        return self.function(trainer, row)


def as_callback(thing: Any) -> Callback:
    """A callback as it is, and a function (trainer, row) as what is asked after each epoch.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(thing, Callback):
        return thing
    if not callable(thing) or isinstance(thing, type):
        raise TypeError(f"expected a Callback or a function (trainer, row), got {thing!r}")
    expect_function("a callback", thing, "trainer, row")
    return _Plain(thing)


def as_callbacks(things: Any) -> list[Callback]:
    """Callbacks as `as_callback` makes them; raises TypeError unless `things` is a sequence."""
    expect_list("callbacks", things)
    return [as_callback(thing) for thing in things]


def expect_fields(trainer: Any, callbacks: list[Callback], fields: tuple[str, ...]) -> None:
    """Let callbacks refuse, before training, what the `fields` of an epoch's row do not allow.

    A custom callback may add a field to the row, so those after one are not checked for names.
    """
    known: tuple[str, ...] | None = fields
    for callback in callbacks:
        if isinstance(callback, _Checked):
            known = callback.expect(trainer, known)
        if type(callback).__module__ != __name__ or isinstance(callback, _Plain):
            known = None


class _Checked(Callback):
    """A callback that can say before training what it will refuse."""

    def expect(self, trainer: Any, fields: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Raise if this cannot work; return the fields of a row after this callback.

        fields: those that an epoch reports, or None if they are not known.
        """
        return fields


@dataclass(frozen=True)
class _Watching(_Checked):
    """Tracks the best value of a metric in a run, and the epochs since it improved."""

    _: KW_ONLY
    monitor: str = "validation_loss"
    mode: str = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        expect_text("monitor", self.monitor)
        expect_choice("mode", self.mode, ("min", "max"))
        expect_number("min_delta", self.min_delta, 0.0)

    def look(self, trainer: Any, row: dict[str, Any]) -> bool:
        """Whether the value is better than the best so far by more than `min_delta`."""
        self._expect_monitor(tuple(row))
        value = float(row[self.monitor])
        seen = self.seen(trainer)
        best = seen["best"]
        if best is None:
            better = not math.isnan(value)
        elif self.mode == "min":
            better = value < best - self.min_delta
        else:
            better = value > best + self.min_delta
        if better:
            seen["best"] = value
        seen["waited"] = 0 if better else seen["waited"] + 1
        return better

    def expect(self, trainer, fields):
        if fields is not None:
            self._expect_monitor(fields)
        return fields

    def _expect_monitor(self, fields: tuple[str, ...]) -> None:
        if self.monitor not in fields:
            name, remedy = type(self).__name__, ""
            if self.monitor.startswith("validation_") and "validation_loss" not in fields:
                remedy = ": pass validation=(x, target) to fit, or monitor='loss'"
            raise ValueError(
                f"{name} monitors {self.monitor!r}, but an epoch reports "
                f"{', '.join(fields)}{remedy}"
            )

    def seen(self, trainer: Any) -> dict[str, Any]:
        """Return what is remembered: the best value and the wait, of this metric alone."""
        memory = trainer.memory(self)
        watched = {"monitor": self.monitor, "mode": self.mode}
        best, waited = memory.get("best"), memory.get("waited")
        # a file may say anything
        sound = isinstance(best, int | float | None) and isinstance(waited, int)
        if not sound or any(memory.get(name) != value for name, value in watched.items()):
            memory.clear()
            memory.update(watched, best=None, waited=0)
        return memory


@dataclass(frozen=True)
class EarlyStopping(_Watching):
    """End `fit` when a value has not become better for `patience` epochs.

    monitor: what an epoch reports, such as "validation_accuracy". mode: "min" if less is
    better, "max" if more is. Better is what differs by more than `min_delta`; NaN never is.

    With `restore`, when `fit` ends after a whole epoch, also because there were no more,
    parameters, state and moments are those of the best one of this run; steps and epochs stay
    counted. After an error or Ctrl-C they are the last ones, so that training can go on. A
    `Checkpoint` has saved the last ones too: for the best, save the trainer after `fit`, or use
    `Checkpoint(best=True)`.
    """

    patience: int = 10
    _: KW_ONLY
    restore: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("patience", self.patience)
        expect_flag("restore", self.restore)

    def epoch(self, trainer, row):
        if self.look(trainer, row):
            self.seen(trainer)["kept"] = self.restore
            if self.restore:
                trainer.keep(self)
        stop = self.seen(trainer)["waited"] >= self.patience
        if stop:  # whoever resumes from here nevertheless wants some epochs
            self.seen(trainer)["waited"] = 0
        return stop

    def end(self, trainer, complete):
        if complete and self.restore and self.seen(trainer).get("kept") is True:
            trainer.restore(self)


@dataclass(frozen=True)
class ReduceOnPlateau(_Watching):
    """Multiply the scale of a `Scaled` optimizer by `factor` whenever a value stops improving.

    That is when it has not become better for `patience` epochs, as `EarlyStopping` has it;
    then the wait begins again. The scale stays at `min_scale` or above.

    The scale is among the optimizer's moments, as momentum and the step of a schedule are, and so
    outlives the run: the next `fit` begins with it, but with a best value and a wait of its own.
    `trainer.start_from(trainer.params, trainer.state)` begins with a scale of 1, and other moments
    as at the start.
    """

    patience: int = 10
    _: KW_ONLY
    factor: float = 0.1
    min_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("patience", self.patience)
        inside = isinstance(self.factor, float) and 0.0 < self.factor < 1.0
        expect(inside, "expected a factor in (0, 1), got {}", self.factor)
        expect_number("min_scale", self.min_scale, 0.0, 1.0)

    def begin(self, trainer):
        if trainer.shape is not None:
            self._expect_scaled(trainer)

    def epoch(self, trainer, row):
        self._expect_scaled(trainer)
        self.look(trainer, row)
        if self.seen(trainer)["waited"] < self.patience:
            return
        self.seen(trainer)["waited"] = 0
        trainer.moments = self._lowered(trainer.backend, trainer.moments)

    def _lowered(self, backend: Any, moments: Any) -> Any:
        """Return the moments with the scale of the outermost `Scaled` lowered."""
        outermost, *_ = Scaled.scales(moments)
        scale = backend.to_numpy(outermost)
        lower = np.asarray(max(float(scale) * self.factor, self.min_scale), scale.dtype)
        return Scaled.with_scale(moments, backend.asarray(lower))

    def _expect_scaled(self, trainer: Any) -> None:
        if not Scaled.scales(trainer.moments):
            raise TypeError(
                "ReduceOnPlateau needs an optimizer whose steps can be scaled, such as "
                f"nn.Scaled(nn.Adam()), got {trainer.optimizer!r}"
            )


@dataclass(frozen=True)
class Checkpoint(_Watching):
    """Save the trainer after every `every`-th epoch, or only if a value is the best so far.

    path: where; "{epoch}" and other fields of the row in it, such as "{loss:.3f}", make a
    file for each. The old file is whole until the new one is. With `best`, those of the
    `every`-th epochs are saved in which `monitor` is better than in those of this run before.
    """

    path: str = "checkpoint.safetensors"
    every: int = 1
    best: bool = False

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        every: int = 1,
        best: bool = False,
        monitor: str = "validation_loss",
        mode: str = "min",
        min_delta: float = 0.0,
    ) -> None:
        given = {
            "monitor": monitor,
            "mode": mode,
            "min_delta": min_delta,
            "path": expect_path("path", path),
        }
        for name, value in (given | {"every": every, "best": best}).items():
            object.__setattr__(self, name, value)
        super().__post_init__()
        expect_count("every", every)
        expect_flag("best", best)
        self._names()

    def expect(self, trainer, fields):
        if self.best and fields is not None:
            self._expect_monitor(fields)
        names = self._names()
        unknown = [name for name in names if fields is not None and name not in fields]
        if unknown:
            raise ValueError(
                f"the path {self.path} has a field {unknown[0]!r}, but an epoch reports "
                f"{', '.join(fields)}"
            )
        if fields is not None or not names:
            counted = dict.fromkeys(("epoch", "steps"), 1)
            try:
                path = self.path.format(**dict.fromkeys(names, 1.0) | counted)
            except (ValueError, TypeError, AttributeError, LookupError) as error:
                raise ValueError(f"the path {self.path} cannot be formatted: {error}") from None
            expect_place(path)
        return fields

    def _names(self) -> list[str]:
        """The fields in the path; raises ValueError if there is one that has no name."""
        try:
            found = [name for _, name, *_ in Formatter().parse(self.path) if name is not None]
        except ValueError as error:
            raise ValueError(f"the path {self.path} is not a format: {error}") from None
        names = [re.split(r"[.\[]", name)[0] for name in found]
        if not all(name.isidentifier() for name in names):
            raise ValueError(
                f"expected fields with names in the path, such as {{epoch}}, got {self.path}"
            )
        return names

    def epoch(self, trainer, row):
        due = row["epoch"] % self.every == 0
        if due and (not self.best or self.look(trainer, row)):
            trainer.save(self.path.format(**row))


@dataclass(frozen=True)
class RateLog(_Checked):
    """Add the learning rate of the epoch's last step to the row, as "rate"."""

    def expect(self, trainer, fields):
        return None if fields is None else (*fields, "rate")

    def epoch(self, trainer, row):
        to_numpy = trainer.backend.to_numpy
        scales = [float(to_numpy(scale)) for scale in Scaled.scales(trainer.moments)]
        *_, optimizer = nested_optimizers(trainer.optimizer)
        rate = getattr(optimizer, "rate", None)
        if rate is None:
            raise TypeError(f"RateLog finds no one rate in {trainer.optimizer!r}")
        if callable(rate):
            *_, moments = nested_moments(trainer.moments)
            # a custom optimizer need not be a Rule; it counts its steps under the same name
            is_rule = isinstance(optimizer, Rule)
            steps = optimizer.steps_taken(moments) if is_rule else moments["step"]
            last = max(int(to_numpy(steps)) - 1, 0)
            rate = float(rate(np.asarray(last, trainer.dtype)))
        row["rate"] = math.prod(scales) * rate


@dataclass(frozen=True)
class CSVLog(_Checked):
    """Write the row of each epoch to a file of comma-separated values, on the disk at once.

    A trainer that has epochs behind it goes on with the file; rows of epochs that it has
    not reached yet, left by a run that was cut off, are dropped. A new trainer begins anew.

    Raises
    ------
    ValueError
        From `fit`, if the file has other columns than the epoch reports.
    """

    path: str

    def __init__(self, path: str | os.PathLike) -> None:
        object.__setattr__(self, "path", expect_path("path", path))

    def expect(self, trainer, fields):
        expect_place(self.path)
        head, rows = self._reached(trainer)
        if rows and fields is not None:
            self._expect_columns(head, fields)
        return fields

    def begin(self, trainer):
        head, rows = self._reached(trainer)
        if head:
            text = StringIO()
            csv.writer(text).writerows([head, *rows] if rows else [])
            write_text(self.path, text.getvalue())

    def _expect_columns(self, head, fields) -> None:
        if head != list(fields):
            raise ValueError(
                f"{self.path} has the columns {', '.join(head)}, but an epoch reports "
                f"{', '.join(fields)}"
            )

    def _reached(self, trainer) -> tuple[list[str], list[list[str]]]:
        """The head of the file, and its rows of epochs that the trainer has reached."""
        path = Path(self.path)
        if not path.exists():
            return [], []
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = [*csv.reader(file)] or [["epoch"]]
        if "epoch" not in head:
            raise ValueError(f"{path} is no log of epochs: its columns are {', '.join(head)}")
        place = head.index("epoch")

        def reached(row: list[str]) -> bool:
            whole = len(row) == len(head) and row[place].isdecimal()
            return whole and int(row[place]) <= trainer.epoch

        return head, [row for row in rows if reached(row)]

    def epoch(self, trainer, row):
        with Path(self.path).open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            head = next(csv.reader(file), None)
            if head is None:
                csv.writer(file).writerow(row)
            else:
                self._expect_columns(head, list(row))
            csv.writer(file).writerow(row.values())


@dataclass
class TensorBoardLog(_Checked):
    """Write the numbers of each epoch to `folder` for TensorBoard, by tensorboardX.

    Resumed, it drops what an earlier run wrote of epochs that the trainer has not reached.

    Raises
    ------
    ImportError
        From `fit`, if tensorboardX is not installed.
    """

    folder: str
    _writer: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.folder = expect_path("folder", self.folder)

    def expect(self, trainer, fields):
        if Path(self.folder).exists() and not Path(self.folder).is_dir():
            raise NotADirectoryError(
                f"expected a folder for TensorBoard, but {self.folder} is a file"
            )
        return fields

    def begin(self, trainer):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"TensorBoardLog needs the package tensorboardX, which cannot be imported "
                f"({error}): pip install 'agnostic-nn[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(os.fspath(self.folder), purge_step=trainer.epoch + 1)

    def epoch(self, trainer, row):
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def end(self, trainer, complete):
        self._writer.close()
        self._writer = None
