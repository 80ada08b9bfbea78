"""Measure the errors of every layer and loss in float16 and bfloat16, in units of ε.

    python tests/half_precision.py            print the table of docs/precision.md
    python tests/half_precision.py --write    write it to the page

The exit status is 1 if a result is out of tolerance or a layer fails.

Each example of `diagnostics/examples.py` runs forward and backward, in training and in
prediction, from the numbers of three seeds, on NumPy, PyTorch and JAX. It is compared
with float64 as `nn.check(dtypes=...)` does.
"""

import argparse
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.files import write_text
from agnostic_nn.core.precisions import HALVES, epsilon
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES
from agnostic_nn.diagnostics.gradcheck.cases import random_case
from agnostic_nn.diagnostics.gradcheck.dtypes import (
    compared,
    computed,
    in_dtype,
    reference_of,
)
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for

PAGE = Path(__file__).parent.parent / "docs" / "precision.md"
BEGIN, END = "<!-- half precision: begin -->", "<!-- half precision: end -->"
BACKENDS = ("numpy", "torch:cpu", "jax")
SEEDS = 3
GROUP = 40  # cases that are compiled as one function
ROUNDED_ONCE = 0.5  # in units of ε: the error of a number that is rounded correctly


def cases_of(example):
    """Return the cases of an example: each seed, in training and in prediction."""
    draw = example.draw or partial(draw_for, example.layer)
    shape = batched(example.shape, 3)
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        case = random_case(example.layer, shape, np.float64, draw, generator, False)
        for mode in ("train", "predict"):
            yield replace(case, mode=mode)


def measured(dtype, backends):
    """Return the worst row by (name, backend), of all examples in a dtype."""
    examples = (*LAYERS, *LOSSES)
    pairs = [(example.name, case) for example in examples for case in cases_of(example)]
    names = [name for name, _ in pairs]
    cases = [in_dtype(case, dtype) for _, case in pairs]
    references = [reference_of(case, dtype) for case in cases]
    worst = {}
    for backend in backends:
        results = []
        for start in range(0, len(cases), GROUP):
            results += computed(cases[start : start + GROUP], dtype, backend)
        for name, case, reference, result in zip(
            names, cases, references, results, strict=True
        ):
            for row, _ in compared(case, dtype, str(backend), reference, result):
                key = name, str(backend)
                is_worst = key not in worst or not row.error <= worst[key].error
                # otherwise rounding may be as large as the result
                if is_worst and row.tolerance < 1.0:
                    worst[key] = row
                if not row.error <= row.tolerance:
                    print(f"OUT OF TOLERANCE: {name}: {row}", file=sys.stderr)
                    worst[None] = row
    return worst


def table():
    """Return the lines of the table, and whether all results are within tolerance."""
    columns = []
    for dtype in HALVES:
        backends = [nn.backend(name) for name in BACKENDS]
        backends = [backend for backend in backends if backend.has_dtype(dtype)]
        worst = measured(dtype, backends)
        columns += [(dtype, str(backend), worst) for backend in backends]
    is_right = not any(None in worst for _, _, worst in columns)
    names = dict.fromkeys(example.name for example in (*LAYERS, *LOSSES))
    heads = [f"{dtype}, {backend}" for dtype, backend, _ in columns]
    lines = [
        f"| layer or loss | {' | '.join(heads)} |",
        f"| --- | {' | '.join('---:' for _ in heads)} |",
    ]
    rounded = []
    for name in sorted(names, key=str.lower):
        rows = [
            (dtype, worst.get((name, backend))) for dtype, backend, worst in columns
        ]
        errors = [
            math.inf if row is None else row.error / epsilon(dtype)
            for dtype, row in rows
        ]
        if max(errors) <= ROUNDED_ONCE:
            rounded.append(f"`{name}`")
        else:
            texts = ["-" if e == math.inf else f"{e:.2f}" for e in errors]
            lines.append(f"| `{name}` | {' | '.join(texts)} |")
    others = ", ".join(rounded)
    remarks = [
        f"At most {ROUNDED_ONCE} everywhere: {others}.",
        "",
        "-: a position is rounded before numbers are looked up there, so the rounding "
        "may be as large as the result.",
    ]
    return [*lines, "", *remarks], is_right


def main():
    """Print the table, or write it to the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write it to the page")
    options = parser.parse_args()
    lines, is_right = table()
    text = "\n".join(lines)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        _, tail = rest.split(END)
        write_text(PAGE, f"{head}{BEGIN}\n{text}\n{END}{tail}")
    else:
        print(text)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
