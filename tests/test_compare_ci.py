"""`compare` in continuous integration: JUnit XML, annotations and the exit status."""

import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.diagnostics import compare
from agnostic_nn.diagnostics.cli import compare as commands
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.compare import (
    Workload,
    annotations,
    junit,
    run_comparison,
    step_summary,
)
from agnostic_nn.diagnostics.compare.comparison import overall
from agnostic_nn.diagnostics.compare.folders import new_folder
from agnostic_nn.diagnostics.compare.report.markdown import markdown
from agnostic_nn.diagnostics.compare.report.sentences import sentence
from agnostic_nn.diagnostics.compare.schema import Difference, LeftOut, NotChecked
from agnostic_nn.training.batches import Examples

HOSTILE = "<&>\"'\0\x1b[31m\ud800\uffff]]>\n::error::no, %0A | 100 %"
DIFFERENCE = Difference(
    step=3,
    description="the output of layer 0 (Dense)",
    quantity="layers",
    name="0",
    layer="0",
    relative=1e-3,
    tolerance=2e-6,
)


def _read():
    x = np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32)
    return Examples(x[:16], x[:16, :1]), Examples(x[16:], x[16:, :1])


LINE = Workload(
    *("line", "a line", _read, nn.Dense(1), nn.mean_squared_error, None),
    epochs=1,
    batch_size=8,
)


@pytest.fixture(scope="module")
def good():
    """Return a report in which NumPy agrees."""
    return run_comparison(LINE, ["numpy"], sizes=())


@pytest.fixture(scope="module")
def report(good):
    """Return a report with a run of each status, and a backend that was left out."""
    (agrees,) = good.results
    difference = vars(DIFFERENCE)
    differs = replace(
        agrees,
        backend="wrong",
        status="differs",
        verdict="differs by more than rounding from step 3",
        first_difference=DIFFERENCE,
        differences=(DIFFERENCE,),
        deterministic=True,
    )
    unchecked = replace(
        agrees,
        backend="unsure",
        status="not checked",
        verdict="agrees wherever it can be checked",
        not_checked=(NotChecked(**difference, reason="it overflows"),),
        precision="fast",
    )
    failed = replace(
        agrees,
        backend="broken",
        status="failed",
        verdict="failed",
        error="ValueError: no",
        deviations=None,
        steps=None,
        step_ms=None,
        first_step_ms=None,
    )
    results = (agrees, differs, unchecked, failed)
    left_out = tuple(
        LeftOut(backend="cupy", reason=reason, machine=agrees.machine)
        for reason in ("it is not installed", "it has no float64")
    )
    return replace(good, results=results, left_out=left_out, verdict=overall(results))


# --- JUnit XML ------------------------------------------------------------------------

# Of each element: its required and optional attributes, and its elements in order. As
# in the schemas of JUnit's Ant task and of Jenkins; what only one of them requires is
# required here.
COUNTS = {"tests", "failures", "errors"}
NAMES = {"name", "hostname", "timestamp", "package", "id", "time"}
RULES = {
    "testsuites": (set(), COUNTS | {"name", "time", "skipped"}, "(testsuite )*"),
    "testsuite": (
        COUNTS | NAMES,
        {"skipped"},
        "properties (testcase )*system-out system-err ",
    ),
    "properties": (set(), set(), "(property )*"),
    "property": ({"name", "value"}, set(), ""),
    "testcase": (
        {"name", "classname", "time"},
        set(),
        "(skipped |failure |error )?",
    ),
    "skipped": (set(), {"message", "type"}, ""),
    "failure": ({"type"}, {"message"}, ""),
    "error": ({"type"}, {"message"}, ""),
    "system-out": (set(), set(), ""),
    "system-err": (set(), set(), ""),
}
OF_COUNT = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def violations(text):
    """Yield each rule of the format that a file breaks."""
    root = ElementTree.fromstring(text)
    if root.tag != "testsuites":
        yield f"the root is {root.tag}"
    for element in root.iter():
        required, optional, content = RULES[element.tag]
        if not required <= set(element.keys()) <= required | optional:
            yield f"{element.tag} has the attributes {sorted(element.keys())}"
        children = "".join(f"{child.tag} " for child in element)
        if not re.fullmatch(content, children):
            yield f"{element.tag} contains {children}"
        if element.tag not in ("testsuites", "testsuite"):
            continue
        counted = {"tests": len(list(element.iter("testcase")))}
        for name, tag in OF_COUNT.items():
            counted[name] = len(list(element.iter(tag)))
        for name, count in counted.items():
            if element.get(name) != str(count):
                yield f"{element.tag} says {name}={element.get(name)}, not {count}"
    for suite in root.iter("testsuite"):
        cases = list(suite.iter("testcase"))
        names = Counter((case.get("classname"), case.get("name")) for case in cases)
        yield from (f"two test cases {name}" for name, n in names.items() if n > 1)
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp")):
            yield f"the timestamp is {suite.get('timestamp')}"
        for timed in (suite, *cases):
            if not re.fullmatch(r"\d+\.\d{3}", timed.get("time", "")):
                yield f"a time is {timed.get('time')}"


def cases(text):
    """Return the test cases by name."""
    elements = ElementTree.fromstring(text).iter("testcase")
    return {case.get("name"): case for case in elements}


def test_junit_has_a_test_case_of_each_status(report):
    text = junit(report)
    assert list(violations(text)) == []
    outcomes = {
        name: [child.tag for child in case] for name, case in cases(text).items()
    }
    assert outcomes == {
        "numpy:cpu float32": [],
        "wrong:cpu float32 deterministic": ["failure"],
        "unsure:cpu float32 fast": ["skipped"],
        "broken:cpu float32": ["error"],
        "cupy (left out)": ["skipped"],
        "cupy (left out) #2": ["skipped"],
    }
    assert {case.get("classname") for case in cases(text).values()} == {"line"}


def test_junit_says_what_differs_first_and_why_something_is_skipped(report):
    by_name = cases(junit(report))
    (failure,) = by_name["wrong:cpu float32 deterministic"]
    assert failure.get("message") == "differs by more than rounding from step 3"
    assert failure.text.splitlines() == [
        sentence(report.results[1]),
        "first difference: the output of layer 0 (Dense)",
        "step: 3",
        "relative deviation: 0.001",
        "tolerance: 2e-06",
    ]
    (error,) = by_name["broken:cpu float32"]
    assert error.get("message") == "ValueError: no"
    (skipped,) = by_name["unsure:cpu float32 fast"]
    assert "it overflows" in skipped.text
    (skipped,) = by_name["cupy (left out) #2"]
    assert skipped.get("message") == "it has no float64"


def test_the_name_of_a_test_case_does_not_depend_on_other_runs(report, good):
    (name,) = cases(junit(good))
    assert name in cases(junit(report))


def test_each_machine_is_a_test_suite(report):
    (machine,) = report.machines
    here, *others = report.results
    elsewhere = replace(machine, label="elsewhere")
    results = (here, *(replace(r, machine="elsewhere") for r in others))
    merged = replace(report, machines=(machine, elsewhere), results=results)
    text = junit(merged)
    assert list(violations(text)) == []
    suites = ElementTree.fromstring(text).findall("testsuite")
    assert [suite.get("hostname") for suite in suites] == [machine.label, "elsewhere"]
    assert [suite.get("tests") for suite in suites] == ["3", "3"]


def test_junit_holds_any_text(report):
    broken = replace(report.results[3], error=HOSTILE)
    differs = replace(report.results[1], verdict=HOSTILE)
    left_out = (replace(report.left_out[0], reason=HOSTILE, backend=HOSTILE),)
    machine = replace(report.machines[0], label=HOSTILE)
    results = [replace(r, machine=HOSTILE) for r in (broken, differs)]
    hostile = replace(
        report,
        results=tuple(results),
        left_out=(replace(left_out[0], machine=HOSTILE),),
        machines=(machine,),
        workload=replace(report.workload, name=HOSTILE, model=HOSTILE),
    )
    text = junit(hostile)
    assert text.encode()
    assert list(violations(text)) == []
    expected = re.sub("[\0\x1b\ud800\uffff]", "\N{REPLACEMENT CHARACTER}", HOSTILE)
    (suite,) = ElementTree.fromstring(text).findall("testsuite")
    assert suite.get("hostname") == expected
    assert suite.find("testcase").get("classname") == expected
    assert suite.find("testcase/error").get("message") == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('failures="1"', 'failures="2"', "says failures=2, not 1"),
        ('classname="line"', 'class="line"', "testcase has the attributes"),
        ("<properties>", "<properties><skipped />", "properties contains"),
        ("cupy (left out) #2", "cupy (left out)", "two test cases"),
        ('timestamp="', 'timestamp="at ', "the timestamp is at"),
        ('time="0.000"', 'time="0"', "a time is 0"),
    ],
)
def test_a_file_that_breaks_a_rule_is_noticed(report, old, new, expected):
    broken = "\n".join(violations(junit(report).replace(old, new)))
    assert expected in broken


# --- GitHub ---------------------------------------------------------------------------


def test_annotations_name_each_run_that_does_not_agree(report):
    lines = list(annotations(report))
    levels = [line.partition(" ")[0] for line in lines]
    assert levels == ["::error", "::warning", "::error", "::notice", "::notice"]
    title = "line on wrong%3Acpu strict deterministic%3A differs"
    assert lines[0].startswith(f"::error title={title}::")
    assert lines[0].endswith(f"::{sentence(report.results[1])}")


def test_no_text_ends_an_annotation_or_begins_another(report):
    broken = replace(report.results[3], error=HOSTILE, backend=HOSTILE)
    (line, *_) = annotations(replace(report, results=(broken,)))
    assert "\n" not in line
    assert "\r" not in line
    title, _, message = line.removeprefix("::error title=").partition("::")
    assert not set(title) & set(",:")
    message = message.replace("%0A", "\n").replace("%25", "%")
    assert message == f"failed: {HOSTILE}."


def test_the_summary_page_is_the_beginning_of_the_markdown(report, monkeypatch):
    page = step_summary(report)
    assert markdown(report).startswith(page.rstrip())
    for r in report.results:
        assert sentence(r) in page
    assert "## How to read this" not in page
    monkeypatch.setattr("agnostic_nn.diagnostics.compare.github.MAX_SUMMARY", 1000)
    assert len(step_summary(report).encode()) < 1000


# --- the command ----------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Return a function that runs `compare` for a report: (report, *options)."""
    monkeypatch.setattr(compare, "page", lambda report: "")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(report, *options):
        def trained(options):
            return commands._Outcome(report, new_folder(options.output, "tested"))

        monkeypatch.setattr(commands, "_trained", trained)
        output = f"--output={tmp_path / 'report'}"
        return main(["compare", "--backends=numpy", "--quiet", output, *options])

    return run


@pytest.mark.parametrize(
    ("fail_on", "expected"),
    [
        (None, [0, 1, 2, 2]),
        ("not-checked", [0, 1, 2, 2]),
        ("failed", [0, 1, 0, 2]),
        ("differs", [0, 1, 0, 0]),
        ("never", [0, 0, 0, 0]),
    ],
)
def test_fail_on_names_the_mildest_verdict_that_fails(
    report, command, fail_on, expected
):
    options = [] if fail_on is None else [f"--fail-on={fail_on}"]
    statuses = []
    for result in report.results:
        one = replace(report, results=(result,), verdict=overall((result,)))
        statuses.append(command(one, *options))
    assert statuses == expected


def test_a_difference_is_graver_than_a_failed_run(report, command):
    assert command(report) == 1
    assert command(report, "--fail-on=failed") == 1


@pytest.mark.parametrize("fail_on", ["never", "differs"])
def test_a_report_that_cannot_be_written_fails_whatever_the_verdict(
    good, command, tmp_path, capsys, monkeypatch, fail_on
):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert command(good, f"--fail-on={fail_on}") == 1
    assert "No space left on device" in capsys.readouterr().err


def test_the_files_for_services_are_written(report, command, tmp_path, capsys):
    path = tmp_path / "new" / "junit.xml"
    command(report, f"--junit={path}")
    assert path.read_text(encoding="utf-8") == junit(report)
    assert "".join(str(path).split()) in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("wrong", ["", "file/junit.xml"])
def test_a_place_for_junit_that_cannot_be_written_is_refused_first(
    command, tmp_path, capsys, wrong
):
    (tmp_path / "file").write_text("")
    assert command(None, f"--junit={tmp_path / wrong}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"agnostic-nn compare: --junit {tmp_path / wrong} is not ")


def test_github_is_written_to_only_if_requested(
    report, command, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "summary.md"
    path.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    command(report)
    assert path.read_text(encoding="utf-8") == "before\n"
    assert "::" not in capsys.readouterr().out
    command(report, "--github")
    assert path.read_text(encoding="utf-8") == f"before\n{step_summary(report)}"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == list(annotations(report))


def test_outside_of_github_there_are_annotations_alone(report, command, capsys):
    assert command(report, "--github") == 1
    assert "::error title=" in capsys.readouterr().out
