"""Training: the whole flow of data, from batch to better parameters, and who remembers them."""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from . import checkpoint, random
from .arrays import Array, Moments, Params, Rows, Shape, State, namespace
from .config import describe, rebuild
from .data import Examples, batches, fetch, order, typed
from .history import History
from .interrupts import DeferredInterrupts
from .layers import Layer
from .losses import Loss
from .optimizers import Optimizer
from .progress import progress
from .registry import Backend
from .registry import backend as choose
from .special import all_finite, select
from .summary import Summary, summarize
from .trees import leaves, named_leaves, unname

__all__ = ["NonFiniteLoss", "Trainer", "make_step"]

Carry = tuple[Params, State, Moments]
_CLOSED = (0, 0, 0, True)  # of an epoch begun: batches done, batch size, examples, whether shuffled


class NonFiniteLoss(FloatingPointError):
    """A step met a loss or a gradient that is NaN or infinite; it was not taken."""


def make_step(
    model: Layer, loss: Loss, optimizer: Optimizer, *, keep_finite: bool = True
) -> Callable:
    """Tie a model, a loss and an optimizer into one pure training step.

    step(carry, x, target, counts=None, weights=None) -> (carry, value, finite), where
    carry is (params, state, moments), value the loss before the step, and finite whether
    it and the gradients were. With `keep_finite` a step that is not leaves carry as it was.
    counts: (batch,), 1 for an example and 0 for a row that only fills the batch up;
    weights: (batch,), how much each row counts in the loss, by default as `counts` say.

    The step closes over hyper-parameters only, so `backend.jit(make_step(...))`
    compiles all of it, and an eager backend runs it as it stands.
    """

    def step(carry, x, target, counts=None, weights=None):
        params, state, moments = carry
        train = True if counts is None else Rows(counts)
        y, state, cache = model.forward(params, state, x, train=train)
        value, dy = _weighted(loss, y, target, counts if weights is None else weights)
        _, grads = model.backward(params, cache, dy)
        params, moments = optimizer.update(params, grads, moments)
        new = (params, state, moments)
        if not keep_finite:
            return new, value, all_finite(value)
        finite = all_finite(value, *leaves(grads))
        return select(finite, new, carry), value, finite

    return step


def _weighted(loss, y, target, weights):
    """Losses of a user's own need not take weights as long as nobody gives any."""
    return loss(y, target) if weights is None else loss(y, target, weights)


class Trainer:
    """A model in training: the one object of the library that changes.

    It only remembers what steps returned; everything it does, `make_step` does. Weights
    are drawn on the host and moved once, so every backend starts from the same bits; the
    order of the data and the masks of Dropout are the same everywhere too.

    Parameters
    ----------
    model, loss, optimizer
        What to train, on what, and how. A loss is a function (y, target, weights=None) to
        (value, dy).
    backend
        A `Backend` or its name, such as "jax:cpu:1"; by default that of `nn.backend()`.
    seed
        Fixes weights, masks and the order of the data.
    dtype
        What the model computes in, "float32" or "float64".
    shape
        The shape of one example; otherwise taken from the first data.
    metrics
        {name: function from (y, target) to a value per example}; by default those that the
        loss brings, such as accuracy.
    keep_finite
        Take no step whose loss or gradients are not finite, and stop `fit` there.
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        *,
        backend: Backend | str | None = None,
        seed: int = 0,
        dtype: str = "float32",
        shape: Shape | None = None,
        metrics: dict[str, Callable] | None = None,
        keep_finite: bool = True,
    ) -> None:
        if not isinstance(model, Layer):
            raise TypeError(f"expected a layer or a block as the model, got {model!r}")
        if not callable(loss):
            raise TypeError(f"expected a function as the loss, got {loss!r}")
        if not callable(getattr(optimizer, "update", None)):
            raise TypeError(f"expected an optimizer such as nn.Adam(), got {optimizer!r}")
        if dtype not in ("float32", "float64"):
            raise ValueError(f"expected dtype 'float32' or 'float64', got {dtype!r}")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.backend = backend if isinstance(backend, Backend) else choose(backend)
        if dtype == "float64" and not self.backend.has_float64:
            raise ValueError(f"{self.backend} has no float64 as it is set up now")
        self.seed, self.dtype, self.keep_finite = seed, dtype, keep_finite
        self.metrics = _known_of(loss, "metrics", {}) if metrics is None else dict(metrics)
        self._weighs = _takes_three(loss)
        self.shape: Shape | None = None
        self.out_shape: Shape | None = None
        self.steps = 0  # so far; one that `step` refused is counted, for nobody has looked yet
        self.epoch = 0  # epochs completed
        self._open = _CLOSED
        self._carry: Carry | None = None
        jit = self.backend.jit
        step = make_step(model, loss, optimizer, keep_finite=keep_finite)
        self._step = jit(step, donate=(0,))
        self._judge = jit(partial(_judge, model, loss, tuple(self.metrics.values())))
        self._join = jit(lambda *parts: namespace(parts[0]).concat(parts, axis=0))
        self._forward = jit(lambda params, state, x: model.forward(params, state, x)[0])
        if shape is not None:
            self.build(shape)

    def build(self, shape: Shape) -> None:
        """Draw the starting weights for examples of `shape`, anew if there were any."""
        self._place(self._draw(tuple(shape)), tuple(shape))

    def _draw(self, shape: Shape) -> Carry:
        """The carry before the first step, on the host."""
        xp = namespace(np.zeros(()))
        key = random.key(self.seed, xp=xp)
        params, state, self.out_shape = self.model.init(key, shape, getattr(xp, self.dtype))
        return params, state, self.optimizer.init(params)

    def _place(self, carry: Carry, shape: Shape) -> None:
        self.shape, self._carry = shape, self.backend.asarray(carry)

    @property
    def params(self) -> Params:
        """The parameters, on the backend; the next step may take their memory."""
        return self._built()[0]

    @property
    def state(self) -> State:
        """What layers carry from step to step, on the backend."""
        return self._built()[1]

    @property
    def moments(self) -> Moments:
        """What the optimizer remembers, on the backend."""
        return self._built()[2]

    def _built(self) -> Carry:
        if self._carry is None:
            raise RuntimeError("no weights yet: give Trainer a shape, or fit it to data first")
        return self._carry

    # --- learning -----------------------------------------------------------------------

    def step(self, x: Any, target: Any, weights: Any = None) -> Array:
        """Learn from one batch; returns its loss before the step, a 0-d array of the backend.

        With `keep_finite`, a step whose loss or gradients are not finite changes nothing.
        """
        examples = self._examples(x, target, weights)
        moved = self.backend.asarray(examples.target)
        weighting = () if weights is None else (None, self.backend.asarray(examples.weights))
        with DeferredInterrupts():
            value, _ = self._advance(self.backend.asarray(examples.x), moved, *weighting)
        return value

    def _advance(self, *batch: Array | None) -> tuple[Array, Array]:
        self._carry, value, finite = self._step(self._built(), *batch)
        self.steps += 1
        return value, finite

    def fit(
        self,
        x: Any,
        target: Any,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation: tuple[Any, Any] | None = None,
        weights: Any = None,
        shuffle: bool = True,
        steps: int | None = None,
        verbose: int = 1,
    ) -> History:
        """Learn from all examples `epochs` times, in batches; returns what each epoch reported.

        Each example is learned from exactly once an epoch; a last short batch is filled up
        to the common shape with rows that count nothing. An epoch that an earlier call
        left unfinished is finished first, and counts as one of `epochs`.

        validation: (x, target) to evaluate after each epoch; weights: (examples,), how much
        each counts in the loss; steps: stop after so many; verbose: 0 shows no progress bar.

        Raises
        ------
        TypeError, ValueError
            If the data do not fit the model: what was expected and what came.
        NonFiniteLoss
            If a loss or gradient is NaN or infinite, unless `keep_finite` is off. The
            parameters are those before that step.
        KeyboardInterrupt
            After Ctrl-C, once the current step is done.
        """
        for name, value in {"epochs": epochs, "batch_size": batch_size, "steps": steps}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
        examples = self._examples(x, target, weights)
        held_out = None if validation is None else self._examples(*validation)
        batch_size = min(batch_size, len(examples))
        done, size, count, shuffled = self._open
        if done and (size, count, shuffled) != (batch_size, len(examples), shuffle):
            raise ValueError(
                f"epoch {self.epoch + 1} was begun with {count} examples in batches of {size} and "
                f"shuffle={shuffled}, got {len(examples)} in batches of {batch_size} and "
                f"shuffle={shuffle}"
            )

        history = History()
        last = math.inf if steps is None else self.steps + steps
        with DeferredInterrupts() as stop, progress(bool(verbose)) as told:
            for number in range(1, epochs + 1):
                started, before, epoch = time.perf_counter(), self.steps, self.epoch + 1
                count = math.ceil(len(examples) / batch_size)
                told.begin(f"epoch {number}/{epochs}", count, self._open[0])
                loss = self._fit_epoch(examples, batch_size, shuffle, stop, last, told)
                if stop.requested:
                    break
                row = {"epoch": epoch, "steps": self.steps - before, "loss": loss}
                if held_out is not None:
                    found = self._evaluate(held_out, batch_size)
                    row |= {f"validation_{name}": value for name, value in found.items()}
                told.finish(row)
                history.epochs.append(row | {"seconds": time.perf_counter() - started})
                if self.steps >= last:
                    break
        return history

    def _fit_epoch(self, examples, batch_size, shuffle, stop, last, told) -> float:
        """Finish the open epoch or begin the next; the mean loss of the examples it met."""
        count = len(examples)
        indices = order(self.seed, self.epoch, count) if shuffle else np.arange(count)
        total = seen = 0.0
        first = self._open[0]
        for number, (rows, size) in enumerate(batches(indices, batch_size, first), first):
            value, finite = self._advance(*self._moved(examples, rows, size))
            if self.keep_finite and not bool(finite):
                self.steps -= 1
                raise NonFiniteLoss(
                    f"step {self.steps + 1} (epoch {self.epoch + 1}, batch {number + 1}) met a "
                    f"loss of {float(value)}, or a gradient that is not finite; the parameters "
                    "are those before it. A lower rate, ClipByGlobalNorm or a look at that batch "
                    "may help."
                )
            self._open = (number + 1, batch_size, count, shuffle)
            total, seen = total + float(value) * size, seen + size
            told.advance(number + 1, total / seen)
            if stop.requested or self.steps >= last:
                break
        if self._open[0] * batch_size >= count:
            self.epoch, self._open = self.epoch + 1, _CLOSED
        return total / seen

    def _moved(self, examples: Examples, rows: np.ndarray, size: int) -> list[Array | None]:
        """A batch on the backend: x, target, counts and weights."""
        counts = weights = None
        if len(examples) % len(rows):
            self._expect_weights(
                f"a last short batch, of {len(examples)} examples {len(rows)} at a time,"
            )
            counts = (np.arange(len(rows)) < size).astype(self.dtype)
        if examples.weights is not None:
            weights = examples.weights[rows]
            weights = weights if counts is None else weights * counts
        host = (examples.x[rows], examples.target[rows], counts, weights)
        return [None if part is None else self.backend.asarray(part) for part in host]

    # --- using what was learned ---------------------------------------------------------

    def evaluate(self, x: Any, target: Any, *, batch_size: int = 1024) -> dict[str, float]:
        """The mean loss and metrics over all examples, in the mode for prediction."""
        return self._evaluate(self._examples(x, target), batch_size)

    def _evaluate(self, examples: Examples, batch_size: int) -> dict[str, float]:
        count = len(examples)
        batch_size = min(batch_size, count)
        params, state, _ = self._built()
        totals = np.zeros(1 + len(self.metrics))
        for rows, size in batches(np.arange(count), batch_size):
            x, target, counts, _ = self._moved(examples, rows, size)
            found = self._judge(params, state, x, target, counts)
            totals += size * np.asarray([float(value) for value in found])
        return dict(zip(("loss", *self.metrics), (totals / count).tolist(), strict=True))

    def predict(self, x: Any, *, batch_size: int = 1024) -> Array:
        """y for all examples of x, in the mode for prediction.

        An array of the backend gives one of the backend; anything else a NumPy array.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"expected batch_size to be an integer of at least 1, got {batch_size!r}"
            )
        params, state, _ = self._built()
        host = self._input(x)
        batch_size = max(1, min(batch_size, len(host)))
        found = []
        for rows, size in batches(np.arange(len(host)), batch_size):
            found.append(self._forward(params, state, self.backend.asarray(host[rows]))[:size, ...])
        if not found:
            found = [self._forward(params, state, self.backend.asarray(host))]
        y = found[0] if len(found) == 1 else self._join(*found)
        ours = not isinstance(x, np.ndarray | list | tuple)
        return y if ours else self.backend.to_numpy(y)

    def summary(self, batch_size: int = 32) -> Summary:
        """The layers of the model: output shapes, parameters, and bytes kept for `backward`."""
        params, state, _ = self.backend.to_numpy(self._built())
        shape = self.shape or ()
        return summarize(self.model, params, state, shape, self.dtype, batch_size)

    # --- checks at the door -------------------------------------------------------------

    def _input(self, x: Any) -> np.ndarray:
        """x on the host, checked against the model, which it builds if that was to be done."""
        found, chosen = fetch("x", x, self.backend)
        if found.ndim < 1:
            raise ValueError(f"expected x of shape (examples, ...), got {found.shape}")
        shape = found.shape[1:] if self.shape is None else self.shape
        if self.shape is None:
            self.build(shape)
        if found.shape[1:] != shape:
            wanted = ", ".join(["examples", *map(str, shape)])
            raise ValueError(f"the model takes x of shape ({wanted}), got {found.shape}")
        if not chosen and self.model.takes == "real floating":
            found = found.astype(self.dtype)
        self.model.check(found)
        return typed("x", found, chosen, self.dtype)

    def _examples(self, x: Any, target: Any, weights: Any = None) -> Examples:
        host = self._input(x)
        if len(host) == 0:
            raise ValueError(f"expected at least one example, got x of shape {host.shape}")
        found, chosen = fetch("target", target, self.backend)
        if found.shape[:1] != host.shape[:1]:
            raise ValueError(f"{len(host)} examples, but targets of shape {found.shape}")
        check = _known_of(self.loss, "check", None)
        if check is not None:
            check(found, self.out_shape)
        found = typed("target", found, chosen, self.dtype)
        if weights is not None:
            self._expect_weights("weighting examples")
            weights = typed("weights", *fetch("weights", weights, self.backend), self.dtype)
            if weights.shape != host.shape[:1]:
                raise ValueError(f"expected weights of shape {host.shape[:1]}, got {weights.shape}")
            if not (np.isfinite(weights) & (weights >= 0)).all():
                raise ValueError("expected finite weights of at least 0")
        return Examples(host, found, weights)

    def _expect_weights(self, who: str) -> None:
        """Refuse what needs a loss that takes weights, if this one does not."""
        if not self._weighs:
            raise TypeError(
                f"{who} needs a loss that takes weights: give it a third parameter, "
                "weights=None, or choose a batch_size that divides the examples"
            )

    # --- elsewhere and later ------------------------------------------------------------

    def to(self, backend: Backend | str) -> "Trainer":
        """A trainer on another backend that goes on from here; this one stays as it is."""
        moved = Trainer(
            self.model,
            self.loss,
            self.optimizer,
            backend=backend,
            seed=self.seed,
            dtype=self.dtype,
            metrics=self.metrics,
            keep_finite=self.keep_finite,
        )
        moved.steps, moved.epoch, moved._open = self.steps, self.epoch, self._open
        moved.out_shape = self.out_shape
        if self.shape is not None:
            moved._place(self.backend.to_numpy(self._built()), self.shape)
        return moved

    def save(self, path: str | os.PathLike) -> None:
        """Write everything that resuming needs into one safetensors file.

        Parameters, state and moments, the step count, and where in the data training
        stands. A crash or a full disk never costs the old file.
        """
        params, state, moments = self.backend.to_numpy(self._built())
        tree = {"params": params, "state": state, "moments": moments}
        description = {
            "model": describe(self.model),
            "loss": describe(self.loss),
            "optimizer": describe(self.optimizer),
            "shape": self.shape,
            "dtype": self.dtype,
            "seed": self.seed,
            "steps": self.steps,
            "epoch": self.epoch,
            "open": self._open,
        }
        checkpoint.write(path, dict(named_leaves(tree)), description)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        backend: Backend | str | None = None,
        *,
        model: Layer | None = None,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
    ) -> "Trainer":
        """The trainer that was saved at `path`, on any backend.

        A model, loss or optimizer of your own is not rebuilt from a file: pass it.

        Raises
        ------
        CheckpointError
            If the file is no checkpoint, is damaged, or holds another model than the given.
        ValueError
            If the file names something that this library does not define.
        """
        arrays, found = checkpoint.read(path)
        trainer = cls(
            _part(path, "model", model, found),
            _part(path, "loss", loss, found),
            _part(path, "optimizer", optimizer, found),
            backend=backend,
            seed=found["seed"],
            dtype=found["dtype"],
        )
        shape = tuple(found["shape"])
        params, state, moments = trainer._draw(shape)
        like = {"params": params, "state": state, "moments": moments}
        _expect_same_arrays(path, arrays, dict(named_leaves(like)))
        tree = unname(arrays, like)
        trainer._place((tree["params"], tree["state"], tree["moments"]), shape)
        trainer.steps, trainer.epoch = found["steps"], found["epoch"]
        trainer._open = tuple(found["open"])
        return trainer


def _judge(model, loss, metrics, params, state, x, target, counts):
    """The mean loss of a batch and the mean of each metric, over the rows that count."""
    y, _, _ = model.forward(params, state, x)
    value, _ = _weighted(loss, y, target, counts)
    xp = namespace(y)
    found = [value]
    for metric in metrics:
        values = metric(y, target)
        if counts is None:
            found.append(xp.mean(values))
        else:
            share = xp.reshape(counts / xp.sum(counts), (-1, *(1,) * (values.ndim - 1)))
            found.append(xp.sum(share * values) / math.prod(values.shape[1:]))
    return found


def _takes_three(function: Callable) -> bool:
    try:
        signature(function).bind(None, None, None)
    except TypeError:
        return False
    return True


def _known_of(loss: Any, name: str, default: Any) -> Any:
    """What a loss brings besides itself, also when some of its options are set by `partial`."""
    return getattr(loss.func if isinstance(loss, partial) else loss, name, default)


def _part(path, name: str, given: Any, found: dict) -> Any:
    """The part called `name` that was given, if it fits the file; otherwise the file's own."""
    if given is None:
        return rebuild(found[name])
    if describe(given) != found[name]:
        raise checkpoint.CheckpointError(
            f"{path} was saved with the {name} {found[name]}, got {describe(given)}"
        )
    return given


def _expect_same_arrays(path, found: dict, expected: dict) -> None:
    for name in sorted(found.keys() | expected.keys()):
        have, want = (
            f"{tree[name].dtype} {tuple(tree[name].shape)}" if name in tree else "nothing"
            for tree in (found, expected)
        )
        if have != want:
            raise checkpoint.CheckpointError(
                f"{path} does not fit the model: {name} is {have} in the file, expected {want}"
            )
