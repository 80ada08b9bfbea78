"""The report of `compare` as dataclasses: JSON, JSON Schema and documentation."""

import json
import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from report_schema import PAGE, SCHEMA, classes, page, schema

import agnostic_nn as nn
from agnostic_nn.diagnostics.compare import (
    Report,
    Workload,
    merge,
    run_comparison,
    write,
)
from agnostic_nn.diagnostics.compare.conversion import (
    descriptions,
    finite,
    from_json,
    json_schema,
    to_json,
)
from agnostic_nn.metrics import accuracy
from agnostic_nn.training.batches import Examples

UPDATE = "run `python tests/report_schema.py`"


# --- the documentation ----------------------------------------------------------------


def test_the_committed_schema_is_that_of_the_dataclasses():
    assert SCHEMA.read_text(encoding="utf-8") == schema(), UPDATE


def test_the_tables_of_the_documentation_are_those_of_the_dataclasses():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), UPDATE


def test_every_dataclass_has_one_table_below_its_own_heading():
    headings = re.findall(
        r"^##+ (\w+)\n(?:(?!#|<!--).*\n)*<!-- the fields of (\w+) -->$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    names = sorted(each.__name__ for each in classes())
    assert sorted(headings) == [(name, name) for name in names]


def test_the_schema_is_valid_and_has_a_description_of_every_field():
    data = json.loads(schema())
    Draft202012Validator.check_schema(data)
    for each in (data, *data["$defs"].values()):
        for field in each["properties"].values():
            assert len(field["description"]) > 3


# --- reports --------------------------------------------------------------------------


def _read():
    x = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    target = (x[:, 0] > 0).astype(np.int32)
    return Examples(x[:48], target[:48]), Examples(x[48:], target[48:])


def _workload(**changes):
    model = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Tanh(), nn.Dense(2))
    about = ("sides", "two sides", _read)
    work = Workload(*about, model, nn.softmax_cross_entropy, accuracy, 2, batch_size=16)
    return replace(work, **changes)


UNBOUNDED = nn.Sequential(nn.Dense(4), nn.SiLU(), nn.Dense(2))


class Wrong(nn.Dense):
    """A layer whose outputs in float32 are too large."""

    def forward(self, params, state, x, *, train=False):
        y, state, cache = super().forward(params, state, x, train=train)
        return y * 1.01 if x.dtype == np.float32 else y, state, cache


class Broken(nn.Dense):
    """A layer that raises an exception in float32."""

    def forward(self, params, state, x, *, train=False):
        if x.dtype == np.float32 and type(x) is np.ndarray:
            raise RuntimeError("out of order")
        return super().forward(params, state, x, train=train)


def _merged(folder):
    report = run_comparison(_workload(), ["numpy"], sizes=(1, 4))
    write(report, folder / "one")
    environment = replace(report.machines[0].environment, variables={"MKL_CBWR": "1"})
    machine = replace(report.machines[0], environment=environment)
    write(replace(report, machines=(machine,)), folder / "two")
    return merge([folder / name / "report.json" for name in ("one", "two")])


REPORTS = {  # by the event: a function of a folder, and a test that it has happened
    "agrees": (
        lambda folder: run_comparison(
            _workload(optimizer=nn.SGD(0.1)),
            ["numpy", "numpy:tape"],
            dtypes=["float32", "float64"],
            skip_missing=True,
        ),
        lambda report: {r.status for r in report.results} == {"agrees"},
    ),
    "not checked": (
        lambda folder: run_comparison(_workload(optimizer=nn.Adam(0.02)), ["numpy"]),
        lambda report: report.results[0].control and report.results[0].not_checked,
    ),
    "differs": (
        lambda folder: run_comparison(_workload(model=Wrong(2)), ["numpy"], sizes=()),
        lambda report: report.results[0].differences,
    ),
    "diverges": (
        lambda folder: run_comparison(
            _workload(model=UNBOUNDED, optimizer=nn.SGD(1e150)), ["numpy"]
        ),
        lambda report: None in report.reference.losses and report.reference.diverges,
    ),
    "an exception": (
        lambda folder: run_comparison(_workload(model=Broken(2)), ["numpy"], sizes=()),
        lambda report: report.results[0].error == "RuntimeError: out of order",
    ),
    "left out": (
        lambda folder: run_comparison(_workload(), epochs=1, sizes=()),
        lambda report: report.left_out,
    ),
    "merged": (_merged, lambda report: report.differences),
}


@pytest.fixture(scope="module", params=REPORTS)
def report(request, tmp_path_factory):
    make, happened = REPORTS[request.param]
    report = make(tmp_path_factory.mktemp("reports"))
    assert happened(report)
    return report


def test_reports_are_valid_and_read_back_as_they_were(report, tmp_path):
    write(report, tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    Draft202012Validator(json.loads(schema())).validate(json.loads(text))
    again = type(report).from_json(json.loads(text))
    assert again == report
    assert str(again) == str(report)


@pytest.fixture(scope="module")
def data():
    return json.dumps(
        run_comparison(_workload(), ["numpy"], epochs=1, sizes=(4,)).to_json()
    )


def _change(data, path, value):
    *places, last = path
    for place in places:
        data = data[place]
    if value is KeyError:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 3, r"^schema: expected 5, got 3$"),
        (["schema"], True, r"^schema: expected 5, got True$"),
        (["results"], {}, r"^results: expected a list, got \{\}$"),
        (["workload"], [], r"^workload: expected an object, got \[\]$"),
        (["workload", "seed"], "0", r"^workload\.seed: expected an integer, got '0'$"),
        (["workload", "seed"], 0.0, r"^workload\.seed: expected an integer, got 0\.0$"),
        (
            ["workload", "metric"],
            7,
            r"^workload\.metric: expected a string or null, got 7$",
        ),
        (["workload", "options", 0], None, r"^workload\.options\[0\]: .*, got None$"),
        (
            ["results", 0, "status"],
            "fine",
            r"^results\[0\]\.status: expected 'agrees' or 'differs' or 'not checked' "
            r"or 'failed', got 'fine'$",
        ),
        (
            ["results", 0, "deterministic"],
            1,
            r"^results\[0\]\.deterministic: expected true or false or null, got 1$",
        ),
        (
            ["results", 0, "step_ms_quartiles"],
            [1.0],
            r"^results\[0\]\.step_ms_quartiles: expected a list of 2 or null, got",
        ),
        (
            ["results", 0, "deviations", "layers", "0", "relative"],
            "0",
            r"^results\[0\]\.deviations\.layers\.0\.relative: expected a number",
        ),
        (
            ["results", 0, "batches", 0, "size"],
            KeyError,
            r"^results\[0\]\.batches\[0\]: expected the fields size, step_ms, got none "
            r"called size$",
        ),
        (
            ["results", 0, "batches", 0, "sise"],
            4,
            r"^results\[0\]\.batches\[0\]: expected only the fields size, step_ms, got "
            r"also 'sise'$",
        ),
    ],
)
def test_an_invalid_report_is_refused_with_the_path_of_the_wrong_value(
    data, path, value, message
):
    changed = json.loads(data)
    changed["workload"]["options"] = ["--workload"]
    validator = Draft202012Validator(json.loads(schema()))
    assert validator.is_valid(changed)
    Report.from_json(changed)
    _change(changed, path, value)
    with pytest.raises(ValueError, match=message):
        Report.from_json(changed)
    if value != 0.0:  # which is an integer in JSON Schema
        assert not validator.is_valid(changed)


def test_a_report_that_is_not_an_object_is_refused():
    with pytest.raises(ValueError, match=r"^expected an object, got \[1\]$"):
        Report.from_json([1])


# --- the conversion -------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """A pair."""

    pair: tuple[float, float]
    """two numbers;
    None is null"""


@dataclass(frozen=True)
class More(Inner):
    """A pair and a word."""

    word: Literal["a", "b"] | None = None
    """a word"""


@dataclass(frozen=True)
class Outer:
    """All kinds of fields."""

    inner: Inner | None
    """an object"""
    named: dict[str, tuple[More, ...]]
    """lists by name"""


EXAMPLE = Outer(Inner((1.0, 2.5)), {"x": (More((0.0, 1.0), "b"), More((2.0, 2.0)))})
EXAMPLE_JSON = {
    "inner": {"pair": [1.0, 2.5]},
    "named": {
        "x": [{"pair": [0.0, 1.0], "word": "b"}, {"pair": [2.0, 2.0], "word": None}]
    },
}


def test_dataclasses_become_json_and_back():
    assert to_json(EXAMPLE) == EXAMPLE_JSON
    assert from_json(Outer, EXAMPLE_JSON) == EXAMPLE


def test_integers_are_read_as_floats_where_numbers_are_expected():
    pair = from_json(Inner, {"pair": [1, 2]}).pair
    assert [type(number) for number in pair] == [float, float]


def test_the_docstring_of_a_field_follows_it_and_is_inherited():
    assert descriptions(More) == {"pair": "two numbers; null is null", "word": "a word"}


def test_the_schema_has_the_types_of_the_fields():
    data = json_schema(Outer)
    assert list(data["$defs"]) == ["Inner", "More"]
    pair = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    words = data["$defs"]["Inner"]["properties"]["pair"].pop("description")
    assert data["$defs"]["Inner"]["properties"] == {"pair": pair}
    assert words == "two numbers; null is null"
    Draft202012Validator.check_schema(data)
    Draft202012Validator(data).validate(EXAMPLE_JSON)


def test_numbers_that_json_cannot_represent_become_none():
    example = replace(EXAMPLE, inner=Inner((np.inf, np.nan)))
    assert finite(example) == replace(EXAMPLE, inner=Inner((None, None)))
