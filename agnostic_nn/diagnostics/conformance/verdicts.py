"""Judging: a trial on NumPy and on the library, and what is to be said of the difference."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np

from ...core.backend import Backend, backend
from ...core.trees import leaves, named_leaves
from .library import line
from .results import Finding
from .trials import Trial, Wrong, same

__all__ = ["judged"]


def judged(section: str, trial: Trial, chosen: Backend) -> Finding:
    """The finding about a trial."""
    find = partial(Finding, section, trial.name)
    if isinstance(trial.compute, str):
        return find("skipped", reason=trial.compute)
    host, exact, reason = backend("numpy"), True, ""
    errors: dict[str, float] = {}
    for dtype in ("float32", "float64") if chosen.can_double else ("float32",):
        where = "float64: " if dtype == "float64" else ""
        near = trial.compute(host, dtype)
        wide = trial.compute(host, "float64") if trial.wide else near
        try:
            with chosen.double() if dtype == "float64" else nullcontext():
                found = trial.compute(chosen, dtype)
        except Wrong as error:
            return find("wrong", **errors, reason=f"{where}{error}")
        except Exception as error:  # each library has its own way to refuse
            return find("unsupported", **errors, reason=f"{where}{line(error)}")
        fault = _unlike(found, near)
        if fault:
            return find("wrong", **errors, reason=f"{where}{fault}")
        errors[dtype], worst = _error(found, wide)
        exact = exact and same(found, near)
        if not errors[dtype] <= trial.allowed(float(np.finfo(dtype).eps)):
            reason = reason or f"{where}{worst}"
    return find("wrong" if reason else "exact" if exact else "within", **errors, reason=reason)


def _unlike(found, near):
    """What is missing, left over, or of another shape or dtype than NumPy's."""
    found, near = dict(named_leaves(found)), dict(named_leaves(near))
    for name in sorted(found.keys() ^ near.keys()):
        return f"{name} {'is missing' if name in near else 'should not be there'}"
    for name, leaf in near.items():
        if (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype):
            there = f"{found[name].dtype} {found[name].shape}"
            return f"{name} is {there}, expected {leaf.dtype} {leaf.shape}"
    return None


def _error(found, reference):
    """The largest error of all leaves, and the number that it is in, in words."""
    worst = 0.0, ""
    for (name, a), b in zip(named_leaves(found), leaves(reference), strict=True):
        errors = _errors(a, b)
        if np.max(errors, initial=0.0) > worst[0]:
            at = np.unravel_index(np.argmax(errors), errors.shape)
            place = f"{name}[{', '.join(map(str, at))}]" if at else name
            worst = float(errors[at]), f"{place} is {a[at]:.9g}, expected {b[at]:.9g}"
    return worst


def _errors(a, b):
    """Relative to the largest number of b, or to 1; whole numbers and NaN fit or do not."""
    same = (a == b) | ((a != a) & (b != b))
    if a.dtype.kind != "f":
        return np.where(same, 0.0, math.inf)
    scale = np.max(abs(b), initial=1.0, where=np.isfinite(b))
    with np.errstate(invalid="ignore"):
        errors = abs(a.astype(np.float64) - b) / scale
    return np.where(same, 0.0, np.where(np.isnan(errors), math.inf, errors))
