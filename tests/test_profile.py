"""A profile lists every part of a step once, with the time that it takes."""

import json
import math
from dataclasses import dataclass, replace
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
from cases import arrays_for, layer_cases, run

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import named_leaves, tree_map
from agnostic_nn.diagnostics import profile
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.observe import observing
from agnostic_nn.diagnostics.profile import WARM_UP, Operation, Profile, Row

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
TARGET = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
PAUSE = 0.02  # seconds; a step of these small models takes a few ms
LONG = 0.05
DENSE = "Dense(width=4, bias=True)"


def profiled(model, backend, loss=nn.mean_squared_error, optimizer=None, steps=3):
    optimizer = nn.SGD(1e-2) if optimizer is None else optimizer
    return nn.profile(model, loss, optimizer, X, TARGET, backend=backend, steps=steps)


@pytest.fixture
def eager(backend):
    """Return the backend under test without compiling, so that every sleep counts."""
    return uncompiled(backend)


def uncompiled(backend, **changed):
    def jit(function, device, donate=()):
        return function

    names = vars(backend.adapter) | {"jit": jit, "compiles": False} | changed
    return replace(backend, adapter=SimpleNamespace(**names))


def test_every_layer_and_part_has_a_time_and_the_times_add_up(backend):
    model = nn.Sequential(
        nn.Dense(4), nn.Residual(nn.Dense(4), nn.BatchNorm()), nn.Flatten(), nn.Dense(3)
    )
    result = profiled(model, backend, optimizer=nn.Adam())
    assert (result.backend, result.batch_size, result.steps) == (str(backend), 6, 3)
    assert [(row.path, row.layer.split("(")[0]) for row in result.rows] == [
        ("", "Sequential"),
        ("0", "Dense"),
        ("1", "Residual"),
        ("1.0", "Dense"),
        ("1.1", "BatchNorm"),
        ("2", "Flatten"),
        ("3", "Dense"),
    ]
    assert result.rows[1].layer == DENSE
    assert list(result.parts) == ["forward", "loss", "backward", "finite", "update"]
    assert all(row.forward > 0 and row.backward > 0 for row in result.rows)
    assert all(seconds > 0 for seconds in (*result.parts.values(), result.step))
    for part in ("forward", "backward"):
        spent = sum(getattr(row, part) for row in result.rows)
        assert result.parts[part] == pytest.approx(spent)
    assert result.total == pytest.approx(sum(result.parts.values()))
    rest = sum(result.parts[part] for part in ("loss", "finite", "update"))
    shares = sum(row.share for row in result.rows) + rest / result.total
    assert shares == pytest.approx(1.0)
    assert json.loads(json.dumps(result.to_json()))["parts"] == result.parts
    text = str(result)
    labels = "loss", "check for finite values", "update", "the real step"
    for label in (str(backend), "Dense", *labels):
        assert label in text
    assert DENSE not in text
    assert DENSE in result.to_text(verbose=True)
    assert bool(result.operations) is not backend.compiles
    assert ("fuses operations" in text) is backend.compiles


def test_small_operations_share_a_row_and_percentages_are_explained():
    seconds = {"matmul": 0.5, "add": 0.494, "exp": 0.004, "log": 0.002}
    result = Profile(
        *("numpy:cpu", 4, 3, (Row("0", DENSE, 0.25, 0.5, 0.75),)),
        {"forward": 0.25, "loss": 0.05, "backward": 0.5, "finite": 0.1, "update": 0.1},
        step=0.4,
        operations=tuple(Operation(name, 2, seconds[name]) for name in seconds),
    )
    text = " ".join(str(result).split())
    assert "2 others 4 6 0.6" in text
    assert "exp" not in text
    assert "%: of the time of all parts, 1000 ms." in text
    assert "do not add up to the real step of 400 ms" in text
    assert "%: of the time of all operations" in text
    verbose = " ".join(result.to_text(verbose=True).split())
    assert "others" not in verbose
    assert "exp 2 4 0.4 log 2 2 0.2" in verbose


def test_a_loop_that_is_compiled_is_timed_as_a_whole(backend):
    model = nn.Sequential(nn.Repeat(nn.Sequential(nn.Dense(4)), 2), nn.Dense(3))
    rows = [(row.path, row.layer) for row in profiled(model, backend).rows]
    if backend.compiles:
        inside = [("0", "Repeat(layer=Sequential(Dense(width=4, bias=True)), count=2)")]
    else:
        inside = [("0", "Repeat"), ("0", "Sequential"), ("0.0", DENSE)]
    assert rows == [("", "Sequential"), *inside, ("1", "Dense(width=3, bias=True)")]


def test_layers_made_during_forward_are_listed_in_the_order_of_calls():
    block = nn.TransformerBlock(nn.MultiHeadAttention(2), 4)
    model = nn.Sequential(nn.Reshape((2, 2)), block, nn.Flatten(), nn.Dense(3))
    paths = [row.path for row in profiled(model, "numpy").rows]
    names = "attention_norm attention feed_norm feed feed.0 feed.1 feed.2"
    inside = [f"1.{name}" for name in names.split()]
    assert paths == ["", "0", "1", *inside, "2", "3"]


@dataclass(frozen=True)
class Slow(nn.Layer):
    """y = x, after a pause."""

    forwards: float = PAUSE
    backwards: float = 0.0

    def forward(self, params, state, x, *, train=False):
        sleep(self.forwards)
        return x, state, ()

    def backward(self, params, cache, dy):
        sleep(self.backwards)
        return dy, {}


def slow_loss(y, target):
    sleep(LONG)
    return nn.mean_squared_error(y, target)


@dataclass(frozen=True)
class SlowSGD(nn.SGD):
    def update(self, params, grads, moments):
        sleep(LONG)
        return super().update(params, grads, moments)


@pytest.mark.parametrize(
    ("layer", "slow"),
    [
        (Slow(), ["forward"]),
        (Slow(0.0, PAUSE), ["backward"]),
        (nn.Residual(Slow()), ["forward"]),
        (nn.Recompute(Slow()), ["forward", "backward"]),
    ],
    ids=repr,
)
def test_a_slow_layer_has_the_largest_share(eager, layer, slow):
    model = nn.Sequential(nn.Dense(3), nn.Tanh(), layer)
    result = profiled(model, eager)
    slowest = max(result.rows, key=lambda row: row.share)
    assert slowest.layer.startswith("Slow")
    both = {"forward": slowest.forward, "backward": slowest.backward}
    assert [part for part, seconds in both.items() if seconds >= PAUSE] == slow
    assert slowest.share == pytest.approx(sum(both.values()) / result.total)
    assert result.step >= PAUSE


@pytest.mark.parametrize(
    ("part", "options"),
    [("loss", {"loss": slow_loss}), ("update", {"optimizer": SlowSGD(1e-2)})],
)
def test_a_slow_loss_or_optimizer_is_the_slowest_part(eager, part, options):
    result = profiled(nn.Dense(3), eager, steps=1, **options)
    assert max(result.parts, key=result.parts.get) == part
    assert result.parts[part] >= LONG


def test_the_first_steps_which_may_compile_do_not_count(eager):
    steps = 3
    calls = []

    def slow_at_first(y, target):
        calls.append(y)
        if len(calls) % (WARM_UP + steps) in range(1, WARM_UP + 1):
            sleep(LONG)
        return nn.mean_squared_error(y, target)

    # a loss that counts its calls and reads the count is not pure
    direct = replace(eager, replay=False)
    result = profiled(nn.Dense(3), direct, loss=slow_at_first, steps=steps)
    assert len(calls) == 3 * (WARM_UP + steps)
    assert result.parts["loss"] < LONG / 2


def test_the_dx_of_the_first_layer_is_not_computed(backend):
    class First(nn.Dense):
        def backward(self, params, cache, dy):
            raise AssertionError("dx is not needed")

    result = profiled(nn.Sequential(First(4), nn.Dense(3)), backend, steps=1)
    assert result.rows[1].backward > 0


def test_each_part_is_timed_until_its_values_are_available(backend):
    late = uncompiled(backend, synchronize=lambda array: sleep(PAUSE))
    result = profiled(nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(3)), late, steps=1)
    times = [time for row in result.rows[1:] for time in (row.forward, row.backward)]
    times += [result.parts["loss"], result.parts["update"], result.step]
    (matmul,) = [row for row in result.operations if row.name == "matmul"]
    times.append(matmul.seconds / matmul.calls)
    assert len(times) == 10
    assert all(time >= PAUSE for time in times)


def test_operations_are_counted_one_by_one(eager):
    result = profiled(nn.Sequential(nn.Dense(4), nn.Dense(3, bias=False)), eager)
    calls = {row.name: row.calls for row in result.operations}
    # forward: x W + b, x W; backward: xᵀ dy twice, dy Wᵀ once, as the first dx is not
    # needed
    assert calls["ops.affine"] == 1
    assert calls["matmul"] == 4
    assert calls["ops.sum_rows"] == calls["ops.all_finite"] == 1
    # y - target, and the step of three parameters
    assert calls["subtract"] == 4
    assert all(row.seconds > 0 for row in result.operations)
    seconds = [row.seconds for row in result.operations]
    assert seconds == sorted(seconds, reverse=True)
    assert "ops.sum_rows" in str(result)


def test_all_three_trainings_are_the_same(eager):
    losses = []

    def recorded(y, target):
        value, dy = nn.mean_squared_error(y, target)
        losses.append(float(value))
        return value, dy

    layers = nn.Dense(4), nn.BatchNorm(), nn.GELU(), nn.Dropout(0.5), nn.Dense(3)
    model, steps = nn.Sequential(*layers), 4
    result = profiled(
        model, eager, loss=recorded, optimizer=nn.AdamW(1e-1), steps=steps
    )
    assert result.operations
    whole, by_parts, operations = np.reshape(losses, (3, -1))
    assert len(whole) > steps
    assert len(set(whole)) == len(whole)
    np.testing.assert_allclose(by_parts, whole, rtol=1e-4)  # seven steps of rounding
    np.testing.assert_allclose(operations, whole, rtol=1e-4)
    trainer = nn.Trainer(model, nn.mean_squared_error, nn.AdamW(1e-1), backend=eager)
    taken = [float(trainer.step(X, TARGET)) for _ in whole]
    np.testing.assert_allclose(whole, taken, rtol=1e-4)


def test_every_layer_computes_the_same_when_it_is_observed(backend):
    if backend.compiles:
        pytest.skip("a compiler fuses operations, so that none can be timed alone")
    clock, cases = profile._Stopwatch(backend), layer_cases()
    timer = profile._OperationTimer(clock)
    assert len(cases) > 200
    for case in cases:
        arrays = backend.asarray(arrays_for(case))
        plain = run(case.layer, arrays, train=True)
        with observing(timer):
            watched = run(case.layer, tree_map(timer.wrap, arrays), train=True)
        watched = dict(named_leaves(watched))
        for name, leaf in named_leaves(plain):
            pair = backend.to_numpy((watched.pop(name).value, leaf))
            where = f"{case}: {name}"
            np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5, err_msg=where)
        assert not watched
    assert {"clip", "where", "ops.scatter_add", "random.words"} <= clock.calls.keys()


def test_a_model_of_several_inputs_has_rows_for_its_layers(backend):
    model = nn.Graph(
        seen=(nn.MultiHeadAttention(2), {"x": "x", "mask": "mask"}),
        y=(nn.Dense(3), "seen"),
    )
    x = {"x": np.stack([X, X], axis=1), "mask": np.ones((6, 2), np.bool_)}
    target = np.stack([TARGET, TARGET], axis=1)
    arguments = model, nn.mean_squared_error, nn.SGD(1e-2), x, target
    result = nn.profile(*arguments, backend=backend, steps=1)
    assert [row.path for row in result.rows] == ["", "seen", "y"]


def test_a_layer_that_cannot_be_observed_is_timed_without_operations(eager):
    class Past(nn.Tanh):
        """A custom layer that uses a method of its array that the Standard lacks."""

        def forward(self, params, state, x, *, train=False):
            np.asarray(eager.to_numpy(x) if type(x) is type(eager.asarray(X)) else x)
            return super().forward(params, state, x, train=train)

    result = profiled(nn.Sequential(nn.Dense(3), Past()), eager)
    assert result.operations == ()
    assert "operations cannot be timed one by one: TypeError" in str(result)
    assert len(result.rows) == 3


def infinite(y, target):
    xp = namespace(y)
    return xp.sum(y) * math.inf, xp.zeros_like(y)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps of at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps to be an integer"),
        ({"loss": 3}, TypeError, "the loss to be a function of"),
        ({"target": TARGET[:5]}, ValueError, "6 examples, but targets of shape"),
        ({"x": X * math.nan}, ValueError, "expected finite numbers"),
        ({"loss": infinite}, nn.NonFiniteLoss, "step 1 was skipped: its loss is"),
        ({"backend": "nonesuch"}, nn.BackendUnavailable, "no backend is called"),
    ],
)
def test_invalid_arguments_are_refused(backend, changes, error, message):
    options = {
        "loss": nn.mean_squared_error,
        "x": X,
        "target": TARGET,
        "backend": backend,
    } | changes
    with pytest.raises(error, match=message):
        nn.profile(nn.Dense(3), optimizer=nn.SGD(1e-2), **options)


# --- the command ----------------------------------------------------------------------


def test_the_command_prints_and_writes_its_results(backend, tmp_path, capsys):
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    file = tmp_path / "profile.json"
    arguments = [
        "profile",
        "--workload=breast-cancer",
        f"--backend={backend}",
        "--steps=2",
    ]
    assert main([*arguments, f"--json={file}"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(
        f"breast-cancer on {backend}, a batch of 32: medians of 2 steps\n"
    )
    assert "Dense(width=32, bias=True)" not in out
    assert main([*arguments, "--verbose"]) == 0
    assert "Dense(width=32, bias=True)" in capsys.readouterr().out
    assert out.endswith(f"written: {file}\n")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["workload"] == "breast-cancer"
    assert [row["path"] for row in result["rows"]] == ["", "0", "1", "2", "3", "4"]
    assert result["total"] == pytest.approx(sum(result["parts"].values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload=nonesuch"], "there are digits-mlp, digits-norm"),
        (["--backend=nonesuch"], "no backend is called 'nonesuch'"),
        (["--steps=0"], "at least 1, got '0'"),
        (["--json=missing/profile.json"], "missing is not a folder"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["profile", *arguments])
    except SystemExit as stop:  # argparse's way
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("agnostic-nn profile")
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_written_does_not_hide_the_table(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="the data come with scikit-learn")
    arguments = ["profile", "--workload=breast-cancer", "--backend=numpy", "--steps=1"]
    assert main([*arguments, f"--json={tmp_path}"]) == 1
    out, err = capsys.readouterr()
    assert "the real step" in out
    assert "cannot be written" in err
    assert err.count("\n") == 1


def test_a_weight_that_follows_a_schedule_gets_the_number_of_the_step():
    steps = []

    def weight(t):
        steps.append(float(t))
        return 1.0 + t

    x = np.ones((4, 3), np.float32)
    loss = nn.Weighted(nn.mean_squared_error, weight)
    arguments = nn.Dense(2), loss, nn.SGD(1e-3), x, x[:, :2]
    result = nn.profile(*arguments, backend=nn.backend("numpy", replay=False), steps=2)
    assert result.step > 0.0
    assert result.parts["loss"] > 0.0
    once = [float(number) for number in range(WARM_UP + 2)]
    assert [t for t in steps if t in once] == steps
    assert steps[: len(once)] == once
    # by whole steps, part by part, operation by operation
    assert steps[-len(once) :] == once
    assert len(steps) == 3 * len(once)


def test_a_loss_that_takes_a_context_is_refused():
    def loss(y, target, *, context=None):
        return nn.mean_squared_error(y, target)

    x = np.ones((4, 2), np.float32)
    with pytest.raises(
        ValueError, match=r"profile passes no context, and loss takes one"
    ):
        nn.profile(nn.Dense(2), loss, nn.SGD(1e-3), x, x)
