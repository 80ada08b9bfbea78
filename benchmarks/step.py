"""One training step of a 64-64-32-10 network at batch 32: ours on NumPy against plain NumPy.

Both in one process, in turns, so that a noisy machine hits both alike. Prints the median
time of each and the ratio. Run it as `python benchmarks/step.py`.
"""

import time
from statistics import median

import numpy as np

import agnostic_nn as nn

WIDTHS, BATCH, RATE, ROUNDS = (64, 64, 32, 10), 32, 0.01, 3000


def by_hand(weights, biases, x, labels):
    """The step as a textbook writes it: SGD on softmax cross-entropy behind two ReLU layers."""
    kept = [x]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        z = kept[-1] @ weight + bias
        kept.append(z if i == len(weights) - 1 else np.maximum(z, 0.0))
    shifted = kept[-1] - kept[-1].max(axis=1, keepdims=True)
    grown = np.exp(shifted)
    total = grown.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, labels])
    dz = grown / total
    dz[rows, labels] -= 1.0
    dz /= len(labels)
    new_weights, new_biases = list(weights), list(biases)
    for i in reversed(range(len(weights))):
        new_weights[i] = weights[i] - RATE * (kept[i].T @ dz)
        new_biases[i] = biases[i] - RATE * dz.sum(axis=0)
        if i:
            dz = (dz @ weights[i].T) * (kept[i] > 0)
    return new_weights, new_biases, loss


def main():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((BATCH, WIDTHS[0])).astype(np.float32)
    labels = generator.integers(0, WIDTHS[-1], BATCH).astype(np.int32)
    first, second, last = WIDTHS[1:]
    model = nn.Sequential(nn.Dense(first), nn.ReLU(), nn.Dense(second), nn.ReLU(), nn.Dense(last))
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, nn.SGD(RATE), backend="numpy", shape=WIDTHS[:1]
    )
    step = nn.make_step(model, nn.softmax_cross_entropy, nn.SGD(RATE))
    carry = (trainer.params, trainer.state, trainer.moments)
    weights = [p["weight"] for p in trainer.params if p]
    biases = [p["bias"] for p in trainer.params if p]

    def hand():
        nonlocal weights, biases
        weights, biases, loss = by_hand(weights, biases, x, labels)
        return loss

    def pure():
        nonlocal carry
        carry, loss, _ = step(carry, x, labels)
        return loss

    def checked():
        return trainer.step(x, labels)

    times = {hand: [], pure: [], checked: []}
    for _ in range(ROUNDS):
        for run, spent in times.items():
            started = time.perf_counter()
            run()
            spent.append(time.perf_counter() - started)
    assert abs(hand() - pure()) < 1e-4, "the two do not compute the same"
    base = median(times[hand])
    for run, said in ((hand, "by hand"), (pure, "make_step"), (checked, "Trainer.step")):
        middle = median(times[run])
        print(f"{said:13} {1e6 * middle:7.1f} µs   {middle / base:.2f} x by hand")


if __name__ == "__main__":
    main()
