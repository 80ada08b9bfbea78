"""Memory of callbacks: what those of one run of `fit` remember, and which of them it belongs to."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .callbacks import Callback
from .steps import Carry

__all__ = ["BoundCallback", "RunMemory"]


class RunMemory:
    """What the callbacks of one run remember: a dict of data for JSON each, and best weights.

    A callback is known by its class and by its number among those of this class in the list that
    `fit` was given, so two that print alike do not share. One that is not in the list, but is
    called by one that is, is known by that one and its number there.
    """

    def __init__(
        self, notes: dict[str, dict[str, Any]] | None = None, best: dict[str, Carry] | None = None
    ) -> None:
        self.notes = {} if notes is None else notes
        self.best = {} if best is None else best
        self.is_running = False
        self._owners: dict[str, list[tuple[str, Any]]] = {}
        self._now = ""

    def begin(self, callbacks: Sequence[Callback]) -> list["BoundCallback"]:
        """Let `callbacks` remember here; returns them as `fit` should call them."""
        self.is_running, self._now, self._owners = True, "", {}
        return [BoundCallback(self, self._key(callback), callback) for callback in callbacks]

    def pause(self) -> None:
        """Wait for the next `fit`, which continues this run."""
        self.is_running, self._now, self._owners = False, "", {}

    def copy(self) -> "RunMemory":
        """Return the same for another trainer."""
        return RunMemory(copy.deepcopy(self.notes), dict(self.best))

    def key(self, callback: Any) -> str:
        """Return what `callback`, which is called now, is known by.

        Raises
        ------
        RuntimeError
            If no `fit` is under way.
        """
        if not self.is_running:
            raise RuntimeError("a callback remembers something only while `fit` is under way")
        now, listed = self._now, self._owners.get("", [])
        if any(key == now and owner is callback for key, owner in listed):
            return now
        for key, owner in (*listed, *self._owners.get(now, [])):
            if owner is callback:
                return key
        return self._key(callback)

    def _key(self, callback: Any) -> str:
        """A new key, within the callback that is called now."""
        owners = self._owners.setdefault(self._now, [])
        kind = type(callback).__qualname__
        number = Counter(type(owner).__qualname__ for _, owner in owners)[kind]
        key = f"{self._now} > {kind} {number}" if self._now else f"{kind} {number}"
        owners.append((key, callback))
        return key


class BoundCallback:
    """A callback, called so that its run's memory knows which one it is."""

    def __init__(self, memory: RunMemory, key: str, callback: Callback) -> None:
        self._memory, self._key, self._callback = memory, key, callback

    def begin(self, trainer: Any) -> None:
        """Call its `begin`."""
        self._call(self._callback.begin, trainer)

    def epoch(self, trainer: Any, row: dict[str, Any]) -> bool | None:
        """Call its `epoch`."""
        return self._call(self._callback.epoch, trainer, row)

    def end(self, trainer: Any, complete: bool) -> None:
        """Call its `end`."""
        self._call(self._callback.end, trainer, complete)

    def _call(self, hook: Any, *args: Any) -> Any:
        memory = self._memory
        before, memory._now = memory._now, self._key
        try:
            return hook(*args)
        finally:
            memory._now = before
