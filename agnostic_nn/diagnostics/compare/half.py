"""Answer whether a model may be trained in half precision on a device.

A whole training in half precision cannot be compared number by number with one in
float64: the rounding of a few steps adds up to more than the numbers themselves. The
probes show whether the device computes single steps correctly. This module adds what a
user wants to know beyond that:

- how the training ends, next to that in float32 on the same device, and to a control
  run, the float64 reference whose gradients have errors as large as the rounding of the
  dtype;
- which layers cause the errors of gradients. Each layer in turn computes in half
  precision while the others compute in float32. Its error is also compared with the
  rounding that it may make by itself, which is much less than that of all layers, so a
  layer that is wrong by a few percent differs;
- which layers to keep in float32, if the training ends worse.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np

from ...blocks import Block, MixedPrecision
from ...core import precisions
from ...core.backend import Backend
from ...layers import Layer
from ...training.progress import Progress
from ..bisect.noise import exactly
from ..observe import path_of
from .controls import Controls
from .emulation import deviations, leaf_layers
from .probes import STAGES, Named, Reference, flat, functions
from .running import Run, Task, metric_values, run
from .schema import Difference, HalfLayer, HalfPrecision, NotChecked, Result
from .verdicts import FACTOR, Context
from .workloads import Workload

__all__ = ["HalfStudy", "study"]

MAX_LAYERS = 32  # to measure one by one
BUDGET = 120.0  # seconds after which no further layer is measured
# `keep` removes at least this share of the sum of squared errors
REMOVED = 0.75
# The loss may be higher by this share of the distance that it falls in training, and a
# metric without known standard error may differ by this share of itself.
SHARE = 0.02
# what rounding does to a control run explains this many times as much
SLACK = 4.0


@dataclass
class HalfStudy:
    """The results of a study of one training in half precision.

    differences: layers that err by more than rounding if they alone compute in half
    precision; not_checked: the training, if nothing explains how badly it ends.
    """

    half: HalfPrecision
    differences: list[Difference] = field(default_factory=list)
    not_checked: list[NotChecked] = field(default_factory=list)


def study(
    task: Task,
    backend: Backend,
    context: Context,
    trained: Run,
    differs: bool,
    plain: Result | None,
    controls: Controls,
    progress: Progress,
) -> HalfStudy:
    """Measure the layers, compare the training with others, and answer.

    differs: whether a probe differs by more than rounding; plain: the result in float32
    on the same device.
    """
    names = _leaf_layers(context)
    layers, skipped, differences = _measured_layers(
        backend, context, names, str(backend), progress
    )
    differs = differs or bool(differences)
    ending = _Ending.of(task, trained, plain, controls.perturbed(context), context)
    answer = ending.answer
    keep: tuple[str, ...] = ()
    kept_error = None
    kept: Run | None = None
    workload = task.workload
    everything = tuple(names)
    if answer != "yes" and not differs and not ending.float32_diverges:
        keep = _layers_to_keep(layers)
    if keep:
        policy = _policy(workload, context, keep)
        kept_error = _error_of(backend, policy, context)
        title = f"{backend} {context.dtype}, {len(keep)} layers kept"
        kept = run(replace(task, workload=policy), backend, "float32", title, progress)
    half = HalfPrecision(
        answer="no" if differs else answer,
        sentence="",
        loss=ending.loss,
        test_metric=trained.metric,
        float32_loss=ending.float32_loss,
        float32_test_metric=plain.test_metric if plain else None,
        reference_loss=ending.reference_loss,
        reference_test_metric=context.reference.metric,
        control_loss=ending.control_loss,
        control_test_metric=ending.control_metric,
        loss_allowed=ending.loss_allowed,
        metric_allowed=ending.metric_allowed,
        gradient_error=_finite(_total_error(trained.probes, context)),
        float32_gradient_error=_error_of(
            backend, _policy(workload, context, everything), context
        ),
        layers=tuple(layers),
        layers_not_measured=tuple(skipped),
        keep=keep,
        policy=_code(context.dtype, keep),
        kept_gradient_error=kept_error,
        kept_loss=_tail(kept.losses, task) if kept else None,
        kept_test_metric=kept.metric if kept else None,
    )
    half = replace(half, sentence=_sentence(half, ending, task, differs))
    return HalfStudy(half, differences, ending.not_checked(context))


# --- layers ---------------------------------------------------------------------------


def _leaf_layers(context: Context) -> dict[str, str]:
    """Return the class name of each layer that is not a block, by its path."""
    references = context.references
    if not references:
        return {}
    workload = references[0].workload
    params, state, _ = references[0].inputs.carry
    x = references[0].inputs.x
    try:
        return leaf_layers(
            workload.model, lambda model: exactly(model.predict, params, state, x)
        )
    except Exception:  # a custom layer may accept only NumPy arrays
        return dict(_inner_leaves(workload.model))


def _inner_leaves(layer: Layer, path: str = "") -> Iterable[tuple[str, str]]:
    if not isinstance(layer, Block):
        yield path, type(layer).__name__
    for name, inner in layer._inner_layers():
        yield from _inner_leaves(inner, path_of(path, name))


def _policy(workload: Workload, context: Context, keep: Sequence[str]) -> Workload:
    """Return the workload with a model in half precision, except some layers."""
    model = MixedPrecision(workload.model, context.dtype, keep=tuple(keep))
    return replace(workload, model=model)


def _code(dtype: str, keep: Sequence[str]) -> str:
    """Return Python code for a model in half precision, except some layers."""
    options = f", keep={tuple(keep)!r}" if keep else ""
    return f'nn.MixedPrecision(model, "{dtype}"{options})'


@dataclass(frozen=True)
class _OneLayer:
    """Makes the function that computes gradients, and the outputs of one layer."""

    path: str

    def __call__(self, workload: Workload) -> Any:
        parts = functions(workload)
        prefix = f"layers.{self.path}"

        def compute(*arguments: Any) -> dict[str, Any]:
            results = parts["gradients"](*arguments) | parts["layers"](*arguments)
            return {
                name: leaf
                for name, leaf in results.items()
                if name.startswith("gradients.") or name.partition("[")[0] == prefix
            }

        return compute


def _measured_layers(
    backend: Backend,
    context: Context,
    names: dict[str, str],
    title: str,
    progress: Progress,
) -> tuple[list[HalfLayer], list[str], list[Difference]]:
    """Measure each layer alone in half precision.

    Return the layers, the largest error first; the paths of layers that were not
    measured; and layers that err by more than rounding, in the order of computation.

    Layers with parameters are measured first, if there are too many.
    """
    with_parameters = {path for path in names if _has_parameters(path, context)}
    order = sorted(names, key=lambda path: path not in with_parameters)
    layers: list[HalfLayer] = []
    differences: dict[str, Difference] = {}
    began = perf_counter()
    progress.begin(f"{title} {context.dtype}, layer by layer", len(order))
    for path in order[:MAX_LAYERS]:
        if perf_counter() - began > BUDGET:
            break
        make = _OneLayer(path)
        others = [other for other in names if other != path]
        results = _computed(backend, make, others, context)
        error = _total_error(results, context)
        layers.append(
            HalfLayer(path=path, layer=names[path], gradient_error=_finite(error))
        )
        difference = _difference_of(path, names[path], make, results, context)
        if difference is not None:
            differences[path] = difference
        progress.advance(len(layers), error)
    progress.finish({})
    measured = {each.path for each in layers}
    layers.sort(key=lambda each: -_or_infinity(each.gradient_error))
    skipped = [path for path in names if path not in measured]
    return layers, skipped, [differences[path] for path in names if path in differences]


def _has_parameters(path: str, context: Context) -> bool:
    names = context.references[0].results
    start = f"gradients.{path}." if path else "gradients."
    return any(name.startswith(start) for name in names)


def _computed(
    backend: Backend, make: Any, keep: Sequence[str], context: Context
) -> list[Named]:
    """Return the results of make(workload) at each probed step, on the device."""
    workload = _policy(context.references[0].workload, context, keep)
    function = backend.jit(make(workload))
    results = []
    with np.errstate(all="ignore"):
        for reference in context.references:
            inputs = reference.inputs
            moved = backend.asarray((inputs.carry, *inputs.batch))
            results.append(flat(backend.to_numpy(function(*moved))))
    return results


def _error_of(backend: Backend, workload: Workload, context: Context) -> float | None:
    """Return the error of all gradients of a workload."""
    mixed = workload.model
    assert isinstance(mixed, MixedPrecision)

    def gradients(workload: Workload) -> Any:
        return functions(workload)["gradients"]

    return _finite(
        _total_error(_computed(backend, gradients, mixed.keep, context), context)
    )


def _total_error(results: Sequence[Named], context: Context) -> float:
    """Return the error of all gradients, relative to their norm in float64.

    E = √(mean over steps of Σ |g − ĝ|² / Σ |ĝ|²)
    """
    squares = []
    for reference, ours in zip(context.references, results, strict=True):
        exact = reference.results
        names = [name for name in exact if name.startswith("gradients.")]
        with np.errstate(all="ignore"):
            error = sum(_square(ours[name] - exact[name]) for name in names)
            size = sum(_square(exact[name]) for name in names)
        squares.append(error / size if size else error)
    return math.sqrt(np.mean(squares))


def _square(leaf: Any) -> float:
    """Return the squared norm of an array."""
    return float(np.sum(np.square(np.asarray(leaf, np.float64))))


def _difference_of(
    path: str, kind: str, make: Any, results: Sequence[Named], context: Context
) -> Difference | None:
    """Return the first result that errs by more than the rounding of one layer."""
    for reference, ours in zip(context.references, results, strict=True):
        far = _far(path, make, reference, ours, context)
        if far is None:
            continue
        name, relative, limit = far
        group, _, short = name.partition(".")
        of = f"layer {path}" if path else "the model"
        what = f"the output of {of} ({kind})"
        if group == "gradients":
            what = f"the gradient of {short}"
        return Difference(
            step=reference.inputs.step,
            description=f"{what} if {of} ({kind}) alone computes in {context.dtype}",
            quantity=group,
            name=short,
            layer=path,
            relative=_finite(relative),
            tolerance=limit,
        )
    return None


def _far(
    path: str, make: Any, reference: Reference, ours: Named, context: Context
) -> tuple[str, float, float] | None:
    """Return a result that is too far off, its deviation and its tolerance, or None.

    Deviations are norms of whole arrays. Errors of single elements average out in
    them, so they are sharper than the largest element:

        |r − r̂| ≤ 4 (spread + ε max(tiny, |r̂|))        ε, tiny: of float32
    """
    exact = reference.results
    inputs = reference.inputs
    trees = inputs.carry, *inputs.batch
    # outputs first: the gradients follow from them
    names = sorted(ours, key=lambda name: name.startswith("gradients."))
    spreads = dict.fromkeys(names, 0.0)
    single = precisions.epsilon("float32")
    worst: tuple[str, float, float] | None = None
    for stage, sampling in enumerate(STAGES):
        try:
            for sample in deviations(
                *(make, reference.workload, trees, context.dtype),
                samples=sampling.samples,
                factor=sampling.factor,
                seed=stage,
                alone=path,
                exact=exact,
            ):
                for name, leaf in sample.items():
                    spreads[name] = max(spreads[name], math.sqrt(_square(leaf)))
        except Exception:  # a custom layer may accept only NumPy arrays
            return None
        worst = None
        for name in names:
            size = math.sqrt(_square(exact[name]))
            with np.errstate(all="ignore"):
                far = math.sqrt(_square(ours[name] - exact[name]))
            allowed = FACTOR * (spreads[name] + single * size + 1e-30)
            if not math.isfinite(allowed) or far <= allowed:
                continue
            worst = name, far / (size or 1.0), allowed / (size or 1.0)
            break
        if worst is None:
            return None
    return None if reference.overflows_inside(context.dtype) else worst


def _layers_to_keep(layers: Sequence[HalfLayer]) -> tuple[str, ...]:
    """Return the fewest layers that cause most of the errors, in their order in text.

    The errors of layers are nearly independent, so their squares add up. The layers
    with the largest errors are kept until they cause at least 3/4 of the sum.
    """
    squares = [_or_infinity(each.gradient_error) ** 2 for each in layers]
    if not any(squares):
        return ()
    if math.inf in squares:
        return tuple(
            each.path
            for each, square in zip(layers, squares, strict=True)
            if square == math.inf
        )
    total = sum(squares)
    removed = 0.0
    keep = []
    for each, square in zip(layers, squares, strict=True):
        if removed >= REMOVED * total:
            break
        keep.append(each.path)
        removed += square
    return tuple(keep)


# --- the training ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Ending:
    """The ends of trainings: in half precision, in float32, reference and control."""

    loss: float | None
    float32_loss: float | None
    reference_loss: float | None
    control_loss: float | None
    metric: float | None
    float32_metric: float | None
    reference_metric: float | None
    control_metric: float | None
    loss_allowed: float
    metric_allowed: float | None
    float32_diverges: bool
    last: int

    @classmethod
    def of(
        cls,
        task: Task,
        trained: Run,
        plain: Result | None,
        control: Run,
        context: Context,
    ) -> "_Ending":
        """Return the endings of a training and of those that it is compared with."""
        reference = context.reference
        reference_loss = _tail(reference.losses, task)
        fall = abs(reference.losses[0] - (reference_loss or 0.0))
        plain_losses = plain.losses if plain and plain.losses else ()
        return cls(
            loss=_tail(trained.losses, task),
            float32_loss=_tail(plain_losses, task),
            reference_loss=reference_loss,
            control_loss=_tail(control.losses, task),
            metric=_finite(trained.metric),
            float32_metric=_finite(plain.test_metric) if plain else None,
            reference_metric=_finite(reference.metric),
            control_metric=_finite(control.metric),
            loss_allowed=SHARE * fall,
            metric_allowed=_metric_allowed(task, trained),
            float32_diverges=bool(plain_losses) and _tail(plain_losses, task) is None,
            last=len(trained.losses),
        )

    @property
    def answer(self) -> Literal["yes", "worse", "no"]:
        """The answer, if the device computes single steps correctly."""
        if self.loss is None:
            return "no"
        return "yes" if self._is_close(0.0) else "worse"

    @property
    def is_explained(self) -> bool:
        """True if rounding of this size alone may make the training end like this."""
        if self.control_loss is None or self.float32_diverges:
            return True  # these do not stay finite either
        return self.loss is not None and self._is_close(SLACK)

    def _is_close(self, slack: float) -> bool:
        """Return whether the training ends as in float32.

        slack: allow this many times as much as the control run is off.
        """
        plain_loss = _first_known(self.float32_loss, self.reference_loss)
        if plain_loss is not None and self.loss is not None:
            moved = _gap(self.control_loss, self.reference_loss)
            if self.loss - plain_loss > self.loss_allowed + slack * moved:
                return False
        plain_metric = _first_known(self.float32_metric, self.reference_metric)
        if plain_metric is None or self.metric_allowed is None:
            return True
        moved = _gap(self.control_metric, self.reference_metric)
        allowed = self.metric_allowed + slack * moved
        return _gap(self.metric, plain_metric, unknown=math.inf) <= allowed

    def not_checked(self, context: Context) -> list[NotChecked]:
        """Return a finding if nothing explains how badly the training ends."""
        if self.answer == "yes" or self.is_explained:
            return []
        loss = "not finite" if self.loss is None else f"{self.loss:.3g}"
        reason = (
            f"its loss is {loss} in the last epoch, and {self.control_loss:.3g} in a "
            f"control run with rounding of that size: numbers may leave the range of "
            f"{context.dtype}, or the device may be wrong at a step that was not "
            "compared"
        )
        return [
            NotChecked(
                step=self.last,
                description=f"the training in {context.dtype}",
                quantity="outputs",
                name="",
                layer=None,
                relative=None,
                tolerance=None,
                reason=reason,
            )
        ]


def _tail(losses: Sequence[float | None], task: Task) -> float | None:
    """Return the mean loss over the last epoch; None if unknown or not finite."""
    steps = math.ceil(len(task.train) / task.workload.batch_size)
    last = [math.nan if loss is None else loss for loss in losses[-steps:]]
    return _finite(float(np.mean(last))) if last else None


def _metric_allowed(task: Task, trained: Run) -> float | None:
    """Return two standard errors of the metric's mean over the test set.

    2 % of the metric if it is not a number for each example.
    """
    if task.workload.metric is None or trained.metric is None:
        return None
    with np.errstate(all="ignore"):
        values = metric_values(task.workload, trained.outputs, task.test.target)
        is_array = isinstance(values, np.ndarray)
        if is_array and values.ndim and math.isclose(values.mean(), trained.metric):
            per_example = values.reshape(len(values), -1).mean(axis=1)
            return _finite(2.0 * float(per_example.std()) / len(values) ** 0.5)
    return _finite(SHARE * abs(trained.metric))


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _or_infinity(number: float | None) -> float:
    return math.inf if number is None else number


def _first_known(*numbers: float | None) -> float | None:
    return next((number for number in numbers if number is not None), None)


def _gap(a: float | None, b: float | None, unknown: float = 0.0) -> float:
    return unknown if a is None or b is None else abs(a - b)


# --- words ----------------------------------------------------------------------------


def _sentence(half: HalfPrecision, ending: _Ending, task: Task, differs: bool) -> str:
    """Return the answer in words."""
    measured = task.workload.measured
    if differs:
        return "No: the device computes wrong numbers."
    if half.loss is None:
        return (
            "No: the loss is not a finite number at the end of the training"
            f" (float32: {_shown(half.float32_loss)})." + _advice(half, measured)
        )
    figures = _figures(half, measured)
    if half.answer == "yes":
        return f"Yes: {figures}. No layer needs to stay in float32."
    cause = ""
    if ending.is_explained:
        moved = f"loss {_shown(half.control_loss)}"
        if measured and half.control_test_metric is not None:
            moved = f"{measured} {_shown(half.control_test_metric, measured)}"
        cause = f" Rounding of this size alone has this effect ({moved})."
    return f"It trains, but ends worse: {figures}.{cause}" + _advice(half, measured)


def _figures(half: HalfPrecision, measured: str | None) -> str:
    """Return the metric if there is one, and the loss, next to those of float32."""
    figures = [("loss", half.loss, half.float32_loss)]
    if measured and half.test_metric is not None:
        figures.insert(0, (measured, half.test_metric, half.float32_test_metric))
    return ", ".join(
        f"{name} {_shown(ours, name)} (float32: {_shown(theirs, name)})"
        for name, ours, theirs in figures
    )


def _advice(half: HalfPrecision, measured: str | None) -> str:
    """Say what keeping layers in float32 changes."""
    if not half.keep:
        return ""
    what, number = "loss", half.kept_loss
    if measured and half.kept_test_metric is not None:
        what, number = measured, half.kept_test_metric
    listed = ", ".join(path or "(the model)" for path in half.keep)
    layers = "layers" if len(half.keep) > 1 else "layer"
    return f" With {layers} {listed} in float32: {what} {_shown(number, what)}."


def _shown(number: float | None, name: str = "loss") -> str:
    """Return a number in words; an accuracy in percent."""
    if number is None:
        return "not finite"
    return f"{100 * number:.1f} %" if "accuracy" in name else f"{number:.4g}"
