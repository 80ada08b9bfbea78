"""Import the models that the package onnx ships, and count what passes.

    python tests/campaigns/onnx_models.py [--all] [PATTERN ...]

For each model `from_onnx` reads it, its outputs are compared with the data that belong
to the model, and its gradient with central differences in float64, along a random
direction of the parameters and the inputs. The table counts, for each group of models,
what passed and what was refused, by reason. --all prints a line for each model. A model
whose outputs or gradients are wrong is always printed, and is an error.
"""

import argparse
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.interop import from_onnx

GROUPS = ("simple", "pytorch-converted", "pytorch-operator", "node")
STEP = 1e-6


@dataclass(frozen=True)
class Example:
    """A model with inputs and the expected outputs."""

    group: str
    name: str
    model: onnx.ModelProto
    inputs: dict[str, Any]
    outputs: list[Any]
    rtol: float = 1e-3
    atol: float = 1e-5


@dataclass(frozen=True)
class Outcome:
    """The verdict on a model, "passed", "refused" or "wrong", with its reason."""

    example: Example
    verdict: str
    reason: str = ""
    gradient: str = ""


# --- the models -----------------------------------------------------------------------


def examples() -> Iterator[Example]:
    """Yield all models with data that the package onnx has."""
    root = Path(onnx.__file__).parent / "backend/test/data"
    for group in GROUPS[:3]:
        for folder in sorted((root / group).iterdir()):
            yield from _stored(group, folder)
    for case in collect_testcases(None):
        inputs, outputs = case.data_sets[0]
        names = [value.name for value in case.model.graph.input]
        feeds = dict(zip(names, inputs, strict=False))
        yield Example("node", case.name, case.model, feeds, list(outputs), case.rtol)


def _stored(group: str, folder: Path) -> Iterator[Example]:
    data = folder / "test_data_set_0"
    if not data.is_dir():
        return
    model = onnx.load(folder / "model.onnx")
    known = {tensor.name for tensor in model.graph.initializer}
    names = [v.name for v in model.graph.input if v.name not in known]
    count = len(list(data.glob("input_*.pb")))
    if count != len(names):  # the weights are among the data
        names = [v.name for v in model.graph.input]
    try:
        inputs = [_tensor(data / f"input_{i}.pb") for i in range(count)]
        outputs = [
            _tensor(data / f"output_{i}.pb") for i in range(len(model.graph.output))
        ]
    except (ValueError, TypeError, RuntimeError):
        inputs = outputs = []
    feeds = dict(zip(names, inputs, strict=False))
    yield Example(group, folder.name, model, feeds, outputs)


def _tensor(path: Path) -> np.ndarray:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)


# --- one model ------------------------------------------------------------------------


def outcome(example: Example) -> Outcome:
    """Import a model, and compare its outputs and its gradient."""
    model = _with_known_inputs(example)
    try:
        axis = _batch_axis(example)
        names = [value.name for value in model.graph.input]
        known = {tensor.name for tensor in model.graph.initializer}
        layer = from_onnx(model, batch_axes={n: axis for n in names if n not in known})
    except (ValueError, NotImplementedError) as error:
        return Outcome(example, "refused", _reason(str(error)))
    except Exception as error:
        return Outcome(example, "wrong", f"import: {type(error).__name__}: {error}")
    try:
        reason = _wrong_output(example, layer)
    except Exception as error:
        return Outcome(example, "wrong", f"{type(error).__name__}: {error}")
    if reason:
        return Outcome(example, "wrong", reason)
    try:
        gradient = _gradient(example, layer)
    except Exception as error:
        return Outcome(example, "wrong", f"backward: {type(error).__name__}: {error}")
    verdict = "wrong" if gradient.startswith("differs") else "passed"
    return Outcome(example, verdict, gradient if verdict == "wrong" else "", gradient)


# inputs of operators that are weights or options, not data of a batch
WEIGHTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (1, 2)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3, 4, 5, 6, 7)),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization"), (1, 2)),
    **dict.fromkeys(("InstanceNormalization", "RMSNormalization"), (1, 2)),
    "BatchNormalization": (1, 2, 3, 4),
    "PRelu": (1,),
    **dict.fromkeys(("Clip", "Pad", "Slice"), (1, 2, 3, 4)),
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze"), (1,)),
    **dict.fromkeys(("Split", "CumSum", "Trilu", "Dropout"), (1, 2)),
    **dict.fromkeys(("Resize", "Upsample"), (1, 2, 3)),
    "OneHot": (1, 2),
}


def _with_known_inputs(example: Example) -> onnx.ModelProto:
    """Return the model with weights and options as initializers.

    The tests of operators pass everything as inputs of the graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(example.model)
    known = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        indices = list(WEIGHTS.get(node.op_type, ()))
        if node.op_type.startswith("Reduce"):
            indices = [1]
        if node.op_type == "Gather" and example.group == "node":
            indices = [1]
        for index in indices:
            name = node.input[index] if index < len(node.input) else ""
            value = example.inputs.get(name)
            if isinstance(value, np.ndarray) and name not in known:
                model.graph.initializer.append(numpy_helper.from_array(value, name))
                known.add(name)
    return model


def _batch_axis(example: Example) -> int:
    """Return the axis of the batch: the second one in the tests of recurrent layers."""
    nodes = example.model.graph.node
    is_recurrent = len(nodes) == 1 and nodes[0].op_type in ("LSTM", "GRU", "RNN")
    first = any(a.name == "layout" and a.i for node in nodes for a in node.attribute)
    return int(is_recurrent and not first)


def _inputs(example: Example, layer: Any) -> Any:
    names = layer.layer.inputs
    known = {tensor.name for tensor in _with_known_inputs(example).graph.initializer}
    axis = _batch_axis(example)
    arrays = {
        k: np.moveaxis(_host(v), axis, 0)
        for k, v in example.inputs.items()
        if k not in known
    }
    if names == ("x",) and len(arrays) == 1:
        return next(iter(arrays.values()))
    return {name: arrays[name] for name in names}


def _array(stored: Any) -> np.ndarray:
    if isinstance(stored, onnx.TensorProto):
        stored = numpy_helper.to_array(stored)
    return np.asarray(stored)


def _host(array: Any) -> np.ndarray:
    array = _array(array)
    if array.dtype.kind in "iu":
        return array.astype(np.int32)
    is_real = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_real else array


def _start(layer: Any, x: Any, dtype: Any) -> Any:
    key = nn.random.key(0, xp=nn.backend("numpy").xp)
    shapes = tree_map(lambda leaf: tuple(leaf.shape[1:]), x)
    return layer.init(key, shapes, dtype)


def _wrong_output(example: Example, layer: Any) -> str:
    """Return how the outputs differ, or an empty text."""
    x = _inputs(example, layer)
    params, state, _ = _start(layer, x, np.float64)
    y = layer.predict(params, state, x)
    results = list(y) if isinstance(y, tuple) else [y]
    narrow = re.search("bf16|bfloat16|fp16|float16", example.name.lower())
    atol = 1e-2 if narrow else example.atol
    for result, stored in zip(results, example.outputs, strict=False):
        expected = _batch_first(_array(stored), result)
        if result.shape != np.shape(expected):
            return f"shape {result.shape}, expected {np.shape(expected)}"
        close = np.allclose(
            np.asarray(result, np.float64),
            np.asarray(expected, np.float64),
            rtol=example.rtol,
            atol=atol,
            equal_nan=True,
        )
        if not close:
            difference = np.nanmax(np.abs(np.asarray(result, np.float64) - expected))
            return f"outputs differ by {difference:.3g}"
    return ""


def _batch_first(expected: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Return stored outputs with the batch first, where `from_onnx` puts it.

    The axis of the batch is not stored, so it is the first one that fits.
    """
    if result.ndim != expected.ndim:
        return expected
    for axis in range(expected.ndim):
        moved = np.moveaxis(expected, axis, 0)
        if moved.shape == result.shape and np.allclose(
            moved.astype(np.float64), result, 1e-2, 1e-2, equal_nan=True
        ):
            return moved
    return expected


def _gradient(example: Example, layer: Any) -> str:
    """Compare the gradient with a central difference, along one direction."""
    generator = np.random.default_rng(0)

    def wide(leaf: np.ndarray) -> np.ndarray:
        # some of the data are as large as 1e300
        is_real = leaf.dtype.kind == "f"
        return np.clip(leaf, -10.0, 10.0).astype(np.float64) if is_real else leaf

    x = tree_map(wide, _inputs(example, layer))
    params, state, _ = _start(layer, x, np.float64)

    def direction(leaf: np.ndarray) -> np.ndarray:
        if leaf.dtype.kind != "f":
            return np.zeros_like(leaf)
        return generator.standard_normal(leaf.shape)

    step = {"x": tree_map(direction, x), "params": tree_map(direction, params)}
    y, _, cache = layer.forward(params, state, x)
    dy = tree_map(lambda leaf: direction(np.asarray(leaf)), y)
    if not any(leaf.dtype.kind == "f" and leaf.size for leaf in leaves(y)):
        return "none"
    dx, grads = layer.backward(params, cache, dy)

    def loss(t: float) -> float:
        def at(leaf: np.ndarray, along: np.ndarray) -> np.ndarray:
            return leaf + t * along if leaf.dtype.kind == "f" else leaf

        moved = layer.forward(
            tree_map(at, params, step["params"]), state, tree_map(at, x, step["x"])
        )[0]
        pairs = zip(leaves(dy), leaves(moved), strict=True)
        return sum(float(np.sum(a * b)) for a, b in pairs if b.dtype.kind == "f")

    slope = (loss(STEP) - loss(-STEP)) / (2 * STEP)
    total = _dot(grads, step["params"]) + _dot(dx, step["x"])
    size = max(abs(slope), abs(total), 1e-3)
    if not (np.isfinite(slope) and np.isfinite(total)):
        return "not finite"
    if abs(slope - total) <= 1e-4 * size:
        return "agrees"
    smaller = (loss(STEP / 10) - loss(-STEP / 10)) / (STEP / 5)
    if abs(smaller) > 5 * size:
        return "jump"
    # at a kink the differences to both sides are not equal
    sides = [(loss(t) - loss(0.0)) / t for t in (STEP, -STEP)]
    if abs(sides[0] - sides[1]) > 1e-3 * size:
        return "kink"
    return f"differs: the gradient is {total:.6g}, the difference {slope:.6g}"


def _dot(gradient: Any, step: Any) -> float:
    if gradient is None:
        return 0.0
    if isinstance(step, dict):
        return sum(_dot(gradient[name], step[name]) for name in step)
    if isinstance(step, tuple):
        return sum(map(_dot, gradient, step))
    return float(np.sum(gradient * step))


# --- the table ------------------------------------------------------------------------


def _reason(message: str) -> str:
    """Return the reason of a refusal without names and numbers, to count it."""
    lines = message.splitlines()
    text = lines[1].strip() if len(lines) > 1 else message
    match = re.match(r".*? \(([\w.]+)\): (.*)", text)
    operator, why = match.groups() if match else ("", text)
    if "no counterpart" in why:
        return f"{operator}: no counterpart"
    why = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|'[^']*'|\b\d[\d.]*\b", "…", why)
    return why.split(":")[-1].strip()[:76] if match is None else why[:76]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--all", action="store_true", help="a line for each model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    outcomes = []
    with np.errstate(all="ignore"):
        for example in examples():
            patterns = arguments.patterns
            if patterns and not any(re.search(p, example.name) for p in patterns):
                continue
            result = outcome(example)
            outcomes.append(result)
            if arguments.all or result.verdict == "wrong":
                text = f"{result.verdict:8} {example.group}/{example.name} "
                print(text + (result.reason or result.gradient), flush=True)
    print(f"\n{'group':20}{'models':>8}{'passed':>8}{'refused':>9}{'wrong':>7}")
    for group in GROUPS:
        some = [o for o in outcomes if o.example.group == group]
        counts = Counter(o.verdict for o in some)
        numbers = f"{len(some):8}{counts['passed']:8}{counts['refused']:9}"
        print(f"{group:20}{numbers}{counts['wrong']:7}")
    gradients = Counter(o.gradient for o in outcomes if o.verdict == "passed")
    print(f"\ngradients of the passed: {dict(gradients)}")
    print("\nrefused, by reason:")
    reasons = Counter(o.reason for o in outcomes if o.verdict == "refused")
    for reason, count in reasons.most_common():
        print(f"{count:6}  {reason}")
    return int(any(o.verdict == "wrong" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
