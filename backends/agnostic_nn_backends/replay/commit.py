"""Commits: the calls of a program that write to donated memory, made as a whole.

A signal handler or an exception from another thread runs between two instructions of Python
code, never inside a function written in C. So all that writes to donated memory comes last in
a program, as a list of calls of C functions, and `deque(map(call, calls), 0)` makes them: a
loop in C. The last call of the list publishes the result, so result and memory always agree.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import chain
from operator import call
from threading import Event
from typing import Any

from agnostic_nn.core.atomic import StateLost

__all__ = ["Commit"]


class Commit:
    """The calls `calls`, after which `outcome` holds `result`, as `agnostic_nn.core.atomic` says.

    together(function, *args): calls a C function, such that floating-point errors in it run no
    Python code. owner: what the calls need and do not hold themselves. aside: whether another
    thread makes them; needed if some are not C functions, as those that several threads share.
    """

    def __init__(
        self, outcome: list, calls: list, result: Any, together: Callable, owner: Any, aside: bool
    ) -> None:
        calls.append(partial(outcome.append, result))
        self.calls, self.rest = calls, iter(calls)
        self.together, self.owner, self.outcome = together, owner, outcome
        self.thread = _Aside(self._make) if aside else None

    def run(self) -> None:
        """Make the calls; an exception cannot come between two of them."""
        self.outcome.append(self.finish)
        if self.thread is None:
            self.together(deque, map(call, self.rest), 0)
        else:
            self.thread.run()

    def _make(self) -> None:
        self.together(deque, map(call, self.rest), 0)

    def finish(self) -> None:
        """Complete the calls, if they have begun: repeat the one that raised, and go on."""
        if self.thread is not None:
            self.thread.wait()
        left = self.rest.__length_hint__()
        if left == len(self.calls) or len(self.outcome) > 1:
            return
        back = partial(self.rest.__setstate__, len(self.calls) - left - 1)
        try:
            self.together(deque, map(call, chain((back,), self.rest)), 0)
        except Exception as error:
            if len(self.outcome) > 1:
                raise
            raise StateLost(
                f"a step failed while it wrote to the parameters ({type(error).__name__}: {error})"
            ) from error


class _Aside:
    """A function to be called by another thread, unless nobody waits for it any more."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.taken: dict[str, str] = {}
        self.error: BaseException | None = None
        self.done = Event()

    def run(self) -> None:
        _threads().submit(self._work)
        self.done.wait()
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        """Wait until it is done; if it has not begun, it never will."""
        if self.taken.setdefault("by", "the caller") != "the caller":
            self.done.wait()

    def _work(self) -> None:
        if self.taken.setdefault("by", "the thread") != "the thread":
            return
        try:
            self.function()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


@cache
def _threads() -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):  # a fork has none of them
        os.register_at_fork(after_in_child=_threads.cache_clear)
    return ThreadPoolExecutor(thread_name_prefix="agnostic_nn-commit")
