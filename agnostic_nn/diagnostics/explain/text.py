"""The report on one batch, and its plain text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np

from ...blocks import Freeze, LoRA
from ...core.precisions import PRECISION_NAMES
from ...core.trees import leaves, named_leaves
from ...display.tables import TERMINAL_WIDTH, paths_joined, table
from ...layers import Layer
from .docstrings import forward_text, gradient_text
from .flow import Node
from .formulas import Formula, formula_of
from .latex import formula_with_names, gradient, plain
from .nonfinite import NonFinite
from .numbers import array_stats, format_number, format_rows, format_share, is_small
from .remarks import NOT_FINITE, Finding, flat_share, gradient_ratio

__all__ = [
    "Check",
    "Line",
    "Report",
    "Saved",
    "describe_saved",
    "format_lines",
]


@dataclass(frozen=True)
class Saved:
    """An array that a layer saved for backward.

    name: empty if the array is neither an input nor an output of the layer.
    bytes: 0 if an earlier layer has already saved the same memory.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Check:
    """A gradient check of one entry of a parameter.

    gradient: from the layer's backward. difference: the central difference
    (L(θ+h) - L(θ-h)) / 2h, computed by NumPy in float64.
    kink: whether the two disagree where the loss is not smooth.
    """

    name: str
    index: tuple[int, ...]
    gradient: float
    difference: float
    agrees: bool
    kink: bool

    def __str__(self) -> str:
        entry = f"∂L/∂{plain(self.name)}{list(self.index)}"
        difference = round(self.difference, 8) + 0.0  # + 0.0 turns -0.0 into 0.0
        text = f"{entry} = {self.gradient:.8g}, by central difference {difference:.6g}"
        if self.agrees:
            return text
        return f"{text}: {'there is a kink nearby' if self.kink else 'these differ'}"


@dataclass(frozen=True)
class Line:
    """An array with its name as LaTeX.

    rule: the right side of its formula, if known.
    weight: whether the array is a parameter or the gradient of one.
    """

    name: str
    array: np.ndarray | None
    rule: str = ""
    weight: bool = False

    @property
    def head(self) -> str:
        """The name, followed by the rule if there is one."""
        return f"{self.name} = {self.rule}" if self.rule else self.name


def describe_saved(saved: tuple[Saved, ...]) -> str:
    """Describe the arrays that a layer saved for backward."""
    parts = []
    for array in saved:
        name = plain(array.name) if array.name else "an array"
        size = f"{array.bytes:,} bytes" if array.bytes else "already saved"
        parts.append(f"{name} {array.shape}, {size}")
    return "; ".join(parts) or "nothing"


@dataclass(frozen=True)
class Report:
    """The forward and backward pass of one batch; `str()` returns it as plain text.

    nodes: inputs, layer calls and merges, in the order of the forward pass.
    output: the numbers of the nodes that produced y.
    loss_text: formula and gradient in the docstring of a loss that has none as LaTeX.
    loss_argument: what the loss calls y.
    saved, checks: keyed by the number of the node.
    non_finite: the first value that is NaN or infinite, or None. It is also the first
    of the findings.
    """

    model: Layer
    loss_name: str
    backend: str
    rows: int
    nodes: tuple[Node, ...]
    output: tuple[int, ...]
    target: Any
    loss: np.ndarray
    dy: Any
    loss_formula: Formula | None
    loss_text: str
    loss_argument: str
    saved: dict[int, tuple[Saved, ...]]
    checks: dict[int, Check]
    non_finite: NonFinite | None = None
    findings: tuple[Finding, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join(_text(self))

    @property
    def value(self) -> str:
        """The loss as text; an unreduced loss is summed."""
        return format_number(np.sum(self.loss), self.loss.dtype)

    @property
    def name(self) -> str:
        """The name of the model's output, as LaTeX."""
        return ", ".join(self.nodes[number].name for number in self.output)

    def heading(self, node: Node) -> str:
        """Return the path and the layer of a node, or its name if it has no layer."""
        if node.call is None:
            return plain(node.name)
        return f"{node.call.path}  {node.call.outline}".strip()

    def blocks(self, node: Node) -> str:
        """Return the enclosing blocks of a layer, from the outside in."""
        return " › ".join(
            f"{c.path} {type(c.layer).__name__}".strip() for c in node.blocks
        )

    def merge_rule(self, node: Node) -> str:
        """Return how a merge combines its inputs, as LaTeX."""
        names = [self.nodes[edge.start].name for edge in node.edges]
        if len(node.operation) == 1:
            return f" {node.operation} ".join(names)
        return rf"\mathrm{{{node.operation}}}({', '.join(names)})"

    # --- forward ----------------------------------------------------------------------

    def rules(self, node: Node) -> list[str]:
        """Return the forward formulas of a layer as LaTeX, with their definitions."""
        formula = formula_of(node.call.layer) if node.call else None
        rules = (formula.forward, *formula.more) if formula else ()
        return [formula_with_names(rule, node.names) for rule in rules if rule]

    def forward_text(self, node: Node) -> str:
        """Return the formula in the docstring of a layer that has none as LaTeX."""
        layer = _documented(node, "forward")
        return forward_text(layer) if layer else ""

    def forward_symbols(self, node: Node) -> str:
        """Return what the symbols in `forward_text` are called in the network."""
        if _documented(node, "forward") is None:
            return ""
        names = {symbol: plain(name) for symbol, name, _ in self._inputs(node)}
        names["y"] = plain(node.name)
        for path, _ in _in_order(node.params):
            names[node.symbols[path]] = plain(node.names[path])
        return _where(names)

    def forward(self, node: Node) -> Iterator[Line]:
        """Yield the parameters and outputs of a layer."""
        for path, leaf in _in_order(node.params):
            yield Line(node.names[path], leaf, weight=True)
        outputs = list(named_leaves(node.y))
        for path, leaf in outputs:
            entry = rf"\;\mathrm{{{path}}}" if len(outputs) > 1 else ""
            yield Line(node.name + entry, leaf)

    # --- backward ---------------------------------------------------------------------

    def arrives(self, node: Node) -> str:
        """Describe where the gradient of a node's output comes from."""
        origins = ["the loss"] * (node.number in self.output)
        for reader in self.nodes:
            if not any(edge.start == node.number for edge in reader.edges):
                continue
            if reader.call is not None:
                origins.append(reader.label)
                continue
            kinds = {"+": "the sum", "×": "the product"}
            kinds |= dict.fromkeys(PRECISION_NAMES, "the conversion")
            kind = kinds.get(reader.operation, "the merge")
            block = ""
            if reader.blocks:
                innermost = reader.blocks[-1]
                block = f" of {innermost.path} {type(innermost.layer).__name__}"
            origins.append(f"{kind} {plain(reader.name)}{block}")
        if not origins:
            return "nowhere: no layer reads it"
        return " and from ".join(origins) + (", summed" if len(origins) > 1 else "")

    def remarks(self, node: Node) -> str:
        """Return remarks on a layer's backward: recomputed, frozen, or not called."""
        remarks = []
        if node.call and node.call.recomputed:
            remarks.append("recomputed during backward, because forward saved nothing")
        if any(isinstance(call.layer, Freeze | LoRA) for call in node.blocks):
            remarks.append(
                "frozen: the optimizer does not get the gradients of its parameters"
            )
        if node.loss_scale != 1.0:
            remarks.append(
                f"gradients are multiplied by {node.loss_scale:g} here, and divided by "
                "it again where they leave MixedPrecision"
            )
        if node.call and not node.call.backward_called:
            remarks.append("no gradient arrived, so its backward was not called")
        return "; ".join(remarks)

    def backward(self, node: Node) -> Iterator[Line]:
        """Yield the gradients of a layer's parameters, then of its inputs."""
        formula = formula_of(node.call.layer) if node.call else None
        rules = formula.backward if formula else {}

        def rule(path: str) -> str:
            return formula_with_names(rules.get(path, ""), node.names)

        for path, leaf in _in_order(node.grads if node.grads is not None else {}):
            yield Line(gradient(node.names[path]), leaf, rule(path), weight=True)
        sources = [self.nodes[edge.start].name for edge in node.edges]
        for name, edge in zip(sources, node.edges, strict=True):
            if edge.gradient is not None:
                # A formula has a rule for "x" only, not for other inputs.
                is_x = len(sources) == 1 or name == node.names.get("x")
                yield Line(gradient(name), edge.gradient, rule("x") if is_x else "")

    def gradient_text(self, node: Node) -> str:
        """Return the gradient in the docstring of a layer that has none as LaTeX."""
        layer = _documented(node, "backward")
        return gradient_text(layer) if layer else ""

    def gradient_symbols(self, node: Node) -> str:
        """Return what the symbols in `gradient_text` are called in the network."""
        if _documented(node, "backward") is None:
            return ""
        names = {
            f"d{symbol}": plain(gradients)
            for symbol, _, gradients in self._inputs(node)
            if gradients
        }
        names["dy"] = plain(gradient(node.name))
        for path, _ in _in_order(node.grads if node.grads is not None else {}):
            names[f"d{node.symbols[path]}"] = plain(gradient(node.names[path]))
        return _where(names)

    def _inputs(self, node: Node) -> list[tuple[str, str, str]]:
        """Return the symbol, the name and the gradient of each input, as LaTeX.

        The docstring of a layer calls an array or a tuple x, and the arrays of a dict
        by their keys.
        """
        paths = [path for path, _ in named_leaves(node.x)]
        names = [self.nodes[edge.start].name for edge in node.edges]
        gradients = [
            gradient(name) if edge.gradient is not None else ""
            for name, edge in zip(names, node.edges, strict=True)
        ]
        if isinstance(node.x, tuple):
            return [("x", _tuple(names), _tuple(gradients) if all(gradients) else "")]
        symbols = [path or "x" for path in paths]
        return list(zip(symbols, names, gradients, strict=True))

    # --- the loss ---------------------------------------------------------------------

    def loss_rules(self) -> list[str]:
        """Return the formulas of the loss, as LaTeX."""
        if self.loss_formula is None:
            return []
        rules = (self.loss_formula.forward, *self.loss_formula.more)
        return [formula_with_names(rule, {"y": self.name}) for rule in rules]

    def loss_symbols(self) -> str:
        """Return what the symbols in `loss_text` are called in the network."""
        if not self.loss_text:
            return ""
        names = [self.nodes[number].name for number in self.output]
        y = plain(names[0] if len(names) == 1 else _tuple(names))
        return _where({self.loss_argument: y, "target": "t"})

    def targets(self) -> Iterator[Line]:
        """Yield the arrays of the target."""
        targets = list(named_leaves(self.target))
        for path, leaf in targets:
            yield Line("t" if len(targets) == 1 else rf"t\;\mathrm{{{path}}}", leaf)

    def loss_gradients(self) -> Iterator[Line]:
        """Yield the gradients that the loss returns."""
        rules = self.loss_formula.backward if self.loss_formula else {}
        rule = formula_with_names(rules.get("y", ""), {"y": self.name})
        for leaf, number in zip(leaves(self.dy), self.output, strict=True):
            yield Line(gradient(self.nodes[number].name), leaf, rule)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the columns and rows of a table with one row per layer call."""
        columns = [
            *("", "layer", "output", "shape", "norm", "norm of ∂L/∂y"),
            *("‖∂L/∂x‖ / ‖∂L/∂y‖", "bytes saved"),
        ]
        rows = []
        for node in self.nodes:
            if node.call is None:
                continue
            y = leaves(node.y)[0]
            dy = leaves(node.dy)[0] if node.dy is not None else None
            rows.append(
                [
                    node.call.path,
                    type(node.call.layer).__name__,
                    plain(node.name),
                    str(tuple(y.shape)),
                    array_stats(y).norm,
                    None if dy is None else array_stats(dy).norm,
                    gradient_ratio(node),
                    sum(array.bytes for array in self.saved[node.number]),
                ]
            )
        return columns, rows


def _documented(node: Node, part: str) -> Layer | None:
    """Return the layer of a node if it has no LaTeX formula for this part."""
    if node.call is None:
        return None
    formula = formula_of(node.call.layer)
    return None if formula and getattr(formula, part) else node.call.layer


def _tuple(names: Sequence[str]) -> str:
    return f"({', '.join(names)})"


def _where(names: Mapping[str, str]) -> str:
    """Return what symbols stand for, without those that are called the same.

    Paths such as query.weight are left out: they are not symbols of a formula.
    """
    parts = [
        f"{symbol} is {name}"
        for symbol, name in names.items()
        if symbol != name and "." not in symbol
    ]
    return f"where {', '.join(parts)}" if parts else ""


def _in_order(tree: Any) -> list[tuple[str, Any]]:
    """Return the named leaves of a parameter tree, biases last."""
    return sorted(named_leaves(tree), key=lambda pair: "bias" in pair[0].split(".")[-1])


def _text(report: Report) -> Iterator[str]:
    yield f"{type(report.model).__name__}, {report.loss_name}: L = {report.value}"
    yield f"a batch of {report.rows} on {report.backend}, in training mode"
    if report.non_finite is not None:
        yield from ["", *wrap(report.non_finite.sentence, TERMINAL_WIDTH)]
    yield ""
    yield table(*paths_joined(*report.table()), width=TERMINAL_WIDTH)
    yield ""
    others = [finding for finding in report.findings if finding.kind != NOT_FINITE]
    if others:
        yield "findings"
        for finding in others:
            prefix = f"{finding.path}: " if finding.path else ""
            yield f"  {finding.kind}: {prefix}{finding.text}"
        yield ""
    yield from _forward_text(report)
    yield from _loss_text(report)
    yield from _backward_text(report)


def _forward_text(report: Report) -> Iterator[str]:
    yield from _headline("forward")
    for node in report.nodes:
        if node.call is None:
            rule = report.merge_rule(node) if node.operation else ""
            yield from _array(Line(node.name, node.y, rule), "")
            yield ""
            continue
        yield report.heading(node)
        yield from (f"  {plain(rule)}" for rule in report.rules(node))
        yield from _quoted(report.forward_text(node), report.forward_symbols(node))
        for line in report.forward(node):
            yield from _array(line, "  ")
        flat = flat_share(node)
        if flat is not None:
            yield f"  slopes below 1e-3: {format_share(flat)}"
        yield f"  saved for backward: {describe_saved(report.saved[node.number])}"
        yield ""


def _loss_text(report: Report) -> Iterator[str]:
    yield from _headline(f"the loss, {report.loss_name}")
    rules = report.loss_rules()
    yield from (f"  {plain(rule)}" for rule in rules)
    yield from _quoted(report.loss_text, report.loss_symbols())
    yield f"  L = {report.value}"
    for line in (*report.targets(), *report.loss_gradients()):
        yield from _array(line, "  ")
    yield ""


def _backward_text(report: Report) -> Iterator[str]:
    yield from _headline("backward")
    for node in reversed(report.nodes):
        name = plain(gradient(node.name))
        if node.call is None:
            if node.operation and node.dy is not None:
                unchanged = " unchanged" if node.operation == "+" else ""
                yield (
                    f"{name} arrives from {report.arrives(node)}, "
                    f"and passes{unchanged} to each input of {plain(node.name)}"
                )
                yield from _array(Line(gradient(node.name), node.dy), "  ")
                yield ""
            continue
        yield report.heading(node)
        if report.blocks(node):
            yield f"  in {report.blocks(node)}"
        yield f"  {name} arrives from {report.arrives(node)}"
        if report.remarks(node):
            yield f"  {report.remarks(node)}"
        yield from _quoted(report.gradient_text(node), report.gradient_symbols(node))
        for line in report.backward(node):
            yield from _array(line, "  ")
        if node.number in report.checks:
            yield f"  check: {report.checks[node.number]}"
        yield ""


def _quoted(text: str, symbols: str) -> Iterator[str]:
    """Yield the lines of a docstring, and what its symbols stand for."""
    yield from (f"  | {line}".rstrip() for line in text.splitlines())
    if symbols:
        yield f"  {symbols}"


def _headline(text: str) -> list[str]:
    return [text, "-" * len(text), ""]


def _array(line: Line, indent: str) -> Iterator[str]:
    if line.array is None:
        return
    yield f"{indent}{plain(line.head)}    {tuple(line.array.shape)}"
    if is_small(line.array):
        yield from (f"{indent}  {row}" for row in format_rows(line.array).splitlines())
    elif line.array.dtype.kind == "f":
        yield f"{indent}  {array_stats(line.array)}"
    else:
        yield f"{indent}  from {line.array.min()} to {line.array.max()}"


def format_lines(lines: Sequence[Line]) -> list[str]:
    """Return arrays as lines of plain text."""
    return [text for line in lines for text in _array(line, "")]
