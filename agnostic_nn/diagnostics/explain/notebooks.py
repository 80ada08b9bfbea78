"""Notebooks: five that teach backpropagation by hand, each told by the layers of this library.

`examples/` has them as programs that print what the notebooks printed; here the same numbers
stand in the chain rule that they come from.
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

INPUTS = [[1, 2, 3, 2.5], [2, 5, -1, 2], [-1.5, 2.7, 3.3, -0.8]]
WEIGHTS = [[0.2, 0.8, -0.5, 1], [0.5, -0.91, 0.26, -0.5], [-0.26, -0.27, 0.17, 0.87]]


# --- losses that the notebooks have, and nobody else ------------------------------------


def _with_formula(forward: str, dy: str) -> Callable:
    """Attach a loss's formula, and that of the gradient that it sends back."""

    def attach(loss: Any) -> Any:
        loss.formula = Formula(forward, {"y": dy})
        return loss

    return attach


@_with_formula(r"L = \sum @y \odot t", "t")
def given_gradient(y: Any, target: Any) -> tuple[Any, Any]:
    """Σ y G: the loss whose gradient is G, the target, where a notebook begins with one."""
    return namespace(y).sum(y * target), target


@_with_formula(r"L = (\sum @y - t)^2", r"2 (\sum @y - t)")
def squared_sum(y: Any, target: Any) -> tuple[Any, Any]:
    """(Σ y - t)²: all outputs together are to be t."""
    xp = namespace(y)
    gap = xp.sum(y, axis=-1, keepdims=True) - target
    return xp.sum(gap * gap), 2.0 * gap * xp.ones_like(y)


@_with_formula(r"L = \frac{1}{2} \sum (@y - t)^2", "@y - t")
def half_square(y: Any, target: Any) -> tuple[Any, Any]:
    """½ Σ (y - t)²: the loss whose gradient is y itself where t is 0."""
    gap = y - target
    return 0.5 * namespace(y).sum(gap * gap), gap


@_with_formula(
    r"L = -\sum t \odot \log q, \quad q = \mathrm{softmax}(@y)",
    r"\text{q rounded to one decimal} - t",
)
def rounded_cross_entropy(y: Any, target: Any) -> tuple[Any, Any]:
    """-Σ t log q of q = softmax(y), sent back with q rounded to one decimal."""
    xp = namespace(y)
    log_q = log_softmax(y)
    return -xp.sum(target * log_q), xp.round(xp.exp(log_q) * 10.0) / 10.0 - target


# --- the five ---------------------------------------------------------------------------


class _Explainer:
    """Tells on one backend, in the widest dtype that it has."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.dtype = "float64" if backend.has_float64 else "float32"

    def array(self, numbers: Any) -> np.ndarray:
        return np.array(numbers, self.dtype)

    def dense(self, weight: Any, bias: Any) -> dict[str, np.ndarray]:
        return {"weight": self.array(weight), "bias": self.array(bias)}

    def explain(
        self, model: Layer, loss: Callable, x: Any, target: Any, params: Any
    ) -> Explanation:
        x, target = self.array(x), self.array(target)
        return explain(model, loss, x, target, params=params, backend=self.backend)

    def step(self, params: Any, found: Explanation, rate: float) -> Any:
        """Parameters after a step of gradient descent."""
        grads = tuple(node.grads for node in found.nodes if node.call)
        optimizer, (params, grads) = SGD(rate), self.backend.asarray((params, grads))
        updated, _ = optimizer.update(params, grads, optimizer.init(params))
        return self.backend.to_numpy(updated)

    def train(self, model: Layer, loss: Callable, x: Any, params: Any) -> tuple[Any, list[float]]:
        """Parameters after 200 steps of gradient descent towards 0, and all losses."""
        optimizer, backend, losses = SGD(0.001), self.backend, []
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
            "Three inputs, one ReLU, and 0 is the answer that is wanted.",
            first,
            f"After 200 steps at a rate of 0.001 the loss is {losses[-1]:.8g}.",
            _after(last[0]),
        )
    ]

    x = [[1, 2, 3, 4]]
    weight = np.transpose([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 1.0, 1.1, 1.2]])
    model, params = Sequential(Dense(3), ReLU()), (explainer.dense(weight, [0.1, 0.2, 0.3]), {})
    first = explainer.explain(model, squared_sum, x, [[0]], params)
    last, losses = explainer.train(model, squared_sum, x, params)
    every = ", ".join(f"{losses[i]:.8g}" for i in range(0, 200, 20))
    parts += [
        Part(
            "A layer of three neurons, its first step",
            "Their sum is to be 0, so each of them is sent the same gradient.",
            first,
            f"The loss at steps 1, 21, 41, … 181 is {every}. After 200 steps:",
            _after(last[0]),
        ),
        Part(
            "The same layer after 200 steps",
            "Driven by their sum, all three fell together. Two overshot below 0, where ReLU "
            "has no slope: no gradient reaches them any more, and only the third still learns.",
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
            "The notebook begins with a gradient, and asks for the three that follow from it.",
            explainer.explain(Dense(3), given_gradient, INPUTS, gradient, params),
        ),
        Part(
            "Through ReLU, then through the layer",
            "The same gradient, had it come to the ReLU behind the layer. Where z is below 0 "
            "nothing passes.",
            explainer.explain(
                Sequential(Dense(3), ReLU()), given_gradient, INPUTS, gradient, (params, {})
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
    x, target = [[2, 1, 3]], [[0, 1, 0]]
    rounded = explainer.explain(model, rounded_cross_entropy, x, target, params)
    return [
        Part(
            "As the notebook has it",
            "It writes columns, z = W x + b, where the library has rows, z = x W + b. It rounds "
            "the softmax to one decimal before it goes back, so the check of the last layer "
            "fails by a little: what is sent back is not quite the gradient of the loss. These "
            "weights happen to cancel that error on its way to the layers before.",
            rounded,
            "The softmax as it rounded it:",
            [Line("a_3", rounded.dy + rounded.target)],
        ),
        Part(
            "Without the rounding",
            "The gradient of the cross-entropy itself: all checks agree.",
            explainer.explain(model, softmax_cross_entropy, x, target, params),
        ),
    ]


def _mean_squared_error_step(explainer: _Explainer) -> list[Part]:
    model = Sequential(Dense(1), ReLU())
    params: Any = (explainer.dense([[0.1], [0.2]], [1]), {})
    x, target = [[1, 2], [2, 1], [-1, -2]], [[1], [0], [0]]
    found = explainer.explain(model, mean_squared_error, x, target, params)
    grads = found.nodes[1].grads
    each = found.nodes[1].dy * explainer.array(x)
    averaged = {name: grad / 3.0 for name, grad in grads.items()}
    climbed = {name: params[0][name] + 0.01 * grad for name, grad in averaged.items()}
    down = explainer.step(params, found, 0.01)
    worse = explainer.explain(model, mean_squared_error, x, target, (climbed, {})).value
    better = explainer.explain(model, mean_squared_error, x, target, down).value
    return [
        Part(
            "One ReLU neuron, three examples",
            "",
            found,
            "The notebook takes the mean over the batch twice, once in the loss and again in the "
            "gradient, which is then a third of the true one; and it subtracts the negative "
            f"gradient, so it climbs: the loss becomes {worse}. The step that the gradient above "
            f"stands for, at the same rate of 0.01, makes it {better}. Below are the slopes of "
            "ReLU, what each example adds to the gradient of W, the two gradients as the notebook "
            "has them, and where it arrives.",
            [
                Line(r"\frac{\partial a}{\partial z}", ReLU().slope(found.nodes[1].y)),
                Line(r"\frac{\partial L}{\partial z} \odot x", each),
                Line(r"\frac{1}{3} \frac{\partial L}{\partial W}", averaged["weight"]),
                Line(r"\frac{1}{3} \frac{\partial L}{\partial b}", averaged["bias"]),
                *_after(climbed),
            ],
        )
    ]


def _chain_rule_and_update(explainer: _Explainer) -> list[Part]:
    neuron = explainer.dense([[-3], [-1], [2]], [1])
    layer = explainer.dense(np.transpose(WEIGHTS), [2, 3, 0.5])
    model = Sequential(Dense(3), ReLU())
    found = explainer.explain(model, half_square, INPUTS, np.zeros((3, 3)), (layer, {}))
    return [
        Part(
            "One neuron",
            "The notebook multiplies partial derivatives one by one, from a gradient of 1.",
            explainer.explain(
                Sequential(Dense(1), ReLU()), given_gradient, [[1, -2, 3]], [[1]], (neuron, {})
            ),
        ),
        Part(
            "A layer, sent nothing but ones",
            "As a matrix product. The notebook has one example a column here, we have it a row.",
            explainer.explain(Dense(3), given_gradient, INPUTS, np.ones((3, 3)), layer),
        ),
        Part(
            "The layer and a ReLU, and a step",
            "The notebook sends back the output itself, a: that is the gradient of ½ Σ a².",
            found,
            "A step of gradient descent at a rate of 0.001 leads to:",
            _after(explainer.step((layer, {}), found, 0.001)[0]),
        ),
    ]


def _after(params: dict[str, np.ndarray]) -> list[Line]:
    return [Line("W", params["weight"]), Line("b", params["bias"])]


_PAGES = {
    "train_neuron_and_layer": (
        "A neuron and a layer, trained",
        "Gradient descent on one neuron, then on a layer of three, until the answer is 0.",
        _train_neuron_and_layer,
    ),
    "dense_and_relu_backward": (
        "Backward through a dense layer and ReLU",
        "What a layer does with the gradient that it is given.",
        _dense_and_relu_backward,
    ),
    "softmax_network": (
        "A network of three layers, 3-4-2-3, and a softmax",
        "Forward and backward for one example.",
        _softmax_network,
    ),
    "mean_squared_error_step": (
        "A step on the mean squared error",
        "One neuron, three examples, and two mistakes that are easily made.",
        _mean_squared_error_step,
    ),
    "chain_rule_and_update": (
        "The chain rule, then an update",
        "Through one neuron by hand, through a layer as a matrix product.",
        _chain_rule_and_update,
    ),
}
NOTEBOOKS = tuple(_PAGES)


def notebook_page(name: str, backend: Backend) -> tuple[str, str, list[Part]]:
    """Title, what it is about, and parts of the page of one of `NOTEBOOKS`."""
    title, about, parts = _PAGES[name]
    with backend.applied():
        return title, about, parts(_Explainer(backend))
