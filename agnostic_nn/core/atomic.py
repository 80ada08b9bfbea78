"""Atomic calls: after any exception, a call has changed nothing or all that it changes.

A compiled function may take the memory of an argument that the caller gives up ("donates").
An exception between its first write and the moment when the caller holds the result would
leave neither the old values nor the new. So such a function reports to an `outcome`, a list:

    []                   nothing has been written: the arguments hold their old values
    [finish]             it may have begun to write; finish() completes it
    [finish, result]     it is done; finish may be None

and makes the last step from one to the next in a way that no exception can cut in two.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["StateLost", "into", "settle"]


class StateLost(RuntimeError):
    """The memory of donated arrays was given up, but the call that took it has failed."""


def into(function: Callable, outcome: list, *args: Any) -> None:
    """Call function(*args) and put the result into `outcome`, which is empty.

    A function that takes donated memory does it in its own way, by its attribute `into`; any
    other leaves its arguments alone.
    """
    own = getattr(function, "into", None)
    if own is None:
        outcome.extend((None, function(*args)))
    else:
        own(outcome, *args)


def settle(outcome: list) -> bool:
    """Complete a call that an exception has cut short; return whether there is a result.

    If not, nothing has been written.

    Raises
    ------
    StateLost
        If there is neither a result, nor the old values.
    """
    if len(outcome) == 1:
        outcome[0]()
    return len(outcome) > 1
