"""`agnostic-nn check`: check hand-derived gradients, also those of custom layers."""

import argparse
import ast
import json
import math
import traceback
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ...core import precisions, random
from ...core.backend import Backend, BackendUnavailable, backend
from ...core.trees import shape_map
from .arguments import (
    add_results,
    command,
    count,
    is_writable,
    names,
    print_and_write,
    refuse,
    seed,
    show_status,
)

if TYPE_CHECKING:
    from ..gradcheck.report import Row

__all__ = ["add"]


class _InvalidArguments(ValueError):
    """Arguments that are invalid; the message says why."""


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command and its arguments."""
    add_argument = command(
        commands,
        "check",
        "Check gradients against central differences, automatic differentiation and "
        "NumPy.",
        _check,
        "The tables show the largest relative error of each comparison; `vjp of` a "
        "backend is its automatic differentiation, and the errors of --dtypes are in "
        "units of ε, the distance from 1 to the next number. `python -m pydoc "
        "agnostic_nn.diagnostics.gradcheck.oracles` describes the comparisons.",
        epilog="Exit status: 0 if all checks passed, 1 if a layer failed, 2 if the "
        "command line is invalid.",
    )
    add_argument(
        "what",
        nargs="*",
        metavar="LAYER",
        help="a layer or loss of the library, such as Dense or huber; or "
        "module:object, a layer or a function without arguments that returns one "
        "(default: every layer and loss of the library)",
    )
    add_argument(
        "--shape",
        type=_shape,
        metavar="N,N",
        help="the shape of one example for the named layers, without the batch: 5,3, "
        "or () for a number, or a tree such as \"{'x': (5, 3), 'mask': (5,)}\"",
    )
    add_argument(
        "--backends",
        type=names,
        metavar="A,B",
        help="backends to compare with NumPy (default: all that can run here and have "
        "float64)",
    )
    add_argument(
        "--dtypes",
        type=names,
        default=[],
        metavar="A,B",
        help="also compare the layer in these dtypes with float64, on NumPy and each "
        "backend that has them: float16, bfloat16, float32",
    )
    add_argument(
        "--elements",
        type=count,
        default=50,
        metavar="N",
        help="elements of x and of each parameter to take central differences of, "
        "drawn at random (default: %(default)s)",
    )
    add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="seed for all random numbers (default: %(default)s)",
    )
    add_argument(
        "--verbose",
        action="store_true",
        help="show every parameter, input and output of each layer, not only the worst "
        "of each comparison",
    )
    add_results(add_argument)


def _check(options: argparse.Namespace) -> int:
    from ...display.tables import markdown_table, table
    from ..gradcheck import CheckFailed, check
    from ..gradcheck.dtypes import backends_with, expected_dtypes
    from ..gradcheck.report import comparisons
    from ..loading import CannotLoad

    try:
        chosen = _chosen(options.what, options.shape)
        if options.shape is not None:
            for name, layer, shape, _ in chosen:
                _expect_shape(name, layer, shape)
        others = options.backends and [_with_float64(name) for name in options.backends]
        try:
            backends_with(expected_dtypes(options.dtypes), others)
        except ValueError as error:
            raise _InvalidArguments(f"--dtypes: {error}") from None
        for path in (options.json, options.markdown):
            if path is not None and not is_writable(path.parent):
                raise _InvalidArguments(f"{path} cannot be written to")
    except (_InvalidArguments, CannotLoad, BackendUnavailable) as error:
        return refuse("check", error)
    results = []
    settings = {
        "backends": others,
        "dtypes": options.dtypes,
        "elements": options.elements,
        "seed": options.seed,
    }
    for number, (name, layer, shape, draw) in enumerate(chosen, 1):
        show_status(f"{number}/{len(chosen)} {name}")
        rows: tuple[Row, ...] = ()
        remarks: tuple[str, ...] = ()
        message = None
        try:
            report = check(layer, shape, draw=draw, **settings)
            rows = report.rows
            remarks = report.remarks
        except CheckFailed as error:
            message = "".join(traceback.format_exception_only(error)).partition(": ")[2]
            if error.report is not None:
                message = message.rstrip().removesuffix(f"\n\n{error.report}")
                rows = error.report.rows
                remarks = error.report.remarks
        except Exception:  # a layer that does not even run may raise any exception
            message = traceback.format_exc()
        verdict = "failed" if message else "passed"
        result = {"name": name, "layer": str(layer), "shape": shape, "rows": rows}
        result |= {"remarks": remarks, "verdict": verdict, "message": message}
        results.append(result)
    show_status("")

    columns, lines = _table(results)
    failed = [result for result in results if result["message"]]
    parts = [table(columns, lines)] if len(results) > 1 else []
    for result in results:
        if result["message"]:
            parts.append(f"{result['name']}: {result['message'].rstrip()}")
        elif options.verbose or len(results) == 1:
            parts.append(f"{result['name']} on {result['shape']}")
        else:
            continue
        if result["rows"]:
            parts.append(table(*comparisons(result["rows"], verbose=options.verbose)))
    by_remark: dict[str, list[str]] = {}
    for result in results:
        for remark in result["remarks"]:
            by_remark.setdefault(remark, []).append(result["name"])
    for remark, layers in by_remark.items():
        which = f"{', '.join(layers)}: " if len(layers) < len(results) else ""
        parts.append(f"{which}{remark}")
    count = len(failed) or len(results)
    parts.append(f"{count} of {len(results)} {'failed' if failed else 'passed'}")
    checks = [result | {"rows": _for_json(result["rows"])} for result in results]
    data = {"seed": options.seed, "checks": checks}
    texts = {
        options.json: json.dumps(data, indent=1) + "\n",
        options.markdown: markdown_table(columns, lines) + "\n",
    }
    return print_and_write("check", "\n\n".join(parts), texts, 1 if failed else 0)


def _expect_shape(name: str, layer: Any, shape: Any) -> None:
    """Raise `_InvalidArguments` if the layer does not accept the shape."""
    xp = backend("numpy").xp
    try:
        layer.init(random.key(0, xp=xp), shape, xp.float32)
    except ValueError as error:
        fault = f"{name} cannot be checked with --shape {shape}"
        raise _InvalidArguments(f"{fault}: {error}") from None


def _shape(text: str) -> Any:
    """Parse a shape, or a tree of shapes, from "5,3" or a Python literal."""
    from ...training.inputs import as_shape

    try:
        shape = as_shape(ast.literal_eval(text))
        shape = (shape,) if type(shape) is int else shape
        sizes: list[Any] = []
        shape_map(sizes.extend, shape)
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError
    except (ValueError, SyntaxError, TypeError, AttributeError):
        message = f"expected a shape such as 5,3, or a tree of shapes, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None
    return shape


def _with_float64(name: str) -> Backend:
    """Return the backend called `name`; raise BackendUnavailable without float64."""
    chosen = backend(name)
    if not chosen.can_double:
        raise BackendUnavailable(f"{chosen} has no float64")
    return chosen


def _chosen(requested: list[str], shape: Any) -> list[tuple[Any, ...]]:
    """Return name, layer, shape and draw of each layer or loss to check."""
    from ..examples import LAYERS, LOSSES, Example
    from ..loading import load_layer

    examples: dict[str, list[Example]] = {}
    for example in (*LAYERS, *LOSSES):
        examples.setdefault(example.name, []).append(example)
    if not requested and shape is not None:
        raise _InvalidArguments("--shape needs the name of a layer to which it applies")
    chosen: list[tuple[Any, ...]] = []
    for name in requested or examples:
        if ":" in name:
            if shape is None:
                usage = f"--shape 5,3 if one example of {name} has the shape (5, 3)"
                raise _InvalidArguments(f"the input shape of {name} is needed: {usage}")
            chosen.append((name, load_layer(name), shape, None))
        elif name in examples:
            for example in examples[name]:
                example_shape = example.shape if shape is None else shape
                chosen.append((name, example.layer, example_shape, example.draw))
        else:
            near = get_close_matches(name, examples, 1)
            suggestion = f"did you mean {near[0]}?" if near else ""
            remedy = suggestion or "a custom one is module:object"
            fault = f"the library has no layer or loss called {name!r}"
            raise _InvalidArguments(f"{fault}; {remedy}")
    return chosen


def _table(results: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: each layer, its worst error by oracle, the verdict."""
    from ..gradcheck.report import column_of

    every_row = (row for result in results for row in result["rows"])
    columns = list(dict.fromkeys(map(column_of, every_row)))
    rows = []
    for result in results:
        by_column: dict[str, list[Row]] = {}
        for row in result["rows"]:
            by_column.setdefault(column_of(row), []).append(row)
        cells = [_worst(by_column.get(column, [])) for column in columns]
        rows.append([result["name"], *cells, result["verdict"]])
    return ["", *columns, "verdict"], rows


def _worst(rows: "list[Row]") -> str:
    if any(row.leaf == "(refused)" for row in rows):
        return "refused"
    errors = [row.error for row in rows]
    worst = max(errors, key=lambda error: (math.isnan(error), error), default=None)
    if worst is None:
        return ""
    dtype = rows[0].oracle
    if dtype in precisions.PRECISION_NAMES:
        return f"{worst / precisions.epsilon(dtype):.2g} ε"
    return f"{worst:.1e}"


def _for_json(rows: "tuple[Row, ...]") -> list[dict[str, Any]]:
    """Return rows in which NaN and infinity, which JSON lacks, are strings."""

    def converted(entry: Any) -> Any:
        is_finite = not isinstance(entry, float) or math.isfinite(entry)
        return entry if is_finite else str(entry)

    return [
        {name: converted(entry) for name, entry in asdict(row).items()} for row in rows
    ]
