"""The command line `agnostic-nn`; the other files of this package are its commands."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ...core.backend import chosen_policy
from .. import cli

__all__ = ["main", "parser"]


class _Version(argparse.Action):
    """Print the installed version and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print("agnostic-nn", version("agnostic-nn"))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line and refers to the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main_parser = _Parser(
        prog="agnostic-nn",
        description="Neural networks with hand-derived gradients, on any array "
        "library. `agnostic-nn COMMAND --help` describes a command.",
    )
    main_parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        help="print the installed version and exit",
    )
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")
    for name in cli.__all__:
        getattr(cli, name).add(commands)
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status.

    It is 0 if all is well; 1 if something differs or fails, or a file cannot be
    written; 2 if not everything could be checked, or the command line is invalid. Each
    command's help says more.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    main_parser = parser()
    options = main_parser.parse_args(words)
    options.main_parser = main_parser
    options.words = words[1:]  # those of the command
    if hasattr(sys.stdout, "reconfigure"):  # some terminals cannot print Greek letters
        sys.stdout.reconfigure(errors="replace")
    try:
        chosen_policy(None, None)
    except ValueError as error:  # an invalid environment variable affects every command
        print(f"agnostic-nn: {error}", file=sys.stderr)
        return 2
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("agnostic-nn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the pipe has closed it. Python flushes stdout again at exit, so
        # redirect it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


if __name__ == "__main__":
    sys.exit(main())
