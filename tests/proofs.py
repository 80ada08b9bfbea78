"""Proofs: every layer and loss against every oracle, every optimizer against another library's.

Writes the table of worst errors that docs/proofs.md shows. Run it by `nox -s proofs`,
which installs the libraries that it asks; nothing in the table is typed by hand.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from cases import layer_cases
from cases._torch import against_torch
from cases.optimizers import worst_errors

import agnostic_nn as nn
from agnostic_nn.tables import markdown_table

OTHERS = ["jax", "torch", "array_api_strict:device1"]
ORACLES = ("central difference", "adjoint", "jax.vjp", "torch.func.vjp", "PyTorch's own", *OTHERS)
HEAD = """# Proofs

Worst errors, relative to the largest number of the array that they are in. Layers and losses in
float64: `central difference` and `adjoint` hold the hand-derived gradients to differences of the
layer's own forward, `jax.vjp` and `torch.func.vjp` to automatic differentiation of it;
`PyTorch's own` is forward, gradients and state of the same layer in PyTorch with the same weights;
the last columns are everything that a backend computes against NumPy. Differences are good to 1e-7
where a slope bends, everything else to rounding. Made by `nox -s proofs` with {versions}.
"""

OPTIMIZERS = """
## Optimizers

Parameters after 24 steps in float64, on a tree of a matrix, a vector, a convolution's weight and a
single number, with options on: against the algorithm as a plain loop over numbers, against PyTorch
and Optax step for step, and on each backend against NumPy.
"""
UNASKED = {"PyTorch": "PyTorch has none", "Optax": "held to PyTorch's"}


def column(row):
    """Where a row of `nn.check` belongs in the table."""
    library = row.backend.partition(":")[0]
    if row.oracle == "automatic differentiation":
        return {"jax": "jax.vjp", "torch": "torch.func.vjp"}[library]
    if row.oracle == "same on NumPy":
        return next(other for other in OTHERS if other.startswith(library))
    return row.oracle


def errors(case):
    """Each oracle's worst error for a case."""
    others = [other for other in OTHERS if not (case.thorough and other == "jax")]
    report = nn.check(case.layer, case.shape, backends=others, draw=case.draw)
    for row in report.rows:
        if column(row) in ORACLES:
            yield column(row), row.error
    if callable(case.theirs):
        for train in (True, False):
            for _, ours, theirs in against_torch(nn.backend("numpy"), case, train):
                scale = max(np.max(abs(theirs), initial=0.0), 1.0)
                yield "PyTorch's own", np.max(abs(ours - theirs), initial=0.0) / scale


def layers():
    """Name -> (number of cases, oracle -> worst error, why PyTorch is silent)."""
    counts, worst, silent = defaultdict(int), defaultdict(dict), {}
    cases = layer_cases()
    for number, case in enumerate(cases, 1):
        print(f"{number}/{len(cases)} {case}", file=sys.stderr)
        name = getattr(case.layer, "called", type(case.layer).__name__)
        counts[name] += 1
        for oracle, error in errors(case):
            worst[name][oracle] = max(error, worst[name].get(oracle, 0.0))
        if isinstance(case.theirs, str):
            silent.setdefault(name, case.theirs)
    return {name: (counts[name], worst[name], silent.get(name)) for name in sorted(counts)}


def cell(found, oracle, silent):
    if oracle in found:
        return f"{found[oracle]:.1e}"
    return silent if oracle == "PyTorch's own" else "no gradient"


def main(path):
    versions = ", ".join(f"{b.name} {b.version}" for b in map(nn.backend, ["numpy", *OTHERS]))
    rows = [
        [f"`{name}`", count, *(cell(found, oracle, silent) for oracle in ORACLES)]
        for name, (count, found, silent) in layers().items()
    ]
    text = [HEAD.format(versions=versions), "## Layers, blocks and losses\n"]
    text += [markdown_table(["", "cases", *ORACLES], rows), OPTIMIZERS]
    oracles = ("plain loop", "PyTorch", "Optax", *OTHERS)
    rows = [
        [f"`{name}`", *(f"{found[o]:.1e}" if o in found else UNASKED[o] for o in oracles)]
        for name, found in worst_errors(tuple(OTHERS)).items()
    ]
    text += [markdown_table(["", *oracles], rows)]
    Path(path).write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/proofs.md")
