"""A layer inside JAX: a pure function whose gradient is the layer's own backward."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import agnostic_nn as nn
from agnostic_nn import interop
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for

BACKEND = nn.backend("jax")
NUMPY = nn.backend("numpy")
MLP = nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(2))


def start(layer, shape):
    """Return (params, state) of a layer as JAX arrays."""
    key = nn.random.key(0, xp=NUMPY.xp)
    return BACKEND.asarray(layer.init(key, shape, NUMPY.xp.float32)[:2])


def x_for(layer, shape, count=4):
    x = draw_for(layer, np.random.default_rng(0), batched(shape, count))
    return BACKEND.asarray(
        tree_map(lambda a: a.astype("f4" if a.dtype.kind == "f" else "i4"), x)
    )


def total(y):
    """Return a number that depends on all real outputs."""
    parts = [leaf for leaf in leaves(y) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.sin(part + 0.3)) for part in parts)


BATCH_NORM = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Dropout(0.4), nn.Dense(2))
CASES = {
    "mlp": (MLP, (3,), False),
    "state and keys": (BATCH_NORM, (3,), True),
    "several inputs": (
        nn.Graph(sum=(nn.Add(), ("a", "b")), y=(nn.Dense(2), "sum"), outputs="y"),
        {"a": (3,), "b": (3,)},
        True,
    ),
    "integers": (nn.Sequential(nn.Embedding(3, width=2), nn.LSTM(2)), (4,), True),
    "an output of integers": (nn.MaxPool1D(2, return_indices=True), (4, 2), True),
    "no parameters": (nn.Identity(), (3,), True),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_the_layer(name):
    """The expected gradient is that of JAX, which follows the same operations."""
    layer, shape, train = CASES[name]
    params, state = start(layer, shape)
    x = x_for(layer, shape)
    function = interop.jax_function(layer)
    y, after = function(params, state, x, train=train)
    expected, next_state, _ = layer.forward(params, state, x, train=train)
    results = (leaves((y, after)), leaves((expected, next_state)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    def ours(params, x):
        return total(function(params, state, x, train=train)[0])

    def theirs(params, x):
        return total(layer.forward(params, state, x, train=train)[0])

    arguments = (0,) if name == "integers" else (0, 1)
    grads = [jax.jit(jax.grad(f, arguments))(params, x) for f in (ours, theirs)]
    for a, b in zip(*map(leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def test_the_gradient_is_that_of_backward():
    """A layer whose backward is wrong on purpose shows which one is called."""

    class Doubled(nn.Elementwise):
        def value(self, x):
            return x

        def slope(self, x):
            return 2.0 + 0.0 * x

    function = interop.jax_function(Doubled())
    grads = jax.grad(lambda x: function({}, {}, x)[0].sum())(jnp.ones((1, 3)))
    np.testing.assert_array_equal(grads, np.full((1, 3), 2.0))


def test_optax_trains_it():
    function = interop.jax_function(BATCH_NORM)
    params, state = start(BATCH_NORM, (3,))
    x = x_for(BATCH_NORM, (3,), 32)
    target = jnp.stack([x[:, 0], x[:, 1]], axis=1)
    optimizer = optax.adam(0.05)
    moments = optimizer.init(params)

    @jax.jit
    def step(carry, _):
        params, state, moments = carry

        def loss(params):
            y, new_state = function(params, state, x, train=True)
            return jnp.mean((y - target) ** 2), new_state

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), state, moments), value

    begin = params, state, moments
    (_, end, _), losses = jax.lax.scan(step, begin, None, 60)
    assert losses[-5:].mean() < 0.6 * losses[:5].mean()
    assert not np.array_equal(leaves(end)[0], leaves(state)[0])


def test_vmap_over_models_and_examples():
    function = interop.jax_function(MLP)
    params, state = start(MLP, (3,))
    x = x_for(MLP, (3,))

    def loss(params, x):
        return total(function(params, state, x)[0])

    models = tree_map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), params)
    both = jax.vmap(loss, (0, None))(models, x)
    np.testing.assert_allclose(both[0], loss(params, x), rtol=1e-5)
    per_example = jax.vmap(jax.grad(loss), (None, 0))(params, x[:, None, :])
    whole = jax.grad(loss)(params, x)
    for a, b in zip(leaves(per_example), leaves(whole), strict=True):
        np.testing.assert_allclose(a.sum(axis=0), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "state and keys"])
def test_second_derivatives_are_those_of_the_function(name):
    layer, shape, train = CASES[name]
    function = interop.jax_function(layer)
    params, state = start(layer, shape)
    x = x_for(layer, shape)

    def ours(x):
        return total(function(params, state, x, train=train)[0])

    def theirs(x):
        return total(layer.forward(params, state, x, train=train)[0])

    def penalty(loss):
        """Return a gradient penalty with a path to x around the layer."""
        return lambda x: jnp.sum(jax.grad(loss)(x) ** 2) + jnp.sum(x * x)

    derivative = jax.hessian if name == "mlp" else lambda f: jax.grad(penalty(f))
    actual, expected = (jax.jit(derivative(f))(x) for f in (ours, theirs))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5 * scale)
    assert scale > 0.01


def test_forward_mode_and_gradients_through_the_state():
    function = interop.jax_function(BATCH_NORM)
    params, state = start(BATCH_NORM, (3,))
    x = x_for(BATCH_NORM, (3,))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: function(params, state, x)[0], (x,), (x,))

    def through_the_state(x):
        _, after = function(params, state, x, train=True)
        return sum(jnp.sum(leaf) for leaf in leaves(after) if leaf.dtype == jnp.float32)

    assert not np.any(jax.grad(through_the_state)(x)), "documented: a constant"


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="jax_function takes a layer, got"):
        interop.jax_function(lambda x: x)
    with pytest.raises(TypeError, match="expected train to be True or False, got 1"):
        interop.jax_function(MLP)({}, {}, jnp.ones((1, 3)), train=1)
