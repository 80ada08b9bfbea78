"""A small transformer that learns CONTRIBUTING.md and continues prompts.

It reads windows of 64 characters and predicts the next character at each position.
Characters outside ASCII are left out. To write, it calls `nn.generate`, which computes
one character at a time and attends to the saved keys and values of the previous ones,
instead of the whole text.
"""

import math
from argparse import ArgumentParser
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


def write(trainer, prompt, count, temperature=0.5, seed=0):
    """Return `prompt` and `count` characters drawn from softmax(y / temperature)."""
    text = np.frombuffer(prompt.encode("ascii"), np.uint8)
    tokens = nn.generate(trainer, text[None], count, temperature=temperature, seed=seed)
    return prompt + bytes(tokens[0].tolist()).decode("ascii")


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
