"""Tests of every layer and block in `cases`."""

import pickle
from collections import Counter
from functools import cache

import numpy as np
import pytest
from cases import Case, arrays_for, layer_cases, run, without_twin

import agnostic_nn as nn
from agnostic_nn import check
from agnostic_nn.core.arrays import device
from agnostic_nn.core.trees import leaves, named_leaves, tree_map

CASES = layer_cases()
each_case = pytest.mark.parametrize("case", CASES, ids=str)
EPS = np.finfo("float32").eps


@pytest.fixture(autouse=True)
def _sweeps_are_for_backends_that_do_not_compile(request, thorough):
    case = (
        request.node.callspec.params.get("case")
        if hasattr(request.node, "callspec")
        else None
    )
    if case is not None and case.thorough and not thorough:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")


@each_case
def test_it_passes_every_oracle_in_float64(backend, case):
    """`check` lists the oracles; automatic differentiation of a backend is one."""
    if not backend.has_float64:
        pytest.skip(
            "float64 is switched off here; the session that has it on does this"
        )
    arrays = arrays_for(case)
    count = 1 + len(leaves(arrays["params"])) + len(leaves(arrays["x"]))
    # of each leaf; the adjoint test sees them all
    few = min(50, max(4, 800 // count**2))
    report = check(
        case.layer, case.shape, backends=[backend], draw=case.draw, elements=few
    )
    assert report.worst.error < 1e-9 * case.slack
    refused = {(r.oracle, r.mode) for r in report.rows if r.leaf == "(refused)"}
    assert refused <= {(f"batch of {size}", "train") for size in case.refuses}


@cache
def computed(backend, case):
    """Return the arrays here and there, and results there and of NumPy in float64."""

    def everything(arrays):
        predicted = {
            f"of {size}": run(case.layer, arrays, size=size) for size in (0, 1)
        }
        return {"train": run(case.layer, arrays, train=True), **predicted}

    arrays = arrays_for(case)
    there = backend.asarray(arrays)
    wide = tree_map(
        lambda a: a.astype("float64") if a.dtype == "float32" else a, arrays
    )
    return arrays, there, backend.jit(everything)(there), everything(wide)


def assert_close(actual, expected, tolerance):
    """Compare relative to the largest number of a leaf, or to 1 if that is larger."""
    for (name, a), b in zip(named_leaves(actual), leaves(expected), strict=True):
        scale = np.max(np.abs(b), initial=1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


@each_case
def test_float32_stays_float32_and_is_right_to_its_digits(backend, case):
    _, _, result, wide = computed(backend, case)
    result = backend.to_numpy(result)
    for name, leaf in named_leaves(result):
        integers = {"key": "uint32", "indices": "int32"}
        expected = integers.get(name.rpartition(".")[2], "float32")
        assert leaf.dtype == expected, name
    assert_close(result, wide, 16 * case.slack * EPS)


@each_case
def test_less_asked_for_is_the_same(backend, case):
    """`predict` equals `forward`, and `backward_params` the gradients of `backward`."""
    result = backend.to_numpy(computed(backend, case)[2])
    for size in ("of 0", "of 1"):
        whole = result[size]
        assert_close(whole["predicted"], whole["y"], 16 * EPS)
        assert_close(whole["learned"], whole["grads"], 16 * EPS)


@each_case
def test_arguments_are_left_alone(backend, case):
    arrays, there, *_ = computed(backend, case)
    for (name, arguments), now in zip(named_leaves(arrays), leaves(there), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(now), arguments, err_msg=name)


@each_case
def test_everything_stays_on_the_device_it_came_from(backend, case):
    _, there, result, _ = computed(backend, case)
    for name, leaf in named_leaves(result):
        assert device(leaf) == device(leaves(there["x"])[0]), name


def test_every_example_has_a_twin_in_pytorch():
    """tests/test_check_command.py says which layers and losses lack an example."""
    lines = without_twin(CASES)
    assert not lines, lines


def test_no_case_stands_twice():
    rows = Counter(f"{case.layer!r} {case.shape}" for case in CASES)
    assert [row for row, count in rows.items() if count > 1] == []


def test_an_example_without_a_twin_is_named():
    twin, alone = Case(nn.Tanh(), (5,), "no twin here"), Case(nn.GELU(), (5,))
    (line,) = without_twin([twin, alone, alone])
    assert line.startswith(
        "add to TWINS in a file of tests/cases: nn.GELU: lambda t, g"
    )


def test_jit_changes_nothing(backend):
    model = nn.Sequential(
        nn.Embedding(5, 2),
        nn.Flatten(),
        nn.Dense(6, bias=False),
        nn.BatchNorm(),
        nn.Dropout(0.2),
        nn.Residual(nn.LayerNorm(), nn.Dense(6), nn.GELU()),
        nn.Reshape((2, 3)),
        nn.Softmax(),
    )
    there = backend.asarray(arrays_for(Case(model, (3,), "only here")))
    compiled = backend.jit(lambda arrays: run(model, arrays, train=True))(there)
    assert_close(*backend.to_numpy((compiled, run(model, there, train=True))), 16 * EPS)


def test_init_makes_arrays_on_the_device_of_the_key(backend, thorough):
    if backend.compiles and not thorough:
        pytest.skip("all layers at once, which takes a compiler long: nox -s sweep")
    xp = backend.xp
    key = nn.random.key(0, xp=xp, device=backend.device)
    one_of_each = {type(case.layer): case for case in CASES}.values()

    def init_all(key):
        return tuple(
            case.layer.init(key, case.shape, xp.float32)[:2] for case in one_of_each
        )

    for name, leaf in named_leaves(backend.jit(init_all)(key)):
        assert device(leaf) == device(key), name
        assert leaf.dtype == (xp.uint32 if name.endswith("key") else xp.float32), name


@each_case
def test_layers_print_compare_hash_and_pickle(case):
    layer = case.layer
    assert repr(layer).startswith(type(layer).__name__ + "(")
    again = pickle.loads(pickle.dumps(layer))
    assert again == layer
    assert hash(again) == hash(layer)


def test_layers_that_differ_are_unequal():
    several = [case.layer for case in CASES] + [
        nn.Reshape((-1,)),
        nn.Residual(nn.Tanh()),
    ]
    assert len(set(several)) == len({(type(layer), repr(layer)) for layer in several})


def test_a_layer_can_be_a_static_argument_of_jit():
    jax = pytest.importorskip("jax", reason="only JAX knows static arguments")
    traced = []

    @jax.jit(static_argnums=0)
    def forward(layer, x):
        traced.append(layer)
        return layer.forward({}, {}, x)[0]

    x = jax.numpy.ones(3)
    for layer in (nn.ELU(2.0), nn.ELU(2.0), nn.ELU(3.0)):
        forward(layer, x)
    assert traced == [nn.ELU(2.0), nn.ELU(3.0)]
