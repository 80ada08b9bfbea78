"""Combined: one loss out of several, and weights that follow a schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..core.arrays import Array, namespace
from ..core.errors import described, expect, expect_function, expect_number
from ..core.trees import tree_map
from ..metrics import finish_of, finished_by
from .base import (
    BatchLoss,
    Loss,
    Term,
    batch_loss,
    check_of,
    describe_loss,
    metrics_of,
    takes_keyword,
)

__all__ = ["Losses", "Weighted"]

Weight = float | Callable[[Array], Array]


class _Combined:
    """A loss made of other losses; a subclass computes it in `with_divisor`."""

    def with_divisor(self, y: Any, target: Any, weights: Any = None, **now: Any) -> BatchLoss:
        """Return the loss with the divisors of its means. now: `step` and `context`."""
        raise NotImplementedError

    def __call__(
        self,
        y: Any,
        target: Any,
        weights: Any = None,
        *,
        step: Array | None = None,
        context: Any = None,
    ) -> tuple[Array, Any]:
        """Return the loss, and dy nested like y.

        step: how many steps have been taken, a 0-d array, for weights that follow a schedule.
        context: for losses that take it.
        """
        result = self.with_divisor(y, target, weights, step=step, context=context)
        return result.value, result.dy


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Losses(_Combined):
    """Σₙ wₙ Lₙ(y[n], target[n]) over outputs n by name, each with a loss of its own.

    Losses(label=softmax_cross_entropy, box=huber, weights={"box": 2.0}); a loss weighs 1
    unless `weights` say otherwise. A weight may follow a schedule, a function of the number of
    steps taken: weights={"kl": schedules.Linear(0.0, 1.0, steps=1000)}. It is a loss like others:
    y and target are dicts of these names, weights of examples are shared by all, or a dict for
    those that have any. For an output that is called "losses" or "weights" pass a dict of losses
    first.

    Gradient
    --------
    Lₙ depends on y[n] alone, so dy[n] = wₙ ∂Lₙ/∂y[n].

    Raises
    ------
    TypeError
        If one of the losses is no function, or one of the weights no number and no schedule.
    ValueError
        If there is no loss, a weight is negative or for an output that has no loss; or, when
        called, if y or target are not dicts of these names, or there is no `step` and a weight
        follows a schedule.
    """

    losses: tuple[tuple[str, Loss], ...]
    weights: tuple[tuple[str, Weight], ...]

    def __init__(
        self,
        losses: Mapping[str, Loss] | tuple[tuple[str, Loss], ...] = (),
        *,
        weights: Mapping[str, Weight] | tuple[tuple[str, Weight], ...] = (),
        **named: Loss,
    ) -> None:
        found, weighed = _by_output("losses", losses) | named, _by_output("weights", weights)
        expect(len(found) > 0, "expected at least one loss")
        unknown = sorted(weighed.keys() - found.keys())
        expect(not unknown, "weights for {}, but losses for {}", unknown, sorted(found))
        for name, loss in found.items():
            expect_function(f"the loss of {name}", loss, "y, target", also="context")
            _expect_weight(f"the weight of {name}", weighed.get(name, 1.0))
        names = sorted(found)
        object.__setattr__(self, "losses", tuple([(name, found[name]) for name in names]))
        object.__setattr__(self, "weights", tuple([(n, weighed.get(n, 1.0)) for n in names]))

    def takes_keyword(self, name: str) -> bool:
        """Whether one of the losses takes `name`, or for "step" a weight follows a schedule."""
        scheduled = name == "step" and any(callable(weight) for _, weight in self.weights)
        return scheduled or any(takes_keyword(loss, name) for _, loss in self.losses)

    def with_divisor(self, y: Any, target: Any, weights: Any = None, **now: Any) -> BatchLoss:
        """Return the weighted sum of all losses with one term for each: see `BatchLoss`."""
        names = [name for name, _ in self.losses]
        _expect_named(y, target, names)
        total, dy = None, {}
        terms: list[Term] = []
        found, shared = {}, []
        for (name, loss), (_, weight) in zip(self.losses, self.weights, strict=True):
            own = weights.get(name) if isinstance(weights, dict) else weights
            part = batch_loss(loss, y[name], target[name], own, **now)
            found[name] = part
            shared.append(own)
            shape = part.value.shape
            expect(part.value.ndim == 0, "the loss of {} is of shape {}: reduce it", name, shape)
            weight = _at(f"the weight of {name}", weight, now.get("step"), part.value)
            value = weight * part.value
            total = value if total is None else total + value
            terms += _weighed(part, value, weight, (name,))
            dy[name] = tree_map(lambda leaf, weight=weight: weight * leaf, part.dy)
        alike = all(own is shared[0] for own in shared)
        return BatchLoss(total, dy, tuple(terms), *_joined(found, alike))

    def check(self, target: dict, shape: dict) -> None:
        """Refuse a target on the host as each of the losses does its own."""
        names = [name for name, _ in self.losses]
        expect(isinstance(shape, dict), "expected outputs {}, got one of shape {}", names, shape)
        _expect_named(shape, target, names)
        for name, loss in self.losses:
            check = check_of(loss)
            if check is not None:
                check(target[name], shape[name])

    @property
    def metrics(self) -> dict[str, Callable]:
        """The metrics of each loss under the name of its output, such as "label.accuracy"."""
        return {
            f"{name}.{metric}": _of_output(function, name)
            for name, loss in self.losses
            for metric, function in metrics_of(loss).items()
        }

    def __repr__(self) -> str:
        named = [f"{name}={describe_loss(loss)}" for name, loss in self.losses]
        weights = {name: weight for name, weight in self.weights if weight != 1.0}
        return f"Losses({', '.join([*named, *([f'weights={weights}'] if weights else [])])})"

    def __eq__(self, other: object) -> bool:
        return _plain(self) == _plain(other) if isinstance(other, Losses) else NotImplemented

    def __hash__(self) -> int:
        return hash(_plain(self))


@dataclass(frozen=True)
class Weighted(_Combined):
    """w · L(y, target), a loss times a number or a schedule.

    Weighted(mean_squared_error, schedules.Linear(0.0, 1.0, steps=1000)): the weight of a step is
    that of its number, the steps that a `Trainer` took before. Validation and `evaluate` take the
    weight of the current step. For several outputs see the `weights` of `Losses`.

    Gradient
    --------
    dy = w ∂L/∂y.

    Raises
    ------
    TypeError
        If the loss is not a function, or the weight neither a number nor a function.
    ValueError
        If the weight is negative; or, when called, if it follows a schedule and there is no
        `step`.
    """

    loss: Loss
    weight: Weight

    def __post_init__(self) -> None:
        expect_function("the loss", self.loss, "y, target", also="context")
        _expect_weight("the weight", self.weight)

    def takes_keyword(self, name: str) -> bool:
        """Return whether a step passes `name`: "step" for a schedule, or what the loss takes."""
        return (name == "step" and callable(self.weight)) or takes_keyword(self.loss, name)

    def with_divisor(self, y: Any, target: Any, weights: Any = None, **now: Any) -> BatchLoss:
        """Return the weighted loss with the divisor of its mean: see `BatchLoss`."""
        part = batch_loss(self.loss, y, target, weights, **now)
        weight = _at("the weight", self.weight, now.get("step"), part.value)
        value = weight * part.value
        dy = tree_map(lambda leaf: weight * leaf, part.dy)
        terms = tuple(_weighed(part, value, weight, ()))
        return BatchLoss(value, dy, terms, part.divisor, part.ratio, part.unequal)

    @property
    def check(self) -> Callable | None:
        """The target check of the loss, or None."""
        return check_of(self.loss)

    @property
    def metrics(self) -> dict[str, Callable]:
        """The metrics of the loss."""
        return metrics_of(self.loss)

    def __repr__(self) -> str:
        return f"Weighted({describe_loss(self.loss)}, {self.weight!r})"


def _expect_weight(name: str, weight: Any) -> None:
    """Raise unless a weight is a number of at least 0 or a function of the step."""
    if callable(weight):
        expect_function(name, weight, "t")
    else:
        expect_number(name, weight, low=0.0)


def _at(name: str, weight: Weight, step: Array | None, like: Array) -> Any:
    """The weight at `step`: a number as it is, a schedule's in the dtype of `like`."""
    if not callable(weight):
        return weight
    message = (
        "{} follows a schedule: pass the number of the step, train with a Trainer, or use a number"
    )
    expect(step is not None, message, name)
    xp = namespace(like)
    return xp.astype(weight(xp.astype(step, like.dtype)), like.dtype)


def _weighed(part, value, weight, path):
    """Return the terms of the part at `path` times its weight; their sum is `value`."""
    if len(part.terms) == 1:
        only = part.terms[0]
        return [Term(value, only.divisor, (*path, *only.path))]
    return [Term(weight * t.value, t.divisor, (*path, *t.path)) for t in part.terms]


def _joined(parts, alike):
    """The divisor of several losses together, its ratio, and why there is none.

    Divisors that shapes fix, times the same weights, keep their ratios from batch to batch.
    So one stands for all of them: their own if they are equal, otherwise the sum of the
    weights, or the number of examples. All divisors None make None.
    """
    found = list(parts.values())
    first = found[0]
    reasons = [part.unequal for part in found if part.unequal]
    if reasons or len(found) == 1:
        return first.divisor, first.ratio, reasons[0] if reasons else ""
    if all(part.divisor is None for part in found):
        return None, None, ""
    ratios = {part.ratio for part in found}
    if None in ratios or not alike:
        return None, None, " and ".join(parts)
    if len(ratios) == 1:
        return first.divisor, first.ratio, ""
    return first.divisor / first.ratio, 1.0, ""


def _by_output(name: str, given: Any) -> dict[str, Any]:
    """What is given by the name of an output, as a dict; pairs, as they are stored, will do."""
    if isinstance(given, tuple) and all(isinstance(x, tuple) and len(x) == 2 for x in given):
        given = dict(given)
    if not isinstance(given, Mapping):
        raise TypeError(
            f"expected {name} as a dict by the names of outputs, got {described(given)}"
        )
    return dict(given)


def _of_output(metric, name):
    """A metric of the one output that is called `name`."""

    @finished_by(finish_of(metric))
    def found(y, target):
        return metric(y[name], target[name])

    return found


def _expect_named(y: Any, target: Any, names: list[str]) -> None:
    """Raise unless outputs, or their shapes, and targets are dicts of these names."""
    for what, tree in {"outputs": y, "targets": target}.items():
        is_named = isinstance(tree, dict)
        found = sorted(tree) if is_named else type(tree).__name__
        expect(is_named and found == names, "expected {} {}, got {}", what, names, found)


def _plain(thing):
    """What two equal sums of losses share: a `partial` is only ever equal to itself."""
    if isinstance(thing, Losses):
        return thing.weights, tuple([(name, _plain(loss)) for name, loss in thing.losses])
    if isinstance(thing, partial):
        return thing.func, thing.args, tuple(sorted(thing.keywords.items()))
    return thing
