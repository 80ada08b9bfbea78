"""The pages of the documentation: their code runs, and their commands exist."""

import importlib
import re
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from agnostic_nn.diagnostics.cli import main as cli

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if path.parent.name in ("docs", "tutorials", "guides", "explanations", "migration")
)
BLOCK = re.compile(
    r'^(?P<indent> *)```(?P<language>\w+)(?: title="(?P<title>[^"]*)")?\n'
    r"(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)
OPTIONAL = (
    "array_api_strict",
    "datasets",
    "flax",
    "grain",
    "jax",
    "keras",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "optax",
    "pandas",
    "polars",
    "sklearn",
    "torch",
    "zarr",
)


class Run:
    """A run of a fake experiment tracker, with the documented signatures of two."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def log(self, data, step=None, commit=None):
        """`Run.log` of Weights & Biases, for numbers."""
        assert isinstance(step, int)
        assert all(isinstance(value, int | float) for value in data.values())


def log_metrics(
    metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None
):
    """`mlflow.log_metrics`."""
    Run().log(metrics, step)


# Experiment trackers that the pages name, without their packages
TRACKERS = {
    "mlflow": SimpleNamespace(start_run=Run, log_metrics=log_metrics),
    "wandb": SimpleNamespace(init=lambda project: Run()),
}


def blocks(page):
    """Yield (language, title, code) of each code block of a page."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match["language"], match["title"], textwrap.dedent(match["code"])


def install(project):
    """Make the entry points of a pyproject.toml known, as `pip install` would."""
    data = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    name = data["name"].replace("-", "_")
    folder = project.parent / f"{name}-{data['version']}.dist-info"
    folder.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {data['version']}\n"
    (folder / "METADATA").write_text(metadata)
    lines = []
    for group, points in data["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    importlib.invalidate_caches()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_each_page_runs(page, tmp_path, monkeypatch):
    code = [source for language, _, source in blocks(page) if language == "python"]
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", "\n".join(code), re.M))
    backends = set(re.findall(r'"(jax|torch)"', "\n".join(code)))
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # must be set before Keras is imported
    for name in (imported | backends) & set(OPTIONAL):
        pytest.importorskip(name)
    for name, module in TRACKERS.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    for language, title, source in blocks(page):
        if title:
            (tmp_path / title).write_text(source, encoding="utf-8")
            if title == "pyproject.toml":
                install(tmp_path / title)
        elif language == "python":
            exec(source, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_each_page_exist(page):
    parser = cli.parser()
    for language, _, source in blocks(page):
        for line in source.splitlines() if language == "console" else ():
            words = shlex.split(line, comments=True)
            if words[:1] == ["agnostic-nn"]:
                parser.parse_args(words[1:])


def runs(workflow):
    """Yield each shell command of a workflow, from any depth of it."""
    if isinstance(workflow, dict):
        for key, value in workflow.items():
            if key in ("run", "script"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from runs(value)
    elif isinstance(workflow, list):
        for value in workflow:
            yield from runs(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_workflows_of_each_page_are_valid_and_their_commands_exist(page):
    parser = cli.parser()
    for language, _, source in blocks(page):
        if language != "yaml":
            continue
        commands = list(runs(yaml.safe_load(source)))
        assert commands, "a workflow without a command"
        for command in commands:
            # GitHub replaces ${{ ... }} before a shell sees the command.
            words = shlex.split(re.sub(r"\${{.*?}}", "VALUE", command))
            if words[:1] == ["agnostic-nn"]:
                parser.parse_args(words[1:])


def test_the_workflow_for_github_is_one():
    page = DOCS / "guides" / "compare_in_ci.md"
    sources = {title: source for _, title, source in blocks(page) if title}
    workflow = yaml.safe_load(sources["compare.yml"])
    # YAML 1.1 reads the key `on` as True; GitHub does not.
    assert workflow.keys() - {True} == {"name", "permissions", "jobs"}
    assert set(workflow[True]) == {"push", "pull_request"}
    uploaded = {}
    for name, job in workflow["jobs"].items():
        assert job.keys() <= {"strategy", "runs-on", "steps", "needs", "if"}
        assert {"runs-on", "steps"} <= job.keys()
        assert set(job.get("needs", "compare").split()) <= workflow["jobs"].keys()
        for step in job["steps"]:
            assert len(step.keys() & {"uses", "run"}) == 1
            assert step.keys() <= {"uses", "run", "with", "if"}
            if "upload" in step.get("uses", ""):
                uploaded[name] = step["with"]
    (compare, merge) = [list(runs(job)) for job in workflow["jobs"].values()]
    assert f"--output {uploaded['compare']['path']} " in compare[-1]
    assert f"--output {uploaded['merge']['path']} " in merge[-1]
    assert "--merge reports/* --output" in merge[-1]
