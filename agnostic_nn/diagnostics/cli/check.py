"""`agnostic-nn check`: hand-derived gradients against every oracle, those of one's own too."""

import argparse
import ast
import json
import traceback
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...core import random
from ...core.backend import Backend, BackendUnavailable, backend
from ...core.trees import shape_map
from .arguments import command, count, is_writable, names, refuse, seed, tell, written

__all__ = ["add"]


class _Senseless(ValueError):
    """What was asked for makes no sense; the message says why."""


def add(commands: argparse._SubParsersAction) -> None:
    """Say what can be asked."""
    add_argument = command(
        commands,
        "check",
        "Hold hand-derived gradients to differences, to automatic differentiation and to NumPy.",
        _check,
        "What each oracle does is in the help of agnostic_nn.check.",
        epilog="Exit status: 0 if all is well, 1 if a layer failed, 2 if the command line makes "
        "no sense here.",
    )
    add_argument(
        "what",
        nargs="*",
        metavar="LAYER",
        help="a layer or loss of the library, such as Dense or huber, or module:object, a layer "
        "or what makes one without arguments (default: every layer and loss of the library)",
    )
    add_argument(
        "--shape",
        type=_shape,
        metavar="N,N",
        help="of one example of the layers named, the batch left out: 5,3, or () for a number, "
        "or a tree such as \"{'x': (5, 3), 'mask': (5,)}\"",
    )
    add_argument(
        "--backends",
        type=names,
        metavar="A,B",
        help="whose numbers to hold to NumPy's (default: all that run here and have float64)",
    )
    add_argument(
        "--elements",
        type=count,
        default=50,
        metavar="N",
        help="of a parameter, to take differences of (default: %(default)s)",
    )
    add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of all draws (default: %(default)s)"
    )
    for kind in ("json", "markdown"):
        add_argument(f"--{kind}", type=Path, metavar="FILE", help="where to write the result too")


def _check(options: argparse.Namespace) -> int:
    from ...display.tables import markdown_table, table
    from ..gradcheck import CheckFailed, check
    from ..loading import CannotLoad

    try:
        chosen = _chosen(options.what, options.shape)
        if options.shape is not None:
            for name, layer, shape, _ in chosen:
                _expect_shape(name, layer, shape)
        others = options.backends and [_double(name) for name in options.backends]
        for path in (options.json, options.markdown):
            if path is not None and not is_writable(path.parent):
                raise _Senseless(f"{path} cannot be written to")
    except (_Senseless, CannotLoad, BackendUnavailable) as error:
        return refuse("check", error)
    found = []
    asked = {"backends": others, "elements": options.elements, "seed": options.seed}
    for number, (name, layer, shape, draw) in enumerate(chosen, 1):
        tell(f"{number}/{len(chosen)} {name}")
        rows, message = [], None
        try:
            rows = [asdict(row) for row in check(layer, shape, draw=draw, **asked).rows]
        except CheckFailed as error:
            message = "".join(traceback.format_exception_only(error)).partition(": ")[2]
        except Exception:  # a layer that does not even run may fail with anything
            message = traceback.format_exc()
        found.append({"name": name, "layer": str(layer), "shape": shape, "rows": rows})
        found[-1] |= {"verdict": "failed" if message else "passed", "message": message}
    tell("")

    columns, lines = _lines(found)
    failed = [one for one in found if one["message"]]
    said = [table(columns, lines), *(f"{one['name']}: {one['message'].rstrip()}" for one in failed)]
    said += [f"{len(failed)} of {len(found)} failed" if failed else f"all {len(found)} passed"]
    texts = {
        options.json: json.dumps({"seed": options.seed, "checks": found}, indent=1) + "\n",
        options.markdown: f"{markdown_table(columns, lines)}\n",
    }
    return written("check", "\n\n".join(said), texts, 1 if failed else 0)


def _expect_shape(name: str, layer: Any, shape: Any) -> None:
    """Refuse a shape of the command line that the layer says it cannot take."""
    xp = backend("numpy").xp
    try:
        layer.init(random.key(0, xp=xp), shape, xp.float32)
    except ValueError as error:
        raise _Senseless(f"{name} cannot be checked with --shape {shape}: {error}") from None


def _shape(text: str) -> Any:
    """A shape, or a tree of shapes, from "5,3" or what Python would write."""
    from ...training.inputs import as_shape

    try:
        found = as_shape(ast.literal_eval(text))
        found = (found,) if type(found) is int else found
        sizes: list = []
        shape_map(sizes.extend, found)
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError
    except (ValueError, SyntaxError, TypeError, AttributeError):
        wrong = f"expected a shape such as 5,3, or a tree of shapes, got {text!r}"
        raise argparse.ArgumentTypeError(wrong) from None
    return found


def _double(name: str) -> Backend:
    """The backend called `name`, refused if it has no float64 to be had."""
    one = backend(name)
    if not one.can_double:
        raise BackendUnavailable(f"{one} has no float64")
    return one


def _chosen(asked: list[str], shape: Any) -> list[tuple]:
    """Name, layer, shape and draw of each that was asked for."""
    from ..examples import LAYERS, LOSSES
    from ..loading import load_layer

    ready = {one.name: one for one in (*LAYERS, *LOSSES)}
    if not asked and shape is not None:
        raise _Senseless("--shape is that of the layers named, and none is")
    found: list[tuple] = []
    for name in asked or ready:
        if ":" in name:
            if shape is None:
                example = f"--shape 5,3 if one example of {name} is shaped (5, 3)"
                raise _Senseless(f"say what {name} is given: {example}")
            found.append((name, load_layer(name), shape, None))
        elif name in ready:
            one = ready[name]
            found.append((name, one.layer, one.shape if shape is None else shape, one.draw))
        else:
            near = get_close_matches(name, ready, 1)
            remedy = f"did you mean {near[0]}?" if near else "one of your own is module:object"
            raise _Senseless(f"the library has no layer or loss called {name!r}; {remedy}")
    return found


def _column(row: dict[str, Any]) -> str:
    """Where what an oracle says stands in the table."""
    if row["oracle"] == "automatic differentiation":
        return f"vjp of {row['backend']}"
    return row["backend"] if row["oracle"] == "same as NumPy" else row["oracle"]


def _lines(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the worst error that each oracle found of a layer, and the verdict."""
    columns = list(dict.fromkeys(_column(row) for one in found for row in one["rows"]))
    lines = []
    for one in found:
        said: dict[str, list] = {}
        for row in one["rows"]:
            said.setdefault(_column(row), []).append(row)
        cells = [_worst(said.get(column, [])) for column in columns]
        lines.append([one["name"], *cells, one["verdict"]])
    return ["", *columns, "verdict"], lines


def _worst(rows: list[dict[str, Any]]) -> str:
    if any(row["leaf"] == "(refused)" for row in rows):
        return "refused"
    return f"{max(row['error'] for row in rows):.1e}" if rows else ""
