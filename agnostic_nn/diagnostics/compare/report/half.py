"""Say in words and in tables whether a model may be trained in half precision."""

from ..schema import HalfPrecision, Report, Result
from .tables import Row

__all__ = ["half_answers", "half_runs", "half_table", "layer_tables"]


def half_runs(report: Report) -> list[tuple[str, Result, HalfPrecision]]:
    """Return the name, result and answer of each run in half precision.

    The name is the device in the notation of `nn.backend`, and the machine if there are
    several.
    """
    several = len(report.machines) > 1
    return [
        (f"{r.name} ({r.machine})" if several else r.name, r, r.half_precision)
        for r in report.results
        if r.half_precision is not None
    ]


def half_answers(report: Report) -> list[str]:
    """Return the question and the answer for each run, and code if layers stay."""
    answers = []
    for name, r, half in half_runs(report):
        answer = f"May I train in {r.dtype} on {name}? {half.sentence}"
        if half.keep:
            answer += f" {half.policy}"
        answers.append(answer)
    return answers


def half_table(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: how each training ends next to that in float32.

    "rounding alone" is the control run, the float64 reference with gradients that are
    rounded like those of the dtype.
    """
    metric = report.workload.metric
    figure = metric or "loss"
    columns = ["backend", "dtype", "answer", figure.replace(" ", "\n")]
    columns += ["in\nfloat32", "rounding\nalone", "error of\ngradients"]
    rows: list[Row] = []
    for name, r, half in half_runs(report):
        figures = [half.loss, half.float32_loss, half.control_loss]
        if metric:
            figures = [half.test_metric, half.float32_test_metric]
            figures += [half.control_test_metric]
        rows.append([name, r.dtype, half.answer, *figures, half.gradient_error])
    return columns, rows


def layer_tables(report: Report) -> list[tuple[str, list[str], list[Row]]]:
    """Return a table for each run: the error that each layer causes by itself."""
    tables = []
    columns = ["layer", "", "error of gradients", "share of squares"]
    for name, r, half in half_runs(report):
        squares = [(each.gradient_error or 0.0) ** 2 for each in half.layers]
        total = sum(squares)
        rows: list[Row] = []
        for each, square in zip(half.layers, squares, strict=True):
            error = "not finite" if each.gradient_error is None else each.gradient_error
            share = f"{100.0 * square / total:.0f} %" if total else None
            rows.append([each.path or "the model", each.layer, error, share])
        title = f"{name}, {r.dtype}: one layer in {r.dtype}, the others in float32"
        if half.layers_not_measured:
            title += f" (not measured: {', '.join(half.layers_not_measured)})"
        tables.append((title, columns, rows))
    return tables
