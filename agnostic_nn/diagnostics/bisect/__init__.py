"""Bisect: two backends in lock step, and the first layer that they compute differently.

`pieces.py` takes a training step apart, `noise.py` samples what rounding may do to a piece, and
`bisecting.py` holds both backends' pieces to that.
"""

from .search import Bisection, Finding, PieceFails, bisect, replay

__all__ = ["Bisection", "Finding", "PieceFails", "bisect", "replay"]
