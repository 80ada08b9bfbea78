"""Summary: what a model is made of, layer by layer, and what it keeps for `backward`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Params, Shape, State
from .layers import Layer
from .layers.base import kinds
from .tables import table
from .trees import leaves, shape_map, tree_map

__all__ = ["Row", "Summary", "summarize"]


@dataclass(frozen=True)
class Row:
    """One layer: its place in the model, itself, and what it makes and keeps.

    A block is a row of its own where it holds or keeps something itself. `frozen` counts
    parameters that are state (see `Freeze`), which `parameters` does not.
    """

    path: str
    layer: str
    shape: Shape
    parameters: int
    bytes_kept: int
    frozen: int = 0


@dataclass(frozen=True)
class Summary:
    """Rows for the layers of a model, fed `batch_size` examples; `str()` is a table."""

    rows: tuple[Row, ...]
    batch_size: int

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def frozen(self) -> int:
        return sum(row.frozen for row in self.rows)

    @property
    def bytes_kept(self) -> int:
        return sum(row.bytes_kept for row in self.rows)

    def __str__(self) -> str:
        kept = f"bytes kept for backward, batch {self.batch_size}"
        columns = ["", "layer", "output shape", "parameters", kept]
        rows = [[r.path, r.layer, str(r.shape), r.parameters, r.bytes_kept] for r in self.rows]
        total = ["", "total", "", self.parameters, self.bytes_kept]
        if self.frozen:
            columns.insert(4, "frozen")
            frozen = [*(row.frozen for row in self.rows), self.frozen]
            for cells, count in zip([*rows, total], frozen, strict=True):
                cells.insert(4, count)
        return table(columns, [*rows, total])


@dataclass
class _Note:
    """What is known so far of one layer."""

    path: str
    layer: Layer
    shape: Any = ()
    parameters: int = 0
    bytes_kept: int = 0
    frozen: int = 0


def summarize(
    model: Layer, params: Params, state: State, shape: Shape, dtype: str, batch_size: int
) -> Summary:
    """Feed the model zeros on the host, and look at what comes out of each layer and what stays.

    An array that two layers keep, or that is a view of one, is counted once, where it
    was kept first; so are parameters that two layers share.
    """
    notes: list[_Note] = []
    trained = {_memory(leaf) for leaf in leaves(params)}
    counted: set[int] = set()

    def watched(layer: Layer, path: str) -> Layer:
        """A twin of `layer` that notes what passes through, and signs what it keeps."""
        note, number, kind = _Note(path, layer), len(notes), type(layer)
        notes.append(note)

        def forward(self, params, state, x, *, train=False):
            y, state, cache = kind.forward(self, params, state, x, train=train)
            note.shape = tree_map(lambda leaf: tuple(leaf.shape[1:]), y)
            for leaf in leaves(params):
                if _place(leaf) not in counted:
                    counted.add(_place(leaf))
                    learns = _memory(leaf) in trained
                    note.parameters += leaf.size * learns
                    note.frozen += leaf.size * (not learns)
            return y, state, {number: cache}

        def inner(name: str, layer: Layer) -> Layer:
            return watched(layer, ".".join(filter(None, (path, name))))

        mapped = layer.map_layers(inner) if hasattr(layer, "map_layers") else layer
        twin: Any = object.__new__(type(kind.__name__, (kind,), {"forward": forward}))
        vars(twin).update(vars(mapped))
        return twin

    x = _zeros(model.takes, shape, dtype, batch_size)
    _, _, cache = watched(model, "").forward(params, state, x, train=True)
    kept = {_memory(leaf): leaf for leaf in leaves((params, state))}
    for number, leaf in _signed(cache):
        if _memory(leaf) not in kept:
            kept[_memory(leaf)] = leaf
            notes[number].bytes_kept += leaf.nbytes
    return Summary(tuple(row for note in notes for row in _rows(note)), batch_size)


def _rows(note: _Note) -> Iterator[Row]:
    """A row for a layer; none for a block that holds and keeps nothing of its own."""
    block = hasattr(note.layer, "map_layers")
    found = (note.parameters, note.bytes_kept, note.frozen)
    if any(found) or not block:
        shown = type(note.layer).__name__ if block else repr(note.layer)
        yield Row(note.path, shown, note.shape, *found)


def _signed(cache: Any, number: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Each array that was kept, with the number of the innermost layer that signed it."""
    if isinstance(cache, dict):
        for name, entry in cache.items():
            yield from _signed(entry, name if isinstance(name, int) else number)
    elif isinstance(cache, tuple):
        for entry in cache:
            yield from _signed(entry, number)
    else:
        yield number, cache


def _zeros(takes: Any, shape: Any, dtype: str, batch_size: int) -> Any:
    """An x of zeros for a tree of shapes, and of `True` where it is a mask."""
    dtypes = {"bool": "bool", "integral": "int32"}
    shapes = shape_map(lambda one: (batch_size, *one), shape)
    blank = shape_map(np.zeros, shapes)
    return tree_map(
        lambda leaf, kind: np.full(leaf.shape, kind == "bool", dtypes.get(kind, dtype)),
        blank,
        kinds(takes, blank),
    )


def _place(array: np.ndarray) -> int:
    """Where the first number of an array lies."""
    return array.__array_interface__["data"][0]


def _memory(array: np.ndarray) -> int:
    """Where the memory lies that `array` is, or is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return _place(array)
