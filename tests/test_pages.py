"""Pages stand alone: everything is in the one file, and what is said is said in HTML."""

import re

import pytest

from agnostic_nn.tables import html_table, table

pytest.importorskip("jinja2", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
pytest.importorskip("latex2mathml", reason="the extra `report` is not installed")

from agnostic_nn.pages import colour, figure, formula, render, svg


def drawn():
    made, axes = figure(4, 2)
    axes.plot([1, 2, 4], label="a < b")
    axes.plot([1, 3, 9], color=colour(1))
    axes.set(title="losses", xlabel="step")
    axes.legend()
    return svg(made, 'losses "by" step')


def test_a_page_loads_nothing_and_runs_nothing():
    page = render("page.html", title="A <title>", about="1 & 2", body="<b>not bold</b>")
    assert page.startswith("<!doctype html>")
    assert "A &lt;title&gt;" in page
    assert "1 &amp; 2" in page
    assert "&lt;b&gt;not bold" in page
    assert not re.search(r"<script|<link|src=|@import|https?://", page)


def test_plots_take_their_colours_from_the_page_and_say_what_they_show():
    text = drawn()
    assert 'aria-label="losses &quot;by&quot; step"' in text
    assert "a &lt; b" in text
    assert "var(--c0)" in text
    assert "var(--c1)" in text
    assert not re.search(r"#[0-9a-f]{6}\b", text.replace("#ffffff", ""))
    assert not re.search(r'<svg[^>]* (width|height)="', text)
    assert drawn() == text


def test_formulas_are_mathml():
    assert formula(r"\frac{\partial L}{\partial W}").count("<mfrac>") == 1
    assert 'display="block"' in formula("x", block=True)


def test_a_table_says_the_same_as_text_and_as_html():
    columns, rows = ["name", "ms"], [["a < b", 1.23456], ["c", None], ["d", 1200]]
    found = html_table(columns, rows, "some & more")
    assert "<caption>some &amp; more</caption>" in found
    assert '<td>a &lt; b</td><td class="right">1.235</td>' in found
    assert '<td class="right">1,200</td>' in found
    assert "1.235" in table(columns, rows)
