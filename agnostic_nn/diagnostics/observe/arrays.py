"""Observed arrays: wrappers that pass every operation on them to a handler.

An `ObservedArray` holds a value, usually the array of a library, and a `Handler`. Its
operators, its methods and the functions of its namespace all end in `Handler.call`. The
functions of `ops` and `random` that dispatch on the class of an array end in
`Handler.call_ops`.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from ... import ops
from ...core import random
from ...core.arrays import device
from ...core.trees import tree_map

__all__ = [
    "OPERATORS",
    "Args",
    "Function",
    "Handler",
    "Kwargs",
    "ObservedArray",
    "ObservedNamespace",
    "branch",
    "is_array",
    "observing",
    "run",
    "value_of",
]


Function = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Handler:
    """Decides what a call with observed arrays does. Override one of the methods.

    xp: the namespace of the values, whose functions are observed.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def compute(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Return the result of a call, as values like those in `args` and `kwargs`."""
        return function(*args, **kwargs)

    def call(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Return the result of an operator or of a function of the namespace.

        name: what the Array API Standard calls it. `args`, `kwargs` and the result hold
        observed arrays.
        """
        args, kwargs = _mapped(value_of, (args, kwargs))
        result = self.compute(name, function, args, kwargs)
        return _mapped(lambda leaf: self.wrap(leaf) if is_array(leaf) else leaf, result)

    def call_ops(
        self, name: str, function: Function, args: Args, kwargs: Kwargs
    ) -> Any:
        """Return the result of a function of `ops` or `random`.

        name: such as "ops.erf". By default, the standard version runs, and its
        operations are observed one by one. To treat the function as one operation, pass
        it to `call`, which runs the native version for the values.
        """
        return function.dispatch(object)(*args, **kwargs)  # type: ignore[attr-defined]

    def wrap(self, value: Any) -> "ObservedArray":
        """Return an observed array that holds `value`."""
        return ObservedArray(value, self)


_default: ContextVar[Handler] = ContextVar("_default")


@contextmanager
def observing(handler: Handler) -> Iterator[None]:
    """Pass calls without an observed array, such as `xp.zeros(shape)`, to `handler`."""
    token = _default.set(handler)
    try:
        yield
    finally:
        _default.reset(token)


def run(
    handler: Handler, function: Function, *trees: Any, default: Handler | None = None
) -> Any:
    """Return function(*trees), called with the leaves of `trees` observed by `handler`.

    default: the handler of arrays that are not computed from the leaves; `handler` if
    None.
    """
    with observing(default or handler):
        result = function(*tree_map(handler.wrap, trees))
    return tree_map(value_of, result)


def value_of(leaf: Any) -> Any:
    """Return the value of an observed array, and any other leaf unchanged."""
    return leaf.value if isinstance(leaf, ObservedArray) else leaf


def branch(holds: Any, make: Function, old: Any) -> Any:
    """Do what `ops.select` does for known values: compute only the branch taken."""
    return make() if holds else old


def is_array(leaf: Any) -> bool:
    """Return whether `leaf` is the array of a library."""
    return (
        hasattr(leaf, "shape")
        and hasattr(leaf, "dtype")
        and not isinstance(leaf, ObservedArray)
    )


def _mapped(function: Function, tree: Any) -> Any:
    """Do what `tree_map` does, also in the lists and named tuples of the Standard."""
    if isinstance(tree, dict):
        return {key: _mapped(function, subtree) for key, subtree in tree.items()}
    if isinstance(tree, tuple | list):
        branches = [_mapped(function, subtree) for subtree in tree]
        is_named = hasattr(tree, "_fields")
        return type(tree)(*branches) if is_named else type(tree)(branches)
    return function(tree)


# --- which handler --------------------------------------------------------------------


def _call(name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
    handler = _handler_of((args, kwargs), _default.get(None))
    return handler.call(name, function, args, kwargs)


def _call_ops(name: str, function: Function, *args: Any, **kwargs: Any) -> Any:
    handler = _handler_of((args, kwargs), _default.get(None))
    return handler.call_ops(name, function, args, kwargs)


def _handler_of(values: Iterable[Any], default: Handler | None) -> Any:
    """Return the first handler in `values` other than the default, else the default.

    So a constant, which belongs to the default, takes on the handler of the array that
    it is combined with.
    """
    for value in values:
        if isinstance(value, ObservedArray):
            if value.handler is not default:
                return value.handler
        elif isinstance(value, tuple | list | dict):
            inner = value.values() if isinstance(value, dict) else value
            handler = _handler_of(inner, default)
            if handler is not default:
                return handler
    return default


# --- the namespace --------------------------------------------------------------------

# they compute no array
_ABOUT_DTYPES = ("can_cast", "finfo", "iinfo", "isdtype", "result_type")


class ObservedNamespace:
    """The namespace of observed arrays: calls of its functions go to a handler.

    handler: that of calls without an observed array; None for the one set by
    `observing`.
    """

    __name__ = "agnostic_nn.diagnostics.observe"

    def __init__(self, handler: Handler | None = None) -> None:
        self._handler = handler

    def __getattr__(self, name: str) -> Any:
        default = self._handler or _default.get(None)
        if default is None:
            raise RuntimeError(
                "observed arrays must be used inside `observing(handler)`"
            )
        attribute = getattr(default.xp, name)
        if not callable(attribute) or isinstance(attribute, type):
            return attribute
        if name in _ABOUT_DTYPES:
            return lambda *args: attribute(*map(value_of, args))

        def observed(*args: Any, **kwargs: Any) -> Any:
            handler = _handler_of((args, kwargs), default)
            return handler.call(name, attribute, args, kwargs)

        return observed


_namespace = ObservedNamespace()


# --- the array ------------------------------------------------------------------------


class ObservedArray:
    """An array like `value`, except that it passes every operation to `handler`."""

    __slots__ = ("handler", "value")
    __array_ufunc__: Any = None  # NumPy's own arrays leave operators to this class

    def __init__(self, value: Any, handler: Handler) -> None:
        self.value: Any = value
        self.handler: Handler = handler

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return _namespace

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # other protocols would bypass the handler
            raise AttributeError(name)
        attribute = getattr(self.value, name)
        if callable(attribute):
            return partial(_method, name, self)
        return self.handler.wrap(attribute) if is_array(attribute) else attribute

    @property
    def device(self) -> Any:
        return device(self.value)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an observed array cannot become one of NumPy")

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __complex__(self) -> complex:
        return complex(self.value)

    def __index__(self) -> int:
        return operator.index(self.value)

    def __getitem__(self, index: Any) -> Any:
        return _call("getitem", operator.getitem, (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        _call("setitem", operator.setitem, (self, index, value), {})


def _method(name: str, *args: Any, **kwargs: Any) -> Any:
    def method(value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, name)(*args, **kwargs)

    return _call(name, method, args, kwargs)


def _unary(name: str, function: Function) -> Function:
    return lambda self: _call(name, function, (self,), {})


def _binary(name: str, function: Function) -> Function:
    return lambda self, other: _call(name, function, (self, other), {})


def _reflected(name: str, function: Function) -> Function:
    return lambda self, other: _call(name, function, (other, self), {})


OPERATORS = {  # from Python's name of an operator to the Standard's, for handlers
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "pow", "matmul": "matmul",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}  # fmt: skip
_COMPARISONS = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
_UNARY = {
    "neg": "negative",
    "pos": "positive",
    "abs": "abs",
    "invert": "bitwise_invert",
}

for _python, _name in OPERATORS.items():
    _function = getattr(operator, f"__{_python}__")
    _in_place = getattr(operator, f"__i{_python}__")
    setattr(ObservedArray, f"__{_python}__", _binary(_name, _function))
    setattr(ObservedArray, f"__r{_python}__", _reflected(_name, _function))
    setattr(ObservedArray, f"__i{_python}__", _binary(_name, _in_place))
for _python, _name in _COMPARISONS.items():
    _function = getattr(operator, f"__{_python}__")
    setattr(ObservedArray, f"__{_python}__", _binary(_name, _function))
for _python, _name in _UNARY.items():
    _function = getattr(operator, f"__{_python}__")
    setattr(ObservedArray, f"__{_python}__", _unary(_name, _function))

# Every function that dispatches on the class of an array, also a new one in `ops`.
for _prefix, _module in {"ops": ops, "random": random}.items():
    for _name in _module.__all__:
        _function = getattr(_module, _name)
        if hasattr(_function, "registry"):
            _handled = partial(_call_ops, f"{_prefix}.{_name}", _function)
            _function.register(ObservedArray, _handled)
