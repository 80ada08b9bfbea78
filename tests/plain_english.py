"""Refuse constructions that make this project's English hard to read.

    python tests/plain_english.py [PATH ...]

Reads Markdown files whole, and of Python files the comments, the docstrings, and the
names of functions, parameters and variables. It also finds the marks of conflicts that
a merge left, there and in the settings. It knows only some bad habits: a text
without a complaint can still be hard to read, so read it aloud. `nox -s lint` runs it.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "noxfile.py"),
    *("pyproject.toml", "zensical.toml"),
    *("agnostic_nn", "backends", "benchmarks", "examples", "tests"),
)

PATTERNS = {
    "archaic word": r"\b(anew|afresh|lest|whence|thereof|nought|to be had|beside)\b",
    "'is no X' instead of 'is not an X'": r"(?<!there )\b(is|are) no (?!longer\b|more\b"
    r"|less\b|way\b|need\b|different\b|such\b|gradients?\b|difference\b|other\b"
    r"|value\b)\w+",
    "pronoun instead of a noun": r"\b(nobody|somebody|one's own|a stranger|a user's own"
    r"|who(ever)? (does|takes|learns|adds|gives|looks|has))\b",
    "'of its own' at the end of a phrase": r"\bof (its|their|our) own *([,.;:]|$)",
    "personification": r"\b((is|are|was|were) (told|asked)|lets back|says so"
    r"|looks (up|down)|(is|are) held to)\b",
    "metaphor": r"\b(workshops?|the house|front doors?|(up|down)stairs|on a floor)\b",
    "riddle": r"\b(what is (asked|given|made|said|kept|wanted|left over)|by turns"
    r"|in earnest|far out|makes? no sense)\b",
    "ellipsis": r"\b((a|one) (line|row|number) each"
    r"|but for (rounding|the|a|its|what|how|where))\b",
}
OPENINGS = (
    r"(What|Whatever|Whether|That which|Of what|Of which|By whom|How|Where)\b(?!.*\?$)"
)
NAMES = {
    *("told", "said", "asked", "found", "given", "heirs", "hollow", "wanted"),
    *("made", "seen", "shown"),
}
# the library has a few of these for what a trainer keeps and begins
NAMES_IN_TESTS = NAMES | {"kept", "begun"}
# in the names of functions
PARTS_OF_NAMES = (
    r"(?<!there_)is_no_(?!longer)|are_no_(?!longer)|ones_own|anew|beside|told|nobody"
    r"|(?<=^test_)what"
)


def complaints(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, rule and text of each construction that is refused."""
    text = path.read_text(encoding="utf-8")
    for i, line in enumerate(text.splitlines(), 1):
        if re.match(r"(<{7}|>{7}) ", line):
            yield i, "mark of a conflict that a merge left", line
    if path.suffix == ".toml":
        return
    if path.suffix == ".md":
        yield from _of_lines(enumerate(_without_code(text), 1))
        return
    tree = ast.parse(text)
    refused = NAMES_IN_TESTS if "tests" in path.relative_to(ROOT).parts else NAMES
    yield from _of_lines(_comments(text))
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            name = getattr(node, "name", "")
            if re.search(rf"(^|_)({PARTS_OF_NAMES})", name):
                yield node.lineno, "riddle in a name", name
            docstring = ast.get_docstring(node, clean=True)
            if docstring is None:
                continue
            first = node.body[0].lineno
            if re.match(OPENINGS, docstring):
                yield (
                    first,
                    "docstring that opens with a noun clause",
                    docstring.splitlines()[0],
                )
            yield from _of_lines(enumerate(docstring.splitlines(), first))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id in refused:
                yield node.lineno, "name that says nothing", node.id
        elif isinstance(node, ast.arg) and node.arg in refused:
            yield node.lineno, "name that says nothing", node.arg


def _of_lines(
    lines: Iterator[tuple[int, str]] | enumerate,
) -> Iterator[tuple[int, str, str]]:
    for number, line in lines:
        for rule, pattern in PATTERNS.items():
            if re.search(pattern, line, re.IGNORECASE):
                yield number, rule, line.strip()


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _without_code(text: str) -> list[str]:
    """Return the lines of a Markdown text, those of code blocks emptied."""
    in_code = False
    lines = []
    for line in text.splitlines():
        if line.startswith("```"):
            in_code = not in_code
        lines.append("" if in_code else line)
    return lines


def files(places: list[str]) -> Iterator[Path]:
    """Yield each Python and Markdown file of `places`, relative to the project."""
    for place in places:
        path = ROOT / place
        if path.is_file():
            yield path
        else:
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".py", ".md"))


def main(places: list[str]) -> int:
    """Print all complaints; return 1 if there are any."""
    count = 0
    for path in files(places or list(PLACES)):
        for number, rule, line in complaints(path):
            print(f"{path.relative_to(ROOT)}:{number}: {rule}: {line[:110]}")
            count += 1
    print(f"{count} complaints" if count else "no complaints")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
