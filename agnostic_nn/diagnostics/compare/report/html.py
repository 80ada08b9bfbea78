"""The HTML page of a report."""

import os
from html import escape
from pathlib import Path
from typing import Any

from ....display.pages import framed, render
from ..schema import Report, Result
from .files import write
from .headline import headline
from .how_to_read import HOW_TO_READ
from .names import named_results
from .plots import drawn
from .sentences import remarks, sentence
from .tables import batch_timings, environments, layer_costs, overview, roundings
from .terminal import summary

__all__ = ["Comparison", "page"]


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
    verdicts = [(name, sentence(r), _css_class(r)) for name, r in named]
    return render(
        "compare.html",
        title=f"{report.workload.name}: the same training on every backend",
        about=f"{report.workload.about}.",
        report=report,
        headline=f"{headline(report)}.",
        verdicts=verdicts,
        remarks=list(remarks(report)),
        tables=[_trimmed(len(named), *each) for each in overview(report)],
        plots=drawn(report),
        how_to_read=[each.format(**vars(report.tolerance)) for each in HOW_TO_READ],
        roundings=roundings(report),
        layer_costs=layer_costs(report) if report.layer_costs else None,
        batch_timings=batch_timings(report),
        environments=environments(report),
    )


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


def _css_class(result: Result) -> str:
    if result.status in ("failed", "differs"):
        return "bad"
    in_doubt = result.status == "not checked" or result.precision_issue
    return "doubt" if in_doubt else "good"
