"""What a checkpoint says of a trainer, and the check that its arrays are those of the model.

A description may come from anybody: each field is checked before it is used, and the arrays in
the file are compared with those that the model has before one of them is read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..core.arrays import Shape
from ..core.errors import expect
from ..core.trees import named_leaves
from ..layers import Layer
from ..losses.base import metrics_of
from .abstract_init import TooLarge, abstract_carry
from .batches import EpochProgress
from .checkpoint import CheckpointError, OpenedCheckpoint
from .config import describe, rebuild
from .inputs import as_shape
from .safetensors_format import short
from .steps import Carry

__all__ = ["CheckpointFields", "expect_same_arrays", "refusing", "restored", "skeleton"]

_MOST = 2**53  # steps and examples, which no training reaches


@dataclass(frozen=True)
class CheckpointFields:
    """The fields of a description besides the model, the loss and the optimizer.

    open: progress of the epoch under way; see `Trainer`. kept: names of carries that the file has
    besides the trainer's own. fit: what callbacks of an interrupted `fit` remember, by callback,
    and best: those whose best weights the file has.
    """

    shape: Shape
    dtype: str
    seed: int
    steps: int
    epoch: int
    open: EpochProgress
    keep_finite: bool
    largest: int
    notes: dict[str, Any]
    kept: tuple[str, ...]
    fit: dict[str, dict[str, Any]] | None
    best: tuple[str, ...]

    @classmethod
    def read(cls, file: OpenedCheckpoint) -> "CheckpointFields":
        """Return the description of a checkpoint.

        Raises
        ------
        CheckpointError
            If a field is missing, or is not what `Trainer.save` writes.
        """
        with refusing(file):
            return _saved(file.description)


def _saved(data: dict[str, Any]) -> CheckpointFields:
    missing = {"shape", "dtype", "seed", "steps", "epoch", "open"} - data.keys()
    expect(not missing, "it does not give {}", ", ".join(sorted(missing)))
    dtype, keep_finite, notes = data["dtype"], data.get("keep_finite", True), data.get("notes", {})
    known = dtype in ("float32", "float64")
    expect(known, "expected dtype 'float32' or 'float64', got {}", short(dtype))
    expect(type(keep_finite) is bool, "expected keep_finite true or false, got {}", keep_finite)
    _expect_dict("notes", notes)
    fit = data.get("fit")
    if fit is not None:
        _expect_dict("fit", fit)
        for remembered in fit.values():
            _expect_dict("fit", remembered)
    return CheckpointFields(
        shape=_shape(data["shape"]),
        dtype=dtype,
        seed=_count("seed", data["seed"], 2**64),
        steps=_count("steps", data["steps"]),
        epoch=_count("epoch", data["epoch"]),
        open=_progress(data["open"], data["steps"]),
        keep_finite=keep_finite,
        largest=_count("largest", data.get("largest", 0)),
        notes=notes,
        kept=_names("kept", data.get("kept", [])),
        fit=fit,
        best=_names("best", data.get("best", [])),
    )


def _count(name: str, value: Any, end: int = _MOST) -> int:
    fits = type(value) is int and 0 <= value < end
    expect(fits, "expected {} to be an integer in [0, {}), got {}", name, end, short(value))
    return value


def _shape(value: Any) -> Any:
    shape = as_shape(value)
    sizes = [shape]
    while sizes:
        one = sizes.pop()
        if isinstance(one, int):
            _count("each length of shape", one)
        else:
            sizes += one.values() if isinstance(one, dict) else one
    return shape


def _progress(value: Any, steps: int) -> EpochProgress:
    is_valid = isinstance(value, list) and len(value) == 4 and type(value[3]) is bool
    expect(is_valid, "expected open to be three integers and a boolean, got {}", short(value))
    for number in value[:3]:
        _count("each number of open", number)
    progress = EpochProgress(*value)
    done = progress.batches_done
    expect(done <= steps, "expected at most {} batches of an open epoch, got {}", steps, done)
    return progress


def _names(name: str, value: Any) -> tuple[str, ...]:
    fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    expect(fits and len(set(value)) == len(value), "expected {} as names, got {}", name, value)
    return tuple(value)


def _expect_dict(name: str, value: Any) -> None:
    expect(isinstance(value, dict), "expected {} as a dict, got {}", name, short(value))


# --- the model and its arrays -----------------------------------------------------------


def restored(file: OpenedCheckpoint, name: str, given: Any) -> Any:
    """Return the model, loss or optimizer: `given` if it fits the file, else the file's own.

    Raises
    ------
    CheckpointError
        If the file has another one, or one that this library does not define.
    """
    data = file.description.get(name)
    if given is not None:
        told = describe(given)
        if told != data:
            file.refuse(f"was saved with the {name} {short(data)}, got {short(told)}")
        return given
    with refusing(file):
        found = rebuild(data)
        expect(_FITS[name](found), "its {} is {}", name, short(found))
        return found


def _is_loss(thing: Any) -> bool:
    if isinstance(thing, type) or not callable(thing):
        return False
    metrics_of(thing)
    return not (isinstance(thing, Layer) or hasattr(thing, "update"))


_FITS: dict[str, Callable[[Any], bool]] = {
    "model": lambda thing: isinstance(thing, Layer),
    "loss": _is_loss,
    "optimizer": lambda thing: callable(getattr(thing, "update", None)),
}


def skeleton(
    file: OpenedCheckpoint,
    saved: CheckpointFields,
    model: Any,
    optimizer: Any,
    draw: Callable | None,
) -> tuple[Carry, Shape]:
    """Return the carry of a model as arrays without numbers, and the shape of one y.

    draw(shape): makes both by drawing numbers, for a model or an optimizer of the caller's own
    that cannot be called with arrays without numbers; None if they came out of the file.

    Raises
    ------
    CheckpointError
        If they need more than the file has, or do not take inputs of its shape.
    """
    size = sum(entry.nbytes for entry in file.entries.values())
    with refusing(file):
        try:
            bounds = size, len(file.entries)
            return abstract_carry(model, optimizer, saved.shape, saved.dtype, *bounds)
        except (TooLarge, MemoryError, RecursionError):
            raise
        except Exception:
            if draw is None:
                raise
        return draw(saved.shape)


def expect_same_arrays(file: OpenedCheckpoint, like: dict[str, Any]) -> None:
    """Raise CheckpointError unless the file has the arrays of `like`, a dict of trees."""
    expected, found = dict(named_leaves(like)), file.entries
    for name in sorted(found.keys() | expected.keys()):
        have, want = (
            (str(tree[name].dtype), tuple(tree[name].shape)) if name in tree else None
            for tree in (found, expected)
        )
        if have != want:
            has, needs = (
                "nothing" if one is None else f"{one[0]} {one[1]}" for one in (have, want)
            )
            path = name if name.isprintable() and len(name) <= 200 else short(name)
            file.refuse(f"does not fit the model: {path} is {has}, expected {needs}")


@contextmanager
def refusing(file: OpenedCheckpoint) -> Iterator[None]:
    """Turn what is raised inside, because of what a file says, into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except RecursionError:
        file.refuse("cannot be loaded: its description is nested too deeply")
    except MemoryError:
        file.refuse("cannot be loaded: out of memory")
    except Exception as error:
        reason = " ".join(str(error)[:500].split()) or type(error).__name__
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason)
        try:
            file.refuse(f"cannot be loaded: {reason}")
        except CheckpointError as refused:
            raise refused from error
