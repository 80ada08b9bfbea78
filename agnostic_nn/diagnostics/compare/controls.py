"""Controls: the same training with nothing but rounding changed.

How far such a run comes from the reference is how far rounding alone takes this training, whatever
its steps do with it. There are two:

- the float64 reference, started from parameters that are perturbed in the last bit of the dtype of
  the backend. At each step gradients get a relative error as large as rounding in that dtype makes
  it, and new parameters, state and moments are rounded once more, at random. A gradient that is
  nothing but rounding gets an error of that size;
- NumPy in that dtype, unless its probes differ, since then it is wrong itself. NumPy is held to a
  run of its own that starts from perturbed parameters.

They are run only where the training of a backend leaves its tolerance.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ...core.backend import Backend
from ...core.trees import leaves, named_leaves, tree_map
from ...optimizers.base import bind_divisor, uses_divisor
from ...training.progress import Progress
from .drift import Drift, largest
from .probes import Unmoved, cast, numbered_step
from .running import Run, Task, ended, run
from .verdicts import Context, probes_agree

__all__ = ["Controls", "Noise", "gradient_noise"]


@dataclass
class Controls:
    """The control runs of a comparison: each is done when it is first needed, and kept."""

    task: Task
    told: Progress
    host: Backend  # NumPy
    _done: dict[str, Run] = field(default_factory=dict)  # NumPy's, by dtype
    _noisy: dict[str, Drift] = field(default_factory=dict)
    _plain: dict[str, Drift | None] = field(default_factory=dict)

    def keep(self, backend: Backend, dtype: str, done: Run) -> None:
        """Take a run that is done anyway, if it is NumPy's, as a control run."""
        if backend.adapter is self.host.adapter:
            self._done.setdefault(dtype, done)

    def of(self, context: Context, backend: Backend) -> dict[str, Drift]:
        """Control runs by name, for a run on `backend`."""
        dtype = context.dtype
        if dtype not in self._noisy:
            self._noisy[dtype] = context.drift(self._perturbed(context))
        found = {f"the float64 reference with rounding of {dtype}": self._noisy[dtype]}
        own = backend.adapter is self.host.adapter  # nothing is its own control
        name = f"NumPy in {dtype}" + (" from a perturbed start" if own else "")
        if name not in self._plain:
            done = None if own else self._done.get(dtype)
            done = done or self._numpy(context, own)
            agrees = probes_agree(done.probes, context)
            self._plain[name] = context.drift(done) if agrees else None
        plain = self._plain[name]
        return found if plain is None else found | {name: plain}

    def _numpy(self, context: Context, perturbed: bool) -> Run:
        task = self.task
        if perturbed:
            params, *rest = cast(task.start, context.dtype)
            draw = np.random.default_rng(task.seed)
            task = replace(task, start=(tree_map(partial(_nudged, draw), params), *rest))
        title = f"control: numpy {context.dtype}"
        return run(task, self.host, context.dtype, title, self.told, (), context.references)

    def _perturbed(self, context: Context) -> Run:
        """The reference, rounded at random as `dtype` rounds."""
        task, host, wide = self.task, self.host, "float64"
        model, loss, optimizer = (getattr(task.workload, n) for n in ("model", "loss", "optimizer"))
        noise = gradient_noise(context)
        draw = np.random.default_rng(task.seed)

        def blurred(tree: Any) -> Any:
            return tree_map(lambda leaf: _blurred(leaf, context.epsilon, draw), tree)

        losses: list[float] = []
        self.told.begin(f"control: {wide} with rounding of {context.dtype}", task.steps)
        with np.errstate(all="ignore"):
            unmoved = _unmoved(optimizer)
            slope = host.jit(numbered_step(model, loss, unmoved, keep_finite=False))
            update = host.jit(partial(_update, optimizer))
            one = np.ones(())
            params, state, moments = (
                tree_map(lambda leaf: leaf.astype(wide) if leaf.dtype.kind == "f" else leaf, tree)
                for tree in task.start
            )
            params = blurred(params)
            for batch in task.batches(wide):
                (grads, after, divisor), value, finite = slope((params, state, one), *batch)
                losses.append(float(value))
                self.told.advance(len(losses), losses[-1])
                if not bool(finite) or not all(np.isfinite(g).all() for g in leaves(grads)):
                    continue
                several = isinstance(divisor, tuple)  # a tree of gradients for each divisor
                trees = [_rounded(tree, noise, draw) for tree in (grads if several else [grads])]
                grads = tuple(trees) if several else trees[0]
                params, moments = update(params, grads, moments, divisor)
                params, state, moments = blurred(params), blurred(after), blurred(moments)
            finished = ended(task, host, wide, (params, state, moments))
        self.told.finish({"loss": losses[-1]})
        return Run("", losses, [], *finished)


@dataclass(frozen=True)
class _Divided(Unmoved):
    """The same, whose moments, 1 before, are what the gradients were divided by.

    They are () for gradients of a sum, which is divided by nothing, and a tuple where each of
    several `terms` has gradients and a divisor.
    """

    terms: int = 1
    uses_divisor: ClassVar[bool] = True

    def update(self, params, grads, moments, divisor=1.0):
        if isinstance(divisor, tuple):
            return grads, tuple([_given(moments, each) for each in divisor])
        return grads, _given(moments, divisor)


def _given(one: Any, divisor: Any) -> Any:
    return () if divisor is None else one * divisor


def _unmoved(optimizer: Any) -> Unmoved:
    terms = getattr(optimizer, "terms", 1)
    return _Divided(terms) if uses_divisor(optimizer) else Unmoved()


def _update(optimizer: Any, params: Any, grads: Any, moments: Any, divisor: Any) -> tuple:
    """One step along gradients that `_Divided` handed out with their divisor."""
    if isinstance(divisor, tuple):
        several = [None if isinstance(each, tuple) else each for each in divisor]
        divisor = tuple(several) or None
    return bind_divisor(optimizer, divisor)(params, grads, moments)


@dataclass(frozen=True)
class Noise:
    """How far rounding takes a gradient: relative to it, or to the largest of all gradients."""

    size: float
    of_all: bool


def gradient_noise(context: Context) -> dict[str, Noise]:
    """How far rounding took each gradient in the probes, at least, by the path of the parameter.

    At least: where a loss is saturated, what is left of its gradients is nothing but rounding.
    """
    found: dict[str, list[float]] = {}
    for each in context.references:
        names = [name for name in each.results if name.startswith("gradients.")]
        top = max((largest(each.results[name]) for name in names), default=0.0)
        for name in names:
            short = name.removeprefix("gradients.")
            spread, scale = each.spread(name, context.dtype, 1), largest(each.results[name])
            scale = top if short in context.nothing else scale
            size = spread / scale if scale and math.isfinite(spread) else context.epsilon
            found.setdefault(short, []).append(size)
    return {name: Noise(min(sizes), name in context.nothing) for name, sizes in found.items()}


def _rounded(grads: Any, noise: dict[str, Noise], draw: np.random.Generator) -> Any:
    top = max(map(largest, leaves(grads)), default=0.0)
    names = iter([name for name, _ in named_leaves(grads)])

    def one(leaf: Any) -> Any:
        each = noise.get(next(names), Noise(0.0, False))
        scale = top if each.of_all else np.abs(leaf)
        return leaf + scale * each.size * draw.uniform(-1.0, 1.0, leaf.shape)

    return tree_map(one, grads)


def _nudged(draw: np.random.Generator, leaf: Any) -> Any:
    """The same numbers, each moved to the next one, up or down, or not."""
    if leaf.dtype.kind != "f":
        return leaf
    towards = leaf + draw.integers(-1, 2, leaf.shape).astype(leaf.dtype)
    return np.nextafter(leaf, towards)


def _blurred(leaf: Any, epsilon: float, draw: np.random.Generator) -> Any:
    if leaf.dtype.kind != "f":
        return leaf
    return leaf * (1.0 + 0.5 * epsilon * draw.uniform(-1.0, 1.0, leaf.shape))
