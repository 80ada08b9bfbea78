"""Observe: arrays that report every call to a handler, and layers with hooks around methods.

The diagnostics that watch a computation are handlers of a few lines: `profile` times
each call, `compare.rounding` counts roundings, `bisect.noise` adds rounding errors,
`cost` counts operations and bytes. A new function of `ops` reaches all of them without
a line of its own.
"""

from .arrays import (
    Handler,
    ObservedArray,
    ObservedNamespace,
    branch,
    observing,
    run,
    value_of,
)
from .layers import Hook, observed_layer, observed_model, path_of

__all__ = [
    "Handler",
    "Hook",
    "ObservedArray",
    "ObservedNamespace",
    "branch",
    "observed_layer",
    "observed_model",
    "observing",
    "path_of",
    "run",
    "value_of",
]
