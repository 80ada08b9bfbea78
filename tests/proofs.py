"""Compare every layer, loss and optimizer with every oracle, for docs/proofs.md.

`nox -s proofs` computes the tables again and fails if the page differs; `nox -s proofs
-- --write` updates the page, which is generated entirely, and the pages of
`public_names.py`.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import public_names
from cases import layer_cases, subject
from cases.optimizers import worst_errors

import agnostic_nn as nn
from agnostic_nn.core.files import write_text
from agnostic_nn.diagnostics.cli.main import main as agnostic_nn_command
from agnostic_nn.display.tables import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "proofs.md"
BACKENDS = ("jax:cpu", "torch:cpu", "array_api_strict:device1")
# The cells of optimizers that are not compared with a library.
NOT_COMPARED = {"PyTorch": "PyTorch has none", "Optax": "not compared"}
# Rounding depends on the machine. Errors below NOISE are equal, others if their ratio
# is at most MAX_RATIO.
NOISE = 1e-12
MAX_RATIO = 10.0
ERROR = re.compile(r" \d\.\de[+-]\d\d ")  # a cell of a table
MADE_WITH = "Measured with "

HEAD = """# Proofs

This page compares every layer, block, loss and optimizer of the library with
independent computations of the same values and gradients. Backward passes and update
rules are derived by hand, so each needs evidence that it is right.

All errors are in float64, relative to the largest number of the array that they are in.
An error near 1e-16 is one rounding; an error near 1e-12 is the accuracy of a finite
difference.

## How to repeat it

```console
nox -s proofs                # compute all tables again and compare them with this page
nox -s proofs -- --write     # also update this page
```

The session fails if rows or verdicts differ, or if an error is more than ten times as
large or as small as here. Errors below 1e-12 count as equal. The page is generated
entirely.

{made_with}{versions}.

## Layers, blocks and losses

The table of `agnostic-nn check`. You get the same for a layer of your own from
`nn.check`.

- `central difference`: each gradient against finite differences of the forward pass,
  which are accurate to about 1e-7 where a derivative has a kink nearby.
- `adjoint`: Σ dy · Jv against Σ Jᵀdy · v for a random direction v, with J the Jacobian.
- `layout`: transposed and sliced arrays give the same results.
- `batch of 0`, `batch of 1`: no examples give gradients of 0, and one example alone
  gives the same prediction as in a batch. "refused" means that the layer raises an
  error, as it documents.
- `filled batch`: filler rows, which a `RowMask` excludes, have no effect, whether they
  repeat an example or hold numbers beyond those of all examples.
- `shortcuts`: `predict` agrees with `forward`, and `backward_params` with `backward`.
- A backend's name: everything that it computes, against NumPy.
- `vjp of` a backend: its automatic differentiation of the forward pass.

{checked}

## Layers and losses in PyTorch

Forward pass, gradients and state of the same layer in PyTorch, with the same weights,
in training and in prediction. The error is the worst of all test cases. Instead of an
error, the table gives the reason if PyTorch has nothing to compare with.

{torch}

## Optimizers

Parameters after 24 updates of a matrix, a vector, the weight of a convolution and a
scalar, with options set. The columns compare them with the algorithm as a plain loop
over numbers, with PyTorch and Optax step by step, and on each backend with NumPy.

{optimizers}
"""


def checked():
    """Return the table of `agnostic-nn check`, or None if it printed a failure."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "check.md")
        failed = agnostic_nn_command(
            ["check", f"--backends={','.join(BACKENDS)}", f"--markdown={path}"]
        )
        return None if failed else path.read_text(encoding="utf-8").strip()


def torch_rows():
    """Yield each layer and loss, its number of cases, and its worst error, if any."""
    from cases._torch import against_torch

    counts = Counter()
    worst = defaultdict(float)
    reasons = {}
    for case in layer_cases():
        name = subject(case.layer).__name__
        counts[name] += 1
        if isinstance(case.theirs, str):
            reasons[name] = case.theirs
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
            f"{worst[name]:.1e}" if name in worst else reasons[name],
        )


def optimizers():
    """Yield the columns, then each optimizer and its worst error by each oracle."""
    oracles = ("plain loop", "PyTorch", "Optax", *BACKENDS)
    yield "", *oracles
    for name, result in worst_errors(BACKENDS).items():
        yield (
            name,
            *(f"{result[o]:.1e}" if o in result else NOT_COMPARED[o] for o in oracles),
        )


def differences(page, computed):
    """Yield each line of the page that is not what was computed, and the new line."""
    pairs = zip_longest(page.splitlines(), computed.splitlines(), fillvalue="")
    for old, new in pairs:
        versions = old.startswith(MADE_WITH) and new.startswith(MADE_WITH)
        if not versions and not same_line(old, new):
            yield old, new


def updated(page, computed):
    """Return the computed page, with the old line wherever it is still true."""
    old_lines = page.splitlines()
    lines = (
        next((old for old in old_lines if same_line(old, new)), new)
        for new in computed.splitlines()
    )
    return "\n".join(lines) + "\n"


def same_line(old, new):
    """Return whether two lines are equal, apart from errors of another machine."""
    cells = zip_longest(old.split("|"), new.split("|"), fillvalue="")
    return all(_same_cell(*pair) for pair in cells)


def _same_cell(old, new):
    if not (ERROR.fullmatch(old) and ERROR.fullmatch(new)):
        return old == new
    small, large = sorted(max(float(cell), NOISE) for cell in (old, new))
    return large <= MAX_RATIO * small


def main(arguments):
    parser = argparse.ArgumentParser(
        description="Compare docs/proofs.md with what is computed now."
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
        torch=markdown_table(["", "cases", "worst error"], torch_rows()),
        optimizers=markdown_table(columns, rows),
    )
    page = PAGE.read_text(encoding="utf-8")
    if is_to_write:
        write_text(PAGE, updated(page, result))
        public_names.write()
        return 0
    wrong = list(differences(page, result))
    for old, new in wrong[:5]:
        print(
            f"docs/proofs.md has\n  {old}\nbut computed was\n  {new}", file=sys.stderr
        )
    if wrong:
        print(
            f"{len(wrong)} lines differ; `nox -s proofs -- --write` updates the page",
            file=sys.stderr,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
