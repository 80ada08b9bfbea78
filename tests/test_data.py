"""Data of many kinds are read in batches of one shape, and only as far as used."""

import threading
import time

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.training import batches, feed, inputs

# --- trees and files ------------------------------------------------------------------


def test_examples_are_indexed_leaf_by_leaf():
    x = {"a": np.arange(5), "b": (np.arange(10).reshape(5, 2), np.arange(5) > 2)}
    part = batches.Examples(x, np.arange(5), np.ones(5))[np.array([3, 1])]
    np.testing.assert_array_equal(part.x["a"], [3, 1])
    np.testing.assert_array_equal(part.x["b"][0], [[6, 7], [2, 3]])
    np.testing.assert_array_equal(part.x["b"][1], [True, False])
    np.testing.assert_array_equal(part.target, [3, 1])
    assert (len(part), part.weights.shape) == (2, (2,))


def test_a_short_batch_is_filled_up_with_its_last_example():
    part = feed.padded(batches.Examples(np.arange(3), np.arange(3)), 5)
    np.testing.assert_array_equal(part.x, [0, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("data", "chosen"),
    [
        (((1.0, 2.0), (3.0, 4.0)), False),
        ((np.float32(1.0), 2), False),
        ([(1, 2)], False),
        ((np.zeros(2), [1, 2]), (True, False)),
        ({"a": [1, 2], "b": (np.zeros(2),)}, {"a": False, "b": (True,)}),
    ],
)
def test_a_tuple_of_numbers_is_one_array_and_a_tuple_of_arrays_is_a_tree(
    backend, data, chosen
):
    assert inputs.fetch("x", data, backend)[1] == chosen


def test_arrays_of_the_backend_are_fetched_from_trees_too(backend):
    moved = backend.asarray({"a": np.arange(3, dtype="int32")})
    result, chosen = inputs.fetch("x", moved, backend)
    assert isinstance(result["a"], np.ndarray)
    assert chosen == {"a": True}
    with pytest.raises(
        TypeError, match=r"expected x\.b\.1 as a NumPy array.* got builtins.str"
    ):
        inputs.fetch("x", {"b": (np.zeros(2), "two")}, backend)


def test_a_file_is_looked_at_in_pieces_that_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 100)
    np.save(tmp_path / "a.npy", np.arange(60, dtype="float32").reshape(30, 2))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    result = list(inputs.chunks({"a": mapped, "b": np.zeros(30, "int32")}))
    assert all(sum(leaf.nbytes for leaf in part.values()) <= 100 for _, part in result)
    assert [start for start, _ in result] == list(range(0, 30, 8))
    np.testing.assert_array_equal(
        np.concatenate([part["a"] for _, part in result]), mapped
    )


def test_numbers_of_a_file_are_converted_in_batches_only(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=">i8"))
    np.save(tmp_path / "b.npy", np.arange(6, dtype=">f4"))
    a, b = (np.load(tmp_path / name, mmap_mode="r") for name in ("a.npy", "b.npy"))
    assert inputs.converted("a", a, True, "float32") is a
    assert inputs.converted("b", b, True, "float32") is b
    part = batches.Examples(a, b)[np.array([5, 0])]
    assert (part.x.dtype, part.target.dtype) == (np.dtype("int32"), np.dtype("=f4"))
    np.testing.assert_array_equal(part.x, [5, 0])
    np.testing.assert_array_equal(part.target, [5, 0])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), {"a": (4,), "b": ((2,), ())}])
def test_a_shape_survives_json(shape):
    import json

    assert inputs.as_shape(json.loads(json.dumps(shape))) == shape


@pytest.mark.parametrize("length", [4.0, -1, "4", None, True])
def test_a_shape_is_made_of_integers(length):
    with pytest.raises(
        ValueError, match=f"length of a shape to be an integer .* got {length!r}"
    ):
        inputs.as_shape({"a": (3, length)})


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (
            np.ma.masked_array(np.ones(3), [0, 1, 0]),
            TypeError,
            r"x\.a without a mask, which would",
        ),
        ([[1, 2], [3]], ValueError, r"expected x\.a as lists of equal lengths"),
    ],
)
def test_data_that_would_be_changed_or_are_not_arrays_are_refused(
    backend, data, kind, message
):
    with pytest.raises(kind, match=message):
        inputs.fetch("x", {"a": data}, backend)


def test_data_in_bfloat16_are_refused_unless_the_model_computes_in_it():
    torch = pytest.importorskip("torch", reason="has one")
    x = torch.ones((4, 3), dtype=torch.bfloat16)
    target = np.zeros((4, 2), "float32")
    model = nn.Dense(2)
    options = {"backend": "torch:cpu", "shape": (3,)}
    trainer = nn.Trainer(model, nn.mean_squared_error, nn.SGD(0.1), **options)
    for call in (trainer.predict, lambda x: trainer.step(x, target)):
        with pytest.raises(TypeError, match="x is bfloat16, but the model computes in"):
            call(x)
    # a trainer in half precision converts them, exactly
    half = nn.Trainer(
        *(model, nn.mean_squared_error, nn.SGD(0.1)),
        **options,
        precision="mixed_bfloat16",
    )
    assert half.predict(x).shape == (4, 2)


# --- ahead ----------------------------------------------------------------------------


def assert_no_thread_is_left():
    assert [t for t in threading.enumerate() if t.name == "agnostic_nn-prefetch"] == []


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_prefetched_items_come_in_order(count):
    with batches.prefetched(iter(range(20)), count) as items:
        assert list(items) == list(range(20))
    assert_no_thread_is_left()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_error_comes_where_its_item_would_have_come(count):
    def failing():
        yield from range(3)
        raise OSError("gone")

    result = []
    with (
        pytest.raises(OSError, match="gone"),
        batches.prefetched(failing(), count) as items,
    ):
        result.extend(items)
    assert result == [0, 1, 2]
    assert_no_thread_is_left()


def test_no_more_items_are_prefetched_than_requested():
    produced = []

    def items():
        for i in range(100):
            produced.append(i)
            yield i

    with batches.prefetched(items(), 3) as result:
        assert next(iter(result)) == 0
        deadline = time.monotonic() + 10
        while len(produced) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(produced) == 5, "one in use, three waiting, one on its way"
    assert_no_thread_is_left()


def test_items_are_made_while_others_are_used():
    main = threading.get_ident()
    with batches.prefetched((threading.get_ident() for _ in range(3)), 1) as items:
        assert main not in list(items)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, GeneratorExit])
def test_the_thread_ends_when_the_consumer_stops(error):
    def leave(items):
        next(iter(items))
        raise error

    with pytest.raises(error), batches.prefetched(iter(range(10**9)), 2) as items:
        leave(items)
    assert_no_thread_is_left()


# --- before training ------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.2, 1 / 3, 0.5, 0.77])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2] * 30, [0] * 80 + [1] * 9 + [2] * 2, ["b", "a"] * 7]
)
def test_a_stratified_split_keeps_the_share_of_each_class(labels, share):
    labels = np.asarray(labels)
    rest, chosen = nn.stratified_split(labels, share)
    assert sorted([*rest, *chosen]) == list(range(len(labels)))
    assert len(chosen) == round(len(labels) * share)
    for name in np.unique(labels):
        exact = share * np.sum(labels == name)
        assert abs(np.sum(labels[chosen] == name) - exact) < 1


def test_a_stratified_split_is_random_and_fixed_by_its_seed():
    labels = np.repeat([0, 1], 50)
    first, again, other = (
        nn.stratified_split(labels, 0.2, seed=seed)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    assert list(first) != sorted(first)
    # the same on every machine and in every version
    assert nn.stratified_split([0, 0, 0, 1, 1, 1], 1 / 3)[1].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("target", "share", "message"),
    [
        (np.zeros((4, 1)), 0.5, r"labels \(examples,\), got \(4, 1\)"),
        (np.zeros(4), 1.0, r"share in \(0, 1\), got 1.0"),
        (np.zeros(4), 0.1, "share of 0.1 of 4 examples leaves a part empty"),
        (np.zeros(4), 0.9, "share of 0.9 of 4 examples leaves a part empty"),
    ],
)
def test_a_split_that_cannot_be_is_refused(target, share, message):
    with pytest.raises(ValueError, match=message):
        nn.stratified_split(target, share)


def test_weights_of_classes_make_them_count_alike():
    labels = np.array([0, 0, 0, 1, 3, 3, 0, 0])
    weights = nn.class_weights(labels)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [8 / (3 * 5), 8 / 3, 0, 8 / (3 * 2)], rtol=1e-6)
    sums = np.bincount(labels, weights[labels])
    np.testing.assert_allclose(sums[[0, 1, 3]], 8 / 3, rtol=1e-6)
    assert nn.class_weights(labels, dtype="float64").dtype == np.float64
    sklearn = pytest.importorskip("sklearn.utils.class_weight", reason="the oracle")
    theirs = sklearn.compute_class_weight(
        "balanced", classes=np.array([0, 1, 3]), y=labels
    )
    np.testing.assert_allclose(weights[[0, 1, 3]], theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ([0.0, 1.0], TypeError, "integer labels, got float64"),
        (np.zeros(0, int), ValueError, "expected labels, got none"),
        ([0, -1], ValueError, r"labels from 0, but label\[1\] is -1"),
    ],
)
def test_labels_that_cannot_be_weighed_are_refused(target, kind, message):
    with pytest.raises(kind, match=message):
        nn.class_weights(target)


def test_each_array_of_the_data_is_visited_once(backend, tmp_path, monkeypatch):
    """An array is fetched and converted once, and a file is read once."""
    np.save(tmp_path / "b.npy", np.zeros((30, 2), "float32"))
    np.save(tmp_path / "labels.npy", np.arange(30) % 3)
    b, labels = (
        np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("b", "labels")
    )
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 240)
    visits = []

    def counted(name):
        function = getattr(inputs, name)

        def call(path, *args):
            visits.append((name, path))
            return function(path, *args)

        monkeypatch.setattr(inputs, name, call)

    def chunks(data, function=inputs.chunks):
        for start, chunk in function(data):
            visits.append(("read", start))
            yield start, chunk

    counted("fetch_array")
    counted("converted")
    monkeypatch.setattr(inputs, "chunks", chunks)
    x = np.zeros((30, 2), "float32"), b
    model = nn.Sequential(nn.Concatenate(), nn.Dense(3))
    loss = nn.softmax_cross_entropy
    trainer = nn.Trainer(model, loss, nn.SGD(0.1), backend=backend)
    trainer.examples(x, labels)
    paths = "x.0", "x.1", "target"
    arrays = [(name, path) for path in paths for name in ("fetch_array", "converted")]
    of_x = ("read", 0), ("read", 15)
    of_labels = ("read", 0)
    assert visits == [*arrays[:4], *of_x, *arrays[4:], of_labels]
