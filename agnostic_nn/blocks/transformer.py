"""TransformerBlock: attention and a feed-forward network, with residual connections."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import Any, ClassVar, Self

from ..core.arrays import Array, Cache, Key, Memory, Params, RowMask, Shape, State
from ..core.errors import expect, expect_count, expect_flag, expect_number
from ..core.random import split
from ..layers.activations import GELU
from ..layers.attention import MultiHeadAttention, inputs_by_name, nest_like_x
from ..layers.base import Layer, not_a_layer
from ..layers.dense import Dense
from ..layers.normalization import LayerNorm
from ..layers.regularization import Dropout
from ..ops.precision import sum_of_two
from .base import Block, with_fields
from .sequential import Sequential

__all__ = ["TransformerBlock"]


@dataclass(frozen=True)
class TransformerBlock(Block):
    """y = x + f(norm(x)) for each f: attention, cross attention if any, feed-forward.

    The normalization comes first because this form trains more easily ("pre-norm":
    Xiong et al., arXiv:2002.04745). With `pre_norm=False` it is y = norm(x + f(x)), as
    in Vaswani et al., arXiv:1706.03762, sec. 3.1.

    attention
        The self-attention, such as MultiHeadAttention(4, causal=True).
    hidden
        The width inside the feed-forward network, which is Dense(hidden), `activation`
        and Dense of the width of x; `dim_feedforward` in PyTorch. A gated activation
        such as SwiGLU halves `hidden` inside (Shazeer, arXiv:2002.05202).
    cross
        Attention to a second sequence, called source, or None.
    norm
        LayerNorm or RMSNorm.
    dropout
        The probability with which each number of f(x) is dropped in training.

    x: (batch, time, width), alone or as "x" in a dict with `mask` for the attention,
    and `source` and `source_mask` for the cross attention. `MultiHeadAttention`
    documents their shapes.
    y: (batch, time, width).

    Params, state and grads are dicts with the keys attention, cross and feed, and each
    of these with the suffixes _norm and _dropout.

    Gradient
    --------
    The chain rule. x affects y directly and through f, and the two gradients add up, as
    in `Residual`.
    """

    attention: MultiHeadAttention
    hidden: int
    _: KW_ONLY
    cross: MultiHeadAttention | None = None
    activation: Layer = field(default=GELU())
    norm: Layer = field(default=LayerNorm())
    pre_norm: bool = True
    dropout: float = 0.0

    input_kinds: ClassVar[dict[str, str]] = {
        "x": "real floating",
        "mask": "bool",
        "source": "real floating",
        "source_mask": "bool",
    }

    def __post_init__(self) -> None:
        expect_flag("pre_norm", self.pre_norm)
        expect_count("hidden", self.hidden)
        expect_number("dropout", self.dropout, 0.0, 1.0)
        for name in ("attention", "cross", "activation", "norm"):
            layer = getattr(self, name)
            if not isinstance(layer, Layer) and (name, layer) != ("cross", None):
                raise TypeError(f"expected a layer as {name}, got {not_a_layer(layer)}")

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        x, others, _ = self._inputs(shape)
        layers = self._layers(x[-1])
        keys = split(key, len(layers))
        params = {}
        state = {}
        for i, (name, layer) in enumerate(layers.items()):
            inputs = _with(x, others.get(name))
            params[name], state[name], out = layer.init(keys[i, :], inputs, dtype)
            expect(out == x, "{} is added to x, but turns {} into {}", name, x, out)
        return params, state, x

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        x, others, present = self._inputs(x)
        layers = self._layers(_width(params))
        states = {}
        caches: list[Cache] = []

        def run(name: str, x: Any) -> Array:
            layer = layers[name]
            y, states[name], cache = layer.forward(
                params[name], state[name], x, train=train
            )
            caches.append(cache)
            return y

        return self._chain(run, x, others), states, (present, *caches)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        present, *caches = cache
        # each pop() drops a reference to a cache, so that its memory can be reused
        del cache
        layers = self._layers(_width(params))
        grads = {}
        dsource = None

        def run_backward(name: str, dy: Array) -> Any:
            dx, grads[name] = layers[name].backward(params[name], caches.pop(), dy)
            return dx

        # the layers of `_chain` in reverse order
        for name in reversed(self._parts):
            if not self.pre_norm:
                dy = run_backward(f"{name}_norm", dy)
            dx = run_backward(f"{name}_dropout", dy) if self.dropout else dy
            dx = run_backward(name, dx)
            if isinstance(dx, dict):
                dsource = dx.get("source", dsource)
                dx = dx["x"]
            dx = run_backward(f"{name}_norm", dx) if self.pre_norm else dx
            dy = sum_of_two(dy, dx)
        return nest_like_x(self, dy, (None, dsource, None), present), grads

    def predict(self, params: Params, state: State, x: Any) -> Array:
        x, others, _ = self._inputs(x)
        layers = self._layers(_width(params))

        def run(name: str, x: Any) -> Array:
            return layers[name].predict(params[name], state[name], x)

        return self._chain(run, x, others)

    def begin(self, params: Params, state: State, x: Any, length: int) -> Memory:
        x, others, _ = self._inputs(x)
        memory = {}
        for name, layer in self._layers(_width(params)).items():
            inputs = _with(x, others.get(name))
            memory[name] = layer.begin(params[name], state[name], inputs, length)
        return memory

    def advance(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Array, Memory]:
        return self._decode("advance", params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Array, Memory]:
        return self._decode("prefill", params, state, memory, x)

    def _decode(
        self, method: str, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Array, Memory]:
        """Call a method, "advance" or "prefill", of each layer inside."""
        x, others, _ = self._inputs(x)
        layers = self._layers(_width(params))
        memories = {}

        def run(name: str, x: Any) -> Array:
            y, memories[name] = getattr(layers[name], method)(
                params[name], state[name], memory[name], x
            )
            return y

        return self._chain(run, x, others), memories

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        """Return this block with each inner layer replaced by function(path, layer).

        `function` is called when the layers are first used, because the width of the
        last one is known only then.
        """

        @cache
        def layers(width: int) -> dict[str, Layer]:
            original = self._layers(width)
            return {name: function(name, layer) for name, layer in original.items()}

        return with_fields(self, _layers=layers)

    @property
    def _parts(self) -> tuple[str, ...]:
        has_cross = self.cross is not None
        return ("attention", "cross", "feed") if has_cross else ("attention", "feed")

    def _layers(self, width: int) -> dict[str, Layer]:
        """Return all layers by name. `init` draws their parameters in this order."""
        feed = Sequential(Dense(self.hidden), self.activation, Dense(width))
        layers: dict[str, Layer] = {}
        for name in self._parts:
            layers[name] = feed if name == "feed" else getattr(self, name)
            layers[f"{name}_norm"] = self.norm
            if self.dropout:
                layers[f"{name}_dropout"] = Dropout(self.dropout)
        return layers

    def _chain(
        self,
        run: Callable[[str, Any], Array],
        y: Array,
        others: dict[str, dict[str, Any]],
    ) -> Array:
        """Return the output of the block for its input y.

        run: a function (name, x) that applies one layer.
        """
        for name in self._parts:
            x = run(f"{name}_norm", y) if self.pre_norm else y
            x = run(name, _with(x, others.get(name)))
            y = sum_of_two(y, run(f"{name}_dropout", x) if self.dropout else x)
            if not self.pre_norm:
                y = run(f"{name}_norm", y)
        return y

    def _inputs(self, x: Any) -> tuple[Any, dict[str, dict[str, Any]], tuple[Any, ...]]:
        """Return x, the other inputs of each part, and which inputs were passed."""
        named, present = inputs_by_name(self, x)
        matches = ("source" in named) == (self.cross is not None)
        message = "cross attention and an input called source go together, got {}"
        expect(matches, message, list(named))
        # for each part, the names of its inputs and the names that they have here
        names = {"attention": {"mask": "mask"}}
        if self.cross is not None:
            names["cross"] = {"source": "source", "mask": "source_mask"}
        others = {}
        for part, inputs in names.items():
            pairs = inputs.items()
            others[part] = {
                inner: named[outer] for inner, outer in pairs if outer in named
            }
        return named["x"], others, present


def _with(x: Any, others: dict[str, Any] | None) -> Any:
    """Return x, in a dict with other inputs if there are any."""
    return {"x": x, **others} if others else x


def _width(params: Params) -> int:
    width: int = params["feed"][-1]["weight"].shape[1]
    return width
