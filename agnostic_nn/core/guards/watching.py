"""Watching: find the Python values that user code reads, without running any of it.

From the bytecode come the names of the closure cells, globals and attributes that a function
reads. From there the search goes on through defaults, `partial`s, bound methods, containers,
the fields of layers, losses and optimizers, and the attributes of user objects and modules.
"""

import builtins
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from types import (
    BuiltinFunctionType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

from .names import OURS, file_of, is_installed, is_ours, is_standard, name_of, names_of, root_of
from .snapshot import Snapshot
from .values import (
    ATOMS,
    MISSING,
    Hidden,
    contents_of,
    inside,
    is_array,
    is_frozen_class,
    is_generator,
    kind_of,
)

__all__ = ["Watch"]

MOST = 20_000  # entries of containers that are compared before each call
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
    *("divisor", "with_divisor", "takes_keyword"),
    *("__neg__", "__abs__", "__eq__", "__lt__", "__gt__", "__le__", "__ge__", "__next__"),
}
MADE = {"__init__", "__new__", "__post_init__"}  # called where user code calls a class
# parts of the names of functions and methods that draw from a library's hidden generator
DRAWS = ("bernoulli", "dropout", "exponential_", "multinomial", "normal", "rand", "uniform")
DYNAMIC = {"getattr", "vars", "__dict__", "attrgetter", "asdict", "astuple"}
ITERATORS: tuple[type, ...] = (
    *(type(iter(kind())) for kind in (list, tuple, dict, set, str)),
    *(type(iter(range(1))), type(reversed([])), GeneratorType, enumerate, filter, map, zip),
)


class Watch(Snapshot):
    """The current Python values that user code in `function` reads."""

    def __init__(
        self,
        function: Callable,
        to_numpy: Callable[[Any], Any] | None,
        libraries: frozenset[str] = frozenset(),
        hidden: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(to_numpy)
        self._libraries = libraries
        self._seen: dict[int, tuple[Any, bool]] = {}  # by identity: the thing, and `is_own`
        self._holders: list[_Holder] = []
        self._attributes: set[str] = set()
        self._count = 0
        self._met_user_code = False
        self.refused: str | None = None  # why no guard can follow what is read
        self.changing: list[Any] = []  # objects of this library that change, such as a Trainer
        self._walk(function, "", is_own=True, is_direct=True)
        self._look_at_attributes()
        drawing = sorted(name for name in self._attributes if any(d in name for d in DRAWS))
        if hidden is not None and drawing:
            self._generators[id(hidden)] = ", ".join(drawing), Hidden(hidden)
        self.is_empty = not (self._tests or self._generators or self._met_user_code or self.refused)
        self.holds = self._written()

    def _refuse(self, why: str) -> None:
        """Set the first reason why the function cannot be guarded."""
        self.refused = self.refused or why

    def _expect(self, code: str, value: Any, path: str, *, is_direct: bool = False) -> None:
        """Note that the expression `code` has to stay `value`, and look into that."""
        self._test(f"{code} is {self._name(value)}", path, kind_of(value), value)
        self._walk(value, path, is_direct=is_direct)

    # walking

    def _is_users(self, module: Any, file: str | None = None) -> bool:
        """Return whether a module is user code: not of Python, this library or a package."""
        file = file_of(module) if file is None else file
        root = root_of(module)
        if root in OURS or root in self._libraries:
            return False
        return not (is_standard(root, file) or is_installed(file))

    def _walk(
        self, thing: Any, path: str, *, is_own: bool = False, is_direct: bool = False
    ) -> None:
        """Look into a value that user code can reach.

        is_own: it is held by this library's code, which changes no container that it holds.
        is_direct: it was given to this library, such as a loss, rather than read by user code.
        """
        if isinstance(thing, ATOMS) or thing is MISSING:
            return
        if isinstance(thing, MethodWrapperType):
            thing = thing.__self__
        earlier = self._seen.get(id(thing))
        if earlier is not None and (is_own or not earlier[1]):
            return
        self._seen[id(thing)] = thing, is_own
        if isinstance(thing, ModuleType):
            if not is_ours(thing.__name__):
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
            self._expect(f"{self._name(thing)}.get(missing)", thing.get(MISSING), f"{path}.get()")
        elif isinstance(thing, ITERATORS) or type(thing).__module__ == "itertools":
            if not is_own:
                self._refuse(
                    f"reads {path}, an iterator ({type(thing).__name__}), which gives another "
                    "value each time"
                )
        elif is_array(thing) and not self._is_users(type(thing).__module__):
            if not is_own:
                self._note_array(thing, path)
        elif is_generator(thing):
            self._generators.setdefault(id(thing), (path or type(thing).__name__, thing))
        elif isinstance(thing, list | tuple | dict | set | frozenset | deque | bytearray | Mapping):
            self._container(thing, path, is_own, is_direct)
            if hasattr(thing, "__dict__"):
                self._object(thing, path)
        elif is_ours(type(thing).__module__):
            self._library_object(thing, path)
        else:
            self._object(thing, path)

    def _function(self, function: FunctionType, path: str, is_direct: bool) -> None:
        module, code = function.__globals__.get("__name__"), function.__code__
        is_users = self._is_users(module, code.co_filename)
        root = root_of(module)
        if is_direct and not is_users and is_installed(code.co_filename):
            is_users = root not in OURS and root not in self._libraries
        where = getattr(function, "__qualname__", code.co_name)
        if not is_users:
            wrapped = getattr(function, "__wrapped__", None)
            self._walk(wrapped, path, is_direct=is_direct)
            for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
                self._walk(contents_of(cell), path or variable, is_own=True, is_direct=True)
            for value in function.__defaults__ or ():
                self._walk(value, path, is_own=True)
            return
        self._met_user_code = True
        names = names_of(code)
        name = self._name(function)
        self._test(f"{name}.__code__ is {self._name(code)}", f"the code of {where}", "is", code)
        defaults, keywords = function.__defaults__, function.__kwdefaults__
        test = f"{name}.__defaults__ is {self._name(defaults)}"
        self._test(test, f"the defaults of {where}", kind_of(defaults), defaults)
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
            self._walk(sys.modules.get(root_of(imported)), root_of(imported))
        if vars(function):
            self._holders.append(_Holder(function, where, True))
            self._walk(getattr(function, "__wrapped__", None), path)

    def _value(self, value: Any, path: str) -> None:
        """Note a value that nothing can replace, and look into it, as its contents may change."""
        self._note(path, kind_of(value), value)
        self._walk(value, path)

    def _cell(self, cell: Any, path: str) -> None:
        value = contents_of(cell)
        if value is MISSING:
            return
        self._expect(f"{self._name(cell)}.cell_contents", value, path)

    def _globals(self, found: dict[str, Any], names: Any, module: Any) -> None:
        for name in sorted(names):
            value = found.get(name, MISSING)
            if value is MISSING and hasattr(builtins, name):
                continue
            code = f"{self._name(found)}.get({name!r}, missing)"
            self._expect(code, value, f"{name} (a global of {module})")

    def _partial(self, thing: partial, path: str, is_own: bool) -> None:
        is_top = is_own and not path and root_of(getattr(thing.func, "__module__", "")) in OURS
        self._walk(thing.func, path, is_direct=True)
        for value in thing.args:
            self._walk(
                value, f"an argument of {path or 'a partial'}", is_own=is_top, is_direct=True
            )
        where = path or f"partial of {name_of(thing.func)}"
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
            self._note_entries(thing, path, entries)
        elif not is_own:
            self._note(f"the length of {path}", "==", len(thing))
        for key, value in entries:
            at = path if key is None else f"{inside(path, f'[{key!r}]')}"
            if not is_own and key is not None:
                self._note(at, kind_of(value), value)
            self._walk(value, at, is_own=is_own, is_direct=is_direct)

    def _library_object(self, thing: Any, path: str) -> None:
        kind = type(thing)
        if hasattr(kind, "_as_of"):  # whether that is read is known when all names are
            self._holders.append(_Holder(thing, path, False))
            return
        is_data = is_frozen_class(kind)  # what a user gave to it is in its fields
        if is_data:
            values = {f.name: getattr(thing, f.name, None) for f in fields(kind) if f.init}
        else:
            values = dict(getattr(thing, "__dict__", {}))
        path = path or kind.__name__
        for name, value in values.items():
            self._walk(value, inside(path, f".{name}"), is_own=not is_data, is_direct=True)

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
        """Look at the attributes of all holders until neither a name nor a holder is new."""
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
            is_new = not any(thing is other for other in self.changing)
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
        contents = vars(holder.thing)
        if name in contents:
            code = f"{self._name(contents)}.get({name!r}, missing)"
            self._expect(code, contents[name], inside(holder.path, f".{name}"))

    def _foreign_module(self, holder: "_Holder", name: str) -> None:
        """Look at functions of an installed module that draw from a hidden generator."""
        module = holder.thing
        value = vars(module).get(name, sys.modules.get(f"{module.__name__}.{name}"))
        if isinstance(value, ModuleType):
            if not is_ours(value.__name__):
                self._walk(value, inside(holder.path, f".{name}"))
        elif is_generator(getattr(value, "__self__", None)) or is_generator(value):
            self._walk(getattr(value, "__self__", value), inside(holder.path, f".{name}"))

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
        path = inside(holder.path, f".{name}")
        bases = [base for base in kind.__mro__ if name in vars(base)]
        theirs = [base for base in bases if self._is_users(base.__module__)]
        for base in theirs:
            value = vars(base)[name]
            if isinstance(value, MemberDescriptorType):
                held = getattr(thing, name, MISSING)
                test = f"getattr({self._name(thing)}, {name!r}, missing)"
                self._expect(test, held, path)
            else:
                self._of_class(base, name)
        if own is None or name.startswith("__"):
            return
        is_frozen = is_frozen_class(kind)
        if name in own:
            if is_frozen:
                self._value(own[name], path)
            else:
                code = f"{self._name(thing)}.__dict__.get({name!r}, missing)"
                self._expect(code, own[name], path, is_direct=True)
        elif theirs and not is_frozen:  # an attribute of the instance would hide the class's
            code = f"{self._name(thing)}.__dict__.get({name!r}, missing)"
            self._test(f"{code} is missing", path, "is", MISSING)


class _Holder:
    """A thing with attributes, and the names that have been looked up."""

    def __init__(self, thing: Any, path: str, is_users: bool) -> None:
        self.thing, self.path, self.is_users = thing, path, is_users
        self.done: set[str] = set()


def _called_of(kind: type) -> frozenset[str]:
    """Return the methods of a user class that this library or an operator may call."""
    ours = [vars(base) for base in kind.__mro__ if root_of(base.__module__) in OURS]
    return frozenset(CALLED).union(*ours) - {"__dict__", "__doc__", "__module__", "__init__"}
