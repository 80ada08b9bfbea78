"""Attention layers: what is asked is a map of x, and so is what answers.

The mean that each head takes, and its gradient, are derived in `ops.attention`. Kept for
that are Q, K, V, O, which the map that follows keeps as well, and what else `attend` leaves.
A block that keeps less is `Recompute`. Between the maps of x and the map of O float16 and
bfloat16 are computed in float32: sums in S may overflow, and P of many keys is small.
"""

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_count, expect_flag, expect_number, expect_positive
from ..core.random import bernoulli, split
from ..initializers import Initializer, expect_initializer, glorot_uniform
from ..ops import attend, attend_backward, narrowed, widened
from .base import Layer
from .dense import Dense
from .positions import angles, expect_sequence, rotate

__all__ = ["MultiHeadAttention", "beside_x", "inputs_by_name"]


def _split(x, heads):
    """(batch, time, heads · width) -> (batch, heads, time, width)."""
    xp = namespace(x)
    batch, time, width = x.shape
    return xp.permute_dims(xp.reshape(x, (batch, time, heads, width // heads)), (0, 2, 1, 3))


def _join(x):
    """(batch, heads, time, width) -> (batch, time, heads · width)."""
    xp = namespace(x)
    batch, heads, time, width = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (batch, time, heads * width))


def _positions(x):
    xp = namespace(x)
    return xp.arange(x.shape[1], dtype=xp.int32, device=device(x))


@dataclass(frozen=True)
class MultiHeadAttention(Layer):
    """y = [O₁ … Oₕ] W + b, the heads side by side, each the mean that attention takes.

    Q, K and V of a head are columns of affine maps: Q of x, K and V of x too, or of another
    sequence, the source (Vaswani et al., arXiv:1706.03762, sec. 3.2.2). O and the gradients
    of Q, K and V are derived in `ops.attention`; the rest of the chain is that of `Dense`.

    x: (batch, time, width), alone or in a dict of inputs, beside

    - source: (batch, other time, other width), the sequence that K and V are maps of;
    - mask: boolean, True where a key may be seen: (batch, keys), as for sequences that were
      filled up to one length, or (batch, time, keys).

    y: (batch, time, width). A query that may see no key at all gets y = b.

    `causal` lets position t see the keys up to t, and of those what a mask allows.
    `key_heads`, a divisor of `heads`, makes fewer heads of K and V, one for each group of
    neighbouring heads of Q (Ainslie et al., arXiv:2305.13245). `head_width` is width / heads
    unless given. `rotary` turns Q and K by their positions, with angles of `base` (Su et al.,
    arXiv:2104.09864, eq. 34). `dropout` drops elements of P while training; its state is a
    random key.

    Parameters: query, key, value and output, each with weight (fan_in, width) and, unless
    `bias` is false, bias (width,), which starts at 0.

    Going step by step, it remembers K and V of all steps so far; of the input "source",
    which has to be there at every step, it computes them once.
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

    input_kinds: ClassVar = {"x": "real floating", "source": "real floating", "mask": "bool"}

    def __post_init__(self):
        for name in ("causal", "rotary", "bias"):
            expect_flag(name, getattr(self, name))
        expect_initializer("initializer", self.initializer)
        expect_count("heads", self.heads)
        if self.key_heads is not None:
            expect_count("key_heads", self.key_heads)
            fits = self.heads % self.key_heads == 0
            expect(fits, "{} heads cannot share {} key_heads", self.heads, self.key_heads)
        if self.head_width is not None:
            expect_count("head_width", self.head_width)
        expect_positive("base", self.base)
        expect_number("dropout", self.dropout, 0.0, 1.0)

    def init(self, key, shape, dtype):
        named, _ = inputs_by_name(self, shape)
        for name in named.keys() - {"mask"}:
            expect_sequence("MultiHeadAttention", named[name])
        width, other = named["x"][-1], named.get("source", named["x"])[-1]
        fits = self.head_width is not None or width % self.heads == 0
        expect(fits, "{} heads cannot share a width of {}", self.heads, width)
        each = self.head_width or width // self.heads
        fits = not self.rotary or each % 2 == 0
        expect(fits, "rotary turns pairs, so it wants an even head_width, got {}", each)
        fans = {
            "query": (width, each * self.heads),
            "key": (other, each * (self.key_heads or self.heads)),
            "value": (other, each * (self.key_heads or self.heads)),
            "output": (each * self.heads, width),
        }
        keys, params = split(key, 5), {}
        for i, (name, (fan_in, fan_out)) in enumerate(fans.items()):
            dense = Dense(fan_out, bias=self.bias, initializer=self.initializer)
            params[name], _, _ = dense.init(keys[i, :], (fan_in,), dtype)
        return params, {"key": keys[4, :]} if self.dropout else {}, named["x"]

    def forward(self, params, state, x, *, train=False):
        """x: (batch, time, width), alone or in a dict of inputs -> y: (batch, time, width).

        Raises
        ------
        ValueError
            If an input has no place here, or its shape or dtype does not fit.
        TypeError
            If the mask is not boolean, or an array is of another library.
        """
        named, given = inputs_by_name(self, x)
        x, source = named["x"], named.get("source", named["x"])
        times, places = _positions(x), _positions(source)
        query = self._queries(params, x, times)
        key, value = self._keys(params, source, places)
        shape = (*query.shape[:-1], key.shape[-2])
        allowed, kept = _allowed(named.get("mask"), shape), ()
        if train and self.dropout:
            keys = split(state["key"], 2)
            kept, state = bernoulli(keys[0, :], 1.0 - self.dropout, shape), {"key": keys[1, :]}
            kept = namespace(x).astype(kept, x.dtype) * (1.0 / (1.0 - self.dropout))
        wide = widened(query), widened(key), widened(value), allowed, _widened(kept)
        heads, spent = attend(*wide, causal=self.causal)
        heads = narrowed(heads, like=query)
        joined = self._joined(heads)
        other = named.get("source", ())
        cache = (x, other, given, query, key, value, allowed, kept, spent, joined)
        return self._map(params, "output", joined), state, cache

    def backward(self, params, cache, dy):
        x, other, given, query, key, value, allowed, kept, spent, joined = cache
        source = x if isinstance(other, tuple) else other
        grads = {}

        def back(name, x, dy):
            dx, grads[name] = self._dense(params[name]).backward(params[name], x, dy)
            return dx

        dheads = self._grouped(back("output", joined, dy), value.shape[1])
        heads = self._grouped(joined, value.shape[1])
        wide = widened(query), widened(key), widened(value), allowed, _widened(kept)
        wide_grads = attend_backward(
            *wide, widened(heads), spent, widened(dheads), causal=self.causal
        )
        dquery, dkey, dvalue = (narrowed(grad, like=dy) for grad in wide_grads)
        if self.rotary:
            dquery = rotate(dquery, -self._angles(query, _positions(x)))
            dkey = rotate(dkey, -self._angles(key, _positions(source)))
        dx = back("query", x, self._joined(dquery))
        dsource = back("key", source, _join(dkey))
        dsource += back("value", source, _join(dvalue))  # onto a product that was just made
        if source is x:
            dx += dsource
        return beside_x(self, dx, (dsource, None), given), grads

    def begin(self, params, state, x, length):
        named, _ = inputs_by_name(self, x)
        xp, place = namespace(named["x"]), device(named["x"])
        step = xp.zeros((), dtype=xp.int32, device=place)
        if "source" in named:
            key, value = self._keys(params, named["source"], _positions(named["source"]))
            return {"step": step, "key": key, "value": value}
        if not self.causal:
            raise TypeError(f"{self} cannot go step by step: it looks at later ones, not causal")
        weight = params["key"]["weight"]
        heads = self.key_heads or self.heads
        shape = (named["x"].shape[0], heads, length, weight.shape[1] // heads)
        empty = xp.zeros(shape, dtype=weight.dtype, device=place)
        memory = {"step": step, "key": empty, "value": empty}
        if "mask" in named:
            memory["mask"] = xp.zeros((shape[0], length), dtype=xp.bool, device=place)
        return memory

    def advance(self, params, state, memory, x):
        named, _ = inputs_by_name(self, x)
        x, mask, step = named["x"], named.get("mask"), memory["step"]
        xp = namespace(x)
        expect(x.shape[1] == 1, "a step takes (batch, 1, width), got {}", x.shape)
        now = xp.reshape(step, (1,))
        places = _positions(memory["key"][:, 0, :, :])
        new = {"step": step + 1}
        if "source" not in named:
            here = places == now
            for name, row in zip(("key", "value"), self._keys(params, x, now), strict=True):
                new[name] = xp.where(here[:, None], row, memory[name])
            if mask is not None:
                fits = mask.ndim == 2
                expect(fits, "a step takes a mask (batch, 1) of x itself, got {}", mask.shape)
                mask = new["mask"] = xp.where(here, mask, memory["mask"])
        memory = memory | new
        query = self._queries(params, x, now)
        allowed = _allowed(mask, (*query.shape[:-1], places.shape[0]))
        if self.causal:
            allowed = places <= now if mask is None else xp.logical_and(allowed, places <= now)
        key, value = widened(memory["key"]), widened(memory["value"])
        heads = narrowed(attend(widened(query), key, value, allowed)[0], like=query)
        return self._map(params, "output", self._joined(heads)), memory

    def _dense(self, params):
        return Dense(params["weight"].shape[1], bias=self.bias)

    def _map(self, params, name, x):
        return self._dense(params[name]).forward(params[name], {}, x)[0]

    def _angles(self, like, positions):
        return angles(like, positions, like.shape[-1], self.base)

    def _queries(self, params, x, positions):
        """Q, turned to `positions` if need be, as (batch, key heads, group, time, d)."""
        expect_sequence("MultiHeadAttention", x.shape[1:])
        query = self._grouped(self._map(params, "query", x), self.key_heads or self.heads)
        return rotate(query, self._angles(query, positions)) if self.rotary else query

    def _keys(self, params, x, positions):
        """K, turned to `positions` if need be, and V, as (batch, key heads, time, d)."""
        expect_sequence("MultiHeadAttention", x.shape[1:])
        heads = self.key_heads or self.heads
        key, value = (_split(self._map(params, name, x), heads) for name in ("key", "value"))
        return rotate(key, self._angles(key, positions)) if self.rotary else key, value

    def _grouped(self, x, key_heads):
        """(batch, time, heads · d) -> (batch, key heads, group, time, d)."""
        split = _split(x, self.heads)
        batch, heads, time, width = split.shape
        shape = (batch, key_heads, heads // key_heads, time, width)
        return namespace(x).reshape(split, shape)

    def _joined(self, x):
        """(batch, key heads, group, time, d) -> (batch, time, heads · d)."""
        batch, _, _, time, width = x.shape
        return _join(namespace(x).reshape(x, (batch, self.heads, time, width)))


def _widened(kept):
    return kept if isinstance(kept, tuple) else widened(kept)


def _allowed(mask, shape):
    """Which keys a mask lets through, as booleans that broadcast to `shape`; () for all."""
    if mask is None:
        return ()
    xp = namespace(mask)
    batch, _, _, time, keys = shape
    if mask.dtype != xp.bool:
        raise TypeError(f"expected a boolean mask, got {mask.dtype}")
    fits = mask.shape in ((batch, keys), (batch, time, keys))
    expect(fits, "expected a mask {} or {}, got {}", (batch, keys), (batch, time, keys), mask.shape)
    return xp.reshape(mask, (batch, 1, 1, 1 if mask.ndim == 2 else time, keys))


def inputs_by_name(layer, x):
    """What `layer` takes by name; and for the cache, told by nesting, which of it was there."""
    named = x if isinstance(x, dict) else {"x": x}
    fits = "x" in named and named.keys() <= layer.input_kinds.keys()
    expect(fits, "{} takes {}, got {}", type(layer).__name__, list(layer.input_kinds), list(named))
    others = [name for name in layer.input_kinds if name != "x"]
    return named, tuple(((),) if name in named else () for name in others) if named is x else ()


def beside_x(layer, dx, others, given):
    """dx nested like x: alone, or with those gradients of `others` that were `given`."""
    if not given:
        return dx
    names = [name for name in layer.input_kinds if name != "x"]
    found = zip(names, others, given, strict=True)
    return {"x": dx} | {name: dother for name, dother, there in found if there}
