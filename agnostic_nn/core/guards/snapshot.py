"""Snapshots: values at their paths, and generated code that tells whether they are the same."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from .values import EQUAL, MISSING, Numbers, is_read_only, is_same, shown, state_of

__all__ = ["Snapshot"]


class Snapshot:
    """The current values of what code reads, by path.

    `holds()` returns whether they are still the same: generated code that compares identities,
    and the numbers of arrays that can be written to.

    to_numpy: a function from an array of the backend to a host array, or None.
    """

    holds: Callable[[], bool]

    def __init__(self, to_numpy: Callable[[Any], Any] | None) -> None:
        self._to_numpy = to_numpy
        self._env: dict[str, Any] = {"missing": MISSING, "is_": is_same, "all": all, "map": map}
        self._named: dict[int, str] = {}  # names in the code, by the identity of what they mean
        self._tests: dict[str, None] = {}
        self._generators: dict[int, tuple[str, Any]] = {}
        self.values: dict[str, tuple[str, Any]] = {}  # by path: the kind of comparison, and value

    def difference(self, old: "Snapshot") -> str | None:
        """Describe the first value that differs from `old`; return None if all are equal."""
        for path, (kind, value) in self.values.items():
            if path not in old.values:
                return f"{path}, which is {shown(value)} and was not there before"
            before = old.values[path]
            if kind == before[0] and EQUAL[kind](value, before[1]):
                continue
            if kind == before[0] == "state":
                return f"{path}, which has made steps"
            return f"{path}, which was {shown(before[1])} and is {shown(value)}"
        for path in old.values.keys() - self.values.keys():
            return f"{path}, which was {shown(old.values[path][1])} and is gone"
        return None

    def draws(self) -> list[bytes]:
        """Return the states of the random generators that user code can reach."""
        return [state_of(generator) for _, generator in self._generators.values()]

    def drawn_from(self, before: list[bytes]) -> str | None:
        """Describe the first generator whose state differs from `before`, or return None."""
        for (path, _), old, new in zip(
            self._generators.values(), before, self.draws(), strict=True
        ):
            if old != new:
                return f"it draws from {path}"
        return None

    def _written(self) -> Callable[[], bool]:
        """Compile the function `holds` from all tests."""
        if not self._tests:
            return _always
        lines = " and ".join(self._tests)
        # not of every Exception: one of a signal handler must not get lost here
        errors = "AttributeError, LookupError, NameError, TypeError, ValueError"
        exec(_compiled(f"def holds():\n try:\n  return {lines}\n except ({errors}): return False"),
             self._env)  # fmt: skip
        return self._env.pop("holds")

    def _name(self, thing: Any) -> str:
        """Return a name for `thing` in the generated code."""
        name = self._named.get(id(thing))
        if name is None:
            name = self._named[id(thing)] = f"v{len(self._named)}"
            self._env[name] = thing
        return name

    def _test(self, code: str, path: str, kind: str, value: Any) -> None:
        """Note that `code` has to be true, and the value at `path`."""
        if code not in self._tests:
            self._tests[code] = None
            self._note(path, kind, value)

    def _note(self, path: str, kind: str, value: Any) -> None:
        """Note the value at `path`; several values may have one path."""
        unique, number = path, 1
        while unique in self.values:
            number += 1
            unique = f"{path} [{number}]"
        self.values[unique] = kind, value

    def _note_entries(self, thing: Any, path: str, entries: list) -> None:
        """Note the entries of a container that may change."""
        name, count = self._name(thing), len(entries)
        if isinstance(thing, set):
            now = frozenset(thing)
            self._test(f"{name} == {self._name(now)}", path, "==", now)
        elif isinstance(thing, bytearray):
            content = bytes(thing)
            self._test(f"{name} == {self._name(content)}", path, "==", content)
        elif isinstance(thing, dict):
            keys, values = tuple(thing), tuple(thing.values())
            test = f"len({name}) == {count}"
            if count:
                test += (
                    f" and all(map(is_, {name}, {self._name(keys)}))"
                    f" and all(map(is_, {name}.values(), {self._name(values)}))"
                )
            self._test(test, f"the keys of {path}", "==", keys)
        elif isinstance(thing, Mapping):
            test = f"[*{name}.items()] == {self._name(entries)}"
            self._test(test, f"the keys of {path}", "==", [key for key, _ in entries])
        else:
            test = f"len({name}) == {count}"
            if count == 1:
                test += f" and {name}[0] is {self._name(thing[0])}"
            elif count:
                test += f" and all(map(is_, {name}, {self._name(tuple(thing))}))"
            self._test(test, f"the length of {path}", "==", count)

    def _note_array(self, thing: Any, path: str) -> None:
        """Note the bytes of an array, which are compared unless nothing can write to it."""
        if self._to_numpy is None:
            return
        try:
            host = thing if hasattr(thing, "tobytes") else self._to_numpy(thing)
        except Exception:  # of another library than the backend's
            return
        now = host.tobytes()
        self._note(f"the numbers in {path}", "==", Numbers((host.dtype, host.shape), now))
        if not is_read_only(host):
            name, bytes_ = self._name(thing), self._name(now)
            if thing is not host:
                name = f"{self._name(self._to_numpy)}({name})"
            self._tests[f"{name}.tobytes() == {bytes_}"] = None


def _always() -> bool:
    return True


@lru_cache(256)
def _compiled(source: str) -> CodeType:
    return compile(source, "<guards of agnostic_nn>", "exec")
