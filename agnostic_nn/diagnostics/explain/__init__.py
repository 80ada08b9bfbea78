"""The chain rule for one batch: formulas, shapes and numbers, as text or as a page.

`explanation.py` has `explain`, which users call. `walk.py` runs a model forward and
backward and records its layer calls; `flow.py` builds the graph of these calls.
`docstrings.py`, `formulas.py` (in LaTeX, see `latex.py`), `numbers.py` and `remarks.py`
describe a single layer. `text.py` formats the report as plain text, `html.py` as a
page. `notebooks.py` has the pages for the five notebooks in `examples/`.
"""

from .explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
