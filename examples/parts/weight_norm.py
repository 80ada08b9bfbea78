"""Weight normalization: the length and the direction of weights learn separately.

    w = g v / ‖v‖        dg = Σ G v̂        dv = g / ‖v‖ (G - v̂ dg)        v̂ = v / ‖v‖

G is dL/dw (Salimans & Kingma, arXiv:1602.07868). dv is orthogonal to v, so each step of
gradient descent makes v longer, by ‖v + δ‖² = ‖v‖² + ‖δ‖², and later steps turn it
less: the rate adapts itself. Both networks train at the same high rate here.
"""

import numpy as np

import agnostic_nn as nn


def networks(width=16):
    """Return a network with plain weights and one with normalized weights."""
    plain = (nn.Dense(width), nn.Tanh(), nn.Dense(width), nn.Tanh(), nn.Dense(1))
    normed = tuple(
        nn.WeightNorm(layer) if isinstance(layer, nn.Dense) else layer
        for layer in plain
    )
    return {"plain": nn.Sequential(*plain), "normed": nn.Sequential(*normed)}


def compute(backend, epochs=30, rate=0.2):
    """Return the loss of both networks, and how much longer directions became."""
    random = np.random.default_rng(0)
    x = random.standard_normal((512, 8)).astype("float32")
    target = np.sin(2.0 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    results = {}
    for name, model in networks().items():
        trainer = nn.Trainer(
            model, nn.mean_squared_error, nn.SGD(rate), backend=backend, shape=(8,)
        )
        first = lengths(backend, trainer.params) if name == "normed" else 1.0
        trainer.fit(x, target, epochs=epochs, batch_size=32, verbose=0)
        results[f"loss {name}"] = trainer.evaluate(x, target)["loss"]
    growth = lengths(backend, trainer.params) / first
    return results | {"least growth": float(growth.min())}


def lengths(backend, params):
    """Return ‖v‖ of each output of the first layer."""
    direction = backend.to_numpy(params)[0]["weight"]["direction"]
    return np.linalg.norm(direction, axis=0)


if __name__ == "__main__":
    from table import main

    main(compute)
