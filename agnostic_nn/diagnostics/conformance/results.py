"""Findings of a conformance run, as tables, as a page and as data."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from textwrap import fill
from typing import Any

from ...display.tables import (
    TERMINAL_WIDTH,
    folded,
    html_table,
    markdown_table,
    table,
)
from .causes import cause_of
from .sources import MissingSources, needs

__all__ = ["VERDICTS", "Cause", "Conformance", "Finding", "needs_paragraph"]

VERDICTS = ("exact", "within", "wrong", "unsupported", "skipped")
MAX_DETAILS = 20  # the text of so few findings has a row for each
POINTER = (
    "An adapter supplies what a library lacks: examples/mlx_backend is one, and "
    "docs/tutorials/write_a_backend.md explains how to write it."
)

HEAD = """# Conformance: {backend} {version}

This page shows which functions, layers, losses and optimizers of this library work on
{backend}. It tells you what you can train there, and an author of an adapter what is
still missing.

## How to repeat it

```console
agnostic-nn conformance NAME --markdown conformance.md
```

NAME is a backend such as `jax:cpu:0`, the module of an adapter, or a namespace of the
Array API Standard such as `mlx.core`. Trials run in a separate process, each with a
time limit, so a library that hangs or crashes does not stop the rest.

## How to read the tables

The columns `float32` and `float64` show the largest difference from NumPy's float64,
relative to the largest number of the array, or to 1 if that is larger. The verdicts
are:

- `exact`: the same numbers as NumPy's in the same dtype. They can still differ from
  float64.
- `within`: the difference is at most 16 ε, where ε is the distance from 1 to the next
  number. In training it is at most 4 ε √n after n roundings.
- `wrong`: the difference is larger, or a shape or dtype differs.
- `unsupported`: the library raised the error shown, did not return, or ended the
  process.
- `skipped`: not run on its own, for the reason shown.

Random words, checkpoints and copies to the device and back have to be exact. Random
draws, training and checkpoints are compared with NumPy in the same dtype.

Everything that is `exact` or `within` can be used. Layers that are `wrong` or
`unsupported` cannot; the reason names what the library or its adapter lacks.

## What a backend needs

- **Arrays** with `__array_namespace__`, or a library that array-api-compat wraps, or an
  adapter that registers the class of its arrays with
  `agnostic_nn.core.arrays.register`.
- **Dtypes** bool, int32, uint32 and float32, and float64 if the library has it.
- **Operators** of the Array API Standard, among them `@`, and `&`, `^`, `<<` and `>>`
  of uint32. Indexing with integers, slices, `None` and `...`.
- **Keyword arguments** `dtype=` and `device=` of functions that create arrays, and
  `stable=True` of sorts.
- **Devices**: `device(x)` of array-api-compat returns the device of x, or the
  registered function does.
- **Copies to the host** by `np.asarray`, DLPack, or the `to_numpy` of an adapter.
- **Functions** and names of the Array API Standard:

{needs}

Not needed: writing into an array, indexing with a mask or an integer array, and shapes
that depend on values. The library uses none of them.

A library with all of that runs without an adapter, under the name of its namespace
(`agnostic-nn conformance mlx.core`). An adapter supplies what is missing. It is one
module with the names that `agnostic_nn_backends` describes. `agnostic-nn conformance`
takes the name of the module; elsewhere the backend is called after its entry point of
the group `agnostic_nn.backends`. `examples/mlx_backend` is an adapter of a hundred
lines, and [Write a backend](tutorials/write_a_backend.md) explains how to write one.

## Results

On {hardware}, {adapter}: {tried} trials, **{summary}**.
"""


@dataclass(frozen=True)
class Finding:
    """The result of a trial; errors are relative to the largest number of an array."""

    section: str
    name: str
    verdict: str
    float32: float | None = None
    float64: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Cause:
    """A cause of failures, and the findings that it explains."""

    cause: str
    findings: tuple[Finding, ...]

    @property
    def example(self) -> Finding:
        """The first of the findings."""
        return self.findings[0]


@dataclass(frozen=True)
class Conformance:
    """All findings about one library. `str` makes tables of at most 80 columns."""

    backend: str
    version: str
    hardware: str
    adapter: str
    findings: tuple[Finding, ...]

    @property
    def totals(self) -> dict[str, int]:
        """The number of findings with each verdict."""
        counts = Counter(finding.verdict for finding in self.findings)
        return {verdict: counts[verdict] for verdict in VERDICTS}

    @property
    def conforms(self) -> bool:
        """Return whether nothing is wrong or unsupported."""
        return not (self.totals["wrong"] or self.totals["unsupported"])

    @property
    def summary(self) -> str:
        """The totals in words."""
        return ", ".join(f"{count} {verdict}" for verdict, count in self.totals.items())

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The failures, grouped by cause, the most frequent first."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.verdict in ("wrong", "unsupported"):
                groups.setdefault(cause_of(finding.reason), []).append(finding)
        by_size = sorted(groups.items(), key=lambda group: -len(group[1]))
        return tuple(Cause(cause, tuple(group)) for cause, group in by_size)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, verbose: bool = False) -> str:
        """Return what fails by cause, and the number of each verdict by section.

        verbose: whether to add a row for each finding, with its errors and its reason,
        in lines that may be longer than 80 columns. A few findings have rows anyway.
        """
        width = None if verbose else TERMINAL_WIDTH
        parts = [fill(self._head, TERMINAL_WIDTH)]
        if verbose or len(self.findings) <= MAX_DETAILS:
            tables = self._tables()
        else:
            tables = iter([self._sections_table()])
        parts += [table(columns, rows, title, width) for title, columns, rows in tables]
        if self.causes:
            title, columns, rows = self._causes_table()
            parts.append(table(columns, rows, title, width))
        parts.append(f"{len(self.findings)} tried: {self.summary}")
        if len(self.findings) > MAX_DETAILS and not verbose:
            parts[-1] += "\nEvery check: --verbose, or to_text(verbose=True) in Python."
        return "\n\n".join([*parts, fill(POINTER, TERMINAL_WIDTH)])

    @property
    def _head(self) -> str:
        return f"{self.backend} {self.version} ({self.hardware}), {self.adapter}"

    def _sections_table(self) -> tuple[str, list[str], list[list[Any]]]:
        """Return title, columns and rows: the number of each verdict by section."""
        rows: list[list[Any]] = []
        for section in dict.fromkeys(finding.section for finding in self.findings):
            counts = Counter(f.verdict for f in self.findings if f.section == section)
            rows.append([section, *(counts[verdict] or None for verdict in VERDICTS)])
        return "checks", ["section", *VERDICTS], rows

    def _causes_table(self) -> tuple[str, list[str], list[list[Any]]]:
        """Return title, columns and rows: what fails, by cause, with an example."""
        rows: list[list[Any]] = []
        for cause in self.causes:
            example = cause.example
            text = f"{example.section}, {example.name}"
            if example.reason != cause.cause:
                text += f": {example.reason}"
            rows.append([cause.cause, len(cause.findings), text])
        return "what fails, by cause", ["cause", "checks", "for example"], rows

    def _repr_html_(self) -> str:
        totals = f"{len(self.findings)} tried: {self.summary}"
        parts = [f"<p>{escape(self._head)}: <strong>{totals}</strong></p>"]
        if self.causes:
            title, columns, rows = self._causes_table()
            parts.append(html_table(columns, rows, title, inline=True))
        for title, columns, rows in self._tables():
            section = html_table(columns, rows, title, inline=True)
            parts.append(folded(f"{title}: {len(rows)}", section, len(rows)))
        return "".join(parts)

    def to_markdown(self) -> str:
        """Return a page in Markdown, which begins with what a backend needs."""
        values = asdict(self) | {"summary": self.summary, "tried": len(self.findings)}
        parts = [HEAD.format(needs=needs_paragraph(), **values).rstrip()]
        by_cause = [self._causes_table()] if self.causes else []
        for title, columns, rows in [*by_cause, *self._tables()]:
            parts += [
                f"### {title[0].upper()}{title[1:]}",
                markdown_table(columns, rows),
            ]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the findings, and what fails by cause, as data for JSON.

        An error that is not finite is null, and so is "needs" if the library was
        installed without its source files.
        """
        try:
            names: list[str] | None = list(needs())
        except MissingSources:
            names = None
        data = asdict(self) | {"totals": self.totals, "needs": names}
        data["causes"] = [
            {"cause": cause.cause, "checks": [f.name for f in cause.findings]}
            for cause in self.causes
        ]
        for finding in data["findings"]:
            for dtype in ("float32", "float64"):
                if finding[dtype] is not None and not math.isfinite(finding[dtype]):
                    finding[dtype] = None
        return data

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
        """Yield the title, columns and rows of the table of each section."""
        columns = ["", "verdict", "float32", "float64", "why"]
        for section in dict.fromkeys(finding.section for finding in self.findings):
            rows: list[list[Any]] = []
            for finding in self.findings:
                if finding.section == section:
                    errors = _cell(finding.float32), _cell(finding.float64)
                    rows.append(
                        [finding.name, finding.verdict, *errors, finding.reason]
                    )
            yield section, columns, rows


def _cell(error: float | None) -> str:
    if error is None:
        return ""
    return f"{error:.1e}" if error else "0"


def needs_paragraph() -> str:
    """Return the names of the standard that a backend needs, as lines of Markdown."""
    try:
        names = needs()
    except MissingSources as error:
        return f"(not listed: {error})"
    return fill(", ".join(f"`{name}`" for name in names), 88)
