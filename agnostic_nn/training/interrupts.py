"""Interrupts: let Ctrl-C wait until a step is done, since half a step is no state at all."""

import signal
import threading
from typing import Any

__all__ = ["DeferredInterrupts"]


class DeferredInterrupts:
    """A context that holds Ctrl-C back: the first sets `requested`, a second raises at once.

    Compiled steps give their old state away before the new one is there, so an exception
    between the two would leave a trainer without either. At the end a held-back Ctrl-C is
    raised. Where somebody else handles Ctrl-C, or off the main thread, where Python
    delivers none, nothing is changed.
    """

    requested = False
    _before: Any = None

    def __enter__(self) -> "DeferredInterrupts":
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, self._handle)
            if before is signal.default_int_handler:
                self._before = before
            else:
                signal.signal(signal.SIGINT, before)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._before is None:
            return
        signal.signal(signal.SIGINT, self._before)
        if self.requested and kind is None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
