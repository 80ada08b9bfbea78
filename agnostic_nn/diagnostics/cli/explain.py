"""`agnostic-nn explain`: the chain rule of a batch: formulas, shapes and numbers."""

import argparse
from pathlib import Path
from typing import Any

from ...core.backend import Backend, BackendUnavailable, backend
from .arguments import (
    WITH_MODEL,
    add_backend,
    add_model,
    chosen_workload,
    command,
    count,
    print_and_write,
    refuse,
    seed,
)

__all__ = ["add"]

EXAMPLES = (
    "train_neuron_and_layer",
    "dense_and_relu_backward",
    "softmax_network",
    "mean_squared_error_step",
    "chain_rule_and_update",
)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command and its arguments."""
    add_argument = command(
        commands,
        "explain",
        "Show the chain rule of a batch, layer by layer: formulas, shapes and numbers.",
        _explain,
        "The result is text, or an HTML page with a drawing of the network.",
    )
    add_argument(
        "--workload",
        metavar="NAME",
        help="the network, untrained, and its data, one of those that `agnostic-nn "
        "compare --help` lists (default: digits-mlp)",
    )
    add_model(add_argument)
    add_argument(
        "--example",
        metavar="NAME",
        help="instead of a workload, one of five lessons on backpropagation: "
        + ", ".join(EXAMPLES),
    )
    add_argument(
        "--rows",
        type=count,
        metavar="N",
        help="number of examples from the workload (default: 4)",
    )
    add_backend(add_argument)
    add_argument(
        "--seed",
        type=seed,
        metavar="N",
        help="seed for the weights of the workload (default: 0)",
    )
    add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write an HTML page to this file instead, such as page.html",
    )


def _explain(options: argparse.Namespace) -> int:
    from ..explain.html import page

    if options.example is not None:
        for name in ("workload", "model", *WITH_MODEL, "rows", "seed"):
            if getattr(options, name) is not None:
                message = "cannot be used with --example: it has its own"
                option = f"--{name.replace('_', '-')}"
                return refuse("explain", f"{option} {message}")
        if options.example not in EXAMPLES:
            available = ", ".join(EXAMPLES)
            message = f"no example is called {options.example!r}; there are {available}"
            return refuse("explain", message)
    try:
        title, about, parts = _explained(options, backend(options.backend))
    except (BackendUnavailable, TypeError, ValueError) as error:
        return refuse("explain", error)
    if options.output is None:
        print("\n\n".join(map(str, parts)))
        return 0
    try:
        texts = {options.output: page(title, about, parts)}
    except ImportError as error:
        return refuse("explain", error)
    return print_and_write("explain", "", texts)


def _explained(
    options: argparse.Namespace, chosen: Backend
) -> tuple[str, str, list[Any]]:
    """Return the title of a page, its description and its parts."""
    from ..explain import explain
    from ..explain.html import Part
    from ..explain.notebooks import notebook_page

    if options.example is not None:
        return notebook_page(options.example, chosen)
    workload = chosen_workload(options)
    train, _ = workload.read()
    examples = train[: options.rows or 4]
    explanation = explain(
        *(workload.model, workload.loss, examples.x, examples.target),
        weights=examples.weights,
        backend=chosen,
        seed=options.seed or 0,
    )
    parts = [Part("", "", explanation)]
    return f"The chain rule of {workload.name}", f"{workload.about}.", parts
