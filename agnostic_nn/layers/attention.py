"""Multi-head attention. Queries, keys and values are linear projections of the inputs.

The weighted mean that each head computes, and its gradient, are derived in
`ops.attention`. For `backward` the cache holds Q, K, V, the joined heads O, and what
`attend` returns for it. `Recompute` around a block saves that memory.

float16 and bfloat16 are computed in float32 between the projections of x and the
projection of O: sums in S may overflow, and the weights P become small with many keys.
"""

import math
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
from ..core.random import bernoulli, fold, split
from ..initializers import Initializer, expect_initializer, glorot_uniform
from ..ops import (
    attend,
    attend_backward,
    attend_general,
    attend_general_backward,
    attend_stored,
    narrowed,
    scatter_add,
    store,
    sum_over,
    widened,
)
from ..ops.decoding import past_keys
from .base import Layer
from .dense import Dense
from .positions import angles, expect_sequence, rotate

__all__ = ["MultiHeadAttention", "inputs_by_name", "nest_like_x"]

_PROJECTIONS = ("query", "key", "value")


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
      sequences, (batch, time, keys) or, for each head, (batch, heads, time, keys).
      PyTorch's masks are True where a key is hidden;
    - "value": (batch, source time, value source width), the sequence that V is computed
      from instead of the source (PyTorch, Keras: value);
    - "score_bias": B, which is added to Q Kᵀ / √d: (batch, time, keys) or, for each
      head, (batch, heads, time, keys) (PyTorch: a float attn_mask). -∞ hides a key.

    y: (batch, time, width). If the mask hides all keys from a query, its O is 0 and its
    y is b_o.

    Options, with the names of PyTorch or Keras where they differ:

        heads        number of heads (num_heads)
        head_width   d, by default width / heads (Keras: key_dim)
        value_width  width of a head of V, by default d (Keras: value_dim)
        output_width width of y, by default that of x (Keras: output_shape)
        key_heads    number of heads of K and V, a divisor of `heads`: each is shared
                     by a group of neighbouring heads of Q (grouped-query attention,
                     Ainslie et al., arXiv:2305.13245)
        causal       position t attends to keys up to t only, in addition to the mask
        window       position t attends to the keys s with |t - s| < window only; if
                     causal, these are `window` keys (Beltagy et al., arXiv:2004.05150)
        rotary       rotate Q and K by angles of their positions (Su et al.,
                     arXiv:2104.09864, eq. 34); `base` sets the frequencies,
                     see `layers.positions`
        alibi        add -2^(-8h / heads) |t - s| to the scores of head h = 1, 2, …
                     (Press et al., arXiv:2108.12409); if `heads` is not a power of 2,
                     the slopes are those of its authors' code
        relative     n: add a trained number for each head and each distance s - t,
                     where distances beyond ±n count as ±n
        softcap      c: replace Q Kᵀ / √d by c tanh(Q Kᵀ / (c √d)) (Gemma 2,
                     arXiv:2408.00118), before anything is added
        zero_key     every query may attend to one more key, 0, whose value is 0
                     (PyTorch: add_zero_attn)
        learned_key  every query may attend to one more key, which is a parameter, as
                     its value is (PyTorch: add_bias_kv)
        return_weights
                     y is a dict of "y" and "weights", P before dropout, (batch, heads,
                     time, keys) (PyTorch: need_weights with average_attn_weights=False)
        dropout      probability with which elements of P = softmax(…) are dropped in
                     training; the state then is a random key
        bias         whether the projections add a bias

    Parameters: query, key, value and output, each a dict of weight (fan_in, width) and,
    unless `bias` is false, bias (width,), which starts at 0; with `relative` also
    relative, a dict of bias (2 n + 1, heads), which starts at 0; with `learned_key`
    also learned, a dict of k (1, d · key_heads) and v (1, value_width · key_heads).

    In decoding (`begin`, `advance`) the memory holds K and V of all steps so far. In
    self-attention it also holds the parameters of Q, K and V side by side, for one
    product instead of three, so `begin` has to be called again after they change. With
    a source, which is passed at every step, K and V are computed once, in `begin`. The
    score_bias of a step has a row for all keys of the memory: (batch, 1, keys) or
    (batch, heads, 1, keys).

    Gradient
    --------
    For each head, as derived in `ops.attention`, with dO = dy W_oᵀ and g = dO Vᵀ,

        dS = P ∘ (g - Σ g ∘ P)        dQ = dS K / √d        dK = dSᵀ Q / √d
        dV = Pᵀ dO

    and each projection maps back as in `Dense`:

        dx = dQ W_qᵀ        dsource = dK W_kᵀ + dV W_vᵀ        dW_q = xᵀ dQ, and so on

    In self-attention the source is x, so dsource is added to dx. With another input as
    "value", dV W_vᵀ is its gradient instead. dB = dS, summed over the heads if B has no
    axis of heads, and the gradient of a number of `relative` is the sum of dS over the
    batch and over all t and s of its distance. `ops.attention` derives dQ and dK with
    `softcap`, and dS with `zero_key` and `return_weights`. A learned key and its value
    are one more row of K and of V in all examples, so their gradients are the sums of
    this row of dK and of dV over the batch.
    """

    heads: int
    _: KW_ONLY
    key_heads: int | None = None
    head_width: int | None = None
    value_width: int | None = None
    output_width: int | None = None
    causal: bool = False
    window: int | None = None
    rotary: bool = False
    base: float = 10_000.0
    alibi: bool = False
    relative: int | None = None
    softcap: float | None = None
    zero_key: bool = False
    learned_key: bool = False
    return_weights: bool = False
    dropout: float = 0.0
    bias: bool = True
    initializer: Initializer = field(default=glorot_uniform, repr=False)

    input_kinds: ClassVar[dict[str, str]] = {
        "x": "real floating",
        "source": "real floating",
        "mask": "bool",
        "value": "real floating",
        "score_bias": "real floating",
    }

    def __post_init__(self) -> None:
        flags = ("causal", "rotary", "alibi", "bias", "zero_key", "learned_key")
        for name in (*flags, "return_weights"):
            expect_flag(name, getattr(self, name))
        for name in ("head_width", "value_width", "output_width", "window", "relative"):
            if getattr(self, name) is not None:
                expect_count(name, getattr(self, name))
        if self.softcap is not None:
            expect_positive("softcap", self.softcap)
        expect_initializer("initializer", self.initializer)
        expect_count("heads", self.heads)
        if self.key_heads is not None:
            expect_count("key_heads", self.key_heads)
            fits = self.heads % self.key_heads == 0
            message = "{} heads cannot share {} key_heads"
            expect(fits, message, self.heads, self.key_heads)
        expect_positive("base", self.base)
        expect_number("dropout", self.dropout, 0.0, 1.0)

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        shapes, _ = inputs_by_name(self, shape)
        for name in shapes.keys() & {"x", "source", "value"}:
            expect_sequence("MultiHeadAttention", shapes[name])
        time, width = shapes["x"]
        source = shapes.get("source", shapes["x"])
        value_source = shapes.get("value", source)
        fits = self.head_width is not None or width % self.heads == 0
        expect(fits, "{} heads cannot share a width of {}", self.heads, width)
        head_width = self.head_width or width // self.heads
        fits = not self.rotary or head_width % 2 == 0
        expect(fits, "rotary needs an even head_width, got {}", head_width)
        value_width = self.value_width or head_width
        output_width = self.output_width or width
        key_heads = self.key_heads or self.heads
        fans = {
            "query": (width, head_width * self.heads),
            "key": (source[-1], head_width * key_heads),
            "value": (value_source[-1], value_width * key_heads),
            "output": (value_width * self.heads, output_width),
        }
        keys = split(key, 5)
        params = {}
        for i, (name, (fan_in, fan_out)) in enumerate(fans.items()):
            dense = Dense(fan_out, bias=self.bias, initializer=self.initializer)
            params[name], _, _ = dense.init(keys[i, :], (fan_in,), dtype)
        if self.relative is not None:
            bias = params["query"]["weight"]
            xp = namespace(bias)
            bias_shape = (2 * self.relative + 1, self.heads)
            bias = xp.zeros(bias_shape, dtype=bias.dtype, device=device(bias))
            params["relative"] = {"bias": bias}
        if self.learned_key:
            widths = {"k": fans["key"][1], "v": fans["value"][1]}
            params["learned"] = {
                name: self.initializer(fold(key, i), (1, width), dtype)
                for i, (name, width) in enumerate(widths.items())
            }
        state = {"key": keys[4, :]} if self.dropout else {}
        y: Any = (time, output_width)
        if self.return_weights:
            y = {"y": y, "weights": (self.heads, time, source[0])}
        return params, state, y

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        """Map x (batch, time, width), alone or in a dict of inputs, to y.

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
        times = _positions(x)
        key_times = _positions(source)
        query = self._queries(params, x, times)
        key, value = self._keys(params, source, inputs.get("value"), key_times)
        shape = (*query.shape[:-1], key.shape[-2])
        score_bias = _score_bias_of(inputs)
        allowed = self._allowed(inputs.get("mask"), score_bias, shape)
        if self.window is not None:
            allowed = _both(allowed, self._near(times, key_times))
        biases = self._score_bias(params, score_bias, times, key_times, widened(query))
        if self.learned_key:
            if self.causal:
                allowed = _both(allowed, key_times[None, :] <= times[:, None])
            extended = self._extended(params, key, value, allowed, biases)
            key, value, allowed, biases = extended
            shape = (*shape[:-1], key.shape[-2])
        causal = self.causal and not self.learned_key
        keep_mask: Any = ()
        if train and self.dropout:
            keys = split(state["key"], 2)
            keep_mask = bernoulli(keys[0, :], 1.0 - self.dropout, shape)
            scale = 1.0 / (1.0 - self.dropout)
            keep_mask = namespace(x).astype(keep_mask, x.dtype) * scale
            state = {"key": keys[1, :]}
        arguments = (
            widened(query),
            widened(key),
            widened(value),
            allowed,
            _widened(keep_mask),
        )
        if self._needs_general(score_bias):
            heads, attend_cache = attend_general(
                *arguments,
                biases,
                causal=causal,
                softcap=self.softcap,
                zero_key=self.zero_key,
            )
        else:
            heads, attend_cache = attend(*arguments, causal=causal)
        heads = narrowed(heads, like=query)
        joined = self._joined(heads)
        y = self._with_weights(self._map(params, "output", joined), attend_cache)
        # () in self-attention: x is cached once
        other_source = inputs.get("source", ())
        heads_cache = (query, key, value, allowed, keep_mask, attend_cache, joined)
        others = (other_source, inputs.get("value", ()), score_bias)
        return y, state, (x, others, present, heads_cache)

    def backward(self, params: Params, cache: Cache, dy: Any) -> tuple[Any, Params]:
        x, (source, value_source, score_bias), present, heads_cache = cache
        query, key, value, allowed, keep_mask, attend_cache, joined = heads_cache
        is_self_attention = isinstance(source, tuple)
        if is_self_attention:
            source = x
        has_value_source = not isinstance(value_source, tuple)
        dweights: Any = ()
        if self.return_weights:
            keys = key.shape[-2] - self.learned_key
            weights_shape = (*query.shape[:-1], keys)
            dweights = namespace(query).reshape(widened(dy["weights"]), weights_shape)
            if self.learned_key:
                dweights = _with_column(dweights, 0.0)
            dy = dy["y"]
        grads = {}

        def back(name: str, x: Array, dy: Array) -> Array:
            dx, grads[name] = self._dense(params[name]).backward(params[name], x, dy)
            return dx

        # the chain rule from y back to x: output, attention, rotation, then Q, K and V
        key_heads = value.shape[1]
        dheads = self._grouped(back("output", joined, dy), key_heads)
        heads = self._grouped(joined, key_heads)
        wide = (widened(query), widened(key), widened(value))
        wide_mask = _widened(keep_mask)
        wide_dheads = widened(dheads)
        wide_grads: Any
        dscores: Any = None
        if self._needs_general(score_bias):
            *wide_grads, dscores = attend_general_backward(
                *wide, wide_mask, attend_cache, wide_dheads, dweights
            )
        else:
            wide_grads = attend_backward(
                *wide,
                allowed,
                wide_mask,
                widened(heads),
                attend_cache,
                wide_dheads,
                causal=self.causal and not self.learned_key,
            )
        if self.learned_key:
            _, dkey, dvalue = wide_grads
            grads["learned"] = {
                name: narrowed(_sum_of_last(grad), like=dy)
                for name, grad in (("k", dkey), ("v", dvalue))
            }
            wide_grads = (wide_grads[0], dkey[:, :, :-1, :], dvalue[:, :, :-1, :])
            dscores = None if dscores is None else dscores[..., :-1]
        dquery, dkey, dvalue = (narrowed(grad, like=dy) for grad in wide_grads)
        if self.rotary:
            # the inverse of a rotation is its transpose: rotate back
            dquery = rotate(dquery, -self._angles(query, _positions(x)))
            dkey = rotate(dkey, -self._angles(key, _positions(source)))
        dx = back("query", x, self._joined(dquery))
        dsource = back("key", source, _join_heads(dkey))
        dvalue_source = None
        if has_value_source:
            dvalue_source = back("value", value_source, _join_heads(dvalue))
        else:
            # in place: a new array
            dsource += back("value", source, _join_heads(dvalue))
        if is_self_attention:
            dx += dsource
        if self.relative is not None:
            grads["relative"] = {"bias": narrowed(self._drelative(dscores), like=dx)}
        dscore_bias = None
        if not isinstance(score_bias, tuple):
            dscore_bias = self._dscore_bias(dscores, score_bias)
        others = (dsource, None, dvalue_source, dscore_bias)
        return nest_like_x(self, dx, others, present), grads

    def begin(self, params: Params, state: State, x: Any, length: int) -> Memory:
        inputs, _ = inputs_by_name(self, x)
        x = inputs["x"]
        xp = namespace(x)
        step = xp.zeros((), dtype=xp.int32, device=device(x))
        if "source" in inputs:
            source = inputs["source"]
            positions = _positions(source)
            key, value = self._keys(params, source, inputs.get("value"), positions)
            return {"step": step, "key": key, "value": value}
        if not self.causal:
            reason = "it is not causal, so y depends on later steps"
            raise TypeError(f"{self} cannot go step by step: {reason}")
        key_heads = self.key_heads or self.heads
        memory = {"step": step}
        for name in ("key", "value"):
            weight = params[name]["weight"]
            shape = (x.shape[0], key_heads, length, weight.shape[1] // key_heads)
            memory[name] = xp.zeros(shape, dtype=weight.dtype, device=device(x))
        if "mask" in inputs:
            mask_shape = (x.shape[0], length)
            memory["mask"] = xp.zeros(mask_shape, dtype=xp.bool, device=device(x))
        if "value" not in inputs:
            # side by side, so that a step makes one product instead of three
            memory["projections"] = {
                name: xp.concat([params[of][name] for of in _PROJECTIONS], axis=-1)
                for name in params["query"]
            }
        return memory

    def advance(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Any, Memory]:
        inputs, _ = inputs_by_name(self, x)
        shape = inputs["x"].shape
        expect(shape[1] == 1, "a step takes (batch, 1, width), got {}", shape)
        return self.prefill(params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Any, Memory]:
        inputs, _ = inputs_by_name(self, x)
        x = inputs["x"]
        score_bias = _score_bias_of(inputs)
        mask = inputs.get("mask")
        step = memory["step"]
        time = x.shape[1]
        times = step + _positions(x)
        updates = {"step": step + time}
        is_self_attention = "source" not in inputs
        projected = self._projected(params, memory, x)
        if is_self_attention:
            key, value = self._keys(params, x, inputs.get("value"), times, projected)
            updates["key"] = store(memory["key"], key, step)
            updates["value"] = store(memory["value"], value, step)
            if mask is not None:
                fits = mask.ndim == 2
                message = "decoding takes a mask (batch, {}) of x itself, got {}"
                expect(fits, message, time, mask.shape)
                mask = _stored_mask(memory["mask"], mask, step)
                updates["mask"] = mask
        memory = memory | updates
        query = self._queries(params, x, times, projected)
        wide_query = widened(query)
        key = memory["key"]
        value = memory["value"]
        needs_general = self._needs_general(score_bias)
        attend_cache: Any = ()
        has_limits = mask is not None or self.window is not None or self.learned_key
        if is_self_attention and not (has_limits or needs_general):
            heads = attend_stored(wide_query, widened(key), widened(value), step)
        else:
            positions = _positions(key[:, 0, :, :])
            keys = positions.shape[0]
            allowed = self._allowed(mask, score_bias, (*query.shape[:-1], keys))
            if self.causal:
                allowed = _both(allowed, past_keys(step, time, keys))
            if self.window is not None:
                allowed = _both(allowed, self._near(times, positions))
            biases = self._score_bias(params, score_bias, times, positions, wide_query)
            if self.learned_key:
                extended = self._extended(params, key, value, allowed, biases)
                key, value, allowed, biases = extended
            key = widened(key)
            value = widened(value)
            if needs_general:
                heads, attend_cache = attend_general(
                    wide_query,
                    key,
                    value,
                    allowed,
                    bias=biases,
                    softcap=self.softcap,
                    zero_key=self.zero_key,
                )
            else:
                heads, _ = attend(wide_query, key, value, allowed)
        heads = narrowed(heads, like=query)
        y = self._map(params, "output", self._joined(heads))
        return self._with_weights(y, attend_cache), memory

    def check(self, x: Any) -> None:
        if isinstance(x, dict) and "score_bias" in x:
            # -∞ hides a key, every other number must be finite
            xp = namespace(x["score_bias"])
            hides = x["score_bias"] == -math.inf
            x = x | {"score_bias": xp.where(hides, 0.0, x["score_bias"])}
        super().check(x)

    def _needs_general(self, score_bias: Array | tuple[()]) -> bool:
        """Return whether an option is used that native versions of `attend` lack."""
        has_bias = self.alibi or self.relative is not None
        has_bias = has_bias or not isinstance(score_bias, tuple)
        needs_weights = self.zero_key or self.return_weights
        return has_bias or needs_weights or self.softcap is not None

    def _with_weights(self, y: Array, attend_cache: Any) -> Any:
        """Return y or, with `return_weights`, a dict of y and P."""
        if not self.return_weights:
            return y
        weights = narrowed(attend_cache[0], like=y)
        if self.learned_key:
            weights = weights[..., :-1]
        shape = (weights.shape[0], self.heads, *weights.shape[-2:])
        return {"y": y, "weights": namespace(y).reshape(weights, shape)}

    def _extended(
        self, params: Params, key: Array, value: Array, allowed: Any, biases: Any
    ) -> tuple[Array, Array, Any, Any]:
        """Return K, V, the allowed keys and what is added to scores, with one more key.

        Every query may attend to it, and nothing is added to its score.
        """
        xp = namespace(key)
        rows = []
        for x, row in ((key, params["learned"]["k"]), (value, params["learned"]["v"])):
            batch, key_heads, _, width = x.shape
            row = xp.reshape(row, (1, key_heads, 1, width))
            row = xp.broadcast_to(row, (batch, key_heads, 1, width))
            rows.append(xp.concat([x, row], axis=2))
        if not isinstance(allowed, tuple):
            allowed = _with_column(allowed, True)
        if not isinstance(biases, tuple):
            biases = _with_column(biases, 0.0)
        return rows[0], rows[1], allowed, biases

    def _near(self, times: Array, key_times: Array) -> Array:
        """Return, (time, keys), whether each key is in the window of each query."""
        window: Any = self.window
        distance = key_times[None, :] - times[:, None]
        is_near = distance > -window
        if self.causal:
            return is_near
        return namespace(times).logical_and(is_near, distance < window)

    def _allowed(
        self, mask: Array | None, score_bias: Array | tuple[()], shape: Shape
    ) -> Any:
        """Return the allowed keys, booleans that broadcast to `shape`, or () for all.

        shape: (batch, key heads, group, time, keys), that of the scores.
        """
        allowed: Any = ()
        if mask is not None:
            xp = namespace(mask)
            if mask.dtype != xp.bool:
                raise TypeError(f"expected a boolean mask, got {mask.dtype}")
            batch = shape[0]
            keys = shape[-1]
            shapes = [(batch, keys), *self._pair_shapes(shape)]
            fits = mask.shape in shapes
            expect(fits, "expected a mask {}, {} or {}, got {}", *shapes, mask.shape)
            if mask.ndim == 2:
                allowed = xp.reshape(mask, (batch, 1, 1, 1, keys))
            else:
                allowed = self._by_key_heads(mask, shape)
        if not isinstance(score_bias, tuple):
            fits = score_bias.shape in self._pair_shapes(shape)
            message = "expected a score_bias {} or {}, got {}"
            expect(fits, message, *self._pair_shapes(shape), score_bias.shape)
            # not `>`, which would also hide NaN
            allowed = _both(allowed, self._by_key_heads(score_bias, shape) != -math.inf)
        return allowed

    def _pair_shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """Return the shapes that a number for each query and key may have."""
        batch, _, _, time, keys = shape
        return (batch, time, keys), (batch, self.heads, time, keys)

    def _by_key_heads(self, x: Array, shape: Shape) -> Array:
        """Reshape (batch, time, keys) or (batch, heads, time, keys) like the scores."""
        batch, key_heads, group, time, keys = shape
        if x.ndim == 3:
            key_heads = 1
            group = 1
        return namespace(x).reshape(x, (batch, key_heads, group, time, keys))

    def _score_bias(
        self,
        params: Params,
        score_bias: Array | tuple[()],
        times: Array,
        key_times: Array,
        query: Array,
    ) -> Any:
        """Return the sum of all that is added to the scores, or () for nothing.

        It has the dtype of `query`, (batch, key heads, group, time, d), and broadcasts
        to the shape of the scores.
        """
        xp = namespace(query)
        batch, key_heads, group, time, _ = query.shape
        total: Any = ()
        pairs = (key_heads, group, time, key_times.shape[0])
        if not isinstance(score_bias, tuple):
            total = self._by_key_heads(widened(score_bias), (batch, *pairs))
        if self.alibi:
            slopes = xp.asarray(
                _slopes(self.heads), dtype=query.dtype, device=device(query)
            )
            distance = xp.abs(key_times[None, :] - times[:, None])
            distance = xp.astype(distance, query.dtype)
            alibi = xp.reshape(slopes, (key_heads, group, 1, 1)) * -distance
            total = alibi if isinstance(total, tuple) else total + alibi
        if self.relative is not None:
            index = xp.reshape(self._distance_index(times, key_times), (-1,))
            rows = xp.take(widened(params["relative"]["bias"]), index, axis=0)
            relative = xp.reshape(xp.permute_dims(rows, (1, 0)), pairs)
            total = relative if isinstance(total, tuple) else total + relative
        return total

    def _distance_index(self, times: Array, key_times: Array) -> Array:
        """Return, (time, keys), the row of `relative` for each query and key."""
        xp = namespace(times)
        furthest: Any = self.relative
        distance = key_times[None, :] - times[:, None]
        return xp.clip(distance, -furthest, furthest) + furthest

    def _drelative(self, dscores: Array) -> Array:
        """Return the gradient of `relative` from dS."""
        xp = namespace(dscores)
        furthest: Any = self.relative
        _, key_heads, group, time, keys = dscores.shape
        steps = xp.arange(max(time, keys), dtype=xp.int32, device=device(dscores))
        index = xp.reshape(self._distance_index(steps[:time], steps[:keys]), (-1,))
        total = sum_over(dscores, (0,))
        total = xp.reshape(total, (key_heads * group, time * keys))
        rows = xp.permute_dims(total, (1, 0))
        return scatter_add(rows, index, 2 * furthest + 1)

    def _dscore_bias(self, dscores: Array, like: Array) -> Array:
        """Return dB, of the shape and dtype of `like`, from dS."""
        total = sum_over(dscores, (1, 2)) if like.ndim == 3 else dscores
        return narrowed(namespace(dscores).reshape(total, like.shape), like=like)

    def _dense(self, params: Params) -> Dense:
        # the width depends on x, which is unknown before `init`; params have it
        return Dense(params["weight"].shape[1], bias=self.bias)

    def _map(
        self,
        params: Params,
        name: str,
        x: Array,
        projected: dict[str, Array] | None = None,
    ) -> Array:
        """Return x W + b of one projection, which may be in `projected` already."""
        if projected:
            return projected[name]
        return self._dense(params[name]).forward(params[name], {}, x)[0]

    def _angles(self, like: Array, positions: Array) -> Array:
        return angles(like, positions, like.shape[-1], self.base)

    def _projected(self, params: Params, memory: Memory, x: Array) -> dict[str, Array]:
        """Return x W + b of Q, K and V by name, from one product, or {}.

        They are joined in the memory if it was made for self-attention.
        """
        if "projections" not in memory:
            return {}
        expect_sequence("MultiHeadAttention", x.shape[1:])
        joined = self._map(memory, "projections", x)
        projected = {}
        start = 0
        for name in _PROJECTIONS:
            end = start + params[name]["weight"].shape[1]
            projected[name] = joined[..., start:end]
            start = end
        return projected

    def _queries(
        self,
        params: Params,
        x: Array,
        positions: Array,
        projected: dict[str, Array] | None = None,
    ) -> Array:
        """Return Q, rotated if `rotary`, as (batch, key heads, group, time, d).

        projected: the products with x that are computed already, by name.
        """
        expect_sequence("MultiHeadAttention", x.shape[1:])
        key_heads = self.key_heads or self.heads
        query = self._grouped(self._map(params, "query", x, projected), key_heads)
        return rotate(query, self._angles(query, positions)) if self.rotary else query

    def _keys(
        self,
        params: Params,
        x: Array,
        value_source: Array | None,
        positions: Array,
        projected: dict[str, Array] | None = None,
    ) -> tuple[Array, Array]:
        """Return K, rotated if `rotary`, and V, as (batch, key heads, time, d).

        value_source: the sequence that V is computed from, or None for x. projected:
        the products with x that are computed already, by name.
        """
        expect_sequence("MultiHeadAttention", x.shape[1:])
        key_heads = self.key_heads or self.heads
        key = _split_heads(self._map(params, "key", x, projected), key_heads)
        if value_source is None:
            value_source = x
        else:
            projected = None
            expect_sequence("MultiHeadAttention", value_source.shape[1:])
            fits = value_source.shape[:2] == x.shape[:2]
            message = "expected a value ({}, {}, width) like the keys, got {}"
            expect(fits, message, *x.shape[:2], value_source.shape)
        value = self._map(params, "value", value_source, projected)
        value = _split_heads(value, key_heads)
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
        if time == 1:  # all axes are in order already
            return namespace(x).reshape(x, (batch, 1, self.heads * d))
        return _join_heads(namespace(x).reshape(x, (batch, self.heads, time, d)))


def _split_heads(x: Array, heads: int) -> Array:
    """Reshape (batch, time, heads · d) to (batch, heads, time, d)."""
    xp = namespace(x)
    batch, time, width = x.shape
    if time == 1:  # all axes are in order already
        return xp.reshape(x, (batch, heads, 1, width // heads))
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


def _stored_mask(memory: Array, mask: Array, step: Array) -> Array:
    """Return memory (batch, length) with mask (batch, time) at step, step + 1, …"""
    xp = namespace(mask)
    index = xp.arange(memory.shape[1], dtype=step.dtype, device=device(mask)) - step
    is_new = xp.logical_and(index >= 0, index < mask.shape[1])
    rows = xp.take(mask, xp.clip(index, 0, mask.shape[1] - 1), axis=1)
    return xp.where(is_new, rows, memory)


def _widened(keep_mask: Any) -> Any:
    return keep_mask if isinstance(keep_mask, tuple) else widened(keep_mask)


def _with_column(x: Array, value: bool | float) -> Array:
    """Return x with one more element, `value`, at the end of the last axis."""
    xp = namespace(x)
    column = xp.full((*x.shape[:-1], 1), value, dtype=x.dtype, device=device(x))
    return xp.concat([x, column], axis=-1)


def _sum_of_last(x: Array) -> Array:
    """Return Σ x[:, :, -1, :] over the batch, (1, heads · d)."""
    last = sum_over(x[:, :, -1:, :], (0,))
    return namespace(x).reshape(last, (1, x.shape[1] * x.shape[3]))


def _both(allowed: Any, more: Array) -> Array:
    """Return the keys that both arrays allow; `allowed` may be () for all."""
    if isinstance(allowed, tuple):
        return more
    return namespace(more).logical_and(allowed, more)


def _score_bias_of(inputs: dict[str, Any]) -> Any:
    """Return the input called score_bias, or () if there is none."""
    score_bias = inputs.get("score_bias", ())
    if not isinstance(score_bias, tuple):
        x = inputs["x"]
        fits = score_bias.dtype == x.dtype
        expect(fits, "x is {}, but score_bias is {}", x.dtype, score_bias.dtype)
    return score_bias


def _slopes(heads: int) -> list[float]:
    """Return the slopes of ALiBi: 2^(-8/heads), its square, and so on.

    If `heads` is not a power of 2, the slopes of the next lower power of 2 come first,
    and then every other slope of the next higher one, as in the code of the paper.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power, 2)]
    return slopes + between[: heads - power]


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
