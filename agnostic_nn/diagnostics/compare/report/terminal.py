"""A report as text for a terminal of 80 columns."""

import shlex
from textwrap import fill

from ....display.tables import table
from ..schema import Report
from .headline import headline
from .names import named_results
from .repeats import repeats_text
from .sentences import commands, remarks, sentence, warnings
from .tables import about_short_table, overview, short_table

__all__ = ["summary"]

WIDTH = 80  # columns of a terminal


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
        table(*short_table(report), width=WIDTH),
        _filled(about_short_table(report)) if finished else "",
        *(_filled(f"{each[0].upper()}{each[1:]}.") for each in warnings(report)),
        *map(_filled, repeats_text(report).splitlines()),
        _filled(f"Left out: {', '.join(left_out)}; report.md says why.")
        if left_out
        else "",
        _commands(report),
    ]
    if verbose:
        parts += [
            table(columns, rows, title) for title, columns, rows in overview(report)
        ]
        verdicts = [f"{name}: {sentence(r)}" for name, r in named_results(report)]
        notes = [*report.differences, *remarks(report)]
        parts += ["\n".join(verdicts), "\n".join(notes)]
    return "\n\n".join(filter(None, parts))


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
