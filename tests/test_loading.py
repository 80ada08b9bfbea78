"""What module:object names is found in the current folder, or refused in one line."""

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

def made():
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
    """The current folder, with modules; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


def test_a_module_or_what_is_in_it_is_found():
    assert load("mine").number == 3
    assert load("mine:number") == 3
    assert load("mine:home.wide") == nn.Dense(5)


def test_a_layer_is_taken_as_it_is_or_made():
    assert str(load_layer("mine:model")).startswith("Sequential(")
    assert load_layer("mine:home.wide") == nn.Dense(5)
    assert load_layer("mine:made") == nn.Dense(1)
    assert load_layer("agnostic_nn:Tanh") == nn.Tanh()


def test_what_a_module_imports_when_it_is_called_is_found_too():
    assert load("mine:later")() == 7


def test_the_current_folder_comes_first_and_once(folder):
    load("mine")
    load("neighbour")
    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1


REFUSED = [  # what is named, what is said
    ("mine", "a layer of one's own is named as module:object, got 'mine'"),
    (":model", "a layer of one's own is named as module:object, got ':model'"),
    ("nowhere:model", "no module is called 'nowhere': there is none in "),
    ("nowhere.inner:model", "no module is called 'nowhere': there is none in "),
    ("mine.inner:model", "no module is called 'mine.inner': there is none in "),
    ("mine:nothing", "mine has no 'nothing'; its layers are model"),
    ("mine:home.nothing", "mine has no 'home.nothing'"),
    ("mine:number", "mine:number is no layer, and gives none when called: it is a int"),
    ("mine:home", "mine:home is no layer, and gives none when called: it is a home"),
    ("mine:broken", "without arguments: RuntimeError: not today nor tomorrow"),
    ("mine:leaving", "mine:leaving cannot be called without arguments: SystemExit: 0"),
    ("agnostic_nn:Dense", "missing 1 required positional argument: 'width'"),
    ("failing:model", "ZeroDivisionError: division by zero (failing.py, line 1)"),
    ("mine.py:number", "a module is named without .py: mine"),
    ("leaving:model", "leaving does not import: SystemExit: 0"),
    ("needing:model", "needing needs the module 'surely_not_there', which is not there"),
]


@pytest.mark.parametrize(("named", "said"), REFUSED, ids=[named for named, _ in REFUSED])
def test_what_gives_no_layer_is_refused_in_one_line(named, said):
    with pytest.raises(CannotLoad) as refused:
        load_layer(named)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
