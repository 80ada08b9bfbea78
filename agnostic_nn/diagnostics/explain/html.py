"""Drawing: a network, its arrays and a page of all that; nothing here is computed anew."""

import re
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from struct import pack
from typing import Any

import numpy as np

from ...core.trees import leaves
from ...display.pages import formula, render
from .flow import Edge, Node
from .formulas import plain
from .numbers import facts, is_small, share, thinned, tiles, written
from .remarks import place, saturated
from .text import Line, Telling, gradient, kept_said, lines_said

__all__ = ["Part", "heat_map", "network", "page"]


@dataclass(frozen=True)
class Part:
    """A piece of a page: an explanation with a word before it, and something behind it."""

    heading: str
    said: str
    found: Telling
    after: str = ""
    lines: Sequence[Line] = ()

    def __str__(self) -> str:
        heading = [self.heading, "=" * len(self.heading), ""] if self.heading else []
        said = [self.said, ""] if self.said else []
        after = ["and then", "--------", "", self.after] if self.after else []
        return "\n".join([*heading, *said, str(self.found), *after, *lines_said(self.lines)])


def page(title: str, about: str, parts: Iterable[Part]) -> str:
    """A page that stands alone."""
    shown = [_shown(i, part) for i, part in enumerate(parts)]
    return render("explain.html", title=title, about=about, parts=shown)


def _shown(number: int, part: Part) -> dict[str, Any]:
    """What the template puts in its places."""
    found = part.found
    layers = [node for node in found.nodes if node.call]
    columns, rows = found.table()
    return {
        "id": f"p{number}",
        "heading": part.heading,
        "said": part.said,
        "after": part.after,
        "lines": [_array(line) for line in part.lines],
        "few": len(layers) <= 8,
        "loss": found.value,
        "loss_name": found.loss_name,
        "loss_rules": [_rule(one) for one in found.loss_rules()],
        "loss_said": "" if found.loss_rules() else found.loss_said,
        "loss_lines": [_array(line) for line in found.loss_lines()],
        "rows": found.rows,
        "backend": found.backend,
        "network": network(found, f"p{number}"),
        "findings": found.findings,
        "table": {"columns": columns, "rows": rows},
        "forward": [_forward(found, node, f"p{number}f") for node in found.nodes],
        "backward": [
            _backward(found, node, f"p{number}b")
            for node in reversed(found.nodes)
            if node.call or (node.sign and node.dy is not None)
        ],
    }


def _forward(found: Telling, node: Node, prefix: str) -> dict[str, Any]:
    shown = {
        "id": f"{prefix}{node.number}",
        "shape": str(tuple(leaves(node.y)[0].shape)),
        "around": found.blocks(node) if node.call else "",
        "rules": [_rule(one) for one in found.rules(node)],
        "flat": "",
        "kept": "",
    }
    if node.call is None:
        name = plain(node.name)
        heading = f"{name}, where ways meet" if node.sign else f"the input {name}"
        lines = [_array(Line(node.name, node.y, found.met(node) if node.sign else ""))]
        return shown | {"heading": heading, "lines": lines}
    flat = saturated(node)
    return shown | {
        "heading": found.heading(node),
        "lines": [_array(line) for line in found.forward(node)],
        "kept": kept_said(found.kept[node.number]),
        "flat": "" if flat is None else share(flat),
    }


def _backward(found: Telling, node: Node, prefix: str) -> dict[str, Any]:
    check = found.checks.get(node.number)
    shown = {
        "id": f"{prefix}{node.number}",
        "heading": found.heading(node),
        "around": found.blocks(node) if node.call else "",
        "by": formula(gradient(node.name)),
        "arrives": found.arrives(node),
        "remarks": found.remarks(node),
        "said": found.said(node),
        "check": str(check) if check else "",
        "agrees": check is None or check.agrees,
    }
    if node.call is None:
        lines = [_array(Line(gradient(node.name), node.dy))]
        return shown | {"heading": f"{plain(node.name)}, where ways part", "lines": lines}
    return shown | {
        "lines": [_array(line) for line in found.backward(node) if line.array is not None]
    }


def _rule(latex: str) -> str:
    """What a layer computes: equations beside each other, or below where there is no room."""
    equations = re.split(r",?\s*\\quad\s*", latex)
    each = "".join(f"<span>{formula(equation)}</span>" for equation in equations)
    return f'<p class="rule">{each}</p>'


# --- arrays -----------------------------------------------------------------------------


def _array(line: Line) -> str:
    """An array as HTML: its name and rule, and its numbers, or a picture of them."""
    array = np.asarray(line.array)
    head = formula(line.head)
    shape = escape(str(tuple(array.shape)))
    caption = f'<figcaption>{head} <span class="faint">{shape}</span></figcaption>'
    body = _matrix(array) if is_small(array) else _pictures(array, line.weight)
    return f'<figure class="array">{caption}{body}</figure>'


def _matrix(array: np.ndarray) -> str:
    """All numbers, on a ground that is the deeper the further from 0 they are."""
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    known = np.abs(rows[np.isfinite(rows)]) if rows.dtype.kind == "f" else np.abs(rows)
    most = float(known.max()) if known.size else 0.0

    def cell(number: Any) -> str:
        text = written(number, array.dtype)
        if not np.isfinite(number):
            return f'<td class="bad">{text}</td>'
        depth = round(36 * abs(float(number)) / most) if most else 0
        colour = "var(--c0)" if number < 0 else "var(--c1)"
        ground = f"background:color-mix(in srgb,{colour} {depth}%,transparent)"
        return f'<td style="{ground}">{text}</td>' if depth else f"<td>{text}</td>"

    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table class="matrix">{lines}</table></div>'


def _pictures(array: np.ndarray, weight: bool) -> str:
    """Heat maps of a large array and what matters about it; integers have the latter alone."""
    if array.dtype.kind != "f":
        return f'<p class="faint">from {array.min()} to {array.max()}</p>' if array.size else ""
    finite = np.abs(array[np.isfinite(array)])
    most = float(finite.max()) if finite.size else 0.0
    maps = []
    for part, matrix in tiles(array, weight):
        small, (rows, columns) = thinned(matrix)
        thin = f"; a cell is {rows} x {columns} numbers" if (rows, columns) != (1, 1) else ""
        label = f"{part} {matrix.shape[0]} x {matrix.shape[1]}{thin}".strip()
        image = heat_map(small, most)
        maps.append(
            f'<div class="tile"><img alt="heat map {escape(label)}" src="{image}" '
            f'style="{_size(small.shape)}"><small>{escape(label)}</small></div>'
        )
    scale = (
        f'<div class="scale"><span>{-most:.3g}</span><i></i><span>{most:.3g}</span></div>'
        if most
        else ""
    )
    told = escape(str(facts(array)))
    return f'<div class="tiles">{"".join(maps)}</div>{scale}<p class="faint">{told}</p>'


def _size(shape: tuple[int, ...]) -> str:
    """How large a heat map is drawn: cells alike, unless it would be a thread."""
    cell = min(0.55, 20.0 / max(shape[1], 1), 16.0 / max(shape[0], 1))
    height, width = (max(cell * length, 1.2) for length in shape)
    return f"width:{width:.3g}rem;height:{height:.3g}rem"


def heat_map(matrix: np.ndarray, most: float) -> str:
    """A PNG as a data URI, a pixel each: blue below 0, orange above, clear at 0, else violet.

    Colours are the deeper the nearer a number is to ±`most`, and what is clear lets the page
    shine through, be it light or dark.
    """
    finite = np.isfinite(matrix)
    depth = np.where(finite, np.abs(matrix), 0.0) / (most or 1.0)
    pixels = np.empty((*matrix.shape, 4), np.uint8)
    pixels[..., :3] = np.where((matrix < 0)[..., None], (0x2B, 0x83, 0xC9), (0xE0, 0x6A, 0x1B))
    pixels[..., 3] = np.rint(255 * np.sqrt(np.minimum(depth, 1.0)))
    pixels[~finite] = (0xB0, 0x30, 0xD0, 0xFF)
    height, width = matrix.shape
    lines = np.concatenate((np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)), axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return pack(">I", len(content)) + kind + content + pack(">I", zlib.crc32(kind + content))

    header = pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    image += chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{b64encode(image).decode()}"


# --- the network ------------------------------------------------------------------------

WIDTH, MIDDLE, HALF = 430, 215, 92  # of the drawing, and of a box: narrow enough for a phone
HEIGHT, GAP, ROUND = 46, 52, 13
RAIL, LANE = 70, 13  # how far from a box the first way around runs, and each further one


def network(found: Telling, prefix: str) -> str:
    """The network from top to bottom as SVG: numbers go down on the left, gradients up."""
    nodes = [*found.nodes]
    loss = Node(len(nodes), "L", y=found.loss, dy=None)
    back = leaves(found.dy)
    loss.edges = [
        Edge(number, loss.number, leaves(nodes[number].y)[0], np.asarray(d))
        for number, d in zip(found.output, back, strict=True)
    ]
    nodes.append(loss)
    tops, heights, bottom = _rows(nodes)
    frames = [*_frames(nodes, tops, heights)]
    drawn = [frame for frame, _ in frames]
    lanes: list[tuple[int, int]] = []  # of ways around: where the last one in a lane ended
    for node in nodes:
        for edge in node.edges:
            if edge.end - edge.start == 1:
                drawn += _straight(edge, nodes, tops, heights)
            else:
                drawn += _around(edge, nodes, tops, heights, _lane(lanes, edge))
    marked: dict[str, bool] = {}
    for one in found.findings:
        marked[one.path] = marked.get(one.path, False) or one.bad
    drawn += [_box(node, found, tops[node.number], prefix, marked) for node in nodes]
    drawn += [label for _, label in frames]
    about = "The network from its input to the loss, with shapes on the way and norms of gradients"
    arrows = _ARROWS if prefix == "p0" else ""  # once a page
    legend = (
        '<figcaption><span class="down">↓</span> numbers and their shapes · '
        '<span class="up">↑</span> gradients of the loss and their norms</figcaption>'
    )
    return (
        f'<figure class="network"><svg viewBox="0 0 {WIDTH} {bottom}" role="img" '
        f'aria-label="{about}">{arrows}{"".join(drawn)}</svg>{legend}</figure>'
    )


_ARROWS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    f'orient="auto"><path d="M0,0L8,4L0,8z" fill="var({colour})"/></marker>'
    for name, colour in (("down", "--c0"), ("up", "--c1"))
).join(("<defs>", "</defs>"))


def _rows(nodes: list[Node]) -> tuple[list[int], list[int], int]:
    """Where each node begins, how high it is, and where the drawing ends."""
    tops: list[int] = []
    heights: list[int] = []
    at, before = 8, set[int]()
    for node in nodes:
        around = {call.number for call in node.blocks}
        at += 18 * len(around - before) + 10 * len(before - around)
        tops.append(at)
        heights.append(_height(node))
        at += heights[-1] + GAP
        before = around
    return tops, heights, at - GAP + 8 + 10 * len(before)


def _height(node: Node) -> int:
    if node.call is not None or node.name == "L":
        return HEIGHT
    return 2 * ROUND


def _frames(nodes: list[Node], tops: list[int], heights: list[int]) -> Iterable[tuple[str, str]]:
    """A frame around the layers of each block, and its label."""
    blocks = {
        call.number: (call, node.blocks.index(call)) for node in nodes for call in node.blocks
    }
    for number, (call, depth) in sorted(blocks.items()):
        rows = [n.number for n in nodes if any(one.number == number for one in n.blocks)]
        inner = [len(nodes[row].blocks) - depth - 1 for row in (rows[0], rows[-1])]
        top = tops[rows[0]] - 10 - 18 * (inner[0] + 1) + 8
        end = tops[rows[-1]] + heights[rows[-1]] + 10 + 10 * inner[1]
        left = 4 + 7 * depth
        yield (
            f'<rect class="frame" x="{left}" y="{top}" width="{WIDTH - 2 * left}" '
            f'height="{end - top}" rx="8"/>',
            f'<text class="small free" x="{left + 8}" y="{top + 13}">'
            f"{escape(f'{call.path} {type(call.layer).__name__}'.strip())}</text>",
        )


def _box(node: Node, found: Telling, top: int, prefix: str, marked: dict[str, bool]) -> str:
    name = escape(plain(node.name))
    if node.name == "L":
        value = escape(f"L = {found.value}")
        about = escape(_cut(found.loss_name, 28))
        link, lines, mark = f"#{prefix}loss", (value, about), ""
    elif node.call is not None:
        path = escape(node.call.path or "the model")
        link, lines = (
            f"#{prefix}f{node.number}",
            (escape(_cut(node.call.shown, 22)), f"{path} · {name}"),
        )
        mark = {True: " stops", False: " warns", None: ""}[marked.get(place(node))]
    else:
        middle = top + ROUND
        sign = escape(node.sign if len(node.sign) == 1 else "·") if node.sign else name
        label = f'<text class="small" x="{MIDDLE + 18}" y="{middle - 6}">{name}</text>'
        return (
            f'<a href="#{prefix}f{node.number}"><circle class="box" cx="{MIDDLE}" cy="{middle}" '
            f'r="{ROUND}"/><text x="{MIDDLE}" y="{middle + 5}" text-anchor="middle">{sign}</text>'
            f"{label if node.sign else ''}</a>"
        )
    return (
        f'<a href="{link}"><rect class="box{mark}" x="{MIDDLE - HALF}" y="{top}" '
        f'width="{2 * HALF}" height="{HEIGHT}" rx="7"/><text x="{MIDDLE}" y="{top + 20}" '
        f'text-anchor="middle">{lines[0]}</text><text class="small" x="{MIDDLE}" y="{top + 36}" '
        f'text-anchor="middle">{lines[1]}</text></a>'
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _shape(edge: Edge) -> str:
    return escape(str(tuple(edge.value.shape)))


def _norm(edge: Edge) -> str:
    return "" if edge.gradient is None else f"{facts(edge.gradient).norm:.3g}"


def _straight(edge, nodes, tops, heights) -> list[str]:
    """The ways between neighbours."""
    top, end = tops[edge.start] + heights[edge.start], tops[edge.end]
    middle = (top + end) // 2 + 4
    left, right = MIDDLE - 9, MIDDLE + 9
    drawn = [
        f'<path class="down" d="M{left},{top + 1}V{end - 3}"/>',
        f'<text class="small free" x="{left - 9}" y="{middle}" text-anchor="end">'
        f"{_shape(edge)}</text>",
    ]
    if edge.gradient is not None:
        name = escape(f"∂L/∂{plain(nodes[edge.start].name)}")
        drawn += [
            f'<path class="up" d="M{right},{end - 1}V{top + 3}"/>',
            f'<text class="small free" x="{right + 9}" y="{middle}">{name}: {_norm(edge)}</text>',
        ]
    return drawn


def _around(edge: Edge, nodes, tops, heights, lane: int) -> list[str]:
    """The ways past others: down on the left, up on the right."""

    def side(number: int) -> tuple[int, int]:
        height = heights[number]
        return tops[number] + height // 2, HALF if height == HEIGHT else ROUND

    (start, start_half), (end, end_half) = side(edge.start), side(edge.end)
    start, end = start + 4, end - 4  # so that one way out does not hide another one in
    far = HALF + RAIL + LANE * lane
    shift = 5 if heights[edge.end] == HEIGHT else 0
    drawn = [
        f'<path class="down" d="M{MIDDLE - start_half - 1},{start}H{MIDDLE - far}V{end}'
        f'H{MIDDLE - end_half - 3}"/>',
        f'<text class="small free" x="{MIDDLE - end_half - 10}" y="{end - 5 - shift}" '
        f'text-anchor="end">{_shape(edge)}</text>',
    ]
    if edge.gradient is not None:
        drawn += [
            f'<path class="up" d="M{MIDDLE + end_half + 1},{end}H{MIDDLE + far}V{start}'
            f'H{MIDDLE + start_half + 3}"/>',
            f'<text class="small free" x="{MIDDLE + HALF + 10}" y="{start + 14}">'
            f"{_norm(edge)}</text>",
        ]
    return drawn


def _lane(lanes: list[tuple[int, int]], edge: Edge) -> int:
    """The nearest lane that is free between both ends."""
    taken = {lane for end, lane in lanes if end > edge.start}
    lane = next(lane for lane in range(len(lanes) + 1) if lane not in taken)
    lanes.append((edge.end, lane))
    return lane
