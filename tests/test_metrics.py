"""One value per example, for people to read."""

import numpy as np
import pytest

from agnostic_nn import accuracy, binary_accuracy


def measure(backend, metric, y, target):
    """The values of `metric` on the host; they must have the dtype of `y`."""
    values = backend.to_numpy(backend.jit(metric)(backend.asarray(y), backend.asarray(target)))
    assert values.dtype == y.dtype
    return values


@pytest.mark.parametrize("lead", [(), (1,), (50,), (4, 5), (0,)], ids=str)
def test_accuracy_is_one_where_the_largest_output_is_at_the_label(backend, draw, lead):
    y = draw(*lead, 7)
    labels = np.random.default_rng(1).integers(0, 7, lead, dtype=np.int32)
    expected = np.asarray([max(range(7), key=row.__getitem__) for row in y.reshape(-1, 7)])
    expected = expected.reshape(lead) == labels
    np.testing.assert_array_equal(measure(backend, accuracy, y, np.asarray(labels)), expected)


def test_accuracy_takes_the_largest_of_a_distribution_for_the_label(backend, draw):
    y, target = draw(20, 3), np.abs(draw(20, 3))
    expected = np.argmax(y, axis=-1) == np.argmax(target, axis=-1)
    assert 0 < np.sum(expected) < 20
    np.testing.assert_array_equal(measure(backend, accuracy, y, target), expected)


def test_accuracy_takes_the_first_of_equal_outputs(backend, widest):
    y = np.zeros((3, 3), widest)
    labels = np.arange(3, dtype=np.int32)
    np.testing.assert_array_equal(measure(backend, accuracy, y, labels), [1, 0, 0])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_labels_of_a_narrow_dtype_are_not_mistaken_for_others(backend, widest, dtype):
    """Output 259 is largest: in 8 bits that would be 3."""
    y = np.zeros((2, 300), widest)
    y[:, 259] = 1.0
    np.testing.assert_array_equal(measure(backend, accuracy, y, np.asarray([3, 4], dtype)), [0, 0])


def test_binary_accuracy_compares_the_sides_of_zero_and_one_half(backend, widest):
    y = np.asarray([2.0, 2.0, -2.0, -2.0, 1e-30, 0.0, 0.0], widest)
    target = np.asarray([1.0, 0.0, 1.0, 0.0, 0.6, 0.0, 1.0], widest)
    values = measure(backend, binary_accuracy, y, target)
    np.testing.assert_array_equal(values, [1, 0, 0, 1, 1, 1, 0])


def test_binary_accuracy_keeps_the_shape(backend, draw):
    y, target = draw(4, 3, 2), np.abs(draw(4, 3, 2))
    values = measure(backend, binary_accuracy, y, target)
    np.testing.assert_array_equal(values, (y > 0) == (target > 0.5))
