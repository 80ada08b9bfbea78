"""Callbacks: code that `fit` calls between epochs and between steps.

A callback is a frozen dataclass like a layer: its fields are its options. It stores
what it remembers in the trainer, which saves it, so training resumed from a checkpoint
continues as if it had not stopped. Callbacks are called in the order of the list. One
that adds to the row of an epoch comes before one that writes the row, and `Checkpoint`
comes last: otherwise it saves what later callbacks remembered an epoch ago. See
`Callback` for how long they remember.
"""

import csv
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from io import StringIO
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar

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
from ..core.fields import set_fields
from ..core.files import expect_path, expect_place, write_text
from ..optimizers import Scaled
from .precision_policy import PrecisionPolicy
from .rates import rate_at
from .step_report import StepReport

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "LogTo",
    "RateLog",
    "ReduceOnPlateau",
    "TensorBoardLog",
    "as_callback",
    "as_callbacks",
    "expect_fields",
]


class Callback:
    """Base class with four hooks that do nothing; override the ones you need.

    An exception from a hook ends `fit` and leaves the trainer unchanged.

    `trainer.memory(self)` is a dict of JSON data in which a callback stores what it
    remembers from epoch to epoch. `trainer.keep(self)` keeps a copy of the current
    weights, and `trainer.restore(self)` restores it. All of it is saved with the
    trainer and belongs to one run of `fit`:

    - A run is over when `fit` returns after a complete epoch; `end` is then called with
      `complete` true. Its memory is dropped, and the next `fit` begins a new run.
    - After an error, Ctrl-C, or `steps` that end within an epoch, the run is
      interrupted, and the next `fit` continues it. So does the first `fit` of a trainer
      that was loaded from a checkpoint written during a run or an interruption, or
      moved by `to`.
    - New weights from `Trainer.build` or `start_from` end an interrupted run.

    A callback is identified by its class and by its index among the callbacks of this
    class in the list: two `EarlyStopping` never share memory, and callbacks of other
    classes may be added or removed. Store what should outlive a run in `trainer.notes`,
    a dict of JSON data, or under a name: `trainer.keep("name")`.

    On a backend that compiles loops, one call takes many steps. A callback that
    overrides `step` makes `fit` call each step separately, so that the trainer holds
    the state after the step that is reported. A class with the attribute
    `one_step_per_call = False`, such as `LogTo`, does not: it gets the reports of a
    call one after the other, when all its steps are done.
    """

    one_step_per_call: ClassVar[bool] = True

    def begin(self, trainer: Any) -> None:
        """Called when `fit` begins, before the first batch is read."""

    def step(self, trainer: Any, report: StepReport) -> None:
        """Called after each step, with its results.

        `report` has `number`, `loss`, `examples` and `seconds`, and, computed when they
        are read, `metrics` and `rate`: see `StepReport`. Steps that `Trainer.step`
        takes are not reported.
        """

    def epoch(self, trainer: Any, row: dict[str, Any]) -> bool | None:
        """Called after a complete epoch with its results; True ends `fit`.

        It may add to `row`. Not called for an epoch interrupted by Ctrl-C, even in its
        last step.
        """

    def end(self, trainer: Any, complete: bool) -> None:
        """Called when `fit` ends.

        complete: whether after a complete epoch, not by an error or Ctrl-C.
        """


# (trainer, row) -> whether to stop
CallbackFunction = Callable[[Any, dict[str, Any]], bool | None]


@dataclass(frozen=True)
class _FunctionCallback(Callback):
    """Calls a function (trainer, row) after each epoch."""

    function: CallbackFunction

    def epoch(self, trainer: Any, row: dict[str, Any]) -> bool | None:
        return self.function(trainer, row)


def as_callback(thing: Any) -> Callback:
    """Return a callback unchanged, and a function (trainer, row) as a callback.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(thing, Callback):
        return thing
    if not callable(thing) or isinstance(thing, type):
        raise TypeError(
            f"expected a Callback or a function (trainer, row), got {thing!r}"
        )
    expect_function("a callback", thing, "trainer, row")
    return _FunctionCallback(thing)


def as_callbacks(things: Any) -> list[Callback]:
    """Return `things` as a list; raise TypeError unless they are callbacks."""
    expect_list("callbacks", things)
    return [as_callback(thing) for thing in things]


def expect_fields(
    trainer: Any, callbacks: list[Callback], fields: tuple[str, ...]
) -> None:
    """Let callbacks raise before training if the `fields` of a row do not suit them.

    A custom callback may add fields to the row. The names that callbacks after it refer
    to are therefore not checked.
    """
    reported: tuple[str, ...] | None = fields
    for callback in callbacks:
        if isinstance(callback, _CheckedCallback):
            reported = callback.expect(trainer, reported)
        if type(callback).__module__ != __name__ or isinstance(
            callback, _FunctionCallback
        ):
            reported = None


class _CheckedCallback(Callback):
    """A callback that can raise before training begins."""

    def expect(
        self, trainer: Any, fields: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        """Raise if this cannot work; return the fields of a row after this callback.

        fields: those of the row before it, or None if they are not reported.
        """
        return fields


@dataclass(frozen=True)
class _Monitor(_CheckedCallback):
    """Tracks the best value of a metric in a run, and the epochs since it improved."""

    _: KW_ONLY
    monitor: str = "validation_loss"
    mode: str = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        expect_text("monitor", self.monitor)
        expect_choice("mode", self.mode, ("min", "max"))
        expect_number("min_delta", self.min_delta, 0.0)

    def record(self, trainer: Any, row: dict[str, Any]) -> bool:
        """Record the value of an epoch; return whether it improved by `min_delta`."""
        self._expect_monitor(tuple(row))
        value = float(row[self.monitor])
        memory = self.memory(trainer)
        best = memory["best"]
        if best is None:
            is_better = not math.isnan(value)
        elif self.mode == "min":
            is_better = value < best - self.min_delta
        else:
            is_better = value > best + self.min_delta
        if is_better:
            memory["best"] = value
        memory["waited"] = 0 if is_better else memory["waited"] + 1
        return is_better

    def expect(
        self, trainer: Any, fields: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        if fields is not None:
            self._expect_monitor(fields)
        return fields

    def _expect_monitor(self, fields: tuple[str, ...]) -> None:
        if self.monitor in fields:
            return
        remedy = ""
        if self.monitor.startswith("validation_") and "validation_loss" not in fields:
            remedy = ": pass validation=(x, target) to fit, or monitor='loss'"
        raise ValueError(
            f"{type(self).__name__} monitors {self.monitor!r}, but an epoch reports "
            f"{', '.join(fields)}{remedy}"
        )

    def memory(self, trainer: Any) -> dict[str, Any]:
        """Return the best value and the epochs since, from the memory of the callback.

        It is reset if it belongs to another metric, or if a file has other data in it.
        """
        memory: dict[str, Any] = trainer.memory(self)
        options = {"monitor": self.monitor, "mode": self.mode}
        best = memory.get("best")
        waited = memory.get("waited")
        is_valid = isinstance(best, int | float | None) and isinstance(waited, int)
        if not is_valid or any(
            memory.get(name) != value for name, value in options.items()
        ):
            memory.clear()
            memory.update(options, best=None, waited=0)
        return memory


@dataclass(frozen=True)
class EarlyStopping(_Monitor):
    """End `fit` when a value has not improved for `patience` epochs.

    monitor: a field of the row of an epoch, such as "validation_accuracy". mode: "min"
    if lower is better, "max" if higher is. An improvement is a change by more than
    `min_delta`; NaN is never one.

    With `restore`, the parameters, state and moments of the best epoch of this run are
    restored when `fit` ends after a complete epoch, also if it has run all its epochs.
    The counts of steps and epochs do not change. After an error or Ctrl-C the last
    weights stay, so that training can continue. A `Checkpoint` has saved the last
    weights too: for the best, save the trainer after `fit`, or use
    `Checkpoint(best=True)`.
    """

    patience: int = 10
    _: KW_ONLY
    restore: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("patience", self.patience)
        expect_flag("restore", self.restore)

    def epoch(self, trainer: Any, row: dict[str, Any]) -> bool | None:
        if self.record(trainer, row):
            self.memory(trainer)["kept"] = self.restore
            if self.restore:
                trainer.keep(self)
        stop: bool = self.memory(trainer)["waited"] >= self.patience
        if stop:  # so that a resumed run gets `patience` epochs again
            self.memory(trainer)["waited"] = 0
        return stop

    def end(self, trainer: Any, complete: bool) -> None:
        if complete and self.restore and self.memory(trainer).get("kept") is True:
            trainer.restore(self)


@dataclass(frozen=True)
class ReduceOnPlateau(_Monitor):
    """Multiply the scale of a `Scaled` optimizer by `factor` on a plateau of a value.

    That is when the value has not improved for `patience` epochs, as in
    `EarlyStopping`; then the count begins again. The scale stays at `min_scale` or
    above.

    The scale is part of the optimizer's moments, like momentum and the step of a
    schedule, and so outlives the run: the next `fit` begins with it, but with a new
    best value and a new count. `trainer.start_from(trainer.params, trainer.state)`
    resets the scale to 1, and all other moments.
    """

    patience: int = 10
    _: KW_ONLY
    factor: float = 0.1
    min_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("patience", self.patience)
        is_valid = isinstance(self.factor, float) and 0.0 < self.factor < 1.0
        expect(is_valid, "expected a factor in (0, 1), got {}", self.factor)
        expect_number("min_scale", self.min_scale, 0.0, 1.0)

    def begin(self, trainer: Any) -> None:
        if trainer.shape is not None:
            self._expect_scaled(trainer)

    def epoch(self, trainer: Any, row: dict[str, Any]) -> None:
        self._expect_scaled(trainer)
        self.record(trainer, row)
        if self.memory(trainer)["waited"] < self.patience:
            return
        self.memory(trainer)["waited"] = 0
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
class Checkpoint(_Monitor):
    """Save the trainer after every `every`-th epoch, or only if a value is the best.

    path: "{epoch}" and other fields of the row in it, such as "{loss:.3f}", make a file
    for each epoch. An existing file is replaced only once the new one is complete. With
    `best`, the trainer is saved only if `monitor` has improved on those `every`-th
    epochs of this run.
    """

    path: str = "checkpoint.safetensors"
    every: int = 1
    best: bool = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: int = 1,
        best: bool = False,
        monitor: str = "validation_loss",
        mode: str = "min",
        min_delta: float = 0.0,
    ) -> None:
        options = {
            "monitor": monitor,
            "mode": mode,
            "min_delta": min_delta,
            "path": expect_path("path", path),
            "every": every,
            "best": best,
        }
        set_fields(self, **options)
        super().__post_init__()
        expect_count("every", every)
        expect_flag("best", best)
        self._path_fields()  # raises if the path is not a format

    def expect(
        self, trainer: Any, fields: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        if self.best and fields is not None:
            self._expect_monitor(fields)
        names = self._path_fields()
        for name in names:
            if fields is not None and name not in fields:
                raise ValueError(
                    f"the path {self.path} has a field {name!r}, but an epoch reports "
                    f"{', '.join(fields)}"
                )
        if fields is not None or not names:
            # try the format with example values: integers
            # for counts, floats for all others
            counts = dict.fromkeys(("epoch", "steps"), 1)
            try:
                path = self.path.format(**dict.fromkeys(names, 1.0) | counts)
            except (ValueError, TypeError, AttributeError, LookupError) as error:
                raise ValueError(
                    f"the path {self.path} cannot be formatted: {error}"
                ) from None
            expect_place(path)
        return fields

    def _path_fields(self) -> list[str]:
        """Return the fields in the path; raise ValueError if one has no name."""
        try:
            fields = [
                name for _, name, *_ in Formatter().parse(self.path) if name is not None
            ]
        except ValueError as error:
            raise ValueError(f"the path {self.path} is not a format: {error}") from None
        # of "{row.x}" and "{row[x]}" the first part is the name
        names = [re.split(r"[.\[]", field)[0] for field in fields]
        if not all(name.isidentifier() for name in names):
            raise ValueError(
                f"expected fields with names in the path, such as {{epoch}}, got "
                f"{self.path}"
            )
        return names

    def epoch(self, trainer: Any, row: dict[str, Any]) -> None:
        due = row["epoch"] % self.every == 0
        if due and (not self.best or self.record(trainer, row)):
            trainer.save(self.path.format(**row))


@dataclass(frozen=True)
class LogTo(_CheckedCallback):
    """Pass the results of each epoch, and of every `every`-th step, to a function.

    It is called as function(values, step) with a dict of numbers and the count of steps
    of the trainer, which a resumed training continues. `mlflow.log_metrics` and the
    `log` of a run of Weights & Biases are such functions.

    After an epoch, values are the numbers in its row, such as "loss" and
    "validation_loss". After a step, they are "batch_loss" and the metrics of its batch,
    such as "batch_accuracy", the "rate" if there is only one, and "seconds_per_step".
    """

    function: Callable[..., Any]
    _: KW_ONLY
    every: int | None = None

    one_step_per_call: ClassVar[bool] = False

    def __post_init__(self) -> None:
        expect_function("function", self.function, "values, step")
        if self.every is not None:
            expect_count("every", self.every)

    def step(self, trainer: Any, report: StepReport) -> None:
        if self.every is None or report.number % self.every:
            return
        values = {"batch_loss": report.loss}
        for name, value in report.metrics.items():
            values[f"batch_{name}"] = value
        rate = report.rate
        if rate is not None:
            values["rate"] = rate
        values["seconds_per_step"] = report.seconds
        self.function(values, report.number)

    def epoch(self, trainer: Any, row: dict[str, Any]) -> None:
        values = {
            name: value
            for name, value in row.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.function(values, trainer.steps)


@dataclass(frozen=True)
class RateLog(_CheckedCallback):
    """Add the learning rate of the epoch's last step to the row, as "rate"."""

    def expect(
        self, trainer: Any, fields: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        return None if fields is None else (*fields, "rate")

    def epoch(self, trainer: Any, row: dict[str, Any]) -> None:
        row["rate"] = rate_at(
            trainer.optimizer,
            trainer.moments,
            trainer.backend,
            PrecisionPolicy(trainer.dtype).host_dtype,
            caller="RateLog",
            batches_back=0,
        )


@dataclass(frozen=True)
class CSVLog(_CheckedCallback):
    """Append the row of each epoch to a file of comma-separated values.

    A trainer that has completed epochs continues the file; rows of later epochs, left
    by a run that was interrupted, are dropped. A new trainer begins a new file.

    Raises
    ------
    ValueError
        From `fit`, if the columns of the file differ
        from the fields that the epoch reports.
    """

    path: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        set_fields(self, path=expect_path("path", path))

    def expect(
        self, trainer: Any, fields: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        expect_place(self.path)
        header, rows = self._completed_rows(trainer)
        if rows and fields is not None:
            self._expect_columns(header, fields)
        return fields

    def begin(self, trainer: Any) -> None:
        header, rows = self._completed_rows(trainer)
        if header:
            text = StringIO()
            csv.writer(text).writerows([header, *rows] if rows else [])
            write_text(self.path, text.getvalue())

    def _expect_columns(self, header: list[str], fields: Sequence[str]) -> None:
        if header != list(fields):
            raise ValueError(
                f"{self.path} has the columns {', '.join(header)}, but an epoch "
                f"reports {', '.join(fields)}"
            )

    def _completed_rows(self, trainer: Any) -> tuple[list[str], list[list[str]]]:
        """Return the header, and the rows of epochs that the trainer has completed."""
        path = Path(self.path)
        if not path.exists():
            return [], []
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [*csv.reader(file)] or [["epoch"]]
        if "epoch" not in header:
            raise ValueError(
                f"{path} is not a log of epochs: its columns are {', '.join(header)}"
            )
        column = header.index("epoch")

        def is_completed(row: list[str]) -> bool:
            # the last row may have been cut off while it was written
            is_whole = len(row) == len(header) and row[column].isdecimal()
            return is_whole and int(row[column]) <= trainer.epoch

        return header, [row for row in rows if is_completed(row)]

    def epoch(self, trainer: Any, row: dict[str, Any]) -> None:
        with Path(self.path).open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            header = next(csv.reader(file), None)
            if header is None:
                csv.writer(file).writerow(row)
            else:
                self._expect_columns(header, list(row))
            csv.writer(file).writerow(row.values())


@dataclass
class TensorBoardLog(_CheckedCallback):
    """Write the numbers of each epoch to `folder` for TensorBoard, with tensorboardX.

    A resumed run drops what an earlier run wrote about
    epochs that the trainer has not completed.

    Raises
    ------
    ImportError
        From `fit`, if tensorboardX is not installed.
    """

    folder: str
    _writer: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.folder = expect_path("folder", self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_writer": None}  # files of this process stay here

    def expect(
        self, trainer: Any, fields: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        if Path(self.folder).exists() and not Path(self.folder).is_dir():
            raise NotADirectoryError(
                f"expected a folder for TensorBoard, but {self.folder} is a file"
            )
        return fields

    def begin(self, trainer: Any) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoardLog needs the package tensorboardX, which cannot be "
                f"imported ({error}): pip install 'agnostic-nn[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(
            os.fspath(self.folder), purge_step=trainer.epoch + 1
        )

    def epoch(self, trainer: Any, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def end(self, trainer: Any, complete: bool) -> None:
        self._writer.close()
        self._writer = None
