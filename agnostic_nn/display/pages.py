"""Pages: HTML that stands alone, one file for a desk, a phone and a notebook, light and dark.

A page is a template in `templates`, which extends `page.html`. Plots are drawn by matplotlib
and set into it as SVG that takes its colours from the page; formulas are LaTeX, set as MathML,
which browsers draw themselves. No page loads anything, and none has a script.
"""

import html
import re
from io import StringIO
from pathlib import Path
from typing import Any

from .tables import html_table

__all__ = ["colour", "embedded", "figure", "formula", "framed", "render", "svg"]

COLOURS = 8  # that lines are told apart by; `page.html` says which
INK, FAINT, PAPER = "#010203", "#010204", "#010205"  # stand for those of the page until it is drawn
_OF_PAGE = {
    INK: "var(--ink)", FAINT: "var(--line)", PAPER: "var(--paper)",
    **{f"#01030{i}": f"var(--c{i})" for i in range(COLOURS)},
}  # fmt: skip


def render(template: str, **values: Any) -> str:
    """A page: `templates/<template>` with these values, which are escaped unless they are HTML.

    A template has `table(columns, rows, title)`, `svg(figure, about)` and `formula(latex)`.

    Raises
    ------
    ImportError
        If what draws pages is not installed.
    """
    jinja2 = _needed("jinja2")
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    safe = _needed("markupsafe").Markup
    for function in (html_table, svg, formula):
        name = function.__name__.removeprefix("html_")
        environment.globals[name] = lambda *args, _f=function, **kw: safe(_f(*args, **kw))
    environment.filters["whole"] = _whole
    return _with_contents(environment.get_template(template).render(**values))


def _whole(text: str) -> Any:
    """Text in which no number such as 2e-06 is broken between lines."""
    found = re.sub(r"\d[\d.]*e-\d+", r'<span class="whole">\g<0></span>', html.escape(text))
    return _needed("markupsafe").Markup(found)


def _with_contents(page: str) -> str:
    """The page with a name for each of its headings, and links to them if there are several."""
    found = re.findall("<h2>(.*?)</h2>", page)
    for i in range(len(found)):
        page = page.replace("<h2>", f'<h2 id="part{i}">', 1)
    links = "\n".join(f'<a href="#part{i}">{name}</a>' for i, name in enumerate(found))
    empty = '<nav aria-label="contents"></nav>'
    full = empty.replace("><", f">{links}<") if len(found) > 1 else ""
    return page.replace(empty, full, 1)


def figure(
    width: float = 9.0, height: float = 3.2, columns: int = 1, rows: int = 1, **subplots: Any
) -> tuple[Any, Any]:
    """A matplotlib figure in the colours of a page, and its axes, as `Figure.subplots` has them."""
    _needed("matplotlib")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {"axes.prop_cycle": _cycle()}):
        made = Figure(figsize=(width, height), layout="constrained")
        return made, made.subplots(rows, columns, **subplots)


def colour(i: int) -> str:
    """The colour of line number i, for matplotlib."""
    return f"#01030{i % COLOURS}"


def svg(figure: Any, about: str) -> str:
    """A figure as HTML; `about` is what it shows, for those who cannot see it."""
    from matplotlib import rc_context

    for legend in filter(None, (axes.get_legend() for axes in figure.axes)):
        legend.set_frame_on(False)
        for said in legend.get_texts():  # made after the style of the figure was in force
            said.set_color(INK)
    text = StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": about}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    drawn = _without_font(drawn)
    for stands, means in _OF_PAGE.items():
        drawn = drawn.replace(stands, means)
    said = html.escape(about, quote=True)
    drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{said}"', 1)
    return f"<figure>{drawn}</figure>"


def _without_font(drawn: str) -> str:
    """SVG whose text is in the font of the page, and which has no rules for the rest of it."""
    drawn = re.sub(r"<defs>\s*<style\b.*?</style>\s*</defs>", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace("<svg", '<svg style="stroke-linejoin: round"', 1)  # as those have it
    drawn = re.sub(r'font-family: [^;"]*', "font-family: inherit", drawn)
    # an older matplotlib says size and family in one
    return re.sub(r'font: ([^;"]*?px)[^;"]*', r"font: \1 sans-serif; font-family: inherit", drawn)


def embedded(made: str) -> str:
    """What is made for a page, such as plots, for a notebook: with the colours of a page."""
    made = made.replace("<figure>", '<figure style="margin: 0.5rem 0">')
    return f'<div style="{_ELSEWHERE}">{made}</div>'


def framed(page: str) -> str:
    """A page for a notebook, which shows it in a frame of its own."""
    # without it the page's links would be to places in the notebook
    page = page.replace("<head>", '<head><base href="about:srcdoc">', 1)
    style = "width:100%;height:44rem;border:0"
    return f'<iframe srcdoc="{html.escape(page, quote=True)}" style="{style}"></iframe>'


def formula(latex: str, *, block: bool = False) -> str:
    """LaTeX as MathML."""
    converter = _needed("latex2mathml.converter")
    return converter.convert(latex, display="block" if block else "inline")


_COLOURS = ("3a8fd1", "d9742b", "37a169", "c455a3", "8c74d6", "a38f1a", "1c9aa0", "a8766a")
_ELSEWHERE = "; ".join(
    (
        *("--ink: currentColor", "--line: #88888866", "--paper: transparent"),
        *(f"--c{i}: #{shade}" for i, shade in enumerate(_COLOURS)),  # on black and on white
        *("display: grid", "max-width: 60rem"),
        "grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr))",
    )
)
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
}


def _cycle() -> Any:
    return _needed("cycler").cycler(color=[colour(i) for i in range(COLOURS)])


def _needed(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"pages are drawn by {name.partition('.')[0]}, which cannot be imported ({error}): "
            "pip install 'agnostic-nn[report]'"
        ) from error
