"""Tests of `check`: correct layers pass, and each kind of error is found."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from cases._adapters import members

import agnostic_nn as nn
from agnostic_nn import CheckFailed, check
from agnostic_nn.core.arrays import RowMask, namespace
from agnostic_nn.diagnostics.gradcheck import loss_of
from agnostic_nn.diagnostics.gradcheck.oracles import STEP
from agnostic_nn.diagnostics.gradcheck.report import column_of


class Cube(nn.Elementwise):
    def value(self, x):
        return x * x * x

    def slope(self, x):
        return 3.0 * x * x


@dataclass(frozen=True)
class Gain(nn.Layer):
    """y = x · gain: a complete custom layer."""

    start: float = 1.0

    def init(self, key, shape, dtype):
        return {"gain": namespace(key).full(shape, self.start, dtype=dtype)}, {}, shape

    def forward(self, params, state, x, *, train=False):
        return x * params["gain"], state, x

    def backward(self, params, cache, dy):
        return dy * params["gain"], {"gain": namespace(dy).sum(dy * cache, axis=0)}


class Temperature(Gain):
    """y = x · gain, with one gain for all elements."""

    def init(self, key, shape, dtype):
        return (*super().init(key, (), dtype)[:2], shape)

    def backward(self, params, cache, dy):
        return dy * params["gain"], {"gain": namespace(dy).sum(dy * cache)}


OWN = [Cube(), Gain(), Temperature(), nn.Sequential(Gain(2.0), Cube())]


@pytest.mark.parametrize("layer", OWN, ids=str)
def test_a_custom_layer_passes(backend, layer):
    report = check(layer, (2, 3), backends=[backend])
    assert report.worst.error < 1e-9
    assert sum(row.kinks for row in report.rows) == 0


# Each class below is wrong in one way. Its row in BROKEN ends in a part of the error
# message.


class BiasUnsummed(nn.Dense):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx, grads | {"bias": dy}


class BiasOfOneRow(nn.Dense):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx, grads | {"bias": np.sum(dy[:1, :], axis=0)}


class BiasAveraged(nn.Dense):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx, grads | {"bias": grads["bias"] / dy.shape[0]}


class SlightlyTooLarge(nn.Dense):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx * 1.0001, grads


class GradientNamedOtherwise(nn.Dense):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx, {"w": grads["weight"], "bias": grads["bias"]}


class GradientsInATuple(nn.Dense):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx, (grads["bias"], grads["weight"])


class GradientsSwapped(nn.Sequential):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx, grads[::-1]


class WithoutDx(nn.Dense):
    def backward(self, params, cache, dy):
        return None, super().backward(params, cache, dy)[1]


class WrongSign(nn.Tanh):
    def slope(self, x):
        return -super().slope(x)


class NotANumber(nn.Tanh):
    def slope(self, x):
        return np.where(x > 0.5, np.nan * x, super().slope(x))


class WritesDy(nn.Tanh):
    def backward(self, params, cache, dy):
        dy *= self.slope(cache)
        return dy, {}


class WritesX(nn.Tanh):
    def forward(self, params, state, x, *, train=False):
        return np.tanh(x, out=x), state, x


class WritesCache(nn.Tanh):
    def backward(self, params, cache, dy):
        cache *= 0.5
        return dy * self.slope(2.0 * cache), {}


class WritesWeight(nn.Dense):
    def backward(self, params, cache, dy):
        params["weight"][...] *= 0.5
        return dy @ (2.0 * params["weight"]).T, super().backward(params, cache, dy)[1]


class WiderWhereItPredicts(nn.Tanh):
    def forward(self, params, state, x, *, train=False):
        return super().forward(params, state, x if train else x * np.float64(1.0))


class WiderGradient(Gain):
    def backward(self, params, cache, dy):
        gain = np.sum(dy * cache, axis=0, dtype=np.float64)
        return dy * params["gain"], {"gain": gain}


class WiderState(nn.BatchNorm):
    def forward(self, params, state, x, *, train=False):
        y, after, cache = super().forward(params, state, x, train=train)
        after = {name: np.asarray(leaf, np.float64) for name, leaf in after.items()}
        return y, after if train else state, cache


class PromisesAnotherShape(nn.Dense):
    def init(self, key, shape, dtype):
        params, state, _ = super().init(key, shape, dtype)
        return params, state, (*shape, self.width)


class PassesUnmasked(nn.Dropout):
    def backward(self, params, cache, dy):
        return dy, {}


class DropsWhenPredicting(nn.Dropout):
    def forward(self, params, state, x, *, train=False):
        return super().forward(params, state, x, train=True)


class KeepsItsKeyWhileItDrops(nn.Dropout):
    def forward(self, params, state, x, *, train=False):
        y, _, mask = super().forward(params, state, x, train=True)
        return y, state, mask


class HasSecretRandomness(nn.Tanh):
    def forward(self, params, state, x, *, train=False):
        mask = np.random.default_rng().integers(2, size=x.shape).astype(x.dtype)
        return x * mask, state, mask


class PredictsByTheBatch(nn.BatchNorm):
    def forward(self, params, state, x, *, train=False):
        y, after, cache = super().forward(params, state, x, train=True)
        return y, after if train else state, cache


class ForgetsTheShortcut(nn.Dense):
    """Doubles its weight, but inherits a `backward_params` that does not."""

    def forward(self, params, state, x, *, train=False):
        doubled = params | {"weight": 2.0 * params["weight"]}
        return super().forward(doubled, state, x, train=train)

    def backward(self, params, cache, dy):
        doubled = params | {"weight": 2.0 * params["weight"]}
        dx, grads = super().backward(doubled, cache, dy)
        return dx, grads | {"weight": 2.0 * grads["weight"]}


class PredictsAnotherWay(nn.Tanh):
    def predict(self, params, state, x):
        return np.clip(x, -1.0, 1.0)


class CountsFillers(nn.BatchNorm):
    """A custom layer whose author does not know `RowMask`."""

    def forward(self, params, state, x, *, train=False):
        return super().forward(params, state, x, train=bool(train))


class DividesByAllRows(nn.Layer):
    """Sums the rows that count, but divides by the number of all rows."""

    def init(self, key, shape, dtype):
        return {}, {"mean": namespace(key).zeros(shape, dtype=dtype)}, shape

    def forward(self, params, state, x, *, train=False):
        every_row = np.ones(len(x), x.dtype)
        counts = train.counts if isinstance(train, RowMask) else every_row
        mean = counts @ x / self.number(counts) if train else state["mean"]
        return x, {"mean": mean}, ()

    def backward(self, params, cache, dy):
        return dy, {}

    def number(self, counts):
        return max(len(counts), 1)


class RemembersNothingAsNaN(DividesByAllRows):
    def number(self, counts):
        return np.sum(counts)


class MaximumOfAllRows(nn.Layer):
    """Keeps the largest x so far. Fillers that repeat an example do not change it."""

    extremum = staticmethod(np.maximum)

    def init(self, key, shape, dtype):
        return {}, {"extremum": namespace(key).zeros(shape, dtype=dtype)}, shape

    def forward(self, params, state, x, *, train=False):
        old = state["extremum"]
        new = self.extremum.reduce(x, axis=0, initial=0.0) if train else old
        return x, {"extremum": self.extremum(old, new)}, ()

    def backward(self, params, cache, dy):
        return dy, {}


class MinimumOfAllRows(MaximumOfAllRows):
    extremum = staticmethod(np.minimum)


class LastIndexOfAllRows(nn.Embedding):
    def init(self, key, shape, dtype):
        params, _, shape = super().init(key, shape, dtype)
        return params, {"last": namespace(key).zeros((), dtype=dtype)}, shape

    def forward(self, params, state, x, *, train=False):
        y, _, cache = super().forward(params, {}, x, train=train)
        state = {"last": x[-1].astype(y.dtype)} if train and len(x) else state
        return y, state, cache


class LastMaskOfAllRows(nn.Layer):
    """Multiplies by a mask, and keeps the mask of the last row."""

    input_kinds: ClassVar = {"x": "real floating", "mask": "bool"}

    def init(self, key, shape, dtype):
        return {}, {"mask": namespace(key).zeros(shape["x"], dtype=dtype)}, shape["x"]

    def forward(self, params, state, x, *, train=False):
        mask = x["mask"].astype(x["x"].dtype)
        state = {"mask": mask[-1]} if train and len(mask) else state
        return x["x"] * mask, state, mask

    def backward(self, params, cache, dy):
        return {"x": dy * cache, "mask": None}, {}


class SendsFillersBack(nn.BatchNorm):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        fillers = 0.0 if len(cache) < 3 else 1.0 - cache[2]
        return dx + fillers, grads


class DropsByTheFillers(nn.Dropout):
    """Adds the mean of all rows, fillers included."""

    def forward(self, params, state, x, *, train=False):
        y, after, cache = super().forward(params, state, x, train=train)
        scale = namespace(x).mean(x, axis=0) if train else 0.0
        return y + scale, after, cache

    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        predicted = isinstance(cache, tuple)
        return (dx if predicted else dx + namespace(dy).mean(dy, axis=0)), grads


class LooksAtTheBatch(nn.Layer):
    """Subtracts the mean of the batch, with the right gradient, when predicting too."""

    def forward(self, params, state, x, *, train=False):
        return x - np.mean(x, axis=0), state, ()

    def backward(self, params, cache, dy):
        return dy - np.mean(dy, axis=0), {}


class GoesBackAsInTraining(nn.BatchNorm):
    def backward(self, params, cache, dy):
        normal, spread, *counts = cache
        return super().backward(params, (normal, spread.reshape(1, -1), *counts), dy)


class GoesBackAsInPredicting(nn.BatchNorm):
    def backward(self, params, cache, dy):
        normal, spread, *_ = cache
        return super().backward(params, (normal, spread.reshape(-1)), dy)


class TrustsTheLayout(nn.Layer):
    def forward(self, params, state, x, *, train=False):
        return x.ravel(order="K").reshape(x.shape), state, ()

    def backward(self, params, cache, dy):
        return dy, {}


class LosesABatchOfOne(nn.Tanh):
    def forward(self, params, state, x, *, train=False):
        return np.squeeze(np.tanh(x)), state, x


class RefusesABatchOfOne(nn.Tanh):
    def forward(self, params, state, x, *, train=False):
        if x.shape[0] == 1:
            raise ValueError("expected two examples or more")
        return super().forward(params, state, x)


class Rounds(nn.Elementwise):
    def value(self, x):
        return np.round(x, 3)

    def slope(self, x):
        return np.ones_like(x)


class ForgetsTheScale(nn.LayerNorm):
    """Correct only for the initial scale."""

    def backward(self, params, cache, dy):
        initial = {"scale": np.ones_like(params["scale"])}
        return super().backward(params | initial, cache, dy)


class ForgetsTheVariance(nn.BatchNorm):
    """Correct only for predictions with the initial variance."""

    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx if cache[1].ndim > 1 else dy * params["scale"], grads


class CountsRepeatsOnce(nn.Embedding):
    def backward(self, params, cache, dy):
        weight = np.zeros_like(params["weight"])
        weight[cache] = dy
        return None, {"weight": weight}


class GainFromNothing(Gain):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx, grads if dy.shape[0] else {"gain": np.ones_like(params["gain"])}


class ForgetsTheSlopeOfOne(nn.Tanh):
    def backward(self, params, cache, dy):
        return dy * (self.slope(cache) if dy.shape[0] > 1 else 1.0), {}


CENTRAL = "central difference on numpy"
REFUSED = "predict: a batch of one example is refused"
WRITTEN = "an argument, was changed in place"

BROKEN = [  # layer, shape of one example, part of the message
    (BiasUnsummed(2), (4,), r"bias is float32 \(3, 2\), expected float32 \(2,\)"),
    (BiasOfOneRow(2), (4,), rf"{CENTRAL}, train: bias\[\d\] is .*, expected"),
    (BiasAveraged(2), (4,), rf"{CENTRAL}, train: bias\[\d\]"),
    (SlightlyTooLarge(2), (4,), r"is .* relative error 0.0001, tolerance 1e-07"),
    (nn.Sequential(nn.Tanh(), BiasAveraged(2)), (4,), r"train: 1\.bias\[\d\]"),
    (GradientNamedOtherwise(2), (4,), "w should not be there; the layer returned bias"),
    (GradientsInATuple(2), (4,), "float32: 0 should not be there"),
    (GradientsSwapped(nn.Dense(4), nn.Dense(4)), (4,), rf"{CENTRAL}, .* [01]\.\w+\["),
    (WithoutDx(2), (4,), "float32: x is missing"),
    (WrongSign(), (4,), rf"{CENTRAL}, train: x\[\d, \d\]"),
    (NotANumber(), (4,), r"x\[\d, \d\] is nan"),
    (WritesDy(), (4,), f"dy, {WRITTEN}"),
    (WritesX(), (4,), f"x, {WRITTEN}"),
    (WritesCache(), (4,), f"x, {WRITTEN}"),
    (WritesWeight(2), (4,), f"weight, {WRITTEN}"),
    (WiderWhereItPredicts(), (4,), r"predict in float32: x is float64 \(3, 4\)"),
    (WiderGradient(), (4,), r"train in float32: gain is float64"),
    (WiderState(), (4,), r"train in float32: state.mean is float64"),
    (PromisesAnotherShape(2), (4,), r"y is .* \(3, 2\), expected float32 \(3, 4, 2\)"),
    (PassesUnmasked(0.3), (9,), rf"{CENTRAL}, train: x\["),
    (DropsWhenPredicting(0.3), (9,), "state.key was changed by predicting"),
    (KeepsItsKeyWhileItDrops(0.3), (9,), r"batch of 1 on numpy, predict: [xy]\[0"),
    (HasSecretRandomness(), (99,), "[xy] is different when computed a second time"),
    (PredictsByTheBatch(), (4,), REFUSED),
    (LooksAtTheBatch(), (4,), r"filled batch on numpy, train: [xy]\["),
    (GoesBackAsInTraining(), (4,), rf"{CENTRAL}, predict: x\["),
    (GoesBackAsInPredicting(), (4,), rf"{CENTRAL}, train: x\["),
    (TrustsTheLayout(), (4,), r"layout on numpy, train: y\["),
    (
        LosesABatchOfOne(),
        (4,),
        r"batch of 1: y is float64 \(4,\), expected .* \(1, 4\)",
    ),
    (RefusesABatchOfOne(), (4,), REFUSED),
    (ForgetsTheScale(), (4,), rf"{CENTRAL}, train: x\["),
    (ForgetsTheVariance(epsilon=0.0), (4,), rf"{CENTRAL}, predict: x\["),
    (CountsRepeatsOnce(40, 1), (), rf"{CENTRAL}, train: weight\["),
    (ForgetsTheShortcut(2), (4,), r"shortcuts on numpy, train: weight\["),
    (PredictsAnotherWay(), (4,), r"shortcuts on numpy, predict: y\["),
    (CountsFillers(), (4,), r"filled batch on numpy, train: state.variance\["),
    (DividesByAllRows(), (4,), r"filled batch on numpy, train: state.mean\["),
    (MaximumOfAllRows(), (4,), r"filled batch on numpy, train: state.extremum\["),
    (MinimumOfAllRows(), (4,), r"filled batch on numpy, train: state.extremum\["),
    (LastIndexOfAllRows(99, 2), (), r"filled batch on numpy, train: state.last"),
    (
        LastMaskOfAllRows(),
        {"x": (4,), "mask": (4,)},
        r"filled batch on numpy, train: state.mask\[",
    ),
    (SendsFillersBack(), (4,), r"filled batch on numpy, train: x\["),
    (DropsByTheFillers(0.3), (4,), r"filled batch on numpy, train: [xy]\["),
    (RemembersNothingAsNaN(), (4,), r"train, batch of 0: state.mean is \[nan"),
    (GainFromNothing(), (4,), r"batch of 0 on numpy, .*\[\d\] is 1.0, expected 0.0"),
    (ForgetsTheSlopeOfOne(), (4,), r"batch of 1 on numpy, \w+: x"),
    (Rounds(), (4,), r"of 12 elements of x, 1[12] lie at a kink"),
]


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    BROKEN,
    ids=[type(layer).__name__ for layer, _, _ in BROKEN],
)
def test_a_broken_layer_is_caught_by_name(layer, shape, message):
    with pytest.raises(CheckFailed, match=message):
        check(layer, shape, backends=[])


class Scaled(nn.Sequential):
    """A block whose own backward is wrong."""

    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return 2.0 * dx, grads


@dataclass(frozen=True)
class Half(nn.Block):
    """y = f(x) / 2, a custom block."""

    layer: nn.Layer

    def init(self, key, shape, dtype):
        params, state, out = self.layer.init(key, shape, dtype)
        return {"f": params}, {"f": state}, out

    def forward(self, params, state, x, *, train=False):
        y, state, cache = self.layer.forward(params["f"], state["f"], x, train=train)
        return 0.5 * y, {"f": state}, cache

    def backward(self, params, cache, dy):
        dx, grads = self.layer.backward(params["f"], cache, 0.5 * dy)
        return dx, {"f": grads}

    def map_layers(self, function):
        return replace(self, layer=function("f", self.layer))


class HalfBack(Half):
    def backward(self, params, cache, dy):
        return super().backward(params, cache, 0.5 * dy)


class WrongBelowZero(nn.Tanh):
    """Correct where x is positive."""

    def slope(self, x):
        return np.where(x > 0.0, super().slope(x), 1.0)


class BlockThatHidesItsLayer(Half):
    def map_layers(self, function):
        function("f", self.layer)
        return self


NESTED = nn.Sequential(nn.Tanh(), BiasAveraged(2))
SHARED = {
    "a": (BiasAveraged(4), "x"),
    "b": (nn.Tanh(), "a"),
    "c": (nn.Shared("a"), "b"),
}
FIRST = "the first layer inside that fails by itself: "
PASSES = "every layer inside {0} passes by itself: the fault is in the code of {0}"
INSIDE = [  # block, the start of the line about the layers inside
    (nn.Sequential(nn.Dense(3), WrongSign()), FIRST + "1 (WrongSign): central diff"),
    (nn.Sequential(nn.Dense(4), NESTED), FIRST + "1.1 (BiasAveraged): central diff"),
    (nn.Residual(nn.Dense(4), WrongSign()), FIRST + "1 (WrongSign): central diff"),
    (nn.Repeat(WrongSign(), 3), FIRST + "WrongSign: central difference on numpy"),
    (nn.Graph(**SHARED), FIRST + "a (BiasAveraged): central difference on numpy"),
    (
        nn.Graph(a=(nn.Tanh(), "x"), b=(WrongSign(), "a"), both=(nn.Add(), "a", "b")),
        FIRST + "b (WrongSign): central difference on numpy, train: x[",
    ),
    (
        # the layer is wrong only for the input of its second call
        nn.Graph(
            a=(nn.Softplus(), "x"),
            b=(WrongBelowZero(), "a"),
            c=(nn.Sequential(nn.Dense(4)), "b"),
            d=(nn.Shared("b"), "c"),
        ),
        FIRST + "b (WrongBelowZero), call 2: central difference on numpy, train: x[",
    ),
    (Half(WrongSign()), FIRST + "f (WrongSign): central difference on numpy"),
    (HalfBack(nn.Dense(2)), PASSES.format("HalfBack")),
    (Scaled(nn.Dense(3), nn.Tanh()), PASSES.format("Scaled")),
    (nn.Freeze(Scaled(nn.Tanh())), FIRST + "Scaled: central difference"),
    (
        # on its input in the block, the second ReLU cannot be checked
        Scaled(nn.ReLU(), nn.ReLU()),
        "no layer inside Scaled fails by itself; unchecked: 1 (ReLU), central diff",
    ),
    (
        BlockThatHidesItsLayer(WrongSign()),
        "no layer inside BlockThatHidesItsLayer fails by itself; unchecked: "
        "f (WrongSign), which the forward pass did not reach",
    ),
    (
        nn.Sequential(nn.Dense(3), PromisesAnotherShape(2)),
        FIRST + "1 (PromisesAnotherShape): train in float32: y is float32",
    ),
    (
        nn.Sequential(nn.Dense(3), RefusesABatchOfOne()),
        FIRST + "1 (RefusesABatchOfOne): predict: a batch of one example is refused",
    ),
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("block", "line"), INSIDE, ids=str)
def test_the_layer_inside_that_is_wrong_is_named(block, line):
    with pytest.raises(CheckFailed) as caught:
        check(block, (4,), backends=[])
    paragraphs = str(caught.value).split("\n\n")
    assert paragraphs[1].startswith(line)
    assert (len(paragraphs) > 2) == ("relative error" in paragraphs[0])


def test_a_wrong_block_inside_a_block_is_named():
    with pytest.raises(CheckFailed) as caught:
        check(nn.Sequential(nn.Dense(3), Scaled(nn.Dense(2))), (4,), backends=[])
    first, second = str(caught.value).split("\n\n")[1].splitlines()
    assert first.startswith(FIRST + "1 (Scaled): central difference")
    assert second == PASSES.format("Scaled")


def test_a_passing_block_is_not_taken_apart():
    class Closed(nn.Sequential):
        def map_layers(self, function):
            raise AssertionError

    check(Closed(nn.Dense(2), nn.Tanh()), (4,), backends=[])


def test_a_layer_that_is_wrong_on_one_backend_is_named():
    compiled = []

    class OffWhenCompiled(nn.Tanh):
        def value(self, x):
            return super().value(x) + (1e-6 if compiled else 0.0)

    def jit(function, *_):
        def run(arrays):
            compiled.append(True)
            result = function(arrays)
            compiled.clear()
            return result

        return run

    model = nn.Sequential(nn.Dense(2), nn.Sequential(OffWhenCompiled()))
    line = "the first layer .*: 1.0 .OffWhenCompiled.: same as NumPy on off:cpu"
    with pytest.raises(CheckFailed, match=line):
        check(model, (4,), backends=[stand_in(jit=jit)])


def stand_in(**changed):
    """Return NumPy under another name, with parts of its adapter replaced."""
    numpy = nn.backend("numpy")
    adapter = SimpleNamespace(**members(numpy.adapter, **changed))
    return replace(numpy, name="off", adapter=adapter)


def pull_of_gain(function, point):
    """A vjp that does not scale dx by the gain."""

    def pull(dy):
        gain = np.sum(dy * point["x"], axis=0)
        return ({"params": {"gain": gain}, "x": dy},)

    return function(point), pull


WRONG_BACKENDS = [  # what is wrong with the backend, part of the message
    (
        {"to_numpy": lambda a: np.asarray(a) * (1 + 1e-6)},
        r"same as NumPy on off:cpu, train: \w+\[",
    ),
    ({"to_numpy": np.float32}, "on off:cpu: gain is float32"),
    (
        {"jit": lambda f, *_: lambda a: f(a | {"dy": 2.0 * a["dy"]})},
        "same as NumPy on off:cpu",
    ),
    ({"vjp": pull_of_gain}, r"automatic differentiation on off:cpu, \w+: x\["),
]


@pytest.mark.parametrize(("changed", "message"), WRONG_BACKENDS)
def test_a_wrong_backend_is_caught(changed, message):
    check(Gain(), (4,), backends=[stand_in()])
    with pytest.raises(CheckFailed, match=message):
        check(Gain(), (4,), backends=[stand_in(**changed)])


def test_an_error_on_a_backend_names_the_backend():
    def refuse(data, device):
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full") as caught:
        check(nn.Tanh(), (4,), backends=[stand_in(asarray=refuse)])
    assert caught.value.__notes__ == ["while Tanh() was checked on off:cpu"]


@pytest.mark.parametrize(
    "lack", [{"double": None}, {"has_float64": lambda device: False}]
)
def test_a_backend_without_float64_is_refused(lack):
    with pytest.raises(nn.BackendUnavailable, match="off:cpu has no float64"):
        check(nn.Tanh(), (4,), backends=[stand_in(**lack)])


def test_by_default_every_library_that_runs_here_is_checked():
    first = [status.devices[0] for status in nn.backends() if status.devices]
    able = {str(device) for device in first if device.adapter.double}
    checked = {row.backend for row in check(nn.Tanh(), (4,)).rows}
    assert checked == {"numpy", *able} - {"numpy:cpu"}


@pytest.mark.parametrize("place", [*np.linspace(-2.1, 2.1, 15), -2 / 3, 1 / 3, 2 / 3])
def test_a_kink_within_the_stencil_is_left_out_and_counted(place):
    """At the end of a stencil the fourth difference is small, and so is the error."""

    def draw(generator, shape):
        x = generator.choice([-1.0, 1.0], shape) * generator.uniform(0.5, 1.5, shape)
        x[0, 0] = place * STEP
        return x

    report = check(nn.ReLU(), (10,), backends=[], draw=draw)
    result = {r.mode: r for r in report.rows if r.oracle == "central difference"}
    for row in result.values():
        assert row.kinks == (1 if abs(place) < 2 else 0)
        assert row.checked + row.kinks == 30
        assert row.error < 1e-9


def test_a_leaf_that_lies_mostly_at_kinks_is_refused():
    def draw(generator, shape):
        return np.zeros(shape)

    with pytest.raises(CheckFailed, match="of 12 elements of x, 12 lie at a kink"):
        check(nn.ReLU(), (4,), backends=[], draw=draw)


def test_large_leaves_are_sampled_and_the_number_is_stated():
    report = check(nn.Dense(20), (30,), backends=[], elements=7)
    rows = [row for row in report.rows if row.oracle == "central difference"]
    checked = {row.leaf: row.checked for row in rows}
    assert checked == {"bias": 7, "weight": 7, "x": 7}


class WrongInOnePlace(nn.Dense):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        mask = np.ones_like(params["weight"])
        mask[17, 11] = 0.99
        return dx, grads | {"weight": grads["weight"] * mask}


def test_the_adjoint_catches_errors_outside_the_sample():
    with pytest.raises(CheckFailed, match=r"adjoint on numpy, \w+: x and params"):
        check(WrongInOnePlace(20), (30,), backends=[], elements=7)


def test_a_loss_is_checked_as_a_layer():
    def cubed(y, target, weights=None, *, reduction="mean"):
        return namespace(y).sum((y - target) ** 3, axis=-1), 3.0 * (y - target) ** 2

    def doubled(*args, **options):
        value, dy = cubed(*args)
        return value, 2.0 * dy

    shape = {"y": (3,), "target": (3,)}
    message = r"expected a layer, got <function .*check\(loss_of\(loss"
    with pytest.raises(TypeError, match=message):
        check(cubed, shape)
    check(loss_of(cubed), shape, backends=[])
    with pytest.raises(CheckFailed, match=rf"{CENTRAL}, train: x\.y\["):
        check(loss_of(doubled), shape, backends=[])


def test_the_report_is_a_table_of_every_oracle(backend):
    report = check(nn.Sequential(nn.Dense(2), nn.BatchNorm()), (4,), backends=[backend])
    title, *lines = report.to_text(verbose=True).splitlines()
    assert title.endswith("on (4,), a batch of 3, seed 0")
    for row, line in zip(report.rows, lines[-len(report.rows) :], strict=True):
        for part in (column_of(row), row.mode, row.leaf):
            assert part in line
    short = str(report).splitlines()
    assert len(short) < len(lines) / 2
    assert any(report.worst.leaf in line for line in short)
    assert "(refused)" in {row.leaf for row in report.rows}
    leaves = {row.leaf for row in report.rows}
    assert leaves > {"x", "y", "0.weight", "1.scale", "state.1.mean"}
    expected = {
        *("central difference", "adjoint", "layout", "batch of 0", "batch of 1"),
        *("shortcuts", "filled batch", "same as NumPy"),
    }
    if backend.adapter.vjp is not None:
        expected.add("automatic differentiation")
    assert {row.oracle for row in report.rows} == expected


def test_integers_are_drawn_as_the_layer_takes_them():
    class Picky(nn.Embedding):
        def check(self, x):
            raise ValueError("no")

    check(nn.Embedding(1, 3), (2,), backends=[])
    with pytest.raises(ValueError, match="pass `draw`, which returns a valid x"):
        check(Picky(4, 3), (2,), backends=[])

    def draw(generator, shape):
        return generator.integers(4, size=shape)

    check(Picky(4, 3), (2,), backends=[], draw=draw)


def test_the_same_seed_gives_the_same_report():
    reports = [check(nn.Dense(2), (3,), seed=5, backends=[]) for _ in range(2)]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("nothing", [{"batch": 0}, {"elements": 0}], ids=str)
def test_counts_below_1_are_refused(nothing):
    with pytest.raises(ValueError, match=r"at least 1.*, got 0"):
        check(nn.Tanh(), (4,), **nothing)


def test_examples_without_a_number_check_nothing():
    with pytest.raises(ValueError, match=r"no number to check in examples of \(0,\)"):
        check(nn.Tanh(), (0,), backends=[])


@dataclass(frozen=True)
class Blend(nn.Layer):
    """product = x · other · gain, and kept = x + other where the mask is true, or 0."""

    input_kinds: ClassVar = {
        "x": "real floating",
        "other": "real floating",
        "mask": "bool",
    }

    def init(self, key, shape, dtype):
        gain = namespace(key).ones(shape["x"], dtype=dtype)
        return {"gain": gain}, {}, {"product": shape["x"], "kept": shape["x"]}

    def forward(self, params, state, x, *, train=False):
        mask = namespace(x["x"]).astype(x["mask"], x["x"].dtype)
        product = x["x"] * x["other"]
        y = {"product": product * params["gain"], "kept": mask * (x["x"] + x["other"])}
        return y, state, (x["x"], x["other"], product, mask)

    def backward(self, params, cache, dy):
        x, other, product, mask = cache
        through = dy["product"] * params["gain"]
        around = dy["kept"] * mask
        dx = {"x": through * other + around, "other": through * x + around}
        dx["mask"] = None
        return dx, {"gain": namespace(x).sum(dy["product"] * product, axis=0)}


class LosesAnInput(Blend):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx | {"other": None}, grads


class LosesAnOutput(Blend):
    def backward(self, params, cache, dy):
        return super().backward(params, cache, dy | {"kept": 0.0 * dy["kept"]})


class SwapsInputs(Blend):
    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dx | {"x": dx["other"], "other": dx["x"]}, grads


class ForgetsTheMask(Blend):
    def backward(self, params, cache, dy):
        x, other, product, mask = cache
        return super().backward(params, (x, other, product, mask * 0.0 + 1.0), dy)


TREE = {"x": (2, 3), "other": (2, 3), "mask": (2, 3)}


def test_inputs_and_outputs_may_be_trees(backend):
    report = check(Blend(), TREE, backends=[backend])
    assert report.worst.error < 1e-9
    assert {"x.x", "x.other", "gain"} <= {row.leaf for row in report.rows}
    assert "x.mask" not in {row.leaf for row in report.rows}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LosesAnInput(), "x.other is missing"),
        (LosesAnOutput(), "central difference.*x"),
        (SwapsInputs(), "central difference.*x.(x|other)"),
        (ForgetsTheMask(), "central difference.*x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_layer_of_trees_is_caught(layer, message):
    with pytest.raises(CheckFailed, match=message):
        check(layer, TREE, backends=[])
