"""`explain`: the chain rule for one batch, layer by layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np

from ...blocks import MixedPrecision
from ...core import random
from ...core.arrays import Params, State, namespace
from ...core.backend import Backend
from ...core.backend import backend as choose
from ...core.errors import expect, expect_function
from ...core.precisions import HALVES, epsilon
from ...core.trees import (
    expect_nested,
    leaves,
    named_leaves,
    tree_from_leaves,
    tree_map,
)
from ...display.pages import framed
from ...layers import Layer
from ...layers.base import kinds, not_a_layer
from ...losses import Loss
from ...losses.base import check_of
from ...training.inputs import as_integer, fetch
from .docstrings import first_argument, loss_text
from .flow import Node, flow
from .formulas import formula_of
from .html import Part, page
from .nonfinite import first_non_finite
from .remarks import findings
from .text import Check, Report, Saved
from .walk import Walk, perturbed_output, saved_arrays, walk

__all__ = ["Explanation", "explain"]

STEPS = (2.0**-14, 2.0**-19, 2.0**-24)  # of a central difference, times max(1, |θ|)
# The next two are relative to the largest gradient in the parameter.
MAX_SLOPE_CHANGE = 1e-2  # between the two sides; a larger one means a kink in between
TOLERANCE = {"float32": 1e-3, "float64": 1e-6}
MIN_SCALE = 1e-3  # lower bound on that largest gradient, above rounding errors


@dataclass(frozen=True)
class Explanation(Report):
    """The result of `explain`.

    `str()` returns plain text and `to_html()` a page, which notebooks show.
    """

    def to_html(self, title: str | None = None) -> str:
        """Return a self-contained HTML page.

        Raises
        ------
        ImportError
            If the packages that render pages are not installed.
        """
        return page(
            title or f"The chain rule of a batch of {self.rows}",
            "",
            [Part("", "", self)],
        )

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
    """Run `model` forward and backward on one batch, and explain every number.

    Parameters
    ----------
    x, target, weights
        NumPy arrays, lists of numbers, arrays of the backend, or trees of them.
    params, state
        Such as those of a `Trainer`. By default they are initialized from `seed`.

    Notes
    -----
    The computation uses the dtype of params, else that of x, else float32.

    All numbers come from the layers' own forward and backward, called as in a training
    step but not compiled. For each layer, the gradient of one parameter entry is
    compared with a central difference, computed by NumPy in float64. A sum, such as
    that of a residual branch, is recognized by its value: it equals the sum of two
    arrays in the block bit by bit. The inside of a layer that is not a block, such as
    the time steps of an LSTM, is not shown.

    Formulas come from the docstrings of layers and losses: the first paragraph, and the
    section "Gradient". Some common ones are typeset. A custom layer may define a
    typeset formula as its attribute `formula`.

    If a value is NaN or infinite, `non_finite` of the result and the first sentence of
    its text say where the first one appears, and the numbers it was computed from.

    Raises
    ------
    TypeError, ValueError
        As raised by the model's layers and the loss if the data do not fit; or if the
        backend does not support the dtype.
    """
    if not isinstance(model, Layer):
        raise TypeError(
            f"expected a layer or a block as the model, got {not_a_layer(model)}"
        )
    expect_function("the loss", loss, "y, target")
    seed = as_integer("seed", seed, 0)
    chosen = backend if isinstance(backend, Backend) else choose(backend)
    x, has_dtype = fetch("x", x, chosen)
    if params is not None:
        params = tree_map(lambda leaf: fetch("params", leaf, chosen)[0], params)
        floats = [leaf for leaf in leaves(params) if leaf.dtype.kind == "f"]
    else:
        floats = []
    # Of x, only leaves count whose dtype the user chose. A list of numbers has none.
    for leaf, is_chosen in zip(leaves(x), leaves(has_dtype), strict=True):
        if is_chosen and leaf.dtype.kind == "f":
            floats.append(leaf)
    dtype = floats[0].dtype.name if floats else "float32"
    if dtype == "float64" and not chosen.has_float64:
        raise ValueError(chosen.lacks_float64)
    x = tree_map(partial(_cast, dtype), x, kinds(model.input_kinds, x))
    target = tree_map(partial(_cast, dtype), fetch("target", target, chosen)[0])
    if weights is not None:
        weights, _ = fetch("weights", weights, chosen)
        weights = tree_map(lambda leaf: _cast(dtype, leaf, "real floating"), weights)
        for path, leaf in named_leaves(weights, "weights"):
            ok = leaf.ndim > 0 and (np.isfinite(leaf) & (leaf >= 0)).all()
            expect(
                ok, "expected {} as finite numbers of at least 0, one per example", path
            )
    # Initialize on NumPy even if params and state are given: this checks the shape of
    # x, and returns the shape of y and the trees that params and state must match.
    xp = namespace(np.zeros(()))
    shape = tree_map(lambda leaf: leaf.shape[1:], x)
    init_params, init_state, y_shape = model.init(
        random.key(seed, xp=xp), shape, getattr(xp, dtype)
    )
    check = check_of(loss)
    if check is not None:
        check(target, y_shape)
    if params is None:
        params = init_params
    else:
        expect_nested("params", params, init_params)
    if state is None:
        state = init_state
    else:
        expect_nested("state", state, init_state)
    state = tree_map(lambda leaf: fetch("state", leaf, chosen)[0], state)

    # The arrays stay on the host for the gradient checks; the walk gets copies on the
    # backend.
    batch = [x, target] if weights is None else [x, target, weights]
    host = (params, state, *batch)
    # NumPy's warnings about NaN and infinity would say less than `non_finite` does.
    with chosen.applied(), np.errstate(all="ignore"):
        recorded = walk(model, loss, *map(chosen.asarray, host))
    nodes, output = flow(recorded, chosen.to_numpy)
    value = np.asarray(chosen.to_numpy(recorded.loss))
    loss_formula = formula_of(loss)
    loss_at = partial(_perturbed_loss, model, loss, host)
    dy = chosen.to_numpy(recorded.dy)
    output_nodes = [nodes[number] for number in output]
    non_finite = first_non_finite(
        nodes,
        target,
        _loss_name(loss),
        value,
        list(zip(output_nodes, leaves(dy), strict=True)),
        partial(_loss_of_row, loss, chosen.to_numpy(recorded.y), host[3:]),
    )
    return Explanation(
        model=model,
        loss_name=_loss_name(loss),
        backend=str(chosen),
        rows=len(leaves(x)[0]),
        nodes=tuple(nodes),
        output=output,
        target=target,
        loss=value,
        dy=dy,
        loss_formula=loss_formula,
        loss_text="" if loss_formula else loss_text(loss),
        loss_argument=first_argument(loss),
        saved=_saved(nodes),
        checks={
            node.number: check
            for node in nodes
            for check in _checks(node, loss_at, _rounding(recorded))
        },
        non_finite=non_finite,
        findings=findings(nodes, non_finite),
    )


def _loss_of_row(
    loss: Loss, y: Any, target_and_weights: tuple[Any, ...], row: int
) -> float:
    """Return the loss of one row of the batch alone, computed by NumPy."""
    rows = slice(row, row + 1)
    args = tree_map(lambda leaf: leaf[rows, ...], (y, *target_and_weights))
    with np.errstate(all="ignore"):
        return float(np.sum(loss(*args)[0]))


def _cast(dtype: str, leaf: np.ndarray, kind: str = "") -> np.ndarray:
    """Cast data to the model's dtype, and integers to int32: all backends have it."""
    if leaf.dtype.kind == "f" or kind == "real floating":
        return leaf.astype(dtype)
    return leaf.astype("int32") if leaf.dtype.kind in "iu" else leaf


def _loss_name(loss: Any) -> str:
    if isinstance(loss, partial):
        options = ", ".join(
            f"{name}={value!r}" for name, value in loss.keywords.items()
        )
        return f"{_loss_name(loss.func)}({options})"
    return getattr(loss, "__name__", None) or repr(loss)


def _saved(nodes: list[Node]) -> dict[int, tuple[Saved, ...]]:
    """Return what each layer saved; shared memory counts for the first layer only."""
    saved: dict[int, tuple[Saved, ...]] = {}
    counted = set()
    for node in nodes:
        if node.call is None:
            continue
        # A layer that returns its input unchanged has one array with two names: the
        # input's counts.
        names = {id(leaf): node.name for leaf in leaves(node.call.y)}
        sources = [nodes[edge.start].name for edge in node.edges]
        names |= {
            id(leaf): name
            for leaf, name in zip(leaves(node.call.x), sources, strict=True)
        }
        arrays = []
        for leaf in saved_arrays(node.call):
            memory = _memory(leaf)
            name = names.get(id(leaf), "")
            size = int(np.prod(leaf.shape)) * _item_bytes(leaf.dtype)
            if size and (name or memory not in counted):
                arrays.append(
                    Saved(name, tuple(leaf.shape), 0 if memory in counted else size)
                )
            counted.add(memory)
        saved[node.number] = tuple(arrays)
    return saved


def _item_bytes(dtype: Any) -> int:
    """Return the size of one number of a dtype of any library, such as torch.float32.

    NumPy alone does not know the name bfloat16.
    """
    name = str(dtype).rpartition(".")[2]
    return 2 if name in HALVES else np.dtype(name).itemsize


def _memory(array: Any) -> int:
    """Return an identifier of an array's memory; views share that of their base."""
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    return id(array)


def _rounding(recorded: Walk) -> float:
    """Return the relative rounding that a `MixedPrecision` may cause; 0 without one.

    The rounding reaches layers before and behind it too.
    """
    layers = [call.layer for call in recorded.calls]
    mixed = [layer for layer in layers if isinstance(layer, MixedPrecision)]
    return max([8.0 * epsilon(layer.dtype) for layer in mixed], default=0.0)


def _checks(
    node: Node, loss_at: Callable[..., Any], rounding: float
) -> Iterator[Check]:
    """Yield at most one check: of the entry with the largest gradient in one parameter.

    The parameter is the weight if there is one, else the first. rounding: the smallest
    relative tolerance.
    """
    named = (
        dict(named_leaves(node.grads)) if node.call and node.grads is not None else {}
    )
    if not named:
        return
    path = next((p for p in named if p.split(".")[-1] == "weight"), next(iter(named)))
    slopes = np.asarray(named[path], np.float64) / node.loss_scale
    if not slopes.size or not np.all(np.isfinite(slopes)):
        return
    steepest = np.unravel_index(np.argmax(np.abs(slopes)), slopes.shape)
    index = tuple(int(i) for i in steepest)
    params = tree_map(lambda leaf: np.asarray(leaf, np.float64), node.params)
    size = max(1.0, abs(float(dict(named_leaves(params))[path][index])))
    scale = max(float(np.max(np.abs(slopes))), MIN_SCALE)
    # Near a kink the slopes on both sides differ. A smaller step may avoid the kink.
    for step in STEPS:
        h = step * size
        losses = [loss_at(node, params, path, index, d) for d in (-h, 0.0, h)]
        below, center, above = losses
        kink = abs(above - 2.0 * center + below) / h > MAX_SLOPE_CHANGE * scale
        if not kink:
            break
    difference = (above - below) / (2.0 * h)
    if not np.isfinite(difference):
        return
    slope = float(slopes[index])
    tolerance = max(rounding, TOLERANCE.get(named[path].dtype.name, 1e-2)) * scale
    agrees = abs(difference - slope) <= tolerance
    yield Check(
        node.names[path], index, slope, difference, agrees, kink=kink and not agrees
    )


def _perturbed_loss(
    model: Layer,
    loss: Loss,
    host: tuple[Any, ...],
    node: Node,
    call_params: Params,
    path: str,
    index: tuple[int, ...],
    delta: float,
) -> float:
    """Return the loss in float64 with `delta` added to one parameter entry of a call.

    host: (params, state, x, target) or (params, state, x, target, weights) of NumPy.
    """
    params, state, x, target, *weights = host

    def wide(tree: Any) -> Any:
        return tree_map(
            lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a, tree
        )

    named = dict(named_leaves(call_params))
    named[path] = named[path].copy()
    named[path][index] += delta
    assert node.call is not None
    change = {node.call.number: tree_from_leaves(named, call_params)}
    with np.errstate(all="ignore"):
        y = perturbed_output(model, wide(params), wide(state), wide(x), change)
        return float(np.sum(loss(y, wide(target), *wide(tuple(weights)))[0]))
