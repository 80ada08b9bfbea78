"""Bisect: two backends in lock step, and the first layer that they compute differently.

`stages.py` takes a training step apart, `noise.py` samples what rounding may do to a stage, and
`bisecting.py` holds both backends' stages to that.
"""

from .search import Bisection, Finding, StageFailed, bisect, replay

__all__ = ["Bisection", "Finding", "StageFailed", "bisect", "replay"]
