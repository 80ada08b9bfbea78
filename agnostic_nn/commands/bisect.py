"""`agnostic-nn bisect`: the first piece of a step that two backends compute differently."""

import argparse
from pathlib import Path
from typing import Any

from ..registry import BackendUnavailable
from .arguments import command, count, refuse, seed

__all__ = ["add"]


def add(commands: argparse._SubParsersAction) -> None:
    """Say what can be asked."""
    add_argument = command(
        commands,
        "bisect",
        "Find the first layer, loss or update that two backends compute differently.",
        _bisect,
        "Each piece of one training step gets the same numbers on both, and is held to the same "
        "piece in float64.",
        epilog="Exit status: 0 if nothing differs beyond rounding, 1 if something does, 2 if the "
        "command line makes no sense here.",
    )
    add_argument(
        "backends",
        nargs="*",
        metavar="BACKEND",
        help="two, such as numpy jax:cpu:0, each with a dtype if it is not float32, as in "
        "jax:cpu:0@float64, and with strict or fast, and deterministic, if need be, as in "
        "torch@strict torch@fast@deterministic; one alone is held to numpy@float64",
    )
    add_argument(
        "--workload",
        metavar="NAME",
        help="what to train, of what `compare` trains (default: digits-mlp)",
    )
    add_argument(
        "--model",
        metavar="MODULE:OBJECT",
        help="instead of a workload: a layer of one's own, or a function that gives one",
    )
    add_argument("--data", type=Path, metavar="FILE", help="an npz file with its x and target")
    add_argument("--loss", metavar="NAME", help="of that model, such as huber(delta=0.5)")
    add_argument("--optimizer", metavar="NAME", help="of that model, such as Adam(rate=1e-3)")
    add_argument(
        "--steps",
        type=_whole,
        metavar="N",
        help="that the first backend takes before the step that is looked at; one whose loss or "
        "gradient is not finite is looked at instead (default: 0)",
    )
    add_argument(
        "--seed",
        type=seed,
        metavar="N",
        help="of weights, masks and the order of the data (default: 0)",
    )
    add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the piece goes that differs, with what it was given (default: bisect.npz)",
    )
    add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="run that piece alone, on these backends or on those that it was found with; a layer, "
        "loss or optimizer of one's own is named after --model, or a model that the layer is in",
    )


def _whole(text: str) -> int:
    return 0 if text == "0" else count(text)


def _bisect(options: argparse.Namespace) -> int:
    from ..bisecting import PieceFails
    from ..compare.workloads import CannotCompare

    if options.replay is None and len(options.backends) not in (1, 2):
        return refuse("bisect", "expected one or two backends, such as numpy jax")
    if options.replay is not None:
        for name in ("workload", "data", "loss", "optimizer", "steps", "seed", "output"):
            if getattr(options, name) is not None:
                return refuse("bisect", f"--{name} has no meaning here: --replay FILE has its own")
    output = options.output or Path("bisect.npz")
    if not output.absolute().parent.is_dir():
        return refuse("bisect", f"--output {output}: its folder is not there")
    try:
        found = _replayed(options) if options.replay else _found(options)
    except OSError as error:
        return refuse("bisect", f"{options.replay} cannot be read: {error.strerror or error}")
    except (BackendUnavailable, CannotCompare, PieceFails, TypeError, ValueError) as error:
        return refuse("bisect", error)
    hint = ""
    if found.first is not None and options.replay is None:
        try:  # before a word is said: nobody may be listening any more
            alone = found.save(output)
        except OSError as error:
            print(found)
            return refuse("bisect", f"{output} cannot be written: {error.strerror}", 1)
        model = "" if alone else f" --model {options.model}"
        hint = f"\n\nwritten: {output}; to run that piece alone, anywhere:\n"
        hint += f"agnostic-nn bisect --replay {output}{model}"
    print(f"{found}{hint}")
    return 0 if found.first is None else 1


def _replayed(options: argparse.Namespace) -> Any:
    from ..bisecting import replay
    from ..loading import CannotLoad, load, load_layer

    thing = None
    if options.model:
        try:
            thing = load_layer(options.model)
        except CannotLoad:  # a loss or an optimizer, or nothing at all
            thing = load(options.model)
    return replay(options.replay, *options.backends, thing=thing)


def _found(options: argparse.Namespace) -> Any:
    from ..bisecting import bisect
    from ..compare.own import own
    from ..compare.workloads import CannotCompare, find

    asked = {k: getattr(options, k) for k in ("loss", "optimizer") if getattr(options, k)}
    if options.model and options.data and not options.workload:
        workload = own(options.model, options.data, **asked)
    elif options.model or options.data or asked:
        raise CannotCompare("--model and --data go together, without --workload")
    else:
        workload = find(options.workload or "digits-mlp")
    train, _ = workload.read()
    return bisect(
        *(workload.model, workload.loss, workload.optimizer, train.x, train.target),
        *options.backends,
        steps=options.steps or 0,
        batch_size=workload.batch_size,
        seed=options.seed or 0,
    )
