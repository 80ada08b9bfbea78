"""Embedding and Unembedding: look-ups in a table of vectors, and products with it.

`EmbeddingBag` reduces the vectors of several look-ups to one.
"""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    first_true,
    namespace,
)
from ..core.errors import (
    expect,
    expect_choice,
    expect_count,
    expect_integer,
    expect_positive,
)
from ..initializers import Initializer, TruncatedNormal, expect_initializer
from ..ops import narrowed, scatter_add, sum_over, widened
from .base import Layer
from .shapes import as_matrix, matrix_as

__all__ = ["Embedding", "EmbeddingBag", "Unembedding"]


@dataclass(frozen=True)
class Embedding(Layer):
    """y[..., :] = W[x[...], :], with x integers in [0, n), n = `num_embeddings`.

    x: (...), integers -> y: (..., width).

    `num_embeddings`: the number of rows of W (vocabulary size; Keras: input_dim).
    `width`: the length of a row (embedding_dim, output_dim).
    `padding_idx`: an index for which y is 0. Its row of W starts at 0 and has no
    gradient. (In PyTorch y is that row, which is 0 unless it is overwritten.)
    `max_norm`: M; a row w with a norm n = ‖w‖ > M is replaced by w M / n in y. W itself
    does not change, and the gradient contains the factor. (PyTorch changes W in place,
    and then computes the gradient without the factor.)

    Parameters: weight (num_embeddings, width).

    Gradient
    --------
    Each look-up is a product with a one-hot row, so its dW is dy in the row that it
    read and 0 elsewhere. Look-ups of the same row add up:

        dW[k, :] = Σ dy[..., :] over all positions where x[...] = k

    With `max_norm`, let g be this sum for a row w with n > M, and u = w / n. As
    dn = u · dw, the row of y changes by M (dw - u (u · dw)) / n, and so

        dW[k, :] = M (g - u (u · g)) / n

    x is an index and has no gradient. `backward` returns None for dx, so an Embedding
    can only be the first layer of a model.
    """

    one_array = True

    num_embeddings: int
    width: int
    _: KW_ONLY
    initializer: Initializer = field(default=TruncatedNormal(0.02), repr=False)
    padding_idx: int | None = None
    max_norm: float | None = None

    input_kinds: ClassVar[str | dict[str, str]] = "integral"
    per_position = True

    def __post_init__(self) -> None:
        expect_initializer("initializer", self.initializer)
        expect_count("num_embeddings", self.num_embeddings)
        expect_count("width", self.width)
        if self.padding_idx is not None:
            expect_integer("padding_idx", self.padding_idx, 0)
            fits = self.padding_idx < self.num_embeddings
            message = "expected padding_idx below num_embeddings, {}, got {}"
            expect(fits, message, self.num_embeddings, self.padding_idx)
        if self.max_norm is not None:
            expect_positive("max_norm", self.max_norm)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        weight = self.initializer(key, (self.num_embeddings, self.width), dtype)
        if self.padding_idx is not None:
            xp = namespace(weight)
            weight = xp.where(self._is_padding_row(weight), 0.0, weight)
        return {"weight": weight}, {}, (*shape, self.width)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map integers x (...) to y (..., width).

        Indices are not checked here, as `jit` hides values; `check` does so
        on the host.

        Raises
        ------
        TypeError
            If x does not have an integer dtype, or belongs to another array library.
        """
        weight = params["weight"]
        xp = namespace(x, weight)
        if not xp.isdtype(x.dtype, "integral"):
            raise TypeError(f"{type(self).__name__} takes integers, got {x.dtype}")
        # PyTorch does not take integers narrower than int32 as indices
        rows = xp.astype(xp.reshape(x, (-1,)), xp.int32, copy=False)
        y = xp.take(weight, rows, axis=0)
        if self.max_norm is not None:
            wide = widened(y)
            y = narrowed(wide * self._shrinkage(wide)[0], y)
        if self.padding_idx is not None:
            y = xp.where((rows == self.padding_idx)[:, None], 0.0, y)
        return xp.reshape(y, (*x.shape, self.width)), state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        xp = namespace(dy)
        # libraries add one row after the other: many, if one word is frequent
        updates = widened(xp.reshape(dy, (-1, self.width)))
        rows = xp.reshape(cache, (-1,))
        total = scatter_add(updates, rows, self.num_embeddings)
        if self.max_norm is not None:
            # the derivative of a row is the same for all its look-ups
            weight = widened(params["weight"])
            factor, norm = self._shrinkage(weight)
            unit = weight / xp.maximum(norm, self.max_norm)
            along = xp.sum(unit * total, axis=-1, keepdims=True)
            is_long = norm > self.max_norm
            total = factor * (total - xp.where(is_long, unit * along, 0.0))
        if self.padding_idx is not None:
            total = xp.where(self._is_padding_row(total), 0.0, total)
        return None, {"weight": narrowed(total, like=dy)}

    def check(self, x: Array) -> None:
        super().check(x)
        self._check_rows(x)

    def _check_rows(self, x: Array) -> None:
        """Raise ValueError if an index is not a row of the table."""
        index = first_true((x < 0) | (x >= self.num_embeddings))
        if index is not None:
            raise ValueError(
                f"{type(self).__name__} holds rows 0 to {self.num_embeddings - 1}, "
                f"but x{list(index)} is {x[index]}"
            )

    def _shrinkage(self, rows: Array) -> tuple[Array, Array]:
        """Return min(1, M / n) and n = ‖row‖ of each row, (rows, 1)."""
        xp = namespace(rows)
        assert self.max_norm is not None
        norm = xp.sqrt(xp.sum(rows * rows, axis=-1, keepdims=True))
        return self.max_norm / xp.maximum(norm, self.max_norm), norm

    def _is_padding_row(self, table: Array) -> Array:
        """Return a boolean for each row of a table, (num_embeddings, 1)."""
        numbers = namespace(table).arange(self.num_embeddings, device=device(table))
        return numbers[:, None] == self.padding_idx


@dataclass(frozen=True)
class EmbeddingBag(Embedding):
    """y = the sum, mean or maximum of W[i, :] over the indices i of each bag.

    x: integers (batch, ..., bag), or a dict of these as "x" and, optionally, arrays of
    the same shape, "mask" of booleans for bags of different sizes, and "weights" of
    real numbers -> y: (batch, ..., width).

    `mode`: "mean", "sum" or "max". Only positions where the mask is True belong to a
    bag, and those with `padding_idx` never do, as in PyTorch. The y of an empty bag
    is 0. "weights" are for mode "sum": y = Σ w W[i, :] (PyTorch: per_sample_weights).
    The other arguments are those of `Embedding`.

    Parameters: weight (num_embeddings, width).

    Gradient
    --------
    With c the number of indices in a bag, and p the first of those whose vector has
    the largest element in a column, the vector of each look-up in the bag gets

        sum    dy        mean    dy / c        max    dy in the columns where it is p

    and dW adds them up as in `Embedding`. With a weight w it is w dy, and dw is the
    scalar product of dy and the vector. x and the mask have no gradient.
    """

    _: KW_ONLY
    mode: str = "mean"

    one_array = False
    input_kinds: ClassVar[str | dict[str, str]] = {
        "x": "integral",
        "mask": "bool",
        "weights": "real floating",
    }
    per_position = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_choice("mode", self.mode, ("mean", "sum", "max"))

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        indices, *others = self._inputs(shape)
        shapes = [None if other is None else (0, *other) for other in others]
        self._expect_shapes((0, *indices), *shapes)
        params, state, _ = super().init(key, indices, dtype)
        return params, state, (*indices[:-1], self.width)

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map integers (batch, ..., bag) to y (batch, ..., width).

        Raises
        ------
        ValueError
            If the shape of the mask or the weights is not that of the indices, there
            are weights in another mode than "sum", or their dtype is not that of W.
        TypeError
            If the dtypes of the indices and the mask are not integral and boolean.
        """
        indices, mask, weights = self._inputs(x)
        shapes = [None if other is None else other.shape for other in (mask, weights)]
        self._expect_shapes(indices.shape, *shapes)
        xp = namespace(params["weight"], indices)
        if weights is not None:
            held = params["weight"].dtype
            fits = weights.dtype == held
            expect(fits, "EmbeddingBag holds {}, got weights {}", held, weights.dtype)
        if mask is not None and mask.dtype != xp.bool:
            raise TypeError(f"expected a boolean mask, got {mask.dtype}")
        vectors, _, _ = super().forward(params, state, indices)
        mask_cache: Any = () if mask is None else mask
        allowed = self._allowed(indices, mask_cache)
        if self.mode == "max":
            candidates = xp.where(allowed, vectors, -math.inf)
            largest_at = xp.argmax(candidates, axis=-2, keepdims=True)
            is_empty = ~xp.any(allowed, axis=-2)
            y = xp.where(is_empty, 0.0, xp.max(candidates, axis=-2))
            return y, state, (indices, mask_cache, largest_at, ())
        wide = xp.where(allowed, widened(vectors), 0.0)
        if weights is not None:
            wide = wide * widened(weights)[..., None]
        total = sum_over(wide, (wide.ndim - 2,))
        y = (total / self._counts(allowed, total))[..., 0, :]
        weights_cache: Any = () if weights is None else weights
        return narrowed(y, vectors), state, (indices, mask_cache, (), weights_cache)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        indices, mask, largest_at, weights = cache
        has_weights = not isinstance(weights, tuple)
        xp = namespace(dy)
        allowed = self._allowed(indices, mask)
        each = dy[..., None, :]
        if self.mode == "max":
            numbers = xp.arange(indices.shape[-1], device=device(dy))
            numbers = xp.astype(numbers, largest_at.dtype)[:, None]
            allowed = xp.logical_and(allowed, largest_at == numbers)
        else:
            each = narrowed(widened(each) / self._counts(allowed, widened(each)), dy)
        dx: Any = {}
        if has_weights:
            # computed again: the vectors need more memory than anything else
            vectors = widened(super().forward(params, {}, indices)[0])
            along = xp.sum(widened(dy)[..., None, :] * vectors, axis=-1)
            dweights = narrowed(xp.where(allowed[..., 0], along, 0.0), dy)
            dx["weights"] = dweights
            each = narrowed(widened(each) * widened(weights)[..., None], dy)
        shares = xp.where(allowed, each, 0.0)
        _, grads = super().backward(params, indices, shares)
        if not isinstance(mask, tuple):
            dx["mask"] = None
        return {"x": None, **dx} if dx else None, grads

    def check(self, x: Any) -> None:
        Layer.check(self, x)
        self._check_rows(self._inputs(x)[0])

    def _inputs(self, x: Any) -> tuple[Any, Any, Any]:
        """Return the indices, and the mask and the weights or None for each.

        They are arrays or shapes.
        """
        if not isinstance(x, dict):
            return x, None, None
        fits = "x" in x and x.keys() <= {"x", "mask", "weights"}
        expect(fits, "EmbeddingBag takes x, mask and weights, got {}", sorted(x))
        fits = self.mode == "sum" or "weights" not in x
        expect(fits, "weights are for mode 'sum', not '{}'", self.mode)
        return x["x"], x.get("mask"), x.get("weights")

    def _expect_shapes(
        self, indices: Shape, mask: Shape | None, weights: Shape | None
    ) -> None:
        fits = len(indices) >= 2 and indices[-1] >= 1
        message = "EmbeddingBag takes (batch, ..., bag), got (batch, *{})"
        expect(fits, message, indices[1:])
        if mask is not None:
            message = "expected a mask (batch, *{}) as of x, got (batch, *{})"
            expect(mask == indices, message, indices[1:], mask[1:])
        if weights is not None:
            message = "expected weights (batch, *{}) as of x, got (batch, *{})"
            expect(weights == indices, message, indices[1:], weights[1:])

    def _allowed(self, indices: Array, mask: Any) -> Array:
        """Return whether each position belongs to its bag, (batch, ..., bag, 1)."""
        xp = namespace(indices)
        allowed = indices >= 0 if isinstance(mask, tuple) else mask
        if self.padding_idx is not None:
            allowed = xp.logical_and(allowed, indices != self.padding_idx)
        return allowed[..., None]

    def _counts(self, allowed: Array, like: Array) -> Any:
        """Return the divisor of each bag, (batch, ..., 1, 1), or 1 for sums."""
        if self.mode == "sum":
            return 1.0
        xp = namespace(allowed)
        counts = xp.sum(xp.astype(allowed, like.dtype), axis=-2, keepdims=True)
        return xp.maximum(counts, 1.0)


@dataclass(frozen=True)
class Unembedding(Layer):
    """y = x Wᵀ: the scalar product of x with each row of a table W.

    x: (..., width) -> y: (..., num_embeddings), such as the logits of the next token.

    W has the layout of an Embedding's weight, so that both layers can share one array
    (Press & Wolf, arXiv:1608.05859). `num_embeddings`: the number of rows of W.

    Parameters: weight (num_embeddings, width).

    Gradient
    --------
    As in Dense, with Wᵀ as the weight:

        dx = dy W        dW = dyᵀ x

    where the second product sums over every axis but the last.
    """

    one_array = True

    num_embeddings: int
    _: KW_ONLY
    initializer: Initializer = field(default=TruncatedNormal(0.02), repr=False)

    per_position = True

    def __post_init__(self) -> None:
        expect_initializer("initializer", self.initializer)
        expect_count("num_embeddings", self.num_embeddings)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect(len(shape) >= 1, "Unembedding takes (batch, ..., width), got (batch,)")
        *leading, width = shape
        params = {"weight": self.initializer(key, (self.num_embeddings, width), dtype)}
        return params, {}, (*leading, self.num_embeddings)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map x (..., width), in the dtype of the weight, to y (..., num_embeddings).

        Raises
        ------
        ValueError
            If the last axis or the dtype of x differs from those of the weight.
        TypeError
            If x belongs to another array library.
        """
        weight = params["weight"]
        namespace(x, weight)  # raises if x belongs to another library
        width = weight.shape[1]
        fits = x.shape[-1:] == (width,)
        expect(fits, "Unembedding takes (..., {}), got {}", width, x.shape)
        fits = x.dtype == weight.dtype
        expect(fits, "Unembedding holds {}, got {}", weight.dtype, x.dtype)
        return matrix_as(as_matrix(x) @ weight.T, x), state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        rows = as_matrix(dy)
        dx = matrix_as(rows @ params["weight"], dy)
        return dx, {"weight": rows.T @ as_matrix(cache)}
