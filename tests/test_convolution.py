"""Convolutions equal their definition, and wrong geometries are refused."""

from itertools import product

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves
from agnostic_nn.ops import convolve, convolve_input, convolve_weight

versions = pytest.mark.parametrize("version", ["native", "standard"])

# batch, lengths, window, stride, padding, dilation, groups, fan_in, width
GEOMETRIES = [
    (2, (7,), (3,), (2,), ((1, 2),), (2,), 2, 3, 4),
    (
        1,
        (4,),
        (2,),
        (3,),
        ((0, 0),),
        (1,),
        1,
        1,
        1,
    ),  # no window contains the last number
    (
        2,
        (3,),
        (2,),
        (3,),
        ((4, 5),),
        (1,),
        1,
        2,
        3,
    ),  # some windows contain only padding
    (2, (3,), (2,), (1,), ((4, 5),), (1,), 1, 2, 3),
    (2, (1,), (1,), (5,), ((3, 0),), (1,), 1, 2, 2),  # all windows do
    (0, (5,), (3,), (1,), ((1, 1),), (1,), 2, 1, 4),
    (2, (5, 7), (3, 2), (2, 1), ((1, 1), (0, 1)), (1, 3), 1, 3, 2),
    (1, (6, 5), (3, 3), (1, 2), ((1, 2), (0, 0)), (2, 1), 3, 1, 6),
    (0, (4, 5), (2, 3), (1, 1), ((0, 0), (1, 1)), (1, 1), 1, 2, 3),
    # larger than the cache of a processor
    (40, (20, 20), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, 8, 2),
    (2, (3, 4, 5), (2, 1, 3), (1, 2, 2), ((0, 1), (0, 0), (2, 1)), (2, 1, 1), 2, 2, 4),
]


def by_hand(x, weight, dy, stride, padding, dilation, groups):
    """Return y, dx and dW, from one output o and window position k at a time."""
    y, dx, dweight = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(weight)
    fan_in, width = weight.shape[-2], weight.shape[-1] // groups
    spaces = [range(n) for n in (*dy.shape[1:-1], *weight.shape[:-2])]
    rank = len(stride)
    for position in product(*spaces):
        o, k = position[:rank], position[rank:]
        axes = zip(o, k, stride, dilation, padding, strict=True)
        i = tuple(o * s + k * d - low for o, k, s, d, (low, _) in axes)
        if any(not 0 <= j < n for j, n in zip(i, x.shape[1:-1], strict=True)):
            continue
        for group in range(groups):
            inner = slice(group * fan_in, (group + 1) * fan_in)
            outer = slice(group * width, (group + 1) * width)
            row, drow = x[(slice(None), *i, inner)], dy[(slice(None), *o, outer)]
            matrix = weight[(*k, slice(None), outer)]
            y[(slice(None), *o, outer)] += row @ matrix
            dx[(slice(None), *i, inner)] += drow @ matrix.T
            dweight[(*k, slice(None), outer)] += row.T @ drow
    return y, dx, dweight


@versions
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_and_its_two_adjoints_equal_their_definitions(
    backend, version, geometry
):
    """The sums of small integers are exact in float32 in any order."""
    batch, lengths, window, stride, padding, dilation, groups, fan_in, width = geometry
    out = [
        (n + low + high - d * (k - 1) - 1) // s + 1
        for n, (low, high), k, s, d in zip(
            lengths, padding, window, stride, dilation, strict=True
        )
    ]
    generator = np.random.default_rng(0)
    shapes = (
        (batch, *lengths, groups * fan_in),
        (*window, fan_in, width),
        (batch, *out, width),
    )
    *arrays, bias = (
        generator.integers(-4, 5, shape).astype("float32")
        for shape in (*shapes, (width,))
    )
    options = stride, padding, dilation, groups
    forward, back, correlate = (
        function if version == "native" else function.dispatch(object)
        for function in (convolve, convolve_input, convolve_weight)
    )

    def everything(x, weight, dy, bias):
        return (
            forward(x, weight, *options),
            forward(x, weight, *options, bias=bias),
            back(dy, weight, lengths, *options),
            correlate(x, dy, window, *options),
        )

    result = backend.to_numpy(
        backend.jit(everything)(*backend.asarray((*arrays, bias)))
    )
    y, dx, dweight = by_hand(*arrays, *options)
    for actual, expected in zip(result, (y, y + bias, dx, dweight), strict=True):
        assert actual.dtype == "float32"
        np.testing.assert_array_equal(actual, expected)


def initialized(backend, layer, shape, dtype="float32"):
    """Return `params` and the shape of y."""
    key = nn.random.key(0, xp=backend.xp, device=backend.device)
    params, _, out = layer.init(key, shape, getattr(backend.xp, dtype))
    return params, out


def test_a_convolution_with_a_window_of_1_is_a_dense_layer(
    backend, draw, widest, epsilon
):
    x = backend.asarray(draw(2, 5, 3))
    conv, dense = nn.Conv1D(4, 1), nn.Dense(4)
    params, _ = initialized(backend, conv, (5, 3), widest)
    flat = {**params, "weight": backend.xp.reshape(params["weight"], (3, 4))}
    result, expected = (
        backend.to_numpy(layer.forward(p, {}, x)[0])
        for layer, p in ((conv, params), (dense, flat))
    )
    np.testing.assert_allclose(result, expected, rtol=0, atol=8 * epsilon)


@pytest.mark.parametrize("padding", ["valid", "same", ((2, 1), (0, 1))], ids=str)
def test_the_forward_of_a_transposed_convolution_is_the_backward_of_a_convolution(
    backend, draw, widest, epsilon, padding
):
    options = {"stride": (2, 3), "padding": padding, "groups": 2, "bias": False}
    conv, back = (
        nn.Conv2D(4, (3, 2), **options),
        nn.ConvTranspose2D(2, (3, 2), **options),
    )
    params, shape = initialized(backend, back, (3, 2, 4), widest)
    x, dy = backend.asarray((draw(2, *shape), draw(2, 3, 2, 4)))
    assert (
        params["weight"].shape == initialized(backend, conv, shape)[0]["weight"].shape
    )
    y, _, cache = conv.forward(params, {}, x)
    assert y.shape == dy.shape
    dx, _ = conv.backward(params, cache, dy)
    result, expected = backend.to_numpy((back.forward(params, {}, dy)[0], dx))
    np.testing.assert_allclose(result, expected, rtol=0, atol=32 * epsilon)


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_a_padding_mode_equals_pad_before_a_convolution_without_padding(
    backend, draw, mode
):
    pads = ((2, 1), (0, 3))
    options = {"stride": (2, 1), "dilation": (1, 2), "groups": 2}
    conv = nn.Conv2D(4, (3, 2), padding=pads, padding_mode=mode, **options)
    pad, plain = nn.Pad(pads, mode), nn.Conv2D(4, (3, 2), **options)
    params, shape = initialized(backend, conv, (4, 5, 2))
    assert shape == (3, 6, 4)
    x, dy = backend.asarray(
        (draw(2, 4, 5, 2).astype("float32"), draw(2, *shape).astype("float32"))
    )
    y, _, cache = conv.forward(params, {}, x)
    wide, _, pad_cache = pad.forward({}, {}, x)
    expected, _, plain_cache = plain.forward(params, {}, wide)
    dwide, grads = plain.backward(params, plain_cache, dy)
    dx, _ = pad.backward({}, pad_cache, dwide)
    result = backend.to_numpy((y, *conv.backward(params, cache, dy)))
    expected = backend.to_numpy((expected, dx, grads))
    for ours, theirs in zip(leaves(result), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def out_length(layer, length):
    """Return the length of y for one channel of `length` numbers."""
    return initialized(nn.backend("numpy"), layer, (length, 1))[1][0]


@pytest.mark.parametrize("padding", ["valid", "same", 1, ((2, 1),)], ids=str)
def test_a_convolution_undoes_the_lengths_of_a_transposed_convolution(padding):
    for n, window, stride, dilation in product((1, 2, 5), (1, 2, 4), (1, 2, 3), (1, 2)):
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        convolution, lengths = nn.Conv1D(1, window, **options), []
        for more in range(1 if padding == "same" else stride):
            layer = nn.ConvTranspose1D(1, window, **options, output_padding=more)
            try:
                lengths.append(out_length(layer, n))
            except ValueError as refusal:
                assert "leaves nothing" in str(refusal)  # noqa: PT017
                continue
            assert out_length(convolution, lengths[-1]) == n
        if padding == "same":
            assert lengths == [n * stride]
        elif lengths:
            assert out_length(convolution, lengths[-1] + 1) == n + 1


def test_each_group_is_initialized_with_the_fans_of_a_separate_layer(backend):
    shapes = []

    def initializer(key, shape, dtype):
        shapes.append(shape)
        return nn.glorot_uniform(key, shape, dtype)

    for kind, weight_shape in (
        (nn.Conv2D, (3, 2, 2, 6)),
        (nn.ConvTranspose2D, (3, 2, 3, 4)),
    ):
        shapes.clear()
        layer = kind(6, (3, 2), groups=2, initializer=initializer)
        weight = backend.to_numpy(initialized(backend, layer, (5, 5, 4))[0]["weight"])
        assert shapes == [(3, 2, 2, 3)] * 2
        assert weight.shape == weight_shape
        first, second = np.split(weight, 2, axis=-1)
        assert not np.any(first == second)


PLAIN = {"width": 4, "window": 3}
REFUSED = [  # options of Conv2D, or of ConvTranspose2D with output_padding
    ({"width": 0}, ValueError, "width of at least 1, got 0"),
    ({"window": 0}, ValueError, "window of at least 1, got 0"),
    ({"window": (3,)}, ValueError, r"window for 2 axes, got \(3,\)"),
    ({"window": 2.0}, TypeError, "window to be an integer or 2 of them, got 2.0"),
    ({"stride": (1, 0)}, ValueError, r"stride of at least 1, got \(1, 0\)"),
    ({"stride": True}, TypeError, "stride to be an integer or 2 of them, got True"),
    ({"dilation": (1, 1, 1)}, ValueError, "dilation for 2 axes"),
    ({"padding": "full"}, ValueError, "'same', 'valid' or numbers, got 'full'"),
    ({"padding": (1, 2, 3)}, ValueError, r"padding for 2 axes, got \(1, 2, 3\)"),
    ({"padding": ((1, 2, 3), 0)}, ValueError, r"padding for 2 sides, got \(1, 2, 3\)"),
    ({"padding": -1}, ValueError, "padding of at least 0, got -1"),
    ({"padding": ("same", 1)}, TypeError, "got 'same'"),
    ({"padding_mode": "edge"}, ValueError, "padding_mode 'zeros', .*, got 'edge'"),
    ({"groups": 0}, ValueError, "groups of at least 1, got 0"),
    ({"groups": 3}, ValueError, "a width that 3 groups divide, got 4"),
    ({"output_padding": 1}, ValueError, r"below the stride \(1, 1\), got \(1, 1\)"),
    (
        {"output_padding": 1, "stride": 2, "padding": "same"},
        ValueError,
        "no output_padding, as 'same' fixes the length",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED, ids=str)
def test_invalid_options_are_refused_by_the_constructor(arguments, error, message):
    kind = nn.ConvTranspose2D if "output_padding" in arguments else nn.Conv2D
    with pytest.raises(error, match=message):
        kind(**{**PLAIN, **arguments})


SHAPES = [  # layer, shape of one example, complaint
    (nn.Conv2D(4, 3), (5, 5), r"Conv2D takes 4 axes, \(batch, \*space"),
    (nn.Conv1D(4, 3, groups=2), (5, 3), "channels that 2 groups divide, got 3"),
    (
        nn.Conv2D(4, 3),
        (5, 2, 1),
        r"over \(3, 3\) do not fit \(5, 2\) padded by \(\(0, 0\)",
    ),
    (nn.Conv1D(4, 3, dilation=3, padding=1), (4, 1), r"over \(7,\) do not fit \(4,\)"),
    (
        nn.Conv2D(4, 3, padding=((0, 3), 0), padding_mode="reflect"),
        (3, 4, 1),
        r"padding of at most 2 on an axis of length 3 with mode 'reflect', got 3",
    ),
    (
        nn.Conv1D(4, 3, padding=3, padding_mode="circular"),
        (2, 1),
        r"padding of at most 2 on an axis of length 2 with mode 'circular', got 3",
    ),
    (nn.ConvTranspose1D(4, 3, padding=2), (2, 1), r"leaves nothing of \(2,\): \(0,\)"),
]


@pytest.mark.parametrize(("layer", "shape", "complaint"), SHAPES, ids=str)
def test_init_refuses_wrong_shapes(backend, layer, shape, complaint):
    with pytest.raises(ValueError, match=complaint):
        initialized(backend, layer, shape)


@pytest.mark.parametrize("kind", [nn.Conv2D, nn.ConvTranspose2D])
def test_forward_refuses_shapes_other_than_those_of_init(backend, kind):
    layer = kind(4, 3, padding=3 if kind is nn.ConvTranspose2D else 0, groups=2)
    params, _ = initialized(backend, layer, (5, 6, 2))
    name = kind.__name__
    for shape, complaint in [
        ((1, 5, 6, 4), rf"{name} takes 4 axes, .*, 2\), got \(1, 5, 6, 4\)"),
        ((5, 6, 2), rf"{name} takes 4 axes, .*, 2\), got \(5, 6, 2\)"),
        ((1, 2, 2, 2), r"do not fit|leaves nothing"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            layer.forward(params, {}, backend.asarray(np.zeros(shape, "float32")))
    if backend.has_float64:
        with pytest.raises(ValueError, match=rf"{name} holds .*float32, got .*float64"):
            layer.forward(params, {}, backend.asarray(np.zeros((1, 5, 6, 2))))


def test_short_and_long_forms_of_options_are_equal():
    short = nn.Conv2D(4, 3, padding=1)
    assert short == nn.Conv2D(
        4, [3, 3], stride=(1, 1), padding=[[1, 1], 1], dilation=[1, 1]
    )
    assert hash(short) == hash(nn.Conv2D(4, (3, 3), padding=((1, 1), (1, 1))))
    assert short.padding == ((1, 1), (1, 1))
