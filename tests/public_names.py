"""Write the pages that list public names; `nox -s proofs -- --write` runs this too.

The tables of docs/reference/README.md get each public name that is missing there, and
docs/conformance.md lists the names of the Array API standard that the library uses.
"""

import re
from pathlib import Path

import agnostic_nn as nn
from agnostic_nn.core.files import write_text
from agnostic_nn.diagnostics.conformance.results import needs_paragraph

ROOT = Path(__file__).parents[1]
NAMES = ROOT / "docs" / "reference" / "README.md"
CONFORMANCE = ROOT / "docs" / "conformance.md"


def missing_names(page):
    """Return the public names that are not in the text."""
    return [name for name in nn.__all__ if not re.search(rf"`[\w.]*\b{name}\b", page)]


def with_missing_names(page):
    """Return the text with each missing name added to the row of its file."""
    lines = page.splitlines(keepends=True)
    for name in missing_names(page):
        module = getattr(nn, name).__module__
        others = [
            f"`{other}`"
            for other in nn.__all__
            if other != name and getattr(getattr(nn, other), "__module__", "") == module
        ]
        rows = [row for row, line in enumerate(lines) if line.startswith("| ")]
        row = max(rows, key=lambda row: sum(other in lines[row] for other in others))
        line = lines[row]
        ends = [line.find(other) + len(other) for other in others if other in line]
        if not ends:
            raise SystemExit(
                f"docs/reference/README.md: add {name}, the first name of {module}"
            )
        end = max(ends)
        lines[row] = f"{line[:end]}, `{name}`{line[end:]}"
    return "".join(lines)


def with_needs(page):
    """Return the page with the names of the standard that the library uses now."""
    pattern = r"(names of the Array API standard:\n\n).*?(\n\n)"
    flags = re.DOTALL | re.IGNORECASE
    paragraph = needs_paragraph()
    return re.sub(pattern, rf"\g<1>{paragraph}\g<2>", page, count=1, flags=flags)


def write():
    """Update docs/reference/README.md and docs/conformance.md where they differ."""
    for path, update in ((NAMES, with_missing_names), (CONFORMANCE, with_needs)):
        before = path.read_text(encoding="utf-8")
        after = update(before)
        if after != before:
            write_text(path, after)


if __name__ == "__main__":
    write()
