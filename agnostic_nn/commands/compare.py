"""`agnostic-nn compare`: the same training on every backend and device, and how they differ."""

import argparse
from pathlib import Path

from .arguments import command, count, is_writable, names, refuse, seed

__all__ = ["add"]


def add(commands: argparse._SubParsersAction) -> None:
    """Say what can be asked."""
    add_argument = command(
        commands,
        "compare",
        "Do the same training on every backend and device, and report how they differ.",
        _compare,
        "The reference is the same training by NumPy in float64.",
        epilog="Exit status: 0 if every backend finished, 1 if one failed, 2 if the command "
        "line makes no sense here. Leaving the tolerance is a finding, not a failure.",
    )
    add_argument(
        "--backends",
        type=names,
        metavar="A,B",
        help="what to compare, such as numpy,jax:cpu:0; a name alone means its first device "
        "(default: every device of every backend that can run here, but for test libraries)",
    )
    add_argument(
        "--workload",
        default="digits-mlp",
        metavar="NAME",
        help="what to train: digits-mlp, digits-norm (with BatchNorm and Dropout), digits-cnn, "
        "mnist-cnn, breast-cancer, characters (a transformer) or parity-gru (default: %(default)s)",
    )
    add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="where report.json and report.md go; made if it is not there (default: %(default)s)",
    )
    add_argument(
        "--epochs",
        type=count,
        metavar="N",
        help="passes over the data (default: the workload's)",
    )
    add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of weights, masks and the order of the data (default: %(default)s)",
    )
    add_argument("--quiet", action="store_true", help="draw no progress bars")


def _compare(options: argparse.Namespace) -> int:
    from ..compare import CannotCompare, compare, summary, write

    if not is_writable(options.output):
        return refuse("compare", f"--output {options.output} is no folder that can be written to")
    try:
        report = compare(
            options.workload,
            options.backends,
            epochs=options.epochs,
            seed=options.seed,
            shown=not options.quiet,
        )
    except CannotCompare as error:
        return refuse("compare", error)
    print(summary(report))
    try:
        paths = write(report, options.output)
    except OSError as error:
        reason = f"the report cannot be written to {options.output}: {error.strerror}"
        return refuse("compare", reason, 1)
    print(f"written: {', '.join(map(str, paths))}")
    return 1 if any(result["error"] is not None for result in report["results"]) else 0
