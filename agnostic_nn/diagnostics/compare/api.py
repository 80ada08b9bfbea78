"""`compare`: the same training of a user's model on every backend."""

from collections.abc import Sequence
from typing import Any

from ...core.arrays import Metric
from ...core.backend import Backend
from ...core.errors import expect_list
from ...layers import Layer
from ...losses import Loss
from ...optimizers import Optimizer
from .comparison import run_comparison
from .report import Comparison
from .running import SIZES
from .user_model import BATCH_SIZE, EPOCHS, custom_workload

__all__ = ["compare"]


def compare(
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
    backends: Sequence[Backend | str] | None = None,
    dtypes: Sequence[str] = ("float32",),
    precision: str | None = None,
    deterministic: bool | None = None,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
    repeat: int = 1,
    skip_missing: bool = False,
    name: str | None = None,
    show_progress: bool = False,
) -> Comparison:
    """Train a model on every backend, and return how each differs from a reference.

    The reference is the same training on NumPy in float64. `agnostic-nn compare` does
    the same with a model and data in files. A named backend that cannot run here is
    refused before anything trains. A backend that fails during training becomes a
    result with its error; the others still finish.

        report = nn.compare(model, x, target)
        report.verdict.status       # "agrees", "differs", "not checked" or "failed"
        for result in report.results:
            print(result.backend, result.verdict, result.first_difference)
        print(report)               # a summary
        report.save("report")       # report.json, report.md and report.html

    Parameters
    ----------
    model, x, target, weights
        As `Trainer` and `Trainer.fit` take them. Floating-point numbers are converted
        to the dtype of each run.
    loss, optimizer
        By default cross-entropy if the targets are integers, else the mean squared
        error; a dict of targets has one such loss for each, see `Losses`. The default
        optimizer is `Adam()`.
    metric
        A function from (y, target) to values per example, see `agnostic_nn.metrics`. It
        is evaluated on the test set after training. By default the first metric of the
        loss.
    test
        (x, target) of the test set; by default a random fifth is held out.
    context
        Arrays for a loss or metric that takes a `context`, a tree. They are the same
        for all steps, so it cannot be a function, as it can be for `Trainer`.
    backends
        Names such as "jax:cpu:0", or a `Backend` with its own policy. By default every
        device of every backend that can run here, except backends for tests.
    dtypes
        The dtypes to train in, in this order, of "float32", "float64", "bfloat16" and
        "float16". In the last two, the model is trained in a `MixedPrecision`, and in
        float32 first.
    precision, deterministic
        The policy of backends that are given by name, see `nn.backend`.
    epochs, batch_size, seed
        As for `Trainer`.
    sizes
        Further batch sizes whose steps are timed; () for none.
    repeat
        How often each backend trains from the same start; the report says whether it
        repeats its own bits, and if not, which part of a step does not.
    skip_missing
        If True, a named backend that cannot run here, or does not have one of the
        dtypes, is left out and the others are compared.
    name
        The name of the training in the report, by default the class of the model.
    show_progress
        If True, draw progress bars.

    Raises
    ------
    TypeError, ValueError
        If the model, the data and the loss do not fit, as for `Trainer`; or if a
        backend or dtype is unknown.
    """
    expect_list("backends", [] if backends is None else backends)
    workload = custom_workload(
        model,
        x,
        target,
        loss,
        optimizer,
        metric=metric,
        test=test,
        weights=weights,
        context=context,
        batch_size=batch_size,
        name=name,
    )
    return run_comparison(
        workload,
        backends,
        precision=precision,
        deterministic=deterministic,
        dtypes=dtypes,
        epochs=epochs,
        seed=seed,
        sizes=sizes,
        repeat=repeat,
        skip_missing=skip_missing,
        show_progress=show_progress,
    )
