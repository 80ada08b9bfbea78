"""from_onnx: a graph of ONNX, exported by any library, as a model with its weights."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..pretrained import Pretrained
from .model import COMPOSITES, read
from .reader import HANDLERS, KNOWN, Reader

__all__ = ["from_onnx", "onnx_operators"]


def from_onnx(
    model: str | os.PathLike[str] | Any,
    *,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    batch_axes: Mapping[str, int] | int | None = None,
    constants: Iterable[str] = (),
    parameters: Iterable[str] = (),
) -> Pretrained:
    """Return a model that computes what an ONNX graph computes, and can be trained.

    It starts from the weights in the file. Its x is an array, or a dict by the names of
    the inputs if there are several; its y is an array, or a tuple in the order of the
    outputs. Shapes are those of the graph, so images are (batch, channels, rows,
    columns) where the exporter had them so.

    The first axis of each input is the batch, fixed or symbolic. With `batch_axes` it
    may be another one in the file; the model itself takes and returns arrays with the
    batch first. The exported file is
    that of inference, and the model is trained as the layers in it are:
    BatchNormalization normalizes by the batch and updates its running statistics, while
    a dropout that the exporter removed is missing.

    Weights of layers become their parameters. Other initializers of real numbers become
    parameters too, unless they have a single element, as the 1/√d of an attention has,
    or an infinity, as masks have. What the file computes from them alone, such as the
    transpose of a weight, becomes the parameter instead if they have no other use.
    float16 and bfloat16 are read as float32.

    An initializer that several operators read is one shared parameter. But exporters
    also merge arrays that happen to be equal, such as the ones and zeros from which all
    norms start, so an array whose elements are all equal becomes a parameter for each
    reader. They also store a tied output layer as a second array; one that is the
    transpose of a table of embeddings is tied to it again.

    model: the path of an .onnx file, whose external data are read too, a `ModelProto`,
        or the program that `torch.onnx.export(..., dynamo=True)` returns.
    shapes: lengths without the batch, {input: lengths}, or those of the only input,
        where the file leaves them open.
    batch_axes: the axis of the batch in the file, {input: axis}, or that of the only
        input; 0 by default. It is 1 for sequences of shape (time, batch, width).
    constants: names of initializers that are not trained, such as tables of positions
        that are not learned.
    parameters: names of initializers with a single element that are trained.

    Raises
    ------
    ImportError
        If the package onnx is not installed.
    FileNotFoundError
        If there is no such file.
    TypeError
        If `model` is something else.
    ValueError
        If the file is not an ONNX file, an input has no batch or lengths that are not
        known, or nodes cannot be converted; the message names each of them with its
        operator and the reason.
    """
    source = read(model, shapes, batch_axes)
    fixed = _expect_known("constants", constants, source.arrays)
    trained = _expect_known("parameters", parameters, source.arrays)
    return Reader(source, fixed, trained).read()


def _expect_known(
    argument: str, names: Iterable[str], arrays: Mapping[str, Any]
) -> frozenset[str]:
    """Return names of initializers; raise ValueError if one does not exist."""
    chosen = frozenset([names] if isinstance(names, str) else names)
    unknown = sorted(chosen - set(arrays))
    if unknown:
        raise ValueError(
            f"{argument} has {unknown}, but the initializers of the file are "
            f"{sorted(arrays)}"
        )
    return chosen


def onnx_operators() -> list[str]:
    """Return the names of the operators of ONNX that `from_onnx` converts."""
    return sorted({*HANDLERS, *KNOWN, *COMPOSITES, "If", "SequenceAt"})
