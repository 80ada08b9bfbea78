"""Rates that follow the steps, against their formulas written with `math`."""

import math

import numpy as np
import pytest

from agnostic_nn.schedules import Constant, Cosine, ExponentialDecay, StepDecay

STEPS = 120


def cosine(rate, steps, warmup, final):
    def at(t):
        if t < warmup:
            return rate * (t + 1) / warmup
        u = min((t - warmup) / (steps - warmup), 1.0)
        return final + (rate - final) * (1.0 + math.cos(math.pi * u)) / 2.0

    return at


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
]
NAMES = [str(schedule) for schedule, _ in CASES]
each_schedule = pytest.mark.parametrize(("schedule", "formula"), CASES, ids=NAMES)


@each_schedule
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_the_rate_is_the_formula_at_every_step(backend, widest, schedule, formula, dtype):
    """Rounding an exponent or angle z moves exp(z) and cos(z) by |z| eps; here |z| < 40."""
    t = np.arange(STEPS + 5, dtype=widest if dtype == "widest" else dtype)
    rates = backend.to_numpy(backend.jit(schedule)(backend.asarray(t)))
    assert rates.dtype == t.dtype
    eps = float(np.finfo(t.dtype).eps)
    expected = [formula(step) for step in range(STEPS + 5)]
    np.testing.assert_allclose(rates, expected, rtol=40 * eps, atol=eps * max(expected))


@pytest.mark.parametrize(("schedule", "formula"), CASES[::3], ids=NAMES[::3])
def test_one_step_as_an_array_without_axes_gives_one_rate(backend, widest, schedule, formula):
    t = backend.asarray(np.asarray(3, widest))
    rate = schedule(t)
    assert rate.shape == ()
    assert rate.dtype == t.dtype
    assert float(rate) == pytest.approx(formula(3), rel=1e-6)


@pytest.mark.parametrize("every", [1, 7, 41, 49, 55])
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_step_decay_steps_at_the_very_step_it_should(backend, widest, every, dtype):
    """t / every as a product with 1 / every would come one step late: 49 · (1 / 49) < 1."""
    t = np.arange(1000, dtype=widest if dtype == "widest" else dtype)
    schedule = StepDecay(1.0, every=every, factor=0.999)
    rates = backend.to_numpy(backend.jit(schedule)(backend.asarray(t)))
    steps = np.flatnonzero(np.diff(rates)) + 1
    np.testing.assert_array_equal(steps, np.arange(every, 1000, every))


def test_cosine_warms_up_to_its_rate_and_ends_at_its_final_one(backend, widest, epsilon):
    schedule = Cosine(0.2, steps=10, warmup=4, final=0.02)
    t = backend.asarray(np.asarray([0, 3, 4, 10, 11, 10_000], widest))
    expected = [0.05, 0.2, 0.2, 0.02, 0.02, 0.02]
    rates = backend.to_numpy(backend.jit(schedule)(t))
    np.testing.assert_allclose(rates, expected, rtol=8 * epsilon)


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
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
