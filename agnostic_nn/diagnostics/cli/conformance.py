"""`agnostic-nn conformance`: what of this library a given array library can carry, thing by thing.

With it a new backend is brought up: see docs/conformance.md.
"""

import argparse
import json
from pathlib import Path

from ...core.backend import BackendUnavailable
from .arguments import command, count, is_writable, refuse, tell, written

__all__ = ["add"]


def add(commands: argparse._SubParsersAction) -> None:
    """Say what can be asked."""
    add_argument = command(
        commands,
        "conformance",
        "Try everything on an array library, and say what is exact, within tolerance or missing.",
        _conformance,
        "The reference is NumPy.",
        epilog="Exit status: 0 if nothing is wrong or unsupported, 1 if something is, 2 if the "
        "command line makes no sense here.",
    )
    add_argument(
        "backend",
        metavar="BACKEND",
        help="a backend such as jax:cpu:0; or a module that is an adapter, or a namespace of the "
        "Array API Standard such as mlx.core; or module:namespace",
    )
    add_argument("--bare", action="store_true", help="do without the library's adapter")
    add_argument(
        "--only", default="", metavar="NAME", help="one section or thing, such as layers or Dense"
    )
    add_argument(
        "--seconds",
        type=count,
        default=120,
        metavar="N",
        help="that one thing may take; what takes longer, or crashes, is unsupported, and the "
        "rest is tried all the same; a library may take 120 to start (default: %(default)s)",
    )
    for kind in ("json", "markdown"):
        add_argument(f"--{kind}", type=Path, metavar="FILE", help="where to write the result too")


def _conformance(options: argparse.Namespace) -> int:
    from ..conformance import SECTIONS, guarded

    for path in (options.json, options.markdown):
        if path is not None and not is_writable(path.parent):
            return refuse("conformance", f"{path} cannot be written to")
    asked = {"bare": options.bare, "only": options.only, "seconds": options.seconds}
    try:
        found = guarded(options.backend, **asked, progress=tell)
    except BackendUnavailable as error:
        return refuse("conformance", error)
    tell("")
    if not found.findings:
        return refuse("conformance", f"--only {options.only}: there are {', '.join(SECTIONS)}")
    texts = {
        options.json: json.dumps(found.to_json(), indent=1) + "\n",
        options.markdown: found.to_markdown(),
    }
    return written("conformance", str(found), texts, 0 if found.conforms else 1)
