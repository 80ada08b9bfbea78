"""The three gradients of a dense layer, and the one of ReLU.

The notebook that this example follows computes dL/dW, dL/db and dL/dX of a batch of
three in one line of NumPy each, then as `backward` of two classes. The same classes of
the library are `nn.Dense` and `nn.ReLU`.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn

INPUTS = [[1, 2, 3, 2.5], [2, 5, -1, 2], [-1.5, 2.7, 3.3, -0.8]]
WEIGHTS = [[0.2, 0.8, -0.5, 1], [0.5, -0.91, 0.26, -0.5], [-0.26, -0.27, 0.17, 0.87]]
GRADIENT = [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def compute(backend):
    dtype = "float64" if backend.has_float64 else "float32"

    def array(numbers):
        return backend.asarray(np.array(numbers, dtype))

    dense, relu = nn.Dense(3), nn.ReLU()
    params = {"weight": array(np.transpose(WEIGHTS)), "bias": array([0, 0, 0])}

    # The notebook's classes store the inputs of forward on self, so a second forward
    # invalidates the first one's backward. Here forward returns them as the cache.
    z, _, cache = dense.forward(params, {}, array(INPUTS))
    dx, grads = dense.backward(params, cache, array(GRADIENT))

    # The notebook's ReLU changes the dL_da of its caller, because `self.dL_dz = dL_da`
    # copies nothing. `nn.ReLU` returns a new array.
    a, _, cache = relu.forward({}, {}, z)
    da = array(GRADIENT)
    dz, _ = relu.backward({}, cache, da)

    return backend.to_numpy(
        {"dL_dW": grads["weight"], "dL_db": grads["bias"], "dL_dX": dx}
        | {"z": z, "a": a, "dL_da": da, "dL_dz": dz}
    )


def show(results):
    print(results["dL_dW"])
    print(results["dL_db"][None, :])
    print(results["dL_dX"])

    print("Through ReLU:")  # the notebook stops at the class
    print(results["dL_dz"])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        backend = nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    show(compute(backend))
