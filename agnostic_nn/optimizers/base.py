"""The optimizer contract, `Rule` for optimizers that update leaf by leaf, and helpers.

In all formulas θ are the parameters, g the gradient, and t = 1, 2, … the step.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any, Protocol

from ..core.arrays import Array, Moments, Params, device, namespace
from ..core.errors import (
    described,
    expect,
    expect_function,
    expect_number,
    expect_positive,
)
from ..core.fields import set_fields
from ..core.trees import leaves, tree_map

__all__ = [
    "NO_DECAY",
    "Optimizer",
    "Rate",
    "Rule",
    "bias_correction",
    "bind_divisor",
    "decays",
    "expect_optimizer",
    "expect_outermost",
    "expect_paths",
    "expect_rate",
    "first_leaf",
    "matches",
    "nested_moments",
    "nested_optimizers",
    "paths",
    "split_by_owner",
    "update_parts",
    "uses_divisor",
    "zero_step",
    "zeros",
]

Rate = float | Callable[[Array], Array]
NO_DECAY: tuple[str, ...] = ("bias", "recurrent_bias", "scale", "slope")


class Optimizer(Protocol):
    """The methods of an optimizer: `init` makes `moments`, `update` changes `params`.

    An optimizer that combines gradients of several batches, as `Accumulate` does, has a
    class attribute `uses_divisor = True` and a fourth parameter of `update`,
    `divisor=1.0`. That is the number or 0-d array by which the loss divided to get its
    mean, or None if the loss is a sum. A wrapper around other optimizers takes the same
    parameter and passes it on.
    """

    def init(self, params: Params) -> Moments:
        """Return the moments before the first step."""
        ...

    def update(
        self, params: Params, grads: Params, moments: Moments
    ) -> tuple[Params, Moments]:
        """Return new `params` and `moments` after a step. Arguments do not change."""
        ...


# The `update` of an optimizer: params, grads, moments -> new params, new moments. It
# may take a `divisor` too.
Update = Callable[..., tuple[Params, Moments]]

_NO_WEIGHT_DECAY: float = 0.0  # of rules without this option


@dataclass(frozen=True)
class Rule:
    """Base class of optimizers that update every leaf of the parameters by one rule.

        start(p)                          the moments of a leaf at first, by name
        shared(rate, t)                   numbers shared by all leaves at step t
        move(p, g, old, decay, *shared)   the leaf and its moments after the step

    Moments are a dict: `step` is the number of steps taken, a 0-d integer, and each
    name that `start` returns has a tree nested like the parameters. `rate` is the
    learning rate, `lr` in PyTorch: a number, or a function of the number of steps taken
    before, such as those of `schedules`.

    A rule with a `weight_decay` λ gets it as `decay`. It is 0 for leaves that
    `no_decay` names (see `matches`), by default all vectors: biases, the scales of
    normalization layers, and the slopes of PReLU. Vectors have too few numbers to
    overfit, and decay would keep the layer from the scale that the data need (He et
    al., arXiv:1812.01187, sec. 3.1). PyTorch's optimizers decay all leaves;
    `no_decay=()` does the same.
    """

    rate: Rate

    weight_decay = _NO_WEIGHT_DECAY
    no_decay = NO_DECAY

    def __post_init__(self) -> None:
        expect_rate("rate", self.rate)
        expect_number("weight_decay", self.weight_decay, 0.0)
        if self.no_decay is not NO_DECAY:
            no_decay = expect_paths("no_decay", self.no_decay)
            set_fields(self, no_decay=no_decay)

    def start(self, p: Array) -> dict[str, Any]:
        """Return the moments of the leaf `p` before the first step."""
        return {}

    def shared(self, rate: Any, t: Array) -> tuple[Array | float, ...]:
        """Return the arguments of `move` after `decay`. t is a 0-d real number."""
        return (rate,)

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, *shared: Any
    ) -> tuple[Array, dict[str, Any]]:
        """Return the leaf and its moments after a step with the gradient `g`."""
        raise NotImplementedError

    def init(self, params: Params) -> Moments:
        """Return the moments before the first step.

        Raises
        ------
        ValueError
            If params are empty.
        """
        step = zero_step(params)
        started: list[dict[str, Any]] = []
        tree_map(lambda p: started.append(self.start(p)), params)
        return {"step": step, **_by_name(started, params)}

    def update(
        self, params: Params, grads: Params, moments: Moments
    ) -> tuple[Params, Moments]:
        """Return new `params` and `moments` after a step. Arguments do not change."""
        shared = self._shared_numbers(params, moments)
        leaf_decays: Iterator[float] | None = None
        if self.weight_decay:
            leaf_decays = decays(params, self.weight_decay, self.no_decay)
        names = [name for name in moments if name != "step"]
        new_moments: list[dict[str, Any]] = []  # of each leaf, in the order of tree_map
        move = self.move

        def move_leaf(p: Array, g: Array, *old: Any) -> Array:
            decay = next(leaf_decays) if leaf_decays else 0.0
            named = dict(zip(names, old, strict=True)) if names else {}
            p, new = move(p, g, named, decay, *shared)
            new_moments.append(new)
            return p

        params = tree_map(move_leaf, params, grads, *[moments[name] for name in names])
        return params, {"step": moments["step"] + 1, **_by_name(new_moments, params)}

    def steps_taken(self, moments: Moments) -> Array:
        """Return the number of steps that led to these moments, a 0-d integer."""
        return moments["step"]

    def _shared_numbers(
        self, params: Params, moments: Moments
    ) -> tuple[Array | float, ...]:
        rate = self.rate
        if not callable(rate) and type(self).shared is Rule.shared:
            # t is not needed, and the cast costs as much as a step of a bias
            return (rate,)
        like = first_leaf(params)
        before = namespace(like).astype(moments["step"], like.dtype)
        return self.shared(rate(before) if callable(rate) else rate, before + 1.0)


def _by_name(leaf_moments: list[dict[str, Any]], like: Params) -> dict[str, Any]:
    """Return a tree for each name, from the moments of each leaf in their order."""
    trees = {}
    for name in leaf_moments[0]:
        entries = iter([moments[name] for moments in leaf_moments])
        trees[name] = _nested(entries, like)
    return trees


def _nested(entries: Iterator[Any], like: Any) -> Any:
    """Return a tree nested like `like` with the next entries as leaves.

    This takes half the time of `tree_map`.
    """
    if isinstance(like, dict):
        return {name: _nested(entries, branch) for name, branch in like.items()}
    if isinstance(like, tuple):
        return tuple([_nested(entries, branch) for branch in like])
    return next(entries)


def first_leaf(tree: Any) -> Any:
    """Return some leaf of `tree`, or None if it has none."""
    if not isinstance(tree, (dict, tuple)):
        return tree
    for branch in tree.values() if isinstance(tree, dict) else tree:
        leaf = first_leaf(branch)
        if leaf is not None:
            return leaf
    return None


def zero_step(params: Params) -> Array:
    """Return the count of steps at first: a 0-d integer 0 on the device of params."""
    like = first_leaf(params)
    expect(like is not None, "the model has no parameters to train")
    xp = namespace(like)
    return xp.zeros((), dtype=xp.int32, device=device(like))


def zeros(p: Array) -> Array:
    """Return zeros like `p`."""
    return namespace(p).zeros_like(p)


def bias_correction(beta: float, t: Array) -> Array:
    """Return 1 - βᵗ, the sum of the weights in a moving average after t steps.

    An exponential moving average that starts at 0 is divided by it, as in Adam. It is
    computed as -(exp(t log β) - 1), because float32 cannot hold 0.999 well enough to
    subtract it from 1.
    """
    xp = namespace(t)
    return -xp.expm1(t * math.log(beta)) if beta else xp.ones_like(t)


# --- paths of leaves ------------------------------------------------------------------


@cache
def matches(pattern: str, path: str) -> bool:
    """Return whether `path` begins or ends with `pattern`.

    Both, such as "2.attention.weight", consist of names joined by dots, which are
    compared as a whole. `*` matches any one name. "2" matches all of layer 2, "bias"
    every bias, "2.*.weight" the weight of any branch of layer 2, and "*" everything.
    """
    wanted_names = pattern.split(".")
    names = path.split(".")
    length = len(wanted_names)
    if length > len(names):
        return False
    for part in (names[:length], names[-length:]):
        pairs = zip(wanted_names, part, strict=True)
        if all(pattern_name in ("*", name) for pattern_name, name in pairs):
            return True
    return False


def decays(params: Params, decay: float, no_decay: tuple[str, ...]) -> Iterator[float]:
    """Yield the decay of each leaf, as `tree_map` goes: 0 if `no_decay` names it."""
    for path in paths(params):
        yield 0.0 if any(matches(pattern, path) for pattern in no_decay) else decay


def paths(tree: Any, prefix: str = "") -> list[str]:
    """Return the path of each leaf (see `named_leaves`), in the order of `tree_map`."""
    if not isinstance(tree, (dict, tuple)):
        return [prefix]
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [
        path
        for name, branch in branches
        for path in paths(branch, f"{prefix}.{name}" if prefix else str(name))
    ]


# --- several optimizers for one tree --------------------------------------------------


def split_by_owner(owners: Any, tree: Any, parts: int) -> list[Params]:
    """Return a list of trees nested like `tree`, one per part.

    Leaves of other parts are replaced by (). owners is nested like `tree` and has, for
    each leaf, the number of the part that it belongs to.
    """

    def leaves_of(part: int) -> Params:
        return tree_map(lambda owner, leaf: leaf if owner == part else (), owners, tree)

    return [leaves_of(part) for part in range(parts)]


def update_parts(
    updates: list[Update],
    owners: Any,
    params: Params,
    grads: Params,
    moments: list[Moments],
) -> tuple[Params, list[Moments]]:
    """Return params and a list of moments after a step of each part by its `update`.

    A part without leaves keeps its moments.
    """
    part_params = split_by_owner(owners, params, len(updates))
    part_grads = split_by_owner(owners, grads, len(updates))
    new_params = []
    new_moments = []
    parts = zip(updates, part_params, part_grads, moments, strict=True)
    for update, p, g, old in parts:
        p, new = update(p, g, old) if leaves(p) else (p, old)
        new_params.append(p)
        new_moments.append(new)
    return tree_map(lambda owner, *leaf: leaf[owner], owners, *new_params), new_moments


# --- wrappers around other optimizers -------------------------------------------------


def nested_optimizers(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer, then the one that it wraps, and so on, outermost first.

    A wrapper holds the optimizer inside it as `optimizer`.
    """
    yield optimizer
    if hasattr(optimizer, "optimizer"):
        yield from nested_optimizers(optimizer.optimizer)


def expect_outermost(optimizer: Any) -> None:
    """Raise ValueError if an optimizer that has to be the outermost is inside another.

    It has a class attribute `is_outermost = True`.
    """
    outermost, *inside = nested_optimizers(optimizer)
    for each in inside:
        expect(
            not getattr(each, "is_outermost", False),
            "expected {} around all other optimizers, got {!r}: those around it would "
            "get the gradients of a scaled loss",
            type(each).__name__,
            outermost,
        )


def nested_moments(moments: Moments) -> Iterator[Moments]:
    """Yield the moments of each nested optimizer that has its own, outermost first.

    A wrapper either keeps the moments of the optimizer inside it as `inner`, next to
    its own, or has none and passes those of the optimizer inside on unchanged.
    """
    yield moments
    if "inner" in moments:
        yield from nested_moments(moments["inner"])


def bind_divisor(optimizer: Any, divisor: Any) -> Update:
    """Return `optimizer.update` with `divisor` bound if it takes one."""
    if not _takes_divisor(optimizer):
        update: Update = optimizer.update
        return update
    return partial(optimizer.update, divisor=divisor)


def _takes_divisor(optimizer: Any) -> bool:
    kind: Any = type(optimizer)
    update = getattr(kind, "update", None)
    if update is None:  # `update` is an attribute of this instance only
        return "divisor" in signature(optimizer.update).parameters
    return _class_takes_divisor(kind)


@cache
def _class_takes_divisor(kind: Any) -> bool:
    return "divisor" in signature(kind.update).parameters


def uses_divisor(optimizer: Any) -> bool:
    """Return whether the optimizer, or one inside, combines gradients of batches.

    Raises
    ------
    TypeError
        If a wrapper in between takes no divisor, so that it cannot pass it on.
    """
    if getattr(optimizer, "uses_divisor", False):
        return True
    users = [inner for inner in _optimizers_inside(optimizer) if uses_divisor(inner)]
    if users and not _takes_divisor(optimizer):
        raise TypeError(
            f"{type(optimizer).__name__} holds {type(users[0]).__name__}, which has to "
            "know what the means of batches were divided by: give its update a fourth "
            "parameter, divisor=1.0, and pass it on to the update of the optimizer "
            "inside"
        )
    return bool(users)


def _optimizers_inside(holder: Any) -> Iterator[Any]:
    """Yield the optimizers among the attributes of one, also in tuples and dicts."""
    if isinstance(holder, dict):
        entries: Iterable[Any] = holder.values()
    elif isinstance(holder, tuple | list):
        entries = holder
    else:
        entries = getattr(holder, "__dict__", {}).values()
    for entry in entries:
        if isinstance(entry, dict | tuple | list):
            yield from _optimizers_inside(entry)
        elif callable(getattr(entry, "update", None)) and not isinstance(entry, type):
            yield entry


# --- validation of arguments ----------------------------------------------------------


def expect_rate(name: str, rate: Any) -> None:
    """Raise unless `rate` is a finite number above 0 or a function of the step."""
    if callable(rate):
        expect_function(name, rate, "t")
    else:
        expect_positive(name, rate)


def expect_paths(name: str, paths: Any) -> tuple[str, ...]:
    """Return `paths`, a tuple or list of strings, as a tuple, or raise TypeError."""
    is_tuple = isinstance(paths, tuple | list)
    if not is_tuple or not all(isinstance(path, str) for path in paths):
        raise TypeError(f"expected {name} to be a tuple of paths, got {paths!r}")
    return tuple(paths)


def expect_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless `optimizer` is an instance with `init` and `update`."""
    if isinstance(optimizer, type):
        name = optimizer.__name__
        message = f"expected an optimizer, got the class {name}: write {name}(...)"
        raise TypeError(message)
    methods = [getattr(optimizer, name, None) for name in ("init", "update")]
    if not all(callable(method) for method in methods):
        message = f"expected an optimizer such as Adam(), got {described(optimizer)}"
        raise TypeError(message)
