"""Names of the runs in a report, and lists of names in a sentence."""

from collections.abc import Sequence

from ..schema import Report, Result

__all__ = ["first_few", "joined", "named_results", "names"]


def names(report: Report, *, with_dtype: bool = True) -> list[str]:
    """Return a unique name for each result.

    It is the backend, followed by the dtype, the policy and the machine where the
    results differ in them.

    with_dtype: if false, the dtype is not part of the name.
    """
    results = report.results
    dtypes = {r.dtype for r in results}
    machines = {r.machine for r in results}
    precisions = {r.precision for r in results} - {None}
    deterministic = {r.deterministic for r in results} - {None}
    unique = []
    for r in results:
        name = r.name
        if with_dtype and len(dtypes) > 1:
            name += f" {r.dtype}"
        if len(precisions) > 1 and r.precision is not None:
            name += f" {r.precision}"
        if len(deterministic) > 1 and r.deterministic is True:
            name += " deterministic"
        if len(machines) > 1:
            name += f" ({r.machine})"
        unique.append(name)
    return unique


def named_results(report: Report) -> list[tuple[str, Result]]:
    """Return each result with its unique name."""
    return list(zip(names(report), report.results, strict=True))


def joined(parts: Sequence[str]) -> str:
    """Return parts, of which there is at least one, as "a, b and c"."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def first_few(descriptions: list[str], most: int = 4) -> str:
    """Return the first `most` different descriptions, and the number of the others."""
    unique = list(dict.fromkeys(descriptions))
    rest = f" and {len(unique) - most} more" if len(unique) > most else ""
    return ", ".join(unique[:most]) + rest
