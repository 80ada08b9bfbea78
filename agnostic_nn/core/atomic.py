"""Atomic calls: if a call raises, it has written either nothing or its complete result.

A compiled function may reuse the memory of an argument that the caller donates. An
exception between its first write and the moment when the caller has the result would
destroy both the old values and the new ones. So such a function reports its progress in
a list, `outcome`:

    []                   nothing has been written; the arguments hold their old values
    [finish]             writing may have begun; finish() completes it
    [finish, result]     the call is complete; finish may be None

The last step of each transition is a single operation that no exception can interrupt.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["StateLost", "into", "settle"]


class StateLost(RuntimeError):
    """Raised when a call overwrote donated arrays and then failed without a result."""


def into(function: Callable[..., Any], outcome: list[Any], *args: Any) -> None:
    """Call function(*args) and report the result in `outcome`, an empty list.

    A function that reuses donated memory has an attribute `into` for this. Any other
    function does not write to its arguments, so its result is simply appended.
    """
    call_into = getattr(function, "into", None)
    if call_into is None:
        outcome.extend((None, function(*args)))
    else:
        call_into(outcome, *args)


def settle(outcome: list[Any]) -> bool:
    """Complete a call that an exception interrupted; return whether it has a result.

    If it has none, nothing has been written.

    Raises
    ------
    StateLost
        If both the result and the old values are lost.
    """
    if len(outcome) == 1:
        outcome[0]()
    return len(outcome) > 1
