"""Fields of frozen dataclasses, which a constructor normalizes."""

from typing import Any

__all__ = ["set_fields"]


def set_fields(instance: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass; only its own constructor may call this.

    It writes an argument in its normal form, such as a window of 3 as (3, 3).
    """
    for name, value in values.items():
        object.__setattr__(instance, name, value)
