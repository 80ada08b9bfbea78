"""Control runs: the same training with nothing changed but rounding.

The distance of a control run from the reference shows how far rounding alone takes this
training. There are two control runs:

- The float64 reference, started from parameters that are perturbed in the last bit of
  the backend's dtype. At each step every gradient gets a random relative error as large
  as rounding in that dtype causes. The new parameters, state and moments are perturbed
  again in the last bit. A gradient that is zero up to rounding gets an error of that
  absolute size.
- NumPy in that dtype, unless its probes differ: then it is wrong itself and proves
  nothing. If the backend under test is NumPy, its control is a second NumPy run from
  perturbed parameters.

Control runs are made only if the training of a backend leaves its tolerance.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ...core.arrays import Moments, Params
from ...core.backend import Backend
from ...core.precisions import epsilon
from ...core.trees import leaves, named_leaves, tree_map
from ...optimizers.base import bind_divisor, uses_divisor
from ...training.progress import Progress
from .drift import Drift, largest
from .probes import ReturnGradients, batch_step, cast, stored
from .running import Run, Task, final_results, run
from .verdicts import Context, probes_agree

__all__ = ["Controls", "Noise", "gradient_noise"]


@dataclass
class Controls:
    """The control runs of a comparison; each is made when first needed and reused."""

    task: Task
    progress: Progress
    host: Backend  # NumPy
    _numpy_runs: dict[str, Run] = field(default_factory=dict)  # by dtype
    # of the reference, by dtype
    _perturbed_runs: dict[str, Run] = field(default_factory=dict)
    _perturbed_drifts: dict[str, Drift] = field(default_factory=dict)
    _numpy_drifts: dict[str, Drift | None] = field(default_factory=dict)  # by name

    def keep(self, backend: Backend, dtype: str, result: Run) -> None:
        """Reuse a finished run as a control run if it was NumPy's."""
        if backend.adapter is self.host.adapter:
            self._numpy_runs.setdefault(dtype, result)

    def of(self, context: Context, backend: Backend) -> dict[str, Drift]:
        """Return the control runs for a run on `backend`, by name."""
        dtype = context.dtype
        if dtype not in self._perturbed_drifts:
            self._perturbed_drifts[dtype] = context.drift(self.perturbed(context))
        title = f"the float64 reference with rounding of {dtype}"
        drifts = {title: self._perturbed_drifts[dtype]}

        # a run cannot be its own control
        is_numpy = backend.adapter is self.host.adapter
        name = f"NumPy in {dtype}" + (" from a perturbed start" if is_numpy else "")
        if name not in self._numpy_drifts:
            result = None if is_numpy else self._numpy_runs.get(dtype)
            result = result or self._numpy(context, is_numpy)
            agrees = probes_agree(result.probes, context)
            self._numpy_drifts[name] = context.drift(result) if agrees else None
        numpy_drift = self._numpy_drifts[name]
        return drifts if numpy_drift is None else drifts | {name: numpy_drift}

    def _numpy(self, context: Context, perturbed: bool) -> Run:
        """Train with NumPy, from the common start or from perturbed parameters."""
        task = self.task
        if perturbed:
            params, *rest = cast(task.start, context.dtype)
            draw = np.random.default_rng(task.seed)
            params = tree_map(partial(_nudged, draw), params)
            task = replace(task, start=(params, *rest))
        dtype = context.dtype
        title = f"control: numpy {dtype}"
        return run(task, self.host, dtype, title, self.progress, (), context.references)

    def perturbed(self, context: Context) -> Run:
        """Train the float64 reference with random errors as large as rounding.

        In half precision the parameters, state and moments are those of float32, and
        only the gradients have errors of the dtype.
        """
        if context.dtype not in self._perturbed_runs:
            self._perturbed_runs[context.dtype] = self._train_perturbed(context)
        return self._perturbed_runs[context.dtype]

    def _train_perturbed(self, context: Context) -> Run:
        task = self.task
        host = self.host
        wide = "float64"
        model = task.workload.model
        loss = task.workload.loss
        optimizer = task.workload.optimizer
        noise = gradient_noise(context)
        draw = np.random.default_rng(task.seed)

        def blurred(tree: Any) -> Any:
            size = epsilon(stored(context.dtype))
            return tree_map(lambda leaf: _blurred(leaf, size, draw), tree)

        losses: list[float] = []
        title = f"control: {wide} with rounding of {context.dtype}"
        self.progress.begin(title, task.steps)
        with np.errstate(all="ignore"):
            # The step is split in two, to add errors to the gradients in between.
            return_gradients = _return_gradients(optimizer)
            gradients = host.jit(
                batch_step(model, loss, return_gradients, keep_finite=False)
            )
            update = host.jit(partial(_update, optimizer))
            divisor_before = np.ones(())
            params, state, moments = (cast(tree, wide) for tree in task.start)
            params = blurred(params)
            for batch in task.batches(wide):
                (grads, new_state, divisor), value, finite = gradients(
                    (params, state, divisor_before), *batch
                )
                losses.append(float(value))
                self.progress.advance(len(losses), losses[-1])
                all_finite = all(np.isfinite(g).all() for g in leaves(grads))
                if not bool(finite) or not all_finite:
                    continue
                if isinstance(divisor, tuple):  # one tree of gradients for each
                    grads = tuple([_rounded(tree, noise, draw) for tree in grads])
                else:
                    grads = _rounded(grads, noise, draw)
                params, moments = update(params, grads, moments, divisor)
                params = blurred(params)
                state = blurred(new_state)
                moments = blurred(moments)
            results = final_results(task, host, wide, (params, state, moments))
        self.progress.finish({"loss": losses[-1]})
        return Run("", losses, [], *results)


@dataclass(frozen=True)
class _ReturnGradientsAndDivisor(ReturnGradients):
    """Like `ReturnGradients`, with the divisors of the gradients as new moments.

    The moments must be 1 before the step. After it they are () for the gradients of a
    sum, which are not divided, and a tuple if each of several `terms` has its own
    gradients and divisor.
    """

    terms: int = 1
    uses_divisor: ClassVar[bool] = True

    def update(
        self, params: Params, grads: Params, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        if isinstance(divisor, tuple):
            return grads, tuple([_times(moments, each) for each in divisor])
        return grads, _times(moments, divisor)


def _times(moments: Any, divisor: Any) -> Any:
    return () if divisor is None else moments * divisor


def _return_gradients(optimizer: Any) -> ReturnGradients:
    """Return a stand-in for `optimizer` that takes the same divisors."""
    if uses_divisor(optimizer):
        return _ReturnGradientsAndDivisor(getattr(optimizer, "terms", 1))
    return ReturnGradients()


def _update(
    optimizer: Any, params: Any, grads: Any, moments: Any, divisor: Any
) -> tuple[Any, ...]:
    """Take one step along gradients from `_ReturnGradientsAndDivisor`."""
    if isinstance(divisor, tuple):
        several = [None if isinstance(each, tuple) else each for each in divisor]
        divisor = tuple(several) or None
    return bind_divisor(optimizer, divisor)(params, grads, moments)


@dataclass(frozen=True)
class Noise:
    """The rounding error of a gradient.

    size: relative to the gradient's elements, or to the largest of all gradients if
    `relative_to_all`.
    """

    size: float
    relative_to_all: bool


def gradient_noise(context: Context) -> dict[str, Noise]:
    """Return the smallest rounding error of each gradient in the probes, by its path.

    The smallest, because late in training a saturated loss may leave gradients that
    consist of rounding errors only.
    """
    sizes: dict[str, list[float]] = {}
    for reference in context.references:
        names = [name for name in reference.results if name.startswith("gradients.")]
        top = max((largest(reference.results[name]) for name in names), default=0.0)
        for name in names:
            path = name.removeprefix("gradients.")
            spread = reference.spread(name, context.dtype, 1)
            is_zero = path in context.zero_gradients
            scale = top if is_zero else largest(reference.results[name])
            is_measured = scale and math.isfinite(spread)
            size = spread / scale if is_measured else context.epsilon
            sizes.setdefault(path, []).append(size)
    zero = context.zero_gradients
    return {path: Noise(min(each), path in zero) for path, each in sizes.items()}


def _rounded(grads: Any, noise: dict[str, Noise], draw: np.random.Generator) -> Any:
    """Add a random error to each gradient, as large as rounding makes it."""
    top = max(map(largest, leaves(grads)), default=0.0)
    paths = iter([path for path, _ in named_leaves(grads)])

    def with_error(leaf: Any) -> Any:
        error = noise.get(next(paths), Noise(0.0, False))
        scale = top if error.relative_to_all else np.abs(leaf)
        return leaf + scale * error.size * draw.uniform(-1.0, 1.0, leaf.shape)

    return tree_map(with_error, grads)


def _nudged(draw: np.random.Generator, leaf: Any) -> Any:
    """Move each float at random to the next one above or below, or leave it."""
    if leaf.dtype.kind != "f":
        return leaf
    towards = leaf + draw.integers(-1, 2, leaf.shape).astype(leaf.dtype)
    return np.nextafter(leaf, towards)


def _blurred(leaf: Any, epsilon: float, draw: np.random.Generator) -> Any:
    """Change each float by a random relative error of at most ε/2."""
    if leaf.dtype.kind != "f":
        return leaf
    return leaf * (1.0 + 0.5 * epsilon * draw.uniform(-1.0, 1.0, leaf.shape))
