"""A small transformer that learns this library's README, character by character, and writes some.

It reads windows of 64 characters and says at each what comes next; ASCII alone, which
leaves the picture out. Writing, it takes a step for each character (`advance`), which
looks back at what it remembers of all before, instead
of a `forward` through all of the text.
"""

import math
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

import numpy as np

import agnostic_nn as nn

WINDOW = 64


def read():
    """The README as numbers from 0 to 127."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    return np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)


def network(width=64, depth=2):
    block = nn.TransformerBlock(
        nn.MultiHeadAttention(4, causal=True, rotary=True, bias=False),
        hidden=4 * width,
        activation=nn.SwiGLU(),
        norm=nn.RMSNorm(),
    )
    return nn.Sequential(
        nn.Embedding(128, width),
        nn.Repeat(block, depth),
        nn.RMSNorm(),
        nn.Dense(128, bias=False),
    )


def train(backend, model, text, epochs, window=WINDOW, verbose=0):
    """A trainer that has seen `text` so often, and its loss at the end in bits per character."""
    windows = np.lib.stride_tricks.sliding_window_view(text, window + 1)
    x, target = windows[:, :-1], windows[:, 1:]
    steps = epochs * math.ceil(len(x) / 16)
    optimizer = nn.AdamW(nn.schedules.Cosine(4e-3, steps, warmup=steps // 10))
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, optimizer, backend=backend, seed=0
    )
    trainer.fit(x, target, epochs=epochs, batch_size=16, verbose=verbose)
    loss = trainer.evaluate(x[::window], target[::window], batch_size=16)["loss"]
    return trainer, loss / math.log(2)


@cache
def decoding_step(model, backend):
    """The step that reads one character, compiled once for all texts of one length."""
    return backend.jit(model.advance)


def write(trainer, prompt, count, temperature=0.5, seed=0):
    """`prompt` and `count` characters more, each drawn from softmax(y / temperature)."""
    model, backend = trainer.model, trainer.backend
    chances = np.random.default_rng(seed).random(count)  # the same on every backend
    text = list(prompt.encode("ascii"))
    step = decoding_step(model, backend)
    memory = None
    for i in range(len(text) + count - 1):
        x = backend.asarray(np.full((1, 1), text[i], np.int32))
        if memory is None:
            memory = model.begin(trainer.params, trainer.state, x, len(text) + count)
        y, memory = step(trainer.params, trainer.state, memory, x)
        if i + 1 == len(text):
            y = backend.to_numpy(y)[0, 0].astype("float64") / temperature
            share = np.cumsum(np.exp(y - y.max()))
            text.append(
                int(np.searchsorted(share, chances[i + 1 - len(prompt)] * share[-1]))
            )
    return bytes(text).decode("ascii")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    try:
        backend = nn.backend(arguments.backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    trainer, bits = train(backend, network(), read(), arguments.epochs, verbose=1)
    print(f"{bits:.3f} bits per character; it writes:")
    for seed, prompt in enumerate(("Install ", "A backward ", "The same ", "| ")):
        print(f"\n{write(trainer, prompt, WINDOW - len(prompt), seed=seed)}")
