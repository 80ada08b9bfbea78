"""Findings: what slows down or stops learning in a batch, and where it begins.

The bounds are rules of thumb. Each finding reports the figure that it is based on.

- A slope below 1e-3 reduces a gradient to less than a thousandth. The unit itself and
  the layers before it then hardly learn. A layer counts as saturated if half of its
  slopes are that small.
- Weights initialized by He, Glorot or LeCun keep the norm of a gradient within a factor
  of a few from layer to layer. A layer that passes on less than 1/100 of the norm, or
  more than 100 times the norm, is far outside. A few such layers in a row lead to zero
  or infinity.
- From the end of the network to its beginning the bounds are 1e-4 and 1e4. With a
  single learning rate, some layers then learn ten thousand times as fast as others.
- A unit is dead in a batch if its slope is 0 in every row. In a batch of one row that
  is weak evidence.
- Only exact zeros are counted: a sum that rounds to almost 0 is not one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.trees import named_leaves
from ...layers import (
    Elementwise,
    HardShrink,
    HardSigmoid,
    HardSwish,
    HardTanh,
    ReLU,
    SoftShrink,
    Threshold,
)
from .flow import Node
from .latex import plain
from .nonfinite import NonFinite
from .numbers import format_share

__all__ = [
    "NOT_FINITE",
    "Finding",
    "findings",
    "flat_share",
    "gradient_ratio",
]

NOT_FINITE = "not finite"  # the kind of the finding that reports show at their top
FLAT_SLOPE = 1e-3  # a smaller slope counts as flat
SATURATED_SHARE = 0.5  # a layer is saturated if this share of its slopes is flat
# Bounds on ‖∂L/∂x‖ / ‖∂L/∂y‖; the upper bound is the inverse.
MIN_LAYER_RATIO = 1e-2  # of one layer
MIN_NETWORK_RATIO = 1e-4  # from the last layer to the first
# Activations whose slope can be exactly 0.
EXACT_ZEROS = (
    *(ReLU, HardTanh, HardSigmoid, HardSwish, HardShrink, SoftShrink, Threshold),
)
_USUAL = "the usual initializations keep it within a factor of a few"


@dataclass(frozen=True)
class Finding:
    """A sentence about a layer.

    kind: a short label. bad: whether it stops learning, rather than slowing it down.
    """

    kind: str
    path: str
    text: str
    bad: bool = False


def flat_share(node: Node) -> float | None:
    """Return the share of an activation's slopes that are smaller than 1e-3 in size.

    Return None for other layers and for ReLU, where a slope of 0 is normal.
    """
    layer = node.call.layer if node.call else None
    if not isinstance(layer, Elementwise) or isinstance(layer, ReLU):
        return None
    slopes = np.asarray(layer.slope(node.x))
    return float(np.mean(np.abs(slopes) < FLAT_SLOPE)) if slopes.size else None


def findings(nodes: list[Node], first: NonFinite | None) -> tuple[Finding, ...]:
    """Return all findings, those that stop learning first.

    first: the first value that is not finite, which becomes a finding.
    """
    results = []
    if first is not None:
        results.append(Finding(NOT_FINITE, first.layer, first.sentence, bad=True))
    for node in nodes:
        if node.call:
            results += _of_layer(node)
    results += _from_end_to_end(nodes)
    return tuple(sorted(results, key=lambda finding: not finding.bad))


def _of_layer(node: Node) -> Iterator[Finding]:
    yield from _dead(node)
    flat = flat_share(node)
    layer = node.call.layer if node.call else None
    if (
        flat is not None
        and flat >= SATURATED_SHARE
        and not isinstance(layer, EXACT_ZEROS)
    ):
        text = f"{format_share(flat)} of its slopes are below {FLAT_SLOPE:g}"
        text += ", so almost no gradient passes"
        yield Finding("saturated", node.label, text, bad=flat == 1.0)
    yield from _large_or_small_ratio(node)
    yield from _zero_gradients(node)


def _dead(node: Node) -> Iterator[Finding]:
    layer = node.call.layer if node.call else None
    if not isinstance(layer, EXACT_ZEROS) or node.x.ndim < 2 or not node.x.size:
        return
    flat = np.asarray(layer.slope(node.x)) == 0
    units = np.all(flat.reshape(-1, flat.shape[-1]), axis=0)
    if not units.any():
        return
    rows = flat.size // flat.shape[-1]
    indices = _index_list(np.flatnonzero(units))
    count = f"{units.sum()} of {units.size} units"
    if units.size == 1:
        count = "its only unit"
    text = f"{count} dead in this batch ({indices}): no gradient passes"
    if rows == 1:
        text = text.replace("dead in this batch", "inactive in this batch of one row")
    else:
        text += f" in any of {rows} rows"
    yield Finding("dead", node.label, text, bad=bool(units.all()))


def _index_list(indices: np.ndarray) -> str:
    some = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
    return f"index {some}" if len(indices) == 1 else f"indices {some}"


def _large_or_small_ratio(node: Node) -> Iterator[Finding]:
    """Yield a finding if the norms of dL/dx and dL/dy differ by a factor above 100."""
    ratio = gradient_ratio(node)
    if ratio is None or ratio == 0 or MIN_LAYER_RATIO <= ratio <= 1 / MIN_LAYER_RATIO:
        return
    if ratio < MIN_LAYER_RATIO:
        kind = "vanishing"
        bound = f"less than {MIN_LAYER_RATIO:g}"
    else:
        kind = "exploding"
        bound = f"more than {1 / MIN_LAYER_RATIO:g}"
    text = f"passes on {ratio:.3g} times the gradient's norm, {bound}; {_USUAL}"
    yield Finding(kind, node.label, text)


def gradient_ratio(node: Node) -> float | None:
    """Return ‖∂L/∂x‖ / ‖∂L/∂y‖ of a layer, or None if it is undefined."""
    dy_norm = _norm(node.dy)
    dx_norm = _norm(node.dx)
    if not dy_norm or dx_norm is None or not np.isfinite(dx_norm / dy_norm):
        return None
    return dx_norm / dy_norm


def _norm(tree: Any) -> float | None:
    """Return the norm over all leaves of a gradient, or None if it has no leaves."""
    if tree is None:
        return None
    arrays = [leaf for _, leaf in named_leaves(tree) if leaf is not None]
    if not arrays:
        return None
    return float(np.sqrt(sum(float(np.sum(np.square(a, dtype="f8"))) for a in arrays)))


def _zero_gradients(node: Node) -> Iterator[Finding]:
    """Yield a finding for gradients of parameters that are 0, wholly or in columns."""
    if node.grads is None or _norm(node.dy) is None:
        return
    for path, grad in named_leaves(node.grads):
        name = plain(node.names[path])
        if not grad.size:
            continue
        zero = grad == 0
        if zero.all():
            reason = ", because no gradient arrives" if _norm(node.dy) == 0 else ""
            text = f"∂L/∂{name} is exactly 0{reason}: {name} does not learn"
            yield Finding("zero", node.label, text, bad=True)
        elif grad.ndim > 1:
            columns = zero.reshape(-1, grad.shape[-1]).all(axis=0)
            if columns.any():
                indices = _index_list(np.flatnonzero(columns))
                count = f"{columns.sum()} of {columns.size} columns ({indices})"
                text = f"∂L/∂{name} is exactly 0 in {count}"
                yield Finding("zero", node.label, text)


def _from_end_to_end(nodes: list[Node]) -> Iterator[Finding]:
    """Yield a finding if the gradients of the first and last layer differ too much."""
    layers = [node for node in nodes if node.call and _norm(node.dy) is not None]
    if len(layers) < 2:
        return
    first = layers[0]
    last = layers[-1]
    first_norm = _norm(first.dy)
    last_norm = _norm(last.dy)
    if not last_norm or first_norm is None or not np.isfinite(first_norm / last_norm):
        return
    ratio = first_norm / last_norm
    if first_norm and MIN_NETWORK_RATIO <= ratio <= 1 / MIN_NETWORK_RATIO:
        return
    if ratio < 1:
        kind = "vanishing"
        bound = f"less than {MIN_NETWORK_RATIO:g}"
    else:
        kind = "exploding"
        bound = f"more than {1 / MIN_NETWORK_RATIO:g}"
    text = (
        f"‖∂L/∂{plain(first.name)}‖ is {ratio:.3g} times ‖∂L/∂{plain(last.name)}‖, "
        f"{bound}: with a single learning rate, one of these layers learns that much "
        "faster"
    )
    yield Finding(kind, first.label, text, bad=ratio == 0)
