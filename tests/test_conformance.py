"""The conformance run: correct libraries pass, and planted faults are named."""

import ast
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cases._adapters import members

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core import backend
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.conformance import (
    SECTIONS,
    TESTED_IN,
    Conformance,
    Finding,
    conformance,
    guarded,
    library,
    needs,
    sources,
)
from agnostic_nn.diagnostics.conformance.causes import cause_of
from agnostic_nn.diagnostics.conformance.results import POINTER, needs_paragraph
from agnostic_nn.diagnostics.conformance.sources import MissingSources, names_used
from agnostic_nn.display.tables import TERMINAL_WIDTH

ROOT = Path(__file__).parents[1]

CHEAP = ("Array API names", "arrays", "random words", "operations")


def complaints(result):
    """Return a line for each finding that is wrong or unsupported."""
    bad = (
        finding
        for finding in result.findings
        if finding.verdict in ("wrong", "unsupported")
    )
    return [f"{finding.name} {finding.verdict}: {finding.reason}" for finding in bad]


@pytest.fixture
def strict():
    """array-api-strict without an adapter, so that a fault reaches all trials."""
    reason = "faults are planted in array-api-strict"
    return pytest.importorskip("array_api_strict", reason=reason)


@pytest.fixture
def bare(strict):
    return library("array_api_strict", bare=True)


@pytest.mark.parametrize("section", CHEAP)
def test_the_backend_conforms(backend, section):
    result = conformance(backend, only=section)
    assert complaints(result) == []
    assert {finding.section for finding in result.findings} == {section}


def test_numpy_agrees_with_itself_exactly():
    result = conformance("numpy")
    assert complaints(result) == []
    assert result.totals == {**result.totals, "within": 0, "skipped": len(TESTED_IN)}
    assert {finding.section for finding in result.findings} == set(SECTIONS)


def test_a_library_without_an_adapter_conforms(bare):
    result = conformance(bare)
    assert complaints(result) == []
    assert result.adapter == "without an adapter"
    assert {finding.section for finding in result.findings} == set(SECTIONS)
    assert sum(result.totals.values()) == len(result.findings)


def test_nothing_is_skipped_without_a_reason_and_skips_are_counted(bare):
    result = conformance(bare, only="operations")
    assert [finding.name for finding in result.findings] == list(ops.__all__)
    skipped = [finding for finding in result.findings if finding.verdict == "skipped"]
    assert all(finding.reason.startswith("tested in ") for finding in skipped)
    assert result.totals["skipped"] == len(skipped)
    assert f"{len(skipped)} skipped" in str(result)
    assert f"{len(skipped)} skipped" in result.to_markdown()


# --- planted faults -------------------------------------------------------------------


def drop_an_element(strict, monkeypatch):
    right = strict.sum

    def wrong(x, /, **options):
        data = np.array(x)
        data[(slice(-1, None),) * data.ndim] = 0
        return right(strict.asarray(data), **options)

    monkeypatch.setattr(strict, "sum", wrong)


def bfloat16(data):
    """Return `data` truncated to the precision of bfloat16, in the same dtype."""
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
    monkeypatch.setattr(
        strict, "tanh", lambda x, /: strict.astype(right(x), strict.float64)
    )


def err_by_64_roundings(strict, monkeypatch):
    right = strict.tanh

    def wrong(x, /):
        return right(x) * (1.0 + 64.0 * float(strict.finfo(x.dtype).eps))

    monkeypatch.setattr(strict, "tanh", wrong)


def write_in_place(strict, monkeypatch):
    right = strict.maximum

    def wrong(x, y, /):
        result = right(x, y)
        x[...] = result
        return result

    monkeypatch.setattr(strict, "maximum", wrong)


def shift_words(strict, monkeypatch):
    kind = type(strict.zeros(1))
    right = kind.__rshift__
    monkeypatch.setattr(kind, "__rshift__", lambda self, by: right(self, by + 1))


# what is planted; section, name, verdict and a part of the reason; what stays right
FAULTS = [
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
        "all names",
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
    (
        write_in_place,
        "layers",
        "ReLU",
        "wrong",
        "x, an argument, was changed in place",
        "Tanh",
    ),
    (shift_words, "random words", "words", "wrong", ", expected ", None),
]


@pytest.mark.parametrize(
    ("plant", "section", "name", "verdict", "reason", "right"),
    FAULTS,
    ids=[f"{fault[0].__name__}, {fault[1]}" for fault in FAULTS],
)
def test_a_planted_fault_is_named(
    strict, bare, monkeypatch, plant, section, name, verdict, reason, right
):
    plant(strict, monkeypatch)
    result = conformance(bare, only=name)
    (finding,) = result.findings
    assert (finding.section, finding.verdict) == (section, verdict), finding
    assert reason in finding.reason
    assert not result.conforms
    assert right is None or conformance(bare, only=right).conforms


def test_the_size_of_an_error_is_reported(strict, bare, monkeypatch):
    round_products(strict, monkeypatch)
    (finding,) = conformance(bare, only="Dense").findings
    assert 2.0**-9 < finding.float32 < 2.0**-5
    assert 2.0**-9 < finding.float64 < 2.0**-5


def test_a_missing_function_fails_only_the_trials_that_use_it(
    strict, bare, monkeypatch
):
    lack_take_along_axis(strict, monkeypatch)
    assert [
        line.split()[0] for line in complaints(conformance(bare, only="losses"))
    ] == ["ctc"]


CAUSES = {
    "AttributeError: module 'x' has no attribute 'take_along_axis'": (
        "take_along_axis is missing"
    ),
    "lacks take_along_axis, tanh": "take_along_axis, tanh is missing",
    "float64: x, an argument, was changed in place": "an argument is changed in place",
    "BackendUnavailable: mine has no float64": "no float64",
    "y is float64 (4, 5), expected float32 (4, 5)": "dtype float64 instead of float32",
    "y is float32 (4, 1), expected float32 (4,)": "wrong shape",
    "grads.bias[2] is 1.5, expected 2.5": "numbers differ by more than rounding",
    "float64: y is nan, expected 2": "numbers differ by more than rounding",
    "state.mean is missing": "an array is missing or not expected",
    "no answer within 5 seconds": "no answer within N seconds",
    "float64: KeyError: a": "KeyError: a",
    "the process ended by SIGKILL": "the process ended by SIGKILL",
    "ValueError: shapes (3, 4) and (5,) at index 12": (
        "ValueError: shapes (...) and (...) at index N"
    ),
}


@pytest.mark.parametrize("reason", CAUSES)
def test_a_cause_leaves_out_the_details_of_a_reason(reason):
    assert cause_of(reason) == CAUSES[reason]


def made(*findings):
    return Conformance("mine", "1.0", "a device", "without an adapter", findings)


def test_failures_are_counted_by_cause_with_an_example():
    lacks = "AttributeError: module 'mine' has no attribute 'tanh'"
    kinds = [
        Finding("layers", f"RNN{i}", "unsupported", reason=lacks) for i in range(9)
    ]
    wrong = Finding("losses", "huber", "wrong", reason="loss is 1.5, expected 2.5")
    passed = [Finding("losses", f"loss{i}", "exact", 0.0) for i in range(20)]
    result = made(wrong, *kinds, *passed)
    assert [cause.cause for cause in result.causes] == [
        "tanh is missing",
        "numbers differ by more than rounding",
    ]
    text = str(result)
    assert max(map(len, text.splitlines())) <= TERMINAL_WIDTH
    words = " ".join(text.split())
    assert re.search(r"tanh is missing +9 +layers, RNN0: AttributeError", text)
    assert "rounding expected 2.5" in words  # a cell in two lines
    assert "RNN5" not in text
    assert "loss7" not in text
    assert re.search(r"losses +20 +1\n", text)
    assert text.endswith("docs/tutorials/write_a_backend.md explains how to write it.")
    assert "examples/mlx_backend" in text
    assert "RNN5" in result.to_text(verbose=True)
    assert "loss7" in result.to_text(verbose=True)
    data = result.to_json()["causes"]
    assert [len(cause["checks"]) for cause in data] == [9, 1]
    assert "| tanh is missing | 9 | layers, RNN0: " in result.to_markdown()
    assert "What fails" not in made(*passed).to_markdown()
    assert "what fails" not in str(made(*passed))


@pytest.mark.parametrize(("verbose", "hides"), [([], True), (["--verbose"], False)])
def test_the_command_shows_every_check_on_request(verbose, hides, monkeypatch, capsys):
    passed = [Finding("losses", f"loss{i}", "exact", 0.0) for i in range(30)]
    result = made(*passed, Finding("layers", "Dense", "wrong", reason="y is missing"))
    package = "agnostic_nn.diagnostics.conformance"
    monkeypatch.setattr(f"{package}.guarded", lambda *args, **options: result)
    assert main(["conformance", "numpy", *verbose]) == 1
    assert ("loss7" not in capsys.readouterr().out) is hides


def test_paths_in_the_pointer_exist():
    for path in re.findall(r"(?:examples|docs)/[\w./]+\w", POINTER):
        assert (ROOT / path).exists(), path


# --- names of libraries ---------------------------------------------------------------


@pytest.fixture
def module(monkeypatch):
    """A function that makes a module: NumPy's adapter with some names replaced."""

    def make(name, **names):
        host = nn.backend("numpy").adapter
        module = ModuleType(name)
        vars(module).update(members(host, **names))
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


def test_a_module_that_is_an_adapter_needs_no_registration(module):
    module("adapter_of_mine", version="1.5", devices=lambda: {"desk:0": "cpu"})
    result = conformance("adapter_of_mine", only="arrays")
    assert (result.backend, result.version) == ("adapter_of_mine:desk:0", "1.5")
    assert result.adapter == "through the adapter adapter_of_mine"
    assert complaints(result) == []


def test_a_namespace_may_be_an_attribute_of_a_module(module):
    module("library_of_mine", inner=np)
    result = conformance("library_of_mine:inner", only="arrays")
    assert result.adapter == "without an adapter"
    assert complaints(result) == []


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
        {"jit": lambda function, device, donate=(): lambda *args: {}},
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
def test_a_wrong_adapter_is_reported(module, names, section, name, reason):
    module("adapter_of_mine", **names)
    result = conformance("adapter_of_mine", only=name)
    (finding,) = result.findings
    assert (finding.section, finding.verdict in ("wrong", "unsupported")) == (
        section,
        True,
    )
    assert reason in finding.reason


def test_an_incomplete_adapter_is_refused(module):
    source = module("adapter_of_mine")
    del source.vjp, source.describe
    with pytest.raises(
        nn.BackendUnavailable, match="is an adapter, but lacks describe, vjp"
    ):
        library("adapter_of_mine")


def test_arrays_that_numpy_cannot_read_are_reported(module):
    class Boxed:
        """An array without `__array__` and other methods that let NumPy read it."""

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
    vars(boxes).update(
        dtypes, asarray=lambda x, dtype=None: Boxed(np.asarray(x, dtype))
    )
    module("home_of_mine", boxes=boxes)
    result = conformance("home_of_mine:boxes", only="int32, round trip")
    (finding,) = result.findings
    assert finding.verdict == "unsupported"
    assert "NumPy cannot read arrays of home_of_mine:boxes" in finding.reason


def test_without_float64_the_rest_is_tried_in_float32(module):
    module("adapter_of_mine", double=None, has_float64=lambda device: False)
    result = conformance("adapter_of_mine", only="optimizers")
    assert complaints(result) == []
    assert all(
        finding.float64 is None and finding.float32 is not None
        for finding in result.findings
    )


def test_the_example_adapter_has_every_name():
    path = ROOT / "examples" / "mlx_backend" / "mlx_for_agnostic_nn.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assignments = (statement for statement in body if isinstance(statement, ast.Assign))
    values = {
        ast.unparse(statement.targets[0]): statement.value for statement in assignments
    }
    assert set(ast.literal_eval(values["__all__"])) == set(backend.ADAPTER)


# --- the command and its page ---------------------------------------------------------


def test_the_command_prints_and_writes_its_findings(tmp_path, capsys):
    files = tmp_path / "new" / "found.json", tmp_path / "new" / "found.md"
    command = ["conformance", "numpy", "--bare", "--only=losses", "--verbose"]
    assert main([*command, f"--json={files[0]}", f"--markdown={files[1]}"]) == 0
    out = capsys.readouterr().out
    data, page = json.loads(files[0].read_text("utf-8")), files[1].read_text("utf-8")
    assert data["totals"]["unsupported"] == 0
    assert sum(data["totals"].values()) == len(data["findings"])
    for finding in data["findings"]:
        assert f"| {finding['name']} | {finding['verdict']} |" in page
        assert finding["name"] in out
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


def test_a_case_that_hangs_or_ends_the_process_is_unsupported_and_the_rest_runs(
    tmp_path, monkeypatch
):
    (tmp_path / "adapter_of_mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    arguments = "adapter_of_mine", "--only=arrays", "--seconds=3", "--json=found.json"
    assert main(["conformance", *arguments]) == 1
    result = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert (result["backend"], result["version"]) == ("adapter_of_mine:cpu", "1.5")
    named = {finding["name"].split(",")[0]: finding for finding in result["findings"]}
    assert {
        name: (finding["verdict"], finding["reason"]) for name, finding in named.items()
    } == {
        "bool": ("wrong", "[0, 1] is 0, expected 1"),
        "int32": ("unsupported", "no answer within 3 seconds"),
        "uint32": ("unsupported", "the process ended by SIGKILL"),
        "float32": ("unsupported", "the process ended with exit status 3"),
        "float64": ("exact", ""),
    }


def test_a_library_that_does_not_start_is_refused(tmp_path, monkeypatch):
    (tmp_path / "adapter_of_mine.py").write_text(
        "import os; os._exit(3)", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    message = "adapter_of_mine does not start: the process ended with exit status 3"
    with pytest.raises(nn.BackendUnavailable, match=message):
        guarded("adapter_of_mine", only="arrays")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gone_library",
            r"gone_library is not a backend \(numpy, .*\): there is no module 'gone_l",
        ),
        ("json:gone", "json:gone is not a backend .*: json has no 'gone'"),
        ("numpy:gone", "numpy has no device 'gone'"),
        ("json", "arrays of json do not follow the Array API Standard"),
    ],
)
def test_names_that_are_not_libraries_are_refused(name, message):
    with pytest.raises(nn.BackendUnavailable, match=message):
        library(name)


INVALID = [
    (["gone_library"], "gone_library is not a backend (numpy, "),
    (["numpy", "--only=everything"], "there are Array API names, arrays, "),
    (["numpy", f"--json={__file__}/x.json"], "cannot be written to"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), INVALID, ids=lambda value: str(value)[:30]
)
def test_invalid_arguments_are_refused(capsys, arguments, message):
    assert main(["conformance", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


# --- the names that the library uses
# ----------------------------------------------------


def test_the_page_lists_the_names_that_the_library_uses():
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert f"\n\n{needs_paragraph()}\n\n" in page, "nox -s proofs -- --write"


def test_names_are_those_of_a_namespace():
    source = """
xp = namespace(x)
y = xp.sin(x) + namespace(y).cos(y)
z = self.xp.tan(x) + np.exp(x)
w = xp.asarray(0.0, dtype=xp.float64)
"""
    assert set(names_used(source)) == {"sin", "cos", "asarray", "float64"}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A function that adds a file to a small package, which stands for the library."""

    def plant(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for folder in sources.FOLDERS:
        plant(f"{folder}/base.py", "xp.add")
    for name in sources.FILES:
        plant(name, "")
    monkeypatch.setattr(sources, "files", lambda package: tmp_path)
    needs.cache_clear()
    yield plant
    needs.cache_clear()


def test_each_source_file_is_read_once(planted):
    planted("layers/curves.py", "xp.atan(x)")
    planted("training/steps.py", "namespace(x).where(x, xp.float64)")
    planted("training/data.py", "xp.unique_values(x)")  # not run on a backend
    planted("layers/readme.txt", "xp.matmul(x)")
    assert needs() == ("add", "atan", "where")
    planted("layers/curves.py", "xp.acos(x)")
    assert needs() == ("add", "atan", "where")


def test_sources_in_a_zip_file_are_read(planted, tmp_path, monkeypatch):
    planted("losses/base.py", "xp.log(x)")
    archive = shutil.make_archive(tmp_path / "library", "zip", tmp_path)
    root = zipfile.Path(archive)
    monkeypatch.setattr(sources, "files", lambda package: root)
    assert needs() == ("add", "log")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("losses", r"has no losses/\*.py: install agnostic_nn with its .py files"),
        ("schedules.py", "has no schedules.py: install"),
    ],
)
def test_missing_sources_are_reported(planted, tmp_path, gone, message):
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MissingSources, match=message):
        needs()
    result = conformance("numpy", only="Array API names")
    (finding,) = result.findings
    assert finding.verdict == "skipped"
    assert re.search(message, finding.reason)
    assert re.search(rf"\(not listed: .*{message}", result.to_markdown())
    assert result.to_json()["needs"] is None
