"""Pure functions to be compiled: training steps, and the evaluation of a batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..core.arrays import Array, Metric, Moments, Params, RowMask, State, namespace
from ..core.errors import described, expect, expect_flag, expect_function
from ..core.trees import leaves, tree_map, tree_sum
from ..layers import Layer
from ..layers.base import not_a_layer
from ..losses.base import BatchLoss, Divisor, Loss, batch_loss, takes_keyword
from ..metrics import batch_means
from ..ops import all_finite, scan, select
from ..optimizers import DynamicScale, Optimizer
from ..optimizers.base import (
    bind_divisor,
    expect_optimizer,
    expect_outermost,
    uses_divisor,
)

__all__ = [
    "Carry",
    "Terms",
    "evaluate_batch",
    "evaluate_with_outputs",
    "expect_task",
    "make_loop",
    "make_step",
    "make_step_with_terms",
]

Carry = tuple[Params, State, Moments]
# The arrays that join the loss of a batch with those of others: values and divisors of
# its terms (see `BatchLoss`). The values are () if there is one term, whose value is
# the loss itself. A divisor is () if its term is a sum, and may be a Python number.
Terms = tuple[tuple[Array, ...], tuple[Divisor, ...]]
_StepWithTerms = Callable[..., tuple[Carry, Array, Array, Terms, dict[str, Any]]]


def expect_task(model: Any, loss: Any, optimizer: Any) -> None:
    """Raise TypeError unless these are a layer, a loss and an optimizer."""
    if not isinstance(model, Layer):
        raise TypeError(
            f"expected a layer or a block as the model, got {not_a_layer(model)}"
        )
    expect_function("the loss", loss, "y, target", also="context")
    expect_optimizer(optimizer)
    expect_outermost(optimizer)


def make_step(
    model: Layer, loss: Loss, optimizer: Optimizer, *, keep_finite: bool = True
) -> Callable[..., tuple[Carry, Array, Array]]:
    """Return a pure training step for a model, a loss and an optimizer.

    step(carry, x, target, counts=None, weights=None, due=None, t=None, context=None)
    -> (carry, value, finite), where carry is (params, state, moments), value is the
    loss before the step, and finite tells whether value and gradients are finite. With
    `keep_finite`, a step that is not finite returns the carry unchanged.

    With the optimizer `DynamicScale`, a step whose gradients are not finite lowers the
    scale, and counts as finite unless the loss is not, or the scale cannot be lowered.

    counts: (batch,), 1 for an example and 0 for a padding row;
    weights: (batch,), how much each row counts in the loss, by default `counts`;
    due: a 0-d boolean, whether to take the step at all;
    t: a 0-d array, the number of steps before this one, for a loss that follows a
    schedule;
    context: a tree of arrays for a loss that takes it.

    The step closes over hyper-parameters only, so `backend.jit(make_step(...))`
    compiles all of it. An eager backend runs it unchanged.

    Raises
    ------
    TypeError
        If an optimizer around `Accumulate` does not pass a divisor on to it.
    """
    expect_task(model, loss, optimizer)
    expect_flag("keep_finite", keep_finite)
    with_terms = make_step_with_terms(model, loss, optimizer, keep_finite=keep_finite)

    def step(
        carry: Carry,
        x: Any,
        target: Any,
        counts: Any = None,
        weights: Any = None,
        due: Any = None,
        t: Any = None,
        context: Any = None,
    ) -> tuple[Carry, Array, Array]:
        carry, value, finite, *_ = with_terms(
            carry, x, target, counts, weights, due, t, context
        )
        return carry, value, finite

    return step


def make_step_with_terms(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    keep_finite: bool = True,
    metrics: Mapping[str, Metric] | None = None,
) -> _StepWithTerms:
    """Return a step like that of `make_step`, which also returns terms and metrics.

    It returns (carry, value, finite, terms, means). terms: see `Terms`; the mean over
    several batches is computed from them. means: by name, the `batch_means` of each of
    `metrics` for the outputs in training mode, before the step.
    """
    measured = {} if metrics is None else dict(metrics)
    needs_divisor = uses_divisor(optimizer)
    scaling = optimizer if isinstance(optimizer, DynamicScale) else None
    looks_at_gradients = keep_finite or scaling is not None

    def step(
        carry: Carry,
        x: Any,
        target: Any,
        counts: Any = None,
        weights: Any = None,
        due: Any = None,
        t: Any = None,
        context: Any = None,
    ) -> tuple[Carry, Array, Array, Terms, dict[str, Any]]:
        params, state, moments = carry
        train = True if counts is None else RowMask(counts)
        # a list, so that backward_params can take the only reference to the cache and
        # free it
        y, new_state, *cache = model.forward(params, state, x, train=train)
        weights = counts if weights is None else weights
        result = batch_loss(
            loss, y, target, weights, step=t, context=context, params=params
        )
        means = _metric_means(measured, y, target, counts, context)
        value = result.value
        update = optimizer.update
        term_dys: tuple[Any, ...] = ()
        expect(
            value.ndim == 0,
            "expected a loss of one number, got one of shape {}",
            value.shape,
        )
        if needs_divisor:
            term_dys, divisor = _by_divisor(result, optimizer)
            update = bind_divisor(optimizer, divisor)
        # Data-parallel devices would be joined here: each scales the dy of a term by
        # its own divisor over the sum of all divisors, then gradients are added. Means
        # of devices are never averaged.
        dys = term_dys or (result.dy,)
        if scaling is not None:
            dys = scaling.scaled(dys, moments)
        if not term_dys:
            # The cache is popped, so that a block frees each entry once it has been
            # used.
            grads = model.backward_params(params, cache.pop(), dys[0])
        else:
            grads = tuple([model.backward_params(params, cache[0], dy) for dy in dys])

        if result.dparams is not None:
            grads = _with_penalty(grads, result, is_split=bool(term_dys))

        def updated() -> Carry:
            new_params, new_moments = update(params, grads, moments)
            return new_params, new_state, new_moments

        arrays = leaves(grads) if looks_at_gradients else []
        finite = all_finite(value, *arrays)
        if due is None and not looks_at_gradients:
            return updated(), value, finite, _terms(result), means
        is_taken = finite if looks_at_gradients else due
        if due is not None:
            is_taken = namespace(due).logical_and(due, is_taken)
        skipped = carry
        if scaling is not None:
            lowered, finite = _after_overflow(scaling, moments, value, finite, due)
            skipped = params, state, lowered
        new_carry = select(is_taken, updated, skipped)
        return new_carry, value, finite, _terms(result), means

    return step


def _after_overflow(
    scaling: DynamicScale, moments: Moments, value: Array, finite: Array, due: Any
) -> tuple[Moments, Array]:
    """Return the moments after a step that is skipped, and `finite` as steps return it.

    finite: whether loss and gradients are finite. Gradients that are not may be with a
    lower scale of the loss, so the step counts as finite if the scale can be lowered.
    """
    xp = namespace(finite)
    overflowed = xp.logical_and(~finite, xp.isfinite(value))
    may_fall = xp.logical_and(overflowed, scaling.can_fall(moments))
    if due is not None:
        overflowed = xp.logical_and(overflowed, due)
    return scaling.lowered(moments, overflowed), xp.logical_or(finite, may_fall)


def _terms(result: BatchLoss) -> Terms:
    values = [term.value for term in result.terms]
    divisors = [() if term.divisor is None else term.divisor for term in result.terms]
    if result.penalty is not None:
        # its mean over batches: the same for all rows of a batch, also those of padding
        values.append(result.penalty)
        divisors.append(float(leaves(result.dy)[0].shape[0]))
    return (() if len(values) == 1 else tuple(values)), tuple(divisors)


def _with_penalty(grads: Any, result: BatchLoss, is_split: bool) -> Any:
    """Return the gradient of a loss and its penalty.

    is_split: whether `grads` is a tuple with the gradient of each term. The penalty is
    then added to that of a mean, as a sum over several batches would add it repeatedly.
    """
    if not is_split:
        return tree_sum(grads, result.dparams)
    is_mean = [term.divisor is not None for term in result.terms]
    index = is_mean.index(True) if any(is_mean) else 0
    return tuple(
        [
            tree_sum(tree, result.dparams) if i == index else tree
            for i, tree in enumerate(grads)
        ]
    )


def _by_divisor(result: BatchLoss, optimizer: Optimizer) -> tuple[tuple[Any, ...], Any]:
    """Return dy of each term and their divisors, or () and the divisor of the loss.

    Raises
    ------
    ValueError
        If terms have unequal divisors, and the optimizer does not keep a sum of
        gradients for each term.
    """
    if not result.unequal:
        return (), result.divisor
    message = (
        "{} accumulates gradients over several batches, but the losses of {} have "
        "divisors whose ratio changes from batch to batch, as with ignore_index, "
        "class_weights, reduction='sum' of some, or weights of some outputs: write "
        "Accumulate(..., terms={}) around all other optimizers, which keeps one sum of "
        "gradients for each of {} losses"
    )
    count = len(result.terms)
    keeps_all = getattr(optimizer, "terms", 1) == count
    expect(keeps_all, message, optimizer, result.unequal, count, count)
    dys = tuple([_only(result.dy, term.path) for term in result.terms])
    return dys, tuple([term.divisor for term in result.terms])


def _only(dy: Any, path: tuple[str, ...]) -> Any:
    """Return dy with 0 for all outputs except that at `path`, the names of dicts."""
    if not path:
        return dy
    selected, *rest = path
    result = {}
    for name, part in dy.items():
        if name == selected:
            result[name] = _only(part, tuple(rest))
        else:
            result[name] = tree_map(lambda leaf: namespace(leaf).zeros_like(leaf), part)
    return result


def make_loop(
    step: _StepWithTerms, keep_finite: bool
) -> Callable[..., tuple[Carry, Array, Array, Any, dict[str, Any]]]:
    """Return a function that takes several steps in a loop, which may be compiled.

    step: a result of `make_step_with_terms`.

    steps(carry, due, batches, ts=None, context=None) -> (carry, values, finites,
    terms, means), where batches are the arguments of `step` with a new first axis, and
    () stands for None. due: (steps,), which steps are to be taken: the first ones. ts:
    (steps,), the t of each; context is the same for all. With `keep_finite`, no step is
    taken after one that is not finite. values, finites and the arrays in terms and
    means have a first axis for the steps.
    """

    def steps(
        carry: Carry,
        due: Array,
        batches: Any,
        ts: Array | None = None,
        context: Any = None,
    ) -> tuple[Carry, Array, Array, Any, dict[str, Any]]:
        xp = namespace(due)

        def one_step(loop_carry: Any, inputs: Any) -> Any:
            carry, is_going = loop_carry
            due, batch, t = inputs
            due = xp.logical_and(is_going, due)
            carry, value, finite, terms, means = step(
                carry, *map(_or_none, batch), due=due, t=_or_none(t), context=context
            )
            is_going = xp.logical_and(is_going, finite) if keep_finite else is_going
            # A loop stacks arrays, so divisors that are Python numbers become arrays.
            terms = tree_map(lambda term: _array(term, value), terms)
            return (carry, is_going), (value, finite, terms, means)

        inputs = (due, batches, () if ts is None else ts)
        (carry, _), results = scan(one_step, (carry, due[0]), inputs)
        return (carry, *results)

    return steps


def _or_none(part: Any) -> Any:
    return None if isinstance(part, tuple) and not part else part


def _array(number: Any, like: Array) -> Array:
    """Return a number as a 0-d array like `like`, and an array unchanged."""
    if type(number) in (int, float):
        return namespace(like).full_like(like, number)
    return number


def evaluate_batch(
    model: Layer,
    loss: Loss,
    metrics: dict[str, Metric],
    params: Params,
    state: State,
    x: Any,
    target: Any,
    counts: Array | None = None,
    weights: Array | None = None,
    t: Array | None = None,
    context: Any = None,
) -> tuple[Array, Terms, list[Any]]:
    """Return the loss of a batch, its `Terms`, and each metric's `batch_means`.

    counts, weights, t and context are those of `make_step`. Metrics leave out padding
    rows, and ignore weights.
    """
    arguments = params, state, x, target, counts, weights, t, context
    value, terms, means, _ = evaluate_with_outputs(model, loss, metrics, *arguments)
    return value, terms, means


def evaluate_with_outputs(
    model: Layer,
    loss: Loss,
    metrics: dict[str, Metric],
    params: Params,
    state: State,
    x: Any,
    target: Any,
    counts: Array | None = None,
    weights: Array | None = None,
    t: Array | None = None,
    context: Any = None,
) -> tuple[Array, Terms, list[Any], Any]:
    """Return the results of `evaluate_batch`, and the outputs of the model."""
    y = model.predict(params, state, x)
    weights = counts if weights is None else weights
    result = batch_loss(
        loss, y, target, weights, step=t, context=context, params=params
    )
    means = _metric_means(metrics, y, target, counts, context)
    return result.value, _terms(result), list(means.values()), y


def _metric_means(
    metrics: Mapping[str, Metric],
    y: Any,
    target: Any,
    counts: Array | None,
    context: Any,
) -> dict[str, Any]:
    """Return each metric's `batch_means` by name, without the padding rows."""
    if not metrics:
        return {}
    share = None if counts is None else counts / namespace(counts).sum(counts)
    count = leaves(y)[0].shape[0]
    means = {}
    for name, metric in metrics.items():
        takes_context = context is not None and takes_keyword(metric, "context")
        keywords = {"context": context} if takes_context else {}
        values = metric(y, target, **keywords)
        _expect_values(name, values, count)
        means[name] = batch_means(metric, values, partial(_mean, share))
    return means


def _expect_values(name: str, values: Any, count: int) -> None:
    """Raise unless a metric returned one value for each of `count` examples."""
    expected = (
        f"expected the metric {name!r} to return an array of one value per example"
    )
    for leaf in leaves(values):
        shape = getattr(leaf, "shape", None)
        if shape is None:
            raise TypeError(
                f"{expected}, ({count}, ...), or a tree of them, got {described(leaf)}"
            )
        is_valid = len(shape) > 0 and shape[0] == count
        remedy = " (the mean over examples is taken for you)" if len(shape) == 0 else ""
        expect(
            is_valid, "{}, ({}, ...), got shape {}{}", expected, count, shape, remedy
        )


def _mean(share: Array | None, values: Array) -> Array:
    """Return the mean over axis 0, the examples, weighted by their `share`."""
    xp = namespace(values)
    if share is None:
        return xp.mean(values, axis=0)
    share = xp.reshape(share, (-1, *(1,) * (values.ndim - 1)))
    # `where` first: in a padding row 0 · inf would be NaN
    return xp.sum(xp.where(share != 0, values, 0.0) * share, axis=0)
