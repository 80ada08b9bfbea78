"""One step of a single ReLU neuron on the mean squared error of three examples.

The notebook that this example follows makes two mistakes, which its printed numbers
contain. It averages over the batch twice, in dL_dpred and again in dL_dw, so its
gradient is a third of the true one. And it subtracts the negative gradient, so its step
increases the loss. Both are reproduced, next to a correct step.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn


def compute(backend):
    dtype = "float64" if backend.has_float64 else "float32"
    dense, relu, optimizer = nn.Dense(1), nn.ReLU(), nn.SGD(rate=0.01)

    def array(numbers):
        return backend.asarray(np.array(numbers, dtype))

    x = array([[1.0, 2.0], [2.0, 1.0], [-1.0, -2.0]])
    target = array([[1], [0], [0]])
    params = {"weight": array([[0.1], [0.2]]), "bias": array([1])}

    def loss_of(params):
        z, _, _ = dense.forward(params, {}, x)
        y, _, _ = relu.forward({}, {}, z)
        return nn.mean_squared_error(y, target)[0]

    z, _, cache_z = dense.forward(params, {}, x)
    y, _, cache_y = relu.forward({}, {}, z)
    loss, dy = nn.mean_squared_error(y, target)
    dz, _ = relu.backward({}, cache_y, dy)
    _, grads = dense.backward(params, cache_z, dz)

    averaged = {name: grad / x.shape[0] for name, grad in grads.items()}
    moments = optimizer.init(params)
    climbed, _ = optimizer.update(params, {k: -g for k, g in averaged.items()}, moments)
    descended, _ = optimizer.update(params, grads, moments)

    return backend.to_numpy(
        {
            "z": z,
            "y": y,
            "loss": loss,
            "dL_dpred": dy,
            "dpred_dz": relu.slope(z),
            "dz * x": dz * x,
        }
        | {"dL_dw": averaged["weight"], "dL_db": averaged["bias"]}
        | {"new weights": climbed["weight"], "new bias": climbed["bias"]}
        | {
            "loss after it": loss_of(climbed),
            "loss after a true step": loss_of(descended),
        }
        | {"true dL_dw": grads["weight"], "true dL_db": grads["bias"]}
    )


def show(results):
    column = {name: np.ravel(values) for name, values in results.items()}
    print("Ouput after 1 layer:", column["z"])  # spelt as in the notebook
    print("Prediction after 1 layer:", column["y"])
    print("Loss after 1 layer", results["loss"])
    print(f"dL_dpred shape: {column['dL_dpred'].shape}")
    print(f"dpred_dz shape: {column['dpred_dz'].shape}")
    print(f"dL_dpred: {column['dL_dpred']}")
    print(f"dpred_dz: {column['dpred_dz']}")
    print(results["dz * x"])
    print("\n", "#" * 100)
    # These two are gradients of the loss; there is no loss "with respect to" something.
    print("Loss with respect to weight:", column["dL_dw"])
    print("Loss with respect to bias:", column["dL_db"][0])
    print("New Weights:", column["new weights"])
    print("New bias:", column["new bias"][0])
    print("Loss after this step:", results["loss after it"])
    print("Loss after the textbook's:", results["loss after a true step"])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        backend = nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    show(compute(backend))
