"""InputShapes: which shapes of examples a model takes with the parameters it has.

A model fixes a length of x if its parameters depend on it: the last axis before a
`Dense`, or all axes before a `Flatten` and a `Dense`. Other lengths, such as those of
sequences or of images before a global pooling, may differ from batch to batch. To tell
them apart, the model's own `init` runs on the new shape with arrays without data, and
the names and shapes of the results are compared. Each shape is examined once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..core import random
from ..core.arrays import Shape, namespace
from ..core.trees import named_leaves, shape_map, tree_map
from ..diagnostics.cost import CostCounter, blank
from ..layers import Layer
from .inputs import expect_shapes

__all__ = ["InputShapes", "fits_limits", "has_free", "shape_text"]

# Lengths tried for an axis whose length is None: powers of two, which most models with
# strides and windows take, then multiples of other sizes of patches.
_LENGTHS = (64, 128, 32, 256, 16, 8, 512, 4, 2, 1, 1024, 224, 448, 60, 120, 3, 5, 7)
_MAX_SHAPES = 1024  # that are remembered


class _Outline(NamedTuple):
    """The shapes that `init` leads to: those of all arrays by name, and that of y."""

    arrays: dict[str, Shape]
    out_shape: Any


class InputShapes:
    """Examines shapes of examples for a model with given parameters.

    A shape is a tuple of integers, or a tree of such tuples, nested like x. In `limits`
    an entry may be None: any length that the model takes.
    """

    def __init__(self, model: Layer, dtype: str) -> None:
        self._model = model
        self._dtype = dtype
        self._outlines: dict[str, _Outline] = {}

    def expect(self, data: Any, built: Shape, limits: Any) -> None:
        """Raise ValueError unless x may be `data`, host arrays or those of a backend.

        built: the shape of the examples that the parameters were drawn for. limits:
        the lengths that the user chose, or None if the user chose none.
        """
        shape = tree_map(lambda leaf: tuple(leaf.shape[1:]), data)
        if shape == built and limits is None:
            return
        if limits is not None:
            expect_shapes("x", data, limits)
        elif not fits_limits(shape, _free_like(built)):
            expect_shapes("x", data, built)
        if shape == built:
            return
        try:
            difference = self._difference(shape, built)
        except (TypeError, ValueError) as error:
            # an error in the rank or the nesting came first, so this is about lengths
            _refuse(data, built, str(error), error)
        if difference:
            _refuse(data, built, f"with that, {difference}")

    def out_shape(self, shape: Shape) -> Any:
        """Return the shape of one output for examples of `shape`."""
        return self._outline(shape).out_shape

    def drawn_for(self, limits: Any) -> Shape:
        """Return a shape within `limits` to draw the parameters for.

        Raises
        ------
        ValueError
            If the model fixes a length that is None in `limits`, or takes none of the
            lengths that are tried.
        """
        return self._two_shapes(limits)[0]

    def free_out_shape(self, limits: Any) -> Any:
        """Return the shape of one output, None where it depends on a free length."""
        first, second = map(self.out_shape, self._two_shapes(limits))
        return _merged(first, second)

    def _two_shapes(self, limits: Any) -> tuple[Shape, Shape]:
        first: Shape | None = None
        error: Exception | None = None
        for shape in _filled(limits):
            try:
                self._outline(shape)
            except (TypeError, ValueError) as refused:
                error = error or refused
                continue
            if first is None:
                first = shape
                continue
            difference = self._difference(shape, first)
            if difference:
                raise ValueError(
                    f"the model fixes a length that is None in the shape {limits}: for "
                    f"examples of shape {shape}, {difference} for {first}. Give this "
                    "length as a number"
                )
            return first, shape
        raise ValueError(
            f"expected a shape whose lengths that are None may be any, got {limits}: "
            f"of the lengths {', '.join(map(str, sorted(_LENGTHS)))} the model takes "
            f"{'none' if first is None else 'one'}. Give the lengths as numbers"
        ) from error

    def _difference(self, shape: Shape, built: Shape) -> str:
        """Describe the first array whose shape would not be that for `built`, or ""."""
        arrays = self._outline(shape).arrays
        expected = self._outline(built).arrays
        for name in sorted(arrays.keys() | expected.keys()):
            if arrays.get(name) != expected.get(name):
                actual = arrays.get(name, "missing")
                return f"{name} would be {actual} instead of {expected.get(name)}"
        return ""

    def _outline(self, shape: Shape) -> _Outline:
        key = shape_text(shape)
        outline = self._outlines.get(key)
        if outline is None:
            while len(self._outlines) >= _MAX_SHAPES:
                self._outlines.pop(next(iter(self._outlines)), None)
            outline = self._outlines[key] = self._examined(shape)
        return outline

    def _examined(self, shape: Shape) -> _Outline:
        try:
            with CostCounter():
                key = blank((2,), np.uint32)
                result = self._model.init(
                    key, shape, getattr(namespace(key), self._dtype)
                )
                return _as_outline(result)
        except Exception:
            # A custom layer may need real arrays. If the model refuses the shape, this
            # raises the same error again.
            xp = namespace(np.zeros(()))
            key = random.key(0, xp=xp)
            return _as_outline(self._model.init(key, shape, getattr(xp, self._dtype)))


def _as_outline(result: tuple[Any, Any, Any]) -> _Outline:
    params, state, out_shape = result
    named = [*named_leaves(params), *named_leaves(state, "state")]
    return _Outline({name: tuple(leaf.shape) for name, leaf in named}, out_shape)


def _refuse(
    data: Any, built: Shape, reason: str, cause: Exception | None = None
) -> None:
    """Raise the error about data whose shape is not `built`, with the reason added."""
    try:
        expect_shapes("x", data, built)
    except ValueError as error:
        raise ValueError(f"{error}: {reason}") from cause


def has_free(limits: Any) -> bool:
    """Return whether a length in a shape or a tree of shapes is None."""
    if isinstance(limits, dict):
        return any(map(has_free, limits.values()))
    if isinstance(limits, tuple):
        return any(map(has_free, limits))
    return limits is None


def fits_limits(shape: Any, limits: Any) -> bool:
    """Return whether a shape has the nesting and the lengths of `limits`."""
    if isinstance(limits, dict):
        is_alike = isinstance(shape, dict) and shape.keys() == limits.keys()
        return is_alike and all(fits_limits(shape[k], v) for k, v in limits.items())
    if isinstance(limits, tuple):
        is_alike = isinstance(shape, tuple) and len(shape) == len(limits)
        return is_alike and all(map(fits_limits, shape, limits))
    return type(shape) is int and (limits is None or shape == limits)


def shape_text(shape: Any) -> str:
    """Return a tree of shapes as text such as "x.mask (5,), x.x (5, 2)".

    It is the same for equal trees, whatever the order of the keys of a dict.
    """
    named = named_leaves(shape_map(list, shape), "x")
    return ", ".join(f"{path} {tuple(lengths)}" for path, lengths in named)


def _free_like(shape: Any) -> Any:
    """Return a tree of shapes with None for each length."""
    if isinstance(shape, dict):
        return {name: _free_like(part) for name, part in shape.items()}
    if isinstance(shape, tuple):
        return tuple(map(_free_like, shape))
    return None


def _filled(limits: Any) -> Iterator[Shape]:
    """Yield shapes that have one length instead of each None of `limits`.

    One length for all, since inputs such as x and its mask have to agree.
    """

    def fill(node: Any, length: int) -> Any:
        if isinstance(node, dict):
            return {name: fill(part, length) for name, part in node.items()}
        if isinstance(node, tuple):
            return tuple([fill(part, length) for part in node])
        return length if node is None else node

    for length in _LENGTHS:
        yield fill(limits, length)


def _merged(first: Any, second: Any) -> Any:
    """Return `first` with None where `second` has another length."""
    if isinstance(first, dict):
        return {name: _merged(part, second[name]) for name, part in first.items()}
    if isinstance(first, tuple):
        return tuple(map(_merged, first, second))
    return first if first == second else None
