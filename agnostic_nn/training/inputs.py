"""Inputs: a user's arrays, checked and converted on the host.

Checks run on the host because compiled functions cannot look at values, and array
libraries treat invalid values differently (JAX clamps an index, CuPy wraps it around).
Data are an array or a tree of arrays, with the examples along axis 0 of each. A file
mapped into memory (`np.load(path, mmap_mode="r")`) is checked chunk by chunk and never
loaded as a whole.
"""

from collections.abc import Iterator
from operator import index
from typing import Any

import numpy as np

from ..core.arrays import device, first_true, namespace
from ..core.backend import Backend
from ..core.errors import expect
from ..core.trees import leaves, named_leaves, shape_map, tree_map

__all__ = [
    "as_integer",
    "as_shape",
    "chunks",
    "converted",
    "expect_lengths",
    "expect_shapes",
    "fetch",
    "is_mapped",
    "type_and_length",
]

CHUNK_BYTES = 2**24  # bytes of a mapped file that are checked at a time


def is_mapped(data: Any) -> bool:
    """Return whether an array, or any array in a tree, is mapped from a file."""
    if isinstance(data, dict | tuple):
        return any(map(is_mapped, leaves(data)))
    return isinstance(data, np.memmap)


def fetch(name: str, data: Any, backend: Backend) -> tuple[Any, Any]:
    """Return `data` as NumPy arrays, and for each whether the user chose its dtype.

    Accepts NumPy arrays, nested lists of numbers, arrays of the backend, and dicts and
    tuples of those; a tuple of numbers is one array.
    Both results have the nesting of the data.

    Raises
    ------
    TypeError
        If data is an array of another library, does
        not hold numbers, or is on another device.
    """
    if isinstance(data, dict):
        arrays = {}
        has_dtype = {}
        for key, branch in data.items():
            arrays[key], has_dtype[key] = fetch(f"{name}.{key}", branch, backend)
        return arrays, has_dtype
    if isinstance(data, tuple) and not _is_numbers(data):
        pairs = [fetch(f"{name}.{i}", branch, backend) for i, branch in enumerate(data)]
        return tuple([pair[0] for pair in pairs]), tuple([pair[1] for pair in pairs])
    return _fetch_leaf(name, data, backend)


def _is_numbers(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return all(_is_numbers(entry) for entry in data)
    return isinstance(data, int | float | np.generic)


def _fetch_leaf(name: str, data: Any, backend: Backend) -> tuple[np.ndarray, bool]:
    has_dtype = True
    if isinstance(data, np.ndarray | np.generic):
        if hasattr(data, "mask"):
            raise TypeError(
                f"expected {name} without a mask, which would be lost: fill it first"
            )
        array = data if isinstance(data, np.memmap) else np.asarray(data)
    elif isinstance(data, list | tuple | int | float):
        has_dtype = False
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(
                f"expected {name} as lists of equal lengths: {error}"
            ) from error
    else:
        array = _fetch_from_backend(name, data, backend)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected {name} to hold numbers, got dtype {array.dtype}")
    return array, has_dtype


def _fetch_from_backend(name: str, data: Any, backend: Backend) -> np.ndarray:
    try:
        is_ours = namespace(data) is namespace(backend.asarray(np.float32(0)))
    except TypeError:
        is_ours = False
    if not is_ours:
        kind = type(data)
        computes_on_host = isinstance(backend.asarray(np.float32(0)), np.ndarray)
        accepted = (
            "a NumPy array or a list"
            if computes_on_host
            else f"a NumPy array, a list or an array of {backend.name}"
        )
        raise TypeError(
            f"expected {name} as {accepted}, got {kind.__module__}.{kind.__qualname__}"
        )
    if device(data) != backend.device and device(data) is not None:
        raise TypeError(f"{name} is on {device(data)}, but the model is on {backend}")
    try:
        array: np.ndarray = backend.to_numpy(data)
        return array
    except TypeError as error:
        raise TypeError(
            f"expected {name} of a dtype that NumPy has: {error}"
        ) from error


def converted(name: str, data: Any, has_dtype: Any, dtype: str) -> Any:
    """Return `data` in the dtype that the model computes in, and integers in int32.

    All backends have int32. Floating-point numbers are only converted if the user did
    not choose their dtype. Booleans are not converted, and neither is a mapped file.

    Raises
    ------
    TypeError
        If data is of another floating-point dtype.
    ValueError
        If an integer is out of range.
    """
    if isinstance(data, dict):
        return {
            k: converted(f"{name}.{k}", leaf, has_dtype[k], dtype)
            for k, leaf in data.items()
        }
    if isinstance(data, tuple):
        pairs = zip(data, has_dtype, strict=True)
        return tuple(
            converted(f"{name}.{i}", *pair, dtype) for i, pair in enumerate(pairs)
        )
    if data.dtype.kind == "f":
        if data.dtype.name != dtype and has_dtype:
            actual = data.dtype.name
            choose = (
                f", or Trainer(dtype={actual!r})"
                if actual in ("float32", "float64")
                else ""
            )
            raise TypeError(
                f"{name} is {actual}, but the model computes in {dtype}: pass "
                f"{name}.astype({dtype!r}){choose}"
            )
        return data if is_mapped(data) else data.astype(dtype, copy=False)
    if data.dtype.kind == "b" or is_mapped(data):
        return data
    if not np.can_cast(data.dtype, np.int32):
        bounds = np.iinfo(np.int32)
        bad = first_true((data < bounds.min) | (data > bounds.max))
        if bad is not None:
            raise ValueError(
                f"{name}{list(bad)} is {data[bad]}, which does not fit into int32"
            )
    return data.astype(np.int32, copy=False)


def chunks(data: Any) -> Iterator[tuple[int, Any]]:
    """Yield data mapped from a file in chunks that fit into memory, each with its first index."""
    arrays = leaves(data)
    count = len(arrays[0])
    step = max(1, CHUNK_BYTES * count // max(1, sum(leaf.nbytes for leaf in arrays)))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        yield start, tree_map(lambda leaf: np.asarray(leaf[rows]), data)  # noqa: B023


def as_shape(data: Any) -> Any:
    """Return a shape, or a tree of shapes, from lists and tuples of integers."""
    if isinstance(data, dict):
        return {name: as_shape(shape) for name, shape in data.items()}
    if isinstance(data, list | tuple):
        return tuple(as_shape(entry) for entry in data)
    return as_integer("each length of a shape", data, 0)


def as_integer(name: str, value: Any, least: int = 1) -> int:
    """Return `value`, an integer of any library, as a Python int.

    Raises
    ------
    ValueError
        If it is not an integer, or is less than `least`.
    """
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    is_valid = number >= least and not isinstance(value, bool)
    expect(
        is_valid,
        "expected {} to be an integer of at least {}, got {!r}",
        name,
        least,
        value,
    )
    return number


def type_and_length(thing: Any) -> str:
    """Return the type of `thing`, and the length of a tuple or list, for an error message."""
    kind = type(thing).__qualname__
    return (
        f"a {kind} of {len(thing)}" if isinstance(thing, tuple | list) else f"a {kind}"
    )


def expect_shapes(name: str, data: Any, shapes: Any) -> None:
    """Raise ValueError unless data hold examples of `shapes`, a tree with the same nesting."""
    if tree_map(lambda leaf: leaf.shape[1:], data) == shapes:
        return
    arrays = dict(named_leaves(data, name))
    # Lists, since a shape is a tuple and would be taken for a branch of the tree.
    expected = dict(named_leaves(shape_map(list, shapes), name))
    if arrays.keys() != expected.keys():
        raise ValueError(
            f"the model takes {' and '.join(expected)}, got {' and '.join(arrays)}"
        )
    for path, leaf in arrays.items():
        if list(leaf.shape[1:]) != expected[path]:
            shape = ", ".join(["examples", *map(str, expected[path])])
            raise ValueError(
                f"the model takes {path} of shape ({shape}), got {leaf.shape}"
            )


def expect_lengths(name: str, data: Any) -> None:
    """Raise ValueError unless all leaves of data hold the same number of examples."""
    lengths = {leaf.shape[:1] for leaf in leaves(data)}
    if len(lengths) == 1 and () not in lengths:
        return
    expect(len(lengths) > 0, "expected arrays in {}, got none", name)
    named = list(named_leaves(data, name))
    first_path, first_leaf = named[0]
    for path, leaf in named:
        if leaf.ndim < 1:
            raise ValueError(
                f"expected {path} of shape (examples, ...), got {leaf.shape}"
            )
        if len(leaf) != len(first_leaf):
            raise ValueError(
                f"{first_path} holds {len(first_leaf)} examples, but {path} has shape "
                f"{leaf.shape}"
            )
