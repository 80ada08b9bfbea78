"""Read the data of a training from an npz file, whose names are paths in trees.

An array called `x` is all of x. If a model has several inputs, the arrays are called as
in the paths of `named_leaves`: `x.image` and `x.mask` for a dict, `x.0` and `x.1` for a
tuple. The same holds for targets, for the test set, and for a context.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .workloads import CannotCompare

__all__ = ["Data", "read"]

REQUIRED = ("x", "target")
OPTIONAL = ("x_test", "target_test", "weights", "context")


class Data(NamedTuple):
    """The arrays of a file as trees; None for those that are missing."""

    x: Any
    target: Any
    x_test: Any = None
    target_test: Any = None
    weights: np.ndarray | None = None
    context: Any = None


def read(path: Path) -> Data:
    """Return the data in a file.

    Raises
    ------
    CannotCompare
        If the file cannot be read, an array is missing, or nothing would use one.
    """
    arrays = _arrays(path)
    trees: dict[str, Any] = {}
    unused = []
    for name, array in arrays.items():
        root, *keys = name.split(".")
        is_used = root in (*REQUIRED, *OPTIONAL) and all(keys)
        if not is_used or (root == "weights" and keys):
            unused.append(name)
            continue
        _expect_no_branch(path, arrays, name)
        tree = trees
        *branches, last = root, *keys
        for key in branches:
            tree = tree.setdefault(key, {})
        tree[last] = array
    missing = [name for name in REQUIRED if name not in trees]
    if missing:
        existing = ", ".join(arrays) or "nothing"
        raise CannotCompare(
            f"{path} has no array called {' and '.join(missing)}: it has {existing}"
        )
    if unused:
        raise CannotCompare(
            f"{path} has {', '.join(unused)}, which nothing would use; expected x and "
            f"target, and optionally {', '.join(OPTIONAL)}; several inputs are called "
            "x.NAME for a dict, or x.0, x.1 for a tuple"
        )
    pair = [name for name in ("x_test", "target_test") if name in trees]
    if len(pair) == 1:
        (other,) = {"x_test", "target_test"} - set(pair)
        raise CannotCompare(f"{path} has {pair[0]}, but no {other}")
    return Data(**{name: _nested(path, name, tree) for name, tree in trees.items()})


def _expect_no_branch(path: Path, arrays: dict[str, np.ndarray], name: str) -> None:
    """Raise CannotCompare if a name such as x.image has another array x above it."""
    above, dot, _ = name.rpartition(".")
    while dot:
        if above in arrays:
            raise CannotCompare(
                f"{path} has {above} and {name}: expected one array, or several by name"
            )
        above, dot, _ = above.rpartition(".")


def _nested(path: Path, name: str, tree: Any) -> Any:
    """Return `tree` with a tuple for each dict whose keys are numbers."""
    if not isinstance(tree, dict):
        return tree
    branches = {key: _nested(path, f"{name}.{key}", tree[key]) for key in tree}
    if not all(key.isdecimal() for key in branches):
        return branches
    expected = [str(i) for i in range(len(branches))]
    missing = [key for key in expected if key not in branches]
    if missing:
        existing = " and ".join(f"{name}.{key}" for key in branches)
        raise CannotCompare(f"{path} has {existing}, but no {name}.{missing[0]}")
    return tuple(branches[key] for key in expected)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise CannotCompare(
                f"{path} is a single array: expected an npz file with x and target"
            )
        with content as file:
            return {name: file[name] for name in file.files}
    except CannotCompare:
        raise
    except OSError as error:
        raise CannotCompare(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error
    except Exception as error:  # NumPy raises various exceptions for other files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CannotCompare(
            f"{path} is not an npz file of numbers: {reason}"
        ) from error
