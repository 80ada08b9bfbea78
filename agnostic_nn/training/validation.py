"""Validation: checks of a user's data against a model and a loss, before anything is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np

from ..core.backend import Backend
from ..core.trees import leaves, named_leaves, tree_map
from ..layers import Layer
from ..layers.base import kinds
from ..losses.base import Loss, check_of, describe_loss, takes_keyword
from .batches import Examples
from .inputs import chunks, converted, expect_lengths, expect_shapes, fetch, is_mapped

__all__ = ["InputValidator"]


@dataclass(frozen=True)
class InputValidator:
    """What a model and a loss take on a backend, in the dtype that the model computes in.

    Errors say what was expected and what came, in the user's own numbers.
    """

    model: Layer
    loss: Loss
    backend: Backend
    dtype: str

    def fetched(self, x: Any) -> tuple[Any, Any]:
        """x on the host, equally long throughout, and which dtypes of it were chosen."""
        found, chosen = fetch("x", x, self.backend)
        expect_lengths("x", found)
        return found, chosen

    def checked(self, found: Any, chosen: Any, shape: Any) -> Any:
        """What was `fetched` as the model takes it, whose examples have `shape`."""
        expect_shapes("x", found, shape)
        if chosen is not True:
            found = tree_map(self._floating, found, chosen, kinds(self.model.input_kinds, found))
        _check_pieces(self.model.check, found)
        return self._typed("x", found, chosen)

    def examples(self, x: Any, target: Any, weights: Any, out_shape: Any) -> Examples:
        """Examples of x that was `checked`, for a model that makes y of `out_shape`."""
        count = len(leaves(x)[0])
        if count == 0:
            shapes = " and ".join(f"{path} of shape {a.shape}" for path, a in named_leaves(x, "x"))
            raise ValueError(f"expected at least one example, got {shapes}")
        found, chosen = fetch("target", target, self.backend)
        if any(leaf.shape[:1] != (count,) for leaf in leaves(found)):
            named = named_leaves(found, "target")
            path, leaf = next(pair for pair in named if pair[1].shape[:1] != (count,))
            said = "targets" if path == "target" else path
            raise ValueError(f"{count} examples, but {said} of shape {leaf.shape}")
        check = self._check
        if check is not None:
            try:
                _check_pieces(lambda part: check(part, out_shape), found)
            except (TypeError, ValueError) as error:
                error.add_note(f"for the loss {describe_loss(self.loss)}")
                raise
        found = self._typed("target", found, chosen)
        if weights is not None:
            weights = self._weights(weights, count)
        return Examples(x, found, weights)

    def _weights(self, given: Any, count: int) -> np.ndarray:
        self.expect_weights("weighting examples")
        given, chosen = fetch("weights", given, self.backend)
        if not isinstance(given, np.ndarray):
            raise TypeError("expected weights as one array, which all losses share")
        weights = converted("weights", given, chosen, self.dtype).astype(self.dtype, copy=False)
        if weights.shape[:1] != (count,):
            raise ValueError(f"expected weights of shape ({count},), got {weights.shape}")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("expected finite weights of at least 0")
        return weights

    @cached_property
    def takes_weights(self) -> bool:
        """Whether the loss takes weights."""
        also = {"context": None} if takes_keyword(self.loss, "context") else {}
        try:
            signature(self.loss).bind(None, None, None, **also)
        except TypeError:
            return False
        return True

    def expect_weights(self, who: str, otherwise: str = "") -> None:
        """Refuse what needs a loss that takes weights, if this one does not."""
        if not self.takes_weights:
            raise TypeError(
                f"{who} needs a loss that takes weights: give it a third parameter, "
                f"weights=None{otherwise}"
            )

    def has_short_batch(self, count: int, rows: int) -> bool:
        """Whether batches of `rows` leave a short one, which the loss must be able to weigh."""
        if count % rows:
            self.expect_weights(
                f"a short batch, of {count} examples {rows} at a time,",
                ", or choose a batch_size that divides the examples",
            )
        return count % rows > 0

    @cached_property
    def _check(self) -> Callable | None:
        return check_of(self.loss)

    def _floating(self, leaf: np.ndarray, chosen: bool, kind: str) -> np.ndarray:
        """Numbers that came without a dtype are of the model's, where it takes such."""
        return leaf if chosen or kind != "real floating" else leaf.astype(self.dtype)

    def _typed(self, name: str, data: Any, chosen: Any) -> Any:
        if is_mapped(data):
            _check_pieces(lambda part: converted(name, part, chosen, self.dtype), data)
        return converted(name, data, chosen, self.dtype)


def _check_pieces(check: Callable, data: Any) -> None:
    """Check data, piece by piece where they lie in a file; errors then count from the piece."""
    if not is_mapped(data):
        check(data)
        return
    for start, part in chunks(data):
        try:
            check(part)
        except (TypeError, ValueError) as error:
            if not start:
                raise
            raise type(error)(f"{error}, counted from example {start}") from error
