"""Generate docs/report-schema.json and the tables in docs/report-schema.md.

`python tests/report_schema.py` writes both files. They describe the dataclasses in
agnostic_nn/diagnostics/compare/schema.py; a test fails if they are not up to date.
"""

import json
import re
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from agnostic_nn.core.files import write_text
from agnostic_nn.diagnostics.compare import Report
from agnostic_nn.diagnostics.compare.conversion import (
    descriptions,
    field_types,
    json_schema,
)

__all__ = ["PAGE", "SCHEMA", "classes", "page", "schema"]

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "report-schema.md"
SCHEMA = DOCS / "report-schema.json"
TABLE = re.compile(r"<!-- the fields of (\w+) -->\n(?:\|.*\n)*")
WORDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
}


def schema() -> str:
    """Return the text of docs/report-schema.json."""
    return json.dumps(json_schema(Report), indent=1, ensure_ascii=False) + "\n"


def page(text: str) -> str:
    """Return the text of docs/report-schema.md with tables that are up to date."""
    by_name = {each.__name__: each for each in classes()}
    return TABLE.sub(lambda match: _table(by_name[match[1]]), text)


def classes() -> list[type]:
    """Return the dataclasses of a report, in the order in which they are reached."""
    reached: dict[type, None] = {}

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and is_dataclass(kind) and kind not in reached:
            reached[kind] = None
            for each in field_types(kind).values():
                visit(each)
        for each in get_args(kind):
            visit(each)

    visit(Report)
    return list(reached)


def _table(kind: type) -> str:
    words = descriptions(kind)
    rows = [
        f"| `{name}` | {_type(each)} | {words[name].replace('|', chr(92) + '|')} |"
        for name, each in field_types(kind).items()
    ]
    lines = ["| field | type | meaning |", "| --- | --- | --- |", *rows]
    return f"<!-- the fields of {kind.__name__} -->\n" + "\n".join(lines) + "\n"


def _type(kind: Any) -> str:
    """Return a type in words, with a link to the table of a dataclass."""
    origin = get_origin(kind)
    if origin is dict:
        return f"{_type(get_args(kind)[1])}, by name"
    if origin is tuple:
        inner, *more = get_args(kind)
        count = "list" if Ellipsis in more else f"list of {len(more) + 1}"
        return f"{count}: {_type(inner)}"
    if origin is Literal:
        return _type(type(get_args(kind)[0]))
    if get_args(kind):
        return " or ".join(map(_type, get_args(kind)))
    if is_dataclass(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return WORDS[kind]


if __name__ == "__main__":
    write_text(SCHEMA, schema())
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
