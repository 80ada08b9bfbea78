"""Measure generation against a plain PyTorch loop with a cache of keys and values.

    python -m benchmarks.generation --threads 1 --width 128

A transformer with 4 layers and 64 tokens generates 256 tokens. All programs have the
same weights, and have to return the same tokens. The loop is written by hand: one
product for Q, K and V, preallocated caches and `scaled_dot_product_attention` of the
rows that are filled. Each figure is a median of rounds, in which the programs run in
turns. With one thread, it is the time of the processor, which stops while other
programs use the core; with more, the time of the clock.
"""

import argparse
import os
import statistics
import time

LENGTH = 256
LAYERS = 4
VOCABULARY = 64
HEAD = 32


def make_model(nn, width):
    block = nn.TransformerBlock(
        nn.MultiHeadAttention(width // HEAD, causal=True), hidden=4 * width
    )
    return nn.Sequential(
        nn.Embedding(VOCABULARY, width),
        nn.PositionEmbedding(LENGTH),
        *[block] * LAYERS,
        nn.LayerNorm(),
        nn.Dense(VOCABULARY),
    )


def torch_loop(params, width):
    """Return generate(first tokens) by hand, with weights like `params` of PyTorch."""
    import torch
    from torch.nn import functional

    def linear(*parts):
        weight = torch.cat([part["weight"].T for part in parts]).contiguous()
        return weight, torch.cat([part["bias"] for part in parts])

    def norm(x, p):
        return functional.layer_norm(x, (width,), p["scale"], p["bias"])

    embedding, positions, *blocks, last_norm, head = params
    layers = []
    for block in blocks:
        attention = block["attention"]
        layers.append(
            (
                block["attention_norm"],
                linear(*(attention[name] for name in ("query", "key", "value"))),
                linear(attention["output"]),
                block["feed_norm"],
                linear(block["feed"][0]),
                linear(block["feed"][2]),
            )
        )
    head = linear(head)
    heads = width // HEAD

    @torch.inference_mode()
    def generate(first):
        tokens = torch.from_numpy(first)
        batch = len(first)
        shape = (2, LAYERS, batch, heads, LENGTH, HEAD)
        keys, values = torch.zeros(shape).unbind(0)
        generated = []
        for t in range(LENGTH):
            x = functional.embedding(tokens, embedding["weight"])
            x = x + positions["weight"][t]
            caches = zip(layers, keys, values, strict=True)
            for (norm_1, to_qkv, to_out, norm_2, up, down), k, v in caches:
                qkv = functional.linear(norm(x, norm_1), *to_qkv)
                q, k_row, v_row = qkv.view(batch, 3, heads, HEAD).unbind(1)
                k[:, :, t] = k_row
                v[:, :, t] = v_row
                o = functional.scaled_dot_product_attention(
                    q.unsqueeze(2), k[:, :, : t + 1], v[:, :, : t + 1]
                )
                x = x + functional.linear(o.reshape(batch, width), *to_out)
                hidden = functional.linear(norm(x, norm_2), *up)
                x = x + functional.linear(functional.gelu(hidden), *down)
            tokens = functional.linear(norm(x, last_norm), *head).argmax(-1)
            generated.append(tokens)
        return torch.stack(generated, 1).numpy()

    return generate


def measure(width, batch, names, clock, rounds):
    """Return the seconds of each program in each round, by its name."""
    import numpy as np

    import agnostic_nn as nn

    xp = nn.backend("numpy").xp
    model = make_model(nn, width)
    key = nn.random.key(0, xp=xp)
    params, state, _ = model.init(key, (LENGTH,), xp.float32)
    loop = torch_loop(nn.backend("torch:cpu").asarray(params), width)
    programs = {"PyTorch by hand": loop}
    for name in names:
        backend = nn.backend(name)
        task = (model, *backend.asarray((params, state)), backend)

        def ours(first, task=task):
            return nn.generate(task, first[:, None], LENGTH, temperature=0.0)

        programs[f"agnostic_nn {name}"] = ours
    first = np.arange(batch)
    expected = loop(first)
    for name, program in programs.items():
        for _ in range(2):  # the second call still compiles on some backends
            share = (program(first) == expected).mean()
        if share < 1.0:
            raise SystemExit(f"{name}: only {share:.1%} of the tokens are equal")
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            begin = clock()
            program(first)
            seconds[name].append(clock() - begin)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backends", nargs="+", default=["numpy", "torch:cpu", "jax"])
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if hasattr(
        os, "sched_setaffinity"
    ):  # XLA starts as many threads as there are cores
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        os.sched_setaffinity(0, cores)
    import torch

    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print("| width | batch | program | tokens/s in each row | time / by hand |")
    print("| --- | --- | --- | --- | --- |")
    for width in options.width:
        for batch in options.batch:
            sizes = (width, batch)
            seconds = measure(*sizes, options.backends, clock, options.rounds)
            by_hand = seconds["PyTorch by hand"]
            for name, times in seconds.items():
                rate = LENGTH / statistics.median(times)
                pairs = zip(times, by_hand, strict=True)
                ratio = statistics.median(ours / theirs for ours, theirs in pairs)
                print(f"| {width} | {batch} | {name} | {rate:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
