"""Examples: one small instance of each layer, loss and optimizer.

`agnostic-nn check` checks their gradients, and `agnostic-nn conformance` runs them on a
library and compares with NumPy. Every new layer, loss and optimizer gets a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import blocks, layers, losses, optimizers
from ..core.arrays import Array, Params, RowMask, Shape, State, device, namespace
from ..core.trees import shape_map, tree_map
from ..layers.base import Layer
from .draws import (
    Draw,
    bags,
    chances,
    counts,
    distributions,
    drawn,
    labels,
    labels_or_ignored,
    labels_without_last,
    log_probabilities,
    masked,
    numbers,
    positive,
    probabilities,
    sampled,
    signs,
    unpooled,
    zeros_and_ones,
)

__all__ = [
    "LAYERS",
    "LOSSES",
    "OPTIMIZERS",
    "Example",
    "LossOf",
    "every_other",
    "loss_of",
]


@dataclass(frozen=True, eq=False)  # shapes may be dicts, which cannot be hashed
class Example:
    """A layer, the shape of one example of x, and `draw`, which `check` takes."""

    layer: Layer
    shape: Any
    draw: Draw | None = None

    @property
    def name(self) -> str:
        """The name of the class of the layer, or of the loss."""
        layer = self.layer
        return layer.name if isinstance(layer, LossOf) else type(layer).__name__


@dataclass(frozen=True, repr=False)
class LossOf(Layer):
    """The values of a loss, one per example, of x = {"y": …, "target": …}, as a layer.

    With it, the checks of layers apply to losses. dx is dy times the slopes of the
    loss; the target has no gradient.
    """

    loss: Callable[..., Any]
    options: tuple[tuple[str, Any], ...] = ()
    labels: bool = False

    def __repr__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options)
        return f"LossOf({self.name}{options}{', labels' * self.labels})"

    @property
    def input_kinds(self) -> dict[str, str]:  # type: ignore[override]
        return {
            "y": "real floating",
            "target": "integral" if self.labels else "numeric",
        }

    @property
    def name(self) -> str:
        """The name of the loss."""
        return self.loss.__name__

    @property
    def is_joint(self) -> bool:
        """True if the loss of an example depends on the outputs of other examples."""
        return getattr(self.loss, "is_joint", False)

    def init(self, key: Array, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        # Only the loss knows the shape of its values: evaluate it on a batch of one.
        xp = namespace(key)
        dtypes = {"y": dtype, "target": xp.int32 if self.labels else dtype}

        def zeros(name: str) -> Any:
            create = partial(xp.zeros, dtype=dtypes[name], device=device(key))
            return shape_map(lambda example: create((1, *example)), shape[name])

        values, _ = self.evaluate({"y": zeros("y"), "target": zeros("target")})
        return {}, {}, tuple(values.shape[1:])

    def evaluate(self, x: Any) -> tuple[Any, Any]:
        """Return the values and the slopes of each example."""
        options = dict(self.options)
        values, slopes = self.loss(x["y"], x["target"], reduction="none", **options)
        return values, slopes

    def forward(
        self, params: Params, state: State, x: Any, *, train: Any = False
    ) -> tuple[Any, State, Any]:
        if self.is_joint:
            # padding rows must not change the values of other rows
            weights = train.counts if isinstance(train, RowMask) else None
            return self._weighted(x, weights)[0], state, x
        values, slopes = self.evaluate(x)
        return values, state, slopes

    def _weighted(self, x: Any, weights: Array | None) -> tuple[Any, Any]:
        """Return the weighted values, and the gradient of their sum by y."""
        y, target, options = x["y"], x["target"], dict(self.options)
        values, dy = self.loss(y, target, weights, reduction="none", **options)
        return values, dy

    def backward(self, params: Params, cache: Any, dy: Array) -> tuple[Any, Params]:
        if self.is_joint:
            return {"y": self._weighted(cache, dy)[1], "target": None}, {}
        xp = namespace(dy)

        def scaled(slope: Any) -> Any:
            return slope * xp.reshape(dy, (*dy.shape, *(1,) * (slope.ndim - dy.ndim)))

        return {"y": tree_map(scaled, cache), "target": None}, {}


def loss_of(loss: Callable[..., Any], labels: bool = False, **options: Any) -> LossOf:
    """Return a loss with `options` as a layer; `labels`: its target holds integers."""
    return LossOf(loss, tuple(sorted(options.items())), labels)


def every_other(x: Any) -> Any:
    """Return every other position of x (batch, time, ...); an example for Lambda."""
    return x[:, ::2, ...]


_SEQUENCE: Shape = (5, 3)  # time and width

LAYERS = (
    Example(layers.AdaptiveAveragePool((3, 2)), (7, 5, 2)),
    Example(layers.AdaptiveMaxPool(3), (7, 5, 2)),
    Example(layers.Add(), ((5, 3),) * 3),
    Example(layers.AffineGrid((3, 4)), (2, 3)),
    Example(layers.AlphaDropout(0.3), (5,)),
    Example(layers.AveragePool1D(3, stride=2, padding=1), (7, 2)),
    Example(layers.AveragePool2D((2, 3)), (5, 7, 2)),
    Example(layers.AveragePool3D(2, stride=1), (3, 2, 4, 2)),
    Example(layers.BatchNorm(), (4,)),
    Example(layers.Bilinear(4), ((2, 3), (2, 5))),
    Example(layers.CELU(0.5), (2, 3)),
    Example(layers.Concatenate(), ((5, 3), (5, 2))),
    Example(
        layers.Conv1D(4, 3, stride=2, padding=((2, 1),), dilation=2, groups=2), (8, 2)
    ),
    Example(layers.Conv2D(4, (3, 2), stride=(2, 1), padding="same"), (5, 7, 3)),
    Example(
        layers.Conv3D(
            4,
            (2, 1, 3),
            stride=(1, 2, 1),
            padding=((0, 1), 0, 1),
            dilation=(2, 1, 1),
            groups=2,
        ),
        (3, 3, 4, 2),
    ),
    Example(
        layers.ConvTranspose1D(
            4, 3, stride=3, padding=((2, 1),), dilation=2, groups=2, output_padding=2
        ),
        (4, 2),
    ),
    Example(
        layers.ConvTranspose2D(4, (3, 2), stride=(2, 3), padding="same"), (3, 2, 3)
    ),
    Example(
        layers.ConvTranspose3D(
            4, (2, 1, 3), stride=(1, 2, 1), padding=((0, 1), 0, 1), groups=2
        ),
        (3, 2, 3, 2),
    ),
    Example(layers.Crop(((1, 0), (0, 2))), (3, 5, 2)),
    Example(layers.Dense(3), (4,)),
    Example(layers.DropPath(0.3), (3, 2)),
    Example(layers.Dropout(0.3), (5,)),
    Example(layers.ELU(1.5), (2, 3)),
    Example(layers.Embedding(5, 3), (4,)),
    Example(layers.EmbeddingBag(5, 3), {"x": (4,), "mask": (4,)}, bags),
    Example(layers.FeatureAlphaDropout(0.3), (3, 2, 4)),
    Example(layers.Flatten(), (2, 3)),
    Example(
        layers.Fold((5, 4), (3, 2), stride=(2, 1), padding=((1, 0), (0, 1))),
        (2, 4, 12),
    ),
    Example(blocks.Freeze(blocks.Sequential(layers.Dense(3), layers.Tanh())), (4,)),
    Example(layers.GEGLU(), (6,)),
    Example(layers.GELU(), (5,)),
    Example(layers.GLU(), (6,)),
    Example(layers.GRU(4), _SEQUENCE),
    Example(layers.GaussianNoise(0.5), (2, 3)),
    Example(layers.GlobalAveragePool(), (3, 5, 2)),
    Example(layers.GlobalMaxPool(), (3, 5, 2)),
    Example(
        blocks.Graph(
            a=(layers.Dense(4), "x"),
            b=(layers.Tanh(), "a"),
            c=(blocks.Shared("a"), "b"),
        ),
        (4,),
    ),
    Example(
        layers.GridSample(padding="reflection"),
        {"x": (4, 3, 2), "grid": (2, 3, 2)},
        sampled,
    ),
    Example(layers.GroupNorm(2), (3, 5, 6)),
    Example(layers.HardShrink(), (5,)),
    Example(layers.HardSigmoid(), (5,)),
    Example(layers.HardSwish(), (5,)),
    Example(layers.HardTanh(), (5,)),
    Example(layers.Identity(), (5, 3)),
    Example(layers.InstanceNorm(), (3, 5, 2)),
    Example(layers.LSTM(4), _SEQUENCE),
    Example(layers.Lambda(every_other), _SEQUENCE),
    Example(layers.LayerNorm(), (5,)),
    Example(layers.LeakyReLU(), (5,)),
    Example(blocks.LoRA(layers.Dense(3), 2, scale=0.5), (4,)),
    Example(layers.LocalResponseNorm(4, alpha=0.5, k=2.0), (2, 5)),
    Example(layers.LogSigmoid(), (5,)),
    Example(layers.LogSoftmax(), (2, 4)),
    Example(layers.LpPool1D(3, 2, p=1.5, absolute=True, padding=1), (7, 2)),
    Example(layers.LpPool2D(3, 2, ceil_mode=True), (5, 6, 2)),
    Example(layers.LpPool3D(2, 1, p=4), (3, 2, 4, 2)),
    Example(
        layers.MaskedAveragePool(), {"x": _SEQUENCE, "mask": _SEQUENCE[:1]}, masked
    ),
    Example(layers.MaskedMaxPool(), {"x": _SEQUENCE, "mask": _SEQUENCE[:1]}, masked),
    Example(layers.MaxPool1D(3, stride=1, padding="same", dilation=2), (7, 2)),
    Example(layers.MaxPool2D(3, stride=2, padding=1), (5, 7, 2)),
    Example(layers.MaxPool3D(2, stride=(1, 2, 1)), (3, 5, 2, 2)),
    Example(layers.MaxUnpool(), {"x": (2, 3, 2), "indices": (2, 3, 2)}, unpooled),
    Example(layers.Mish(), (5,)),
    # All layers are kept: what 16 bits compute has too few digits for most checks.
    Example(
        blocks.MixedPrecision(
            blocks.Sequential(layers.Dense(3), layers.Tanh()),
            "float16",
            keep=("0", "1"),
        ),
        (4,),
    ),
    Example(
        layers.MultiHeadAttention(
            6, key_heads=2, head_width=4, causal=True, rotary=True
        ),
        {"x": (5, 7), "mask": (5,)},
        masked,
    ),
    Example(
        layers.MultiHeadAttention(
            4,
            key_heads=2,
            value_width=3,
            window=3,
            alibi=True,
            relative=1,
            softcap=2.0,
            zero_key=True,
            return_weights=True,
        ),
        {"x": (5, 8), "mask": (5,), "score_bias": (5, 5)},
        masked,
    ),
    Example(layers.Multiply(), ((5,),) * 4),
    Example(layers.PReLU(), (5,)),
    Example(layers.Pad(((2, 0), 3), "reflect"), (3, 4, 2)),
    Example(blocks.Parallel(layers.Dense(3), layers.Tanh()), (2, 3)),
    Example(layers.PixelShuffle((2, 3)), (3, 2, 12)),
    Example(layers.PixelUnshuffle((2, 3)), (4, 3, 2)),
    Example(layers.PositionEmbedding(7), _SEQUENCE),
    Example(layers.RMSNorm(), (2, 5)),
    Example(layers.RNN(4), _SEQUENCE),
    Example(layers.ReLU(), (5,)),
    Example(layers.ReLU6(), (5,)),
    Example(blocks.Recompute(blocks.Sequential(layers.Dense(3), layers.Tanh())), (4,)),
    Example(blocks.Repeat(blocks.Residual(layers.Dense(3), layers.Tanh()), 2), (3,)),
    Example(layers.Rescale((0.5, -2.0), 0.25), (3, 2)),
    Example(layers.Reshape((3, -1)), (2, 6)),
    Example(blocks.Residual(layers.Dense(4), layers.Tanh(), layers.Dense(3)), (2, 3)),
    Example(layers.Resize((7, 2), mode="cubic"), (3, 5, 2)),
    Example(layers.RotaryPositions(base=100.0), (5, 3, 6)),
    Example(layers.SELU(), (5,)),
    Example(
        blocks.Sequential(
            layers.Dense(3),
            blocks.Sequential(layers.Tanh(), blocks.Sequential(layers.Dense(2))),
        ),
        (4,),
    ),
    Example(layers.SiLU(), (5,)),
    Example(layers.Sigmoid(), (2, 3)),
    Example(layers.SinusoidalPositions(), (5, 6)),
    Example(layers.SoftShrink(), (5,)),
    Example(layers.Softmax(), (4,)),
    Example(layers.Softmin(), (4,)),
    Example(layers.Softplus(), (5,)),
    Example(layers.Softsign(), (5,)),
    Example(layers.SpatialDropout(0.3), (3, 2, 4)),
    Example(layers.SwiGLU(), (2, 6)),
    Example(layers.Tanh(), (5,)),
    Example(layers.TanhShrink(), (5,)),
    Example(layers.Threshold(0.3, -0.2), (5,)),
    Example(
        blocks.TransformerBlock(layers.MultiHeadAttention(2, causal=True), hidden=5),
        (4, 6),
    ),
    Example(layers.Transpose((2, 1)), _SEQUENCE),
    Example(layers.Unembedding(5), (2, 3)),
    Example(
        layers.Unfold((3, 2), (2, 1), padding=((1, 0), (0, 1))),
        (5, 4, 2),
    ),
    Example(layers.UnitNorm(), (2, 5)),
    Example(layers.Upsample((2, 3), mode="linear"), (5, 3, 2)),
    Example(blocks.WeightNorm(layers.Dense(3)), (4,)),
    Example(layers.ZeroPad(((1, 2), (0, 3))), (3, 2, 2)),
)

# Shapes of one example of y and target.
_VECTOR = {"y": (5,), "target": (5,)}
_LABEL = {"y": (5,), "target": ()}
_LABELS = {"y": (3, 4), "target": (3,)}
_ROWS = {"y": (2, 4), "target": (2, 4)}
_GAUSSIAN = {"y": {"mean": (3,), "variance": (3,)}, "target": (3,)}
_PAIR = {"y": {"first": (5, 4), "second": (5, 4)}, "target": (5,)}
_SCORES = {"y": {"first": (5,), "second": (5,)}, "target": (5,)}
_TRIPLET = {"y": ((3, 4), (3, 4), (3, 4)), "target": (0,)}

LOSSES = (
    Example(loss_of(losses.binary_cross_entropy), _VECTOR, drawn(probabilities)),
    Example(
        loss_of(losses.binary_cross_entropy, from_logits=False),
        _VECTOR,
        drawn(probabilities, chances),
    ),
    Example(loss_of(losses.cosine_distance), _ROWS, drawn(numbers)),
    Example(loss_of(losses.cosine_embedding, margin=0.1), _PAIR, drawn(signs)),
    Example(
        loss_of(losses.ctc, labels=True, blank=3),
        {"y": (6, 4), "target": (2,)},
        drawn(labels_without_last),
    ),
    Example(
        loss_of(losses.dice, activation="softmax", epsilon=0.1),
        {"y": (3, 2, 4), "target": (3, 2, 4)},
        drawn(probabilities),
    ),
    Example(loss_of(losses.gaussian_nll), _GAUSSIAN, drawn(numbers, positive)),
    Example(loss_of(losses.hinge), _VECTOR, drawn(signs)),
    Example(loss_of(losses.hinge_embedding), _VECTOR, drawn(signs)),
    Example(loss_of(losses.huber, delta=0.7), _VECTOR, drawn(numbers)),
    Example(
        loss_of(losses.info_nce, temperature=0.5, symmetric=True),
        {"y": {"first": (4,), "second": (4,)}, "target": (0,)},
        drawn(numbers),
    ),
    Example(
        loss_of(losses.kl_divergence), _ROWS, drawn(distributions, log_probabilities)
    ),
    Example(loss_of(losses.log_cosh), _VECTOR, drawn(numbers)),
    Example(loss_of(losses.margin_ranking, margin=0.5), _SCORES, drawn(signs)),
    Example(loss_of(losses.mean_absolute_error), _VECTOR, drawn(numbers)),
    Example(loss_of(losses.mean_squared_error), _VECTOR, drawn(numbers)),
    Example(loss_of(losses.multi_class_margin, labels=True), _LABEL, drawn(labels)),
    Example(loss_of(losses.multi_label_margin), _ROWS, drawn(zeros_and_ones)),
    Example(
        loss_of(losses.multi_label_soft_margin, class_weights=(0.5, 2.0, 0.0, 1.25)),
        _ROWS,
        drawn(probabilities),
    ),
    Example(
        loss_of(
            losses.negative_log_likelihood,
            labels=True,
            class_weights=(0.5, 2.0, 0.0, 1.25),
            ignore_index=-100,
        ),
        _LABELS,
        drawn(labels_or_ignored, log_probabilities),
    ),
    Example(loss_of(losses.poisson_nll), _VECTOR, drawn(counts)),
    Example(loss_of(losses.soft_margin), _VECTOR, drawn(signs)),
    Example(loss_of(losses.softmax_cross_entropy, labels=True), _LABELS, drawn(labels)),
    Example(loss_of(losses.squared_hinge), _VECTOR, drawn(signs)),
    Example(loss_of(losses.triplet_margin, margin=0.5), _TRIPLET, drawn(numbers)),
)

OPTIMIZERS = (
    optimizers.Accumulate(optimizers.SGD(0.1), 2),
    optimizers.Adadelta(0.5),
    optimizers.Adafactor(0.1),
    optimizers.Adagrad(0.1),
    optimizers.Adam(0.1, amsgrad=True),
    optimizers.AdamW(0.1, weight_decay=0.3),
    optimizers.Adamax(0.1),
    optimizers.Average(optimizers.SGD(0.1), 0.9),
    optimizers.ClipByGlobalNorm(optimizers.SGD(0.1)),
    optimizers.ClipByNorm(optimizers.SGD(0.1)),
    optimizers.ClipByValue(optimizers.SGD(0.1), 0.5),
    optimizers.DynamicScale(optimizers.SGD(0.1), 4.0, every=5),
    optimizers.L2(optimizers.SGD(0.1), 0.2),
    optimizers.LAMB(0.1),
    optimizers.Lion(0.01, weight_decay=0.3),
    optimizers.Muon(0.05),
    optimizers.NAdam(0.1),
    optimizers.Parts((("bias", optimizers.Fixed()),), rest=optimizers.SGD(0.1)),
    optimizers.RAdam(0.1),
    optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    optimizers.Scaled(optimizers.SGD(0.1)),
)
