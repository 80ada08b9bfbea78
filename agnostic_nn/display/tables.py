"""Tables as plain text (drawn by rich), as HTML and as Markdown."""

from collections.abc import Iterable, Sequence
from html import escape
from io import StringIO
from typing import Any

__all__ = ["folded", "html_table", "markdown_table", "table"]

MAX_ROWS = 20  # a notebook folds longer tables


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str | None = None,
    width: int | None = None,
) -> str:
    """Return a table as text; numbers are aligned right, None becomes an empty cell.

    width: the most columns of text that it may have; the first column is then broken
    into lines. Without it no cell is broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    style: Any = {"box": SIMPLE_HEAD, "title_justify": "left", "title_style": ""}
    rich_table = Table(title=title, **style)
    for i, column in enumerate(columns):
        side: Any = "right" if _is_numeric(i, rows) else "left"
        breaks = width is not None and i == 0
        rich_table.add_column(column, justify=side, no_wrap=not breaks, overflow="fold")
    for row in rows:
        rich_table.add_row(*map(_cell, row))
    # Without a width it is large, because in a narrow terminal rich would cut off
    # digits.
    # Without force_jupyter=False, rich in a notebook would display the table and
    # write nothing.
    file = StringIO()
    console = Console(
        file=file,
        width=width or 400,
        color_system=None,
        highlight=False,
        markup=False,
        force_jupyter=False,
    )
    console.print(rich_table)
    text = file.getvalue()
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str | None = None,
    *,
    inline: bool = False,
) -> str:
    """Return a table as HTML. A cell with a method `__html__` is inserted as HTML.

    inline: add style attributes for notebooks, which otherwise align all columns right,
    center tables, and break 1e-06 into two lines.
    """
    rows = [list(row) for row in rows]
    left = ' style="text-align: left"' if inline else ""
    right = ' class="right"' + (' style="white-space: nowrap"' if inline else "")
    sides = [right if _is_numeric(i, rows) else left for i in range(len(columns))]

    def line(tag: str, cells: Iterable[str]) -> str:
        pairs = zip(sides, cells, strict=True)
        inside = [f"<{tag}{side}>{cell}</{tag}>" for side, cell in pairs]
        return f"<tr>{''.join(inside)}</tr>"

    caption = f"<caption{left}>{escape(title)}</caption>" if title else ""
    head = line("th", map(escape, columns)).replace(right, ' class="right"')
    body = "".join(line("td", map(_html_cell, row)) for row in rows)
    place = ' style="margin-left: 0"' if inline else ""
    table = f"<table{place}>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"
    scroll = ' style="overflow-x: auto"' if inline else ""
    return f'<div class="scroll"{scroll}>{table}</div>'


def folded(label: str, html: str, rows: int) -> str:
    """Return the HTML of a table, collapsed under `label` if it has many rows."""
    if rows <= MAX_ROWS:
        return html
    return f"<details><summary>{escape(label)}</summary>{html}</details>"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as Markdown."""
    lines = [columns, ["---"] * len(columns), *(map(_cell, row) for row in rows)]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _is_numeric(i: int, rows: Sequence[Sequence[Any]]) -> bool:
    return all(isinstance(row[i], int | float | None) for row in rows)


def _html_cell(value: Any) -> str:
    return value.__html__() if hasattr(value, "__html__") else escape(_cell(value))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
