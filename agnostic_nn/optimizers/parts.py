"""Parts: settings of their own for parts of the tree, and parts that stand still."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import Params
from ..core.errors import described, expect
from ..core.trees import leaves, named_leaves, unname
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
    """θ ← θ: holds a part of the tree as it is, and remembers nothing."""

    def init(self, params):
        return {}

    def update(self, params, grads, moments):
        return params, moments


@dataclass(frozen=True)
class Parts:
    """An optimizer for each part of the tree, found by the paths of leaves.

        Parts((("0", Fixed()), ("bias", SGD(0.1))), rest=AdamW(1e-3))

    holds layer 0 as it is, moves other biases by SGD, and what is left by AdamW. A leaf
    belongs to the first part whose pattern fits its path (see `matches`), otherwise to `rest`.
    Moments: those of each part, in order, as a tuple `parts`, and those of `rest` as `rest`;
    each nested like the parameters, with () in place of the leaves of other parts.

    Raises
    ------
    ValueError
        From `init` and `update`, if no leaf is left for a pattern, or if a leaf belongs to
        no part and there is no `rest`.
    """

    parts: tuple[tuple[str, Optimizer], ...]
    _: KW_ONLY
    rest: Optimizer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple | list):
            given = described(self.parts)
            raise TypeError(f"expected pairs of a pattern and an optimizer, got {given}")
        for pair in self.parts:
            fits = isinstance(pair, tuple | list) and len(pair) == 2
            expect(fits, "expected pairs of a pattern and an optimizer, got {}", repr(pair))
            expect_optimizer(pair[1])
        pairs = tuple(tuple(pair) for pair in self.parts)
        expect_paths("patterns", [pattern for pattern, _ in pairs])
        object.__setattr__(self, "parts", pairs)
        if self.rest is not None:
            expect_optimizer(self.rest)

    def _owners(self, params: Params) -> Any:
        """The number of the part that each leaf belongs to; that of `rest` comes last."""
        patterns = [pattern for pattern, _ in self.parts]
        owners = {}
        for path, _ in named_leaves(params):
            fits = (i for i, pattern in enumerate(patterns) if matches(pattern, path))
            owner = owners[path] = next(fits, len(patterns))
            owned = owner < len(patterns) or self.rest is not None
            expect(owned, "{} belongs to no part: give one for it, or a rest", path)
        for i, pattern in enumerate(patterns):
            found = i in owners.values()
            expect(found, "no leaf is left for the pattern {!r} among {}", pattern, [*owners])
        return unname(owners, params)

    def _optimizers(self) -> list[Optimizer]:
        return [*(optimizer for _, optimizer in self.parts), self.rest or Fixed()]

    def init(self, params):
        optimizers = self._optimizers()
        trees = split_by_owner(self._owners(params), params, len(optimizers))
        pairs = zip(optimizers, trees, strict=True)
        *parts, rest = [part.init(tree) if leaves(tree) else {} for part, tree in pairs]
        return {"parts": tuple(parts), "rest": rest}

    def update(self, params, grads, moments, divisor=1.0):
        updates = [bind_divisor(optimizer, divisor) for optimizer in self._optimizers()]
        old = [*moments["parts"], moments["rest"]]
        params, (*parts, rest) = update_parts(updates, self._owners(params), params, grads, old)
        return params, {"parts": tuple(parts), "rest": rest}
