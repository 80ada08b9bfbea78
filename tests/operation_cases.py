"""Cases of the operations of imported graphs: for their gradients, and for CuPy."""

from functools import partial

import numpy as np

import agnostic_nn as nn
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for
from agnostic_nn.interop import operations as op


def between(low, high, generator, shape):
    """Draw x between two numbers, for functions that are not defined everywhere."""
    draw = partial(generator.uniform, low, high)
    return nn.trees.tree_map(np.asarray, _shapes(draw, shape))


def _shapes(draw, shape):
    if isinstance(shape, dict):
        return {name: _shapes(draw, part) for name, part in shape.items()}
    if all(isinstance(n, int) for n in shape):
        return draw(shape)
    return tuple(_shapes(draw, part) for part in shape)


def indices(generator, shape):
    """Draw x, and indices of its axis 1, some of them equal."""
    n = shape["x"][1]
    return {
        "x": generator.standard_normal(shape["x"]),
        "indices": generator.integers(0, n, shape["indices"]),
    }


positive = partial(between, 0.3, 2.0)
inside = partial(between, -0.8, 0.8)
above_one = partial(between, 1.2, 3.0)
PAIR = ((3, 4), (3, 4))
SPREAD = ((3, 1), (1, 4))

# layer, shape, how to draw x (None: normal draws)
CASES = [
    *((layer(), (5,), None) for layer in (op.Exp, op.ExpMinusOne, op.Negate)),
    *((layer(), (5,), None) for layer in (op.Absolute, op.Square, op.Sine, op.Cosine)),
    *((layer(), (5,), None) for layer in (op.ArcTangent, op.HyperbolicSine)),
    *((layer(), (5,), None) for layer in (op.HyperbolicCosine, op.ErrorFunction)),
    (op.InverseHyperbolicSine(), (5,), None),
    *((layer(), (5,), None) for layer in (op.Floor, op.Ceiling, op.Round, op.Sign)),
    *((layer(), (5,), positive) for layer in (op.Log, op.LogOnePlus, op.SquareRoot)),
    *((layer(), (5,), positive) for layer in (op.Reciprocal, op.ReciprocalSquareRoot)),
    *((layer(), (5,), inside) for layer in (op.Tangent, op.ArcSine, op.ArcCosine)),
    (op.InverseHyperbolicTangent(), (5,), inside),
    (op.InverseHyperbolicCosine(), (5,), above_one),
    (op.Clip(-0.5, 0.5), (5,), None),
    (op.Clip(high=0.2), (5,), None),
    (op.Shrink(0.4, 0.1), (5,), None),
    *((layer(), PAIR, None) for layer in (op.BroadcastAdd, op.BroadcastSubtract)),
    *((layer(), SPREAD, None) for layer in (op.BroadcastMultiply, op.Maximum)),
    (op.Minimum(), SPREAD, None),
    (op.BroadcastSubtract(), SPREAD, None),
    (op.BroadcastDivide(), SPREAD, positive),
    (op.Power(), SPREAD, positive),
    (op.Remainder(), PAIR, positive),
    (op.BroadcastAdd((4,), trainable=True), (3, 4), None),
    (op.BroadcastMultiply((3, 1), trainable=True), (3, 4), None),
    (op.BroadcastSubtract((), left=True, trainable=True), (3, 4), None),
    (op.BroadcastDivide((2, 4), left=True, trainable=True), (1, 4), positive),
    (op.Power((1,)), (3,), None),
    (op.MatrixMultiply(), ((2, 3, 4), (2, 4, 5)), None),
    (op.MatrixMultiply(), ((1, 3, 4), (2, 4, 5)), None),
    (op.MatrixMultiply((4, 2), trainable=True), (3, 4), None),
    (op.MatrixMultiply((2, 5, 3), left=True, trainable=True), (1, 3, 4), None),
    *((layer((1,)), (3, 4), None) for layer in (op.ReduceSum, op.ReduceMax)),
    *((layer((1, 2)), (3, 4), None) for layer in (op.ReduceMean, op.ReduceMin)),
    *((layer((2,), keepdims=True), (3, 4), None) for layer in (op.ReduceL1,)),
    *((layer((2,)), (3, 4), None) for layer in (op.ReduceL2, op.ReduceSumSquare)),
    (op.ReduceLogSumExp((1,), keepdims=True), (3, 4), None),
    (op.ReduceProduct((2,)), (3, 4), None),
    (op.Variance((1,), correction=1), (3, 4), None),
    (op.CumulativeSum(1), (4, 2), None),
    (op.CumulativeSum(-1, exclusive=True, reverse=True), (4, 2), None),
    (op.Slice(((1, 1, 3, 2), (2, 3, 2, -3))), (7, 5), None),
    (op.Slice(((2, 0, 1, 1),)), (2, 5), None),
    (op.Take(2, 3), (2, 5), None),
    (op.TakeAlongAxis(1), {"x": (4, 2), "indices": (3, 2)}, indices),
    (op.BroadcastTo((3, 4)), (1, 4), None),
    (op.Tile((2, 3)), (2, 2), None),
    (op.Where(), {"condition": (3, 1), "a": (3, 4), "b": (1, 4)}, None),
    (op.Where(b=()), {"condition": (3, 4), "a": (3, 4)}, None),
]
# operations without a gradient, for x of shape (2, 3, 4)
WITHOUT_GRADIENT = [
    *(op.ArgMax(1), op.ArgMax(1, smallest=True), op.LogicalNot()),
    *(op.IsSpecial("nan"), op.IsSpecial("infinite")),
]


def run_all(key):
    """Compute all operations and their gradients, in float32 on NumPy."""
    generator = np.random.default_rng(0)
    for layer, shape, draw in [
        *CASES,
        *((layer, (3, 4), None) for layer in WITHOUT_GRADIENT),
    ]:
        size = batched(shape, 2)
        x = draw_for(layer, generator, size) if draw is None else draw(generator, size)
        x = nn.trees.tree_map(_single, x)
        params, state, _ = layer.init(key, shape, np.float32)
        y, _, cache = layer.forward(params, state, x, train=True)
        layer.backward(params, cache, np.ones_like(y))


def _single(array):
    kind = array.dtype.kind
    return array.astype({"f": np.float32, "i": np.int32}.get(kind, array.dtype))
