"""Own: a workload of a model and data of the user's, named on a command line."""

import ast
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
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

__all__ = ["own"]

EPOCHS, BATCH, ADAM = 10, 32, "Adam"
NEEDED, HELD_OUT = ("x", "target"), ("x_test", "target_test")


def own(
    model: str,
    data: str | os.PathLike,
    loss: str | None = None,
    optimizer: str = ADAM,
    batch_size: int = BATCH,
) -> Workload:
    """The training of `model`, "module:object", on the arrays of the file `data`.

    model: a layer, or a function without arguments that gives one; modules in the current
    folder can be imported. data: an npz file with x and target, and x_test and target_test;
    without these a random fifth is held out. loss and optimizer: names of this library's, with
    arguments if need be, such as "Adam(rate=1e-3)"; the loss is by default cross-entropy where
    the target are integers, else the mean squared error.

    Raises
    ------
    CannotCompare
        If anything of that is not there or does not fit; the message says what.
    """
    parts = _data(Path(data))
    chosen = _chosen(losses, loss or _default_loss(parts[0]), "loss")
    moved = _chosen(optimizers, optimizer, "optimizer")
    try:
        layer = load_layer(model)
    except CannotLoad as error:
        raise CannotCompare(str(error)) from error
    metric = _fitting(layer, chosen, moved, parts, batch_size)
    held_out = "the test set is the file's own"
    if len(parts) == 1:  # only now: a complaint counts in the user's own numbers
        parts = [parts[0][rows] for rows in split(len(parts[0]))]
        held_out = "a random fifth is the test set"
    train, test = parts
    about = f"{Path(data).name}: {len(train) + len(test):,} examples; {held_out}"
    options = ["--model", model, "--data", str(data)]
    options += ["--loss", loss] if loss is not None else []
    options += ["--optimizer", optimizer] if optimizer != ADAM else []
    options += ["--batch-size", str(batch_size)] if batch_size != BATCH else []
    found = model, about, lambda: (train, test), layer, chosen, metric, EPOCHS, moved, batch_size
    return Workload(*found, options=tuple(options))


# --- the data ---------------------------------------------------------------------------


def _data(path: Path) -> list[Examples]:
    """The examples in a file: to train on and to test on, or, in one, to split."""
    arrays = _arrays(path)
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        held = ", ".join(arrays) or "nothing"
        raise CannotCompare(f"{path} has no array called {' and '.join(missing)}: it has {held}")
    unused = [name for name in arrays if name not in (*NEEDED, *HELD_OUT)]
    if unused:
        used = ", ".join((*NEEDED, *HELD_OUT))
        raise CannotCompare(f"{path} has {', '.join(unused)}, which nothing here uses: only {used}")
    halves = [name for name in HELD_OUT if name in arrays]
    if len(halves) == 1:
        (other,) = set(HELD_OUT) - set(halves)
        raise CannotCompare(f"{path} has {halves[0]}, but no {other}")
    parts = [_pair(path, arrays, names) for names in (NEEDED, HELD_OUT) if names[0] in arrays]
    if len(parts) == 1 and len(parts[0]) < 5:
        raise CannotCompare(f"{path} has {len(parts[0])} examples, too few to hold a fifth out")
    for name in ("x", "target"):
        one, two = getattr(parts[0], name), getattr(parts[-1], name)
        if (one.shape[1:], one.dtype) != (two.shape[1:], two.dtype):
            told = f"{name} is {one.dtype} {one.shape}, but {name}_test {two.dtype} {two.shape}"
            raise CannotCompare(f"{path}: {told}")
    return parts


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise CannotCompare(f"{path} is one array: expected an npz file with x and target")
        with found as file:
            return {name: file[name] for name in file.files}
    except CannotCompare:
        raise
    except OSError as error:
        raise CannotCompare(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # NumPy raises various kinds for what is no npz file
        raise CannotCompare(f"{path} is no npz file of numbers: {_said(error)}") from error


def _pair(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, str]) -> Examples:
    found = [_number(path, name, arrays[name]) for name in names]
    try:
        expect_lengths("", dict(zip(names, found, strict=True)))
    except ValueError as error:
        raise CannotCompare(f"{path}: {_said(error, named=False)}") from error
    if not len(found[0]):
        raise CannotCompare(f"{path}: {names[0]} holds no examples")
    return Examples(*found)


def _number(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """In float32, int32 or bool, as every backend has them."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind not in "iu":
        raise CannotCompare(f"{path}: expected {name} to hold numbers, got {array.dtype}")
    bounds = np.iinfo(np.int32)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise CannotCompare(f"{path}: {name} holds integers that do not fit into int32")
    return array.astype(np.int32)


# --- the loss and the optimizer ---------------------------------------------------------


def _default_loss(train: Examples) -> str:
    return "mean_squared_error" if train.target.dtype.kind == "f" else "softmax_cross_entropy"


def _chosen(home: Any, text: str, kind: str) -> Any:
    """What `text` names in `home`, with its arguments, which are literals: nothing is run."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise CannotCompare(f"expected {_A[kind]} such as {_LIKE[kind]}, got {text!r}") from error
    call = tree if isinstance(tree, ast.Call) else None
    name = call.func if call else tree
    if not isinstance(name, ast.Name):
        raise CannotCompare(f"expected {_A[kind]} such as {_LIKE[kind]}, got {text!r}")
    made = getattr(home, name.id, None) if name.id in home.__all__ else None
    if made is None or not callable(made):
        known = ", ".join(n for n in home.__all__ if n not in _ABSTRACT)
        raise CannotCompare(f"no {kind} is called {name.id!r}; there are {known}")
    try:
        args = [ast.literal_eval(one) for one in call.args] if call else []
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords} if call else {}
    except (ValueError, TypeError, SyntaxError) as error:
        said = "arguments must be numbers, strings and the like"
        raise CannotCompare(f"{text!r} cannot be {_A[kind]}: {said}") from error
    if None in options:
        raise CannotCompare(f"{text!r} cannot be {_A[kind]}: ** is not known here")
    return _made(made, args, options, text, kind)


_ABSTRACT = "Loss", "Losses", "Weighted", "Weighted", "Optimizer", "Rule"
_A = {"loss": "a loss", "optimizer": "an optimizer"}
_LIKE = {"loss": "huber(delta=0.5)", "optimizer": "Adam(rate=1e-3)"}


def _made(made: Callable, args: list, options: dict, text: str, kind: str) -> Any:
    try:
        if isinstance(made, type):
            found = made(*args, **options)
        elif args:
            raise TypeError("a loss takes its options by name")
        else:
            found = partial(made, **options) if options else made
    except (TypeError, ValueError) as error:
        raise CannotCompare(
            f"{text!r} cannot be {_A[kind]}: {_said(error, named=False)}"
        ) from error
    if kind == "optimizer" and not callable(getattr(found, "update", None)):
        raise CannotCompare(f"{text!r} is no optimizer")
    return found


# --- whether they fit each other --------------------------------------------------------


def _fitting(
    model: Layer, loss: Any, optimizer: Any, parts: list[Examples], batch_size: int
) -> Callable | None:
    """Take one step on the host, as all of it has to; what the outputs are measured by."""
    xp = namespace(np.zeros(()))
    train = parts[0]
    part = train[np.arange(min(batch_size, len(train)))]
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
        counts = np.ones(len(part), np.float32)
        t = np.zeros((), np.float32)
        make_step(model, loss, optimizer)(carry, part.x, part.target, counts, t=t)
        y = model.forward(params, state, part.x)[0]
    except Exception as error:  # a stranger's layer may raise any
        fits = f"the model, the data and the loss do not fit: {_said(error)}"
        raise CannotCompare(fits) from error
    brought = next(iter(metrics_of(loss).values()), None)
    alike = getattr(y, "shape", None) == part.target.shape and part.target.dtype.kind == "f"
    return brought or (absolute_error if alike else None)


def _said(error: BaseException, *, named: bool = True) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if named else text
