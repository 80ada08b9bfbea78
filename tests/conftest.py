"""Fixtures. AGNOSTIC_NN_BACKEND names the backend under test (default: numpy)."""

import os
import signal

import numpy as np
import pytest

import agnostic_nn as nn


def pytest_report_header():
    backend = nn.backend()
    return f"backend: {backend}, {backend.version}, on {backend.hardware}"


@pytest.fixture(scope="session")
def backend():
    """Return the backend under test; raise an error, not a skip, if it cannot run."""
    return nn.backend()


@pytest.fixture(scope="session")
def widest(backend):
    """Return the name of the widest real dtype of the backend."""
    return "float64" if backend.has_float64 else "float32"


@pytest.fixture(scope="session")
def epsilon(widest):
    """Return the distance from 1 to the next number of the widest dtype."""
    return float(np.finfo(widest).eps)


@pytest.fixture
def draw(widest):
    """Return a function from a shape to normal numbers of the widest dtype."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape).astype(widest)


@pytest.fixture(scope="session")
def thorough():
    """Return whether sweeps over options run, too; on JAX only `nox -s sweep` does."""
    return os.environ.get("AGNOSTIC_NN_SWEEP", "1") == "1"


def pytest_collection_modifyitems(config, items):
    """Skip tests without `backend` if AGNOSTIC_NN_HOST is 0."""
    if os.environ.get("AGNOSTIC_NN_HOST") != "0":
        return
    deselected = [item for item in items if "backend" not in item.fixturenames]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if "backend" in item.fixturenames]


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_handled():
    """Handle Ctrl-C, which a shell turns off for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
