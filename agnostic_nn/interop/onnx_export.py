"""Export models, their gradients and training steps as ONNX graphs."""

import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.errors import described, expect, expect_flag
from ..training.config import describe
from ..training.precision_policy import PrecisionPolicy
from ..training.trainer import Trainer
from .onnx_check import Checker
from .onnx_graph import finished, onnx
from .onnx_jobs import Job, prediction_job, training_job
from .onnx_recorder import OPSET

__all__ = ["OnnxFile", "export_onnx"]

_TOLERANCES = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-9}
# bytes of weights from which they are stored in a second file: Protocol Buffers end at
# 2 GiB
_EXTERNAL = 2**31 - 2**26


@dataclass(frozen=True)
class OnnxFile:
    """A file that `export_onnx` wrote.

    inputs, outputs: for each name, the dtype and the shape, with the name of a length
    that is free, or None for a length that depends on one. nodes: their number.
    checked: for each run in ONNX Runtime, its lengths or step, and the largest
    deviation from this library, divided by 1 + the largest number of that output.
    undetermined: outputs that are left out of it, as they depend on rounding errors,
    such as the update of a bias whose gradient would be 0 without them.
    """

    path: Path
    kind: str
    inputs: dict[str, tuple[str, tuple[Any, ...]]]
    outputs: dict[str, tuple[str, tuple[Any, ...]]]
    nodes: int
    opset: int = OPSET
    checked: dict[str, float] = field(default_factory=dict)
    undetermined: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.kind}, {self.nodes} nodes, opset {self.opset}"]
        for title, arrays in (("in", self.inputs), ("out", self.outputs)):
            listing = [
                f"{name} {dtype}{list(s)}" for name, (dtype, s) in arrays.items()
            ]
            lines.append(f"{title}: {', '.join(listing)}")
        checked = [f"{run}: {error:.1e}" for run, error in self.checked.items()]
        lines.append(f"deviation: {', '.join(checked) or 'not checked'}")
        if self.undetermined:
            lines.append(f"not compared: {', '.join(self.undetermined)}")
        return "\n".join(lines)


def export_onnx(
    trainer: Trainer,
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    shape: Any = None,
    training: bool = False,
    gradient: str | int | None = None,
    example: Any = None,
    check: bool = True,
    tolerance: float | None = None,
) -> OnnxFile:
    """Write the model of a trainer as an ONNX file; return what was written.

    The graph is recorded from the formulas of the layers, so it has what they compute,
    also for custom layers. The model is in prediction mode, where Dropout does nothing.
    With `training=True` the file is one training step instead: forward pass, loss,
    backward pass and update.

    Inputs and outputs are called "x" and "y". If they are trees, each array is called
    by its path: "x.mask", "y.0". Weights are initializers called by their paths, such
    as "params.0.weight" and "state.1.mean". Nodes are named after the layers:
    "encoder.0/MatMul_0".

    Parameters
    ----------
    path
        The file. From 2 GB of weights on they are in a second file, path + ".data".
    batch
        The number of examples, or None for any.
    shape
        The shape of one example; by default that of the trainer. A length that is None
        is free, as is one with a name: two lengths with the same name are equal.
    training
        Whether to export a training step. It has the batch size of `example`. Inputs
        are "params.…", "state.…", "moments.…", "x" and "target", further "weights" and
        "context.…" if the step has them, and "step", the number of steps before, if the
        loss takes it. Outputs are "next.params.…", "next.state.…", "next.moments.…",
        "loss" and "finite". The first three kinds of inputs have the values of the
        trainer as defaults, so the first run need not pass them.
    gradient
        "sum": the file has a second output "dx", the gradient of the sum of all numbers
        of y with respect to x. An integer k: the gradient of the sum of y[..., k].
        "vjp": the gradient of the sum of y · dy, where dy is a further input.
    example
        A batch of x to check the file with; by default it is drawn. For a training
        step: a batch (x, target) or (x, target, weights).
    check
        Whether to run the file in ONNX Runtime and compare it with this library: with
        1, 2 and 5 examples, or 3 training steps. A file that differs is not written.
    tolerance
        The largest deviation allowed, divided by 1 + the largest number of that output;
        by default 1e-4, or 2e-2 if the model computes in float16, 1e-9 in float64.

    Raises
    ------
    ImportError
        If ndonnx is not installed, or ONNX Runtime and `check` is on.
    TypeError
        If an argument is something else than expected.
    ValueError
        If the model cannot be exported, or the file computes something else. The
        message names the layer.
    """
    expect_flag("training", training)
    expect_flag("check", check)
    if not isinstance(trainer, Trainer):
        raise TypeError(f"expected a Trainer, got {described(trainer)}")
    if tolerance is None:
        tolerance = _TOLERANCES[_computed_in(trainer)]
    if training:
        expect(gradient is None, "expected gradient=None with training=True")
        expect(shape is None, "expected shape=None with training=True")
        job = training_job(trainer, example, batch)
    else:
        job = prediction_job(trainer, shape, batch, gradient, example)
    graph, recorder = job.graph()
    model = finished(
        graph,
        type(trainer.model).__name__,
        job.symbols,
        {} if training else job.carry,
        job.carry if training else {},
        _metadata(trainer, job),
        ("agnostic_nn", _version()),
    )
    result = OnnxFile(
        Path(path),
        job.kind,
        _listing(model.graph.input),
        _listing(model.graph.output),
        len(model.graph.node),
    )
    with tempfile.TemporaryDirectory(dir=Path(path).absolute().parent) as folder:
        written = _write(model, Path(folder) / Path(path).name)
        onnx.checker.check_model(str(written[0]))
        if check:
            checker = Checker(job, written[0], model, recorder, tolerance)
            checked = checker.run()
            undetermined = tuple(sorted(checker.undetermined))
            result = replace(result, checked=checked, undetermined=undetermined)
        for file in reversed(written):
            os.replace(file, Path(path).absolute().parent / file.name)
    return result


def _version() -> str:
    version: str = import_module("agnostic_nn").__version__
    return version


def _computed_in(trainer: Trainer) -> str:
    """Return the dtype of the model, which ndonnx has to have."""
    half = PrecisionPolicy(trainer.dtype, trainer.precision).half or trainer.dtype
    expect(
        half in _TOLERANCES,
        "expected a model in {}, got {}: ndonnx, which records the graph, does not "
        "have it; train with precision='mixed_float16' or in float32",
        tuple(_TOLERANCES),
        half,
    )
    return half


# --- the file -------------------------------------------------------------------------


def _metadata(trainer: Trainer, job: Job) -> dict[str, str]:
    """Return what the file says about itself."""
    metadata = {
        "agnostic_nn.version": _version(),
        "agnostic_nn.kind": job.kind,
        "agnostic_nn.model": json.dumps(describe(trainer.model)),
    }
    if job.is_training:
        metadata["agnostic_nn.loss"] = json.dumps(describe(trainer.loss))
        metadata["agnostic_nn.optimizer"] = json.dumps(describe(trainer.optimizer))
    return metadata


def _listing(values: Any) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Return the dtype and the shape of inputs or outputs."""
    listing = {}
    for value in values:
        kind = value.type.tensor_type
        dims = [d.dim_param or (d.dim_value or None) for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        listing[value.name] = (dtype, tuple(dims))
    return listing


def _write(model: Any, path: Path) -> list[Path]:
    """Write a model, with its weights in a second file if they are large."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size < _EXTERNAL:
        onnx.save(model, path)
        return [path]
    data = path.with_name(path.name + ".data")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location=data.name)
    return [path, data]
