"""`compare(repeat=n)`: whether a backend repeats its own bits, and what does not."""

import dataclasses
import sys
from functools import partial
from itertools import count
from types import ModuleType

import numpy as np
import pytest
from cases._adapters import members
from faults.planting import faulty, of

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core.trees import tree_map
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.compare import (
    Report,
    Workload,
    junit,
    merge,
    run_comparison,
    summary,
    write,
)
from agnostic_nn.diagnostics.compare.repeated_parts import CALLS, bits
from agnostic_nn.diagnostics.compare.report.headline import headline
from agnostic_nn.diagnostics.compare.report.markdown import markdown
from agnostic_nn.diagnostics.compare.report.repeats import repeats_table
from agnostic_nn.diagnostics.compare.report.sentences import sentence
from agnostic_nn.training.batches import Examples
from agnostic_nn_backends import SHIPPED

EPSILON = float(np.finfo("float32").eps)
HOST = nn.backend("numpy").adapter
NUMBERS = count()


def _read():
    x = np.random.default_rng(0).integers(0, 20, (60, 6)).astype(np.int32)
    target = (x[:, 0] > 9).astype(np.int32)
    return Examples(x[:50], target[:50]), Examples(x[50:], target[50:])


MODEL = nn.Sequential(
    *(nn.Embedding(20, 8), nn.Flatten(), nn.Dense(8, bias=False), nn.BatchNorm()),
    *(nn.Dropout(0.1), nn.Dense(2)),
)
WORDS = Workload(
    *("words", "random words", _read, MODEL, nn.softmax_cross_entropy, None),
    epochs=2,
    batch_size=16,
)
STEPS = 2 * 4


def repeated(backend, workload=WORDS, runs=2):
    """Return the report on one backend that trains several times."""
    return run_comparison(workload, [backend], sizes=(), repeat=runs)


def only(report):
    (result,) = report.results
    return result


def up(array):
    """Return the next larger numbers."""
    return np.nextafter(array, np.asarray(np.inf, array.dtype))


def every(period, change, function, calls=None):
    """Return a function that changes the result of each third, say, of `calls`."""
    calls = count(1) if calls is None else calls

    def call(*args, **kwargs):
        y = function(*args, **kwargs)
        return y if next(calls) % period else change(y)

    return call


every_third = partial(every, 3)


# --- backends that repeat -------------------------------------------------------------


def test_the_backend_repeats_its_own_bits(backend):
    report = repeated(backend, runs=3)
    result = only(report)
    assert result.status == "agrees"
    assert result.repeats.same_bits
    assert result.repeats.runs == 3
    assert result.repeats.first is result.repeats.largest is None
    assert f"{result.name} repeats its own bits in 3 runs." in summary(report)
    assert "It repeats its own bits in 3 runs." in sentence(result)


def test_without_repeat_a_report_says_nothing_about_it():
    report = run_comparison(WORDS, ["numpy"], epochs=1, sizes=())
    assert only(report).repeats is None
    assert "own bits" not in summary(report, verbose=True)
    assert "own bits" not in markdown(report)


def test_a_backend_trains_as_often_as_requested(pretend):
    compiled = []

    def jit(function, device, donate=()):
        compiled.append(donate)
        return HOST.jit(function, device, donate)

    repeated(pretend(jit=jit), runs=4)
    assert compiled.count((0,)) == 4


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (0.0, -0.0, False),
        (np.nan, -np.nan, True),
        (np.float32(1.0), up(np.float32(1.0)), False),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
    ],
)
def test_bits_are_those_of_numbers(one, other, same):
    assert (bits(np.asarray(one)) == bits(np.asarray(other))) is same


# --- operations that do not repeat ----------------------------------------------------


@pytest.fixture
def pretend(monkeypatch):
    """Return a function that adds a changed copy of NumPy's backend by a new name."""

    def add(**replaced):
        module = ModuleType(f"repeating_{next(NUMBERS)}")
        vars(module).update(members(HOST, **replaced))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(SHIPPED, module.__name__, (module.__name__, "nothing"))
        return module.__name__

    return add


@pytest.fixture
def scatter(monkeypatch):
    """Make NumPy's `scatter_add` change each third of its results by a ULP."""
    native = ops.scatter_add.dispatch(np.ndarray)
    ops.scatter_add.register(np.ndarray, every_third(up, native))
    yield
    ops.scatter_add.register(np.ndarray, native)


@pytest.mark.parametrize("replay", [True, False])
def test_a_gradient_that_does_not_repeat_is_named_with_its_operation(scatter, replay):
    report = repeated(nn.backend("numpy", replay=replay), runs=3)
    result = only(report)
    assert result.status == "agrees"  # NumPy need not be deterministic here
    repeats = result.repeats
    assert not repeats.same_bits
    assert repeats.first.relative < repeats.first.tolerance
    (part,) = repeats.parts
    assert part.description == "the gradient of 0.weight (Embedding)"
    assert (part.layer, part.quantity, part.name) == ("0", "gradient", "weight")
    assert part.operation == "ops.scatter_add"
    assert part.calls == CALLS
    assert 0 < part.changed < CALLS
    assert not part.only_when_compiled_again
    assert part.ulps == pytest.approx(1.0)
    assert part.relative == pytest.approx(EPSILON / 2, rel=1.0)
    text = (
        f"From the same inputs, the gradient of 0.weight (Embedding) of step "
        f"{part.step} changes in {part.changed} of 16 calls, by up to 1 ULP, first in "
        "ops.scatter_add."
    )
    for page in (sentence(result), markdown(report), junit_text(report)):
        assert text in page
    assert "does not repeat its own bits in 3 runs" in " ".join(summary(report).split())


def junit_text(report):
    """Return the JUnit text of a report whose run is skipped with its sentence."""
    (result,) = report.results
    changed = dataclasses.replace(result, status="not checked")
    return junit(dataclasses.replace(report, results=(changed,)))


def test_in_half_precision_a_difference_is_judged_by_its_rounding(scatter):
    report = run_comparison(
        WORDS, ["numpy"], dtypes=["float16"], epochs=1, sizes=(), repeat=3
    )
    plain, result = report.results  # training in float32 is compared with it
    assert result.dtype == "float16"
    first = result.repeats.first
    assert not result.repeats.same_bits
    # The tolerance of a training in float16 is 2^13 times that in float32.
    assert first.tolerance > 2.0**11 * plain.repeats.first.tolerance
    (part,) = result.repeats.parts
    assert part.layer == "0"
    assert part.operation == "ops.scatter_add"


def test_a_deterministic_backend_that_does_not_repeat_differs(scatter):
    backend = nn.backend("numpy", deterministic=True)
    report = repeated(backend)
    result = only(report)
    assert result.status == report.verdict.status == "differs"
    (difference,) = result.differences
    assert result.first_difference == difference
    assert difference.quantity == "repeats"
    assert difference.step == result.repeats.first.step
    verdict = "is deterministic by policy, but does not repeat its own bits from step "
    assert result.verdict == f"{verdict}{difference.step}"
    assert headline(report) == f"numpy:cpu {result.verdict}"
    assert "more than rounding explains" not in sentence(result)
    assert "rounding in float32 explains at most" not in sentence(result)


def test_a_deterministic_backend_that_differs_anyway_says_both(pretend):
    calls = count()

    def jit(function, device, donate=()):
        compiled = HOST.jit(function, device, donate)

        def step(*args):
            carry, value, finite = compiled(*args)
            return carry, value * (1.5 + EPSILON * next(calls)), finite

        return step if donate else compiled

    backend = nn.backend(pretend(jit=jit), deterministic=True)
    result = only(report := repeated(backend))
    assert result.verdict.startswith("differs by more than rounding from step 1")
    assert result.first_difference.quantity == "losses"
    assert result.differences[-1].quantity == "repeats"
    assert "differs by more than rounding from step 1" in headline(report)
    assert "rounding in float32 explains at most" in sentence(result)


def test_a_product_that_does_not_repeat_is_named(monkeypatch):
    torch = pytest.importorskip("torch")
    native = torch.Tensor.__matmul__
    inf = torch.tensor(torch.inf)

    def next_after(y):
        return torch.nextafter(y, inf.to(y.dtype))

    wobbly = every_third(next_after, native)
    monkeypatch.setattr(torch.Tensor, "__matmul__", wobbly)
    repeats = only(repeated(nn.backend("torch:cpu", replay=False))).repeats
    assert not repeats.same_bits
    first, *_ = repeats.parts
    assert first.description == "the output of layer 2 (Dense)"
    assert {part.layer for part in repeats.parts} <= {"2", "5"}
    assert {part.operation for part in repeats.parts} == {"matmul"}


def test_a_sum_in_another_order_is_named(monkeypatch):
    backend = nn.backend("numpy", replay=False)
    native = backend.xp.sum
    calls = count(1)

    def in_some_order(x, **options):
        # only the sums of a softmax over the 48 inputs of the last layer
        if x.shape[-1:] == (48,) and next(calls) % 3 == 0:
            x = x[..., ::-1].cumsum(axis=-1)[..., -1:]
        return native(x, **options)

    monkeypatch.setattr(backend.xp, "sum", in_some_order)
    layers = (nn.Embedding(20, 8), nn.Flatten(), nn.Softmax(), nn.Dense(2))
    workload = dataclasses.replace(WORDS, model=nn.Sequential(*layers))
    (part,) = only(repeated(backend, workload)).repeats.parts
    assert part.description == "the output of layer 2 (Softmax)"
    assert part.operation == "sum"


TANH = nn.Tanh()
LAYERS = (nn.Embedding(20, 8), nn.Flatten(), nn.Dense(4), TANH, nn.Dense(2))
SMALL = dataclasses.replace(WORDS, model=nn.Sequential(*LAYERS), optimizer=nn.SGD(0.1))


def first_larger(tree):
    """Return a tree whose first array is larger by more than later roundings hide."""
    number = count()
    factor = np.float32(1.0 + 64.0 * EPSILON)
    return tree_map(lambda leaf: leaf if next(number) else leaf * factor, tree)


@pytest.mark.parametrize(
    ("target", "method", "description", "quantity", "layer"),
    [
        (TANH, "forward", "the output of layer 3 (Tanh)", "output", "3"),
        (
            *(TANH, "backward", "the gradient of the input of layer 3 (Tanh)"),
            *("gradient", "3"),
        ),
        (TANH, "predict", "the prediction of layer 3 (Tanh)", "prediction", "3"),
        (
            *(SMALL.optimizer, "update", "the update of 0.weight (SGD)"),
            *("update", None),
        ),
    ],
)
def test_a_method_that_does_not_repeat_is_named(
    target, method, description, quantity, layer
):
    # The method is replaced again in each call of a step: share the count.
    wobbly = partial(every, 5, first_larger, calls=count(1))
    backend = faulty([of(target, method, wobbly)])
    repeats = only(repeated(backend, SMALL, runs=3)).repeats
    (part,) = repeats.parts
    assert part.description == description
    assert (part.layer, part.quantity) == (layer, quantity)
    # The fault is planted in compiled functions, not in single operations.
    assert part.operation is None
    if method == "predict":
        assert repeats.first.quantity == "outputs"
        assert repeats.first.step == STEPS


# --- what no part shows ---------------------------------------------------------------


def raised(results, change=up):
    """Return the results of a training step with a larger loss."""
    carry, value, finite = results
    return carry, change(np.asarray(value)), finite


def test_the_step_whose_loss_differs_first_is_named_and_the_largest_difference(pretend):
    changes = {  # by run and step
        (2, 5): lambda value: value * np.float32(1.001),
        (3, 4): up,
        (3, 6): up,
    }
    compilations = count(1)

    def jit(function, device, donate=()):
        compiled = HOST.jit(function, device, donate)
        if not donate:
            return compiled
        number = next(compilations)
        steps = count(1)

        def step(*args):
            results = compiled(*args)
            change = changes.get((number, next(steps)))
            return results if change is None else raised(results, change)

        return step

    result = only(report := repeated(pretend(jit=jit), runs=3))
    first = result.repeats.first
    assert (first.run, first.step, first.quantity) == (3, 4, "losses")
    loss = np.float32(result.losses[3])
    gap = float(up(loss)) - float(loss)
    assert first.relative == pytest.approx(gap / report.reference.scales[3])
    assert first.ulps == pytest.approx(1.0)
    largest = result.repeats.largest
    assert (largest.run, largest.step) == (2, 5)
    assert largest.relative > 1e3 * first.relative
    assert result.repeats.parts == ()
    remark = "all parts of steps 3 and 4 repeat their bits, each from the same inputs"
    assert result.repeats.remark == remark
    text = sentence(result)
    assert "the first difference is in the loss of step 4, by " in text
    assert "The largest difference is in the loss of step 5, by " in text
    assert f"{remark[1:]}." in text


def test_a_step_that_does_not_repeat_as_a_whole_is_named(pretend):
    calls = count(1)

    def jit(function, device, donate=()):
        compiled = HOST.jit(function, device, donate)

        def step(*args):
            results = compiled(*args)
            if next(calls) % 3:
                return results
            if isinstance(results, dict):
                return results | {"value": up(np.asarray(results["value"]))}
            return raised(results)

        return step if donate else compiled

    (part,) = only(repeated(pretend(jit=jit))).repeats.parts
    assert part.description == "the whole step as one function: the loss"
    assert (part.layer, part.operation) == (None, None)


def test_a_compiler_that_does_not_repeat_is_said_to_be_one(pretend):
    compilations = count(1)

    def jit(function, device, donate=()):
        compiled = HOST.jit(function, device, donate)
        is_other = next(compilations) % 2

        def step(*args):
            results = compiled(*args)
            return raised(results) if is_other else results

        def stage(*args):
            results = compiled(*args)
            if not is_other or "dy" not in results or "value" not in results:
                return results
            return results | {"value": up(np.asarray(results["value"]))}

        return step if donate else stage

    (part,) = only(repeated(pretend(jit=jit), runs=3)).repeats.parts
    assert part.description == "the loss (softmax_cross_entropy)"
    assert part.only_when_compiled_again
    assert part.changed == CALLS // 2
    assert part.operation is None


def test_a_run_that_fails_when_it_is_repeated_is_a_failure(pretend):
    compilations = count(1)

    def jit(function, device, donate=()):
        if donate and next(compilations) == 2:
            raise RuntimeError("no memory")
        return HOST.jit(function, device, donate)

    result = only(repeated(pretend(jit=jit)))
    assert result.status == "failed"
    assert result.error == "RuntimeError: no memory"


def test_parts_that_cannot_be_repeated_leave_the_runs_valid(scatter, monkeypatch):
    def fail(*args):
        raise MemoryError("too large")

    path = "agnostic_nn.diagnostics.compare.repeat.changing_parts"
    monkeypatch.setattr(path, fail)
    result = only(repeated("numpy"))
    assert result.status == "agrees"
    assert not result.repeats.same_bits
    expected = "the parts of the step could not be repeated: MemoryError: too large"
    assert result.repeats.remark == expected


# --- reports and the command ----------------------------------------------------------


def test_a_report_keeps_what_does_not_repeat(scatter, tmp_path):
    report = repeated("numpy")
    title, columns, (row,) = repeats_table(report)
    assert title == "does each backend repeat its own bits?"
    cells = dict(zip(columns, row, strict=True))
    assert cells["backend"] == "numpy:cpu"
    assert cells["same bits"] == "no"
    assert cells["operation"] == "ops.scatter_add"
    assert Report.from_json(report.to_json()) == Report(**vars(report))
    for label in ("one", "two"):
        write(report, tmp_path / label)
    paths = [tmp_path / label / "report.json" for label in ("one", "two")]
    merged = merge(paths, ["one", "two"])
    assert [r.repeats for r in merged.results] == [only(report).repeats] * 2
    assert len(repeats_table(merged)[2]) == 2


def test_the_command_repeats(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    monkeypatch.setitem(sys.modules, "jinja2", None)  # pages take seconds to draw
    arguments = ["compare", "--workload=breast-cancer", "--epochs=1", "--quiet"]
    arguments += ["--backends=numpy", "--no-batches", f"--output={tmp_path}"]
    assert main([*arguments, "--repeat=2"]) == 0
    assert "numpy:cpu repeats its own bits in 2 runs." in capsys.readouterr().out


def test_the_command_refuses_to_repeat_a_merge(capsys):
    assert main(["compare", "--merge", "a.json", "b.json", "--repeat=2"]) == 2
    assert "--repeat cannot be used with --merge" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_a_count_that_is_not_one_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="repeat"):
        run_comparison(WORDS, ["numpy"], repeat=wrong)
