"""A mean teacher: few labels, and a target that is the average of the network itself.

    L = mean over labelled H(label, softmax(y)) + w(t) mean ‖softmax(y) - softmax(y')‖²
    θ' ← d θ' + (1 - d) θ

y' are the outputs of the teacher, whose parameters θ' are the exponential average of
the student's θ, for another noisy copy of the same points (Tarvainen & Valpola,
arXiv:1703.01780). `nn.Average` keeps θ', and `context` passes it to the loss. The
teacher has no gradient, so with p = softmax(y), e = p - p' and n points the second term
has the slope 2 w / n · p (e - Σ p e).
"""

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace

MODEL = nn.Sequential(nn.Dense(32), nn.Tanh(), nn.Dense(32), nn.Tanh(), nn.Dense(2))


def softmax(y):
    xp = namespace(y)
    exponentials = xp.exp(y - xp.max(y, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def consistent(y, target, weights=None, *, context):
    """L above; context holds θ', the state of the model and w."""
    xp = namespace(y)
    supervised, slope = nn.softmax_cross_entropy(
        y, target["label"], target["has_label"]
    )
    teacher = MODEL.predict(context["params"], context["state"], target["noisy"])
    p = softmax(y)
    error = p - softmax(teacher)
    share = context["weight"] / y.shape[0]
    along = xp.sum(p * error, axis=1, keepdims=True)
    value = supervised + share * xp.sum(error * error)
    return value, slope + 2.0 * share * p * (error - along)


def moons(random, count):
    """Return points of two interleaved half circles, and which of the two."""
    angle, label = random.uniform(0, np.pi, count), random.integers(2, size=count)
    sign = 1 - 2 * label
    x = np.stack([np.cos(angle) * sign + label, np.sin(angle) * sign + 0.4 * label], 1)
    return (x + 0.08 * random.standard_normal(x.shape)).astype("float32"), label


def compute(backend, steps=300, size=64, labels=3, weights=(0.0, 3.0), ramp=50):
    """Return the accuracy of labels alone, and of the student and its mean teacher."""
    x, label = moons(np.random.default_rng(0), 512)
    has_label = np.zeros(512, "float32")
    for each in range(2):
        has_label[np.flatnonzero(label == each)[:labels]] = 1.0
    results = {}
    for name, weight in zip(("labels alone", "student"), weights, strict=True):
        random = np.random.default_rng(1)
        optimizer = nn.Average(nn.Adam(1e-2), decay=0.97)
        trainer = nn.Trainer(MODEL, consistent, optimizer, backend=backend, shape=(2,))
        averaged = backend.jit(optimizer.averaged)
        labelled = np.flatnonzero(has_label)

        def noisy(rows, random=random):
            noise = 0.15 * random.standard_normal((len(rows), 2))
            return (x[rows] + noise).astype("float32")

        for step in range(steps):
            rows = np.concatenate([labelled, random.integers(512, size=size)])
            average = nn.Average.own_moments(trainer.moments)
            trainer.context = {
                "params": averaged(trainer.params, average),
                "state": trainer.state,
                "weight": np.float32(weight * min(1.0, step / ramp)),
            }
            target = {
                "label": label[rows],
                "has_label": has_label[rows],
                "noisy": noisy(rows),
            }
            trainer.step(noisy(rows), target)
        accuracy = (trainer.predict(x).argmax(axis=1) == label).mean()
        results[name] = float(accuracy)
        accuracy = (trainer.predict(x, averaged=True).argmax(axis=1) == label).mean()
    return results | {"mean teacher": float(accuracy)}


if __name__ == "__main__":
    from table import main

    main(compute)
