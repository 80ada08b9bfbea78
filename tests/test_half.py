"""Layers in float16 and bfloat16: every example passes, planted faults are found."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import CheckFailed, check
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.precisions import HALVES
from agnostic_nn.diagnostics.bisect import replay
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES, Example
from agnostic_nn.diagnostics.gradcheck.cases import random_case
from agnostic_nn.diagnostics.gradcheck.dtypes import (
    compared,
    computed,
    in_dtype,
    reference_of,
)
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for
from agnostic_nn.diagnostics.representable import nearest
from agnostic_nn.ops import is_narrow, sum_over, widened

MANY = 3000  # terms of a sum, so many that it loses all digits in a half dtype


def repeated(x):
    """Return x (batch, 1, width) MANY times along time."""
    return namespace(x).broadcast_to(x, (x.shape[0], MANY, x.shape[2]))


LONG_SUMS = {  # example: rows of the batch
    Example(nn.Embedding(2, 3), (2,)): MANY,
    Example(nn.Lambda(repeated), (1, 2)): 3,
    Example(nn.PositionEmbedding(2), (2, 3)): MANY,
    Example(nn.PReLU(), (3,)): MANY,
    Example(nn.Dense(2), (3,)): MANY,
    Example(nn.BatchNorm(), (3,)): MANY,
}


def case_of(example, batch=3):
    """Return a case of the example, in training and in float64."""
    draw = example.draw or partial(draw_for, example.layer)
    generator = np.random.default_rng(0)
    shape = batched(example.shape, batch)
    return random_case(example.layer, shape, np.float64, draw, generator, False)


def faults(cases, dtype, backend):
    """Return a line for each result of the cases that is out of tolerance."""
    narrow = [in_dtype(case, dtype) for case in cases]
    lines = []
    for case, results in zip(narrow, computed(narrow, dtype, backend), strict=True):
        reference = reference_of(case, dtype)
        for row, remark in compared(case, dtype, str(backend), reference, results):
            if remark or not row.error <= row.tolerance:
                lines.append(f"{case.layer}: {row} {remark}")
    return lines


def half_dtypes(backend):
    dtypes = [dtype for dtype in HALVES if backend.has_dtype(dtype)]
    if not dtypes:
        pytest.skip(f"{backend} has neither float16 nor bfloat16")
    return dtypes


def test_every_example_keeps_the_precision_of_half_dtypes(backend, thorough):
    """In training; `nox -s half` also checks predictions, and all backends."""
    cases = list(map(case_of, (*LAYERS, *LOSSES)))
    dtypes = half_dtypes(backend)
    if not thorough:  # each case is compiled
        cases = cases[::8]
        dtypes = dtypes[-1:]
    for dtype in dtypes:
        assert faults(cases, dtype, backend) == []


def test_sums_over_many_rows_keep_the_precision_of_half_dtypes(backend, thorough):
    cases = [case_of(example, batch) for example, batch in LONG_SUMS.items()]
    dtypes = half_dtypes(backend)
    for dtype in dtypes if thorough else dtypes[-1:]:
        assert faults(cases, dtype, backend) == []


def test_gaussian_noise_is_finite_in_half_dtypes(backend):
    """In these dtypes 1 - u is 0 if u is rounded to 1."""
    case = case_of(Example(nn.GaussianNoise(0.5), (2000,)))
    for dtype in half_dtypes(backend):
        assert faults([case], dtype, backend) == []


# --- rounding to a dtype --------------------------------------------------------------


def test_rounding_to_float16_and_float32_is_that_of_numpy():
    generator = np.random.default_rng(0)
    x = generator.standard_normal(2000) * 2.0 ** generator.integers(-30, 18, 2000)
    x = np.concatenate([x, [0.0, -0.0, 65519.0, 65520.0, -1e9, np.inf, np.nan]])
    for dtype in ("float16", "float32"):
        with np.errstate(over="ignore"):
            expected = x.astype(dtype).astype("float64")
        np.testing.assert_array_equal(nearest(x, dtype), expected)


def test_rounding_to_bfloat16_is_that_of_torch():
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    x = generator.standard_normal(2000) * 2.0 ** generator.integers(-140, 130, 2000)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    expected = torch.tensor(x).to(torch.bfloat16).to(torch.float64).numpy()
    np.testing.assert_array_equal(nearest(x, "bfloat16"), expected)


def test_integers_booleans_and_float64_are_not_rounded():
    for x in (np.arange(3), np.array([True]), np.array([0.1])):
        assert nearest(x, "float64") is x
    assert nearest(np.arange(3) + 2**20, "bfloat16").dtype.kind == "i"


# --- planted faults -------------------------------------------------------------------


@dataclass(frozen=True)
class Scaled(nn.Layer):
    """y = gain · x, with planted faults that float32 and float64 do not have."""

    gain: float = 1.0
    fault: str = ""

    def init(self, key, shape, dtype):
        return {}, {}, shape

    def forward(self, params, state, x, *, train=False):
        if self.fault == "overflow":
            return namespace(x).sqrt(x * x * 1e6) * 1e-3, state, x
        return x * self.gain, state, x

    def backward(self, params, cache, dy):
        dx = dy * self.gain
        if self.fault == "overflow":
            return dy * namespace(dy).sign(cache), {}
        if self.fault == "gradient" and is_narrow(dy):
            dx = dx * 1.03
        return (widened(dx) if self.fault == "dtype" else dx), {}


@dataclass(frozen=True)
class NormOverTime(nn.Layer):
    """y = x / r with r² the mean of x² over time, added in the dtype of x."""

    in_float32: bool = False

    def init(self, key, shape, dtype):
        return {}, {}, shape

    def mean(self, x):
        if self.in_float32:
            return sum_over(x / x.shape[1], (1,))
        return namespace(x).sum(x / x.shape[1], axis=1, keepdims=True)

    def forward(self, params, state, x, *, train=False):
        size = self.mean(x * x) ** 0.5
        y = x / size
        return y, state, (y, size)

    def backward(self, params, cache, dy):
        y, size = cache
        return (dy - y * self.mean(dy * y)) / size, {}


def check_half(layer, shape, dtypes=("float16",), **options):
    return check(layer, shape, backends=["numpy"], dtypes=dtypes, elements=3, **options)


def test_a_gradient_that_is_off_by_3_percent_in_half_only_is_found():
    check_half(Scaled(2.0), (5,))
    with pytest.raises(CheckFailed, match=r"^float16 on numpy:cpu, train: x\[") as info:
        check_half(Scaled(2.0, "gradient"), (5,))
    assert "relative error 0.03" in str(info.value)


def test_a_gradient_that_is_off_by_3_percent_in_bfloat16_is_found():
    pytest.importorskip("torch")
    layer = Scaled(2.0, "gradient")
    with pytest.raises(CheckFailed, match=r"^bfloat16 on torch:cpu, train: x\["):
        check(layer, (50,), backends=["torch"], dtypes=["bfloat16"], elements=3)


def test_a_mean_that_a_norm_adds_up_in_half_over_a_long_axis_is_found():
    check_half(NormOverTime(in_float32=True), (MANY, 2))
    with pytest.raises(CheckFailed, match=r"^float16 on numpy:cpu, train: "):
        check_half(NormOverTime(), (MANY, 2))


def test_a_result_of_a_wider_dtype_is_found():
    with pytest.raises(CheckFailed, match="train: x is float32, expected float16"):
        check_half(Scaled(2.0, "dtype"), (5,))


def test_an_intermediate_result_that_overflows_is_found():
    with pytest.raises(CheckFailed, match=r"y\[.* is inf, expected"):
        check_half(Scaled(1.0, "overflow"), (5,))


def test_a_fault_inside_a_block_is_located():
    block = nn.Sequential(nn.Tanh(), Scaled(2.0, "gradient"))
    with pytest.raises(CheckFailed) as info:
        check_half(block, (5,))
    assert "the first layer inside that fails by itself: 1 (Scaled)" in str(info.value)
    assert "float16 on numpy:cpu, train: x" in str(info.value)


# --- numbers that a dtype cannot hold, and dtypes that a backend lacks ----------------


def test_results_that_overflow_are_named_and_not_called_wrong():
    report = check_half(Scaled(1e5), (5,), dtypes=["float16", "float32"])
    assert any(
        remark.startswith("y cannot be held by float16: ")
        and remark.endswith(" of 15 elements (train, numpy:cpu)")
        for remark in report.remarks
    )
    assert not any("float32" in remark for remark in report.remarks)
    assert report.remarks[0] in str(report)
    assert report.remarks[0] in report._repr_html_()


def test_inputs_that_overflow_are_named():
    def draw(generator, shape):
        return 1e6 * generator.standard_normal(shape)

    report = check_half(Scaled(1e-6), (5,), draw=draw)
    assert report.remarks == ("x cannot be held by float16: not checked",)


def test_a_backend_without_the_dtype_is_named():
    pytest.importorskip("torch")
    layer = Scaled(2.0)
    report = check(layer, (5,), backends=["torch"], dtypes=["bfloat16"], elements=3)
    assert len(report.remarks) == 1
    assert report.remarks[0].startswith("not checked: numpy:cpu has no bfloat16")
    with pytest.raises(nn.BackendUnavailable, match="numpy:cpu has no bfloat16"):
        check_half(layer, (5,), dtypes=["bfloat16"])


@pytest.mark.parametrize(
    ("dtypes", "error", "message"),
    [
        ("float16", TypeError, "expected dtypes as a list of names, got 'float16'"),
        (["float8"], ValueError, "got 'float8'; float64 is always checked"),
        (["float64"], ValueError, "got 'float64'; float64 is always checked"),
    ],
)
def test_other_dtypes_are_refused(dtypes, error, message):
    with pytest.raises(error, match=message):
        check_half(Scaled(2.0), (5,), dtypes=dtypes)


def test_the_command_shows_the_errors_in_units_of_epsilon(capsys):
    options = ["--backends=numpy", "--dtypes=float16", "--elements=3"]
    assert main(["check", "Dense", "ReLU", *options]) == 0
    output = capsys.readouterr().out
    assert "float16 on numpy:cpu" in output
    assert " ε " in output
    assert main(["check", "Dense", *options]) == 0
    assert "float16 on numpy:cpu" in capsys.readouterr().out


def test_the_command_refuses_dtypes_that_nothing_has(capsys):
    assert main(["check", "Dense", "--backends=numpy", "--dtypes=bfloat16"]) == 2
    assert "numpy:cpu has no bfloat16" in capsys.readouterr().err
    assert main(["check", "Dense", "--backends=numpy", "--dtypes=half"]) == 2
    assert "expected dtypes of float16, bfloat16, float32" in capsys.readouterr().err


# --- bisect ---------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongProduct(nn.Dense):
    """A Dense that leaves out the last input in float16 and bfloat16."""

    def forward(self, params, state, x, *, train=False):
        if is_narrow(x):
            xp = namespace(x)
            x = xp.concat([x[:, :-1], 0.0 * x[:, -1:]], axis=1)
        return super().forward(params, state, x, train=train)


@dataclass(frozen=True)
class WrongGradient(nn.Tanh):
    """A Tanh whose gradient is off by 10 % in float16 and bfloat16."""

    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return (dx * 1.1 if is_narrow(dy) else dx), grads


@dataclass(frozen=True)
class Loud(nn.Elementwise):
    """y = 10⁶ x, which float16 cannot hold."""

    def value(self, x):
        return x * 1e6

    def slope(self, x):
        return namespace(x).ones_like(x) * 1e6


def bisected(layers, *sides, scale=1.0, steps=1):
    """Return the bisection of a small model with these layers in the middle."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((24, 6)).astype("float32")
    target = generator.standard_normal((24, 3)).astype("float32")

    def loss(y, target):
        value, dy = nn.mean_squared_error(y, target)
        return scale * value, scale * dy

    model = nn.Sequential(nn.Dense(8), nn.BatchNorm(), *layers, nn.Dense(3))
    options = {"steps": steps, "batch_size": 12}
    return nn.bisect(model, loss, nn.Adam(1e-3), x, target, *sides, **options)


SOUND = (
    nn.GELU(),
    nn.Residual(nn.LayerNorm(), nn.Dense(8), nn.Dropout(0.25)),
    nn.Reshape((2, 4)),
    nn.Parallel(nn.GRU(2), nn.MultiHeadAttention(2), join="concatenate"),
    nn.Flatten(),
)


def test_bisect_agrees_in_half_dtypes(backend, thorough):
    """Also with each other: both sides get numbers that both dtypes can hold."""
    dtypes = half_dtypes(backend)
    if not thorough:  # each stage is compiled
        assert bisected([nn.GELU()], f"{backend}@{dtypes[-1]}").status == "agree"
        return
    for dtype in dtypes:
        result = bisected(SOUND, f"{backend}@{dtype}")
        assert result.status == "agree", str(result)
        assert 0.0 < result.worst < 1.0
    if len(dtypes) == 2:
        sides = [f"{backend}@{dtype}" for dtype in dtypes]
        result = bisected(SOUND, *sides)
        assert result.status == "agree", str(result)
        assert all(side in result.title for side in sides)


def test_a_wrong_product_in_half_is_located_by_name(backend, thorough, tmp_path):
    dtypes = half_dtypes(backend)
    for dtype in dtypes if thorough else dtypes[-1:]:
        result = bisected([nn.GELU(), WrongProduct(8)], f"{backend}@{dtype}")
        assert result.first.path == "3"
        assert result.first.part == "forward"
        assert result.first.name == "layer 3 (WrongProduct(width=8))"
        assert result.first.ratios[0] > 1.0 >= result.first.ratios[1]
        path = tmp_path / f"{dtype}.npz"
        assert not result.save(path)
        again = replay(path, thing=WrongProduct(8))
        assert again.first.part == "forward"
        assert again.backends[0].partition("@")[2] == dtype
        assert replay(path, f"{backend}@float32", thing=WrongProduct(8)).first is None


def test_a_wrong_gradient_in_half_is_located_even_if_it_is_small():
    """A dy of 1e-6 would be lost in float16 without the scale of `MixedPrecision`."""
    for scale in (1.0, 1e-4):
        result = bisected([WrongGradient()], "numpy@float16", scale=scale)
        assert result.first.name == "layer 2 (WrongGradient())"
        assert result.first.part == "backward: dx"


def test_the_loss_and_the_update_are_in_float32():
    result = bisected([nn.Tanh()], "numpy@float16")
    by_part = {(f.kind, f.part.partition(":")[0]): f for f in result.findings}
    for about in (("loss", "value"), ("Adam", "update"), ("Adam", "first update")):
        finding = by_part[about]
        assert finding.tolerances[0] < 1e-4 * max(finding.largest, 1e-3), about
    assert by_part["Dense", "forward"].tolerances[0] > 1e-3


def test_numbers_that_float16_cannot_hold_are_not_called_wrong():
    result = bisected([Loud(), nn.LayerNorm()], "numpy@float16", steps=0)
    forward = next(f for f in result.findings if f.kind == "Loud")
    assert forward.holds
    assert "overflows float16" in forward.unchecked


def test_a_side_without_the_dtype_is_refused(capsys):
    with pytest.raises(nn.BackendUnavailable, match="numpy:cpu has no bfloat16"):
        bisected([nn.Tanh()], "numpy@bfloat16")
    assert main(["bisect", "numpy@bfloat16"]) == 2
    assert "numpy:cpu has no bfloat16" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected one of float16, bfloat16, float32"):
        bisected([nn.Tanh()], "numpy@half")
