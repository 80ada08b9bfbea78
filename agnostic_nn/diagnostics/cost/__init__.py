"""Ledger: what a computation asks for, operations and bytes, found from shapes alone.

`ledger.py` is the book and says what is counted as what, `arrays.py` the arrays without numbers
that write into it, `native.py` what NumPy's own versions of `ops` would need.
"""

from . import native
from .arrays import Counted, blank, blanks_like, peak_of
from .counter import Ledger, Memory

__all__ = ["Counted", "Ledger", "Memory", "blank", "blanks_like", "native", "peak_of"]
