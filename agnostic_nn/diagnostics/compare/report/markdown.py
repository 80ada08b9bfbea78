"""A report as Markdown."""

from collections.abc import Iterator

from ....display.tables import markdown_table
from ..schema import Report
from .half import half_answers, half_runs, half_table, layer_tables
from .headline import headline
from .how_to_read import ABOUT_DETAILS, ABOUT_HALF, HOW_TO_READ
from .merged import is_merged, losses_compared, machine_tables
from .names import named_results
from .sentences import commands, remarks, sentence
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

__all__ = ["markdown"]


def markdown(report: Report) -> str:
    """Return the text of report.md."""
    task = report.workload
    reference = report.reference
    results = named_results(report)
    verdicts = (f"- **{_escape(name)}** {_escape(sentence(r))}" for name, r in results)
    parts = [
        f"# The same training on every backend: {task.name}",
        f"**{_escape(headline(report))}.**",
        *_where(report),
        *_commands(report),
        *_runs(report),
        "## What was trained",
        f"{task.about}.",
        f"    {task.model}",
        f"{task.parameters:,} parameters, {task.loss}, {task.optimizer}; "
        f"{task.training_examples:,} training examples in batches of "
        f"{task.batch_size}, {task.test_examples:,} test examples; seed {task.seed}.",
        "Every run starts from the same weights, draws the same masks and sees the "
        f"data in the same order; so does the reference, on {reference.backend} in "
        f"{reference.dtype}.",
        "## Verdict on each run",
        "\n".join(verdicts),
        "\n".join(f"- {_escape(line)}" for line in remarks(report)),
    ]
    parts += _half_precision(report)
    for title, columns, rows in overview(report):
        parts += [f"## {title[0].upper()}{title[1:]}"]
        parts += filter(None, [about_table(columns)])
        parts += [markdown_table(columns, rows)]
    tolerance = vars(report.tolerance)
    parts += ["## How to read this"]
    parts += [each.format(**tolerance) for each in HOW_TO_READ]
    parts += ["## Roundings in one step, and their tolerance"]
    parts += [markdown_table(*roundings(report))]
    if report.layer_costs:
        title, columns, rows, notes = layer_costs(report)
        parts += [f"## {title}", markdown_table(columns, rows), *notes]
    columns, rows = batch_timings(report)
    if rows:
        parts += ["## Milliseconds per step, by batch size"]
        parts += [markdown_table(columns, rows)]
    parts += [ABOUT_DETAILS] if any(r.deviations for _, r in results) else []
    for name, r in results:
        if r.deviations is not None:
            parts += [f"## Deviations of {name}"]
            parts += [markdown_table(*details(report, r.deviations))]
    parts += ["## Environment", markdown_table(*environments(report))]
    return "\n\n".join(parts) + "\n"


def _half_precision(report: Report) -> Iterator[str]:
    """Yield the section on half precision, if a run was in half precision."""
    if not half_runs(report):
        return
    yield "## Half precision"
    yield "\n".join(f"- {_escape(answer)}" for answer in half_answers(report))
    yield ABOUT_HALF
    yield _table(*half_table(report))
    for title, columns, rows in layer_tables(report):
        yield f"### {title[0].upper()}{title[1:]}"
        yield markdown_table(columns, rows)


def _where(report: Report) -> Iterator[str]:
    """Yield the table of where runs first differ, if any does."""
    columns, rows = first_differences(report)
    if rows:
        yield markdown_table(columns, rows)


def _commands(report: Report) -> Iterator[str]:
    """Yield what each command is for, and the command as code."""
    for purpose, command in commands(report):
        yield _escape(purpose)
        yield f"```sh\n{command}\n```"


def _runs(report: Report) -> Iterator[str]:
    """Yield the short table of runs; for a merged report the tables of machines."""
    if is_merged(report):
        for title, columns, rows in machine_tables(report):
            yield f"## {title}"
            yield markdown_table(columns, rows)
        yield "\n".join(f"- {_escape(line)}" for line in losses_compared(report))
    else:
        yield _table(*short_table(report))
    yield about_short_table(report)


def _table(columns: list[str], rows: list[Row]) -> str:
    """Return a table whose headings may have several lines in a terminal."""
    return markdown_table([name.replace("\n", " ") for name in columns], rows)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
