"""Run the examples of this folder on one backend and print their results.

    python examples/parts/table.py --backend jax
    python examples/parts/gan.py --backend jax

A row has the numbers that an example returns, and the seconds that it took, most of
which is compilation on JAX.
"""

import time
from argparse import ArgumentParser
from importlib import import_module

import agnostic_nn as nn

EXAMPLES = {
    "gan": "a GAN",
    "dqn": "a DQN with a target network",
    "reinforce": "REINFORCE",
    "vae": "a VAE with KL annealing",
    "distillation": "distillation",
    "mean_teacher": "a mean teacher",
    "lora": "LoRA on a TransformerBlock",
    "weight_norm": "weight normalization",
    "contrastive": "contrastive learning in a batch",
}


def chosen_backend(description):
    """Return the backend that the command line names."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    try:
        return nn.backend(parser.parse_args().backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))


def main(compute):
    """Print the results of one example on the backend of the command line."""
    for name, value in compute(chosen_backend("Run this example.")).items():
        print(f"{name:24} {value:.4g}")


def show(backend):
    """Print a table of the results of all examples."""
    print(f"| example | results on {backend.name} | seconds |")
    print("| --- | --- | ---: |")
    for name, title in EXAMPLES.items():
        started = time.perf_counter()
        results = import_module(name).compute(backend)
        seconds = time.perf_counter() - started
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in results.items())
        print(f"| {title} | {numbers} | {seconds:.1f} |")


if __name__ == "__main__":
    show(chosen_backend(__doc__.splitlines()[0]))
