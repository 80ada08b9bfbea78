"""`agnostic-nn completion`: completion of the command line in a shell."""

import argparse
from typing import Any

from ...interop.extras import import_extra
from .arguments import command, refuse

__all__ = ["add"]

SHELLS = ("bash", "zsh", "fish")


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    add_argument = command(
        commands,
        "completion",
        "Print a script that completes the commands and options of agnostic-nn.",
        _print,
        epilog="Write it to a file that the shell reads: for bash "
        "~/.local/share/bash-completion/completions/agnostic-nn, for zsh _agnostic-nn "
        "in a folder of $fpath, for fish "
        "~/.config/fish/completions/agnostic-nn.fish.",
    )
    add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def _print(options: argparse.Namespace) -> int:
    try:
        shtab = import_extra("shtab", extra="completion", purpose="a completion script")
    except ImportError as error:
        return refuse("completion", error)
    print(shtab.complete(options.main_parser, options.shell))
    return 0
