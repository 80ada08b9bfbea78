"""One neuron, then a layer of three, trained by gradient descent towards 0.

The notebook that this example follows derives every derivative of y², y = Σ ReLU(W x +
b), by hand and takes 200 steps. Here the layers compute them, and one function trains
both, since a neuron is a layer of width 1.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn


def train(backend, x, weight, bias, steps=200):
    """Return the loss of each step and the final parameters, as NumPy arrays."""
    xp = backend.xp
    model = nn.Sequential(nn.Dense(len(bias)), nn.ReLU())
    optimizer = nn.SGD(rate=0.001)

    @backend.jit
    def step(params, moments, x):
        a, _, cache = model.forward(params, ({}, {}), x)
        y = xp.sum(a, axis=-1, keepdims=True)
        # The notebook sets a target of 0 but does not use it: y² is (y - target)².
        loss, dy = nn.mean_squared_error(y, xp.zeros_like(y))
        da = dy * xp.ones_like(a)  # y is the sum of a
        _, grads = model.backward(params, cache, da)
        params, moments = optimizer.update(params, grads, moments)
        return params, moments, loss  # before the update, as in the notebook

    dtype = "float64" if backend.has_float64 else "float32"
    dense = {"weight": np.array(weight, dtype).T, "bias": np.array(bias, dtype)}
    x, params = backend.asarray((np.array([x], dtype), (dense, {})))
    moments = optimizer.init(params)
    losses = []
    for _ in range(steps):
        params, moments, loss = step(params, moments, x)
        losses.append(loss)
    return backend.to_numpy({"loss": xp.stack(losses), **params[0]})


def compute(backend):
    neuron = train(backend, x=[1.0, -2.0, 3.0], weight=[[-3.0, -1.0, 2.0]], bias=[1.0])
    # The gradient of the sum moves all three neurons down together. Two of them go
    # below 0, where the slope of ReLU is 0, and stop learning. From then on the loss
    # depends on the third neuron only.
    layer = train(
        backend,
        x=[1, 2, 3, 4],
        weight=[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 1.0, 1.1, 1.2]],
        bias=[0.1, 0.2, 0.3],
    )
    return {"neuron": neuron, "layer": layer}


def show(results):
    neuron, layer = results["neuron"], results["layer"]
    for i, loss in enumerate(neuron["loss"]):
        print(f"Itereation {i + 1}'s Loss: {loss}")  # spelt as in the notebook
    print("Final weights:", neuron["weight"][:, 0])
    print("Final bias:", neuron["bias"][0])

    for i, loss in enumerate(layer["loss"]):
        if i % 20 == 0:
            print(f"Iteration {i + 1}, Loss: {loss}")
    # the rows of the notebook are neurons
    print("Final weights:\n", layer["weight"].T, "\n")
    print("Final biases:\n", layer["bias"])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        backend = nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    show(compute(backend))
