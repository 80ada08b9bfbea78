"""Layers, optimizers and losses as JSON data, and back; only those of this library."""

import json
from functools import partial

import pytest
from cases import layer_cases, named
from cases.optimizers import OPTIMIZERS

import agnostic_nn as nn
from agnostic_nn import schedules
from agnostic_nn.training.config import describe, rebuild


def through_json(thing):
    return rebuild(json.loads(json.dumps(describe(thing))))


def is_custom(layer):
    """Return whether a layer is or contains one that only tests define."""
    is_of_tests = type(layer).__module__.startswith(
        ("cases", "agnostic_nn.diagnostics.examples")
    )
    return is_of_tests or "Lambda(" in repr(layer)


LAYERS = list(dict.fromkeys(case.layer for case in layer_cases()))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_layer_of_the_library_can_be_described_and_rebuilt(layer):
    if is_custom(layer):
        with pytest.raises(ValueError, match="which agnostic_nn does not define"):
            through_json(layer)
        return
    rebuilt = through_json(layer)
    assert rebuilt == layer
    assert repr(rebuilt) == repr(layer)
    assert hash(rebuilt) == hash(layer)


@pytest.mark.parametrize("optimizer", [row.optimizer for row in OPTIMIZERS], ids=str)
def test_every_optimizer_can_be_described_and_rebuilt(optimizer):
    assert through_json(optimizer) == optimizer


VALUES = [
    nn.Parts(
        (("0", nn.Fixed()), ("bias", nn.SGD(0.1))),
        rest=nn.Average(nn.Scaled(nn.AdamW())),
    ),
    schedules.Piecewise((0.1, schedules.Times(schedules.Cosine(1.0, 9), 0.5)), (7,)),
    schedules.Warmup(schedules.Linear(1.0, 0.0, steps=9), 3),
    nn.Losses(label=nn.softmax_cross_entropy, box=nn.huber, weights={"box": 2.0}),
    nn.Losses(
        a=partial(
            nn.softmax_cross_entropy, class_weights=(1.0, 2.0), label_smoothing=0.1
        ),
        b=nn.Losses(c=nn.mean_squared_error),
    ),
    nn.TruncatedNormal(0.02),
    (),
    (1, (2.5, "x", None), True),
    {"a": (1, {"b": nn.ReLU()})},
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_nested_values_can_be_described_and_rebuilt(value):
    assert through_json(value) == value


def mean_squared_error(y, target, weights=None):
    """A custom loss with the name of a library loss."""


class ReLU(nn.Tanh):
    """A custom layer with the name of a library layer."""


@pytest.mark.parametrize(
    "thing",
    [
        mean_squared_error,
        partial(mean_squared_error, weights=None),
        ReLU(),
        nn.Sequential(nn.Dense(3), ReLU()),
        nn.Graph(a=(nn.Dense(3), "x"), b=(nn.Shared("a", ReLU()), "a")),
        nn.Lambda(lambda x: x),
        partial(nn.huber, 1.0),
        object(),
    ],
    ids=named,
)
def test_custom_classes_and_functions_are_not_rebuilt_even_under_a_library_name(thing):
    with pytest.raises(ValueError, match="which agnostic_nn does not define"):
        through_json(thing)


GRAPH = {"type": "Graph", "nodes": [["a", [{"type": "Tanh"}, "x"]]], "outputs": "a"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GRAPH | {"outputs": "b"}, "outputs name 'b'"),
        (GRAPH | {"nodes": [["a", [{"type": "Tanh"}]]]}, "does not fit this version"),
        (
            GRAPH | {"nodes": [["outputs", [{"type": "Tanh"}, "x"]]]},
            "does not fit this version",
        ),
        (
            GRAPH | {"nodes": [["a", [{"type": "Popen"}, "x"]]]},
            "'Popen', which agnostic_nn",
        ),
        (
            {"type": "Repeat", "layer": {"type": "Tanh"}, "count": 0},
            "count of at least 1",
        ),
        ({"type": "Freeze", "layer": 3}, "does not fit this version"),
        (
            {"partial": {"function": "system"}, "command": "ls"},
            "'system', which agnostic_nn",
        ),
    ],
    ids=str,
)
def test_a_modified_description_is_refused(data, message):
    assert rebuild(GRAPH) == nn.Graph(a=(nn.Tanh(), "x"))
    with pytest.raises(ValueError, match=message):
        rebuild(data)


def test_a_graph_with_shared_layers_is_saved_and_loaded_again(backend, tmp_path):
    model = nn.Graph(
        e=(nn.Embedding(7, 4), "x"),
        deep=(
            nn.Repeat(nn.Recompute(nn.Residual(nn.Dense(4), nn.Dropout(0.2))), 2),
            "e",
        ),
        held=(nn.Freeze(nn.Dense(4)), "deep"),
        y=(nn.Shared("e", nn.Unembedding(7)), "held"),
    )
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, nn.Adam(), backend=backend, shape=(3,)
    )
    ids = [[1, 2, 3], [6, 5, 4], [0, 0, 1]]
    trainer.fit(ids, ids, epochs=2, batch_size=2, verbose=0)
    trainer.save(tmp_path / "a")
    loaded = nn.Trainer.load(tmp_path / "a", backend=backend)
    assert loaded.model == model
    assert (loaded.predict(ids) == trainer.predict(ids)).all()
