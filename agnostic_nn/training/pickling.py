"""Check that the parts of a trainer can be pickled, so that an error names the part."""

import pickle
import sys
from collections.abc import Mapping
from types import FrameType, FunctionType
from typing import Any

from ..core.errors import described

__all__ = ["expect_picklable"]

_MAX_FRAMES = 6  # between a pickler that is written in Python and this module


def expect_picklable(parts: Mapping[str, Any], skipped: type) -> None:
    """Raise TypeError for the first part that `pickle` refuses, by its name.

    Pickle names the object that it refuses, often a function somewhere inside, but not
    what it belongs to. Extended picklers, such as those of cloudpickle and dill, can
    pickle functions without a name. If one of them is calling, nothing is checked.

    skipped: a class whose instances inside a part are not checked: another trainer,
    which checks its own parts.
    """
    if _has_extended_caller(sys._getframe(1)):
        return
    for name, part in parts.items():
        try:
            _Trial(skipped).dump(part)
        except Exception as error:  # custom classes may raise any
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TypeError(
                f"cannot pickle a Trainer: its {name}, {_described(part)}, cannot "
                f"be pickled: {reason}. A lambda or a function inside a function has "
                "no name by which another process finds it: define it at the top "
                "level of a module, or pickle with cloudpickle"
            ) from error


def _described(part: Any) -> str:
    name: str = getattr(part, "__name__", "") or described(part)
    return name


class _Trial(pickle.Pickler):
    """A pickler that keeps nothing of what it writes, nor copies arrays for it."""

    def __init__(self, skipped: type) -> None:
        super().__init__(_Nowhere(), 5, buffer_callback=lambda buffer: None)
        self._skipped = skipped

    def persistent_id(self, value: Any) -> str | None:
        return "skipped" if isinstance(value, self._skipped) else None


class _Nowhere:
    """A file that drops what is written."""

    def write(self, data: Any) -> int:
        return len(data)


def _has_extended_caller(frame: FrameType | None) -> bool:
    """Return whether the pickler that is calling can pickle functions by value.

    No argument tells `__getstate__` which pickler calls it. Both kinds of pickler,
    those in Python and those that extend the one in C, have a Python frame.
    """
    for _ in range(_MAX_FRAMES):
        if frame is None:
            return False
        pickler = frame.f_locals.get("self")
        if isinstance(pickler, pickle.Pickler | pickle._Pickler):
            return _pickles_functions(pickler)
        frame = frame.f_back
    return False


def _pickles_functions(pickler: Any) -> bool:
    usual = pickle._Pickler.dispatch[FunctionType]
    dispatch = getattr(pickler, "dispatch", {})
    return (
        hasattr(pickler, "reducer_override")
        or dispatch.get(FunctionType, usual) is not usual
    )
