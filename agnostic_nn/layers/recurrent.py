"""Recurrent layers and backpropagation through time.

`_Recurrent` runs a cell along time and derives the gradient of that loop. It also
implements what all recurrent layers share: several layers with dropout between them,
directions, masks and initial states. `RNN`, `GRU` and `LSTM` define the cells and
derive their gradients.
Options that all three have in common are described in `RNN`.

float16 and bfloat16 are computed in float32, products included, and rounded once at the
end. They have 11 and 8 significant bits: rounding at every step would accumulate, and
sums in z may overflow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
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
    expect_choice,
    expect_count,
    expect_flag,
    expect_number,
)
from ..core.random import bernoulli, fold, split, uniform
from ..core.trees import leaves, tree_map
from ..initializers import Initializer, Orthogonal, expect_initializer, glorot_uniform
from ..ops import lstm, lstm_backward, narrowed, scan, sum_rows, widened
from .base import Layer
from .shapes import as_matrix

__all__ = ["GRU", "LSTM", "RNN"]

# the recurrent state of one layer and direction: a dict of "h" and, in an LSTM, "c"
Carry = Any


@dataclass(frozen=True)
class _Recurrent(Layer):
    """sₜ = f(zₜ, sₜ₋₁) with zₜ = xₜ W + b, and yₜ = hₜ. Base of the recurrent layers.

    sₜ is the recurrent state after step t: hₜ and, in an LSTM, cₜ. s₀ is 0 or an input.
    With row vectors, f multiplies hₜ₋₁ by a matrix R; W, b and R are the same at every
    step. All zₜ are one product before the loop. Only the product with R depends on the
    step before.

    Gradient
    --------
    Let dsₜ be the gradient with respect to sₜ, through yₜ and through all later steps.
    The chain rule computes it backwards in time, starting with the gradient of the
    final state. The contributions of all steps to W, b and R add up (Werbos,
    "Backpropagation Through Time: What It Does and How to Do It", 1990):

        dsₜ ← dsₜ + (dyₜ, for h)    dzₜ = (∂f/∂zₜ)ᵀ dsₜ    dsₜ₋₁ = (∂f/∂sₜ₋₁)ᵀ dsₜ
        dxₜ = dzₜ Wᵀ        dW = Σ xₜᵀ dzₜ        db = Σ dzₜ        dR = Σ hₜ₋₁ᵀ dzₜ

    The formula for dR holds for cells in which f adds hₜ₋₁ R to zₜ.

    Notes
    -----
    The second line of the gradient is computed after the loop, by products over all
    steps at once. In the first line the derivatives of f do not depend on ds. `forward`
    computes them and caches them instead of the values that they are computed from, so
    the loop of `backward` only multiplies.

    A cell has three functions: `step` computes f, `slopes` the factors in its
    derivatives, and `step_backward` multiplies by them. An LSTM without a mask and
    without a projection is passed to the library as a whole, which may have a native
    implementation (`ops.lstm`).

    At a masked step sₜ = sₜ₋₁ and yₜ = 0, so dzₜ = 0 and dsₜ₋₁ = dsₜ: the state passes
    padding unchanged, wherever the padding is in the sequence. The reverse direction is
    the same loop from the last step to the first. It starts with s₀ at the last
    unmasked step, as PyTorch does for packed sequences. x at masked steps has no
    effect, even if it is NaN.
    """

    width: int
    _: KW_ONLY
    depth: int = 1
    bidirectional: bool = False
    reverse: bool = False
    dropout: float = 0.0
    sequence: bool = True
    final: bool = False
    initializer: Initializer = field(default=glorot_uniform, repr=False)
    recurrent_initializer: Initializer = field(default=Orthogonal(), repr=False)

    input_kinds: ClassVar[dict[str, str]] = {
        "x": "real floating",
        "mask": "bool",
        "state": "real floating",
    }
    gates: ClassVar[int] = 1
    # the matrices that `step` multiplies by
    step_matrices: ClassVar[tuple[str, ...]] = ("recurrent",)
    # whether `recurrent_grads` needs the gradient of h at each step
    needs_dh: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("bidirectional", "reverse", "sequence", "final"):
            expect_flag(name, getattr(self, name))
        expect_initializer("initializer", self.initializer)
        expect_initializer("recurrent_initializer", self.recurrent_initializer)
        expect_count("width", self.width)
        expect_count("depth", self.depth)
        expect_number("dropout", self.dropout, 0.0, 1.0)
        fits = self.dropout == 0.0 or self.depth > 1
        message = (
            "dropout={} is between layers, but depth is {}: use a depth of 2 or more, "
            "or put a Dropout({}) after this layer"
        )
        expect(fits, message, self.dropout, self.depth, self.dropout)
        fits = not (self.bidirectional and self.reverse)
        message = (
            "bidirectional=True has both directions: expected reverse=False, got True"
        )
        expect(fits, message)

    def step(self, params: Params, z: Array, carry: Carry) -> tuple[Carry, Any]:
        """Return the carry after a step, and the values that `slopes` needs.

        z: x W + b of the step. carry: the carry before the step.
        """
        raise NotImplementedError

    def slopes(self, h: Array, values: Any) -> Any:
        """Return the factors in the derivatives of f.

        h: h before the step. values: those that `step` returned. The arrays are those
        of one step or, with a leading axis, of all steps. So this must be elementwise,
        apart from splitting the last axis.
        """
        raise NotImplementedError

    def step_backward(
        self, transposed: Params, slopes: Any, dcarry: Carry
    ) -> tuple[Array, Carry]:
        """Return dz and the gradient of the carry before a step.

        dcarry: the gradient of the carry after the step. transposed: the matrices named
        in `step_matrices`, transposed, such as Rᵀ.
        """
        raise NotImplementedError

    def recurrent_grads(self, hs: Array, slopes: Any, dz: Array, dh: Any) -> Params:
        """Return the gradients of the parameters that `step` reads, over all steps.

        hs: h before each step. dh: the gradient of h after each step, or () unless
        `needs_dh`.
        """
        return {"recurrent": as_matrix(hs).T @ as_matrix(dz)}

    def biases(self, key: Key, like: Array) -> Params:
        """Create the bias vectors, with the library, dtype and device of `like`."""
        return {"bias": _constant_parts(like, self.width, [0.0] * self.gates)}

    @property
    def _directions(self) -> tuple[str, ...]:
        if self.bidirectional:
            return ("forward", "reverse")
        return ("reverse",) if self.reverse else ("forward",)

    @property
    def _h_width(self) -> int:
        """The length of h, and of y in each direction."""
        return self.width

    @property
    def _carry_widths(self) -> dict[str, int]:
        """The length of each array of a carry."""
        return {"h": self.width}

    @property
    def _has_dropout(self) -> bool:
        return self.dropout > 0.0

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Any]:
        # First, because it fails at once if a checkpoint claims a billion layers; to
        # compare the shapes of their states would take long.
        keys = split(key, 2 * self.depth)
        name = type(self).__name__
        shapes = shape if isinstance(shape, dict) else {"x": shape}
        expect("x" in shapes, "{} takes a dict with x, got {}", name, sorted(shapes))
        x_shape = shapes["x"]
        fits = len(x_shape) == 2
        expect(fits, "{} takes (batch, time, width), got (batch, *{})", name, x_shape)
        time, fan_in = x_shape
        state_shapes = self._nested_state(lambda width: (width,))
        for part, expected in (("mask", (time,)), ("state", state_shapes)):
            actual = shapes.get(part, expected)
            fits = actual == expected
            expect(fits, "{} takes a {} of {}, got {}", name, part, expected, actual)

        params = []
        fan_out = self._h_width * len(self._directions)
        for i in range(self.depth):
            layer_params = {}
            for n, direction in enumerate(self._directions, start=2 * i):
                layer_params[direction] = self._draw(keys[n, :], fan_in, dtype)
            params.append(layer_params)
            fan_in = fan_out
        state = {"key": fold(key, 0)} if self._has_dropout else {}
        y_shape = (time, fan_out) if self.sequence else (fan_out,)
        if self.final:
            return tuple(params), state, {"y": y_shape, "state": state_shapes}
        return tuple(params), state, y_shape

    def _draw(self, key: Key, fan_in: int, dtype: Any) -> Params:
        """Draw the parameters of one layer in one direction, gate by gate.

        An initializer scales by the fans of the shape it is called with, so each gate
        is drawn by itself and not as a slice of a wider matrix.
        """
        xp = namespace(key)
        keys = split(key, 2 * self.gates)
        shape = (fan_in, self.width)
        recurrent_shape = (self._h_width, self.width)
        weight = []
        recurrent = []
        for i in range(0, 2 * self.gates, 2):
            weight.append(self.initializer(keys[i, :], shape, dtype))
            recurrent.append(
                self.recurrent_initializer(keys[i + 1, :], recurrent_shape, dtype)
            )
        params = {
            "weight": xp.concat(weight, axis=1),
            "recurrent": xp.concat(recurrent, axis=1),
        }
        return params | self.biases(fold(key, 0), params["weight"])

    def _nested_state(self, leaf: Callable[[int], Any]) -> tuple[dict[str, Any], ...]:
        """Return a state of all layers and directions, with `leaf(width)` for arrays.

        width: the length of the array.
        """
        carry = {name: leaf(width) for name, width in self._carry_widths.items()}
        directions = {direction: dict(carry) for direction in self._directions}
        return (directions,) * self.depth

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        """Map x (batch, time, fan_in), alone or in a dict of inputs, to y.

        Raises
        ------
        ValueError
            If an input has no step, or another shape or dtype than `params` take.
        TypeError
            If x belongs to another array library.
        """
        inputs = x if isinstance(x, dict) else {"x": x}
        drop_keys: tuple[Key, ...] = ()
        if train and self._has_dropout:
            keys = split(state["key"], self.depth)
            drop_keys = tuple(keys[i, :] for i in range(1, self.depth))
            state = {"key": keys[0, :]}
        y, cache = self._run_layers(params, inputs, drop_keys, keep=True)
        if not isinstance(x, dict):
            return y, state, (*cache, ())
        # which inputs there were, by nesting: a cache holds arrays and tuples only
        has_state = ((),) if "state" in x else ()
        return y, state, (*cache, (has_state,))

    def predict(self, params: Params, state: State, x: Any) -> Any:
        inputs = x if isinstance(x, dict) else {"x": x}
        y, _ = self._run_layers(params, inputs, (), keep=False)
        return y

    def _run_layers(
        self,
        params: Params,
        inputs: dict[str, Any],
        drop_keys: tuple[Key, ...],
        keep: bool,
    ) -> tuple[Any, Cache]:
        """Return y, and the caches of all layers with the mask.

        drop_keys: a key for the dropout after each layer but the last, or () for none.
        The cache of a layer is its input, the factors of the dropout before it, or (),
        and, for each direction, what `_run` keeps.
        """
        self._expect_inputs(params, inputs)
        like = inputs["x"]
        params, inputs = tree_map(widened, (params, inputs))
        x = inputs["x"]
        xp = namespace(x)
        starts = inputs.get("state")
        if starts is None:
            starts = self._nested_state(lambda width: _zeros(x, (x.shape[0], width)))
        mask: Any = ()  # for `scan`, a tree without leaves
        if "mask" in inputs:
            # (time, batch, 1)
            mask = xp.permute_dims(inputs["mask"], (1, 0))[..., None]
        # Time comes first from here on, as `scan` runs along axis 0. Masked steps are
        # set to 0: a NaN there would spread through the products for dW, even though dz
        # is 0.
        xs = _zero_masked(mask, xp.permute_dims(x, (1, 0, 2)))
        caches = []
        final_states = []
        for i, (layer_params, layer_starts) in enumerate(
            zip(params, starts, strict=True)
        ):
            factors: Any = ()
            if drop_keys and i > 0:
                factors = self._drop_factors(drop_keys[i - 1], xs)
                xs = xs * factors
            ends = {}
            outputs = []
            direction_caches = []
            for direction in self._directions:
                end, (hs, direction_cache) = self._run(
                    layer_params[direction],
                    xs,
                    layer_starts[direction],
                    mask,
                    direction == "reverse",
                    keep,
                )
                ends[direction] = end
                outputs.append(hs)
                direction_caches.append(direction_cache)
            caches.append((xs, factors, tuple(direction_caches)))
            final_states.append(ends)
            ys = xp.concat(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
            xs = _zero_masked(mask, ys)
        if self.sequence:
            y = xp.permute_dims(xs, (1, 0, 2))
        else:
            y = xp.concat([ends["h"] for ends in final_states[-1].values()], axis=-1)
        result = {"y": y, "state": tuple(final_states)} if self.final else y
        return tree_map(partial(narrowed, like=like), result), (tuple(caches), mask)

    def _drop_factors(self, key: Key, xs: Array) -> Array:
        """Draw what dropout multiplies xs by: 0 with its rate, else 1 / (1 - rate)."""
        xp = namespace(xs)
        time, batch, width = xs.shape
        # drawn with the batch first, so that rows that fill it up do not change the
        # masks of the others
        keep_mask = bernoulli(key, 1.0 - self.dropout, (batch, time, width))
        factors = xp.astype(keep_mask, xs.dtype) * (1.0 / (1.0 - self.dropout))
        return xp.permute_dims(factors, (1, 0, 2))

    def _run(
        self,
        params: Params,
        xs: Array,
        start: Carry,
        mask: Any,
        reverse: bool,
        keep: bool,
    ) -> tuple[Carry, tuple[Array, Cache]]:
        """Run one layer in one direction; return the final carry, all h and a cache.

        The cache is () unless `keep`, else h before each step and the slopes of
        each step.
        """
        xp = namespace(xs)
        has_mask = not isinstance(mask, tuple)
        # one product for all steps: it is much faster than a product per step
        z = as_matrix(xs) @ params["weight"]
        z += params["bias"]

        def step(carry: Carry, inputs: Any) -> Any:
            z, step_mask = inputs
            new, values = self.step(params, z, carry)
            if has_mask:
                new = tree_map(partial(xp.where, step_mask), new, carry)
            return new, (new["h"], (carry["h"], values) if keep else ())

        def with_slopes(outputs: Any) -> Any:
            if not keep:
                return outputs
            h, (h_before, values) = outputs
            return h, (h_before, self.slopes(h_before, values))

        zs = xp.reshape(z, (*xs.shape[:2], z.shape[1]))
        return scan(step, start, (zs, mask), reverse=reverse, transform=with_slopes)

    def backward(self, params: Params, cache: Cache, dy: Any) -> tuple[Any, Params]:
        dxs, dstarts, grads = self._run_layers_backward(params, cache, dy, need_dx=True)
        dx = namespace(dxs).permute_dims(dxs, (1, 0, 2))
        _, mask, present = cache
        if not present:  # x was an array
            return dx, grads
        dinputs = {"x": dx}
        if not isinstance(mask, tuple):
            dinputs["mask"] = None
        (has_state,) = present
        if has_state:
            dinputs["state"] = dstarts
        return dinputs, grads

    def backward_params(self, params: Params, cache: Cache, dy: Any) -> Params:
        return self._run_layers_backward(params, cache, dy, need_dx=False)[-1]

    def _run_layers_backward(
        self, params: Params, cache: Cache, dy: Any, need_dx: bool
    ) -> tuple[Any, ...]:
        """Return dL/dxs if `need_dx`, the gradients of first states, and dL/dparams."""
        caches, mask, _ = cache
        like = leaves(dy)[0]
        params, dy = tree_map(widened, (params, dy))
        if self.final:
            dy, dends = dy["y"], dy["state"]
        else:
            rows = dy.shape[0]
            dends = self._nested_state(lambda width: _zeros(dy, (rows, width)))
        xp = namespace(dy)
        # The gradient of the outputs of a layer, as a tuple of one array
        # (time, batch, all directions), or of none: the form that `scan` and
        # `lstm_backward` take.
        dys: tuple[Array, ...] = ()
        if self.sequence:
            dys = (_zero_masked(mask, xp.permute_dims(dy, (1, 0, 2))),)
        else:
            dlast = dict(zip(self._directions, self._split_directions(dy), strict=True))
            top = {
                direction: dend | {"h": dend["h"] + dlast[direction]}
                for direction, dend in dends[-1].items()
            }
            dends = (*dends[:-1], top)

        grads: list[dict[str, Params]] = []
        dstarts: list[dict[str, Carry]] = []
        for i in reversed(range(self.depth)):
            xs, factors, direction_caches = caches[i]
            need_layer_dx = need_dx or i > 0
            dxs = []
            layer_grads = {}
            layer_dstarts = {}
            for n, direction in enumerate(self._directions):
                direction_dys = tuple(self._split_directions(array)[n] for array in dys)
                dx, layer_grads[direction], layer_dstarts[direction] = self._run_back(
                    params[i][direction],
                    xs,
                    direction_caches[n],
                    direction_dys,
                    dends[i][direction],
                    mask,
                    direction == "reverse",
                    need_layer_dx,
                )
                dxs.append(dx)
            dys = (sum(dxs[1:], dxs[0]),) if need_layer_dx else ()
            if not isinstance(factors, tuple):
                dys = tuple(dy * factors for dy in dys)
            grads.insert(0, layer_grads)
            dstarts.insert(0, layer_dstarts)
        wide = (*dys, tuple(dstarts), tuple(grads))
        results: tuple[Any, ...] = tree_map(partial(narrowed, like=like), wide)
        return results

    def _run_back(
        self,
        params: Params,
        xs: Array,
        cache: Cache,
        dys: tuple[Array, ...],
        dend: Carry,
        mask: Any,
        reverse: bool,
        need_dx: bool,
    ) -> tuple[Any, Params, Carry]:
        """Return dx, or () unless `need_dx`, dL/dparams and the gradient of the start.

        These are for one layer in one direction.
        """
        xp = namespace(xs)
        has_mask = not isinstance(mask, tuple)
        transposed = {
            name: _contiguous_transpose(params[name])
            for name in self.step_matrices
            if name in params
        }
        hs, slopes = cache

        def step(dcarry: Carry, inputs: Any) -> Any:
            slopes, dys, step_mask = inputs
            for dy in dys:
                dcarry = dcarry | {"h": dcarry["h"] + dy}
            dz, dbefore = self.step_backward(transposed, slopes, dcarry)
            if has_mask:
                dbefore = tree_map(partial(xp.where, step_mask), dbefore, dcarry)
            dh = _zero_masked(step_mask, dcarry["h"]) if self.needs_dh else ()
            return dbefore, (_zero_masked(step_mask, dz), dh)

        dstart, (dz, dh) = scan(step, dend, (slopes, dys, mask), reverse=not reverse)
        rows = as_matrix(dz)
        grads = {"weight": as_matrix(xs).T @ rows, "bias": sum_rows(rows)}
        grads |= self.recurrent_grads(hs, slopes, dz, dh)
        dxs = xp.reshape(rows @ params["weight"].T, xs.shape) if need_dx else ()
        return dxs, grads, dstart

    def _split_directions(self, ys: Array) -> list[Array]:
        return _equal_parts(ys, len(self._directions))

    def begin(self, params: Params, state: State, x: Any, length: int) -> Memory:
        if "reverse" in self._directions:
            reason = "its reverse direction starts at the last step"
            raise TypeError(f"{self} cannot go step by step: {reason}")
        inputs = x if isinstance(x, dict) else {"x": x}
        # the dtype of the weight, as x may be the integers of an Embedding before
        # this layer
        weight = params[0]["forward"]["weight"]
        rows = inputs["x"].shape[0]
        zeros = self._nested_state(lambda width: _zeros(weight, (rows, width)))
        return inputs.get("state", zeros)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Any, Memory]:
        return self.prefill(params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Any, Memory]:
        inputs = (x if isinstance(x, dict) else {"x": x}) | {"state": memory}
        # a sequence with the memory as its first state
        y = replace(self, final=True).predict(params, state, inputs)
        return y if self.final else y["y"], y["state"]

    def _expect_inputs(self, params: Params, inputs: dict[str, Any]) -> None:
        """Raise unless the inputs have the names, shapes and dtypes of `params`."""
        name = type(self).__name__
        weight = params[0][self._directions[0]]["weight"]
        fits = "x" in inputs and inputs.keys() <= self.input_kinds.keys()
        message = "{} takes x and perhaps mask and state, got {}"
        expect(fits, message, name, sorted(inputs))
        x = inputs["x"]
        fan_in = weight.shape[0]
        xp = namespace(x, weight)
        fits = x.ndim == 3 and x.shape[1] >= 1 and x.shape[2] == fan_in
        expect(fits, "{} takes (batch, time, {}), got {}", name, fan_in, x.shape)
        fits = x.dtype == weight.dtype
        expect(fits, "{} holds {}, got {}", name, weight.dtype, x.dtype)
        if "mask" in inputs:
            mask = inputs["mask"]
            steps = tuple(x.shape[:2])
            fits = mask.shape == steps
            expect(fits, "{} takes a mask {}, got {}", name, steps, mask.shape)
            fits = mask.dtype == xp.bool
            expect(fits, "{} takes a boolean mask, got {}", name, mask.dtype)
        if "state" in inputs:
            expected = self._nested_state(lambda width: (x.shape[0], width))
            shapes = tree_map(lambda leaf: tuple(leaf.shape), inputs["state"])
            fits = shapes == expected
            expect(fits, "{} takes a state of {}, got {}", name, expected, shapes)
            for leaf in leaves(inputs["state"]):
                fits = leaf.dtype == x.dtype
                expect(fits, "x is {}, but state {}", x.dtype, leaf.dtype)


@dataclass(frozen=True)
class RNN(_Recurrent):
    """yₜ = hₜ = φ(xₜ W + b + hₜ₋₁ R), where φ is tanh or ReLU.

    Elman, "Finding Structure in Time" (1990).

    x: (batch, time, fan_in) -> y: (batch, time, width), or (batch, time, 2 · width) if
    bidirectional. x may be a dict of "x" and, optionally,

    - "mask": (batch, time), boolean, True where a step counts. At other steps the state
      is kept and y is 0, so shorter sequences can be padded on either side;
    - "state": the state before the first step, by default 0.

    `width`: length of h (hidden_size, units). `activation`: "tanh" or "relu". These
    options are common to all recurrent layers:

        depth           number of layers (num_layers), each of which reads the y of the
                        one before
        bidirectional   a second cell reads from the last step to the first; the y of
                        both are concatenated
        reverse         the only cell reads from the last step to the first; y at step t
                        stays at index t (Keras: go_backwards, which also reverses y)
        dropout         in training, each element of the y of each layer but the last is
                        set to 0 with this probability and the others are divided by 1
                        minus it, as `Dropout` does; needs a depth of 2 or more
        sequence        if false, y is h after the last step that counts, of each
                        direction, (batch, width) (Keras: return_sequences)
        final           y is a dict of "y" and "state", the state after the last step
                        (Keras: return_state)

    With dropout the state of this layer is a random key, replaced at every training
    step.

    Parameters: a tuple with an entry for each layer, a dict of the directions "forward"
    and "reverse" that it has, as in `params[0]["forward"]["weight"]`. Each
    direction has weight (fan_in, width), recurrent (width, width) and bias (width,),
    which starts at 0. PyTorch has a second bias, which is added to the first, and
    starts with neither biases of 0 nor orthogonal recurrent weights
    (docs/recurrent-start.md compares both).

    An input or final state has the same nesting, as in `state[0]["forward"]["h"]`,
    (batch, width). In decoding (`advance`) the memory is that state.

    Gradient
    --------
    With a = z + hₜ₋₁ R: dz = dh φ'(a) and dhₜ₋₁ = dz Rᵀ; ReLU'(0) = 0.
    """

    _: KW_ONLY
    activation: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_choice("activation", self.activation, ("tanh", "relu"))

    def step(self, params: Params, z: Array, carry: Carry) -> tuple[Carry, Array]:
        xp = namespace(z)
        a = carry["h"] @ params["recurrent"]
        a += z
        return {"h": xp.tanh(a) if self.activation == "tanh" else xp.maximum(a, 0.0)}, a

    def slopes(self, h: Array, a: Array) -> Array:
        if self.activation == "tanh":
            return _tanh_slope(_decay(a))
        return namespace(a).astype(a > 0, a.dtype)

    def step_backward(
        self, transposed: Params, slopes: Array, dcarry: Carry
    ) -> tuple[Array, Carry]:
        dz = dcarry["h"] * slopes
        return dz, {"h": dz @ transposed["recurrent"]}


@dataclass(frozen=True)
class GRU(_Recurrent):
    """yₜ = hₜ = (1 - u) n + u hₜ₋₁, with update gate u, reset gate r and candidate n.

        (z_r, z_u, z_n) = xₜ W + b
        r = σ(z_r + hₜ₋₁ R_r)        u = σ(z_u + hₜ₋₁ R_u)
        n = tanh(z_n + r (hₜ₋₁ R_n + b_n))        reset="after"
        n = tanh(z_n + (r hₜ₋₁) R_n)              reset="before"

    `reset`: whether r multiplies after or before the product with R_n. "before" is Cho
    et al., arXiv:1406.1078, eq. 5 to 8. "after" is what cuDNN and PyTorch compute; it
    takes one product with R per step instead of two (Keras: reset_after).

    x: (batch, time, fan_in) -> y: (batch, time, width). Masks, states and the other
    options are those of `RNN`.

    Parameters of each direction of each layer, with gates in PyTorch's order r, u, n:
    weight (fan_in, 3 · width), recurrent (width, 3 · width), bias (3 · width,), and for
    "after" recurrent_bias (width,), b_n above. PyTorch's second bias is added to the
    first except for its last third, which is b_n. Biases start like the sum of
    PyTorch's two, each uniform on ±1/√width. Weights do not start like
    PyTorch's (docs/recurrent-start.md).

    Gradient
    --------
    Let m be what r multiplies, hₜ₋₁ R_n + b_n or hₜ₋₁, and dm̂ the gradient of r m:

        dz_n = dh (1 - u) tanh'    dz_u = dh (hₜ₋₁ - n) σ'
        dz_r = dm̂ m σ'             dm = dm̂ r

        "after":    dm̂ = dz_n         dhₜ₋₁ = dh u + (dz_r, dz_u, dm) Rᵀ
                    dR = Σ hₜ₋₁ᵀ (dz_r, dz_u, dm)        db_n = Σ dm
        "before":   dm̂ = dz_n R_nᵀ    dhₜ₋₁ = dh u + dm + (dz_r, dz_u) R_ruᵀ
                    dR_n = Σ (r hₜ₋₁)ᵀ dz_n

    The factor 1 - u is computed as σ(-a), which loses no digits.
    """

    _: KW_ONLY
    reset: str = "after"

    gates: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_choice("reset", self.reset, ("after", "before"))

    def biases(self, key: Key, like: Array) -> Params:
        # For r and u the bias is the sum of PyTorch's two, so two draws are added. For
        # n it is the first of them, and the second is `recurrent_bias`.
        xp = namespace(like)
        keys = split(key, 3)
        first = _draw_uniform(keys[0, :], 3 * self.width, self.width, like)
        second = _draw_uniform(keys[1, :], 2 * self.width, self.width, like)
        zeros = _constant_parts(like, self.width, [0.0])
        params = {"bias": first + xp.concat([second, zeros])}
        if self._reset_after:
            recurrent_bias = _draw_uniform(keys[2, :], self.width, self.width, like)
            params["recurrent_bias"] = recurrent_bias
        return params

    @property
    def _reset_after(self) -> bool:
        return self.reset == "after"

    def step(
        self, params: Params, z: Array, carry: Carry
    ) -> tuple[Carry, tuple[Array, ...]]:
        h = carry["h"]
        recurrent = params["recurrent"]
        gates = 2 * self.width  # the columns of r and u come first, then those of n
        if self._reset_after:
            product = h @ recurrent
            a_gates = z[:, :gates] + product[:, :gates]
            m = product[:, gates:] + params["recurrent_bias"]
            decay = _decay(a_gates)
            r, u = _equal_parts(_sigmoid(a_gates, decay), 2)
            a = z[:, gates:] + r * m
        else:
            a_gates = z[:, :gates] + h @ recurrent[:, :gates]
            m = h
            decay = _decay(a_gates)
            r, u = _equal_parts(_sigmoid(a_gates, decay), 2)
            a = z[:, gates:] + (r * m) @ recurrent[:, gates:]
        n = namespace(z).tanh(a)
        return {"h": (1.0 - u) * n + u * h}, (a_gates, decay, r, u, m, a, n)

    def slopes(self, h: Array, values: tuple[Array, ...]) -> tuple[Array, ...]:
        a_gates, decay, r, u, m, a, n = values
        r_slope, u_slope = _equal_parts(_sigmoid_slope(decay), 2)
        one_minus_u = _sigmoid(-_equal_parts(a_gates, 2)[1], _equal_parts(decay, 2)[1])
        dr_factor = m * r_slope
        du_factor = (h - n) * u_slope
        dn_factor = one_minus_u * _tanh_slope(_decay(a))
        return r, u, dr_factor, du_factor, dn_factor

    def step_backward(
        self, transposed: Params, slopes: tuple[Array, ...], dcarry: Carry
    ) -> tuple[Array, Carry]:
        dh = dcarry["h"]
        recurrent_t = transposed["recurrent"]
        xp = namespace(dh)
        gates = 2 * self.width
        r, u, dr_factor, du_factor, dn_factor = slopes
        dz_u = dh * du_factor
        dz_n = dh * dn_factor
        if self._reset_after:
            dz_r = dz_n * dr_factor
            dbefore = xp.concat((dz_r, dz_u, dz_n * r), axis=-1) @ recurrent_t
        else:
            dproduct = dz_n @ recurrent_t[gates:, :]
            dz_r = dproduct * dr_factor
            dgates = xp.concat((dz_r, dz_u), axis=-1)
            dbefore = dproduct * r + dgates @ recurrent_t[:gates, :]
        return xp.concat((dz_r, dz_u, dz_n), axis=-1), {"h": dh * u + dbefore}

    def recurrent_grads(
        self, hs: Array, slopes: tuple[Array, ...], dz: Array, dh: Any
    ) -> Params:
        xp = namespace(dz)
        gates = 2 * self.width
        r = slopes[0]
        if self._reset_after:
            dm = dz[..., gates:] * r
            dproduct = xp.concat((dz[..., :gates], dm), axis=-1)
            drecurrent = as_matrix(hs).T @ as_matrix(dproduct)
            return {"recurrent": drecurrent, "recurrent_bias": sum_rows(dm)}
        dgates = as_matrix(hs).T @ as_matrix(dz[..., :gates])
        dcandidate = as_matrix(r * hs).T @ as_matrix(dz[..., gates:])
        return {"recurrent": xp.concat((dgates, dcandidate), axis=1)}


@dataclass(frozen=True)
class LSTM(_Recurrent):
    """yₜ = hₜ = σ(o) tanh(cₜ), with a cell state c and three gates i, f and o.

        cₜ = σ(f) cₜ₋₁ + σ(i) tanh(g)        (i, f, g, o) = xₜ W + b + hₜ₋₁ R

    Hochreiter & Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate f of
    Gers et al., "Learning to Forget: Continual Prediction with LSTM" (2000).

    x: (batch, time, fan_in) -> y: (batch, time, width). Masks, states and the other
    options are those of `RNN`. A state holds "c" as well as "h".

    `projection`: the length of h, if it is not that of c (proj_size). Then

        yₜ = hₜ = mₜ P        mₜ = σ(o) tanh(cₜ)

    with a matrix P, so that R has fewer rows (Sak, Senior & Beaufays, "Long Short-Term
    Memory Based Recurrent Neural Network Architectures for Large Scale Acoustic
    Modeling", arXiv:1402.1128, eq. 6, without the peephole connections).

    Parameters of each direction of each layer, in PyTorch's order of i, f, g and o:
    weight (fan_in, 4 · width), recurrent (width, 4 · width) and bias (4 · width,). The
    bias of f starts at `forget_bias` and the others at 0: with a forget gate that is
    open at first, a cell learns long dependencies sooner (Jozefowicz et al., "An
    Empirical Exploration of Recurrent Network Architectures", 2015). PyTorch has a
    second bias, which is added to the first, and neither starts at 1. With `projection`
    there is also projection (width, projection), P above, and recurrent is
    (projection, 4 · width).

    Gradient
    --------
    h and c after the step both depend on cₜ, so first dc ← dc + dh σ(o) tanh'(cₜ), then

        dz_i = dc tanh(g) σ'(i)      dz_f = dc cₜ₋₁ σ'(f)    dz_g = dc σ(i) tanh'(g)
        dz_o = dh tanh(cₜ) σ'(o)     dhₜ₋₁ = dz Rᵀ           dcₜ₋₁ = dc σ(f)

    With `projection`, dm = dh Pᵀ takes the place of dh in these lines, and
    dP = Σ mₜᵀ dhₜ.
    """

    _: KW_ONLY
    projection: int | None = None
    forget_bias: float = 1.0

    gates: ClassVar[int] = 4
    step_matrices: ClassVar[tuple[str, ...]] = ("recurrent", "projection")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection is not None:
            expect_count("projection", self.projection)
        expect_number("forget_bias", self.forget_bias)

    @property
    def needs_dh(self) -> bool:  # type: ignore[override]
        return self.projection is not None

    @property
    def _h_width(self) -> int:
        return self.width if self.projection is None else self.projection

    @property
    def _carry_widths(self) -> dict[str, int]:
        return {"h": self._h_width, "c": self.width}

    def _draw(self, key: Key, fan_in: int, dtype: Any) -> Params:
        params = super()._draw(key, fan_in, dtype)
        if self.projection is not None:
            shape = (self.width, self.projection)
            params["projection"] = self.initializer(fold(key, 1), shape, dtype)
        return params

    def biases(self, key: Key, like: Array) -> Params:
        values = [0.0, self.forget_bias, 0.0, 0.0]
        return {"bias": _constant_parts(like, self.width, values)}

    def _run(
        self,
        params: Params,
        xs: Array,
        start: Carry,
        mask: Any,
        reverse: bool,
        keep: bool,
    ) -> tuple[Carry, tuple[Array, Cache]]:
        fallback = partial(super()._run, params, xs, start, mask, reverse, keep)
        if not self._may_be_native(mask):
            return fallback()
        return lstm(xs, params, start, reverse, keep, fallback)

    def _may_be_native(self, mask: Any) -> bool:
        """Return whether `ops.lstm` computes the same: it has no mask or projection."""
        return isinstance(mask, tuple) and self.projection is None

    def _run_back(
        self,
        params: Params,
        xs: Array,
        cache: Cache,
        dys: tuple[Array, ...],
        dend: Carry,
        mask: Any,
        reverse: bool,
        need_dx: bool,
    ) -> tuple[Any, Params, Carry]:
        arguments = (params, xs, cache, dys, dend, mask, reverse, need_dx)
        fallback = partial(super()._run_back, *arguments)
        if not self._may_be_native(mask):
            return fallback()
        return lstm_backward(xs, params, cache, dys, dend, reverse, need_dx, fallback)

    def step(
        self, params: Params, z: Array, carry: Carry
    ) -> tuple[Carry, tuple[Array, ...]]:
        xp = namespace(z)
        c_before = carry["c"]
        a = carry["h"] @ params["recurrent"]
        a += z
        decay = _decay(a)
        i, f, _, o = _equal_parts(_sigmoid(a, decay), 4)
        g_tanh = xp.tanh(_equal_parts(a, 4)[2])
        c = f * c_before + i * g_tanh
        c_tanh = xp.tanh(c)
        h = o * c_tanh
        values: tuple[Array, ...] = (decay, i, f, o, c_before, g_tanh, c, c_tanh)
        if self.projection is not None:
            values = (*values, h)
            h = h @ params["projection"]
        return {"h": h, "c": c}, values

    def slopes(self, h: Array, values: tuple[Array, ...]) -> tuple[Array, ...]:
        decay, i, f, o, c_before, g_tanh, c, c_tanh, *projected = values
        i_slope, f_slope, _, o_slope = _equal_parts(_sigmoid_slope(decay), 4)
        g_slope = _tanh_slope(_equal_parts(decay, 4)[2])
        # what dc is multiplied by for dz_i, dz_f and dz_g, and dh for dz_o and for dc
        dc_factors = (g_tanh * i_slope, c_before * f_slope, i * g_slope)
        dh_to_dc = o * _tanh_slope(_decay(c))
        return f, dc_factors, c_tanh * o_slope, dh_to_dc, *projected

    def step_backward(
        self, transposed: Params, slopes: tuple[Any, ...], dcarry: Carry
    ) -> tuple[Array, Carry]:
        f, dc_factors, dh_factor, dh_to_dc, *_ = slopes
        dh = dcarry["h"]
        if self.projection is not None:
            dh = dh @ transposed["projection"]
        dc = dcarry["c"] + dh * dh_to_dc
        parts = [*(dc * factor for factor in dc_factors), dh * dh_factor]
        dz = namespace(dh).concat(parts, axis=-1)
        return dz, {"h": dz @ transposed["recurrent"], "c": dc * f}

    def recurrent_grads(
        self, hs: Array, slopes: tuple[Any, ...], dz: Array, dh: Any
    ) -> Params:
        grads = super().recurrent_grads(hs, slopes, dz, dh)
        if self.projection is not None:
            *_, projected = slopes  # m, of which h is the product with P
            grads["projection"] = as_matrix(projected).T @ as_matrix(dh)
        return grads


def _equal_parts(x: Array, count: int) -> list[Array]:
    """Split the last axis of x into `count` equal parts."""
    width = x.shape[-1] // count
    return [x[..., i * width : (i + 1) * width] for i in range(count)]


def _zero_masked(mask: Any, steps: Array) -> Array:
    """Return `steps` with 0 where the mask is false; mask: () for none."""
    if isinstance(mask, tuple):
        return steps
    return namespace(steps).where(mask, steps, 0.0)


def _zeros(like: Array, shape: Shape) -> Array:
    return namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def _constant_parts(like: Array, width: int, values: Sequence[float]) -> Array:
    """Return a vector with each of `values` repeated `width` times."""
    xp = namespace(like)
    options = {"dtype": like.dtype, "device": device(like)}
    return xp.concat([xp.full((width,), value, **options) for value in values])


def _draw_uniform(key: Key, count: int, width: int, like: Array) -> Array:
    """Draw `count` numbers from the uniform distribution on ±1/√width."""
    bound = 1.0 / math.sqrt(width)
    return (2.0 * uniform(key, (count,), like.dtype) - 1.0) * bound


def _contiguous_transpose(matrix: Array) -> Array:
    """Return a contiguous copy of matrixᵀ, for repeated products in a loop."""
    xp = namespace(matrix)
    return xp.reshape(xp.reshape(matrix.T, (-1,)), matrix.shape[::-1])


# Slopes are computed from the argument of σ or tanh, not from its value: where the
# function is flat, the rounded value has no digits left for 1 - y² or y (1 - y). With
# d = exp(-|a|), which cannot overflow, and tanh a = 2σ(2a) - 1,
#
#     σ(a) = (1 if a ≥ 0, else d) / (1 + d)        σ'(a) = σ(a) σ(-a) = d / (1 + d)²
#     tanh'(a) = 4 σ'(2a) = 4 d² / (1 + d²)²


def _decay(a: Array) -> Array:
    xp = namespace(a)
    return xp.exp(-xp.abs(a))


def _sigmoid(a: Array, decay: Array) -> Array:
    xp = namespace(a)
    return xp.maximum(decay, xp.astype(a >= 0, a.dtype)) / (1.0 + decay)


def _sigmoid_slope(decay: Array) -> Array:
    denominator = 1.0 + decay
    return decay / (denominator * denominator)


def _tanh_slope(decay: Array) -> Array:
    return 4.0 * _sigmoid_slope(decay * decay)
