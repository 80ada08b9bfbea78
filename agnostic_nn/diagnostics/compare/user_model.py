"""Make a workload of a user's model and data, passed as objects or named in a text."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...blocks import Block, MixedPrecision
from ...core.arrays import Metric
from ...core.backend import backend as choose
from ...core.errors import expect
from ...core.trees import leaves, named_leaves, tree_from_leaves, tree_map
from ...layers import Layer
from ...losses import Loss, Losses, mean_squared_error, softmax_cross_entropy
from ...losses.base import (
    describe_loss,
    expect_context,
    takes_keyword,
    takes_weights,
)
from ...metrics import OverAll, absolute_error
from ...optimizers import Adam, Optimizer
from ...training import Trainer, make_step
from ...training.batches import Examples
from ...training.inputs import as_integer, converted, fetch, type_and_length
from ...training.steps import evaluate_batch
from ..loading import CannotLoad, load_layer, load_loss, load_metric, load_optimizer
from .data_file import read
from .workloads import CannotCompare, Workload, split

__all__ = ["custom_workload", "user_workload"]

EPOCHS = 10
BATCH_SIZE = 32
OPTIMIZER = "Adam"


def custom_workload(
    model: Layer,
    x: Any,
    target: Any,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    *,
    metric: Metric | None = None,
    test: tuple[Any, Any] | None = None,
    weights: Any = None,
    context: Any = None,
    batch_size: int = BATCH_SIZE,
    name: str | None = None,
) -> Workload:
    """Return the training of a model on data, after one step of it on the host.

    The arguments are those of `nn.compare`.

    Raises
    ------
    TypeError, ValueError
        As raised by `Trainer` if the model, the data and the loss do not fit.
    """
    if isinstance(metric, OverAll):
        raise TypeError(
            "expected a metric with values for each example, which every backend "
            f"computes step by step, got {metric!r}: apply it to `Trainer.predict`"
        )
    batch_size = as_integer("batch_size", batch_size)
    optimizer = Adam() if optimizer is None else optimizer
    loss = _default_loss(target) if loss is None else loss
    expect_context(loss, context)
    context = None if context is None else _checked_context(context)
    trainer = Trainer(
        _computable_by_numpy(model),
        loss,
        optimizer,
        backend="numpy",
        metrics=None if metric is None else {_name_of(metric): metric},
        context=context,
    )
    train = _checked(trainer, x, target, weights)
    tested = None if test is None else _checked_test(trainer, train, test)
    count = len(train)
    expect(
        tested is not None or count >= 5,
        "{} examples are too few to hold out a fifth",
        count,
    )
    metrics = _metrics_after_step(trainer, train[:batch_size])
    metric_name = next(iter(metrics), None)
    held_out = "the test set is separate"
    # Split only now, so that error messages have the row numbers of the user.
    if tested is None:
        train, tested = (train[rows] for rows in split(count))
        held_out = "a random fifth is the test set"
    return Workload(
        name=name or type(model).__name__,
        about=f"{len(train) + len(tested):,} examples; {held_out}",
        read=lambda: (train, tested),
        model=model,
        loss=loss,
        metric=None if metric_name is None else metrics[metric_name],
        metric_name=metric_name,
        epochs=EPOCHS,
        optimizer=optimizer,
        batch_size=batch_size,
        context=context,
    )


def user_workload(
    model: str,
    data: str | os.PathLike[str],
    loss: str | None = None,
    optimizer: str = OPTIMIZER,
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Workload:
    """Return the training of a user's model on the arrays in a file.

    Parameters
    ----------
    model
        "module:object", where the object is a layer, or a function without arguments
        that returns one. Modules in the current folder can be imported.
    data
        An npz file with x and target, and optionally x_test and target_test, weights of
        examples and a context of the loss: see `data_file`. Without a test set a random
        fifth is held out.
    loss, optimizer, metric
        The name of one in this library, with arguments if needed, such as
        "Adam(rate=1e-3)", or "module:object". The default loss is cross-entropy if the
        targets are integers, else the mean squared error. The default metric is the
        first of the loss.

    Raises
    ------
    CannotCompare
        If one of these does not exist, or they do not fit each other; the message says
        why.
    """
    content = read(Path(data))
    try:
        chosen_loss = None if loss is None else load_loss(loss)
        chosen_optimizer = load_optimizer(optimizer)
        chosen_metric = None if metric is None else load_metric(metric)
        layer = load_layer(model)
    except CannotLoad as error:
        raise CannotCompare(str(error)) from error
    if chosen_loss is not None and content.context is None:
        _expect_no_context(chosen_loss, data)
    has_test = content.x_test is not None
    try:
        workload = custom_workload(
            layer,
            content.x,
            content.target,
            chosen_loss,
            chosen_optimizer,
            metric=chosen_metric,
            test=(content.x_test, content.target_test) if has_test else None,
            weights=content.weights,
            context=content.context,
            batch_size=batch_size,
            name=model,
        )
    except Exception as error:  # a custom layer or loss may raise any exception
        raise CannotCompare(
            f"the model, the loss and {data} do not fit: {_in_one_line(error)}"
        ) from error
    options = ["--model", model, "--data", str(data)]
    options += ["--loss", loss] if loss is not None else []
    options += ["--optimizer", optimizer] if optimizer != OPTIMIZER else []
    options += ["--metric", metric] if metric is not None else []
    options += ["--batch-size", str(batch_size)] if batch_size != BATCH_SIZE else []
    about = f"{Path(data).name}: {workload.about}"
    return replace(workload, about=about, options=tuple(options))


def _expect_no_context(loss: Loss, data: str | os.PathLike[str]) -> None:
    """Raise CannotCompare if a loss takes a context, which the file does not have."""
    if takes_keyword(loss, "context"):
        raise CannotCompare(
            f"{describe_loss(loss)} takes a context: {data} has no array called context"
        )


def _default_loss(target: Any) -> Loss:
    """Return the loss for targets: one for each, if they are a dict."""
    if isinstance(target, dict):
        return Losses({name: _default_loss(part) for name, part in target.items()})
    if isinstance(target, tuple) and any(hasattr(part, "dtype") for part in target):
        raise ValueError("targets in a tuple need a loss: there is no default")
    is_real = np.asarray(target).dtype.kind == "f"
    return mean_squared_error if is_real else softmax_cross_entropy


# --- validation -----------------------------------------------------------------------


def _computable_by_numpy(layer: Layer) -> Layer:
    """Return a layer without conversions to a dtype that NumPy lacks."""
    if isinstance(layer, MixedPrecision) and not choose("numpy").has_dtype(layer.dtype):
        return _computable_by_numpy(layer.layer)
    if not isinstance(layer, Block):
        return layer
    return layer.map_layers(lambda _, inner: _computable_by_numpy(inner))


def _in_float32(data: Any) -> Any:
    """Return `data` with its floating-point arrays in float32."""
    return tree_map(
        lambda leaf: (
            leaf.astype(np.float32, copy=False)
            if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind == "f"
            else leaf
        ),
        data,
    )


def _checked_context(context: Any) -> Any:
    """Return a context as arrays on the host, in float32, int32 or bool."""
    arrays, _ = fetch("context", context, choose("numpy"))
    named = {
        path: converted(path, leaf, False, "float32")
        for path, leaf in named_leaves(arrays, "context")
    }
    return tree_from_leaves(named, arrays, "context")


def _checked(trainer: Trainer, x: Any, target: Any, weights: Any = None) -> Examples:
    """Return examples as `Trainer.fit` would use them, in memory and in float32."""
    data = _in_float32({"x": x, "target": target})
    weights = None if weights is None else _in_float32(weights)
    return trainer.examples(data["x"], data["target"], weights).in_memory()


def _checked_test(trainer: Trainer, train: Examples, test: Any) -> Examples:
    """Return the examples of the test set, which have to be like those for training."""
    if not isinstance(test, tuple | list) or len(test) != 2:
        raise TypeError(f"expected test as (x, target), got {type_and_length(test)}")
    try:
        examples = _checked(trainer, *test)
        for name in ("x", "target"):
            _expect_alike(name, getattr(train, name), getattr(examples, name))
    except Exception as error:
        error.add_note("in the test set (x_test, target_test)")
        raise
    return examples


def _expect_alike(name: str, train: Any, test: Any) -> None:
    """Raise ValueError unless two trees have the same paths, shapes and dtypes."""
    paths = [[path for path, _ in named_leaves(tree, name)] for tree in (train, test)]
    expect(
        paths[0] == paths[1],
        "expected {}, got {}",
        *(" and ".join(each) for each in paths),
    )
    pairs = zip(named_leaves(train, name), leaves(test), strict=True)
    for (path, array), other in pairs:
        expect(
            (array.shape[1:], array.dtype) == (other.shape[1:], other.dtype),
            "{} is {} {} for training, but {} {} here",
            *(path, array.dtype, array.shape, other.dtype, other.shape),
        )


def _metrics_after_step(trainer: Trainer, batch: Examples) -> dict[str, Metric]:
    """Take one step on the host, evaluate the metrics, and return them.

    Without a metric, it is the absolute error if outputs are like real targets.
    """
    model = trainer.model
    loss = trainer.loss
    metrics = trainer.metrics
    carry = trainer.params, trainer.state, trainer.moments
    keywords: dict[str, Any] = {"context": trainer.context}
    if takes_keyword(loss, "step"):
        keywords["t"] = np.zeros((), np.float32)
    if takes_weights(loss):
        keywords["counts"] = np.ones(len(batch), np.float32)
        keywords["weights"] = batch.weights
    with np.errstate(all="ignore"):  # the comparison reports what is not finite
        step = make_step(model, loss, trainer.optimizer)
        step(carry, batch.x, batch.target, **keywords)
        try:
            evaluate_batch(
                *(model, loss, metrics, *carry[:2], batch.x, batch.target), **keywords
            )
        except Exception as error:
            error.add_note(f"for the metric {' or '.join(metrics)}")
            raise
        if metrics:
            return metrics
        y = model.predict(*carry[:2], batch.x)
    target = batch.target
    is_single = isinstance(y, np.ndarray) and isinstance(target, np.ndarray)
    is_regression = is_single and y.shape == target.shape and target.dtype.kind == "f"
    return {"absolute_error": absolute_error} if is_regression else {}


def _name_of(metric: Metric) -> str:
    """Return the name of a metric, as in "top_k_accuracy"."""
    function = metric.func if isinstance(metric, partial) else metric
    return str(getattr(function, "__name__", type(function).__name__))


def _in_one_line(error: BaseException) -> str:
    """Return the type, the message and the notes of an exception."""
    parts = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
    return "; ".join(" ".join(part.split()) for part in parts)
