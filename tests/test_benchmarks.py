"""Contenders do the same work, and figures are reported correctly. Nothing is timed."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import agnostic_nn as nn

sys.path.append(str(Path(__file__).parents[1]))  # after installed packages

from benchmarks import running
from benchmarks.__main__ import main
from benchmarks.contenders import Unavailable, file_of, names
from benchmarks.contenders.products import products
from benchmarks.report import text, write
from benchmarks.running import (
    AGAIN,
    BEFORE,
    REFERENCE,
    Entry,
    Process,
    difference,
    entries,
)
from benchmarks.targets import TARGETS, Ratio, compared, judged, ratio, twins
from benchmarks.worker import LOSSES, Worker
from benchmarks.workloads import BATCHES, WORKLOADS, mlp

HAND = ("by hand", "by hand, in place")


def small(name):
    """Return a workload whose data and weights are quick to draw."""
    if name == "wide":
        draw = partial(WORKLOADS["wide"].draw.func, 6)
        wide = WORKLOADS["wide"]
        return replace(
            wide, model=nn.Dense(6), shape=(6,), batch=4, rate=0.1, draw=draw
        )
    return mlp(batch=8, width=16) if name == "mlp" else WORKLOADS[name]


def losses(contender, workload):
    return Worker(contender, workload).build()["losses"]


@pytest.mark.parametrize("workload", ["mlp", "tiny", "wide"])
@pytest.mark.parametrize("contender", HAND)
def test_the_step_written_by_hand_has_the_losses_of_the_library(contender, workload):
    workload = small(workload)
    ours = losses(REFERENCE, workload)
    assert losses(contender, workload) == pytest.approx(ours, rel=1e-5)
    assert len(set(ours)) == len(ours)


@pytest.mark.parametrize(
    ("contender", "workload"),
    [
        (f"{REFERENCE}, Trainer", "tiny"),
        ("scikit-learn", "tiny"),
        ("scikit-learn", "mlp"),
    ],
)
def test_contenders_that_take_numpy_arrays_have_the_losses_of_the_library(
    contender, workload
):
    workload = small(workload)
    assert losses(contender, workload) == pytest.approx(
        losses(REFERENCE, workload), rel=1e-5
    )


@pytest.mark.parametrize("name", ["tiny", "mlp", "wide"])
def test_a_contender_with_other_losses_is_detected(name):
    workload = WORKLOADS[name]
    ours = losses(REFERENCE, small(name))
    result = {REFERENCE: {"losses": ours}}
    assert difference(result, workload, ours) is None
    assert difference(result, workload, None) is None
    assert "loss 4 is" in difference(
        result, workload, [*ours[:3], ours[3] * 1.01, *ours[4:]]
    )
    assert "nan" in difference(result, workload, [math.nan] * len(ours))


def test_a_contender_that_does_not_update_is_detected_at_every_learning_rate():
    for name in ("tiny", "mlp", "wide"):
        workload = small(name)
        idle = losses(REFERENCE, replace(workload, rate=1e-9))
        result = {REFERENCE: {"losses": losses(REFERENCE, workload)}}
        assert "it computes something else" in difference(result, workload, idle), name


def multiplications(workload):
    return sum(math.prod(a.shape) * b.shape[-1] for a, b in products(workload))


def test_the_lower_bound_has_as_many_multiplications_as_the_step():
    assert multiplications(mlp(batch=2, width=8)) == 2 * (
        2 * 784 * 8 + 3 * 8 * 4 + 3 * 4 * 10
    )
    assert multiplications(WORKLOADS["tiny"]) == 32 * (
        2 * 64 * 64 + 3 * 64 * 32 + 3 * 32 * 10
    )
    assert multiplications(WORKLOADS["cnn"]) == 64 * (
        2 * 28**2 * 9 * 16 + 3 * 14**2 * 9 * 16 * 32 + 3 * 7**2 * 32 * 10
    )
    steps = 64 * (2 * 128 * 512 + 3 * 128 * 512)
    assert multiplications(WORKLOADS["lstm"]) == 32 * (steps + 3 * 128 * 10)
    dense = 2 * (4 * 128 * 128 + 2 * 128 * 512) + 128 * 256
    attention = 2 * 2 * 128 * 128
    assert multiplications(WORKLOADS["transformer"]) == 8 * 128 * 3 * (
        dense + attention
    )


def test_the_products_have_the_shapes_of_the_step_of_a_dense_network():
    result = products(mlp(batch=2, width=8))
    shapes = [(a.shape, b.shape) for a, b in result[:5]]
    assert shapes[:2] == [((2, 784), (784, 8)), ((784, 2), (2, 8))]
    assert shapes[2:] == [((2, 8), (8, 4)), ((8, 2), (2, 4)), ((2, 4), (4, 8))]
    # a step does not copy its weights to transpose them
    assert not result[4][1].flags.c_contiguous


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "wide"])
def test_a_workload_is_the_same_in_every_process(name):
    workload = WORKLOADS[name]
    batches, again = workload.batches(), workload.batches()
    assert len(batches) == BATCHES
    for (x, target), (x2, target2) in zip(batches, again, strict=True):
        assert len(x) == len(target) == workload.batch
        assert x.dtype in (np.float32, np.int32)
        assert target.dtype == np.int32
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(target, target2)
    assert {value.dtype.name for value in workload.parameters().values()} == {"float32"}


def test_a_second_process_and_an_older_checkout_are_separate_entries(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no agnostic_nn"):
        entries([], tmp_path)
    (tmp_path / "agnostic_nn").mkdir()
    (tmp_path / "agnostic_nn" / "__init__.py").touch()
    kernels = "agnostic_nn torch, kernels"
    result = entries(["pytorch", "agnostic_nn jax", kernels], tmp_path)
    labels = [entry.label for entry in result]
    ours = [REFERENCE, REFERENCE + AGAIN, "pytorch", "agnostic_nn jax", kernels]
    assert labels == [*ours, REFERENCE + BEFORE, "agnostic_nn jax" + BEFORE]
    assert [entry.checkout == tmp_path for entry in result] == [False] * 5 + [True] * 2


def test_every_target_names_existing_contenders_and_workloads():
    for target in TARGETS:
        assert target.workload in WORKLOADS
        assert target.ours.startswith("agnostic_nn ")
        assert {target.ours, *target.against} <= set(names())


def test_names_of_contenders_are_unique():
    assert len(set(names())) == len(names())
    with pytest.raises(Unavailable, match="no contender is called 'numpi'"):
        file_of("numpi")


# --- figures --------------------------------------------------------------------------


def made_up(**contenders):
    """Return a result with these seconds per step, equal in everything else."""
    memory = {"array_bytes": None, "step_bytes": 1e6, "resident_bytes": 3e6}
    result = {
        name: memory | {"seconds": {"step": seconds}, "first_step_seconds": 0.5}
        for name, seconds in contenders.items()
    }
    ours = result.pop("ours")
    result = {REFERENCE: ours, REFERENCE + AGAIN: dict(ours)} | result
    return {
        "about": "made up",
        "contenders": result,
        "left_out": {"thinc": "Traceback\nnot installed"},
    }


STEADY = [1.0, 1.01, 0.99, 1.0, 1.0]


def times(factor, rounds=STEADY):
    return [factor * seconds for seconds in rounds]


def test_a_ratio_of_medians_has_the_noise_of_its_rounds():
    result = ratio(times(3.0), times(2.0))
    assert result.value == pytest.approx(1.5)
    assert result.noise < 1e-9  # both slow down in the same rounds
    uncertain = ratio([3.0, 3.3, 2.7, 3.0, 3.1], times(2.0))
    assert 0.02 < uncertain.noise < 0.12
    assert ratio(times(3.0), times(2.0), floor=0.25).noise == 0.25
    assert ratio([2.0], [1.0]).noise == 0.0


@pytest.mark.parametrize(
    ("bound", "expected"),
    [(1.2, "above"), (1.45, "tie"), (1.55, "tie"), (1.8, "below")],
)
def test_a_bound_within_the_noise_is_a_tie(bound, expected):
    assert ratio(times(3.0), times(2.0), floor=0.1).against(bound) == expected


def test_a_difference_between_two_processes_of_one_contender_is_noise():
    result = made_up(ours=times(1.0))
    assert twins(result, "step") < 1e-9
    result["contenders"][REFERENCE + AGAIN] = {"seconds": {"step": times(1.1)}}
    assert twins(result, "step") == pytest.approx(math.log(1.1))
    assert twins(result, "epoch") == 0.0


def verdicts(**contenders):
    result = judged({"mlp": made_up(**contenders)})
    return {
        (t.ours, *t.against): (best, verdict)
        for t, best, _, verdict in result
        if t.measure == "step"
    }


def test_a_target_is_compared_with_the_best_of_its_opponents():
    result = verdicts(
        **{"ours": times(1.0), "pytorch": times(0.5), "scikit-learn": times(9.0)},
        **{"products": [0.6, 0.8, 0.65, 0.66, 0.72], "agnostic_nn jax": times(0.9)},
        **{"equinox": times(1.0), "flax-nnx": times(0.8)},
    )
    assert result[REFERENCE, "pytorch"] == ("pytorch", "missed")
    assert result[REFERENCE, "scikit-learn"] == ("scikit-learn", "reached")
    assert result[REFERENCE, "products"] == ("products", "tie")
    assert result[REFERENCE, "thinc"] == (None, "not measured")
    assert result["agnostic_nn jax", "equinox", "flax-nnx"] == ("flax-nnx", "missed")


def test_memory_of_arrays_is_compared_if_both_use_numpy_arrays_only():
    result = made_up(**{"ours": times(1.0), "by hand": times(1.0), "thinc": times(1.0)})
    results = result["contenders"]
    results[REFERENCE] |= {"array_bytes": 8e6, "resident_bytes": 31e6}
    results[REFERENCE + AGAIN]["resident_bytes"] = 32e6
    results["by hand"] |= {"array_bytes": 10e6, "resident_bytes": 10e6}
    assert compared(result, "memory", REFERENCE, "by hand") == Ratio(0.8, 0.0)
    results["thinc"]["resident_bytes"] = 62e6
    assert compared(result, "memory", REFERENCE, "thinc") == Ratio(0.5, 1 / 31)
    assert compared(result, "memory", REFERENCE, "pytorch") is None


def test_a_report_contains_every_measurement(tmp_path):
    result = made_up(ours=times(1e-3), pytorch=times(1.25e-3), products=times(0.5e-3))
    results = {
        "command": "python -m benchmarks",
        "settings": {"rounds": 5, "seconds": 0.3, "clock": "wall"},
        "environment": {"processor": "a fast one", "versions": {"numpy": "2.4"}},
        "runs": [
            {
                "threads": "1",
                "workloads": {"mlp": result},
                "scaling": {"batch": {"8": result}},
            }
        ],
    }
    paths = {path.name: path for path in write(results, tmp_path)}
    assert json.loads(paths["benchmarks.json"].read_text()) == results
    page = paths["benchmarks.md"].read_text()
    assert "| processor | a fast one |" in page
    assert (
        "| mlp | step | agnostic_nn numpy | pytorch | 1.2 | 0.80 ± 0.00 | reached |"
        in page
    )
    assert (
        "| mlp | step | agnostic_nn numpy | products | 1.5 | 2.00 ± 0.00 | missed |"
        in page
    )
    assert "| pytorch | 1.25 | 1.25 to 1.25 | 1.25 | 2.5 | 0.5 | 3 |  | 1 |" in page
    assert "| agnostic_nn numpy | 1 | 1 to 1 | 1 | 2 | 0.5 | 3 |  | 1 |" in page
    assert "| thinc | mlp | not installed |" in page
    assert "| batch | agnostic_nn numpy | pytorch | products |" in page
    assert "| 8 | 1 | 1.25 | 0.5 |" in page
    assert page.index("| products | 0.5") < page.index(
        "| agnostic_nn numpy | 1 | 1 to 1"
    )
    assert page.index("| agnostic_nn numpy | 1 | 1 to 1") < page.index(
        "| pytorch | 1.25"
    )
    assert "0.80 ± 0.00   reached" in text(results)


def test_the_command_measures_and_writes_the_report(tmp_path, capfd):
    options = ["--workloads", "tiny", "--contenders", "by hand", "products"]
    options += ["--threads", "1", "--rounds", "2", "--seconds", "0.01"]
    main([*options, "--out", str(tmp_path)])
    assert "prediction of one row, one thread" in capfd.readouterr().out
    (run,) = json.loads((tmp_path / "benchmarks.json").read_text())["runs"]
    result = run["workloads"]["tiny"]["contenders"]
    assert set(result) == {REFERENCE, REFERENCE + AGAIN, "by hand", "products"}
    for label, contender in result.items():
        measures = {"step"} if label == "products" else {"step", "epoch", "predict"}
        assert set(contender["seconds"]) == measures
        for rounds in contender["seconds"].values():
            assert len(rounds) == 2
            assert min(rounds) > 0
        assert contender["array_bytes"] > contender["step_bytes"] > 0
        assert {pool["num_threads"] for pool in contender["threads"]} <= {1}


class FakeProcess:
    """Replaces `Process`: Thinc is missing, and PyTorch has a wrong last loss."""

    def __init__(self, entry, *_):
        self.contender = entry.contender

    def ask(self, do, what="step", **_):
        if self.contender == "thinc":
            return {"unavailable": "not here"}
        if what != "step":
            return {"unavailable": "not this"}
        wrong = 1.1 if self.contender == "pytorch" else 1.0
        return {
            "build": {"losses": [1.0] * (LOSSES - 1) + [wrong]},
            "burst": {"wall": 2.0, "processor": 1.0},
            "memory": {"array_bytes": None},
        }[do]

    def close(self):
        pass


@pytest.mark.parametrize(
    ("threads", "clock", "seconds"),
    [("1", "processor", 1.0), ("1", "wall", 2.0), ("all", "processor", 2.0)],
)
def test_contenders_with_equal_losses_are_timed_by_the_chosen_clock(
    monkeypatch, threads, clock, seconds
):
    monkeypatch.setattr(running, "Process", FakeProcess)
    chosen = entries(["thinc", "pytorch", "equinox"])
    result = running.measure(
        "tiny", chosen, threads=threads, clock=clock, rounds=3, report=str
    )
    timed = {label: c["seconds"] for label, c in result["contenders"].items()}
    expected = [REFERENCE, REFERENCE + AGAIN, "equinox"]
    assert timed == {label: {"step": [seconds] * 3} for label in expected}
    wrong = f"it computes something else: its loss {LOSSES} is 1.1, ours 1"
    assert result["left_out"] == {"thinc": "not here", "pytorch": wrong}


def test_the_worker_of_another_checkout_imports_the_library_from_there(tmp_path):
    (tmp_path / "agnostic_nn").mkdir()
    (tmp_path / "agnostic_nn" / "__init__.py").write_text(
        "raise ImportError('an older one')"
    )
    process = Process(Entry(REFERENCE, REFERENCE + BEFORE, tmp_path), "tiny", {}, "1")
    assert "an older one" in process.ask(do="build")["error"]
    process.close()


def test_the_answer_of_a_dead_worker_is_its_exit_status():
    process = Process(Entry(REFERENCE, REFERENCE), "tiny", {}, "1")
    process.process.kill()
    process.process.wait()
    for _ in range(2):
        assert process.ask(do="build")["error"].startswith("ended with status -9")
    process.close()


def test_a_worker_continues_after_a_failed_command():
    worker = Worker("numpi", WORKLOADS["tiny"])
    assert worker.answer({"do": "build"}) == {
        "unavailable": "no contender is called 'numpi'"
    }
    assert "AttributeError" in worker.answer({"do": "memory"})["error"]
    worker = Worker("products", WORKLOADS["tiny"])
    assert worker.answer({"do": "build"})["losses"] is None
    unavailable = worker.answer({"do": "burst", "what": "predict", "seconds": 0.01})
    assert unavailable == {"unavailable": "no function that predicts"}
    result = worker.answer({"do": "burst", "what": "step", "seconds": 0.01})
    assert result["wall"] > 0
    assert result["processor"] > 0


def test_only_contenders_with_kernels_in_their_name_have_them(monkeypatch):
    started = []
    monkeypatch.setattr(
        running.subprocess, "Popen", lambda *_, env, **__: started.append(env)
    )
    monkeypatch.setenv("AGNOSTIC_NN_KERNELS", "0")
    for name in (
        "agnostic_nn numpy",
        "agnostic_nn numpy, kernels",
        "agnostic_nn torch, Trainer",
    ):
        Process(Entry(name, name), "tiny", {}, "1").stderr.close()
    assert [env["AGNOSTIC_NN_KERNELS"] for env in started] == ["0", "1", "0"]
