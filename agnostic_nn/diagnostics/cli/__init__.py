"""The commands of `agnostic-nn`, one file each.

Each file has a function `add(commands)` that adds the command's arguments to the
parser, and a function that runs the command and returns its exit status. Modules that
are slow to import are imported only in the latter.
"""

from . import (
    backends,
    bisect,
    check,
    compare,
    completion,
    conformance,
    explain,
    profile,
)

__all__ = [
    "backends",
    "bisect",
    "check",
    "compare",
    "completion",
    "conformance",
    "explain",
    "profile",
]
