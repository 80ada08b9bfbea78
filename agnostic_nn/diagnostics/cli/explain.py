"""`agnostic-nn explain`: the chain rule of a batch, with every formula, shape and number."""

import argparse
from pathlib import Path
from typing import Any

from ...core.backend import Backend, BackendUnavailable, backend
from .arguments import command, count, refuse, seed, written

__all__ = ["add"]

EXAMPLES = (
    *("train_neuron_and_layer", "dense_and_relu_backward", "softmax_network"),
    *("mean_squared_error_step", "chain_rule_and_update"),
)


def add(commands: argparse._SubParsersAction) -> None:
    """Say what can be asked."""
    add_argument = command(
        commands,
        "explain",
        "Show the chain rule of a batch, layer by layer: formulas, shapes and numbers.",
        _explain,
        "As text, or as a page with the network drawn.",
    )
    add_argument(
        "--workload",
        metavar="NAME",
        help="a network and data, of what `compare` trains, before any training "
        "(default: digits-mlp)",
    )
    add_argument(
        "--example",
        metavar="NAME",
        help="or one of five notebooks that teach backpropagation: " + ", ".join(EXAMPLES),
    )
    add_argument(
        "--rows",
        type=count,
        metavar="N",
        help="how many examples of the workload (default: 4)",
    )
    add_argument(
        "--backend",
        metavar="NAME",
        help="where, such as jax:cpu:0 (default: $AGNOSTIC_NN_BACKEND, else numpy)",
    )
    add_argument(
        "--seed", type=seed, metavar="N", help="of the weights of the workload (default: 0)"
    )
    add_argument(
        "--output", type=Path, metavar="FILE", help="write a page instead, such as page.html"
    )


def _explain(options: argparse.Namespace) -> int:
    from ..compare.workloads import CannotCompare
    from ..explain.html import page

    if options.example is not None:
        for name in ("workload", "rows", "seed"):
            if getattr(options, name) is not None:
                return refuse("explain", f"--{name} has no meaning here: an example has its own")
        if options.example not in EXAMPLES:
            there = ", ".join(EXAMPLES)
            return refuse("explain", f"no example is called {options.example!r}; there are {there}")
    try:
        told = _told(options, backend(options.backend))
    except (BackendUnavailable, CannotCompare) as error:
        return refuse("explain", error)
    if options.output is None:
        print("\n\n".join(map(str, told[-1])))
        return 0
    try:
        return written("explain", "", {options.output: page(*told)})
    except ImportError as error:
        return refuse("explain", error)


def _told(options: argparse.Namespace, chosen: Backend) -> tuple[str, str, list[Any]]:
    """Title, what it is about, and parts of a page."""
    from ..compare.workloads import find
    from ..explain import explain
    from ..explain.html import Part
    from ..explain.notebooks import told_notebook

    if options.example is not None:
        return told_notebook(options.example, chosen)
    workload = find(options.workload or "digits-mlp")
    train, _ = workload.read()
    some = train[: options.rows or 4]
    asked = workload.model, workload.loss, some.x, some.target
    found = explain(*asked, backend=chosen, seed=options.seed or 0)
    return f"The chain rule of {workload.name}", f"{workload.about}.", [Part("", "", found)]
