"""Contrastive learning in a batch: two views of one thing attract each other.

    L = -mean log ( exp(cos(aᵢ, bᵢ) / τ) / Σⱼ exp(cos(aᵢ, bⱼ) / τ) )

aᵢ and bᵢ are the outputs of one encoder for two views of example i, and those of the
other examples of the batch are the negatives (InfoNCE: van den Oord et al.,
arXiv:1807.03748; in both directions as in CLIP, arXiv:2103.00020). The loss needs no
labels. Its gradient goes to both outputs, and the encoder adds up both.
"""

from functools import partial

import numpy as np

import agnostic_nn as nn

ENCODER = nn.Sequential(nn.Dense(32), nn.Tanh(), nn.Dense(4))
MODEL = nn.Graph(
    first=(ENCODER, "x.0"),
    second=(nn.Shared("first"), "x.1"),
    outputs={"first": "first", "second": "second"},
)


def views(random, count, mixing):
    """Return two views of hidden codes: the code counts, and the rest is noise."""
    code = random.standard_normal((count, 3))
    pair = []
    for _ in range(2):
        noise = random.standard_normal((count, 9))
        pair.append(np.tanh(np.concatenate([code, noise], axis=1) @ mixing))
    return tuple(view.astype("float32") for view in pair)


def matches(y):
    """Return how often the most similar second view is that of the same example."""
    first, second = (
        y[name] / np.linalg.norm(y[name], axis=1, keepdims=True)
        for name in ("first", "second")
    )
    return float(((first @ second.T).argmax(axis=1) == np.arange(len(first))).mean())


def compute(backend, count=1024, epochs=20):
    """Return how often one of 128 new views is matched, before and after training."""
    random = np.random.default_rng(0)
    mixing = random.standard_normal((12, 16)) / 4
    x, new = views(random, count, mixing), views(random, 128, mixing)
    loss = partial(nn.info_nce, temperature=0.1, symmetric=True)
    trainer = nn.Trainer(
        MODEL, loss, nn.Adam(5e-3), backend=backend, shape=((16,),) * 2
    )
    before = matches(trainer.predict(new))
    no_target = np.zeros((count, 0), "float32")
    trainer.fit(x, no_target, epochs=epochs, batch_size=64, verbose=0)
    return {"matched before": before, "after": matches(trainer.predict(new))}


if __name__ == "__main__":
    from table import main

    main(compute)
