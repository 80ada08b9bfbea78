"""Normalization: y = x̂ · scale + bias, with x̂ of mean 0 and variance 1.

The layers differ in the axes that x̂ is normalized over. scale and bias have one
element for each channel, the last axis of x, or for each element of the last axes. x̂
and the gradient are derived in `ops.normalization`. RMSNorm does not subtract the mean;
the term Σ gⱼ of dL/dx, which comes through μ, is then absent.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

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
    expect_count,
    expect_flag,
    expect_integer,
    expect_number,
    expect_positive,
)
from ..core.trees import tree_map
from ..ops import (
    narrowed,
    normalize,
    normalize_backward,
    normalize_rows,
    normalize_rows_backward,
    pad,
    slide,
    sum_rows,
    widened,
)
from .base import Layer
from .shapes import expect_inner_axis

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LocalResponseNorm",
    "RMSNorm",
    "Rescale",
    "UnitNorm",
]


@dataclass(frozen=True)
class Rescale(Layer):
    """y = x · scale + offset, for x of integers, such as the bytes of images, or reals.

    x: (...) -> y of the same shape. If x holds integers, y has the dtype of the model,
    and x is not converted before this layer: bytes take a quarter of the memory of
    float32, also when they are moved to the device.

    `scale`, `offset`: fixed numbers, or a tuple with one for each channel, the last
    axis. `Rescale(1 / 255)` maps bytes to [0, 1]; with the means m and standard
    deviations s of such channels, the scale 1 / (255 s) and the offset -m / s
    standardize them. State: scale and offset, as arrays, which do not change.

    Gradient
    --------
    y is linear in each element of x, so dx = dy · scale. Integers have no gradient:
    `backward` returns None for dx.
    """

    one_array = True
    per_position = True
    input_kinds: ClassVar[str | dict[str, str]] = "numeric"

    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "offset"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                for number in value:
                    expect_number(f"each number of {name}", number)
            elif isinstance(value, list):
                raise TypeError(
                    f"expected {name} as a number or a tuple of numbers, got {value}"
                )
            else:
                expect_number(name, value)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        xp = namespace(key)
        state = {}
        for name in ("scale", "offset"):
            value = getattr(self, name)
            is_tuple = isinstance(value, tuple)
            fits = not is_tuple or shape[-1:] == (len(value),)
            message = "Rescale has {} numbers as {}, for x of shape (batch, *{})"
            expect(fits, message, len(value) if is_tuple else 1, name, shape)
            state[name] = xp.asarray(value, dtype=dtype, device=device(key))
        return {}, state, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        scale = state["scale"]
        offset = state["offset"]
        if not xp.isdtype(x.dtype, "real floating"):
            return xp.astype(x, scale.dtype) * scale + offset, state, ()
        wide = widened(x)
        scale = xp.astype(scale, wide.dtype, copy=False)
        offset = xp.astype(offset, wide.dtype, copy=False)
        return narrowed(wide * scale + offset, x), state, (scale,)

    def backward(
        self, params: Params, cache: Cache, dy: Array
    ) -> tuple[Array | None, Params]:
        if not cache:
            return None, {}
        return narrowed(widened(dy) * cache[0], dy), {}


class _Scaled(Layer):
    """y = x̂ · scale + bias. Base of layers with an optional scale and bias."""

    one_array = True

    epsilon: float
    scale: bool
    bias: bool

    def __post_init__(self) -> None:
        expect_flag("scale", self.scale)
        expect_flag("bias", self.bias)
        expect_number("epsilon", self.epsilon, 0.0)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        name = type(self).__name__
        expect(len(shape) >= 1, "{} takes (batch, ..., width), got (batch,)", name)
        xp = namespace(key)
        place = device(key)
        params = {}
        if self.scale:
            params["scale"] = xp.ones(shape[-1], dtype=dtype, device=place)
        if self.bias:
            params["bias"] = xp.zeros(shape[-1], dtype=dtype, device=place)
        return params, {}, shape

    def _expect_width(self, x: Array, arrays: dict[str, Array]) -> None:
        """Raise ValueError unless x is (batch, ..., width) for `arrays` of (width,)."""
        name = type(self).__name__
        for leaf in arrays.values():
            width = leaf.shape[0]
            fits = x.ndim >= 2 and x.shape[-1] == width
            expect(fits, "{} takes (batch, ..., {}), got {}", name, width, x.shape)

    def _scale_and_shift(self, params: Params, normal: Array, x: Array) -> Array:
        """Return y in the dtype of x, from x̂."""
        y = normal
        if self.scale:
            y = y * widened(params["scale"])
        if self.bias:
            y = y + widened(params["bias"])
        return narrowed(y, x)

    def _scale_backward(
        self, params: Params, normal: Array, dy: Array
    ) -> tuple[Array, Params]:
        """Return g = dL/dx̂ and the gradients of scale and bias."""
        dy = widened(dy)
        grads = {}
        if self.scale:
            grads["scale"] = narrowed(sum_rows(dy * normal), params["scale"])
        if self.bias:
            grads["bias"] = narrowed(sum_rows(dy), params["bias"])
        return dy * widened(params["scale"]) if self.scale else dy, grads


class _LastAxes(_Scaled):
    """Base of layers that normalize the last axes, which are flattened to rows."""

    axes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("axes", self.axes)

    @property
    def per_position(self) -> bool:  # type: ignore[override]
        return self.axes == 1

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        if self.axes == 1:
            return super().init(key, shape, dtype)
        fits = len(shape) >= self.axes
        message = (
            "{}(axes={}) takes (batch, ...) with {} or more axes after the batch, "
        )
        message += "got (batch, *{})"
        expect(fits, message, type(self).__name__, self.axes, self.axes, shape)
        last = shape[-self.axes :]
        flat, state, _ = super().init(key, (math.prod(last),), dtype)
        xp = namespace(key)
        params = {name: xp.reshape(leaf, last) for name, leaf in flat.items()}
        return params, state, shape

    def _expect_axes(self, x: Array, params: Params) -> None:
        """Raise ValueError unless x ends in the axes of `params`."""
        if self.axes == 1:
            self._expect_width(x, params)
            return
        name = f"{type(self).__name__}(axes={self.axes})"
        fits = x.ndim > self.axes
        message = "{} takes (batch, ...) with {} or more axes after the batch, got {}"
        expect(fits, message, name, self.axes, x.shape)
        for leaf in params.values():
            fits = x.shape[-self.axes :] == leaf.shape
            last = ", ".join(map(str, leaf.shape))
            expect(fits, "{} takes (batch, ..., {}), got {}", name, last, x.shape)

    def _rows(self, x: Array) -> Array:
        """Return x with its last axes as one."""
        if self.axes == 1:
            return x
        shape = (*x.shape[: -self.axes], math.prod(x.shape[-self.axes :]))
        return namespace(x).reshape(x, shape)

    def _flat(self, params: Params) -> Params:
        """Return the parameters as vectors."""
        if self.axes == 1:
            return params
        return {k: namespace(p).reshape(p, (-1,)) for k, p in params.items()}

    def _shaped(self, x: Array, like: Array) -> Array:
        """Undo `_rows` or `_flat`."""
        return x if self.axes == 1 else namespace(x).reshape(x, like.shape)


@dataclass(frozen=True)
class LayerNorm(_LastAxes):
    """y = x̂ · scale + bias, with x̂ normalized over the last axis.

        x̂ = (x - μ) / √(v + ε), with their mean μ and variance v

    x: (..., width) -> y: (..., width). Ba, Kiros & Hinton, arXiv:1607.06450, eq. 4.

    `axes`: the number of last axes that x̂ is normalized over; scale and bias then have
    their shape (PyTorch: the length of normalized_shape). `epsilon`: ε, added to the
    variance. `scale`, `bias`: whether there are these parameters (PyTorch:
    elementwise_affine; Keras: scale, center).

    Parameters: scale (width,), which starts at 1, and bias (width,), which starts at 0.

    Gradient
    --------
    With g = dy · scale, s = √(v + ε) and sums over the N numbers of the last axis, as
    derived in `agnostic_nn.ops.normalization`,

        dx = (g - Σ g / N - x̂ Σ g x̂ / N) / s    dscale = Σ dy x̂    dbias = Σ dy

    where the last two sums run over every axis but the last. With several axes, these
    are one axis of N numbers.
    """

    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    axes: int = 1

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect_axes(x, params)
        wide = tree_map(widened, self._flat(params))
        scale = wide.get("scale")
        bias = wide.get("bias")
        y, cache = normalize_rows(self._rows(widened(x)), scale, bias, self.epsilon)
        return narrowed(self._shaped(y, x), x), state, cache

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        wide = tree_map(widened, self._flat(params))
        scale = wide.get("scale")
        bias = wide.get("bias")
        rows = self._rows(widened(dy))
        dx, dscale, dbias = normalize_rows_backward(rows, scale, bias, cache)
        wide_grads = {"scale": dscale, "bias": dbias}
        grads = {
            name: narrowed(self._shaped(wide_grads[name], p), p)
            for name, p in params.items()
        }
        return narrowed(self._shaped(dx, dy), dy), grads


class _PerExample(_Scaled):
    """Base of layers that normalize groups of numbers within each example."""

    def _groups(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        """Return the shape to which x is reshaped, and the axes to normalize over.

        shape: that of x. Raises ValueError if a group has a single number.
        """
        raise NotImplementedError

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        result = super().init(key, shape, dtype)
        self._groups((0, *shape))
        return result

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect_width(x, params)
        xp = namespace(x)
        shape, axes = self._groups(x.shape)
        grouped = xp.reshape(widened(x), shape)
        normal, _, _, spread = normalize(grouped, axes, self.epsilon)
        normal = xp.reshape(normal, x.shape)
        return self._scale_and_shift(params, normal, x), state, (normal, spread)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        normal, spread = cache
        g, grads = self._scale_backward(params, normal, dy)
        shape, axes = self._groups(dy.shape)
        g = xp.reshape(g, shape)
        normal = xp.reshape(normal, shape)
        dx = xp.reshape(normalize_backward(g, normal, spread, axes), dy.shape)
        return narrowed(dx, dy), grads


@dataclass(frozen=True)
class InstanceNorm(_PerExample):
    """y = x̂ · scale + bias, with x̂ normalized over all positions, channel by channel.

        x̂ = (x - μ) / √(v + ε), with their mean μ and variance v

    x: (batch, *space, width) -> y of the same shape. Ulyanov, Vedaldi & Lempitsky,
    arXiv:1607.08022. The options and parameters are those of `LayerNorm`. The gradient
    is that of `LayerNorm`, with sums over the N positions of an example in dx.

    With `running` (track_running_stats) the layer has the state of `BatchNorm`: means
    over the examples of a batch of μ and of the unbiased variance v N / (N - 1), which
    are averaged over training steps with `momentum` as there. They replace μ and v in
    prediction, where dx = g / s.
    """

    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    running: bool = False
    momentum: float | None = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_flag("running", self.running)
        _expect_momentum(self.momentum)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        params, state, shape = super().init(key, shape, dtype)
        if self.running:
            state = _first_statistics(key, shape[-1], dtype, self.momentum)
        return params, state, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        if not self.running:
            return super().forward(params, state, x, train=train)
        self._expect_width(x, {"mean": state["mean"]})
        if not train:
            normal, spread = _normalize_by_state(state, x, self.epsilon)
            return self._scale_and_shift(params, normal, x), state, (normal, spread)
        _, axes = self._groups(x.shape)
        normal, mean, variance, spread = normalize(widened(x), axes, self.epsilon)
        if x.shape[0] > 0:
            size = math.prod(x.shape[1:-1])
            statistics = {"mean": mean, "variance": variance * (size / (size - 1))}
            state = self._after_batch(state, statistics, train)
        return self._scale_and_shift(params, normal, x), state, (normal, spread)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        normal, spread = cache
        if spread.ndim > 1:
            return super().backward(params, cache, dy)
        g, grads = self._scale_backward(params, normal, dy)
        return narrowed(g / spread, dy), grads

    def _after_batch(
        self, state: State, statistics: dict[str, Array], train: bool | RowMask
    ) -> State:
        """Return the state after a batch with `statistics` of each example."""
        width = state["mean"].shape[0]
        xp = namespace(state["mean"])
        rows = {k: xp.reshape(a, (-1, width)) for k, a in statistics.items()}
        if not isinstance(train, RowMask):
            batch = {name: xp.mean(leaf, axis=0) for name, leaf in rows.items()}
            return _next_statistics(state, batch, self.momentum)
        counts = xp.reshape(widened(train.counts), (-1, 1))
        total = xp.sum(counts)
        divisor = xp.maximum(total, 1.0)
        batch = {name: sum_rows(counts * leaf) / divisor for name, leaf in rows.items()}
        after = _next_statistics(state, batch, self.momentum)
        return {k: xp.where(total > 0.0, after[k], old) for k, old in state.items()}

    def _groups(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        fits = math.prod(shape[1:-1]) > 1
        message = "InstanceNorm takes two or more positions, got (batch, *{})"
        expect(fits, message, shape[1:])
        return shape, tuple(range(1, len(shape) - 1))


@dataclass(frozen=True)
class GroupNorm(_PerExample):
    """y = x̂ · scale + bias, with x̂ normalized over positions and groups of channels.

        x̂ = (x - μ) / √(v + ε), with their mean μ and variance v

    x: (batch, ..., width) -> y of the same shape. Wu & He, arXiv:1803.08494, eq. 7.

    `groups`: number of groups (num_groups) of neighbouring channels. Each group of each
    example is normalized separately. The other options and the parameters are those of
    `LayerNorm`. The gradient is that of `LayerNorm`, with sums over the N numbers of a
    group in dx.
    """

    groups: int
    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("groups", self.groups)

    def _groups(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        batch, *space, width = shape
        fits = width % self.groups == 0
        expect(fits, "{} channels cannot be split into {} groups", width, self.groups)
        positions = math.prod(space)
        channels = width // self.groups
        fits = positions * channels > 1
        message = "GroupNorm takes two or more numbers a group, got (batch, *{})"
        expect(fits, message, shape[1:])
        # the channels of a group become an axis, to sum over it and the positions
        return (batch, positions, self.groups, channels), (1, 3)


@dataclass(frozen=True)
class RMSNorm(_LastAxes):
    """y = x / s · scale, with s = √(Σ x² / N + ε) over the N numbers of the last axis.

    x: (..., width) -> y: (..., width). This is LayerNorm without subtracting the mean
    (Zhang & Sennrich, arXiv:1910.07467, eq. 4). `axes` is that of `LayerNorm`.

    Parameters: scale (width,), which starts at 1, unless `scale` is false.

    Gradient
    --------
    That of `LayerNorm` without the term of μ. With x̂ = x / s and g = dy · scale,

        dx = (g - x̂ Σ g x̂ / N) / s        dscale = Σ dy x̂
    """

    _: KW_ONLY
    epsilon: float = 1e-5
    scale: bool = True
    axes: int = 1

    bias = False

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect_axes(x, params)
        xp = namespace(x)
        wide = self._rows(widened(x))
        spread = xp.sqrt(xp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        normal = wide / spread
        y = self._scale_and_shift(self._flat(params), normal, x)
        return self._shaped(y, x), state, (normal, spread)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        normal, spread = cache
        g, flat = self._scale_backward(self._flat(params), normal, self._rows(dy))
        grads = {name: self._shaped(flat[name], p) for name, p in params.items()}
        projection = namespace(g).mean(g * normal, axis=-1, keepdims=True)
        dx = narrowed((g - normal * projection) / spread, dy)
        return self._shaped(dx, dy), grads


@dataclass(frozen=True)
class BatchNorm(_Scaled):
    """y = x̂ · scale + bias, with x̂ normalized over all axes but the last.

        x̂ = (x - μ) / √(v + ε), with their mean μ and variance v

    x: (batch, ..., width) -> y of the same shape. Ioffe & Szegedy, arXiv:1502.03167,
    algorithm 1.

    Parameters: scale (width,), which starts at 1, and bias (width,), which starts at 0.

    State: the running mean and variance, (width,) each. They are used for μ and v in
    prediction, and are updated at every training step:

        running ← momentum · running + (1 - momentum) · batch

    `momentum` is that of Keras; PyTorch's is 1 minus this one. With None, as in
    PyTorch, running statistics are the means over all batches so far, and the state has
    their number, `count`:

        running ← running · count / (count + 1) + batch / (count + 1)

    The variance of the
    batch is multiplied by N / (N - 1), the unbiased estimate, as in PyTorch. With
    `frozen` the running statistics are used in training too and are not updated, for
    fine-tuning on small batches.

    Rows that pad a batch (`RowMask`) are normalized like the others, but do not
    contribute to the statistics. If a single number per channel remains, as in a
    last batch of one example, its variance is undefined and the running statistics
    are not updated.

    Gradient
    --------
    With g = dy · scale, s = √(v + ε) and sums over the N numbers of each
    channel, in training

        dx = (g - Σ g / N - x̂ Σ g x̂ / N) / s    dscale = Σ dy x̂    dbias = Σ dy

    as derived in `agnostic_nn.ops.normalization`. In prediction and if frozen, μ and s
    are constants, so dx = g / s.
    """

    _: KW_ONLY
    momentum: float | None = 0.9
    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True
    frozen: bool = False

    per_position = True  # in prediction, which is what decoding does

    def __post_init__(self) -> None:
        expect_flag("frozen", self.frozen)
        super().__post_init__()
        _expect_momentum(self.momentum)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        params, _, shape = super().init(key, shape, dtype)
        return params, _first_statistics(key, shape[-1], dtype, self.momentum), shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map x (batch, ..., width) to y of the same shape.

        Raises
        ------
        ValueError
            If x has another width, or in training a single number per channel, whose
            variance is undefined.
        """
        xp = namespace(x)
        self._expect_width(x, {"mean": state["mean"]})
        if self.frozen or not train:
            normal, spread = _normalize_by_state(state, x, self.epsilon)
            return self._scale_and_shift(params, normal, x), state, (normal, spread)

        size = math.prod(x.shape[:-1])
        message = "BatchNorm trains on two or more numbers a channel, got {}"
        expect(size > 1, message, x.shape)
        axes = tuple(range(x.ndim - 1))
        counts = _counts(train, x)
        wide = widened(x)
        normal, mean, variance, spread = normalize(wide, axes, self.epsilon, counts)
        # the running statistics use the unbiased variance, x̂ the biased one
        if counts is None:
            unbias = size / (size - 1)
        else:
            # `maximum`, and `where` below, instead of a branch: under `jit` the total
            # is unknown
            total = xp.sum(counts)
            unbias = total / xp.maximum(total - 1.0, 1.0)
        batch = {
            "mean": xp.reshape(mean, (-1,)),
            "variance": xp.reshape(variance, (-1,)) * unbias,
        }
        after = _next_statistics(state, batch, self.momentum)
        if counts is None:
            state = after
        else:
            has_variance = total > 1.0
            state = {
                name: xp.where(has_variance, after[name], old)
                for name, old in state.items()
            }
        cache = (normal, spread) if counts is None else (normal, spread, counts)
        return self._scale_and_shift(params, normal, x), state, cache

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        normal, spread, *counts = cache
        g, grads = self._scale_backward(params, normal, dy)
        if spread.ndim == 1:  # from the running variance, (width,), which is a constant
            return narrowed(g / spread, dy), grads
        axes = tuple(range(dy.ndim - 1))
        return narrowed(normalize_backward(g, normal, spread, axes, *counts), dy), grads


def _expect_momentum(momentum: float | None) -> None:
    """Raise unless `momentum` is a number in [0, 1] or None."""
    if momentum is None:
        return
    expect_number("momentum", momentum)
    fits = 0.0 <= momentum <= 1.0
    expect(fits, "expected a momentum in [0, 1], got {}", momentum)


def _first_statistics(
    key: Key, width: int, dtype: Any, momentum: float | None
) -> State:
    """Return the state before training: mean 0, variance 1 and perhaps a count of 0."""
    xp = namespace(key)
    place = device(key)
    state = {
        "mean": xp.zeros(width, dtype=dtype, device=place),
        "variance": xp.ones(width, dtype=dtype, device=place),
    }
    if momentum is None:
        state["count"] = xp.zeros((), dtype=dtype, device=place)
    return state


def _next_statistics(
    state: State, batch: dict[str, Array], momentum: float | None
) -> State:
    """Return the running statistics after a batch with the statistics `batch`."""
    after = {}
    keep: Any = momentum
    share: Any = None if momentum is None else 1.0 - momentum
    if momentum is None:
        # float16 counts to 2048 only; after that the mean weights batches like a
        # momentum of 2048 / 2049
        total = widened(state["count"]) + 1.0
        after["count"] = narrowed(total, state["count"])
        share = 1.0 / total
        keep = 1.0 - share
    for name, new in batch.items():
        old = state[name]
        after[name] = narrowed(keep * widened(old) + share * new, old)
    return {name: after[name] for name in state}


def _normalize_by_state(state: State, x: Array, epsilon: float) -> tuple[Array, Array]:
    """Return x̂ from the running statistics, and s, (width,)."""
    spread = namespace(x).sqrt(widened(state["variance"]) + epsilon)
    return (widened(x) - widened(state["mean"])) / spread, spread


def _counts(train: bool | RowMask, x: Array) -> Array | None:
    """Return the weights of the numbers, (*x.shape[:-1], 1), or None if all are 1."""
    if not isinstance(train, RowMask):
        return None
    xp = namespace(x)
    counts = xp.reshape(widened(train.counts), (-1,) + (1,) * (x.ndim - 1))
    return xp.broadcast_to(counts, (*x.shape[:-1], 1))


@dataclass(frozen=True)
class UnitNorm(Layer):
    """y = x / max(n, ε) with the Euclidean norm n = √Σ x² along `axis`.

    x: (batch, ...) -> y of the same shape, with vectors of length 1 along `axis`. It is
    PyTorch's functional.normalize and Keras' UnitNormalization. `epsilon`: ε, so that
    vectors of 0 stay 0. n is computed without overflow.

    Gradient
    --------
    dn = Σ x dx / n = Σ y dx, so dy' = (dx - y Σ y dx) / n for a change dx, and as this
    matrix is symmetric,

        dx = (dy - y Σ y dy) / n for n > ε        dx = dy / ε for n ≤ ε
    """

    one_array = True

    axis: int = -1
    _: KW_ONLY
    epsilon: float = 1e-12

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis)
        expect_positive("epsilon", self.epsilon)

    @property
    def per_position(self) -> bool:  # type: ignore[override]
        return self.axis == -1

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect_inner_axis(self.axis, shape)
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        wide = widened(x)
        # n = m l with m the largest |x|, because the squares of x may overflow
        largest = xp.max(xp.abs(wide), axis=self.axis, keepdims=True)
        scale = xp.where(largest > 0, largest, 1.0)
        scaled = wide / scale
        length = xp.sqrt(xp.sum(scaled * scaled, axis=self.axis, keepdims=True))
        norm = scale * length
        # l ≥ 1 except for a vector of 0, and m ≤ ε where n ≤ ε: nothing overflows
        short_share = xp.minimum(scale, self.epsilon) / self.epsilon
        long_share = 1.0 / xp.maximum(length, 1.0)
        y = scaled * xp.where(norm > self.epsilon, long_share, short_share)
        return narrowed(y, x), state, (y, norm)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        y, norm = cache
        wide_dy = widened(dy)
        is_long = norm > self.epsilon
        along = xp.sum(y * wide_dy, axis=self.axis, keepdims=True)
        across = wide_dy - xp.where(is_long, y * along, 0.0)
        return narrowed(across / xp.maximum(norm, self.epsilon), dy), {}


@dataclass(frozen=True)
class LocalResponseNorm(Layer):
    """y = x / dᵝ with d = k + (α / n) Σ x² over n neighbouring channels.

    x: (batch, ..., channels) -> y of the same shape. The neighbours of channel c are
    c - ⌊n/2⌋ to c + ⌊(n - 1)/2⌋, without those that do not exist, but always divided by
    n, as in PyTorch. (ONNX has one more channel after c, not before it, if n is even.)
    Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional
    Neural Networks" (2012), sec. 3.3, where α is not divided by n.

    `size`: n. `alpha`, `beta`, `k`: α, β and k, with the defaults of PyTorch.

    Gradient
    --------
    As ∂dⱼ/∂xᵢ = 2 (α / n) xᵢ if i is a neighbour of j,

        dxᵢ = dyᵢ / dᵢᵝ - 2 (α β / n) xᵢ Σ dyⱼ xⱼ / dⱼᵝ⁺¹

    where the sum is over all j that have the neighbour i: i - ⌊(n - 1)/2⌋ to i + ⌊n/2⌋.
    """

    one_array = True
    per_position = True

    size: int
    _: KW_ONLY
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def __post_init__(self) -> None:
        expect_count("size", self.size)
        expect_number("alpha", self.alpha, 0.0)
        expect_number("beta", self.beta, 0.0)
        expect_positive("k", self.k)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = len(shape) >= 1
        expect(fits, "LocalResponseNorm takes (batch, ..., channels), got (batch,)")
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        wide = widened(x)
        before = self.size // 2
        total = _neighbours(wide * wide, before, self.size - 1 - before)
        d = self.k + (self.alpha / self.size) * total
        return narrowed(wide / d**self.beta, like=x), state, (x, d)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        x, d = cache
        wide = widened(x)
        share = widened(dy) / d**self.beta
        after = self.size // 2
        total = _neighbours(share * wide / d, self.size - 1 - after, after)
        dx = share - (2.0 * self.alpha * self.beta / self.size) * wide * total
        return narrowed(dx, like=dy), {}


def _neighbours(x: Array, before: int, after: int) -> Array:
    """Return the sum of each channel and the channels before and after it."""
    xp = namespace(x)
    channels = x.shape[-1]
    # `pad` and `slide` work on inner axes
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), channels, 1))
    parts = slide(pad(rows, ((before, after),)), 1, before + 1 + after, 1, 1)
    return xp.reshape(sum(parts[1:], start=parts[0]), x.shape)
