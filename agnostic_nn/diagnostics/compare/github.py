"""A report for GitHub Actions: annotations of a workflow run, and its summary page.

An annotation is a line of output, `::error title=TITLE::MESSAGE`, that the runner turns
into a remark on the page of the workflow. The summary is Markdown that a step appends
to the file named by $GITHUB_STEP_SUMMARY.
"""

from collections.abc import Iterator

from .report.headline import headline
from .report.markdown import markdown
from .report.names import named_results
from .report.sentences import sentence
from .schema import Report, Status

__all__ = ["annotations", "step_summary"]

_LEVELS: dict[Status, str] = {
    "differs": "error",
    "failed": "error",
    "not checked": "warning",
}
# GitHub refuses a summary of more than 1 MiB, and then shows none at all.
MAX_SUMMARY = 1 << 20


def annotations(report: Report) -> Iterator[str]:
    """Yield a line for each run that does not agree, and for each that was left out."""
    workload = report.workload.name
    for name, r in named_results(report):
        level = _LEVELS.get(r.status)
        if level is not None:
            yield _annotation(level, f"{workload} on {name}: {r.status}", sentence(r))
    for each in report.left_out:
        title = f"{workload} on {each.backend}: left out"
        yield _annotation("notice", title, each.reason)


def step_summary(report: Report) -> str:
    """Return the beginning of report.md, up to the explanations, for the summary page.

    It has the verdicts, the tables with a row for each run, and the remarks.
    """
    text, _, _ = markdown(report).partition("\n## How to read this")
    if len(text.encode()) >= MAX_SUMMARY:
        text = f"**{headline(report)}.** The tables are too long for this page."
    return f"{text.rstrip()}\n\n"


def _annotation(level: str, title: str, message: str) -> str:
    """Return a workflow command; its own separators are escaped in the texts."""
    escaped_title = _escape(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={escaped_title}::{_escape(message)}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
