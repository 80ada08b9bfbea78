"""CTC, the loss of a sequence of labels whose positions in time are unknown.

Connectionist temporal classification (Graves et al., "Connectionist Temporal
Classification: Labelling Unsegmented Sequence Data with Recurrent Neural Networks",
2006): at each of T times a network gives probabilities q = softmax(y) of the classes,
one of which is the blank. A path has one class for each time. Removing first
repetitions and then blanks from a path gives the labels that it spells. p is the total
probability of all paths that spell the target, and the loss is -log p.

Forward-backward algorithm (sec. 4.1)
-------------------------------------
Let l be the n labels with a blank before, between and after them, which has S = 2n + 1
places. At each time a path that spells the labels stays at its place, moves to the
next, or skips a blank between two different labels. Let e_t(s) = q_t(l_s). α_t(s) is
the probability of all beginnings of paths that are at place s at time t, and β_t(s)
that of all continuations after time t:

    α_t(s) = e_t(s) Σ α_{t-1}(r)      r = s, s - 1, and s - 2 if a skip leads to s
    β_{t-1}(s) = Σ e_t(r) β_t(r)      r = s, s + 1, and s + 2 if a skip leads there

Before the first time, α is 1 at place 0 and 0 elsewhere. After the last time, β is 1 at
the last label and at the blank after it, and 0 elsewhere. So β_{-1}(0) = p, and
Σ_s α_t(s) β_t(s) = p at every time t. (In the paper β includes e_t, and products α β
are divided by it.) The code computes the logarithms of α and β.

Gradient (sec. 4.2)
-------------------
In p = Σ_s α_t(s) β_t(s), q_t occurs only in α_t(s), as the factor e_t(s) = q_t(l_s). So
∂p/∂q_t(k) = Σ α_t(s) β_t(s) / q_t(k) over the places s with l_s = k. The share of the
paths that are at s at time t is

    γ_t(s) = α_t(s) β_t(s) / Σ_r α_t(r) β_t(r)

and ∂(-log p)/∂log q_t(k) is minus the sum of γ_t(s) over those places. With
∂log q(k)/∂y(j) = [k = j] - q(j) and Σ_s γ_t(s) = 1,

    ∂L/∂y_t(k) = q_t(k) - Σ_{s: l_s = k} γ_t(s)
"""

import math
from typing import Any

from ..core.arrays import Array, Shape, device, first_true, namespace
from ..core.errors import expect, expect_flag, expect_integer
from ..ops import log_softmax, scan
from .base import loss_function, reduced

__all__ = ["ctc"]

# Stands for log 0. It is finite, so that it can be subtracted from itself, and far
# below any sum of logarithms of probabilities.
_LOG_ZERO = -1e30


def _target_by_name(target: Any) -> dict[str, Array]:
    """Return the labels and any lengths as a dict; raise unless they match."""
    tree = target if isinstance(target, dict) else {"labels": target}
    names = {"labels", "label_lengths", "input_lengths"}
    is_complete = "labels" in tree and tree.keys() <= names
    message = "expected labels in the target, and perhaps lengths, got {}"
    expect(is_complete, message, sorted(tree))
    labels = tree["labels"]
    namespace(*tree.values())
    for name, part in tree.items():
        xp = namespace(labels, part)
        if not xp.isdtype(part.dtype, "integral"):
            raise TypeError(f"expected integer {name}, got {part.dtype}")
        ndim = 2 if name == "labels" else 1
        matches = part.ndim == ndim and part.shape[0] == labels.shape[0]
        expected = "(batch, length)" if name == "labels" else (labels.shape[0],)
        expect(matches, "expected {} {}, got {}", name, expected, part.shape)
    return tree


def _check_sequences(target: Any, shape: Shape, *, blank: int = 0) -> None:
    """Raise unless labels are classes except the blank, and lengths are possible."""
    time, classes = shape
    tree = _target_by_name(target)
    labels = tree["labels"]
    xp = namespace(labels)
    wrong = (labels < 0) | (labels >= classes) | (labels == blank)
    longest = {"label_lengths": labels.shape[1], "input_lengths": time}
    for name, bound in longest.items():
        lengths = tree.get(name)
        if lengths is None:
            continue
        index = first_true((lengths < 0) | (lengths > bound))
        if index is not None:
            raise ValueError(
                f"expected {name} from 0 to {bound}, but {list(index)} is "
                f"{lengths[index]}"
            )
        if name == "label_lengths":
            wrong = wrong & (xp.arange(bound)[None, :] < lengths[:, None])
    index = first_true(wrong)
    if index is not None:
        raise ValueError(
            f"expected labels from 0 to {classes - 1} and none of them the blank, "
            f"{blank}, but label{list(index)} is {labels[index]}"
        )


@loss_function(check=_check_sequences)
def ctc(
    y: Array,
    target: Any,
    weights: Array | None = None,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of -log p, with p the probability of the labels.

    p is the total probability, under softmax(y), of all paths that spell the labels.

    y: (batch, time, classes) logits. PyTorch's `ctc_loss` takes log-probabilities, with
    time first. target: the labels, (batch, length) integers other than the `blank`, or
    a dict with "labels" and optionally "label_lengths" and "input_lengths", (batch,)
    integers. Only that many labels or times of each example count, and the values after
    them have no effect. Labels and lengths are not checked here, since `jit` hides
    their values.

    If an example has too few times for any path to spell its labels, its loss is +inf,
    or 0 with `zero_infinity`. Its slope is 0 in both cases; without `zero_infinity`,
    PyTorch's is NaN. The mean is over examples; PyTorch divides each loss by the number
    of labels first.

    Gradient
    --------
    ∂L/∂y_t(k) = q_t(k) - Σ_{s: l_s = k} γ_t(s), derived
    in `agnostic_nn.losses.sequence`.

    Raises
    ------
    TypeError
        If labels or lengths are not integers.
    ValueError
        If the blank is not a class, or the shapes do not match or are empty.
    """
    namespace(y)
    expect_integer("blank", blank, 0)
    expect_flag("zero_infinity", zero_infinity)
    is_sequence = y.ndim == 3 and y.shape[1] > 0
    expect(is_sequence, "expected logits (batch, time, classes), got {}", y.shape)
    batch, time, classes = y.shape
    expect(blank < classes, "expected a blank below {} classes, got {}", classes, blank)
    tree = _target_by_name(target)
    labels = tree["labels"]
    expect(labels.shape[0] == batch, "labels {} for logits {}", labels.shape, y.shape)
    xp = namespace(y, labels)
    times = xp.arange(time, device=device(labels))
    tree = {name: xp.astype(part, times.dtype) for name, part in tree.items()}
    alive = _within(times, tree.get("input_lengths"), batch)
    place_classes, skips, last = _places(tree, blank, y.dtype)

    log_q = log_softmax(y)
    shape = (batch, time, place_classes.shape[1])
    index = xp.broadcast_to(place_classes[:, None, :], shape)
    alive = xp.expand_dims(alive, axis=-1)
    log_e = xp.where(alive, xp.take_along_axis(log_q, index, axis=-1), 0.0)
    steps = (xp.permute_dims(log_e, (1, 0, 2)), xp.permute_dims(alive, (1, 0, 2)))

    # after the last time of an example, α and β are passed on unchanged
    def forward(alpha: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        log_e, alive = step
        moved = xp.logaddexp(alpha, _moved(alpha, 1))
        moved = log_e + xp.logaddexp(moved, _moved(alpha, 2) + skips)
        alpha = xp.where(alive, moved, alpha)
        return alpha, alpha

    def backward(beta: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        log_e, alive = step
        after = log_e + beta
        moved = xp.logaddexp(after, _moved(after, -1))
        moved = xp.logaddexp(moved, _moved(after + skips, -2))
        return xp.where(alive, moved, beta), beta

    log_one = xp.zeros_like(last[:, :1])
    first = xp.concat([log_one, xp.full_like(last[:, 1:], _LOG_ZERO)], axis=1)
    _, alpha = scan(forward, first, steps)
    before, beta = scan(backward, last, steps, reverse=True)
    log_p = before[:, 0]
    is_impossible = log_p < 0.5 * _LOG_ZERO
    values = xp.where(is_impossible, 0.0 if zero_infinity else math.inf, -log_p)

    # Σ_s α β equals p, but dividing by this sum cancels the rounding errors that it
    # shares with α β
    gamma = xp.permute_dims(xp.exp(log_softmax(alpha + beta)), (1, 0, 2))
    numbers = xp.arange(classes, device=device(labels))
    picks = xp.astype(place_classes[:, :, None] == numbers, y.dtype)
    counts = xp.logical_and(alive, ~is_impossible[:, None, None])
    slopes = xp.where(counts, xp.exp(log_q) - gamma @ picks, 0.0)
    return reduced(values, slopes, weights, reduction)


def _within(numbers: Array, lengths: Array | None, batch: int) -> Array:
    """Return which `numbers` are below each length, (batch, numbers); all if None."""
    xp = namespace(numbers)
    if lengths is None:
        count = numbers.shape[0]
        place = device(numbers)
        lengths = xp.full((batch,), count, dtype=numbers.dtype, device=place)
    return numbers[None, :] < lengths[:, None]


def _places(
    tree: dict[str, Array], blank: int, dtype: Any
) -> tuple[Array, Array, Array]:
    """Return three arrays (batch, places), the first with the class l_s of each place.

    The second array is log 1 for places that can be reached by skipping a blank, and
    log 0 for others. The third is log 1 for places where paths end, and log 0
    elsewhere.
    """
    labels = tree["labels"]
    batch, length = labels.shape
    xp = namespace(labels)
    numbers = xp.arange(length, device=device(labels))
    is_label = _within(numbers, tree.get("label_lengths"), batch)
    labels = xp.where(is_label, labels, blank)
    blanks = xp.full_like(labels, blank)
    pairs = xp.reshape(xp.stack([blanks, labels], axis=-1), (batch, 2 * length))
    blank_column = xp.full((batch, 1), blank, dtype=labels.dtype, device=device(labels))
    classes = xp.concat([pairs, blank_column], axis=1)
    shifted = xp.concat([blank_column, blank_column, classes], axis=1)
    two_before = shifted[:, : 2 * length + 1]
    log_one = xp.zeros(classes.shape, dtype=dtype, device=device(labels))
    skips = xp.where((classes != blank) & (classes != two_before), log_one, _LOG_ZERO)
    ends = 2 * xp.sum(xp.astype(is_label, labels.dtype), axis=1, keepdims=True)
    places = xp.arange(2 * length + 1, device=device(labels))[None, :]
    last = xp.where((places == ends) | (places == ends - 1), log_one, _LOG_ZERO)
    return classes, skips, last


def _moved(x: Array, places: int) -> Array:
    """Return x (batch, S), moved along the last axis and filled with log 0."""
    xp = namespace(x)
    count = x.shape[-1]
    overlap = max(count - abs(places), 0)
    fill = xp.full_like(x[:, overlap:], _LOG_ZERO)
    if places > 0:
        return xp.concat([fill, x[:, :overlap]], axis=-1)
    return xp.concat([x[:, count - overlap :], fill], axis=-1)
