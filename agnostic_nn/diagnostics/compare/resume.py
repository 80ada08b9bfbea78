"""Save a comparison after each run, and resume it after an interrupt or a crash.

The folder of a run has a partial report from the moment the reference is trained. Next
to it is `unfinished.npz`, which is removed when the report is complete. It has what the
missing runs need: the results of the reference, which may take longer to train than any
backend, and the settings that must not have changed. With Adam this is about 80 bytes
per parameter: three carries, of which each has parameters and two moments, and the last
parameters, in float64.

A run that is still going on locks this file, where the system has locks.
"""

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:
    import fcntl as _locks
except ImportError:  # Windows
    _locks = None  # type: ignore[assignment]

from ...core.files import replacing
from .choice import title_of
from .comparison import Execution, workload_info
from .folders import STATE
from .merge import read
from .plan import Plan
from .report import Comparison, write
from .running import Run, sha256
from .schema import Environment, WorkloadInfo
from .workloads import CannotCompare

__all__ = ["RunFolder", "Unfinished", "newest_unfinished", "read_unfinished"]

FORMAT = 1  # of the state


class RunFolder:
    """The folder of a run, in which it is saved after each step.

    words: the arguments of the command line, which `--resume` repeats.
    """

    def __init__(self, path: Path, words: Sequence[str] = ()) -> None:
        self.path = path
        self._words = list(words)
        self._locked: BinaryIO | None = None

    def __enter__(self) -> "RunFolder":
        if (self.path / STATE).exists():
            self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def save(self, execution: Execution) -> None:
        """Write what a resumed run needs, if that is not done, and the partial report.

        Raises
        ------
        OSError
            If the files cannot be written.
        """
        if not (self.path / STATE).exists():
            with replacing(self.path / STATE) as file:
                _write_state(file, execution, self._words)
            self._lock()
        write(execution.report(), self.path)

    def _lock(self) -> None:
        """Lock the state until the block ends.

        Raises
        ------
        CannotCompare
            If another process has locked it.
        """
        if _locks is None:
            return
        file = (self.path / STATE).open("rb")
        try:
            _locks.flock(file, _locks.LOCK_EX | _locks.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise CannotCompare(
                f"the run in {self.path} has not ended: another process is making it"
            ) from None
        except OSError:  # a file system without locks
            file.close()
            return
        self._locked = file


# --- what is saved --------------------------------------------------------------------


@dataclass(frozen=True)
class Unfinished:
    """A run that did not finish, as read from its folder."""

    folder: Path
    report: Comparison
    record: dict[str, Any]
    reference: Run

    @property
    def words(self) -> list[str]:
        """The arguments of its command line."""
        return list(self.record["words"])

    def execution(self, plan: Plan) -> Execution:
        """Return the execution of `plan` that makes only the missing runs.

        Raises
        ------
        CannotCompare
            If anything has changed that the results depend on; the message lists each
            change with the old and the new value.
        """
        changes = list(_changes(self, plan))
        if changes:
            raise CannotCompare(
                f"the run in {self.folder} cannot be resumed, because results made now "
                f"would not belong to those in it: {'; '.join(changes)}"
            )
        (machine,) = self.report.machines
        plan = replace(plan, environment=machine.environment)  # with its date
        return Execution(plan, self.reference, self.report.results)


def _settings(plan: Plan) -> dict[str, Any]:
    """Return the settings that results depend on and a report may not have yet."""
    runs = {
        title_of((backend, dtype)): {
            "precision": backend.precision,
            "deterministic": backend.deterministic,
            "version": backend.version,
            "hardware": backend.hardware,
        }
        for backend, dtype in plan.runs
    }
    measured = {"sizes": list(plan.sizes), "repeat": plan.repeat}
    return {"runs": runs, "measured": measured}


def _write_state(file: BinaryIO, execution: Execution, words: list[str]) -> None:
    """Write the reference and the settings as an npz file, without pickled objects."""
    reference = execution.reference
    assert reference is not None
    arrays: list[np.ndarray] = []
    record = {
        "format": FORMAT,
        "words": words,
        "settings": _settings(execution.plan),
        "start": reference.start,
        "metric": reference.metric,
        "steps": list(reference.carries),
        "tree": _skeleton(_arrays(reference), arrays),
    }
    text = np.frombuffer(json.dumps(record).encode(), np.uint8)
    named = {f"array{i}": array for i, array in enumerate(arrays)}
    np.savez(file, allow_pickle=False, record=text, **named)


def _arrays(reference: Run) -> dict[str, Any]:
    """Return everything of the reference that consists of arrays, as a tree."""
    return {
        "losses": np.asarray(reference.losses, np.float64),
        "scales": np.asarray(reference.scales, np.float64),
        "params": reference.params,
        "state": reference.state,
        "outputs": reference.outputs,
        "carries": tuple(reference.carries.values()),
    }


def _skeleton(tree: Any, arrays: list[np.ndarray]) -> Any:
    """Append the leaves of `tree` to `arrays`; return it with their indices, as JSON.

    Tuples become lists.
    """
    if isinstance(tree, dict):
        return {name: _skeleton(branch, arrays) for name, branch in tree.items()}
    if isinstance(tree, tuple):
        return [_skeleton(branch, arrays) for branch in tree]
    if tree is None:
        return None
    arrays.append(np.asarray(tree))
    return len(arrays) - 1


def _filled(skeleton: Any, arrays: Any) -> Any:
    """Return the tree whose `_skeleton` this is."""
    if isinstance(skeleton, dict):
        return {name: _filled(branch, arrays) for name, branch in skeleton.items()}
    if isinstance(skeleton, list):
        return tuple([_filled(branch, arrays) for branch in skeleton])
    return None if skeleton is None else arrays[f"array{skeleton}"]


# --- how it is read -------------------------------------------------------------------


def read_unfinished(folder: Path) -> Unfinished:
    """Return the run in `folder`, which did not finish.

    Raises
    ------
    CannotCompare
        If there is none, it is complete, or its files are damaged.
    """
    if not (folder / "report.json").is_file():
        raise CannotCompare(
            f"{folder} has no report.json: it is not the folder of a run, or its "
            "reference was not trained, and then there is nothing to resume"
        )
    report = read(folder / "report.json")
    if not report.unfinished:
        raise CannotCompare(f"the run in {folder} is complete: nothing is missing")
    path = folder / STATE
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            record = json.loads(arrays["record"].tobytes())
            if record["format"] != FORMAT:
                raise CannotCompare(
                    f"{path} was written by another version of this library"
                )
            tree = _filled(record["tree"], arrays)
            carries = dict(zip(record["steps"], tree.pop("carries"), strict=True))
            reference = Run(
                start=record["start"],
                metric=record["metric"],
                seconds=[],
                carries=carries,
                losses=tree.pop("losses").tolist(),
                scales=tree.pop("scales").tolist(),
                **tree,
            )
    except OSError as error:
        raise CannotCompare(
            f"the run in {folder} cannot be resumed: {path} cannot be read: "
            f"{error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, CannotCompare):
            raise
        raise CannotCompare(
            f"the run in {folder} cannot be resumed: {path} is damaged: {error}"
        ) from error
    return Unfinished(folder, report, record, reference)


def newest_unfinished(output: Path) -> Path:
    """Return the newest folder in `output` with a run that did not finish.

    Raises
    ------
    CannotCompare
        If there is none.
    """
    folders = sorted(path.parent for path in output.glob(f"*/{STATE}"))
    for folder in reversed(folders):
        report = folder / "report.json"
        if not folder.is_symlink() and report.is_file() and read(report).unfinished:
            return folder
    raise CannotCompare(
        f"{output} has no folder with a run that did not finish: --resume FOLDER names "
        "another one"
    )


# --- what must not change -------------------------------------------------------------


def _changes(unfinished: Unfinished, plan: Plan) -> Iterator[str]:
    """Yield each change since the run was interrupted, with old and new value."""
    report = unfinished.report
    (machine,) = report.machines
    start = report.start_sha256
    settings = unfinished.record["settings"]
    old = _conditions(report.workload, start, machine.environment, settings)
    start = sha256(plan.task.start[0])
    info = workload_info(plan.task)
    new = _conditions(info, start, plan.environment, _settings(plan))
    for group in dict.fromkeys((*old, *new)):
        before = old.get(group)
        after = new.get(group)
        if before is None or after is None:
            yield f"the run {group} is {'new' if before is None else 'gone'}"
            continue
        for name in dict.fromkeys((*before, *after)):
            was = before.get(name)
            now = after.get(name)
            if was != now:
                yield f"{group}: {name} {_both(was, now)}"
    losses = [x if math.isfinite(x) else None for x in unfinished.reference.losses]
    if tuple(losses) != report.reference.losses:
        yield f"{STATE} belongs to another run: its losses are not those of the report"


def _conditions(
    workload: WorkloadInfo,
    start: str,
    environment: Environment,
    settings: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return everything that results depend on, by group and name."""
    machine = {**vars(environment)}
    del machine["date"]
    return {
        "workload": vars(workload),
        "starting parameters": {"SHA-256": start},
        "versions": machine.pop("versions"),
        "environment variables": machine.pop("variables"),
        "machine": machine,
        "measurements": settings["measured"],
        **settings["runs"],
    }


def _both(before: Any, after: Any) -> str:
    words = ["not set" if value is None else repr(value) for value in (before, after)]
    return f"was {words[0]}, is {words[1]}"
