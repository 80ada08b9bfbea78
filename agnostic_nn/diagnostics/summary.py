"""Summarize a model layer by layer: parameters, operations, bytes saved for backward.

Nothing is computed: a `CostCounter` counts the operations and the memory of a training
step from shapes (see `cost.counter`, which defines them). Bytes are those that NumPy
would allocate and save.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import numpy as np

from ..blocks import Block, Freeze, LoRA
from ..core.arrays import Params, Shape, State
from ..core.trees import leaves, shape_map, tree_map
from ..display.tables import (
    TERMINAL_WIDTH,
    FormattedNumber,
    html_table,
    paths_joined,
    table,
)
from ..layers import Layer
from ..layers.base import kinds, outline
from .cost import CostCounter, Memory, blanks_like, peak_of
from .observe import Hook, cached_arrays, observed_layer, path_of

__all__ = ["Row", "Summary", "bytes_of_training", "summarize"]


@dataclass(frozen=True)
class Row:
    """The path, description, output shape and cost of one layer.

    A block's row excludes the layers inside it, except in the last two figures.
    `frozen` counts parameters that are state (see `Freeze`) and are not counted in
    `parameters`. The backward of a model's first layer is without dL/dx, as in
    training; recomputation counts as backward.
    depth: the number of rows that this one is nested in.

    bytes_kept: the bytes of the arrays that the layer saves for backward.

    If the layer with all layers inside were recomputed in the backward pass (see
    `Recompute`), `recompute_saves` bytes would not be saved for backward, at the cost
    of `recompute_flops` operations.
    """

    path: str
    layer: str
    shape: Shape
    parameters: int
    bytes_kept: int
    frozen: int = 0
    flops_forward: int = 0
    flops_backward: int = 0
    recompute_saves: int = 0
    recompute_flops: int = 0
    depth: int = 0


@dataclass(frozen=True)
class Summary:
    """Rows for the layers of a model, fed `batch_size` examples; `str()` is a table.

    bytes_of_training: the predicted peak memory of a training step (see the function
    `bytes_of_training`); None if the loss or the optimizer is unknown.
    """

    rows: tuple[Row, ...]
    batch_size: int
    bytes_of_training: int | None = None

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def frozen(self) -> int:
        return sum(row.frozen for row in self.rows)

    @property
    def bytes_kept(self) -> int:
        return sum(row.bytes_kept for row in self.rows)

    @property
    def flops_forward(self) -> int:
        return sum(row.flops_forward for row in self.rows)

    @property
    def flops_backward(self) -> int:
        return sum(row.flops_backward for row in self.rows)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, verbose: bool = False) -> str:
        """Return the table and the remarks, in lines of at most 80 columns.

        If the table would be wider, layers have no options, large numbers four digits,
        and the columns about recomputation are in a second table.
        verbose: whether it may be as wide as needed instead.
        """
        columns, rows = self.cells()
        text = table(columns, rows)
        if not verbose and max(map(len, text.splitlines())) > TERMINAL_WIDTH:
            text = self._narrow_tables(columns, rows)
        remarks = [fill(remark, TERMINAL_WIDTH) for remark in self.remarks()]
        return "\n\n".join([text, *remarks])

    def _narrow_tables(self, columns: list[str], rows: list[list[Any]]) -> str:
        numbers_at = columns.index("parameters")
        for row in rows:
            row[1] = row[1].partition("(")[0].lstrip("\u00a0")
            row[numbers_at:] = map(_four_digits, row[numbers_at:])
        end = columns.index(_FREED) if _FREED in columns else len(columns)
        tables = [(columns[:end], [row[:end] for row in rows])]
        if end < len(columns):
            freed = [[*row[:2], *row[end:]] for row in rows if row[end] is not None]
            tables.append(([*columns[:2], *columns[end:]], freed))
        return "\n\n".join(
            table(*paths_joined(*cells), width=TERMINAL_WIDTH) for cells in tables
        )

    def _repr_html_(self) -> str:
        remarks = "".join(f"<p>{remark}</p>" for remark in self.remarks())
        return html_table(*self.cells(), inline=True) + remarks

    def cells(self) -> tuple[list[str], list[list[Any]]]:
        """Return the columns and the rows of the table, the totals last.

        Columns about frozen parameters and recomputation are left out if empty.
        """
        counts = {
            "parameters": "parameters",
            "frozen": "frozen",
            "FLOPs forward": "flops_forward",
            "backward": "flops_backward",
            f"bytes saved, batch {self.batch_size}": "bytes_kept",
            _FREED: "recompute_saves",
            "extra FLOPs": "recompute_flops",
        }
        if not self.frozen:
            del counts["frozen"]
        if not any(row.recompute_saves for row in self.rows):
            del counts[_FREED], counts["extra FLOPs"]
        lines: list[list[Any]] = []
        for row in self.rows:
            # HTML collapses plain spaces
            indented = "\u00a0\u00a0" * row.depth + row.layer
            numbers = [getattr(row, name) or None for name in counts.values()]
            if "extra FLOPs" in counts and not row.recompute_saves:
                numbers[-1] = None
            lines.append([row.path, indented, str(row.shape), *numbers])
        totals = [getattr(self, name, None) for name in counts.values()]
        columns = ["", "layer", "output shape", *counts]
        return columns, [*lines, ["", "total", "", *totals]]

    def remarks(self) -> list[str]:
        """Return the remarks below the table."""
        remarks = [_BYTES_REMARK]
        if self.bytes_of_training is not None:
            size = _megabytes(self.bytes_of_training)
            remarks += [f"Predicted peak memory of a training step on NumPy: {size}."]
        return remarks


_FREED = "Recompute: bytes freed"
_BYTES_REMARK = (
    "Bytes saved for backward are those of NumPy: native versions of LSTM, attention, "
    "pooling or normalization in other libraries may save more or less."
)


def _four_digits(number: int | None) -> int | FormattedNumber | None:
    """Return a number as "1.24 M" if it has more than five digits."""
    if number is None or number < 100_000:
        return number
    exponent = 3 * min(int(math.log10(number)) // 3, 4)
    unit = {3: "k", 6: "M", 9: "G", 12: "T"}[exponent]
    return FormattedNumber(f"{number / 10**exponent:.4g} {unit}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


@dataclass
class _Note:
    """The records of one layer.

    above: the note of the block around it. read: the memory of its inputs. saved: the
    memory of its cache.
    """

    path: str
    layer: Layer
    above: "_Note | None"
    shape: Any = ()
    parameters: int = 0
    frozen: int = 0
    forward: int = 0
    backward: int = 0
    bytes_kept: int = 0
    read: set[Memory] = field(default_factory=set)
    saved: set[Memory] = field(default_factory=set)

    def is_within(self, other: "_Note") -> bool:
        """Return whether this is `other` or inside it."""
        above: _Note | None = self
        while above is not None and above is not other:
            above = above.above
        return above is other


def summarize(
    model: Layer,
    params: Params,
    state: State,
    shape: Shape,
    dtype: str,
    batch_size: int,
) -> Summary:
    """Return the summary of a model, from a training step on shapes alone.

    An array that two layers save, itself or as a view, is counted once, for the first
    of them; so are parameters that two layers share.
    """
    notes: list[_Note] = []  # in the order in which layers are called
    counter = CostCounter()
    with counter:
        params, state = blanks_like((params, state))
        x = blanks_like(_like_input(model.input_kinds, shape, dtype, batch_size))
        trained = {leaf.memory for leaf in leaves(params)}
        held = {leaf.memory for leaf in leaves(state)}
        constant = trained | held
        observed = _Recorder(counter, notes, trained, held).observed(model, "", None)
        y, _, cache = observed.forward(params, state, x, train=True)
        forward = counter.operations.copy()
        cached = list(cached_arrays(cache, 0))
        observed.backward_params(params, cache, blanks_like(y))

    counted: set[Memory] = set()
    for number, leaf in cached:
        if leaf.memory in constant:
            continue
        notes[number].saved.add(leaf.memory)
        if leaf.memory not in counted:
            notes[number].bytes_kept += leaf.memory.size
            counted.add(leaf.memory)
    for number, note in enumerate(notes):
        note.forward = forward[number]
        note.backward = counter.operations[number] - forward[number]
    return Summary(tuple(_rows(notes, constant)), batch_size)


@contextmanager
def _naming(note: _Note) -> Iterator[None]:
    """Add the innermost layer to the message of an exception raised inside."""
    try:
        yield
    except Exception as error:
        if not getattr(error, "__notes__", None):
            where = filter(None, (note.path, outline(note.layer)))
            error.add_note("in " + ", ".join(where))
        raise


class _Recorder:
    """Records the calls of each layer, and marks what it saves for backward.

    notes: in the order of first calls. The number of a note is the owner of its layer's
    operations in the counter, and the key under which the layer's cache is put into a
    dict. trained, held: the memory of the parameters and of the state.
    """

    def __init__(
        self,
        counter: CostCounter,
        notes: list[_Note],
        trained: set[Memory],
        held: set[Memory],
    ) -> None:
        self.counter = counter
        self.notes = notes
        self.trained = trained
        self.held = held
        self.counted: set[tuple[Memory, int]] = set()

    def observed(self, layer: Layer, path: str, above: _Note | None) -> Layer:
        """Return a copy of `layer` that records its calls and those of inner layers."""
        note = _Note(path, layer, above)
        number: int | None = None

        def forward(
            method: Callable[..., Any],
            params: Params,
            state: State,
            x: Any,
            **mode: Any,
        ) -> tuple[Any, ...]:
            nonlocal number
            if number is None:
                number = len(self.notes)
                self.notes.append(note)
            note.read |= {leaf.memory for leaf in leaves(x)}
            with self.counter.owned_by(number), _naming(note):
                y, state, cache = method(params, state, x, **mode)
            note.shape = tree_map(lambda leaf: tuple(leaf.shape[1:]), y)
            self._count(note, params)
            if isinstance(note.layer, Freeze | LoRA):
                # inner layers got converted or adapted copies of these
                self._count(note, state["params"])
            return y, state, {number: cache}

        def backward(
            method: Callable[..., Any], params: Params, cache: Any, dy: Any
        ) -> Any:
            # `backward_params` may have unpacked the cache before it calls `backward`.
            marked = isinstance(cache, dict) and number in cache
            own_cache = cache[number] if marked else cache
            with self.counter.owned_by(number), _naming(note):
                return method(params, own_cache, dy)

        def inner(name: str, layer: Layer) -> Layer:
            return self.observed(layer, path_of(path, name), note)

        hooks: dict[str, Hook] = {"forward": forward}
        hooks |= {"backward": backward, "backward_params": backward}
        return observed_layer(layer, hooks, inner)

    def _count(self, note: _Note, params: Params) -> None:
        for leaf in leaves(params):
            if leaf.place not in self.counted:
                self.counted.add(leaf.place)
                learns = leaf.memory in self.trained
                note.parameters += leaf.size * learns
                note.frozen += leaf.size * (leaf.memory in self.held)


def _rows(notes: list[_Note], constant: set[Memory]) -> Iterator[Row]:
    """Yield a row for each layer, except blocks that only call the layers inside."""
    depths: dict[int, int] = {}  # of the rows inside a note, by its id
    for note in notes:
        above = note.above
        depth = depths[id(above)] if above else 0
        own = note.parameters, note.bytes_kept, note.frozen, note.forward, note.backward
        is_block = isinstance(note.layer, Block)
        description = outline(note.layer, whole=not is_block)
        same = note.path == (above.path if above else "")
        if is_block and same and not any(own) and "(" not in description:
            depths[id(note)] = depth
            continue
        depths[id(note)] = depth + 1
        recomputed = _recomputed(note, notes, constant)
        yield Row(note.path, description, note.shape, *own, *recomputed, depth)


def _recomputed(
    note: _Note, notes: list[_Note], constant: set[Memory]
) -> tuple[int, int]:
    """Return the bytes that recomputing a layer frees, and its extra operations."""
    inside = [other for other in notes if other.is_within(note)]
    outside = [other for other in notes if not other.is_within(note)]
    saved_inside = set().union(*(other.saved for other in inside))
    saved_outside = set().union(*(other.saved for other in outside), constant)
    freed = sum(memory.size for memory in saved_inside - saved_outside - note.read)
    # The inputs would have to be saved instead.
    freed -= sum(memory.size for memory in note.read - saved_inside - saved_outside)
    return max(freed, 0), sum(other.forward for other in inside)


def _like_input(input_kinds: Any, shape: Any, dtype: str, batch_size: int) -> Any:
    """Return arrays of zeros like a batch of x, in dtypes that the model accepts."""
    dtypes = {"bool": "bool", "integral": "int32"}

    def zeros(leaf: Any, kind: str) -> Any:
        return np.broadcast_to(np.zeros((), dtypes.get(kind, dtype)), leaf.shape)

    x = shape_map(lambda axes: np.broadcast_to(0.0, (batch_size, *axes)), shape)
    return tree_map(zeros, x, kinds(input_kinds, x))


def bytes_of_training(
    step: Callable[..., Any],
    carry: tuple[Any, ...],
    model: Layer,
    shape: Any,
    dtype: str,
    batch_size: int,
) -> int | None:
    """Return the peak bytes of arrays in `step`, a step as `make_step` makes it.

    The figure is that of NumPy with `AGNOSTIC_NN_REPLAY=0`, which runs one call after
    the other. It includes the old and the new parameters, moments and state, the
    gradients, the batch, the cache for backward, and the temporaries that are alive at
    the peak. A replay overwrites parameters and moments and holds the memory of its
    plan at all times: less for a model that is mostly parameters, more for others. A
    compiler plans its memory differently.

    Targets are tried as class numbers and then like y. Returns None if the loss refuses
    both.
    """
    x = _like_input(model.input_kinds, shape, dtype, batch_size)
    params, state, _ = carry
    with CostCounter():
        y, _, _ = model.forward(*blanks_like((params, state, x)), train=True)
    targets = [y]
    if not isinstance(y, dict | tuple) and y.ndim > 1:
        targets.insert(0, np.broadcast_to(np.int32(0), y.shape[:-1]))
    for target in targets:
        try:
            return peak_of(step, carry, x, target)
        except Exception:  # whatever a custom loss raises
            continue
    return None
