"""Sequences in buckets: each once in an epoch, padded, with a mask."""

import numpy as np
import pytest

import agnostic_nn as nn

MODEL = nn.Graph(
    mean=(nn.MaskedAveragePool(), {"x": "x", "mask": "mask"}), y=(nn.Dense(2), "mean")
)


def drawn(*steps):
    generator = np.random.default_rng(0)
    x = [generator.standard_normal((n, 3)).astype("float32") for n in steps]
    return x, generator.integers(0, 2, len(steps))


STEPS = (3, 7, 1, 2, 8, 5, 4, 4, 6, 2, 1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_sequence_comes_once_padded_to_the_next_length(shuffle):
    x, labels = drawn(*STEPS)
    batches = nn.bucketed(x, labels, batch_size=3, lengths=(8, 4, 2), shuffle=shuffle)
    pairs = []
    for inputs, target in batches(0):
        length = inputs["x"].shape[1]
        assert length in (2, 4, 8)
        assert len(target) <= 3
        for padded, mask, label in zip(
            inputs["x"], inputs["mask"], target, strict=True
        ):
            steps = int(mask.sum())
            assert length == min(n for n in (2, 4, 8) if n >= steps)
            assert mask[:steps].all()
            assert not padded[steps:].any()
            pairs.append((padded[:steps].tobytes(), int(label)))
    expected = [(part.tobytes(), int(n)) for part, n in zip(x, labels, strict=True)]
    assert sorted(pairs) == sorted(expected)


def test_the_order_is_fixed_by_the_seed_and_the_epoch():
    x, labels = drawn(*STEPS)

    def order(epoch, seed=0):
        batches = nn.bucketed(x, labels, batch_size=2, seed=seed)
        return [inputs["x"].tobytes() for inputs, _ in batches(epoch)]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)


def test_default_lengths_are_powers_of_two_and_the_longest():
    x, labels = drawn(3, 5, 11)
    batches = nn.bucketed(x, labels, shuffle=False)(0)
    assert [inputs["x"].shape[1] for inputs, _ in batches] == [4, 8, 11]


def test_targets_of_steps_are_padded_and_do_not_count(backend):
    """The loss of an epoch is the mean over steps that are not padding."""
    x, _ = drawn(2, 4, 3)
    target = [part.sum(axis=-1, keepdims=True) for part in x]
    batches = nn.bucketed(
        x, target, lengths=(4,), mask=False, padding=9.0, target_padding=100.0
    )
    ((inputs, targets, weights),) = batches(0)
    assert inputs.shape == (3, 4, 3)
    assert targets.max() == 100.0
    assert weights.sum() == 9
    learner = nn.Trainer(
        nn.Dense(1), nn.mean_squared_error, nn.SGD(1e-9), backend=backend, metrics={}
    )
    row = learner.fit(batches=batches, verbose=0).epochs[0]
    y = [learner.predict(part[None])[0] for part in x]
    squares = np.concatenate([(a - b) ** 2 for a, b in zip(y, target, strict=True)])
    assert row["loss"] == pytest.approx(squares.mean(), rel=1e-4)


def test_padded_training_equals_that_of_each_sequence_alone(backend):
    """Up to rounding, with the gradients of all sequences in a batch added."""
    x, labels = drawn(3, 4, 2)

    def trained(batches, every):
        optimizer = nn.Accumulate(nn.SGD(0.5), every=every)
        learner = nn.Trainer(
            MODEL, nn.softmax_cross_entropy, optimizer, backend=backend, metrics={}
        )
        learner.build({"x": (None, 3), "mask": (None,)})
        learner.fit(batches=batches, verbose=0)
        return backend.to_numpy(learner.params)["y"]["weight"]

    padded = trained(nn.bucketed(x, labels, lengths=(4,)), 1)
    alone = [
        ({"x": part[None], "mask": np.ones((1, len(part)), bool)}, labels[i : i + 1])
        for i, part in enumerate(x)
    ]
    np.testing.assert_allclose(padded, trained(alone, 3), atol=1e-6)


def test_buckets_continue_from_a_file(tmp_path):
    x, labels = drawn(*STEPS)

    def learner():
        return nn.Trainer(
            MODEL, nn.softmax_cross_entropy, nn.Adam(1e-2), backend="numpy"
        )

    batches = nn.bucketed(x, labels, batch_size=2)
    whole, part = learner(), learner()
    whole.fit(batches=batches, epochs=2, verbose=0)
    part.fit(batches=batches, epochs=2, steps=9, verbose=0)
    part.save(tmp_path / "part.safetensors")
    loaded = nn.Trainer.load(tmp_path / "part.safetensors", "numpy")
    loaded.fit(batches=batches, epochs=2 - loaded.epoch, verbose=0)
    assert loaded.steps == whole.steps
    for a, b in zip(
        nn.core.trees.leaves(whole.params),
        nn.core.trees.leaves(loaded.params),
        strict=True,
    ):
        assert a.tobytes() == b.tobytes()


X, LABELS = drawn(3, 4, 2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: nn.bucketed(X, LABELS, lengths=(2, 3)),
            ValueError,
            "sequence 1 has 4 ",
        ),
        (lambda: nn.bucketed(X, LABELS, lengths=3), TypeError, "lengths as a list"),
        (lambda: nn.bucketed(X, LABELS, lengths=()), ValueError, "sequence 1 has 4 st"),
        (lambda: nn.bucketed(X, LABELS[1:]), ValueError, "3 sequences, but 2 targets"),
        (lambda: nn.bucketed(X, [X[0], X[1], X[1]]), ValueError, "2 has 2 steps, but"),
        (lambda: nn.bucketed([], []), ValueError, "at least one array in sequences"),
        (lambda: nn.bucketed(LABELS, LABELS), TypeError, "sequences as a list of arr"),
        (lambda: nn.bucketed([*X[:2], X[2][:, 1:]], LABELS), ValueError, "only steps"),
        (lambda: nn.bucketed(X, LABELS, batch_size=0), ValueError, "batch_size to be"),
        (lambda: nn.bucketed(X, LABELS, mask=1), TypeError, "mask"),
        (lambda: nn.bucketed([["a"]], [1]), ValueError, "to hold numbers"),
    ],
)
def test_sequences_that_fit_no_bucket_are_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
