"""The parity of a string of bits, which a GRU learns and an MLP does not.

The target after each bit is whether the number of ones so far is odd. A recurrent
network needs to remember one bit, and to flip it at each one: a GRU learns this from
1,024 of the 65,536 strings of 16 bits, and is nearly always right on 100 bits, too. An
MLP reads the whole string at once, and its answer has to change with every single bit.
After ten times as many epochs it has memorized the first few bits and some of the
training strings; the parity of a new string it can only guess.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn


def examples(bits):
    """Return x, -1 or 1 per bit, and targets, 1 where the number of ones is odd."""
    target = np.cumsum(bits, axis=1) % 2
    x = 2.0 * bits - 1.0
    return x.astype("float32")[..., None], target.astype("float32")[..., None]


def compute(backend, length=16, count=1024, epochs=(6, 60), longer=100):
    """Return for each model its test loss, and its accuracy after the last bit."""
    generator = np.random.default_rng(0)
    bits = generator.permutation(2**length)[: 2 * count, None] >> np.arange(length) & 1
    strings = {"training": examples(bits[:count]), "new": examples(bits[count:])}
    gru = nn.Sequential(nn.GRU(8), nn.Dense(1))
    mlp = nn.Sequential(
        nn.Flatten(), nn.Dense(64), nn.Tanh(), nn.Dense(length), nn.Reshape((length, 1))
    )
    results = {}
    for name, model, model_epochs in zip(
        ("GRU", "MLP"), (gru, mlp), epochs, strict=True
    ):
        trainer = nn.Trainer(
            model, nn.binary_cross_entropy, nn.Adam(2e-2), backend=backend
        )
        trainer.fit(*strings["training"], epochs=model_epochs, batch_size=32, verbose=0)
        results[name] = {
            "loss": trainer.evaluate(*strings["new"])["loss"],
            **{
                kind: accuracy(trainer.predict(x), target)
                for kind, (x, target) in strings.items()
            },
        }
        if name == "GRU":  # an MLP takes strings of one length only
            x, target = examples(generator.integers(0, 2, (100, longer)))
            forward = backend.jit(lambda *arrays: gru.forward(*arrays)[0])
            y = backend.to_numpy(
                forward(trainer.params, trainer.state, backend.asarray(x))
            )
            results[name]["longer"] = accuracy(y, target)
    return results


def accuracy(y, target):
    """Return how often the sign of y after the last bit equals the target."""
    return float(np.mean((y[:, -1, 0] > 0) == (target[:, -1, 0] > 0)))


def show(results):
    for name, result in results.items():
        print(f"{name}: accuracy {result['training']:.1%} on training strings,")
        print(f"     {result['new']:.1%} on new ones, with loss {result['loss']:.4f}")
        if "longer" in result:
            print(f"     {result['longer']:.1%} on longer ones")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        backend = nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    show(compute(backend))
