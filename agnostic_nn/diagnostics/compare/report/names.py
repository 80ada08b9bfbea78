"""Names of the runs in a report, and lists of names in a sentence."""

from collections.abc import Sequence

from ..rounding import layer_of
from ..schema import Report, Result

__all__ = [
    "first_few",
    "joined",
    "layer_order",
    "named_results",
    "names",
    "with_class",
]


def names(
    report: Report, *, with_dtype: bool = True, with_machine: bool = True
) -> list[str]:
    """Return a unique name for each result.

    It is the backend, followed by the dtype, the policy and the machine where the
    results differ in them.

    with_dtype, with_machine: if false, that is not part of the name.
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
        if with_machine and len(machines) > 1:
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


# --- layers ---------------------------------------------------------------------------


def with_class(report: Report, name: str) -> str:
    """Return the path of a layer or an array with the class of the innermost layer.

    It is "0 (Dense)" for `0`, and "0.weight (Dense)" for `0.weight`. The model, whose
    path is empty, remains "".
    """
    layer = _layer(report, name)
    return f"{name} ({_classes(report)[layer]})" if layer else name


def layer_order(report: Report, name: str) -> tuple[int, str]:
    """Return the key that sorts layers and arrays in the order of computation."""
    paths = [each.layer for each in report.tolerance.layers]
    layer = _layer(report, name)
    return (paths.index(layer) if layer in paths else len(paths)), name


def _layer(report: Report, name: str) -> str:
    """Return the path of the innermost layer that holds an array; "" if it is unknown.

    The name of a moment begins with `moments.` and the optimizer's name for it.
    """
    paths = _classes(report)
    parts = name.partition("[")[0].split(".")
    starts = range(len(parts) if parts[0] == "moments" else 1)
    candidates = (layer_of(".".join(parts[k:]), paths) for k in starts)
    return next(filter(None, candidates), "")


def _classes(report: Report) -> dict[str, str]:
    """Return the class of each layer by its path."""
    return {
        each.layer: each.about.partition("(")[0] for each in report.tolerance.layers
    }
