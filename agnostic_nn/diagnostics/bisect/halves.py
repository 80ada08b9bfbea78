"""The stages of a step in float16 or bfloat16, as `MixedPrecision` computes them.

Layers compute in the half dtype, with their parameters, x and dy converted to it. State
stays in float32, and so do the loss and the optimizer. In float16, dy is multiplied by
a power of two s, and the results of the backward pass are divided by it, so that small
gradients are not lost.

The inputs of a layer are rounded to the half dtype beforehand, for the reference and
for every side, so the conversion is exact and its rounding is not part of a deviation.
A whole step converts float32 numbers instead, and there it is.
"""

from collections.abc import Callable
from typing import Any

from ...blocks import MixedPrecision
from ...core.arrays import float_bits, namespace
from ...core.precisions import HALVES
from ...core.trees import tree_map
from ...layers import Identity
from ...ops import widened
from ..representable import nearest
from .stages import BACKWARD, Stage, cast

__all__ = ["dtype_of_stage", "function_in", "round_inputs", "scale_of", "with_rounding"]

# the kinds of stages that compute in the half dtype
_IN_HALF = ("layer", "around", "whole")
# inputs that stay in float32
_WIDE = ("state", "keys")


def scale_of(dtype: str) -> float:
    """Return s, by which dy is multiplied in a dtype."""
    return MixedPrecision(Identity(), dtype).scale or 1.0 if dtype in HALVES else 1.0


def dtype_of_stage(stage: Stage, dtype: str) -> str:
    """Return the dtype in which a stage is computed on a side of a dtype."""
    return "float32" if dtype in HALVES and stage.kind not in _IN_HALF else dtype


def round_inputs(stage: Stage, dtype: str) -> None:
    """Round the inputs of a stage to the numbers that it gets in a dtype.

    They are in float32, which holds all numbers of a half dtype. A whole step keeps
    numbers of float32, since it converts them itself.
    """
    if dtype not in HALVES or stage.kind not in ("layer", "around"):
        stage.inputs = cast(stage.inputs, "float32" if dtype in HALVES else dtype)
        return
    scale = scale_of(dtype)

    def rounded(name: str, tree: Any) -> Any:
        if name in _WIDE:
            return tree
        if name == "inside":
            return {
                layer: tuple(_mapped(rounded, call) for call in calls)
                for layer, calls in tree.items()
            }
        factor = scale if name in ("dy", "dx", "grads") else 1.0
        return tree_map(lambda leaf: nearest(leaf * factor, dtype) / factor, tree)

    stage.inputs = cast(_mapped(rounded, stage.inputs), "float32")


def _mapped(function: Callable[[str, Any], Any], trees: dict[str, Any]) -> Any:
    """Return function(name, tree) for each tree, by name."""
    return {name: function(name, tree) for name, tree in trees.items()}


def function_in(stage: Stage, dtype: str) -> Callable[..., Any]:
    """Return the function from the inputs of a stage to its results, in a dtype.

    Inputs and results are in float32 for a half dtype.
    """
    if dtype_of_stage(stage, dtype) not in HALVES:
        return stage.function
    if stage.kind == "whole":
        model, loss = stage.thing
        return stage.function_of((MixedPrecision(model, dtype), loss))
    return _InHalf(stage.function, dtype, scale_of(dtype))


class _InHalf:
    """Run the function of a layer or a block with its inputs converted to `dtype`."""

    def __init__(self, function: Callable[..., Any], dtype: str, scale: float) -> None:
        self.function = function
        self.dtype = dtype
        self.scale = scale

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        results = self.function(_mapped(self._converted, inputs))
        return {path: self._restored(path, leaf) for path, leaf in results.items()}

    def _converted(self, name: str, tree: Any) -> Any:
        if name in _WIDE:
            return tree
        if name == "inside":
            return {
                layer: tuple(_mapped(self._converted, call) for call in calls)
                for layer, calls in tree.items()
            }
        factor = self.scale if name in ("dy", "dx", "grads") else 1.0

        def narrowed(leaf: Any) -> Any:
            xp = namespace(leaf)
            if not float_bits(leaf.dtype, xp):
                return leaf
            return xp.astype(leaf * factor, getattr(xp, self.dtype))

        return tree_map(narrowed, tree)

    def _restored(self, path: str, leaf: Any) -> Any:
        if not float_bits(leaf.dtype, namespace(leaf)):
            return leaf
        is_backward = path.partition(".")[0] in BACKWARD
        return widened(leaf) / self.scale if is_backward else widened(leaf)


def with_rounding(stage: Stage) -> Callable[..., Any]:
    """Return the formula of a whole step that multiplies parameters and x by 1.

    The result is the same, but `noise` adds a rounding error to each product: that of
    the conversion to a half dtype.
    """

    def multiplied(leaf: Any) -> Any:
        return leaf * 1.0 if float_bits(leaf.dtype, namespace(leaf)) else leaf

    def formula(inputs: dict[str, Any]) -> Any:
        converted = {
            name: tree_map(multiplied, inputs[name]) for name in ("params", "x")
        }
        return stage.formula(inputs | converted)

    return formula
