"""Telling: what a walk through a network comes to, in the order and the words of a reader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...blocks import Freeze
from ...core.trees import leaves, named_leaves
from ...display.tables import table
from ...layers import Layer
from .flow import Node
from .formulas import Formula, formula_of, gradient_said, plain, told
from .numbers import facts, is_small, share, shown, written
from .remarks import Finding, passed, saturated

__all__ = ["Check", "Kept", "Line", "Telling", "gradient", "kept_said", "lines_said"]


@dataclass(frozen=True)
class Kept:
    """What a layer kept for backward: its name if it has one, shape, and bytes that it costs."""

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Check:
    """One entry of a parameter: its gradient, and (L(θ+h) - L(θ-h)) / 2h by NumPy in float64."""

    name: str
    index: tuple[int, ...]
    gradient: float
    difference: float
    agrees: bool
    kink: bool

    def __str__(self) -> str:
        place = f"∂L/∂{plain(self.name)}{list(self.index)}"
        difference = round(self.difference, 8) + 0.0
        said = f"{place} = {self.gradient:.8g}, by central difference {difference:.6g}"
        if self.agrees:
            return said
        return f"{said}: {'a kink is near' if self.kink else 'these differ'}"


@dataclass(frozen=True)
class Line:
    """An array with its name, as LaTeX, and the formula that it comes from, if one is known."""

    name: str
    array: np.ndarray | None
    rule: str = ""
    weight: bool = False  # or its gradient

    @property
    def head(self) -> str:
        """The name and the rule."""
        return f"{self.name} = {self.rule}" if self.rule else self.name


def gradient(name: str) -> str:
    """The gradient of the loss by something, as LaTeX."""
    return rf"\frac{{\partial L}}{{\partial {name}}}"


def kept_said(kept: tuple[Kept, ...]) -> str:
    """What a layer kept, in words."""
    parts = []
    for one in kept:
        name = plain(one.name) if one.name else "an array"
        price = f"{one.bytes:,} bytes" if one.bytes else "kept already"
        parts.append(f"{name} {one.shape}, {price}")
    return "; ".join(parts) or "nothing"


@dataclass(frozen=True)
class Telling:
    """What is told of one batch; `str()` is plain text.

    nodes: inputs, calls of layers and places where ways meet, in the order of forward.
    output: the numbers of those that made y. kept and checks: by the number of the node.
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
    loss_said: str
    kept: dict[int, tuple[Kept, ...]]
    checks: dict[int, Check]
    findings: tuple[Finding, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join(_text(self))

    @property
    def value(self) -> str:
        """The loss, written out; the sum, where it was not reduced."""
        return written(np.sum(self.loss), self.loss.dtype)

    @property
    def name(self) -> str:
        """What the output of the model is called."""
        return ", ".join(self.nodes[number].name for number in self.output)

    def heading(self, node: Node) -> str:
        """The place of a layer in the model, and itself."""
        return f"{node.call.path}  {node.call.shown}".strip() if node.call else plain(node.name)

    def blocks(self, node: Node) -> str:
        """The blocks around a layer."""
        return " › ".join(f"{c.path} {type(c.layer).__name__}".strip() for c in node.blocks)

    def met(self, node: Node) -> str:
        """Of a node where ways meet, what became what."""
        sign = f" {node.sign} " if len(node.sign) == 1 else ", "
        made = sign.join(self.nodes[edge.start].name for edge in node.edges)
        return made if len(node.sign) == 1 else rf"\mathrm{{{node.sign}}}({made})"

    # --- forward ------------------------------------------------------------------------

    def rules(self, node: Node) -> list[str]:
        """What a layer computes, as LaTeX, and what its formulas are made of."""
        known = formula_of(node.call.layer) if node.call else None
        found = (known.forward, *known.more) if known else ()
        return [told(one, node.names) for one in found if one]

    def forward(self, node: Node) -> Iterator[Line]:
        """What a layer had and made."""
        for path, leaf in _in_order(node.params):
            yield Line(node.names[path], leaf, weight=True)
        made = list(named_leaves(node.y))
        for path, leaf in made:
            yield Line(node.name if len(made) == 1 else rf"{node.name}\;\mathrm{{{path}}}", leaf)

    # --- backward -----------------------------------------------------------------------

    def arrives(self, node: Node) -> str:
        """Which way the gradient by what a node made took."""
        ways = ["the loss"] * (node.number in self.output)
        for reader in self.nodes:
            if not any(edge.start == node.number for edge in reader.edges):
                continue
            if reader.call is not None:
                ways.append(f"{reader.call.path} {type(reader.call.layer).__name__}".strip())
                continue
            kind = {"+": "the sum", "×": "the product"}.get(reader.sign, "what became")
            where = reader.blocks[-1] if reader.blocks else None
            block = f" of {where.path} {type(where.layer).__name__}" if where else ""
            ways.append(f"{kind} {plain(reader.name)}{block}")
        if not ways:
            return "nowhere: nobody reads it"
        return " and from ".join(ways) + (", added up" if len(ways) > 1 else "")

    def remarks(self, node: Node) -> str:
        """What was special about a layer's way back."""
        said = []
        if node.call and node.call.again:
            said.append("computed a second time on the way back, as nothing was kept")
        if any(isinstance(call.layer, Freeze) for call in node.blocks):
            said.append("frozen: no optimizer sees the gradients of its parameters")
        if node.call and not node.call.went_back:
            said.append("no gradient arrived, so its backward was not asked")
        return "; ".join(said)

    def backward(self, node: Node) -> Iterator[Line]:
        """The gradients that a layer computed: of its parameters, then of its x."""
        known = formula_of(node.call.layer) if node.call else None
        rules = known.backward if known else {}

        def rule(path: str) -> str:
            end = path.split(".")[-1]
            found = rules.get(path) or rules.get(end)
            return told(found, {**node.names, end: node.names[path]}) if found else ""

        for path, leaf in _in_order(node.grads if node.grads is not None else {}):
            yield Line(gradient(node.names[path]), leaf, rule(path), weight=True)
        sources = [self.nodes[edge.start].name for edge in node.edges]
        for name, edge in zip(sources, node.edges, strict=True):
            if edge.gradient is not None:
                alone = len(sources) == 1 or name == node.names["x"]
                yield Line(gradient(name), edge.gradient, rule("x") if alone else "")

    def said(self, node: Node) -> str:
        """What the docstring says of the gradient, where there is no formula."""
        known = formula_of(node.call.layer) if node.call else None
        return "" if not node.call or (known and known.backward) else gradient_said(node.call.layer)

    # --- the loss -----------------------------------------------------------------------

    def loss_rules(self) -> list[str]:
        """What the loss computes, as LaTeX."""
        if self.loss_formula is None:
            return []
        rules = (self.loss_formula.forward, *self.loss_formula.more)
        return [told(one, {"y": self.name}) for one in rules]

    def loss_lines(self) -> Iterator[Line]:
        """The target, and the gradient that the loss sends back."""
        targets = list(named_leaves(self.target))
        for path, leaf in targets:
            yield Line("t" if len(targets) == 1 else rf"t\;\mathrm{{{path}}}", leaf)
        rules = self.loss_formula.backward if self.loss_formula else {}
        for leaf, number in zip(leaves(self.dy), self.output, strict=True):
            rule = told(rules["y"], {"y": self.name}) if "y" in rules else ""
            yield Line(gradient(self.nodes[number].name), leaf, rule)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows: a layer each."""
        columns = ["", "layer", "makes", "shape", "norm", "norm of ∂L", "passes on", "bytes kept"]
        rows = []
        for node in self.nodes:
            if node.call is None:
                continue
            made, back = leaves(node.y)[0], leaves(node.dy)[0] if node.dy is not None else None
            bytes_kept = sum(one.bytes for one in self.kept[node.number])
            kind, norm = type(node.call.layer).__name__, None if back is None else facts(back).norm
            cells = [plain(node.name), str(tuple(made.shape)), facts(made).norm, norm]
            rows.append([node.call.path, kind, *cells, passed(node), bytes_kept])
        return columns, rows


def _in_order(tree: Any) -> list[tuple[str, Any]]:
    """Parameters, biases last."""
    return sorted(named_leaves(tree), key=lambda pair: "bias" in pair[0].split(".")[-1])


def _text(found: Telling) -> Iterator[str]:
    yield f"{type(found.model).__name__}, {found.loss_name}: L = {found.value}"
    yield f"a batch of {found.rows} on {found.backend}, as in training"
    yield ""
    yield table(*found.table())
    yield ""
    if found.findings:
        yield "worth a look"
        yield from (
            f"  {one.kind}: {one.path and one.path + ': '}{one.said}" for one in found.findings
        )
        yield ""
    yield from _headline("forward")
    for node in found.nodes:
        if node.call is None:
            yield from _array(Line(node.name, node.y, found.met(node) if node.sign else ""), "")
            yield ""
            continue
        yield found.heading(node)
        yield from (f"  {plain(one)}" for one in found.rules(node))
        for line in found.forward(node):
            yield from _array(line, "  ")
        flat = saturated(node)
        if flat is not None:
            yield f"  slopes below 1e-3: {share(flat)}"
        yield f"  kept for backward: {kept_said(found.kept[node.number])}"
        yield ""
    yield from _headline(f"the loss, {found.loss_name}")
    rules = found.loss_rules()
    yield from (f"  {plain(one)}" for one in rules)
    if not rules:
        yield from (f"  | {line}".rstrip() for line in found.loss_said.splitlines())
    yield f"  L = {found.value}"
    for line in found.loss_lines():
        yield from _array(line, "  ")
    yield ""
    yield from _headline("backward")
    for node in reversed(found.nodes):
        name = plain(gradient(node.name))
        if node.call is None:
            if node.sign and node.dy is not None:
                yield f"{name} arrives from {found.arrives(node)}, and goes on as it is"
                yield from _array(Line(gradient(node.name), node.dy), "  ")
                yield ""
            continue
        yield found.heading(node)
        if found.blocks(node):
            yield f"  in {found.blocks(node)}"
        yield f"  {name} arrives from {found.arrives(node)}"
        if found.remarks(node):
            yield f"  {found.remarks(node)}"
        yield from (f"  | {line}".rstrip() for line in found.said(node).splitlines())
        for line in found.backward(node):
            yield from _array(line, "  ")
        if node.number in found.checks:
            yield f"  check: {found.checks[node.number]}"
        yield ""


def _headline(text: str) -> list[str]:
    return [text, "-" * len(text), ""]


def _array(line: Line, indent: str) -> Iterator[str]:
    if line.array is None:
        return
    yield f"{indent}{plain(line.head)}    {tuple(line.array.shape)}"
    if is_small(line.array):
        yield from (f"{indent}  {row}" for row in shown(line.array).splitlines())
    elif line.array.dtype.kind == "f":
        yield f"{indent}  {facts(line.array)}"
    else:
        yield f"{indent}  from {line.array.min()} to {line.array.max()}"


def lines_said(lines: Sequence[Line]) -> list[str]:
    """Arrays as plain text."""
    return [said for line in lines for said in _array(line, "")]
