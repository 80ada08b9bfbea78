"""What optimizers share: their contract, rules made for one leaf, and trees in parts.

In all formulas θ are the parameters, g the gradient, and t = 1, 2, … the step.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any, Protocol

from ..core.arrays import Array, Moments, Params, device, namespace
from ..core.errors import described, expect, expect_function, expect_number, expect_positive
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
    "expect_paths",
    "expect_rate",
    "first_leaf",
    "matches",
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
    """What an optimizer is: how `moments` start, and how a step changes `params`.

    An optimizer that joins gradients of several batches, as `Accumulate` does, has a class
    attribute `uses_divisor = True` and a fourth parameter of `update`, `divisor=1.0`: what
    the mean of which these are the gradients was divided by, a number or a 0-d array, or None
    if they are those of a sum. One that is put around others takes it too and passes it on.
    """

    def init(self, params: Params) -> Moments:
        """The moments before the first step."""
        ...

    def update(self, params: Params, grads: Params, moments: Moments) -> tuple[Params, Moments]:
        """One step; returns new `params` and `moments`, changing no argument."""
        ...


@dataclass(frozen=True)
class Rule:
    """An optimizer that says what becomes of one leaf; here it is done to all of them.

        start(p)                          what it remembers of a leaf, by name
        shared(rate, t)                   numbers that all leaves share at step t
        move(p, g, old, decay, *shared)   the leaf after the step, and what it remembers now

    Moments hold the steps taken, a 0-d integer, as `step`, and under each name a tree
    nested like the parameters. `rate` is a number, or a function of the steps taken
    before, such as those of `schedules`.

    A rule with a `weight_decay` λ gets it as `decay`, except for leaves that `no_decay` names,
    where decay is 0 (see `matches`). By default these are the vectors: biases, scales of
    norms, slopes. They are too few to fit noise with, and pulled towards 0 they keep a layer
    from the level that data need (He et al., arXiv:1812.01187, sec. 3.1). `no_decay=()` no_decay
    none, as PyTorch's optimizers do.
    """

    rate: Rate

    weight_decay = 0.0
    no_decay = NO_DECAY

    def __post_init__(self) -> None:
        expect_rate("rate", self.rate)
        expect_number("weight_decay", self.weight_decay, 0.0)
        if self.no_decay is not NO_DECAY:
            object.__setattr__(self, "no_decay", expect_paths("no_decay", self.no_decay))

    def start(self, p: Array) -> dict[str, Any]:
        """What is remembered of the leaf `p` before the first step."""
        return {}

    def shared(self, rate: Any, t: Array) -> tuple:
        """What follows `decay` among the arguments of `move`; t is a 0-d real number."""
        return (rate,)

    def move(
        self, p: Array, g: Array, old: dict[str, Any], decay: float, *shared: Any
    ) -> tuple[Array, dict[str, Any]]:
        """The leaf after a step down the gradient `g`, and what is remembered of it then."""
        raise NotImplementedError

    def init(self, params: Params) -> Moments:
        """The moments before the first step; raises ValueError if there is nothing to train."""
        steps = zero_step(params)
        started: list[dict] = []
        tree_map(lambda p: started.append(self.start(p)), params)
        return {"step": steps, **_by_name(started, params)}

    def update(self, params: Params, grads: Params, moments: Moments) -> tuple[Params, Moments]:
        """One step; returns new `params` and `moments`, changing no argument."""
        shared = self._shared_now(params, moments)
        numbers = decays(params, self.weight_decay, self.no_decay) if self.weight_decay else None
        names = [name for name in moments if name != "step"]
        kept: list[dict] = []
        move = self.move

        def one(p, g, *old):
            decay = next(numbers) if numbers else 0.0
            named = dict(zip(names, old, strict=True)) if names else {}
            p, new = move(p, g, named, decay, *shared)
            kept.append(new)
            return p

        params = tree_map(one, params, grads, *[moments[name] for name in names])
        return params, {"step": moments["step"] + 1, **_by_name(kept, params)}

    def _shared_now(self, params: Params, moments: Moments) -> tuple:
        rate = self.rate
        if not callable(rate) and type(self).shared is Rule.shared:
            return (rate,)  # no use for t, which costs as much to cast as a bias to move
        like = first_leaf(params)
        before = namespace(like).astype(moments["step"], like.dtype)
        return self.shared(rate(before) if callable(rate) else rate, before + 1.0)


def _by_name(found: list[dict], like: Params) -> dict[str, Any]:
    """One tree a name, from what was found leaf by leaf in the order of `tree_map`."""
    return {name: _nested(iter([one[name] for one in found]), like) for name in found[0]}


def _nested(entries: Iterator, like: Any) -> Any:
    """A tree nested like `like`, of the next entries; half the cost of `tree_map`."""
    if isinstance(like, dict):
        return {name: _nested(entries, branch) for name, branch in like.items()}
    if isinstance(like, tuple):
        return tuple([_nested(entries, branch) for branch in like])
    return next(entries)


def first_leaf(tree: Any) -> Array:
    """Some leaf of `tree`, or None; it stands for the library, device and dtype of all."""
    if not isinstance(tree, (dict, tuple)):
        return tree
    for branch in tree.values() if isinstance(tree, dict) else tree:
        found = first_leaf(branch)
        if found is not None:
            return found
    return None


def zero_step(params: Params) -> Array:
    """No steps yet, as a 0-d integer beside the parameters."""
    like = first_leaf(params)
    expect(like is not None, "the model has no parameters to train")
    xp = namespace(like)
    return xp.zeros((), dtype=xp.int32, device=device(like))


def zeros(p: Array) -> Array:
    """Zeros like `p`."""
    return namespace(p).zeros_like(p)


def bias_correction(beta: float, t: Array) -> Array:
    """1 - βᵗ, as -(exp(t log β) - 1): float32 cannot hold 0.999 well enough to subtract it.

    So much weight has been given, after t steps, by a mean that starts at 0 and keeps the
    share β of itself at each.
    """
    xp = namespace(t)
    return -xp.expm1(t * math.log(beta)) if beta else xp.ones_like(t)


@cache
def matches(pattern: str, path: str) -> bool:
    """Whether `path`, such as "2.attention.weight", begins or ends with `pattern`.

    Whole names count, joined by dots, and `*` stands for any one of them: "2" is all of
    layer 2, "bias" every bias, "2.*.weight" a weight in any branch of layer 2, "*" all.
    """
    wanted, names = pattern.split("."), path.split(".")
    length = len(wanted)
    return length <= len(names) and any(
        all(want in ("*", name) for want, name in zip(wanted, part, strict=True))
        for part in (names[:length], names[-length:])
    )


def decays(params: Params, decay: float, no_decay: tuple[str, ...]) -> Iterator[float]:
    """How much each leaf decays, in the order of `tree_map`: `decay`, or 0 if it is spared."""
    for path in paths(params):
        yield 0.0 if any(matches(pattern, path) for pattern in no_decay) else decay


def paths(tree: Any, prefix: str = "") -> list[str]:
    """The path of each leaf, as in `named_leaves` but in the order of `tree_map`."""
    if not isinstance(tree, (dict, tuple)):
        return [prefix]
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [
        path
        for name, branch in branches
        for path in paths(branch, f"{prefix}.{name}" if prefix else str(name))
    ]


def split_by_owner(owners: Any, tree: Any, parts: int) -> list:
    """Trees nested like `tree`, one a part, with () in place of the leaves of other parts.

    owners: nested like `tree`, the number of the part that each leaf belongs to.
    """
    return [
        tree_map(lambda owner, leaf, part=part: leaf if owner == part else (), owners, tree)
        for part in range(parts)
    ]


def update_parts(
    updates: list[Callable], owners: Any, params: Params, grads: Params, moments: list
) -> tuple[Params, list]:
    """One step of each part by its own `update`; a part without leaves stays as it is."""
    trees = (split_by_owner(owners, tree, len(updates)) for tree in (params, grads))
    moved, kept = [], []
    for update, p, g, old in zip(updates, *trees, moments, strict=True):
        p, new = update(p, g, old) if leaves(p) else (p, old)
        moved.append(p)
        kept.append(new)
    return tree_map(lambda owner, *found: found[owner], owners, *moved), kept


def bind_divisor(optimizer: Any, divisor: Any) -> Callable:
    """`optimizer.update` with the `divisor` of the gradients set, if it takes one."""
    if not _takes_divisor(optimizer):
        return optimizer.update
    return partial(optimizer.update, divisor=divisor)


def _takes_divisor(optimizer: Any) -> bool:
    kind: Any = type(optimizer)
    update = getattr(kind, "update", None)
    if update is None:
        return "divisor" in signature(optimizer.update).parameters
    return _of_class(kind)


@cache
def _of_class(kind: Any) -> bool:
    return "divisor" in signature(kind.update).parameters


def uses_divisor(optimizer: Any) -> bool:
    """Whether the optimizer, or one that it is put around, joins gradients of several batches.

    Raises
    ------
    TypeError
        If one in between takes no divisor: it would not get there.
    """
    if getattr(optimizer, "uses_divisor", False):
        return True
    inner = [one for one in _inside(optimizer) if uses_divisor(one)]
    if inner and not _takes_divisor(optimizer):
        raise TypeError(
            f"{type(optimizer).__name__} holds {type(inner[0]).__name__}, which has to know "
            "what the means of batches were divided by: give its update a fourth parameter, "
            "divisor=1.0, and pass it on to the update of the optimizer inside"
        )
    return bool(inner)


def _inside(thing: Any) -> Iterator[Any]:
    """The optimizers that are attributes of an optimizer, or in a tuple or a dict of one."""
    entries = thing.values() if isinstance(thing, dict) else thing
    if not isinstance(thing, dict | tuple | list):
        entries = getattr(thing, "__dict__", {}).values()
    for entry in entries:
        if isinstance(entry, dict | tuple | list):
            yield from _inside(entry)
        elif callable(getattr(entry, "update", None)) and not isinstance(entry, type):
            yield entry


def expect_rate(name: str, rate: Any) -> None:
    """Raise unless `rate` is a finite number above 0, or a function of the steps taken."""
    if callable(rate):
        expect_function(name, rate, "t")
    else:
        expect_positive(name, rate)


def expect_paths(name: str, paths: Any) -> tuple[str, ...]:
    """`paths`, the hyper-parameter called `name`, as a tuple; raises unless it holds strings."""
    several = isinstance(paths, tuple | list)
    if not several or not all(isinstance(path, str) for path in paths):
        raise TypeError(f"expected {name} to be a tuple of paths, got {paths!r}")
    return tuple(paths)


def expect_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless `optimizer` has an `init` and an `update`, and is not a class."""
    if isinstance(optimizer, type):
        name = optimizer.__name__
        raise TypeError(f"expected an optimizer, got the class {name}: write {name}(...)")
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(f"expected an optimizer such as Adam(), got {described(optimizer)}")
