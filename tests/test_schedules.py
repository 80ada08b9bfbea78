"""Schedules equal their formulas at every step."""

import dataclasses
import math

import numpy as np
import pytest

from agnostic_nn import schedules
from agnostic_nn.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    ExponentialDecay,
    InverseSquareRoot,
    Linear,
    OneCycle,
    Piecewise,
    Polynomial,
    StepDecay,
    Times,
    Warmup,
)
from agnostic_nn.training.config import describe, rebuild

STEPS = 120


def cosine(rate, steps, warmup, final):
    def at(t):
        if t < warmup:
            return rate * (t + 1) / warmup
        u = min((t - warmup) / (steps - warmup), 1.0)
        return final + (rate - final) * (1.0 + math.cos(math.pi * u)) / 2.0

    return at


def restarts(rate, lengths, final):
    def at(t):
        for length in lengths:
            if t < length:
                return (
                    final
                    + (rate - final) * (1.0 + math.cos(math.pi * t / length)) / 2.0
                )
            t -= length
        return final

    return at


def one_cycle(rate, steps, rise, start, final):
    def at(t):
        top = rise * steps - 1
        if t <= top:
            return start + (rate - start) * (1 - math.cos(math.pi * t / top)) / 2
        u = min((t - top) / (steps - 1 - top), 1.0)
        return final + (rate - final) * (1 + math.cos(math.pi * u)) / 2

    return at


def phases(t):
    if t < 10:
        return 0.3
    if t < 50:
        return 0.3 - 0.2 * min((t - 10) / 20, 1)
    return 0.05 * 0.9 ** (t - 50)


CASES = [  # schedule, its formula
    (Constant(0.3), lambda t: 0.3),
    (StepDecay(0.5, every=1, factor=0.9), lambda t: 0.5 * 0.9**t),
    (StepDecay(0.5, every=7), lambda t: 0.5 * 0.1 ** (t // 7)),
    (StepDecay(1e-3, every=50, factor=2.0), lambda t: 1e-3 * 2.0 ** (t // 50)),
    (ExponentialDecay(0.1, 0.95), lambda t: 0.1 * 0.95**t),
    (ExponentialDecay(0.1, 0.5, every=30), lambda t: 0.1 * 0.5 ** (t / 30)),
    (ExponentialDecay(1e-3, 1.1), lambda t: 1e-3 * 1.1**t),
    (Cosine(0.1, steps=STEPS), cosine(0.1, STEPS, 0, 0.0)),
    (Cosine(0.1, steps=90, warmup=20), cosine(0.1, 90, 20, 0.0)),
    (Cosine(0.1, steps=90, warmup=1, final=0.01), cosine(0.1, 90, 1, 0.01)),
    (Cosine(0.1, steps=1), cosine(0.1, 1, 0, 0.0)),
    (Cosine(0.01, steps=90, warmup=89, final=0.5), cosine(0.01, 90, 89, 0.5)),
    (CosineRestarts(0.1, (10, 20, 40)), restarts(0.1, (10, 20, 40), 0.0)),
    (CosineRestarts(0.1, (STEPS,), final=0.02), restarts(0.1, (STEPS,), 0.02)),
    (CosineRestarts(0.1, [7, 1, 49], final=0.2), restarts(0.1, (7, 1, 49), 0.2)),
    (Linear(0.0, 0.3, steps=41), lambda t: 0.3 * min(t / 41, 1)),
    (Linear(0.3, 0.1, steps=1), lambda t: 0.1 if t else 0.3),
    (Polynomial(0.1, steps=49), lambda t: 0.1 * (1 - min(t / 49, 1))),
    (
        Polynomial(0.1, steps=100, power=2.5, final=0.01),
        lambda t: 0.01 + 0.09 * (1 - min(t / 100, 1)) ** 2.5,
    ),
    (InverseSquareRoot(0.2), lambda t: 0.2 / math.sqrt(t + 1)),
    (
        InverseSquareRoot(0.2, warmup=30),
        lambda t: 0.2 * min((t + 1) / 30, math.sqrt(30 / (t + 1))),
    ),
    (OneCycle(0.1, steps=100), one_cycle(0.1, 100, 0.3, 4e-3, 4e-7)),
    (
        OneCycle(0.1, 77, rise=0.5, start=0.05, final=0.01),
        one_cycle(0.1, 77, 0.5, 0.05, 0.01),
    ),
    (
        Piecewise((0.1, 0.05, 0.2), starts=(7, 49)),
        lambda t: (0.1, 0.05, 0.2)[(t > 6) + (t > 48)],
    ),
    (
        Piecewise(
            (0.3, Linear(0.3, 0.1, steps=20), ExponentialDecay(0.05, 0.9)),
            starts=[10, 50],
        ),
        phases,
    ),
    (
        Piecewise((0.1, InverseSquareRoot(0.2)), (10,)),
        lambda t: 0.1 if t < 10 else 0.2 / math.sqrt(t - 9),
    ),
    (Warmup(0.2, 8), lambda t: 0.2 * min((t + 1) / 8, 1)),
    (
        Warmup(InverseSquareRoot(0.2), 20),
        lambda t: 0.2 * (t + 1) / 20 if t < 20 else 0.2 / math.sqrt(t - 19),
    ),
    (Times(Linear(0.0, 1.0, steps=10), 0.3), lambda t: 0.3 * min(t / 10, 1)),
    (
        Times(ExponentialDecay(0.1, 0.9), StepDecay(1.0, every=7, factor=0.5)),
        lambda t: 0.1 * 0.9**t * 0.5 ** (t // 7),
    ),
]
NAMES = [str(schedule) for schedule, _ in CASES]
each_schedule = pytest.mark.parametrize(("schedule", "formula"), CASES, ids=NAMES)


@each_schedule
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_the_rate_equals_the_formula_at_every_step(
    backend, widest, schedule, formula, dtype
):
    """An exponent or angle z gives exp(z) and cos(z) an error of |z| eps; |z| < 40."""
    t = np.arange(STEPS + 5, dtype=widest if dtype == "widest" else dtype)
    rates = backend.to_numpy(backend.jit(schedule)(backend.asarray(t)))
    assert rates.dtype == t.dtype
    eps = float(np.finfo(t.dtype).eps)
    expected = [formula(step) for step in range(STEPS + 5)]
    np.testing.assert_allclose(rates, expected, rtol=40 * eps, atol=eps * max(expected))


@each_schedule
def test_a_scalar_step_gives_a_scalar_rate(backend, widest, schedule, formula):
    t = backend.asarray(np.asarray(3, widest))
    rate = schedule(t)
    assert rate.shape == ()
    assert rate.dtype == t.dtype
    assert float(rate) == pytest.approx(formula(3), rel=1e-6)


@pytest.mark.parametrize("every", [1, 7, 41, 49, 55])
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_step_decay_changes_at_the_right_steps(backend, widest, every, dtype):
    """With t · (1 / every) it would be one step late, because 49 · (1 / 49) < 1."""
    t = np.arange(1000, dtype=widest if dtype == "widest" else dtype)
    schedule = StepDecay(1.0, every=every, factor=0.999)
    rates = backend.to_numpy(backend.jit(schedule)(backend.asarray(t)))
    steps = np.flatnonzero(np.diff(rates)) + 1
    np.testing.assert_array_equal(steps, np.arange(every, 1000, every))


def test_cosine_warms_up_to_its_rate_and_ends_at_its_final_rate(
    backend, widest, epsilon
):
    schedule = Cosine(0.2, steps=10, warmup=4, final=0.02)
    t = backend.asarray(np.asarray([0, 3, 4, 10, 11, 10_000], widest))
    expected = [0.05, 0.2, 0.2, 0.02, 0.02, 0.02]
    rates = backend.to_numpy(backend.jit(schedule)(t))
    np.testing.assert_allclose(rates, expected, rtol=8 * epsilon)


@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_parts_begin_at_the_right_steps(backend, widest, dtype):
    """Also at steps so large that the rounding error of t / length exceeds one step."""
    starts = (1, 49, 1000, 123_457, 5_000_011)
    schedule = Piecewise((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), starts)
    around = [step for start in starts for step in (start - 1, start)]
    t = np.asarray(around, widest if dtype == "widest" else dtype)
    rates = backend.to_numpy(backend.jit(schedule)(backend.asarray(t)))
    np.testing.assert_array_equal(rates, [1, 2, 2, 3, 3, 4, 4, 5, 5, 6])
    lengths = (49, 5_000_011)
    rates = CosineRestarts(1.0, lengths)(
        backend.asarray(np.asarray([48, 49, 5_000_060], t.dtype))
    )
    np.testing.assert_allclose(backend.to_numpy(rates), [0.001, 1.0, 0.0], atol=1e-4)


def test_one_cycle_has_the_documented_start_maximum_and_end(backend, widest, epsilon):
    schedule = OneCycle(0.2, steps=50, rise=0.2, start=0.02, final=0.002)
    t = backend.asarray(np.asarray([0, 9, 49, 50, 10_000], widest))
    rates = backend.to_numpy(backend.jit(schedule)(t))
    np.testing.assert_allclose(
        rates, [0.02, 0.2, 0.002, 0.002, 0.002], rtol=16 * epsilon
    )


PYTORCH = [  # schedule, the same in PyTorch for a base rate of 0.1
    (
        OneCycle(0.1, steps=60),
        lambda s, o: s.OneCycleLR(o, max_lr=0.1, total_steps=60),
    ),
    (
        CosineRestarts(0.1, (10, 20, 40), final=0.01),
        lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2, eta_min=0.01),
    ),
    (
        Linear(0.03, 0.1, steps=20),
        lambda s, o: s.LinearLR(o, start_factor=0.3, total_iters=20),
    ),
    (
        Polynomial(0.1, 40, power=2.0),
        lambda s, o: s.PolynomialLR(o, total_iters=40, power=2.0),
    ),
    (
        Piecewise((0.1, 0.02, 0.004), (7, 30)),
        lambda s, o: s.MultiStepLR(o, [7, 30], gamma=0.2),
    ),
    (
        Piecewise((Linear(0.01, 0.1, steps=9), ExponentialDecay(0.1, 0.9)), (9,)),
        lambda s, o: s.SequentialLR(
            o,
            [
                s.LinearLR(o, start_factor=0.1, total_iters=9),
                s.ExponentialLR(o, gamma=0.9),
            ],
            milestones=[9],
        ),
    ),
]


@pytest.mark.parametrize(
    ("schedule", "make"), PYTORCH, ids=[str(case[0]) for case in PYTORCH]
)
def test_the_rate_equals_that_of_pytorch_at_every_step(
    backend, widest, epsilon, schedule, make
):
    torch = pytest.importorskip(
        "torch", reason="PyTorch, the oracle, is not installed here"
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = make(torch.optim.lr_scheduler, optimizer)
    expected = []
    for _ in range(60):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(expected) < 60 else None
    rates = backend.to_numpy(schedule(backend.asarray(np.arange(60, dtype=widest))))
    # PyTorch multiplies its last rate by a ratio at each step
    np.testing.assert_allclose(rates, expected, rtol=200 * epsilon, atol=10 * epsilon)


@each_schedule
def test_a_schedule_can_be_hashed_and_rebuilt_from_plain_data(schedule, formula):
    assert len({schedule, dataclasses.replace(schedule)}) == 1
    assert rebuild(describe(schedule)) == schedule


def test_every_schedule_is_in_the_list_above():
    assert {type(schedule).__name__ for schedule, _ in CASES} == set(schedules.__all__)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepDecay(0.1, every=0), "every of at least 1, got 0"),
        (lambda: StepDecay(0.1, every=5, factor=0.0), "factor above 0, got 0"),
        (lambda: StepDecay(0.1, every=5, factor=math.nan), "factor above 0, got nan"),
        (lambda: ExponentialDecay(0.1, 0.9, every=-1), "every of at least 1, got -1"),
        (lambda: ExponentialDecay(0.1, -0.5), "factor above 0, got -0.5"),
        (lambda: Cosine(0.1, steps=0), "0 <= warmup < steps, got 0 and 0"),
        (lambda: Cosine(0.1, steps=5, warmup=5), "0 <= warmup < steps, got 5 and 5"),
        (lambda: Cosine(0.1, steps=5, warmup=-1), "0 <= warmup < steps, got -1 and 5"),
        (lambda: CosineRestarts(0.1, ()), "one length or more, got none"),
        (lambda: CosineRestarts(0.1, (5, 0)), "each of lengths of at least 1, got 0"),
        (lambda: CosineRestarts(0.0, (5,)), "rate above 0, got 0.0"),
        (
            lambda: CosineRestarts(0.1, (5,), final=-1.0),
            "final of at least 0, got -1.0",
        ),
        (lambda: Linear(-0.1, 0.1, steps=5), "start of at least 0, got -0.1"),
        (lambda: Linear(0.1, -0.1, steps=5), "stop of at least 0, got -0.1"),
        (lambda: Linear(0.1, 0.1, steps=0), "steps of at least 1, got 0"),
        (lambda: Polynomial(0.1, 0), "steps of at least 1, got 0"),
        (lambda: Polynomial(0.1, 5, power=0.0), "power above 0, got 0.0"),
        (lambda: InverseSquareRoot(0.1, warmup=0), "warmup of at least 1, got 0"),
        (lambda: OneCycle(0.1, steps=3), "no step to rise in: 0.3 of 3 steps"),
        (lambda: OneCycle(0.1, steps=30, rise=1.0), r"rise in \[0, 1\), got 1.0"),
        (lambda: OneCycle(0.1, steps=30, start=-1.0), "start of at least 0, got -1.0"),
        (
            lambda: OneCycle(1e-3, 30, final=0.1),
            "final, a rate, of at most 0.001, got 0.1",
        ),
        (
            lambda: Piecewise((0.1, 0.2), ()),
            r"a start for each part but the first, got \(\)",
        ),
        (lambda: Piecewise((0.1, 0.2, 0.3), (5, 5)), r"starts that rise, got \(5, 5\)"),
        (lambda: Piecewise((0.1, 0.2), (0,)), "each of starts of at least 1, got 0"),
        (lambda: Piecewise((0.1, -0.2), (5,)), "each part of at least 0, got -0.2"),
        (lambda: Warmup(0.1, 0), "steps of at least 1, got 0"),
        (lambda: Warmup(-0.1, 5), "schedule of at least 0, got -0.1"),
        (lambda: Times(0.1, -1.0), "factor of at least 0, got -1.0"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
