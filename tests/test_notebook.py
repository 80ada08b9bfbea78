"""Results display as HTML in a notebook, and as text elsewhere."""

import importlib
import pkgutil
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.backend import StatusTable
from agnostic_nn.diagnostics.bisect import Bisection
from agnostic_nn.diagnostics.compare import Workload, run_comparison
from agnostic_nn.diagnostics.compare.report import Comparison
from agnostic_nn.diagnostics.conformance import Conformance, conformance
from agnostic_nn.diagnostics.examples import LAYERS
from agnostic_nn.diagnostics.explain.explanation import Explanation
from agnostic_nn.diagnostics.gradcheck.report import Report
from agnostic_nn.diagnostics.profile import Profile
from agnostic_nn.diagnostics.summary import Summary
from agnostic_nn.display import tables
from agnostic_nn.training import history as histories
from agnostic_nn.training.batches import Examples

VOID = {
    "area",
    "base",
    "br",
    "col",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "wbr",
}
MODEL = nn.Sequential(
    nn.Dense(4), nn.Residual(nn.Dense(4, bias=False), nn.ReLU()), nn.Dense(2)
)


class Strict(HTMLParser):
    """Refuse unclosed tags, scripts, and references to other files."""

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("embed", "object", "script")
        # without these, browsers would request a file
        if tag in ("base", "link"):
            assert dict(attrs)["href"] in ("about:srcdoc", "data:,")
            return
        for name, value in attrs:
            if name == "srcdoc":  # a complete page in a frame
                self.words.append(read(value))
                continue
            assert not name.startswith("on"), name
            assert name not in ("action", "data", "src"), name
            local = name != "href" and not name.endswith(":href")
            assert local or value.startswith("#"), value
            assert "url(" not in (value or "").replace("url(#", ""), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(html):
    """Return the text of valid HTML."""
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return " ".join(parser.words).replace("\u00a0", " ")


def trainer(loss=nn.mean_squared_error):
    return nn.Trainer(MODEL, loss, nn.SGD(0.01), backend="numpy", shape=(3,))


def history():
    x = np.random.default_rng(0).standard_normal((20, 3)).astype("float32")
    result = trainer().fit(x, x[:, :2], epochs=3, validation=(x, x[:, :2]), verbose=0)
    result.epochs[1]["note"] = "a < b"
    result.epochs[0]["note"] = None
    return result


def profile():
    x = np.ones((4, 3), "float32")
    return nn.profile(
        MODEL, nn.mean_squared_error, nn.SGD(0.1), x, x[:, :2], steps=1, backend="numpy"
    )


def explanation():
    x = np.ones((4, 3), "float32")
    return nn.explain(MODEL, nn.mean_squared_error, x, x[:, :2])


def bisection():
    x = np.ones((4, 3), "float32")
    return nn.bisect(MODEL, nn.mean_squared_error, nn.SGD(0.1), x, x[:, :2], "numpy")


def comparison():
    x = np.random.default_rng(0).standard_normal((20, 3)).astype("float32")
    examples = Examples(x, x[:, :2])
    task = (
        "tiny",
        "a < b",
        lambda: (examples, examples),
        MODEL,
        nn.mean_squared_error,
        None,
        1,
    )
    return run_comparison(Workload(*task, batch_size=10), ["numpy"], sizes=())


RESULTS = {  # type: function that returns one, words in both forms
    nn.Layer: (lambda: MODEL, ["Dense", "Residual", "ReLU"]),
    nn.Trainer: (
        trainer,
        ["Trainer on numpy:cpu in float32: mean_squared_error by SGD", "Dense"],
    ),
    nn.History: (history, ["epoch", "loss", "validation_loss", "a < b"]),
    Summary: (
        lambda: trainer().summary(),
        ["parameters", "output shape", "peak memory"],
    ),
    Report: (
        lambda: nn.check(nn.Dense(2), (3,), backends=[]),
        ["Dense", "central difference"],
    ),
    Profile: (
        profile,
        # not the name of an operation, since one may take less than 1 %
        ["numpy:cpu, a batch of 4", "the real step", "of all operations"],
    ),
    Bisection: (bisection, ["numpy", "Dense"]),
    Explanation: (explanation, ["Dense", "ReLU"]),
    Comparison: (comparison, ["2 steps of tiny", "numpy:cpu agrees with the float64"]),
    StatusTable: (nn.backends, ["numpy:cpu", "float64"]),
    Conformance: (
        lambda: conformance("numpy", only="Dense"),
        ["numpy:cpu", "1 tried: 1 exact", "layers", "Dense"],
    ),
}


def displayed_classes():
    """Return all classes of the library that define `_repr_html_`.

    Bridges to libraries that are not installed are left out.
    """
    result = set()
    for info in pkgutil.walk_packages(nn.__path__, "agnostic_nn."):
        try:
            module = importlib.import_module(info.name)
        except ImportError:
            if not info.name.startswith(("agnostic_nn.interop", "agnostic_nn.sklearn")):
                raise
            continue
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__.startswith("agnostic_nn"):
                result |= {value} if "_repr_html_" in vars(value) else set()
    return result


def test_every_class_with_html_is_tested_here():
    assert displayed_classes() == set(RESULTS)


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
def test_html_and_text_of_a_result_contain_the_same_words(kind):
    make, words = RESULTS[kind]
    result = make()
    assert isinstance(result, kind)
    html, text = read(result._repr_html_()), str(result)
    assert "<" not in text.replace("a < b", "")
    for word in words:
        assert word in html
        assert word in text


@pytest.mark.parametrize("example", LAYERS, ids=lambda example: example.name)
def test_every_layer_displays_as_html(example):
    text = read(example.layer._repr_html_())
    assert type(example.layer).__name__ in text
    assert type(example.layer)._repr_html_ is nn.Layer._repr_html_


def test_names_in_html_are_escaped():
    def tricky(y, target):
        return nn.mean_squared_error(y, target)

    tricky.__name__ = "<b>"
    assert "<b>" in read(trainer(tricky)._repr_html_())
    layer = nn.Lambda(lambda x: x)  # <lambda>
    assert "<lambda>" in read(layer._repr_html_())
    assert "<lambda>" in read(nn.Sequential(layer)._repr_html_())


def test_inner_layers_are_indented_and_default_options_are_omitted():
    block = nn.TransformerBlock(
        nn.MultiHeadAttention(4, causal=True), 64, norm=nn.RMSNorm()
    )
    model = nn.Sequential(nn.Repeat(block, 2), nn.Conv2D(3, 2))
    text = model._repr_html_()
    lines = [
        line.split("</td>") for line in text.split('<td style="text-align: left">')[1:]
    ]
    cells = [line[0] for line in lines]
    assert cells == [
        *("", "Sequential"),
        *("0", "\u00a0\u00a0Repeat(count=2)"),
        *(
            "0",
            "\u00a0\u00a0\u00a0\u00a0TransformerBlock("
            "attention=MultiHeadAttention(heads=4, causal=True), hidden=64, "
            "norm=RMSNorm())",
        ),
        *("1", "\u00a0\u00a0Conv2D(width=3, window=(2, 2))"),
    ]


def drawn(epochs, monkeypatch):
    """Return the plots of a history."""
    figures = []
    monkeypatch.setattr(
        histories, "svg", lambda figure, about: figures.append(figure) or about
    )
    nn.History(epochs)._repr_html_()
    return [figure.axes[0] for figure in figures]


def test_a_history_plots_the_loss_and_each_metric(monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    rows = [
        {"epoch": 1, "steps": 5, "loss": 2.0, "validation_loss": 3.0, "seconds": 0.1},
        {"epoch": 2, "steps": 5, "loss": 1.0, "validation_loss": None, "seconds": 0.1},
        {"epoch": 3, "steps": 5, "loss": 0.5, "validation_loss": 2.5, "seconds": 0.1},
    ]
    rows = [row | {"validation_accuracy": 0.5, "note": "x"} for row in rows]
    loss, accuracy = drawn(rows, monkeypatch)
    assert (loss.get_title("left"), accuracy.get_title("left")) == ("loss", "accuracy")
    names, points = zip(
        *((line.get_label(), line.get_xydata()) for line in loss.lines), strict=True
    )
    assert names == ("loss", "validation_loss")
    np.testing.assert_array_equal(points[0], [[1, 2.0], [2, 1.0], [3, 0.5]])
    np.testing.assert_array_equal(points[1], [[1, 3.0], [2, np.nan], [3, 2.5]])
    assert loss.get_legend() is not None
    assert accuracy.get_legend() is None
    assert drawn(rows[:1], monkeypatch) == []
    assert drawn([], monkeypatch) == []


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ((100.0, 1.0), "linear"),
        ((101.0, 1.0), "log"),
        ((1e-3, 1.0, 1e-4), "log"),
        ((101.0, 0.0), "linear"),
        ((101.0, 1.0, -1.0), "linear"),
        ((np.nan, np.inf, 101.0, 1.0), "log"),
    ],
)
def test_a_loss_over_more_than_two_decades_has_a_logarithmic_axis(
    losses, scale, monkeypatch
):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    rows = [
        {"epoch": i, "loss": loss, "distance": loss} for i, loss in enumerate(losses, 1)
    ]
    loss, distance = drawn(rows, monkeypatch)
    assert loss.get_yscale() == scale
    assert distance.get_yscale() == "linear"


def test_plots_define_their_colours():
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    html = history()._repr_html_()
    read(html)
    assert "<svg" in html
    # text of another colour could be black on black
    texts = re.findall(r"<text[^>]*>", html)
    assert texts
    assert all("var(--ink)" in text for text in texts)
    assert "--c0: #" in html
    assert 'aria-label="loss and validation_loss by epoch"' in html


def test_a_long_table_is_folded(monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
    rows = [{"epoch": i, "loss": 1.0 / i} for i in range(1, 23)]
    assert "<summary>22 epochs</summary>" in nn.History(rows)._repr_html_()
    assert "<details>" not in nn.History(rows[:20])._repr_html_()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "<details>" not in nn.History(rows)._repr_html_()


def test_words_are_aligned_left_although_notebooks_align_right():
    html = MODEL._repr_html_()
    assert html.count('<td style="text-align: left">') == html.count("<td") > 0
    html = trainer().summary()._repr_html_()
    assert '<th style="text-align: left">layer</th>' in html
    assert '<th class="right">parameters</th>' in html


def test_without_matplotlib_a_history_displays_its_table_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    html = history()._repr_html_()
    assert "<svg" not in html
    assert "validation_loss" in read(html)


def test_long_results_are_folded_under_a_summary(monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROWS", 10)
    html = nn.check(nn.LayerNorm(), (5,), backends=[])._repr_html_()
    assert re.search(
        r"<summary>\d+ comparisons, the worst at \S+ of its tolerance</summary>", html
    )
    result = bisection()
    html = result._repr_html_()
    assert f"<summary>all {len(result.findings)} results</summary>" in html
    details = html.index("<details>")
    assert html.index("Agrees within rounding") < details < html.index("<td")


def test_links_inside_a_page_work_in_a_frame():
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    pytest.importorskip("latex2mathml", reason="the extra `report` is not installed")
    html = unescape(explanation()._repr_html_())
    assert html.index('<base href="about:srcdoc">') < html.index('<a href="#')
    assert "<base" not in explanation().to_html()


@pytest.mark.parametrize("make", [comparison, explanation])
def test_without_jinja2_pages_are_text(make, monkeypatch):
    result = make()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert read(result._repr_html_()) == str(result).replace("\u00a0", " ")


def test_displaying_a_layer_imports_no_heavy_package():
    code = (
        "import sys, agnostic_nn as nn\n"
        "nn.Sequential(nn.Dense(3), nn.ReLU())._repr_html_()\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-P", "-c", code]
    loaded = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"jinja2", "matplotlib", "numpy", "rich"} & set(loaded)
