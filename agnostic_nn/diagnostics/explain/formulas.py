"""LaTeX formulas of the layers and losses that the five notebooks use.

They follow the derivation in the docstring and use its letters; `latex.py` explains the
marks, such as `@x`. All other layers and losses are described by their docstring, see
`docstrings.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ... import layers, losses
from ...layers import Layer

__all__ = ["Formula", "formula_of", "same_methods"]


@dataclass(frozen=True)
class Formula:
    """The formulas of a layer or a loss.

    forward: an equation.
    backward: right sides of the gradients, by input ("x") or parameter.
    letters: the letter of each parameter.
    more: equations that define other symbols in `forward` and `backward`.
    """

    forward: str
    backward: Mapping[str, str] = field(default_factory=dict)
    letters: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()


FORMULAS: dict[Any, Formula] = {
    layers.Dense: Formula(
        r"@y = @x @weight + @bias",
        {"x": r"@dy @weight^\top", "weight": r"@x^\top @dy", "bias": r"\sum @dy"},
        {"weight": "W", "bias": "b"},
    ),
    layers.ReLU: Formula(r"@y = \max(@x, 0)", {"x": r"@dy \odot [@x > 0]"}),
    losses.mean_squared_error: Formula(
        r"L = \mathrm{mean}((@y - t)^2)", {"y": r"\frac{2}{n} (@y - t)"}
    ),
    losses.softmax_cross_entropy: Formula(
        r"L = \mathrm{mean}(-\sum_k p_k \log q_k)",
        {"y": r"\frac{1}{n} (q - p)"},
        more=(r"q = \mathrm{softmax}(@y), \quad p = \text{the target, one-hot}",),
    ),
}


def formula_of(what: Any) -> Formula | None:
    """Return the formula of a layer or of a loss without options, or None.

    A custom layer or loss may define one as its attribute `formula`. A subclass uses
    the formula of its base only if it computes the same.
    """
    custom = getattr(what, "formula", None)
    if isinstance(custom, Formula):
        return custom
    if not isinstance(what, Layer):
        plain_loss = not isinstance(what, partial) or not (what.keywords or what.args)
        return FORMULAS.get(what) if plain_loss and callable(what) else None
    for kind in type(what).__mro__:
        if kind in FORMULAS:
            return FORMULAS[kind] if same_methods(type(what), kind) else None
    return None


def same_methods(kind: type, base: type) -> bool:
    """Return whether `kind` inherits the forward and the backward pass of `base`."""
    methods = ["forward", "backward", "backward_params"]
    if base is not layers.Elementwise:  # which leaves these two to its subclasses
        methods += ["value", "slope"]
    return all(
        getattr(kind, name, None) is getattr(base, name, None) for name in methods
    )
