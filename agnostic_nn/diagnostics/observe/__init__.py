"""Observe arrays and layers: pass every operation to a handler, every call to a hook.

The diagnostics that watch a computation are handlers of a few lines: `profile` times
each call, `compare.rounding` counts roundings, `bisect.noise` adds rounding errors,
`cost` counts operations and bytes. A new function of `ops` reaches all of them without
further code.
"""

from .arrays import (
    OPERATORS,
    Args,
    Function,
    Handler,
    Kwargs,
    ObservedArray,
    ObservedNamespace,
    branch,
    is_array,
    observing,
    run,
    value_of,
)
from .layers import Hook, cached_arrays, observed_layer, observed_model, path_of

__all__ = [
    "OPERATORS",
    "Args",
    "Function",
    "Handler",
    "Hook",
    "Kwargs",
    "ObservedArray",
    "ObservedNamespace",
    "branch",
    "cached_arrays",
    "is_array",
    "observed_layer",
    "observed_model",
    "observing",
    "path_of",
    "run",
    "value_of",
]
