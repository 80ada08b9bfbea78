"""The loop over time: what it computes, and that a backend which compiles it compiles one step."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.ops import scan, scan_impl

ways = pytest.mark.parametrize("way", ["native", "standard"])


def loop(way):
    """`scan`, or the part of it that is written with the Standard alone."""
    if way == "native":
        return scan
    standard = scan_impl.dispatch(object)

    def scan_by_the_standard(step, carry, xs, *, reverse=False, transform=lambda y: y):
        return standard(leaves(xs)[0], step, carry, xs, reverse, transform)

    return scan_by_the_standard


def step(carry, now):
    """Order matters in it: what is carried doubles before the next one is added."""
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
    ys, places = [], range(len(xs["x"]))
    for t in reversed(places) if reverse else places:
        carry, y = step(carry, {"x": xs["x"][t], "rows": (xs["rows"][0][t],)})
        ys.append(y)
    ys = ys[::-1] if reverse else ys
    return carry, tree_map(lambda *leaves: np.stack(leaves), *ys)


@ways
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_loop_carries_a_tree_and_stacks_what_each_step_makes(
    backend, widest, way, reverse, length
):
    """Small whole numbers, exact in every dtype; y[t] stands at t in either direction."""
    generator = np.random.default_rng(length)

    def whole(*shape):
        return generator.integers(-4, 5, shape).astype(widest)

    xs = {"x": whole(length), "rows": (whole(length, 2, 3),)}
    carry = (whole(), {"last": whole(2, 3), "count": np.asarray(5, np.int32)})
    expected = by_hand(carry, xs, reverse)
    for jit in (backend.jit, lambda function: function):
        run = jit(lambda carry, xs: loop(way)(step, carry, xs, reverse=reverse))
        result = backend.to_numpy(run(*backend.asarray((carry, xs))))
        pairs = zip(named_leaves(result), named_leaves(expected), strict=True)
        for (name, ours), (_, theirs) in pairs:
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@ways
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_what_a_loop_makes_is_handed_out_as_then_makes_it(
    backend, widest, way, reverse
):
    """Of each y or of all at once: the same, with fewer parts here than each step made."""
    xs = np.arange(6).astype(widest).reshape(3, 2)

    def run(xs):
        def step(total, x):
            return total + x, {"total": total, "x": x}

        def then(y):
            return (y["total"] * y["x"],)

        return loop(way)(step, xs[0, :], xs, reverse=reverse, transform=then)

    total, (result,) = backend.to_numpy(backend.jit(run)(backend.asarray(xs)))
    before = np.cumsum([xs[0], *(xs[::-1] if reverse else xs)], axis=0)
    expected = before[:-1] * (xs[::-1] if reverse else xs)
    np.testing.assert_array_equal(result, expected[::-1] if reverse else expected)
    np.testing.assert_array_equal(total, before[-1])


@ways
def test_a_step_may_make_nothing(backend, widest, way):
    xs = backend.asarray((np.arange(5).astype(widest),))
    run = loop(way)
    (total,), ys = run(lambda carry, now: ((carry[0] + now[0],), ()), (xs[0][0],), xs)
    assert float(total) == 10.0
    assert ys == ()


@pytest.mark.parametrize("lengths", [(2, 3), (0, 0), ()], ids=str)
def test_lengths_that_differ_or_are_none_are_refused(backend, lengths):
    xs = tuple(
        backend.xp.zeros((length, 2), device=backend.device) for length in lengths
    )
    with pytest.raises(
        ValueError, match=r"expected one length of at least 1 to loop over, got"
    ):
        scan(lambda carry, now: (carry, ()), (), xs)


def test_jax_traces_a_step_as_often_for_a_long_loop_as_for_a_short_one():
    jax = pytest.importorskip("jax", reason="only JAX compiles a loop")
    nn.backend("jax")  # registers what JAX does better
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
