"""TransformerBlock: attention and a small network for each position, with ways around both."""

from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import ClassVar

from ..core.errors import expect, expect_count, expect_flag, expect_number
from ..core.random import split
from ..layers.activations import GELU
from ..layers.attention import MultiHeadAttention, inputs_by_name, nest_like_x
from ..layers.base import Layer, not_a_layer
from ..layers.dense import Dense
from ..layers.normalization import LayerNorm
from ..layers.regularization import Dropout
from .base import Block, with_fields
from .sequential import Sequential

__all__ = ["TransformerBlock"]


@dataclass(frozen=True)
class TransformerBlock(Block):
    """y = x + f(norm(x)) for f = attention, then cross attention if any, then the feed.

    That is the form that trains without care ("pre-norm": Xiong et al., arXiv:2002.04745);
    with `pre_norm` off it is y = norm(x + f(x)), as first described (Vaswani et al.,
    arXiv:1706.03762, sec. 3.1).

    attention: how x asks itself, such as MultiHeadAttention(4, causal=True); cross: attention
    to a second sequence, the source, or None. The feed is Dense(hidden), `activation` and a
    Dense back to the width of x; a gated unit such as SwiGLU halves `hidden` in between
    (Shazeer, arXiv:2002.05202).
    norm: LayerNorm or RMSNorm. dropout: the share that is dropped of each f(x) in training.

    x: (batch, time, width), alone or in a dict of inputs, beside `mask` for the attention,
    and `source` and `source_mask` for the cross attention, shaped as `MultiHeadAttention`
    says. y: (batch, time, width).

    Params, state and grads go by name: attention, cross, feed, and each of these with _norm
    and _dropout.

    Gradient
    --------
    The chain rule, and where x reaches y by two ways the sum of both, as in `Residual`.
    """

    attention: MultiHeadAttention
    hidden: int
    _: KW_ONLY
    cross: MultiHeadAttention | None = None
    activation: Layer = field(default=GELU())
    norm: Layer = field(default=LayerNorm())
    pre_norm: bool = True
    dropout: float = 0.0

    input_kinds: ClassVar = {
        "x": "real floating",
        "mask": "bool",
        "source": "real floating",
        "source_mask": "bool",
    }

    def __post_init__(self):
        expect_flag("pre_norm", self.pre_norm)
        expect_count("hidden", self.hidden)
        expect_number("dropout", self.dropout, 0.0, 1.0)
        for name in ("attention", "cross", "activation", "norm"):
            part = getattr(self, name)
            if not isinstance(part, Layer) and (name, part) != ("cross", None):
                raise TypeError(f"expected a layer as {name}, got {not_a_layer(part)}")

    def init(self, key, shape, dtype):
        x, beside, _ = self._inputs(shape)
        layers = self._layers(x[-1])
        keys, params, state = split(key, len(layers)), {}, {}
        for i, (name, layer) in enumerate(layers.items()):
            inputs = _with(x, beside.get(name))
            params[name], state[name], out = layer.init(keys[i, :], inputs, dtype)
            expect(out == x, "{} is added to x, but turns {} into {}", name, x, out)
        return params, state, x

    def forward(self, params, state, x, *, train=False):
        x, beside, given = self._inputs(x)
        layers, states, caches = self._layers(_width(params)), {}, []

        def run(name, x):
            y, states[name], cache = layers[name].forward(params[name], state[name], x, train=train)
            caches.append(cache)
            return y

        return self._chain(run, x, beside), states, (given, *caches)

    def backward(self, params, cache, dy):
        given, *caches = cache
        del cache  # so that each entry goes when it is spent
        layers, grads, dsource = self._layers(_width(params)), {}, None

        def back(name, dy):
            dx, grads[name] = layers[name].backward(params[name], caches.pop(), dy)
            return dx

        for name in reversed(self._parts):
            if not self.pre_norm:
                dy = back(f"{name}_norm", dy)
            dx = back(name, back(f"{name}_dropout", dy) if self.dropout else dy)
            if isinstance(dx, dict):
                dx, dsource = dx["x"], dx.get("source", dsource)
            dy = dy + (back(f"{name}_norm", dx) if self.pre_norm else dx)
        return nest_like_x(self, dy, (None, dsource, None), given), grads

    def predict(self, params, state, x):
        x, beside, _ = self._inputs(x)
        layers = self._layers(_width(params))

        def run(name, x):
            return layers[name].predict(params[name], state[name], x)

        return self._chain(run, x, beside)

    def begin(self, params, state, x, length):
        x, beside, _ = self._inputs(x)
        return {
            name: layer.begin(params[name], state[name], _with(x, beside.get(name)), length)
            for name, layer in self._layers(_width(params)).items()
        }

    def advance(self, params, state, memory, x):
        x, beside, _ = self._inputs(x)
        layers, memories = self._layers(_width(params)), {}

        def run(name, x):
            y, memories[name] = layers[name].advance(params[name], state[name], memory[name], x)
            return y

        return self._chain(run, x, beside), memories

    def map_layers(self, function):
        """The same block, with function(path, layer) in place of each of its layers.

        They are made as they are called for: how wide the last one is, x says.
        """

        @cache
        def layers(width):
            return {name: function(name, layer) for name, layer in self._layers(width).items()}

        return with_fields(self, _layers=layers)

    @property
    def _parts(self):
        return ("attention", "feed") if self.cross is None else ("attention", "cross", "feed")

    def _layers(self, width):
        """All layers by name, in the order in which they are drawn."""
        feed = Sequential(Dense(self.hidden), self.activation, Dense(width))
        found = {}
        for name in self._parts:
            found[name] = feed if name == "feed" else getattr(self, name)
            found[f"{name}_norm"] = self.norm
            if self.dropout:
                found[f"{name}_dropout"] = Dropout(self.dropout)
        return found

    def _chain(self, run, y, beside):
        """y of the whole block, by run(name, x) -> y of a layer."""
        for name in self._parts:
            x = run(f"{name}_norm", y) if self.pre_norm else y
            x = run(name, _with(x, beside.get(name)))
            y = y + (run(f"{name}_dropout", x) if self.dropout else x)
            if not self.pre_norm:
                y = run(f"{name}_norm", y)
        return y

    def _inputs(self, x):
        """Return x, the other inputs of each part, and which inputs were passed."""
        named, given = inputs_by_name(self, x)
        fits = ("source" in named) == (self.cross is not None)
        expect(fits, "cross attention and an input called source go together, got {}", list(named))
        cross = {"source": "source", "mask": "source_mask"} if self.cross else {}
        beside = {"attention": {"mask": "mask"}, "cross": cross}
        for name, wanted in beside.items():
            beside[name] = {new: named[old] for new, old in wanted.items() if old in named}
        return named["x"], beside, given


def _with(x, beside):
    return {"x": x, **beside} if beside else x


def _width(params):
    return params["feed"][-1]["weight"].shape[1]
