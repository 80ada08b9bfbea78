"""Convert dataclasses to JSON and back, and describe them as a JSON Schema.

The fields may be strings, integers, floats, booleans, `Literal` strings or integers,
dataclasses, tuples (lists in JSON), dicts with names as keys, and any of these or None
(null in JSON). In JSON, an object has the same keys as the dataclass has fields.
"""

import ast
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from textwrap import dedent
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = [
    "descriptions",
    "field_types",
    "finite",
    "from_json",
    "json_schema",
    "to_json",
]

T = TypeVar("T")

_WORDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    dict: "an object",
    tuple: "a list",
}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


# --- to JSON and back -----------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Return a dataclass, tuple, dict or single value as data for `json.dumps`."""
    if is_dataclass(value):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {name: to_json(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(each) for each in value]
    return value


def from_json(kind: type[T], data: Any) -> T:
    """Return `data`, parsed JSON, as an instance of the dataclass `kind`.

    Raises
    ------
    ValueError
        If a value does not have the type of its field, or if a field is missing or
        unknown. The message has the path of the value, what was expected and what came.
    """
    return cast(T, _from_json(kind, data, ""))


def _from_json(kind: Any, data: Any, path: str) -> Any:
    if not any(_matches(option, data) for option in _options(kind)):
        raise _error(path, _words(kind), _short(data))
    if data is None:
        return None
    kind = next(option for option in _options(kind) if option is not NoneType)
    if isinstance(kind, type) and is_dataclass(kind):
        types = field_types(kind)
        missing = ", ".join(name for name in types if name not in data)
        if missing:
            raise _error(
                path, f"the fields {', '.join(types)}", f"none called {missing}"
            )
        unknown = ", ".join(map(repr, data.keys() - types.keys()))
        if unknown:
            raise _error(path, f"only the fields {', '.join(types)}", f"also {unknown}")
        values = {
            name: _from_json(each, data[name], f"{path}.{name}" if path else name)
            for name, each in types.items()
        }
        return kind(**values)
    if get_origin(kind) is dict:
        _, inner = get_args(kind)
        return {
            name: _from_json(inner, each, f"{path}.{name}")
            for name, each in data.items()
        }
    if get_origin(kind) is tuple:
        inner, *_ = get_args(kind)
        return tuple(
            [_from_json(inner, each, f"{path}[{i}]") for i, each in enumerate(data)]
        )
    return float(data) if kind is float else data


def _matches(kind: Any, data: Any) -> bool:
    """Return whether `data` has the type `kind`; what is inside is not checked."""
    origin = get_origin(kind)
    if is_dataclass(kind) or origin is dict:
        return isinstance(data, dict)
    if origin is tuple:
        length = _length(kind)
        return isinstance(data, list) and length in (None, len(data))
    if origin is Literal:
        return any(
            type(data) is type(value) and data == value for value in get_args(kind)
        )
    return type(data) in ((int, float) if kind is float else (kind,))


def _options(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _length(kind: Any) -> int | None:
    """Return the length of tuples of type `kind`; None for any length."""
    arguments = get_args(kind)
    return None if Ellipsis in arguments else len(arguments)


def _error(path: str, expected: str, got: str) -> ValueError:
    place = f"{path}: " if path else ""
    return ValueError(f"{place}expected {expected}, got {got}")


def _words(kind: Any) -> str:
    """Return what values of a type are in JSON, such as "an integer or null"."""
    return " or ".join(map(_words_of_option, _options(kind)))


def _words_of_option(kind: Any) -> str:
    if is_dataclass(kind):
        return _WORDS[dict]
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin is tuple and _length(kind) is not None:
        return f"a list of {_length(kind)}"
    return _WORDS[origin or kind]


def _short(data: Any, length: int = 60) -> str:
    text = repr(data)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def finite(value: T) -> T:
    """Return `value` with None for NaN and infinities, which JSON cannot represent."""
    return cast(T, _finite(value))


def _finite(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        names = (each.name for each in fields(value))
        return replace(value, **{name: _finite(getattr(value, name)) for name in names})
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple([_finite(each) for each in value])
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- the schema -----------------------------------------------------------------------


def field_types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a dataclass."""
    types = get_type_hints(kind)
    return {each.name: types[each.name] for each in fields(kind)}


def descriptions(kind: type) -> dict[str, str]:
    """Return the docstring of each field: the string in the source that follows it.

    "None" is replaced by "null", its name in JSON.
    """
    described: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        described |= dict(_described(definition))
    return {name: described[name] for name in field_types(kind)}


def _described(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, docstring in pairwise(definition.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(docstring, ast.Expr)
            and isinstance(docstring.value, ast.Constant)
        ):
            text = " ".join(str(docstring.value.value).split())
            yield field.target.id, re.sub(r"\bNone\b", "null", text)


def json_schema(kind: type) -> dict[str, Any]:
    """Return a JSON Schema (draft 2020-12) of the dataclass `kind`."""
    definitions: dict[str, Any] = {}
    _define(kind, definitions)
    root = definitions.pop(kind.__name__)
    return {"$schema": DIALECT, "title": kind.__name__, **root, "$defs": definitions}


def _define(kind: type, definitions: dict[str, Any]) -> None:
    """Add a dataclass, and the dataclasses in its fields, to `definitions`."""
    definitions[kind.__name__] = {}  # keeps the place: outer classes come first
    words = descriptions(kind)
    properties = {
        name: _schema(each, definitions) | {"description": words[name]}
        for name, each in field_types(kind).items()
    }
    definitions[kind.__name__] |= {
        "description": inspect.getdoc(kind),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field, and add the dataclasses in it to `definitions`."""
    options = _options(kind)
    if len(options) > 1:
        return {"anyOf": [_schema(each, definitions) for each in options]}
    if kind is NoneType:
        return {"type": "null"}
    if is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            _define(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin = get_origin(kind)
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if origin is dict:
        _, inner = get_args(kind)
        return {"type": "object", "additionalProperties": _schema(inner, definitions)}
    if origin is tuple:
        inner, *_ = get_args(kind)
        length = _length(kind)
        sizes = {} if length is None else {"minItems": length, "maxItems": length}
        return {"type": "array", "items": _schema(inner, definitions)} | sizes
    return {"type": _TYPES[kind]}
