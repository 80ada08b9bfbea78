"""The result of a check: a row for each comparison, and the error for a wrong one."""

import math
from dataclasses import dataclass
from html import escape
from typing import Any

from ...display.tables import folded, html_table, table

__all__ = ["CheckFailed", "Report", "Row"]


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
    a table.
    """

    title: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    @property
    def worst(self) -> Row:
        """The row whose error is largest relative to its tolerance."""
        return max(
            self.rows,
            key=lambda row: (math.isnan(row.error), row.error / row.tolerance),
        )

    def __str__(self) -> str:
        return "\n\n".join([self.title, table(*self._cells()), *self.remarks])

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
