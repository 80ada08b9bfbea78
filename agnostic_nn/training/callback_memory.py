"""The memory of callbacks during one run of `fit`."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .callbacks import Callback
from .step_report import StepReport
from .steps import Carry

__all__ = ["BoundCallback", "RunMemory"]


class RunMemory:
    """Holds, for each callback of a run, a dict of JSON data and the weights it keeps.

    A callback is identified by its class and its index among the callbacks of this
    class in the list passed to `fit`. Two callbacks with equal fields therefore do not
    share memory. A callback that is not in the list, but is called by one that is, is
    identified by that one and its index there.

    notes: the dicts, by key. best: the weights, by key.
    """

    def __init__(
        self,
        notes: dict[str, dict[str, Any]] | None = None,
        best: dict[str, Carry] | None = None,
    ) -> None:
        self.notes: dict[str, dict[str, Any]] = {} if notes is None else notes
        self.best: dict[str, Carry] = {} if best is None else best
        self.is_running: bool = False
        # By the key of a callback, or "" for `fit`: the callbacks that it calls, with
        # their keys.
        self._called: dict[str, list[tuple[str, Any]]] = {}
        self._current = ""  # the key of the callback whose hook is running

    def begin(self, callbacks: Sequence[Callback]) -> list["BoundCallback"]:
        """Begin a run, or continue it; return `callbacks` bound to this memory."""
        self.is_running = True
        self._current = ""
        self._called = {}
        return [
            BoundCallback(self, self._new_key(callback), callback)
            for callback in callbacks
        ]

    def pause(self) -> None:
        """Wait for the next `fit`, which continues this run."""
        self.is_running = False
        self._current = ""
        self._called = {}

    def copy(self) -> "RunMemory":
        """Return a copy for another trainer."""
        return RunMemory(copy.deepcopy(self.notes), dict(self.best))

    def key(self, callback: Any) -> str:
        """Return the key of `callback`, one of whose hooks is running.

        Raises
        ------
        RuntimeError
            If no `fit` is running.
        """
        if not self.is_running:
            raise RuntimeError("a callback has memory only while `fit` is running")
        current = self._current
        listed = self._called.get("", [])
        # The same object may be in the list twice: the one whose hook is running comes
        # first.
        if any(key == current and other is callback for key, other in listed):
            return current
        for key, other in (*listed, *self._called.get(current, [])):
            if other is callback:
                return key
        return self._new_key(callback)

    def _new_key(self, callback: Any) -> str:
        """Return a new key, below that of the callback whose hook is running."""
        siblings = self._called.setdefault(self._current, [])
        kind = type(callback).__qualname__
        number = Counter(type(other).__qualname__ for _, other in siblings)[kind]
        key = (
            f"{self._current} > {kind} {number}"
            if self._current
            else f"{kind} {number}"
        )
        siblings.append((key, callback))
        return key


class BoundCallback:
    """A callback with its key in the memory of a run.

    The key is that of the memory while a hook of the callback is running.
    """

    def __init__(self, memory: RunMemory, key: str, callback: Callback) -> None:
        self._memory = memory
        self._key = key
        self._callback = callback

    def begin(self, trainer: Any) -> None:
        """Call `begin` of the callback."""
        self._call(self._callback.begin, trainer)

    def epoch(self, trainer: Any, row: dict[str, Any]) -> bool | None:
        """Call `epoch` of the callback."""
        stop: bool | None = self._call(self._callback.epoch, trainer, row)
        return stop

    @property
    def has_step(self) -> bool:
        """True if the callback overrides `step`."""
        return type(self._callback).step is not Callback.step

    def step(self, trainer: Any, report: StepReport) -> None:
        """Call `step` of the callback."""
        self._call(self._callback.step, trainer, report)

    def end(self, trainer: Any, complete: bool) -> None:
        """Call `end` of the callback."""
        self._call(self._callback.end, trainer, complete)

    def _call(self, hook: Any, *args: Any) -> Any:
        memory = self._memory
        before = memory._current
        memory._current = self._key
        try:
            return hook(*args)
        finally:
            memory._current = before
