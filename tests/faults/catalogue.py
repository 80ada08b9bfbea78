"""The faults: a grid of kinds, layers and models, and a sample of it.

A fault changes the arguments or the results of a method with a little NumPy arithmetic.
`size` is relative to the largest number of the changed array, and ranges from just
above rounding to large.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.diagnostics.bisect import stages
from agnostic_nn.layers import convolution, regularization

from .models import BATCH, CNN, GRAPH, MLP, MODELS, RECURRENT, TRANSFORMER, WORDS
from .planting import Change, of

__all__ = ["KINDS", "Fault", "catalogue", "sample"]

SIZES = (1e-5, 1e-3, 0.3)
FORWARD = ("forward", "predict")
BACKWARD = ("backward", "backward_params")


@dataclass(frozen=True)
class Fault:
    """A fault to plant in one backend.

    places: the paths of the layers that are wrong, "" for a loss, an optimizer or the
    batch.
    parts: prefixes of the names of the results that are wrong first. changes: returns
    the changed methods. moves: returns the `asarray` of a backend that moves arrays
    wrongly. Both are called for each run, because a fault may count calls.
    """

    kind: str
    what: str
    model: str
    places: tuple[str, ...]
    parts: tuple[str, ...]
    changes: Callable[[], list[Change]] = field(default=list)
    moves: Callable[[], Callable] | None = None

    def __str__(self) -> str:
        where = " and ".join(filter(None, self.places)) or "the whole"
        return f"{self.kind}: {self.what} ({self.model}, {where})"


# --- changes of an array --------------------------------------------------------------


def _largest(a):
    return np.max(np.abs(a), initial=0.0)


def scaled(size):
    return lambda a: a * (1.0 + size)


def shifted(size):
    return lambda a: a + np.asarray(size * _largest(a), a.dtype)


def one_element(size, place=-1):
    def change(a):
        a = np.array(a, order="C")
        a.reshape(-1)[place % a.size] += size * max(_largest(a), 1e-3)
        return a

    return change


def filled(value, share=1):
    """Return a change that leaves the last elements unwritten: they hold `value`."""

    def change(a):
        a = np.array(a, order="C")
        a.reshape(-1)[-share:] = value
        return a

    return change


def rolled(axis):
    return lambda a: np.roll(a, 1, axis=axis)


def without_last(axis):
    def change(a):
        a = np.array(a, order="C")
        np.moveaxis(a, axis, 0)[-1] = 0.0
        return a

    return change


def large_ones(size):
    """Return a change of the largest tenth of the numbers."""
    return lambda a: np.where(
        np.abs(a) >= np.quantile(np.abs(a), 0.9), a * (1.0 + size), a
    )


def negative_ones(size):
    return lambda a: np.where(a < 0, a * (1.0 + size), a)


def bits(count):
    """Return a change that rounds to `count` bits, by Veltkamp's splitting."""

    def change(a):
        if a.dtype.kind != "f":
            return a
        factor = 2.0 ** (np.finfo(a.dtype).nmant + 1 - count) + 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            high = a * np.asarray(factor, a.dtype)
            return high - (high - a)

    return change


def half(a):
    return a.astype(np.float16).astype(a.dtype) if a.dtype.kind == "f" else a


# --- changes of a method --------------------------------------------------------------


def in_forward(change, when=lambda train: True):
    def make(old):
        def forward(self, params, state, x, *, train=False):
            y, new, cache = old(self, params, state, x, train=train)
            return (tree_map(change, y) if when(bool(train)) else y), new, cache

        return forward

    return make


def into_forward(change_params=None, change_x=None, when=lambda train: True):
    def make(old):
        def forward(self, params, state, x, *, train=False):
            if when(bool(train)):
                params = tree_map(change_params, params) if change_params else params
                x = tree_map(change_x, x) if change_x else x
            return old(self, params, state, x, train=train)

        return forward

    return make


def in_predict(change):
    def make(old):
        def predict(self, params, state, x):
            return tree_map(change, old(self, params, state, x))

        return predict

    return make


def in_state(change, when=lambda train: True):
    def make(old):
        def forward(self, params, state, x, *, train=False):
            y, new, cache = old(self, params, state, x, train=train)
            return y, change(state, new) if when(bool(train)) else new, cache

        return forward

    return make


def in_dx(change):
    def make(old):
        def backward(self, params, cache, dy):
            dx, grads = old(self, params, cache, dy)
            return tree_map(lambda d: None if d is None else change(d), dx), grads

        return backward

    return make


def in_grads(change, number=None):
    """Change the gradient of parameter `number`, or of all, in both methods."""

    def changed(grads):
        places = count()
        return tree_map(
            lambda g: change(g) if next(places) == number or number is None else g,
            grads,
        )

    def make(old):
        def backward(self, params, cache, dy):
            dx, grads = old(self, params, cache, dy)
            return dx, changed(grads)

        return backward

    def make_alone(old):
        def backward_params(self, params, cache, dy):
            return changed(old(self, params, cache, dy))

        return backward_params

    return make, make_alone


def both_ways(layer, makers) -> Callable[[], list[Change]]:
    make, make_alone = makers
    changes = []
    # their `backward` calls `backward_params`
    if not isinstance(layer, nn.Dense | nn.Conv2D):
        changes.append(of(layer, "backward", make))
    if type(layer).backward_params is not nn.Layer.backward_params:
        changes.append(of(layer, "backward_params", make_alone))
    return lambda: changes


def changing(layer, method, make) -> Callable[[], list[Change]]:
    return lambda: [of(layer, method, make)]


# --- the layers of the models ---------------------------------------------------------

# "2.feed.2" is left out: it equals the layers inside
# attention, and the fault would hit them too
FEED = {"2.feed.0": nn.Dense(8), "2.feed.1": nn.GELU()}
TARGETS: dict[str, dict[tuple[str, ...], Any]] = {
    "MLP": {(str(i),): layer for i, layer in enumerate(MLP.layers)},
    "CNN": {(str(i),): layer for i, layer in enumerate(CNN.layers) if i != 8}
    | {(f"8.{i}",): layer for i, layer in enumerate(CNN.layers[8].layers)},
    "LSTM and GRU": {(str(i),): layer for i, layer in enumerate(RECURRENT.layers)},
    "transformer": {
        (str(i),): layer for i, layer in enumerate(TRANSFORMER.layers) if i != 2
    }
    | {(path,): layer for path, layer in FEED.items()}
    | {
        ("2.attention",): TRANSFORMER.layers[2].attention,
        ("2.attention_norm", "2.feed_norm"): nn.LayerNorm(),
        ("2.attention_dropout", "2.feed_dropout"): nn.Dropout(0.1),
    },
    "embedding": {(str(i),): layer for i, layer in enumerate(WORDS.layers)},
    "graph": {
        (name,): layer
        for name, (layer, *_) in GRAPH.nodes
        if isinstance(layer, nn.Layer)
    },
}
BLOCKS: dict[str, dict[tuple[str, ...], Any]] = {
    "CNN": {("8",): CNN.layers[8]},
    "transformer": {("2",): TRANSFORMER.layers[2]},
    "graph": {("",): GRAPH},
}
WORDS_AS_INPUT = ("transformer", "embedding")
STATEFUL = (nn.BatchNorm, nn.Dropout)
MOVES_ONLY = (nn.Flatten, nn.Embedding)


def _params(layer) -> list[str]:
    """Return the names of a layer's parameters, in the order of `tree_map`."""
    if isinstance(layer, nn.Dense | nn.Conv2D):
        return ["weight", "bias"] if layer.bias else ["weight"]
    if isinstance(layer, nn.BatchNorm | nn.LayerNorm | nn.GroupNorm):
        return ["scale", "bias"]
    if isinstance(layer, nn.RMSNorm):
        return ["scale"]
    return []


def _has_params(layer) -> bool:
    kinds = (nn.Embedding, nn.LSTM, nn.GRU, nn.MultiHeadAttention)
    return bool(_params(layer)) or isinstance(layer, kinds)


# --- the kinds ------------------------------------------------------------------------


def _layers(
    *, but: tuple = (), only: tuple = ()
) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for model, targets in TARGETS.items():
        for places, layer in targets.items():
            if not isinstance(layer, but) and (not only or isinstance(layer, only)):
                yield model, places, layer


def forward() -> Iterator[Fault]:
    for model, places, layer in _layers(but=(nn.Dropout,)):
        head = model, places, FORWARD

        def plant(what, make, head=head, layer=layer):
            model, places, parts = head
            changes = [of(layer, "forward", make)]
            if type(layer).predict is not nn.Layer.predict:
                changes.append(of(layer, "predict", in_predict(make.change)))
            return Fault("forward", what, model, places, parts, lambda: changes)

        def changed(change):
            make = in_forward(change)
            make.change = change
            return make

        for size in SIZES:
            yield plant(f"times {1 + size:g}", changed(scaled(size)))
            yield plant(f"plus {size:g} of the largest", changed(shifted(size)))
            yield plant(f"large numbers times {1 + size:g}", changed(large_ones(size)))
        yield plant("negative numbers times 1.0001", changed(negative_ones(1e-4)))
        yield plant("rows rotated by one", changed(rolled(0)))
        yield plant("the last channel is 0", changed(without_last(-1)))
        yield plant("the last row is 0", changed(without_last(0)))
    for model, places, layer in _layers(
        only=(nn.Dense, nn.Conv2D, nn.BatchNorm, nn.LayerNorm)
    ):
        names = _params(layer)
        if "bias" not in names:
            continue

        def without_bias(old):
            def forward(self, params, state, x, *, train=False):
                params = {**params, "bias": 0.0 * params["bias"]}
                return old(self, params, state, x, train=train)

            return forward

        change = changing(layer, "forward", without_bias)
        yield Fault("forward", "the bias is left out", model, places, FORWARD, change)

    def off_by_one(old):
        def convolve(x, weight, stride, padding, *rest):
            (low, high), *others = padding
            return old(x, weight, stride, ((low - 1, high + 1), *others), *rest)

        return convolve

    def window(old):
        def convolve(x, weight, *rest):
            weight = np.array(weight)
            weight[-1] = 0.0
            return old(x, weight, *rest)

        return convolve

    yield Fault(
        *("forward", "a window begins one pixel late", "CNN", ("0",), FORWARD),
        lambda: [(convolution, "convolve", off_by_one)],
    )
    yield Fault(
        *("forward", "a window is one pixel short", "CNN", ("0", "4"), FORWARD),
        lambda: [(convolution, "convolve", window)],
    )
    for model, places, layer in _layers(only=(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):

        def wrong_axis(old):
            def forward(self, params, state, x, *, train=False):
                y, new, cache = old(self, params, state, x, train=train)
                mean = np.mean(x, axis=0, keepdims=True)
                other = (x - mean) / np.sqrt(
                    np.mean((x - mean) ** 2, axis=0, keepdims=True) + 1e-5
                )
                return other.astype(y.dtype), new, cache

            return forward

        changes = changing(layer, "forward", wrong_axis)
        yield Fault(
            "forward",
            "normalized along the wrong axis",
            model,
            places,
            FORWARD,
            changes,
        )


def backward() -> Iterator[Fault]:
    first = {"0"}
    for model, places, layer in _layers(but=(nn.Embedding,)):
        if first & {*places} or (model == "graph" and places == ("first",)):
            continue  # its dx is not computed in training
        parts = ("backward: dx",)

        def plant(what, change, model=model, places=places, layer=layer, parts=parts):
            changes = changing(layer, "backward", in_dx(change))
            return Fault("backward: dx", what, model, places, parts, changes)

        for size in SIZES:
            yield plant(f"dx times {1 + size:g}", scaled(size))
            yield plant(f"dx plus {size:g} of the largest", shifted(size))
        yield plant("dx with rows rotated by one", rolled(0))
        yield plant("dx of the last row is 0", without_last(0))
        yield plant("dx of the last channel is 0", without_last(-1))
        yield plant("negative dx times 1.01", negative_ones(1e-2))
    for model, places, layer in _layers():
        if not _has_params(layer):
            continue
        numbers = list(enumerate(_params(layer))) or [(None, "all parameters")]
        for number, name in numbers:

            def plant(
                what,
                change,
                name=name,
                number=number,
                layer=layer,
                head=(model, places),
            ):
                changes = both_ways(layer, in_grads(change, number))
                description = f"the gradient of {name} {what}"
                return Fault(
                    "backward: gradient", description, *head, BACKWARD, changes
                )

            for size in SIZES:
                yield plant(f"times {1 + size:g}", scaled(size))
            yield plant("is missing", lambda g: 0.0 * g)
            yield plant("is a mean instead of a sum", scaled(1.0 / BATCH - 1.0))
            yield plant("has the opposite sign", scaled(-2.0))

        def alone(old):
            def backward_params(self, params, cache, dy):
                dy = np.array(dy)
                dy[len(dy) // 2 :] = 0.0
                return old(self, params, cache, dy)

            return backward_params

        if type(layer).backward_params is not nn.Layer.backward_params and isinstance(
            layer, nn.LSTM | nn.GRU
        ):
            yield Fault(
                *("shortcuts", "backward_params sees half of the batch", model, places),
                *(("backward_params",), changing(layer, "backward_params", alone)),
            )


def blocks() -> Iterator[Fault]:
    from agnostic_nn.blocks import graph, residual

    def second(old):
        def last(a, b, add):
            return old(a, b, add) if a is None or b is None else b

        return last

    around = "around its layers"
    yield Fault(
        *(
            "blocks",
            "a Residual without its sum",
            "CNN",
            ("8",),
            (f"forward {around}",),
        ),
        lambda: [(residual, "tree_map", lambda old: lambda add, a, b: b)],
    )
    yield Fault(
        *(
            "blocks",
            "a Residual without its gradient",
            "CNN",
            ("8",),
            (f"backward {around}",),
        ),
        lambda: [(residual, "tree_sum", second)],
    )
    yield Fault(
        *("blocks", "gradients of several readers are not added", "graph"),
        *(("",), (f"backward {around}",), lambda: [(graph, "tree_sum", second)]),
    )
    for size in SIZES:

        def scaled_sum(old, size=size):
            return lambda add, a, b: a + b * (1.0 + size)

        yield Fault(
            *("blocks", f"the added term times {1 + size:g}", "CNN", ("8",)),
            (f"forward {around}",),
            lambda scaled_sum=scaled_sum: [(residual, "tree_map", scaled_sum)],
        )

        def chain(old, size=size):
            return lambda self, run, y, others: old(self, run, y, others) * (1.0 + size)

        block = TRANSFORMER.layers[2]
        yield Fault(
            *("blocks", f"a block's y times {1 + size:g}", "transformer", ("2",)),
            *((f"forward {around}",), changing(block, "_chain", chain)),
        )
    for model, targets in BLOCKS.items():
        for places, block in targets.items():
            stale = in_state(lambda old, new: old)
            changes = changing(block, "forward", stale)
            yield Fault(
                "blocks",
                "new states are lost",
                model,
                places,
                (f"state {around}",),
                changes,
            )
    for size in SIZES:
        changes = changing(CNN.layers[8], "predict", in_predict(scaled(size)))
        yield Fault(
            *("shortcuts", f"predict of a block times {1 + size:g}", "CNN", ("8",)),
            *(("predict",), changes),
        )
        changes = changing(TRANSFORMER.layers[2], "predict", in_predict(scaled(size)))
        yield Fault(
            *(
                "shortcuts",
                f"predict of a block times {1 + size:g}",
                "transformer",
                ("2",),
            ),
            *(("predict",), changes),
        )
        for places, layer in (
            (("0",), RECURRENT.layers[0]),
            (("2",), RECURRENT.layers[2]),
        ):
            changes = changing(layer, "predict", in_predict(shifted(size)))
            yield Fault(
                *(
                    "shortcuts",
                    f"predict plus {size:g} of the largest",
                    "LSTM and GRU",
                    places,
                ),
                *(("predict",), changes),
            )


def states() -> Iterator[Fault]:
    training = {"when": bool}
    for model, places, layer in _layers(only=(nn.BatchNorm,)):

        def plant(what, change, model=model, places=places, layer=layer):
            changes = changing(layer, "forward", in_state(change, **training))
            return Fault("state", what, model, places, ("state",), changes)

        yield plant("statistics are not updated", lambda old, new: old)
        yield plant(
            "momentum and 1 - momentum swapped",
            lambda old, new, m=layer.momentum: {
                k: old[k] + (new[k] - old[k]) * m / (1 - m) for k in old
            },
        )
        yield plant(
            "the biased variance instead of the unbiased one",
            lambda old, new, m=layer.momentum: {
                **new,
                "variance": m * old["variance"]
                + (new["variance"] - m * old["variance"]) * (BATCH - 1) / BATCH,
            },
        )
        for name in ("mean", "variance"):
            yield plant(f"{name} is lost", lambda old, new, k=name: {**new, k: old[k]})
            for size in SIZES:
                yield plant(
                    f"{name} plus {size:g} of the largest",
                    lambda old, new, k=name, size=size: {
                        **new,
                        k: shifted(size)(new[k]),
                    },
                )
            yield plant(
                f"one {name} is not written",
                lambda old, new, k=name: {**new, k: filled(0.123)(new[k])},
            )
        yield plant(
            "mean and variance swapped",
            lambda old, new: {"mean": new["variance"], "variance": new["mean"]},
        )


def predictions() -> Iterator[Fault]:
    parts = ("prediction", "predict")
    for model, places, layer in _layers():
        alone = type(layer).predict is not nn.Layer.predict

        def plant(what, change, model=model, places=places, layer=layer, alone=alone):
            make = in_forward(change, when=lambda train: not train)
            changes = [of(layer, "forward", make)]
            if alone:
                changes.append(of(layer, "predict", in_predict(change)))
            return Fault("prediction only", what, model, places, parts, lambda: changes)

        for size in SIZES:
            yield plant(f"predictions times {1 + size:g}", scaled(size))
        yield plant("predictions times 1.5", scaled(0.5))
        yield plant("one number of a prediction 0.001 off", one_element(1e-3))
        yield plant("the last row of a prediction is 0", without_last(0))

    def as_in_training(old):
        def forward(self, params, state, x, *, train=False):
            y, new, cache = old(self, params, state, x, train=True)
            return y, new if train else state, cache

        return forward

    def moving(old):
        def forward(self, params, state, x, *, train=False):
            y, new, cache = old(self, params, state, x, train=train)
            if train:
                return y, new, cache
            return y, tree_map(lambda a: a + np.asarray(1, a.dtype), state), cache

        return forward

    for model, places, layer in _layers(only=STATEFUL):
        changes = changing(layer, "forward", as_in_training)
        what = "predicts as in training"
        yield Fault("prediction only", what, model, places, parts, changes)
        changes = changing(layer, "forward", moving)
        what = "a prediction changes the state"
        yield Fault(
            "prediction only", what, model, places, ("state after prediction",), changes
        )
    for model, places, layer in _layers(only=(nn.BatchNorm,)):

        def forgetful(old, layer=layer):
            def forward(self, params, state, x, *, train=False):
                if not train:
                    state = {
                        "mean": 0 * state["mean"],
                        "variance": 0 * state["variance"] + 1,
                    }
                y, new, cache = old(self, params, state, x, train=train)
                return y, new, cache

            return forward

        changes = changing(layer, "forward", forgetful)
        what = "predicts with the first statistics"
        yield Fault("prediction only", what, model, places, parts, changes)


def bernoulli(change) -> Callable[[], list[Change]]:
    def make(old):
        def draw(key, probability, shape):
            return change(old, key, probability, shape)

        return draw

    return lambda: [(regularization, "bernoulli", make)]


def masks() -> Iterator[Fault]:
    for model, places, layer in _layers(only=(nn.Dropout,)):

        def plant(what, changes, parts=FORWARD, model=model, places=places):
            return Fault("masks and random words", what, model, places, parts, changes)

        def one_bit(old, key, probability, shape):
            drawn = np.array(old(key, probability, shape))
            drawn.reshape(-1)[len(drawn.reshape(-1)) // 2] ^= True
            return drawn

        yield plant(
            "the mask with rows reversed",
            bernoulli(lambda old, *a: np.flip(old(*a), axis=0)),
        )
        yield plant("the mask inverted", bernoulli(lambda old, *a: ~old(*a)))
        yield plant("one element of the mask", bernoulli(one_bit))
        yield plant(
            "another probability",
            bernoulli(lambda old, key, p, shape: old(key, 0.9 * p, shape)),
        )
        yield plant(
            "always the same mask",
            bernoulli(lambda old, key, p, shape: old(np.zeros_like(key), p, shape)),
        )
        yield plant(
            "one mask for all rows",
            bernoulli(lambda old, *a: np.broadcast_to(old(*a)[:1], a[-1]).copy()),
        )
        unscaled = in_forward(scaled(-layer.rate), when=bool)
        yield plant(
            "kept elements are not scaled up", changing(layer, "forward", unscaled)
        )
        nothing = in_forward(lambda y: y * 0 + 1.0, when=bool)
        yield plant("no mask at all", changing(layer, "forward", nothing))
        for what, change in (
            ("the key is not replaced", lambda old, new: old),
            (
                "a bit of the new key",
                lambda old, new: {"key": new["key"] ^ np.uint32(1)},
            ),
            (
                "the words of the new key in the wrong order",
                lambda old, new: {"key": new["key"][::-1]},
            ),
        ):
            make = in_state(change, when=bool)
            yield plant(what, changing(layer, "forward", make), ("state",))

    def last_word(old):
        def words(key, count, stream=0):
            drawn = np.array(old(key, count, stream))
            if count > 4:  # keys are words too
                drawn[-1] ^= np.uint32(1 << 31)
            return drawn

        return words

    from agnostic_nn import random

    for model, places in (("CNN", ("8.3",)), ("graph", ("noisy",))):

        def changes():
            return [(random, "words", last_word), (stages, "words", last_word)]

        yield Fault(
            *("masks and random words", "the last random word", model, places),
            *(("random words", "forward"), changes),
        )


def orders() -> Iterator[Fault]:
    """Yield faults that change examples on the way to the backend."""
    shapes = {
        "MLP": (5,),
        "CNN": (4, 4, 2),
        "LSTM and GRU": (5, 3),
        "transformer": (5,),
    }
    shapes |= {"embedding": (6,), "graph": (5,)}
    for model in MODELS:
        # labels of words are integers of the same shape as x, and are changed too
        def is_batch(
            data, shape=(BATCH, *shapes[model]), words=model in WORDS_AS_INPUT
        ):
            return data.shape == shape and (data.dtype.kind == "i") == words

        def plant(what, make, model=model):
            return Fault(
                "order of the data", what, model, ("",), ("x", "target"), moves=make
            )

        def rows(change, is_batch=is_batch):
            def make():
                def asarray(data, device):
                    data = np.array(data, order="C")
                    return change(data) if is_batch(data) else data

                return asarray

            return make

        def swapped(data):
            data[[-1, -2]] = data[[-2, -1]]
            return data

        def repeated(data):
            data[-1] = data[-2]
            return data

        yield plant("examples in reverse order", rows(lambda data: data[::-1].copy()))
        yield plant("the last two examples swapped", rows(swapped))
        yield plant("the last example twice", rows(repeated))

        def earlier(is_batch=is_batch):
            last: dict = {}

            def asarray(data, device):
                data = np.array(data, order="C")
                if not is_batch(data):
                    return data
                key = data.shape, data.dtype.name
                before = last.get(key, data)
                last[key] = data
                return before

            return asarray

        # there some dx has the shape of x and would be replaced too
        if model != "graph":
            yield plant("the examples of the previous batch", earlier)


def precision() -> Iterator[Fault]:
    products = (nn.Dense, nn.Conv2D, nn.MultiHeadAttention, nn.LSTM, nn.GRU)
    roundings = (("TensorFloat-32", bits(11)), ("bfloat16", bits(8)), ("float16", half))
    for model, places, layer in _layers(only=products):
        for name, change in roundings:
            make = into_forward(change, change)

            def alone(old, change=change):
                def predict(self, params, state, x):
                    return old(self, tree_map(change, params), state, change(x))

                return predict

            changes = [of(layer, "forward", make)]
            if type(layer).predict is not nn.Layer.predict:
                changes.append(of(layer, "predict", alone))
            yield Fault(
                *("precision", f"products in {name}", model, places),
                *(FORWARD, lambda changes=changes: changes),
            )
            makers = in_grads(change)
            yield Fault(
                *("precision", f"gradients rounded to {name}", model, places),
                *(BACKWARD, both_ways(layer, makers)),
            )
    norms = (
        nn.BatchNorm,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.RMSNorm,
        nn.LogSoftmax,
        nn.Softplus,
    )
    for model, places, layer in _layers(
        only=(*norms, nn.GELU, nn.Mish, nn.Sigmoid, nn.SiLU)
    ):
        for name, change in roundings:
            make = in_forward(change)
            yield Fault(
                *("precision", f"y rounded to {name}", model, places),
                *(FORWARD, changing(layer, "forward", make)),
            )

    def low_sums(old):
        def sum_rows(x):
            total = np.zeros(x.shape[-1], np.float16)
            for row in x.reshape(-1, x.shape[-1]):
                total = total + row.astype(np.float16)
            return total.astype(x.dtype)

        return sum_rows

    from agnostic_nn.layers import dense

    yield Fault(
        *("precision", "bias gradients added up in float16", "MLP", ("0", "3", "5")),
        *(BACKWARD, lambda: [(dense, "sum_rows", low_sums)]),
    )


def optimizers() -> Iterator[Fault]:
    parts = ("update", "moments", "first update", "moments of the first update")
    for model, (_, _, optimizer, *_) in MODELS.items():
        inner = getattr(optimizer, "optimizer", optimizer)

        def plant(what, make, model=model, optimizer=inner, method="update"):
            changes = changing(optimizer, method, make)
            return Fault("optimizer", what, model, ("",), parts, changes)

        def after(change):
            """Return an update with change(params, new, moments, new_moments)."""

            def make(old):
                def update(self, params, grads, moments):
                    new, new_moments = old(self, params, grads, moments)
                    return change(params, new, moments, new_moments)

                return update

            return make

        def longer(size):
            def step(p, n):
                return (p + (1.0 + size) * (n - p)).astype(p.dtype)

            return lambda p, new, m, new_moments: (tree_map(step, p, new), new_moments)

        for size in (1e-3, 1e-2, 1.0):
            yield plant(f"steps {1 + size:g} times as long", after(longer(size)))
        yield plant("steps in the opposite direction", after(longer(-2.0)))

        def only(when, size):
            change = longer(size)

            def make(p, new, m, new_moments):
                return (
                    change(p, new, m, new_moments)
                    if when(int(m["step"]))
                    else (new, new_moments)
                )

            return after(make)

        yield plant("the first step twice as long", only(lambda t: t == 0, 1.0))
        yield plant("only later steps 1.01 times as long", only(lambda t: t >= 1, 1e-2))
        yield plant("moments are lost", after(lambda p, new, m, new_moments: (new, m)))
        yield plant(
            "the step count does not increase",
            after(
                lambda p, new, m, new_moments: (new, {**new_moments, "step": m["step"]})
            ),
        )
        yield plant(
            "the step count increases by two",
            after(
                lambda p, new, m, new_moments: (
                    new,
                    {**new_moments, "step": m["step"] + 2},
                )
            ),
        )

        def last_leaf(change):
            def make(p, new, m, new_moments):
                places = count()
                total = len(leaves(p))
                return tree_map(
                    lambda a, b: change(a, b) if next(places) == total - 1 else b,
                    p,
                    new,
                ), new_moments

            return after(make)

        yield plant("one parameter is not updated", last_leaf(lambda a, b: a))
        yield plant(
            "one number of one parameter", last_leaf(lambda a, b: one_element(1e-3)(b))
        )
        yield plant(
            "parameters rounded to bfloat16", last_leaf(lambda a, b: bits(8)(b))
        )
        for name in ("m", "v", "s", "b", "velocity", "first", "second"):
            for size in (1e-4, 0.1):

                def moment(p, new, m, new_moments, name=name, size=size):
                    if name not in new_moments:
                        return new, new_moments
                    return new, {
                        **new_moments,
                        name: tree_map(scaled(size), new_moments[name]),
                    }

                if name in inner.init({"w": np.ones(2, np.float32)}):
                    yield plant(f"{name} times {1 + size:g}", after(moment))

        def with_step(change):
            def make(old):
                def update(self, params, grads, moments):
                    changed = {**moments, "step": change(moments["step"])}
                    new, new_moments = old(self, params, grads, changed)
                    return new, {**new_moments, "step": moments["step"] + np.int32(1)}

                return update

            return make

        if isinstance(inner, nn.Adam | nn.NAdam):
            step_after = with_step(lambda t: t + np.int32(1))
            yield plant("the bias correction of the next step", step_after)
            yield plant("no bias correction", with_step(lambda t: t + np.int32(10**6)))

        def without_decay(old):
            def move(self, p, g, new_moments, decay, *rest):
                return old(self, p, g, new_moments, 0.0, *rest)

            return move

        if getattr(inner, "weight_decay", 0.0):
            yield plant("weight decay is left out", without_decay, method="move")

        def clipped_off(old):
            def update(self, params, grads, moments):
                return self.optimizer.update(params, grads, moments)

            return update

        if optimizer is not inner:
            yield plant("gradients are not clipped", clipped_off, optimizer=optimizer)


def losses() -> Iterator[Fault]:
    """Yield faults of the value and the gradient of a loss."""
    for model, (_, loss, *_) in MODELS.items():
        for what, part, change in (
            (
                "the value times 1.001",
                "value",
                lambda v, d: (v * np.asarray(1.001, v.dtype), d),
            ),
            (
                "the gradient times 1.001",
                "gradient of y",
                lambda v, d: (v, tree_map(scaled(1e-3), d)),
            ),
            (
                "the gradient of the last row is 0",
                "gradient of y",
                lambda v, d: (v, tree_map(without_last(0), d)),
            ),
            (
                "the gradient is not divided by the batch size",
                "gradient of y",
                lambda v, d: (v, tree_map(scaled(BATCH - 1.0), d)),
            ),
        ):
            yield Fault("loss", what, model, ("",), (part,), _of_loss(loss, change))


def _of_loss(loss, change) -> Callable[[], list[Change]]:
    """Change the results of a loss, in `bisect` and in the training step."""
    from agnostic_nn.training import steps

    def changed_stage(old):
        def run(thing, train, inputs, shortcuts):
            results = old(thing, train, inputs, shortcuts)
            value, dy = change(results["value"], results["dy"])
            return {"value": value, "dy": dy}

        return run

    def kinds(old):
        return {**old, "loss": changed_stage(old["loss"]), "whole": _whole(change)}

    def in_a_step(old):
        def batch_loss(*args, **kwargs):
            result = old(*args, **kwargs)
            value, dy = change(result.value, result.dy)
            return replace(result, value=value, dy=dy)

        return batch_loss

    return lambda: [(stages, "_KINDS", kinds), (steps, "batch_loss", in_a_step)]


def _whole(change):
    def run(thing, train, inputs, shortcuts):
        model, loss = thing

        def changed_loss(y, target):
            return change(*loss(y, target))

        return stages._whole((model, changed_loss), train, inputs, shortcuts)

    return run


def memory() -> Iterator[Fault]:
    """Yield faults that leave elements unwritten or return results of earlier calls."""
    for model, places, layer in _layers(but=(nn.Dropout,)):

        def plant(what, change, model=model, places=places, layer=layer):
            changes = [of(layer, "forward", in_forward(change))]
            if type(layer).predict is not nn.Layer.predict:
                changes.append(of(layer, "predict", in_predict(change)))
            return Fault(
                "memory not written", what, model, places, FORWARD, lambda: changes
            )

        yield plant("NaN in the last element", filled(np.nan))
        yield plant("infinity in the last element", filled(np.inf))
        yield plant("1e30 in the last element", filled(1e30))
        yield plant("a small number in the last element", filled(1e-2))
        yield plant("0 in the last three elements", filled(0.0, 3))
    for model, places, layer in _layers(but=(nn.Dropout, *MOVES_ONLY)):

        def stale_y(layer=layer):
            results: dict = {}

            def make(old):
                def forward(self, params, state, x, *, train=False):
                    y, new, cache = old(self, params, state, x, train=train)
                    key = np.shape(y), bool(train)
                    before = results.get(key, y)
                    results[key] = y
                    return before, new, cache

                return forward

            return [of(layer, "forward", make)]

        parts = (*FORWARD, "prediction")
        yield Fault("stale", "y of the previous call", model, places, parts, stale_y)
        if not _has_params(layer):
            continue

        def stale_params(layer=layer):
            first: list = []

            def make(old):
                def forward(self, params, state, x, *, train=False):
                    first.append(params)
                    return old(self, first[0], state, x, train=train)

                return forward

            return [of(layer, "forward", make)]

        yield Fault(
            "stale", "parameters of the first call", model, places, parts, stale_params
        )

        def stale_grads(layer=layer):
            last: list = []

            def make(old):
                def backward(self, params, cache, dy):
                    dx, grads = old(self, params, cache, dy)
                    last.append(grads)
                    return dx, last[max(0, len(last) - 2)]

                return backward

            return [of(layer, "backward", make)]

        if places != ("0",):
            what = "gradients of the previous call"
            yield Fault("stale", what, model, places, BACKWARD, stale_grads)


def elements() -> Iterator[Fault]:
    for model, places, layer in _layers(but=(nn.Dropout,)):
        alone = type(layer).predict is not nn.Layer.predict
        for place in (0, 7, -1):
            for size in (1e-4, 1e-2):
                change = one_element(size, place)
                changes = [of(layer, "forward", in_forward(change))]
                if alone:
                    changes.append(of(layer, "predict", in_predict(change)))
                yield Fault(
                    *(
                        "single elements",
                        f"element {place} of y off by {size:g}",
                        model,
                        places,
                    ),
                    *(FORWARD, lambda changes=changes: changes),
                )
        if _has_params(layer):
            for size in (1e-4, 1e-2):
                makers = in_grads(one_element(size, 0), 0)
                yield Fault(
                    *(
                        "single elements",
                        f"element 0 of a gradient off by {size:g}",
                        model,
                        places,
                    ),
                    *(BACKWARD, both_ways(layer, makers)),
                )


# and how many to sample
KINDS: dict[str, tuple[Callable[[], Iterator[Fault]], int]] = {
    "forward": (forward, 64),
    "backward": (backward, 64),
    "blocks": (blocks, 40),
    "states": (states, 26),
    "predictions": (predictions, 44),
    "masks": (masks, 26),
    "orders": (orders, 24),
    "precision": (precision, 36),
    "optimizers": (optimizers, 60),
    "losses": (losses, 24),
    "memory": (memory, 50),
    "elements": (elements, 32),
}


def catalogue(share: float = 1.0) -> list[Fault]:
    """Return a fixed sample of the faults of each kind, evenly spaced in its grid.

    share: the share of the usual number of faults.
    """
    return [
        fault
        for kind, (_, most) in KINDS.items()
        for fault in sample(kind, round(most * share))
    ]


def sample(kind: str, most: int) -> list[Fault]:
    """Return at most `most` faults of a kind."""
    grid = list(KINDS[kind][0]())
    places = np.unique(np.linspace(0, len(grid) - 1, min(most, len(grid))).astype(int))
    return [grid[i] for i in places]
