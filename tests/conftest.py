"""One backend per run, named by AGNOSTIC_NN_BACKEND (default: numpy); NumPy is the oracle."""

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
    """The backend under test. If it cannot run, that is an error, not a skip."""
    return nn.backend()


@pytest.fixture(scope="session")
def widest(backend):
    """The name of the widest real dtype that the backend has as it is set up now."""
    return "float64" if backend.has_float64 else "float32"


@pytest.fixture(scope="session")
def epsilon(widest):
    """The distance from 1 to the next number of the widest dtype: the unit of tolerances."""
    return float(np.finfo(widest).eps)


@pytest.fixture
def draw(widest):
    """A function from a shape to normal draws on the host, in the widest dtype."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape).astype(widest)


@pytest.fixture(scope="session")
def thorough():
    """Return whether cases of sweeps run too; on JAX, `nox -s sweep` runs them."""
    return os.environ.get("AGNOSTIC_NN_SWEEP", "1") == "1"


def pytest_collection_modifyitems(config, items):
    """Leave out what asks for no backend, where AGNOSTIC_NN_HOST is 0: other sessions do that."""
    if os.environ.get("AGNOSTIC_NN_HOST") != "0":
        return
    left_out = [item for item in items if "backend" not in item.fixturenames]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if "backend" in item.fixturenames]


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """A shell starts its background jobs deaf to Ctrl-C, and the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
