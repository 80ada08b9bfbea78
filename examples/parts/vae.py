"""A VAE with KL annealing: a code of one number for points on a curve.

    z = μ(x) + exp(s(x) / 2) n        n normal noise, s = log σ²
    L = mean ‖x - D(z)‖² / (2 · 0.1²) + β(t) mean ½ Σ (μ² + eˢ - s - 1)

The second term is the KL divergence of the normal distribution of z from the standard
one (Kingma & Welling, arXiv:1312.6114, appendix B). Its weight β rises from 0 to 1, so
that the code is used before it is regularized (Bowman et al., arXiv:1511.06349).
The noise is an input, drawn by `augment` from a generator that `fit` fixes by seed,
epoch and batch: the draw is explicit, and a run can be repeated bit by bit.

    dL/dμ = dz + β μ        dL/ds = dz ½ exp(s / 2) n + β ½ (eˢ - 1)
"""

from dataclasses import dataclass

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.losses.base import reduced


@dataclass(frozen=True)
class Deviation(nn.Elementwise):
    """y = exp(x / 2), the deviation of x = log σ²."""

    def value(self, x):
        return namespace(x).exp(0.5 * x)

    def slope(self, x):
        return 0.5 * namespace(x).exp(0.5 * x)


def divergence(code, target, weights=None):
    """The KL divergence of N(μ, eˢ) from N(0, 1), with μ and s in the last axis."""
    xp = namespace(code)
    mean, log_variance = code[:, :1], code[:, 1:]
    variance = xp.exp(log_variance)
    values = 0.5 * (mean * mean + variance - log_variance - 1.0)
    slopes = xp.concat([mean, 0.5 * (variance - 1.0)], axis=1)
    return reduced(values[:, 0], slopes, weights, "mean")


MODEL = nn.Graph(
    hidden=(nn.Sequential(nn.Dense(24), nn.Tanh()), "x"),
    mean=(nn.Dense(1), "hidden"),
    log_variance=(nn.Dense(1), "hidden"),
    deviation=(Deviation(), "log_variance"),
    noisy=(nn.Multiply(), "deviation", "noise"),
    z=(nn.Add(), "mean", "noisy"),
    decoded=(nn.Sequential(nn.Dense(24), nn.Tanh(), nn.Dense(3)), "z"),
    code=(nn.Concatenate(), "mean", "log_variance"),
    outputs={"x": "decoded", "code": "code"},
)


def compute(backend, count=512, epochs=100):
    """Return the error of decoded means, and mean and deviation of all codes."""
    random = np.random.default_rng(0)
    place = random.uniform(-1.5, 1.5, count)
    curve = np.stack([np.sin(2 * place), place, np.cos(place)], axis=1)
    curve = (curve + 0.05 * random.standard_normal(curve.shape)).astype("float32")
    x = {"x": curve, "noise": np.zeros((count, 1), "float32")}
    target = {"x": curve, "code": np.zeros((count, 2), "float32")}

    def draw(x, target, generator):
        noise = generator.standard_normal(x["noise"].shape, dtype="float32")
        return {**x, "noise": noise}, target

    beta = nn.schedules.Linear(0.0, 1.0, steps=4 * epochs)
    trainer = nn.Trainer(
        MODEL,
        nn.Losses(
            x=nn.mean_squared_error,
            code=divergence,
            weights={"x": 3 / (2 * 0.1**2), "code": beta},
        ),
        nn.Adam(1e-2),
        backend=backend,
    )
    trainer.fit(x, target, epochs=epochs, batch_size=64, augment=draw, verbose=0)
    y = trainer.predict(x)
    mean, log_variance = y["code"].T
    codes = mean + np.exp(0.5 * log_variance) * random.standard_normal(count)
    return {
        "error": float(((y["x"] - curve) ** 2).mean() / curve.var(axis=0).mean()),
        "mean code": float(codes.mean()),
        "deviation": float(codes.std()),
        "KL": float((0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1)).mean()),
    }


if __name__ == "__main__":
    from table import main

    main(compute)
