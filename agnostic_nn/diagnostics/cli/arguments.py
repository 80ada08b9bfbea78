"""Helpers for the commands: parsing of arguments, messages, and output files."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.files import write_text

__all__ = [
    "command",
    "count",
    "is_writable",
    "names",
    "print_and_write",
    "refuse",
    "seed",
    "show_status",
]


def command(
    commands: "argparse._SubParsersAction[Any]",
    name: str,
    about: str,
    run: Callable[[argparse.Namespace], int],
    more: str = "",
    epilog: str | None = None,
) -> Callable[..., argparse.Action]:
    """Add a command, and return the `add_argument` method of its parser.

    about: the line in the list of commands, with which its own help begins; more: the
    rest of that help; run: runs the command and returns the exit status.
    """
    parser = commands.add_parser(
        name, help=about, description=f"{about} {more}", epilog=epilog
    )
    parser.set_defaults(command=run)
    return parser.add_argument


def names(text: str) -> list[str]:
    """Parse names separated by commas, such as "numpy, jax:cpu:0"."""
    parts = [name.strip() for name in text.split(",") if name.strip()]
    if not parts:
        raise argparse.ArgumentTypeError(
            f"expected names separated by commas, got {text!r}"
        )
    return parts


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"expected an integer of at least 1, got {text!r}"
        )
    return int(text)


def seed(text: str) -> int:
    """Parse a seed for random numbers."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(
            f"expected an integer in [0, 2**64), got {text!r}"
        )
    return int(text)


def is_writable(folder: Path) -> bool:
    """Return whether `folder` can be written to or created.

    Commands that take long call this first.
    """
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def refuse(command: str, message: object, status: int = 2) -> int:
    """Print why a command cannot run to stderr, and return the exit status."""
    print(f"agnostic-nn {command}: {message}", file=sys.stderr)
    return status


def print_and_write(
    command: str, output: str, texts: dict[Path | None, str], status: int = 0
) -> int:
    """Write each text to its path, if it has one, and then print `output`.

    Files are written first: printing raises an exception if the reader of a pipe has
    gone. Returns `status`, or 1 if a file cannot be written.
    """
    lines = [output] if output else []
    for path, text in texts.items():
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            status = refuse(command, f"{path} cannot be written: {error.strerror}", 1)
            break
        lines.append(f"written: {path}")
    print("\n".join(lines))
    return status


def show_status(text: str) -> None:
    """Show what is being done on the last line of a terminal; the next output overwrites it."""
    if sys.stderr.isatty():
        print(f"\r{text[:70]:<70}\r", end="", file=sys.stderr, flush=True)
