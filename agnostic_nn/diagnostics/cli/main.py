"""The command line, `agnostic-nn`: see `commands`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ...core.backend import chosen_policy
from .. import cli

__all__ = ["main", "parser"]


class _Version(argparse.Action):
    """Says which version is installed, and stops."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print("agnostic-nn", version("agnostic-nn"))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """One line says what is wrong; how to ask is in the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Return what reads a command line."""
    made = _Parser(
        prog="agnostic-nn",
        description="Neural networks with hand-derived gradients, on any array library.",
    )
    made.add_argument("--version", action=_Version, nargs=0, help="say which this is, and stop")
    known = made.add_subparsers(required=True, metavar="command")
    for name in cli.__all__:
        getattr(cli, name).add(known)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks.

    Returns 0 if all is well, 1 if something differs or fails, or a file could not be written, 2 if
    not all could be judged or the command line makes no sense here: each command's help says more.
    """
    options = parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):  # not every terminal has Greek letters
        sys.stdout.reconfigure(errors="replace")
    try:
        chosen_policy(None, None)
    except ValueError as error:  # no command can run where the environment makes no sense
        print(f"agnostic-nn: {error}", file=sys.stderr)
        return 2
    try:
        status = options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("agnostic-nn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read has seen enough; at exit Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


if __name__ == "__main__":
    sys.exit(main())
