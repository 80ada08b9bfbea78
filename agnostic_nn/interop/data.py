"""Choose x and the target by name from tables, data sets, records and batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..core.arrays import namespace
from ..core.errors import described, expect_function
from ..training.sources import column_names

__all__ = ["batches", "columns"]


def columns(
    data: Any, *, x: Any, target: Any, dtype: str | None = None
) -> tuple[Any, Any]:
    """Return (x, target), chosen by name from the columns of `data`.

    For example `trainer.fit(*columns(frame, x=["age", "income"], target="label"))`.

    Parameters
    ----------
    data
        A table of pandas, polars or Arrow; a data set that is indexed by lists of rows
        and returns dicts of columns, such as one of Hugging Face; or a sequence of
        examples that are dicts or tuples, such as a list of records, a data set of
        PyTorch, or a `MapDataset` of grain. Columns of a data set, and of a sequence
        other than a list, are read when `fit` needs their rows.
    x, target
        The name of a column, or its position in a tuple; a list of names, whose columns
        of numbers become one array (rows, columns); a tuple or a dict of these, for
        several inputs or targets.
    dtype
        Convert floating-point columns of data sets and sequences to this dtype. Without
        it they keep theirs, which is float64 for Python's numbers in a data set. Use
        `astype` or `cast` on tables.

    Raises
    ------
    KeyError
        If there is no such column; the error lists the names.
    TypeError
        If data is something else, such as an iterable of batches: see `batches`.
    """
    names = column_names(data)
    is_table = hasattr(data, "__array__") or hasattr(data, "__dataframe__")
    kind = type(data)
    read: Callable[[Any], Any]
    if names is not None and is_table:
        read = _Table(data).column
    elif isinstance(data, list | tuple) and data:
        read = _Records(data).column
    elif hasattr(kind, "__len__") and hasattr(kind, "__getitem__") and len(data):
        is_named = names is not None and hasattr(data, "with_format")
        rows = _NamedRows(data) if is_named else _Items(data)
        read = _Reader(rows, dtype).column
    else:
        raise TypeError(
            "expected a table, a data set with a length, or a sequence of examples, "
            f"got {described(data)}: for an iterable of batches use interop.batches"
        )
    return _chosen(x, read), _chosen(target, read)


def batches(source: Any, *, x: Any, target: Any, weights: Any = None) -> Any:
    """Return batches (x, target) or (x, target, weights) of batches with names.

    For example `trainer.fit(batches=batches(loader, x="image", target="label"))`.

    Parameters
    ----------
    source
        The batches, as for `fit(batches=...)`. Each is a dict of arrays, a table or a
        tuple of arrays, as from a `DataLoader`, `dataset.iter(64)` or `pandas.read_csv`
        with a chunk size. The result can be read as often as the source.
    x, target, weights
        As in `columns`.

    Raises
    ------
    KeyError
        While it is read, if a batch has no such name; the error lists the names.
    """
    choices = [x, target] if weights is None else [x, target, weights]

    def chosen(batch: Any) -> tuple[Any, ...]:
        read = _column_of_batch(batch)
        return tuple([_chosen(choice, read) for choice in choices])

    if isinstance(source, Iterator):
        return map(chosen, source)
    if isinstance(source, Iterable):
        return _Batches(source, chosen)
    if hasattr(type(source), "__getitem__"):
        return _NumberedBatches(source, chosen)
    expect_function("source", source, "epoch")
    return lambda epoch: map(chosen, source(epoch))


class _Batches:
    """Batches of an iterable, each changed by a function."""

    def __init__(self, source: Any, change: Callable[[Any], Any]) -> None:
        self._source = source
        self._change = change

    def __iter__(self) -> Iterator[Any]:
        return map(self._change, self._source)


class _NumberedBatches(_Batches):
    """Batches of a sequence without an iterator."""

    def __iter__(self) -> Iterator[Any]:
        return (self._change(self._source[i]) for i in range(len(self._source)))


def _chosen(choice: Any, read: Callable[[Any], Any]) -> Any:
    """Return a tree of columns like the tree of names in `choice`."""
    if isinstance(choice, dict):
        return {key: _chosen(part, read) for key, part in choice.items()}
    if isinstance(choice, tuple):
        return tuple([_chosen(part, read) for part in choice])
    return read(choice)


def _expect_name(name: Any, names: Iterable[Any]) -> None:
    names = list(names)
    if name not in names:
        listed = ", ".join(map(repr, names))
        raise KeyError(f"expected a name among {listed}, got {name!r}")


def _column_of_batch(batch: Any) -> Callable[[Any], Any]:
    """Return the function from a name to a column of a batch."""
    if not isinstance(batch, Mapping | tuple | list) and column_names(batch):
        return _Table(batch).column
    if not isinstance(batch, Mapping | tuple | list):
        raise TypeError(
            "expected batches that are dicts, tables or tuples of arrays, got "
            f"{described(batch)}"
        )

    def column(choice: Any) -> Any:
        if isinstance(choice, list):
            return _stacked([column(name) for name in choice])
        return _entry(batch, choice)

    return column


def _entry(example: Any, name: Any) -> Any:
    """Return the value called `name` of a dict, or at that position of a tuple."""
    is_named = isinstance(example, Mapping)
    _expect_name(name, example if is_named else range(len(example)))
    return example[name]


def _stacked(parts: list[Any]) -> Any:
    """Return columns of numbers as one array (rows, columns), where they are."""
    if isinstance(parts[0], list):
        return np.stack([np.asarray(part) for part in parts], axis=1)
    return namespace(*parts).stack(parts, axis=1)


class _Table:
    """The columns of a table."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def column(self, choice: Any) -> Any:
        for name in choice if isinstance(choice, list) else [choice]:
            _expect_name(name, column_names(self._table) or ())
        if isinstance(choice, list) and hasattr(self._table, "column_names"):
            return self._table.select(choice)  # Arrow
        return self._table[choice]


class _Records:
    """The columns of a list of examples, each a dict or a tuple."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def column(self, choice: Any) -> Any:
        if isinstance(choice, list):
            return [
                [self._value(row, name) for name in choice]
                for row in range(len(self._records))
            ]
        values = [self._value(row, choice) for row in range(len(self._records))]
        return np.stack(values) if hasattr(values[0], "dtype") else values

    def _value(self, row: int, name: Any) -> Any:
        try:
            return _entry(self._records[row], name)
        except KeyError as error:
            error.add_note(f"in example {row}")
            raise


class _Items:
    """The rows of a sequence of examples. The rows read last are remembered."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._last: tuple[list[int], list[Any]] = ([], [])

    def __len__(self) -> int:
        return len(self._data)

    def values(self, rows: list[int], name: Any) -> np.ndarray:
        """Return the values called `name` of some rows as one array."""
        if self._last[0] != rows:
            self._last = (rows, [self._data[row] for row in rows])
        return np.stack([np.asarray(_entry(item, name)) for item in self._last[1]])


class _NamedRows:
    """The rows of a data set that returns a dict of columns for a list of rows."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._formatted: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._data)

    def values(self, rows: list[int], name: Any) -> np.ndarray:
        """Return the values called `name` of some rows as one array."""
        _expect_name(name, self._data.column_names)
        if name not in self._formatted:
            self._formatted[name] = self._with_arrays(name)
        return np.asarray(self._formatted[name][rows][name])

    def _with_arrays(self, name: Any) -> Any:
        """Return the data set with arrays of NumPy, unless its user chose others."""
        if self._data.format["type"] is not None:
            return self._data
        # NumPy's format would round float64 to float32
        is_double = "float64" in repr(self._data.features[name])
        options = {"dtype": np.float64} if is_double else {}
        return self._data.with_format("numpy", columns=[name], **options)


class _Reader:
    """Columns of rows that are read when they are needed."""

    def __init__(self, rows: _Items | _NamedRows, dtype: str | None) -> None:
        self._rows = rows
        self._dtype = dtype

    def column(self, choice: Any) -> "_StoredColumn":
        names = choice if isinstance(choice, list) else [choice]
        return _StoredColumn(self._rows, names, isinstance(choice, list), self._dtype)


class _StoredColumn:
    """A column that is read in parts: an array with `chunks`, see `training.sources`.

    is_stacked: whether the columns called `names` become one array (rows, columns).
    """

    chunks = None

    def __init__(
        self,
        rows: _Items | _NamedRows,
        names: list[Any],
        is_stacked: bool,
        dtype: str | None,
    ) -> None:
        self._rows = rows
        self._names = names
        self._is_stacked = is_stacked
        self._floating = dtype
        first = self._values([0])
        self.shape = (len(rows), *first.shape[1:])
        self.dtype = first.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        return self._values(np.asarray(rows).tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _values(self, rows: list[int]) -> np.ndarray:
        parts = [self._rows.values(rows, name) for name in self._names]
        values = np.stack(parts, axis=1) if self._is_stacked else parts[0]
        if self._floating is not None and values.dtype.kind == "f":
            values = values.astype(self._floating)
        return values
