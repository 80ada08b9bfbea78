"""`agnostic-nn conformance`: which parts of this library run on a given array library.

It helps to write the adapter of a new backend: see docs/conformance.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ...core.backend import BackendUnavailable
from .arguments import (
    add_results,
    command,
    count,
    is_writable,
    print_and_write,
    refuse,
    show_status,
)

__all__ = ["add"]


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command and its arguments."""
    add_argument = command(
        commands,
        "conformance",
        "Test this library on an array library: what is exact, within tolerance, wrong "
        "or unsupported.",
        _conformance,
        "The reference is NumPy.",
        epilog="Exit status: 0 if nothing is wrong or unsupported, 1 if something is, "
        "2 if the command line is invalid.",
    )
    add_argument(
        "backend",
        metavar="BACKEND",
        help="a backend such as jax:cpu:0; or a module: an adapter, or a namespace of "
        "the Array API standard such as mlx.core; or module:namespace",
    )
    add_argument(
        "--bare", action="store_true", help="do not use the adapter of the library"
    )
    add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="a single section or item, such as layers or Dense",
    )
    add_argument(
        "--seconds",
        type=count,
        default=120,
        metavar="N",
        help="time limit for one item; an item that takes longer or crashes is "
        "unsupported, and the others still run; a library may take 120 seconds to "
        "start (default: %(default)s)",
    )
    add_argument(
        "--verbose",
        action="store_true",
        help="show every check with its errors and its reason; lines may be longer "
        "than 80 columns",
    )
    add_results(add_argument)


def _conformance(options: argparse.Namespace) -> int:
    from ..conformance import SECTIONS, guarded

    for path in (options.json, options.markdown):
        if path is not None and not is_writable(path.parent):
            return refuse("conformance", f"{path} cannot be written to")
    settings = {"bare": options.bare, "only": options.only, "seconds": options.seconds}
    try:
        report = guarded(options.backend, **settings, progress=show_status)
    except BackendUnavailable as error:
        return refuse("conformance", error)
    show_status("")
    if not report.findings:
        fault = f"no section or item is called {options.only!r}"
        remedy = f"there are {', '.join(SECTIONS)}"
        return refuse("conformance", f"{fault}; {remedy}")
    texts: dict[Path | None, str] = {}
    if options.json is not None:
        texts[options.json] = json.dumps(report.to_json(), indent=1) + "\n"
    if options.markdown is not None:
        texts[options.markdown] = report.to_markdown()
    status = 0 if report.conforms else 1
    text = report.to_text(verbose=options.verbose)
    return print_and_write("conformance", text, texts, status)
