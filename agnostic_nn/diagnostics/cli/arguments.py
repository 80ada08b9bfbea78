"""Arguments: how the words of a command line are read, and refused."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ...core.files import write_text

__all__ = ["command", "count", "is_writable", "names", "refuse", "seed", "tell", "written"]


def command(
    commands: argparse._SubParsersAction,
    name: str,
    about: str,
    do: Callable[[argparse.Namespace], int],
    more: str = "",
    epilog: str | None = None,
) -> Callable[..., argparse.Action]:
    """Add a command that `do` does; what comes back adds its arguments.

    about: the line that lists it; its own help goes on with `more`.
    """
    parser = commands.add_parser(name, help=about, description=f"{about} {more}", epilog=epilog)
    parser.set_defaults(command=do)
    return parser.add_argument


def names(text: str) -> list[str]:
    """The names in "numpy, jax:cpu:0"."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected names with commas between, got {text!r}")
    return found


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """What a generator can be begun with."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"expected an integer in [0, 2**64), got {text!r}")
    return int(text)


def is_writable(folder: Path) -> bool:
    """Whether `folder` can be written to, or made: looked at before anything takes long."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def refuse(command: str, message: object, status: int = 2) -> int:
    """Say on stderr why a command is not done; the exit status."""
    print(f"agnostic-nn {command}: {message}", file=sys.stderr)
    return status


def written(command: str, said: str, texts: dict[Path | None, str], status: int = 0) -> int:
    """Write each text to its path, where there is one, and then say `said`.

    In that order: whoever reads what is said may have seen enough before its end. Returns
    `status`, or 1 if a file cannot be written.
    """
    told = [said] if said else []
    for path, text in texts.items():
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            status = refuse(command, f"{path} cannot be written: {error.strerror}", 1)
            break
        told.append(f"written: {path}")
    print("\n".join(told))
    return status


def tell(text: str) -> None:
    """Say on a terminal what is under way, in place of what was; nothing takes it away."""
    if sys.stderr.isatty():
        print(f"\r{text[:70]:<70}\r", end="", file=sys.stderr, flush=True)
