"""`agnostic-nn compare`: the same training on every backend and device, and how they differ."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import command, count, is_writable, names, refuse, seed

__all__ = ["add"]

WORKLOAD = "digits-mlp"


def add(commands: argparse._SubParsersAction) -> None:
    """Say what can be asked."""
    add_argument = command(
        commands,
        "compare",
        "Do the same training on every backend and device, and report how they differ.",
        _compare,
        "The reference is the same training by NumPy in float64.",
        epilog="Exit status: 0 if all was judged and agrees; 1 if a backend differs by more than "
        "rounding, or the report cannot be written; 2 if none differs, but one that was named "
        "could not run, not all of it can be judged, or the precision that was asked for (strict "
        "by default) is not kept or cannot be measured; and 2 if the command line makes no sense "
        "here.",
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
        metavar="NAME",
        help="what to train: digits-mlp, digits-norm (with BatchNorm and Dropout), digits-cnn, "
        "mnist-cnn, breast-cancer, characters (a transformer) or parity-gru "
        f"(default: {WORKLOAD})",
    )
    add_argument(
        "--model",
        metavar="MODULE:OBJECT",
        help="train a model of your own instead: a layer, or a function that gives one; modules "
        "in the current folder can be imported",
    )
    add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="what to train it on: an npz file with x and target, and x_test and target_test; "
        "without those a random fifth is held out",
    )
    add_argument(
        "--loss",
        metavar="NAME",
        help="its loss, such as huber or 'huber(delta=0.5)' (default: softmax_cross_entropy for "
        "integer targets, else mean_squared_error)",
    )
    add_argument(
        "--optimizer",
        metavar="NAME",
        help="its optimizer, such as 'SGD(rate=0.1, momentum=0.9)' (default: Adam)",
    )
    add_argument(
        "--batch-size", type=count, metavar="N", help="examples a step of it (default: 32)"
    )
    add_argument(
        "--dtypes",
        type=names,
        metavar="A,B",
        help="what to compute in: float32, float64 where a device has it, or both "
        "(default: float32)",
    )
    add_argument(
        "--precision",
        choices=("strict", "fast"),
        help="multiply float32 as float32, or as TensorFloat-32 where there is that; what was done "
        "is measured (default: $AGNOSTIC_NN_PRECISION, else strict)",
    )
    add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="give the same bits in every run; what cannot is left out (default: only if "
        "$AGNOSTIC_NN_DETERMINISTIC is 1)",
    )
    add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="train nothing: make one report of several report.json, of other machines or settings",
    )
    add_argument(
        "--labels",
        type=names,
        metavar="A,B",
        help="what to call the machines of merged reports (default: their processors, or files)",
    )
    add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="where report.json, report.md and report.html go; made if it is not there "
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
        help="of weights, masks and the order of the data (default: 0)",
    )
    add_argument(
        "--no-batches",
        action="store_true",
        help="do not time steps with batches of other sizes, which takes some seconds a backend",
    )
    add_argument("--quiet", action="store_true", help="draw no progress bars")


def _compare(options: argparse.Namespace) -> int:
    from ..compare import CannotCompare, page, summary, write

    if not is_writable(options.output):
        return refuse("compare", f"--output {options.output} is no folder that can be written to")
    wrong = _wrong(options)
    if wrong:
        return refuse("compare", wrong)
    try:
        report = _merged(options) if options.merge else _trained(options)
    except CannotCompare as error:
        return refuse("compare", error)
    html, remark = None, None
    try:
        html = page(report)
    except ImportError as error:
        remark = f"no report.html: {error}"
    try:  # before a word is said: nobody may be listening any more
        paths = write(report, options.output, html)
    except OSError as error:
        print(summary(report))
        reason = f"the report cannot be written to {options.output}: {error.strerror}"
        return refuse("compare", reason, 1)
    print(summary(report))
    print(f"written: {', '.join(map(str, paths))}")
    if remark:
        print(remark)
    return {"agrees": 0, "differs": 1}.get(report["verdict"]["status"], 2)


def _wrong(options: argparse.Namespace) -> str | None:
    """What does not go together."""
    own = ("data", "loss", "optimizer", "batch_size")
    policy = ("precision", "deterministic")
    train = ("backends", "workload", "model", *own, *policy, "dtypes", "epochs", "seed")
    if options.merge:
        return _given(options, train, "--merge trains nothing")
    if options.labels:
        return "--labels are for reports to --merge"
    if options.model is None:
        return _given(options, own, "without --model the workload has its own")
    if options.workload is not None:
        return "--model and --workload are two things to train: choose one"
    return None if options.data is not None else "--model takes --data too"


def _given(options: argparse.Namespace, names: Sequence[str], why: str) -> str | None:
    found = [name for name in names if getattr(options, name) is not None]
    return f"--{found[0].replace('_', '-')} has no meaning here: {why}" if found else None


def _merged(options: argparse.Namespace) -> dict[str, Any]:
    from ..compare import merge

    return merge(options.merge, options.labels)


def _trained(options: argparse.Namespace) -> dict[str, Any]:
    from ..compare import compare, user_workload
    from ..compare.running import SIZES

    workload = options.workload or WORKLOAD
    if options.model is not None:
        given = {"loss": options.loss, "optimizer": options.optimizer}
        given |= {"batch_size": options.batch_size}
        chosen = {name: value for name, value in given.items() if value is not None}
        workload = user_workload(options.model, options.data, **chosen)
    return compare(
        workload,
        options.backends,
        precision=options.precision,
        deterministic=options.deterministic,
        dtypes=options.dtypes or ["float32"],
        epochs=options.epochs,
        seed=options.seed or 0,
        sizes=() if options.no_batches else SIZES,
        show_progress=not options.quiet,
    )
