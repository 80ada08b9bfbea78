"""Findings: what in a walk is worth a sentence, and from where on it is.

The bounds are rules of thumb, and each sentence brings the figure that it rests on:

- A slope below 1e-3 makes a gradient a thousandth of what it was: the unit hardly learns, and
  what is before it hardly learns through it. A layer is called saturated from a half on.
- Weights drawn as He, Glorot or LeCun did keep the norm of a gradient within a factor of a few
  from layer to layer. A layer that passes on less than 1/100, or more than 100 times what it
  got, is far outside; a few such in a row leave nothing, or infinity.
- From the end of the network to its beginning the bounds are 1e-4 and 1e4: with one rate for
  all, one of the two learns ten thousand times as fast as the other.
- A unit is dead in a batch if no row has a slope there. In a batch of one row that says little.
- Zeros are counted only where they are exact: a sum that rounds to almost 0 is none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...core.trees import named_leaves
from ...layers import Elementwise, HardSigmoid, HardSwish, HardTanh, ReLU, Threshold
from .flow import Node
from .formulas import plain
from .numbers import facts, share

__all__ = ["Finding", "findings", "passed", "place", "saturated"]

FLAT = 1e-3  # a slope below it is saturated
MOSTLY = 0.5  # the share of such slopes from which on a layer is
PASSED = 1e-2  # the least that one layer passes on of a gradient's norm; the most is 1 / PASSED
REACHED = 1e-4  # the same from one end of the network to the other
_USUAL = "weights as they are usually drawn keep it within a factor of a few"
HAVE_FLATS = (ReLU, HardTanh, HardSigmoid, HardSwish, Threshold)  # whose slope is 0 on a side


@dataclass(frozen=True)
class Finding:
    """A sentence about a place; kind is its short name, bad what stops learning."""

    kind: str
    path: str
    said: str
    bad: bool = False


def saturated(node: Node) -> float | None:
    """The share of slopes below 1e-3 in size, of an activation that has such tails."""
    layer = node.call.layer if node.call else None
    if not isinstance(layer, Elementwise) or isinstance(layer, ReLU):
        return None
    slopes = np.asarray(layer.slope(node.x))
    return float(np.mean(np.abs(slopes) < FLAT)) if slopes.size else None


def findings(nodes: list[Node], loss: np.ndarray) -> tuple[Finding, ...]:
    """What is worth saying, what stops learning first."""
    found = [
        *_not_finite(nodes, loss),
        *(one for node in nodes if node.call for one in _of_layer(node)),
        *_from_end_to_end(nodes),
    ]
    return tuple(sorted(found, key=lambda one: not one.bad))


def place(node: Node) -> str:
    """Which layer: its path and its kind."""
    return f"{node.call.path} {type(node.call.layer).__name__}".strip() if node.call else ""


def _not_finite(nodes: list[Node], loss: np.ndarray) -> Iterator[Finding]:
    """The first place on either way where numbers stop being numbers: the rest follows from it."""
    for node in nodes:
        places = [("parameter", node.params), ("", node.y)]
        for what, tree in places:
            for path, leaf in named_leaves(tree) if tree is not None else ():
                known = facts(leaf) if leaf.dtype.kind == "f" else None
                if known and not known.is_finite:
                    name = plain(node.names[path]) if what else plain(node.name)
                    said = (
                        f"numbers end here: {_counted(known)} in {name}, and what follows from it"
                    )
                    yield Finding("not finite", place(node), said, bad=True)
                    return
    if not np.all(np.isfinite(loss)):
        yield Finding("not finite", "loss", f"the loss is {float(np.sum(loss))}", bad=True)
        return
    for node in reversed(nodes):
        for path, leaf in named_leaves({"y": node.dy, "x": node.dx, "params": node.grads}):
            if leaf is None or leaf.dtype.kind != "f" or facts(leaf).is_finite:
                continue
            *_, last = path.split(".params.")
            said = f"here gradients end, on the way back: {_counted(facts(leaf))} in that of {last}"
            yield Finding("not finite", place(node), said, bad=True)
            return


def _counted(known) -> str:
    parts = [f"{known.nan} NaN"] * bool(known.nan)
    parts += [f"{known.infinite} infinite"] * bool(known.infinite)
    return " and ".join(parts)


def _of_layer(node: Node) -> Iterator[Finding]:
    yield from _dead(node)
    part = saturated(node)
    layer = node.call.layer if node.call else None
    if part is not None and part >= MOSTLY and not isinstance(layer, HAVE_FLATS):
        said = f"{share(part)} of its slopes are below {FLAT:g}: hardly a gradient passes there"
        yield Finding("saturated", place(node), said, bad=part == 1.0)
    yield from _passed(node)
    yield from _unmoved(node)


def _dead(node: Node) -> Iterator[Finding]:
    layer = node.call.layer if node.call else None
    if not isinstance(layer, HAVE_FLATS) or node.x.ndim < 2 or not node.x.size:
        return
    flat = np.asarray(layer.slope(node.x)) == 0
    units = np.all(flat.reshape(-1, flat.shape[-1]), axis=0)
    if not units.any():
        return
    rows = flat.size // flat.shape[-1]
    which = _listed(np.flatnonzero(units))
    some = f"{units.sum()} of {units.size} units" if units.size > 1 else "its one unit"
    said = f"{some} dead in this batch ({which}): no gradient passes, in none of {rows} rows"
    if rows == 1:
        said = f"{some} off for this one row ({which}): no gradient passes them here"
    yield Finding("dead", place(node), said, bad=bool(units.all()))


def _listed(numbers: np.ndarray) -> str:
    some = ", ".join(map(str, numbers[:8]))
    return some + (", …" if len(numbers) > 8 else "")


def _passed(node: Node) -> Iterator[Finding]:
    """A layer whose dL/dx is of quite another size than its dL/dy."""
    ratio = passed(node)
    if ratio is None or ratio == 0 or PASSED <= ratio <= 1 / PASSED:
        return
    if ratio < PASSED:
        said = f"of the gradient's norm {ratio:.3g} passes, less than {PASSED:g}; {_USUAL}"
        yield Finding("vanishing", place(node), said)
    else:
        most = 1 / PASSED
        said = f"{ratio:.3g} times the gradient's norm passes, more than {most:g}; {_USUAL}"
        yield Finding("exploding", place(node), said)


def passed(node: Node) -> float | None:
    """‖∂L/∂x‖ / ‖∂L/∂y‖ of a layer."""
    came, left = _norm(node.dy), _norm(node.dx)
    return left / came if came and left is not None and np.isfinite(left / came) else None


def _norm(tree) -> float | None:
    """The norm of all numbers of a gradient; None where there is none."""
    found = [leaf for _, leaf in named_leaves(tree) if leaf is not None] if tree is not None else []
    if not found:
        return None
    return float(np.sqrt(sum(float(np.sum(np.square(leaf, dtype="f8"))) for leaf in found)))


def _unmoved(node: Node) -> Iterator[Finding]:
    """Parameters whose gradient is exactly 0."""
    if node.grads is None or _norm(node.dy) is None:
        return
    for path, grad in named_leaves(node.grads):
        name = plain(node.names[path])
        if not grad.size:
            continue
        zero = grad == 0
        if zero.all():
            why = ", as no gradient arrives" if _norm(node.dy) == 0 else ""
            yield Finding(
                "zero", place(node), f"∂L/∂{name} is exactly 0{why}: nothing is learned", True
            )
        elif grad.ndim > 1:
            columns = zero.reshape(-1, grad.shape[-1]).all(axis=0)
            if columns.any():
                which = _listed(np.flatnonzero(columns))
                some = f"{columns.sum()} of {columns.size} columns ({which})"
                said = f"∂L/∂{name} is exactly 0 in {some}"
                yield Finding("zero", place(node), said)


def _from_end_to_end(nodes: list[Node]) -> Iterator[Finding]:
    """The first gradient on the way back against the last one."""
    layers = [node for node in nodes if node.call and _norm(node.dy) is not None]
    if len(layers) < 2:
        return
    last, first = layers[-1], layers[0]
    begin, end = _norm(last.dy), _norm(first.dy)
    if not begin or end is None or not np.isfinite(end / begin):
        return
    ratio = end / begin
    if end and REACHED <= ratio <= 1 / REACHED:
        return
    kind = "vanishing" if ratio < 1 else "exploding"
    bound = f"less than {REACHED:g}" if ratio < 1 else f"more than {1 / REACHED:g}"
    said = (
        f"‖∂L/∂{plain(first.name)}‖ is {ratio:.3g} of ‖∂L/∂{plain(last.name)}‖, {bound}: "
        "with one rate for both, one of these layers learns that much faster than the other"
    )
    yield Finding(kind, place(first), said, bad=ratio == 0)
