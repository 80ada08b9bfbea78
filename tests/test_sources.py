"""Tables, stored arrays and sequences are recognised by their protocols.

The classes here imitate those of other libraries; tests/interop has the real ones.
"""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import interop
from agnostic_nn.core.trees import leaves
from agnostic_nn.training import inputs, sources

ROWS = 22
MODEL = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(3))


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    x = generator.standard_normal((ROWS, 3)).astype("float32")
    return x, generator.integers(0, 3, ROWS)


def trainer(backend, **options):
    options = {"metrics": {}, "backend": backend, "shape": (3,)} | options
    return nn.Trainer(MODEL, nn.softmax_cross_entropy, nn.SGD(0.1), **options)


def assert_same_weights(*trainers):
    trees = [leaves(each.backend.to_numpy(each.params)) for each in trainers]
    for first, *others in zip(*trees, strict=True):
        assert all(first.tobytes() == other.tobytes() for other in others)


class Column:
    """A column of a table, as polars has."""

    def __init__(self, values, nulls=0):
        self.values = np.asarray(values)
        self.dtype = type("Dtype", (), {"__str__": lambda _: "Own"})()
        self.null_count = lambda: nulls

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        return self.values[rows]

    def to_numpy(self):
        return self.values


class Table:
    """A table with named columns."""

    def __init__(self, **columns):
        self._columns = {name: Column(values) for name, values in columns.items()}

    @property
    def columns(self):
        return list(self._columns)

    def __getitem__(self, name):
        return self._columns[name]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("columns are read one by one")


class Chunked:
    """An array in chunks, as zarr and HDF5 have; indices must increase."""

    chunks = (4, 3)

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.most = 0

    def __getitem__(self, rows):
        part = self.array[rows]
        if not isinstance(rows, slice):
            assert (np.diff(rows) > 0).all()
        self.most = max(self.most, len(part))
        return part

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("the whole array is read")


def test_a_table_is_an_array_of_its_columns_in_order(backend, data):
    x, labels = data
    table = Table(a=x[:, 0], b=x[:, 1], c=x[:, 2])
    of_table, of_arrays = trainer(backend), trainer(backend)
    of_table.fit(table, Column(labels), batch_size=8, verbose=0)
    of_arrays.fit(x, labels, batch_size=8, verbose=0)
    assert_same_weights(of_table, of_arrays)
    y = of_table.predict(table)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, of_arrays.predict(x))


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [
        ([[True, False], [False, True]], "bool"),
        ([np.int8([1, 2]), [True, False]], "int8"),
        ([np.int8([1, 2]), np.uint8([1, 2])], "int16"),
        ([np.int64([1, 2]), np.uint64([1, 2])], "int64"),
        ([np.float32([1, 2]), [True, False], np.int64([1, 2**24])], "float32"),
        ([np.float32([1, 2]), np.float64([1, 2])], "float64"),
    ],
)
def test_the_dtype_of_a_table_is_the_widest_kind_of_its_columns(columns, dtype):
    table = Table(**{f"c{i}": column for i, column in enumerate(columns)})
    array = sources.table_values("x", table)
    assert array.dtype == dtype
    for i, column in enumerate(columns):
        np.testing.assert_array_equal(array[:, i].astype("float64"), column)


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ([1, 2**24 + 1], ValueError, r"x\['b'\] has the integer 16777217.*float32"),
        ([-(2**24) - 1, 1], ValueError, r"x\['b'\] has the integer -16777217"),
        (["one", "two"], TypeError, r"expected x\['b'\] to hold numbers, got Own"),
        (np.zeros((2, 3)), TypeError, r"x\['b'\] holds arrays of shape \(3,\)"),
    ],
)
def test_a_column_that_would_be_changed_is_named(column, kind, message):
    with pytest.raises(kind, match=message):
        sources.table_values("x", Table(a=np.float32([1, 2]), b=column))


def test_missing_values_are_counted_and_not_replaced():
    with pytest.raises(ValueError, match=r"x\['a'\] \(Own\) has 2 missing values"):
        sources.column_values("x['a']", Column([1.0, np.nan, np.nan], nulls=2))


def test_columns_in_another_order_are_refused_also_after_loading(data, tmp_path):
    x, labels = data
    a, b, c = x.T
    learner = trainer("numpy")
    learner.fit(Table(a=a, b=b, c=c), labels, verbose=0)
    learner.save(tmp_path / "a.safetensors")
    loaded = nn.Trainer.load(tmp_path / "a.safetensors")
    for each in (learner, loaded, loaded.to("numpy")):
        with pytest.raises(ValueError, match=r"pass x\[\['a', 'b', 'c'\]\]"):
            each.predict(Table(b=b, a=a, c=c))
        with pytest.raises(ValueError, match=r"missing \['a'\] and unexpected \['d'\]"):
            each.evaluate(Table(d=b, b=a, c=c), labels)
        each.predict(Table(a=a, b=b, c=c))
        each.predict(x)  # without names, the order cannot be checked


def test_a_refused_table_sets_no_order(data):
    x, labels = data
    learner = trainer("numpy")
    a, b, c = x.T
    with pytest.raises(ValueError, match=r"x\[0, 1\] is nan") as error:
        learner.step(Table(c=a, b=b * np.nan, a=c), labels)
    assert error.value.__notes__[0].startswith("the columns of x are 0 'c', 1 'b'")
    learner.step(Table(a=a, b=b, c=c), labels)


def test_stored_arrays_are_read_in_batches_of_the_same_rows(backend, data, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 100)
    x, labels = data
    stored = Chunked(x.astype(">f4")), Chunked(labels.astype(">i8"))
    of_stored, of_arrays = trainer(backend), trainer(backend)
    of_stored.examples(*stored)
    assert [each.most for each in stored] == [8, 12], "as many as fit into 100 bytes"
    of_stored.fit(*stored, batch_size=8, epochs=2, verbose=0)
    of_arrays.fit(x, labels, batch_size=8, epochs=2, verbose=0)
    assert_same_weights(of_stored, of_arrays)
    evaluated = of_stored.evaluate(*stored, batch_size=8)
    assert evaluated == of_arrays.evaluate(x, labels, batch_size=8)
    y = of_stored.predict(stored[0], batch_size=8)
    np.testing.assert_array_equal(y, of_arrays.predict(x, batch_size=8))


@pytest.mark.parametrize("rows", [[3, 1, 1, 7], [], [4, 5, 6], slice(2, 9, 3)])
def test_rows_of_a_stored_array_come_in_the_requested_order(rows):
    array = np.arange(20.0).reshape(10, 2)
    part = sources.ReadInParts("x", Chunked(array))[rows]
    np.testing.assert_array_equal(
        part, array[np.asarray(rows, int) if rows == [] else rows]
    )


def test_a_stored_array_with_a_bad_number_is_refused_before_training(data, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 100)
    x, labels = data
    x = x.copy()
    x[20, 1] = np.nan
    learner = trainer("numpy")
    with pytest.raises(ValueError, match=r"is nan.*counted from example"):
        learner.fit(Chunked(x), labels, verbose=0)
    labels = labels.copy()
    labels[21] = 3
    with pytest.raises(ValueError, match="counted from example"):
        learner.fit(data[0], Chunked(labels), verbose=0)
    assert learner.steps == 0


def test_a_part_that_differs_from_the_first_is_refused():
    array = Chunked(np.zeros((4, 2)))
    parts = sources.ReadInParts("x", array)
    array.array = np.zeros((4, 3))
    with pytest.raises(
        ValueError, match=r"expected x of .*\(rows, 2\).*got .*\(2, 3\)"
    ):
        parts[1:3]


class Sequence:
    """Batches by number, and a length. A number past the end raises no error."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        return self.batches[number % len(self.batches)]


def test_a_sequence_without_an_iterator_has_as_many_batches_as_its_length(data):
    x, labels = data
    parts = [(x[i : i + 8], labels[i : i + 8]) for i in (0, 8, 16)]
    of_sequence, of_list = trainer("numpy"), trainer("numpy")
    sequence = Sequence(*parts)
    of_sequence.fit(batches=sequence, validation=sequence, epochs=2, verbose=0)
    of_list.fit(batches=parts, epochs=2, verbose=0)
    assert of_sequence.steps == 6
    assert_same_weights(of_sequence, of_list)
    assert of_sequence.evaluate(batches=sequence) == of_list.evaluate(batches=parts)


def test_batches_with_names_are_chosen_by_name(backend, data):
    x, labels = data
    parts = [
        {"pixels": x[i : i + 8], "label": labels[i : i + 8], "id": [0] * 8}
        for i in (0, 8)
    ]
    with pytest.raises(
        TypeError, match=r"got a dict of 'pixels', 'label', 'id': choose"
    ):
        trainer(backend).fit(batches=parts, verbose=0)
    of_names, of_tuples = trainer(backend), trainer(backend)
    pairs = [(part["pixels"], part["label"]) for part in parts]
    of_tuples.fit(batches=pairs, epochs=2, verbose=0)
    names = {"x": "pixels", "target": "label"}
    of_names.fit(batches=interop.batches(parts, **names), epochs=2, verbose=0)
    assert_same_weights(of_names, of_tuples)
    for source in (iter(parts), Sequence(*parts), lambda epoch: iter(parts)):
        by_name = interop.batches(source, **names)
        once = trainer(backend)
        once.fit(batches=by_name, steps=2, verbose=0)
        assert once.steps == 2
    with pytest.raises(KeyError, match=r"among 'pixels', 'label', 'id', got 'image'"):
        list(interop.batches(parts, x="image", target="label"))


def test_columns_of_records_and_of_data_sets_are_chosen_by_name(data):
    x, labels = data
    records = [
        {"a": float(row[0]), "b": row, "label": int(k)}
        for row, k in zip(x, labels, strict=True)
    ]
    chosen, target = interop.columns(records, x="b", target="label")
    np.testing.assert_array_equal(chosen, x)
    assert target == labels.tolist()
    numbers, _ = interop.columns(records, x=["a", "label"], target="label")
    assert numbers[1] == [records[1]["a"], records[1]["label"]]
    stored, stored_target = interop.columns(Sequence(*records), x="b", target="label")
    assert stored.shape == x.shape
    assert stored.dtype == "float32"
    of_stored, of_arrays = trainer("numpy"), trainer("numpy")
    of_stored.fit(stored, stored_target, batch_size=8, verbose=0)
    of_arrays.fit(x, labels, batch_size=8, verbose=0)
    assert_same_weights(of_stored, of_arrays)
    (first, both), _ = interop.columns(
        Sequence(*records), x=("a", ["a", "label"]), target="label", dtype="float32"
    )
    assert (first.shape, first.dtype) == ((ROWS,), "float32")
    assert both.shape == (ROWS, 2)
    pairs = Sequence(*zip(x, labels, strict=True))
    by_position, _ = interop.columns(pairs, x=0, target=1)
    np.testing.assert_array_equal(by_position[[3, 1]], x[[3, 1]])
    with pytest.raises(KeyError, match="among 'a', 'b', 'label', got 'c'") as error:
        interop.columns([*records[:2]], x="c", target="label")
    assert error.value.__notes__ == ["in example 0"]


def test_iterators_and_other_objects_without_columns_are_refused():
    for wrong in (iter([]), [], 3, object()):
        with pytest.raises(TypeError, match="expected a table"):
            interop.columns(wrong, x="a", target="b")
    with pytest.raises(TypeError, match="got a list of dicts with 'a', 'b': choose"):
        trainer("numpy").predict([{"a": 1.0, "b": 2.0}])


class Lazy(Table):
    """A table that is not computed yet."""

    def collect(self):
        raise AssertionError("called without need")


def test_a_lazy_table_is_refused_with_its_method():
    with pytest.raises(TypeError, match=r"x is a Lazy.*pass x\.collect\(\)"):
        trainer("numpy").predict(Lazy(a=[1.0]))


class Sparse:
    """A sparse array."""

    nnz = 1
    shape = 2, 3

    def toarray(self):
        return np.zeros((2, 3), "float32")


def test_a_sparse_array_is_refused_with_its_method(backend):
    with pytest.raises(TypeError, match=r"x is sparse \(Sparse\): pass x\.toarray\(\)"):
        trainer(backend).predict(Sparse())
