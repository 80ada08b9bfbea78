"""The campaign: plant each fault, and ask `compare` and `bisect` whether the backends agree.

`nox -s campaign` prints the table and fails if an aim is missed; `nox -s campaign -- --write` also
writes `docs/fault-campaign.md`. Nothing in that page is typed by hand.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.files import write_text
from agnostic_nn.diagnostics.bisect import StageFailed, search
from agnostic_nn.diagnostics.compare import compare, comparison
from agnostic_nn.diagnostics.compare.report import PROBED
from agnostic_nn.display.tables import markdown_table

from .catalogue import Fault, catalogue
from .models import BATCH, MODELS, SEED, workload
from .planting import clean, faulty
from .truth import BEYOND, Effect, effect

__all__ = ["Answer", "Outcome", "bisected", "compared", "remembered", "tried"]

PAGE = Path(__file__).parents[2] / "docs" / "fault-campaign.md"
CAUGHT, LOCATED = 0.99, 0.97  # the aims; and no false alarm
AGREE, DIFFER = "agree", "differ"


@dataclass(frozen=True)
class Answer:
    """What a tool says: a verdict ("agree", "differ", "not judged" or "failed"), and where."""

    verdict: str
    located: bool = False
    said: str = ""
    step: int = 0  # from 1, if `compare` names one


@dataclass(frozen=True)
class Outcome:
    """A fault, its effect, and what each tool says of it.

    again: of `bisect --steps`, as `compare` prints it, where `bisect` alone found nothing.
    """

    fault: Fault
    effect: Effect
    bisect: Answer
    compare: Answer
    again: Answer | None = None


@contextmanager
def remembered() -> Iterator[None]:
    """Compute what the reference makes of the same piece and numbers only once.

    Leave out what `compare` measures besides: memory, the formats of products, costs by layer.
    """
    with ExitStack() as stack:
        for place, name, key in (
            (search, "rounded", lambda f, given, **options: (repr(f), _digest(given))),
            (comparison, "run_reference", lambda task, *_: (task.workload.name, task.seed)),
            (comparison, "_context", lambda task, _, __, dtype: (*_task(task), dtype)),
        ):
            stack.enter_context(patch.object(place, name, _once(getattr(place, name), key)))
        for name in ("_precision", "_memory"):
            stack.enter_context(patch.object(comparison, name, lambda *_: {}))
        stack.enter_context(patch.object(comparison, "_layer_costs", lambda *_: []))
        yield


def _task(task: Any) -> tuple:
    return task.workload.name, task.seed


def _once(function: Callable, key: Callable) -> Callable:
    known: dict[Any, Any] = {}

    def call(*args, **kwargs):
        at = key(*args, **kwargs), tuple(sorted(kwargs.items()))
        if at not in known:
            known[at] = function(*args, **kwargs)
        return known[at]

    return call


def _digest(tree: Any) -> Any:
    if isinstance(tree, dict):
        return tuple((name, _digest(branch)) for name, branch in sorted(tree.items()))
    if isinstance(tree, tuple):
        return tuple(map(_digest, tree))
    array = np.asarray(tree)
    return array.shape, array.dtype.name, array.tobytes()


def tried(fault: Fault) -> Outcome:
    """Plant a fault and ask both tools."""
    outcome = Outcome(fault, effect(fault), bisected(fault), compared(fault))
    if outcome.bisect.verdict != DIFFER and outcome.compare.step > 1:
        return replace(outcome, again=bisected(fault, outcome.compare.step - 1))
    return outcome


def bisected(fault: Fault, steps: int = 1) -> Answer:
    """Ask `bisect` about a backend with a fault."""
    try:
        found = _bisect(fault.model, SEED, clean(), _side(fault), steps)
    except StageFailed as error:
        return Answer("failed", said=str(error))
    first = found.first
    if first is None:
        return Answer(found.status, said=found.verdict)
    place = first.path.partition("#")[0] in fault.places
    right = place and first.part.startswith(fault.parts)
    blamed = first.ratios[0] <= 1.0 < first.ratios[1]
    return Answer(DIFFER, right and blamed, f"{first.name}: {first.part}")


def compared(fault: Fault) -> Answer:
    """Ask `compare` about a backend with a fault."""
    result = _compare(fault.model, SEED, _side(fault))
    first = result["first_difference"] or {}
    said = first.get("description") or result["error"] or ""
    same = (each for each in result["differences"] if each["quantity"] in PROBED)
    right = _is_right(fault, next(same, first))
    return Answer(_verdict(result), right, said, first.get("step") or 0)


def _side(fault: Fault) -> nn.Backend:
    return faulty(fault.changes(), fault.moves() if fault.moves else None)


def _bisect(model: str, seed: int, one: Any, other: Any, steps: int = 1) -> search.Bisection:
    work = workload(model, seed)
    train, _ = work.read()
    given = work.model, work.loss, work.optimizer, train.x, train.target, one, other
    return nn.bisect(*given, steps=steps, batch_size=BATCH, seed=seed)


def _compare(model: str, seed: int, backend: Any) -> dict[str, Any]:
    report = compare(workload(model, seed), [backend], seed=seed, sizes=())
    return report["results"][0]


def _verdict(result: dict[str, Any]) -> str:
    words = {"agrees": AGREE, "differs": DIFFER, "not checked": "not judged"}
    return words.get(result["status"], result["status"])


QUANTITIES = {  # the beginning of a part of `bisect`: what `compare` calls it
    "forward": {"layers", "predictions"},
    "predict": {"predictions"},
    "state": {"states", "predictions"},
    "backward": {"gradients"},
    "random words": {"layers", "states"},
    "value": {"loss"},
    "slope": {"gradients"},
    "update": {"updates"},
    "first update": {"updates"},
    "moments": {"updates"},
    "x": {"layers", "loss", "predictions"},
}


def _is_right(fault: Fault, first: dict[str, Any]) -> bool:
    """Whether the first difference is of the right kind, in the right layer or just before it.

    `compare` sees outputs and gradients, not what a layer returns to the one before it: for a dx
    the gradients of a layer before are right.
    """
    parts = [part for part in QUANTITIES if any(p.startswith(part) for p in fault.parts)]
    right = first.get("quantity") in set().union(*(QUANTITIES[part] for part in parts))
    anywhere = fault.places == ("",) or fault.parts == ("backward: dx",)
    return right and (anywhere or (first.get("layer") or "") in fault.places)


# --- clean runs -------------------------------------------------------------------------


@dataclass(frozen=True)
class Alarms:
    """Of clean runs on a backend: how many, and how many verdicts of each tool are wrong.

    amber: by the tool, the runs of which something is not judged.
    """

    backend: str
    runs: int
    wrong: Counter
    amber: Counter
    said: tuple[str, ...]


BACKENDS = {"numpy": 27, "torch:cpu": 20, "array_api_strict:device1": 2, "jax:cpu": 1}  # a model


def alarms(place: tuple[str, str, int]) -> Alarms | None:
    """Run both tools on a backend and a model without a fault, with other seeds and data."""
    name, model, count = place
    try:
        backend = nn.backend(name)
    except nn.BackendUnavailable as error:
        print(f"{name} is left out: {error}")
        return None
    wrong: Counter = Counter()
    amber: Counter = Counter()
    said = []
    with remembered():
        for seed in range(SEED + 1, SEED + 1 + count):
            bisection = _bisect(model, seed, "numpy", backend)
            result = _compare(model, seed, backend)
            for tool, verdict, what in (
                ("bisect", bisection.status, bisection.verdict),
                ("compare", _verdict(result), result["verdict"]),
            ):
                if verdict == "not judged":
                    amber[tool] += 1
                elif verdict != AGREE:
                    wrong[tool] += 1
                    said.append(f"{tool}, {name}, {model}, seed {seed}: {what}")
    return Alarms(name, count, wrong, amber, tuple(said))


# --- the page ---------------------------------------------------------------------------

HEAD = """# The fault campaign

This page measures how many wrong results `agnostic-nn compare` and `agnostic-nn bisect` catch.
{counted} faults were planted in one of two backends, one at a time, in {models} small models, and
both tools were asked whether the backends agree. Both also ran {runs} times without any fault.

{aims}

{kinds}

- **Catches**: the verdict is that the backends differ.
- **Locates**: the first difference that is named is in the layer with the fault and is of the right
  kind (forward, backward, state, prediction, update and so on); `bisect` must also blame the right
  backend. If the first difference is in the training as a whole, such as the loss of a step,
  `compare` also names the first result from the same numbers that differs, and that one counts.
  It sees the outputs of layers, gradients, states, updates and predictions, but not the gradient
  dx that one layer hands to another. If dx is wrong, any gradient is accepted.
- **With `--steps`**: caught only by the second of two runs. `bisect` judges the second step and a
  prediction after it. If it finds no difference and `compare` names a step, it runs once more with
  the `--steps` that `compare` prints. Faults caught that way are included in the columns before.

## Repeat it

`nox -s campaign` runs the campaign and fails if an aim is missed. `nox -s campaign -- --write` also
writes this page; nothing on it is typed by hand. It takes about a quarter of an hour on one core.
The faults are in `tests/faults/catalogue.py`, a sample of a grid of kinds, layers, sizes and
models, and the models are in `tests/faults/models.py`.

## Faults without an effect

Of {planted} planted faults, {idle} are left out of all tables, because they have no effect beyond
rounding. An example is a constant that is added in front of a norm, which removes it. This is
decided in float64, without either tool (`tests/faults/truth.py`): a fault counts if it takes any
output, loss, gradient, state, parameter, moment or prediction further from its right value than
{beyond:g} times what float32 without a fault is off there, at any of four steps.

## Faults by size

The effect of a fault on the worst result, in multiples of what rounding to float32 does to that
result.

{sizes}

## Predictions

{predictions}

## Runs without a fault

The same models with other seeds and other data. A run is "not judged" if nothing differs but
something could not be judged, which the verdict then names. For `compare` that is every run of the
transformer: the bias of the keys of attention has no gradient but rounding, so what training makes
of it cannot be compared. It may be a single run of another model, in which rounding alone took a
result of the whole training as far in a control run.

{clean}

## Missed

Every counted fault that one of the tools does not catch or does not locate, and every false alarm.

{missed}

## Limits

- The faults are planted in NumPy, in Python code. A fault of a compiler or a device may look
  different.
- The models are small, with {batch} examples a batch. Faults that need large arrays, several
  threads or many steps are not among these.
- A fault with an effect of less than {beyond:g} times rounding is not counted, and neither tool can
  be expected to see it.
"""


def _page(outcomes: list[Outcome], clean_runs: list[Alarms]) -> tuple[str, list[str]]:
    """Return the page, and the aims that are missed."""
    counted = [one for one in outcomes if one.effect.counts]
    kinds = [_row(kind, counted) for kind in dict.fromkeys(one.fault.kind for one in counted)]
    total = _row(None, counted)
    bands = [(BEYOND, 1e2), (1e2, 1e4), (1e4, 1e6), (1e6, np.inf)]
    sizes = []
    for low, high in bands:
        part = [outcome for outcome in counted if low < outcome.effect.largest <= high]
        sizes.append([f"{low:g} to {high:g}", *_row(None, part)[1:-1]])
    greens, said = {}, []
    moved = [one for one in outcomes if one.effect.prediction > BEYOND]
    for tool in ("compare", "bisect"):
        greens[tool] = [one for one in moved if getattr(one, tool).verdict == AGREE]
        said.append(f"`{tool}` says that all agrees for {len(greens[tool])} of these")
    runs = sum(one.runs for one in clean_runs)
    false = {tool: sum(one.wrong[tool] for one in clean_runs) for tool in ("bisect", "compare")}
    shares = {
        "`compare` catches": (_share(counted, lambda o: o.compare.verdict == DIFFER), CAUGHT),
        "`compare` locates": (_share(counted, _placed_by_compare), LOCATED),
        "`bisect` catches": (_share(counted, _caught), CAUGHT),
        "`bisect` locates": (_share(counted, _placed), LOCATED),
    }
    missed = [
        f"{what} {share:.1%}, aim {aim:.0%}" for what, (share, aim) in shares.items() if share < aim
    ]
    missed += [f"{tool}: {n} false alarms in {runs} runs" for tool, n in false.items() if n]
    missed += [
        f"{tool} is green though a prediction differs: {len(g)}" for tool, g in greens.items() if g
    ]
    aims = [f"{what} {share:.1%} (aim {aim:.0%})" for what, (share, aim) in shares.items()]
    aims.append(f"false alarms: {sum(false.values())} in {runs} runs of each tool (aim 0)")
    head = [
        "kind",
        "faults",
        "`compare` catches",
        "locates",
        "`bisect` catches",
        "locates",
        "with `--steps`",
    ]
    clean_rows = []
    for name in dict.fromkeys(one.backend for one in clean_runs):
        part = [one for one in clean_runs if one.backend == name]
        row: list[Any] = [name, sum(one.runs for one in part)]
        for tool in ("compare", "bisect"):
            row += [sum(one.wrong[tool] for one in part), sum(one.amber[tool] for one in part)]
        clean_rows.append(row)
    failures = [
        f"- {one.fault}. `compare`: {_shown(one.compare)}; "
        f"`bisect`: {_shown(one.again or one.bisect)}"
        for one in counted
        if not (_placed_by_compare(one) and _caught(one) and _placed(one))
    ]
    failures += [f"- false alarm: {text}" for one in clean_runs for text in one.said]
    page = HEAD.format(
        counted=len(counted),
        models=len(MODELS),
        planted=len(outcomes),
        idle=len(outcomes) - len(counted),
        beyond=BEYOND,
        aims="\n".join(f"- {aim}" for aim in aims),
        kinds=markdown_table(head, [*kinds, total]),
        sizes=markdown_table(["times rounding", *head[1:-1]], sizes),
        predictions=f"{len(moved)} faults take a prediction further than {BEYOND:g} times what "
        f"rounding does: {'; '.join(said)}.",
        runs=runs,
        batch=BATCH,
        clean=markdown_table(
            [
                *("backend", "runs", "`compare`: false alarms", "not judged"),
                *("`bisect`: false alarms", "not judged"),
            ],
            clean_rows,
        ),
        missed="\n".join(failures) or "Nothing.",
    )
    return page, missed


def _caught(one: Outcome) -> bool:
    return DIFFER in (one.bisect.verdict, one.again and one.again.verdict)


def _placed_by_compare(one: Outcome) -> bool:
    return one.compare.verdict == DIFFER and one.compare.located


def _placed(one: Outcome) -> bool:
    return (one.again or one.bisect).located


def _shown(answer: Answer) -> str:
    where = "" if answer.located or answer.verdict != DIFFER else ", elsewhere"
    return f"{answer.verdict}{where}" + (f" ({answer.said})" if answer.said else "")


def _share(outcomes: list[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return sum(map(holds, outcomes)) / max(1, len(outcomes))


def _row(kind: str | None, outcomes: list[Outcome]) -> list[Any]:
    part = [one for one in outcomes if kind in (None, one.fault.kind)]
    return [
        kind or "all",
        len(part),
        sum(one.compare.verdict == DIFFER for one in part),
        sum(map(_placed_by_compare, part)),
        sum(_caught(one) for one in part),
        sum(_placed(one) for one in part),
        sum(one.again is not None and one.again.verdict == DIFFER for one in part),
    ]


def _tried(numbers: list[int], share: float) -> list[tuple[int, tuple]]:
    """Try the faults of these numbers; functions do not travel between processes."""
    found = []
    with remembered():
        faults = catalogue(share)
        for number in numbers:
            outcome = tried(faults[number])
            found.append((number, (outcome.effect, outcome.bisect, outcome.compare, outcome.again)))
    return found


def main() -> int:
    """Run the campaign; return 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--share", type=float, default=1.0, help="of the faults and clean runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    if options.write and options.share != 1.0:
        parser.error("--write needs the whole campaign, without --share")
    faults = catalogue(options.share)
    models = list(MODELS)
    # faults of one model in one process, which computes the references once
    groups = [
        [i for i, fault in enumerate(faults) if fault.model == model][part::4]
        for model in models
        for part in range(4)
    ]
    places = [
        (name, model, max(1, round(count * options.share)))
        for name, count in BACKENDS.items()
        for model in models
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        started = [pool.submit(_tried, group, options.share) for group in groups if group]
        clean_started = [pool.submit(alarms, place) for place in places]
        known: dict[int, tuple] = {}
        for each in started:
            known |= dict(each.result())
            print(f"{len(known)} of {len(faults)} faults", flush=True)
        clean_runs = [found for each in clean_started if (found := each.result()) is not None]
    outcomes = [Outcome(fault, *known[i]) for i, fault in enumerate(faults)]
    page, missed = _page(outcomes, clean_runs)
    print(page)
    if options.write:
        write_text(PAGE, page)
        print(f"written: {os.path.relpath(PAGE)}")
    print("\n".join(f"MISSED: {aim}" for aim in missed) or "all aims are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
