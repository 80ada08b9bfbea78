"""The formula and the gradient of a layer or a loss, from its docstring.

A docstring begins with the formula, in its first paragraph and in the indented lines
that follow it. The gradient is

- the section "Gradient", or
- the first paragraph, if it has the derivative too, as in "y = …, and f'(x) = …", or
- that of another layer: "The gradient is that of `Conv1D`."

The sections "Gradient" of base classes follow, as long as the class does not override
their forward or backward.
"""

import re
import sys
from collections.abc import Iterator
from functools import partial
from inspect import cleandoc, isfunction, signature
from itertools import takewhile
from typing import Any

from ...layers import Layer
from .formulas import same_methods

__all__ = [
    "first_argument",
    "forward_text",
    "gradient_text",
    "letters_in",
    "loss_text",
]

# The letters that docstrings use for parameters. A parameter whose letter does not
# occur in the docstring is called by its name, such as `scale`.
LETTERS = {"weight": "W", "bias": "b", "recurrent": "R", "recurrent_bias": "b_n"}

_SECTION = re.compile(
    r"^Gradient\n-{4,}\n(.*?)(?=^\w[^\n]*\n-{4,}$|\Z)", re.DOTALL | re.MULTILINE
)
_REFERENCE = re.compile(r"[^.]*\bgradient (?:is that|are those) of `(\w+)`[^.]*\.")
_NO_DOCSTRING = (
    "{} has no docstring, from which `explain` would show the first paragraph, such\n"
    'as y = 2 x, and the section "Gradient".'
)
_MEAN = (  # of a loss of the library
    "The gradient is given for a single element or example. In a mean it is divided\n"
    "by their number, or by the sum of their weights."
)
_DERIVATIVE = re.compile(r"f'\(|\bd[xy]\b|∂")


def forward_text(what: Any) -> str:
    """Return the formula that the docstring of a layer or a loss begins with."""
    for _, doc in _documented(what):
        first, *others = doc.split("\n\n")
        indented = takewhile(lambda paragraph: paragraph.startswith("    "), others)
        return "\n\n".join([first, *indented])
    return _NO_DOCSTRING.format(_name(what))


def gradient_text(what: Any) -> str:
    """Return what the docstring of a layer or a loss says about the gradient."""
    documented = list(_documented(what))
    if not documented:
        return _NO_DOCSTRING.format(_name(what))
    parts = []
    for i, (kind, doc) in enumerate(documented):
        section = _SECTION.search(doc)
        if section:
            parts.append(section[1].strip())
        elif i == 0:
            parts += _elsewhere(kind, doc)
    if not parts:
        return f'The docstring of {_name(what)} has no section "Gradient".'
    return "\n\n".join(dict.fromkeys(parts))


def loss_text(loss: Any) -> str:
    """Return the formula and the gradient of a loss."""
    parts = dict.fromkeys((forward_text(loss), gradient_text(loss)))
    function = loss.func if isinstance(loss, partial) else loss
    if isfunction(function) and hasattr(function, "with_divisor"):
        parts[_MEAN] = None
    return "\n\n".join(parts)


def first_argument(loss: Any) -> str:
    """Return what a loss calls its first argument: y, logits, ..."""
    try:
        return next(iter(signature(loss).parameters), "y")
    except ValueError:  # a function written in C may have no signature
        return "y"


def letters_in(text: str) -> dict[str, str]:
    """Return the letters of those parameters whose letter occurs in a docstring."""
    return {
        name: letter
        for name, letter in LETTERS.items()
        if re.search(rf"(?<!\w)d?{letter}(?![^\W_])", text)
    }


def _elsewhere(kind: Any, doc: str) -> Iterator[str]:
    """Yield the gradient from a docstring without a section "Gradient"."""
    first = doc.partition("\n\n")[0]
    if _DERIVATIVE.search(first):
        yield first
    reference = _REFERENCE.search(" ".join(doc.split()))
    if reference:
        yield reference[0].strip()
        other = getattr(sys.modules[kind.__module__], reference[1], None)
        section = _SECTION.search(cleandoc(other.__doc__ or ""))
        if section:
            yield section[1].strip()


def _documented(what: Any) -> Iterator[tuple[Any, str]]:
    """Yield the function or the classes that describe `what`, and their docstrings."""
    what = what.func if isinstance(what, partial) else what
    if isinstance(what, type):
        kinds: tuple[Any, ...] = what.__mro__
    else:
        kinds = (what,) if hasattr(what, "__name__") else type(what).__mro__
    for kind in kinds:
        if kind in (Layer, object):
            return
        own = vars(kind).get("__doc__") if isinstance(kind, type) else kind.__doc__
        doc = cleandoc(own or "")
        # `dataclass` sets the signature as the docstring of a class without one.
        is_signature = doc.startswith(f"{kind.__name__}(")
        if doc and not is_signature and same_methods(kinds[0], kind):
            yield kind, doc


def _name(what: Any) -> str:
    what = what.func if isinstance(what, partial) else what
    name: str = getattr(what, "__name__", type(what).__name__)
    return name
