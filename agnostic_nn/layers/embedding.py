"""Embedding: a table of rows, looked up by number; and what it takes to find the number again."""

from dataclasses import KW_ONLY, dataclass, field

from ..core.arrays import first_true, namespace
from ..core.errors import expect, expect_count
from ..initializers import Initializer, TruncatedNormal, expect_initializer
from ..ops import scatter_add
from .base import Layer

__all__ = ["Embedding", "Unembedding"]


@dataclass(frozen=True)
class Embedding(Layer):
    """y[..., :] = W[x[...], :], with x integers in [0, n), n = `num_embeddings`.

    Parameters: weight (num_embeddings, width).

    Gradient
    --------
    Each look-up is a product with a one-hot row, so its dW is dy in the row it read
    and 0 elsewhere; look-ups of one row add up:

        dW[k, :] = Σ dy[..., :] over all places where x[...] = k

    x is a number of a row and has no gradient: `backward` gives None for dx, so an
    Embedding stands at the beginning of a model.
    """

    one_array = True

    num_embeddings: int
    width: int
    _: KW_ONLY
    initializer: Initializer = field(default=TruncatedNormal(0.02), repr=False)

    input_kinds = "integral"
    per_position = True

    def __post_init__(self):
        expect_initializer("initializer", self.initializer)
        expect_count("num_embeddings", self.num_embeddings)
        expect_count("width", self.width)

    def init(self, key, shape, dtype):
        weight = self.initializer(key, (self.num_embeddings, self.width), dtype)
        return {"weight": weight}, {}, (*shape, self.width)

    def forward(self, params, state, x, *, train=False):
        """x: (...) integer -> y: (..., width). Numbers are trusted: `jit` hides values.

        Raises
        ------
        TypeError
            If x is not of an integer dtype, or of another array library.
        """
        weight = params["weight"]
        xp = namespace(x, weight)
        if not xp.isdtype(x.dtype, "integral"):
            raise TypeError(f"Embedding takes integers, got {x.dtype}")
        # a narrow integer is no index to PyTorch
        rows = xp.astype(xp.reshape(x, (-1,)), xp.int32, copy=False)
        y = xp.take(weight, rows, axis=0)
        return xp.reshape(y, (*x.shape, self.width)), state, x

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        updates = xp.reshape(dy, (-1, self.width))
        return None, {"weight": scatter_add(updates, xp.reshape(cache, (-1,)), self.num_embeddings)}

    def check(self, x):
        super().check(x)
        bad = first_true((x < 0) | (x >= self.num_embeddings))
        if bad is not None:
            raise ValueError(
                f"Embedding holds rows 0 to {self.num_embeddings - 1}, but x{list(bad)} is {x[bad]}"
            )


@dataclass(frozen=True)
class Unembedding(Layer):
    """y = x Wᵀ: how well x fits each row of a table, with W laid out as that of an Embedding.

    So both may share one (Press & Wolf, arXiv:1608.05859), and y are the logits of the next
    number. x: (..., width) -> y: (..., num_embeddings). Parameters: weight (num_embeddings, width).

    Gradient
    --------
    As in Dense, with Wᵀ for its weight: dx = dy W and dW = dyᵀ x, summed over every axis
    but the last.
    """

    one_array = True

    num_embeddings: int
    _: KW_ONLY
    initializer: Initializer = field(default=TruncatedNormal(0.02), repr=False)

    per_position = True

    def __post_init__(self):
        expect_initializer("initializer", self.initializer)
        expect_count("num_embeddings", self.num_embeddings)

    def init(self, key, shape, dtype):
        expect(len(shape) >= 1, "Unembedding takes (batch, ..., width), got (batch,)")
        *lead, width = shape
        return (
            {"weight": self.initializer(key, (self.num_embeddings, width), dtype)},
            {},
            (*lead, self.num_embeddings),
        )

    def forward(self, params, state, x, *, train=False):
        """x: (..., width) -> y: (..., num_embeddings), in the one dtype of x and the weight.

        Raises
        ------
        ValueError
            If x has another width or dtype than the weight was made for.
        TypeError
            If x belongs to another array library.
        """
        weight = params["weight"]
        xp = namespace(x, weight)
        num_embeddings, width = weight.shape
        expect(x.shape[-1:] == (width,), "Unembedding takes (..., {}), got {}", width, x.shape)
        expect(x.dtype == weight.dtype, "Unembedding holds {}, got {}", weight.dtype, x.dtype)
        # one matrix: NumPy takes a product of more axes for many small ones
        y = xp.reshape(x, (-1, width)) @ weight.T
        return xp.reshape(y, (*x.shape[:-1], num_embeddings)), state, x

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        num_embeddings, width = params["weight"].shape
        rows, x = xp.reshape(dy, (-1, num_embeddings)), xp.reshape(cache, (-1, width))
        dx = xp.reshape(rows @ params["weight"], cache.shape)
        return dx, {"weight": rows.T @ x}
