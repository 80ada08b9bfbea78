"""CTC equals the sum over all paths that it stands for, and PyTorch's CTC."""

import functools
import itertools
import math

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ctc
from agnostic_nn.losses.base import check_of


@functools.cache
def compiled(backend, **options):
    return backend.jit(functools.partial(ctc, **options))


def run(backend, y, target, *weights, **options):
    """Return value and gradient on the host, computed inside jit."""
    value, dy = compiled(backend, **options)(*backend.asarray((y, target, *weights)))
    value, dy = backend.to_numpy((value, dy))
    assert dy.shape == y.shape
    assert value.dtype == dy.dtype == y.dtype
    return value, dy


def run_each(backend, y, target, **options):
    """Return the value and the gradient of each example."""
    return run(backend, y, target, reduction="none", **options)


def spelled(path, blank=0):
    """Return the labels of a path: without repetitions, then without blanks."""
    return tuple(k for k, _ in itertools.groupby(path) if k != blank)


def by_all_paths(y, labels, blank=0):
    """Return -log p of one example and its gradient by the logits."""
    q = np.exp(y - np.max(y, axis=-1, keepdims=True))
    q = q / np.sum(q, axis=-1, keepdims=True)
    times, classes = y.shape
    total, shares = 0.0, np.zeros_like(q)
    for path in itertools.product(range(classes), repeat=times):
        if spelled(path, blank) == tuple(labels):
            p = math.prod(q[t, k] for t, k in enumerate(path))
            total += p
            shares += p * np.eye(classes)[list(path)]
    return -math.log(total), q - shares / total


def padded(rows, filler=0):
    """Return a target: labels of unequal length as an array, and their lengths."""
    length = max(map(len, rows))
    filled = [list(row) + [filler] * (length - len(row)) for row in rows]
    return {
        "labels": np.asarray(filled, np.int32).reshape(len(rows), length),
        "label_lengths": np.asarray([len(row) for row in rows], np.int32),
    }


# times, labels: with and without repetitions, as long as possible, and empty
ROWS = [
    (5, (1, 2)),
    (5, (1, 1)),
    (5, (1, 2, 1)),
    (5, (2, 2, 2)),
    (3, (2, 1, 2)),
    (4, (1,)),
    (1, (2,)),
    (5, ()),
    (1, ()),
]


def batch(draw, rows=ROWS, blank=0, filler=1):
    """Return logits and a target with all lengths, of one shape, to compile once."""
    swap = {0: blank, blank: 0}
    target = padded(
        [tuple(swap.get(k, k) for k in labels) for _, labels in rows], filler
    )
    times = np.asarray([time for time, _ in rows], np.int32)
    return draw(len(rows), 5, 3), {**target, "input_lengths": times}


@pytest.mark.parametrize("blank", [0, 2])
def test_the_loss_is_the_sum_over_all_paths(backend, draw, epsilon, blank):
    """All rows in one padded batch. The error of sums of 3⁵ products is a few eps."""
    y, target = batch(draw, blank=blank)
    values, dy = run_each(backend, y, target, blank=blank)
    for n, (time, _) in enumerate(ROWS):
        labels = target["labels"][n, : target["label_lengths"][n]].tolist()
        value, slope = by_all_paths(y[n, :time].astype("float64"), labels, blank)
        np.testing.assert_allclose(values[n], value, rtol=32 * epsilon)
        np.testing.assert_allclose(dy[n, :time], slope, rtol=0, atol=32 * epsilon)
        np.testing.assert_array_equal(dy[n, time:], 0)


def test_the_probabilities_of_all_label_sequences_add_up_to_1(backend, draw, epsilon):
    """With three times and three classes there are 9 sequences."""
    sequences = sorted(
        {spelled(path) for path in itertools.product(range(3), repeat=3)}
    )
    y, target = batch(draw, [(3, sequence) for sequence in sequences])
    values, _ = run_each(backend, np.repeat(y[:1], len(sequences), axis=0), target)
    assert len(sequences) == 9
    np.testing.assert_allclose(np.sum(np.exp(-values)), 1.0, rtol=16 * epsilon)


def test_without_lengths_all_labels_and_all_times_count(backend, draw):
    y, labels = draw(2, 4, 3), np.asarray([[1, 2], [2, 2]], np.int32)
    lengths = {
        "label_lengths": np.full(2, 2, np.int32),
        "input_lengths": np.full(2, 4, np.int32),
    }
    expected = run(backend, y, labels)
    for target in ({"labels": labels}, {"labels": labels, **lengths}):
        for a, b in zip(run(backend, y, target), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_padding_has_no_effect(backend, draw):
    y, target = batch(draw)
    expected = run_each(backend, y, target)
    late = np.arange(5) >= target["input_lengths"][:, None]
    for filler in (2, -1, 99):
        other = np.where(late[:, :, None], np.nan, y)
        result = run_each(backend, other, batch(draw, filler=filler)[1])
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_array_equal(a, b)


IMPOSSIBLE = [(2, (1, 2, 1)), (2, (1, 1)), (1, (2, 1)), (0, (1,)), (4, (1, 1, 1))]


@pytest.mark.parametrize(
    ("options", "loss"), [({}, math.inf), ({"zero_infinity": True}, 0)]
)
def test_impossible_labels_have_an_infinite_loss_and_no_gradient(
    backend, draw, options, loss
):
    """Other rows of the batch are not affected."""
    n = len(IMPOSSIBLE)
    y, target = batch(draw, IMPOSSIBLE + ROWS[n:])
    values, dy = run_each(backend, y, target, **options)
    np.testing.assert_array_equal(values[:n], loss)
    np.testing.assert_array_equal(dy[:n], 0)
    possible, slopes = run_each(backend, y, batch(draw)[1])
    np.testing.assert_array_equal(values[n:], possible[n:])
    np.testing.assert_array_equal(dy[n:], slopes[n:])


def test_no_labels_at_no_time_have_a_loss_of_0(backend, draw):
    y, target = batch(draw)
    values, dy = run_each(backend, y, {name: 0 * leaf for name, leaf in target.items()})
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(dy, 0)


def test_a_weight_of_0_removes_an_infinite_loss(backend, draw, widest, epsilon):
    y, target = draw(3, 4, 3), padded([(1, 2), (1, 1, 1), (2,)])
    weights = np.asarray([0.5, 0.0, 2.0], widest)
    values, slopes = run_each(backend, y, target)
    value, dy = run(backend, y, target, weights)
    np.testing.assert_allclose(value, (values[0] + 4 * values[2]) / 5, rtol=8 * epsilon)
    np.testing.assert_allclose(dy[2], slopes[2] * 0.8, rtol=0, atol=8 * epsilon)
    np.testing.assert_array_equal(dy[1], 0)


def test_logits_may_be_extreme(backend):
    """Logits are ±1e4, and -inf for labels without a path."""
    y = np.full((3, 3, 3), -1e4, np.float32)
    y[:, [0, 1, 2], [1, 0, 2]] = 1e4
    y[1, :, 0] = -math.inf
    labels = np.asarray([[1, 2], [1, 2], [2, 1]], np.int32)
    values, dy = run_each(backend, y, labels)
    # the second is 1 or 2 at time 1, with probability 1/2 each; both give its labels
    np.testing.assert_allclose(values, [0, 0, 4e4], rtol=1e-6, atol=1e-6)
    assert np.all(np.isfinite(dy))
    np.testing.assert_allclose(np.sum(dy, axis=-1), 0, atol=1e-6)


def test_nan_in_logits_gives_nan_in_the_loss(backend, draw):
    y, target = batch(draw)
    y[0, 2, 1] = np.nan
    with np.errstate(invalid="ignore"):
        values, dy = run_each(backend, y, target)
    assert np.isnan(values[0])
    assert np.all(np.isnan(dy[0]))
    assert np.all(np.isfinite(values[1:]))
    assert np.all(np.isfinite(dy[1:]))


def test_a_long_sequence_of_float32_is_accurate(backend):
    """log p grows with time; in γ its rounding errors nearly cancel."""
    generator = np.random.default_rng(0)
    y = generator.standard_normal((2, 400, 6))
    labels = generator.integers(1, 6, (2, 40), dtype=np.int32)
    exact, exact_dy = ctc(y, labels, reduction="none")
    values, dy = run_each(backend, y.astype(np.float32), labels)
    np.testing.assert_allclose(values, exact, rtol=2e-6)
    np.testing.assert_allclose(dy, exact_dy, rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.sum(dy, axis=-1), 0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_labels_of_a_narrow_dtype_do_not_wrap_around(backend, draw, dtype):
    """Label 3 of 300: in 8 bits 259 is the same number."""
    y, labels = draw(1, 3, 300), np.asarray([[3, 4]])
    narrow, wide = (run(backend, y, labels.astype(d)) for d in (dtype, "int32"))
    for a, b in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradient_descent_learns_the_labels(backend, draw):
    """After steps of gradient descent on y, the best path gives the labels."""
    y, labels = draw(2, 8, 4), np.asarray([[1, 3, 3], [2, 1, 2]], np.int32)
    step = backend.jit(lambda y, labels: y - 2.0 * ctc(y, labels, reduction="sum")[1])
    y, target = backend.asarray((y, labels))
    for _ in range(60):
        y = step(y, target)
    best = np.argmax(backend.to_numpy(y), axis=-1)
    assert [spelled(path) for path in best.tolist()] == [(1, 3, 3), (2, 1, 2)]


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def ints(*shape):
    return np.ones(shape, np.int32)


REFUSED = [  # y, target, options, error, message
    (
        zeros(2, 3),
        ints(2, 1),
        {},
        ValueError,
        r"logits \(batch, time, classes\), got \(2, 3\)",
    ),
    (zeros(2, 0, 3), ints(2, 1), {}, ValueError, r"classes\), got \(2, 0, 3\)"),
    (
        zeros(2, 4, 3),
        ints(3, 1),
        {},
        ValueError,
        r"labels \(3, 1\) for logits \(2, 4, 3\)",
    ),
    (
        zeros(2, 4, 3),
        ints(2),
        {},
        ValueError,
        r"expected labels \(batch, length\), got \(2,\)",
    ),
    (
        zeros(2, 4, 3),
        zeros(2, 1),
        {},
        TypeError,
        "expected integer labels, got .*float32",
    ),
    (
        zeros(2, 4, 3),
        {"label": ints(2, 1)},
        {},
        ValueError,
        r"lengths, got \['label'\]",
    ),
    (
        zeros(2, 4, 3),
        {"labels": ints(2, 1), "label_lengths": ints(3)},
        {},
        ValueError,
        r"expected label_lengths \(2,\), got \(3,\)",
    ),
    (
        zeros(2, 4, 3),
        {"labels": ints(2, 1), "input_lengths": zeros(2)},
        {},
        TypeError,
        "expected integer input_lengths, got .*float32",
    ),
    (
        zeros(2, 4, 3),
        ints(2, 1),
        {"blank": 3},
        ValueError,
        "blank below 3 classes, got 3",
    ),
    (
        zeros(0, 4, 3),
        ints(0, 1),
        {},
        ValueError,
        r"examples, got losses of shape \(0,\)",
    ),
]


@pytest.mark.parametrize(("y", "target", "options", "error", "message"), REFUSED)
def test_wrong_shapes_dtypes_and_options_are_refused(
    backend, y, target, options, error, message
):
    with pytest.raises(error, match=message):
        compiled(backend, **options)(*backend.asarray((y, target)))


CHECKED = [  # target, options, message
    (
        [[1, 0]],
        {},
        r"from 0 to 3 and none of them the blank, 0, but label\[0, 1\] is 0",
    ),
    ([[1, 4]], {}, r"label\[0, 1\] is 4"),
    ([[1, -1]], {}, r"label\[0, 1\] is -1"),
    ([[1, 3]], {"blank": 3}, r"the blank, 3, but label\[0, 1\] is 3"),
    (
        {"labels": [[1, 2]], "label_lengths": [3]},
        {},
        r"label_lengths from 0 to 2, but \[0\] is 3",
    ),
    (
        {"labels": [[1, 2]], "label_lengths": [-1]},
        {},
        r"label_lengths from 0 to 2, but \[0\] is",
    ),
    (
        {"labels": [[1, 2]], "input_lengths": [6]},
        {},
        r"input_lengths from 0 to 5, but \[0\] is 6",
    ),
]


@pytest.mark.parametrize(("target", "options", "message"), CHECKED)
def test_the_check_on_the_host_refuses_wrong_labels_and_lengths(
    target, options, message
):
    check = check_of(functools.partial(ctc, **options))
    target = (
        nn.trees.tree_map(np.asarray, target) if isinstance(target, dict) else target
    )
    target = target if isinstance(target, dict) else np.asarray(target)
    with pytest.raises(ValueError, match=message):
        check(target, (5, 4))


def test_the_check_accepts_good_targets():
    check = check_of(ctc)
    check(
        {**padded([(1, 2), (3,), ()]), "input_lengths": np.asarray([5, 0, 2])}, (5, 4)
    )
    check(np.asarray([[3, 3]]), (5, 4))
    check_of(functools.partial(ctc, blank=3))(np.asarray([[0, 1]]), (5, 4))


@pytest.mark.parametrize("blank", [0, 4])
def test_pytorch_computes_the_same(backend, draw, epsilon, blank):
    """With unequal lengths and repeated labels; PyTorch's in float64."""
    torch = pytest.importorskip(
        "torch", reason="PyTorch, the oracle, is not installed here"
    )
    generator = np.random.default_rng(1)
    y = draw(8, 12, 5)
    labels = generator.integers(0, 4, (8, 5)) + (blank == 0)
    lengths, times = generator.integers(0, 6, 8), generator.integers(9, 13, 8)
    target = {"labels": labels, "label_lengths": lengths, "input_lengths": times}
    target = {name: leaf.astype(np.int32) for name, leaf in target.items()}
    values, dy = run_each(backend, y, target, blank=blank)
    theirs = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        theirs.log_softmax(-1).movedim(1, 0),
        *map(torch.tensor, (labels, times, lengths)),
        blank=blank,
        reduction="none",
    )
    expected.sum().backward()
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=32 * epsilon)
    np.testing.assert_allclose(dy, theirs.grad.numpy(), rtol=0, atol=64 * epsilon)
