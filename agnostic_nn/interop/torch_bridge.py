"""A layer as a `torch.nn.Module`, whose gradient is computed by the layer's backward.

PyTorch runs `forward` of a `Function` without following it, so a second derivative
would leave out how the cache depends on the input. The gradient is therefore the result
of another `Function`, whose own derivative raises: see
docs/explanations/second_order.md.
"""

from typing import Any, NamedTuple

import torch

from ..core.arrays import Params, State
from ..core.backend import backend
from ..core.trees import leaves, named_leaves, tree_from_leaves, tree_map
from ..layers import Layer
from ..layers.base import outline
from .drawing import (
    drawn,
    expect_input_shape,
    expect_layer,
    expect_same_weights,
    filled,
)

__all__ = ["TorchModule", "call_layer", "torch_module"]

_UNPICKLED = torch.uint32  # PyTorch does not unpickle tensors of this dtype


def torch_module(
    layer: Layer,
    params: Params | None = None,
    state: State | None = None,
    *,
    shape: Any = None,
    seed: int = 0,
    dtype: str = "float32",
    device: Any = None,
) -> "TorchModule":
    """Return a `torch.nn.Module` that computes y of a layer, with its parameters.

    Gradients are those of the layer's `backward`. Parameters are registered under their
    paths, such as "params.0.weight", and the state as buffers, such as "state.1.mean",
    which are the names in a checkpoint of a `Trainer`. (A name that each module has,
    such as "forward" in a bidirectional layer, gets an underscore.) So optimizers,
    `state_dict`, `to` and copies work as for any module. `train()` and `eval()` choose
    the mode of the layer; in training mode each call replaces the state.

    Parameters
    ----------
    params, state
        Arrays nested as `init` of the layer returns them: of NumPy, of PyTorch, or of
        another library on the CPU, such as `params` and `state` of a `Trainer`. They
        are copied. Without them initial weights are drawn on the host, those of a
        `Trainer` with the same seed.
    shape
        The shape of one example, or a tree of shapes, as in `Trainer`; a length that is
        None may differ from call to call. It is needed to draw weights. With `params`
        it may be left out: then the shape of x is not checked.
    dtype
        The dtype of drawn weights, "float32" or "float64".
    device
        The device of the weights, by default PyTorch's default device.

    Raises
    ------
    ValueError
        If the layer takes no examples of that shape, or the weights do not fit it.
    RuntimeError
        If the gradient of the module is differentiated again: it has no second
        derivative.
    """
    expect_layer("torch_module", layer)
    device = torch.get_default_device() if device is None else torch.device(device)
    limits = None
    if shape is not None:
        initial = drawn(layer, shape, seed, dtype)
        params = _checked("params", params, initial[0])
        state = _checked("state", state, initial[1])
        limits = initial[3]
    elif params is None or state is None:
        raise ValueError(
            "expected shape, the shape of one example such as shape=(3,), or both "
            "params and state"
        )
    params, state = tree_map(_copied_to(device), (params, state))
    return TorchModule(layer, params, state, limits)


def _checked(name: str, tree: Any, initial: Any) -> Any:
    """Return the tree that was passed, or else the initial one."""
    if tree is None:
        return initial
    expect_same_weights(name, tree, initial)
    return tree


def _copied_to(device: torch.device) -> Any:
    backend(f"torch:{device}")  # registers what the layers need, or raises

    def copied(leaf: Any) -> torch.Tensor:
        if not isinstance(leaf, torch.Tensor):
            try:
                leaf = torch.from_dlpack(leaf)
            except (AttributeError, BufferError, RuntimeError, TypeError):
                import numpy as np

                leaf = torch.from_numpy(np.array(leaf))
        return leaf.detach().to(device=device, copy=True)

    return copied


class TorchModule(torch.nn.Module):  # type: ignore[misc]
    """The module that `torch_module` returns."""

    def __init__(self, layer: Layer, params: Any, state: Any, limits: Any) -> None:
        super().__init__()
        self.layer = layer
        self.limits = limits
        self.params = _Weights(params, is_trained=True)
        self.state = _Weights(state, is_trained=False)

    def forward(self, x: Any) -> Any:
        """Return y for a batch x, a tensor or a tree of tensors nested like `shape`."""
        x = self._checked_input(x)
        params = self.params.tree()
        state = self.state.tree()
        if not self.training and (_is_exporting() or not torch.is_grad_enabled()):
            return self.layer.predict(params, state, x)
        y, new_state = call_layer(self.layer, params, state, x, train=self.training)
        if self.training:
            self.state.replace(new_state)
        return y

    def extra_repr(self) -> str:
        return outline(self.layer)

    def _checked_input(self, x: Any) -> Any:
        for name, leaf in named_leaves(x, "x"):
            if not isinstance(leaf, torch.Tensor):
                raise TypeError(
                    f"expected {name} to be a torch.Tensor, got {type(leaf).__name__}"
                )
        if self.limits is not None:
            expect_input_shape(x, self.limits)
        dtype = next((p.dtype for p in self.params.parameters()), None)
        if dtype is None:
            return x
        return tree_map(lambda leaf: _in_dtype(leaf, dtype), x)


def _in_dtype(leaf: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x in the dtype of the parameters, converted only under autocast."""
    if not leaf.is_floating_point() or leaf.dtype == dtype:
        return leaf
    if torch.is_autocast_enabled(leaf.device.type):
        return leaf.to(dtype)
    raise TypeError(
        f"x is {leaf.dtype}, but the parameters are {dtype}: pass x.to({dtype}), or "
        f"convert the module by module.to({leaf.dtype})"
    )


def _is_exporting() -> bool:
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(is_exporting())


class _Weights(torch.nn.Module):  # type: ignore[misc]
    """A tree of tensors as a module: one of its branches, or a single leaf.

    The tensors are parameters or buffers under the names of the tree. A tree that is a
    single leaf has the name "value". A name that every module has, such as "forward",
    gets an underscore.
    """

    def __init__(self, tree: Any, is_trained: bool) -> None:
        super().__init__()
        self._kind = type(tree) if isinstance(tree, dict | tuple) else None
        branches: dict[Any, Any] = {"value": tree}
        if isinstance(tree, dict):
            branches = tree
        elif isinstance(tree, tuple):
            branches = dict(enumerate(tree))
        self._attributes: dict[Any, str] = {}  # by key of the tree
        for key, branch in branches.items():
            name = str(key)
            if hasattr(self, name):
                name += "_"
            self._attributes[key] = name
            if isinstance(branch, dict | tuple):
                self.add_module(name, _Weights(branch, is_trained))
            elif is_trained and branch.is_floating_point():
                self.register_parameter(name, torch.nn.Parameter(branch))
            else:
                self.register_buffer(name, branch)

    def tree(self) -> Any:
        """Return the tree of the current tensors."""
        branches = {}
        for key, name in self._attributes.items():
            branch = getattr(self, name)
            is_tree = isinstance(branch, _Weights)
            branches[key] = branch.tree() if is_tree else branch
        if self._kind is dict:
            return branches
        values = tuple(branches.values())
        return values if self._kind is tuple else values[0]

    def replace(self, tree: Any) -> None:
        """Replace the buffers by the tensors of another tree."""
        for key, name in self._attributes.items():
            branch = tree if self._kind is None else tree[key]
            current = getattr(self, name)
            if isinstance(current, _Weights):
                current.replace(branch)
            elif current is not branch:
                setattr(self, name, branch)

    def __getstate__(self) -> dict[str, Any]:
        buffers = {
            name: _Words(leaf.view(torch.int32)) if leaf.dtype == _UNPICKLED else leaf
            for name, leaf in self._buffers.items()
        }
        return {**vars(self), "_buffers": buffers}

    def __setstate__(self, contents: dict[str, Any]) -> None:
        buffers = {
            name: leaf.bits.view(_UNPICKLED) if isinstance(leaf, _Words) else leaf
            for name, leaf in contents["_buffers"].items()
        }
        super().__setstate__({**contents, "_buffers": buffers})


class _Words(NamedTuple):
    """The bits of a tensor of uint32 as int32."""

    bits: torch.Tensor


# --- the call of a layer --------------------------------------------------------------


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call_layer(
    layer: Layer, params: Params, state: State, x: Any, *, train: bool
) -> tuple[Any, State]:
    """Return (y, next state) of a layer on tensors; autograd calls its `backward`.

    Autograd treats the next state as a constant, like a training step.
    """
    call = _Call(layer, params, state, x, train)
    results = _Forward.apply(call, *leaves(x), *leaves(params))
    named = dict(zip(call.y_names, results, strict=True))
    new_state, call.new_state = call.new_state, None
    return tree_from_leaves(named, call.y_like), new_state


class _Call:
    """A call of a layer: trees whose leaves the functions of autograd get as a list."""

    def __init__(
        self, layer: Layer, params: Any, state: Any, x: Any, train: bool
    ) -> None:
        self.layer = layer
        self.state = state
        self.train = train
        self._x_names = [name for name, _ in named_leaves(x)]
        self._x_like = tree_map(lambda leaf: None, x)
        self._params_names = [name for name, _ in named_leaves(params)]
        self._params_like = tree_map(lambda leaf: None, params)
        # set by `forward`
        self.new_state: Any = None
        self.y_like: Any = None
        self.y_names: list[str] = []
        self._cache_like: Any = None

    def trees(self, tensors: Any) -> tuple[Any, Any]:
        """Return x and params."""
        count = len(self._x_names)
        x = dict(zip(self._x_names, tensors[:count], strict=True))
        params = dict(zip(self._params_names, tensors[count:], strict=True))
        return (
            tree_from_leaves(x, self._x_like),
            tree_from_leaves(params, self._params_like),
        )

    def forward(self, tensors: Any) -> tuple[list[Any], list[Any]]:
        """Return the leaves of y, and the tensors of the cache."""
        x, params = self.trees(tensors)
        y, self.new_state, cache = self.layer.forward(
            params, self.state, x, train=self.train
        )
        self.state = None
        named = list(named_leaves(y))
        self.y_names = [name for name, _ in named]
        self.y_like = tree_map(lambda leaf: None, y)
        saved = []

        def separated(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            saved.append(leaf)
            return _Saved(len(saved) - 1)

        self._cache_like = tree_map(separated, cache)
        return [leaf for _, leaf in named], saved

    def backward(self, tensors: Any, dys: Any, needs_dx: bool) -> list[Any]:
        """Return the gradients by x and params, None where there are none.

        tensors: the leaves of x and params, then those of the cache.
        """
        count = len(self._x_names) + len(self._params_names)
        x, params = self.trees(tensors[:count])
        saved = tensors[count:]
        cache = tree_map(
            lambda leaf: saved[leaf.index] if isinstance(leaf, _Saved) else leaf,
            self._cache_like,
        )
        named = dict(zip(self.y_names, dys, strict=True))
        dy = tree_from_leaves(named, self.y_like)
        if needs_dx:
            dx, grads = self.layer.backward(params, cache, dy)
        else:
            dx, grads = None, self.layer.backward_params(params, cache, dy)
        return [
            gradient
            for like, tree in ((x, dx), (params, grads))
            for gradient in leaves(filled(like, tree, lambda leaf: None))
        ]

    @property
    def x_count(self) -> int:
        """The number of arrays of x."""
        return len(self._x_names)


class _Saved:
    """The place of a tensor in the cache."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Forward(torch.autograd.Function):  # type: ignore[misc]
    """The y of a layer, from the leaves of x and params."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Any) -> Any:
        with _without_autocast(tensors):
            results, saved = call.forward(tensors)
        ctx.call = call
        # PyTorch raises if one of these is changed in place before `backward`
        ctx.save_for_backward(*tensors, *saved)
        ctx.mark_non_differentiable(*[y for y in results if not y.is_floating_point()])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *dys: Any) -> Any:
        tensors = ctx.saved_tensors
        needs_dx = any(ctx.needs_input_grad[1 : 1 + ctx.call.x_count])
        gradients = _Gradient.apply(ctx.call, len(dys), needs_dx, *dys, *tensors)
        return (None, *gradients)


class _Gradient(torch.autograd.Function):  # type: ignore[misc]
    """The gradient of a layer, as a function of x, params and dy.

    It depends on all of them, so it is on every path to them that a second derivative
    takes, and raises there. The decorator `once_differentiable` would only raise if the
    whole graph is run.
    """

    @staticmethod
    def forward(
        ctx: Any, call: _Call, count: int, needs_dx: bool, *tensors: Any
    ) -> Any:
        ctx.layer = call.layer
        with _without_autocast(tensors):
            return tuple(call.backward(tensors[count:], tensors[:count], needs_dx))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            f"the gradient of {type(ctx.layer).__name__} was differentiated again, but "
            "a module of interop.torch_module has first derivatives only. Call the "
            "layer's forward and backward with tensors that require gradients: see "
            "docs/explanations/second_order.md"
        )


def _without_autocast(tensors: Any) -> Any:
    kind = next((t.device.type for t in tensors if t is not None), "cpu")
    return torch.autocast(kind, enabled=False)
