"""`agnostic-nn profile`: where the time of a training step goes."""

import argparse
import json
from pathlib import Path
from typing import Any

from ...core.backend import BackendUnavailable, backend
from ...core.files import write_text
from .arguments import command, count, refuse

__all__ = ["add"]


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command and its arguments."""
    about = "Show where the time of a training step goes: by layer, by part and by operation."
    add_argument = command(commands, "profile", about, _profile)
    add_argument(
        "--workload",
        default="digits-mlp",
        metavar="NAME",
        help="the network and data to train, as in `compare` (default: %(default)s)",
    )
    add_argument(
        "--backend",
        metavar="NAME",
        help="backend, such as jax:cpu:0 (default: $AGNOSTIC_NN_BACKEND, else numpy)",
    )
    add_argument(
        "--steps",
        type=count,
        default=20,
        metavar="N",
        help="number of steps to time (default: %(default)s)",
    )
    add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write all times to FILE, in seconds",
    )


def _profile(options: argparse.Namespace) -> int:
    from ..compare.workloads import CannotCompare, find
    from ..profile import profile

    if options.json is not None and not options.json.absolute().parent.is_dir():
        return refuse(
            "profile", f"--json {options.json}: {options.json.parent} is not a folder"
        )
    try:
        chosen = backend(options.backend)
        workload = find(options.workload)
        train, _ = workload.read()
    except (BackendUnavailable, CannotCompare) as error:
        return refuse("profile", error)
    batch = train[: workload.batch_size]
    result = profile(
        *(workload.model, workload.loss, workload.optimizer, batch.x, batch.target),
        backend=chosen,
        steps=options.steps,
    )
    print(f"{workload.name} on {result}")
    if options.json is not None:
        data = {"workload": workload.name, **result.to_json()}
        try:
            write_text(options.json, json.dumps(data, indent=2) + "\n")
        except OSError as error:
            return refuse(
                "profile", f"{options.json} cannot be written: {error.strerror}", 1
            )
        print(f"\nwritten: {options.json}")
    return 0
