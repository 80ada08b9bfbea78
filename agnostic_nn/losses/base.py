"""What all losses share: how losses of examples become one, and what is refused beforehand.

A loss is a function `(y, target, weights=None, *, …, reduction="mean")` to `(value, dy)`:
what to report, and the gradient to send back, nested, shaped and typed like y. It states
the `values` of examples and their `slopes` by y; `reduced` does the rest. Options are plain
Python values, and `functools.partial` sets them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import signature
from typing import Any, NamedTuple, TypeVar, cast

from ..core.arrays import Array, Shape, device, first_true, namespace, size
from ..core.errors import expect, expect_choice, expect_integer
from ..core.trees import leaves, tree_map
from ..ops import is_narrow, narrowed, widened

__all__ = [
    "BatchLoss",
    "Divisor",
    "Loss",
    "Term",
    "at_label",
    "batch_loss",
    "check_labels",
    "check_numbers",
    "check_of",
    "check_signs",
    "describe_loss",
    "expect_alike",
    "expect_single",
    "expect_target",
    "loss_function",
    "metrics_of",
    "nested_like",
    "no_context",
    "one_hot",
    "reduced",
    "split_outputs",
    "takes_keyword",
]

Loss = Callable[..., tuple[Array, Any]]
F = TypeVar("F", bound=Callable[..., Any])
Divisor = Any  # a Python number, a 0-d array, or None where nothing is divided


class Term(NamedTuple):
    """One part of a loss: its value, what that was divided by, and the output it depends on.

    divisor: None of a sum. path: names of nested dicts of outputs; () for all outputs.
    """

    value: Array
    divisor: Divisor
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchLoss:
    """A loss of one batch, and what joins it to that of other batches.

        mean of all batches: Σ divisor · value / Σ divisor        sum of all batches: Σ value

    and alike for gradients: what is averaged is sums, never means. A divisor depends on
    target, weights and shapes only. It is 0 where nothing counts; then value and dy are the
    sum and its gradient, as if divided by 1, and enter into sums over batches like that.

    value, dy
        What the loss returns: the 0-d value, and its gradient by y.
    terms
        A `Term` for each part of the loss, which `value` is the sum of: one, or one for each
        output of `Losses`.
    divisor
        That of the whole loss, by which gradients of batches are joined.
    ratio
        `divisor` by the sum of the weights, or by the number of examples if there are none,
        where shapes alone fix it, else None.
    unequal
        Why there is no one divisor for all terms; "" if there is.
    """

    value: Array
    dy: Any
    terms: tuple[Term, ...]
    divisor: Divisor
    ratio: float | None = None
    unequal: str = ""


class _WithDivisor(str):
    """A reduction for which `reduced` returns a `BatchLoss`."""


def batch_loss(
    loss: Loss,
    y: Any,
    target: Any,
    weights: Array | None = None,
    *,
    step: Array | None = None,
    context: Any = None,
) -> BatchLoss:
    """The loss of a batch with what its mean was divided by.

    step, context: passed on as keywords to a loss that `takes` them.

    Losses of this library say it, with options set by `partial` too. A custom loss returns a
    mean alone, which is taken to be over examples: its divisor is the sum of the weights, or
    without weights the number of examples. Where that is not so, as if some labels are
    ignored, its attribute `divisor`, a function (y, target, weights), returns the 0-d array
    that it divides by, or None if it is a sum.
    """
    function, options = loss, {}
    if isinstance(loss, partial) and not loss.args:
        function, options = loss.func, loss.keywords
    now = {"step": step, "context": context}
    now = {name: v for name, v in now.items() if v is not None and takes_keyword(loss, name)}
    detailed = getattr(function, "with_divisor", None)
    # a loss of each example, which no step takes, says so itself
    if detailed is not None and options.get("reduction") != "none":
        return detailed(y, target, weights, **options, **now)
    value, dy = loss(y, target, **now) if weights is None else loss(y, target, weights, **now)
    divides = getattr(function, "divisor", None)
    if callable(divides):
        divisor, ratio = _bind_options(divides, options)(y, target, weights), None
    elif weights is None:
        divisor, ratio = float(leaves(y)[0].shape[0]), 1.0
    else:
        divisor, ratio = namespace(weights).sum(weights), 1.0
    return BatchLoss(value, dy, (Term(value, divisor),), divisor, ratio)


def reduced(
    values: Array,
    slopes: Any,
    weights: Array | None,
    reduction: str,
    counts: Array | None = None,
) -> Any:
    """A loss and its dy, from the `values` v of examples and their `slopes` by y.

    With w the weights, shaped like leading axes of v, and c the counts, shaped like v, each
    1 unless given:

        mean: Σ w v / Σ w c        sum: Σ w v        none: w v

    A mean with Σ w c = 0 is divided by 1: it is Σ w v, which is 0 unless examples cost
    something that do not count, such as smoothed labels of a class that weighs 0.

    dy is the derivative, of the sum where nothing is reduced: each slope times its example's
    share, w / Σ w c or w. An example of weight 0 is left out even if its loss is infinite.
    Σ w c is the divisor of a mean; `batch_loss` is how it is handed out.

    slopes: a tree of arrays that begin with the axes of v.

    Raises
    ------
    ValueError
        If the reduction is another, there is nothing to take the mean of, or the weights
        are of another shape or dtype.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    xp = namespace(values)
    mean = reduction == "mean"
    some = size(values) > 0 or not mean
    expect(some, "a mean needs examples, got losses of shape {}", values.shape)
    divisor: Divisor = None
    ratio = None
    if weights is None and counts is None:
        value = values if reduction == "none" else xp.sum(values)
        if mean:
            divisor, ratio = float(size(values)), size(values) / _rows(values)
            share = 1.0 / divisor
            value, slopes = value * share, tree_map(lambda slope: slope * share, slopes)
    else:
        share = xp.ones_like(values) if weights is None else _spread(weights, values)
        if mean and counts is None:
            ratio = size(values) / size(share)
            divisor = xp.sum(share) * ratio
        elif mean:
            divisor = xp.sum(share * counts)
        if mean:
            share = share / xp.where(divisor > 0, divisor, 1.0)
        values = xp.where(share != 0, values, 0.0) * share
        value = values if reduction == "none" else xp.sum(values)
        slopes = tree_map(lambda slope: _scaled(slope, share), slopes)
    if not isinstance(reduction, _WithDivisor):
        return value, slopes
    return BatchLoss(value, slopes, (Term(value, divisor),), divisor, ratio)


def _rows(values):
    return values.shape[0] if values.ndim else 1


def _spread(weights, values):
    """The weights with axes of length 1 for those of the values that they lack."""
    xp = namespace(values, weights)
    lead = values.shape[: weights.ndim]
    expect(weights.shape == lead, "expected weights {}, got {}", lead, weights.shape)
    expect(weights.dtype == values.dtype, "y is {}, weights {}", values.dtype, weights.dtype)
    shape = (*lead, *(1,) * (values.ndim - len(lead)))
    return xp.reshape(weights, shape)


def _scaled(slope, share):
    xp = namespace(slope)
    share = xp.reshape(share, (*share.shape, *(1,) * (slope.ndim - share.ndim)))
    return xp.where(share != 0, slope, 0.0) * share


def loss_function(check: Callable[..., None], **metrics: Callable) -> Callable[[F], F]:
    """Return a decorator that gives a loss what `batch_loss` and a `Trainer` look for.

    The decorated function has the signature of the original and these attributes:

    check
        check(target, shape) validates a target on the host, for outputs of `shape` without the
        batch axis. Options of the loss that the check needs are its keyword arguments.
    metrics
        The metrics to report by default, by name: functions (y, target). Options of the loss
        that a metric needs are its keyword arguments.
    with_divisor
        The same function, returning a `BatchLoss`. The loss must end in `reduced`.

    Outputs in float16 or bfloat16 are computed in float32: see `_in_float32`.
    """

    def decorate(function: F) -> F:
        loss: Any = _in_float32(function)

        def with_divisor(
            y: Any, target: Any, weights: Any = None, *, reduction: str = "mean", **options: Any
        ) -> BatchLoss:
            return loss(y, target, weights, reduction=_WithDivisor(reduction), **options)

        loss.check = check
        loss.metrics = metrics
        loss.with_divisor = with_divisor
        return loss

    return decorate


def _in_float32(loss: F) -> F:
    """Return `loss` that computes outputs in float16 or bfloat16 in float32.

    Squares, exponentials and sums over examples would overflow or lose their digits in a narrow
    dtype. The value and the divisor are then in float32, dy in the dtype of y.
    """

    @wraps(loss)
    def computed(y: Any, *arguments: Any, **options: Any) -> Any:
        first: Any = next(iter(leaves(y)), None) if isinstance(y, dict | tuple) else y
        if not hasattr(first, "dtype") or not is_narrow(first):
            return loss(y, *arguments, **options)

        def wide(leaf: Any) -> Any:
            if not _is_real(leaf):
                return leaf
            expect(leaf.dtype == first.dtype, "y is {}, but got {}", first.dtype, leaf.dtype)
            return widened(leaf)

        arrays = [tree_map(wide, part) for part in arguments]
        for name in ("target", "weights"):
            if name in options:
                options[name] = tree_map(wide, options[name])
        result = loss(tree_map(wide, y), *arrays, **options)
        if isinstance(result, BatchLoss):
            return replace(result, dy=_narrow(result.dy, first))
        value, dy = result
        return value, _narrow(dy, first)

    return cast(F, computed)


def _is_real(leaf: Any) -> bool:
    """Return whether a leaf is an array of real floating-point numbers."""
    if not hasattr(leaf, "dtype"):
        return False
    return bool(namespace(leaf).isdtype(leaf.dtype, "real floating"))


def _narrow(dy: Any, like: Array) -> Any:
    return tree_map(lambda leaf: narrowed(leaf, like), dy)


def takes_keyword(function: Callable, name: str) -> bool:
    """Return whether a loss or metric takes `name`, "context" or "step", from a training step.

    A custom one takes the context if it declares a parameter of that name that no `partial`
    has set. `Losses` and `Weighted` take what their losses do, and the number of the step if a
    weight follows a schedule; their method `takes_keyword` says so.
    """
    if isinstance(function, partial):
        return name not in function.keywords and takes_keyword(function.func, name)
    declared = getattr(function, "takes_keyword", None)
    # the class `Losses` itself is not a loss: whoever calls it refuses it
    if callable(declared) and not isinstance(function, type):
        return declared(name)
    if name != "context":
        return False
    try:
        return name in signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions do not tell
        return False


def no_context(loss: Loss, what: str) -> str:
    """Return the message of `what`, which passes no context to a loss that takes one."""
    return (
        f"{what} passes no context, and {describe_loss(loss)} takes one: give it a fixed one, with "
        "functools.partial(loss, context=...)"
    )


def check_of(loss: Loss) -> Callable | None:
    """Return the target check of a loss, with options that `partial` has set, or None."""
    if not isinstance(loss, partial):
        return getattr(loss, "check", None)
    check = check_of(loss.func)
    return None if check is None else _bind_options(check, loss.keywords)


def metrics_of(loss: Loss) -> dict[str, Callable]:
    """Return the metrics of a loss by name, with options that `partial` has set."""
    if not isinstance(loss, partial):
        return getattr(loss, "metrics", {})
    return {name: _bind_options(one, loss.keywords) for name, one in metrics_of(loss.func).items()}


def describe_loss(loss: Loss) -> str:
    """A loss as it is written."""
    if not isinstance(loss, partial):
        return getattr(loss, "__name__", repr(loss))
    options = [f"{name}={value!r}" for name, value in loss.keywords.items()]
    return f"partial({', '.join([describe_loss(loss.func), *map(repr, loss.args), *options])})"


def _bind_options(function, options):
    known = getattr(function, "__kwdefaults__", None) or {}
    told = {name: value for name, value in options.items() if name in known}
    return partial(function, **told) if told else function


# --- what a loss refuses, by shapes and dtypes -----------------------------------------


def expect_alike(y: Array, target: Array) -> None:
    """Raise unless y and target are of one library, shape and dtype."""
    namespace(y, target)
    expect(y.shape == target.shape, "y is {} but target is {}", y.shape, target.shape)
    expect(y.dtype == target.dtype, "y is {} but target is {}", y.dtype, target.dtype)


def split_outputs(y: Any, names: tuple[str, ...]) -> list[Array]:
    """The arrays of y, which is a dict of these names or a tuple in their order."""
    if isinstance(y, dict):
        expect(y.keys() == set(names), "expected outputs {}, got {}", sorted(names), sorted(y))
        found = [y[name] for name in names]
    else:
        expect(isinstance(y, tuple), "expected outputs {}, as a dict or a tuple", names)
        expect(len(y) == len(names), "expected outputs {}, got {} of them", names, len(y))
        found = list(y)
    first = found[0]
    for name, part in zip(names, found, strict=True):
        namespace(first, part)
        alike = part.shape == first.shape and part.dtype == first.dtype
        shown = (names[0], first.dtype, first.shape, name, part.dtype, part.shape)
        expect(alike, "{} is {} {}, but {} is {} {}", *shown)
    return found


def nested_like(y: Any, names: tuple[str, ...], *arrays: Array) -> Any:
    """Arrays in the order of `names`, nested like y."""
    return dict(zip(names, arrays, strict=True)) if isinstance(y, dict) else arrays


def at_label(labels: Array, like: Array) -> Array:
    """Whether each place along the last axis of `like` is that of the label; shaped like it.

    A label that is no class, as what is ignored may be, is nowhere.
    """
    xp = namespace(like, labels)
    fits = labels.shape == like.shape[:-1]
    expect(fits, "labels {} for logits {}", labels.shape, like.shape)
    numbers = xp.arange(like.shape[-1], device=device(labels))
    # small integers might not hold the number of each class
    return xp.astype(xp.expand_dims(labels, axis=-1), numbers.dtype) == numbers


def one_hot(labels: Array, like: Array) -> Array:
    """1 where `at_label` is true and 0 elsewhere, in the dtype of `like`."""
    return namespace(like).astype(at_label(labels, like), like.dtype)


# --- what a loss refuses on the host, by values ----------------------------------------


def check_numbers(target: Array, shape: Shape) -> None:
    """Refuse targets that are not finite real numbers, one for each output."""
    expect_single(target, shape)
    xp = namespace(target)
    if not xp.isdtype(target.dtype, "real floating"):
        raise TypeError(f"expected real floating targets, got {target.dtype}")
    expect_target(target, shape)
    bad = first_true(~xp.isfinite(target))
    if bad is not None:
        raise ValueError(f"expected finite targets, but target{list(bad)} is {target[bad]}")


def check_signs(target: Array, shape: Shape) -> None:
    """Refuse targets that are not -1 or 1, one for each output."""
    check_numbers(target, shape)
    bad = first_true((target != 1) & (target != -1))
    if bad is not None:
        raise ValueError(f"expected targets of -1 or 1, but target{list(bad)} is {target[bad]}")


def check_labels(target: Array, shape: Shape, *, ignore_index: int | None = None) -> None:
    """Refuse targets that are not integers from 0 to classes - 1, or `ignore_index`."""
    expect_single(target, shape)
    xp = namespace(target)
    if not xp.isdtype(target.dtype, "integral"):
        raise TypeError(f"expected integer labels, got {target.dtype}")
    expect_target(target, shape[:-1])
    wrong = (target < 0) | (target >= shape[-1])
    if ignore_index is not None:
        expect_integer("ignore_index", ignore_index)
        wrong = wrong & (target != ignore_index)
    bad = first_true(wrong)
    if bad is not None:
        raise ValueError(
            f"expected labels from 0 to {shape[-1] - 1}, but label{list(bad)} is {target[bad]}"
        )


def expect_single(target: Any, shape: Any) -> None:
    """Raise unless both are of one output; several have a loss each, in `Losses`."""
    several = isinstance(shape, dict) or any(isinstance(part, tuple) for part in shape)
    expect(not several, "expected one output, got {}: Losses has a loss for each", shape)
    kind = type(target).__name__
    expect(kind not in ("dict", "tuple"), "expected targets as one array, got a {}", kind)


def expect_target(target: Array, shape: Shape) -> None:
    """Raise unless the target is shaped (batch, *shape)."""
    fits = tuple(target.shape[1:]) == tuple(shape)
    wanted = ", ".join(["batch", *map(str, shape)])
    expect(fits, f"expected targets ({wanted}), got {tuple(target.shape)}")
