"""Distillation: a small network learns from the outputs of a trained one.

    L = mean T² H(softmax(t / T), softmax(y / T))        dL/dy = T (p(y) - p(t)) / n

H is the cross-entropy, and p the softmax at the temperature T (Hinton et al.,
arXiv:1503.02531, section 2). The outputs t of the teacher are the target. They are
computed once for points without labels, of which there are many more than with labels.
"""

from functools import partial

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace


def softened(y, target, weights=None, *, temperature, reduction="mean"):
    """T² times the cross-entropy of y / T with the distributions `target`."""
    value, slope = nn.softmax_cross_entropy(
        y / temperature, target, weights, reduction=reduction
    )
    return temperature**2 * value, temperature * slope


def softmax(y):
    xp = namespace(y)
    exponentials = xp.exp(y - xp.max(y, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def labelled(random, count):
    """Return points of the plane and their sector, one of 4 that turn with radius."""
    x = random.uniform(-2, 2, (count, 2))
    angle = np.arctan2(x[:, 1], x[:, 0]) + 0.7 * np.linalg.norm(x, axis=1)
    return x.astype("float32"), np.floor(angle / (np.pi / 2)).astype(int) % 4


def network(width):
    return nn.Sequential(nn.Dense(width), nn.Tanh(), nn.Dense(4))


def compute(backend, few=32, many=2048, epochs=(20, 20), temperature=2.0):
    """Return the accuracy of the teacher, and of students without and with it."""
    random = np.random.default_rng(0)
    test_x, test_labels = labelled(random, 1000)
    x, labels = labelled(random, many)

    def trained(model, loss, x, target, epochs):
        trainer = nn.Trainer(model, loss, nn.Adam(2e-2), backend=backend, shape=(2,))
        trainer.fit(x, target, epochs=epochs, batch_size=64, verbose=0)
        return trainer

    def accuracy(trainer):
        return float((trainer.predict(test_x).argmax(axis=1) == test_labels).mean())

    teacher_epochs, student_epochs = epochs
    cross_entropy = nn.softmax_cross_entropy
    teacher = trained(network(64), cross_entropy, x, labels, teacher_epochs)
    alone = trained(
        network(16), cross_entropy, x[:few], labels[:few], student_epochs * many // few
    )
    unlabelled = random.uniform(-2, 2, (many, 2)).astype("float32")
    target = softmax(teacher.predict(unlabelled) / temperature)
    loss = partial(softened, temperature=temperature)
    student = trained(network(16), loss, unlabelled, target, student_epochs)
    return {
        "teacher": accuracy(teacher),
        "student alone": accuracy(alone),
        "distilled": accuracy(student),
    }


if __name__ == "__main__":
    from table import main

    main(compute)
