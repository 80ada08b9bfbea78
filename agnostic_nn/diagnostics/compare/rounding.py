"""Count the consecutive roundings in a training step, layer by layer.

One step is taken on NumPy with arrays that report each operation. A sum of k numbers
makes k roundings, and so does each element of a matrix product; other arithmetic makes
one; moving, comparing or choosing numbers makes none. A function of `ops` is counted as
its standard version, since a native version may round less often but not more often.

Parallel branches are counted as if they were sequential, so the counts are upper
bounds: the count at a layer's outputs is the number of all roundings before them, in
the order of computation, and so is the count at its gradients on the way back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import ops
from ...blocks import Block
from ...core.arrays import namespace
from ...core.trees import leaves
from ...layers import Layer
from ..observe import (
    Args,
    Function,
    Handler,
    Hook,
    Kwargs,
    branch,
    observed_model,
    run,
)

__all__ = ["Chains", "chains", "layer_of"]

SUMS = {"sum", "mean", "var", "std", "prod", "cumulative_sum", "cumulative_prod"}
PRODUCTS = {"matmul", "vecdot", "tensordot"}
EXACT = {  # operations that make no new numbers
    "abs", "argmax", "argmin", "argsort", "asarray", "astype", "broadcast_arrays",
    "broadcast_to", "ceil", "clip", "concat", "copysign", "empty", "empty_like",
    "expand_dims", "eye", "flip", "floor", "full", "full_like", "getitem",
    "matrix_transpose", "max", "maximum", "min", "minimum", "moveaxis", "negative",
    "ones", "ones_like", "permute_dims", "positive", "repeat", "reshape", "roll",
    "round", "sign", "sort", "squeeze", "stack", "take", "take_along_axis", "tile",
    "tril", "triu", "trunc", "unstack", "where", "zeros", "zeros_like",
}  # fmt: skip


@dataclass(frozen=True)
class Chains:
    """Consecutive roundings up to each layer's outputs and gradients, and in a step.

    outputs, gradients: by the path of the layer, in the order of computation; about: a
    description of each layer; predictions: roundings up to the predictions of the
    model.
    """

    outputs: dict[str, int]
    gradients: dict[str, int]
    step: int
    about: dict[str, str] = field(default_factory=dict)
    predictions: int = 0

    @property
    def loss(self) -> int:
        """An upper bound for the loss: the first gradient is computed after it."""
        return min(self.gradients.values(), default=self.step)

    @property
    def update(self) -> int:
        """From the gradients to the new parameters."""
        return self.step - max(self.gradients.values(), default=0)


def chains(
    step_of: Callable[[Layer], Callable[..., Any]],
    model: Layer,
    carry: Any,
    batch: tuple[Any, ...],
    x: Any = None,
) -> Chains:
    """Return the roundings of step_of(model)(carry, *batch), as `make_step` makes it.

    x: examples to predict, whose roundings are counted too.

    A custom layer may accept NumPy's arrays only, and then cannot be observed. In that
    case the counts are estimated from shapes: forward sums over the rows of each
    weight, backward over its columns, and a gradient over the batch; that is the
    lengths of all axes of all parameters, and once the batch.
    """
    counter = _Counter()
    outputs: dict[str, int] = {}
    gradients: dict[str, int] = {}
    about: dict[str, str] = {}

    def recorded(path: str, counts: dict[str, int]) -> Hook:
        def hook(method: Callable[..., Any], *args: Any, **mode: Any) -> Any:
            result = method(*args, **mode)
            counts.pop(path, None)  # so that the layer reached last also stands last
            counts[path] = counter.roundings
            return result

        return hook

    def hooks(layer: Layer, path: str) -> dict[str, Hook]:
        about[path] = type(layer).__name__ if isinstance(layer, Block) else repr(layer)
        backward = recorded(path, gradients)
        forward = recorded(path, outputs)
        return {"forward": forward, "backward": backward, "backward_params": backward}

    prediction_counter = _Counter()
    try:
        run(counter, step_of(observed_model(model, hooks)), carry, *batch)
        if x is not None:
            run(prediction_counter, model.predict, carry[0], carry[1], x)
    except Exception:  # whatever a custom layer raises
        guess = len(leaves(batch[0])[0]) + sum(
            sum(leaf.shape) for leaf in leaves(carry[0])
        )
        return Chains({}, {}, guess, predictions=guess)
    return Chains(
        outputs, gradients, counter.roundings, about, prediction_counter.roundings
    )


def layer_of(name: str, paths: Any) -> str:
    """Return the innermost of the layers at `paths` that holds the parameter `name`."""
    holding = [path for path in paths if not path or f"{name}.".startswith(f"{path}.")]
    return max(holding, key=len, default="")


class _Counter(Handler):
    """Counts the roundings of all operations."""

    def __init__(self) -> None:
        super().__init__(namespace(np.zeros(())))
        self.roundings = 0

    def compute(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        result = function(*args, **kwargs)
        if name not in EXACT and not name.startswith("random."):
            self.roundings += _roundings_of(name, args, result)
        return result

    def call_ops(
        self, name: str, function: Function, args: Args, kwargs: Kwargs
    ) -> Any:
        if function is ops.select:
            return branch(*args)
        if name.startswith("random."):  # integers
            return self.call(name, function, args, kwargs)
        return super().call_ops(name, function, args, kwargs)


def _roundings_of(name: str, args: tuple[Any, ...], result: Any) -> int:
    """Return how many roundings each element of `result` has gone through."""
    floats = [leaf for leaf in _arrays(result) if leaf.dtype.kind == "f"]
    if not floats or not floats[0].size:
        return 0
    if name in PRODUCTS:
        return int(args[0].shape[-1])
    if name in SUMS:
        return max(1, int(args[0].size // floats[0].size))
    return 1


def _arrays(tree: Any) -> list[Any]:
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in _arrays(branch)]
    return [tree] if isinstance(tree, np.ndarray | np.generic) else []
