"""Embedding and Unembedding: look-ups in a table of vectors, and products with it."""

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
    first_true,
    namespace,
)
from ..core.errors import expect, expect_count
from ..initializers import Initializer, TruncatedNormal, expect_initializer
from ..ops import narrowed, scatter_add, widened
from .base import Layer
from .shapes import as_matrix, matrix_as

__all__ = ["Embedding", "Unembedding"]


@dataclass(frozen=True)
class Embedding(Layer):
    """y[..., :] = W[x[...], :], with x integers in [0, n), n = `num_embeddings`.

    x: (...), integers -> y: (..., width).

    `num_embeddings`: the number of rows of W (vocabulary size; Keras: input_dim).
    `width`: the length of a row (embedding_dim, output_dim).

    Parameters: weight (num_embeddings, width).

    Gradient
    --------
    Each look-up is a product with a one-hot row, so its dW is dy in the row that it
    read and 0 elsewhere. Look-ups of the same row add up:

        dW[k, :] = Σ dy[..., :] over all positions where x[...] = k

    x is an index and has no gradient. `backward` returns None for dx, so an Embedding
    can only be the first layer of a model.
    """

    one_array = True

    num_embeddings: int
    width: int
    _: KW_ONLY
    initializer: Initializer = field(default=TruncatedNormal(0.02), repr=False)

    input_kinds: ClassVar[str | dict[str, str]] = "integral"
    per_position = True

    def __post_init__(self) -> None:
        expect_initializer("initializer", self.initializer)
        expect_count("num_embeddings", self.num_embeddings)
        expect_count("width", self.width)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        weight = self.initializer(key, (self.num_embeddings, self.width), dtype)
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
            raise TypeError(f"Embedding takes integers, got {x.dtype}")
        # PyTorch does not take integers narrower than int32 as indices
        rows = xp.astype(xp.reshape(x, (-1,)), xp.int32, copy=False)
        y = xp.take(weight, rows, axis=0)
        return xp.reshape(y, (*x.shape, self.width)), state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        xp = namespace(dy)
        # libraries add one row after the other: many, if one word is frequent
        updates = widened(xp.reshape(dy, (-1, self.width)))
        rows = xp.reshape(cache, (-1,))
        total = scatter_add(updates, rows, self.num_embeddings)
        return None, {"weight": narrowed(total, like=dy)}

    def check(self, x: Array) -> None:
        super().check(x)
        index = first_true((x < 0) | (x >= self.num_embeddings))
        if index is not None:
            raise ValueError(
                f"Embedding holds rows 0 to {self.num_embeddings - 1}, "
                f"but x{list(index)} is {x[index]}"
            )


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
