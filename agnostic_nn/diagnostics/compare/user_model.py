"""Make a workload of a user's model and data, as named on a command line."""

import ast
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ... import losses, optimizers
from ...core import random
from ...core.arrays import namespace
from ...layers import Layer
from ...losses.base import check_of, metrics_of
from ...metrics import absolute_error
from ...training import make_step
from ...training.batches import Examples
from ...training.inputs import expect_lengths
from ..loading import CannotLoad, load_layer
from .workloads import CannotCompare, Workload, split

__all__ = ["user_workload"]

EPOCHS = 10
BATCH_SIZE = 32
OPTIMIZER = "Adam"
REQUIRED = ("x", "target")
HELD_OUT = ("x_test", "target_test")


def user_workload(
    model: str,
    data: str | os.PathLike[str],
    loss: str | None = None,
    optimizer: str = OPTIMIZER,
    batch_size: int = BATCH_SIZE,
) -> Workload:
    """Return the training of a user's model on the arrays in a file.

    Parameters
    ----------
    model
        "module:object", where the object is a layer, or a function without arguments
        that returns one. Modules in the current folder can be imported.
    data
        An npz file with x and target, and optionally x_test and target_test. Without
        these a random fifth is held out.
    loss, optimizer
        The name of a loss or optimizer of this library, with arguments if needed, such
        as "Adam(rate=1e-3)". The default loss is cross-entropy if the targets are
        integers, else the mean squared error.

    Raises
    ------
    CannotCompare
        If one of these does not exist, or they do
        not fit each other; the message says why.
    """
    parts = _read(Path(data))
    chosen_loss = _parse(losses, loss or _default_loss(parts[0]), "loss")
    chosen_optimizer = _parse(optimizers, optimizer, "optimizer")
    try:
        layer = load_layer(model)
    except CannotLoad as error:
        raise CannotCompare(str(error)) from error
    metric = _metric_if_valid(layer, chosen_loss, chosen_optimizer, parts, batch_size)
    held_out = "the test set is the file's own"
    # Split only now, so that error messages have the row numbers of the file.
    if len(parts) == 1:
        parts = [parts[0][rows] for rows in split(len(parts[0]))]
        held_out = "a random fifth is the test set"
    train, test = parts
    about = f"{Path(data).name}: {len(train) + len(test):,} examples; {held_out}"
    options = ["--model", model, "--data", str(data)]
    options += ["--loss", loss] if loss is not None else []
    options += ["--optimizer", optimizer] if optimizer != OPTIMIZER else []
    options += ["--batch-size", str(batch_size)] if batch_size != BATCH_SIZE else []
    return Workload(
        name=model,
        about=about,
        read=lambda: (train, test),
        model=layer,
        loss=chosen_loss,
        metric=metric,
        epochs=EPOCHS,
        optimizer=chosen_optimizer,
        batch_size=batch_size,
        options=tuple(options),
    )


# --- the data -------------------------------------------------------------------------


def _read(path: Path) -> list[Examples]:
    """Return the examples in a file: a training and a test set, or one set to split."""
    arrays = _arrays(path)
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        existing = ", ".join(arrays) or "nothing"
        raise CannotCompare(
            f"{path} has no array called {' and '.join(missing)}: it has {existing}"
        )
    unused = [name for name in arrays if name not in (*REQUIRED, *HELD_OUT)]
    if unused:
        used = ", ".join((*REQUIRED, *HELD_OUT))
        raise CannotCompare(f"{path} has {', '.join(unused)}; expected only {used}")
    held_out = [name for name in HELD_OUT if name in arrays]
    if len(held_out) == 1:
        (other,) = set(HELD_OUT) - set(held_out)
        raise CannotCompare(f"{path} has {held_out[0]}, but no {other}")
    parts = [
        _examples(path, arrays, names)
        for names in (REQUIRED, HELD_OUT)
        if names[0] in arrays
    ]
    if len(parts) == 1 and len(parts[0]) < 5:
        raise CannotCompare(
            f"{path} has {len(parts[0])} examples, too few to hold out a fifth"
        )
    for name in ("x", "target"):
        train = getattr(parts[0], name)
        test = getattr(parts[-1], name)
        if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
            raise CannotCompare(
                f"{path}: {name} is {train.dtype} {train.shape}, but {name}_test is "
                f"{test.dtype} {test.shape}"
            )
    return parts


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise CannotCompare(
                f"{path} is a single array: expected an npz file with x and target"
            )
        with content as file:
            return {name: file[name] for name in file.files}
    except CannotCompare:
        raise
    except OSError as error:
        raise CannotCompare(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error
    except (
        Exception
    ) as error:  # NumPy raises various exceptions if this is not an npz file
        raise CannotCompare(
            f"{path} is not an npz file of numbers: {_message(error)}"
        ) from error


def _examples(
    path: Path, arrays: dict[str, np.ndarray], names: tuple[str, str]
) -> Examples:
    x, target = (_converted(path, name, arrays[name]) for name in names)
    try:
        expect_lengths("", dict(zip(names, (x, target), strict=True)))
    except ValueError as error:
        raise CannotCompare(f"{path}: {_message(error, with_type=False)}") from error
    if not len(x):
        raise CannotCompare(f"{path}: {names[0]} has no examples")
    return Examples(x, target)


def _converted(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Convert an array to float32, int32 or bool, which every backend has."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind not in "iu":
        raise CannotCompare(
            f"{path}: expected {name} to hold numbers, got {array.dtype}"
        )
    bounds = np.iinfo(np.int32)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise CannotCompare(f"{path}: {name} holds integers that do not fit into int32")
    return array.astype(np.int32)


# --- the loss and the optimizer -------------------------------------------------------


_ABSTRACT = ("Loss", "Losses", "Weighted", "Optimizer", "Rule")
_WITH_ARTICLE = {"loss": "a loss", "optimizer": "an optimizer"}
_EXAMPLE = {"loss": "huber(delta=0.5)", "optimizer": "Adam(rate=1e-3)"}


def _default_loss(train: Examples) -> str:
    return (
        "mean_squared_error"
        if train.target.dtype.kind == "f"
        else "softmax_cross_entropy"
    )


def _parse(module: ModuleType, text: str, kind: str) -> Any:
    """Return the loss or optimizer that `text` names in `module`.

    The text is parsed, never evaluated: arguments must be literals.
    """
    expected = f"expected {_WITH_ARTICLE[kind]} such as {_EXAMPLE[kind]}, got {text!r}"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise CannotCompare(expected) from error
    call = tree if isinstance(tree, ast.Call) else None
    name = call.func if call else tree
    if not isinstance(name, ast.Name):
        raise CannotCompare(expected)
    factory = getattr(module, name.id, None) if name.id in module.__all__ else None
    if factory is None or not callable(factory):
        available = ", ".join(n for n in module.__all__ if n not in _ABSTRACT)
        raise CannotCompare(f"no {kind} is called {name.id!r}; there are {available}")
    try:
        args = [ast.literal_eval(arg) for arg in call.args] if call else []
        options: dict[Any, Any] = (
            {k.arg: ast.literal_eval(k.value) for k in call.keywords} if call else {}
        )
    except (ValueError, TypeError, SyntaxError) as error:
        raise CannotCompare(
            f"{text!r} cannot be {_WITH_ARTICLE[kind]}: arguments must be literals, "
            "such as numbers and strings"
        ) from error
    if None in options:  # ast's name for the keyword of **
        raise CannotCompare(
            f"{text!r} cannot be {_WITH_ARTICLE[kind]}: ** is not supported here"
        )
    return _create(factory, args, options, text, kind)


def _create(
    factory: Callable[..., Any],
    args: list[Any],
    options: dict[str, Any],
    text: str,
    kind: str,
) -> Any:
    """Call an optimizer's class, or bind the options of a loss function."""
    try:
        if isinstance(factory, type):
            result = factory(*args, **options)
        elif args:
            raise TypeError("a loss takes its options by name")
        else:
            result = partial(factory, **options) if options else factory
    except (TypeError, ValueError) as error:
        reason = _message(error, with_type=False)
        raise CannotCompare(
            f"{text!r} cannot be {_WITH_ARTICLE[kind]}: {reason}"
        ) from error
    if kind == "optimizer" and not callable(getattr(result, "update", None)):
        raise CannotCompare(f"{text!r} is not an optimizer")
    return result


# --- validation -----------------------------------------------------------------------


def _metric_if_valid(
    model: Layer, loss: Any, optimizer: Any, parts: list[Examples], batch_size: int
) -> Callable[..., Any] | None:
    """Check that everything fits by taking one step on the host; return a metric.

    The metric is the first one of the loss, or the absolute error if outputs and
    targets have the same shape, or None.
    """
    xp = namespace(np.zeros(()))
    train = parts[0]
    batch = train[np.arange(min(batch_size, len(train)))]
    try:
        for examples in parts:
            model.check(examples.x)
        key = random.key(0, xp=xp)
        params, state, shape = model.init(key, train.x.shape[1:], xp.float32)
        check = check_of(loss)
        for examples in parts:
            if check is not None:
                check(examples.target, shape)
        carry = params, state, optimizer.init(params)
        counts = np.ones(len(batch), np.float32)
        t = np.zeros((), np.float32)
        make_step(model, loss, optimizer)(carry, batch.x, batch.target, counts, t=t)
        y = model.forward(params, state, batch.x)[0]
    except Exception as error:  # a custom layer may raise any exception
        message = f"the model, the data and the loss do not fit: {_message(error)}"
        raise CannotCompare(message) from error
    loss_metric = next(iter(metrics_of(loss).values()), None)
    same_shape = getattr(y, "shape", None) == batch.target.shape
    is_regression = same_shape and batch.target.dtype.kind == "f"
    return loss_metric or (absolute_error if is_regression else None)


def _message(error: BaseException, *, with_type: bool = True) -> str:
    """Return the message of an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if with_type else text
