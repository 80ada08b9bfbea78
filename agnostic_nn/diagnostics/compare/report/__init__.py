"""Format a report of `compare` for people: as text, Markdown and an HTML page.

`headline.py` has the answer in one sentence, and `sentences.py` the verdict on each
run. `tables.py` has the tables that all formats share. `terminal.py`, `markdown.py` and
`html.py` put them together, the page with the plots of `plots.py` and `axes.py`.
`files.py` writes the report's files.
"""

from .files import write
from .html import Comparison, page
from .terminal import summary

__all__ = ["Comparison", "page", "summary", "write"]
