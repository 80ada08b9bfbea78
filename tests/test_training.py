"""A Trainer learns, counts every example once, and stays usable whatever comes."""

import signal
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.layers.base import kinds
from agnostic_nn.training import batches, feed, inputs
from agnostic_nn.training.interrupts import DeferredInterrupts


def blobs(count=50, width=4, classes=3):
    """Points around one centre per class: easy to learn."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = 3 * np.random.default_rng(1).standard_normal((classes, width))
    return (centres[labels] + generator.standard_normal((count, width))).astype(
        "float32"
    ), labels


def classifier(*before, width=8, classes=3):
    return nn.Sequential(*before, nn.Dense(width), nn.ReLU(), nn.Dense(classes))


def make(backend, model=None, loss=nn.softmax_cross_entropy, optimizer=None, **options):
    model, optimizer = model or classifier(), optimizer or nn.Adam(1e-2)
    return nn.Trainer(model, loss, optimizer, backend=backend, **options)


def host(trainer):
    return [
        trainer.backend.to_numpy(leaf).copy()
        for leaf in leaves(trainer._current.carry())
    ]


X, LABELS = blobs()
NAN = X.copy()
NAN[3, 1] = np.nan


def assert_same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# --- learning -------------------------------------------------------------------------


def test_it_learns(backend):
    x, labels = blobs()
    trainer = make(backend, classifier(width=16), optimizer=nn.Adam(3e-2))
    history = trainer.fit(
        x, labels, epochs=15, batch_size=16, validation=(x, labels), verbose=0
    )
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert trainer.evaluate(x, labels)["accuracy"] > 0.95
    assert history["validation_accuracy"][-1] > 0.95
    assert (trainer.epoch, trainer.steps) == (15, 15 * 4)
    assert "validation_loss" in str(history)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.mean_squared_error, np.ones((6, 3), "float32")),
        (nn.binary_cross_entropy, np.ones((6, 3), "float32")),
        (nn.softmax_cross_entropy, np.full((6, 3), 1 / 3, "float32")),
    ],
)
def test_every_loss_trains(backend, loss, target):
    trainer = make(backend, loss=loss)
    history = trainer.fit(blobs(6)[0], target, epochs=5, batch_size=4, verbose=0)
    assert history["loss"][-1] < history["loss"][0]


def test_a_trainer_gives_the_same_bits_twice(backend):
    x, labels = blobs()
    first, second = (make(backend, classifier(nn.Dropout(0.2))) for _ in range(2))
    for trainer in (first, second):
        trainer.fit(x, labels, epochs=2, batch_size=16, verbose=0)
    assert_same_bits(host(first), host(second))
    third = make(backend, classifier(nn.Dropout(0.2)), seed=1)
    third.fit(x, labels, epochs=2, batch_size=16, verbose=0)
    assert not np.array_equal(third.predict(x), first.predict(x))


def test_every_backend_starts_from_the_same_bits(backend):
    model = nn.Sequential(nn.Dense(7), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(3))
    assert_same_bits(
        host(make(backend, model, shape=(5,))), host(make("numpy", model, shape=(5,)))
    )


def test_all_backends_learn_the_same(backend):
    """Same weights, masks and order: after 20 steps only roundings differ."""
    x, labels = blobs()
    model = nn.Sequential(
        nn.Dense(8), nn.BatchNorm(), nn.Tanh(), nn.Dropout(0.3), nn.Dense(3)
    )
    result = []
    for where in (backend, "numpy"):
        trainer = make(where, model, optimizer=nn.SGD(0.05, momentum=0.9))
        history = trainer.fit(x, labels, epochs=5, batch_size=16, verbose=0)
        result.append((np.array(history["loss"]), trainer.predict(x)))
    # 20 steps, each adding a few roundings of sums of 16 terms
    np.testing.assert_allclose(result[0][0], result[1][0], rtol=2e-5)
    np.testing.assert_allclose(result[0][1], result[1][1], rtol=1e-3, atol=1e-4)


# --- every example once ---------------------------------------------------------------


class Counting(nn.Layer):
    """The identity, with a state that counts each row number in x[:, 0]."""

    def init(self, key, shape, dtype):
        xp = nn.core.arrays.namespace(key)
        return {}, {"seen": xp.zeros(50, dtype=dtype)}, shape

    def forward(self, params, state, x, *, train=False):
        if train:
            xp = nn.core.arrays.namespace(x)
            numbers = xp.arange(50, dtype=x.dtype, device=nn.core.arrays.device(x))
            hits = xp.astype(x[:, 0:1] == numbers[None, :], x.dtype)
            if isinstance(train, nn.RowMask):
                hits = hits * train.counts[:, None]
            state = {"seen": state["seen"] + xp.sum(hits, axis=0)}
        return x, state, ()

    def backward(self, params, cache, dy):
        return dy, {}


@pytest.mark.parametrize("batch_size", [1, 7, 16, 25, 50, 1000])
def test_an_epoch_counts_each_example_exactly_once(backend, batch_size):
    x, labels = blobs()
    x[:, 0] = np.arange(50)
    trainer = make(backend, classifier(Counting()), optimizer=nn.SGD(1e-6))
    trainer.fit(x, labels, epochs=2, batch_size=batch_size, verbose=0)
    counts = backend.to_numpy(trainer.state[0]["seen"])
    np.testing.assert_array_equal(counts, np.full(50, 2.0))


def test_a_filled_up_batch_trains_as_the_short_one_does(backend):
    """One batch of 5 and one of 3 filled up to 5, against the two as they are."""
    x, labels = blobs(8)
    model = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.ReLU(), nn.Dense(3))
    filled, plain = (make(backend, model, optimizer=nn.SGD(0.1)) for _ in range(2))
    filled.fit(x, labels, batch_size=5, shuffle=False, verbose=0)
    for part in (slice(0, 5), slice(5, 8)):
        plain.step(x[part], labels[part])
    for a, b in zip(host(filled), host(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_examples_without_numbers_are_trained_on(backend, shape):
    """Without inputs, the model learns how often each class comes."""
    labels = np.repeat([0, 1, 2], [5, 10, 15])
    model = nn.Sequential(nn.Dense(2), nn.Flatten(), nn.Dense(3))
    trainer = make(backend, model, optimizer=nn.SGD(1.0))
    trainer.fit(
        np.zeros((30, *shape), "float32"), labels, epochs=60, batch_size=30, verbose=0
    )
    y = trainer.predict(np.zeros((1, *shape), "float32"))[0]
    np.testing.assert_allclose(
        np.exp(y) / np.exp(y).sum(), [1 / 6, 1 / 3, 1 / 2], atol=1e-2
    )


def test_the_reported_loss_is_the_mean_over_examples(backend):
    x, labels = blobs()
    trainer = make(backend, optimizer=nn.SGD(1e-9), shape=(4,))
    expected = trainer.evaluate(x, labels)["loss"]
    loss = trainer.fit(x, labels, batch_size=16, verbose=0)["loss"][0]
    assert loss == pytest.approx(expected, rel=1e-5)
    for batch_size in (1, 7, 50, 64):
        result = trainer.evaluate(x, labels, batch_size=batch_size)
        assert result["loss"] == pytest.approx(expected, rel=1e-5)
        assert result["accuracy"] == pytest.approx(
            trainer.evaluate(x, labels)["accuracy"]
        )


def test_weights_count_as_repetitions_do(backend):
    x, labels = blobs(8)
    weights = np.array([2, 1, 0, 1, 1, 0, 3, 0], "float32")
    repeated = np.repeat(np.arange(8), weights.astype(int))
    weighted, plain = (make(backend, optimizer=nn.SGD(0.1)) for _ in range(2))
    weighted.fit(x, labels, batch_size=8, weights=weights, verbose=0)
    plain.step(x[repeated], labels[repeated])
    for a, b in zip(host(weighted), host(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_fillers_count_nothing_among_weighted_examples_either(backend):
    x, labels = blobs(8)
    weights = np.linspace(0.5, 1.5, 8, dtype="float32")
    filled, plain = (make(backend, optimizer=nn.SGD(0.1)) for _ in range(2))
    filled.fit(x, labels, batch_size=5, shuffle=False, weights=weights, verbose=0)
    for part in (slice(0, 5), slice(5, 8)):
        plain.step(x[part], labels[part], weights[part])
    for a, b in zip(host(filled), host(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_weights_may_be_those_of_positions_in_an_example(backend):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((8, 5, 4)).astype("float32")
    labels = generator.integers(0, 3, (8, 5))
    weights = generator.random((8, 5)).astype("float32")
    filled, plain = (
        make(backend, nn.Dense(3), optimizer=nn.SGD(0.1)) for _ in range(2)
    )
    filled.fit(x, labels, batch_size=5, shuffle=False, weights=weights, verbose=0)
    for part in (slice(0, 5), slice(5, 8)):
        plain.step(x[part], labels[part], weights[part])
    for a, b in zip(host(filled), host(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_all_batches_compile_once(backend):
    x, labels = blobs()
    trainer = make(backend, classifier(nn.BatchNorm(), nn.Dropout(0.1)))
    trainer.fit(x, labels, epochs=3, batch_size=16, verbose=0)
    trainer.evaluate(x, labels, batch_size=16)
    if not backend.compiles:
        pytest.skip(f"{backend.name} compiles nothing")
    assert (
        trainer._measured_step._cache_size() + trainer._measured_steps._cache_size()
        == 1
    )
    assert trainer._evaluate_batch._cache_size() == 1


@pytest.mark.parametrize("weighted", [False, True])
def test_steps_taken_by_one_call_are_those_taken_one_by_one(
    backend, monkeypatch, weighted
):
    """Eleven batches, the last one short, in calls of four; then the rest of it"""
    monkeypatch.setattr(nn.Backend, "compiles", True)
    x, labels = blobs(43)
    weights = np.linspace(0.5, 2.0, 43).astype("float32") if weighted else None
    options = {"batch_size": 4, "weights": weights, "verbose": 0}
    model = classifier(nn.BatchNorm(), nn.Dropout(0.1))
    together, alone = make(backend, model), make(backend, model)
    calls, steps = [], together._measured_steps
    monkeypatch.setattr(
        together, "_measured_steps", lambda *args: calls.append(1) or steps(*args)
    )
    together.build((4,))
    each = feed.multiplications_per_row(model, together.params, (4,))
    monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 4 * 4 * each)
    histories = [together.fit(x, labels, steps=4, epochs=2, **options)]
    histories += [together.fit(x, labels, **options)]
    assert len(calls) == 1 + 2  # of four, and of four and three
    monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 0)
    for steps, result in zip((4, None), histories, strict=True):
        expected = alone.fit(x, labels, steps=steps, epochs=1, **options)
        assert result.epochs[-1]["steps"] == expected.epochs[-1]["steps"]
        assert result.epochs[-1]["loss"] == pytest.approx(
            expected.epochs[-1]["loss"], rel=1e-5
        )
    assert (together.steps, together.epoch) == (alone.steps, alone.epoch) == (11, 1)
    for a, b in zip(host(together), host(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_order_of_an_epoch_is_fixed_by_seed_and_epoch():
    orders = [
        batches.epoch_order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1)
    ]
    for i, order in enumerate(orders):
        assert sorted(order) == list(range(100))
        assert all(not np.array_equal(order, other) for other in orders[i + 1 :])
    np.testing.assert_array_equal(orders[0][:6], batches.epoch_order(0, 0, 100)[:6])


# --- several inputs and outputs -------------------------------------------------------


@dataclass(frozen=True)
class TwoByTwo(nn.Layer):
    """value = x W where the mask is true, else 0; logits = x W V."""

    input_kinds: ClassVar = {"x": "real floating", "mask": "bool"}

    def init(self, key, shape, dtype):
        assert shape == {"x": (4,), "mask": (3,)}
        keys = nn.random.split(key, 2)
        params = {
            "weight": nn.random.normal(keys[0, :], (4, 3), dtype),
            "other": nn.random.normal(keys[1, :], (3, 2), dtype),
        }
        return params, {}, {"value": (3,), "logits": (2,)}

    def forward(self, params, state, x, *, train=False):
        z = x["x"] @ params["weight"]
        value = nn.core.arrays.namespace(z).where(x["mask"], z, 0.0)
        return (
            {"value": value, "logits": z @ params["other"]},
            state,
            (x["x"], x["mask"], z),
        )

    def backward(self, params, cache, dy):
        x, mask, z = cache
        xp = nn.core.arrays.namespace(z)
        dz = xp.where(mask, dy["value"], 0.0) + dy["logits"] @ params["other"].T
        grads = {"weight": x.T @ dz, "other": z.T @ dy["logits"]}
        return {"x": dz @ params["weight"].T, "mask": None}, grads


def pairs(count=50):
    x, labels = blobs(count, classes=2)
    arguments = {"x": x, "mask": np.arange(3 * count).reshape(count, 3) % 4 > 0}
    return arguments, {"value": 0.1 * x[:, :3], "logits": labels}


def two_by_two(backend, **options):
    loss = nn.Losses(value=nn.mean_squared_error, logits=nn.softmax_cross_entropy)
    return make(backend, TwoByTwo(), loss, **{"optimizer": nn.SGD(0.05)} | options)


def test_trees_are_learned_from_and_predicted(backend, tmp_path):
    x, target = pairs()
    trainer = two_by_two(backend)
    history = trainer.fit(
        x, target, epochs=20, batch_size=16, validation=(x, target), verbose=0
    )
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["validation_logits.accuracy"][-1] > 0.9
    assert trainer.shape == {"x": (4,), "mask": (3,)}
    assert trainer.out_shape == {"value": (3,), "logits": (2,)}
    y = trainer.predict(x, batch_size=16)
    assert {name: leaf.shape for name, leaf in y.items()} == {
        "value": (50, 3),
        "logits": (50, 2),
    }
    np.testing.assert_array_equal(y["value"][~x["mask"]], 0.0)
    moved = trainer.predict(backend.asarray(x))
    assert nn.core.arrays.namespace(moved["value"]) is nn.core.arrays.namespace(
        trainer.params["weight"]
    )
    np.testing.assert_allclose(
        backend.to_numpy(moved["logits"]), y["logits"], rtol=1e-5, atol=1e-6
    )
    for batch_size in (7, 50):
        result = trainer.evaluate(x, target, batch_size=batch_size)
        assert result == pytest.approx(trainer.evaluate(x, target), rel=1e-5)

    trainer.save(tmp_path / "a")
    loaded = nn.Trainer.load(tmp_path / "a", backend, model=TwoByTwo())
    assert (loaded.shape, loaded.out_shape) == (trainer.shape, trainer.out_shape)
    loaded.fit(x, target, batch_size=16, verbose=0)
    trainer.fit(x, target, batch_size=16, verbose=0)
    assert_same_bits(host(loaded), host(trainer))


def test_filled_up_batches_of_trees_train_as_the_short_ones_do(backend):
    x, target = pairs(8)
    filled, plain = (two_by_two(backend) for _ in range(2))
    filled.fit(x, target, batch_size=5, shuffle=False, verbose=0)
    for rows in (slice(0, 5), slice(5, 8)):
        plain.step(*tree_map(lambda leaf: leaf[rows], (x, target)))  # noqa: B023
    for a, b in zip(host(filled), host(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Swapped(nn.Layer):
    """(b, 2a) for x = (a, b): tuples in and out."""

    def init(self, key, shape, dtype):
        first, second = shape
        return (
            {"gain": nn.core.arrays.namespace(key).ones(1, dtype=dtype)},
            {},
            (second, first),
        )

    def forward(self, params, state, x, *, train=False):
        return (x[1] * params["gain"], 2.0 * x[0]), state, x[1]

    def backward(self, params, cache, dy):
        gain = nn.core.arrays.namespace(cache).sum(cache * dy[0])[None]
        return (2.0 * dy[1], dy[0] * params["gain"]), {"gain": gain}


def halved(y, target, weights=None):
    value, dy = nn.mean_squared_error(y[0], target[0], weights)
    return value, (dy, nn.core.arrays.namespace(y[1]).zeros_like(y[1]))


def test_tuples_go_in_and_out_too(backend, tmp_path):
    x, _ = blobs()
    arguments, target = (x[:, :1], x), (0.5 * x, x[:, :1])
    trainer = make(backend, Swapped(), halved, nn.SGD(0.1))
    trainer.fit(arguments, target, epochs=9, batch_size=16, verbose=0)
    assert backend.to_numpy(trainer.params["gain"])[0] == pytest.approx(0.5, abs=0.05)
    y = trainer.predict(arguments)
    assert (type(y), y[0].shape) == (tuple, (50, 4))
    np.testing.assert_array_equal(y[1], 2.0 * x[:, :1])
    trainer.save(tmp_path / "a")
    loaded = nn.Trainer.load(tmp_path / "a", backend, model=Swapped(), loss=halved)
    assert loaded.shape == trainer.shape == ((1,), (4,))


GIVEN, WANTED = pairs()
NAN_LEAF = GIVEN["x"].copy()
NAN_LEAF[2, 1] = np.nan
WRONG_TREES = [
    (
        "width",
        {"mask": GIVEN["mask"][:, :2]},
        {},
        ValueError,
        r"x\.mask of shape \(examples, 3\)",
    ),
    ("NaN", {"x": NAN_LEAF}, {}, ValueError, r"x\.x\[2, 1\] is nan"),
    (
        "lengths",
        {"mask": GIVEN["mask"][1:]},
        {},
        ValueError,
        r"x\.mask holds 49 examples, but x\.x",
    ),
    (
        "dtype",
        {"x": GIVEN["x"].astype("float64")},
        {},
        TypeError,
        r"x\.x is float64, but the mod",
    ),
    (
        "kind",
        {"mask": np.ones((50, 3))},
        {},
        TypeError,
        r"takes bool numbers as x\.mask, got fl",
    ),
    (
        "0-d",
        {"mask": True},
        {},
        ValueError,
        r"expected x\.mask of shape \(examples, \.\.\.\)",
    ),
    (
        "name",
        {"musk": GIVEN["mask"]},
        {},
        ValueError,
        r"x\.mask and x\.x, got x\.mask and x\.musk",
    ),
    (
        "target",
        {},
        {"value": WANTED["value"][1:]},
        ValueError,
        r"but target\.value of shape \(49",
    ),
    (
        "label",
        {},
        {"logits": WANTED["logits"] + 1},
        ValueError,
        r"labels from 0 to 1, but label\[1",
    ),
]


@pytest.mark.parametrize(
    ("x", "target", "kind", "message"),
    [w[1:] for w in WRONG_TREES],
    ids=[w[0] for w in WRONG_TREES],
)
def test_wrong_trees_are_refused_by_the_name_of_the_leaf(
    backend, x, target, kind, message
):
    trainer = two_by_two(backend, shape={"x": (4,), "mask": (3,)})
    with pytest.raises(kind, match=message):
        trainer.fit(GIVEN | x, WANTED | target, verbose=0)


@pytest.mark.parametrize(
    ("input_kinds", "x", "expected"),
    [
        ("integral", 0, "integral"),
        (
            "integral",
            {"a": 0, "b": (0, 0)},
            {"a": "integral", "b": ("integral", "integral")},
        ),
        ({"x": "integral", "mask": "bool"}, 0, "integral"),
        ({"x": "integral", "mask": "bool"}, (0, 0), ("integral", "integral")),
        ({"x": "integral", "mask": "bool"}, {"mask": 0}, {"mask": "bool"}),
        ({"x": "integral", "mask": "bool"}, {"mask": (0,)}, {"mask": ("bool",)}),
    ],
)
def test_input_kinds_are_found_for_each_leaf(input_kinds, x, expected):
    assert kinds(input_kinds, x) == expected


def test_a_name_that_a_layer_does_not_take_is_refused():
    with pytest.raises(
        ValueError, match=r"inputs among \['mask', 'x'\], got \['musk'\]"
    ):
        kinds({"x": "integral", "mask": "bool"}, {"x": 0, "musk": 0})


def test_an_array_where_a_tree_belongs_is_refused(backend):
    trainer = two_by_two(backend, shape={"x": (4,), "mask": (3,)})
    with pytest.raises(ValueError, match="expected arrays in x, got none"):
        trainer.predict({})
    with pytest.raises(ValueError, match=r"the model takes x\.mask and x\.x, got x"):
        trainer.predict(GIVEN["x"])


# --- files ----------------------------------------------------------------------------


def test_mapped_files_train_as_arrays_do_and_are_never_held_as_a_whole(
    backend, tmp_path
):
    count = 40_000
    x = np.random.default_rng(0).standard_normal((count, 100)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", np.arange(count) % 3)
    mapped, labels = (
        np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("x", "labels")
    )
    options = {"batch_size": 64, "steps": 2, "verbose": 0}
    first, second = (make(backend, nn.Dense(3), shape=(100,)) for _ in range(2))
    second.fit(x, np.arange(count) % 3, **options)
    first.step(x[:64], labels[:64])  # compiles
    first.build((100,))
    first.steps = 0
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inputs, "CHUNK_BYTES", 2**18)
            first.fit(mapped, labels, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_same_bits(host(first), host(second))
    assert peak < x.nbytes / 4
    np.testing.assert_array_equal(first.predict(mapped[:10]), second.predict(x[:10]))


def test_an_invalid_value_in_a_file_is_located_from_the_start_of_its_chunk(
    backend, tmp_path, monkeypatch
):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 8 * 16)
    x, labels = blobs()
    x[19, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", np.where(np.arange(50) == 40, 2**40, labels))
    mapped, wrong = (
        np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("x", "labels")
    )
    trainer = make(backend, shape=(4,))
    with pytest.raises(
        ValueError,
        match=r"x\[3, 2\] is nan; .* effect\. Positions are counted from example 16",
    ):
        trainer.fit(mapped, labels, verbose=0)
    with pytest.raises(
        ValueError,
        match=r"label\[8\] is 1099511627776\. Positions are counted from example 32",
    ):
        trainer.fit(np.nan_to_num(x), wrong, verbose=0)
    free = make(
        backend, loss=lambda y, target: nn.mean_squared_error(y, 0.0 * y), shape=(4,)
    )
    with pytest.raises(
        ValueError, match=r"target\[8\] is .*not fit into int32\. Positions are counted"
    ):
        free.fit(np.nan_to_num(x), wrong, batch_size=50, verbose=0)


# --- user-supplied batches ------------------------------------------------------------


def cut(sizes, x=None, labels=None):
    """Batches of these sizes."""
    x, labels = blobs() if x is None else (x, labels)
    ends = np.cumsum(sizes)
    return [(x[e - s : e], labels[e - s : e]) for e, s in zip(ends, sizes, strict=True)]


def test_custom_batches_train_like_steps_and_short_ones_have_no_filler_rows(backend):
    model = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.ReLU(), nn.Dense(3))
    streamed, plain = (make(backend, model, optimizer=nn.SGD(0.1)) for _ in range(2))
    history = streamed.fit(batches=cut([8, 5, 8, 3]), epochs=2, verbose=0)
    losses = [
        float(plain.step(*batch)) for _ in range(2) for batch in cut([8, 5, 8, 3])
    ]
    for a, b in zip(host(streamed), host(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert history["loss"][0] == pytest.approx(
        np.average(losses[:4], weights=[8, 5, 8, 3]), 1e-5
    )
    assert (streamed.steps, streamed.epoch, history["steps"]) == (8, 2, [4, 4])
    compiled = getattr(streamed._measured_step, "_cache_size", None)
    assert compiled is None or compiled() == 1


def test_weights_may_come_with_the_batches(backend):
    x, labels = blobs(8)
    weights = np.array([2, 1, 0, 1, 1, 0, 3, 0], "float32")
    fitted, stepped = (make(backend, optimizer=nn.SGD(0.1)) for _ in range(2))
    batches = [(x[:5], labels[:5], weights[:5]), [x[5:], labels[5:], weights[5:]]]
    fitted.fit(batches=batches, verbose=0)
    for batch in batches:
        stepped.step(*batch)
    for a, b in zip(host(fitted), host(stepped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["list", "function", "iterator", "iterator of steps"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_interrupted_epoch_of_custom_batches_continues_with_the_next_batch(
    backend, tmp_path, kind, prefetch
):
    sizes = [5, 8, 8, 4]
    drawn, epochs = [], []

    def recorded(batch):
        drawn.append(batch)
        return batch

    def make_batches(epoch):
        epochs.append(epoch)
        x, labels = blobs()
        return (
            recorded(b)
            for b in cut(sizes, np.roll(x, epoch, 0), np.roll(labels, epoch, 0))
        )

    def source():
        if kind == "list":
            return cut(sizes)
        if kind == "function":
            return make_batches
        return (recorded(batch) for _ in range(3) for batch in cut(sizes))

    steps_per_epoch = 4 if kind == "iterator of steps" else None
    options = {"steps_per_epoch": steps_per_epoch, "prefetch": prefetch, "verbose": 0}
    whole, part = (make(backend, nn.Dense(3)) for _ in range(2))
    passes = 1 if kind == "iterator" else 3
    whole.fit(batches=source(), epochs=passes, **options)
    assert kind != "function" or epochs == [0, 1, 2]
    drawn.clear()
    batches = source()
    part.fit(batches=batches, epochs=passes, steps=6, **options)
    assert part.steps == 6
    # no unused batch is drawn from an iterator; from an iterable one more is drawn
    assert len(drawn) == {"list": 0, "function": 7}.get(kind, 6)
    part.save(tmp_path / "a")
    part = nn.Trainer.load(tmp_path / "a", backend)
    while part.epoch < whole.epoch:
        part.fit(batches=batches, **options)
    assert part.steps == whole.steps == 12
    assert_same_bits(host(part), host(whole))


SOURCES = {
    "arrays": lambda: {"x": X[:16], "target": LABELS[:16], "batch_size": 8},
    "list": lambda: {"batches": cut([8, 8])},
    "function": lambda: {"batches": lambda epoch: (batch for batch in cut([8, 8]))},
    "iterator of a list": lambda: {"batches": iter(cut([8, 8]))},
    "generator of steps": lambda: {
        "batches": (b for b in cut([8, 8])),
        "steps_per_epoch": 2,
    },
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_steps_that_end_with_an_epoch_complete_it(backend, kind, prefetch):
    # arrays take many steps together on some
    trainer, rows = make(backend if kind == "arrays" else "numpy", nn.Dense(3)), []
    options = {"callbacks": [lambda trainer, row: rows.append(row)], "verbose": 0}
    options |= {"validation": (X[:8], LABELS[:8]), "prefetch": prefetch}
    history = trainer.fit(**SOURCES[kind](), steps=2, **options)
    assert (trainer.epoch, trainer.steps) == (1, 2)
    assert rows == history.epochs
    assert (rows[0]["epoch"], rows[0]["steps"]) == (1, 2)
    history = trainer.fit(**SOURCES[kind](), steps=1, epochs=2, **options)
    assert (trainer.epoch, trainer.steps, len(rows), len(history)) == (1, 3, 1, 1)


def test_a_generator_that_has_nothing_left_completes_its_epoch_in_the_next_fit():
    """To ask a generator for one more might lose a batch."""
    trainer, rows = make("numpy", nn.Dense(3)), []
    trainer.fit(batches=(batch for batch in cut([8, 8])), steps=2, verbose=0)
    assert (trainer.epoch, trainer.steps) == (0, 2)
    options = {"callbacks": [lambda trainer, row: rows.append(row)], "verbose": 0}
    history = trainer.fit(batches=cut([8, 8]), epochs=2, **options)
    assert (trainer.epoch, trainer.steps) == (3, 6)
    assert rows == history.epochs, "nothing is reported of what had nothing left"
    assert (history["epoch"], history["steps"]) == ([2, 3], [2, 2])


@pytest.mark.parametrize(
    ("batches", "options", "kind", "message"),
    [
        (
            iter(cut([8, 8])),
            {"epochs": 2},
            ValueError,
            "ended after 0 in epoch 2: an iterator",
        ),
        (
            cut([8, 8]),
            {"steps_per_epoch": 3},
            ValueError,
            "ended after 2 of 3 in epoch 1",
        ),
        ([], {}, ValueError, "ended after 0 in epoch 1"),
        ([X[:4]], {}, TypeError, r"\(x, target, weights\), got a ndarray"),
        ([(X[:4],)], {}, TypeError, "got a tuple of 1"),
        (7, {}, TypeError, "batches as an iterable or a function, got 7"),
        ([(X[:4, :3], LABELS[:4])], {}, ValueError, r"\(examples, 4\), got \(4, 3\)"),
        ([(X[:4], LABELS[:4] + 1)], {}, ValueError, "labels from 0 to 2"),
        (cut([8]), {"x": X, "target": LABELS}, ValueError, "or batches, got both"),
        (
            cut([8]),
            {"weights": np.ones(8, "float32")},
            ValueError,
            "or batches, got both",
        ),
        (
            None,
            {"x": X, "target": LABELS, "steps_per_epoch": 3},
            ValueError,
            "is for user-supplied",
        ),
        (
            None,
            {"x": X, "target": LABELS, "prefetch": -1},
            ValueError,
            "prefetch to be an integ",
        ),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 1])
def test_wrong_batches_are_refused(backend, batches, options, kind, message, prefetch):
    trainer = make(backend, nn.Dense(3), shape=(4,))
    batches = iter(cut([8, 8])) if isinstance(batches, Iterator) else batches
    with pytest.raises(kind, match=message):
        trainer.fit(
            **{"batches": batches, "prefetch": prefetch, "verbose": 0} | options
        )
    trainer.fit(batches=cut([8, 8, 8]), verbose=0)


def test_an_error_in_a_batch_says_which_and_costs_no_step_before_it(backend):
    x, labels = blobs()
    trainer, other = (make(backend, nn.Dense(3)) for _ in range(2))
    with pytest.raises(ValueError, match="x\\[3, 1\\] is nan") as caught:
        trainer.fit(batches=[*cut([8, 8]), (NAN, LABELS)], prefetch=2, verbose=0)
    assert caught.value.__notes__ == ["in batch 3 of epoch 1"]
    other.fit(batches=cut([8, 8]), verbose=0)
    assert_same_bits(host(trainer), host(other))
    with pytest.raises(
        ValueError, match="epoch 1 was begun with other batches, got 50 examples"
    ):
        trainer.fit(x, labels, verbose=0)


def test_a_trainer_is_built_by_data_that_fit_only(backend):
    x = np.ones((4, 9), "float32")
    target = np.ones((9, 3), "float32")
    trainer = make(backend, nn.Dense(3), loss=nn.mean_squared_error)
    with pytest.raises(ValueError, match=r"4 examples, but targets of shape \(9, 3\)"):
        trainer.fit(x, target, verbose=0)
    assert (trainer.shape, trainer.out_shape) == (None, None)
    with pytest.raises(RuntimeError, match="no weights yet"):
        trainer.predict(x)
    trainer.fit(x.T, target, verbose=0)
    with pytest.raises(ValueError, match="9 examples"):
        trainer.fit(x.T, target[1:], verbose=0)
    assert trainer.shape == (4,), "what was learned stays"


def test_a_loss_without_weights_takes_batches_of_one_length_only(backend):
    def squares(y, target):
        return nn.mean_squared_error(y, target)

    target = np.ones((50, 3), "float32")
    trainer = make(backend, nn.Dense(3), loss=squares)
    trainer.fit(batches=cut([8, 8], X, target), verbose=0)
    with pytest.raises(
        TypeError, match="a short batch, of 3 examples where others had 8, needs a"
    ):
        trainer.fit(batches=cut([8, 3], X, target), verbose=0)


# --- changed and prepared ahead -------------------------------------------------------


def shaken(x, target, generator):
    return x + generator.standard_normal(x.shape).astype("float32"), target


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_augmented_and_prepared_ahead_it_is_interrupted_without_a_trace(
    backend, prefetch
):
    x, labels = blobs()
    whole, part, other = (make(backend, nn.Dense(3)) for _ in range(3))
    options = {"batch_size": 16, "augment": shaken, "verbose": 0}
    whole.fit(x, labels, epochs=3, **options)
    part.fit(x, labels, epochs=3, steps=6, prefetch=prefetch, **options)
    while part.epoch < 3:
        part.fit(x, labels, prefetch=prefetch, **options)
    assert_same_bits(host(part), host(whole))
    other.fit(x, labels, epochs=3, **options | {"augment": None})
    assert not np.array_equal(host(other)[-1], host(whole)[-1])
    assert [t for t in threading.enumerate() if t.name == "agnostic_nn-prefetch"] == []


def test_each_batch_is_augmented_once_by_draws_of_its_own(backend):
    x, labels = blobs()
    augmented, draws = [], []

    def record(x, target, generator):
        augmented.extend(x[:, 0])
        draws.append(generator.integers(2**60))
        return x, target

    trainer = make(backend, nn.Dense(3))
    trainer.fit(x, labels, epochs=2, batch_size=16, augment=record, verbose=0)
    assert sorted(augmented) == sorted(2 * [*x[:, 0]]), "no filler is augmented"
    assert len(set(draws)) == len(draws) == 8


@pytest.mark.parametrize(
    ("augment", "kind", "message"),
    [
        (
            lambda x, target, _: x,
            TypeError,
            r"augment to return \(x, target\), got ndarray",
        ),
        (
            lambda x, target, _: (x[1:], target[1:]),
            ValueError,
            "turned 16 examples into 15",
        ),
        (
            lambda x, target, _: (2.0 * x.astype("float64"), target),
            TypeError,
            "x is float64, but",
        ),
        (lambda x, target, _: (x * np.float32("nan"), target), ValueError, "is nan"),
        (lambda x, target, _: (x, target + 3), ValueError, "labels from 0 to 2"),
    ],
)
def test_augmented_examples_are_checked_too(backend, augment, kind, message):
    trainer = make(backend, nn.Dense(3))
    with pytest.raises(kind, match=message):
        trainer.fit(X, LABELS, batch_size=16, augment=augment, prefetch=1, verbose=0)


def test_ctrl_c_leaves_no_thread_behind(backend, monkeypatch):
    # one call per step
    monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 0)
    trainer, whole = make(backend, nn.Dense(3)), make(backend, nn.Dense(3))
    step, calls = trainer._measured_step, []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(trainer, "_measured_step", pressed)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(X, LABELS, epochs=3, batch_size=4, prefetch=3, verbose=0)
    assert [t for t in threading.enumerate() if t.name == "agnostic_nn-prefetch"] == []
    assert trainer.steps == 2
    trainer.fit(X, LABELS, batch_size=4, prefetch=3, verbose=0)
    whole.fit(X, LABELS, batch_size=4, verbose=0)
    assert_same_bits(host(trainer), host(whole))


# --- using ----------------------------------------------------------------------------


def test_predict_gives_back_the_library_it_was_given(backend):
    x, _ = blobs()
    trainer = make(backend, shape=(4,))
    expected = trainer.predict(x)
    assert isinstance(expected, np.ndarray)
    assert expected.shape == (50, 3)
    moved = trainer.predict(backend.asarray(x), batch_size=16)
    assert nn.core.arrays.namespace(moved) is nn.core.arrays.namespace(
        backend.asarray(x)
    )
    np.testing.assert_allclose(backend.to_numpy(moved), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        trainer.predict(x.tolist()), expected, rtol=1e-5, atol=1e-6
    )
    assert trainer.predict(x[:0]).shape == (0, 3)
    assert trainer.predict(x[:1]).shape == (1, 3)


def test_data_of_any_layout_train_alike_and_are_left_alone(backend):
    x, labels = blobs()
    wide = np.zeros((100, 8), "float32")
    wide[::2, ::-2] = x
    views = [x, np.asfortranarray(x), wide[::2, ::-2]]
    result = []
    for view in views:
        view.flags.writeable = False
        trainer = make(backend)
        trainer.fit(view, labels, batch_size=16, verbose=0)
        result.append(host(trainer))
    assert_same_bits(result[0], result[1])
    assert_same_bits(result[0], result[2])


def test_integer_inputs_train_an_embedding(backend):
    ids = np.random.default_rng(0).integers(0, 11, (20, 5))
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Dense(2))
    trainer = make(backend, model)
    history = trainer.fit(ids, ids.sum(axis=1) % 2, epochs=30, batch_size=8, verbose=0)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert "Embedding" in str(trainer.summary())


def test_float64_is_computed_in_float64(backend):
    x, labels = blobs()
    if not backend.has_float64:
        with pytest.raises(ValueError, match="has no float64"):
            make(backend, dtype="float64")
        return
    trainer = make(backend, dtype="float64")
    trainer.fit(x.astype("float64"), labels, verbose=0)
    assert {leaf.dtype.name for leaf in host(trainer)} == {"float64", "int32"}


def test_summary_lists_layers_shapes_parameters_and_bytes(backend):
    model = nn.Sequential(
        nn.Dense(8), nn.ReLU(), nn.Residual(nn.Dropout(0.5), nn.Dense(8)), nn.Dense(3)
    )
    summary = make(backend, model, shape=(4,)).summary(batch_size=10)
    assert [row.path for row in summary.rows] == ["0", "1", "2", "2.0", "2.1", "3"]
    assert [row.shape for row in summary.rows] == [(8,), (8,), (8,), (8,), (8,), (3,)]
    assert [row.parameters for row in summary.rows] == [40, 0, 0, 0, 72, 27]
    # x; the output of Dense; a mask; the output of
    # Dropout; that of Residual: 10 rows of float32
    assert [row.bytes_kept for row in summary.rows] == [160, 320, 0, 320, 320, 320]
    assert summary.parameters == 139
    assert "0 Dense" in str(summary)
    assert "1,440" in str(summary)


def test_summary_counts_an_array_that_two_layers_keep_once(backend):
    model = nn.Sequential(nn.Dense(8), nn.Softmax(), nn.Dense(3))
    summary = make(backend, model, shape=(4,)).summary(batch_size=10)
    assert [row.bytes_kept for row in summary.rows] == [160, 320, 0]


# --- wrong input ----------------------------------------------------------------------

WRONG = [
    ("width", X[:, :3], LABELS, ValueError, r"\(examples, 4\), got \(50, 3\)"),
    ("rank", X[:, :, None], LABELS, ValueError, r"\(examples, 4\), got \(50, 4, 1\)"),
    (
        "float64",
        X.astype("float64"),
        LABELS,
        TypeError,
        "x is float64, but the model computes in float32",
    ),
    (
        "integers",
        X.astype("int64"),
        LABELS,
        TypeError,
        "takes real floating numbers, got int64",
    ),
    ("strings", np.array([["a"] * 4] * 50), LABELS, TypeError, "to hold numbers"),
    (
        "another library",
        {1, 2},
        LABELS,
        TypeError,
        "expected x as a NumPy array",
    ),
    ("NaN", NAN, LABELS, ValueError, r"x\[3, 1\] is nan"),
    ("no examples", X[:0], LABELS[:0], ValueError, "at least one example"),
    (
        "fewer labels",
        X,
        LABELS[:-1],
        ValueError,
        r"50 examples, but targets of shape \(49,\)",
    ),
    (
        "label too high",
        X,
        LABELS + 1,
        ValueError,
        r"labels from 0 to 2, but label\[2\] is 3",
    ),
    (
        "label below 0",
        X,
        LABELS - 1,
        ValueError,
        r"labels from 0 to 2, but label\[0\] is -1",
    ),
    (
        "float labels",
        X,
        LABELS.astype("float32"),
        TypeError,
        "expected integer labels, got float32",
    ),
    (
        "label rank",
        X,
        LABELS[:, None],
        ValueError,
        r"expected targets \(batch\), got \(50, 1\)",
    ),
]


@pytest.mark.parametrize(
    ("x", "target", "kind", "message"),
    [w[1:] for w in WRONG],
    ids=[w[0] for w in WRONG],
)
def test_wrong_data_are_refused_with_what_was_expected_and_what_came(
    backend, x, target, kind, message
):
    trainer = make(backend, shape=(4,))
    before = host(trainer)
    for call in (trainer.fit, trainer.step, trainer.evaluate):
        with pytest.raises(kind, match=message):
            call(x, target)
    assert_same_bits(host(trainer), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size to be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size to be an integer of at least 1, got 2.5"),
        ({"epochs": 0}, "epochs to be an integer of at least 1, got 0"),
        ({"steps": -1}, "steps to be an integer of at least 1, got -1"),
        ({"epochs": True}, "epochs to be an integer of at least 1, got True"),
        ({"epochs": np.int64(0)}, "epochs to be an integer of at least 1, got"),
        ({"weights": np.ones(49, "float32")}, r"weights of shape \(50,\), got \(49,\)"),
        ({"weights": -np.ones(50, "float32")}, "weights of at least 0"),
        ({"weights": np.full(50, np.inf, "float32")}, "weights of at least 0"),
        ({"validation": (X, LABELS + 1)}, "labels from 0 to 2"),
    ],
)
def test_wrong_options_are_refused(backend, options, message):
    with pytest.raises(ValueError, match=message):
        make(backend).fit(X, LABELS, verbose=0, **options)


@pytest.mark.parametrize(
    ("validation", "message"),
    [((X, LABELS, np.ones(50, "float32")), "tuple of 3"), (X, "ndarray"), (7, "int")],
)
def test_validation_is_a_pair(backend, validation, message):
    with pytest.raises(
        TypeError, match=rf"expected validation \(x, target\), or .*, got a {message}"
    ):
        make(backend).fit(X, LABELS, validation=validation, verbose=0)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_predictions_are_made_in_batches_of_some(backend, batch_size):
    trainer, text = (
        make(backend, shape=(4,)),
        "batch_size to be an integer of at least 1",
    )
    with pytest.raises(ValueError, match=text):
        trainer.evaluate(X, LABELS, batch_size=batch_size)
    with pytest.raises(ValueError, match=text):
        trainer.predict(X, batch_size=batch_size)


@pytest.mark.parametrize(
    "weights", [np.arange(50), list(range(50)), np.arange(50) % 2 > 0]
)
def test_weights_may_be_integers_or_booleans(backend, weights):
    one, other = (make(backend, optimizer=nn.SGD(0.1)) for _ in range(2))
    one.fit(X, LABELS, batch_size=25, weights=weights, verbose=0)
    other.fit(
        X, LABELS, batch_size=25, weights=np.asarray(weights, "float32"), verbose=0
    )
    assert_same_bits(host(one), host(other))


@pytest.mark.parametrize(
    ("model", "loss", "target", "message"),
    [
        (
            TwoByTwo(),
            nn.softmax_cross_entropy,
            LABELS,
            r"one output, got \{.*: Losses has a loss",
        ),
        (
            TwoByTwo(),
            nn.mean_squared_error,
            X,
            r"one output, got \{.*: Losses has a loss",
        ),
        (
            nn.Dense(3),
            nn.softmax_cross_entropy,
            {"a": LABELS},
            "as one array, got a dict",
        ),
        (nn.Dense(3), nn.multi_class_margin, {"a": LABELS}, "as one array, got a dict"),
        (nn.Dense(3), nn.hinge, (X, X), "as one array, got a tuple"),
        (
            nn.Dense(3),
            nn.mean_squared_error,
            1.0 * LABELS,
            r"targets \(batch, 3\), got \(50,\)",
        ),
    ],
)
def test_targets_that_do_not_suit_the_loss_are_refused_by_its_name(
    backend, model, loss, target, message
):
    target = tree_map(
        lambda leaf: leaf.astype("float32") if leaf.dtype == float else leaf, target
    )
    x = {"x": X, "mask": np.ones((50, 3), bool)} if isinstance(model, TwoByTwo) else X
    with pytest.raises(ValueError, match=message) as caught:
        make(backend, model, loss).fit(x, target, verbose=0)
    assert caught.value.__notes__ == [f"for the loss {loss.__name__}"]


def test_weights_are_one_array_and_a_loss_is_one_number(backend):
    with pytest.raises(TypeError, match="weights as one array"):
        make(backend).fit(X, LABELS, weights={"a": np.ones(50, "float32")}, verbose=0)
    loss = partial(nn.mean_squared_error, reduction="none")
    with pytest.raises(
        ValueError, match=r"a loss of one number, got one of shape \(4, 3\)"
    ):
        make(backend, loss=loss).step(X[:4], np.ones((4, 3), "float32"))


def test_a_custom_loss_may_omit_weights_if_none_are_used(backend):
    def squares(y, target):
        error = y - target
        return nn.core.arrays.namespace(y).sum(error * error), 2.0 * error

    trainer = make(backend, loss=squares)
    target = np.ones((50, 3), "float32")
    history = trainer.fit(X, target, epochs=2, batch_size=25, verbose=0)
    assert history["loss"][1] < history["loss"][0]
    with pytest.raises(
        TypeError, match="of 50 examples 16 at a time, needs a loss that takes"
    ):
        trainer.fit(X, target, batch_size=16, verbose=0)
    with pytest.raises(
        TypeError, match=r"weighting examples needs a loss.* weights=None$"
    ):
        trainer.fit(X, target, weights=np.ones(50, "float32"), verbose=0)
    steps = trainer.steps
    with pytest.raises(
        TypeError, match=r"of 26 examples 25 at a time, .* that divides the exampl"
    ):
        trainer.fit(
            X, target, batch_size=25, validation=(X[:26], target[:26]), verbose=0
        )
    assert trainer.steps == steps, "refused before anything is learned"


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (
            ("model", nn.mean_squared_error, nn.SGD()),
            {},
            TypeError,
            "a layer or a block as the model",
        ),
        ((nn.Dense(2), "mse", nn.SGD()), {}, TypeError, "the loss to be a function of"),
        (
            (nn.Dense(2), nn.mean_squared_error, 0.1),
            {},
            TypeError,
            "an optimizer such as",
        ),
        (
            (nn.Dense(2), nn.mean_squared_error, nn.SGD()),
            {"dtype": "int8"},
            ValueError,
            "'int8'",
        ),
        (
            (nn.Dense(2), nn.mean_squared_error, nn.SGD()),
            {"seed": -1},
            ValueError,
            "seed to be an integer of at least 0, got -1",
        ),
        (
            (nn.Dense(2), nn.mean_squared_error, nn.SGD()),
            {"seed": 1.5},
            ValueError,
            "seed to be an integer of at least 0, got 1.5",
        ),
        (
            (nn.ReLU(), nn.mean_squared_error, nn.SGD()),
            {"shape": (2,)},
            ValueError,
            "no parameters",
        ),
    ],
)
def test_a_trainer_of_wrong_parts_is_refused(
    backend, arguments, options, kind, message
):
    with pytest.raises(kind, match=message):
        nn.Trainer(*arguments, backend=backend, **options)


def test_before_there_are_weights_it_says_how_to_get_them(backend):
    for ask in (
        nn.Trainer.summary,
        lambda t: t.predict(X),
        lambda t: t.evaluate(X, LABELS),
    ):
        with pytest.raises(RuntimeError, match="give Trainer a shape, or fit it"):
            ask(make(backend))


def test_arrays_of_another_device_are_copied_to_that_of_the_model(backend):
    devices = [
        b
        for status in nn.backends()
        if status.name == backend.name
        for b in status.devices
    ]
    others = [
        b for b in devices if b != backend and b.has_float64 == backend.has_float64
    ]
    if not others:
        pytest.skip(f"{backend.name} has one device here")
    there, here = make(backend, shape=(4,)), make(backend, shape=(4,))
    there.fit(others[0].asarray(X), LABELS, verbose=0)
    here.fit(X, LABELS, verbose=0)
    pairs = zip(
        *(nn.core.trees.leaves(backend.to_numpy(t.params)) for t in (there, here)),
        strict=True,
    )
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_an_epoch_begun_with_other_data_is_not_finished_with_these(backend):
    trainer = make(backend)
    trainer.fit(X, LABELS, batch_size=16, steps=2, verbose=0)
    refusal = (
        "begun with 50 examples in batches of 16 and shuffle=True, "
        "got 50 examples in batches of "
    )
    with pytest.raises(ValueError, match=f"{refusal}8"):
        trainer.fit(X, LABELS, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match=f"{refusal}16 and shuffle=False"):
        trainer.fit(X, LABELS, batch_size=16, shuffle=False, verbose=0)
    trainer.fit(X, LABELS, batch_size=16, verbose=0)
    assert (trainer.epoch, trainer.steps) == (1, 4)


# --- what goes wrong on the way -------------------------------------------------------


@dataclass(frozen=True)
class Poisoned(nn.Layer):
    """y = gain · x, where forward or backward is NaN if the batch begins with a 7."""

    way: str

    def init(self, key, shape, dtype):
        return {"gain": nn.core.arrays.namespace(key).ones(1, dtype=dtype)}, {}, shape

    def forward(self, params, state, x, *, train=False):
        y = x * params["gain"]
        return (y * poison(x) if self.way == "forward" else y), state, x

    def backward(self, params, cache, dy):
        gain = nn.core.arrays.namespace(dy).sum(dy * cache)[None]
        return dy * params["gain"], {"gain": gain * poison(cache)}


def poison(x):
    xp, first = nn.core.arrays.namespace(x), x[0, 0]
    return xp.where(
        first == 7.0, float("nan") * xp.ones_like(first), xp.ones_like(first)
    )


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_fit_stops_at_a_step_that_is_not_finite_and_keeps_the_last_good_parameters(
    backend, way
):
    x, labels = blobs(20)
    x[8:12, 0] = 7.0
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    trainer, good, free = (
        make(backend, classifier(Poisoned(way)), keep_finite=keep)
        for keep in (True, True, False)
    )
    good.fit(x, labels, steps=2, **options)
    with pytest.raises(nn.NonFiniteLoss, match=r"step 3 \(epoch 1, batch 3\)"):
        trainer.fit(x, labels, **options)
    assert_same_bits(host(trainer), host(good))
    assert trainer.steps == 2
    trainer.step(x[8:12], labels[8:12])
    assert_same_bits(host(trainer), host(good))
    assert trainer.evaluate(x[:8], labels[:8])["loss"] > 0

    free.fit(x, labels, **options)
    assert any(np.isnan(leaf).any() for leaf in host(free))


def test_ctrl_c_ends_fit_at_a_step_boundary_with_the_trainer_usable(
    backend, monkeypatch
):
    x, labels = blobs()
    # one call per step
    monkeypatch.setattr(feed, "_MAX_MULTIPLICATIONS", 0)
    trainer = make(backend)
    step, calls = trainer._measured_step, []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(trainer, "_measured_step", pressed)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, labels, epochs=3, batch_size=16, verbose=0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (trainer.steps, trainer.epoch, len(calls)) == (6, 1, 6)
    while trainer.epoch < 3:
        trainer.fit(x, labels, batch_size=16, verbose=0)
    whole = make(backend)
    whole.fit(x, labels, epochs=3, batch_size=16, verbose=0)
    assert_same_bits(host(trainer), host(whole))


def test_a_second_ctrl_c_is_not_held_back():
    def press_twice():
        with DeferredInterrupts() as held:
            signal.raise_signal(signal.SIGINT)
            assert held.requested
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on after the second Ctrl-C")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_handled_by_somebody_else_stays_theirs():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with DeferredInterrupts() as held:
            signal.raise_signal(signal.SIGINT)
        assert heard == [1]
        assert not held.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_fit_works_off_the_main_thread(backend):
    x, labels = blobs()
    trainer, result = make(backend), []
    worker = threading.Thread(
        target=lambda: result.append(trainer.fit(x, labels, batch_size=16, verbose=0))
    )
    worker.start()
    worker.join()
    assert len(result) == 1


def test_a_progress_bar_is_drawn_on_the_error_stream_unless_silenced(backend, capsys):
    x, labels = blobs()
    trainer = make(backend)
    trainer.fit(x, labels, batch_size=16, validation=(x, labels))
    output = capsys.readouterr()
    assert "epoch 1/1" in output.err
    assert "4/4" in output.err
    assert "validation_accuracy" in output.err
    trainer.fit(batches=cut([16, 16, 9]))
    assert "3/3" in capsys.readouterr().err, "a bar whose length nobody knew"
    trainer.fit(x, labels, batch_size=16, verbose=0)
    assert capsys.readouterr() == ("", "")
    assert output.out == ""


def test_bars_of_many_epochs_keep_the_newest_in_sight_and_end_with_all(backend, capsys):
    from rich.progress import Progress as Bars

    from agnostic_nn.training.progress import _ROWS, _Bars

    bars = Bars(disable=True)
    drawn = _Bars(bars)
    for epoch in range(_ROWS + 5):
        drawn.begin(f"epoch {epoch}", 1)
        drawn.finish({"loss": 1.0})
    visible = [task.description for task in bars.tasks if task.visible]
    assert visible == [f"epoch {epoch}" for epoch in range(5, _ROWS + 5)]
    drawn.close()
    assert all(task.visible for task in bars.tasks)


# --- from what another model learned --------------------------------------------------


def test_layers_trained_in_one_model_stay_frozen_in_another(backend):
    body = nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.Tanh())
    old = make(backend, nn.Sequential(body, nn.Dense(3)))
    old.fit(X, LABELS, epochs=2, verbose=0)
    learned = backend.to_numpy((old.params[0], old.state[0]))
    new = make(backend, nn.Sequential(nn.Freeze(body), nn.Dense(3)), seed=1, shape=(4,))
    new.step(X, LABELS)
    _, drawn = new.params
    params, state = nn.Freeze.freeze(*learned)
    new.start_from((params, backend.to_numpy(drawn)), (state, {}))
    assert int(new.moments["step"]) == 0
    new.fit(X, LABELS, epochs=2, verbose=0)
    frozen = nn.Freeze.release(new.params[0], new.state[0])
    assert_same_bits(leaves(backend.to_numpy(frozen)), leaves(learned))
    assert_same_bits(leaves(backend.to_numpy(old.params[0])), leaves(learned[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:1] + p[2:], "params.1.bias is float32 .*, expected nothing"),
        (
            lambda p: ({**p[0], "bias": p[0]["bias"][:5]}, *p[1:]),
            r"float32 \(5,\), expected",
        ),
        (
            lambda p: tree_map(lambda a: a.astype("float64"), p),
            "float64 .* expected float32",
        ),
    ],
)
def test_parameters_of_another_model_are_refused(backend, change, message):
    trainer = make(backend, shape=(4,))
    before = host(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.start_from(
            change(tree_map(np.asarray, backend.to_numpy(trainer.params)))
        )
    assert_same_bits(host(trainer), before)


def test_start_from_keeps_the_moments_that_it_is_given(backend):
    trainer = make(backend, shape=(4,))
    trainer.fit(X, LABELS, epochs=1, verbose=0)
    learned = trainer.params, trainer.state, trainer.moments
    before = tree_map(np.array, backend.to_numpy(learned))
    trainer.step(X, LABELS)
    after = host(trainer)
    trainer.start_from(*learned[:2], moments=learned[2])
    trainer.step(X, LABELS)  # the same step again
    assert_same_bits(host(trainer), after)
    assert_same_bits(leaves(backend.to_numpy(learned)), leaves(before))
    with pytest.raises(ValueError, match=r"moments.m.0.bias is nothing, expected"):
        trainer.start_from(learned[0], moments=())
    wrong = {**before[2], "step": np.zeros(3, "int32")}
    with pytest.raises(ValueError, match=r"moments.step is int32 \(3,\), expected"):
        trainer.start_from(learned[0], moments=wrong)
    assert_same_bits(host(trainer), after)


def test_the_state_can_be_replaced(backend):
    model = nn.Sequential(nn.Dense(3), nn.BatchNorm())
    trainer = make(backend, model, shape=(4,))
    trainer.step(X, LABELS)
    params, moments = trainer.params, trainer.moments
    _, norm = trainer.state
    trainer.state = ({}, {**norm, "mean": np.asarray([1.0, 2.0, 3.0], "float32")})
    mean = backend.to_numpy(trainer.state[1]["mean"])
    np.testing.assert_array_equal(mean, [1.0, 2.0, 3.0])
    for old, new in ((params, trainer.params), (moments, trainer.moments)):
        assert_same_bits(leaves(backend.to_numpy(old)), leaves(backend.to_numpy(new)))
    shift = trainer.predict(X[:2])
    trainer.state = ({}, {**norm, "mean": np.asarray([2.0, 2.0, 3.0], "float32")})
    assert (trainer.predict(X[:2]) != shift)[:, 0].all()
    trainer.step(X, LABELS)
    for wrong, message in (
        (({},), "state.1.mean is nothing, expected float32"),
        (({}, {**norm, "mean": np.zeros(2, "float32")}), r"float32 \(2,\), expected"),
        (({}, {**norm, "mean": np.zeros(3)}), "state.1.mean is float64"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.state = wrong
