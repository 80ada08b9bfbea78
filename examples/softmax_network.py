"""Forward and backward through a network of three layers, 3-4-2-3, for one example.

The notebook that this example follows uses columns, z = W x + b with W (fan_out,
fan_in), the library rows, z = x W + b. Results are transposed where it prints columns.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn


def compute(backend):
    xp = backend.xp
    dtype = "float64" if backend.has_float64 else "float32"

    def array(numbers):
        return backend.asarray(np.array(numbers, dtype))

    def dense_params(weight, bias):
        return {"weight": array(np.transpose(weight)), "bias": array(bias)}

    params1 = dense_params(
        [[1, -1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], [-5, 0, 1, -2]
    )
    params2 = dense_params([[1, -1, 1, 0], [0, 1, -1, 1]], [0, 3])
    params3 = dense_params([[2, 0], [0, 2], [1, 1]], [-1, -5, -7])
    x, target = array([[2, 1, 3]]), array([[0, 1, 0]])
    dense1, dense2, dense3, relu = nn.Dense(4), nn.Dense(2), nn.Dense(3), nn.ReLU()

    z1, _, cache_z1 = dense1.forward(params1, {}, x)
    a1, _, cache_a1 = relu.forward({}, {}, z1)
    z2, _, cache_z2 = dense2.forward(params2, {}, a1)
    a2, _, cache_a2 = relu.forward({}, {}, z2)
    z3, _, cache_z3 = dense3.forward(params3, {}, a2)
    exact_a3, _, _ = nn.Softmax().forward({}, {}, z3)

    # The notebook rounds to one decimal before it differentiates, so its dL_dz3 is off
    # by up to 0.009. Its loss, which it does not name, is the cross-entropy. The exact
    # gradient is `exact_dz3`.
    a3 = xp.round(exact_a3 * 10.0) / 10.0
    dz3 = a3 - target
    _, exact_dz3 = nn.softmax_cross_entropy(z3, target)

    da2, grads3 = dense3.backward(params3, cache_z3, dz3)
    # the notebook leaves this out; here both z2 > 0
    dz2, _ = relu.backward({}, cache_a2, da2)
    da1, grads2 = dense2.backward(params2, cache_z2, dz2)
    dz1, _ = relu.backward({}, cache_a1, da1)
    _, grads1 = dense1.backward(params1, cache_z1, dz1)

    return backend.to_numpy(
        {"z1": z1, "a1": a1, "z2": z2, "a2": a2, "z3": z3, "a3": a3}
        | {
            "dL_dz3": dz3,
            "dL_dW3": grads3["weight"],
            "dL_db3": grads3["bias"],
            "dL_da2": da2,
        }
        | {
            "dL_dz2": dz2,
            "dL_dW2": grads2["weight"],
            "dL_db2": grads2["bias"],
            "dL_da1": da1,
        }
        | {"dL_dz1": dz1, "dL_dW1": grads1["weight"], "dL_db1": grads1["bias"]}
        | {"exact a3": exact_a3, "exact dL_dz3": exact_dz3}
    )


def show(results):
    # the saved output has dL_dz3, the code ∂L_∂z3
    for name in ("z1", "a1", "z2", "a2", "a3", "dL_dz3"):
        print(f" {name}:\n", results[name].T)
    # Some gradients of the notebook do not have the shapes of its parameters: dL_dW1 is
    # transposed, and dL_db3 and dL_db1 are rows, so b - dL_db broadcasts to a matrix.
    print(" ∂L/∂W3:\n", results["dL_dW3"])
    print(" ∂L/∂b3:\n", results["dL_db3"][None, :])
    print(repr(results["dL_da2"].T))
    print(" ∂L/∂b2:\n", results["dL_db2"][:, None])
    print(" ∂L/∂W2:\n", results["dL_dW2"])
    print(repr(results["dL_da1"].T))
    print(" ∂L/∂z1:\n", results["dL_dz1"])
    print(" ∂L/∂b1:\n", results["dL_db1"][None, :])
    print(" ∂L/∂W1:\n", results["dL_dW1"])
    print("Without the rounding:\n dL_dz3:\n", results["exact dL_dz3"].T)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        backend = nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    show(compute(backend))
