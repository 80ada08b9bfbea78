"""The parity of a string of bits: learned by a GRU that reads it bit by bit, not by an MLP.

After each bit the question is whether the number of ones so far is odd. Who reads bit
by bit has one thing to keep in mind and to change at each one: 1,024 of the 65,536
strings of 16 bits teach that to a GRU, and it hardly errs on 100 bits either. An MLP
sees a string at once, and whichever bit of it changes, the answer does. Shown the same
strings ten times as often, it learns the first few bits and some of the rest by heart;
about the whole of a string it has not seen it knows what a coin knows.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn


def question(bits):
    """x, -1 or 1 for each bit, and the target after each: 1 where the ones so far are odd."""
    target = np.cumsum(bits, axis=1) % 2
    return (2.0 * bits - 1.0).astype("float32")[..., None], target.astype("float32")[
        ..., None
    ]


def compute(backend, length=16, count=1024, epochs=(6, 60), longer=100):
    """By model: the loss on other strings, and how often it is right after the last bit."""
    draw = np.random.default_rng(0)
    bits = draw.permutation(2**length)[: 2 * count, None] >> np.arange(length) & 1
    strings = {"shown": question(bits[:count]), "others": question(bits[count:])}
    gru = nn.Sequential(nn.GRU(8), nn.Dense(1))
    mlp = nn.Sequential(
        nn.Flatten(), nn.Dense(64), nn.Tanh(), nn.Dense(length), nn.Reshape((length, 1))
    )
    results = {}
    for name, model, often in zip(("GRU", "MLP"), (gru, mlp), epochs, strict=True):
        trainer = nn.Trainer(
            model, nn.binary_cross_entropy, nn.Adam(2e-2), backend=backend
        )
        trainer.fit(*strings["shown"], epochs=often, batch_size=32, verbose=0)
        results[name] = {
            "loss": trainer.evaluate(*strings["others"])["loss"],
            **{
                which: right(trainer.predict(x), target)
                for which, (x, target) in strings.items()
            },
        }
        if name == "GRU":  # an MLP takes strings of one length
            x, target = question(draw.integers(0, 2, (100, longer)))
            forward = backend.jit(lambda *arrays: gru.forward(*arrays)[0])
            y = backend.to_numpy(
                forward(trainer.params, trainer.state, backend.asarray(x))
            )
            results[name]["longer"] = right(y, target)
    return results


def right(y, target):
    """Return how often the sign of y after the last bit equals the target."""
    return float(np.mean((y[:, -1, 0] > 0) == (target[:, -1, 0] > 0)))


def show(results):
    for name, result in results.items():
        print(
            f"{name}: right about {result['shown']:.1%} of the strings it was shown, "
            "and"
        )
        print(
            f"     {result['others']:.1%} of others, where its loss is "
            f"{result['loss']:.4f}"
        )
        if "longer" in result:
            print(f"     {result['longer']:.1%} of much longer ones")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        backend = nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    show(compute(backend))
