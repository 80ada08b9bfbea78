"""Optimizers against plain loops in float64, against PyTorch's, and against their promises."""

import functools
import math

import numpy as np
import pytest

from agnostic_nn import SGD, Adam, AdamW, ClipByGlobalNorm
from agnostic_nn.schedules import Constant, Cosine, ExponentialDecay, StepDecay
from agnostic_nn.trees import leaves, tree_map

STEPS = 30


def sgd(p, grads, rate, momentum=0.0, nesterov=False, decay=0.0):
    v = 0.0
    for t, g in enumerate(grads):
        g = g + decay * p
        v = momentum * v + g
        p = p - rate(t) * (g + momentum * v if nesterov else v)
        yield p


def adam(p, grads, rate, beta1=0.9, beta2=0.999, epsilon=1e-8, decay=0.0):
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - rate(t - 1) * decay * p
        p = p - rate(t - 1) * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
        yield p


def clipped(loop, limit):
    def clip(g):
        return g * min(1.0, limit / math.sqrt(sum(v**2 for v in g.tolist())))

    return lambda p, grads, rate, **options: loop(p, [clip(g) for g in grads], rate, **options)


def cosine(t):
    warm = 0.1 * (t + 1) / 5
    return warm if t < 5 else 0.1 * (1 + math.cos(math.pi * (t - 5) / 20)) / 2 if t < 25 else 0.0


CASES = {  # optimizer, the loop by hand, its rate, its options
    "SGD": (SGD(0.1), sgd, lambda t: 0.1, {}),
    "momentum": (SGD(0.1, momentum=0.9), sgd, lambda t: 0.1, {"momentum": 0.9}),
    "nesterov": (
        SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
        sgd,
        lambda t: 0.05,
        {"momentum": 0.8, "nesterov": True, "decay": 0.01},
    ),
    "decay": (
        SGD(0.1, momentum=0.5, weight_decay=0.1),
        sgd,
        lambda t: 0.1,
        {"momentum": 0.5, "decay": 0.1},
    ),
    "SGD, cosine": (SGD(Cosine(0.1, steps=25, warmup=5)), sgd, cosine, {}),
    "Adam": (Adam(0.01), adam, lambda t: 0.01, {}),
    "Adam, no memory": (
        Adam(0.01, beta1=0.0, beta2=0.0, epsilon=0.1),
        adam,
        lambda t: 0.01,
        {"beta1": 0.0, "beta2": 0.0, "epsilon": 0.1},
    ),
    "Adam, stairs": (
        Adam(StepDecay(0.1, every=10, factor=0.5)),
        adam,
        lambda t: 0.1 * 0.5 ** (t // 10),
        {},
    ),
    "AdamW": (AdamW(0.1), adam, lambda t: 0.1, {"decay": 0.01}),
    "AdamW, decaying": (
        AdamW(ExponentialDecay(0.1, 0.9), beta1=0.8, beta2=0.95, weight_decay=0.3),
        adam,
        lambda t: 0.1 * 0.9**t,
        {"beta1": 0.8, "beta2": 0.95, "decay": 0.3},
    ),
    "clipped": (
        ClipByGlobalNorm(SGD(0.1, momentum=0.9), limit=2.0),
        clipped(sgd, 2.0),
        lambda t: 0.1,
        {"momentum": 0.9},
    ),
    "clipped Adam": (ClipByGlobalNorm(Adam(0.01), 0.5), clipped(adam, 0.5), lambda t: 0.01, {}),
}
each_case = pytest.mark.parametrize(
    ("optimizer", "loop", "rate", "options"), CASES.values(), ids=CASES
)
ALL = [case[0] for case in CASES.values()]
each_optimizer = pytest.mark.parametrize("optimizer", ALL, ids=CASES)


def tree_of(numbers):
    """Nine numbers nested as the parameters of a model are."""
    weight, bias, scale = numbers[:6].reshape(2, 3), numbers[6:8], numbers[8]
    return ({"weight": weight, "bias": bias}, {}, ({"scale": scale},))


def flat(tree):
    """The nine numbers again."""
    ((layer, _, (norm,))) = tree
    return np.concatenate([layer["weight"].ravel(), layer["bias"], norm["scale"].reshape(1)])


def problem(dtype):
    """Where to start, and a gradient for each step: rough enough to be clipped now and then."""
    generator = np.random.default_rng(0)
    grads = generator.standard_normal((STEPS, 9)) * generator.uniform(0.01, 2.0, (STEPS, 1))
    return generator.standard_normal(9).astype(dtype), grads.astype(dtype)


@functools.cache
def compiled(backend, optimizer):
    return backend.jit(optimizer.update)


def walk(backend, optimizer, start, grads):
    """The parameters after each step, and what the optimizer remembers at last, on the host."""
    params = backend.asarray(tree_of(start))
    moments = optimizer.init(params)
    update = compiled(backend, optimizer)
    walked = []
    for g in grads:
        params, moments = update(params, backend.asarray(tree_of(g)), moments)
        walked.append(flat(backend.to_numpy(params)))
    return walked, backend.to_numpy(moments)


@each_case
def test_thirty_steps_are_those_of_a_plain_loop(
    backend, widest, epsilon, optimizer, loop, rate, options
):
    """Each step adds a few roundings of numbers near 1; clipping by the norm spreads them."""
    start, grads = problem(widest)
    walked, _ = walk(backend, optimizer, start, grads)
    expected = loop(start.astype(np.float64), grads.astype(np.float64), rate, **options)
    np.testing.assert_allclose(walked, list(expected), rtol=0, atol=STEPS * 4 * epsilon)


@pytest.mark.parametrize(
    ("optimizer", "name", "options"),
    [
        (SGD(0.1), "SGD", {}),
        (SGD(0.1, momentum=0.9), "SGD", {"momentum": 0.9}),
        (SGD(0.1, 0.9, weight_decay=0.1), "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        (
            SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
            "SGD",
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        ),
        (Adam(0.1), "Adam", {}),
        (Adam(0.1, beta1=0.5, beta2=0.9, epsilon=1e-3), "Adam", {"betas": (0.5, 0.9), "eps": 1e-3}),
        (AdamW(0.1), "AdamW", {}),
        (AdamW(0.1, weight_decay=0.5), "AdamW", {"weight_decay": 0.5}),
    ],
    ids=str,
)
def test_thirty_steps_are_those_of_pytorch(backend, widest, epsilon, optimizer, name, options):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed here")
    start, grads = problem(widest)
    walked, _ = walk(backend, optimizer, start, grads)
    p = torch.tensor(start.astype(np.float64), requires_grad=True)
    theirs = getattr(torch.optim, name)([p], lr=0.1, **options)
    for mine, g in zip(walked, grads, strict=True):
        p.grad = torch.tensor(g.astype(np.float64))
        theirs.step()
        np.testing.assert_allclose(mine, p.detach().numpy(), rtol=0, atol=STEPS * 4 * epsilon)


FIRST = [  # optimizer, θ after one step from θ = 2 with g = 0.5
    (SGD(0.1), 2 - 0.1 * 0.5),
    (SGD(0.1, momentum=0.9), 2 - 0.1 * 0.5),
    (SGD(0.1, momentum=0.9, nesterov=True), 2 - 0.1 * (0.5 + 0.9 * 0.5)),
    (SGD(0.1, weight_decay=0.3), 2 - 0.1 * (0.5 + 0.3 * 2)),
    (SGD(Constant(0.1)), 2 - 0.1 * 0.5),
    (SGD(Cosine(0.1, steps=9, warmup=4)), 2 - 0.025 * 0.5),
    (Adam(0.1, epsilon=1e-3), 2 - 0.1 * 0.5 / (0.5 + 1e-3)),
    (AdamW(0.1, epsilon=1e-3, weight_decay=0.3), 2 * (1 - 0.1 * 0.3) - 0.1 * 0.5 / (0.5 + 1e-3)),
    (ClipByGlobalNorm(SGD(0.1), 0.2), 2 - 0.1 * 0.2),
    (ClipByGlobalNorm(SGD(0.1), 0.5), 2 - 0.1 * 0.5),
    (ClipByGlobalNorm(SGD(0.1), 9.0), 2 - 0.1 * 0.5),
]


@pytest.mark.parametrize(("optimizer", "expected"), FIRST, ids=[str(case[0]) for case in FIRST])
def test_the_first_step_is_as_on_paper(backend, widest, epsilon, optimizer, expected):
    params, grads = backend.asarray(tuple({"w": np.asarray([v], widest)} for v in (2.0, 0.5)))
    params, moments = optimizer.update(params, grads, optimizer.init(params))
    found = backend.to_numpy(params)["w"]
    np.testing.assert_allclose(found, [expected], rtol=2 * epsilon)
    assert int(moments["step"]) == 1


@pytest.mark.parametrize("name", ["nesterov", "Adam, stairs", "AdamW, decaying", "clipped"])
def test_float32_stays_float32_and_steps_are_counted(backend, name):
    """The moments too: one step in float64 would compile a step anew, and double the memory."""
    walked, moments = walk(backend, CASES[name][0], *problem("float32"))
    assert {p.dtype.name for p in walked} == {"float32"}
    step = moments.pop("step")
    assert step.dtype == np.int32
    assert step.shape == ()
    assert step == STEPS
    assert {leaf.dtype.name for leaf in leaves(moments)} <= {"float32"}


@each_optimizer
def test_arguments_are_left_alone_and_jit_changes_nothing(backend, widest, epsilon, optimizer):
    start, grads = problem(widest)
    params = backend.asarray(tree_of(start))
    args = (params, backend.asarray(tree_of(grads[0])), optimizer.init(params))
    before = tree_map(np.copy, backend.to_numpy(args))
    eager = backend.to_numpy(optimizer.update(*args))
    tree_map(np.testing.assert_array_equal, before, backend.to_numpy(args))
    jitted = backend.to_numpy(compiled(backend, optimizer)(*args))
    tree_map(lambda a, b: np.testing.assert_allclose(a, b, atol=4 * epsilon), eager, jitted)


@each_optimizer
def test_moments_are_nested_and_shaped_as_the_parameters(backend, optimizer):
    params = backend.asarray(tree_of(problem("float32")[0]))
    moments = optimizer.init(params)
    assert int(moments.pop("step")) == 0
    for moment in moments.values():
        tree_map(lambda m, p: np.testing.assert_array_equal(m.shape, p.shape), moment, params)
        assert not any(np.any(leaf) for leaf in leaves(backend.to_numpy(moment)))


@pytest.mark.parametrize("optimizer", [Adam(0.01), AdamW(0.01, weight_decay=0.0)], ids=str)
def test_a_constant_gradient_moves_adam_by_its_rate_at_every_step(backend, optimizer):
    """m̂ = g and v̂ = g²; 1 - βᵗ taken of a float32 βᵗ would be wrong by 1e-4 at the first steps.

    In float32 a step of 0.01 is known to its last bits and the parameter to 1e-7.
    """
    params = backend.asarray({"w": np.zeros(3, np.float32)})
    grads = backend.asarray({"w": np.asarray([0.3, -20.0, 1e-3], np.float32)})
    moments = optimizer.init(params)
    update = backend.jit(optimizer.update)
    for t in range(1, 21):
        params, moments = update(params, grads, moments)
        found = backend.to_numpy(params)["w"]
        expected = t * 0.01 * np.asarray([-1, 1, -1])
        np.testing.assert_allclose(found[:2], expected[:2], rtol=2e-6)
        np.testing.assert_allclose(found[2], expected[2], rtol=2e-5)


def test_clipping_takes_one_norm_for_the_whole_tree(backend, widest, epsilon):
    grads = backend.asarray(({"a": np.asarray([3.0], widest)}, {"b": np.asarray([[4.0]], widest)}))
    zeros = tree_map(lambda g: g * 0.0, grads)
    optimizer = ClipByGlobalNorm(SGD(1.0), limit=1.0)
    moved, _ = optimizer.update(zeros, grads, optimizer.init(zeros))
    found = [leaf.item() for leaf in leaves(backend.to_numpy(moved))]
    np.testing.assert_allclose(found, [-0.6, -0.8], rtol=2 * epsilon)


@pytest.mark.parametrize("limit", [1.0, 1e30])
def test_gradients_within_the_limit_pass_unchanged(backend, limit):
    start, grads = problem("float32")
    small = 0.1 * grads
    (plain, _), (kept, _) = (
        walk(backend, optimizer, start, small[:3])
        for optimizer in (SGD(0.1), ClipByGlobalNorm(SGD(0.1), limit))
    )
    assert 0.1 < max(np.linalg.norm(g) for g in small[:3]) < 1
    np.testing.assert_array_equal(plain, kept)


def test_gradients_of_zero_and_of_overflowing_norm_move_nothing(backend):
    params = backend.asarray({"w": np.ones(2, np.float32)})
    optimizer = ClipByGlobalNorm(SGD(1.0), limit=1.0)
    for g in (0.0, 1e30):
        grads = backend.asarray({"w": np.full(2, g, np.float32)})
        with np.errstate(over="ignore" if g else "warn"):
            moved, _ = optimizer.update(params, grads, optimizer.init(params))
        np.testing.assert_array_equal(backend.to_numpy(moved)["w"], 1)


def test_a_gradient_that_is_not_finite_is_not_hidden(backend):
    params = backend.asarray({"w": np.ones(2, np.float32)})
    for bad in (math.nan, math.inf):
        grads = backend.asarray({"w": np.asarray([1.0, bad], np.float32)})
        for optimizer in (SGD(0.1), Adam(), ClipByGlobalNorm(SGD(0.1))):
            with np.errstate(invalid="ignore"):
                moved, _ = optimizer.update(params, grads, optimizer.init(params))
            assert not np.isfinite(backend.to_numpy(moved)["w"][1])


def test_a_layer_without_parameters_is_no_obstacle_but_a_model_without_any_is(backend):
    params = ({}, {"w": backend.asarray(np.ones(2, np.float32))}, ())
    optimizer = Adam()
    moved, _ = optimizer.update(params, params, optimizer.init(params))
    assert moved[0] == {}
    assert moved[2] == ()
    for optimizer in (SGD(), Adam(), ClipByGlobalNorm(SGD())):
        with pytest.raises(ValueError, match="no parameters to train"):
            optimizer.init(({}, ()))


@pytest.mark.parametrize("optimizer", [SGD(), Adam(), AdamW()], ids=str)
def test_gradients_of_another_nesting_are_refused(backend, optimizer):
    one = backend.asarray(np.ones(2, np.float32))
    params = ({"weight": one},)
    for grads in (({"weight": one, "bias": one},), ({},), (), {"weight": one}):
        with pytest.raises(ValueError, match="trees differ"):
            optimizer.update(params, grads, optimizer.init(params))


NAN, INF = math.nan, math.inf
WRONG = [  # what to make, error, message
    (lambda: SGD(0.0), ValueError, "finite rate above 0, got 0.0"),
    (lambda: SGD(-0.1), ValueError, "finite rate above 0, got -0.1"),
    (lambda: SGD(NAN), ValueError, "finite rate above 0, got nan"),
    (lambda: Adam(INF), ValueError, "finite rate above 0, got inf"),
    (lambda: SGD("0.1"), TypeError, "rate to be a number, got '0.1'"),
    (lambda: Adam(True), TypeError, "rate to be a number, got True"),
    (lambda: AdamW(None), TypeError, "rate to be a number, got None"),
    (lambda: SGD(np.float64(0.1)), TypeError, r"rate to be a number, got np.float64\(0.1\)"),
    (lambda: SGD(0.1, momentum=1.0), ValueError, r"momentum in \[0, 1\), got 1.0"),
    (lambda: SGD(0.1, momentum=-0.1), ValueError, r"momentum in \[0, 1\), got -0.1"),
    (lambda: SGD(0.1, momentum="a"), TypeError, "momentum to be a number, got 'a'"),
    (lambda: SGD(0.1, nesterov=True), ValueError, "nesterov needs a momentum above 0"),
    (lambda: SGD(0.1, weight_decay=-1.0), ValueError, "decay of at least 0, got -1.0"),
    (lambda: SGD(0.1, weight_decay=NAN), ValueError, "decay of at least 0, got nan"),
    (lambda: SGD(0.1, weight_decay=INF), ValueError, "decay of at least 0, got inf"),
    (lambda: SGD(0.1, weight_decay="a"), TypeError, "decay to be a number, got 'a'"),
    (lambda: Adam(beta1=1.0), ValueError, r"beta1 in \[0, 1\), got 1.0"),
    (lambda: Adam(beta2=-0.5), ValueError, r"beta2 in \[0, 1\), got -0.5"),
    (lambda: Adam(beta2=NAN), ValueError, r"beta2 in \[0, 1\), got nan"),
    (lambda: Adam(epsilon=0.0), ValueError, "epsilon above 0, got 0.0"),
    (lambda: Adam(epsilon=NAN), ValueError, "epsilon above 0, got nan"),
    (lambda: AdamW(weight_decay=-1.0), ValueError, "decay of at least 0, got -1.0"),
    (lambda: AdamW(beta1=2.0), ValueError, r"beta1 in \[0, 1\), got 2.0"),
    (lambda: ClipByGlobalNorm(SGD(), 0.0), ValueError, "limit above 0, got 0.0"),
    (lambda: ClipByGlobalNorm(SGD(), -1.0), ValueError, "limit above 0, got -1.0"),
    (lambda: ClipByGlobalNorm(SGD(), INF), ValueError, "limit above 0, got inf"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=[case[2] for case in WRONG])
def test_bad_hyper_parameters_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
