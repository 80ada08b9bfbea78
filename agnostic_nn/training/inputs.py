"""Inputs: a user's arrays, checked and converted on the host.

All of it happens on the host: `jit` hides values, and array libraries differ in what
they do with bad ones (JAX clamps an index, CuPy wraps it round). Data are an array or a
tree of arrays, with the examples along axis 0 of each. A file mapped into memory
(`np.load(path, mmap_mode="r")`) is looked at piece by piece and never held as a whole.
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

CHUNK_BYTES = 2**24  # bytes of a mapped file that are looked at together


def is_mapped(data: Any) -> bool:
    """Whether an array, or one in a tree, lies in a file: reading all of it may be too much."""
    if isinstance(data, dict | tuple):
        return any(map(is_mapped, leaves(data)))
    return isinstance(data, np.memmap)


def fetch(name: str, data: Any, backend: Backend) -> tuple[Any, Any]:
    """`data` as NumPy arrays, and whether they have a dtype that their owner chose.

    NumPy arrays, nested lists of numbers, arrays of the backend, and dicts and tuples of
    those are taken; a tuple of numbers is one array. Both answers nest like the data.

    Raises
    ------
    TypeError
        If data is an array of another library, holds no numbers, or lies on another device.
    """
    if isinstance(data, dict):
        branches = {key: fetch(f"{name}.{key}", branch, backend) for key, branch in data.items()}
        return {k: found for k, (found, _) in branches.items()}, {
            k: chosen for k, (_, chosen) in branches.items()
        }
    if isinstance(data, tuple) and not _is_numbers(data):
        pairs = [fetch(f"{name}.{i}", branch, backend) for i, branch in enumerate(data)]
        return tuple(found for found, _ in pairs), tuple(chosen for _, chosen in pairs)
    return _fetch(name, data, backend)


def _is_numbers(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return all(_is_numbers(entry) for entry in data)
    return isinstance(data, int | float | np.generic)


def _fetch(name: str, data: Any, backend: Backend) -> tuple[np.ndarray, bool]:
    if isinstance(data, np.ndarray | np.generic):
        if hasattr(data, "mask"):
            raise TypeError(f"expected {name} without a mask, which would be lost: fill it first")
        found, chosen = data if isinstance(data, np.memmap) else np.asarray(data), True
    elif isinstance(data, list | tuple | int | float):
        try:
            found, chosen = np.asarray(data), False
        except ValueError as error:
            raise ValueError(f"expected {name} as lists of equal lengths: {error}") from error
    else:
        try:
            ours = namespace(data) is namespace(backend.asarray(np.float32(0)))
        except TypeError:
            ours = False
        if not ours:
            kind = type(data)
            hosts = isinstance(backend.asarray(np.float32(0)), np.ndarray)
            taken = "or a list" if hosts else f"a list or an array of {backend.name}"
            taken = f"a NumPy array {taken}" if hosts else f"a NumPy array, {taken}"
            raise TypeError(
                f"expected {name} as {taken}, got {kind.__module__}.{kind.__qualname__}"
            )
        if device(data) != backend.device and device(data) is not None:
            raise TypeError(f"{name} lies on {device(data)}, but the model is on {backend}")
        try:
            found, chosen = backend.to_numpy(data), True
        except TypeError as error:
            raise TypeError(f"expected {name} of a dtype that NumPy has: {error}") from error
    if found.dtype.kind not in "fiub":
        raise TypeError(f"expected {name} to hold numbers, got dtype {found.dtype}")
    return found, chosen


def converted(name: str, data: Any, chosen: Any, dtype: str) -> Any:
    """`data` in the dtype that the model computes in; integers in int32, which all backends have.

    Only numbers that came without a dtype are converted; booleans stay what they are, and
    so does what is mapped from a file.

    Raises
    ------
    TypeError
        If data is of another real dtype.
    ValueError
        If an integer does not fit.
    """
    if isinstance(data, dict):
        return {k: converted(f"{name}.{k}", leaf, chosen[k], dtype) for k, leaf in data.items()}
    if isinstance(data, tuple):
        pairs = zip(data, chosen, strict=True)
        return tuple(converted(f"{name}.{i}", *pair, dtype) for i, pair in enumerate(pairs))
    if data.dtype.kind == "f":
        if data.dtype.name != dtype and chosen:
            found = data.dtype.name
            other = f", or Trainer(dtype={found!r})" if found in ("float32", "float64") else ""
            raise TypeError(
                f"{name} is {found}, but the model computes in {dtype}: pass "
                f"{name}.astype({dtype!r}){other}"
            )
        return data if is_mapped(data) else data.astype(dtype, copy=False)
    if data.dtype.kind == "b" or is_mapped(data):
        return data
    if not np.can_cast(data.dtype, np.int32):
        bounds = np.iinfo(np.int32)
        bad = first_true((data < bounds.min) | (data > bounds.max))
        if bad is not None:
            raise ValueError(f"{name}{list(bad)} is {data[bad]}, which does not fit into int32")
    return data.astype(np.int32, copy=False)


def chunks(data: Any) -> Iterator[tuple[int, Any]]:
    """Data that lie in a file in parts that fit into memory, each with where it begins."""
    found = leaves(data)
    count = len(found[0])
    step = max(1, CHUNK_BYTES * count // max(1, sum(leaf.nbytes for leaf in found)))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        yield start, tree_map(lambda leaf: np.asarray(leaf[rows]), data)  # noqa: B023


def as_shape(data: Any) -> Any:
    """A shape, or a tree of shapes, from lists and tuples of integers, as JSON has them."""
    if isinstance(data, dict):
        return {name: as_shape(shape) for name, shape in data.items()}
    if isinstance(data, list | tuple):
        return tuple(as_shape(entry) for entry in data)
    return as_integer("each length of a shape", data, 0)


def as_integer(name: str, value: Any, least: int = 1) -> int:
    """`value`, an integer of any library called `name`, as Python's own.

    Raises
    ------
    ValueError
        If it is none, or less than `least`.
    """
    try:
        found = index(value)
    except TypeError:
        found = least - 1
    wanted = "expected {} to be an integer of at least {}, got {!r}"
    expect(found >= least and not isinstance(value, bool), wanted, name, least, value)
    return found


def type_and_length(thing: Any) -> str:
    """What kind of thing it is, and how long a tuple or a list."""
    kind = type(thing).__qualname__
    return f"a {kind} of {len(thing)}" if isinstance(thing, tuple | list) else f"a {kind}"


def expect_shapes(name: str, data: Any, shapes: Any) -> None:
    """Raise ValueError unless data hold examples of `shapes`, nested alike."""
    if tree_map(lambda leaf: leaf.shape[1:], data) == shapes:
        return
    found = dict(named_leaves(data, name))
    # a shape is a tuple itself, so a list keeps it from being taken for a branch
    wanted = dict(named_leaves(shape_map(list, shapes), name))
    if found.keys() != wanted.keys():
        raise ValueError(f"the model takes {' and '.join(wanted)}, got {' and '.join(found)}")
    for path, leaf in found.items():
        if list(leaf.shape[1:]) != wanted[path]:
            shape = ", ".join(["examples", *map(str, wanted[path])])
            raise ValueError(f"the model takes {path} of shape ({shape}), got {leaf.shape}")


def expect_lengths(name: str, data: Any) -> None:
    """Raise ValueError unless all leaves of data hold equally many examples."""
    lengths = {leaf.shape[:1] for leaf in leaves(data)}
    if len(lengths) == 1 and () not in lengths:
        return
    expect(len(lengths) > 0, "expected arrays in {}, got none", name)
    (first, one), *others = named_leaves(data, name)
    for path, leaf in ((first, one), *others):
        if leaf.ndim < 1:
            raise ValueError(f"expected {path} of shape (examples, ...), got {leaf.shape}")
        if len(leaf) != len(one):
            raise ValueError(
                f"{first} holds {len(one)} examples, but {path} has shape {leaf.shape}"
            )
