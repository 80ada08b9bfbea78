"""Optimizers against plain loops, PyTorch's and Optax's, and against their promises."""

import functools
import math
import pickle
from decimal import Decimal

import numpy as np
import pytest
from cases import layer_cases
from cases import optimizers as cases
from cases.optimizers import OPTIMIZERS, STEPS, apart, by_hand, problem, walk

import agnostic_nn as nn
from agnostic_nn import SGD, Adam, AdamW, ClipByGlobalNorm
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.optimizers import Rule
from agnostic_nn.optimizers.base import NO_DECAY, decays, first_leaf, matches, paths
from agnostic_nn.schedules import Constant, Cosine, Piecewise, StepDecay
from agnostic_nn.training.config import describe, rebuild

SPLIT = nn.Parts((("0.bias", nn.Fixed()), ("2", nn.Lion(0.01))), rest=AdamW(0.1))
AROUND = [  # optimizers around others
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
ALL = [*(case.optimizer for case in OPTIMIZERS), *AROUND]
each_case = pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
each_optimizer = pytest.mark.parametrize("optimizer", ALL, ids=str)


@functools.cache
def compiled(backend, optimizer):
    return backend.jit(optimizer.update)


@functools.cache
def walked(backend, optimizer, dtype):
    """A walk that several tests look at."""
    return walk(backend, optimizer, *problem(dtype), compiled(backend, optimizer))


def one_step(backend, optimizer, params, grads, times=1):
    """The parameters on the host after one step, or several along one gradient."""
    params, grads = backend.asarray((params, grads))
    moments = optimizer.init(params)
    with backend.applied():
        for _ in range(times):
            params, moments = optimizer.update(params, grads, moments)
    return backend.to_numpy(params)


# --- against others -------------------------------------------------------------------

# Each step adds a few roundings of numbers near the largest of their leaf.
ROUNDINGS = 4 * STEPS


@each_case
def test_each_step_is_that_of_a_plain_loop(backend, widest, epsilon, case):
    result, _ = walked(backend, case.optimizer, widest)
    assert (
        apart(result, by_hand(case, *problem(widest)))
        < ROUNDINGS * case.slack * epsilon
    )


@pytest.mark.parametrize("case", [case for case in OPTIMIZERS if case.torch], ids=str)
def test_each_step_is_that_of_pytorch(backend, widest, epsilon, case):
    torch = pytest.importorskip(
        "torch", reason="PyTorch, the oracle, is not installed here"
    )
    result, _ = walked(backend, case.optimizer, widest)
    theirs = cases.torch_walk(torch, case, *problem(widest))
    assert apart(result, theirs) < ROUNDINGS * case.slack * epsilon


@pytest.mark.parametrize("case", [case for case in OPTIMIZERS if case.optax], ids=str)
def test_each_step_is_that_of_optax(backend, widest, epsilon, case):
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
    (nn.Accumulate(SGD(0.1), 1), 2 - 0.1 * 0.5),
    (nn.Accumulate(SGD(0.1), 2), 2),
    (nn.Average(SGD(0.1)), 2 - 0.1 * 0.5),
    (nn.Scaled(SGD(0.1)), 2 - 0.1 * 0.5),
    (nn.Parts((("w", nn.Fixed()),)), 2),
]


@pytest.mark.parametrize(
    ("optimizer", "expected"), FIRST, ids=[str(case[0]) for case in FIRST]
)
def test_the_first_step_is_as_on_paper(backend, widest, epsilon, optimizer, expected):
    params, grads = tuple({"w": np.asarray([v], widest)} for v in (2.0, 0.5))
    result = one_step(backend, optimizer, params, grads)["w"]
    np.testing.assert_allclose(result, [expected], rtol=4 * epsilon)


# --- what all of them promise ---------------------------------------------------------


@each_optimizer
def test_float32_stays_float32_and_moments_keep_their_shapes(backend, optimizer):
    """One step in float64 would compile the step again, and double the memory."""
    result, moments = walked(backend, optimizer, "float32")
    assert {leaf.dtype.name for leaf in result.values()} == {"float32"}
    before = dict(named_leaves(optimizer.init(problem("float32")[0])))
    after = dict(named_leaves(moments))
    assert list(before) == list(after)
    for path, leaf in before.items():
        assert (leaf.shape, leaf.dtype) == (after[path].shape, after[path].dtype), path
        assert leaf.dtype.name in ("float32", "int32")
        assert leaf.dtype.name == "float32" or path.split(".")[-1] in ("step", "count")


@pytest.mark.parametrize(
    "optimizer",
    [o for o in ALL if isinstance(o, Rule) and not isinstance(o, nn.Muon)],
    ids=str,
)
def test_moments_are_the_steps_taken_and_trees_nested_as_the_parameters(
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
def test_arguments_are_left_alone_and_jit_changes_nothing(
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
def test_an_optimizer_prints_compares_hashes_pickles_and_is_rebuilt(optimizer):
    again = pickle.loads(pickle.dumps(optimizer))
    assert again == optimizer
    assert hash(again) == hash(optimizer)
    assert rebuild(describe(optimizer)) == optimizer
    assert str(optimizer).startswith(type(optimizer).__name__)


def test_every_optimizer_is_held_to_these_tests():
    """Whoever adds one adds a row."""

    def inside(optimizer):
        yield type(optimizer).__name__
        for value in vars(optimizer).values():
            for part in value if isinstance(value, tuple) else (value,):
                part = part[1] if isinstance(part, tuple) else part
                yield from inside(part) if hasattr(part, "update") else ()

    listed = {
        name for name in nn.optimizers.__all__ if name not in ("Optimizer", "Rule")
    }
    assert listed == {name for optimizer in ALL for name in inside(optimizer)}


@pytest.mark.parametrize(
    "optimizer", [Adam(0.01), AdamW(0.01, weight_decay=0.0)], ids=str
)
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
        result = backend.to_numpy(params)["w"]
        expected = t * 0.01 * np.asarray([-1, 1, -1])
        np.testing.assert_allclose(result[:2], expected[:2], rtol=2e-6)
        np.testing.assert_allclose(result[2], expected[2], rtol=2e-5)


def test_a_gradient_that_is_not_finite_is_not_hidden(backend):
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


def test_a_layer_without_parameters_is_no_obstacle_but_a_model_without_any_is(backend):
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
def test_gradients_of_another_nesting_are_refused(backend, optimizer):
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


def test_dicts_that_jit_hands_back_sorted_are_matched_by_name(backend):
    params = {"b": np.ones(2, np.float32), "a": np.zeros(2, np.float32)}
    grads = {"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}
    result = one_step(
        backend, SGD(1.0, momentum=0.5, weight_decay=1.0), params, grads, times=2
    )
    np.testing.assert_array_equal(result["b"], -0.5)  # 1 - 1, then - (0.5 + 0)
    np.testing.assert_array_equal(result["a"], -1.5)  # - 1, then - (0.5 + 1 - 1)


# --- where float32 or an edge needs care ----------------------------------------------


@pytest.mark.parametrize("beta", [0.7, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_the_length_that_radam_waits_for_is_right_to_the_last_digits(
    backend, widest, beta, dtype
):
    """ρ = ρ∞ - 2t βᵗ / (1 - βᵗ) loses four digits of float32 at the first steps of β = 0.9999."""
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


def test_a_gradient_that_never_changes_gives_centred_rmsprop_no_nan(backend):
    """v - m² is 0 up to rounding, of either sign."""
    g = np.linspace(0.1, 3.0, 50, dtype="float32")
    result = one_step(
        backend, nn.RMSprop(1e-6, rho=0.3, centered=True), {"w": 0 * g}, {"w": g}, 60
    )
    assert np.all(np.isfinite(result["w"]))


@pytest.mark.parametrize("size", [0.0, 1e-25])
@each_optimizer
def test_gradients_of_nothing_or_nearly_nothing_give_finite_steps(
    backend, optimizer, size
):
    """In float32 the square of 1e-25 is 0, and so is that of the ε of Adafactor."""
    start, _ = problem("float32")
    zeros = tree_map(lambda p: np.full_like(p, size), start)
    for params in (start, tree_map(np.zeros_like, start)):
        result, _ = walk(
            backend, optimizer, params, [zeros] * 2, compiled(backend, optimizer)
        )
        assert all(np.all(np.isfinite(leaf)) for leaf in result.values())


def test_lamb_takes_the_plain_step_where_a_leaf_is_zero(backend):
    result = one_step(
        backend, nn.LAMB(0.1), {"w": np.zeros(1, "f")}, {"w": np.full(1, 0.5, "f")}
    )
    np.testing.assert_allclose(result["w"], -0.1, rtol=1e-5)


# --- Muon -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (3, 3, 2, 5)])
def test_muon_turns_every_singular_value_into_about_one(backend, draw, shape):
    g = draw(*shape)
    zero = {"w": np.zeros_like(g)}
    moved = one_step(backend, nn.Muon(1.0), zero, {"w": g})["w"]
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1]
    turned = -moved.reshape(fan_in, fan_out) / math.sqrt(max(1.0, fan_out / fan_in))
    left, _, right = np.linalg.svd(g.reshape(fan_in, fan_out), full_matrices=False)
    z = np.diag(left.T @ turned @ right.T)
    np.testing.assert_allclose((left * z) @ right, turned, atol=1e-5)
    assert np.all((z > 0.6) & (z < 1.25))


def test_muon_leaves_vectors_and_what_it_spares_to_the_other_optimizer(
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

# optimizer, the share of a weight that is left after a step without gradient
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
    ("optimizer", "kept"), DECAYING, ids=[str(case[0]) for case in DECAYING]
)
def test_weights_decay_but_biases_and_scales_are_spared(backend, optimizer, kept):
    params = ({"weight": np.ones((2, 3)), "bias": np.ones(3)}, {"scale": np.ones(3)})
    params = tree_map(lambda p: p.astype("float32"), params)
    dense, norm = one_step(backend, optimizer, params, tree_map(np.zeros_like, params))
    np.testing.assert_allclose(dense["weight"], kept, rtol=1e-6)
    np.testing.assert_array_equal(dense["bias"], 1)
    np.testing.assert_array_equal(norm["scale"], 1)


def test_every_vector_that_a_layer_trains_is_spared_and_no_matrix():
    """Whoever gives a leaf a new name says by it whether it decays."""
    axes = {}
    key = nn.random.key(0, xp=nn.backend("numpy").xp)
    for case in layer_cases():
        params, _, _ = case.layer.init(key, case.shape, np.float32)
        for path, leaf in named_leaves(params):
            name = path.split(".")[-1]
            # Repeat stacks what it repeats
            axes[name] = min(leaf.ndim, axes.get(name, 9))
    assert {name for name, least in axes.items() if least < 2} == set(NO_DECAY)


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
def test_a_pattern_fits_the_beginning_or_the_end_of_a_path(pattern, path, expected):
    assert matches(pattern, path) is expected


def test_decays_come_in_the_order_in_which_trees_are_walked():
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
def test_gradients_are_clipped_by_number_by_leaf_or_all_together(
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
    kept, _ = walk(backend, clip(SGD(0.1), limit), start, small)
    assert apart(kept, plain) == 0


OPTIMIZERS_BESIDE_EMPTY = [
    SGD(0.1, momentum=0.9),
    nn.Lion(0.1),
    nn.Adagrad(0.1),
    nn.Adadelta(),
    nn.RMSprop(0.1, centered=True),
    Adam(0.1),
    AdamW(0.1),
    nn.Adamax(0.1),
    nn.NAdam(0.1),
    nn.RAdam(0.1),
    nn.LAMB(0.1),
    nn.Adafactor(0.1),
    nn.Muon(0.1),
    nn.ClipByNorm(Adam(0.1), limit=100.0),
    ClipByGlobalNorm(Adam(0.1), limit=100.0),
    nn.Average(Adam(0.1)),
    nn.Accumulate(Adam(0.1), 1),
]
EXTREMES = [  # gradient, limit, clipped gradient; squares overflow or underflow float32
    ([0.0, 0.0], 1.0, [0.0, 0.0]),
    ([3e20, 4e20], 1.0, [0.6, 0.8]),
    ([3e38, 3e38], 1.0, [0.5**0.5, 0.5**0.5]),  # the norm overflows too
    ([3e-30, 4e-30], 1.0, [3e-30, 4e-30]),
    ([3e-30, 4e-30], 5e-31, [3e-31, 4e-31]),
]


@pytest.mark.parametrize("clip", [nn.ClipByNorm, ClipByGlobalNorm])
def test_gradients_are_clipped_though_their_squares_overflow_or_underflow(
    backend, clip
):
    params = {"v": np.zeros((0, 3), "float32"), "w": np.zeros(2, "float32")}
    for g, limit, expected in EXTREMES:
        grads = {"v": np.zeros((0, 3), "float32"), "w": np.asarray(g, "float32")}
        moved = one_step(backend, clip(SGD(1.0), limit=limit), params, grads)
        np.testing.assert_allclose(-moved["w"], expected, rtol=1e-6, atol=0)


SQUARES = [Adam(), nn.RMSprop(), nn.Adagrad(), nn.Adadelta()]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_gradient_whose_square_overflows_stops_its_number_for_good(backend):
    """As docs/accuracy.md says; its neighbours go on, and clipping keeps it in range."""
    start = {"weight": backend.asarray(np.ones(3, np.float32))}
    large, usual = (
        {"weight": np.asarray([g, 1.0, 1.0], np.float32)} for g in (2e19, 1.0)
    )
    for optimizer in SQUARES:
        for around, moves in (
            (optimizer, False),
            (ClipByGlobalNorm(optimizer, limit=1.0), True),
        ):
            params, moments = start, around.init(start)
            for grads in (large, usual, usual):
                params, moments = around.update(params, backend.asarray(grads), moments)
            first, *others = backend.to_numpy(params)["weight"]
            assert (first != 1.0) == moves, around
            assert all(0.5 < other < 1.0 for other in others), around


def test_a_gradient_of_nan_is_nan_for_all_after_clipping(backend):
    params = {"w": np.zeros(2, "float32")}
    grads = {"w": np.asarray([np.nan, 1.0], "float32")}
    for clip in (nn.ClipByNorm, ClipByGlobalNorm):
        moved = one_step(backend, clip(SGD(1.0)), params, grads)
        assert np.isnan(moved["w"]).all()


def test_the_ratio_of_lamb_is_right_though_squares_overflow(backend):
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


def test_muon_turns_a_matrix_whose_squares_overflow(backend):
    params = {"w": np.zeros((2, 3), "float32")}
    grads = {"w": np.asarray([[1.0, 2.0, 3.0], [-1.0, 1.0, 0.0]], "float32")}
    huge = {"w": grads["w"] * np.float32(1e20)}
    moved, far = (
        one_step(backend, nn.Muon(0.1), params, g)["w"] for g in (grads, huge)
    )
    np.testing.assert_allclose(far, moved, rtol=1e-4)


def test_adafactor_measures_parameters_whose_squares_overflow(backend):
    optimizer, g = nn.Adafactor(1e-2), {"w": np.ones(2, "float32")}
    near, far = (
        one_step(backend, optimizer, {"w": np.full(2, size, "float32")}, g)["w"] / size
        for size in (1.0, 1e20)
    )
    np.testing.assert_allclose(far, near, rtol=1e-5)


def test_empty_and_scalar_parameters_leave_a_matrix_alone(backend):
    """A matrix moves next to a (0, 3) and a 0-d parameter as it does alone."""

    def steps(params, grads):
        return [
            o.update(params, grads, o.init(params)) for o in OPTIMIZERS_BESIDE_EMPTY
        ]

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
        OPTIMIZERS_BESIDE_EMPTY, *result, strict=True
    ):
        assert moved["empty"].shape == (0, 3), optimizer
        assert moved["scalar"].shape == (), optimizer
        assert all(np.isfinite(leaf).all() for leaf in leaves((moved, moments))), (
            optimizer
        )
        np.testing.assert_allclose(moved["weight"], alone["weight"], rtol=1e-6)


# --- accumulating, averaging, scaling -------------------------------------------------


def test_small_batches_summed_up_do_what_one_large_batch_does(
    backend, widest, epsilon, draw
):
    """Twice four batches of 5, against two of 20, through a model and a loss."""
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
    # Adam turns a rounding of a small gradient into one of its step
    tree_map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=200 * epsilon), small, large
    )
    assert summed["inner"]["step"] == plain["step"] == 2
    assert summed["count"] == 0
    assert not any(np.any(leaf) for leaf in leaves(summed["total"]))


def test_parameters_stand_still_until_enough_gradients_are_summed_up(backend):
    start, grads = problem("float32")
    result, moments = walk(backend, nn.Accumulate(SGD(0.1), 5), start, grads)
    for path, leaf in result.items():
        assert [len(np.unique(leaf[i : i + 5], axis=0)) for i in range(4, 20, 5)] == [
            1
        ] * 4, path
        np.testing.assert_array_equal(leaf[3], dict(named_leaves(start))[path])
        assert np.all(leaf[4] != leaf[3])
    assert (moments["count"], moments["inner"]["step"]) == (STEPS % 5, STEPS // 5)


def test_a_schedule_counts_the_steps_that_are_taken(backend):
    rate = Piecewise((1.0, 2.0, 4.0), starts=(1, 2))
    params, grads = {"w": np.zeros(1, "f")}, {"w": np.ones(1, "f")}
    result = one_step(backend, nn.Accumulate(SGD(rate), 2), params, grads, times=6)
    np.testing.assert_array_equal(result["w"], -7)


def test_the_average_is_the_mean_of_what_was_reached_with_weights_that_fade(
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
    reached = []
    for g in grads[:6]:
        params, moments = optimizer.update(params, backend.asarray(g), moments)
        reached.append(backend.to_numpy(params)[0]["weight"])
        weights = 0.8 ** np.arange(len(reached))[::-1]
        result = backend.to_numpy(averaged(params, moments))[0]["weight"]
        np.testing.assert_allclose(result, np.average(reached, 0, weights), rtol=1e-5)
    plain = SGD(0.1, momentum=0.9)
    expected, _ = walk(backend, plain, start, grads[:6], plain.update)
    np.testing.assert_array_equal(reached, expected["0.weight"])


def test_a_slow_average_is_right_from_the_first_step_in_float32(backend):
    optimizer = nn.Average(SGD(0.1), decay=0.9999)
    params = backend.asarray({"w": np.full(3, 0.7, "f")})
    moments = optimizer.init(params)
    for _ in range(3):
        params, moments = optimizer.update(
            params, tree_map(lambda p: 0.0 * p, params), moments
        )
        result = backend.to_numpy(optimizer.averaged(params, moments))["w"]
        np.testing.assert_allclose(result, 0.7, rtol=1e-6)


def test_a_step_at_scale_one_is_the_very_step_and_a_half_is_half_of_it(backend):
    start, grads = problem("float32")
    params, g = backend.asarray((start, grads[0]))
    optimizer = nn.Scaled(Adam(0.1))
    moments = optimizer.init(params)
    whole, _ = Adam(0.1).update(params, g, Adam(0.1).init(params))
    result, after = optimizer.update(params, g, moments)
    tree_map(
        np.testing.assert_array_equal, backend.to_numpy(result), backend.to_numpy(whole)
    )
    assert float(after["scale"]) == 1.0
    halved = moments | {"scale": 0.5 * moments["scale"]}
    result, after = optimizer.update(params, g, halved)
    expected = tree_map(lambda p, q: 0.5 * (p + q), start, backend.to_numpy(whole))
    tree_map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        backend.to_numpy(result),
        expected,
    )
    assert float(after["scale"]) == 0.5


def test_what_does_not_move_is_not_changed_by_a_bit_at_any_scale(backend):
    start, _ = problem("float32")
    optimizer = nn.Scaled(SGD(0.1))
    params = backend.asarray(start)
    moments = optimizer.init(params)
    moments = moments | {"scale": 0.3 * moments["scale"]}
    zeros = tree_map(lambda p: 0.0 * p, params)
    result, _ = backend.jit(optimizer.update)(params, zeros, moments)
    tree_map(np.testing.assert_array_equal, backend.to_numpy(result), start)


# --- parts ----------------------------------------------------------------------------


def test_each_part_moves_as_its_optimizer_alone_would(backend, widest, epsilon):
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
    kept = {path for path, _ in named_leaves(moments)}
    assert kept == {
        "parts.1.step",
        "parts.1.m.2.0.weight",
        "rest.step",
        *(f"rest.{name}.{path}" for name in "mv" for path in ("0.weight", "3.slope")),
    }


def test_a_leaf_belongs_to_the_first_part_that_fits(backend):
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


def test_training_goes_on_from_a_file_as_if_it_had_not_stopped(backend, tmp_path):
    """Nested moments of every kind, donated to a compiled step, saved and loaded."""
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
    again = nn.Trainer.load(tmp_path / "a", backend=backend)
    for one in (trainer, again):
        one.fit(x, labels, epochs=1, batch_size=8, verbose=0)
    result, other = (
        backend.to_numpy((one.params, one.moments)) for one in (trainer, again)
    )
    tree_map(np.testing.assert_array_equal, result, other)
    tree_map(np.testing.assert_array_equal, result[0][0], before[0])
    assert np.all(result[0][2]["weight"] != before[2]["weight"])


# --- refusals -------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
WRONG = [  # what to make, error, message
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
    (lambda: SGD(0.1, momentum=1.0), ValueError, r"momentum in \[0, 1\), got 1.0"),
    (lambda: SGD(0.1, momentum=-0.1), ValueError, r"momentum in \[0, 1\), got -0.1"),
    (lambda: SGD(0.1, momentum="a"), TypeError, "momentum to be a number, got 'a'"),
    (lambda: SGD(0.1, nesterov=True), ValueError, "nesterov needs a momentum above 0"),
    (lambda: SGD(0.1, weight_decay=-1.0), ValueError, "decay of at least 0, got -1.0"),
    (lambda: SGD(0.1, weight_decay=NAN), ValueError, "decay of at least 0, got nan"),
    (lambda: SGD(0.1, weight_decay=INF), ValueError, "decay of at least 0, got inf"),
    (lambda: SGD(0.1, weight_decay="a"), TypeError, "decay to be a number, got 'a'"),
    (
        lambda: SGD(no_decay="bias"),
        TypeError,
        "no_decay to be a tuple of paths, got 'bias'",
    ),
    (
        lambda: AdamW(no_decay=(1,)),
        TypeError,
        r"no_decay to be a tuple of paths, got \(1,\)",
    ),
    (lambda: Adam(beta1=1.0), ValueError, r"beta1 in \[0, 1\), got 1.0"),
    (lambda: Adam(beta2=-0.5), ValueError, r"beta2 in \[0, 1\), got -0.5"),
    (lambda: Adam(beta2=NAN), ValueError, r"beta2 in \[0, 1\), got nan"),
    (lambda: Adam(epsilon=0.0), ValueError, "epsilon above 0, got 0.0"),
    (lambda: Adam(epsilon=NAN), ValueError, "epsilon above 0, got nan"),
    (lambda: AdamW(weight_decay=-1.0), ValueError, "decay of at least 0, got -1.0"),
    (lambda: AdamW(beta1=2.0), ValueError, r"beta1 in \[0, 1\), got 2.0"),
    (lambda: nn.Lion(beta1=1.0), ValueError, r"beta1 in \[0, 1\), got 1.0"),
    (lambda: nn.Lion(beta2=1.0), ValueError, r"beta2 in \[0, 1\), got 1.0"),
    (lambda: nn.Adagrad(initial=-1.0), ValueError, "initial of at least 0, got -1.0"),
    (lambda: nn.Adagrad(epsilon=0.0), ValueError, "epsilon above 0, got 0.0"),
    (lambda: nn.Adadelta(rho=1.0), ValueError, r"rho in \[0, 1\), got 1.0"),
    (lambda: nn.Adadelta(epsilon=0.0), ValueError, "epsilon above 0, got 0.0"),
    (lambda: nn.RMSprop(rho=1.0), ValueError, r"rho in \[0, 1\), got 1.0"),
    (lambda: nn.RMSprop(epsilon=0.0), ValueError, "epsilon above 0, got 0.0"),
    (lambda: nn.RMSprop(momentum=1.0), ValueError, r"momentum in \[0, 1\), got 1.0"),
    (
        lambda: nn.NAdam(momentum_decay=-1.0),
        ValueError,
        "decay of at least 0, got -1.0",
    ),
    (lambda: nn.Adafactor(power=-1.0), ValueError, "power of at least 0, got -1.0"),
    (lambda: nn.Adafactor(limit=0.0), ValueError, "limit above 0, got 0.0"),
    (lambda: nn.Adafactor(epsilon1=0.0), ValueError, "epsilon1 above 0, got 0.0"),
    (lambda: nn.Adafactor(epsilon2=0.0), ValueError, "epsilon2 above 0, got 0.0"),
    (lambda: nn.Muon(momentum=1.0), ValueError, r"momentum in \[0, 1\), got 1.0"),
    (
        lambda: nn.Muon(coefficients=(1.0, 2.0)),
        ValueError,
        r"three coefficients, got \(1.0, 2.0",
    ),
    (lambda: nn.Muon(coefficients=(1, 2, NAN)), ValueError, "coefficient c, got nan"),
    (lambda: nn.Muon(iterations=0), ValueError, "iterations of at least 1, got 0"),
    (lambda: nn.Muon(epsilon=0.0), ValueError, "epsilon above 0, got 0.0"),
    (lambda: nn.Muon(others=0.1), TypeError, r"an optimizer such as Adam\(\), got 0.1"),
    (lambda: ClipByGlobalNorm(SGD(), 0.0), ValueError, "limit above 0, got 0.0"),
    (lambda: ClipByGlobalNorm(SGD(), -1.0), ValueError, "limit above 0, got -1.0"),
    (lambda: ClipByGlobalNorm(SGD(), INF), ValueError, "limit above 0, got inf"),
    (
        lambda: nn.ClipByValue(Adam),
        TypeError,
        r"an optimizer, got the class Adam: write Adam",
    ),
    (lambda: nn.L2(SGD(), -1.0), ValueError, "penalty of at least 0, got -1.0"),
    (lambda: nn.L2(None), TypeError, "an optimizer such as"),
    (
        lambda: nn.L2(SGD(), 1.0, no_decay="bias"),
        TypeError,
        "no_decay to be a tuple of paths, got 'bias'",
    ),
    (lambda: nn.Accumulate(SGD(), 0), ValueError, "every of at least 1, got 0"),
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
    (lambda: nn.Accumulate(3, 3), TypeError, "an optimizer such as"),
    (lambda: nn.Average(SGD(), 1.0), ValueError, r"decay in \[0, 1\), got 1.0"),
    (lambda: nn.Average(3), TypeError, "an optimizer such as"),
    (lambda: nn.Scaled("Adam"), TypeError, "an optimizer such as"),
    (lambda: nn.Parts((("0", None),)), TypeError, "an optimizer such as"),
    (lambda: nn.Parts((("0", SGD()),), rest=0.1), TypeError, "an optimizer such as"),
    (
        lambda: nn.Parts((("0",),)),
        ValueError,
        "pairs of a pattern and an optimizer, got",
    ),
    (
        lambda: nn.Parts(((0, SGD()),)),
        TypeError,
        "patterns to be a tuple of paths, got",
    ),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), WRONG, ids=[case[2] for case in WRONG]
)
def test_bad_hyper_parameters_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
