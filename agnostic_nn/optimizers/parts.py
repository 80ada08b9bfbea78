"""Parts: different optimizers for different parameters, and frozen parameters."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import Moments, Params
from ..core.errors import described, expect
from ..core.fields import set_fields
from ..core.trees import leaves, named_leaves, tree_from_leaves
from .base import (
    Optimizer,
    bind_divisor,
    expect_optimizer,
    expect_paths,
    matches,
    split_by_owner,
    update_parts,
)

__all__ = ["Fixed", "Parts"]


@dataclass(frozen=True)
class Fixed:
    """θ ← θ: the parameters do not change. `Parts` can freeze some of them with it."""

    def init(self, params: Params) -> Moments:
        return {}

    def update(
        self, params: Params, grads: Params, moments: Moments
    ) -> tuple[Params, Moments]:
        return params, moments


@dataclass(frozen=True)
class Parts:
    """A different optimizer for each part of the parameters.

    Parts, which PyTorch calls parameter groups, are chosen by patterns for the paths of
    leaves, such as "0.bias" (see `matches`):

        Parts((("0", Fixed()), ("bias", SGD(0.1))), rest=AdamW(1e-3))

    freezes layer 0, updates all other biases by SGD, and everything else by AdamW. A
    leaf belongs to the first part whose pattern matches its path, or to `rest`
    if none does.

    Moments are those of each part, in order, as a tuple `parts`, and those of `rest` as
    `rest`. They are nested like the parameters, with () for each leaf of another part.

    Raises
    ------
    ValueError
        From `init` and `update`, if a pattern matches no leaf that is still free, or if
        a leaf belongs to no part and there is no `rest`.
    """

    parts: tuple[tuple[str, Optimizer], ...]
    _: KW_ONLY
    rest: Optimizer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple | list):
            expected = "expected pairs of a pattern and an optimizer"
            raise TypeError(f"{expected}, got {described(self.parts)}")
        for pair in self.parts:
            is_pair = isinstance(pair, tuple | list) and len(pair) == 2
            message = "expected pairs of a pattern and an optimizer, got {}"
            expect(is_pair, message, repr(pair))
            expect_optimizer(pair[1])
        pairs = tuple(tuple(pair) for pair in self.parts)
        expect_paths("patterns", [pattern for pattern, _ in pairs])
        set_fields(self, parts=pairs)
        if self.rest is not None:
            expect_optimizer(self.rest)

    def _owners(self, params: Params) -> Any:
        """Return a tree with the number of each leaf's part; `rest` is the last."""
        patterns = [pattern for pattern, _ in self.parts]
        owners = {}
        for path, _ in named_leaves(params):
            is_match = [matches(pattern, path) for pattern in patterns]
            owner = is_match.index(True) if any(is_match) else len(patterns)
            has_owner = owner < len(patterns) or self.rest is not None
            expect(has_owner, "{} belongs to no part: give one for it, or a rest", path)
            owners[path] = owner
        for i, pattern in enumerate(patterns):
            is_used = i in owners.values()
            message = "no leaf is left for the pattern {!r} among {}"
            expect(is_used, message, pattern, [*owners])
        return tree_from_leaves(owners, params)

    def _optimizers(self) -> list[Optimizer]:
        return [*(optimizer for _, optimizer in self.parts), self.rest or Fixed()]

    def init(self, params: Params) -> Moments:
        optimizers = self._optimizers()
        trees = split_by_owner(self._owners(params), params, len(optimizers))
        moments = [
            optimizer.init(tree) if leaves(tree) else {}
            for optimizer, tree in zip(optimizers, trees, strict=True)
        ]
        *parts, rest = moments
        return {"parts": tuple(parts), "rest": rest}

    def update(
        self, params: Params, grads: Params, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        updates = [bind_divisor(optimizer, divisor) for optimizer in self._optimizers()]
        old = [*moments["parts"], moments["rest"]]
        owners = self._owners(params)
        params, (*parts, rest) = update_parts(updates, owners, params, grads, old)
        return params, {"parts": tuple(parts), "rest": rest}
