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
    """Checks data against a model and a loss, and converts them to the dtype of the model.

    Errors say what was expected and what came, in the user's own numbers.
    """

    model: Layer
    loss: Loss
    backend: Backend
    dtype: str

    def fetch_x(self, x: Any) -> tuple[Any, Any]:
        """Return x on the host, and for each leaf whether the user chose its dtype.

        All leaves have the same length.
        """
        arrays, has_dtype = fetch("x", x, self.backend)
        expect_lengths("x", arrays)
        return arrays, has_dtype

    def check_x(self, x: Any, has_dtype: Any, shape: Any) -> Any:
        """Return the result of `fetch_x` as input of a model whose examples have `shape`."""
        expect_shapes("x", x, shape)
        if has_dtype is not True:
            x = tree_map(self._real, x, has_dtype, kinds(self.model.input_kinds, x))
        _check_in_chunks(self.model.check, x)
        return self._converted("x", x, has_dtype)

    def examples(self, x: Any, target: Any, weights: Any, out_shape: Any) -> Examples:
        """Return examples of x, a result of `check_x`, for a model with outputs of `out_shape`."""
        count = len(leaves(x)[0])
        if count == 0:
            shapes = " and ".join(
                f"{path} of shape {a.shape}" for path, a in named_leaves(x, "x")
            )
            raise ValueError(f"expected at least one example, got {shapes}")
        target, has_dtype = fetch("target", target, self.backend)
        self._expect_count("target", target, count)
        check = self._target_check
        if check is not None:
            try:
                _check_in_chunks(lambda chunk: check(chunk, out_shape), target)
            except (TypeError, ValueError) as error:
                error.add_note(f"for the loss {describe_loss(self.loss)}")
                raise
        target = self._converted("target", target, has_dtype)
        if weights is not None:
            weights = self._checked_weights(weights, count)
        return Examples(x, target, weights)

    def _expect_count(self, name: str, data: Any, count: int) -> None:
        if all(leaf.shape[:1] == (count,) for leaf in leaves(data)):
            return
        for path, leaf in named_leaves(data, name):
            if leaf.shape[:1] != (count,):
                label = "targets" if path == "target" else path
                raise ValueError(f"{count} examples, but {label} of shape {leaf.shape}")

    def _checked_weights(self, weights: Any, count: int) -> np.ndarray:
        self.expect_weights("weighting examples")
        weights, has_dtype = fetch("weights", weights, self.backend)
        if not isinstance(weights, np.ndarray):
            raise TypeError("expected weights as one array, which all losses share")
        weights = converted("weights", weights, has_dtype, self.dtype)
        checked: np.ndarray = weights.astype(self.dtype, copy=False)
        if checked.shape[:1] != (count,):
            raise ValueError(
                f"expected weights of shape ({count},), got {checked.shape}"
            )
        if not (np.isfinite(checked) & (checked >= 0)).all():
            raise ValueError("expected finite weights of at least 0")
        return checked

    @cached_property
    def takes_weights(self) -> bool:
        """True if the loss takes weights."""
        context = {"context": None} if takes_keyword(self.loss, "context") else {}
        try:
            signature(self.loss).bind(None, None, None, **context)
        except TypeError:
            return False
        return True

    def expect_weights(self, what: str, alternative: str = "") -> None:
        """Raise TypeError if the loss does not take weights, which `what` needs."""
        if not self.takes_weights:
            raise TypeError(
                f"{what} needs a loss that takes weights: give it a third parameter, "
                f"weights=None{alternative}"
            )

    def has_short_batch(self, count: int, rows: int) -> bool:
        """Return whether the last of the batches of `rows` examples is short.

        Raises
        ------
        TypeError
            If it is and the loss takes no weights, which padding needs.
        """
        if count % rows:
            self.expect_weights(
                f"a short batch, of {count} examples {rows} at a time,",
                ", or choose a batch_size that divides the examples",
            )
        return count % rows > 0

    @cached_property
    def _target_check(self) -> Callable[..., None] | None:
        return check_of(self.loss)

    def _real(self, leaf: np.ndarray, has_dtype: bool, kind: str) -> np.ndarray:
        """Convert numbers without a chosen dtype to that of the model, if it takes real numbers."""
        return leaf if has_dtype or kind != "real floating" else leaf.astype(self.dtype)

    def _converted(self, name: str, data: Any, has_dtype: Any) -> Any:
        # `converted` does not read a mapped file: check it in chunks
        if is_mapped(data):
            _check_in_chunks(
                lambda chunk: converted(name, chunk, has_dtype, self.dtype), data
            )
        return converted(name, data, has_dtype, self.dtype)


def _check_in_chunks(check: Callable[[Any], Any], data: Any) -> None:
    """Check data, those of a mapped file in chunks; an error names the start of its chunk."""
    if not is_mapped(data):
        check(data)
        return
    for start, chunk in chunks(data):
        try:
            check(chunk)
        except (TypeError, ValueError) as error:
            if not start:
                raise
            raise type(error)(f"{error}, counted from example {start}") from error
