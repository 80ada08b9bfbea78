"""The oracles that a layer is compared with; each yields rows.

With L = Σ y · dy for a random dy, the gradients are compared with these oracles:

central difference
    One element θ of x or of a parameter at a time,

        dL/dθ = (-L(θ+2h) + 8 L(θ+h) - 8 L(θ-h) + L(θ-2h)) / 12h + O(h⁴)

    (Fornberg, "Generation of Finite Difference Formulas on Arbitrarily Spaced Grids",
    1988, table 1). That is wrong where a kink such as ReLU's lies within θ ± 2h. There
    the fourth difference of y, O(h⁴) for a smooth function, is O(h) with the step h or
    with h/2: such elements are left out and counted. (The idea is Chainer's.)
adjoint
    With J the derivative of y by x and all parameters at once and v a random direction,
    Σ dy · Jv = Σ Jᵀdy · v: Jv by the difference above, Jᵀdy by `backward` (the
    dot-product test of Claerbout, "Earth Soundings Analysis", 1992). Outputs at a kink
    are left out.
automatic differentiation
    The derivatives of the layer's own forward, by each backend that has automatic
    differentiation.
same as NumPy
    Every backend computes what NumPy computes, compiled and not.
layout, batch of 0, batch of 1
    Transposed and sliced arrays give the same results. A batch of 0 gives gradients of
    0. One example alone gives the same prediction as in a batch. A layer may refuse
    such batches with a ValueError, which the table shows, but not the prediction of one
    example.
shortcuts
    `backward_params` returns the same gradients as `backward`, and `predict` the same y
    as `forward`.
filled batch
    Filler rows at the end of a batch (see `RowMask`), with a dy of 0, change neither
    the y and dx of the other rows nor the state nor a gradient, and get a dx of 0. They
    repeat the last example, and then they differ from all examples. They are finite:
    0 · NaN is NaN, so with NaN in x, most layers have NaN in a gradient.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...core.backend import Backend, BackendUnavailable
from ...core.trees import leaves, named_leaves, tree_from_leaves, tree_map
from .cases import Case, expect_alike, label_of
from .report import CheckFailed, Row

__all__ = [
    "AT_KINKS",
    "BY_DIFFERENTIATION",
    "SAME",
    "SMALLEST_SCALE",
    "STEP",
    "adjoint",
    "central_differences",
    "filled_batch",
    "layout",
    "on_backend",
    "shortcuts",
    "small_batches",
]

STEP = 2.0**-12  # h, times |θ| where that is above 1
# tolerance of differences, relative to the largest number in the leaf
TRUNCATION = 1e-7
ROUNDING = 1e-10  # tolerance of results that differ by rounding alone
# The largest number in a leaf counts as at least this much. Otherwise rounding errors
# in a leaf of zeros would be divided by each other.
SMALLEST_SCALE = 1e-2
FAR = 16.0  # the ratio of extreme fillers to the most extreme examples
KINKS = 0.25  # the share of a leaf that may lie at kinks
AT_KINKS = "lie at a kink or jump"  # in the message if more do
SAME = "same as NumPy"
BY_DIFFERENTIATION = "automatic differentiation"


def central_differences(
    case: Case, limit: int, generator: np.random.Generator
) -> Iterator[Row]:
    """Yield the rows of central differences of at most `limit` elements a leaf."""
    named = dict(named_leaves(case.point))
    gradients = dict(named_leaves(case.run()))
    dy = _flat(case.dy)
    for name, leaf in named.items():
        slopes = np.zeros(leaf.shape)
        bends = np.zeros(leaf.shape)
        picked = np.asarray(generator.permutation(leaf.size) < limit)
        picked = picked.reshape(leaf.shape)
        for index in map(tuple, np.argwhere(picked)):
            unit = np.zeros(leaf.shape)
            unit[index] = 1.0
            along = dict.fromkeys(named, 0.0) | {name: unit}
            direction = tree_from_leaves(along, case.point)
            slope, bend = _slope(case, direction, STEP * max(1.0, abs(leaf[index])))
            slopes[index] = np.sum(slope * dy)
            bends[index] = np.max(bend * abs(dy))
        kinked = _kinked(slopes, bends)
        pair = slopes, gradients[name]
        checked = picked & ~kinked
        row = _row("central difference", case, name, *pair, TRUNCATION, checked=checked)
        yield _with_kinks(row, kinked[picked])


def adjoint(
    case: Case, generator: np.random.Generator, oracle: str = "adjoint"
) -> Iterator[Row]:
    """Yield the row of the adjoint test in one random direction."""
    if not leaves(case.point):
        return
    dy = _flat(case.dy)
    # A direction may cross many kinks: draw another one until few are crossed.
    for _ in range(8):
        v = tree_map(lambda leaf: generator.standard_normal(leaf.shape), case.point)
        slope, bend = _slope(case, v, STEP)
        kinked = _kinked(slope * dy, bend * abs(dy))
        if np.mean(kinked) <= KINKS:
            break
    dy = np.where(kinked, 0.0, dy)
    results = replace(case, dy=_unflat(dy, case.dy)).run()
    gradients = {name: results[name] for name in v}
    products = tree_map(lambda d, g: np.sum(d * g), v, gradients)
    by_forward = np.sum(dy * slope)
    by_backward = sum(leaves(products))
    row = _row(oracle, case, "x and params", by_forward, by_backward, TRUNCATION)
    yield _with_kinks(row, kinked)


def _slope(case: Case, direction: Any, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the derivative of y along a direction, and the fourth differences.

    Both have an entry for each element of y, as `_flat` orders them. The fourth
    difference is of order 1 at a kink.
    """

    def y(t: float) -> np.ndarray:
        moved = tree_map(lambda leaf, d: leaf + t * d, case.point, direction)
        return _flat(case.forward(moved)[0])

    at = {n: y(n * step / 2.0) for n in (-4, -2, -1, 0, 1, 2, 4)}

    def bend(n: int) -> Any:
        return at[2 * n] + at[-2 * n] - 4.0 * (at[n] + at[-n]) + 6.0 * at[0]

    slope = (8.0 * (at[2] - at[-2]) - (at[4] - at[-4])) / (12.0 * step)
    return slope, np.maximum(abs(bend(1)), abs(bend(2))) / step


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in leaves(tree)])


def _unflat(flat: np.ndarray, like: Any) -> Any:
    """Undo `_flat`: return the numbers in a tree like `like`."""
    named = {}
    start = 0
    for path, leaf in named_leaves(like):
        named[path] = flat[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return tree_from_leaves(named, like)


def _kinked(slopes: np.ndarray, bends: np.ndarray) -> np.ndarray:
    """Return where a kink may be.

    One near the end of a stencil moves the slope by bend / 12.
    """
    return np.asarray(bends > 3.0 * TRUNCATION * _scale_of(slopes))


def _with_kinks(row: Row, kinked: np.ndarray) -> Row:
    """Return the row with the number of kinks; raise CheckFailed for too many."""
    if np.mean(kinked) > KINKS:
        raise CheckFailed(
            f"{row.oracle}, {row.mode}: of {kinked.size} elements of {row.leaf}, "
            f"{np.sum(kinked)} {AT_KINKS}, more than a share of {KINKS}"
        )
    return replace(row, kinks=int(np.sum(kinked)))


def layout(case: Case) -> Iterator[Row]:
    """Yield the rows of the same arrays in another layout in memory."""

    def strided(leaf: np.ndarray) -> np.ndarray:
        if not leaf.ndim:
            return leaf
        return np.asfortranarray(np.repeat(leaf, 2, axis=-1))[..., ::2]

    return _rows("layout", case, case.run(), case.map(strided).run())


def small_batches(case: Case, generator: np.random.Generator) -> Iterator[Row]:
    """Yield the rows of batches of 0 and 1 examples."""

    def last(tree: Any, size: int) -> Any:
        return tree_map(lambda leaf: leaf[len(leaf) - size :], tree)

    for size in (0, 1):
        oracle = f"batch of {size}"
        small = replace(case, x=last(case.x, size), dy=last(case.dy, size))
        try:
            small.forward(small.point)
        except ValueError as refusal:
            if size == 1 and case.mode == "predict":
                fault = "predict: a batch of one example is refused"
                raise CheckFailed(fault) from refusal
            yield _row(oracle, case, "(refused)", (), ())
            continue
        results = small.run()
        expected = {"y": small.dy, "state": small.state, **small.point}
        expect_alike(f"{case.mode}, {oracle}", results, expected)
        if size == 0:
            for name, leaf in named_leaves(results["state"], "state"):
                if not np.all(np.isfinite(leaf)):
                    raise CheckFailed(f"{case.mode}, {oracle}: {name} is {leaf}")
            zeros = tree_map(np.zeros_like, small.point)
            yield from _rows(oracle, case, zeros, results)
        elif case.mode == "train" or getattr(case.layer, "is_joint", False):
            # in a batch, an example may depend on others
            yield from adjoint(small, generator, oracle)
        else:
            in_batch = case.run()
            both = in_batch.keys() & {"x", "y"}
            expected = {name: last(in_batch[name], size) for name in both}
            yield from _rows(oracle, case, expected, results)


def shortcuts(case: Case) -> Iterator[Row]:
    """Yield the rows of `predict`, or of `backward_params` in training."""
    expected = case.run()
    if case.mode == "predict":
        y = case.layer.predict(case.params, case.state, case.x)
        return _rows("shortcuts", case, {"y": expected["y"]}, {"y": y})
    cache = case.forward(case.point)[2]
    grads = case.layer.backward_params(case.params, cache, case.dy)
    return _rows("shortcuts", case, {"params": expected["params"]}, {"params": grads})


def filled_batch(case: Case, others: Any) -> Iterator[Row]:
    """Yield the rows of a batch with fillers; of two ways to fill it, the worse row.

    Fillers repeat the last example, as those of the trainer do, or are extreme values:
    real numbers beyond those of the examples, the opposite of booleans, and the
    integers in `others`, which holds two other examples.
    """
    if case.mode == "predict":
        return
    count = len(leaves(case.x)[0])

    def fill_with_zeros(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.repeat(0.0 * leaf[-1:], 2, axis=0)])

    expected = case.run()
    if "x" in expected:
        expected["x"] = tree_map(fill_with_zeros, expected["x"])
    dy = tree_map(fill_with_zeros, case.dy)
    counts = np.repeat([1.0, 0.0], [count, 2])
    repeated = tree_map(lambda leaf: np.repeat(leaf[-1:], 2, axis=0), case.x)
    extreme = tree_map(_extreme, case.x, others)
    tables = []
    for fillers in (repeated, extreme):
        x = tree_map(lambda *parts: np.concatenate(parts), case.x, fillers)
        # An overflow in a filler is harmless unless it reaches one of the results.
        with np.errstate(over="ignore", invalid="ignore"):
            results = replace(case, x=x, dy=dy, counts=counts).run()
        results["y"] = tree_map(lambda leaf: leaf[:count], results["y"])
        tables.append(_rows("filled batch", case, expected, results))
    for pair in zip(*tables, strict=True):
        yield max(pair, key=lambda row: (math.isnan(row.error), row.error))


def _extreme(leaf: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return two fillers that differ from all examples in `leaf`.

    At each position, one real number is above those of all examples and one is below.
    They have the signs of the maximum and of the minimum: a layer may accept positive
    numbers only.
    """
    if leaf.dtype.kind == "b":
        return np.repeat(~leaf[-1:], 2, axis=0)
    if leaf.dtype.kind != "f":
        return other
    high = np.max(leaf, axis=0)
    low = np.min(leaf, axis=0)
    above = np.where(high > 0.0, FAR * high, high / FAR)
    below = np.where(low < 0.0, FAR * low, low / FAR)
    return np.stack([above, below])


def on_backend(cases: list[Case], other: Backend) -> Iterator[Row]:
    """Yield the rows of a backend: its results, and its automatic differentiation.

    All cases are compiled as one function.
    """
    vjp = other.adapter.vjp

    def everything(arrays: dict[str, Any]) -> dict[str, Any]:
        moved = [replace(case, **arrays) for case in cases]
        return {case.mode: (case.run(), _differentiated(case, vjp)) for case in moved}

    if not other.has_float64:
        raise BackendUnavailable(f"{other} has no float64")
    by_mode = other.to_numpy(other.jit(everything)(other.asarray(cases[0].arrays)))
    for case in cases:
        expected = case.run()
        results, derivatives = by_mode[case.mode]
        expect_alike(f"{case.mode} on {other}", results, expected)
        yield from _rows(SAME, case, expected, results, str(other))
        yield from _rows(BY_DIFFERENTIATION, case, derivatives, results, str(other))


def _differentiated(case: Case, vjp: Callable[..., Any] | None) -> Any:
    """Return the gradients of `case.point` by automatic differentiation, if any."""
    if vjp is None or not leaves(case.point):
        return {}
    _, pull = vjp(lambda point: case.real(case.forward(point)[0]), case.point)
    (gradients,) = pull(case.real(case.dy))
    return gradients


def _rows(
    oracle: str, case: Case, expected: Any, got: Any, where: str = "numpy"
) -> Iterator[Row]:
    """Yield a row for each leaf of `expected`; `got` may have more leaves."""
    got = dict(named_leaves(got))
    for name, leaf in named_leaves(expected):
        yield _row(oracle, case, name, leaf, got[name], where=where)


def _row(
    oracle: str,
    case: Case,
    name: str,
    expected: Any,
    got: Any,
    tolerance: float = ROUNDING,
    where: str = "numpy",
    checked: Any = True,
) -> Row:
    expected = np.asarray(expected, np.float64)
    got = np.asarray(got, np.float64)
    errors = np.where(checked, abs(got - expected) / _scale_of(expected), 0.0)
    index: tuple[int, ...] = ()
    error = 0.0
    pair = 0.0, 0.0
    if errors.size:
        index = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))
        error = float(errors[index])
        pair = float(expected[index]), float(got[index])
    count = int(np.sum(np.broadcast_to(checked, errors.shape)))
    about = oracle, where, case.mode, label_of(name)
    return Row(*about, error, tolerance, count, 0, index, *pair)


def _scale_of(leaf: np.ndarray) -> float:
    """Return what errors in a leaf are relative to."""
    return max(float(np.max(abs(leaf), initial=0.0)), SMALLEST_SCALE)
