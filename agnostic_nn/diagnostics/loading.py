"""Load objects by name: custom objects, and losses, optimizers and metrics.

Custom objects are named as module:object, in the current folder or a package.
"""

import ast
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from traceback import extract_tb
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from .. import losses, metrics, optimizers
from ..layers.base import Layer

__all__ = [
    "CannotLoad",
    "load",
    "load_layer",
    "load_loss",
    "load_metric",
    "load_optimizer",
]


class CannotLoad(ValueError):
    """A named object does not exist or cannot be loaded; the message says why."""


class _Candidates(NamedTuple):
    """The objects of a module that an error lists.

    plural: of their kind. includes: a function from an object and the name of the
    module.
    """

    plural: str
    includes: Callable[[Any, str], bool]


_LAYERS = _Candidates("layers", lambda value, _: isinstance(value, Layer))


def load(name: str, candidates: _Candidates = _LAYERS) -> Any:
    """Return the object that "module:object" names, or the module that "module" names.

    candidates: what the error lists if the module has no such object.

    The current folder becomes the first entry of `sys.path` and stays there, as with
    `python -m`: a custom module may import another one later, inside a function.

    Raises
    ------
    CannotLoad
        If there is no such module or object, or importing it fails.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, _, attributes = name.partition(":")
    loaded = _module(module_name)
    for attribute in attributes.split(".") if attributes else ():
        loaded = _attribute(loaded, attribute, name, candidates)
    return loaded


def load_layer(name: str) -> Layer:
    """Return the layer that "module:object" names, or that the object returns.

    A name that ends in ".onnx" is the path of a file, which `from_onnx` reads.

    Raises
    ------
    CannotLoad
        As for `load`, or if the object is neither a layer nor returns one when called,
        or if the file cannot be read or converted.
    """
    if name.endswith(".onnx"):
        return _onnx_model(name)
    module_name, _, attributes = name.partition(":")
    if not (module_name and attributes):
        raise CannotLoad(f"expected a custom layer as module:object, got {name!r}")
    layer = load(name)
    if callable(layer) and not isinstance(layer, Layer):
        try:
            layer = layer()
        except (Exception, SystemExit) as error:  # a custom function may raise anything
            fault = f"{name} cannot be called without arguments"
            raise CannotLoad(f"{fault}: {_one_line(error)}") from error
    if not isinstance(layer, Layer):
        kind = type(layer).__qualname__
        raise CannotLoad(f"{name} is not a layer and does not return one: got {kind}")
    return layer


def _onnx_model(path: str) -> Layer:
    from ..interop.onnx_reader.from_onnx import from_onnx

    try:
        return from_onnx(path)
    except (ImportError, OSError, ValueError) as error:
        raise CannotLoad(f"{path} cannot be loaded: {error}") from error


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name.endswith(".py"):
            raise CannotLoad(f"expected a module without .py: {name[:-3]}") from error
        if f"{name}.".startswith(f"{missing}."):
            where = f"it is not in {os.getcwd()} and not installed"
            raise CannotLoad(f"there is no module {missing!r}: {where}") from error
        fault = f"{name} needs the module {missing!r}, which is not installed"
        raise CannotLoad(fault) from error
    except (Exception, SystemExit) as error:  # importing runs code, which may exit
        place = extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        fault = f"{name} cannot be imported"
        raise CannotLoad(f"{fault}: {_one_line(error)} ({where})") from error


def _attribute(owner: Any, attribute: str, name: str, candidates: _Candidates) -> Any:
    module_name, _, attributes = name.partition(":")
    try:
        return getattr(owner, attribute)
    except AttributeError as error:
        variables = vars(sys.modules[module_name]).items()
        names = [
            name for name, value in variables if candidates.includes(value, module_name)
        ]
        remedy = f"; its {candidates.plural} are {', '.join(names)}" if names else ""
        raise CannotLoad(f"{module_name} has no {attributes!r}{remedy}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# --- losses, optimizers and metrics ---------------------------------------------------


class _Kind(NamedTuple):
    """A kind of objects that a text may name.

    name: with its article. example: a text that names one. names: of all in `module`.
    custom: those that a user's module has.
    """

    name: str
    example: str
    module: ModuleType
    names: tuple[str, ...]
    custom: _Candidates

    @property
    def noun(self) -> str:
        """The name without its article."""
        return self.name.partition(" ")[2]


def _is_optimizer(thing: Any) -> bool:
    methods = (getattr(thing, name, None) for name in ("init", "update"))
    return not isinstance(thing, type) and all(map(callable, methods))


def _public(module: ModuleType, *excluded: str) -> tuple[str, ...]:
    return tuple(name for name in module.__all__ if name not in excluded)


def _are_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Return those names of `metrics` that are functions of outputs and a target."""
    return tuple(
        name
        for name in names
        if list(signature(getattr(metrics, name)).parameters)[1:2] == ["target"]
    )


_FUNCTIONS = _Candidates(
    "functions",
    lambda value, module: (
        isinstance(value, FunctionType) and value.__module__ == module
    ),
)
_LOSS = _Kind(
    "a loss",
    "huber(delta=0.5)",
    losses,
    _public(losses, "Loss", "Losses", "Penalized", "Weighted"),
    _FUNCTIONS,
)
_OPTIMIZER = _Kind(
    "an optimizer",
    "Adam(rate=1e-3)",
    optimizers,
    _public(optimizers, "Optimizer", "Rule"),
    _Candidates("optimizers", lambda value, _: _is_optimizer(value)),
)
_METRIC = _Kind(
    "a metric",
    "top_k_accuracy(k=3)",
    metrics,
    _are_metrics(metrics.__all__),
    _FUNCTIONS,
)
# "module:object", or with arguments "module:object(…)"
_CUSTOM = re.compile(r"(?P<name>[^():]+:[^():]+)(?P<arguments>\(.*\))?", re.DOTALL)


def load_loss(text: str) -> losses.Loss:
    """Return the loss that `text` names: "huber(delta=0.5)" or "module:object".

    Arguments must be literals: the text is parsed and never evaluated. Those of a
    function are set by `functools.partial`, and a class is called with them.

    Raises
    ------
    CannotLoad
        If there is no such loss, or it does not take the arguments.
    """
    loss: losses.Loss = _function(_LOSS, text)
    return loss


def load_metric(text: str) -> Callable[..., Any]:
    """Return the metric that `text` names: "top_k_accuracy(k=3)" or "module:object".

    Raises
    ------
    CannotLoad
        As for `load_loss`.
    """
    metric: Callable[..., Any] = _function(_METRIC, text)
    return metric


def load_optimizer(text: str) -> optimizers.Optimizer:
    """Return the optimizer that `text` names: "Adam(rate=1e-3)" or "module:object".

    The object is an optimizer, or a class or function that returns one.

    Raises
    ------
    CannotLoad
        As for `load_loss`, or if the object is not an optimizer.
    """
    thing, args, options = _named(_OPTIMIZER, text)
    is_given = args or options or text.strip().endswith(")")
    if is_given or not _is_optimizer(thing):
        thing = _called(_OPTIMIZER, text, thing, args, options)
    if not _is_optimizer(thing):
        raise CannotLoad(f"{text!r} is not an optimizer")
    optimizer: optimizers.Optimizer = thing
    return optimizer


def _function(kind: _Kind, text: str) -> Any:
    """Return a loss or a metric."""
    thing, args, options = _named(kind, text)
    if isinstance(thing, type):
        thing = _called(kind, text, thing, args, options)
    elif args:
        raise CannotLoad(
            f"{text!r} cannot be {kind.name}: {kind.name} takes its options by name"
        )
    elif options:
        thing = _called(kind, text, partial, [thing], options)
    if not callable(thing) or isinstance(thing, Layer):
        raise CannotLoad(f"{text!r} is not {kind.name}: expected a function")
    return thing


def _named(kind: _Kind, text: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """Return what `text` names, and the arguments in it, by position and by name."""
    custom = _CUSTOM.fullmatch(text.strip())
    # The name of a custom object is not Python, so another name replaces it.
    source = f"custom{custom['arguments'] or ''}" if custom else text.strip()
    expected = (
        f"expected {kind.name} such as {kind.example}, or a custom one as "
        f"module:object, got {text!r}"
    )
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise CannotLoad(expected) from error
    call = tree if isinstance(tree, ast.Call) else None
    name = call.func if call else tree
    if not isinstance(name, ast.Name):
        raise CannotLoad(expected)
    if custom:
        thing = load(custom["name"], kind.custom)
    elif name.id in kind.names:
        thing = getattr(kind.module, name.id)
    else:
        raise CannotLoad(
            f"no {kind.noun} is called {name.id!r}; there are {', '.join(kind.names)}, "
            "and custom ones as module:object"
        )
    args, options = _arguments(kind, text, call) if call else ([], {})
    return thing, args, options


def _arguments(
    kind: _Kind, text: str, call: ast.Call
) -> tuple[list[Any], dict[str, Any]]:
    fault = f"{text!r} cannot be {kind.name}"
    try:
        args = [ast.literal_eval(arg) for arg in call.args]
        options: dict[Any, Any] = {
            keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords
        }
    except (ValueError, TypeError, SyntaxError) as error:
        raise CannotLoad(
            f"{fault}: arguments must be literals, such as numbers and strings"
        ) from error
    if None in options:  # ast's name for the keyword of **
        raise CannotLoad(f"{fault}: ** is not supported here")
    return args, options


def _called(
    kind: _Kind,
    text: str,
    function: Callable[..., Any],
    args: list[Any],
    options: dict[str, Any],
) -> Any:
    try:
        return function(*args, **options)
    except (Exception, SystemExit) as error:  # a custom function may raise anything
        is_ours = not _CUSTOM.fullmatch(text.strip())
        reason = " ".join(str(error).split()) if is_ours else _one_line(error)
        raise CannotLoad(f"{text!r} cannot be {kind.name}: {reason}") from error
