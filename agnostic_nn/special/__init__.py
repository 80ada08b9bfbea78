"""Special: the few functions networks need and the Array API Standard lacks.

Each body uses the Standard alone, so it is right on every backend. Those under
`singledispatch` dispatch on the array's type: a backend may `register` a faster one for
its own; it may change the speed and the last bit, never the meaning.
"""

from .barriers import barrier, barrier_as
from .elementwise import erf, sigmoid, softplus
from .indexing import scatter_add, select
from .loops import scan, scan_as
from .pooling import crop, pad, slide, unslide
from .reductions import all_finite, log_softmax, sum_rows
from .windows import convolve, convolve_input, convolve_weight

__all__ = [
    "all_finite",
    "barrier",
    "barrier_as",
    "convolve",
    "convolve_input",
    "convolve_weight",
    "crop",
    "erf",
    "log_softmax",
    "pad",
    "scan",
    "scan_as",
    "scatter_add",
    "select",
    "sigmoid",
    "slide",
    "softplus",
    "sum_rows",
    "unslide",
]
