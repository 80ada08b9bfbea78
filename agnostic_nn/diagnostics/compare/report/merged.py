"""The tables of a merged report, with a column for each machine."""

from collections.abc import Callable, Iterator
from typing import Any

from ..schema import Report, Result, Status
from .names import joined, named_results, names
from .tables import Row, largest_ratio, product_formats, settings_of, short_verdict

__all__ = [
    "differing_settings",
    "is_merged",
    "losses_compared",
    "machine_tables",
    "settings_by_machine",
    "times_by_machine",
    "verdicts_by_machine",
]

# Words say the same: symbols alone are not read out, and colours not seen by everybody.
SYMBOLS: dict[Status, str] = {
    "agrees": "✓",
    "differs": "✗",
    "not checked": "?",
    "failed": "!",
}
NOT_RUN = "– not run"


def is_merged(report: Report) -> bool:
    """Return whether a report is of several machines or settings."""
    return len(report.machines) > 1


def verdicts_by_machine(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: the verdict on each run, a row for each backend."""
    return _matrix(report, _verdict)


def _verdict(result: Result) -> str:
    text = f"{SYMBOLS[result.status]} {short_verdict(result)}"
    ratio = largest_ratio(result)
    if ratio is None:
        return text
    return f"{text} ({ratio if isinstance(ratio, str) else f'{ratio:g}'})"


def times_by_machine(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: the median time of a step, also relative to the least.

    There are no rows if no run was timed.
    """
    times = [r.step_ms for r in report.results if r.step_ms]
    if not times:
        return _matrix(report, str)[0], []
    least = min(times)

    def time(result: Result) -> str | None:
        if not result.step_ms:
            return None
        return f"{result.step_ms:.3g} ({result.step_ms / least:.2g}x)"

    columns, rows = _matrix(report, time, missing=None)
    return columns, [row for row in rows if any(row[1:])]


def machine_tables(report: Report) -> Iterator[tuple[str, list[str], list[Row]]]:
    """Yield title, columns and rows of each table; each column is a machine."""
    tables = (
        ("Verdict (deviation / tolerance)", verdicts_by_machine(report)),
        ("Milliseconds per step (times the fastest)", times_by_machine(report)),
        ("Settings that differ", settings_by_machine(report)),
    )
    return ((title, *cells) for title, cells in tables if cells[1])


def _matrix(
    report: Report,
    describe: Callable[[Result], str | None],
    missing: str | None = NOT_RUN,
) -> tuple[list[str], list[Row]]:
    """Return a row for each backend and a column for each machine."""
    labels = [machine.label for machine in report.machines]
    cells: dict[str, dict[str, str | None]] = {}
    without_machine = names(report, with_machine=False)
    for name, r in zip(without_machine, report.results, strict=True):
        cells.setdefault(name, {})[r.machine] = describe(r)
    rows = [
        [name, *(by.get(label, missing) for label in labels)]
        for name, by in cells.items()
    ]
    return ["backend", *labels], rows


# --- settings -------------------------------------------------------------------------


def settings_by_machine(report: Report) -> tuple[list[str], list[Row]]:
    """Return columns and rows: each setting that is not the same on all machines."""
    labels = [machine.label for machine in report.machines]
    rows = [
        [setting, *(values.get(label, "") for label in labels)]
        for setting, values in differing_settings(report)
    ]
    return ["setting", *labels], rows


def differing_settings(report: Report) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each setting that is not the same everywhere, with its value by machine."""
    for setting, values in _all_settings(report):
        if len(set(values.values())) > 1:
            yield setting, values


def _all_settings(report: Report) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield all settings of machines, then of backends, as text by machine."""
    environments = {m.label: settings_of(m.environment) for m in report.machines}
    for key in dict.fromkeys(key for each in environments.values() for key in each):
        if key != "date":
            yield (
                key,
                {label: _text(each.get(key)) for label, each in environments.items()},
            )
    processors = {m.label: m.environment.processor for m in report.machines}
    backends: dict[str, dict[str, str]] = {}
    for r in report.results:
        if r.version is None:  # it could not run
            continue
        for setting, value in _settings_of_run(r, processors[r.machine]):
            backends.setdefault(f"{setting} of {r.name}", {})[r.machine] = value
    yield from backends.items()


def _settings_of_run(result: Result, processor: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of a run; its hardware only if it is not the processor."""
    if result.hardware != processor:
        yield "hardware", _text(result.hardware)
    for key in ("version", "precision", "deterministic"):
        yield key, _text(getattr(result, key))
    if result.dtype == "float32" and result.has_float64 is not None:
        yield "float64", "available" if result.has_float64 else "not available"
    if result.measured_precision is not None:
        yield (
            "products",
            ", ".join(
                f"{product_formats(products)} {how}"
                for how, products in vars(result.measured_precision).items()
            ),
        )


def _text(value: Any) -> str:
    return "not set" if value is None else str(value)


# --- losses ---------------------------------------------------------------------------


def losses_compared(report: Report) -> Iterator[str]:
    """Say where the losses of a backend are bit-identical, and where others differ."""
    backends: dict[tuple[str, str], list[tuple[str, Result]]] = {}
    for name, r in named_results(report):
        if r.losses is not None:
            backends.setdefault((r.name, r.dtype), []).append((name, r))
    for runs in backends.values():
        groups: dict[tuple[float | None, ...], list[str]] = {}
        for name, r in runs:
            groups.setdefault(r.losses or (), []).append(name)
        for group in groups.values():
            if len(group) > 1:
                yield f"The losses of {joined(group)} are bit-identical at every step."
        (first_losses, (first_name, *_)), *others = groups.items()
        for losses, (name, *_) in others:
            pairs = enumerate(zip(first_losses, losses, strict=True), 1)
            step = next(t for t, (a, b) in pairs if a != b)
            yield f"The losses of {first_name} and {name} first differ at step {step}."
