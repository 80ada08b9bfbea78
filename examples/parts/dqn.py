"""A DQN: action values learned by bootstrapping from a target network.

    L = mean (Q(s)[a] - y)²        y = r + γ (1 - done) max_b Q'(s')[b]

Q' is a copy of Q from some steps before (Mnih et al., "Human-level control through deep
reinforcement learning", 2015). Its parameters are the context of the `Trainer`: y is
computed in the step, and a new copy does not compile it again. y has no gradient, so
with e = Q(s)[a] - y, dL/dQ(s)[b] = 2 e / n for b = a, and 0 for other actions.
"""

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace

CELLS, DISCOUNT = 7, 0.9
NETWORK = nn.Sequential(nn.Dense(32), nn.Tanh(), nn.Dense(2))


class Corridor:
    """Cells in a row. Action 0 goes left and 1 right; the last cell pays 1 and ends."""

    def __init__(self, random):
        self.random = random
        self.reset()

    def reset(self):
        """Begin at a random cell, except the last, and return it."""
        self.cell = int(self.random.integers(CELLS - 1))
        return self.cell

    def step(self, action):
        """Move; return (cell, reward, whether the episode is over)."""
        self.cell = max(0, self.cell + (1 if action else -1))
        done = self.cell == CELLS - 1
        return self.cell, float(done), done


def transitions(random, count):
    """Return transitions of a random walk as arrays: s, and a, r, s' and done."""
    world = Corridor(random)
    rows = []
    state = world.reset()
    for _ in range(count):
        action = int(random.integers(2))
        after, reward, done = world.step(action)
        rows.append((state, action, reward, after, done))
        state = world.reset() if done else after
    states, actions, rewards, afters, dones = map(np.asarray, zip(*rows, strict=True))
    cells, both = np.eye(CELLS, dtype="float32"), np.eye(2, dtype="float32")
    target = {
        "action": both[actions],
        "reward": rewards.astype("float32"),
        "after": cells[afters],
        "goes_on": 1.0 - dones.astype("float32"),
    }
    return cells[states], target


def temporal_difference(q, target, weights=None, *, context):
    """L above; context holds the params and the state of the target network."""
    xp = namespace(q)
    following = NETWORK.predict(context["params"], context["state"], target["after"])
    best = xp.max(following, axis=1)
    y = target["reward"] + DISCOUNT * target["goes_on"] * best
    error = xp.sum(q * target["action"], axis=1) - y
    slope = (2.0 / q.shape[0]) * error
    return xp.mean(error * error), xp.expand_dims(slope, axis=1) * target["action"]


def compute(backend, steps=400, every=10, size=64):
    """Return the largest error of the values, and how many cells have the best action.

    The exact value of going right from the cell s is γᵏ with k = cells - 2 - s.
    """
    random = np.random.default_rng(0)
    x, target = transitions(random, 1000)
    trainer = nn.Trainer(
        NETWORK,
        temporal_difference,
        nn.Adam(1e-2),
        backend=backend,
        shape=(CELLS,),
    )
    for step in range(steps):
        if step % every == 0:
            trainer.context = {"params": trainer.params, "state": trainer.state}
        rows = random.integers(len(x), size=size)
        trainer.step(x[rows], {name: leaf[rows] for name, leaf in target.items()})
    q = trainer.predict(np.eye(CELLS, dtype="float32"))[:-1]
    exact = DISCOUNT ** np.arange(CELLS - 2, -1, -1.0)
    return {
        "largest error": float(np.abs(q[:, 1] - exact).max()),
        "cells solved": float((q[:, 1] > q[:, 0]).mean()),
    }


if __name__ == "__main__":
    from table import main

    main(compute)
