"""Pages in docs/ are what their programs write, and are in its index."""

import json
import re
import sys
from pathlib import Path

import accuracy
import proofs
import pytest
from faults import campaign

from agnostic_nn.diagnostics.conformance import results

sys.path.append(str(Path(__file__).parents[1]))  # after installed packages

from benchmarks.report import markdown

DOCS = Path(__file__).parents[1] / "docs"
TEMPLATES = {  # page: the text in which a program fills in numbers and tables
    "accuracy": accuracy.HEAD,
    "accuracy, notes": accuracy.NOTES,
    "conformance": results.HEAD,
    "fault-campaign": campaign.HEAD,
    "proofs": proofs.HEAD,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_page_contains_the_current_text_of_its_program(name):
    page = (DOCS / f"{name.partition(',')[0]}.md").read_text(encoding="utf-8")
    parts = re.split(r"\{\w+(?::g)?\}", TEMPLATES[name])
    pattern = ".*?".join(map(re.escape, parts))
    assert re.search(pattern, page, re.DOTALL)


def test_the_page_of_benchmarks_is_written_from_its_data():
    data = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    plots = [DOCS / name for name in re.findall(r"!\[.*?\]\((.*?)\)", page)]
    assert all(plot.exists() for plot in plots)
    assert page == markdown(data, plots)


def test_the_index_links_every_page_and_nothing_else():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    links = set(re.findall(r"(?<!!)\[[^\]]*\]\((.*?)\)", index))  # no pictures
    paths = [*DOCS.rglob("*.md"), *DOCS.glob("explain/*.html")]
    paths = [path for path in paths if path.parent.name != "notebooks"]  # generated
    pages = {path.relative_to(DOCS).as_posix() for path in paths}
    assert links == pages - {"README.md"}
