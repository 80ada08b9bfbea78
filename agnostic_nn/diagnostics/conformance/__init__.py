"""Conformance: what of this library a given array library can carry, and how exactly.

Any library that speaks the Array API Standard will do: one with an adapter, or any namespace
without one. Each thing is computed there and by NumPy, in float32 and, where there is one, in
float64, and the largest difference from NumPy's float64 decides:

exact
    The same numbers as NumPy's in the same dtype.
within
    Off by no more than roundings are: 16 ε of the largest number of an array (of 1, if that is
    below), ε from 1 to the next number; in training 4 ε √(n · t), as `compare` says it.
wrong
    Off by more, or of another shape or dtype, or an argument was changed in place.
unsupported
    The library raised an error, which is shown in one line, hung, or ended the process.
skipped
    Not tried by itself, for the reason shown.

`library.py` finds the library, `trials.py` says what is tried, `judging.py` holds it to NumPy,
`findings.py` shows what came of it; `trying.py` goes through it all, in a process of its own if
need be.
"""

from .library import library
from .results import NEEDS, Conformance, Finding
from .runner import conformance, guarded
from .trials import SECTIONS, THROUGH

__all__ = [
    "NEEDS",
    "SECTIONS",
    "THROUGH",
    "Conformance",
    "Finding",
    "conformance",
    "guarded",
    "library",
]
