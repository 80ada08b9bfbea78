"""Cases: layers and losses that every test of a layer runs.

`agnostic_nn.diagnostics.examples` has one example of each layer and loss. The files
here, one a family, add what only tests need:

TWINS    class or loss -> how PyTorch computes the same, or why it has none
LIMITS   class or loss -> what the case of its example needs, such as thorough=True
CASES    further cases: other options and shapes

Tests and the table of proofs (`nox -s proofs`) read the same lines.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves, shape_map, tree_map
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES, Example, LossOf
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for

__all__ = [
    "Case",
    "Given",
    "arrays_for",
    "inputs",
    "layer_cases",
    "loss_cases",
    "named",
    "run",
    "subject",
    "without_twin",
]


@dataclass(frozen=True)
class Given:
    """The arguments of PyTorch's twin: our layer, and trees with tensors as leaves."""

    layer: Any
    params: Any
    state: Any
    x: Any
    train: bool


@dataclass(frozen=True, eq=False)  # shapes may be dicts, which do not hash
class Case:
    """A layer, the shape of one example, and how PyTorch computes the same.

    theirs(torch, given) -> y, or (y, state); autograd then gives the gradients of the
    tensors in `given`, in our layout. Or a string: why PyTorch has none. If None, it is
    the twin of the class in TWINS.
    draw(generator, (batch, *shape)) -> x, where normal draws or small integers will not
    do; for a tree of inputs it is called once, with the tree of shapes.
    thorough: one of a sweep, too much for a backend that compiles each.
    refuses: the batch sizes, of 0 and 1, that it cannot train on.
    slack: the factor of the usual tolerances; a comment says why it is not 1.
    """

    layer: nn.Layer
    shape: Any
    theirs: Callable[[Any, Given], Any] | str | None = None
    draw: Callable[[Any, Any], Any] | None = None
    thorough: bool = False
    refuses: tuple[int, ...] = ()
    slack: float = 1.0

    def __str__(self) -> str:
        return f"{self.layer} {self.shape}"


def named(thing: Any) -> str:
    """Return the repr of a case without addresses, so that all processes agree."""
    return re.sub(r" at 0x\w+", "", str(thing))


def subject(layer: nn.Layer) -> Any:
    """Return the class of a layer, or the loss of a `LossOf`: its key in TWINS."""
    return layer.loss if isinstance(layer, LossOf) else type(layer)


def layer_cases() -> list[Case]:
    """The cases of all families: each example, and then further ones."""
    twins: dict[Any, Any] = {}
    limits: dict[Any, dict[str, Any]] = {}
    further: list[Case] = []
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        family = import_module(f"{__name__}.{path.stem}")
        twins |= getattr(family, "TWINS", {})
        limits |= getattr(family, "LIMITS", {})
        further += getattr(family, "CASES", [])
    cases = [
        _case_of(example, limits.get(subject(example.layer), {}))
        for example in (*LAYERS, *LOSSES)
    ]
    return [
        replace(case, theirs=twins.get(subject(case.layer)))
        if case.theirs is None
        else case
        for case in (*cases, *further)
    ]


def loss_cases() -> list[Case]:
    """The cases of losses."""
    return [case for case in layer_cases() if isinstance(case.layer, LossOf)]


def without_twin(cases: list[Case]) -> list[str]:
    """Return, for each class or loss that has no twin, the line to add and where."""
    names = dict.fromkeys(
        subject(case.layer).__name__ for case in cases if case.theirs is None
    )
    return [
        f"add to TWINS in a file of tests/cases: nn.{name}: lambda t, g: ..., which "
        f"computes {name} of g.x with PyTorch (t); or a string that says why it cannot"
        for name in names
    ]


def _case_of(example: Example, limits: dict[str, Any]) -> Case:
    return Case(example.layer, example.shape, draw=example.draw, **limits)


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
