"""History: the results of a training run, epoch by epoch."""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..core.errors import expect, expect_list
from ..display.pages import embedded, figure, svg
from ..display.tables import folded, html_table, table

__all__ = ["History"]

NOT_PLOTTED = {"epoch", "steps", "seconds"}


@dataclass
class History:
    """One dict per epoch. `history["loss"]` is a column, `str(history)` a table.

    A notebook shows the table, and, if matplotlib is installed, a plot of the loss and
    of each metric, with their values on the validation data. A loss that spans more
    than two decades is plotted on a logarithmic scale.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        expect_list("epochs", self.epochs)

    def __getitem__(self, name: str) -> list[Any]:
        return [row[name] for row in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __str__(self) -> str:
        return table(*self._cells())

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with a row for each epoch.

        Columns are those of the table; a value that an epoch did not report is missing.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                f"to_dataframe needs pandas, which cannot be imported ({error}): "
                "pip install pandas"
            ) from error
        columns, rows = self._cells()
        return pandas.DataFrame(rows, columns=columns)

    def plot(self) -> Any:
        """Return a matplotlib figure with the loss and each metric by epoch.

        Values on the validation data are drawn in the same axes. The figure belongs to
        `pyplot`: a script shows it by `pyplot.show()`, and a notebook at the end of the
        cell. `history.plot().savefig("loss.png")` writes it to a file. A notebook also
        shows these plots for `history` itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If no column has two finite numbers to plot.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(
                f"plot needs matplotlib, which cannot be imported ({error}): "
                "pip install 'agnostic-nn[report]'"
            ) from error
        measures = self._measures()
        expect(
            len(measures) > 0,
            "expected at least two epochs with finite numbers to plot, got {}",
            len(self),
        )
        plot = pyplot.figure(
            FigureClass=_shown_once(),
            figsize=(4.4 * len(measures), 3.0),
            layout="constrained",
        )
        panels = plot.subplots(1, len(measures), squeeze=False)[0]
        for axes, (name, columns) in zip(panels, measures.items(), strict=True):
            self._draw(axes, name, columns)
        return plot

    def _repr_html_(self) -> str:
        try:
            plots = "".join(self._plot(*pair) for pair in self._measures().items())
        except ImportError:  # matplotlib is in the extra `report`
            plots = ""
        rows = html_table(*self._cells(), inline=True)
        if not plots:
            return rows
        return embedded(plots) + folded(f"{len(self)} epochs", rows, len(self))

    def _cells(self) -> tuple[list[str], list[list[Any]]]:
        columns = list(self.epochs[0]) if self.epochs else ["epoch", "loss"]
        return columns, [[row.get(column) for column in columns] for row in self.epochs]

    def _measures(self) -> dict[str, dict[str, list[float]]]:
        """Return, by metric, the columns to plot together, as loss and validation."""
        measures: dict[str, dict[str, list[float]]] = {}
        columns, rows = self._cells()
        for name, *values in zip(columns, *rows, strict=True):
            numbers = [math.nan if v is None else v for v in values]
            is_plain = all(isinstance(v, int | float) for v in numbers)
            if (
                name not in NOT_PLOTTED
                and is_plain
                and sum(map(math.isfinite, numbers)) > 1
            ):
                measures.setdefault(name.removeprefix("validation_"), {})[name] = (
                    numbers
                )
        return measures

    def _plot(self, name: str, columns: dict[str, list[float]]) -> str:
        plot, axes = figure(4.4, 2.6)
        self._draw(axes, name, columns)
        return svg(plot, f"{' and '.join(columns)} by epoch")

    def _draw(self, axes: Any, name: str, columns: dict[str, list[float]]) -> None:
        """Draw the columns of one metric by epoch."""
        epochs = [row.get("epoch", i) for i, row in enumerate(self.epochs, 1)]
        for column, values in columns.items():
            axes.plot(
                epochs, values, label=column, marker="." if len(epochs) < 20 else None
            )
        finite = [v for values in columns.values() for v in values if math.isfinite(v)]
        if name == "loss" and 0.0 < 100.0 * min(finite) < max(finite):
            axes.set_yscale("log")
        axes.set_title(name, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(columns) > 1:
            axes.legend()


@cache
def _shown_once() -> Any:
    """Return a class of figures that a notebook shows once.

    matplotlib's backend for notebooks shows the open figures of `pyplot` at the end of
    the cell. IPython would show the value of a cell in addition.
    """
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    class Plot(Figure):  # type: ignore[misc]
        """A figure that is closed, and so not shown again, when IPython shows it."""

        def _ipython_display_(self) -> None:
            if "inline" in matplotlib.get_backend():
                pyplot.close(self)
            raise NotImplementedError  # IPython then shows it as any other figure

    return Plot
