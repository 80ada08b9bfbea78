"""Long runs of `compare`: their folders, their progress, and how they are resumed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cases._adapters import members

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.compare import (
    CannotCompare,
    Workload,
    choice,
    comparison,
    folders,
    merge,
    page,
    plan,
    resume,
    run_progress,
    summary,
    write,
)
from agnostic_nn.diagnostics.compare.merge import read
from agnostic_nn.diagnostics.compare.report.markdown import markdown
from agnostic_nn.diagnostics.compare.run_progress import RunProgress
from agnostic_nn.training.batches import Examples
from agnostic_nn.training.progress import Progress
from agnostic_nn_backends import SHIPPED

BACKENDS = ("first", "second", "third")


# --- folders --------------------------------------------------------------------------


def test_a_folder_is_named_by_time_and_workload_and_is_new(tmp_path):
    start = datetime(2026, 11, 30, 9, 12, 31, tzinfo=UTC)
    names = [
        folders.new_folder(tmp_path / "new/report", workload, start).name
        for workload in ("digits-mlp", "digits-mlp", "mine.py:model(1)", "::")
    ]
    assert names == [
        "2026-11-30T09-12-31-digits-mlp",
        "2026-11-30T09-12-31-digits-mlp-2",
        "2026-11-30T09-12-31-mine.py-model-1",
        "2026-11-30T09-12-31-run",
    ]
    long = folders.new_folder(tmp_path, "m" * 300, start)
    assert long.is_dir()


def test_latest_is_a_relative_link_to_the_run_that_was_completed_last(tmp_path):
    one, two = (folders.new_folder(tmp_path, name) for name in ("one", "two"))
    for folder in (two, one):
        assert folders.complete(folder) == tmp_path / "latest"
        assert os.readlink(tmp_path / "latest") == folder.name
        assert folders.latest(tmp_path).resolve() == folder.resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [one.name, two.name, "latest"]
    )


def test_without_links_a_file_names_the_latest_run(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise OSError("a required privilege is not held by the client")

    one, two = (folders.new_folder(tmp_path, name) for name in ("one", "two"))
    folders.complete(one)
    with monkeypatch.context() as windows:
        windows.setattr(Path, "symlink_to", refused)
        assert folders.complete(two) == tmp_path / "latest.txt"
    assert (tmp_path / "latest.txt").read_text(encoding="utf-8") == f"{two.name}\n"
    assert folders.latest(tmp_path) == two
    assert not (tmp_path / "latest").is_symlink()  # it would lead to the older run
    folders.complete(one)
    assert folders.latest(tmp_path).resolve() == one.resolve()
    assert not (tmp_path / "latest.txt").exists()


def test_a_folder_called_latest_is_left_alone(tmp_path):
    folder = folders.new_folder(tmp_path / "report", "one")
    mine = tmp_path / "report/latest"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    (tmp_path / "latest").write_text("a file")
    assert folders.complete(folder) == tmp_path / "report/latest.txt"
    assert (mine / "precious").read_text() == "mine"
    assert folders.latest(tmp_path / "report") == folder
    assert folders.complete(folders.new_folder(tmp_path, "two")).name == "latest.txt"
    assert (tmp_path / "latest").read_text() == "a file"


def test_a_folder_stands_for_its_report_or_its_latest_run(tmp_path):
    file = tmp_path / "any.json"
    assert folders.report_file(file) == file
    with pytest.raises(CannotCompare, match=r"has no report\.json, and no latest"):
        folders.report_file(tmp_path)
    folder = folders.new_folder(tmp_path, "one")
    folders.complete(folder)
    assert folders.report_file(tmp_path) == tmp_path / "latest/report.json"
    (folder / "report.json").write_text("{}")
    assert folders.report_file(folder) == folder / "report.json"


# --- a comparison that is interrupted -------------------------------------------------


MINE = """
import agnostic_nn as nn

def model():
    return nn.Sequential(nn.Dense(4), nn.Tanh(), nn.BatchNorm(), nn.Dense(2))
"""
SCRIPT = """
# The command line, of which the backend `second` waits for a signal.
import sys
import time
from types import ModuleType

import agnostic_nn as nn
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn_backends import SHIPPED
from cases._adapters import members

def wait(tree):
    print("waiting", flush=True)
    time.sleep(60)

host = nn.backend("numpy").adapter
for name in ("first", "second", "third"):
    module = ModuleType(name)
    replaced = {"synchronize": wait} if name == "second" else {}
    vars(module).update(members(host, **replaced))
    sys.modules[name] = module
    SHIPPED[name] = name, "nothing"
sys.modules["jinja2"] = None  # pages take seconds to draw
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder with a model and data, in which three backends exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 3)).astype(np.float32)
    np.savez("data.npz", x=x, target=(x.sum(1) > 0).astype(np.int32))
    monkeypatch.setitem(sys.modules, "jinja2", None)  # pages take seconds to draw
    host = nn.backend("numpy").adapter
    for name in BACKENDS:
        module = ModuleType(name)
        vars(module).update(members(host))
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(SHIPPED, name, (name, "nothing"))
    yield tmp_path
    sys.modules.pop("mine", None)


COMPARE = [
    *("compare", "--model=mine:model", "--data=data.npz", "--epochs=2"),
    *("--dtypes=float32", "--no-batches", "--seed=3", "--optimizer=SGD(0.1)"),
]
ALL = [*COMPARE, f"--backends={','.join(BACKENDS)}"]


def run_folders(output="report"):
    return sorted(path for path in Path(output).iterdir() if not path.is_symlink())


def without_times(report):
    """Return a report as JSON, without dates and times."""
    data = report.to_json()
    del data["machines"][0]["environment"]["date"]
    for result in data["results"]:
        for name in list(result):
            if name.endswith(("_ms", "_ms_quartiles", "per_second")):
                del result[name]
    return data


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_resumed_report_equals_that_of_an_uninterrupted_run(folder, capsys, number):
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "script.py", *ALL, "--quiet", "--output=broken"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    try:
        assert process.stdout.readline() == "waiting\n", process.stderr.read()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    (broken,) = run_folders("broken")
    partial = read(broken / "report.json")
    assert [result.name for result in partial.results] == ["first:cpu"]
    assert partial.unfinished == ("second:cpu float32", "third:cpu float32")
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, err) == (130, "agnostic-nn: interrupted\n")
        assert "NOT COMPLETE: 2 of 3 runs are missing (second:cpu float32, third" in out
        command = re.search("^To make the missing runs: (.*)$", out, re.M)[1]
        expected = ["agnostic-nn", "compare", "--resume", str(broken)]
        assert shlex.split(command) == expected
    assert not Path("broken/latest").exists()

    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "run_reference", lambda *_: trained.append(1))
        status = main(["compare", "--resume", "--output=broken"])
    assert trained == []
    assert main([*ALL, "--output=whole"]) == status
    (whole,) = run_folders("whole")
    resumed, uninterrupted = (read(each / "report.json") for each in (broken, whole))
    assert resumed.unfinished == ()
    assert without_times(resumed) == without_times(uninterrupted)
    assert resumed.machines == partial.machines  # with the date of the first part
    assert sorted(path.name for path in broken.iterdir()) == [
        "report.json",
        "report.md",
    ]
    assert Path("broken/latest").resolve() == broken.resolve()


@pytest.fixture
def interrupted(folder, monkeypatch, capsys):
    """Return a function that interrupts a comparison after its first run."""

    def interrupt(*options):
        def result_of(task, backend, *arguments):
            if backend.name == "second":
                raise KeyboardInterrupt
            return original(task, backend, *arguments)

        original = comparison.result_of
        with monkeypatch.context() as patch:
            patch.setattr(comparison, "result_of", result_of)
            assert main([*ALL, "--quiet", *options]) == 130
        capsys.readouterr()
        return run_folders()[-1]

    return interrupt


def test_a_partial_report_says_first_in_every_format_that_it_is_partial(interrupted):
    report = read(interrupted() / "report.json")
    sentence = "NOT COMPLETE: 2 of 3 runs are missing (second:cpu float32, third:cpu"
    assert " ".join(summary(report).split()).startswith(sentence)
    assert sentence in markdown(report).split("\n\n")[1].replace("\\", "")
    nothing = replace(report, results=(), unfinished=("a", "b", "c", "d", "e"))
    assert nothing.verdict == report.verdict
    assert summary(nothing).startswith(
        "NOT COMPLETE: 5 of 5 runs are missing (a, b, c and 2 more).\n"
    )
    assert comparison.overall([]).status == "not checked"


def test_the_page_of_a_partial_report_begins_with_it(interrupted, monkeypatch):
    monkeypatch.delitem(sys.modules, "jinja2")
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    report = read(interrupted() / "report.json")
    text = re.sub("<[^>]*>", "", page(report))
    assert text.index("NOT COMPLETE: 2 of 3 runs") < text.index("first:cpu")
    assert "Not complete" in text
    assert "NOT COMPLETE" in page(replace(report, results=()))


def test_a_run_interrupted_again_is_resumed_again(interrupted, monkeypatch, capsys):
    folder = interrupted()
    original = comparison.result_of

    def result_of(task, backend, *arguments):
        if backend.name == "third":
            raise KeyboardInterrupt
        return original(task, backend, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "result_of", result_of)
        assert main(["compare", "--resume", str(folder)]) == 130
    assert read(folder / "report.json").unfinished == ("third:cpu float32",)
    capsys.readouterr()
    main(["compare", "--resume", str(folder)])
    lines = [line for line in capsys.readouterr().err.splitlines() if "begins" in line]
    assert lines == ["run 3 of 3: third:cpu float32 begins"]
    names = [result.name for result in read(folder / "report.json").results]
    assert names == ["first:cpu", "second:cpu", "third:cpu"]


def test_a_crash_leaves_a_run_that_can_be_resumed(folder, monkeypatch):
    def crash(*arguments):
        raise SystemError("the driver is gone")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "result_of", crash)
        with pytest.raises(SystemError):
            main([*ALL, "--quiet"])
    (run,) = run_folders()
    assert len(read(run / "report.json").unfinished) == 3
    main(["compare", "--resume"])
    assert read(run / "report.json").unfinished == ()


def refusal(capsys, *arguments):
    """Return why a resume is refused."""
    capsys.readouterr()
    assert main(["compare", "--resume", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_only_options_that_change_no_result_can_be_given(interrupted, capsys):
    folder = interrupted()
    for option, name in (
        ("--epochs=2", "--epochs"),
        ("--backends=first", "--backends"),
        ("--no-batches", "--no-batches"),
        ("--skip-missing", "--skip-missing"),
    ):
        reason = f"{name} cannot be used with --resume: the settings are those of the"
        assert reason in refusal(capsys, folder, option)
    junit = folder.parent / "junit.xml"
    options = ["--quiet", "--verbose", "--fail-on=never", f"--junit={junit}"]
    assert main(["compare", "--resume", str(folder), *options]) == 0
    assert junit.exists()


def test_options_of_the_interrupted_run_are_repeated(interrupted, monkeypatch):
    folder = interrupted("--fail-on=never", "--deterministic")
    assert main(["compare", "--resume", str(folder)]) == 0
    report = read(folder / "report.json")
    assert [result.deterministic for result in report.results] == [True] * 3
    assert report.workload.seed == 3


def test_changes_since_the_interrupt_are_listed_with_both_values(
    interrupted, folder, monkeypatch, capsys
):
    run = interrupted()
    before = read(run / "report.json")
    data = dict(np.load("data.npz"))
    data["x"][0, 0] += 1.0
    np.savez("data.npz", **data)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    version = property(lambda backend: f"{backend.name} 2")
    monkeypatch.setattr(nn.Backend, "version", version)
    text = refusal(capsys, run)
    old = before.workload.data_sha256
    assert f"workload: data_sha256 was '{old}', is '" in text
    assert "environment variables: MKL_CBWR was not set, is 'COMPATIBLE'" in text
    assert f"third:cpu float32: version was '{np.__version__}', is 'third 2'" in text
    assert read(run / "report.json") == before


def test_another_model_or_start_is_refused(interrupted, folder, monkeypatch, capsys):
    run = interrupted()
    del sys.modules["mine"]
    Path("mine.py").write_text(MINE.replace("Dense(4)", "Dense(12)"), encoding="utf-8")
    text = refusal(capsys, run)
    assert "workload: model was 'Sequential(Dense(width=4" in text
    assert "is 'Sequential(Dense(width=12" in text
    assert "starting parameters: SHA-256 was '" in text


def test_a_backend_that_has_gone_is_refused(interrupted, monkeypatch, capsys):
    def choose(name, policy):
        raise nn.BackendUnavailable(f"{name} has no driver")

    run = interrupted()
    monkeypatch.setattr(choice, "_choose", choose)
    assert "first has no driver; second has no driver" in refusal(capsys, run)


def test_runs_that_cannot_be_resumed_are_refused(interrupted, folder, capsys):
    assert "has no folder with a run that did not finish" in refusal(capsys)
    assert "nowhere has no report.json" in refusal(capsys, "nowhere")
    run = interrupted()
    state = run / folders.STATE
    whole = state.read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole.replace(b'"f', b'"g')):
        state.write_bytes(damaged)
        assert f"{state} is damaged" in refusal(capsys, run)
    state.unlink()
    assert f"{state} cannot be read: No such file" in refusal(capsys, run)
    state.write_bytes(whole)
    report = read(run / "report.json")
    losses = (0.5, *report.reference.losses[1:])
    write(replace(report, reference=replace(report.reference, losses=losses)), run)
    assert "its losses are not those of the report" in refusal(capsys, run)
    write(replace(report, unfinished=()), run)
    assert "is complete: nothing is missing" in refusal(capsys, run)
    assert "has no folder with a run that did not finish" in refusal(capsys)


@pytest.mark.skipif(resume._locks is None, reason="the system has no such locks")
def test_a_run_that_is_still_going_on_is_not_resumed(interrupted, capsys):
    run = interrupted()
    with resume.RunFolder(run):
        assert "another process is making it" in refusal(capsys, run)
    assert main(["compare", "--resume", str(run), "--fail-on=never"]) == 0


def test_the_reference_is_saved_and_read_without_loss(tmp_path):
    prepared = plan.prepare(with_trees(), ["numpy"], sizes=(1,))
    execution = comparison.Execution(prepared)
    next(execution.steps(RunProgress()))
    with resume.RunFolder(tmp_path, ["some", "words"]) as run:
        run.save(execution)
    unfinished = resume.read_unfinished(tmp_path)
    assert unfinished.words == ["some", "words"]
    was, now = execution.reference, unfinished.reference
    for name in ("losses", "scales", "params", "state", "outputs", "carries"):
        mine = dict(named_leaves(tuple_of(getattr(was, name))))
        read_back = dict(named_leaves(tuple_of(getattr(now, name))))
        assert mine.keys() == read_back.keys(), name
        for path, leaf in mine.items():
            array = np.asarray(leaf)
            assert array.dtype == np.asarray(read_back[path]).dtype, (name, path)
            assert array.tobytes() == np.asarray(read_back[path]).tobytes()
    assert (was.start, was.metric, was.carries.keys()) == (
        *(now.start, now.metric),
        now.carries.keys(),
    )


def tuple_of(value):
    if isinstance(value, list):
        return tuple(value)
    return tuple(value.values()) if isinstance(value, dict) and 0 in value else value


def with_trees():
    """Return a training with state and moments, whose outputs are a tree."""

    def part(draw, size):
        x = {each: draw.normal(size=(size, 2)).astype(np.float32) for each in "xz"}
        return Examples(x, {"a": x["x"] * 2.0, "b": x["x"] ** 2})

    def read_parts():
        draw = np.random.default_rng(0)
        return part(draw, 12), part(draw, 5)

    model = nn.Graph(
        a=(nn.Dense(2), "x"),
        c=(nn.BatchNorm(), "z"),
        b=(nn.Dense(2), "c"),
        outputs={"a": "a", "b": "b"},
    )
    loss = nn.Losses(a=nn.mean_squared_error, b=nn.mean_squared_error)
    return Workload("trees", "numbers", read_parts, model, loss, None, 2, batch_size=4)


# --- progress -------------------------------------------------------------------------


class Clock:
    """A clock that is set by hand."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_lines_say_which_run_it_is_and_estimate_the_others():
    clock = Clock()
    lines = []
    progress = RunProgress(None, lines.append, clock)
    progress.begin_reference("numpy:cpu float64", 3)
    clock.seconds = 120.0
    progress.end_reference()
    progress.begin_run(1, 3, "numpy:cpu float32")
    clock.seconds += 20.0
    progress.end_run("agrees")
    progress.begin_run(2, 3, "jax:cpu:0 float32")
    clock.seconds += 40.0
    progress.end_run("differs")
    progress.begin_run(3, 3, "torch:cpu float32")
    clock.seconds += 3.0
    progress.end_run("failed")
    assert lines == [
        "reference (numpy:cpu float64) begins",
        "reference (numpy:cpu float64) has finished, after 2:00 min; about 6:00 min "
        "for the other 3 runs",
        "run 1 of 3: numpy:cpu float32 begins",
        "run 1 of 3: numpy:cpu float32 agrees, after 20 s; about 40 s for the other "
        "2 runs",
        "run 2 of 3: jax:cpu:0 float32 begins",
        "run 2 of 3: jax:cpu:0 float32 differs, after 40 s; about 30 s for the other "
        "run",
        "run 3 of 3: torch:cpu float32 begins",
        "run 3 of 3: torch:cpu float32 failed, after 3 s",
    ]


class Bars(Progress):
    """Records the titles and the remarks of bars."""

    def __init__(self):
        self.titles = []
        self.remarks = []

    def begin(self, title, count, done=0, later=0):
        self.titles.append(title)

    def advance(self, done, loss, results=None):
        self.remarks.append(self.remark())


def test_a_bar_has_the_time_left_of_all_runs():
    clock = Clock()
    bars = Bars()
    progress = RunProgress(bars, clock=clock)
    progress.begin_reference("numpy:cpu float64", 2)
    progress.begin("", 100)
    assert progress._all_left() == ""
    clock.seconds = 10.0
    progress.advance(25, 0.5)  # 40 s in all: 30 s are left, and 2 runs of 40 s
    clock.seconds = 40.0
    progress.end_reference()
    progress.begin_run(1, 2, "jax:cpu:0 float32")
    progress.begin("", 100)
    clock.seconds = 50.0
    progress.advance(50, 0.5)  # 10 s are left, and the other run as the reference
    progress.begin("control: numpy float32", 100)
    clock.seconds = 60.0
    progress.end_run("agrees")  # after 20 s
    progress.begin_run(2, 2, "torch:cpu float32")
    progress.begin("", 100)
    clock.seconds = 65.0
    progress.advance(50, 0.5)
    assert bars.titles == [
        "reference (numpy:cpu float64)",
        "run 1 of 2: jax:cpu:0 float32",
        "run 1 of 2: jax:cpu:0 float32, control: numpy float32",
        "run 2 of 2: torch:cpu float32",
    ]
    assert bars.remarks == [
        "all about 1:50 min",
        "all about 50 s",
        "",
    ]


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_bar_fits_a_terminal_of_80_columns(monkeypatch, capsys, is_finished):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    label = "run 2 of 5: torch:cuda:0 float32"
    with run_progress.run_progress(True) as progress:
        progress.begin_run(2, 5, "torch:cuda:0 float32")
        progress.begin("", 900)
        progress.advance(10, 0.5)
        if is_finished:
            progress.finish({"loss": 0.02381, "test accuracy": 0.9833})
            progress.end_run("agrees")
    err = capsys.readouterr().err
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", err)
    assert label in text
    assert "begins" not in text
    assert "…" not in text
    lines = [line for line in text.splitlines() if "left" in line or "accuracy" in line]
    assert lines
    if is_finished:
        assert "loss 0.02381  test accuracy 0.9833" in text
    else:
        assert " left" in text
        assert " all about " in text


# --- merging --------------------------------------------------------------------------


def test_folders_are_merged_like_files(folder, capsys):
    arguments = [*COMPARE, "--backends=first", "--quiet", "--fail-on=never"]
    for name in ("laptop", "server"):
        assert main([*arguments, f"--output={name}"]) == 0
    (run,) = run_folders("server")
    both = merge(["laptop", run])
    assert [machine.label for machine in both.machines] == ["laptop", run.name]
    assert both.unfinished == ()
    assert main(["compare", "--merge", "laptop", "server", "--fail-on=never"]) == 0
    (merged,) = run_folders()
    assert merged.name.endswith("-mine-model-merged")
    assert [m.label for m in read(merged / "report.json").machines] == [
        "laptop",
        "server",
    ]
    with pytest.raises(CannotCompare, match=r"has no report\.json"):
        merge(["laptop", folder])


def test_a_merged_report_with_missing_runs_is_not_a_success(interrupted, capsys):
    run = interrupted()
    report = read(run / "report.json")
    assert main(["compare", "--merge", str(run), str(run), "--labels=a,b"]) == 2
    out = capsys.readouterr().out
    assert "NOT COMPLETE: 4 of 6 runs are missing (second:cpu float32, third" in out
    assert "--resume" not in out
    assert json.loads((run / "report.json").read_text())["unfinished"] == list(
        report.unfinished
    )
