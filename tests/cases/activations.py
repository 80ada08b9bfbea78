"""Functions of one number, and the few that learn or gate."""

import agnostic_nn as nn

from . import Case


def gated(activation):
    """PyTorch's own glu with another function of the second half."""

    def theirs(t, g):
        a, b = g.x.chunk(2, dim=-1)
        return a * getattr(t.nn.functional, activation)(b)

    return theirs


def prelu(t, g):
    x = g.x.movedim(-1, 1) if g.x.ndim > 2 else g.x  # its channels are axis 1
    y = t.nn.functional.prelu(x, g.params["slope"])
    return y.movedim(1, -1) if g.x.ndim > 2 else y


CASES = [
    Case(nn.SELU(), (5,), lambda t, g: t.nn.functional.selu(g.x)),
    Case(nn.CELU(), (5,), lambda t, g: t.nn.functional.celu(g.x), thorough=True),
    Case(nn.CELU(0.5), (2, 3), lambda t, g: t.nn.functional.celu(g.x, 0.5)),
    Case(nn.Mish(), (5,), lambda t, g: t.nn.functional.mish(g.x)),
    Case(nn.Softsign(), (5,), lambda t, g: t.nn.functional.softsign(g.x)),
    # the slope of PyTorch's own hardsigmoid is 1/6 in float32, whatever the dtype
    Case(nn.HardSigmoid(), (5,), lambda t, g: t.nn.functional.relu6(g.x + 3.0) / 6.0),
    Case(nn.HardSwish(), (5,), lambda t, g: t.nn.functional.hardswish(g.x)),
    Case(
        nn.HardTanh(), (5,), lambda t, g: t.nn.functional.hardtanh(g.x), thorough=True
    ),
    Case(
        nn.HardTanh(-0.5, 0.75),
        (2, 3),
        lambda t, g: t.nn.functional.hardtanh(g.x, -0.5, 0.75),
    ),
    Case(nn.ReLU6(), (5,), lambda t, g: t.nn.functional.relu6(g.x)),
    Case(
        nn.Threshold(0.3, -0.2),
        (5,),
        lambda t, g: t.nn.functional.threshold(g.x, 0.3, -0.2),
    ),
    Case(nn.PReLU(), (5,), prelu),
    Case(nn.PReLU(initial=0.0), (2, 3), prelu),
    Case(nn.GLU(), (6,), lambda t, g: t.nn.functional.glu(g.x)),
    Case(nn.GLU(), (3, 2), lambda t, g: t.nn.functional.glu(g.x), thorough=True),
    Case(nn.SwiGLU(), (2, 6), gated("silu")),
    Case(nn.GEGLU(), (6,), gated("gelu")),
]
