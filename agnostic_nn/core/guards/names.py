"""Find the names that code reads, from its bytecode, and the package of the code."""

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
    "is_library",
    "is_standard",
    "name_of",
    "names_of",
    "root_of",
]

LIBRARY_PACKAGES = "agnostic_nn", "agnostic_nn_backends"
# methods that only write: results do not depend on a list that is only appended to
WRITE_METHODS = {
    *("add", "append", "appendleft", "discard", "extend", "extendleft", "insert"),
    *("update", "write", "writelines"),
}


class Names(NamedTuple):
    """The names that a code object and its nested code objects read."""

    variables: frozenset[str]  # globals and cells
    attributes: frozenset[str]
    modules: frozenset[str]  # imported inside the function


@lru_cache(4096)
def names_of(code: CodeType) -> Names:
    """Return the names that `code` reads, except of objects that it only writes to."""
    variables: set[str] = set()
    attributes: set[str] = set()
    modules: set[str] = set()
    every = dis.get_instructions(code)
    instructions = [i for i in every if i.opname not in _IGNORED_OPCODES]
    for position, instruction in enumerate(instructions):
        opcode = instruction.opname
        if opcode == "IMPORT_NAME":
            modules.add(instruction.argval)
        elif _is_written(instructions, position):
            continue
        elif opcode in _ATTRIBUTE_OPCODES:
            attributes.add(instruction.argval)
        elif opcode in _VARIABLE_OPCODES:
            variables.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            nested = names_of(inner)
            variables |= nested.variables
            attributes |= nested.attributes
            modules |= nested.modules
    return Names(frozenset(variables), frozenset(attributes), frozenset(modules))


_ATTRIBUTE_OPCODES = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"}
_VARIABLE_OPCODES = {
    *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"),
    *("LOAD_FROM_DICT_OR_DEREF", "LOAD_FROM_DICT_OR_GLOBALS"),
}
_IGNORED_OPCODES = {
    *("CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL", "RESUME"),
}


def _is_written(instructions: list[dis.Instruction], position: int) -> bool:
    """Return whether the object that an instruction loads is only written to.

    This is so in `x.append(...)`, `x[key] = ...` and `x[key].append(...)`.
    """
    following = instructions[position + 1 : position + 4]
    if following and following[0].opname in _METHOD_OPCODES:
        return following[0].argval in WRITE_METHODS
    if len(following) < 2 or not following[0].opname.startswith(_KEY_OPCODES):
        return False
    if following[1].opname == "STORE_SUBSCR":
        return True
    is_entry = following[1].opname == "BINARY_SUBSCR" or following[1].argrepr == "[]"
    is_method = len(following) == 3 and following[2].opname in _METHOD_OPCODES
    return is_entry and is_method and following[2].argval in WRITE_METHODS


_METHOD_OPCODES = {"LOAD_ATTR", "LOAD_METHOD"}
_KEY_OPCODES = ("LOAD_CONST", "LOAD_FAST", "LOAD_SMALL_INT")

# --- the package that code belongs to -------------------------------------------------


@cache
def is_installed(file: str) -> bool:
    """Return whether a file belongs to an installed package."""
    parts = file.replace("\\", "/").split("/")
    return "site-packages" in parts or "dist-packages" in parts


@cache
def is_standard(root: str, file: str) -> bool:
    """Return whether a module belongs to Python's standard library."""
    if not file or file.startswith("<frozen"):
        return root in sys.stdlib_module_names
    stdlib = os.path.dirname(os.__file__)
    return file.startswith(stdlib + os.sep) and not is_installed(file)


def root_of(name: Any) -> str:
    """Return the first part of a dotted name."""
    return name.partition(".")[0] if isinstance(name, str) else ""


def file_of(module_name: Any) -> str:
    """Return the file of an imported module, or an empty string."""
    return getattr(sys.modules.get(module_name), "__file__", None) or ""


def is_library(module_name: Any) -> bool:
    """Return whether a module belongs to this library."""
    return root_of(module_name) in LIBRARY_PACKAGES


def name_of(function: Any) -> str:
    """Return the name of a function, or the name of the type of another callable."""
    function = getattr(function, "func", function)
    return getattr(function, "__name__", type(function).__name__)
