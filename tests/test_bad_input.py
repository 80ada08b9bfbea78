"""Constructors and functions refuse invalid input at once, with a clear message."""

import inspect
import math

import bad_input
import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import (
    blocks,
    initializers,
    layers,
    losses,
    optimizers,
    penalties,
    schedules,
)
from agnostic_nn.training import callbacks

MODULES = (layers, blocks, losses, optimizers, schedules, initializers, callbacks)
MODULES += (penalties,)
# base classes and protocols, which have no options
BASES = {
    "Layer",
    "Block",
    "Optimizer",
    "Rule",
    "Callback",
    "Elementwise",
    "Loss",
    "Initializer",
}
CLASSES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if isinstance(getattr(module, name), type) and name not in BASES
}


def positional(function):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind in kinds]


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_constructors_take_at_most_two_arguments_by_position(kind):
    assert len(positional(kind)) <= 2


@pytest.mark.parametrize("name", losses.__all__)
def test_losses_take_their_options_by_name(name):
    function = getattr(losses, name)
    if inspect.isfunction(function) and positional(function)[:1] != ["loss"]:
        assert positional(function)[2:] == ["weights"]


@pytest.mark.parametrize(
    "call",
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
def test_positional_options_are_refused(call):
    with pytest.raises(TypeError, match="positional argument"):
        call()


def test_positional_arguments_set_the_documented_options():
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
def test_the_repr_of_a_value_is_an_expression_for_it(value):
    names = vars(schedules) | {name: getattr(nn, name) for name in nn.__all__}
    assert eval(repr(value), names) == value


# --- the campaign ---------------------------------------------------------------------


@pytest.mark.parametrize("part", bad_input.QUICK, ids=lambda part: part.__name__)
def test_invalid_input_is_refused_with_a_clear_message_and_changes_nothing(
    backend, part
):
    result = bad_input.run([part], backend)
    assert len(result) > 50
    assert {name: wrong for name, wrong in result.items() if wrong} == {}


def test_the_verdict_of_a_case_names_what_is_wrong(backend, tmp_path):
    world = bad_input.World(backend, tmp_path)
    trainer = world.trainer()

    def verdict(call):
        return bad_input.verdict(bad_input.Case("case", call), world)

    def changes(w):
        trainer.steps += 1
        nn.Dense(0)

    assert verdict(lambda w: nn.Dense(0)) == ""
    assert verdict(lambda w: nn.Dense(3)) == "accepted"
    assert verdict(lambda w: nn.Dense(units=3)).startswith("internal error: TypeError")
    assert verdict(lambda w: {}["a"]).startswith("internal error: KeyError: 'a'")
    assert verdict(changes) == "the trainer changed"


# --- messages -------------------------------------------------------------------------


def fitted(backend, **options):
    model = nn.Sequential(nn.Dense(2))
    trainer = nn.Trainer(model, nn.softmax_cross_entropy, nn.Adam(), backend=backend)
    x = np.ones((4, 3), "float32")
    trainer.fit(x, np.zeros(4, int), verbose=0, **options)
    return trainer


MESSAGES = [  # call, message
    (
        lambda b: nn.Dense(3, bias="relu"),
        "expected bias to be True or False, got 'relu'",
    ),
    (lambda b: nn.GELU(approximate="none"), "expected approximate to be True or False"),
    (lambda b: nn.Dense(3, bias=np.True_), r"pass Python's own, bool\(...\)"),
    (
        lambda b: nn.Dense(3, initializer=nn.Orthogonal),
        "got the class Orthogonal: did you mean an instance",
    ),
    (
        lambda b: nn.Dense(3, initializer=lambda shape: shape),
        r"a function of \(key, shape, dtype\), but .*\(shape\) cannot take these",
    ),
    (lambda b: nn.Sequential(nn.ReLU), r"the class ReLU: write ReLU\(...\)"),
    (lambda b: nn.Sequential([nn.ReLU()]), r"one by one, as in Sequential\(\*layers\)"),
    (lambda b: nn.L2(nn.Adam), r"the class Adam: write Adam\(...\)"),
    (
        lambda b: nn.Adam(nn.schedules.Cosine),
        "the class Cosine: did you mean an instance",
    ),
    (
        lambda b: nn.Dense(3)(np.ones((2, 3))),
        "train it with nn.Trainer, whose `predict` maps x",
    ),
    (
        lambda b: nn.Dense(3).init(0, (3,), b.xp.float32),
        r"a key, such as random.key\(0, xp=xp\)",
    ),
    (lambda b: nn.backend("numpy:"), "a device after the colon, such as 'numpy:cpu'"),
    (
        lambda b: nn.Trainer(nn.Dense(2), nn.huber, nn.Adam(), metrics=["accuracy"]),
        r'metrics as a dict such as \{"accuracy": nn.accuracy\}, got \[\'accuracy\'\]',
    ),
    (
        lambda b: nn.Trainer(
            nn.Dense(2), nn.huber, nn.Adam(), metrics={"loss": nn.accuracy}
        ),
        "another name for a metric than 'loss'",
    ),
    (
        lambda b: fitted(b, shuffle="no"),
        "expected shuffle to be True or False, got 'no'",
    ),
    (lambda b: fitted(b, callbacks=nn.RateLog()), "expected callbacks as a list"),
    (
        lambda b: fitted(b, callbacks=[nn.EarlyStopping(5)]),
        r"loss, accuracy, seconds: pass validation=\(x, target\) to fit",
    ),
    (
        lambda b: fitted(b, callbacks=[nn.Checkpoint("{los}.safetensors")]),
        "has a field 'los', but an epoch reports epoch, steps, loss, accuracy, seconds",
    ),
    (
        lambda b: fitted(b, callbacks=[nn.Checkpoint("{epoch:q}.safetensors")]),
        "cannot be formatted: Unknown format code 'q'",
    ),
    (
        lambda b: fitted(b, callbacks=[nn.CSVLog("/no/such/folder/a.csv")]),
        "there is no folder /no/such/folder",
    ),
]


@pytest.mark.parametrize(("call", "text"), MESSAGES, ids=[text for _, text in MESSAGES])
def test_errors_give_what_was_expected_and_the_remedy(backend, call, text):
    with pytest.raises(
        (TypeError, ValueError, OSError, nn.BackendUnavailable), match=text
    ):
        call(backend)


def test_the_error_about_float16_data_does_not_recommend_a_refused_dtype(backend):
    with pytest.raises(TypeError, match=r"x is float16.*pass x.astype\('float32'\)$"):
        fitted(backend).predict(np.ones((2, 3), "float16"))


def test_the_error_about_data_lists_the_accepted_types_once():
    with pytest.raises(
        TypeError,
        match=r"expected x as a NumPy array, a list, a table or an array of another "
        r"library, got builtins\.set",
    ):
        fitted("numpy").predict({1, 2})


def test_the_error_about_a_missing_float64_gives_the_remedy(backend):
    class Narrow(nn.Backend):
        has_float64 = False

    narrow = Narrow(backend.name, backend.device_name, backend.device, backend.adapter)
    remedy = backend.adapter.float64_remedy
    with pytest.raises(
        ValueError, match="has no float64 as it is set up now"
    ) as caught:
        nn.Trainer(nn.Dense(2), nn.huber, nn.Adam(), backend=narrow, dtype="float64")
    assert str(caught.value).endswith(remedy or "now")
    if backend.compiles:
        assert "JAX_ENABLE_X64=1" in remedy


def test_a_metric_without_values_of_examples_is_refused_before_training(backend):
    def mean_error(y, target):
        return nn.core.arrays.namespace(y).mean(y)

    model = nn.Sequential(nn.Dense(2))
    arguments = (model, nn.softmax_cross_entropy, nn.Adam())
    trainer = nn.Trainer(*arguments, backend=backend, metrics={"error": mean_error})
    data = np.ones((4, 3), "float32"), np.zeros(4, int)
    message = (
        r"metric 'error' to return .* one value per example, \(4, ...\), got shape \(\)"
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit(*data, validation=data, verbose=0)
    assert trainer.steps == 0


def test_fields_that_another_callback_adds_are_not_refused(backend, tmp_path):
    def score(trainer, row):
        row["score"] = -row["loss"]

    path = tmp_path / "{score:.2f} {rate:.2f}"
    best = nn.Checkpoint(path, best=True, monitor="score", mode="max")
    fitted(
        backend,
        callbacks=[nn.RateLog(), score, best, nn.EarlyStopping(2, monitor="score")],
    )
    assert len(list(tmp_path.iterdir())) == 1
    fitted(backend, callbacks=[nn.RateLog(), nn.EarlyStopping(2, monitor="rate")])
    with pytest.raises(ValueError, match="monitors 'rate', but an epoch reports"):
        fitted(backend, callbacks=[nn.EarlyStopping(2, monitor="rate"), nn.RateLog()])


def test_parameters_of_another_structure_are_refused(backend):
    model = nn.Sequential(nn.Dense(2), nn.ReLU(), nn.Dense(2))
    trainer = nn.Trainer(model, nn.huber, nn.Adam(), backend=backend, shape=(3,))
    first, _, last = backend.to_numpy(trainer.params)
    for wrong in (
        (first, (), last),
        {"0": first, "1": {}, "2": last},
        (first, {}, last, {}),
    ):
        with pytest.raises(ValueError, match=r"params.* is a .*, expected a"):
            trainer.start_from(wrong)
    trainer.start_from((first, {}, last))
    assert math.isfinite(
        float(trainer.step(np.ones((2, 3), "float32"), np.ones((2, 2), "float32")))
    )
