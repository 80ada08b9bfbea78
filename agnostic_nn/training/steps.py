"""Steps: a model, a loss and an optimizer as pure functions, to be compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..arrays import Moments, Params, Rows, State, expect, namespace
from ..layers import Layer
from ..losses.base import Loss
from ..optimizers import Optimizer
from ..special import all_finite, scan, select
from ..trees import leaves, tree_map

__all__ = ["Carry", "in_turn", "judge", "make_step"]

Carry = tuple[Params, State, Moments]


def make_step(
    model: Layer, loss: Loss, optimizer: Optimizer, *, keep_finite: bool = True
) -> Callable:
    """Tie a model, a loss and an optimizer into one pure training step.

    step(carry, x, target, counts=None, weights=None) -> (carry, value, finite), where
    carry is (params, state, moments), value the loss before the step, and finite whether
    it and the gradients were. With `keep_finite` a step that is not leaves carry as it was.
    counts: (batch,), 1 for an example and 0 for a row that only fills the batch up;
    weights: (batch,), how much each row counts in the loss, by default as `counts` say;
    due: a 0-d boolean, whether the step is to be taken at all.

    The step closes over hyper-parameters only, so `backend.jit(make_step(...))`
    compiles all of it, and an eager backend runs it as it stands.
    """

    def step(carry, x, target, counts=None, weights=None, due=None):
        params, state, moments = carry
        train = True if counts is None else Rows(counts)
        y, after, *cache = model.forward(params, state, x, train=train)
        value, dy = _weighted(loss, y, target, counts if weights is None else weights)
        expect(value.ndim == 0, "expected a loss of one number, got one of shape {}", value.shape)
        # popped: a block lets go of each entry once it is spent, if nobody else holds it
        grads = model.backward_params(params, cache.pop(), dy)

        def taken():
            new, kept = optimizer.update(params, grads, moments)
            return new, after, kept

        finite = all_finite(value, *leaves(grads)) if keep_finite else all_finite(value)
        if due is None and not keep_finite:
            return taken(), value, finite
        takes = finite if keep_finite else due
        takes = takes if due is None else namespace(due).logical_and(due, takes)
        return select(takes, taken, carry), value, finite

    return step


def in_turn(step: Callable, keep_finite: bool) -> Callable:
    """`step` with one batch after the other, in one loop that a backend may compile.

    steps(carry, due, batches) -> (carry, values, finites), where batches are the arguments
    of `step` with a new first axis, () standing for None, and `due`, (steps,), says which
    are to be taken: the first ones. With `keep_finite` none is taken after one that is not
    finite. values and finites: (steps,).
    """

    def steps(carry, due, batches):
        xp = namespace(due)

        def one(carry, now):
            (old, going), (due, batch) = carry, now
            due = xp.logical_and(going, due)
            new, value, finite = step(old, *map(_or_none, batch), due=due)
            going = xp.logical_and(going, finite) if keep_finite else going
            return (new, going), (value, finite)

        (carry, _), (values, finites) = scan(one, (carry, due[0]), (due, batches))
        return carry, values, finites

    return steps


def _or_none(part: Any) -> Any:
    return None if isinstance(part, tuple) and not part else part


def judge(model, loss, metrics, params, state, x, target, counts):
    """The mean loss of a batch and the means of each metric, over the rows that count."""
    y = model.predict(params, state, x)
    value, _ = _weighted(loss, y, target, counts)
    mean = partial(_mean, None if counts is None else counts / namespace(counts).sum(counts))
    return value, *[tree_map(mean, metric(y, target)) for metric in metrics]


def _mean(share, values):
    """The mean over examples, each with its `share`; other axes stay."""
    xp = namespace(values)
    if share is None:
        return xp.mean(values, axis=0)
    return xp.sum(xp.reshape(share, (-1, *(1,) * (values.ndim - 1))) * values, axis=0)


def _weighted(loss, y, target, weights):
    """Losses of a user's own need not take weights as long as nobody gives any."""
    return loss(y, target) if weights is None else loss(y, target, weights)
