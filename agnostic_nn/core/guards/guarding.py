"""Compile a function again when values that its Python code reads have changed."""

import warnings
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from ..atomic import into
from .names import name_of
from .watching import Watch

__all__ = ["Guarded", "guarded", "reads"]

# number of changes after which a warning is issued, if there are few calls
WARN_AFTER = 10
REMEDY = (
    "Give arrays that change as `context` of a Trainer or as arguments, take "
    "randomness from a key in the layer's state, let a weight follow a schedule, or "
    "choose nn.backend(..., replay=False), which runs the Python of each step"
)


def guarded(
    function: Callable[..., Any],
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]],
    to_numpy: Callable[[Any], Any] | None,
    libraries: frozenset[str],
    hidden: Callable[[], Any] | None = None,
) -> Callable[..., Any]:
    """Return compiled(function), compiled again when a value that it reads has changed.

    Only values that user code reads are compared. If the function leads to no user code
    or user data, compiled(function) is returned unguarded.

    compiled: a function that compiles a pure function.
    to_numpy: a function from an array of the backend to a host array. If it is None,
    arrays are not compared, because every call runs the Python code and reads their
    current contents.
    libraries: names of packages whose code is not searched.
    hidden: returns the state of the array library's hidden random generator.
    """
    watch = partial(Watch, function, to_numpy, libraries, hidden)
    if watch().is_empty:
        return compiled(function)
    return Guarded(function, compiled, watch)


class Guarded:
    """A function that is compiled again when Python values that it reads have changed.

    Raises
    ------
    TypeError
        When called, if the function itself changes a value that it reads at each call,
        such as a counter or the state of a random generator, or if it reads an
        iterator.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        compiled: Callable[..., Any],
        watch: Callable[[], "Watch"],
    ):
        update_wrapper(self, function)
        self._function = function
        self._compiled = compiled
        self._watch = watch
        self._version: _Version | None = None
        self._calls = 0
        self._changes = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        version = self._version
        if version is None or not version.holds():
            version = self._current_version(version)
        self._calls += 1
        return version.run(*args, **kwargs)

    def into(self, outcome: list[Any], *args: Any) -> None:
        """Call the function for `atomic.into`, which reports in `outcome`."""
        version = self._version
        if version is None or not version.holds():
            version = self._current_version(version)
        self._calls += 1
        into(version.run, outcome, *args)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the compiled function, such as `lower` or `trace`."""
        if name.startswith("_"):
            raise AttributeError(name)
        version = self._version
        if version is None or not version.holds():
            version = self._current_version(version)
        return getattr(version.run, name)

    def _current_version(self, old: "_Version | None") -> "_Version":
        """Return the function compiled for the current values: `old` if they are equal.

        `old.holds()` compares identities. Here the values themselves are compared, so
        that an equal value in a new object does not compile the function again.
        """
        watch = self._watch()
        if watch.refused:
            raise TypeError(f"{name_of(self._function)} {watch.refused}. {REMEDY}.")
        if old is not None and not old.is_stale:
            changed = watch.difference(old.watch)
            if changed is None:
                old.set_watch(watch)
                return old
            self._count_change(changed)
        version = _Version(self._function, watch, self._watch)
        version.run = self._compiled(version.new_function())
        self._version = version
        return version

    def _count_change(self, changed: str) -> None:
        """Count a change, and warn if nearly every call compiles the function again."""
        self._changes += 1
        if self._changes == WARN_AFTER and self._calls < 10 * WARN_AFTER:
            warnings.warn(
                f"{name_of(self._function)} was compiled again {WARN_AFTER} times in "
                f"{self._calls} calls, because a value that it reads keeps changing: "
                f"{changed}. The results are correct, but compiling takes time. "
                f"{REMEDY}.",
                RuntimeWarning,
                stacklevel=4,
            )


class _Version:
    """The function compiled for the values that `watch` recorded."""

    run: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        watch: "Watch",
        new_watch: Callable[[], "Watch"],
    ) -> None:
        self.function = function
        self.new_watch = new_watch
        self.is_stale = False
        self.runs = 0  # number of times that the Python code ran
        self.set_watch(watch)

    def set_watch(self, watch: "Watch") -> None:
        """Compare with the values that `watch` recorded from now on."""
        self.watch = watch
        self.holds = watch.holds

    def new_function(self) -> Callable[..., Any]:
        """Return a new function object, as libraries cache functions by identity."""

        def run(*args: Any, **kwargs: Any) -> Any:
            return self._run(args, kwargs)

        return update_wrapper(run, self.function)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and raise if it changes the values that it reads.

        If they have changed, it is called a second time: a function that caches its
        results changes its cache at the first call and leaves it unchanged at the
        second call.
        """
        for _ in range(2):
            states = self.watch.generator_states()
            result = self.function(*args, **kwargs)
            drawn_from = self.watch.changed_generator(states)
            if drawn_from is None and self.watch.holds():
                self.runs += 1
                return result
            watch = self.new_watch()
            changed = drawn_from or watch.difference(self.watch)
            self.set_watch(watch)
            if changed is None:
                self.runs += 1
                return result
            if self.runs:
                # the code compiled earlier, for other shapes, read the old values
                self.is_stale = True
                self.holds = _never
            if drawn_from is not None:
                break
        raise TypeError(
            f"{name_of(self.function)} changes what it reads while it is called: "
            f"{changed}. Compiled code would use one of these values forever, so this "
            f"is refused on every backend. {REMEDY}."
        )


def _never() -> bool:
    return False


def reads(function: Callable[..., Any], obj: Any) -> bool:
    """Return whether a result of `Backend.jit` reads changing attributes of `obj`.

    obj: an object of this library that changes while it is used, such as a Trainer.
    """
    if not isinstance(function, Guarded):
        return False
    return any(obj is changing for changing in function._watch().changing)
