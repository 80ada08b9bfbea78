"""`agnostic-nn check` of all layers of the library and of custom ones."""

import json
import sys

import pytest

import agnostic_nn as nn
from agnostic_nn import losses, optimizers
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES, OPTIMIZERS

OWN = '''
from dataclasses import dataclass

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace


@dataclass(frozen=True)
class Gain(nn.Layer):
    """y = x · gain."""

    factor: float = 1.0

    def init(self, key, shape, dtype):
        return {"gain": namespace(key).ones(shape, dtype=dtype)}, {}, shape

    def forward(self, params, state, x, *, train=False):
        return x * params["gain"], state, x

    def backward(self, params, cache, dy):
        grads = {"gain": self.factor * namespace(dy).sum(dy * cache, axis=0)}
        return dy * params["gain"], grads


class Raises(Gain):
    def backward(self, params, cache, dy):
        raise RuntimeError("this was left for later")


class Masked(Gain):
    input_kinds = {"x": "real floating", "mask": "bool"}

    def init(self, key, shape, dtype):
        return super().init(key, shape["x"], dtype)

    def forward(self, params, state, x, *, train=False):
        x = namespace(x["x"]).where(x["mask"], x["x"], 0.0)
        return x * params["gain"], state, x

    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return {"x": namespace(dx).where(cache == 0.0, 0.0, dx), "mask": None}, grads


wrong = Gain(1.5)
number = 3


def made():
    return nn.Sequential(nn.Dense(3), Gain())
'''


@pytest.fixture(autouse=True)
def _own_module(tmp_path, monkeypatch):
    """A module of a user's in the current folder, forgotten afterwards."""
    (tmp_path / "layers_of_mine.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("layers_of_mine", None)


@pytest.fixture
def asked(backend, capsys):
    """A function from arguments to exit status and what was printed."""

    def ask(*arguments, backends=str(backend)):
        status = main(["check", *arguments, "--elements=4", f"--backends={backends}"])
        return status, capsys.readouterr().out

    return ask


def test_every_public_layer_loss_and_optimizer_has_a_specimen():
    where = "a line in agnostic_nn/diagnostics/examples.py, in order of names"
    public = [thing for thing in vars(nn).values() if isinstance(thing, type)]
    wanted = {thing.__name__ for thing in public if issubclass(thing, nn.Layer)}
    assert {one.name for one in LAYERS} == wanted - {"Layer", "Block", "Elementwise"}, (
        where
    )
    assert {one.name for one in LOSSES} == {*losses.__all__} - {
        "Loss",
        "Losses",
        "Weighted",
    }, where
    tried = {type(one).__name__ for one in OPTIMIZERS}
    beside = {"Fixed", "Optimizer", "Rule"}  # the first is in Parts
    assert tried == {*optimizers.__all__} - beside, where
    for several in (LAYERS, LOSSES):
        names = [one.name for one in several]
        assert names == sorted(names), where


def test_the_whole_library_passes(asked):
    status, out = asked(backends="numpy")
    assert status == 0
    for one in (*LAYERS, *LOSSES):
        assert f"\n  {one.name} " in out
    assert f"all {len(LAYERS) + len(LOSSES)} passed" in out


def test_every_oracle_of_the_backend_is_asked(backend, asked, tmp_path):
    files = "--json=found/check.json", "--markdown=found/check.md"
    status, out = asked("Dense", "huber", *files)
    assert status == 0
    columns = [
        "central difference",
        "adjoint",
        "layout",
        "batch of 0",
        "batch of 1",
        str(backend),
    ]
    columns += [f"vjp of {backend}"] * (backend.adapter.vjp is not None)
    page = (tmp_path / "found" / "check.md").read_text(encoding="utf-8")
    for column in columns:
        assert column in out
        assert f"| {column} |" in page
    result = json.loads((tmp_path / "found" / "check.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in result["checks"]] == ["Dense", "huber"]
    assert {one["verdict"] for one in result["checks"]} == {"passed"}
    for row in result["checks"][0]["rows"]:
        assert row["error"] <= row["tolerance"]


@pytest.mark.parametrize("name", ["Gain", "made"])
def test_a_layer_of_ones_own_is_found_in_the_current_folder(asked, name):
    status, out = asked(
        f"layers_of_mine:{name}", "--shape=2,3" if name == "Gain" else "--shape=4"
    )
    assert status == 0
    assert f"layers_of_mine:{name}" in out


def test_a_shape_may_be_a_tree_or_a_number(asked):
    assert (
        asked("layers_of_mine:Masked", "--shape={'x': (2, 3), 'mask': (2, 3)}")[0] == 0
    )
    assert asked("Tanh", "--shape=()")[0] == 0


def test_the_shape_asked_for_is_the_one_that_is_checked(asked, tmp_path):
    assert asked("Dense", "--shape=2,7", "--json=check.json")[0] == 0
    (result,) = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))[
        "checks"
    ]
    assert result["shape"] == [2, 7]
    (x,) = {
        row["checked"]
        for row in result["rows"]
        if row["oracle"] == "layout" and row["leaf"] == "x"
    }
    assert x == 3 * 2 * 7


def test_a_wrong_gradient_makes_the_exit_status_1_and_is_told_in_full(asked, tmp_path):
    status, out = asked(
        "GELU", "layers_of_mine:wrong", "--shape=3", "--json=check.json"
    )
    assert status == 1
    assert "1 of 2 failed" in out
    assert "central difference on numpy, train: gain[" in out
    assert "relative error 0.5" in out
    verdicts = {
        line.split()[0]: line.split()[-1] for line in out.splitlines() if line.split()
    }
    assert verdicts["GELU"] == "passed"
    assert verdicts["layers_of_mine:wrong"] == "failed"
    result = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))[
        "checks"
    ][1]
    assert result["message"] in out


def test_a_layer_that_raises_shows_where(asked):
    status, out = asked("layers_of_mine:Raises", "--shape=3")
    assert status == 1
    assert "RuntimeError: this was left for later" in out
    assert "in backward" in out


SENSELESS = [  # arguments, message
    (["Desne"], "no layer or loss called 'Desne'; did you mean Dense?"),
    (["Quux"], "a custom one is module:object"),
    (["--shape=3"], "--shape needs the name of a layer"),
    (
        ["layers_of_mine:Gain"],
        "the input shape of layers_of_mine:Gain is needed: --shape 5,3",
    ),
    (["layers_of_mine:number", "--shape=3"], "is not a layer and does not return one"),
    (
        ["Dense", "--shape=wide"],
        "expected a shape such as 5,3, or a tree of shapes, got 'wide'",
    ),
    (["Dense", "--shape=-1"], "expected a shape"),
    (["Dense", "--shape=2.5"], "expected a shape"),
    (["Dense", "--shape=True"], "expected a shape"),
    (
        ["Conv2D", "--shape=5,3"],
        "Conv2D cannot be checked with --shape (5, 3): Conv2D takes 4 axes",
    ),
    (["Dense", "--elements=0"], "expected an integer of at least 1"),
    (["Dense", "--backends=nonsense"], "no backend is called 'nonsense'"),
    (["Dense", "--json=layers_of_mine.py/x.json"], "cannot be written to"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), SENSELESS, ids=lambda value: str(value)[:40]
)
def test_what_makes_no_sense_is_refused(capsys, arguments, said):
    try:
        status = main(["check", *arguments])
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_device_without_float64_is_refused(capsys):
    pytest.importorskip(
        "array_api_strict", reason="its device pretends to have no float64"
    )
    assert main(["check", "Dense", "--backends=array_api_strict:no_float64"]) == 2
    assert "array_api_strict:no_float64 has no float64" in capsys.readouterr().err
