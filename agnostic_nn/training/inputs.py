"""Inputs: a user's arrays, checked and converted in one visit to each.

Checks run before a step, because compiled functions cannot look at values, and array
libraries treat invalid values differently (JAX clamps an index, CuPy wraps it around).
Arrays of the backend are checked and converted where they are. If a check fails there,
it is repeated on the host, whose errors are the same for every library.
Data are an array or a tree of arrays, with the examples along axis 0 of each. A file
mapped into memory (`np.load(path, mmap_mode="r")`), and an array of zarr, HDF5 or dask,
are checked chunk by chunk and never loaded as a whole. `sources` recognises these, and
tables and arrays of other libraries.
"""

from collections.abc import Callable, Iterator, Mapping
from operator import index
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Array, Shape, first_true, namespace
from ..core.backend import Backend
from ..core.errors import expect
from ..core.trees import leaves, named_leaves, tree_map
from ..layers.base import kinds
from .sources import (
    ReadInParts,
    array_on_host,
    as_tree,
    column_names,
    column_values,
    expect_dense,
    expect_materialized,
    has_chunks,
    is_column,
    is_read_in_parts,
    row_labels,
    sparse_remedy,
    table_note,
    table_values,
)

__all__ = [
    "BYTES",
    "Admitted",
    "admit",
    "as_integer",
    "as_shape",
    "chunks",
    "converted",
    "converted_there",
    "expect_lengths",
    "expect_shapes",
    "fetch",
    "fetch_array",
    "fetch_unread",
    "type_and_length",
]

BYTES = ("int8", "uint8")  # dtypes that a layer of the kind "numeric" gets unchanged
CHUNK_BYTES = 2**24  # bytes of a mapped file that are checked at a time


class Admitted(NamedTuple):
    """A user's data, in the dtypes that a model computes in.

    problem: the first error in a value or a dtype, or None. It is not raised at once:
    an error in a shape comes first, and some are found only when a model is built.
    columns: the names of the columns of each table, by its path. labels: the index of
    each table or column of pandas, by its path.
    """

    data: Any
    problem: Exception | None
    columns: Mapping[str, list[str]] = MappingProxyType({})
    labels: Mapping[str, Any] = MappingProxyType({})

    @property
    def shape(self) -> Any:
        """The shape of one example, nested like the data."""
        return tree_map(lambda array: array.shape[1:], self.data)


def admit(
    name: str,
    data: Any,
    backend: Backend,
    dtype: str,
    check: Callable[[Any], None] | None,
    *,
    count: int | None = None,
    expect_shape: Callable[[Any], None] | None = None,
    input_kinds: Any = "",
) -> Admitted:
    """Visit each array of `data` once: check and convert it.

    Arrays that the backend holds stay there. Others are NumPy's arrays in the result.

    check: raises for an invalid value; it gets the arrays before they are converted.
    count: the expected number of examples; None for an x, whose arrays only have to
    agree. expect_shape: raises if the examples are of a shape that a model does not
    take. input_kinds: that of a layer, if the data are its x. Numbers without a dtype
    are converted to the dtype of the model where it takes real numbers.

    Raises
    ------
    TypeError
        See `fetch`.
    ValueError
        If the data are nested otherwise, or have other lengths or shapes.
    """
    arguments = (name, data, backend, dtype, check, count, expect_shape, input_kinds)
    if not any(map(backend.holds, leaves(data))):
        return _admitted(*arguments, stays=False)

    def on_backend() -> Admitted:
        admitted = _admitted(*arguments, stays=True)
        if admitted.problem is not None:
            raise admitted.problem
        return admitted

    try:
        return on_backend()
    except Exception as error:
        admitted = _admitted(*arguments, stays=False)
        if admitted.problem is not None:
            return admitted
        # The data are valid: the library lacks a function that the check needs, unless
        # the error does not come again. Then it is that of a signal handler, which must
        # not be lost.
        try:
            on_backend()
        except Exception as second_error:
            if type(second_error) is type(error):
                return admitted
        raise


def _admitted(
    name: str,
    data: Any,
    backend: Backend,
    dtype: str,
    check: Callable[[Any], None] | None,
    count: int | None,
    expect_shape: Callable[[Any], None] | None,
    input_kinds: Any,
    *,
    stays: bool,
) -> Admitted:
    """Return what `admit` does; stays: whether arrays of the backend stay there."""
    nesting = _nesting(data)
    problem: Exception | None = None
    try:
        leaf_kinds = kinds(input_kinds, nesting)
    except (KeyError, ValueError) as error:  # x is nested otherwise than the model's
        leaf_kinds = nesting
        problem = error
    results: list[Any] = []  # the converted arrays
    problems: list[Exception] = []  # why arrays cannot be converted
    tables: dict[str, Any] = {}  # those that are not arrays, by path

    def visit(path: str, value: Any, kind: Any) -> Any:
        if stays and backend.holds(value):
            if sparse_remedy(value):
                expect_dense(path, value)
            results.append(converted_there(path, value, backend, dtype, kind))
            return value
        array, has_dtype = fetch_array(path, value, backend)
        if array is not value and not isinstance(value, list | np.ndarray):
            tables[path] = value
        if str(getattr(value, "dtype", "")).endswith("bfloat16"):  # float32 in `array`
            wrong = f"{path} is bfloat16, but the model computes in {dtype}"
            problems.append(TypeError(f"{wrong}: convert it to {dtype} first"))
        if not has_dtype and kind == "real floating":
            array = array.astype(dtype)
        try:
            results.append(converted(path, array, has_dtype, dtype, kind))
        except (TypeError, ValueError) as error:
            problems.append(error)
        return array

    arrays = _map_named(visit, name, data, leaf_kinds)
    if count is None:
        expect_lengths(name, arrays)
    else:
        _expect_count(name, arrays, count)
    if expect_shape is not None:
        expect_shape(arrays)
    if problem is None:
        problem = _first_problem(name, arrays, check, any(leaves(nesting)), problems)
    columns = _named_columns(tables) if tables else {}
    if problem is not None:
        for path, names in columns.items():
            problem.add_note(table_note(path, names, tables[path]))
        return Admitted(arrays, problem)
    labels = {path: row_labels(table) for path, table in tables.items()}
    labels = {path: index for path, index in labels.items() if index is not None}
    in_order = iter(results)
    data = tree_map(lambda _: next(in_order), arrays)
    return Admitted(data, None, columns, labels)


def _named_columns(tables: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of the columns of those tables where all names are texts."""
    named = {path: column_names(table) or [] for path, table in tables.items()}
    return {
        path: names
        for path, names in named.items()
        if names and all(isinstance(each, str) for each in names)
    }


def _first_problem(
    name: str,
    arrays: Any,
    check: Callable[[Any], None] | None,
    has_mapped: bool,
    problems: list[Exception],
) -> Exception | None:
    """Return the error of `check`, or else the first one of `problems`, or None.

    has_mapped: whether an array is read in parts; all are then checked in chunks.
    """
    try:
        if has_mapped:
            problems = problems + _check_chunks(name, arrays, check)
        elif check is not None:
            check(arrays)
    except Exception as error:
        return error
    return problems[0] if problems else None


def _nesting(data: Any) -> Any:
    """Return a tree nested like `data`, with True for each array read in parts."""
    if isinstance(data, dict):
        return {key: _nesting(branch) for key, branch in data.items()}
    if isinstance(data, tuple) and not _is_numbers(data):
        return tuple([_nesting(branch) for branch in data])
    is_array = isinstance(data, np.ndarray)
    return is_read_in_parts(data) if is_array else has_chunks(data)


def _map_named(
    function: Callable[[str, Any, Any], Any], name: str, data: Any, tree: Any
) -> Any:
    """Return a tree of function(path, leaf of data, leaf of tree), like `tree`."""
    if isinstance(tree, dict):
        return {
            key: _map_named(function, f"{name}.{key}", data[key], branch)
            for key, branch in tree.items()
        }
    if isinstance(tree, tuple):
        return tuple(
            [
                _map_named(function, f"{name}.{i}", data[i], branch)
                for i, branch in enumerate(tree)
            ]
        )
    return function(name, data, tree)


def _check_chunks(
    name: str, arrays: Any, check: Callable[[Any], None] | None
) -> list[Exception]:
    """Check data that are read in parts in chunks, each of which is read once.

    Errors of `check` are raised. Returns the first one about an integer that does not
    fit into int32, if any. An error names the first example of its chunk.
    """
    problems: list[Exception] = []
    for start, chunk in chunks(arrays):
        try:
            if check is not None:
                check(chunk)
        except (TypeError, ValueError) as error:
            if not start:
                raise
            raise _counted_from(start, error) from error
        if not problems:
            try:
                _map_named(_expect_int32_in_file, name, chunk, arrays)
            except ValueError as error:
                problems.append(_counted_from(start, error) if start else error)
    return problems


def _counted_from(start: int, error: Exception) -> Exception:
    """Return an error that also names the first example of its chunk."""
    result = type(error)(f"{error}. Positions are counted from example {start}")
    for note in getattr(error, "__notes__", ()):
        result.add_note(note)
    return result


def _expect_int32_in_file(path: str, chunk: np.ndarray, array: np.ndarray) -> None:
    if is_read_in_parts(array) and chunk.dtype.kind in "iu":
        _expect_int32(path, chunk)


def fetch(name: str, data: Any, backend: Backend) -> tuple[Any, Any]:
    """Return `data` as NumPy arrays, and for each whether the user chose its dtype.

    Accepts NumPy arrays, nested lists of numbers, arrays of any library and device,
    tables and their columns, and dicts and tuples of those; a tuple of numbers is one
    array. Both results have the nesting of the data.

    Raises
    ------
    TypeError
        If data do not hold numbers, or are sparse.
    """
    arrays, has_dtype = fetch_unread(name, data, backend)

    def in_memory(array: Any) -> np.ndarray:
        return array[:] if isinstance(array, ReadInParts) else array

    return tree_map(in_memory, arrays), has_dtype


def fetch_unread(name: str, data: Any, backend: Backend) -> tuple[Any, Any]:
    """Return what `fetch` does, but arrays that are read in parts unread."""
    data = as_tree(data)
    if isinstance(data, dict):
        arrays = {}
        has_dtype = {}
        for key, branch in data.items():
            arrays[key], has_dtype[key] = fetch_unread(f"{name}.{key}", branch, backend)
        return arrays, has_dtype
    if isinstance(data, tuple) and not _is_numbers(data):
        pairs = [
            fetch_unread(f"{name}.{i}", part, backend) for i, part in enumerate(data)
        ]
        return tuple([pair[0] for pair in pairs]), tuple([pair[1] for pair in pairs])
    return fetch_array(name, data, backend)


def _is_numbers(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return all(_is_numbers(entry) for entry in data)
    return isinstance(data, int | float | np.generic)


def fetch_array(name: str, data: Any, backend: Backend) -> tuple[Any, bool]:
    """Return one array on the host, and whether the user chose its dtype.

    It is a NumPy array, or a `ReadInParts`.
    """
    has_dtype = True
    array: Any
    if isinstance(data, np.ndarray | np.generic):
        if hasattr(data, "mask"):
            raise TypeError(
                f"expected {name} without a mask, which would be lost: fill it first"
            )
        array = data if isinstance(data, np.memmap) else np.asarray(data)
    elif isinstance(data, list | tuple | int | float):
        has_dtype = False
        if isinstance(data, list) and data and isinstance(data[0], Mapping):
            raise TypeError(
                f"expected {name} as arrays, got a list of dicts with "
                f"{', '.join(map(repr, data[0]))}: choose x and target by name, as in "
                "interop.columns(data, x=..., target=...)"
            )
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(
                f"expected {name} as lists of equal lengths: {error}"
            ) from error
    else:
        array = _fetch_other(name, data, backend)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected {name} to hold numbers, got dtype {array.dtype}")
    return array, has_dtype


def _fetch_other(name: str, data: Any, backend: Backend) -> Any:
    """Return what `fetch_array` does for data that are not NumPy's or lists."""
    expect_dense(name, data)
    if backend.is_array(data):
        try:
            return backend.to_numpy(data)
        except TypeError as error:
            raise TypeError(
                f"expected {name} of a dtype that NumPy has: {error}"
            ) from error
    if has_chunks(data):
        return ReadInParts(name, data)
    if column_names(data) is not None:
        return table_values(name, data)
    if is_column(data):
        return column_values(name, data)
    expect_materialized(name, data)
    array = array_on_host(name, data)
    if array is None:
        kind = type(data)
        raise TypeError(
            f"expected {name} as a NumPy array, a list, a table or an array of another "
            f"library, got {kind.__module__}.{kind.__qualname__}"
        )
    return array


def converted(
    name: str, array: np.ndarray, has_dtype: bool, dtype: str, dtype_kind: str = ""
) -> np.ndarray:
    """Return `array` in the dtype that the model computes in, and integers in int32.

    All backends have int32. Those of 8 bits are not converted for a layer that takes
    them, which is of the kind "numeric": images take four times the memory in float32.
    Floating-point numbers are only converted if the user did
    not choose their dtype. Booleans are not converted, and neither is an array that is
    read in parts, whose values are not read here.

    Raises
    ------
    TypeError
        If the array is of another floating-point dtype.
    ValueError
        If an integer is out of range.
    """
    kind = array.dtype.kind
    # The name is slow to get. That of a dtype in another byte order is the same.
    is_other = kind == "f" and array.dtype != np.dtype(dtype)
    if is_other and has_dtype and array.dtype.name != dtype:
        actual = array.dtype.name
        is_choice = actual in ("float32", "float64")
        choose = f", or Trainer(dtype={actual!r})" if is_choice else ""
        raise TypeError(
            f"{name} is {actual}, but the model computes in {dtype}: pass "
            f"{name}.astype({dtype!r}){choose}"
        )
    if kind == "b" or is_read_in_parts(array):
        return array
    if kind == "f":
        return array.astype(dtype, copy=False)
    if dtype_kind == "numeric" and array.dtype.name in BYTES:
        return array
    _expect_int32(name, array)
    return array.astype(np.int32, copy=False)


def converted_there(
    name: str, array: Array, backend: Backend, dtype: str, dtype_kind: str = ""
) -> Array:
    """Return an array of the backend in the dtype that `converted` returns, there.

    Raises
    ------
    TypeError
        If its dtype is another one.
    ValueError
        If an integer is out of range.
    """
    actual = backend.dtype_name(array)
    if actual in (dtype, "bool", "int32"):
        return array
    if dtype_kind == "numeric" and actual in BYTES:
        return array
    if not actual.startswith(("int", "uint")):
        raise TypeError(f"{name} is {array.dtype}, but the model computes in {dtype}")

    def in_int32(array: Array) -> Array:
        xp = namespace(array)
        if not np.can_cast(actual, np.int32):
            bounds = np.iinfo(np.int32)
            is_out = (array < int(bounds.min)) | (array > int(bounds.max))
            if xp.any(is_out):
                raise ValueError(f"expected {name} to fit into int32")
        return xp.astype(array, xp.int32)

    return backend.without_policy(in_int32)(array)


def _expect_int32(name: str, array: np.ndarray) -> None:
    """Raise ValueError if an integer does not fit into int32."""
    if np.can_cast(array.dtype, np.int32):
        return
    bounds = np.iinfo(np.int32)
    bad = first_true((array < bounds.min) | (array > bounds.max))
    if bad is not None:
        raise ValueError(
            f"{name}{list(bad)} is {array[bad]}, which does not fit into int32"
        )


def chunks(data: Any) -> Iterator[tuple[int, Any]]:
    """Yield data in chunks that fit into memory, each with its first index."""
    arrays = leaves(data)
    count = len(arrays[0])
    step = max(1, CHUNK_BYTES * count // max(1, sum(leaf.nbytes for leaf in arrays)))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        yield start, tree_map(lambda leaf: np.asarray(leaf[rows]), data)  # noqa: B023


def as_shape(data: Any, *, free: bool = False) -> Any:
    """Return a shape, or a tree of shapes, from lists and tuples of integers.

    free: whether a length may be None, which means any.
    """
    if isinstance(data, dict):
        return {name: as_shape(shape, free=free) for name, shape in data.items()}
    if isinstance(data, list | tuple):
        return tuple(as_shape(entry, free=free) for entry in data)
    if free and data is None:
        return None
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
    """Describe the type of `thing`, and the length of a tuple or list."""
    kind = type(thing).__qualname__
    return (
        f"a {kind} of {len(thing)}" if isinstance(thing, tuple | list) else f"a {kind}"
    )


def _expect_count(name: str, data: Any, count: int) -> None:
    """Raise ValueError unless all leaves of data hold `count` examples."""
    for path, leaf in named_leaves(data, name):
        if leaf.shape[:1] != (count,):
            label = "targets" if path == "target" else path
            raise ValueError(f"{count} examples, but {label} of shape {leaf.shape}")


def expect_shapes(name: str, data: Any, shapes: Any) -> None:
    """Raise ValueError unless data hold examples of `shapes`, a tree nested alike.

    A length that is None may be any.
    """
    if tree_map(lambda leaf: leaf.shape[1:], data) == shapes:
        return
    arrays = dict(named_leaves(data, name))
    # Lists, since a shape is a tuple and would be taken for a branch of the tree.
    expected = dict(named_leaves(_with_lists(shapes), name))
    if arrays.keys() != expected.keys():
        raise ValueError(
            f"the model takes {' and '.join(expected)}, got {' and '.join(arrays)}"
        )
    for path, leaf in arrays.items():
        if not _fits(leaf.shape[1:], expected[path]):
            shape = ", ".join(["examples", *map(str, expected[path])])
            message = f"the model takes {path} of shape ({shape}), got {leaf.shape}"
            if _fits(leaf.shape, expected[path]):
                batch = (1, *leaf.shape)
                message += f": pass one example as {path}[None], of shape {batch}"
            raise ValueError(message)


def _with_lists(shapes: Any) -> Any:
    """Return a tree of shapes with a list for each shape."""
    if isinstance(shapes, dict):
        return {name: _with_lists(part) for name, part in shapes.items()}
    if any(isinstance(entry, tuple | dict) for entry in shapes):
        return tuple([_with_lists(part) for part in shapes])
    return list(shapes)


def _fits(shape: Shape, lengths: list[int | None]) -> bool:
    """Return whether a shape has these lengths, of which None may be any."""
    if len(shape) != len(lengths):
        return False
    pairs = zip(shape, lengths, strict=True)
    return all(length is None or actual == length for actual, length in pairs)


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
        if leaf.shape[0] != first_leaf.shape[0]:
            raise ValueError(
                f"{first_path} holds {first_leaf.shape[0]} examples, but {path} has "
                f"shape {leaf.shape}"
            )
