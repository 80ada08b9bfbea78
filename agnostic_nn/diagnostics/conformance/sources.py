"""The names of the Array API standard that the source files of this library use."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

__all__ = ["MissingSources", "names_used", "needs", "source_files"]

PACKAGE = __name__.partition(".")[0]

# This code runs on the arrays of a backend. The rest of the library only calls it.
FOLDERS = ("ops", "layers", "blocks", "losses", "optimizers")
FILES = (
    "core/arrays.py",
    "core/random.py",
    "initializers.py",
    "metrics.py",
    "schedules.py",
    "training/steps.py",
)
# `float64` is used where a backend has it; none needs to.
OPTIONAL = {"float64"}


class MissingSources(Exception):
    """The source files of the library are not installed; the message names one."""


@cache
def needs() -> tuple[str, ...]:
    """Return the names of the standard that every backend must have, in order.

    Raises
    ------
    MissingSources
        If the library was installed without its source files.
    """
    used: set[str] = set()
    for source in source_files():
        used.update(names_used(source.read_text(encoding="utf-8")))
    return tuple(sorted(used - OPTIONAL))


def source_files(root: Traversable | None = None) -> list[Traversable]:
    """Return the files of the library that compute with arrays of a backend.

    root: the folder of the package, which may be in a zip file; None is this one.

    Raises
    ------
    MissingSources
        If one of them is missing, or a folder of them holds no Python file.
    """
    root = files(PACKAGE) if root is None else root
    sources = []
    for folder in FOLDERS:
        place = root.joinpath(folder)
        entries = place.iterdir() if place.is_dir() else ()
        modules = [entry for entry in entries if entry.name.endswith(".py")]
        if not modules:
            raise _missing(root, f"{folder}/*.py")
        sources += modules
    for name in FILES:
        source = root.joinpath(name)
        if not source.is_file():
            raise _missing(root, name)
        sources.append(source)
    return sources


def names_used(source: str) -> Iterator[str]:
    """Yield each name that a module takes from `xp` or from a call of `namespace`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if isinstance(owner, ast.Call):
            is_namespace = getattr(owner.func, "id", "") == "namespace"
        else:
            is_namespace = getattr(owner, "id", "") == "xp"
        if is_namespace:
            yield node.attr


def _missing(root: Traversable, name: str) -> MissingSources:
    remedy = "install agnostic_nn with its .py files to list the names that it needs"
    return MissingSources(f"{root} has no {name}: {remedy}")
