"""The arithmetic of a layer in float16, bfloat16 or float32, compared with float64.

Parameters, state, x and dy are numbers of the dtype, and the layer computes in it, on
NumPy and on each backend that has it. The reference is the same formula from the same
numbers, computed by NumPy in float64. The tolerance is measured: the reference is
computed again with an error added to each operation, as large as the dtype allows
(see `bisect.noise`). With s, the largest effect of these errors on a result r,

    tolerance = 4 (s + tiny) + ε max |r|

A layer has to add many numbers of a narrow dtype in float32, as most libraries do by
themselves. So a sum counts as added in float32 and rounded once, and one that loses
digits with its length is found.

A number that overflows is not an error of the layer: the dtype cannot hold it. If some
result overflows, others that are computed from it may be infinite or NaN. They are left
out as well and named in a remark.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...core import precisions
from ...core.arrays import float_bits, namespace
from ...core.backend import Backend, BackendUnavailable, backend
from ...core.backend import backends as installed
from ...core.errors import described, expect
from ...core.trees import named_leaves, tree_map
from ...ops import widened
from ..bisect.noise import rounded
from ..examples import LossOf
from ..representable import nearest
from .cases import Case, label_of
from .oracles import SMALLEST_SCALE
from .report import CheckFailed, Row

__all__ = [
    "Reference",
    "backends_with",
    "compared",
    "computed",
    "expected_dtypes",
    "in_dtype",
    "in_dtypes",
    "reference_of",
]

FACTOR = 4.0  # of the effect of rounding, in the tolerance
EXACT = 1e-10  # tolerance of integers, relative to the largest
Reference = dict[str, tuple[np.ndarray, float]]
# the dtypes that `dtypes` may name: float64 is always checked
DTYPES = tuple(name for name in precisions.PRECISION_NAMES if name != "float64")


def expected_dtypes(dtypes: Any) -> list[str]:
    """Return `dtypes` as a list without repetitions; raise unless all are possible."""
    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        raise TypeError(f"expected dtypes as a list of names, got {described(dtypes)}")
    chosen = list(dict.fromkeys(dtypes))
    for dtype in chosen:
        expect(
            dtype in DTYPES,
            "expected dtypes of {}, got {!r}; float64 is always checked",
            *(", ".join(DTYPES), dtype),
        )
    return chosen


def backends_with(
    dtypes: Sequence[str], backends: Sequence[str | Backend] | None
) -> list[Backend]:
    """Return NumPy and the other backends; raise if none of them has one of the dtypes.

    Without `backends`, these are all that run here, each on its first device.
    """
    host = backend("numpy")
    if backends is None:
        usable = [status.devices[0] for status in installed() if status.devices]
    else:
        usable = [backend(name) if isinstance(name, str) else name for name in backends]
    chosen = list(dict.fromkeys([host, *usable]))
    for dtype in dtypes:
        lacking = [device.lacks_dtype(dtype) for device in chosen]
        if all(lacking):
            raise BackendUnavailable("; ".join(lacking))
    return chosen


def in_dtypes(
    cases: Sequence[Case], dtypes: Sequence[str], backends: Sequence[Backend]
) -> tuple[list[Row], list[str]]:
    """Return a row for each result in each dtype on each backend, and remarks.

    A remark names numbers that a dtype cannot hold, or a backend without a dtype.
    """
    rows: list[Row] = []
    remarks: list[str] = []
    for dtype in dtypes:
        narrow = [in_dtype(case, dtype) for case in cases]
        inputs = dict(named_leaves(narrow[0].arrays))
        lost = [label_of(name) for name, leaf in inputs.items() if _overflows(leaf)]
        if lost:
            remarks.append(f"{', '.join(lost)} cannot be held by {dtype}: not checked")
            continue
        references = [reference_of(case, dtype) for case in narrow]
        for device in backends:
            lacking = device.lacks_dtype(dtype)
            if lacking:
                remarks.append(f"not checked: {lacking}")
                continue
            every_result = computed(narrow, dtype, device)
            groups = zip(narrow, references, every_result, strict=True)
            for case, reference, results in groups:
                for row, remark in compared(
                    case, dtype, str(device), reference, results
                ):
                    rows.append(row)
                    remarks += [remark] * bool(remark)
    return rows, remarks


def _overflows(leaf: np.ndarray) -> bool:
    return leaf.dtype.kind == "f" and bool(np.any(np.isinf(leaf)))


def in_dtype(case: Case, dtype: str) -> Case:
    """Return the case with all real numbers rounded to a dtype; they are float64."""
    return case.map(lambda leaf: nearest(leaf, dtype))


def reference_of(case: Case, dtype: str) -> Reference:
    """Return by name each result of the case in float64, and its tolerance in a dtype.

    case: as `in_dtype` returns it.
    """

    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        return replace(case, **arrays).run()

    epsilon = precisions.epsilon(dtype)
    limit = precisions.largest(dtype)
    results, effects = rounded(
        *(run, case.arrays),
        epsilon=epsilon,
        sums=precisions.epsilon("float32") if dtype in precisions.HALVES else None,
        limit=limit,
    )
    reference = {}
    for name, leaf in named_leaves(results):
        sizes = np.abs(np.asarray(leaf, np.float64))
        within = float(np.max(sizes, where=sizes <= limit, initial=0.0))
        if leaf.dtype.kind == "f":
            allowed = FACTOR * (effects[name] + precisions.tiny(dtype))
            reference[name] = leaf, allowed + epsilon * within
        else:
            reference[name] = leaf, EXACT * max(within, 1.0)
    return reference


def computed(
    cases: Sequence[Case], dtype: str, device: Backend
) -> list[dict[str, np.ndarray]]:
    """Return by name the results of each case, computed in a dtype on a backend.

    cases: as `in_dtype` returns them. All are compiled as one function. Real results
    are in float32, because NumPy may lack the dtype.

    Raises
    ------
    CheckFailed
        If a result does not have the dtype.
    """
    narrow = getattr(device.xp, dtype)

    def converted(leaf: Any) -> Any:
        xp = namespace(leaf)
        is_real = xp.isdtype(leaf.dtype, "real floating")
        return xp.astype(leaf, narrow) if is_real else leaf

    def everything(arrays: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        pairs = zip(cases, tree_map(converted, arrays), strict=True)
        return tuple(
            dict(named_leaves(replace(case, **moved).run())) for case, moved in pairs
        )

    arguments = tuple(tree_map(_portable, case.arrays) for case in cases)
    with np.errstate(all="ignore"):
        results = device.jit(everything)(device.asarray(arguments))
        for case, by_name in zip(cases, results, strict=True):
            _expect_dtype(case, by_name, dtype, str(device))
        host = device.to_numpy(device.jit(_wide)(results))
    return [tree_map(np.array, by_name) for by_name in host]


def _wide(results: Any) -> Any:
    return tree_map(widened, results)


def _portable(leaf: np.ndarray) -> np.ndarray:
    """Return a leaf in a dtype that every library has: float32, or int32."""
    if leaf.dtype.kind == "f":
        return leaf.astype(np.float32)
    return leaf.astype(np.int32) if leaf.dtype == np.int64 else leaf


def _expect_dtype(case: Case, results: dict[str, Any], dtype: str, where: str) -> None:
    """Raise CheckFailed if a real result does not have the dtype of the arguments."""
    xp = namespace(next(iter(results.values())))
    bits = float_bits(getattr(xp, dtype), xp)
    for name, leaf in results.items():
        # the values of a loss are in float32 at least
        expected = (
            max(bits, 32) if name == "y" and isinstance(case.layer, LossOf) else bits
        )
        if float_bits(leaf.dtype, xp) not in (0, expected):
            raise CheckFailed(
                f"{dtype} on {where}, {case.mode}: {label_of(name)} is {leaf.dtype}, "
                f"expected {dtype}"
            )


def compared(
    case: Case,
    dtype: str,
    where: str,
    reference: Reference,
    results: dict[str, np.ndarray],
) -> Iterator[tuple[Row, str]]:
    """Yield for each result a row, and a remark on numbers that overflow, or "".

    Errors and tolerances are relative to the largest number of the reference, or to
    `SMALLEST_SCALE` if that is larger.
    """
    limit = precisions.largest(dtype)
    overflows = {
        name: (np.abs(leaf) > limit) & (leaf.dtype.kind == "f")
        for name, (leaf, _) in reference.items()
    }
    is_any = any(np.any(mask) for mask in overflows.values())
    for name, (leaf, tolerance) in reference.items():
        expected = np.asarray(leaf, np.float64)
        got = np.asarray(results[name], np.float64)
        if got.shape != expected.shape:
            raise CheckFailed(
                f"{dtype} on {where}, {case.mode}: {label_of(name)} has the shape "
                f"{got.shape}, expected {expected.shape}"
            )
        beyond = overflows[name] | (is_any & ~np.isfinite(got))
        scale = float(np.max(np.abs(expected), where=~beyond, initial=0.0))
        scale = max(scale, SMALLEST_SCALE)
        with np.errstate(invalid="ignore"):
            gaps = np.abs(got - expected)
        skipped = beyond | (got == expected)
        errors = np.where(skipped, 0.0, gaps) / scale
        index: tuple[int, ...] = ()
        worst = 0.0
        pair = 0.0, 0.0
        if errors.size:
            flat = int(np.argmax(errors))
            index = tuple(int(i) for i in np.unravel_index(flat, errors.shape))
            worst = float(errors[index])
            pair = float(expected[index]), float(got[index])
        remark = ""
        if np.any(beyond):
            remark = (
                f"{label_of(name)} cannot be held by {dtype}: {np.sum(beyond)} of "
                f"{beyond.size} elements ({case.mode}, {where})"
            )
        about = dtype, where, case.mode, label_of(name)
        count = int(np.sum(~beyond))
        yield Row(*about, worst, tolerance / scale, count, 0, index, *pair), remark
