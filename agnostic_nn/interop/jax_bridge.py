"""A layer as a pure function of JAX, whose gradient is the layer's own backward."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ..core.arrays import Params, State
from ..core.backend import backend
from ..core.errors import expect_flag
from ..core.trees import tree_map
from ..layers import Layer
from .drawing import expect_layer, filled

__all__ = ["JaxFunction", "jax_function"]


class JaxFunction(Protocol):
    """The type of what `jax_function` returns."""

    def __call__(
        self, params: Params, state: State, x: Any, *, train: bool = False
    ) -> tuple[Any, State]:
        """Return (y, next state)."""


def jax_function(layer: Layer) -> JaxFunction:
    """Return a pure function (params, state, x, train=False) to (y, next state).

    Its gradient by params and x is that of the layer's `backward`, by
    `jax.custom_vjp`. It can be used in `jit`, `vmap`, `scan`, `grad` and
    `value_and_grad`. params and state are trees of JAX arrays, as `init` of the layer
    and a `Trainer` on JAX have them. `train` is a Python boolean: static in `jit`.

    The state is a constant for derivatives, as in a training step: there is no gradient
    by the state, nor through the next state.

    JAX differentiates `backward` itself for second derivatives, in reverse mode or by
    `jax.hessian`; they are right to rounding. Forward mode alone (`jax.jvp`) raises
    TypeError, as for each function with `custom_vjp`: `layer.forward` has it.

    Raises
    ------
    TypeError
        If `layer` is not a layer.
    """
    expect_layer("jax_function", layer)
    backend("jax")  # registers what layers need
    by_mode = {train: _differentiable(layer, train) for train in (False, True)}

    def function(
        params: Params, state: State, x: Any, *, train: bool = False
    ) -> tuple[Any, State]:
        expect_flag("train", train)
        params, state, x = tree_map(jnp.asarray, (params, state, x))
        y, next_state = by_mode[train](params, state, x)
        return y, jax.lax.stop_gradient(next_state)

    return function


def _differentiable(layer: Layer, train: bool) -> Callable[..., Any]:
    """Return the function (params, state, x) to (y, next state) of one mode."""

    def plain(params: Params, state: State, x: Any) -> tuple[Any, State]:
        y, next_state, _ = layer.forward(params, state, x, train=train)
        return y, next_state

    function: Any = jax.custom_vjp(plain)
    function.defvjp(partial(_forward, layer, train), partial(_backward, layer))
    call: Callable[..., Any] = function
    return call


def _forward(layer: Layer, train: bool, params: Any, state: Any, x: Any) -> Any:
    y, next_state, cache = layer.forward(params, state, x, train=train)
    return (y, next_state), (params, state, x, cache)


def _backward(layer: Layer, saved: Any, slopes: Any) -> Any:
    params, state, x, cache = saved
    dx, grads = layer.backward(params, cache, slopes[0])
    return filled(params, grads, _zero), tree_map(_zero, state), filled(x, dx, _zero)


def _zero(leaf: Any) -> Any:
    """Return the gradient 0 in the dtype that JAX expects for an array."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    import numpy as np

    return np.zeros(leaf.shape, jax.dtypes.float0)
