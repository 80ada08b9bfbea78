"""Tables as plain text (drawn by rich), as HTML and as Markdown."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from io import StringIO
from typing import Any

__all__ = [
    "TERMINAL_WIDTH",
    "FormattedNumber",
    "folded",
    "html_table",
    "markdown_table",
    "paths_joined",
    "table",
]

TERMINAL_WIDTH = 80  # columns of text that every terminal has

MAX_ROWS = 20  # a notebook folds longer tables
MIN_WIDTH = 8  # of a column of words that is narrowed


class FormattedNumber(str):
    """A number that is formatted already, and aligned right like all numbers."""

    __slots__ = ()


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str | None = None,
    width: int | None = None,
) -> str:
    """Return a table as text; numbers are aligned right, None becomes an empty cell.

    width: the most columns of text that it may have. Columns of words, and the headings
    of numbers, are then broken into lines. Without it no cell is broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    style: Any = {"box": SIMPLE_HEAD, "title_justify": "left", "title_style": ""}
    sides: list[Any] = [
        "right" if _is_numeric(i, rows) else "left" for i in range(len(columns))
    ]
    headings = list(columns)
    lines = [[_cell(value) for value in row] for row in rows]
    # A column has three columns of text in addition to its content.
    is_wide = width is not None and width < sum(_widths(headings, lines)) + 3 * len(
        sides
    )
    if width is not None and is_wide:
        headings, lines = _narrowed(headings, lines, sides, width)
    rich_table = Table(title=title, collapse_padding=is_wide, **style)
    for heading, side in zip(headings, sides, strict=True):
        rich_table.add_column(heading, justify=side, no_wrap=True)
    for line in lines:
        rich_table.add_row(*line)
    # The console is wide, because in a narrow one rich would cut off digits.
    # Without force_jupyter=False, rich in a notebook would display the table and
    # write nothing.
    file = StringIO()
    console = Console(
        file=file,
        width=1000,
        color_system=None,
        highlight=False,
        markup=False,
        force_jupyter=False,
    )
    console.print(rich_table)
    text = file.getvalue()
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def paths_joined(
    columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> tuple[list[str], list[list[Any]]]:
    """Join the first two columns, paths and layers, into one that is narrower."""
    joined = [[f"{row[0]} {row[1]}".strip(), *row[2:]] for row in rows]
    return [f"{columns[0]} {columns[1]}".strip(), *columns[2:]], joined


def _narrowed(
    headings: list[str], lines: list[list[str]], sides: list[str], width: int
) -> tuple[list[str], list[list[str]]]:
    """Break headings and cells into lines so that a table has at most `width` columns.

    Columns of words are narrowed, the widest first. Numbers are never broken, so many
    long ones may make the table wider.
    """
    widths = []
    least = []  # the longest part of each column that need not be broken
    for i, (heading, side) in enumerate(zip(headings, sides, strict=True)):
        cells = [line[i] for line in lines]
        parts = [part for text in [heading, *cells] for part in _parts(text)]
        least.append(max(map(len, parts)))
        is_broken = side == "right" and "\n" not in heading
        whole = _parts(heading) if is_broken else heading.split("\n")
        widths.append(max(map(len, [*whole, *cells])))
    available = width - 2 - 2 * len(headings)
    words_at = [i for i, side in enumerate(sides) if side == "left"]
    while sum(widths) > available:
        breakable = [i for i in words_at if widths[i] > least[i]]
        breakable = breakable or [i for i in words_at if widths[i] > MIN_WIDTH]
        if not breakable:
            break
        widths[max(breakable, key=lambda i: widths[i])] -= 1
    headings = [_broken(text, n) for text, n in zip(headings, widths, strict=True)]
    lines = [
        [_broken(text, n) for text, n in zip(line, widths, strict=True)]
        for line in lines
    ]
    return headings, lines


def _widths(headings: list[str], lines: list[list[str]]) -> list[int]:
    """Return the width of the longest line in each column."""
    columns = zip(headings, *lines, strict=True)
    return [max(len(line) for cell in c for line in cell.split("\n")) for c in columns]


def _broken(text: str, width: int) -> str:
    """Break the lines of a text into lines of at most `width` characters."""
    return "\n".join(_broken_line(line, width) for line in text.split("\n"))


def _broken_line(text: str, width: int) -> str:
    lines = [""]
    for part in _parts(text):
        if len(lines[-1] + part.rstrip(" ")) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip(" ")) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip(" ") for line in lines)


def _parts(text: str) -> list[str]:
    """Split a text where a line may end: after a space, a dot or another sign.

    A line does not end inside a number such as 0.28 or a shape such as (3, 4).
    """
    return re.split(
        r"(?<=[_:@])|(?<=(?<!,) )|(?<=, )(?!\d)|(?<=\.)(?!\d+(?![\w.]))", text
    )


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
    return all(isinstance(row[i], int | float | FormattedNumber | None) for row in rows)


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
