"""Losses made of other losses: weighted sums, schedules of weights, and penalties."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..core.arrays import Array, Metric, Params, namespace
from ..core.errors import described, expect, expect_function, expect_number
from ..core.fields import set_fields
from ..core.trees import tree_map
from ..metrics import finish_of, finished_by
from ..penalties import sum_of
from .base import (
    BatchLoss,
    Divisor,
    Loss,
    Term,
    batch_loss,
    between_outputs,
    check_of,
    describe_loss,
    expect_target_slopes,
    is_sum,
    metrics_of,
    probabilities_of,
    takes_keyword,
)

__all__ = ["BetweenOutputs", "Losses", "Penalized", "Weighted"]

Weight = float | Callable[[Array], Array]


class _Combined:
    """Base class of losses made of other losses, computed by `with_divisor`."""

    def with_divisor(
        self, y: Any, target: Any, weights: Any = None, **keywords: Any
    ) -> BatchLoss:
        """Return the loss with its divisor (see `BatchLoss`).

        keywords: `step` and `context`.
        """
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

        step: the number of steps taken, a 0-d array, for weights that follow a
        schedule.
        context: passed on to losses that take it.
        """
        result = self.with_divisor(y, target, weights, step=step, context=context)
        return result.value, result.dy


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Losses(_Combined):
    """Σₙ wₙ Lₙ(y[n], target[n]) over named outputs n with one loss each.

        Losses(label=softmax_cross_entropy, box=huber, weights={"box": 2.0})

    The default weight wₙ is 1. A weight may follow a schedule, a function of the number
    of steps taken: weights={"kl": schedules.Linear(0.0, 1.0, steps=1000)}.

    The result is itself a loss. y and target are dicts with these names. Weights of
    examples are one array for all losses, or a dict with an array for each loss that
    has weights. If an output is called "losses" or "weights", pass a dict of losses as
    the first argument.

    Gradient
    --------
    Lₙ depends on y[n] alone, so dy[n] = wₙ ∂Lₙ/∂y[n].

    Raises
    ------
    TypeError
        If a loss is not a function, or a weight is neither a number nor a function.
    ValueError
        If no loss is passed, if a weight is negative, or if there is a weight for an
        output without a loss. When called: if y or target is not a dict with these
        names, or if a weight follows a schedule and there is no `step`.
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
        losses_by_name = _by_output("losses", losses) | named
        weights_by_name = _by_output("weights", weights)
        expect(len(losses_by_name) > 0, "expected at least one loss")
        names = sorted(losses_by_name)
        unknown = sorted(weights_by_name.keys() - losses_by_name.keys())
        expect(not unknown, "weights for {}, but losses for {}", unknown, names)
        for name, loss in losses_by_name.items():
            expect_function(f"the loss of {name}", loss, "y, target", also="context")
            _expect_no_penalty(f"the loss of {name}", loss)
            _expect_weight(f"the weight of {name}", weights_by_name.get(name, 1.0))
        loss_pairs = [(name, losses_by_name[name]) for name in names]
        weight_pairs = [(name, weights_by_name.get(name, 1.0)) for name in names]
        set_fields(self, losses=tuple(loss_pairs), weights=tuple(weight_pairs))

    def takes_keyword(self, name: str) -> bool:
        """Return whether a training step passes the keyword `name`.

        It passes "step" if a weight follows a schedule, and what any loss takes.
        """
        if name == "step" and any(callable(weight) for _, weight in self.weights):
            return True
        return any(takes_keyword(loss, name) for _, loss in self.losses)

    def with_divisor(
        self, y: Any, target: Any, weights: Any = None, **keywords: Any
    ) -> BatchLoss:
        """Return the weighted sum of all losses, with a term of each (`BatchLoss`)."""
        names = [name for name, _ in self.losses]
        _expect_named(y, target, names)
        total: Any = None
        dy = {}
        terms: list[Term] = []
        results = {}
        example_weights = []
        for (name, loss), (_, weight) in zip(self.losses, self.weights, strict=True):
            own_weights = weights.get(name) if isinstance(weights, dict) else weights
            example_weights.append(own_weights)
            result = batch_loss(loss, y[name], target[name], own_weights, **keywords)
            results[name] = result
            shape = result.value.shape
            is_valid = result.value.ndim == 0
            expect(is_valid, "the loss of {} is of shape {}: reduce it", name, shape)
            label = f"the weight of {name}"
            weight = _weight_at(label, weight, keywords.get("step"), result.value)
            value = weight * result.value
            total = value if total is None else total + value
            terms += _weighted_terms(result, value, weight, (name,))
            dy[name] = tree_map(lambda leaf, weight=weight: weight * leaf, result.dy)
        same_weights = all(array is example_weights[0] for array in example_weights)
        common = _common_divisor(results, same_weights)
        return BatchLoss(total, dy, tuple(terms), *common)

    def check(self, target: dict[str, Any], shape: dict[str, Any]) -> None:
        """Run the target check of each loss on the host."""
        names = [name for name, _ in self.losses]
        is_valid = isinstance(shape, dict)
        expect(is_valid, "expected outputs {}, got one of shape {}", names, shape)
        _expect_named(shape, target, names)
        for name, loss in self.losses:
            check = check_of(loss)
            if check is not None:
                check(target[name], shape[name])

    @property
    def probabilities(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """The function from outputs to the probabilities that their losses make.

        It leaves out outputs whose loss makes none. None if no loss makes any.
        """
        functions = {name: probabilities_of(loss) for name, loss in self.losses}
        if not any(functions.values()):
            return None

        def probabilities(y: dict[str, Any]) -> dict[str, Any]:
            return {
                name: function(y[name])
                for name, function in functions.items()
                if function is not None
            }

        return probabilities

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics of each loss, by names such as "label.accuracy"."""
        return {
            f"{name}.{metric}": _of_output(function, name)
            for name, loss in self.losses
            for metric, function in metrics_of(loss).items()
        }

    @property
    def is_sum(self) -> bool:
        """True if all losses are sums (see `is_sum` in `base`)."""
        return all(is_sum(loss) for _, loss in self.losses)

    def __repr__(self) -> str:
        named = [f"{name}={describe_loss(loss)}" for name, loss in self.losses]
        weights = {name: weight for name, weight in self.weights if weight != 1.0}
        if weights:
            named.append(f"weights={weights}")
        return f"Losses({', '.join(named)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Losses):
            return NotImplemented
        return bool(_comparison_key(self) == _comparison_key(other))

    def __hash__(self) -> int:
        return hash(_comparison_key(self))


class _AroundOneLoss(_Combined):
    """A loss that changes the value of another one, and has its other attributes."""

    loss: Loss

    @property
    def check(self) -> Callable[..., None] | None:
        """The target check of the loss, or None."""
        return check_of(self.loss)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics of the loss."""
        return metrics_of(self.loss)

    @property
    def probabilities(self) -> Callable[[Array], Array] | None:
        """The function from outputs to probabilities of the loss, or None."""
        return probabilities_of(self.loss)

    @property
    def is_sum(self) -> bool:
        """True if the loss is a sum (see `is_sum` in `base`)."""
        return is_sum(self.loss)


@dataclass(frozen=True)
class Weighted(_AroundOneLoss):
    """w · L(y, target), a loss times a number or a schedule.

        Weighted(mean_squared_error, schedules.Linear(0.0, 1.0, steps=1000))

    A schedule is a function of the number of steps that a `Trainer` took before.
    Validation and `evaluate` use the weight of the current step. For several outputs
    see the `weights` of `Losses`.

    Gradient
    --------
    dy = w ∂L/∂y.

    Raises
    ------
    TypeError
        If the loss is not a function, or the weight is neither a number nor a function.
    ValueError
        If the weight is negative. When called: if the weight follows a schedule and
        there is no `step`.
    """

    loss: Loss
    weight: Weight

    def __post_init__(self) -> None:
        expect_function("the loss", self.loss, "y, target", also="context")
        _expect_no_penalty("the loss", self.loss)
        _expect_weight("the weight", self.weight)

    def takes_keyword(self, name: str) -> bool:
        """Return whether a training step passes the keyword `name`.

        It passes "step" if the weight follows a schedule, and what the loss takes.
        """
        if name == "step" and callable(self.weight):
            return True
        return takes_keyword(self.loss, name)

    def with_divisor(
        self, y: Any, target: Any, weights: Any = None, **keywords: Any
    ) -> BatchLoss:
        """Return the weighted loss with its divisor (see `BatchLoss`)."""
        result = batch_loss(self.loss, y, target, weights, **keywords)
        step = keywords.get("step")
        weight = _weight_at("the weight", self.weight, step, result.value)
        value = weight * result.value
        dy = tree_map(lambda leaf: weight * leaf, result.dy)
        terms = tuple(_weighted_terms(result, value, weight, ()))
        return BatchLoss(value, dy, terms, result.divisor, result.ratio, result.unequal)

    def __repr__(self) -> str:
        return f"Weighted({describe_loss(self.loss)}, {self.weight!r})"


@dataclass(frozen=True)
class BetweenOutputs(_Combined):
    """L(y["output"], y["target"]), a loss between two outputs, with gradients for both.

        BetweenOutputs(kl_divergence)

    Other losses have no gradient for their target. Here the target is an output of the
    model as well, so both sides are trained, such as two networks that learn from each
    other. To keep one side as it is, pass its outputs as the target of the loss, or as
    the `context` of a `Trainer`. Next to other losses it is one of `Losses`, and the
    graph of the model has an output that is a tuple or a dict.

    y: {"output": a, "target": b}, or a tuple of the two, with the same shape and dtype.
    The target that is passed is not used. Distributions as targets are not checked, so
    the model should end in `Softmax` (or in `LogSoftmax`, with log_target=True).

    loss: a regression loss, `cosine_distance`, `kl_divergence`, `binary_cross_entropy`,
    or `softmax_cross_entropy` of distributions without class weights, or a
    `functools.partial` of it.

    Gradient
    --------
    ∂L/∂a is that of the loss. ∂L/∂b depends on the loss:

        function of a - b        -∂L/∂a
        cosine_distance          that by y, with a and b exchanged
        kl_divergence            log b - a + 1, or b̂ (b - a + 1) with b̂ = exp b for
                                 log_target
        softmax_cross_entropy    -log softmax(a)
        binary_cross_entropy     -log σ(a) + log σ(-a) = -a

    Raises
    ------
    ValueError
        If the loss or one of its options has no derivative by the target. When called:
        if y is not two arrays of one shape and dtype.
    """

    loss: Loss

    def __post_init__(self) -> None:
        expect_function("the loss", self.loss, "y, target")
        expect_target_slopes(self.loss)

    def takes_keyword(self, name: str) -> bool:
        """Return False: neither "step" nor "context" is passed."""
        return False

    def with_divisor(
        self, y: Any, target: Any, weights: Any = None, **keywords: Any
    ) -> BatchLoss:
        """Return the loss with its divisor (see `BatchLoss`)."""
        return between_outputs(self.loss, y, weights)

    @property
    def is_sum(self) -> bool:
        """True if the loss is a sum (see `is_sum` in `base`)."""
        return is_sum(self.loss)

    def __repr__(self) -> str:
        return f"BetweenOutputs({describe_loss(self.loss)})"


@dataclass(frozen=True)
class Penalized(_AroundOneLoss):
    """Σ R(params) + L(y, target), a loss plus penalties of the parameters.

        Penalized(softmax_cross_entropy, penalties.L1(1e-4))

    The value that `step`, `fit` and `evaluate` report includes the penalties, unlike
    weight decay. Training steps and evaluation pass the parameters.

    loss
        Any loss, also `Losses` and `Weighted`, around which this one belongs.
    penalties
        One of `agnostic_nn.penalties`, a function from params to (value, gradient), or
        a tuple of several.

    A penalty is added once to the loss of each batch. If the loss is a sum, it should
    grow with the number of examples in a batch, and `Accumulate(every=k)` adds the
    penalties k times.

    Gradient
    --------
    dy = ∂L/∂y is that of the loss. Σ ∂R/∂params is added to the gradient of the
    parameters that `backward` returns.

    Raises
    ------
    TypeError
        If the loss or a penalty is not a function. When called: if there are no
        `params`, because the caller is not a training step.
    ValueError
        If `penalties` is empty.
    """

    loss: Loss
    penalties: Any

    def __post_init__(self) -> None:
        expect_function("the loss", self.loss, "y, target", also="context")
        _expect_no_penalty("the loss", self.loss)
        several = self.penalties
        several = tuple(several) if isinstance(several, tuple | list) else (several,)
        expect(len(several) > 0, "expected at least one penalty")
        for penalty in several:
            expect_function("a penalty", penalty, "params")
        set_fields(self, penalties=several)

    def takes_keyword(self, name: str) -> bool:
        """Return whether a training step passes the keyword `name`.

        It passes "params", and what the loss takes.
        """
        return name == "params" or takes_keyword(self.loss, name)

    def with_divisor(
        self,
        y: Any,
        target: Any,
        weights: Any = None,
        *,
        params: Params | None = None,
        **keywords: Any,
    ) -> BatchLoss:
        """Return the loss with its divisor and its penalty (see `BatchLoss`)."""
        if params is None:
            raise TypeError(
                "Penalized takes the parameters too: train with a Trainer, pass "
                "params=..., or use its `loss`, which is without the penalties"
            )
        result = batch_loss(self.loss, y, target, weights, **keywords)
        penalty, dparams = sum_of(self.penalties, params)
        value = result.value + penalty
        return replace(result, value=value, penalty=penalty, dparams=dparams)

    def __call__(
        self,
        y: Any,
        target: Any,
        weights: Any = None,
        *,
        step: Array | None = None,
        context: Any = None,
        params: Params | None = None,
    ) -> tuple[Array, Any]:
        """Return the loss with its penalties, and dy nested like y."""
        keywords = {"step": step, "context": context, "params": params}
        result = self.with_divisor(y, target, weights, **keywords)
        return result.value, result.dy

    def __repr__(self) -> str:
        penalties = ", ".join(map(repr, self.penalties))
        return f"Penalized({describe_loss(self.loss)}, ({penalties},))"


def _expect_no_penalty(name: str, loss: Any) -> None:
    """Raise unless a loss is without penalties, which belong outermost."""
    if not isinstance(loss, type) and takes_keyword(loss, "params"):
        raise ValueError(
            f"expected {name} without penalties, got {describe_loss(loss)}: put "
            "Penalized around all of it"
        )


def _expect_weight(name: str, weight: Any) -> None:
    """Raise unless a weight is a number of at least 0 or a function of the step."""
    if callable(weight):
        expect_function(name, weight, "t")
    else:
        expect_number(name, weight, low=0.0)


def _weight_at(name: str, weight: Weight, step: Array | None, like: Array) -> Any:
    """Return the weight at `step`. That of a schedule has the dtype of `like`."""
    if not callable(weight):
        return weight
    message = (
        "{} follows a schedule: pass the number of the step, train with a Trainer, "
        "or use a number"
    )
    expect(step is not None, message, name)
    xp = namespace(like)
    return xp.astype(weight(xp.astype(step, like.dtype)), like.dtype)


def _weighted_terms(
    result: BatchLoss, value: Array, weight: Any, path: tuple[str, ...]
) -> list[Term]:
    """Return the terms of a loss of the output at `path`, times its weight.

    value: the sum of the terms.
    """
    if len(result.terms) == 1:
        term = result.terms[0]
        return [Term(value, term.divisor, (*path, *term.path))]
    return [
        Term(weight * term.value, term.divisor, (*path, *term.path))
        for term in result.terms
    ]


def _common_divisor(
    results: dict[str, BatchLoss], same_weights: bool
) -> tuple[Divisor, float | None, str]:
    """Return `divisor`, `ratio` and `unequal` (see `BatchLoss`) of a sum of losses.

    If all divisors are fixed multiples of the sum of the same weights, their ratios do
    not change from batch to batch, and one divisor serves all: their own if they are
    equal, otherwise the sum of the weights, or the number of examples. If all divisors
    are None, so is the result.
    """
    losses = list(results.values())
    first = losses[0]
    reasons = [loss.unequal for loss in losses if loss.unequal]
    if reasons or len(losses) == 1:
        return first.divisor, first.ratio, reasons[0] if reasons else ""
    if all(loss.divisor is None for loss in losses):
        return None, None, ""
    ratios = {loss.ratio for loss in losses}
    if first.ratio is None or None in ratios or not same_weights:
        return None, None, " and ".join(results)
    if len(ratios) == 1:
        return first.divisor, first.ratio, ""
    return first.divisor / first.ratio, 1.0, ""


def _by_output(name: str, entries: Any) -> dict[str, Any]:
    """Return a mapping from names of outputs, or a tuple of such pairs, as a dict."""
    pairs = entries if isinstance(entries, tuple) else (None,)
    if all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        entries = dict(entries)
    if not isinstance(entries, Mapping):
        expected = f"expected {name} as a dict by the names of outputs"
        raise TypeError(f"{expected}, got {described(entries)}")
    return dict(entries)


def _of_output(metric: Metric, name: str) -> Metric:
    """Return a metric of all outputs that computes `metric` of the output `name`."""

    @finished_by(finish_of(metric))
    def output_metric(y: Any, target: Any) -> Array:
        return metric(y[name], target[name])

    return output_metric


def _expect_named(y: Any, target: Any, names: list[str]) -> None:
    """Raise unless outputs, or their shapes, and targets are dicts with these names."""
    for what, tree in {"outputs": y, "targets": target}.items():
        is_dict = isinstance(tree, dict)
        actual = sorted(tree) if is_dict else type(tree).__name__
        is_valid = is_dict and actual == names
        expect(is_valid, "expected {} {}, got {}", what, names, actual)


def _comparison_key(loss: Any) -> Any:
    """Return a key that equal losses share, as two equal `partial` are never equal."""
    if isinstance(loss, Losses):
        pairs = [(name, _comparison_key(each)) for name, each in loss.losses]
        return loss.weights, tuple(pairs)
    if isinstance(loss, partial):
        return loss.func, loss.args, tuple(sorted(loss.keywords.items()))
    return loss
