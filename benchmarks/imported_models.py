"""Time training steps of imported modules and of the modules themselves, in turn.

`python benchmarks/imported_models.py`, in processor time on one thread.
"""

import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import torch

import agnostic_nn as nn
from agnostic_nn import interop

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch_models

ROUNDS = 7
STEPS = 3  # of each contender in each round
BACKENDS = ("torch:cpu", "numpy", "jax")


def original(module, x, target):
    """Return a function that makes one step of the module in PyTorch."""
    optimizer = torch.optim.SGD(module.parameters(), 0.01)

    def step():
        optimizer.zero_grad()
        y = module(x)
        loss = torch.nn.functional.cross_entropy(y.flatten(0, -2), target.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def imported(model, backend, x, target):
    """Return a function that makes one step of an imported model."""
    loss = nn.softmax_cross_entropy
    trainer = nn.Trainer(model, loss, nn.SGD(0.01), backend=backend, seed=0)
    arrays = x.numpy(), target.numpy()
    return lambda: float(trainer.step(*arrays))


def measure(title, module, x, target):
    """Print the first losses, and the times of a step, of each contender."""
    model = interop.from_torch(module, x)
    steps = {name: imported(model, name, x, target) for name in BACKENDS}
    steps = {"PyTorch itself": original(module.train(), x, target), **steps}
    print(title)
    for name, step in steps.items():
        print(f"  {name}: losses", *[f"{step():.5f}" for _ in range(3)])
    times = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            for _ in range(STEPS):
                start = time.process_time()
                step()
                times[name].append(1e3 * (time.process_time() - start))
    for name, each in times.items():
        low, median, high = statistics.quantiles(each, n=4)
        print(f"  {name}: {median:.0f} ms (25-75 %: {low:.0f} to {high:.0f})")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure(
        "ResNet-18 with 16 to 128 channels, 32 images of 32 x 32",
        torch_models.ResNet(width=16, classes=10),
        torch.randn(32, 3, 32, 32),
        torch.randint(0, 10, (32,)),
    )
    measure(
        "GPT with 4 blocks of width 128, 16 x 64 tokens",
        torch_models.GPT(tokens=65, width=128, heads=4, length=64, depth=4),
        torch.randint(0, 65, (16, 64)),
        torch.randint(0, 65, (16, 64)),
    )


if __name__ == "__main__":
    main()
