"""Helpers for the commands: parsing of arguments, messages, and output files."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...core.files import write_text

if TYPE_CHECKING:
    from ..compare.workloads import Workload

__all__ = [
    "AddArgument",
    "add_backend",
    "add_model",
    "add_results",
    "chosen_workload",
    "command",
    "count",
    "first_set",
    "is_writable",
    "is_writable_file",
    "model_conflict",
    "names",
    "print_and_write",
    "refuse",
    "seed",
    "show_status",
]


WORKLOAD = "digits-mlp"
WITH_MODEL = (
    "data",
    "loss",
    "optimizer",
    "metric",
    "batch_size",
)  # arguments that need --model


class AddArgument(Protocol):
    """The method `add_argument` of a parser."""

    def __call__(self, *names: str, **options: Any) -> argparse.Action: ...


def command(
    commands: "argparse._SubParsersAction[Any]",
    name: str,
    about: str,
    run: Callable[[argparse.Namespace], int],
    more: str = "",
    epilog: str | None = None,
) -> AddArgument:
    """Add a command, and return the `add_argument` method of its parser.

    about: the line in the list of commands, with which its own help begins. more: the
    rest of that help. run: runs the command and returns the exit status; `parse` of the
    options that it gets parses other arguments of the same command.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=f"{about} {more}", epilog=epilog
    )
    parser.set_defaults(command=run, parse=parser.parse_args)
    return parser.add_argument


def add_backend(add_argument: AddArgument) -> None:
    """Add the argument of a command that runs on one backend."""
    add_argument(
        "--backend",
        metavar="NAME",
        help="backend, such as jax:cpu:0 (default: $AGNOSTIC_NN_BACKEND, else numpy)",
    )


def add_model(add_argument: AddArgument) -> None:
    """Add the arguments of a command that runs on the model of a user.

    `chosen_workload` reads them.
    """
    add_argument(
        "--model",
        metavar="MODULE:OBJECT",
        help="use your own model instead: a layer, or a function that returns one; "
        "modules in the current folder can be imported",
    )
    add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="data for --model: an npz file with x and target, and optionally x_test "
        "and target_test (without these a random fifth is held out), weights of the "
        "examples and a context of the loss; the arrays of several inputs or targets "
        "are called x.NAME, or x.0, x.1 in a tuple",
    )
    add_argument(
        "--loss",
        metavar="NAME",
        help="loss for --model, such as huber, 'huber(delta=0.5)' or a custom one as "
        "MODULE:OBJECT (default: softmax_cross_entropy for integer targets, else "
        "mean_squared_error)",
    )
    add_argument(
        "--optimizer",
        metavar="NAME",
        help="optimizer for --model, such as 'SGD(rate=0.1, momentum=0.9)' or a custom "
        "one as MODULE:OBJECT (default: Adam)",
    )
    add_argument(
        "--metric",
        metavar="NAME",
        help="metric of the test set for --model, which compare reports, such as "
        "'top_k_accuracy(k=3)' or a custom one as MODULE:OBJECT (default: the first of "
        "the loss)",
    )
    add_argument(
        "--batch-size",
        type=count,
        metavar="N",
        help="examples per step for --model (default: 32)",
    )


def first_set(
    options: argparse.Namespace, names: Sequence[str], reason: str
) -> str | None:
    """Say that the first of the named options that is set cannot be used, and why."""
    for name in names:
        if getattr(options, name) is not None:
            return f"--{name.replace('_', '-')} cannot be used {reason}"
    return None


def model_conflict(options: argparse.Namespace) -> str | None:
    """Say which arguments of `add_model` exclude each other; None if they do not."""
    if options.model is None:
        reason = "without --model: a workload has its own"
        return first_set(options, WITH_MODEL, reason)
    if options.workload is not None:
        return "--model and --workload cannot be used together"
    return None if options.data is not None else "--model needs --data"


def chosen_workload(options: argparse.Namespace) -> "Workload":
    """Return the workload that the options name, or that of the user's model and data.

    Raises
    ------
    CannotCompare
        If the options exclude each other, or name something that does not exist or
        does not fit.
    """
    from ..compare.user_model import user_workload
    from ..compare.workloads import CannotCompare, find

    conflict = model_conflict(options)
    if conflict is not None:
        raise CannotCompare(conflict)
    if options.model is None:
        return find(options.workload or WORKLOAD)
    settings = {name: getattr(options, name) for name in WITH_MODEL}
    named = {name: value for name, value in settings.items() if value is not None}
    return user_workload(options.model, **named)


def add_results(add_argument: AddArgument) -> None:
    """Add the arguments for files with the results."""
    for name in ("JSON", "Markdown"):
        add_argument(
            f"--{name.lower()}",
            type=Path,
            metavar="FILE",
            help=f"also write the results to FILE, as {name}",
        )


def names(text: str) -> list[str]:
    """Parse names separated by commas, such as "numpy, jax:cpu:0"."""
    parts = [name.strip() for name in text.split(",") if name.strip()]
    if not parts:
        message = f"expected names separated by commas, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return parts


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        message = f"expected an integer of at least 1, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def seed(text: str) -> int:
    """Parse a seed for random numbers."""
    if not text.isdecimal() or int(text) >= 2**64:
        message = f"expected an integer in [0, 2**64), got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def is_writable(folder: Path) -> bool:
    """Return whether `folder` can be written to or created.

    Commands that take long call this first.
    """
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def is_writable_file(path: Path) -> bool:
    """Return whether `path` can be written as a file, in a folder that may be new."""
    return not path.is_dir() and is_writable(path.absolute().parent)


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
    """Show the progress on the last line of a terminal; the next output replaces it."""
    if sys.stderr.isatty():
        print(f"\r{text[:70]:<70}\r", end="", file=sys.stderr, flush=True)
