"""A layer inside Keras, on its backends torch and jax, each in a separate process.

Keras chooses its backend when it is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("inside_keras.py")


def run(name, folder):
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "KERAS_BACKEND": name, "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_layer_is_built_fitted_saved_and_loaded(name, tmp_path):
    result = run(name, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == [
        "gradients",
        "trained",
        "loaded",
        "state",
        "shapes",
        "refused",
    ]
