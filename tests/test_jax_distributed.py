"""Each process under `jax.distributed` computes on a device of that process."""

import socket
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax

rank, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)

import numpy as np
import agnostic_nn as nn

backend = nn.backend("jax")
assert backend.device.process_index == rank, backend.device
trainer = nn.Trainer(nn.Dense(2), nn.mean_squared_error, nn.SGD(0.1), backend=backend)
x = np.ones((4, 3), "float32")
trainer.fit(x, x[:, :2], verbose=0)
print(rank, str(backend), float(trainer.evaluate(x, x[:, :2])["loss"]))
"""


def test_each_process_uses_a_device_of_that_process(backend):
    if backend.name != "jax":
        pytest.skip("jax.distributed is JAX's")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        results = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, results, strict=True):
        assert process.returncode == 0, errors[-2000:]
    (rank0, loss0), (rank1, loss1) = [out.split()[0::2] for out, _ in results]
    assert (rank0, rank1) == ("0", "1")
    assert loss0 == loss1  # the same training
