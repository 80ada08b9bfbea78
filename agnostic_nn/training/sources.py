"""Sources: tables, and arrays of other libraries, recognised by their protocols.

No library is imported here. A table has columns with names (pandas, polars, Arrow); a
column has `to_numpy`. An array that is read in parts has `chunks` (zarr, HDF5, dask).
Any other array comes through `__array__`, or through DLPack.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..core.arrays import namespace, to_device

__all__ = [
    "ReadInParts",
    "array_on_host",
    "as_tree",
    "column_names",
    "column_values",
    "expect_dense",
    "expect_materialized",
    "has_chunks",
    "is_column",
    "is_read_in_parts",
    "row_labels",
    "sparse_remedy",
    "table_note",
    "table_values",
]


class ReadInParts:
    """An array in a file or in chunks, of which only the requested rows are read.

    `array[rows]` returns NumPy's arrays. The rows are read in increasing order, each
    once, because some libraries need that, and chunks are then read once. `path` names
    the array in errors.
    """

    def __init__(self, path: str, source: Any) -> None:
        self.path = path
        self.source = source
        try:
            self.shape = tuple([int(length) for length in source.shape])
        except ValueError as error:  # dask does not always know its lengths
            raise ValueError(
                f"expected {path} of a known shape, got {source.shape}: call "
                "compute_chunk_sizes() first"
            ) from error
        self.dtype = np.dtype(source.dtype)
        self.ndim = len(self.shape)
        self.nbytes = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._part(slice(start, max(start, stop)))
            rows = range(start, stop, step)
        increasing, inverse = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        if not len(increasing):
            return self._part(slice(0, 0))
        first = int(increasing[0])
        end = int(increasing[-1]) + 1
        is_range = end - first == len(increasing)
        part = self._part(slice(first, end) if is_range else increasing)
        return part[inverse]

    def _part(self, rows: Any) -> np.ndarray:
        part = np.asarray(self.source[rows])
        if part.shape[1:] != self.shape[1:] or part.dtype != self.dtype:
            raise ValueError(
                f"expected {self.path} of dtype {self.dtype} and shape (rows, "
                f"{', '.join(map(str, self.shape[1:]))}) in every part, got "
                f"{part.dtype} {part.shape} for {_rows_text(rows)}"
            )
        return part


def _rows_text(rows: Any) -> str:
    if isinstance(rows, slice):
        return f"rows {rows.start} to {rows.stop - 1}"
    return f"rows {', '.join(map(str, rows[:5].tolist()))}" + ", …" * (len(rows) > 5)


def is_read_in_parts(array: Any) -> bool:
    """Return whether rows of an array should be read only when they are used."""
    return isinstance(array, np.memmap | ReadInParts)


def has_chunks(data: Any) -> bool:
    """Return whether `data` is an array of a library that reads it in parts."""
    return (
        _may_have_chunks(type(data))  # type: ignore[arg-type]
        and isinstance(getattr(data, "dtype", None), np.dtype)
        and hasattr(data, "shape")
    )


# cached, since every step looks at the types of its arrays
@lru_cache(maxsize=256)
def _may_have_chunks(kind: type) -> bool:
    has = partial(hasattr, kind)
    return has("chunks") and has("__getitem__") and not has("__dlpack__")


@lru_cache(maxsize=256)
def _is_mapping(kind: type) -> bool:
    return issubclass(kind, Mapping)


@lru_cache(maxsize=256)
def _may_be_sparse(kind: type) -> bool:
    return any(hasattr(kind, name) for name in ("is_sparse", "layout", "nnz", "nse"))


@lru_cache(maxsize=64)
def _is_sparse_layout(layout: Any) -> bool:
    return "sparse" in str(layout)


# --- trees ----------------------------------------------------------------------------


def as_tree(data: Any) -> Any:
    """Return data with a dict for each mapping, and a tuple for each list of arrays.

    Only arrays of other libraries count: PyTorch's `DataLoader` makes a list of what
    was a tuple of inputs. A list of NumPy's arrays is one array, as a list of lists is.
    """
    if isinstance(data, np.ndarray):
        return data
    if isinstance(data, dict):
        return {key: as_tree(branch) for key, branch in data.items()}
    if isinstance(data, tuple | list):
        is_branch = isinstance(data, tuple) or any(map(_is_branch, data[:1]))
        return tuple([as_tree(part) for part in data]) if is_branch else data
    if _is_mapping(type(data)) and not column_names(data):  # type: ignore[arg-type]
        return {key: as_tree(data[key]) for key in data}
    return data


def _is_branch(entry: Any) -> bool:
    """Return whether an entry of a list is an input, not a row of one array."""
    if isinstance(entry, int | float | list | tuple | np.ndarray | np.generic):
        return False
    return bool(getattr(entry, "ndim", 0) > 0)


# --- tables ---------------------------------------------------------------------------


def column_names(data: Any) -> list[Any] | None:
    """Return the names of the columns of a table, or None if `data` is not a table."""
    kind = type(data)
    for name in ("column_names", "columns"):
        if hasattr(kind, name) and hasattr(kind, "__getitem__"):
            if hasattr(kind, "collect") or hasattr(kind, "compute"):
                return []  # a table that is not read yet
            return list(getattr(data, name))
    return None


def row_labels(data: Any) -> Any:
    """Return the index of a table or a column, which pandas has, or None."""
    index = getattr(data, "index", None)
    return index if hasattr(type(index), "equals") else None


def is_column(data: Any) -> bool:
    """Return whether `data` is a column of a table."""
    kind = type(data)
    return (
        hasattr(kind, "to_numpy")
        and hasattr(kind, "__getitem__")
        and not hasattr(kind, "__dlpack__")
    )


def table_values(path: str, table: Any) -> np.ndarray:
    """Return the columns of a table as one array (rows, columns), in their order.

    Its dtype is bool if all columns are; an integer dtype if all are bool or integers;
    otherwise the widest of the floating-point columns. Integers must be exact in it.

    Raises
    ------
    TypeError, ValueError
        If a column does not hold numbers, or misses some. The error names the column.
    """
    expect_materialized(path, table)
    names = column_names(table)
    if not names:
        raise ValueError(f"expected columns in {path}, got a table without any")
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"expected {path} with one column of each name, got several called "
            f"{', '.join(repeated)}: rename them"
        )
    if not (hasattr(table, "__array__") or hasattr(table, "__dataframe__")):
        raise TypeError(
            f"{path} is a data set with the columns {_listed(names)}: choose those of x"
            " and of the target, as in x, target = interop.columns(data, "
            f"x={names[0]!r}, target={names[-1]!r})"
        )
    columns = [column_values(f"{path}[{name!r}]", table[name]) for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.ndim != 1:
            raise TypeError(
                f"{path}[{name!r}] holds arrays of shape {column.shape[1:]}: pass this "
                "column alone, or several columns as a tuple or a dict"
            )
    dtype = _common_dtype(columns)
    result = np.empty((len(columns[0]), len(columns)), dtype)
    for i, column in enumerate(columns):
        if dtype.kind == "f" and column.dtype.kind in "iu":
            _expect_exact(f"{path}[{names[i]!r}]", column, dtype)
        result[:, i] = column
    return result


def expect_materialized(path: str, data: Any) -> None:
    """Raise TypeError for a lazy table, whose rows are not computed yet."""
    for method in ("collect", "compute"):
        if hasattr(type(data), method):
            raise TypeError(
                f"{path} is a {type(data).__name__}, whose rows are not computed yet: "
                f"pass {path}.{method}()"
            )


def table_note(path: str, names: list[str], table: Any) -> str:
    """Return a note for errors about a table: its columns, and how to convert it."""
    if len(names) == 1:
        name = names[0]
        return (
            f"{path} is a table: its column alone is {path}[{name!r}], without axis 1"
        )
    columns = ", ".join(f"{i} {name!r}" for i, name in enumerate(names[:20]))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    convert = (
        "" if hasattr(table, "astype") else f"; convert them with {path}.cast(...)"
    )
    return f"the columns of {path} are {columns}{more}{convert}"


def _listed(names: list[Any], most: int = 20) -> str:
    listed = [repr(name) for name in names[:most]]
    more = len(names) - most
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def _common_dtype(columns: list[np.ndarray]) -> np.dtype[Any]:
    floating = [column.dtype for column in columns if column.dtype.kind == "f"]
    if floating:
        return np.result_type(*floating)
    dtype = np.result_type(*[column.dtype for column in columns])
    # int64 and uint64 have no common integer dtype; what exceeds int32 is refused later
    return np.dtype(np.int64) if dtype.kind == "f" else dtype


def _expect_exact(path: str, column: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Raise ValueError unless all integers of a column are exact in `dtype`."""
    if not len(column):
        return
    most = 2 ** (np.finfo(dtype).nmant + 1)
    for value in (int(column.min()), int(column.max())):
        if abs(value) > most:
            raise ValueError(
                f"{path} has the integer {value}, which may not be exact in {dtype}, "
                f"the dtype of the other columns: convert the column to {dtype} "
                "yourself, or leave it out"
            )


def column_values(path: str, column: Any) -> np.ndarray:
    """Return the numbers of a column; raise if it holds others or misses some."""
    dtype = getattr(column, "dtype", getattr(column, "type", None))
    if "sparse" in type(dtype).__name__.lower():
        raise TypeError(
            f"{path} is sparse ({dtype}): make it dense first, with "
            ".sparse.to_dense(), or batch by batch"
        )
    names = " ".join((type(dtype).__name__, str(dtype))).lower()
    if any(word in names for word in ("categor", "dictionary", "enum")):
        raise TypeError(
            f"{path} is categorical ({dtype}): encode it, as integers for an Embedding "
            "or as columns of 0 and 1, for example with .cat.codes, .to_physical() or "
            "pandas.get_dummies"
        )
    missing = _missing(column)
    if missing:
        raise ValueError(
            f"{path} ({dtype}) has {missing} missing values: fill them, with .fillna "
            "or .fill_null, or leave out their rows, with .dropna or .drop_nulls"
        )
    values: np.ndarray = np.asarray(column.to_numpy())
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"expected {path} to hold numbers, got {dtype}: convert the column to "
            "numbers, or leave it out"
        )
    return values


def _missing(column: Any) -> int:
    """Return the number of missing values of a column. NaN is a number."""
    count = getattr(column, "null_count", None)  # polars and Arrow
    if count is not None:
        return int(count() if callable(count) else count)
    is_nullable = not isinstance(getattr(column, "dtype", None), np.dtype)
    is_missing = getattr(column, "isna", None)
    return int(is_missing().sum()) if is_nullable and is_missing else 0


# --- arrays ---------------------------------------------------------------------------


def sparse_remedy(data: Any) -> str:
    """Return the call that makes a sparse array dense, or "" if it is not sparse."""
    kind = type(data)
    if not _may_be_sparse(kind):  # type: ignore[arg-type]
        return ""
    is_sparse = getattr(data, "is_sparse", False) is True
    if not is_sparse:
        layout = getattr(data, "layout", None)
        is_hashable = getattr(type(layout), "__hash__", None) is not None
        is_sparse = is_hashable and _is_sparse_layout(layout)
    if not (is_sparse or hasattr(kind, "nnz") or hasattr(kind, "nse")):
        return ""
    for method in ("toarray", "to_dense", "todense"):
        if hasattr(kind, method):
            return f"{method}()"
    return ""


def expect_dense(path: str, data: Any) -> None:
    """Raise TypeError if `data` is sparse."""
    remedy = sparse_remedy(data)
    if remedy:
        raise TypeError(
            f"{path} is sparse ({type(data).__name__}): pass {path}.{remedy}, or pass "
            f"batches and make each of them dense, as in x[rows].{remedy}"
        )


def array_on_host(path: str, data: Any) -> np.ndarray | None:
    """Return an array of another library as NumPy's, or None if it is not an array.

    It may be on another device. A tensor that records gradients is detached, and
    bfloat16 becomes float32.

    Raises
    ------
    TypeError
        If the array cannot be copied to the host.
    """
    kind = type(data)
    if not (hasattr(kind, "__array__") or hasattr(kind, "__dlpack__")):
        return None
    if getattr(data, "requires_grad", False) is True:
        data = data.detach()
    if str(getattr(data, "dtype", "")).endswith("bfloat16"):
        xp = namespace(data)
        data = xp.astype(data, xp.float32)
    try:
        return _as_numpy(data)
    except Exception as error:
        first = error
    try:
        return _as_numpy(to_device(data, "cpu"))
    except Exception:
        reason = " ".join(str(first).split())
        raise TypeError(
            f"{path}, a {kind.__module__}.{kind.__qualname__}, cannot be copied to the "
            f"host ({reason}): pass it as a NumPy array"
        ) from first


def _as_numpy(data: Any) -> np.ndarray:
    # `__array__` first: DLPack drops the bit by which PyTorch negates a view
    if hasattr(data, "__array__"):
        return np.asarray(data)
    return np.from_dlpack(data)
