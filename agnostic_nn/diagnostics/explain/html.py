"""Render reports as HTML pages, with a drawing of the network and its arrays.

Everything is taken from the report; nothing is computed again.
"""

import re
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from struct import pack
from typing import Any

import numpy as np

from ...core.precisions import PRECISION_NAMES
from ...core.trees import leaves
from ...display.pages import formula, render
from .flow import Edge, Node
from .latex import gradient, plain
from .numbers import (
    array_stats,
    downsampled,
    format_number,
    format_share,
    is_small,
    tiles,
)
from .remarks import NOT_FINITE, flat_share
from .text import Line, Report, describe_saved, format_lines

__all__ = ["Part", "heat_map", "network", "page"]


@dataclass(frozen=True)
class Part:
    """A section of a page: heading, text, report, and text and arrays after it."""

    heading: str
    text: str
    report: Report
    after: str = ""
    lines: Sequence[Line] = ()

    def __str__(self) -> str:
        heading = [self.heading, "=" * len(self.heading), ""] if self.heading else []
        text = [self.text, ""] if self.text else []
        after = ["afterwards", "----------", "", self.after] if self.after else []
        return "\n".join(
            [*heading, *text, str(self.report), *after, *format_lines(self.lines)]
        )


# Explained on a page where they first appear, in parentheses.
TERMS = {
    "training mode": "as in a training step: Dropout and BatchNorm act differently in "
    "a prediction",
    "dead": "its output does not depend on its input in any row of this batch",
    "saturated": "its inputs are so large that its output hardly changes with them",
    "vanishing": "gradients become so small that layers hardly learn",
    "exploding": "gradients become so large that steps are unstable",
    "zero": "a gradient of exactly 0 leaves a parameter unchanged",
    "slope": "the slope is the derivative of the activation at its input",
    "check": "one entry of a gradient, compared with how much the loss changes if that "
    "entry of the parameter is changed by a small h, up and down",
}
# Of the table; explained below the first one.
COLUMNS = {
    "norm": "the square root of the sum of the squares of all entries of the output",
    "∂L/∂y": "the gradient of the loss L with respect to the output y of the layer: "
    "how much L changes for a small change of each entry",
    "‖∂L/∂x‖ / ‖∂L/∂y‖": "the norm of the gradient that the layer passes on to its "
    "input x, divided by the norm of the gradient that it receives",
    "bytes saved": "memory for arrays that backward needs again, kept from forward "
    "until backward",
}


class _Glossary:
    """The meaning of each term, once."""

    def __init__(self) -> None:
        self.remaining = dict(TERMS)

    def __call__(self, name: str) -> str:
        """Return the meaning of a term at its first appearance, "" at later ones."""
        return self.remaining.pop(name, "")


def page(title: str, about: str, parts: Iterable[Part]) -> str:
    """Return a self-contained HTML page."""
    contexts = [_part_context(i, part) for i, part in enumerate(parts)]
    return render(
        "explain.html",
        title=title,
        about=about,
        parts=contexts,
        columns=COLUMNS.items(),
        explained=_Glossary(),
    )


def _part_context(number: int, part: Part) -> dict[str, Any]:
    """Return the values of the template for one section."""
    report = part.report
    layers = [node for node in report.nodes if node.call]
    columns, rows = report.table()
    return {
        "id": f"p{number}",
        "heading": part.heading,
        "text": part.text,
        "after": part.after,
        "lines": [_array(line) for line in part.lines],
        "expanded": len(layers) <= 8,
        "loss": report.value,
        "loss_name": report.loss_name,
        "loss_rules": [_rule(rule) for rule in report.loss_rules()],
        "loss_text": report.loss_text,
        "loss_symbols": report.loss_symbols(),
        "targets": [_array(line) for line in report.targets()],
        "loss_gradients": [_array(line) for line in report.loss_gradients()],
        "rows": report.rows,
        "backend": report.backend,
        "network": network(report, f"p{number}"),
        "non_finite": report.non_finite.sentence if report.non_finite else "",
        "findings": [f for f in report.findings if f.kind != NOT_FINITE],
        "table": {"columns": columns, "rows": rows},
        "layers": [_layer(report, node, f"p{number}") for node in report.nodes],
    }


def _layer(report: Report, node: Node, prefix: str) -> dict[str, Any]:
    """Return what both columns of a layer, a merge or an input share, and the columns.

    "forward" is the left one and "backward" the right one.
    """
    heading = report.heading(node)
    if node.call is None:
        kind = "a conversion" if node.operation in PRECISION_NAMES else "a merge"
        heading = f"{heading}, {kind}" if node.operation else f"the input {heading}"
    return {
        "id": f"{prefix}f{node.number}",
        "heading": heading,
        "shape": str(tuple(leaves(node.y)[0].shape)),
        "around": report.blocks(node) if node.call else "",
        "forward": _forward(report, node),
        "backward": {"id": f"{prefix}b{node.number}", **_backward(report, node)},
    }


def _forward(report: Report, node: Node) -> dict[str, Any]:
    context = {
        "rules": [_rule(rule) for rule in report.rules(node)],
        "text": report.forward_text(node),
        "symbols": report.forward_symbols(node),
        "flat": "",
        "saved": "",
    }
    if node.call is None:
        rule = report.merge_rule(node) if node.operation else ""
        return context | {"lines": [_array(Line(node.name, node.y, rule))]}
    flat = flat_share(node)
    return context | {
        "lines": [_array(line) for line in report.forward(node)],
        "saved": describe_saved(report.saved[node.number]),
        "flat": "" if flat is None else format_share(flat),
    }


def _backward(report: Report, node: Node) -> dict[str, Any]:
    check = report.checks.get(node.number)
    # Integers, such as those that Embedding reads, have no gradient.
    has_gradient = node.call is not None or node.dy is not None
    if node.operation and has_gradient:
        lines = [Line(gradient(node.name), node.dy)]
    else:
        lines = [*report.backward(node)]
    return {
        "gradient": formula(gradient(node.name)) if has_gradient else "",
        "arrives": report.arrives(node),
        "remarks": report.remarks(node),
        "text": report.gradient_text(node),
        "symbols": report.gradient_symbols(node),
        "check": str(check) if check else "",
        "agrees": check is None or check.agrees,
        "lines": [_array(line) for line in lines if line.array is not None],
    }


def _rule(latex: str) -> str:
    """Render a rule as equations next to each other, wrapped on narrow screens."""
    equations = re.split(r",?\s*\\quad\s*", latex)
    spans = "".join(f"<span>{formula(equation)}</span>" for equation in equations)
    return f'<p class="rule">{spans}</p>'


# --- arrays ---------------------------------------------------------------------------


def _array(line: Line) -> str:
    """Render an array with its name and rule, as numbers or (if large) heat maps."""
    array = np.asarray(line.array)
    head = formula(line.head)
    shape = escape(str(tuple(array.shape)))
    caption = f'<figcaption>{head} <span class="faint">{shape}</span></figcaption>'
    body = _matrix(array) if is_small(array) else _pictures(array, line.weight)
    return f'<figure class="array">{caption}{body}</figure>'


def _matrix(array: np.ndarray) -> str:
    """Render all numbers in a table, colored by sign and size."""
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    sizes = np.abs(rows[np.isfinite(rows)]) if rows.dtype.kind == "f" else np.abs(rows)
    largest = float(sizes.max()) if sizes.size else 0.0

    def cell(number: Any) -> str:
        text = format_number(number, array.dtype)
        if not np.isfinite(number):
            return f'<td class="bad">{text}</td>'
        percent = round(36 * abs(float(number)) / largest) if largest else 0
        color = "var(--c0)" if number < 0 else "var(--c1)"
        style = f"background:color-mix(in srgb,{color} {percent}%,transparent)"
        return f'<td style="{style}">{text}</td>' if percent else f"<td>{text}</td>"

    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table class="matrix">{lines}</table></div>'


def _pictures(array: np.ndarray, weight: bool) -> str:
    """Render a large array as heat maps and statistics; integers as a range only."""
    if array.dtype.kind != "f":
        if not array.size:
            return ""
        return f'<p class="faint">from {array.min()} to {array.max()}</p>'
    finite = np.abs(array[np.isfinite(array)])
    largest = float(finite.max()) if finite.size else 0.0
    maps = []
    for part, matrix in tiles(array, weight):
        small, (rows, columns) = downsampled(matrix)
        is_reduced = (rows, columns) != (1, 1)
        block = (
            f"; each cell represents {rows} x {columns} numbers" if is_reduced else ""
        )
        label = f"{part} {matrix.shape[0]} x {matrix.shape[1]}{block}".strip()
        image = heat_map(small, largest)
        maps.append(
            f'<div class="tile"><img alt="heat map {escape(label)}" src="{image}" '
            f'style="{_size(small.shape)}"><small>{escape(label)}</small></div>'
        )
    ends = f"<span>{-largest:.3g}</span><i></i><span>{largest:.3g}</span>"
    scale = f'<div class="scale">{ends}</div>' if largest else ""
    stats = escape(str(array_stats(array)))
    return (
        f'<div class="tiles">{"".join(maps)}</div>{scale}<p class="faint">{stats}</p>'
    )


def _size(shape: tuple[int, ...]) -> str:
    """Return the CSS size of a heat map: square cells, sides of at least 1.2rem."""
    cell = min(0.55, 20.0 / max(shape[1], 1), 16.0 / max(shape[0], 1))
    height, width = (max(cell * length, 1.2) for length in shape)
    return f"width:{width:.3g}rem;height:{height:.3g}rem"


def heat_map(matrix: np.ndarray, largest: float) -> str:
    """Return a PNG as a data URI, with one pixel per number.

    Negative numbers are blue, positive ones orange, NaN and infinities violet. The
    opacity grows with the size and is full at ±`largest`. Zero is transparent, so the
    image fits both light and dark pages.
    """
    finite = np.isfinite(matrix)
    fraction = np.where(finite, np.abs(matrix), 0.0) / (largest or 1.0)
    pixels = np.empty((*matrix.shape, 4), np.uint8)
    pixels[..., :3] = np.where(
        (matrix < 0)[..., None], (0x2B, 0x83, 0xC9), (0xE0, 0x6A, 0x1B)
    )
    pixels[..., 3] = np.rint(255 * np.sqrt(np.minimum(fraction, 1.0)))
    pixels[~finite] = (0xB0, 0x30, 0xD0, 0xFF)
    height, width = matrix.shape
    # In a PNG each line starts with the number of its filter; 0 is none.
    filters = np.zeros((height, 1), np.uint8)
    lines = np.concatenate((filters, pixels.reshape(height, -1)), axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        size = pack(">I", len(content))
        checksum = pack(">I", zlib.crc32(kind + content))
        return size + kind + content + checksum

    header = pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    image += chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{b64encode(image).decode()}"


# --- the network ----------------------------------------------------------------------

# In pixels; the drawing is narrow enough for a phone.
WIDTH = 430  # of the drawing
MIDDLE = 215  # x of the center of all boxes
HALF = 92  # half the width of a box
HEIGHT = 46  # of a box
GAP = 52  # between boxes
ROUND = 13  # radius of the circle of a merge or an input
RAIL = 70  # distance from a box to the first lane for edges that skip nodes
LANE = 13  # distance from one lane to the next


def network(report: Report, prefix: str) -> str:
    """Draw the network as SVG, with the input at the top and the loss at the bottom."""
    nodes = [*report.nodes]
    loss = Node(len(nodes), "L", y=report.loss, dy=None)
    loss.edges = [
        Edge(number, loss.number, leaves(nodes[number].y)[0], np.asarray(dy))
        for number, dy in zip(report.output, leaves(report.dy), strict=True)
    ]
    nodes.append(loss)
    tops, heights, bottom = _rows(nodes)
    frames = [*_frames(nodes, tops, heights)]
    shapes = [frame for frame, _ in frames]
    # (number of the last node, lane) of edges that skip nodes
    lanes: list[tuple[int, int]] = []
    for node in nodes:
        for edge in node.edges:
            if edge.end - edge.start == 1:
                shapes += _straight_edge(edge, nodes, tops, heights)
            else:
                shapes += _skipping_edge(
                    edge, nodes, tops, heights, _free_lane(lanes, edge)
                )
    is_bad: dict[str, bool] = {}  # of each layer with a finding, whether one is bad
    for finding in report.findings:
        is_bad[finding.path] = is_bad.get(finding.path, False) or finding.bad
    shapes += [_box(node, report, tops[node.number], prefix, is_bad) for node in nodes]
    shapes += [label for _, label in frames]
    about = "The network from its input to the loss, with shapes and norms of gradients"
    arrows = _ARROWS if prefix == "p0" else ""  # once per page
    legend = (
        '<figcaption><span class="down">↓</span> arrays and their shapes · '
        '<span class="up">↑</span> gradients of the loss and their norms</figcaption>'
    )
    return (
        f'<figure class="network"><svg viewBox="0 0 {WIDTH} {bottom}" role="img" '
        f'aria-label="{about}">{arrows}{"".join(shapes)}</svg>{legend}</figure>'
    )


_ARROWS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    f'markerHeight="7" orient="auto"><path d="M0,0L8,4L0,8z" fill="var({color})"/>'
    "</marker>"
    for name, color in (("down", "--c0"), ("up", "--c1"))
).join(("<defs>", "</defs>"))


def _rows(nodes: list[Node]) -> tuple[list[int], list[int], int]:
    """Return the top and the height of each node, and the height of the drawing."""
    tops: list[int] = []
    heights: list[int] = []
    y = 8
    open_blocks: set[int] = set()
    for node in nodes:
        blocks = {call.number for call in node.blocks}
        # Room for the label of each frame that opens, and the edge of each that closes.
        y += 18 * len(blocks - open_blocks) + 10 * len(open_blocks - blocks)
        tops.append(y)
        heights.append(_height(node))
        y += heights[-1] + GAP
        open_blocks = blocks
    return tops, heights, y - GAP + 8 + 10 * len(open_blocks)


def _height(node: Node) -> int:
    if node.call is not None or node.name == "L":
        return HEIGHT
    return 2 * ROUND


def _frames(
    nodes: list[Node], tops: list[int], heights: list[int]
) -> Iterable[tuple[str, str]]:
    """Yield the frame around the layers of each block, and its label."""
    blocks = {
        call.number: (call, node.blocks.index(call))
        for node in nodes
        for call in node.blocks
    }
    for number, (call, depth) in sorted(blocks.items()):
        rows = [
            n.number for n in nodes if any(block.number == number for block in n.blocks)
        ]
        # Leave room for the frames of inner blocks that begin or end at the same node.
        inner_at_top = len(nodes[rows[0]].blocks) - depth - 1
        inner_at_end = len(nodes[rows[-1]].blocks) - depth - 1
        top = tops[rows[0]] - 10 - 18 * (inner_at_top + 1) + 8
        end = tops[rows[-1]] + heights[rows[-1]] + 10 + 10 * inner_at_end
        left = 4 + 7 * depth
        yield (
            f'<rect class="frame" x="{left}" y="{top}" width="{WIDTH - 2 * left}" '
            f'height="{end - top}" rx="8"/>',
            f'<text class="small free" x="{left + 8}" y="{top + 13}">'
            f"{escape(f'{call.path} {type(call.layer).__name__}'.strip())}</text>",
        )


def _box(
    node: Node, report: Report, top: int, prefix: str, is_bad: dict[str, bool]
) -> str:
    name = escape(plain(node.name))
    if node.name == "L":
        value = escape(f"L = {report.value}")
        link = f"#{prefix}loss"
        lines = (value, escape(_shorten(report.loss_name, 28)))
        css_class = ""
    elif node.call is not None:
        path = escape(node.call.path or "the model")
        link = f"#{prefix}f{node.number}"
        lines = (escape(_shorten(node.call.outline, 22)), f"{path} · {name}")
        css_class = {True: " stops", False: " warns", None: ""}[is_bad.get(node.label)]
    else:
        middle = top + ROUND
        symbol = name
        if node.operation:
            symbol = escape(_symbol(node.operation))
        label = f'<text class="small" x="{MIDDLE + 18}" y="{middle - 6}">{name}</text>'
        return (
            f'<a href="#{prefix}f{node.number}"><circle class="box" cx="{MIDDLE}" '
            f'cy="{middle}" r="{ROUND}"/><text x="{MIDDLE}" y="{middle + 5}" '
            f'text-anchor="middle">{symbol}</text>'
            f"{label if node.operation else ''}</a>"
        )
    return (
        f'<a href="{link}"><rect class="box{css_class}" x="{MIDDLE - HALF}" y="{top}" '
        f'width="{2 * HALF}" height="{HEIGHT}" rx="7"/><text x="{MIDDLE}" '
        f'y="{top + 20}" '
        f'text-anchor="middle">{lines[0]}</text><text class="small" x="{MIDDLE}" '
        f'y="{top + 36}" text-anchor="middle">{lines[1]}</text></a>'
    )


def _symbol(operation: str) -> str:
    """Return the character that stands for the operation of a merge in the drawing."""
    if operation in PRECISION_NAMES:
        return "→"
    return operation if len(operation) == 1 else "·"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _shape(edge: Edge) -> str:
    return escape(str(tuple(edge.value.shape)))


def _norm(edge: Edge) -> str:
    return "" if edge.gradient is None else f"{array_stats(edge.gradient).norm:.3g}"


def _straight_edge(
    edge: Edge, nodes: list[Node], tops: list[int], heights: list[int]
) -> list[str]:
    """Draw an edge between two successive nodes."""
    top = tops[edge.start] + heights[edge.start]
    end = tops[edge.end]
    middle = (top + end) // 2 + 4
    left = MIDDLE - 9
    right = MIDDLE + 9
    shapes = [
        f'<path class="down" d="M{left},{top + 1}V{end - 3}"/>',
        f'<text class="small free" x="{left - 9}" y="{middle}" text-anchor="end">'
        f"{_shape(edge)}</text>",
    ]
    if edge.gradient is not None:
        name = escape(f"∂L/∂{plain(nodes[edge.start].name)}")
        shapes += [
            f'<path class="up" d="M{right},{end - 1}V{top + 3}"/>',
            f'<text class="small free" x="{right + 9}" y="{middle}">'
            f"{name}: {_norm(edge)}</text>",
        ]
    return shapes


def _skipping_edge(
    edge: Edge, nodes: list[Node], tops: list[int], heights: list[int], lane: int
) -> list[str]:
    """Draw an edge that passes other nodes: down on the left, up on the right."""

    def side(number: int) -> tuple[int, int]:
        height = heights[number]
        return tops[number] + height // 2, HALF if height == HEIGHT else ROUND

    (start, start_half), (end, end_half) = side(edge.start), side(edge.end)
    # Outgoing edges leave below the center and incoming ones enter above it.
    start += 4
    end -= 4
    far = HALF + RAIL + LANE * lane
    shift = 5 if heights[edge.end] == HEIGHT else 0
    shapes = [
        f'<path class="down" d="M{MIDDLE - start_half - 1},{start}H{MIDDLE - far}V{end}'
        f'H{MIDDLE - end_half - 3}"/>',
        f'<text class="small free" x="{MIDDLE - end_half - 10}" y="{end - 5 - shift}" '
        f'text-anchor="end">{_shape(edge)}</text>',
    ]
    if edge.gradient is not None:
        shapes += [
            f'<path class="up" d="M{MIDDLE + end_half + 1},{end}H{MIDDLE + far}V{start}'
            f'H{MIDDLE + start_half + 3}"/>',
            f'<text class="small free" x="{MIDDLE + HALF + 10}" y="{start + 14}">'
            f"{_norm(edge)}</text>",
        ]
    return shapes


def _free_lane(lanes: list[tuple[int, int]], edge: Edge) -> int:
    """Return the innermost lane that is free between both ends, and reserve it."""
    taken = {lane for end, lane in lanes if end > edge.start}
    lane = next(lane for lane in range(len(lanes) + 1) if lane not in taken)
    lanes.append((edge.end, lane))
    return lane
