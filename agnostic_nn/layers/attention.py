"""Multi-head attention. Queries, keys and values are linear projections of the inputs.

The weighted mean that each head computes, and its gradient, are derived in
`ops.attention`. For `backward` the cache holds Q, K, V, the joined heads O, and what
`attend` returns for it. `Recompute` around a block saves that memory.

float16 and bfloat16 are computed in float32 between the projections of x and the
projection of O: sums in S may overflow, and the weights P become small with many keys.
"""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import (
    expect,
    expect_count,
    expect_flag,
    expect_number,
    expect_positive,
)
from ..core.random import bernoulli, split
from ..initializers import Initializer, expect_initializer, glorot_uniform
from ..ops import attend, attend_backward, narrowed, widened
from .base import Layer
from .dense import Dense
from .positions import angles, expect_sequence, rotate

__all__ = ["MultiHeadAttention", "inputs_by_name", "nest_like_x"]


@dataclass(frozen=True)
class MultiHeadAttention(Layer):
    """y = [O₁ … Oₕ] W_o + b_o, with P = softmax(Q Kᵀ / √d) and O = P V for each head.

        Q = x W_q + b_q        K = source W_k + b_k        V = source W_v + b_v

    The source is x too (self-attention), or a second sequence (cross-attention)
    (Vaswani et al., arXiv:1706.03762, sec. 3.2.2).

    x: (batch, time, width), or a dict of "x" and, optionally,

    - "source": (batch, source time, source width), the sequence that K and V are
      computed from (PyTorch: key and value; the encoder's output, also called memory);
    - "mask": boolean, True where a key may be attended to: (batch, keys), for padded
      sequences, or (batch, time, keys). PyTorch's masks are True where a key is hidden.

    y: (batch, time, width). If the mask hides all keys from a query, its O is 0 and its
    y is b.

    Options, with the names of PyTorch or Keras where they differ:

        heads        number of heads (num_heads)
        head_width   d, by default width / heads (Keras: key_dim)
        key_heads    number of heads of K and V, a divisor of `heads`: each is shared
                     by a group of neighbouring heads of Q (grouped-query attention,
                     Ainslie et al., arXiv:2305.13245)
        causal       position t attends to keys up to t only, in addition to the mask
        rotary       rotate Q and K by angles of their positions (Su et al.,
                     arXiv:2104.09864, eq. 34); `base` sets the frequencies,
                     see `layers.positions`
        dropout      probability with which elements of P = softmax(…) are dropped in
                     training; the state then is a random key
        bias         whether the projections add a bias

    Parameters: query, key, value and output, each a dict of weight (fan_in, width) and,
    unless `bias` is false, bias (width,), which starts at 0.

    In decoding (`begin`, `advance`) the memory holds K and V of all steps so far. With
    a source, which is passed at every step, K and V are computed once, in `begin`.

    Gradient
    --------
    For each head, as derived in `ops.attention`, with dO = dy W_oᵀ and g = dO Vᵀ,

        dS = P ∘ (g - Σ g ∘ P)        dQ = dS K / √d        dK = dSᵀ Q / √d
        dV = Pᵀ dO

    and each projection maps back as in `Dense`:

        dx = dQ W_qᵀ        dsource = dK W_kᵀ + dV W_vᵀ        dW_q = xᵀ dQ, and so on

    In self-attention the source is x, so dsource is added to dx.
    """

    heads: int
    _: KW_ONLY
    key_heads: int | None = None
    head_width: int | None = None
    causal: bool = False
    rotary: bool = False
    base: float = 10_000.0
    dropout: float = 0.0
    bias: bool = True
    initializer: Initializer = field(default=glorot_uniform, repr=False)

    input_kinds: ClassVar[dict[str, str]] = {
        "x": "real floating",
        "source": "real floating",
        "mask": "bool",
    }

    def __post_init__(self) -> None:
        for name in ("causal", "rotary", "bias"):
            expect_flag(name, getattr(self, name))
        expect_initializer("initializer", self.initializer)
        expect_count("heads", self.heads)
        if self.key_heads is not None:
            expect_count("key_heads", self.key_heads)
            fits = self.heads % self.key_heads == 0
            message = "{} heads cannot share {} key_heads"
            expect(fits, message, self.heads, self.key_heads)
        if self.head_width is not None:
            expect_count("head_width", self.head_width)
        expect_positive("base", self.base)
        expect_number("dropout", self.dropout, 0.0, 1.0)

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        shapes, _ = inputs_by_name(self, shape)
        for name in shapes.keys() - {"mask"}:
            expect_sequence("MultiHeadAttention", shapes[name])
        width = shapes["x"][-1]
        source_width = shapes.get("source", shapes["x"])[-1]
        fits = self.head_width is not None or width % self.heads == 0
        expect(fits, "{} heads cannot share a width of {}", self.heads, width)
        head_width = self.head_width or width // self.heads
        fits = not self.rotary or head_width % 2 == 0
        expect(fits, "rotary needs an even head_width, got {}", head_width)
        key_heads = self.key_heads or self.heads
        fans = {
            "query": (width, head_width * self.heads),
            "key": (source_width, head_width * key_heads),
            "value": (source_width, head_width * key_heads),
            "output": (head_width * self.heads, width),
        }
        keys = split(key, 5)
        params = {}
        for i, (name, (fan_in, fan_out)) in enumerate(fans.items()):
            dense = Dense(fan_out, bias=self.bias, initializer=self.initializer)
            params[name], _, _ = dense.init(keys[i, :], (fan_in,), dtype)
        state = {"key": keys[4, :]} if self.dropout else {}
        return params, state, shapes["x"]

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map x (batch, time, width), alone or in a dict of inputs, to y of its shape.

        Raises
        ------
        ValueError
            If an input has an unknown name, or a shape or dtype that does not fit.
        TypeError
            If the mask is not boolean, or an array belongs to another library.
        """
        inputs, present = inputs_by_name(self, x)
        x = inputs["x"]
        source = inputs.get("source", x)
        query = self._queries(params, x, _positions(x))
        key, value = self._keys(params, source, _positions(source))
        shape = (*query.shape[:-1], key.shape[-2])
        allowed = _allowed(inputs.get("mask"), shape)
        keep_mask: Any = ()
        if train and self.dropout:
            keys = split(state["key"], 2)
            keep_mask = bernoulli(keys[0, :], 1.0 - self.dropout, shape)
            scale = 1.0 / (1.0 - self.dropout)
            keep_mask = namespace(x).astype(keep_mask, x.dtype) * scale
            state = {"key": keys[1, :]}
        heads, attend_cache = attend(
            widened(query),
            widened(key),
            widened(value),
            allowed,
            _widened(keep_mask),
            causal=self.causal,
        )
        heads = narrowed(heads, like=query)
        joined = self._joined(heads)
        # () in self-attention: x is cached once
        other_source = inputs.get("source", ())
        heads_cache = (query, key, value, allowed, keep_mask, attend_cache, joined)
        cache = (x, other_source, present, heads_cache)
        return self._map(params, "output", joined), state, cache

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        x, source, present, heads_cache = cache
        query, key, value, allowed, keep_mask, attend_cache, joined = heads_cache
        is_self_attention = isinstance(source, tuple)
        if is_self_attention:
            source = x
        grads = {}

        def back(name: str, x: Array, dy: Array) -> Array:
            dx, grads[name] = self._dense(params[name]).backward(params[name], x, dy)
            return dx

        # the chain rule from y back to x: output, attention, rotation, then Q, K and V
        key_heads = value.shape[1]
        dheads = self._grouped(back("output", joined, dy), key_heads)
        heads = self._grouped(joined, key_heads)
        wide_grads = attend_backward(
            widened(query),
            widened(key),
            widened(value),
            allowed,
            _widened(keep_mask),
            widened(heads),
            attend_cache,
            widened(dheads),
            causal=self.causal,
        )
        dquery, dkey, dvalue = (narrowed(grad, like=dy) for grad in wide_grads)
        if self.rotary:
            # the inverse of a rotation is its transpose: rotate back
            dquery = rotate(dquery, -self._angles(query, _positions(x)))
            dkey = rotate(dkey, -self._angles(key, _positions(source)))
        dx = back("query", x, self._joined(dquery))
        dsource = back("key", source, _join_heads(dkey))
        dsource += back("value", source, _join_heads(dvalue))  # in place: a new array
        if is_self_attention:
            dx += dsource
        return nest_like_x(self, dx, (dsource, None), present), grads

    def begin(self, params: Params, state: State, x: Any, length: int) -> Memory:
        inputs, _ = inputs_by_name(self, x)
        x = inputs["x"]
        xp = namespace(x)
        step = xp.zeros((), dtype=xp.int32, device=device(x))
        if "source" in inputs:
            source = inputs["source"]
            key, value = self._keys(params, source, _positions(source))
            return {"step": step, "key": key, "value": value}
        if not self.causal:
            reason = "it is not causal, so y depends on later steps"
            raise TypeError(f"{self} cannot go step by step: {reason}")
        weight = params["key"]["weight"]
        key_heads = self.key_heads or self.heads
        shape = (x.shape[0], key_heads, length, weight.shape[1] // key_heads)
        empty = xp.zeros(shape, dtype=weight.dtype, device=device(x))
        memory = {"step": step, "key": empty, "value": empty}
        if "mask" in inputs:
            mask_shape = (shape[0], length)
            memory["mask"] = xp.zeros(mask_shape, dtype=xp.bool, device=device(x))
        return memory

    def advance(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Array, Memory]:
        inputs, _ = inputs_by_name(self, x)
        x = inputs["x"]
        mask = inputs.get("mask")
        step = memory["step"]
        xp = namespace(x)
        expect(x.shape[1] == 1, "a step takes (batch, 1, width), got {}", x.shape)
        now = xp.reshape(step, (1,))
        positions = _positions(memory["key"][:, 0, :, :])
        updates = {"step": step + 1}
        if "source" not in inputs:
            # `where` instead of an assignment: the step number is an array, and under
            # `jit` only operations of fixed shape can use it
            is_now = positions == now
            rows = zip(("key", "value"), self._keys(params, x, now), strict=True)
            for name, row in rows:
                updates[name] = xp.where(is_now[:, None], row, memory[name])
            if mask is not None:
                fits = mask.ndim == 2
                message = "a step takes a mask (batch, 1) of x itself, got {}"
                expect(fits, message, mask.shape)
                mask = xp.where(is_now, mask, memory["mask"])
                updates["mask"] = mask
        memory = memory | updates
        query = self._queries(params, x, now)
        allowed = _allowed(mask, (*query.shape[:-1], positions.shape[0]))
        if self.causal:
            is_past = positions <= now
            allowed = is_past if mask is None else xp.logical_and(allowed, is_past)
        key = widened(memory["key"])
        value = widened(memory["value"])
        heads = narrowed(attend(widened(query), key, value, allowed)[0], like=query)
        return self._map(params, "output", self._joined(heads)), memory

    def _dense(self, params: Params) -> Dense:
        # the width depends on x, which is unknown before `init`; params have it
        return Dense(params["weight"].shape[1], bias=self.bias)

    def _map(self, params: Params, name: str, x: Array) -> Array:
        return self._dense(params[name]).forward(params[name], {}, x)[0]

    def _angles(self, like: Array, positions: Array) -> Array:
        return angles(like, positions, like.shape[-1], self.base)

    def _queries(self, params: Params, x: Array, positions: Array) -> Array:
        """Return Q, rotated if `rotary`, as (batch, key heads, group, time, d)."""
        expect_sequence("MultiHeadAttention", x.shape[1:])
        key_heads = self.key_heads or self.heads
        query = self._grouped(self._map(params, "query", x), key_heads)
        return rotate(query, self._angles(query, positions)) if self.rotary else query

    def _keys(self, params: Params, x: Array, positions: Array) -> tuple[Array, Array]:
        """Return K, rotated if `rotary`, and V, as (batch, key heads, time, d)."""
        expect_sequence("MultiHeadAttention", x.shape[1:])
        key_heads = self.key_heads or self.heads
        key = _split_heads(self._map(params, "key", x), key_heads)
        value = _split_heads(self._map(params, "value", x), key_heads)
        if self.rotary:
            key = rotate(key, self._angles(key, positions))
        return key, value

    def _grouped(self, x: Array, key_heads: int) -> Array:
        """Reshape (batch, time, heads · d) to (batch, key heads, group, time, d)."""
        heads_first = _split_heads(x, self.heads)
        batch, heads, time, d = heads_first.shape
        shape = (batch, key_heads, heads // key_heads, time, d)
        return namespace(x).reshape(heads_first, shape)

    def _joined(self, x: Array) -> Array:
        """Reshape (batch, key heads, group, time, d) to (batch, time, heads · d)."""
        batch, _, _, time, d = x.shape
        return _join_heads(namespace(x).reshape(x, (batch, self.heads, time, d)))


def _split_heads(x: Array, heads: int) -> Array:
    """Reshape (batch, time, heads · d) to (batch, heads, time, d)."""
    xp = namespace(x)
    batch, time, width = x.shape
    split_width = xp.reshape(x, (batch, time, heads, width // heads))
    return xp.permute_dims(split_width, (0, 2, 1, 3))


def _join_heads(x: Array) -> Array:
    """Reshape (batch, heads, time, d) to (batch, time, heads · d)."""
    xp = namespace(x)
    batch, heads, time, d = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (batch, time, heads * d))


def _positions(x: Array) -> Array:
    """Return 0, 1, … for the steps of x (batch, time, ...)."""
    xp = namespace(x)
    return xp.arange(x.shape[1], dtype=xp.int32, device=device(x))


def _widened(keep_mask: Any) -> Any:
    return keep_mask if isinstance(keep_mask, tuple) else widened(keep_mask)


def _allowed(mask: Array | None, shape: Shape) -> Any:
    """Return the allowed keys, booleans that broadcast to `shape`, or () for all."""
    if mask is None:
        return ()
    xp = namespace(mask)
    batch, _, _, time, keys = shape
    if mask.dtype != xp.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}")
    fits = mask.shape in ((batch, keys), (batch, time, keys))
    message = "expected a mask {} or {}, got {}"
    expect(fits, message, (batch, keys), (batch, time, keys), mask.shape)
    return xp.reshape(mask, (batch, 1, 1, 1 if mask.ndim == 2 else time, keys))


def inputs_by_name(layer: Layer, x: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return the inputs of `layer` as a dict, and which of them were passed.

    x: one input or a dict, of arrays or of shapes. A cache holds arrays and tuples
    only, so the second value encodes presence by nesting: () if x is not a dict, else
    for each input but "x" ((),) if it was passed and () if not.
    """
    kinds: Any = layer.input_kinds
    inputs = x if isinstance(x, dict) else {"x": x}
    fits = "x" in inputs and inputs.keys() <= kinds.keys()
    expect(fits, "{} takes {}, got {}", type(layer).__name__, list(kinds), list(inputs))
    if inputs is not x:
        return inputs, ()
    others = [name for name in kinds if name != "x"]
    return inputs, tuple(((),) if name in inputs else () for name in others)


def nest_like_x(
    layer: Layer, dx: Array, others: tuple[Any, ...], present: tuple[Any, ...]
) -> Any:
    """Return dx alone, or in a dict with the gradients of the inputs that were passed.

    others: the gradients of all inputs but "x"; present: the second value
    of `inputs_by_name`.
    """
    if not present:
        return dx
    names = [name for name in layer.input_kinds if name != "x"]
    grads = {"x": dx}
    for name, grad, is_present in zip(names, others, present, strict=True):
        if is_present:
            grads[name] = grad
    return grads
