"""The command line: `agnostic-nn backends`, `agnostic-nn compare` and `agnostic-nn profile`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from .registry import BackendUnavailable, backend, backends
from .tables import table

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """One line says what is wrong; how to ask is in the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks.

    Returns 0 if all is well, 1 if a backend failed or a file could not be written, 2 if
    what was asked for makes no sense here.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("agnostic-nn: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="agnostic-nn",
        description="Neural networks with hand-derived gradients, on any array library.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    about = "List the array libraries: versions, devices, and why one cannot run."
    listing = commands.add_parser("backends", help=about, description=about)
    listing.set_defaults(command=_backends)

    about = "Do the same training on every backend and device, and report how they differ."
    comparing = commands.add_parser(
        "compare",
        help=about,
        description=f"{about} The reference is the same training by NumPy in float64.",
        epilog="Exit status: 0 if every backend finished, 1 if one failed, 2 if the command "
        "line makes no sense here. Leaving the tolerance is a finding, not a failure.",
    )
    comparing.set_defaults(command=_compare)
    add = comparing.add_argument
    add(
        "--backends",
        type=_names,
        metavar="A,B",
        help="what to compare, such as numpy,jax:cpu:0; a name alone means its first device "
        "(default: every device of every backend that can run here, but for test libraries)",
    )
    add(
        "--workload",
        default="digits-mlp",
        metavar="NAME",
        help="what to train: digits-mlp, digits-norm (with BatchNorm and Dropout), digits-cnn, "
        "mnist-cnn, breast-cancer, characters (a transformer) or parity-gru (default: %(default)s)",
    )
    add(
        "--output",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="where report.json and report.md go; made if it is not there (default: %(default)s)",
    )
    add(
        "--epochs",
        type=_positive,
        metavar="N",
        help="passes over the data (default: the workload's)",
    )
    add(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of weights, masks and the order of the data (default: %(default)s)",
    )
    add("--quiet", action="store_true", help="draw no progress bars")

    about = "Show where the time of a training step goes: by layer, by part and by operation."
    profiling = commands.add_parser("profile", help=about, description=about)
    profiling.set_defaults(command=_profile)
    add = profiling.add_argument
    add(
        "--workload",
        default="digits-mlp",
        metavar="NAME",
        help="what to train, of what `compare` trains (default: %(default)s)",
    )
    add(
        "--backend",
        metavar="NAME",
        help="where, such as jax:cpu:0 (default: $AGNOSTIC_NN_BACKEND, else numpy)",
    )
    add("--steps", type=_positive, default=20, metavar="N", help="to time (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="where to write all figures too, in seconds")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("expected names of backends, such as numpy,jax")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"expected an integer in [0, 2**64), got {text!r}")
    return int(text)


def _backends(options: argparse.Namespace) -> int:
    found = list(backends())
    columns = ["backend", "version", "hardware", "float64"]
    rows = [
        [str(device), status.version, device.hardware, "yes" if device.has_float64 else "no"]
        for status in found
        for device in status.devices
    ]
    print(table(columns, rows))
    missing = [status for status in found if status.reason]
    if missing:
        print("\ncannot run here:")
    for status in missing:
        reason = " ".join(str(status.reason).split())
        installed = f" ({status.name} {status.version} is installed)" if status.version else ""
        print(f"  {reason}{installed}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from .compare import CannotCompare, compare, summary, write

    refuse = partial(_refuse, "compare")
    output = options.output.absolute()
    nearest = next(path for path in (output, *output.parents) if os.path.exists(path))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        return refuse(f"--output {options.output}: {nearest} is no folder that can be written to")
    try:
        report = compare(
            options.workload,
            options.backends,
            epochs=options.epochs,
            seed=options.seed,
            shown=not options.quiet,
        )
    except CannotCompare as error:
        return refuse(error)
    print(summary(report))
    try:
        paths = write(report, options.output)
    except OSError as error:
        return refuse(f"the report cannot be written to {options.output}: {error.strerror}", 1)
    print(f"written: {', '.join(map(str, paths))}")
    return 1 if any(result["error"] is not None for result in report["results"]) else 0


def _profile(options: argparse.Namespace) -> int:
    from .compare.workloads import CannotCompare, find
    from .profiling import profile

    refuse = partial(_refuse, "profile")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        return refuse(f"--json {options.json}: {options.json.parent} is no folder")
    try:
        chosen, workload = backend(options.backend), find(options.workload)
        train, _ = workload.read()
    except (BackendUnavailable, CannotCompare) as error:
        return refuse(error)
    part = train[: workload.batch_size]
    asked = workload.model, workload.loss, workload.optimizer, part.x, part.target
    found = profile(*asked, backend=chosen, steps=options.steps)
    print(f"{workload.name} on {found}")
    if options.json is not None:
        data = {"workload": workload.name, **found.to_json()}
        try:
            options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            return refuse(f"{options.json} cannot be written: {error.strerror}", 1)
        print(f"\nwritten: {options.json}")
    return 0


def _refuse(command: str, message: object, code: int = 2) -> int:
    print(f"agnostic-nn {command}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
