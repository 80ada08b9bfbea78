"""Conformance: which parts of this library work on an array library, and how exactly.

The library may be any that follows the Array API Standard: one with an adapter, or any
namespace without one. Each trial runs there and on NumPy, in float32 and, if the
library has it, in float64. The verdict follows from the largest difference from NumPy's
float64:

exact
    The same numbers as NumPy's in the same dtype.
within
    The difference can be explained by rounding: at most 16 ε of the largest number of
    an array (of 1, if that is smaller), with ε the distance from 1 to the next number;
    in training at most 4 ε √(n · t), as `compare` derives it.
wrong
    The difference is larger, or a shape or dtype differs, or an argument was changed in
    place.
unsupported
    The library raised an error, which is shown in one line, did not return, or ended
    the process.
skipped
    Not run by itself, for the reason shown.

`library.py` loads the library, `trials.py` lists the trials, `verdicts.py` compares the
results with NumPy's, `sources.py` reads from the sources of this library which names it
uses, `causes.py` names the cause of a failure, `results.py` formats the findings, and
`runner.py` runs all trials, in another process if need be.
"""

from .library import library
from .results import Cause, Conformance, Finding
from .runner import conformance, guarded
from .sources import needs
from .trials import SECTIONS, TESTED_IN

__all__ = [
    "SECTIONS",
    "TESTED_IN",
    "Cause",
    "Conformance",
    "Finding",
    "conformance",
    "guarded",
    "library",
    "needs",
]
