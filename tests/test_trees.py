"""Trees: maps over leaves, and the names of leaves in checkpoints."""

import numpy as np
import pytest

from agnostic_nn.core.trees import leaves, named_leaves, tree_from_leaves, tree_map

TREES = [
    5,
    (),
    {},
    (1, 2),
    {"weight": 1, "bias": 2},
    ({"weight": 1, "bias": 2}, {}, (3, ()), {"scale": {"deep": 4}}),
    tuple(range(12)),
]
each_tree = pytest.mark.parametrize("tree", TREES, ids=str)


@each_tree
def test_a_map_keeps_the_nesting_and_the_order_of_keys(tree):
    before = repr(tree)
    assert repr(tree_map(lambda leaf: leaf, tree)) == before
    assert leaves(tree_map(lambda leaf: leaf * 10, tree)) == [
        leaf * 10 for leaf in leaves(tree)
    ]
    assert repr(tree) == before


def test_a_map_over_several_trees_pairs_their_leaves():
    first = {"a": (1, 2), "b": 3}
    second = {"b": 30, "a": (10, 20)}
    assert tree_map(lambda x, y, z: (x, y, z), first, second, first) == {
        "a": ((1, 10, 1), (2, 20, 2)),
        "b": (3, 30, 3),
    }


def test_a_list_is_a_leaf():
    assert tree_map(len, {"a": [1, 2, 3]}) == {"a": 3}
    assert leaves(([1, 2],)) == [[1, 2]]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1}, {"b": 1}, r"expected keys \['a'\], got keys \['b'\]"),
        ({"a": 1}, {"a": 1, "b": 2}, r"expected keys \['a'\], got keys \['a', 'b'\]"),
        ({"a": 1}, (1,), r"expected keys \['a'\], got 1 entries"),
        ({"a": 1}, 1, r"expected keys \['a'\], got a leaf"),
        ((1, 2), (1,), "expected 2 entries, got 1 entries"),
        ((1, 2), {"a": 1, "b": 2}, r"expected 2 entries, got keys \['a', 'b'\]"),
        ((1,), 1, "expected 1 entries, got a leaf"),
        (({"a": 1},), ({},), r"expected keys \['a'\], got keys \[\]"),
    ],
    ids=str,
)
def test_trees_that_differ_are_refused(first, second, message):
    with pytest.raises(ValueError, match=f"trees differ: {message}"):
        tree_map(lambda x, y: x, first, second)
    with pytest.raises(ValueError, match=f"trees differ: {message}"):
        tree_map(lambda x, y, z: x, first, first, second)


def test_leaves_are_named_by_their_paths_in_one_order():
    tree = ({"weight": 1, "bias": 2}, (), ({"scale": 3},))
    assert list(named_leaves(tree)) == [
        ("0.bias", 2),
        ("0.weight", 1),
        ("2.0.scale", 3),
    ]
    assert leaves(tree) == [2, 1, 3]
    assert list(named_leaves({"b": 1, "a": 2}, "model")) == [
        ("model.a", 2),
        ("model.b", 1),
    ]


def test_entries_of_a_tuple_keep_their_order_past_ten():
    assert leaves(tuple(range(12))) == list(range(12))


def test_jit_keeps_the_names_of_leaves_and_their_order(backend, widest):
    one = np.ones(1, widest)
    tree = ({"weight": one, "bias": 2 * one}, {}, (3 * one,))
    add = backend.jit(lambda tree: tree_map(lambda leaf: leaf + 1.0, tree))
    result = backend.to_numpy(add(backend.asarray(tree)))
    assert list(named_leaves(result)) == [("0.bias", 3), ("0.weight", 2), ("2.0", 4)]


@each_tree
def test_a_tree_can_be_rebuilt_from_its_named_leaves(tree):
    named = dict(named_leaves(tree))
    assert repr(tree_from_leaves(named, tree)) == repr(tree)
    assert repr(
        tree_from_leaves(dict(named_leaves(tree, "model")), tree, "model")
    ) == repr(tree)
    assert tree_from_leaves(named | {"another": 0}, tree) == tree


def test_a_missing_name_is_an_error_that_names_it():
    with pytest.raises(KeyError, match=r"1\.bias"):
        tree_from_leaves({"0.weight": 1}, ({"weight": 1}, {"bias": 2}))
