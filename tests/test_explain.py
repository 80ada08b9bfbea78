"""Tests of `explain`: numbers, graph, formulas, findings, and the notebooks' pages."""

import html
import re
import struct
import sys
import zlib
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from cases import inputs, layer_cases
from test_examples import NOTEBOOKS, numbers

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics.cli.explain import EXAMPLES
from agnostic_nn.diagnostics.cli.main import main
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES
from agnostic_nn.diagnostics.explain import notebooks
from agnostic_nn.diagnostics.explain.docstrings import (
    first_argument,
    forward_text,
    gradient_text,
    letters_in,
    loss_text,
)
from agnostic_nn.diagnostics.explain.formulas import FORMULAS, Formula, formula_of
from agnostic_nn.diagnostics.explain.html import COLUMNS, TERMS, Part, heat_map
from agnostic_nn.diagnostics.explain.html import page as explain_page
from agnostic_nn.diagnostics.explain.latex import formula_with_names, name_of, plain
from agnostic_nn.diagnostics.explain.numbers import (
    array_stats,
    downsampled,
    format_rows,
    is_small,
    tiles,
)
from agnostic_nn.diagnostics.explain.walk import walk
from agnostic_nn.diagnostics.summary import summarize
from agnostic_nn.display.pages import formula as mathml

PAGES = Path(__file__).parents[1] / "docs" / "explain"
XP = nn.backend("numpy").xp


def needs_pages():
    for name in ("jinja2", "latex2mathml"):
        pytest.importorskip(name, reason="the extra `report` is not installed")


def drawn(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def explained(
    model, shape=(3, 4), backend="numpy", loss=nn.mean_squared_error, **options
):
    _, _, out = model.init(nn.random.key(0, xp=XP), shape[1:], XP.float64)
    target = drawn((shape[0], *out), seed=1)
    return nn.explain(model, loss, drawn(shape), target, backend=backend, **options)


def dense(width=4):
    return nn.Dense(width)


def block():
    return nn.TransformerBlock(nn.MultiHeadAttention(2), 8, dropout=0.25)


# Nodes in order: the layer's class or the operation of a merge, and the nodes that each
# reads.
WAYS = {
    "chain": (
        nn.Sequential(dense(), nn.ReLU(), dense(3)),
        (3, 4),
        [("x", []), ("Dense", [0]), ("ReLU", [1]), ("Dense", [2])],
    ),
    "residual": (
        nn.Sequential(dense(), nn.Residual(dense(), nn.Tanh()), dense(2)),
        (3, 4),
        [
            ("x", []),
            ("Dense", [0]),
            ("Dense", [1]),
            ("Tanh", [2]),
            ("+", [1, 3]),
            ("Dense", [4]),
        ],
    ),
    "shortcut": (
        nn.Residual(dense(3), nn.Tanh(), shortcut=dense(3)),
        (3, 4),
        [("x", []), ("Dense", [0]), ("Tanh", [1]), ("Dense", [0]), ("+", [2, 3])],
    ),
    "sum": (
        nn.Sequential(nn.Parallel(dense(), nn.Tanh(), nn.ReLU()), dense(2)),
        (3, 4),
        [
            ("x", []),
            ("Dense", [0]),
            ("Tanh", [0]),
            ("ReLU", [0]),
            ("+", [1, 2, 3]),
            ("Dense", [4]),
        ],
    ),
    "product": (
        nn.Parallel(dense(), nn.Sequential(dense(), nn.Sigmoid()), join="multiply"),
        (3, 4),
        [("x", []), ("Dense", [0]), ("Dense", [0]), ("Sigmoid", [2]), ("×", [1, 3])],
    ),
    "repeat": (
        nn.Repeat(nn.Sequential(dense(), nn.Tanh()), 2),
        (3, 4),
        [("x", []), ("Dense", [0]), ("Tanh", [1]), ("Dense", [2]), ("Tanh", [3])],
    ),
    "transformer": (
        nn.Repeat(nn.Recompute(block()), 1),
        (2, 5, 4),
        [
            ("x", []),
            *(
                ("LayerNorm", [0]),
                ("MultiHeadAttention", [1]),
                ("Dropout", [2]),
                ("+", [0, 3]),
            ),
            *(("LayerNorm", [4]), ("Dense", [5]), ("GELU", [6]), ("Dense", [7])),
            *(("Dropout", [8]), ("+", [4, 9])),
        ],
    ),
    "graph": (
        nn.Graph(a=(dense(), "x"), b=(nn.Shared("a"), "a"), c=(nn.Add(), "a", "b")),
        (3, 4),
        [("x", []), ("Dense", [0]), ("Dense", [1]), ("Add", [1, 2])],
    ),
    "frozen": (
        nn.Sequential(nn.Freeze(dense()), nn.Tanh(), dense(2)),
        (3, 4),
        [("x", []), ("Dense", [0]), ("Tanh", [1]), ("Dense", [2])],
    ),
}
each_way = pytest.mark.parametrize(("model", "shape", "nodes"), WAYS.values(), ids=WAYS)


@each_way
def test_every_edge_of_a_network_is_found(model, shape, nodes):
    explanation = explained(model, shape)
    kinds = [
        n.operation or (type(n.call.layer).__name__ if n.call else n.name)
        for n in explanation.nodes
    ]
    reads = [[edge.start for edge in node.edges] for node in explanation.nodes]
    assert list(zip(kinds, reads, strict=True)) == nodes
    assert explanation.output == (len(nodes) - 1,)


@each_way
def test_the_gradients_from_all_readers_add_up_to_the_gradient_of_a_node(
    model, shape, nodes
):
    explanation = explained(model, shape)
    for node in explanation.nodes:
        back = [
            e.gradient
            for reader in explanation.nodes
            for e in reader.edges
            if e.start == node.number
        ]
        back += [explanation.dy] * (node.number in explanation.output)
        np.testing.assert_allclose(sum(back), node.dy, rtol=1e-12, atol=1e-15)


@each_way
def test_all_numbers_are_those_of_the_layers_own_forward_and_backward(
    backend, model, shape, nodes
):
    dtype = "float64" if backend.has_float64 else "float32"
    x = drawn(shape, dtype)
    params, state, out = model.init(
        nn.random.key(0, xp=XP), shape[1:], getattr(XP, dtype)
    )
    target = drawn((shape[0], *out), dtype, seed=1)
    arguments = params, state, x, target
    explanation = nn.explain(
        model,
        nn.mean_squared_error,
        x,
        target,
        params=params,
        state=state,
        backend=backend,
    )
    params, state, x, target = backend.asarray(arguments)
    with backend.applied():
        y, _, cache = model.forward(params, state, x, train=True)
        value, dy = nn.mean_squared_error(y, target)
        dx, grads = model.backward(params, cache, dy)
    # a compiled loop (`Repeat`) may sum in another order, which costs a few eps
    slack = 64 * float(np.finfo(dtype).eps) * backend.compiles
    close = {"rtol": slack, "atol": slack}
    np.testing.assert_allclose(explanation.loss, backend.to_numpy(value), **close)
    np.testing.assert_allclose(explanation.nodes[0].dy, backend.to_numpy(dx), **close)
    np.testing.assert_allclose(explanation.nodes[-1].y, backend.to_numpy(y), **close)
    if "Shared" in repr(model) or "Repeat" in repr(model) or "Freeze" in repr(model):
        return  # their gradients are sums, stacked or absent
    ours = [
        leaf for node in explanation.nodes if node.call for leaf in leaves(node.grads)
    ]
    theirs = leaves(backend.to_numpy(grads))
    for our_grad, their_grad in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our_grad, their_grad, **close)


@each_way
def test_a_model_gives_back_the_same_when_it_is_watched(model, shape, nodes):
    params, state, out = model.init(nn.random.key(0, xp=XP), shape[1:], XP.float64)
    x, target = drawn(shape), drawn((shape[0], *out), seed=1)
    watched = walk(model, nn.mean_squared_error, params, state, x, target)
    y, _, cache = model.forward(params, state, x, train=True)
    dx, grads = model.backward(params, cache, nn.mean_squared_error(y, target)[1])
    both = zip(named_leaves(watched.grads), named_leaves(grads), strict=True)
    for (path, grad), (expected_path, expected) in both:
        assert path == expected_path
        np.testing.assert_array_equal(grad, expected)
    np.testing.assert_array_equal(watched.calls[0].dx, dx)


def test_the_report_says_where_each_gradient_comes_from():
    model, shape, _ = WAYS["residual"]
    lines = str(explained(model, shape)).splitlines()
    assert [line.strip() for line in lines if "arrives" in line] == [
        "∂L/∂z3 arrives from the loss",
        "∂L/∂s1 arrives from 2 Dense, and passes unchanged to each input of s1",
        "∂L/∂a2 arrives from the sum s1 of 1 Residual",
        "∂L/∂z2 arrives from 1.1 Tanh",
        "∂L/∂z1 arrives from 1.0 Dense and from the sum s1 of 1 Residual, summed",
    ]
    text = str(explained(WAYS["transformer"][0], (2, 5, 4)))
    assert text.count("recomputed during backward") == 8
    assert "in 0 Recompute › 0 TransformerBlock › 0.feed Sequential" in text
    assert (
        str(explained(WAYS["frozen"][0])).count("frozen: the optimizer does not") == 1
    )


def test_the_calls_of_a_repeat_match_the_block_itself():
    model, x, target = (
        nn.Repeat(nn.Residual(dense(), nn.Tanh()), 3),
        drawn((2, 4)),
        drawn((2, 4)),
    )
    params, state, _ = model.init(nn.random.key(0, xp=XP), (4,), XP.float64)
    arguments = {"params": params, "backend": "numpy"}
    explanation = nn.explain(model, nn.mean_squared_error, x, target, **arguments)
    y, _, cache = model.forward(params, state, x, train=True)
    _, grads = model.backward(params, cache, nn.mean_squared_error(y, target)[1])
    repeated = [
        node for node in explanation.nodes if node.call and node.names.get("weight")
    ]
    assert [node.call.path for node in repeated] == ["0.0", "1.0", "2.0"]
    for i, node in enumerate(repeated):
        np.testing.assert_array_equal(node.grads["weight"], grads[0]["weight"][i])


# --- every layer ----------------------------------------------------------------------


def projected(y, target):
    """Σ y · target over all arrays of y; its gradient is the target."""
    return sum(
        XP.sum(a * b) for a, b in zip(leaves(y), leaves(target), strict=True)
    ), target


CASES = [case for case in layer_cases() if not case.thorough]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_layer_is_explained_and_its_check_agrees(backend, case):
    if str(backend) != "numpy:cpu":
        pytest.skip("the text about a layer is the same on every backend")
    x = inputs(case, np.random.default_rng(0), 3, "float64")
    params, state, _ = case.layer.init(
        nn.random.key(0, xp=XP), tree_map(lambda leaf: leaf.shape[1:], x), XP.float64
    )
    y, _, _ = case.layer.forward(params, state, x, train=True)
    target = tree_map(lambda leaf: drawn(leaf.shape), y)
    explanation = nn.explain(
        case.layer, projected, x, target, params=params, state=state
    )
    text = str(explanation)
    assert all(check.agrees or check.kink for check in explanation.checks.values()), (
        text
    )
    assert "@" not in text
    assert "\\" not in text
    for node in explanation.nodes:
        formula = formula_of(node.call.layer) if node.call else None
        if formula:
            there = {path for path, _ in named_leaves(node.params)}
            assert set(formula.backward) <= there | {"x", "bias"}
        elif node.call:
            for part in ("forward", "gradient"):
                for line in getattr(explanation, f"{part}_text")(node).splitlines():
                    assert f"  | {line}".rstrip() in text.splitlines()
                symbols = getattr(explanation, f"{part}_symbols")(node)
                assert not symbols or f"  {symbols}" in text.splitlines()


@pytest.mark.parametrize("what", FORMULAS, ids=lambda what: what.__name__)
def test_a_formula_is_complete_in_latex_and_as_text(what):
    formula = FORMULAS[what]
    names = {"x": "a_1", "y": "z_2"}
    names |= {
        path: name_of(formula.letters, path, "2")
        for path in formula.backward
        if len(path) > 1
    }
    names |= {path: name_of(formula.letters, path, "2") for path in formula.letters}
    for rule in (formula.forward, *formula.backward.values(), *formula.more):
        latex = formula_with_names(rule, names)
        assert "@" not in latex
        assert not set(plain(latex)) & set("\\{}@")
    assert formula.forward.startswith(("@y", "L"))


def test_formulas_are_typeset():
    needs_pages()
    for formula in FORMULAS.values():
        for rule in (formula.forward, *formula.backward.values(), *formula.more):
            text = mathml(formula_with_names(rule, {"x": "x", "y": "y"}))
            assert "merror" not in text
            assert "\\" not in text


def test_a_formula_loses_what_a_layer_does_not_have():
    explanation = explained(nn.Dense(2, bias=False))
    assert "  z = x W\n" in str(explanation)
    assert "b" not in explanation.nodes[1].names


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{\partial L}{\partial W_1} = x^\top z_{12}", "∂L/∂W1 = xᵀ z12"),
        (
            r"z_{1, t} = h_{t-1} \odot \sqrt{v + \varepsilon}",
            "z1[t] = h[t-1] ∘ √(v + ε)",
        ),
        (r"W_{Q2} + a_{1'}", "WQ2 + a1'"),
        (r"\frac{1}{1 + \exp(-x)}", "1/(1 + exp(-x))"),
        (r"x \text{, laid out}", "x, laid out"),
        (r"\lambda \exp(x)", "lambda exp(x)"),
    ],
)
def test_formulas_as_plain_text(latex, text):
    assert plain(latex) == text


class Own(nn.Layer):
    """y = 3 x.

    Gradient
    --------
    dx = 3 dy.

    Notes
    -----
    Not this.
    """

    def forward(self, params, state, x, *, train=False):
        return 3.0 * x, state, ()

    def backward(self, params, cache, dy):
        return 3.0 * dy, {}


class Signed(Own):
    formula: ClassVar = Formula(r"@y = 3 @x, \quad a = 1, \quad b = 2", {"x": "3 @dy"})


class HalfSigned(Own):
    formula: ClassVar = Formula("@y = 3 @x")


class Steep(nn.ReLU):
    """ReLU with a custom backward."""

    def backward(self, params, cache, dy):
        return 2.0 * dy, {}


class Silent(nn.Layer):
    forward = Own.forward
    backward = Own.backward


@dataclass(frozen=True)
class SilentData(Silent):
    factor: float = 3.0


def undocumented(y, target):
    return XP.sum(y), XP.ones_like(y)


def test_a_custom_layer_is_described_by_its_docstring_or_its_formula():
    text = str(explained(Own()))
    assert "Own()\n  | y = 3 x.\n  y    (3, 4)" in text
    assert "  | dx = 3 dy.\n  where dx is ∂L/∂x, dy is ∂L/∂y\n" in text
    assert "Not this" not in text
    text = str(explained(Signed()))
    assert "  y = 3 x,  a = 1,  b = 2\n" in text
    assert "∂L/∂x = 3 ∂L/∂y" in text
    assert "  | " not in text
    text = str(explained(HalfSigned()))
    assert "  y = 3 x\n" in text
    assert "  | dx = 3 dy.\n" in text
    assert text.count("  | ") == 1


def test_a_subclass_has_the_formulas_of_its_base_if_it_computes_the_same():
    class Same(nn.Tanh):
        pass

    class Flat(nn.Tanh):
        def slope(self, x):
            return 0.0 * x

    assert formula_of(nn.ReLU()) is not None
    assert formula_of(Steep()) is None
    assert gradient_text(Same()) == gradient_text(nn.Tanh())
    assert (
        gradient_text(Flat())
        == "By the chain rule dx = dy · f'(x), element by element."
    )


@pytest.mark.parametrize("layer", [Silent(), SilentData()], ids=str)
def test_a_layer_without_a_docstring_is_shown_with_a_sentence_that_says_so(layer):
    text = str(explained(layer))
    name = type(layer).__name__
    assert text.count(f"  | {name} has no docstring, from which `explain` would") == 2
    assert "SilentData(factor" not in forward_text(layer)


def test_a_loss_without_a_docstring_is_shown_with_a_sentence_that_says_so():
    text = str(explained(dense(), loss=undocumented))
    assert text.count("undocumented has no docstring") == 1


def test_a_docstring_without_a_gradient_is_shown_with_a_sentence_that_says_so():
    assert gradient_text(Steep()) == (
        'The docstring of Steep has no section "Gradient".'
    )


# Text that says how a gradient is computed.
GRADIENT = re.compile(r"\bd(?:x\w?|a|W)\b|∂L\w?/∂|f'\(")
LIBRARY = {
    case.name: getattr(case.layer, "loss", case.layer) for case in LAYERS + LOSSES
}
LIBRARY |= {
    "Losses": nn.Losses(a=nn.huber),
    "Weighted": nn.Weighted(nn.huber, 2.0),
    "Penalized": nn.Penalized(nn.huber, nn.penalties.L1(0.1)),
}


@pytest.mark.parametrize("what", LIBRARY.values(), ids=LIBRARY)
def test_docstrings_have_the_formula_and_the_gradient_of_everything(what):
    first = forward_text(what).splitlines()[0]
    is_loss = not isinstance(what, nn.Layer)
    assert re.match("Mean |Σ|w · L" if is_loss else r"yₜ = |y\S* = |y\[.*\] = ", first)
    text = gradient_text(what)
    assert "has no docstring" not in text
    assert 'has no section "Gradient"' not in text
    assert isinstance(what, nn.blocks.Block) or GRADIENT.search(text)


def test_a_gradient_may_be_that_of_another_layer_or_of_a_base_class():
    conv = gradient_text(nn.Conv1D(2, 3))
    assert "dW[k] = Σ x[o s + k d - low]ᵀ dy[o]" in conv
    assert gradient_text(nn.Conv3D(2, 3)) == (
        f"The gradient is that of `Conv1D`.\n\n{conv}"
    )
    assert gradient_text(nn.DropPath()) == (
        f"The gradient is that of `Dropout`.\n\n{gradient_text(nn.Dropout(0.5))}"
    )
    lstm = gradient_text(nn.LSTM(4))
    assert lstm.index("dz_i = dc tanh(g) σ'(i)") < lstm.index("dW = Σ xₜᵀ dzₜ")
    assert "f'(x) = 1 - tanh² x" in gradient_text(nn.Tanh())
    assert "dx = dy · f'(x)" in gradient_text(nn.Tanh())


def test_the_symbols_of_a_docstring_are_explained_by_names_in_the_network():
    model = nn.Sequential(nn.Conv1D(2, 2), nn.Tanh(), nn.Flatten(), dense(), nn.PReLU())
    lines = [line.strip() for line in str(explained(model, (2, 3, 1))).splitlines()]
    assert [line for line in lines if line.startswith("where ")] == [
        "where y is z1, W is W1, b is b1",
        "where x is z1, y is a1",
        "where x is a1",
        "where x is z2, y is a2, slope is slope2",
        "where dx is ∂L/∂z2, dy is ∂L/∂a2, dslope is ∂L/∂slope2",
        "where dx is ∂L/∂a1, dy is ∂L/∂y",
        "where dx is ∂L/∂z1, dy is ∂L/∂a1",
        "where dx is ∂L/∂x, dy is ∂L/∂z1, dW is ∂L/∂W1, db is ∂L/∂b1",
    ]
    both = nn.Sequential(nn.Parallel(dense(), dense(), join=None), nn.Multiply())
    assert "where x is (z1, z2)\n" in str(explained(both))
    assert "where dx is (∂L/∂z1, ∂L/∂z2), dy is ∂L/∂y\n" in str(explained(both))
    assert letters_in("y = x W[k] + b_o") == {"weight": "W", "bias": "b"}
    assert letters_in("y = x Wide + dbias") == {}


def test_a_loss_is_described_by_its_docstring():
    text = str(explained(dense(), loss=nn.mean_absolute_error))
    assert "  | Mean of |y - t| over all elements" in text
    assert "∂L/∂y = f'(e) = sign e" in text
    assert "In a mean it is divided" in text
    assert "  where y is z, target is t\n" in text
    assert first_argument(nn.softmax_cross_entropy) == "logits"
    assert "In a mean" not in loss_text(projected)
    assert loss_text(projected).startswith(projected.__doc__)


def test_a_page_shows_docstrings_as_they_are():
    needs_pages()
    model = nn.Sequential(dense(), nn.LeakyReLU())
    page = explained(model, loss=nn.mean_absolute_error).to_html()
    docs = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert [html.unescape(doc) for doc in docs] == [
        forward_text(nn.LeakyReLU()),
        gradient_text(nn.LeakyReLU()),
        loss_text(nn.mean_absolute_error),
    ]
    assert '<p class="faint">where x is z, y is a</p>' in page
    assert '<p class="faint">where y is a, target is t</p>' in page
    assert '<p class="faint">where dx is ∂L/∂z, dy is ∂L/∂a</p>' in page


@dataclass(frozen=True)
class Wrong(nn.Dense):
    """A Dense whose dW has a factor too many."""

    def backward_params(self, params, cache, dy):
        grads = super().backward_params(params, cache, dy)
        return {**grads, "weight": 2.0 * grads["weight"]}


def test_a_check_notices_a_wrong_gradient():
    assert all(
        check.agrees
        for check in explained(nn.Sequential(dense(), dense())).checks.values()
    )
    checks = explained(nn.Sequential(dense(), Wrong(4))).checks
    assert [check.agrees for check in checks.values()] == [True, False]
    assert "these differ" in str(list(checks.values())[1])


# --- saved arrays and findings --------------------------------------------------------


def test_gradients_inside_mixed_precision_are_named_as_multiplied():
    model = nn.MixedPrecision(nn.Sequential(dense()), "float16", scale=512.0)
    x, target = drawn((3, 4), "float32"), drawn((3, 4), "float32")
    explanation = nn.explain(model, nn.mean_squared_error, x, target, backend="numpy")
    assert "gradients are multiplied by 512 here" in str(explanation)
    assert all(check.agrees for check in explanation.checks.values())
    assert "are multiplied" not in str(explained(nn.Sequential(dense())))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversions_of_mixed_precision_are_shown(backend, dtype):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend} has no {dtype}")
    inside = nn.Sequential(dense(), nn.Residual(dense(), nn.ReLU()), nn.LayerNorm())
    model = nn.Sequential(nn.MixedPrecision(inside, dtype, keep=("2",)), nn.Dense(2))
    x, target = drawn((3, 4), "float32"), drawn((3, 2), "float32")
    explanation = nn.explain(model, nn.mean_squared_error, x, target, backend=backend)
    text = str(explanation)
    merges = [node for node in explanation.nodes if node.operation]
    assert [node.operation for node in merges] == [dtype, "+", "float32"]
    assert f"s1 = {dtype}(x)" in text
    assert "arrives from the conversion s3 of 0 Sequential" in text
    assert all(node.dy is not None for node in merges)
    assert all(check.agrees for check in explanation.checks.values())


def test_saved_arrays_are_those_that_the_summary_counts():
    model = nn.Sequential(
        *(
            nn.Conv2D(3, 3, padding="same"),
            nn.BatchNorm(),
            nn.SiLU(),
            nn.AveragePool2D(2),
        ),
        *(
            nn.Flatten(),
            nn.Dropout(0.5),
            dense(),
            nn.ReLU(),
            nn.Parallel(dense(), dense()),
        ),
    )
    explanation = explained(model, (2, 6, 6, 1))
    params, state, _ = model.init(nn.random.key(0, xp=XP), (6, 6, 1), XP.float64)
    rows = summarize(model, params, state, (6, 6, 1), "float64", 2).rows
    counted = {row.path: row.bytes_kept for row in rows}
    for node in explanation.nodes:
        if node.call:
            saved = sum(array.bytes for array in explanation.saved[node.number])
            assert saved == counted[node.call.path], node.call.path


def params_of(model, change, shape=(4,)):
    params, _, _ = model.init(nn.random.key(0, xp=XP), shape, XP.float64)
    return tuple(
        {name: change(name, leaf) if i == 0 else leaf for name, leaf in tree.items()}
        for i, tree in enumerate(params)
    )


def scaled(by):
    return lambda name, leaf: by * leaf


FINDINGS = {
    "nothing": (nn.Sequential(dense(8), nn.ReLU(), dense(2)), scaled(1.0), set()),
    "one unit dead": (
        nn.Sequential(dense(), nn.ReLU(), dense(2)),
        lambda name, leaf: leaf - 1e3 * (np.arange(4) == 2) * (name == "bias"),
        {("dead", "1 ReLU"), ("zero", "0 Dense")},
    ),
    "all dead": (
        nn.Sequential(dense(), nn.ReLU(), dense(2)),
        lambda name, leaf: leaf - 1e3 * (name == "bias"),
        {
            ("dead", "1 ReLU"),
            ("zero", "0 Dense"),
            ("zero", "2 Dense"),
            ("vanishing", "0 Dense"),
        },
    ),
    "saturated": (
        nn.Sequential(dense(), nn.Tanh(), dense(2)),
        scaled(1e3),
        {("saturated", "1 Tanh")},
    ),
    "vanishing": (
        nn.Sequential(dense(), nn.Tanh(), dense(2)),
        scaled(1e-4),
        {("vanishing", "0 Dense")},
    ),
    "exploding": (
        nn.Sequential(dense(), nn.ReLU(), dense(2)),
        scaled(1e4),
        {("exploding", "0 Dense")},
    ),
    "NaN": (
        nn.Sequential(dense(), nn.Tanh(), dense(2)),
        scaled(np.nan),
        {("not finite", "0 Dense")},
    ),
    "infinity": (
        nn.Sequential(dense(), nn.ReLU(), dense(2)),
        scaled(np.inf),
        {("not finite", "0 Dense")},
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN and infinity
@pytest.mark.parametrize(("model", "change", "kinds"), FINDINGS.values(), ids=FINDINGS)
def test_problems_are_reported(model, change, kinds):
    explanation = explained(model, (16, 4), params=params_of(model, change))
    there = {(finding.kind, finding.path) for finding in explanation.findings}
    if {kind for kind, _ in kinds} <= {"saturated", "not finite"} and kinds:
        assert kinds <= there  # and findings that follow from them
    else:
        assert there == kinds
    text = " ".join(str(explanation).split())
    for finding in explanation.findings:
        assert finding.text in text


def test_figures_of_an_array():
    stats = array_stats(np.array([[3.0, 0.0], [-4.0, np.nan]]))
    assert (stats.norm, stats.smallest, stats.largest) == (5.0, -4.0, 3.0)
    assert stats.mean == pytest.approx(-1 / 3)
    assert (stats.zeros, stats.nan, stats.infinite) == (0.25, 1, 0)
    assert "1 NaN" in str(stats)
    assert (
        format_rows(np.array([[1.0, -0.5], [10.0, 0.25]])) == "[ 1  -0.5]\n[10  0.25]"
    )
    assert is_small(np.zeros((8, 8)))
    assert not is_small(np.zeros((9, 1)))
    assert is_small(np.zeros((2, 4, 3)))
    assert not is_small(np.zeros((2, 5, 3)))


def test_a_large_matrix_is_reduced_to_the_entries_furthest_from_0():
    matrix = np.zeros((200, 3))
    matrix[150, 1] = -7.0
    small, sizes = downsampled(matrix)
    assert small.shape == (67, 3)
    assert sizes == (3, 1)
    assert small[50, 1] == -7.0
    assert np.count_nonzero(small) == 1
    assert [part for part, _ in tiles(np.zeros((3, 4, 5)))] == ["[0]", "[1]", "[2]"]
    assert [part.shape for _, part in tiles(np.zeros((3, 5, 2, 2)), weight=True)] == [
        (3, 5)
    ] * 4
    assert [part.shape for _, part in tiles(np.zeros((3, 5, 6, 16)))] == [(5, 6)] * 8


def pixels(uri):
    """The pixels of a PNG that `heat_map` made."""
    image = b64decode(uri.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", image[16:24])
    start = image.index(b"IDAT")
    (length,) = struct.unpack(">I", image[start - 4 : start])
    rows = zlib.decompress(image[start + 4 : start + 4 + length])
    return (
        np.frombuffer(rows, np.uint8)
        .reshape(height, -1)[:, 1:]
        .reshape(height, width, 4)
    )


def test_a_heat_map_is_transparent_at_0_and_distinguishes_signs_and_nan():
    image = pixels(heat_map(np.array([[-2.0, 0.0, 2.0], [-0.5, np.nan, np.inf]]), 2.0))
    blue, orange = image[0, 0], image[0, 2]
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    assert list(image[..., 3].flat) == [255, 0, 255, 128, 255, 255]
    assert (image[1, 1] == image[1, 2]).all()
    assert not (image[1, 1] == blue).all()


# --- pages ----------------------------------------------------------------------------


def test_a_page_is_self_contained_and_draws_the_network():
    needs_pages()
    model = nn.Sequential(
        dense(), nn.Residual(dense(), nn.Tanh()), nn.Dense(40), dense(2)
    )
    explanation = explained(model)
    page = explanation.to_html("A <page>")
    assert "A &lt;page&gt;" in page
    assert not re.search(r"<script|@import|(?:src|href)=\"(?!#|data:)", page)
    drawn = re.search(r"<svg viewBox.*?</svg>", page, re.DOTALL)[0]
    assert drawn.count('<rect class="box') == 5 + 1  # layers and the loss
    assert drawn.count('<rect class="frame"') == 1
    assert drawn.count('class="down"') == drawn.count('class="up"') == 8
    assert "(3, 40)" in drawn
    for link in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{link}"' in page
    assert page.count("data:image/png") >= 3
    assert page == explanation.to_html("A <page>")
    assert html.escape(page, quote=True) not in page
    assert explanation._repr_html_().startswith("<iframe srcdoc=")


def test_a_page_shows_forward_and_backward_of_a_layer_side_by_side():
    needs_pages()
    model = nn.Sequential(nn.Residual(dense(), nn.ReLU()), dense(2))
    page = explained(model).to_html()
    layers = re.findall(r'<details class="layer".*?</details>', page, re.DOTALL)
    headings = [re.search(r"<summary>([^<]*)", layer)[1].strip() for layer in layers]
    assert headings[0] == "the input x"
    assert headings[-1] == "the loss, mean_squared_error"
    assert len(layers) == 6  # with the sum of the residual block
    for layer in layers:
        left, right = layer.split('<div class="backward"')
        assert "↓ forward" in left
        assert "↑ backward" in right
    dense_layer = layers[headings.index("1  Dense(width=2)")]
    left, right = dense_layer.split('<div class="backward"')
    assert left.count('<figure class="array">') == 3  # W, b, z
    assert right.count('<figure class="array">') == 3  # the gradients of W, b, x
    assert "grid-template-columns: minmax(0, 1fr) minmax(0, 1fr)" in page


def test_a_page_explains_each_term_once():
    needs_pages()
    first = explained(nn.Sequential(dense(), nn.Tanh(), dense(), nn.Tanh()))
    parts = [Part("one", "", first), Part("two", "", first)]
    page = explain_page("title", "", parts)
    for meaning in (*TERMS.values(), *COLUMNS.values()):
        assert page.count(html.escape(meaning)) <= 1
    for name in ("training mode", "slope", "check"):
        assert page.count(TERMS[name]) == 1
    for meaning in COLUMNS.values():
        assert page.count(meaning) == 1


def test_equations_of_a_rule_are_next_to_or_below_each_other():
    needs_pages()
    page = explained(Signed()).to_html()
    rules = re.findall(r'<p class="rule">.*?</p>', page)
    counts = [(rule.count("<math"), rule.count("<span>")) for rule in rules]
    assert counts == [(3, 3), (1, 1)]  # of the layer and of the loss


def test_a_notebook_shows_text_where_pages_cannot_be_rendered(monkeypatch):
    explanation = explained(nn.Sequential(dense(), nn.ReLU()))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    assert explanation._repr_html_() == f"<pre>{html.escape(str(explanation))}</pre>"


def matrices(page):
    """Return every array that a page shows in full."""
    tables = re.findall(r'<table class="matrix">(.*?)</table>', page, re.DOTALL)
    rows = [re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL) for table in tables]
    return [
        np.array(
            [
                [float(x) for x in re.findall(r"<td[^>]*>([^<]*)</td>", row)]
                for row in table_rows
            ]
        )
        for table_rows in rows
    ]


def numbers_in_text(page):
    """Return every number in the text of a page."""
    words = html.unescape(
        re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    )
    return np.array([float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", words)])


@pytest.mark.parametrize(
    ("script", "name"),
    [(script, name) for script, results in NOTEBOOKS.items() for name in results],
)
def test_the_numbers_of_each_notebook_are_in_its_page(script, name):
    page = (PAGES / f"{script}.html").read_text(encoding="utf-8")
    text = NOTEBOOKS[script][name]
    if (
        name in ("drelu_dz", "drelu_dxw, drelu_db", "drelu_dx, drelu_dw")
        or name == "loss"
    ):
        # scalars that the notebook multiplies one by one, and one loss per line
        expected = np.array(
            re.findall(r"Loss: (\S+)", text) or numbers(text).ravel(), dtype=float
        ).ravel()
        page_numbers = numbers_in_text(page)
        for number in expected:
            # 8 digits
            assert np.min(np.abs(page_numbers - number)) <= 5e-8 * abs(number), number
        return
    expected = numbers(text)
    shapes = [m for m in matrices(page) if m.size == expected.size]
    alike = [
        np.allclose(np.reshape(matrix, expected.shape), expected, rtol=1e-7, atol=1e-8)
        for m in shapes
        for matrix in (m, m.T)
    ]
    assert any(alike), f"{name} is missing"


@pytest.mark.parametrize("script", NOTEBOOKS)
def test_the_pages_are_what_the_command_makes(script, tmp_path, capsys):
    needs_pages()
    path = tmp_path / "page.html"
    assert (
        main(
            [
                "explain",
                "--example",
                script,
                "--backend",
                "numpy",
                "--output",
                str(path),
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == f"written: {path}\n"
    new, stored = (
        re.sub(
            r"<math.*?</math>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        for file in (path, PAGES / f"{script}.html")
    )  # how formulas are typeset depends on the package that does it
    again = (
        f"agnostic-nn explain --example {script} --output docs/explain/{script}.html"
    )
    assert new == stored, f"stale: {again}"


def test_the_command_knows_each_notebook():
    assert set(EXAMPLES) == set(notebooks.NOTEBOOKS) == set(NOTEBOOKS)


def test_only_the_rounding_of_a_notebook_fails_a_check():
    for name in NOTEBOOKS:
        _, _, parts = notebooks.notebook_page(name, nn.backend("numpy"))
        for part in parts:
            agree = [check.agrees for check in part.report.checks.values()]
            exact = "rounds" not in part.text
            assert agree == [*[True] * (len(agree) - 1), exact], part.heading


def test_the_command_prints_a_workload_as_text(backend, capsys):
    pytest.importorskip(
        "sklearn", reason="scikit-learn, which brings the data, is not installed"
    )
    arguments = [
        "explain",
        "--workload",
        "digits-mlp",
        "--rows",
        "3",
        "--backend",
        str(backend),
    ]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert f"a batch of 3 on {backend}" in text
    assert "z2 = a1 W2 + b2" in text
    assert text.count("check: ") == 3
    assert "these differ" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--example", "nothing"],
            "no example is called 'nothing'; there are train_neuron",
        ),
        (["--workload", "nothing"], "no workload is called 'nothing'"),
        (
            ["--example", "softmax_network", "--rows", "2"],
            "--rows cannot be used with --example",
        ),
        (["--backend", "nothing"], "no backend is called 'nothing'"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, capsys):
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Dense takes \(..., 4\), got \(2, 5\)"):
        nn.explain(
            nn.Sequential(dense(2)),
            nn.mean_squared_error,
            drawn((2, 5)),
            drawn((2, 2)),
            params=({"weight": drawn((4, 2)), "bias": drawn((2,))},),
            backend="numpy",
        )


def test_data_that_the_loss_cannot_take_are_refused():
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="9"):
        nn.explain(nn.Dense(3), nn.softmax_cross_entropy, x, np.array([0, 9]))
    with pytest.raises(
        TypeError, match="expected a layer or a block as the model, got 3"
    ):
        nn.explain(3, nn.softmax_cross_entropy, x, np.array([0, 1]))
