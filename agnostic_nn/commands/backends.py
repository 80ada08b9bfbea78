"""`agnostic-nn backends`: what can run here, and why the rest cannot."""

import argparse

from ..registry import backends
from ..tables import table
from .arguments import command

__all__ = ["add"]


def add(commands: argparse._SubParsersAction) -> None:
    """Say what can be asked."""
    about = "List the array libraries: versions, devices, and why one cannot run."
    command(commands, "backends", about, _list)


def _list(options: argparse.Namespace) -> int:
    found = list(backends())
    columns = ["backend", "version", "hardware", "float64"]
    rows = [
        [str(device), status.version, device.hardware, "yes" if device.has_float64 else "no"]
        for status in found
        for device in status.devices
    ]
    print(table(columns, rows))
    missing = [status for status in found if status.reason]
    if missing:
        print("\ncannot run here:")
    for status in missing:
        reason = " ".join(str(status.reason).split())
        installed = f" ({status.name} {status.version} is installed)" if status.version else ""
        print(f"  {reason}{installed}")
    return 0
