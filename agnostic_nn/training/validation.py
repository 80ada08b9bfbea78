"""Validation: a user's data, checked against a model and a loss before a step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..core.arrays import namespace
from ..core.backend import Backend
from ..core.trees import leaves, named_leaves, tree_map
from ..layers import Layer
from ..layers.base import kinds
from ..losses.base import Loss, check_of, describe_loss, is_sum, takes_weights
from .batches import Examples
from .input_shapes import InputShapes
from .inputs import Admitted, admit, converted, expect_lengths, fetch, fetch_unread
from .run import CurrentRun
from .sources import as_tree, row_labels

__all__ = ["InputValidator"]


@dataclass(frozen=True)
class InputValidator:
    """Checks data against a model and a loss; converts them to the dtype of the model.

    Errors say what was expected and what came, in the user's own numbers. Those in a
    shape come before those in a value, and those in a dtype last.

    convert: a function of data that is called first, if it is not None.
    """

    model: Layer
    loss: Loss
    backend: Backend
    dtype: str
    convert: Callable[[Any], Any] | None = None

    def examples(
        self, x: Any, target: Any, weights: Any, current: CurrentRun
    ) -> Examples:
        """Return checked examples; draw the weights of the model if there are none."""
        admitted_x = self._admitted_x(x, current)
        x = admitted_x.data
        count = leaves(x)[0].shape[0]
        if count == 0:
            shapes = " and ".join(
                f"{path} of shape {a.shape}" for path, a in named_leaves(x, "x")
            )
            raise ValueError(f"expected at least one example, got {shapes}")
        run = current.settled()
        shape = tree_map(lambda leaf: tuple(leaf.shape[1:]), x)
        is_built = shape == run.shape
        out_shape = run.out_shape if is_built else self.shapes.out_shape(shape)
        admitted_target = self._admitted_target(target, count, out_shape)
        tables = admitted_x, admitted_target
        if any(admitted.columns for admitted in tables):
            _expect_same_columns(current, *tables)
        labels = {**admitted_x.labels, **admitted_target.labels}
        if weights is not None:
            if row_labels(weights) is not None:
                labels["weights"] = row_labels(weights)
            weights = self._checked_weights(weights, count)
        if len(labels) > 1:
            _expect_same_labels(labels)
        target = admitted_target.data
        return Examples(x, target, weights, self.backend, self._has_numeric(x))

    def before_augment(
        self, x: Any, target: Any, weights: Any, current: CurrentRun
    ) -> Examples:
        """Return examples that are to be augmented.

        If x holds integers where the model takes real numbers, such as the bytes of
        images, only the lengths are checked: `augment` converts them, and its results
        are checked. Other data are checked as `examples` does.
        """
        if not self._is_raw(x):
            return self.examples(x, target, weights, current)
        x, _ = fetch_unread("x", x, self.backend)
        target, _ = fetch_unread("target", target, self.backend)
        count = leaves(x)[0].shape[0]
        expect_lengths("x", x)
        for path, leaf in named_leaves(target, "target"):
            if leaf.shape[:1] != (count,):
                raise ValueError(f"{count} examples, but {path} of shape {leaf.shape}")
        if weights is not None:
            weights = self._checked_weights(weights, count)
        return Examples(x, target, weights, self.backend, x_keeps_bytes=True)

    def _is_raw(self, x: Any) -> bool:
        """Return whether x holds integers where the model takes real numbers."""
        x = as_tree(x)

        def is_integer(leaf: Any) -> bool:
            if self.backend.holds(leaf):
                return "int" in self.backend.dtype_name(leaf)
            dtype = getattr(leaf, "dtype", None)
            if isinstance(dtype, np.dtype):
                return dtype.kind in "iu"
            return "int" in str(dtype)  # that of another library

        try:
            real = tree_map(
                lambda kind, leaf: kind == "real floating" and is_integer(leaf),
                kinds(self.model.input_kinds, x),
                x,
            )
        except (KeyError, ValueError):  # x is nested otherwise than the model's
            return False
        return any(leaves(real)) and all(
            getattr(leaf, "ndim", 0) > 0 for leaf in leaves(x)
        )

    def _has_numeric(self, x: Any) -> bool:
        return "numeric" in leaves(kinds(self.model.input_kinds, x))

    def input(self, x: Any, current: CurrentRun) -> Any:
        """Return x, checked; draw the weights of the model if there are none."""
        admitted = self._admitted_x(x, current)
        if admitted.columns:
            _expect_same_columns(current, admitted)
        return admitted.data

    def _admitted_x(self, x: Any, current: CurrentRun) -> Admitted:
        run = current.settled()
        expect_shape = None
        if run.shape is not None:
            expect_shape = partial(
                self.shapes.expect, built=run.shape, limits=run.limits
            )
        admitted = admit(
            "x",
            self._converted(x),
            self.backend,
            self.dtype,
            self.model.check,
            expect_shape=expect_shape,
            input_kinds=self.model.input_kinds,
        )
        if run.shape is None:
            current.build(admitted.shape)
        if admitted.problem is not None:
            raise admitted.problem
        return admitted

    def _converted(self, data: Any) -> Any:
        data = as_tree(data)
        return data if self.convert is None else self.convert(data)

    def _admitted_target(self, target: Any, count: int, out_shape: Any) -> Admitted:
        """Return the targets of `count` examples; out_shape: that of the model."""
        admitted = admit(
            "target",
            self._converted(target),
            self.backend,
            self.dtype,
            self._target_check(out_shape),
            count=count,
        )
        if admitted.problem is not None:
            raise admitted.problem
        return admitted

    def _target_check(self, out_shape: Any) -> Callable[[Any], None] | None:
        """Return the check of the loss, whose errors name the loss, or None."""
        check = self._check_of_loss
        if check is None:
            return None

        def check_target(target: Any) -> None:
            try:
                check(target, out_shape)
            except (TypeError, ValueError) as error:
                error.add_note(f"for the loss {describe_loss(self.loss)}")
                raise

        return check_target

    @cached_property
    def shapes(self) -> InputShapes:
        """The shapes of examples that the model takes."""
        return InputShapes(self.model, self.dtype)

    @cached_property
    def _check_of_loss(self) -> Callable[..., None] | None:
        return check_of(self.loss)

    def _checked_weights(self, weights: Any, count: int) -> Any:
        self.expect_weights("weighting examples")
        weights = self._converted(weights)
        if self._are_valid_weights(weights, count):
            return weights
        weights, has_dtype = fetch("weights", weights, self.backend)
        if not isinstance(weights, np.ndarray):
            raise TypeError("expected weights as one array, which all losses share")
        weights = converted("weights", weights, has_dtype, self.dtype)
        checked: np.ndarray = weights.astype(self.dtype, copy=False)
        if checked.shape[:1] != (count,):
            raise ValueError(
                f"expected weights of shape ({count},), got {checked.shape}"
            )
        if not np.isfinite(checked).all():
            raise ValueError("expected finite weights of at least 0")
        negative = np.argwhere(checked < 0)
        if len(negative) and not is_sum(self.loss):
            index = negative[0].tolist()
            name = describe_loss(self.loss)
            raise ValueError(
                f"expected finite weights of at least 0, but weights{index} is "
                f"{checked[tuple(index)]}: the mean that {name} computes divides by "
                "the sum of the weights, which may then be 0. Negative weights, as of "
                "a policy gradient, need a sum: functools.partial(loss, "
                "reduction='sum')"
            )
        return checked

    def _are_valid_weights(self, weights: Any, count: int) -> bool:
        """Return whether weights on the backend are valid, which is checked there."""
        backend = self.backend
        if not backend.holds(weights) or backend.dtype_name(weights) != self.dtype:
            return False
        if weights.shape[:1] != (count,):
            return False

        def has_others(weights: Any) -> Any:
            xp = namespace(weights)
            others = ~xp.isfinite(weights)
            return xp.any(others if is_sum(self.loss) else others | (weights < 0))

        return not backend.without_policy(has_others)(weights)

    @cached_property
    def takes_weights(self) -> bool:
        """True if the loss takes weights."""
        return takes_weights(self.loss)

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


def _expect_same_columns(current: CurrentRun, *tables: Admitted) -> None:
    """Raise ValueError for other columns than those of the first table; keep these.

    Columns are matched by position, so another order would mix them up.
    """
    earlier = current.settled().columns or {}
    new: dict[str, list[str]] = {}
    for admitted in tables:
        for path, names in admitted.columns.items():
            new[path] = earlier.get(path, names)
            if names != new[path]:
                _refuse_columns(path, names, new[path])
    if new.keys() - earlier.keys():
        current.change(columns={**earlier, **new})


def _refuse_columns(path: str, names: list[str], known: list[str]) -> None:
    if sorted(names) == sorted(known):
        raise ValueError(
            f"the columns of {path} are in another order than before: expected "
            f"{known}, got {names}: pass {path}[{known}]"
        )
    missing = [name for name in known if name not in names]
    unexpected = [name for name in names if name not in known]
    changes = [f"missing {missing}"] if missing else []
    changes += [f"unexpected {unexpected}"] if unexpected else []
    raise ValueError(
        f"the columns of {path} are not those of before: {' and '.join(changes)}"
    )


def _expect_same_labels(labels: dict[str, Any]) -> None:
    """Raise ValueError if tables of pandas have different indexes.

    Rows are matched by position, where pandas would match them by index.
    """
    (path, index), *others = labels.items()
    for other_path, other in others:
        if len(index) == len(other) and not index.equals(other):
            raise ValueError(
                f"{path} and {other_path} have different indexes, but rows are matched "
                f"by position: pass {other_path}.loc[{path}.index], or drop both with "
                ".reset_index(drop=True)"
            )
