"""Checks of a checkpoint: the fields of its description, its model, and its arrays.

A file is untrusted: each field is checked before it is used, and the names, dtypes and
shapes of the arrays are compared with those of the model before any array is read.
"""

from collections.abc import Callable, Iterator, Mapping
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
from .epoch_means import NO_MEANS, EpochMeans
from .input_shapes import fits_limits
from .inputs import as_shape
from .precision_policy import PrecisionPolicy
from .safetensors_format import short
from .steps import Carry

__all__ = [
    "CheckpointFields",
    "abstract_carry_of",
    "expect_same_arrays",
    "restore_part",
    "wrapping_errors",
]

_MAX_COUNT = 2**53  # of steps and examples: no training reaches it


@dataclass(frozen=True)
class CheckpointFields:
    """The fields of a description other than the model, the loss and the optimizer.

    limits: the shape that the user chose, where None may be any length, or None. open,
    means: progress of the open epoch, and its means so far. longest: the length of the
    longest user-supplied batch, by the shapes of the examples. columns: the names of
    the columns of tables, by path. kept: names of the
    copies that `Trainer.keep` made. fit: the memory of the callbacks of an interrupted
    `fit`, by key, and best: the keys of those that keep weights; see `RunMemory`.
    """

    shape: Shape
    limits: Any
    dtype: str
    precision: str | None
    seed: int
    steps: int
    epoch: int
    open: EpochProgress
    means: EpochMeans
    keep_finite: bool
    longest: dict[str, int]
    columns: dict[str, list[str]]
    notes: dict[str, Any]
    kept: tuple[str, ...]
    fit: dict[str, dict[str, Any]] | None
    best: tuple[str, ...]

    @classmethod
    def read(cls, file: OpenedCheckpoint) -> "CheckpointFields":
        """Return the fields of a checkpoint, checked.

        Raises
        ------
        CheckpointError
            If a field is missing, or has a value that `Trainer.save` does not write.
        """
        with wrapping_errors(file):
            return _saved(file.description)


def _saved(data: dict[str, Any]) -> CheckpointFields:
    missing = {"shape", "dtype", "seed", "steps", "epoch", "open"} - data.keys()
    expect(not missing, "it does not give {}", ", ".join(sorted(missing)))
    dtype = data["dtype"]
    keep_finite = data.get("keep_finite", True)
    notes = data.get("notes", {})
    precision = data.get("precision")
    for name, value in (("dtype", dtype), ("precision", precision)):
        is_text = isinstance(value, str) or (name == "precision" and value is None)
        expect(is_text, "expected {} as a text, got {}", name, short(value))
    policy = PrecisionPolicy(dtype, precision)
    expect(
        type(keep_finite) is bool,
        "expected keep_finite true or false, got {}",
        keep_finite,
    )
    _expect_dict("notes", notes)
    fit = data.get("fit")
    if fit is not None:
        _expect_dict("fit", fit)
        for memory in fit.values():
            _expect_dict("fit", memory)
    means = data.get("means")
    shape = _shape(data["shape"])
    longest = data.get("longest", {})
    _expect_dict("longest", longest)
    for count in longest.values():
        _count("each length of longest", count)
    columns = data.get("columns", {})
    _expect_dict("columns", columns)
    for names in columns.values():
        _names("each entry of columns", names)
    return CheckpointFields(
        shape=shape,
        # a file without the field is older: its trainer takes no other shape
        limits=_limits(data.get("limits", shape), shape),
        dtype=policy.dtype,
        precision=policy.precision,
        seed=_count("seed", data["seed"], 2**64),
        steps=_count("steps", data["steps"]),
        epoch=_count("epoch", data["epoch"]),
        open=_progress(data["open"], data["steps"]),
        means=NO_MEANS if means is None else EpochMeans.from_json(means),
        keep_finite=keep_finite,
        longest=longest,
        columns=columns,
        notes=notes,
        kept=_names("kept", data.get("kept", [])),
        fit=fit,
        best=_names("best", data.get("best", [])),
    )


def _count(name: str, value: Any, end: int = _MAX_COUNT) -> int:
    is_valid = type(value) is int and 0 <= value < end
    expect(
        is_valid,
        "expected {} to be an integer in [0, {}), got {}",
        name,
        end,
        short(value),
    )
    count: int = value
    return count


def _shape(value: Any) -> Any:
    shape = as_shape(value)
    pending = [shape]
    while pending:
        node = pending.pop()
        if isinstance(node, int):
            _count("each length of shape", node)
        else:
            pending += node.values() if isinstance(node, dict) else node
    return shape


def _limits(value: Any, shape: Any) -> Any:
    if value is None:
        return None
    limits = as_shape(value, free=True)
    is_valid = fits_limits(shape, limits)
    expect(
        is_valid, "expected limits that shape fits, got {} and {}", short(limits), shape
    )
    return limits


def _progress(value: Any, steps: int) -> EpochProgress:
    is_valid = isinstance(value, list) and len(value) == 4 and type(value[3]) is bool
    expect(
        is_valid,
        "expected open to be three integers and a boolean, got {}",
        short(value),
    )
    for number in value[:3]:
        _count("each number of open", number)
    progress = EpochProgress(*value)
    done = progress.batches_done
    expect(
        done <= steps,
        "expected at most {} batches of an open epoch, got {}",
        steps,
        done,
    )
    return progress


def _names(name: str, value: Any) -> tuple[str, ...]:
    is_valid = isinstance(value, list) and all(
        isinstance(entry, str) for entry in value
    )
    is_valid = is_valid and len(set(value)) == len(value)
    expect(is_valid, "expected {} as names, got {}", name, value)
    return tuple(value)


def _expect_dict(name: str, value: Any) -> None:
    expect(isinstance(value, dict), "expected {} as a dict, got {}", name, short(value))


# --- the model and its arrays ---------------------------------------------------------


def restore_part(file: OpenedCheckpoint, name: str, passed: Any) -> Any:
    """Return the model, loss or optimizer that was passed, or else that of the file.

    Raises
    ------
    CheckpointError
        If the file was saved with another one than the one passed. If None is passed,
        and the file names something that this library does not define.
    """
    data = file.description.get(name)
    if passed is not None:
        description = describe(passed)
        if description != data:
            file.refuse(
                f"was saved with the {name} {short(data)}, got {short(description)}"
            )
        return passed
    with wrapping_errors(file):
        part = rebuild(data)
        expect(_IS_VALID[name](part), "its {} is {}", name, short(part))
        return part


def _is_loss(thing: Any) -> bool:
    if isinstance(thing, type) or not callable(thing):
        return False
    metrics_of(thing)  # raises if `thing` cannot be a loss
    return not (isinstance(thing, Layer) or hasattr(thing, "update"))


_IS_VALID: dict[str, Callable[[Any], bool]] = {
    "model": lambda thing: isinstance(thing, Layer),
    "loss": _is_loss,
    "optimizer": lambda thing: callable(getattr(thing, "update", None)),
}


def abstract_carry_of(
    file: OpenedCheckpoint,
    saved: CheckpointFields,
    model: Any,
    optimizer: Any,
    draw: Callable[[Any], tuple[Carry, Shape]] | None,
) -> tuple[Carry, Shape]:
    """Return the carry of a model as arrays without data, and the shape of one output.

    draw(shape): returns both with real arrays, for a custom model or optimizer that
    cannot compute with arrays without data; None
    if model and optimizer come from the file.

    Raises
    ------
    CheckpointError
        If the carry needs more memory than the file has, or the model does not accept
        the shape of the inputs in the file.
    """
    size = sum(entry.nbytes for entry in file.entries.values())
    with wrapping_errors(file):
        try:
            return abstract_carry(
                model,
                optimizer,
                saved.shape,
                PrecisionPolicy(saved.dtype, saved.precision).host_dtype,
                size,
                len(file.entries),
            )
        except (TooLarge, MemoryError, RecursionError):
            raise
        except Exception:
            if draw is None:
                raise
        return draw(saved.shape)


def expect_same_arrays(file: OpenedCheckpoint, like: dict[str, Any]) -> None:
    """Raise CheckpointError unless the file has names, dtypes and shapes as `like`."""
    expected = dict(named_leaves(like))
    for name in sorted(file.entries.keys() | expected.keys()):
        actual = _dtype_and_shape(file.entries, name)
        needed = _dtype_and_shape(expected, name)
        if actual != needed:
            path = name if name.isprintable() and len(name) <= 200 else short(name)
            file.refuse(
                f"does not fit the model: {path} is {actual}, expected {needed}"
            )


def _dtype_and_shape(arrays: Mapping[str, Any], name: str) -> str:
    if name not in arrays:
        return "nothing"
    return f"{arrays[name].dtype} {tuple(arrays[name].shape)}"


@contextmanager
def wrapping_errors(file: OpenedCheckpoint) -> Iterator[None]:
    """Turn exceptions that the contents of a file cause into CheckpointError."""
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
