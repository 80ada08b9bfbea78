"""Recurrent: one cell again and again along time, and its gradient back through time.

A cell turns the state s of a moment ago (h, and whatever else it keeps) and the input of
now into the state of now. With row vectors, and the same W, b and R at every step,

    zₜ = xₜ W + b        sₜ = f(zₜ, sₜ₋₁)        yₜ = hₜ        s₀ given, or 0

where f meets R in hₜ₋₁ R. All zₜ are one product before the loop; only h R waits inside it.

Let dsₜ be the gradient by sₜ of all that comes of it: of yₜ, and through sₜ₊₁ of whatever is
later. By the chain rule it runs backwards, from that of the final state, and what each step
contributes to W, b and R adds up (Werbos, "Backpropagation Through Time: What It Does and
How to Do It", 1990):

    dsₜ ← dsₜ + (dyₜ, for h)        dzₜ = (∂f/∂zₜ)ᵀ dsₜ        dsₜ₋₁ = (∂f/∂sₜ₋₁)ᵀ dsₜ
    dxₜ = dzₜ Wᵀ        dW = Σ xₜᵀ dzₜ        db = Σ dzₜ        dR = Σ hₜ₋₁ᵀ dzₜ

dR so where f adds hₜ₋₁ R to zₜ. The second line, again, is products for all steps at once. In
the first the derivatives of f do not depend on ds, so forward computes them, and keeps them
instead of what they are made of; the loop back only multiplies. A cell is three functions:
`step` is f, `slopes` are the factors in its derivatives, `step_backward` multiplies by them.
An LSTM whose steps all count goes to the library in one piece, which may know it (`ops.lstm`).

A step that a mask leaves out keeps the state, sₜ = sₜ₋₁, and puts out 0: dzₜ = 0, dsₜ₋₁ = dsₜ.
So the state passes unchanged over what fills a sequence up, wherever that stands, and the
reverse direction, the same loop from the last step to the first, begins with s₀ at the last
step that counts, as it does for PyTorch's packed sequences. What x holds at other steps, be
it NaN, does not matter.

Slopes are computed from what goes into σ and tanh, not from what comes out, which where the
function is flat has lost their digits. With d = exp(-|a|), which cannot overflow, and since
tanh a = 2σ(2a) - 1,

    σ(a) = (1 if a ≥ 0, else d) / (1 + d)        σ'(a) = σ(a) σ(-a) = d / (1 + d)²
    tanh'(a) = 4 σ'(2a) = 4 d² / (1 + d²)²

All layers here take x (batch, time, fan_in), or a dict of it with "mask" (batch, time)
boolean, true where a step counts, and "state", that before the first step; either may be
left out. They give y (batch, time, width), and have these options:

    depth           how many layers, each but the first reading the y of the one before
    bidirectional   a second cell reads from the last step to the first; y is (…, 2 · width),
                    both next to each other
    sequence        if false, y is the h (batch, width) that remains when all is read: of
                    each direction at its own last step that counts
    final           y is a dict of "y" and "state", that after the last step

Parameters are a tuple with a dict of directions, "forward" and perhaps "reverse", for each
layer: params[0]["forward"]["weight"]. A state is nested alike, down to its parts, (batch,
width) each: state[0]["forward"]["h"]. Dropout between layers is a `Dropout` between layers
of depth 1. Step by step (`advance`) the memory is the state.

float16 and bfloat16 are computed in float32, the products too, and rounded once at the end: of
the 8 or 11 bits of a gate little is left after many steps, and sums in z may overflow.
"""

import math
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import ClassVar

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_choice, expect_count, expect_flag, expect_number
from ..core.random import fold, split, uniform
from ..core.trees import leaves, tree_map
from ..initializers import Initializer, Orthogonal, expect_initializer, glorot_uniform
from ..ops import lstm, lstm_backward, narrowed, scan, sum_rows, widened
from .base import Layer

__all__ = ["GRU", "LSTM", "RNN"]


@dataclass(frozen=True)
class _Recurrent(Layer):
    """Everything but the cell: the loop over time, layers, directions, masks and states."""

    width: int
    _: KW_ONLY
    depth: int = 1
    bidirectional: bool = False
    sequence: bool = True
    final: bool = False
    initializer: Initializer = field(default=glorot_uniform, repr=False)
    recurrent_initializer: Initializer = field(default=Orthogonal(), repr=False)

    input_kinds: ClassVar = {"x": "real floating", "mask": "bool", "state": "real floating"}
    gates: ClassVar[int] = 1
    keeps: ClassVar[tuple[str, ...]] = ("h",)

    def __post_init__(self):
        for name in ("bidirectional", "sequence", "final"):
            expect_flag(name, getattr(self, name))
        expect_initializer("initializer", self.initializer)
        expect_initializer("recurrent_initializer", self.recurrent_initializer)
        expect_count("width", self.width)
        expect_count("depth", self.depth)

    def step(self, params, z, state):
        """The state after a step, from z = x W + b, and what `slopes` will need of it."""
        raise NotImplementedError

    def slopes(self, h, made):
        """The factors in the derivatives of f, from the h before and what `step` made.

        Of one step, or of all at once: elementwise, but for the last axis.
        """
        raise NotImplementedError

    def step_backward(self, around, slopes, dstate):
        """dz and the gradient of the state before, from that of the state after; around is Rᵀ."""
        raise NotImplementedError

    def recurrent_grads(self, hs, slopes, dz):
        """The gradients of the parameters that `step` reads, from all steps at once."""
        return {"recurrent": _rows(hs).T @ _rows(dz)}

    def biases(self, key, like):
        """Draw the parameters that are vectors, in the library, dtype and device of `like`."""
        return {"bias": _levels(like, self.width, [0.0] * self.gates)}

    @property
    def _directions(self):
        return ("forward", "reverse")[: 1 + bool(self.bidirectional)]

    def init(self, key, shape, dtype):
        given = shape if isinstance(shape, dict) else {"x": shape}
        keys = split(key, 2 * self.depth)
        name, states = type(self).__name__, self._everywhere((self.width,))
        expect("x" in given, "{} takes a dict with x, got {}", name, sorted(given))
        one = given["x"]
        expect(len(one) == 2, "{} takes (batch, time, width), got (batch, *{})", name, one)
        for part, wanted in {"mask": one[:1], "state": states}.items():
            found = given.get(part, wanted)
            expect(found == wanted, "{} takes a {} of {}, got {}", name, part, wanted, found)

        params, fan_in, fan_out = [], one[1], self.width * len(self._directions)
        for i in range(self.depth):
            numbered = enumerate(self._directions, start=2 * i)
            params.append({w: self._draw(keys[n, :], fan_in, dtype) for n, w in numbered})
            fan_in = fan_out
        out = (one[0], fan_out) if self.sequence else (fan_out,)
        return tuple(params), {}, {"y": out, "state": states} if self.final else out

    def _draw(self, key, fan_in, dtype):
        """The parameters of one layer in one direction: each gate has a draw of its own."""
        xp, keys = namespace(key), split(key, 2 * self.gates)
        weight, recurrent = [], []
        for i in range(self.gates):
            weight.append(self.initializer(keys[2 * i, :], (fan_in, self.width), dtype))
            square = (self.width, self.width)
            recurrent.append(self.recurrent_initializer(keys[2 * i + 1, :], square, dtype))
        found = {"weight": xp.concat(weight, axis=1), "recurrent": xp.concat(recurrent, axis=1)}
        return found | self.biases(fold(key, 0), found["weight"])

    def _everywhere(self, one):
        """A state nested as all are, by layer, direction and name, with `one` for each part."""
        return ({way: dict.fromkeys(self.keeps, one) for way in self._directions},) * self.depth

    def forward(self, params, state, x, *, train=False):
        """x: (batch, time, fan_in), or a dict with it, "mask" (batch, time) and "state".

        Raises
        ------
        ValueError
            If an input has another shape or dtype than these parameters take, or no step.
        TypeError
            If x belongs to another array library.
        """
        given = x if isinstance(x, dict) else {"x": x}
        y, cache = self._read(params, given, keep=True)
        form = (tuple(leaves(given.get("state", ()))),) if isinstance(x, dict) else ()
        return y, state, (*cache, form)

    def predict(self, params, state, x):
        return self._read(params, x if isinstance(x, dict) else {"x": x}, keep=False)[0]

    def _read(self, params, given, keep):
        """y, and of each layer its input and what it kept, and which steps count."""
        self._expect(params, given)
        like = given["x"]
        params, given = tree_map(widened, (params, given))
        xp, start = namespace(like), given.get("state")
        if start is None:
            start = self._everywhere(_zeros(given["x"], (given["x"].shape[0], self.width)))
        counts: tuple = ()  # or one array, (time, batch, 1)
        if "mask" in given:
            counts = (xp.permute_dims(given["mask"], (1, 0))[..., None],)
        xs = _counted(counts, xp.permute_dims(given["x"], (1, 0, 2)))
        caches, ends = [], []
        for layer, layer_start in zip(params, start, strict=True):
            end, ys, kept = {}, [], []
            for way in self._directions:
                asked = layer[way], xs, layer_start[way], counts, way == "reverse", keep
                end[way], (y, k) = self._run(*asked)
                ys.append(y)
                kept.append(k)
            caches.append((xs, tuple(kept)))
            xs = _counted(counts, xp.concat(ys, axis=-1) if len(ys) > 1 else ys[0])
            ends.append(end)
        y = xp.permute_dims(xs, (1, 0, 2))
        if not self.sequence:
            y = xp.concat([ends[-1][way]["h"] for way in self._directions], axis=-1)
        y = {"y": y, "state": tuple(ends)} if self.final else y
        return tree_map(partial(narrowed, like=like), y), (tuple(caches), counts)

    def _run(self, params, xs, start, counts, reverse, keep):
        """One layer in one direction: its final state, and of each step h and what it kept."""
        xp = namespace(xs)
        z = _rows(xs) @ params["weight"]
        z += params["bias"]

        def step(state, now):
            z, counts = now
            new, made = self.step(params, z, state)
            new = tree_map(partial(xp.where, *counts), new, state) if counts else new
            return new, (new["h"], ((state["h"], made),) if keep else ())

        def then(found):
            h, kept = found
            return h, tuple((before, self.slopes(before, made)) for before, made in kept)

        zs = xp.reshape(z, (*xs.shape[:2], z.shape[1]))
        return scan(step, start, (zs, counts), reverse=reverse, then=then)

    def backward(self, params, cache, dy):
        dys, dstarts, grads = self._read_back(params, cache, dy, into_x=True)
        dx = namespace(dys).permute_dims(dys, (1, 0, 2))
        _, counts, form = cache
        if form:
            mask = {"mask": None} if counts else {}
            dx = {"x": dx} | mask | ({"state": dstarts} if form[0] else {})
        return dx, grads

    def backward_params(self, params, cache, dy):
        return self._read_back(params, cache, dy, into_x=False)[-1]

    def _read_back(self, params, cache, dy, into_x):
        """dL/dxs if asked for, that of the first states, and that of the parameters."""
        caches, counts, _ = cache
        like = leaves(dy)[0]
        params, dy = tree_map(widened, (params, dy))
        dy, dend = (dy["y"], dy["state"]) if self.final else (dy, None)
        xp = namespace(dy)
        dend = self._everywhere(_zeros(dy, (dy.shape[0], self.width))) if dend is None else dend
        dys: tuple = ()  # or one array, (time, batch, all directions)
        if self.sequence:
            dys = (_counted(counts, xp.permute_dims(dy, (1, 0, 2))),)
        else:
            last = dict(zip(self._directions, self._split_directions(dy), strict=True))
            top = {way: d | {"h": d["h"] + last[way]} for way, d in dend[-1].items()}
            dend = (*dend[:-1], top)

        grads: list = []
        dstarts: list = []
        for i in reversed(range(self.depth)):
            xs, kept = caches[i]
            wanted, dxs, found, dstart = into_x or i > 0, [], {}, {}
            for n, way in enumerate(self._directions):
                part = tuple(self._split_directions(d)[n] for d in dys)
                asked = counts, way == "reverse", wanted
                back = self._run_back(params[i][way], xs, kept[n], part, dend[i][way], *asked)
                dx, found[way], dstart[way] = back
                dxs.append(dx)
            dys = (sum(dxs[1:], dxs[0]),) if wanted else ()
            grads.insert(0, found)
            dstarts.insert(0, dstart)
        return tree_map(partial(narrowed, like=like), (*dys, tuple(dstarts), tuple(grads)))

    def _run_back(self, params, xs, kept, dys, dend, counts, reverse, wanted):
        """Of one layer in one direction: dx if wanted, dL/dparams, and dL/d(its first state)."""
        xp, around, ((hs, slopes),) = namespace(xs), _transposed(params["recurrent"]), kept

        def step(dstate, now):
            slopes, dys, counts = now
            for dy in dys:
                dstate = dstate | {"h": dstate["h"] + dy}
            dz, before = self.step_backward(around, slopes, dstate)
            if counts:
                before = tree_map(partial(xp.where, *counts), before, dstate)
            return before, _counted(counts, dz)

        dstart, dz = scan(step, dend, (slopes, dys, counts), reverse=not reverse)
        rows = _rows(dz)
        grads = {"weight": _rows(xs).T @ rows, "bias": sum_rows(rows)}
        grads |= self.recurrent_grads(hs, slopes, dz)
        dxs = xp.reshape(rows @ params["weight"].T, xs.shape) if wanted else ()
        return dxs, grads, dstart

    def _split_directions(self, ys):
        """The part of ys that belongs to each direction."""
        return _parts(ys, len(self._directions))

    def begin(self, params, state, x, length):
        if self.bidirectional:
            raise TypeError(f"{self} cannot go step by step: it reads backwards from the last one")
        given = x if isinstance(x, dict) else {"x": x}
        weight = params[0]["forward"]["weight"]  # x may be what an Embedding is given
        start = self._everywhere(_zeros(weight, (given["x"].shape[0], self.width)))
        return given.get("state", start)

    def advance(self, params, state, memory, x):
        given = (x if isinstance(x, dict) else {"x": x}) | {"state": memory}
        y = replace(self, final=True).predict(params, state, given)
        return y if self.final else y["y"], y["state"]

    def _expect(self, params, given):
        name, weight = type(self).__name__, params[0]["forward"]["weight"]
        known = "x" in given and given.keys() <= self.input_kinds.keys()
        expect(known, "{} takes x and perhaps mask and state, got {}", name, sorted(given))
        x, fan_in = given["x"], weight.shape[0]
        xp = namespace(x, weight)
        fits = x.ndim == 3 and x.shape[1] >= 1 and x.shape[2] == fan_in
        expect(fits, "{} takes (batch, time, {}), got {}", name, fan_in, x.shape)
        expect(x.dtype == weight.dtype, "{} holds {}, got {}", name, weight.dtype, x.dtype)
        if "mask" in given:
            mask, wanted = given["mask"], tuple(x.shape[:2])
            expect(mask.shape == wanted, "{} takes a mask {}, got {}", name, wanted, mask.shape)
            expect(mask.dtype == xp.bool, "{} takes a boolean mask, got {}", name, mask.dtype)
        if "state" in given:
            wanted = self._everywhere((x.shape[0], self.width))
            found = tree_map(lambda leaf: tuple(leaf.shape), given["state"])
            expect(found == wanted, "{} takes a state of {}, got {}", name, wanted, found)
            for leaf in leaves(given["state"]):
                expect(leaf.dtype == x.dtype, "x is {}, but state {}", x.dtype, leaf.dtype)


@dataclass(frozen=True)
class RNN(_Recurrent):
    """hₜ = φ(xₜ W + b + hₜ₋₁ R), φ being tanh or ReLU (Elman, "Finding Structure in Time", 1990).

    x: (batch, time, fan_in) -> y: (batch, time, width); masks, states and options as at the
    head of this file.

    Parameters of each direction of each layer: weight (fan_in, width), recurrent
    (width, width), bias (width,), which starts from 0. PyTorch has a second bias that is added
    to the first, and starts from neither 0 nor orthogonal weights (docs/recurrent-start.md).

    Gradient
    --------
    With a = z + hₜ₋₁ R: dz = dh φ'(a) and dhₜ₋₁ = dz Rᵀ; ReLU'(0) = 0.
    """

    _: KW_ONLY
    activation: str = "tanh"

    def __post_init__(self):
        super().__post_init__()
        expect_choice("activation", self.activation, ("tanh", "relu"))

    def step(self, params, z, state):
        xp, a = namespace(z), state["h"] @ params["recurrent"]
        a += z
        return {"h": xp.tanh(a) if self.activation == "tanh" else xp.maximum(a, 0.0)}, a

    def slopes(self, h, a):
        if self.activation == "tanh":
            return _tanh_slope(_decay(a))
        return namespace(a).astype(a > 0, a.dtype)

    def step_backward(self, around, slopes, dstate):
        dz = dstate["h"] * slopes
        return dz, {"h": dz @ around}


@dataclass(frozen=True)
class GRU(_Recurrent):
    """hₜ = (1 - u) n + u hₜ₋₁: a gate u says how much of the state stays, another, r, what n sees.

        r = σ(z_r + hₜ₋₁ R_r)        u = σ(z_u + hₜ₋₁ R_u)
        n = tanh(z_n + r (hₜ₋₁ R_n + b_n))        reset="after" the product
        n = tanh(z_n + (r hₜ₋₁) R_n)              reset="before" it

    "before" is Cho et al., arXiv:1406.1078, eq. 5 to 8; "after" is what cuDNN and PyTorch
    compute: one product with R a step instead of two.

    x: (batch, time, fan_in) -> y: (batch, time, width); masks, states and options as at the
    head of this file.

    Parameters of each direction of each layer, with gates in PyTorch's order r, u, n:
    weight (fan_in, 3 · width), recurrent (width, 3 · width), bias (3 · width,), and for
    "after" recurrent_bias (width,), b_n above. PyTorch's second bias is added to the first
    but for its last third, which is b_n. Biases start as PyTorch's two do, each uniform on
    ±1/√width; weights do not (docs/recurrent-start.md compares starts on sequences of 64 steps).

    Gradient
    --------
    Let m be what r multiplies, hₜ₋₁ R_n + b_n or hₜ₋₁, and dm̂ the gradient of r m:

        dz_n = dh (1 - u) tanh'      dz_u = dh (hₜ₋₁ - n) σ'      dz_r = dm̂ m σ'      dm = dm̂ r

    "after": dm̂ = dz_n, and hₜ₋₁ gets dh u + (dz_r, dz_u, dm) Rᵀ; dR = Σ hₜ₋₁ᵀ (dz_r, dz_u, dm)
    and db_n = Σ dm. "before": dm̂ = dz_n R_nᵀ, and hₜ₋₁ gets dh u + dm + (dz_r, dz_u) R_ruᵀ;
    dR_n = Σ (r hₜ₋₁)ᵀ dz_n. For 1 - u stands σ(-a), which keeps its digits.
    """

    _: KW_ONLY
    reset: str = "after"

    gates: ClassVar[int] = 3

    def __post_init__(self):
        super().__post_init__()
        known = self.reset in ("after", "before")
        expect(known, "expected reset after or before, got {!r}", self.reset)

    def biases(self, key, like):
        # of r and u both biases of PyTorch in one, of n the first: the second is b_n
        xp, keys = namespace(like), split(key, 3)
        bias = _spread_evenly(keys[0, :], 3 * self.width, self.width, like)
        second = _spread_evenly(keys[1, :], 2 * self.width, self.width, like)
        zeros = _levels(like, self.width, [0.0])
        drawn = {"bias": bias + xp.concat([second, zeros])}
        if self._after:
            drawn["recurrent_bias"] = _spread_evenly(keys[2, :], self.width, self.width, like)
        return drawn

    @property
    def _after(self):
        return self.reset == "after"

    def step(self, params, z, state):
        h, both = state["h"], 2 * self.width
        to_gates, to_new = params["recurrent"][:, :both], params["recurrent"][:, both:]
        if self._after:
            around = h @ params["recurrent"]
            gates = z[:, :both] + around[:, :both]
            met = around[:, both:] + params["recurrent_bias"]
            decay = _decay(gates)
            r, u = _parts(_sigmoid(gates, decay), 2)
            a = z[:, both:] + r * met
        else:
            gates, met = z[:, :both] + h @ to_gates, h
            decay = _decay(gates)
            r, u = _parts(_sigmoid(gates, decay), 2)
            a = z[:, both:] + (r * met) @ to_new
        n = namespace(z).tanh(a)
        return {"h": (1.0 - u) * n + u * h}, (gates, decay, r, u, met, a, n)

    def slopes(self, h, made):
        gates, decay, r, u, met, a, n = made
        r_slope, u_slope = _parts(_sigmoid_slope(decay), 2)
        stays = _sigmoid(-_parts(gates, 2)[1], _parts(decay, 2)[1])
        return r, u, met * r_slope, (h - n) * u_slope, stays * _tanh_slope(_decay(a))

    def step_backward(self, around, slopes, dstate):
        xp, dh, both = namespace(dstate["h"]), dstate["h"], 2 * self.width
        r, u, by_r, by_u, by_n = slopes
        dz_u, dz_n = dh * by_u, dh * by_n
        if self._after:
            dz_r = dz_n * by_r
            before = xp.concat((dz_r, dz_u, dz_n * r), axis=-1) @ around
        else:
            product = dz_n @ around[both:, :]
            dz_r = product * by_r
            before = product * r + xp.concat((dz_r, dz_u), axis=-1) @ around[:both, :]
        return xp.concat((dz_r, dz_u, dz_n), axis=-1), {"h": dh * u + before}

    def recurrent_grads(self, hs, slopes, dz):
        xp, both, r = namespace(dz), 2 * self.width, slopes[0]
        if self._after:
            dm = dz[..., both:] * r
            found = _rows(hs).T @ _rows(xp.concat((dz[..., :both], dm), axis=-1))
            return {"recurrent": found, "recurrent_bias": sum_rows(dm)}
        to_gates = _rows(hs).T @ _rows(dz[..., :both])
        to_new = _rows(r * hs).T @ _rows(dz[..., both:])
        return {"recurrent": xp.concat((to_gates, to_new), axis=1)}


@dataclass(frozen=True)
class LSTM(_Recurrent):
    """hₜ = σ(o) tanh(cₜ), with cₜ = σ(f) cₜ₋₁ + σ(i) tanh(g), and (i, f, g, o) = zₜ + hₜ₋₁ R.

    Hochreiter & Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate f of
    Gers et al., "Learning to Forget: Continual Prediction with LSTM" (2000).

    x: (batch, time, fan_in) -> y: (batch, time, width); masks, states and options as at the
    head of this file.

    The state holds c besides h. Parameters of each direction of each layer, with gates in
    PyTorch's order i, f, g, o: weight (fan_in, 4 · width), recurrent (width, 4 · width), bias
    (4 · width,). It starts from 0, but for f from `forget_bias`: a cell that begins by
    remembering learns long spans sooner (Jozefowicz et al., "An Empirical Exploration of
    Recurrent Network Architectures", 2015). PyTorch has a second bias that is added to the
    first, and starts neither from 1.

    Gradient
    --------
    h and c after the step both come of cₜ, so first dc ← dc + dh σ(o) tanh'(cₜ), then

        dz_i = dc tanh(g) σ'(i)     dz_f = dc cₜ₋₁ σ'(f)     dz_g = dc σ(i) tanh'(g)
        dz_o = dh tanh(cₜ) σ'(o)     dhₜ₋₁ = dz Rᵀ     dcₜ₋₁ = dc σ(f)
    """

    _: KW_ONLY
    forget_bias: float = 1.0

    gates: ClassVar[int] = 4
    keeps: ClassVar[tuple[str, ...]] = ("h", "c")

    def __post_init__(self):
        super().__post_init__()
        expect_number("forget_bias", self.forget_bias)

    def biases(self, key, like):
        return {"bias": _levels(like, self.width, [0.0, self.forget_bias, 0.0, 0.0])}

    def _run(self, params, xs, start, counts, reverse, keep):
        by_steps = partial(super()._run, params, xs, start, counts, reverse, keep)
        return by_steps() if counts else lstm(xs, params, start, reverse, keep, by_steps)

    def _run_back(self, params, xs, kept, dys, dend, counts, reverse, wanted):
        asked = params, xs, kept, dys, dend, counts, reverse, wanted
        by_steps = partial(super()._run_back, *asked)
        if counts:
            return by_steps()
        return lstm_backward(xs, params, kept, dys, dend, reverse, wanted, by_steps)

    def step(self, params, z, state):
        xp, h, c = namespace(z), state["h"], state["c"]
        a = h @ params["recurrent"]
        a += z
        decay = _decay(a)
        i, f, _, o = _parts(_sigmoid(a, decay), 4)
        grown = xp.tanh(_parts(a, 4)[2])
        new = f * c + i * grown
        shown = xp.tanh(new)
        return {"h": o * shown, "c": new}, (decay, i, f, o, c, grown, new, shown)

    def slopes(self, h, made):
        decay, i, f, o, c, grown, new, shown = made
        i_slope, f_slope, _, o_slope = _parts(_sigmoid_slope(decay), 4)
        by_c = grown * i_slope, c * f_slope, i * _tanh_slope(_parts(decay, 4)[2])
        return f, by_c, shown * o_slope, o * _tanh_slope(_decay(new))

    def step_backward(self, around, slopes, dstate):
        f, by_c, by_h, across = slopes
        dh = dstate["h"]
        dc = dstate["c"] + dh * across
        dz = namespace(dh).concat((*(dc * slope for slope in by_c), dh * by_h), axis=-1)
        return dz, {"h": dz @ around, "c": dc * f}


def _rows(steps):
    """(time, batch, width) laid out as (time · batch, width)."""
    return namespace(steps).reshape(steps, (-1, steps.shape[-1]))


def _parts(x, count):
    """The last axis of x cut into `count` equal parts."""
    width = x.shape[-1] // count
    return [x[..., i * width : (i + 1) * width] for i in range(count)]


def _counted(counts, steps):
    """`steps` with 0 for those that a mask leaves out."""
    return namespace(steps).where(*counts, steps, 0.0) if counts else steps


def _zeros(like, shape):
    return namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def _levels(like, width, values):
    """Each of `values`, `width` times."""
    xp, place = namespace(like), device(like)
    return xp.concat([xp.full((width,), v, dtype=like.dtype, device=place) for v in values])


def _spread_evenly(key, count, width, like):
    """Draw `count` numbers from the uniform distribution on ±1/√width."""
    bound = 1.0 / math.sqrt(width)
    return (2.0 * uniform(key, (count,), like.dtype) - 1.0) * bound


def _transposed(matrix):
    """matrixᵀ laid out anew, row by row: what a loop multiplies by again and again."""
    xp = namespace(matrix)
    return xp.reshape(xp.reshape(matrix.T, (-1,)), matrix.shape[::-1])


def _decay(a):
    xp = namespace(a)
    return xp.exp(-xp.abs(a))


def _sigmoid(a, decay):
    xp = namespace(a)
    return xp.maximum(decay, xp.astype(a >= 0, a.dtype)) / (1.0 + decay)


def _sigmoid_slope(decay):
    opened = 1.0 + decay
    return decay / (opened * opened)


def _tanh_slope(decay):
    return 4.0 * _sigmoid_slope(decay * decay)
