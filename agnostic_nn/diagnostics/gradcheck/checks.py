"""Compare the hand-derived gradients of a layer with the derivatives of its forward.

Authors of a layer run this first. The layer runs on NumPy in float64, at a random point
away from its initial parameters and state. With L = Σ y · dy for a random dy, its
gradients are compared with these oracles:

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

Before that, in float32 and float64, the contract is checked: shape, dtype and nesting
of everything that the layer returns, no argument changed in place, the same results at
a second call, and no state changed by predicting.

If a block fails, the layers inside are checked in the same way, each with the
parameters, the state and the input that it gets in the block, and the message names the
first that fails by itself.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ...blocks import Block
from ...core import random
from ...core.arrays import Array, Params, RowMask, Shape, State
from ...core.backend import Backend, BackendUnavailable, backend
from ...core.backend import backends as installed
from ...core.errors import (
    described,
    expect,
    expect_count,
    expect_function,
    expect_integer,
)
from ...core.trees import leaves, named_leaves, shape_map, tree_from_leaves, tree_map
from ...display.tables import folded, html_table, table
from ...layers.base import Layer, is_shape, kinds
from ..observe import observed_layer, path_of
from .inputs import batched, draw_for

__all__ = ["CheckFailed", "Report", "Row", "check"]

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
# how a message starts if all is right on NumPy
SAME = "same as NumPy"
BY_DIFFERENTIATION = "automatic differentiation"
ON_BACKENDS = (SAME, BY_DIFFERENTIATION, "train on ", "predict on ")


class CheckFailed(AssertionError):
    """A layer breaks its contract, or a gradient differs from that of an oracle.

    report: the comparisons; None if the contract is broken, which is checked first.
    """

    report: "Report | None" = None


@dataclass(frozen=True)
class Row:
    """The comparison of one leaf with one oracle.

    error: relative to the largest number in the leaf. index, expected and got: of the
    worst element.
    """

    oracle: str
    backend: str
    mode: str
    leaf: str
    error: float
    tolerance: float
    checked: int
    kinks: int
    index: tuple[int, ...]
    expected: float
    got: float


@dataclass(frozen=True)
class Report:
    """The result of `check`: a row for each oracle, backend, mode and leaf.

    `str()` is a table.
    """

    title: str
    rows: tuple[Row, ...]

    @property
    def worst(self) -> Row:
        """The row whose error is largest relative to its tolerance."""
        return max(
            self.rows,
            key=lambda row: (math.isnan(row.error), row.error / row.tolerance),
        )

    def __str__(self) -> str:
        return f"{self.title}\n\n{table(*self._cells())}"

    def _repr_html_(self) -> str:
        worst = self.worst.error / self.worst.tolerance
        count = len(self.rows)
        summary = f"{count} comparisons, the worst at {worst:.2g} of its tolerance"
        rows = html_table(*self._cells(), inline=True)
        return f"<p>{escape(self.title)}</p>{folded(summary, rows, count)}"

    def _cells(self) -> tuple[list[str], list[list[Any]]]:
        columns = ["oracle", "backend", "mode", "leaf"]
        columns += ["error", "tolerance", "checked", "kinks"]
        cells = [[getattr(row, column) for column in columns] for row in self.rows]
        return columns, cells


def check(
    layer: Layer,
    shape: Shape,
    *,
    batch: int = 3,
    seed: int = 0,
    backends: Iterable[str | Backend] | None = None,
    elements: int = 50,
    draw: Callable[[np.random.Generator, Shape], np.ndarray] | None = None,
) -> Report:
    """Check the contract and the gradients of `layer`.

    shape: the shape of one example, or a tree of shapes where x is a tree.
    backends: names or handles; None means all that run here, each on its first device.
    elements: how many elements of a leaf the central differences check, drawn at random
        where it has more.
    draw: returns x for a generator and the shape of x, or tree of shapes. By default, x
        holds normal draws, booleans of which three in four are true, or integers that
        `layer.check` accepts.

    Raises
    ------
    CheckFailed
        If the contract is broken or anything is out of tolerance. The message names the
        worst entry of the first oracle that differs, and ends with the table. If the
        layer is a block, it also names the first layer inside that fails by itself.
    BackendUnavailable
        If one of `backends` cannot run or has no float64.
    TypeError
        If `layer` is not a layer. A loss is checked as a layer,
        `agnostic_nn.diagnostics.gradcheck.loss_of(loss)`.
    """
    if not isinstance(layer, Layer):
        raise TypeError(
            f"expected a layer, got {layer!r}; a loss is checked as "
            'check(loss_of(loss), {"y": (3,), "target": (3,)}), '
            "with loss_of from agnostic_nn.diagnostics.gradcheck"
        )
    if not is_shape(shape):
        example = "a tuple of integers such as (3,), or a tree of them"
        raise TypeError(
            f"expected the shape of one example, {example}, got {described(shape)}"
        )
    expect_count("batch", batch)
    expect_count("elements", elements)
    expect_integer("seed", seed, 0)
    if draw is not None:
        expect_function("draw", draw, "generator, shape")
    if backends is not None:
        backends = _expect_backends(backends)
    draw_x = draw or partial(draw_for, layer)
    # Another generator, so that this draw does not change those of the other oracles.
    others = partial(draw_x, np.random.default_rng([seed, 1]), batched(shape, 2))

    def cases(generator: np.random.Generator, check_init: bool) -> Iterator[_Case]:
        for dtype in (np.float32, np.float64):
            yield _random_case(
                layer, batched(shape, batch), dtype, draw_x, generator, check_init
            )

    generator = np.random.default_rng(seed)
    title = f"{layer} on {shape}, a batch of {batch}, seed {seed}"
    settings = _Settings(elements, generator, backends)
    try:
        return _judge(title, cases(generator, True), others, settings)
    except CheckFailed as failure:
        if isinstance(layer, Block):
            fault, *rest = str(failure).split("\n\n", 1)
            generator = np.random.default_rng(seed)
            needed = backends if fault.startswith(ON_BACKENDS) else []
            settings = _Settings(elements, generator, needed)
            block_cases = list(cases(generator, False))
            block_cases.append(replace(block_cases[-1], x=others()))
            inside = _failure_inside(layer, block_cases, settings, AT_KINKS in fault)
            failure.args = ("\n\n".join([fault, inside, *rest]),)
        raise


@dataclass(frozen=True)
class _Settings:
    """Some of the arguments of `check`, and a generator."""

    elements: int
    generator: np.random.Generator
    backends: list[str | Backend] | None


def _judge(
    title: str,
    drawn_cases: Iterable["_Case"],
    others: Callable[[], Any],
    settings: _Settings,
) -> Report:
    """Return the report of a layer; raise CheckFailed if something is wrong.

    drawn_cases: one in float32, then one in float64. others: returns the x of two other
        examples.
    """
    for case in drawn_cases:
        for mode in ("train", "predict"):
            _expect_contract(replace(case, mode=mode))

    layer = case.layer
    cases = [replace(case.map(_read_only), mode=mode) for mode in ("train", "predict")]
    has_numbers = any(leaf.size for leaf in leaves(cases[0].point))
    shape = shape_map(lambda axes: axes[1:], tree_map(np.shape, case.x))
    expect(has_numbers, "there is no number to check in examples of {}", shape)
    rows: list[Row] = []
    generator = settings.generator
    other_x = others()
    for case in cases:
        rows += _central_differences(case, settings.elements, generator)
        rows += _adjoint(case, generator)
        rows += _layout(case)
        rows += _small_batches(case, generator)
        rows += _shortcuts(case)
        rows += _filled_batch(case, other_x)
    for other in _usable() if settings.backends is None else settings.backends:
        other = backend(other) if isinstance(other, str) else other
        try:
            with other.double():
                rows += _on_backend(cases, other)
        except Exception as error:
            error.add_note(f"while {layer} was checked on {other}")
            raise

    report = Report(title, tuple(rows))
    failures = [row for row in rows if not row.error <= row.tolerance]
    if failures:
        first = failures[0].oracle
        worst = Report("", tuple(row for row in failures if row.oracle == first)).worst
        failure = CheckFailed(
            f"{worst.oracle} on {worst.backend}, {worst.mode}: "
            f"{worst.leaf}{list(worst.index)} is {worst.got!r}, expected "
            f"{worst.expected!r}; relative error {worst.error:.3g}, tolerance "
            f"{worst.tolerance:g}\n\n{report}"
        )
        failure.report = report
        raise failure
    return report


class _InnerFailure(NamedTuple):
    """The failure of a layer inside a block.

    call: the number of the call in which it fails, from 1.
    cases: see `_failure_inside`.
    """

    name: str
    call: int
    fault: str
    cases: list["_Case"]


def _failure_inside(
    block: Layer, cases: list["_Case"], settings: _Settings, at_kinks: bool
) -> str:
    """Say which layer inside a block that failed fails by itself, if one does.

    cases: the block in float32, in float64, and with other examples.
    at_kinks: whether the block failed because of kinks. Otherwise a layer whose input
        lies at kinks in the block, such as the second of two ReLUs, is not judged.
    """
    path = ""
    message = ""
    while isinstance(block, Block):
        failure, unchecked = _first_failure(block, path, cases, settings, at_kinks)
        if failure is None:
            kind = type(block).__name__
            if unchecked:
                reasons = "; ".join(unchecked)
                verdict = (
                    f"no layer inside {kind} fails by itself; unchecked: {reasons}"
                )
            else:
                verdict = (
                    f"every layer inside {kind} passes by itself: the fault is in the "
                    f"code of {kind}"
                )
            return f"{message}\n{verdict}" if message else verdict
        cases = failure.cases
        block = cases[-1].layer
        path = path_of(path, failure.name)
        label = _layer_label(path, block)
        label += f", call {failure.call}" if failure.call > 1 else ""
        message = (
            f"the first layer inside that fails by itself: {label}: {failure.fault}"
        )
    return message


def _first_failure(
    block: Block,
    path: str,
    block_cases: list["_Case"],
    settings: _Settings,
    at_kinks: bool,
) -> tuple[_InnerFailure | None, list[str]]:
    """Check the layers directly inside a block by themselves, until one fails.

    Return the failure or None, and a reason for each layer that could not be checked.
    """
    unchecked = []
    count_of: dict[str, int] = {}
    runs = [_calls_inside(block, case, settings.generator) for case in block_cases]
    for calls in zip(*(calls for calls, _ in runs), strict=False):
        name, _ = calls[0]
        cases = [case for _, case in calls]
        single, double, others = cases
        count_of[name] = count_of.get(name, 0) + 1
        label = _layer_label(path_of(path, name), double.layer)
        try:
            _expect_outputs_of_init(single)
            _expect_outputs_of_init(double)
            if any(leaf.size for leaf in leaves(double.point)):
                _judge("", [single, double], partial(_x_of, others), settings)
        except CheckFailed as failure:
            fault, *_ = str(failure).split("\n\n", 1)
            if at_kinks or AT_KINKS not in fault:
                return _InnerFailure(name, count_of[name], fault, cases), []
            unchecked.append(f"{label}, {fault}")
        except Exception as error:  # the block may need less than a whole layer
            unchecked.append(f"{label}, {type(error).__name__}: {error}")
    for name, layer in runs[0][1].items():
        if name not in count_of:
            label = _layer_label(path_of(path, name), layer)
            unchecked.append(f"{label}, which the forward pass did not reach")
    return None, unchecked


def _calls_inside(
    block: Block, case: "_Case", generator: np.random.Generator
) -> tuple[list[tuple[str, "_Case"]], dict[str, Layer]]:
    """Run forward in training; return the calls of the layers directly inside.

    For each call, return the name of the layer and a case of it with a random dy. If
    forward raises, those are the calls until then. Also return all layers by name.
    """
    calls: list[tuple[str, _Case]] = []
    layers: dict[str, Layer] = {}

    def inner(name: str, layer: Layer) -> Layer:
        def forward(
            method: Any, params: Params, state: State, x: Any, **options: Any
        ) -> Any:
            arrays = {"params": params, "state": state, "x": x}
            before = tree_map(np.array, arrays)
            y, *others = method(params, state, x, **options)
            dy = tree_map(random_like, y)
            calls.append((name, _Case(layer, "train", dy=dy, **before)))
            return (y, *others)

        layers[name] = layer
        return observed_layer(layer, {"forward": forward}, lambda _, deeper: deeper)

    def random_like(leaf: Any) -> np.ndarray:
        return np.asarray(generator.standard_normal(leaf.shape), leaf.dtype)

    # If the block raises, the message says which layers were not reached.
    with suppress(Exception):
        observed = observed_layer(block, {}, inner)
        observed.forward(case.params, case.state, case.x, train=True)
    return calls, layers


def _layer_label(path: str, layer: Layer) -> str:
    """Return the path and the class of a layer inside a block, for messages."""
    kind = type(layer).__name__
    return f"{path} ({kind})" if path else kind


def _x_of(case: "_Case") -> Any:
    return case.x


def _expect_backends(backends: Any) -> list[str | Backend]:
    """Return `backends` as a list; raise TypeError unless it holds names or handles."""
    if isinstance(backends, str) or not isinstance(backends, Iterable):
        raise TypeError(
            f"expected backends as a list of names, got {described(backends)}"
        )
    chosen = list(backends)
    for choice in chosen:
        if not isinstance(choice, str | Backend):
            raise TypeError(
                f"expected backends or their names, got {described(choice)}"
            )
    return chosen


@dataclass(frozen=True)
class _Case:
    """A layer and all arguments of its forward and backward."""

    layer: Layer
    mode: str
    params: Params
    state: State
    x: Any
    dy: Any
    counts: Array | None = None

    @property
    def arrays(self) -> dict[str, Any]:
        return {"params": self.params, "state": self.state, "x": self.x, "dy": self.dy}

    @property
    def point(self) -> dict[str, Any]:
        """The differentiable leaves: the parameters, and the real numbers in x.

        If x is a tree, its leaves are named by their paths.
        """
        kind_of = dict(named_leaves(kinds(self.layer.input_kinds, self.x)))
        named = dict(named_leaves(self.x))
        real = {
            path: x for path, x in named.items() if kind_of[path] == "real floating"
        }
        return {"params": self.params} | ({"x": real.get("", real)} if real else {})

    def map(self, function: Callable[..., Any]) -> "_Case":
        return replace(self, **tree_map(function, self.arrays))

    def forward(self, point: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Run forward with the differentiable leaves replaced by those of `point`."""
        real = point.get("x", {})
        real = real if isinstance(real, dict) else {"": real}
        x = tree_from_leaves(dict(named_leaves(self.x)) | real, self.x)
        train = self.mode == "train" if self.counts is None else RowMask(self.counts)
        return self.layer.forward(point["params"], self.state, x, train=train)

    def run(self) -> dict[str, Any]:
        """Return all results of the layer, nested so that every leaf has a name."""
        y, state, cache = self.forward(self.point)
        dx, grads = self.layer.backward(self.params, cache, self.dy)
        by_path = {path: leaf for path, leaf in named_leaves(dx) if leaf is not None}
        dx_entry = {"x": by_path.get("", by_path)} if by_path else {}
        return {"y": y, "state": state, "params": grads} | dx_entry


def _random_case(
    layer: Layer,
    shape: Any,
    dtype: Any,
    draw: Callable[..., Any],
    generator: np.random.Generator,
    check_init: bool,
) -> _Case:
    """Return a case with no bias of 0, no scale of 1 and not the initial state.

    check_init: whether to check that y and the state have the shapes and dtypes that
    `init` returns.
    """

    def converted(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    def inputs(rows: int) -> Any:
        x = draw(generator, shape_map(lambda axes: (rows, *axes[1:]), shape))
        return tree_map(converted, x)

    def moved(leaf: Any) -> Any:
        return leaf + generator.uniform(-0.5, 0.5, leaf.shape).astype(dtype)

    key = random.key(int(generator.integers(2**32)), xp=backend("numpy").xp)
    example_shape = shape_map(lambda axes: axes[1:], shape)
    params, state, out = layer.init(key, example_shape, dtype)
    params = tree_map(moved, params)
    # Change the state by a training step: only the layer knows which states are valid.
    rows = max(_length(shape), 3)
    y, new_state, _ = layer.forward(params, state, inputs(rows), train=True)
    if check_init:
        _expect_like_init(y, new_state, rows, dtype, state, out)
    dy = shape_map(generator.standard_normal, batched(out, _length(shape)))
    dy = tree_map(lambda leaf: np.asarray(leaf, dtype), dy)
    return _Case(layer, "train", params, new_state, inputs(_length(shape)), dy)


def _expect_like_init(
    y: Any, new_state: Any, rows: int, dtype: Any, state: Any, out: Any
) -> None:
    """Raise CheckFailed unless y and the state are like `state` and `out` of `init`."""
    expected_y = shape_map(lambda example: np.zeros((rows, *example), dtype), out)
    expected = {"y": expected_y, "state": state}
    _expect_alike(f"train in {np.dtype(dtype)}", {"y": y, "state": new_state}, expected)


def _expect_outputs_of_init(case: _Case) -> None:
    """Raise CheckFailed unless `forward` returns y and a state like those of `init`."""
    dtype = leaves(case.dy)[0].dtype
    shape = tree_map(np.shape, case.x)
    key = random.key(0, xp=backend("numpy").xp)
    example_shape = shape_map(lambda axes: axes[1:], shape)
    _, state, out = case.layer.init(key, example_shape, dtype)
    copy = case.map(np.copy)
    y, new_state, _ = copy.layer.forward(copy.params, copy.state, copy.x, train=True)
    _expect_like_init(y, new_state, _length(shape), dtype, state, out)


def _length(shape: Any) -> int:
    """Return the number of examples in a batch of `shape`, which may be a tree."""
    return int(leaves(shape)[0])


def _expect_contract(case: _Case) -> None:
    before = case.map(np.copy)
    results = case.run()
    _expect_same(before.arrays, case.arrays, "{}, an argument, was changed in place")
    expected = {"y": case.dy, "state": case.state, **case.point}
    _expect_alike(f"{case.mode} in {leaves(case.dy)[0].dtype}", results, expected)
    _expect_same(results, case.run(), "{} is different when computed a second time")
    if case.mode == "predict":
        after = {"state": results["state"]}
        _expect_same({"state": case.state}, after, "{} was changed by predicting")


def _expect_same(before: Any, after: Any, message: str) -> None:
    """Raise CheckFailed unless all leaves have the same bytes."""
    for (name, old), new in zip(named_leaves(before), leaves(after), strict=True):
        if np.asarray(old).tobytes() != np.asarray(new).tobytes():
            raise CheckFailed(message.format(_label(name)))


def _expect_alike(where: str, results: Any, expected: Any) -> None:
    """Raise CheckFailed unless the leaves have the right names, shapes and dtypes."""
    results = dict(named_leaves(results))
    expected = dict(named_leaves(expected))
    for name in sorted(results.keys() ^ expected.keys()):
        fault = "is missing" if name in expected else "should not be there"
        returned = ", ".join(map(_label, results))
        raise CheckFailed(
            f"{where}: {_label(name)} {fault}; the layer returned {returned}"
        )
    for name, leaf in results.items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if (np.shape(leaf), dtype) != (expected[name].shape, expected[name].dtype):
            raise CheckFailed(
                f"{where}: {_label(name)} is {dtype} {np.shape(leaf)}, "
                f"expected {expected[name].dtype} {expected[name].shape}"
            )


def _slope(case: _Case, direction: Any, step: float) -> tuple[np.ndarray, np.ndarray]:
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


def _central_differences(
    case: _Case, limit: int, generator: np.random.Generator
) -> Iterator[Row]:
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


def _adjoint(
    case: _Case, generator: np.random.Generator, oracle: str = "adjoint"
) -> Iterator[Row]:
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


def _with_kinks(row: Row, kinked: np.ndarray) -> Row:
    """Return the row with the number of kinks; raise CheckFailed for too many."""
    if np.mean(kinked) > KINKS:
        raise CheckFailed(
            f"{row.oracle}, {row.mode}: of {kinked.size} elements of {row.leaf}, "
            f"{np.sum(kinked)} {AT_KINKS}, more than a share of {KINKS}"
        )
    return replace(row, kinks=int(np.sum(kinked)))


def _layout(case: _Case) -> Iterator[Row]:
    def strided(leaf: np.ndarray) -> np.ndarray:
        if not leaf.ndim:
            return leaf
        return np.asfortranarray(np.repeat(leaf, 2, axis=-1))[..., ::2]

    return _rows("layout", case, case.run(), case.map(strided).run())


def _small_batches(case: _Case, generator: np.random.Generator) -> Iterator[Row]:
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
        _expect_alike(f"{case.mode}, {oracle}", results, expected)
        if size == 0:
            for name, leaf in named_leaves(results["state"], "state"):
                if not np.all(np.isfinite(leaf)):
                    raise CheckFailed(f"{case.mode}, {oracle}: {name} is {leaf}")
            zeros = tree_map(np.zeros_like, small.point)
            yield from _rows(oracle, case, zeros, results)
        elif case.mode == "train":
            yield from _adjoint(small, generator, oracle)
        else:
            in_batch = case.run()
            both = in_batch.keys() & {"x", "y"}
            expected = {name: last(in_batch[name], size) for name in both}
            yield from _rows(oracle, case, expected, results)


def _shortcuts(case: _Case) -> Iterator[Row]:
    expected = case.run()
    if case.mode == "predict":
        y = case.layer.predict(case.params, case.state, case.x)
        return _rows("shortcuts", case, {"y": expected["y"]}, {"y": y})
    cache = case.forward(case.point)[2]
    grads = case.layer.backward_params(case.params, cache, case.dy)
    return _rows("shortcuts", case, {"params": expected["params"]}, {"params": grads})


def _filled_batch(case: _Case, others: Any) -> Iterator[Row]:
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


def _on_backend(cases: list[_Case], other: Backend) -> Iterator[Row]:
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
        _expect_alike(f"{case.mode} on {other}", results, expected)
        yield from _rows(SAME, case, expected, results, str(other))
        yield from _rows(BY_DIFFERENTIATION, case, derivatives, results, str(other))


def _differentiated(case: _Case, vjp: Callable[..., Any] | None) -> Any:
    """Return the gradients of `case.point` by automatic differentiation, if any."""
    if vjp is None or not leaves(case.point):
        return {}
    _, pull = vjp(lambda point: case.forward(point)[0], case.point)
    (gradients,) = pull(case.dy)
    return gradients


def _usable() -> Iterator[Backend]:
    """Yield each backend except NumPy, on its first device that can have float64."""
    for status in installed():
        others = (device for device in status.devices if device != backend("numpy"))
        yield from [device for device in others if device.can_double][:1]


def _rows(
    oracle: str, case: _Case, expected: Any, got: Any, where: str = "numpy"
) -> Iterator[Row]:
    """Yield a row for each leaf of `expected`; `got` may have more leaves."""
    got = dict(named_leaves(got))
    for name, leaf in named_leaves(expected):
        yield _row(oracle, case, name, leaf, got[name], where=where)


def _row(
    oracle: str,
    case: _Case,
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
    about = oracle, where, case.mode, _label(name)
    return Row(*about, error, tolerance, count, 0, index, *pair)


def _scale_of(leaf: np.ndarray) -> float:
    """Return what errors in a leaf are relative to."""
    return max(float(np.max(abs(leaf), initial=0.0)), SMALLEST_SCALE)


def _label(name: str) -> str:
    """Return the name of a leaf in messages: of a parameter, that within the layer."""
    return name.removeprefix("params.")


def _read_only(leaf: Any) -> np.ndarray:
    copy = np.array(leaf)
    copy.flags.writeable = False
    return copy
