"""Trees: nested dicts and tuples with arrays as leaves. JAX accepts them as pytrees."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = [
    "expect_nested",
    "leaves",
    "named_leaves",
    "shape_map",
    "tree_from_leaves",
    "tree_map",
    "tree_sum",
]


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Return the tree of function(leaf, ...), leaf by leaf of trees of equal nesting.

    Raises
    ------
    ValueError
        If two trees differ in keys or length.
    """
    if isinstance(tree, dict):
        for other in rest:
            if not isinstance(other, dict) or other.keys() != tree.keys():
                raise _trees_differ(tree, other)
        return {
            k: tree_map(function, v, *[t[k] for t in rest]) for k, v in tree.items()
        }
    if isinstance(tree, tuple):
        for other in rest:
            if not isinstance(other, tuple) or len(other) != len(tree):
                raise _trees_differ(tree, other)
        branches = zip(tree, *rest, strict=True)
        return tuple([tree_map(function, *branch) for branch in branches])
    return function(tree, *rest)


def _sum(a: Any, b: Any) -> Any:
    return a + b


def tree_sum(a: Any, b: Any, add: Callable[[Any, Any], Any] = _sum) -> Any:
    """Return the sum, leaf by leaf, of two gradients with respect to the same inputs.

    add: returns the sum of two leaves. None stands for the gradient of a leaf or a tree
    that has none; None plus g is g.

    Raises
    ------
    ValueError
        If the trees differ in keys or length.
    """
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {k: tree_sum(v, b[k], add) for k, v in a.items()}
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        pairs = zip(a, b, strict=True)
        return tuple(tree_sum(left, right, add) for left, right in pairs)
    if any(isinstance(tree, dict | tuple) for tree in (a, b)):
        raise _trees_differ(a, b)
    return add(a, b)


def named_leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the leaf, such as `("0.weight", w)`, of each leaf of `tree`.

    Keys are sorted, because functions compiled by JAX return dicts with sorted keys.
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


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of `tree`, in the order of `named_leaves`."""
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name])]
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def tree_from_leaves(named: dict[str, Any], like: Any, prefix: str = "") -> Any:
    """Return a tree nested like `like`, with the leaves of `named`, {path: leaf}.

    Raises
    ------
    KeyError
        If a path of `like` is not in `named`.
    """
    if isinstance(like, dict):
        return {
            k: tree_from_leaves(named, v, f"{prefix}.{k}" if prefix else k)
            for k, v in like.items()
        }
    if isinstance(like, tuple):
        return tuple(
            tree_from_leaves(named, branch, f"{prefix}.{i}" if prefix else str(i))
            for i, branch in enumerate(like)
        )
    return named[prefix]


def expect_nested(name: str, tree: Any, like: Any) -> None:
    """Raise ValueError unless `tree` (`name` in the error) is nested like `like`."""
    branches: Iterable[tuple[Any, Any]] = ()
    if isinstance(like, dict):
        is_alike = isinstance(tree, dict) and tree.keys() == like.keys()
        branches = like.items()
    elif isinstance(like, tuple):
        is_alike = isinstance(tree, tuple) and len(tree) == len(like)
        branches = enumerate(like)
    else:
        is_alike = not isinstance(tree, dict | tuple | list | None)
    if not is_alike:
        raise ValueError(f"{name} is {_kind(tree)}, expected {_kind(like)}")
    for key, branch in branches:
        expect_nested(f"{name}.{key}", tree[key], branch)


def _kind(tree: Any) -> str:
    """Describe the root of a tree, such as "a dict of 'bias' and 'weight'"."""
    if isinstance(tree, dict):
        return f"a dict of {' and '.join(map(repr, tree))}" if tree else "an empty dict"
    if isinstance(tree, tuple | list):
        return f"a {type(tree).__name__} of {len(tree)}"
    if tree is None:
        return "None"
    return "an array" if hasattr(tree, "dtype") else repr(tree)


def _trees_differ(tree: Any, other: Any) -> ValueError:
    """Return the error for two trees whose roots differ in keys or length."""
    message = f"trees differ: expected {_outline(tree)}, got {_outline(other)}"
    return ValueError(message)


def _outline(tree: Any) -> str:
    """Describe what two trees of equal nesting have in common at their roots."""
    if isinstance(tree, dict):
        return f"keys {sorted(tree)}"
    return f"{len(tree)} entries" if isinstance(tree, tuple) else "a leaf"


def shape_map(function: Callable[..., Any], shapes: Any) -> Any:
    """Apply `function` to each shape, a tuple of integers, in a tree of shapes."""
    if isinstance(shapes, dict):
        return {k: shape_map(function, v) for k, v in shapes.items()}
    if all(isinstance(entry, int) for entry in shapes):
        return function(shapes)
    return tuple(shape_map(function, v) for v in shapes)
