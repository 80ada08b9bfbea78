"""Names: what code reads, by its bytecode, and whose code it is."""

import dis
import os
import sys
from functools import cache, lru_cache
from types import CodeType
from typing import Any, NamedTuple

__all__ = [
    "Names",
    "file_of",
    "is_installed",
    "is_ours",
    "is_standard",
    "name_of",
    "names_of",
    "root_of",
]

OURS = "agnostic_nn", "agnostic_nn_backends"
WRITERS = {  # methods that only write: no result depends on a list that is only appended to
    *("add", "append", "appendleft", "discard", "extend", "extendleft", "insert", "update"),
    *("write", "writelines"),
}


class Names(NamedTuple):
    """The names that a code object, and those nested in it, read."""

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
    """Return whether a loaded object is only written to.

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
def is_installed(file: str) -> bool:
    """Return whether a file belongs to an installed package."""
    parts = file.replace("\\", "/").split("/")
    return "site-packages" in parts or "dist-packages" in parts


@cache
def is_standard(root: str, file: str) -> bool:
    """Return whether a module is of Python's standard library."""
    if not file or file.startswith("<frozen"):
        return root in sys.stdlib_module_names
    home = os.path.dirname(os.__file__)
    return file.startswith(home + os.sep) and not is_installed(file)


def root_of(name: Any) -> str:
    """Return the first part of a dotted name."""
    return name.partition(".")[0] if isinstance(name, str) else ""


def file_of(module_name: Any) -> str:
    """Return the file of an imported module, or an empty string."""
    return getattr(sys.modules.get(module_name), "__file__", None) or ""


def is_ours(module_name: Any) -> bool:
    """Return whether a module belongs to this library."""
    return root_of(module_name) in OURS


def name_of(function: Any) -> str:
    """Return the name of a function, or of the type of another callable."""
    function = getattr(function, "func", function)
    return getattr(function, "__name__", type(function).__name__)
