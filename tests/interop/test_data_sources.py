"""Data of other libraries train like the same numbers in NumPy arrays, or are refused.

Each comparison of weights is to the last bit.
"""

import io
import tarfile
import tracemalloc

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import interop
from agnostic_nn.core.trees import leaves
from agnostic_nn.training import inputs

ROWS = 40
NAMES = ["a", "b", "c"]
MODEL = nn.Sequential(nn.Dense(4), nn.ReLU(), nn.Dense(2))
BACKENDS = ("numpy", "torch:cpu", "jax")


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((ROWS, 3)).astype("float32")


@pytest.fixture(scope="module")
def labels(x):
    return (x[:, 0] > 0).astype("int64")


def trainer(backend="numpy", **options):
    options = {"backend": backend, "metrics": {}} | options
    return nn.Trainer(MODEL, nn.softmax_cross_entropy, nn.Adam(1e-2), **options)


def bits(learner):
    arrays = leaves(learner.backend.to_numpy(learner.params))
    return [array.tobytes() for array in arrays]


class Reference:
    """A trainer that returns to its first weights, so that it compiles once.

    Without shuffling, an epoch does not depend on its number.
    """

    def __init__(self, backend, x, labels):
        self.learner = trainer(backend, shape=(3,))
        self.learner.keep("start")
        self.x, self.labels = x, labels
        self.examples = self.learner.examples(x, labels)
        self.bits = self.after(x, labels, batch_size=16)
        self.loss = self.learner.evaluate(x, labels, batch_size=16)
        self.outputs = self.learner.predict(x, batch_size=16)

    def after(self, *data, **options):
        """Return the weights after one epoch."""
        self.learner.restore("start")
        self.learner.fit(*data, **options, shuffle=False, verbose=0)
        return bits(self.learner)

    def after_batches(self, batches, **options):
        """Return the weights after one epoch of batches."""
        return self.after(batches=batches, **options)

    def assert_alike(self, x, target):
        """Fit, evaluate and predict; compare with the results on NumPy arrays."""
        learner = self.learner
        examples = learner.examples(x, target).in_memory()
        for name in ("x", "target"):
            actual, expected = getattr(examples, name), getattr(self.examples, name)
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)
        assert self.after(x, target, batch_size=16) == self.bits
        assert learner.evaluate(x, target, batch_size=16) == self.loss
        y = learner.predict(x, batch_size=16)
        if learner.backend.is_array(x):
            y = learner.backend.to_numpy(y)
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(y, self.outputs)


@pytest.fixture(scope="module", params=BACKENDS)
def reference(request, x, labels):
    return Reference(request.param, x, labels)


@pytest.fixture(scope="module")
def on_numpy(x, labels):
    return Reference("numpy", x, labels)


# --- tables ---------------------------------------------------------------------------


def pandas_tables(x, labels):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(x, columns=NAMES), pandas.Series(labels)


def polars_tables(x, labels):
    polars = pytest.importorskip("polars")
    columns = dict(zip(NAMES, x.T, strict=True))
    return polars.DataFrame(columns), polars.Series(labels)


def arrow_tables(x, labels):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    columns = dict(zip(NAMES, x.T, strict=True))
    return arrow.table(columns), arrow.chunked_array([labels])


@pytest.mark.parametrize("make", [pandas_tables, polars_tables, arrow_tables])
def test_tables_train_like_arrays(reference, make, x, labels):
    reference.assert_alike(*make(x, labels))


def test_a_mixed_table_has_the_dtype_of_its_real_columns(x, labels):
    frame, _ = pandas_tables(x, labels)
    counts = np.arange(ROWS)
    mixed = frame.assign(count=counts, is_even=counts % 2 == 0)
    expected = np.column_stack([x, counts, counts % 2 == 0]).astype("float32")
    examples = trainer().examples(mixed, labels)
    assert examples.x.dtype == "float32"
    np.testing.assert_array_equal(examples.x, expected)


def columns_that_are_refused():
    pandas = pytest.importorskip("pandas")
    count = [1] * (ROWS - 1)
    dates = pandas.date_range("2020", periods=ROWS)
    return {
        "text": (pandas.Series(["one"] * ROWS), TypeError, "to hold numbers"),
        "object": (pandas.Series([1] * ROWS, dtype=object), TypeError, "to hold"),
        "date": (pandas.Series(dates), TypeError, "to hold numbers, got datetime64"),
        "categorical": (
            pandas.Series([1] * ROWS, dtype="category"),
            TypeError,
            "is categorical",
        ),
        "nullable": (
            pandas.Series([*count, None], dtype="Int64"),
            ValueError,
            r"\(Int64\) has 1 missing",
        ),
        "nullable real": (
            pandas.Series([*count, None], dtype="Float32"),
            ValueError,
            r"\(Float32\) has 1 missing",
        ),
        "sparse": (
            pandas.Series([0] * ROWS, dtype="Sparse[int]"),
            TypeError,
            "is sparse",
        ),
        "large": (
            pandas.Series([2**24 + 1] * ROWS),
            ValueError,
            "16777217, which may not be exact",
        ),
    }


@pytest.mark.parametrize("kind", list(columns_that_are_refused()))
def test_a_column_of_pandas_without_exact_numbers_is_named(kind, x, labels):
    column, error, message = columns_that_are_refused()[kind]
    frame, _ = pandas_tables(x, labels)
    with pytest.raises(error, match=rf"x\['d'\].*{message}"):
        trainer().fit(frame.assign(d=column), labels, verbose=0)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([1] * (ROWS - 1) + [None], "Int64", r"\(Int64\) has 1 missing"),
        ([1.0] * (ROWS - 1) + [None], "Float32", r"\(Float32\) has 1 missing"),
        (["one"] * ROWS, "Categorical", "is categorical"),
        (["one"] * ROWS, "String", "to hold numbers"),
        ([[1.0, 2.0]] * ROWS, "List", "to hold numbers"),
    ],
)
def test_a_column_of_polars_without_exact_numbers_is_named(
    values, dtype, message, x, labels
):
    polars = pytest.importorskip("polars")
    frame, _ = polars_tables(x, labels)
    options = {} if dtype == "List" else {"dtype": getattr(polars, dtype)}
    column = polars.Series("d", values, **options)
    with pytest.raises((TypeError, ValueError), match=rf"x\['d'\].*{message}"):
        trainer().fit(frame.with_columns(column), labels, verbose=0)


def test_nullable_columns_without_missing_values_are_numbers(reference, x, labels):
    frame, target = pandas_tables(x, labels)
    reference.assert_alike(frame.astype("Float32"), target.astype("Int64"))


def test_a_table_in_float64_is_refused_where_the_model_computes_in_float32(x, labels):
    for make in (pandas_tables, polars_tables):
        frame, _ = make(x.astype("float64"), labels)
        with pytest.raises(TypeError, match="x is float64, but the model") as error:
            trainer().fit(frame, labels, verbose=0)
        assert "0 'a', 1 'b', 2 'c'" in error.value.__notes__[0]
        trainer(dtype="float64").fit(frame, labels, verbose=0)


def test_rows_are_matched_by_position_so_different_indexes_are_refused(x, labels):
    frame, target = pandas_tables(x, labels)
    reordered = target.sort_values()
    with pytest.raises(ValueError, match=r"different indexes.*target\.loc\[x\.index\]"):
        trainer().fit(frame, reordered, verbose=0)
    with pytest.raises(ValueError, match="x and weights have different indexes"):
        trainer().fit(frame, labels, weights=reordered.astype("float32"), verbose=0)
    both, aligned, arrays = trainer(), trainer(), trainer()
    both.fit(frame.loc[reordered.index], reordered, verbose=0)
    aligned.fit(frame, reordered.loc[frame.index], verbose=0)
    arrays.fit(x, labels, verbose=0)
    assert bits(aligned) == bits(arrays) != bits(both)


def test_columns_in_another_order_are_refused(x, labels):
    for make in (pandas_tables, polars_tables):
        frame, target = make(x, labels)
        learner = trainer()
        learner.fit(frame, target, verbose=0)
        with pytest.raises(
            ValueError, match=r"another order.*pass x\[\['a', 'b', 'c'\]"
        ):
            learner.predict(frame[["c", "b", "a"]])


def test_the_error_about_a_table_of_labels_names_its_column(x, labels):
    frame, target = pandas_tables(x, labels)
    with pytest.raises(ValueError, match=r"got \(40, 1\)") as error:
        trainer().fit(frame, target.to_frame("y"), verbose=0)
    assert "its column alone is target['y']" in error.value.__notes__[-1]


def test_a_table_that_is_not_computed_yet_is_refused(x, labels):
    frame, _ = polars_tables(x, labels)
    with pytest.raises(TypeError, match=r"pass x\.collect\(\)"):
        trainer().fit(frame.lazy(), labels, verbose=0)


def test_columns_of_tables_are_chosen_by_name(reference, x, labels):
    for make in (pandas_tables, polars_tables):
        frame, target = make(x, labels)
        whole = frame.assign(y=target) if make is pandas_tables else None
        if whole is None:
            whole = frame.with_columns(target.alias("y"))
        pair = interop.columns(whole, x=NAMES, target="y")
        reference.assert_alike(*pair)
        with pytest.raises(KeyError, match="among 'a', 'b', 'c', 'y', got 'z'"):
            interop.columns(whole, x=["a", "z"], target="y")


def test_chunks_of_a_file_are_batches(on_numpy, x, labels):
    pandas = pytest.importorskip("pandas")
    frame, target = pandas_tables(x, labels)
    file = io.StringIO(frame.assign(y=target).to_csv(index=False))
    chunks = pandas.read_csv(file, chunksize=16, dtype=dict.fromkeys(NAMES, "float32"))
    by_name = interop.batches(chunks, x=NAMES, target="y")
    expected = on_numpy.after_batches(batches_of(x, labels))
    assert on_numpy.after_batches(by_name) == expected


# --- arrays of other libraries --------------------------------------------------------


def tensor(array):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.ascontiguousarray(array))


ARRAYS = {
    "torch": tensor,
    "torch, by columns": lambda array: tensor(array.T).mT if array.ndim > 1 else array,
    "torch, every other": lambda array: tensor(np.repeat(array, 2, axis=0))[::2],
    "jax": lambda array: pytest.importorskip("jax.numpy").asarray(array),
    "strict": lambda array: pytest.importorskip(
        "array_api_strict", reason="array-api-strict is not installed"
    ).asarray(array),
    "read-only": lambda array: np.broadcast_to(array[None], (1, *array.shape))[0],
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "DLPack alone": lambda array: OnlyDLPack(array),
    "__array__ alone": lambda array: OnlyArray(array),
}


class OnlyDLPack:
    """An array with no protocol but DLPack."""

    def __init__(self, array):
        self.__dlpack__ = array.__dlpack__
        self.__dlpack_device__ = array.__dlpack_device__
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyArray:
    """An array with no protocol but `__array__`."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize("kind", list(ARRAYS))
def test_arrays_of_other_libraries_train_like_those_of_numpy(
    reference, kind, x, labels
):
    make = ARRAYS[kind]
    reference.assert_alike(make(x), make(labels.astype("int32")))


def test_a_tensor_that_records_gradients_is_detached(reference, x, labels):
    recording = tensor(x.copy()).requires_grad_()
    reference.assert_alike(recording, tensor(labels))
    assert recording.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_in_bfloat16_are_refused_or_converted_exactly(backend, x, labels):
    wrong = tensor(x).bfloat16()
    with pytest.raises(TypeError, match="x is bfloat16, but the model computes in"):
        trainer(backend).step(wrong, labels)
    with pytest.raises(TypeError, match="x is bfloat16, but the model computes in"):
        trainer(backend, shape=(3,)).predict(wrong)


def test_a_trainer_in_half_precision_takes_bfloat16_of_another_library(x):
    half = tensor(x).bfloat16()
    learner = trainer("jax", precision="mixed_bfloat16", shape=(3,))
    expected = learner.predict(half.float().numpy())
    assert learner.predict(half).tolist() == expected.tolist()


def test_a_tensor_whose_sign_is_in_its_view_is_not_read_with_the_wrong_sign(x, labels):
    torch = pytest.importorskip("torch")
    negated = torch.complex(torch.zeros(x.shape), -tensor(x)).conj().imag
    assert negated.is_neg()
    with pytest.raises(TypeError, match="resolve_neg"):
        trainer("numpy").fit(negated, labels, verbose=0)


def sparse_arrays(x):
    arrays = {"torch": tensor(x).to_sparse(), "torch CSR": tensor(x).to_sparse_csr()}
    scipy = pytest.importorskip("scipy.sparse")
    return arrays | {"scipy": scipy.csr_array(x), "scipy COO": scipy.coo_matrix(x)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["torch", "torch CSR", "scipy", "scipy COO"])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_arrays_are_refused_with_the_remedy(backend, kind, x, labels):
    method = "to_dense" if "torch" in kind else "toarray"
    message = rf"x is sparse .*pass x\.{method}\(\), or pass batches"
    learner = trainer(backend, shape=(3,))
    sparse = sparse_arrays(x)[kind]
    for call in (learner.predict, lambda wrong: learner.step(wrong, labels)):
        with pytest.raises(TypeError, match=message):
            call(sparse)


# --- loaders --------------------------------------------------------------------------


def batches_of(x, labels, size=16):
    starts = range(0, len(x), size)
    return [(x[i : i + size], labels[i : i + size]) for i in starts]


def test_a_data_loader_of_torch_trains_like_batches(reference, x, labels):
    data = pytest.importorskip("torch.utils.data")
    loader = data.DataLoader(data.TensorDataset(tensor(x), tensor(labels)), 16)
    batches = batches_of(x, labels)
    expected = reference.after_batches(batches)
    loss = reference.learner.evaluate(batches=batches)
    assert reference.after_batches(loader) == expected
    assert reference.learner.evaluate(batches=loader) == loss


def test_a_data_loader_may_drop_its_last_batch_or_be_read_ahead(on_numpy, x, labels):
    data = pytest.importorskip("torch.utils.data")
    dataset = data.TensorDataset(tensor(x), tensor(labels))
    loader = data.DataLoader(dataset, 16, drop_last=True)
    expected = on_numpy.after_batches(batches_of(x[:32], labels[:32]))
    steps = on_numpy.learner.steps
    result = on_numpy.after_batches(loader, prefetch=2, validation=loader)
    assert result == expected
    assert on_numpy.learner.steps == steps + 2
    on_numpy.after_batches(data.DataLoader(dataset, 7))  # 5 batches of 7, and one of 5
    assert on_numpy.learner.steps == steps + 2 + 6


def test_a_data_loader_of_several_inputs_makes_a_list_of_them(x, labels):
    data = pytest.importorskip("torch.utils.data")
    model = nn.Sequential(nn.Concatenate(), nn.Dense(2))
    options = {"metrics": {}, "backend": "numpy"}
    one, two = (
        nn.Trainer(model, nn.softmax_cross_entropy, nn.SGD(0.1), **options)
        for _ in range(2)
    )
    pairs = [((row, row + 1), label) for row, label in zip(x, labels, strict=True)]
    one.fit(batches=data.DataLoader(pairs, 16), verbose=0)
    two.fit(
        batches=[((part, part + 1), k) for part, k in batches_of(x, labels)], verbose=0
    )
    assert bits(one) == bits(two)


def test_a_data_loader_of_dicts_needs_names(on_numpy, x, labels):
    data = pytest.importorskip("torch.utils.data")
    rows = [{"row": row, "y": k} for row, k in zip(x, labels, strict=True)]
    loader = data.DataLoader(rows, 16)
    with pytest.raises(TypeError, match=r"a dict of 'row', 'y': choose .*by name"):
        trainer().fit(batches=loader, verbose=0)
    by_name = interop.batches(loader, x="row", target="y")
    expected = on_numpy.after_batches(batches_of(x, labels))
    assert on_numpy.after_batches(by_name) == expected


def test_batches_whose_lengths_differ_are_refused_with_both(x, labels):
    wrong = [(tensor(x), tensor(labels[:-1]))]
    with pytest.raises(ValueError, match=r"40 examples, but targets of shape \(39,\)"):
        trainer().fit(batches=wrong, verbose=0)


def test_a_data_set_of_hugging_face_trains_like_arrays(reference, x, labels):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    dataset = datasets.Dataset.from_dict({"row": x, "y": labels, "name": ["a"] * ROWS})
    pair = interop.columns(dataset, x="row", target="y")
    reference.assert_alike(*pair)
    with pytest.raises(
        TypeError, match="a data set with the columns 'row', 'y', 'name'"
    ):
        trainer().fit(dataset, labels, verbose=0)
    with pytest.raises(KeyError, match="among 'row', 'y', 'name', got 'label'"):
        interop.columns(dataset, x="row", target="label")
    with pytest.raises(TypeError, match="expected x to hold numbers"):
        trainer().fit(*interop.columns(dataset, x="name", target="y"), verbose=0)
    for form in ("numpy", "torch"):
        batches = dataset.with_format(form).iter(16)
        by_name = interop.batches(batches, x="row", target="y")
        expected = reference.after_batches(batches_of(x, labels))
        assert reference.after_batches(by_name) == expected


def test_real_numbers_of_hugging_face_keep_their_dtype(x, labels):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    numbers = {"a": x[:, 0].astype("float64"), "b": x[:, 1], "y": labels}
    dataset = datasets.Dataset.from_dict(numbers)
    wide, _ = interop.columns(dataset, x="a", target="y")
    assert wide.dtype == "float64"
    pair = interop.columns(dataset, x=["a", "b"], target="y", dtype="float32")
    assert (pair[0].shape, pair[0].dtype) == ((ROWS, 2), "float32")
    np.testing.assert_array_equal(pair[0][[5, 2]], x[[5, 2], :2])


def test_images_of_hugging_face_are_bytes(labels):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype("uint8")
    features = datasets.Features(
        {
            "image": datasets.Array3D((4, 4, 3), "uint8"),
            "y": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    table = {"image": list(images), "y": labels[:8]}
    dataset = datasets.Dataset.from_dict(table, features=features)
    stored, target = interop.columns(dataset, x="image", target="y")
    np.testing.assert_array_equal(stored[[3, 0]], images[[3, 0]])
    model = nn.Sequential(nn.Rescale(1 / 255), nn.Flatten(), nn.Dense(2))
    learner = nn.Trainer(model, nn.softmax_cross_entropy, nn.SGD(0.1), backend="numpy")
    learner.fit(stored, target, batch_size=4, verbose=0)
    assert learner.steps == 2


def test_data_sets_of_grain_train_like_batches(on_numpy, x, labels):
    grain = pytest.importorskip("grain", reason="grain is not installed")
    expected = on_numpy.after_batches(batches_of(x, labels))
    source = grain.MapDataset.source(list(zip(x, labels, strict=True)))
    batches = source.to_iter_dataset().batch(16)
    assert on_numpy.after_batches(batches) == expected
    assert on_numpy.after_batches(source.batch(16)) == expected
    rows = [{"row": row, "y": k} for row, k in zip(x, labels, strict=True)]
    loader = grain.DataLoader(
        data_source=grain.MapDataset.source(rows),
        sampler=grain.samplers.SequentialSampler(ROWS),
        operations=[grain.transforms.Batch(16)],
    )
    by_name = interop.batches(loader, x="row", target="y")
    assert on_numpy.after_batches(by_name) == expected
    on_numpy.assert_alike(*interop.columns(source, x=0, target=1))


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)
def test_a_tar_file_of_webdataset_trains_like_batches(on_numpy, x, labels, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as tar:
        for i, (row, label) in enumerate(zip(x, labels, strict=True)):
            file = io.BytesIO()
            np.save(file, row)
            for name, content in (("npy", file.getvalue()), ("cls", b"%d" % label)):
                member = tarfile.TarInfo(f"{i:04}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    dataset = webdataset.WebDataset(str(path), shardshuffle=False).decode()
    batches = dataset.to_tuple("npy", "cls").batched(16)
    expected = on_numpy.after_batches(batches_of(x, labels))
    assert on_numpy.after_batches(batches) == expected


# --- files ----------------------------------------------------------------------------


def test_arrays_of_zarr_train_like_those_of_numpy(reference, x, labels, tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    for name, array, dtype in (("x", x, ">f4"), ("y", labels, "<i8")):
        stored = zarr.create_array(
            tmp_path / name,
            shape=array.shape,
            chunks=(7, *array.shape[1:]),
            dtype=dtype,
        )
        stored[:] = array
    pair = [zarr.open_array(tmp_path / name, mode="r") for name in ("x", "y")]
    reference.assert_alike(*pair)


def test_data_sets_of_hdf5_train_like_arrays(reference, x, labels, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = x, labels
        file.create_dataset("chunked", data=x, chunks=(7, 3), compression="gzip")
        reference.assert_alike(file["x"], file["y"])
        reference.assert_alike(file["chunked"], file["y"])


def test_arrays_of_dask_train_like_those_of_numpy(on_numpy, x, labels):
    dask = pytest.importorskip("dask.array", reason="dask is not installed")
    pair = dask.from_array(x, chunks=7), dask.from_array(labels, chunks=9)
    on_numpy.assert_alike(*pair)
    with pytest.raises(ValueError, match=r"of a known shape.*compute_chunk_sizes"):
        on_numpy.learner.predict(pair[0][pair[1] > 0])


def mapped_file(path, array):
    np.save(path / "a.npy", array)
    return np.load(path / "a.npy", mmap_mode="r")


def zarr_array(path, array):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    chunks = 4, array.shape[1]
    zarr.create_array(path / "a", shape=array.shape, chunks=chunks, dtype="float32")
    stored = zarr.open_array(path / "a")
    stored[:] = array
    return stored


@pytest.mark.parametrize("make", [mapped_file, zarr_array])
def test_a_stored_array_is_never_in_memory_as_a_whole(make, tmp_path, monkeypatch):
    """In random order too; memory is what Python and NumPy allocate."""
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 2**20)
    rows, width = 2**9, 2**14
    stored = make(tmp_path, np.ones((rows, width), "float32"))
    target = np.zeros((rows, 1), "float32")
    learner = nn.Trainer(
        nn.Dense(1), nn.mean_squared_error, nn.SGD(1e-5), backend="numpy"
    )
    in_memory = np.ones((32, width), "float32"), target[:32]
    learner.fit(*in_memory, batch_size=16, verbose=0)  # records the step
    tracemalloc.start()
    try:
        learner.fit(stored, target, batch_size=16, verbose=0)
        learner.predict(stored, batch_size=16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert learner.steps == 2 + 32
    assert peak < rows * width, "a quarter of the bytes of the array"
