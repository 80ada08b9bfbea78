"""Cost: the operations and the memory of a computation, found from shapes alone.

`counter.py` holds the counters and defines what is counted, `arrays.py` the arrays
without values whose operations are counted, and `native.py` the costs of NumPy's native
versions of `ops`.
"""

from . import native
from .arrays import Counted, blank, blanks_like, peak_of
from .counter import CostCounter, Memory

__all__ = [
    "CostCounter",
    "Counted",
    "Memory",
    "blank",
    "blanks_like",
    "native",
    "peak_of",
]
