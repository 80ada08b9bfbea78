"""The result of a check: a row for each comparison, and the error for a wrong one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from ...core.precisions import PRECISION_NAMES
from ...display.tables import folded, html_table, table

__all__ = ["CheckFailed", "Report", "Row", "column_of", "comparisons"]


class CheckFailed(AssertionError):
    """A layer breaks its contract, or a gradient differs from that of an oracle.

    report: the comparisons; None if the contract is broken, which is checked first.
    """

    report: "Report | None" = None


@dataclass(frozen=True)
class Row:
    """The comparison of one leaf with one oracle.

    error: relative to the largest number in the leaf. index, expected and got: of the
    worst element.
    """

    oracle: str
    backend: str
    mode: str
    leaf: str
    error: float
    tolerance: float
    checked: int
    kinks: int
    index: tuple[int, ...]
    expected: float
    got: float


@dataclass(frozen=True)
class Report:
    """The result of `check`: a row for each oracle, backend, mode and leaf.

    remarks: what could not be checked in the dtypes that `check` was given. `str()` is
    a table with the worst leaf of each comparison.
    """

    title: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    @property
    def worst(self) -> Row:
        """The row whose error is largest relative to its tolerance."""
        return max(self.rows, key=_severity)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, verbose: bool = False) -> str:
        """Return the comparisons as a table, with `verbose` a row for each leaf."""
        compared = table(*comparisons(self.rows, verbose=verbose))
        return "\n\n".join([self.title, compared, *self.remarks])

    def _repr_html_(self) -> str:
        worst = self.worst.error / self.worst.tolerance
        count = len(self.rows)
        summary = f"{count} comparisons, the worst at {worst:.2g} of its tolerance"
        rows = html_table(*self._cells(), inline=True)
        remarks = "".join(f"<p>{escape(remark)}</p>" for remark in self.remarks)
        return f"<p>{escape(self.title)}</p>{folded(summary, rows, count)}{remarks}"

    def _cells(self) -> tuple[list[str], list[list[Any]]]:
        columns = ["oracle", "backend", "mode", "leaf"]
        columns += ["error", "tolerance", "checked", "kinks"]
        cells = [[getattr(row, column) for column in columns] for row in self.rows]
        return columns, cells


def column_of(row: Row) -> str:
    """Return the name of a comparison: an oracle, a backend, or an oracle on one."""
    if row.oracle in PRECISION_NAMES:
        return f"{row.oracle} on {row.backend}"
    if row.oracle == "automatic differentiation":
        return f"vjp of {row.backend}"
    return row.backend if row.oracle == "same as NumPy" else row.oracle


def comparisons(
    rows: Iterable[Row], *, verbose: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a table of the comparisons of one layer.

    verbose: whether to show all leaves, not only the worst of each comparison.
    """
    by_comparison: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_comparison.setdefault((column_of(row), row.mode), []).append(row)
    lines = []
    for comparison, compared in by_comparison.items():
        for row in compared if verbose else [max(compared, key=_severity)]:
            error = "" if row.leaf == "(refused)" else f"{row.error:.1e}"
            lines.append([*comparison, row.leaf, error, f"{row.tolerance:.0e}"])
    leaf = "leaf" if verbose else "worst leaf"
    return ["comparison", "mode", leaf, "error", "tolerance"], lines


def _severity(row: Row) -> tuple[bool, float]:
    """Return a key that sorts rows by their errors relative to their tolerances."""
    return math.isnan(row.error), row.error / row.tolerance
