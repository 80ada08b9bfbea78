"""Special: the few functions networks need and the Array API Standard lacks.

Each body uses the Standard alone, so it is right on every backend. Those under
`singledispatch` dispatch on the array's type: a backend may `register` a faster one for
its own; it may change the speed and the last bit, never the meaning. Each file has a family.
"""

from .attention import attend, attend_backward
from .barriers import barrier, barrier_as
from .elementwise import above_zero, erf, sigmoid, softplus
from .indexing import scatter_add, select
from .loops import lstm, lstm_backward, scan, scan_as, scan_into
from .normalization import (
    normalize,
    normalize_backward,
    normalize_rows,
    normalize_rows_backward,
)
from .padding import crop, pad, surround
from .pooling import along, largest, largest_input, slide, unslide
from .reductions import all_finite, log_softmax, norm, scaled_norm, sum_rows
from .windows import convolve, convolve_input, convolve_weight

__all__ = [
    "above_zero",
    "all_finite",
    "along",
    "attend",
    "attend_backward",
    "barrier",
    "barrier_as",
    "convolve",
    "convolve_input",
    "convolve_weight",
    "crop",
    "erf",
    "largest",
    "largest_input",
    "log_softmax",
    "lstm",
    "lstm_backward",
    "norm",
    "normalize",
    "normalize_backward",
    "normalize_rows",
    "normalize_rows_backward",
    "pad",
    "scaled_norm",
    "scan",
    "scan_as",
    "scan_into",
    "scatter_add",
    "select",
    "sigmoid",
    "slide",
    "softplus",
    "sum_rows",
    "surround",
    "unslide",
]
