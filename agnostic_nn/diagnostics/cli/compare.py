"""`agnostic-nn compare`: the same training on every backend, and how they differ."""

import argparse
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .arguments import (
    WITH_MODEL,
    WORKLOAD,
    add_model,
    chosen_workload,
    command,
    count,
    first_set,
    is_writable,
    model_conflict,
    names,
    refuse,
    seed,
)

if TYPE_CHECKING:
    from ..compare import Report

__all__ = ["add"]


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command and its arguments."""
    add_argument = command(
        commands,
        "compare",
        "Run the same training on every backend and device, and report how they "
        "differ.",
        _compare,
        "The reference is the same training on NumPy in float64.",
        epilog="Exit status: 0 if everything was checked and agrees; 1 if a backend "
        "differs by more than rounding, or the report cannot be written; 2 if none "
        "differs, but a backend failed, something could not be checked, or the "
        "requested precision (strict by default) was not used or could not be "
        "measured; 2 also if the command line is invalid or a named backend cannot run "
        "here.",
    )
    add_argument(
        "--backends",
        type=names,
        metavar="A,B",
        help="backends to compare, such as numpy,jax:cpu:0; a name without a device "
        "means its first device (default: every device of every backend that can run "
        "here, except backends for tests)",
    )
    add_argument(
        "--skip-missing",
        action="store_true",
        default=None,
        help="leave out backends of --backends that cannot run here, or do not have a "
        "dtype of --dtypes (default: refuse before anything trains)",
    )
    add_argument(
        "--workload",
        metavar="NAME",
        help="the network and data to train: digits-mlp, digits-norm (with BatchNorm "
        "and Dropout), digits-cnn, mnist-cnn, breast-cancer, characters (a "
        f"transformer) or parity-gru (default: {WORKLOAD})",
    )
    add_model(add_argument)
    add_argument(
        "--dtypes",
        type=names,
        metavar="A,B",
        help="dtypes to train in: float32, float64, or both (default: float32)",
    )
    add_argument(
        "--precision",
        choices=("strict", "fast"),
        help="multiply float32 as float32 (strict), or as TensorFloat-32 where "
        "available (fast); the precision is measured (default: $AGNOSTIC_NN_PRECISION, "
        "else strict)",
    )
    add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="require the same bits in every run; backends that cannot are left out "
        "(default: only if $AGNOSTIC_NN_DETERMINISTIC is 1)",
    )
    add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="train nothing; merge several report.json files, from different machines "
        "or settings",
    )
    add_argument(
        "--labels",
        type=names,
        metavar="A,B",
        help="names of the machines in a merged report (default: their processors, or "
        "files)",
    )
    add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="folder for report.json, report.md and report.html; created if needed "
        "(default: %(default)s)",
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
        metavar="N",
        help="seed for weights, masks and the order of the data (default: 0)",
    )
    add_argument(
        "--no-batches",
        action="store_true",
        help="do not time steps with other batch sizes, which takes a few seconds per "
        "backend",
    )
    add_argument(
        "--verbose",
        action="store_true",
        help="print all tables and remarks of the report",
    )
    add_argument("--quiet", action="store_true", help="do not draw progress bars")


def _compare(options: argparse.Namespace) -> int:
    from ..compare import CannotCompare, page, summary, write

    if not is_writable(options.output):
        return refuse(
            "compare",
            f"--output {options.output} is not a folder that can be written to",
        )
    conflict = _conflict(options)
    if conflict:
        return refuse("compare", conflict)
    try:
        report = _merged(options) if options.merge else _trained(options)
    except CannotCompare as error:
        return refuse("compare", error)
    text = summary(report, verbose=options.verbose)
    html = None
    remark = None
    try:
        html = page(report)
    except ImportError as error:
        remark = f"no report.html: {error}"
    # Files are written first: printing raises an
    # exception if the reader of a pipe has gone.
    try:
        paths = write(report, options.output, html)
    except OSError as error:
        print(text)
        reason = f"the report cannot be written to {options.output}: {error.strerror}"
        return refuse("compare", reason, 1)
    print(text)
    files = f"All tables and numbers: {', '.join(map(str, paths))}"
    if not options.verbose:
        files += "; --verbose prints them"
    print()
    print(fill(files, 80, break_long_words=False, break_on_hyphens=False))
    if remark:
        print(remark)
    return {"agrees": 0, "differs": 1}.get(report.verdict.status, 2)


def _conflict(options: argparse.Namespace) -> str | None:
    """Say which options exclude each other, or return None if they are consistent."""
    policy = ("precision", "deterministic")
    run = ("dtypes", "epochs", "seed")
    which = ("backends", "skip_missing", "workload", "model")
    train = (*which, *WITH_MODEL, *policy, *run)
    if options.merge:
        return first_set(options, train, "with --merge: it trains nothing")
    if options.labels:
        return "--labels can only be used with --merge"
    return model_conflict(options)


def _merged(options: argparse.Namespace) -> "Report":
    from ..compare import merge

    return merge(options.merge, options.labels)


def _trained(options: argparse.Namespace) -> "Report":
    from ..compare import run_comparison
    from ..compare.running import SIZES

    return run_comparison(
        chosen_workload(options),
        options.backends,
        precision=options.precision,
        deterministic=options.deterministic,
        dtypes=options.dtypes or ["float32"],
        epochs=options.epochs,
        seed=options.seed or 0,
        sizes=() if options.no_batches else SIZES,
        skip_missing=bool(options.skip_missing),
        show_progress=not options.quiet,
    )
