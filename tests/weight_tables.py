"""The tables of docs/guides/bring_weights.md, from `interop.conventions`.

`python tests/weight_tables.py` compares the page with them, and `--write` updates it.
"""

import sys
from pathlib import Path

import agnostic_nn as nn
from agnostic_nn.interop.conventions import KERAS, ONNX, PYTORCH

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "bring_weights.md"
BEGIN = "<!-- tables of tests/weight_tables.py -->\n"
ATTENTION = nn.MultiHeadAttention(1)
LAYERS = (
    nn.Dense(1),
    nn.Bilinear(1),
    nn.Conv1D(1, 1),
    nn.Conv2D(2, 1, groups=2),
    nn.Conv3D(1, 1),
    nn.ConvTranspose1D(1, 1),
    nn.ConvTranspose2D(1, 1),
    nn.ConvTranspose3D(1, 1),
    nn.BatchNorm(momentum=None),
    nn.LayerNorm(),
    nn.GroupNorm(1),
    nn.InstanceNorm(),
    nn.RMSNorm(),
    nn.Embedding(1, 1),
    nn.EmbeddingBag(1, 1),
    nn.Unembedding(1),
    nn.PositionEmbedding(1),
    nn.PReLU(),
    nn.RNN(1),
    nn.LSTM(1),
    nn.LSTM(1, projection=1),
    nn.GRU(1),
    nn.GRU(1, reset="before"),
    ATTENTION,
    nn.MultiHeadAttention(1, learned_key=True),
)


def tables():
    """Return the text of all tables."""
    parts = []
    for convention in (PYTORCH, KERAS, ONNX):
        rows = [f"### {convention.library}", ""]
        rows += ["| layer | here | there | conversion |", "| --- | --- | --- | --- |"]
        unique = dict.fromkeys(
            row for layer in LAYERS for row in rows_of(convention, layer)
        )
        parts.append("\n".join([*rows, *joined(unique), ""]))
    block = nn.TransformerBlock(ATTENTION, 2, activation=nn.SwiGLU(), norm=nn.RMSNorm())
    names = [form.name for form in PYTORCH.forms(block)]
    attention = [form.name for form in PYTORCH.forms(ATTENTION)]
    parts.append(
        "`MultiHeadAttention` has these forms in PyTorch: "
        f"{', '.join(attention)}. `TransformerBlock` has: {', '.join(names)}, and with "
        "`cross`: TransformerDecoderLayer.\n"
    )
    return "\n".join(parts)


def rows_of(convention, layer):
    """Yield (layer, here, there, conversion) of the first forms of a layer."""
    try:
        forms = convention.forms(layer)
    except (TypeError, ValueError):
        return
    for form in forms[:2] if isinstance(layer, nn.Conv2D) else forms[:1]:
        for rule in form.rules:
            here = " and ".join(short(path) for path in rule.ours) or "-"
            there = " and ".join(f"`{n}`" if n else "itself" for n in rule.theirs)
            yield f"{type(layer).__name__}", here, there, rule.how


def short(path):
    """Return a path without "params", and without the level and the direction."""
    parts = path.split(".")[1:]
    return f"`{'.'.join(p for p in parts if p not in ('0', 'forward'))}`"


def joined(rows):
    """Return lines in which layers that have equal rows are named together."""
    groups = {}
    for layer, *rest in rows:
        groups.setdefault(tuple(rest), []).append(layer)
    return [
        f"| {', '.join(dict.fromkeys(v))} | {' | '.join(k)} |"
        for k, v in groups.items()
    ]


def page():
    """Return the page with the tables that it should have."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(BEGIN)[0] + BEGIN + "\n" + tables()


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not up to date: python tests/weight_tables.py --write")
