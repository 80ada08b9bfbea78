"""The campaign: plant each fault, and run `compare` and `bisect` on the two backends.

`nox -s campaign` prints the table and fails if an aim is missed; `nox -s campaign --
--write` also writes `docs/fault-campaign.md`. That page is generated entirely.
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
from agnostic_nn.diagnostics.compare import comparison, results, run_comparison
from agnostic_nn.diagnostics.compare.schema import PROBED, Difference, Result
from agnostic_nn.display.tables import markdown_table

from .catalogue import Fault, catalogue
from .models import BATCH, MODELS, SEED, workload
from .planting import clean, faulty
from .truth import BEYOND, Effect, effect

__all__ = ["Answer", "Outcome", "bisected", "compared", "remembered", "tried"]

PAGE = Path(__file__).parents[2] / "docs" / "fault-campaign.md"
# The aims, as shares of all faults; and there may be 0 false alarms.
CAUGHT = 0.99
LOCATED = 0.97
AGREE = "agree"
DIFFER = "differ"


@dataclass(frozen=True)
class Answer:
    """The verdict of a tool: "agree", "differ", "not checked" or "failed".

    located: whether it names the layer and the kind of the fault. detail: what it
    names. step: the step that `compare` names, from 1, or 0.
    """

    verdict: str
    located: bool = False
    detail: str = ""
    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """A fault, its effect, and the answer of each tool.

    again: the answer of `bisect --steps` with the number of steps that `compare`
    prints, if `bisect` alone found no difference.
    """

    fault: Fault
    effect: Effect
    bisect: Answer
    compare: Answer
    again: Answer | None = None


@contextmanager
def remembered() -> Iterator[None]:
    """Return a context in which equal computations of the reference run only once.

    `compare` does not measure memory, precision and cost per layer in it.
    """
    with ExitStack() as stack:
        for place, name, key in (
            (search, "rounded", lambda f, args, **options: (repr(f), _digest(args))),
            (
                comparison,
                "run_reference",
                lambda task, *_: (task.workload.name, task.seed),
            ),
            (comparison, "_context", lambda task, _, __, dtype: (*_task(task), dtype)),
        ):
            stack.enter_context(
                patch.object(place, name, _once(getattr(place, name), key))
            )
        for place, name, value in (
            (results, "_precision", (None, None)),
            (results, "_memory", None),
            (comparison, "layer_costs", ()),
        ):
            stack.enter_context(patch.object(place, name, return_value=value))
        yield


def _task(task: Any) -> tuple:
    return task.workload.name, task.seed


def _once(function: Callable, key: Callable) -> Callable:
    """Return `function` with its results cached by `key` of the arguments."""
    done: dict[Any, Any] = {}

    def call(*args, **kwargs):
        arguments = key(*args, **kwargs), tuple(sorted(kwargs.items()))
        if arguments not in done:
            done[arguments] = function(*args, **kwargs)
        return done[arguments]

    return call


def _digest(tree: Any) -> Any:
    """Return a hashable value that is equal for equal trees of arrays."""
    if isinstance(tree, dict):
        return tuple((name, _digest(branch)) for name, branch in sorted(tree.items()))
    if isinstance(tree, tuple):
        return tuple(map(_digest, tree))
    array = np.asarray(tree)
    return array.shape, array.dtype.name, array.tobytes()


def tried(fault: Fault) -> Outcome:
    """Plant a fault and run both tools."""
    outcome = Outcome(fault, effect(fault), bisected(fault), compared(fault))
    if outcome.bisect.verdict != DIFFER and outcome.compare.step > 1:
        return replace(outcome, again=bisected(fault, outcome.compare.step - 1))
    return outcome


def bisected(fault: Fault, steps: int = 1) -> Answer:
    """Return the answer of `bisect` about a backend with a fault."""
    try:
        bisection = _bisect(fault.model, SEED, clean(), _side(fault), steps)
    except StageFailed as error:
        return Answer("failed", detail=str(error))
    first = bisection.first
    if first is None:
        return Answer(bisection.status, detail=bisection.verdict)
    right_place = first.path.partition("#")[0] in fault.places
    right_part = first.part.startswith(fault.parts)
    right_side = first.ratios[0] <= 1.0 < first.ratios[1]
    located = right_place and right_part and right_side
    return Answer(DIFFER, located, f"{first.name}: {first.part}")


def compared(fault: Fault) -> Answer:
    """Return the answer of `compare` about a backend with a fault."""
    result = _compare(fault.model, SEED, _side(fault))
    first = result.first_difference
    if first is None:
        return Answer(_verdict(result), detail=result.error or "")
    # A difference from the same numbers locates
    # better than the first one of a training.
    probed = (each for each in result.differences if each.quantity in PROBED)
    located = _is_right(fault, next(probed, first))
    return Answer(_verdict(result), located, first.description, first.step)


def _side(fault: Fault) -> nn.Backend:
    return faulty(fault.changes(), fault.moves() if fault.moves else None)


def _bisect(
    model: str, seed: int, first: Any, second: Any, steps: int = 1
) -> search.Bisection:
    work = workload(model, seed)
    train, _ = work.read()
    training = work.model, work.loss, work.optimizer, train.x, train.target
    return nn.bisect(*training, first, second, steps=steps, batch_size=BATCH, seed=seed)


def _compare(model: str, seed: int, backend: Any) -> Result:
    report = run_comparison(workload(model, seed), [backend], seed=seed, sizes=())
    return report.results[0]


def _verdict(result: Result) -> str:
    words = {"agrees": AGREE, "differs": DIFFER}
    return words.get(result.status, result.status)


# By the prefix of a part of `bisect`, the names of the same quantity in `compare`.
QUANTITIES = {
    "forward": {"layers", "predictions"},
    "predict": {"predictions"},
    "state": {"states", "predictions"},
    "backward": {"gradients"},
    "random words": {"layers", "states"},
    "value": {"loss"},
    "gradient of y": {"gradients"},
    "update": {"updates"},
    "first update": {"updates"},
    "moments": {"updates"},
    "x": {"layers", "loss", "predictions"},
}


def _is_right(fault: Fault, first: Difference) -> bool:
    """Return whether the first difference is of the right kind and in the right layer.

    `compare` does not see the dx that a layer returns. For a fault in dx, the gradients
    of any layer are right.
    """
    parts = [
        part for part in QUANTITIES if any(p.startswith(part) for p in fault.parts)
    ]
    right = first.quantity in set().union(*(QUANTITIES[part] for part in parts))
    anywhere = fault.places == ("",) or fault.parts == ("backward: dx",)
    return right and (anywhere or (first.layer or "") in fault.places)


# --- clean runs -----------------------------------------------------------------------


@dataclass(frozen=True)
class Alarms:
    """The verdicts of both tools on a backend without a fault.

    wrong: by the tool, the number of runs called different. unchecked: by the tool, the
    number of runs in which something could not be checked.
    messages: a line for each wrong verdict.
    """

    backend: str
    runs: int
    wrong: Counter
    unchecked: Counter
    messages: tuple[str, ...]


# Clean runs of each model on each backend.
BACKENDS = {"numpy": 27, "torch:cpu": 20, "array_api_strict:device1": 2, "jax:cpu": 1}


def alarms(place: tuple[str, str, int]) -> Alarms | None:
    """Run both tools without a fault, with other seeds and data."""
    name, model, count = place
    try:
        backend = nn.backend(name)
    except nn.BackendUnavailable as error:
        print(f"{name} is left out: {error}")
        return None
    wrong: Counter = Counter()
    unchecked: Counter = Counter()
    messages = []
    with remembered():
        for seed in range(SEED + 1, SEED + 1 + count):
            bisection = _bisect(model, seed, "numpy", backend)
            result = _compare(model, seed, backend)
            for tool, verdict, what in (
                ("bisect", bisection.status, bisection.verdict),
                ("compare", _verdict(result), result.verdict),
            ):
                if verdict == "not checked":
                    unchecked[tool] += 1
                elif verdict != AGREE:
                    wrong[tool] += 1
                    messages.append(f"{tool}, {name}, {model}, seed {seed}: {what}")
    return Alarms(name, count, wrong, unchecked, tuple(messages))


# --- the page -------------------------------------------------------------------------

HEAD = """# Fault campaign

This page measures how many wrong results `agnostic-nn compare` and `agnostic-nn bisect`
catch, and how many false alarms they raise. It tells you how far to trust a report that
says that two backends agree.

{counted} faults were planted in one of two backends, one at a time, in {models} small
models, and both tools compared the backends. Both also ran {runs} times without any
fault.

## How to repeat it

```console
nox -s campaign                # run it, and fail if an aim is missed
nox -s campaign -- --write     # also update this page, which is generated entirely
```

It takes about a quarter of an hour on one core. The faults are in
`tests/faults/catalogue.py`, a sample of a grid of kinds, layers, sizes and models. The
models are in `tests/faults/models.py`.

## Results

{aims}

{kinds}

What the columns mean:

- **Catches**: the verdict is that the backends differ.
- **Locates**: the first difference that the tool names is in the layer with the fault
  and of the right kind (forward, backward, state, prediction, update and so on).
  `bisect` must also blame the right backend. If the first difference is in the training
  as a whole, such as the loss of a step, `compare` also names the first difference
  between results computed from the same numbers, and that one counts. `compare` sees
  the outputs of layers, gradients, states, updates and predictions, but not the
  gradient dx that one layer passes to another. For a fault in dx, any gradient is
  accepted.
- **With `--steps`**: caught only by a second run of `bisect`. `bisect` checks the
  second step and a prediction after it. If it finds no difference but `compare` names a
  step, it runs again with the `--steps` that `compare` prints. Faults caught that way
  are included in the columns before.

What to conclude: if both tools say that two backends agree, a fault in the code of one
of them that is larger than rounding is unlikely. `bisect` finds the layer more
reliably, because it gives each layer the same inputs on both backends; `compare` covers
whole trainings. The last sections list what they missed and what this measurement
cannot show.

## Faults by size

The size of a fault is its effect on the worst result, in multiples of the float32
rounding error of that result.

{sizes}

## Faults in predictions

{predictions}

## Faults without an effect

Of {planted} planted faults, {idle} are left out of all tables, because they have no
effect beyond rounding. An example is a constant that is added in front of a norm, which
removes it. This is decided in float64, without either tool (`tests/faults/truth.py`). A
fault counts if it moves any output, loss, gradient, state, parameter, moment or
prediction further from its correct value than {beyond:g} times the error of float32
without a fault, at any of four steps.

## Runs without a fault

These runs use the same models with other seeds and other data. A run is "not checked"
if nothing differs but something could not be checked, which the verdict then names. For
`compare` that is every run of the transformer: the gradient of the bias of the
attention keys is only rounding error, so the trained bias cannot be compared. It can
also be a single run of another model, if rounding alone changed a result of the
training by as much in a control run.

{clean}

## Missed

Every counted fault that one of the tools does not catch or does not locate, and every
false alarm.

{missed}

## Limits

- The faults are planted in NumPy, in Python code. Faults of a compiler or a device may
  behave differently.
- The models are small, with {batch} examples per batch. Faults that appear only with
  large arrays, several threads or many steps are not included.
- A fault with an effect of less than {beyond:g} times rounding is not counted, and
  neither tool can be expected to find it.
"""


def _page(outcomes: list[Outcome], clean_runs: list[Alarms]) -> tuple[str, list[str]]:
    """Return the page, and the aims that are missed."""
    counted = [outcome for outcome in outcomes if outcome.effect.counts]
    kinds = [
        _row(kind, counted) for kind in dict.fromkeys(o.fault.kind for o in counted)
    ]
    total = _row(None, counted)
    bands = [(BEYOND, 1e2), (1e2, 1e4), (1e4, 1e6), (1e6, np.inf)]
    sizes = []
    for low, high in bands:
        part = [outcome for outcome in counted if low < outcome.effect.largest <= high]
        sizes.append([f"{low:g} to {high:g}", *_row(None, part)[1:-1]])
    moved = [outcome for outcome in outcomes if outcome.effect.prediction > BEYOND]
    agreeing = {
        tool: sum(getattr(outcome, tool).verdict == AGREE for outcome in moved)
        for tool in ("compare", "bisect")
    }
    runs = sum(alarm.runs for alarm in clean_runs)
    false = {
        tool: sum(alarm.wrong[tool] for alarm in clean_runs)
        for tool in ("bisect", "compare")
    }
    shares = {
        "`compare` catches": (
            _share(counted, lambda o: o.compare.verdict == DIFFER),
            CAUGHT,
        ),
        "`compare` locates": (_share(counted, _located_by_compare), LOCATED),
        "`bisect` catches": (_share(counted, _caught), CAUGHT),
        "`bisect` locates": (_share(counted, _located), LOCATED),
    }
    missed = [
        f"{what} {share:.1%}, aim {aim:.0%}"
        for what, (share, aim) in shares.items()
        if share < aim
    ]
    missed += [
        f"{tool}: {n} false alarms in {runs} runs" for tool, n in false.items() if n
    ]
    missed += [
        f"{tool} agrees though a prediction differs: {n}"
        for tool, n in agreeing.items()
        if n
    ]
    aims = [
        f"{what} {share:.1%} (aim {aim:.0%})" for what, (share, aim) in shares.items()
    ]
    aims.append(
        f"false alarms: {sum(false.values())} in {runs} runs of each tool (aim 0)"
    )
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
    for name in dict.fromkeys(alarm.backend for alarm in clean_runs):
        part = [alarm for alarm in clean_runs if alarm.backend == name]
        row: list[Any] = [name, sum(alarm.runs for alarm in part)]
        for tool in ("compare", "bisect"):
            row.append(sum(alarm.wrong[tool] for alarm in part))
            row.append(sum(alarm.unchecked[tool] for alarm in part))
        clean_rows.append(row)
    failures = [
        f"- {outcome.fault}. `compare`: {_describe(outcome.compare)}; "
        f"`bisect`: {_describe(outcome.again or outcome.bisect)}"
        for outcome in counted
        if not (_located_by_compare(outcome) and _caught(outcome) and _located(outcome))
    ]
    failures += [
        f"- false alarm: {text}" for alarm in clean_runs for text in alarm.messages
    ]
    page = HEAD.format(
        counted=len(counted),
        models=len(MODELS),
        planted=len(outcomes),
        idle=len(outcomes) - len(counted),
        beyond=BEYOND,
        aims="\n".join(f"- {aim}" for aim in aims),
        kinds=markdown_table(head, [*kinds, total]),
        sizes=markdown_table(["times rounding", *head[1:-1]], sizes),
        predictions=f"{len(moved)} faults change a prediction by more than {BEYOND:g} "
        "times the rounding error. `compare` says that all agrees for "
        f"{agreeing['compare']} of these, `bisect` for {agreeing['bisect']}.",
        runs=runs,
        batch=BATCH,
        clean=markdown_table(
            [
                *("backend", "runs", "`compare`: false alarms", "not checked"),
                *("`bisect`: false alarms", "not checked"),
            ],
            clean_rows,
        ),
        missed="\n".join(failures) or "Nothing.",
    )
    return page, missed


def _caught(outcome: Outcome) -> bool:
    return DIFFER in (outcome.bisect.verdict, outcome.again and outcome.again.verdict)


def _located_by_compare(outcome: Outcome) -> bool:
    return outcome.compare.verdict == DIFFER and outcome.compare.located


def _located(outcome: Outcome) -> bool:
    return (outcome.again or outcome.bisect).located


def _describe(answer: Answer) -> str:
    elsewhere = "" if answer.located or answer.verdict != DIFFER else ", elsewhere"
    detail = f" ({answer.detail})" if answer.detail else ""
    return f"{answer.verdict}{elsewhere}{detail}"


def _share(outcomes: list[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return sum(map(holds, outcomes)) / max(1, len(outcomes))


def _row(kind: str | None, outcomes: list[Outcome]) -> list[Any]:
    """Return a row of the table of kinds; None stands for all kinds."""
    part = [outcome for outcome in outcomes if kind in (None, outcome.fault.kind)]
    return [
        kind or "all",
        len(part),
        sum(outcome.compare.verdict == DIFFER for outcome in part),
        sum(map(_located_by_compare, part)),
        sum(map(_caught, part)),
        sum(map(_located, part)),
        sum(
            outcome.again is not None and outcome.again.verdict == DIFFER
            for outcome in part
        ),
    ]


def _tried(numbers: list[int], share: float) -> list[tuple[int, tuple]]:
    """Return the outcome of each fault by its number, in a worker process.

    A fault holds functions, which cannot be sent to another process: numbers are sent,
    and outcomes return without the fault.
    """
    results = []
    with remembered():
        faults = catalogue(share)
        for number in numbers:
            outcome = tried(faults[number])
            results.append(
                (
                    number,
                    (outcome.effect, outcome.bisect, outcome.compare, outcome.again),
                )
            )
    return results


def main() -> int:
    """Run the campaign; return 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the faults and clean runs"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="number of processes"
    )
    options = parser.parse_args()
    if options.write and options.share != 1.0:
        parser.error("--write needs the whole campaign, without --share")
    faults = catalogue(options.share)
    models = list(MODELS)
    # Faults of one model share a process, which computes the references once.
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
        started = [
            pool.submit(_tried, group, options.share) for group in groups if group
        ]
        clean_started = [pool.submit(alarms, place) for place in places]
        results: dict[int, tuple] = {}
        for each in started:
            results |= dict(each.result())
            print(f"{len(results)} of {len(faults)} faults", flush=True)
        finished = [each.result() for each in clean_started]
        clean_runs = [alarm for alarm in finished if alarm is not None]
    outcomes = [Outcome(fault, *results[i]) for i, fault in enumerate(faults)]
    page, missed = _page(outcomes, clean_runs)
    print(page)
    if options.write:
        write_text(PAGE, page)
        print(f"written: {os.path.relpath(PAGE)}")
    print("\n".join(f"MISSED: {aim}" for aim in missed) or "all aims are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
