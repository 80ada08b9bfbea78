"""The chain rule through one neuron, then through a layer of 4 inputs and 3 neurons.

The notebook that this example follows multiplies partial derivatives one by one for a
neuron, as a matrix product for a layer, and ends with one step of gradient descent.
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

    # The notebook calls this three neurons; it is one neuron with three inputs.
    neuron = nn.Dense(1)
    params = {"weight": array([[-3.0], [-1.0], [2.0]]), "bias": array([1.0])}
    z, _, cache_z = neuron.forward(params, {}, array([[1.0, -2.0, 3.0]]))
    a, _, cache_a = relu.forward({}, {}, z)
    dz, _ = relu.backward({}, cache_a, array([[1.0]]))
    dx, grads = neuron.backward(params, cache_z, dz)
    one_neuron = {
        "a": a,
        "drelu_dz": dz,
        # the gradient of a sum is the same for each term
        "drelu_dxw, drelu_db": xp.concat([dz, dz, dz, dz], axis=1),
        "drelu_dx, drelu_dw": xp.concat(
            [xp.matrix_transpose(dx), grads["weight"]], axis=1
        ),
    }

    layer = nn.Dense(3)
    params = {"weight": array(np.transpose(WEIGHTS)), "bias": array(BIASES)}
    z, _, cache_z = layer.forward(params, {}, array(INPUTS))
    a, _, cache_a = relu.forward({}, {}, z)

    # The notebook's np.dot(weights.T, dvalues) needs one sample per column, while its
    # next cell has one per row. With only ones in dvalues the result is the same.
    dx, _ = layer.backward(params, cache_z, array(np.ones((3, 3))))

    # The notebook defines dvalues again, but then propagates `a` instead. That is the
    # gradient of ½ Σ a², which the step below reduces. Setting it to 0 where z <= 0
    # changes nothing, as `a` is 0 there already.
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
