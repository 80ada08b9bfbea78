"""Cases: what is held to every oracle, a line each, one file a family.

A family's file lists `CASES`; whatever file lies here is found. The tests and the table
of proofs (`nox -s proofs`) read the same lines.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves, shape_map, tree_map
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for

__all__ = [
    "Case",
    "Given",
    "arrays_for",
    "inputs",
    "kinds",
    "layer_cases",
    "named",
    "run",
]


@dataclass(frozen=True)
class Given:
    """The arguments of PyTorch's twin of a layer: our trees, with tensors as leaves."""

    params: Any
    state: Any
    x: Any
    train: bool


@dataclass(frozen=True, eq=False)  # shapes may be dicts, which do not hash
class Case:
    """A layer, the shape of one example, and how PyTorch says the same.

    theirs(torch, given) -> y, or (y, state), in PyTorch's own words; autograd then
    gives the gradients of the tensors in `given`, in our layout. Or a string: why
    PyTorch has none. draw(generator, (batch, *shape)) -> x, where normal draws or small
    integers will not do; for a tree of inputs it is called once, with the tree of
    shapes.
    thorough: one of a sweep, too much for a backend that compiles each.
    refuses: of batches of 0 and 1, those that it cannot train on.
    slack: how often the usual tolerances it needs; a line that says more than 1 says
    why.
    """

    layer: nn.Layer
    shape: Any
    theirs: Callable[[Any, Given], Any] | str
    draw: Callable[[Any, Any], Any] | None = None
    thorough: bool = False
    refuses: tuple[int, ...] = ()
    slack: float = 1.0

    def __str__(self) -> str:
        return f"{self.layer} {self.shape}"


def named(thing: Any) -> str:
    """Return the name of a case in tests: its repr without addresses, equal in every process."""
    return re.sub(r" at 0x\w+", "", str(thing))


def layer_cases() -> list[Case]:
    """The cases of all families."""
    result = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    modules = [import_module(f"{__name__}.{stem}") for stem in result]
    return [case for module in modules for case in getattr(module, "CASES", ())]


def inputs(case: Case, generator: np.random.Generator, rows: int, dtype: str) -> Any:
    """x for a case, on the host: real numbers in dtype, whole ones in int32."""
    kinds = {"f": dtype, "i": "int32", "u": "int32", "b": "bool"}
    shape = batched(case.shape, rows)
    drawn = (
        case.draw(generator, shape)
        if case.draw
        else draw_for(case.layer, generator, shape)
    )
    return tree_map(lambda leaf: leaf.astype(kinds[leaf.dtype.kind]), drawn)


def kinds(thing: Any) -> set[type]:
    """The classes of a layer and of all layers in it."""
    if isinstance(thing, tuple):
        return set().union(*map(kinds, thing))
    if not isinstance(thing, nn.Layer):
        return set()
    return {type(thing)}.union(*map(kinds, vars(thing).values()))


def arrays_for(case):
    """All that the layer is called with, in float32, on the host."""
    generator = np.random.default_rng(0)
    xp = nn.backend("numpy").xp
    params, state, out = case.layer.init(
        nn.random.key(0, xp=xp), case.shape, xp.float32
    )
    dy = shape_map(
        lambda shape: generator.standard_normal((3, *shape)).astype("float32"), out
    )
    return {
        "params": params,
        "state": state,
        "x": inputs(case, generator, 3, "float32"),
        "dy": dy,
    }


def run(layer, arrays, *, train=False, size=3):
    """All that the layer computes of the first `size` examples."""
    params, state = arrays["params"], arrays["state"]
    x, dy = tree_map(lambda leaf: leaf[:size, ...], (arrays["x"], arrays["dy"]))
    y, after, cache = layer.forward(params, state, x, train=train)
    dx, grads = layer.backward(params, cache, dy)
    result = {name: leaf for name, leaf in named_leaves(dx) if leaf is not None}
    everything = {"y": y, "state": after, "grads": grads, "dx": result}
    if train:
        return everything
    alone = layer.predict(params, state, x), layer.backward_params(params, cache, dy)
    return everything | {"predicted": alone[0], "learned": alone[1]}
