"""Guards: compiled functions follow the Python values that a user's code reads.

A compiled or replayed function runs its Python only now and then, so a number that Python read
is frozen in it. `guarded(function, ...)` finds out which values the user's own functions and
methods read, looks before each call whether they are still the same, and compiles again if not.

Read values are found without running anything: from the bytecode come the names of the closure
cells, globals and attributes that a function reads; from there on through defaults, `partial`s,
bound methods, containers, the fields of layers, losses and optimizers, and the attributes of
user objects and modules. This library's own code is pure: what consists of it alone has no guard.

Not seen: what Python reads from elsewhere (time, files, the environment, other processes), through
code of installed packages, or through C.
"""

import builtins
import dis
import os
import pickle
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import cache, cached_property, lru_cache, partial, update_wrapper
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple

from .atomic import into

__all__ = ["Guarded", "Names", "Watch", "guarded", "names_of", "reads"]

OURS = "agnostic_nn", "agnostic_nn_backends"
ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
MOST = 20_000  # entries of containers that are compared before each call
MANY = 10  # changes after which a warning says that something changes all the time
# called by layers, optimizers and operators of this library without being named in user code
CALLED = {
    *("__call__", "forward", "backward", "backward_params", "predict", "update", "averaged"),
    *("__getattr__", "__getattribute__", "__getitem__", "__len__", "__iter__", "__contains__"),
    *("__enter__", "__exit__", "__bool__", "__float__", "__int__", "__index__", "__array__"),
    *(
        f"__{side}{name}__"
        for name in ("add", "sub", "mul", "truediv", "pow")
        for side in ("", "r")
    ),
    *("divisor", "in_detail", "takes_now"),
    *("__neg__", "__abs__", "__eq__", "__lt__", "__gt__", "__le__", "__ge__", "__next__"),
}
MADE = {"__init__", "__new__", "__post_init__"}  # called where user code calls a class
WRITERS = {  # methods that only write: a list that is appended to and never read is no input
    *("add", "append", "appendleft", "discard", "extend", "extendleft", "insert", "update"),
    *("write", "writelines"),
}
# parts of the names of functions and methods that draw from a library's hidden generator
DRAWS = ("bernoulli", "dropout", "exponential_", "multinomial", "normal", "rand", "uniform")
DYNAMIC = {"getattr", "vars", "__dict__", "attrgetter", "asdict", "astuple"}
ITERATORS: tuple[type, ...] = (
    *(type(iter(kind())) for kind in (list, tuple, dict, set, str)),
    *(type(iter(range(1))), type(reversed([])), GeneratorType, enumerate, filter, map, zip),
)
REMEDY = (
    "Give arrays that change as `context` of a Trainer or as arguments, take randomness from a key "
    "in the layer's state, let a weight follow a schedule, or choose "
    "nn.backend(..., replay=False), which runs the Python of each step"
)
_MISSING = type("Missing", (), {"__repr__": lambda _: "missing"})()


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
        """The version for the values as they are now: `old` if they are equal to those."""
        watch = self._watch()
        if watch.refused:
            raise TypeError(f"{_name_of(self._function)} {watch.refused}. {REMEDY}.")
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
                f"{_name_of(self._function)} was compiled again {MANY} times in {self._calls} "
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
            f"{_name_of(self.function)} changes what it reads while it is called: {changed}. "
            "Compiled code would repeat one of these values for ever, so this is refused on "
            f"every backend. {REMEDY}."
        )


def _never() -> bool:
    return False


def _name_of(function: Any) -> str:
    function = getattr(function, "func", function)
    return getattr(function, "__name__", type(function).__name__)


def reads(function: Callable, thing: Any) -> bool:
    """Return whether a function that `Backend.jit` returned reads `thing` where that changes."""
    if not isinstance(function, Guarded):
        return False
    return any(thing is seen for seen in function._watch().changing)


# --- which names code reads -------------------------------------------------------------


class Names(NamedTuple):
    """What a code object and those nested in it read."""

    variables: frozenset[str]  # globals and cells
    attributes: frozenset[str]
    modules: frozenset[str]  # imported inside


@lru_cache(4096)
def names_of(code: CodeType) -> Names:
    """Return the names of what `code` reads; of lists that it only appends to, nothing."""
    variables, attributes, modules = set(), set(), set()
    steps = [i for i in dis.get_instructions(code) if i.opname not in _NOTHING]
    for number, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            modules.add(step.argval)
        elif step.opname in _ATTRIBUTES and not _is_written(steps, number):
            attributes.add(step.argval)
        elif step.opname in _VARIABLES and not _is_written(steps, number):
            variables.add(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for names, more in zip((variables, attributes, modules), names_of(inner), strict=True):
                names |= more
    return Names(frozenset(variables), frozenset(attributes), frozenset(modules))


_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"}
_VARIABLES = {
    *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"),
    *("LOAD_FROM_DICT_OR_DEREF", "LOAD_FROM_DICT_OR_GLOBALS"),
}
_NOTHING = {"CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL", "PRECALL", "RESUME", "NOT_TAKEN"}


def _is_written(steps: list, number: int) -> bool:
    """Whether what is loaded is only written to.

    As in `x.append(...)`, `x[key] = ...` and `x[key].append(...)`.
    """
    after = steps[number + 1 : number + 4]
    if after and after[0].opname in _METHODS:
        return after[0].argval in WRITERS
    if len(after) < 2 or not after[0].opname.startswith(_SIMPLE):
        return False
    if after[1].opname == "STORE_SUBSCR":
        return True
    is_entry = after[1].opname == "BINARY_SUBSCR" or after[1].argrepr == "[]"
    is_method = len(after) == 3 and after[2].opname in _METHODS
    return is_entry and is_method and after[2].argval in WRITERS


_METHODS = {"LOAD_ATTR", "LOAD_METHOD"}
_SIMPLE = ("LOAD_CONST", "LOAD_FAST", "LOAD_SMALL_INT")


# --- whose code it is -------------------------------------------------------------------


@cache
def _is_installed(file: str) -> bool:
    parts = file.replace("\\", "/").split("/")
    return "site-packages" in parts or "dist-packages" in parts


@cache
def _is_standard(root: str, file: str) -> bool:
    """Whether a module is of Python's own library."""
    if not file or file.startswith("<frozen"):
        return root in sys.stdlib_module_names
    home = os.path.dirname(os.__file__)
    return file.startswith(home + os.sep) and not _is_installed(file)


def _root(name: Any) -> str:
    return name.partition(".")[0] if isinstance(name, str) else ""


def _file_of(module_name: Any) -> str:
    return getattr(sys.modules.get(module_name), "__file__", None) or ""


# --- what is read ------------------------------------------------------------------------


class Watch:
    """The Python values that user code in `function` reads, as they are now.

    `holds()` is whether they are still the same: generated code that compares identities.
    """

    def __init__(
        self,
        function: Callable,
        to_numpy: Callable[[Any], Any] | None,
        libraries: frozenset[str] = frozenset(),
        hidden: Callable[[], Any] | None = None,
    ) -> None:
        self._to_numpy, self._libraries = to_numpy, libraries
        self._env: dict[str, Any] = {"missing": _MISSING, "is_": _is, "all": all, "map": map}
        self._named: dict[int, str] = {}  # names in the code, by the identity of what they mean
        self._tests: dict[str, None] = {}
        self._seen: dict[int, tuple[Any, bool]] = {}  # by identity: the thing, and `is_own`
        self._holders: list[_Holder] = []
        self._attributes: set[str] = set()
        self._count = 0
        self._generators: dict[int, tuple[str, Any]] = {}
        self._met_user_code = False
        self.refused: str | None = None  # why no guard can follow what is read
        self.changing: list[Any] = []  # objects of this library that change, such as a Trainer
        self.values: dict[str, tuple[str, Any]] = {}  # by path: the kind of comparison, and value
        self._walk(function, "", is_own=True, is_direct=True)
        self._look_at_attributes()
        drawing = sorted(name for name in self._attributes if any(d in name for d in DRAWS))
        if hidden is not None and drawing:
            self._generators[id(hidden)] = ", ".join(drawing), _Hidden(hidden)
        self.is_empty = not (self._tests or self._generators or self._met_user_code or self.refused)
        self.holds = self._written()

    # what it is for

    def difference(self, old: "Watch") -> str | None:
        """The first value that is not what it was, in words; None if all are equal."""
        for path, (kind, value) in self.values.items():
            if path not in old.values:
                return f"{path}, which is {_shown(value)} and was not there before"
            before = old.values[path]
            if kind == before[0] and _EQUAL[kind](value, before[1]):
                continue
            if kind == before[0] == "state":
                return f"{path}, which has made steps"
            return f"{path}, which was {_shown(before[1])} and is {_shown(value)}"
        for path in old.values.keys() - self.values.keys():
            return f"{path}, which was {_shown(old.values[path][1])} and is gone"
        return None

    def draws(self) -> list[bytes]:
        """The states of the random generators that user code can reach."""
        return [_state_of(generator) for _, generator in self._generators.values()]

    def drawn_from(self, before: list[bytes]) -> str | None:
        """The first generator whose state is another than `before`, in words, or None."""
        for (path, _), old, new in zip(
            self._generators.values(), before, self.draws(), strict=True
        ):
            if old != new:
                return f"it draws from {path}"
        return None

    def _written(self) -> Callable[[], bool]:
        if not self._tests:
            return _always
        lines = " and ".join(self._tests)
        # not of every Exception: one of a signal handler must not get lost here
        errors = "AttributeError, LookupError, NameError, TypeError, ValueError"
        exec(_compiled(f"def holds():\n try:\n  return {lines}\n except ({errors}): return False"),
             self._env)  # fmt: skip
        return self._env.pop("holds")

    def _refuse(self, why: str) -> None:
        self.refused = self.refused or why

    # writing tests

    def _name(self, thing: Any) -> str:
        """A name for `thing` in the generated code."""
        name = self._named.get(id(thing))
        if name is None:
            name = self._named[id(thing)] = f"v{len(self._named)}"
            self._env[name] = thing
        return name

    def _test(self, code: str, path: str, kind: str, value: Any) -> None:
        """Note that `code` has to be true, and that `value` stands at `path`."""
        if code not in self._tests:
            self._tests[code] = None
            self._note(path, kind, value)

    def _note(self, path: str, kind: str, value: Any) -> None:
        """Note what stands at `path`; there may be several things of one name."""
        unique, number = path, 1
        while unique in self.values:
            number += 1
            unique = f"{path} [{number}]"
        self.values[unique] = kind, value

    def _expect(self, code: str, value: Any, path: str, *, is_direct: bool = False) -> None:
        """Note that the expression `code` has to go on being `value`, and look into that."""
        self._test(f"{code} is {self._name(value)}", path, _kind_of(value), value)
        self._walk(value, path, is_direct=is_direct)

    # walking

    def _is_ours(self, module: Any) -> bool:
        return _root(module) in OURS

    def _is_users(self, module: Any, file: str | None = None) -> bool:
        file = _file_of(module) if file is None else file
        root = _root(module)
        if root in OURS or root in self._libraries:
            return False
        return not (_is_standard(root, file) or _is_installed(file))

    def _walk(
        self, thing: Any, path: str, *, is_own: bool = False, is_direct: bool = False
    ) -> None:
        """Look into a value that user code can reach.

        is_own: it is held by this library's code, which changes no container that it holds.
        is_direct: it was given to this library, such as a loss, rather than read by user code.
        """
        if isinstance(thing, ATOMS) or thing is _MISSING:
            return
        if isinstance(thing, MethodWrapperType):
            thing = thing.__self__
        seen = self._seen.get(id(thing))
        if seen is not None and (is_own or not seen[1]):
            return
        self._seen[id(thing)] = thing, is_own
        if isinstance(thing, ModuleType):
            if not self._is_ours(thing.__name__):
                self._holders.append(_Holder(thing, path, self._is_users(thing.__name__)))
        elif isinstance(thing, FunctionType):
            self._function(thing, path, is_direct)
        elif isinstance(thing, MethodType):
            self._walk(thing.__self__, path or type(thing.__self__).__name__, is_direct=is_direct)
            self._walk(thing.__func__, path, is_direct=is_direct)
        elif isinstance(thing, partial):
            self._partial(thing, path, is_own)
        elif isinstance(thing, BuiltinFunctionType):
            if not isinstance(thing.__self__, ModuleType):
                self._walk(thing.__self__, path)
        elif isinstance(thing, property):
            for part in (thing.fget, thing.fset):
                self._walk(part, path)
        elif isinstance(thing, staticmethod | classmethod):
            self._walk(thing.__func__, path)
        elif isinstance(thing, cached_property):
            self._walk(thing.func, path)
        elif isinstance(thing, type):
            self._class(thing, path)
        elif isinstance(thing, ContextVar):
            self._expect(f"{self._name(thing)}.get(missing)", thing.get(_MISSING), f"{path}.get()")
        elif isinstance(thing, ITERATORS) or type(thing).__module__ == "itertools":
            if not is_own:
                self._refuse(
                    f"reads {path}, an iterator ({type(thing).__name__}), which gives another "
                    "value each time"
                )
        elif _is_array(thing) and not self._is_users(type(thing).__module__):
            if not is_own:
                self._array(thing, path)
        elif _draws(thing):
            self._generators.setdefault(id(thing), (path or type(thing).__name__, thing))
        elif isinstance(thing, list | tuple | dict | set | frozenset | deque | bytearray | Mapping):
            self._container(thing, path, is_own, is_direct)
            if hasattr(thing, "__dict__"):
                self._object(thing, path)
        elif self._is_ours(type(thing).__module__):
            self._library_object(thing, path)
        else:
            self._object(thing, path)

    def _function(self, function: FunctionType, path: str, is_direct: bool) -> None:
        module, code = function.__globals__.get("__name__"), function.__code__
        is_users = self._is_users(module, code.co_filename)
        root = _root(module)
        if is_direct and not is_users and _is_installed(code.co_filename):
            is_users = root not in OURS and root not in self._libraries
        where = getattr(function, "__qualname__", code.co_name)
        if not is_users:
            wrapped = getattr(function, "__wrapped__", None)
            self._walk(wrapped, path, is_direct=is_direct)
            for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
                self._walk(_contents(cell), path or variable, is_own=True, is_direct=True)
            for value in function.__defaults__ or ():
                self._walk(value, path, is_own=True)
            return
        self._met_user_code = True
        names = names_of(code)
        name = self._name(function)
        self._test(f"{name}.__code__ is {self._name(code)}", f"the code of {where}", "is", code)
        defaults, keywords = function.__defaults__, function.__kwdefaults__
        test = f"{name}.__defaults__ is {self._name(defaults)}"
        self._test(test, f"the defaults of {where}", _kind_of(defaults), defaults)
        arguments = code.co_varnames[: code.co_argcount]
        for argument, value in zip(reversed(arguments), reversed(defaults or ()), strict=False):
            self._value(value, f"{argument} (a default of {where})")
        if keywords is not None:
            self._walk(keywords, f"the keyword defaults of {where}")
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            if variable in names.variables and variable != "__class__":
                path = f"{variable} (a closure variable of {where})"
                self._cell(cell, path)
        self._globals(function.__globals__, names.variables - {*code.co_freevars}, module)
        self._attributes |= names.attributes
        if DYNAMIC & (names.attributes | names.variables):
            self._attributes.add("*")
        for imported in names.modules:
            self._walk(sys.modules.get(imported), imported)
            self._walk(sys.modules.get(_root(imported)), _root(imported))
        if vars(function):
            self._holders.append(_Holder(function, where, True))
            self._walk(getattr(function, "__wrapped__", None), path)

    def _value(self, value: Any, path: str) -> None:
        """A value that stands where nothing can replace it: what it holds may change."""
        self._note(path, _kind_of(value), value)
        self._walk(value, path)

    def _cell(self, cell: Any, path: str) -> None:
        value = _contents(cell)
        if value is _MISSING:
            return
        self._expect(f"{self._name(cell)}.cell_contents", value, path)

    def _globals(self, found: dict[str, Any], names: Any, module: Any) -> None:
        for name in sorted(names):
            value = found.get(name, _MISSING)
            if value is _MISSING and hasattr(builtins, name):
                continue
            code = f"{self._name(found)}.get({name!r}, missing)"
            self._expect(code, value, f"{name} (a global of {module})")

    def _partial(self, thing: partial, path: str, is_own: bool) -> None:
        is_top = is_own and not path and _root(getattr(thing.func, "__module__", "")) in OURS
        self._walk(thing.func, path, is_direct=True)
        for value in thing.args:
            self._walk(
                value, f"an argument of {path or 'a partial'}", is_own=is_top, is_direct=True
            )
        where = path or f"partial of {_name_of(thing.func)}"
        if thing.keywords and not is_top:
            self._container(thing.keywords, f"the options of {where}", False, True)
        else:
            self._container(thing.keywords, f"the options of {where}", True, True)

    def _class(self, kind: type, path: str) -> None:
        if not self._is_users(kind.__module__):
            return
        self._met_user_code = True
        self._holders.append(_Holder(kind, path or kind.__qualname__, True))
        for base in kind.__mro__:
            for name in MADE & vars(base).keys():
                if self._is_users(base.__module__):
                    self._walk(vars(base)[name], f"{base.__qualname__}.{name}")

    def _container(self, thing: Any, path: str, is_own: bool, is_direct: bool) -> None:
        self._count += 0 if is_own else len(thing)
        if self._count > MOST:
            self._refuse(
                f"reads {path}, a {type(thing).__name__} of {len(thing)} entries: too many values "
                f"in containers to compare before each call, {MOST} at most; make it an array"
            )
            return
        if isinstance(thing, dict | Mapping):
            entries = list(thing.items())
        elif isinstance(thing, set | frozenset):
            entries = [(None, entry) for entry in thing]
        elif isinstance(thing, bytearray):
            entries = []
        else:
            entries = list(enumerate(thing))
        if not is_own and not isinstance(thing, tuple | frozenset):
            self._contents(thing, path, entries)
        elif not is_own:
            self._note(f"the length of {path}", "==", len(thing))
        for key, value in entries:
            at = path if key is None else f"{_inside(path, f'[{key!r}]')}"
            if not is_own and key is not None:
                self._note(at, _kind_of(value), value)
            self._walk(value, at, is_own=is_own, is_direct=is_direct)

    def _contents(self, thing: Any, path: str, entries: list) -> None:
        """Note what a container that may change holds now."""
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

    def _array(self, thing: Any, path: str) -> None:
        """An array is compared by its bytes, whatever its size, unless nothing can write to it."""
        if self._to_numpy is None:
            return
        try:
            host = thing if hasattr(thing, "tobytes") else self._to_numpy(thing)
        except Exception:  # of another library than the backend's
            return
        now = host.tobytes()
        self._note(f"the numbers in {path}", "==", _Numbers((host.dtype, host.shape), now))
        if not _is_read_only(host):
            name, bytes_ = self._name(thing), self._name(now)
            if thing is not host:
                name = f"{self._name(self._to_numpy)}({name})"
            self._tests[f"{name}.tobytes() == {bytes_}"] = None

    def _library_object(self, thing: Any, path: str) -> None:
        kind = type(thing)
        if hasattr(kind, "_as_of"):  # whether that is read is known when all names are
            self._holders.append(_Holder(thing, path, False))
            return
        is_data = _is_frozen(kind)  # what a user gave to it is in its fields
        if is_data:
            values = {f.name: getattr(thing, f.name, None) for f in fields(kind) if f.init}
        else:
            values = dict(getattr(thing, "__dict__", {}))
        path = path or kind.__name__
        for name, value in values.items():
            self._walk(value, _inside(path, f".{name}"), is_own=not is_data, is_direct=True)

    def _changing(self, thing: Any, path: str) -> None:
        now, name = thing._as_of(), self._name(thing)
        self.changing.append(thing)
        test = f"all(map(is_, {name}._as_of(), {self._name(now)}))"
        self._test(test, f"the state of {path}, a {type(thing).__name__}", "state", now)

    def _object(self, thing: Any, path: str) -> None:
        kind = type(thing)
        is_users = self._is_users(kind.__module__)
        wrapped = None if is_users else getattr(thing, "__wrapped__", None)
        if wrapped is not None and callable(thing):  # such as what `functools.cache` makes
            self._walk(wrapped, path, is_direct=True)
            return
        self._met_user_code |= is_users
        if is_users or hasattr(thing, "__dict__"):
            self._holders.append(_Holder(thing, path or kind.__name__, is_users))

    # attributes, by the names that any user code reads

    def _look_at_attributes(self) -> None:
        """Look at attributes of all holders until no new name and no new holder turns up."""
        while True:
            before = len(self._holders), len(self._attributes)
            for holder in list(self._holders):
                self._look_at(holder)
            if before == (len(self._holders), len(self._attributes)):
                return

    def _look_at(self, holder: "_Holder") -> None:
        thing = holder.thing
        if isinstance(thing, ModuleType):
            look = self._module if holder.is_users else self._foreign_module
        elif isinstance(thing, type):
            look = self._class_attribute
        elif hasattr(type(thing), "_as_of"):
            is_new = not any(thing is seen for seen in self.changing)
            if is_new and (type(thing).CHANGES | {"*"}) & self._attributes:
                self._changing(thing, holder.path)
            look = self._attribute
        else:
            look = self._attribute
        names = self._attributes | (_called_of(type(thing)) if holder.is_users else set())
        if holder.is_users and is_dataclass(thing) and not isinstance(thing, type):
            names = names | {field.name for field in fields(thing)}
        if "*" in names and not isinstance(thing, ModuleType | type):
            names = names | set(getattr(thing, "__dict__", ()))
        for name in sorted(names - holder.done):
            holder.done.add(name)
            look(holder, name)

    def _module(self, holder: "_Holder", name: str) -> None:
        found = vars(holder.thing)
        if name in found:
            code = f"{self._name(found)}.get({name!r}, missing)"
            self._expect(code, found[name], _inside(holder.path, f".{name}"))

    def _foreign_module(self, holder: "_Holder", name: str) -> None:
        """Of an installed module only functions that draw from a hidden generator matter."""
        module = holder.thing
        value = vars(module).get(name, sys.modules.get(f"{module.__name__}.{name}"))
        if isinstance(value, ModuleType):
            if not self._is_ours(value.__name__):
                self._walk(value, _inside(holder.path, f".{name}"))
        elif _draws(getattr(value, "__self__", None)) or _draws(value):
            self._walk(getattr(value, "__self__", value), _inside(holder.path, f".{name}"))

    def _class_attribute(self, holder: "_Holder", name: str) -> None:
        for base in holder.thing.__mro__:
            if self._is_users(base.__module__) and name in vars(base):
                self._of_class(base, name)

    def _of_class(self, base: type, name: str) -> None:
        value = vars(base)[name]
        if isinstance(value, MemberDescriptorType | GetSetDescriptorType):
            return
        code = f"{self._name(base)}.__dict__.get({name!r}, missing)"
        self._expect(code, value, f"{base.__qualname__}.{name}", is_direct=True)

    def _attribute(self, holder: "_Holder", name: str) -> None:
        thing, kind = holder.thing, type(holder.thing)
        own = getattr(thing, "__dict__", None)
        path = _inside(holder.path, f".{name}")
        bases = [base for base in kind.__mro__ if name in vars(base)]
        theirs = [base for base in bases if self._is_users(base.__module__)]
        for base in theirs:
            value = vars(base)[name]
            if isinstance(value, MemberDescriptorType):
                held = getattr(thing, name, _MISSING)
                test = f"getattr({self._name(thing)}, {name!r}, missing)"
                self._expect(test, held, path)
            else:
                self._of_class(base, name)
        if own is None or name.startswith("__"):
            return
        is_frozen = _is_frozen(kind)
        if name in own:
            if is_frozen:
                self._value(own[name], path)
            else:
                code = f"{self._name(thing)}.__dict__.get({name!r}, missing)"
                self._expect(code, own[name], path, is_direct=True)
        elif theirs and not is_frozen:  # an attribute of the instance would hide the class's
            code = f"{self._name(thing)}.__dict__.get({name!r}, missing)"
            self._test(f"{code} is missing", path, "is", _MISSING)


class _Hidden(NamedTuple):
    """The hidden generator of an array library."""

    getstate: Callable[[], Any]


class _Holder:
    """A thing with attributes, and the names that were looked for."""

    def __init__(self, thing: Any, path: str, is_users: bool) -> None:
        self.thing, self.path, self.is_users = thing, path, is_users
        self.done: set[str] = set()


def _called_of(kind: type) -> frozenset[str]:
    """The methods of a user's class that this library or an operator may call."""
    ours = [vars(base) for base in kind.__mro__ if _root(base.__module__) in OURS]
    return frozenset(CALLED).union(*ours) - {"__dict__", "__doc__", "__module__", "__init__"}


class _Numbers(NamedTuple):
    """An array, to be compared bit by bit."""

    layout: tuple
    data: bytes

    def __repr__(self) -> str:
        return f"an array of {self.layout[0]} {self.layout[1]}"


def _is(one: Any, other: Any) -> bool:
    return one is other


def _always() -> bool:
    return True


@lru_cache(256)
def _compiled(source: str) -> CodeType:
    return compile(source, "<guards of agnostic_nn>", "exec")


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _MISSING


def _inside(path: str, more: str) -> str:
    """`path` with an attribute or index, before the words on where it begins."""
    expression, found, where = path.partition(" (")
    return f"{expression}{more}{found}{where}"


def _is_frozen(kind: type) -> bool:
    """Whether a class is a frozen dataclass itself, not only one of its bases."""
    settings = vars(kind).get("__dataclass_params__")
    return settings is not None and settings.frozen


def _shown(value: Any) -> str:
    """A value in an error, cut where it is long; of objects the type only."""
    if type(value) in (tuple, frozenset) and not all(isinstance(v, ATOMS) for v in value):
        return f"a {type(value).__name__}"
    if not isinstance(value, (*ATOMS, _Numbers, tuple, frozenset)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind_of(value: Any) -> str:
    """How two values at one place are compared: their entries and numbers are so by themselves."""
    if isinstance(value, ATOMS):
        return "=="
    if isinstance(value, list | tuple | dict | set | frozenset | deque | bytearray):
        return "type"
    return "array" if _is_array(value) else "is"


def _is_equal(one: Any, other: Any) -> bool:
    """Whether two plain values are the same, bit for bit: -0.0 is not 0.0, and NaN is NaN."""
    if type(one) is not type(other):
        return False
    return repr(one) == repr(other) if isinstance(one, float | complex) else one == other


def _is_alike(one: Any, other: Any) -> bool:
    return type(one) is type(other)


_EQUAL: dict[str, Callable[[Any, Any], bool]] = {
    "is": _is,
    "==": _is_equal,
    "type": _is_alike,
    "state": lambda one, other: all(map(_is, one, other)),
    "array": _is_alike,
}


def _is_array(thing: Any) -> bool:
    # looked for on the type: a property of a user's class is not run
    return all(hasattr(type(thing), name) for name in ("shape", "dtype", "ndim"))


def _is_read_only(host: Any) -> bool:
    """Whether nothing can write to the memory of a NumPy array, nor to what it is a view of."""
    while host is not None and hasattr(host, "flags"):
        if host.flags.writeable:
            return False
        host = host.base
    return not isinstance(host, bytearray | memoryview)


def _draws(thing: Any) -> bool:
    """Whether a thing is a random generator."""
    if thing is None or isinstance(thing, type | ModuleType):
        return False
    kind = type(thing)
    named = hasattr(kind, "bit_generator") or hasattr(kind, "getstate")
    legacy = hasattr(kind, "get_state") and hasattr(kind, "set_state") and hasattr(kind, "seed")
    torchs = hasattr(kind, "get_state") and hasattr(kind, "manual_seed")
    bits = hasattr(kind, "state") and hasattr(kind, "random_raw")
    return named or legacy or torchs or bits


def _state_of(generator: Any) -> bytes:
    if hasattr(generator, "bit_generator"):
        state = generator.bit_generator.state
    elif hasattr(generator, "getstate"):
        state = generator.getstate()
    elif hasattr(generator, "get_state"):
        state = generator.get_state()
    else:
        state = generator.state
    return pickle.dumps(state)
