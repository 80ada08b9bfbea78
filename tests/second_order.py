"""Second derivatives: JAX and PyTorch differentiate `backward` of every layer.

    python tests/second_order.py torch      a line for each layer, and the largest error
    JAX_ENABLE_X64=1 python tests/second_order.py jax

Each layer is run in float64 in training mode. The product of the Hessian of Σ w · y
with a random vector, through `backward`, is compared with a central difference of the
gradient on NumPy. docs/explanations/second_order.md has the result.
"""

import sys

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves, tree_from_leaves, tree_map
from agnostic_nn.diagnostics.examples import LAYERS
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for

STEP = 1e-6


class Product:
    """The gradient of Σ w · y by all real inputs and parameters of one layer."""

    def __init__(self, layer, shape, draw=None):
        generator = np.random.default_rng(0)
        self.layer = layer
        xp = nn.backend("numpy").xp
        params, state, _ = layer.init(nn.random.key(0, xp=xp), shape, xp.float64)

        def drawn(leaf):
            is_real = leaf.dtype.kind == "f"
            noise = 0.1 * generator.standard_normal(leaf.shape)
            return leaf.astype("float64") + noise if is_real else leaf

        x = (draw or (lambda g, s: draw_for(layer, g, s)))(generator, batched(shape, 3))
        x = tree_map(lambda a: a.astype("float64") if a.dtype.kind == "f" else a, x)
        self.like = tree_map(drawn, params), x
        named = dict(named_leaves(self.like))
        self.inputs = {name: a for name, a in named.items() if a.dtype.kind == "f"}
        self.fixed = {name: a for name, a in named.items() if name not in self.inputs}
        y, _, _ = layer.forward(*self.like[:1], state, x, train=True)
        self.others = (
            state,
            tree_map(lambda leaf: generator.standard_normal(leaf.shape), y),
        )
        self.vector = {
            name: generator.standard_normal(a.shape) for name, a in self.inputs.items()
        }

    def gradient(self, inputs, fixed, others):
        """Return the gradient by name, computed by `backward`."""
        state, w = others
        params, x = tree_from_leaves({**fixed, **inputs}, self.like)
        _, _, cache = self.layer.forward(params, state, x, train=True)
        dx, grads = self.layer.backward(params, cache, w)
        named = dict(named_leaves((grads, dx)))
        return {name: named[name] for name in inputs if named.get(name) is not None}

    def by_difference(self):
        """Return the product of the Hessian with the vector, on NumPy."""
        ends = []
        for sign in (1, -1):
            moved = {
                name: a + sign * STEP * self.vector[name]
                for name, a in self.inputs.items()
            }
            ends.append(self.gradient(moved, self.fixed, self.others))
        above, below = ends
        return {name: (above[name] - below[name]) / (2 * STEP) for name in above}

    def on_torch(self):
        """Return the same by PyTorch: the gradient of the product with the vector."""
        import torch

        backend = nn.backend("torch")
        fixed, others = backend.asarray((self.fixed, self.others))
        inputs = {
            name: torch.tensor(a, requires_grad=True) for name, a in self.inputs.items()
        }
        grads = self.gradient(inputs, fixed, others)
        total = sum(
            (g * torch.tensor(self.vector[name])).sum() for name, g in grads.items()
        )
        if not total.requires_grad:  # a constant gradient
            return {name: np.zeros_like(self.inputs[name]) for name in grads}
        leaves = [inputs[name] for name in grads]
        products = torch.autograd.grad(total, leaves, allow_unused=True)
        return {
            name: np.zeros_like(self.inputs[name]) if h is None else h.numpy()
            for name, h in zip(grads, products, strict=True)
        }

    def on_jax(self):
        """Return the same by JAX, which differentiates the gradient forward."""
        import jax

        backend = nn.backend("jax")
        fixed, others = backend.asarray((self.fixed, self.others))
        inputs, vector = backend.asarray((self.inputs, self.vector))
        _, products = jax.jvp(
            lambda x: self.gradient(x, fixed, others), (inputs,), (vector,)
        )
        return backend.to_numpy(products)

    def error(self, library):
        """Return the largest difference, relative to the largest number plus 1."""
        expected = self.by_difference()
        result = {"torch": self.on_torch, "jax": self.on_jax}[library]()
        return max(
            float(np.abs(result[name] - leaf).max() / (1.0 + np.abs(leaf).max()))
            for name, leaf in expected.items()
        )


def main(library):
    """Print the error of each example that has real inputs."""
    errors = {}
    for example in LAYERS:
        product = Product(example.layer, example.shape, example.draw)
        if product.inputs:
            name = f"{example.name} {example.shape}"
            errors[name] = product.error(library)
            print(f"{errors[name]:.1e}  {name}", flush=True)
    print(f"{len(errors)} examples on {library}, at most {max(errors.values()):.1e}")


if __name__ == "__main__":
    main(sys.argv[1])
