"""The chain rule through one neuron, then through a layer of 4 inputs and 3 neurons.

The notebook behind this page multiplies partial derivatives one by one for a neuron,
as a matrix product for a layer, and ends with one step of gradient descent.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn

INPUTS = [[1, 2, 3, 2.5], [2.0, 5.0, -1.0, 2.0], [-1.5, 2.7, 3.3, -0.8]]
WEIGHTS = [[0.2, 0.8, -0.5, 1], [0.5, -0.91, 0.26, -0.5], [-0.26, -0.27, 0.17, 0.87]]
BIASES = [2, 3, 0.5]


def compute(backend):
    xp = backend.xp
    dtype = "float64" if backend.has_float64 else "float32"

    def array(numbers):
        return backend.asarray(np.array(numbers, dtype))

    relu = nn.ReLU()

    # The notebook speaks of three neurons here; this is one, with three inputs.
    neuron = nn.Dense(1)
    params = {"weight": array([[-3.0], [-1.0], [2.0]]), "bias": array([1.0])}
    z, _, cache_z = neuron.forward(params, {}, array([[1.0, -2.0, 3.0]]))
    a, _, cache_a = relu.forward({}, {}, z)
    dz, _ = relu.backward({}, cache_a, array([[1.0]]))
    dx, grads = neuron.backward(params, cache_z, dz)
    one_neuron = {
        "a": a,
        "drelu_dz": dz,
        # a sum passes it on to each
        "drelu_dxw, drelu_db": xp.concat([dz, dz, dz, dz], axis=1),
        "drelu_dx, drelu_dw": xp.concat(
            [xp.matrix_transpose(dx), grads["weight"]], axis=1
        ),
    }

    layer = nn.Dense(3)
    params = {"weight": array(np.transpose(WEIGHTS)), "bias": array(BIASES)}
    z, _, cache_z = layer.forward(params, {}, array(INPUTS))
    a, _, cache_a = relu.forward({}, {}, z)

    # The notebook's np.dot(weights.T, dvalues) wants one sample a column, while its
    # next cell has one a row. With nothing but
    # ones in dvalues the mix-up does not show.
    dx, _ = layer.backward(params, cache_z, array(np.ones((3, 3))))

    # The notebook defines dvalues again and then sends back `a` in its place. That is
    # the gradient of ½ Σ a², which is what the step below makes smaller. Clearing it
    # where z <= 0 changes nothing, as `a` is 0 there already.
    dz, _ = relu.backward({}, cache_a, a)
    _, grads = layer.backward(params, cache_z, dz)
    optimizer = nn.SGD(rate=0.001)
    updated, _ = optimizer.update(params, grads, optimizer.init(params))
    one_layer = {"dX": dx, "weights": updated["weight"], "biases": updated["bias"]}
    return backend.to_numpy(one_neuron | one_layer)


def show(results):
    for name in ("a", "drelu_dz", "drelu_dxw, drelu_db", "drelu_dx, drelu_dw"):
        print(*np.ravel(results[name]))
    print(results["dX"].T)
    print(results["weights"])
    print(results["biases"][None, :])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        backend = nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    show(compute(backend))
