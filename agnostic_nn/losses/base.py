"""The loss contract, reduction over examples, and checks of targets.

A loss is a function `(y, target, weights=None, *, …, reduction="mean")` that returns
`(value, dy)`; dy is the gradient, with the nesting, shapes and dtype of y. A loss of
this library computes the `values` of examples and their `slopes`, the derivatives by y,
and calls `reduced`. Options are plain Python values, which `functools.partial` can set.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import Parameter, signature
from typing import Any, NamedTuple, TypeVar, cast

from ..core.arrays import Array, Metric, Shape, device, first_true, namespace, size
from ..core.errors import (
    described,
    expect,
    expect_choice,
    expect_integer,
    expect_number,
)
from ..core.trees import leaves, tree_map
from ..ops import is_narrow, narrowed, widened

__all__ = [
    "BatchLoss",
    "Divisor",
    "Loss",
    "Term",
    "along_classes",
    "at_label",
    "batch_loss",
    "between_outputs",
    "check_labels",
    "check_numbers",
    "check_of",
    "check_probabilities",
    "check_signs",
    "describe_loss",
    "expect_alike",
    "expect_context",
    "expect_single",
    "expect_target",
    "expect_target_slopes",
    "is_sum",
    "loss_function",
    "metrics_of",
    "negated",
    "nested_like",
    "no_context",
    "one_hot",
    "probabilities_of",
    "reduced",
    "reduced_jointly",
    "split_outputs",
    "takes_keyword",
    "takes_weights",
]

Loss = Callable[..., tuple[Array, Any]]
"""The type of losses: functions `(y, target, weights=None)` to (value, dy)."""
F = TypeVar("F", bound=Callable[..., Any])
Divisor = Any  # a Python number, a 0-d array, or None where nothing is divided


class Term(NamedTuple):
    """One term of a loss: its value, its divisor, and the output that it depends on.

    divisor: None for a sum. path: keys into nested dicts of outputs; ()
    for all outputs.
    """

    value: Array
    divisor: Divisor
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch, with the divisor that combines several batches.

        mean over batches    Σ divisor · value / Σ divisor
        sum over batches     Σ value

    Gradients are combined in the same way. A divisor depends on target, weights and
    shapes only. It is 0 if no example counts; value and dy are then sums, and a mean
    over batches adds them to its numerator without a factor.

    value, dy
        The results of the loss: its value, a 0-d array, and its gradient by y.
    terms
        One `Term`, or one for each output of `Losses`; `value` is their sum.
    divisor
        The divisor of the whole loss, with which gradients of batches are combined.
    ratio
        `divisor` / (sum of the weights, or number of examples without weights), if it
        depends on shapes alone; otherwise None.
    unequal
        The names of the terms that have no common divisor; "" if there is one.
    penalty, dparams
        The penalty of the parameters that `Penalized` has added to `value`, and its
        gradient by the parameters; None without one. A penalty is not one of `terms`:
        it does not depend on the examples, so its mean over batches counts each
        example once.
    """

    value: Array
    dy: Any
    terms: tuple[Term, ...]
    divisor: Divisor
    ratio: float | None = None
    unequal: str = ""
    penalty: Array | None = None
    dparams: Any = None


class _WithDivisor(str):
    """The name of a reduction that makes `reduced` return a `BatchLoss`."""


def batch_loss(
    loss: Loss,
    y: Any,
    target: Any,
    weights: Array | None = None,
    *,
    step: Array | None = None,
    context: Any = None,
    params: Any = None,
) -> BatchLoss:
    """Compute a loss and the divisor of its mean.

    step, context, params: passed on as keyword arguments to a loss that takes them
    (see `takes_keyword`).

    Losses of this library return their divisor, also if `partial` has set options. A
    custom loss returns only a mean, which is assumed to be over examples: the divisor
    is the sum of the weights, or the number of examples if there are none. If a loss
    divides by something else, such as the number of labels that are not ignored, its
    attribute `divisor` is a function (y, target, weights) that returns it as a 0-d
    array, or None for a sum.
    """
    function: Any = loss
    options: dict[str, Any] = {}
    if isinstance(loss, partial) and not loss.args:
        function = loss.func
        options = loss.keywords
    keywords = {
        name: value
        for name, value in (("step", step), ("context", context), ("params", params))
        if value is not None and takes_keyword(loss, name)
    }
    with_divisor = getattr(function, "with_divisor", None)
    # reduction="none" has no divisor. The loss is called as usual, and the training
    # step, which needs a single number, raises for its shape.
    if with_divisor is not None and options.get("reduction") != "none":
        result: BatchLoss = with_divisor(y, target, weights, **options, **keywords)
        return result
    if weights is None:  # a custom loss need not have the parameter
        value, dy = loss(y, target, **keywords)
    else:
        value, dy = loss(y, target, weights, **keywords)
    custom_divisor = getattr(function, "divisor", None)
    divisor: Divisor
    ratio: float | None = 1.0
    if callable(custom_divisor):
        divisor = _bind_options(custom_divisor, options)(y, target, weights)
        ratio = None
    elif weights is None:
        divisor = float(leaves(y)[0].shape[0])
    else:
        divisor = namespace(weights).sum(weights)
    return BatchLoss(value, dy, (Term(value, divisor),), divisor, ratio)


def reduced(
    values: Array,
    slopes: Any,
    weights: Array | None,
    reduction: str,
    counts: Array | None = None,
) -> tuple[Array, Any]:
    """Return a loss and its dy from the `values` v of examples and their `slopes` by y.

        mean: Σ w v / Σ w c        sum: Σ w v        none: w v

    w are the weights, with the shape of the leading axes of v, and c the `counts`, with
    the shape of v; both are 1 by default. If Σ w c = 0, the mean is divided by 1. It is
    then Σ w v, which is 0 unless examples that do not count have a loss, such as
    smoothed labels of a class of weight 0.

    Weights may be negative, such as the advantages of a policy gradient. That is meant
    for sums: the Σ w of a mean may then be 0 by chance, where the mean is not defined,
    or so close to 0 that it means little. A `Trainer` accepts them for a loss with
    reduction="sum" only (see `is_sum`).

    dy is the derivative of the loss, or of the sum of all values if nothing is reduced:
    each slope times w / Σ w c, or times w. An example of weight 0 has no effect even if
    its loss is infinite. Σ w c is the divisor of the mean, which `batch_loss` returns.

    slopes: a tree of arrays whose leading axes are those of v.

    Raises
    ------
    ValueError
        If the reduction is unknown, a mean has no values, or the weights have
        another shape or dtype.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    xp = namespace(values)
    mean = reduction == "mean"
    is_defined = size(values) > 0 or not mean
    expect(is_defined, "a mean needs examples, got losses of shape {}", values.shape)
    divisor: Divisor = None
    ratio = None
    if weights is None and counts is None:
        value = values if reduction == "none" else xp.sum(values)
        if mean:
            divisor = float(size(values))
            ratio = size(values) / _row_count(values)
            share = 1.0 / divisor
            value = value * share
            slopes = tree_map(lambda slope: slope * share, slopes)
    else:
        has_weights = weights is not None
        share = _with_axes_of(values, weights) if has_weights else xp.ones_like(values)
        if mean and counts is None:
            ratio = size(values) / size(share)
            divisor = xp.sum(share) * ratio
        elif mean:
            divisor = xp.sum(share * counts)
        if mean:
            share = share / xp.where(divisor != 0, divisor, 1.0)
        # `where`, because 0 times an infinite value would be NaN
        values = xp.where(share != 0, values, 0.0) * share
        value = values if reduction == "none" else xp.sum(values)
        slopes = tree_map(lambda slope: _scaled(slope, share), slopes)
    if not isinstance(reduction, _WithDivisor):
        return value, slopes
    # only `batch_loss` passes a `_WithDivisor`, and it expects a `BatchLoss`
    terms = (Term(value, divisor),)
    return BatchLoss(value, slopes, terms, divisor, ratio)  # type: ignore[return-value]


def reduced_jointly(
    values: Array,
    backward: Callable[[Array], Any],
    weights: Array | None,
    reduction: str,
) -> tuple[Array, Any]:
    """Return a loss and its dy, if the loss of an example depends on other examples.

    `reduced` multiplies the slopes of each example by its share of the loss. That is
    not possible here, because the outputs of an example have slopes in the losses of
    several. So backward(dvalues) returns dy from the derivative of the loss by each of
    the `values`, which is that share. The other arguments are those of `reduced`.
    """
    ones = namespace(values).ones_like(values)
    result: Any = reduced(values, ones, weights, reduction)
    if isinstance(result, BatchLoss):
        # as in `reduced`, only `batch_loss` expects a `BatchLoss`
        return replace(result, dy=backward(result.dy))  # type: ignore[return-value]
    value, dvalues = result
    return value, backward(dvalues)


_BETWEEN = ("output", "target")


def expect_target_slopes(loss: Loss) -> None:
    """Raise unless a loss has derivatives by its target, also with its options."""
    function = loss.func if isinstance(loss, partial) else loss
    options = loss.keywords if isinstance(loss, partial) else {}
    slopes: Any = getattr(function, "target_slopes", None)
    is_valid = callable(slopes) and not getattr(loss, "args", ())
    message = (
        "expected a loss with a derivative by its target, such as mean_squared_error "
        "or kl_divergence, got {}"
    )
    expect(is_valid, message, describe_loss(loss))
    taken = signature(slopes).parameters.values()
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in taken)
    names = {"reduction", *(parameter.name for parameter in taken)}
    refused = sorted(options.keys() - names)
    message = "the derivative of {} by its target has no option {}"
    expect(takes_all or not refused, message, describe_loss(function), refused)
    expect(options.get("reduction") != "none", "expected a mean or a sum, got 'none'")


def between_outputs(loss: Loss, y: Any, weights: Array | None) -> BatchLoss:
    """Return the loss of two outputs, of which the second is the target, and dy."""
    options = dict(loss.keywords) if isinstance(loss, partial) else {}
    function: Any = loss.func if isinstance(loss, partial) else loss
    reduction = options.pop("reduction", "mean")

    def compute(y: Any, weights: Array | None) -> Any:
        output, target = split_outputs(y, _BETWEEN)
        values, slopes = function(output, target, reduction="none", **options)
        target_slopes = function.target_slopes(output, target, slopes, **options)
        both = nested_like(y, _BETWEEN, slopes, target_slopes)
        return reduced(values, both, weights, _WithDivisor(reduction))

    result: BatchLoss = _in_float32(compute)(y, weights)
    return result


def negated(y: Array, target: Array, slopes: Array, **options: Any) -> Array:
    """Return -∂L/∂y, the derivative by t of a function of y - t."""
    return -slopes


def _row_count(values: Array) -> int:
    return values.shape[0] if values.ndim else 1


def _with_axes_of(values: Array, weights: Array) -> Array:
    """Return the weights with axes of length 1 for the trailing axes that they lack."""
    xp = namespace(values, weights)
    lead = values.shape[: weights.ndim]
    expect(weights.shape == lead, "expected weights {}, got {}", lead, weights.shape)
    is_valid = weights.dtype == values.dtype
    expect(is_valid, "y is {}, weights {}", values.dtype, weights.dtype)
    shape = (*lead, *(1,) * (values.ndim - len(lead)))
    return xp.reshape(weights, shape)


def _scaled(slope: Array, share: Array) -> Array:
    xp = namespace(slope)
    share = xp.reshape(share, (*share.shape, *(1,) * (slope.ndim - share.ndim)))
    return xp.where(share != 0, slope, 0.0) * share


def loss_function(
    check: Callable[..., None],
    probabilities: Callable[[Array], Array] | None = None,
    is_joint: bool = False,
    target_slopes: Callable[..., Array] | None = None,
    **metrics: Metric,
) -> Callable[[F], F]:
    """Return a decorator that gives a loss what `batch_loss` and a `Trainer` look for.

    The decorated function has the signature of the original and these attributes:

    check
        check(target, shape) validates a target on the host, for outputs of `shape`
        without the batch axis. Options of the loss that the check needs are its
        keyword arguments.
    probabilities
        The function from outputs to the probabilities that the loss makes of them, or
        None. Options of the loss that it needs are its keyword arguments.
    is_joint
        Whether the loss of an example depends on the outputs of other examples.
    target_slopes
        target_slopes(y, target, slopes) returns the derivatives of the values by the
        target, for `BetweenOutputs`; slopes are those by y. Options of the loss that it
        needs are its keyword arguments. None if there are none.
    metrics
        The metrics to report by default, by name: functions (y, target). Options of the
        loss that a metric needs are its keyword arguments.
    with_divisor
        The same function, returning a `BatchLoss`. The loss must end in `reduced` or
        `reduced_jointly`.

    Outputs in float16 or bfloat16 are computed in float32: see `_in_float32`.
    """

    def decorate(function: F) -> F:
        loss: Any = _in_float32(function)

        def with_divisor(
            y: Any,
            target: Any,
            weights: Any = None,
            *,
            reduction: str = "mean",
            **options: Any,
        ) -> BatchLoss:
            options["reduction"] = _WithDivisor(reduction)
            result: BatchLoss = loss(y, target, weights, **options)
            return result

        loss.check = check
        loss.probabilities = probabilities
        loss.is_joint = is_joint
        loss.metrics = metrics
        loss.target_slopes = target_slopes
        loss.with_divisor = with_divisor
        return cast(F, loss)

    return decorate


def _in_float32(loss: F) -> F:
    """Return `loss` with float32 arithmetic for outputs in float16 or bfloat16.

    Squares, exponentials and sums over examples would overflow or lose precision in
    these dtypes. The value and the divisor are in float32, and dy has the dtype of y.
    """

    @wraps(loss)
    def computed(y: Any, *arguments: Any, **options: Any) -> Any:
        first: Any = next(iter(leaves(y)), None) if isinstance(y, dict | tuple) else y
        if not hasattr(first, "dtype") or not is_narrow(first):
            return loss(y, *arguments, **options)

        def wide(leaf: Any) -> Any:
            if not _is_real(leaf):
                return leaf
            is_valid = leaf.dtype == first.dtype
            expect(is_valid, "y is {}, but got {}", first.dtype, leaf.dtype)
            return widened(leaf)

        arrays = [tree_map(wide, argument) for argument in arguments]
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


def takes_keyword(function: Callable[..., Any], name: str) -> bool:
    """Return whether a training step passes the keyword `name` to a loss or a metric.

    name: "context", "step" or "params". A custom function takes the context if it has a
    parameter of that name that no `partial` has set. `Losses` and `Weighted` take the
    keywords of their losses, and "step" if a weight follows a schedule; `Penalized`
    takes "params". They have a method `takes_keyword`.
    """
    if isinstance(function, partial):
        return name not in function.keywords and takes_keyword(function.func, name)
    method = getattr(function, "takes_keyword", None)
    # The class `Losses` itself, passed by mistake, has only an unbound method.
    if callable(method) and not isinstance(function, type):
        return bool(method(name))
    if name != "context":
        return False
    try:
        return name in signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def takes_weights(loss: Loss) -> bool:
    """Return whether a loss has a third parameter, the weights of examples."""
    context = {"context": None} if takes_keyword(loss, "context") else {}
    try:
        signature(loss).bind(None, None, None, **context)
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return True
    return True


def no_context(loss: Loss, tool: str) -> str:
    """Return the error of a `tool` that cannot pass a context to `loss`."""
    return (
        f"{tool} passes no context, and {describe_loss(loss)} takes one: give it a "
        "fixed one, with functools.partial(loss, context=...)"
    )


def expect_context(loss: Loss, context: Any) -> None:
    """Raise unless there is a context of arrays exactly if `loss` takes one.

    The context is that of a tool that trains on several backends from the same data.
    """
    if callable(context):
        raise TypeError(
            "expected the context as a tree of arrays, the same for all steps, got "
            f"{described(context)}"
        )
    is_taken = takes_keyword(loss, "context")
    name = describe_loss(loss)
    is_missing = is_taken and context is None
    expect(
        not is_missing,
        "{} takes a context: pass context=..., or set it with functools.partial",
        name,
    )
    is_unused = not is_taken and context is not None
    expect(not is_unused, "there is a context, but {} takes none", name)


def check_of(loss: Loss) -> Callable[..., None] | None:
    """Return the target check of a loss, with options set by `partial`, or None."""
    if not isinstance(loss, partial):
        return getattr(loss, "check", None)
    check = check_of(loss.func)
    return None if check is None else _bind_options(check, loss.keywords)


def metrics_of(loss: Loss) -> dict[str, Metric]:
    """Return the metrics of a loss by name, with options that `partial` has set."""
    if not isinstance(loss, partial):
        return getattr(loss, "metrics", {})
    return {
        name: _bind_options(metric, loss.keywords)
        for name, metric in metrics_of(loss.func).items()
    }


def is_sum(loss: Loss) -> bool:
    """Return whether a loss of this library is a sum, by reduction="sum".

    It does not divide by the weights, so they may be negative.
    """
    if isinstance(loss, partial):
        return loss.keywords.get("reduction") == "sum" and hasattr(
            loss.func, "with_divisor"
        )
    return getattr(loss, "is_sum", False) is True


def probabilities_of(loss: Loss) -> Callable[[Array], Array] | None:
    """Return the function from outputs to probabilities of a loss, or None.

    Options that `partial` has set are keyword arguments of it.
    """
    if not isinstance(loss, partial):
        return getattr(loss, "probabilities", None)
    function = probabilities_of(loss.func)
    return None if function is None else _bind_options(function, loss.keywords)


def describe_loss(loss: Loss) -> str:
    """Return the source form of a loss, such as "partial(huber, delta=0.5)"."""
    if not isinstance(loss, partial):
        return getattr(loss, "__name__", repr(loss))
    options = [f"{name}={value!r}" for name, value in loss.keywords.items()]
    arguments = [describe_loss(loss.func), *map(repr, loss.args), *options]
    return f"partial({', '.join(arguments)})"


def _bind_options(
    function: Callable[..., Any], options: dict[str, Any]
) -> Callable[..., Any]:
    """Return `function` with those options bound that are keyword arguments of it."""
    keywords = getattr(function, "__kwdefaults__", None) or {}
    bound = {name: value for name, value in options.items() if name in keywords}
    return partial(function, **bound) if bound else function


# --- shapes and dtypes of outputs and targets -----------------------------------------


def expect_alike(y: Array, target: Array) -> None:
    """Raise unless y and target have the same library, shape and dtype."""
    namespace(y, target)
    expect(y.shape == target.shape, "y is {} but target is {}", y.shape, target.shape)
    expect(y.dtype == target.dtype, "y is {} but target is {}", y.dtype, target.dtype)


def split_outputs(y: Any, names: tuple[str, ...]) -> list[Array]:
    """Return the arrays of y, a dict with these names or a tuple, in their order.

    Raises
    ------
    ValueError
        If y has other entries, or if they differ in shape or dtype.
    """
    if isinstance(y, dict):
        is_valid = y.keys() == set(names)
        expect(is_valid, "expected outputs {}, got {}", sorted(names), sorted(y))
        outputs = [y[name] for name in names]
    else:
        expect(isinstance(y, tuple), "expected outputs {}, as a dict or a tuple", names)
        is_valid = len(y) == len(names)
        expect(is_valid, "expected outputs {}, got {} of them", names, len(y))
        outputs = list(y)
    first = outputs[0]
    for name, output in zip(names, outputs, strict=True):
        namespace(first, output)
        is_alike = output.shape == first.shape and output.dtype == first.dtype
        details = (names[0], first.dtype, first.shape, name, output.dtype, output.shape)
        expect(is_alike, "{} is {} {}, but {} is {} {}", *details)
    return outputs


def nested_like(y: Any, names: tuple[str, ...], *arrays: Array) -> Any:
    """Return a dict or tuple, as y is, of arrays in the order of `names`."""
    return dict(zip(names, arrays, strict=True)) if isinstance(y, dict) else arrays


def at_label(labels: Array, like: Array) -> Array:
    """Return a boolean array with the shape of `like`, true at the class of each label.

    The last axis of `like` is that of the classes. Labels outside the classes, such as
    `ignore_index`, match nothing.
    """
    xp = namespace(like, labels)
    fits = labels.shape == like.shape[:-1]
    expect(fits, "labels {} for logits {}", labels.shape, like.shape)
    numbers = xp.arange(like.shape[-1], device=device(labels))
    # small integers might not hold the number of each class
    return xp.astype(xp.expand_dims(labels, axis=-1), numbers.dtype) == numbers


def one_hot(labels: Array, like: Array) -> Array:
    """Return 1 where `at_label` is true and 0 elsewhere, in the dtype of `like`."""
    return namespace(like).astype(at_label(labels, like), like.dtype)


def along_classes(name: str, numbers: Any, y: Array) -> Array:
    """Return numbers, one for each entry of the last axis of y, as an array like y."""
    if not isinstance(numbers, tuple | list):
        kind = type(numbers).__name__
        raise TypeError(
            f"expected {name} as a tuple of numbers, got {kind}: pass tuple(w.tolist())"
        )
    for number in numbers:
        expect_number(f"each of {name}", number, low=0.0)
    count = len(numbers)
    expect(y.shape[-1:] == (count,), "{} {} for logits {}", count, name, y.shape)
    return namespace(y).asarray(numbers, dtype=y.dtype, device=device(y))


# --- checks of targets on the host ----------------------------------------------------


def check_numbers(target: Array, shape: Shape) -> None:
    """Raise unless targets are finite real numbers, one for each output."""
    expect_single(target, shape)
    xp = namespace(target)
    if not xp.isdtype(target.dtype, "real floating"):
        raise TypeError(f"expected real floating targets, got {target.dtype}")
    expect_target(target, shape)
    index = first_true(~xp.isfinite(target))
    if index is not None:
        raise ValueError(
            f"expected finite targets, but target{list(index)} is {target[index]}"
        )


def check_probabilities(target: Array, shape: Shape) -> None:
    """Raise unless targets are in [0, 1]."""
    check_numbers(target, shape)
    index = first_true((target < 0) | (target > 1))
    if index is not None:
        raise ValueError(
            f"expected targets in [0, 1], but target{list(index)} is {target[index]}"
        )


def check_signs(target: Array, shape: Shape) -> None:
    """Raise unless targets are -1 or 1, one for each output."""
    check_numbers(target, shape)
    index = first_true((target != 1) & (target != -1))
    if index is not None:
        raise ValueError(
            f"expected targets of -1 or 1, but target{list(index)} is {target[index]}"
        )


def check_labels(
    target: Array, shape: Shape, *, ignore_index: int | None = None
) -> None:
    """Raise unless targets are integers from 0 to classes - 1, or `ignore_index`."""
    expect_single(target, shape)
    xp = namespace(target)
    if not xp.isdtype(target.dtype, "integral"):
        raise TypeError(f"expected integer labels, got {target.dtype}")
    expect_target(target, shape[:-1])
    wrong = (target < 0) | (target >= shape[-1])
    if ignore_index is not None:
        expect_integer("ignore_index", ignore_index)
        wrong = wrong & (target != ignore_index)
    index = first_true(wrong)
    if index is not None:
        raise ValueError(
            f"expected labels from 0 to {shape[-1] - 1}, but label{list(index)} is "
            f"{target[index]}"
        )


def expect_single(target: Any, shape: Any) -> None:
    """Raise unless the outputs, of `shape`, and the target are one array each."""
    is_dict = isinstance(shape, dict)
    is_single = not is_dict and not any(isinstance(entry, tuple) for entry in shape)
    expect(is_single, "expected one output, got {}: Losses has a loss for each", shape)
    kind = type(target).__name__
    is_single = kind not in ("dict", "tuple")
    expect(is_single, "expected targets as one array, got a {}", kind)


def expect_target(target: Array, shape: Shape) -> None:
    """Raise unless the target has the shape (batch, *shape)."""
    fits = tuple(target.shape[1:]) == tuple(shape)
    expected = ", ".join(["batch", *map(str, shape)])
    expect(fits, f"expected targets ({expected}), got {tuple(target.shape)}")
