"""Find the Python values that user code reads, without running it.

The bytecode of a function contains the names of the closure cells, globals and
attributes that it reads. From their values the search continues through defaults,
`partial` objects, bound methods, containers, the fields of layers, losses and
optimizers, and the attributes of user objects and modules.
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

from .names import (
    LIBRARY_PACKAGES,
    file_of,
    is_installed,
    is_library,
    is_standard,
    name_of,
    names_of,
    root_of,
)
from .snapshot import Snapshot
from .values import (
    ATOMS,
    MISSING,
    HiddenGenerator,
    cell_contents,
    is_array,
    is_frozen_class,
    is_generator,
    join_path,
    kind_of,
)

__all__ = ["Watch"]

MAX_ENTRIES = 20_000  # entries of containers, as all are compared before each call
# methods that this library or an operator calls, although user code does not name them
IMPLICITLY_CALLED = {
    *("__call__", "forward", "backward", "backward_params", "predict", "update"),
    *("averaged", "divisor", "uses_divisor", "with_divisor", "takes_keyword"),
    *("__getattr__", "__getattribute__", "__getitem__", "__len__", "__contains__"),
    *("__iter__", "__next__", "__enter__", "__exit__"),
    *("__bool__", "__float__", "__int__", "__index__", "__array__"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__"),
    *("__truediv__", "__rtruediv__", "__pow__", "__rpow__", "__neg__", "__abs__"),
    *("__eq__", "__lt__", "__gt__", "__le__", "__ge__"),
}
# run when user code calls a class
CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}
# functions and methods with one of these in their names draw from a hidden generator
DRAWING_NAMES = (
    *("bernoulli", "dropout", "exponential_", "multinomial", "normal", "rand"),
    "uniform",
)
# code that uses one of these may read any attribute
DYNAMIC_ACCESS = {"getattr", "vars", "__dict__", "attrgetter", "asdict", "astuple"}
ITERATORS: tuple[type, ...] = (
    *(type(iter(kind())) for kind in (list, tuple, dict, set, str)),
    *(type(iter(range(1))), type(reversed([])), GeneratorType),
    *(enumerate, filter, map, zip),
)


CONTAINERS = (list, tuple, dict, set, frozenset, deque, bytearray, Mapping)


class Watch(Snapshot):
    """The current Python values that user code in `function` reads."""

    def __init__(
        self,
        function: Callable[..., Any],
        to_numpy: Callable[[Any], Any] | None,
        libraries: frozenset[str] = frozenset(),
        hidden: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(to_numpy)
        self._libraries = libraries
        self._visited: dict[int, tuple[Any, bool]] = {}  # by id: object, `is_internal`
        self._holders: list[_Holder] = []
        # names that any user code reads; "*" for all names
        self._attributes: set[str] = set()
        self._entry_count = 0
        self._has_user_code = False
        self.refused: str | None = None  # the reason why the function cannot be guarded
        # objects of this library that change, such as a Trainer
        self.changing: list[Any] = []
        self._walk(function, "", is_internal=True, is_direct=True)
        self._inspect_attributes()
        drawing = sorted(
            name for name in self._attributes if any(d in name for d in DRAWING_NAMES)
        )
        if hidden is not None and drawing:
            self._generators[id(hidden)] = ", ".join(drawing), HiddenGenerator(hidden)
        self.is_empty: bool = not (
            self._tests or self._generators or self._has_user_code or self.refused
        )
        self.holds: Callable[[], bool] = self._compile_holds()

    def _refuse(self, why: str) -> None:
        """Set the first reason why the function cannot be guarded."""
        self.refused = self.refused or why

    def _expect(
        self, code: str, value: Any, path: str, *, is_direct: bool = False
    ) -> None:
        """Test that the expression `code` stays `value`, and search that value too."""
        self._test(f"{code} is {self._name(value)}", path, kind_of(value), value)
        self._walk(value, path, is_direct=is_direct)

    # walking

    def _is_user_code(self, module: Any, file: str | None = None) -> bool:
        """Return whether a module is user code.

        It is if it belongs neither to this library, an array library or the standard
        library, nor to any installed package.
        """
        file = file_of(module) if file is None else file
        root = root_of(module)
        if root in LIBRARY_PACKAGES or root in self._libraries:
            return False
        return not (is_standard(root, file) or is_installed(file))

    def _walk(
        self, obj: Any, path: str, *, is_internal: bool = False, is_direct: bool = False
    ) -> None:
        """Search a value that user code can reach.

        is_internal: the value is held by this library's code, which does not change the
        containers that it holds, so they are not compared.
        is_direct: the value was passed to this library, such as a loss, rather than
        read by user code. A function of an installed package is then treated as user
        code.
        """
        if isinstance(obj, ATOMS) or obj is MISSING:
            return
        if isinstance(obj, MethodWrapperType):
            obj = obj.__self__
        visited = self._visited.get(id(obj))
        if visited is not None and (is_internal or not visited[1]):
            return
        self._visited[id(obj)] = obj, is_internal
        if isinstance(obj, ModuleType):
            if not is_library(obj.__name__):
                is_user_code = self._is_user_code(obj.__name__)
                self._holders.append(_Holder(obj, path, is_user_code))
        elif isinstance(obj, FunctionType):
            self._function(obj, path, is_direct)
        elif isinstance(obj, MethodType):
            owner_path = path or type(obj.__self__).__name__
            self._walk(obj.__self__, owner_path, is_direct=is_direct)
            self._walk(obj.__func__, path, is_direct=is_direct)
        elif isinstance(obj, partial):
            self._partial(obj, path, is_internal)
        elif isinstance(obj, BuiltinFunctionType):
            if not isinstance(obj.__self__, ModuleType):
                self._walk(obj.__self__, path)
        elif isinstance(obj, property):
            for part in (obj.fget, obj.fset):
                self._walk(part, path)
        elif isinstance(obj, staticmethod | classmethod):
            self._walk(obj.__func__, path)
        elif isinstance(obj, cached_property):
            self._walk(obj.func, path)
        elif isinstance(obj, type):
            self._class(obj, path)
        elif isinstance(obj, ContextVar):
            code = f"{self._name(obj)}.get(missing)"
            self._expect(code, obj.get(MISSING), f"{path}.get()")
        elif isinstance(obj, ITERATORS) or type(obj).__module__ == "itertools":
            if not is_internal:
                self._refuse(
                    f"reads {path}, an iterator ({type(obj).__name__}), which gives "
                    "another value each time"
                )
        elif is_array(obj) and not self._is_user_code(type(obj).__module__):
            if not is_internal:
                self._record_array(obj, path)
        elif is_generator(obj):
            self._generators.setdefault(id(obj), (path or type(obj).__name__, obj))
        elif isinstance(obj, CONTAINERS):
            self._container(obj, path, is_internal, is_direct)
            # an instance of a subclass, which may have attributes
            if hasattr(obj, "__dict__"):
                self._object(obj, path)
        elif is_library(type(obj).__module__):
            self._library_object(obj, path)
        else:
            self._object(obj, path)

    def _function(self, function: FunctionType, path: str, is_direct: bool) -> None:
        """Search a function: record what its code reads if it is user code.

        Of other functions, such as a decorator's wrapper, only the values that they
        hold are searched.
        """
        module = function.__globals__.get("__name__")
        code = function.__code__
        is_user_code = self._is_user_code(module, code.co_filename)
        root = root_of(module)
        if is_direct and not is_user_code and is_installed(code.co_filename):
            is_user_code = root not in LIBRARY_PACKAGES and root not in self._libraries
        where = getattr(function, "__qualname__", code.co_name)
        if not is_user_code:
            wrapped = getattr(function, "__wrapped__", None)
            self._walk(wrapped, path, is_direct=is_direct)
            cells = zip(code.co_freevars, function.__closure__ or (), strict=False)
            for variable, cell in cells:
                value = cell_contents(cell)
                self._walk(value, path or variable, is_internal=True, is_direct=True)
            for value in function.__defaults__ or ():
                self._walk(value, path, is_internal=True)
            return
        self._has_user_code = True
        names = names_of(code)
        name = self._name(function)
        test = f"{name}.__code__ is {self._name(code)}"
        self._test(test, f"the code of {where}", "is", code)
        defaults = function.__defaults__
        keywords = function.__kwdefaults__
        test = f"{name}.__defaults__ is {self._name(defaults)}"
        self._test(test, f"the defaults of {where}", kind_of(defaults), defaults)
        arguments = code.co_varnames[: code.co_argcount]
        last_first = reversed(arguments), reversed(defaults or ())
        for argument, value in zip(*last_first, strict=False):
            self._value(value, f"{argument} (a default of {where})")
        if keywords is not None:
            self._walk(keywords, f"the keyword defaults of {where}")
        cells = zip(code.co_freevars, function.__closure__ or (), strict=False)
        for variable, cell in cells:
            if variable in names.variables and variable != "__class__":
                path = f"{variable} (a closure variable of {where})"
                self._cell(cell, path)
        global_names = names.variables - {*code.co_freevars}
        self._globals(function.__globals__, global_names, module)
        self._attributes |= names.attributes
        if DYNAMIC_ACCESS & (names.attributes | names.variables):
            self._attributes.add("*")
        for imported in names.modules:
            self._walk(sys.modules.get(imported), imported)
            self._walk(sys.modules.get(root_of(imported)), root_of(imported))
        if vars(function):
            self._holders.append(_Holder(function, where, True))
            self._walk(getattr(function, "__wrapped__", None), path)

    def _value(self, value: Any, path: str) -> None:
        """Record a value that cannot be replaced, and search its contents."""
        self._record(path, kind_of(value), value)
        self._walk(value, path)

    def _cell(self, cell: Any, path: str) -> None:
        """Record and search the value of a closure cell, if it is set."""
        value = cell_contents(cell)
        if value is MISSING:
            return
        self._expect(f"{self._name(cell)}.cell_contents", value, path)

    def _globals(self, variables: dict[str, Any], names: Any, module: Any) -> None:
        """Record and search the global variables of a module that have these names."""
        for name in sorted(names):
            value = variables.get(name, MISSING)
            if value is MISSING and hasattr(builtins, name):
                continue
            code = f"{self._name(variables)}.get({name!r}, missing)"
            self._expect(code, value, f"{name} (a global of {module})")

    def _partial(self, obj: partial[Any], path: str, is_internal: bool) -> None:
        """Search the function and the arguments of a `partial`.

        If this library created it, around one of its own functions, no other code holds
        its arguments, so they are not compared.
        """
        is_internal_partial = (
            is_internal
            and not path
            and root_of(getattr(obj.func, "__module__", "")) in LIBRARY_PACKAGES
        )
        self._walk(obj.func, path, is_direct=True)
        label = f"an argument of {path or 'a partial'}"
        for value in obj.args:
            self._walk(value, label, is_internal=is_internal_partial, is_direct=True)
        where = path or f"partial of {name_of(obj.func)}"
        is_internal_options = is_internal_partial or not obj.keywords
        label = f"the options of {where}"
        self._container(obj.keywords, label, is_internal_options, True)

    def _class(self, kind: type, path: str) -> None:
        """Search the methods of a user-defined class that create an instance."""
        if not self._is_user_code(kind.__module__):
            return
        self._has_user_code = True
        self._holders.append(_Holder(kind, path or kind.__qualname__, True))
        for base in kind.__mro__:
            for name in CONSTRUCTORS & vars(base).keys():
                if self._is_user_code(base.__module__):
                    self._walk(vars(base)[name], f"{base.__qualname__}.{name}")

    def _container(
        self, obj: Any, path: str, is_internal: bool, is_direct: bool
    ) -> None:
        """Record the entries of a container, unless it is internal, and search them."""
        self._entry_count += 0 if is_internal else len(obj)
        if self._entry_count > MAX_ENTRIES:
            self._refuse(
                f"reads {path}, a {type(obj).__name__} of {len(obj)} entries: too many "
                f"values in containers to compare before each call, {MAX_ENTRIES} at "
                "most; make it an array"
            )
            return
        if isinstance(obj, dict | Mapping):
            entries = list(obj.items())
        elif isinstance(obj, set | frozenset):
            entries = [(None, entry) for entry in obj]
        elif isinstance(obj, bytearray):
            entries = []
        else:
            entries = list(enumerate(obj))
        if not is_internal and not isinstance(obj, tuple | frozenset):
            self._record_entries(obj, path, entries)
        elif not is_internal:
            self._record(f"the length of {path}", "==", len(obj))
        for key, value in entries:
            entry_path = path if key is None else join_path(path, f"[{key!r}]")
            if not is_internal and key is not None:
                self._record(entry_path, kind_of(value), value)
            self._walk(value, entry_path, is_internal=is_internal, is_direct=is_direct)

    def _library_object(self, obj: Any, path: str) -> None:
        """Search the fields of an object of this library, such as a layer."""
        kind = type(obj)
        if hasattr(kind, "_version"):
            # an object that changes, such as a Trainer: whether user code reads what
            # changes is known only when all names have been collected
            self._holders.append(_Holder(obj, path, False))
            return
        # the fields of a frozen dataclass were passed by the user
        is_data = is_frozen_class(kind)
        if is_data:
            names = [field.name for field in fields(kind) if field.init]
            values = {name: getattr(obj, name, None) for name in names}
        else:
            values = dict(getattr(obj, "__dict__", {}))
        path = path or kind.__name__
        for name, value in values.items():
            field_path = join_path(path, f".{name}")
            self._walk(value, field_path, is_internal=not is_data, is_direct=True)

    def _changing(self, obj: Any, path: str) -> None:
        """Record the state of a library object that changes, such as a Trainer."""
        state = obj._version()
        name = self._name(obj)
        self.changing.append(obj)
        test = f"all(map(is_, {name}._version(), {self._name(state)}))"
        self._test(test, f"the state of {path}, a {type(obj).__name__}", "state", state)

    def _object(self, obj: Any, path: str) -> None:
        """Note any other object, whose attributes are searched by name later."""
        kind = type(obj)
        is_user_code = self._is_user_code(kind.__module__)
        wrapped = None if is_user_code else getattr(obj, "__wrapped__", None)
        # such as a function wrapped by `functools.cache`
        if wrapped is not None and callable(obj):
            self._walk(wrapped, path, is_direct=True)
            return
        self._has_user_code |= is_user_code
        if is_user_code or hasattr(obj, "__dict__"):
            self._holders.append(_Holder(obj, path or kind.__name__, is_user_code))

    # attributes: those whose names any user code reads

    def _inspect_attributes(self) -> None:
        """Search the attributes of all holders until there are no new ones."""
        while True:
            before = len(self._holders), len(self._attributes)
            for holder in list(self._holders):
                self._inspect(holder)
            if before == (len(self._holders), len(self._attributes)):
                return

    def _inspect(self, holder: "_Holder") -> None:
        """Search the attributes of a holder that were not inspected before."""
        obj = holder.obj
        if isinstance(obj, ModuleType):
            inspect = self._module if holder.is_user_code else self._foreign_module
        elif isinstance(obj, type):
            inspect = self._class_attribute
        elif hasattr(type(obj), "_version"):
            is_new = not any(obj is other for other in self.changing)
            if is_new and (type(obj).CHANGES | {"*"}) & self._attributes:
                self._changing(obj, holder.path)
            inspect = self._attribute
        else:
            inspect = self._attribute
        names: set[str] | frozenset[str] = self._attributes
        if holder.is_user_code:
            names = names | _implicitly_called(type(obj))
        if holder.is_user_code and is_dataclass(obj) and not isinstance(obj, type):
            names = names | {field.name for field in fields(obj)}
        if "*" in names and not isinstance(obj, ModuleType | type):
            names = names | set(getattr(obj, "__dict__", ()))
        for name in sorted(names - holder.inspected):
            holder.inspected.add(name)
            inspect(holder, name)

    def _module(self, holder: "_Holder", name: str) -> None:
        """Record and search a variable of a user's module."""
        contents = vars(holder.obj)
        if name in contents:
            code = f"{self._name(contents)}.get({name!r}, missing)"
            self._expect(code, contents[name], join_path(holder.path, f".{name}"))

    def _foreign_module(self, holder: "_Holder", name: str) -> None:
        """Search an installed module for users of a hidden random generator."""
        module = holder.obj
        value = vars(module).get(name, sys.modules.get(f"{module.__name__}.{name}"))
        if isinstance(value, ModuleType):
            if not is_library(value.__name__):
                self._walk(value, join_path(holder.path, f".{name}"))
        elif is_generator(getattr(value, "__self__", None)) or is_generator(value):
            generator = getattr(value, "__self__", value)
            self._walk(generator, join_path(holder.path, f".{name}"))

    def _class_attribute(self, holder: "_Holder", name: str) -> None:
        """Record and search an attribute of a user-defined class and of its bases."""
        for base in holder.obj.__mro__:
            if self._is_user_code(base.__module__) and name in vars(base):
                self._record_class_attribute(base, name)

    def _record_class_attribute(self, base: type, name: str) -> None:
        value = vars(base)[name]
        # such as of a slot
        if isinstance(value, MemberDescriptorType | GetSetDescriptorType):
            return
        code = f"{self._name(base)}.__dict__.get({name!r}, missing)"
        self._expect(code, value, f"{base.__qualname__}.{name}", is_direct=True)

    def _attribute(self, holder: "_Holder", name: str) -> None:
        """Record and search an attribute of an object, or that of its class."""
        obj = holder.obj
        kind = type(obj)
        instance_attributes = getattr(obj, "__dict__", None)
        path = join_path(holder.path, f".{name}")
        bases = [base for base in kind.__mro__ if name in vars(base)]
        user_bases = [base for base in bases if self._is_user_code(base.__module__)]
        for base in user_bases:
            value = vars(base)[name]
            if isinstance(value, MemberDescriptorType):  # a slot
                code = f"getattr({self._name(obj)}, {name!r}, missing)"
                self._expect(code, getattr(obj, name, MISSING), path)
            else:
                self._record_class_attribute(base, name)
        if instance_attributes is None or name.startswith("__"):
            return
        is_frozen = is_frozen_class(kind)
        if name in instance_attributes:
            if is_frozen:
                self._value(instance_attributes[name], path)
            else:
                code = f"{self._name(obj)}.__dict__.get({name!r}, missing)"
                self._expect(code, instance_attributes[name], path, is_direct=True)
        elif user_bases and not is_frozen:
            # a new attribute of the instance would hide that of the class
            code = f"{self._name(obj)}.__dict__.get({name!r}, missing)"
            self._test(f"{code} is missing", path, "is", MISSING)


class _Holder:
    """An object with attributes, and the names of those that were inspected."""

    def __init__(self, obj: Any, path: str, is_user_code: bool) -> None:
        self.obj = obj
        self.path = path
        self.is_user_code = is_user_code
        self.inspected: set[str] = set()


def _implicitly_called(kind: type) -> frozenset[str]:
    """Return the methods of a user class that this library or an operator may call."""
    overridable = [vars(base) for base in kind.__mro__ if is_library(base.__module__)]
    names = frozenset(IMPLICITLY_CALLED).union(*overridable)
    return names - {"__dict__", "__doc__", "__module__", "__init__"}
