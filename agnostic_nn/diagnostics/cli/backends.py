"""`agnostic-nn backends`: what can run here, and why the rest cannot."""

import argparse

from ...core.backend import backends
from .arguments import command

__all__ = ["add"]


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    about = "List the array libraries: versions, devices, and why one cannot run."
    command(commands, "backends", about, _list)


def _list(options: argparse.Namespace) -> int:
    print(backends())
    return 0
