"""Merging reports of one training from several machines; refusing other reports."""

import json
import re
from html import unescape
from importlib import util

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.diagnostics.compare import (
    CannotCompare,
    Workload,
    merge,
    page,
    run_comparison,
    summary,
    write,
)
from agnostic_nn.diagnostics.compare.report.markdown import markdown
from agnostic_nn.diagnostics.compare.report.merged import (
    settings_by_machine,
    times_by_machine,
    verdicts_by_machine,
)
from agnostic_nn.diagnostics.compare.report.tables import largest_ratio
from agnostic_nn.diagnostics.compare.schema import Difference
from agnostic_nn.metrics import accuracy
from agnostic_nn.training.batches import Examples


def _read():
    x = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    target = (x[:, 0] > 0).astype(np.int32)
    return Examples(x[:48], target[:48]), Examples(x[48:], target[48:])


MODEL = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2))
SIDES = Workload(
    *("sides", "two sides", _read, MODEL, nn.softmax_cross_entropy, accuracy, 2),
    batch_size=16,
)


@pytest.fixture(scope="module")
def report():
    return run_comparison(SIDES, ["numpy"], sizes=(1, 4))


@pytest.fixture
def saved(report, tmp_path):
    """Return a function that saves a report with changes and returns its path."""

    def save(name, **changes):
        changed = report.to_json()
        for path, value in changes.items():
            *way, last = path.split("__")
            place = changed
            for step in way:
                place = place[int(step) if step.isdecimal() else step]
            place[int(last) if last.isdecimal() else last] = value
        path = tmp_path / name / "report.json"
        path.parent.mkdir()
        path.write_text(json.dumps(changed), encoding="utf-8")
        return path

    return save


ELSEWHERE = {
    "machines__0__label": "Another Processor",
    "machines__0__environment__processor": "Another Processor",
    "machines__0__environment__variables": {"OMP_NUM_THREADS": "77"},
    "results__0__machine": "Another Processor",
    "results__0__hardware": "Another Processor",
    "results__0__has_float64": False,
    "results__0__version": "0.1",
    "results__0__step_ms": 1e6,
}


def test_machines_are_called_by_their_processors_where_these_differ(saved, report):
    merged = merge([saved("one"), saved("two", **ELSEWHERE)])
    here = report.machines[0].label
    assert [m.label for m in merged.machines] == [here, "Another Processor"]
    assert [r.machine for r in merged.results] == [here, "Another Processor"]
    assert f"numpy:cpu ({here})" in summary(merged, verbose=True)
    assert "numpy:cpu (Another Processor)" in summary(merged, verbose=True)


def test_machines_are_called_by_their_files_where_processors_do_not_differ(saved):
    merged = merge([saved("one"), saved("two")])
    assert [m.label for m in merged.machines] == ["one", "two"]
    assert [r.machine for r in merged.results] == ["one", "two"]


def test_machines_are_called_by_labels_if_given(saved):
    merged = merge([saved("one"), saved("two")], ["laptop", "server"])
    assert [r.machine for r in merged.results] == ["laptop", "server"]


def test_a_merged_report_can_be_merged_again(saved, tmp_path):
    write(merge([saved("one"), saved("two")]), tmp_path / "both")
    merged = merge([tmp_path / "both" / "report.json", saved("three", **ELSEWHERE)])
    assert [m.label for m in merged.machines] == [
        "one",
        "two",
        "Another Processor",
    ]
    again = merge([tmp_path / "both" / "report.json", saved("four")], ["those", "this"])
    assert [m.label for m in again.machines] == [
        "those, one",
        "those, two",
        "this",
    ]


def test_a_merged_report_has_the_fields_of_others_and_holds_all_results(saved, report):
    merged = merge([saved("one"), saved("two", **ELSEWHERE)])
    assert len(merged.results) == 2
    for key in ("workload", "start_sha256", "reference", "tolerance"):
        assert getattr(merged, key) == getattr(report, key)


def test_sentences_name_each_difference_of_machines_and_its_effect(saved, report):
    here = report.machines[0].label
    sentences = merge([saved("one"), saved("two", **ELSEWHERE)]).differences
    text = "\n".join(sentences)
    assert (
        f"processor: {here} ({here}), Another Processor (Another Processor)."
        in sentences
    )
    assert "OMP_NUM_THREADS: " in text
    assert "77 (Another Processor)" in text
    version = report.results[0].version
    expected = f"version of numpy:cpu: {version} ({here}), 0.1 (Another Processor)."
    assert expected in sentences
    available = f"available ({here}), not available (Another Processor)."
    assert f"float64 of numpy:cpu: {available}" in sentences
    assert f" ms in numpy:cpu ({here}), the fastest, and " in text
    assert "times as long in numpy:cpu (Another Processor)." in text
    assert (
        "All of them agree with the reference: their differences are rounding."
        in sentences
    )
    assert "are bit-identical at every step." in text
    assert not [line for line in sentences if line.startswith("date")]


@pytest.fixture
def three(saved, report):
    """A merged report: all agrees, one differs, one failed on a machine with jax."""
    difference = Difference(
        step=2,
        description="the output of layer 0 (Dense)",
        quantity="layers",
        name="0",
        layer="0",
        relative=1e-3,
        tolerance=1e-6,
    )
    differs = {
        "results__0__status": "differs",
        "results__0__differences": [vars(difference)],
        "results__0__step_ms": 4.0,
        "machines__0__environment__variables": {"OMP_NUM_THREADS": "77"},
    }
    failed = {
        "results__0__backend": "jax",
        "results__0__status": "failed",
        "results__0__error": "out of memory",
        "results__0__deviations": None,
        "results__0__step_ms": None,
        "machines__0__environment__variables": {"OMP_NUM_THREADS": "77"},
    }
    first = {
        "results__0__step_ms": 2.0,
        "machines__0__environment__variables": {"OMP_NUM_THREADS": "1"},
    }
    files = [saved("a", **first), saved("b", **differs), saved("c", **failed)]
    return merge(files, ["laptop", "server", "cluster"])


def test_machines_are_side_by_side_with_symbols_and_words(three, report):
    columns, rows = verdicts_by_machine(three)
    assert columns == ["backend", "laptop", "server", "cluster"]
    ratio = f"({largest_ratio(report.results[0]):g})"
    assert rows == [
        ["numpy:cpu", f"✓ agrees {ratio}", f"✗ differs, step 2 {ratio}", "– not run"],
        ["jax:cpu", "– not run", "– not run", "! failed"],
    ]


def test_times_are_relative_to_the_fastest_run_of_all_machines(three):
    assert times_by_machine(three)[1] == [["numpy:cpu", "2 (1x)", "4 (2x)", None]]


def test_settings_are_listed_only_if_they_differ(three):
    columns, rows = settings_by_machine(three)
    assert columns == ["setting", "laptop", "server", "cluster"]
    assert rows == [["OMP_NUM_THREADS", "1", "77", "77"]]


def test_every_format_of_a_merged_report_begins_with_the_answer_and_the_machines(three):
    answer = "numpy:cpu (server) differs by more than rounding from step 2"
    lines = summary(three).splitlines()
    assert lines[0].startswith(answer)
    assert max(map(len, lines)) <= 80
    formats = [summary(three), markdown(three)]
    if util.find_spec("jinja2") and util.find_spec("matplotlib"):
        formats.append(unescape(re.sub("<[^>]*>", " ", page(three))))
    for text in formats:
        words = " ".join(text.split())
        answered = words.index("differs by more than rounding")
        matrix = words.index("not run")
        settings = words.index("OMP_NUM_THREADS")
        assert answered < matrix < words.index("(2x)") < settings
        assert "bit-identical at every step" in words


def test_a_table_of_many_machines_is_split_and_fits_80_columns(saved, report):
    labels = [f"machine number {i}" for i in range(7)]
    threads = "machines__0__environment__variables"
    files = [saved(f"m{i}", **{threads: {"OMP_NUM_THREADS": f"{i}"}}) for i in range(7)]
    lines = summary(merge(files, labels)).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(text.count(f"machine number {i}") >= 3 for i in range(7))


def test_policies_that_differ_are_said_with_what_was_found(saved):
    probe = {how: {"matmul": "TensorFloat-32"} for how in ("eager", "compiled")}
    changes = {"precision": "fast", "deterministic": True, "measured_precision": probe}
    changes = {f"results__0__{key}": value for key, value in changes.items()}
    merged = merge([saved("one"), saved("two", **changes)])
    assert "precision of numpy:cpu: strict (one), fast (two)." in merged.differences
    assert "deterministic of numpy:cpu: False (one), True (two)." in merged.differences
    expected = (
        "products of numpy:cpu: float32 eager, float32 compiled (one), TensorFloat-32 "
        "eager, TensorFloat-32 compiled (two)."
    )
    assert expected in merged.differences
    assert "numpy:cpu strict (one): agrees over" in summary(merged, verbose=True)
    assert "numpy:cpu fast deterministic (two): agrees over" in summary(
        merged, verbose=True
    )


def test_losses_that_part_are_said_with_the_step_and_a_run_that_left_with_its_name(
    saved, report
):
    losses = list(report.results[0].losses)
    losses[2] += 1e-3
    changes = {"results__0__losses": losses, "results__0__status": "differs"}
    text = "\n".join(merge([saved("one"), saved("two", **changes)]).differences)
    assert (
        "The losses of numpy:cpu (one) and numpy:cpu (two) first differ at step 3."
        in text
    )
    assert "There are differences beyond rounding in numpy:cpu (two)." in text
    assert "All of them agree" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workload__name": "other"}, r"name \(sides and other\)"),
        ({"workload__seed": 7}, r"seed \(0 and 7\)"),
        (
            {"workload__epochs": 9, "workload__seed": 7},
            r"epochs \(2 and 9\); seed \(0 and 7\)",
        ),
        ({"workload__data_sha256": "beef"}, r"data sha256 \(.* and beef\)"),
        (
            {"start_sha256": "0" * 64},
            r"starting parameters \(SHA-256 \w{12} and 000000000000\)",
        ),
        (
            {"reference__losses__3": 0.5},
            r"the reference's loss at step 4 \(.* and 0\.5\)",
        ),
        (
            {"tolerance__step_roundings": 12},
            r"counted roundings \(.* and 12 per step\)",
        ),
    ],
)
def test_reports_that_cannot_be_compared_are_refused_with_their_difference(
    saved, changes, message
):
    with pytest.raises(
        CannotCompare, match=r"two.*cannot be compared with .*one.*: " + message
    ):
        merge([saved("one"), saved("two", **changes)])


def test_a_reference_that_was_rounded_otherwise_is_the_same(saved, report):
    losses = [loss * (1 + 2.0**-50) for loss in report.reference.losses]
    assert merge([saved("one"), saved("two", reference__losses=losses)])


def test_reports_of_another_schema_are_refused_with_what_to_do(saved):
    with pytest.raises(
        CannotCompare, match=r"has schema 1, and only .* schema 5 .* again"
    ):
        merge([saved("one"), saved("two", schema=1)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "is not a report.json"),
        (
            '{"schema": 5}',
            "is not a report.json of `agnostic-nn compare`, or is damaged: expected "
            "the fields schema, verdict, .*, got none called verdict, unfinished, ",
        ),
    ],
)
def test_a_file_that_is_not_a_report_is_refused(saved, tmp_path, text, message):
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(CannotCompare, match=message):
        merge([saved("one"), path])


def test_one_report_and_labels_that_do_not_fit_are_refused(saved):
    first, second = saved("one"), saved("two")
    with pytest.raises(CannotCompare, match="two reports or more"):
        merge([first])
    with pytest.raises(CannotCompare, match="expected 2 labels, one per report, got 1"):
        merge([first, second], ["a"])
    with pytest.raises(CannotCompare, match="expected different labels, got a, a"):
        merge([first, second], ["a", "a"])
