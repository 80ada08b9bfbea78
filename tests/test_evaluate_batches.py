"""`evaluate` and the validation of `fit` take batches, also of different lengths."""

from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace

GENERATOR = np.random.default_rng(0)
LOSS = partial(nn.softmax_cross_entropy, ignore_index=-1)
ACCURACY = partial(nn.accuracy, ignore_index=-1)


def trainer(backend, loss=LOSS, metrics=None, shape=(None, 3), width=2):
    metrics = {"accuracy": ACCURACY} if metrics is None else metrics
    return nn.Trainer(
        nn.Dense(width),
        loss,
        nn.Fixed(),
        backend=backend,
        shape=shape,
        metrics=metrics,
    )


def batch(rows, length):
    """Return sequences with a label for each step, some of them ignored."""
    x = GENERATOR.standard_normal((rows, length, 3)).astype("float32")
    return x, GENERATOR.integers(-1, 2, (rows, length))


def together(batches):
    """Return one batch of all sequences, padded with steps that are ignored."""
    longest = max(x.shape[1] for x, _ in batches)
    padded = [
        (
            np.pad(x, ((0, 0), (0, longest - x.shape[1]), (0, 0))),
            np.pad(t, ((0, 0), (0, longest - t.shape[1])), constant_values=-1),
        )
        for x, t in batches
    ]
    return tuple(map(np.concatenate, zip(*padded, strict=True)))


BATCHES = [batch(4, 3), batch(3, 5), batch(2, 5)]
INVALID = batch(3, 5)[0], np.full((3, 5), 2)


def mean_output(y, target):
    return float(y[..., 0].mean() + target.mean())


def test_slices_of_the_data_give_the_results_of_all_data(backend):
    """With ignored labels, weights of examples, and a batch that is short."""
    x, target = batch(12, 4)
    weights = np.linspace(0.5, 2.0, 12, dtype="float32")
    metrics = {"over": nn.OverAll(mean_output), "accuracy": ACCURACY}
    learner = trainer(backend, metrics=metrics)
    expected = learner.evaluate(x, target, weights=weights)
    parts = [slice(start, start + 5) for start in (0, 5, 10)]
    slices = [(x[rows], target[rows], weights[rows]) for rows in parts]
    there = [backend.asarray((a, b.astype("int32"), c)) for a, b, c in slices]
    for batches in (slices, iter(slices), lambda epoch: slices, there):
        result = learner.evaluate(batches=batches)
        assert list(result) == ["loss", "over", "accuracy"]
        assert result == pytest.approx(expected, rel=1e-5)


def test_batches_of_different_lengths_count_each_step_once(backend):
    """The results are those of all sequences, padded with ignored steps."""
    learner = trainer(backend)
    expected = learner.evaluate(*together(BATCHES))
    assert learner.evaluate(batches=BATCHES) == pytest.approx(expected, rel=1e-5)


def test_fit_measures_both_kinds_of_data_so():
    learner = trainer("numpy")
    expected = learner.evaluate(*together(BATCHES))
    by_example = [
        learner.evaluate(*each)["accuracy"] * len(each[0]) / 9 for each in BATCHES
    ]
    assert abs(sum(by_example) - expected["accuracy"]) > 1e-3
    epochs = []

    def validation(epoch):
        epochs.append(epoch)
        return iter(BATCHES)

    for held_out in (BATCHES, validation):
        rows = learner.fit(
            batches=BATCHES, validation=held_out, epochs=2, verbose=0
        ).epochs
        for row in rows:
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, rel=1e-5)
                assert row[f"validation_{name}"] == pytest.approx(value, rel=1e-5)
    assert epochs == [0] * 4  # the first batch comes before training, twice


def test_means_are_combined_that_were_already_added_up():
    """After 32 batches they are moved to the host and combined."""
    data = [batch(1, 2 + number % 2) for number in range(70)]
    learner = trainer("numpy")
    expected = learner.evaluate(*together(data))
    assert learner.evaluate(batches=data) == pytest.approx(expected, rel=1e-5)
    row = learner.fit(batches=data, verbose=0).epochs[0]
    assert row["accuracy"] == pytest.approx(expected["accuracy"], rel=1e-6)


def test_buckets_can_be_evaluated():
    """Their weights leave out padding."""
    sequences = [batch(1, length)[0][0] for length in (2, 5, 3, 5, 4)]
    targets = [np.arange(len(part)) % 2 for part in sequences]
    learner = trainer("numpy", nn.softmax_cross_entropy, {})
    buckets = nn.bucketed(sequences, targets, batch_size=2, mask=False)
    padded = [(x[None], t[None]) for x, t in zip(sequences, targets, strict=True)]
    result = learner.evaluate(batches=buckets)["loss"]
    expected = trainer("numpy", metrics={}).evaluate(*together(padded))["loss"]
    assert result == pytest.approx(expected, rel=1e-5)
    history = learner.fit(batches=buckets, validation=buckets, verbose=0)
    assert history["validation_loss"] == [result]


def test_r2_of_different_lengths_is_that_of_all_numbers():
    data = []
    for rows, length in ((4, 3), (2, 5), (3, 2)):
        x, _ = batch(rows, length)
        data.append((x, 100 + x[..., :1] + length))
    learner = trainer("numpy", nn.mean_squared_error, {"r2": nn.metrics.r2}, width=1)
    y = np.concatenate([learner.predict(x).ravel() for x, _ in data])
    target = np.concatenate([t.ravel() for _, t in data]).astype("float64")
    expected = 1 - ((target - y) ** 2).sum() / ((target - target.mean()) ** 2).sum()
    assert learner.evaluate(batches=data)["r2"] == pytest.approx(expected, rel=1e-5)
    row = learner.fit(batches=data, verbose=0).epochs[0]
    assert row["r2"] == pytest.approx(expected, rel=1e-5)


def unweighted(y, target):
    """The mean square of y - target, without weights."""
    dy = y - target
    return namespace(y).mean(dy * dy), 2.0 / dy.shape[0] * dy


def test_a_loss_without_weights_takes_batches_of_different_sizes():
    x = GENERATOR.standard_normal((7, 3)).astype("float32")
    learner = trainer("numpy", unweighted, {}, shape=(3,))
    expected = learner.evaluate(x, x[:, :2])
    slices = [(x[rows], x[rows, :2]) for rows in (slice(4), slice(4, 7))]
    assert learner.evaluate(batches=slices) == pytest.approx(expected, rel=1e-5)


def test_a_metric_over_all_needs_one_shape():
    learner = trainer("numpy", metrics={"f1": nn.OverAll(mean_output)})
    message = (
        r"such as 'f1', need batches with one shape of y, got \(4, 3, 2\) and "
        r"\(3, 5, 2\): evaluate batches of each length separately"
    )
    with pytest.raises(ValueError, match=message):
        learner.evaluate(batches=BATCHES)
    with pytest.raises(ValueError, match=message):
        learner.fit(*BATCHES[0], validation=BATCHES, verbose=0)
    assert learner.steps == 0
    result = learner.evaluate(batches=BATCHES[1:])["f1"]
    x, target = together(BATCHES[1:])
    assert result == pytest.approx(mean_output(learner.predict(x), target), rel=1e-5)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (iter(BATCHES), "be read again after each epoch, got a list_iterator, which"),
        (list(BATCHES[0]), r"expected batches \(x, target\) or .*, got a ndarray"),
        ([*BATCHES, INVALID], "expected labels from 0 to 1"),
        ([], "expected at least one batch to evaluate, got none"),
        (lambda: BATCHES, r"expected batches to be a function of \(epoch\)"),
        ({"x": BATCHES}, r"or batches of these in a list .*, got a dict"),
        (tuple(BATCHES), r"or batches of these in a list .*, got a tuple of 3"),
    ],
)
def test_wrong_validation_is_refused_before_the_first_step(validation, message):
    learner = trainer("numpy")
    with pytest.raises((TypeError, ValueError), match=message):
        learner.fit(batches=BATCHES, validation=validation, verbose=0)
    assert learner.steps == 0


def test_wrong_batches_are_refused_with_their_number():
    learner = trainer("numpy")
    with pytest.raises(ValueError, match="labels from 0 to 1") as caught:
        learner.evaluate(batches=[*BATCHES, INVALID])
    assert caught.value.__notes__[-1] == "in batch 4 to evaluate"
    with pytest.raises(ValueError, match="expected x and target or batches, got both"):
        learner.evaluate(*BATCHES[0], batches=BATCHES)
    with pytest.raises(TypeError, match="expected batches as an iterable or a functio"):
        learner.evaluate(batches=3)
    used = iter(BATCHES)
    learner.evaluate(batches=used)
    with pytest.raises(ValueError, match="an iterator can be used once; pass a list"):
        learner.evaluate(batches=used)
    with pytest.raises(TypeError, match="expected x"):
        learner.evaluate()
