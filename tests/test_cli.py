"""The command line: what it prints, what it writes, and its exit status."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from types import ModuleType

import pytest
from cases._adapters import members

import agnostic_nn as nn
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.compare import comparison
from agnostic_nn_backends import SHIPPED


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return the arguments of a short comparison, whose output folder is `report`."""
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    monkeypatch.setitem(sys.modules, "jinja2", None)  # pages take seconds to draw
    output = f"--output={tmp_path / 'report'}"
    return ["compare", "--workload=breast-cancer", "--epochs=1", "--quiet", output]


def read_report(folder):
    return json.loads((folder / "latest/report.json").read_text(encoding="utf-8"))


def add(monkeypatch, name, **names):
    """Add a backend whose adapter is that of NumPy, with some names replaced."""
    host = nn.backend("numpy").adapter
    module = ModuleType(f"adapter_of_{name}")
    vars(module).update(members(host, **names))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(SHIPPED, name, (module.__name__, "nothing"))


def test_backends_lists_every_device_with_its_version_and_hardware(backend, capsys):
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[:1] == [str(backend)]]
    assert backend.version in line
    assert backend.hardware in line
    assert line.endswith("yes" if backend.has_float64 else "no")


def test_backends_says_why_one_cannot_run(capsys, monkeypatch):
    def devices():
        raise OSError("no driver\nwas found")

    add(monkeypatch, "driverless", version="9.9", devices=devices)
    absent = "agnostic_nn_backends.absent", "agnostic-nn[absent]"
    monkeypatch.setitem(SHIPPED, "absent", absent)
    assert main(["backends"]) == 0
    _, _, missing = capsys.readouterr().out.partition("cannot run here:\n")
    reason = "no device: no driver was found (driverless 9.9 is installed)"
    assert f"driverless finds {reason}" in missing
    assert "which is not installed: pip install 'agnostic-nn[absent]'" in missing


def test_compare_prints_and_writes_its_results(backend, small, tmp_path, capsys):
    assert main([*small, f"--backends={backend}, numpy", "--seed=3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = read_report(tmp_path / "report")
    assert report["workload"]["seed"] == 3
    assert report["workload"]["epochs"] == 1
    ran = [f"{result['backend']}:{result['device']}" for result in report["results"]]
    assert ran == list(dict.fromkeys([str(backend), "numpy:cpu"]))
    assert "agree" in out.partition("\n")[0]
    assert "bit-identical" not in out
    assert main([*small, f"--backends={backend}, numpy", "--verbose"]) == 0
    out = capsys.readouterr().out
    for result in report["results"]:
        assert result["verdict"] in out
    assert "bit-identical" in out
    page = (tmp_path / "report/latest/report.md").read_text(encoding="utf-8")
    assert "breast-cancer" in page


def test_without_the_extra_report_the_output_says_why_there_is_no_page(
    small, tmp_path, capsys
):
    assert main([*small, "--backends=numpy", "--no-batches"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("no report.html: pages are drawn by ")
    assert out[-1].endswith("pip install 'agnostic-nn[report]'")
    written = sorted(path.name for path in (tmp_path / "report/latest").iterdir())
    assert written == ["report.json", "report.md"]
    report = read_report(tmp_path / "report")
    assert report["results"][0]["batches"] == []


def test_with_the_extra_report_there_is_a_page(small, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "jinja2")
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    assert main([*small, "--backends=numpy", "--dtypes=float32,float64"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (tmp_path / "report/latest/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "numpy:cpu float64" in page


def test_reports_are_merged(small, tmp_path, capsys):
    for name in ("one", "two"):
        output = f"--output={tmp_path / name}"
        assert main([*small, "--backends=numpy", "--no-batches", output]) == 0
    capsys.readouterr()
    paths = [str(tmp_path / "one/latest/report.json"), str(tmp_path / "two")]
    output = f"--output={tmp_path / 'both'}"
    assert main(["compare", "--merge", *paths, "--labels=laptop,server", output]) == 0
    out = capsys.readouterr().out
    assert "numpy:cpu (laptop)" in out
    assert "numpy:cpu (server)" in out
    assert out.startswith("Both runs agree with the float64 reference over ")
    merged = read_report(tmp_path / "both")
    assert [machine["label"] for machine in merged["machines"]] == ["laptop", "server"]
    assert main(["compare", "--merge", paths[0], output]) == 2
    assert "two reports or more" in capsys.readouterr().err


def test_progress_is_shown_unless_quiet(small, capsys):
    small.remove("--quiet")
    assert main([*small, "--backends=numpy"]) == 0
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert first == "reference (numpy:cpu float64) begins"
    assert second.endswith(" for the other run")
    assert third == "run 1 of 1: numpy:cpu float32 begins"
    assert fourth.startswith("run 1 of 1: numpy:cpu float32 agrees, after ")


def test_a_backend_that_fails_makes_the_exit_status_2(
    small, tmp_path, capsys, monkeypatch
):
    host = nn.backend("numpy").adapter

    def jit(function, device, donate=()):
        if donate:  # only the step of a training reuses memory
            raise RuntimeError("out of order")
        return host.jit(function, device, donate)

    add(monkeypatch, "failing", jit=jit)
    assert main([*small, "--backends=failing,numpy"]) == 2
    expected = "failing:cpu failed (RuntimeError: out of order); numpy:cpu agrees."
    assert capsys.readouterr().out.startswith(expected)
    report = read_report(tmp_path / "report")
    assert [result["error"] is None for result in report["results"]] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["compare", "--backends=nonesuch"], "there are numpy, jax, torch, cupy, dpnp"),
        (["compare", "--backends=nonesuch"], "can run here: numpy:cpu"),
        (["compare", "--backends=,"], "expected names separated by commas, got ','"),
        (["compare", "--workload=nonesuch"], "there are digits-mlp, digits-norm"),
        (["compare", "--epochs=0"], "at least 1, got '0'"),
        (["compare", "--epochs=many"], "at least 1, got 'many'"),
        (["compare", "--seed=-1"], "got '-1'"),
        (["compare", f"--seed={2**64}"], "[0, 2**64)"),
        (["compare", "--output=file"], "is not a folder"),
        (["compare", "--output=file/below"], "is not a folder"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's way
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("agnostic-nn")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "variable", ["AGNOSTIC_NN_PRECISION", "AGNOSTIC_NN_DETERMINISTIC"]
)
def test_an_invalid_environment_variable_is_refused_in_one_line(
    monkeypatch, capsys, variable
):
    monkeypatch.setenv(variable, "low")
    assert main(["backends"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"agnostic-nn: expected {variable} to be ")
    assert err.endswith(", got 'low'\n")


def test_missing_data_are_refused_with_a_remedy(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main([*small, "--backends=numpy"]) == 2
    err = capsys.readouterr().err
    assert "scikit-learn" in err
    assert "pip install 'agnostic-nn[compare]'" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_report_that_cannot_be_written_is_reported_in_one_line(
    small, tmp_path, capsys, monkeypatch
):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main([*small, "--backends=numpy,numpy:cpu"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("numpy:cpu agrees with the float64 reference over ")
    during, end = err.splitlines()  # once, though it failed after each run
    assert during.endswith("No space left on device; the comparison continues")
    assert "the report cannot be written to" in end
    assert "No space left on device" in end
    assert not list((tmp_path / "report").iterdir())


def test_an_interrupt_before_the_reference_is_trained_leaves_nothing(
    small, tmp_path, capsys, monkeypatch
):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run_reference", interrupted)
    assert main([*small, "--backends=numpy"]) == 130
    assert capsys.readouterr() == ("", "agnostic-nn: interrupted\n")
    assert not list((tmp_path / "report").iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "backends"),
        (["backends"], "cannot run"),
        (["compare"], "--workload NAME"),
        (["compare"], "--merge FILE"),
        (["profile"], "--json FILE"),
    ],
)
def test_help_lists_commands_and_arguments(arguments, text, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    assert text in capsys.readouterr().out


def test_the_console_script_is_this_command_line():
    (script,) = entry_points(group="console_scripts", name="agnostic-nn")
    assert script.load() is main


def test_the_command_line_imports_compare_only_to_run_it():
    code = "import sys, agnostic_nn.diagnostics.cli.main; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = process.stdout.split()
    assert "agnostic_nn.diagnostics.cli.main" in modules
    slow = "agnostic_nn.diagnostics.compare", "sklearn"
    assert [name for name in modules if name.startswith(slow)] == []


def test_a_report_is_written_before_anything_is_printed(small, tmp_path, monkeypatch):
    def closed(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    monkeypatch.setattr("os.dup2", lambda *numbers: None)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert main([*small, "--backends=numpy"]) == 141
    assert (tmp_path / "report/latest/report.json").exists()


MODULE = "agnostic_nn.diagnostics.cli.main"
LIST = [sys.executable, "-P", "-m", MODULE, "backends"]  # list the backends


def test_a_terminal_without_greek_letters_gets_question_marks():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(LIST, capture_output=True, check=True, env=environment)
    assert b"?" in process.stdout
    assert b"numpy:cpu" in process.stdout


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"agnostic-nn {nn.__version__}\n"


def test_a_closed_pipe_is_not_an_error():
    process = subprocess.Popen(LIST, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
