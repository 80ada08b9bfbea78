"""HTML pages are self-contained, and their plots, tables and formulas are readable."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import agnostic_nn.display
from agnostic_nn.display.tables import html_table, table

pytest.importorskip("jinja2", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
pytest.importorskip("latex2mathml", reason="the extra `report` is not installed")

from agnostic_nn.diagnostics.compare.report.html import _trimmed
from agnostic_nn.diagnostics.compare.report.plots import _means
from agnostic_nn.display.pages import (
    _unbroken_numbers,
    _with_contents,
    _without_font,
    colour,
    figure,
    formula,
    render,
    svg,
)


def plot():
    canvas, axes = figure(4, 2)
    axes.plot([1, 2, 4], label="a < b")
    axes.plot([1, 3, 9], color=colour(1))
    axes.set(title="losses", xlabel="step")
    axes.legend()
    return svg(canvas, 'losses "by" step')


def test_a_page_loads_nothing_and_runs_nothing():
    page = render("page.html", title="A <title>", about="1 & 2", body="<b>not bold</b>")
    assert page.startswith("<!doctype html>")
    assert "A &lt;title&gt;" in page
    assert "1 &amp; 2" in page
    assert "&lt;b&gt;not bold" in page
    assert page.count("<link") == 1
    # otherwise a browser would request one
    assert '<link rel="icon" href="data:,">' in page
    assert not re.search(r"<script|src=|@import|https?://", page)


STYLE = (
    Path(agnostic_nn.display.__file__).parent / "templates" / "page.html"
).read_text(encoding="utf-8")
TEXT = ("ink", "faint", "good", "bad", "doubt", "link", "c0", "c1")
LINES = tuple(f"c{i}" for i in range(8))


def colours(scheme):
    """Return the colours of the page in a scheme, as linear RGB by name."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)[:2]
    )
    assert light.keys() == dark.keys()
    chosen = dark if scheme == "dark" else light
    return {name: linear(colour) for name, colour in chosen.items()}


def linear(colour):
    """Return a colour such as #a1b2c3 as linear RGB (IEC 61966-2-1)."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def contrast(colour, other):
    """Return the contrast ratio of WCAG 2.1."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted((float(colour @ weights), float(other @ weights)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(scheme):
    page = colours(scheme)
    for paper in ("paper", "panel"):
        assert min(contrast(page[name], page[paper]) for name in TEXT) >= 4.5
    assert min(contrast(page[name], page["paper"]) for name in LINES) >= 3.0
    for name in ("good", "bad", "doubt"):
        for text in ("ink", name):
            assert contrast(page[text], page[f"{name}-panel"]) >= 4.5


# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB
COLOUR_VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def oklab(rgb):
    """Return a colour in Oklab: equal distances look equal (Ottosson, 2020)."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponents = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return opponents @ np.cbrt(cones @ np.clip(rgb, 0.0, 1.0))


@pytest.mark.parametrize("vision", COLOUR_VISION)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_lines_are_distinct_also_to_the_colour_blind(scheme, vision):
    page = colours(scheme)
    perceived = [oklab(np.array(COLOUR_VISION[vision]) @ page[name]) for name in LINES]
    closest = min(np.linalg.norm(a - b) for a, b in combinations(perceived, 2))
    # 0.02 is a just noticeable difference
    assert closest >= (0.1 if vision == "all cones" else 0.07)


def test_plots_use_the_colours_of_the_page_and_have_a_label():
    text = plot()
    assert 'aria-label="losses &quot;by&quot; step"' in text
    assert "a &lt; b" in text
    assert "var(--c0)" in text
    assert "var(--c1)" in text
    assert not re.search(r"#[0-9a-f]{6}\b", text.replace("#ffffff", ""))
    assert not re.search(r'<svg[^>]* (width|height)="', text)
    assert plot() == text


def test_a_page_of_several_parts_begins_with_links_to_them():
    empty = '<nav aria-label="contents"></nav>'
    page = _with_contents(f"{empty}<h2>a &lt; b</h2><p>1</p><h2>c</h2>")
    links = re.findall('<a href="#([^"]*)">(.*?)</a>', page)
    assert [name for _, name in links] == ["a &lt; b", "c"]
    for anchor, name in links:
        assert f'<h2 id="{anchor}">{name}</h2>' in page
    assert "<nav" not in _with_contents(f"{empty}<h2>alone</h2>")


def test_numbers_are_not_broken_between_lines():
    text = _unbroken_numbers("2e-06 <b> & 1.5e-13 off, on torch-1e")
    number = '<span class="whole">{}</span>'.format
    expected = f"{number('2e-06')} &lt;b&gt; &amp; {number('1.5e-13')} off, on torch-1e"
    assert text == expected


def test_a_table_omits_columns_that_are_constant_or_shown_elsewhere():
    columns = ["backend", "hardware", "dtype", "loss", "verdict"]
    rows = [
        ["numpy", "a cpu", "float32", 1.0, "fine"],
        ["jax", None, "float32", 2.0, "fine"],
    ]
    rows.append(["reference", None, "float64", 1.0, None])
    short = ["backend", "loss"], [["numpy", 1.0], ["jax", 2.0], ["reference", 1.0]]
    assert _trimmed(2, "after 2 steps", columns, rows) == (
        "after 2 steps, in float32",
        *short,
    )
    rows[1][1:3] = "a gpu", "float64"
    title, columns, _ = _trimmed(2, "after 2 steps", columns, rows)
    assert (title, columns) == ("after 2 steps", ["backend", "hardware", "loss"])


def test_a_curve_of_many_steps_is_drawn_as_means_of_a_few_steps():
    assert _means([1.0, 3.0, 2.0, 4.0, 7.0], 2) == [2.0, 3.0, 7.0]
    assert _means([1.0, 3.0], 1) == [1.0, 3.0]


def test_text_in_plots_uses_the_font_of_the_page():
    elements = re.findall(r"<text [^>]*>|<tspan [^>]*>", plot())
    assert elements
    assert "DejaVu" not in plot()
    assert all("font-family: inherit" in text for text in elements if "font" in text)
    assert "<style" not in plot()  # it would apply to the whole page


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (
            "font-size: 7px; font-family: 'A B', sans-serif",
            "font-size: 7px; font-family: inherit",
        ),
        (
            "font: italic 700 7px 'A B', serif; text-anchor: middle",
            "font: italic 700 7px sans-serif; font-family: inherit; text-anchor: "
            "middle",
        ),
    ],
)
def test_both_forms_of_fonts_of_matplotlib_are_replaced(style, expected):
    assert _without_font(f'<text style="{style}">') == f'<text style="{expected}">'


def test_formulas_are_mathml():
    assert formula(r"\frac{\partial L}{\partial W}").count("<mfrac>") == 1
    assert 'display="block"' in formula("x", block=True)


def test_a_table_has_the_same_content_as_text_and_as_html():
    columns, rows = ["name", "ms"], [["a < b", 1.23456], ["c", None], ["d", 1200]]
    html = html_table(columns, rows, "some & more")
    assert "<caption>some &amp; more</caption>" in html
    assert '<td>a &lt; b</td><td class="right">1.235</td>' in html
    assert '<td class="right">1,200</td>' in html
    assert "1.235" in table(columns, rows)
