r"""Formulas of layers and losses, forward and backward, as LaTeX and as plain text.

Each formula follows the derivation in the layer's docstring and uses its letters. `@x`
and `@y` mark the input and the output, `@weight` the parameter with that path, and
`@dx`, `@dy` and `@dweight` the gradients of the loss with respect to them.
`formula_with_names` replaces the marks by names in a network, such as z_1. Layers and
losses without an entry are described by the section "Gradient" of their docstring.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import cleandoc
from typing import Any

from ... import layers, losses
from ...layers import Layer

__all__ = [
    "Formula",
    "formula_of",
    "formula_with_names",
    "gradient_section",
    "indexed",
    "name_of",
    "plain",
]


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


def _elementwise(value: str, slope: str) -> Formula:
    return Formula(f"@y = {value}", {"x": rf"@dy \odot {slope}"})


def _affine(forward: str, dx: str, dweight: str) -> Formula:
    backward = {"x": dx, "weight": dweight, "bias": r"\sum @dy"}
    return Formula(forward, backward, {"weight": "W", "bias": "b"})


def _normalization(over: str, dx: str, more: str) -> Formula:
    return Formula(
        r"@y = \hat{x} \cdot @scale + @bias",
        {"x": dx, "scale": r"\sum @dy \odot \hat{x}", "bias": r"\sum @dy"},
        {"scale": r"\gamma", "bias": r"\beta"},
        (more + rf" \quad \text{{over {over}}}", r"g = @dy \cdot @scale"),
    )


_STANDARDIZED = r"\hat{x} = \frac{@x - \mu}{s}, \quad s = \sqrt{v + \varepsilon}"
_STANDARDIZED_DX = (
    r"\frac{1}{s} (g - \mathrm{mean}(g) - \hat{x} \odot \mathrm{mean}(g \odot \hat{x}))"
)
_MAX_POOL = Formula(
    r"@y_o = @x_{p(o)}, \quad p(o) = \text{the first position in window } o \text{ where } @x"
    r" \text{ is largest}",
    {"x": r"\sum @dy_o \text{ over all } o \text{ with } p(o) = i"},
)
_AVERAGE_POOL = Formula(
    r"@y_o = \frac{1}{c} \sum @x_i \text{ over } i \text{ in window } o",
    {
        "x": r"\sum \frac{1}{c} @dy_o \text{ over all } o \text{ with } i \text{ in window } o"
    },
)
_CONVOLUTION = _affine(
    r"@y_o = \sum_k @x_{o s + k d - \mathrm{low}} @weight_k + @bias",
    r"\sum @dy_o @weight_k^\top \text{ over all } o, k \text{ with } o s + k d - \mathrm{low} = i",
    r"\sum @x_{o s + k d - \mathrm{low}}^\top @dy_o \text{ for each } k",
)
_TRANSPOSED_CONVOLUTION = _affine(
    r"@y_i = \sum @x_o @weight_k^\top + @bias \text{ over all } o, k \text{ with }"
    r" o s + k d - \mathrm{low} = i",
    r"\sum_k @dy_{o s + k d - \mathrm{low}} @weight_k",
    r"\sum (@dy_{o s + k d - \mathrm{low}})^\top @x_o \text{ for each } k",
)
_DROPOUT = Formula(r"@y = @x \odot m", {"x": r"@dy \odot m"}, more=(
    r"m = 0 \text{ with probability } \mathrm{rate}, \text{ else } \frac{1}{1 - \mathrm{rate}}",
))  # fmt: skip
_RECURRENT = {
    "x": r"dz_t @weight^\top",
    "weight": r"\sum_t @x_t^\top dz_t",
    "bias": r"\sum_t dz_t",
    "recurrent": r"\sum_t h_{t-1}^\top dz_t",
}
_GATES = {"weight": "W", "bias": "b", "recurrent": "R"}
_TANH_GELU = Formula(
    r"@y = \frac{1}{2} @x \odot (1 + \tanh u)",
    {"x": r"\frac{1}{2} @dy \odot (1 + \tanh u + @x \odot u' \odot (1 - \tanh^2 u))"},
    more=(
        r"u = \sqrt{\frac{2}{\pi}} (@x + 0.044715 @x^3)",
        r"u' = \sqrt{\frac{2}{\pi}} (1 + 3 \cdot 0.044715 @x^2)",
    ),
)
_HALVES = (r"(a, b) = \text{the halves of } @x",)


def _gated(gate: str) -> Formula:
    dx = rf"(@dy \odot {gate}(b), \; @dy \odot a \odot {gate}'(b))"
    return Formula(rf"@y = a \odot {gate}(b)", {"x": dx}, more=_HALVES)


FORMULAS: dict[Any, Formula] = {
    layers.Dense: _affine(
        r"@y = @x @weight + @bias", r"@dy @weight^\top", r"@x^\top @dy"
    ),
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _CONVOLUTION),
    **dict.fromkeys(
        (layers.ConvTranspose1D, layers.ConvTranspose2D, layers.ConvTranspose3D),
        _TRANSPOSED_CONVOLUTION,
    ),
    layers.ReLU: _elementwise(r"\max(@x, 0)", "[@x > 0]"),
    layers.ReLU6: _elementwise(r"\min(\max(@x, 0), 6)", "[0 < @x < 6]"),
    layers.LeakyReLU: _elementwise(
        r"\max(@x, 0) + s \min(@x, 0)", r"([@x > 0] + s [@x \le 0])"
    ),
    layers.ELU: _elementwise(
        r"\max(@x, 0) + \alpha (\exp(\min(@x, 0)) - 1)",
        r"([@x > 0] + \alpha \exp(@x) [@x \le 0])",
    ),
    layers.Sigmoid: _elementwise(
        r"\sigma(@x) = \frac{1}{1 + \exp(-@x)}", r"\sigma(@x) \odot \sigma(-@x)"
    ),
    layers.Tanh: _elementwise(r"\tanh @x", r"(1 - \tanh^2 @x)"),
    layers.SiLU: _elementwise(
        r"@x \odot \sigma(@x)", r"\sigma(@x) \odot (1 + @x \odot \sigma(-@x))"
    ),
    layers.Softplus: _elementwise(r"\log(1 + \exp @x)", r"\sigma(@x)"),
    layers.Softsign: _elementwise(r"\frac{@x}{1 + |@x|}", r"\frac{1}{(1 + |@x|)^2}"),
    layers.HardTanh: _elementwise(
        r"\min(\max(@x, \mathrm{low}), \mathrm{high})",
        r"[\mathrm{low} < @x < \mathrm{high}]",
    ),
    layers.GELU: _elementwise(
        r"@x \odot \Phi(@x)", r"(\Phi(@x) + @x \odot \varphi(@x))"
    ),
    layers.Mish: _elementwise(
        r"@x \odot \tanh(\mathrm{softplus}(@x))",
        r"(\tanh s + @x \odot \sigma(@x) \odot (1 - \tanh^2 s)), \; s = \mathrm{softplus}(@x)",
    ),
    layers.PReLU: Formula(
        r"@y = \max(@x, 0) + @slope \odot \min(@x, 0)",
        {
            "x": r"@dy \odot ([@x > 0] + @slope \odot [@x \le 0])",
            "slope": r"\sum @dy \odot \min(@x, 0)",
        },
        {"slope": "a"},
    ),
    layers.GLU: _gated(r"\sigma"),
    layers.GEGLU: _gated(r"\mathrm{GELU}"),
    layers.SwiGLU: _gated(r"\mathrm{SiLU}"),
    layers.Softmax: Formula(
        r"@y = \frac{\exp @x}{\sum \exp @x}",
        {"x": r"@y \odot (@dy - \sum @dy \odot @y)"},
    ),
    layers.LogSoftmax: Formula(
        r"@y = @x - \log \sum \exp @x", {"x": r"@dy - \exp(@y) \odot \sum @dy"}
    ),
    layers.BatchNorm: _normalization(
        "the batch, channel by channel", _STANDARDIZED_DX, _STANDARDIZED
    ),
    layers.LayerNorm: _normalization("each row", _STANDARDIZED_DX, _STANDARDIZED),
    layers.InstanceNorm: _normalization(
        "the positions of each example and channel", _STANDARDIZED_DX, _STANDARDIZED
    ),
    layers.GroupNorm: _normalization(
        "each group of channels", _STANDARDIZED_DX, _STANDARDIZED
    ),
    layers.RMSNorm: _normalization(
        "each row",
        r"\frac{1}{s} (g - \hat{x} \odot \mathrm{mean}(g \odot \hat{x}))",
        r"\hat{x} = \frac{@x}{s}, \quad s = \sqrt{\mathrm{mean}(@x^2) + \varepsilon}",
    ),
    **dict.fromkeys((layers.MaxPool1D, layers.MaxPool2D, layers.MaxPool3D), _MAX_POOL),
    **dict.fromkeys((layers.GlobalMaxPool, layers.AdaptiveMaxPool), _MAX_POOL),
    **dict.fromkeys(
        (layers.AveragePool1D, layers.AveragePool2D, layers.AveragePool3D),
        _AVERAGE_POOL,
    ),
    **dict.fromkeys(
        (layers.GlobalAveragePool, layers.AdaptiveAveragePool), _AVERAGE_POOL
    ),
    layers.Dropout: _DROPOUT,
    layers.SpatialDropout: _DROPOUT,
    layers.DropPath: _DROPOUT,
    layers.Embedding: Formula(
        r"@y = \text{row } @x \text{ of } @weight",
        {"weight": r"\text{in row } k, \; \sum @dy \text{ where } @x = k"},
        {"weight": "E"},
    ),
    layers.Unembedding: Formula(
        r"@y = @x @weight^\top",
        {"x": "@dy @weight", "weight": r"(@dy)^\top @x"},
        {"weight": "E"},
    ),
    layers.PositionEmbedding: Formula(
        r"@y_t = @x_t + @weight_t",
        {
            "x": "@dy",
            "weight": r"\text{in row } t, \; \sum @dy_t \text{ over the batch}",
        },
        {"weight": "P"},
    ),
    layers.RNN: Formula(
        r"@y_t = h_t = f(@x_t @weight + @bias + h_{t-1} @recurrent)",
        _RECURRENT,
        _GATES,
        (r"dh_t = @dy_t + dz_{t+1} @recurrent^\top, \quad dz_t = dh_t \odot f'",),
    ),
    layers.LSTM: Formula(
        r"@y_t = h_t = \sigma(o) \odot \tanh c_t, \quad"
        r" c_t = \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh g",
        _RECURRENT,
        _GATES,
        (
            r"(i, f, g, o) = z_t = @x_t @weight + @bias + h_{t-1} @recurrent",
            r"dh_t = @dy_t + dz_{t+1} @recurrent^\top",
            r"dc_t = dc_{t+1} \odot \sigma(f_{t+1}) + dh_t \odot \sigma(o) \odot (1 - \tanh^2 c_t)",
            r"dz_i = dc \odot \tanh g \odot \sigma'(i), \quad"
            r" dz_f = dc \odot c_{t-1} \odot \sigma'(f)",
            r"dz_g = dc \odot \sigma(i) \odot (1 - \tanh^2 g), \quad"
            r" dz_o = dh \odot \tanh c_t \odot \sigma'(o)",
        ),
    ),
    layers.GRU: Formula(
        r"@y_t = h_t = (1 - u) \odot n + u \odot h_{t-1}",
        {name: rule for name, rule in _RECURRENT.items() if name != "recurrent"},
        _GATES | {"recurrent_bias": "b_n"},
        (
            r"r = \sigma(z_r + h_{t-1} R_r), \quad u = \sigma(z_u + h_{t-1} R_u)",
            r"n = \tanh(z_n + r \odot (h_{t-1} R_n + b_n)), \quad z_t = @x_t @weight + @bias",
            r"dz_n = dh \odot (1 - u) \odot \tanh', \quad"
            r" dz_u = dh \odot (h_{t-1} - n) \odot \sigma'",
        ),
    ),
    layers.MultiHeadAttention: Formula(
        r"@y = O @output.weight + @output.bias, \quad O = P V, \quad"
        r" P = \mathrm{softmax}(\frac{1}{\sqrt{d}} Q K^\top)",
        {
            "x": r"dQ @query.weight^\top + dK @key.weight^\top + dV @value.weight^\top",
            "output.weight": r"O^\top @dy",
            "output.bias": r"\sum @dy",
            **{
                f"{part}.{leaf}": rule.format(letter)
                for part, letter in (("query", "Q"), ("key", "K"), ("value", "V"))
                for leaf, rule in (("weight", r"@x^\top d{}"), ("bias", r"\sum d{}"))
            },
        },
        {
            f"{part}.{leaf}": f"{letter}_{part[0].upper()}"
            for part in ("query", "key", "value", "output")
            for leaf, letter in (("weight", "W"), ("bias", "b"))
        },
        (
            r"Q = @x @query.weight + @query.bias, \quad K = @x @key.weight + @key.bias",
            r"V = @x @value.weight + @value.bias",
            r"dO = @dy @output.weight^\top, \quad dV = P^\top dO, \quad G = dO V^\top",
            r"dS = P \odot (G - \sum G \odot P)",
            r"dQ = \frac{1}{\sqrt{d}} dS K, \quad dK = \frac{1}{\sqrt{d}} dS^\top Q",
        ),
    ),
    layers.Flatten: Formula(
        r"@y = @x \text{, reshaped to one row per example}",
        {"x": r"@dy \text{, reshaped to the shape of } @x"},
    ),
    layers.Reshape: Formula(
        r"@y = @x \text{, reshaped}",
        {"x": r"@dy \text{, reshaped to the shape of } @x"},
    ),
    layers.Transpose: Formula(
        r"@y = @x \text{ with permuted axes}",
        {"x": r"@dy \text{ with its axes in the order of } @x"},
    ),
    losses.mean_squared_error: Formula(
        r"L = \mathrm{mean}((@y - t)^2)", {"y": r"\frac{2}{n} (@y - t)"}
    ),
    losses.mean_absolute_error: Formula(
        r"L = \mathrm{mean} |@y - t|", {"y": r"\frac{1}{n} \mathrm{sign}(@y - t)"}
    ),
    losses.huber: Formula(
        r"L = \mathrm{mean}(c \odot (e - \frac{1}{2} c))",
        {"y": r"\frac{1}{n} c"},
        more=(r"e = @y - t, \quad c = \mathrm{clip}(e, -\delta, \delta)",),
    ),
    losses.log_cosh: Formula(
        r"L = \mathrm{mean}(\log \cosh(@y - t))", {"y": r"\frac{1}{n} \tanh(@y - t)"}
    ),
    losses.softmax_cross_entropy: Formula(
        r"L = \mathrm{mean}(-\sum_k p_k \log q_k)",
        {"y": r"\frac{1}{n} (q - p)"},
        more=(r"q = \mathrm{softmax}(@y), \quad p = \text{the target, one-hot}",),
    ),
    losses.negative_log_likelihood: Formula(
        r"L = \mathrm{mean}(-\sum_k p_k @y_k)",
        {"y": r"-\frac{1}{n} p"},
        more=(r"p = \text{the target, one-hot}",),
    ),
    losses.binary_cross_entropy: Formula(
        r"L = \mathrm{mean}(-t \log \sigma(@y) - (1 - t) \log \sigma(-@y))",
        {"y": r"\frac{1}{n} (\sigma(@y) - t)"},
    ),
    losses.hinge: Formula(
        r"L = \mathrm{mean}(\max(0, 1 - t \odot @y))",
        {"y": r"-\frac{1}{n} t \odot [t \odot @y < 1]"},
    ),
    losses.squared_hinge: Formula(
        r"L = \mathrm{mean}(\max(0, 1 - t \odot @y)^2)",
        {"y": r"-\frac{2}{n} t \odot \max(0, 1 - t \odot @y)"},
    ),
    losses.poisson_nll: Formula(
        r"L = \mathrm{mean}(\exp(@y) - t \odot @y)",
        {"y": r"\frac{1}{n} (\exp(@y) - t)"},
    ),
}


def formula_of(what: Any) -> Formula | None:
    """Return the formula of a layer or of a loss without options, or None.

    A custom layer or loss may define one as its attribute `formula`. A subclass uses
    the formula of its base only if it overrides neither forward nor backward.
    """
    custom = getattr(what, "formula", None)
    if isinstance(custom, Formula):
        return custom
    if not isinstance(what, Layer):
        plain_loss = not isinstance(what, partial) or not (what.keywords or what.args)
        return FORMULAS.get(what) if plain_loss and callable(what) else None
    for kind in type(what).__mro__:
        if kind in FORMULAS:
            return (
                _for_options(FORMULAS[kind], what)
                if _same_methods(type(what), kind)
                else None
            )
    return None


def _same_methods(kind: type, base: type) -> bool:
    methods = ("forward", "backward", "value", "slope")
    return all(
        getattr(kind, name, None) is getattr(base, name, None) for name in methods
    )


def _for_options(formula: Formula, layer: Layer) -> Formula:
    """Return the formula for a layer's options.

    The approximate GELU has another one; a GRU with `reset="before"` has none.
    """
    if getattr(layer, "approximate", False):
        return _TANH_GELU
    return Formula("") if getattr(layer, "reset", "after") == "before" else formula


def name_of(letters: Mapping[str, str], path: str, index: str) -> str:
    r"""Return a parameter's letter, indexed by the rest of its path and `index`.

    name_of({"weight": "W"}, "0.forward.weight", "1") is W_{0 forward 1}.
    """
    *before, last = path.split(".")
    letter = letters.get(path)
    if letter is None:
        words = last.replace("_", " ")
        letter = letters.get(last, rf"\mathrm{{{words}}}")
        index = " ".join(filter(None, (*before, index)))
    base, _, subscript = letter.partition("_")
    return indexed(base, subscript + index)


def indexed(letter: str, index: str) -> str:
    """Return a letter with an index, as LaTeX."""
    if not index:
        return letter
    if " " in index or not index.isascii():
        return rf"{letter}_{{\mathrm{{{index}}}}}"
    return f"{letter}_{index}" if len(index) == 1 else f"{letter}_{{{index}}}"


def formula_with_names(formula: str, names: Mapping[str, str]) -> str:
    """Replace the marks in a formula by names, and drop terms whose mark has no name.

    A Dense without a bias has no name for `@bias`, so `+ @bias` is left out.
    """
    for _, name, _ in _MARK.findall(formula):
        if name not in names:
            mark = re.escape(f"@{name}")
            formula = re.sub(rf"\s*(\+|\\cdot)\s*{mark}(?!\w)", "", formula)

    def replacement(match: re.Match[str]) -> str:
        is_gradient, mark, index = match.groups()
        if mark not in names:
            return match[0]
        name = names[mark] if index is None else _with_index(names[mark], index)
        return rf"\frac{{\partial L}}{{\partial {name}}}" if is_gradient else name

    return _MARK.sub(replacement, formula)


# "@", an optional "d" for a gradient, the name, and an optional index, which is one
# character or a group in braces.
_MARK = re.compile(
    r"@(d?)(recurrent_bias|[a-z]+(?:\.[a-z]+)?)(?:_(\{(?:[^{}]|\{[^{}]*\})*\}|\w))?"
)


def _with_index(name: str, index: str) -> str:
    """Add an index to a name that may already have one: z_1 and t give z_{1, t}."""
    letter, _, subscript = name.partition("_")
    parts = [
        part.removeprefix("{").removesuffix("}") for part in (subscript, index) if part
    ]
    return rf"{letter}_{{{', '.join(parts)}}}"


_SYMBOLS = {
    r"\partial": "∂", r"\sum": "Σ", r"\top": "ᵀ", r"\odot": "∘", r"\cdot": "·", r"\le": "≤",
    r"\sigma": "σ", r"\alpha": "α", r"\gamma": "γ", r"\beta": "β", r"\varepsilon": "ε",
    r"\Phi": "Φ", r"\varphi": "φ", r"\mu": "μ", r"\delta": "δ",
    r"\pi": "π", r"\quad": "  ", r"\;": " ",
    **{rf"\{name}": name for name in ("max", "min", "exp", "log", "tanh", "cosh")},
}  # fmt: skip
_HATS = {"x": "x̂"}


def plain(latex: str) -> str:
    r"""Convert LaTeX to plain text: \frac{\partial L}{\partial W_1} is ∂L/∂W1."""
    text = []
    at = 0
    while at < len(latex):
        command = re.compile(r"\\(?:[A-Za-z]+|;)").match(latex, at)
        if command is None:
            character = latex[at]
            at += 1
            if character in "_^":
                inside, at = _group(latex, at)
                text.append(
                    _superscript(inside) if character == "^" else _subscript(inside)
                )
            elif character == "{":
                inside, at = _group(latex, at - 1)
                text.append(plain(inside))
            else:
                text.append(character)
            continue
        name = command[0]
        at = command.end()
        if name == r"\frac":
            numerator, at = _group(latex, at)
            denominator, at = _group(latex, at)
            text.append(
                f"{_parenthesized(plain(numerator))}/{_parenthesized(plain(denominator))}"
            )
        elif name in (r"\mathrm", r"\text", r"\sqrt", r"\hat"):
            inside, at = _group(latex, at)
            if name == r"\sqrt":
                text.append(f"√({plain(inside)})")
            else:
                text.append(_HATS[inside] if name == r"\hat" else plain(inside))
        else:
            if name == r"\partial":  # drop the space that ends the command in TeX
                at += len(latex[at:]) - len(latex[at:].lstrip())
            text.append(_SYMBOLS[name])
    return re.sub(r" {3,}", "  ", "".join(text)).replace(" ,", ",").strip()


def _group(latex: str, at: int) -> tuple[str, int]:
    """Return the argument that begins at `at`, a group or a token, and its end."""
    if latex[at] == "\\":
        end = re.compile(r"\\[A-Za-z]+").match(latex, at).end()  # type: ignore[union-attr]
        return latex[at:end], end
    if latex[at] != "{":
        return latex[at], at + 1
    depth = 0
    for end in range(at, len(latex)):
        depth += (latex[end] == "{") - (latex[end] == "}")
        if depth == 0:
            return latex[at + 1 : end], end + 1
    raise ValueError(f"no closing brace in {latex[at:]!r}")


def _parenthesized(text: str) -> str:
    return f"({text})" if " " in re.sub(r"\[.*?\]", "", text) else text


def _superscript(inside: str) -> str:
    text = plain(inside)
    return {"ᵀ": "ᵀ", "2": "²", "3": "³"}.get(text, f"^{text}")


def _subscript(inside: str) -> str:
    """Format an index: numbers follow the letter (W1), others get brackets (h[t-1])."""
    text = plain(inside)
    number, index = re.fullmatch(r"(\d*'*)(?:, )?(.*)", text).groups()  # type: ignore[union-attr]
    if not index or re.fullmatch(r"[A-Z]\d*|[a-z]\d+", text):
        return text
    if number and not text.startswith(f"{number}, "):
        number = ""
        index = text
    return f"_{text}" if len(text) == 1 else f"{number}[{index}]"


def gradient_section(what: Any) -> str:
    """Return the section "Gradient" of a docstring, of a layer or loss or its module.

    If there is none, return the first paragraph of the docstring.
    """
    what = what.func if isinstance(what, partial) else what
    kinds = type(what).__mro__ if not hasattr(what, "__name__") else (what,)
    docs = [
        vars(kind).get("__doc__") if isinstance(kind, type) else kind.__doc__
        for kind in kinds
    ]
    modules = dict.fromkeys(kind.__module__ for kind in kinds if kind is not object)
    docs += [getattr(sys.modules.get(name), "__doc__", None) for name in modules]
    for text in filter(None, docs):
        section = re.search(
            r"^Gradient[^\n]*\n-{4,}\n(.*?)(?=^\w[^\n]*\n-{4,}$|\Z)",
            cleandoc(text),
            re.DOTALL | re.MULTILINE,
        )
        if section:
            return section[1].strip()
    return cleandoc(docs[0] or "").partition("\n\n")[0]
