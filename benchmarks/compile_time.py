"""Measure how long JAX compiles a step of a recurrent network, by sequence length.

The loop over time is compiled once (`ops.scan`), so the ratio of 1,024 steps to 16
should be near 1. Each figure is the median of three compilations, taken in turns. On a
busy machine, use the processor time.
"""

import statistics
import time

import jax
import numpy as np

import agnostic_nn as nn

LENGTHS = (16, 1024)
LAYERS = (
    nn.LSTM(32, sequence=False),
    nn.GRU(32, sequence=False),
    nn.LSTM(32, depth=2, bidirectional=True, sequence=False),
)


def compile_once(layer, length):
    """Return wall and processor seconds to compile a training step with Adam."""
    model, optimizer = nn.Sequential(layer, nn.Dense(10)), nn.Adam(1e-3)
    step = nn.make_step(model, nn.softmax_cross_entropy, optimizer)
    xp = nn.backend("numpy").xp
    params, state, _ = model.init(nn.random.key(0, xp=xp), (length, 16), xp.float32)
    x, labels = np.zeros((8, length, 16), np.float32), np.zeros(8, np.int32)
    carry = (params, state, optimizer.init(params))
    arguments = nn.backend("jax").asarray((carry, x, labels))
    jax.clear_caches()
    clock, processor = time.perf_counter(), time.process_time()
    jax.jit(step, donate_argnums=(0,)).lower(*arguments).compile()
    return time.perf_counter() - clock, time.process_time() - processor


for layer in LAYERS:
    compile_once(layer, LENGTHS[0])
    rounds = [[compile_once(layer, length) for length in LENGTHS] for _ in range(3)]
    for i, what in enumerate(("clock", "processor")):
        short, long = (statistics.median(r[j][i] for r in rounds) for j in (0, 1))
        print(
            f"{layer}: {what} {short:.2f} s and {long:.2f} s, ratio {long / short:.2f}"
        )
