"""Find the layer inside a block that is wrong by itself, after the block has failed.

The layers directly inside are checked one by one, each with the parameters, the state
and the input that it gets in the block. If one that fails is a block, its own layers
follow.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...blocks import Block
from ...core.arrays import Params, State
from ...core.trees import leaves, tree_map
from ...layers.base import Layer
from ..observe import observed_layer, path_of
from .cases import Case, expect_outputs_of_init
from .oracles import AT_KINKS
from .report import CheckFailed

__all__ = ["failure_inside"]

# judge(cases, others): the cases of a layer in float32 and float64, and a function that
# returns the x of two other examples
Judge = Callable[[list[Case], Callable[[], Any]], Any]


class _InnerFailure(NamedTuple):
    """The failure of a layer inside a block.

    call: the number of the call in which it fails, from 1.
    cases: see `failure_inside`.
    """

    name: str
    call: int
    fault: str
    cases: list[Case]


def failure_inside(
    block: Layer,
    cases: list[Case],
    generator: np.random.Generator,
    judge: Judge,
    at_kinks: bool,
) -> str:
    """Say which layer inside a block that failed fails by itself, if one does.

    cases: the block in float32, in float64, and with other examples.
    judge: raises CheckFailed if a layer is wrong.
    at_kinks: whether the block failed because of kinks. Otherwise a layer whose input
        lies at kinks in the block, such as the second of two ReLUs, is not checked.
    """
    path = ""
    message = ""
    while isinstance(block, Block):
        failure, unchecked = _first_failure(
            block, path, cases, generator, judge, at_kinks
        )
        if failure is None:
            kind = type(block).__name__
            if unchecked:
                reasons = "; ".join(unchecked)
                verdict = (
                    f"no layer inside {kind} fails by itself; unchecked: {reasons}"
                )
            else:
                verdict = (
                    f"every layer inside {kind} passes by itself: the fault is in the "
                    f"code of {kind}"
                )
            return f"{message}\n{verdict}" if message else verdict
        cases = failure.cases
        block = cases[-1].layer
        path = path_of(path, failure.name)
        label = _layer_label(path, block)
        label += f", call {failure.call}" if failure.call > 1 else ""
        message = (
            f"the first layer inside that fails by itself: {label}: {failure.fault}"
        )
    return message


def _first_failure(
    block: Block,
    path: str,
    block_cases: list[Case],
    generator: np.random.Generator,
    judge: Judge,
    at_kinks: bool,
) -> tuple[_InnerFailure | None, list[str]]:
    """Check the layers directly inside a block by themselves, until one fails.

    Return the failure or None, and a reason for each layer that could not be checked.
    """
    unchecked = []
    count_of: dict[str, int] = {}
    runs = [_calls_inside(block, case, generator) for case in block_cases]
    for calls in zip(*(calls for calls, _ in runs), strict=False):
        name, _ = calls[0]
        cases = [case for _, case in calls]
        single, double, others = cases
        count_of[name] = count_of.get(name, 0) + 1
        label = _layer_label(path_of(path, name), double.layer)
        try:
            expect_outputs_of_init(single)
            expect_outputs_of_init(double)
            if any(leaf.size for leaf in leaves(double.point)):
                judge([single, double], partial(_x_of, others))
        except CheckFailed as failure:
            fault, *_ = str(failure).split("\n\n", 1)
            if at_kinks or AT_KINKS not in fault:
                return _InnerFailure(name, count_of[name], fault, cases), []
            unchecked.append(f"{label}, {fault}")
        except Exception as error:  # the block may need less than a whole layer
            unchecked.append(f"{label}, {type(error).__name__}: {error}")
    for name, layer in runs[0][1].items():
        if name not in count_of:
            label = _layer_label(path_of(path, name), layer)
            unchecked.append(f"{label}, which the forward pass did not reach")
    return None, unchecked


def _calls_inside(
    block: Block, case: Case, generator: np.random.Generator
) -> tuple[list[tuple[str, Case]], dict[str, Layer]]:
    """Run forward in training; return the calls of the layers directly inside.

    For each call, return the name of the layer and a case of it with a random dy. If
    forward raises, those are the calls until then. Also return all layers by name.
    """
    calls: list[tuple[str, Case]] = []
    layers: dict[str, Layer] = {}

    def inner(name: str, layer: Layer) -> Layer:
        def forward(
            method: Any, params: Params, state: State, x: Any, **options: Any
        ) -> Any:
            arrays = {"params": params, "state": state, "x": x}
            before = tree_map(np.array, arrays)
            y, *others = method(params, state, x, **options)
            dy = tree_map(random_like, y)
            calls.append((name, Case(layer, "train", dy=dy, **before)))
            return (y, *others)

        layers[name] = layer
        return observed_layer(layer, {"forward": forward}, lambda _, deeper: deeper)

    def random_like(leaf: Any) -> np.ndarray:
        return np.asarray(generator.standard_normal(leaf.shape), leaf.dtype)

    # If the block raises, the message says which layers were not reached.
    with suppress(Exception):
        observed = observed_layer(block, {}, inner)
        observed.forward(case.params, case.state, case.x, train=True)
    return calls, layers


def _layer_label(path: str, layer: Layer) -> str:
    """Return the path and the class of a layer inside a block, for messages."""
    kind = type(layer).__name__
    return f"{path} ({kind})" if path else kind


def _x_of(case: Case) -> Any:
    return case.x
