"""Check: whether a layer's hand-derived gradients are the derivatives of its forward.

What the author of a layer runs first. A layer is put on NumPy in float64, at a random
point away from the parameters and the state that it starts with, and with L = Σ y · dy
for a random dy its gradients are held to these oracles:

central difference
    One element θ of x or of a parameter at a time,

        dL/dθ = (-L(θ+2h) + 8 L(θ+h) - 8 L(θ-h) + L(θ-2h)) / 12h + O(h⁴)

    (Fornberg, "Generation of Finite Difference Formulas on Arbitrarily Spaced Grids",
    1988, table 1). That is wrong where a kink such as ReLU's lies within θ ± 2h. There
    the fourth difference of y, O(h⁴) for a smooth function, is O(h) with the step h or
    with h/2: such elements are left out and counted. (The idea is Chainer's.)
adjoint
    With J the derivative of y by x and all parameters at once and v a random direction,
    Σ dy · Jv = Σ Jᵀdy · v: Jv by the difference above, Jᵀdy by `backward` (the dot-product
    test of Claerbout, "Earth Soundings Analysis", 1992). Outputs at a kink are left out.
automatic differentiation
    Of the layer's own forward, by each backend that has it.
same on NumPy
    Every backend computes what NumPy computes, compiled and not.
layout, batch of 0, batch of 1
    Arrays that are transposed and sliced give the same; no examples give no gradient;
    one example is predicted as it is among others. A layer may refuse such batches with
    a ValueError, and the table says so, but not the prediction of one example.
shortcuts
    What a layer may compute by itself is what it computes with all the rest: the gradients of
    `backward_params` are those of `backward`, and the y of `predict` is that of `forward`.
filled batch
    Rows that only fill a short batch up (see `RowMask`), with a dy of 0, change neither the y and
    dx of the others nor the state nor a gradient, and get a dx of 0.

First of all, in float32 and float64, the contract: shape, dtype and nesting of whatever
the layer returns, no argument changed, the same answer at a second call, and no state
changed by predicting.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from typing import Any

import numpy as np

from ...core import random
from ...core.arrays import Array, Params, RowMask, Shape, State
from ...core.backend import Backend, BackendUnavailable, backend
from ...core.backend import backends as installed
from ...core.errors import described, expect, expect_count, expect_function, expect_integer
from ...core.trees import leaves, named_leaves, shape_map, tree_map, unname
from ...display.tables import folded, html_table, table
from ...layers.base import Layer, is_shape, kinds
from .inputs import batched, draw_for

__all__ = ["CheckFailed", "Report", "Row", "check"]

STEP = 2.0**-12  # h, times |θ| where that is above 1
TRUNCATION = 1e-7  # tolerance of what differences say, relative to the largest in the leaf
ROUNDING = 1e-10  # tolerance of what differs by rounding alone
FLOOR = 1e-2  # the largest in a leaf counts as no less than this, or noise would be its measure
KINKS = 0.25  # the share of a leaf that may lie at kinks


class CheckFailed(AssertionError):
    """A layer breaks its contract, or a gradient is not what an oracle says."""


@dataclass(frozen=True)
class Row:
    """What one oracle says of one leaf; `error` is relative to the largest number in the leaf.

    `index`, `expected` and `got` belong to the worst element.
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
    """What `check` found: a row for each oracle, backend, mode and leaf. `str` makes a table."""

    title: str
    rows: tuple[Row, ...]

    @property
    def worst(self) -> Row:
        """The row nearest to its tolerance, or furthest past it."""
        return max(self.rows, key=lambda row: (math.isnan(row.error), row.error / row.tolerance))

    def __str__(self) -> str:
        return f"{self.title}\n\n{table(*self._cells())}"

    def _repr_html_(self) -> str:
        worst = self.worst.error / self.worst.tolerance
        said = f"{len(self.rows)} comparisons, the worst at {worst:.2g} of its tolerance"
        rows = html_table(*self._cells(), inline=True)
        return f"<p>{escape(self.title)}</p>{folded(said, rows, len(self.rows))}"

    def _cells(self) -> tuple[list[str], list[list]]:
        columns = ["oracle", "backend", "mode", "leaf", "error", "tolerance", "checked", "kinks"]
        return columns, [[getattr(row, column) for column in columns] for row in self.rows]


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
    """Hold `layer` to the oracles and the contract above, for inputs of `shape` (batch left out).

    shape: that of x, or a tree of shapes where x is a tree. backends: names or handles;
    None takes all that run here, each on its first device. elements: how many of a leaf the
    central differences check, drawn at random where it has more. draw: makes x from a
    generator and its shape, or tree of shapes; without it x holds normal draws, booleans of
    which three in four are true, or such integers as `layer.check` lets pass.

    Raises
    ------
    CheckFailed
        If the contract is broken or anything is out of tolerance. The message names the
        worst entry of the first oracle that objects, and ends with the table.
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
        raise TypeError(f"expected the shape of one example, {example}, got {described(shape)}")
    expect_count("batch", batch)
    expect_count("elements", elements)
    expect_integer("seed", seed, 0)
    if draw is not None:
        expect_function("draw", draw, "generator, shape")
    if backends is not None:
        backends = _expect_backends(backends)
    generator = np.random.default_rng(seed)
    make = draw or partial(draw_for, layer)
    for dtype in (np.float32, np.float64):
        case = _somewhere(layer, batched(shape, batch), dtype, make, generator)
        for mode in ("train", "predict"):
            _expect_contract(replace(case, mode=mode))

    cases = [replace(case.map(_read_only), mode=mode) for mode in ("train", "predict")]
    some = any(leaf.size for leaf in leaves(cases[0].point))
    expect(some, "there is no number to check in examples of {}", shape)
    rows: list[Row] = []
    for case in cases:
        rows += _central_differences(case, elements, generator)
        rows += _adjoint(case, generator)
        rows += _layout(case)
        rows += _small_batches(case, generator)
        rows += _shortcuts(case)
        rows += _filled_batch(case)
    for other in _usable() if backends is None else backends:
        other = backend(other) if isinstance(other, str) else other
        try:
            with other.double():
                rows += _elsewhere(cases, other)
        except Exception as error:
            error.add_note(f"while {layer} was checked on {other}")
            raise

    report = Report(f"{layer} on {shape}, a batch of {batch}, seed {seed}", tuple(rows))
    objections = [row for row in rows if not row.error <= row.tolerance]
    if objections:
        first = objections[0].oracle
        worst = Report("", tuple(row for row in objections if row.oracle == first)).worst
        raise CheckFailed(
            f"{worst.oracle} on {worst.backend}, {worst.mode}: {worst.leaf}{list(worst.index)} "
            f"is {worst.got!r}, expected {worst.expected!r}; relative error {worst.error:.3g}, "
            f"tolerance {worst.tolerance:g}\n\n{report}"
        )
    return report


def _expect_backends(backends: Any) -> list[str | Backend]:
    """Return `backends` as a list; raise TypeError unless it holds names or handles."""
    if isinstance(backends, str) or not isinstance(backends, Iterable):
        raise TypeError(f"expected backends as a list of names, got {described(backends)}")
    found = list(backends)
    for one in found:
        if not isinstance(one, str | Backend):
            raise TypeError(f"expected backends or their names, got {described(one)}")
    return found


@dataclass(frozen=True)
class _Case:
    """A layer and all that its forward and backward are called with."""

    layer: Layer
    mode: str
    params: Params
    state: State
    x: Any
    dy: Any
    counts: Array | None = None

    @property
    def arrays(self):
        return {"params": self.params, "state": self.state, "x": self.x, "dy": self.dy}

    @property
    def point(self):
        """That which has a gradient; the leaves of x by their paths, if x is a tree."""
        found = dict(named_leaves(kinds(self.layer.input_kinds, self.x)))
        real = {path: x for path, x in named_leaves(self.x) if found[path] == "real floating"}
        return {"params": self.params} | ({"x": real.get("", real)} if real else {})

    def map(self, function):
        return replace(self, **tree_map(function, self.arrays))

    def forward(self, point):
        real = point.get("x", {})
        real = real if isinstance(real, dict) else {"": real}
        x = unname(dict(named_leaves(self.x)) | real, self.x)
        train = self.mode == "train" if self.counts is None else RowMask(self.counts)
        return self.layer.forward(point["params"], self.state, x, train=train)

    def run(self):
        """All that the layer computes, nested so that every leaf has a name."""
        y, state, cache = self.forward(self.point)
        dx, grads = self.layer.backward(self.params, cache, self.dy)
        found = {path: leaf for path, leaf in named_leaves(dx) if leaf is not None}
        there = {"x": found.get("", found)} if found else {}
        return {"y": y, "state": state, "params": grads} | there


def _somewhere(layer, shape, dtype, draw, generator):
    """A case in which no bias is 0, no scale is 1 and the state is not the first."""

    def inputs(rows):
        x = draw(generator, shape_map(lambda one: (rows, *one[1:]), shape))
        return tree_map(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, x)

    def noise(leaf):
        return generator.uniform(-0.5, 0.5, leaf.shape).astype(dtype)

    key = random.key(int(generator.integers(2**32)), xp=backend("numpy").xp)
    params, state, out = layer.init(key, shape_map(lambda one: one[1:], shape), dtype)
    params = tree_map(lambda leaf: leaf + noise(leaf), params)
    # a step of training: only the layer knows which states are valid
    rows = max(_length(shape), 3)
    y, after, _ = layer.forward(params, state, inputs(rows), train=True)
    promised = {"y": shape_map(lambda one: np.zeros((rows, *one), dtype), out), "state": state}
    _expect_alike(f"train in {np.dtype(dtype)}", {"y": y, "state": after}, promised)
    dy = shape_map(generator.standard_normal, batched(out, _length(shape)))
    dy = tree_map(lambda leaf: np.asarray(leaf, dtype), dy)
    return _Case(layer, "train", params, after, inputs(_length(shape)), dy)


def _length(shape):
    """How many examples there are in a batch of `shape`, which may be a tree."""
    return leaves(shape)[0]


def _expect_contract(case):
    before = case.map(np.copy)
    results = case.run()
    _expect_same(before.arrays, case.arrays, "{}, an argument, was changed in place")
    wanted = {"y": case.dy, "state": case.state, **case.point}
    _expect_alike(f"{case.mode} in {leaves(case.dy)[0].dtype}", results, wanted)
    _expect_same(results, case.run(), "{} is another when computed a second time")
    if case.mode == "predict":
        after = {"state": results["state"]}
        _expect_same({"state": case.state}, after, "{} was changed by predicting")


def _expect_same(before, after, fault):
    for (name, was), now in zip(named_leaves(before), leaves(after), strict=True):
        if np.asarray(was).tobytes() != np.asarray(now).tobytes():
            raise CheckFailed(fault.format(_shown(name)))


def _expect_alike(where, results, wanted):
    """Refuse leaves that are missing, left over, or of another shape or dtype than wanted."""
    results, wanted = dict(named_leaves(results)), dict(named_leaves(wanted))
    for name in sorted(results.keys() ^ wanted.keys()):
        fault = "is missing" if name in wanted else "should not be there"
        there = ", ".join(map(_shown, results))
        raise CheckFailed(f"{where}: {_shown(name)} {fault}; there are {there}")
    for name, leaf in results.items():
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        if (np.shape(leaf), kind) != (wanted[name].shape, wanted[name].dtype):
            raise CheckFailed(
                f"{where}: {_shown(name)} is {kind} {np.shape(leaf)}, "
                f"expected {wanted[name].dtype} {wanted[name].shape}"
            )


def _slope(case, direction, step):
    """y' along a direction, y laid out flat, and its fourth differences: of order 1 at a kink."""

    def y(t):
        moved = tree_map(lambda leaf, d: leaf + t * d, case.point, direction)
        return _flat(case.forward(moved)[0])

    at = {n: y(n * step / 2.0) for n in (-4, -2, -1, 0, 1, 2, 4)}
    slope = (8.0 * (at[2] - at[-2]) - (at[4] - at[-4])) / (12.0 * step)
    bends = (at[2 * n] + at[-2 * n] - 4.0 * (at[n] + at[-n]) + 6.0 * at[0] for n in (1, 2))
    return slope, np.maximum(*map(abs, bends)) / step


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in leaves(tree)])


def _unflat(flat, like):
    """Numbers laid out as `_flat` does, in a tree like `like`."""
    named, start = {}, 0
    for path, leaf in named_leaves(like):
        named[path] = flat[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return unname(named, like)


def _kinked(slopes, bends):
    """Where a kink may be; one near the end of a stencil moves the slope by bend / 12."""
    return bends > 3.0 * TRUNCATION * max(np.max(abs(slopes), initial=0.0), FLOOR)


def _central_differences(case, limit, generator):
    named, gradients = dict(named_leaves(case.point)), dict(named_leaves(case.run()))
    dy = _flat(case.dy)
    for name, leaf in named.items():
        slopes, bends = np.zeros(leaf.shape), np.zeros(leaf.shape)
        picked = np.asarray(generator.permutation(leaf.size).reshape(leaf.shape) < limit)
        for index in map(tuple, np.argwhere(picked)):
            unit = np.zeros(leaf.shape)
            unit[index] = 1.0
            direction = unname(dict.fromkeys(named, 0.0) | {name: unit}, case.point)
            slope, bend = _slope(case, direction, STEP * max(1.0, abs(leaf[index])))
            slopes[index], bends[index] = np.sum(slope * dy), np.max(bend * abs(dy))
        kinked = np.asarray(_kinked(slopes, bends))
        got, checked = gradients[name], picked & ~kinked
        row = _row("central difference", case, name, slopes, got, TRUNCATION, checked=checked)
        yield _without(kinked[picked], row)


def _adjoint(case, generator, oracle="adjoint"):
    if not leaves(case.point):
        return
    dy = _flat(case.dy)
    for _ in range(8):  # directions, until one crosses few kinks
        v = tree_map(lambda leaf: generator.standard_normal(leaf.shape), case.point)
        slope, bend = _slope(case, v, STEP)
        kinked = _kinked(slope * dy, bend * abs(dy))
        if np.mean(kinked) <= KINKS:
            break
    dy = np.where(kinked, 0.0, dy)
    results = replace(case, dy=_unflat(dy, case.dy)).run()
    products = tree_map(lambda d, g: np.sum(d * g), v, {name: results[name] for name in v})
    there, back = np.sum(dy * slope), sum(leaves(products))
    yield _without(kinked, _row(oracle, case, "x and params", there, back, TRUNCATION))


def _without(kinked, row):
    """The row, with the elements that were left out; too many of them are refused."""
    if np.mean(kinked) > KINKS:
        raise CheckFailed(
            f"{row.oracle}, {row.mode}: of {kinked.size} elements of {row.leaf}, {np.sum(kinked)} "
            f"lie at a kink or jump, more than a share of {KINKS}"
        )
    return replace(row, kinks=int(np.sum(kinked)))


def _layout(case):
    def lay_out(leaf):
        return np.asfortranarray(np.repeat(leaf, 2, axis=-1))[..., ::2] if leaf.ndim else leaf

    return _rows("layout", case, case.run(), case.map(lay_out).run())


def _small_batches(case, generator):
    def last(tree, size):
        return tree_map(lambda leaf: leaf[len(leaf) - size :], tree)

    for size in (0, 1):
        oracle = f"batch of {size}"
        few = replace(case, x=last(case.x, size), dy=last(case.dy, size))
        try:
            few.forward(few.point)
        except ValueError as refusal:
            if size == 1 and case.mode == "predict":
                raise CheckFailed("predict: a batch of one example is refused") from refusal
            yield _row(oracle, case, "(refused)", (), ())
            continue
        results = few.run()
        wanted = {"y": few.dy, "state": few.state, **few.point}
        _expect_alike(f"{case.mode}, {oracle}", results, wanted)
        if size == 0:
            for name, leaf in named_leaves(results["state"], "state"):
                if not np.all(np.isfinite(leaf)):
                    raise CheckFailed(f"{case.mode}, {oracle}: {name} is {leaf}")
            yield from _rows(oracle, case, tree_map(np.zeros_like, few.point), results)
        elif case.mode == "train":
            yield from _adjoint(few, generator, oracle)
        else:
            among = case.run()
            alone = {name: last(among[name], size) for name in among.keys() & {"x", "y"}}
            yield from _rows(oracle, case, alone, results)


def _shortcuts(case):
    expected = case.run()
    if case.mode == "predict":
        y = case.layer.predict(case.params, case.state, case.x)
        return _rows("shortcuts", case, {"y": expected["y"]}, {"y": y})
    cache = case.forward(case.point)[2]
    grads = case.layer.backward_params(case.params, cache, case.dy)
    return _rows("shortcuts", case, {"params": expected["params"]}, {"params": grads})


def _filled_batch(case, fillers=2):
    if case.mode == "predict":
        return []
    count = len(leaves(case.x)[0])

    def more(leaf, filler):
        return np.concatenate([leaf, np.repeat(filler, fillers, axis=0)])

    x = tree_map(lambda leaf: more(leaf, leaf[-1:]), case.x)
    dy = tree_map(lambda leaf: more(leaf, 0.0 * leaf[-1:]), case.dy)
    found = replace(case, x=x, dy=dy, counts=np.repeat([1.0, 0.0], [count, fillers])).run()
    found["y"] = tree_map(lambda leaf: leaf[:count], found["y"])
    wanted = case.run()
    if "x" in wanted:
        wanted["x"] = tree_map(lambda leaf: more(leaf, 0.0 * leaf[-1:]), wanted["x"])
    return _rows("filled batch", case, wanted, found)


def _elsewhere(cases, other):
    """What `other` computes, and what it finds by automatic differentiation, compiled as one."""
    vjp = other.adapter.vjp

    def everything(arrays):
        here = [replace(case, **arrays) for case in cases]
        return {c.mode: (c.run(), {} if vjp is None else _differentiated(c, vjp)) for c in here}

    if not other.has_float64:
        raise BackendUnavailable(f"{other} has no float64")
    found = other.to_numpy(other.jit(everything)(other.asarray(cases[0].arrays)))
    for case in cases:
        expected = case.run()
        results, derivatives = found[case.mode]
        _expect_alike(f"{case.mode} on {other}", results, expected)
        yield from _rows("same on NumPy", case, expected, results, str(other))
        yield from _rows("automatic differentiation", case, derivatives, results, str(other))


def _differentiated(case, vjp):
    if not leaves(case.point):
        return {}
    _, pull = vjp(lambda point: case.forward(point)[0], case.point)
    (gradients,) = pull(case.dy)
    return gradients


def _usable():
    """All backends that can have float64 but NumPy itself, each with its first such device."""
    for status in installed():
        devices = (one for one in status.devices if one != backend("numpy"))
        yield from [one for one in devices if one.can_double][:1]


def _rows(oracle, case, expected, got, where="numpy"):
    got = dict(named_leaves(got))
    for name, leaf in named_leaves(expected):
        yield _row(oracle, case, name, leaf, got[name], where=where)


def _row(oracle, case, name, expected, got, tolerance=ROUNDING, where="numpy", checked=True):
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    errors = abs(got - expected) / max(np.max(abs(expected), initial=0.0), FLOOR)
    errors = np.where(checked, errors, 0.0)
    index: tuple[int, ...] = ()
    error, pair = 0.0, (0.0, 0.0)
    if errors.size:
        index = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))
        error, pair = float(errors[index]), (float(expected[index]), float(got[index]))
    count = int(np.sum(np.broadcast_to(checked, errors.shape)))
    return Row(oracle, where, case.mode, _shown(name), error, tolerance, count, 0, index, *pair)


def _shown(name):
    """Parameters are known by their names within the layer."""
    return name.removeprefix("params.")


def _read_only(leaf):
    leaf = np.array(leaf)
    leaf.flags.writeable = False
    return leaf
