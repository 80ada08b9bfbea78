"""Tables: rows for people to read, drawn by rich, as plain text."""

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

__all__ = ["table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> str:
    """Text with a head and one line a row; numbers are set right, None is left empty."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    drawn = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="")
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float | None) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(_cell, row))
    # as wide as it needs: a narrow terminal should wrap lines, not lose digits
    console = Console(file=StringIO(), width=400, color_system=None, highlight=False, markup=False)
    console.print(drawn)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
