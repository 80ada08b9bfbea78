"""Write the progress of a trainer to a file, and read it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Shape
from ..core.trees import named_leaves, tree_from_leaves
from . import checkpoint
from .callback_memory import RunMemory
from .checkpoint_fields import (
    CheckpointFields,
    abstract_carry_of,
    expect_same_arrays,
)
from .run import Run
from .steps import Carry

__all__ = ["Snapshot", "read_snapshot", "write_snapshot"]


class Snapshot(NamedTuple):
    """The contents of a checkpoint, except the model, loss, optimizer and settings.

    run: its carry is on the host when it is written, and on the backend after it was
    read. kept: the copies that `Trainer.keep` made. memory: that of the callbacks of an
    interrupted `fit`. longest_batches: the lengths of the longest of those that a user
    supplied, by the shapes of their examples.
    """

    run: Run
    kept: dict[str, Carry]
    memory: RunMemory | None
    notes: dict[str, Any]
    longest_batches: dict[str, int]


def write_snapshot(
    path: checkpoint.Place, snapshot: Snapshot, settings: dict[str, Any]
) -> None:
    """Write a snapshot to one safetensors file.

    settings: the remaining fields of the description, such as those of the model.
    """
    run = snapshot.run
    assert run.carry is not None
    tree: dict[str, Any] = dict(
        zip(("params", "state", "moments"), run.carry, strict=True)
    )
    kept = sorted(snapshot.kept)
    tree |= {f"kept {i}": snapshot.kept[name] for i, name in enumerate(kept)}
    memory = snapshot.memory or RunMemory()
    best = sorted(memory.best)
    tree |= {f"best {i}": memory.best[key] for i, key in enumerate(best)}
    description = settings | {
        "shape": run.shape,
        "limits": run.limits,
        "steps": run.steps,
        "epoch": run.epoch,
        "open": run.open,
        "means": run.means.as_json() if run.open.batches_done else None,
        "longest": snapshot.longest_batches,
        "columns": run.columns or {},
        "notes": snapshot.notes,
        "kept": kept,
        "fit": None if snapshot.memory is None else memory.notes,
        "best": best,
    }
    checkpoint.write(path, dict(named_leaves(tree)), description)


def read_snapshot(
    file: checkpoint.OpenedCheckpoint,
    saved: CheckpointFields,
    model: Any,
    optimizer: Any,
    draw: Callable[[Any], tuple[Carry, Shape]] | None,
    to_backend: Callable[[np.ndarray], Any],
) -> Snapshot:
    """Return the snapshot in a checkpoint, whose fields have been read as `saved`.

    draw: see `abstract_carry_of`.

    Raises
    ------
    CheckpointError
        If the arrays in the file do not fit the model and the optimizer.
    """
    carry, out_shape = abstract_carry_of(file, saved, model, optimizer, draw)
    like: dict[str, Any] = dict(zip(("params", "state", "moments"), carry, strict=True))
    like |= {f"kept {i}": carry for i in range(len(saved.kept))}
    like |= {f"best {i}": carry for i in range(len(saved.best))}
    expect_same_arrays(file, like)

    def placed(name: str, array: np.ndarray) -> Any:
        """Move an array to the backend, except those that were kept on the host."""
        stays = name.startswith(("kept ", "best "))
        return array if stays else to_backend(array)

    tree = tree_from_leaves(file.arrays(placed), like)
    carry = tree["params"], tree["state"], tree["moments"]
    memory = None
    if saved.fit is not None:
        best = {key: tree[f"best {i}"] for i, key in enumerate(saved.best)}
        memory = RunMemory(saved.fit, best)
    return Snapshot(
        run=Run(
            carry,
            saved.shape,
            out_shape,
            saved.limits,
            saved.steps,
            saved.epoch,
            saved.open,
            means=saved.means,
            columns=saved.columns,
        ),
        kept={name: tree[f"kept {i}"] for i, name in enumerate(saved.kept)},
        memory=memory,
        notes=saved.notes,
        longest_batches=saved.longest,
    )
