"""Interrupts: let Ctrl-C wait until the current step of `fit` is done."""

import signal
import threading
from typing import Any
from weakref import ref

__all__ = ["DeferredInterrupts"]


class DeferredInterrupts:
    """A context that holds Ctrl-C back: the first sets `requested`, a second raises at once.

    At the end a held-back Ctrl-C is raised; if another exception is on its way, as its cause.
    Where the user handles Ctrl-C, or off the main thread, where Python delivers none, nothing
    is changed.
    """

    requested = False
    _is_on = False

    def __enter__(self) -> "DeferredInterrupts":
        # read first: a handler that is replaced for a moment misses what comes in that moment
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if default and threading.current_thread() is threading.main_thread():
            try:
                self._is_on = True
                signal.signal(signal.SIGINT, _handler(ref(self)))
            except BaseException as error:  # of another signal's handler, or another thread
                self.__exit__(type(error), error, None)
                raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if not self._is_on:
            return
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._is_on = False
        finally:
            if self.requested and not isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt from error


def _handler(context: Any) -> Any:
    """A handler of SIGINT; `context`: a weak reference to a `DeferredInterrupts`.

    An exception may come in the very moment when a context ends. Then its handler stays, and
    does what the default one does.
    """

    def handle(number: int, frame: Any) -> None:
        held = context()
        if held is None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if held is None or held.requested or not held._is_on:
            raise KeyboardInterrupt
        held.requested = True

    return handle
