"""A report as Markdown."""

from ....display.tables import markdown_table
from ..schema import Report
from .headline import headline
from .how_to_read import HOW_TO_READ
from .names import named_results
from .sentences import remarks, sentence
from .tables import (
    batch_timings,
    details,
    environments,
    layer_costs,
    overview,
    roundings,
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
        f"{task.about}.",
        f"    {task.model}",
        f"{task.parameters:,} parameters, {task.loss}, {task.optimizer}; "
        f"{task.training_examples:,} training examples in batches of "
        f"{task.batch_size}, {task.test_examples:,} test examples; seed {task.seed}.",
        "Every run starts from the same weights, draws the same masks and sees the "
        f"data in the same order; so does the reference, on {reference.backend} in "
        f"{reference.dtype}.",
        "\n".join(verdicts),
    ]
    if report.differences:
        listed = "\n".join(f"- {_escape(line)}" for line in report.differences)
        parts += ["## Differences between machines and settings", listed]
    for title, columns, rows in overview(report):
        parts += [f"## {title[0].upper()}{title[1:]}", markdown_table(columns, rows)]
    parts.append("\n".join(f"- {_escape(line)}" for line in remarks(report)))
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
    for name, r in results:
        if r.deviations is not None:
            parts += [f"## Deviations of {name}"]
            parts += [markdown_table(*details(report, r.deviations))]
    parts += ["## Environment", markdown_table(*environments(report))]
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
