"""A small transformer that learns CONTRIBUTING.md and continues prompts.

It reads windows of 64 characters and predicts the next character at each position.
Characters outside ASCII are left out. To write, it calls `advance` once per character,
which attends to the saved keys and values of the previous ones, instead of `forward` on
the whole text.
"""

import math
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

import numpy as np

import agnostic_nn as nn

WINDOW = 64


def read():
    """Return CONTRIBUTING.md as numbers from 0 to 127."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
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
    """Train on `text`; return the trainer and its loss in bits per character."""
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
    """Return the step for one character, compiled once for all texts of one length."""
    return backend.jit(model.advance)


def write(trainer, prompt, count, temperature=0.5, seed=0):
    """Return `prompt` and `count` characters drawn from softmax(y / temperature)."""
    model, backend = trainer.model, trainer.backend
    # uniform numbers, the same on every backend
    uniform = np.random.default_rng(seed).random(count)
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
            cumulative = np.cumsum(np.exp(y - y.max()))
            position = uniform[i + 1 - len(prompt)] * cumulative[-1]
            text.append(int(np.searchsorted(cumulative, position)))
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
    print(f"{bits:.3f} bits per character. Samples:")
    for seed, prompt in enumerate(("Install ", "A backward ", "The same ", "| ")):
        print(f"\n{write(trainer, prompt, WINDOW - len(prompt), seed=seed)}")
