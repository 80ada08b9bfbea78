"""Observed layers: copies of layers whose methods are called through hooks."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ...blocks import Block
from ...layers import Layer

__all__ = ["Hook", "cached_arrays", "observed_layer", "observed_model", "path_of"]

# hook(method, *args, **kwargs) -> the result of the observed method, where `method` is
# that of the layer
Hook = Callable[..., Any]


def observed_layer(
    layer: Layer, hooks: dict[str, Hook], inner: Callable[[str, Layer], Layer]
) -> Layer:
    """Return a copy of `layer` whose methods named in `hooks` are called through these.

    inner: (name, layer) -> the replacement of a layer inside; called if `layer` is a
    block.
    """
    kind = type(layer)
    mapped = layer.map_layers(inner) if isinstance(layer, Block) else layer
    methods = {name: _hooked(kind, name, hook) for name, hook in hooks.items()}
    # A subclass of the same name keeps `repr` and `isinstance`.
    observed: Layer = object.__new__(type(kind.__name__, (kind,), methods))
    vars(observed).update(vars(mapped))
    return observed


def _hooked(kind: type[Layer], name: str, hook: Hook) -> Callable[..., Any]:
    def hooked(layer: Layer, *args: Any, **kwargs: Any) -> Any:
        # looked up at each call, because the class may be changed in between
        method = partial(getattr(kind, name), layer)
        return hook(method, *args, **kwargs)

    return hooked


def observed_model(
    model: Layer, hooks: Callable[[Layer, str], dict[str, Hook]], path: str = ""
) -> Layer:
    """Return a copy of `model` in which every layer has hooks: hooks(layer, path).

    `hooks` is called for a block before it is called for the layers inside.
    """

    def inner(name: str, layer: Layer) -> Layer:
        return observed_model(layer, hooks, path_of(path, name))

    return observed_layer(model, hooks(model, path), inner)


def path_of(path: str, name: str) -> str:
    """Return the path of the layer `name` in the block at `path`; both may be empty."""
    return f"{path}.{name}" if path and name else path or name


def cached_arrays(cache: Any, number: int) -> Iterator[tuple[int, Any]]:
    """Yield each array of a cache with the number of the layer that saved it.

    A hook of `forward` marks the cache of its layer by a dict, {number: cache}.

    number: that of arrays outside any marked cache.
    """
    if isinstance(cache, dict):
        for name, entry in cache.items():
            yield from cached_arrays(entry, name if isinstance(name, int) else number)
    elif isinstance(cache, tuple):
        for entry in cache:
            yield from cached_arrays(entry, number)
    else:
        yield number, cache
