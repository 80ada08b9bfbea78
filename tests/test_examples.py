"""The examples compute the numbers that the five notebooks printed."""

import dataclasses
import functools
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agnostic_nn.core.arrays import namespace

EXAMPLES = Path(__file__).parents[1] / "examples"

# script: {name of a result: output of the notebook}, in the order of printing
NOTEBOOKS = {
    "train_neuron_and_layer": {
        "loss": """\
Iteration 1, Loss: 466.56000000000006
Iteration 21, Loss: 5.32959636083938
Iteration 41, Loss: 0.41191523404899866
Iteration 61, Loss: 0.031836212079467595
Iteration 81, Loss: 0.002460565465389601
Iteration 101, Loss: 0.000190172825660145
Iteration 121, Loss: 1.4698126966451542e-05
Iteration 141, Loss: 1.1359926717815175e-06
Iteration 161, Loss: 8.779889800154524e-08
Iteration 181, Loss: 6.7858241357822796e-09""",
        "weight": """\
Final weights:
 [[-0.00698895 -0.01397789 -0.02096684 -0.02795579]
 [ 0.25975286  0.11950572 -0.02074143 -0.16098857]
 [ 0.53548461  0.27096922  0.00645383 -0.25806156]]""",
        "bias": """\
Final biases:
 [-0.00698895 -0.04024714 -0.06451539]""",
    },
    "dense_and_relu_backward": {
        "dL_dW": """\
[[ 0.5  0.5  0.5]
 [20.1 20.1 20.1]
 [10.9 10.9 10.9]
 [ 4.1  4.1  4.1]]""",
        "dL_db": "[[6 6 6]]",
        "dL_dX": """\
[[ 0.44 -0.38 -0.07  1.37]
 [ 0.88 -0.76 -0.14  2.74]
 [ 1.32 -1.14 -0.21  4.11]]""",
    },
    "softmax_network": {
        "z1": " z1:\n [[-1]\n [ 3]\n [ 5]\n [ 3]]",
        "a1": " a1:\n [[0]\n [3]\n [5]\n [3]]",
        "z2": " z2:\n [[2]\n [4]]",
        "a2": " a2:\n [[2]\n [4]]",
        "a3": " a3:\n [[0.5]\n [0.5]\n [0. ]]",
        "dL_dz3": " dL_dz3:\n [[ 0.5]\n [-0.5]\n [ 0. ]]",
        "dL_dW3": " ∂L/∂W3:\n [[ 1. -1.  0.]\n [ 2. -2.  0.]]",
        "dL_db3": " ∂L/∂b3:\n [[ 0.5 -0.5  0. ]]",
        "dL_da2": "array([[ 1.],\n       [-1.]])",
        "dL_db2": " ∂L/∂b2:\n [[ 1.]\n [-1.]]",
        "dL_dW2": " ∂L/∂W2:\n [[ 0.  0.]\n [ 3. -3.]\n [ 5. -5.]\n [ 3. -3.]]",
        "dL_da1": "array([[ 1.],\n       [-2.],\n       [ 2.],\n       [-1.]])",
        "dL_dz1": " ∂L/∂z1:\n [[ 0. -2.  2. -1.]]",
        "dL_db1": " ∂L/∂b1:\n [[ 0. -2.  2. -1.]]",
        "dL_dW1": " ∂L/∂W1:\n [[ 0. -4.  4. -2.]\n [ 0. -2.  2. -1.]\n"
        " [ 0. -6.  6. -3.]]",
    },
    "mean_squared_error_step": {
        "z": "Ouput after 1 layer: [1.5 1.4 0.5]",
        "y": "Prediction after 1 layer: [1.5 1.4 0.5]",
        "loss": "Loss after 1 layer 0.82",
        "dL_dpred": """\
dL_dpred shape: (3,)
dpred_dz shape: (3,)
dL_dpred: [0.33333333 0.93333333 0.33333333]""",
        "dpred_dz": "dpred_dz: [1 1 1]",
        "dz * x": """\
[[ 0.33333333  0.66666667]
 [ 1.86666667  0.93333333]
 [-0.33333333 -0.66666667]]""",
        "dL_dw": " "
        + "#" * 100
        + "\nLoss with respect to weight: [0.62222222 0.31111111]",
        "dL_db": "Loss with respect to bias: 0.5333333333333333",
        "new weights": "New Weights: [0.10622222 0.20311111]",
        "new bias": "New bias: 1.0053333333333334",
    },
    "chain_rule_and_update": {
        "a": "6.0",
        "drelu_dz": "1.0",
        "drelu_dxw, drelu_db": "1.0 1.0 1.0 1.0",
        "drelu_dx, drelu_dw": "-3.0 1.0 -1.0 -2.0 2.0 3.0",
        "dX": """\
[[ 0.44  0.44  0.44]
 [-0.38 -0.38 -0.38]
 [-0.07 -0.07 -0.07]
 [ 1.37  1.37  1.37]]""",
        "weights": """\
[[ 0.179515   0.5003665 -0.262746 ]
 [ 0.742093  -0.9152577 -0.2758402]
 [-0.510153   0.2529017  0.1629592]
 [ 0.971328  -0.5021842  0.8636583]]""",
        "biases": "[[1.98489  2.997739 0.497389]]",
    },
}
SINGLE_STEPS = [
    (script, name)
    for script, printed in NOTEBOOKS.items()
    for name in printed
    if script != "train_neuron_and_layer"
]
NUMBER = r"-?\d+\.?\d*(?:e[-+]\d+)?"


@pytest.fixture(scope="module")
def results(backend):
    """Return a function that computes the results of a script on the tested backend."""

    def to_numpy(array):
        assert namespace(array) is backend.xp, (
            f"{type(array)} is not an array of {backend}"
        )
        return backend.adapter.to_numpy(array)

    adapter = SimpleNamespace(**{**vars(backend.adapter), "to_numpy": to_numpy})

    @functools.cache
    def compute(script):
        spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        return example.compute(dataclasses.replace(backend, adapter=adapter))

    return compute


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs a script as a command with arguments."""

    def command(script, *arguments):
        path = str(EXAMPLES / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")

    return command


def numbers(text):
    """Return the array, or else the numbers, at the end of the printed `text`."""
    block = re.search(rf"\[.*|(\s*{NUMBER})+$", text, re.DOTALL)[0]
    rows = max(block.count("[") - 1, 1)
    return np.array(re.findall(NUMBER, block), dtype=float).reshape(rows, -1)


def as_printed(result, printed):
    """Return a result in the shape of the notebook's, which may be its transpose."""
    transposed = result.T.shape == printed.shape
    return np.reshape(result.T if transposed else result, printed.shape)


@pytest.mark.parametrize(("script", "name"), SINGLE_STEPS)
def test_each_result_equals_the_number_in_the_notebook(
    results, widest, epsilon, script, name
):
    text = NOTEBOOKS[script][name]
    printed, result = numbers(text), results(script)[name]
    # Sums have at most five terms, whose sizes add to at most twice the largest result:
    # five roundings of half an eps, and two more for the inputs. NumPy prints arrays to
    # 8 decimals.
    tolerance = 8 * epsilon * np.abs(printed).max() + (5e-9 if "[" in text else 0.0)
    assert result.dtype == widest
    np.testing.assert_allclose(
        as_printed(result, printed), printed, rtol=0, atol=tolerance
    )


def plain_neuron():
    """Train the neuron as in the notebook, which was saved without its output."""
    weights, bias, losses = np.array([-3.0, -1.0, 2.0]), 1.0, []
    inputs = np.array([1.0, -2.0, 3.0])
    for _ in range(200):
        linear_output = np.dot(weights, inputs) + bias
        relu_output = np.maximum(0, linear_output)
        losses.append(relu_output**2)
        dloss_dlinear = 2 * relu_output * (1.0 if linear_output > 0 else 0.0)
        weights -= 0.001 * dloss_dlinear * inputs
        bias -= 0.001 * dloss_dlinear
    return np.array(losses), weights, np.array([bias])


def assert_same_training(result, losses, weight, bias, x, epsilon):
    """Compare a training with losses by step and final parameters, up to rounding.

    A step multiplies an error in y by 1 - 2 rate (x·x + 1). So y contains the errors of
    the last 1 / (2 rate (x·x + 1)) steps, each an eps of the terms of the sum z. These
    end far larger than y, so small losses have few correct digits. A weight
    sums up 200 roundings of half an eps, because nothing corrects it across x.
    """
    last = as_printed(result["weight"], weight)[-1, :]  # the neuron that still learns
    memory = 1 / (2 * 0.001 * (np.dot(x, x) + 1))
    for step, loss in losses.items():
        y = np.sqrt(loss)
        error = memory * epsilon * max(y, np.abs(last * x).sum() + abs(bias[-1]))
        assert abs(result["loss"][step - 1] - loss) <= 2 * y * error, (
            f"loss at step {step}"
        )
    tolerance = 100 * epsilon * np.abs(weight).max() + 5e-9
    np.testing.assert_allclose(
        as_printed(result["weight"], weight), weight, rtol=0, atol=tolerance
    )
    np.testing.assert_allclose(result["bias"], bias, rtol=0, atol=tolerance)


def test_the_neuron_trains_as_in_the_notebook(results, epsilon):
    losses, weight, bias = plain_neuron()
    assert losses[0] == 36.0
    result = results("train_neuron_and_layer")["neuron"]
    assert result["loss"].shape == losses.shape
    losses = dict(enumerate(losses, start=1))
    assert_same_training(
        result, losses, weight[None, :], bias, [1.0, -2.0, 3.0], epsilon
    )


def test_the_layer_trains_as_in_the_notebook(results, widest, epsilon):
    printed = NOTEBOOKS["train_neuron_and_layer"]
    column = re.findall(r"Iteration (\d+), Loss: (\S+)", printed["loss"])
    losses = {int(step): float(loss) for step, loss in column}
    weight, bias = numbers(printed["weight"]), numbers(printed["bias"])[0, :]
    result = results("train_neuron_and_layer")["layer"]
    assert (
        result["loss"].dtype == result["weight"].dtype == result["bias"].dtype == widest
    )
    assert_same_training(result, losses, weight, bias, [1, 2, 3, 4], epsilon)


def test_two_of_the_three_neurons_end_where_the_slope_of_relu_is_0(results):
    layer = results("train_neuron_and_layer")["layer"]
    z = np.array([1, 2, 3, 4]) @ layer["weight"] + layer["bias"]
    assert (z[:2] < -0.2).all()
    assert abs(z[2]) < 1e-4


def test_relu_does_not_change_the_gradient_that_it_receives(results):
    result = results("dense_and_relu_backward")
    da = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    np.testing.assert_array_equal(result["dL_da"], da)
    np.testing.assert_array_equal(result["dL_dz"], da * (result["z"] > 0))
    np.testing.assert_array_equal(result["a"], np.maximum(result["z"], 0))
    assert (result["z"] < 0).any()


def test_only_the_rounded_softmax_gives_the_notebooks_gradient(results, epsilon):
    result = results("softmax_network")
    exponentials = np.exp([3.0, 3.0, -1.0])
    exact = exponentials / exponentials.sum()
    # the roundings of one exp, a sum of three and two quotients
    close = {"rtol": 8 * epsilon, "atol": 0}
    np.testing.assert_allclose(result["exact a3"][0, :], exact, **close)
    np.testing.assert_allclose(result["exact dL_dz3"][0, :], exact - [0, 1, 0], **close)
    assert 0.009 < np.abs(result["exact dL_dz3"] - result["dL_dz3"]).max() < 0.0091


def test_the_step_of_the_notebook_increases_the_squared_error_and_a_true_step_does_not(
    results, epsilon
):
    result = results("mean_squared_error_step")
    np.testing.assert_allclose(
        result["true dL_dw"], 3 * result["dL_dw"], rtol=4 * epsilon
    )
    np.testing.assert_allclose(
        result["true dL_db"], 3 * result["dL_db"], rtol=4 * epsilon
    )
    assert result["loss after it"] > result["loss"] > result["loss after a true step"]
    # both steps by hand: the errors (1.5, 1.4, 0.5) - (1, 0, 0) move by the step
    slope = np.array([[1, 2, 1], [2, 1, 1], [-1, -2, 1]]) @ [28 / 15, 14 / 15, 8 / 5]
    for name, rate in [("loss after it", 0.01 / 3), ("loss after a true step", -0.01)]:
        by_hand = np.mean(([0.5, 1.4, 0.5] + rate * slope) ** 2)
        np.testing.assert_allclose(result[name], by_hand, rtol=16 * epsilon)


@pytest.mark.parametrize("script", NOTEBOOKS)
def test_an_example_prints_the_lines_of_its_notebook(run, capsys, script):
    def lines(text):
        """Drop blank lines and round to 8 digits, as BLAS may sum in another order."""
        text = re.sub(NUMBER, lambda number: f"{float(number[0]):.8g}", text)
        return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())

    run(script, "--backend", "numpy")
    assert lines("\n".join(NOTEBOOKS[script].values())) in lines(
        capsys.readouterr().out
    )


def test_the_neuron_prints_every_loss_and_the_final_parameters(run, capsys):
    run("train_neuron_and_layer", "--backend", "numpy")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Itereation 1's Loss: 36.0"
    assert [re.search(r"\d+", line)[0] for line in printed[:200]] == [
        *map(str, range(1, 201))
    ]
    assert printed[200] == "Final weights: [-3.3990955  -0.20180899  0.80271349]"
    assert printed[201].startswith("Final bias: 0.60090449640")


@pytest.mark.parametrize("script", NOTEBOOKS)
def test_an_unknown_backend_ends_an_example_with_one_clear_line(run, capsys, script):
    with pytest.raises(SystemExit) as caught:
        run(script, "--backend", "nowhere")
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: no backend is called 'nowhere'; there are numpy, jax" in error


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem
)
def test_the_cells_of_each_notebook_run(path, tmp_path, monkeypatch):
    """`nox -s docs` runs them in Jupyter, and shows them with their output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGNOSTIC_NN_BACKEND", "numpy")  # they compute in float64
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names = {}
    for cell in cells:
        assert cell["outputs"] == []  # so that a change shows in the code only
        exec("".join(cell["source"]), names)
    assert len(cells) >= 3
