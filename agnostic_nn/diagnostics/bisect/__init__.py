"""Bisect: find the first layer that two backends compute differently.

`stages.py` splits a training step into stages, and `halves.py` runs them in float16 and
bfloat16. `noise.py` measures what rounding may do to the results of a stage, and
`search.py` compares the stages of both backends within that tolerance.
"""

from .search import Bisection, Finding, StageFailed, bisect, replay

__all__ = ["Bisection", "Finding", "StageFailed", "bisect", "replay"]
