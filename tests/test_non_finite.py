"""`explain` names the first NaN or infinity, in the order of computation."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace, non_finite_count
from agnostic_nn.diagnostics.cli.main import main

X = np.random.default_rng(0).standard_normal((6, 4)).astype("float32")
LABELS = np.array([0, 1, 2, 0, 1, 2])
MODEL = nn.Sequential(nn.Dense(5), nn.ReLU(), nn.Dense(3))


@dataclass(frozen=True)
class Log(nn.Layer):
    """y = log x.

    Gradient
    --------
    dx = dy / x
    """

    def init(self, key, shape, dtype):
        return {}, {}, shape

    def forward(self, params, state, x, *, train=False):
        return namespace(x).log(x), state, x

    def backward(self, params, cache, dy):
        return dy / cache, {}


@dataclass(frozen=True)
class Sqrt(nn.Layer):
    """y = √x.

    Gradient
    --------
    dx = dy / 2y
    """

    def init(self, key, shape, dtype):
        return {}, {}, shape

    def forward(self, params, state, x, *, train=False):
        y = namespace(x).sqrt(x)
        return y, state, y

    def backward(self, params, cache, dy):
        return dy / (2.0 * cache), {}


def log_likelihood(y, target):
    """L = -mean log Σ y t, without a softmax: y has to be positive."""
    xp = namespace(y)
    likelihood = xp.sum(y * target, axis=-1)
    loss = -xp.mean(xp.log(likelihood))
    return loss, -target / likelihood[:, None] / y.shape[0]


def shifted(x, index, value):
    x = x.copy()
    x[index] = value
    return x


def params_with(layer, name, index, value):
    params, _, _ = MODEL.init(
        nn.random.key(0, xp=nn.backend("numpy").xp), (4,), np.float32
    )
    changed = {**params[layer], name: shifted(params[layer][name], index, value)}
    return (*params[:layer], changed, *params[layer + 1 :])


def identity(width):
    """Return a model that passes on its input, and its parameters."""
    weight = np.eye(width, dtype="float32")
    return ({"weight": weight, "bias": np.zeros(width, "float32")},)


def case(where, layer, beginning, *args, **options):
    return where, layer, beginning, args, options


CASES = {
    "input": case(
        *("input", "", "x[3, 1] = nan, in the input (5 of 24 numbers are not finite, "),
        *(MODEL, nn.softmax_cross_entropy),
        *(shifted(shifted(X, (3, 1), np.nan), 5, np.inf), LABELS),
    ),
    "parameter": case(
        *("parameter", "2 Dense"),
        "W2[1, 2] = -inf, in the parameter weight of layer 2 (Dense) (1 of 15 numbers",
        *(MODEL, nn.softmax_cross_entropy, X, LABELS),
        params=params_with(2, "weight", (1, 2), -np.inf),
    ),
    "output": case(
        *("output", "0.1 Log"),
        "y2[2, 3] = nan, in the output of layer 0.1 (Log), computed from y1[2, 3] = "
        "-0.2 (1 of 24 numbers is not finite, in row 2).",
        nn.Sequential(nn.Sequential(nn.Identity(), Log()), nn.Dense(3)),
        *(nn.softmax_cross_entropy, shifted(abs(X) + 0.1, (2, 3), -0.2), LABELS),
    ),
    "output of a matrix product": case(
        *("output", "0 Dense"),
        "z[0, 0] = inf, in the output of layer 0 (Dense), computed from x from 3e+38 "
        "to 3e+38, b from 0 to 0 and W from 1 to 1 (24 of 24 numbers are not ",
        *(nn.Sequential(nn.Dense(4)), nn.mean_squared_error),
        *(np.full((6, 4), 3e38, "float32"), X),
        params=({"weight": np.ones((4, 4), "float32"), "bias": np.zeros(4, "f4")},),
    ),
    "loss": case(
        *("loss", ""),
        "L = nan, in the loss log_likelihood, computed from z[4] = [1, -0.2] and "
        "t[4] = [0, 1].",
        *(nn.Sequential(nn.Dense(2)), log_likelihood),
        *(shifted(np.ones((6, 2), "float32"), (4, 1), -0.2), np.eye(2)[LABELS % 2]),
        params=identity(2),
    ),
    "gradient": case(
        *("gradient", "1 Sqrt"),
        "∂L/∂z[1, 2] = inf, in the gradient that layer 1 (Sqrt) passes on, computed "
        "from ∂L/∂y[1, 2] = 1 and z[1, 2] = 0 (1 of 24",
        *(nn.Sequential(nn.Dense(4), Sqrt()), lambda y, t: (y.sum(), t)),
        *(shifted(abs(X) + 0.1, (1, 2), 0.0), np.ones((6, 4), "float32")),
        params=(*identity(4), {}),
    ),
    "target": case(
        *(
            "target",
            "",
            "t[0, 0] = nan, in the target (1 of 24 numbers is not finite, ",
        ),
        *(nn.Sequential(nn.Dense(4)), lambda y, t: (((y - t) ** 2).sum(), 2 * (y - t))),
        *(X, shifted(X, (0, 0), np.nan)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_value_that_is_not_finite_is_named(name):
    where, layer, beginning, args, options = CASES[name]
    explanation = nn.explain(*args, backend="numpy", **options)
    first = explanation.non_finite
    assert (first.where, first.layer) == (where, layer)
    assert not np.isfinite(first.value)
    start = f"The first value that is not finite is {beginning}"
    assert first.sentence.startswith(start)
    assert first.sentence.endswith(".")
    text = str(explanation)
    assert first.sentence in " ".join(text.split())
    assert text.index("The first value that is not finite") < text.index("layer   ")
    assert text.count("The first value that is not finite") == 1


def test_a_batch_of_finite_numbers_has_no_such_value():
    explanation = nn.explain(
        MODEL, nn.softmax_cross_entropy, X, LABELS, backend="numpy"
    )
    assert explanation.non_finite is None
    assert "not finite" not in str(explanation)


def test_an_infinity_without_consequences_is_called_harmless():
    @dataclass(frozen=True)
    class Clipped(Log):
        """y = max(x, 0)."""

        def forward(self, params, state, x, *, train=False):
            return namespace(x).clip(x, 0.0, 1.0), state, x

        def backward(self, params, cache, dy):
            return dy, {}

    x = shifted(X, (0, 0), np.inf)
    model = nn.Sequential(Clipped())
    first = nn.explain(
        model, nn.mean_squared_error, x, X * 0, backend="numpy"
    ).non_finite
    assert first.sentence.endswith(
        "; the loss and all gradients are finite nevertheless."
    )


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_page_begins_with_the_sentence_and_numpy_does_not_warn():
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    pytest.importorskip("latex2mathml", reason="the extra `report` is not installed")
    _, _, _, args, options = CASES["output"]
    page = nn.explain(*args, backend="numpy", **options).to_html()
    sentence = page.index("The first value that is not finite is y2[2, 3] = nan")
    assert sentence < page.index("<svg")
    assert page.count("The first value that is not finite") == 1


def test_the_rows_of_many_values_are_shortened():
    x = np.zeros((20, 2))
    assert non_finite_count(x) == "0 of 40 numbers are not finite"
    x[3:13, 1] = np.inf
    expected = "in rows 3, 4, 5, 6, 7 and 5 more"
    assert non_finite_count(x) == f"10 of 40 numbers are not finite, {expected}"
    assert non_finite_count(x[3:5]).endswith("in rows 0 and 1")
    assert non_finite_count(x[3, :]) == "1 of 2 numbers is not finite"


def test_training_names_explain_where_data_or_losses_are_not_finite(tmp_path, capsys):
    optimizer = nn.SGD(1e30)
    trainer = nn.Trainer(MODEL, nn.softmax_cross_entropy, optimizer, backend="numpy")
    message = r"x\[3, 1\] is nan; 1 of 24 numbers is not finite, in row 3.*nn.explain"
    with pytest.raises(ValueError, match=message):
        trainer.fit(shifted(X, (3, 1), np.nan), LABELS, epochs=1)
    with np.errstate(all="ignore"), pytest.raises(nn.NonFiniteLoss) as caught:
        trainer.fit(X, LABELS, epochs=9, batch_size=6)
    call = re.search(r"nn\.explain\(.*?\)", str(caught.value))[0]
    scope = {"nn": nn, "model": MODEL, "loss": nn.softmax_cross_entropy}
    scope |= {"x": X, "target": LABELS, "trainer": trainer}
    explanation = eval(call.replace(")", ", backend='numpy')"), scope)
    assert explanation.non_finite is not None


def test_a_profile_of_a_loss_that_is_not_finite_refers_to_explain(capsys, monkeypatch):
    from agnostic_nn.diagnostics import profile

    def fails(*args, **options):
        raise nn.NonFiniteLoss("step 1 was skipped")

    monkeypatch.setattr(profile, "profile", fails)
    assert main(["profile", "--backend=numpy"]) == 2
    assert "agnostic-nn profile: step 1 was skipped" in capsys.readouterr().err
