"""Explain: the chain rule of a batch, to read: formulas, shapes, numbers and a drawing.

`walk.py` goes forward and backward through a model, and `flow.py` finds which way numbers went.
`formulas.py`, `numbers.py` and `findings.py` say what there is to say of a layer, `telling.py` puts
it in order, `drawing.py` makes the page, and `explaining.py` is what users call. `notebooks.py` has
five notebooks told so.
"""

from .explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
