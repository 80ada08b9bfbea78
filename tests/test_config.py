"""Hyper-parameters survive as plain data, and only what this library defines comes back."""

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


def of_ones_own(layer):
    """Return whether a layer holds something that only tests use."""
    theirs = type(layer).__module__.startswith(
        ("cases", "agnostic_nn.diagnostics.examples")
    )
    return theirs or "Lambda(" in repr(layer)


LAYERS = list(dict.fromkeys(case.layer for case in layer_cases()))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_layer_comes_back_unless_it_is_ones_own(layer):
    if of_ones_own(layer):
        with pytest.raises(ValueError, match="which agnostic_nn does not define"):
            through_json(layer)
        return
    again = through_json(layer)
    assert again == layer
    assert repr(again) == repr(layer)
    assert hash(again) == hash(layer)


@pytest.mark.parametrize("optimizer", [row.optimizer for row in OPTIMIZERS], ids=str)
def test_every_optimizer_comes_back(optimizer):
    assert through_json(optimizer) == optimizer


THINGS = [
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


@pytest.mark.parametrize("thing", THINGS, ids=str)
def test_what_is_made_of_tuples_dicts_and_pairs_comes_back(thing):
    assert through_json(thing) == thing


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
def test_what_is_ones_own_is_described_and_never_mistaken_for_ours(thing):
    with pytest.raises(ValueError, match="which agnostic_nn does not define"):
        through_json(thing)


GRAPH = {"type": "Graph", "nodes": [["a", [{"type": "Tanh"}, "x"]]], "outputs": "a"}


@pytest.mark.parametrize(
    ("data", "said"),
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
def test_a_description_that_was_changed_is_refused(data, said):
    assert rebuild(GRAPH) == nn.Graph(a=(nn.Tanh(), "x"))
    with pytest.raises(ValueError, match=said):
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
