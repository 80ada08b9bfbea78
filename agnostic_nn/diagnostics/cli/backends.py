"""`agnostic-nn backends`: which backends can run here, and why others cannot."""

import argparse
from typing import Any

from ...core.backend import backends
from .arguments import command

__all__ = ["add"]


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    command(
        commands,
        "backends",
        "List the array libraries with their versions and devices, or why they cannot "
        "run.",
        _list,
    )


def _list(options: argparse.Namespace) -> int:
    print(backends())
    return 0
