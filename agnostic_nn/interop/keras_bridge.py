"""A layer as a layer of Keras, whose gradient is the layer's own backward."""

from typing import Any

import keras

from ..core.backend import backend
from ..core.trees import leaves, named_leaves, tree_from_leaves, tree_map
from ..layers import Layer
from ..training.config import describe, rebuild
from ..training.inputs import as_integer
from .drawing import drawn, expect_layer

__all__ = ["KerasLayer", "keras_layer"]


def keras_layer(layer: Layer, *, seed: int = 0, **options: Any) -> "KerasLayer":
    """Return a `keras.layers.Layer` that computes y of a layer, with its weights.

    Gradients are those of the layer's `backward`, on Keras's backends "torch" and
    "jax". Weights are drawn on the host when the layer is built: those of a `Trainer`
    with the same seed. Parameters are trainable weights under their paths, such as
    "params_0_weight". The state, such as running statistics and the key of dropout, are
    other weights, which calls with training=True replace. Models with the layer can be
    built symbolically, fitted, and saved in files `.keras`, which name layers of this
    library and their options.

    options: those of each Keras layer, such as `name`, `trainable` and `dtype`.

    Raises
    ------
    TypeError
        If `layer` is not a layer.
    RuntimeError
        If Keras runs on another backend. On torch, if the gradient is differentiated
        again.
    """
    return KerasLayer(layer, seed=seed, **options)


@keras.saving.register_keras_serializable(package="agnostic_nn")
class KerasLayer(keras.layers.Layer):  # type: ignore[misc]
    """The layer that `keras_layer` returns."""

    def __init__(self, layer: Layer, *, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        expect_layer("keras_layer", layer)
        library = keras.backend.backend()
        if library not in _CALLS:
            raise RuntimeError(
                f"keras_layer runs on Keras with the backend 'torch' or 'jax', got "
                f"{library!r}: set the environment variable KERAS_BACKEND before "
                "importing keras"
            )
        self._layer = layer
        self._seed = as_integer("seed", seed, 0)
        self._weights_tree: Any = None
        self._dtypes: Any = None
        self._out_shape: Any = None

    def build(self, input_shape: Any) -> None:
        """Draw the weights for inputs of a shape, or a tree of shapes, with batch."""
        dtype = self._expected_dtype()
        params, state, self._out_shape, _ = drawn(
            self._layer, _without_batch(input_shape), self._seed, dtype
        )
        backend(keras.backend.backend())  # registers what layers need
        self._dtypes = tree_map(lambda leaf: leaf.dtype.name, (params, state))
        self._weights_tree = (
            self._added("params", params, is_trained=True),
            self._added("state", state, is_trained=False),
        )
        self.built = True

    def _expected_dtype(self) -> str:
        """Return the dtype of the weights; raise if Keras computes in another one."""
        dtype: str = self.variable_dtype
        if self.compute_dtype != dtype or dtype not in ("float32", "float64"):
            raise ValueError(
                f"expected the dtype 'float32' or 'float64', got the policy "
                f"{self.dtype_policy.name!r}: pass dtype='float32' to keras_layer; for "
                "16 bits inside it, pass nn.MixedPrecision(layer, 'float16')"
            )
        return dtype

    def _added(self, prefix: str, tree: Any, is_trained: bool) -> Any:
        """Return a tree of weights with the values of a tree of NumPy arrays."""
        weights = {}
        for path, leaf in named_leaves(tree):
            is_real = leaf.dtype.kind == "f"
            weights[path] = self.add_weight(
                # Keras on torch does not take names with dots
                name="_".join(filter(None, (prefix, *path.split(".")))),
                shape=leaf.shape,
                dtype=leaf.dtype.name,
                initializer=_Values(leaf),
                trainable=is_trained and is_real,
                autocast=False,
            )
        return tree_from_leaves(weights, tree)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return y for a batch."""
        library = keras.backend.backend()
        xp = backend(library).xp
        # Keras on torch stores uint32 as int64
        params, state = tree_map(
            lambda weight, dtype: xp.astype(weight.value, getattr(xp, dtype)),
            self._weights_tree,
            self._dtypes,
        )
        call = _CALLS[library]
        y, next_state = call(self._layer, params, state, x, bool(training))
        if training:
            pairs = zip(leaves(self._weights_tree[1]), leaves(next_state), strict=True)
            for weight, value in pairs:
                weight.assign(keras.ops.cast(value, weight.dtype))
        return y

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape, or the tree of shapes, of y with the batch."""
        batch = _batch_of(input_shape)
        shape = _without_batch(input_shape)
        dtype = self._expected_dtype()
        out_shape = drawn(self._layer, shape, self._seed, dtype)[2]
        return _with_batch(out_shape, batch)

    def compute_output_spec(self, x: Any, training: bool | None = None) -> Any:
        """Return y as symbolic tensors of Keras."""
        shapes = _shapes_of(x)
        batch = _batch_of(shapes)
        out_shape = self._out_shape
        if out_shape is None:
            out_shape = drawn(
                self._layer, _without_batch(shapes), self._seed, self._expected_dtype()
            )[2]
        return _symbolic(_with_batch(out_shape, batch), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the options as JSON data; custom layers are named, not described."""
        config: dict[str, Any] = super().get_config()
        return config | {"layer": describe(self._layer), "seed": self._seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KerasLayer":
        """Return the layer of a config; only layers of this library are rebuilt."""
        options = dict(config)
        return cls(rebuild(options.pop("layer")), **options)


class _Values(keras.initializers.Initializer):  # type: ignore[misc]
    """Returns given values as the initial weight."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return keras.ops.convert_to_tensor(self._values, dtype=dtype)


def _called_on_torch(layer: Layer, params: Any, state: Any, x: Any, train: bool) -> Any:
    """Return (y, next state), with the gradient of the layer's backward."""
    from .torch_bridge import call_layer

    return call_layer(layer, params, state, x, train=train)


def _called_on_jax(layer: Layer, params: Any, state: Any, x: Any, train: bool) -> Any:
    """Return (y, next state), with the gradient of the layer's backward."""
    from .jax_bridge import jax_function

    return jax_function(layer)(params, state, x, train=train)


# by the name of a backend of Keras that this library runs on too
_CALLS = {"jax": _called_on_jax, "torch": _called_on_torch}


# --- shapes: a tuple or list of lengths, or a dict or tuple of these ------------------


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple | list) and all(
        isinstance(length, int | None) for length in shape
    )


def _without_batch(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {name: _without_batch(part) for name, part in shape.items()}
    if _is_shape(shape):
        return tuple(shape[1:])
    return tuple([_without_batch(part) for part in shape])


def _batch_of(shape: Any) -> int | None:
    if isinstance(shape, dict):
        return _batch_of(next(iter(shape.values())))
    batch: int | None = shape[0] if _is_shape(shape) else _batch_of(shape[0])
    return batch


def _with_batch(shape: Any, batch: int | None) -> Any:
    if isinstance(shape, dict):
        return {name: _with_batch(part, batch) for name, part in shape.items()}
    if _is_shape(shape):
        return (batch, *shape)
    return tuple([_with_batch(part, batch) for part in shape])


def _shapes_of(x: Any) -> Any:
    return tree_map(lambda leaf: tuple(leaf.shape), x)


def _symbolic(shape: Any, dtype: str) -> Any:
    if isinstance(shape, dict):
        return {name: _symbolic(part, dtype) for name, part in shape.items()}
    if _is_shape(shape):
        return keras.KerasTensor(shape, dtype)
    return tuple([_symbolic(part, dtype) for part in shape])
