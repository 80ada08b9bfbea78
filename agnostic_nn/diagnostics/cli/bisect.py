"""`agnostic-nn bisect`: find the first stage that two backends compute differently."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from ...core.backend import BackendUnavailable
from .arguments import add_model, chosen_workload, command, count, refuse, seed

__all__ = ["add"]


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command and its arguments."""
    add_argument = command(
        commands,
        "bisect",
        "Find the first layer, loss or update that two backends compute differently.",
        _bisect,
        "Each stage of one training step, and of a prediction after it, gets the same "
        "numbers on both backends and is compared with the same stage in float64.",
        epilog="Exit status: 0 if nothing differs beyond rounding, 1 if something "
        "does, 2 if a result could not be checked, such as one that overflows on both, "
        "or nothing could be run.",
    )
    add_argument(
        "backends",
        nargs="*",
        metavar="BACKEND",
        help="two backends, such as numpy jax:cpu:0, each with a dtype if it is not "
        "float32, as in jax:cpu:0@float64 or jax@bfloat16, and with strict, fast or "
        "deterministic if needed, as in torch@strict torch@fast@deterministic; a "
        "single backend is compared with numpy@float64",
    )
    add_argument(
        "--workload",
        metavar="NAME",
        help="the network and data to train, one of those that `agnostic-nn compare "
        "--help` lists (default: digits-mlp)",
    )
    add_model(add_argument)
    add_argument(
        "--steps",
        type=_count_or_zero,
        metavar="N",
        help="steps that the first backend takes before the step that is judged; an "
        "earlier step whose loss or gradient is not finite is judged instead (default: "
        "1)",
    )
    add_argument(
        "--seed",
        type=seed,
        metavar="N",
        help="seed for weights, masks and the order of the data (default: 0)",
    )
    add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the stage that differs and its inputs to this file (default: "
        "bisect.npz)",
    )
    add_argument(
        "--verbose",
        action="store_true",
        help="show all results with errors and tolerances; lines may be longer than 80 "
        "columns",
    )
    add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="run only the stage in this file, on the given backends or on those of "
        "the file; for a custom layer, loss or optimizer add --model, which may be a "
        "model that contains the layer",
    )


def _count_or_zero(text: str) -> int:
    return 0 if text == "0" else count(text)


def _bisect(options: argparse.Namespace) -> int:
    from ..bisect import StageFailed
    from ..compare.workloads import CannotCompare

    if options.replay is None and len(options.backends) not in (1, 2):
        return refuse("bisect", "expected one or two backends, such as numpy jax")
    if options.replay is not None:
        fixed = "workload data loss optimizer metric batch_size steps seed output"
        for name in fixed.split():
            if getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')}"
                message = "cannot be used with --replay: the file has its own"
                return refuse("bisect", f"{option} {message}")
    output = options.output or Path("bisect.npz")
    if not output.absolute().parent.is_dir():
        return refuse("bisect", f"--output {output}: its folder does not exist")
    try:
        result = _replay(options) if options.replay else _search(options)
    except OSError as error:
        reason = error.strerror or error
        return refuse("bisect", f"{options.replay} cannot be read: {reason}")
    except (BackendUnavailable, CannotCompare, StageFailed) as error:
        return refuse("bisect", error)
    except (TypeError, ValueError) as error:  # invalid data or an invalid file
        return refuse("bisect", error)
    text = result.to_text(verbose=options.verbose)
    hint = ""
    if result.first is not None and options.replay is None:
        # Saved before anything is printed, because the reader of a pipe may have gone.
        try:
            needs_no_model = result.save(output)
        except OSError as error:
            print(text)
            return refuse("bisect", f"{output} cannot be written: {error.strerror}", 1)
        words = ["agnostic-nn", "bisect", "--replay", str(output)]
        words += [] if needs_no_model else ["--model", options.model]
        hint = f"\n\nwritten: {output}; to run that stage alone, anywhere:\n"
        hint += shlex.join(words)
    print(f"{text}{hint}")
    return {"agree": 0, "differ": 1, "not checked": 2}[result.status]


def _replay(options: argparse.Namespace) -> Any:
    """Run the stage in a file again."""
    from ..bisect import replay
    from ..loading import CannotLoad, load, load_layer

    thing = None
    if options.model:
        try:
            thing = load_layer(options.model)
        except CannotLoad:  # it may be a loss or an optimizer
            thing = load(options.model)
    return replay(options.replay, *options.backends, thing=thing)


def _search(options: argparse.Namespace) -> Any:
    """Search a workload, or the user's model and data, for the first difference."""
    from ..bisect import bisect

    workload = chosen_workload(options)
    train, _ = workload.read()
    return bisect(
        *(workload.model, workload.loss, workload.optimizer, train.x, train.target),
        *options.backends,
        steps=1 if options.steps is None else options.steps,
        batch_size=workload.batch_size,
        seed=options.seed or 0,
        weights=train.weights,
        context=workload.context,
    )
