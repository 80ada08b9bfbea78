"""The HTML page of a report."""

import os
from html import escape
from pathlib import Path
from typing import Any

from ....display.pages import COLOURS, framed, render
from ..schema import Report, Status
from .axes import DASHES, MARKS
from .files import write
from .half import half_answers, half_table, layer_tables
from .half_plots import half_plots
from .headline import headline
from .how_to_read import ABOUT_DETAILS, ABOUT_HALF, HOW_TO_READ
from .merged import (
    SYMBOLS,
    is_merged,
    losses_compared,
    settings_by_machine,
    times_by_machine,
    verdicts_by_machine,
)
from .names import named_results
from .plots import drawn
from .repeats import repeats_text
from .sentences import commands, remarks, sentence, warnings
from .tables import (
    Row,
    about_short_table,
    about_table,
    batch_timings,
    details,
    environments,
    first_differences,
    layer_costs,
    overview,
    roundings,
    short_table,
)
from .terminal import summary

__all__ = ["Comparison", "page"]

# of each status, the worst first: its class in the style sheet, a symbol, a heading
STATUSES: dict[Status, tuple[str, str, str]] = {
    "differs": ("bad", SYMBOLS["differs"], "Differs"),
    "failed": ("bad", SYMBOLS["failed"], "Failed"),
    "not checked": ("doubt", SYMBOLS["not checked"], "Not fully checked"),
    "agrees": ("good", SYMBOLS["agrees"], "Agrees"),
}


class Comparison(Report):
    """A report of which `str()` is text, and which a notebook shows as a page."""

    def __str__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        try:
            return framed(page(self))
        except ImportError:
            return f"<pre>{escape(str(self))}</pre>"

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json, report.md and report.html, and return their paths.

        The folder is created if needed. report.html is left out if a package that pages
        need is not installed.

        Raises
        ------
        OSError
            If the files cannot be written; existing files then remain unchanged.
        """
        try:
            html = page(self)
        except ImportError:
            html = None
        return write(self, folder, html)


def page(report: Report) -> str:
    """Return the text of report.html.

    Raises
    ------
    ImportError
        If a package that pages need is not installed.
    """
    named = named_results(report)
    return render(
        "compare.html",
        title=f"{report.workload.name}: the same training on every backend",
        report=report,
        status=_worst_status(report),
        headline=f"{headline(report)}.".partition("; "),
        warnings=list(warnings(report)),
        differences=first_differences(report),
        commands=commands(report),
        runs=_runs(report),
        machines=_machines(report) if is_merged(report) else None,
        about_runs=about_short_table(report),
        repeats=repeats_text(report).splitlines(),
        verdicts=[
            (name, sentence(r, with_command=False), STATUSES[r.status][0])
            for name, r in named
        ],
        remarks=list(remarks(report)),
        tables=[
            (*_trimmed(len(named), *each), about_table(each[1]))
            for each in overview(report)
        ],
        about_details=ABOUT_DETAILS,
        details=[
            (name, *details(report, r.deviations))
            for name, r in named
            if r.deviations is not None
        ],
        half_answers=half_answers(report),
        half_table=half_table(report),
        half_about=ABOUT_HALF,
        half_layers=layer_tables(report),
        plots=[*drawn(report), *half_plots(report)],
        swatches=[
            (_swatch(i), name)
            for i, (name, r) in enumerate(named)
            if r.deviations is not None
        ],
        how_to_read=[each.format(**vars(report.tolerance)) for each in HOW_TO_READ],
        roundings=roundings(report),
        layer_costs=layer_costs(report) if report.layer_costs else None,
        batch_timings=batch_timings(report),
        environments=environments(report),
    )


def _worst_status(report: Report) -> tuple[str, str, str]:
    """Return how the worst status of all runs is shown."""
    present = {r.status for r in report.results}
    if report.unfinished and not present & {"differs", "failed"}:
        _, symbol, _ = STATUSES["not checked"]
        return "doubt", symbol, "Not complete"
    return next(look for status, look in STATUSES.items() if status in present)


def _runs(
    report: Report,
) -> tuple[list[str], list[tuple[str, str, str, Row]]]:
    """Return the columns of the table of runs, and the rows with their statuses.

    A row is the swatch of a run, its class, its symbol, and the cells.
    """
    columns, rows = short_table(report)
    columns = [column.replace("\n", " ") for column in columns]
    marked = []
    for i, row in enumerate(rows):
        kind, symbol = "", ""
        swatch = ""
        if i < len(report.results):  # the last row is the reference
            kind, symbol, _ = STATUSES[report.results[i].status]
            is_drawn = report.results[i].deviations is not None
            swatch = _swatch(i) if is_drawn else ""
        marked.append((swatch, kind, symbol, row))
    return columns, marked


def _machines(report: Report) -> dict[str, Any]:
    """Return the tables of a merged report, and sentences on its losses.

    A verdict is a class, a symbol and a text.
    """
    columns, rows = verdicts_by_machine(report)
    classes = {symbol: kind for kind, symbol, _ in STATUSES.values()}
    verdicts = []
    for name, *cells in rows:
        parts = [cell.split(" ", 1) for cell in cells]
        marked = [
            (classes.get(symbol, "faint"), symbol, text) for symbol, text in parts
        ]
        verdicts.append((name, marked))
    return {
        "verdicts": (columns, verdicts),
        "times": times_by_machine(report),
        "settings": settings_by_machine(report),
        "losses": list(losses_compared(report)),
    }


def _trimmed(
    runs: int, title: str, columns: list[str], rows: list[Any]
) -> tuple[str, list[str], list[Any]]:
    """Return a table without columns that repeat one value or are shown elsewhere.

    The first `runs` rows are runs. Verdicts are listed at the top of the page. If there
    are several dtypes, they are part of the names of the runs.
    """
    dropped = {"verdict", "dtype"}
    if "dtype" in columns:
        dtypes = {row[columns.index("dtype")] for row in rows[:runs]} - {None}
        title += f", in {dtypes.pop()}" if len(dtypes) == 1 else ""
    if "hardware" in columns:
        hardware = {row[columns.index("hardware")] for row in rows[:runs]} - {None}
        dropped |= {"hardware"} if len(hardware) < 2 else set()
    remaining = [i for i, column in enumerate(columns) if column not in dropped]
    shorter_rows = [[row[i] for i in remaining] for row in rows]
    return title, [columns[i] for i in remaining], shorter_rows


# --- the key of the plots -------------------------------------------------------------

# The markers of plots, within a square from -4 to 4.
SHAPES = {
    "o": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "s": "M-3.3 -3.3h6.6v6.6h-6.6z",
    "D": "M0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
    "^": "M0 -4l4 7.4h-8z",
    "v": "M0 4l4 -7.4h-8z",
    "P": "M-1.3 -4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "X": "M-2 -4l2 2l2 -2l2 2l-2 2l2 2l-2 2l-2 -2l-2 2l-2 -2l2 -2l-2 -2z",
}


def _swatch(i: int) -> str:
    """Return the SVG of the line and the marker that run number i has in plots."""
    dashes = " ".join(f"{1.8 * length:g}" for length in DASHES[i % len(DASHES)])
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    colour = f"var(--c{i % COLOURS})"
    return (
        '<svg class="swatch" viewBox="-14 -6 28 12" aria-hidden="true">'
        f'<path d="M-14 0h28" stroke="{colour}" stroke-width="1.8"{dashed}/>'
        f'<path d="{SHAPES[MARKS[i % len(MARKS)]]}" fill="{colour}"/></svg>'
    )
