"""Guarding: compile a function again when values that its code reads have changed."""

import warnings
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from ..atomic import into
from .names import name_of
from .watching import Watch

__all__ = ["Guarded", "guarded", "reads"]

MANY = 10  # changes after which a warning says that something changes all the time
REMEDY = (
    "Give arrays that change as `context` of a Trainer or as arguments, take randomness from a key "
    "in the layer's state, let a weight follow a schedule, or choose "
    "nn.backend(..., replay=False), which runs the Python of each step"
)


def guarded(
    function: Callable,
    compiled: Callable[[Callable], Callable],
    to_numpy: Callable[[Any], Any] | None,
    libraries: frozenset[str],
    hidden: Callable[[], Any] | None = None,
) -> Callable:
    """Return compiled(function), compiled again whenever a value that user code reads changes.

    Where the function leads to no code or data of a user's, it is compiled(function) itself.

    compiled: a function from a pure function to the compiled one.
    to_numpy: a function from an array of the backend to a host array; without one, arrays are not
    compared, as every call reads them anyhow.
    libraries: names of packages whose code is not looked into.
    hidden: returns the state of the array library's own random generator.
    """
    watch = partial(Watch, function, to_numpy, libraries, hidden)
    return compiled(function) if watch().is_empty else Guarded(function, compiled, watch)


class Guarded:
    """A function that is compiled again when Python values that it reads have changed.

    Raises
    ------
    TypeError
        When called, if the function itself changes what it reads, such as a random generator
        or a counter, each time that it is called; or if it reads an iterator.
    """

    def __init__(self, function: Callable, compiled: Callable, watch: Callable[[], "Watch"]):
        update_wrapper(self, function)
        self._function, self._compiled, self._watch = function, compiled, watch
        self._version: _Version | None = None
        self._calls = self._changes = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        version = self._version
        if version is None or not version.holds():
            version = self._renewed(version)
        self._calls += 1
        return version.run(*args, **kwargs)

    def into(self, outcome: list, *args: Any) -> None:
        """Call it as `atomic.into` does."""
        version = self._version
        if version is None or not version.holds():
            version = self._renewed(version)
        self._calls += 1
        into(version.run, outcome, *args)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the library's compiled function, such as `lower` or `trace`."""
        if name.startswith("_"):
            raise AttributeError(name)
        version = self._version
        if version is None or not version.holds():
            version = self._renewed(version)
        return getattr(version.run, name)

    def _renewed(self, old: "_Version | None") -> "_Version":
        """Return the version for the current values: `old` if its values are equal to them."""
        watch = self._watch()
        if watch.refused:
            raise TypeError(f"{name_of(self._function)} {watch.refused}. {REMEDY}.")
        if old is not None and not old.is_stale:
            changed = watch.difference(old.watch)
            if changed is None:
                old.trust(watch)
                return old
            self._count(changed)
        version = _Version(self._function, watch, self._watch)
        version.run = self._compiled(version.fresh())
        self._version = version
        return version

    def _count(self, changed: str) -> None:
        self._changes += 1
        if self._changes == MANY and self._calls < 10 * MANY:
            warnings.warn(
                f"{name_of(self._function)} was compiled again {MANY} times in {self._calls} "
                f"calls, because a value that it reads keeps changing: {changed}. The results "
                f"are right but slow. {REMEDY}.",
                RuntimeWarning,
                stacklevel=4,
            )


class _Version:
    """A function compiled for the values that `watch` saw."""

    run: Callable

    def __init__(self, function: Callable, watch: "Watch", again: Callable[[], "Watch"]) -> None:
        self.function, self.again = function, again
        self.is_stale, self.runs = False, 0
        self.trust(watch)

    def trust(self, watch: "Watch") -> None:
        self.watch = watch
        self.holds = watch.holds

    def fresh(self) -> Callable:
        """A new function object, as libraries remember what they compiled by its identity."""

        def run(*args: Any, **kwargs: Any) -> Any:
            return self._run(args, kwargs)

        return update_wrapper(run, self.function)

    def _run(self, args: tuple, kwargs: dict) -> Any:
        """Call the function, and see that it leaves alone what it reads.

        One that fills a memo of its own is called a second time, and then finds it filled.
        """
        for _ in range(2):
            before = self.watch.draws()
            result = self.function(*args, **kwargs)
            drawn = self.watch.drawn_from(before)
            if drawn is None and self.watch.holds():
                self.runs += 1
                return result
            now = self.again()
            changed = drawn or now.difference(self.watch)
            self.trust(now)
            if changed is None:
                self.runs += 1
                return result
            if self.runs:  # other shapes were compiled for other values
                self.is_stale = True
                self.holds = _never
            if drawn is not None:
                break
        raise TypeError(
            f"{name_of(self.function)} changes what it reads while it is called: {changed}. "
            "Compiled code would repeat one of these values for ever, so this is refused on "
            f"every backend. {REMEDY}."
        )


def _never() -> bool:
    return False


def reads(function: Callable, thing: Any) -> bool:
    """Return whether a function that `Backend.jit` returned reads `thing` where that changes."""
    if not isinstance(function, Guarded):
        return False
    return any(thing is other for other in function._watch().changing)
