"""Call every public constructor and function with invalid arguments.

`nox -s badinput` runs all calls on a backend and prints those that were accepted,
raised an internal error, or changed a trainer. `tests/test_bad_input.py` runs the
quick part.
"""

import ast
import inspect
import math
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

import agnostic_nn as nn
from agnostic_nn import initializers, losses, metrics, optimizers, random, schedules
from agnostic_nn.diagnostics.compare import run_comparison

HOME = Path(nn.__file__).parent
OURS = (HOME, HOME.parent / "agnostic_nn_backends", HOME.parent / "backends")


@dataclass(frozen=True)
class Case:
    """A call that must be refused; `call` takes a `World`."""

    name: str
    call: Callable
    binding: bool = False  # whether a TypeError of Python about arguments is accepted
    theirs: bool = False  # whether the error is raised by a function of the caller
    pure: bool = False  # whether the call involves no trainer


class World:
    """A backend, a folder, and trainers that no refused call may change."""

    def __init__(self, backend: nn.Backend, folder: Path) -> None:
        self.backend, self.folder = backend, folder
        generator = np.random.default_rng(0)
        self.x = generator.standard_normal((12, 3)).astype("float32")
        self.labels = generator.integers(0, 2, 12)
        self.y = generator.standard_normal((12, 2)).astype("float32")
        (folder / "file").write_text("no checkpoint")
        (folder / "columns.csv").write_text(
            "epoch,steps,loss,rate,seconds\n1,2,0.5,0.1,1.0\n"
        )
        self._trainers: dict[str, nn.Trainer] = {}

    def trainer(self, kind: str = "trained") -> nn.Trainer:
        """Return a trainer: "trained", "new" (no weights) or "numbers" (regression)."""
        if kind not in self._trainers:
            loss = (
                nn.mean_squared_error if kind == "numbers" else nn.softmax_cross_entropy
            )
            shape = None if kind == "new" else (3,)
            model = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dropout(0.1), nn.Dense(2))
            trainer = nn.Trainer(
                model, loss, nn.Adam(1e-2), backend=self.backend, shape=shape
            )
            # not really trained, because compiling would take longer than all cases
            if kind == "trained":
                trainer.steps, trainer.epoch, trainer.notes["best"] = 2, 1, 0.5
            self._trainers[kind] = trainer
        return self._trainers[kind]

    def key(self):
        return random.key(0, xp=self.backend.xp)

    def array(self, *shape, dtype="float32"):
        return self.backend.asarray(np.ones(shape, dtype))

    def state(self) -> list:
        """Return everything that a refused call must not change."""
        result = []
        for kind, trainer in self._trainers.items():
            result += [
                kind,
                trainer.steps,
                trainer.epoch,
                trainer.shape,
                trainer.out_shape,
                repr(trainer.notes),
            ]
            if trainer.shape is not None:
                carry = trainer.params, trainer.state, trainer.moments
                carry = self.backend.to_numpy(carry)
                result.append(repr([leaf.tobytes() for leaf in nn.trees.leaves(carry)]))
        return result


# --- wrong values of each kind of argument ------------------------

TEXT, NOTHING, LIST = "nonsense", None, [1, 2]
WRONG = {
    "flag": (TEXT, "no", 0.5, NOTHING, 2, nn.Constant(7.0)),
    "count": (TEXT, 3.5, 0, -1, True, NOTHING, math.nan, (2,)),
    "length": (TEXT, 3.5, -1, True, NOTHING),
    "axis": (TEXT, 1.5, True, NOTHING, (1,)),
    "number": (TEXT, NOTHING, math.nan, math.inf, True, LIST),
    "positive": (TEXT, NOTHING, math.nan, math.inf, 0.0, -1.0, True),
    "share": (TEXT, NOTHING, math.nan, -0.1, 1.5, True),
    "rate": (TEXT, NOTHING, math.nan, -0.1, True, schedules.Cosine, lambda: 0.1),
    "choice": (TEXT, NOTHING, 3, True, ("mean",)),
    "option": (TEXT, 3, True),  # a choice of which None is one
    "initializer": (TEXT, NOTHING, 0.5, nn.TruncatedNormal, lambda: 0.0, nn.Dense(3)),
    "layer": (TEXT, NOTHING, 3, nn.ReLU, nn.Adam(), [nn.ReLU()], lambda x: x),
    "optimizer": (
        TEXT,
        NOTHING,
        3,
        nn.Adam,
        nn.ReLU(),
        [nn.Adam()],
        lambda p, g, m: (p, m),
    ),
    "paths": ("bias", 3, (3,), NOTHING),
    "per axis": (TEXT, 2.5, 0, -1, NOTHING, (1, 2, 3, 4, 5), (), True),
    "padding": (TEXT, 2.5, -1, NOTHING, (1, 2, 3, 4, 5), ((1, 2, 3),), True),
    "lengths": (TEXT, 3.5, NOTHING, (0,), (2.5,), ("a",), {}),
    "name": (3, NOTHING, True, LIST),
    "function": (TEXT, NOTHING, 3, lambda: 0.0, int),
    "path": (3, NOTHING, LIST, True),
}

PARAMETERS = {  # of constructors, unless `CONSTRUCTORS` says otherwise
    **dict.fromkeys(
        ("bias", "approximate", "nesterov", "amsgrad", "centered", "causal"), "flag"
    ),
    **dict.fromkeys(
        ("rotary", "scale", "frozen", "bidirectional", "sequence", "final", "reverse"),
        "flag",
    ),
    **dict.fromkeys(
        (
            "count_padding",
            "ceil_mode",
            "shared",
            "pre_norm",
            "match_adam",
            "restore",
            "best",
        ),
        "flag",
    ),
    **dict.fromkeys(
        ("width", "num_embeddings", "count", "depth", "groups", "heads", "length"),
        "count",
    ),
    **dict.fromkeys(("hidden", "every", "patience", "iterations", "steps"), "count"),
    **dict.fromkeys(
        ("alpha", "beta", "initial", "epsilon", "momentum_decay", "min_delta"), "number"
    ),
    **dict.fromkeys(
        ("penalty", "negative_slope", "threshold", "replacement"), "number"
    ),
    **dict.fromkeys(("low", "high", "value", "weight_decay", "forget_bias"), "number"),
    **dict.fromkeys(
        ("base", "limit", "gain", "deviation", "epsilon1", "epsilon2"), "positive"
    ),
    **dict.fromkeys(("momentum", "beta1", "beta2", "rho", "decay", "dropout"), "share"),
    **dict.fromkeys(("rise", "min_scale"), "share"),
    **dict.fromkeys(
        ("activation", "reset", "mode", "padding_mode", "fan", "distribution"), "choice"
    ),
    **dict.fromkeys(("initializer", "recurrent_initializer"), "initializer"),
    **dict.fromkeys(("window", "stride", "dilation", "size", "factors"), "per axis"),
    **dict.fromkeys(("layer", "norm", "attention"), "layer"),
    **dict.fromkeys(("optimizer", "others"), "optimizer"),
    "power": "number",
    "projection": "count",
    "factor": "positive",
    "divisor_override": "positive",
    "padding_idx": "length",
    "max_norm": "positive",
    "warmup": "length",
    "start": "number",
    "stop": "number",
    "padding": "padding",
    "output_padding": "length",
    "axis": "axis",
    "join": "option",
    "no_decay": "paths",
    "monitor": "name",
    "name": "name",
    "rate": "rate",
    "schedule": "rate",
    "axes": "lengths",
    "shape": "lengths",
    "lengths": "lengths",
    "starts": "lengths",
    "coefficients": "lengths",
    "function": "function",
    "path": "path",
    "folder": "path",
}

OPTIONAL = {
    "stride": (None,),
    "divisor_override": (None,),
    "padding_idx": (None,),
    "max_norm": (None,),
    "key_heads": (None,),
    **dict.fromkeys(("head_width", "value_width", "output_width"), (None,)),
    **dict.fromkeys(("relative", "softcap"), (None,)),
    "start": (None,),
    "scale": (None,),  # of MixedPrecision
}
OPTIONAL |= {"final": (None,)}
ATTENTION = {"heads": 2}
# name, class, valid arguments, other kinds
CONSTRUCTORS: list[tuple[str, type, dict, dict]] = []


def _constructors():
    def add(kind, others=None, **valid):
        module = "schedules." if kind.__module__ == "agnostic_nn.schedules" else ""
        CONSTRUCTORS.append((f"{module}{kind.__name__}", kind, valid, others or {}))

    widths = ("head_width", "value_width", "output_width")
    counted = dict.fromkeys(("key_heads", *widths, "window", "relative"), "count")
    counted |= {"softcap": "positive"}
    counted |= dict.fromkeys(
        ("alibi", "zero_key", "learned_key", "return_weights"), "flag"
    )
    pools = {"stride": "per axis"}
    add(nn.Dense, width=3)
    add(nn.Embedding, num_embeddings=3, width=2)
    add(nn.EmbeddingBag, num_embeddings=3, width=2)
    add(nn.Unembedding, num_embeddings=3)
    add(nn.PositionEmbedding, length=3)
    add(nn.SinusoidalPositions)
    add(nn.RotaryPositions)
    for kind in (nn.Conv1D, nn.Conv2D, nn.ConvTranspose2D):
        add(kind, width=4, window=3)
    for kind in (nn.MaxPool1D, nn.MaxPool2D, nn.AveragePool2D):
        add(kind, pools | {"return_indices": "flag"})
    add(nn.LpPool2D, pools | {"p": "positive", "absolute": "flag"})
    unpooling = {"size": "per axis"}
    add(nn.MaxUnpool, pools | unpooling)
    add(nn.AdaptiveMaxPool, size=2)
    add(nn.AdaptiveAveragePool, size=2)
    add(nn.Upsample)
    add(nn.ZeroPad)
    add(nn.Crop)
    add(nn.Pad)
    add(nn.Resize, size=2)
    add(nn.GridSample, {"align_corners": "flag", "padding": "choice"})
    add(nn.AffineGrid, {"align_corners": "flag"}, size=(2, 3))
    add(nn.PixelShuffle)
    add(nn.PixelUnshuffle)
    add(nn.Unfold, window=2)
    add(nn.Fold, size=4, window=2)
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        add(kind, width=3)
    add(nn.MultiHeadAttention, counted, heads=2)
    add(nn.BatchNorm, {"momentum": "share"})
    add(nn.LayerNorm, {"axes": "count"})
    add(nn.RMSNorm, {"axes": "count"})
    response = {"size": "count", "k": "positive"}
    add(nn.LocalResponseNorm, response, size=3)
    add(nn.UnitNorm, {"epsilon": "positive"})
    add(nn.Rescale, {"scale": "number", "offset": "number"})
    add(nn.GroupNorm, groups=2)
    add(nn.InstanceNorm, {"running": "flag"})
    add(nn.Bilinear, width=3)
    for kind in (nn.Dropout, nn.SpatialDropout, nn.DropPath, nn.AlphaDropout):
        add(kind, {"rate": "share"})
    add(nn.FeatureAlphaDropout, {"rate": "share"})
    add(nn.GaussianNoise, {"deviation": "number"})
    for kind in (nn.LeakyReLU, nn.ELU, nn.CELU, nn.GELU, nn.HardTanh, nn.PReLU):
        add(kind)
    for kind in (nn.HardSigmoid, nn.SiLU, nn.HardShrink, nn.SoftShrink, nn.Softplus):
        add(kind)
    add(nn.SELU, {"scale": "positive"})
    add(nn.Threshold, threshold=0.0)
    for kind in (nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Concatenate):
        add(kind)
    add(nn.Reshape, shape=(2, 2))
    add(nn.Transpose, axes=(2, 1))
    add(nn.Lambda, function=lambda x: x)
    add(nn.Repeat, layer=nn.Dense(3), count=2)
    add(nn.MixedPrecision, {"scale": "positive"}, layer=nn.Dense(3), dtype="float16")
    add(nn.Recompute, layer=nn.Dense(3))
    add(nn.Freeze, layer=nn.Dense(3))
    adapters = {"rank": "count", "scale": "positive", "leaves": "paths"}
    add(nn.LoRA, adapters, layer=nn.Dense(3), rank=2)
    add(nn.WeightNorm, {"leaves": "paths"}, layer=nn.Dense(3))
    penalty = {"weight": "number", "leaves": "paths", "exclude": "paths"}
    for kind in (nn.penalties.L1, nn.penalties.Orthogonality):
        add(kind, penalty, weight=0.1)
    add(nn.OverAll, function=lambda y, target: 0.0)
    block = {"activation": "layer", "cross": "layer"}
    add(nn.TransformerBlock, block, attention=nn.MultiHeadAttention(2), hidden=4)
    for name in optimizers.__all__:
        kind = getattr(optimizers, name)
        required = {"every": 2, "terms": 2} if kind is nn.Accumulate else {}
        if issubclass(kind, optimizers.Rule) and kind is not optimizers.Rule:
            add(kind)
        elif "optimizer" in inspect.signature(kind).parameters:
            add(kind, optimizer=nn.Adam(), **required)
    number = {"rate": "positive", "final": "number"}
    add(schedules.Constant, number, rate=0.1)
    add(schedules.StepDecay, number, rate=0.1, every=3)
    add(schedules.ExponentialDecay, number, rate=0.1, factor=0.5)
    add(schedules.Cosine, number, rate=0.1, steps=50)
    add(schedules.CosineRestarts, number, rate=0.1, lengths=(5,))
    add(schedules.Linear, number, start=0.1, stop=0.0, steps=5)
    add(schedules.Polynomial, number, rate=0.1, steps=50)
    add(schedules.InverseSquareRoot, number | {"warmup": "count"}, rate=0.1)
    add(schedules.OneCycle, number | {"start": "number"}, rate=0.1, steps=50)
    add(schedules.Piecewise, {"parts": "lengths"}, parts=(0.1, 0.2), starts=(3,))
    add(schedules.Warmup, schedule=0.1, steps=5)
    add(schedules.Times, {"factor": "rate"}, schedule=0.1, factor=0.5)
    add(
        nn.VarianceScaling,
        {"scale": "positive"},
        scale=1.0,
        fan="in",
        distribution="normal",
    )
    add(nn.Constant)
    add(nn.TruncatedNormal)
    add(nn.Orthogonal)
    add(nn.EarlyStopping)
    add(nn.ReduceOnPlateau, {"factor": "share"})
    add(nn.Checkpoint, path="a.safetensors")
    add(nn.CSVLog, path="a.csv")
    add(nn.TensorBoardLog, folder="a")


_constructors()


def formatted(value):
    """Return a wrong value as text for the name of a case."""
    if inspect.isfunction(value):
        return "a function"
    return value.__name__ if isinstance(value, type) else repr(value)


def of_constructors():
    """Yield each parameter of each public class with each wrong value."""
    for name, kind, valid, others in CONSTRUCTORS:
        for parameter in inspect.signature(kind).parameters:
            what = others.get(parameter) or PARAMETERS.get(parameter)
            if what is None:
                continue
            for value in WRONG[what]:
                if _is_right(kind, parameter, value):
                    continue
                arguments = valid | {parameter: value}
                yield Case(
                    f"{name}({parameter}={formatted(value)})",
                    lambda w, kind=kind, arguments=arguments: kind(**arguments),
                    pure=True,
                )


def _is_right(kind, parameter, value):
    """Return whether a value that is wrong elsewhere is valid here."""
    if value is None:
        if (kind, parameter) in _NONE_IS_VALID:
            return True
        named = parameter in OPTIONAL
        return named and not (kind in (nn.LSTM, nn.GRU, nn.RNN) or kind in _FINAL)
    # layers for any number of axes of space
    return kind in _ANY_RANK and value == (1, 2, 3, 4, 5)


_NONE_IS_VALID = (
    (nn.Resize, "factors"),
    (nn.MaxUnpool, "size"),
    (nn.TransformerBlock, "cross"),
    (nn.Softplus, "threshold"),
    (nn.MultiHeadAttention, "window"),
    (nn.LSTM, "projection"),
    (nn.BatchNorm, "momentum"),
    (nn.InstanceNorm, "momentum"),
)
_ANY_RANK = (
    nn.AdaptiveMaxPool,
    nn.AdaptiveAveragePool,
    nn.Upsample,
    nn.ZeroPad,
    nn.Crop,
    nn.Pad,
    nn.Resize,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Unfold,
    nn.Fold,
    nn.MaxUnpool,
    nn.AffineGrid,
)
_FINAL = (
    schedules.Linear,
    schedules.Cosine,
    schedules.CosineRestarts,
    schedules.Polynomial,
)


# --- other constructors and calls -----------------------------------------------------

MLP = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2))


def _new_trainer(**wrong):
    """Return a call that creates a `Trainer` with wrong arguments."""
    right = {"model": MLP, "loss": nn.softmax_cross_entropy, "optimizer": nn.Adam()}

    def call(w):
        options = {"backend": w.backend} | right | wrong
        nn.Trainer(
            options.pop("model"),
            options.pop("loss"),
            options.pop("optimizer"),
            **options,
        )

    return call


def _scalar(y, target):
    return nn.absolute_error(y, y)[0, 0]


def of_trainers():
    """Yield calls of `Trainer` with wrong arguments."""
    wrong = {
        "model": (nn.ReLU, nn.Sequential, None, "mlp", [nn.Dense(2)], 3, lambda x: x),
        "loss": (
            *("mse", None, 3, nn.Losses, nn.Dense(2), nn.Adam(), lambda y: y),
            partial(nn.huber, deltas=1.0),
        ),
        "optimizer": (nn.Adam, "adam", None, 3, nn.ReLU(), schedules.Constant(0.1)),
        "backend": (3, "nonsense", "numpy:", "numpy:gpu:7", ":", ":cpu", ["numpy"], np),
        "seed": (-1, 1.5, "0", None, True, [0], math.nan),
        "dtype": (
            "half",
            "double",
            "int32",
            None,
            32,
            float,
            np.float32,
            "nonsense",
        ),
        "precision": ("float16", "mixed", 16, True, nn.Dense(2)),
        "shape": ((2.5,), "x", (-1,), (3, "a"), 1.5, {"x": "a"}, ((3,), 2.5), (True,)),
        "metrics": (
            ["accuracy"],
            "accuracy",
            {"a": "accuracy"},
            {"a": None},
            [nn.accuracy],
            nn.accuracy,
            {3: nn.accuracy},
            {"loss": nn.accuracy},
            {"a": lambda y: y},
            {"a": type},
        ),
        "keep_finite": ("no", None, 1, 0.5),
        "context": ("text", 3, {"a": "text"}, np.ones(3)),  # as the loss takes none
    }
    for name, values in wrong.items():
        for value in values:
            yield Case(
                f"Trainer({name}={formatted(value)})", _new_trainer(**{name: value})
            )
    yield Case(
        "Trainer(shape that does not fit)",
        _new_trainer(model=nn.Conv2D(3, 3), shape=(3,)),
    )
    yield Case(
        "Trainer(learning_rate=0.1)", _new_trainer(learning_rate=0.1), binding=True
    )
    yield Case("Trainer(float64 where there is none)", _without_float64)


def _without_float64(w):
    class Narrow(nn.Backend):
        has_float64 = False

    narrow = Narrow(
        w.backend.name, w.backend.device_name, w.backend.device, w.backend.adapter
    )
    nn.Trainer(MLP, nn.mean_squared_error, nn.Adam(), backend=narrow, dtype="float64")


def _fit(kind="trained", **wrong):
    def call(w):
        right = {
            "x": w.x,
            "target": w.y if kind == "numbers" else w.labels,
            "verbose": 0,
        }
        options = {
            k: v(w) if isinstance(v, From) else v for k, v in (right | wrong).items()
        }
        w.trainer(kind).fit(**options)

    return call


@dataclass(frozen=True)
class From:
    """A wrong value that is created from the `World`."""

    make: Callable
    name: str = "…"

    def __call__(self, w):
        return self.make(w)

    def __repr__(self):
        return self.name


def _nan(w):
    x = w.x.copy()
    x[1, 2] = math.nan
    return x


def _mask(w):
    return np.ma.masked_array(w.x, mask=w.x > 0)


X = (
    None,
    "data",
    3,
    [],
    [[1.0, 2.0], [3.0]],
    {},
    (),
    object(),
    From(lambda w: w.x[:0], "no examples"),
    From(lambda w: w.x[:, :2], "another width"),
    From(lambda w: w.x[:, 0], "one axis"),
    From(lambda w: w.x[None], "three axes"),
    From(lambda w: w.x.astype("float16"), "float16"),
    From(lambda w: w.x.astype("float64"), "float64"),
    From(lambda w: w.x.astype("complex64"), "complex"),
    From(lambda w: w.x.astype("int32"), "integers"),
    From(lambda w: w.x > 0, "booleans"),
    From(lambda w: w.x.astype(object), "objects"),
    From(lambda w: w.x.astype("S4"), "bytes"),
    From(_nan, "NaN"),
    From(_mask, "a masked array"),
    From(lambda w: {"x": w.x}, "a dict"),
    From(lambda w: (w.x, w.x), "a tuple"),
    From(lambda w: iter(w.x), "an iterator"),
)
TARGETS = (
    None,
    "data",
    3,
    [],
    {},
    (),
    From(lambda w: w.labels[:3], "too few"),
    From(lambda w: w.labels + 1, "no such class"),
    From(lambda w: w.labels - 1, "negative labels"),
    From(lambda w: w.labels.astype("float32"), "float labels"),
    From(lambda w: w.labels[:, None], "labels of two axes"),
    From(lambda w: w.labels.astype(object), "objects"),
    From(lambda w: [str(k) for k in w.labels], "names of classes"),
    From(lambda w: {"a": w.labels}, "a dict"),
    From(lambda w: (w.labels, w.labels), "a tuple"),
)
WEIGHTS = (
    "w",
    3,
    From(lambda w: np.ones(3, "float32"), "too few"),
    From(lambda w: -np.ones(12, "float32"), "negative"),
    From(lambda w: np.full(12, math.nan, "float32"), "NaN"),
    From(lambda w: ["a"] * 12, "texts"),
    From(lambda w: {"a": np.ones(12)}, "a dict"),
)


def _nothing():
    return []


CALLBACKS = {
    "a text": "early",
    "None": None,
    "a number": 3,
    "one callback, not a list": nn.EarlyStopping(patience=5),
    "a class": [nn.EarlyStopping],
    "texts": ["x"],
    "numbers": [3],
    "a function of nothing": [lambda: None],
    "a monitor without validation": [nn.EarlyStopping(patience=5)],
    "an unknown monitor": [nn.EarlyStopping(patience=5, monitor="los")],
    "best by an unknown monitor": From(
        lambda w: [nn.Checkpoint(w.folder / "a", best=True, monitor="los")]
    ),
    "a plateau of an unknown monitor": [nn.ReduceOnPlateau(patience=5, monitor="los")],
    "a plateau without a Scaled": [nn.ReduceOnPlateau(patience=5, monitor="loss")],
    "an unknown field of a path": From(
        lambda w: [nn.Checkpoint(w.folder / "{los}.safetensors")]
    ),
    "a field without a name": From(
        lambda w: [nn.Checkpoint(w.folder / "{}.safetensors")]
    ),
    "an open brace": From(lambda w: [nn.Checkpoint(w.folder / "{epoch.safetensors")]),
    "a wrong format": From(
        lambda w: [nn.Checkpoint(w.folder / "{epoch:q}.safetensors")]
    ),
    "no folder": From(
        lambda w: [nn.Checkpoint(w.folder / "missing" / "a.safetensors")]
    ),
    "a folder as the file": From(lambda w: [nn.Checkpoint(w.folder)]),
    "a file as the folder": From(lambda w: [nn.Checkpoint(w.folder / "file" / "a")]),
    "no folder for a log": From(lambda w: [nn.CSVLog(w.folder / "missing" / "a.csv")]),
    "a folder as the log": From(lambda w: [nn.CSVLog(w.folder)]),
    "a log of something else": From(lambda w: [nn.CSVLog(w.folder / "file")]),
    "a log of other columns": From(lambda w: [nn.CSVLog(w.folder / "columns.csv")]),
    "a file as the folder of a log": From(
        lambda w: [nn.TensorBoardLog(w.folder / "file")]
    ),
}


def of_fit():
    """Yield wrong calls of `Trainer.fit`, `step`, `evaluate` and `predict`."""
    for kind in ("trained", "new"):
        for value in X:
            if kind == "new" and "width" in repr(value):
                continue
            if kind == "new" and repr(value) == "three axes":
                continue
            yield Case(f"fit(x={formatted(value)}), {kind}", _fit(kind, x=value))
        for value in TARGETS:
            yield Case(
                f"fit(target={formatted(value)}), {kind}", _fit(kind, target=value)
            )
    for value in WEIGHTS:
        yield Case(f"fit(weights={formatted(value)})", _fit(weights=value))
    for name in ("epochs", "batch_size", "steps", "steps_per_epoch"):
        for value in (0, -1, 1.5, "3", True, [1]):
            more = {"x": None, "target": None} if name == "steps_per_epoch" else {}
            if more:
                more["batches"] = From(lambda w: [(w.x, w.labels)])
            yield Case(f"fit({name}={formatted(value)})", _fit(**{name: value} | more))
    for name, values in {
        "prefetch": (-1, 1.5, "2", None, True),
        "shuffle": ("no", None, 1, 0.5),
        "verbose": ("no", None, -1, 0.5, [1]),
        "augment": ("flip", 3, lambda x: x, nn.Dropout, True),
        "steps_per_epoch": (2,),
        "validation": (
            "x",
            3,
            From(lambda w: w.x, "x alone"),
            From(lambda w: (w.x,), "x in a tuple"),
            From(lambda w: (w.x, w.labels, w.labels), "three"),
            From(lambda w: (w.x[:, :1], w.labels), "another width"),
            From(lambda w: (w.x, w.labels[:2]), "too few targets"),
            From(lambda w: (w.x[:0], w.labels[:0]), "no examples"),
            From(lambda w: [w.x, w.labels], "a pair in a list"),
            From(lambda w: iter([(w.x, w.labels)]), "an iterator"),
            From(lambda w: [(w.x, w.labels), (w.x, w.x)], "batches, one of them bad"),
            [],
            _nothing,
        ),
    }.items():
        for value in values:
            yield Case(f"fit({name}={formatted(value)})", _fit(**{name: value}))
    for name, value in {
        "wrong by type": lambda x, y, g: "no",
        "of another length": lambda x, y, g: (x[:1], y[:1]),
        "x alone": lambda x, y, g: x,
        "of another dtype": lambda x, y, g: (x.astype("float16"), y),
    }.items():
        yield Case(f"fit(augment {name})", _fit(augment=value))
    none = {"x": None, "target": None}
    for name, value in {
        "a number": 3,
        "a text": "batches",
        "nothing": [],
        "x alone": From(lambda w: [w.x]),
        "one of a pair": From(lambda w: [(w.x,)]),
        "four": From(lambda w: [(w.x, w.labels, w.labels, w.labels)]),
        "texts": ["ab"],
        "a function of nothing": _nothing,
        "a function to a number": lambda epoch: 3,
        "a class": list,
    }.items():
        yield Case(f"fit(batches={name})", _fit(batches=value, **none))
        yield Case(f"evaluate(batches={name})", _method("evaluate", batches=value))
    yield Case("fit(x and batches)", _fit(batches=[]))
    yield Case("fit(learning_rate=0.1)", _fit(learning_rate=0.1), binding=True)
    for name, value in CALLBACKS.items():
        yield Case(f"fit(callbacks={name})", _fit(callbacks=value))
    for value in X:
        yield Case(
            f"step(x={formatted(value)})",
            _method("step", value, From(lambda w: w.labels)),
        )
        if repr(value) != "no examples":  # their prediction is empty
            yield Case(f"predict(x={formatted(value)})", _method("predict", value))
    for value in TARGETS:
        yield Case(
            f"step(target={formatted(value)})",
            _method("step", From(lambda w: w.x), value),
        )
        yield Case(
            f"evaluate(target={formatted(value)})",
            _method("evaluate", From(lambda w: w.x), value),
        )
    data = (From(lambda w: w.x), From(lambda w: w.labels))
    for value in WEIGHTS:
        yield Case(f"step(weights={formatted(value)})", _method("step", *data, value))
    for name in ("evaluate", "predict"):
        arguments = data[: 1 + (name == "evaluate")]
        for value in (0, -1, 1.5, "3", None, True):
            yield Case(
                f"{name}(batch_size={value!r})",
                _method(name, *arguments, batch_size=value),
            )
        # True, as no optimizer here keeps an average
        for value in (True, "yes", 3, None):
            yield Case(
                f"{name}(averaged={value!r})", _method(name, *arguments, averaged=value)
            )
        yield Case(f"{name} before fit", _method(name, *arguments, kind="new"))
    for name, metric in {
        "of one number": _scalar,
        "to a text": lambda y, t: "good",
        "to None": lambda y, t: None,
        "to a number": lambda y, t: 0.5,
        "of another length": lambda y, t: y[:1, ...],
        "that fails": lambda y, t: y.no_such_thing,
    }.items():
        fails = name == "that fails"
        yield Case(
            f"fit(validation, a metric {name})",
            _with_metric(metric, "fit"),
            theirs=fails,
        )
        if not fails:
            yield Case(f"evaluate(a metric {name})", _with_metric(metric, "evaluate"))


def _with_metric(metric, method):
    def call(w):
        arguments = (MLP, nn.softmax_cross_entropy, nn.Adam())
        trainer = nn.Trainer(
            *arguments, backend=w.backend, metrics={"custom": metric}, shape=(3,)
        )
        if method == "fit":
            try:
                trainer.fit(w.x, w.labels, validation=(w.x, w.labels), verbose=0)
            finally:
                assert trainer.steps == 0, "refused after the first step"
        else:
            trainer.evaluate(w.x, w.labels)

    return call


def _method(name, *args, kind="trained", **options):
    def call(w):
        values = [value(w) if isinstance(value, From) else value for value in args]
        named = {
            key: value(w) if isinstance(value, From) else value
            for key, value in options.items()
        }
        getattr(w.trainer(kind), name)(*values, **named)

    return call


def of_parameters():
    """Yield wrong calls of `start_from`, `to`, `save`, `load` and other methods."""

    def changed(change):
        return From(lambda w: change(w.backend.to_numpy(w.trainer().params)))

    first = {"weight": np.ones((3, 4), "float32"), "bias": np.ones(4, "float32")}
    wrong = {
        "None": None,
        "a text": "params",
        "nothing": (),
        "a list": changed(list),
        "half of them": changed(lambda p: p[:2]),
        "one more": changed(lambda p: (*p, {})),
        "by number": changed(lambda p: dict(enumerate(p))),
        "by name": changed(lambda p: {str(i): layer for i, layer in enumerate(p)}),
        "a leaf less": changed(lambda p: ({"weight": p[0]["weight"]}, *p[1:])),
        "a leaf more": changed(lambda p: (p[0] | {"scale": p[0]["bias"]}, *p[1:])),
        "another dtype": changed(
            lambda p: nn.trees.tree_map(lambda a: a.astype("float16"), p)
        ),
        "another shape": changed(
            lambda p: nn.trees.tree_map(lambda a: a[..., None], p)
        ),
        "texts": changed(lambda p: nn.trees.tree_map(lambda a: "w", p)),
        "lists in place of a block": changed(lambda p: (first, [], {}, p[3])),
        "a tuple in place of a dict": changed(lambda p: (tuple(p[0].values()), *p[1:])),
        "tuples in place of empty dicts": changed(lambda p: (p[0], (), (), p[3])),
        "an array": changed(lambda p: p[0]["weight"]),
    }
    for name, value in wrong.items():
        yield Case(f"start_from({name})", _method("start_from", value))
    params = changed(lambda p: p)
    for name, value in {
        "a text": "s",
        "nothing": (),
        "numbers": (1, 2),
        "dicts": ({},) * 4,
    }.items():
        yield Case(f"start_from(state={name})", _method("start_from", params, value))
    yield Case("start_from before a shape", _method("start_from", (), kind="new"))
    for value in (None, 3, "nonsense", "numpy:", nn.Backend, ["numpy"]):
        yield Case(f"to({formatted(value)})", _method("to", value))
    for value in (None, 3, "", True, From(lambda w: w.folder, "a folder")):
        yield Case(f"save({formatted(value)})", _method("save", value))
    missing = From(lambda w: w.folder / "missing" / "a", "no folder")
    yield Case("save(no folder)", _method("save", missing))
    yield Case(
        "save before a shape",
        _method("save", From(lambda w: w.folder / "a"), kind="new"),
    )
    for value in (
        None,
        3,
        "",
        From(lambda w: w.folder),
        From(lambda w: w.folder / "file"),
        missing,
    ):
        yield Case(f"load({formatted(value)})", partial(_load, value, {}))
    for name, value in {
        "model": nn.Dense,
        "loss": "mse",
        "optimizer": nn.Adam,
        "metrics": ["accuracy"],
        "backend": 3,
    }.items():
        yield Case(
            f"load({name}={formatted(value)})", partial(_load, None, {name: value})
        )
    for value in ((2.5,), "x", (-1,), None, (3, "a"), 3.5, (2, 2, 2.5)):
        yield Case(f"build({formatted(value)})", _method("build", value))
    yield Case("restore(never kept)", _method("restore", "never"))
    yield Case("keep(3)", _method("keep", 3))
    for value in (0, -1, 1.5, "3", None, True):
        yield Case(f"summary({value!r})", _method("summary", value))
    for name, value in {
        "None": None,
        "a text": "m",
        "nothing": {},
        "a list": [],
    }.items():
        yield Case(f"moments = {name}", partial(_set_moments, value))


def _set_moments(value, w):
    w.trainer().moments = value


def _load(path, options, w):
    if options:
        path = w.folder / "good.safetensors"
        if not path.exists():
            w.trainer().save(path)
    path = path(w) if isinstance(path, From) else path
    nn.Trainer.load(path, **{"backend": w.backend} | options)


def of_tools():
    """`check`, `bisect`, `explain`, `profile`, `make_step`, `backend` and the rest."""

    def tool(function, right, **wrong):
        def call(w):
            options = {
                k: v(w) if isinstance(v, From) else v
                for k, v in (right | wrong).items()
            }
            return function(**options)

        return call

    def grid(name, function, right, wrong):
        for parameter, values in wrong.items():
            for value in values:
                yield Case(
                    f"{name}({parameter}={formatted(value)})",
                    tool(function, right, **{parameter: value}),
                )

    layers = (nn.ReLU, None, "mlp", 3, [nn.Dense(2)])
    wrong_losses = ("mse", None, 3, nn.Losses, nn.Dense(2), lambda y: y)
    wrong_optimizers = (nn.Adam, "adam", None, 3, nn.ReLU())
    data = {"x": From(lambda w: w.x), "target": From(lambda w: w.labels)}
    both = {"model": MLP, "loss": nn.softmax_cross_entropy}
    three = both | {"optimizer": nn.SGD(0.1)}
    wrong_three = {"model": layers, "loss": wrong_losses, "optimizer": wrong_optimizers}
    wrong_data = {"x": X[:8], "target": TARGETS[:9]}

    yield from grid(
        "check",
        nn.check,
        {"layer": nn.Dense(2), "shape": (3,), "backends": ()},
        {
            "layer": (*layers, nn.softmax_cross_entropy, nn.Adam()),
            "shape": ("3", None, (-1,), (2.5,), (3, "a"), 1.5),
            "batch": (0, -1, 1.5, "3", None, True),
            "seed": (-1, 1.5, "0", None),
            "elements": (0, -1, 1.5, "3", None),
            "backends": ("numpy", ["nonsense"], [3], 3),
            "draw": ("x", 3, lambda: None),
        },
    )
    yield Case(
        "check(Conv2D, (5, 3))",
        lambda w: nn.check(nn.Conv2D(2, 3), (5, 3), backends=()),
    )
    yield from grid(
        "make_step", nn.make_step, three, wrong_three | {"keep_finite": ("no", None)}
    )
    yield from grid(
        "bisect",
        nn.bisect,
        three | data | {"one": "numpy", "other": "numpy@float64"},
        wrong_three
        | wrong_data
        | {
            "one": (None, 3, "nonsense", "numpy@half", "numpy:"),
            "steps": (-1, 1.5, "2", None, True),
            "batch_size": (0, 1.5, "3", None),
            "seed": (-1, 1.5, "0", None),
        },
    )
    yield from grid(
        "compare",
        partial(nn.compare, backends=["numpy"], epochs=1, sizes=()),
        three | data | {"batch_size": 8},
        wrong_data
        | {
            "model": layers,
            "loss": [loss for loss in wrong_losses if loss is not None],
            "optimizer": [each for each in wrong_optimizers if each is not None],
            "metric": (3, "accuracy", lambda y: y),
            "test": (3, (), "xy"),
            "weights": ("three", -1.0),
            "context": (3, lambda: 3),
            "batch_size": (0, 1.5, "3", None),
            "seed": (-1, 1.5, "0", None),
        },
    )
    yield from grid(
        "explain",
        nn.explain,
        both | data | {"backend": From(lambda w: w.backend)},
        {k: v for k, v in wrong_three.items() if k != "optimizer"}
        | wrong_data
        | {
            "params": ("p", (), [], {"a": 3}),
            "state": ("s", (), {"a": 3}),
            "weights": WEIGHTS[:4],
            "backend": (3, "nonsense"),
            "seed": (-1, 1.5, "0", None),
        },
    )
    yield from grid(
        "profile",
        nn.profile,
        three | data | {"backend": From(lambda w: w.backend), "steps": 1},
        wrong_three
        | wrong_data
        | {"steps": (0, -1, 1.5, "3", None), "backend": (3, "nonsense")},
    )
    yield from grid(
        "backend",
        nn.backend,
        {"name": "numpy"},
        {
            "name": (
                3,
                "nonsense",
                "numpy:",
                ":",
                ":cpu",
                "numpy:gpu",
                "numpy:cpu:9",
                ["numpy"],
            ),
            "precision": ("high", 3, True),
            "deterministic": ("yes", 1, 0.5),
            "replay": ("no", 1, 0.5),
        },
    )
    workload = {"workload": "parity-gru", "names": ["numpy"], "sizes": ()}
    yield from grid(
        "compare",
        run_comparison,
        workload,
        {
            "workload": ("nonsense", None, 3),
            "names": ("numpy", ["nonsense"], [3], [], 3),
            "dtypes": ((), ("float8",), "float32", (3,), None),
            "epochs": (0, -1, 1.5, "3"),
            "seed": (-1, 1.5, "0", None),
            "sizes": ((0,), ("3",), 3),
        },
    )
    for value in ("text", object(), [1, "a"], np):
        yield Case(
            f"asarray({formatted(value)})", lambda w, v=value: w.backend.asarray(v)
        )
    for value in ("text", object(), np):
        yield Case(
            f"to_numpy({formatted(value)})", lambda w, v=value: w.backend.to_numpy(v)
        )
    for value in ("f", None, 3):
        yield Case(f"jit({formatted(value)})", lambda w, v=value: w.backend.jit(v))
    labels = {"target": From(lambda w: w.labels)}
    yield from grid(
        "stratified_split",
        nn.stratified_split,
        labels | {"share": 0.25},
        {
            "target": ("x", None, [], [[0, 1]], [0.5, 1.5]),
            "share": (0.0, 1.0, 2.0, -0.1, "a", None, math.nan),
            "seed": (-1, 1.5, "0", None),
        },
    )
    yield from grid(
        "class_weights",
        nn.class_weights,
        labels,
        {"target": ("x", None, [], [0.5]), "dtype": ("int32", "nonsense", None, 3)},
    )
    prompt = [[1, 2], [0, 1]]
    options = {
        "trainer": (nn.ReLU(), None, 3, (nn.ReLU(), {}, {}), lambda x: x),
        "prompt": ("x", None, [], [1, 2], [[0.5]], [[]], [[1, "a"]], [[-1]], [[5]]),
        "length": (0, -1, 1.5, "3", None, True),
        "temperature": (-1.0, math.nan, math.inf, "1", None, True),
        "top_k": (0, -1, 1.5, "3", True),
        "top_p": (0.0, -0.1, 1.5, math.nan, "a", True),
        "stop": (-1, 1.5, "0", True),
        "seed": (-1, 1.5, "0", None),
        "averaged": ("no", None, True),
    }
    right = {"trainer": From(_task_of_tokens), "prompt": prompt, "length": 3}
    for generate in (nn.generate, _list_of_stream):
        yield from grid(generate.__name__, generate, right, options)
    for value in (-1, 1.5, "0", None):
        yield Case(
            f"random.key({value!r})", lambda w, v=value: random.key(v, xp=w.backend.xp)
        )


def _task_of_tokens(w):
    """Return (model, params, state, backend) of a model of five tokens."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Dense(5))
    params, state, _ = model.init(w.key(), (2,), w.backend.xp.float32)
    return model, params, state, w.backend


def _list_of_stream(**options):
    return list(nn.stream_tokens(**options))


def of_layers():
    """Layers called as functions, and what is put together wrongly."""
    dense = nn.Dense(3)
    yield Case("Dense(3)(x)", lambda w: dense(w.x))
    yield Case("Sequential(...)(x)", lambda w: MLP(w.x))
    yield from _malformed()


def of_arrays():
    """Layers whose `init` and `forward` get wrong keys, shapes and arrays."""
    dense = nn.Dense(3)
    for name, key in {
        "a seed": 0,
        "None": None,
        "a text": "0",
        "an array": np.zeros(3),
    }.items():
        for layer in (dense, MLP, nn.Dropout(0.5), nn.LSTM(2), nn.BatchNorm()):
            shape = (4, 3) if isinstance(layer, nn.LSTM) else (3,)
            kind = type(layer).__name__
            yield Case(
                f"{kind}.init({name}, ...)",
                lambda w, layer=layer, key=key, shape=shape: layer.init(
                    key, shape, "float32"
                ),
            )
    for name, shape in {
        "3": 3,
        "None": None,
        "'3'": "3",
        "(2.5,)": (2.5,),
        "(-3,)": (-3,),
    }.items():
        for layer in (dense, MLP, nn.Conv1D(3, 2)):
            kind = type(layer).__name__
            yield Case(
                f"{kind}.init(key, {name})",
                lambda w, layer=layer, shape=shape: layer.init(
                    w.key(), shape, w.backend.xp.float32
                ),
            )
    for name, dtype in {"'float32'": "float32", "None": None, "int": int}.items():
        yield Case(
            f"Dense.init(key, (3,), {name})",
            lambda w, dtype=dtype: dense.init(w.key(), (3,), dtype),
        )
    for name, x in {
        "another width": lambda w: w.array(2, 5),
        "another dtype": lambda w: w.array(2, 3, dtype="int32"),
        "a number": lambda w: 3.0,
        "a text": lambda w: "x",
        "None": lambda w: None,
        "a list": lambda w: [[1.0, 2.0, 3.0]],
    }.items():
        for layer in (dense, MLP):
            kind = type(layer).__name__
            yield Case(f"{kind}.forward({name})", partial(_forward, layer, x))


def _malformed():
    """Blocks, losses of several outputs and the like that are put together wrongly."""
    for name, wrong in {
        "Sequential([layers])": lambda w: nn.Sequential([nn.Dense(3), nn.ReLU()]),
        "Sequential(class)": lambda w: nn.Sequential(nn.Dense(3), nn.ReLU),
        "Sequential(text)": lambda w: nn.Sequential("relu"),
        "Sequential(None)": lambda w: nn.Sequential(nn.Dense(3), None),
        "Sequential(optimizer)": lambda w: nn.Sequential(nn.Adam()),
        "Sequential(function)": lambda w: nn.Sequential(lambda x: x),
        "Residual(class)": lambda w: nn.Residual(nn.ReLU),
        "Residual(shortcut=class)": lambda w: nn.Residual(nn.ReLU(), shortcut=nn.Dense),
        "Residual(shortcut=True)": lambda w: nn.Residual(nn.ReLU(), shortcut=True),
        "Parallel()": lambda w: nn.Parallel(),
        "Parallel(class)": lambda w: nn.Parallel(nn.ReLU),
        "Parallel(join='add')": lambda w: nn.Parallel(nn.ReLU(), join="add"),
        "Parallel(join=3)": lambda w: nn.Parallel(nn.ReLU(), join=3),
        "Parallel(join=[])": lambda w: nn.Parallel(nn.ReLU(), join=[]),
        "Graph()": lambda w: nn.Graph(),
        "Graph(a=layer)": lambda w: nn.Graph(a=nn.ReLU()),
        "Graph(a=(class, x))": lambda w: nn.Graph(a=(nn.ReLU, "x")),
        "Graph(a=(layer,))": lambda w: nn.Graph(a=(nn.ReLU(),)),
        "Graph(a=(layer, 3))": lambda w: nn.Graph(a=(nn.ReLU(), 3)),
        "Graph(a=(layer, a))": lambda w: nn.Graph(a=(nn.ReLU(), "a")),
        "Graph(outputs=unknown)": lambda w: nn.Graph(a=(nn.ReLU(), "x"), outputs="b"),
        "Graph(outputs=3)": lambda w: nn.Graph(a=(nn.ReLU(), "x"), outputs=3),
        "Graph(a=text)": lambda w: nn.Graph(a="relu"),
        "Graph(a=None)": lambda w: nn.Graph(a=None),
        "Shared(class)": lambda w: nn.Shared("a", nn.ReLU),
        "Shared(3)": lambda w: nn.Shared(3),
        "Parts(None)": lambda w: nn.Parts(None),
        "Parts(optimizer)": lambda w: nn.Parts(nn.SGD()),
        "Parts(text)": lambda w: nn.Parts("bias"),
        "Parts(dict)": lambda w: nn.Parts({"bias": nn.SGD()}),
        "Parts(number)": lambda w: nn.Parts(((3, nn.SGD()),)),
        "Parts(class)": lambda w: nn.Parts((("bias", nn.SGD),)),
        "Parts(triple)": lambda w: nn.Parts((("bias", nn.SGD(), 1),)),
        "Parts(rest=class)": lambda w: nn.Parts((), rest=nn.SGD),
        "Losses()": lambda w: nn.Losses(),
        "Losses(class)": lambda w: nn.Losses(a=nn.Losses),
        "Losses(text)": lambda w: nn.Losses(a="mse"),
        "Losses(list)": lambda w: nn.Losses([losses.huber]),
        "Losses(3)": lambda w: nn.Losses(3),
        "Losses(loss)": lambda w: nn.Losses(losses.huber),
        "Losses(weights=3)": lambda w: nn.Losses(a=losses.huber, weights=3),
        "Losses(weights of others)": lambda w: nn.Losses(
            a=losses.huber, weights={"b": 1.0}
        ),
        "Losses(weights as text)": lambda w: nn.Losses(
            a=losses.huber, weights={"a": "1"}
        ),
        "Losses(weights negative)": lambda w: nn.Losses(
            a=losses.huber, weights={"a": -1.0}
        ),
        "Weighted(class)": lambda w: nn.Weighted(nn.Losses, 1.0),
        "Weighted(text)": lambda w: nn.Weighted("mse", 1.0),
        "Weighted(negative)": lambda w: nn.Weighted(losses.huber, -1.0),
        "Weighted(weight as text)": lambda w: nn.Weighted(losses.huber, "1"),
        "Weighted(class of a schedule)": lambda w: nn.Weighted(
            losses.huber, schedules.Linear
        ),
        "Weighted(function of two)": lambda w: nn.Weighted(
            losses.huber, lambda t, u: t
        ),
        "RowMask(text)": lambda w: nn.RowMask("x"),
        "RowMask(None)": lambda w: nn.RowMask(None),
        "RowMask(two axes)": lambda w: nn.RowMask(w.x),
        "History(3)": lambda w: nn.History(3),
        "Flatten(shape=(3,))": lambda w: nn.Flatten(shape=(3,)),
        "ReLU6(high=1.0)": lambda w: nn.ReLU6(high=1.0),
        "ReLU(inplace=True)": lambda w: nn.ReLU(inplace=True),
        "Dense(units=3)": lambda w: nn.Dense(units=3),
        "Dense()": lambda w: nn.Dense(),
        "Dense(3, 'relu')": lambda w: nn.Dense(3, "relu"),
        "Dense(4, Constant(7.0))": lambda w: nn.Dense(4, nn.Constant(7.0)),
        "GELU('none')": lambda w: nn.GELU("none"),
        "Conv2D(3, 16, 3)": lambda w: nn.Conv2D(3, 16, 3),
        "BatchNorm(64)": lambda w: nn.BatchNorm(64),
        "PReLU(8)": lambda w: nn.PReLU(8),
        "LSTM(10, 20)": lambda w: nn.LSTM(10, 20),
        "EarlyStopping('loss')": lambda w: nn.EarlyStopping("loss"),
    }.items():
        yield Case(name, wrong, binding=True)


def _forward(layer, x, w):
    params, state, _ = layer.init(w.key(), (3,), w.backend.xp.float32)
    layer.forward(params, state, x(w))


def of_losses():
    """Yield losses and metrics with invalid options and arrays."""

    def called(function, w, options, **changes):
        defaults = {
            "y": lambda: w.array(4, 3),
            "target": lambda: w.backend.asarray(np.asarray([0, 1, 2, 0], "int32")),
            "numbers": lambda: w.array(4, 3),
        }
        labelled = function in LABELLED
        target = defaults["target" if labelled else "numbers"]()
        arguments = {"y": defaults["y"](), "target": target} | {
            k: v(w) if isinstance(v, From) else v for k, v in changes.items()
        }
        return function(
            arguments.pop("y"), arguments.pop("target"), **arguments, **options
        )

    options = {
        losses.softmax_cross_entropy: {
            "label_smoothing": (1.0, -0.1, "a", None, math.nan),
            "class_weights": (
                3.0,
                "abc",
                (1.0, 2.0),
                (1.0, -1.0, 1.0),
                ("a", "b", "c"),
            ),
            "ignore_index": ("a", 1.5, True),
            "gamma": (-1.0, "a", None, math.nan),
        },
        losses.negative_log_likelihood: {
            "class_weights": (3.0, (1.0, 2.0)),
            "ignore_index": ("a", 1.5),
        },
        losses.binary_cross_entropy: {
            "positive_weight": ("a", -1.0, None, (1.0,), (1.0, "a", 2.0)),
            "from_logits": (None, 1, "no"),
        },
        losses.huber: {"delta": (0.0, -1.0, "a", None, math.nan)},
        losses.gaussian_nll: {},
        losses.poisson_nll: {
            "log_rate": ("no", None, 1),
            "full": ("no", None, 1),
            "epsilon": (-1.0, "a", None),
        },
        losses.multi_class_margin: {
            "margin": ("a", None, math.nan),
            "power": (3, 0, "a", 1.5, None),
            "class_weights": (3.0, (1.0, 2.0), (1.0, -1.0, 1.0)),
        },
        losses.multi_label_margin: {"margin": ("a", None, math.nan)},
        losses.multi_label_soft_margin: {
            "class_weights": (3.0, (1.0, 2.0), (1.0, -1.0, 1.0))
        },
        losses.hinge_embedding: {"margin": ("a", None, math.inf)},
        losses.margin_ranking: {},
        losses.soft_margin: {},
        losses.mean_squared_error: {},
        losses.mean_absolute_error: {},
        losses.log_cosh: {},
        losses.hinge: {},
        losses.squared_hinge: {},
        losses.kl_divergence: {
            "log_target": (None, 1, "no"),
            "per_element": (None, 1, "no"),
        },
        losses.cosine_distance: {},
        losses.dice: {
            "activation": ("relu", 3, True),
            "class_weights": (3.0, (1.0, 2.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)),
            "epsilon": (0.0, -1.0, "a", None),
        },
        losses.info_nce: {},
    }
    arrays = {
        "y": (None, "y", 3.0, [[1.0]], From(lambda w: w.array(), "no axes")),
        "target": (None, "t", 3.0, From(lambda w: w.array(2), "another shape")),
        "weights": ("w", 3.0, From(lambda w: w.array(3), "another length"), [1.0] * 4),
    }
    arrays["target"] += (From(lambda w: w.array(4, 3, dtype="int8") > 0, "booleans"),)
    for loss, own in options.items():
        paired = loss in (losses.gaussian_nll, losses.margin_ranking, losses.info_nce)
        for name, values in own.items():
            for value in values:
                yield Case(
                    f"{loss.__name__}({name}={formatted(value)})",
                    lambda w, loss=loss, o={name: value}: called(loss, w, o),
                )
        for value in ("avg", None, 3, True) if not paired else ():
            yield Case(
                f"{loss.__name__}(reduction={value!r})",
                lambda w, loss=loss, o={"reduction": value}: called(loss, w, o),
            )
        for name, values in arrays.items():
            for value in values:
                yield Case(
                    f"{loss.__name__}({name}={formatted(value)})",
                    lambda w, loss=loss, c={name: value}: called(loss, w, {}, **c),
                )
    for metric in (metrics.accuracy, metrics.top_k_accuracy, metrics.perplexity):
        for name, values in {k: v for k, v in arrays.items() if k != "weights"}.items():
            for value in values:
                yield Case(
                    f"{metric.__name__}({name}={formatted(value)})",
                    lambda w, m=metric, c={name: value}: called(
                        m, w, {"k": 2} if m is metrics.top_k_accuracy else {}, **c
                    ),
                )
    for value in (0, 4, 1.5, "a", None, True):
        yield Case(
            f"top_k_accuracy(k={value!r})",
            lambda w, v=value: called(metrics.top_k_accuracy, w, {"k": v}),
        )
    for schedule in (
        schedules.Constant(0.1),
        schedules.Cosine(0.1, 9),
        schedules.Warmup(0.1, 5),
    ):
        for value in (3, 0.5, None, "t", [1.0]):
            yield Case(
                f"schedules.{type(schedule).__name__}(...)({value!r})",
                lambda w, s=schedule, v=value: s(v),
            )
    for value in (None, "p", 3, [1.0], (), {}):
        yield Case(f"Adam().init({value!r})", lambda w, v=value: nn.Adam().init(v))
    for initializer in (initializers.glorot_uniform, nn.Orthogonal(), nn.Constant(0.0)):
        for name, key in {"a seed": 0, "None": None}.items():
            yield Case(
                f"{type(initializer).__name__}(...)({name}, ...)",
                lambda w, f=initializer, key=key: f(key, (3, 4), w.backend.xp.float32),
            )


LABELLED = (
    losses.softmax_cross_entropy,
    losses.negative_log_likelihood,
    losses.multi_class_margin,
    metrics.accuracy,
    metrics.top_k_accuracy,
    metrics.perplexity,
)
QUICK = (of_constructors, of_trainers, of_layers, of_fit, of_parameters)
ALL = (*QUICK, of_arrays, of_tools, of_losses)


# --- the verdict ----------------------------------------------------------------------


@cache
def _raises(path: str) -> tuple[tuple[int, int], ...]:
    """Return the first and last line of each `raise` statement of a file."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    result = (node for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return tuple((node.lineno, node.end_lineno or node.lineno) for node in result)


def _is_meant(error: BaseException) -> bool:
    """Return whether this library raised the error on purpose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(last.filename).is_relative_to(place) for place in OURS)
    return ours and any(a <= last.lineno <= b for a, b in _raises(last.filename))


def verdict(case: Case, world: World) -> str:
    """Return what is wrong with the result of a case, or "" if nothing is."""
    before = [] if case.pure else world.state()
    try:
        case.call(world)
    except Exception as error:
        wrong = _of_error(case, error)
    else:
        wrong = "accepted"
    if before and before != world.state()[: len(before)]:
        wrong = "; ".join(filter(None, (wrong, "the trainer changed")))
        world._trainers.clear()
        world.trainer()
    return wrong


def _of_error(case: Case, error: Exception) -> str:
    if isinstance(error, OSError) and case.name.startswith(("load", "save")):
        return ""  # errors of the operating system about paths are clear
    first = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
    bound = "unexpected keyword argument" in first or "positional argument" in first
    if case.binding and isinstance(error, TypeError) and bound:
        return ""
    if case.theirs and isinstance(error, AttributeError):
        return ""
    if not _is_meant(error):
        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"internal error: {first[:110]} ({Path(last.filename).name}:{last.lineno})"
        )
    return "no message" if not str(error) else ""


def run(parts=ALL, backend=None) -> dict[str, str]:
    """Return the verdict of each case by its name."""
    result: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World(backend or nn.backend(), Path(folder))
        world.trainer(), world.trainer("new"), world.trainer("numbers")
        for part in parts:
            for case in part():
                name = case.name
                while name in result:
                    name += "'"
                result[name] = verdict(case, world)
    return result


def main() -> int:
    """Run all cases on the backend that AGNOSTIC_NN_BACKEND names."""
    result = run()
    wrong = {name: text for name, text in result.items() if text}
    for name, text in wrong.items():
        print(f"{name}: {text}")
    kinds = Counter(text.partition(":")[0] for text in wrong.values())
    print(
        f"{len(wrong)} of {len(result)} kinds of bad input on {nn.backend()}: "
        f"{dict(kinds)}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    sys.exit(main())
