"""Time a training step of an MLP inside PyTorch, by our Trainer, and by PyTorch.

    python benchmarks/bridges.py

Each step computes the loss, the gradient and an update of Adam on one thread. Printed
are the median and the range of the middle half of the milliseconds of a step.
"""

import statistics
import time

import numpy as np
import torch

import agnostic_nn as nn
from agnostic_nn import interop

STEPS, ROUNDS = 50, 15
SIZES = ((32, 64, 128), (256, 784, 256))  # examples, inputs, width


def layers(width):
    return nn.Sequential(
        nn.Dense(width), nn.ReLU(), nn.Dense(width), nn.ReLU(), nn.Dense(10)
    )


def torch_layers(inputs, width):
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    return torch.nn.Sequential(
        linear(inputs, width),
        relu(),
        linear(width, width),
        relu(),
        linear(width, 10),
    )


def loop(module, x, labels):
    """Return a function that takes one step of PyTorch's usual loop."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()

    return step


def steps(examples, inputs, width):
    """Return the functions to time, by name."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((examples, inputs), dtype=np.float32)
    labels = generator.integers(0, 10, examples)
    tensors = torch.tensor(x), torch.tensor(labels)
    model = layers(width)
    trainers = {
        f"Trainer on PyTorch, replay={replay}": nn.Trainer(
            model,
            nn.softmax_cross_entropy,
            nn.Adam(1e-3),
            backend=nn.backend("torch:cpu", replay=replay),
            shape=(inputs,),
        )
        for replay in (True, False)
    }
    module = interop.torch_module(model, shape=(inputs,))
    return {
        "PyTorch": loop(torch_layers(inputs, width), *tensors),
        "torch_module in PyTorch's loop": loop(module, *tensors),
        **{
            name: (lambda trainer=trainer: trainer.step(x, labels))
            for name, trainer in trainers.items()
        },
    }


def main():
    torch.set_num_threads(1)
    for sizes in SIZES:
        print("batch {}, {} inputs, width {}".format(*sizes))
        timed = steps(*sizes)
        times = {name: [] for name in timed}
        for function in timed.values():
            for _ in range(10):
                function()
        for _ in range(ROUNDS):  # alternately, so that a busy machine hits all
            for name, function in timed.items():
                begin = time.process_time()
                for _ in range(STEPS):
                    function()
                times[name].append((time.process_time() - begin) / STEPS * 1e3)
        for name, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"  {middle:7.3f} ms ({low:.3f} to {high:.3f})  {name}")


if __name__ == "__main__":
    main()
