"""A layer with all arguments of its methods, and the contract that it has to keep."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ...core import random
from ...core.arrays import Array, Params, RowMask, State, namespace
from ...core.backend import backend
from ...core.trees import leaves, named_leaves, shape_map, tree_from_leaves, tree_map
from ...layers.base import Layer, kinds
from .inputs import batched
from .report import CheckFailed

__all__ = [
    "Case",
    "expect_alike",
    "expect_contract",
    "expect_outputs_of_init",
    "label_of",
    "random_case",
    "read_only",
]


@dataclass(frozen=True)
class Case:
    """A layer and all arguments of its forward and backward."""

    layer: Layer
    mode: str
    params: Params
    state: State
    x: Any
    dy: Any
    counts: Array | None = None

    @property
    def arrays(self) -> dict[str, Any]:
        """All arguments of the methods of the layer, by name."""
        return {"params": self.params, "state": self.state, "x": self.x, "dy": self.dy}

    @property
    def point(self) -> dict[str, Any]:
        """The differentiable leaves: the parameters, and the real numbers in x.

        If x is a tree, its leaves are named by their paths.
        """
        kind_of = dict(named_leaves(kinds(self.layer.input_kinds, self.x)))
        named = dict(named_leaves(self.x))
        real = {
            path: x
            for path, x in named.items()
            # numeric targets of losses have a path, and no gradient
            if kind_of[path] == "real floating"
            or (kind_of[path] == "numeric" and not path)
        }
        return {"params": self.params} | ({"x": real.get("", real)} if real else {})

    def map(self, function: Callable[..., Any]) -> Self:
        """Return the case with `function` applied to each of its arrays."""
        return replace(self, **tree_map(function, self.arrays))

    def forward(self, point: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Run forward with the differentiable leaves replaced by those of `point`."""
        real = point.get("x", {})
        real = real if isinstance(real, dict) else {"": real}
        x = tree_from_leaves(dict(named_leaves(self.x)) | real, self.x)
        train = self.mode == "train" if self.counts is None else RowMask(self.counts)
        return self.layer.forward(point["params"], self.state, x, train=train)

    def real(self, y: Any) -> Any:
        """Return y, or a dy, without integers; then it is a dict of leaves by path."""
        is_real = [not _is_integer(leaf) for leaf in leaves(self.dy)]
        if all(is_real):
            return y
        pairs = zip(named_leaves(y), is_real, strict=True)
        return {path: leaf for (path, leaf), keep in pairs if keep}

    def run(self) -> dict[str, Any]:
        """Return all results of the layer, nested so that every leaf has a name."""
        y, state, cache = self.forward(self.point)
        dx, grads = self.layer.backward(self.params, cache, self.dy)
        by_path = {path: leaf for path, leaf in named_leaves(dx) if leaf is not None}
        dx_entry = {"x": by_path.get("", by_path)} if by_path else {}
        return {"y": y, "state": state, "params": grads} | dx_entry


def random_case(
    layer: Layer,
    shape: Any,
    dtype: Any,
    draw: Callable[..., Any],
    generator: np.random.Generator,
    check_init: bool,
) -> Case:
    """Return a case with no bias of 0, no scale of 1 and not the initial state.

    check_init: whether to check that y and the state have the shapes and dtypes that
    `init` returns.
    """

    def converted(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    def inputs(rows: int) -> Any:
        x = draw(generator, shape_map(lambda axes: (rows, *axes[1:]), shape))
        return tree_map(converted, x)

    def moved(leaf: Any) -> Any:
        return leaf + generator.uniform(-0.5, 0.5, leaf.shape).astype(dtype)

    key = random.key(int(generator.integers(2**32)), xp=backend("numpy").xp)
    example_shape = shape_map(lambda axes: axes[1:], shape)
    params, state, out = layer.init(key, example_shape, dtype)
    params = tree_map(moved, params)
    # Change the state by a training step: only the layer knows which states are valid.
    rows = max(_length(shape), 3)
    y, new_state, _ = layer.forward(params, state, inputs(rows), train=True)
    if check_init:
        _expect_like_init(y, new_state, rows, dtype, state, out)
    dy = shape_map(generator.standard_normal, batched(out, _length(shape)))
    dy = _cast_like(dy, y, dtype)
    return Case(layer, "train", params, new_state, inputs(_length(shape)), dy)


def _expect_like_init(
    y: Any, new_state: Any, rows: int, dtype: Any, state: Any, out: Any
) -> None:
    """Raise CheckFailed unless y and the state are like `state` and `out` of `init`."""
    expected_y = shape_map(lambda example: np.zeros((rows, *example), dtype), out)
    expected_y = _cast_like(expected_y, y, dtype)
    expected = {"y": expected_y, "state": state}
    expect_alike(f"train in {np.dtype(dtype)}", {"y": y, "state": new_state}, expected)


def _is_integer(leaf: Any) -> bool:
    """Return True for integers and booleans, which have no gradient."""
    return bool(namespace(leaf).isdtype(leaf.dtype, ("integral", "bool")))


def _cast_like(tree: Any, y: Any, dtype: Any) -> Any:
    """Return `tree`, nested like y, in `dtype`, and as integers where y holds such.

    Integers, such as indices, are allowed in y next to real numbers.
    """
    dtypes = {}
    if isinstance(y, dict | tuple):
        arrays = [pair for pair in named_leaves(y) if isinstance(pair[1], np.ndarray)]
        dtypes = {path: leaf.dtype for path, leaf in arrays if _is_integer(leaf)}
        if len(dtypes) == len(leaves(y)):
            dtypes = {}
    named = {
        path: np.asarray(leaf).astype(dtypes.get(path, dtype))
        for path, leaf in named_leaves(tree)
    }
    return tree_from_leaves(named, tree)


def expect_outputs_of_init(case: Case) -> None:
    """Raise CheckFailed unless `forward` returns y and a state like those of `init`."""
    dtype = leaves(case.dy)[0].dtype
    shape = tree_map(np.shape, case.x)
    key = random.key(0, xp=backend("numpy").xp)
    example_shape = shape_map(lambda axes: axes[1:], shape)
    _, state, out = case.layer.init(key, example_shape, dtype)
    copy = case.map(np.copy)
    y, new_state, _ = copy.layer.forward(copy.params, copy.state, copy.x, train=True)
    _expect_like_init(y, new_state, _length(shape), dtype, state, out)


def _length(shape: Any) -> int:
    """Return the number of examples in a batch of `shape`, which may be a tree."""
    return int(leaves(shape)[0])


def expect_contract(case: Case) -> None:
    """Raise CheckFailed unless the layer keeps the contract of `Layer`.

    Results have the right names, shapes and dtypes, and are the same at a second call.
    No argument is changed, and predicting does not change the state.
    """
    before = case.map(np.copy)
    results = case.run()
    _expect_same(before.arrays, case.arrays, "{}, an argument, was changed in place")
    expected = {"y": case.dy, "state": case.state, **case.point}
    expect_alike(f"{case.mode} in {leaves(case.dy)[0].dtype}", results, expected)
    _expect_same(results, case.run(), "{} is different when computed a second time")
    if case.mode == "predict":
        after = {"state": results["state"]}
        _expect_same({"state": case.state}, after, "{} was changed by predicting")


def _expect_same(before: Any, after: Any, message: str) -> None:
    """Raise CheckFailed unless all leaves have the same bytes."""
    for (name, old), new in zip(named_leaves(before), leaves(after), strict=True):
        if np.asarray(old).tobytes() != np.asarray(new).tobytes():
            raise CheckFailed(message.format(label_of(name)))


def expect_alike(where: str, results: Any, expected: Any) -> None:
    """Raise CheckFailed unless the leaves have the right names, shapes and dtypes."""
    results = dict(named_leaves(results))
    expected = dict(named_leaves(expected))
    for name in sorted(results.keys() ^ expected.keys()):
        fault = "is missing" if name in expected else "should not be there"
        returned = ", ".join(map(label_of, results))
        raise CheckFailed(
            f"{where}: {label_of(name)} {fault}; the layer returned {returned}"
        )
    for name, leaf in results.items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if (np.shape(leaf), dtype) != (expected[name].shape, expected[name].dtype):
            raise CheckFailed(
                f"{where}: {label_of(name)} is {dtype} {np.shape(leaf)}, "
                f"expected {expected[name].dtype} {expected[name].shape}"
            )


def label_of(name: str) -> str:
    """Return the name of a leaf in messages: of a parameter, that within the layer."""
    return name.removeprefix("params.")


def read_only(leaf: Any) -> np.ndarray:
    """Return a copy that cannot be written to."""
    copy = np.array(leaf)
    copy.flags.writeable = False
    return copy
