"""The code and commands of README and CONTRIBUTING run, and lists are complete."""

import re
import tomllib
from pathlib import Path

from public_names import missing_names

import agnostic_nn as nn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = (ROOT / "docs" / "reference" / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_code_runs_on_every_backend(backend, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example, check = blocks("python")
    assert len([line for line in example.splitlines() if line]) == 12
    names = {}
    exec(example.replace('backend="numpy"', f"backend={str(backend)!r}"), names)
    result = names["trainer"].evaluate(names["x"][400:], names["labels"][400:])
    assert result["accuracy"] > 0.9
    assert names["trainer"].backend == backend
    exec(check, names)
    assert "accuracy" in capsys.readouterr().out


def test_the_guides_code_runs():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = dict(vars(nn.layers.activations))  # the file that the guide edits
    for source in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(source, names)
    nn.check(names["Arctan"](), (5,))


def test_ci_runs_the_readmes_test_command():
    compare, test = (block.strip() for block in blocks("console"))
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()
    assert compare.endswith("agnostic-nn compare")
    assert compare.startswith("git clone")


def test_every_public_name_is_in_the_table_of_names():
    missing = missing_names(NAMES)
    assert not missing, "nox -s proofs -- --write"


def test_the_badges_are_true():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    python = "Programming Language :: Python :: "
    versions = [
        name.removeprefix(python)
        for name in project["classifiers"]
        if re.fullmatch(rf"{python}3\.\d+", name)
    ]
    texts = {
        "python": "%20|%20".join(versions),
        "license": project["license"].replace("-", "--"),
        "mypy": "strict" if settings["tool"]["mypy"]["strict"] else "",
    }
    badges = re.findall(r"\(https://img\.shields\.io/badge/(\w+)-(.*)-blue\)", README)
    assert dict(badges) == texts
