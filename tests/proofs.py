"""Proofs: every layer, loss and optimizer against every oracle, as docs/proofs.md shows them.

`nox -s proofs` holds that page to what is found here and now; `nox -s proofs --
--write` makes it. Nothing in its tables is typed by hand.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from cases import layer_cases
from cases.optimizers import worst_errors

import agnostic_nn as nn
from agnostic_nn.core.files import write_text
from agnostic_nn.diagnostics.cli.main import main as agnostic_nn_command
from agnostic_nn.diagnostics.examples import LossOf
from agnostic_nn.display.tables import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "proofs.md"
BACKENDS = ("jax:cpu", "torch:cpu", "array_api_strict:device1")
UNASKED = {"PyTorch": "PyTorch has none", "Optax": "held to PyTorch's"}
# another machine rounds otherwise: below the one any two are alike
NOISE, APART = 1e-12, 10.0
ERROR = re.compile(r" \d\.\de[+-]\d\d ")  # in its cell
MADE_WITH = "Found with "

HEAD = """# Proofs

Worst errors in float64, relative to the largest number of the array that they are in. `nox -s
proofs` computes them again and fails if this page differs: other rows or verdicts, or an
error that is more than ten times as large or small, where those below 1e-12 count as that.
`nox -s proofs -- --write` writes the page; nothing in it is typed by hand.

{made_with}{versions}.

## Layers, blocks and losses

What `agnostic-nn check` says. `central difference` and `adjoint` hold the hand-derived gradients to
differences of the layer's own forward, good to 1e-7 where a slope bends; `layout`, `batch of 0`,
`batch of 1`, `shortcuts` and `filled batch` hold the layer to itself; the column of a backend is
all that it computes, against NumPy, and `vjp of` it automatic differentiation of its forward.

{checked}

## The same in PyTorch

Forward, gradients and state of the same layer in PyTorch with the same weights, training and not:
the worst of all cases that the tests have, one table for both.

{beside}

## Optimizers

Parameters after 24 steps, on a tree of a matrix, a vector, a convolution's weight and a single
number, with options on: against the algorithm as a plain loop over numbers, against PyTorch and
Optax step for step, and on each backend against NumPy.

{optimizers}
"""


def checked():
    """The table of `agnostic-nn check`; None if something failed, which it has then said."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "check.md")
        failed = agnostic_nn_command(
            ["check", f"--backends={','.join(BACKENDS)}", f"--markdown={path}"]
        )
        return None if failed else path.read_text(encoding="utf-8").strip()


def beside_torch():
    """Each layer and loss, how many cases it has, and the worst error or why there is none."""
    from cases._torch import against_torch

    counts, worst, silent = Counter(), defaultdict(float), {}
    for case in layer_cases():
        is_loss = isinstance(case.layer, LossOf)
        name = case.layer.name if is_loss else type(case.layer).__name__
        counts[name] += 1
        if isinstance(case.theirs, str):
            silent[name] = case.theirs
            continue
        for train in (True, False):
            for _, ours, theirs in against_torch(nn.backend("numpy"), case, train):
                scale = np.max(abs(theirs), initial=1.0)
                worst[name] = max(
                    worst[name], np.max(abs(ours - theirs), initial=0.0) / scale
                )
    for name in sorted(counts):
        yield (
            name,
            counts[name],
            f"{worst[name]:.1e}" if name in worst else silent[name],
        )


def optimizers():
    """Each optimizer and its worst error by each oracle, or why there is none."""
    oracles = ("plain loop", "PyTorch", "Optax", *BACKENDS)
    yield "", *oracles
    for name, result in worst_errors(BACKENDS).items():
        yield (
            name,
            *(f"{result[o]:.1e}" if o in result else UNASKED[o] for o in oracles),
        )


def unlike(page, found):
    """Lines of a page and of what was found that are not alike."""
    for held, now in zip_longest(page.splitlines(), found.splitlines(), fillvalue=""):
        versions = held.startswith(MADE_WITH) and now.startswith(MADE_WITH)
        if not versions and not alike(held, now):
            yield held, now


def renewed(page, found):
    """Return the new lines, but keep lines of the page that are still true."""
    held = page.splitlines()
    lines = (
        next((old for old in held if alike(old, now)), now)
        for now in found.splitlines()
    )
    return "\n".join(lines) + "\n"


def alike(held, now):
    """Return whether two lines are equal, apart from errors that vary between machines."""
    cells = zip_longest(held.split("|"), now.split("|"), fillvalue="")
    return all(_alike(*pair) for pair in cells)


def _alike(held, now):
    if not (ERROR.fullmatch(held) and ERROR.fullmatch(now)):
        return held == now
    small, large = sorted(max(float(cell), NOISE) for cell in (held, now))
    return large <= APART * small


def main(arguments):
    parser = argparse.ArgumentParser(
        description="Hold docs/proofs.md to what is measured."
    )
    parser.add_argument("--write", action="store_true", help="update the page")
    is_to_write = parser.parse_args(arguments).write
    table = checked()
    if table is None:
        return 1
    columns, *rows = optimizers()
    result = HEAD.format(
        made_with=MADE_WITH,
        versions=", ".join(
            f"{b.name} {b.version}" for b in map(nn.backend, ("numpy", *BACKENDS))
        ),
        checked=table,
        beside=markdown_table(["", "cases", "worst error"], beside_torch()),
        optimizers=markdown_table(columns, rows),
    )
    page = PAGE.read_text(encoding="utf-8")
    if is_to_write:
        write_text(PAGE, renewed(page, result))
        return 0
    wrong = list(unlike(page, result))
    for held, now in wrong[:5]:
        print(f"docs/proofs.md says\n  {held}\nbut found was\n  {now}", file=sys.stderr)
    if wrong:
        print(f"{len(wrong)} lines differ: nox -s proofs -- --write", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
