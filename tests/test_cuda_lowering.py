"""JAX's compiled training step is suitable for CUDA devices; none is needed here.

Lowering shows that every operation of the step can be translated for CUDA, but tests no
numbers. The other tests are about speed on a device: the step is compiled once, reuses
the memory of the old state, and transfers nothing from the host.
"""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves
from agnostic_nn.training import make_step

jax = pytest.importorskip("jax", reason="JAX is not installed")

STEPS = {  # name: (model, shape of one example, loss, optimizer)
    "mlp": (
        nn.Sequential(
            nn.Dense(8), nn.BatchNorm(), nn.GELU(), nn.Dropout(0.5), nn.Dense(3)
        ),
        (4,),
        nn.softmax_cross_entropy,
        nn.ClipByGlobalNorm(nn.AdamW(nn.schedules.Cosine(1e-2, steps=20, warmup=2))),
    ),
    "embedding": (
        nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(), nn.Flatten(), nn.Dense(3)),
        (2,),
        nn.softmax_cross_entropy,
        nn.SGD(1e-2, momentum=0.9),
    ),
}


@pytest.fixture(scope="module", params=STEPS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def on_jax():
    return nn.backend("jax:cpu")


@pytest.fixture(scope="module")
def step(on_jax, name):
    """Return a jitted step that donates its first argument, the carry."""
    model, _, loss, optimizer = STEPS[name]
    return on_jax.jit(make_step(model, loss, optimizer), donate=(0,))


@pytest.fixture
def arguments(on_jax, name):
    """Return carry, x, target and counts for a step, on the device."""
    model, shape, _, optimizer = STEPS[name]
    xp = nn.backend("numpy").xp
    params, state, _ = model.init(nn.random.key(0, xp=xp), shape, xp.float32)
    x = np.arange(6 * shape[0]).reshape(6, *shape) % 5
    x = x.astype(np.int32 if model.input_kinds == "integral" else np.float32)
    target, counts = np.array([0, 1, 2, 0, 1, 2], np.int32), np.ones(6, np.float32)
    return on_jax.asarray(((params, state, optimizer.init(params)), x, target, counts))


def lower_for_cuda(function, *arguments):
    """Lower a jitted function for CUDA, both to run it and to export it."""
    from jax import export

    text = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    exported = export.export(function, platforms=["cuda"])(*arguments)
    return text, exported


def test_the_step_lowers_for_cuda(step, arguments):
    text, exported = lower_for_cuda(step, *arguments)
    assert "dot_general" in text
    assert exported.platforms == ("cuda",)
    assert len(exported.out_avals) == len(leaves(arguments[0])) + 2


def test_a_function_without_a_cuda_version_does_not_lower():
    """So the test above can fail."""
    schur = jax.jit(jax.scipy.linalg.schur)
    with pytest.raises(NotImplementedError, match="platform cuda"):
        lower_for_cuda(schur, np.eye(3, dtype=np.float32))


def test_three_steps_compile_once(step, arguments):
    carry, *batch = arguments
    for _ in range(3):
        carry, _, _ = step(carry, *batch)
    assert step._cache_size() == 1


def test_the_step_reuses_the_memory_of_the_old_state(step, arguments):
    carry, *batch = arguments
    new, _, _ = step(carry, *batch)
    assert all(leaf.is_deleted() for leaf in leaves(carry))
    assert not any(leaf.is_deleted() for leaf in [*batch, *leaves(new)])


def test_a_compiled_step_transfers_nothing_from_the_host(step, arguments):
    carry, *batch = arguments
    carry, _, _ = step(carry, *batch)
    with jax.transfer_guard("disallow"):
        _, value, finite = step(carry, *batch)
    assert bool(finite)
    assert float(value) > 0


def test_a_transfer_from_the_host_is_detected():
    with (
        jax.transfer_guard("disallow"),
        pytest.raises(Exception, match="Disallowed host-to-device transfer"),
    ):
        jax.jit(lambda x: x)(np.ones(2, np.float32))


@pytest.fixture
def leaks_raise(monkeypatch):
    # JAX would search for references to the tracer, which takes minutes in this graph
    monkeypatch.setattr("jax._src.core._why_alive", lambda *_: "", raising=False)
    with jax.checking_leaks():
        yield


@pytest.mark.usefixtures("leaks_raise")
def test_the_step_leaks_no_tracer(name, arguments):
    model, _, loss, optimizer = STEPS[name]
    jax.eval_shape(make_step(model, loss, optimizer), *arguments)


@pytest.mark.usefixtures("leaks_raise")
def test_a_leaked_tracer_is_detected():
    leaked = []
    with pytest.raises(Exception, match="Leaked"):
        jax.eval_shape(lambda x: leaked.append(x) or x, np.ones(2, np.float32))
