"""Findings: what became of each thing that was tried, as tables, a page and data."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from textwrap import fill
from typing import Any

from ...display.tables import folded, html_table, markdown_table, table

__all__ = ["NEEDS", "VERDICTS", "Conformance", "Finding"]

VERDICTS = ("exact", "within", "wrong", "unsupported", "skipped")
NEEDS = (  # of the Standard; a test holds that no more is used
    *("abs", "all", "any", "arange", "argmax", "argsort", "asarray", "astype", "bool"),
    *("broadcast_to", "clip", "concat", "cos", "exp", "expand_dims", "expm1", "finfo", "flip"),
    *("float32", "floor", "full", "full_like", "int32", "int8", "isdtype", "isfinite", "log"),
    *("log1p", "logaddexp", "logical_and", "logical_or", "matrix_transpose", "max", "maximum"),
    *("mean", "minimum", "ones", "ones_like", "permute_dims", "repeat", "reshape"),
    *("searchsorted", "sign", "sin", "sinh", "sqrt", "stack", "sum", "take", "take_along_axis"),
    *("tanh", "uint32", "uint8", "where", "zeros", "zeros_like"),
)


HEAD = """# Conformance: {backend} {version}

What of this library {backend} can carry, thing by thing, found by `agnostic-nn conformance`.

## What a backend must have

Arrays with `__array_namespace__`, or a library that array-api-compat wraps, or a class of arrays
that the adapter names by `agnostic_nn.core.arrays.register`; the dtypes bool, int32, uint32
and float32, and float64 if there is one; the operators of the Standard, among them `@`, `&`, `^`,
`<<` and `>>` of uint32; indexing with integers, slices, `None` and `...`; and of the functions and
names of the Array API Standard these:

{needs}

Numbers made from nothing are asked for with `dtype=` and `device=`, and `device(x)` of
array-api-compat must tell where x is, or else the function that was registered; `np.asarray` or
DLPack must bring x to the host, or an adapter's `to_numpy`. Sorts are asked for with `stable=True`.
Nothing is written into an array, nothing is indexed by a mask or by integers, and no value decides
a shape.

A library with all of that runs as it is, by the name of its namespace (`agnostic-nn conformance
mlx.core`). What it lacks, an adapter brings: one module with the names that
`agnostic_nn_backends` lists, which is found by its own name, or as an entry point of the group
`agnostic_nn.backends`. There is one of a hundred lines in `examples/mlx_backend`.

## How to read this

The columns are the largest difference from NumPy's float64, relative to the largest number of the
array that it is in, or to 1. `exact`: the same numbers as NumPy's in the same dtype, which has a
difference from float64 too. `within`: off by no more than 16 ε, ε being the distance from 1 to the
next number, or in training by 4 ε √n, after n roundings. `wrong`: off by more, or of another shape
or dtype. `unsupported`: the library's own error in one line, or that it gave no answer or ended the
process. `skipped`: not tried by itself, and why. Random words, checkpoints and what goes to a
device and back must be exact. Differences of random draws, training and checkpoints are from NumPy
in the same dtype.

## What was found

On {hardware}, {adapter}: {tried} things, of which **{said}**.
"""


@dataclass(frozen=True)
class Finding:
    """What became of one thing: errors are relative to the largest number of an array."""

    section: str
    name: str
    verdict: str
    float32: float | None = None
    float64: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Conformance:
    """All findings about one library. `str` makes tables."""

    backend: str
    version: str
    hardware: str
    adapter: str
    findings: tuple[Finding, ...]

    @property
    def totals(self) -> dict[str, int]:
        """How many findings have each verdict."""
        counted = Counter(one.verdict for one in self.findings)
        return {verdict: counted[verdict] for verdict in VERDICTS}

    @property
    def conforms(self) -> bool:
        """Whether nothing is wrong or unsupported."""
        return not (self.totals["wrong"] or self.totals["unsupported"])

    @property
    def said(self) -> str:
        """The totals in words."""
        return ", ".join(f"{count} {verdict}" for verdict, count in self.totals.items())

    def __str__(self) -> str:
        parts = [table(columns, rows, title) for title, columns, rows in self._tables()]
        head = f"{self.backend} {self.version} ({self.hardware}), {self.adapter}"
        return "\n\n".join([head, *parts, f"{len(self.findings)} tried: {self.said}"])

    def _repr_html_(self) -> str:
        head = f"{self.backend} {self.version} ({self.hardware}), {self.adapter}: "
        told = [f"<p>{escape(head)}<strong>{len(self.findings)} tried: {self.said}</strong></p>"]
        for title, columns, rows in self._tables():
            found = html_table(columns, rows, title, inline=True)
            told.append(folded(f"{title}: {len(rows)}", found, len(rows)))
        return "".join(told)

    def to_markdown(self) -> str:
        """The same as a page in Markdown, which says first what a backend must have."""
        words = ", ".join(f"`{name}`" for name in NEEDS)
        said = asdict(self) | {"said": self.said, "tried": len(self.findings)}
        parts = [HEAD.format(needs=fill(words, 100), **said).rstrip()]
        for title, columns, rows in self._tables():
            parts += [f"### {title[0].upper()}{title[1:]}", markdown_table(columns, rows)]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """The same as data for JSON, where an error that is no finite number is null."""
        found = asdict(self) | {"totals": self.totals, "needs": list(NEEDS)}
        for one in found["findings"]:
            for dtype in ("float32", "float64"):
                if one[dtype] is not None and not math.isfinite(one[dtype]):
                    one[dtype] = None
        return found

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
        columns = ["", "verdict", "float32", "float64", "why"]
        for section in dict.fromkeys(one.section for one in self.findings):
            rows = [
                [one.name, one.verdict, _shown(one.float32), _shown(one.float64), one.reason]
                for one in self.findings
                if one.section == section
            ]
            yield section, columns, rows


def _shown(error):
    return "" if error is None else f"{error:.1e}" if error else "0"
