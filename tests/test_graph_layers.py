"""Layers that only imported graphs have: parameters, constants, attention, `Split`."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core import random
from agnostic_nn.core.arrays import namespace
from agnostic_nn.interop.parameters import ConstantValue, ExpandBatch, ParameterValue
from agnostic_nn.interop.torch_layers import (
    ScaledDotProductAttention,
    Split,
    StopGradient,
)

HEADS = {"query": (2, 4, 3), "key": (2, 5, 3), "value": (2, 5, 6)}
MASK = (1, 4, 5)
LAYERS = {
    "parameter": (
        nn.Graph(
            p=(ParameterValue((3,)), "x"),
            expanded=(ExpandBatch(), {"x": "p", "like": "x"}),
            y=(nn.Multiply(), "expanded", "x"),
        ),
        (3,),
    ),
    "constant": (
        nn.Graph(
            c=(ConstantValue((3,)), "x"),
            expanded=(ExpandBatch(), {"x": "c", "like": "x"}),
            y=(nn.Add(), "expanded", "x"),
        ),
        (3,),
    ),
    "split": (
        nn.Graph(
            parts=(Split(2, (1, 3)), "x"),
            y=(nn.Concatenate(), "parts.1", "parts.0", "parts.1"),
        ),
        (2, 4),
    ),
    "attention": (ScaledDotProductAttention(), HEADS),
    "scaled": (ScaledDotProductAttention(scale=0.3), HEADS),
    "causal": (
        ScaledDotProductAttention(causal=True),
        {**HEADS, "key": (2, 4, 3), "value": (2, 4, 6)},
    ),
    "constant mask": (ScaledDotProductAttention(mask=MASK), HEADS),
    "bias": (ScaledDotProductAttention(scale=0.3), {**HEADS, "bias": (1, 4, 5)}),
    "constant bias": (ScaledDotProductAttention(bias=MASK), HEADS),
    "dropout": (ScaledDotProductAttention(dropout=0.3), HEADS),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_formulas(name, backend):
    layer, shape = LAYERS[name]
    nn.check(layer, shape=shape, backends=[backend])  # raises where they are not


def test_a_stopped_gradient_is_none():
    x = np.ones((2, 3))
    y, _, cache = StopGradient().forward({}, {}, x)
    assert y is x
    assert StopGradient().backward({}, cache, y) == (None, {})


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Split(1, (2, 3)), (6,), r"Split makes parts of \(2, 3\) along axis 1"),
        (
            ScaledDotProductAttention(),
            {**HEADS, "key": (2, 5, 4)},
            r"takes query \(batch, heads, t, d\)",
        ),
        (ScaledDotProductAttention(), {"query": (2, 4, 3)}, "takes query, key and"),
    ],
    ids=["parts", "widths", "names"],
)
def test_shapes_that_do_not_fit_are_refused(layer, shape, message):
    key = random.key(0, xp=namespace(np.zeros(())))
    with pytest.raises(ValueError, match=message):
        layer.init(key, shape, np.dtype("float32"))
