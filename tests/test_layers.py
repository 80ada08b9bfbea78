"""Every layer and block, a line each in CASES, held to the same promises; then what each is for."""

import math
import pickle
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.arrays import Rows, device, namespace
from agnostic_nn.check import check
from agnostic_nn.trees import leaves, named_leaves, tree_map

CASES = [  # layer, shape of one example
    (nn.Dense(3), (4,)),
    (nn.Dense(3, bias=False), (4,)),
    (nn.Dense(1), (1,)),
    (nn.Dense(3), (2, 4)),
    (nn.Dense(2), (2, 1, 2, 3)),
    (nn.Dense(5, initializer=nn.Orthogonal()), (257,)),
    (nn.ReLU(), (5,)),
    (nn.LeakyReLU(), (5,)),
    (nn.LeakyReLU(0.3), (2, 3)),
    (nn.ELU(), (5,)),
    (nn.ELU(1.5), (2, 3)),
    (nn.GELU(), (5,)),
    (nn.GELU(approximate=True), (5,)),
    (nn.SiLU(), (5,)),
    (nn.Sigmoid(), (2, 3)),
    (nn.Tanh(), ()),
    (nn.Softplus(), (5,)),
    (nn.Softmax(), (4,)),
    (nn.Softmax(axis=1), (3, 2)),
    (nn.LogSoftmax(), (2, 4)),
    (nn.LogSoftmax(axis=-2), (3, 2)),
    (nn.Dropout(0.0), (5,)),
    (nn.Dropout(0.3), (5,)),
    (nn.Dropout(0.3), (3, 3)),
    (nn.BatchNorm(), (4,)),
    (nn.BatchNorm(momentum=0.5, epsilon=1e-3), (2, 3)),
    (nn.BatchNorm(), (2, 2, 1)),
    (nn.BatchNorm(epsilon=0.1), (257,)),
    (nn.LayerNorm(), (5,)),
    (nn.LayerNorm(epsilon=1e-3), (2, 3)),
    (nn.LayerNorm(), (2, 1, 4)),
    (nn.LayerNorm(), (257,)),
    (nn.Embedding(5, 3), ()),
    (nn.Embedding(5, 3), (4,)),
    (nn.Embedding(3, 2), (2, 3)),
    (nn.Flatten(), (2, 3)),
    (nn.Flatten(), ()),
    (nn.Reshape((3, -1)), (2, 6)),
    (nn.Reshape((2, 3)), (6,)),
    (nn.Sequential(), (4,)),
    (nn.Sequential(nn.Dense(3), nn.Sequential(nn.Tanh(), nn.Sequential(nn.Dense(2)))), (4,)),
    (nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Dense(2)), (3,)),
    (nn.Residual(), (3,)),
    (nn.Residual(nn.Dense(4), nn.Tanh(), nn.Dense(3)), (2, 3)),
    (
        nn.Sequential(
            nn.Dense(8),
            nn.BatchNorm(),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Residual(nn.LayerNorm(), nn.Dense(8), nn.GELU()),
            nn.Reshape((2, 4)),
            nn.Softmax(axis=1),
            nn.Flatten(),
            nn.Dense(2),
        ),
        (3,),
    ),
]
each_case = pytest.mark.parametrize(("layer", "shape"), CASES, ids=[f"{a} {b}" for a, b in CASES])
MODES = {"train": True, "predict": False}


@each_case
def test_it_passes_every_oracle_in_float64(backend, layer, shape):
    """`check` says what those are; on a backend that differentiates, that is one of them."""
    report = check(layer, shape, backends=[backend])
    assert report.worst.error < 1e-8
    refused = {(r.oracle, r.mode) for r in report.rows if r.leaf == "(refused)"}
    mixes_the_batch = "BatchNorm" in str(layer)
    assert refused <= {("batch of 0", "train"), ("batch of 1", "train")} if mixes_the_batch else not refused


@cache
def results(backend, layer, shape):
    """All that the layer computes in float32: compiled, uncompiled, and by NumPy in float64."""
    draw = np.random.default_rng(0)
    host = nn.backend("numpy")
    params, state, out = layer.init(nn.random.key(0, xp=host.xp), shape, np.float32)
    x = draw.standard_normal((3, *shape)).astype("float32")
    if layer.takes == "integral":
        x = draw.integers(3, size=(3, *shape))
    dy = draw.standard_normal((3, *out)).astype("float32")
    arrays = {"params": params, "state": state, "x": x, "dy": dy}

    def run(arrays):
        params, state, x, dy = (arrays[name] for name in ("params", "state", "x", "dy"))
        found = {}
        for mode, train in MODES.items():
            y, after, cache = layer.forward(params, state, x, train=train)
            dx, grads = layer.backward(params, cache, dy)
            found[mode] = {"y": y, "state": after, "grads": grads}
            if layer.takes == "real floating":
                found[mode]["dx"] = dx
        for size in (0, 1):
            y, _, cache = layer.forward(params, state, x[:size, ...])
            _, grads = layer.backward(params, cache, dy[:size, ...])
            found[f"batch of {size}"] = {"y": y, "grads": grads}
        return found

    there = backend.asarray(arrays)
    wide = tree_map(lambda a: a.astype("float64") if a.dtype == np.float32 else a, arrays)
    return arrays, there, backend.jit(run)(there), run(there), run(wide)


def assert_close(actual, expected, tolerance):
    """Relative to the largest number of each leaf."""
    for (name, a), b in zip(named_leaves(actual), leaves(expected), strict=True):
        scale = max(np.max(np.abs(b), initial=0.0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


@each_case
def test_jit_changes_nothing(backend, layer, shape):
    _, _, compiled, eager, _ = results(backend, layer, shape)
    assert_close(backend.to_numpy(compiled), backend.to_numpy(eager), 16 * np.finfo("float32").eps)


@each_case
def test_float32_stays_float32_and_is_right_to_its_digits(backend, layer, shape):
    arrays, _, compiled, _, wide = results(backend, layer, shape)
    for name, leaf in named_leaves(backend.to_numpy(compiled)):
        assert leaf.dtype == ("uint32" if name.endswith("key") else "float32"), name
    assert_close(backend.to_numpy(compiled), wide, 64 * np.finfo("float32").eps)


@each_case
def test_arguments_are_left_alone(backend, layer, shape):
    arrays, there, *_ = results(backend, layer, shape)
    for (name, given), now in zip(named_leaves(arrays), leaves(there), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(now), given, err_msg=name)


@each_case
def test_everything_stays_on_the_device_it_came_from(backend, layer, shape):
    _, there, compiled, eager, _ = results(backend, layer, shape)
    for name, leaf in [*named_leaves(compiled), *named_leaves(eager)]:
        assert device(leaf) == device(there["x"]), name


@each_case
def test_what_init_promises_is_made_where_the_key_is(backend, layer, shape):
    xp = backend.xp
    key = nn.random.key(0, xp=xp, device=backend.device)
    params, state, out = layer.init(key, shape, xp.float32)
    arrays, there, _, _, wide = results(backend, layer, shape)
    assert out == wide["predict"]["y"].shape[1:]
    for (name, leaf), host in zip(
        named_leaves((params, state)), leaves((arrays["params"], arrays["state"])), strict=True
    ):
        assert device(leaf) == device(there["x"]), name
        assert tuple(leaf.shape) == host.shape, name
        assert leaf.dtype == (xp.uint32 if name.endswith("key") else xp.float32), name
