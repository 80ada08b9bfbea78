"""Parameters inside of parameters: options of layers, optimizers and callbacks.

They are frozen dataclasses, so to change an option is to make a copy. A path joins
names by two underscores, as in scikit-learn: "optimizer__rate", or "model__0__width"
for the width of the first layer. Layers inside a block are called by the names under
which the block stores their parameters.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from inspect import Parameter, signature
from typing import Any

from ..blocks import Block
from ..core.errors import described

__all__ = ["nested_parameters", "with_parameter"]

_UNNAMED = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def nested_parameters(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) for each option inside a parameter, at any depth.

    name: that of the parameter, with which the paths begin.
    """
    for inner_name, inner in _options(value).items():
        path = f"{name}__{inner_name}"
        yield path, inner
        yield from nested_parameters(path, inner)


def with_parameter(value: Any, path: str, new: Any) -> Any:
    """Return a copy of `value` with the option at a path, such as "0__width", replaced.

    Raises
    ------
    ValueError
        If there is no such option, or it cannot have this value.
    TypeError
        If the option cannot have a value of this type.
    """
    name, _, rest = path.partition("__")
    options = _options(value)
    if name not in options:
        names = ", ".join(options) or "none"
        raise ValueError(
            f"{described(value)} has no parameter {name!r}, expected one of: {names}"
        )
    if rest:
        new = with_parameter(options[name], rest, new)
    if name in _inner_layers(value):
        return value.map_layers(lambda at, layer: new if at == name else layer)
    return replace(value, **{name: new})


def _options(value: Any) -> dict[str, Any]:
    """Return the options of a dataclass and the layers inside a block, by name."""
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    names = [field.name for field in fields(value) if field.init]
    parameters = signature(type(value)).parameters
    # blocks such as Sequential(*layers) do not take their fields by name
    is_replaceable = all(
        name in parameters and parameters[name].kind not in _UNNAMED for name in names
    )
    options = {name: getattr(value, name) for name in names if is_replaceable}
    return options | _inner_layers(value)


def _inner_layers(value: Any) -> dict[str, Any]:
    """Return the layers directly inside a block by name; {} for anything else."""
    if not isinstance(value, Block):
        return {}
    # the layer of a `Wrapper`, called "", is one of its fields
    return {name: layer for name, layer in value._inner_layers() if name}
