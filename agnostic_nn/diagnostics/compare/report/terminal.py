"""A report as text for a terminal of 80 columns."""

import shlex
from collections.abc import Iterator
from textwrap import fill

from ....display.tables import table
from ..schema import Report
from .half import half_answers, half_runs, half_table, layer_tables
from .headline import headline
from .merged import (
    is_merged,
    losses_compared,
    machine_tables,
)
from .names import named_results
from .repeats import repeats_text
from .sentences import commands, remarks, sentence, warnings
from .tables import Row, about_short_table, overview, short_table

__all__ = ["summary"]

WIDTH = 80  # columns of a terminal
MACHINE_WIDTH = 17  # columns of text that a machine needs at most; cells are broken


def summary(report: Report, verbose: bool = False) -> str:
    """Return text for a terminal: the answer, a table, and commands to look closer.

    It fits 80 columns, except for long words such as file names.

    verbose: add all other tables, the verdict on each run with its numbers, and all
    remarks; these lines are longer.
    """
    finished = any(r.deviations is not None for r in report.results)
    left_out = dict.fromkeys(each.backend for each in report.left_out)
    parts = [
        _filled(f"{headline(report)}."),
        *(
            _machines(report)
            if is_merged(report)
            else [table(*short_table(report), width=WIDTH)]
        ),
        _filled(about_short_table(report)) if finished else "",
        *(_filled(f"{each[0].upper()}{each[1:]}.") for each in warnings(report)),
        *map(_filled, repeats_text(report).splitlines()),
        *map(_filled, half_answers(report)),
        table(*half_table(report), width=WIDTH) if half_runs(report) else "",
        _filled(f"Left out: {', '.join(left_out)}; report.md says why.")
        if left_out
        else "",
        _commands(report),
    ]
    if verbose:
        parts += [
            table(columns, rows, title) for title, columns, rows in overview(report)
        ]
        parts += [
            table(columns, rows, title) for title, columns, rows in layer_tables(report)
        ]
        verdicts = [f"{name}: {sentence(r)}" for name, r in named_results(report)]
        parts += ["\n".join(verdicts), "\n".join(remarks(report))]
    return "\n\n".join(filter(None, parts))


def _machines(report: Report) -> list[str]:
    """Return the tables that show the machines of a merged report side by side."""
    texts = [
        table(*part, title, width=WIDTH)
        for title, columns, rows in machine_tables(report)
        for part in _columns_that_fit(columns, rows)
    ]
    return [*texts, "\n".join(map(_filled, losses_compared(report)))]


def _columns_that_fit(
    columns: list[str], rows: list[Row]
) -> Iterator[tuple[list[str], list[Row]]]:
    """Yield the columns of all machines in as many tables as are needed."""
    widths = [
        min(MACHINE_WIDTH, max(len(str(row[i] or "")) for row in [columns, *rows])) + 2
        for i in range(len(columns))
    ]
    start = 1
    for end in range(2, len(columns) + 1):
        is_last = end == len(columns)
        if is_last or 2 + widths[0] + sum(widths[start : end + 1]) > WIDTH:
            some = slice(start, end)
            yield [columns[0], *columns[some]], [[row[0], *row[some]] for row in rows]
            start = end


def _filled(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _commands(report: Report) -> str:
    """Return the commands that look into the steps in question, as one can paste them.

    Long commands continue on the next line.
    """
    parts = []
    for purpose, command in commands(report):
        parts += [_filled(purpose), _continued(command)]
    return "\n".join(parts)


def _continued(command: str) -> str:
    """Break a shell command into lines of at most 80 columns, between its words."""
    words = [shlex.quote(word) for word in shlex.split(command)]
    lines = [f"    {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > WIDTH - 3:  # 3 for the space and " \\"
            lines.append(f"        {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)
