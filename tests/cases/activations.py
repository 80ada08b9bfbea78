"""Activations: functions of one number, and the few that gate, learn or normalize."""

import agnostic_nn as nn

from . import Case


def function(name, *fields):
    """Return the twin: a function of torch.nn.functional, with fields of the layer."""

    def theirs(t, g):
        options = (getattr(g.layer, field) for field in fields)
        return getattr(t.nn.functional, name)(g.x, *options)

    return theirs


def gelu(t, g):
    kind = "tanh" if g.layer.approximate else "none"
    return t.nn.functional.gelu(g.x, approximate=kind)


def gated(activation):
    """Return PyTorch's glu with another function of the second half."""

    def theirs(t, g):
        a, b = g.x.chunk(2, dim=-1)
        return a * getattr(t.nn.functional, activation)(b)

    return theirs


def softplus(t, g):
    """PyTorch needs a threshold; log(1 + exp(50)) is 50 in float64."""
    threshold = 50.0 if g.layer.threshold is None else g.layer.threshold
    return t.nn.functional.softplus(g.x, g.layer.beta, threshold)


def selu(t, g):
    f = t.nn.functional
    return g.layer.scale * (f.relu(g.x) + g.layer.alpha * t.expm1(-f.relu(-g.x)))


def prelu(t, g):
    x = g.x.movedim(-1, 1) if g.x.ndim > 2 else g.x  # its channels are axis 1
    y = t.nn.functional.prelu(x, g.params["slope"])
    return y.movedim(1, -1) if g.x.ndim > 2 else y


# on both sides of 0, close to it and far from it
POINTS = [-9.0, -5.5, -3.0, -1.75, -1.0, -0.5, -0.125, -(2.0**-20)]
POINTS += [2.0**-20, 0.25, 1.0, 2.5, 6.0]

TWINS = {
    nn.CELU: function("celu", "alpha"),
    nn.ELU: function("elu", "alpha"),
    nn.GEGLU: gated("gelu"),
    nn.GELU: gelu,
    nn.GLU: function("glu"),
    nn.HardShrink: function("hardshrink", "threshold"),
    # the slope of PyTorch's own hardsigmoid is 1/6 in float32, whatever the dtype
    nn.HardSigmoid: lambda t, g: (g.layer.alpha * g.x + g.layer.beta).clamp(0.0, 1.0),
    nn.HardSwish: function("hardswish"),
    nn.HardTanh: function("hardtanh", "low", "high"),
    nn.LeakyReLU: function("leaky_relu", "negative_slope"),
    nn.LogSigmoid: function("logsigmoid"),
    nn.LogSoftmax: function("log_softmax", "axis"),
    nn.Mish: function("mish"),
    nn.PReLU: prelu,
    nn.ReLU: function("relu"),
    nn.ReLU6: function("relu6"),
    nn.SELU: selu,
    nn.SiLU: lambda t, g: g.x * t.sigmoid(g.layer.beta * g.x),
    nn.Sigmoid: function("sigmoid"),
    nn.SoftShrink: function("softshrink", "threshold"),
    nn.Softmax: function("softmax", "axis"),
    nn.Softmin: function("softmin", "axis"),
    nn.Softplus: softplus,
    nn.Softsign: function("softsign"),
    nn.SwiGLU: gated("silu"),
    nn.Tanh: function("tanh"),
    nn.TanhShrink: function("tanhshrink"),
    nn.Threshold: function("threshold", "threshold", "replacement"),
}

LIMITS = {nn.HardTanh: {"thorough": True}, nn.Tanh: {"thorough": True}}

CASES = [
    Case(nn.CELU(), (5,), thorough=True),
    Case(nn.ELU(), (5,)),
    Case(nn.GELU(approximate=True), (5,)),
    Case(nn.GLU(), (3, 2), thorough=True),
    Case(nn.HardShrink(0.0), (3,), thorough=True),
    Case(nn.HardSigmoid(0.2), (5,)),
    Case(nn.HardSigmoid(0.75, -0.25), (7, 3), thorough=True),
    Case(nn.HardTanh(-0.5, 0.75), (2, 3)),
    Case(nn.LeakyReLU(0.3), (2, 3)),
    Case(nn.LogSoftmax(axis=-2), (3, 2)),
    Case(nn.PReLU(initial=0.0), (2, 3)),
    Case(nn.PReLU(shared=True), (2, 3, 5)),
    Case(nn.PReLU(shared=True), ()),
    Case(nn.SELU(), (300,), lambda t, g: t.nn.functional.selu(g.x), thorough=True),
    Case(nn.SELU(0.5, 2.0), (5,), thorough=True),
    Case(nn.SiLU(), (3,), lambda t, g: t.nn.functional.silu(g.x), thorough=True),
    Case(nn.SiLU(1.75), (2, 3)),
    Case(nn.SoftShrink(0.125), (7, 3), thorough=True),
    Case(nn.Softmax(axis=1), (3, 2)),
    Case(nn.Softmin(axis=1), (3, 2)),
    Case(nn.Softplus(3.0), (5,)),
    Case(nn.Softplus(0.5, threshold=0.25), (7,)),
    Case(nn.TanhShrink(), (300,), thorough=True),
    Case(nn.Tanh(), ()),
]
