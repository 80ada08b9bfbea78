"""Context: arrays that a step reads, does not train, and that may change between steps."""

from typing import Any

import numpy as np

from ..core.arrays import namespace
from ..core.backend import Backend
from ..core.trees import named_leaves
from .inputs import fetch

__all__ = ["Context"]


class Context:
    """The context of a trainer: a tree of arrays, or a function that returns one for each step.

    A tree is copied when it is given. What a function returns is read before its caller can
    change it, so arrays of the backend are used as they are.
    """

    def __init__(self, backend: Backend, dtype: str) -> None:
        self._backend, self._dtype = backend, dtype
        self._given: Any = None
        self._tree: Any = None
        self._outline: dict[str, tuple] | None = None
        self._ours: type | None = None

    @property
    def is_called(self) -> bool:
        """Whether it comes from a function."""
        return callable(self._given)

    @property
    def given(self) -> Any:
        """The function as it was given, or the tree of arrays on the backend, or None."""
        return self._given if self.is_called else self._tree

    def set(self, given: Any) -> None:
        """Take another tree, or another function; None takes it away.

        Raises
        ------
        TypeError
            If a leaf is not an array or a number of this backend or the host.
        ValueError
            If the nesting, a shape or a dtype is not what it was.
        """
        if given is None:
            self._given = self._tree = self._outline = None
        elif callable(given):
            self._given = given
        else:
            self._tree, self._given = self._placed(given, copy=True), None

    def now(self) -> Any:
        """The tree for the next step, on the backend, or None."""
        return self._placed(self._given(), copy=False) if self.is_called else self._tree

    def _placed(self, tree: Any, copy: bool) -> Any:
        placed = self._on_backend("context", tree, copy)
        outline = {
            name: (str(leaf.dtype).rpartition(".")[2], tuple(leaf.shape))
            for name, leaf in named_leaves(placed, "context")
        }
        if self._outline is not None and outline != self._outline:
            raise ValueError(_difference(outline, self._outline))
        self._outline = outline
        return placed

    def _on_backend(self, name: str, tree: Any, copy: bool) -> Any:
        if isinstance(tree, dict):
            return {k: self._on_backend(f"{name}.{k}", v, copy) for k, v in tree.items()}
        if isinstance(tree, tuple) and not _is_numbers(tree):
            return tuple([self._on_backend(f"{name}.{i}", v, copy) for i, v in enumerate(tree)])
        if self._ours is None:
            self._ours = type(self._backend.asarray(np.zeros(1, np.float32)))
        if not isinstance(tree, self._ours):
            host, chosen = fetch(name, tree, self._backend)
            return self._backend.asarray(_typed(name, host, chosen, self._dtype))
        if not copy:
            return tree
        fetch(name, tree, self._backend)  # refuses arrays of another device
        return namespace(tree).asarray(tree, copy=True)


def _is_numbers(tree: tuple) -> bool:
    return bool(tree) and all(isinstance(entry, int | float) for entry in tree)


def _typed(name: str, host: Any, chosen: bool, dtype: str) -> Any:
    """A host array; numbers without a dtype in that of the model."""
    if chosen:
        return host
    return host.astype(dtype if host.dtype.kind == "f" else np.int32)


def _difference(outline: dict[str, tuple], expected: dict[str, tuple]) -> str:
    for name in sorted(outline.keys() | expected.keys()):
        if outline.get(name) != expected.get(name):
            break
    found, wanted = (
        f"{tree[name][0]} {tree[name][1]}" if name in tree else "nothing"
        for tree in (outline, expected)
    )
    return (
        f"expected {name} to be {wanted} as before, got {found}: a context keeps its nesting, "
        "shapes and dtypes; set it to None first to begin with another"
    )
