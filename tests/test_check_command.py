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
        raise RuntimeError("not implemented yet")


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
undefined = Gain(float("nan"))
number = 3


def model():
    return nn.Sequential(nn.Dense(3), Gain())


def wrong_model():
    return nn.Sequential(nn.Dense(3), nn.Sequential(nn.Tanh(), wrong))
'''


@pytest.fixture(autouse=True)
def _own_module(tmp_path, monkeypatch):
    """Write a custom module into the current folder; forget it at the end."""
    (tmp_path / "layers_of_mine.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("layers_of_mine", None)


@pytest.fixture
def run_check(backend, capsys):
    """Return a function from arguments to the exit status and the output."""

    def run(*arguments, backends=str(backend)):
        status = main(["check", *arguments, "--elements=4", f"--backends={backends}"])
        return status, capsys.readouterr().out

    return run


def test_every_public_layer_loss_and_optimizer_has_an_example():
    where = "a line in agnostic_nn/diagnostics/examples.py, in order of names"
    public = [value for value in vars(nn).values() if isinstance(value, type)]
    layers = {value.__name__ for value in public if issubclass(value, nn.Layer)}
    layers -= {"Layer", "Block", "Elementwise"}
    assert {example.name for example in LAYERS} == layers, where
    wrappers = {"BetweenOutputs", "Losses", "Penalized", "Weighted"}
    functions = {*losses.__all__} - {"Loss"} - wrappers
    assert {example.name for example in LOSSES} == functions, where
    rules = {*optimizers.__all__} - {"Fixed", "Optimizer", "Rule"}  # Fixed is in Parts
    assert {type(example).__name__ for example in OPTIMIZERS} == rules, where
    for examples in (LAYERS, LOSSES):
        names = [example.name for example in examples]
        assert names == sorted(names), where


def test_the_whole_library_passes(run_check):
    status, out = run_check(backends="numpy")
    assert status == 0
    for example in (*LAYERS, *LOSSES):
        assert f"\n  {example.name} " in out
    count = len(LAYERS) + len(LOSSES)
    assert f"{count} of {count} passed" in out


def test_every_oracle_of_the_backend_is_used(backend, run_check, tmp_path):
    files = "--json=results/check.json", "--markdown=results/check.md"
    status, out = run_check("Dense", "huber", *files)
    assert status == 0
    columns = ["central difference", "adjoint", "layout", "batch of 0", "batch of 1"]
    columns += [str(backend)]
    columns += [f"vjp of {backend}"] * (backend.adapter.vjp is not None)
    page = (tmp_path / "results" / "check.md").read_text(encoding="utf-8")
    for column in columns:
        assert column in out
        assert f"| {column} |" in page
    checks = checks_in(tmp_path / "results" / "check.json")
    assert [entry["name"] for entry in checks] == ["Dense", "huber"]
    assert {entry["verdict"] for entry in checks} == {"passed"}
    for row in checks[0]["rows"]:
        assert row["error"] <= row["tolerance"]


def checks_in(path):
    return json.loads(path.read_text(encoding="utf-8"))["checks"]


@pytest.mark.parametrize("name", ["Gain", "model"])
def test_a_custom_layer_is_loaded_from_the_current_folder(run_check, name):
    shape = "--shape=2,3" if name == "Gain" else "--shape=4"
    status, out = run_check(f"layers_of_mine:{name}", shape)
    assert status == 0
    assert f"layers_of_mine:{name}" in out


def test_a_shape_may_be_a_tree_or_a_number(run_check):
    tree = "--shape={'x': (2, 3), 'mask': (2, 3)}"
    assert run_check("layers_of_mine:Masked", tree)[0] == 0
    assert run_check("Tanh", "--shape=()")[0] == 0


def test_the_shape_of_the_command_line_is_checked(run_check, tmp_path):
    assert run_check("Dense", "--shape=2,7", "--json=check.json")[0] == 0
    (result,) = checks_in(tmp_path / "check.json")
    assert result["shape"] == [2, 7]
    rows = [row for row in result["rows"] if row["oracle"] == "layout"]
    assert {row["checked"] for row in rows if row["leaf"] == "x"} == {3 * 2 * 7}


def test_a_wrong_gradient_is_printed_and_makes_the_exit_status_1(run_check, tmp_path):
    arguments = "GELU", "layers_of_mine:wrong", "--shape=3", "--json=check.json"
    status, out = run_check(*arguments)
    assert status == 1
    assert "1 of 2 failed" in out
    assert "central difference on numpy, train: gain[" in out
    assert "relative error 0.5" in out
    lines = [line.split() for line in out.splitlines() if line.split()]
    verdicts = {words[0]: words[-1] for words in lines}
    assert verdicts["GELU"] == "passed"
    assert verdicts["layers_of_mine:wrong"] == "failed"
    assert checks_in(tmp_path / "check.json")[1]["message"] in out


def test_the_wrong_layer_inside_a_block_is_named(run_check, tmp_path):
    arguments = "layers_of_mine:wrong_model", "--shape=3", "--json=check.json"
    status, out = run_check(*arguments)
    assert status == 1
    line = "the first layer inside that fails by itself: 1.1 (Gain): central difference"
    assert line in out
    assert line in checks_in(tmp_path / "check.json")[0]["message"]


@pytest.mark.parametrize("name", ["Dense", "BatchNorm", "layers_of_mine:wrong"])
def test_the_table_of_one_layer_has_a_row_for_each_comparison(
    run_check, tmp_path, name
):
    arguments = name, "--shape=3", "--json=check.json"
    _, out = run_check(*arguments)
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert max(map(len, lines)) <= 80
    (result,) = checks_in(tmp_path / "check.json")
    rows = result["rows"]
    compared = {(row["oracle"], row["backend"], row["mode"]) for row in rows}
    assert len(lines) - 1 == len(compared)  # and the names of the columns
    worst = max(
        (row for row in rows if row["oracle"] == "central difference"),
        key=lambda row: row["error"],
    )
    words = ["central", "difference", worst["mode"], worst["leaf"]]
    words += [f"{worst['error']:.1e}", "1e-07"]
    assert words in [line.split() for line in lines]
    _, out = run_check(*arguments, "--verbose")
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert len(lines) - 1 == len(rows)


def test_a_gradient_of_nan_is_the_worst_and_the_file_is_valid_json(run_check, tmp_path):
    arguments = "layers_of_mine:undefined", "Tanh", "--shape=3", "--json=check.json"
    status, out = run_check(*arguments, backends="numpy")
    assert status == 1
    (line,) = (x for x in out.splitlines() if x.startswith("  layers_of_mine"))
    assert line.split()[1] == "nan"
    text = (tmp_path / "check.json").read_text(encoding="utf-8")
    checks = json.loads(text, parse_constant=pytest.fail)["checks"]
    errors = [row["error"] for row in checks[0]["rows"] if row["leaf"] == "gain"]
    assert "nan" in errors


def test_a_layer_that_raises_shows_where(run_check):
    status, out = run_check("layers_of_mine:Raises", "--shape=3")
    assert status == 1
    assert "RuntimeError: not implemented yet" in out
    assert "in backward" in out


INVALID = [  # arguments, message
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
    ("arguments", "message"), INVALID, ids=lambda value: str(value)[:40]
)
def test_invalid_arguments_are_refused_in_one_line(capsys, arguments, message):
    try:
        status = main(["check", *arguments])
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_device_without_float64_is_refused(capsys):
    pytest.importorskip(
        "array_api_strict", reason="its device pretends to have no float64"
    )
    assert main(["check", "Dense", "--backends=array_api_strict:no_float64"]) == 2
    assert "array_api_strict:no_float64 has no float64" in capsys.readouterr().err
