"""Record values by path, and generate code that checks whether they are the same."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from .values import (
    EQUAL,
    MISSING,
    ArrayContents,
    formatted,
    is_read_only,
    is_same,
    state_of,
)

__all__ = ["Snapshot"]


class Snapshot:
    """The current values that code reads, by path.

    `holds()` returns whether they are still the same. It is generated code, which
    compares the identities of objects and the contents of writable arrays.

    to_numpy: a function from an array of the backend to a host array. If it is None,
    arrays are not compared.
    """

    holds: Callable[[], bool]

    def __init__(self, to_numpy: Callable[[Any], Any] | None) -> None:
        self._to_numpy = to_numpy
        self._env: dict[str, Any] = {
            "missing": MISSING,
            "is_": is_same,
            "all": all,
            "map": map,
        }
        # names in the generated code, by the id of the object
        self._names: dict[int, str] = {}
        # an ordered set of expressions that must be true
        self._tests: dict[str, None] = {}
        # path and random generator, by id
        self._generators: dict[int, tuple[str, Any]] = {}
        # kind of comparison (see EQUAL), and value
        self.values: dict[str, tuple[str, Any]] = {}

    def difference(self, old: "Snapshot") -> str | None:
        """Describe the first value that differs from `old`, or return None."""
        for path, (kind, value) in self.values.items():
            if path not in old.values:
                return f"{path}, which is {formatted(value)} and did not exist before"
            before = old.values[path]
            if kind == before[0] and EQUAL[kind](value, before[1]):
                continue
            if kind == before[0] == "state":
                return f"{path}, which has made training steps"
            return f"{path}, which was {formatted(before[1])} and is {formatted(value)}"
        for path in old.values.keys() - self.values.keys():
            _, value = old.values[path]
            return f"{path}, which was {formatted(value)} and no longer exists"
        return None

    def generator_states(self) -> list[bytes]:
        """Return the states of the random generators that user code can reach."""
        return [state_of(generator) for _, generator in self._generators.values()]

    def changed_generator(self, before: list[bytes]) -> str | None:
        """Describe the first generator whose state is not that of `before`, or None."""
        after = self.generator_states()
        paths = [path for path, _ in self._generators.values()]
        for path, old, new in zip(paths, before, after, strict=True):
            if old != new:
                return f"it draws from {path}"
        return None

    def _compile_holds(self) -> Callable[[], bool]:
        """Compile the function `holds` from all tests."""
        if not self._tests:
            return _always
        lines = " and ".join(self._tests)
        # only errors of the tests themselves: an exception of a signal handler must
        # get through
        errors = "AttributeError, LookupError, NameError, TypeError, ValueError"
        body = f" try:\n  return {lines}\n except ({errors}): return False"
        exec(_compile(f"def holds():\n{body}"), self._env)
        holds: Callable[[], bool] = self._env.pop("holds")
        return holds

    def _name(self, obj: Any) -> str:
        """Return the name of `obj` in the generated code."""
        name = self._names.get(id(obj))
        if name is None:
            name = self._names[id(obj)] = f"v{len(self._names)}"
            self._env[name] = obj
        return name

    def _test(self, code: str, path: str, kind: str, value: Any) -> None:
        """Add the test `code`, which must stay true, and record the value at `path`."""
        if code not in self._tests:
            self._tests[code] = None
            self._record(path, kind, value)

    def _record(self, path: str, kind: str, value: Any) -> None:
        """Record the value at `path`, with a number if the path is already used."""
        free_path = path
        number = 1
        while free_path in self.values:
            number += 1
            free_path = f"{path} [{number}]"
        self.values[free_path] = kind, value

    def _record_entries(self, obj: Any, path: str, entries: list[Any]) -> None:
        """Record the entries of a mutable container."""
        name = self._name(obj)
        count = len(entries)
        if isinstance(obj, set):
            now = frozenset(obj)
            self._test(f"{name} == {self._name(now)}", path, "==", now)
        elif isinstance(obj, bytearray):
            content = bytes(obj)
            self._test(f"{name} == {self._name(content)}", path, "==", content)
        elif isinstance(obj, dict):
            keys = tuple(obj)
            values = tuple(obj.values())
            test = f"len({name}) == {count}"
            if count:
                test += (
                    f" and all(map(is_, {name}, {self._name(keys)}))"
                    f" and all(map(is_, {name}.values(), {self._name(values)}))"
                )
            self._test(test, f"the keys of {path}", "==", keys)
        elif isinstance(obj, Mapping):
            test = f"[*{name}.items()] == {self._name(entries)}"
            self._test(test, f"the keys of {path}", "==", [key for key, _ in entries])
        else:
            test = f"len({name}) == {count}"
            if count == 1:
                test += f" and {name}[0] is {self._name(obj[0])}"
            elif count:
                test += f" and all(map(is_, {name}, {self._name(tuple(obj))}))"
            self._test(test, f"the length of {path}", "==", count)

    def _record_array(self, obj: Any, path: str) -> None:
        """Record the contents of an array, to compare them unless it is read-only."""
        if self._to_numpy is None:
            return
        try:
            host = obj if hasattr(obj, "tobytes") else self._to_numpy(obj)
        except Exception:  # an array of another library
            return
        data = host.tobytes()
        contents = ArrayContents((host.dtype, host.shape), data)
        self._record(f"the numbers in {path}", "==", contents)
        if not is_read_only(host):
            current = self._name(obj)
            if obj is not host:
                current = f"{self._name(self._to_numpy)}({current})"
            self._tests[f"{current}.tobytes() == {self._name(data)}"] = None


def _always() -> bool:
    return True


@lru_cache(256)
def _compile(source: str) -> CodeType:
    return compile(source, "<guards of agnostic_nn>", "exec")
