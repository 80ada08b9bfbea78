"""HTML pages: self-contained files for desktops, phones and notebooks, light and dark.

A page is a template in `templates` that extends `page.html`. Plots are drawn by
matplotlib and embedded as SVG that takes its colours from the page. Formulas are
LaTeX, converted to MathML, which browsers render themselves. No page loads anything.
The only script copies a command to the clipboard.
"""

import html
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from .tables import html_table

__all__ = [
    "COLOURS",
    "colour",
    "embedded",
    "figure",
    "formula",
    "framed",
    "render",
    "svg",
]

COLOURS = 8  # for lines; `page.html` defines them
# Placeholders for the colours of the page, which `svg` replaces by CSS variables.
INK = "#010203"
FAINT = "#010204"
PAPER = "#010205"
_CSS_VARIABLES = {
    INK: "var(--ink)", FAINT: "var(--line)", PAPER: "var(--paper)",
    **{f"#01030{i}": f"var(--c{i})" for i in range(COLOURS)},
}  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Return the page made of `templates/<template>` with these values.

    Values are escaped unless they are HTML already. A template can call
    `table(columns, rows, title)`, `svg(figure, about)` and `formula(latex)`.

    Raises
    ------
    ImportError
        If a package that pages need is not installed.
    """
    jinja2 = _required("jinja2")
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    safe = _required("markupsafe").Markup

    def unescaped(function: Callable[..., str]) -> Callable[..., Any]:
        return lambda *args, **options: safe(function(*args, **options))

    environment.globals["table"] = unescaped(html_table)
    environment.globals["svg"] = unescaped(svg)
    environment.globals["formula"] = unescaped(formula)
    environment.filters["whole"] = _unbroken_numbers
    return _with_contents(environment.get_template(template).render(**values))


def _unbroken_numbers(text: str) -> Any:
    """Return text as HTML that does not break a number such as 2e-06 between lines.

    Text between backticks becomes code.
    """
    span = r'<span class="whole">\g<0></span>'
    marked = re.sub(r"\d[\d.]*e-\d+", span, html.escape(text))
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", marked)
    return _required("markupsafe").Markup(marked)


def _with_contents(page: str) -> str:
    """Give each heading an id, and add links to the headings if there are several."""
    headings = re.findall("<h2>(.*?)</h2>", page)
    for i in range(len(headings)):
        page = page.replace("<h2>", f'<h2 id="part{i}">', 1)
    links = "\n".join(f'<a href="#part{i}">{h}</a>' for i, h in enumerate(headings))
    empty = '<nav aria-label="contents"></nav>'
    contents = empty.replace("><", f">{links}<") if len(headings) > 1 else ""
    return page.replace(empty, contents, 1)


def figure(
    width: float = 9.0,
    height: float = 3.2,
    columns: int = 1,
    rows: int = 1,
    **subplots: Any,
) -> tuple[Any, Any]:
    """Return a matplotlib figure in the colours of a page, and its axes.

    subplots: options of `Figure.subplots`.
    """
    _required("matplotlib")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {"axes.prop_cycle": _cycle()}):
        plot = Figure(figsize=(width, height), layout="constrained")
        return plot, plot.subplots(rows, columns, **subplots)


def colour(i: int) -> str:
    """Return the colour of line number i, for matplotlib."""
    return f"#01030{i % COLOURS}"


def svg(figure: Any, about: str, title: str = "") -> str:
    """Return a figure as HTML; `about` describes it for readers who cannot see it.

    title: if given, a caption above the figure begins with it, and continues with
    `about`.
    """
    from matplotlib import rc_context

    for legend in filter(None, (axes.get_legend() for axes in figure.axes)):
        legend.set_frame_on(False)
        for label in legend.get_texts():
            label.set_color(INK)  # the legend was created outside the style of `figure`
    file = StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": about}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Without width and height, the page's style sheet decides.
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = _without_font(text)
    for placeholder, variable in _CSS_VARIABLES.items():
        text = text.replace(placeholder, variable)
    description = html.escape(about, quote=True)
    label = html.escape(f"{title}. {about}", quote=True) if title else description
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    caption = ""
    if title:
        caption = f"<figcaption><b>{html.escape(title)}</b> {description}</figcaption>"
    return f"<figure>{caption}{text}</figure>"


def _without_font(text: str) -> str:
    """Make an SVG use the page's font, and drop rules that would affect the page."""
    text = re.sub(r"<defs>\s*<style\b.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    # The one rule that was needed becomes an attribute.
    text = text.replace("<svg", '<svg style="stroke-linejoin: round"', 1)
    text = re.sub(r'font-family: [^;"]*', "font-family: inherit", text)
    # Older versions of matplotlib write size and family in one property.
    return re.sub(
        r'font: ([^;"]*?px)[^;"]*', r"font: \1 sans-serif; font-family: inherit", text
    )


def embedded(content: str) -> str:
    """Wrap HTML made for a page, such as plots, in the colours for a notebook."""
    # some pages shrink figures to their content, and an SVG has no width
    content = content.replace(
        "<figure>", '<figure style="margin: 0.5rem 0; width: 100%">'
    )
    return f'<div style="{_NOTEBOOK_STYLE}">{content}</div>'


def framed(page: str) -> str:
    """Wrap a page in an iframe for a notebook."""
    # Without a base, the page's internal links would refer to the notebook.
    page = page.replace("<head>", '<head><base href="about:srcdoc">', 1)
    style = "width:100%;height:44rem;border:0"
    return f'<iframe srcdoc="{html.escape(page, quote=True)}" style="{style}"></iframe>'


def formula(latex: str, *, block: bool = False) -> str:
    """Convert LaTeX to MathML."""
    converter = _required("latex2mathml.converter")
    mathml: str = converter.convert(latex, display="block" if block else "inline")
    return mathml


# Visible on black and on white.
_NOTEBOOK_COLOURS = (
    *("3a8fd1", "d9742b", "37a169", "c455a3"),
    *("8c74d6", "a38f1a", "1c9aa0", "a8766a"),
)
_NOTEBOOK_STYLE = "; ".join(
    (
        *("--ink: currentColor", "--line: #88888866", "--paper: transparent"),
        *(f"--c{i}: #{shade}" for i, shade in enumerate(_NOTEBOOK_COLOURS)),
        *("display: grid", "max-width: 60rem"),
        "grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr))",
    )
)
_STYLE: Any = {
    "svg.fonttype": "none",  # keep text as text, not as paths
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
    return _required("cycler").cycler(color=[colour(i) for i in range(COLOURS)])


def _required(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"pages are drawn by {name.partition('.')[0]}, which cannot be imported "
            f"({error}): pip install 'agnostic-nn[report]'"
        ) from error
