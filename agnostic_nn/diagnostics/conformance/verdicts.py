"""Run a trial on NumPy and on the library, and judge the difference."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from ...core.backend import Backend, backend
from ...core.trees import leaves, named_leaves
from .library import error_line
from .results import Finding
from .trials import Trial, Wrong, same

__all__ = ["judge"]


def judge(section: str, trial: Trial, chosen: Backend) -> Finding:
    """Return the finding of a trial on the backend `chosen`."""
    finding: Callable[..., Finding] = partial(Finding, section, trial.name)
    if isinstance(trial.compute, str):
        return finding("skipped", reason=trial.compute)
    host = backend("numpy")
    exact = True
    reason = ""
    errors: dict[str, float] = {}
    for dtype in ("float32", "float64") if chosen.can_double else ("float32",):
        where = "float64: " if dtype == "float64" else ""
        on_numpy = trial.compute(host, dtype)
        reference = trial.compute(host, "float64") if trial.wide else on_numpy
        try:
            with chosen.double() if dtype == "float64" else nullcontext():
                result = trial.compute(chosen, dtype)
        except Wrong as error:
            return finding("wrong", **errors, reason=f"{where}{error}")
        except Exception as error:  # libraries raise different errors
            return finding(
                "unsupported", **errors, reason=f"{where}{error_line(error)}"
            )
        fault = _structural_fault(result, on_numpy)
        if fault:
            return finding("wrong", **errors, reason=f"{where}{fault}")
        errors[dtype], worst = _worst_error(result, reference)
        exact = exact and same(result, on_numpy)
        if not errors[dtype] <= trial.allowed(float(np.finfo(dtype).eps)):
            reason = reason or f"{where}{worst}"
    if reason:
        return finding("wrong", **errors, reason=reason)
    return finding("exact" if exact else "within", **errors)


def _structural_fault(result: Any, expected: Any) -> str | None:
    """Describe a leaf that is missing or unexpected, or has another shape or dtype."""
    result = dict(named_leaves(result))
    expected = dict(named_leaves(expected))
    for name in sorted(result.keys() ^ expected.keys()):
        return f"{name} {'is missing' if name in expected else 'should not be there'}"
    for name, leaf in expected.items():
        if (result[name].shape, result[name].dtype) != (leaf.shape, leaf.dtype):
            got = f"{result[name].dtype} {result[name].shape}"
            return f"{name} is {got}, expected {leaf.dtype} {leaf.shape}"
    return None


def _worst_error(result: Any, reference: Any) -> tuple[float, str]:
    """Return the largest error of all leaves, and a description of that element."""
    worst = 0.0
    description = ""
    for (name, a), b in zip(named_leaves(result), leaves(reference), strict=True):
        errors = _errors(a, b)
        if np.max(errors, initial=0.0) > worst:
            at = np.unravel_index(np.argmax(errors), errors.shape)
            place = f"{name}[{', '.join(map(str, at))}]" if at else name
            worst = float(errors[at])
            description = f"{place} is {a[at]:.9g}, expected {b[at]:.9g}"
    return worst, description


def _errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the error of each element of a, relative to the largest of b, at least 1.

    Other dtypes than real numbers have to be equal, and NaN has to be at the same
    places.
    """
    same = (a == b) | ((a != a) & (b != b))
    if a.dtype.kind != "f":
        return np.where(same, 0.0, math.inf)
    scale = np.max(abs(b), initial=1.0, where=np.isfinite(b))
    with np.errstate(invalid="ignore"):
        errors = abs(a.astype(np.float64) - b) / scale
    return np.where(same, 0.0, np.where(np.isnan(errors), math.inf, errors))
