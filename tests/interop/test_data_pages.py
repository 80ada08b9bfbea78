"""The code of the page about data of other libraries runs, section by section."""

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "data_of_other_libraries.md"
SETUP, *SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets")
@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.partition("\n")[0])
def test_the_code_of_each_section_runs(section, tmp_path, monkeypatch):
    if section.startswith("Streams"):  # it uses the records of the section before
        section = SECTIONS[SECTIONS.index(section) - 1] + section
    code = "\n".join([*CODE.findall(SETUP), *CODE.findall(section)])
    for name in set(re.findall(r"^(?:import|from) (\w+)", code, re.M)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGNOSTIC_NN_BACKEND", "numpy")
    exec(code, {"__name__": "page"})
