"""Operations that networks need and the Array API Standard lacks, one family per file.

Each function is written with the Standard alone, so it is correct on every backend.
Functions under `singledispatch` dispatch on the type of the array, and a backend may
`register` a faster version for its own arrays. That version may change the speed and
the last bit, never the meaning.

Names that end in `_impl` are the parts that a backend registers, such as `scan_impl`
for `scan`.
"""

from .activations import (
    expm1_below,
    gelu,
    gelu_curve,
    gelu_curve_slope,
    gelu_slope,
    mish,
    mish_slope,
    silu,
    silu_slope,
    tanh_shrink,
    tanh_shrink_slope,
)
from .attention import (
    attend,
    attend_backward,
    attend_general,
    attend_general_backward,
)
from .barriers import barrier, barrier_impl
from .convolution import convolve, convolve_input, convolve_weight
from .decoding import attend_stored, store
from .elementwise import above_zero, bounded_exp, erf, erfc, sigmoid, softplus, tanh
from .indexing import scatter_add, select
from .loops import (
    loop_until,
    loop_until_impl,
    lstm,
    lstm_backward,
    scan,
    scan_impl,
    scan_into,
)
from .normalization import (
    normalize,
    normalize_backward,
    normalize_rows,
    normalize_rows_backward,
)
from .padding import along, crop, extend, extend_input, pad, pad_impl
from .pooling import largest, largest_index, largest_input, slide, unslide
from .precision import is_narrow, narrowed, widened
from .products import affine
from .reductions import all_finite, log_softmax, norm, scaled_norm, sum_over, sum_rows
from .resizing import interpolate, interpolate_input, most_look_ups

__all__ = [
    "above_zero",
    "affine",
    "all_finite",
    "along",
    "attend",
    "attend_backward",
    "attend_general",
    "attend_general_backward",
    "attend_stored",
    "barrier",
    "barrier_impl",
    "bounded_exp",
    "convolve",
    "convolve_input",
    "convolve_weight",
    "crop",
    "erf",
    "erfc",
    "expm1_below",
    "extend",
    "extend_input",
    "gelu",
    "gelu_curve",
    "gelu_curve_slope",
    "gelu_slope",
    "interpolate",
    "interpolate_input",
    "is_narrow",
    "largest",
    "largest_index",
    "largest_input",
    "log_softmax",
    "loop_until",
    "loop_until_impl",
    "lstm",
    "lstm_backward",
    "mish",
    "mish_slope",
    "most_look_ups",
    "narrowed",
    "norm",
    "normalize",
    "normalize_backward",
    "normalize_rows",
    "normalize_rows_backward",
    "pad",
    "pad_impl",
    "scaled_norm",
    "scan",
    "scan_impl",
    "scan_into",
    "scatter_add",
    "select",
    "sigmoid",
    "silu",
    "silu_slope",
    "slide",
    "softplus",
    "store",
    "sum_over",
    "sum_rows",
    "tanh",
    "tanh_shrink",
    "tanh_shrink_slope",
    "unslide",
    "widened",
]
