"""Pages for five notebooks that teach backpropagation by hand.

`examples/` has the notebooks as programs that print the same numbers as the notebooks.
Here the same numbers are computed by `explain` and shown in the formulas they come
from.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...blocks import Sequential
from ...core.arrays import namespace
from ...core.backend import Backend
from ...layers import Dense, Layer, ReLU
from ...losses import mean_squared_error, softmax_cross_entropy
from ...ops import log_softmax
from ...optimizers import SGD
from .explanation import Explanation, explain
from .formulas import Formula
from .html import Part
from .text import Line

__all__ = [
    "NOTEBOOKS",
    "given_gradient",
    "half_square",
    "notebook_page",
    "rounded_cross_entropy",
    "squared_sum",
]

INPUTS: list[list[float]] = [[1, 2, 3, 2.5], [2, 5, -1, 2], [-1.5, 2.7, 3.3, -0.8]]
WEIGHTS: list[list[float]] = [
    [0.2, 0.8, -0.5, 1],
    [0.5, -0.91, 0.26, -0.5],
    [-0.26, -0.27, 0.17, 0.87],
]


# --- losses that only the notebooks use -----------------------------------------------


def _with_formula(forward: str, dy: str) -> Callable[..., Any]:
    """Attach the formulas of a loss and of its gradient."""

    def attach(loss: Any) -> Any:
        loss.formula = Formula(forward, {"y": dy})
        return loss

    return attach


@_with_formula(r"L = \sum @y \odot t", "t")
def given_gradient(y: Any, target: Any) -> tuple[Any, Any]:
    """L = Σ y G for the target G, so that G is the gradient.

    For notebooks that begin with a given gradient instead of a loss.
    """
    return namespace(y).sum(y * target), target


@_with_formula(r"L = (\sum @y - t)^2", r"2 (\sum @y - t)")
def squared_sum(y: Any, target: Any) -> tuple[Any, Any]:
    """L = (Σ y - t)²: the sum of all outputs should be t."""
    xp = namespace(y)
    error = xp.sum(y, axis=-1, keepdims=True) - target
    return xp.sum(error * error), 2.0 * error * xp.ones_like(y)


@_with_formula(r"L = \frac{1}{2} \sum (@y - t)^2", "@y - t")
def half_square(y: Any, target: Any) -> tuple[Any, Any]:
    """L = ½ Σ (y - t)². Where t is 0, the gradient is y itself."""
    error = y - target
    return 0.5 * namespace(y).sum(error * error), error


@_with_formula(
    r"L = -\sum t \odot \log q, \quad q = \mathrm{softmax}(@y)",
    r"\text{q rounded to one decimal} - t",
)
def rounded_cross_entropy(y: Any, target: Any) -> tuple[Any, Any]:
    """L = -Σ t log q with q = softmax(y), rounded to one decimal in the gradient."""
    xp = namespace(y)
    log_q = log_softmax(y)
    return -xp.sum(target * log_q), xp.round(xp.exp(log_q) * 10.0) / 10.0 - target


# --- the five pages -------------------------------------------------------------------


class _Explainer:
    """Explains and trains models on one backend, in the widest dtype it supports."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.dtype = "float64" if backend.has_float64 else "float32"

    def array(self, numbers: Any) -> np.ndarray:
        return np.array(numbers, self.dtype)

    def dense(self, weight: Any, bias: Any) -> dict[str, np.ndarray]:
        return {"weight": self.array(weight), "bias": self.array(bias)}

    def explain(
        self, model: Layer, loss: Callable[..., Any], x: Any, target: Any, params: Any
    ) -> Explanation:
        x = self.array(x)
        target = self.array(target)
        return explain(model, loss, x, target, params=params, backend=self.backend)

    def step(self, params: Any, explanation: Explanation, learning_rate: float) -> Any:
        """Return the parameters after one step of gradient descent."""
        grads = tuple(node.grads for node in explanation.nodes if node.call)
        params, grads = self.backend.asarray((params, grads))
        optimizer = SGD(learning_rate)
        updated, _ = optimizer.update(params, grads, optimizer.init(params))
        return self.backend.to_numpy(updated)

    def train(
        self, model: Layer, loss: Callable[..., Any], x: Any, params: Any
    ) -> tuple[Any, list[float]]:
        """Train for 200 steps towards 0; return the parameters and all losses."""
        backend = self.backend
        optimizer = SGD(0.001)
        losses = []
        params, x = backend.asarray((params, self.array(x)))
        moments = optimizer.init(params)
        target = backend.asarray(self.array([[0]]))
        for _ in range(200):
            y, _, cache = model.forward(params, ({}, {}), x)
            value, dy = loss(y, target)
            _, grads = model.backward(params, cache, dy)
            params, moments = optimizer.update(params, grads, moments)
            losses.append(float(backend.to_numpy(value)))
        return backend.to_numpy(params), losses


def _train_neuron_and_layer(explainer: _Explainer) -> list[Part]:
    x = [[1, -2, 3]]
    model: Layer = Sequential(Dense(1), ReLU())
    params: Any = (explainer.dense([[-3], [-1], [2]], [1]), {})
    first = explainer.explain(model, mean_squared_error, x, [[0]], params)
    last, losses = explainer.train(model, mean_squared_error, x, params)
    parts = [
        Part(
            "One neuron, its first step",
            "Three inputs and one ReLU; the target is 0.",
            first,
            "After 200 steps with a learning rate of 0.001 the loss is "
            f"{losses[-1]:.8g}.",
            _after(last[0]),
        )
    ]

    x = [[1, 2, 3, 4]]
    weight = np.transpose(
        [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 1.0, 1.1, 1.2]]
    )
    model = Sequential(Dense(3), ReLU())
    params = (explainer.dense(weight, [0.1, 0.2, 0.3]), {})
    first = explainer.explain(model, squared_sum, x, [[0]], params)
    last, losses = explainer.train(model, squared_sum, x, params)
    some_losses = ", ".join(f"{losses[i]:.8g}" for i in range(0, 200, 20))
    parts += [
        Part(
            "A layer of three neurons, its first step",
            "The target for their sum is 0, so all of them get the same gradient.",
            first,
            f"The loss at steps 1, 21, 41, … 181 is {some_losses}. After 200 steps:",
            _after(last[0]),
        ),
        Part(
            "The same layer after 200 steps",
            "The loss depends on the sum only, so all three outputs decreased "
            "together. Two are now below 0, where the slope of ReLU is 0: no gradient "
            "reaches them any more, and only the third neuron still learns.",
            explainer.explain(model, squared_sum, x, [[0]], last),
        ),
    ]
    return parts


def _dense_and_relu_backward(explainer: _Explainer) -> list[Part]:
    gradient = [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    params = explainer.dense(np.transpose(WEIGHTS), [0, 0, 0])
    return [
        Part(
            "Through a dense layer",
            "The notebook begins with a given gradient and computes three others from "
            "it.",
            explainer.explain(Dense(3), given_gradient, INPUTS, gradient, params),
        ),
        Part(
            "Through ReLU, then through the layer",
            "The same gradient, now with respect to the output of a ReLU after the "
            "layer. Where z is below 0, no gradient passes.",
            explainer.explain(
                Sequential(Dense(3), ReLU()),
                given_gradient,
                INPUTS,
                gradient,
                (params, {}),
            ),
        ),
    ]


def _softmax_network(explainer: _Explainer) -> list[Part]:
    model = Sequential(Dense(4), ReLU(), Dense(2), ReLU(), Dense(3))
    params: Any = (
        explainer.dense(
            np.transpose([[1, -1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]), [-5, 0, 1, -2]
        ),
        {},
        explainer.dense(np.transpose([[1, -1, 1, 0], [0, 1, -1, 1]]), [0, 3]),
        {},
        explainer.dense(np.transpose([[2, 0], [0, 2], [1, 1]]), [-1, -5, -7]),
    )
    x = [[2, 1, 3]]
    target = [[0, 1, 0]]
    rounded = explainer.explain(model, rounded_cross_entropy, x, target, params)
    return [
        Part(
            "As in the notebook",
            "The notebook uses columns, z = W x + b, where the library uses rows, z = "
            "x W + b. It rounds the softmax to one decimal before the backward pass. "
            "The result is not exactly the gradient of the loss, so the check of the "
            "last layer fails by a small amount. With these weights the error happens "
            "to cancel in the layers before it.",
            rounded,
            "The rounded softmax:",
            [Line("a_3", rounded.dy + rounded.target)],
        ),
        Part(
            "Without the rounding",
            "With the exact gradient of the cross-entropy, all checks agree.",
            explainer.explain(model, softmax_cross_entropy, x, target, params),
        ),
    ]


def _mean_squared_error_step(explainer: _Explainer) -> list[Part]:
    model = Sequential(Dense(1), ReLU())
    params: Any = (explainer.dense([[0.1], [0.2]], [1]), {})
    x = [[1, 2], [2, 1], [-1, -2]]
    target = [[1], [0], [0]]
    explanation = explainer.explain(model, mean_squared_error, x, target, params)
    dense = explanation.nodes[1]
    per_example = dense.dy * explainer.array(x)
    averaged = {name: grad / 3.0 for name, grad in dense.grads.items()}
    # The notebook's two mistakes: it averages twice, and it adds the gradient.
    notebook_params = {
        name: params[0][name] + 0.01 * grad for name, grad in averaged.items()
    }
    correct_params = explainer.step(params, explanation, 0.01)
    notebook_loss = explainer.explain(
        model, mean_squared_error, x, target, (notebook_params, {})
    ).value
    correct_loss = explainer.explain(
        model, mean_squared_error, x, target, correct_params
    ).value
    return [
        Part(
            "One ReLU neuron, three examples",
            "",
            explanation,
            "The notebook makes two mistakes. It takes the mean over the batch twice, "
            "once in the loss and again in the gradient, which is then a third of the "
            "true one. And it subtracts the negative gradient, so the loss increases: "
            f"it becomes {notebook_loss}. A step with the gradient above and the same "
            f"learning rate of 0.01 gives {correct_loss}. Below are the slopes of "
            "ReLU, the contribution of each example to the gradient of W, the two "
            "gradients of the notebook, and its parameters after the step.",
            [
                Line(r"\frac{\partial a}{\partial z}", ReLU().slope(dense.y)),
                Line(r"\frac{\partial L}{\partial z} \odot x", per_example),
                Line(r"\frac{1}{3} \frac{\partial L}{\partial W}", averaged["weight"]),
                Line(r"\frac{1}{3} \frac{\partial L}{\partial b}", averaged["bias"]),
                *_after(notebook_params),
            ],
        )
    ]


def _chain_rule_and_update(explainer: _Explainer) -> list[Part]:
    neuron = explainer.dense([[-3], [-1], [2]], [1])
    layer = explainer.dense(np.transpose(WEIGHTS), [2, 3, 0.5])
    model = Sequential(Dense(3), ReLU())
    explanation = explainer.explain(
        model, half_square, INPUTS, np.zeros((3, 3)), (layer, {})
    )
    return [
        Part(
            "One neuron",
            "The notebook starts from a gradient of 1 and multiplies one partial "
            "derivative at a time.",
            explainer.explain(
                Sequential(Dense(1), ReLU()),
                given_gradient,
                [[1, -2, 3]],
                [[1]],
                (neuron, {}),
            ),
        ),
        Part(
            "A layer, with a gradient of ones",
            "The gradients as matrix products. The notebook has one example per column "
            "here; the library has one per row.",
            explainer.explain(Dense(3), given_gradient, INPUTS, np.ones((3, 3)), layer),
        ),
        Part(
            "The layer with a ReLU, and an update",
            "The notebook starts the backward pass from the output a, the gradient of "
            "½ Σ a².",
            explanation,
            "After a step of gradient descent with a learning rate of 0.001:",
            _after(explainer.step((layer, {}), explanation, 0.001)[0]),
        ),
    ]


def _after(params: dict[str, np.ndarray]) -> list[Line]:
    return [Line("W", params["weight"]), Line("b", params["bias"])]


_PAGES = {
    "train_neuron_and_layer": (
        "A neuron and a layer, trained",
        "Gradient descent on one neuron, then on a layer of three, towards a target of "
        "0.",
        _train_neuron_and_layer,
    ),
    "dense_and_relu_backward": (
        "Backward through a dense layer and ReLU",
        "How a layer computes its gradients from the gradient of its output.",
        _dense_and_relu_backward,
    ),
    "softmax_network": (
        "A network of three layers, 3-4-2-3, and a softmax",
        "Forward and backward for one example.",
        _softmax_network,
    ),
    "mean_squared_error_step": (
        "A step on the mean squared error",
        "One neuron, three examples, and two common mistakes.",
        _mean_squared_error_step,
    ),
    "chain_rule_and_update": (
        "The chain rule, then an update",
        "For one neuron by hand, for a layer as a matrix product.",
        _chain_rule_and_update,
    ),
}
NOTEBOOKS = tuple(_PAGES)


def notebook_page(name: str, backend: Backend) -> tuple[str, str, list[Part]]:
    """Return title, description and sections of the page for one of `NOTEBOOKS`."""
    title, about, sections = _PAGES[name]
    with backend.applied():
        return title, about, sections(_Explainer(backend))
