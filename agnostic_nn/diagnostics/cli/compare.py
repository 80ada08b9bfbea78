"""`agnostic-nn compare`: the same training on every backend, and how they differ."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ...core.files import write_text
from .arguments import (
    WITH_MODEL,
    WORKLOAD,
    add_model,
    chosen_workload,
    command,
    count,
    first_set,
    is_writable,
    is_writable_file,
    model_conflict,
    names,
    refuse,
    seed,
)

if TYPE_CHECKING:
    from ..compare import Report
    from ..compare.comparison import Execution
    from ..compare.plan import Plan
    from ..compare.resume import RunFolder

__all__ = ["add"]

# Verdicts that give an exit status other than 0, the gravest first; `--fail-on` names
# the last one that counts.
EXIT_STATUS = {"differs": 1, "failed": 2, "not checked": 2}
FAIL_ON = (*(status.replace(" ", "-") for status in EXIT_STATUS), "never")

# Options that do not change what a resumed run computes.
WITH_RESUME = ("resume", "output", "verbose", "quiet", "fail_on", "junit", "github")


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
        "here; 130 after Ctrl-C. --fail-on makes it 0 for milder verdicts.",
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
        help="dtypes to train in, of float32, float64, bfloat16 and float16 (default: "
        "float32); in the last two, layers compute in 16 bits",
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
        help="train nothing; merge several reports, from different machines or "
        "settings: each a report.json, the folder of a run, or an output folder, whose "
        "latest run is taken",
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
        help="folder in which each run creates a folder with report.json, report.md "
        "and report.html; DIR/latest leads to the newest complete run (default: "
        "%(default)s)",
    )
    add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=True,
        metavar="FOLDER",
        help="make the missing runs of a comparison that was interrupted or crashed, "
        "with its settings (default: the newest such run in DIR)",
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
        "--repeat",
        type=count,
        metavar="N",
        help="train N times on each backend, and say whether it repeats its own bits; "
        "if not, which layer and operation does not (default: 1). A backend that is "
        "deterministic by policy and does not repeat its bits differs",
    )
    add_argument(
        "--no-batches",
        action="store_true",
        help="do not time steps with other batch sizes, which takes a few seconds per "
        "backend",
    )
    add_argument(
        "--fail-on",
        choices=FAIL_ON,
        default="not-checked",
        metavar="STATUS",
        help="the mildest verdict that gives an exit status other than 0: differs, "
        "failed (also runs that failed), not-checked (also results that could not be "
        "checked; the default), or never",
    )
    add_argument(
        "--junit",
        type=Path,
        metavar="FILE",
        help="also write the results to FILE as JUnit XML, a test case for each run",
    )
    add_argument(
        "--github",
        action="store_true",
        help="print annotations for GitHub Actions, and append the verdicts to the "
        "file $GITHUB_STEP_SUMMARY",
    )
    add_argument(
        "--verbose",
        action="store_true",
        help="print all tables and remarks of the report",
    )
    add_argument("--quiet", action="store_true", help="do not show progress")


@dataclass(frozen=True)
class _Outcome:
    """A report, and the folder of its run."""

    report: "Report"
    folder: Path
    is_interrupted: bool = False


def _compare(options: argparse.Namespace) -> int:
    from ..compare import CannotCompare

    if not is_writable(options.output):
        return refuse(
            "compare",
            f"--output {options.output} is not a folder that can be written to",
        )
    if options.junit and not is_writable_file(options.junit):
        return refuse(
            "compare", f"--junit {options.junit} is not a file that can be written"
        )
    conflict = _conflict(options)
    if conflict:
        return refuse("compare", conflict)
    try:
        if options.merge:
            outcome = _merged(options)
        elif options.resume is not None:
            outcome, options = _resumed(options)
        else:
            outcome = _trained(options)
    except CannotCompare as error:
        return refuse("compare", error)
    return _printed(outcome, options)


def _printed(outcome: _Outcome, options: argparse.Namespace) -> int:
    """Write and print a report, and return the exit status."""
    from ..compare import annotations, page, summary, write
    from ..compare.folders import complete

    report = outcome.report
    text = summary(report, verbose=options.verbose)
    html = None
    remark = None
    try:
        html = page(report)
    except ImportError as error:
        remark = f"no report.html: {error}"
    is_complete = not report.unfinished
    # Files are written first: printing raises an
    # exception if the reader of a pipe has gone.
    try:
        paths = write(report, outcome.folder, html)
        if is_complete:
            paths.append(complete(outcome.folder))
            paths += _write_for_services(report, options)
    except OSError as error:
        print(text)
        where = error.filename or outcome.folder
        reason = f"the report cannot be written to {where}: {error.strerror}"
        with suppress(OSError):  # it is not empty if a part was written
            outcome.folder.rmdir()
        return refuse("compare", reason, 1)
    print(text)
    files = f"All tables and numbers: {', '.join(map(str, paths))}"
    if not options.verbose:
        files += "; --verbose prints them"
    print()
    print(fill(files, 80, break_long_words=False, break_on_hyphens=False))
    if remark:
        print(remark)
    if not is_complete and not options.merge:
        words = ["agnostic-nn", "compare", "--resume", str(outcome.folder)]
        print(f"To make the missing runs: {shlex.join(words)}")
    if outcome.is_interrupted and not is_complete:
        print("agnostic-nn: interrupted", file=sys.stderr)
        return 130
    if options.github:
        print(*annotations(report), sep="\n")
    status = report.verdict.status
    if not is_complete and status == "agrees":
        status = "not checked"
    return _exit_status(status, options.fail_on)


def _write_for_services(report: "Report", options: argparse.Namespace) -> list[Path]:
    """Write the files that CI services read, and return those to list in the output."""
    from ..compare import junit, step_summary

    step = os.environ.get("GITHUB_STEP_SUMMARY")
    if options.github and step:
        with open(step, "a", encoding="utf-8") as file:
            file.write(step_summary(report))
    if not options.junit:
        return []
    options.junit.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.junit, junit(report))
    return [options.junit]


def _exit_status(status: str, fail_on: str) -> int:
    """Return the exit status for a verdict; 0 if it is milder than `fail_on`."""
    if fail_on == "never":
        return 0
    last = FAIL_ON.index(fail_on)
    return EXIT_STATUS[status] if status in list(EXIT_STATUS)[: last + 1] else 0


def _conflict(options: argparse.Namespace) -> str | None:
    """Say which options exclude each other, or return None if they are consistent."""
    if options.resume is not None:
        reason = "with --resume: the settings are those of the run"
        return first_set(options, _options_set(options, WITH_RESUME), reason)
    policy = ("precision", "deterministic")
    run = ("dtypes", "epochs", "seed", "repeat")
    which = ("backends", "skip_missing", "workload", "model")
    train = (*which, *WITH_MODEL, *policy, *run)
    if options.merge:
        return first_set(options, train, "with --merge: it trains nothing")
    if options.labels:
        return "--labels can only be used with --merge"
    return model_conflict(options)


def _options_set(options: argparse.Namespace, but: Sequence[str]) -> list[str]:
    """Return the names of the options that do not have their default, but for some."""
    defaults = vars(options.parse([]))
    return [
        name
        for name, default in defaults.items()
        if name not in but and getattr(options, name) != default
    ]


def _merged(options: argparse.Namespace) -> _Outcome:
    from ..compare import merge
    from ..compare.folders import new_folder

    report = merge(options.merge, options.labels)
    folder = new_folder(options.output, f"{report.workload.name}-merged")
    return _Outcome(report, folder)


def _trained(options: argparse.Namespace) -> _Outcome:
    """Make all runs in a new folder."""
    from ..compare.comparison import Execution
    from ..compare.folders import new_folder
    from ..compare.resume import RunFolder

    plan = _plan(options)
    path = new_folder(options.output, plan.task.workload.name)
    with RunFolder(path, options.words) as folder:
        return _executed(Execution(plan), folder, options)


def _resumed(options: argparse.Namespace) -> tuple[_Outcome, argparse.Namespace]:
    """Make the missing runs in a folder; return also the options of that run."""
    from ..compare.resume import RunFolder, newest_unfinished, read_unfinished

    path = options.resume
    if path is True:  # no folder was named
        path = newest_unfinished(options.output)
    with RunFolder(path) as folder:
        unfinished = read_unfinished(path)
        original = options.parse(unfinished.words)
        changed = {*_options_set(options, ()), "verbose", "quiet"} & {*WITH_RESUME}
        for name in changed:
            setattr(original, name, getattr(options, name))
        execution = unfinished.execution(_plan(original))
        return _executed(execution, folder, original), original


def _plan(options: argparse.Namespace) -> "Plan":
    from ..compare.plan import prepare
    from ..compare.running import SIZES

    return prepare(
        chosen_workload(options),
        options.backends,
        precision=options.precision,
        deterministic=options.deterministic,
        dtypes=options.dtypes or ["float32"],
        epochs=options.epochs,
        seed=options.seed or 0,
        sizes=() if options.no_batches else SIZES,
        repeat=options.repeat or 1,
        skip_missing=bool(options.skip_missing),
    )


def _executed(
    execution: "Execution", folder: "RunFolder", options: argparse.Namespace
) -> _Outcome:
    """Make the missing runs, and save the report after each of them."""
    from ..compare.run_progress import run_progress

    is_interrupted = False
    can_write = True
    try:
        with run_progress(not options.quiet) as progress:
            for _ in execution.steps(progress):
                try:
                    folder.save(execution)
                except OSError as error:  # training goes on: there may be space later
                    if can_write:
                        reason = f"{folder.path} cannot be written: {error.strerror}"
                        refuse("compare", f"{reason}; the comparison continues")
                    can_write = False
    except KeyboardInterrupt:
        if execution.reference is None:
            raise
        is_interrupted = True
        with suppress(OSError):  # the report is written again, and then refused
            folder.save(execution)
    finally:
        if execution.reference is None:
            with suppress(OSError):
                folder.path.rmdir()
    return _Outcome(execution.report(), folder.path, is_interrupted)
