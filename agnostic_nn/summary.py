"""Summary: what a model is made of, layer by layer, and what it keeps for `backward`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Params, Shape, State
from .blocks import Sequential
from .layers import Layer
from .tables import table
from .trees import leaves

__all__ = ["Row", "Summary", "summarize"]


@dataclass(frozen=True)
class Row:
    """One layer: its place in the model, itself, and what it makes and keeps."""

    path: str
    layer: str
    shape: Shape
    parameters: int
    bytes_kept: int


@dataclass(frozen=True)
class Summary:
    """Rows for the layers of a model, fed `batch_size` examples; `str()` is a table."""

    rows: tuple[Row, ...]
    batch_size: int

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def bytes_kept(self) -> int:
        return sum(row.bytes_kept for row in self.rows)

    def __str__(self) -> str:
        kept = f"bytes kept for backward, batch {self.batch_size}"
        rows = [(r.path, r.layer, str(r.shape), r.parameters, r.bytes_kept) for r in self.rows]
        total = ("", "total", "", self.parameters, self.bytes_kept)
        return table(("", "layer", "output shape", "parameters", kept), [*rows, total])


def summarize(
    model: Layer, params: Params, state: State, shape: Shape, dtype: str, batch_size: int
) -> Summary:
    """Feed the model zeros on the host, and look at what comes out of each layer and what stays.

    An array that two layers keep, or that is a view of one, is counted once, where it
    was kept first.
    """
    rows: list[Row] = []
    kept = {_memory(leaf): leaf for leaf in leaves(params)}  # alive, or their place is reused

    def visit(layer: Layer, params: Any, state: Any, x: np.ndarray, path: str) -> np.ndarray:
        if isinstance(layer, Sequential):  # a way around it, as in Residual, changes no shape
            for i, inner in enumerate(layer.layers):
                x = visit(inner, params[i], state[i], x, f"{path}.{i}" if path else str(i))
            return x
        y, _, cache = layer.forward(params, state, x, train=True)
        new = {_memory(leaf): leaf for leaf in leaves(cache) if _memory(leaf) not in kept}
        kept.update(new)
        size = sum(leaf.nbytes for leaf in new.values())
        counted = sum(leaf.size for leaf in leaves(params))
        rows.append(Row(path, repr(layer), tuple(y.shape[1:]), counted, size))
        return y

    x = np.zeros((batch_size, *shape), "int32" if model.takes == "integral" else dtype)
    visit(model, params, state, x, "")
    return Summary(tuple(rows), batch_size)


def _memory(array: np.ndarray) -> int:
    """Where the memory lies that `array` is, or is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.__array_interface__["data"][0]
