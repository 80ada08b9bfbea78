"""What constructors and calls refuse: whatever makes no sense, at once and in plain words."""

import inspect

import pytest

import agnostic_nn as nn
from agnostic_nn import blocks, initializers, layers, losses, optimizers, schedules
from agnostic_nn.training import callbacks

MODULES = (layers, blocks, losses, optimizers, schedules, initializers, callbacks)
# contracts, and the functions that are not constructors
CONTRACTS = {"Layer", "Optimizer", "Rule", "Callback", "Elementwise", "Loss", "Initializer"}
CLASSES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if isinstance(getattr(module, name), type) and name not in CONTRACTS
}


def positional(function):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind in kinds]


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_constructors_take_at_most_two_arguments_by_position(kind):
    assert len(positional(kind)) <= 2


@pytest.mark.parametrize("name", losses.__all__)
def test_losses_take_their_options_by_name(name):
    if name not in ("Loss", "Losses"):
        assert positional(getattr(losses, name))[2:] == ["weights"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: nn.Dense(32, "relu"),
        lambda: nn.Dense(4, nn.Constant(7.0)),
        lambda: nn.Conv2D(3, 16, 3),  # PyTorch's order: channels, width, window
        lambda: nn.BatchNorm(64),
        lambda: nn.LayerNorm(64),
        lambda: nn.GELU("none"),
        lambda: nn.PReLU(8),
        lambda: nn.LSTM(10, 20),
        lambda: nn.MultiHeadAttention(64, 8),
        lambda: nn.Flatten(1),
        lambda: nn.ReLU6(7.0),
        lambda: nn.SGD(0.1, 0.9),
        lambda: nn.Adam(1e-3, 0.9),
        lambda: nn.schedules.OneCycle(0.1, 100, 0.3),
        lambda: nn.Checkpoint("model.safetensors", 5),
    ],
)
def test_options_by_position_are_refused(wrong):
    with pytest.raises(TypeError, match="positional argument"):
        wrong()


def test_what_callers_write_by_position_means_what_it_says():
    assert nn.EarlyStopping(5).patience == 5
    assert nn.ReduceOnPlateau(3).patience == 3
    assert nn.Embedding(1000, 64).width == 64
    assert nn.MaxPool2D(2, 1).stride == (1, 1)
    assert nn.AveragePool1D(3, 2).stride == (2,)
    assert nn.L2(nn.SGD(), 0.1).penalty == 0.1


@pytest.mark.parametrize(
    "value",
    [
        nn.Dense(3, bias=False),
        nn.Conv2D(4, 3, padding="same"),
        nn.ReLU6(),
        nn.HardTanh(-2.0, 3.0),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.25), nn.GELU(approximate=True)),
        nn.LSTM(3, bidirectional=True),
        nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), 8),
        nn.EarlyStopping(3, monitor="loss"),
        nn.ReduceOnPlateau(3, factor=0.5),
        nn.Checkpoint("a.safetensors", every=2),
        nn.AdamW(1e-3, weight_decay=0.1),
        nn.Parts((("bias", nn.SGD(0.1)),), rest=nn.Muon(0.1)),
        nn.Adam(schedules.OneCycle(0.1, 50, final=0.001)),
        nn.Adam(schedules.Linear(0.1, 0.0, steps=50)),
        initializers.he_normal,
        nn.Losses(a=losses.huber, b=losses.hinge, weights={"b": 2.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_prints_can_be_pasted(value):
    names = vars(schedules) | {name: getattr(nn, name) for name in nn.__all__}
    assert eval(repr(value), names) == value
