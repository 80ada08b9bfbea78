"""Defer Ctrl-C until the current step of `fit` is done."""

import signal
import threading
from typing import Any
from weakref import ref

__all__ = ["DeferredInterrupts"]


class DeferredInterrupts:
    """A context in which the first Ctrl-C only sets `requested`, and a second raises.

    When the context ends, KeyboardInterrupt is raised if it was deferred; the cause is
    the exception that ended the context, if any. The context does nothing if the user
    has installed a handler for SIGINT, or outside the main thread, where Python does
    not deliver signals.
    """

    requested = False
    _is_on = False

    def __enter__(self) -> "DeferredInterrupts":
        # Read the handler first: to replace it and put
        # it back could lose a signal in between.
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if default and threading.current_thread() is threading.main_thread():
            try:
                self._is_on = True
                signal.signal(signal.SIGINT, _handler(ref(self)))
            except BaseException as error:  # raised by another signal handler or thread
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
    """Return a handler of SIGINT for `context`, a weak reference.

    If an exception comes at the moment when a context ends, its handler may stay
    installed. It then behaves like the default one.
    """

    def handle(number: int, frame: Any) -> None:
        deferred = context()
        if deferred is None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if deferred is None or deferred.requested or not deferred._is_on:
            raise KeyboardInterrupt
        deferred.requested = True

    return handle
