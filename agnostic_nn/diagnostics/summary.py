"""Summary: what a model is made of, layer by layer, what it keeps for `backward` and asks for.

Nothing is computed: a `Ledger` counts what a training step would ask of its array library, for
arrays of these shapes. FLOPs are counted there, and what they are is said there; so are bytes,
which are those that NumPy would take and keep.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..blocks import Block
from ..core.arrays import Params, Shape, State
from ..core.trees import leaves, shape_map, tree_map
from ..display.tables import html_table, table
from ..layers import Layer
from ..layers.base import kinds, outline
from .cost import Ledger, Memory, blanks_like, peak_of
from .observe import Hook, observed_layer, path_of

__all__ = ["Row", "Summary", "bytes_of_training", "summarize"]


@dataclass(frozen=True)
class Row:
    """One layer: its place in the model, itself, and what it makes, keeps and asks for.

    What belongs to a layer within a block is not the block's, but for the last two.
    `frozen` counts parameters that are state (see `Freeze`), which `parameters` does not. The
    backward of a model's first layer is without dL/dx, as in training, and has in it what is
    computed again. depth: how many rows it is within.

    Were the layer, with all that is inside, computed again on the way back (see `Recompute`),
    `recompute_saves` bytes would not be kept until then, for `recompute_flops` more.
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

    bytes_of_training: the most that one step of training holds at once, as predicted by
    `bytes_of_training`; None if nothing is known of how it is trained.
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
        return "\n\n".join([table(*self.cells()), *self.remarks()])

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{remark}</p>" for remark in self.remarks())
        return html_table(*self.cells(), inline=True) + said

    def cells(self) -> tuple[list[str], list[list]]:
        """Columns and rows of its table, the totals last."""
        columns = {"": "path", "layer": "layer", "output shape": "shape"}
        counts = {
            "parameters": "parameters",
            "frozen": "frozen",
            "FLOPs forward": "flops_forward",
            "backward": "flops_backward",
            f"bytes kept, batch {self.batch_size}": "bytes_kept",
            "recomputed: bytes saved": "recompute_saves",
            "for FLOPs": "recompute_flops",
        }
        if not self.frozen:
            del counts["frozen"]
        lines: list[list] = []
        for row in self.rows:
            shown = "\u00a0\u00a0" * row.depth + row.layer  # HTML would leave spaces out
            numbers = [getattr(row, name) or None for name in counts.values()]
            if not row.recompute_saves:
                numbers[-1] = None
            lines.append([row.path, shown, str(row.shape), *numbers])
        totals = [getattr(self, name, None) for name in counts.values()]
        return [*columns, *counts], [*lines, ["", "total", "", *totals]]

    def remarks(self) -> list[str]:
        """What is to be said below it."""
        said = [_WHOSE]
        if self.bytes_of_training is not None:
            size = _megabytes(self.bytes_of_training)
            said += [f"As predicted, one step of training on NumPy holds up to {size} at once."]
        return said


_WHOSE = (
    "Bytes kept are those of NumPy: another library's own version of an LSTM, of attention, of "
    "pooling or of normalization may keep more or less."
)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


@dataclass
class _Note:
    """What is known so far of one layer."""

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
    kept: set[Memory] = field(default_factory=set)

    def is_within(self, other: "_Note") -> bool:
        """Whether this is `other`, or somewhere inside."""
        above: _Note | None = self
        while above is not None and above is not other:
            above = above.above
        return above is other


def summarize(
    model: Layer, params: Params, state: State, shape: Shape, dtype: str, batch_size: int
) -> Summary:
    """Feed the model arrays of no numbers, and look at what it asks for and what stays.

    An array that two layers keep, or that is a view of one, is counted once, where it
    was kept first; so are parameters that two layers share.
    """
    notes: list[_Note] = []  # in the order in which layers are called
    ledger = Ledger()
    with ledger:
        params, state = blanks_like((params, state))
        x = blanks_like(_like_input(model.input_kinds, shape, dtype, batch_size))
        trained = {leaf.memory for leaf in leaves(params)}
        constant = trained | {leaf.memory for leaf in leaves(state)}
        observed = _Recorder(ledger, notes, trained).observed(model, "", None)
        y, _, cache = observed.forward(params, state, x, train=True)
        forward = ledger.operations.copy()
        signed = list(_signed(cache))
        observed.backward_params(params, cache, blanks_like(y))

    known: set[Memory] = set()
    for number, leaf in signed:
        if leaf.memory in constant:
            continue
        notes[number].kept.add(leaf.memory)
        if leaf.memory not in known:
            notes[number].bytes_kept += leaf.memory.size
            known.add(leaf.memory)
    for number, note in enumerate(notes):
        note.forward = forward[number]
        note.backward = ledger.operations[number] - forward[number]
    return Summary(tuple(_rows(notes, constant)), batch_size)


@contextmanager
def _naming(note: _Note) -> Iterator[None]:
    """What is raised in here says by which layer, the innermost."""
    try:
        yield
    except Exception as error:
        if not getattr(error, "__notes__", None):
            error.add_note("in " + ", ".join(filter(None, (note.path, outline(note.layer)))))
        raise


class _Recorder:
    """Records what passes through each layer, and marks what it keeps for backward.

    notes: in the order of first calls. The number of a note is the owner of what its layer asks
    for, and the key under which the layer's cache is put into a dict.
    """

    def __init__(self, ledger: Ledger, notes: list[_Note], trained: set[Memory]) -> None:
        self.ledger = ledger
        self.notes = notes
        self.trained = trained
        self.counted: set[tuple[Memory, int]] = set()

    def observed(self, layer: Layer, path: str, above: _Note | None) -> Layer:
        """Return a copy of `layer` whose calls are recorded, and those of the layers inside."""
        note = _Note(path, layer, above)
        number: int | None = None

        def forward(method: Callable, params: Params, state: State, x: Any, **mode: Any) -> tuple:
            nonlocal number
            if number is None:
                number = len(self.notes)
                self.notes.append(note)
            note.read |= {leaf.memory for leaf in leaves(x)}
            with self.ledger.owned_by(number), _naming(note):
                y, state, cache = method(params, state, x, **mode)
            note.shape = tree_map(lambda leaf: tuple(leaf.shape[1:]), y)
            self._count(note, params)
            return y, state, {number: cache}

        def backward(method: Callable, params: Params, cache: Any, dy: Any) -> Any:
            # `backward_params` may have unpacked the cache already before it calls `backward`.
            marked = isinstance(cache, dict) and number in cache
            own_cache = cache[number] if marked else cache
            with self.ledger.owned_by(number), _naming(note):
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
                note.frozen += leaf.size * (not learns)


def _rows(notes: list[_Note], constant: set[Memory]) -> Iterator[Row]:
    """A row for each layer, but for a block that is no more than what is inside it."""
    depths: dict[int, int] = {}  # of what is within a note
    for note in notes:
        above = note.above
        depth = depths[id(above)] if above else 0
        own = note.parameters, note.bytes_kept, note.frozen, note.forward, note.backward
        is_block = isinstance(note.layer, Block)
        shown = outline(note.layer, whole=not is_block)
        same = note.path == (above.path if above else "")
        if is_block and same and not any(own) and "(" not in shown:
            depths[id(note)] = depth
            continue
        depths[id(note)] = depth + 1
        yield Row(note.path, shown, note.shape, *own, *_recomputed(note, notes, constant), depth)


def _recomputed(note: _Note, notes: list[_Note], constant: set[Memory]) -> tuple[int, int]:
    """Bytes that would not be kept if a layer were computed again, and what that would cost."""
    inside = [one for one in notes if one.is_within(note)]
    here = set().union(*(one.kept for one in inside))
    there = set().union(*(one.kept for one in notes if not one.is_within(note)), constant)
    saved = sum(memory.size for memory in here - there - note.read)
    saved -= sum(memory.size for memory in note.read - here - there)
    return max(saved, 0), sum(one.forward for one in inside)


def _signed(cache: Any, number: int = 0) -> Iterator[tuple[int, Any]]:
    """Each array that was kept, with the number of the innermost layer that signed it."""
    if isinstance(cache, dict):
        for name, entry in cache.items():
            yield from _signed(entry, name if isinstance(name, int) else number)
    elif isinstance(cache, tuple):
        for entry in cache:
            yield from _signed(entry, number)
    else:
        yield number, cache


def _like_input(takes: Any, shape: Any, dtype: str, batch_size: int) -> Any:
    """Like an x of a tree of shapes, with the dtypes that are taken."""
    dtypes = {"bool": "bool", "integral": "int32"}
    blank = shape_map(lambda one: np.broadcast_to(np.False_, (batch_size, *one)), shape)
    return tree_map(
        lambda leaf, kind: np.broadcast_to(np.zeros((), dtypes.get(kind, dtype)), leaf.shape),
        blank,
        kinds(takes, blank),
    )


def bytes_of_training(
    step: Callable, carry: tuple, model: Layer, shape: Any, dtype: str, batch_size: int
) -> int | None:
    """The most bytes that `step`, as `make_step` makes it, has alive at once on such a batch.

    Of arrays, that is, on a library that makes one call after the other as NumPy does:
    parameters, moments and state as they are and as they become, gradients, the batch, what is
    kept for backward, and whatever else is there at the worst moment, with temporaries of its
    native functions. It is what NumPy takes with `AGNOSTIC_NN_REPLAY=0`. A replay writes over
    parameters and moments, and has the memory of its plan at all times: less where a model is
    mostly parameters, more where not. A compiler has plans of its own.

    The targets may be class numbers or like y; None if the loss takes neither.
    """
    x = _like_input(model.input_kinds, shape, dtype, batch_size)
    params, state, _ = carry
    with Ledger():
        given = blanks_like((params, state, x))
        y, _, _ = model.forward(*given, train=True)
    like = tree_map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), y)
    targets = [like]
    if not isinstance(y, dict | tuple) and y.ndim > 1:
        targets.insert(0, np.broadcast_to(np.int32(0), y.shape[:-1]))
    for target in targets:
        try:
            return peak_of(step, carry, x, target)
        except Exception:  # a loss of the user's own may refuse as it likes
            continue
    return None
