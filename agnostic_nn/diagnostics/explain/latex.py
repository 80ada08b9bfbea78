r"""Convert and complete formulas: names of arrays as LaTeX, and LaTeX as plain text.

In a formula `@x` and `@y` mark the input and the output of a layer, `@weight` the
parameter with that path, and `@dx`, `@dy` and `@dweight` the gradients of the loss with
respect to them. `formula_with_names` replaces the marks by names in a network, such as
z_1.
"""

import re
from collections.abc import Mapping

__all__ = ["formula_with_names", "gradient", "indexed", "name_of", "plain"]


def gradient(name: str) -> str:
    """Return the gradient of the loss with respect to `name`, as LaTeX."""
    return rf"\frac{{\partial L}}{{\partial {name}}}"


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
        return gradient(name) if is_gradient else name

    return _MARK.sub(replacement, formula)


# "@", an optional "d" for a gradient, the name, and an optional index, which is one
# character or a group in braces.
_MARK = re.compile(r"@(d?)([a-z]+(?:\.[a-z]+)?)(?:_(\{(?:[^{}]|\{[^{}]*\})*\}|\w))?")


def _with_index(name: str, index: str) -> str:
    """Add an index to a name that may already have one: z_1 and t give z_{1, t}."""
    letter, _, subscript = name.partition("_")
    parts = [
        part.removeprefix("{").removesuffix("}") for part in (subscript, index) if part
    ]
    return rf"{letter}_{{{', '.join(parts)}}}"


_SYMBOLS = {
    r"\partial": "∂",
    r"\sum": "Σ",
    r"\top": "ᵀ",
    r"\odot": "∘",
    r"\cdot": "·",
    r"\le": "≤",
    r"\sigma": "σ",
    r"\varepsilon": "ε",
    r"\quad": "  ",
    r"\;": " ",
}
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|;)")


def plain(latex: str) -> str:
    r"""Convert LaTeX to plain text: \frac{\partial L}{\partial W_1} is ∂L/∂W1.

    Commands without a symbol, such as \exp, are replaced by their names.
    """
    text = []
    at = 0
    while at < len(latex):
        command = _COMMAND.match(latex, at)
        if command is not None:
            part, at = _command(command[0], latex, command.end())
        elif latex[at] == "{":
            inside, at = _group(latex, at)
            part = plain(inside)
        elif latex[at] in "_^":
            convert = _superscript if latex[at] == "^" else _subscript
            inside, at = _group(latex, at + 1)
            part = convert(inside)
        else:
            part = latex[at]
            at += 1
        text.append(part)
    return re.sub(r" {3,}", "  ", "".join(text)).replace(" ,", ",").strip()


def _command(name: str, latex: str, at: int) -> tuple[str, int]:
    """Return a command and its arguments, which begin at `at`, as text, and the end."""
    if name == r"\frac":
        numerator, at = _group(latex, at)
        denominator, at = _group(latex, at)
        over = (_parenthesized(plain(part)) for part in (numerator, denominator))
        return "/".join(over), at
    if name in (r"\mathrm", r"\text", r"\sqrt"):
        inside, at = _group(latex, at)
        text = plain(inside)
        return (f"√({text})" if name == r"\sqrt" else text), at
    if name == r"\partial":  # drop the space that ends the command in TeX
        while latex[at : at + 1] == " ":
            at += 1
    return _SYMBOLS.get(name, name[1:]), at


def _group(latex: str, at: int) -> tuple[str, int]:
    """Return the argument that begins at `at`, a group or a token, and its end."""
    if latex[at] == "\\":
        command = _COMMAND.match(latex, at)
        end = at + 1 if command is None else command.end()
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
    number = re.match(r"\d*'*", text)[0]  # type: ignore[index]
    index = text.removeprefix(number).removeprefix(", ")
    if not index or re.fullmatch(r"[A-Z]\d*|[a-z]\d+", text):
        return text
    if number and not text.startswith(f"{number}, "):
        number = ""
        index = text
    return f"_{text}" if len(text) == 1 else f"{number}[{index}]"
