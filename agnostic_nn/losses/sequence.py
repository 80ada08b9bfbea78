"""Sequence: the loss of a sequence of labels whose times nobody knows.

Connectionist temporal classification (Graves et al., "Connectionist Temporal Classification:
Labelling Unsegmented Sequence Data with Recurrent Neural Networks", 2006): at each of T times
a network gives probabilities q = softmax(y) of the classes, one of them the blank. A path
takes one class a time; leaving out first repeats and then blanks, it spells labels. p is the
probability of all paths that spell the wanted ones, and the loss is -log p.

Forward, backward (sec. 4.1)
----------------------------
Write the n labels with a blank before, between and after: l, of S = 2n + 1 places. A path that
spells them stays at its place, goes to the next, or skips a blank between two labels that
differ. With e_t(s) = q_t(l_s), the probability of all its beginnings that are at s at time t,
and of all that may follow after t, are

    α_t(s) = e_t(s) Σ α_{t-1}(r)                r = s, s - 1, and s - 2 where s may be skipped to
    β_{t-1}(s) = Σ e_t(r) β_t(r)                r = s, s + 1, and s + 2 where that may be skipped to

Before the first time α is 1 at place 0; after the last β is 1 at the last label and the blank
behind it. So β_{-1}(0) = p, and Σ_s α_t(s) β_t(s) = p at any time t. (In the paper β counts
e_t too, which is then divided by.) All of it is done with logarithms.

Gradient (sec. 4.2)
-------------------
In p = Σ_s α_t(s) β_t(s), q_t is in α_t(s) alone, once, as the factor e_t(s) = q_t(l_s). So
∂p/∂q_t(k) = Σ α_t(s) β_t(s) / q_t(k) over the places s with l_s = k. With the share of the
paths that are at s at time t

    γ_t(s) = α_t(s) β_t(s) / Σ_r α_t(r) β_t(r)

∂(-log p)/∂log q_t(k) is minus the sum of γ_t(s) over those places. By ∂log q(k)/∂y(j) =
[k = j] - q(j) and Σ_s γ_t(s) = 1

    ∂L/∂y_t(k) = q_t(k) - Σ_{s: l_s = k} γ_t(s)
"""

import math
from typing import Any

from ..core.arrays import Array, Shape, device, first_true, namespace
from ..core.errors import expect, expect_flag, expect_integer
from ..ops import log_softmax, scan
from .base import loss_function, reduced

__all__ = ["ctc"]

_NEVER = -1e30  # log 0 that can be subtracted from itself; no sum of logarithms gets there


def _named(target):
    """The labels and lengths in a target by name, all of them integers."""
    tree = target if isinstance(target, dict) else {"labels": target}
    known = ("labels", "label_lengths", "input_lengths")
    fits = "labels" in tree and tree.keys() <= set(known)
    expect(fits, "expected labels in the target, and perhaps lengths, got {}", sorted(tree))
    labels = tree["labels"]
    namespace(*tree.values())
    for name, part in tree.items():
        xp = namespace(labels, part)
        if not xp.isdtype(part.dtype, "integral"):
            raise TypeError(f"expected integer {name}, got {part.dtype}")
        fits = part.ndim == (2 if name == "labels" else 1) and part.shape[0] == labels.shape[0]
        wanted = "(batch, length)" if name == "labels" else (labels.shape[0],)
        expect(fits, "expected {} {}, got {}", name, wanted, part.shape)
    return tree


def _check_labellings(target: Any, shape: Shape, *, blank: int = 0) -> None:
    time, classes = shape
    tree = _named(target)
    labels = tree["labels"]
    xp = namespace(labels)
    wrong = (labels < 0) | (labels >= classes) | (labels == blank)
    for name, most in {"label_lengths": labels.shape[1], "input_lengths": time}.items():
        lengths = tree.get(name)
        if lengths is None:
            continue
        bad = first_true((lengths < 0) | (lengths > most))
        if bad is not None:
            raise ValueError(f"expected {name} from 0 to {most}, but {list(bad)} is {lengths[bad]}")
        if name == "label_lengths":
            wrong = wrong & (xp.arange(most)[None, :] < lengths[:, None])
    bad = first_true(wrong)
    if bad is not None:
        raise ValueError(
            f"expected labels from 0 to {classes - 1} and none of them the blank, {blank}, "
            f"but label{list(bad)} is {labels[bad]}"
        )


@loss_function(check=_check_labellings)
def ctc(
    y: Array,
    target: Any,
    weights: Array | None = None,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of -log of the probability that softmax(y) spells the labels.

    y: (batch, time, classes) logits; target: {"labels": (batch, length)} integer, none of them
    the `blank`, or the labels alone. With "label_lengths" or "input_lengths", (batch,) integer,
    in target, only the first labels or times of each example count; what is behind them may
    be anything. Labels and lengths are trusted: `jit` hides their values.

    Labels that no path can spell, since the times are too few, cost +inf, or 0 with
    `zero_infinity`; in either case their slope is 0, where PyTorch's is NaN without. And the
    mean is that over examples, where PyTorch divides each loss by the number of labels first.

    Raises
    ------
    TypeError
        If labels or lengths are no integers.
    ValueError
        If the blank is no class, or the shapes do not fit, or hold nothing.
    """
    namespace(y)
    expect_integer("blank", blank, 0)
    expect_flag("zero_infinity", zero_infinity)
    fits = y.ndim == 3 and y.shape[1] > 0
    expect(fits, "expected logits (batch, time, classes), got {}", y.shape)
    batch, time, classes = y.shape
    expect(blank < classes, "expected a blank below {} classes, got {}", classes, blank)
    tree = _named(target)
    labels = tree["labels"]
    expect(labels.shape[0] == batch, "labels {} for logits {}", labels.shape, y.shape)
    xp = namespace(y, labels)
    times = xp.arange(time, device=device(labels))
    tree = {name: xp.astype(part, times.dtype) for name, part in tree.items()}
    alive = _within(times, tree.get("input_lengths"), batch)
    spelled, skips, last = _places(tree, blank, y.dtype)

    log_q = log_softmax(y)
    index = xp.broadcast_to(spelled[:, None, :], (batch, time, spelled.shape[1]))
    alive = xp.expand_dims(alive, axis=-1)
    log_e = xp.where(alive, xp.take_along_axis(log_q, index, axis=-1), 0.0)
    steps = (xp.permute_dims(log_e, (1, 0, 2)), xp.permute_dims(alive, (1, 0, 2)))

    def forward(alpha, step):
        log_e, alive = step
        moved = xp.logaddexp(alpha, _moved(alpha, 1))
        moved = log_e + xp.logaddexp(moved, _moved(alpha, 2) + skips)
        alpha = xp.where(alive, moved, alpha)
        return alpha, alpha

    def backward(beta, step):
        log_e, alive = step
        after = log_e + beta
        moved = xp.logaddexp(after, _moved(after, -1))
        moved = xp.logaddexp(moved, _moved(after + skips, -2))
        return xp.where(alive, moved, beta), beta

    first = xp.concat([xp.zeros_like(last[:, :1]), xp.full_like(last[:, 1:], _NEVER)], axis=1)
    _, alpha = scan(forward, first, steps)
    before, beta = scan(backward, last, steps, reverse=True)
    log_p = before[:, 0]
    never = log_p < 0.5 * _NEVER
    values = xp.where(never, 0.0 if zero_infinity else math.inf, -log_p)

    # Σ_s α β is p, but here its own rounding cancels
    gamma = xp.permute_dims(xp.exp(log_softmax(alpha + beta)), (1, 0, 2))
    numbers = xp.arange(classes, device=device(labels))
    picks = xp.astype(spelled[:, :, None] == numbers, y.dtype)
    counts = xp.logical_and(alive, ~never[:, None, None])
    slopes = xp.where(counts, xp.exp(log_q) - gamma @ picks, 0.0)
    return reduced(values, slopes, weights, reduction)


def _within(numbers, lengths, batch):
    """Which `numbers` are below each length, (batch, numbers); all where there are no lengths."""
    xp = namespace(numbers)
    if lengths is None:
        lengths = xp.full((batch,), numbers.shape[0], dtype=numbers.dtype, device=device(numbers))
    return numbers[None, :] < lengths[:, None]


def _places(tree, blank, dtype):
    """The class at each place, log 1 where it may be skipped to, and log 1 where paths end."""
    labels = tree["labels"]
    batch, length = labels.shape
    xp = namespace(labels)
    numbers = xp.arange(length, device=device(labels))
    real = _within(numbers, tree.get("label_lengths"), batch)
    labels = xp.where(real, labels, blank)
    blanks = xp.full_like(labels, blank)
    pairs = xp.reshape(xp.stack([blanks, labels], axis=-1), (batch, 2 * length))
    one = xp.full((batch, 1), blank, dtype=labels.dtype, device=device(labels))
    spelled = xp.concat([pairs, one], axis=1)
    behind = xp.concat([one, one, spelled], axis=1)[:, : 2 * length + 1]
    certain = xp.zeros(spelled.shape, dtype=dtype, device=device(labels))
    skips = xp.where((spelled != blank) & (spelled != behind), certain, _NEVER)
    ends = 2 * xp.sum(xp.astype(real, labels.dtype), axis=1, keepdims=True)
    places = xp.arange(2 * length + 1, device=device(labels))[None, :]
    last = xp.where((places == ends) | (places == ends - 1), certain, _NEVER)
    return spelled, skips, last


def _moved(x, places):
    """x with what was at s at s + places of the last axis, and log 0 where nothing was."""
    xp = namespace(x)
    count = x.shape[-1]
    kept = max(count - abs(places), 0)
    none = xp.full_like(x[:, kept:], _NEVER)
    parts = [none, x[:, :kept]] if places > 0 else [x[:, count - kept :], none]
    return xp.concat(parts, axis=-1)
