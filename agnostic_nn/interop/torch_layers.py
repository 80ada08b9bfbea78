"""Layers for operators of PyTorch that are neither layers nor operations here."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import (
    expect,
    expect_flag,
    expect_integer,
    expect_integers,
    expect_number,
)
from ..core.fields import set_fields
from ..core.random import bernoulli, split
from ..layers.base import Layer
from ..ops import (
    attend,
    attend_backward,
    attend_general,
    attend_general_backward,
    narrowed,
    sum_over,
    widened,
)

__all__ = ["ScaledDotProductAttention", "Split", "StopGradient"]


@dataclass(frozen=True)
class Split(Layer):
    """y = a tuple of consecutive parts of x along `axis`, which is not the batch.

    `sizes`: the lengths of the parts, which add up to that of the axis. It is the
    inverse of `Concatenate`.

    Gradient
    --------
    Each element of x is in one part, so dx is the concatenation of the parts of dy.
    """

    one_array = True

    axis: int
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis, 1)
        set_fields(self, sizes=expect_integers("sizes", self.sizes, 1))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Any]:
        fits = self.axis <= len(shape) and sum(self.sizes) == shape[self.axis - 1]
        message = "Split makes parts of {} along axis {} of (batch, *{})"
        expect(fits, message, self.sizes, self.axis, shape)
        i = self.axis - 1
        out = tuple((*shape[:i], size, *shape[i + 1 :]) for size in self.sizes)
        return {}, {}, out

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[tuple[Array, ...], State, Cache]:
        parts = []
        start = 0
        before = (slice(None),) * self.axis
        for size in self.sizes:
            parts.append(x[(*before, slice(start, start + size), ...)])
            start += size
        return tuple(parts), state, ()

    def backward(
        self, params: Params, cache: Cache, dy: tuple[Array, ...]
    ) -> tuple[Array, Params]:
        return namespace(*dy).concat(dy, axis=self.axis), {}


class StopGradient(Layer):
    """y = x, as a constant (PyTorch: detach).

    Gradient
    --------
    x has none: dx is None.
    """

    one_array = True
    per_position = True

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return x, state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        return None, {}


@dataclass(frozen=True)
class ScaledDotProductAttention(Layer):
    """y = P V with P = softmax(Q Kᵀ c + B) over the allowed keys, for each head.

    It takes a dict: "query" (batch, heads, t, d), "key" (batch, heads, s, d) and
    "value" (batch, heads, s, e), and optionally "mask", booleans that are True where a
    key is allowed, and "bias", numbers B. Both broadcast to (batch, heads, t, s), with
    as many axes. y: (batch, heads, t, e). If no key is allowed, y is 0.

    `scale`: c, by default 1 / √d. `causal`: query i may use the keys 0 to i only.
    `dropout`: the probability with which elements of P are dropped in training; the
    state then has a random key. `mask`, `bias`: the shape of a constant, without a
    batch, which is in the state instead of in x. The mask starts as True, the bias as
    0.

    Gradient
    --------
    As derived in `ops.attention`, with g = dy Vᵀ,

        dV = Pᵀ dy        dS = P ∘ (g - Σ g ∘ P)        dQ = c dS K        dK = c dSᵀ Q

    and dB is the sum of dS over the axes along which B is broadcast.
    """

    _: KW_ONLY
    causal: bool = False
    dropout: float = 0.0
    scale: float | None = None
    mask: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        expect_flag("causal", self.causal)
        expect_number("dropout", self.dropout, 0.0, 1.0)
        if self.scale is not None:
            expect_number("scale", self.scale)
        for name in ("mask", "bias"):
            shape = getattr(self, name)
            if shape is not None:
                set_fields(self, **{name: expect_integers(name, shape, 0)})

    @property
    def input_kinds(self) -> dict[str, str]:  # type: ignore[override]
        """The kinds of dtype of the inputs."""
        names = ("query", "key", "value", "bias")
        return {**dict.fromkeys(names, "real floating"), "mask": "bool"}

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect(shape)
        xp = namespace(key)
        state = {"key": key} if self.dropout else {}
        if self.mask is not None:
            state["mask"] = xp.ones(self.mask, dtype=xp.bool, device=device(key))
        if self.bias is not None:
            state["bias"] = xp.zeros(self.bias, dtype=dtype, device=device(key))
        return {}, state, (*shape["query"][:-1], shape["value"][-1])

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        query = x["query"]
        xp = namespace(query)
        ratio = self._ratio(query)
        wide_query = widened(query)[:, :, None, ...]
        if ratio != 1.0:
            wide_query = wide_query * ratio
        key, value = widened(x["key"]), widened(x["value"])
        mask = _with_group(x.get("mask", state.get("mask", ())))
        bias = _with_group(x.get("bias", state.get("bias", ())))
        keep: Any = ()
        if train and self.dropout:
            keys = split(state["key"], 2)
            shape = (*wide_query.shape[:-1], key.shape[-2])
            keep = bernoulli(keys[0, :], 1.0 - self.dropout, shape)
            keep = xp.astype(keep, wide_query.dtype) * (1.0 / (1.0 - self.dropout))
            state = {**state, "key": keys[1, :]}
        arguments = (wide_query, key, value, mask, keep)
        if isinstance(bias, tuple):
            heads, cache = attend(*arguments, causal=self.causal)
        else:
            heads, cache = attend_general(*arguments, widened(bias), causal=self.causal)
        y = narrowed(heads[:, :, 0, ...], query)
        saved = (wide_query, key, value, mask, keep, heads, cache)
        return y, state, (saved, x.get("bias", ()), x.get("mask", ()))

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        (query, key, value, mask, keep, heads, inner), bias, mask_input = cache
        wide = widened(dy)[:, :, None, ...]
        dbias: Any = None
        if self.bias is None and isinstance(bias, tuple):
            dquery, dkey, dvalue = attend_backward(
                *(query, key, value, mask, keep, heads, inner, wide),
                causal=self.causal,
            )
        else:
            dquery, dkey, dvalue, dscores = attend_general_backward(
                query, key, value, keep, inner, wide
            )
            dbias = dscores
        dquery = dquery[:, :, 0, ...] * self._ratio(query)
        dx = {
            "query": narrowed(dquery, dy),
            "key": narrowed(dkey, dy),
            "value": narrowed(dvalue, dy),
        }
        if not isinstance(bias, tuple):
            dx["bias"] = narrowed(_summed(dbias[:, :, 0, ...], bias.shape), dy)
        if not isinstance(mask_input, tuple):
            dx["mask"] = None
        return dx, {}

    def _ratio(self, query: Array) -> float:
        """Return c √d, since `attend` multiplies by 1 / √d."""
        return 1.0 if self.scale is None else self.scale * math.sqrt(query.shape[-1])

    def _expect(self, shape: Any) -> None:
        names = {"query", "key", "value"}
        is_dict = isinstance(shape, dict) and names <= shape.keys()
        fits = is_dict and shape.keys() <= names | {"mask", "bias"}
        name = type(self).__name__
        expect(fits, "{} takes query, key and value, got {}", name, shape)
        query, key, value = shape["query"], shape["key"], shape["value"]
        fits = len(query) == len(key) == len(value) == 3
        fits = fits and query[0] == key[0] == value[0]
        fits = fits and query[2] == key[2] and key[1] == value[1]
        message = (
            "{} takes query (batch, heads, t, d), key (batch, heads, s, d) and value "
            "(batch, heads, s, e), got (batch, *{}), (batch, *{}) and (batch, *{})"
        )
        expect(fits, message, name, query, key, value)


def _with_group(x: Any) -> Any:
    """Return x (..., heads, t, s) with an axis of length 1 after that of the heads."""
    if isinstance(x, tuple) or x.ndim < 3:
        return x
    return x[..., None, :, :]


def _summed(dscores: Array, shape: Shape) -> Array:
    """Return the sum over the axes along which an array of `shape` is broadcast."""
    lengths = zip(shape, dscores.shape, strict=True)
    axes = tuple(i for i, (n, m) in enumerate(lengths) if n == 1 and m != 1)
    return sum_over(dscores, axes) if axes else dscores
