"""Tests of loading an object named as module:object."""

import sys

import pytest

import agnostic_nn as nn
from agnostic_nn.diagnostics.loading import (
    CannotLoad,
    load,
    load_layer,
    load_loss,
    load_metric,
    load_optimizer,
)

MINE = """
from os.path import join

import agnostic_nn as nn

model = nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(3))
number = 3

class home:
    wide = nn.Dense(5)

def build():
    return nn.Dense(1)

def broken():
    raise RuntimeError("not today\\nnor tomorrow")

def leaving():
    raise SystemExit(0)

def later():
    import neighbour

    return neighbour.width

def loss(y, target, weights=None, *, level=0.5):
    return y.sum() * level, y

def half(y, target):
    return y

class Norm:
    def __init__(self, power):
        self.power = power

    def __call__(self, y, target):
        return y ** self.power

class Walk:
    def __init__(self, rate=0.1):
        self.rate = rate

    def init(self, params):
        return ()

    def update(self, params, grads, moments):
        return params, moments

walk = Walk(0.5)

def make_walk(rate):
    return Walk(rate)
"""
FILES = {
    "mine": MINE,
    "neighbour": "width = 7",
    "failing": "1 / 0",
    "leaving": "import sys\n\nsys.exit(0)",
    "needing": "import surely_not_there",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Write modules into the current folder; forget them at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


def test_modules_and_their_attributes_are_loaded():
    assert load("mine").number == 3
    assert load("mine:number") == 3
    assert load("mine:home.wide") == nn.Dense(5)


def test_a_layer_or_a_function_that_returns_one_is_loaded():
    assert str(load_layer("mine:model")).startswith("Sequential(")
    assert load_layer("mine:home.wide") == nn.Dense(5)
    assert load_layer("mine:build") == nn.Dense(1)
    assert load_layer("agnostic_nn:Tanh") == nn.Tanh()


def test_a_module_may_import_its_neighbour_later():
    assert load("mine:later")() == 7


def test_the_current_folder_comes_first_and_once(folder):
    load("mine")
    load("neighbour")
    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1


REFUSED = [  # name, part of the message
    ("mine", "expected a custom layer as module:object, got 'mine'"),
    (":model", "expected a custom layer as module:object, got ':model'"),
    ("nowhere:model", "there is no module 'nowhere': it is not in "),
    ("nowhere.inner:model", "there is no module 'nowhere': it is not in "),
    ("mine.inner:model", "there is no module 'mine.inner': it is not in "),
    ("mine:nothing", "mine has no 'nothing'; its layers are model"),
    ("mine:home.nothing", "mine has no 'home.nothing'"),
    ("mine:number", "mine:number is not a layer and does not return one: got int"),
    ("mine:home", "mine:home is not a layer and does not return one: got home"),
    ("mine:broken", "without arguments: RuntimeError: not today nor tomorrow"),
    ("mine:leaving", "mine:leaving cannot be called without arguments: SystemExit: 0"),
    ("agnostic_nn:Dense", "missing 1 required positional argument: 'width'"),
    ("failing:model", "ZeroDivisionError: division by zero (failing.py, line 1)"),
    ("mine.py:number", "expected a module without .py: mine"),
    ("leaving:model", "leaving cannot be imported: SystemExit: 0"),
    (
        "needing:model",
        "needing needs the module 'surely_not_there', which is not installed",
    ),
]


@pytest.mark.parametrize(
    ("name", "message"), REFUSED, ids=[name for name, _ in REFUSED]
)
def test_errors_of_loading_are_one_line(name, message):
    with pytest.raises(CannotLoad) as refused:
        load_layer(name)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


# --- losses, optimizers and metrics ---------------------------------------------------


def test_a_loss_and_a_metric_are_functions_whose_options_are_set_by_name():
    assert load_loss("huber") is nn.huber
    assert load_loss("huber(delta=0.25)").keywords == {"delta": 0.25}
    assert load_loss("mine:loss") is load("mine:loss")
    level = load_loss(" mine:loss(level=0.25) ")
    assert (level.func, level.keywords) == (load("mine:loss"), {"level": 0.25})
    assert load_metric("perplexity") is nn.perplexity
    assert load_metric("top_k_accuracy(k=2)").keywords == {"k": 2}
    assert load_metric("mine:half") is load("mine:half")


def test_a_class_is_called_with_the_arguments():
    assert load_loss("mine:Norm(3)").power == 3
    assert load_metric("mine:Norm(power=2)").power == 2
    assert load_optimizer("SGD(0.05, momentum=0.9)") == nn.SGD(0.05, momentum=0.9)
    assert load_optimizer("Adam") == nn.Adam()
    assert load_optimizer("mine:Walk").rate == 0.1
    assert load_optimizer("mine:Walk(0.2)").rate == 0.2
    assert load_optimizer("mine:make_walk(rate=0.3)").rate == 0.3
    assert load_optimizer("mine:walk") is load("mine:walk")


REFUSED_NAMES = [  # function, text, part of the message
    (load_loss, "nonesuch", "no loss is called 'nonesuch'; there are binary_cross"),
    (load_loss, "Losses", "no loss is called 'Losses'"),
    (
        load_loss,
        "huber(",
        "expected a loss such as huber(delta=0.5), or a custom one as",
    ),
    (load_loss, "huber(1.0)", "a loss takes its options by name"),
    (
        load_loss,
        "mine:nothing",
        "its functions are build, broken, leaving, later, loss",
    ),
    (load_loss, "mine:model", "'mine:model' is not a loss: expected a function"),
    (load_loss, "mine:number", "'mine:number' is not a loss: expected a function"),
    (load_loss, "mine:Norm", "TypeError: Norm.__init__() missing 1 required"),
    (load_loss, "mine:loss(level=x)", "arguments must be literals"),
    (load_loss, "mine:loss(**{})", "** is not supported here"),
    (load_loss, "mine:loss()()", "expected a loss such as"),
    (load_loss, "nowhere:loss", "there is no module 'nowhere'"),
    (load_metric, "batch_means", "no metric is called 'batch_means'; there are abs"),
    (load_optimizer, "Rule", "no optimizer is called 'Rule'; there are Adafactor"),
    (load_optimizer, "Adam(rate=-1)", "cannot be an optimizer: expected a finite rate"),
    (load_optimizer, "mine:nothing", "mine has no 'nothing'; its optimizers are walk"),
    (load_optimizer, "mine:number", "'int' object is not callable"),
    (load_optimizer, "mine:build", "'mine:build' is not an optimizer"),
    (load_optimizer, "mine:broken", "RuntimeError: not today nor tomorrow"),
    (load_optimizer, "mine:walk(0.2)", "'Walk' object is not callable"),
]


@pytest.mark.parametrize(
    ("function", "text", "message"),
    REFUSED_NAMES,
    ids=[row[1] for row in REFUSED_NAMES],
)
def test_errors_of_losses_optimizers_and_metrics_are_one_line(function, text, message):
    with pytest.raises(CannotLoad) as refused:
        function(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
