"""Special: the few functions networks need and the Array API Standard lacks.

Each body uses the Standard alone, so it is right on every backend. Those under
`singledispatch` dispatch on the array's type: a backend may `register` a faster one for
its own; it may change the speed and the last bit, never the meaning.
"""

from .elementwise import erf, sigmoid, softplus
from .indexing import scatter_add, select
from .loops import scan, scan_as
from .reductions import all_finite, log_softmax

__all__ = [
    "all_finite",
    "erf",
    "log_softmax",
    "scan",
    "scan_as",
    "scatter_add",
    "select",
    "sigmoid",
    "softplus",
]
