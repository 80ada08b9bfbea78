"""`compare` with a user's model and data; wrong arguments are refused in one line."""

import json
import re
import shlex
import sys
from inspect import signature

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves, tree_map
from agnostic_nn.diagnostics.cli.main import main, parser
from agnostic_nn.diagnostics.compare import (
    CannotCompare,
    Workload,
    run_comparison,
    summary,
    user_workload,
)
from agnostic_nn.diagnostics.loading import load
from agnostic_nn.training.batches import Examples

MODULE = """
import agnostic_nn as nn

model = nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(3))

frozen = nn.Sequential(nn.Freeze(nn.Dense(8)), nn.Recompute(nn.Dense(3)))
graph = nn.Graph(a=(nn.Dense(4), "x"), b=(nn.Tanh(), "a"), c=(nn.Dense(3), "b"))

class Kept(nn.Dense):  # its cache is a dict, of arrays in pairs
    def forward(self, params, state, x, *, train=False):
        y, state, cache = super().forward(params, state, x, train=train)
        return y, state, {"x": (x, x)}

    def backward_params(self, params, cache, dy):
        return super().backward_params(params, cache["x"][0], dy)

kept = nn.Sequential(Kept(8), nn.Dense(3))

def line():
    return nn.Dense(1)

biased = nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.Tanh(), nn.Dense(3))

class home:
    wide = nn.Dense(3)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with modules and data; its imports are forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "jinja2", None)  # pages take seconds to draw
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((60, 4)).astype(np.float32)
    label = (np.abs(x[:, 0]) * 2).astype(np.int64).clip(0, 2)
    number = x[:, :1] * 2.0
    np.savez("labels.npz", x=x, target=label)
    np.savez("numbers.npz", x=x.astype(np.float64), target=number.astype(np.float64))
    np.savez(
        "parted.npz", x=x[:40], target=label[:40], x_test=x[40:], target_test=label[40:]
    )
    np.savez("nameless.npz", y=x)
    np.savez("half.npz", x=x, target=label, x_test=x)
    np.savez("uneven.npz", x=x, target=label[:50])
    np.savez("few.npz", x=x[:3], target=label[:3])
    np.savez("words.npz", x=np.asarray(["a"] * 60), target=label)
    np.savez("large.npz", x=x, target=np.full(60, 2**40))
    np.savez("many.npz", x=x, target=label + 5)
    np.savez("other.npz", x=x, target=label, x_test=x[:, :3], target_test=label)
    x[3, 2] = np.nan
    np.savez("nan.npz", x=x, target=label)
    np.savez("masked.npz", x=x[4:], target=label[4:], mask=label[4:] > 0, w=label[4:])
    np.savez(
        "untested.npz", x=x[4:], target=label[4:], x_test=x[:0], target_test=label[:0]
    )
    np.save("one.npy", x)
    (tmp_path / "text.npz").write_text("no arrays", encoding="utf-8")
    yield tmp_path
    sys.modules.pop("mine", None)


def trained(capsys, *arguments):
    command = ["compare", "--backends=numpy", "--epochs=2", "--no-batches", "--quiet"]
    status = main([*command, *arguments])
    assert (status, capsys.readouterr().err) == (0, "")
    with open("report/latest/report.json", encoding="utf-8") as file:
        return json.load(file)


def test_a_layer_is_trained_on_labels_by_cross_entropy(folder, capsys):
    report = trained(capsys, "--model=mine:model", "--data=labels.npz")
    task = report["workload"]
    assert task["name"] == "mine:model"
    assert task["loss"] == "softmax_cross_entropy"
    assert task["metric"] == "test accuracy"
    assert task["model"].startswith("Sequential(Dense(width=8")
    assert (task["training_examples"], task["test_examples"]) == (48, 12)
    assert "a random fifth" in task["about"]
    assert report["results"][0]["verdict"] == "agrees over 4 steps"
    assert 0.0 <= report["results"][0]["test_metric"] <= 1.0


@pytest.mark.parametrize(
    ("model", "layers"),
    [("frozen", "0, 1, "), ("graph", "a, b, c, "), ("kept", "0, 1, ")],
)
def test_only_layers_are_reported_whatever_they_contain(folder, capsys, model, layers):
    report = trained(capsys, f"--model=mine:{model}", "--data=labels.npz")
    assert ", ".join(report["results"][0]["deviations"]["layers"]) == layers


def test_a_function_that_gives_a_layer_is_called_and_numbers_are_fitted(folder, capsys):
    report = trained(
        capsys, "--model=mine:line", "--data=numbers.npz", "--batch-size=12"
    )
    assert report["workload"]["loss"] == "mean_squared_error"
    assert report["workload"]["metric"] == "test absolute error"
    assert report["workload"]["batch_size"] == 12
    assert report["results"][0]["test_metric"] > 0.0


def test_a_custom_test_set_is_used(folder, capsys):
    report = trained(capsys, "--model=mine:home.wide", "--data=parted.npz")["workload"]
    assert (report["training_examples"], report["test_examples"]) == (40, 20)
    assert report["about"] == "parted.npz: 60 examples; the test set is separate"


def test_loss_and_optimizer_are_named_with_literal_arguments(folder, capsys):
    options = "--loss=huber(delta=0.5)", "--optimizer=SGD(0.05, momentum=0.9)"
    report = trained(capsys, "--model=mine:line", "--data=numbers.npz", *options)[
        "workload"
    ]
    assert "delta=0.5" in report["loss"]
    assert report["optimizer"].startswith("SGD(rate=0.05, momentum=0.9")


LABELS = ("--model=mine:model", "--data=labels.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model=mine:nothing", "--data=labels.npz"],
            "mine has no 'nothing'; its layers are mo",
        ),
        (["--model=mine:model"], "--model needs --data"),
        (["--data=labels.npz"], "--data cannot be used without --model"),
        (["--loss=huber"], "--loss cannot be used without"),
        (["--batch-size=3"], "--batch-size cannot be used without"),
        (
            [*LABELS, "--workload=digits-mlp"],
            "--model and --workload cannot be used together",
        ),
        ([*LABELS, "--labels=a"], "--labels can only be used with --merge"),
        (
            ["--model=mine:model", "--data=absent.npz"],
            "absent.npz cannot be read: No such file",
        ),
        (["--model=mine:model", "--data=text.npz"], "text.npz is not an npz file"),
        (["--model=mine:model", "--data=one.npy"], "one.npy is a single array"),
        (
            ["--model=mine:model", "--data=nameless.npz"],
            "no array called x and target: it has y",
        ),
        (["--model=mine:model", "--data=half.npz"], "has x_test, but no target_test"),
        (
            ["--model=mine:model", "--data=uneven.npz"],
            "npz do not fit: ValueError: 60 examples, but targets of shape (50,)",
        ),
        (
            ["--model=mine:model", "--data=few.npz"],
            "3 examples are too few to hold out a fifth",
        ),
        (
            ["--model=mine:model", "--data=words.npz"],
            "expected x to hold numbers, got dtype <U1",
        ),
        (
            ["--model=mine:model", "--data=large.npz"],
            "label[0] is 1099511627776; for the loss softmax_cross_entropy",
        ),
        (["--model=mine:model", "--data=many.npz"], "expected labels from 0 to 2"),
        (
            ["--model=mine:model", "--data=other.npz"],
            "0.weight would be (3, 8) instead of (4, 8); in the test set (x_test,",
        ),
        (
            ["--model=mine:model", "--data=nan.npz"],
            "ValueError: expected finite numbers, but x[3, 2] is nan",
        ),
        (
            ["--model=mine:model", "--data=untested.npz"],
            "one example, got x of shape (0, 4); in the test set (x_test, target_test)",
        ),
        (
            ["--model=mine:model", "--data=masked.npz"],
            "masked.npz has mask, w, which nothing would use; expected x and target",
        ),
        (
            ["--model=mine:model", "--data=numbers.npz"],
            "ValueError: expected targets (batch, 3)",
        ),
        (
            [*LABELS, "--loss=nonesuch"],
            "no loss is called 'nonesuch'; there are binary_cross",
        ),
        ([*LABELS, "--loss=huber(1.0)"], "a loss takes its options by name"),
        ([*LABELS, "--loss=huber("], "expected a loss such as huber(delta=0.5)"),
        ([*LABELS, "--optimizer=Loss"], "no optimizer is called 'Loss'"),
        (
            [*LABELS, "--optimizer=Adam(rate=-1)"],
            "cannot be an optimizer: expected a finite rate",
        ),
        ([*LABELS, "--optimizer=Adam(speed=1)"], "unexpected keyword argument 'speed'"),
        ([*LABELS, "--optimizer=Adam(rate=open('x'))"], "arguments must be literals"),
        (
            [*LABELS, "--optimizer=nn.Adam"],
            "expected an optimizer such as Adam(rate=1e-3)",
        ),
        (
            [*LABELS, "--dtypes=float8"],
            "expected dtypes among float32, float64, bfloat16, float16, got float8",
        ),
        (
            ["--merge", "a.json", "b.json", "--epochs=1"],
            "--epochs cannot be used with --merge: it",
        ),
        (["--merge", "a.json", "b.json"], "a.json cannot be read: No such file"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(
    folder, capsys, arguments, message
):
    assert main(["compare", "--quiet", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("agnostic-nn compare: ")
    assert err.count("\n") == 1
    assert not (folder / "report").exists()


def test_arguments_are_read_and_never_run(folder, capsys):
    run = "__import__('pathlib').Path('ran').touch()"
    for optimizer in (f"Adam(rate={run})", f"Adam({run})", run, f"(lambda: {run})()"):
        assert main(["compare", *LABELS, "--quiet", f"--optimizer={optimizer}"]) == 2
    capsys.readouterr()
    assert not (folder / "ran").exists()


# --- verdicts, their exit status, and commands that can be pasted ---------------------


QUICK = ("compare", "--backends=numpy", "--epochs=2", "--no-batches", "--quiet")


def printed(capsys, *arguments):
    """The exit status, what is printed, and the report."""
    status = main([*QUICK, *arguments])
    out = capsys.readouterr().out.replace("\\\n", " ")
    with open("report/latest/report.json", encoding="utf-8") as file:
        return status, out, json.load(file)


def pasted(text):
    """Each command in a text, as the words that a shell makes of it."""
    commands = re.findall(r"`(agnostic-nn [^`]+)`|^    (agnostic-nn .+)$", text, re.M)
    return [shlex.split(quoted or line) for quoted, line in commands]


@pytest.fixture
def rough(monkeypatch):
    """In float32, and in float64 on demand, `Dense` keeps ten digits of its weights."""
    forward = nn.Dense.forward

    def roughly(self, params, state, x, *, train=False):
        if isinstance(x, np.ndarray) and type(params["weight"]) is np.ndarray:
            rounded = params["weight"].astype(np.float16).astype(x.dtype)
            params = params | {"weight": rounded}
        return forward(self, params, state, x, train=train)

    monkeypatch.setattr(nn.Dense, "forward", roughly)


def test_a_difference_is_status_1_and_the_command_that_is_printed_runs(
    folder, capsys, rough
):
    options = ["--model=mine:model", "--data=labels.npz", "--seed=3", "--batch-size=16"]
    options += [
        "--loss=softmax_cross_entropy(label_smoothing=0.1)",
        "--optimizer=SGD(rate=0.1)",
    ]
    status, out, report = printed(capsys, *options)
    result = report["results"][0]
    assert (status, report["verdict"]["status"], result["status"]) == (
        1,
        "differs",
        "differs",
    )
    assert result["first_difference"]["description"] == "the output of layer 0 (Dense)"
    (words,) = pasted(out)
    assert words == shlex.split(result["command"])
    assert words[:2] == ["agnostic-nn", "bisect"]
    chosen = vars(parser().parse_args(words[1:]))
    assert chosen["backends"] == ["numpy:cpu"]
    assert (chosen["model"], str(chosen["data"])) == ("mine:model", "labels.npz")
    assert (chosen["seed"], chosen["batch_size"], chosen["steps"]) == (3, 16, 0)
    assert chosen["loss"] == "softmax_cross_entropy(label_smoothing=0.1)"
    assert chosen["optimizer"] == "SGD(rate=0.1)"
    markdown = (folder / "report/latest/report.md").read_text(encoding="utf-8")
    assert pasted(markdown) == [words]
    assert main(words[1:]) == 1
    assert "layer 0 (Dense(width=8" in capsys.readouterr().out


def test_commands_name_the_dtype_and_the_policy_of_a_run(folder, capsys, rough):
    options = ["--model=mine:model", "--data=labels.npz", "--dtypes=float32,float64"]
    _, out, _ = printed(capsys, *options, "--precision=fast", "--deterministic")
    commands = pasted(out)
    backends = [parser().parse_args(words[1:]).backends for words in commands]
    assert backends == [
        ["numpy:cpu@fast@deterministic"],
        ["numpy:cpu@float64@fast@deterministic"],
    ]
    assert all(
        "--batch-size" not in words and "--seed" not in words for words in commands
    )


def test_parameters_and_devices_that_cannot_be_checked_are_named_with_status_2(
    folder, capsys
):
    options = ["--model=mine:biased", "--data=labels.npz"]
    status, out, report = printed(capsys, *options, "--optimizer=Adam(0.02)")
    assert (status, report["verdict"]["status"]) == (2, "not checked")
    expected = "numpy:cpu agrees, but 0.bias (Dense) after training cannot be checked,"
    assert " ".join(out.split()).startswith(expected)
    status, out, report = printed(capsys, *options, "--optimizer=SGD(0.02)")
    assert (status, report["verdict"]["status"]) == (0, "agrees")
    assert "cannot be checked" not in out
    assert main([*QUICK, *options, "--backends=numpy:tape"]) == 2
    assert "numpy has no device 'tape'" in capsys.readouterr().err


def test_the_help_says_what_the_exit_status_means(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "0 if everything was checked and agrees" in text
    assert "1 if a backend differs" in text
    assert "2 if none differs, but a backend failed, something could not be" in text
    assert "2 also if the command line is invalid or a named backend cannot run" in text
    assert "or the requested precision (strict by default) was not used" in text


# --- explain and profile with a user's model ------------------------------------------


def test_explain_and_profile_take_a_users_model_and_data(folder, capsys):
    mine = ["--backend=numpy", "--model=mine:model", "--data=labels.npz"]
    assert main(["explain", *mine, "--rows=3"]) == 0
    text = capsys.readouterr().out
    assert "a batch of 3 on numpy" in text
    assert "softmax_cross_entropy" in text  # the default for integer targets
    assert main(["profile", *mine, "--batch-size=20", "--steps=1", "--verbose"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("mine:model on numpy:cpu, a batch of 20: ")
    assert "Dense(width=8, bias=True)" in text


@pytest.mark.parametrize("command", ["explain", "profile"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=mine:model"], "--model needs --data"),
        (["--loss=huber"], "--loss cannot be used without --model"),
        (
            ["--model=mine:model", "--data=labels.npz", "--workload=digits-mlp"],
            "--model and --workload cannot be used together",
        ),
        (["--model=mine:model", "--data=nameless.npz"], "has no array called x"),
    ],
)
def test_wrong_arguments_of_explain_and_profile_are_refused(
    command, arguments, message, folder, capsys
):
    assert main([command, *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"agnostic-nn {command}: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_example_of_explain_refuses_a_users_model(folder, capsys):
    assert main(["explain", "--example=softmax_network", "--model=mine:model"]) == 2
    assert "--model cannot be used with --example" in capsys.readouterr().err


# --- weights of examples, and losses that take none -----------------------------------


def workload(loss, weights=None, **settings):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((40, 3)).astype(np.float32)
    train = Examples(x, x[:, :1] * 2, weights)
    test = Examples(x[:8], x[:8, :1] * 2)
    return Workload(
        name="own",
        about="numbers",
        read=lambda: (train, test),
        model=nn.Dense(1),
        loss=loss,
        epochs=2,
        **{"batch_size": 16, "metric": None, **settings},
    )


def plain_loss(y, target):
    return ((y - target) ** 2).mean(), 2.0 * (y - target) / y.size


def test_weights_of_examples_train_as_in_a_trainer():
    weights = np.random.default_rng(1).uniform(0.0, 2.0, 40)
    task = workload(nn.mean_squared_error, weights, metric=nn.absolute_error)
    report = run_comparison(task, ["numpy"], sizes=(4,))
    assert report.verdict.status == "agrees"
    parts = task.model, task.loss, task.optimizer
    start = nn.Trainer(*parts, backend="numpy", shape=(3,)).params
    trainer = nn.Trainer(
        *parts, backend="numpy", dtype="float64", metrics={"error": nn.absolute_error}
    )
    train, test = (
        [leaf.astype(np.float64) for leaf in (part.x, part.target)]
        for part in task.read()
    )
    trainer.build((3,))
    trainer.start_from(tree_map(np.float64, start))
    trainer.fit(*train, weights=weights, batch_size=16, epochs=2, verbose=0)
    expected = trainer.evaluate(*test)["error"]
    assert report.reference.test_metric == pytest.approx(expected, rel=1e-9)


def test_a_loss_without_weights_trains_on_whole_batches_only():
    task = workload(plain_loss, batch_size=20, metric=nn.absolute_error)
    report = run_comparison(task, ["numpy"], sizes=(4,))
    assert report.verdict.status == "agrees"
    assert report.workload.loss == "plain_loss"
    message = (
        "the last of the batches of 16 has 8 of 40 training examples, and needs weights"
        " to be padded, which plain_loss does not take: give it a third parameter, "
        "weights=None, or choose a batch size that divides 40"
    )
    with pytest.raises(CannotCompare, match=re.escape(message)):
        run_comparison(workload(plain_loss), ["numpy"])


# --- several inputs and outputs, custom losses, optimizers and metrics ----------------


PARTS = """
import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.losses.base import reduced


class Rough(nn.Dense):  # in float32 its outputs have twelve bits
    def forward(self, params, state, x, *, train=False):
        y, state, cache = super().forward(params, state, x, train=train)
        if str(y.dtype).endswith("float32"):
            large = y * 4097.0
            y = large - (large - y)
        return y, state, cache


def two_heads(size):
    return nn.Graph(
        read=(nn.Dense(8), "x"),
        mixed=(nn.MultiHeadAttention(2, bias=False), {"x": "read", "mask": "mask"}),
        last=(nn.LSTM(8, sequence=False), {"x": "mixed", "mask": "mask"}),
        label=(nn.Dense(2), "last"),
        size=(size, "last"),
        outputs={"label": "label", "size": "size"},
    )


right = two_heads(nn.Dense(1))
wrong = two_heads(Rough(1))
both = nn.Losses(label=nn.softmax_cross_entropy, size=nn.huber, weights={"size": 0.5})
pair = nn.Sequential(nn.Concatenate(), nn.Dense(1))
line = nn.Dense(1)


def label_accuracy(y, target):
    return nn.accuracy(y["label"], target["label"])


def quantile(y, target, weights=None, *, level=0.5, reduction="mean"):
    xp = namespace(y)
    error = target - y
    values = xp.maximum(level * error, (level - 1.0) * error)
    slopes = (1.0 - level) - xp.astype(error > 0, y.dtype)
    return reduced(values, slopes, weights, reduction)


def cubic(y, target):  # without weights, a check or metrics
    xp = namespace(y)
    error = y - target
    count = y.shape[0]
    return xp.sum(xp.abs(error) ** 3) / count, 3.0 * error * xp.abs(error) / count


def taught(y, target, weights=None, *, context):
    return nn.mean_squared_error(y, target + context["shift"], weights)


def within(y, target, *, limit=0.5):
    xp = namespace(y)
    return xp.astype(xp.abs(y - target) < limit, y.dtype)


class Walk:
    def __init__(self, rate=0.05):
        self.rate = rate

    def init(self, params):
        return ()

    def update(self, params, grads, moments):
        step = lambda p, g: p - self.rate * g
        return nn.trees.tree_map(step, params, grads), moments
"""


def sequences():
    """Padded sequences with a mask, and two targets."""
    draw = np.random.default_rng(0)
    mask = np.arange(6) < draw.integers(2, 6, 40)[:, None]
    x = (draw.standard_normal((40, 6, 3)) * mask[..., None]).astype(np.float32)
    label = (x.sum(axis=(1, 2)) > 0).astype(np.int64)
    target = {"label": label, "size": x.std(axis=(1, 2))[:, None]}
    return {"x": x, "mask": mask}, target


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The module `parts` and data in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "jinja2", None)  # pages take seconds to draw
    (tmp_path / "parts.py").write_text(PARTS, encoding="utf-8")
    x, target = sequences()
    weights = np.random.default_rng(1).uniform(0.5, 1.5, 40)
    named = dict(named_leaves({"x": x, "target": target}))
    np.savez("heads.npz", **named, weights=weights)
    a, b = x["x"][:, 0], x["x"][:, 1, :2]
    rest = {"target": a[:, :1] * 2.0}
    np.savez("numbers.npz", x=a, **rest)
    np.savez("pair.npz", **{"x.0": a, "x.1": b}, **rest, **{"context.shift": 0.5})
    test = {"x_test.0": a[:9], "x_test.1": b[:9], "target_test": rest["target"][:9]}
    np.savez("tested.npz", **{"x.0": a, "x.1": b}, **rest, **test)
    np.savez("gap.npz", **{"x.0": a, "x.2": b}, **rest)
    np.savez("both.npz", **{"x.image": a, "x": b}, **rest)
    np.savez("inner.npz", **{"x.0.a": a, "x.0": b}, **rest)
    np.savez("uneven.npz", **{"x.0": a, "x.1": b[:9]}, **rest)
    np.savez("untested.npz", **{"x.0": a, "x.1": b, "x_test.0": a}, **rest)
    test.pop("x_test.1")
    np.savez("lacking.npz", **{"x.0": a, "x.1": b}, **rest, **test)
    test = {"x_test": a, "target_test": a[:, :1] > 0}
    np.savez("signs.npz", x=a, **rest, **test)
    np.savez("negative.npz", x=a, weights=-weights, **rest)
    np.savez(
        "unused.npz", x=a, weights_test=weights, **{"x.": a, "weights.a": b}, **rest
    )
    yield tmp_path
    sys.modules.pop("parts", None)


HEADS = (
    "--data=heads.npz",
    "--loss=parts:both",
    "--optimizer=parts:Walk(rate=0.1)",
    "--metric=parts:label_accuracy",
)


def test_inputs_with_a_mask_and_two_outputs_are_read_from_a_file(parts, capsys):
    report = trained(capsys, "--model=parts:right", *HEADS)
    task = report["workload"]
    loss = "Losses(label=softmax_cross_entropy, size=huber, weights={'size': 0.5})"
    assert task["loss"] == loss
    assert task["optimizer"] == "<parts.Walk object>"
    assert task["metric"] == "test label accuracy"
    assert (task["training_examples"], task["test_examples"]) == (32, 8)
    assert report["verdict"]["status"] == "agrees"


def test_each_of_several_targets_has_a_default_loss_and_metric(parts, capsys):
    task = trained(capsys, "--model=parts:right", "--data=heads.npz")["workload"]
    loss = "Losses(label=softmax_cross_entropy, size=mean_squared_error)"
    assert (task["loss"], task["metric"]) == (loss, "test label.accuracy")


def test_a_fault_in_one_head_is_found_by_name_and_the_command_finds_it_again(
    parts, capsys
):
    status, out, report = printed(capsys, "--model=parts:wrong", *HEADS)
    (result,) = report["results"]
    assert (status, result["status"]) == (1, "differs")
    assert result["first_difference"]["layer"] == "size"
    assert (
        result["first_difference"]["description"] == "the output of layer size (Rough)"
    )
    (words,) = pasted(out)
    assert words == shlex.split(result["command"])
    chosen = vars(parser().parse_args(words[1:]))
    expected = [option.partition("=")[2] for option in HEADS]
    names = ("data", "loss", "optimizer", "metric")
    assert [str(chosen[name]) for name in names] == expected
    assert main(words[1:]) == 1
    assert "Differs first in layer size (Rough(width=1" in capsys.readouterr().out


def test_bisect_reads_the_weights_and_the_context_of_a_file(parts, capsys):
    for model, *options in (("right", *HEADS), ("pair", *TAUGHT)):
        command = ["bisect", "numpy", f"--model=parts:{model}", *options]
        assert main(command) == 0
        assert "Agrees within rounding" in capsys.readouterr().out


TAUGHT = ("--data=pair.npz", "--loss=parts:taught")


@pytest.mark.parametrize(
    ("options", "loss", "metric"),
    [
        (["line", "--data=numbers.npz"], "mean_squared_error", "absolute error"),
        (["pair", "--data=tested.npz"], "mean_squared_error", "absolute error"),
        (["pair", *TAUGHT, "--metric=parts:within(limit=0.2)"], "taught", "within"),
        (
            ["line", "--data=numbers.npz", "--loss=parts:quantile(level=0.75)"],
            "quantile(level=0.75)",
            "absolute error",
        ),
        (
            ["line", "--data=numbers.npz", "--loss=parts:cubic", "--batch-size=16"],
            "cubic",
            "absolute error",
        ),
    ],
    ids=["one input", "a tuple and a test set", "a context", "options", "no weights"],
)
def test_the_report_says_which_loss_and_metric_were_used(
    parts, capsys, options, loss, metric
):
    model, *others = options
    report = trained(capsys, f"--model=parts:{model}", *others)
    task = report["workload"]
    assert (task["loss"], task["metric"]) == (loss, f"test {metric}")
    assert report["verdict"]["status"] == "agrees"
    tested = 9 if "--data=tested.npz" in others else 8
    assert task["test_examples"] == tested


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pair", "--data=gap.npz"], "gap.npz has x.0 and x.2, but no x.1"),
        (
            ["pair", "--data=both.npz"],
            "both.npz has x and x.image: expected one array, or several by name",
        ),
        (["pair", "--data=inner.npz"], "inner.npz has x.0 and x.0.a: expected one"),
        (["pair", "--data=uneven.npz"], "x.0 holds 40 examples, but x.1 has shape"),
        (["pair", "--data=untested.npz"], "has x_test, but no target_test"),
        (
            ["pair", "--data=lacking.npz"],
            "takes x.0 and x.1, got x.0; in the test set (x_test, target_test)",
        ),
        (
            ["line", "--data=signs.npz", "--loss=parts:cubic"],
            "is float32 (40, 1) for training, but bool (40, 1) here; in the test set",
        ),
        (["line", "--data=negative.npz"], "expected finite weights of at least 0"),
        (
            ["line", "--data=unused.npz"],
            "unused.npz has weights_test, x., weights.a, which nothing would use; "
            "expected x and target, and optionally x_test, target_test, weights, con",
        ),
        (
            ["pair", "--data=pair.npz"],
            "there is a context, but mean_squared_error takes none",
        ),
        (
            ["line", "--data=numbers.npz", "--loss=parts:taught"],
            "taught takes a context: numbers.npz has no array called context",
        ),
        (
            ["right", "--data=heads.npz", "--metric=accuracy"],
            "; for the metric accuracy",
        ),
        (
            ["line", "--data=numbers.npz", "--metric=parts:cubic"],
            "expected the metric 'cubic' to return an array of one value per example",
        ),
        (
            ["line", "--data=numbers.npz", "--loss=parts:cubic", "--batch-size=20"],
            "the last of the batches of 20 has 12 of 32 training examples, and needs",
        ),
    ],
)
def test_data_and_functions_that_do_not_fit_are_refused(
    parts, capsys, arguments, message
):
    model, *options = arguments
    assert main([*QUICK, f"--model=parts:{model}", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize("command", ["explain", "profile"])
def test_explain_and_profile_refuse_a_context_in_one_line(parts, capsys, command):
    assert main([command, "--backend=numpy", "--model=parts:pair", *TAUGHT]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "context" in err


# --- nn.compare -----------------------------------------------------------------------


def compared(model, x, target, *arguments, **options):
    settings = {"backends": ["numpy"], "epochs": 2, "sizes": (), **options}
    return nn.compare(model, x, target, *arguments, **settings)


def test_compare_trains_a_model_and_its_report_is_read_in_python(tmp_path, parts):
    x, target = sequences()

    right = load("parts:right")
    loss = load("parts:both")
    report = compared(right, x, target, loss, nn.SGD(0.1), name="two heads", seed=3)
    assert report.verdict.status == "agrees"
    (result,) = report.results
    assert (result.status, result.first_difference) == ("agrees", None)
    assert report.workload.name == "two heads"
    assert report.workload.optimizer.startswith("SGD(rate=0.1")
    assert report.workload.about == "40 examples; a random fifth is the test set"
    assert result.command is None
    assert str(report) == summary(report)
    assert "numpy:cpu" in report._repr_html_()
    paths = report.save(tmp_path / "saved")
    assert [path.name for path in paths] == ["report.json", "report.md"]
    with open(paths[0], encoding="utf-8") as file:
        assert type(report).from_json(json.load(file)) == report


def test_compare_finds_a_fault_in_one_head_by_name(parts):
    report = compared(load("parts:wrong"), *sequences())
    assert report.verdict.status == "differs"
    first = report.results[0].first_difference
    assert (first.layer, first.description) == (
        "size",
        "the output of layer size (Rough)",
    )


def test_compare_takes_weights_a_context_a_test_set_and_a_metric(parts):
    draw = np.random.default_rng(2)
    x = draw.standard_normal((40, 3))
    target = x[:, :1] * 2.0
    weights = draw.uniform(0.0, 1.0, 40)
    options = {"test": (x[:10], target[:10]), "metric": load("parts:within")}
    context = {"shift": 0.5}
    reports = [
        compared(nn.Dense(1), x, target, loss, weights=w, context=c, **options)
        for loss, w, c in [
            (None, None, None),
            (None, weights, None),
            (load("parts:taught"), weights, context),
            (load("parts:taught"), weights, {"shift": np.float64(0.5)}),
        ]
    ]
    assert {report.verdict.status for report in reports} == {"agrees"}
    assert {report.workload.metric for report in reports} == {"test within"}
    assert {report.workload.test_examples for report in reports} == {10}
    first_losses = [report.reference.losses[0] for report in reports]
    assert len(set(first_losses)) == 3
    assert first_losses[2] == first_losses[3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": [[1.0, 2.0]] * 4}, ValueError, "4 examples are too few to hold out"),
        ({"test": np.ones((4, 2))}, TypeError, "expected test as"),
        ({"loss": nn.Losses}, TypeError, "expected the loss to be a function of"),
        ({"optimizer": nn.Adam}, TypeError, "Adam"),
        ({"model": nn.Dense}, TypeError, "expected a layer or a block as the model"),
        ({"backends": "numpy"}, TypeError, "expected backends as a list"),
        ({"batch_size": 0}, ValueError, "expected batch_size to be an integer"),
        ({"context": lambda: 1}, TypeError, "the same for all steps"),
        ({"target": ([0] * 20, [1] * 20)}, ValueError, "expected labels|examples"),
        ({"weights": np.ones(7)}, ValueError, r"expected weights of shape \(20,\)"),
    ],
)
def test_compare_refuses_what_does_not_fit_as_a_trainer_does(options, error, message):
    x = np.random.default_rng(0).standard_normal((20, 2))
    arguments = {"model": nn.Dense(2), "x": x, "target": [0, 1] * 10, **options}
    if len(arguments["x"]) != 20:
        arguments["target"] = [0, 1, 0, 1]
    with pytest.raises(error, match=message):
        nn.compare(**{"backends": ["numpy"], "sizes": (), **arguments})


def test_compare_has_all_options_of_a_comparison_of_workloads():
    options = signature(run_comparison).parameters.keys() - {"workload", "names"}
    assert options <= signature(nn.compare).parameters.keys()


def test_each_backend_trains_a_model_with_a_mask_and_two_outputs(backend, parts):
    arguments = load("parts:right"), *sequences(), load("parts:both")
    options = {"backends": [str(backend)], "epochs": 1}
    report = compared(*arguments, weights=np.linspace(0.5, 1.5, 40), **options)
    assert report.verdict.status == "agrees"


def test_explain_weights_the_examples_of_a_file(parts, capsys):
    options = ["--model=parts:right", "--data=heads.npz", "--loss=parts:both"]
    assert main(["explain", "--backend=numpy", *options, "--rows=32"]) == 0
    printed_loss = re.search(r"L = ([\d.]+)", capsys.readouterr().out)
    train, _ = user_workload("parts:right", "heads.npz", "parts:both").read()
    trainer = nn.Trainer(
        load("parts:right"), load("parts:both"), nn.Adam(), backend="numpy"
    )
    trainer.examples(train.x, train.target)
    results = trainer.evaluate(train.x, train.target, weights=train.weights)
    assert float(printed_loss[1]) == pytest.approx(results["loss"], rel=1e-4)
