"""The loop over time: its results, and that backends compile one step of it."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.ops import scan, scan_impl

versions = pytest.mark.parametrize("version", ["native", "standard"])


def loop(version):
    """Return `scan`, or its version that uses the Standard only."""
    if version == "native":
        return scan
    standard = scan_impl.dispatch(object)

    def standard_scan(step, carry, xs, *, reverse=False, transform=lambda y: y):
        return standard(leaves(xs)[0], step, carry, xs, reverse, transform)

    return standard_scan


def step(carry, now):
    """Add x to twice the total, so that the order of steps matters."""
    total, named = carry
    x, (row,) = now["x"], now["rows"]
    total = 2.0 * total + x
    named = {"last": row, "count": named["count"] + 1}
    return (total, named), {
        "total": total,
        "pair": (row * total, ()),
        "before": carry[1]["last"],
    }


def by_hand(carry, xs, reverse):
    ys, steps = [], range(len(xs["x"]))
    for t in reversed(steps) if reverse else steps:
        carry, y = step(carry, {"x": xs["x"][t], "rows": (xs["rows"][0][t],)})
        ys.append(y)
    ys = ys[::-1] if reverse else ys
    return carry, tree_map(lambda *leaves: np.stack(leaves), *ys)


@versions
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_loop_carries_a_tree_and_stacks_the_results_of_its_steps(
    backend, widest, version, reverse, length
):
    """Small integers, exact in every dtype; y[t] is at index t in both directions."""
    generator = np.random.default_rng(length)

    def integers(*shape):
        return generator.integers(-4, 5, shape).astype(widest)

    xs = {"x": integers(length), "rows": (integers(length, 2, 3),)}
    carry = (integers(), {"last": integers(2, 3), "count": np.asarray(5, np.int32)})
    expected = by_hand(carry, xs, reverse)
    for jit in (backend.jit, lambda function: function):
        run = jit(lambda carry, xs: loop(version)(step, carry, xs, reverse=reverse))
        result = backend.to_numpy(run(*backend.asarray((carry, xs))))
        pairs = zip(named_leaves(result), named_leaves(expected), strict=True)
        for (name, ours), (_, theirs) in pairs:
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@versions
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_loop_returns_its_results_as_transformed(backend, widest, version, reverse):
    """The transform is applied to each y or to all at once."""
    xs = np.arange(6).astype(widest).reshape(3, 2)

    def run(xs):
        def step(total, x):
            return total + x, {"total": total, "x": x}

        def product(y):
            return (y["total"] * y["x"],)

        return loop(version)(step, xs[0, :], xs, reverse=reverse, transform=product)

    total, (result,) = backend.to_numpy(backend.jit(run)(backend.asarray(xs)))
    before = np.cumsum([xs[0], *(xs[::-1] if reverse else xs)], axis=0)
    expected = before[:-1] * (xs[::-1] if reverse else xs)
    np.testing.assert_array_equal(result, expected[::-1] if reverse else expected)
    np.testing.assert_array_equal(total, before[-1])


@versions
def test_a_step_may_return_nothing(backend, widest, version):
    xs = backend.asarray((np.arange(5).astype(widest),))
    run = loop(version)
    (total,), ys = run(lambda carry, now: ((carry[0] + now[0],), ()), (xs[0][0],), xs)
    assert float(total) == 10.0
    assert ys == ()


@pytest.mark.parametrize("lengths", [(2, 3), (0, 0), ()], ids=str)
def test_unequal_lengths_and_lengths_of_0_are_refused(backend, lengths):
    xs = tuple(
        backend.xp.zeros((length, 2), device=backend.device) for length in lengths
    )
    with pytest.raises(
        ValueError, match=r"expected one length of at least 1 to loop over, got"
    ):
        scan(lambda carry, now: (carry, ()), (), xs)


def test_jax_traces_a_step_equally_often_for_long_and_short_loops():
    jax = pytest.importorskip("jax", reason="only JAX compiles a loop")
    nn.backend("jax")  # registers the versions for JAX
    counts = []
    for length in (2, 200):
        calls = []

        def step(carry, x, calls=calls):
            calls.append(x)
            return carry + x, carry

        jax.make_jaxpr(lambda xs, step=step: scan(step, xs[0], xs))(
            jax.numpy.ones(length)
        )
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
