"""Tests of loading an object named as module:object."""

import sys

import pytest

import agnostic_nn as nn
from agnostic_nn.diagnostics.loading import CannotLoad, load, load_layer

MINE = """
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
