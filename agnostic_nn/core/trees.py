"""Trees: nested dicts and tuples whose leaves are arrays; JAX traces them as they are."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["expect_nested", "leaves", "named_leaves", "shape_map", "tree_map", "tree_sum", "unname"]


def tree_map(function: Callable, tree: Any, *rest: Any) -> Any:
    """Apply `function` leaf by leaf to trees that share one nesting.

    Raises
    ------
    ValueError
        If two trees differ in keys or length.
    """
    if isinstance(tree, dict):
        for other in rest:
            if not isinstance(other, dict) or other.keys() != tree.keys():
                raise ValueError(f"trees differ: expected {_outline(tree)}, got {_outline(other)}")
        return {k: tree_map(function, v, *[t[k] for t in rest]) for k, v in tree.items()}
    if isinstance(tree, tuple):
        for other in rest:
            if not isinstance(other, tuple) or len(other) != len(tree):
                raise ValueError(f"trees differ: expected {_outline(tree)}, got {_outline(other)}")
        return tuple([tree_map(function, *branches) for branches in zip(tree, *rest, strict=True)])
    return function(tree, *rest)


def tree_sum(one: Any, other: Any) -> Any:
    """Two gradients of one thing, added leaf by leaf; None, also for a whole tree, is no gradient.

    Raises
    ------
    ValueError
        If the trees differ in keys or length.
    """
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {k: tree_sum(v, other[k]) for k, v in one.items()}
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(tree_sum(a, b) for a, b in zip(one, other, strict=True))
    if any(isinstance(tree, dict | tuple) for tree in (one, other)):
        raise ValueError(f"trees differ: expected {_outline(one)}, got {_outline(other)}")
    return one + other


def named_leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf of `tree` with its path, such as `"0.weight"`, in a fixed order.

    Keys are sorted, because `jit` hands dicts back sorted.
    """
    if isinstance(tree, dict):
        branches = sorted(tree.items())
    elif isinstance(tree, tuple):
        branches = [(str(i), branch) for i, branch in enumerate(tree)]
    else:
        yield prefix, tree
        return
    for name, branch in branches:
        yield from named_leaves(branch, f"{prefix}.{name}" if prefix else name)


def leaves(tree: Any) -> list:
    """The leaves of `tree`, in the order of `named_leaves`."""
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name])]
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def unname(named: dict[str, Any], like: Any, prefix: str = "") -> Any:
    """A tree nested like `like`, its leaves taken from `named` by their paths.

    Raises
    ------
    KeyError
        If a path of `like` is not in `named`.
    """
    if isinstance(like, dict):
        return {k: unname(named, v, f"{prefix}.{k}" if prefix else k) for k, v in like.items()}
    if isinstance(like, tuple):
        return tuple(
            unname(named, branch, f"{prefix}.{i}" if prefix else str(i))
            for i, branch in enumerate(like)
        )
    return named[prefix]


def expect_nested(name: str, tree: Any, like: Any) -> None:
    """Raise ValueError unless `tree`, which is called `name`, is nested like `like`."""
    branches: Iterable[tuple[Any, Any]] = ()
    if isinstance(like, dict):
        fits = isinstance(tree, dict) and tree.keys() == like.keys()
        branches = like.items()
    elif isinstance(like, tuple):
        fits = isinstance(tree, tuple) and len(tree) == len(like)
        branches = enumerate(like)
    else:
        fits = not isinstance(tree, dict | tuple | list | None)
    if not fits:
        raise ValueError(f"{name} is {_kind(tree)}, expected {_kind(like)}")
    for key, branch in branches:
        expect_nested(f"{name}.{key}", tree[key], branch)


def _kind(tree: Any) -> str:
    """What a tree is at its root, such as "a dict of bias and weight"."""
    if isinstance(tree, dict):
        return f"a dict of {' and '.join(map(repr, tree))}" if tree else "an empty dict"
    if isinstance(tree, tuple | list):
        return f"a {type(tree).__name__} of {len(tree)}"
    return "None" if tree is None else "an array" if hasattr(tree, "dtype") else repr(tree)


def _outline(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"keys {sorted(tree)}"
    return f"{len(tree)} entries" if isinstance(tree, tuple) else "a leaf"


def shape_map(function: Callable, shapes: Any) -> Any:
    """Apply `function` to each shape of a tree of shapes; a shape is a tuple of integers."""
    if isinstance(shapes, dict):
        return {k: shape_map(function, v) for k, v in shapes.items()}
    if all(isinstance(entry, int) for entry in shapes):
        return function(shapes)
    return tuple(shape_map(function, v) for v in shapes)
