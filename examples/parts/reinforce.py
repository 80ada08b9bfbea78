"""REINFORCE: a policy learns from the rewards of the actions that it draws.

    L = -Σ A log π(a | s)        π = softmax(z)        dL/dz = A (π - one-hot(a))

The advantage A of an action is its discounted return minus the mean over the batch
(Williams, "Simple statistical gradient-following algorithms", 1992). This is the sum of
cross-entropies with the weights A. They may be negative, which a sum allows: an action
that was worse than the mean becomes less likely. A mean would divide by Σ A, about 0.
"""

from functools import partial

import numpy as np

import agnostic_nn as nn

ARMS = 5
SUM = partial(nn.softmax_cross_entropy, reduction="sum")


def rewards(random, contexts, actions):
    """Return noisy rewards: the best of the arms is that of the context, plus 1."""
    best = (contexts + 1) % ARMS
    return (actions == best) + 0.3 * random.standard_normal(len(actions))


def compute(backend, steps=150, size=64):
    """Return the probability of the best action, before and after the training."""
    random = np.random.default_rng(0)
    rows = np.eye(ARMS, dtype="float32")
    policy = nn.Trainer(
        nn.Sequential(nn.Dense(16), nn.Tanh(), nn.Dense(ARMS)),
        SUM,
        nn.Adam(2e-2),
        backend=backend,
        shape=(ARMS,),
    )

    def best_probability():
        probabilities = policy.predict_probabilities(rows)
        return float(
            probabilities[np.arange(ARMS), (np.arange(ARMS) + 1) % ARMS].mean()
        )

    before = best_probability()
    for _ in range(steps):
        contexts = random.integers(ARMS, size=size)
        cumulative = policy.predict_probabilities(rows)[contexts].cumsum(axis=1)
        draws = random.random((size, 1)) * cumulative[:, -1:]
        actions = (draws > cumulative).sum(axis=1)
        returns = rewards(random, contexts, actions)
        advantages = (returns - returns.mean()).astype("float32")
        policy.step(rows[contexts], actions, advantages)
    return {"best action before": before, "after": best_probability()}


if __name__ == "__main__":
    from table import main

    main(compute)
