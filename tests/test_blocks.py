"""Blocks and graphs: refused input, initialization, caches, and special training modes.

Their gradients are tested with the cases of `cases/structure.py`.
"""

import math
import pickle

import numpy as np
import pytest
from cases import named

import agnostic_nn as nn
from agnostic_nn.core.arrays import RowMask, namespace
from agnostic_nn.core.trees import leaves, named_leaves, tree_map, tree_sum
from agnostic_nn.diagnostics.examples import every_other
from agnostic_nn.ops import barrier, barrier_impl

HOST = nn.backend("numpy").xp


def start(layer, shape, seed=0):
    """Return float32 params and state on the host, away from their initial values."""
    params, state, _ = layer.init(nn.random.key(seed, xp=HOST), shape, HOST.float32)
    generator = np.random.default_rng(seed)

    def moved(leaf):
        return leaf + generator.uniform(0.1, 0.5, leaf.shape).astype("float32")

    return tree_map(moved, params), state


def both_ways(layer, params, state, x, dy, train):
    """Return all results of forward and backward."""
    y, after, cache = layer.forward(params, state, x, train=train)
    dx, grads = layer.backward(params, cache, dy)
    return {"y": y, "state": after, "dx": dx, "grads": grads}


def assert_same_bits(actual, expected):
    actual, expected = dict(named_leaves(actual)), dict(named_leaves(expected))
    assert list(actual) == list(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(actual[name], leaf, err_msg=name)


def draws(*shape):
    return np.random.default_rng(7).standard_normal(shape).astype("float32")


# --- refused input --------------------------------------------------------------------

DENSE, TANH = nn.Dense(3), nn.Tanh()
MALFORMED = [
    (lambda: nn.Sequential(DENSE, "x"), TypeError, "argument 1 is 'x'"),
    (lambda: nn.Residual(DENSE, shortcut="x"), TypeError, "expected layers"),
    (lambda: nn.Parallel(DENSE, "sum"), TypeError, "argument 1 is 'sum'"),
    (lambda: nn.Parallel(), ValueError, "at least one layer"),
    (
        lambda: nn.Parallel(DENSE, join="mean"),
        ValueError,
        "'multiply' or None, got 'mean'",
    ),
    (
        lambda: nn.Parallel(DENSE, nn.Embedding(3, 3)),
        ValueError,
        "x would have to be real floating and integral",
    ),
    (lambda: nn.Repeat(DENSE, 0), ValueError, "count of at least 1, got 0"),
    (lambda: nn.Repeat("x", 2), TypeError, "expected layers"),
    (lambda: nn.Recompute(None), TypeError, "expected layers"),
    (lambda: nn.Freeze({}), TypeError, "expected layers"),
    (lambda: nn.Lambda(3), TypeError, "expected function to be a function of"),
    (
        lambda: nn.Transpose((1, 1)),
        ValueError,
        r"expected 1 to 2 in some order, got \(1, 1\)",
    ),
    (
        lambda: nn.Transpose((0, 1)),
        ValueError,
        r"expected 1 to 2 in some order, got \(0, 1\)",
    ),
    (lambda: nn.Graph(), ValueError, "at least one node"),
    (
        lambda: nn.Graph(a=DENSE),
        TypeError,
        r"expected a=\(layer, what it reads, ...\), got Dense",
    ),
    (lambda: nn.Graph(a=(DENSE,)), TypeError, r"expected a=\(layer, what it reads"),
    (
        lambda: nn.Graph(a=("x", DENSE)),
        TypeError,
        "expected layers, but argument 0 is 'x'",
    ),
    (lambda: nn.Graph(a=(DENSE, 3)), TypeError, "a tuple or a dict of them, got 3"),
    (lambda: nn.Graph(a=(DENSE, ())), TypeError, "a tuple or a dict of them"),
    (
        lambda: nn.Graph(a=(DENSE, "x", {"x": "y"})),
        TypeError,
        "a reads one name, several names",
    ),
    (
        lambda: nn.Graph(**{"a.b": (DENSE, "x")}),
        ValueError,
        "a name without a dot, got 'a.b'",
    ),
    (lambda: nn.Graph(a=(DENSE, "a")), ValueError, "a reads 'a', not yet made there"),
    (
        lambda: nn.Graph(a=(DENSE, "b"), b=(TANH, "x")),
        ValueError,
        "a reads 'b', not yet made there",
    ),
    (
        lambda: nn.Graph(a=(DENSE, "x"), b=(TANH, "x"), c=(TANH, "b")),
        ValueError,
        r"no node reads \['a'\]",
    ),
    (
        lambda: nn.Graph(a=(DENSE, "x"), outputs="b"),
        ValueError,
        "'b', which is neither node",
    ),
    (
        lambda: nn.Graph(a=(DENSE, "x"), outputs=("a", "b.0")),
        ValueError,
        "'b', which is neither node",
    ),
    (
        lambda: nn.Graph(
            a=(nn.Embedding(3, 3), "x"), b=(DENSE, "x"), c=(nn.Add(), "a", "b")
        ),
        ValueError,
        "x would have to be integral and real floating at once",
    ),
    (
        lambda: nn.Graph(a=(nn.Shared("b"), "x")),
        ValueError,
        "a shares 'b', which is not a node before",
    ),
    (
        lambda: nn.Graph(a=(nn.Shared("b"), "x"), b=(DENSE, "a")),
        ValueError,
        "a shares 'b', which is not a node before",
    ),
    (
        lambda: nn.Graph(a=(nn.Sequential(DENSE), "x"), b=(nn.Shared("a.0"), "a")),
        ValueError,
        "b shares 'a.0', which is not a node before",
    ),
    (
        lambda: nn.Graph(
            a=(DENSE, "x"), b=(nn.Shared("a"), "a"), c=(nn.Shared("b"), "b")
        ),
        ValueError,
        "c shares 'b', which is not a node before",
    ),
    (lambda: nn.Shared(DENSE), TypeError, "expected the name of a node"),
    (lambda: nn.Shared("a", "b"), TypeError, "expected layers"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), MALFORMED, ids=[row[2] for row in MALFORMED]
)
def test_a_malformed_block_is_refused_by_its_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


WRONG_SHAPES = [  # layer, shape, message
    (nn.Residual(nn.Dense(4)), (3,), r"their shapes are \(3,\) and \(4,\)"),
    (
        nn.Residual(nn.Dense(4), shortcut=nn.Dense(5)),
        (3,),
        r"their shapes are \(5,\) and \(4,\)",
    ),
    (nn.Parallel(nn.Dense(4), TANH), (3,), r"one shape, got \(\(4,\), \(3,\)\)"),
    (nn.Parallel(nn.Dense(4), TANH, join="concatenate"), (2, 3), None),
    (nn.Parallel(nn.Flatten(), TANH, join="concatenate"), (2, 3), "others must agree"),
    (nn.Repeat(nn.Dense(4), 2), (3,), r"keeps \(3,\), but .* makes \(4,\)"),
    (
        nn.Repeat(nn.Graph(a=(nn.Add(), "y", "z")), 2),
        {"y": (3,), "z": (3,)},
        "a layer that keeps",
    ),
    (nn.Add(), (3,), r"Add takes a tuple of arrays, got one of shape \(3,\)"),
    (nn.Add(), ((3,), (2, 3)), r"one shape, got \(\(3,\), \(2, 3\)\)"),
    (nn.Concatenate(axis=0), ((3,), (3,)), "axis 0 is the batch"),
    (nn.Concatenate(axis=-2), ((3,), (3,)), "axis 0 is the batch"),
    (nn.Concatenate(axis=2), ((3,), (3,)), "axis 2 does not exist"),
    (nn.Concatenate(axis=1), ((3, 2), (3, 1)), "the others must agree"),
    (nn.Concatenate(), ((3, 2), (2,)), "the others must agree"),
    (nn.Transpose((2, 1)), (3,), r"orders 2 axes, got \(batch, \*\(3,\)\)"),
    (
        nn.Graph(a=(DENSE, "x"), b=(TANH, "y"), c=(nn.Add(), "a", "b")),
        (3,),
        "without names",
    ),
    (
        nn.Graph(a=(DENSE, "x"), b=(TANH, "y"), c=(nn.Add(), "a", "b")),
        {"x": (3,), "z": (3,)},
        r"Graph takes \['x', 'y'\], got \['x', 'z'\]",
    ),
    (
        nn.Graph(a=(DENSE, "x"), b=(TANH, "a.0")),
        (3,),
        r"'a\.0' leads nowhere: there are \[\]",
    ),
    (
        nn.Graph(a=(nn.Parallel(DENSE, TANH, join=None), "x"), b=(TANH, "a.2")),
        (3,),
        r"'a\.2' leads nowhere: there are \['0', '1'\]",
    ),
    (
        nn.Graph(a=(DENSE, "x"), b=(nn.Shared("a"), "a")),
        (4,),
        r"b needs .*\(3, 3\).*, but a has .*\(4, 3\)",
    ),
    (
        nn.Graph(a=(DENSE, "x"), b=(nn.Shared("a", nn.LayerNorm()), "a")),
        (3,),
        "b needs .*scale.*, but a has .*weight",
    ),
    (
        nn.Graph(a=(nn.Sequential(DENSE), "x"), b=(nn.Shared("a.1", DENSE), "a")),
        (3,),
        r"'a\.1' leads nowhere: there are \['0'\]",
    ),
]


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    WRONG_SHAPES,
    ids=[str(row[0]) for row in WRONG_SHAPES],
)
def test_init_refuses_wrong_shapes(layer, shape, message):
    key = nn.random.key(0, xp=HOST)
    if message is None:
        layer.init(key, shape, HOST.float32)
        return
    with pytest.raises(ValueError, match=message):
        layer.init(key, shape, HOST.float32)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (
            nn.Add(),
            (np.zeros((2, 3)), np.zeros((2, 1))),
            r"one shape, got \[\(2, 3\), \(2, 1\)\]",
        ),
        (nn.Multiply(), (np.zeros((2, 3)), np.zeros(3)), "one shape"),
        (
            nn.Transpose((2, 1)),
            np.zeros((2, 3)),
            r"orders 2 axes after the batch, got \(2, 3\)",
        ),
        (
            nn.Lambda(lambda x: x[1:]),
            np.zeros((2, 3)),
            r"keep the batch, but turns \(2, 3\)",
        ),
        (
            nn.Graph(a=(TANH, "b")),
            np.zeros((2, 3)),
            r"Graph takes \['b'\], got an x without",
        ),
    ],
    ids=str,
)
def test_forward_refuses_wrong_shapes(layer, x, message):
    """Libraries would broadcast some, and the gradients would have another shape."""
    with pytest.raises(ValueError, match=message):
        layer.forward({}, {}, x)


IDS, MASK = np.zeros((2, 3), "int32"), np.ones((2, 3), bool)
READS = nn.Graph(
    e=(nn.Embedding(5, 4), "x"),
    y=(nn.MultiHeadAttention(2), {"x": "e", "mask": "mask"}),
)


@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (READS, {"x": IDS, "mask": MASK}, None, ""),
        (READS, {"x": IDS + 5, "mask": MASK}, ValueError, "rows 0 to 4"),
        (
            READS,
            {"x": IDS, "mask": IDS},
            TypeError,
            "bool numbers as x.mask, got int32",
        ),
        (READS, {"x": IDS}, ValueError, r"takes \['mask', 'x'\], got \['x'\]"),
        (READS, {"x": IDS, "mask": MASK, "more": IDS}, ValueError, "more"),
        (nn.Parallel(TANH, DENSE), np.full((1, 3), np.inf), ValueError, "finite"),
        (
            nn.Repeat(nn.Recompute(nn.Freeze(nn.Embedding(3, 2))), 1),
            IDS + 3,
            ValueError,
            "0 to 2",
        ),
        (nn.Add(), (np.zeros(3), np.full(3, np.nan)), ValueError, "finite"),
    ],
)
def test_data_are_checked_by_the_layers_that_read_them(layer, x, error, message):
    if error is None:
        layer.check(x)
        return
    with pytest.raises(error, match=message):
        layer.check(x)


# --- repr, equality and inputs --------------------------------------------------------

BLOCKS = [
    nn.Residual(nn.Dense(4), shortcut=nn.Dense(4, bias=False)),
    nn.Parallel(nn.Dense(4), nn.Tanh(), join=None),
    nn.Repeat(nn.Recompute(nn.Freeze(nn.Dense(4))), 3),
    nn.Transpose([2, 1]),
    nn.Graph(a=(nn.Dense(3), "x"), b=(nn.Shared("a"), "a")),
    nn.Graph(
        a=(nn.Dense(3), "x"),
        b=(nn.MultiHeadAttention(2), {"x": "a", "mask": "mask"}),
        c=(nn.Add(), "a", "b"),
        outputs={"last": "c", "first": "a"},
    ),
    nn.Graph(outputs=("a", "x"), a=(nn.Dense(3), "x")),
]


@pytest.mark.parametrize("layer", BLOCKS, ids=str)
def test_the_repr_of_a_block_is_the_call_that_creates_it(layer):
    evaluated = eval(repr(layer), vars(nn))
    assert evaluated == layer
    assert hash(evaluated) == hash(layer)
    assert repr(evaluated) == repr(layer)
    assert pickle.loads(pickle.dumps(layer)) == layer


def test_blocks_that_differ_are_unequal():
    blocks = [
        *BLOCKS,
        nn.Residual(nn.Dense(4)),
        nn.Parallel(nn.Dense(4), nn.Tanh()),
        nn.Graph(a=(nn.Dense(3), "y"), b=(nn.Shared("a"), "a")),
        nn.Graph(outputs=("x", "a"), a=(nn.Dense(3), "x")),
    ]
    assert len(set(blocks)) == len(blocks)


def test_the_order_of_named_inputs_does_not_matter():
    attention = nn.MultiHeadAttention(2)
    first = nn.Graph(b=(attention, {"x": "a", "mask": "m"}))
    assert first == nn.Graph(b=(attention, {"mask": "m", "x": "a"}))


def test_the_input_kinds_of_a_graph_are_those_of_its_first_layers():
    assert nn.Graph(a=(nn.Dense(3), "x")).input_kinds == "real floating"
    assert nn.Graph(a=(nn.Embedding(3, 3), "x")).input_kinds == "integral"
    attends = nn.MultiHeadAttention(2)
    assert nn.Graph(a=(attends, "x")).input_kinds == attends.input_kinds
    assert (
        nn.Graph(a=(attends, "x"), b=(nn.Add(), "a", "x")).input_kinds
        == "real floating"
    )
    assert nn.Parallel(attends, attends).input_kinds == attends.input_kinds
    assert nn.Parallel(attends, DENSE).input_kinds == "real floating"
    assert READS.input_kinds == {"x": "integral", "mask": "bool"}
    assert nn.Graph(a=(DENSE, "one"), b=(nn.Add(), "a", "two")).inputs == ("one", "two")


# --- initialization -------------------------------------------------------------------

RANDOM = nn.Sequential(nn.Dense(3), nn.Dropout(0.5))


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(RANDOM, RANDOM),
        nn.Parallel(RANDOM, RANDOM),
        nn.Residual(RANDOM, shortcut=nn.Sequential(RANDOM)),
        nn.Repeat(RANDOM, 2),
        nn.Graph(a=(RANDOM, "x"), b=(RANDOM, "a")),
    ],
    ids=lambda block: type(block).__name__,
)
def test_one_layer_in_two_places_has_two_different_initial_values(block):
    params, state, _ = block.init(nn.random.key(0, xp=HOST), (3,), HOST.float32)
    for tree, name in ((params, "weight"), (state, "key")):
        matching = [leaf for path, leaf in named_leaves(tree) if path.endswith(name)]
        first, second = matching if len(matching) == 2 else matching[0]
        assert np.any(first != second), name


# --- Parallel and Graph ---------------------------------------------------------------


def test_integer_inputs_have_no_gradient_in_blocks_and_graphs(backend):
    embeddings = nn.Parallel(nn.Embedding(5, 3), nn.Embedding(5, 3))
    graph = nn.Graph(
        e=(embeddings, "ids"),
        d=(nn.Dense(3), "x"),
        y=(nn.Add(), "e", "d"),
        outputs=("y", "x"),
    )
    params, state = backend.asarray(start(graph, {"ids": (), "x": (3,)}))
    x = backend.asarray({"ids": np.asarray([1, 4], "int32"), "x": draws(2, 3)})
    y, _, cache = graph.forward(params, state, x)
    dx, _ = graph.backward(params, cache, (y[0], None))
    assert dx["ids"] is None
    assert dx["x"].shape == (2, 3)


class Sign(nn.Layer):
    """A custom layer that has no gradient for x."""

    def forward(self, params, state, x, *, train=False):
        return namespace(x).sign(x), state, ()

    def backward(self, params, cache, dy):
        return None, {}


def test_parameters_that_no_gradient_reaches_have_gradients_of_0(backend):
    graph = nn.Graph(
        a=(
            nn.Sequential(nn.Dense(3), nn.Parallel(nn.Tanh(), nn.Dense(2), join=None)),
            "x",
        ),
        s=(Sign(), "a.0"),
        b=(nn.Dense(3), "s"),
    )
    params, state = backend.asarray(start(graph, (4,)))
    y, _, cache = graph.forward(params, state, backend.asarray(draws(2, 4)))
    dx, grads = graph.backward(params, cache, y)
    assert dx is None
    grads = backend.to_numpy(grads)
    assert all(np.all(leaf == 0) for leaf in leaves(grads["a"]))
    assert np.any(grads["b"]["weight"])
    assert_same_bits(
        tree_map(np.shape, grads), tree_map(lambda p: tuple(p.shape), params)
    )


def test_tree_sum_adds_leaves_and_skips_none():
    first = {"a": (1, None), "b": None, "c": None}
    second = {"a": (10, 20), "b": (3,), "c": None}
    assert tree_sum(first, second) == {"a": (11, 20), "b": (3,), "c": None}
    assert tree_sum(None, first) is first
    assert tree_sum(first, None) is first
    for wrong in ({"a": 1}, (1,), 1):
        with pytest.raises(ValueError, match="trees differ"):
            tree_sum(first, wrong)
        with pytest.raises(ValueError, match="trees differ"):
            tree_sum(wrong, first)


# --- Repeat ---------------------------------------------------------------------------


def test_a_repeated_layer_equals_a_sequential_of_its_copies(backend):
    """Also the initial parameters and keys of each copy are the same."""
    layer = nn.Sequential(nn.Dense(3), nn.BatchNorm(), nn.Dropout(0.4), nn.Tanh())
    repeat, chain = nn.Repeat(layer, 3), nn.Sequential(layer, layer, layer)
    x, dy = draws(5, 3), draws(5, 3)[::-1, :].copy()
    stacked = repeat.init(nn.random.key(1, xp=HOST), (3,), HOST.float32)[:2]
    chained = chain.init(nn.random.key(1, xp=HOST), (3,), HOST.float32)[:2]
    result, expected = (
        backend.to_numpy(
            backend.jit(lambda *a, block=block: both_ways(block, *a, train=True))(
                *backend.asarray((*params_and_state, x, dy))
            )
        )
        for block, params_and_state in ((repeat, stacked), (chain, chained))
    )
    for part in ("grads", "state"):
        expected[part] = tree_map(lambda *each: np.stack(each), *expected[part])
    for (name, a), b in zip(named_leaves(result), leaves(expected), strict=True):
        np.testing.assert_allclose(
            a, b, atol=16 * np.finfo("float32").eps, err_msg=name
        )


def test_the_size_of_a_compiled_repeat_does_not_depend_on_its_count(backend):
    """Backends that compile trace forward and backward once or twice, not n times."""
    calls = []

    class Counted(nn.Tanh):
        def forward(self, params, state, x, *, train=False):
            calls.append("forward")
            return super().forward(params, state, x, train=train)

        def backward(self, params, cache, dy):
            calls.append("backward")
            return super().backward(params, cache, dy)

    x = backend.asarray(draws(2, 3))
    traced = []
    backend.jit(lambda x: traced.append(type(x)) or x)(x)
    compiles = traced[0] is not type(x)
    counts = []
    for count in (2, 20):
        calls.clear()
        layer = nn.Repeat(Counted(), count)
        backend.jit(lambda x, layer=layer: both_ways(layer, {}, {}, x, x, True))(x)
        counts.append((calls.count("forward"), calls.count("backward")))
    assert counts[1] == (counts[0] if compiles else (20, 20))


# --- Recompute ------------------------------------------------------------------------

STATEFUL = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Dropout(0.4), nn.Tanh())


@pytest.mark.parametrize("mode", ["train", "predict", "rows"])
def test_recomputed_results_are_the_same_to_the_bit(backend, mode):
    """Masks and statistics are the same, because both passes start from one state."""
    params, state = backend.asarray(start(STATEFUL, (3,)))
    x, dy, counts = backend.asarray(
        (draws(5, 3), draws(5, 4), np.float32([1, 1, 1, 0, 0]))
    )
    train = {"train": True, "predict": False, "rows": RowMask(counts)}[mode]
    _, moved, _ = STATEFUL.forward(params, state, x, train=True)
    result, expected = (
        backend.to_numpy(both_ways(layer, params, moved, x, dy, train))
        for layer in (nn.Recompute(STATEFUL), STATEFUL)
    )
    assert_same_bits(result, expected)


def test_recompute_caches_only_x_and_the_state(backend):
    layer = nn.Recompute(
        nn.Sequential(nn.Dense(64), nn.BatchNorm(), nn.Tanh(), nn.Dense(3))
    )
    params, state = backend.asarray(start(layer, (3,)))
    x = backend.asarray(draws(5, 3))
    _, _, cache = layer.forward(params, state, x, train=True)
    cached = {id(leaf) for leaf in leaves(cache)}
    assert cached == {id(leaf) for leaf in leaves((x, state))}


def compiled_on_jax(layer):
    """Return the lowered text of forward and backward, and the bytes of temporaries."""
    jax = pytest.importorskip("jax", reason="only JAX compiles whole steps")
    nn.backend("jax")  # registers its barrier and loop
    xp = jax.numpy
    params, state, _ = layer.init(nn.random.key(0, xp=xp), (64,), xp.float32)
    step = jax.jit(lambda p, s, x: layer.backward(p, layer.forward(p, s, x)[2], x))
    lowered = step.lower(params, state, xp.ones((1024, 64), xp.float32))
    return lowered.as_text(), lowered.compile().memory_analysis().temp_size_in_bytes


DEEP = nn.Sequential(*[nn.Dense(64), nn.Tanh()] * 4)


def test_a_barrier_keeps_the_compiler_from_merging_the_two_passes():
    """XLA would find the two passes equal, run one and keep its results."""
    text, _ = compiled_on_jax(nn.Sequential(*[nn.Recompute(DEEP)] * 3))
    assert text.count("optimization_barrier") == 3


def test_a_compiled_recompute_needs_less_memory():
    """Measured for 4096 rows and 6 blocks of 8 layers: 14 MB instead of 56."""
    (_, with_caches), (_, recomputed) = (
        compiled_on_jax(nn.Repeat(wrap(DEEP), 6))
        for wrap in (nn.Sequential, nn.Recompute)
    )
    assert recomputed < 0.5 * with_caches


def test_a_barrier_returns_its_argument(backend):
    tree = (
        {"a": draws(2, 3), "b": ()},
        np.asarray([1, 2**32 - 1], "uint32"),
        (draws(1),),
    )
    for jit in (backend.jit, lambda function: function):
        for function in (
            barrier,
            lambda t: barrier_impl.dispatch(object)(leaves(t)[0], t),
        ):
            assert_same_bits(
                backend.to_numpy(jit(function)(backend.asarray(tree))), tree
            )
    assert barrier(((), {})) == ((), {})


# --- Freeze ---------------------------------------------------------------------------


def test_an_optimizer_does_not_move_frozen_parameters(backend):
    """Not even by weight decay; parameters outside of `Freeze` do move."""
    body = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Dropout(0.5))
    model = nn.Sequential(nn.Dense(3), nn.Freeze(body), nn.Dense(2))
    optimizer = nn.AdamW(0.1, weight_decay=0.5)
    params, state = backend.asarray(start(model, (3,)))
    moments = optimizer.init(params)
    assert not [name for name, _ in named_leaves(moments) if ".1." in name]
    step = backend.jit(nn.make_step(model, nn.mean_squared_error, optimizer))
    carry = (params, state, moments)
    for _ in range(3):
        carry, _, _ = step(carry, *backend.asarray((draws(5, 3), draws(5, 2))))
    assert_same_bits(*backend.to_numpy((carry[1], state)))
    before, after = backend.to_numpy((params, carry[0]))
    for i in (0, 2):
        assert np.all(before[i]["weight"] != after[i]["weight"])


def test_a_frozen_layer_in_training_equals_the_layer_in_prediction(backend):
    params, state = backend.asarray(start(STATEFUL, (3,)))
    x, dy = backend.asarray((draws(5, 3), draws(5, 4)))
    frozen = nn.Freeze.freeze(params, state)
    result = backend.to_numpy(both_ways(nn.Freeze(STATEFUL), *frozen, x, dy, True))
    expected = backend.to_numpy(both_ways(STATEFUL, params, state, x, dy, False))
    assert_same_bits((result["y"], result["dx"]), (expected["y"], expected["dx"]))
    assert result["grads"] == {}


def test_freeze_and_release_do_not_change_trained_parameters():
    frozen = nn.Freeze(STATEFUL)
    params, state = start(STATEFUL, (3,))
    initial = frozen.init(nn.random.key(0, xp=HOST), (3,), HOST.float32)
    converted = nn.Freeze.freeze(params, state)
    assert_same_bits(*(tree_map(np.shape, tree) for tree in (converted, initial[:2])))
    assert_same_bits(nn.Freeze.release(*converted), (params, state))


# --- filler rows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        nn.Recompute,
        lambda layer: nn.Repeat(layer, 2),
        lambda layer: nn.Parallel(layer, nn.Tanh()),
        lambda layer: nn.Residual(nn.Tanh(), shortcut=layer),
        lambda layer: nn.Graph(a=(layer, "x"), b=(nn.Shared("a"), "a")),
        lambda layer: nn.Repeat(nn.Recompute(nn.Graph(a=(layer, "x"))), 2),
    ],
    ids=["Recompute", "Repeat", "Parallel", "Residual", "Graph", "nested"],
)
def test_filler_rows_have_no_effect_in_a_block(backend, wrap):
    block = wrap(nn.BatchNorm())
    params, state = start(block, (3,))
    x, dy = draws(5, 3), draws(5, 3)
    dy[3:] = 0
    *arrays, counts = backend.asarray(
        (params, state, x, dy, np.float32([1, 1, 1, 0, 0]))
    )
    filled = both_ways(block, *arrays, RowMask(counts))
    short = both_ways(block, *backend.asarray((params, state, x[:3], dy[:3])), True)
    filled, short = backend.to_numpy((filled, short))
    for name in ("y", "dx"):
        filled[name] = filled[name][:3]
    for (name, a), b in zip(named_leaves(filled), leaves(short), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


# --- decoding step by step ------------------------------------------------------------


def test_a_model_of_blocks_advances_step_by_step(backend):
    """The output of each step equals that of `forward` over all steps."""
    around = nn.Parallel(nn.Dense(4), nn.Tanh(), join="concatenate")
    model = nn.Graph(
        embed=(nn.Embedding(7, 4), "x"),
        deep=(
            nn.Repeat(
                nn.Residual(
                    nn.LayerNorm(),
                    nn.MultiHeadAttention(2, causal=True),
                    shortcut=nn.Dense(4),
                ),
                2,
            ),
            "embed",
        ),
        wide=(nn.Recompute(nn.Sequential(around, nn.Freeze(nn.LSTM(4)))), "deep"),
        total=(nn.Add(), "wide", "deep"),
        logits=(nn.Shared("embed", nn.Unembedding(7)), "total"),
    )
    params, state = backend.asarray(start(model, (5,)))
    ids = backend.asarray(np.asarray([[1, 5, 0, 3, 6], [2, 2, 4, 1, 0]], "int32"))
    whole = backend.to_numpy(model.forward(params, state, ids)[0])
    memory = model.begin(params, state, ids[:, :1], 5)
    for t in range(5):
        y, memory = model.advance(params, state, memory, ids[:, t : t + 1])
        np.testing.assert_allclose(backend.to_numpy(y)[:, 0], whole[:, t], atol=1e-5)


def test_a_graph_whose_node_needs_all_steps_of_another_cannot_advance(
    backend,
):
    graph = nn.Graph(
        m=(nn.Dense(4), "x"),
        y=(nn.MultiHeadAttention(2), {"x": "x", "source": "m"}),
    )
    params, state = backend.asarray(start(graph, (3, 4)))
    with pytest.raises(TypeError, match=r"y reads \['m'\] at every step"):
        graph.begin(params, state, backend.asarray(draws(2, 1, 4)), 3)


# --- layers that only move numbers ----------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "theirs"),
    [
        (nn.Transpose((2, 3, 1)), (4, 5, 2), lambda x: np.transpose(x, (0, 2, 3, 1))),
        (nn.Transpose(()), (), lambda x: x),
        (nn.Lambda(every_other), (5, 2), lambda x: x[:, ::2, :]),
        (nn.Concatenate(), ((2, 3), (2, 1)), lambda x: np.concatenate(x, axis=-1)),
        (nn.Concatenate(axis=1), ((2, 3), (1, 3)), lambda x: np.concatenate(x, axis=1)),
        (
            nn.Concatenate(axis=-2),
            ((2, 3), (1, 3)),
            lambda x: np.concatenate(x, axis=1),
        ),
        (nn.Add(), ((3,), (3,), (3,)), sum),
        (nn.Multiply(), ((3,), (3,), (3,)), math.prod),
    ],
    ids=named,
)
def test_layers_that_move_numbers_agree_with_numpy(backend, layer, shape, theirs):
    shapes = shape if shape and isinstance(shape[0], tuple) else (shape,)
    x = tuple(draws(3, *each) + i for i, each in enumerate(shapes))
    x = x if shape is shapes else x[0]
    y, _, _ = layer.forward({}, {}, backend.asarray(x))
    _, _, out = layer.init(nn.random.key(0, xp=HOST), shape, HOST.float32)
    np.testing.assert_array_equal(backend.to_numpy(y), theirs(x))
    assert y.shape == (3, *out)
