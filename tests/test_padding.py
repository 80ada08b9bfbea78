"""Padding copies the elements that NumPy's `pad` copies, and refuses too much of it."""

from itertools import product

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.ops import extend, extend_input

NAMES = {"replicate": "edge", "reflect": "reflect", "circular": "wrap"}  # NumPy's
MOST = {"replicate": lambda n: n + 4, "reflect": lambda n: n - 1, "circular": int}
each_mode = pytest.mark.parametrize("mode", NAMES)


def by_definition(x, dy, pads, mode):
    """Return y and dx from the positions in x of the elements of y."""
    y = np.pad(x, ((0, 0), *pads, (0, 0)), NAMES[mode])
    places = np.arange(np.prod(x.shape[1:])).reshape(1, *x.shape[1:])
    sources = np.pad(places, ((0, 0), *pads, (0, 0)), NAMES[mode]).ravel()
    dx = np.zeros((len(x), places.size))
    for row, drow in zip(dx, dy.reshape(len(dy), sources.size), strict=True):
        np.add.at(row, sources, drow)
    return y, dx.reshape(x.shape)


@each_mode
def test_each_amount_up_to_the_limit_equals_the_definition(backend, mode):
    """Sums of small integers are exact in float32 in any order."""
    generator = np.random.default_rng(0)
    for n in (1, 4):
        most = MOST[mode](n)
        amounts = sorted({0, n // 2, most})
        for low, high in product(amounts, repeat=2):
            pads = ((low, high),)
            x = generator.integers(-9, 10, (2, n, 3)).astype("float32")
            shape = (2, low + n + high, 3)
            dy = generator.integers(-9, 10, shape).astype("float32")
            there = backend.asarray((x, dy))
            y = backend.to_numpy(extend(there[0], pads, mode))
            dx = backend.to_numpy(extend_input(there[1], pads, mode))
            expected, dexpected = by_definition(x, dy, pads, mode)
            np.testing.assert_array_equal(y, expected)
            np.testing.assert_array_equal(dx, dexpected)
            assert y.dtype == dx.dtype == "float32"


@each_mode
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_three_axes_and_strided_inputs_equal_the_definition(backend, mode, rows):
    pads = ((2, 0), (1, 2), (0, 1))
    generator = np.random.default_rng(0)
    # every other element of larger arrays, with the axes in another order in memory
    x = generator.integers(-9, 10, (4, 8, 6, 10, rows)).astype("float32")
    dy = generator.integers(-9, 10, (4, 10, 12, 14, rows)).astype("float32")
    x, dy = (np.transpose(a[::2, ::2, ::2, ::2], (4, 3, 2, 1, 0)) for a in (x, dy))
    assert dy.shape[1:-1] == (x.shape[1] + 2, x.shape[2] + 3, x.shape[3] + 1)
    expected = by_definition(x, dy, pads, mode)
    layer = nn.Pad(pads, mode)
    there = backend.asarray((x, dy))
    y, _, cache = layer.forward({}, {}, there[0])
    dx, _ = layer.backward({}, cache, there[1])
    for actual, right in zip(backend.to_numpy((y, dx)), expected, strict=True):
        np.testing.assert_array_equal(actual, right)


@pytest.mark.parametrize("mode", ["replicate", "circular"])
def test_a_sum_of_float16_gradients_is_rounded_once(backend, mode):
    xp = backend.xp
    if not hasattr(xp, "float16"):
        pytest.skip("this library has no float16")
    dy = np.asarray([1.0, 2048.0, 1.0], "float16").reshape(1, 3, 1)
    dx = backend.to_numpy(extend_input(backend.asarray(dy), ((1, 1),), mode))
    # in float16 it stays at 2048, as 2048 + 1 is rounded to 2048
    assert dx.dtype == "float16"
    assert dx[0, 0, 0] == 2050.0


def test_a_constant_value_surrounds_x_and_has_no_gradient(backend):
    x = np.arange(6.0, dtype="float32").reshape(1, 2, 3, 1)
    layer = nn.Pad(((1, 0), (0, 2)), value=-2.5)
    there = backend.asarray(x)
    y, _, cache = layer.forward({}, {}, there)
    dx, _ = layer.backward({}, cache, y)
    sides = ((0, 0), (1, 0), (0, 2), (0, 0))
    expected = np.pad(x, sides, constant_values=-2.5)
    np.testing.assert_array_equal(backend.to_numpy(y), expected)
    np.testing.assert_array_equal(backend.to_numpy(dx), x)


REFUSED = [  # layer, shape of one example, message
    (nn.Pad(3, "reflect"), (3, 1), "at most 2 on an axis of length 3 .*, got 3"),
    (nn.Pad(((0, 4),), "circular"), (3, 1), "at most 3 on an axis of length 3"),
    (nn.Pad(1, "reflect"), (1, 1), "at most 0 on an axis of length 1"),
    (nn.Pad((1, 2), "reflect"), (2, 2, 1), "at most 1 .* length 2 .*, got 2"),
    (nn.Pad(1, "replicate"), (2, 0, 1), r"ends of \(2, 0\): a spatial axis is empty"),
    (nn.Pad(), (3,), r"Pad takes \(batch, \*space, channels\), got .*\(3,\)"),
    (nn.Pad((1, 1)), (3, 1), "expected padding for 1 axes"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), REFUSED, ids=str)
def test_more_than_a_mode_can_copy_is_refused_by_init_and_forward(
    backend, layer, shape, message
):
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    with pytest.raises(ValueError, match=message):
        layer.init(key, shape, backend.xp.float32)
    with pytest.raises(ValueError, match=message):
        layer.forward({}, {}, backend.asarray(np.zeros((2, *shape), "float32")))


INVALID = [  # arguments, error and message
    ({"mode": "edge"}, ValueError, "mode 'constant', 'replicate', .*, got 'edge'"),
    ({"padding": "same"}, TypeError, "padding to be numbers, got 'same'"),
    ({"padding": -1}, ValueError, "padding of at least 0, got -1"),
    ({"padding": ((1, 2, 3),)}, ValueError, r"for 2 sides, got \(1, 2, 3\)"),
    ({"value": float("nan")}, ValueError, "a finite value, got nan"),
    ({"value": "0"}, TypeError, "value to be a number"),
    (
        {"mode": "reflect", "value": 1.0},
        ValueError,
        "no value, as mode 'reflect' copies elements of x, got 1.0",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), INVALID, ids=str)
def test_invalid_options_of_pad_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.Pad(**arguments)
