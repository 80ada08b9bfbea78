"""`agnostic-nn profile`: where the time of a training step goes."""

import argparse
import json
from pathlib import Path
from typing import Any

from ...core.backend import BackendUnavailable, backend
from ...training import NonFiniteLoss
from .arguments import (
    add_backend,
    add_model,
    chosen_workload,
    command,
    count,
    print_and_write,
    refuse,
)

__all__ = ["add"]


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command and its arguments."""
    add_argument = command(
        commands,
        "profile",
        "Show where the time of a training step goes: by layer, by part and by "
        "operation.",
        _profile,
        "The parts are forward, loss, backward, the check for finite values and the "
        "update.",
    )
    add_argument(
        "--workload",
        metavar="NAME",
        help="the network and data to train, one of those that `agnostic-nn compare "
        "--help` lists (default: digits-mlp)",
    )
    add_model(add_argument)
    add_backend(add_argument)
    add_argument(
        "--steps",
        type=count,
        default=20,
        metavar="N",
        help="number of steps to time (default: %(default)s)",
    )
    add_argument(
        "--verbose",
        action="store_true",
        help="show the options of each layer, and operations that take less than 1 %%; "
        "lines may be longer than 80 columns",
    )
    add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write all times to FILE, as JSON, in seconds",
    )


def _profile(options: argparse.Namespace) -> int:
    from ..compare.workloads import CannotCompare
    from ..profile import profile

    path = options.json
    if path is not None and not path.absolute().parent.is_dir():
        return refuse("profile", f"--json {path}: {path.parent} is not a folder")
    try:
        chosen = backend(options.backend)
        workload = chosen_workload(options)
        train, _ = workload.read()
    except (BackendUnavailable, CannotCompare) as error:
        return refuse("profile", error)
    batch = train[: workload.batch_size]
    try:
        result = profile(
            *(workload.model, workload.loss, workload.optimizer, batch.x, batch.target),
            backend=chosen,
            steps=options.steps,
        )
    except (NonFiniteLoss, ValueError) as error:  # or the loss takes a context
        return refuse("profile", error)
    text = result.to_text(verbose=options.verbose)
    data = {"workload": workload.name, **result.to_json()}
    texts = {path: json.dumps(data, indent=2) + "\n"}
    return print_and_write("profile", f"{workload.name} on {text}", texts)
