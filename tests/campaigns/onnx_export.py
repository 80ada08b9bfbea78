"""Export all layers, losses and optimizers to ONNX, and compare them with NumPy.

    python tests/campaigns/onnx_export.py [--only NAME] [--kinds PATTERN]

Each example of `agnostic_nn.diagnostics.examples` is exported in several kinds of
files. `export_onnx` runs each file in ONNX Runtime and compares it with the formulas on
NumPy: predictions with 1, 2 and 5 examples, or a fixed number, and 3 training steps.
The table has the number of files that agree, the largest deviation, and the reasons of
those refused. The exit status is 1 if a file computes something else.
"""

import argparse
import collections
import re
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import array_api_compat.numpy as xp
import numpy as np

import agnostic_nn as nn
from agnostic_nn.blocks.base import Wrapper
from agnostic_nn.core import random
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import leaves, shape_map, tree_map
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES, OPTIMIZERS
from agnostic_nn.interop import export_onnx
from agnostic_nn.layers.base import kinds

BATCH = 3
SEED = 5


@dataclass(frozen=True)
class Scaled(Wrapper):
    """y = scale · f(x), for layers without parameters, as a Trainer needs some."""

    def init(self, key, shape, dtype):
        params, state, out = self.layer.init(key, shape, dtype)
        xp = namespace(key)
        return {"layer": params, "scale": xp.ones((), dtype=dtype)}, state, out

    def forward(self, params, state, x, *, train=False):
        y, state, cache = self.layer.forward(params["layer"], state, x, train=train)
        return self._scaled(y, params), state, (y, cache)

    def backward(self, params, cache, dy):
        y, cache = cache
        pairs = zip(leaves(dy), leaves(y), strict=True)
        dscale = sum((d * leaf).sum() for d, leaf in pairs if d is not None)
        dx, grads = self.layer.backward(
            params["layer"], cache, self._scaled(dy, params)
        )
        return dx, {"layer": grads, "scale": dscale}

    def _scaled(self, tree, params):
        return tree_map(
            lambda leaf: leaf * params["scale"] if is_real(leaf) else leaf, tree
        )

    def map_layers(self, function):
        return Scaled(function("layer", self.layer))


def is_real(leaf):
    return leaf is not None and "float" in str(leaf.dtype)


def squares(y, target):
    """Return half the mean of the squares of all real numbers of y, a tree."""
    real = [leaf for leaf in leaves(y) if is_real(leaf)]
    total = 0.0
    for leaf in real:
        total = total + (leaf * leaf).sum() / (2.0 * leaf.shape[0])

    def slope(leaf):
        return leaf / float(leaf.shape[0]) if is_real(leaf) else None

    return total, tree_map(slope, y)


def batch_of(example):
    """Return a batch of x that the layer of an example takes."""
    generator = np.random.default_rng(SEED)
    shapes = shape_map(lambda shape: (BATCH, *shape), example.shape)
    if example.draw is not None:
        return tree_map(converted, example.draw(generator, shapes))
    blank = shape_map(lambda shape: np.zeros(shape, np.int8), shapes)
    drawn = {
        "bool": lambda leaf: generator.random(leaf.shape) > 0.3,
        "integral": lambda leaf: generator.integers(0, 3, leaf.shape),
    }
    real = lambda leaf: generator.standard_normal(leaf.shape)  # noqa: E731
    leaf_kinds = kinds(example.layer.input_kinds, blank)
    return tree_map(
        lambda leaf, kind: converted(drawn.get(kind, real)(leaf)), blank, leaf_kinds
    )


def converted(array):
    array = np.asarray(array)
    return array.astype({"f": "float32", "i": "int32", "b": "bool"}[array.dtype.kind])


def trainer_of(example):
    layer = example.layer
    params, _, _ = layer.init(random.key(0, xp=xp), example.shape, xp.float32)
    return nn.Trainer(
        layer if leaves(params) else Scaled(layer),
        squares,
        nn.SGD(0.1),
        backend="numpy",
        shape=example.shape,
        metrics={},
    )


def layer_files(example):
    """Yield the kind of each file of a layer, and the function that exports it."""
    x = batch_of(example)
    target = np.zeros(BATCH, np.float32)
    options = {
        "predict, fixed batch": {"batch": BATCH, "example": x},
        "predict, any batch": {"example": x},
        "training step": {"training": True, "example": (x, target)},
        "gradient, fixed batch": {"gradient": "vjp", "batch": BATCH, "example": x},
        "gradient, any batch": {"gradient": "vjp", "example": x},
    }
    for kind, keywords in options.items():
        yield (
            kind,
            lambda path, keywords=keywords: export_onnx(
                trainer_of(example), path, **keywords
            ),
        )


def loss_files(example):
    for kind, export in layer_files(example):
        if kind != "training step":
            yield f"loss: {kind}", export


def optimizer_files(optimizer):
    model = nn.Sequential(nn.Dense(5), nn.ReLU(), nn.Dense(3))
    generator = np.random.default_rng(SEED)
    x = generator.standard_normal((BATCH, 4)).astype("float32")
    target = generator.integers(0, 3, BATCH)

    def export(path):
        trainer = nn.Trainer(
            model, nn.softmax_cross_entropy, optimizer, backend="numpy", shape=(4,)
        )
        return export_onnx(trainer, path, training=True, example=(x, target))

    yield "optimizer step", export


def run(name, kind, export, folder):
    """Export one file; return (kind, name, outcome, deviation, message)."""
    start = time.process_time()
    try:
        file = export(Path(folder, "model.onnx"))
        error = max(file.checked.values())
        left_out = f"not compared: {file.undetermined}" if file.undetermined else ""
        row = kind, name, "agrees", error, f"{file.nodes} nodes {left_out}"
    except Exception as exception:
        message = " ".join(f"{type(exception).__name__}: {exception}".split())
        is_wrong = "deviates" in message or "fails in ONNX" in message
        row = kind, name, "WRONG" if is_wrong else "refused", 0.0, message
    seconds = time.process_time() - start
    print(f"{row[2]:8}{kind:22} {name:28} {row[3]:.1e} {seconds:.1f} s  {row[4]}")
    sys.stdout.flush()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--kinds", default="", help="a pattern of kinds of files")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sources = [
        *((example.name, layer_files(example)) for example in LAYERS),
        *((example.name, loss_files(example)) for example in LOSSES),
        *((type(each).__name__, optimizer_files(each)) for each in OPTIMIZERS),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, files in sources:
            if not re.search(options.only, name):
                continue
            for kind, export in files:
                if re.search(options.kinds, kind):
                    rows.append(run(name, kind, export, folder))
    print("\n| file | agree | of | largest deviation | refused |")
    print("| --- | ---: | ---: | ---: | --- |")
    for kind in dict.fromkeys(row[0] for row in rows):
        these = [row for row in rows if row[0] == kind]
        agree = [row for row in these if row[2] == "agrees"]
        worst = max((row[3] for row in agree), default=0.0)
        others = [f"{row[1]} ({row[2]})" for row in these if row[2] != "agrees"]
        print(
            f"| {kind} | {len(agree)} | {len(these)} | {worst:.1e} | "
            f"{', '.join(others)} |"
        )
    outcomes = collections.Counter(row[2] for row in rows)
    print(dict(outcomes))
    return int(outcomes["WRONG"] > 0)


if __name__ == "__main__":
    sys.exit(main())
