"""Tests of the conformance run: correct libraries pass, and planted faults are named."""

import ast
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core import backend
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.conformance import (
    NEEDS,
    SECTIONS,
    TESTED_IN,
    conformance,
    guarded,
    library,
)

ROOT = Path(__file__).parents[1]
CHEAP = ("Array API names", "arrays", "random words", "operations")


def complaints(found):
    """What is wrong or unsupported, in words."""
    bad = (one for one in found.findings if one.verdict in ("wrong", "unsupported"))
    return [f"{one.name} {one.verdict}: {one.reason}" for one in bad]


@pytest.fixture
def strict():
    """The Standard's strictest library, without an adapter, so that faults reach everything."""
    reason = "faults are planted in array-api-strict"
    return pytest.importorskip("array_api_strict", reason=reason)


@pytest.fixture
def bare(strict):
    return library("array_api_strict", bare=True)


@pytest.mark.parametrize("section", CHEAP)
def test_the_backend_conforms(backend, section):
    found = conformance(backend, only=section)
    assert complaints(found) == []
    assert {one.section for one in found.findings} == {section}


def test_numpy_is_exactly_itself():
    found = conformance("numpy")
    assert complaints(found) == []
    assert found.totals == {**found.totals, "within": 0, "skipped": len(TESTED_IN)}
    assert {one.section for one in found.findings} == set(SECTIONS)


def test_a_library_without_an_adapter_carries_everything(bare):
    found = conformance(bare)
    assert complaints(found) == []
    assert found.adapter == "without an adapter"
    assert {one.section for one in found.findings} == set(SECTIONS)
    assert sum(found.totals.values()) == len(found.findings)


def test_nothing_is_skipped_without_a_reason_and_skips_are_counted(bare):
    found = conformance(bare, only="operations")
    assert [one.name for one in found.findings] == list(ops.__all__)
    skipped = [one for one in found.findings if one.verdict == "skipped"]
    assert all(one.reason.startswith("tested in ") for one in skipped)
    assert found.totals["skipped"] == len(skipped)
    assert f"{len(skipped)} skipped" in str(found)
    assert f"{len(skipped)} skipped" in found.to_markdown()


# --- planted faults ---------------------------------------------------------------------


def drop_an_element(strict, monkeypatch):
    right = strict.sum

    def wrong(x, /, **options):
        data = np.array(x)
        data[(slice(-1, None),) * data.ndim] = 0
        return right(strict.asarray(data), **options)

    monkeypatch.setattr(strict, "sum", wrong)


def bfloat16(data):
    """The nearest number of seven bits, in the dtype of `data`."""
    words = data.astype(np.float32).view(np.uint32) & 0xFFFF0000
    return words.view(np.float32).astype(data.dtype)


def round_products(strict, monkeypatch):
    kind = type(strict.zeros(1))

    def wrong(self, other):
        return strict.asarray(bfloat16(np.array(self)) @ bfloat16(np.array(other)))

    monkeypatch.setattr(kind, "__matmul__", wrong)


def lack_take_along_axis(strict, monkeypatch):
    monkeypatch.delattr(strict, "take_along_axis")


def widen_tanh(strict, monkeypatch):
    right = strict.tanh
    monkeypatch.setattr(strict, "tanh", lambda x, /: strict.astype(right(x), strict.float64))


def err_by_64_roundings(strict, monkeypatch):
    right = strict.tanh

    def wrong(x, /):
        return right(x) * (1.0 + 64.0 * float(strict.finfo(x.dtype).eps))

    monkeypatch.setattr(strict, "tanh", wrong)


def write_in_place(strict, monkeypatch):
    right = strict.maximum

    def wrong(x, y, /):
        found = right(x, y)
        x[...] = found
        return found

    monkeypatch.setattr(strict, "maximum", wrong)


def shift_words(strict, monkeypatch):
    kind = type(strict.zeros(1))
    right = kind.__rshift__
    monkeypatch.setattr(kind, "__rshift__", lambda self, by: right(self, by + 1))


FAULTS = [  # what is planted; section, name, verdict and a part of the reason; what stays right
    (drop_an_element, "layers", "Dense", "wrong", "grads.bias[2] is ", "GELU"),
    (round_products, "layers", "Dense", "wrong", ", expected ", "LayerNorm"),
    (
        lack_take_along_axis,
        "losses",
        "ctc",
        "unsupported",
        "has no attribute 'take_along_axis'",
        "huber",
    ),
    (
        lack_take_along_axis,
        "Array API names",
        f"{len(NEEDS)} names",
        "unsupported",
        "lacks take_along_axis",
        None,
    ),
    (
        widen_tanh,
        "layers",
        "Tanh",
        "wrong",
        "is float64 (4, 5), expected float32 (4, 5)",
        "Softsign",
    ),
    (err_by_64_roundings, "layers", "Tanh", "wrong", ", expected ", "ReLU"),
    (write_in_place, "layers", "ReLU", "wrong", "x, an argument, was changed in place", "Tanh"),
    (shift_words, "random words", "words", "wrong", ", expected ", None),
]


@pytest.mark.parametrize(
    ("plant", "section", "name", "verdict", "reason", "right"),
    FAULTS,
    ids=[f"{fault[0].__name__}, {fault[1]}" for fault in FAULTS],
)
def test_a_fault_is_called_by_its_name(
    strict, bare, monkeypatch, plant, section, name, verdict, reason, right
):
    plant(strict, monkeypatch)
    found = conformance(bare, only=name)
    (one,) = found.findings
    assert (one.section, one.verdict, reason in one.reason) == (section, verdict, True), one
    assert not found.conforms
    assert right is None or conformance(bare, only=right).conforms


def test_an_error_is_given_with_its_size(strict, bare, monkeypatch):
    round_products(strict, monkeypatch)
    (one,) = conformance(bare, only="Dense").findings
    assert 2.0**-9 < one.float32 < 2.0**-5
    assert 2.0**-9 < one.float64 < 2.0**-5


def test_a_missing_function_costs_only_what_needs_it(strict, bare, monkeypatch):
    lack_take_along_axis(strict, monkeypatch)
    assert [line.split()[0] for line in complaints(conformance(bare, only="losses"))] == ["ctc"]


# --- doors ------------------------------------------------------------------------------


@pytest.fixture
def module(monkeypatch):
    """A function that makes a module importable: NumPy's adapter, but for the names given."""

    def make(name, **names):
        host = nn.backend("numpy").adapter
        made = ModuleType(name)
        vars(made).update({each: getattr(host, each) for each in host.__all__} | names)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def test_a_module_that_is_an_adapter_needs_no_registration(module):
    module("adapter_of_mine", version="1.5", devices=lambda: {"desk:0": "cpu"})
    found = conformance("adapter_of_mine", only="arrays")
    assert (found.backend, found.version) == ("adapter_of_mine:desk:0", "1.5")
    assert found.adapter == "through the adapter adapter_of_mine"
    assert complaints(found) == []


def test_a_namespace_may_stand_in_a_module(module):
    module("library_of_mine", inner=np)
    found = conformance("library_of_mine:inner", only="arrays")
    assert found.adapter == "without an adapter"
    assert complaints(found) == []


ADAPTERS = [  # names of an adapter, section, name, reason
    (
        {"asarray": lambda data, device: data},
        "arrays",
        "float32, round trip",
        "is 0, expected 100",
    ),
    (
        {"to_numpy": lambda array: np.asarray(array, np.float64)},
        "arrays",
        "float32, round trip",
        "is float64 (2, 3), expected float32 (2, 3)",
    ),
    (
        {"jit": lambda function, device, donate=(): lambda *given: {}},
        "layers",
        "ReLU",
        "is missing",
    ),
    (
        {"double": None, "has_float64": lambda device: False},
        "arrays",
        "float64, round trip",
        "has no float64",
    ),
]


@pytest.mark.parametrize(
    ("names", "section", "name", "reason"), ADAPTERS, ids=lambda v: str(v)[:20]
)
def test_a_wrong_adapter_is_noticed(module, names, section, name, reason):
    module("adapter_of_mine", **names)
    found = conformance("adapter_of_mine", only=name)
    (one,) = found.findings
    assert (one.section, one.verdict in ("wrong", "unsupported")) == (section, True)
    assert reason in one.reason


def test_an_incomplete_adapter_is_no_namespace(module):
    source = module("adapter_of_mine")
    del source.vjp, source.describe
    with pytest.raises(nn.BackendUnavailable, match="is an adapter, but lacks describe, vjp"):
        library("adapter_of_mine")


def test_arrays_that_numpy_cannot_read_are_said_to_be_such(module):
    class Boxed:
        """An array by all its names, but those by which another library may look inside."""

        def __init__(self, array):
            self.array = array

        def __array_namespace__(self, api_version=None):
            return boxes

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(self.array, name)

    dtypes = {name: getattr(np, name) for name in ("int32", "float32", "float64")}
    boxes = ModuleType("boxes")
    vars(boxes).update(dtypes, asarray=lambda x, dtype=None: Boxed(np.asarray(x, dtype)))
    module("home_of_mine", boxes=boxes)
    found = conformance("home_of_mine:boxes", only="int32, round trip")
    (one,) = found.findings
    assert one.verdict == "unsupported"
    assert "NumPy cannot read arrays of home_of_mine:boxes" in one.reason


def test_without_float64_the_rest_is_tried_in_float32(module):
    module("adapter_of_mine", double=None, has_float64=lambda device: False)
    found = conformance("adapter_of_mine", only="optimizers")
    assert complaints(found) == []
    assert all(one.float64 is None and one.float32 is not None for one in found.findings)


def test_the_adapter_that_is_an_example_has_every_name():
    path = ROOT / "examples" / "mlx_backend" / "mlx_for_agnostic_nn.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assigned = (one for one in body if isinstance(one, ast.Assign))
    values = {ast.unparse(one.targets[0]): one.value for one in assigned}
    assert set(ast.literal_eval(values["__all__"])) == set(backend.ADAPTER)


# --- the command and its page -----------------------------------------------------------


def test_the_command_prints_and_writes_what_it_found(tmp_path, capsys):
    files = tmp_path / "new" / "found.json", tmp_path / "new" / "found.md"
    asked = ["conformance", "numpy", "--bare", "--only=losses"]
    assert main([*asked, f"--json={files[0]}", f"--markdown={files[1]}"]) == 0
    out = capsys.readouterr().out
    data, page = json.loads(files[0].read_text("utf-8")), files[1].read_text("utf-8")
    assert data["totals"]["unsupported"] == 0
    assert sum(data["totals"].values()) == len(data["findings"])
    for one in data["findings"]:
        assert f"| {one['name']} | {one['verdict']} |" in page
        assert one["name"] in out
    assert "0 wrong, 0 unsupported, 0 skipped" in out


MINE = """
import os
import signal
import time

from agnostic_nn_backends.numpy import *
from agnostic_nn_backends.numpy import asarray as right

version = "1.5"


def asarray(data, device):
    if data.dtype == "bool":
        return data  # shared, which is wrong
    if data.dtype == "int32":
        time.sleep(600)
    if data.dtype == "uint32":
        os.kill(os.getpid(), signal.SIGKILL)
    if data.dtype == "float32":
        os._exit(3)
    return right(data, device)
"""


def test_what_hangs_or_ends_the_process_is_unsupported_and_the_rest_is_tried(tmp_path, monkeypatch):
    (tmp_path / "adapter_of_mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    asked = "adapter_of_mine", "--only=arrays", "--seconds=3", "--json=found.json"
    assert main(["conformance", *asked]) == 1
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert (found["backend"], found["version"]) == ("adapter_of_mine:cpu", "1.5")
    named = {one["name"].split(",")[0]: one for one in found["findings"]}
    assert {name: (one["verdict"], one["reason"]) for name, one in named.items()} == {
        "bool": ("wrong", "[0, 1] is 0, expected 1"),
        "int32": ("unsupported", "no answer within 3 seconds"),
        "uint32": ("unsupported", "the process ended by SIGKILL"),
        "float32": ("unsupported", "the process ended with exit status 3"),
        "float64": ("exact", ""),
    }


def test_a_library_that_does_not_start_is_refused(tmp_path, monkeypatch):
    (tmp_path / "adapter_of_mine.py").write_text("import os; os._exit(3)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    said = "adapter_of_mine does not start: the process ended with exit status 3"
    with pytest.raises(nn.BackendUnavailable, match=said):
        guarded("adapter_of_mine", only="arrays")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "gone_library",
            r"gone_library is not a backend \(numpy, .*\): there is no module 'gone_lib",
        ),
        ("json:gone", "json:gone is not a backend .*: json has no 'gone'"),
        ("numpy:gone", "numpy has no device 'gone'"),
        ("json", "arrays of json do not follow the Array API Standard"),
    ],
)
def test_what_is_no_library_is_refused(name, said):
    with pytest.raises(nn.BackendUnavailable, match=said):
        library(name)


SENSELESS = [
    (["gone_library"], "gone_library is not a backend (numpy, "),
    (["numpy", "--only=everything"], "there are Array API names, arrays, "),
    (["numpy", f"--json={__file__}/x.json"], "cannot be written to"),
]


@pytest.mark.parametrize(("arguments", "said"), SENSELESS, ids=lambda value: str(value)[:30])
def test_what_makes_no_sense_is_refused(capsys, arguments, said):
    assert main(["conformance", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def used(path):
    """The names of the Standard that a file asks a namespace for."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            of = node.value
            asked = isinstance(of, ast.Call) and getattr(of.func, "id", "") == "namespace"
            if asked or getattr(of, "id", "") == "xp":
                yield node.attr


def test_what_a_backend_must_have_is_what_the_library_uses():
    core = ("ops", "layers", "blocks", "losses", "optimizers")
    files = [path for folder in core for path in (ROOT / "agnostic_nn" / folder).glob("*.py")]
    alone = ("core/arrays", "core/random", "initializers", "metrics", "schedules", "training/steps")
    files += [ROOT / "agnostic_nn" / f"{name}.py" for name in alone]
    asked = {name for path in files for name in used(path)}
    where = "NEEDS in agnostic_nn/diagnostics/conformance/results.py, and docs/conformance.md"
    assert asked - {"float64"} == set(NEEDS), where
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    for name in NEEDS:
        assert f"`{name}`" in page, where
