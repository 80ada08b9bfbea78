"""Context: arrays that a step reads but does not train, and that may change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Array, Shape, device, namespace
from ..core.backend import Backend
from ..core.trees import named_leaves, tree_map
from .inputs import fetch

__all__ = ["Context"]

_Layout = dict[str, tuple[str, Shape]]  # dtype and shape of each leaf, by name


class _SavedTree(NamedTuple):
    """A tree of arrays on the host, and the names of their dtypes on the backend."""

    arrays: Any
    dtypes: Any


class Context:
    """The context of a trainer: a tree of arrays, or a function that returns one.

    A function is called for each step. A tree is copied when it is set. The result of a
    function is read before anybody can change it, so its arrays of the backend are not
    copied.

    counts_steps: whether the loss also takes the number of the step.
    """

    def __init__(self, backend: Backend, dtype: str, counts_steps: bool) -> None:
        self._backend = backend
        self._dtype = dtype
        self._counts_steps = counts_steps
        self._function: Any = None
        self._tree: Any = None
        self._layout: _Layout | None = None
        self._array_type: type | None = None  # of arrays of the backend

    @property
    def is_called(self) -> bool:
        """True if a function returns the context."""
        return callable(self._function)

    @property
    def assigned(self) -> Any:
        """The function that was set, or the tree of arrays on the backend, or None."""
        return self._function if self.is_called else self._tree

    def set(self, context: Any) -> None:
        """Set another tree or another function; None removes the context.

        Raises
        ------
        TypeError
            If a leaf is not an array of this backend or the host, or a number.
        ValueError
            If the nesting, a shape or a dtype differs from those of the last context.
        """
        if context is None:
            self._function = None
            self._tree = None
            self._layout = None
        elif callable(context):
            self._function = context
        else:
            self._tree = self._placed(context, copy=True)
            self._function = None

    def saved(self) -> Any:
        """Return the function, or a copy of the tree on the host, for `restore`."""
        if self.is_called or self._tree is None:
            return self._function
        dtypes = tree_map(_dtype_name, self._tree)
        arrays = tree_map(np.array, self._backend.to_numpy(self._tree))
        return _SavedTree(arrays, dtypes)

    def restore(self, saved: Any) -> None:
        """Set what `saved` returned of a context for the same backend."""
        if not isinstance(saved, _SavedTree):
            self.set(saved)
            return
        tree = self._backend.asarray(saved.arrays)
        self.set(tree_map(self._in_dtype, tree, saved.dtypes))

    def _in_dtype(self, array: Array, dtype: str) -> Array:
        """Return an array in a dtype, which NumPy may not have, as bfloat16."""
        if _dtype_name(array) == dtype:
            return array
        return namespace(array).astype(array, getattr(self._backend.xp, dtype))

    def now(self) -> Any:
        """Return the tree for the next step, on the backend, or None."""
        return (
            self._placed(self._function(), copy=False) if self.is_called else self._tree
        )

    def last_arguments(
        self, steps: Callable[[], int], count: int | None = None
    ) -> tuple[Any, ...]:
        """Return the last arguments of the next step: its number, and the context.

        The number is `steps()`. count: return the numbers of the next `count` steps
        instead. The tuple is empty if the loss takes neither.
        """
        context = self.now()
        if not self._counts_steps:
            return () if context is None else (None, context)
        numbers = steps() + (0 if count is None else np.arange(count))
        return self._backend.asarray(np.asarray(numbers, self._dtype)), context

    def _placed(self, tree: Any, copy: bool) -> Any:
        placed = self._on_backend("context", tree, copy)
        layout = {
            name: (_dtype_name(leaf), tuple(leaf.shape))
            for name, leaf in named_leaves(placed, "context")
        }
        if self._layout is not None and layout != self._layout:
            raise ValueError(_difference(layout, self._layout))
        self._layout = layout
        return placed

    def _on_backend(self, name: str, tree: Any, copy: bool) -> Any:
        if isinstance(tree, dict):
            return {
                k: self._on_backend(f"{name}.{k}", v, copy) for k, v in tree.items()
            }
        if isinstance(tree, tuple) and not _is_numbers(tree):
            return tuple(
                [self._on_backend(f"{name}.{i}", v, copy) for i, v in enumerate(tree)]
            )
        if self._array_type is None:
            self._array_type = type(self._backend.asarray(np.zeros(1, np.float32)))
        is_here = isinstance(tree, self._array_type) and (
            device(tree) in (self._backend.device, None)
        )
        if not is_here:
            array, has_dtype = fetch(name, tree, self._backend)
            if not has_dtype:
                array = array.astype(
                    self._dtype if array.dtype.kind == "f" else np.int32
                )
            return self._backend.asarray(array)
        if not copy:
            return tree
        fetch(name, tree, self._backend)  # raises for what is not numbers
        return namespace(tree).asarray(tree, copy=True)


def _dtype_name(array: Array) -> str:
    """Return the name of a dtype of any library, such as "bfloat16"."""
    return str(array.dtype).rpartition(".")[2]


def _is_numbers(tree: tuple[Any, ...]) -> bool:
    return bool(tree) and all(isinstance(entry, int | float) for entry in tree)


def _difference(layout: _Layout, expected: _Layout) -> str:
    """Return the message about the first leaf that differs."""
    names = sorted(layout.keys() | expected.keys())
    name = next(name for name in names if layout.get(name) != expected.get(name))
    return (
        f"expected {name} to be {_dtype_and_shape(expected, name)} as before, got "
        f"{_dtype_and_shape(layout, name)}: a context keeps its nesting, shapes and "
        "dtypes; set it to None first to begin with another"
    )


def _dtype_and_shape(layout: _Layout, name: str) -> str:
    if name not in layout:
        return "nothing"
    dtype, shape = layout[name]
    return f"{dtype} {shape}"
