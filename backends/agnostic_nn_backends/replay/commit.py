"""Commits: write to donated memory so that no exception can interrupt it.

A signal handler, or an exception set by another thread, runs between two bytecode
instructions, never inside a C function. So all calls that write to donated memory come
last in a program, as a list of calls of C functions, and `deque(map(call, calls), 0)`
makes them: a loop in C. The last call of the list publishes the result, so the result
and the memory always agree.
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
    """Make `calls` and then put `result` into `outcome`; see `agnostic_nn.core.atomic`.

    call_function(function, *args): calls a C function so that floating-point errors in
        it run no Python code.
    owner: an object that the calls need; kept alive until they are made.
    in_worker: make the calls in another thread, where no signal handler runs. Needed if
        some of them are Python functions, such as kernels that several threads share.
    """

    def __init__(
        self,
        outcome: list[Any],
        calls: list[Any],
        result: Any,
        call_function: Callable[..., Any],
        owner: Any,
        in_worker: bool,
    ) -> None:
        calls.append(partial(outcome.append, result))
        self.calls = calls
        self.remaining: Any = iter(calls)
        self.call_function = call_function
        self.owner = owner
        self.outcome = outcome
        self.worker = _WorkerCall(self._make_calls) if in_worker else None

    def run(self) -> None:
        """Make the calls."""
        self.outcome.append(self.finish)
        if self.worker is None:
            self.call_function(deque, map(call, self.remaining), 0)
        else:
            self.worker.run()

    def _make_calls(self) -> None:
        self.call_function(deque, map(call, self.remaining), 0)

    def finish(self) -> None:
        """Complete the calls after an exception, if they have begun.

        Repeats the call that raised and makes those after it.

        Raises
        ------
        StateLost
            If the call raises again.
        """
        if self.worker is not None:
            self.worker.wait()
        count = len(self.calls)
        left = self.remaining.__length_hint__()
        has_begun = left < count
        is_complete = len(self.outcome) > 1
        if is_complete or not has_begun:
            return
        # The first of the calls sets the iterator back to the call that raised, so that
        # an exception before it finds the iterator as it was.
        step_back = partial(self.remaining.__setstate__, count - left - 1)
        calls = chain((step_back,), self.remaining)
        try:
            self.call_function(deque, map(call, calls), 0)
        except Exception as error:
            if len(self.outcome) > 1:
                raise
            raise StateLost(
                "a step failed while it wrote to the parameters "
                f"({type(error).__name__}: {error})"
            ) from error


class _WorkerCall:
    """A call in a worker thread, unless the caller stops waiting before it begins."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        # `setdefault` is atomic: whoever sets the key first decides whether the
        # function runs
        self.claimed: dict[str, str] = {}
        self.error: BaseException | None = None
        self.done = Event()

    def run(self) -> None:
        """Call the function in a worker thread, wait for it and raise its error."""
        _pool().submit(self._work)
        self.done.wait()
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        """Wait until the function has returned; if it has not begun, it never will."""
        if self.claimed.setdefault("by", "caller") != "caller":
            self.done.wait()

    def _work(self) -> None:
        if self.claimed.setdefault("by", "worker") != "worker":
            return
        try:
            self.function()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


@cache
def _pool() -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
        os.register_at_fork(after_in_child=_pool.cache_clear)
    return ThreadPoolExecutor(thread_name_prefix="agnostic_nn-commit")
