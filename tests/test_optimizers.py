"""Optimizers equal plain loops, PyTorch and Optax, and keep their documented rules."""

import functools
import math
import pickle
from dataclasses import fields, replace
from decimal import Decimal

import numpy as np
import pytest
from cases import layer_cases
from cases import optimizers as cases
from cases.optimizers import OPTIMIZERS, STEPS, apart, by_hand, problem, walk

import agnostic_nn as nn
from agnostic_nn import SGD, Adam, AdamW, ClipByGlobalNorm
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics import examples
from agnostic_nn.optimizers import Rule
from agnostic_nn.optimizers.base import NO_DECAY, decays, first_leaf, matches, paths
from agnostic_nn.schedules import Constant, Cosine, Piecewise, StepDecay
from agnostic_nn.training.config import describe, rebuild

SPLIT = nn.Parts((("0.bias", nn.Fixed()), ("2", nn.Lion(0.01))), rest=AdamW(0.1))
WRAPPERS = [  # optimizers around others
    nn.ClipByValue(SGD(0.1, momentum=0.9), 0.5),
    nn.ClipByNorm(Adam(0.1), 1.0),
    ClipByGlobalNorm(SGD(0.1, momentum=0.9), limit=2.0),
    nn.L2(nn.RAdam(0.1), 0.1),
    nn.Accumulate(Adam(StepDecay(0.1, every=2)), 3),
    nn.Average(SGD(0.1), 0.9),
    nn.Scaled(nn.NAdam(0.1)),
    SPLIT,
    nn.Scaled(nn.Average(nn.Accumulate(ClipByGlobalNorm(nn.Muon()), 2))),
]
ALL = [*(case.optimizer for case in OPTIMIZERS), *WRAPPERS]
each_case = pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
each_optimizer = pytest.mark.parametrize("optimizer", ALL, ids=str)


def fields_of(optimizer):
    return [field.name for field in fields(optimizer)]


PUBLIC = {name for name in nn.optimizers.__all__ if name not in ("Optimizer", "Rule")}


@functools.cache
def compiled(backend, optimizer):
    return backend.jit(optimizer.update)


@functools.cache
def walked(backend, optimizer, dtype):
    """Return a walk that several tests use."""
    return walk(backend, optimizer, *problem(dtype), compiled(backend, optimizer))


def one_step(backend, optimizer, params, grads, times=1):
    """Return the parameters on the host after `times` steps along one gradient."""
    params, grads = backend.asarray((params, grads))
    moments = optimizer.init(params)
    with backend.applied():
        for _ in range(times):
            params, moments = optimizer.update(params, grads, moments)
    return backend.to_numpy(params)


# --- comparisons with other implementations -------------------------------------------

# Each step adds a few roundings of numbers near the largest of their leaf.
ROUNDINGS = 4 * STEPS


@each_case
def test_each_step_equals_that_of_a_plain_loop(backend, widest, epsilon, case):
    result, _ = walked(backend, case.optimizer, widest)
    assert (
        apart(result, by_hand(case, *problem(widest)))
        < ROUNDINGS * case.slack * epsilon
    )


@pytest.mark.parametrize("case", [case for case in OPTIMIZERS if case.torch], ids=str)
def test_each_step_equals_that_of_pytorch(backend, widest, epsilon, case):
    torch = pytest.importorskip(
        "torch", reason="PyTorch, the oracle, is not installed here"
    )
    result, _ = walked(backend, case.optimizer, widest)
    theirs = cases.torch_walk(torch, case, *problem(widest))
    assert apart(result, theirs) < ROUNDINGS * case.slack * epsilon


@pytest.mark.parametrize("case", [case for case in OPTIMIZERS if case.optax], ids=str)
def test_each_step_equals_that_of_optax(backend, widest, epsilon, case):
    optax = pytest.importorskip(
        "optax", reason="Optax, the oracle, is not installed here"
    )
    result, _ = walked(backend, case.optimizer, widest)
    theirs = cases.optax_walk(optax, case, *problem(widest))
    assert apart(result, theirs) < ROUNDINGS * case.slack * epsilon


FIRST = [  # optimizer, θ after one step from θ = 2 with g = 0.5
    (SGD(0.1), 2 - 0.1 * 0.5),
    (SGD(0.1, momentum=0.9), 2 - 0.1 * 0.5),
    (SGD(0.1, momentum=0.9, nesterov=True), 2 - 0.1 * (0.5 + 0.9 * 0.5)),
    (SGD(0.1, weight_decay=0.3), 2 - 0.1 * (0.5 + 0.3 * 2)),
    (SGD(Constant(0.1)), 2 - 0.1 * 0.5),
    (SGD(Cosine(0.1, steps=9, warmup=4)), 2 - 0.025 * 0.5),
    (nn.Lion(0.1, weight_decay=0.3), 2 - 0.1 * (1 + 0.3 * 2)),
    (nn.Adagrad(0.1, epsilon=0.1), 2 - 0.1 * 0.5 / 0.6),
    (nn.Adadelta(epsilon=0.1), 2 - 0.5 * math.sqrt(0.1 / 0.125)),
    (nn.RMSprop(0.1, rho=0.75, epsilon=0.1), 2 - 0.1 * 0.5 / 0.35),
    (nn.RMSprop(0.1, rho=0.5, epsilon=0.1, centered=True), 2 - 0.1 * 0.5 / 0.35),
    (Adam(0.1, epsilon=1e-3), 2 - 0.1 * 0.5 / (0.5 + 1e-3)),
    (Adam(0.1, epsilon=1e-3, amsgrad=True), 2 - 0.1 * 0.5 / (0.5 + 1e-3)),
    (
        AdamW(0.1, epsilon=1e-3, weight_decay=0.3),
        2 * (1 - 0.1 * 0.3) - 0.1 * 0.5 / (0.5 + 1e-3),
    ),
    (nn.Adamax(0.1, epsilon=0.1), 2 - 0.1 * 0.5 / 0.6),
    (
        nn.NAdam(0.1, beta1=0.5, epsilon=0.1, momentum_decay=0.0),
        # each μ is β₁ / 2 = 0.25, and m = 0.25
        2 - 0.1 * (0.25 * 0.25 / (1 - 0.25**2) + 0.75 * 0.5 / 0.75) / 0.6,
    ),
    (nn.RAdam(0.1), 2 - 0.1 * 0.5),
    (nn.LAMB(0.1), 2 - 0.1 * 2),
    (nn.Adafactor(0.1), 2 - 2 * 0.1),
    (
        nn.Adafactor(0.1, limit=0.25, weight_decay=0.5),
        2 - 0.1 * 0.5 * 2 - 2 * 0.1 * 0.25,
    ),
    (nn.Muon(0.1, others=SGD(0.2)), 2 - 0.2 * 0.5),
    (nn.ClipByValue(SGD(0.1), 0.2), 2 - 0.1 * 0.2),
    (nn.ClipByNorm(SGD(0.1), 0.2), 2 - 0.1 * 0.2),
    (ClipByGlobalNorm(SGD(0.1), 0.2), 2 - 0.1 * 0.2),
    (ClipByGlobalNorm(SGD(0.1), 0.5), 2 - 0.1 * 0.5),
    (ClipByGlobalNorm(SGD(0.1), 9.0), 2 - 0.1 * 0.5),
    (nn.L2(SGD(0.1), 0.3), 2 - 0.1 * (0.5 + 0.3 * 2)),
    (nn.DynamicScale(SGD(0.1), 4.0), 2 - 0.1 * 0.5 / 4),
    (nn.Accumulate(SGD(0.1), 1), 2 - 0.1 * 0.5),
    (nn.Accumulate(SGD(0.1), 2), 2),
    (nn.Average(SGD(0.1)), 2 - 0.1 * 0.5),
    (nn.Scaled(SGD(0.1)), 2 - 0.1 * 0.5),
    (nn.Parts((("w", nn.Fixed()),)), 2),
]


@pytest.mark.parametrize(
    ("optimizer", "expected"), FIRST, ids=[str(case[0]) for case in FIRST]
)
def test_the_first_step_equals_the_formula(
    backend, widest, epsilon, optimizer, expected
):
    params, grads = tuple({"w": np.asarray([v], widest)} for v in (2.0, 0.5))
    result = one_step(backend, optimizer, params, grads)["w"]
    np.testing.assert_allclose(result, [expected], rtol=4 * epsilon)


# --- properties of all optimizers -----------------------------------------------------


@each_optimizer
def test_float32_stays_float32_and_moments_keep_shapes_and_dtypes(backend, optimizer):
    """A result in float64 would cause another compilation and double the memory."""
    result, moments = walked(backend, optimizer, "float32")
    assert {leaf.dtype.name for leaf in result.values()} == {"float32"}
    before = dict(named_leaves(optimizer.init(problem("float32")[0])))
    after = dict(named_leaves(moments))
    assert list(before) == list(after)
    for path, leaf in before.items():
        assert (leaf.shape, leaf.dtype) == (after[path].shape, after[path].dtype), path
        assert leaf.dtype.name in ("float32", "int32")
        integers = ("step", "count", "loss_scale", "taken")
        assert leaf.dtype.name == "float32" or path.split(".")[-1] in integers


@pytest.mark.parametrize(
    "optimizer",
    [o for o in ALL if isinstance(o, Rule) and not isinstance(o, nn.Muon)],
    ids=str,
)
def test_moments_are_the_number_of_steps_and_trees_like_the_parameters(
    backend, optimizer
):
    _, moments = walked(backend, optimizer, "float32")
    start = dict(named_leaves(problem("float32")[0]))
    assert moments["step"] == STEPS
    for name in moments.keys() - {"step"}:
        result = dict(named_leaves(moments[name]))
        if isinstance(optimizer, nn.Adafactor):
            rows, columns = (
                result.pop(f"2.0.weight.{part}") for part in ("row", "column")
            )
            assert (rows.shape, columns.shape) == ((3, 2, 2, 1), (3, 2, 1, 4))
            assert result.keys() == {
                "0.bias",
                "0.weight.row",
                "0.weight.column",
                "3.slope",
            }
        else:
            shapes = {
                path: () if name == "product" else p.shape for path, p in start.items()
            }
            assert {path: leaf.shape for path, leaf in result.items()} == shapes


@each_optimizer
def test_arguments_are_not_changed_and_jit_gives_the_same_results(
    backend, widest, epsilon, optimizer
):
    start, grads = problem(widest)
    params = backend.asarray(start)
    args = (params, backend.asarray(grads[0]), optimizer.init(params))
    before = tree_map(np.copy, backend.to_numpy(args))
    eager = backend.to_numpy(optimizer.update(*args))
    tree_map(np.testing.assert_array_equal, before, backend.to_numpy(args))
    jitted = backend.to_numpy(compiled(backend, optimizer)(*args))
    tree_map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=8 * epsilon), eager, jitted
    )


@each_optimizer
def test_an_optimizer_can_be_printed_compared_hashed_pickled_and_rebuilt(optimizer):
    unpickled = pickle.loads(pickle.dumps(optimizer))
    assert unpickled == optimizer
    assert hash(unpickled) == hash(optimizer)
    assert rebuild(describe(optimizer)) == optimizer
    assert str(optimizer).startswith(type(optimizer).__name__)


def test_every_optimizer_is_in_the_lists_above():

    def inside(optimizer):
        yield type(optimizer).__name__
        for value in vars(optimizer).values():
            for part in value if isinstance(value, tuple) else (value,):
                part = part[1] if isinstance(part, tuple) else part
                yield from inside(part) if hasattr(part, "update") else ()

    tested = {name for optimizer in ALL for name in inside(optimizer)}
    assert tested == PUBLIC, "a row of OPTIMIZERS in tests/cases/optimizers.py"
    tested = {type(optimizer).__name__ for optimizer, _ in FIRST} | {"Fixed"}
    assert tested == PUBLIC, "a row of FIRST in tests/test_optimizers.py"


@pytest.mark.parametrize(
    "optimizer", [Adam(0.01), AdamW(0.01, weight_decay=0.0)], ids=str
)
def test_a_constant_gradient_moves_adam_by_its_rate_at_every_step(backend, optimizer):
    """m̂ = g and v̂ = g². With βᵗ in float32, 1 - βᵗ would be off by 1e-4 at first.

    A float32 step of 0.01 is accurate to its last bits, and the parameter to 1e-7.
    """
    params = backend.asarray({"w": np.zeros(3, np.float32)})
    grads = backend.asarray({"w": np.asarray([0.3, -20.0, 1e-3], np.float32)})
    moments = optimizer.init(params)
    update = backend.jit(optimizer.update)
    for t in range(1, 21):
        params, moments = update(params, grads, moments)
        result = backend.to_numpy(params)["w"]
        expected = t * 0.01 * np.asarray([-1, 1, -1])
        np.testing.assert_allclose(result[:2], expected[:2], rtol=2e-6)
        np.testing.assert_allclose(result[2], expected[2], rtol=2e-5)


def test_a_gradient_that_is_not_finite_gives_a_parameter_that_is_not_finite(backend):
    params = {"w": np.ones((2, 2), np.float32)}
    for bad in (math.nan, math.inf):
        grads = {"w": np.asarray([[1.0, 1.0], [1.0, bad]], np.float32)}
        for optimizer in (
            SGD(0.1),
            Adam(),
            ClipByGlobalNorm(SGD(0.1)),
            nn.Muon(),
            nn.Adafactor(),
        ):
            with np.errstate(invalid="ignore", divide="ignore"):
                result = one_step(backend, optimizer, params, grads)
            assert not np.isfinite(result["w"][1, 1])


def test_layers_without_parameters_are_accepted_but_not_models_without_any(backend):
    params = ({}, {"w": np.ones(2, np.float32)}, ())
    moved = one_step(backend, Adam(), params, params)
    assert moved[0] == {}
    assert moved[2] == ()
    for optimizer in (SGD(), Adam()):
        with pytest.raises(ValueError, match="no parameters to train"):
            optimizer.init(({}, ()))


@pytest.mark.parametrize(
    "optimizer", [SGD(), Adam(), AdamW(), nn.Muon(), SPLIT], ids=str
)
def test_gradients_of_another_structure_are_refused(backend, optimizer):
    start, (grads, *_) = problem("float32")
    params = backend.asarray(start)
    moments = optimizer.init(params)
    for wrong in (
        (*grads, {}),
        ({}, *grads[1:]),
        grads[0],
        (grads[0] | {"w": 0.0}, *grads[1:]),
    ):
        with pytest.raises(ValueError, match="trees differ"):
            optimizer.update(params, wrong, moments)


def test_dicts_that_jit_returns_sorted_are_matched_by_name(backend):
    params = {"b": np.ones(2, np.float32), "a": np.zeros(2, np.float32)}
    grads = {"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}
    result = one_step(
        backend, SGD(1.0, momentum=0.5, weight_decay=1.0), params, grads, times=2
    )
    np.testing.assert_array_equal(result["b"], -0.5)  # 1 - 1, then - (0.5 + 0)
    np.testing.assert_array_equal(result["a"], -1.5)  # - 1, then - (0.5 + 1 - 1)


# --- accuracy and edge cases ----------------------------------------------------------


@pytest.mark.parametrize("beta", [0.7, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_the_length_of_the_average_in_radam_is_accurate(backend, widest, beta, dtype):
    """ρ∞ - 2t βᵗ / (1 - βᵗ) would lose four float32 digits at first for β = 0.9999."""
    t = np.unique(np.geomspace(1, 1e5, 60).round()).astype(
        widest if dtype == "widest" else dtype
    )
    result = backend.to_numpy(nn.RAdam(beta2=beta)._rho(backend.asarray(t)))
    assert result.dtype == t.dtype
    exact = Decimal(beta)
    powers = {int(n): exact ** int(n) for n in t}
    expected = [
        (1 + exact) / (1 - exact) - 2 * n * p / (1 - p) for n, p in powers.items()
    ]
    eps = np.finfo(t.dtype).eps
    np.testing.assert_allclose(
        result, [float(length) for length in expected], rtol=16 * eps
    )


def test_centered_rmsprop_of_a_constant_gradient_is_finite(backend):
    """v - m² is 0 up to rounding, with either sign."""
    g = np.linspace(0.1, 3.0, 50, dtype="float32")
    result = one_step(
        backend, nn.RMSprop(1e-6, rho=0.3, centered=True), {"w": 0 * g}, {"w": g}, 60
    )
    assert np.all(np.isfinite(result["w"]))


@pytest.mark.parametrize("size", [0.0, 1e-25])
@each_optimizer
def test_gradients_of_0_and_tiny_gradients_give_finite_steps(backend, optimizer, size):
    """In float32 the squares of 1e-25 and of the ε of Adafactor are 0."""
    start, _ = problem("float32")
    zeros = tree_map(lambda p: np.full_like(p, size), start)
    for params in (start, tree_map(np.zeros_like, start)):
        result, _ = walk(
            backend, optimizer, params, [zeros] * 2, compiled(backend, optimizer)
        )
        assert all(np.all(np.isfinite(leaf)) for leaf in result.values())


def test_lamb_does_not_scale_the_step_of_a_leaf_that_is_0(backend):
    result = one_step(
        backend, nn.LAMB(0.1), {"w": np.zeros(1, "f")}, {"w": np.full(1, 0.5, "f")}
    )
    np.testing.assert_allclose(result["w"], -0.1, rtol=1e-5)


# --- Muon -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (3, 3, 2, 5)])
def test_muon_makes_every_singular_value_about_1(backend, draw, shape):
    g = draw(*shape)
    zero = {"w": np.zeros_like(g)}
    moved = one_step(backend, nn.Muon(1.0), zero, {"w": g})["w"]
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1]
    update = -moved.reshape(fan_in, fan_out) / math.sqrt(max(1.0, fan_out / fan_in))
    left, _, right = np.linalg.svd(g.reshape(fan_in, fan_out), full_matrices=False)
    z = np.diag(left.T @ update @ right.T)
    np.testing.assert_allclose((left * z) @ right, update, atol=1e-5)
    assert np.all((z > 0.6) & (z < 1.25))


def test_muon_passes_vectors_and_no_decay_parameters_to_the_other_optimizer(
    backend, widest, epsilon
):
    start, grads = problem(widest)
    muon = nn.Muon(0.05, no_decay=("bias", "2"), others=SGD(0.1))
    result, moments = walk(backend, muon, start, grads)
    alone, _ = walk(backend, nn.Muon(0.05), start, grads)
    plain, _ = walk(backend, SGD(0.1), start, grads)
    expected = plain | {"0.weight": alone["0.weight"]}
    assert apart(result, expected) < ROUNDINGS * epsilon
    assert [path for path, _ in named_leaves(moments["matrices"]["velocity"])] == [
        "0.weight"
    ]
    for p in (start[0]["weight"], start[0]["bias"]):  # all matrices, or none
        assert np.any(one_step(backend, nn.Muon(), {"w": p}, {"w": p})["w"] != p)


# --- weight decay ---------------------------------------------------------------------

# optimizer, the factor of a weight after a step without gradient
DECAYING = [
    (SGD(0.1, weight_decay=0.5), 1 - 0.1 * 0.5),
    (nn.Lion(0.1, weight_decay=0.5), 1 - 0.1 * 0.5),
    (AdamW(0.1, weight_decay=0.5), 1 - 0.1 * 0.5),
    (nn.LAMB(0.1, weight_decay=0.5), 1 - 0.1),
    (nn.Adafactor(0.1, weight_decay=0.5), 1 - 0.1 * 0.5),
    (
        nn.Muon(0.1, weight_decay=0.5, others=AdamW(0.1, weight_decay=0.5)),
        1 - 0.1 * 0.5,
    ),
    (nn.L2(SGD(0.1), 0.5), 1 - 0.1 * 0.5),
]


@pytest.mark.parametrize(
    ("optimizer", "factor"), DECAYING, ids=[str(case[0]) for case in DECAYING]
)
def test_weights_decay_but_biases_and_scales_do_not(backend, optimizer, factor):
    params = ({"weight": np.ones((2, 3)), "bias": np.ones(3)}, {"scale": np.ones(3)})
    params = tree_map(lambda p: p.astype("float32"), params)
    dense, norm = one_step(backend, optimizer, params, tree_map(np.zeros_like, params))
    np.testing.assert_allclose(dense["weight"], factor, rtol=1e-6)
    np.testing.assert_array_equal(dense["bias"], 1)
    np.testing.assert_array_equal(norm["scale"], 1)


def test_every_optimizer_with_weight_decay_is_tested():
    names = {name for name in PUBLIC if "no_decay" in fields_of(getattr(nn, name))}
    tested = {type(optimizer).__name__ for optimizer, _ in DECAYING}
    assert tested == names, "a row of DECAYING in tests/test_optimizers.py"


def test_no_decay_names_every_vector_that_a_layer_trains_and_no_matrix():
    axes = {}
    key = nn.random.key(0, xp=nn.backend("numpy").xp)
    for case in layer_cases():
        params, _, _ = case.layer.init(key, case.shape, np.float32)
        for path, leaf in named_leaves(params):
            name = path.split(".")[-1]
            # Repeat stacks parameters along another axis
            axes[name] = min(leaf.ndim, axes.get(name, 9))
    assert {name for name, ndim in axes.items() if ndim < 2} == set(NO_DECAY)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("bias", "0.bias", True),
        ("bias", "bias", True),
        ("bias", "0.unbias", False),
        ("bias", "bias.0", True),
        ("bias", "0.bias.1", False),
        ("2", "2.attention.weight", True),
        ("2", "12.weight", False),
        ("2", "0.2.weight", False),
        ("attention", "2.attention.weight", False),
        ("2.attention", "2.attention.weight", True),
        ("attention.weight", "2.attention.weight", True),
        ("2.*.weight", "2.attention.weight", True),
        ("2.*.weight", "2.weight", False),
        ("2.*.weight", "2.attention.bias", False),
        ("*.weight", "2.attention.weight", True),
        ("*", "0.bias", True),
        ("0.bias.1.a", "0.bias", False),
    ],
)
def test_a_pattern_matches_the_beginning_or_the_end_of_a_path(pattern, path, expected):
    assert matches(pattern, path) is expected


def test_decays_are_in_the_order_of_tree_map():
    tree = {"z": ({"weight": 0, "bias": 1}, {"scale": 2}), "a": 3}
    visited = []
    tree_map(visited.append, tree)
    assert dict(zip(paths(tree), visited, strict=True)) == dict(named_leaves(tree))
    assert list(decays(tree, 0.5, ("bias", "scale"))) == [0.5, 0.0, 0.0, 0.5]
    assert first_leaf(({}, (), {"z": ({}, {"a": 7}), "b": 8})) == 7
    assert first_leaf(({}, ())) is None


# --- clipping -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (nn.ClipByValue, [1.0, -1.0, 0.5, 0.5]),
        (nn.ClipByNorm, [0.6, -0.8, 0.5, 0.5]),
        (
            ClipByGlobalNorm,
            [3 / 5.049752, -4 / 5.049752, 0.5 / 5.049752, 0.5 / 5.049752],
        ),
    ],
)
def test_gradients_are_clipped_by_value_by_norm_or_by_global_norm(
    backend, clip, expected
):
    grads = ({"a": np.asarray([3.0, -4.0], "f")}, {"b": np.asarray([[0.5, 0.5]], "f")})
    moved = one_step(
        backend, clip(SGD(1.0), 1.0), tree_map(np.zeros_like, grads), grads
    )
    result = np.concatenate([-leaf.ravel() for leaf in leaves(moved)])
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("limit", [1.0, 1e30])
@pytest.mark.parametrize("clip", [nn.ClipByValue, nn.ClipByNorm, ClipByGlobalNorm])
def test_gradients_within_the_limit_pass_unchanged(backend, clip, limit):
    start, grads = problem("float32")
    small = [tree_map(lambda g: np.asarray(0.05 * g, "float32"), g) for g in grads[:3]]
    assert max(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves(g))) for g in small) < 1
    plain, _ = walk(backend, SGD(0.1), start, small)
    clipped, _ = walk(backend, clip(SGD(0.1), limit), start, small)
    assert apart(clipped, plain) == 0


WITH_EMPTY_PARAMETERS = [
    optimizer
    for optimizer in examples.OPTIMIZERS
    # that of Parts names a bias, which is not among these parameters
    if not isinstance(optimizer, nn.Parts)
]
EXTREMES = [  # gradient, limit, clipped gradient; squares overflow or underflow float32
    ([0.0, 0.0], 1.0, [0.0, 0.0]),
    ([3e20, 4e20], 1.0, [0.6, 0.8]),
    ([3e38, 3e38], 1.0, [0.5**0.5, 0.5**0.5]),  # the norm overflows too
    ([3e-30, 4e-30], 1.0, [3e-30, 4e-30]),
    ([3e-30, 4e-30], 5e-31, [3e-31, 4e-31]),
]


@pytest.mark.parametrize("clip", [nn.ClipByNorm, ClipByGlobalNorm])
def test_gradients_whose_squares_overflow_or_underflow_are_clipped(backend, clip):
    params = {"v": np.zeros((0, 3), "float32"), "w": np.zeros(2, "float32")}
    for g, limit, expected in EXTREMES:
        grads = {"v": np.zeros((0, 3), "float32"), "w": np.asarray(g, "float32")}
        moved = one_step(backend, clip(SGD(1.0), limit=limit), params, grads)
        np.testing.assert_allclose(-moved["w"], expected, rtol=1e-6, atol=0)


SQUARES = [Adam(), nn.RMSprop(), nn.Adagrad(), nn.Adadelta()]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_gradient_whose_square_overflows_stops_its_element(backend):
    """See docs/accuracy.md. Other elements still move, and clipping avoids it."""
    start = {"weight": backend.asarray(np.ones(3, np.float32))}
    large = {"weight": np.asarray([2e19, 1.0, 1.0], np.float32)}
    usual = {"weight": np.ones(3, np.float32)}
    clipped = [ClipByGlobalNorm(optimizer, limit=1.0) for optimizer in SQUARES]
    for optimizer in (*SQUARES, *clipped):
        params, moments = start, optimizer.init(start)
        for grads in (large, usual, usual):
            params, moments = optimizer.update(params, backend.asarray(grads), moments)
        first, *others = backend.to_numpy(params)["weight"]
        assert (first != 1.0) == (optimizer in clipped), optimizer
        assert all(0.5 < other < 1.0 for other in others), optimizer


def test_clipping_by_norm_spreads_nan(backend):
    params = {"w": np.zeros(2, "float32")}
    grads = {"w": np.asarray([np.nan, 1.0], "float32")}
    for clip in (nn.ClipByNorm, ClipByGlobalNorm):
        moved = one_step(backend, clip(SGD(1.0)), params, grads)
        assert np.isnan(moved["w"]).all()


def test_the_ratio_of_lamb_is_right_if_squares_overflow(backend):
    """The first step is sign(g) · rate · ‖θ‖ / ‖sign g‖."""
    optimizer = nn.LAMB(0.5, weight_decay=0.0)
    for scale in (1e20, 1e-25):
        params = {"w": np.asarray([3.0, 4.0], "float32") * np.float32(scale)}
        moved = one_step(
            backend, optimizer, params, {"w": np.asarray([1.0, -1.0], "float32")}
        )
        step = 0.5 * 5.0 / 2**0.5
        expected = np.asarray([3.0 - step, 4.0 + step]) * scale
        np.testing.assert_allclose(moved["w"], expected, rtol=1e-4)


def test_the_update_of_muon_is_right_if_squares_overflow(backend):
    params = {"w": np.zeros((2, 3), "float32")}
    grads = {"w": np.asarray([[1.0, 2.0, 3.0], [-1.0, 1.0, 0.0]], "float32")}
    huge = {"w": grads["w"] * np.float32(1e20)}
    expected, actual = (
        one_step(backend, nn.Muon(0.1), params, g)["w"] for g in (grads, huge)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_the_step_of_adafactor_is_right_if_squares_of_parameters_overflow(backend):
    optimizer, g = nn.Adafactor(1e-2), {"w": np.ones(2, "float32")}
    expected, actual = (
        one_step(backend, optimizer, {"w": np.full(2, size, "float32")}, g)["w"] / size
        for size in (1.0, 1e20)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_empty_and_scalar_parameters_do_not_affect_a_matrix(backend):
    """A matrix moves in the same way with and without (0, 3) and () parameters."""

    def steps(params, grads):
        return [o.update(params, grads, o.init(params)) for o in WITH_EMPTY_PARAMETERS]

    def both(params, grads):
        alone = ({"weight": tree["weight"]} for tree in (params, grads))
        return tuple(steps(params, grads)), tuple(steps(*alone))

    params = {
        "empty": np.zeros((0, 3)),
        "scalar": np.asarray(2.0),
        "weight": np.ones((2, 3)),
    }
    grads = {
        "empty": np.zeros((0, 3)),
        "scalar": np.asarray(0.01),
        "weight": np.ones((2, 3)) * 0.1,
    }
    trees = (tree_map(lambda a: a.astype("float32"), tree) for tree in (params, grads))
    result = backend.to_numpy(backend.jit(both)(*map(backend.asarray, trees)))
    for optimizer, (moved, moments), (alone, _) in zip(
        WITH_EMPTY_PARAMETERS, *result, strict=True
    ):
        assert moved["empty"].shape == (0, 3), optimizer
        assert moved["scalar"].shape == (), optimizer
        assert all(np.isfinite(leaf).all() for leaf in leaves((moved, moments))), (
            optimizer
        )
        np.testing.assert_allclose(moved["weight"], alone["weight"], rtol=1e-6)


# --- accumulating, averaging, scaling -------------------------------------------------


def test_accumulated_small_batches_equal_one_large_batch(
    backend, widest, epsilon, draw
):
    """Twice four batches of 5 equal two of 20, with a model and a loss."""
    model = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2))
    xp = nn.backend("numpy").xp
    params, state, _ = model.init(nn.random.key(0, xp=xp), (3,), getattr(xp, widest))
    x, target = draw(40, 3), draw(40, 2)
    result = []
    for optimizer, size in ((Adam(0.1), 20), (nn.Accumulate(Adam(0.1), 4), 5)):
        step = backend.jit(nn.make_step(model, nn.mean_squared_error, optimizer))
        carry = backend.asarray((params, state, optimizer.init(params)))
        for start in range(0, 40, size):
            batch = backend.asarray(
                (x[start : start + size], target[start : start + size])
            )
            carry, _, _ = step(carry, *batch)
        result.append(backend.to_numpy(carry))
    (large, _, plain), (small, _, summed) = result
    # Adam amplifies roundings of small gradients to the size of its step
    tree_map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=200 * epsilon), small, large
    )
    assert summed["inner"]["step"] == plain["step"] == 2
    assert summed["count"] == 0
    assert not any(np.any(leaf) for leaf in leaves(summed["total"]))


def test_parameters_move_only_after_enough_gradients_are_accumulated(backend):
    start, grads = problem("float32")
    result, moments = walk(backend, nn.Accumulate(SGD(0.1), 5), start, grads)
    for path, leaf in result.items():
        for i in range(4, 20, 5):
            assert len(np.unique(leaf[i : i + 5], axis=0)) == 1, path
        np.testing.assert_array_equal(leaf[3], dict(named_leaves(start))[path])
        assert np.all(leaf[4] != leaf[3])
    assert (moments["count"], moments["inner"]["step"]) == (STEPS % 5, STEPS // 5)


def test_a_schedule_inside_accumulate_counts_the_updates(backend):
    rate = Piecewise((1.0, 2.0, 4.0), starts=(1, 2))
    params, grads = {"w": np.zeros(1, "f")}, {"w": np.ones(1, "f")}
    result = one_step(backend, nn.Accumulate(SGD(rate), 2), params, grads, times=6)
    np.testing.assert_array_equal(result["w"], -7)


def test_the_average_is_the_exponentially_weighted_mean_of_the_parameters(
    backend, widest
):
    start, grads = problem(widest)
    optimizer = nn.Average(SGD(0.1, momentum=0.9), decay=0.8)
    params = backend.asarray(start)
    moments = optimizer.init(params)
    averaged = backend.jit(optimizer.averaged)
    tree_map(
        np.testing.assert_array_equal,
        backend.to_numpy(averaged(params, moments)),
        start,
    )
    history = []
    for g in grads[:6]:
        params, moments = optimizer.update(params, backend.asarray(g), moments)
        history.append(backend.to_numpy(params)[0]["weight"])
        weights = 0.8 ** np.arange(len(history))[::-1]
        result = backend.to_numpy(averaged(params, moments))[0]["weight"]
        np.testing.assert_allclose(result, np.average(history, 0, weights), rtol=1e-5)
    plain = SGD(0.1, momentum=0.9)
    expected, _ = walk(backend, plain, start, grads[:6], plain.update)
    np.testing.assert_array_equal(history, expected["0.weight"])


def test_a_slow_average_is_accurate_in_float32_from_the_first_step(backend):
    optimizer = nn.Average(SGD(0.1), decay=0.9999)
    params = backend.asarray({"w": np.full(3, 0.7, "f")})
    moments = optimizer.init(params)
    for _ in range(3):
        params, moments = optimizer.update(
            params, tree_map(lambda p: 0.0 * p, params), moments
        )
        result = backend.to_numpy(optimizer.averaged(params, moments))["w"]
        np.testing.assert_allclose(result, 0.7, rtol=1e-6)


def test_a_scale_of_1_does_not_change_the_step_and_a_half_halves_it(backend):
    start, grads = problem("float32")
    params, g = backend.asarray((start, grads[0]))
    optimizer = nn.Scaled(Adam(0.1))
    moments = optimizer.init(params)
    full, _ = Adam(0.1).update(params, g, Adam(0.1).init(params))
    result, after = optimizer.update(params, g, moments)
    tree_map(
        np.testing.assert_array_equal, backend.to_numpy(result), backend.to_numpy(full)
    )
    assert float(after["scale"]) == 1.0
    halved = moments | {"scale": 0.5 * moments["scale"]}
    result, after = optimizer.update(params, g, halved)
    expected = tree_map(lambda p, q: 0.5 * (p + q), start, backend.to_numpy(full))
    tree_map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        backend.to_numpy(result),
        expected,
    )
    assert float(after["scale"]) == 0.5


def test_parameters_with_gradient_0_do_not_change_at_any_scale(backend):
    start, _ = problem("float32")
    optimizer = nn.Scaled(SGD(0.1))
    params = backend.asarray(start)
    moments = optimizer.init(params)
    moments = moments | {"scale": 0.3 * moments["scale"]}
    zeros = tree_map(lambda p: 0.0 * p, params)
    result, _ = backend.jit(optimizer.update)(params, zeros, moments)
    tree_map(np.testing.assert_array_equal, backend.to_numpy(result), start)


# --- parts ----------------------------------------------------------------------------


def test_each_part_moves_as_with_its_optimizer_alone(backend, widest, epsilon):
    start, grads = problem(widest)
    result, moments = walk(backend, SPLIT, start, grads)
    alone = {
        "0.weight": walk(backend, AdamW(0.1), start, grads)[0],
        "2.0.weight": walk(backend, nn.Lion(0.01), start, grads)[0],
        "3.slope": walk(backend, AdamW(0.1), start, grads)[0],
    }
    for path, expected in alone.items():
        assert apart({path: result[path]}, {path: expected[path]}) < ROUNDINGS * epsilon
    np.testing.assert_array_equal(result["0.bias"], [start[0]["bias"]] * STEPS)
    assert {path for path, _ in named_leaves(moments)} == {
        "parts.1.step",
        "parts.1.m.2.0.weight",
        "rest.step",
        *(f"rest.{name}.{path}" for name in "mv" for path in ("0.weight", "3.slope")),
    }


def test_a_leaf_belongs_to_the_first_part_whose_pattern_matches(backend):
    params = (
        {"weight": np.ones(1, "f"), "bias": np.ones(1, "f")},
        {"bias": np.ones(1, "f")},
    )
    parts = nn.Parts([["0.weight", SGD(0.1)], ["bias", SGD(0.2)], ["*", SGD(0.3)]])
    with pytest.raises(
        ValueError, match=r"no leaf is left for the pattern '\*' among \['0.bias'"
    ):
        parts.init(params)
    parts = nn.Parts((("0.weight", SGD(0.1)), ("0", SGD(0.2)), ("*", SGD(0.3))))
    result = one_step(backend, parts, params, params)
    np.testing.assert_allclose(
        [leaf[0] for leaf in leaves(result)], [0.8, 0.9, 0.7], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (nn.Parts((("7", SGD()),), rest=SGD()), "no leaf is left for the pattern '7'"),
        (
            nn.Parts((("biass", SGD()),), rest=SGD()),
            "no leaf is left for the pattern 'biass'",
        ),
        (nn.Parts((("0", SGD()),)), "2.0.weight belongs to no part"),
        (
            nn.Parts((("0", SGD()), ("bias", SGD())), rest=SGD()),
            "no leaf is left for the pattern 'bi",
        ),
    ],
)
def test_a_pattern_without_leaves_and_a_leaf_without_part_are_refused(parts, message):
    start, grads = problem("float32")
    with pytest.raises(ValueError, match=message):
        parts.init(start)
    with pytest.raises(ValueError, match=message):
        parts.update(start, grads[0], {"parts": ({}, {}), "rest": {}})


# --- in training ----------------------------------------------------------------------


def test_a_training_continues_from_a_file_as_without_interruption(backend, tmp_path):
    """With nested moments of every kind, donated to a compiled step."""
    split = nn.Parts((("0", nn.Fixed()), ("2.bias", nn.NAdam())), rest=nn.Muon())
    optimizer = nn.Scaled(nn.Average(nn.Accumulate(nn.L2(ClipByGlobalNorm(split)), 3)))
    generator = np.random.default_rng(0)
    x, labels = (
        generator.standard_normal((30, 4)).astype("f"),
        generator.integers(0, 3, 30),
    )
    model = nn.Sequential(nn.Dense(5), nn.Tanh(), nn.Dense(3))
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, optimizer, backend=backend, shape=(4,)
    )
    before = backend.to_numpy(trainer.params)
    trainer.fit(x, labels, epochs=2, batch_size=8, verbose=0)
    trainer.save(tmp_path / "a")
    loaded = nn.Trainer.load(tmp_path / "a", backend=backend)
    for each in (trainer, loaded):
        each.fit(x, labels, epochs=1, batch_size=8, verbose=0)
    result, expected = (
        backend.to_numpy((each.params, each.moments)) for each in (loaded, trainer)
    )
    tree_map(np.testing.assert_array_equal, result, expected)
    tree_map(np.testing.assert_array_equal, result[0][0], before[0])
    assert np.all(result[0][2]["weight"] != before[2]["weight"])


# --- refused options ------------------------------------------------------------------

NAN, INF = math.nan, math.inf
WRONG = [  # call, error, message
    (lambda: SGD(0.0), ValueError, "finite rate above 0, got 0.0"),
    (lambda: SGD(-0.1), ValueError, "finite rate above 0, got -0.1"),
    (lambda: SGD(NAN), ValueError, "finite rate above 0, got nan"),
    (lambda: Adam(INF), ValueError, "finite rate above 0, got inf"),
    (lambda: SGD("0.1"), TypeError, "rate to be a number, got '0.1'"),
    (lambda: Adam(True), TypeError, "rate to be a number, got True"),
    (lambda: AdamW(None), TypeError, "rate to be a number, got None"),
    (
        lambda: SGD(np.float64(0.1)),
        TypeError,
        r"rate to be a number, got np.float64\(0.1\)",
    ),
    (lambda: SGD(0.1, momentum=-0.1), ValueError, r"momentum in \[0, 1\), got -0.1"),
    (lambda: SGD(0.1, momentum="a"), TypeError, "momentum to be a number, got 'a'"),
    (lambda: SGD(0.1, nesterov=True), ValueError, "nesterov needs a momentum above 0"),
    (lambda: SGD(0.1, weight_decay=NAN), ValueError, "decay of at least 0, got nan"),
    (lambda: SGD(0.1, weight_decay=INF), ValueError, "decay of at least 0, got inf"),
    (lambda: SGD(0.1, weight_decay="a"), TypeError, "decay to be a number, got 'a'"),
    (
        lambda: AdamW(no_decay=(1,)),
        TypeError,
        r"no_decay to be a tuple of paths, got \(1,\)",
    ),
    (lambda: Adam(beta2=-0.5), ValueError, r"beta2 in \[0, 1\), got -0.5"),
    (lambda: Adam(beta2=NAN), ValueError, r"beta2 in \[0, 1\), got nan"),
    (lambda: Adam(epsilon=NAN), ValueError, "epsilon above 0, got nan"),
    (lambda: AdamW(beta1=2.0), ValueError, r"beta1 in \[0, 1\), got 2.0"),
    (lambda: nn.Muon(coefficients=(1, 2, NAN)), ValueError, "coefficient c, got nan"),
    (lambda: ClipByGlobalNorm(SGD(), -1.0), ValueError, "limit above 0, got -1.0"),
    (lambda: ClipByGlobalNorm(SGD(), INF), ValueError, "limit above 0, got inf"),
    (
        lambda: nn.ClipByValue(Adam),
        TypeError,
        r"an optimizer, got the class Adam: write Adam",
    ),
    (lambda: nn.Accumulate(SGD(), 1.5), TypeError, "every to be an integer, got 1.5"),
    (
        lambda: nn.Accumulate(SGD(), np.int64(2)),
        TypeError,
        r"got np.int64\(2\): .* int\(...\)$",
    ),
    (
        lambda: Adam(np.float64(0.1)),
        TypeError,
        r"got np.float64\(0.1\): .* float\(...\)$",
    ),
    (lambda: Adam("0.1"), TypeError, "expected rate to be a number, got '0.1'$"),
    (lambda: nn.Parts((("0", None),)), TypeError, "an optimizer such as"),
    (
        lambda: nn.Parts(((0, SGD()),)),
        TypeError,
        "patterns to be a tuple of paths, got",
    ),
]
SHARE = (1.0, ValueError, r"{} in \[0, 1\), got 1.0")
ABOVE = (0.0, ValueError, "{} above 0, got 0.0")
NOT_NEGATIVE = (-1.0, ValueError, "{} of at least 0, got -1.0")
COUNT = (0, ValueError, "{} of at least 1, got 0")
FLAG = (1, TypeError, "expected {} to be True or False, got 1")
OPTIMIZER = (0.1, TypeError, r"an optimizer such as Adam\(\), got 0.1")
WRONG_OPTION = {  # the field of an optimizer: a refused value, error, message
    "rate": ABOVE,
    **dict.fromkeys(("momentum", "beta1", "beta2", "rho", "decay"), SHARE),
    **dict.fromkeys(("epsilon", "epsilon1", "epsilon2", "limit"), ABOVE),
    **dict.fromkeys(("weight_decay", "momentum_decay", "penalty"), NOT_NEGATIVE),
    **dict.fromkeys(("initial", "power"), NOT_NEGATIVE),
    **dict.fromkeys(("every", "terms", "iterations"), COUNT),
    **dict.fromkeys(("nesterov", "amsgrad", "centered", "match_adam"), FLAG),
    **dict.fromkeys(("optimizer", "others", "rest"), OPTIMIZER),
    "no_decay": ("bias", TypeError, "no_decay to be a tuple of paths, got 'bias'"),
    "coefficients": ((1.0, 2.0), ValueError, r"three coefficients, got \(1.0, 2.0"),
    "start": (3.0, ValueError, "start, a power of two, got 3.0"),
    "parts": ((("0",),), ValueError, "pairs of a pattern and an optimizer, got"),
}


@pytest.mark.parametrize(
    ("optimizer", "option"),
    [
        pytest.param(optimizer, option, id=f"{type(optimizer).__name__}-{option}")
        for optimizer in examples.OPTIMIZERS
        for option in fields_of(optimizer)
    ],
)
def test_a_wrong_value_of_any_option_is_refused(optimizer, option):
    assert option in WRONG_OPTION, "a row of WRONG_OPTION in tests/test_optimizers.py"
    value, error, message = WRONG_OPTION[option]
    with pytest.raises(error, match=message.format(option)):
        replace(optimizer, **{option: value})


@pytest.mark.parametrize(
    ("make", "error", "message"), WRONG, ids=[case[2] for case in WRONG]
)
def test_invalid_options_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
