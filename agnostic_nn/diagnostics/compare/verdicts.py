"""Judging: what of a run agrees with the reference, what differs, and what cannot be judged.

Probes, which start from the same numbers, are judged first. How far rounding alone takes each of
their results is measured, on the host, and what lies further off differs. Only where that cannot
be measured are the roundings of one step counted instead.

The training as a whole is judged by the roundings of all its steps. Where it lies further off, and
all probes agree, it is compared with control runs (see `controls`): as far as rounding alone took
these, a difference is no evidence. That part is named as not judged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...core.backend import Backend
from ...core.trees import leaves, named_leaves
from ..bisect.noise import rounded
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
    inside_predictions,
)
from .report import PROBED, TRAINED
from .rounding import Chains, layer_of
from .running import Run

__all__ = [
    "AGREES",
    "DIFFERS",
    "FAILED",
    "NOT_JUDGED",
    "Context",
    "Judgement",
    "divergence",
    "judge",
    "probes_agree",
]

AGREES, DIFFERS, NOT_JUDGED, FAILED = "agrees", "differs", "not judged", "failed"
FACTOR = 4.0  # of what rounding did when it was measured
SLACK = 16.0  # of how far control runs came: they are few samples
DIVERGES = 1e3  # times the first loss
UNKNOWN = 0.1  # of its own size: a control run so far off says nothing any more


@dataclass(frozen=True)
class Context:
    """What runs in one dtype are judged by.

    nothing: parameters whose gradient is 0 but for rounding; unprobed: steps whose numbers the
    dtype cannot hold.
    """

    dtype: str
    reference: Run
    references: list[Reference]
    unprobed: list[int]
    chains: Chains
    nothing: set[str]

    @property
    def epsilon(self) -> float:
        """From 1 to the next number of the dtype."""
        return float(np.finfo(self.dtype).eps)

    def allowed(self, chain: int) -> float:
        """How far rounding may take a number after so many roundings."""
        return tolerance(self.epsilon, chain)

    def drift(self, done: Run) -> Drift:
        """How far a whole training lies from the reference's."""
        return drift(done, self.reference, self.dtype, self.chains, self.nothing)


@dataclass
class Judgement:
    """What came of judging a run: deviations by group and name, differences, what is not judged."""

    deviations: dict[str, dict[str, Entry]]
    differences: list[Entry] = field(default_factory=list)
    not_judged: list[Entry] = field(default_factory=list)
    loss_deviations: list[float] = field(default_factory=list)
    control: Entry | None = None

    @property
    def status(self) -> str:
        """The verdict in a word or two."""
        if self.differences:
            return DIFFERS
        return NOT_JUDGED if self.not_judged else AGREES


def judge(
    done: Run,
    context: Context,
    same_start: bool,
    backend: Backend,
    controls: Callable[[], dict[str, Drift]],
) -> Judgement:
    """The judgement on a run.

    controls: makes control runs, by name; called only where the training leaves its tolerance.
    """
    found = Judgement({group: {} for group in (*PROBED, *TRAINED)})
    with np.errstate(all="ignore"):
        if not same_start:
            found.differences.append(_found("start", "", 0, context))
        for step in context.unprobed:
            why = f"{context.dtype} cannot hold the numbers of the reference there"
            found.not_judged.append(_found("probe", "", step, context) | {"why": why})
        for theirs, ours in zip(context.references, done.probes, strict=True):
            _judge_probe(found, theirs, ours, context, backend)
        _judge_training(found, done, context, controls)
    places = _places(context.chains)
    layers = found.deviations["layers"]
    names = sorted(layers, key=lambda name: places.get(name.partition("[")[0], len(places)))
    found.deviations["layers"] = {name: layers[name] for name in names}
    found.differences.sort(key=lambda each: _turn(each, context.chains, places))
    return found


def _places(chains: Chains) -> dict[str, int]:
    """The layers by their paths, in the order of computation."""
    # the model comes last, though a layer inside may be computed once more on the way back
    inner = [path for path in chains.outputs if path]
    return {path: place for place, path in enumerate([*inner, ""])}


def _turn(each: Entry, chains: Chains, places: dict[str, int]) -> tuple:
    """When a difference comes: by step, then in the order in which a step computes its parts."""
    order = ("start", *PROBED, *TRAINED)
    inside = 0
    if each["quantity"] == "layers":
        inside = places.get(each["layer"], len(places))
    elif each["quantity"] == "gradients":
        inside = chains.gradients.get(layer_of(each["name"], chains.gradients), chains.step)
    return each["step"], order.index(each["quantity"]), inside


# --- words ------------------------------------------------------------------------------


def _found(
    quantity: str, name: str, step: int, context: Context, entry: Entry | None = None
) -> Entry:
    """A difference, or what is not judged, as an entry of the report."""
    layer = _layer_of(quantity, name, context.chains)
    about = context.chains.about.get(layer, "") if layer is not None else ""
    return {
        "step": step,
        "what": _in_words(quantity, name, layer, about.partition("(")[0]),
        "quantity": quantity,
        "name": name,
        "layer": layer,
        "relative": entry and entry["relative"],
        "tolerance": entry and entry["tolerance"],
    }


def _layer_of(quantity: str, name: str, chains: Chains) -> str | None:
    """The path of the layer that a result belongs to; None if it is of no single layer."""
    if quantity in ("layers", "predictions"):
        return name.partition("[")[0]
    if quantity in ("gradients", "parameters", "states", "trained_state", "updates"):
        return None if name.startswith("moments.") else layer_of(name, chains.outputs)
    return None


def _in_words(quantity: str, name: str, layer: str | None, kind: str) -> str:
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


# --- probes -----------------------------------------------------------------------------


def _judge_probe(
    found: Judgement, theirs: Reference, ours: Named, context: Context, backend: Backend
) -> None:
    step = theirs.given.step
    for name in theirs.results:
        group, _, short = name.partition(".")
        entry, why = _probed(name, ours[name], theirs, context)
        if why is not None:
            found.not_judged.append(_found(group, short, step, context, entry) | {"why": why})
            entry["tolerance"] = None
        elif is_far(entry):
            predicts = group == "predictions"
            place = _place_of_prediction(backend, theirs, context) if predicts else short
            found.differences.append(_found(group, place, step, context, entry))
        worst = found.deviations[group].get(short)
        if worst is None or _ratio(entry) > _ratio(worst):
            found.deviations[group][short] = entry


def probes_agree(probes: list[Named], context: Context) -> bool:
    """Whether no result of the probes differs by more than rounding."""
    with np.errstate(all="ignore"):
        for theirs, ours in zip(context.references, probes, strict=True):
            for name in theirs.results:
                entry, why = _probed(name, ours[name], theirs, context)
                if why is None and is_far(entry):
                    return False
    return True


def _ratio(entry: Entry) -> float:
    """How far off, measured by the tolerance: what is not judged comes last."""
    if entry["tolerance"] is None:
        return -1.0
    if entry["tolerance"] and math.isfinite(entry["relative"]):
        return entry["relative"] / entry["tolerance"]
    return math.inf if is_far(entry) else 0.0


def _probed(name: str, ours: Any, theirs: Reference, context: Context) -> tuple[Entry, str | None]:
    """How far a result of a probe is off, and why it cannot be judged, if it cannot."""
    expected, dtype, step = theirs.results[name], context.dtype, theirs.given.step
    scale, limit = _scale_and_limit(name, theirs, context)
    entry = entry_of(ours, expected, dtype, limit, step, scale)
    if expected.dtype.kind != "f":
        return entry, None
    if not largest(expected) <= float(np.finfo(dtype).max):
        return entry, f"{dtype} cannot hold it"
    if not math.isfinite(entry["absolute"]) and theirs.overflows(name, dtype):
        return entry, f"{dtype} overflows on the way to it"
    measured = _measured(ours, expected, scale, step, context, partial(theirs.spread, name, dtype))
    if measured is not None or not is_far(entry):
        return measured or entry, None
    unknown = name.removeprefix("gradients.") in context.nothing
    return entry, "it is 0 but for rounding, whose size cannot be measured" if unknown else None


def _measured(
    ours: Any,
    expected: np.ndarray,
    scale: float,
    step: int,
    context: Context,
    spread: Callable[[int], float],
) -> Entry | None:
    """How far a result is off, held to rounding as measured; None if that cannot be measured.

        tolerance = (4 (spread + tiny) + ε max |expected|) / max(scale, max |expected|)

    spread(stage) is how far rounding takes the worst element, as sampled in the stages up to that
    one, by errors as large as libraries allow themselves; 4 is for what so few runs do not reach.
    ε is for the rounding of constants, and what is below tiny, the smallest normal number,
    compilers may take for 0. `bisect` has the same rule.
    """
    tiny, size = float(np.finfo(context.dtype).tiny), largest(expected)
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


def _scale_and_limit(name: str, theirs: Reference, context: Context) -> tuple[float, float]:
    """What a deviation is relative to, at least, and how large it may be."""
    group, _, short = name.partition(".")
    chains, results, allowed = context.chains, theirs.results, context.allowed
    if group == "layers":
        return 0.0, allowed(chains.outputs.get(short.partition("[")[0], chains.step))
    if group == "loss":
        return theirs.scale, allowed(chains.loss)
    if group == "gradients":
        chain = chains.gradients.get(layer_of(short, chains.gradients), chains.step)
        every = (largest(leaf) for n, leaf in results.items() if n.startswith("gradients."))
        return max(every, default=0.0) if short in context.nothing else 0.0, allowed(chain)
    if group == "states":
        path = layer_of(short, chains.outputs)
        limit = allowed(chains.outputs.get(path, chains.step))
        return state_scale(results, path, "states."), limit
    if group == "updates":
        return 0.0, _of_update(short, theirs, context)
    return 0.0, allowed(chains.predictions or chains.step)


def _of_update(short: str, theirs: Reference, context: Context) -> float:
    """An update is a small change: it is rounded as such, and then as part of a sum."""
    limit = context.allowed(context.chains.update)
    after = theirs.results[f"updates.{short}"]
    before = dict(named_leaves(theirs.given.carry[0])).get(short)
    size = largest(after)
    if before is None or not size:
        return limit
    return context.epsilon + limit * largest(after - np.asarray(before, np.float64)) / size


def _place_of_prediction(backend: Backend, theirs: Reference, context: Context) -> str:
    """The first layer whose prediction is off; the model itself if that of no layer is."""
    params, state, _ = theirs.given.carry
    trees = params, state, theirs.given.x
    places = _places(context.chains)
    for depth in (None, 1):
        function = inside_predictions(theirs.workload.model, depth)
        try:
            ours = flat(backend.to_numpy(backend.jit(function)(*backend.asarray(trees))))
            expected = exact(function, *trees)
        except Exception:  # a loop that is compiled keeps to itself what is inside
            continue
        spread = _spread_of(function, trees, context)
        paths = {name: name.removeprefix("layers.").partition("[")[0] for name in expected}
        for name in sorted(expected, key=lambda name: places.get(paths[name], len(places))):
            if not _holds(name, ours[name], expected[name], spread, context):
                return paths[name]
    return ""


def _spread_of(function: Callable, trees: tuple, context: Context) -> dict[str, float]:
    """How far rounding takes each result of a function, by name; empty if that is unknown."""
    drawn = max(context.epsilon, 2.0**-40)  # float64 itself would round less away
    try:
        _, spreads = rounded(function, *trees, epsilon=drawn)
    except Exception:  # a custom layer may take no arrays but NumPy's
        return {}
    return {name: far * context.epsilon / drawn for name, far in spreads.items()}


def _holds(
    name: str, ours: Any, expected: np.ndarray, spread: dict[str, float], context: Context
) -> bool:
    """Return whether a prediction agrees to rounding.

    Rounding is as measured (`spread`); where it could not be measured, as counted.
    """
    far = spread.get(name, math.inf)
    entry = _measured(ours, expected, 0.0, 0, context, lambda stage: far)
    limit = context.allowed(context.chains.predictions or context.chains.step)
    return not is_far(entry or entry_of(ours, expected, context.dtype, limit, 0))


# --- the training as a whole ------------------------------------------------------------


def _judge_training(
    found: Judgement, done: Run, context: Context, controls: Callable[[], dict[str, Drift]]
) -> None:
    ours = context.drift(done)
    found.loss_deviations = ours.losses
    found.deviations |= {group: dict(entries) for group, entries in ours.entries.items()}
    left = [t for t, d in enumerate(ours.losses, 1) if not d <= ours.limits[t - 1]]
    far = [(g, n) for g in TRAINED[1:] for n, each in ours.entries[g].items() if is_far(each)]
    if not left and not far:
        return
    samples = controls()
    most = _most(list(samples.values()), len(ours.losses))
    soon = _soon(most)
    lost = _lost(soon, context)
    wrong = [t for t in left if t < lost and not ours.losses[t - 1] <= SLACK * soon[t - 1]]
    last, first = len(ours.losses), min(left, default=len(ours.losses))
    found.control = _control(samples, ours.limits, most, first, context)
    cause = _why(found.control, first, context)
    if wrong:
        entry = {"relative": ours.losses[wrong[0] - 1], "tolerance": ours.limits[wrong[0] - 1]}
        found.differences.append(_found("losses", "", wrong[0], context, entry))
    elif left:
        entry = {"relative": ours.losses[first - 1], "tolerance": ours.limits[first - 1]}
        found.not_judged.append(_found("losses", "", first, context, entry) | {"why": cause})
        entry = found.deviations["losses"][""]
        found.deviations["losses"][""] = entry | {"tolerance": None}
    for group, name in far:
        entry = ours.entries[group][name]
        reached = max(
            (_reached(each, group, name, context) for each in samples.values()), default=0.0
        )
        explained = lost <= last or _size(entry) <= SLACK * reached
        if wrong or not explained:
            found.differences.append(_found(group, name, last, context, entry))
            continue
        if group == "outputs" and not _follows(done, name, context):
            what = f"{_in_words(group, name, None, '')}, from its own parameters"
            found.differences.append(_found(group, name, last, context, entry) | {"what": what})
            continue
        follows = left and lost <= last
        why = cause if follows else _why_at_end(group, name, reached, context)
        found.not_judged.append(_found(group, name, last, context, entry) | {"why": why})
        found.deviations[group][name] = entry | {"tolerance": None}


def _follows(done: Run, name: str, context: Context) -> bool:
    """Whether outputs after training are what the parameters and the state of the run make."""
    if not context.references:
        return True
    reference = context.references[0]
    predict = functions(reference.workload)["predict"]
    rows = chosen_rows(len(leaves(done.outputs)[0]))
    trees = done.params, done.state, reference.given.x
    path = name.removeprefix("y")
    ours = flat(done.outputs)[path.removeprefix(".")][rows]
    expected = exact(predict, *trees)[f"predictions.{name}"]
    if not np.all(np.isfinite(expected)) or not largest(expected) < np.finfo(context.dtype).max:
        return True  # nothing is known of it
    spread = _spread_of(predict, trees, context)
    return _holds(f"predictions.{name}", ours, expected, spread, context)


def _size(entry: Entry, unit: str = "relative") -> float:
    return math.inf if math.isnan(entry[unit]) else entry[unit]


def _reached(control: Drift, group: str, name: str, context: Context) -> float:
    """How far a control run came, in what was reached at the end.

    An optimizer that jumps, as Lion does with signs, jumps elsewhere in each run. So a parameter
    may be as far off as any, those left aside whose gradient is nothing but rounding.
    """
    entries = control.entries[group]
    own = entries[name]
    if group != "parameters" or not own["absolute"] < math.inf or not own["scale"]:
        return _size(own)
    others = (_size(e, "absolute") for n, e in entries.items() if n not in context.nothing)
    return max(_size(own), max(others, default=0.0) / own["scale"])


def _most(samples: list[Drift], steps: int) -> list[float]:
    """How far the furthest of control runs has come until each step."""
    most = np.zeros(steps)
    for each in samples:
        off = np.asarray(each.losses)
        most = np.maximum(most, np.where(np.isnan(off), np.inf, off))
    return np.maximum.accumulate(most).tolist()


def _soon(most: list[float]) -> list[float]:
    """The same until soon after each step: no two runs part at the same one."""
    last = len(most) - 1
    return [most[min(last, t + 2 + t // 20)] for t in range(len(most))]


def _lost(most: list[float], context: Context) -> int:
    """The first step from which nothing can be known of a loss."""
    end = math.sqrt(float(np.finfo(context.dtype).max))  # what is larger has no square
    for t, (far, loss) in enumerate(zip(most, context.reference.losses, strict=True), 1):
        if not far < UNKNOWN or not abs(loss) <= end:
            return t
    return len(most) + 1


def _control(
    samples: dict[str, Drift], limits: list[float], most: list[float], step: int, context: Context
) -> Entry:
    """What control runs show, as an entry of the report."""

    def left(losses: list[float]) -> int | None:
        return next((t for t, d in enumerate(losses, 1) if not d <= limits[t - 1]), None)

    return {
        "step": step,
        "magnification": most[step - 1] / context.epsilon,
        "runs": [{"name": n, "left_tolerance": left(each.losses)} for n, each in samples.items()],
    }


def _why(control: Entry, step: int, context: Context) -> str:
    grown = control["magnification"]
    times = f"by {grown:.2g}" if math.isfinite(grown) else "beyond all numbers"
    said = f"this training magnifies rounding {times} by step {step}"
    diverges = divergence(context.reference.losses, context.reference.scales)
    return f"{said}, and it diverges: {diverges}" if diverges else said


def divergence(losses: list[float], scales: list[float]) -> str:
    """A sentence on how large the loss of the reference becomes; none if it does not diverge."""
    finite = [abs(loss) for loss in losses if math.isfinite(loss)]
    most, ended = max(finite, default=math.inf), len(finite) < len(losses)
    if not ended and most <= DIVERGES * scales[0]:
        return ""
    step = next((t for t, loss in enumerate(losses, 1) if not math.isfinite(loss)), 0)
    ending = f" and is not a finite number from step {step} on" if ended else ""
    return f"the loss of the float64 reference itself reaches {most:.2g}{ending}"


def _why_at_end(group: str, name: str, reached: float, context: Context) -> str:
    if group == "parameters" and name in context.nothing:
        return (
            "its gradient is 0 but for rounding, and the optimizer makes whole steps of that, "
            "different ones on each backend"
        )
    size = f"{reached:.2g}" if math.isfinite(reached) else "any distance"
    return f"rounding alone takes it as far as {size} in a control run"
