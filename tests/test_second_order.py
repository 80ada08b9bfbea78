"""Second derivatives through `backward`, and a bridge to PyTorch that refuses them."""

import numpy as np
import pytest
from second_order import Product

import agnostic_nn as nn

MODEL = nn.Sequential(nn.Dense(5), nn.LayerNorm(), nn.Tanh(), nn.Dense(2))
LAYERS = [
    (MODEL, (3,)),
    (nn.BatchNorm(), (4,)),
    (nn.Conv2D(2, 3, padding="same"), (4, 5, 2)),
    (nn.LSTM(3), (4, 2)),
    (nn.MultiHeadAttention(2, causal=True), (4, 6)),
    (nn.WeightNorm(nn.Dense(3)), (4,)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda part: str(part)[:24])
def test_pytorch_differentiates_backward(layer, shape):
    pytest.importorskip("torch")
    product = Product(layer, shape)
    assert product.error("torch") < 1e-8
    assert max(np.abs(leaf).max() for leaf in product.by_difference().values()) > 0.1


def test_jax_differentiates_backward():
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        assert Product(MODEL, (3,)).error("jax") < 1e-8


def refuse(torch):
    """Return a function like `once_differentiable` that no path around it avoids.

    The gradient is the result of another `Function` of x and dy, so it is connected
    with both, and whatever differentiates it runs the `backward` that raises.
    """

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, compute, *tensors):
            return compute()

        @staticmethod
        def backward(ctx, *slopes):
            raise RuntimeError("this bridge has no second derivative")

    def decorator(function):
        def backward(ctx, dy):
            return Gradient.apply(lambda: function(ctx, dy), *ctx.saved_tensors, dy)

        return backward

    return decorator


def bridge(torch, decorator):
    """Return y of a layer as a function of x through our `backward`, and directly."""
    layer = nn.Sequential(nn.Dense(2), nn.Tanh())
    params = nn.backend("torch").asarray(Product(layer, (3,)).like[0])

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y, _, ctx.cache = layer.forward(params, ({}, {}), x, train=True)
            ctx.save_for_backward(x)
            return y

        @staticmethod
        @decorator
        def backward(ctx, dy):
            return layer.backward(params, ctx.cache, dy)[0]

    def direct(x):
        return layer.forward(params, ({}, {}), x)[0]

    return Bridge.apply, direct


def gradient_penalty(torch, function):
    """Return Σ y², its gradient with a graph, and x; the second term is ‖gradient‖²."""
    x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(2, 3)
    x.requires_grad_(True)
    y = function(x)
    (first,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    return x, first, (first * first).sum() + (x * x).sum()


def test_a_bridge_that_follows_no_cache_has_a_wrong_second_derivative():
    """The reason why a bridge has to refuse it."""
    torch = pytest.importorskip("torch")
    results = []
    for function in bridge(torch, lambda function: function):
        x, first, total = gradient_penalty(torch, function)
        (second,) = torch.autograd.grad(total, x)
        results.append((first.detach().numpy(), second.numpy()))
    (first, second), (true_first, true_second) = results
    np.testing.assert_allclose(first, true_first, rtol=1e-12)
    assert np.abs(second - true_second).max() > 0.1 * np.abs(true_second).max()


def test_once_differentiable_raises_only_if_the_whole_graph_is_run():
    """`torch.autograd.grad` runs the paths to x only, and there is one around it."""
    torch = pytest.importorskip("torch")
    function, _ = bridge(torch, torch.autograd.function.once_differentiable)
    _, _, total = gradient_penalty(torch, function)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        total.backward()
    x, _, total = gradient_penalty(torch, function)
    (second,) = torch.autograd.grad(total, x)
    np.testing.assert_allclose(second.numpy(), 2.0 * x.detach().numpy())


def test_a_bridge_whose_gradient_is_a_function_of_its_inputs_always_raises():
    torch = pytest.importorskip("torch")
    function, direct = bridge(torch, refuse(torch))
    for run in (
        lambda x, total: total.backward(),
        lambda x, total: torch.autograd.grad(total, x),
    ):
        x, first, total = gradient_penalty(torch, function)
        with pytest.raises(RuntimeError, match="no second derivative"):
            run(x, total)
    expected = gradient_penalty(torch, direct)[1]
    torch.testing.assert_close(first, expected)
