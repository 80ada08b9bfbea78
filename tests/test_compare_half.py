"""Tests of `compare` in half precision: single steps, and whether to train in it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core import precisions
from agnostic_nn.core.arrays import float_bits, namespace
from agnostic_nn.diagnostics.compare import CannotCompare, run_comparison, summary
from agnostic_nn.diagnostics.compare import half as half_module
from agnostic_nn.diagnostics.compare.emulation import deviations
from agnostic_nn.diagnostics.compare.half import _layers_to_keep
from agnostic_nn.diagnostics.compare.probes import functions
from agnostic_nn.diagnostics.compare.schema import HalfLayer, Report
from agnostic_nn.diagnostics.compare.workloads import Workload
from agnostic_nn.training.batches import Examples


def _blobs():
    """Two classes of points that a line separates."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((300, 20)).astype("float32")
    labels = (x[:, 0] + x[:, 1] > 0).astype("int64")
    return Examples(x[:240], labels[:240]), Examples(x[240:], labels[240:])


MODEL = nn.Sequential(
    nn.Dense(32),
    nn.Tanh(),
    nn.Dense(32),
    nn.Tanh(),
    nn.Dense(16),
    nn.Tanh(),
    nn.Dense(2),
)
BLOBS = Workload(
    "blobs",
    "two classes",
    _blobs,
    MODEL,
    nn.softmax_cross_entropy,
    nn.accuracy,
    epochs=3,
    batch_size=32,
    optimizer=nn.Adam(0.01),
)


def compared(workload=BLOBS, names=("numpy",), dtypes=("float16",), **options):
    return run_comparison(workload, names, dtypes=dtypes, sizes=(), **options)


def in_half(report):
    """Return the only result in 16 bits."""
    (result,) = [r for r in report.results if r.dtype in precisions.HALVES]
    return result


def is_half(x):
    return float_bits(x.dtype, namespace(x)) == 16


@pytest.fixture(scope="module")
def right():
    return compared()


def test_a_right_device_agrees_and_the_answer_is_yes(right):
    result = in_half(right)
    assert result.status == "agrees"
    assert result.verdict == "agrees in the 3 steps that were compared"
    assert right.verdict.status == "agrees"
    half = result.half_precision
    assert half.answer == "yes"
    assert half.sentence.startswith("Yes: test accuracy ")
    assert "No layer needs to stay in float32" in half.sentence
    assert half.keep == ()
    assert half.policy == 'nn.MixedPrecision(model, "float16")'


def test_float32_is_trained_too_and_first(right):
    assert [r.dtype for r in right.results] == ["float32", "float16"]
    plain, result = right.results
    assert plain.half_precision is None
    half = result.half_precision
    assert half.float32_test_metric == plain.test_metric
    assert half.float32_loss == pytest.approx(np.mean(plain.losses[-8:]))
    assert half.loss == pytest.approx(np.mean(result.losses[-8:]))


def test_the_tolerance_of_a_single_step_is_a_few_times_its_deviation(right):
    """Less than 4 roundings would give false alarms; 50 times as much finds nothing."""
    result = in_half(right)
    for group, name, entry in result.deviations.arrays():
        if group in ("layers", "gradients", "predictions"):
            where = f"{group} {name}"
            assert entry.relative <= entry.tolerance <= 50 * entry.relative, where
            assert entry.tolerance < 0.05, where


def test_the_update_is_judged_by_the_rounding_of_float32(right):
    for entry in in_half(right).deviations.updates.values():
        assert entry.tolerance < 1e-5


def test_a_whole_training_is_not_judged_number_by_number(right):
    result = in_half(right)
    assert result.tolerance is None
    for group in ("losses", "parameters", "outputs"):
        entries = result.deviations.group(group).values()
        assert entries
        assert all(entry.tolerance is None for entry in entries)


def test_every_layer_is_measured_alone(right):
    half = in_half(right).half_precision
    assert sorted(each.path for each in half.layers) == list("0123456")
    assert {each.path: each.layer for each in half.layers}["1"] == "Tanh"
    errors = [each.gradient_error for each in half.layers]
    assert errors == sorted(errors, reverse=True)
    assert 0.0 < errors[-1] < half.gradient_error < 0.05
    assert half.float32_gradient_error < 1e-5
    assert half.layers_not_measured == ()


def test_the_report_can_be_read_back(right):
    assert Report.from_json(right.to_json()).results == right.results


@pytest.mark.parametrize("path", ["0", "6"])
def test_a_layer_whose_output_is_5_percent_off_is_named(path, monkeypatch):
    """The other layers compute in float32 when a layer is measured."""
    widths = {"0": (20, 32), "6": (16, 2)}
    forward = nn.Dense.forward

    def wrong(self, params, state, x, *, train=False):
        y, state, cache = forward(self, params, state, x, train=train)
        if is_half(x) and params["weight"].shape == widths[path]:
            y = y * 1.05
        return y, state, cache

    monkeypatch.setattr(nn.Dense, "forward", wrong)
    report = compared()
    result = in_half(report)
    assert report.results[0].status == "agrees"
    assert result.status == "differs"
    assert result.first_difference.layer == path
    assert result.first_difference.description.startswith(
        f"the output of layer {path} (Dense)"
    )
    assert result.half_precision.answer == "no"
    assert result.half_precision.sentence == "No: the device computes wrong numbers."


def test_a_gradient_that_is_5_percent_off_is_named(monkeypatch):
    def wrong(method):
        def call(self, params, cache, dy):
            result = method(self, params, cache, dy)
            if not is_half(dy) or params["weight"].shape != (32, 16):
                return result
            dx, grads = result if isinstance(result, tuple) else (None, result)
            grads = {**grads, "weight": grads["weight"] * 0.95}
            return (dx, grads) if isinstance(result, tuple) else grads

        return call

    for name in ("backward", "backward_params"):
        monkeypatch.setattr(nn.Dense, name, wrong(getattr(nn.Dense, name)))
    result = in_half(compared())
    assert result.status == "differs"
    assert result.first_difference.layer == "4"
    assert result.first_difference.description == (
        "the gradient of 4.weight if layer 4 (Dense) alone computes in float16"
    )


def test_a_product_summed_in_half_precision_is_found_if_the_sum_is_long(monkeypatch):
    """1000 numbers of one sign: each partial sum is rounded to 11 digits."""
    generator = np.random.default_rng(0)
    x = np.abs(generator.standard_normal((80, 1000))).astype("float32")
    labels = (x[:, :500].mean(axis=1) > x[:, 500:].mean(axis=1)).astype("int64")
    examples = Examples(x[:64], labels[:64]), Examples(x[64:], labels[64:])
    first = nn.Dense(4, initializer=nn.Constant(0.01))
    model = nn.Sequential(first, nn.Tanh(), nn.Dense(2))
    wide = replace(BLOBS, read=lambda: examples, model=model, epochs=1)
    assert in_half(compared(wide)).status == "agrees"
    forward = nn.Dense.forward

    def in_half_precision(self, params, state, x, *, train=False):
        y, state, cache = forward(self, params, state, x, train=train)
        if is_half(x) and x.shape[1] == 1000:
            terms = x[:, :, None] * params["weight"][None, :, :]
            # each partial sum is a number of the result, in 16 bits
            sums = namespace(x).cumulative_sum(terms, axis=1)
            y = sums[:, -1, :] + params["bias"]
        return y, state, cache

    monkeypatch.setattr(nn.Dense, "forward", in_half_precision)
    result = in_half(compared(wide))
    assert result.status == "differs"
    assert result.first_difference.layer == "0"


def test_a_dtype_that_a_backend_lacks_is_refused_or_left_out():
    with pytest.raises(CannotCompare, match="numpy:cpu has no bfloat16"):
        compared(dtypes=("bfloat16",))
    report = compared(dtypes=("bfloat16",), skip_missing=True, epochs=1)
    assert [r.dtype for r in report.results] == ["float32"]
    assert "has no bfloat16" in report.left_out[0].reason


class Lossy(nn.Layer):
    """y = (x + 3000) - 3000, of which 16 bits leave only steps of 2."""

    def forward(self, params, state, x, *, train=False):
        return (x + 3000.0) - 3000.0, state, ()

    def backward(self, params, cache, dy):
        return dy, {}


def test_a_training_that_ends_worse_names_the_layers_to_keep():
    model = nn.Sequential(nn.Dense(16), Lossy(), nn.Tanh(), nn.Dense(2))
    report = compared(replace(BLOBS, model=model, epochs=4))
    result = in_half(report)
    assert result.status == "agrees"
    half = result.half_precision
    assert half.answer == "worse"
    assert half.layers[0].path == "1"
    assert half.layers[0].layer == "Lossy"
    assert half.keep == ("1",)
    assert half.policy == "nn.MixedPrecision(model, \"float16\", keep=('1',))"
    assert half.kept_gradient_error < 0.1 * half.gradient_error
    assert half.kept_test_metric > half.test_metric
    assert half.sentence.startswith("It trains, but ends worse: test accuracy ")
    assert "With layer 1 in float32: test accuracy" in half.sentence


@dataclass(frozen=True)
class Times(nn.Layer):
    """y = factor · x."""

    factor: float

    def forward(self, params, state, x, *, train=False):
        return x * self.factor, state, ()

    def backward(self, params, cache, dy):
        return dy * self.factor, {}


def test_a_loss_that_is_not_finite_is_answered_with_no():
    """2²⁰ x is beyond the range of float16, and not beyond that of float32."""
    large, small = Times(2.0**20), Times(2.0**-20)
    model = nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(2), large, small)
    report = compared(replace(BLOBS, model=model, epochs=1))
    result = in_half(report)
    assert result.status == "not checked"
    assert result.half_precision.answer == "no"
    assert result.half_precision.sentence.startswith("No: the loss is not a finite")


def layers_with(*errors):
    return [
        HalfLayer(path=str(i), layer="Dense", gradient_error=error)
        for i, error in enumerate(errors)
    ]


@pytest.mark.parametrize(
    ("errors", "keep"),
    [
        ((3.0, 1.0, 1.0), ("0",)),
        ((1.0, 1.0, 1.0, 1.0), ("0", "1", "2")),
        ((None, None, 1.0), ("0", "1")),
        ((0.0, 0.0), ()),
        ((), ()),
    ],
)
def test_the_fewest_layers_that_cause_three_quarters_are_kept(errors, keep):
    assert _layers_to_keep(layers_with(*errors)) == keep


def test_layers_beyond_the_limit_are_not_measured_and_named(monkeypatch):
    monkeypatch.setattr(half_module, "MAX_LAYERS", 4)
    half = in_half(compared(epochs=1)).half_precision
    assert {each.path for each in half.layers} == {"0", "2", "4", "6"}
    assert half.layers_not_measured == ("1", "3", "5")


def test_the_emulation_of_one_layer_leaves_the_others_in_float32():
    model = nn.Sequential(nn.Dense(4), nn.Dense(4))
    workload = replace(BLOBS, model=model)
    key = nn.random.key(0, xp=nn.backend("numpy").xp)
    params, state, _ = model.init(key, (4,), np.dtype("float32"))
    x = np.ones((3, 4), "float32")

    def layers(workload):
        return lambda p, s, x: functions(workload)["layers"]((p, s), x, None, {})

    (one,) = deviations(
        layers, workload, (params, state, x), "bfloat16", samples=1, alone="1"
    )
    assert 0.0 < np.max(np.abs(one["layers.0"])) < 1e-5
    assert np.max(np.abs(one["layers.1"])) > 1e-4


def test_the_terminal_and_the_files_answer_the_question(right, tmp_path):
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    text = summary(right)
    assert "May I train in float16 on numpy:cpu? Yes: test accuracy" in " ".join(
        text.split()
    )
    assert all(len(line) <= 80 for line in text.splitlines())
    right.save(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Loss in half precision minus loss in float32" in page
    assert "Error of gradients if one layer is in half precision" in page
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Half precision" in markdown
    assert "May I train in float16 on numpy:cpu? Yes: test accuracy" in markdown
    assert "| 6 | Dense |" in markdown


def test_a_training_that_diverges_in_float32_too_is_answered_with_no():
    huge = replace(BLOBS, optimizer=nn.SGD(1e30), loss=nn.mean_squared_error, epochs=1)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 3)).astype("float32")
    examples = Examples(x[:32], x[:32, :1] * 1e38), Examples(x[32:], x[32:, :1])
    huge = replace(huge, read=lambda: examples, metric=None, model=nn.Dense(1))
    result = in_half(compared(huge))
    assert result.error is None
    assert result.half_precision.answer == "no"
    assert result.half_precision.keep == ()
    assert "the training in float16" not in {r.description for r in result.not_checked}


def test_a_model_that_numpy_cannot_compute_is_refused_with_the_remedy():
    model = nn.Sequential(nn.MixedPrecision(nn.Dense(2), "bfloat16"))
    x = np.ones((10, 3), "float32")
    message = "NumPy, and numpy:cpu has no bfloat16.*pass the model without MixedPreci"
    with pytest.raises(CannotCompare, match=message):
        nn.compare(model, x, np.zeros(10, int), backends=["numpy"])
