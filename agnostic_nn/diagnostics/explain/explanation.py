"""Explaining: the chain rule of one batch, layer by layer, with formulas, shapes and numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np

from ...core import random
from ...core.arrays import Params, State, namespace
from ...core.backend import Backend
from ...core.backend import backend as choose
from ...core.errors import expect, expect_function
from ...core.trees import expect_nested, leaves, named_leaves, tree_from_leaves, tree_map
from ...display.pages import framed
from ...layers import Layer
from ...layers.base import kinds, not_a_layer
from ...losses import Loss
from ...losses.base import check_of
from ...training.inputs import as_integer, fetch
from .flow import Node, flow
from .formulas import formula_of, gradient_said
from .html import Part, page
from .remarks import findings
from .text import Check, Kept, Telling
from .walk import cached, nudged, walk

__all__ = ["Explanation", "explain"]

STEPS = (2.0**-14, 2.0**-19, 2.0**-24)  # of a central difference, times |θ| where that is above 1
BENT = 1e-2  # how far the slopes to both sides may be apart, relative to the largest in the leaf
AGREES = {"float32": 1e-3, "float64": 1e-6}  # relative to the largest in the leaf
FLOOR = 1e-3  # which counts as no less than this, or rounding would be its measure


@dataclass(frozen=True)
class Explanation(Telling):
    """What `explain` found: `str()` is plain text, `to_html()` a page, which notebooks show."""

    def to_html(self, title: str | None = None) -> str:
        """A page that stands alone.

        Raises
        ------
        ImportError
            If what draws pages is not installed.
        """
        return page(title or f"The chain rule of a batch of {self.rows}", "", [Part("", "", self)])

    def _repr_html_(self) -> str:
        try:
            return framed(self.to_html())
        except ImportError:
            return f"<pre>{escape(str(self))}</pre>"


def explain(
    model: Layer,
    loss: Loss,
    x: Any,
    target: Any,
    *,
    params: Params | None = None,
    state: State | None = None,
    weights: Any = None,
    backend: Backend | str | None = None,
    seed: int = 0,
) -> Explanation:
    """Go forward and backward through `model` for the batch (x, target), and tell every number.

    x, target, weights: NumPy arrays, lists of numbers, arrays of the backend, or trees of them.
    params and state: such as a `Trainer` has; unless given they are drawn from `seed`. All is
    computed in the dtype of params, else in that of x, else in float32.

    All numbers come from the layers' own forward and backward, called as a training step calls
    them but uncompiled, one after the other. Beside one entry of a parameter of each layer
    stands the central difference, computed by NumPy in float64. A sum of residual or other
    ways is recognised by its numbers: it is that of two arrays in the block, to the last bit.
    What is inside of a layer that is no block, such as the steps of an LSTM, is not shown.
    Formulas come from a table; a layer that has none there is told by its docstring, or brings
    one as its attribute `formula`.

    Raises
    ------
    TypeError, ValueError
        As the model's layers and the loss do, where the data do not fit; or if the backend
        does not have the dtype.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"expected a layer or a block as the model, got {not_a_layer(model)}")
    expect_function("the loss", loss, "y, target")
    seed = as_integer("seed", seed, 0)
    chosen = backend if isinstance(backend, Backend) else choose(backend)
    x, picked = fetch("x", x, chosen)
    if params is not None:
        params = tree_map(lambda leaf: fetch("params", leaf, chosen)[0], params)
        own = [leaf for leaf in leaves(params) if leaf.dtype.kind == "f"]
    else:
        own = []
    both = zip(leaves(x), leaves(picked), strict=True)
    own += [leaf for leaf, meant in both if meant and leaf.dtype.kind == "f"]
    dtype = own[0].dtype.name if own else "float32"
    if dtype == "float64" and not chosen.has_float64:
        raise ValueError(chosen.lacks_float64)
    x = tree_map(partial(_typed, dtype), x, kinds(model.input_kinds, x))
    target = tree_map(partial(_typed, dtype), fetch("target", target, chosen)[0])
    if weights is not None:
        found, _ = fetch("weights", weights, chosen)
        weights = tree_map(lambda leaf: _typed(dtype, leaf, "real floating"), found)
        for path, leaf in named_leaves(weights, "weights"):
            fits = leaf.ndim > 0 and (np.isfinite(leaf) & (leaf >= 0)).all()
            expect(fits, "expected {} as finite numbers of at least 0, one an example", path)
    xp, shape = namespace(np.zeros(())), tree_map(lambda leaf: leaf.shape[1:], x)
    drawn = model.init(random.key(seed, xp=xp), shape, getattr(xp, dtype))
    check = check_of(loss)
    if check is not None:
        check(target, drawn[2])
    for name, given, like in (("params", params, drawn[0]), ("state", state, drawn[1])):
        if given is not None:
            expect_nested(name, given, like)
    if params is None or state is None:
        params = drawn[0] if params is None else params
        state = drawn[1] if state is None else state
    state = tree_map(lambda leaf: fetch("state", leaf, chosen)[0], state)

    batch = [x, target] if weights is None else [x, target, weights]
    host = (params, state, *batch)
    with chosen.applied():
        walked = walk(model, loss, *map(chosen.asarray, host))
    nodes, output = flow(walked, chosen.to_numpy)
    value = np.asarray(chosen.to_numpy(walked.loss))
    moved = partial(_moved, model, loss, *host)
    return Explanation(
        model,
        _name(loss),
        str(chosen),
        len(leaves(x)[0]),
        tuple(nodes),
        output,
        target,
        value,
        chosen.to_numpy(walked.dy),
        formula_of(loss),
        gradient_said(loss),
        _kept(nodes),
        {node.number: check for node in nodes for check in _checked(node, moved)},
        findings(nodes, value),
    )


def _typed(dtype: str, leaf: np.ndarray, kind: str = "") -> np.ndarray:
    """Data in the dtype that the model computes in; integers in int32, which all backends have."""
    if leaf.dtype.kind == "f" or kind == "real floating":
        return leaf.astype(dtype)
    return leaf.astype("int32") if leaf.dtype.kind in "iu" else leaf


def _name(loss: Any) -> str:
    if isinstance(loss, partial):
        options = ", ".join(f"{name}={value!r}" for name, value in loss.keywords.items())
        return f"{_name(loss.func)}({options})"
    return getattr(loss, "__name__", None) or repr(loss)


def _kept(nodes: list[Node]) -> dict[int, tuple[Kept, ...]]:
    """What each layer kept; an array that two keep costs where it was kept first."""
    found: dict[int, tuple[Kept, ...]] = {}
    paid = set()
    for node in nodes:
        if node.call is None:
            continue
        names = {id(leaf): node.name for leaf in leaves(node.call.y)}
        sources = [nodes[edge.start].name for edge in node.edges]
        names |= {id(leaf): name for leaf, name in zip(leaves(node.call.x), sources, strict=True)}
        kept = []
        for leaf in cached(node.call):
            memory, name = _memory(leaf), names.get(id(leaf), "")
            size = int(np.prod(leaf.shape)) * np.dtype(str(leaf.dtype).split(".")[-1]).itemsize
            if size and (name or memory not in paid):
                kept.append(Kept(name, tuple(leaf.shape), 0 if memory in paid else size))
            paid.add(memory)
        found[node.number] = tuple(kept)
    return found


def _memory(array: Any) -> int:
    """Which memory an array is, or is a view of."""
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    return id(array)


def _checked(node: Node, moved: Callable) -> Iterator[Check]:
    """A check of one entry: of the weight, or else the first parameter, where it is steepest."""
    named = dict(named_leaves(node.grads)) if node.call and node.grads is not None else {}
    if not named:
        return
    path = next((p for p in named if p.split(".")[-1] == "weight"), next(iter(named)))
    slopes = np.asarray(named[path], np.float64)
    if not slopes.size or not np.all(np.isfinite(slopes)):
        return
    index = tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(slopes)), slopes.shape))
    own = tree_map(lambda leaf: np.asarray(leaf, np.float64), node.params)
    size = max(1.0, abs(float(dict(named_leaves(own))[path][index])))
    largest = max(float(np.max(np.abs(slopes))), FLOOR)
    for step in STEPS:  # smaller ones, if a kink is within reach
        h = step * size
        down, here, up = (moved(node, own, path, index, by) for by in (-h, 0.0, h))
        bent = abs(up - 2.0 * here + down) / h > BENT * largest
        if not bent:
            break
    difference, slope = (up - down) / (2.0 * h), float(slopes[index])
    agrees = abs(difference - slope) <= AGREES.get(named[path].dtype.name, 1e-2) * largest
    yield Check(node.names[path], index, slope, difference, agrees, kink=bent and not agrees)


def _moved(model, loss, params, state, x, target, *more) -> float:
    """The loss, were one entry of a parameter of a call another, by NumPy in float64."""
    *weights, node, own, path, index, by = more

    def wide(tree):
        return tree_map(lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a, tree)

    named = dict(named_leaves(own))
    named[path] = named[path].copy()
    named[path][index] += by
    y = nudged(
        model, wide(params), wide(state), wide(x), {node.call.number: tree_from_leaves(named, own)}
    )
    return float(np.sum(loss(y, wide(target), *wide(tuple(weights)))[0]))
