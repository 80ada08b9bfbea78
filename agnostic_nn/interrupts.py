"""Interrupts: let Ctrl-C wait until a step is done, since half a step is no state at all."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stop", "deferred_interrupts"]


class Stop:
    """Says whether Ctrl-C was pressed."""

    requested = False


@contextmanager
def deferred_interrupts() -> Iterator[Stop]:
    """Hold back Ctrl-C: the first one only sets `requested`, a second one raises at once.

    Compiled steps give their old state away before the new one is there, so an exception
    between the two would leave a trainer without either. At the end a held-back Ctrl-C is
    raised. Off the main thread, where Python delivers none, nothing is changed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number, frame):
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # somebody else handles it, us included
        yield stop
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
    if stop.requested:
        raise KeyboardInterrupt
