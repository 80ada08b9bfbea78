"""Judge a run: what agrees with the reference, what differs, what cannot be checked.

Probes are judged first, because they start from the same numbers on both sides. On the
host, the effect of rounding on each of their results is measured; a result that
deviates further differs. If the effect of rounding cannot be measured, the roundings of
one step are counted instead.

The training as a whole is judged by counting the roundings of all its steps. If it
deviates further although all probes agree, it is compared with control runs (see
`controls`). A deviation that rounding alone causes in a control run proves nothing, so
it is reported as not checked.

In half precision only the probes are judged. Over a whole training, the tolerance of
counted roundings would exceed the numbers themselves; `half` describes that training
next to others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from ...core import precisions
from ...core.backend import Backend
from ...core.trees import leaves, named_leaves
from .deviation import tolerance
from .drift import Drift, Entry, drift, entry_of, is_far, largest, state_scale
from .probes import (
    STAGES,
    Named,
    Reference,
    chosen_rows,
    exact,
    flat,
    functions,
    in_dtype,
    inside_predictions,
    spreads_of,
    stored,
)
from .rounding import Chains, layer_of
from .running import Run
from .schema import (
    PROBED,
    TRAINED,
    ControlRun,
    ControlRuns,
    Difference,
    NotChecked,
    Status,
)
from .workloads import Workload

__all__ = [
    "AGREES",
    "DIFFERS",
    "FAILED",
    "NOT_CHECKED",
    "Context",
    "Judgement",
    "divergence",
    "judge",
    "probes_agree",
]

AGREES: Final = "agrees"
DIFFERS: Final = "differs"
NOT_CHECKED: Final = "not checked"
FAILED: Final = "failed"

# allowed: this many times the measured effect of rounding, which is a small sample
FACTOR = 4.0
# not checked: up to this many times the drift of control runs, which are few
SLACK = 16.0
# the training diverges if its loss exceeds this many times the first loss
DIVERGES = 1e3
# a control run with this relative deviation of the loss says nothing any more
UNKNOWN = 0.1


@dataclass(frozen=True)
class Context:
    """The reference, its probes and the roundings that runs in one dtype are judged by.

    zero_gradients: parameters whose gradient is zero up to rounding; unprobed: steps
    whose numbers the dtype cannot represent.
    """

    dtype: str
    reference: Run
    references: list[Reference]
    unprobed: list[int]
    chains: Chains
    zero_gradients: set[str]

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next number of the dtype."""
        return precisions.epsilon(self.dtype)

    @property
    def is_half(self) -> bool:
        """True if the layers compute in 16 bits."""
        return self.dtype in precisions.HALVES

    def of(self, group: str) -> "Context":
        """Return the context for a group of results: updates are never in 16 bits."""
        if group == "updates" and self.is_half:
            return replace(self, dtype=stored(self.dtype))
        return self

    def allowed(self, chain: int) -> float:
        """Return the relative deviation that `chain` roundings in a row may cause."""
        return tolerance(self.epsilon, chain)

    def drift(self, run: Run) -> Drift:
        """Return the deviations of a whole training from the reference."""
        return drift(run, self.reference, self.dtype, self.chains, self.zero_gradients)


@dataclass
class Judgement:
    """The result of judging a run; deviations are by group and name."""

    deviations: dict[str, dict[str, Entry]]
    differences: list[Difference] = field(default_factory=list)
    not_checked: list[NotChecked] = field(default_factory=list)
    loss_deviations: list[float] = field(default_factory=list)
    control: ControlRuns | None = None

    @property
    def status(self) -> Status:
        """The verdict in a word or two."""
        if self.differences:
            return DIFFERS
        return NOT_CHECKED if self.not_checked else AGREES


def judge(
    run: Run,
    context: Context,
    same_start: bool,
    backend: Backend,
    controls: Callable[[], dict[str, Drift]],
) -> Judgement:
    """Judge a run.

    controls: makes control runs, by name; called only if the training leaves its
    tolerance.
    """
    judgement = Judgement({group: {} for group in (*PROBED, *TRAINED)})
    with np.errstate(all="ignore"):
        if not same_start:
            judgement.differences.append(_difference("start", "", 0, context))
        for step in context.unprobed:
            reason = f"{context.dtype} cannot hold the reference's numbers at that step"
            finding = _difference("probe", "", step, context)
            judgement.not_checked.append(_not_checked(finding, reason))
        for reference, results in zip(context.references, run.probes, strict=True):
            _judge_probe(judgement, reference, results, context, backend)
        if context.is_half:
            _describe_training(judgement, context.drift(run))
        else:
            _judge_training(judgement, run, context, controls)
    places = _places(context.chains)
    layers = judgement.deviations["layers"]
    names = sorted(
        layers, key=lambda name: places.get(name.partition("[")[0], len(places))
    )
    judgement.deviations["layers"] = {name: layers[name] for name in names}
    judgement.differences.sort(key=lambda each: _order(each, context.chains, places))
    return judgement


def _places(chains: Chains) -> dict[str, int]:
    """Return the position of each layer in the order of computation, by its path."""
    # The model itself comes last, although a layer in it may be recomputed in backward.
    inner = [path for path in chains.outputs if path]
    return {path: place for place, path in enumerate([*inner, ""])}


def _order(
    difference: Difference, chains: Chains, places: dict[str, int]
) -> tuple[int, int, int]:
    """Return the sort key of a difference: its step, then the order of computation."""
    quantity = difference.quantity
    inside = 0
    if quantity == "layers":
        inside = places.get(difference.layer or "", len(places))
    elif quantity == "gradients":
        layer = layer_of(difference.name, chains.gradients)
        inside = chains.gradients.get(layer, chains.step)
    quantities = ("start", *PROBED, *TRAINED)
    return difference.step, quantities.index(quantity), inside


# --- descriptions ---------------------------------------------------------------------


def _difference(
    quantity: str,
    name: str,
    step: int,
    context: Context,
    relative: float | None = None,
    limit: float | None = None,
) -> Difference:
    """Return a difference, described in words."""
    layer = _layer_of(quantity, name, context.chains)
    about = context.chains.about.get(layer, "") if layer is not None else ""
    return Difference(
        step=step,
        description=_description(quantity, name, layer, about.partition("(")[0]),
        quantity=quantity,
        name=name,
        layer=layer,
        relative=relative,
        tolerance=limit,
    )


def _not_checked(difference: Difference, reason: str) -> NotChecked:
    return NotChecked(**vars(difference), reason=reason)


def _layer_of(quantity: str, name: str, chains: Chains) -> str | None:
    """Return the path of the layer of a result; None if it belongs to no single one."""
    if quantity in ("layers", "predictions"):
        return name.partition("[")[0]
    if quantity in ("gradients", "parameters", "states", "trained_state", "updates"):
        return None if name.startswith("moments.") else layer_of(name, chains.outputs)
    return None


def _description(quantity: str, name: str, layer: str | None, kind: str) -> str:
    """Describe a result in words, such as "the gradient of 0.weight (Dense)"."""
    of = f"layer {layer}" + (f" ({kind})" if kind else "") if layer else "the model"
    inside = f" ({kind})" if kind and layer else ""
    return {
        "start": "the starting parameters",
        "probe": "the parts of a step",
        "layers": f"the output of {of}",
        "loss": "the loss of one step",
        "gradients": f"the gradient of {name}{inside}",
        "states": f"the new state {name}{inside}",
        "updates": f"the update of {name}{inside}",
        "predictions": f"the prediction of {of}",
        "losses": "the loss",
        "parameters": f"{name}{inside} after training",
        "trained_state": f"the state {name}{inside} after training",
        "outputs": "the outputs after training" + (f" ({name})" if name != "y" else ""),
    }[quantity]


# --- probes ---------------------------------------------------------------------------


def _judge_probe(
    judgement: Judgement,
    reference: Reference,
    ours: Named,
    context: Context,
    backend: Backend,
) -> None:
    """Judge all results of one probe, and add them to `judgement`."""
    step = reference.inputs.step
    for name in reference.results:
        group, _, short = name.partition(".")
        entry, reason = _probed(name, ours[name], reference, context.of(group))
        figures = entry.relative, entry.tolerance
        if reason is not None:
            finding = _difference(group, short, step, context, *figures)
            judgement.not_checked.append(_not_checked(finding, reason))
            entry = replace(entry, tolerance=None)
        elif is_far(entry):
            place = short
            if group == "predictions":
                place = _place_of_prediction(backend, reference, context)
            finding = _difference(group, place, step, context, *figures)
            judgement.differences.append(finding)
        worst = judgement.deviations[group].get(short)
        if worst is None or _ratio(entry) > _ratio(worst):
            judgement.deviations[group][short] = entry


def probes_agree(probes: list[Named], context: Context) -> bool:
    """Return whether no result of the probes differs by more than rounding."""
    with np.errstate(all="ignore"):
        for reference, ours in zip(context.references, probes, strict=True):
            for name in reference.results:
                group = name.partition(".")[0]
                entry, reason = _probed(name, ours[name], reference, context.of(group))
                if reason is None and is_far(entry):
                    return False
    return True


def _ratio(entry: Entry) -> float:
    """Return the deviation in units of its tolerance; -1 if it is not checked."""
    if entry.tolerance is None:
        return -1.0
    if entry.tolerance and math.isfinite(entry.relative):
        return entry.relative / entry.tolerance
    return math.inf if is_far(entry) else 0.0


def _probed(
    name: str, ours: Any, reference: Reference, context: Context
) -> tuple[Entry, str | None]:
    """Return the deviation of a probe's result, and why it is not checked, or None."""
    expected = reference.results[name]
    dtype = context.dtype
    step = reference.inputs.step
    scale, limit = _scale_and_limit(name, reference, context)
    entry = entry_of(ours, expected, dtype, limit, step, scale)
    if expected.dtype.kind != "f":
        return entry, None
    if not largest(expected) <= precisions.largest(dtype):
        return entry, f"{dtype} cannot hold it"
    if not math.isfinite(entry.absolute) and reference.overflows(name, dtype):
        return entry, f"{dtype} overflows while computing it"
    spread = partial(reference.spread, name, dtype)
    measured = _measured(ours, expected, scale, step, context, spread)
    judged = measured or entry
    if context.is_half and is_far(judged) and reference.overflows_inside(dtype):
        return judged, f"{dtype} overflows while computing it"
    if measured is not None or not is_far(entry):
        return judged, None
    if name.removeprefix("gradients.") in context.zero_gradients:
        return entry, "it is zero up to rounding, and the rounding cannot be measured"
    return entry, None


def _measured(
    ours: Any,
    expected: np.ndarray,
    scale: float,
    step: int,
    context: Context,
    spread: Callable[[int], float],
) -> Entry | None:
    """Return the deviation, with a tolerance from measured rounding; None if unknown.

        tolerance = (4 (spread + tiny) + ε max |expected|) / max(scale, max |expected|)

    spread(stage) is how far rounding moves the worst element, sampled in all stages up
    to that one with errors as large as libraries allow themselves. The factor 4 covers
    what so few samples miss. The term with ε is for the rounding of constants.
    Compilers may treat numbers below tiny, the smallest normal number, as 0. `bisect`
    uses the same rule.
    """
    tiny = precisions.tiny(stored(context.dtype))
    size = largest(expected)
    entry = None
    for stage in range(len(STAGES)):
        far = spread(stage)
        if not math.isfinite(far):
            continue
        allowed = FACTOR * (far + tiny) + context.epsilon * size
        unit = max(scale, size) or allowed
        entry = entry_of(ours, expected, context.dtype, allowed / unit, step, unit)
        if not is_far(entry):
            break
    return entry


def _scale_and_limit(
    name: str, reference: Reference, context: Context
) -> tuple[float, float]:
    """Return the scale of a result's deviation, and its tolerance as counted."""
    group, _, short = name.partition(".")
    chains = context.chains
    results = reference.results
    allowed = context.allowed
    if group == "layers":
        return 0.0, allowed(chains.outputs.get(short.partition("[")[0], chains.step))
    if group == "loss":
        return reference.scale, allowed(chains.loss)
    if group == "gradients":
        chain = chains.gradients.get(layer_of(short, chains.gradients), chains.step)
        if short not in context.zero_gradients:
            return 0.0, allowed(chain)
        sizes = (
            largest(leaf) for n, leaf in results.items() if n.startswith("gradients.")
        )
        return max(sizes, default=0.0), allowed(chain)
    if group == "states":
        path = layer_of(short, chains.outputs)
        limit = allowed(chains.outputs.get(path, chains.step))
        return state_scale(results, path, "states."), limit
    if group == "updates":
        return 0.0, _update_limit(short, reference, context)
    return 0.0, allowed(chains.predictions or chains.step)


def _update_limit(short: str, reference: Reference, context: Context) -> float:
    """Return the tolerance of an updated parameter.

    The change is small and is rounded as such; its sum with the parameter is rounded
    once more.
    """
    limit = context.allowed(context.chains.update)
    after = reference.results[f"updates.{short}"]
    before = dict(named_leaves(reference.inputs.carry[0])).get(short)
    size = largest(after)
    if before is None or not size:
        return limit
    change = largest(after - np.asarray(before, np.float64))
    return context.epsilon + limit * change / size


def _place_of_prediction(
    backend: Backend, reference: Reference, context: Context
) -> str:
    """Return the path of the first layer whose prediction differs; "" for the model."""
    params, state, _ = reference.inputs.carry
    trees = params, state, reference.inputs.x
    places = _places(context.chains)
    for depth in (None, 1):
        make = partial(_inside_predictions, depth)
        ours_in = in_dtype(reference.workload, context.dtype)
        try:
            outputs = backend.jit(make(ours_in))(*backend.asarray(trees))
            ours = flat(backend.to_numpy(outputs))
            expected = exact(make(reference.workload), *trees)
        except Exception:
            continue  # outputs in a compiled loop cannot be returned: look less deep
        spread = spreads_of(make, reference.workload, trees, context.dtype)
        in_order = sorted(
            (
                (name.removeprefix("layers.").partition("[")[0], name)
                for name in expected
            ),
            key=lambda pair: places.get(pair[0], len(places)),
        )
        for path, name in in_order:
            array = ours[name]
            if not _prediction_agrees(name, array, expected[name], spread, context):
                return path
    return ""


def _inside_predictions(depth: int | None, workload: Workload) -> Callable[..., Any]:
    return inside_predictions(workload.model, depth)


def _prediction_agrees(
    name: str,
    ours: Any,
    expected: np.ndarray,
    spread: dict[str, float],
    context: Context,
) -> bool:
    """Return whether a prediction agrees up to rounding.

    Rounding is as measured (`spread`), or as counted if it could not be measured.
    """
    far = spread.get(name, math.inf)
    entry = _measured(ours, expected, 0.0, 0, context, lambda stage: far)
    limit = context.allowed(context.chains.predictions or context.chains.step)
    return not is_far(entry or entry_of(ours, expected, context.dtype, limit, 0))


# --- the training as a whole ----------------------------------------------------------


def _describe_training(judgement: Judgement, ours: Drift) -> None:
    """Add the deviations of a whole training, which are not checked."""
    judgement.loss_deviations = ours.losses
    judgement.deviations |= {
        group: {name: replace(entry, tolerance=None) for name, entry in entries.items()}
        for group, entries in ours.entries.items()
    }


def _judge_training(
    judgement: Judgement,
    run: Run,
    context: Context,
    controls: Callable[[], dict[str, Drift]],
) -> None:
    """Judge losses, parameters, state and outputs of a whole training."""
    ours = context.drift(run)
    judgement.loss_deviations = ours.losses
    judgement.deviations |= {
        group: dict(entries) for group, entries in ours.entries.items()
    }
    far_steps = [t for t, d in enumerate(ours.losses, 1) if not d <= ours.limits[t - 1]]
    far_results = [
        (group, name)
        for group in TRAINED[1:]
        for name, entry in ours.entries[group].items()
        if is_far(entry)
    ]
    if not far_steps and not far_results:
        return
    samples = controls()
    last = len(ours.losses)
    furthest = _furthest(list(samples.values()), last)
    soon = _with_delay(furthest)
    lost = _first_unknown_step(soon, context)
    explainable = [SLACK * far for far in soon]
    wrong = [
        t
        for t in far_steps
        if t < lost and not ours.losses[t - 1] <= explainable[t - 1]
    ]
    first = min(far_steps, default=last)
    magnification = furthest[first - 1] / context.epsilon
    judgement.control = _control(samples, ours.limits, magnification, first)
    cause = _cause(magnification, first, context)
    if far_steps:
        step = wrong[0] if wrong else first
        far = ours.losses[step - 1]
        finding = _difference("losses", "", step, context, far, ours.limits[step - 1])
        if wrong:
            judgement.differences.append(finding)
        else:
            judgement.not_checked.append(_not_checked(finding, cause))
            entry = judgement.deviations["losses"][""]
            judgement.deviations["losses"][""] = replace(entry, tolerance=None)
    for group, name in far_results:
        entry = ours.entries[group][name]
        figures = entry.relative, entry.tolerance
        finding = _difference(group, name, last, context, *figures)
        reaches = [_reached(each, group, name, context) for each in samples.values()]
        reached = max(reaches, default=0.0)
        explained = lost <= last or _size(entry.relative) <= SLACK * reached
        if wrong or not explained:
            judgement.differences.append(finding)
            continue
        if group == "outputs" and not _outputs_follow(run, name, context):
            description = f"{finding.description}, from its own parameters"
            judgement.differences.append(replace(finding, description=description))
            continue
        # If the loss could not be checked either, the results have the same cause.
        same_cause = far_steps and lost <= last
        reason = cause if same_cause else _reason_at_end(group, name, reached, context)
        judgement.not_checked.append(_not_checked(finding, reason))
        judgement.deviations[group][name] = replace(entry, tolerance=None)


def _outputs_follow(run: Run, name: str, context: Context) -> bool:
    """Return whether the final outputs follow from the run's parameters and state."""
    if not context.references:
        return True
    reference = context.references[0]
    workload = reference.workload
    predict = _predict(workload)
    rows = chosen_rows(len(leaves(run.outputs)[0]))
    trees = run.params, run.state, reference.inputs.x
    path = name.removeprefix("y")
    ours = flat(run.outputs)[path.removeprefix(".")][rows]
    expected = exact(predict, *trees)[f"predictions.{name}"]
    most = precisions.largest(context.dtype)
    if not np.all(np.isfinite(expected)) or not largest(expected) < most:
        return True  # there is nothing to compare with
    spread = spreads_of(_predict, workload, trees, context.dtype)
    return _prediction_agrees(f"predictions.{name}", ours, expected, spread, context)


def _predict(workload: Workload) -> Callable[..., Any]:
    return functions(workload)["predict"]


def _size(deviation: float) -> float:
    """Return a deviation, with infinity in place of NaN."""
    return math.inf if math.isnan(deviation) else deviation


def _reached(control: Drift, group: str, name: str, context: Context) -> float:
    """Return how far a result of a control run ended from the reference.

    An optimizer whose step is not continuous, such as Lion with its signs, jumps in
    other parameters in each run. So a parameter may be as far off as any other, except
    those whose gradient is zero up to rounding.
    """
    entries = control.entries[group]
    entry = entries[name]
    reached = _size(entry.relative)
    if group != "parameters" or not entry.absolute < math.inf or not entry.scale:
        return reached
    others = entries.keys() - context.zero_gradients
    furthest = max((_size(entries[other].absolute) for other in others), default=0.0)
    return max(reached, furthest / entry.scale)


def _furthest(samples: list[Drift], steps: int) -> list[float]:
    """Return the largest deviation of the loss in any control run up to each step."""
    furthest = np.zeros(steps)
    for sample in samples:
        losses = np.asarray(sample.losses)
        furthest = np.maximum(furthest, np.where(np.isnan(losses), np.inf, losses))
    up_to_each: list[float] = np.maximum.accumulate(furthest).tolist()
    return up_to_each


def _with_delay(furthest: list[float]) -> list[float]:
    """Return the values of a few steps later: no two runs diverge at the same step."""
    last = len(furthest) - 1
    return [furthest[min(last, t + 2 + t // 20)] for t in range(len(furthest))]


def _first_unknown_step(furthest: list[float], context: Context) -> int:
    """Return the first step from which the loss cannot be checked at all."""
    # The square of a larger loss would overflow.
    end = math.sqrt(precisions.largest(context.dtype))
    pairs = zip(furthest, context.reference.losses, strict=True)
    for t, (far, loss) in enumerate(pairs, 1):
        if not far < UNKNOWN or not abs(loss) <= end:
            return t
    return len(furthest) + 1


def _control(
    samples: dict[str, Drift], limits: list[float], magnification: float, step: int
) -> ControlRuns:
    """Return what control runs show."""
    runs = []
    for name, sample in samples.items():
        pairs = zip(sample.losses, limits, strict=True)
        far_steps = (t for t, (far, limit) in enumerate(pairs, 1) if not far <= limit)
        runs.append(ControlRun(name=name, exceeds_tolerance_at=next(far_steps, None)))
    return ControlRuns(step=step, magnification=magnification, runs=tuple(runs))


def _cause(magnification: float, step: int, context: Context) -> str:
    """Say why the loss cannot be checked from `step` on."""
    is_finite = math.isfinite(magnification)
    times = f"by {magnification:.2g}" if is_finite else "without bound"
    cause = f"this training magnifies rounding {times} by step {step}"
    diverges = divergence(context.reference.losses, context.reference.scales)
    return f"{cause}, and it diverges: {diverges}" if diverges else cause


def divergence(losses: list[float], scales: list[float]) -> str:
    """Say how large the loss of the reference becomes; "" if it does not diverge."""
    finite = [abs(loss) for loss in losses if math.isfinite(loss)]
    most = max(finite, default=math.inf)
    becomes_infinite = len(finite) < len(losses)
    if not becomes_infinite and most <= DIVERGES * scales[0]:
        return ""
    step = next((t for t, loss in enumerate(losses, 1) if not math.isfinite(loss)), 0)
    end = f" and is not a finite number from step {step} on" if becomes_infinite else ""
    return f"the loss of the float64 reference itself reaches {most:.2g}{end}"


def _reason_at_end(group: str, name: str, reached: float, context: Context) -> str:
    """Say why a result after the last step cannot be checked."""
    if group == "parameters" and name in context.zero_gradients:
        return (
            "its gradient is zero up to rounding, and the optimizer turns that "
            "rounding into full-size steps, which differ between backends"
        )
    is_finite = math.isfinite(reached)
    size = f"a relative deviation of {reached:.2g}" if is_finite else "any deviation"
    return f"in a control run, rounding alone causes {size}"
