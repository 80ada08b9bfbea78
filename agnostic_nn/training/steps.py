"""Steps: a model, a loss and an optimizer as pure functions, to be compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.arrays import Array, Moments, Params, RowMask, State, namespace
from ..core.errors import described, expect, expect_flag, expect_function
from ..core.trees import leaves, tree_map
from ..layers import Layer
from ..layers.base import not_a_layer
from ..losses.base import BatchLoss, Loss, batch_loss, takes_keyword
from ..metrics import batch_means
from ..ops import all_finite, scan, select
from ..optimizers import Optimizer
from ..optimizers.base import bind_divisor, expect_optimizer, uses_divisor

__all__ = ["Carry", "Terms", "expect_task", "in_turn", "judge", "make_step", "make_step_with_terms"]

Carry = tuple[Params, State, Moments]
# What joins the loss of a batch to that of others, as arrays: values and divisors of its
# parts (see `BatchLoss`). No values stand for one part, the loss itself; () for a divisor
# says that it is a sum. A divisor may be a Python number.
Terms = tuple[tuple, tuple]


def expect_task(model: Any, loss: Any, optimizer: Any) -> None:
    """Raise TypeError unless these are a layer, a loss and an optimizer."""
    if not isinstance(model, Layer):
        raise TypeError(f"expected a layer or a block as the model, got {not_a_layer(model)}")
    expect_function("the loss", loss, "y, target", also="context")
    expect_optimizer(optimizer)


def make_step(
    model: Layer, loss: Loss, optimizer: Optimizer, *, keep_finite: bool = True
) -> Callable:
    """Tie a model, a loss and an optimizer into one pure training step.

    step(carry, x, target, counts=None, weights=None) -> (carry, value, finite), where
    carry is (params, state, moments), value the loss before the step, and finite whether
    it and the gradients were. With `keep_finite` a step that is not leaves carry as it was.
    counts: (batch,), 1 for an example and 0 for a row that only fills the batch up;
    weights: (batch,), how much each row counts in the loss, by default as `counts` say;
    due: a 0-d boolean, whether the step is to be taken at all;
    t: a 0-d array, how many steps were taken before, for a loss whose weight follows a schedule;
    context: a tree of arrays for a loss that takes it.

    The step closes over hyper-parameters only, so `backend.jit(make_step(...))`
    compiles all of it, and an eager backend runs it as it stands.

    Raises
    ------
    TypeError
        If an optimizer around `Accumulate` does not pass a divisor on to it.
    """
    expect_task(model, loss, optimizer)
    expect_flag("keep_finite", keep_finite)
    with_terms = make_step_with_terms(model, loss, optimizer, keep_finite=keep_finite)

    def step(carry, x, target, counts=None, weights=None, due=None, t=None, context=None):
        carry, value, finite, _ = with_terms(carry, x, target, counts, weights, due, t, context)
        return carry, value, finite

    return step


def make_step_with_terms(
    model: Layer, loss: Loss, optimizer: Optimizer, *, keep_finite: bool = True
) -> Callable:
    """A step as `make_step` makes it, which returns (carry, value, finite, terms).

    terms: what a mean over several batches is taken of, `Terms`.
    """
    joins = uses_divisor(optimizer)

    def step(carry, x, target, counts=None, weights=None, due=None, t=None, context=None):
        params, state, moments = carry
        train = True if counts is None else RowMask(counts)
        y, after, *cache = model.forward(params, state, x, train=train)
        weights = counts if weights is None else weights
        found = batch_loss(loss, y, target, weights, step=t, context=context)
        value, update, dys = found.value, optimizer.update, ()
        expect(value.ndim == 0, "expected a loss of one number, got one of shape {}", value.shape)
        if joins:
            dys, divisor = _by_divisor(found, optimizer)
            update = bind_divisor(optimizer, divisor)
        # Devices that share a batch would meet here: each term's dy times its own divisor by the
        # sum of all; then gradients are added. Means of devices are never averaged.
        # popped: a block lets go of each entry once it is spent, if nobody else holds it
        if not dys:
            grads = model.backward_params(params, cache.pop(), found.dy)
        else:
            grads = tuple([model.backward_params(params, cache[0], dy) for dy in dys])

        def taken():
            new, kept = update(params, grads, moments)
            return new, after, kept

        finite = all_finite(value, *leaves(grads)) if keep_finite else all_finite(value)
        if due is None and not keep_finite:
            return taken(), value, finite, _terms(found)
        takes = finite if keep_finite else due
        takes = takes if due is None else namespace(due).logical_and(due, takes)
        return select(takes, taken, carry), value, finite, _terms(found)

    return step


def _terms(found: BatchLoss) -> Terms:
    divisors = tuple([() if term.divisor is None else term.divisor for term in found.terms])
    if len(found.terms) == 1:
        return (), divisors
    return tuple([term.value for term in found.terms]), divisors


def _by_divisor(found: BatchLoss, optimizer: Optimizer) -> tuple[tuple, Any]:
    """Return dy of each term and the divisors of all, or () and the divisor of the whole loss.

    Raises ValueError if terms need divisors of their own and the optimizer does not keep apart
    as many.
    """
    if not found.unequal:
        return (), found.divisor
    message = (
        "{} joins the gradients of several batches, but the losses of {} divide by what does "
        "not stay in one ratio from batch to batch, as with ignore_index, class_weights, "
        "reduction='sum' of some, or weights of some outputs: write Accumulate(..., terms={}), "
        "around all other optimizers, which keeps one sum of gradients for each of {} losses"
    )
    count = len(found.terms)
    expect(getattr(optimizer, "terms", 1) == count, message, optimizer, found.unequal, count, count)
    dys = tuple([_only(found.dy, term.path) for term in found.terms])
    return dys, tuple([term.divisor for term in found.terms])


def _only(dy: Any, path: tuple[str, ...]) -> Any:
    """Return dy with 0 for all outputs but that at `path`, the names in nested dicts."""
    if not path:
        return dy
    first, rest = path[0], path[1:]
    return {
        name: _only(part, rest)
        if name == first
        else tree_map(lambda leaf: namespace(leaf).zeros_like(leaf), part)
        for name, part in dy.items()
    }


def in_turn(step: Callable, keep_finite: bool) -> Callable:
    """`step` with one batch after the other, in one loop that a backend may compile.

    step is made by `make_step_with_terms`.

    steps(carry, due, batches, ts=None, context=None) -> (carry, values, finites, terms), where
    batches are the arguments of `step` with a new first axis, () standing for None, and `due`,
    (steps,), says which are to be taken: the first ones. ts: (steps,), the t of each; all have
    one context. With `keep_finite` none is taken after one that is not
    finite. values, finites and the arrays in terms: (steps,).
    """

    def steps(carry, due, batches, ts=None, context=None):
        xp = namespace(due)

        def one(carry, now):
            (old, going), (due, batch, t) = carry, now
            due = xp.logical_and(going, due)
            new, value, finite, terms = step(
                old, *map(_or_none, batch), due=due, t=_or_none(t), context=context
            )
            going = xp.logical_and(going, finite) if keep_finite else going
            terms = tree_map(lambda term: _array(term, value), terms)
            return (new, going), (value, finite, terms)

        (carry, _), (values, finites, terms) = scan(
            one, (carry, due[0]), (due, batches, () if ts is None else ts)
        )
        return carry, values, finites, terms

    return steps


def _or_none(part: Any) -> Any:
    return None if isinstance(part, tuple) and not part else part


def _array(number: Any, like: Array) -> Array:
    """A number as an array like `like`, which is 0-d; an array as it is."""
    if type(number) in (int, float):
        return namespace(like).full_like(like, number)
    return number


def judge(
    model,
    loss,
    metrics,
    params,
    state,
    x,
    target,
    counts=None,
    weights=None,
    t=None,
    context=None,
):
    """The loss of a batch, its `Terms`, and each metric's `batch_means` of the rows that count.

    counts, weights, t and context are as in `make_step`; weights are those of the loss alone.
    """
    y = model.predict(params, state, x)
    weights = counts if weights is None else weights
    found = batch_loss(loss, y, target, weights, step=t, context=context)
    share = None if counts is None else counts / namespace(counts).sum(counts)
    count = leaves(y)[0].shape[0]
    means = []
    for name, metric in metrics.items():
        takes_context = context is not None and takes_keyword(metric, "context")
        now = {"context": context} if takes_context else {}
        values = metric(y, target, **now)
        _expect_values(name, values, count)
        means.append(batch_means(metric, values, partial(_mean, share)))
    return found.value, _terms(found), means


def _expect_values(name: str, values: Any, count: int) -> None:
    """Raise unless a metric has returned a value for each of `count` examples."""
    expected = f"expected the metric {name!r} to return an array of one value an example"
    for leaf in leaves(values):
        shape = getattr(leaf, "shape", None)
        if shape is None:
            raise TypeError(f"{expected}, ({count}, ...), or a tree of them, got {described(leaf)}")
        fits = len(shape) > 0 and shape[0] == count
        remedy = " (the mean over examples is taken for you)" if len(shape) == 0 else ""
        expect(fits, "{}, ({}, ...), got shape {}{}", expected, count, shape, remedy)


def _mean(share, values):
    """The mean over examples, each with its `share`; other axes stay."""
    xp = namespace(values)
    if share is None:
        return xp.mean(values, axis=0)
    share = xp.reshape(share, (-1, *(1,) * (values.ndim - 1)))
    # 0 · inf would be NaN, where a row only fills the batch up
    return xp.sum(xp.where(share != 0, values, 0.0) * share, axis=0)
